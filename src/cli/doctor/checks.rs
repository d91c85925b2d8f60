//! What the doctor looks at, and what is to be done about it.

use super::{Check, Mark};
use crate::{
    daemon::{confine, snapshot::Status},
    gateway::{
        Backend, Expecting, Features, GatewayError, Outlook, QueueStatement, RuleParameters,
        firewall::{ConcernKind, Firewall, Hook, Ip, Judgement, Sign},
    },
};

const KERNEL: &str = "kernel";
const HELPERS: &str = "other helpers";
const NAMES: &str = "names";
const FIREWALL: &str = "firewall";
const UNFILTERED: &str = "nothing is filtered";

/// What was found out.
pub(super) struct Checks<'a> {
    pub(super) parameters: &'a RuleParameters,
    /// The daemon, if one answers.
    pub(super) running: Option<&'a Status>,
    pub(super) features: &'a Features,
    pub(super) firewall: &'a Firewall,
    pub(super) outlooks: &'a [Outlook],
    /// What will hold the pinholes.
    pub(super) backend: Backend,
    /// What would, after a restart of the daemon that runs, if that is another.
    pub(super) restart: Option<Backend>,
}

/// By what a firewall tells the data connections of a back end.
fn sign(backend: Backend) -> Sign {
    match backend {
        Backend::Conntrack => Sign::Related,
        Backend::Nftables => Sign::Mark,
    }
}

impl Check {
    fn new(
        section: &'static str,
        name: impl Into<String>,
        mark: Mark,
        says: impl Into<String>,
    ) -> Self {
        let (details, remedy, advice) = (Vec::new(), Vec::new(), Vec::new());
        Self { section, name: name.into(), mark, says: says.into(), details, remedy, advice }
    }

    fn details(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        add(&mut self.details, lines);
        self
    }

    fn remedy(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        add(&mut self.remedy, lines);
        self
    }

    fn advice(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        add(&mut self.advice, lines);
        self
    }
}

/// Adds the lines that are not there yet.
fn add(to: &mut Vec<String>, lines: impl IntoIterator<Item = String>) {
    for line in lines {
        if !to.contains(&line) {
            to.push(line);
        }
    }
}

