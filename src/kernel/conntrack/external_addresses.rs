//! The addresses that clients dialled, for connections with source and destination translation.
//!
//! Our rules store them in maps whenever a packet with data of such a connection is queued, so the connection table
//! need not be dumped. The key is what our hooks see of the connection, so a look-up reads one element.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use crate::kernel::netlink::{
    Socket,
    nft::{self, KeyParts},
};

/// Reads single elements of the maps. One for each thread.
#[derive(Debug)]
pub(super) struct ExternalAddressLookup {
    socket: Socket,
    request: Vec<u8>,
}

impl ExternalAddressLookup {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { socket: Socket::open()?, request: Vec::new() })
    }

    /// The address that `client` dialled to reach `server`, if the rules have stored one.
    pub(super) fn dialled(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
    ) -> io::Result<Option<SocketAddr>> {
        let key = key(client, server);
        let mut read = |map| nft::map_data(&mut self.socket, &mut self.request, map, &key);
        let v6 = client.is_ipv6();
        let data = if v6 {
            let (address, port) = (read(c"external_addresses6")?, read(c"external_ports6")?);
            // A concatenation has whole 4-byte words.
            address.zip(port).map(|(address, port)| [&address[..], &port, &[0; 2]].concat())
        } else {
            read(c"external_addresses4")?
        };
        Ok(data.and_then(|data| KeyParts { rest: &data }.endpoint(v6)))
    }
}

/// The key of a connection whose packets show `client` and `server`. It has the last four bytes of an address.
fn key(client: SocketAddr, server: SocketAddr) -> [u8; 16] {
    let mut key = [0; 16];
    let (first, second) = key.split_at_mut(8);
    for (part, endpoint) in [(first, client), (second, server)] {
        let address = match endpoint.ip() {
            IpAddr::V4(address) => address.to_bits(),
            IpAddr::V6(address) => address.to_bits() as u32,
        };
        part[..4].copy_from_slice(&address.to_be_bytes());
        part[4..6].copy_from_slice(&endpoint.port().to_be_bytes());
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_that_the_rules_write() {
        let written = [10, 0, 0, 9, 4, 1, 0, 0, 192, 0, 2, 1, 8, 73, 0, 0];
        let of = |client: &str, server: &str| key(client.parse().unwrap(), server.parse().unwrap());
        assert_eq!(of("10.0.0.9:1025", "192.0.2.1:2121"), written);
        assert_eq!(of("[2001:db8::a00:9]:1025", "[2001:db8::c000:201]:2121"), written);
    }
}
