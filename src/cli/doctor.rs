//! `ftp-alg doctor`: whether FTP will work through this kernel and this firewall, and what to do
//! if it will not.

mod checks;

use clap::Args;
use serde::Serialize;

use super::{ConfigOption, Failure, SocketOption, output};
use crate::{
    config,
    daemon::{self, client, snapshot},
    gateway::{Backend, Features, choose, firewall::Firewall, outlooks},
};

/// Why a back end is taken that the configuration names.
const CONFIGURED: &str = "the configuration says so";

/// Say whether FTP will work here, what is in the way, and what to do
///
/// Only looks: nothing is loaded, changed or sent. Exit code 0 if FTP through this gateway will
/// work as configured, 1 if something stands in the way. Whether your rules let control connections
/// pass is not looked at. In JSON: {ok, backend, reason, checks: [
/// {section, name, mark: "ok"|"missing"|"note"|"problem", says, details, remedy, advice}]}.
#[derive(Args, Debug)]
pub struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigOption,
    #[command(flatten)]
    socket: SocketOption,
}

impl Doctor {
    /// Looks, and prints.
    pub fn run(&self) -> Result<(), Failure> {
        let config = self.config.load()?;
        let parameters = daemon::rule_parameters(&config).map_err(Failure::failed)?;
        let running = client::request(&self.socket.socket, "status", super::ANSWER)
            .ok()
            .and_then(|answer| answer.parse::<snapshot::Status>().ok());
        let features = Features::probe(&parameters);
        let firewall = Firewall::read();
        let outlooks = outlooks(&firewall, features.routing, &parameters);
        // One that reads no queue here may serve another network namespace.
        let runs_with = running
            .as_ref()
            .filter(|_| !features.readers.is_empty())
            .and_then(|status| Backend::named(&status.backend));
        let (wanted, why) = match config.pinhole.backend {
            config::Backend::Auto => {
                let can_expect = || features.expecting.possible();
                choose(can_expect, firewall.unread().is_empty(), &outlooks)
            }
            config::Backend::Nftables | config::Backend::Conntrack => {
                (parameters.backend(), CONFIGURED)
            }
        };
        // What counts is what holds the pinholes now.
        let restart = runs_with.is_some_and(|running| running != wanted).then_some(wanted);
        let backend = runs_with.unwrap_or(wanted);
        let reason = match restart {
            Some(other) => {
                format!("ftp-alg runs with it; restarted, it takes {}, as {why}", other.as_str())
            }
            None => why.to_owned(),
        };
        let checks = checks::Checks {
            parameters: &parameters,
            running: running.as_ref(),
            features: &features,
            firewall: &firewall,
            outlooks: &outlooks,
            backend,
            restart,
        };
        let report = Report::new(features.net_admin.then_some(backend), reason, checks.all());
        if self.json {
            let text = serde_json::to_string(&report).map_err(Failure::failed)?;
            output::print_line(&text)?;
        } else {
            output::print(&text(&report))?;
        }
        match report.problems() {
            0 => Ok(()),
            _ if report.backend.is_none() => {
                Err(Failure::Failed("not permitted to look: run as root".to_owned()))
            }
            1 => Err(Failure::Failed("one thing stands in the way of FTP".to_owned())),
            many => Err(Failure::Failed(format!("{many} things stand in the way of FTP"))),
        }
    }
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether FTP will work.
    ok: bool,
    /// What holds the pinholes, if that can be said.
    backend: Option<&'static str>,
    reason: String,
    checks: Vec<Check>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    Ok,
    /// Not there, and not needed.
    Missing,
    /// Worth knowing.
    Note,
    /// In the way.
    Problem,
}

impl Mark {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Note => "note",
            Self::Problem => "PROBLEM",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    section: &'static str,
    name: String,
    mark: Mark,
    says: String,
    /// More of it, a line each.
    details: Vec<String>,
    /// Commands that put it right, a line each.
    remedy: Vec<String>,
    /// What else to know about these, a line each.
    advice: Vec<String>,
}

