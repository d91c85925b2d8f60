//! Where a connection stands: how it is read, and whether something of it may have passed unseen.
//!
//! `docs/session.md` has a picture of the states.

use serde::{Deserialize, Serialize};

use super::direction::Direction;
use crate::packet::{Packet, flags};

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Its lines are read.
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
    /// Not known: it was restored, or packets passed by. Anything may have passed, unless it is adjusted.
    #[default]
    Unknown,
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

    /// Finds out whether a connection is where it was when it was saved, and whether `packet` of
    /// `sender` concerns it: another one may have begun on its endpoints. One that is adjusted waited
    /// meanwhile. Of others packets may have passed unread: where one seems to be missing, the receiver is asked at once
    /// whether it has it.
    #[cold]
    pub fn confirm(
        &mut self,
        packet: &Packet<'_>,
        sender: &mut Direction,
        receiver: &Direction,
    ) -> bool {
        let (sent, heard) = (sender.space.next, receiver.space.next);
        let (seq, ack) = (packet.seq(), packet.ack());
        if !sender.space.is_near(seq) || packet.has(flags::ACK) && !receiver.space.is_near(ack) {
            return false;
        }
        if sender.space.is_adjusted() || receiver.space.is_adjusted() || (seq, ack) == (sent, heard)
        {
            self.set_seen(Seen::All);
        }
        if !self.is_confirmed() && seq.is_after(sent) {
            sender.space.ask_at_next_gap();
        }
        true
    }
}
