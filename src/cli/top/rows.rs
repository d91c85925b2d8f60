//! The rows of the four panels, made from what a look shows. All text in them is escaped.

use std::net::SocketAddr;

use super::{
    look::Event,
    text::{self, Cut, escaped},
};
use crate::{
    cli::table,
    daemon::{
        health::CheckStatus,
        snapshot::{Problem, SessionRow},
    },
};

/// A row: what its columns show, and what is known besides.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// A number that it keeps from look to look.
    pub key: u64,
    pub cells: Vec<Cell>,
    /// Names with values.
    pub details: Vec<(&'static str, String)>,
    /// The text that the filter searches, in lower case.
    pub searched: String,
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
    /// The width of a terminal that has room for the column.
    pub from: u16,
}

const fn column(title: &'static str, usual: usize) -> Column {
    Column { title, is_right: false, usual, cut: None, from: 0 }
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
}

pub(super) const SESSIONS: &[Column] = &[
    column("ID", 3).right(),
    column("CLIENT", 20).cut(12, Cut::Middle),
    column("SERVER", 18).cut(12, Cut::Middle),
    column("USER", 8).cut(5, Cut::End),
    column("STATE", 9),
    column("XFERS", 5).right(),
    column("AGE", 6).right(),
    column("OPEN", 4).right().from(100),
    column("ADJ", 3).from(100),
    column("CLIENT AS", 18).cut(12, Cut::Middle).from(120),
    column("SERVER AS", 18).cut(12, Cut::Middle).from(140),
];

pub(super) const TRANSFERS: &[Column] = &[
    column("UTC", 8),
    column("CLIENT", 13).cut(9, Cut::Middle),
    column("USER", 6).cut(5, Cut::End),
    column("VERB", 4),
    column("PATH", 12).cut(8, Cut::Start),
    column("BYTES", 9).right(),
    column("SECS", 5).right(),
    column("RESULT", 8),
    column("CODE", 4).right().from(100),
    column("SERVER", 13).cut(9, Cut::Middle).from(100),
    column("MODE", 7).from(130),
    column("REASON", 6).cut(12, Cut::End).from(130),
];

pub(super) const REFUSALS: &[Column] = &[
    column("UTC", 8),
    column("ID", 3).right(),
    column("CLIENT", 13).cut(9, Cut::Middle),
    column("SERVER", 13).cut(9, Cut::Middle).from(100),
    column("REFUSED", 20).cut(20, Cut::End),
];

pub(super) const HEALTH: &[Column] =
    &[column("SEVERITY", 8), column("NAME", 10), column("TEXT", 20).cut(20, Cut::End)];

impl Row {
    /// The row of a session of `user`, which has ended so many `transfers`, if these are known.
    pub fn session(row: &SessionRow, user: Option<&str>, transfers: Option<u64>) -> Self {
        let external = |own: SocketAddr, external: SocketAddr| {
            if own == external { Cell::default() } else { Cell::endpoint(external) }
        };
        let user = Cell::text(user.unwrap_or("-"));
        let cells = vec![
            Cell::number(row.id as f64, row.id),
            Cell::endpoint(row.client),
            Cell::endpoint(row.server),
            user,
            Cell::text(&row.state),
            transfers.map_or_else(|| Cell::text("-"), |count| Cell::number(count as f64, count)),
            Cell::number(row.age_seconds as f64, table::span(row.age_seconds)),
            Cell::number(row.pinholes as f64, row.pinholes),
            Cell::text(if row.adjusted { "yes" } else { "no" }),
            external(row.client, row.client_external),
            external(row.server, row.server_external),
        ];
        let names = [
            "session",
            "client",
            "server",
            "user",
            "state",
            "transfers",
            "age",
            "pinholes",
            "adjusted",
            "client as",
            "server as",
        ];
        let mut details: Vec<_> =
            names.into_iter().zip(cells.iter().map(|cell| cell.text.clone())).collect();
        details.retain(|(_, value)| !value.is_empty());
        Self { key: row.id, searched: searched(&cells, &[1, 2, 3, 9, 10]), cells, details }
    }

    /// The row of a transfer that has ended.
    pub fn transfer(event: &Event) -> Self {
        let unknown = || "-".to_owned();
        let bytes = event.bytes.map_or_else(unknown, |bytes| text::size(bytes as f64));
        let seconds = event.seconds;
        let cells = vec![
            event.time_cell(),
            Cell::text(&event.client),
            Cell::text(event.user.as_deref().unwrap_or("-")),
            Cell::text(&event.verb),
            Cell::text(&event.path),
            Cell::number(event.bytes.map_or(-1.0, |bytes| bytes as f64), bytes),
            Cell::number(seconds, format!("{seconds:.1}")),
            Cell::text(&event.result),
            Cell::text(&event.code.map_or_else(unknown, |code| code.to_string())),
            Cell::text(&event.server),
            Cell::text(event.mode.as_deref().unwrap_or("-")),
            Cell::text(event.reason.as_deref().unwrap_or_default()),
        ];
        let shown = |at: usize| cells[at].text.clone();
        let details = vec![
            ("time", escaped(&event.time)),
            ("session", event.session.to_string()),
            ("client", shown(1)),
            ("server", shown(9)),
            ("user", shown(2)),
            ("command", shown(3)),
            ("path", shown(4)),
            ("direction", escaped(&event.direction)),
            ("mode", shown(10)),
            ("bytes", event.bytes.map_or_else(unknown, |bytes| bytes.to_string())),
            ("seconds", seconds.to_string()),
            ("result", shown(7)),
            ("reply code", shown(8)),
            ("reason", shown(11)),
        ];
        let details = details.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        Self { key: event.id, searched: searched(&cells, &[1, 2, 4, 9]), cells, details }
    }

    /// The row of a refused announcement or command.
    pub fn refusal(event: &Event) -> Self {
        // Before it are the session and both ends.
        let what = event.text.split_once(": ").map_or(&*event.text, |(_, what)| what);
        let what = what.strip_prefix("refuse ").unwrap_or(what);
        let cells = vec![
            event.time_cell(),
            Cell::number(event.session as f64, event.session),
            Cell::text(&event.client),
            Cell::text(&event.server),
            Cell::text(what),
        ];
        let details = vec![
            ("time", escaped(&event.time)),
            ("session", cells[1].text.clone()),
            ("client", cells[2].text.clone()),
            ("server", cells[3].text.clone()),
            ("refused", cells[4].text.clone()),
        ];
        Self { key: event.id, searched: searched(&cells, &[2, 3, 4]), cells, details }
    }

    /// The row of a problem or warning, number `key` in their order.
    pub fn finding(key: u64, severity: CheckStatus, problem: &Problem) -> Self {
        let Problem { name, text, remedy } = problem;
        let cells = vec![Cell::number(key as f64, severity), Cell::text(name), Cell::text(text)];
        let details = vec![
            ("severity", cells[0].text.clone()),
            ("name", cells[1].text.clone()),
            ("text", cells[2].text.clone()),
            ("remedy", escaped(remedy)),
        ];
        Self { key, searched: searched(&cells, &[1, 2]), cells, details }
    }
}

impl Event {
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

fn searched(cells: &[Cell], columns: &[usize]) -> String {
    let texts: Vec<_> = columns.iter().map(|at| cells[*at].text.to_lowercase()).collect();
    texts.join("\n")
}
