//! `ftp-alg sessions`: lists the sessions of the daemon.

use std::net::SocketAddr;

use clap::Args;

use super::{Failure, SocketOption, table};
use crate::daemon::snapshot::SessionRow;

/// List the sessions that are open now
///
/// ID is the number at the start of the session's log lines. If NAT changes an
/// endpoint, a second line, `as`, shows the external endpoint. ADJ says whether
/// sequence numbers are adjusted. OPEN is the number of open pinholes.
///
/// The states are:
///   new        no greeting from the server yet
///   greeted    greeting seen; no FTP command from the client yet
///   login      FTP; no login accepted yet
///   logged-in  login accepted; announcements open pinholes
///   picked-up  picked up mid-stream; opens no pinholes
///   lost       packets were missed; opens no more pinholes
///   encrypted  TLS; cannot be inspected before CCC
///   not-ftp    the server speaks FTP, the client does not; opens no pinholes
///   opaque     not FTP, or lost while encrypted; packets pass uninspected
///   closing    one end has closed or reset the connection
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Sessions {
    /// Print one JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketOption,
}

impl Sessions {
    pub fn run(&self) -> Result<(), Failure> {
        self.socket.print_rows("sessions", self.json, text)
    }
}

fn text(sessions: &[SessionRow]) -> String {
    if sessions.is_empty() {
        return "no sessions\n".to_owned();
    }
    let rows: Vec<_> = sessions.iter().flat_map(rows).collect();
    table::render([">ID", "CLIENT", "SERVER", "STATE", ">AGE", "ADJ", ">OPEN"], &rows)
}

/// The row of a session, and a second row with external endpoints if there is one.
fn rows(row: &SessionRow) -> impl Iterator<Item = [String; 7]> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(client: &str, client_external: &str, server: &str, server_external: &str) -> SessionRow {
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
        let text = text(&[
            row(client, "198.51.100.1:4000", server, server),
            row(client, client, server, "198.51.100.1:2121"),
            row(client, client, server, server),
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
            ..row(client, "198.151.100.100:50000", server, "192.168.100.100:21")
        };
        let text = text(&[row]);
        assert_eq!(text.lines().map(str::len).max(), Some(80), "{text}");
    }

    #[test]
    fn empty_list_is_printed_in_words() {
        assert_eq!(text(&[]), "no sessions\n");
    }
}
