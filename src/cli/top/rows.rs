//! The rows of the four panels, made from what a look shows. All text in them is escaped.

use std::net::SocketAddr;

use super::{
    look::Event,
    text::{Cut, escaped},
};
use crate::{
    cli::table,
    daemon::{
        health::CheckStatus,
        snapshot::{Problem, SessionRow, TransferProgress},
    },
};

/// A row: what its columns show, and what is known besides.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// A number that it keeps from look to look.
    pub key: u64,
    pub cells: Vec<Cell>,
    /// Names and values of further details.
    pub more: Vec<(&'static str, String)>,
}

/// A cell, which is ordered by its number, or without one by its text.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    pub text: String,
    pub number: Option<f64>,
}

/// A column of a panel.
#[derive(Debug)]
pub(super) struct Column {
    pub title: &'static str,
    pub is_right: bool,
    /// The width of usual contents, so that columns do not move when rows change.
    pub usual: usize,
    /// How much of the text stays, and where it is cut, if the terminal is narrow.
    pub cut: Option<(usize, Cut)>,
    /// The width of a terminal that has room for the column, and for those before it.
    pub from: u16,
    /// Whether the filter searches it.
    is_searched: bool,
}

pub(super) const fn column(title: &'static str, usual: usize) -> Column {
    Column { title, is_right: false, usual, cut: None, from: 0, is_searched: false }
}

impl Column {
    const fn right(self) -> Self {
        Self { is_right: true, ..self }
    }
    const fn cut(self, least: usize, at: Cut) -> Self {
        Self { cut: Some((least, at)), ..self }
    }
    const fn from(self, from: u16) -> Self {
        Self { from, ..self }
    }
    pub const fn searched(self) -> Self {
        Self { is_searched: true, ..self }
    }
}

pub(super) const SESSIONS: &[Column] = &[
    column("ID", 3).right(),
    column("CLIENT", 20).searched().cut(12, Cut::Middle),
    column("SERVER", 18).searched().cut(12, Cut::Middle),
    column("USER", 8).searched().cut(5, Cut::End),
    column("TRANSFER", 12).cut(8, Cut::AfterWord).searched(),
    column("RATE", 9).right(),
    column("STATE", 9).from(82),
    column("BYTES", 8).right().from(92),
    column("TOTAL", 8).right().from(102),
    column("SECS", 5).right().from(108),
    column("XFERS", 6).right().from(115),
    column("AGE", 6).right().from(122),
    column("FAST", 4).from(128),
    column("OPEN", 4).right().from(138),
    column("ADJ", 3).from(138),
    column("CLIENT AS", 18).searched().cut(12, Cut::Middle).from(155),
    column("SERVER AS", 18).searched().cut(12, Cut::Middle).from(175),
];

pub(super) const TRANSFERS: &[Column] = &[
    column("UTC", 8),
    column("CLIENT", 13).searched().cut(9, Cut::Middle),
    column("USER", 6).searched().cut(5, Cut::End),
    column("VERB", 4),
    column("PATH", 12).searched().cut(8, Cut::Start),
    column("BYTES", 9).right(),
    column("SECS", 5).right(),
    column("RESULT", 8),
    column("CODE", 4).right().from(100),
    column("SERVER", 13).searched().cut(9, Cut::Middle).from(100),
    column("MODE", 7).from(130),
    column("REASON", 6).cut(12, Cut::End).from(130),
];

pub(super) const FAILURES: &[Column] = &[
    column("UTC", 8),
    column("ID", 3).right(),
    column("CLIENT", 13).searched().cut(9, Cut::Middle),
    column("USER", 6).searched().cut(5, Cut::End),
    column("WHAT AND WHY", 20).searched().cut(20, Cut::End),
    column("SERVER", 13).searched().cut(9, Cut::Middle).from(100),
];

pub(super) const HEALTH: &[Column] =
    &[column("SEVERITY", 8), column("NAME", 10), column("TEXT", 20).cut(20, Cut::End)];

impl Row {
    /// The names and values of all that is known of this row of a panel with these `columns`.
    pub fn details(&self, columns: &[Column]) -> Vec<(&'static str, String)> {
        let known = columns.iter().zip(&self.cells).filter(|(_, cell)| !cell.text.is_empty());
        let known = known.map(|(column, cell)| (column.title, cell.text.clone()));
        known.chain(self.more.iter().cloned()).collect()
    }

    /// Whether a column that the filter searches has this text, which is in lower case.
    pub fn has(&self, columns: &[Column], text: &str) -> bool {
        let mut searched = columns.iter().zip(&self.cells).filter(|(column, _)| column.is_searched);
        text.is_empty() || searched.any(|(_, cell)| cell.text.to_lowercase().contains(text))
    }

