//! Evaluates whether the firewall accepts control connections, for each pair of interfaces.
//!
//! Addresses, times and rates of a control connection are not known in advance. If a rule accepts connections by such a
//! condition, the pair is neither accepted nor dropped ([`Acceptance::Partly`]).

use std::collections::{BTreeSet, HashMap};

use super::{
    ChainVerdict, DataPathVerdict, Firewall, HookVerdict, Links, PortClaim, Routing,
    connection::{Connection, ConnectionKind},
    model::{Condition, Hook, IpVersion, LocatedRule, RuleVerdict},
};

/// How many pairs of interfaces a summary names for each verdict.
const MAX_NAMED: usize = 4;
/// No interface is called this.
const UNNAMED: &str = "/";

/// Which of the connections between two interfaces are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Acceptance {
    /// No connection is accepted.
    Dropped,
    /// Rules accept some connections, by conditions that cannot be decided here.
    #[strum(to_string = "partly accepted")]
    Partly,
    /// Connections are accepted, except those that a rule drops by conditions that cannot be decided here.
    Accepted,
}

/// The verdict on control connections between two interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfacePairVerdict {
    /// The client's interface; `None` if this machine is the client.
    pub from: Option<String>,
    /// The server's interface; `None` if this machine is the server.
    pub to: Option<String>,
    /// Which of the connections are accepted.
    pub acceptance: Acceptance,
    /// The chain that decides; `None` if no chain filters at this hook.
    pub decided_by: Option<ChainVerdict>,
}

/// The verdicts on control connections at one hook with one IP version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPathVerdict {
    /// The hook of the first packet.
    pub hook: Hook,
    /// The version of IP.
    pub ip: IpVersion,
    /// One verdict for each ordered pair of interfaces; at input and output one for each interface.
    pub pairs: Vec<InterfacePairVerdict>,
}

impl ControlPathVerdict {
    /// The best verdict of all pairs; `Accepted` if there is no pair.
    pub fn best_acceptance(&self) -> Acceptance {
        let all = self.pairs.iter().map(|pair| pair.acceptance);
        all.max().unwrap_or(Acceptance::Accepted)
    }

    /// The chains that drop connections, each once.
    pub fn dropping_chains(&self) -> Vec<&ChainVerdict> {
        let mut dropping: Vec<&ChainVerdict> = Vec::new();
        for pair in &self.pairs {
            if pair.acceptance != Acceptance::Accepted
                && let Some(chain) = &pair.decided_by
                && !dropping.iter().any(|known| {
                    (&known.location, &known.decided_by) == (&chain.location, &chain.decided_by)
                })
            {
                dropping.push(chain);
            }
        }
        dropping
    }

    /// All verdicts in one line, as in `accepted lan0 -> wan0; all others: dropped`.
    pub fn summary(&self) -> String {
        if self.pairs.is_empty() {
            return "no pair of interfaces".to_owned();
        }
        let classes = [Acceptance::Accepted, Acceptance::Partly, Acceptance::Dropped];
        let class = |verb| -> (Vec<&InterfacePairVerdict>, Acceptance) {
            (self.pairs.iter().filter(|pair| pair.acceptance == verb).collect(), verb)
        };
        let mut classes: Vec<_> = classes.map(class).into();
        classes.retain(|(pairs, _)| !pairs.is_empty());
        // The largest class comes last and is not listed pair by pair.
        if let Some(largest) = (0..classes.len()).max_by_key(|at| classes[*at].0.len()) {
            let rest = classes.remove(largest);
            classes.push(rest);
        }
        let Some(((_, rest), named)) = classes.split_last() else { return String::new() };
        let mut parts: Vec<String> =
            named.iter().map(|(pairs, verb)| format!("{verb} {}", pair_names(pairs))).collect();
        parts.push(match named {
            [] if self.hook == Hook::Forward => format!("{rest} between all interfaces"),
            [] => format!("{rest} on all interfaces"),
            _ => format!("all others: {rest}"),
        });
        parts.join("; ")
    }
}

