//! Which pinholes are open or in use, over all sessions: external ports are given out once, each
//! client has a limit, and unused pinholes end at their deadline.
//!
//! A port stays given out while a transfer uses it: a server that connects from port 20 would
//! otherwise meet its own earlier connection to the same port. Engines beside each other give ports out together
//! ([`super::places`]).

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ahash::RandomState;
use serde::{Deserialize, Serialize};

use super::{
    Opening, Pinhole, Translation,
    deadlines::Deadlines,
    handover::Hole,
    places::{Closing, Common, OpenError, Place, Places, most_unused, share_of},
};
use crate::{
    ftp::{Kind, Zeros},
    policy::Policy,
};

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
    /// Where the program in the kernel opened it: no rule knows it.
    hole: Option<Hole>,
    /// Whether the program has it no more.
    pub is_consumed: bool,
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
    hole: Option<Hole>,
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
    replaced: Option<Place>,
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
    pub fn opening(&self, control: &Translation) -> Opening {
        let Self { pinhole, kind, lifetime, .. } = *self;
        Opening { pinhole, control: *control, from_client: !kind.is_active(), lifetime }
    }

    fn withdraw(&self, common: &mut Common, closed: &mut Vec<Closing>) {
        let Self { pinhole, client, serial, replaced, .. } = *self;
        closed.extend(common.withdraw(pinhole, serial, client, replaced));
    }
}

/// A pinhole of the program in the kernel that nobody wants any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shut {
    /// The pinhole.
    pub pinhole: Pinhole,
    /// Which one it must be.
    pub hole: Hole,
}

/// How a port is written into an announcement.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub kind: Kind,
    /// How many bytes there are for it, if it is to fill them.
    pub room: Option<usize>,
    pub zeros: Zeros,
}

/// The external ports that are tried, in an order of their own.
#[derive(Clone, Copy, Debug)]
struct Draws {
    announced: u16,
    form: Form,
    seed: u64,
    tried: usize,
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

/// All pinholes of one engine.
pub struct PinholeTable {
    places: Places,
    /// How many there may be.
    capacity: usize,
    deadlines: Deadlines,
    /// Closed here, still to be closed in the kernel.
    closing: Vec<Held>,
    /// As those, but most likely used up, so that there is no hurry.
    spent: Vec<Held>,
    /// Given up, and opened by the program in the kernel, which is still to be told.
    shut: Vec<Shut>,
    random: RandomState,
}

impl Default for PinholeTable {
    fn default() -> Self {
        Self {
            places: Places::default(),
            capacity: usize::from(u16::MAX),
            deadlines: Deadlines::default(),
            closing: Vec::new(),
            spent: Vec::new(),
            shut: Vec::new(),
            random: RandomState::new(),
        }
    }
}

impl PinholeTable {
    /// An empty table for an engine beside this one's.
    pub fn beside(&self) -> Self {
        Self { places: self.places.clone(), capacity: self.capacity, ..Self::default() }
    }

    /// Reserves an external port for `wanted`, another one if the announced one is taken, or if that is not written
    /// with as many bytes as its `form` has room for: an announcement that stays as long changes no numbers. What must be
    /// closed before it opens, and what may be closed with it, is added to `closed`, or to what the program
    /// [is to be told](Self::take_shut).
    pub fn propose(
        &mut self,
        policy: &Policy,
        control: &Translation,
        form: Form,
        wanted: Pinhole,
        closed: &mut Vec<Closing>,
    ) -> Result<Proposal, OpenError> {
        let client = share_of(control.client.ip());
        let mut common = self.places.lock();
        self.closing.append(&mut self.spent);
        settle(&mut self.closing, &mut common, closed, &mut self.shut);
        common.check(client, policy.max_pinholes_per_client, self.capacity)?;
        let draws = Draws { announced: wanted.arrival.port(), form, seed: common.serial, tried: 0 };
        let lifetime = policy.pinhole_lifetime;
        let (pinhole, kind, serial, replaced) = (wanted, form.kind, 0, None);
        let mut proposal = Proposal { pinhole, kind, client, lifetime, serial, draws, replaced };
        reserve(&mut common, &mut proposal, policy, &self.random, (closed, &mut self.shut))?;
        Ok(proposal)
    }

    /// The kernel has another pinhole at the port that was reserved: the next one.
    pub fn propose_again(
        &mut self,
        policy: &Policy,
        proposal: &mut Proposal,
        closed: &mut Vec<Closing>,
    ) -> Result<(), OpenError> {
        let mut common = self.places.lock();
        proposal.withdraw(&mut common, closed);
        reserve(&mut common, proposal, policy, &self.random, (closed, &mut self.shut))
    }

