//! Finds the ports that the operator's rules translate.
//!
//! A data connection must not use a destination port that is translated to another destination, because it would take
//! the place of a published service. Only the destination port of a rule counts. Other conditions (addresses,
//! interfaces, marks) are ignored, so the result has rather too many ports than too few. A rule without a known port
//! claims no port.
//!
//! Some providers share an address among customers, and forward only a set of source ports to each (MAP-T, MAP-E,
//! CGNAT).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use super::{
    Firewall, IpVersion,
    model::{
        Certainty, Comparison, Condition, DestinationNat, Field, FieldValue, LocatedRule, Rule,
        RuleVerdict, Table,
    },
};

/// The width of the smallest set of source ports. A rule with fewer ports is for one service.
const MIN_WIDTH: u16 = 16;
const TCP: u32 = 6;

/// An inclusive range of ports.
type PortRange = (u16, u16);
const EVERY_PORT: PortRange = (0, u16::MAX);

/// Ports that one of the operator's rules translates, and the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortClaim {
    /// Whether the rule applies to IPv4.
    pub v4: bool,
    /// Whether it applies to IPv6.
    pub v6: bool,
    /// Inclusive ranges.
    pub ports: Vec<(u16, u16)>,
    /// The target host, if it is a single known one.
    pub target: Option<IpAddr>,
    /// The target ports, if given.
    pub target_ports: Option<(u16, u16)>,
}

impl PortClaim {
    /// Whether the rule translates this port.
    pub fn has_port(&self, port: u16) -> bool {
        self.ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// Whether the rule sends a connection to `arrival` anywhere but to `target`.
    pub fn diverts(&self, arrival: SocketAddr, target: SocketAddr) -> bool {
        let is_same = self.target == Some(target.ip())
            && self
                .target_ports
                .is_none_or(|(first, last)| (first..=last).contains(&target.port()));
        let sees = if arrival.is_ipv4() { self.v4 } else { self.v6 };
        sees && self.has_port(arrival.port()) && !is_same
    }
}

impl Firewall {
    /// The ports that the operator's rules translate, each with its destination.
    pub fn translated_ports(&self) -> Vec<PortClaim> {
        let mut found = Vec::new();
        for table in &self.ruleset.tables {
            let [v4, v6] = IpVersion::BOTH.map(|ip| table.family.sees(ip));
            for (rule, ports) in rules_with_ports(table) {
                if let Some(DestinationNat { address: target, ports: target_ports }) =
                    rule.destination_nat
                    && !ports.contains(&EVERY_PORT)
                {
                    found.push(PortClaim { v4, v6, ports, target, target_ports });
                }
            }
        }
        found
    }

    /// The different sets of source ports in the rules that translate IPv4 connections to any port. A set of all ports from
    /// 1024 on is no restriction.
    pub fn source_ports(&self) -> Vec<RangeInclusive<u16>> {
        let tables = self.ruleset.tables.iter().filter(|table| table.family.sees(IpVersion::V4));
        let for_any_port =
            tables.flat_map(rules_with_ports).filter(|(_, ports)| ports.contains(&EVERY_PORT));
        let set = |(rule, _): (&Rule, _)| {
            let (first, last) = rule.source_ports?;
            let first = first.max(1024);
            let is_set =
                last.saturating_sub(first) >= MIN_WIDTH - 1 && (first, last) != (1024, u16::MAX);
            is_set.then_some((first, last))
        };
        let mut found: Vec<PortRange> = for_any_port.filter_map(set).collect();
        found.sort_unstable();
        found.dedup();
        found.into_iter().map(|(first, last)| first..=last).collect()
    }
}

/// The rules of a table that translate TCP packets, each with the destination ports of the packets that reach it.
fn rules_with_ports(table: &Table) -> Vec<(&Rule, Vec<PortRange>)> {
    let translates = |one: &LocatedRule<'_>| {
        one.rule.destination_nat.is_some() || one.rule.source_ports.is_some()
    };
    let mut rules = table.rules().filter(translates).peekable();
    if rules.peek().is_none() {
        return Vec::new();
    }
    let reached = ports_into_chains(table);
    let ports = |LocatedRule { chain, rule, .. }: LocatedRule<'_>| {
        destination_ports(rule.conditions.iter(), reached.get(chain).map_or(&[], Vec::as_slice))
    };
    rules.map(|one| (one.rule, ports(one))).filter(|(_, ports)| !ports.is_empty()).collect()
}

