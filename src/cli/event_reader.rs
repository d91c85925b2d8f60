//! Reads the events of a daemon one answer after the other, also over its restarts.

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::SocketOption;
use crate::daemon::{
    control_client::ClientError,
    counted::{counted, was_or_were},
};

/// Where a reader of events is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EventReader {
    /// The ID of the last event that was read or missed.
    after: u64,
}

/// The events behind those that were read, as many as an answer has.
#[derive(Debug, Deserialize)]
pub(super) struct NewEvents<'a> {
    /// The events as the daemon wrote them.
    #[serde(borrow)]
    pub events: Vec<&'a RawValue>,
    /// How many events before these the daemon no longer had. `None` after a restart of the daemon, because the IDs do
    /// not continue then.
    #[serde(rename = "lost")]
    pub missed: Option<u64>,
}

impl EventReader {
    /// Reads on, and returns what `handle` makes of the events.
    pub fn read<R>(
        &mut self,
        socket: &SocketOption,
        handle: impl FnOnce(NewEvents<'_>) -> R,
    ) -> Result<R, ClientError> {
        let answer = socket.request(&format!("events {}", self.after))?;
        let new: NewEvents<'_> = answer.parse()?;
        let id_of = |event: &RawValue| fields_of(event)["id"].as_u64();
        let last = new.events.last().map(|event| id_of(event).unwrap_or(self.after));
        self.after = match (last, new.missed) {
            (_, None) => 0,
            (Some(last), Some(_)) => last,
            (None, Some(missed)) => self.after.saturating_add(missed),
        };
        Ok(handle(new))
    }
}

/// The fields of an event.
pub(super) fn fields_of(event: &RawValue) -> Value {
    serde_json::from_str(event.get()).unwrap_or_default()
}

/// What the text of an event says, without its session and its ends, as in `#17 10.0.0.7:35394 -> 198.51.100.9:21: ...`.
pub(super) fn said(text: &str) -> &str {
    text.strip_prefix('#').and_then(|rest| rest.split_once(": ")).map_or(text, |(_, said)| said)
}

/// What to say about events that were missed.
pub(super) fn missed_text(missed: u64) -> String {
    format!("{} {} missed", counted(missed, "event"), was_or_were(missed))
}
