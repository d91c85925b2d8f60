//! The newest events as JSON, for all open pages: each is converted once, however many pages ask for it.
//!
//! Invariant: its size is bounded by [`MAX_EVENTS`] and [`MAX_BYTES`]. A page that is too slow learns how many events
//! it missed.

use std::collections::VecDeque;

use crate::daemon::snapshot::EventRow;

/// Limit of events in an answer.
const MAX_EVENTS: usize = 1000;
/// Limit of their text, in bytes.
const MAX_BYTES: usize = 1 << 20;
/// Reads of the ring in one update. Each gets many events, so a few reach the newest one.
const MAX_READS: usize = 8;

/// The newest events.
#[derive(Debug, Default)]
pub(super) struct EventWindow {
    /// JSON objects of events whose IDs follow each other.
    rows: VecDeque<String>,
    /// The ID behind the newest event that was read.
    next: u64,
    /// The bytes of all rows.
    bytes: usize,
}

impl EventWindow {
    /// Reads the events behind the newest one: `read` gives those behind an ID, or the first ones for 0.
    pub(super) fn update(&mut self, read: impl Fn(u64) -> Vec<EventRow>) {
        for _ in 0..MAX_READS {
            let events = read(self.next.saturating_sub(1));
            if events.is_empty() {
                return;
            }
            for event in events {
                if event.id != self.next {
                    (self.rows, self.bytes) = (VecDeque::new(), 0);
                }
                let row = serde_json::to_string(&event).unwrap_or_default();
                self.next = event.id.saturating_add(1);
                self.push(row);
            }
        }
    }

    /// The answer to a page that has the events up to the ID `after`, or none if it is 0. `first_id` is that of the
    /// first event of all. It has the fields of an answer of the control socket.
    pub(super) fn answer(&self, after: u64, first_id: u64) -> String {
        let wanted = after.saturating_add(1);
        let first = self.next.saturating_sub(self.rows.len() as u64);
        let start = usize::try_from(wanted.saturating_sub(first)).unwrap_or(usize::MAX);
        let lost = match after {
            0 => "0".to_owned(),
            _ if wanted < first_id => "null".to_owned(),
            _ => first.saturating_sub(wanted).to_string(),
        };
        let rows: Vec<&str> = self.rows.iter().skip(start).map(String::as_str).collect();
        format!("{{\"events\":[{}],\"lost\":{lost}}}\n", rows.join(","))
    }

    fn push(&mut self, row: String) {
        self.bytes += row.len();
        self.rows.push_back(row);
        while self.rows.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
            let Some(oldest) = self.rows.pop_front() else { return };
            self.bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const FIRST: u64 = 1_000_000;

    /// Reads of a ring that has the events `stored`, and gives 600 at a time.
    fn ring(stored: std::ops::RangeInclusive<u64>, text: &str) -> impl Fn(u64) -> Vec<EventRow> {
        move |after| {
            let ids = stored.clone().filter(|id| *id > after).take(600);
            ids.map(|id| EventRow { id, text: text.to_owned(), ..EventRow::default() }).collect()
        }
    }

    /// The first and the last ID, the number of events, and `lost`.
    fn parse(answer: &str) -> (u64, u64, usize, Value) {
        let answer: Value = serde_json::from_str(answer).unwrap();
        let events = answer["events"].as_array().unwrap();
        let id = |event: Option<&Value>| event.map_or(0, |event| event["id"].as_u64().unwrap());
        (id(events.first()), id(events.last()), events.len(), answer["lost"].clone())
    }

    #[test]
    fn each_page_gets_the_events_that_it_does_not_have() {
        let mut window = EventWindow::default();
        assert_eq!(window.answer(0, FIRST), "{\"events\":[],\"lost\":0}\n");
        window.update(ring(FIRST..=FIRST + 2, "text"));
        assert_eq!(parse(&window.answer(0, FIRST)), (FIRST, FIRST + 2, 3, json!(0)));
        window.update(ring(FIRST..=FIRST + 4, "text"));
        assert_eq!(parse(&window.answer(FIRST, FIRST)), (FIRST + 1, FIRST + 4, 4, json!(0)));
        assert_eq!(parse(&window.answer(FIRST + 4, FIRST)), (0, 0, 0, json!(0)));
        assert_eq!(parse(&window.answer(u64::MAX, FIRST)), (0, 0, 0, json!(0)));
    }

    #[test]
    fn a_slow_page_learns_how_many_events_it_missed() {
        let mut window = EventWindow::default();
        window.update(ring(FIRST..=FIRST + 2499, "text"));
        let answer = parse(&window.answer(FIRST + 9, FIRST));
        assert_eq!(answer, (FIRST + 1500, FIRST + 2499, MAX_EVENTS, json!(1490)));
        // The ring lost events while no page was open.
        window.update(ring(FIRST + 9000..=FIRST + 9001, "text"));
        let answer = parse(&window.answer(FIRST + 2499, FIRST));
        assert_eq!(answer, (FIRST + 9000, FIRST + 9001, 2, json!(6500)));
    }

    #[test]
    fn an_unknown_id_is_said_to_be_one() {
        let mut window = EventWindow::default();
        assert_eq!(parse(&window.answer(5, FIRST)).3, Value::Null);
        window.update(ring(FIRST..=FIRST, "text"));
        assert_eq!(parse(&window.answer(FIRST - 2, FIRST)).3, Value::Null);
        assert_eq!(parse(&window.answer(FIRST - 1, FIRST)).3, json!(0));
    }

    #[test]
    fn long_texts_take_bounded_memory() {
        let mut window = EventWindow::default();
        window.update(ring(FIRST..=FIRST + 999, &"x".repeat(5000)));
        assert!(window.bytes <= MAX_BYTES && window.rows.len() > 190, "{}", window.rows.len());
        let (_, last, _, lost) = parse(&window.answer(FIRST, FIRST));
        assert_eq!((last, lost), (FIRST + 999, json!(999 - window.rows.len())));
    }
}
