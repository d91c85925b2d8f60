//! Handles one packet: finds its session, passes the packet to the session, and makes its verdict. Builds the packet that
//! is forwarded in its place, and the packets that are injected.

mod downtime;
pub(crate) mod find;
pub(crate) mod reorder;
mod tuple_reuse;

use std::time::Instant;

use crate::{
    engine::{
        Batch, Checksums, Engine, Kernel, KernelError, OpenRange, QueueMode, QueuedPacket,
        SessionEnd, Unread, Verdict,
        batch::{Injection, Released, SessionRef},
        decision::{ConnectionOf, Decider, wanted_queue_mode},
        limits::is_counted,
    },
    packet::{self, HeaderEdit, Packet, Seq, flags},
    session::{
        Acknowledgement, Conditions, DropReason, ForwardAction, ForwardPlan, Session, Side,
        TrailingSegment,
    },
};

/// What to do with a packet now.
pub(crate) enum Handling {
    Verdict(Verdict),
    /// It arrived out of order, or waits for the answer to a probe, and may wait in the reorder queue.
    Reorder,
}

pub(crate) const ACCEPT: Handling = Handling::Verdict(Verdict::Accept);

/// State that a packet's verdict needs.
#[derive(Clone, Copy)]
pub(crate) struct PacketContext {
    pub(crate) session: SessionRef,
    pub(crate) all_were_queued: bool,
    /// Whether the packet is not read.
    pub(crate) is_elsewhere: bool,
}

impl PacketContext {
    /// The context of a packet without a session.
    pub(crate) const UNKNOWN: Self =
        Self { session: SessionRef::NONE, all_were_queued: false, is_elsewhere: false };
}

impl Engine {
    /// Handles a packet that is new, or has waited.
    #[inline]
    pub(crate) fn handle_packet(
        &mut self,
        now: Instant,
        packet: &QueuedPacket<'_>,
        kernel: &mut dyn Kernel,
    ) {
        let mut context = PacketContext::UNKNOWN;
        match self.parse_and_handle(now, packet, &mut context, kernel) {
            Handling::Verdict(verdict) => self.release(packet, verdict, context),
            Handling::Reorder => self.queue_out_of_order(now, packet, kernel),
        }
    }

