//! How many sessions each client has, and which of them goes first where they are too many.
//!
//! A client is an IPv4 address, or the /64 of an IPv6 address, as one host has all of that. A session counts for
//! its client once its server has greeted: who forges another's address does not get as far. Sessions of a client are
//! a list through the table, in the order in which they began to count, so that nothing is searched.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ahash::AHashMap;

use super::{
    Counters, Effects, Entry, Sessions,
    admission::{gives_way, has_login},
    control::Control,
};
use crate::session::{Phase, Session};

/// How many of a client's oldest sessions are looked at.
const LOOKED_AT: usize = 16;

/// One address over IPv4, the /64 over IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Client {
    V4(u32),
    V6(u64),
}

impl Client {
    fn of(address: SocketAddr) -> Self {
        match address.ip() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }

    /// Its part of the table.
    fn part(self) -> usize {
        let number = match self {
            Self::V4(address) => u64::from(address),
            Self::V6(network) => network,
        };
        (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - PARTS.ilog2())) as usize
    }
}

const NONE: u32 = u32::MAX;
/// How many parts the table of clients has.
const PARTS: usize = 64;

/// The sessions of one client.
#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
    count: u32,
}

/// Which session follows and precedes one.
#[derive(Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
}

/// The sessions of each client of one engine, by places in the table.
pub(super) struct Shares {
    /// In parts, so that no packet waits while all are moved to a larger place.
    clients: [AHashMap<Client, List>; PARTS],
    links: Vec<Link>,
    /// Who has more sessions than its share.
    over: BTreeSet<Client>,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            clients: std::array::from_fn(|_| AHashMap::new()),
            links: Vec::new(),
            over: BTreeSet::new(),
        }
    }
}

impl Shares {
    /// From now on `share` is what a client has before others go first.
    fn set_share(&mut self, share: usize) {
        let over = self.clients.iter().flatten().filter(|(_, list)| list.count as usize > share);
        self.over = over.map(|(client, _)| *client).collect();
    }

    /// One more of `client`, its youngest, where `share` may be.
    fn add(&mut self, client: Client, place: u32, share: usize) {
        let needed = place as usize + 1;
        if self.links.len() < needed {
            self.links.resize(needed, Link { next: NONE, previous: NONE });
        }
        let none = List { first: NONE, last: NONE, count: 0 };
        let list = self.clients[client.part()].entry(client).or_insert(none);
        set(&mut self.links, place, Link { next: NONE, previous: list.last });
        match self.links.get_mut(list.last as usize) {
            Some(last) => last.next = place,
            None => list.first = place,
        }
        list.last = place;
        list.count += 1;
        if list.count as usize > share {
            self.over.insert(client);
        }
    }

    fn remove(&mut self, client: Client, place: u32, share: usize) {
        let Some(list) = self.clients[client.part()].get_mut(&client) else { return };
        let Some(&Link { next, previous }) = self.links.get(place as usize) else { return };
        match self.links.get_mut(previous as usize) {
            Some(link) => link.next = next,
            None => list.first = next,
        }
        match self.links.get_mut(next as usize) {
            Some(link) => link.previous = previous,
            None => list.last = previous,
        }
        list.count -= 1;
        let count = list.count as usize;
        if count == 0 {
            self.clients[client.part()].remove(&client);
        }
        if count <= share {
            self.over.remove(&client);
        }
    }

    /// The oldest sessions of `client`.
    fn oldest(&self, client: Client) -> impl Iterator<Item = u32> {
        let first = self.clients[client.part()].get(&client).map(|list| list.first);
        std::iter::successors(first, |place| Some(self.links.get(*place as usize)?.next))
            .take_while(|place| *place != NONE)
            .take(LOOKED_AT)
    }
}

fn set(links: &mut [Link], place: u32, link: Link) {
    if let Some(at) = links.get_mut(place as usize) {
        *at = link;
    }
}

/// Whether a session counts for its client.
fn counts(session: &Session) -> bool {
    !matches!(session.dialogue().phase(), Phase::Silent | Phase::Joined) && !session.is_over()
}

/// Whether a session is to be counted for its client.
#[inline]
pub(super) fn is_to_be_counted(session: &Session, control: &Control) -> bool {
    !control.counts && counts(session)
}

impl Sessions {
    /// Whether so many sessions are followed that no client has more than its share of them.
    pub(super) fn is_nearly_full(&self) -> bool {
        let most = self.policy.max_sessions;
        self.table.all() > most - most / 4
    }

    /// The session at `index` may have begun to count for its client. Where there are nearly as many sessions as may be, and
    /// more of this client than its share, its oldest goes.
    #[inline]
    pub(super) fn enlist(
        &mut self,
        counters: &mut Counters,
        now: Instant,
        index: u32,
        effects: &mut Effects,
    ) {
        if let Some(client) = self.count_for_client(index)
            && self.is_nearly_full()
            && self.shares.over.contains(&client)
        {
            self.give_up_one_of(counters, now, (client, index), effects);
        }
    }

    /// Counts the session at `index` for its client, if it has just begun to.
    #[inline]
    pub(super) fn count_for_client(&mut self, index: u32) -> Option<Client> {
        let Entry { session, control } = self.table.get_mut(index)?;
        if !is_to_be_counted(session, control) {
            return None;
        }
        control.counts = true;
        let client = Client::of(control.client());
        let share = self.share();
        self.shares.add(client, index, share);
        Some(client)
    }

    /// The session of `client` that was at `index` has gone.
    pub(super) fn uncount(&mut self, client: SocketAddr, index: u32) {
        let share = self.share();
        self.shares.remove(Client::of(client), index, share);
    }

    /// How many sessions a client has here before others go first: an even part of what it has in all engines.
    fn share(&self) -> usize {
        (self.policy.max_sessions_per_client / self.table.tables().max(1)).max(1)
    }

    /// Another policy holds.
    pub(super) fn share_again(&mut self) {
        let share = self.share();
        self.shares.set_share(share);
    }

    /// Gives up a session of a client that has more than its share. Whether there was one.
    pub(super) fn give_up_of_any(
        &mut self,
        counters: &mut Counters,
        now: Instant,
        effects: &mut Effects,
    ) -> bool {
        let Some(client) = self.shares.over.first().copied() else { return false };
        self.give_up_one_of(counters, now, (client, NONE), effects)
            && self.table.oldest(gives_way).is_some_and(|index| self.forget(index).is_some())
    }

    /// Gives up a session of `client`, not the one at `but`: the oldest that is over or without a login, or the one that was
    /// still for longest.
    fn give_up_one_of(
        &mut self,
        counters: &mut Counters,
        now: Instant,
        (client, but): (Client, u32),
        effects: &mut Effects,
    ) -> bool {
        let moment = self.epoch.moment(now);
        // Whether it is in use, and how long it was still.
        let mut found: Option<(bool, Duration, u32)> = None;
        for place in self.shares.oldest(client).filter(|place| *place != but) {
            let Some(Entry { session, control }) = self.table.get_mut(place) else { continue };
            let still = moment.since(control.last);
            if session.is_over() || !has_login(session) {
                found = Some((false, still, place));
                break;
            }
            let in_use = session.dialogue().awaits_replies();
            if found.is_none_or(|(used, other, _)| (used, still) > (in_use, other)) {
                found = Some((in_use, still, place));
            }
        }
        let Some((_, still, place)) = found else { return false };
        counters.limits.client_sessions += 1;
        let why = format!(
            "its client has more than its share of max-sessions, and it was still for {} s",
            still.as_secs()
        );
        self.end(place, why, effects);
        self.note_change(place);
        true
    }
}
