//! How a session handles a packet: whether its sequence number is acceptable, what it acknowledges, what is read, and
//! how it is forwarded.

use std::borrow::Cow;

use super::{
    Conditions, Decide, DropReason, ForwardAction, ForwardPlan, Phase, Session, Side,
    direction::Direction,
    line_decisions::DirectionReader,
    push_state::{PushState, record_offered_window},
    state::Read,
    tls::is_tls_byte,
    urgent::UrgentPointer,
};
use crate::packet::{Packet, Seq, flags};

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
        decide: &mut dyn Decide,
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
            self.handle_urgent_packet(from, packet, window, conditions, out, decide)
        } else {
            self.inspect_packet(from, packet, window, conditions, out, decide)
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
        decide: &mut dyn Decide,
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
        let mut outcome = self.inspect_packet(from, packet, window, conditions, out, decide);
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
    /// it names. In what may be TLS there is none.
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
    fn inspect_packet(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        window: Option<u16>,
        conditions: Conditions,
        out: &mut Vec<u8>,
        decide: &mut dyn Decide,
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
        self.observe(from, packet, window, decide);
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
            // It may have other bytes than those that were read.
            return ForwardAction::Drop(DropReason::LimitReached).into();
        }
        let mut payload = if may_be_read {
            self.unacknowledged.with_read_bytes(seq, payload)
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
            self.reader(from, push_state, conditions, decide).read_segment(seq, &payload, fin);
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

    /// Checks whether a connection of which packets may have been missed continues with `packet` of `from`, which may
    /// belong to another one on the same endpoints. Packets of an adjusted connection cannot have passed unread. On
    /// others, if one seems to be missing, the receiver is probed at once.
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

    /// Records what the header of a packet of `from` shows, and the `window` that it offers.
    #[inline(always)]
    fn observe(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        window: Option<u16>,
        decide: &mut dyn Decide,
    ) {
        let direction = self.direction_mut(from);
        if direction.space.is_acceptable(packet.seq()) {
            direction.space.observe(packet);
            if packet.has(flags::ACK) {
                self.handle_acknowledgement(from, packet.ack(), decide);
            }
        }
        if let Some(window) = window {
            record_offered_window(packet, window, &mut self.client, &self.server, &self.dialogue);
        }
    }

    /// `by` has acknowledged the other end's data up to the delivered number `ack`.
    #[inline(always)]
    fn handle_acknowledgement(&mut self, by: Side, ack: Seq, decide: &mut dyn Decide) {
        let side = by.peer();
        let Some(is_received) = self.direction(side).space.is_all_seen(ack) else { return };
        if by == Side::Server {
            self.client.unblock();
        }
        if !is_received {
            return self.handle_unseen_acknowledgement(side, ack, decide);
        }
        self.direction_mut(side).record_acknowledgement(ack);
        if by == Side::Server {
            self.client.forget_acknowledged(&mut self.unacknowledged);
        }
    }

    /// The data of `side` is acknowledged up to the delivered number `ack`, although not all of it was seen.
    #[cold]
    fn handle_unseen_acknowledgement(&mut self, side: Side, ack: Seq, decide: &mut dyn Decide) {
        let direction = self.direction_mut(side);
        // The receiver has bytes that never passed through the queue. So the held bytes, which were retransmitted, have
        // arrived too.
        direction.stop_holding();
        let end = direction.space.map.to_sent(ack);
        // The queue was full, or the daemon was down. The connection continues, but the content of the missed bytes is
        // unknown.
        direction.skip_missed(end.max(direction.space.next));
        direction.record_acknowledgement(ack);
        let before = self.dialogue.state;
        self.dialogue.record_missed(Read::Missed, side == Side::Server);
        if let Some(event) = before.effect(self.dialogue.state) {
            decide.found(event, &self.dialogue);
        }
    }

    /// Requests that pure acknowledgements are queued if there is much unacknowledged data, or many rewrites.
    #[inline]
    fn request_acknowledgements(&mut self) {
        if self.unacknowledged.is_large() || self.client.space.map.is_half_full() {
            self.client.extra_mut().has_much_unacknowledged = true;
        }
    }

    /// Handles a segment that starts past a gap, or may not be forwarded yet. If bytes are missing, its sender
    /// retransmits them first. If it retransmits this segment instead, they may not be missing: the receiver is probed.
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
        decide: &'a mut dyn Decide,
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
            decide,
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{
        packet::{Header, build_segment},
        session::{AnnouncedLine, Dialogue, DialogueEvent, Effect},
    };

    struct PassAll;

    impl Decide for PassAll {
        fn announcement(&mut self, _: &AnnouncedLine) -> Effect {
            Effect::Pass
        }

        fn may_renumber(&mut self) -> bool {
            false
        }

        fn found(&mut self, _: DialogueEvent, _: &Dialogue) {}
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
            session.client.record_acknowledgement(first + 2);
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