    /// The kernel did not open it. What it was to take the place of may have to be closed, by `closed`.
    pub fn withdraw(&mut self, proposal: &Proposal, closed: &mut Vec<Closing>) {
        proposal.withdraw(&mut self.places.lock(), closed);
    }

    /// The kernel opened it, and nobody wants it any more.
    pub fn abandon(&mut self, proposal: &Proposal, closed: &mut Vec<Closing>) {
        let Proposal { pinhole, client, serial, .. } = *proposal;
        closed.extend(self.places.lock().give_up(pinhole, serial, (client, false)));
    }

    /// It was opened, for the session `owner`.
    pub fn opened(&mut self, now: Instant, owner: u32, proposal: &Proposal) -> Held {
        let Proposal { pinhole, kind, client, lifetime, serial, .. } = *proposal;
        let held = Held::new(pinhole, kind, now + lifetime, (client, serial), None);
        self.deadlines.add(held.deadline, owner);
        held
    }

    /// The program in the kernel has opened `pinhole` as `hole` at the time `at`, for the session `owner` of a `client`.
    pub fn opened_by(
        &mut self,
        (hole, at): (Hole, Instant),
        owner: u32,
        client: IpAddr,
        (kind, lifetime): (Kind, Duration),
        pinhole: Pinhole,
    ) -> Held {
        let client = share_of(client);
        let serial = self.places.lock().enter_late((pinhole, hole), (client, false));
        let held = Held::new(pinhole, kind, at + lifetime, (client, serial), Some(hole));
        self.deadlines.add(held.deadline, owner);
        held
    }

    /// Whether the program in the kernel may open one more pinhole for a `client`. It is counted from now on. Half of what the
    /// client may have is left to those of its connections that are queued.
    pub fn grant(&mut self, policy: &Policy, client: IpAddr) -> bool {
        let (client, mut common) = (share_of(client), self.places.lock());
        let most = most_unused(policy.max_pinholes_per_client, self.capacity) / 2;
        let may = most > 0 && common.check(client, most, self.capacity).is_ok();
        if may {
            common.count(client, false);
        }
        may
    }

    /// Rules are to have `held`, if the program in the kernel has it. Whether it had.
    pub fn leave_program(&mut self, held: &mut Held) -> bool {
        let Some(hole) = held.hole.take() else { return false };
        self.shut.push(Shut { pinhole: held.pinhole, hole });
        self.places.lock().leave_program(held.pinhole, held.serial);
        true
    }

    /// It may, as it was granted before a restart.
    pub fn count_granted(&mut self, client: IpAddr) {
        self.places.lock().count(share_of(client), false);
    }

    /// It opens none any more, and is not counted.
    pub fn revoke(&mut self, client: IpAddr) {
        self.places.lock().drop_one(share_of(client), false);
    }

    /// What the program in the kernel is to be told.
    pub fn take_shut(&mut self, shut: &mut Vec<Shut>) {
        shut.append(&mut self.shut);
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
        let SavedPinhole { pinhole, kind, answered, in_use, hole, .. } = *saved;
        let client = share_of(client);
        let mut common = self.places.lock();
        let serial = match hole {
            Some(hole) => common.enter_late((pinhole, hole), (client, in_use)),
            None => common.enter(pinhole, (client, in_use)).0,
        };
        drop(common);
        let new = Held::new(pinhole, kind, deadline, (client, serial), hole);
        let held = Held { answered, in_use, ..new };
        self.deadlines.add(held.deadline, owner);
        held
    }

    /// Whether a session of any engine beside this one holds a pinhole of rules with these endpoints.
    pub fn holds(&self, initiator: IpAddr, arrival: SocketAddr) -> bool {
        self.places.lock().holds(initiator, arrival)
    }

    /// Those of all engines beside this one.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// A transfer uses `held`: it does not count for its client any more.
    pub fn used(&mut self, held: &mut Held) {
        if !std::mem::replace(&mut held.in_use, true) {
            self.places.lock().uncount(held.client);
        }
    }

    /// The transfer that used `held` failed: it may be used again until its deadline.
    pub fn unused(&mut self, held: &mut Held) {
        if std::mem::replace(&mut held.in_use, false) {
            self.places.lock().count_unused(held.client);
        }
    }

    /// Gives up `held`: what the next [`settle`](Self::settle) gives closes it in the kernel, and its port is
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
    pub fn settle(&mut self, closed: &mut Vec<Closing>) {
        if !self.closing.is_empty() {
            settle(&mut self.closing, &mut self.places.lock(), closed, &mut self.shut);
        }
    }

