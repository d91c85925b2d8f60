//! `ftp-alg doctor`: checks whether FTP works with this kernel and this firewall, and what to do if it does not.

mod checks;
mod pair;
mod try_modes;

use std::{
    cmp::Reverse,
    fs,
    path::{self, PathBuf},
};

use clap::Args;
use ftp_alg_firewall::{accepted_data, data_path_verdicts};
use serde::Serialize;

use super::{
    ConfigOption, Failure, SocketOption,
    output::{self, Style},
    table,
};
use crate::{
    config::{Config, escaped},
    daemon::{
        config_file::ConfigTexts,
        health::{self, Check, CheckStatus, HostAudit, ProblemName},
        snapshot::{self, Findings, Problem},
    },
    kernel::{
        RuleParameters, automatic::automatic_backend, operator_firewall, parameters::Backend,
        probe::KernelFeatures,
    },
};

/// The least room for text behind the names of checks.
const MIN_ROOM: usize = 24;
/// The reason for a back end that the configuration names.
const CONFIGURED: &str = "the configuration says so";

/// Check whether FTP works here, and what to do if it does not
///
/// Only reads: it loads, changes and sends nothing. Of the daemon's own file it
/// checks what is in use; `ftp-alg check` checks the file. Exit code 0: there is no
/// problem, though there may be warnings. Exit code 1: there is a problem, see
/// ftp-alg(8), "Problems". In JSON:
/// {ok, backend, reason, problems: [{name, text, remedy}], warnings: [the same], checks: [
/// {section, name, mark: "ok"|"missing"|"note"|"warning"|"problem", says, details, remedy, advice, problem}]}.
///
/// With --try it logs in to a server instead and transfers a listing in each
/// mode. It says which step fails. Exit code 0: all modes work. In JSON:
/// {ok, steps: [{step, ok: true|false|null, says, remedy}]}; null is a step that
/// was not tried, or active mode inside TLS, which no gateway can read.
#[derive(Args, Debug)]
pub(super) struct DoctorOptions {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    try_options: try_modes::TryOptions,
    #[command(flatten)]
    config: ConfigOption,
    #[command(flatten)]
    socket: SocketOption,
}

impl DoctorOptions {
    pub fn run(&self) -> Result<(), Failure> {
        let (config, probed) = match self.config_in_use() {
            Some((in_use, features)) => (in_use, Some(features)),
            None => (self.config.load()?, None),
        };
        let parameters = RuleParameters::from(&config);
        if let Some(done) = self.try_options.run_if_asked(&parameters, &self.socket, self.json) {
            return done;
        }
        let features = probed.unwrap_or_else(|| KernelFeatures::probe(&parameters));
        let running = self.running(&features);
        let firewall = operator_firewall::read(parameters.gateway.clone());
        // The daemon finds the same zones and marks when it starts.
        let zones = firewall.zones();
        let ct_mark_use = firewall.ct_mark_use();
        let parameters = parameters.with_zones(zones).with_ct_mark_use(ct_mark_use);
        let host = features.host;
        let data_paths = data_path_verdicts(&firewall, host.routing);
        let runs_with = running.as_ref().ok().and_then(|status| status.backend.parse().ok());
        let configured = config.pinhole.backend;
        let automatic = || automatic_backend(None, false, || accepted_data(&firewall, &data_paths));
        let (wanted, why) = configured.map_or_else(automatic, |backend| (backend, CONFIGURED));
        // The back end of the running daemon counts, because it has the pinholes now.
        let backend = runs_with.unwrap_or(wanted);
        let is_auto = configured.is_none();
        let when = if is_auto { "after a start without sessions" } else { "after a restart" };
        let reason = match backend == wanted {
            true => why.to_owned(),
            false => format!("the running ftp-alg uses it; {when} it uses {wanted}: {why}"),
        };
        let other = if backend != wanted && !is_auto {
            Some((wanted, "restart ftp-alg"))
        } else if backend == Backend::Nftables && features.conntrack.supports_expectations() {
            Some((Backend::Conntrack, health::SELECT_CONNTRACK))
        } else {
            None
        };
        let surroundings = HostAudit {
            parameters: &parameters,
            firewall: &firewall,
            data_paths: &data_paths,
            host,
            backend,
            other_backend: other,
        };
        let running = running.as_ref();
        let fast_path = config.queue.fast_path;
        let all = checks::Checks { running, features: &features, fast_path, surroundings };
        let mut checks = all.all();
        if let Ok(status) = running
            && let Some(pair) = &status.pair
        {
            let machine = pair::Machine::read(&firewall);
            checks.extend(pair::checks(pair, &status.version, &machine));
        }
        let report = DoctorReport::new(features.net_admin.then_some(backend), reason, checks);
        output::print_report(self.json, &report, |report| text(report, Style::of_stdout()))?;
        match report.backend {
            _ if report.ok => Ok(()),
            None => Err(Failure::failed("not permitted to read the kernel's state: run as root")),
            Some(_) => Err(Failure::from_findings(&report.findings)),
        }
    }

