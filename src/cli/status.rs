//! `ftp-alg status`: shows counters and health of the running daemon.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::{Failure, SocketOption, output, table};
use crate::daemon::{
    control_client,
    health::{self, CheckStatus},
    snapshot::{self, FastPathState, FastPathStatus, NameRow, Problem},
};

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
            Err(error) if self.json => {
                let problems = [health::daemon_problem(&error, true)];
                let text = serde_json::json!({ "problems": problems, "warnings": [] }).to_string();
                output::print_line(&text)?;
                return Err(error.into());
            }
            answer => answer?,
        };
        let status: snapshot::Status = answer.parse()?;
        if self.json {
            output::print_line(answer.json())?;
        } else {
            output::print(&text(&status))?;
        }
        match (status.problems.len(), status.warnings.len()) {
            _ if self.wait.is_some() => Ok(()),
            (0, _) => Ok(()),
            (problems, warnings) => Err(Failure::from_counts(problems, warnings)),
        }
    }
}

fn text(status: &snapshot::Status) -> String {
    let rows = [
        ("version", status.version.clone()),
        ("uptime", table::span(status.uptime_seconds)),
        ("back end", format!("{}: {}", status.backend, status.backend_reason)),
        ("sessions", status.sessions.to_string()),
        ("pinholes", status.pinholes.to_string()),
        ("memory held", format!("{} KiB", status.memory >> 10)),
    ];
    let rows = rows.into_iter().map(|(name, value)| (name.to_owned(), value));
    let names = status.names.iter().filter_map(|row| Some((row.name.clone(), name_text(row)?)));
    let unconfined = status.unconfined.iter().map(|what| ("unconfined".to_owned(), what.clone()));
    let rows = rows.chain(fast_path(&status.fast_path)).chain(counters(status));
    let rows: Vec<_> = rows.chain(names).chain(unconfined).collect();
    let text = table::list(&rows);
    let block = |mark: CheckStatus, problem: &Problem| {
        let Problem { name, text, remedy } = problem;
        let [text, remedy] = [text, remedy].map(|text| table::wrapped(text, 2));
        format!("\n{mark} {name}\n  {text}\n  {remedy}\n")
    };
    let problems = status.problems.iter().map(|one| block(CheckStatus::Problem, one));
    let warnings = status.warnings.iter().map(|one| block(CheckStatus::Warning, one));
    text + &problems.chain(warnings).collect::<String>()
}

/// All counters by their names in JSON. Counters within another one, such as drops by reason, are shown only if they
/// are not 0.
fn counters(status: &snapshot::Status) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let Ok(Value::Object(all)) = serde_json::to_value(status) else { return rows };
    let words = |name: &str| name.replace('_', " ");
    for (name, value) in &all {
        match value {
            Value::Number(count)
                if !["uptime_seconds", "sessions", "pinholes", "memory"]
                    .contains(&name.as_str()) =>
            {
                rows.push((words(name), count.to_string()));
            }
            Value::Object(parts) if !["fast_path", "rates"].contains(&name.as_str()) => {
                let row = |(part, count): (&String, &Value)| {
                    Some((format!("{}: {}", words(name), words(part)), count_text(count)?))
                };
                rows.extend(parts.iter().filter_map(row));
            }
            _ => {}
        }
    }
    rows
}

