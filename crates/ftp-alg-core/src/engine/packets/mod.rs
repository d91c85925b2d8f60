//! Decides about one packet: which session it belongs to, what the session does with it, and its verdict.

mod downtime;
mod find_session;
pub(crate) mod forward;
pub(crate) mod routes;
pub(crate) mod waiting;

use std::time::Instant;

use crate::{
    engine::{
        Checksums, Effects, Engine, QueueMode, QueuedPacket, SessionEnd, Unread, Verdict,
        decision::connection::Connection,
        limits::is_counted,
        packets::forward::{acknowledge, forward_verdict, without_payload},
        questions::effects::{Released, SessionRef},
    },
    packet::{Packet, flags},
    session::{
        AnsweredLine, DropReason, ForwardAction, ForwardPlan, Inspection, PendingLine, Side,
    },
};

/// What to do with a packet now.
pub(crate) enum Handling {
    /// It has a verdict.
    Verdict(Verdict),
    /// It arrived out of order, or waits for the answer to a probe, and may wait in the reorder queue.
    Reorder,
    /// It waits behind earlier packets of its session.
    Park,
    /// It waits for the kernel.
    AwaitKernel,
}

pub(crate) const ACCEPT: Handling = Handling::Verdict(Verdict::Accept);

/// State that a packet's verdict needs.
#[derive(Clone, Copy)]
pub(crate) struct PacketContext {
    pub(crate) session: SessionRef,
    pub(crate) all_were_queued: bool,
    needs_all_queued: bool,
    /// Whether the packet is not read.
    pub(crate) is_elsewhere: bool,
}

impl PacketContext {
    /// The context of a packet without a session.
    pub(crate) const UNKNOWN: Self = Self {
        session: SessionRef::NONE,
        all_were_queued: false,
        needs_all_queued: false,
        is_elsewhere: false,
    };
}

impl Engine {
    /// Handles a packet that is new, or has waited.
    #[inline]
    pub(crate) fn handle_packet(
        &mut self,
        now: Instant,
        packet: &QueuedPacket<'_>,
        effects: &mut Effects,
    ) {
        let mut context = PacketContext::UNKNOWN;
        let decision = self.decide(now, packet, &mut context, effects);
        self.apply_decision(now, packet, decision, context, effects);
    }

    /// Continues with a packet whose session waited for `answer`. If the session was removed meanwhile, the packet is
    /// handled as a new one.
    pub(crate) fn handle_answered_packet(
        &mut self,
        now: Instant,
        packet: &QueuedPacket<'_>,
        session: SessionRef,
        answer: AnsweredLine,
        effects: &mut Effects,
    ) {
        let mut context = PacketContext { session, ..PacketContext::UNKNOWN };
        let parsed =
            Packet::parse(packet.bytes).map(|parsed| parsed.with_offload(packet.meta.offload));
        let entry = self.sessions.table.get_session(session.index, session.id);
        let (Ok(parsed), Some(entry)) = (parsed, entry) else {
            return self.handle_packet(now, packet, effects);
        };
        entry.last_seen = self.sessions.epoch.timestamp(now);
        let from = entry.side_of(parsed.endpoints().0);
        self.inspection.answer = Some(answer);
        let decision = self.inspect_packet(now, (packet, &parsed, from), &mut context, effects);
        self.inspection.answer = None; // if the line was not read again
        self.apply_decision(now, packet, decision, context, effects);
    }

    /// Carries out the decision.
    #[inline]
    fn apply_decision(
        &mut self,
        now: Instant,
        packet: &QueuedPacket<'_>,
        decision: Handling,
        context: PacketContext,
        effects: &mut Effects,
    ) {
        match decision {
            Handling::Verdict(verdict) => self.release(packet, verdict, context, effects),
            Handling::Reorder => self.queue_out_of_order(now, packet, effects),
            Handling::Park => self.park(packet, context.session, effects),
            Handling::AwaitKernel => {}
        }
    }

    /// Gives a packet its verdict.
    #[inline]
    pub(crate) fn release(
        &mut self,
        packet: &QueuedPacket<'_>,
        verdict: Verdict,
        context: PacketContext,
        effects: &mut Effects,
    ) {
        let PacketContext { session, all_were_queued, needs_all_queued, .. } = context;
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
        let released = Released { token, verdict, index, id, all_were_queued, needs_all_queued };
        effects.verdicts.push(released);
    }