    /// Gives a packet its verdict.
    #[inline]
    pub(crate) fn release(
        &mut self,
        packet: &QueuedPacket<'_>,
        verdict: Verdict,
        context: PacketContext,
    ) {
        let PacketContext { session, all_were_queued, .. } = context;
        if let Verdict::Drop(reason) = verdict {
            self.count_drop(packet.bytes, reason);
        }
        let is_late = packet.meta.is_late;
        if is_late {
            self.note_session_downtime(session);
        }
        // Packets that passed meanwhile may have changed anything.
        let session = if is_late { SessionRef::NONE } else { session };
        let (token, SessionRef { index, id }) = (packet.token, session);
        let released = Released { token, verdict, index, id, all_were_queued };
        self.sessions.batch.verdicts.push(released);
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
            let from = entry.head.side_of(packet.endpoints().0);
            let (id, expected) = (entry.head.id, entry.session.next_seq(from).0);
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
    fn parse_and_handle(
        &mut self,
        now: Instant,
        queued: &QueuedPacket<'_>,
        context: &mut PacketContext,
        kernel: &mut dyn Kernel,
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
        if meta.is_late && !self.may_handle_late(&packet) {
            return Handling::Verdict(Verdict::Drop(DropReason::Stale));
        }
        let handling = match self.find_session(now, queued, &packet, context, kernel) {
            Ok(from) => self.pass_to_session(now, queued, &packet, from, context, kernel),
            Err(decision) => decision,
        };
        match handling {
            Handling::Verdict(Verdict::Accept)
                if packet.has(flags::SYN) && !packet.payload().is_empty() =>
            {
                Handling::Verdict(without_payload(&packet, &mut self.sessions.batch))
            }
            _ => handling,
        }
    }

    /// Passes a packet to its session.
    #[inline]
    fn pass_to_session(
        &mut self,
        now: Instant,
        queued: &QueuedPacket<'_>,
        packet: &Packet<'_>,
        from: Side,
        context: &mut PacketContext,
        kernel: &mut dyn Kernel,
    ) -> Handling {
        let (meta, index) = (&queued.meta, context.session.index);
        let Some((mut decider, session)) = self.sessions.decider(now, context.session, kernel)
        else {
            trace_unread(queued.bytes, "no session for it");
            return ACCEPT;
        };
        let changed = &mut self.changed_payload;
        context.all_were_queued = session.needs_all_queued();
        let conditions = Conditions {
            refuses_auth: decider.policy.refuses_auth(),
            is_from_elsewhere: context.is_elsewhere,
        };
        let positions = session.read_positions();
        let plan = session.inspect(from, packet, conditions, changed, &mut decider);
        let is_new = positions != session.read_positions();
        if decider.ranges.is_forgotten(decider.index) {
            decider.look_at_range();
        }
        // The end of a session with ports must be seen, also of one whose ports open later.
        let range = decider.ranges.of(decider.index);
        let needs_none = session.needs_none_queued() && !range.is_some_and(OpenRange::has_ports);
        let wanted = wanted_queue_mode(decider.head, session, meta.queues_all, needs_none);
        let is_refused = wanted.is_some_and(|mode| {
            let set = decider.set_queue_mode(mode, ConnectionOf::Session);
            set.is_err_and(|error| !matches!(error, KernelError::Unknown))
        });
        // Sequence numbers may change only after the kernel has set the queue mode. The sender retransmits the packet.
        let must_wait = is_refused && wanted == Some(QueueMode::EveryPacket);
        if let Some(acknowledgement) = plan.acknowledge.filter(|_| !is_refused) {
            acknowledge(&mut decider, acknowledgement);
        }
        let is_watched =
            matches!(decider.head.queue_mode(), Some(QueueMode::Watch | QueueMode::EveryPacket))
                || wanted == Some(QueueMode::EveryPacket);
        if is_watched && !session.changes_packets() {
            decider.watch();
        }
        if session.is_closed_by_server() {
            // The client may have closed behind its last command, and its transfer may still have to come.
            decider.close_range("the control connection ended");
        }
        if session.is_over() {
            decider.handle_end(session.is_reset());
        } else if needs_none {
            decider.report_end(SessionEnd::Forgotten);
            decider.close_all_pinholes("the connection is no longer inspected");
        }
        let handling = match plan.action {
            ForwardAction::Unchanged => ACCEPT,
            ForwardAction::Changed { .. } if must_wait => {
                Handling::Verdict(Verdict::Drop(DropReason::KernelRefused))
            }
            _ => {
                let awaits_probe = meta.may_wait && session.awaits_probe_answer(from, packet);
                forward_verdict(&mut decider, session, from, awaits_probe, packet, &plan, changed)
            }
        };
        let connection_flags = flags::FIN | flags::RST | flags::SYN;
        let may_change_session =
            is_new || packet.flags() & connection_flags != 0 && !context.is_elsewhere;
        let is_dropped = matches!(plan.action, ForwardAction::Drop(_));
        let is_counted = is_counted(decider.head, session);
        if needs_none {
            self.sessions.remove(index);
        } else if may_change_session && !is_dropped {
            // Other changes need no record, because the next packet repeats them.
            self.sessions.mark_changed(index);
        }
        if is_counted {
            self.sessions.update_counts(now, index, kernel);
        }
        let is_forwarded =
            matches!(handling, Handling::Verdict(Verdict::Accept | Verdict::Replace(_)));
        // If this machine is an end of the connection, the BPF program sees only half of it, and no SYN from here.
        let may_be_idle = is_new || packet.has(flags::SYN);
        if from == Side::Server && may_be_idle && is_forwarded && !meta.is_local() {
            self.sessions.offer_to_fast_path(now, index, kernel);
        }
        handling
    }
}

/// The verdict on `packet` by a session's `plan`.
#[inline(never)] // the plan is then read in the parts in which it was written
fn forward_verdict(
    decider: &mut Decider<'_>,
    session: &Session,
    from: Side,
    awaits_probe: bool,
    packet: &Packet<'_>,
    plan: &ForwardPlan,
    changed: &[u8],
) -> Handling {
    let sent = session.map(from.peer());
    let acknowledged = |[left, right]: [Seq; 2]| {
        let (left, right) = (sent.to_sent_left_edge(left), sent.to_sent(right));
        left.is_before(right).then_some([left, right])
    };
    let rebuilt = |header: HeaderEdit, payload: &[u8]| {
        let mut segment = Vec::new();
        packet.append_rebuilt(&header, Some(payload), acknowledged, &mut segment);
        segment
    };
    Handling::Verdict(match plan.action {
        ForwardAction::Unchanged => Verdict::Accept,
        ForwardAction::Drop(reason) => Verdict::Drop(reason),
        ForwardAction::Changed { ref header, .. } if awaits_probe => {
            inject(decider, from.peer(), rebuilt(HeaderEdit { urgent: 0, ..*header }, &[]));
            return Handling::Reorder;
        }
        // The kernel drops a super-packet that is not longer than its first segment was, and does not report that
        // length.
        ForwardAction::Changed { ref header, payload: true }
            if packet.offload.is_super_packet && changed.len() < packet.payload().len() =>
        {
            let limit = session.mss(from);
            for segment in resegment(packet, header, changed, limit, acknowledged) {
                inject(decider, from.peer(), segment);
            }
            Verdict::Drop(DropReason::Resegmented)
        }
        ForwardAction::Changed { ref header, payload } => {
            let mut body = changed;
            let trailing = plan.trailing.map(|TrailingSegment { start, flags }| {
                let (first, trailing) = body.split_at(start);
                body = first;
                let seq = header.seq + start as u32; // within a packet
                rebuilt(HeaderEdit { seq, flags, urgent: 0, ..*header }, trailing)
            });
            let out = &mut decider.batch.replacements;
            let start = out.len();
            packet.append_rebuilt(header, payload.then_some(body), acknowledged, out);
            let replacement = start as u32..out.len() as u32; // of one batch
            if let Some(segment) = trailing {
                inject(decider, from.peer(), segment);
            }
            Verdict::Replace(replacement)
        }
    })
}

/// The verdict that forwards a SYN or SYN-ACK without its payload (TCP Fast Open, RFC 7413), so that its receiver gets only
/// what is read: its sender sends the payload again in an ordinary segment. The flags that concern the payload go, too.
#[cold]
fn without_payload(syn: &Packet<'_>, batch: &mut Batch) -> Verdict {
    let flags = syn.flags() & !(flags::FIN | flags::PSH | flags::URG);
    let header = HeaderEdit { flags, urgent: 0, ..syn.unchanged() };
    let out = &mut batch.replacements;
    let start = out.len();
    syn.append_rebuilt(&header, Some(&[]), Some, out);
    Verdict::Replace(start as u32..out.len() as u32) // of one batch
}

/// The segments of `packet` with this header and `payload`, each with at most `limit` bytes. Flags are divided as in the
/// kernel (`tcp_gso_segment`): FIN and PSH go to the last segment, CWR to the first.
pub(crate) fn resegment(
    packet: &Packet<'_>,
    header: &HeaderEdit,
    payload: &[u8],
    limit: usize,
    sack: impl Fn([Seq; 2]) -> Option<[Seq; 2]>,
) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(limit).max(1);
    let segment = |index: usize| {
        let start = index * limit;
        let end = payload.len().min(start + limit);
        let (is_first, is_last) = (index == 0, index + 1 == count);
        let ends = if is_last { 0 } else { flags::FIN | flags::PSH };
        let begins = if is_first { 0 } else { flags::URG | flags::CWR };
        let edit = HeaderEdit {
            seq: header.seq + start as u32, // within a packet
            flags: header.flags & !ends & !begins,
            urgent: if is_first { header.urgent } else { 0 },
            ..*header
        };
        let mut out = Vec::new();
        packet.append_rebuilt(&edit, Some(&payload[start..end]), &sack, &mut out);
        out
    };
    (0..count).map(segment).collect()
}

/// Injects an acknowledgement.
fn acknowledge(decider: &mut Decider<'_>, acknowledgement: Acknowledgement) {
    let Acknowledgement { recipient, seq, ack, window, timestamps } = acknowledgement;
    let (source, destination) = decider.head.ends_to(recipient);
    let mut packet = Vec::new();
    let header = packet::Header { source, destination, seq, ack, window, flags: flags::ACK };
    packet::build_acknowledgement(&header, timestamps, &mut packet);
    inject(decider, recipient, packet);
}

/// Injects a packet that has the endpoints of packets at our hooks.
fn inject(decider: &mut Decider<'_>, recipient: Side, packet: Vec<u8>) {
    match decider.translation() {
        Ok(_) => decider.batch.injections.extend(Injection::new(decider.head, recipient, packet)),
        Err(KernelError::Unknown) => {}
        Err(error) => decider.report_kernel_error(&error),
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
