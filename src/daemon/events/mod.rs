//! The recent events, for `ftp-alg events`: a ring in memory, which a daemon leaves to the next one when it ends. A reader
//! that is slow finds that the oldest are gone, and how many; nobody waits for it. The lock is held only to store events or
//! to take handles of them, never to print them.

mod row;

use std::{
    borrow::Cow,
    collections::VecDeque,
    fs::File,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, OnceLock},
    time::SystemTime,
};

use ftp_alg_core::engine::{Event, EventKind, FinishedTransfer};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::{shard::lock, transfers::Report};
use crate::kernel::clocks::since_1970;

/// Limit of stored events.
const CAPACITY: usize = 4096;
/// Saved IDs are less: a reader of JSON may compute with floating-point numbers.
const MAX_SAVED_ID: u64 = 1 << 53;
/// Longer JSON is not stored, but made for each reader: names that a client chooses must not fill the memory.
const MAX_STORED_JSON: usize = 1024;
/// Limit of the JSON that a daemon leaves to the next one: that of all events, unless clients choose long names.
const MAX_LEFT: usize = 4 << 20;
/// Limit of events in one answer.
pub const MAX_ANSWERED: usize = 1000;

/// The ring.
pub(super) struct EventRing(Mutex<Ring>);

struct Ring {
    events: VecDeque<StoredEvent>,
    /// Transfers that an earlier daemon left unreported.
    unreported_before: u64,
    ids: EventIds,
}

/// What a file of the state directory has of the events, so that a restart numbers nothing again. Their IDs count by one,
/// so a reader learns how many events of a daemon that was killed it has not read.
#[derive(Default)]
struct EventIds {
    /// The first of all: the time of a start in microseconds, so that IDs also grow if the file is gone.
    origin: u64,
    /// The next one.
    next: u64,
    /// Transfers that have ended, less those that are reported.
    unreported: i64,
    /// The last session with an event.
    last_session: u64,
    /// Has these. A file that cannot be read or written costs the counts of what is missed at a restart.
    file: Option<File>,
}

impl EventIds {
    /// The IDs behind those in `file`.
    fn after(file: Option<File>) -> Self {
        let mut words = [[0; 8]; 4];
        let is_read = file
            .as_ref()
            .is_some_and(|file| file.read_exact_at(words.as_flattened_mut(), 0).is_ok());
        let [origin, next, unreported, last_session] = words.map(u64::from_le_bytes);
        let are_ids = (1..=next).contains(&origin) && next.max(last_session) < MAX_SAVED_ID;
        if is_read && are_ids {
            let unreported = unreported.cast_signed();
            return Self { origin, next, unreported, last_session, file };
        }
        let now = u64::try_from(since_1970().as_micros()).unwrap_or_default();
        Self { origin: now, next: now, unreported: 0, last_session: 0, file }
    }

    fn save(&self) {
        if let Some(file) = &self.file {
            let unreported = self.unreported.cast_unsigned();
            let words = [self.origin, self.next, unreported, self.last_session];
            let _ = file.write_all_at(words.map(u64::to_le_bytes).as_flattened(), 0);
        }
    }
}

/// A handle of a stored event. Its JSON is made for the first reader, if there is one, and then stored if it is short.
#[derive(Clone)]
pub struct StoredEvent(Arc<Stored>);

struct Stored {
    id: u64,
    session: u64,
    content: Content,
}

#[expect(clippy::large_enum_variant, reason = "nearly all were seen")]
enum Content {
    Seen {
        at: SystemTime,
        what: What,
        json: OnceLock<Box<RawValue>>,
    },
    /// The JSON that an earlier daemon has left.
    Left(Box<RawValue>),
}

/// The answer to a request for events.
#[derive(Serialize)]
pub struct RecentEvents {
    pub events: Vec<StoredEvent>,
    /// How many events behind the requested ID are gone; `None` if that is unknown, because the ID is not of this file of
    /// IDs: it is older, or was not given yet.
    pub lost: Option<u64>,
}

