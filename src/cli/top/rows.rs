//! The rows of the four panels, made from what a look shows. All text in them is escaped.

use std::net::SocketAddr;

use serde_json::Value;

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

const UTC: Column<Value> = Column::new("UTC", |event: &Value| {
    let time = text_of(event, "time").split_once('T').map_or("", |(_, time)| time);
    Cell::number(id_of(event) as f64, escaped(time.split('.').next().unwrap_or_default()))
})
.usual(8);
const OF_CLIENT: Column<Value> =
    Column::new("CLIENT", |event: &Value| Cell::text(text_of(event, "client")))
        .searched()
        .cut(9, Cut::Middle)
        .usual(13);
const OF_SERVER: Column<Value> =
    Column::new("SERVER", |event: &Value| Cell::text(text_of(event, "server")))
        .searched()
        .cut(9, Cut::Middle)
        .usual(13)
        .from(100);
const OF_USER: Column<Value> =
    Column::new("USER", |event: &Value| Cell::known(event["user"].as_str(), Cell::text))
        .searched()
        .cut(5, Cut::End)
        .usual(6);

pub(super) const TRANSFERS: &[Column<Value>] = &[
    UTC,
    OF_CLIENT,
    OF_USER,
    Column::new("VERB", |event: &Value| Cell::text(text_of(event, "verb"))).usual(4),
    Column::new("PATH", |event: &Value| match event["encrypted"] == true {
        true => Cell::text("(encrypted)"),
        false => Cell::text(text_of(event, "path")),
    })
    .searched()
    .cut(8, Cut::Start)
    .usual(12),
    Column::number("BYTES", |event: &Value| Cell::bytes(event["bytes"].as_u64())).usual(9),
    Column::number("SECS", |event: &Value| {
        let seconds = event["seconds"].as_f64().unwrap_or_default();
        Cell::number(seconds, format!("{seconds:.1}"))
    })
    .usual(5),
    Column::new("RESULT", |event: &Value| Cell::text(text_of(event, "result"))).usual(8),
    Column::number("CODE", |event: &Value| Cell::known(event["code"].as_u64(), Cell::count))
        .usual(4)
        .from(100),
    OF_SERVER,
    Column::new("MODE", |event: &Value| Cell::known(event["mode"].as_str(), Cell::text))
        .usual(7)
        .from(130),
    Column::new("REASON", |event: &Value| Cell::text(text_of(event, "reason")))
        .cut(12, Cut::End)
        .usual(6)
        .from(130),
];

pub(super) const FAILURES: &[Column<Value>] = &[
    UTC,
    Column::new("ID", |event: &Value| Cell::count(session_of(event))).right().usual(3),
    OF_CLIENT,
    OF_USER,
    Column::new("WHAT AND WHY", |event: &Value| Cell::text(&what(event)))
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
    pub fn transfer(event: &Value) -> Self {
        let exact = event["bytes"].as_u64().map(|bytes| bytes.to_string());
        Self::new(id_of(event), TRANSFERS, event).with([
            ("EXACT BYTES", exact.unwrap_or_else(|| "not known".to_owned())),
            ("DIRECTION", escaped(text_of(event, "direction"))),
            ("SESSION", session_of(event).to_string()),
            ("TIME", escaped(text_of(event, "time"))),
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

/// A field of an event that is text; empty if it is not there.
pub(super) fn text_of<'a>(event: &'a Value, field: &str) -> &'a str {
    event[field].as_str().unwrap_or_default()
}

/// The number of an event.
pub(super) fn id_of(event: &Value) -> u64 {
    event["id"].as_u64().unwrap_or_default()
}

/// The number of an event's session; 0 if it has none.
fn session_of(event: &Value) -> u64 {
    event["session"].as_u64().unwrap_or_default()
}

/// What failed, and why, without the session and its ends.
fn what(event: &Value) -> String {
    let [verb, path, result] = ["verb", "path", "result"].map(|field| text_of(event, field));
    if verb.is_empty() {
        let what = said(text_of(event, "text"));
        return what.strip_prefix("refuse ").unwrap_or(what).to_owned();
    }
    let code = event["code"].as_u64().map(|code| format!(", {code}")).unwrap_or_default();
    let reason = event["reason"].as_str().map(|reason| format!(", {reason}")).unwrap_or_default();
    let command = format!("{verb} {path}");
    format!("{}: {}{code}{reason}", command.trim_end(), result.replace('-', " "))
}
