//! Packets of ours, sent on behalf of a connection besides the verdicts.

use std::net::SocketAddr;

use super::{Kernel, bench::Bench, control::Control};
use crate::{
    packet::{self, Edit, Packet, Seq, flags},
    session::Side,
};

/// A packet that is to be sent on behalf of a connection.
pub(super) struct Injection {
    pub session: u64,
    pub client: SocketAddr,
    pub server: SocketAddr,
    pub packet: Vec<u8>,
}

impl Injection {
    pub(super) fn of(control: &Control, packet: Vec<u8>) -> Self {
        let (client, server) = (control.client(), control.server());
        Self { session: control.id, client, server, packet }
    }
}

/// Has `segment`, of what `from` sent, go to the other end: as a packet of its own, which nothing
/// translates any more.
pub(super) fn send<K: Kernel>(
    bench: &mut Bench<'_, K>,
    from: Side,
    segment: &[u8],
    injections: &mut Vec<Injection>,
) {
    let (translation, segment) = match (bench.translation(), Packet::parse(segment)) {
        (Ok(translation), Ok(segment)) => (translation, segment),
        (Err(error), _) => return bench.failed(&error),
        (Ok(_), Err(_)) => return,
    };
    let (source, destination) = translation.seen_by(from.peer());
    let mut packet = Vec::new();
    packet::with_endpoints(&segment, source, destination, &mut packet);
    injections.push(Injection::of(bench.control, packet));
}

/// The segments of `packet`, changed by `edit`, each with at most `limit` bytes. As the kernel would part it: what
/// ends something is in the last, what begins something in the first.
pub(super) fn part(
    packet: &Packet<'_>,
    edit: &Edit<'_>,
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
        let edit = Edit {
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
