//! How packets are forwarded: with the sequence numbers that the receiver expects, and the bytes that it is to get.
//!
//! This module applies the [`SequenceMap`](super::SequenceMap) of each direction and the held bytes. It reads and
//! decides nothing. Invariants for every forwarded packet, whatever the peers send:
//! - A sequence number is always delivered with the same byte, however often its segment is retransmitted.
//! - An acknowledgement never covers bytes that were not delivered, except the bytes held back here.

use std::{borrow::Cow, fmt};

use super::{Session, Side, direction::Direction, reason::reasons};
use crate::packet::{HeaderEdit, Packet, Seq, flags};

/// Maximum length of a super-packet that grew by a rewrite; an IP packet holds little more.
const MAX_SUPER_PACKET: usize = 65_000;

/// How a packet is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardAction {
    /// As it came.
    Unchanged,
    /// With other header fields, and another payload if `payload` is set. The payload is in the buffer that the caller
    /// passed.
    Changed {
        /// The header fields.
        header: HeaderEdit,
        /// Whether the payload is the buffer's.
        payload: bool,
    },
    /// Not at all: its sender retransmits it.
    Drop(DropReason),
}

reasons! {
    /// Why a packet was dropped: what it is that the packet does. Its sender retransmits it if the receiver still needs it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    #[repr(u8)]
    DropReason {
        /// starts past a gap, and the reorder queue has no room for it, or has stored it for 500 ms; or it acknowledges data that
        /// was never sent
        OutOfOrder = "out_of_order",
        /// has data, more than 1 MiB from the next sequence number
        OutOfWindow = "out_of_window",
        /// waited in the reorder queue while others arrived at its sequence number, or its session ended
        Overlap = "overlap",
        /// finds the [limit](limits.md#lines-and-segments) of rewrites or of unacknowledged data reached
        LimitReached = "limit_reached",
        /// is the client's, after a downtime, before the server's acknowledgement number is known
        Unacknowledged = "unacknowledged",
        /// has new data after a FIN
        AfterFin = "after_fin",
        /// belongs to a connection that the gateway ended for its memory or share
        SessionEnded = "session_ended",
        /// is a super-packet whose segments were sent one by one: no loss
        Resegmented = "resegmented",
        /// has changed sequence numbers, and the kernel refused the mark
        KernelRefused = "kernel_refused",
        /// was decided when the heartbeat had lapsed
        Stale = "stale",
        /// has new data and an end's address, but arrived on an interface [to which no route to that end
        /// leads](security.md#where-a-line-may-come-from)
        Elsewhere = "elsewhere",
        /// was adjusted by the fast path, and another program removed its mark: the connection is taken back
        Adjusted = "adjusted",
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An acknowledgement for the end whose bytes are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The end that receives it.
    pub recipient: Side,
    /// The other end's next sequence number, as the recipient knows it.
    pub seq: Seq,
    /// The recipient's next sequence number.
    pub ack: Seq,
    /// The other end's window as last advertised.
    pub window: u16,
    /// The timestamps option, if the connection uses it.
    pub timestamps: Option<(u32, u32)>,
}

/// The outcome for one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardPlan {
    /// How the packet is forwarded.
    pub action: ForwardAction,
    /// An acknowledgement to send in addition.
    pub acknowledge: Option<Acknowledgement>,
    /// The second part of a payload that grew longer than a segment may be.
    pub trailing: Option<TrailingSegment>,
}

/// The part of a payload that is sent as a segment of its own after the changed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrailingSegment {
    /// Offset in the payload.
    pub start: usize,
    /// The control bits of its segment.
    pub flags: u8,
}

impl ForwardAction {
    /// This action without the packet's urgent pointer.
    pub(super) fn without_urgent(self, packet: &Packet<'_>) -> Self {
        self.with_header(packet, |header| HeaderEdit {
            flags: header.flags & !flags::URG,
            urgent: 0,
            ..header
        })
    }

    /// This action with another window.
    pub(super) fn with_window(self, packet: &Packet<'_>, window: u16) -> Self {
        self.with_header(packet, |header| HeaderEdit { window, ..header })
    }

    /// This action with other header fields, unless it drops the packet.
    fn with_header(
        self,
        packet: &Packet<'_>,
        change: impl FnOnce(HeaderEdit) -> HeaderEdit,
    ) -> Self {
        let (header, payload) = match self {
            Self::Unchanged => (packet.unchanged(), false),
            Self::Changed { header, payload } => (header, payload),
            Self::Drop(_) => return self,
        };
        Self::Changed { header: change(header), payload }
    }
}

impl From<ForwardAction> for ForwardPlan {
    /// A plan without an additional acknowledgement or segment.
    fn from(forward: ForwardAction) -> Self {
        Self { action: forward, acknowledge: None, trailing: None }
    }
}

