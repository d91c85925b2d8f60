//! How a session handles a packet: whether its sequence number is acceptable, what it acknowledges, what is read, and
//! how it is forwarded.
//!
//! # How packets are forwarded
//!
//! A packet is forwarded with the sequence numbers that its receiver expects, and the bytes that the receiver is to get.
//! [`Session::forward`] applies the [`SequenceMap`](super::SequenceMap) of each direction and the held bytes. Invariants
//! for every forwarded packet, whatever the peers send:
//! - A sequence number is always delivered with the same byte, however often its segment is retransmitted.
//! - An acknowledgement never covers bytes that were not delivered, except those that the gateway holds back.

use std::{borrow::Cow, fmt};

use super::{
    Conditions, DialogueHandler, Phase, Session, Side,
    direction::{Direction, UrgentPointer},
    protocols::is_tls_byte,
    reading::{DirectionReader, PushState, note_offered_window},
    reason::reasons,
    state::Read,
};
use crate::packet::{HeaderEdit, Packet, Seq, flags};

impl Session {
    /// Handles a packet of `from`. A changed payload is written to `out`. A packet that [comes from
    /// elsewhere](Conditions::is_from_elsewhere) is not read.
    #[inline(never)]
    pub fn inspect(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        conditions: Conditions,
        out: &mut Vec<u8>,
        handler: &mut dyn DialogueHandler,
    ) -> ForwardPlan {
        if packet.has(flags::SYN) {
            return ForwardAction::Unchanged.into();
        }
        // Every receiver drops a segment with neither ACK nor RST (RFC 9293 section 3.10.7.4).
        if conditions.is_from_elsewhere || packet.flags() & (flags::ACK | flags::RST) == 0 {
            return self.forward_unread(from, packet);
        }
        let window = self.window_to_offer(from, packet);
        let mut outcome = if packet.has(flags::URG) {
            self.handle_urgent_packet(from, packet, window, conditions, out, handler)
        } else {
            self.inspect_segment(from, packet, window, conditions, out, handler)
        };
        if let Some(window) = window.filter(|window| *window != packet.window()) {
            outcome.action = outcome.action.with_window(packet, window);
        }
        outcome
    }

    /// Whether `packet` is an acknowledgement that would make the server ignore the windows of the packets before it.
    fn would_disable_windows(&self, from: Side, packet: &Packet<'_>) -> bool {
        from == Side::Client
            && packet.payload().is_empty()
            && packet.seq().is_after(self.client.space.next)
            && self.needs_acknowledgements()
    }

    /// Forwards a packet that is not read.
    #[cold]
    fn forward_unread(&mut self, from: Side, packet: &Packet<'_>) -> ForwardPlan {
        if self.would_disable_windows(from, packet) {
            return ForwardAction::Drop(DropReason::OutOfOrder).into();
        }
        if from == Side::Client {
            self.client.set_window_end(None); // it may offer less
        }
        let is_of_session = self.is_confirmed()
            && (!self.is_over() || self.direction(from).space.is_in_window(packet.seq()));
        match is_of_session {
            true => self.renumber(from, packet).into(),
            false => ForwardAction::Unchanged.into(),
        }
    }

    /// As [`inspect`](Self::inspect), for a packet with the URG bit.
    #[cold]
    fn handle_urgent_packet(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        window: Option<u16>,
        conditions: Conditions,
        out: &mut Vec<u8>,
        handler: &mut dyn DialogueHandler,
    ) -> ForwardPlan {
        let end = packet.seq() + u32::from(packet.urgent().unwrap_or(0));
        let mut urg_stays = !self.dialogue.state.reads_lines(from);
        let before = self.client.extra().urgent.clone();
        if !urg_stays && from == Side::Client {
            urg_stays = before.as_ref().is_some_and(|pointer| pointer.end() == end);
            if !urg_stays && let Some(pointer) = self.telnet_synch(end, packet) {
                self.client.set_urgent(Some(pointer));
                urg_stays = true;
            }
        }
        let mut outcome = self.inspect_segment(from, packet, window, conditions, out, handler);
        let is_stored = urg_stays && from == Side::Client && self.client.extra().urgent.is_some();
        if is_stored && !(self.client.space.next + 1).is_after(end) {
            // The segment was not forwarded, so its urgent pointer was not either.
            self.client.set_urgent(before);
            urg_stays = false;
        }
        if !urg_stays {
            outcome.action = outcome.action.without_urgent(packet);
        }
        outcome
    }

