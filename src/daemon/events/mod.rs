//! The recent events of sessions, for `ftp-alg events` and the page: those since the daemon's start, in memory. The file of
//! `log.events` has all, over restarts, too. A reader that is slow finds that the oldest are gone, and how many; nobody waits
//! for it. The lock is held only to store events or to take handles of them, never to print them.
//!
//! Invariant: no client displaces more than a part of the events of others ([`SHARE`]), and memory is bounded.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use ftp_alg_core::engine::{ClientKey, Event, EventKind, Shares};
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::shard::lock;

/// Limit of stored events.
const CAPACITY: usize = 4096;
/// How many of the stored events a client (a /64) may have once there is no room.
const SHARE: usize = CAPACITY / 4;
/// Limit of events that wait to be written to the file.
const MAX_UNWRITTEN: usize = 1 << 16;
/// Limit of events in one answer.
pub const MAX_ANSWERED: usize = 1000;

/// The ring.
pub(super) struct EventRing(Mutex<Ring>);

struct Ring {
    /// The events, by ID.
    events: BTreeMap<u64, StoredEvent>,
    /// The IDs of each client's events.
    shares: Shares<ClientKey, ()>,
    /// The clients that had more than their share when their last event came.
    crowding: BTreeSet<ClientKey>,
    /// The ID before the first event, which is more than those of earlier daemons.
    origin: u64,
    /// The ID of the last event.
    last: u64,
    /// The last session with an event.
    last_session: u64,
    /// Events for the file, if there is one.
    unwritten: Option<Unwritten>,
}

/// Events that wait to be written.
#[derive(Default)]
pub(super) struct Unwritten {
    pub(super) events: Vec<StoredEvent>,
    /// How many had no room.
    pub(super) left_out: u64,
}

/// A handle of a stored event.
#[derive(Clone)]
pub struct StoredEvent(Arc<Stored>);

struct Stored {
    id: u64,
    at: SystemTime,
    event: Event,
}

/// The answer to a request for events.
#[derive(Serialize)]
pub struct RecentEvents {
    pub events: Vec<StoredEvent>,
    /// How many events behind the requested ID are gone; `None` if the ID is none of this daemon's.
    pub lost: Option<u64>,
}

impl EventRing {
    /// An empty ring. `last_session` is the last one of earlier daemons, and IDs follow `origin`. With `has_file`,
    /// events wait to be written.
    pub(super) fn new(last_session: u64, origin: u64, has_file: bool) -> Self {
        Self(Mutex::new(Ring {
            events: BTreeMap::new(),
            shares: Shares::default(),
            crowding: BTreeSet::new(),
            origin,
            last: origin,
            last_session,
            unwritten: has_file.then(Unwritten::default),
        }))
    }

    /// Notes events, each with its time, and returns them.
    pub(super) fn note(
        &self,
        events: impl Iterator<Item = (SystemTime, Event)>,
    ) -> Vec<StoredEvent> {
        let mut ring = lock(&self.0);
        events.map(|(at, event)| ring.push(at, event)).collect()
    }

    /// The last session with an event, also of earlier daemons.
    pub(super) fn last_session(&self) -> u64 {
        lock(&self.0).last_session
    }

    /// Takes the events that are to be written, oldest first.
    pub(super) fn take_unwritten(&self) -> Unwritten {
        lock(&self.0).unwritten.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The events behind the one with the ID `after`, as many as an answer may have; 0 for the first ones.
    pub(super) fn after(&self, after: u64) -> RecentEvents {
        lock(&self.0).read(after, false)
    }

    /// The newest events behind the one with the ID `after`, as many as an answer may have; 0 for all of them.
    pub(super) fn newest_after(&self, after: u64) -> RecentEvents {
        lock(&self.0).read(after, true)
    }

    /// The last events of a session, in the order in which they were stored, but no more than `limit`.
    pub(super) fn last_of(&self, session: u64, limit: usize) -> Vec<StoredEvent> {
        let ring = lock(&self.0);
        let of_session = ring.events.values().rev().filter(|one| one.0.event.session == session);
        let mut chosen: Vec<_> = of_session.take(limit).cloned().collect();
        drop(ring);
        chosen.reverse();
        chosen
    }
}

impl Ring {
    fn push(&mut self, at: SystemTime, event: Event) -> StoredEvent {
        let client = ClientKey::from(event.client.ip());
        if self.events.len() >= CAPACITY {
            self.make_room(client);
        }
        self.last += 1;
        let id = self.last;
        self.last_session = self.last_session.max(event.session);
        let event = StoredEvent(Arc::new(Stored { id, at, event }));
        if let Some(Unwritten { events, left_out }) = &mut self.unwritten {
            match events.len() {
                ..MAX_UNWRITTEN => events.push(event.clone()),
                _ => *left_out += 1,
            }
        }
        self.shares.insert(client, id, ());
        if self.shares.count_of(client) > SHARE {
            self.crowding.insert(client);
        }
        self.events.insert(id, event.clone());
        event
    }

