//! What the rules of other programs do to FTP here: which other helpers take control connections, and whether control
//! and data connections pass.

use ftp_alg_firewall::{
    Acceptance, ChainLocation, ChainVerdict, ConflictKind, ControlPathVerdict, DataMode,
    DataPathVerdict, Firewall, Hook, HookVerdict, IpVersion, Links, ModeVerdict, PacketClass,
    RulesetManager,
};

use super::{
    check::{Check, CheckStatus},
    names::ProblemName,
};
use crate::kernel::{
    RuleParameters, operator_firewall::links, parameters::Backend, probe::HostSettings,
};

const HELPERS: &str = "other helpers";
const FIREWALL: &str = "firewall";
/// How many rules that drop control connections are named.
const MAX_STOPS: usize = 3;
const UNFILTERED: &str = "nothing is filtered";

/// The facts about this machine that the checks need.
#[derive(Clone, Copy)]
pub struct HostAudit<'a> {
    /// The parameters of ftp-alg's own rules.
    pub parameters: &'a RuleParameters,
    /// The rules of other programs.
    pub firewall: &'a Firewall,
    /// What these rules do to data connections.
    pub data_paths: &'a [DataPathVerdict],
    /// Other facts about this machine: routing, helpers, queue rules.
    pub host: HostSettings,
    /// The back end in use, or the one that the daemon would use.
    pub backend: Backend,
    /// Another back end that this kernel has, and how to select it.
    pub other_backend: Option<(Backend, &'static str)>,
}