    /// The configuration that the daemon uses, if the file is the daemon's: the file may say something else by now.
    /// Returns `None` if no program in this network namespace reads the daemon's queues, as far as this process may
    /// see.
    fn config_in_use(&self) -> Option<(Config, KernelFeatures)> {
        let texts: ConfigTexts = self.socket.request("config").ok()?.parse().ok()?;
        let its = fs::canonicalize(&texts.file).ok();
        let is_its = |file: &PathBuf| {
            path::absolute(file).is_ok_and(|file| file == texts.file)
                || its.is_some() && fs::canonicalize(file).ok() == its
        };
        let in_use =
            self.config.config.as_ref().is_none_or(is_its).then(|| texts.in_use().ok())??;
        let features = KernelFeatures::probe(&RuleParameters::from(&in_use));
        (!features.net_admin || !features.readers.is_empty()).then_some((in_use, features))
    }

    /// The status of the daemon that serves this network namespace, or the problem that there is none.
    fn running(&self, features: &KernelFeatures) -> Result<snapshot::Status, Problem> {
        let has_readers = !features.readers.is_empty();
        match self.socket.status() {
            Ok(status) if has_readers || !features.net_admin => Ok(status),
            Ok(_) => {
                let text = format!(
                    "the daemon on {} reads no queue in this network namespace: it has another \
                     configuration, or serves another namespace",
                    self.socket.socket.display()
                );
                let remedy = "run doctor in the daemon's network namespace and with its --config";
                Err(ProblemName::DaemonAbsent.problem_with(text, remedy))
            }
            Err(error) => Err(health::daemon_problem(&error)),
        }
    }
}

/// The output of `doctor`, also as JSON.
#[derive(Debug, Serialize)]
struct DoctorReport {
    /// Whether there is no problem.
    ok: bool,
    /// The back end for pinholes; `None` without the privileges to find out.
    backend: Option<&'static str>,
    reason: String,
    #[serde(flatten)]
    findings: Findings,
    checks: Vec<Check>,
}

impl DoctorReport {
    fn new(backend: Option<Backend>, reason: String, checks: Vec<Check>) -> Self {
        let findings: Findings = checks.iter().filter_map(Check::finding).collect();
        let ok = findings.problems.is_empty();
        Self { ok, backend: backend.map(Into::into), reason, findings, checks }
    }

    /// One line that says what is known about FTP here, and claims no more.
    fn verdict(&self) -> String {
        let is_host = self.checks.iter().any(checks::is_of_host);
        let here =
            if is_host { "on this host, which forwards nothing" } else { "through this gateway" };
        let works = format!("FTP will work {here}");
        let counts = self.findings.counts();
        match self.backend {
            None => format!("cannot tell whether {works}"),
            _ if self.findings.is_empty() => works,
            _ if self.ok => format!("{works}, but see the {counts} above"),
            _ if self.checks.iter().any(Check::stops_all) => {
                format!("FTP will not work {here} until the problems above are solved")
            }
            _ => format!("{counts}: see above what may not work"),
        }
    }
}

/// The report as aligned lines in sections. Each command has a line of its own, so that it can be copied.
fn text(report: &DoctorReport, style: Style) -> String {
    let end = style.text_width();
    let width = report.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    // On a narrow terminal the text is below the name.
    let (width, gap, indent) = match width + 13 + MIN_ROOM <= end {
        true => (width, "  ", width + 13),
        false => (0, "\n    ", 4),
    };
    let mut text = String::new();
    let mut section = "";
    for check in most_severe_first(&report.checks) {
        if check.section != section {
            section = check.section;
            text += &format!("{}{section}\n", if text.is_empty() { "" } else { "\n" });
        }
        let mark = check.mark;
        // The name by which `status`, the log and the metrics know it.
        let says = match check.problem.as_deref().filter(|name| *name != check.name) {
            Some(name) => format!("{name}: {}", check.says),
            None => check.says.clone(),
        };
        let wrapped = |text: &str| table::wrapped(&escaped(text), indent, end);
        text += &format!("  {mark:<7}  {:<width$}{gap}{}\n", check.name, wrapped(&says));
        for line in &check.details {
            text += &format!("{:indent$}{}\n", "", wrapped(line));
        }
        for line in &check.remedy {
            text += &format!("      {}\n", escaped(line));
        }
        for line in &check.advice {
            text += &format!("    {}\n", table::wrapped(&escaped(line), 4, end));
        }
    }
    if let Some(backend) = report.backend {
        let backend = format!("{backend}: {}", report.reason);
        text += &format!("\nback end\n  {}\n", table::wrapped(&backend, 2, end));
    }
    text + &format!("\n{}\n", table::wrapped(&report.verdict(), 0, end))
}

