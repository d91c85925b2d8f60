//! The recent events, for `ftp-alg events`: a ring in memory. A reader that is slow finds that the oldest are gone, and
//! how many; nobody waits for it. The lock is held only to store events or to take handles of them, never to print them.

use std::{
    collections::VecDeque,
    fs::File,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ftp_alg_core::engine::{EndedSession, Event, EventKind, FinishedTransfer};
use jiff::Timestamp;

use super::{
    shard::lock,
    snapshot::{EndedSessionRow, EventRow, RecentEvents},
    transfers::{MissingConnection, Report, SessionReport},
};

/// Limit of stored events.
const CAPACITY: usize = 4096;
/// Saved IDs are less: a reader of JSON may compute with floating-point numbers.
const MAX_SAVED_ID: u64 = 1 << 53;
/// Limit of events in one answer.
const MAX_ANSWERED: usize = 1000;

/// The ring.
pub(super) struct EventRing(Mutex<Ring>);

struct Ring {
    events: VecDeque<Recorded>,
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
    /// Transfers that have ended, less those that are reported. Below zero for a moment if one is reported before it is
    /// counted.
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
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(since_epoch.as_micros()).unwrap_or_default();
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

/// A handle of an event.
#[derive(Clone)]
enum Recorded {
    Session(Arc<(SystemTime, Event)>),
    Report(Arc<Report>),
}

impl EventRing {
    /// An empty ring, whose IDs are behind those in `file`.
    pub(super) fn new(file: Option<File>) -> Self {
        let mut ids = EventIds::after(file);
        let unreported_before = u64::try_from(std::mem::take(&mut ids.unreported)).unwrap_or(0);
        ids.save();
        Self(Mutex::new(Ring { events: VecDeque::new(), unreported_before, ids }))
    }

    /// How many transfers an earlier daemon left unreported, because it was killed.
    pub(super) fn unreported_before(&self) -> u64 {
        lock(&self.0).unreported_before
    }

    /// Records the events of sessions, except those that are recorded later, when all is known of them. Counts those of
    /// them that are ended transfers.
    pub(super) fn record(
        &self,
        events: &[Event],
        is_later: impl Fn(&EventKind) -> bool,
        ended_transfers: u64,
    ) {
        let now = events.iter().filter(|event| !is_later(&event.kind));
        let recorded: Vec<_> = now
            .map(|event| Recorded::Session(Arc::new((SystemTime::now(), event.clone()))))
            .collect();
        if !recorded.is_empty() || ended_transfers > 0 {
            let mut ring = lock(&self.0);
            ring.ids.unreported += ended_transfers as i64;
            ring.push(recorded);
        }
    }

    /// Records reports of the transfers' thread at once. Returns the events of transfers that have ended.
    pub(super) fn record_reports(&self, reports: Vec<Report>) -> impl Iterator<Item = EventRow> {
        let reports: Vec<_> = reports.into_iter().map(Arc::new).collect();
        let ended = reports.iter().filter(|report| report.is_ended_transfer()).count();
        let mut ring = lock(&self.0);
        ring.ids.unreported -= ended as i64;
        let first = ring.push(reports.iter().cloned().map(Recorded::Report));
        drop(ring);
        let with_ids = (first..).zip(reports);
        let ended = with_ids.filter(|(_, report)| report.is_ended_transfer());
        ended.map(|(id, report)| Recorded::Report(report).row(id))
    }

    /// The last session with an event, also of earlier daemons.
    pub(super) fn last_session(&self) -> u64 {
        lock(&self.0).ids.last_session
    }

    /// The ID of the first event of all. Lower ones are not of this ring.
    pub(super) fn origin(&self) -> u64 {
        lock(&self.0).ids.origin
    }

    /// The events behind the one with the ID `after`, as many as an answer may have; 0 for the first ones.
    pub(super) fn after(&self, after: u64) -> RecentEvents {
        let wanted = after.saturating_add(1);
        let ring = lock(&self.0);
        let (origin, first) = (ring.ids.origin, ring.first());
        let start = usize::try_from(wanted.saturating_sub(first)).unwrap_or(usize::MAX);
        let chosen: Vec<_> = ring.events.iter().skip(start).take(MAX_ANSWERED).cloned().collect();
        drop(ring);
        let ids = first.max(wanted)..;
        let lost = match after {
            0 => Some(0),
            _ => (wanted >= origin).then(|| first.saturating_sub(wanted)),
        };
        RecentEvents {
            events: chosen.iter().zip(ids).map(|(recorded, id)| recorded.row(id)).collect(),
            lost,
        }
    }

    /// The last events of a session, oldest first, but no more than `limit`.
    pub(super) fn last_of(&self, session: u64, limit: usize) -> Vec<EventRow> {
        let ring = lock(&self.0);
        let stored = (ring.first()..).zip(&ring.events);
        let of_session = stored.filter(|(_, event)| event.session() == session);
        let mut chosen: Vec<_> = of_session.map(|(id, event)| (id, event.clone())).collect();
        drop(ring);
        chosen.drain(..chosen.len().saturating_sub(limit));
        chosen.into_iter().map(|(id, event)| event.row(id)).collect()
    }
}

impl Ring {
    /// The ID of the first stored event.
    fn first(&self) -> u64 {
        self.ids.next.saturating_sub(self.events.len() as u64)
    }

    /// Stores events, and returns the ID of the first of them.
    fn push(&mut self, events: impl IntoIterator<Item = Recorded>) -> u64 {
        let id = self.ids.next;
        for event in events {
            if self.events.len() >= CAPACITY {
                self.events.pop_front();
            }
            self.ids.next += 1;
            self.ids.last_session = self.ids.last_session.max(event.session());
            self.events.push_back(event);
        }
        self.ids.save();
        id
    }
}

impl Recorded {
    fn session(&self) -> u64 {
        match self {
            Self::Session(event) => event.1.session,
            Self::Report(report) => report.session().id,
        }
    }

    fn row(&self, id: u64) -> EventRow {
        let (at, row) = match self {
            Self::Session(event) => (event.0, session_row(&event.1)),
            Self::Report(report) => (report.at(), report_row(report)),
        };
        let time = Timestamp::try_from(at).map(|at| format!("{at:.6}")).unwrap_or_default();
        EventRow { id, time, ..row }
    }
}

fn session_row(event: &Event) -> EventRow {
    let decided = match &event.kind {
        EventKind::Announcement(decided) => Some(decided),
        _ => None,
    };
    EventRow {
        event: event.kind.name(),
        session: event.session,
        client: Some(event.client.ip()),
        server: Some(event.server.ip()),
        user: event.user.as_deref().map(str::to_owned),
        kind: match &event.kind {
            EventKind::PinholeExpired(_, kind) => Some(*kind),
            _ => decided.map(|decided| decided.kind),
        },
        action: decided.map(|decided| decided.action()),
        announced: decided.and_then(|decided| decided.announced).map(|end| end.to_string()),
        rewritten: decided.and_then(|decided| decided.rewritten()).map(|end| end.to_string()),
        ended_session: match &event.kind {
            EventKind::SessionEnded(ended) => Some(session_end(ended, None)),
            _ => None,
        },
        text: event.to_string(),
        ..EventRow::default()
    }
}

fn report_row(report: &Report) -> EventRow {
    match report {
        Report::Transfer(finished) => transfer_row(finished),
        Report::SessionEnd(report) => ended_session_row(report),
        Report::NoDataConnection(missing) => missing_connection_row(missing),
    }
}

fn transfer_row(finished: &FinishedTransfer) -> EventRow {
    let FinishedTransfer { session, transfer, .. } = finished;
    EventRow {
        event: finished.event(),
        session: session.id,
        client: Some(session.client.ip()),
        server: Some(session.server.ip()),
        user: transfer.user.as_deref().map(str::to_owned),
        transfer: Some(finished.fields()),
        text: finished.to_string(),
        ..EventRow::default()
    }
}

fn missing_connection_row(missing: &MissingConnection) -> EventRow {
    let MissingConnection { session, user, reason, .. } = missing;
    EventRow {
        event: "no-data-connection",
        session: session.id,
        client: Some(session.client.ip()),
        server: Some(session.server.ip()),
        user: user.as_deref().map(str::to_owned),
        reason: Some(reason.clone()),
        text: missing.to_string(),
        ..EventRow::default()
    }
}

fn ended_session_row(report: &SessionReport) -> EventRow {
    let SessionReport { session, ended, bytes, .. } = report;
    EventRow {
        event: "session-ended",
        session: session.id,
        client: Some(session.client.ip()),
        server: Some(session.server.ip()),
        user: ended.user.as_deref().map(str::to_owned),
        ended_session: Some(session_end(ended, *bytes)),
        text: report.to_string(),
        ..EventRow::default()
    }
}

fn session_end(ended: &EndedSession, bytes: Option<u64>) -> EndedSessionRow {
    let EndedSession { end, transfers, duration, .. } = ended;
    EndedSessionRow { end: end.name(), transfers: *transfers, bytes, seconds: seconds(*duration) }
}

/// To a microsecond.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
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
        let ring = EventRing::new(None);
        let first = lock(&ring.0).ids.origin;
        ring.record(&[event(1), event(2), event(3)], |_| false, 0);
        let RecentEvents { events, lost } = ring.after(0);
        assert_eq!((events.len(), lost), (3, Some(0)));
        assert_eq!(
            events.iter().map(|row| row.id).collect::<Vec<_>>(),
            [first, first + 1, first + 2]
        );
        assert_eq!(ring.after(first).events.len(), 2);
        assert_eq!(ring.after(first + 2).events.len(), 0);
        for number in 0..CAPACITY as u64 {
            ring.record(&[event(number)], |_| false, 0);
        }
        let RecentEvents { events, lost } = ring.after(first);
        assert_eq!((events.len(), lost), (MAX_ANSWERED, Some(2)));
        assert_eq!(events[0].id, first + 3);
        assert_eq!(lock(&ring.0).events.len(), CAPACITY);
        // The ID of an earlier daemon.
        assert_eq!(ring.after(first - 5_000_000).lost, None);
        assert_eq!(ring.after(u64::MAX - 1).events.len(), 0);
        assert_eq!(ring.after(u64::MAX).events.len(), 0);
    }

    #[test]
    fn ids_continue_over_a_restart() {
        let file = tempfile::tempfile().unwrap();
        let open = || EventRing::new(Some(file.try_clone().unwrap()));
        let killed = open();
        killed.record(&[event(1), event(2), event(3)], |_| false, 0);
        let first = killed.after(0).events[0].id;
        let ring = open();
        let answer = ring.after(first);
        assert_eq!((answer.events.len(), answer.lost), (0, Some(2)), "two were not read");
        ring.record(&[event(4)], |_| false, 0);
        let answer = ring.after(first);
        assert_eq!((answer.events[0].id, answer.lost), (first + 3, Some(2)));
        assert_eq!(ring.after(first + 2).lost, Some(0));
        assert_eq!(open().last_session(), 4);
        ring.record(&[], |_| false, 2);
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
    fn the_last_events_of_a_session_are_found() {
        let ring = EventRing::new(None);
        for number in 0..10 {
            ring.record(&[event(number % 2)], |_| false, 0);
        }
        let ids = |session, limit| {
            let first = ring.after(0).events[0].id;
            let rows = ring.last_of(session, limit);
            rows.iter().map(|row| row.id - first).collect::<Vec<_>>()
        };
        assert_eq!(ids(1, 3), [5, 7, 9]);
        assert_eq!(ids(0, 20), [0, 2, 4, 6, 8]);
        assert_eq!(ids(2, 20), [0; 0]);
    }

    #[test]
    fn each_event_of_a_session_with_a_login_has_its_user() {
        let ring = EventRing::new(None);
        ring.record(&[Event { user: Some("bob".into()), ..event(17) }], |_| false, 0);
        assert_eq!(ring.after(0).events[0].user.as_deref(), Some("bob"));
    }

    #[test]
    fn a_row_has_the_documented_fields() {
        let ring = EventRing::new(None);
        ring.record(&[event(17)], |_| false, 0);
        let row = serde_json::to_value(&ring.after(0).events[0]).unwrap();
        let fields: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["client", "event", "id", "server", "session", "text", "time"]);
        assert_eq!((&row["event"], &row["client"]), (&"encrypted".into(), &"10.0.0.7".into()));
        assert!(row["time"].as_str().unwrap().ends_with('Z'), "{row}");
    }
}
