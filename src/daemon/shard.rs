//! Shards: an engine with its journal, and the connections that are its own.
//!
//! With `fanout = "connection"` they are those of one queue, as the kernel keeps a connection there; with
//! `fanout = "cpu"` those that their two endpoints fall to, as each packet comes by the queue of the
//! processor that it is on. A thread holds one engine at a time, and asks nothing of the kernel meanwhile. Of a shard's
//! two locks the engine's is taken first.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ftp_alg_core::{
    engine::{Effects, Engine},
    packet::{Endpoint, Packet},
};

use super::state::Journal;

/// An engine, and where it is written what it knows.
pub(super) struct Shard {
    pub(super) engine: Mutex<Engine>,
    pub(super) journal: Mutex<Journal>,
}

impl Shard {
    /// Concludes a batch, and writes its records. The journal is taken before the engine is given back, so that records come
    /// in the order in which batches were concluded.
    pub(super) fn conclude(&self, effects: &mut Effects) -> io::Result<()> {
        let mut engine = lock(&self.engine);
        engine.conclude(effects);
        let mut journal = lock(&self.journal);
        drop(engine);
        journal.write(effects.records())?;
        if !journal.is_outgrown() {
            return Ok(());
        }
        drop(journal);
        let mut engine = lock(&self.engine);
        lock(&self.journal).recover(&mut engine)
    }

    /// Packets passed by unread for some time, of any of its connections. Not by `carry_out`: nothing is asked or given, and
    /// it must be written before the next sign of life.
    pub(super) fn lapse(&self) -> io::Result<()> {
        let mut effects = Effects::default();
        let mut engine = lock(&self.engine);
        engine.lapse();
        engine.take_records(&mut effects);
        let mut journal = lock(&self.journal);
        drop(engine);
        journal.write(effects.records())
    }

    /// What to say where the journal cannot be written.
    pub(super) fn not_kept(&self, error: &io::Error) -> String {
        lock(&self.journal).not_kept(error)
    }
}

/// A worker that panicked ends the daemon; until then its engine can be looked at. All else that a panic leaves is whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which shard a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// This one: all packets of its connection come by this queue.
    Queue(usize),
    /// One of so many, the same for both directions of a connection, and after a restart.
    Endpoints(usize),
}

impl Home {
    pub(super) fn of(self, bytes: &[u8]) -> usize {
        match self {
            Self::Queue(shard) => shard,
            Self::Endpoints(0 | 1) => 0,
            Self::Endpoints(shards) => Packet::parse(bytes).map_or(0, |packet| {
                let one = |end: Endpoint| {
                    // Odd numbers without a pattern; who chooses ports to meet may meet others of his own.
                    let folded = end.low ^ end.high.rotate_left(32);
                    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(end.port_and_family()))
                        .wrapping_mul(0xd6e8_feb8_6659_fd93)
                };
                let (a, b) = packet.endpoints();
                let both = one(a).wrapping_add(one(b));
                let mixed = (both ^ (both >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
                ((mixed >> 32) % shards as u64) as usize
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP segment without payload, from `a` to `b`, each an address's last byte and a port.
    fn segment(a: (u8, u16), b: (u8, u16)) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[..4].copy_from_slice(&[0x45, 0, 0, 40]);
        packet[8..10].copy_from_slice(&[64, 6]);
        packet[12..20].copy_from_slice(&[10, 0, 0, a.0, 192, 0, 2, b.0]);
        if a.0 > b.0 {
            packet[12..20].copy_from_slice(&[192, 0, 2, a.0, 10, 0, 0, b.0]);
        }
        packet[20..22].copy_from_slice(&a.1.to_be_bytes());
        packet[22..24].copy_from_slice(&b.1.to_be_bytes());
        packet[32] = 0x50;
        packet
    }

    #[test]
    fn both_directions_are_at_home_in_one_shard_and_connections_in_all() {
        let home = Home::Endpoints(4);
        let mut counts = [0; 4];
        for port in 1024..2024 {
            let (client, server) = ((2, port), (9, 21));
            let there = home.of(&segment(client, server));
            assert_eq!(there, home.of(&segment(server, client)));
            counts[there] += 1;
        }
        assert!(counts.iter().all(|count| (180..320).contains(count)), "{counts:?}");
        assert_eq!(home.of(b"not a packet"), 0);
        assert_eq!(Home::Queue(3).of(&segment((2, 1024), (9, 21))), 3);
        // Journals of before a restart, and of another build, must be found.
        let known =
            [1024, 1025, 1026, 1027, 1028].map(|port| home.of(&segment((2, port), (9, 21))));
        assert_eq!(known, [2, 1, 0, 2, 1]);
    }
}