    /// Has [`settle`](Self::settle) close what is spent, too.
    pub fn settle_spent(&mut self) {
        self.closing.append(&mut self.spent);
    }

    /// The next owner that may have a pinhole whose deadline is over. To be followed by [`await_next`](Self::await_next).
    pub fn next_expired(&mut self, now: Instant) -> Option<u32> {
        self.deadlines.take_due(now)
    }

    /// The deadlines of what this owner still holds come as well.
    pub fn await_next(&mut self, owner: u32, now: Instant, held: &[Held]) {
        let next = held.iter().map(|held| held.deadline).filter(|at| *at > now).min();
        next.into_iter().for_each(|at| self.deadlines.add(at, owner));
    }

    /// When the next deadline is.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next()
    }
}

/// The external ports to try in the place of `announced`, best first; others for each `seed`.
fn candidates<'a>(
    policy: &'a Policy,
    announced: u16,
    Form { kind, room, zeros }: Form,
    random: &'a RandomState,
    seed: u64,
) -> impl Iterator<Item = u16> + 'a {
    let fits = move |port: &u16| room.is_none_or(|room| kind.has_port_in(*port, room, zeros));
    let draw = move |number: usize| policy.external_port(random.hash_one((seed, number)));
    let draws = if fits(&announced) { 0 } else { FITTING_DRAWS };
    let fitting = (0..draws).map_while(draw).filter(fits).take(FITTING_TRIES);
    let any = (draws..draws + PORT_TRIES).map_while(draw);
    fitting.chain([announced]).chain(any)
}

/// Adds to `closed` and `shut` what is in `closing`, except where the same endpoints were opened again since: that closed the
/// old one.
fn settle(
    closing: &mut Vec<Held>,
    common: &mut Common,
    closed: &mut Vec<Closing>,
    shut: &mut Vec<Shut>,
) {
    for held in closing.drain(..) {
        if let Some(hole) = held.hole.filter(|_| !held.is_consumed) {
            shut.push(Shut { pinhole: held.pinhole, hole });
        }
        closed.extend(common.give_up(held.pinhole, held.serial, (held.client, held.in_use)));
    }
}

/// Reserves the next external port for `proposal` that no other pinhole has.
fn reserve(
    common: &mut Common,
    proposal: &mut Proposal,
    policy: &Policy,
    random: &RandomState,
    (closed, shut): (&mut Vec<Closing>, &mut Vec<Shut>),
) -> Result<(), OpenError> {
    let Draws { announced, form, seed, tried } = proposal.draws;
    for port in candidates(policy, announced, form, random, seed).skip(tried) {
        proposal.draws.tried += 1;
        proposal.pinhole.arrival.set_port(port);
        let Pinhole { initiator, arrival, target, .. } = proposal.pinhole;
        let there = common.leads_to(initiator, arrival);
        if there.is_some_and(|there| there != target) {
            continue;
        }
        let (serial, replaced) = common.enter(proposal.pinhole, (proposal.client, false));
        (proposal.serial, proposal.replaced) = (serial, replaced);
        // Announced again, or not closed yet.
        closed.extend(replaced.map(|place| Closing { pinhole: place.pinhole, serial }));
        let hole = replaced.and_then(|place| Some((place.pinhole, place.hole?)));
        shut.extend(hole.map(|(pinhole, hole)| Shut { pinhole, hole }));
        return Ok(());
    }
    Err(OpenError::NoPort)
}

impl Held {
    fn new(
        pinhole: Pinhole,
        kind: Kind,
        deadline: Instant,
        (client, serial): (IpAddr, u64),
        hole: Option<Hole>,
    ) -> Self {
        let (answered, in_use, is_consumed) = (!kind.is_active(), false, false);
        Self { pinhole, kind, deadline, answered, in_use, client, serial, hole, is_consumed }
    }

    /// Whether the program in the kernel opened it.
    pub fn is_judged(&self) -> bool {
        self.hole.is_some()
    }

    /// Where it did.
    pub fn hole(&self) -> Option<Hole> {
        self.hole
    }

    /// As a record has it, with its deadline as that counts time.
    pub fn save(&self, deadline: u64) -> SavedPinhole {
        let Self { pinhole, kind, answered, in_use, hole, .. } = *self;
        SavedPinhole { pinhole, kind, deadline, answered, in_use, hole }
    }
}

#[cfg(test)]
#[path = "pinholes_tests.rs"]
mod tests;