/// For each chain the destination ports of the TCP packets that reach it.
fn ports_into_chains(table: &Table) -> HashMap<&str, Vec<PortRange>> {
    let jumps = table.chains.iter().map(|(name, chain)| (name.as_str(), jumps(&chain.rules)));
    let jumps: BTreeMap<&str, Vec<_>> = jumps.collect();
    let called: HashSet<&str> = jumps.values().flatten().map(|(to, _)| *to).collect();
    // A chain without callers is a base chain, or unused.
    let first = jumps.keys().filter(|name| !called.contains(*name));
    let mut entered: Vec<(&str, PortRange)> = first.map(|name| (*name, EVERY_PORT)).collect();
    let mut reached: HashMap<&str, Vec<PortRange>> = HashMap::new();
    while let Some((chain, ports)) = entered.pop() {
        let known = reached.entry(chain).or_default();
        if known.iter().any(|one| overlap(*one, ports) == Some(ports)) {
            continue;
        }
        known.push(ports);
        for (to, conditions) in jumps.get(chain).into_iter().flatten() {
            let passing = destination_ports(conditions.iter().copied(), &[ports]);
            entered.extend(passing.into_iter().map(|ports| (*to, ports)));
        }
    }
    reached
}

/// The chains that rules jump to, each with the conditions of the jump.
fn jumps<'a>(rules: &'a [Rule]) -> Vec<(&'a str, Vec<&'a Condition>)> {
    let mut found = Vec::new();
    for Rule { conditions, action, .. } in rules {
        let mut add = |to: &'a RuleVerdict, key: Option<&'a Condition>| match to {
            RuleVerdict::Jump(target) | RuleVerdict::Goto(target) => {
                found.push((target.as_str(), conditions.iter().chain(key).collect()));
            }
            _ => {}
        };
        match action {
            RuleVerdict::Map(elements) => elements.iter().for_each(|(key, to)| add(to, Some(key))),
            to => add(to, None),
        }
    }
    found
}

/// The ports of `among` for which all conditions may hold for TCP.
fn destination_ports<'a>(
    conditions: impl Iterator<Item = &'a Condition>,
    among: &[PortRange],
) -> Vec<PortRange> {
    let mut ports = among.to_vec();
    for condition in conditions {
        match condition {
            Condition::Any(one) if one.is_empty() => ports.clear(),
            Condition::Compare(test)
                if test.field == Field::Protocol
                    && test.holds(FieldValue::exactly(TCP)) == Certainty::No =>
            {
                ports.clear();
            }
            Condition::Compare(Comparison {
                field: Field::DestinationPort,
                mask: u32::MAX,
                ranges,
                negated: false,
            }) => {
                let port = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
                let these = ranges.iter().map(|&(first, last)| (port(first), port(last)));
                let both = |these| ports.iter().filter_map(move |one| overlap(*one, these));
                ports = these.flat_map(both).collect();
            }
            _ => {}
        }
    }
    ports
}

