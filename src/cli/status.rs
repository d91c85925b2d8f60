//! `ftp-alg status`: shows counters and health of the running daemon.

mod text;

use std::time::Duration;

use clap::Args;
#[cfg(feature = "top")]
pub(super) use text::{RATES, Rate, windows};

use super::{Failure, SocketOption, output, output::Style, seconds, setup};
use crate::daemon::{control_client, health, snapshot};

/// Show counters and health of the running daemon
///
/// Exit code 0: a daemon gives verdicts, and there is no problem. Otherwise 1.
/// Warnings do not count. With --wait, problems do not either, so scripts can
/// wait for a daemon that is ready: `ftp-alg status --wait 10`. In JSON each of
/// `problems` and `warnings` is {name, text, remedy, since, last}; see ftp-alg(8),
/// "Problems".
#[derive(Args, Debug)]
pub(super) struct StatusOptions {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Wait at most this many seconds until a daemon is ready
    #[arg(long, value_name = "SECS", value_parser = |text: &str| seconds(text, 0.0, 86400.0))]
    wait: Option<Duration>,
    #[command(flatten)]
    socket: SocketOption,
}

impl StatusOptions {
    pub fn run(&self) -> Result<(), Failure> {
        let answer = match self.wait {
            Some(limit) => {
                control_client::request_until_ready(&self.socket.socket, "status", limit)
            }
            None => self.socket.request("status"),
        };
        let answer = match answer {
            Err(error) => {
                let problems = vec![health::daemon_problem(&error)];
                let findings = snapshot::Findings { problems, ..Default::default() };
                let text = |all: &_| text::findings(all, Style::of_stdout());
                output::print_report(self.json, &findings, text)?;
                return Err(error.into());
            }
            Ok(answer) => answer,
        };
        let mut status: snapshot::Status = answer.parse()?;
        // The daemon cannot read the files of the firewall.
        let problems = &mut status.findings.problems;
        let known = problems.len();
        let saved = setup::saved_table_checks().filter_map(|check| check.finding());
        problems.extend(saved.map(|(_, problem)| problem));
        if !self.json {
            output::print(&text::text(&status, Style::of_stdout()))?;
        } else if status.findings.problems.len() == known {
            output::print_line(answer.json())?;
        } else {
            let mut all: serde_json::Value = answer.parse()?;
            all["problems"] = serde_json::json!(status.findings.problems);
            output::print_line(&all.to_string())?;
        }
        if self.wait.is_some() || status.findings.problems.is_empty() {
            return Ok(());
        }
        Err(Failure::from_findings(&status.findings))
    }
}
