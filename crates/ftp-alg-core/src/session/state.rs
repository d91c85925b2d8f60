//! The state of a session, and how it goes on from what is read: [`State::next`] is the table, [`State::effect`] says what
//! a change means. `docs/session.md` has the table printed.
//!
//! # Whether encryption begins after an accepted `AUTH`
//!
//! Servers accept it with other codes than 234, and some accept whatever they are sent. So the bytes that follow show
//! it: no end sends such a byte at the start of an FTP line. Both ends must do so, because otherwise one of them still
//! reads text.

use serde::{Deserialize, Serialize};

use super::{DialogueEvent, Side};

/// How much of the dialogue is known, and how the bytes of the connection are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How much of the dialogue has shown that the connection is FTP.
    pub phase: Phase,
    /// How its bytes are read.
    pub inspection: Inspection,
}

/// How much of the dialogue has shown that the connection is FTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// No data yet.
    NotGreeted,
    /// The server has sent text, which may precede its greeting.
    TextFirst,
    /// The client sent FTP commands before the server's greeting, because it does not wait for replies.
    CommandFirst,
    /// As [`Phase::TextFirst`], and the client has sent FTP commands. It may have read the text as a greeting.
    CommandAfterText,
    /// The client sent data before the server's greeting.
    ClientFirst,
    /// The server has sent its greeting.
    Greeted,
    /// The client has answered the greeting with FTP commands.
    Verified,
    /// As [`Phase::PacketsMissed`], after [`Phase::Verified`]: the dialogue may [get in step](super::in_step) again.
    OutOfStep,
    /// Packets were missed: the earlier dialogue is unknown.
    PacketsMissed,
    /// Picked up mid-stream: the earlier dialogue is unknown.
    PickedUp,
    /// Picked up mid-stream, and the server has replied as an FTP server. Refused commands are refused.
    PickedUpFtp,
    /// The server may speak FTP, but the client does not. Nothing is opened any more. Refused commands are still
    /// refused, because the server obeys whatever it receives.
    NotFtp,
}

/// How the bytes of a connection are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inspection {
    /// As lines, of both ends or of one.
    Lines {
        /// Progress of the login.
        login: Login,
        /// Whether encryption may begin, or has not ended yet.
        tls: Tls,
    },
    /// As TLS records of both ends, which are only counted.
    Records,
    /// Not at all: the connection is encrypted in a way that cannot be followed, or packets were missed while it was
    /// encrypted.
    Off,
    /// Not at all: the server speaks another protocol.
    OtherProtocol,
    /// Not at all: the gateway has reset the connection.
    Reset,
}

/// Progress of the login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Login {
    /// The server has accepted none yet.
    NotYet,
    /// The server has accepted none that is known for certain, or has forgotten it.
    None,
    /// The server has accepted one.
    Accepted,
    /// As [`Login::None`], and the server has asked for a password although none of its replies was due: those before were
    /// of its greeting, not of the login.
    Asked,
    /// As [`Login::Accepted`], but the client has sent `USER` or `REIN` since. If the server refuses that, the login
    /// is as it was: vsftpd (530) and ProFTPD (501) continue it, and pyftpdlib refuses what needs one.
    Restarted,
}

/// Whether encryption may begin, or has not ended yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tls {
    /// Neither.
    No,
    /// The server has accepted `AUTH`.
    Allowed,
    /// The client has begun TLS. The next bytes of the server show whether it does, too.
    ByClient,
    /// As `ByClient`, with bytes that are neither TLS nor text.
    OtherByClient,
    /// This end still sends TLS records, after the other one has returned to plain text.
    StillOf(Side),
}

/// What was read, as far as it may change the state. `docs/session.md` has the states that each one leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// A command of those that only an FTP client sends first.
    FirstCommand,
    /// A command that FTP has, behind the greeting.
    Command,
    /// A line of the client that no FTP client sends there.
    OtherClient,
    /// The first line of a 220 in several lines.
    GreetingStart,
    /// A reply 220.
    Reply220,
    /// Another reply.
    Reply,
    /// A line that may precede the greeting.
    Banner,
    /// The first line of another protocol's server.
    OtherServer,
    /// A reply that only an FTP server gives, from one that sent text in place of a greeting.
    FtpReply,
    /// The server accepts a login.
    LoginAccepted,
    /// The same, but the client has sent `USER` or `REIN` since.
    LoginOutdated,
    /// The server refuses another login.
    LoginRefused,
    /// The client sends `USER` or `REIN`.
    LoginRestarted,
    /// The server may have accepted a login.
    LoginDoubted,
    /// The server asks for a password, although it has answered the login or `PASS`.
    PasswordAsked,
    /// The server has forgotten the login.
    LoginForgotten,
    /// The reply 234 to `AUTH`.
    AuthAccepted,
    /// A 334 to `AUTH`, or a 234 that may be another reply.
    AuthContinued,
    /// Another success in reply to `AUTH`.
    AuthAnswered,
    /// A line of this end begins with a byte of a TLS record.
    TlsByte(Side),
    /// A line of this end begins with a byte that begins neither a line nor a TLS record.
    BinaryByte(Side),
    /// A line of this end begins with another byte.
    TextByte(Side),
    /// This end has ended TLS between two records. A login is certain if both ends have sent data in it.
    TlsEnd(Side, Login),
    /// What follows in place of TLS is neither that nor text.
    NoRecords,
    /// An end has acknowledged bytes that were never seen.
    Missed,
    /// What was read may have come from somewhere else.
    Doubted,
    /// The dialogue is known to be in step.
    InStep,
    /// The gateway resets the connection.
    Reset,
}

