//! What a replay found, for people and for programs.

use ftp_alg_core::{
    engine::{Action, Decision, Event, What},
    ftp::Kind,
    session::Side,
};
use serde::Serialize;

use crate::cli::table;

/// One announcement and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The frame that completed the line.
    pub frame: u64,
    /// What it is.
    pub kind: Kind,
    /// client or server.
    pub from: &'static str,
    /// The endpoint, if it could be read.
    pub announced: Option<String>,
    /// open, rewrite, refuse or ignore.
    pub action: String,
    /// What is announced instead.
    pub rewritten: Option<String>,
    /// Why.
    pub reason: String,
    /// The session's number.
    #[serde(skip)]
    pub session: u64,
    /// The line, where it could not be read.
    #[serde(skip)]
    pub said: Option<String>,
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The announcements.
    pub rows: Vec<Row>,
    /// What the user should know besides, in the order in which it showed.
    pub warnings: Vec<String>,
    /// Frames.
    pub packets: u64,
    /// Packets of control connections.
    pub control: u64,
    /// Control connections.
    pub sessions: u64,
    /// Frames that hold no IP packet.
    pub other: u64,
    /// IP packets, or segments of control connections, that contradict themselves.
    pub malformed: u64,
    /// Packets of control connections that are not in the capture as a whole.
    pub cut: u64,
    /// Gaps in control connections that nothing in the capture fills.
    pub missing: u64,
    /// Packets written.
    pub written: Option<u64>,
    /// Packets that do not pass the gateway, and were not written.
    pub within: u64,
}

impl Report {
    /// Takes note of what the engine told while it read what `frame` completed.
    pub fn add(&mut self, frame: u64, event: Event) {
        let What::Announcement(decision) = event.what else { return };
        let Decision { kind, from, announced, action, rewritten, reason, said } = decision;
        self.rows.push(Row {
            frame,
            kind,
            from: match from {
                Side::Client => "client",
                Side::Server => "server",
            },
            announced: announced.map(|endpoint| endpoint.to_string()),
            action: action.to_string(),
            rewritten: rewritten.map(|endpoint| endpoint.to_string()),
            reason: reason.into_owned(),
            session: event.session,
            said,
        });
    }

    /// One JSON object a line.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        self.rows.iter().map(|row| Ok(serde_json::to_string(row)? + "\n")).collect()
    }

    /// A table, and a summary.
    pub fn text(&self) -> String {
        let mut text = if self.rows.is_empty() {
            "no announcements\n".to_owned()
        } else {
            let header = [
                ">FRAME",
                ">SESSION",
                "FROM",
                "KIND",
                "ANNOUNCED",
                "ACTION",
                "REWRITTEN",
                "REASON",
            ];
            table::render(header, &self.rows.iter().map(Row::cells).collect::<Vec<_>>())
        };
        text.push('\n');
        let count = |action: Action| {
            let name = action.to_string();
            format!("{name} {}", self.rows.iter().filter(|row| row.action == name).count())
        };
        let actions = [Action::Open, Action::Rewrite, Action::Refuse, Action::Ignore].map(count);
        let mut items = vec![
            ("packets", self.packets.to_string()),
            ("of control connections", self.control.to_string()),
            ("sessions", self.sessions.to_string()),
            ("announcements", format!("{}: {}", self.rows.len(), actions.join(", "))),
            ("malformed", self.malformed.to_string()),
        ];
        for (name, number) in [
            ("not IP", self.other),
            ("captured in part", self.cut),
            ("gaps", self.missing),
            ("inside only", self.within),
        ] {
            if number > 0 {
                items.push((name, number.to_string()));
            }
        }
        if let Some(written) = self.written {
            items.push(("written", written.to_string()));
        }
        text + &table::list(&items)
    }
}

impl Row {
    fn cells(&self) -> [String; 8] {
        let unread = || self.said.as_ref().map_or("-".to_owned(), |said| format!("\"{said}\""));
        [
            self.frame.to_string(),
            self.session.to_string(),
            self.from.to_owned(),
            self.kind.to_string(),
            self.announced.clone().unwrap_or_else(unread),
            self.action.clone(),
            self.rewritten.clone().unwrap_or_else(|| "-".to_owned()),
            self.reason.clone(),
        ]
    }
}
