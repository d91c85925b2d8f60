//! The state of a session, and how each line or record changes it: [`State::next`] is the table, [`State::effect`] says
//! which event a change causes. `states.md` has the printed table.
//!
//! # Whether encryption begins
//!
//! The bytes show whether encryption begins, not the dialogue: servers accept `AUTH` with other codes than 234, and
//! some accept any command. No FTP line starts like a TLS record. Both ends must send a handshake record, because
//! otherwise one of them still reads text.

use serde::{Deserialize, Serialize};

use super::{DialogueEvent, Side};

/// How much of the dialogue is known, and how the bytes of the connection are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How much of the dialogue has shown that the connection is FTP.
    pub phase: Phase,
    /// How the bytes are read.
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
    /// As [`Phase::PacketsMissed`], after [`Phase::Verified`]: the dialogue may [get in step](super::dialogue) again.
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
    /// As lines, from both ends or from one.
    Lines {
        /// Progress of the login.
        login: Login,
        /// Whether encryption begins, or has not ended yet.
        tls: Tls,
    },
    /// As TLS records of both ends, which are only counted.
    Records,
    /// Not at all: packets were missed while the connection was encrypted.
    Off,
    /// Not at all: the server speaks another protocol.
    OtherProtocol,
    /// Not at all: the gateway has reset the connection.
    Reset,
}

/// Progress of the login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Login {
    /// The server has accepted no login yet, or has accepted `AUTH` after it.
    NotYet,
    /// No login is known for certain, or the server has forgotten it.
    None,
    /// The server has accepted a login.
    Accepted,
    /// As [`Login::Accepted`], in TLS, which has ended since.
    InTls,
    /// As [`Login::None`], and the server has asked for a password although no reply was due. So its earlier replies
    /// belonged to the greeting, not to the login.
    Asked,
    /// As [`Login::Accepted`], but the client has sent `USER` or `REIN` since. If the server refuses the command, the
    /// login counts again: vsftpd (530) and ProFTPD (501) continue it, and pyftpdlib refuses commands that need a
    /// login.
    Restarted,
}

/// Whether encryption begins, or has not ended yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tls {
    /// Neither.
    No,
    /// The client's line begins like TLS. The server's next bytes show whether the server begins TLS, too.
    ByClient,
    /// The server answers with records, but not yet with a handshake.
    ByBoth,
    /// This end still sends TLS records, after the other one has returned to plain text.
    StillOf(Side),
}

/// What was read, as far as it may change the state. `states.md` has the next state of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// A command that only an FTP client sends first.
    FirstCommand,
    /// An FTP command, after the greeting.
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
    /// A reply that only an FTP server gives, from a server that sent text in place of a greeting.
    FtpReply,
    /// The server accepts a login.
    LoginAccepted,
    /// The server accepts a login, but the client has sent `USER` or `REIN` since.
    LoginOutdated,
    /// The server refuses another login.
    LoginRefused,
    /// The client sends `USER` or `REIN`.
    LoginRestarted,
    /// The server may have accepted a login.
    LoginDoubted,
    /// The server asks for a password after its reply to the login or to `PASS`.
    PasswordAsked,
    /// The server has forgotten the login.
    LoginForgotten,
    /// A 234 or 334 to `AUTH`.
    AuthAccepted,
    /// A line of this end begins like TLS. The server's counts only after the client's.
    TlsByte(Side),
    /// Both ends have sent records of a handshake.
    TlsOfBoth,
    /// The server answers the client's first record with a reply, or text follows a record before a handshake of both.
    NoTls,
    /// This end has ended TLS between two records, with this progress of the login.
    TlsEnd(Side, Login),
    /// An end has acknowledged bytes that were never seen.
    Missed,
    /// The bytes read so far may not have come from this end.
    Doubted,
    /// The dialogue is known to be in step.
    InStep,
    /// The gateway resets the connection.
    Reset,
}

impl Phase {
    /// Whether the server is known to have sent its greeting.
    pub fn has_greeted(self) -> bool {
        self >= Self::Greeted
    }

    /// Whether no pinhole is opened any more, whatever follows.
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

            (
                Self::NotGreeted | Self::CommandFirst | Self::ClientFirst,
                Read::OtherClient | Read::NoTls,
            ) => Self::ClientFirst,
            (_, Read::OtherClient)
            | (Self::TextFirst | Self::CommandAfterText | Self::Greeted, Read::NoTls) => {
                Self::NotFtp
            }

            (
                Self::NotGreeted | Self::TextFirst,
                Read::GreetingStart | Read::Reply220 | Read::Reply,
            ) => Self::Greeted,
            (Self::CommandFirst | Self::CommandAfterText, Read::Reply220) => Self::Verified,
            (Self::ClientFirst, Read::Reply220) => Self::NotFtp,
            (Self::CommandAfterText, Read::FtpReply) => Self::Verified,
            (Self::PickedUp, Read::Reply) => Self::PickedUpFtp,
            // The earlier plain text counts no more, and no FTP server is silent in TLS.
            (Self::ClientFirst, Read::TlsOfBoth) => Self::NotFtp,
            (_, Read::TlsOfBoth) if !self.opens_nothing_more() => Self::Verified,
            (Self::NotGreeted, Read::Banner) => Self::TextFirst,
            (Self::CommandFirst, Read::Banner) => Self::CommandAfterText,

