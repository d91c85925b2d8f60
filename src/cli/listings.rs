//! `ftp-alg sessions` and `ftp-alg pinholes`: what the daemon has open, selected and sorted.

mod detail;
mod pinholes;
pub(super) mod sessions;

use clap::Args;
use serde::{Serialize, de::DeserializeOwned};

pub(super) use self::{pinholes::PinholeOptions, sessions::SessionOptions};
use super::{
    Failure, SocketOption,
    columns::{self, Column},
    output,
    output::Style,
    selection::Subject,
};
use crate::daemon::snapshot::{SessionSummary, TransferProgress};

/// The options of a list.
#[derive(Args, Debug)]
struct ListOptions {
    /// Print one JSON array
    #[arg(long)]
    json: bool,
    /// Sort from the last to the first
    #[arg(long)]
    reverse: bool,
    #[command(flatten)]
    socket: SocketOption,
}

impl ListOptions {
    /// Requests the rows of `what` and prints the selected ones, sorted by the column `sorted`, then by the first
    /// column. Prints `hint` if there are none.
    fn print<Row: DeserializeOwned + Serialize>(
        &self,
        what: &str,
        columns: &[Column<Row>],
        sorted: Option<&str>,
        selects: impl Fn(&Row) -> bool,
        hint: &str,
    ) -> Result<(), Failure> {
        let mut rows = self.socket.request(what)?.parse::<Vec<Row>>()?;
        rows.retain(selects);
        columns::sort(columns, &mut rows, columns::titles(columns).next());
        columns::sort(columns, &mut rows, sorted);
        if self.reverse {
            rows.reverse();
        }
        output::print_report(self.json, &rows, |rows| match &rows[..] {
            [] => format!("no {what}\n{hint}"),
            rows => columns::render(columns, rows, Style::of_stdout(), sorted),
        })
    }
}

/// What a session is selected by.
fn subject(session: &SessionSummary) -> Subject<'_> {
    Subject {
        client: Some(session.client.ip()),
        server: Some(session.server.ip()),
        user: session.user.as_deref(),
        session: Some(session.id),
    }
}

/// The command of a transfer that has not ended, and its path.
fn transfer_text(transfer: &TransferProgress) -> String {
    let TransferProgress { verb, path, .. } = transfer;
    format!("{verb} {path}").trim_end().to_owned()
}

#[cfg(test)]
pub(super) mod samples {
    use crate::daemon::snapshot::{SessionSummary, TransferProgress};

    /// A transfer of which so many bytes were sent.
    pub fn transfer(bytes: Option<u64>) -> TransferProgress {
        TransferProgress {
            verb: "RETR".into(),
            path: "/pub/now.iso".into(),
            seconds: Some(12),
            started: true,
            bytes,
            bytes_per_second: bytes.map(|bytes| bytes as f64 / 12.0),
        }
    }

    /// A session between these ends.
    pub fn summary(
        client: &str,
        client_external: &str,
        server: &str,
        server_external: &str,
    ) -> SessionSummary {
        let [client, client_external, server, server_external] =
            [client, client_external, server, server_external].map(|end| end.parse().unwrap());
        SessionSummary {
            id: 7,
            client,
            server,
            client_external,
            server_external,
            user: Some("bob".into()),
            state: "logged-in".into(),
            age_seconds: 65,
            adjusted: true,
            fast_path: false,
            transfer: None,
            transfers: 0,
            bytes: None,
            passive_ports: None,
        }
    }
}
