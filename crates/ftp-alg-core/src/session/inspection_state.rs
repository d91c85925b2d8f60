//! How a connection is inspected, and whether packets of it may have passed unread.
//!
//! `docs/session.md` has a state diagram.

use serde::{Deserialize, Serialize};

use super::direction::Direction;
use crate::packet::{Packet, flags};

/// How a connection is inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InspectionState {
    /// Lines are read in both directions.
    Inline(#[serde(skip)] Completeness),
    /// At least one direction is TLS.
    Encrypted(#[serde(skip)] Completeness),
    /// Not inspected: the connection is not FTP, or packets were missed while it was encrypted.
    Off(#[serde(skip)] Completeness),
    /// The gateway has reset the connection.
    Reset,
}

/// Whether all packets of a connection were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completeness {
    /// All were read.
    All,
    /// Unknown since a restore or downtime: any packet may have passed unread, unless the connection is adjusted.
    #[default]
    Unknown,
}

impl InspectionState {
    /// Whether lines are read in both directions.
    pub fn is_inline(self) -> bool {
        matches!(self, Self::Inline(_))
    }

    /// Whether the next bytes of `direction` are read as text.
    pub fn reads_text(self, direction: &Direction) -> bool {
        match self {
            Self::Inline(_) => true,
            Self::Encrypted(_) => direction.tls_records().is_none(),
            Self::Off(_) | Self::Reset => false,
        }
    }

    /// Whether the connection is encrypted, so that a login cannot be seen.
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Encrypted(_))
    }

    /// Whether inspection has ended.
    pub fn is_off(self) -> bool {
        matches!(self, Self::Off(_))
    }

    /// Whether the gateway has reset the connection.
    pub fn is_reset(self) -> bool {
        self == Self::Reset
    }

    /// Whether all packets are known to have been read.
    #[inline]
    pub fn is_confirmed(self) -> bool {
        matches!(self.completeness(), Completeness::All)
    }

    /// Sets the state to encrypted.
    pub fn set_encrypted(&mut self) {
        *self = Self::Encrypted(self.completeness());
    }

    /// Returns to reading lines.
    pub fn return_to_inline(&mut self) {
        *self = Self::Inline(self.completeness());
    }

    /// Ends inspection.
    pub fn turn_off(&mut self) {
        *self = Self::Off(self.completeness());
    }

    /// Sets whether all packets were read.
    pub fn set_completeness(&mut self, seen: Completeness) {
        *self = match self {
            Self::Inline(_) => Self::Inline(seen),
            Self::Encrypted(_) => Self::Encrypted(seen),
            Self::Off(_) => Self::Off(seen),
            Self::Reset => Self::Reset,
        };
    }

    #[inline]
    fn completeness(self) -> Completeness {
        match self {
            Self::Inline(seen) | Self::Encrypted(seen) | Self::Off(seen) => seen,
            Self::Reset => Completeness::All,
        }
    }

    /// Checks whether a restored connection is at the same sequence numbers as its record, and whether `packet` of
    /// `sender` belongs to it and not to another connection on the same endpoints. Packets of an adjusted connection
    /// cannot have passed unread. On others, if one seems to be missing, the receiver is probed at once.
    #[cold]
    pub fn confirm(
        &mut self,
        packet: &Packet<'_>,
        sender: &mut Direction,
        receiver: &Direction,
    ) -> bool {
        let (sent, heard) = (sender.space.next, receiver.space.next);
        let (seq, ack) = (packet.seq(), packet.ack());
        if !sender.space.is_in_window(seq)
            || packet.has(flags::ACK) && !receiver.space.is_in_window(ack)
        {
            return false;
        }
        if sender.space.is_adjusted() || receiver.space.is_adjusted() || (seq, ack) == (sent, heard)
        {
            self.set_completeness(Completeness::All);
        }
        if !self.is_confirmed() && seq.is_after(sent) {
            sender.space.probe_at_next_gap();
        }
        true
    }
}
