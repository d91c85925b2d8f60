//! Resegmentation: splits a changed super-packet into segments.

use crate::packet::{Packet, PacketEdit, Seq, flags};

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
