//! Whether FTP works here, and what to do if it does not: problems and warnings for `status`, `doctor`, the log and the
//! service manager.
//!
//! [`HostAudit`] finds what the rules of other programs do to FTP, for `doctor` and for the daemon. [`Health`] has what
//! the daemon knows about itself, and the result of its last audit. [`ProblemName`] decides what is a problem, and what
//! a warning.

mod check;
mod host_audit;
mod names;
mod recent;
mod report;
mod servers;
mod traffic;

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd as _,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use ftp_alg_core::engine::{Event, EventKind, RECORD_FORMAT, TransferResult};
use ftp_alg_firewall::{Firewall, data_path_verdicts};
use rustix::process::{Pid, getpid};

pub use self::{
    check::{Check, CheckStatus},
    host_audit::HostAudit,
    names::{FoundBy, ProblemName, is_audit_problem},
};
use self::{report::Reports, traffic::Traffic};
use super::{
    control_client::ClientError,
    events::in_utc_seconds,
    shard::lock,
    snapshot::{Finding, Findings, NameRow, Problem, Status},
};
use crate::kernel::{
    RuleParameters, broker,
    conntrack::admitted_connections,
    operator_firewall,
    parameters::Backend,
    probe::{ConntrackAbilities, HostSettings},
    table::{
        Table,
        readers::{self, QueueReader},
    },
};

/// How to select the back end `conntrack`, and what it costs.
pub const SELECT_CONNTRACK: &str = "set backend = \"conntrack\" in [pinhole] (announcements are queued: small files at \
                                    half the rate of the kernel's helper)";
const NAMES_SECTION: &str = "names";
/// How long an event of traffic counts.
const RECENT_WINDOW: Duration = Duration::from_secs(600);
/// The same in words.
const WITHIN: &str = "in the last 10 minutes";

/// The problem of a daemon that did not answer, according to `error`.
pub fn daemon_problem(error: &ClientError) -> Problem {
    let text = error.to_string();
    match error {
        ClientError::Silent { .. } | ClientError::NotReady { is_silent: true, .. } => {
            return match readers::readers_of_table().ok().and_then(|all| all.into_iter().next()) {
                Some(reader) if reader.has_no_free_descriptor() => {
                    let text = format!("{text}: it has no free file descriptor");
                    descriptor_problem(text, reader.process)
                }
                _ => ProblemName::DaemonHung.problem(text),
            };
        }
        ClientError::Answer { .. } => return ProblemName::DaemonHung.problem(text),
        ClientError::NotPermitted { .. } => return ProblemName::Privileges.problem(text),
        ClientError::NoDaemon { .. }
        | ClientError::NotReady { .. }
        | ClientError::System { .. } => {}
    }
    let readers = readers::readers_of_table();
    if let Ok([QueueReader { process, name, .. }, ..]) = readers.as_deref() {
        let process = process.as_raw_nonzero();
        let text = format!(
            "{text}; {name}, process {process}, reads the queue of table inet ftp_alg, so it has another control socket"
        );
        let remedy = format!(
            "name its control socket with --socket: `tr '\\0' ' ' < /proc/{process}/cmdline` shows its options"
        );
        return ProblemName::OtherSocket.problem_with(text, remedy);
    }
    match Table::is_loaded() {
        Ok(true) if readers.is_ok() => {
            let text = format!(
                "{text}; table inet ftp_alg is still loaded: connections with adjusted sequence numbers stall, and \
                 others pass unread"
            );
            ProblemName::TableWithoutDaemon.problem(text)
        }
        _ => ProblemName::DaemonAbsent.problem(text),
    }
}

/// The problem of the daemon `process`, whose descriptors are in use.
fn descriptor_problem(text: String, process: Pid) -> Problem {
    let process = process.as_raw_nonzero();
    let remedy = format!(
        "prlimit --pid {process} --nofile=65536; and LimitNOFILE=65536 in a drop-in of the unit"
    );
    ProblemName::FileDescriptors.problem_with(text, remedy)
}

/// The daemon has no free descriptor.
fn no_free_descriptor() -> Option<Finding> {
    // A copy needs a free descriptor, and nothing else.
    io::stderr().as_fd().try_clone_to_owned().is_err().then(|| {
        let text = "all file descriptors are in use: the daemon can open no file and no socket";
        let problem = descriptor_problem(text.to_owned(), getpid());
        (ProblemName::FileDescriptors.severity(0), problem)
    })
}