    /// The urgent pointer of the client's `packet`, if it belongs to a Telnet Synch. `end` is the sequence number that
    /// the pointer names. Data that may be TLS has no Telnet Synch.
    fn telnet_synch(&self, end: Seq, packet: &Packet<'_>) -> Option<UrgentPointer> {
        let (seq, next) = (packet.seq(), self.client.space.next);
        if seq.is_after(next)
            || self.client.extra().urgent.as_ref().is_some_and(UrgentPointer::has_open_line)
            || self.dialogue.may_be_tls()
            || packet.payload().iter().any(|byte| is_tls_byte(Side::Client, *byte))
        {
            return None;
        }
        let payload = self.unacknowledged.with_read_bytes(seq, packet.payload());
        UrgentPointer::from_telnet_synch(
            end,
            next,
            payload.get((next - seq) as usize..)?,
            self.client.line(),
        )
    }

    /// As [`inspect`](Self::inspect), for a packet without SYN, whose urgent pointer stays as it is.
    #[inline(always)]
    fn inspect_segment(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        window: Option<u16>,
        conditions: Conditions,
        out: &mut Vec<u8>,
        handler: &mut dyn DialogueHandler,
    ) -> ForwardPlan {
        if !self.is_confirmed() && !self.confirm_restored(from, packet) {
            return ForwardAction::Unchanged.into();
        }
        if self.is_over() && !self.direction(from).space.is_in_window(packet.seq()) {
            return ForwardAction::Unchanged.into(); // belongs to another connection, whose start was not seen
        }
        // The receiver ignores a packet from an off-path attacker who cannot see the sequence numbers, so it does not
        // count here either.
        if packet.has(flags::RST) {
            self.is_reset_by_peer |= self.direction(from).space.accepts_reset(packet.seq());
            return self.renumber(from, packet).into();
        }
        out.clear();
        if self.would_disable_windows(from, packet) {
            return self.handle_out_of_order(from, packet).into();
        }
        self.observe(from, packet, window, handler);
        let payload = packet.payload();
        let fin = packet.has(flags::FIN);
        if payload.is_empty() && !fin {
            return self.renumber(from, packet).into();
        }

        let seq = packet.seq();
        // It is unknown which bytes the server has received.
        let is_blocked = from == Side::Client && self.is_client_blocked() && !payload.is_empty();
        if is_blocked || seq.is_after(self.direction(from).space.next) {
            return self.handle_out_of_order(from, packet).into();
        }
        let may_be_read = from == Side::Client
            && seq != self.client.space.next
            && self.dialogue.state.reads_lines(from);
        if may_be_read
            && self.dialogue.phase() == Phase::PickedUp
            && self.unacknowledged.is_forgotten(seq)
            && !seq.is_before(self.client.space.unacknowledged())
        {
            // The retransmission may have other bytes than those that were read.
            return ForwardAction::Drop(DropReason::LimitReached).into();
        }
        let mut payload = if may_be_read {
            let payload = self.unacknowledged.with_read_bytes(seq, payload);
            self.unacknowledged.unmask(seq, &payload);
            payload
        } else {
            payload.into()
        };
        let direction = self.direction_mut(from);
        let new = (direction.space.next - seq) as usize;
        let mut is_retransmission = true;
        if new <= payload.len() && (new < payload.len() || (fin && !direction.space.finished)) {
            if direction.space.finished {
                return ForwardAction::Drop(DropReason::AfterFin).into();
            }
            direction.space.end_gap();
            let push_state = match from {
                Side::Server if self.dialogue.is_ambiguous() => {
                    PushState::from_reply_packet(packet, &self.client, &self.server)
                }
                _ => PushState::from_packet(packet),
            };
            self.reader(from, push_state, conditions, handler).read_segment(seq, &payload, fin);
            match from {
                Side::Client => self.request_acknowledgements(),
                Side::Server => {
                    if push_state == PushState::ReplyWithoutEnd {
                        self.server.extra_mut().line_without_end = Some(self.server.space.next);
                    }
                    let is_waited_for =
                        self.dialogue.is_ambiguous() || self.dialogue.has_pending_commands();
                    if !is_waited_for {
                        self.client.set_window_end(None);
                    }
                }
            }
            let read = (self.direction(from).space.next - seq) as usize;
            is_retransmission = read == new;
            if read == 0 {
                return ForwardAction::Drop(DropReason::LimitReached).into();
            }
            if read < payload.len() {
                payload = payload[..read].to_vec().into(); // the rest will be retransmitted
            }
        }
        if matches!(payload, Cow::Borrowed(_)) && !self.is_adjusted() {
            return ForwardAction::Unchanged.into();
        }
        self.forward(from, packet, payload, is_retransmission, out)
    }

