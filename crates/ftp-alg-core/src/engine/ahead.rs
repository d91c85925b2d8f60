//! Looking ahead: what is known of the connections of several packets is looked up at once.

use super::{
    Sessions,
    table::{APPROACHED, Key},
};
use crate::packet::Packet;

/// So few sessions are in a processor's own cache anyhow.
const FEW_SESSIONS: usize = 4096;

impl Sessions {
    /// Prepares for packets that are taken next, and decides nothing. Where there are more sessions than a
    /// cache holds each packet waits for memory, and here for that of all at once.
    pub fn expect<'p>(&self, packets: impl Iterator<Item = &'p [u8]>) {
        if self.table.len() < FEW_SESSIONS {
            return;
        }
        let mut keys = [Key::default(); APPROACHED];
        let mut packets = packets.filter_map(|bytes| Packet::parse(bytes).ok()).peekable();
        while packets.peek().is_some() {
            let mut count = 0;
            for (key, packet) in keys.iter_mut().zip(&mut packets) {
                let (source, destination) = packet.endpoints();
                *key = Key::between(source, destination);
                count += 1;
            }
            self.table.approach(&keys[..count]);
        }
    }
}