    #[cold]
    fn count_drop(&mut self, bytes: &[u8], reason: DropReason) {
        self.sessions.counters.drops.count(reason);
        if !tracing::enabled!(tracing::Level::TRACE) {
            return;
        }
        let Ok(packet) = Packet::parse(bytes) else { return };
        let seq = packet.seq().0;
        if let Some(entry) = self.sessions.table.find_packet(&packet) {
            let from = entry.side_of(packet.endpoints().0);
            let (id, expected) = (entry.id, entry.session.next_seq(from).0);
            tracing::trace!(
                "packet dropped: {reason}, session {id}, sequence number {seq} of the {from:?}, expected {expected}"
            );
        } else {
            tracing::trace!("packet dropped: {reason}, no session, sequence number {seq}");
        }
    }

    /// Counts and traces a packet that passes unread, by `counter`, for `reason`.
    #[cold]
    pub(crate) fn pass_unread(
        &mut self,
        bytes: &[u8],
        counter: fn(&mut Unread) -> &mut u64,
        reason: &str,
    ) {
        *counter(&mut self.sessions.counters.unread) += 1;
        trace_unread(bytes, reason);
    }

    #[inline]
    fn decide(
        &mut self,
        now: Instant,
        queued: &QueuedPacket<'_>,
        context: &mut PacketContext,
        effects: &mut Effects,
    ) -> Handling {
        // By reference, because a copy right after the write would stall.
        let QueuedPacket { bytes, meta, .. } = queued;
        let Ok(packet) = Packet::parse(bytes).map(|packet| packet.with_offload(meta.offload))
        else {
            self.sessions.counters.malformed += 1;
            self.pass_unread(bytes, |unread| &mut unread.malformed, "not a complete TCP packet");
            return ACCEPT;
        };
        let has_checksum = self.checksums == Checksums::Verify && !meta.offload.lacks_checksum;
        if has_checksum && !packet.checksum_is_valid() {
            self.sessions.counters.malformed += 1;
            self.pass_unread(bytes, |unread| &mut unread.checksum, "its checksum is wrong");
            return ACCEPT;
        }
        if meta.is_late && !self.may_decide_late(&packet) {
            return Handling::Verdict(Verdict::Drop(DropReason::Stale));
        }
        let handling = match self.find_session(now, queued, &packet, context, effects) {
            Ok(from) => self.inspect_packet(now, (queued, &packet, from), context, effects),
            Err(decision) => decision,
        };
        match handling {
            Handling::Verdict(Verdict::Accept)
                if packet.has(flags::SYN) && !packet.payload().is_empty() =>
            {
                Handling::Verdict(without_payload(&packet, effects))
            }
            _ => handling,
        }
    }

