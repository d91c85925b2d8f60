//! The bytes of long transfers. Sequence numbers count modulo 4 GiB. Where conntrack counts (`nf_conntrack_acct`), its
//! count of whole packets says how often 4 GiB were passed. Where conntrack does not count, the interfaces' statistics
//! say whether 4 GiB can have been passed.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ftp_alg_core::engine::Transfer;

use crate::kernel::conntrack::CountedPackets;

/// No shorter transfer has 4 GiB, below 100 Gbit/s.
const LEAST_DURATION: Duration = Duration::from_millis(300);

/// The most bytes of TCP options in the packets of a transfer: a timestamp and SACK blocks.
const MOST_OPTIONS: u64 = 32;

/// Why the bytes of a transfer are not certain with conntrack's count.
const COUNT_TOO_FAR: &str = "conntrack has counted too many headers or retransmissions";
/// Why the bytes of a transfer are not certain without conntrack's count.
const MAY_BE_LONG: &str =
    "4 GiB or more may have passed uncounted: see net.netfilter.nf_conntrack_acct";

/// The bytes that all interfaces of the machine have received and sent, looked up again and again: no transfer has
/// more.
#[derive(Debug)]
pub(super) struct PassedBytes {
    total: u64,
    /// When the statistics were last looked up.
    looked: Instant,
    /// When each of the last GiB was full, the oldest first.
    filled: [Instant; 4],
}

impl PassedBytes {
    pub(super) fn new(now: Instant) -> Self {
        Self { total: u64::MAX, looked: now, filled: [now; 4] }
    }

    /// Looks the statistics up.
    pub(super) fn look(&mut self, now: Instant) {
        self.looked = now;
        // What cannot be read is unknown, as if an interface was gone.
        self.note(now, &fs::read_to_string("/proc/net/dev").unwrap_or_default());
    }

    /// Notes the statistics of all interfaces, as /proc/net/dev has them.
    fn note(&mut self, now: Instant, interfaces: &str) {
        let bytes = |line: &str| -> Option<u64> {
            let mut columns = line.split_once(':')?.1.split_ascii_whitespace();
            let received: u64 = columns.next()?.parse().ok()?;
            let sent: u64 = columns.nth(7)?.parse().ok()?;
            Some(received.saturating_add(sent))
        };
        let total = interfaces.lines().filter_map(bytes).fold(0_u64, u64::saturating_add);
        // An interface that is gone takes its bytes with it.
        let full = if total < self.total { 4 } else { (total >> 30) - (self.total >> 30) };
        for _ in 0..full.min(4) {
            self.filled.rotate_left(1);
            self.filled[3] = now;
        }
        self.total = total;
    }

    /// Whether 4 GiB may have passed since then.
    fn may_be_long(&self, since: Instant) -> bool {
        since <= self.filled[0]
    }
}

/// Completes the bytes of a transfer by conntrack's `count` of its data connection, in the direction of the initiator
/// and in the other. Without a count, the bytes are not known if 4 GiB may have passed meanwhile.
pub(super) fn complete_bytes(
    now: Instant,
    transfer: &mut Transfer,
    passed: &mut PassedBytes,
    count: impl FnOnce(SocketAddr, SocketAddr) -> Option<[CountedPackets; 2]>,
) {
    let (Some(bytes), Some((initiator, dialled))) = (transfer.bytes, transfer.connection()) else {
        return;
    };
    if transfer.duration < LEAST_DURATION {
        return;
    }
    let of_sender = usize::from(transfer.target_sends());
    match count(initiator, dialled)
        .map(|counted| whole_bytes(bytes, counted[of_sender], initiator.ip()))
    {
        Some(Count::Exact(whole)) => transfer.bytes = Some(whole),
        Some(Count::Uncertain) => {
            (transfer.bytes, transfer.uncertain) = (None, Some(COUNT_TOO_FAR))
        }
        Some(Count::Incomplete) | None => {
            let ended = transfer.ended.unwrap_or(now);
            // Many end at a time.
            if passed.looked < ended {
                passed.look(now);
            }
            let began = ended.checked_sub(transfer.duration);
            if began.is_none_or(|began| passed.may_be_long(began)) {
                (transfer.bytes, transfer.uncertain) = (None, Some(MAY_BE_LONG));
            }
        }
    }
}

