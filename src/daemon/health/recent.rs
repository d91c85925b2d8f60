//! What happened in the last minutes: counts, and distinct clients.
//!
//! Invariant: memory is bounded, whatever peers do.

use std::{
    collections::HashSet,
    mem,
    net::{IpAddr, SocketAddr},
    time::{Instant, SystemTime},
};

use ftp_alg_core::engine::ClientKey;

use super::{RECENT_WINDOW, names::MIN_CLIENTS};

/// A value for the present half of [`RECENT_WINDOW`], and one for the previous half.
#[derive(Debug, Default)]
pub(super) struct Halves<T> {
    this: T,
    previous: T,
    /// When the present half began, if it has.
    half_began: Option<Instant>,
}

impl<T: Default> Halves<T> {
    /// Forgets what is old.
    fn roll(&mut self, now: Instant) {
        let age = now.saturating_duration_since(*self.half_began.get_or_insert(now));
        if age >= RECENT_WINDOW / 2 {
            let ended = mem::take(&mut self.this);
            self.previous = if age < RECENT_WINDOW { ended } else { T::default() };
            self.half_began = Some(now);
        }
    }

    /// The value of the present half, to be changed.
    pub(super) fn this_mut(&mut self, now: Instant) -> &mut T {
        self.roll(now);
        &mut self.this
    }

    /// The values of the previous and the present half.
    pub(super) fn both(&mut self, now: Instant) -> [&T; 2] {
        self.roll(now);
        [&self.previous, &self.this]
    }

    /// Both values, to be changed.
    pub(super) fn both_mut(&mut self) -> [&mut T; 2] {
        [&mut self.previous, &mut self.this]
    }
}

/// A count of recent events.
#[derive(Debug, Default)]
pub(super) struct RecentCount {
    pub(super) total: u64,
    halves: Halves<u64>,
    /// When the last event was seen.
    pub(super) last_at: Option<SystemTime>,
}

impl RecentCount {
    /// Notes that there were `total` events since the start. Returns how many of them are recent.
    pub(super) fn note(&mut self, now: Instant, total: u64) -> u64 {
        let new = total.saturating_sub(self.total);
        *self.halves.this_mut(now) += new;
        if new > 0 {
            self.last_at = Some(SystemTime::now());
        }
        self.total = total;
        self.halves.both(now).into_iter().sum()
    }

    /// Forgets the recent events. `total` is their number since the start.
    pub(super) fn forget(&mut self, total: u64) {
        (self.halves, self.total) = (Halves::default(), total);
    }
}

/// Some of the distinct clients and servers of recent events: as many as decide.
#[derive(Debug, Default)]
pub(super) struct Peers {
    clients: HashSet<ClientKey>,
    servers: HashSet<IpAddr>,
}

impl Halves<Peers> {
    pub(super) fn note(&mut self, now: Instant, client: SocketAddr, server: SocketAddr) {
        let Peers { clients, servers } = self.this_mut(now);
        if clients.len() < MIN_CLIENTS {
            clients.insert(client.ip().into());
        }
        if servers.len() < 2 {
            servers.insert(server.ip());
        }
    }

    /// How many clients there are, at most [`MIN_CLIENTS`].
    pub(super) fn count_clients(&mut self, now: Instant) -> usize {
        let [previous, this] = self.both(now);
        previous.clients.union(&this.clients).count().min(MIN_CLIENTS)
    }

    /// The server, if there is only one.
    pub(super) fn only_server(&mut self, now: Instant) -> Option<IpAddr> {
        let [previous, this] = self.both(now);
        let mut servers = previous.servers.union(&this.servers);
        servers.next().filter(|_| servers.next().is_none()).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn old_events_are_not_counted() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let mut recent = RecentCount::default();
        assert_eq!(recent.note(at(0), 3), 3);
        assert_eq!(recent.note(at(4), 5), 5);
        assert_eq!(recent.note(at(5), 6), 6, "another half begins");
        assert_eq!(recent.note(at(9), 6), 6);
        assert_eq!(recent.note(at(10), 6), 1);
        assert_eq!(recent.note(at(15), 6), 0);
        assert_eq!(recent.note(at(16), 9), 3);
        assert_eq!(recent.note(at(60), 9), 0);
    }

    #[test]
    fn distinct_clients_are_counted_with_bounded_memory() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let server = "198.51.100.1:21".parse().unwrap();
        let mut peers = Halves::<Peers>::default();
        let mut note = |minutes, client: &str| {
            peers.note(at(minutes), client.parse().unwrap(), server);
            assert!(peers.this.clients.len() <= MIN_CLIENTS);
            peers.count_clients(at(minutes))
        };
        for (minutes, client, count) in [
            (0, "192.0.2.1:1", 1),
            (0, "192.0.2.1:2", 1),
            // One in both halves.
            (6, "192.0.2.1:5", 1),
            (6, "[2001:db8::1]:1", 2),
            // The same network of 64 bits.
            (6, "[2001:db8::2]:1", 2),
            (7, "192.0.2.3:5", MIN_CLIENTS),
            (7, "192.0.2.4:5", MIN_CLIENTS),
            (30, "192.0.2.1:1", 1),
        ] {
            assert_eq!(note(minutes, client), count, "{client}");
        }
    }
}
