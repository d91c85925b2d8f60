//! Decides about one packet: which session it belongs to, what the session does with it, and its verdict.

use std::{net::SocketAddr, time::Instant};

use super::{
    Checksums, Effects, Engine, Entry, Key, PacketMeta, QueueMode, QueuedPacket, Unread, Verdict,
    announcement::AnnouncementOutcome,
    client_shares::should_count,
    connection::Connection,
    effects::{Released, SessionRef, WaitingPacket},
    memory::should_count_memory,
    queue_mode::{acknowledge, send_trailing_segment, wanted_queue_mode},
    resegment::resegment,
};
use crate::{
    packet::{Edit, Packet, Seq, flags},
    session::{
        AnsweredLine, DecisionAnswer, DecisionRequest, DropReason, ForwardAction, ForwardPlan,
        Phase, Session, Side, TrailingSegment,
    },
};

/// What to do with a packet now.
pub(super) enum Decision {
    /// It has a verdict.
    Verdict(Verdict),
    /// It arrived out of order, or waits for the answer to a probe, and may wait in the reorder queue.
    Reorder,
    /// It waits behind earlier packets of its session.
    Park,
    /// It waits for the kernel.
    AwaitKernel,
}

/// State that a packet's verdict needs.
#[derive(Clone, Copy)]
pub(super) struct PacketContext {
    pub(super) session: SessionRef,
    all_were_queued: bool,
    needs_all_queued: bool,
}

impl PacketContext {
    /// The context of a packet without a session.
    pub(super) const UNKNOWN: Self =
        Self { session: SessionRef::NONE, all_were_queued: false, needs_all_queued: false };
}

impl Engine {
    /// Handles a packet that is new, or has waited.
    #[inline]
    pub(super) fn handle_packet(
        &mut self,
        now: Instant,
        packet: &QueuedPacket<'_>,
        effects: &mut Effects,
    ) {
        let mut deciding = PacketContext::UNKNOWN;
        let decision = self.decide(now, packet, &mut deciding, effects);
        self.apply_decision(now, packet, decision, deciding, effects);
    }

    /// Continues with a packet whose session waited for `answer`. If the session was removed meanwhile, the packet is
    /// handled as a new one.
    pub(super) fn handle_answered_packet(
        &mut self,
        now: Instant,
        packet: &QueuedPacket<'_>,
        session: SessionRef,
        answer: AnsweredLine,
        effects: &mut Effects,
    ) {
        let mut deciding = PacketContext { session, ..PacketContext::UNKNOWN };
        let read = Packet::parse(packet.bytes).map(|read| read.with_offload(packet.meta.offload));
        let entry = self.sessions.table.get_session(session.index, session.id);
        let (Ok(read), Some(Entry { control, .. })) = (read, entry) else {
            return self.handle_packet(now, packet, effects);
        };
        let from = control.side_of(read.endpoints().0);
        let decision =
            self.inspect_packet(now, (packet, &read, from), Some(answer), &mut deciding, effects);
        self.apply_decision(now, packet, decision, deciding, effects);
    }

    /// Carries out the decision.
    #[inline]
    fn apply_decision(
        &mut self,
        now: Instant,
        packet: &QueuedPacket<'_>,
        decision: Decision,
        deciding: PacketContext,
        effects: &mut Effects,
    ) {
        match decision {
            Decision::Verdict(verdict) => self.release(packet, verdict, deciding, effects),
            Decision::Reorder => self.queue_out_of_order(now, packet, effects),
            Decision::Park => self.park(packet, deciding.session, effects),
            Decision::AwaitKernel => {}
        }
    }

