//! Whether control connections pass, for each pair of interfaces.
//!
//! Of a control connection all is known but the addresses and, of rules that look at time or rate,
//! these. So a pair whose connections some rule accepts by such a condition is neither accepted nor
//! dropped ([`Passage::Some`]).

use std::collections::HashMap;

use super::{
    ChainVerdict, Firewall, HookVerdict,
    model::{Condition, Hook, InterfacePattern, Ip, RuleVerdict},
    sample_packets::SampleConnection,
};
use crate::gateway::RuleParameters;

/// How many pairs of interfaces a summary names.
const MAX_NAMED: usize = 4;

/// How connections fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Acceptance {
    /// All are dropped.
    Dropped,
    /// Some are accepted, by addresses or else what is not known here.
    Partly,
    /// All are accepted, but those that a rule drops by what is not known here.
    Accepted,
}

/// How control connections fare between two interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfacePairVerdict {
    /// The client's interface; none where this machine is the client.
    pub from: Option<String>,
    /// The server's interface; none where this machine is the server.
    pub to: Option<String>,
    pub acceptance: Acceptance,
    /// The chain that decides that; none where nothing is filtered.
    pub decided_by: Option<ChainVerdict>,
}

/// How control connections fare at one hook with one version of IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPathVerdict {
    /// Where the first packet is.
    pub hook: Hook,
    pub ip: Ip,
    /// One for each pair of interfaces, or each interface at input and output.
    pub pairs: Vec<InterfacePairVerdict>,
}

impl ControlPathVerdict {
    /// How those fare that fare best; nothing is dropped where there is nothing to pass between.
    pub fn best_acceptance(&self) -> Acceptance {
        let all = self.pairs.iter().map(|judgement| judgement.acceptance);
        all.max().unwrap_or(Acceptance::Accepted)
    }

    /// The chains that drop, each once.
    pub fn dropping_chains(&self) -> Vec<&ChainVerdict> {
        let mut stops: Vec<&ChainVerdict> = Vec::new();
        for judgement in &self.pairs {
            if judgement.acceptance != Acceptance::Accepted
                && let Some(chain) = &judgement.decided_by
                && !stops.iter().any(|known| {
                    (&known.location, &known.decided_by) == (&chain.location, &chain.decided_by)
                })
            {
                stops.push(chain);
            }
        }
        stops
    }

    /// In one line: `accepted lan0 -> wan0, dropped: all else`.
    pub fn summary(&self) -> String {
        if self.pairs.is_empty() {
            return "no interfaces to pass between".to_owned();
        }
        let classes = [
            (Acceptance::Accepted, "accepted"),
            (Acceptance::Partly, "some accepted"),
            (Acceptance::Dropped, "dropped"),
        ];
        let of = |passage| -> Vec<&InterfacePairVerdict> {
            self.pairs.iter().filter(|judgement| judgement.acceptance == passage).collect()
        };
        let mut classes: Vec<_> = classes.map(|(passage, verb)| (of(passage), verb)).into();
        classes.retain(|(judgements, _)| !judgements.is_empty());
        // The largest is what is left when the others are named.
        let rest = classes.iter().map(|(judgements, _)| judgements.len()).max();
        if let Some(at) = classes.iter().rposition(|(judgements, _)| Some(judgements.len()) == rest)
        {
            let rest = classes.remove(at);
            classes.push(rest);
        }
        let Some(((_, rest), named)) = classes.split_last() else { return String::new() };
        let mut parts: Vec<String> = named
            .iter()
            .map(|(judgements, verb)| format!("{verb} {}", pair_names(judgements)))
            .collect();
        parts.push(match named {
            [] if self.hook == Hook::Forward => format!("{rest} between all interfaces"),
            [] => format!("{rest} on all interfaces"),
            _ => format!("{rest}: all else"),
        });
        parts.join(", ")
    }
}

