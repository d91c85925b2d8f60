//! The names of problems and warnings, and how severe each is.
//!
//! Invariant: names do not change, because scripts match them. A name's severity is decided here alone.

use strum::IntoEnumIterator;

use crate::daemon::{counted::counted, snapshot::Problem};

/// How many distinct clients must meet a failure of traffic within ten minutes until it is a problem of the gateway. One
/// or two clients may cancel their transfers, or have a firewall of their own.
pub(super) const MIN_CLIENTS: usize = 3;

/// How severe something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Severity {
    /// It does not stop FTP through this gateway, or it concerns a few peers.
    Warning,
    /// The gateway cannot do its work until this is solved.
    Problem,
}

/// How the severity of a name is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SeverityRule {
    /// It has the same severity always.
    Always(Severity),
    /// A problem if [`MIN_CLIENTS`] clients meet it, a warning before.
    ByClients,
}

/// Everything that can be wrong, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumIter, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum ProblemName {
    /// No daemon runs.
    DaemonAbsent,
    /// No daemon runs, but its table is loaded.
    TableWithoutDaemon,
    /// A daemon runs, with another control socket.
    OtherSocket,
    /// A daemon does not answer in time, or in words that this program does not understand.
    DaemonHung,
    /// All file descriptors of the daemon are in use.
    FileDescriptors,
    /// The daemon is of another version than this program.
    DaemonVersion,
    QueueTaken,
    /// The kernel, or `nft`, lacks something.
    Kernel,
    Privileges,
    /// The broker has ended, and is not started again yet.
    Broker,
    /// A journal cannot be written.
    State,
    /// The name of an external address is not resolved.
    Name,
    /// The file is invalid.
    Config,
    /// The file differs from what is in use.
    ConfigPending,
    /// Our table is not loaded, or not intact.
    Table,
    DataConnections,
    ControlConnections,
    Acknowledgements,
    /// The kernel's own FTP helper takes control connections.
    Helper,
    Notrack,
    Zone,
    /// Our bits of the ct mark are in packet marks that `ip rule` compares.
    RestoredMarks,
    Flowtable,
    QueuedTwice,
    /// A file of the firewall has a copy of our table.
    SavedTable,
    UnusedPinholes,
    NoRoute,
    Encrypted,
    /// All announcements of a server are refused.
    RefusedAnnouncements,
    /// Data connections have passed here, and got no answer.
    NoDataConnection,
    Overruns,
    MaxSessions,
    /// The file of `log.events` cannot be written.
    EventFile,
    TransferFile,
    Metrics,
}

impl ProblemName {
    /// The name, as scripts know it.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether `problem` has this name.
    pub fn is_of(self, problem: &Problem) -> bool {
        problem.name == self.as_str()
    }

    /// The name that scripts know as `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::iter().find(|one| one.as_str() == name)
    }

    /// How its severity is found: the only place that decides it.
    fn severity_rule(self) -> SeverityRule {
        use SeverityRule::{Always, ByClients};
        match self {
            Self::DaemonAbsent
            | Self::TableWithoutDaemon
            | Self::OtherSocket
            | Self::DaemonHung
            | Self::FileDescriptors
            | Self::QueueTaken
            | Self::Kernel
            | Self::Privileges
            | Self::Broker
            | Self::Name
            | Self::Config
            | Self::Table
            | Self::DataConnections
            | Self::ControlConnections
            | Self::Notrack
            | Self::Zone
            | Self::RestoredMarks
            | Self::Flowtable
            | Self::QueuedTwice
            | Self::SavedTable => Always(Severity::Problem),
            // FTP works: a restart may lose sessions, a helper next to ours changes no verdict of the audit, and
            // without acknowledgements an announcement in two segments waits for a retransmission.
            Self::DaemonVersion
            | Self::ConfigPending
            | Self::State
            | Self::Helper
            | Self::Acknowledgements
            | Self::RefusedAnnouncements
            | Self::NoDataConnection
            | Self::Overruns
            | Self::MaxSessions
            | Self::EventFile
            | Self::TransferFile
            | Self::Metrics => Always(Severity::Warning),
            Self::UnusedPinholes | Self::NoRoute | Self::Encrypted => ByClients,
        }
    }

    /// Its severity, if this many distinct `clients` meet it.
    pub fn severity(self, clients: usize) -> Severity {
        match self.severity_rule() {
            SeverityRule::Always(severity) => severity,
            SeverityRule::ByClients if clients >= MIN_CLIENTS => Severity::Problem,
            SeverityRule::ByClients => Severity::Warning,
        }
    }

    /// Whether no FTP works through the gateway if the whole gateway has this problem. Others concern certain
    /// connections, or it is not known which.
    pub fn stops_all(self) -> bool {
        matches!(
            self,
            Self::DaemonAbsent
                | Self::TableWithoutDaemon
                | Self::QueueTaken
                | Self::Kernel
                | Self::Table
                | Self::DataConnections
                | Self::ControlConnections
        )
    }

    /// Whether [`HostAudit`](super::HostAudit) finds it in the rules, so that `doctor` finds it itself.
    fn is_of_audit(self) -> bool {
        matches!(
            self,
            Self::ControlConnections
                | Self::DataConnections
                | Self::Acknowledgements
                | Self::Helper
                | Self::Flowtable
                | Self::QueuedTwice
                | Self::Notrack
        )
    }

    /// The problem or warning of this name.
    pub fn problem(self, text: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem::new(self.as_str(), text, remedy)
    }
}