/// The names of the pairs. Only the first few are listed, the others are counted.
fn pair_names(pairs: &[&InterfacePairVerdict]) -> String {
    let name = |pair: &&InterfacePairVerdict| match (&pair.from, &pair.to) {
        (Some(from), Some(to)) => format!("{from} -> {to}"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => String::new(),
    };
    let mut names: Vec<String> = pairs.iter().take(MAX_NAMED).map(name).collect();
    if let more @ 1.. = pairs.len() - names.len() {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

impl Firewall {
    /// The verdicts on control connections between this machine's interfaces, for each of its tasks: as a gateway, and
    /// as a host.
    pub fn control_paths(
        &self,
        routing: Routing,
        data_paths: &[DataPathVerdict],
        links: &Links,
    ) -> Vec<Vec<ControlPathVerdict>> {
        let Routing { v4, v6, has_local_server: serves, .. } = routing;
        let own: &[Hook] = if serves { &[Hook::Input] } else { &[Hook::Input, Hook::Output] };
        let tasks = [(v4 || v6, &[Hook::Forward][..]), (serves || !(v4 || v6), own)];
        let hooks = tasks.into_iter().filter(|(is_ours, _)| *is_ours).map(|(_, hooks)| hooks);
        let matters = |path: &ControlPathVerdict| {
            let used = data_paths.iter().filter(|one| one.is_used);
            used.map(|one| (one.hook, one.ip)).any(|one| one == (path.hook, path.ip))
        };
        hooks
            .map(|hooks| {
                let mut paths = self.control_verdicts(links, hooks);
                paths.retain(matters);
                paths
            })
            .collect()
    }

    /// The verdicts on control connections between the interfaces of `links`, at each of `hooks` and with both IP versions.
    ///
    /// If the firewall drops those between all pairs, the gateway may be a hub: its packets leave where they arrive.
    pub fn control_verdicts(&self, links: &Links, hooks: &[Hook]) -> Vec<ControlPathVerdict> {
        let interfaces = &links.interfaces;
        let same = self.interchangeable(interfaces.iter().map(String::as_str).collect(), links);
        let alike = |end: &str| same.get(end).copied().unwrap_or_default();
        let mut known = HashMap::new();
        let cases = hooks.iter().flat_map(|hook| IpVersion::BOTH.map(|ip| (*hook, ip)));
        cases
            .map(|(hook, ip)| {
                let mut verdict = |(from, to): (&str, &str)| {
                    let ends = (alike(from), alike(to));
                    let verdict = known.entry((ip, ends));
                    let verdict = verdict.or_insert_with(|| self.control_verdict(ip, ends, links));
                    let (acceptance, decided_by) = verdict.clone();
                    let [from, to] =
                        [from, to].map(|end| (!end.is_empty()).then(|| end.to_owned()));
                    InterfacePairVerdict { from, to, acceptance, decided_by }
                };
                let pairs = interface_pairs(hook, interfaces);
                let mut pairs: Vec<_> = pairs.into_iter().map(&mut verdict).collect();
                let is_dropped =
                    |pair: &InterfacePairVerdict| pair.acceptance == Acceptance::Dropped;
                if hook == Hook::Forward && pairs.iter().all(is_dropped) {
                    let same = interfaces.iter().map(|one| verdict((one, one)));
                    pairs.extend(same.filter(|pair| !is_dropped(pair)));
                }
                ControlPathVerdict { hook, ip, pairs }
            })
            .collect()
    }

    /// The verdict on control connections between two interfaces, and the chain that decides. The name of an interface
    /// is empty if this machine is the end there.
    ///
    /// With several control ports, or servers that are published with another port, the best verdict counts.
    pub(crate) fn control_verdict(
        &self,
        ip: IpVersion,
        ends: (&str, &str),
        links: &Links,
    ) -> (Acceptance, Option<ChainVerdict>) {
        let ports = self.control_ports().into_iter();
        let verdicts = ports.map(|(port, real_port)| {
            let kind = ConnectionKind::Control { port, real_port };
            self.connection_verdict(&Connection::between(ends, links, kind, ip))
        });
        let best = verdicts.max_by_key(|(acceptance, _)| *acceptance);
        best.unwrap_or((Acceptance::Accepted, None))
    }

    /// The interfaces that this machine does not have, although rules accept control connections there at `hook`: they
    /// may have another name by now.
    pub fn missing_interfaces(&self, hook: Hook, ip: IpVersion, links: &Links) -> Vec<&str> {
        let is_there = |name: &str| name == "lo" || links.existing.contains(name);
        let conditions = self.interface_conditions().into_iter();
        let named = conditions.filter_map(|condition| match condition {
            Condition::Interface { pattern, negated: false, .. } => pattern.single(),
            _ => None,
        });
        let named: BTreeSet<&str> = named.collect();
        let missing = named.into_iter().filter(|name| !is_there(name)).take(MAX_NAMED);
        let interfaces = links.interfaces.iter().map(String::as_str).collect();
        let others: BTreeSet<&str> =
            self.interchangeable(interfaces, links).into_values().collect();
        let acceptances = |name: &str| -> Vec<Acceptance> {
            let pairs = others.iter().flat_map(|other| match hook {
                Hook::Input => vec![(name, "")],
                Hook::Output => vec![("", name)],
                _ => vec![(name, *other), (*other, name)],
            });
            pairs.map(|ends| self.control_verdict(ip, ends, links).0).collect()
        };
        // Some rules are about all interfaces but a few.
        let unnamed = acceptances(UNNAMED);
        let is_accepted = |name: &&str| acceptances(name).iter().zip(&unnamed).any(|(a, b)| a > b);
        missing.filter(is_accepted).collect()
    }

    /// The verdict on a connection to `port` that `ftp-alg` does not inspect, and the chain that decides. The name of an
    /// interface is empty if this machine is the end there.
    pub fn uninspected_verdict(
        &self,
        ip: IpVersion,
        ends: (&str, &str),
        port: u16,
    ) -> (Acceptance, Option<ChainVerdict>) {
        let kind = ConnectionKind::Control { port, real_port: port };
        let links = Links::default();
        // Rules by address decide nothing, because nothing says which networks are at which interface.
        self.connection_verdict(&Connection {
            links: None,
            ..Connection::between(ends, &links, kind, ip)
        })
    }

    /// Whether the rules certainly drop a connection to `port` that `ftp-alg` does not inspect.
    pub fn drops_unadmitted(&self, ip: IpVersion, ends: (&str, &str), port: u16) -> bool {
        let (acceptance, _) = self.uninspected_verdict(ip, ends, port);
        acceptance == Acceptance::Dropped && self.read_errors.is_empty()
    }

    /// The control ports, each with the port that the server has: the same one, or that of a server which is published
    /// with the control port.
    fn control_ports(&self) -> BTreeSet<(u16, u16)> {
        let claims = self.translated_ports();
        let ports = self.gateway.control_ports.iter().flat_map(|&port| {
            let has_port = move |claim: &&PortClaim| claim.has_port(port);
            let targets = claims.iter().filter(has_port).filter_map(|claim| claim.target_ports);
            let single = targets.filter(|(first, last)| first == last).map(|(first, _)| first);
            [port].into_iter().chain(single).map(move |real| (port, real))
        });
        ports.collect()
    }

    /// The verdict on a connection that `ftp-alg` does not inspect, and the chain that decides.
    fn connection_verdict(
        &self,
        connection: &Connection<'_>,
    ) -> (Acceptance, Option<ChainVerdict>) {
        let HookVerdict { chains } = HookVerdict::new(self.follow(connection));
        let worst =
            chains.iter().map(ChainVerdict::acceptance).min().unwrap_or(Acceptance::Accepted);
        // Among accepting chains, one with a deciding rule explains more than a policy.
        let rank = |chain: &&ChainVerdict| {
            (chain.acceptance(), worst == Acceptance::Accepted && chain.decided_by.rule.is_none())
        };
        let decided_by = chains.iter().min_by_key(rank).cloned();
        (worst, decided_by)
    }

    /// For each interface the first interface that rules cannot distinguish from it, neither by name nor by the
    /// networks there. Interchangeable interfaces are evaluated once.
    pub(crate) fn interchangeable<'n>(
        &self,
        interfaces: Vec<&'n str>,
        links: &Links,
    ) -> HashMap<&'n str, &'n str> {
        let conditions = self.interface_conditions();
        let holds_at = |one: &str, condition: &Condition| match condition {
            Condition::Interface { pattern, .. } => pattern.matches(one),
            Condition::Address { networks, .. } => {
                networks.iter().all(|network| links.are_elsewhere(network, one))
            }
            _ => false,
        };
        let mut first = HashMap::new();
        let first_like = |one: &'n str| {
            let kind: Vec<bool> = conditions.iter().map(|test| holds_at(one, test)).collect();
            (one, *first.entry(kind).or_insert(one))
        };
        interfaces.into_iter().map(first_like).collect()
    }

    /// All conditions in the rules that depend on interfaces.
    fn interface_conditions(&self) -> Vec<&Condition> {
        let mut found = Vec::new();
        for LocatedRule { rule, .. } in self.ruleset.rules() {
            rule.conditions.iter().for_each(|one| collect_conditions(one, &mut found));
            if let RuleVerdict::Map(elements) = &rule.action {
                elements.iter().for_each(|(key, _)| collect_conditions(key, &mut found));
            }
        }
        found
    }
}

/// Adds the parts of a condition that depend on interfaces, if `found` does not have them yet.
fn collect_conditions<'a>(condition: &'a Condition, found: &mut Vec<&'a Condition>) {
    match condition {
        Condition::Interface { .. } | Condition::Address { .. } if !found.contains(&condition) => {
            found.push(condition);
        }
        Condition::Any(conditions) | Condition::All(conditions) => {
            conditions.iter().for_each(|one| collect_conditions(one, found));
        }
        _ => {}
    }
}

