//! The checks of `doctor` on the daemon and the kernel. The audit of the rules is in `daemon::health`.

use crate::{
    cli::setup::saved_table_checks,
    config::FastPathMode,
    daemon::{
        confine,
        counted::counted,
        fast_path_off_reason,
        health::{self, Check, CheckStatus, HostAudit, ProblemName},
        snapshot::{FastPathState, FastPathStatus, Problem, Severity, Status},
    },
    kernel::{
        NetfilterError,
        parameters::{Backend, QueueStatement},
        probe::{ConntrackAbilities, KernelFeatures},
    },
};

const KERNEL: &str = "kernel";
const DAEMON: &str = "daemon";
const HELPERS: &str = "other helpers";
const FORWARDING: &str = "forwarding";

/// Says that this machine is checked as a host.
pub(super) fn nothing_forwarded() -> Check {
    let says = "nothing is forwarded: checked as a host with FTP servers or clients";
    Check::note(KERNEL, FORWARDING, says)
        .details(["on a gateway, run:".to_owned()])
        .remedy(["ftp-alg setup --gateway --apply".to_owned()])
}

/// Whether `check` is [`nothing_forwarded`].
pub(super) fn is_of_host(check: &Check) -> bool {
    check.name == FORWARDING && check.mark == CheckStatus::Note
}

/// A feature of the kernel works, or the kernel's state is as it should be.
fn works(name: impl Into<String>, says: impl Into<String>) -> Check {
    Check::ok(KERNEL, name, says)
}

/// A feature of the kernel that FTP needs does not work.
fn broken(name: &str, says: impl Into<String>) -> Check {
    Check::problem(KERNEL, name, ProblemName::Kernel, says)
}

/// The input of all checks.
pub(super) struct Checks<'a> {
    /// The status of the daemon that serves this network namespace, or the problem that there is none.
    pub(super) running: Result<&'a Status, &'a Problem>,
    pub(super) features: &'a KernelFeatures,
    /// The configuration key `queue.fast-path`.
    pub(super) fast_path: FastPathMode,
    pub(super) surroundings: HostAudit<'a>,
}

