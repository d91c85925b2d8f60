//! How packets go on: with the numbers that their receiver knows, and the bytes that it is to have.
//!
//! Everything here goes by the [`SequenceMap`](super::SequenceMap) of either direction and by what
//! is held back; nothing is read or decided. Holds of what goes on, whatever the peers send:
//! - a number is delivered with the same byte however often its segment is sent again;
//! - an acknowledgement never covers what was not delivered, but for what is held back here.

use std::borrow::Cow;

use super::{DropReason, Side, direction::Direction, limits::MAX_JOINED};
use crate::packet::{Packet, Seq, flags};

/// How a packet is to be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// As it is.
    Unchanged,
    /// With other numbers, and other payload if `payload` says so (it is in the buffer that was
    /// handed in).
    Changed {
        /// The sequence number.
        seq: Seq,
        /// The acknowledgement number.
        ack: Seq,
        /// Whether the payload is the buffer's.
        payload: bool,
        /// The control bits.
        flags: u8,
        /// The urgent pointer.
        urgent: u16,
    },
    /// Not at all: its sender will send it again.
    Drop(DropReason),
    /// Not yet: what the session [asks](super::Request) must be known first.
    Asks,
}

/// An acknowledgement to send to the end whose bytes are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// To whom.
    pub to: Side,
    /// The other end's next number, as the addressee knows it.
    pub seq: Seq,
    /// The addressee's next number.
    pub ack: Seq,
    /// The other end's window as last advertised.
    pub window: u16,
    /// The timestamps option, where the connection uses it.
    pub timestamps: Option<(u32, u32)>,
}

/// What is to be done about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it goes on.
    pub forward: Forward,
    /// What is to be sent besides.
    pub acknowledge: Option<Acknowledgement>,
    /// Where the payload grew longer than a segment may be.
    pub rest: Option<Rest>,
}

/// The part of a payload that is to be sent as a segment of its own behind the changed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Where in the payload it starts.
    pub start: usize,
    /// The control bits of its segment.
    pub flags: u8,
}

impl Forward {
    /// The same without the packet's urgent pointer.
    pub(super) fn without_urgent(self, packet: &Packet<'_>) -> Self {
        match self {
            Self::Drop(_) | Self::Asks => self,
            Self::Unchanged => Self::Changed {
                seq: packet.seq(),
                ack: packet.ack(),
                payload: false,
                flags: packet.flags() & !flags::URG,
                urgent: 0,
            },
            Self::Changed { seq, ack, payload, flags, .. } => {
                Self::Changed { seq, ack, payload, flags: flags & !flags::URG, urgent: 0 }
            }
        }
    }
}

impl From<Forward> for Outcome {
    /// Nothing is to be sent besides.
    fn from(forward: Forward) -> Self {
        Self { forward, acknowledge: None, rest: None }
    }
}

/// The way of a packet of `from` from its sender to its receiver.
pub(super) struct Way<'a> {
    pub(super) from: Side,
    /// The direction that it is of.
    pub(super) sender: &'a Direction,
    /// The other.
    pub(super) receiver: &'a Direction,
}

