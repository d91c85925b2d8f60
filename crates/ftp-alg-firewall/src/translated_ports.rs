//! Finds the ports that the operator's rules translate to another destination. A data connection must not use such a
//! port, because it would take the place of a published service.
//!
//! Only the destination port of a rule counts. Other conditions (addresses, interfaces, marks) are ignored, so the
//! result has rather too many ports than too few. A rule without a known port claims no port; it is reported.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    IpVersion, Ruleset,
    model::{Certainty, Comparison, Condition, Field, FieldValue, Rule, RuleVerdict, Table},
};

/// How many jumps are followed from a rule back to a base chain.
const MAX_DEPTH: usize = 16;
/// How many rules without a known port are reported.
const MAX_NAMED: usize = 4;
const TCP: u32 = 6;

/// Inclusive port ranges; `None` stands for every port.
pub(crate) type PortRanges = Option<Vec<(u16, u16)>>;

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

/// The ports that the operator's rules translate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TranslatedPorts {
    /// The claimed ports, each with its destination.
    pub claims: Vec<PortClaim>,
    /// The first few rules whose ports are not known. They may translate every port, but claim none.
    pub unlimited_rules: Vec<String>,
}

impl TranslatedPorts {
    pub(crate) fn from_ruleset(rules: &Ruleset) -> Self {
        let mut found = Self::default();
        for table in &rules.tables {
            let callers = callers(table);
            for (name, chain) in &table.chains {
                for rule in &chain.rules {
                    let Some(diversion) = rule.destination_nat else { continue };
                    let Some(own_ports) = destination_ports(&rule.conditions) else { continue };
                    let way = ports_into(&callers, name);
                    let sees = |ip| table.family.sees(ip);
                    match intersection(&own_ports, &way) {
                        Some(ports) if ports.is_empty() => {}
                        Some(ports) => found.claims.push(PortClaim {
                            v4: sees(IpVersion::V4),
                            v6: sees(IpVersion::V6),
                            ports,
                            target: diversion.address,
                            target_ports: diversion.ports,
                        }),
                        None if found.unlimited_rules.len() < MAX_NAMED => {
                            found.unlimited_rules.push(rule.text.clone());
                        }
                        None => {}
                    }
                }
            }
        }
        found
    }
}

/// For each chain the chains that jump to it, with the ports of the jump.
pub(crate) type Callers<'a> = HashMap<&'a str, Vec<(&'a str, PortRanges)>>;

pub(crate) fn callers(table: &Table) -> Callers<'_> {
    let mut callers = Callers::new();
    for (name, chain) in &table.chains {
        for Rule { conditions, action, .. } in &chain.rules {
            let Some(own_ports) = destination_ports(conditions) else { continue };
            let mut enter = |to: &'_ RuleVerdict, more: PortRanges| {
                if let RuleVerdict::Jump(target) | RuleVerdict::Goto(target) = to
                    && let Some((target, _)) = table.chains.get_key_value(target)
                {
                    callers
                        .entry(target)
                        .or_default()
                        .push((name, intersection(&own_ports, &more)));
                }
            };
            match action {
                RuleVerdict::Map(elements) => {
                    for (key, action) in elements {
                        if let Some(more) = destination_ports(std::slice::from_ref(key)) {
                            enter(action, more);
                        }
                    }
                }
                other => enter(other, None),
            }
        }
    }
    callers
}

/// The ports of the packets that reach `chain`.
pub(crate) fn ports_into<'a>(callers: &Callers<'a>, chain: &'a str) -> PortRanges {
    ports_into_chain(callers, chain, &mut HashSet::new(), MAX_DEPTH)
}

fn ports_into_chain<'a>(
    callers: &Callers<'a>,
    chain: &'a str,
    above: &mut HashSet<&'a str>,
    depth: usize,
) -> PortRanges {
    // A chain without callers is a base chain, or unused.
    let entered = callers.get(chain)?;
    if depth == 0 {
        return None;
    }
    let mut all = Vec::new();
    if above.insert(chain) {
        for (from, ports) in entered {
            all.extend(intersection(ports, &ports_into_chain(callers, from, above, depth - 1))?);
        }
        above.remove(chain);
    }
    Some(all)
}