    /// Checks whether `packet` of `from` continues this connection after a downtime, or belongs to another connection on
    /// the same endpoints. Packets of an adjusted connection cannot have passed unread. If packets of an unadjusted
    /// connection seem to be missing, the receiver is probed at once.
    #[cold]
    fn confirm_restored(&mut self, from: Side, packet: &Packet<'_>) -> bool {
        let (sender, receiver) = match from {
            Side::Client => (&mut self.client, &self.server),
            Side::Server => (&mut self.server, &self.client),
        };
        let (sent, heard) = (sender.space.next, receiver.space.next);
        let (seq, ack) = (packet.seq(), packet.ack());
        if !sender.space.is_in_window(seq)
            || packet.has(flags::ACK) && receiver.space.is_all_seen(ack).is_none()
        {
            return false;
        }
        if !sender.space.map.is_identity()
            || !receiver.space.map.is_identity()
            || (seq, ack) == (sent, heard)
        {
            self.has_read_all = true;
        } else if seq.is_after(sent) {
            sender.space.probe_at_next_gap();
        }
        true
    }

    /// Notes what the header of a packet of `from` shows, and the `window` that it offers.
    #[inline(always)]
    fn observe(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        window: Option<u16>,
        handler: &mut dyn DialogueHandler,
    ) {
        let direction = self.direction_mut(from);
        if direction.space.is_acceptable(packet.seq()) {
            direction.space.observe(packet);
            if packet.has(flags::ACK) {
                self.handle_acknowledgement(from, packet.ack(), handler);
            }
        }
        if let Some(window) = window {
            note_offered_window(packet, window, &mut self.client, &self.server, &self.dialogue);
        }
    }

    /// `by` has acknowledged the other end's data up to the delivered number `ack`.
    #[inline(always)]
    fn handle_acknowledgement(&mut self, by: Side, ack: Seq, handler: &mut dyn DialogueHandler) {
        let side = by.peer();
        let Some(is_received) = self.direction(side).space.is_all_seen(ack) else { return };
        if by == Side::Server {
            self.client.unblock();
        }
        if !is_received {
            return self.handle_unseen_acknowledgement(side, ack, handler);
        }
        self.direction_mut(side).note_acknowledgement(ack);
        if by == Side::Server {
            self.client.forget_acknowledged(&mut self.unacknowledged);
        }
    }

    /// The data of `side` is acknowledged up to the delivered number `ack`, although not all of it was seen.
    #[cold]
    fn handle_unseen_acknowledgement(
        &mut self,
        side: Side,
        ack: Seq,
        handler: &mut dyn DialogueHandler,
    ) {
        let direction = self.direction_mut(side);
        // The receiver has bytes that never passed through the queue. So the held bytes, which were retransmitted, have
        // arrived too.
        direction.stop_holding();
        let end = direction.space.map.to_sent(ack);
        // The queue was full, or the daemon was down. The connection continues, but the content of the missed bytes is
        // unknown.
        direction.skip_missed(end.max(direction.space.next));
        direction.note_acknowledgement(ack);
        let before = self.dialogue.state;
        self.dialogue.note_missed(Read::Missed, side == Side::Server);
        if let Some(event) = before.event_of_change(self.dialogue.state) {
            handler.on_event(event, &self.dialogue);
        }
    }

    /// Requests that pure acknowledgements are queued if there is much unacknowledged data, or many rewrites.
    #[inline]
    fn request_acknowledgements(&mut self) {
        if self.unacknowledged.is_large() || self.client.space.map.is_half_full() {
            self.client.extra_mut().has_much_unacknowledged = true;
        }
    }

    /// Handles a segment that starts past a gap, or may not be forwarded yet. If bytes are missing, the sender retransmits
    /// them first. If the sender retransmits this segment instead, no bytes may be missing, so the receiver is probed.
    fn handle_out_of_order(&mut self, from: Side, packet: &Packet<'_>) -> ForwardAction {
        let is_blocked = from == Side::Client && self.is_client_blocked();
        let direction = self.direction_mut(from);
        if !direction.space.is_in_window(packet.seq()) {
            ForwardAction::Drop(DropReason::OutOfWindow)
        } else if direction.space.count_gap() {
            self.probe_receiver(from, packet)
        } else if is_blocked && !packet.seq().is_after(direction.space.next) {
            ForwardAction::Drop(DropReason::Unacknowledged)
        } else {
            ForwardAction::Drop(DropReason::OutOfOrder)
        }
    }

