//! The packet that is forwarded in the place of another, and the packets that are injected.

use crate::{
    engine::{
        Batch, KernelError, Verdict, batch::Injection, decision::decider::Decider,
        packets::Handling, table::entry::Head,
    },
    packet::{self, Packet, PacketEdit, Seq, flags},
    session::{
        Acknowledgement, DropReason, ForwardAction, ForwardPlan, Session, Side, TrailingSegment,
    },
};

/// The verdict on `packet` by a session's `plan`.
#[inline(never)] // the plan is then read in the parts in which it was written
pub(super) fn forward_verdict(
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
    let rebuilt = |edit: &PacketEdit<'_>| {
        let mut segment = Vec::new();
        packet.append_rebuilt(edit, acknowledged, &mut segment);
        segment
    };
    Handling::Verdict(match plan.action {
        ForwardAction::Unchanged => Verdict::Accept,
        ForwardAction::Drop(reason) => Verdict::Drop(reason),
        ForwardAction::Changed { seq, ack, flags, window, .. } if awaits_probe => {
            let edit = PacketEdit { seq, ack, payload: Some(&[]), flags, window, urgent: 0 };
            let segment = rebuilt(&edit);
            inject(decider, from.peer(), segment);
            return Handling::Reorder;
        }
        // The kernel drops a super-packet that is not longer than its first segment was, and does not report that
        // length.
        ForwardAction::Changed { seq, ack, payload: true, flags, window, urgent }
            if packet.offload.is_super_packet && changed.len() < packet.payload().len() =>
        {
            let edit = PacketEdit { seq, ack, payload: Some(changed), flags, window, urgent };
            let limit = session.mss(from);
            for segment in resegment(packet, &edit, limit, acknowledged) {
                inject(decider, from.peer(), segment);
            }
            Verdict::Drop(DropReason::Resegmented)
        }
        ForwardAction::Changed { seq, ack, payload, flags, window, urgent } => {
            let mut body = changed;
            let trailing = plan.trailing.map(|TrailingSegment { start, flags }| {
                let (first, trailing) = body.split_at(start);
                body = first;
                let seq = seq + start as u32; // within a packet
                let payload = Some(trailing);
                rebuilt(&PacketEdit { seq, ack, payload, flags, window, urgent: 0 })
            });
            let payload = payload.then_some(body);
            let edit = PacketEdit { seq, ack, payload, flags, window, urgent };
            let out = &mut decider.batch.replacements;
            let start = out.len();
            packet.append_rebuilt(&edit, acknowledged, out);
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
pub(super) fn without_payload(syn: &Packet<'_>, batch: &mut Batch) -> Verdict {
    let edit = PacketEdit {
        seq: syn.seq(),
        ack: syn.ack(),
        payload: Some(&[]),
        flags: syn.flags() & !(flags::FIN | flags::PSH | flags::URG),
        window: syn.window(),
        urgent: 0,
    };
    let out = &mut batch.replacements;
    let start = out.len();
    syn.append_rebuilt(&edit, Some, out);
    Verdict::Replace(start as u32..out.len() as u32) // of one batch
}

/// The segments of `packet` with the changes of `edit`, each with at most `limit` bytes. Flags are divided as in the
/// kernel (`tcp_gso_segment`): FIN and PSH go to the last segment, CWR to the first.
pub(crate) fn resegment(
    packet: &Packet<'_>,
    edit: &PacketEdit<'_>,
    limit: usize,
    sack: impl Fn([Seq; 2]) -> Option<[Seq; 2]>,
) -> Vec<Vec<u8>> {
    let payload = edit.payload.unwrap_or_default();
    let count = payload.len().div_ceil(limit).max(1);
    let segment = |index: usize| {
        let start = index * limit;
        let end = payload.len().min(start + limit);
        let (is_first, is_last) = (index == 0, index + 1 == count);
        let ends = if is_last { 0 } else { flags::FIN | flags::PSH };
        let begins = if is_first { 0 } else { flags::URG | flags::CWR };
        let edit = PacketEdit {
            seq: edit.seq + start as u32, // within a packet
            payload: Some(&payload[start..end]),
            flags: edit.flags & !ends & !begins,
            urgent: if is_first { edit.urgent } else { 0 },
            ..*edit
        };
        let mut out = Vec::new();
        packet.rebuild(&edit, &sack, &mut out);
        out
    };
    (0..count).map(segment).collect()
}

/// Injects an acknowledgement.
pub(super) fn acknowledge(decider: &mut Decider<'_>, acknowledgement: Acknowledgement) {
    let Acknowledgement { recipient, seq, ack, window, timestamps } = acknowledgement;
    let (client, server) = (decider.head.client(), decider.head.server());
    let (source, destination) = match recipient {
        Side::Client => (server, client),
        Side::Server => (client, server),
    };
    let mut packet = Vec::new();
    packet::build_acknowledgement(source, destination, seq, ack, window, timestamps, &mut packet);
    inject(decider, recipient, packet);
}

/// Injects a packet that has the endpoints of packets at our hooks.
fn inject(decider: &mut Decider<'_>, recipient: Side, packet: Vec<u8>) {
    match decider.translation() {
        Ok(_) => decider.batch.injections.extend(injection(decider.head, recipient, packet)),
        Err(KernelError::Unknown) => {}
        Err(error) => decider.record_kernel_error(&error),
    }
}

/// The injection of a packet that has the endpoints of packets at our hooks. It gets the addresses that its recipient
/// knows, because NAT does not translate it any more, and the ct mark, by which it is routed. Nothing is injected into a
/// connection whose translation is unknown.
pub(crate) fn injection(head: &Head, recipient: Side, packet: Vec<u8>) -> Option<Injection> {
    let translation = head.extra().translation?;
    let (client, server) = (head.client(), head.server());
    let (source, destination) = translation.seen_by(recipient);
    let parsed = Packet::parse(&packet).ok()?;
    let has_endpoints = parsed.source() == source && parsed.destination() == destination;
    let packet = if has_endpoints {
        packet
    } else {
        let mut translated = Vec::new();
        packet::build_with_endpoints(&parsed, source, destination, &mut translated);
        translated
    };
    let source = match recipient {
        Side::Client => server.ip(),
        Side::Server => client.ip(),
    };
    let (session, ct_mark) = (head.id, translation.ct_mark);
    Some(Injection { session, client, server, source, ct_mark, packet })
}
