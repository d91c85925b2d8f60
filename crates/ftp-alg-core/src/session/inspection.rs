//! The interface between a session and its caller: events that the session finds, and decisions that it needs.

use std::{borrow::Cow, net::SocketAddr, ops::Range};

use super::{Activity, Dialogue, Phase, RefusalReason, compact::SmallBytes};
use crate::{
    ftp::{
        Announcement, AnnouncementKind, MalformedAnnouncement, Padding, Reply, Text, VerbSearch,
    },
    packet::Seq,
};

/// An event in the dialogue that concerns pinholes or the session's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialogueEvent {
    /// The server accepted the client's oldest pending announcement.
    AnnouncementAccepted,
    /// The server refused the client's oldest pending announcement.
    AnnouncementRefused,
    /// What a client's command says about its activity.
    Requested(Activity),
    /// The server answered the client's `CWD`, `CDUP` or `PWD`: whether it succeeded, and the directory that it named.
    DirectoryAnswered(bool, Option<Box<str>>),
    /// The oldest transfer has started, and the server named the file, as it does for `STOU`.
    TransferStarted(Option<Box<str>>),
    /// The server's last reply to the oldest transfer.
    TransferEnded(Reply),
    /// The server accepted a login.
    LoggedIn,
    /// The server refused a login with this reply.
    LoginRefused(Reply),
    /// The server is not an FTP server; inspection ends.
    NotFtp,
    /// The client does not speak FTP. The server may, so refused commands are still refused.
    NotFtpClient,
    /// The connection is encrypted from here on.
    Encrypted,
    /// The connection is plain text again.
    PlaintextResumed,
    /// Packets were missed: the earlier dialogue is unknown.
    PacketsMissed,
    /// The dialogue is in step again after packets were missed.
    InStep,
    /// A command was refused that is not an announcement, or a line that is too long.
    LineRefused(RefusedLine),
    /// A limit of the session was reached.
    LimitReached(SessionLimit),
}

/// A line whose reading stopped because a decision is needed. The session is as it was before the line.
#[derive(Clone, Debug)]
pub struct PendingLine {
    /// The decision that is needed.
    pub request: DecisionRequest,
    /// Sequence number of the bytes that completed the line.
    pub(super) seq: Seq,
    /// How reading continues.
    pub(super) continuation: Continuation,
    /// The dialogue with the changes that the line has made so far.
    pub(super) dialogue: Dialogue,
    /// The line's effect on the connection so far.
    pub(super) effect: ReadEffect,
    /// The events found in the line.
    pub(super) events: Vec<DialogueEvent>,
}

/// A decision that a session needs from its caller.
#[derive(Clone, Debug)]
pub enum DecisionRequest {
    /// What to do about this announcement.
    Announcement(AnnouncedLine),
    /// Whether the sequence numbers may be adjusted for a longer error reply. Not if the kernel cannot be informed,
    /// because the reply would wait for that.
    AdjustSequence,
}

/// How reading a line continues after the decision.
#[derive(Clone, Debug)]
pub enum Continuation {
    /// A client's announcement, of which no byte has been forwarded. If it is refused, it is crossed out.
    ClientAnnouncement,
    /// A client's announcement that only some servers see.
    AmbiguousAnnouncement {
        /// Offset of the end of its verb.
        verb_end: usize,
    },
    /// A server's announcement. An error reply may replace it within these limits, if any.
    ServerAnnouncement(Option<ReplyLimits>),
    /// An error reply that is longer than the reply it replaces.
    LongerReply(Range<usize>, SmallBytes),
}

/// Limits of an error reply that replaces a server's reply.
#[derive(Clone, Copy, Debug)]
pub struct ReplyLimits {
    /// Whether it may be longer.
    pub may_grow: bool,
    /// Reply code, as in [`RefusalReason::reply`].
    pub reply_code: Option<u16>,
}

/// The effect of a line on the connection.
#[derive(Clone, Copy, Debug)]
pub enum ReadEffect {
    /// No effect.
    Nothing,
    /// The server is not an FTP server.
    NotFtp,
    /// The client does not speak FTP.
    NotFtpClient,
    /// Encryption begins.
    Encrypted,
}

/// The answer to a [`DecisionRequest`].
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// What is done about the announcement.
    Effect(Effect),
    /// Whether the sequence numbers may be adjusted.
    AdjustSequence(bool),
}

/// A decision about an announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What is done.
    pub effect: Effect,
    /// Why, in a log line's words.
    pub reason: Cow<'static, str>,
    /// What policy or a limit has against the announcement, also if the line passes all the same.
    pub objection: Option<RefusalReason>,
}

/// What is done about an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Forward the line unchanged; nothing was opened for it.
    Pass,
    /// A pinhole is open; the line announces this endpoint.
    Open {
        /// The endpoint in the forwarded line.
        endpoint: SocketAddr,
        /// How the line keeps its length.
        padding: Padding,
    },
    /// The client gets an error reply with the reason. A command is replaced by a line that the server must refuse.
    Refuse(RefusalReason),
}

impl Decision {
    /// To forward the line unchanged.
    pub fn pass(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { effect: Effect::Pass, reason: reason.into(), objection: None }
    }

    /// To refuse the announcement.
    pub fn refuse(why: RefusalReason, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { effect: Effect::Refuse(why), reason: reason.into(), objection: Some(why) }
    }
}