/// Whether `doctor` finds `problem` itself, with more rights than the daemon has.
pub fn is_audit_problem(problem: &Problem) -> bool {
    let name = ProblemName::from_name(&problem.name);
    name.is_some_and(|name| name == ProblemName::Name || name.is_of_audit())
}

/// What is wrong, by severity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

impl Findings {
    /// Adds `problem` with this severity.
    pub fn add(&mut self, severity: Severity, problem: Problem) {
        match severity {
            Severity::Problem => self.problems.push(problem),
            Severity::Warning => self.warnings.push(problem),
        }
    }

    /// Adds the problem of this name that `clients` distinct clients meet.
    pub fn add_named(
        &mut self,
        name: ProblemName,
        clients: usize,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(name.severity(clients), name.problem(text, remedy));
    }

    pub fn is_empty(&self) -> bool {
        self.problems.is_empty() && self.warnings.is_empty()
    }

    /// All, problems first.
    pub fn iter(&self) -> impl Iterator<Item = (Severity, &Problem)> {
        let problems = self.problems.iter().map(|one| (Severity::Problem, one));
        problems.chain(self.warnings.iter().map(|one| (Severity::Warning, one)))
    }

    /// How many there are, in words, as in `1 problem, 2 warnings`.
    pub fn count_text(problems: usize, warnings: usize) -> String {
        let count = |count: usize, what: &str| counted(count as u64, what);
        match (problems, warnings) {
            (0, warnings) => count(warnings, "warning"),
            (problems, 0) => count(problems, "problem"),
            (problems, warnings) => {
                format!("{}, {}", count(problems, "problem"), count(warnings, "warning"))
            }
        }
    }
}

impl FromIterator<(Severity, Problem)> for Findings {
    fn from_iter<T: IntoIterator<Item = (Severity, Problem)>>(all: T) -> Self {
        let mut findings = Self::default();
        findings.extend(all);
        findings
    }
}

impl Extend<(Severity, Problem)> for Findings {
    fn extend<T: IntoIterator<Item = (Severity, Problem)>>(&mut self, all: T) {
        all.into_iter().for_each(|(severity, problem)| self.add(severity, problem));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_traffic_are_problems_once_several_clients_meet_them() {
        for name in [ProblemName::UnusedPinholes, ProblemName::NoRoute, ProblemName::Encrypted] {
            for clients in 0..MIN_CLIENTS {
                assert_eq!(name.severity(clients), Severity::Warning, "{name:?} {clients}");
            }
            assert_eq!(name.severity(MIN_CLIENTS), Severity::Problem, "{name:?}");
        }
    }

    #[test]
    fn a_warning_never_stops_all() {
        let is_wrong = |name: &ProblemName| {
            name.stops_all() && name.severity_rule() != SeverityRule::Always(Severity::Problem)
        };
        assert_eq!(ProblemName::iter().find(is_wrong), None);
    }

    /// The rows `| name | severity |` of docs/health.md.
    #[test]
    fn the_page_has_each_name_with_its_severity() {
        let page = include_str!("../../../docs/health.md");
        let row = |line: &str| {
            let (name, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
            Some((name.to_owned(), rest.split_once(" | ")?.0.to_owned()))
        };
        let mut documented: Vec<_> = page.lines().filter_map(row).collect();
        documented.sort();
        let severity = |name: ProblemName| match name.severity_rule() {
            SeverityRule::Always(severity) => severity.to_string(),
            SeverityRule::ByClients => format!("problem from {MIN_CLIENTS} clients on"),
        };
        let all = ProblemName::iter().map(|name| (name.as_str().to_owned(), severity(name)));
        let mut all: Vec<_> = all.collect();
        all.sort();
        assert_eq!(documented, all);
    }
}
