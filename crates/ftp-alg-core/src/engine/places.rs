//! Where pinholes are, over all engines beside each other, and the order in which the kernel is told of them.
//!
//! To the kernel a pinhole is its initiator and arrival, so that who closes one could close what another engine has opened there
//! since. So a place is given up first, and free only when the kernel is told to close it; whoever wants it before takes it
//! over, and then it is his to close. What the kernel is told is told one after the other, by [`Places::tell`]: what was taken over
//! meanwhile is left out, and what is opened at a place that became free is opened later.

use std::{
    collections::hash_map::Entry,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ahash::AHashMap;

use super::{Pinhole, handover::Hole};

/// Of all pinholes that there can be, one client may hold this part unused, and this part with those in use.
const UNUSED_PART: usize = 4;
const HELD_PART: usize = 8;

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

/// The places of all engines beside each other.
#[derive(Clone, Default)]
pub struct Places(Arc<Shared>);

#[derive(Default)]
struct Shared {
    common: Mutex<Common>,
    /// Held by who tells the kernel. Taken before any other lock.
    telling: Mutex<()>,
}

/// A pinhole that is to be closed, if nobody has taken its place over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// The pinhole.
    pub(super) pinhole: Pinhole,
    /// Whose it must be.
    pub(super) serial: u64,
}

/// What is at a place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) pinhole: Pinhole,
    serial: u64,
    is_given_up: bool,
    /// Where the program in the kernel opened it: no rule knows it.
    pub(super) hole: Option<Hole>,
}

/// What the tables of engines beside each other have in common.
#[derive(Default)]
pub(super) struct Common {
    /// By initiator and arrival.
    places: AHashMap<(IpAddr, SocketAddr), Place>,
    /// How many of them are given up.
    given_up: usize,
    /// How many pinholes have each initiator and target: their source is translated by these.
    sources: AHashMap<(IpAddr, SocketAddr), u32>,
    per_client: AHashMap<IpAddr, Share>,
    /// Of the pinhole that was entered last.
    pub(super) serial: u64,
}

/// What a client has of all pinholes.
#[derive(Default)]
struct Share {
    unused: usize,
    /// Those in use as well.
    held: usize,
}

/// Whom a client's pinholes count for: an IPv6 host has a whole /64 to itself.
pub(super) fn share_of(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
    }
}

impl Places {
    /// Has `tell` tell the kernel to close what is due of `closings`, and whatever else it has to say of pinholes. Nobody else says
    /// anything meanwhile.
    pub fn tell<R>(
        &self,
        closings: impl Iterator<Item = Closing>,
        tell: impl FnOnce(&[Pinhole]) -> R,
    ) -> R {
        let _telling = lock(&self.0.telling);
        let mut common = self.lock();
        let due: Vec<_> = closings.filter_map(|closing| common.due(closing)).collect();
        drop(common);
        tell(&due)
    }

