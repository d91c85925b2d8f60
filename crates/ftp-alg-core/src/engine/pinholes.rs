//! Which pinholes are open or in use, over all sessions: external ports are given out once, each
//! client has a limit, and unused pinholes end at their deadline.
//!
//! A port stays given out while a transfer uses it: a server that connects from port 20 would
//! otherwise meet its own earlier connection to the same port.
//!
//! Engines beside each other have ports and limits in common: to the kernel a pinhole is its
//! initiator and arrival, so that one engine closing its own could close another's.

use std::{
    collections::{VecDeque, hash_map::Entry},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ahash::{AHashMap, RandomState};
use serde::{Deserialize, Serialize};

use super::{Opening, Pinhole, Translation};
use crate::{ftp::Kind, policy::Policy};

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
    /// Whose it is, as [`share_of`] has it.
    client: IpAddr,
    /// Tells it from others with the same endpoints.
    serial: u64,
}

/// A [`Held`] as a record has it.
#[derive(Serialize, Deserialize)]
pub struct SavedPinhole {
    pinhole: Pinhole,
    kind: Kind,
    /// Milliseconds since the records' epoch.
    pub deadline: u64,
    answered: bool,
    in_use: bool,
}

/// Why no pinhole can be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The client has as many unused ones as it may.
    Limit(usize),
    /// There are as many as there may be, or the client has too large a part of them.
    Full(&'static str),
    /// No external port was free.
    NoPort,
}

/// A pinhole that is being opened, with its external port reserved.
#[derive(Debug)]
pub struct Proposal {
    /// The pinhole.
    pub pinhole: Pinhole,
    kind: Kind,
    client: IpAddr,
    lifetime: Duration,
    serial: u64,
    /// How the external ports are drawn, and how many were.
    draws: Draws,
    /// The pinhole with the same endpoints that this one takes the place of.
    replaced: Option<(SocketAddr, u64)>,
}

/// A pinhole that the kernel was asked to open.
#[derive(Debug)]
pub struct Attempt {
    pub proposal: Proposal,
    /// The address that the announcement will name.
    pub named: IpAddr,
    /// Whether the server meant itself by another address.
    pub healed: bool,
}

impl Proposal {
    /// What the kernel is asked for, on behalf of this control connection.
    pub fn opening(&self, control: Translation) -> Opening {
        let Self { pinhole, kind, lifetime, .. } = *self;
        Opening { pinhole, control, from_client: !kind.is_active(), lifetime }
    }
}

/// The external ports that are tried, in an order of their own.
#[derive(Clone, Copy, Debug)]
struct Draws {
    announced: u16,
    /// How many bytes there are for the port.
    room: Option<usize>,
    seed: u64,
    tried: usize,
}

/// A deadline, in the order in which they come.
struct Deadline {
    at: Instant,
    owner: u32,
    serial: u64,
}

/// How many random ports are tried when the announced one is taken.
const PORT_TRIES: usize = 32;
/// How many of the right length are tried before those.
const FITTING_TRIES: usize = 4;
/// Among how many one of the right length is looked for. Of those below 10000, with one digit fewer, every
/// fiftieth is written with four characters in a `PORT`.
const FITTING_DRAWS: usize = 256;

/// How many spent pinholes may wait for an opening that takes them along.
const MAX_SPENT: usize = 32;

/// Of all pinholes that there can be, one client may hold this part unused, and this part with those in use.
const UNUSED_PART: usize = 4;
const HELD_PART: usize = 8;

/// What the tables of engines beside each other have in common.
#[derive(Default)]
struct Common {
    /// Initiator and arrival of each pinhole, with where it leads and its serial.
    ports: AHashMap<(IpAddr, SocketAddr), (SocketAddr, u64)>,
    /// How many pinholes have each initiator and target: their source is translated by these.
    sources: AHashMap<(IpAddr, SocketAddr), u32>,
    per_client: AHashMap<IpAddr, Share>,
    serial: u64,
}

/// What a client has of all pinholes.
#[derive(Default)]
struct Share {
    unused: usize,
    /// Those in use as well.
    held: usize,
}

/// Whom a client's pinholes count for: an IPv6 host has a whole /64 to itself.
fn share_of(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
    }
}

