//! Whether FTP works here, and what is to be done where it does not: one list of problems, which `status`, `doctor`,
//! the log and the service manager tell.
//!
//! [`Surroundings`] judges the rules of others, for the doctor as for the daemon. [`Health`] is what a daemon knows
//! of itself, and what it found when it last looked at those rules.

mod check;
mod host_audit;
mod recent_count;

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{Counters, Pinhole},
    ftp::Kind,
};
use sd_notify::NotifyState;

use self::recent_count::RecentCount;
pub use self::{
    check::{Check, CheckStatus},
    host_audit::HostAudit,
};
use super::{
    client::ClientError,
    notify,
    shard::lock,
    snapshot::{NameRow, Problem, Status},
};
use crate::gateway::{
    Neighbours, RuleParameters, Table,
    firewall::{Firewall, data_path_verdicts},
    used_pinholes,
};

/// No daemon is there.
pub const DAEMON_ABSENT: &str = "daemon-absent";
/// No daemon is there, but the table of one.
pub const TABLE_WITHOUT_DAEMON: &str = "table-without-daemon";
/// One is there, and does not answer.
pub const DAEMON_HUNG: &str = "daemon-hung";
/// It is of another version than who asks.
pub const DAEMON_VERSION: &str = "daemon-version";
const NAMES_SECTION: &str = "names";
const NAME_PROBLEM: &str = "name";
/// What [`Surroundings`] finds.
const AUDIT_PROBLEMS: [&str; 7] = [
    "control-connections",
    "data-connections",
    "acknowledgements",
    "helper",
    "flowtable",
    "queued-twice",
    "notrack",
];
const ENCRYPTED: &str = "encrypted";
/// What happened counts as a problem for so long.
const RECENT_WINDOW: Duration = Duration::from_secs(600);
/// Of many data connections a few come to nothing: problems are those that are more than one of so many.
const UNUSED_SHARE: u64 = 20;
/// So many expired pinholes wait to be looked at.
const MAX_EXPIRED: usize = 1024;

/// Why nobody serves this network namespace, as `error` says; whether queues are `unread` tells one that hangs.
pub fn daemon_problem(error: &ClientError, unread: bool) -> Problem {
    let text = error.to_string();
    let restart = "systemctl restart ftp-alg, which sessions survive";
    match error {
        ClientError::Silent { .. } | ClientError::NotReady { .. } => {
            return Problem::new(DAEMON_HUNG, text, restart);
        }
        ClientError::Answer { .. } => return Problem::new(DAEMON_VERSION, text, restart),
        ClientError::NotPermitted { .. } => {
            return Problem::new("privileges", text, "run this as root");
        }
        ClientError::NoDaemon { .. } | ClientError::System { .. } => {}
    }
    match Table::is_there() {
        Ok(true) if unread => {
            let text = format!(
                "{text}; its table inet ftp_alg is still loaded: connections whose numbers are adjusted wait, \
                 others pass unread"
            );
            let remedy = "systemctl start ftp-alg, or give them up: nft delete table inet ftp_alg";
            Problem::new(TABLE_WITHOUT_DAEMON, text, remedy)
        }
        _ => Problem::new(DAEMON_ABSENT, text, "systemctl start ftp-alg"),
    }
}

/// That the daemon is of another version than this program.
pub fn version_problem(status: &Status) -> Option<Problem> {
    let ours = env!("CARGO_PKG_VERSION");
    (status.version != ours).then(|| {
        let text =
            format!("the daemon that runs is version {}, this program {ours}", status.version);
        Problem::new(DAEMON_VERSION, text, "systemctl restart ftp-alg, which sessions survive")
    })
}

/// Whether a doctor finds `problem` by itself, with rights that a daemon does not have.
pub fn is_audit_problem(problem: &Problem) -> bool {
    problem.name == NAME_PROBLEM || AUDIT_PROBLEMS.contains(&problem.name.as_str())
}

/// The external addresses that the daemon looks up, where something is wrong.
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
            let advice = "put the name or /etc/resolv.conf right, or give an address instead";
            let check =
                Check::problem(NAMES_SECTION, &row.name, NAME_PROBLEM, says).details([error]);
            checks.push(check.advice([advice.to_owned()]));
        }
    }
    checks
}

/// A pinhole that nobody used, as its engine has it.
#[derive(Clone, Debug)]
struct ExpiredPinhole {
    pinhole: Pinhole,
    kind: Kind,
    client: SocketAddr,
    server: SocketAddr,
}

/// What a daemon knows of its own health.
#[derive(Debug)]
pub(super) struct Health {
    state: Mutex<HealthState>,
}

#[derive(Debug)]
struct HealthState {
    /// What the rules of others do, as they were when they were read last.
    audit_problems: Vec<Problem>,
    /// Whether data connections pass that have no sign of ours.
    unmarked_may_pass: bool,
    /// Why our table is not as it should be.
    table_error: Option<String>,
    expired: Vec<ExpiredPinhole>,
    /// How many pinholes nobody used, and whose the last was.
    unused: u64,
    last_unused: Option<String>,
    recent: [RecentCount; 5],
    /// The problems that were there at the last look, and those that were told.
    previous: HashSet<String>,
    reported: HashSet<String>,
    status: String,
}