/// In each section the problems, then the warnings, then all other checks.
fn most_severe_first(checks: &[Check]) -> Vec<&Check> {
    let mut sorted = Vec::new();
    for section in checks.chunk_by(|one, next| one.section == next.section) {
        let from = sorted.len();
        sorted.extend(section);
        sorted[from..].sort_by_key(|check| Reverse(check.mark.max(CheckStatus::Note)));
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::PLAIN;

    fn check(
        section: &'static str,
        name: &'static str,
        mark: CheckStatus,
        remedy: &[&str],
    ) -> Check {
        let check = match mark {
            CheckStatus::Problem => {
                Check::problem(section, name, ProblemName::DataConnections, "says")
            }
            CheckStatus::Warning => Check::problem(section, name, ProblemName::State, "says"),
            _ => Check::new(section, name, mark, "says"),
        };
        check.remedy(remedy.iter().map(|line| (*line).to_owned()))
    }

    #[test]
    fn problems_and_warnings_come_first_in_their_section() {
        let checks = [
            check("kernel", "nat", CheckStatus::Ok, &[]),
            check("daemon", "names", CheckStatus::Note, &[]),
            check("daemon", "state", CheckStatus::Warning, &[]),
            check("daemon", "table", CheckStatus::Problem, &[]),
        ];
        let names: Vec<_> = most_severe_first(&checks).iter().map(|one| &one.name).collect();
        assert_eq!(names, ["nat", "table", "state", "names"]);
    }

    #[test]
    fn the_verdict_says_no_more_than_is_known() {
        let verdict = |checks: Vec<Check>| {
            DoctorReport::new(Some(Backend::Nftables), "x".into(), checks).verdict()
        };
        let of = |name| Check::problem("daemon", "x", name, "says");
        let stops = "FTP will not work through this gateway until the problems above are solved";
        let partial = of(ProblemName::DataConnections).partial_if(true);
        let missing = check("kernel", "x", CheckStatus::Missing, &[]);
        for (checks, says) in [
            (vec![], "FTP will work through this gateway"),
            (vec![missing], "FTP will work through this gateway"),
            (
                vec![checks::nothing_forwarded()],
                "FTP will work on this host, which forwards nothing",
            ),
            (vec![of(ProblemName::Table)], stops),
            (vec![of(ProblemName::Table), of(ProblemName::State)], stops),
            (
                vec![of(ProblemName::State), of(ProblemName::Helper)],
                "FTP will work through this gateway, but see the 2 warnings above",
            ),
            (vec![partial], "1 problem: see above what may not work"),
            (
                vec![of(ProblemName::Zone), of(ProblemName::Name), of(ProblemName::State)],
                "2 problems, 1 warning: see above what may not work",
            ),
        ] {
            assert_eq!(verdict(checks), says);
        }
        let unknown = DoctorReport::new(None, "x".into(), vec![]).verdict();
        assert_eq!(unknown, "cannot tell whether FTP will work through this gateway");
    }

    #[test]
    fn control_characters_of_rules_are_escaped() {
        let hostile = "\u{1b}[2J\u{7}\r\u{9b}é".to_owned();
        let mut one = check("firewall", "input", CheckStatus::Problem, &[&hostile]);
        one.says.clone_from(&hostile);
        (one.details, one.advice) = (vec![hostile.clone()], vec![hostile]);
        let text = text(&DoctorReport::new(None, "x".into(), vec![one]), PLAIN);
        assert_eq!(text.matches("\\u{1b}[2J\\u{7}\\r\\u{9b}é").count(), 4, "{text}");
        assert!(text.lines().all(|line| !line.contains(char::is_control)), "{text}");
    }
}