impl Phase {
    /// Whether the server has sent its greeting, as far as is known.
    pub fn has_greeted(self) -> bool {
        self >= Self::Greeted
    }

    /// Whether no pinhole is opened any more, whatever is read.
    pub fn opens_nothing_more(self) -> bool {
        self >= Self::PacketsMissed || self == Self::ClientFirst
    }

    /// Whether the next reply is the server's greeting, with any code.
    pub fn expects_greeting(self) -> bool {
        matches!(self, Self::NotGreeted | Self::TextFirst)
    }

    fn next(self, read: Read) -> Self {
        match (self, read) {
            (Self::NotGreeted, Read::FirstCommand) => Self::CommandFirst,
            (Self::TextFirst, Read::FirstCommand) => Self::CommandAfterText,
            (Self::Greeted, Read::Command) => Self::Verified,

            (Self::NotGreeted | Self::CommandFirst | Self::ClientFirst, Read::OtherClient) => {
                Self::ClientFirst
            }
            (_, Read::OtherClient) => Self::NotFtp,

            (
                Self::NotGreeted | Self::TextFirst,
                Read::GreetingStart | Read::Reply220 | Read::Reply,
            ) => Self::Greeted,
            (Self::CommandFirst | Self::CommandAfterText, Read::Reply220) => Self::Verified,
            (Self::ClientFirst, Read::Reply220) => Self::NotFtp,
            (Self::CommandAfterText, Read::FtpReply) => Self::Verified,
            (Self::PickedUp, Read::Reply) => Self::PickedUpFtp,
            (Self::NotGreeted, Read::Banner) => Self::TextFirst,
            (Self::CommandFirst, Read::Banner) => Self::CommandAfterText,

            (Self::PickedUp | Self::PickedUpFtp | Self::NotFtp, Read::Missed | Read::Doubted) => {
                self
            }
            (Self::Verified | Self::OutOfStep, Read::Missed | Read::Doubted) => Self::OutOfStep,
            // Even if no greeting was seen: the missed packets may contain it.
            (_, Read::Missed | Read::Doubted) => Self::PacketsMissed,
            (Self::OutOfStep, Read::InStep) => Self::Verified,
            _ => self,
        }
    }
}

impl Login {
    fn next(self, phase: Phase, read: Read) -> Self {
        match (self, read) {
            (_, Read::LoginAccepted) | (Self::Restarted, Read::LoginRefused) => Self::Accepted,
            (_, Read::LoginOutdated) | (Self::Accepted, Read::LoginRestarted) => Self::Restarted,
            (Self::NotYet, Read::LoginDoubted) => Self::None,
            (_, Read::PasswordAsked) => Self::Asked,
            // The client's earlier identity no longer counts (RFC 2228 section 3, RFC 4217 section 4).
            (_, Read::LoginForgotten | Read::AuthContinued) => Self::None,
            // `USER` or `REIN` among the missed bytes would have ended it, but only at the server, which then refuses what
            // needs one.
            (Self::Accepted, Read::Missed | Read::Doubted)
                if matches!(phase, Phase::Verified | Phase::OutOfStep) =>
            {
                self
            }
            (_, Read::Missed | Read::Doubted) => Self::None,
            _ => self,
        }
    }
}

impl Tls {
    fn next(self, read: Read) -> Self {
        match (self, read) {
            (Self::StillOf(side), Read::TlsEnd(ended, _)) if side == ended => Self::No,
            (Self::StillOf(_), _) => self,
            (_, Read::AuthContinued | Read::AuthAnswered) => Self::Allowed,
            (Self::Allowed, Read::TlsByte(Side::Client)) => Self::ByClient,
            (Self::Allowed, Read::BinaryByte(Side::Client)) => Self::OtherByClient,
            (Self::Allowed, Read::TextByte(Side::Client)) => Self::No,
            // Behind its first bytes the client's are not read. More text may follow the server's reply.
            (Self::ByClient | Self::OtherByClient, Read::TextByte(Side::Server)) => Self::No,
            (_, Read::Missed | Read::Doubted) => Self::No,
            _ => self,
        }
    }
}