    /// Makes room for an event of `client`. Removes the oldest event of that client if it has its share. Otherwise removes
    /// the oldest one of a client with more than its share, or if there is none, the oldest of all.
    fn make_room(&mut self, client: ClientKey) {
        self.crowding.retain(|one| self.shares.count_of(*one) > SHARE);
        let has_share = self.shares.count_of(client) >= SHARE;
        let from = if has_share { Some(client) } else { self.crowding.first().copied() };
        let own = from.and_then(|client| self.shares.of(client).next()).map(|(id, ())| id);
        let oldest = own.or_else(|| self.events.keys().next().copied());
        if let Some(gone) = oldest.and_then(|id| self.events.remove(&id)) {
            let Stored { id, event, .. } = &*gone.0;
            self.shares.remove(event.client.ip().into(), *id);
        }
    }

    /// The events behind the one with the ID `after`, the oldest or the newest if there are more than an answer may have.
    fn read(&self, after: u64, wants_newest: bool) -> RecentEvents {
        if after != 0 && !(self.origin..=self.last).contains(&after) {
            return RecentEvents { events: Vec::new(), lost: None };
        }
        let behind = self.events.range(after + 1..).map(|(_, event)| event);
        let events: Vec<_> = match wants_newest {
            true => {
                let mut newest: Vec<_> = behind.rev().take(MAX_ANSWERED).cloned().collect();
                newest.reverse();
                newest
            }
            false => behind.take(MAX_ANSWERED).cloned().collect(),
        };
        let last = events.last().map_or(self.last, |event| event.0.id);
        let passed = if after == 0 { events.len() as u64 } else { last - after };
        let lost = Some(passed - events.len() as u64);
        RecentEvents { events, lost }
    }
}

impl StoredEvent {
    /// When the event was seen.
    pub(super) fn at(&self) -> SystemTime {
        self.0.at
    }

    /// The event itself.
    pub(super) fn event(&self) -> &Event {
        &self.0.event
    }

    /// Appends the event's JSON as a line of a file.
    pub(super) fn write_line(&self, lines: &mut Vec<u8>) {
        if serde_json::to_writer(&mut *lines, self).is_ok() {
            lines.push(b'\n');
        }
    }
}

/// The fields that docs/events.md lists.
impl Serialize for StoredEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Row<'a> {
            id: u64,
            #[serde(serialize_with = "as_text")]
            time: &'a dyn Display,
            event: &'static str,
            session: u64,
            client: IpAddr,
            server: IpAddr,
            #[serde(skip_serializing_if = "Option::is_none")]
            user: Option<&'a str>,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            failed: bool,
            #[serde(flatten)]
            details: &'a EventKind,
            #[serde(serialize_with = "as_text")]
            text: &'a dyn Display,
        }
        let Stored { id, at, event } = &*self.0;
        let Event { session, client, server, user, kind } = event;
        Row {
            id: *id,
            time: &in_utc(*at),
            event: kind.name(),
            session: *session,
            client: client.ip(),
            server: server.ip(),
            user: user.as_deref(),
            failed: kind.is_failure(),
            details: kind,
            text: event,
        }
        .serialize(serializer)
    }
}

fn as_text<S: Serializer>(text: &dyn Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(text)
}

/// The time in RFC 3339. All times have the same number of digits.
pub(super) fn in_utc(at: SystemTime) -> String {
    format!("{:.6}", Timestamp::try_from(at).unwrap_or_default())
}