/// The TCP ports for which `conditions` may hold; `None` if they never hold for TCP.
pub(crate) fn destination_ports(conditions: &[Condition]) -> Option<PortRanges> {
    let mut ports = None;
    for condition in conditions {
        match condition {
            Condition::Any(one) if one.is_empty() => return None,
            Condition::Compare(test)
                if test.field == Field::Protocol
                    && test.holds(FieldValue::exactly(TCP)) == Certainty::No =>
            {
                return None;
            }
            Condition::Compare(Comparison {
                field: Field::DestinationPort,
                mask: u32::MAX,
                ranges,
                negated: false,
            }) => {
                let port = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
                let these = ranges.iter().map(|&(first, last)| (port(first), port(last))).collect();
                ports = intersection(&ports, &Some(these));
            }
            _ => {}
        }
    }
    Some(ports)
}

/// The ports that are in both.
fn intersection(one: &PortRanges, other: &PortRanges) -> PortRanges {
    let (Some(one), Some(other)) = (one, other) else {
        return one.clone().or_else(|| other.clone());
    };
    let pairs = one.iter().flat_map(|a| other.iter().map(move |b| (a.0.max(b.0), a.1.min(b.1))));
    Some(pairs.filter(|(first, last)| first <= last).collect())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Firewall,
            rules_for_tests::{self, PORT, nft_json},
        },
        *,
    };

    fn claims(firewall: &Firewall, port: u16) -> bool {
        let target = "10.0.0.5:4000".parse().unwrap();
        let arrival = SocketAddr::new("203.0.113.1".parse().unwrap(), port);
        firewall.translated_ports().claims.iter().any(|claim| claim.diverts(arrival, target))
    }

    fn nftables(rules: &[&str]) -> Firewall {
        let more = r#"{"map": {"family": "ip", "name": "m", "table": "t", "type": "inet_service",
              "map": "ipv4_addr", "elem": [[80, "10.0.0.1"], [{"range": [90, 99]}, "10.0.0.2"]]}},
            {"map": {"family": "ip", "name": "two", "table": "t",
              "elem": [[{"concat": ["1.2.3.4", 70]}, "10.0.0.1"]]}},
            {"chain": {"family": "ip", "table": "t", "name": "b", "handle": 2}},"#;
        let json = nft_json("ip nat prerouting -100 accept", more, "c", rules);
        Firewall::from_nft(&json, "").unwrap()
    }

    fn is(port: &str) -> String {
        rules_for_tests::is("==", PORT, port)
    }

    fn saved(rules: &str) -> Firewall {
        let text = format!("*nat\n:PREROUTING ACCEPT [0:0]\n:WEB - [0:0]\n{rules}COMMIT\n");
        Firewall::from_iptables(&text)
    }

    #[test]
    fn ports_translated_by_nftables_are_claimed() {
        let to = r#"{"dnat": {"addr": "10.0.0.9", "port": 80}}"#;
        for (rule, claimed, free) in [
            (format!("{}, {to}", is("8080")), 8080, 8081),
            (format!("{}, {to}", is(r#"{"set": [5, {"range": [8000, 8010]}]}"#)), 8005, 8011),
            (format!(r#"{}, {{"redirect": {{"port": 22}}}}"#, is("2222")), 2222, 22),
            (format!(r#"{}, {{"redirect": null}}"#, is("2222")), 2222, 22),
            (
                format!(r#"{{"dnat": {{"addr": {{"map": {{"key": {PORT}, "data": "@m"}}}}}}}}"#),
                95,
                81,
            ),
            (
                format!(
                    r#"{{"dnat": {{"addr": {{"map": {{"key": {PORT}, "data": {{"set": [[70, "10.0.0.3"]]}}}}}}}}}}"#
                ),
                70,
                71,
            ),
            (
                format!(
                    r#"{{"dnat": {{"addr": {{"map": {{"key": {{"concat": [{{"payload": {{"protocol": "ip",
                    "field": "daddr"}}}}, {PORT}]}}, "data": "@two"}}}}}}}}"#
                ),
                70,
                71,
            ),
        ] {
            let firewall = nftables(&[&rule]);
            assert!(claims(&firewall, claimed) && !claims(&firewall, free), "{rule}");
            assert!(firewall.translated_ports().unlimited_rules.is_empty(), "{rule}");
        }
    }

    #[test]
    fn translation_to_the_target_itself_claims_nothing() {
        let rule =
            |to: &str| format!(r#"{}, {{"dnat": {{{to}}}}}"#, is(r#"{"range": [4000, 4009]}"#));
        for (to, claimed) in [
            (r#""addr": "10.0.0.5""#, false),
            (r#""addr": "10.0.0.5", "port": 4000"#, false),
            (r#""addr": "10.0.0.5", "port": {"range": [4000, 4009]}"#, false),
            (r#""addr": "10.0.0.5", "port": 22"#, true),
            (r#""addr": "10.0.0.6""#, true),
            (r#""addr": {"range": ["10.0.0.5", "10.0.0.6"]}"#, true),
        ] {
            assert_eq!(claims(&nftables(&[&rule(to)]), 4000), claimed, "{to}");
        }
    }

    #[test]
    fn chain_has_the_ports_of_the_jumps_to_it() {
        let to = r#"{"dnat": {"addr": "10.0.0.9"}}"#;
        let jump = format!(r#"{}, {{"jump": {{"target": "b"}}}}"#, is("80"));
        let map = format!(
            r#"{{"vmap": {{"key": {PORT}, "data": {{"set": [[{{"range": [80, 81]}}, {{"goto": {{"target": "b"}}}}]]}}}}}}"#
        );
        for way in [jump, map] {
            let firewall = nftables(&[&way, &format!("b {to}")]);
            assert!(claims(&firewall, 80) && !claims(&firewall, 79), "{way}");
            let narrower = nftables(&[&way, &format!("b {}, {to}", is("81"))]);
            assert!(!claims(&narrower, 80), "{way}");
        }
    }

    #[test]
    fn rule_without_known_port_is_reported_and_claims_nothing() {
        let to = r#"{"dnat": {"addr": "10.0.0.9"}}"#;
        let unknown = format!(r#"{}, {to}"#, is(r#""@dynamic""#));
        for rule in [to.to_owned(), unknown] {
            let firewall = nftables(&[&rule]);
            assert!(!claims(&firewall, 80), "{rule}");
            assert_eq!(firewall.translated_ports().unlimited_rules.len(), 1, "{rule}");
        }
        let udp = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}},
            "right": 53}}, {"dnat": {"addr": "10.0.0.9"}}"#;
        assert_eq!(nftables(&[udp]).translated_ports(), TranslatedPorts::default());
    }

    #[test]
    fn ports_translated_by_iptables_are_claimed() {
        for (rule, claimed, free) in [
            (
                "-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.9:8080\n",
                80,
                8080,
            ),
            (
                "-A PREROUTING -p tcp -m multiport --dports 80,90:99 -j DNAT --to-destination 10.0.0.9\n",
                95,
                81,
            ),
            ("-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 22\n", 80, 22),
            (
                "-A PREROUTING -p tcp -m tcp --dport 80 -j WEB\n-A WEB -j DNAT --to-destination 10.0.0.9\n",
                80,
                81,
            ),
        ] {
            let firewall = saved(rule);
            assert!(claims(&firewall, claimed) && !claims(&firewall, free), "{rule}");
        }
        let own_ports =
            "-A PREROUTING -p tcp -m tcp --dport 4000:4009 -j DNAT --to-destination 10.0.0.5\n";
        assert!(!claims(&saved(own_ports), 4000));
        let udp = "-A PREROUTING -p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.9\n";
        assert_eq!(saved(udp).translated_ports(), TranslatedPorts::default());
    }

    #[test]
    fn mutually_recursive_chains_terminate() {
        let there = r#"{"jump": {"target": "b"}}"#;
        let back = r#"b {"jump": {"target": "c"}}"#;
        let to = r#"b {"dnat": {"addr": "10.0.0.9"}}"#;
        assert!(!claims(&nftables(&[there, back, to]), 80));
    }
}
