//! All problems and warnings: name, severity, who finds it, meaning, and what to do.
//!
//! Invariant: names do not change, because scripts match them.

use crate::daemon::{
    catalogue::plain,
    snapshot::{Finding, Problem, Severity},
};

/// How many distinct clients must meet a failure of traffic within ten minutes until it is a problem of the gateway. One
/// or two clients may cancel their transfers, or have a firewall of their own.
pub(super) const MIN_CLIENTS: usize = 3;
/// What to do if the file of `log.events` or `log.transfers` cannot be written.
const WRITE_FILE: &str = "make room, or let the daemon's user write there, then systemctl reload ftp-alg; if the directory was \
                          missing at its start, systemctl restart ftp-alg";

/// How the severity of a name is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SeverityRule {
    /// A problem; no FTP works if the whole gateway has it. Others concern certain connections, or it is not known
    /// which.
    StopsAll,
    /// A problem.
    Problem,
    /// A warning.
    Warning,
    /// A problem if [`MIN_CLIENTS`] clients meet it, a warning before.
    ByClients,
}

/// Who finds a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// The daemon, which the commands ask.
    Daemon,
    /// The daemon, and `doctor` itself, with more rights than the daemon has.
    DaemonAndDoctor,
    /// `status` and `doctor`.
    Commands,
    /// `doctor`.
    Doctor,
}

/// What is to be said of all problems of one name.
struct ProblemDescription {
    name: &'static str,
    severity: SeverityRule,
    found_by: FoundBy,
    /// What it means, in Markdown.
    means: &'static str,
    /// What to do, in Markdown.
    remedy: &'static str,
}