    /// Gives a packet its verdict.
    #[inline]
    pub(super) fn release(
        &mut self,
        packet: &QueuedPacket<'_>,
        verdict: Verdict,
        deciding: PacketContext,
        effects: &mut Effects,
    ) {
        let PacketContext { session, all_were_queued: was_held, needs_all_queued: needs_every } =
            deciding;
        if let Verdict::Drop(reason) = verdict {
            self.count_drop(packet.bytes, reason);
        }
        let is_late = packet.meta.is_late;
        if is_late {
            self.record_session_downtime(session);
        }
        // Packets that passed meanwhile may have changed anything.
        let session = if is_late { SessionRef::NONE } else { session };
        let (token, SessionRef { index, id }) = (packet.token, session);
        let released = Released {
            token,
            verdict,
            index,
            id,
            all_were_queued: was_held,
            needs_all_queued: needs_every,
        };
        effects.verdicts.push(released);
    }

    #[cold]
    fn count_drop(&mut self, bytes: &[u8], reason: DropReason) {
        self.counters.drops.count(reason);
        if !tracing::enabled!(tracing::Level::TRACE) {
            return;
        }
        let Ok(packet) = Packet::parse(bytes) else { return };
        let seq = packet.seq().0;
        if let Some(Entry { session, control }) = self.sessions.table.find_packet(&packet) {
            let from = control.side_of(packet.endpoints().0);
            let (id, expected) = (control.id, session.next_seq(from).0);
            tracing::trace!(
                "packet dropped: {reason}, session {id}, sequence number {seq} of the {from:?}, expected {expected}"
            );
        } else {
            tracing::trace!("packet dropped: {reason}, no session, sequence number {seq}");
        }
    }

    /// Counts and traces a packet that passes unread because of `why`.
    #[cold]
    fn pass_unread(&mut self, bytes: &[u8], why: fn(&mut Unread) -> &mut u64, what: &str) {
        *why(&mut self.counters.unread) += 1;
        trace_unread(bytes, what);
    }

    #[inline]
    fn decide(
        &mut self,
        now: Instant,
        arrival: &QueuedPacket<'_>,
        deciding: &mut PacketContext,
        effects: &mut Effects,
    ) -> Decision {
        let QueuedPacket { bytes, meta: how, .. } = arrival; // by reference: copied at once, it would stall
        const ACCEPT: Decision = Decision::Verdict(Verdict::Accept);
        let Ok(packet) = Packet::parse(bytes).map(|packet| packet.with_offload(how.offload)) else {
            self.counters.malformed += 1;
            self.pass_unread(bytes, |unread| &mut unread.malformed, "it cannot be read");
            return ACCEPT;
        };
        let is_summed = self.checksums == Checksums::Verify && !how.offload.lacks_checksum;
        if is_summed && !packet.checksum_is_valid() {
            self.counters.malformed += 1;
            self.pass_unread(bytes, |unread| &mut unread.checksum, "its checksum is wrong");
            return ACCEPT;
        }
        if how.is_late && !self.may_decide_late(&packet) {
            return Decision::Verdict(Verdict::Drop(DropReason::Stale));
        }
        let (source, destination) = packet.endpoints();
        let found = self.sessions.table.find(&Key::between(source, destination));
        let mut known = None;
        if let Some(index) = found
            && let Some(Entry { control, .. }) = self.sessions.table.get_mut(index)
        {
            let from = control.side_of(source);
            if control.fast_path().is_handed_over {
                self.sessions.take_back(index);
            }
            let Some(Entry { control, .. }) = self.sessions.table.get_mut(index) else {
                return ACCEPT;
            };
            if control.is_busy() {
                deciding.session = SessionRef { index, id: control.id };
                return Decision::Park;
            }
            let is_certain = !packet.has(flags::SYN) && control.incarnation().is_none();
            known = is_certain.then_some((index, from));
        }
        let known = known.or_else(|| {
            let index = self.find_or_insert(now, &packet, found, *how, effects)?;
            Some((index, self.sessions.table.get_mut(index)?.control.side_of(source)))
        });
        let Some((index, from)) = known else {
            trace_unread(bytes, "no session follows it");
            return ACCEPT;
        };
        let moment = self.sessions.epoch.timestamp(now);
        let Some(Entry { session, control }) = self.sessions.table.get_mut(index) else {
            return ACCEPT;
        };
        control.last_seen = moment;
        if session.was_reset() && !packet.has(flags::SYN) {
            return Decision::Verdict(
                self.sessions.answer_reset_session(index, from, &packet, effects),
            );
        }
        let is_unsaid =
            session.dialogue().phase() == Phase::NotGreeted && control.incarnation().is_none();
        if is_unsaid && !packet.has(flags::SYN) && !session.is_in_window(from, &packet) {
            // The session started with a spoofed SYN-ACK; this packet belongs to another connection.
            let what = "it is of another connection than the one that is followed";
            self.pass_unread(bytes, |unread| &mut unread.other_connection, what);
            return ACCEPT;
        }
        deciding.session = SessionRef { index, id: control.id };
        if how.may_wait && session.may_reorder(from, &packet) {
            deciding.all_were_queued = session.needs_all_queued();
            return Decision::Reorder;
        }
        self.inspect_packet(now, (arrival, &packet, from), None, deciding, effects)
    }