/// A count, or the counts within one, as in `3 complete, 1 refused`. `None` if there is nothing to count.
fn count_text(count: &Value) -> Option<String> {
    let counted = |count: &Value| count.as_u64() != Some(0);
    let Value::Object(parts) = count else { return counted(count).then(|| count.to_string()) };
    let parts = parts.iter().filter(|(_, count)| counted(count));
    let texts: Vec<_> =
        parts.map(|(name, count)| format!("{count} {}", name.replace('_', " "))).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

/// The state and the counters of the fast path, in up to four lines.
fn fast_path(status: &FastPathStatus) -> Vec<(String, String)> {
    let FastPathStatus { connections, lines, handed_back, opened, admitted, no_room, .. } = status;
    let mut lines = match status.state {
        FastPathState::On => {
            let on = format!("on: {}; {connections} connections", status.attached_to());
            let counts = format!("{lines} lines inspected, {handed_back} connections taken back");
            [on].into_iter().chain(status.inline_at()).chain([counts]).collect()
        }
        FastPathState::Off => vec![format!("off: {}", status.why)],
    };
    // The counters survive a restart, so they may be above 0 with the fast path off.
    if [opened, admitted, no_room].into_iter().any(|count| *count > 0) {
        let full = if *no_room > 0 {
            format!(", {no_room} lines queued (ring buffer full)")
        } else {
            String::new()
        };
        lines.push(format!("{opened} pinholes opened, {admitted} consumed{full}"));
    }
    lines.into_iter().map(|line| ("fast path".to_owned(), line)).collect()
}

/// The address of a name, or the error. `None` for a family that the name does not have.
fn name_text(row: &NameRow) -> Option<String> {
    let address = row.address.map(|address| {
        let age =
            row.age_seconds.map_or(String::new(), |age| format!(", {} ago", table::span(age)));
        format!("{address}{age}")
    });
    match (address, &row.error) {
        (Some(address), None) => Some(address),
        (Some(address), Some(error)) => Some(format!("{address}; {error}")),
        (None, Some(error)) => Some(format!("no {} address: {error}", row.family)),
        (None, None) => None,
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|wait| *wait <= Duration::from_secs(86400))
        .ok_or_else(|| "use 0 to 86400 seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_path_has_one_line_if_off_and_up_to_four_if_on() {
        let lines = |status: &FastPathStatus| {
            fast_path(status).into_iter().map(|(_, line)| line).collect::<Vec<_>>()
        };
        let mut status = FastPathStatus::off("Linux 6.1 has no TCX");
        assert_eq!(lines(&status), ["off: Linux 6.1 has no TCX"]);
        status.state = FastPathState::On;
        status.interfaces = vec!["lan0".into(), "wan0".into()];
        (status.connections, status.lines, status.handed_back) = (3, 812, 5);
        let on = ["on: lan0, wan0; 3 connections", "812 lines inspected, 5 connections taken back"];
        assert_eq!(lines(&status), on);
        status.filtered_early = vec!["br0".into(), "br0.7".into()];
        let inline = "not at br0, br0.7: bridge-nf-call-iptables; connections there are queued";
        assert_eq!(lines(&status), [on[0], inline, on[1]]);
        status.filtered_early.clear();
        (status.opened, status.admitted, status.no_room) = (140, 139, 2);
        assert_eq!(
            lines(&status)[2..],
            ["140 pinholes opened, 139 consumed, 2 lines queued (ring buffer full)"]
        );
        let all = text(&snapshot::Status { fast_path: status, ..snapshot::Status::default() });
        assert_eq!(all.lines().filter(|line| line.starts_with("fast path  ")).count(), 3, "{all}");
    }

    #[test]
    fn problems_are_shown_before_warnings() {
        let one = |name| vec![snapshot::Problem::new(name, "text", "remedy")];
        let status = snapshot::Status {
            problems: one("table"),
            warnings: one("state"),
            ..snapshot::Status::default()
        };
        let shown = text(&status);
        let end = "\nPROBLEM table\n  text\n  remedy\n\nWARNING state\n  text\n  remedy\n";
        assert!(shown.ends_with(end), "{shown}");
    }

    #[test]
    fn name_shows_its_address_and_its_error() {
        let row = |address: Option<&str>, age_seconds, error: Option<&str>| NameRow {
            name: "ftp.example.net".into(),
            family: "ipv4".into(),
            address: address.map(|text| text.parse().unwrap()),
            age_seconds,
            error: error.map(str::to_owned),
        };
        let late = Some("request timed out");
        for (row, text) in [
            (row(Some("198.51.100.7"), Some(65), None), Some("198.51.100.7, 1m 5s ago")),
            (
                row(Some("198.51.100.7"), Some(5), late),
                Some("198.51.100.7, 5s ago; request timed out"),
            ),
            (row(None, None, late), Some("no ipv4 address: request timed out")),
            (row(None, None, None), None),
        ] {
            assert_eq!(name_text(&row).as_deref(), text);
        }
    }
}
