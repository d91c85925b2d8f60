//! `ftp-alg status`: shows counters and health of the running daemon.

mod text;

use std::{slice, time::Duration};

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
/// `problems` and `warnings` is {name, text, remedy}; see ftp-alg(8), "Problems".
#[derive(Args, Debug)]
pub(super) struct StatusOptions {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Wait at most this many seconds until a daemon is ready
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
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
                self.print_absence(&health::daemon_problem(&error))?;
                return Err(error.into());
            }
            Ok(answer) => answer,
        };
        let mut status: snapshot::Status = answer.parse()?;
        // The daemon cannot read the files of the firewall.
        let known = status.problems.len();
        let saved = setup::saved_table_checks().filter_map(|check| check.finding());
        status.problems.extend(saved.map(|(_, problem)| problem));
        if !self.json {
            output::print(&text::text(&status, Style::of_stdout()))?;
        } else if status.problems.len() == known {
            output::print_line(answer.json())?;
        } else {
            let mut all: serde_json::Value = answer.parse()?;
            all["problems"] = serde_json::json!(status.problems);
            output::print_line(&all.to_string())?;
        }
        match (status.problems.len(), status.warnings.len()) {
            _ if self.wait.is_some() => Ok(()),
            (0, _) => Ok(()),
            (problems, warnings) => Err(Failure::from_counts(problems, warnings)),
        }
    }

    /// Prints the `problem` of a daemon that does not answer.
    fn print_absence(&self, problem: &snapshot::Problem) -> Result<(), Failure> {
        if self.json {
            let report = serde_json::json!({ "problems": [problem], "warnings": [] });
            return output::print_line(&report.to_string());
        }
        output::print(&text::problems(slice::from_ref(problem), Style::of_stdout()))
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    seconds(text, 0.0, 86400.0)
}