/// As [`in_utc`], to the second.
pub(super) fn in_utc_seconds(at: SystemTime) -> String {
    format!("{:.0}", Timestamp::try_from(at).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: u64 = 1_795_862_790_128_328;

    fn event_of(client: &str, session: u64) -> Event {
        let (client, server) = (client.parse().unwrap(), "203.0.113.9:21".parse().unwrap());
        Event { session, client, server, user: None, kind: EventKind::Encrypted }
    }

    fn event(session: u64) -> Event {
        event_of("10.0.0.7:1035", session)
    }

    fn note(ring: &EventRing, events: impl IntoIterator<Item = Event>) {
        ring.note(events.into_iter().map(|event| (SystemTime::now(), event)));
    }

    fn ids(ring: &EventRing, answer: &RecentEvents) -> Vec<u64> {
        let origin = lock(&ring.0).origin;
        answer.events.iter().map(|event| event.0.id - origin).collect()
    }

    #[test]
    fn a_slow_reader_learns_how_many_events_are_gone() {
        let ring = EventRing::new(0, ORIGIN, false);
        let origin = lock(&ring.0).origin;
        note(&ring, [1, 2, 3].map(event));
        let answer = ring.after(0);
        assert_eq!((ids(&ring, &answer), answer.lost), (vec![1, 2, 3], Some(0)));
        assert_eq!(ids(&ring, &ring.after(origin + 1)), [2, 3]);
        assert_eq!(ring.after(origin + 3).events.len(), 0);
        note(&ring, (0..CAPACITY as u64).map(event));
        let answer = ring.after(origin + 1);
        assert_eq!((answer.events.len(), answer.lost), (MAX_ANSWERED, Some(2)));
        assert_eq!(ids(&ring, &answer)[0], 4);
        assert_eq!(lock(&ring.0).events.len(), CAPACITY);
        for of_another_daemon in [1, origin - 5_000_000, u64::MAX - 1, u64::MAX] {
            let answer = ring.after(of_another_daemon);
            assert_eq!((answer.events.len(), answer.lost), (0, None));
        }
    }

    #[test]
    fn a_page_gets_the_newest_events_that_it_does_not_have() {
        let ring = EventRing::new(0, ORIGIN, false);
        let origin = lock(&ring.0).origin;
        let newest = |after| {
            let answer = ring.newest_after(after);
            let ids = ids(&ring, &answer);
            (ids.first().copied(), ids.last().copied(), ids.len(), answer.lost)
        };
        assert_eq!(newest(0), (None, None, 0, Some(0)));
        note(&ring, (0..5).map(event));
        assert_eq!(newest(0), (Some(1), Some(5), 5, Some(0)));
        assert_eq!(newest(origin + 1), (Some(2), Some(5), 4, Some(0)));
        assert_eq!(newest(origin + 5), (None, None, 0, Some(0)));
        assert_eq!(newest(u64::MAX).3, None);
        note(&ring, (5..2500).map(event));
        assert_eq!(newest(0), (Some(1501), Some(2500), MAX_ANSWERED, Some(0)));
        assert_eq!(newest(origin + 10), (Some(1501), Some(2500), MAX_ANSWERED, Some(1490)));
    }

    #[test]
    fn one_client_displaces_a_part_of_the_events_of_others() {
        let ring = EventRing::new(0, ORIGIN, false);
        note(&ring, (0..100).map(|session| event_of("192.0.2.1:4000", session)));
        let flood = |session: u64| {
            // The addresses of a /64 are one client.
            let client = format!("[2001:db8::{:x}]:4000", session % 999);
            event_of(&client, 1000 + session)
        };
        note(&ring, (0..20 * CAPACITY as u64).map(flood));
        // Nor does such a client have them displace each other.
        note(&ring, (100..200).map(|session| event_of("192.0.2.1:4000", session)));
        assert_eq!(ring.last_of(0, 9).len(), 1, "the oldest is there");
        for client in 0..4_u64 {
            let of_client = |session| event_of(&format!("198.51.100.{client}:4000"), session);
            note(&ring, (0..CAPACITY as u64).map(of_client));
        }
        let ring = lock(&ring.0);
        assert_eq!(ring.events.len(), CAPACITY);
        assert!(ring.shares.counts().all(|(_, count)| count <= SHARE));
        assert_eq!(ring.shares.len(), CAPACITY);
    }

    #[test]
    fn events_wait_for_the_file_up_to_a_limit() {
        let ring = EventRing::new(0, ORIGIN, true);
        note(&ring, (0..MAX_UNWRITTEN as u64 + 3).map(event));
        let Unwritten { events, left_out } = ring.take_unwritten();
        assert_eq!((events.len(), left_out), (MAX_UNWRITTEN, 3));
        note(&ring, [event(7)]);
        let Unwritten { events, left_out } = ring.take_unwritten();
        assert_eq!((events.len(), left_out), (1, 0));
        let without = EventRing::new(0, ORIGIN, false);
        note(&without, [event(7)]);
        assert!(without.take_unwritten().events.is_empty());
    }
}
