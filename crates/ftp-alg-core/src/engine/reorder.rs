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
    Arrival, DropReason, Effects, Engine, Entry, Queued, Token, Verdict, decide::Deciding,
};
use crate::packet::{Endpoint, Packet, Seq};

/// So many wait at a time; of more, all is as if none could wait.
const MOST_PACKETS: usize = 256;
/// So many bytes.
const MOST_BYTES: usize = 4 << 20;
/// What precedes it was lost if it has not come by then: TCP sends again after 200 ms (Linux) to a second
/// (RFC 6298).
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// How things stand for a packet that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// What precedes it has not come, or its receiver has not said what it has.
    Waits,
    /// It is the next.
    Due,
    /// It is not what came next. A stranger's would overlap with what was sent; one that was cut differently
    /// is sent again.
    Over,
}

impl Turn {
    fn at(seq: Seq, next: Seq) -> Self {
        if seq == next {
            Self::Due
        } else if seq.is_after(next) {
            Self::Waits
        } else {
            Self::Over
        }
    }
}

/// A packet that waits.
#[derive(Clone, Debug)]
struct Waiting {
    token: Token,
    bytes: Vec<u8>,
    how: Queued,
    flow: (Endpoint, Endpoint),
    seq: Seq,
    end: Seq,
    since: Instant,
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

/// What does not wait any longer.
#[derive(Debug, Default)]
struct Taken {
    /// What is due, with what follows it without a gap, in order.
    due: Vec<Waiting>,
    /// What has waited for too long: it is decided as it would have been at once.
    late: Vec<Waiting>,
    /// What is dropped.
    over: Vec<Waiting>,
}

/// Packets that wait, those of a flow in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct ReorderQueue {
    packets: Vec<Waiting>,
    bytes: usize,
}

impl ReorderQueue {
    /// When the oldest has waited for long enough.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        Some(self.packets.iter().map(|packet| packet.since).min()? + LONGEST_WAIT)
    }

    fn keep(&mut self, now: Instant, arrival: &Arrival<'_>) -> Kept {
        let Arrival { token, bytes, how } = *arrival;
        let Ok(packet) = Packet::parse(bytes) else { return Kept::Full };
        let (flow, seq) = (packet.endpoints(), packet.seq());
        let mut at = self.packets.len();
        for (index, other) in self.packets.iter().enumerate().rev() {
            if other.flow != flow {
                continue;
            }
            if other.seq == seq {
                return Kept::Again;
            }
            if other.seq.is_before(seq) {
                break;
            }
            at = index;
        }
        if self.packets.len() >= MOST_PACKETS || self.bytes + bytes.len() > MOST_BYTES {
            return Kept::Full;
        }
        self.bytes += bytes.len();
        let end = seq + packet.payload().len() as u32;
        // Of what the packet selection said then, what ended a calm is long over.
        let how = Queued { ended_calm: false, ended_calm_before: false, ..how };
        let bytes = bytes.to_vec();
        self.packets.insert(at, Waiting { token, bytes, how, flow, seq, end, since: now });
        Kept::Yes
    }

    /// Takes out all that does not wait any longer.
    fn take(&mut self, now: Instant, mut turn: impl FnMut(&[u8]) -> Turn) -> Taken {
        let mut taken = Taken::default();
        for packet in std::mem::take(&mut self.packets) {
            let turn = match taken.due.last() {
                Some(last) if last.flow == packet.flow => Turn::at(packet.seq, last.end),
                _ => turn(&packet.bytes),
            };
            match turn {
                Turn::Due => taken.due.push(packet),
                Turn::Waits if now.saturating_duration_since(packet.since) < LONGEST_WAIT => {
                    self.packets.push(packet);
                    continue;
                }
                Turn::Waits => taken.late.push(packet),
                Turn::Over => taken.over.push(packet),
            }
        }
        self.bytes = self.packets.iter().map(|packet| packet.bytes.len()).sum();
        taken
    }
}

impl Engine {
    /// Has a packet wait for what it overtook.
    #[cold]
    pub(super) fn reorder(&mut self, now: Instant, packet: Arrival<'_>, effects: &mut Effects) {
        let impatient = Arrival { how: Queued { may_wait: false, ..packet.how }, ..packet };
        match self.reorder.keep(now, &packet) {
            Kept::Yes => {}
            Kept::Full => self.arrive(now, impatient, effects),
            Kept::Again => {
                // As the first time.
                self.arrive(now, impatient, effects);
                let first = effects.verdicts.pop_if(|released| released.token == packet.token);
                match first {
                    Some(first) if !matches!(first.verdict, Verdict::Drop(_)) => {
                        effects.verdicts.push(first);
                    }
                    Some(_) => self.arrive(now, impatient, effects),
                    None => {}
                }
            }
        }
    }