    /// Becomes the same as `others`.
    pub(super) fn follow(&mut self, others: &Self) {
        if !Arc::ptr_eq(&self.0, &others.0) {
            self.clone_from(others);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Common> {
        lock(&self.0.common)
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Places")
    }
}

/// So many of `capacity` a client may hold unused that may hold `most`.
pub(super) fn most_unused(most: usize, capacity: usize) -> usize {
    most.min((capacity / UNUSED_PART).max(1))
}

impl Common {
    /// Whether `client` may hold one more of `capacity`, and of the unused ones `most`.
    pub(super) fn check(
        &self,
        client: IpAddr,
        most: usize,
        capacity: usize,
    ) -> Result<(), OpenError> {
        if self.places.len() - self.given_up >= capacity {
            return Err(OpenError::Full("there are as many as it holds"));
        }
        let Some(Share { unused, held }) = self.per_client.get(&client) else { return Ok(()) };
        let most = most_unused(most, capacity);
        if *unused >= most {
            return Err(OpenError::Limit(most));
        }
        if *held >= (capacity / HELD_PART).max(most) {
            return Err(OpenError::Full("the client has its share of them"));
        }
        Ok(())
    }

    /// Where the pinhole with these endpoints leads, whether that is given up or not.
    pub(super) fn leads_to(&self, initiator: IpAddr, arrival: SocketAddr) -> Option<SocketAddr> {
        self.places.get(&(initiator, arrival)).map(|place| place.pinhole.target)
    }

    /// Whether a session holds a pinhole of rules with these endpoints.
    pub(super) fn holds(&self, initiator: IpAddr, arrival: SocketAddr) -> bool {
        let place = self.places.get(&(initiator, arrival));
        place.is_some_and(|place| !place.is_given_up && place.hole.is_none())
    }

    /// A pinhole of a client, in use or not, in the place of what is there. Gives its serial, and what was there.
    pub(super) fn enter(
        &mut self,
        pinhole: Pinhole,
        (client, in_use): (IpAddr, bool),
    ) -> (u64, Option<Place>) {
        self.serial += 1;
        let serial = self.serial;
        self.count(client, in_use);
        let before = self.put(Place { pinhole, serial, is_given_up: false, hole: None });
        (serial, before)
    }

    /// A pinhole of a client that the program in the kernel has opened a while ago. What is there stays, unless that is such a
    /// pinhole as well: it may have been opened since. Gives its serial.
    pub(super) fn enter_late(
        &mut self,
        (pinhole, hole): (Pinhole, Hole),
        (client, in_use): (IpAddr, bool),
    ) -> u64 {
        self.serial += 1;
        let serial = self.serial;
        self.count(client, in_use);
        let there = self.places.get(&(pinhole.initiator, pinhole.arrival));
        if there.is_none_or(|there| there.hole.is_some()) {
            self.put(Place { pinhole, serial, is_given_up: false, hole: Some(hole) });
        }
        serial
    }

    /// Rules are to have the pinhole with `serial`.
    pub(super) fn leave_program(&mut self, pinhole: Pinhole, serial: u64) {
        let place = self.places.get_mut(&(pinhole.initiator, pinhole.arrival));
        if let Some(place) = place.filter(|place| place.serial == serial) {
            place.hole = None;
        }
    }

    /// A client holds one more.
    pub(super) fn count(&mut self, client: IpAddr, in_use: bool) {
        let share = self.per_client.entry(client).or_default();
        share.held += 1;
        share.unused += usize::from(!in_use);
    }

    fn put(&mut self, place: Place) -> Option<Place> {
        let Pinhole { initiator, arrival, target, .. } = place.pinhole;
        let before = self.places.insert((initiator, arrival), place);
        if let Some(before) = before {
            self.is_gone(&before);
        }
        *self.sources.entry((initiator, target)).or_default() += 1;
        self.given_up += usize::from(place.is_given_up);
        before
    }

    /// Removes the pinhole with `serial`, if it is the one there.
    fn remove(&mut self, pinhole: Pinhole, serial: u64) -> bool {
        let Entry::Occupied(there) = self.places.entry((pinhole.initiator, pinhole.arrival)) else {
            return false;
        };
        let is_its_own = there.get().serial == serial;
        if is_its_own {
            let place = there.remove();
            self.is_gone(&place);
        }
        is_its_own
    }

    /// `place` is not among the places any more.
    fn is_gone(&mut self, place: &Place) {
        self.given_up -= usize::from(place.is_given_up);
        let Pinhole { initiator, target, .. } = place.pinhole;
        if let Entry::Occupied(mut count) = self.sources.entry((initiator, target)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// The pinhole with `serial` was not opened: what was `replaced` is there again. It is to be closed if it was given up, as who gave
    /// it up may have left that to this one.
    pub(super) fn withdraw(
        &mut self,
        pinhole: Pinhole,
        serial: u64,
        client: IpAddr,
        replaced: Option<Place>,
    ) -> Option<Closing> {
        self.drop_one(client, false);
        let was_there = self.remove(pinhole, serial);
        let place = replaced.filter(|_| was_there)?;
        self.put(place);
        place.is_given_up.then_some(Closing { pinhole: place.pinhole, serial: place.serial })
    }

    /// Nobody wants the pinhole with `serial` any more. What closes it, unless another is there.
    pub(super) fn give_up(
        &mut self,
        pinhole: Pinhole,
        serial: u64,
        (client, in_use): (IpAddr, bool),
    ) -> Option<Closing> {
        self.drop_one(client, in_use);
        let place = self.places.get_mut(&(pinhole.initiator, pinhole.arrival))?;
        if place.hole.is_some() {
            self.remove(pinhole, serial);
            return None;
        }
        let is_new = place.serial == serial && !std::mem::replace(&mut place.is_given_up, true);
        self.given_up += usize::from(is_new);
        is_new.then_some(Closing { pinhole, serial })
    }

    /// What the kernel is to be told now of `closing`: the pinhole without its source translation, if another open one has the
    /// same. A place that was given up is free from now on.
    fn due(&mut self, Closing { pinhole, serial }: Closing) -> Option<Pinhole> {
        let Pinhole { initiator, arrival, target, .. } = pinhole;
        let there =
            self.places.get(&(initiator, arrival)).filter(|place| place.serial == serial)?;
        let is_given_up = there.is_given_up;
        let is_shared = matches!(self.sources.get(&(initiator, target)), Some(2..));
        if is_given_up {
            self.remove(pinhole, serial);
        }
        Some(if is_shared { Pinhole { source: initiator, ..pinhole } } else { pinhole })
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
            && self.sources.is_empty()
            && self.per_client.is_empty()
            && self.given_up == 0
    }

    pub(super) fn count_unused(&mut self, client: IpAddr) {
        self.per_client.entry(client).or_default().unused += 1;
    }

    pub(super) fn uncount(&mut self, client: IpAddr) {
        if let Some(share) = self.per_client.get_mut(&client) {
            share.unused = share.unused.saturating_sub(1);
        }
    }

    /// The client holds one less.
    pub(super) fn drop_one(&mut self, client: IpAddr, in_use: bool) {
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

/// What a panic left is whole: an entry is written in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
