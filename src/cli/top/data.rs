//! What is known of the daemon: the rows of all panels, its rates and its health.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{
    look::{Event, Look},
    rows::Row,
    text::escaped,
};
use crate::{
    cli::{status, table},
    daemon::{
        counted::counted,
        health::CheckStatus,
        snapshot::{FastPathState, SessionRow, SessionSummary, Status, WindowCounts},
    },
};

/// Limit of transfers, and of refusals.
const MAX_ROWS: usize = 2000;

/// What is known of the daemon.
#[derive(Clone, Debug, Default)]
pub(super) struct Data {
    /// The time of the last look.
    pub time: String,
    /// Version, age, back end and fast path of the daemon.
    pub summary: String,
    /// Whether the daemon reports transfers.
    pub reports_transfers: bool,
    /// What was counted lately, with a title for each window.
    pub windows: Vec<(String, WindowCounts)>,
    /// The rows of each panel.
    pub rows: [Vec<Row>; 4],
    /// How many transfers of a session have ended, by its number and client: a daemon that has lost its state begins with
    /// the first number again.
    ended: HashMap<(u64, String), u64>,
}

impl Data {
    /// Takes over what a look shows.
    pub fn take(&mut self, look: Look) {
        let Look { status, sessions, events, .. } = look;
        for event in &events {
            self.take_event(event);
        }
        let [_, transfers, refusals, _] = &mut self.rows;
        for rows in [transfers, refusals] {
            rows.drain(..rows.len().saturating_sub(MAX_ROWS));
        }
        self.reports_transfers = status.rates.ten_seconds.transfers.is_some();
        (self.time, self.summary) = (clock(), summary(&status));
        self.windows = status::windows(&status.rates);
        self.rows[0] = self.session_rows(&sessions);
        self.rows[3] = findings(&status);
    }

    fn take_event(&mut self, event: &Event) {
        let [_, transfers, refusals, _] = &mut self.rows;
        match event.event.as_str() {
            "transfer" => {
                transfers.push(Row::transfer(event));
                *self.ended.entry((event.session, event.client.clone())).or_default() += 1;
            }
            "refusal" | "login-refused" => refusals.push(Row::refusal(event)),
            _ => {}
        }
    }

    /// The rows of the sessions that are open. What was counted of others is forgotten.
    fn session_rows(&mut self, sessions: &[SessionRow]) -> Vec<Row> {
        let mut ended = std::mem::take(&mut self.ended);
        let row = |session: &SessionRow| {
            let SessionSummary { id, client, .. } = session.summary;
            let found = ended.remove_entry(&(id, client.ip().to_string()));
            let count = found.as_ref().map_or(0, |(_, count)| *count);
            self.ended.extend(found);
            Row::session(session, Some(count).filter(|_| self.reports_transfers))
        };
        sessions.iter().map(row).collect()
    }
}

/// The time of day in UTC.
pub(super) fn clock() -> String {
    Timestamp::now().strftime("%H:%M:%S UTC").to_string()
}

fn summary(status: &Status) -> String {
    let fast_path = match status.fast_path.state {
        FastPathState::On => {
            format!("on, {}", counted(status.fast_path.connections, "connection"))
        }
        FastPathState::Off => "off".to_owned(),
    };
    let uptime = table::span(status.uptime_seconds);
    escaped(&format!(
        "ftp-alg {}, up {uptime}, {}, fast path {fast_path}",
        status.version, status.backend
    ))
}

fn findings(status: &Status) -> Vec<Row> {
    let problems = status.problems.iter().map(|one| (CheckStatus::Problem, one));
    let all = problems.chain(status.warnings.iter().map(|one| (CheckStatus::Warning, one)));
    (0..).zip(all).map(|(key, (severity, one))| Row::finding(key, severity, one)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::top::samples, daemon::snapshot::Rates};

    #[test]
    fn a_session_has_the_transfers_of_its_events() {
        let mut data = Data::default();
        data.take(samples::look());
        let cells = |data: &Data, at: usize| -> Vec<String> {
            data.rows[0][at].cells.iter().map(|cell| cell.text.clone()).collect()
        };
        let running = "RETR /pub/now.iso";
        assert_eq!(cells(&data, 0)[3..7], ["bob", "logged-in", running, "2"]);
        assert_eq!(cells(&data, 1)[3..7], ["-", "login", "", "0"]);
        assert_eq!((data.rows[1].len(), data.rows[2].len(), data.rows[3].len()), (3, 1, 2));
        let mut look = samples::look();
        look.events.clear();
        look.status.rates = Rates::default();
        data.take(look);
        assert_eq!(cells(&data, 0)[3..7], ["bob", "logged-in", running, "-"]);
        let mut look = samples::look();
        look.events.clear();
        look.sessions[0].summary.client = "10.9.9.9:1".parse().unwrap();
        data.take(look);
        assert_eq!(cells(&data, 0)[3..7], ["bob", "logged-in", running, "0"], "another client");
    }

    #[test]
    fn memory_is_bounded() {
        let mut data = Data::default();
        for _ in 0..3 {
            let mut look = samples::look();
            let of = look.events.iter().find(|event| event.event == "transfer").unwrap().clone();
            look.events = vec![of; MAX_ROWS];
            look.sessions.clear();
            data.take(look);
        }
        assert_eq!((data.rows[1].len(), data.ended.len()), (MAX_ROWS, 0));
    }
}
