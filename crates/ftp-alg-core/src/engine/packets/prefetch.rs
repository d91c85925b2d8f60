//! Prefetching: loads the table entries of several packets into the cache at once.

use crate::{
    engine::{
        Sessions,
        table::{Key, PREFETCHED},
    },
    packet::Packet,
};

/// Up to this many sessions are cached anyway.
const FEW_SESSIONS: usize = 4096;

impl Sessions {
    /// Prepares for the next packets, without decisions. With more sessions than a cache holds, each packet would wait
    /// for memory; here all of them wait once.
    pub fn prefetch<'p>(&self, packets: impl Iterator<Item = &'p [u8]>) {
        if self.table.len() < FEW_SESSIONS {
            return;
        }
        let mut keys = [Key::default(); PREFETCHED];
        let mut packets = packets.filter_map(|bytes| Packet::parse(bytes).ok()).peekable();
        while packets.peek().is_some() {
            let mut count = 0;
            for (key, packet) in keys.iter_mut().zip(&mut packets) {
                let (source, destination) = packet.endpoints();
                *key = Key::between(source, destination);
                count += 1;
            }
            self.table.prefetch(&keys[..count]);
        }
    }
}
