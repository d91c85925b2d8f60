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
pub(super) struct NewEvents {
    /// Each as the daemon wrote it.
    pub events: Vec<Box<RawValue>>,
    /// How many the daemon no longer had before these. `None` if their IDs do not follow those that were read: the
    /// machine was booted, or the file of IDs was removed.
    #[serde(rename = "lost")]
    pub missed: Option<u64>,
}

impl EventReader {
    /// Reads on.
    pub fn read(&mut self, socket: &SocketOption) -> Result<NewEvents, ClientError> {
        let answer: NewEvents = socket.request(&format!("events {}", self.after))?.parse()?;
        let id_of = |event: &RawValue| fields_of(event)["id"].as_u64();
        let last = answer.events.last().map(|event| id_of(event).unwrap_or(self.after));
        self.after = match (last, answer.missed) {
            (_, None) => 0,
            (Some(last), Some(_)) => last,
            (None, Some(missed)) => self.after.saturating_add(missed),
        };
        Ok(answer)
    }
}

/// The fields of an event.
pub(super) fn fields_of(event: &RawValue) -> Value {
    serde_json::from_str(event.get()).unwrap_or_default()
}

/// What to say about events that were missed.
pub(super) fn missed_text(missed: u64) -> String {
    format!("{} {} missed", counted(missed, "event"), was_or_were(missed))
}