/// An announcement, or a line that should be one but cannot be parsed, with the state of the dialogue.
#[derive(Clone, Debug)]
pub struct AnnouncedLine {
    /// The kind of announcement.
    pub kind: AnnouncementKind,
    /// The parsed announcement with its position in the line, or why the line cannot be parsed.
    pub parsed: Result<Announcement, MalformedAnnouncement>,
    /// Whether a 227 or 229 answers a pending command; set for commands.
    pub was_requested: bool,
    /// The line, escaped and cut, if it could not be parsed.
    pub unread_text: Option<String>,
    /// Why the dialogue allows no pinhole for it.
    pub blocked_because: Option<&'static str>,
    /// How much of the dialogue has shown that it is FTP.
    pub phase: Phase,
    /// Whether the server has accepted a login.
    pub is_logged_in: bool,
    /// Whether the client has restricted itself to EPSV (RFC 2428 section 4).
    pub is_epsv_only: bool,
    /// By what announcements keep their length.
    pub padding: Padding,
}

impl AnnouncedLine {
    /// Describes the announcement in `text`, which `dialogue` has read.
    pub(super) fn new(
        kind: AnnouncementKind,
        mut parsed: Result<Announcement, MalformedAnnouncement>,
        was_requested: bool,
        dialogue: &Dialogue,
        text: &Text<'_>,
    ) -> Self {
        if let Ok(Announcement { endpoint, has_parenthesis, .. }) = &mut parsed {
            let with_parenthesis = text.line_range(endpoint.start.saturating_sub(1)..endpoint.end);
            *endpoint = text.line_range(endpoint.clone());
            *has_parenthesis &= with_parenthesis.len() == endpoint.len() + 1;
        }
        Self {
            kind,
            was_requested,
            unread_text: parsed.is_err().then(|| escape_and_cut(text.bytes())),
            parsed,
            blocked_because: dialogue.blocked_because(kind.is_active()),
            phase: dialogue.phase,
            is_logged_in: dialogue.is_logged_in(),
            is_epsv_only: dialogue.epsv_all,
            padding: dialogue.padding,
        }
    }
}

/// A peer's bytes for a log line: escaped, and cut to 80 bytes.
fn escape_and_cut(text: &[u8]) -> String {
    const LIMIT: usize = 80;
    let cut = if text.len() > LIMIT { "..." } else { "" };
    format!("{}{cut}", text[..text.len().min(LIMIT)].escape_ascii())
}

/// A pending line and the answer to its request.
pub type AnsweredLine = (Box<PendingLine>, Answer);

/// One pass over a packet's payload: the session's input, and what it finds.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Whether `AUTH` is refused.
    pub refuses_auth: bool,
    /// Whether the client has begun a Telnet subnegotiation.
    pub subnegotiates: bool,
    /// Whether the packet arrived where its sender is not. Then it is not read.
    pub is_from_elsewhere: bool,
    /// The pending line and the answer to its request.
    pub answer: Option<AnsweredLine>,
    /// The events found, in order.
    pub events: Vec<DialogueEvent>,
    /// The line that needs a decision. Nothing after it is read before the decision.
    pub pending: Option<Box<PendingLine>>,
}

impl Inspection {
    /// What a scan of the client's bytes looks for.
    pub(super) fn verb_search(&self) -> VerbSearch {
        VerbSearch { auth: self.refuses_auth, subnegotiates: self.subnegotiates }
    }

    /// Whether there are events or a pending line.
    #[inline]
    pub fn has_findings(&self) -> bool {
        !self.events.is_empty() || self.pending.is_some()
    }

    /// Adds the event that a line was refused.
    pub(super) fn push_refused(&mut self, line: RefusedLine) {
        self.events.push(DialogueEvent::LineRefused(line));
    }

    /// Adds the event that a limit was reached.
    pub(super) fn push_limit(&mut self, limit: SessionLimit) {
        self.events.push(DialogueEvent::LimitReached(limit));
    }
}

/// A limit of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionLimit {
    /// A 227 or 229 was longer than the limit and was forwarded before it was complete. Nothing is opened for it.
    HeldReply,
    /// Unacknowledged rewrites: the segment is dropped, and its sender retransmits it.
    Rewrites,
    /// The client's unacknowledged data: the segment is dropped, and its sender retransmits it.
    UnacknowledgedData,
    /// Pending commands: replies to the oldest open nothing.
    PendingCommands,
}

/// A refused line other than a parsed announcement. A command is not forwarded to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedLine {
    /// `AUTH`, refused by policy.
    Auth,
    /// A `PORT` or `EPRT` line longer than the limit of held bytes.
    Overlong,
    /// `PORT` or `EPRT`, or `AUTH` if policy refuses it, that only some servers see in the line.
    Ambiguous,
    /// A line with an urgent byte that is another command without that byte.
    Urgent,
}

impl RefusedLine {
    /// The reason that the client is given.
    pub fn reason(self) -> RefusalReason {
        match self {
            Self::Auth => RefusalReason::AuthTls,
            Self::Overlong => RefusalReason::TooLong,
            Self::Urgent => RefusalReason::UrgentData,
            Self::Ambiguous => RefusalReason::Ambiguous,
        }
    }
}
