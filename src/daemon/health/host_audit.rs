//! What the rules of others do to FTP here: who else takes control connections, and whether data connections pass.

use super::check::{Check, CheckStatus};
use crate::gateway::{
    Backend, Neighbours, Routing, RuleParameters,
    firewall::{
        Acceptance, ConflictKind, ControlPathVerdict, DataPathVerdict, Firewall, Hook, HookVerdict,
        Ip, PacketClass, interfaces,
    },
};

const HELPERS: &str = "other helpers";
const FIREWALL: &str = "firewall";
/// So many rules that drop control connections are named.
const MAX_STOPS: usize = 3;
const UNFILTERED: &str = "nothing is filtered";

/// What was found out.
#[derive(Clone, Copy)]
pub struct HostAudit<'a> {
    /// What the rules of ours are made of.
    pub parameters: &'a RuleParameters,
    /// What is loaded beside them.
    pub firewall: &'a Firewall,
    /// What becomes of data connections there.
    pub outlooks: &'a [DataPathVerdict],
    /// What else is on this machine.
    pub neighbours: Neighbours,
    /// What holds the pinholes, or will.
    pub backend: Backend,
    /// Another back end that this kernel has, and how to take it.
    pub other_backend: Option<(Backend, &'static str)>,
}

impl HostAudit<'_> {
    /// All of it.
    pub fn checks(&self) -> Vec<Check> {
        let mut checks = self.helper_checks();
        checks.extend(self.firewall_checks());
        checks.extend(self.control_checks());
        checks
    }

    /// Whether control connections pass, and between which interfaces. One way that is open is enough, as only the
    /// operator knows which are to be.
    fn control_checks(&self) -> Vec<Check> {
        let Routing { v4, v6, serves, .. } = self.neighbours.routing;
        let own: &[Hook] = if serves { &[Hook::Input] } else { &[Hook::Input, Hook::Output] };
        let tasks = [(v4 || v6, &[Hook::Forward][..]), (serves || !(v4 || v6), own)];
        let hooks = tasks.into_iter().filter(|(is_ours, _)| *is_ours).map(|(_, hooks)| hooks);
        let interfaces = interfaces();
        hooks.flat_map(|hooks| self.control_checks_at(hooks, &interfaces)).collect()
    }

    fn control_checks_at(&self, hooks: &[Hook], interfaces: &[String]) -> Vec<Check> {
        let mut ways = self.firewall.control_verdicts(self.parameters, interfaces, hooks);
        let matters = |way: &ControlPathVerdict| {
            self.outlooks
                .iter()
                .any(|one| (one.hook, one.ip, one.is_used) == (way.hook, way.ip, true))
        };
        ways.retain(matters);
        let is_closed = ways.iter().all(|way| way.best_acceptance() == Acceptance::Dropped);
        let check = |way: &ControlPathVerdict| {
            let says = format!("control connections: {}", way.summary());
            let check = match way.best_acceptance() {
                Acceptance::Dropped if is_closed => {
                    let advice =
                        "accept connections to the control ports there, of those who may use FTP";
                    Check::problem(FIREWALL, "", "control-connections", says)
                        .advice([advice.to_owned()])
                }
                Acceptance::Dropped => Check::note(FIREWALL, "", says),
                Acceptance::Partly | Acceptance::Accepted => Check::ok(FIREWALL, "", says),
            };
            let stops = way.dropping_chains().into_iter().take(MAX_STOPS);
            (way.ip, check.details(stops.map(|stop| format!("dropped by {stop}"))))
        };
        let of = |hook: &Hook| {
            let name = format!("control {hook}");
            merge_families(&name, ways.iter().filter(|way| way.hook == *hook).map(check))
        };
        hooks.iter().flat_map(of).collect()
    }

    /// Whether some data connections may pass that have no sign of ours, as those of encrypted sessions.
    pub(super) fn unmarked_may_pass(&self) -> bool {
        let mut ways = self.outlooks.iter().filter(|outlook| outlook.is_used);
        ways.all(|way| self.firewall.may_accept_unmarked(way.hook, way.ip, self.parameters))
    }

    fn helper_checks(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        if self.neighbours.automatic_helpers {
            let says = "nf_conntrack_helper is on: the kernel's FTP helper takes every connection \
                        to port 21";
            checks.push(
                Check::problem(HELPERS, "sysctl", "helper", says)
                    .remedy(["sysctl -w net.netfilter.nf_conntrack_helper=0".to_owned()]),
            );
        }
        let ports = self.parameters.control_ports().iter().map(u16::to_string);
        let ports = ports.collect::<Vec<_>>().join(", ");
        for concern in self.firewall.conflicting_rules(self.parameters) {
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
                    of_rule("rule", "helper", "assigns the kernel's FTP helper")
                        .remedy(concern.remedy.clone())
                        .advice(firewalld)
                }
                // A helper keeps control connections away from there: our own, and whichever one the
                // conntrack back end takes.
                ConflictKind::Offload
                    if self.neighbours.cthelper || self.backend == Backend::Conntrack =>
                {
                    continue;
                }
                ConflictKind::Offload => {
                    let says = "hands connections over before ftp-alg reads them";
                    of_rule("flowtable", "flowtable", says).advice([format!(
                        "where it takes control connections, let it begin with `tcp dport != \
                         {{ {ports} }} tcp sport != {{ {ports} }}`; or load the module \
                         nfnetlink_cthelper",
                    )])
                }
                // Where they are there first, `run` leaves it to them.
                ConflictKind::Queueing if !self.neighbours.table_queues => continue,
                ConflictKind::Queueing => {
                    let says =
                        "queues control packets a second time: ftp-alg run queues them itself";
                    of_rule("rule", "queued-twice", says).remedy(concern.remedy.clone())
                }
                ConflictKind::Untracked => {
                    let says = "takes control connections out of connection tracking";
                    of_rule("notrack", "notrack", says).remedy(concern.remedy.clone())
                }
                ConflictKind::CtMark { .. } => {
                    let mask = self.parameters.mask();
                    let says = format!("changes the bits of the ct mark that are ours ({mask:#010x})");
                    let says = format!("{} {says}", concern.chain);
                    Check::note(HELPERS, "ct mark", says).details([
                        format!("`{}`", concern.rule),
                        "where it does so for FTP connections: restrict it to other bits, or choose \
                         others in [pinhole] mark and mark-mask"
                            .to_owned(),
                    ])
                }
            });
        }
        if checks.is_empty() {
            let says = "nobody else's helper takes FTP connections";
            checks.push(Check::ok(HELPERS, "none", says));
        }
        checks
    }

    fn firewall_checks(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        for what in self.firewall.read_errors() {
            let says = format!("what follows is without it: {what}");
            checks.push(Check::note(FIREWALL, "not readable", says));
        }
        for hook in Hook::ALL {
            checks.extend(self.hook_checks(
                hook.into(),
                hook,
                PacketClass::for_data_connections(self.backend),
            ));
            checks.extend(self.hook_checks("our own packets", hook, PacketClass::Injected));
        }
        checks
    }

    fn hook_checks(&self, name: &str, hook: Hook, sign: PacketClass) -> Vec<Check> {
        let outlooks = self.outlooks.iter().filter(|outlook| outlook.hook == hook);
        let judged = outlooks.filter_map(|outlook| {
            Some((outlook.ip, self.outlook_check(outlook, outlook.verdict_for(sign)?, sign)))
        });
        merge_families(name, judged)
    }

    /// That the other back end does it, too.
    fn other_backend_advice(
        &self,
        outlook: &DataPathVerdict,
        dropped: PacketClass,
    ) -> Option<String> {
        let (other, how) = self.other_backend.filter(|_| dropped != PacketClass::Injected)?;
        let passes = outlook.verdict_for(PacketClass::for_data_connections(other))?.passes();
        passes.then(|| format!("or {how}: data connections of the back end {other} pass here"))
    }

    fn outlook_check(
        &self,
        outlook: &DataPathVerdict,
        judgement: &HookVerdict,
        sign: PacketClass,
    ) -> Check {
        let what = sign.description();
        let exceptions = |passes: bool, verb: &str| {
            judgement
                .chains
                .iter()
                .filter(move |chain| chain.passes == passes)
                .flat_map(|chain| &chain.exceptions)
                .map(|rule| format!("but {rule} {verb} some"))
                .collect::<Vec<_>>()
        };
        if judgement.passes() {
            let deciding = judgement.chains.iter().find_map(|chain| chain.decided_by.rule.as_ref());
            let says = match (judgement.chains.as_slice(), deciding) {
                ([], _) => UNFILTERED.to_owned(),
                (_, Some(rule)) => format!("{what} pass, by `{rule}`"),
                (_, None) => format!("{what} pass: nothing drops them"),
            };
            return Check::ok(FIREWALL, "", says).details(exceptions(true, "drops"));
        }
        let matters = outlook.is_used_by(sign);
        let stops: Vec<String> = judgement.dropping_chains().map(ToString::to_string).collect();
        let mut says = format!("{what} are dropped by {}", stops.join(" and "));
        if !matters {
            says += match outlook.hook {
                Hook::Forward => "; of no matter while nothing is forwarded",
                _ => "; of no matter unless an FTP server or client runs here",
            };
        }
        let advice = judgement.dropping_chains().filter_map(|stop| {
            Some(stop.location.manager?.persistence_advice(&stop.location, sign, self.parameters))
        });
        let problem = match sign {
            PacketClass::Injected => "acknowledgements",
            PacketClass::MarkedData | PacketClass::RelatedData => "data-connections",
        };
        let check = match matters {
            true => Check::problem(FIREWALL, "", problem, says),
            false => Check::note(FIREWALL, "", says),
        };
        check
            .details(exceptions(false, "accepts"))
            .remedy(Firewall::remedies(judgement, sign, self.parameters))
            .advice(advice)
            .advice(self.other_backend_advice(outlook, sign).filter(|_| matters))
    }
}

/// One check called `name` for both versions of IP if they fare alike, else one for each.
fn merge_families(name: &str, judged: impl Iterator<Item = (Ip, Check)>) -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    for (ip, mut check) in judged {
        check.name = format!("{name} {ip}");
        match checks.pop() {
            Some(first) if is_alike(&first, &check) => {
                // That nothing is filtered for one of them is of less interest.
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
}

/// Whether both versions of IP fare alike: both well, or ill for the same reason, which may say
/// `ip6tables` where the other says `iptables`.
fn is_alike(one: &Check, other: &Check) -> bool {
    let plain = |check: &Check| check.says.replace("ip6tables", "iptables");
    one.mark == other.mark && (one.mark == CheckStatus::Ok || plain(one) == plain(other))
}