impl Health {
    pub(super) fn new(now: Instant) -> Self {
        let state = HealthState {
            audit_problems: Vec::new(),
            unmarked_may_pass: true,
            table_error: None,
            expired: Vec::new(),
            unused: 0,
            last_unused: None,
            recent: std::array::from_fn(|_| RecentCount::new(now, RECENT_WINDOW)),
            previous: HashSet::new(),
            reported: HashSet::new(),
            status: String::new(),
        };
        Self { state: Mutex::new(state) }
    }

    /// Judges the rules of others.
    pub(super) fn audit_rules(&self, firewall: &Firewall, parameters: &RuleParameters) {
        let neighbours = Neighbours::read(parameters);
        let look = |firewall: &Firewall| {
            let outlooks = data_path_verdicts(firewall, neighbours.routing, parameters);
            let around = HostAudit {
                parameters,
                firewall,
                outlooks: &outlooks,
                neighbours,
                backend: parameters.backend(),
                other_backend: None,
            };
            let problems = around.checks().iter().filter_map(Check::as_problem).collect();
            (problems, around.unmarked_may_pass())
        };
        let (mut machine, plain_passes): (Vec<Problem>, bool) = look(firewall);
        if !machine.is_empty() {
            // This time with the texts of rules, which take longer.
            (machine, _) = look(&Firewall::read());
        }
        let mut state = lock(&self.state);
        (state.audit_problems, state.unmarked_may_pass) = (machine, plain_passes);
    }

    /// Our table is as it should be, or not, and why.
    pub(super) fn set_table(&self, error: Option<String>) {
        lock(&self.state).table_error = error;
    }

    /// A pinhole's deadline passed.
    pub(super) fn record_expired(
        &self,
        pinhole: Pinhole,
        kind: Kind,
        ends: (SocketAddr, SocketAddr),
    ) {
        let mut state = lock(&self.state);
        if state.expired.len() < MAX_EXPIRED {
            let (client, server) = ends;
            state.expired.push(ExpiredPinhole { pinhole, kind, client, server });
        }
    }

    /// How many pinholes nobody used.
    pub(super) fn unused_pinholes(&self) -> u64 {
        lock(&self.state).unused
    }

    /// Finds out which of the pinholes that expired had no connection; one of which nothing was transferred had one.
    /// Gives a line for each, and its client.
    pub(super) fn take_unused_pinholes(
        &self,
        parameters: &RuleParameters,
    ) -> Vec<(IpAddr, String)> {
        let expired = std::mem::take(&mut lock(&self.state).expired);
        if expired.is_empty() {
            return Vec::new();
        }
        let used = used_pinholes(parameters).unwrap_or_default();
        let is_unused = |one: &ExpiredPinhole| {
            let Pinhole { initiator, arrival, .. } = one.pinhole;
            !used.contains(&(initiator, arrival))
        };
        let lines: Vec<_> =
            expired.into_iter().filter(is_unused).map(ExpiredPinhole::log_line).collect();
        let mut state = lock(&self.state);
        state.unused += lines.len() as u64;
        state.last_unused = lines.last().map(|(_, line)| line.clone()).or(state.last_unused.take());
        lines
    }

    /// All problems of a daemon with this `status`, whose journals at `unwritten` cannot be written.
    pub(super) fn problems(
        &self,
        now: Instant,
        status: &Status,
        unwritten: &[impl AsRef<Path>],
    ) -> Vec<Problem> {
        let mut state = lock(&self.state);
        let mut problems = state.audit_problems.clone();
        problems.extend(name_checks(&status.names).iter().filter_map(Check::as_problem));
        problems.extend(state.table_error.iter().map(|error| {
            let remedy = "see which program changes nf_tables (`nft monitor`); ftp-alg tries again";
            Problem::new("table", error, remedy)
        }));
        problems.extend(unwritten.first().map(|path| {
            let more = match unwritten.len() {
                1 => String::new(),
                all => format!(" and {} more", all - 1),
            };
            let text = format!(
                "{}{more} cannot be written: no session in it survives a restart",
                path.as_ref().display()
            );
            Problem::new("state", text, "make room, or the directory writable for ftp-alg's user")
        }));
        problems.extend(state.recent_problems(now, status));
        problems
    }