/// What happened.
enum What {
    Session(Event),
    Report(Report),
}

impl EventRing {
    /// A ring whose IDs are behind those in `file`, with the events that an earlier daemon has `left`. There are none if it
    /// was killed, or another one has recorded events since.
    pub(super) fn new(file: Option<File>, left: Vec<Box<RawValue>>) -> Self {
        let mut ids = EventIds::after(file);
        let events = restored(left, &ids).unwrap_or_default();
        let unreported_before = u64::try_from(std::mem::take(&mut ids.unreported)).unwrap_or(0);
        ids.save();
        Self(Mutex::new(Ring { events, unreported_before, ids }))
    }

    /// How many transfers an earlier daemon left unreported, because it was killed.
    pub(super) fn unreported_before(&self) -> u64 {
        lock(&self.0).unreported_before
    }

    /// Records the events of sessions, except those that are recorded later, when all is known of them; and that so many
    /// transfers have ended, which are reported later.
    pub(super) fn record(
        &self,
        events: &[Event],
        is_later: impl Fn(&EventKind) -> bool,
        ended_transfers: u64,
    ) {
        let last_session = events.iter().map(|event| event.session).max();
        let now = events.iter().filter(|event| !is_later(&event.kind));
        let recorded: Vec<_> =
            now.map(|event| (SystemTime::now(), What::Session(event.clone()))).collect();
        if !recorded.is_empty() || ended_transfers > 0 {
            let mut ring = lock(&self.0);
            ring.ids.last_session = ring.ids.last_session.max(last_session.unwrap_or(0));
            ring.ids.unreported += ended_transfers as i64;
            ring.push(recorded);
            ring.ids.save();
        }
    }

    /// Of the transfers that have ended, so many are never reported.
    pub(super) fn count_lost(&self, transfers: u64) {
        if transfers > 0 {
            let mut ring = lock(&self.0);
            ring.ids.unreported -= transfers as i64;
            ring.ids.save();
        }
    }

    /// Records reports of the transfers' thread at once. Returns the events of transfers that have ended.
    pub(super) fn record_reports(&self, reports: Vec<Report>) -> Vec<StoredEvent> {
        let ended = reports.iter().filter(|report| report.ended_transfer().is_some()).count();
        let mut ring = lock(&self.0);
        ring.ids.unreported -= ended as i64;
        let events =
            ring.push(reports.into_iter().map(|report| (report.at(), What::Report(report))));
        ring.ids.save();
        events.into_iter().filter(|event| event.ended_transfer().is_some()).collect()
    }

    /// The last session with an event, also of earlier daemons.
    pub(super) fn last_session(&self) -> u64 {
        lock(&self.0).ids.last_session
    }

    /// The events behind the one with the ID `after`, as many as an answer may have; 0 for the first ones.
    pub(super) fn after(&self, after: u64) -> RecentEvents {
        self.read(after, |first, _| first)
    }

    /// The newest events behind the one with the ID `after`, as many as an answer may have; 0 for all of them.
    pub(super) fn newest_after(&self, after: u64) -> RecentEvents {
        self.read(after, |first, next| first.max(next.saturating_sub(MAX_ANSWERED as u64)))
    }

    /// Events behind the one with the ID `after`, from the one on that `begin` tells from the first and the next ID.
    fn read(&self, after: u64, begin: impl FnOnce(u64, u64) -> u64) -> RecentEvents {
        let wanted = after.saturating_add(1);
        let ring = lock(&self.0);
        let (origin, first, next) = (ring.ids.origin, ring.first(), ring.ids.next);
        let begin = begin(first, next).max(wanted);
        let start = usize::try_from(begin - first).unwrap_or(usize::MAX);
        let events = ring.events.iter().skip(start).take(MAX_ANSWERED).cloned().collect();
        let lost = match after {
            0 => Some(0),
            _ => (origin..=next).contains(&wanted).then(|| begin - wanted),
        };
        RecentEvents { events, lost }
    }

