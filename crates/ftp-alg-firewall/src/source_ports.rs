//! Finds the ports to which the operator's rules translate source ports. Some providers share an address among
//! customers, and forward only a set of ports to each (MAP-T, MAP-E, CGNAT).

use std::ops::RangeInclusive;

use super::{
    IpVersion, Ruleset,
    model::Rule,
    translated_ports::{callers, destination_ports, ports_into},
};

/// The width of the smallest set. A rule with fewer ports is for one service.
const MIN_WIDTH: u16 = 16;

/// The different ranges in the rules that translate IPv4 connections to any port. A range of all ports from 1024 on is
/// no restriction.
pub(crate) fn from_ruleset(rules: &Ruleset) -> Vec<RangeInclusive<u16>> {
    let mut found = Vec::new();
    for table in rules.tables.iter().filter(|table| table.family.sees(IpVersion::V4)) {
        let callers = callers(table);
        for (name, chain) in &table.chains {
            let sets = chain.rules.iter().filter_map(source_ports);
            found.extend(sets.filter(|_| ports_into(&callers, name).is_none()));
        }
    }
    found.sort_unstable_by_key(|range| range.clone().into_inner());
    found.dedup();
    found
}

fn source_ports(rule: &Rule) -> Option<RangeInclusive<u16>> {
    let (first, last) = rule.source_ports?;
    let first = first.max(1024);
    let is_set = last.saturating_sub(first) >= MIN_WIDTH - 1 && (first, last) != (1024, u16::MAX);
    let is_for_any_port = destination_ports(&rule.conditions) == Some(None);
    (is_set && is_for_any_port).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::super::Firewall;

    fn saved(rules: &str) -> Vec<std::ops::RangeInclusive<u16>> {
        let text = format!("*nat\n:POSTROUTING ACCEPT [0:0]\n{rules}\nCOMMIT\n");
        Firewall::from_iptables(&text).source_ports()
    }

    fn listed(rules: &[&str]) -> Vec<std::ops::RangeInclusive<u16>> {
        Firewall::from_nft_chain("inet nat postrouting 100 accept", rules).source_ports()
    }

    #[test]
    fn sets_of_ports_are_found() {
        const SET: &str = r#"{"port": {"range": [40960, 41023]}}"#;
        let masquerade = format!(r#"{{"masquerade": {SET}}}"#);
        let snat = r#"{"snat": {"addr": "198.51.100.1", "port": {"range": [2048, 3071]}}}"#;
        assert_eq!(listed(&[&masquerade]), [40960..=41023]);
        assert_eq!(listed(&[snat, &masquerade, snat]), [2048..=3071, 40960..=41023]);
        for (rule, set) in [
            ("-A POSTROUTING -o wan -p tcp -j MASQUERADE --to-ports 40960-41023", 40960..=41023),
            (
                "-A POSTROUTING -s 10.0.0.0/8 -p tcp -j SNAT --to-source 198.51.100.1:2048-3071",
                2048..=3071,
            ),
            ("-A POSTROUTING -p tcp -j MASQUERADE --to-ports 1000-2000 --random", 1024..=2000),
        ] {
            assert_eq!(saved(rule), [set], "{rule}");
        }
    }

    #[test]
    fn other_rules_name_no_set() {
        assert_eq!(listed(&[r#"{"masquerade": null}"#, r#"{"snat": {"addr": "1.2.3.4"}}"#]), []);
        for rule in [
            "-A POSTROUTING -o wan -j MASQUERADE",
            "-A POSTROUTING -j SNAT --to-source 198.51.100.1-198.51.100.9",
            "-A POSTROUTING -p tcp -j MASQUERADE --to-ports 1024-65535",
            "-A POSTROUTING -p udp -j MASQUERADE --to-ports 40960-41023",
            "-A POSTROUTING -p tcp -m tcp --dport 5060 -j MASQUERADE --to-ports 40960-41023",
            "-A POSTROUTING -p tcp -j MASQUERADE --to-ports 5060-5061",
            ":X - [0:0]\n-A POSTROUTING -p tcp -m tcp --dport 80 -j X\n-A X -p tcp -j MASQUERADE --to-ports 40960-41023",
        ] {
            assert_eq!(saved(rule), [], "{rule}");
        }
    }
}
