//! Sessions by client, and which of them is evicted if a client has too many.
//!
//! A client is an IPv4 address, or the /64 of an IPv6 address, because one host has all of that. A session counts for
//! its client once its server has sent a greeting, because an attacker with a spoofed address cannot get that far. The
//! sessions of a client form a list through the table, in the order in which they began to count, so nothing has to be
//! searched.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ahash::AHashMap;

use crate::{
    engine::{
        ClientKey, Kernel, SessionEnd, Sessions,
        limits::admission::{has_login, may_be_evicted},
        table::entry::Head,
    },
    session::{Phase, Session},
};

/// Number of a client's oldest sessions that are examined for an eviction.
const MAX_EXAMINED: usize = 16;

/// Index of the client's hash table.
fn bucket(client: ClientKey) -> usize {
    let number = match client {
        ClientKey::V4(address) => u64::from(address),
        ClientKey::V6(network) => network,
    };
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - PARTS.ilog2())) as usize
}

const NONE: u32 = u32::MAX;
/// Number of hash tables.
const PARTS: usize = 64;

/// The list of one client's sessions.
#[derive(Clone, Copy)]
struct SessionList {
    first: u32,
    last: u32,
    count: u32,
}

/// The neighbours of a session in its list.
#[derive(Clone, Copy)]
struct ListLink {
    next: u32,
    previous: u32,
}

/// The sessions of each client of one shard, by table slot.
pub(crate) struct ClientShares {
    /// Several hash tables, so that no packet waits for a large one to grow.
    clients: [AHashMap<ClientKey, SessionList>; PARTS],
    links: Vec<ListLink>,
    /// Clients that have more than their share.
    over_share: BTreeSet<ClientKey>,
}

impl Default for ClientShares {
    fn default() -> Self {
        Self {
            clients: std::array::from_fn(|_| AHashMap::new()),
            links: Vec::new(),
            over_share: BTreeSet::new(),
        }
    }
}

impl ClientShares {
    /// Sets how many sessions a client may have before its own are evicted first.
    fn set_share(&mut self, share: usize) {
        let over = self.clients.iter().flatten().filter(|(_, list)| list.count as usize > share);
        self.over_share = over.map(|(client, _)| *client).collect();
    }

    /// Adds the youngest session of `client`, whose share is `share`.
    fn add(&mut self, client: ClientKey, slot: u32, share: usize) {
        let needed = slot as usize + 1;
        if self.links.len() < needed {
            self.links.resize(needed, ListLink { next: NONE, previous: NONE });
        }
        let none = SessionList { first: NONE, last: NONE, count: 0 };
        let list = self.clients[bucket(client)].entry(client).or_insert(none);
        set_link(&mut self.links, slot, ListLink { next: NONE, previous: list.last });
        match self.links.get_mut(list.last as usize) {
            Some(last) => last.next = slot,
            None => list.first = slot,
        }
        list.last = slot;
        list.count += 1;
        if list.count as usize > share {
            self.over_share.insert(client);
        }
    }

    fn remove(&mut self, client: ClientKey, slot: u32, share: usize) {
        let Some(list) = self.clients[bucket(client)].get_mut(&client) else { return };
        let Some(&ListLink { next, previous }) = self.links.get(slot as usize) else { return };
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
            self.clients[bucket(client)].remove(&client);
        }
        if count <= share {
            self.over_share.remove(&client);
        }
    }

    /// The oldest sessions of `client`.
    fn oldest(&self, client: ClientKey) -> impl Iterator<Item = u32> {
        let first = self.clients[bucket(client)].get(&client).map(|list| list.first);
        std::iter::successors(first, |slot| Some(self.links.get(*slot as usize)?.next))
            .take_while(|slot| *slot != NONE)
            .take(MAX_EXAMINED)
    }
}

fn set_link(links: &mut [ListLink], slot: u32, link: ListLink) {
    if let Some(at) = links.get_mut(slot as usize) {
        *at = link;
    }
}

