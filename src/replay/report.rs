//! The report of a replay.

use ftp_alg_core::{
    engine::{Event, EventKind},
    ftp::AnnouncementKind,
};
use serde::Serialize;

/// An announcement and the decision about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AnnouncementRow {
    /// The frame that completed the line.
    pub frame: u64,
    pub kind: AnnouncementKind,
    /// The sender: `client` or `server`.
    pub from: &'static str,
    /// The announced endpoint, if it could be parsed.
    pub announced: Option<String>,
    /// The action: `open`, `rewrite`, `refuse` or `ignore`.
    pub action: &'static str,
    /// The endpoint after the rewrite.
    pub rewritten: Option<String>,
    pub reason: String,
    /// The number of the session.
    #[serde(skip)]
    pub session: u64,
    /// The line, if its endpoint could not be parsed.
    #[serde(skip)]
    pub unread_line: Option<String>,
}

/// The announcements, warnings and counters of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    pub rows: Vec<AnnouncementRow>,
    /// Warnings in the order of the capture.
    pub warnings: Vec<String>,
    /// All frames of the capture.
    pub packets: u64,
    /// Packets of control connections.
    pub control_packets: u64,
    /// Control connections that the engine followed.
    pub sessions: u64,
    /// Frames without an IP packet.
    pub not_ip: u64,
    /// Inconsistent IP packets, and inconsistent segments of control connections.
    pub malformed: u64,
    /// Packets of control connections that were captured only in part.
    pub incomplete: u64,
    /// Gaps in control connections that nothing in the capture fills.
    pub gaps: u64,
    /// Packets that were written; `None` without `--write`.
    pub written: Option<u64>,
    /// Packets between hosts inside, which do not cross the gateway and were not written.
    pub inside_only: u64,
}

impl ReplayReport {
    /// Adds an event of the engine. `frame` is the frame that completed the line.
    pub fn add(&mut self, frame: u64, event: Event) {
        let EventKind::Announcement(decided) = event.kind else { return };
        self.rows.push(AnnouncementRow {
            frame,
            kind: decided.kind,
            from: if decided.kind.is_active() { "client" } else { "server" },
            announced: decided.announced.map(|endpoint| endpoint.to_string()),
            action: decided.action(),
            rewritten: decided.rewritten().map(|endpoint| endpoint.to_string()),
            reason: decided.decision.reason.into_owned(),
            session: event.session,
            unread_line: decided.unread_text,
        });
    }
}