/// The journals at the paths `unwritten` cannot be written.
fn unwritten_journals(unwritten: &[impl AsRef<Path>]) -> Option<Finding> {
    let first = unwritten.first()?.as_ref().display();
    let more = match unwritten.len() {
        1 => String::new(),
        all => format!(" and {} more", all - 1),
    };
    let text =
        format!("journal {first}{more} cannot be written: its sessions do not survive a restart");
    Some(ProblemName::State.finding(text))
}

/// The check that the daemon is of the same version as this program, if it is not.
pub fn version_check(section: &'static str, status: &Status) -> Option<Check> {
    let ours = env!("FTP_ALG_VERSION");
    (status.version != ours).then(|| {
        let text = format!(
            "the running daemon is version {}, and this program is version {ours}",
            status.version
        );
        let name = ProblemName::DaemonVersion;
        let advice = match status.record_format {
            RECORD_FORMAT => name.remedy(),
            _ => {
                "`systemctl restart ftp-alg` when sessions may end: this program does not read its records, so those \
                 with adjusted sequence numbers end, and their clients log in again"
                    .to_owned()
            }
        };
        Check::problem(section, name.as_str(), name, text).advice([advice])
    })
}

/// Checks for external addresses that could not be looked up.
pub fn name_checks(rows: &[NameRow]) -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    for row in rows {
        let Some(error) = &row.error else { continue };
        let error = format!("{}: {error}", row.family);
        if let Some(address) = row.address {
            let says = format!("{address} stays in use; {error}");
            checks.push(Check::note(NAMES_SECTION, &row.name, says));
        } else if let Some(known) = checks.iter_mut().find(|check| check.name == row.name) {
            known.details.push(error);
        } else if rows.iter().all(|one| one.name != row.name || one.address.is_none()) {
            let says = "not resolved yet: announcements that need its address are refused";
            let name = ProblemName::Name;
            let check = Check::problem(NAMES_SECTION, &row.name, name, says).details([error]);
            checks.push(check.advice([name.remedy()]));
        }
    }
    checks
}

/// The daemon's health.
#[derive(Debug, Default)]
pub(super) struct Health {
    state: Mutex<HealthState>,
    /// What was reported. It has a lock of its own, because workers record events while a line is logged or the service
    /// manager is notified.
    reports: Mutex<Reports>,
}

#[derive(Debug, Default)]
struct HealthState {
    /// What the last audit found.
    audit: Findings,
    /// Whether the firewall drops each data connection that ftp-alg has not marked.
    drops_unmarked: bool,
    /// What other parts of the daemon found, until they find that it is solved.
    known: BTreeMap<ProblemName, Finding>,
    traffic: Traffic,
    /// What the traffic of the last minutes said at the last tick.
    traffic_findings: Vec<Finding>,
    /// Since when each problem exists, by its name, as of the last tick.
    since: BTreeMap<String, String>,
}

impl Health {
    /// Audits the rules of other programs.
    pub(super) fn audit_rules(&self, firewall: &Firewall, parameters: &RuleParameters) {
        let host = HostSettings::read(parameters);
        let audit = |firewall: &Firewall, other_backend| {
            let data_paths = data_path_verdicts(firewall, host.routing);
            let audit = HostAudit {
                parameters,
                firewall,
                data_paths: &data_paths,
                host,
                backend: parameters.backend,
                other_backend,
            };
            let findings = audit.checks().iter().filter_map(Check::finding).collect();
            (findings, !audit.unmarked_may_pass())
        };
        let (mut findings, drops_unmarked): (Findings, bool) = audit(firewall, None);
        if !findings.is_empty() {
            // Reads the rules again, with their texts for the messages, which takes longer.
            let offers_conntrack = parameters.backend == Backend::Nftables
                && ConntrackAbilities::read().supports_expectations();
            let other = offers_conntrack.then_some((Backend::Conntrack, SELECT_CONNTRACK));
            (findings, _) = audit(&operator_firewall::read(parameters.gateway.clone()), other);
        }
        let mut state = lock(&self.state);
        (state.audit, state.drops_unmarked) = (findings, drops_unmarked);
    }

    /// Notes why the daemon has the problem of this name, or that it does not have it.
    pub(super) fn set(&self, name: ProblemName, error: Option<String>) {
        self.set_finding(name, error.map(|error| name.finding(error)));
    }

