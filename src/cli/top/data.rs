//! What is known of the daemon: the rows of all panels, its rates and its health.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    look::Look,
    rows::{self, Row, id_of, text_of},
};
use crate::{
    cli::{status, table},
    config::escaped,
    daemon::{
        counted::counted,
        health::CheckStatus,
        snapshot::{FastPathState, Problem, Severity, Status, WindowCounts},
    },
};

/// Limit of transfers, and of failures.
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
}

impl Data {
    /// Takes over what a look shows.
    pub fn take(&mut self, look: Look) {
        let Look { status, sessions, events, .. } = look;
        for event in &events {
            self.take_event(event);
        }
        let [_, transfers, failures, _] = &mut self.rows;
        for rows in [transfers, failures] {
            rows.drain(..rows.len().saturating_sub(MAX_ROWS));
        }
        self.reports_transfers = status.rates.ten_seconds.transfers.is_some();
        (self.time, self.summary) = (clock(), summary(&status));
        self.windows = status::windows(&status.rates);
        self.rows[0] = sessions.iter().map(Row::session).collect();
        self.rows[3] = findings(&status);
    }

    fn take_event(&mut self, event: &Value) {
        let [_, transfers, failures, _] = &mut self.rows;
        if event["event"] == "transfer" {
            transfers.push(Row::transfer(event));
        }
        if event["failed"] == true {
            let time = [("TIME", escaped(text_of(event, "time")))];
            failures.push(Row::new(id_of(event), rows::FAILURES, event).with(time));
        }
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
        "{}: ftp-alg {}, up {uptime}, {}, fast path {fast_path}",
        status.host, status.version, status.backend
    ))
}

fn findings(status: &Status) -> Vec<Row> {
    let row = |(key, (severity, problem)): (u64, (Severity, &Problem))| {
        let remedy = [("REMEDY", escaped(&problem.remedy.replace('\n', "; ")))];
        Row::new(key, rows::HEALTH, &(key, CheckStatus::from(severity), problem.clone()))
            .with(remedy)
    };
    (0..).zip(status.findings.iter()).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::samples;

    #[test]
    fn memory_is_bounded() {
        let mut data = Data::default();
        for _ in 0..3 {
            let mut look = samples::look();
            let of = look.events.iter().find(|event| event["event"] == "transfer").unwrap().clone();
            look.events = vec![of; MAX_ROWS];
            look.sessions.clear();
            data.take(look);
        }
        assert_eq!(data.rows[1].len(), MAX_ROWS);
    }
}