    /// Has the session read a packet, with the `answer` to its pending line if there is one.
    #[inline]
    fn inspect_packet(
        &mut self,
        now: Instant,
        (arrival, packet, from): (&QueuedPacket<'_>, &Packet<'_>, Side),
        answer: Option<AnsweredLine>,
        deciding: &mut PacketContext,
        effects: &mut Effects,
    ) -> Decision {
        let (how, index) = (&arrival.meta, deciding.session.index);
        let Some(Entry { session, control }) = self.sessions.table.get_mut(index) else {
            return Decision::Verdict(Verdict::Accept);
        };
        deciding.all_were_queued = session.needs_all_queued();
        let mut connection = Connection {
            now,
            timestamp: control.last_seen,
            index,
            policy: self.sessions.policy.for_network(control.network()),
            control,
            pinholes: &mut self.sessions.pinholes,
            counters: &mut self.counters,
            effects,
        };
        let inspection = &mut self.inspection;
        inspection.refuses_auth = connection.policy.refuses_auth();
        inspection.answer = answer;
        let read = session.read_positions();
        let mut outcome;
        loop {
            outcome = session.handle_packet(from, packet, inspection, &mut self.changed_payload);
            for note in inspection.events.drain(..) {
                connection.handle_dialogue_event(note);
            }
            let Some(request) = inspection.pending.take() else { break };
            let mut attempt = None;
            let judged = match &request.request {
                DecisionRequest::Announcement(announced) => {
                    connection.decide_announcement(announced, &mut attempt)
                }
                DecisionRequest::AdjustSequence => AnnouncementOutcome::NeedsKernel,
            };
            match judged {
                AnnouncementOutcome::Decided(ruling) => {
                    inspection.answer = Some((request, DecisionAnswer::Ruling(ruling)));
                }
                AnnouncementOutcome::NeedsKernel => {
                    let QueuedPacket { token, meta: how, bytes } = *arrival;
                    let waiting = WaitingPacket { token, how, bytes: 0..0, request, attempt };
                    connection.request(bytes, Box::new(waiting));
                    return Decision::AwaitKernel;
                }
            }
        }
        let asks = how.may_wait && session.awaits_probe_answer(from, packet);
        let is_new = read != session.read_positions();
        let wanted = wanted_queue_mode(&connection, session, how.queues_all);
        if let Some(wanted) = wanted {
            connection.request_mode_change(wanted);
        }
        deciding.needs_all_queued = wanted == Some(QueueMode::All);
        if let Some(acknowledgement) = outcome.acknowledge {
            acknowledge(&mut connection, acknowledgement);
        }
        let attention = connection.control.queue_mode();
        let is_watched = matches!(attention, Some(QueueMode::Watch | QueueMode::All))
            || deciding.needs_all_queued;
        if is_watched && !session.changes_packets() {
            self.sessions.watched.add(now, index, connection.control);
        }
        let wants_none = session.needs_none_queued();
        if session.is_over() {
            connection.close_all_pinholes("the control connection ended");
        } else if wants_none {
            connection.close_all_pinholes("the connection is not inspected any more");
        }
        let decision = forward_verdict(
            &mut connection,
            session,
            from,
            packet,
            &outcome,
            &self.changed_payload,
            asks,
        );
        let ends = flags::FIN | flags::RST | flags::SYN;
        let says = is_new || packet.flags() & ends != 0;
        let is_dropped = matches!(outcome.action, ForwardAction::Drop(_));
        let is_counted = should_count_memory(session, control) || should_count(session, control);
        if wants_none {
            self.sessions.remove(index);
        } else if says && !is_dropped {
            // Other changes need no record, because the next packet repeats them.
            self.sessions.mark_changed(index);
        }
        if is_counted {
            self.sessions.update_memory(&mut self.counters, index, effects);
            self.sessions.count_session(&mut self.counters, now, index, effects);
        }
        let goes_on = matches!(decision, Decision::Verdict(Verdict::Accept | Verdict::Replace(_)));
        // If this machine is an end of the connection, the BPF program sees only half of it, and no SYN from here.
        let may_rest = is_new || packet.has(flags::SYN);
        if from == Side::Server && may_rest && goes_on && !how.is_local {
            self.offer_to_fast_path(index, effects);
        }
        decision
    }