impl HostAudit<'_> {
    /// All checks.
    pub fn checks(&self) -> Vec<Check> {
        let mut checks = self.helper_checks();
        let Self { data_paths, host, .. } = *self;
        let links = links();
        let paths = self.firewall.control_paths(host.routing, data_paths, &links);
        let all = paths.concat();
        let verdicts = |class| self.firewall.mode_verdicts(&all, class, &links);
        let modes = verdicts(self.backend.into());
        checks.extend(self.firewall_checks(&modes));
        checks.extend(self.mode_checks(&modes, verdicts));
        checks.extend(self.closed_ports(&all, &links));
        checks.extend(paths.into_iter().flat_map(|paths| self.control_checks(&paths, &links)));
        checks
    }

    /// The control ports to which no connection passes, if those to others do: the configuration may name one that is not in
    /// use here. `paths` are about all ports.
    fn closed_ports(&self, paths: &[ControlPathVerdict], links: &Links) -> Vec<Check> {
        let is_open = |path: &ControlPathVerdict| path.best_acceptance() != Acceptance::Dropped;
        let ports = &self.firewall.gateway.control_ports;
        if ports.len() < 2 || !paths.iter().any(is_open) {
            return Vec::new();
        }
        let check = |port: &u16| {
            let mut firewall = self.firewall.clone();
            firewall.gateway.control_ports = vec![*port];
            let paths = firewall.control_paths(self.host.routing, self.data_paths, links).concat();
            let says = "all control connections to it are dropped";
            let stops = paths.iter().flat_map(ControlPathVerdict::dropping_chains).take(MAX_STOPS);
            let check = Check::note(FIREWALL, format!("control port {port}"), says)
                .details(stops.map(|stop| format!("dropped by {stop}")));
            (!paths.iter().any(is_open)).then_some(check)
        };
        ports.iter().filter_map(check).collect()
    }

    /// Whether control connections pass, and between which interfaces. One pair of interfaces that is open is enough,
    /// because only the operator knows which pairs should be.
    fn control_checks(&self, paths: &[ControlPathVerdict], links: &Links) -> Vec<Check> {
        let is_closed = paths.iter().all(|path| path.best_acceptance() == Acceptance::Dropped);
        let check = |path: &ControlPathVerdict| {
            let says = format!("control connections: {}", path.summary());
            let missing = self.firewall.missing_interfaces(path.hook, path.ip, links);
            let check = match path.best_acceptance() {
                Acceptance::Dropped if is_closed => {
                    let problem = ProblemName::ControlConnections;
                    Check::problem(FIREWALL, "", problem, says).advice([problem.remedy()])
                }
                _ if !missing.is_empty() => {
                    let names = missing.join(" and ");
                    let missing =
                        format!("rules accept them at {names}, and no interface has that name now");
                    Check::note(FIREWALL, "", says).details([missing])
                }
                Acceptance::Dropped => Check::note(FIREWALL, "", says),
                Acceptance::Partly | Acceptance::Accepted => Check::ok(FIREWALL, "", says),
            };
            let stops = path.dropping_chains().into_iter().take(MAX_STOPS);
            (path.ip, check.details(stops.map(|stop| format!("dropped by {stop}"))))
        };
        let at_hook = |hook: &Hook| {
            let name = format!("control {hook}");
            merge_families(&name, paths.iter().filter(|path| path.hook == *hook).map(check))
        };
        Hook::FILTERS.iter().flat_map(at_hook).collect()
    }

    /// The modes of data connections that fail between interfaces whose control connections pass, although the chains
    /// let some data connections pass.
    fn mode_checks(
        &self,
        modes: &[ModeVerdict],
        verdicts: impl Fn(PacketClass) -> Vec<ModeVerdict>,
    ) -> Vec<Check> {
        let class = self.backend.into();
        let others = self.other_backend.map(|(other, how)| (other, how, verdicts(other.into())));
        // The checks of hooks report chains that drop all data connections.
        let known = |stop: &ChainVerdict| {
            self.data_paths.iter().filter(|path| path.is_used).any(|path| {
                let verdict = path.verdict_for(class);
                verdict.is_some_and(|verdict| {
                    let mut chains = verdict.dropping_chains();
                    chains.any(|chain| {
                        chain.location == stop.location
                            && path.is_problem(chain, modes)
                            && !path.is_restricted_by(chain)
                    })
                })
            })
        };
        let check = |mode| {
            let says = "the firewall drops its data connections";
            let name = format!("{mode} mode");
            // Other data connections pass these chains.
            let mut check =
                Check::problem(FIREWALL, name, ProblemName::DataConnections, says).partial_if(true);
            for (at, verdict) in modes.iter().enumerate().filter(|(_, one)| one.mode == mode) {
                let stops = verdict.dropping_chains.iter().filter(|stop| !known(stop));
                let stops: Vec<_> =
                    stops.map(|stop| stop.placed_for(class, modes, verdict.ip)).collect();
                if stops.is_empty() {
                    continue;
                }
                for stop in &stops {
                    check = check.solution(stop.accept_command(class, &self.firewall.gateway));
                }
                let other = others.as_ref().and_then(|(other, how, verdicts)| {
                    let passes = verdicts.get(at)?.dropping_chains.is_empty();
                    passes.then(|| other_backend_advice(*other, how))
                });
                check = check.advice(other);
                if check.details.len() < MAX_STOPS {
                    let [from, to] = [&verdict.from, &verdict.to]
                        .map(|end| end.as_deref().unwrap_or("this machine"));
                    let by: Vec<String> = stops.iter().map(ToString::to_string).collect();
                    let by = by.join(" and ");
                    check = check.details([format!("{from} -> {to}: dropped by {by}")]);
                }
            }
            (!check.details.is_empty()).then_some(check)
        };
        DataMode::BOTH.into_iter().filter_map(check).collect()
    }

    /// Whether data connections may pass that ftp-alg does not mark, for example those of encrypted sessions.
    pub(super) fn unmarked_may_pass(&self) -> bool {
        self.data_paths.iter().filter(|path| path.is_used).all(|path| path.unmarked.may_pass())
    }

    fn helper_checks(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        if self.host.automatic_helpers {
            let says = "nf_conntrack_helper is on: the kernel's FTP helper takes every connection \
                        to port 21";
            checks.push(
                Check::problem(HELPERS, "sysctl", ProblemName::Helper, says)
                    .remedy(["sysctl -w net.netfilter.nf_conntrack_helper=0".to_owned()]),
            );
        }
        let ports = self.parameters.gateway.control_ports.iter().map(u16::to_string);
        let ports = ports.collect::<Vec<_>>().join(", ");
        for concern in self.firewall.conflicting_rules() {
            let of_rule = |name, problem, says: &str| {
                Check::problem(HELPERS, name, problem, format!("{} {says}", concern.chain))
                    .details([format!("`{}`", concern.rule)])
            };
            checks.push(match concern.kind {
                ConflictKind::Helper => {
                    let firewalld = concern.chain.starts_with("inet firewalld ").then(|| {
                        "firewalld adds it again with its service ftp: allow the port instead, by \
                         firewall-cmd --permanent --remove-service=ftp --add-port=21/tcp"
                            .to_owned()
                    });
                    of_rule("rule", ProblemName::Helper, "assigns the kernel's FTP helper")
                        .remedy(concern.remedy.clone())
                        .advice(firewalld)
                }
                // A conntrack helper keeps a connection out of flowtables. The daemon assigns one if the kernel has
                // nfnetlink_cthelper, and always with the back end conntrack.
                ConflictKind::Offload
                    if self.host.cthelper || self.backend == Backend::Conntrack =>
                {
                    continue;
                }
                ConflictKind::Offload => {
                    let says = "offloads connections before ftp-alg reads them";
                    of_rule("flowtable", ProblemName::Flowtable, says).advice([format!(
                        "if it takes control connections, begin the rule with `tcp dport != \
                         {{ {ports} }} tcp sport != {{ {ports} }}`; or load the module \
                         nfnetlink_cthelper",
                    )])
                }
                // If such rules are loaded and the table does not queue, `run` relies on those rules.
                ConflictKind::Queueing if !self.host.table_queues => continue,
                ConflictKind::Queueing => {
                    let says =
                        "queues control packets a second time: ftp-alg run queues them itself";
                    of_rule("rule", ProblemName::QueuedTwice, says).remedy(concern.remedy.clone())
                }
                ConflictKind::Untracked => {
                    let says = "takes control connections out of connection tracking";
                    of_rule("notrack", ProblemName::Notrack, says).remedy(concern.remedy.clone())
                }
                ConflictKind::Zone(zone)
                    if zone.is_some_and(|zone| self.parameters.learned.now().zones.contains(&zone)) =>
                {
                    continue;
                }
                ConflictKind::Zone(_) => {
                    let says =
                        "puts control connections into a conntrack zone that ftp-alg does not inspect";
                    of_rule("zone", ProblemName::Zone, says)
                }
                ConflictKind::CtMark => {
                    let mask = self.parameters.mask();
                    let says = format!("changes ct mark bits that ftp-alg uses ({mask:#010x})");
                    let says = format!("{} {says}", concern.chain);
                    Check::note(HELPERS, "ct mark", says).details([
                        format!("`{}`", concern.rule),
                        "ftp-alg sets the bit of data connections again; better restrict the rule to other bits, or \
                         set other bits in [pinhole] mark and mark-mask"
                            .to_owned(),
                    ])
                }
            });
        }
        checks.extend(self.restored_marks());
        if checks.is_empty() {
            let says = "no other helper takes FTP connections";
            checks.push(Check::ok(HELPERS, "none", says));
        }
        checks
    }

    /// The rules appeared after the daemon loaded its table.
    fn restored_marks(&self) -> Option<Check> {
        let Self { parameters, firewall, .. } = *self;
        let needed = parameters.clone().with_ct_mark_use(firewall.ct_mark_use());
        let (says, advice) = if needed.clears_restored_marks()
            && !parameters.clears_restored_marks()
        {
            let says = "rules set the whole packet mark from the ct mark, and `ip rule` compares it: with the \
                            bits of ftp-alg in it, FTP packets leave by another uplink";
            (says, Some("or give `ip rule` a mask, as in `ip rule add fwmark 1/0xff`".to_owned()))
        } else if firewall.routes_by_restored_marks()
            && needed.inherits_marks_early()
            && !parameters.inherits_marks_early()
        {
            let says = "rules set the packet mark from the ct mark, and `ip rule` compares it: the first packet of a \
                            data connection has none there, and leaves by another uplink";
            (says, None)
        } else {
            return None;
        };
        let check = Check::problem(HELPERS, "restored marks", ProblemName::RestoredMarks, says);
        Some(check.remedy(["systemctl restart ftp-alg".to_owned()]).advice(advice))
    }

    fn firewall_checks(&self, modes: &[ModeVerdict]) -> Vec<Check> {
        let mut checks = Vec::new();
        for what in &self.firewall.read_errors {
            let says = format!("the following checks ignore it: {what}");
            checks.push(Check::note(FIREWALL, "not readable", says));
        }
        for table in self.firewall.unread_tables() {
            let says = format!(
                "the following checks ignore table {table}, which may drop packets of a bridge"
            );
            checks.push(Check::note(FIREWALL, "not read", says));
        }
        let data = self.backend.into();
        for hook in Hook::ALL {
            let own = if hook.is_filter() { "our own packets" } else { "own at postrouting" };
            let mut found = self.hook_checks(hook.into(), hook, data, modes);
            found.extend(self.hook_checks(own, hook, PacketClass::Injected, modes));
            // Most gateways do not filter at the other hooks.
            found.retain(|check| {
                hook.is_filter() || check.mark != CheckStatus::Ok || !check.details.is_empty()
            });
            checks.extend(found);
        }
        checks
    }

    fn hook_checks(
        &self,
        name: &str,
        hook: Hook,
        class: PacketClass,
        modes: &[ModeVerdict],
    ) -> Vec<Check> {
        let data_paths = self.data_paths.iter().filter(|path| path.hook == hook);
        let checks = data_paths.filter_map(|path| {
            Some((path.ip, self.path_check(path, path.verdict_for(class)?, class, modes)))
        });
        merge_families(name, checks)
    }

    /// The advice to use the other back end, if its data connections pass.
    fn other_backend_advice(&self, path: &DataPathVerdict, dropped: PacketClass) -> Option<String> {
        let (other, how) = self.other_backend.filter(|_| dropped != PacketClass::Injected)?;
        let passes = path.verdict_for(other.into())?.passes();
        passes.then(|| other_backend_advice(other, how))
    }

    fn path_check(
        &self,
        path: &DataPathVerdict,
        verdict: &HookVerdict,
        class: PacketClass,
        modes: &[ModeVerdict],
    ) -> Check {
        let what = class.description();
        let exceptions = |passes: bool, verb: &str| {
            verdict
                .chains
                .iter()
                .filter(move |chain| chain.passes == passes)
                .flat_map(|chain| &chain.exceptions)
                .map(|rule| format!("but {rule} {verb} some"))
                .collect::<Vec<_>>()
        };
        if verdict.passes() {
            let deciding = verdict.chains.iter().find_map(|chain| chain.decided_by.rule.as_ref());
            let says = match (verdict.chains.as_slice(), deciding) {
                ([], _) => UNFILTERED.to_owned(),
                (_, Some(rule)) => format!("{what} pass, by `{rule}`"),
                (_, None) => format!("{what} pass: nothing drops them"),
            };
            return Check::ok(FIREWALL, "", says).details(exceptions(true, "drops"));
        }
        // Without acknowledgements FTP works, only slower. A drop at output is a warning, and one at postrouting a
        // note.
        let is_delay = class == PacketClass::Injected && !path.hook.is_filter();
        let matters = path.is_used_by(class) && !is_delay;
        let is_problem = |stop: &&ChainVerdict| match class {
            PacketClass::Injected => stop.drops_certainly(),
            _ => path.is_problem(stop, modes),
        };
        let certain: Vec<_> = verdict.dropping_chains().filter(is_problem).collect();
        let names = |stops: &[&ChainVerdict]| {
            stops.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
        };
        let some_pass = |stops: &[&ChainVerdict]| {
            let says = format!("some {what} pass; others are dropped by {}", names(stops));
            Check::ok(FIREWALL, "", says).details(exceptions(false, "accepts"))
        };
        if certain.is_empty() {
            let stops: Vec<_> = verdict.dropping_chains().collect();
            if stops.iter().all(|stop| stop.drops_certainly()) {
                return some_pass(&stops);
            }
            let says = format!("{what} may be dropped by {}", names(&stops));
            return Check::note(FIREWALL, "", says).details(exceptions(false, "accepts"));
        }
        let stops = names(&certain);
        let mut says = format!("{what} are dropped by {stops}");
        if is_delay {
            says += ": an announcement in two segments waits for a retransmission";
        } else if !matters {
            says += match path.hook {
                Hook::Forward => "; this does not matter while nothing is forwarded",
                _ => "; this does not matter unless an FTP server or client runs here",
            };
        }
        if matters && certain.iter().all(|stop| path.is_restricted_by(stop)) {
            return some_pass(&certain);
        }
        let problem = match class {
            PacketClass::Injected => ProblemName::Acknowledgements,
            PacketClass::MarkedData | PacketClass::RelatedData => ProblemName::DataConnections,
        };
        let mut check = match matters {
            true => Check::problem(FIREWALL, "", problem, says),
            false => Check::note(FIREWALL, "", says),
        };
        for stop in &certain {
            let placed = stop.placed_for(class, modes, path.ip);
            let solution = placed.accept_command(class, &self.firewall.gateway);
            let persistence = solution.is_ok().then(|| persistence_advice(&stop.location));
            check = check.solution(solution).advice(persistence.flatten());
        }
        // What is forwarded may pass nevertheless.
        let is_partial = path.hook != Hook::Forward
            && self.data_paths.iter().any(|one| one.is_used && one.hook == Hook::Forward);
        check
            .partial_if(is_partial)
            .details(exceptions(false, "accepts"))
            .advice(self.other_backend_advice(path, class).filter(|_| matters))
    }
}

