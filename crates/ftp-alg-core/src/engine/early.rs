//! Segments that overtook what precedes them, and wait for it.
//!
//! A segment past a gap does not go on, as nothing reaches a peer that was not read. Where a host sends on two
//! processors, or the gateway receives on two, one packet overtakes another, and nothing is missing. If the
//! first of them is dropped, so is all that follows it: no acknowledgement tells its sender of that, as the
//! receiver has no gap, and both ends wait for the sender's timeouts. So whoever hands packets in may keep such a one, and
//! hand it in again when what precedes it was.
//!
//! Here is what the engine says of them, and a place to keep them. Nothing is kept of the session's: a
//! segment that waits was not read, and has changed nothing.

use std::time::{Duration, Instant};

use super::{Engine, Entry};
use crate::packet::{Endpoint, Packet, Seq};

/// So many wait at a time; of more, all is as if none could wait.
const MOST_PACKETS: usize = 256;
/// So many bytes.
const MOST_BYTES: usize = 4 << 20;
/// What precedes it was lost if it has not come by then: TCP sends again after 200 ms (Linux) to a second
/// (RFC 6298).
const LONGEST_WAIT: Duration = Duration::from_millis(500);

impl Engine {
    /// How things stand for an early packet.
    pub fn turn(&mut self, bytes: &[u8]) -> Turn {
        let Ok(packet) = Packet::parse(bytes) else { return Turn::Over };
        let Some(Entry { session, control }) = self.table.of_packet(&packet) else {
            return Turn::Over;
        };
        let from = control.side(packet.endpoints().0);
        if session.is_asking(from, &packet) {
            return Turn::Waits;
        }
        Turn::at(packet.seq(), session.next_of(from))
    }
}

/// How things stand for an early packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// What precedes it has not come, or its receiver has not said what it has.
    Waits,
    /// It is the next: to be handed in again.
    Due,
    /// It is not what came next: to be dropped. A stranger's would overlap with what was sent; one that was cut differently
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

/// One that waits.
#[derive(Clone, Debug)]
pub struct Early<T> {
    /// From its IP header on.
    pub bytes: Vec<u8>,
    /// What it was kept with.
    pub with: T,
    flow: (Endpoint, Endpoint),
    seq: Seq,
    end: Seq,
    since: Instant,
}

/// What became of an early packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It waits.
    Yes,
    /// There is no room.
    Full,
    /// It is one that waits, sent again: its sender does not know of what precedes it as missing, and
    /// the receiver may have that.
    Again,
}

/// What does not wait any longer.
#[derive(Debug)]
pub struct Taken<T> {
    /// What is due, with what follows it without a gap, in order: to be handed in.
    pub due: Vec<Early<T>>,
    /// What has waited for too long: to be handed in without patience, as it would have been at once.
    pub late: Vec<Early<T>>,
    /// What is to be dropped.
    pub over: Vec<Early<T>>,
}

/// Packets that wait, those of a flow in the order of their numbers.
#[derive(Debug)]
pub struct Waiting<T> {
    packets: Vec<Early<T>>,
    bytes: usize,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { packets: Vec::new(), bytes: 0 }
    }
}

impl<T> Waiting<T> {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Keeps a packet on which the verdict was [`Verdict::Early`](super::Verdict::Early).
    pub fn keep(&mut self, now: Instant, bytes: &[u8], with: T) -> Kept {
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
        let early = Early { bytes: bytes.to_vec(), with, flow, seq, end, since: now };
        self.packets.insert(at, early);
        Kept::Yes
    }

    /// Takes out all that does not wait any longer, where `turn` is as [`Engine::turn`].
    pub fn take(&mut self, now: Instant, mut turn: impl FnMut(&[u8]) -> Turn) -> Taken<T> {
        let mut taken = Taken { due: Vec::new(), late: Vec::new(), over: Vec::new() };
        for early in std::mem::take(&mut self.packets) {
            let turn = match taken.due.last() {
                Some(last) if last.flow == early.flow => Turn::at(early.seq, last.end),
                _ => turn(&early.bytes),
            };
            match turn {
                Turn::Due => taken.due.push(early),
                Turn::Waits if now.saturating_duration_since(early.since) < LONGEST_WAIT => {
                    self.packets.push(early);
                    continue;
                }
                Turn::Waits => taken.late.push(early),
                Turn::Over => taken.over.push(early),
            }
        }
        self.bytes = self.packets.iter().map(|early| early.bytes.len()).sum();
        taken
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

    fn numbers(early: &[Early<()>]) -> Vec<u32> {
        early.iter().map(|early| early.seq.0).collect()
    }

    #[test]
    fn what_follows_one_that_is_due_is_due_with_it_in_the_order_of_numbers() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        // Numbers go round; 30 is past a gap.
        for seq in [5, 0, u32::MAX - 4, 30] {
            assert_eq!(waiting.keep(now, &segment(CLIENT, seq), ()), Kept::Yes);
            assert_eq!(waiting.keep(now, &segment(OTHER, seq), ()), Kept::Yes);
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
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for count in 0..MOST_PACKETS {
            let kept = waiting.keep(now, &segment(CLIENT, 10 * count as u32), ());
            assert_eq!(kept, Kept::Yes);
        }
        assert_eq!(waiting.keep(now, &segment(CLIENT, 100), ()), Kept::Again);
        assert_eq!(waiting.keep(now, &segment(OTHER, 100), ()), Kept::Full);
        assert!(waiting.take(now + LONGEST_WAIT / 2, |_| Turn::Waits).late.is_empty());
        assert_eq!(waiting.take(now + LONGEST_WAIT, |_| Turn::Waits).late.len(), MOST_PACKETS);
        assert_eq!(waiting.keep(now, &segment(OTHER, 100), ()), Kept::Yes);
    }
}
