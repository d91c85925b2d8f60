//! The recent events, for `ftp-alg events`: a ring in memory. A reader that is slow finds that the oldest are gone, and
//! how many; nobody waits for it.

use std::{
    collections::VecDeque,
    sync::Mutex,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ftp_alg_core::engine::{EndedSession, Event, EventKind, FinishedTransfer};
use jiff::Timestamp;

use super::{
    shard::lock,
    snapshot::{EndedSessionRow, EventRow, RecentEvents},
    transfers::{Report, SessionReport, event_of},
};

/// Limit of stored events.
const CAPACITY: usize = 4096;
/// Limit of events in one answer.
const MAX_ANSWERED: usize = 1000;

/// The ring.
pub(super) struct EventRing(Mutex<Ring>);

struct Ring {
    events: VecDeque<(SystemTime, Recorded)>,
    /// The ID of the first event of this daemon. IDs count by one from the time of the start in microseconds, so those
    /// of a later daemon are greater.
    base: u64,
    /// The ID of the first stored event.
    first: u64,
}

/// What is shown of an event.
enum Recorded {
    Session(Event),
    Report(Report),
}

impl Default for EventRing {
    fn default() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let base = u64::try_from(since_epoch.as_micros()).unwrap_or_default();
        Self(Mutex::new(Ring { events: VecDeque::new(), base, first: base }))
    }
}

impl EventRing {
    /// Records the events of sessions, except those that are recorded later, when all is known of them.
    pub(super) fn record(&self, events: &[Event], is_later: impl Fn(&EventKind) -> bool) {
        let mut ring = None;
        for event in events.iter().filter(|event| !is_later(&event.kind)) {
            let ring = ring.get_or_insert_with(|| lock(&self.0));
            ring.push(SystemTime::now(), Recorded::Session(event.clone()));
        }
    }

    /// Records what the reports of transfers say. Returns what a reader gets.
    pub(super) fn record_report(&self, report: Report) -> EventRow {
        let at = report.at();
        let recorded = Recorded::Report(report);
        let mut ring = lock(&self.0);
        let row = recorded.row(ring.first + ring.events.len() as u64, at);
        ring.push(at, recorded);
        row
    }

    /// The events behind the one with the ID `after`, as many as an answer may have; 0 for the first ones.
    pub(super) fn after(&self, after: u64) -> RecentEvents {
        let ring = lock(&self.0);
        let wanted = after.saturating_add(1);
        let start = usize::try_from(wanted.saturating_sub(ring.first)).unwrap_or(usize::MAX);
        let rows = ring.events.iter().enumerate().skip(start).take(MAX_ANSWERED);
        let row = |(at, (time, recorded)): (usize, &(SystemTime, Recorded))| {
            recorded.row(ring.first + at as u64, *time)
        };
        let lost = match after {
            0 => Some(0),
            _ => (wanted >= ring.base).then(|| ring.first.saturating_sub(wanted)),
        };
        RecentEvents { events: rows.map(row).collect(), lost }
    }
}

impl Ring {
    fn push(&mut self, at: SystemTime, recorded: Recorded) {
        if self.events.len() >= CAPACITY {
            self.events.pop_front();
            self.first += 1;
        }
        self.events.push_back((at, recorded));
    }
}

impl Recorded {
    fn row(&self, id: u64, at: SystemTime) -> EventRow {
        let time = Timestamp::try_from(at).map(|at| format!("{at:.6}")).unwrap_or_default();
        match self {
            Self::Session(event) => EventRow { id, time, ..session_row(event) },
            Self::Report(Report::Transfer(finished)) => {
                EventRow { id, time, ..transfer_row(finished) }
            }
            Self::Report(Report::SessionEnd(report)) => {
                EventRow { id, time, ..ended_session_row(report) }
            }
        }
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
        user: match &event.kind {
            EventKind::LoggedIn(user) => user.as_deref().map(str::to_owned),
            EventKind::SessionEnded(ended) => ended.user.as_deref().map(str::to_owned),
            _ => None,
        },
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

fn transfer_row(finished: &FinishedTransfer) -> EventRow {
    let FinishedTransfer { session, transfer, .. } = finished;
    EventRow {
        event: event_of(finished),
        session: session.id,
        client: Some(session.client.ip()),
        server: Some(session.server.ip()),
        user: transfer.user.as_deref().map(str::to_owned),
        transfer: Some(finished.fields()),
        text: finished.to_string(),
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
        Event { session, client, server, kind: EventKind::Encrypted }
    }

    #[test]
    fn a_slow_reader_learns_how_many_events_are_gone() {
        let ring = EventRing::default();
        let first = lock(&ring.0).base;
        ring.record(&[event(1), event(2), event(3)], |_| false);
        let RecentEvents { events, lost } = ring.after(0);
        assert_eq!((events.len(), lost), (3, Some(0)));
        assert_eq!(
            events.iter().map(|row| row.id).collect::<Vec<_>>(),
            [first, first + 1, first + 2]
        );
        assert_eq!(ring.after(first).events.len(), 2);
        assert_eq!(ring.after(first + 2).events.len(), 0);
        for number in 0..CAPACITY as u64 {
            ring.record(&[event(number)], |_| false);
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
    fn a_row_has_the_documented_fields() {
        let ring = EventRing::default();
        ring.record(&[event(17)], |_| false);
        let row = serde_json::to_value(&ring.after(0).events[0]).unwrap();
        let fields: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["client", "event", "id", "server", "session", "text", "time"]);
        assert_eq!((&row["event"], &row["client"]), (&"encrypted".into(), &"10.0.0.7".into()));
        assert!(row["time"].as_str().unwrap().ends_with('Z'), "{row}");
    }
}