/// What conntrack's count means for the bytes of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Exact(u64),
    /// Nobody knows which part of the count are headers and retransmissions.
    Uncertain,
    /// The count is less than the bytes: a flowtable has forwarded packets uncounted.
    Incomplete,
}

/// The number that is `low` modulo 4 GiB and next to the counted payload. Headers have up to [`MOST_OPTIONS`], and
/// retransmissions count, too.
fn whole_bytes(low: u64, counted: CountedPackets, initiator: IpAddr) -> Count {
    let [most, fewest] = [0, MOST_OPTIONS].map(|options| counted.payload(initiator, options));
    if most < low {
        return Count::Incomplete;
    }
    let multiple = |payload: u64| payload.saturating_sub(low).saturating_add(1 << 31) >> 32;
    // Headers do not explain the rest. Retransmissions may, and so may packets that were not counted.
    if multiple(most) == 0 && fewest > low {
        return Count::Incomplete;
    }
    let whole = low.saturating_add(multiple(most) << 32);
    let is_near = |payload: u64| payload.abs_diff(whole) < 1 << 30;
    match multiple(fewest) == multiple(most) && is_near(most) && is_near(fewest) {
        true => Count::Exact(whole),
        false => Count::Uncertain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_gib_of_all_interfaces_are_noticed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let statistics = |received: u64, sent: u64| {
            format!(
                "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n\
                 lan0: {received} 1 0 0 0 0 0 0 {sent} 9 0 0 0 0 0 0\n  lo:       5 1 0 0 0 0 0 0 6 9 0 0 0 0 0 0\n"
            )
        };
        let mut passed = PassedBytes::new(start);
        assert!(passed.may_be_long(start), "nothing is known of before");
        passed.note(at(1), &statistics(1 << 40, 7));
        for second in 2..=10 {
            passed.note(at(second), &statistics((1 << 40) + (512 << 20) * second, 7));
        }
        // A GiB in the last two seconds, 4.5 since the first one.
        assert_eq!([8, 1].map(|since| passed.may_be_long(at(since))), [false, true]);
        passed.note(at(11), &statistics((1 << 40) + (9 << 30), 7));
        assert!(passed.may_be_long(at(11)));
        assert!(!passed.may_be_long(at(12)));
        passed.note(at(13), &statistics(0, 0));
        assert!(passed.may_be_long(at(12)), "an interface is gone");
    }

    #[test]
    fn the_count_of_packets_selects_the_number() {
        const GIB: u64 = 1 << 30;
        let initiator = "10.0.0.7".parse().unwrap();
        let whole = |low, bytes, packets| {
            whole_bytes(low % (4 * GIB), CountedPackets { bytes, packets }, initiator)
        };
        for (bytes, retransmitted) in
            [(5, 0), (4 * GIB - 1, 0), (4 * GIB, 0), (4 * GIB + 5, 2000), (20 * GIB + 7, 70_000)]
        {
            for headers in [40, 52, 72] {
                let packets = bytes.div_ceil(1448) + retransmitted;
                let counted = bytes + retransmitted * 1448 + packets * headers;
                assert_eq!(whole(bytes, counted, packets), Count::Exact(bytes), "{headers}");
            }
        }
        // Whether there were timestamps matters in so many packets.
        let long = 300 * GIB;
        assert_eq!(whole(long, long + long / 1460 * 40, long / 1460), Count::Uncertain);
        // In super-packets it does not.
        assert_eq!(whole(long, long + long / 60_000 * 40, long / 60_000), Count::Exact(long));
        assert_eq!(whole(10, 10 + 3 * GIB, 2_000_000), Count::Uncertain, "retransmitted");
        // One that a flowtable has forwarded, uncounted.
        assert_eq!(whole(GIB, 20_000, 20), Count::Incomplete);
        assert_eq!(whole(4 * GIB, 20_000, 20), Count::Incomplete);
        assert_eq!(whole(7, u64::MAX, 0), Count::Uncertain);
    }
}