    /// The JSON of the newest ones, to leave them to the next daemon.
    pub(super) fn to_leave(&self) -> Vec<Box<RawValue>> {
        let events = lock(&self.0).events.clone();
        let (mut left, mut room) = (VecDeque::new(), MAX_LEFT);
        for json in events.iter().rev().map(|event| event.json().into_owned()) {
            let Some(less) = room.checked_sub(json.get().len()) else { break };
            room = less;
            left.push_front(json);
        }
        left.into()
    }

    /// The last events of a session, in the order in which they were stored, but no more than `limit`.
    pub(super) fn last_of(&self, session: u64, limit: usize) -> Vec<StoredEvent> {
        let ring = lock(&self.0);
        let of_session = ring.events.iter().filter(|event| event.0.session == session);
        let mut chosen: Vec<_> = of_session.cloned().collect();
        drop(ring);
        chosen.drain(..chosen.len().saturating_sub(limit));
        chosen
    }
}

impl Ring {
    /// The ID of the first stored event.
    fn first(&self) -> u64 {
        self.ids.next.saturating_sub(self.events.len() as u64)
    }

    /// Stores events, and returns them.
    fn push(&mut self, events: impl IntoIterator<Item = (SystemTime, What)>) -> Vec<StoredEvent> {
        let mut stored = Vec::new();
        for (at, what) in events {
            if self.events.len() >= CAPACITY {
                self.events.pop_front();
            }
            let id = self.ids.next;
            self.ids.next += 1;
            let session = what.session();
            self.ids.last_session = self.ids.last_session.max(session);
            let content = Content::Seen { at, what, json: OnceLock::new() };
            let event = StoredEvent(Arc::new(Stored { id, session, content }));
            self.events.push_back(event.clone());
            stored.push(event);
        }
        stored
    }
}

impl StoredEvent {
    /// The object with its fields, which docs/events.md lists.
    pub(super) fn json(&self) -> Cow<'_, RawValue> {
        let (at, what, json) = match &self.0.content {
            Content::Left(json) => return Cow::Borrowed(json),
            Content::Seen { at, what, json } => (*at, what, json),
        };
        if let Some(stored) = json.get() {
            return Cow::Borrowed(stored);
        }
        let made = row::json_of(self.0.id, at, what);
        match made.get().len() {
            ..=MAX_STORED_JSON => Cow::Borrowed(json.get_or_init(|| made)),
            _ => Cow::Owned(made),
        }
    }

    /// The transfer, if it is one that has ended.
    pub(super) fn ended_transfer(&self) -> Option<&FinishedTransfer> {
        match &self.0.content {
            Content::Seen { what: What::Report(report), .. } => report.ended_transfer(),
            _ => None,
        }
    }
}

/// The events that an earlier daemon has `left`, if the next one is numbered `ids.next`.
fn restored(left: Vec<Box<RawValue>>, ids: &EventIds) -> Option<VecDeque<StoredEvent>> {
    #[derive(Deserialize)]
    struct Numbers {
        id: u64,
        session: u64,
    }
    let first = ids.next.checked_sub(left.len() as u64)?;
    let excess = left.len().saturating_sub(CAPACITY);
    let numbered = (first..).zip(left).skip(excess).map(|(expected, json)| {
        let Numbers { id, session } = serde_json::from_str(json.get()).ok()?;
        let content = Content::Left(json);
        (id == expected).then(|| StoredEvent(Arc::new(Stored { id, session, content })))
    });
    numbered.collect()
}

impl Serialize for StoredEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

