//! `ftp-alg sessions` and `ftp-alg pinholes`: the tables of what the daemon has open.

use std::net::SocketAddr;

use clap::Args;
use serde::de::DeserializeOwned;

use super::{Failure, SocketOption, output, table};
use crate::daemon::snapshot::{PinholeRow, SessionRow};

#[derive(Args, Debug)]
pub(super) struct ListingOptions {
    /// Print one JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketOption,
}

impl ListingOptions {
    /// Requests the rows of `what` and prints them, as JSON or formatted by `text`.
    pub(super) fn print<T: DeserializeOwned>(
        &self,
        what: &str,
        text: fn(&[T]) -> String,
    ) -> Result<(), Failure> {
        let answer = self.socket.request(what)?;
        match self.json {
            true => output::print_line(answer.json()),
            false => output::print(&text(&answer.parse::<Vec<_>>()?)),
        }
    }
}

/// The table of `ftp-alg sessions`.
pub(super) fn sessions(sessions: &[SessionRow]) -> String {
    if sessions.is_empty() {
        return "no sessions\n".to_owned();
    }
    let rows: Vec<_> = sessions.iter().flat_map(session_rows).collect();
    table::render([">ID", "CLIENT", "SERVER", "STATE", ">AGE", "ADJ", ">OPEN"], &rows)
}

/// The row of a session, and a second row with external endpoints if there is one.
fn session_rows(row: &SessionRow) -> impl Iterator<Item = [String; 7]> {
    let own = [
        row.id.to_string(),
        row.client.to_string(),
        row.server.to_string(),
        row.state.clone(),
        table::span(row.age_seconds),
        if row.adjusted { "yes" } else { "no" }.to_owned(),
        row.pinholes.to_string(),
    ];
    let mut external = [const { String::new() }; 7];
    external[0] = "as".to_owned();
    external[1] = external_text(row.client, row.client_external);
    external[2] = external_text(row.server, row.server_external);
    let has_external = external[1..].iter().any(|cell| !cell.is_empty());
    [own].into_iter().chain(has_external.then_some(external))
}

fn external_text(own: SocketAddr, external: SocketAddr) -> String {
    if own == external { String::new() } else { external.to_string() }
}

/// The table of `ftp-alg pinholes`.
pub(super) fn pinholes(pinholes: &[PinholeRow]) -> String {
    if pinholes.is_empty() {
        return "no pinholes\n".to_owned();
    }
    let rows: Vec<_> = pinholes.iter().flat_map(pinhole_rows).collect();
    table::render([">SESSION", "KIND", ">LEFT", "INITIATOR", "ARRIVAL"], &rows)
}

/// The row of a pinhole, and a second row with its translations if there is one.
fn pinhole_rows(row: &PinholeRow) -> impl Iterator<Item = [String; 5]> {
    let own = [
        row.session.to_string(),
        row.kind.to_string(),
        table::span(row.remaining_seconds),
        row.initiator.to_string(),
        row.arrival.to_string(),
    ];
    let mut translated = [const { String::new() }; 5];
    if row.source != row.initiator {
        translated[3] = format!("as {}", row.source);
    }
    if row.target != row.arrival {
        translated[4] = format!("to {}", row.target);
    }
    let is_translated = translated.iter().any(|cell| !cell.is_empty());
    [own].into_iter().chain(is_translated.then_some(translated))
}

#[cfg(test)]
mod tests {
    use ftp_alg_core::ftp::AnnouncementKind;

    use super::*;

    fn session(
        client: &str,
        client_external: &str,
        server: &str,
        server_external: &str,
    ) -> SessionRow {
        let [client, client_external, server, server_external] =
            [client, client_external, server, server_external].map(|end| end.parse().unwrap());
        SessionRow {
            id: 7,
            client,
            server,
            client_external,
            server_external,
            state: "logged-in".into(),
            age_seconds: 65,
            adjusted: true,
            pinholes: 1,
        }
    }

    #[test]
    fn external_endpoint_is_shown_in_a_second_row() {
        let (client, server) = ("10.0.0.5:4000", "203.0.113.9:21");
        let text = sessions(&[
            session(client, "198.51.100.1:4000", server, server),
            session(client, client, server, "198.51.100.1:2121"),
            session(client, client, server, server),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        let line = " 7  10.0.0.5:4000      203.0.113.9:21     logged-in  1m 5s  yes     1";
        assert_eq!(lines[1], line);
        assert_eq!(lines[2], "as  198.51.100.1:4000");
        assert_eq!(lines[4], "as                     198.51.100.1:2121");
        assert_eq!(lines.len(), 6, "{text}");
    }

    #[test]
    fn longest_ipv4_row_has_80_columns() {
        let (client, server) = ("192.168.150.180:50000", "203.113.113.113:21");
        let row = SessionRow {
            id: 999_999,
            age_seconds: 3599,
            ..session(client, "198.151.100.100:50000", server, "192.168.100.100:21")
        };
        let text = sessions(&[row]);
        assert_eq!(text.lines().map(str::len).max(), Some(80), "{text}");
    }

    #[test]
    fn empty_list_is_printed_in_words() {
        assert_eq!(sessions(&[]), "no sessions\n");
    }

    #[test]
    fn translation_is_shown_in_a_second_row() {
        let row = |source: &str, target: &str| PinholeRow {
            session: 7,
            initiator: "203.0.113.9".parse().unwrap(),
            arrival: "198.51.100.1:3762".parse().unwrap(),
            target: target.parse().unwrap(),
            source: source.parse().unwrap(),
            kind: AnnouncementKind::Port,
            remaining_seconds: 29,
        };
        let text = pinholes(&[
            row("203.0.113.9", "192.168.150.80:3762"),
            row("10.0.0.1", "198.51.100.1:3762"),
        ]);
        let expected = "\
SESSION  KIND  LEFT  INITIATOR    ARRIVAL
      7  PORT   29s  203.0.113.9  198.51.100.1:3762
                                  to 192.168.150.80:3762
      7  PORT   29s  203.0.113.9  198.51.100.1:3762
                     as 10.0.0.1
";
        assert_eq!(text, expected);
    }
}
