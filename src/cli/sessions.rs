//! `ftp-alg sessions`: the control connections that the daemon follows now.

use std::net::SocketAddr;

use clap::Args;

use super::{Failure, SocketOption, table};
use crate::daemon::snapshot::SessionRow;

/// List the control connections that are open now
///
/// An end that NAT shows to its peer with another endpoint is printed as `own (as external)`.
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
    /// Asks and prints.
    pub fn run(&self) -> Result<(), Failure> {
        self.socket.list("sessions", self.json, text)
    }
}

fn text(sessions: &[SessionRow]) -> String {
    if sessions.is_empty() {
        return "no sessions\n".to_owned();
    }
    let rows: Vec<_> = sessions
        .iter()
        .map(|row| {
            [
                row.id.to_string(),
                end(row.client, row.client_external),
                end(row.server, row.server_external),
                row.state.clone(),
                table::span(row.age_seconds),
                if row.adjusted { "yes" } else { "no" }.to_owned(),
                row.pinholes.to_string(),
            ]
        })
        .collect();
    table::render([">ID", "CLIENT", "SERVER", "STATE", ">AGE", "ADJUSTED", ">PINHOLES"], &rows)
}

fn end(own: SocketAddr, external: SocketAddr) -> String {
    if own == external { own.to_string() } else { format!("{own} (as {external})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_external_endpoint_is_shown_where_it_differs() {
        let server = SocketAddr::from(([203, 0, 113, 9], 21));
        let row = SessionRow {
            id: 7,
            client: SocketAddr::from(([10, 0, 0, 5], 4000)),
            server,
            client_external: SocketAddr::from(([198, 51, 100, 1], 4000)),
            server_external: server,
            state: "ready".into(),
            age_seconds: 65,
            adjusted: true,
            pinholes: 1,
        };
        let text = text(&[row]);
        let line = text.lines().nth(1).unwrap();
        assert!(
            line.starts_with(" 7  10.0.0.5:4000 (as 198.51.100.1:4000)  203.0.113.9:21  ready")
        );
    }

    #[test]
    fn nothing_open_is_said_in_words() {
        assert_eq!(text(&[]), "no sessions\n");
    }
}