impl Session {
    /// Forwards a packet whose `payload` has been read completely, now or, if
    /// `is_retransmission` is set, before. If `payload` is
    /// shorter than the packet's, the rest is not forwarded yet.
    pub(super) fn forward(
        &self,
        from: Side,
        packet: &Packet<'_>,
        payload: Cow<'_, [u8]>,
        is_retransmission: bool,
        out: &mut Vec<u8>,
    ) -> ForwardPlan {
        let sender = self.direction(from);
        let is_cut = payload.len() < packet.payload().len();
        let (seq, fin) = (packet.seq(), packet.has(flags::FIN) && !is_cut);
        if sender.space.map.is_constant_offset() && matches!(payload, Cow::Borrowed(_)) {
            return self.renumber(from, packet).into();
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
        let segment = sender.space.mss();
        // The kernel splits a super-packet again when it sends it.
        let limit = if packet.offload.is_super_packet { MAX_SUPER_PACKET } else { segment };
        if out.len() > limit && out.len() > payload.len() {
            // The rest that is lost or does not fit follows when the sender retransmits it, after the receiver has
            // acknowledged this part.
            let ends = flags::FIN | flags::PSH;
            let dropped = if out.len() > limit + segment { ends } else { 0 };
            out.truncate(limit + segment);
            rest = Some(TrailingSegment { start: limit, flags: control & !flags::URG & !dropped });
            control &= !ends;
        }
        let mut delivered = sender.space.map.to_delivered(seq);
        let is_here = |offset: &u16| !is_cut || usize::from(*offset) <= payload.len();
        let urgent = packet.urgent().filter(is_here).map_or(0, |offset| {
            let shifted = sender.space.map.to_delivered(seq + u32::from(offset)) - delivered;
            u16::try_from(shifted).unwrap_or(u16::MAX)
        });
        if urgent == 0 {
            control &= !flags::URG; // the urgent byte is held back, or already delivered
        }
        let mut acknowledge = None;
        let may_acknowledge = sender.may_acknowledge_held();
        if out.is_empty() && !fin && (is_retransmission || !may_acknowledge) {
            // The bytes are held back, or were delivered later with another segment. Either it is unknown whether the
            // receiver has everything before them, or our own acknowledgement was lost or discarded because of an old
            // timestamp. The receiver answers a number just before the next one, and its answer is mapped so that it
            // covers the held bytes.
            delivered = delivered - 1;
        }
        if may_acknowledge {
            acknowledge = Some(self.acknowledge_held(from, packet));
        }
        let ack = sent_ack(self.direction(from.peer()), packet);
        let (seq, window) = (delivered, packet.window());
        let header = HeaderEdit { seq, ack, flags: control, window, urgent };
        let action = ForwardAction::Changed { header, payload: true };
        ForwardPlan { action, acknowledge, trailing: rest }
    }

    fn acknowledge_held(&self, from: Side, packet: &Packet<'_>) -> Acknowledgement {
        let other = self.direction(from.peer());
        Acknowledgement {
            recipient: from,
            seq: other.space.map.to_delivered(other.space.next),
            ack: self.direction(from).space.next,
            window: other.space.window,
            timestamps: other.space.clock().zip(packet.timestamps()).map(
                |(clock, (value, echo))| {
                    // Packets that passed unread may have carried a later clock, which the recipient echoes.
                    (if Seq(echo).is_after(Seq(clock)) { echo } else { clock }, value)
                },
            ),
        }
    }

    /// Forwards a packet without payload, or with an unchanged payload: only its numbers are mapped.
    pub(super) fn renumber(&self, from: Side, packet: &Packet<'_>) -> ForwardAction {
        if !self.is_adjusted() {
            return ForwardAction::Unchanged; // nothing is held back either
        }
        let (sender, receiver) = (self.direction(from), self.direction(from.peer()));
        let (mut seq, ack) =
            (sender.space.map.to_delivered(packet.seq()), sent_ack(receiver, packet));
        let says_nothing = packet.payload().is_empty() && !packet.has(flags::RST);
        if says_nothing && sender.is_held(packet.seq()) && !packet.has(flags::FIN) {
            // The sender has an acknowledgement for the held bytes and sends a keep-alive or window probe. Only a
            // number before the next one makes the receiver answer.
            seq = seq - 1;
        }
        // A SACK block may lie past a rewrite that the acknowledgement does not cover yet.
        let claims_move = receiver.space.map.changes_numbers();
        if seq == packet.seq() && ack == packet.ack() && !claims_move {
            return ForwardAction::Unchanged;
        }
        let header = HeaderEdit { seq, ack, ..packet.unchanged() };
        ForwardAction::Changed { header, payload: false }
    }

    /// Replaces an out-of-order segment by a probe: an empty segment with a sequence number that the receiver has
    /// acknowledged. The receiver must answer it (RFC 9293 section 3.10.7.4), so it shows which bytes it has. A number
    /// just before the next one may be past what it has. The probe acknowledges only what is known to be acknowledged,
    /// because otherwise an off-path attacker's segment with that number would count. After a pickup, less may be
    /// acknowledged than was sent before, and `packet` says how much.
    pub(super) fn probe_receiver(&self, from: Side, packet: &Packet<'_>) -> ForwardAction {
        let (sender, receiver) = (self.direction(from), self.direction(from.peer()));
        let seq = sender.space.acked - 1;
        let ack = receiver.space.unacknowledged().min(sent_ack(receiver, packet));
        let (flags, window) = (flags::ACK, packet.window());
        let header = HeaderEdit { seq, ack, flags, window, urgent: 0 };
        ForwardAction::Changed { header, payload: true }
    }
}

/// The acknowledgement number of `packet` as the `acknowledged` end has sent it.
fn sent_ack(acknowledged: &Direction, packet: &Packet<'_>) -> Seq {
    if packet.has(flags::ACK) { acknowledged.space.map.to_sent(packet.ack()) } else { packet.ack() }
}