impl Way<'_> {
    /// Forwards a packet whose bytes, `payload`, have all been seen, perhaps all of them before,
    /// `again`. Where there are fewer than the packet has, its rest waits.
    pub(super) fn deliver(
        &self,
        packet: &Packet<'_>,
        payload: Cow<'_, [u8]>,
        again: bool,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let sender = self.sender;
        let is_cut = payload.len() < packet.payload().len();
        let (seq, fin) = (packet.seq(), packet.has(flags::FIN) && !is_cut);
        if sender.space.map.is_shift() && matches!(payload, Cow::Borrowed(_)) {
            return self.renumbered(packet).into();
        }
        out.clear();
        if fin {
            let with_fin = [&payload[..], &[0]].concat();
            sender.space.map.render(seq, &with_fin, out);
            out.pop(); // the FIN's own number
        } else {
            sender.space.map.render(seq, &payload, out);
        }
        let mut control = packet.flags();
        if is_cut {
            control &= !(flags::FIN | flags::PSH);
        }
        let mut rest = None;
        let segment = sender.space.longest_segment();
        // What is joined is parted again behind us.
        let limit = if packet.offload().joined { MAX_JOINED } else { segment };
        if out.len() > limit && out.len() > payload.len() {
            // What is lost of the rest, or is too long for it, follows when the receiver has
            // acknowledged this much and the sender sends again from there.
            let ends = flags::FIN | flags::PSH;
            let dropped = if out.len() > limit + segment { ends } else { 0 };
            out.truncate(limit + segment);
            rest = Some(Rest { start: limit, flags: control & !flags::URG & !dropped });
            control &= !ends;
        }
        let mut delivered = sender.space.map.deliver(seq);
        let is_here = |offset: &u16| !is_cut || usize::from(*offset) <= payload.len();
        let urgent = packet.urgent().filter(is_here).map_or(0, |offset| {
            let shifted = sender.space.map.deliver(seq + u32::from(offset)) - delivered;
            u16::try_from(shifted).unwrap_or(u16::MAX)
        });
        if urgent == 0 {
            control &= !flags::URG; // the urgent byte is held back, or already delivered
        }
        let mut acknowledge = None;
        let may_acknowledge = sender.may_acknowledge_held();
        if out.is_empty() && !fin && (again || !may_acknowledge) {
            // Held back, perhaps delivered since with a later segment. Whether the receiver has all
            // that precedes is not known here, or our own acknowledgement was lost, or discarded
            // for an old timestamp; the receiver's answer to a number just before the next one
            // tells, and will be mapped to cover what is, or was, held.
            delivered = delivered - 1;
        }
        if may_acknowledge {
            acknowledge = Some(self.acknowledge_held(packet));
        }
        let ack = self.acknowledgement_for(packet);
        let forward =
            Forward::Changed { seq: delivered, ack, payload: true, flags: control, urgent };
        Outcome { forward, acknowledge, rest }
    }

    fn acknowledge_held(&self, packet: &Packet<'_>) -> Acknowledgement {
        let other = self.receiver;
        Acknowledgement {
            to: self.from,
            seq: other.space.map.deliver(other.space.next),
            ack: self.sender.space.next,
            window: other.space.window,
            timestamps: other.space.clock().zip(packet.timestamps()).map(
                |(clock, (value, echo))| {
                    // What was not seen may have shown a later clock, which the addressee echoes.
                    (if Seq(echo).is_after(Seq(clock)) { echo } else { clock }, value)
                },
            ),
        }
    }

    /// A packet without payload, or one whose payload stays: only its numbers are mapped.
    pub(super) fn renumbered(&self, packet: &Packet<'_>) -> Forward {
        if !(self.sender.space.is_adjusted() || self.receiver.space.is_adjusted()) {
            return Forward::Unchanged; // nothing is held back either
        }
        let seq = self.number_for(packet);
        let ack = self.acknowledgement_for(packet);
        // A SACK block may lie past a rewrite that the acknowledgement does not cover yet.
        let claims_move = self.receiver.space.map.shifts();
        if seq == packet.seq() && ack == packet.ack() && !claims_move {
            return Forward::Unchanged;
        }
        let urgent = packet.urgent().unwrap_or(0);
        Forward::Changed { seq, ack, payload: false, flags: packet.flags(), urgent }
    }

    /// The number of `packet` of `from`, as the other end knows it.
    fn number_for(&self, packet: &Packet<'_>) -> Seq {
        let sender = self.sender;
        let delivered = sender.space.map.deliver(packet.seq());
        let says_nothing = packet.payload().is_empty() && !packet.has(flags::RST);
        if says_nothing && sender.is_held(packet.seq()) && !packet.has(flags::FIN) {
            // Whoever sends this has an acknowledgement for what is held, and asks whether the peer
            // is alive, or has room: that answers a number before the next one only.
            delivered - 1
        } else {
            delivered
        }
    }

    /// The acknowledgement that `packet` of `from` carries, as the other end understands it.
    fn acknowledgement_for(&self, packet: &Packet<'_>) -> Seq {
        if !packet.has(flags::ACK) {
            return packet.ack();
        }
        self.receiver.space.map.acknowledge(packet.ack())
    }

    /// In place of a segment that starts past what was seen: one of no length by a number that the receiver has
    /// acknowledged, which must be answered (RFC 9293 section 3.10.7.4), so that the receiver says what it has. One just
    /// before the next number may be past what it has. It acknowledges what is known to be acknowledged, as with that
    /// number an off-path attacker's segment would count.
    pub(super) fn asks(&self) -> Forward {
        let (seq, ack) = (self.sender.space.acked - 1, self.receiver.space.unacknowledged());
        Forward::Changed { seq, ack, payload: true, flags: flags::ACK, urgent: 0 }
    }
}
