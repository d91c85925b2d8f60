//! Where a connection stands: how it is read, and whether something of it may have passed unseen.
//!
//! Where the fast path lasted when the daemon ended, and the kernel has had a sign of life since, nothing but bypassable
//! lines can have passed: all else waited. So what was known of the dialogue holds but for what such lines change, which is
//! what is pending. (A second `USER` may give up a login. The server then refuses what comes without one.) What the
//! receiver has acknowledged of the other end shows how far they went.
//!
//! An end can acknowledge what it likes, so its number is no proof that a line begins there. Proof is a copy, which is a
//! whole line, or that the segment there is the one that ended the fast path: all before it passed, and no part of a
//! bypassable line begins as an announcement ([`harmless`](super::harmless)). Where there is none, nothing is opened for
//! the first line.
//!
//! `docs/session.md` has a picture of the states.

use serde::{Deserialize, Serialize};

use super::{Side, direction::Direction};
use crate::packet::{Packet, flags};

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Its lines are read: inline, or from copies of what takes the fast path.
    Followed(#[serde(skip)] Seen),
    /// At least one direction is TLS.
    Encrypted(#[serde(skip)] Seen),
    /// It is not FTP, or bytes of it were missed while it was encrypted: it is not read any more.
    Off(#[serde(skip)] Seen),
    /// The gateway has ended it.
    Ended,
}

/// What of a connection was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seen {
    /// All of it.
    All,
    /// All but bypassable lines of the client.
    ButClientLines,
    /// All but bypassable lines of the server.
    ButServerLines,
    /// All but bypassable lines of both.
    ButLines,
    /// Not known: it was restored, or packets passed by. Anything may have passed, unless it is adjusted.
    #[default]
    Unknown,
}

impl Seen {
    /// Whether bypassable lines of `side` may have passed, and nothing else.
    fn lacks_lines_of(self, side: Side) -> bool {
        match side {
            Side::Client => matches!(self, Self::ButClientLines | Self::ButLines),
            Side::Server => matches!(self, Self::ButServerLines | Self::ButLines),
        }
    }

    /// The same, where `side` goes on as it was.
    fn confirmed(self, side: Side) -> Self {
        match (self, side) {
            (Self::ButLines, Side::Client) => Self::ButServerLines,
            (Self::ButLines, Side::Server) => Self::ButClientLines,
            _ if self.lacks_lines_of(side) => Self::All,
            _ => self,
        }
    }
}

impl Standing {
    /// Whether its lines are read, in both directions.
    pub fn is_followed(self) -> bool {
        matches!(self, Self::Followed(_))
    }

    /// Whether what comes next of `direction` is read as text.
    pub fn reads(self, direction: &Direction) -> bool {
        match self {
            Self::Followed(_) => true,
            Self::Encrypted(_) => direction.records().is_none(),
            Self::Off(_) | Self::Ended => false,
        }
    }

    /// Whether it is encrypted, so that a login is not seen.
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Encrypted(_))
    }

    /// Whether it is not read any more.
    pub fn is_off(self) -> bool {
        matches!(self, Self::Off(_))
    }

    /// Whether the gateway has ended it.
    pub fn is_ended(self) -> bool {
        self == Self::Ended
    }

    /// Whether it is known that all of it was seen.
    #[inline]
    pub fn is_confirmed(self) -> bool {
        matches!(self.seen(), Seen::All)
    }

    /// Whether bypassable lines may have passed unseen, and nothing else.
    #[inline]
    pub fn lacks_lines(self) -> bool {
        matches!(self.seen(), Seen::ButClientLines | Seen::ButServerLines | Seen::ButLines)
    }

    /// Whether such lines of `side` may have.
    pub fn lacks_lines_of(self, side: Side) -> bool {
        self.seen().lacks_lines_of(side)
    }

    /// It is encrypted from here on.
    pub fn encrypt(&mut self) {
        *self = Self::Encrypted(self.seen());
    }

    /// It is plain text again.
    pub fn follow(&mut self) {
        *self = Self::Followed(self.seen());
    }

    /// It is not read any more.
    pub fn turn_off(&mut self) {
        *self = Self::Off(self.seen());
    }

    /// Of it `seen` is known.
    pub fn set_seen(&mut self, seen: Seen) {
        *self = match self {
            Self::Followed(_) => Self::Followed(seen),
            Self::Encrypted(_) => Self::Encrypted(seen),
            Self::Off(_) => Self::Off(seen),
            Self::Ended => Self::Ended,
        };
    }

    #[inline]
    fn seen(self) -> Seen {
        match self {
            Self::Followed(seen) | Self::Encrypted(seen) | Self::Off(seen) => seen,
            Self::Ended => Seen::All,
        }
    }

    /// Finds out whether a connection is where it was when it was saved, and whether `packet` of `from`, the end that
    /// `sender` is the direction of, concerns it: another one may have begun on its endpoints. One that is adjusted waited
    /// meanwhile. Of others packets may have passed unread: where one seems to be missing, the receiver is asked at once
    /// whether it has it.
    #[cold]
    pub fn confirm(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        sender: &mut Direction,
        receiver: &Direction,
    ) -> bool {
        let (sent, heard) = (sender.space.next, receiver.space.next);
        let (seq, ack) = (packet.seq(), packet.ack());
        if !sender.space.is_near(seq) || packet.has(flags::ACK) && !receiver.space.is_near(ack) {
            return false;
        }
        if self.lacks_lines() {
            // Of a line that is not whole it is not known whether it is new, or a retransmission of one that has passed.
            if seq == sent && packet.payload().ends_with(b"\n") {
                self.set_seen(self.seen().confirmed(from));
            }
        } else if sender.space.is_adjusted()
            || receiver.space.is_adjusted()
            || (seq, ack) == (sent, heard)
        {
            self.set_seen(Seen::All);
        }
        if !self.is_confirmed() && seq.is_after(sent) {
            sender.space.ask_at_next_gap();
        }
        true
    }
}