impl What {
    fn session(&self) -> u64 {
        match self {
            Self::Session(event) => event.session,
            Self::Report(report) => report.session().id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(session: u64) -> Event {
        let (client, server) =
            ("10.0.0.7:1035".parse().unwrap(), "203.0.113.9:21".parse().unwrap());
        Event { session, client, server, user: None, kind: EventKind::Encrypted }
    }

    #[test]
    fn a_slow_reader_learns_how_many_events_are_gone() {
        let ring = EventRing::new(None, Vec::new());
        let first = lock(&ring.0).ids.origin;
        ring.record(&[event(1), event(2), event(3)], |_| false, 0);
        let RecentEvents { events, lost } = ring.after(0);
        assert_eq!((events.len(), lost), (3, Some(0)));
        assert_eq!(
            events.iter().map(|row| row.0.id).collect::<Vec<_>>(),
            [first, first + 1, first + 2]
        );
        assert_eq!(ring.after(first).events.len(), 2);
        assert_eq!(ring.after(first + 2).events.len(), 0);
        for number in 0..CAPACITY as u64 {
            ring.record(&[event(number)], |_| false, 0);
        }
        let RecentEvents { events, lost } = ring.after(first);
        assert_eq!((events.len(), lost), (MAX_ANSWERED, Some(2)));
        assert_eq!(events[0].0.id, first + 3);
        assert_eq!(lock(&ring.0).events.len(), CAPACITY);
        // The ID of an earlier daemon.
        assert_eq!(ring.after(first - 5_000_000).lost, None);
        assert_eq!(ring.after(u64::MAX - 1).events.len(), 0);
        assert_eq!(ring.after(u64::MAX).events.len(), 0);
    }

    #[test]
    fn a_page_gets_the_newest_events_that_it_does_not_have() {
        let ring = EventRing::new(None, Vec::new());
        let first = lock(&ring.0).ids.origin;
        let newest = |after| {
            let RecentEvents { events, lost } = ring.newest_after(after);
            let id = |event: Option<&StoredEvent>| event.map_or(0, |event| event.0.id - first);
            (id(events.first()), id(events.last()), events.len(), lost)
        };
        assert_eq!(newest(0), (0, 0, 0, Some(0)));
        let events: Vec<_> = (0..2500).map(event).collect();
        ring.record(&events[..5], |_| false, 0);
        assert_eq!(newest(0), (0, 4, 5, Some(0)));
        assert_eq!(newest(first), (1, 4, 4, Some(0)));
        assert_eq!(newest(first + 4), (0, 0, 0, Some(0)));
        assert_eq!(newest(u64::MAX), (0, 0, 0, None), "the ID of another state directory");
        assert_eq!(newest(first - 2).3, None);
        ring.record(&events[5..], |_| false, 0);
        assert_eq!(newest(0), (1500, 2499, MAX_ANSWERED, Some(0)));
        assert_eq!(newest(first + 9), (1500, 2499, MAX_ANSWERED, Some(1490)));
    }

    #[test]
    fn ids_continue_over_a_restart() {
        let file = tempfile::tempfile().unwrap();
        let open = || EventRing::new(Some(file.try_clone().unwrap()), Vec::new());
        let killed = open();
        killed.record(&[event(1), event(2), event(3)], |_| false, 0);
        let first = killed.after(0).events[0].0.id;
        let ring = open();
        let answer = ring.after(first);
        assert_eq!((answer.events.len(), answer.lost), (0, Some(2)), "two were not read");
        ring.record(&[event(4)], |_| false, 0);
        let answer = ring.after(first);
        assert_eq!((answer.events[0].0.id, answer.lost), (first + 3, Some(2)));
        assert_eq!(ring.after(first + 2).lost, Some(0));
        assert_eq!(open().last_session(), 4);
        ring.record(&[], |_| false, 3);
        ring.count_lost(1);
        assert_eq!(open().unreported_before(), 2);
        assert_eq!(open().unreported_before(), 0, "once");
        // Garbage, as another program may leave it.
        for bytes in [[0xff; 32], [0; 32]] {
            file.write_all_at(&bytes, 0).unwrap();
            let ring = open();
            assert_eq!(ring.after(first).lost, None);
        }
        file.set_len(3).unwrap();
        assert_eq!(open().after(first).lost, None);
    }

    #[test]
    fn a_daemon_that_ends_leaves_its_events_to_the_next_one() {
        let file = tempfile::tempfile().unwrap();
        let open = |left| EventRing::new(Some(file.try_clone().unwrap()), left);
        let left_by = |ring: &EventRing| -> Vec<Box<RawValue>> {
            serde_json::from_str(&serde_json::to_string(&ring.to_leave()).unwrap()).unwrap()
        };
        let shown = |ring: &EventRing| serde_json::to_string(&ring.after(0).events).unwrap();
        let ring = open(Vec::new());
        ring.record(&[event(1), event(2), event(1)], |_| false, 0);
        let (left, before) = (left_by(&ring), shown(&ring));
        let ring = open(left.clone());
        assert_eq!(shown(&ring), before);
        assert_eq!(ring.last_of(1, 9).len(), 2);
        let first = ring.after(0).events[0].0.id;
        ring.record(&[event(3)], |_| false, 0);
        let answer = ring.after(first);
        assert_eq!((answer.events.len(), answer.lost), (3, Some(0)));
        // They are not those of the last daemon.
        assert_eq!(open(left).after(first).lost, Some(3));
        for garbage in [r#"{"id":1,"session":1}"#, r#"{"session":1}"#, "7"] {
            let garbage = RawValue::from_string(garbage.to_owned()).unwrap();
            assert_eq!(open(vec![garbage]).after(0).events.len(), 0);
        }
        let ring = open(left_by(&ring));
        (0..CAPACITY as u64).for_each(|number| ring.record(&[event(number)], |_| false, 0));
        let ring = open(left_by(&ring));
        assert_eq!(ring.to_leave().len(), CAPACITY);
        assert_eq!(ring.after(first).lost, Some(3));
    }

    #[test]
    fn long_names_do_not_fill_the_memory() {
        let file = tempfile::tempfile().unwrap();
        let ring = EventRing::new(Some(file.try_clone().unwrap()), Vec::new());
        let long = Event { user: Some("x".repeat(3000).into()), ..event(1) };
        (0..CAPACITY).for_each(|_| ring.record(std::slice::from_ref(&long), |_| false, 0));
        let left = ring.to_leave();
        assert!((1000..MAX_LEFT / 3000).contains(&left.len()), "{}", left.len());
        let is_stored = |event: &StoredEvent| match &event.0.content {
            Content::Seen { json, .. } => json.get().is_some(),
            Content::Left(_) => true,
        };
        assert!(!ring.after(0).events.iter().any(is_stored));
        let count = left.len();
        let next = EventRing::new(Some(file), left);
        assert_eq!(next.to_leave().len(), count);
    }

    #[test]
    fn the_last_events_of_a_session_are_found() {
        let ring = EventRing::new(None, Vec::new());
        for number in 0..10 {
            ring.record(&[event(number % 2)], |_| false, 0);
        }
        let ids = |session, limit| {
            let first = ring.after(0).events[0].0.id;
            let rows = ring.last_of(session, limit);
            rows.iter().map(|row| row.0.id - first).collect::<Vec<_>>()
        };
        assert_eq!(ids(1, 3), [5, 7, 9]);
        assert_eq!(ids(0, 20), [0, 2, 4, 6, 8]);
        assert_eq!(ids(2, 20), [0; 0]);
    }

    #[test]
    fn each_event_of_a_session_with_a_login_has_its_user() {
        let ring = EventRing::new(None, Vec::new());
        ring.record(&[Event { user: Some("bob".into()), ..event(17) }], |_| false, 0);
        assert!(ring.after(0).events[0].json().get().contains(r#""user":"bob""#));
    }

    #[test]
    fn a_row_has_the_documented_fields() {
        let ring = EventRing::new(None, Vec::new());
        ring.record(&[event(17)], |_| false, 0);
        let row = serde_json::to_value(&ring.after(0).events[0]).unwrap();
        let fields: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["client", "event", "id", "server", "session", "text", "time"]);
        assert_eq!((&row["event"], &row["client"]), (&"encrypted".into(), &"10.0.0.7".into()));
        assert!(row["time"].as_str().unwrap().ends_with('Z'), "{row}");
    }
}
