//! The interface between a session and its caller: what the session finds, and who decides about it.

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
    /// The connection is encrypted: both ends have begun TLS.
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

/// Who decides about the lines of a connection, and hears what is found in them: the engine, or a test.
pub trait Decide {
    /// What to do about this announcement. If it is [`Effect::Open`], a pinhole is open now.
    fn announcement(&mut self, line: &AnnouncedLine) -> Effect;

    /// Whether a command that begins with this `argument`, of which nothing can be held back, may be allowed.
    fn may_begin(
        &self,
        _kind: AnnouncementKind,
        _parsed: &Result<Announcement, MalformedAnnouncement>,
        _argument: &[u8],
    ) -> bool {
        false
    }

    /// Whether the sequence numbers may differ from now on, because the kernel queues every packet of the connection. Not
    /// if the kernel cannot be informed.
    fn may_renumber(&mut self) -> bool;

    /// Hears of an event, in the order of the stream; `dialogue` has read its line.
    fn found(&mut self, event: DialogueEvent, dialogue: &Dialogue);
}

/// What a packet is inspected by, besides its session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions {
    /// Whether `AUTH` is refused.
    pub refuses_auth: bool,
    /// Whether the packet arrived where its sender is not. Then it is not read.
    pub is_from_elsewhere: bool,
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