    /// Finds the entry of `packet` if that is not certain, or inserts one if the packet starts a session.
    fn find_or_insert(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        found: Option<u32>,
        how: PacketMeta,
        effects: &mut Effects,
    ) -> Option<u32> {
        if let Some(index) = found
            && !packet.has(flags::SYN)
        {
            return self.resolve_tuple_reuse(now, index, packet, effects);
        }
        let (source, destination) = (packet.source(), packet.destination());
        if packet.has(flags::SYN | flags::ACK) {
            let Some(index) = found else {
                let session = Session::from_syn_ack(packet);
                return self.insert_session(now, (destination, source), session, effects);
            };
            let Entry { session, control } = self.sessions.table.get_mut(index)?;
            if session.began_with(packet) {
                return found;
            }
            // The session is known only by data in an earlier SYN.
            let is_unknown =
                session.dialogue().phase() == Phase::PickedUp && !session.is_adjusted();
            if !(control.spoke_in_syn() && is_unknown) {
                return self.handle_tuple_reuse(now, index, packet, how.queues_all, effects);
            }
            self.sessions.forget(index);
            let session = Session::with_unread_syn_data(packet);
            return self.insert_session(now, (destination, source), session, effects);
        }
        if packet.payload().is_empty() {
            self.counters.unread.no_session += u64::from(found.is_none());
            return found;
        }
        if let Some(index) = found {
            self.sessions.table.get_mut(index)?.control.set_spoke_in_syn(true);
            return found;
        }
        // Picked up mid-stream. If the rules do not tell which end sent the packet, the port does, if at all. Conntrack
        // is not asked, because an attacker could cause a lookup with each spoofed packet.
        let Some(side) = how.from.or_else(|| self.side_by_port(source, destination)) else {
            self.counters.unread.no_session += 1;
            return None;
        };
        let session = Session::picked_up(side, packet);
        let index = match side {
            Side::Client => self.insert_session(now, (source, destination), session, effects),
            Side::Server => self.insert_session(now, (destination, source), session, effects),
        }?;
        self.sessions.table.get_mut(index)?.control.set_spoke_in_syn(packet.has(flags::SYN));
        Some(index)
    }