    /// Passes a packet to its session.
    #[inline]
    fn inspect_packet(
        &mut self,
        now: Instant,
        (queued, packet, from): (&QueuedPacket<'_>, &Packet<'_>, Side),
        context: &mut PacketContext,
        effects: &mut Effects,
    ) -> Handling {
        let (meta, index) = (&queued.meta, context.session.index);
        let Some(mut connection) = self.sessions.connection(now, context.session, effects) else {
            trace_unread(queued.bytes, "no session for it");
            return ACCEPT;
        };
        let (inspection, changed) = (&mut self.inspection, &mut self.changed_payload);
        context.all_were_queued = connection.entry.session.needs_all_queued();
        inspection.is_from_elsewhere = context.is_elsewhere;
        let positions = connection.entry.session.read_positions();
        let decide = |connection: &mut Connection<'_>, line| connection.decide_or_ask(queued, line);
        let Some(outcome) =
            inspect_and_decide(&mut connection, from, packet, inspection, changed, decide)
        else {
            return Handling::AwaitKernel;
        };
        let session = &connection.entry.session;
        let is_new = positions != session.read_positions();
        let needs_none = session.needs_none_queued();
        let wanted = connection.wanted_queue_mode(meta.queues_all);
        if let Some(wanted) = wanted {
            connection.request_mode_change(wanted);
        }
        context.needs_all_queued = wanted == Some(QueueMode::All);
        if let Some(acknowledgement) = outcome.acknowledge {
            acknowledge(&mut connection, acknowledgement);
        }
        let mode = connection.entry.queue_mode();
        let is_watched =
            matches!(mode, Some(QueueMode::Watch | QueueMode::All)) || context.needs_all_queued;
        if is_watched && !connection.entry.session.changes_packets() {
            let until = connection.entry.watch(now);
            connection.timers.add(until, index);
        }
        if connection.entry.session.is_over() {
            connection.handle_end();
        } else if needs_none {
            connection.report_end(SessionEnd::Forgotten);
            connection.close_all_pinholes("the connection is no longer inspected");
        }
        let decision = match outcome.action {
            ForwardAction::Unchanged => ACCEPT,
            _ => {
                let session = &connection.entry.session;
                let side = (from, meta.may_wait && session.awaits_probe_answer(from, packet));
                forward_verdict(&mut connection, side, packet, &outcome, changed)
            }
        };
        let connection_flags = flags::FIN | flags::RST | flags::SYN;
        let may_change_session =
            is_new || packet.flags() & connection_flags != 0 && !context.is_elsewhere;
        let is_dropped = matches!(outcome.action, ForwardAction::Drop(_));
        let is_counted = is_counted(connection.entry);
        if needs_none {
            self.sessions.remove(index);
        } else if may_change_session && !is_dropped {
            // Other changes need no record, because the next packet repeats them.
            self.sessions.mark_changed(index);
        }
        if is_counted {
            self.sessions.update_counts(now, index, effects);
        }
        let is_forwarded =
            matches!(decision, Handling::Verdict(Verdict::Accept | Verdict::Replace(_)));
        // If this machine is an end of the connection, the BPF program sees only half of it, and no SYN from here.
        let may_be_idle = is_new || packet.has(flags::SYN);
        if from == Side::Server && may_be_idle && is_forwarded && !meta.is_local() {
            self.offer_to_fast_path(index, effects);
        }
        decision
    }
}

/// Traces a packet that passes unread.
#[cold]
pub(crate) fn trace_unread(bytes: &[u8], reason: &str) {
    if !tracing::enabled!(tracing::Level::TRACE) {
        return;
    }
    match Packet::parse(bytes) {
        Ok(packet) => {
            let (source, destination, seq) =
                (packet.source(), packet.destination(), packet.seq().0);
            tracing::trace!(
                "packet passes unread: {reason}, {source} -> {destination}, sequence number {seq}"
            );
        }
        Err(error) => tracing::trace!("packet passes unread: {reason}, {error}"),
    }
}

/// Passes a packet of `from` to its session, and handles what that finds: events, and lines that need a decision, which
/// `decide` makes. Returns how to forward the packet; `None` if a decision must wait for the kernel.
#[inline]
pub(crate) fn inspect_and_decide(
    connection: &mut Connection<'_>,
    from: Side,
    packet: &Packet<'_>,
    inspection: &mut Inspection,
    changed: &mut Vec<u8>,
    decide: impl FnMut(&mut Connection<'_>, Box<PendingLine>) -> Option<AnsweredLine>,
) -> Option<ForwardPlan> {
    inspection.refuses_auth = connection.policy.refuses_auth();
    let plan = connection.entry.session.inspect(from, packet, inspection, changed);
    if !inspection.has_findings() {
        return Some(plan);
    }
    handle_findings(connection, (from, packet), inspection, changed, plan, decide)
}

/// The rest of [`inspect_and_decide`], which most packets do not need.
#[inline(never)]
fn handle_findings(
    connection: &mut Connection<'_>,
    (from, packet): (Side, &Packet<'_>),
    inspection: &mut Inspection,
    changed: &mut Vec<u8>,
    mut plan: ForwardPlan,
    mut decide: impl FnMut(&mut Connection<'_>, Box<PendingLine>) -> Option<AnsweredLine>,
) -> Option<ForwardPlan> {
    loop {
        for event in inspection.events.drain(..) {
            connection.handle_dialogue_event(event);
        }
        inspection.answer = None; // if the line was not read again
        let Some(line) = inspection.pending.take() else { return Some(plan) };
        inspection.answer = Some(decide(connection, line)?);
        plan = connection.entry.session.inspect(from, packet, inspection, changed);
    }
}
