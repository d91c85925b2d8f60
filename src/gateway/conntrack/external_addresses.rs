//! The addresses that clients use for servers, for connections with source and destination translation.
//!
//! Our rules store them in two sets whenever a packet of such a connection is queued, so the connection table need not
//! be dumped. The sets hold one pair for each published or intercepted server, however many connections there are. They
//! are read at most fifty times a second.

use std::{
    cmp::Reverse,
    ffi::CStr,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::gateway::netlink::{
    Socket,
    nft::{self, KeyParts},
};

const SETS: [&CStr; 2] = [c"external_addresses4", c"external_addresses6"];

/// Minimum interval between two reads. A client logs in before it announces anything, which takes as long.
const READ_INTERVAL: Duration = Duration::from_millis(20);

/// Number of addresses of one server that are tried, most recently used first.
const MAX_TRIED: usize = 16;

/// The content of the sets. One for each thread.
#[derive(Debug)]
pub(super) struct ExternalAddressLookup {
    socket: Socket,
    /// Servers and the addresses that clients use, most recently used first.
    known: Vec<(SocketAddr, SocketAddr)>,
    last_read: Option<Instant>,
}

impl ExternalAddressLookup {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { socket: Socket::open()?, known: Vec::new(), last_read: None })
    }

    /// The known addresses of `server`.
    pub(super) fn addresses_of(&self, server: SocketAddr) -> Vec<SocketAddr> {
        let of_server = self.known.iter().filter(|(of, _)| *of == server);
        of_server.map(|(_, external)| *external).take(MAX_TRIED).collect()
    }

    /// Reads the sets, unless they were read just before. Returns whether they were read.
    pub(super) fn refresh(&mut self) -> io::Result<bool> {
        let now = Instant::now();
        if self.last_read.is_some_and(|then| now.saturating_duration_since(then) < READ_INTERVAL) {
            return Ok(false);
        }
        self.last_read = Some(now);
        let mut known = Vec::new();
        for set in SETS {
            let read = nft::dump_set(&mut self.socket, set, |key, remaining| {
                known.extend(read_key(key).map(|pair| (Reverse(remaining), pair)));
            });
            match read {
                // A set that changes while it is read is complete enough.
                Ok(_) => {}
                // Without our table there are no sets.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        known.sort_unstable();
        self.known = known.into_iter().map(|(_, pair)| pair).collect();
        Ok(true)
    }
}

/// Server and external address.
fn read_key(key: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (mut parts, v6) = KeyParts::parse(key, 16, 40)?;
    Some((parts.endpoint(v6)?, parts.endpoint(v6)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_the_rules_write_them() {
        let v4 = [10, 0, 0, 9, 0, 21, 0, 0, 192, 0, 2, 1, 8, 73, 0, 0];
        let pair = ("10.0.0.9:21".parse().unwrap(), "192.0.2.1:2121".parse().unwrap());
        assert_eq!(read_key(&v4), Some(pair));
        let mut v6 = [0; 40];
        (v6[15], v6[17], v6[35], v6[36], v6[37]) = (9, 21, 1, 8, 73);
        let pair = ("[::9]:21".parse().unwrap(), "[::1]:2121".parse().unwrap());
        assert_eq!(read_key(&v6), Some(pair));
        for length in 0..60 {
            let key = vec![1; length];
            assert_eq!(read_key(&key).is_some(), [16, 40].contains(&length));
        }
    }
}
