//! The SYNs that pinholes admitted, as the program remembers them.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::layout::{PinholeKey, READMISSION_TIME, SYN_LIFETIME};

const LIFETIME: Duration = Duration::from_nanos(SYN_LIFETIME);
const READMISSION: Duration = Duration::from_nanos(READMISSION_TIME);

/// The SYN of a data connection, as it arrives at the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSyn {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub seq: u32,
}

struct Known {
    syn: DataSyn,
    since: Duration,
    /// The mark that the program gave it; `None` if the rules admitted the SYN, or if it has an answer.
    mark: Option<u32>,
}

#[derive(Default)]
pub struct AdmittedSyns {
    /// The last SYN that was admitted to a port with a sequence number.
    last: BTreeMap<(u16, u32), Known>,
    /// Until when the SYN of a pinhole of the rules is expected.
    rules_pinholes: BTreeMap<PinholeKey, Duration>,
}

impl DataSyn {
    fn key(&self) -> PinholeKey {
        PinholeKey::new(self.source.ip(), self.destination)
    }
}

impl AdmittedSyns {
    fn get(&self, now: Duration, syn: &DataSyn) -> Option<&Known> {
        let known = self.last.get(&(syn.destination.port(), syn.seq));
        known.filter(|known| known.syn == *syn && known.since + LIFETIME > now)
    }

    /// Whether the SYN was admitted before, so that it consumes no pinhole.
    pub fn has(&self, now: Duration, syn: &DataSyn) -> bool {
        self.get(now, syn).is_some()
    }

    /// The mark with which the SYN is admitted again, because it may have been dropped, and the rules have no pinhole
    /// for it.
    pub fn readmission(&self, now: Duration, syn: &DataSyn) -> Option<u32> {
        let known = self.get(now, syn).filter(|_| !self.is_expected(now, syn))?;
        known.mark.filter(|_| known.since + READMISSION >= now)
    }

    pub fn insert(&mut self, now: Duration, syn: &DataSyn, mark: Option<u32>) {
        let known = Known { syn: *syn, since: now, mark };
        self.last.insert((syn.destination.port(), syn.seq), known);
    }

    /// A SYN-ACK from this port. NAT may have translated its addresses.
    pub fn answer(&mut self, port: u16, ack: u32) {
        if let Some(known) = self.last.get_mut(&(port, ack.wrapping_sub(1))) {
            known.mark = None;
        }
    }

    /// The rules have a pinhole until then.
    pub fn insert_rules_pinhole(&mut self, key: PinholeKey, until: Duration) {
        self.rules_pinholes.insert(key, until);
    }

    fn is_expected(&self, now: Duration, syn: &DataSyn) -> bool {
        let until = self.rules_pinholes.get(&syn.key());
        until.is_some_and(|until| *until > now)
    }

    /// A SYN for which the program has no pinhole. Returns whether it is new, and one of the rules admits it.
    pub fn insert_if_of_rules(&mut self, now: Duration, syn: &DataSyn) -> bool {
        let is_admitted = self.is_expected(now, syn) && !self.has(now, syn);
        if is_admitted {
            self.rules_pinholes.remove(&syn.key());
            self.insert(now, syn, None);
        }
        is_admitted
    }
}
