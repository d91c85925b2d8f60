//! What a session asks of whoever decides, and what it tells.

use super::{Dialogue, Reason};
use crate::ftp::{Announcement, Kind, Malformed, Text};

/// What is to become of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It goes on as it is; nothing was opened for it.
    Pass,
    /// A pinhole is open; it goes on naming this endpoint.
    Open(std::net::SocketAddr),
    /// The client gets a reply that says why. A command is kept from the server, which gets a line that it must
    /// refuse instead.
    Refuse(Reason),
}

/// Something in the dialogue that bears on what is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The server accepted the oldest announcement of the client that it had not answered.
    AnnouncementAccepted,
    /// The server refused the oldest announcement of the client that it had not answered.
    AnnouncementRefused,
    /// A transfer is under way.
    TransferStarted,
    /// A transfer is over.
    TransferEnded {
        /// Whether it was completed.
        completed: bool,
    },
    /// A login was accepted.
    LoggedIn,
    /// The connection is not FTP, and not read any more.
    NotFtp,
    /// The client is none of FTP; its server may be, so what is refused is still refused.
    NotFtpClient,
    /// The connection is encrypted from here on.
    Encrypted,
    /// The connection is plain text again.
    Readable,
    /// Bytes were missed: what the dialogue was is not known any more.
    Lost,
}

/// Decides about announcements. Implemented by the engine, and by tests.
pub trait Judge {
    /// Decides about what was announced, or about a line that should announce but cannot be read.
    /// `asked` says whether a 227 or 229 answers a command.
    fn announcement(
        &mut self,
        kind: Kind,
        read: Result<&Announcement, &Malformed>,
        asked: bool,
        dialogue: &Dialogue,
        line: &Text<'_>,
    ) -> Ruling;

    /// Whether numbers may change for a reply that says why something is refused: not where the kernel cannot be told,
    /// as the reply would wait for that.
    fn may_adjust(&mut self) -> bool;

    /// Whether `AUTH` is kept from the server.
    fn refuses_auth(&self) -> bool;

    /// `AUTH` was kept from the server, or a line too long to be read.
    fn refused(&mut self, what: Refused);

    /// Something was not done, as this limit is reached.
    fn limit(&mut self, which: Limit);

    /// Takes note of something.
    fn note(&mut self, note: Note);
}

/// How much is kept of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Of a 227 or 229, so much that this one passed before it was whole: nothing is opened for it.
    Reply,
    /// Of rewrites that are not acknowledged: the segment waits.
    Rewrites,
    /// Of the client's bytes that are not acknowledged: the segment waits.
    Kept,
    /// Of unanswered commands: replies to the oldest open nothing.
    Commands,
}

/// What nothing is opened for, other than an announcement that was judged; a command is kept from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// `AUTH`, by the operator's choice.
    Auth,
    /// A `PORT` or `EPRT` line longer than is held back.
    Overlong,
    /// `PORT`, `EPRT`, or `AUTH` by the operator's choice, that only some servers would see.
    Hidden,
    /// An announcement before a line that has passed already: a rewrite would change that line's numbers.
    Overtaken,
    /// A line with an urgent byte, which is another command without it.
    Urgent,
}

impl Refused {
    /// As the client hears it.
    pub fn reason(self) -> Reason {
        match self {
            Self::Auth => Reason::Auth,
            Self::Overlong => Reason::TooLong,
            Self::Overtaken => Reason::Overtaken,
            Self::Urgent => Reason::Urgent,
            Self::Hidden => Reason::Hidden,
        }
    }
}
