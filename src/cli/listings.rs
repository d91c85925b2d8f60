//! `ftp-alg sessions` and `ftp-alg pinholes`: what the daemon has open, selected and sorted.

mod detail;
mod pinholes;
mod sessions;

use clap::{Args, ValueEnum};
use serde::{Serialize, de::DeserializeOwned};

pub(super) use self::{pinholes::PinholeOptions, sessions::SessionOptions};
use super::{Failure, SocketOption, output, output::Style, selection::Subject, table};
use crate::daemon::snapshot::{SessionSummary, TransferProgress};

/// The options of a list, with the columns `By` to sort by.
#[derive(Args, Debug)]
struct ListOptions<By: ValueEnum + Send + Sync + 'static> {
    /// Print one JSON array
    #[arg(long)]
    json: bool,
    /// Sort by this column
    #[arg(long, value_name = "COLUMN", value_enum)]
    sort: Option<By>,
    /// Sort from the last to the first
    #[arg(long)]
    reverse: bool,
    #[command(flatten)]
    socket: SocketOption,
}

impl<By: ValueEnum + Copy + Send + Sync + 'static> ListOptions<By> {
    /// Requests the rows of `what` and prints those that are selected, as JSON or formatted by `text`. Rows that are
    /// equal in the column, or all without a column, have the order `by_default`.
    fn print<Row: DeserializeOwned + Serialize, Key: Ord>(
        &self,
        what: &str,
        selects: impl Fn(&Row) -> bool,
        (by_default, key): (impl Fn(&Row) -> u64, impl Fn(&Row, By) -> Key),
        text: impl Fn(&[Row], Style) -> String,
    ) -> Result<(), Failure> {
        let mut rows = self.socket.request(what)?.parse::<Vec<Row>>()?;
        rows.retain(selects);
        rows.sort_by_key(by_default);
        if let Some(by) = self.sort {
            rows.sort_by_cached_key(|row| key(row, by));
        }
        if self.reverse {
            rows.reverse();
        }
        match self.json {
            true => output::print_line(&serde_json::to_string(&rows).map_err(Failure::failed)?),
            false => output::print(&text(&rows, Style::of_stdout())),
        }
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

/// The bytes of a transfer that has not ended, and of each second, if they are known.
fn moved_text(transfer: &TransferProgress) -> Option<[String; 2]> {
    let rate = transfer.bytes_per_second?;
    Some([table::bytes(transfer.bytes?), format!("{}/s", table::bytes(rate as u64))])
}

#[cfg(test)]
mod samples {
    use crate::daemon::snapshot::SessionSummary;

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
        }
    }
}