macro_rules! problems {
    ($($section:literal: $(
        $(#[doc = $means:literal])+
        #[problem($name:literal, $severity:ident, $found_by:ident, $remedy:expr)]
        $problem:ident,
    )+)+) => {
        /// Everything that can be wrong. This is all that is said of it in general: docs/health.md and ftp-alg(8) are made
        /// from it. The place that finds it adds what it found.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ProblemName {
            $($($(#[doc = $means])+ $problem,)+)+
        }

        impl ProblemName {
            /// The sections of docs/health.md, and what is in each.
            pub const SECTIONS: &[(&str, &[Self])] = &[$(($section, &[$(Self::$problem),+])),+];

            fn description(self) -> &'static ProblemDescription {
                match self {
                    $($(Self::$problem => const { &ProblemDescription {
                        name: $name,
                        severity: SeverityRule::$severity,
                        found_by: FoundBy::$found_by,
                        means: concat!($($means),+).trim_ascii_start(),
                        remedy: $remedy,
                    } },)+)+
                }
            }
        }
    };
}

problems! {
    "The daemon":
    /// no daemon answers on the control socket, or one of another network namespace does
    #[problem("daemon-absent", StopsAll, Commands, "`systemctl start ftp-alg`")]
    DaemonAbsent,
    /// no daemon answers, and its table is loaded: connections with adjusted sequence numbers stall, others pass unread
    #[problem("table-without-daemon", StopsAll, Commands, "`systemctl start ftp-alg`, or abandon these connections: `nft delete table inet ftp_alg`")]
    TableWithoutDaemon,
    /// no daemon answers on the control socket, and a daemon with another one reads the queue: FTP may work
    #[problem("other-socket", Problem, Commands, "name that socket with `--socket`")]
    OtherSocket,
    /// a daemon has the control socket, and does not answer within 5 seconds, or in words that are not understood
    #[problem("daemon-hung", Problem, Commands, "`systemctl restart ftp-alg`: sessions survive")]
    DaemonHung,
    /// the store of this machine cannot be used: the other gateway cannot continue sessions, or this one not those of the other
    #[problem("store", Problem, Daemon, "`systemctl status redis-ftp-alg`; ftp-alg sends what is missing as soon as it answers")]
    Store,
    /// the other gateway of a pair cannot take over, or continues no sessions
    #[problem("pair-alone", Warning, Doctor, "look at the link, and at redis-ftp-alg and ftp-alg on the other gateway")]
    PairAlone,
    /// keepalived, conntrackd, a sysctl or a rule of this machine ends connections when the other gateway takes over
    #[problem("pair-setup", Warning, Doctor, "compare it with what `ftp-alg setup --pair` prints")]
    PairSetup,
    /// all file descriptors of the daemon are in use: it can open no file and no socket
    #[problem("file-descriptors", Problem, Daemon, "run `prlimit` as printed: no restart is needed; then raise `LimitNOFILE` in its unit")]
    FileDescriptors,
    /// the daemon is of another version than the program that asks
    #[problem("daemon-version", Warning, Doctor, "`systemctl restart ftp-alg`: sessions survive")]
    DaemonVersion,
    /// another program reads the queue
    #[problem("queue-taken", StopsAll, Doctor, "stop that program, or set another number in [queue]")]
    QueueTaken,
    /// the kernel or `nft` lacks something
    #[problem("kernel", StopsAll, Doctor, "the text says what")]
    Kernel,
    /// the rights of the user lack something
    #[problem("privileges", Problem, Commands, "run this as root")]
    Privileges,
    /// the [broker](security.md#the-broker), the helper process that loads the table and reads the configuration, has ended
    #[problem("broker", Problem, Daemon, "it is started again within a minute; until then no table is loaded again, and no configuration is read; if it ends again, the kernel's log may say why")]
    Broker,
    /// a journal cannot be written: no session survives a restart
    #[problem("state", Warning, Daemon, "make room, or make the directory writable for ftp-alg's user")]
    State,
    /// an external address is a name that was never resolved: announcements that need it are refused
    #[problem("name", Problem, DaemonAndDoctor, "correct the name or /etc/resolv.conf, or configure an address instead")]
    Name,
    /// the file is invalid, or was removed: the old configuration stays in use, until a restart fails or has the defaults
    #[problem("config", Problem, Daemon, "`ftp-alg check` names each error; then `systemctl reload ftp-alg`")]
    Config,
    /// the file differs from the configuration in use
    #[problem("config-pending", Warning, Daemon, "reload `ftp-alg`, or restart it if the text names keys that need that")]
    ConfigPending,
    /// another program changes or replaces `table inet ftp_alg`, and the daemon cannot load it
    #[problem("table", StopsAll, Daemon, "`nft monitor` shows which program changes nf_tables; ftp-alg tries again by itself")]
    Table,

    "The firewall":
    /// the firewall drops data connections that `ftp-alg` admitted: all, or those of one mode (`active mode`,
    /// `passive mode`) between interfaces whose control connections pass. Not by an accept rule for some hosts, if one pair of
    /// interfaces passes both modes, nor by a rule that isolates inner networks from each other
    #[problem("data-connections", StopsAll, DaemonAndDoctor, "run `ftp-alg setup --apply`, or add the rule that is printed")]
    DataConnections,
    /// the firewall drops all control connections: on a gateway forwarded ones, on a host its own
    #[problem("control-connections", StopsAll, DaemonAndDoctor, "accept connections to the control ports there, from the clients that may use FTP")]
    ControlConnections,
    // An announcement in two segments waits for a retransmission then.
    /// the firewall drops packets that `ftp-alg` sends, at output. A drop at postrouting is a note of `doctor`
    #[problem("acknowledgements", Warning, DaemonAndDoctor, "add the rule for `meta mark 0x70000000` ([firewalls](firewalls.md#the-accept-rule))")]
    Acknowledgements,
    // A helper next to ours changes no verdict of the audit.
    /// the kernel's FTP helper takes control connections
    #[problem("helper", Warning, DaemonAndDoctor, "remove the rule, or the sysctl, that is printed")]
    Helper,
    /// a rule takes control connections out of connection tracking
    #[problem("notrack", Problem, DaemonAndDoctor, "leave port 21 out of that rule")]
    Notrack,
    /// a rule puts control connections into a conntrack zone that is not inspected
    #[problem("zone", Problem, Daemon, "`systemctl restart ftp-alg`; if the rule has a map or a mark, write [a rule for each zone](uplinks.md#conntrack-zones)")]
    Zone,
    /// rules that set the packet mark from the ct mark came after the start: the first packet of a data connection, or all
    /// FTP packets, leave by another uplink
    #[problem("restored-marks", Problem, Daemon, "restart `ftp-alg`, or give `ip rule` a mask ([several uplinks](uplinks.md#several-uplinks))")]
    RestoredMarks,
    /// a flowtable takes control connections past the queue
    #[problem("flowtable", Problem, DaemonAndDoctor, "leave port 21 out of it ([flowtables](firewalls.md#flowtables))")]
    Flowtable,
    /// a file of nftables has a copy of `table inet ftp_alg` ([saved rule sets](setup.md#saved-rule-sets)): nft may refuse the
    /// whole file, at a reload or at the next boot
    #[problem("saved-table", Problem, Commands, "delete this table from the file, because the daemon loads it; save your own tables only, for example with `nft list table inet filter`")]
    SavedTable,
    /// rules of `ftp-alg rules iptables` are loaded next to those of the daemon
    #[problem("queued-twice", Problem, DaemonAndDoctor, "remove them")]
    QueuedTwice,

    "Traffic of the last ten minutes":
    /// announced data connections did not arrive here in time: more than one for each 20 that did
    #[problem("unused-pinholes", ByClients, Daemon, "if transfers fail, find what drops them before this gateway: the firewall of the end that connects, a provider, or a raw or ingress rule here; if clients are only late, raise [pinhole] timeout")]
    UnusedPinholes,
    /// more than one session opened nothing, because the packets of an end arrive on an interface to which no route to it
    /// leads ([why](security.md#where-a-line-may-come-from), [any-interface](uplinks.md#asymmetric-and-one-way-links))
    #[problem("no-route", ByClients, Daemon, "give that end a route by that interface with a higher metric, for example a second default route: ip route add default via ROUTER dev INTERFACE metric 500; or, for asymmetric and one-way links, any-interface = true in a [[network]] with these connections")]
    NoRoute,
    /// three or more announcements of a server in one mode (`PASV` or `EPSV`) opened nothing, and none in this mode opened
    /// a pinhole
    #[problem("refused-announcements", Warning, Daemon, "the text has server, mode, reason and the setting that would change it")]
    RefusedAnnouncements,
    /// three or more data connections did not come about: an end did not answer, refused, or did not connect (the text says
    /// which). More than one for each 20 that did
    #[problem("no-data-connection", Warning, Daemon, "if transfers fail, look at the firewall and the NAT of the end that does not answer or connect, and of routers on the way; `ftp-alg doctor` looks at the rules here")]
    NoDataConnection,
    /// sessions were [encrypted](encrypted.md), and the firewall drops their data connections: the text has the ports that
    /// clients tried
    #[problem("encrypted", ByClients, Daemon, "add the range of passive ports of the server to the configuration, as its `passive-ports` in a [[server]] or [[network]]; then reload")]
    Encrypted,
    /// the kernel dropped packets because a queue was full
    #[problem("overruns", Warning, Daemon, "raise [queue] workers, or see what else uses the processors")]
    Overruns,
    /// the file of `log.events` cannot be written; the log has the events, at its limited rate
    #[problem("event-file", Warning, Daemon, WRITE_FILE)]
    EventFile,
    /// the file of `log.transfers` cannot be written; the log has the transfers
    #[problem("transfer-file", Warning, Daemon, WRITE_FILE)]
    TransferFile,
    /// the endpoint of `metrics.listen` could not be bound, or the file of `metrics.password-file` not be read
    #[problem("metrics", Warning, Daemon, "free the port or correct the file; then what the text says")]
    Metrics,
    /// connections were not followed, because there are `max-sessions`
    #[problem("max-sessions", Warning, Daemon, "raise [policy] max-sessions; `ftp-alg sessions` shows whose they are")]
    MaxSessions,
}

impl ProblemName {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::SECTIONS.iter().flat_map(|(_, names)| *names).copied()
    }

    /// The name, as scripts know it.
    pub fn as_str(self) -> &'static str {
        self.description().name
    }

    /// Whether `problem` has this name.
    pub fn is_of(self, problem: &Problem) -> bool {
        problem.name == self.as_str()
    }

    /// The name that scripts know as `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|one| one.as_str() == name)
    }

    /// What it means, without Markdown.
    pub fn meaning(self) -> String {
        plain(self.description().means)
    }

    /// What to do in general, as it is printed.
    pub fn remedy(self) -> String {
        let remedy = self.description().remedy;
        // A command at its start is printed as it is typed.
        if remedy.starts_with("`systemctl ") { plain(remedy) } else { remedy.to_owned() }
    }

    /// Its severity, if this many distinct `clients` meet it.
    pub fn severity(self, clients: usize) -> Severity {
        match self.description().severity {
            SeverityRule::Warning => Severity::Warning,
            SeverityRule::ByClients if clients < MIN_CLIENTS => Severity::Warning,
            _ => Severity::Problem,
        }
    }

    /// How severe it is, in words.
    pub fn severity_text(self) -> String {
        match self.description().severity {
            SeverityRule::ByClients => format!("problem from {MIN_CLIENTS} clients on"),
            _ => self.severity(0).to_string(),
        }
    }

    /// Whether no FTP works through the gateway if the whole gateway has this problem.
    pub fn stops_all(self) -> bool {
        self.description().severity == SeverityRule::StopsAll
    }

    /// Who finds it.
    pub fn found_by(self) -> FoundBy {
        self.description().found_by
    }

    /// Its row in a table of docs/health.md. The remedy is printed with each problem.
    pub fn row(self) -> String {
        let ProblemDescription { name, means, .. } = self.description();
        format!("| `{name}` | {} | {means} |\n", self.severity_text())
    }

    /// The problem or warning of this name, with what to do in general.
    pub fn problem(self, text: impl Into<String>) -> Problem {
        self.problem_with(text, self.remedy())
    }

    /// The problem or warning of this name, with what to do here.
    pub fn problem_with(self, text: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem::new(self.as_str(), text, remedy)
    }

    /// The finding that this many distinct `clients` meet it.
    pub fn of_clients(self, clients: usize, text: impl Into<String>) -> Finding {
        (self.severity(clients), self.problem(text))
    }

    /// The finding that it exists.
    pub fn finding(self, text: impl Into<String>) -> Finding {
        self.of_clients(0, text)
    }

    /// The finding that it exists, with what to do here.
    pub fn finding_with(self, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
        (self.severity(0), self.problem_with(text, remedy))
    }
}

/// Whether `doctor` finds `problem` itself, with more rights than the daemon has.
pub fn is_audit_problem(problem: &Problem) -> bool {
    let name = ProblemName::from_name(&problem.name);
    name.is_some_and(|name| name.found_by() == FoundBy::DaemonAndDoctor)
}