/// The ports that are in both ranges.
fn overlap(one: PortRange, other: PortRange) -> Option<PortRange> {
    let both = (one.0.max(other.0), one.1.min(other.1));
    (both.0 <= both.1).then_some(both)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules_for_tests::{PORT, is, nft_json};

    /// Checks that a connection to `10.0.0.5:4000` must not use the ports `claimed`, and may use those that are `free`.
    fn assert_claims(firewall: &Firewall, claimed: &[u16], free: &[u16]) {
        let target = "10.0.0.5:4000".parse().unwrap();
        let is_claimed = |port: &u16| {
            let arrival = SocketAddr::new("203.0.113.1".parse().unwrap(), *port);
            firewall.translated_ports().iter().any(|claim| claim.diverts(arrival, target))
        };
        let found = [claimed, free].concat().into_iter().filter(is_claimed);
        assert_eq!(found.collect::<Vec<_>>(), claimed, "{firewall:?}");
    }

    fn nftables(rules: &[&str]) -> Firewall {
        let more = r#"{"map": {"family": "ip", "name": "m", "table": "t", "type": "inet_service",
              "map": "ipv4_addr", "elem": [[80, "10.0.0.1"], [{"range": [90, 99]}, "10.0.0.2"]]}},
            {"map": {"family": "ip", "name": "two", "table": "t",
              "elem": [[{"concat": ["1.2.3.4", 70]}, "10.0.0.1"]]}},
            {"chain": {"family": "ip", "table": "t", "name": "b", "handle": 2}},"#;
        let json = nft_json("ip nat prerouting -100 accept", more, rules);
        Firewall::from_nft(&json, "").unwrap()
    }

    fn saved(chain: &str, rules: &str) -> Firewall {
        let rules = format!(":{chain} ACCEPT\n:X -\n-A {chain} {rules}");
        Firewall::from_iptables_tables(&[("nat", &rules)])
    }

    #[test]
    fn ports_translated_by_nftables_are_claimed() {
        const TO: &str = r#"{"dnat": {"addr": "10.0.0.9", "port": 80}}"#;
        let is = |port: &str, then: &str| format!("{}, {then}", is("==", PORT, port));
        let range = |first: u16| format!(r#"{{"range": [{first}, {}]}}"#, first + 9);
        let by_map = |key: &str, map: &str| {
            format!(r#"{{"dnat": {{"addr": {{"map": {{"key": {key}, "data": {map}}}}}}}}}"#)
        };
        let address = r#"{"payload": {"protocol": "ip", "field": "daddr"}}"#;
        let both = format!(r#"{{"concat": [{address}, {PORT}]}}"#);
        // To the target itself, or elsewhere.
        let of = |to: &str| is(&range(4000), &format!(r#"{{"dnat": {{{to}}}}}"#));
        let own = r#""addr": "10.0.0.5""#;
        // Chains have the ports of the jumps to them.
        let to_b = |port: &str| is(port, r#"{"jump": {"target": "b"}}"#);
        let pair = r#"[{"range": [80, 81]}, {"goto": {"target": "b"}}]"#;
        let map = format!(r#"{{"vmap": {{"key": {PORT}, "data": {{"set": [{pair}]}}}}}}"#);
        let [in_b, of_81] = [format!("b {TO}"), format!("b {}", is("81", TO))];
        let udp = is("53", TO).replace("tcp", "udp");
        for (rules, claimed, free) in [
            (&[&*is("8080", TO)][..], &[8080][..], &[8081][..]),
            (&[&is(&format!(r#"{{"set": [5, {}]}}"#, range(8000)), TO)], &[8005], &[8010]),
            (&[&is("2222", r#"{"redirect": {"port": 22}}"#)], &[2222], &[22]),
            (&[&is("2222", r#"{"redirect": null}"#)], &[2222], &[22]),
            (&[&by_map(PORT, r#""@m""#)], &[80, 95], &[81]),
            (&[&by_map(PORT, r#"{"set": [[70, "10.0.0.3"]]}"#)], &[70], &[71]),
            (&[&by_map(&both, r#""@two""#)], &[70], &[71]),
            (&[&of(own)], &[], &[4000]),
            (&[&of(&format!(r#"{own}, "port": {}"#, range(4000)))], &[], &[4000]),
            (&[&of(&format!(r#"{own}, "port": 22"#))], &[4000], &[]),
            (&[&of(r#""addr": "10.0.0.6""#)], &[4000], &[]),
            (&[&of(r#""addr": {"range": ["10.0.0.5", "10.0.0.6"]}"#)], &[4000], &[]),
            (&[&to_b("80"), &in_b], &[80], &[79]),
            (&[&map, &in_b], &[80], &[79]),
            (&[&to_b("80"), &of_81], &[], &[80]),
            (&[&map, &of_81], &[], &[80]),
            // Two jumps, with some ports in common.
            (&[&to_b(&range(80)), &to_b(&range(85)), &in_b], &[80, 94], &[79, 95]),
            // A loop, which the kernel refuses.
            (
                &[r#"{"jump": {"target": "b"}}"#, r#"b {"jump": {"target": "c"}}"#, &in_b],
                &[],
                &[80],
            ),
            // Without a known port, and of another protocol.
            (&[TO], &[], &[80]),
            (&[&is(r#""@dynamic""#, TO)], &[], &[80]),
            (&[&udp], &[], &[53]),
        ] {
            assert_claims(&nftables(rules), claimed, free);
        }
    }

    #[test]
    fn ports_translated_by_iptables_are_claimed() {
        for (rule, claimed, free) in [
            ("-p tcp --dport 80 -j DNAT --to-destination 10.0.0.9:8080", &[80][..], 8080),
            ("-p tcp -m multiport --dports 80,90:99 -j DNAT --to-destination 10.0.0.9", &[95], 81),
            ("-p tcp --dport 80 -j REDIRECT --to-ports 22", &[80], 22),
            ("-p tcp --dport 80 -j X\n-A X -j DNAT --to-destination 10.0.0.9", &[80], 81),
            ("-p tcp --dport 4000:4009 -j DNAT --to-destination 10.0.0.5", &[], 4000),
            ("-p udp --dport 53 -j DNAT --to-destination 10.0.0.9", &[], 53),
        ] {
            assert_claims(&saved("PREROUTING", rule), claimed, &[free]);
        }
    }

    #[test]
    fn sets_of_source_ports_are_found() {
        let masquerade = r#"{"masquerade": {"port": {"range": [40960, 41023]}}}"#;
        let snat = r#"{"snat": {"addr": "198.51.100.1", "port": {"range": [2048, 3071]}}}"#;
        for (rules, sets) in [
            (&[snat, masquerade, snat][..], &[2048..=3071, 40960..=41023][..]),
            (&[r#"{"masquerade": null}"#, r#"{"snat": {"addr": "1.2.3.4"}}"#], &[]),
        ] {
            let firewall = Firewall::from_nft_chain("inet nat postrouting 100 accept", rules);
            assert_eq!(firewall.source_ports(), sets);
        }
        for (rule, set) in [
            ("-o wan -p tcp -j MASQUERADE --to-ports 40960-41023", Some(40960..=41023)),
            ("-s 10.0.0.0/8 -p tcp -j SNAT --to-source 198.51.100.1:2048-3071", Some(2048..=3071)),
            ("-p tcp -j MASQUERADE --to-ports 1000-2000 --random", Some(1024..=2000)),
            // No set, other connections, or a single service.
            ("-o wan -j MASQUERADE", None),
            ("-j SNAT --to-source 198.51.100.1-198.51.100.9", None),
            ("-p tcp -j MASQUERADE --to-ports 1024-65535", None),
            ("-p udp -j MASQUERADE --to-ports 40960-41023", None),
            ("-p tcp -j MASQUERADE --to-ports 5060-5061", None),
            ("-p tcp --dport 80 -j X\n-A X -p tcp -j MASQUERADE --to-ports 40960-41023", None),
        ] {
            assert_eq!(saved("POSTROUTING", rule).source_ports(), set.as_slice(), "{rule}");
        }
    }
}
