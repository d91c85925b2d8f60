//! What a replay reports: notes while it plays, and a summary at the end.

use std::{collections::BTreeMap, mem};

use ftp_alg_core::{
    engine::{Decision, Event, EventKind, Refusal, Words},
    ftp::AnnouncementKind,
};
use serde::Serialize;

/// How many different reasons the summary lists.
const MAX_REASONS: usize = 100;

/// A frame of one of the captures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FramePosition {
    /// The capture, counted from 0.
    pub capture: usize,
    /// The number of the frame in the capture, from 1.
    pub frame: u64,
}

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
    /// The capture of the frame, counted from 0.
    #[serde(skip)]
    pub capture: usize,
    /// The number of the session.
    #[serde(skip)]
    pub session: u64,
    /// The line, if its endpoint could not be parsed.
    #[serde(skip)]
    pub unread_line: Option<String>,
}

/// What is reported while a capture is played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    Announcement(AnnouncementRow),
    /// Something else that happened in a session, and the frame in which it was seen; of a transfer the frame with the
    /// last reply.
    Session(FramePosition, Box<Event>),
    /// The number of the capture, counted from 0, and what was not read in it.
    Warning(usize, String),
}

/// The counters of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// All frames of the captures.
    pub packets: u64,
    /// Packets of control connections.
    pub control_packets: u64,
    /// Control connections that the engine followed.
    pub sessions: u64,
    /// Announcements by kind; how often each of [`Decision::ACTIONS`] was taken.
    pub announcements: BTreeMap<String, [u64; 4]>,
    /// Refused and ignored announcements, and other refused commands, by action and reason.
    pub reasons: BTreeMap<(&'static str, String), u64>,
    /// Refused and ignored commands with further reasons.
    pub other_reasons: u64,
    /// Transfers that have ended, by the name of their result.
    pub transfers: BTreeMap<&'static str, u64>,
    /// The bytes of transfers to servers and to clients, as far as they are known.
    pub bytes: [u64; 2],
    /// Sessions that became encrypted.
    pub encrypted: u64,
    /// Events beyond the engine's limit for one packet, which are not reported.
    pub omitted: u64,
    /// Packets that were lost before they could be played.
    pub dropped: u64,
    /// Frames without an IP packet.
    pub not_ip: u64,
    /// Inconsistent IP packets, and inconsistent segments of control connections.
    pub malformed: u64,
    /// Segments of control connections with a wrong checksum. They are played.
    pub wrong_checksums: u64,
    /// Packets of control connections that were captured only in part.
    pub incomplete: u64,
    /// Gaps in control connections that nothing in the capture fills.
    pub gaps: u64,
    /// Connections that are not followed any more, because a gateway would wait for a retransmission.
    pub lost: u64,
    /// Packets that were written; `None` without `--write`.
    pub written: Option<u64>,
    /// Packets between hosts inside, which do not cross the gateway and were not written.
    pub inside_only: u64,
}

impl Summary {
    fn count_reason(&mut self, action: &'static str, reason: &str) {
        let key = (action, reason.to_owned());
        if self.reasons.len() < MAX_REASONS || self.reasons.contains_key(&key) {
            *self.reasons.entry(key).or_default() += 1;
        } else {
            self.other_reasons += 1;
        }
    }
}

/// The notes that were not taken yet, and the summary so far.
#[derive(Debug, Default)]
pub struct Report {
    notes: Vec<Note>,
    pub summary: Summary,
}

impl Report {
    /// Takes the notes since the last call.
    pub fn take_notes(&mut self) -> Vec<Note> {
        mem::take(&mut self.notes)
    }

    /// Adds a warning about `capture`.
    pub fn warn(&mut self, capture: usize, warning: String) {
        self.notes.push(Note::Warning(capture, warning));
    }

    /// Adds an event of the engine. `position` is the frame that completed the line.
    pub fn add(&mut self, position: FramePosition, event: Event) {
        let session = event.session;
        match &event.kind {
            // No data connection is played to the engine, so every pinhole expires.
            EventKind::PinholeClosed(_)
            | EventKind::PinholeExpired(_)
            | EventKind::SessionStarted
            | EventKind::SessionEnded(_)
            | EventKind::TransferWaiting(_)
            | EventKind::NoDataConnection(_) => return,
            EventKind::Transfer(transfer) | EventKind::TransferUnseen(transfer) => {
                *self.summary.transfers.entry(transfer.result.name()).or_default() += 1;
                let is_download = !transfer.verb.is_upload();
                self.summary.bytes[usize::from(is_download)] += transfer.bytes.unwrap_or(0);
            }
            EventKind::Encrypted => self.summary.encrypted += 1,
            EventKind::Refusal(Refusal::Command(Words(what))) => {
                self.summary.count_reason("refuse", what);
            }
            _ => {}
        }
        let note = match event.kind {
            // A reply that passes because it names no endpoint is not one.
            EventKind::Announcement(decided)
            | EventKind::Refusal(Refusal::Announcement(decided))
                if !decided.names_no_endpoint() =>
            {
                Note::Announcement(self.announcement(position, session, decided))
            }
            _ => Note::Session(position, Box::new(event)),
        };
        self.notes.push(note);
    }

    fn announcement(
        &mut self,
        position: FramePosition,
        session: u64,
        decided: Decision,
    ) -> AnnouncementRow {
        let row = AnnouncementRow {
            frame: position.frame,
            kind: decided.kind,
            from: if decided.kind.is_active() { "client" } else { "server" },
            announced: decided.announced.map(|endpoint| endpoint.to_string()),
            action: decided.action_name(),
            rewritten: decided.rewritten().map(|endpoint| endpoint.to_string()),
            reason: decided.reason.into_owned(),
            capture: position.capture,
            session,
            unread_line: decided.unread_text,
        };
        let counts = self.summary.announcements.entry(row.kind.to_string()).or_default();
        for (action, count) in Decision::ACTIONS.iter().zip(counts) {
            *count += u64::from(*action == row.action);
        }
        if row.rewritten.is_none() && row.action != Decision::ACTIONS[0] {
            self.summary.count_reason(row.action, &row.reason);
        }
        row
    }
}
