//! Which pinholes are open or in use, over all sessions: external ports are given out once, each
//! client has a limit, and unused pinholes end at their deadline.
//!
//! A port stays given out while a transfer uses it: a server that connects from port 20 would
//! otherwise meet its own earlier connection to the same port.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use ahash::{AHashMap, RandomState};

use super::{Kernel, KernelError, Pinhole};
use crate::ftp::Kind;

/// A pinhole that a session holds.
#[derive(Clone, Debug)]
pub struct Held {
    /// The pinhole.
    pub pinhole: Pinhole,
    /// What announced it.
    pub kind: Kind,
    /// When it ends, if it is not used before.
    pub deadline: Instant,
    /// Whether the server has answered the announcement; a server's own counts as answered.
    pub answered: bool,
    /// Whether a transfer uses it.
    pub in_use: bool,
    /// Tells it from others with the same endpoints.
    serial: u64,
}

/// Why no pinhole was opened.
#[derive(Debug)]
pub enum OpenError {
    /// The client has as many as it may.
    Limit,
    /// No external port was free.
    NoPort,
    /// The kernel refused.
    Kernel(KernelError),
}

/// A deadline, in the order in which they come.
struct Deadline {
    at: Instant,
    owner: u32,
    serial: u64,
}

/// How many random ports are tried when the announced one is taken.
const PORT_TRIES: usize = 32;

/// All pinholes.
#[derive(Default)]
pub struct PinholeTable {
    /// Initiator and arrival of each, with where it leads and its serial.
    ports: AHashMap<(IpAddr, SocketAddr), (SocketAddr, u64)>,
    per_client: AHashMap<IpAddr, usize>,
    deadlines: VecDeque<Deadline>,
    /// Closed here, still to be closed in the kernel.
    closing: Vec<Pinhole>,
    serial: u64,
    random: RandomState,
}

impl PinholeTable {
    /// Opens `wanted` for the session `owner` of `client`, at another external port from `range`
    /// if the announced one is taken.
    #[allow(clippy::too_many_arguments)] // the parts of one request
    pub fn open(
        &mut self,
        now: Instant,
        lifetime: Duration,
        limit: usize,
        range: &RangeInclusive<u16>,
        (owner, client): (u32, IpAddr),
        kind: Kind,
        mut wanted: Pinhole,
        kernel: &mut impl Kernel,
    ) -> Result<Held, OpenError> {
        if self.per_client.get(&client).is_some_and(|n| *n >= limit) {
            return Err(OpenError::Limit);
        }
        // What is closed here must be closed there before the same endpoints open again.
        self.settle(kernel).map_err(OpenError::Kernel)?;
        let announced = wanted.arrival.port();
        for attempt in 0..=PORT_TRIES {
            wanted.arrival.set_port(if attempt == 0 { announced } else { self.random_port(range) });
            match self.ports.get(&(wanted.initiator, wanted.arrival)) {
                Some((target, _)) if *target == wanted.target => {
                    kernel.close(&wanted).map_err(OpenError::Kernel)?; // announced again
                }
                Some(_) => continue,
                None => {}
            }
            match kernel.open(&wanted, lifetime) {
                Ok(()) => {}
                Err(KernelError::Taken) => continue,
                Err(error) => return Err(OpenError::Kernel(error)),
            }
            self.serial += 1;
            let serial = self.serial;
            self.ports.insert((wanted.initiator, wanted.arrival), (wanted.target, serial));
            *self.per_client.entry(client).or_default() += 1;
            let deadline = now + lifetime;
            // The last place, but after a reload that shortens lifetimes.
            let place = self.deadlines.partition_point(|d| d.at <= deadline);
            self.deadlines.insert(place, Deadline { at: deadline, owner, serial });
            return Ok(Held {
                pinhole: wanted,
                kind,
                deadline,
                answered: !kind.is_active(),
                in_use: false,
                serial,
            });
        }
        Err(OpenError::NoPort)
    }

    /// A transfer uses `held`: it does not count for its client any more.
    pub fn used(&mut self, client: IpAddr, held: &mut Held) {
        if !std::mem::replace(&mut held.in_use, true) {
            self.uncount(client);
        }
    }

    /// The transfer that used `held` failed: it may be used again until its deadline.
    pub fn unused(&mut self, client: IpAddr, held: &mut Held) {
        if std::mem::replace(&mut held.in_use, false) {
            *self.per_client.entry(client).or_default() += 1;
        }
    }

    /// Gives up `held`: its port is free again, and the kernel closes it at the next
    /// [`settle`](Self::settle).
    pub fn close(&mut self, client: IpAddr, held: &Held) {
        if !held.in_use {
            self.uncount(client);
        }
        let key = (held.pinhole.initiator, held.pinhole.arrival);
        if self.ports.get(&key).is_some_and(|(_, serial)| *serial == held.serial) {
            self.ports.remove(&key);
            self.closing.push(held.pinhole);
        }
    }

    /// Closes in the kernel what was closed here.
    pub fn settle(&mut self, kernel: &mut impl Kernel) -> Result<(), KernelError> {
        let mut result = Ok(());
        for pinhole in self.closing.drain(..) {
            result = result.and(kernel.close(&pinhole));
        }
        result
    }

    /// Whether something is still to be closed in the kernel.
    pub fn is_settled(&self) -> bool {
        self.closing.is_empty()
    }

    /// The owner of the next pinhole whose deadline is over, with a way to tell it.
    pub fn next_expired(&mut self, now: Instant) -> Option<(u32, u64)> {
        let due = self.deadlines.front().is_some_and(|d| d.at <= now);
        due.then(|| self.deadlines.pop_front()).flatten().map(|d| (d.owner, d.serial))
    }

    /// When the next deadline is.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|d| d.at)
    }

    fn uncount(&mut self, client: IpAddr) {
        if let Some(count) = self.per_client.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.per_client.remove(&client);
            }
        }
    }

    fn random_port(&mut self, range: &RangeInclusive<u16>) -> u16 {
        self.serial += 1;
        let width = u64::from(range.end() - range.start()) + 1;
        let offset = self.random.hash_one(self.serial) % width;
        range.start() + offset as u16 // within the range
    }
}

impl Held {
    /// Whether this is the one with `serial`.
    pub fn is(&self, serial: u64) -> bool {
        self.serial == serial
    }
}