impl Inspection {
    /// Lines of both ends, after this login.
    const fn lines(login: Login) -> Self {
        Self::Lines { login, tls: Tls::No }
    }

    fn next(self, phase: Phase, read: Read) -> Self {
        match (self, read) {
            (_, Read::Reset) => Self::Reset,
            (Self::Off | Self::OtherProtocol | Self::Reset, _) => self,

            (Self::Records, Read::NoRecords | Read::Missed) => Self::Off,
            (Self::Records, Read::TlsEnd(side, login)) => {
                Self::Lines { login, tls: Tls::StillOf(side.peer()) }
            }
            (Self::Records, _) => self,

            (Self::Lines { .. }, Read::OtherServer) => Self::OtherProtocol,
            (Self::Lines { .. }, Read::Reply)
                if matches!(phase, Phase::CommandFirst | Phase::ClientFirst) =>
            {
                Self::OtherProtocol
            }
            (Self::Lines { tls: Tls::StillOf(_), .. }, Read::NoRecords | Read::Missed) => Self::Off,
            (Self::Lines { .. }, Read::AuthAccepted)
            | (Self::Lines { tls: Tls::ByClient, .. }, Read::TlsByte(Side::Server)) => {
                Self::Records
            }
            (
                Self::Lines { tls: Tls::ByClient | Tls::OtherByClient, .. },
                Read::TlsByte(Side::Server) | Read::BinaryByte(Side::Server),
            ) => Self::Off,
            (Self::Lines { login, tls }, _) => {
                Self::Lines { login: login.next(phase, read), tls: tls.next(read) }
            }
        }
    }
}

impl State {
    /// Of a connection that has just been made.
    pub const NEW: Self = Self::at(Phase::NotGreeted, Login::NotYet);

    /// Of a connection that has just been made, and on which TLS comes first.
    pub const TLS_FIRST: Self = Self { phase: Phase::NotGreeted, inspection: Inspection::Records };

    /// Of a connection that was picked up mid-stream.
    pub const PICKED_UP: Self = Self::at(Phase::PickedUp, Login::None);

    const fn at(phase: Phase, login: Login) -> Self {
        Self { phase, inspection: Inspection::lines(login) }
    }

    /// The state after `read`.
    pub fn next(self, read: Read) -> Self {
        let Self { phase, inspection } = self;
        Self { phase: phase.next(read), inspection: inspection.next(phase, read) }
    }

    /// What a change to the state `next` means for the engine. The events of a login depend on the reply as well, and are
    /// not here.
    pub fn effect(self, next: Self) -> Option<DialogueEvent> {
        use Inspection::{Lines, Off, OtherProtocol, Records};
        match (self.phase, next.phase) {
            (before, after) if before == after => {}
            (_, Phase::NotFtp) => return Some(DialogueEvent::NotFtpClient),
            (_, Phase::PacketsMissed | Phase::OutOfStep) => {
                return Some(DialogueEvent::PacketsMissed);
            }
            (Phase::OutOfStep, Phase::Verified) => return Some(DialogueEvent::InStep),
            _ => {}
        }
        match (self.inspection, next.inspection) {
            (Lines { .. }, Records)
            | (Lines { tls: Tls::ByClient | Tls::OtherByClient, .. }, Off) => {
                Some(DialogueEvent::Encrypted)
            }
            (Lines { .. }, OtherProtocol) => Some(DialogueEvent::NotFtp),
            (Records, Lines { .. }) => Some(DialogueEvent::PlaintextResumed),
            _ => None,
        }
    }

    /// Whether the next bytes of `side` are read as lines.
    #[inline]
    pub fn reads_lines(self, side: Side) -> bool {
        matches!(self.inspection, Inspection::Lines { tls, .. } if tls != Tls::StillOf(side))
    }

    /// Whether lines of both ends are read.
    #[inline]
    pub fn reads_all_lines(self) -> bool {
        self.reads_lines(Side::Client) && self.reads_lines(Side::Server)
    }

    /// Whether an end sends TLS records. `None` if nothing is inspected any more, so that nobody knows.
    pub fn encryption(self) -> Option<bool> {
        match self.inspection {
            Inspection::Lines { .. } => Some(!self.reads_all_lines()),
            Inspection::Records => Some(true),
            Inspection::Off | Inspection::OtherProtocol | Inspection::Reset => None,
        }
    }

    /// Progress of the login, as far as it is seen.
    pub fn login(self) -> Login {
        match self.inspection {
            Inspection::Lines { login, .. } => login,
            _ => Login::None,
        }
    }

    /// Whether encryption may begin, or has not ended yet.
    #[inline]
    pub fn tls(self) -> Tls {
        match self.inspection {
            Inspection::Lines { tls, .. } => tls,
            _ => Tls::No,
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