    /// Tells the log and the service manager of problems that are new, and of those that are solved.
    pub(super) fn report_changes(&self, problems: &[Problem]) {
        let mut state = lock(&self.state);
        let names: HashSet<String> = problems.iter().map(|problem| problem.name.clone()).collect();
        for problem in problems {
            let Problem { name, text, remedy } = problem;
            // A name is looked up at the start, and a journal written again a moment later.
            let lasts =
                is_audit_problem(problem) && name != NAME_PROBLEM || state.previous.contains(name);
            if lasts && state.reported.insert(name.clone()) {
                tracing::warn!(
                    event = "problem",
                    problem = name,
                    "problem {name}: {text}: {remedy}"
                );
            }
        }
        for solved in state.reported.extract_if(|name| !names.contains(name)) {
            tracing::info!(event = "solved", problem = solved, "problem {solved} is solved");
        }
        state.previous = names;
        let status = match problems {
            [] => "FTP works as far as ftp-alg sees".to_owned(),
            [Problem { name, text, .. }] => format!("problem {name}: {text}"),
            [Problem { name, text, .. }, ..] => {
                format!("{} problems, the first {name}: {text}", problems.len())
            }
        };
        if state.status != status {
            notify(&[NotifyState::Status(&status)]);
            state.status = status;
        }
    }
}

impl HealthState {
    /// What happened of late.
    fn recent_problems(&mut self, now: Instant, status: &Status) -> Vec<Problem> {
        let Status { overruns, counters, .. } = status;
        let Counters { encrypted, uninspected, pinholes_used: used, .. } = *counters;
        let totals = [*overruns, encrypted, uninspected, used, self.unused];
        let mut recent = [0; 5];
        for ((recent, total), counter) in recent.iter_mut().zip(totals).zip(&mut self.recent) {
            *recent = counter.record(now, total);
        }
        let [overruns, encrypted, uninspected, used, unused] = recent;
        let within = format!("in the last {} minutes", RECENT_WINDOW.as_secs() / 60);
        let mut problems = Vec::new();
        if overruns > 0 {
            let text = format!("the kernel dropped {overruns} packets {within}: a queue was full");
            problems.push(Problem::new(
                "overruns",
                text,
                "raise [queue] workers, or see what else takes the processors",
            ));
        }
        if uninspected > 0 {
            let text = format!(
                "{uninspected} packets {within} were of connections that are not followed: there are max-sessions"
            );
            problems.push(Problem::new(
                "max-sessions",
                text,
                "raise [policy] max-sessions; `ftp-alg sessions` shows whose they are",
            ));
        }
        if unused * UNUSED_SHARE > used {
            let last = self.last_unused.as_deref().unwrap_or_default();
            let text =
                format!("{unused} data connections {within} did not arrive here; the last: {last}");
            let remedy = "see what drops them before this gateway: the firewall of the end that connects, a \
                          provider, or a raw or ingress rule here";
            problems.push(Problem::new("unused-pinholes", text, remedy));
        }
        if encrypted > 0 && !self.unmarked_may_pass {
            let text = format!(
                "{encrypted} sessions {within} were encrypted: what they announce cannot be read, and the firewall \
                 drops their data connections"
            );
            let remedy = "open the server's passive ports to its clients, or have them use plain FTP by [policy] \
                          auth-tls = \"refuse\"";
            problems.push(Problem::new(ENCRYPTED, text, remedy));
        }
        problems
    }
}

impl ExpiredPinhole {
    fn log_line(self) -> (IpAddr, String) {
        let Self { pinhole, kind, client, server } = self;
        let line = format!(
            "{client} -> {server}: nobody connected to the pinhole {pinhole} that {kind} opened: is the data \
             connection dropped before it reaches this gateway?"
        );
        (client.ip(), line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(health: &Health, after: Duration, status: &Status) -> Vec<String> {
        let unwritten: [&Path; 0] = [];
        let problems = health.problems(Instant::now() + after, status, &unwritten);
        problems.into_iter().map(|problem| problem.name).collect()
    }

    #[test]
    fn what_happened_is_a_problem_for_a_while() {
        let health = Health::new(Instant::now());
        let counts = Status {
            overruns: 3,
            counters: Counters {
                uninspected: 2,
                encrypted: 1,
                pinholes_used: 5,
                ..Counters::default()
            },
            ..Status::default()
        };
        assert_eq!(names(&health, Duration::ZERO, &counts), ["overruns", "max-sessions"]);
        lock(&health.state).unmarked_may_pass = false;
        assert!(names(&health, Duration::ZERO, &counts).contains(&"encrypted".to_owned()));
        assert_eq!(names(&health, RECENT_WINDOW, &counts), [""; 0]);
    }

    #[test]
    fn a_few_unused_pinholes_among_many_are_no_problem() {
        let health = Health::new(Instant::now());
        lock(&health.state).unused = 2;
        let used = |used| Status {
            counters: Counters { pinholes_used: used, ..Counters::default() },
            ..Status::default()
        };
        assert_eq!(names(&health, Duration::ZERO, &used(39)), ["unused-pinholes"]);
        assert_eq!(names(&health, Duration::ZERO, &used(40)), [""; 0]);
    }

    #[test]
    fn a_table_that_cannot_be_put_right_is_a_problem_until_it_is() {
        let health = Health::new(Instant::now());
        health.set_table(Some("it is another's".to_owned()));
        assert_eq!(names(&health, Duration::ZERO, &Status::default()), ["table"]);
        health.set_table(None);
        assert_eq!(names(&health, Duration::ZERO, &Status::default()), [""; 0]);
    }
}