/// Whether a session counts for its client.
fn is_countable(session: &Session) -> bool {
    !matches!(session.dialogue.phase, Phase::NotGreeted | Phase::PickedUp) && !session.is_over()
}

/// Whether a session has to be counted for its client.
#[inline]
pub(super) fn should_count(head: &Head, session: &Session) -> bool {
    !head.counts_for_client && is_countable(session)
}

impl Sessions {
    /// Whether the number of sessions is so near the limit that shares apply.
    pub(crate) fn is_nearly_full(&self) -> bool {
        let limit = self.policy.max_sessions;
        self.table.total_len() > limit - limit / 4
    }

    /// Counts the session at `index` for its client if it starts to count. Near the limit, the oldest session of a
    /// client with more than its share is evicted.
    #[inline]
    pub(crate) fn count_session(&mut self, now: Instant, index: u32, kernel: &mut dyn Kernel) {
        if let Some(client) = self.count_for_client(index)
            && self.is_nearly_full()
            && self.client_shares.over_share.contains(&client)
        {
            self.evict_from_client(now, (client, index), kernel);
        }
    }

    /// Counts the session at `index` for its client if it starts to count.
    #[inline]
    pub(crate) fn count_for_client(&mut self, index: u32) -> Option<ClientKey> {
        let entry = self.table.get_mut(index)?;
        if !should_count(&entry.head, &entry.session) {
            return None;
        }
        entry.head.counts_for_client = true;
        let client = entry.head.client().ip().into();
        let share = self.share();
        self.client_shares.add(client, index, share);
        Some(client)
    }

    /// Removes the session at `index` from the list of `client`.
    pub(crate) fn uncount(&mut self, client: SocketAddr, index: u32) {
        let share = self.share();
        self.client_shares.remove(client.ip().into(), index, share);
    }

    /// The share of a client in this shard: an even part of its share in all shards.
    fn share(&self) -> usize {
        (self.policy.max_sessions_per_client / self.table.table_count().max(1)).max(1)
    }

    /// Recomputes shares after a policy change.
    pub(crate) fn recompute_shares(&mut self) {
        let share = self.share();
        self.client_shares.set_share(share);
    }

    /// Evicts a session of a client that has more than its share. Returns whether there was one.
    pub(crate) fn evict_from_any_client(&mut self, now: Instant, kernel: &mut dyn Kernel) -> bool {
        let Some(client) = self.client_shares.over_share.first().copied() else { return false };
        self.evict_from_client(now, (client, NONE), kernel)
            && self
                .table
                .take_oldest(may_be_evicted)
                .is_some_and(|index| self.forget(index, SessionEnd::Forgotten).is_some())
    }

    /// Evicts a session of `client` other than the one at `except`: the first of the oldest that is closed or has no
    /// login. If all have a login, the one that was idle longest, preferably without pending commands.
    fn evict_from_client(
        &mut self,
        now: Instant,
        (client, except): (ClientKey, u32),
        kernel: &mut dyn Kernel,
    ) -> bool {
        let timestamp = self.epoch.timestamp(now);
        // Whether commands are pending, how long it was idle, and its slot.
        let mut found: Option<(bool, Duration, u32)> = None;
        for slot in self.client_shares.oldest(client).filter(|slot| *slot != except) {
            let Some(entry) = self.table.get_mut(slot) else { continue };
            let idle = timestamp.duration_since(entry.head.last_seen);
            if entry.session.is_over() || !has_login(&entry.session) {
                found = Some((false, idle, slot));
                break;
            }
            let is_busy = entry.session.dialogue.has_pending_commands();
            if found.is_none_or(|(other_busy, other_idle, _)| {
                (other_busy, idle) > (is_busy, other_idle)
            }) {
                found = Some((is_busy, idle, slot));
            }
        }
        let Some((_, idle, slot)) = found else { return false };
        self.counters.limits.client_sessions += 1;
        let reason = format!(
            "its client has more than its share of max-sessions, and this session was idle for {} s",
            idle.as_secs()
        );
        self.reset_session(now, slot, reason, kernel);
        self.mark_changed(slot);
        true
    }
}