impl Checks<'_> {
    /// All of it, section by section.
    pub(super) fn all(&self) -> Vec<Check> {
        let mut checks = vec![self.privileges()];
        checks.extend(self.confinement());
        if self.features.net_admin {
            checks.extend(self.kernel());
            checks.extend(self.helpers());
            checks.extend(self.names());
            checks.extend(self.firewall());
        }
        checks
    }

    fn privileges(&self) -> Check {
        let Features { net_admin, net_raw, .. } = *self.features;
        let name = "privileges";
        match (net_admin, net_raw) {
            (true, true) => Check::new(KERNEL, name, Mark::Ok, "CAP_NET_ADMIN and CAP_NET_RAW"),
            (true, false) => Check::new(
                KERNEL,
                name,
                Mark::Problem,
                "CAP_NET_RAW is missing, which sends acknowledgements: run as root",
            ),
            (false, _) => Check::new(
                KERNEL,
                name,
                Mark::Problem,
                "CAP_NET_ADMIN is missing, without which nothing can be said: run as root",
            )
            .remedy(["sudo ftp-alg doctor".to_owned()]),
        }
    }

    /// What keeps the daemon from all but its work: of the one that runs, or as this kernel can.
    fn confinement(&self) -> Vec<Check> {
        let name = "confinement";
        let missing = match self.running {
            Some(daemon) => daemon.unconfined.clone(),
            None => confine::landlock_lacking().map(str::to_owned).into_iter().collect(),
        };
        if missing.is_empty() {
            return vec![Check::new(
                KERNEL,
                name,
                Mark::Ok,
                "the daemon can reach its own files only",
            )];
        }
        missing.into_iter().map(|what| Check::new(KERNEL, name, Mark::Note, what)).collect()
    }

    fn kernel(&self) -> Vec<Check> {
        let features = self.features;
        let mut checks = vec![self.nftables(), self.queueing()];
        checks.extend(self.parameters.queues().map(|number| self.queue(number)));
        let needed = |name: &str, there: bool, what: &str, module: &str| match there {
            true => Check::new(KERNEL, name, Mark::Ok, what),
            false => Check::new(KERNEL, name, Mark::Problem, format!("no {module}, which {what}"))
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
        let conntrack = self.backend == Backend::Conntrack;
        let optional = |name: &str, there: bool, spare: bool| match there {
            true => Check::new(KERNEL, name, Mark::Ok, "there"),
            false if conntrack && !spare => {
                Check::new(KERNEL, name, Mark::Problem, "the conntrack back end needs it")
            }
            false => {
                Check::new(KERNEL, name, Mark::Missing, "only the conntrack back end could use it")
            }
        };
        checks.push(optional("expectations", features.expecting.expectations, false));
        let Expecting { cthelper, scanner_helper, .. } = features.expecting;
        checks.push(optional("nfnetlink_cthelper", cthelper, scanner_helper));
        checks.push(optional("nf_conntrack_sane", scanner_helper, cthelper));
        if self.parameters.is_calm() && features.rules.is_ok() {
            checks.push(match features.logs {
                true => {
                    Check::new(KERNEL, "nfnetlink_log", Mark::Ok, "harmless packets pass at once")
                }
                false => {
                    let says =
                        "harmless packets wait, too: a passive transfer has five hops, not one";
                    Check::new(KERNEL, "nfnetlink_log", Mark::Missing, says)
                        .remedy(["modprobe -a nft_log nfnetlink_log".to_owned()])
                }
            });
        }
        checks.push(self.connections());
        checks.push(self.routing());
        checks
    }

    fn nftables(&self) -> Check {
        let name = "nftables";
        match (&self.features.nft, &self.features.rules) {
            (Err(error), _) => Check::new(KERNEL, name, Mark::Problem, error.clone())
                .details(["nft loads the rules: install the package nftables".to_owned()]),
            (Ok(version), Ok(_)) => {
                Check::new(KERNEL, name, Mark::Ok, format!("nft {version}; the rules load"))
            }
            // What is wrong with the queue is said there.
            (Ok(version), Err(GatewayError::FeatureMissing { what, .. }))
                if what == GatewayError::QUEUE_RULES =>
            {
                Check::new(KERNEL, name, Mark::Ok, format!("nft {version}"))
            }
            (Ok(version), Err(error)) => {
                Check::new(KERNEL, name, Mark::Problem, format!("nft {version}: {error}"))
            }
        }
    }

    fn queueing(&self) -> Check {
        let name = "queueing";
        match &self.features.rules {
            _ if !self.features.queue => Check::new(
                KERNEL,
                name,
                Mark::Problem,
                "the kernel has no queues (nfnetlink_queue)",
            )
            .remedy(["modprobe nfnetlink_queue".to_owned()]),
            Ok(QueueStatement::Native) => {
                Check::new(KERNEL, name, Mark::Ok, "by the queue statement of nftables")
            }
            Ok(_) => Check::new(
                KERNEL,
                name,
                Mark::Ok,
                "by the iptables target NFQUEUE (no queue statement of nftables)",
            ),
            Err(error) => Check::new(KERNEL, name, Mark::Problem, error.to_string())
                .remedy(["modprobe nft_queue".to_owned()]),
        }
    }

    fn queue(&self, number: u16) -> Check {
        let name = format!("queue {number}");
        let reader = self.features.readers.iter().find(|(taken, _)| *taken == number);
        match (reader, self.running) {
            (None, None) => Check::new(KERNEL, name, Mark::Ok, "free"),
            (None, Some(_)) => Check::new(
                KERNEL,
                name,
                Mark::Note,
                "free, although ftp-alg runs: with another configuration, or in another namespace",
            ),
            (Some(_), Some(status)) => {
                let says = format!("read by the running ftp-alg {}", status.version);
                Check::new(KERNEL, name, Mark::Ok, says)
            }
            (Some((_, reader)), None) => {
                let says = format!("taken by another program ({reader})");
                Check::new(KERNEL, name, Mark::Problem, says).details([
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
                Check::new(KERNEL, name, Mark::Note, says)
                    .remedy([format!("sysctl -w net.netfilter.nf_conntrack_max={}", limit * 2)])
            }
            Some((count, limit)) => {
                Check::new(KERNEL, name, Mark::Ok, format!("{count} of at most {limit}"))
            }
            None => Check::new(KERNEL, name, Mark::Note, "conntrack does not tell how many"),
        }
    }

    fn routing(&self) -> Check {
        let says = match (self.features.routing.v4, self.features.routing.v6) {
            (true, true) => "IPv4 and IPv6 are forwarded",
            (true, false) => "IPv4 is forwarded, IPv6 is not",
            (false, true) => "IPv6 is forwarded, IPv4 is not",
            (false, false) => {
                let says = "nothing is forwarded: judged as a host with FTP servers or clients";
                return Check::new(KERNEL, "forwarding", Mark::Note, says)
                    .details(["a gateway needs:".to_owned()])
                    .remedy(["sysctl -w net.ipv4.ip_forward=1".to_owned()]);
            }
        };
        Check::new(KERNEL, "forwarding", Mark::Ok, says)
    }

    fn helpers(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        if self.features.automatic_helpers {
            let says = "nf_conntrack_helper is on: the kernel's FTP helper takes every connection \
                        to port 21";
            checks.push(
                Check::new(HELPERS, "sysctl", Mark::Problem, says)
                    .remedy(["sysctl -w net.netfilter.nf_conntrack_helper=0".to_owned()]),
            );
        }
        let ports = self.parameters.control_ports().iter().map(u16::to_string);
        let ports = ports.collect::<Vec<_>>().join(", ");
        for concern in self.firewall.concerns(self.parameters) {
            let of_rule = |name, mark, says: &str| {
                Check::new(HELPERS, name, mark, format!("{} {says}", concern.chain))
                    .details([format!("`{}`", concern.rule)])
            };
            checks.push(match concern.kind {
                ConcernKind::Helper => {
                    let firewalld = concern.chain.starts_with("inet firewalld ").then(|| {
                        "firewalld adds it again with its service ftp: allow the port instead, by \
                         firewall-cmd --permanent --remove-service=ftp --add-port=21/tcp"
                            .to_owned()
                    });
                    of_rule("rule", Mark::Problem, "assigns the kernel's FTP helper")
                        .remedy(concern.remedy.clone())
                        .advice(firewalld)
                }
                // A helper keeps control connections away from there: our own, and whichever one the
                // conntrack back end takes.
                ConcernKind::Offload
                    if self.features.expecting.cthelper || self.backend == Backend::Conntrack =>
                {
                    continue;
                }
                ConcernKind::Offload => {
                    let says = "hands connections over before ftp-alg reads them";
                    of_rule("flowtable", Mark::Problem, says).advice([format!(
                        "where it takes control connections, let it begin with `tcp dport != \
                         {{ {ports} }} tcp sport != {{ {ports} }}`; or load the module \
                         nfnetlink_cthelper",
                    )])
                }
                // Where they are there first, `run` leaves it to them.
                ConcernKind::Queueing if !self.features.table_queues => continue,
                ConcernKind::Queueing => {
                    let says =
                        "queues control packets a second time: ftp-alg run queues them itself";
                    of_rule("rule", Mark::Problem, says).remedy(concern.remedy.clone())
                }
                ConcernKind::Untracked => {
                    let says = "takes control connections out of connection tracking";
                    of_rule("notrack", Mark::Problem, says).remedy(concern.remedy.clone())
                }
                ConcernKind::CtMark { .. } => {
                    let mask = self.parameters.mask();
                    let says = format!("changes the bits of the ct mark that are ours ({mask:#010x})");
                    of_rule("ct mark", Mark::Note, &says).details([
                        "where it does so for FTP connections: restrict it to other bits, or choose \
                         others in [pinhole] mark and mark-mask"
                            .to_owned(),
                    ])
                }
            });
        }
        if self.features.helped > 0 {
            let says = format!(
                "control connections that have the kernel's FTP helper, until they end: {}",
                self.features.helped
            );
            checks.push(Check::new(HELPERS, "connections with it", Mark::Note, says).remedy(
                self.parameters.control_ports().iter().map(|port| {
                    format!("conntrack -D -p tcp --orig-port-dst {port}    # ends them")
                }),
            ));
        }
        if checks.is_empty() {
            let says = "nobody else's helper takes FTP connections";
            checks.push(Check::new(HELPERS, "none", Mark::Ok, says));
        }
        checks
    }

    /// The external addresses that the running daemon looks up, where something is wrong.
    fn names(&self) -> Vec<Check> {
        let rows = self.running.map_or(&[][..], |status| &status.names);
        let mut checks: Vec<Check> = Vec::new();
        for row in rows {
            let Some(error) = &row.error else { continue };
            let error = format!("{}: {error}", row.family);
            if let Some(address) = row.address {
                let says = format!("{address} stays in use; {error}");
                checks.push(Check::new(NAMES, &row.name, Mark::Note, says));
            } else if let Some(known) = checks.iter_mut().find(|check| check.name == row.name) {
                known.details.push(error);
            } else if rows.iter().all(|one| one.name != row.name || one.address.is_none()) {
                let says = "not resolved yet: announcements that need its address are refused";
                let advice = "put the name or /etc/resolv.conf right, or give an address instead";
                let check = Check::new(NAMES, &row.name, Mark::Problem, says).details([error]);
                checks.push(check.advice([advice.to_owned()]));
            }
        }
        checks
    }

    fn firewall(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        for what in self.firewall.unread() {
            let says = format!("what follows is without it: {what}");
            checks.push(Check::new(FIREWALL, "not readable", Mark::Note, says));
        }
        for hook in Hook::ALL {
            checks.extend(self.hook(hook.as_str(), hook, sign(self.backend)));
            checks.extend(self.hook("our own packets", hook, Sign::Injected));
        }
        checks
    }

    /// One check for both versions of IP if they fare alike, else one for each.
    fn hook(&self, name: &str, hook: Hook, sign: Sign) -> Vec<Check> {
        let mut checks: Vec<Check> = Vec::new();
        for outlook in self.outlooks.iter().filter(|outlook| outlook.hook == hook) {
            let Some(judgement) = outlook.of(sign) else { continue };
            let mut check = self.judged(outlook, judgement, sign);
            let ip = outlook.ip.to_string();
            check.name = format!("{name} {ip}");
            match checks.pop() {
                Some(first) if alike(&first, &check) => {
                    // That nothing is filtered for one of them is of less interest.
                    let says = match first.says == UNFILTERED {
                        true => check.says,
                        false => first.says.clone(),
                    };
                    let both = Check { name: name.to_owned(), says, ..first };
                    checks.push(
                        both.details(check.details).remedy(check.remedy).advice(check.advice),
                    );
                }
                first => checks.extend(first.into_iter().chain([check])),
            }
        }
        checks
    }

    /// That a restart does it too.
    fn restart_advice(&self, outlook: &Outlook, dropped: Sign) -> Option<String> {
        let other = self.restart.filter(|_| dropped != Sign::Injected)?;
        outlook.of(sign(other))?.passes().then(|| {
            let name = other.as_str();
            format!("or restart ftp-alg: it then takes the back end {name}, which passes here")
        })
    }

    fn judged(&self, outlook: &Outlook, judgement: &Judgement, sign: Sign) -> Check {
        let what = match sign {
            Sign::Injected => "acknowledgements of ftp-alg",
            Sign::Mark => "admitted data connections",
            Sign::Related => "expected data connections",
        };
        let exceptions = |passes: bool, verb: &str| {
            judgement
                .chains
                .iter()
                .filter(move |chain| chain.passes == passes)
                .flat_map(|chain| &chain.except)
                .map(|rule| format!("but {rule} {verb} some"))
                .collect::<Vec<_>>()
        };
        if judgement.passes() {
            let deciding = judgement.chains.iter().find_map(|chain| chain.by.rule.as_ref());
            let says = match (judgement.chains.as_slice(), deciding) {
                ([], _) => UNFILTERED.to_owned(),
                (_, Some(rule)) => format!("{what} pass, by `{rule}`"),
                (_, None) => format!("{what} pass: nothing drops them"),
            };
            return Check::new(FIREWALL, "", Mark::Ok, says).details(exceptions(true, "drops"));
        }
        let matters = match (sign, outlook.hook) {
            // Sent wherever the session is.
            (Sign::Injected, _) => outlook.ip == Ip::V4 || self.features.routing.has_v6,
            _ => outlook.matters,
        };
        let stops: Vec<String> = judgement.stops().map(ToString::to_string).collect();
        let mut says = format!("{what} are dropped by {}", stops.join(" and "));
        if !matters {
            says += match outlook.hook {
                Hook::Forward => "; of no matter while nothing is forwarded",
                _ => "; of no matter unless an FTP server or client runs here",
            };
        }
        let mark = if matters { Mark::Problem } else { Mark::Note };
        let advice = judgement.stops().filter_map(|stop| {
            Some(stop.place.manager?.advice(&stop.place, sign, self.parameters))
        });
        Check::new(FIREWALL, "", mark, says)
            .details(exceptions(false, "accepts"))
            .remedy(Firewall::remedies(judgement, sign, self.parameters))
            .advice(advice)
            .advice(self.restart_advice(outlook, sign).filter(|_| matters))
    }
}

/// Whether both versions of IP fare alike: both well, or ill for the same reason, which may say
/// `ip6tables` where the other says `iptables`.
fn alike(one: &Check, other: &Check) -> bool {
    let plain = |check: &Check| check.says.replace("ip6tables", "iptables");
    one.mark == other.mark && (one.mark == Mark::Ok || plain(one) == plain(other))
}
