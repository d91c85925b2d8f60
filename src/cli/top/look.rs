//! What one look at the daemon shows: its status, its sessions, and the events since the look before.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::{
    cli::{
        SocketOption,
        event_reader::{EventReader, NewEvents},
    },
    daemon::{
        control_client::ClientError,
        snapshot::{SessionRow, Status},
    },
};

/// Requests for events in one look, so that a busy daemon does not hold it up.
const MAX_REQUESTS: usize = 8;

/// One look at the daemon.
#[derive(Debug)]
pub(super) struct Look {
    pub status: Status,
    pub sessions: Vec<SessionRow>,
    /// The oldest first.
    pub events: Vec<Event>,
    /// Events that the daemon no longer had.
    pub missed: u64,
    /// Whether this is another daemon than at the look before, as far as it had events.
    pub is_another: bool,
}

/// An event. Fields that it does not have are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    pub id: u64,
    pub time: String,
    pub event: String,
    pub session: u64,
    pub client: String,
    pub server: String,
    pub user: Option<String>,
    pub failed: bool,
    #[serde(deserialize_with = "or_empty")]
    pub verb: String,
    #[serde(deserialize_with = "or_empty")]
    pub path: String,
    #[serde(deserialize_with = "or_empty")]
    pub direction: String,
    pub encrypted: bool,
    pub mode: Option<String>,
    pub bytes: Option<u64>,
    pub seconds: f64,
    pub result: String,
    pub code: Option<u16>,
    pub reason: Option<String>,
    pub text: String,
}

/// Text that is empty if it is null.
fn or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Looks at the daemon on a socket again and again.
#[derive(Debug)]
pub(super) struct Watcher {
    socket: SocketOption,
    reader: EventReader,
}

impl Watcher {
    pub fn new(socket: SocketOption) -> Self {
        Self { socket, reader: EventReader::default() }
    }

    /// Asks for everything. Sessions come last, so a session of an event is listed or has ended.
    pub fn look(&mut self) -> Result<Look, ClientError> {
        let status = self.socket.status()?;
        let (mut events, mut missed, mut is_another) = (Vec::new(), 0, false);
        let mut reader = self.reader;
        for _ in 0..MAX_REQUESTS {
            // One that this version cannot read has no fields.
            let event =
                |json: &RawValue| serde_json::from_str::<Event>(json.get()).unwrap_or_default();
            let read = |new: NewEvents<'_>| {
                (new.missed, new.events.into_iter().map(event).collect::<Vec<_>>())
            };
            let (missed_now, new) = reader.read(&self.socket, read)?;
            let Some(missed_now) = missed_now else {
                is_another = true;
                continue;
            };
            missed += missed_now;
            if new.is_empty() {
                break;
            }
            events.extend(new);
        }
        let sessions = self.socket.request("sessions")?.parse()?;
        self.reader = reader;
        Ok(Look { status, sessions, events, missed, is_another })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_null_is_empty() {
        let json = r#"{"id": 7, "event": "transfer", "verb": null, "path": null, "direction": null, "encrypted": true}"#;
        let event: Event = serde_json::from_str(json).unwrap();
        assert!(event.encrypted && event.verb.is_empty() && event.path.is_empty());
    }
}
