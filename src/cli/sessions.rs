//! `ftp-alg sessions`: the control connections that the daemon follows now.

use std::net::SocketAddr;

use clap::Args;

use super::{Failure, SocketOption, table};
use crate::daemon::snapshot::SessionRow;

/// List the control connections that are open now
///
/// ID is the number that log lines of the session start with. A second line,
/// `as`, has the external endpoint of an end that NAT shows to its peer as
/// another. ADJ says whether sequence numbers are adjusted, OPEN how many
/// pinholes are open.
///
/// The states are:
///   new        the server has not greeted yet
///   greeted    the server has greeted, the client has not answered as FTP does
///   login      the dialogue is FTP, and no login was accepted yet
///   logged-in  a login was accepted: announcements open pinholes
///   joined     picked up mid-stream: its start was not seen, nothing is opened
///   lost       packets of it were missed: nothing is opened any more
///   encrypted  TLS: nothing can be read, until CCC
///   not-ftp    the server speaks FTP, the client does not: nothing is opened
///   opaque     it is not FTP, or was lost while encrypted: it passes unread
///   closing    an end has closed or reset it
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

/// The session, and its external ends below its own.
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
    fn an_external_endpoint_is_shown_below_where_it_differs() {
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
    fn the_longest_row_of_ipv4_has_80_columns() {
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
    fn nothing_open_is_said_in_words() {
        assert_eq!(text(&[]), "no sessions\n");
    }
}
