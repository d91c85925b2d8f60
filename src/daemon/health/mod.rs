//! Whether FTP works here, and what to do if it does not: one list of problems for `status`, `doctor`, the log and the
//! service manager.
//!
//! [`HostAudit`] finds what the rules of other programs do to FTP, for `doctor` and for the daemon. [`Health`] has what
//! the daemon knows about itself, and the result of its last audit.
//!
//! Invariant: the names of problems do not change, because scripts match them.

mod check;
mod host_audit;

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{Counters, Pinhole},
    ftp::AnnouncementKind,
};
use ftp_alg_firewall::{Firewall, data_path_verdicts};
use sd_notify::NotifyState;

pub use self::{
    check::{Check, CheckStatus},
    host_audit::HostAudit,
};
use super::{
    control_client::ClientError,
    notify,
    shard::lock,
    snapshot::{NameRow, Problem, Status},
};
use crate::kernel::{
    RuleParameters,
    conntrack::admitted_connections,
    operator_firewall,
    parameters::Backend,
    probe::{ConntrackAbilities, HostSettings},
    table::Table,
};

/// The problem that no daemon runs.
pub const DAEMON_ABSENT: &str = "daemon-absent";
/// The problem that no daemon runs, but its table is loaded.
pub const TABLE_WITHOUT_DAEMON: &str = "table-without-daemon";
/// The problem that a daemon does not answer.
pub const DAEMON_HUNG: &str = "daemon-hung";
/// The problem that the daemon is of another version than this program.
pub const DAEMON_VERSION: &str = "daemon-version";
/// How to select the back end `conntrack`.
pub const SELECT_CONNTRACK: &str = "set backend = \"conntrack\" in [pinhole]";
const NAMES_SECTION: &str = "names";
const NAME_PROBLEM: &str = "name";
/// The problems that [`HostAudit`] finds.
const AUDIT_PROBLEMS: [&str; 7] = [
    "control-connections",
    "data-connections",
    "acknowledgements",
    "helper",
    "flowtable",
    "queued-twice",
    "notrack",
];
/// The problem that our bits of the ct mark are in packet marks that `ip rule` compares.
const RESTORED_MARKS: &str = "restored-marks";
const ENCRYPTED: &str = "encrypted";
/// How long an event counts as a problem.
const RECENT_WINDOW: Duration = Duration::from_secs(600);
/// Unused pinholes are a problem if there are more than one for so many used ones. A few data connections always fail.
const UNUSED_SHARE: u64 = 20;
/// A single session may meet a change of routes, or a spoofed packet.
const MIN_ROUTELESS: u64 = 2;
/// How many expired pinholes are stored until the next look at conntrack.
const MAX_EXPIRED: usize = 1024;

/// The client and the server of a session.
type Ends = (SocketAddr, SocketAddr);

/// The problem of a daemon that did not answer, according to `error`. If a daemon's table is loaded, its absence is
/// certain only if the queues are `unread`.
pub fn daemon_problem(error: &ClientError, unread: bool) -> Problem {
    let text = error.to_string();
    let restart = "systemctl restart ftp-alg: sessions survive";
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
    match Table::is_loaded() {
        Ok(true) if unread => {
            let text = format!(
                "{text}; table inet ftp_alg is still loaded: connections with adjusted sequence numbers stall, and \
                 others pass unread"
            );
            let remedy = "systemctl start ftp-alg, or abandon these connections: nft delete table inet ftp_alg";
            Problem::new(TABLE_WITHOUT_DAEMON, text, remedy)
        }
        _ => Problem::new(DAEMON_ABSENT, text, "systemctl start ftp-alg"),
    }
}

/// The problem that the daemon is of another version than this program.
pub fn version_problem(status: &Status) -> Option<Problem> {
    let ours = env!("CARGO_PKG_VERSION");
    (status.version != ours).then(|| {
        let text = format!(
            "the running daemon is version {}, and this program is version {ours}",
            status.version
        );
        Problem::new(DAEMON_VERSION, text, "systemctl restart ftp-alg: sessions survive")
    })
}

