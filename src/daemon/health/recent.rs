//! What happened in the last minutes: counts, and distinct clients.
//!
//! Invariant: memory is bounded, whatever peers do.

use std::{
    collections::HashSet,
    mem,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ftp_alg_core::engine::ClientKey;

use super::names::MIN_CLIENTS;

/// A value for the present half of a window, and one for the previous half.
#[derive(Debug)]
pub(super) struct Halves<T> {
    window: Duration,
    this: T,
    previous: T,
    half_began: Instant,
}

impl<T: Default> Halves<T> {
    pub(super) fn new(now: Instant, window: Duration) -> Self {
        Self { window, this: T::default(), previous: T::default(), half_began: now }
    }

    /// Forgets what is old.
    fn roll(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.half_began);
        if age >= self.window / 2 {
            let ended = mem::take(&mut self.this);
            self.previous = if age < self.window { ended } else { T::default() };
            self.half_began = now;
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
}

/// A count of recent events.
#[derive(Debug)]
pub(super) struct RecentCount {
    total: u64,
    halves: Halves<u64>,
}

impl RecentCount {
    pub(super) fn new(now: Instant, window: Duration) -> Self {
        Self { total: 0, halves: Halves::new(now, window) }
    }

    /// Records that there were `total` events since the start. Returns how many of them are recent.
    pub(super) fn record(&mut self, now: Instant, total: u64) -> u64 {
        *self.halves.this_mut(now) += total.saturating_sub(self.total);
        self.total = total;
        self.halves.both(now).into_iter().sum()
    }
}

/// The distinct clients of recent events. Counts to [`MIN_CLIENTS`], and stores no more.
#[derive(Debug)]
pub(super) struct RecentClients(Halves<HashSet<ClientKey>>);

impl RecentClients {
    pub(super) fn new(now: Instant, window: Duration) -> Self {
        Self(Halves::new(now, window))
    }

    pub(super) fn record(&mut self, now: Instant, client: SocketAddr) {
        let clients = self.0.this_mut(now);
        if clients.len() < MIN_CLIENTS {
            clients.insert(client.ip().into());
        }
    }

    /// How many there are, at most [`MIN_CLIENTS`].
    pub(super) fn count(&mut self, now: Instant) -> usize {
        let [previous, this] = self.0.both(now);
        previous.union(this).count().min(MIN_CLIENTS)
    }
}

/// The servers of recent events: whether there is only one.
#[derive(Debug)]
pub(super) struct RecentServer(Halves<HashSet<IpAddr>>);

impl RecentServer {
    pub(super) fn new(now: Instant, window: Duration) -> Self {
        Self(Halves::new(now, window))
    }

    pub(super) fn record(&mut self, now: Instant, server: SocketAddr) {
        let servers = self.0.this_mut(now);
        if servers.len() < 2 {
            servers.insert(server.ip());
        }
    }

    /// The server, if there is only one.
    pub(super) fn only(&mut self, now: Instant) -> Option<IpAddr> {
        let [previous, this] = self.0.both(now);
        let mut servers = previous.union(this);
        servers.next().filter(|_| servers.next().is_none()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(600);

    #[test]
    fn old_events_are_not_counted() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let mut recent = RecentCount::new(start, WINDOW);
        assert_eq!(recent.record(at(0), 3), 3);
        assert_eq!(recent.record(at(4), 5), 5);
        assert_eq!(recent.record(at(5), 6), 6, "another half begins");
        assert_eq!(recent.record(at(9), 6), 6);
        assert_eq!(recent.record(at(10), 6), 1);
        assert_eq!(recent.record(at(15), 6), 0);
        assert_eq!(recent.record(at(16), 9), 3);
        assert_eq!(recent.record(at(60), 9), 0);
    }

    #[test]
    fn distinct_clients_are_counted_with_bounded_memory() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let client = |last: u8, port| SocketAddr::from(([192, 0, 2, last], port));
        let mut clients = RecentClients::new(start, WINDOW);
        for port in 1..100 {
            clients.record(at(0), client(1, port));
        }
        assert_eq!(clients.count(at(1)), 1, "the same one");
        clients.record(at(6), client(1, 5));
        clients.record(at(6), client(2, 5));
        assert_eq!(clients.count(at(7)), 2, "one in both halves");
        for last in 3..200 {
            clients.record(at(7), client(last, 5));
        }
        assert_eq!(clients.count(at(7)), MIN_CLIENTS);
        assert!(clients.0.this.len() <= MIN_CLIENTS);
        assert_eq!(clients.count(at(30)), 0);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let start = Instant::now();
        let mut clients = RecentClients::new(start, WINDOW);
        for text in ["[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8:0:1::1]:1"] {
            clients.record(start, text.parse().unwrap());
        }
        assert_eq!(clients.count(start), 2);
    }
}
