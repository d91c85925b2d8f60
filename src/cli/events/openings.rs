//! What was open: each pinhole with its data connection, from its announcement to the event that ends it.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::time_of;

/// The fields that an opening takes over from its announcement.
const FIELDS: [&str; 9] =
    ["session", "client", "server", "user", "kind", "initiator", "arrival", "target", "source"];

/// What is open at the time of the last event, by session and arrival.
#[derive(Default)]
pub(super) struct Openings(HashMap<(u64, String), Opening>);

/// One pinhole, and its data connection.
pub(super) struct Opening {
    opened: Timestamp,
    /// When it was closed, and by what. `None` if no event says so.
    closed: Option<(Timestamp, String)>,
    announcement: Value,
}

impl Openings {
    /// Notes the next event. Returns the openings that the event ends.
    pub(super) fn note(&mut self, event: &Value) -> Vec<Opening> {
        let text = |field: &str| event[field].as_str().unwrap_or_default();
        let (Some(session), Some(at)) = (event["session"].as_u64(), time_of(event)) else {
            return Vec::new();
        };
        let key = (session, text("arrival").to_owned());
        let keys = match text("event") {
            "announcement" if event["arrival"].is_string() => {
                let opening = Opening { opened: at, closed: None, announcement: event.clone() };
                return self.0.insert(key, opening).into_iter().collect();
            }
            // The session that had this number before was of another boot: nothing says when it ended.
            "session-started" => {
                let earlier = self.0.extract_if(|(of, _), _| *of == session);
                return earlier.map(|(_, opening)| opening).collect();
            }
            "transfer" | "transfer-unseen" | "pinhole-closed" | "pinhole-expired" => vec![key],
            "session-ended" => self.0.keys().filter(|(of, _)| *of == session).cloned().collect(),
            _ => return Vec::new(),
        };
        // The time of a transfer's event is that of the last reply, and the data connection may end later, so its `seconds`
        // count. The `seconds` of a session's event, which has no verb, are the age of the session.
        let seconds = event["seconds"].as_f64().filter(|_| event["verb"].is_string());
        let lasted = SignedDuration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or_default();
        let ended = keys.iter().filter_map(|key| self.0.remove(key));
        let close = |opening: Opening| {
            let closed = opening.opened.checked_add(lasted).unwrap_or(at).max(at);
            Opening { closed: Some((closed, text("text").to_owned())), ..opening }
        };
        ended.map(close).collect()
    }

    /// The openings that no event has ended.
    pub(super) fn still_open(self) -> Vec<Opening> {
        let mut open: Vec<_> = self.0.into_values().collect();
        open.sort_by_key(|opening| opening.opened);
        open
    }
}

impl Opening {
    /// The event of the announcement.
    pub(super) fn announcement(&self) -> &Value {
        &self.announcement
    }

    /// Whether it was open at any time from `since` until `until`.
    pub(super) fn was_open(&self, since: Option<Timestamp>, until: Option<Timestamp>) -> bool {
        let is_early = |since| self.closed.as_ref().is_some_and(|(closed, _)| *closed < since);
        !since.is_some_and(is_early) && until.is_none_or(|until| self.opened < until)
    }

    /// A line of text, or of JSON.
    pub(super) fn line(&self, json: bool) -> String {
        let (closed, by) = self.closed.clone().unzip();
        if json {
            let mut row = self.announcement.clone();
            if let Some(fields) = row.as_object_mut() {
                fields.retain(|name, _| FIELDS.contains(&name.as_str()));
            }
            row["opened"] = json!(format!("{:.6}", self.opened));
            row["closed"] = json!(closed.map(|closed| format!("{closed:.6}")));
            row["closed_by"] = json!(by);
            return row.to_string();
        }
        let text = |field: &str| self.announcement[field].as_str().unwrap_or("-");
        let closed = closed.map_or("-".to_owned(), |closed| format!("{closed:.6}"));
        format!(
            "{:.6} {closed} #{} {}@{} {}: {} to {}, target {}: {}",
            self.opened,
            self.announcement["session"],
            text("user"),
            text("client"),
            text("kind"),
            text("initiator"),
            text("arrival"),
            text("target"),
            by.as_deref().unwrap_or("no event says that it was closed")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_a_boot_reuses_ends_nothing() {
        let event = |name: &str, minute: u32| {
            let time = format!("2020-11-28T10:{minute:02}:00Z");
            json!({"event": name, "time": time, "session": 1, "arrival": "198.51.100.9:50069"})
        };
        let mut openings = Openings::default();
        assert!(openings.note(&event("announcement", 1)).is_empty());
        let [before] = &openings.note(&event("session-started", 2))[..] else { panic!() };
        assert_eq!(before.closed, None);
        assert!(openings.note(&event("session-ended", 3)).is_empty());
    }

    #[test]
    fn a_pinhole_is_closed_with_its_session_and_not_as_long_as_that_lasted_later() {
        let event = |name: &str, second: u32, rest: Value| {
            let mut event = json!({"event": name, "time": format!("2020-11-28T10:00:{second:02}Z"), "session": 1});
            event.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            event
        };
        let closed_by = |end: &Value| {
            let mut openings = Openings::default();
            let opened = event("announcement", 10, json!({"arrival": "198.51.100.9:50069"}));
            assert!(openings.note(&opened).is_empty());
            let [ended] = &openings.note(end)[..] else { panic!("{end}") };
            ended.closed.as_ref().unwrap().0.to_string()
        };
        let session = event("session-ended", 20, json!({"seconds": 30.0}));
        assert_eq!(closed_by(&session), "2020-11-28T10:00:20Z");
        let transfer = json!({"arrival": "198.51.100.9:50069", "verb": "STOR", "seconds": 30.0});
        assert_eq!(closed_by(&event("transfer", 20, transfer)), "2020-11-28T10:00:40Z");
    }
}