/// Whether `doctor` finds `problem` itself, with more rights than the daemon has.
pub fn is_audit_problem(problem: &Problem) -> bool {
    problem.name == NAME_PROBLEM || AUDIT_PROBLEMS.contains(&problem.name.as_str())
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
            let advice = "correct the name or /etc/resolv.conf, or configure an address instead";
            let check =
                Check::problem(NAMES_SECTION, &row.name, NAME_PROBLEM, says).details([error]);
            checks.push(check.advice([advice.to_owned()]));
        }
    }
    checks
}

/// A pinhole that expired in its engine.
#[derive(Clone, Debug)]
struct ExpiredPinhole {
    pinhole: Pinhole,
    kind: AnnouncementKind,
    client: SocketAddr,
    server: SocketAddr,
}

/// The daemon's health.
#[derive(Debug)]
pub(super) struct Health {
    state: Mutex<HealthState>,
}

#[derive(Debug)]
struct HealthState {
    /// The problems that the last audit found.
    audit_problems: Vec<Problem>,
    /// Whether the firewall may let data connections pass that are not marked by ftp-alg.
    unmarked_may_pass: bool,
    /// Why the table is not loaded or not intact.
    table_error: Option<String>,
    expired: Vec<ExpiredPinhole>,
    /// How many pinholes expired without a connection.
    unused: u64,
    /// The log line of the last one.
    last_unused: Option<String>,
    /// How many sessions open nothing, because packets of an end arrive where no route to it leads.
    routeless: u64,
    /// The ends of the last one.
    last_routeless: Option<Ends>,
    recent: [RecentCount; 6],
    /// The names of the problems at the previous look.
    previous: HashSet<String>,
    /// The names of the problems that are reported, and not solved yet.
    reported: HashSet<String>,
    /// The last status text of the service manager.
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
            routeless: 0,
            last_routeless: None,
            recent: std::array::from_fn(|_| RecentCount::new(now, RECENT_WINDOW)),
            previous: HashSet::new(),
            reported: HashSet::new(),
            status: String::new(),
        };
        Self { state: Mutex::new(state) }
    }

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
            let problems = audit.checks().iter().filter_map(Check::as_problem).collect();
            (problems, audit.unmarked_may_pass())
        };
        let (mut problems, unmarked_may_pass): (Vec<Problem>, bool) = audit(firewall, None);
        if !problems.is_empty() {
            // Reads the rules again, with their texts for the messages, which takes longer.
            let offers_conntrack = parameters.backend == Backend::Nftables
                && ConntrackAbilities::read().supports_expectations();
            let other = offers_conntrack.then_some((Backend::Conntrack, SELECT_CONNTRACK));
            (problems, _) = audit(&operator_firewall::read(parameters.gateway.clone()), other);
        }
        let mut state = lock(&self.state);
        (state.audit_problems, state.unmarked_may_pass) = (problems, unmarked_may_pass);
    }

    /// Records that the table is intact, or why it is not.
    pub(super) fn set_table(&self, error: Option<String>) {
        lock(&self.state).table_error = error;
    }

    /// Records that a pinhole expired in its engine.
    pub(super) fn record_expired(&self, pinhole: Pinhole, kind: AnnouncementKind, ends: Ends) {
        let mut state = lock(&self.state);
        if state.expired.len() < MAX_EXPIRED {
            let (client, server) = ends;
            state.expired.push(ExpiredPinhole { pinhole, kind, client, server });
        }
    }

    /// Records that a session opens nothing, because packets of an end arrive where no route to it leads.
    pub(super) fn record_missing_route(&self, ends: Ends) {
        let mut state = lock(&self.state);
        state.routeless += 1;
        state.last_routeless = Some(ends);
    }

    /// How many pinholes expired without a connection.
    pub(super) fn unused_pinholes(&self) -> u64 {
        lock(&self.state).unused
    }

    /// Asks conntrack which expired pinholes had no connection. A pinhole also expires in its engine if its connection
    /// transferred nothing. Returns a line for each unused pinhole, and the ends of its session.
    pub(super) fn take_unused_pinholes(&self, parameters: &RuleParameters) -> Vec<(Ends, String)> {
        let expired = std::mem::take(&mut lock(&self.state).expired);
        if expired.is_empty() {
            return Vec::new();
        }
        let used = admitted_connections(parameters).unwrap_or_default();
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

    /// All problems of a daemon with this `status`. The journals at the paths `unwritten` cannot be written.
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
            let remedy = "`nft monitor` shows which program changes nf_tables; ftp-alg tries again by itself";
            Problem::new("table", error, remedy)
        }));
        problems.extend(unwritten.first().map(|path| {
            let more = match unwritten.len() {
                1 => String::new(),
                all => format!(" and {} more", all - 1),
            };
            let text = format!(
                "journal {}{more} cannot be written: its sessions do not survive a restart",
                path.as_ref().display()
            );
            Problem::new(
                "state",
                text,
                "make room, or make the directory writable for ftp-alg's user",
            )
        }));
        problems.extend(state.recent_problems(now, status));
        problems
    }

    /// Reports new and solved problems to the log, and the present ones to the service manager.
    pub(super) fn report_changes(&self, problems: &[Problem]) {
        let mut state = lock(&self.state);
        let names: HashSet<String> = problems.iter().map(|problem| problem.name.clone()).collect();
        for problem in problems {
            let Problem { name, text, remedy } = problem;
            // Other problems are reported if they last until the next look: at the start names are not looked up yet,
            // and a journal may be written again a moment later.
            let is_lasting =
                is_audit_problem(problem) && name != NAME_PROBLEM || state.previous.contains(name);
            if is_lasting && state.reported.insert(name.clone()) {
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
    /// The problems of the last minutes.
    fn recent_problems(&mut self, now: Instant, status: &Status) -> Vec<Problem> {
        let Status { overruns, counters, .. } = status;
        let Counters { encrypted, uninspected, pinholes_used: used, .. } = *counters;
        let totals = [*overruns, encrypted, uninspected, used, self.unused, self.routeless];
        let mut recent = [0; 6];
        for ((recent, total), counter) in recent.iter_mut().zip(totals).zip(&mut self.recent) {
            *recent = counter.record(now, total);
        }
        let [overruns, encrypted, uninspected, used, unused, routeless] = recent;
        let within = format!("in the last {} minutes", RECENT_WINDOW.as_secs() / 60);
        let mut problems = Vec::new();
        if overruns > 0 {
            let text = format!(
                "a queue was full: the kernel dropped {overruns} packets {within}, and their senders retransmit them"
            );
            problems.push(Problem::new(
                "overruns",
                text,
                "raise [queue] workers, or see what else uses the processors",
            ));
        }
        if uninspected > 0 {
            let text = format!(
                "max-sessions is reached: {uninspected} packets {within} belonged to connections that are not \
                 inspected, and for which no pinhole is opened"
            );
            problems.push(Problem::new(
                "max-sessions",
                text,
                "raise [policy] max-sessions; `ftp-alg sessions` shows whose they are",
            ));
        }
        if unused * UNUSED_SHARE > used {
            let last = self.last_unused.as_deref().unwrap_or_default();
            let text = format!(
                "{unused} announced data connections {within} did not arrive here in time; the last: {last}"
            );
            let remedy = "if transfers fail, find what drops them before this gateway: the firewall of the end that \
                          connects, a provider, or a raw or ingress rule here; if clients are only late, raise \
                          [pinhole] timeout";
            problems.push(Problem::new("unused-pinholes", text, remedy));
        }
        if let Some((client, server)) = self.last_routeless.filter(|_| routeless >= MIN_ROUTELESS) {
            let text = format!(
                "{routeless} sessions {within} open nothing, because the packets of an end arrive on an interface to \
                 which no route to that end leads; the last: {client} -> {server}"
            );
            let remedy = "give that end a route by that interface with a higher metric, for example a second default \
                          route: ip route add default via ROUTER dev INTERFACE metric 500";
            problems.push(Problem::new("no-route", text, remedy));
        }
        if encrypted > 0 && !self.unmarked_may_pass {
            let text = format!(
                "{encrypted} sessions {within} were encrypted: ftp-alg cannot read their announcements, and the \
                 firewall drops their data connections"
            );
            let remedy = "open the server's passive ports to its clients, or make clients use plain FTP with \
                          [policy] auth-tls = \"refuse\"";
            problems.push(Problem::new(ENCRYPTED, text, remedy));
        }
        problems
    }
}

/// A count of the events in the present and the previous half of a window.
#[derive(Debug)]
struct RecentCount {
    window: Duration,
    total: u64,
    this_half: u64,
    previous_half: u64,
    half_began: Instant,
}

impl RecentCount {
    fn new(now: Instant, window: Duration) -> Self {
        Self { window, total: 0, this_half: 0, previous_half: 0, half_began: now }
    }

    /// Records that there were `total` events since the start. Returns how many of them are recent.
    fn record(&mut self, now: Instant, total: u64) -> u64 {
        let age = now.saturating_duration_since(self.half_began);
        if age >= self.window / 2 {
            self.previous_half = if age < self.window { self.this_half } else { 0 };
            (self.this_half, self.half_began) = (0, now);
        }
        self.this_half += total.saturating_sub(self.total);
        self.total = total;
        self.this_half + self.previous_half
    }
}

impl ExpiredPinhole {
    fn log_line(self) -> (Ends, String) {
        let Self { pinhole, kind, client, server } = self;
        let line = format!(
            "{client} -> {server}: pinhole expired unused: {pinhole}, opened for {kind}: the end that connects came late \
             or not at all, or its data connection was dropped before this gateway"
        );
        ((client, server), line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_events_are_not_counted() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let mut recent = RecentCount::new(start, Duration::from_secs(600));
        assert_eq!(recent.record(at(0), 3), 3);
        assert_eq!(recent.record(at(4), 5), 5);
        assert_eq!(recent.record(at(5), 6), 6, "another half begins");
        assert_eq!(recent.record(at(9), 6), 6);
        assert_eq!(recent.record(at(10), 6), 1);
        assert_eq!(recent.record(at(15), 6), 0);
        assert_eq!(recent.record(at(16), 9), 3);
        assert_eq!(recent.record(at(60), 9), 0);
    }

    fn names(health: &Health, after: Duration, status: &Status) -> Vec<String> {
        let unwritten: [&Path; 0] = [];
        let problems = health.problems(Instant::now() + after, status, &unwritten);
        problems.into_iter().map(|problem| problem.name).collect()
    }

    #[test]
    fn an_event_is_a_problem_for_ten_minutes() {
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
    fn several_sessions_without_a_route_are_a_problem() {
        let health = Health::new(Instant::now());
        let ends = ("192.0.2.1:40000".parse().unwrap(), "198.51.100.1:21".parse().unwrap());
        let status = Status::default();
        health.record_missing_route(ends);
        assert_eq!(names(&health, Duration::ZERO, &status), [""; 0]);
        health.record_missing_route(ends);
        assert_eq!(names(&health, Duration::ZERO, &status), ["no-route"]);
        assert_eq!(names(&health, RECENT_WINDOW, &status), [""; 0]);
    }

    #[test]
    fn a_table_that_is_not_intact_is_a_problem_until_it_is() {
        let health = Health::new(Instant::now());
        health.set_table(Some("it is another's".to_owned()));
        assert_eq!(names(&health, Duration::ZERO, &Status::default()), ["table"]);
        health.set_table(None);
        assert_eq!(names(&health, Duration::ZERO, &Status::default()), [""; 0]);
    }
}