/// All pinholes of one engine.
pub struct PinholeTable {
    common: Arc<Mutex<Common>>,
    /// How many there may be.
    capacity: usize,
    deadlines: VecDeque<Deadline>,
    /// Closed here, still to be closed in the kernel.
    closing: Vec<Held>,
    /// As those, but most likely used up, so that there is no hurry.
    spent: Vec<Held>,
    random: RandomState,
}

impl Default for PinholeTable {
    fn default() -> Self {
        Self {
            common: Arc::default(),
            capacity: usize::from(u16::MAX),
            deadlines: VecDeque::new(),
            closing: Vec::new(),
            spent: Vec::new(),
            random: RandomState::new(),
        }
    }
}

impl PinholeTable {
    /// An empty table for an engine beside this one's.
    pub fn beside(&self) -> Self {
        Self { common: Arc::clone(&self.common), capacity: self.capacity, ..Self::default() }
    }

    /// Reserves an external port for `wanted`, another one if the announced one is taken, or if that is not written
    /// with as many bytes as there is `room` for: an announcement that stays as long changes no numbers. What must be
    /// closed before it opens, and what may be closed with it, is added to `closed`.
    pub fn propose(
        &mut self,
        policy: &Policy,
        control: &Translation,
        (kind, room): (Kind, Option<usize>),
        wanted: Pinhole,
        closed: &mut Vec<Pinhole>,
    ) -> Result<Proposal, OpenError> {
        let client = share_of(control.client.ip());
        let mut common = lock(&self.common);
        self.closing.append(&mut self.spent);
        settle(&mut self.closing, &mut common, closed);
        common.check(client, policy.max_pinholes_per_client, self.capacity)?;
        let draws = Draws { announced: wanted.arrival.port(), room, seed: common.serial, tried: 0 };
        let lifetime = policy.pinhole_lifetime;
        let (pinhole, serial, replaced) = (wanted, 0, None);
        let mut proposal = Proposal { pinhole, kind, client, lifetime, serial, draws, replaced };
        reserve(&mut common, &mut proposal, policy, &self.random, closed)?;
        Ok(proposal)
    }

    /// The kernel has another pinhole at the port that was reserved: the next one.
    pub fn propose_again(
        &mut self,
        policy: &Policy,
        proposal: &mut Proposal,
        closed: &mut Vec<Pinhole>,
    ) -> Result<(), OpenError> {
        let mut common = lock(&self.common);
        common.withdraw(proposal);
        reserve(&mut common, proposal, policy, &self.random, closed)
    }

    /// The kernel did not open it.
    pub fn withdraw(&mut self, proposal: &Proposal) {
        lock(&self.common).withdraw(proposal);
    }

    /// It was opened, for the session `owner`.
    pub fn opened(&mut self, now: Instant, owner: u32, proposal: &Proposal) -> Held {
        let Proposal { pinhole, kind, client, lifetime, serial, .. } = *proposal;
        let (deadline, answered) = (now + lifetime, !kind.is_active());
        let held = Held { pinhole, kind, deadline, answered, in_use: false, client, serial };
        await_deadline(&mut self.deadlines, owner, &held);
        held
    }