impl Checks<'_> {
    /// All checks, section by section.
    pub(super) fn all(&self) -> Vec<Check> {
        let mut checks = vec![self.privileges()];
        checks.extend(self.confinement());
        if self.features.net_admin {
            checks.extend(self.kernel());
            checks.extend(self.surroundings.checks());
            checks.extend(self.helper_connections());
            checks.extend(saved_table_checks());
        }
        checks.extend(self.daemon());
        checks
    }

    fn privileges(&self) -> Check {
        let name = "privileges";
        let missing = |says: &str| Check::problem(KERNEL, name, ProblemName::Privileges, says);
        match (self.features.net_admin, self.features.net_raw) {
            (true, true) => works(name, "CAP_NET_ADMIN and CAP_NET_RAW"),
            (true, false) => missing(
                "CAP_NET_RAW is missing, so ftp-alg cannot send acknowledgements: run as root",
            ),
            (false, _) => {
                missing("CAP_NET_ADMIN is missing, so doctor cannot check the kernel: run as root")
                    .remedy(["sudo ftp-alg doctor".to_owned()])
            }
        }
    }

    /// The confinement of the running daemon, or the confinement that this kernel allows.
    fn confinement(&self) -> Vec<Check> {
        let name = "confinement";
        let missing = match self.running {
            Ok(daemon) => daemon.unconfined.clone(),
            Err(_) => confine::landlock_missing().map(str::to_owned).into_iter().collect(),
        };
        if missing.is_empty() {
            return vec![works(name, "the daemon can access only its own files")];
        }
        missing.into_iter().map(|what| Check::note(KERNEL, name, what)).collect()
    }

    fn kernel(&self) -> Vec<Check> {
        let ConntrackAbilities { ctnetlink, nat, expectations, cthelper, scanner_helper } =
            self.features.conntrack;
        let mut checks = vec![self.nftables(), self.queueing()];
        checks.extend(self.surroundings.parameters.queues().map(|number| self.queue(number)));
        let needed = |name: &str, there: bool, what: &str, module: &str| match there {
            true => works(name, what),
            false => broken(name, format!("{module} is missing: it {what}"))
                .remedy([format!("modprobe {module}")]),
        };
        let shows = "shows how connections are translated";
        checks.push(needed("ctnetlink", ctnetlink, shows, "nf_conntrack_netlink"));
        checks.push(needed("nat", nat, "translates data connections", "nf_nat"));
        // Only the conntrack back end uses these features. It needs only one of the two helpers.
        let conntrack = self.surroundings.backend == Backend::Conntrack;
        let unused = "only the conntrack back end uses it";
        let optional = |name: &str, there: bool, spare: bool| match there {
            true => works(name, "available"),
            false if conntrack && !spare => {
                broken(name, "not available: the conntrack back end needs it")
            }
            false => Check::new(KERNEL, name, CheckStatus::Missing, unused),
        };
        checks.push(optional("expectations", expectations, false));
        checks.push(optional("nfnetlink_cthelper", cthelper, scanner_helper));
        checks.push(optional("nf_conntrack_sane", scanner_helper, cthelper));
        checks.extend([self.connections(), self.accounting(), self.routing()]);
        checks.extend(self.fast_path());
        checks
    }

    fn nftables(&self) -> Check {
        let name = "nftables";
        match (&self.features.nft, &self.features.rules) {
            (Err(error), _) => broken(name, error.clone()).details([
                "install the package nftables: ftp-alg loads its rules with nft".to_owned(),
            ]),
            (Ok(version), Ok(_)) => works(name, format!("nft {version}; the rules load")),
            // The check `queueing` reports this error.
            (Ok(version), Err(NetfilterError::FeatureMissing { what, .. }))
                if what == NetfilterError::QUEUE_RULES =>
            {
                works(name, format!("nft {version}"))
            }
            (Ok(version), Err(error)) => broken(name, format!("nft {version}: {error}")),
        }
    }

    fn queueing(&self) -> Check {
        let name = "queueing";
        match &self.features.rules {
            _ if !self.features.queue => {
                broken(name, "nfnetlink_queue is missing: no packet can be queued")
                    .remedy(["modprobe nfnetlink_queue".to_owned()])
            }
            Ok(QueueStatement::Native) => works(name, "with the queue statement of nftables"),
            Ok(_) => works(
                name,
                "with the iptables target NFQUEUE (nftables has no queue statement here)",
            ),
            Err(error) => broken(name, error.to_string()).remedy(["modprobe nft_queue".to_owned()]),
        }
    }

    fn queue(&self, number: u16) -> Check {
        let name = format!("queue {number}");
        let reader = self.features.readers.iter().find(|(taken, _)| *taken == number);
        match (reader, self.running) {
            (None, _) => works(name, "free"),
            (Some(_), Ok(status)) => {
                works(name, format!("read by the running ftp-alg {}", status.version))
            }
            (Some(_), Err(problem))
                if ProblemName::DaemonHung.is_of(problem)
                    || ProblemName::FileDescriptors.is_of(problem) =>
            {
                works(name, "read by a running ftp-alg that does not answer")
            }
            (Some(_), Err(problem)) if ProblemName::OtherSocket.is_of(problem) => {
                works(name, "read by an ftp-alg with another control socket")
            }
            (Some((_, reader)), Err(_)) => {
                let says = format!("taken by another program ({reader})");
                let problem = ProblemName::QueueTaken;
                Check::problem(KERNEL, name, problem, says).details([
                    problem.remedy(),
                    "if it is an ftp-alg with another control socket, use --socket".to_owned(),
                ])
            }
        }
    }

    fn connections(&self) -> Check {
        let name = "connections";
        match self.features.connections {
            Some((count, limit)) if count.saturating_mul(10) >= limit.saturating_mul(9) => {
                let says = format!(
                    "{count} of at most {limit}: at the limit, new connections are dropped"
                );
                Check::note(KERNEL, name, says)
                    .remedy([format!("sysctl -w net.netfilter.nf_conntrack_max={}", limit * 2)])
            }
            Some((count, limit)) => works(name, format!("{count} of at most {limit}")),
            None => {
                let says = "unknown: the kernel does not show the count of conntrack";
                Check::note(KERNEL, name, says)
            }
        }
    }

    fn accounting(&self) -> Check {
        let name = "accounting";
        match self.features.counts_bytes {
            Some(true) => works(name, "conntrack counts the bytes of running transfers"),
            _ => Check::note(KERNEL, name, "running transfers have no bytes and no rate")
                .details(["to have conntrack count those of new connections:".to_owned()])
                .remedy(["sysctl -w net.netfilter.nf_conntrack_acct=1".to_owned()]),
        }
    }

    fn routing(&self) -> Check {
        let says = match (self.features.host.routing.v4, self.features.host.routing.v6) {
            (true, true) => "IPv4 and IPv6 are forwarded",
            (true, false) => "IPv4 is forwarded, IPv6 is not",
            (false, true) => "IPv6 is forwarded, IPv4 is not",
            (false, false) => return nothing_forwarded(),
        };
        works(FORWARDING, says)
    }

    /// Whether the fast path runs, and the rules that keep it off. What the kernel lacks for it, only a daemon finds out.
    fn fast_path(&self) -> Vec<Check> {
        let name = "fast path";
        let off = fast_path_off_reason(self.fast_path);
        let running = self.running.ok().map(|status| &status.fast_path);
        let mut checks = vec![match (running, off) {
            (Some(status), _) if status.state == FastPathState::On => {
                let connections = counted(status.connections, "connection");
                let says = format!("on: {}; {connections}", status.attached_to());
                works(name, says).details(status.inline_at())
            }
            (_, Some(why @ FastPathStatus::OFF_BY_CONFIGURATION)) => {
                works(name, format!("off: {why}"))
            }
            (Some(status), _) if status.why == FastPathStatus::OFF_BY_CONFIGURATION => {
                let says = "off: the running daemon has another configuration: restart it";
                Check::note(KERNEL, name, says)
            }
            (Some(FastPathStatus { why, .. }), _) => {
                Check::note(KERNEL, name, format!("off: {why}"))
            }
            (None, Some(why)) => Check::note(KERNEL, name, format!("off: {why}")),
            (None, None) => works(name, "the daemon loads its program at the start"),
        }];
        let conflicts = self.surroundings.firewall.mark_conflicts();
        if off.is_none() && !conflicts.is_empty() {
            let says = "the fast path stays off: rules overwrite or compare its marks";
            checks.push(Check::note(KERNEL, "marks", says).details(conflicts));
        }
        checks
    }

    fn helper_connections(&self) -> Option<Check> {
        let helped = self.features.helped_connections;
        (helped > 0).then(|| {
            let says = format!(
                "control connections with the kernel's FTP helper: {helped}; each has it until it ends"
            );
            let ends = |port| format!("conntrack -D -p tcp --orig-port-dst {port}    # ends them");
            let ports = self.surroundings.parameters.gateway.control_ports.iter();
            Check::note(HELPERS, "connections with it", says).remedy(ports.map(ends))
        })
    }

    /// The problems and warnings that the daemon reports about itself. Those about the kernel and the rules are left
    /// out, because doctor checks these itself.
    fn daemon(&self) -> Vec<Check> {
        let status = match self.running {
            Ok(status) => status,
            Err(problem) => return vec![Check::from_problem(DAEMON, Severity::Problem, problem)],
        };
        let mut checks = health::name_checks(&status.names);
        let reported = status.findings.iter();
        let own = reported.filter(|(_, one)| !health::is_audit_problem(one));
        checks.extend(own.map(|(severity, one)| Check::from_problem(DAEMON, severity, one)));
        checks.extend(health::version_check(DAEMON, status));
        if checks.is_empty() {
            let version = &status.version;
            let says = format!("version {version} is running and reports nothing wrong of its own");
            checks.push(Check::ok(DAEMON, "ftp-alg", says));
        }
        checks
    }
}
