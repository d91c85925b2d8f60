//! What a session finds in what it reads, and what it asks of whoever decides.

use std::ops::Range;

use super::{Dialogue, Phase, Reason, few::Bytes};
use crate::{
    ftp::{Announcement, Kind, Malformed, Text, Zeros},
    packet::Seq,
};

/// What is to become of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It goes on as it is; nothing was opened for it.
    Pass,
    /// A pinhole is open; it goes on naming this endpoint.
    Open {
        /// What it names.
        endpoint: std::net::SocketAddr,
        /// How it keeps its length.
        zeros: Zeros,
    },
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
    /// `AUTH` was kept from the server, or a line too long to be read.
    Refused(Refused),
    /// Something was not done, as this limit is reached.
    Limit(Limit),
}

/// A line that is read as far as can be before something is known. The session is as it was before the line.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is to be known.
    pub question: Question,
    /// The number of the byte from which it was read.
    pub(super) seq: Seq,
    /// How it is read on.
    pub(super) then: Then,
    /// What the line has made of the dialogue so far.
    pub(super) dialogue: Dialogue,
    /// What it has changed so far about the connection.
    pub(super) read: Read,
    /// What was found in it.
    pub(super) notes: Vec<Note>,
}

impl Request {
    /// Of a line that was just read.
    pub(super) fn new(question: Question, then: Then) -> Box<Self> {
        let (dialogue, read, notes) = (Dialogue::default(), Read::Nothing, Vec::new());
        Box::new(Self { question, seq: Seq(0), then, dialogue, read, notes })
    }
}

/// What a session asks whoever decides.
#[derive(Clone, Debug)]
pub enum Question {
    /// What becomes of this announcement.
    Announcement(Announced),
    /// Whether numbers may change for a reply that says why something is refused: not where the kernel cannot be told,
    /// as the reply would wait for that.
    Lengthen,
}

impl Question {
    /// The announcement, if it could be read.
    pub(super) fn announcement(&self) -> Option<&Announcement> {
        match self {
            Self::Announcement(Announced { parsed, .. }) => parsed.as_ref().ok(),
            Self::Lengthen => None,
        }
    }
}

/// How a line is read on, once that is known for which it waits.
#[derive(Clone, Debug)]
pub enum Then {
    /// A client's announcement, crossed out where it is refused and `whole`: none of it was forwarded.
    Command {
        /// Whether it is.
        whole: bool,
    },
    /// The same, where only some servers see it. Its verb ends here.
    Hidden {
        /// Where.
        end: usize,
    },
    /// A server's. A refusal may take its place, by these limits, where there are any.
    Reply(Option<Refusal>),
    /// A reply that is longer than the one it would take the place of.
    Longer(Range<usize>, Bytes),
}

/// How a reply that refuses takes the place of a server's.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Whether it may be longer.
    pub grow: bool,
    /// As in [`Reason::reply`].
    pub code: Option<u16>,
}

/// What reading a line changes about the connection.
#[derive(Clone, Copy, Debug)]
pub enum Read {
    /// Nothing.
    Nothing,
    /// It is not FTP.
    NotFtp,
    /// The client is none of FTP.
    NotFtpClient,
    /// It is encrypted from here on.
    Encrypted,
}

/// What is known then.
#[derive(Clone, Copy, Debug)]
pub enum Known {
    /// What becomes of the announcement.
    Ruling(Ruling),
    /// Whether numbers may change.
    Lengthen(bool),
}

/// An announcement, or a line that should announce but cannot be read, and where the dialogue stands.
#[derive(Clone, Debug)]
pub struct Announced {
    /// The form of the announcement.
    pub kind: Kind,
    /// What was announced, with its place in the line.
    pub parsed: Result<Announcement, Malformed>,
    /// Whether a 227 or 229 answers a command.
    pub asked: bool,
    /// The line, escaped and cut, where it could not be read.
    pub said: Option<String>,
    /// Why nothing may be opened for it.
    pub bar: Option<&'static str>,
    /// How far the dialogue is known to be FTP.
    pub phase: Phase,
    /// Whether a login was accepted.
    pub is_logged_in: bool,
    /// Whether the client has bound itself to EPSV (RFC 2428 section 4).
    pub is_epsv_only: bool,
    /// The zeros that the server takes.
    pub zeros: Zeros,
}

impl Announced {
    /// What `text` announces, or should, where `dialogue` has read it.
    pub(super) fn new(
        kind: Kind,
        mut parsed: Result<Announcement, Malformed>,
        asked: bool,
        dialogue: &Dialogue,
        text: &Text<'_>,
    ) -> Self {
        if let Ok(Announcement { endpoint, has_parenthesis, .. }) = &mut parsed {
            let with_parenthesis = text.origin(endpoint.start.saturating_sub(1)..endpoint.end);
            *endpoint = text.origin(endpoint.clone());
            *has_parenthesis &= with_parenthesis.len() == endpoint.len() + 1;
        }
        Self {
            kind,
            asked,
            said: parsed.is_err().then(|| shown(text.bytes())),
            parsed,
            bar: dialogue.bar(kind.is_active()),
            phase: dialogue.phase(),
            is_logged_in: dialogue.is_logged_in(),
            is_epsv_only: dialogue.is_epsv_only(),
            zeros: dialogue.zeros(),
        }
    }
}

/// How a peer's bytes are shown: escaped, and cut to 80 bytes.
fn shown(text: &[u8]) -> String {
    const LIMIT: usize = 80;
    let cut = if text.len() > LIMIT { "..." } else { "" };
    format!("{}{cut}", text[..text.len().min(LIMIT)].escape_ascii())
}

/// A line that asked, and what is known.
pub type Answered = (Box<Request>, Known);

/// One pass over a packet's payload: what the session is given to read it, and what it finds.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Whether `AUTH` is kept from the server.
    pub refuses_auth: bool,
    /// What is known for the line that asked, with that line.
    pub answer: Option<Answered>,
    /// What was found, in order.
    pub notes: Vec<Note>,
    /// The line that asks: more is not read before it is answered.
    pub request: Option<Box<Request>>,
}

impl Inspection {
    /// Notes something.
    pub(super) fn note(&mut self, note: Note) {
        self.notes.push(note);
    }

    /// Notes that something was refused that is no announcement, or a line too long to be read.
    pub(super) fn refused(&mut self, what: Refused) {
        self.note(Note::Refused(what));
    }

    /// Notes that something was not done, as this limit is reached.
    pub(super) fn limit(&mut self, which: Limit) {
        self.note(Note::Limit(which));
    }
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
    /// A line with an urgent byte, which is another command without it.
    Urgent,
}

impl Refused {
    /// As the client hears it.
    pub fn reason(self) -> Reason {
        match self {
            Self::Auth => Reason::Auth,
            Self::Overlong => Reason::TooLong,
            Self::Urgent => Reason::Urgent,
            Self::Hidden => Reason::Hidden,
        }
    }
}