    /// So many pinholes may be open at a time.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
    }

    /// Takes over a pinhole of a `client` from a record, for the session `owner`.
    pub fn restore(
        &mut self,
        owner: u32,
        client: IpAddr,
        saved: &SavedPinhole,
        deadline: Instant,
    ) -> Held {
        let SavedPinhole { pinhole, kind, answered, in_use, .. } = *saved;
        let mut common = lock(&self.common);
        common.serial += 1;
        let serial = common.serial;
        let client = share_of(client);
        let held = Held { pinhole, kind, deadline, answered, in_use, client, serial };
        common.enter(&pinhole, serial, (client, in_use));
        drop(common);
        await_deadline(&mut self.deadlines, owner, &held);
        held
    }

    /// Whether a session of any engine beside this one holds a pinhole with these endpoints.
    pub fn holds(&self, initiator: IpAddr, arrival: SocketAddr) -> bool {
        lock(&self.common).ports.contains_key(&(initiator, arrival))
    }

    /// A transfer uses `held`: it does not count for its client any more.
    pub fn used(&mut self, held: &mut Held) {
        if !std::mem::replace(&mut held.in_use, true) {
            lock(&self.common).uncount(held.client);
        }
    }

    /// The transfer that used `held` failed: it may be used again until its deadline.
    pub fn unused(&mut self, held: &mut Held) {
        if std::mem::replace(&mut held.in_use, false) {
            lock(&self.common).per_client.entry(held.client).or_default().unused += 1;
        }
    }

    /// Gives up `held`: at the next [`settle`](Self::settle) the kernel closes it, and its port is
    /// free again.
    pub fn close(&mut self, held: Held) {
        self.closing.push(held);
    }

    /// Gives up `held`, whose transfer is over. Its connection has used it up, unless the server says
    /// what is not so: it is closed with the next opening, or in [`settle_spent`](Self::settle_spent), and its port is
    /// free then.
    pub fn spend(&mut self, held: Held) {
        if held.in_use && self.spent.len() < MAX_SPENT {
            self.spent.push(held);
        } else {
            self.close(held);
        }
    }

    /// Adds to `closed` what was closed here, and is to be closed in the kernel.
    pub fn settle(&mut self, closed: &mut Vec<Pinhole>) {
        if !self.closing.is_empty() {
            settle(&mut self.closing, &mut lock(&self.common), closed);
        }
    }

    /// Has [`settle`](Self::settle) close what is spent, too.
    pub fn settle_spent(&mut self) {
        self.closing.append(&mut self.spent);
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
}

impl Common {
    /// Whether `client` may hold one more of `capacity`, and of the unused ones `most`.
    fn check(&self, client: IpAddr, most: usize, capacity: usize) -> Result<(), OpenError> {
        if self.ports.len() >= capacity {
            return Err(OpenError::Full("there are as many as it holds"));
        }
        let Some(Share { unused, held }) = self.per_client.get(&client) else { return Ok(()) };
        let most = most.min((capacity / UNUSED_PART).max(1));
        if *unused >= most {
            return Err(OpenError::Limit(most));
        }
        if *held >= (capacity / HELD_PART).max(most) {
            return Err(OpenError::Full("the client has its share of them"));
        }
        Ok(())
    }

    fn enter(&mut self, pinhole: &Pinhole, serial: u64, (client, in_use): (IpAddr, bool)) {
        let Pinhole { initiator, arrival, target, .. } = *pinhole;
        let before = self.ports.insert((initiator, arrival), (target, serial));
        if let Some((target, _)) = before {
            self.forget_source(initiator, target);
        }
        *self.sources.entry((initiator, target)).or_default() += 1;
        let share = self.per_client.entry(client).or_default();
        share.held += 1;
        share.unused += usize::from(!in_use);
    }

    /// What was reserved for `proposal` is free again.
    fn withdraw(&mut self, proposal: &Proposal) {
        let Proposal { pinhole, client, serial, replaced, .. } = *proposal;
        self.drop_one(client, false);
        if self.free(pinhole, serial)
            && let Some((target, serial)) = replaced
        {
            let Pinhole { initiator, arrival, .. } = pinhole;
            self.ports.insert((initiator, arrival), (target, serial));
            *self.sources.entry((initiator, target)).or_default() += 1;
        }
    }