/// The possible interfaces of a connection at `hook`: the client's and the server's. The name is empty if this machine is
/// the end there.
fn interface_pairs(hook: Hook, interfaces: &[String]) -> Vec<(&str, &str)> {
    let names = || interfaces.iter().map(String::as_str);
    match hook {
        Hook::Input => names().map(|one| (one, "")).collect(),
        Hook::Output => names().map(|one| ("", one)).collect(),
        Hook::Prerouting | Hook::Forward | Hook::Postrouting => names()
            .flat_map(|one| names().filter(move |other| *other != one).map(move |to| (one, to)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iptables(rules: &str) -> Firewall {
        let text = format!(":INPUT DROP\n:FORWARD DROP\n:OUTPUT DROP\n{rules}");
        Firewall::from_iptables_tables(&[("filter", &text)])
    }

    fn summary(firewall: &Firewall, hook: Hook, interfaces: &[&str]) -> String {
        firewall.control_verdicts(&Links::between(interfaces), &[hook])[0].summary()
    }

    const ESTABLISHED: &str = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";

    #[test]
    fn control_connections_pass_where_rules_accept_them_and_their_replies() {
        let forward = |options: &str, interfaces: &[&str]| {
            let mut firewall = iptables(&format!("{ESTABLISHED}-A FORWARD {options} -j ACCEPT"));
            firewall.gateway.control_ports = vec![21, 2121];
            summary(&firewall, Hook::Forward, interfaces)
        };
        let some = "partly accepted lan0 -> wan0, lan1 -> wan0; all others: dropped";
        for (options, expected) in [
            ("-i lan+ -o wan0", "accepted lan0 -> wan0, lan1 -> wan0; all others: dropped"),
            ("! -i wan0", "dropped wan0 -> lan0, wan0 -> lan1; all others: accepted"),
            ("-i lan0 -p udp", "dropped between all interfaces"),
            ("-i + -o +", "accepted between all interfaces"),
            ("-o wan0 -s 10.0.0.0/8", some),
            // One of the control ports is enough.
            ("-p tcp -m multiport --ports 2121", "accepted between all interfaces"),
            // A hub forwards to the interface of arrival.
            ("-i lan0 -o lan0", "accepted lan0 -> lan0; all others: dropped"),
        ] {
            assert_eq!(forward(options, &["lan0", "lan1", "wan0"]), expected, "{options}");
        }
        assert_eq!(forward("-i lan0 -o lan0", &["lan0"]), "accepted between all interfaces");

        let request = "-A INPUT -i wan0 -p tcp --dport 21 -j ACCEPT";
        let replies = format!("{request}\n-A OUTPUT -o wan0 -p tcp --sport 21 -j ACCEPT");
        for (rules, hook, expected) in [
            (request, Hook::Input, "dropped on all interfaces"),
            (&replies, Hook::Input, "accepted wan0; all others: dropped"),
            (&replies, Hook::Output, "dropped on all interfaces"),
        ] {
            assert_eq!(summary(&iptables(rules), hook, &["wan0", "lan0"]), expected, "{rules}");
        }
    }

    #[test]
    fn rules_that_name_an_interface_which_is_gone_are_noticed() {
        let mut links = Links::between(&["eth5", "wan0", "dmz0"]);
        links.existing = ["eth5", "wan0", "dmz0", "port0"].map(str::to_owned).into();
        let published = "-A FORWARD -i wan0 -o dmz0 -p tcp --dport 21 -j ACCEPT";
        for (rule, expected) in [
            ("-i lan0 -o wan0", &["lan0"][..]),
            ("-i wan0 -o lan0 -p tcp --dport 21", &["lan0"]),
            // It has no address, as the port of a bridge.
            ("-i port0 -o wan0", &[]),
            ("-i lan+", &[]),
            ("-i lan0 -p udp", &[]),
            ("! -i lan0", &[]),
        ] {
            let firewall =
                iptables(&format!("{ESTABLISHED}{published}\n-A FORWARD {rule} -j ACCEPT"));
            let found = firewall.missing_interfaces(Hook::Forward, IpVersion::V4, &links);
            assert_eq!(found, expected, "{rule}");
        }
    }

    #[test]
    fn what_nobody_admits_is_dropped_if_no_rule_may_accept_it() {
        let accepting = "-A FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT\n\
                         -A FORWARD -i lan0 -p tcp -m tcp --dport 21 -j ACCEPT\n";
        for (rule, expected) in [
            ("", true),
            ("-A FORWARD -i lan0 -j ACCEPT", false),
            ("-A FORWARD -i lan1 -j ACCEPT", true),
            ("-A FORWARD -p tcp -m tcp --dport 1024:65535 -j ACCEPT", true),
            ("-A FORWARD -p tcp -m tcp --dport 900:1023 -j ACCEPT", false),
            // Not known here.
            ("-A FORWARD -s 10.0.0.0/8 -j ACCEPT", false),
            ("-A FORWARD -m u32 --u32 0x0=0x0 -j ACCEPT", false),
        ] {
            let mut firewall = iptables(&format!("{ESTABLISHED}{accepting}{rule}"));
            let drops = |firewall: &Firewall| {
                firewall.drops_unadmitted(IpVersion::V4, ("lan0", "wan0"), 1000)
            };
            assert_eq!(drops(&firewall), expected, "{rule}");
            firewall.read_errors.push("nftables: not installed".to_owned());
            assert!(!drops(&firewall), "{rule}");
        }
    }

    #[test]
    fn a_server_that_is_published_with_a_control_port_has_its_own_port_at_forward() {
        let published = "-p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.0.5:2121";
        let same_port = published.replace(":2121", "");
        let other_port = published.replace("21 -j", "80 -j");
        let drop = |port| format!("-p tcp -m tcp --dport {port} -j DROP");
        for (nat, table, rule, is_accepted) in [
            (published, "raw", "-j ACCEPT", true),
            (&same_port, "raw", "-j ACCEPT", false),
            (&other_port, "raw", "-j ACCEPT", false),
            // Before NAT, rules see the port that clients use.
            (published, "raw", &drop(21), false),
            (published, "raw", &drop(2121), true),
            (published, "mangle", &drop(21), false),
        ] {
            let [nat, early] =
                [nat, rule].map(|rule| format!(":PREROUTING ACCEPT\n-A PREROUTING {rule}"));
            let login = "-A FORWARD -i wan0 -p tcp -m tcp --dport 2121 -j ACCEPT";
            let filter = format!(":FORWARD DROP\n{ESTABLISHED}{login}");
            let tables = [(table, &*early), ("nat", &nat), ("filter", &filter)];
            let firewall = Firewall::from_iptables_tables(&tables);
            let expected = match is_accepted {
                true => "accepted wan0 -> lan0; all others: dropped",
                false => "dropped between all interfaces",
            };
            let found = summary(&firewall, Hook::Forward, &["lan0", "wan0"]);
            assert_eq!(found, expected, "{tables:?}");
            // A rule explains more than the policy of an earlier chain.
            let chain = firewall.uninspected_verdict(IpVersion::V4, ("wan0", ""), 21).1.unwrap();
            assert!(!is_accepted || chain.decided_by.rule.is_some(), "{tables:?}");
        }
    }
}
