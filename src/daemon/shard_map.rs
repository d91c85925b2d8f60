//! Finds the shard of a connection: a hash of its two endpoints, which is the same for both directions and for each
//! queue that its packets arrive by.

use std::net::SocketAddr;

use ftp_alg_core::packet::{Endpoint, Packet};

/// The map for this number of shards.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShardMap(pub usize);

impl ShardMap {
    /// The shard of the connection that a packet belongs to; the first one if the packet cannot be parsed.
    pub(super) fn shard_of_packet(self, bytes: &[u8]) -> usize {
        if self.0 <= 1 {
            return 0;
        }
        Packet::parse(bytes).map_or(0, |packet| {
            let (source, destination) = packet.endpoints();
            self.shard_of_endpoints(source, destination)
        })
    }

    /// The shard of the connection between two endpoints.
    pub(super) fn shard_of_connection(self, one: SocketAddr, other: SocketAddr) -> usize {
        self.shard_of_endpoints(one.into(), other.into())
    }

    fn shard_of_endpoints(self, one: Endpoint, other: Endpoint) -> usize {
        let mix = |end: Endpoint| {
            // Odd multipliers without a pattern. An attacker who chooses ports that collide only fills the shard of the
            // attacker's own connections.
            let folded = end.low ^ end.high.rotate_left(32);
            (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(end.port_and_family()))
                .wrapping_mul(0xd6e8_feb8_6659_fd93)
        };
        let both = mix(one).wrapping_add(mix(other));
        let mixed = (both ^ (both >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        ((mixed >> 32) % self.0.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP segment without payload, from `a` to `b`: the last byte of an address, and a port.
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
    fn both_directions_have_one_shard_and_connections_use_all() {
        let map = ShardMap(4);
        let mut counts = [0; 4];
        for port in 1024..2024 {
            let (client, server) = ((2, port), (9, 21));
            let shard = map.shard_of_packet(&segment(client, server));
            assert_eq!(shard, map.shard_of_packet(&segment(server, client)));
            counts[shard] += 1;
        }
        assert!(counts.iter().all(|count| (180..320).contains(count)), "{counts:?}");
        assert_eq!(map.shard_of_packet(b"not a packet"), 0);
        assert_eq!(ShardMap(1).shard_of_packet(&segment((2, 1024), (9, 21))), 0);
        let ends = ["10.0.0.2:1027", "192.0.2.9:21"].map(|end| end.parse().unwrap());
        assert_eq!(
            map.shard_of_connection(ends[1], ends[0]),
            map.shard_of_packet(&segment((2, 1027), (9, 21)))
        );
    }
}
