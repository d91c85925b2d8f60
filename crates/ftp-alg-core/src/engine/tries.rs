//! Data connections of encrypted sessions that the firewall drops, because the rules do not admit them.
//!
//! The rules copy such a SYN before any filter. If no filter drops the SYN, conntrack knows it when it is looked up.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{Event, MissingConnection, PACKETS_WAIT, RangeFinder, ranges::NotAdmitted};

/// How long the same client tries to reach the same port: SYNs are retransmitted for two minutes.
const LIFETIME: Duration = Duration::from_secs(130);
/// Limit of stored SYNs. Further SYNs are not stored.
const MAX_TRIES: usize = 1024;

/// Limit of stored SYNs of one client, so that there is room for others.
const MAX_OF_CLIENT: usize = 64;

/// A SYN that was copied.
struct Try {
    seen: Instant,
    /// The report of the SYN, until it is made.
    missing: Option<Event<MissingConnection>>,
}

/// The connections that clients tried to make, by client and dialled port.
#[derive(Default)]
pub struct Tries {
    finder: RangeFinder,
    known: BTreeMap<(SocketAddr, SocketAddr), Try>,
}

impl Tries {
    /// None, of the ranges that `finder` knows.
    pub fn new(finder: RangeFinder) -> Self {
        Self { finder, ..Self::default() }
    }

    /// Notes the SYN of a client to what it `dialled`.
    pub fn note(&mut self, seen: Instant, client: SocketAddr, dialled: SocketAddr) {
        if !self.has_room_for(client.ip()) || self.known.contains_key(&(client, dialled)) {
            return;
        }
        let Some((tried, why)) = self.finder.find_tried(client.ip(), dialled) else {
            return;
        };
        let (server, port) = (tried.server.ip(), dialled.port());
        let missing = tried.map(|ends| match why {
            NotAdmitted::OverLimit => {
                let reason = "its client has as many of encrypted sessions as max-pinholes-per-client allows";
                MissingConnection::new(ends, reason.to_owned())
            }
            NotAdmitted::NoPorts | NotAdmitted::OtherPort => MissingConnection {
                ends,
                reason: format!(
                    "the firewall has dropped it: port {port} is not among the passive-ports of {server}"
                ),
                encrypted: true,
                misses_range: why == NotAdmitted::OtherPort,
            },
        });
        self.known.insert((client, dialled), Try { seen, missing: Some(missing) });
    }

    fn has_room_for(&self, client: IpAddr) -> bool {
        let first = (SocketAddr::new(client, 0), SocketAddr::from(([0; 4], 0)));
        let of_client = self.known.range(first..).take_while(|((of, _), _)| of.ip() == client);
        self.known.len() < MAX_TRIES && of_client.count() < MAX_OF_CLIENT
    }

    /// Takes the tries that the firewall has dropped: conntrack does not know their connections a moment later.
    pub fn take_dropped(
        &mut self,
        now: Instant,
        knows: impl Fn(SocketAddr, SocketAddr) -> bool,
    ) -> Vec<Event<MissingConnection>> {
        let mut dropped = Vec::new();
        for ((client, dialled), tried) in &mut self.known {
            if tried.seen + PACKETS_WAIT <= now
                && let Some(missing) = tried.missing.take()
                && !knows(*client, *dialled)
            {
                dropped.push(missing);
            }
        }
        self.known.retain(|_, tried| now < tried.seen + LIFETIME);
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_room_for_others() {
        let [before, one, behind] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let mut tries = Tries::default();
        for port in 0..MAX_OF_CLIENT {
            assert!(tries.has_room_for(one), "{port}");
            let ends = (SocketAddr::new(one, 40000 + port as u16), SocketAddr::new(behind, 50000));
            tries.known.insert(ends, Try { seen: Instant::now(), missing: None });
        }
        assert_eq!(
            [before, one, behind].map(|client| tries.has_room_for(client)),
            [true, false, true]
        );
    }
}