    /// Notes the problem of this name, or that there is none.
    pub(super) fn set_finding(&self, name: ProblemName, found: Option<Finding>) {
        let known = &mut lock(&self.state).known;
        known.remove(&name);
        known.extend(found.map(|found| (name, found)));
    }

    /// Notes the events of an engine, as far as they matter here.
    pub(super) fn note_events(&self, now: Instant, events: &[Event]) {
        if events.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        events.iter().for_each(|event| state.traffic.note(now, event));
    }

    /// Notes reports of transfers, as far as they matter here.
    pub(super) fn note_reports<'e>(&self, now: Instant, reports: impl Iterator<Item = &'e Event>) {
        let traffic = &mut lock(&self.state).traffic;
        for event in reports {
            match &event.kind {
                EventKind::Transfer(ended) if ended.result == TransferResult::NoDataConnection => {
                    if let Some(reason) = &ended.reason {
                        traffic.note_no_data_connection(now, event, reason);
                    }
                }
                EventKind::NoDataConnection(missing) if missing.encrypted => {
                    traffic.note_tried(now, event, missing);
                }
                EventKind::NoDataConnection(missing) => {
                    traffic.note_no_data_connection(now, event, &missing.reason);
                }
                _ => {}
            }
        }
    }

    /// How many pinholes expired without a connection.
    pub(super) fn unused_pinholes(&self) -> u64 {
        lock(&self.state).traffic.unused_pinholes()
    }

    /// Asks conntrack which expired pinholes had no connection. A pinhole also expires in its engine if its connection
    /// transferred nothing.
    pub(super) fn take_unused_pinholes(
        &self,
        now: Instant,
        parameters: &RuleParameters,
    ) -> Vec<Event> {
        let expired = std::mem::take(&mut lock(&self.state).traffic.expired);
        if expired.is_empty() {
            return Vec::new();
        }
        let used = admitted_connections(parameters).unwrap_or_default();
        let unused = expired.into_iter().filter(|one| !used.contains(&one.kind.ends.key()));
        let unused: Vec<_> = unused.map(|one| one.map(EventKind::Unused)).collect();
        lock(&self.state).traffic.note_unused(now, &unused);
        unused
    }

    /// Updates what the traffic says, from the counters of `status`. Called at each tick.
    pub(super) fn update_traffic(&self, now: Instant, status: &Status) {
        let state = &mut *lock(&self.state);
        state.traffic_findings = state.traffic.update(now, status, state.drops_unmarked).collect();
    }

    /// What is wrong with a daemon of this `status`. The journals at the paths `unwritten` cannot be written.
    pub(super) fn findings(&self, status: &Status, unwritten: &[impl AsRef<Path>]) -> Findings {
        let HealthState { audit, known, traffic_findings, .. } = &*lock(&self.state);
        let mut findings = audit.clone();
        findings.extend(name_checks(&status.names).iter().filter_map(Check::finding));
        findings.extend(no_free_descriptor());
        let broker_ended = || ProblemName::Broker.finding("the broker has ended");
        findings.extend(broker::has_ended().then(broker_ended));
        findings.extend(known.values().cloned());
        findings.extend(unwritten_journals(unwritten));
        findings.extend(traffic_findings.iter().cloned());
        findings
    }

    /// Forgets what a configuration that is no more may have caused. What is not cured is back with the next event.
    pub(super) fn forget_configured(&self) {
        lock(&self.state).traffic.forget_configured();
    }

    /// Completes `findings` by when each was first and last seen.
    pub(super) fn date(&self, findings: &mut Findings) {
        let (now, state) = (in_utc_seconds(SystemTime::now()), lock(&self.state));
        for one in findings.problems.iter_mut().chain(&mut findings.warnings) {
            let last = one.last.get_or_insert_with(|| now.clone());
            one.since = Some(state.since.get(&one.name).unwrap_or(last).clone());
        }
    }

    /// Reports to the log what is new or solved, and to the service manager what is wrong now. Called at each tick, with
    /// [dated](Self::date) findings.
    pub(super) fn report_changes(&self, findings: &Findings) {
        let since = |(_, one): (_, &Problem)| Some((one.name.clone(), one.since.clone()?));
        lock(&self.state).since = findings.iter().filter_map(since).collect();
        lock(&self.reports).update(findings);
    }
}

#[cfg(test)]
mod tests;