    /// Starts a session between these endpoints, if admission allows it.
    pub(super) fn insert_session(
        &mut self,
        now: Instant,
        ends: (SocketAddr, SocketAddr),
        session: Session,
        effects: &mut Effects,
    ) -> Option<u32> {
        self.sessions.insert(&mut self.counters, now, ends, session, effects)
    }

    fn side_by_port(&self, source: SocketAddr, destination: SocketAddr) -> Option<Side> {
        let is_control =
            |endpoint: SocketAddr| self.sessions.policy.control_ports.contains(&endpoint.port());
        match (is_control(destination), is_control(source)) {
            (true, false) => Some(Side::Client),
            (false, true) => Some(Side::Server),
            _ => None,
        }
    }
}

/// Traces a packet that passes unread.
#[cold]
fn trace_unread(bytes: &[u8], what: &str) {
    if !tracing::enabled!(tracing::Level::TRACE) {
        return;
    }
    match Packet::parse(bytes) {
        Ok(packet) => {
            let (source, destination, seq) =
                (packet.source(), packet.destination(), packet.seq().0);
            tracing::trace!(
                "packet passes unread: {what}, {source} -> {destination}, sequence number {seq}"
            );
        }
        Err(error) => tracing::trace!("packet passes unread: {what}, {error}"),
    }
}

/// The verdict on `packet` for a session's `outcome`.
#[inline(never)] // the outcome is then read in the parts in which it was written
fn forward_verdict(
    connection: &mut Connection<'_>,
    session: &Session,
    from: Side,
    packet: &Packet<'_>,
    outcome: &ForwardPlan,
    changed: &[u8],
    asks: bool,
) -> Decision {
    let sent = session.map(from.peer());
    let acknowledged = |[left, right]: [Seq; 2]| {
        let (left, right) = (sent.acknowledge_left(left), sent.acknowledge(right));
        left.is_before(right).then_some([left, right])
    };
    let rebuilt = |edit: &Edit<'_>| {
        let mut segment = Vec::new();
        packet.rebuild_onto(edit, acknowledged, &mut segment);
        segment
    };
    Decision::Verdict(match outcome.action {
        ForwardAction::Unchanged => Verdict::Accept,
        ForwardAction::Drop(reason) => Verdict::Drop(reason),
        // Unreachable: a packet that awaits a decision was parked.
        ForwardAction::AwaitDecision => Verdict::Drop(DropReason::KernelRefused),
        ForwardAction::Changed { seq, ack, flags, .. } if asks => {
            let edit = Edit { seq, ack, payload: Some(&[]), flags, urgent: 0 };
            send_trailing_segment(connection, from, rebuilt(&edit));
            return Decision::Reorder;
        }
        // The kernel drops a super-packet that is not longer than its first segment was, and does not report that
        // length.
        ForwardAction::Changed { seq, ack, payload: true, flags, urgent }
            if packet.offload().is_super_packet && changed.len() < packet.payload().len() =>
        {
            let edit = Edit { seq, ack, payload: Some(changed), flags, urgent };
            let limit = session.mss(from);
            for segment in resegment(packet, &edit, limit, acknowledged) {
                send_trailing_segment(connection, from, segment);
            }
            Verdict::Drop(DropReason::Resegmented)
        }
        ForwardAction::Changed { seq, ack, payload, flags, urgent } => {
            let mut whole = changed;
            if let Some(TrailingSegment { start, flags }) = outcome.trailing {
                let (first, rest) = whole.split_at(start);
                whole = first;
                let seq = seq + start as u32; // within a packet
                let edit = Edit { seq, ack, payload: Some(rest), flags, urgent: 0 };
                send_trailing_segment(connection, from, rebuilt(&edit));
            }
            let payload = payload.then_some(whole);
            let edit = Edit { seq, ack, payload, flags, urgent };
            let out = &mut connection.effects.replacements;
            let start = out.len();
            packet.rebuild_onto(&edit, acknowledged, out);
            Verdict::Replace(start as u32..out.len() as u32) // of one batch
        }
    })
}