/// The pairs, without those that are too many for a line.
fn pair_names(judgements: &[&InterfacePairVerdict]) -> String {
    let name = |judgement: &&InterfacePairVerdict| match (&judgement.from, &judgement.to) {
        (Some(from), Some(to)) => format!("{from} -> {to}"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => String::new(),
    };
    let mut names: Vec<String> = judgements.iter().take(MAX_NAMED).map(name).collect();
    if let more @ 1.. = judgements.len() - names.len() {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

impl Firewall {
    /// How control connections fare at each of `hooks`, with both versions of IP, between each two
    /// of `interfaces`. Of several control ports, that counts which fares best.
    pub fn control_verdicts(
        &self,
        parameters: &RuleParameters,
        interfaces: &[String],
        hooks: &[Hook],
    ) -> Vec<ControlPathVerdict> {
        let patterns = self.interface_patterns();
        // Interfaces of which rules tell the same are judged once.
        let same: HashMap<&str, &str> = interfaces
            .iter()
            .map(|one| {
                let like = |other: &&String| {
                    patterns.iter().all(|pattern| pattern.matches(one) == pattern.matches(other))
                };
                (one.as_str(), interfaces.iter().find(like).unwrap_or(one).as_str())
            })
            .collect();
        let mut known = HashMap::new();
        let ways = hooks.iter().flat_map(|hook| Ip::BOTH.map(|ip| (*hook, ip)));
        ways.map(|(hook, ip)| {
            let judgements = interface_pairs(hook, interfaces).map(|(from, to)| {
                let alike = |one: &'_ Option<&str>| one.and_then(|one| same.get(one).copied());
                let key = (hook, ip, alike(&from), alike(&to));
                let (passage, by) = known.entry(key).or_insert_with(|| {
                    let (_, _, from, to) = key;
                    let ports = parameters.control_ports().iter();
                    let judged = ports.map(|&port| {
                        let (from, to) = (Some(from.unwrap_or("")), Some(to.unwrap_or("")));
                        self.connection_verdict(
                            SampleConnection { hook, ip, port, from, to },
                            parameters,
                        )
                    });
                    judged
                        .max_by_key(|(passage, _)| *passage)
                        .unwrap_or((Acceptance::Accepted, None))
                });
                InterfacePairVerdict {
                    from: from.map(str::to_owned),
                    to: to.map(str::to_owned),
                    acceptance: *passage,
                    decided_by: by.clone(),
                }
            });
            ControlPathVerdict { hook, ip, pairs: judgements.collect() }
        })
        .collect()
    }

    /// How a connection to or from this machine fares that is nothing to us, and the chain that
    /// decides: at input one that arrives by `interface`, at output one that leaves by it.
    pub fn local_connection_verdict(
        &self,
        hook: Hook,
        ip: Ip,
        port: u16,
        interface: Option<&str>,
        parameters: &RuleParameters,
    ) -> (Acceptance, Option<ChainVerdict>) {
        let (from, to) = match hook {
            Hook::Output => (Some(""), interface),
            _ => (interface, Some("")),
        };
        self.connection_verdict(SampleConnection { hook, ip, port, from, to }, parameters)
    }

    /// How a connection that is nothing to us fares, and the chain that decides.
    fn connection_verdict(
        &self,
        connection: SampleConnection<'_>,
        parameters: &RuleParameters,
    ) -> (Acceptance, Option<ChainVerdict>) {
        let packets = connection.packets(parameters, self.ruleset.changed_mark_bits);
        let HookVerdict { chains } = self.verdict_on_packets(connection.ip, &packets);
        let passage = |chain: &ChainVerdict| match (chain.passes, chain.exceptions.is_empty()) {
            (true, _) => Acceptance::Accepted,
            (false, false) => Acceptance::Partly,
            (false, true) => Acceptance::Dropped,
        };
        let worst = chains.iter().map(passage).min().unwrap_or(Acceptance::Accepted);
        // Of those that accept, a rule says more than a policy.
        let says_most = |chain: &&ChainVerdict| {
            (passage(chain), worst == Acceptance::Accepted && chain.decided_by.rule.is_none())
        };
        let by = chains.iter().min_by_key(says_most).cloned();
        (worst, by)
    }

    /// What rules compare interfaces with.
    fn interface_patterns(&self) -> Vec<&InterfacePattern> {
        let chains = self.ruleset.tables.iter().flat_map(|table| table.chains.values());
        let mut patterns = Vec::new();
        for rule in chains.flat_map(|chain| &chain.rules) {
            rule.conditions.iter().for_each(|one| collect_patterns(one, &mut patterns));
            if let RuleVerdict::Map(elements) = &rule.action {
                elements.iter().for_each(|(key, _)| collect_patterns(key, &mut patterns));
            }
        }
        patterns
    }
}

/// The patterns in a condition that are not there yet.
fn collect_patterns<'a>(condition: &'a Condition, patterns: &mut Vec<&'a InterfacePattern>) {
    match condition {
        Condition::Interface { pattern, .. } if !patterns.contains(&pattern) => {
            patterns.push(pattern);
        }
        Condition::Any(conditions) | Condition::All(conditions) => {
            conditions.iter().for_each(|one| collect_patterns(one, patterns));
        }
        Condition::Compare(_) | Condition::Interface { .. } | Condition::Unknown => {}
    }
}

/// The ways of a connection at `hook`: the client's interface and the server's.
fn interface_pairs(
    hook: Hook,
    interfaces: &[String],
) -> impl Iterator<Item = (Option<&str>, Option<&str>)> {
    let ways: Vec<_> = interfaces
        .iter()
        .flat_map(|one| match hook {
            Hook::Input => vec![(Some(one.as_str()), None)],
            Hook::Output => vec![(None, Some(one.as_str()))],
            Hook::Prerouting | Hook::Forward => {
                let others = interfaces.iter().filter(|other| *other != one);
                others.map(|other| (Some(one.as_str()), Some(other.as_str()))).collect()
            }
        })
        .collect();
    ways.into_iter()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Origin, VerdictSource},
        *,
    };

    fn nftables(json: &str, listing: &str) -> Firewall {
        Firewall::from_nft(json, listing).unwrap()
    }

    fn zones() -> Firewall {
        nftables(include_str!("samples/zones.json"), include_str!("samples/zones.txt"))
    }

    fn iptables(rules: &str) -> Firewall {
        let mut firewall = Firewall::default();
        let text = format!("*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT DROP\n{rules}COMMIT\n");
        firewall.add_iptables_save(Origin::IptablesLegacy, Ip::V4, &text);
        firewall
    }

    fn outlook(firewall: &Firewall, hook: Hook, interfaces: &[&str]) -> ControlPathVerdict {
        let interfaces: Vec<String> = interfaces.iter().map(|one| (*one).to_owned()).collect();
        let parameters = RuleParameters::default();
        firewall.control_verdicts(&parameters, &interfaces, &[hook]).swap_remove(0)
    }

    fn summary(firewall: &Firewall, hook: Hook, interfaces: &[&str]) -> String {
        outlook(firewall, hook, interfaces).summary()
    }

    fn reasons(outlook: &ControlPathVerdict) -> Vec<&VerdictSource> {
        outlook.dropping_chains().into_iter().map(|chain| &chain.decided_by).collect()
    }

    #[test]
    fn each_pair_of_interfaces_is_judged_by_itself() {
        let firewall =
            nftables(include_str!("samples/plain.json"), include_str!("samples/plain.txt"));
        // `tcp dport @services` has port 21, whichever way.
        let forward = outlook(&firewall, Hook::Forward, &["lan0", "wan0"]);
        assert_eq!(forward.summary(), "accepted between all interfaces");
        let fw4 = nftables(include_str!("samples/fw4.json"), include_str!("samples/fw4.txt"));
        let forward = outlook(&fw4, Hook::Forward, &["br-lan", "eth1", "eth2"]);
        assert_eq!(forward.summary(), "accepted br-lan -> eth1, br-lan -> eth2, dropped: all else");
        assert!(
            reasons(&forward).iter().all(|reason| reason.chain == "handle_reject"),
            "{forward:?}"
        );
    }

    #[test]
    fn sets_wildcards_pairs_and_negations_of_nftables_are_read() {
        let forward = |one, other| {
            let outlook = outlook(&zones(), Hook::Forward, &[one, other]);
            let by = outlook.pairs[0].decided_by.clone().unwrap().decided_by;
            (outlook.pairs[0].acceptance, by.rule.unwrap_or_default())
        };
        let accept = "tcp dport { 21, 80, 443 } accept".to_owned();
        assert_eq!(forward("lan0", "wan0"), (Acceptance::Accepted, accept));
        assert_eq!(forward("vlan5", "wan0").0, Acceptance::Accepted);
        assert_eq!(forward("vlan6", "wan0"), (Acceptance::Dropped, String::new()));
        let to_others = "iifname @trusted oifname != { \"wan0\", \"dmz0\" } accept".to_owned();
        assert_eq!(forward("vlan6", "lan0"), (Acceptance::Accepted, to_others));
        assert_eq!(forward("lan0", "dmz0").0, Acceptance::Dropped);
        assert_eq!(forward("eth0", "lan0").0, Acceptance::Dropped);
        // What is not known of a connection: its addresses, and whether they are translated.
        assert_eq!(forward("dmz0", "wan0").0, Acceptance::Partly);
        assert_eq!(forward("wan1", "lan0").0, Acceptance::Partly);
        let names = ["lan0", "wan0", "dmz0"];
        assert_eq!(
            summary(&zones(), Hook::Forward, &names),
            "accepted lan0 -> wan0, dropped lan0 -> dmz0, dmz0 -> lan0, some accepted: all else"
        );
        let input = summary(&zones(), Hook::Input, &names);
        assert_eq!(input, "accepted lan0, dropped: all else");
    }

    #[test]
    fn zones_of_firewalld_are_followed() {
        let firewall =
            nftables(include_str!("samples/firewalld.json"), include_str!("samples/firewalld.txt"));
        // The zone has the service ftp.
        let input = outlook(&firewall, Hook::Input, &["eth0"]);
        assert_eq!(input.summary(), "accepted on all interfaces");
        let forward = outlook(&firewall, Hook::Forward, &["eth0", "eth1"]);
        assert_eq!(
            forward.summary(),
            "accepted eth1 -> eth0, some accepted: all else",
            "masquerade, and destinations that are translated"
        );
    }

    #[test]
    fn interfaces_of_iptables_are_read() {
        let established = "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n";
        for (rule, expected) in [
            ("", "dropped between all interfaces"),
            ("-i lan+ -o wan0", "accepted lan0 -> wan0, lan1 -> wan0, dropped: all else"),
            ("! -i wan0", "dropped wan0 -> lan0, wan0 -> lan1, accepted: all else"),
            ("-i lan0 -p udp", "dropped between all interfaces"),
            ("-i lan0 -p tcp -m tcp --dport 80", "dropped between all interfaces"),
            ("-i + -o +", "accepted between all interfaces"),
            (
                "-o wan0 -s 10.0.0.0/8",
                "some accepted lan0 -> wan0, lan1 -> wan0, dropped: all else",
            ),
        ] {
            let accept = match rule {
                "" => String::new(),
                _ => format!("-A FORWARD {rule} -j ACCEPT\n"),
            };
            let firewall = iptables(&format!("{established}{accept}"));
            let names = ["lan0", "lan1", "wan0"];
            assert_eq!(summary(&firewall, Hook::Forward, &names), expected, "{rule}");
        }
    }

    #[test]
    fn replies_have_to_pass_as_well() {
        let accept = "-A INPUT -i wan0 -p tcp --dport 21 -j ACCEPT\n";
        let firewall = |more: &str| iptables(&format!("{accept}{more}"));
        let alone = outlook(&firewall(""), Hook::Input, &["wan0"]);
        assert_eq!(alone.best_acceptance(), Acceptance::Dropped);
        assert_eq!(
            alone.dropping_chains()[0].to_string(),
            "the policy of iptables-legacy filter OUTPUT"
        );
        let replies = firewall("-A OUTPUT -o wan0 -p tcp --sport 21 -j ACCEPT\n");
        assert_eq!(
            summary(&replies, Hook::Input, &["wan0", "lan0"]),
            "accepted wan0, dropped: all else"
        );
        assert_eq!(summary(&replies, Hook::Output, &["wan0"]), "dropped on all interfaces");
    }

    #[test]
    fn what_drops_before_routing_counts() {
        let mut firewall = iptables("-A FORWARD -j ACCEPT\n");
        let early = "-A PREROUTING -i wan0 -p tcp -m tcp --dport 21 -m addrtype --dst-type UNICAST";
        let text = format!("*raw\n:PREROUTING ACCEPT\n{early} -j DROP\nCOMMIT\n");
        firewall.add_iptables_save(Origin::IptablesLegacy, Ip::V4, &text);
        let forward = outlook(&firewall, Hook::Forward, &["lan0", "wan0"]);
        assert_eq!(forward.summary(), "accepted lan0 -> wan0, dropped: all else");
        let place = "in iptables-legacy raw PREROUTING";
        assert!(forward.dropping_chains()[0].to_string().ends_with(place), "{forward:?}");
    }

    #[test]
    fn of_several_control_ports_one_is_enough() {
        let parameters = RuleParameters::new(&[21, 2121], 2100, 1, 0x4000_0000, 0x7000_0000);
        let firewall = iptables("-A FORWARD -p tcp -m multiport --ports 2121 -j ACCEPT\n");
        let interfaces = ["a".to_owned(), "b".to_owned()];
        let outlooks =
            firewall.control_verdicts(&parameters.unwrap(), &interfaces, &[Hook::Forward]);
        assert_eq!(outlooks[0].best_acceptance(), Acceptance::Accepted);
    }

    #[test]
    fn a_line_names_a_few_pairs_and_counts_the_others() {
        let names: Vec<String> = (0..40).map(|n| format!("eth{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let firewall = iptables("-A FORWARD -i eth7 -j ACCEPT\n-A FORWARD -o eth7 -j ACCEPT\n");
        assert_eq!(
            summary(&firewall, Hook::Forward, &names),
            "accepted eth0 -> eth7, eth1 -> eth7, eth2 -> eth7, eth3 -> eth7, 74 more, \
             dropped: all else"
        );
        assert_eq!(summary(&firewall, Hook::Forward, &["eth0"]), "no interfaces to pass between");
    }
}
