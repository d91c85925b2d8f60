//! What one look at the daemon shows: its status, its sessions, and the events since the look before.

use serde_json::Value;

use crate::{
    cli::{
        SocketOption,
        event_reader::{EventReader, NewEvents, fields_of},
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
    pub events: Vec<Value>,
    /// Events that the daemon no longer had.
    pub missed: u64,
    /// Whether this is another daemon than at the look before, as far as it had events.
    pub is_another: bool,
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
            let read = |new: NewEvents<'_>| {
                (new.missed, new.events.into_iter().map(fields_of).collect::<Vec<_>>())
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