/// How to make a rule permanent, if a program generates the table: the command alone adds it until the next reload.
fn persistence_advice(location: &ChainLocation) -> Option<String> {
    let advice = match location.manager? {
        RulesetManager::Firewalld if location.has_owner => {
            "firewalld owns its table, so no other program can add a rule: set NftablesTableOwner=no in \
             /etc/firewalld/firewalld.conf and restart firewalld"
        }
        RulesetManager::Firewalld => {
            "each reload of firewalld removes it: add it again after a reload"
        }
        _ => "a reload of the firewall removes it: `ftp-alg setup --apply` makes it permanent",
    };
    Some(advice.to_owned())
}

fn other_backend_advice(other: Backend, how: &str) -> String {
    format!("or {how}: data connections of the back end {other} pass here")
}

/// Merges the checks of IPv4 and IPv6 into one called `name` if they have the same result.
fn merge_families(name: &str, families: impl Iterator<Item = (IpVersion, Check)>) -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    for (ip, mut check) in families {
        check.name = format!("{name} {ip}");
        match checks.pop() {
            Some(first) if is_alike(&first, &check) => {
                // The rule that lets the other version pass says more than that nothing is filtered.
                let says = match first.says == UNFILTERED {
                    true => check.says,
                    false => first.says.clone(),
                };
                let both = Check { name: name.to_owned(), says, ..first };
                checks.push(both.details(check.details).remedy(check.remedy).advice(check.advice));
            }
            first => checks.extend(first.into_iter().chain([check])),
        }
    }
    checks
        .into_iter()
        .map(|check| {
            // The other version of IP may pass.
            let is_partial = check.name != name;
            check.partial_if(is_partial)
        })
        .collect()
}

/// Whether both versions of IP have the same result: both are fine, or both have the same problem. The texts may differ
/// in `ip6tables` and `iptables`.
fn is_alike(one: &Check, other: &Check) -> bool {
    let plain = |check: &Check| check.says.replace("ip6tables", "iptables");
    one.mark == other.mark && (one.mark == CheckStatus::Ok || plain(one) == plain(other))
}