    /// Goes on with packets of the reorder queue whose predecessors have come, or that have waited for long enough.
    pub(super) fn release_ordered(&mut self, now: Instant, effects: &mut Effects) {
        while !self.reorder.packets.is_empty() {
            let mut queue = std::mem::take(&mut self.reorder);
            let Taken { due, late, over } = queue.take(now, |bytes| self.turn(bytes));
            self.reorder = queue;
            for Waiting { token, bytes, how, .. } in over {
                let packet = Arrival { token, bytes: &bytes, how };
                let verdict = Verdict::Drop(DropReason::Overlap);
                self.release(packet, verdict, Deciding::UNKNOWN, effects);
            }
            let has_more = !due.is_empty();
            for Waiting { token, bytes, how, .. } in due {
                self.arrive(now, Arrival { token, bytes: &bytes, how }, effects);
            }
            for Waiting { token, bytes, how, .. } in late {
                let how = Queued { may_wait: false, ..how };
                self.arrive(now, Arrival { token, bytes: &bytes, how }, effects);
            }
            if !has_more {
                return;
            }
        }
    }

    /// How things stand for a packet that waits.
    fn turn(&mut self, bytes: &[u8]) -> Turn {
        let Ok(packet) = Packet::parse(bytes) else { return Turn::Over };
        let Some(Entry { session, control }) = self.table.of_packet(&packet) else {
            return Turn::Over;
        };
        let from = control.side(packet.endpoints().0);
        if control.busy || session.is_asking(from, &packet) {
            return Turn::Waits;
        }
        Turn::at(packet.seq(), session.next_of(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: (u8, u16) = (2, 1035);
    const OTHER: (u8, u16) = (2, 1036);

    /// A segment of five bytes to a server.
    fn segment((host, port): (u8, u16), seq: u32) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, host], [192, 0, 2, 9], 64)
            .tcp(port, 21, seq, 512)
            .ack(7);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"NOOP\r").unwrap();
        bytes
    }

    fn keep(queue: &mut ReorderQueue, now: Instant, bytes: &[u8]) -> Kept {
        let (token, how) = (Token::default(), Queued::default());
        queue.keep(now, &Arrival { token, bytes, how })
    }

    fn numbers(packets: &[Waiting]) -> Vec<u32> {
        packets.iter().map(|packet| packet.seq.0).collect()
    }

    #[test]
    fn what_follows_one_that_is_due_is_due_with_it_in_the_order_of_numbers() {
        let (mut waiting, now) = (ReorderQueue::default(), Instant::now());
        // Numbers go round; 30 is past a gap.
        for seq in [5, 0, u32::MAX - 4, 30] {
            assert_eq!(keep(&mut waiting, now, &segment(CLIENT, seq)), Kept::Yes);
            assert_eq!(keep(&mut waiting, now, &segment(OTHER, seq)), Kept::Yes);
        }
        let client = |next| {
            move |bytes: &[u8]| {
                let packet = Packet::parse(bytes).unwrap();
                let is_other = packet.endpoints().0.port() != CLIENT.1;
                if is_other { Turn::Waits } else { Turn::at(packet.seq(), Seq(next)) }
            }
        };
        let Taken { due, late, over } = waiting.take(now, client(u32::MAX - 9));
        assert!(due.is_empty() && late.is_empty() && over.is_empty());
        let Taken { due, over, .. } = waiting.take(now, client(u32::MAX - 4));
        assert_eq!((numbers(&due), numbers(&over)), (vec![u32::MAX - 4, 0, 5], vec![]));
        // What was sent has another boundary than what waits.
        let Taken { due, over, .. } = waiting.take(now, client(31));
        assert_eq!((numbers(&due), numbers(&over)), (vec![], vec![30]));
        assert_eq!(numbers(&waiting.take(now, |_| Turn::Due).due), [u32::MAX - 4, 0, 5]);
        assert_eq!(waiting.packets.len(), 1);
        assert_eq!(waiting.bytes, 45);
    }

    #[test]
    fn what_waits_too_long_or_is_too_much_or_comes_again_is_told() {
        let (mut waiting, now) = (ReorderQueue::default(), Instant::now());
        for count in 0..MOST_PACKETS {
            let kept = keep(&mut waiting, now, &segment(CLIENT, 10 * count as u32));
            assert_eq!(kept, Kept::Yes);
        }
        assert_eq!(keep(&mut waiting, now, &segment(CLIENT, 100)), Kept::Again);
        assert_eq!(keep(&mut waiting, now, &segment(OTHER, 100)), Kept::Full);
        assert!(waiting.take(now + LONGEST_WAIT / 2, |_| Turn::Waits).late.is_empty());
        assert_eq!(waiting.take(now + LONGEST_WAIT, |_| Turn::Waits).late.len(), MOST_PACKETS);
        assert_eq!(keep(&mut waiting, now, &segment(OTHER, 100)), Kept::Yes);
    }
}