    /// The row of a session.
    pub fn session(row: &SessionRow) -> Self {
        let session = &row.summary;
        let external = |own: SocketAddr, external: SocketAddr| {
            if own == external { Cell::default() } else { Cell::endpoint(external) }
        };
        let yes_or_no = |value| Cell::text(if value { "yes" } else { "no" });
        let transfer = session.transfer.as_ref();
        let command =
            |one: &TransferProgress| Cell::text(format!("{} {}", one.verb, one.path).trim_end());
        let size = |bytes: Option<u64>| {
            let known = |bytes: u64| Cell::number(bytes as f64, table::bytes(bytes));
            bytes.map_or_else(|| Cell::text("-"), known)
        };
        let rate = |one: &TransferProgress| {
            let known = |rate| Cell::number(rate, format!("{}/s", table::bytes(rate as u64)));
            one.bytes_per_second.map_or_else(|| Cell::text("-"), known)
        };
        let cells = vec![
            Cell::count(session.id),
            Cell::endpoint(session.client),
            Cell::endpoint(session.server),
            Cell::text(session.user.as_deref().unwrap_or("-")),
            transfer.map(command).unwrap_or_default(),
            transfer.map(rate).unwrap_or_default(),
            Cell::text(&session.state),
            transfer.map(|one| size(one.bytes)).unwrap_or_default(),
            size(session.bytes),
            transfer.map(|one| Cell::count(one.seconds)).unwrap_or_default(),
            Cell::count(session.transfers.into()),
            Cell::number(session.age_seconds as f64, table::span(session.age_seconds)),
            yes_or_no(session.fast_path),
            Cell::count(row.pinholes),
            yes_or_no(session.adjusted),
            external(session.client, session.client_external),
            external(session.server, session.server_external),
        ];
        Self { key: session.id, cells, more: Vec::new() }
    }

    /// The row of a transfer that has ended.
    pub fn transfer(event: &Event) -> Self {
        let unknown = || Cell::text("-");
        let size = |bytes: u64| Cell::number(bytes as f64, table::bytes(bytes));
        let cells = vec![
            event.time_cell(),
            Cell::text(&event.client),
            event.user.as_deref().map_or_else(unknown, Cell::text),
            Cell::text(&event.verb),
            Cell::text(&event.path),
            event.bytes.map_or_else(unknown, size),
            Cell::number(event.seconds, format!("{:.1}", event.seconds)),
            Cell::text(&event.result),
            event.code.map_or_else(unknown, |code| Cell::count(code.into())),
            Cell::text(&event.server),
            event.mode.as_deref().map_or_else(unknown, Cell::text),
            Cell::text(event.reason.as_deref().unwrap_or_default()),
        ];
        let exact = event.bytes.map_or_else(|| "not known".to_owned(), |bytes| bytes.to_string());
        let more = vec![
            ("EXACT BYTES", exact),
            ("DIRECTION", escaped(&event.direction)),
            ("SESSION", event.session.to_string()),
            ("TIME", escaped(&event.time)),
        ];
        Self { key: event.id, cells, more }
    }

    /// The row of what failed.
    pub fn failure(event: &Event) -> Self {
        let cells = vec![
            event.time_cell(),
            Cell::count(event.session),
            Cell::text(&event.client),
            Cell::text(event.user.as_deref().unwrap_or("-")),
            Cell::text(&event.what()),
            Cell::text(&event.server),
        ];
        Self { key: event.id, cells, more: vec![("TIME", escaped(&event.time))] }
    }

    /// The row of a problem or warning, number `key` in their order.
    pub fn finding(key: u64, severity: CheckStatus, problem: &Problem) -> Self {
        let Problem { name, text, remedy } = problem;
        let severity = Cell::number(key as f64, severity);
        let cells = vec![severity, Cell::text(name), Cell::text(text)];
        Self { key, cells, more: vec![("REMEDY", escaped(remedy))] }
    }
}

impl Event {
    /// What failed, and why, without the session and its ends.
    fn what(&self) -> String {
        let Self { verb, path, result, reason, text, .. } = self;
        if verb.is_empty() {
            let what = text.split_once(": ").map_or(&**text, |(_, what)| what);
            return what.strip_prefix("refuse ").unwrap_or(what).to_owned();
        }
        let code = self.code.map(|code| format!(", {code}")).unwrap_or_default();
        let reason = reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
        format!("{verb} {path}: {}{code}{reason}", result.replace('-', " "))
    }

    fn time_cell(&self) -> Cell {
        let time = self.time.split_once('T').map_or("", |(_, time)| time);
        Cell::number(self.id as f64, escaped(time.split('.').next().unwrap_or_default()))
    }
}

impl Cell {
    fn text(text: &str) -> Self {
        Self { text: escaped(text), number: None }
    }

    fn number(number: f64, text: impl ToString) -> Self {
        Self { text: text.to_string(), number: Some(number) }
    }

    fn count(count: u64) -> Self {
        Self::number(count as f64, count)
    }

    /// Endpoints of IPv4 are ordered by address and port, and those of IPv6 behind them by text.
    fn endpoint(endpoint: SocketAddr) -> Self {
        let number = match endpoint {
            SocketAddr::V4(end) => {
                Some(f64::from(u32::from(*end.ip())) * 65536.0 + f64::from(end.port()))
            }
            SocketAddr::V6(_) => None,
        };
        Self { text: endpoint.to_string(), number }
    }
}
