//! What the doctor looks at besides the rules: the daemon and the kernel.

use super::fast_path;
use crate::{
    config::FastPath,
    daemon::{
        confine,
        health::{self, Check, CheckStatus, HostAudit},
        snapshot::{Problem, Status},
    },
    gateway::{Backend, Expecting, Features, GatewayError, QueueStatement},
};

const DAEMON: &str = "daemon";
const KERNEL: &str = "kernel";
const HELPERS: &str = "other helpers";

/// What was found out.
pub(super) struct Checks<'a> {
    /// The daemon, if one answers and serves this network namespace, else why none does.
    pub(super) running: Result<&'a Status, &'a Problem>,
    pub(super) features: &'a Features,
    /// `queue.fast-path` of the configuration.
    pub(super) fast_path: FastPath,
    pub(super) surroundings: HostAudit<'a>,
}

impl Checks<'_> {
    /// All of it, section by section.
    pub(super) fn all(&self) -> Vec<Check> {
        let mut checks = vec![self.privileges()];
        checks.extend(self.confinement());
        if self.features.net_admin {
            checks.extend(self.kernel());
            checks.extend(self.surroundings.checks());
            checks.extend(self.helper_connections());
        }
        checks.extend(self.daemon());
        checks
    }

    fn privileges(&self) -> Check {
        let Features { net_admin, net_raw, .. } = *self.features;
        let name = "privileges";
        match (net_admin, net_raw) {
            (true, true) => Check::ok(KERNEL, name, "CAP_NET_ADMIN and CAP_NET_RAW"),
            (true, false) => Check::problem(
                KERNEL,
                name,
                "privileges",
                "CAP_NET_RAW is missing, which sends acknowledgements: run as root",
            ),
            (false, _) => Check::problem(
                KERNEL,
                name,
                "privileges",
                "CAP_NET_ADMIN is missing, without which nothing can be said: run as root",
            )
            .remedy(["sudo ftp-alg doctor".to_owned()]),
        }
    }

    /// What keeps the daemon from all but its work: of the one that runs, or as this kernel can.
    fn confinement(&self) -> Vec<Check> {
        let name = "confinement";
        let missing = match self.running {
            Ok(daemon) => daemon.unconfined.clone(),
            Err(_) => confine::landlock_missing().map(str::to_owned).into_iter().collect(),
        };
        if missing.is_empty() {
            return vec![Check::ok(KERNEL, name, "the daemon can reach its own files only")];
        }
        missing.into_iter().map(|what| Check::note(KERNEL, name, what)).collect()
    }

    fn kernel(&self) -> Vec<Check> {
        let features = self.features;
        let mut checks = vec![self.nftables(), self.queueing()];
        checks.extend(self.surroundings.parameters.queues().map(|number| self.queue(number)));
        let needed = |name: &str, there: bool, what: &str, module: &str| match there {
            true => Check::ok(KERNEL, name, what),
            false => Check::problem(KERNEL, name, "kernel", format!("no {module}, which {what}"))
                .remedy([format!("modprobe {module}")]),
        };
        checks.push(needed(
            "ctnetlink",
            features.expecting.ctnetlink,
            "tells how connections are translated",
            "nf_conntrack_netlink",
        ));
        checks.push(needed("nat", features.expecting.nat, "translates data connections", "nf_nat"));
        // Only the conntrack back end uses these, and one of the helpers is enough.
        let conntrack = self.surroundings.backend == Backend::Conntrack;
        let optional = |name: &str, there: bool, spare: bool| match there {
            true => Check::ok(KERNEL, name, "there"),
            false if conntrack && !spare => {
                Check::problem(KERNEL, name, "kernel", "the conntrack back end needs it")
            }
            false => Check::new(
                KERNEL,
                name,
                CheckStatus::Missing,
                "only the conntrack back end could use it",
            ),
        };
        checks.push(optional("expectations", features.expecting.expectations, false));
        let Expecting { cthelper, scanner_helper, .. } = features.expecting;
        checks.push(optional("nfnetlink_cthelper", cthelper, scanner_helper));
        checks.push(optional("nf_conntrack_sane", scanner_helper, cthelper));
        checks.push(self.connections());
        checks.push(self.routing());
        checks.push(self.fast_path());
        checks.extend(self.packet_marks());
        checks
    }

    fn nftables(&self) -> Check {
        let name = "nftables";
        match (&self.features.nft, &self.features.rules) {
            (Err(error), _) => Check::problem(KERNEL, name, "kernel", error.clone())
                .details(["nft loads the rules: install the package nftables".to_owned()]),
            (Ok(version), Ok(_)) => {
                Check::ok(KERNEL, name, format!("nft {version}; the rules load"))
            }
            // What is wrong with the queue is said there.
            (Ok(version), Err(GatewayError::FeatureMissing { what, .. }))
                if what == GatewayError::QUEUE_RULES =>
            {
                Check::ok(KERNEL, name, format!("nft {version}"))
            }
            (Ok(version), Err(error)) => {
                Check::problem(KERNEL, name, "kernel", format!("nft {version}: {error}"))
            }
        }
    }

    fn queueing(&self) -> Check {
        let name = "queueing";
        match &self.features.rules {
            _ if !self.features.queue => {
                Check::problem(KERNEL, name, "kernel", "the kernel has no queues (nfnetlink_queue)")
                    .remedy(["modprobe nfnetlink_queue".to_owned()])
            }
            Ok(QueueStatement::Native) => {
                Check::ok(KERNEL, name, "by the queue statement of nftables")
            }
            Ok(_) => Check::ok(
                KERNEL,
                name,
                "by the iptables target NFQUEUE (no queue statement of nftables)",
            ),
            Err(error) => Check::problem(KERNEL, name, "kernel", error.to_string())
                .remedy(["modprobe nft_queue".to_owned()]),
        }
    }

    fn queue(&self, number: u16) -> Check {
        let name = format!("queue {number}");
        let reader = self.features.readers.iter().find(|(taken, _)| *taken == number);
        match (reader, self.running) {
            (None, _) => Check::ok(KERNEL, name, "free"),
            (Some(_), Ok(status)) => {
                let says = format!("read by the running ftp-alg {}", status.version);
                Check::ok(KERNEL, name, says)
            }
            (Some(_), Err(problem)) if problem.name == health::DAEMON_HUNG => {
                Check::ok(KERNEL, name, "read by the ftp-alg that does not answer")
            }
            (Some((_, reader)), Err(_)) => {
                let says = format!("taken by another program ({reader})");
                Check::problem(KERNEL, name, "queue-taken", says).details([
                    "stop it, or set another number in [queue]; a running ftp-alg with another \
                     control socket is named with --socket"
                        .to_owned(),
                ])
            }
        }
    }

    fn connections(&self) -> Check {
        let name = "connections";
        match self.features.connections {
            Some((count, limit)) if count.saturating_mul(10) >= limit.saturating_mul(9) => {
                let says = format!("{count} of at most {limit}: new ones are dropped soon");
                Check::note(KERNEL, name, says)
                    .remedy([format!("sysctl -w net.netfilter.nf_conntrack_max={}", limit * 2)])
            }
            Some((count, limit)) => Check::ok(KERNEL, name, format!("{count} of at most {limit}")),
            None => Check::note(KERNEL, name, "conntrack does not tell how many"),
        }
    }

    fn routing(&self) -> Check {
        let says = match (self.features.neighbours.routing.v4, self.features.neighbours.routing.v6)
        {
            (true, true) => "IPv4 and IPv6 are forwarded",
            (true, false) => "IPv4 is forwarded, IPv6 is not",
            (false, true) => "IPv6 is forwarded, IPv4 is not",
            (false, false) => {
                let says = "nothing is forwarded: judged as a host with FTP servers or clients";
                return Check::note(KERNEL, "forwarding", says)
                    .details(["a gateway needs:".to_owned()])
                    .remedy(["sysctl -w net.ipv4.ip_forward=1".to_owned()]);
            }
        };
        Check::ok(KERNEL, "forwarding", says)
    }

    fn fast_path(&self) -> Check {
        let running = self.running.ok().map(|status| &status.fast_path);
        let backend = self.surroundings.backend;
        let machine = fast_path::KernelInfo::read();
        fast_path::check(KERNEL, self.fast_path, running, backend, &machine)
    }

    /// The rules that the fast path may suffer from, if it is to run.
    fn packet_marks(&self) -> Option<Check> {
        let HostAudit { parameters, firewall, backend, .. } = self.surroundings;
        let could_run = self.fast_path == FastPath::Auto && backend == Backend::Nftables;
        let changes = could_run.then(|| firewall.packet_mark_changes(parameters))?;
        fast_path::packet_marks(KERNEL, &changes, parameters)
    }

    fn helper_connections(&self) -> Option<Check> {
        let helped = self.features.helped;
        (helped > 0).then(|| {
            let says = format!(
                "control connections that have the kernel's FTP helper, until they end: {helped}"
            );
            let ends = |port| format!("conntrack -D -p tcp --orig-port-dst {port}    # ends them");
            let ports = self.surroundings.parameters.control_ports().iter();
            Check::note(HELPERS, "connections with it", says).remedy(ports.map(ends))
        })
    }

    /// What the daemon says of itself. What it says of the kernel and the rules was looked at here.
    fn daemon(&self) -> Vec<Check> {
        match self.running {
            Err(problem) => vec![Check::from_problem(DAEMON, problem)],
            Ok(status) => {
                let mut checks = health::name_checks(&status.names);
                let own =
                    status.problems.iter().filter(|problem| !health::is_audit_problem(problem));
                checks.extend(own.map(|problem| Check::from_problem(DAEMON, problem)));
                checks.extend(
                    health::version_problem(status).map(|p| Check::from_problem(DAEMON, &p)),
                );
                if checks.is_empty() {
                    let says = format!("version {} runs, and sees no problem", status.version);
                    checks.push(Check::ok(DAEMON, "ftp-alg", says));
                }
                checks
            }
        }
    }
}
