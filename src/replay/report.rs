//! What a replay found.

use ftp_alg_core::{
    engine::{Decision, Event, What},
    ftp::Kind,
    session::Side,
};
use serde::Serialize;

/// One announcement and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AnnouncementRow {
    /// The frame that completed the line.
    pub frame: u64,
    pub kind: Kind,
    /// client or server.
    pub from: &'static str,
    /// The endpoint, if it could be read.
    pub announced: Option<String>,
    /// open, rewrite, refuse or ignore.
    pub action: String,
    /// What is announced instead.
    pub rewritten: Option<String>,
    pub reason: String,
    /// The session's number.
    #[serde(skip)]
    pub session: u64,
    /// The line, where it could not be read.
    #[serde(skip)]
    pub unread_line: Option<String>,
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    pub rows: Vec<AnnouncementRow>,
    /// What the user should know besides, in the order in which it showed.
    pub warnings: Vec<String>,
    pub packets: u64,
    /// Packets of control connections.
    pub control_packets: u64,
    /// Control connections.
    pub sessions: u64,
    /// Frames that hold no IP packet.
    pub not_ip: u64,
    /// IP packets, or segments of control connections, that contradict themselves.
    pub malformed: u64,
    /// Packets of control connections that are not in the capture as a whole.
    pub incomplete: u64,
    /// Gaps in control connections that nothing in the capture fills.
    pub gaps: u64,
    pub written: Option<u64>,
    /// Packets that do not pass the gateway, and were not written.
    pub inside_only: u64,
}

impl ReplayReport {
    /// Takes note of what the engine told while it read what `frame` completed.
    pub fn add(&mut self, frame: u64, event: Event) {
        let What::Announcement(decision) = event.what else { return };
        let Decision { kind, from, announced, action, rewritten, reason, said } = decision;
        self.rows.push(AnnouncementRow {
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
            unread_line: said,
        });
    }
}
