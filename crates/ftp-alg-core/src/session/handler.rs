//! The interface between a session and its caller: the events that the session finds, and the decisions that it asks
//! for.

use std::net::SocketAddr;

use super::{Activity, Dialogue, Phase, RefusalReason};
use crate::ftp::{Announcement, AnnouncementKind, MalformedAnnouncement, Padding, Reply};

/// An event in the dialogue that concerns pinholes or the session's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialogueEvent {
    /// The server accepted the client's oldest pending announcement.
    AnnouncementAccepted,
    /// The server refused the client's oldest pending announcement.
    AnnouncementRefused,
    /// A client's command shows its activity.
    Requested(Activity),
    /// The server answered the client's `CWD`, `CDUP` or `PWD`: whether the command succeeded, and the directory in the
    /// reply.
    DirectoryAnswered(bool, Option<Box<str>>),
    /// The oldest transfer has started, with the file name in the reply, which `STOU` has.
    TransferStarted(Option<Box<str>>),
    /// The oldest transfer has ended with this reply.
    TransferEnded(Reply),
    /// The server accepted a login.
    LoggedIn,
    /// The server refused a login with this reply.
    LoginRefused(Reply),
    /// The server is not an FTP server; inspection ends.
    NotFtp,
    /// The client does not speak FTP. The server may, so refused commands are still refused.
    NotFtpClient,
    /// The connection is encrypted: both ends have begun TLS.
    Encrypted,
    /// The connection is plain text again.
    PlaintextResumed,
    /// Packets were missed: the earlier dialogue is unknown.
    PacketsMissed,
    /// The dialogue is in step again after packets were missed.
    InStep,
    /// A command other than an announcement was refused, or a line that is too long.
    LineRefused(RefusedLine),
    /// A limit of the session was reached.
    LimitReached(SessionLimit),
}

/// Decides about the announcements of a connection, and receives its events: the engine, or a test.
pub trait DialogueHandler {
    /// Decides about this announcement. After [`Action::Open`] a pinhole is open.
    fn on_announcement(&mut self, line: &AnnouncedLine) -> Action;

    /// Whether a command with this start of its `argument` may be allowed. Asked if nothing can be held back.
    fn may_begin(
        &self,
        _kind: AnnouncementKind,
        _parsed: &Result<Announcement, MalformedAnnouncement>,
        _argument: &[u8],
    ) -> bool {
        false
    }

    /// Whether the sequence numbers may differ from now on. Asks the kernel to queue every packet of the connection.
    fn may_renumber(&mut self) -> bool;

    /// Receives an event, in the order of the stream. `dialogue` has read its line.
    fn on_event(&mut self, event: DialogueEvent, dialogue: &Dialogue);
}

/// Conditions of the inspection of one packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions {
    /// Whether `AUTH` is refused.
    pub refuses_auth: bool,
    /// Whether the packet arrived on an interface where its sender is not. Such a packet is not read.
    pub is_from_elsewhere: bool,
}

/// The decision about an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Forward the line unchanged; nothing was opened for it.
    Pass,
    /// A pinhole is open; the line announces this endpoint.
    Open {
        /// The endpoint in the forwarded line.
        endpoint: SocketAddr,
        /// The padding with which the line keeps its length.
        padding: Padding,
    },
    /// The client gets an error reply with the reason. A command is replaced by a line that the server must refuse.
    Refuse(RefusalReason),
}

/// An announcement, or a malformed one, with the state of the dialogue.
#[derive(Clone, Debug)]
pub struct AnnouncedLine {
    /// The kind of announcement.
    pub kind: AnnouncementKind,
    /// The parsed announcement with its position in the line, or why the line cannot be parsed.
    pub parsed: Result<Announcement, MalformedAnnouncement>,
    /// Whether a 227 or 229 answers a pending command; set for commands.
    pub was_requested: bool,
    /// The line, escaped and cut, if it is malformed.
    pub unread_text: Option<String>,
    /// Why the dialogue allows no pinhole.
    pub blocked_because: Option<&'static str>,
    /// How much of the dialogue has shown that it is FTP.
    pub phase: Phase,
    /// Whether the server has accepted a login.
    pub is_logged_in: bool,
    /// Whether the client has restricted itself to EPSV (RFC 2428 section 4).
    pub is_epsv_only: bool,
    /// The padding with which announcements keep their length.
    pub padding: Padding,
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
    /// A line in which only some servers see `PORT` or `EPRT`, or `AUTH` if policy refuses it.
    Ambiguous,
    /// A line with an urgent byte that is another command without that byte.
    Urgent,
}

impl RefusedLine {
    /// The reason in the client's error reply.
    pub fn reason(self) -> RefusalReason {
        match self {
            Self::Auth => RefusalReason::AuthTls,
            Self::Overlong => RefusalReason::TooLong,
            Self::Urgent => RefusalReason::UrgentData,
            Self::Ambiguous => RefusalReason::Ambiguous,
        }
    }
}
