//! The rows of the four panels, made from what a look shows. All text in them is escaped.

use std::net::SocketAddr;

use super::look::Event;
use crate::{
    cli::{
        columns::{Cell, Column, Cut, Shape},
        event_reader::said,
        listings::sessions::COLUMNS,
    },
    config::escaped,
    daemon::{
        health::CheckStatus,
        snapshot::{Problem, SessionRow},
    },
};

/// A row: what its columns show, and what is known besides.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// A number that is the same in every look.
    pub key: u64,
    pub cells: Vec<Cell>,
    /// Names and values of further details.
    pub more: Vec<(&'static str, String)>,
}

/// The endpoint that the other end sees instead of this one, if it differs.
fn seen_as(own: SocketAddr, external: SocketAddr) -> String {
    if own == external { String::new() } else { external.to_string() }
}

pub(super) const SESSIONS: &[Column<SessionRow>] = &COLUMNS;

const UTC: Column<Event> = Column::new("UTC", |event: &Event| {
    let time = event.time.split_once('T').map_or("", |(_, time)| time);
    Cell::number(event.id as f64, escaped(time.split('.').next().unwrap_or_default()))
})
.usual(8);
const OF_CLIENT: Column<Event> = Column::new("CLIENT", |event: &Event| Cell::text(&event.client))
    .searched()
    .cut(9, Cut::Middle)
    .usual(13);
const OF_SERVER: Column<Event> = Column::new("SERVER", |event: &Event| Cell::text(&event.server))
    .searched()
    .cut(9, Cut::Middle)
    .usual(13)
    .from(100);
const OF_USER: Column<Event> =
    Column::new("USER", |event: &Event| Cell::known(event.user.as_deref(), Cell::text))
        .searched()
        .cut(5, Cut::End)
        .usual(6);

pub(super) const TRANSFERS: &[Column<Event>] = &[
    UTC,
    OF_CLIENT,
    OF_USER,
    Column::new("VERB", |event: &Event| Cell::text(&event.verb)).usual(4),
    Column::new("PATH", |event: &Event| match event.encrypted {
        true => Cell::text("(encrypted)"),
        false => Cell::text(&event.path),
    })
    .searched()
    .cut(8, Cut::Start)
    .usual(12),
    Column::number("BYTES", |event: &Event| Cell::bytes(event.bytes)).usual(9),
    Column::number("SECS", |event: &Event| {
        Cell::number(event.seconds, format!("{:.1}", event.seconds))
    })
    .usual(5),
    Column::new("RESULT", |event: &Event| Cell::text(&event.result)).usual(8),
    Column::number("CODE", |event: &Event| {
        Cell::known(event.code, |code| Cell::count(code.into()))
    })
    .usual(4)
    .from(100),
    OF_SERVER,
    Column::new("MODE", |event: &Event| Cell::known(event.mode.as_deref(), Cell::text))
        .usual(7)
        .from(130),
    Column::new("REASON", |event: &Event| Cell::text(event.reason.as_deref().unwrap_or_default()))
        .cut(12, Cut::End)
        .usual(6)
        .from(130),
];

pub(super) const FAILURES: &[Column<Event>] = &[
    UTC,
    Column::new("ID", |event: &Event| Cell::count(event.session)).right().usual(3),
    OF_CLIENT,
    OF_USER,
    Column::new("WHAT AND WHY", |event: &Event| Cell::text(&event.what()))
        .searched()
        .cut(20, Cut::End)
        .usual(20),
    OF_SERVER,
];

/// A problem or warning, with its number in their order.
pub(super) type Finding = (u64, CheckStatus, Problem);

pub(super) const HEALTH: &[Column<Finding>] = &[
    Column::new("SEVERITY", |(at, severity, _): &Finding| Cell::number(*at as f64, severity))
        .usual(8),
    Column::new("NAME", |(.., problem): &Finding| Cell::text(&problem.name)).usual(10),
    Column::new("TEXT", |(.., problem): &Finding| Cell::text(&problem.text))
        .cut(20, Cut::End)
        .usual(20),
];

impl Row {
    /// The row of `of` in a panel with these columns.
    pub fn new<Of>(key: u64, columns: &[Column<Of>], of: &Of) -> Self {
        let cells = columns.iter().map(|column| (column.cell)(of)).collect();
        Self { key, cells, more: Vec::new() }
    }

    pub fn with(self, more: impl Into<Vec<(&'static str, String)>>) -> Self {
        Self { more: more.into(), ..self }
    }

    /// The row of a session.
    pub fn session(session: &SessionRow) -> Self {
        let summary = &session.summary;
        let ends = [
            ("CLIENT AS", seen_as(summary.client, summary.client_external)),
            ("SERVER AS", seen_as(summary.server, summary.server_external)),
        ];
        let external = ends.into_iter().filter(|(_, end)| !end.is_empty());
        Self::new(session.summary.id, SESSIONS, session).with(external.collect::<Vec<_>>())
    }

    /// The row of a transfer that has ended.
    pub fn transfer(event: &Event) -> Self {
        let exact = event.bytes.map_or_else(|| "not known".to_owned(), |bytes| bytes.to_string());
        Self::new(event.id, TRANSFERS, event).with([
            ("EXACT BYTES", exact),
            ("DIRECTION", escaped(&event.direction)),
            ("SESSION", event.session.to_string()),
            ("TIME", escaped(&event.time)),
        ])
    }

    /// The names and values of all that is known of this row of a panel with columns of these `shapes`.
    pub fn details(&self, shapes: &[Shape]) -> Vec<(&'static str, String)> {
        let known = shapes.iter().zip(&self.cells).filter(|(_, cell)| !cell.text.is_empty());
        let known = known.map(|(shape, cell)| (shape.title, cell.text.clone()));
        known.chain(self.more.iter().cloned()).collect()
    }

    /// Whether a column that the filter searches has this text, which is in lower case.
    pub fn has(&self, shapes: &[Shape], text: &str) -> bool {
        let searched = shapes.iter().zip(&self.cells).filter(|(shape, _)| shape.is_searched);
        let external = self.more.iter().filter(|(name, _)| name.ends_with(" AS"));
        let mut texts = searched.map(|(_, cell)| &cell.text).chain(external.map(|(_, end)| end));
        text.is_empty() || texts.any(|one| one.to_lowercase().contains(text))
    }
}

impl Event {
    /// What failed, and why, without the session and its ends.
    fn what(&self) -> String {
        let Self { verb, path, result, reason, text, .. } = self;
        if verb.is_empty() {
            let what = said(text);
            return what.strip_prefix("refuse ").unwrap_or(what).to_owned();
        }
        let code = self.code.map(|code| format!(", {code}")).unwrap_or_default();
        let reason = reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
        let command = format!("{verb} {path}");
        format!("{}: {}{code}{reason}", command.trim_end(), result.replace('-', " "))
    }
}
