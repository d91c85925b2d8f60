//! The reorder queue: packets that arrived before their predecessors.
//!
//! A segment past a gap does not go on, as nothing reaches a peer that was not read. Where a host sends on two
//! processors, or the gateway receives on two, one packet overtakes another, and nothing is missing. If the
//! first of them is dropped, so is all that follows it: no acknowledgement tells its sender of that, as the
//! receiver has no gap, and both ends wait for the sender's timeouts. So such a one may wait until its predecessors
//! have come.
//!
//! Nothing is kept of it in the session: a segment that waits was not read, and has changed nothing.

use std::time::{Duration, Instant};

use super::{
    Arrival, DropReason, Effects, Engine, Entry, Queued, Released, Token, Verdict, decide::Deciding,
};
use crate::packet::{self, Endpoint, Packet, Taken, Turn};

/// So many wait at a time; of more, all is as if none could wait.
const MOST_PACKETS: usize = 256;
/// So many bytes.
const MOST_BYTES: usize = 4 << 20;
/// What precedes it was lost if it has not come by then: TCP sends again after 200 ms (Linux) to a second
/// (RFC 6298).
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// A packet that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    token: Token,
    bytes: Vec<u8>,
    how: Queued,
    since: Instant,
}

impl Waiting {
    fn arrival(&self) -> Arrival<'_> {
        Arrival { token: self.token, bytes: &self.bytes, how: self.how }
    }

    fn is_late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= LONGEST_WAIT
    }
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// It waits.
    Yes,
    /// There is no room.
    Full,
    /// It is one that waits, retransmitted: its sender does not know of what precedes it as missing, and
    /// the receiver may have that.
    Again,
}

/// Packets that wait, those of a flow in the order of their numbers.
pub(super) type ReorderQueue =
    packet::ReorderQueue<Waiting, MOST_PACKETS, MOST_BYTES, (Endpoint, Endpoint)>;

/// Has a packet wait.
fn keep(queue: &mut ReorderQueue, now: Instant, arrival: &Arrival<'_>) -> Kept {
    let Arrival { token, bytes, how } = *arrival;
    let Ok(packet) = Packet::parse(bytes) else { return Kept::Full };
    let (flow, seq) = (packet.endpoints(), packet.seq());
    if queue.starts_at(&flow, seq) {
        return Kept::Again;
    }
    let end = seq + packet.payload().len() as u32;
    let item = Waiting { token, bytes: bytes.to_vec(), how, since: now };
    if queue.insert(packet::Waiting { flow, seq, end, item }) { Kept::Yes } else { Kept::Full }
}

/// When the oldest of them has waited for long enough.
pub(super) fn next_deadline(queue: &ReorderQueue) -> Option<Instant> {
    Some(queue.iter().map(|waiting| waiting.item.since).min()? + LONGEST_WAIT)
}

impl Engine {
    /// Has a packet wait for what it overtook.
    #[cold]
    pub(super) fn reorder(&mut self, now: Instant, packet: &Arrival<'_>, effects: &mut Effects) {
        let impatient = Arrival { how: Queued { may_wait: false, ..packet.how }, ..*packet };
        let impatient = &impatient;
        match keep(&mut self.reorder, now, packet) {
            Kept::Yes => {}
            Kept::Full => self.arrive(now, impatient, effects),
            Kept::Again => {
                // As the first time.
                self.arrive(now, impatient, effects);
                let is_drop = |released: &mut Released| {
                    released.token == packet.token && matches!(released.verdict, Verdict::Drop(_))
                };
                if let Some(Released { verdict: Verdict::Drop(reason), .. }) =
                    effects.verdicts.pop_if(is_drop)
                {
                    self.counters.drops.uncount(reason);
                    self.arrive(now, impatient, effects);
                }
            }
        }
    }

    /// Goes on with packets of the reorder queue whose predecessors have come, or that have waited for long enough.
    pub(super) fn release_ordered(&mut self, now: Instant, effects: &mut Effects) {
        while !self.reorder.is_empty() {
            let mut queue = std::mem::take(&mut self.reorder);
            let Taken { due, late, over } =
                queue.take(|waiting| self.turn(waiting), |waiting| waiting.is_late(now));
            self.reorder = queue;
            for packet::Waiting { item, .. } in over {
                let verdict = Verdict::Drop(DropReason::Overlap);
                self.release(&item.arrival(), verdict, Deciding::UNKNOWN, effects);
            }
            let has_more = !due.is_empty();
            for packet::Waiting { item, .. } in due {
                self.arrive(now, &item.arrival(), effects);
            }
            for packet::Waiting { mut item, .. } in late {
                item.how.may_wait = false;
                self.arrive(now, &item.arrival(), effects);
            }
            if !has_more {
                return;
            }
        }
    }

    /// How things stand for a packet that waits.
    fn turn(&mut self, waiting: &Waiting) -> Turn {
        let Ok(packet) = Packet::parse(&waiting.bytes) else { return Turn::Over };
        let Some(Entry { session, control }) = self.sessions.table.of_packet(&packet) else {
            return Turn::Over;
        };
        let from = control.side(packet.endpoints().0);
        if control.is_busy() || session.is_asking(from, &packet) {
            return Turn::Waits;
        }
        Turn::at(packet.seq(), session.next_of(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment of five bytes to a server.
    fn segment(port: u16, seq: u32) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 9], 64)
            .tcp(port, 21, seq, 512)
            .ack(7);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"NOOP\r").unwrap();
        bytes
    }

    #[test]
    fn what_waits_too_long_or_is_too_much_or_comes_again_is_told() {
        let (mut waiting, now) = (ReorderQueue::default(), Instant::now());
        let keep = |queue: &mut ReorderQueue, port, seq| {
            let (token, how) = (Token::default(), Queued::default());
            super::keep(queue, now, &Arrival { token, bytes: &segment(port, seq), how })
        };
        for count in 0..MOST_PACKETS {
            assert_eq!(keep(&mut waiting, 1035, 10 * count as u32), Kept::Yes);
        }
        assert_eq!(keep(&mut waiting, 1035, 100), Kept::Again);
        assert_eq!(keep(&mut waiting, 1036, 100), Kept::Full);
        assert_eq!(next_deadline(&waiting), Some(now + LONGEST_WAIT));
        let mut late = |at| waiting.take(|_| Turn::Waits, |item| item.is_late(at)).late.len();
        assert_eq!(late(now + LONGEST_WAIT / 2), 0);
        assert_eq!(late(now + LONGEST_WAIT), MOST_PACKETS);
        assert_eq!(keep(&mut waiting, 1036, 100), Kept::Yes);
    }
}