    fn reader<'a>(
        &'a mut self,
        from: Side,
        push_state: PushState,
        conditions: Conditions,
        handler: &'a mut dyn DialogueHandler,
    ) -> DirectionReader<'a> {
        let has_doubtful_interface = self.interfaces.are_doubtful();
        let Self { client, server, unacknowledged, dialogue, .. } = self;
        let (direction, opposite) = match from {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        DirectionReader {
            from,
            direction,
            opposite,
            unacknowledged,
            dialogue,
            handler,
            refuses_auth: conditions.refuses_auth,
            has_doubtful_interface,
            push_state,
        }
    }

    fn direction_mut(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }
}

/// Maximum length of a super-packet that grew by a rewrite; an IP packet holds little more.
const MAX_SUPER_PACKET: usize = 65_000;

/// How a packet is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardAction {
    /// The packet leaves as it came.
    Unchanged,
    /// With other header fields, and another payload if `payload` is set. The payload is in the buffer that the caller
    /// passed.
    Changed {
        /// The header fields.
        header: HeaderEdit,
        /// Whether the payload is the buffer's.
        payload: bool,
    },
    /// Not at all. Its sender retransmits the packet.
    Drop(DropReason),
}

reasons! {
    /// Why a packet was dropped. Each reason continues "the packet ...". Its sender retransmits a packet that the receiver
    /// still needs.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    #[repr(u8)]
    DropReason {
        /// starts past a gap, and the reorder queue has no room for it, or has stored it for 500 ms; or it acknowledges data that
        /// was never sent
        OutOfOrder = "out_of_order",
        /// has data, more than 1 MiB from the next sequence number
        OutOfWindow = "out_of_window",
        /// waited in the reorder queue, or came by another route, while others arrived at its sequence number, or may have on the
        /// fast path; or its session ended
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{
        packet::{Header, build_segment},
        session::{Action, AnnouncedLine, Dialogue, DialogueEvent},
    };

    struct PassAll;

    impl DialogueHandler for PassAll {
        fn on_announcement(&mut self, _: &AnnouncedLine) -> Action {
            Action::Pass
        }

        fn may_renumber(&mut self) -> bool {
            false
        }

        fn on_event(&mut self, _: DialogueEvent, _: &Dialogue) {}
    }

    /// A long session with many rewrites: half a million shorter `PORT`s.
    #[test]
    fn a_restored_session_goes_on_however_much_its_numbers_differ() {
        let ends: [SocketAddr; 2] =
            ["10.0.0.2:40000", "192.0.2.9:21"].map(|end| end.parse().unwrap());
        for shorter in [1 << 19, 1 << 20, 3 << 20, 1 << 30] {
            let (first, mut bytes) = (Seq(1000), Vec::new());
            let header = Header {
                source: ends[1],
                destination: ends[0],
                seq: first,
                ack: first + 1,
                window: 500,
                flags: flags::SYN | flags::ACK,
            };
            build_segment(&header, b"", &mut bytes);
            let mut session = Session::from_syn_ack(&Packet::parse(&bytes).unwrap());
            let Direction { space, .. } = &mut session.client;
            space.map.replace(space.next, shorter + 1, b"X");
            space.next = space.next + shorter + 1;
            session.client.note_acknowledgement(first + 2);
            assert_eq!(session.sequence_offsets(), [-(shorter as i32), 0]);
            session.has_read_all = false;

            let [client, server] = [Side::Client, Side::Server].map(|side| session.next_seq(side));
            let line = b"200 ok\r\n";
            let header =
                Header { seq: server, ack: first + 2, flags: flags::ACK | flags::PSH, ..header };
            build_segment(&header, line, &mut bytes);
            let packet = Packet::parse(&bytes).unwrap();
            let (conditions, mut out) = (Conditions::default(), Vec::new());
            let plan = session.inspect(Side::Server, &packet, conditions, &mut out, &mut PassAll);
            assert_eq!(session.next_seq(Side::Server), server + line.len() as u32, "{shorter}");
            assert!(
                matches!(plan.action, ForwardAction::Changed { header, .. } if header.ack == client),
                "{shorter}"
            );
        }
    }
}