    fn forget_source(&mut self, initiator: IpAddr, target: SocketAddr) {
        if let Entry::Occupied(mut count) = self.sources.entry((initiator, target)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// `pinhole` as it is to be closed: without its source translation, if another open one has the same.
    fn closing(&self, pinhole: &Pinhole) -> Pinhole {
        let Pinhole { initiator, target, .. } = *pinhole;
        match self.sources.get(&(initiator, target)) {
            Some(2..) => Pinhole { source: initiator, ..*pinhole },
            _ => *pinhole,
        }
    }

    /// Frees the endpoints of a pinhole, if they are still its own: they may have been opened again since, which closed
    /// it. Returns whether they were.
    fn free(&mut self, pinhole: Pinhole, serial: u64) -> bool {
        let Pinhole { initiator, arrival, target, .. } = pinhole;
        let is_open =
            self.ports.get(&(initiator, arrival)).is_some_and(|(_, open)| *open == serial);
        if is_open {
            self.ports.remove(&(initiator, arrival));
            self.forget_source(initiator, target);
        }
        is_open
    }

    fn uncount(&mut self, client: IpAddr) {
        if let Some(share) = self.per_client.get_mut(&client) {
            share.unused = share.unused.saturating_sub(1);
        }
    }

    /// The client does not hold `held` any more.
    fn drop_of(&mut self, held: &Held) {
        self.drop_one(held.client, held.in_use);
    }

    fn drop_one(&mut self, client: IpAddr, in_use: bool) {
        if !in_use {
            self.uncount(client);
        }
        if let Entry::Occupied(mut share) = self.per_client.entry(client) {
            share.get_mut().held = share.get().held.saturating_sub(1);
            if share.get().held == 0 {
                share.remove();
            }
        }
    }
}

fn await_deadline(deadlines: &mut VecDeque<Deadline>, owner: u32, held: &Held) {
    let Held { deadline: at, serial, .. } = *held;
    // The last place, but after a reload that shortens lifetimes.
    let place = deadlines.partition_point(|d| d.at <= at);
    deadlines.insert(place, Deadline { at, owner, serial });
}

/// The external ports to try in the place of `announced`, best first; others for each `seed`.
fn candidates<'a>(
    policy: &'a Policy,
    announced: u16,
    kind: Kind,
    room: Option<usize>,
    random: &'a RandomState,
    seed: u64,
) -> impl Iterator<Item = u16> + 'a {
    let fits = move |port: &u16| room.is_none_or(|room| kind.port_length(*port) == room);
    let draw = move |number: usize| policy.external_port(random.hash_one((seed, number)));
    let draws = if fits(&announced) { 0 } else { FITTING_DRAWS };
    let fitting = (0..draws).map_while(draw).filter(fits).take(FITTING_TRIES);
    let any = (draws..draws + PORT_TRIES).map_while(draw);
    fitting.chain([announced]).chain(any)
}

/// What a panic left is whole: an entry is written in one step.
fn lock(common: &Mutex<Common>) -> MutexGuard<'_, Common> {
    common.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds to `closed` what is in `closing`, except where the same endpoints were opened again since: that closed the
/// old one.
fn settle(closing: &mut Vec<Held>, common: &mut Common, closed: &mut Vec<Pinhole>) {
    for held in closing.drain(..) {
        common.drop_of(&held);
        let pinhole = common.closing(&held.pinhole);
        if common.free(held.pinhole, held.serial) {
            closed.push(pinhole);
        }
    }
}

/// Reserves the next external port for `proposal` that no other pinhole has.
fn reserve(
    common: &mut Common,
    proposal: &mut Proposal,
    policy: &Policy,
    random: &RandomState,
    closed: &mut Vec<Pinhole>,
) -> Result<(), OpenError> {
    let Draws { announced, room, seed, tried } = proposal.draws;
    for port in candidates(policy, announced, proposal.kind, room, random, seed).skip(tried) {
        proposal.draws.tried += 1;
        proposal.pinhole.arrival.set_port(port);
        let Pinhole { initiator, arrival, target, .. } = proposal.pinhole;
        let there = common.ports.get(&(initiator, arrival)).copied();
        match there {
            // Announced again.
            Some((there, _)) if there == target => closed.push(common.closing(&proposal.pinhole)),
            Some(_) => continue,
            None => {}
        }
        common.serial += 1;
        (proposal.serial, proposal.replaced) = (common.serial, there);
        common.enter(&proposal.pinhole, proposal.serial, (proposal.client, false));
        return Ok(());
    }
    Err(OpenError::NoPort)
}

impl Held {
    /// Whether this is the one with `serial`.
    pub fn is(&self, serial: u64) -> bool {
        self.serial == serial
    }

    /// As a record has it, with its deadline as that counts time.
    pub fn save(&self, deadline: u64) -> SavedPinhole {
        let Self { pinhole, kind, answered, in_use, .. } = *self;
        SavedPinhole { pinhole, kind, deadline, answered, in_use }
    }
}

#[cfg(test)]
#[path = "pinholes_tests.rs"]
mod tests;
