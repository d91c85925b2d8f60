//! What one look at the daemon shows: its status, its sessions, and the events since the look before.

use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::{
    cli::SocketOption,
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
    pub at: Instant,
    pub status: Status,
    pub rates: Option<Rates>,
    pub sessions: Vec<SessionRow>,
    /// The oldest first.
    pub events: Vec<Event>,
    /// Events that the daemon no longer had.
    pub missed: u64,
    /// Whether this is another daemon than at the look before.
    pub is_another: bool,
}

/// What happened in the last ten seconds, minute and hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Rates {
    #[serde(rename = "10s")]
    pub ten_seconds: Window,
    #[serde(rename = "1m")]
    pub minute: Window,
    #[serde(rename = "1h")]
    pub hour: Window,
}

/// Counts within some seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Window {
    /// How much of the window is covered.
    pub seconds: f64,
    /// `None` if it is not known.
    pub sessions: Option<u64>,
    pub transfers: u64,
    pub failed_transfers: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub refusals: u64,
    pub drops: u64,
    pub decisions: u64,
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
    pub verb: String,
    pub path: String,
    pub direction: String,
    pub mode: Option<String>,
    pub bytes: Option<u64>,
    pub seconds: f64,
    pub result: String,
    pub code: Option<u16>,
    pub reason: Option<String>,
    pub text: String,
}

#[derive(Deserialize)]
struct StatusAnswer {
    #[serde(flatten)]
    status: Status,
    rates: Option<Rates>,
}

#[derive(Deserialize)]
struct EventAnswer {
    events: Vec<Event>,
    lost: Option<u64>,
}

/// Looks at the daemon on a socket again and again.
#[derive(Debug)]
pub(super) struct Watcher {
    socket: SocketOption,
    /// The ID of the last event that was shown.
    after: u64,
    uptime_seconds: u64,
}

impl Watcher {
    pub fn new(socket: SocketOption) -> Self {
        Self { socket, after: 0, uptime_seconds: 0 }
    }

    /// Asks for everything. Sessions come last, so a session of an event is listed or has ended.
    pub fn look(&mut self) -> Result<Look, ClientError> {
        let StatusAnswer { status, rates } = self.socket.request("status")?.parse()?;
        let mut is_another = status.uptime_seconds < self.uptime_seconds;
        let (mut events, mut missed, mut after) = (Vec::new(), 0, self.after);
        for _ in 0..MAX_REQUESTS {
            let answer = self.socket.request(&format!("events {after}"))?;
            let answer: EventAnswer = answer.parse()?;
            match answer.lost {
                Some(lost) => missed += lost,
                None => {
                    (after, is_another) = (0, true);
                    continue;
                }
            }
            let Some(last) = answer.events.last() else { break };
            after = last.id;
            events.extend(answer.events);
        }
        let sessions = self.socket.request("sessions")?.parse()?;
        (self.after, self.uptime_seconds) = (after, status.uptime_seconds);
        Ok(Look { at: Instant::now(), status, rates, sessions, events, missed, is_another })
    }
}

impl Rates {
    /// The windows, without those that cover no more than the one before.
    pub fn windows(&self) -> Vec<Window> {
        let mut windows = vec![self.ten_seconds, self.minute, self.hour];
        windows.dedup_by_key(|window| window.seconds.round());
        windows
    }
}

impl Window {
    /// What happened between two states of one daemon, for a daemon that counts no rates.
    pub fn between(before: &Status, now: &Status, elapsed: Duration) -> Self {
        let more = |count: fn(&Status) -> u64| count(now).saturating_sub(count(before));
        let transfers = more(|status| ended(status).0);
        let refusals = more(|status| refusals(status));
        Self {
            seconds: elapsed.as_secs_f64(),
            sessions: None,
            transfers,
            failed_transfers: transfers.saturating_sub(more(|status| ended(status).1)),
            bytes_up: more(|status| status.transfers.bytes_up),
            bytes_down: more(|status| status.transfers.bytes_down),
            refusals,
            drops: more(|status| status.counters.drops.by_name().map(|(_, count)| count).sum()),
            decisions: refusals + more(|status| status.counters.pinholes_opened),
        }
    }
}

/// Transfers that have ended, and those of them that are complete.
fn ended(status: &Status) -> (u64, u64) {
    let modes = &status.transfers;
    let modes = [modes.active, modes.passive, modes.unknown];
    let all = modes.iter().flat_map(|mode| mode.by_result()).map(|(_, count)| count);
    (all.sum(), modes.iter().map(|mode| mode.complete).sum())
}

fn refusals(status: &Status) -> u64 {
    status.counters.pinholes_refused + status.counters.commands_refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::snapshot::ResultCounts;

    #[test]
    fn rates_are_optional_and_may_have_new_fields() {
        let mut json = serde_json::to_value(Status::default()).unwrap();
        let parse = |json| serde_json::from_value::<StatusAnswer>(json).unwrap().rates;
        assert_eq!(parse(json.clone()), None);
        let window =
            |seconds: f64| serde_json::json!({"seconds": seconds, "sessions": 3, "more": 1});
        let windows =
            serde_json::json!({"10s": window(10.0), "1m": window(12.2), "1h": window(12.3)});
        json["rates"] = windows;
        let shown = parse(json).unwrap().windows();
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert_eq!((shown[0].sessions, shown[1].seconds), (Some(3), 12.2));
    }

    #[test]
    fn rates_are_computed_from_two_looks() {
        let mut status = Status::default();
        let before = status.clone();
        status.transfers.active = ResultCounts { complete: 3, refused: 1, ..Default::default() };
        status.transfers.passive.reset = 1;
        status.transfers.bytes_down = 500;
        (status.counters.pinholes_opened, status.counters.commands_refused) = (4, 2);
        let window = Window::between(&before, &status, Duration::from_secs(2));
        let Window { transfers, failed_transfers, bytes_down, refusals, decisions, .. } = window;
        assert_eq!((transfers, failed_transfers, bytes_down), (5, 2, 500));
        assert_eq!((refusals, decisions, window.seconds), (2, 6, 2.0));
        let restarted = Window::between(&status, &before, Duration::from_secs(2));
        assert_eq!((restarted.transfers, restarted.failed_transfers), (0, 0));
    }
}
