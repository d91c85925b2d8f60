//! The SYNs that pinholes admitted, as the program remembers them.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::{collections::BTreeMap, net::SocketAddrV4, time::Duration};

const LIFETIME: Duration = Duration::from_secs(120);

/// The SYN of a data connection, as it arrives at the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSyn {
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    pub seq: u32,
}

/// The last SYN that was admitted between two endpoints, and until when it is remembered.
#[derive(Default)]
pub struct AdmittedSyns(BTreeMap<[SocketAddrV4; 2], (u32, Duration)>);

impl AdmittedSyns {
    /// Whether the SYN was admitted before, so that it consumes no pinhole.
    pub fn has(&self, now: Duration, syn: &DataSyn) -> bool {
        let last = self.0.get(&[syn.source, syn.destination]);
        last.is_some_and(|(seq, until)| *seq == syn.seq && *until > now)
    }

    pub fn insert(&mut self, now: Duration, syn: &DataSyn) {
        self.0.insert([syn.source, syn.destination], (syn.seq, now + LIFETIME));
    }
}