impl Report {
    fn new(backend: Option<Backend>, reason: String, checks: Vec<Check>) -> Self {
        let ok = checks.iter().all(|check| check.mark != Mark::Problem);
        Self { ok, backend: backend.map(Backend::as_str), reason, checks }
    }

    fn problems(&self) -> usize {
        self.checks.iter().filter(|check| check.mark == Mark::Problem).count()
    }
}

/// Sections of aligned lines; commands stand alone on theirs, ready to be copied.
fn text(report: &Report) -> String {
    let width = report.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let mut section = "";
    for check in &report.checks {
        if check.section != section {
            section = check.section;
            text += &format!("{}{section}\n", if text.is_empty() { "" } else { "\n" });
        }
        let mark = check.mark.as_str();
        text += &format!("  {mark:<7}  {:<width$}  {}\n", check.name, plain(&check.says));
        for line in &check.details {
            text += &format!("  {:<7}  {:<width$}  {}\n", "", "", plain(line));
        }
        for line in &check.remedy {
            text += &format!("      {}\n", plain(line));
        }
        for line in &check.advice {
            text += &format!("    {}\n", plain(line));
        }
    }
    if let Some(backend) = report.backend {
        text += &format!("\nback end\n  {backend}, as {}\n", report.reason);
    }
    let verdict = match report.problems() {
        _ if report.backend.is_none() => "whether FTP through this gateway will work is not known",
        0 => "FTP through this gateway will work, where your rules let control connections pass",
        _ => "FTP through this gateway will not work before the problems above are solved",
    };
    text + &format!("\n{verdict}\n")
}

/// Without control characters, which the comments of rules may have, and terminals would heed.
fn plain(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    for c in line.chars() {
        match c.is_control() {
            true => plain.extend(c.escape_default()),
            false => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(section: &'static str, name: &str, mark: Mark, remedy: &[&str]) -> Check {
        Check {
            section,
            name: name.into(),
            mark,
            says: "says".into(),
            details: Vec::new(),
            remedy: remedy.iter().map(|line| (*line).to_owned()).collect(),
            advice: Vec::new(),
        }
    }

    #[test]
    fn sections_are_aligned_and_commands_stand_alone() {
        let checks = vec![
            check("kernel", "nat", Mark::Ok, &[]),
            check("kernel", "ctnetlink", Mark::Missing, &[]),
            check("firewall", "forward", Mark::Problem, &["nft insert rule"]),
        ];
        let report = Report::new(Some(Backend::Nftables), "it is so".into(), checks);
        assert_eq!(
            text(&report),
            "kernel\n  ok       nat        says\n  missing  ctnetlink  says\n\n\
             firewall\n  PROBLEM  forward    says\n      nft insert rule\n\n\
             back end\n  nftables, as it is so\n\n\
             FTP through this gateway will not work before the problems above are solved\n"
        );
        assert!(!report.ok);
    }

    #[test]
    fn a_terminal_sees_no_control_characters_of_rules() {
        let hostile = "\u{1b}[2J\u{7}\r\u{9b}é".to_owned();
        let mut one = check("firewall", "input", Mark::Problem, &[&hostile]);
        one.says.clone_from(&hostile);
        (one.details, one.advice) = (vec![hostile.clone()], vec![hostile]);
        let text = text(&Report::new(None, "x".into(), vec![one]));
        assert_eq!(text.matches("\\u{1b}[2J\\u{7}\\r\\u{9b}é").count(), 4, "{text}");
        assert!(text.lines().all(|line| !line.contains(char::is_control)), "{text}");
    }

    #[test]
    fn what_is_missing_and_not_needed_is_no_problem() {
        let checks = || vec![check("kernel", "x", Mark::Missing, &[])];
        let report = Report::new(Some(Backend::Nftables), "x".into(), checks());
        assert!(report.ok);
        assert!(text(&report).contains("\nFTP through this gateway will work"));
        assert!(text(&Report::new(None, "x".into(), checks())).ends_with("is not known\n"));
    }
}
