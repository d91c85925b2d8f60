//! The recent events, for `ftp-alg events`: a ring in memory. A reader that is slow finds that the oldest are gone, and
//! how many; nobody waits for it. The lock is held only to store events or to take handles of them, never to print them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use ftp_alg_core::engine::{Event, EventKind};
use jiff::Timestamp;

use super::{
    shard::lock,
    snapshot::{EventRow, RecentEvents, TransferRow},
    transfers::FinishedTransfer,
};

/// Limit of stored events.
const CAPACITY: usize = 4096;
/// Limit of events in one answer.
const MAX_ANSWERED: usize = 1000;

/// The ring.
pub(super) struct EventRing(Mutex<Ring>);

struct Ring {
    events: VecDeque<Arc<Recorded>>,
    /// The ID of the first event of this daemon. IDs count by one from the time of the start in microseconds, so those
    /// of a later daemon are greater.
    base: u64,
    /// The ID of the first stored event.
    first: u64,
}

/// What is shown of an event.
enum Recorded {
    Session(SystemTime, Event),
    Transfer(FinishedTransfer),
}

impl Default for EventRing {
    fn default() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let base = u64::try_from(since_epoch.as_micros()).unwrap_or_default();
        Self(Mutex::new(Ring { events: VecDeque::new(), base, first: base }))
    }
}

impl EventRing {
    /// Records the events of sessions; transfers are recorded when all is known of them.
    pub(super) fn record(&self, events: &[Event]) {
        let is_transfer = |event: &&Event| matches!(event.kind, EventKind::Transfer(_));
        let others = events.iter().filter(|event| !is_transfer(event));
        let recorded: Vec<_> = others
            .map(|event| Arc::new(Recorded::Session(SystemTime::now(), event.clone())))
            .collect();
        if !recorded.is_empty() {
            let mut ring = lock(&self.0);
            recorded.into_iter().for_each(|event| _ = ring.push(event));
        }
    }

    /// Records a transfer. Returns what a reader gets, if it `is_wanted` now.
    pub(super) fn record_transfer(
        &self,
        finished: FinishedTransfer,
        is_wanted: bool,
    ) -> Option<EventRow> {
        let recorded = Arc::new(Recorded::Transfer(finished));
        let id = lock(&self.0).push(Arc::clone(&recorded));
        is_wanted.then(|| recorded.row(id))
    }

    /// The events behind the one with the ID `after`, as many as an answer may have; 0 for the first ones.
    pub(super) fn after(&self, after: u64) -> RecentEvents {
        let wanted = after.saturating_add(1);
        let ring = lock(&self.0);
        let (base, first) = (ring.base, ring.first);
        let start = usize::try_from(wanted.saturating_sub(first)).unwrap_or(usize::MAX);
        let chosen: Vec<_> = ring.events.iter().skip(start).take(MAX_ANSWERED).cloned().collect();
        drop(ring);
        let ids = first.max(wanted)..;
        let lost = match after {
            0 => Some(0),
            _ => (wanted >= base).then(|| first.saturating_sub(wanted)),
        };
        RecentEvents {
            events: chosen.iter().zip(ids).map(|(recorded, id)| recorded.row(id)).collect(),
            lost,
        }
    }
}

impl Ring {
    /// Stores an event, and returns its ID.
    fn push(&mut self, event: Arc<Recorded>) -> u64 {
        if self.events.len() >= CAPACITY {
            self.events.pop_front();
            self.first += 1;
        }
        self.events.push_back(event);
        self.first + (self.events.len() as u64 - 1)
    }
}

impl Recorded {
    fn row(&self, id: u64) -> EventRow {
        let (at, row) = match self {
            Self::Session(at, event) => (*at, session_row(event)),
            Self::Transfer(finished) => (finished.at, transfer_row(finished)),
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
        user: match &event.kind {
            EventKind::LoggedIn(user) => user.as_deref().map(str::to_owned),
            _ => None,
        },
        kind: match &event.kind {
            EventKind::PinholeExpired(_, kind) => Some(*kind),
            _ => decided.map(|decided| decided.kind),
        },
        action: decided.map(|decided| decided.action()),
        announced: decided.and_then(|decided| decided.announced).map(|end| end.to_string()),
        rewritten: decided.and_then(|decided| decided.rewritten()).map(|end| end.to_string()),
        transfer: None,
        text: event.to_string(),
        ..EventRow::default()
    }
}

fn transfer_row(finished: &FinishedTransfer) -> EventRow {
    let FinishedTransfer { session, transfer, result, bytes, duration, reason, .. } = finished;
    let mode = transfer.is_active().map(|is_active| if is_active { "active" } else { "passive" });
    EventRow {
        event: "transfer",
        session: session.id,
        client: Some(session.client.ip()),
        server: Some(session.server.ip()),
        user: transfer.user.as_deref().map(str::to_owned),
        transfer: Some(TransferRow {
            verb: transfer.verb.name(),
            path: transfer.path.to_string(),
            direction: if transfer.verb.is_upload() { "up" } else { "down" },
            mode,
            bytes: *bytes,
            seconds: (duration.as_secs_f64() * 1e6).round() / 1e6,
            result: result.into(),
            code: finished.code(),
            reason: reason.clone(),
        }),
        text: finished.to_string(),
        ..EventRow::default()
    }
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
        ring.record(&[event(1), event(2), event(3)]);
        let RecentEvents { events, lost } = ring.after(0);
        assert_eq!((events.len(), lost), (3, Some(0)));
        assert_eq!(
            events.iter().map(|row| row.id).collect::<Vec<_>>(),
            [first, first + 1, first + 2]
        );
        assert_eq!(ring.after(first).events.len(), 2);
        assert_eq!(ring.after(first + 2).events.len(), 0);
        for number in 0..CAPACITY as u64 {
            ring.record(&[event(number)]);
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
        ring.record(&[event(17)]);
        let row = serde_json::to_value(&ring.after(0).events[0]).unwrap();
        let fields: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["client", "event", "id", "server", "session", "text", "time"]);
        assert_eq!((&row["event"], &row["client"]), (&"encrypted".into(), &"10.0.0.7".into()));
        assert!(row["time"].as_str().unwrap().ends_with('Z'), "{row}");
    }
}