            (Self::PickedUp | Self::PickedUpFtp | Self::NotFtp, Read::Missed | Read::Doubted) => {
                self
            }
            (Self::Verified | Self::OutOfStep, Read::Missed | Read::Doubted) => Self::OutOfStep,
            // Also if no greeting was seen: the missed packets may contain it.
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
            (_, Read::LoginOutdated) | (Self::Accepted | Self::InTls, Read::LoginRestarted) => {
                Self::Restarted
            }
            (Self::NotYet, Read::LoginDoubted) => Self::None,
            (_, Read::PasswordAsked) => Self::Asked,
            // The client's earlier identity no longer counts (RFC 2228 section 3, RFC 4217 section 4).
            (_, Read::AuthAccepted) => Self::NotYet,
            (_, Read::LoginForgotten) => Self::None,
            // `USER` or `REIN` among the missed bytes would have ended the login at the server, which then refuses
            // commands that need one.
            (Self::Accepted | Self::InTls, Read::Missed | Read::Doubted)
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
            (Self::No, Read::TlsByte(Side::Client)) => Self::ByClient,
            (Self::ByClient, Read::TlsByte(Side::Server)) => Self::ByBoth,
            (_, Read::NoTls | Read::Missed | Read::Doubted) => Self::No,
            _ => self,
        }
    }
}

impl Inspection {
    /// Lines of both ends, with this progress of the login.
    const fn lines(login: Login) -> Self {
        Self::Lines { login, tls: Tls::No }
    }

    fn next(self, phase: Phase, read: Read) -> Self {
        match (self, read) {
            (_, Read::Reset) => Self::Reset,
            (Self::Off | Self::OtherProtocol | Self::Reset, _) => self,

            (Self::Records, Read::Missed) => Self::Off,
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
            (Self::Lines { tls: Tls::StillOf(_), .. }, Read::Missed) => Self::Off,
            (Self::Lines { .. }, Read::TlsOfBoth) => Self::Records,
            (Self::Lines { login, tls }, _) => {
                Self::Lines { login: login.next(phase, read), tls: tls.next(read) }
            }
        }
    }
}

impl State {
    /// The state of a new connection.
    pub const NEW: Self = Self::at(Phase::NotGreeted, Login::NotYet);

    /// The state of a connection that was picked up mid-stream.
    pub const PICKED_UP: Self = Self::at(Phase::PickedUp, Login::None);

    const fn at(phase: Phase, login: Login) -> Self {
        Self { phase, inspection: Inspection::lines(login) }
    }

    /// The state after `read`.
    pub fn next(self, read: Read) -> Self {
        let Self { phase, inspection } = self;
        Self { phase: phase.next(read), inspection: inspection.next(phase, read) }
    }

    /// The engine's event for a change to the state `next`. Login events are not here, because they depend on the reply
    /// as well.
    pub fn event_of_change(self, next: Self) -> Option<DialogueEvent> {
        use Inspection::{Lines, OtherProtocol, Records};
        match (self.inspection, next.inspection) {
            (Lines { .. }, Records) => return Some(DialogueEvent::Encrypted),
            (Lines { .. }, OtherProtocol) => return Some(DialogueEvent::NotFtp),
            (Records, Lines { .. }) => return Some(DialogueEvent::PlaintextResumed),
            _ => {}
        }
        match (self.phase, next.phase) {
            (before, after) if before == after => None,
            (_, Phase::NotFtp) => Some(DialogueEvent::NotFtpClient),
            (_, Phase::PacketsMissed | Phase::OutOfStep) => Some(DialogueEvent::PacketsMissed),
            (Phase::OutOfStep, Phase::Verified) => Some(DialogueEvent::InStep),
            _ => None,
        }
    }

    /// Whether the next bytes of `side` are read as lines.
    #[inline]
    pub fn reads_lines(self, side: Side) -> bool {
        match self.inspection {
            Inspection::Lines { tls: Tls::ByBoth, .. } => side == Side::Client,
            Inspection::Lines { tls, .. } => tls != Tls::StillOf(side),
            _ => false,
        }
    }

    /// Whether lines of both ends are read.
    #[inline]
    pub fn reads_all_lines(self) -> bool {
        self.reads_lines(Side::Client) && self.reads_lines(Side::Server)
    }

    /// Whether an end sends TLS records. `None` if nothing is inspected any more.
    pub fn encryption(self) -> Option<bool> {
        match self.inspection {
            Inspection::Lines { tls, .. } => Some(matches!(tls, Tls::StillOf(_))),
            Inspection::Records => Some(true),
            Inspection::Off | Inspection::OtherProtocol | Inspection::Reset => None,
        }
    }

    /// Progress of the login; `None` if lines are not read.
    pub fn login(self) -> Login {
        match self.inspection {
            Inspection::Lines { login, .. } => login,
            _ => Login::None,
        }
    }

    /// Whether encryption begins, or has not ended yet.
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
