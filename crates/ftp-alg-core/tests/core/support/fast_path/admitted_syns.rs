//! The SYNs that pinholes admitted, as the program remembers them.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

const LIFETIME: Duration = Duration::from_secs(120);

/// The SYN of a data connection, as it arrives at the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSyn {
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    pub seq: u32,
}

#[derive(Default)]
pub struct AdmittedSyns {
    /// The last SYN that was admitted between two endpoints, and until when it is remembered.
    last: BTreeMap<[SocketAddrV4; 2], (u32, Duration)>,
    /// Until when the SYN of a pinhole of the rules is expected, by initiator and arrival.
    rules_pinholes: BTreeMap<(Ipv4Addr, SocketAddrV4), Duration>,
}

impl AdmittedSyns {
    /// Whether the SYN was admitted before, so that it consumes no pinhole.
    pub fn has(&self, now: Duration, syn: &DataSyn) -> bool {
        let last = self.last.get(&[syn.source, syn.destination]);
        last.is_some_and(|(seq, until)| *seq == syn.seq && *until > now)
    }

    pub fn insert(&mut self, now: Duration, syn: &DataSyn) {
        self.last.insert([syn.source, syn.destination], (syn.seq, now + LIFETIME));
    }

    /// The rules have a pinhole until then.
    pub fn insert_rules_pinhole(
        &mut self,
        initiator: Ipv4Addr,
        arrival: SocketAddrV4,
        until: Duration,
    ) {
        self.rules_pinholes.insert((initiator, arrival), until);
    }

    /// A SYN for which the program has no pinhole. Returns whether it is new, and one of the rules admits it.
    pub fn insert_if_of_rules(&mut self, now: Duration, syn: &DataSyn) -> bool {
        let ends = (*syn.source.ip(), syn.destination);
        let is_expected = self.rules_pinholes.get(&ends).is_some_and(|until| *until > now);
        let is_admitted = is_expected && !self.has(now, syn);
        if is_admitted {
            self.rules_pinholes.remove(&ends);
            self.insert(now, syn);
        }
        is_admitted
    }
}
