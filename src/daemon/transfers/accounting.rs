//! The bytes of long transfers. Sequence numbers count modulo 4 GiB. Where conntrack counts (`nf_conntrack_acct`), its
//! count of whole packets says how often that was passed.

use std::{net::SocketAddr, time::Duration};

use ftp_alg_core::engine::Transfer;

use crate::kernel::conntrack::CountedPackets;

/// No shorter transfer has 4 GiB, below 100 Gbit/s.
const LEAST_DURATION: Duration = Duration::from_millis(300);
/// The headers of a packet: IP and TCP with a timestamp.
const HEADERS: [u64; 2] = [20 + 32, 40 + 32];

/// Completes the bytes of a transfer with what `count` says of its data connection, in the direction of the initiator
/// and in the other.
pub(super) fn complete_bytes(
    transfer: &mut Transfer,
    count: impl FnOnce(SocketAddr, SocketAddr) -> Option<[CountedPackets; 2]>,
) {
    if let (Some(bytes), Some((initiator, dialled))) = (transfer.bytes, transfer.connection())
        && transfer.duration >= LEAST_DURATION
        && let Some(counted) = count(initiator, dialled)
    {
        let of_sender = counted[usize::from(transfer.target_sends())];
        let headers = HEADERS[usize::from(initiator.is_ipv6())];
        transfer.bytes = Some(whole_bytes(bytes, of_sender, headers));
    }
}

/// The number that is `low` modulo 4 GiB and next to the counted payload, which retransmissions make too great.
fn whole_bytes(low: u64, counted: CountedPackets, headers: u64) -> u64 {
    let payload = counted.bytes.saturating_sub(counted.packets.saturating_mul(headers));
    let missing = payload.saturating_sub(low).saturating_add(1 << 31);
    low.saturating_add(missing >> 32 << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_of_packets_selects_the_number() {
        const GIB: u64 = 1 << 30;
        for (bytes, retransmitted) in
            [(5, 0), (4 * GIB - 1, 0), (4 * GIB, 0), (4 * GIB + 5, 2000), (1000 * GIB + 7, 70_000)]
        {
            let packets = bytes.div_ceil(1448) + retransmitted;
            let counted =
                CountedPackets { bytes: bytes + retransmitted * 1448 + packets * 52, packets };
            assert_eq!(whole_bytes(bytes % (4 * GIB), counted, 52), bytes);
        }
        // One that a flowtable has forwarded, uncounted.
        assert_eq!(whole_bytes(7, CountedPackets { bytes: 100, packets: 2 }, 52), 7);
        assert_eq!(
            whole_bytes(7, CountedPackets { bytes: u64::MAX, packets: 0 }, 52) % (4 * GIB),
            7
        );
    }
}
