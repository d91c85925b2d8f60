//! Finds rules that hide control connections from `ftp-alg`, and that packets of control connections may reach.
//!
//! There are three kinds of such rules:
//! - A `notrack` rule takes connections out of connection tracking. Then the gateway cannot see their translation, and
//!   rules cannot accept their packets by state. One for SYNs alone belongs to SYNPROXY, and does no harm.
//! - A rule puts connections into a conntrack zone. Our rules inspect only zones that rules named at the start.
//! - A `flow add` rule hands connections to a flowtable, which bypasses all chains.

use super::{
    ConflictingRule, Gateway, Ruleset,
    connection::Connection,
    model::{Hook, IpVersion, Table},
};

/// The rules that may hide a control connection, each once.
pub(crate) fn conflicts_with_control<'a>(
    rules: &'a Ruleset,
    gateway: &'a Gateway,
) -> Vec<&'a ConflictingRule> {
    let mut found = Vec::new();
    if rules.tables.iter().flat_map(Table::rules).all(|rule| rule.conflict.is_none()) {
        return found;
    }
    for (hook, ip) in
        Hook::FILTERS.into_iter().flat_map(|hook| IpVersion::BOTH.map(|ip| (hook, ip)))
    {
        for &port in &gateway.control_ports {
            let way = Connection::control(hook, ip, port).follow(rules, gateway);
            for conflict in way.conflicts {
                if !found.contains(&conflict) {
                    found.push(conflict);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::{
        ConflictKind, Firewall,
        rules_for_tests::{ZONES, nftables},
    };
    use super::*;

    fn untracked(firewall: &Firewall) -> Vec<(&str, &str)> {
        let conflicts = conflicts_with_control(&firewall.ruleset, &firewall.gateway).into_iter();
        conflicts
            .inspect(|conflict| assert_eq!(conflict.kind, ConflictKind::Untracked))
            .map(|conflict| (conflict.rule.as_str(), conflict.remedy.as_deref().unwrap()))
            .collect()
    }

    fn iptables(rules: &str) -> Firewall {
        let text = format!("*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n");
        Firewall::from_iptables(&text)
    }

    #[test]
    fn only_rules_that_control_packets_may_reach_are_found() {
        let firewall = nftables(ZONES);
        assert_eq!(
            untracked(&firewall),
            [
                ("tcp dport 20-25 notrack", "nft delete rule inet zones prerouting handle 10"),
                ("notrack", "nft delete rule inet zones bypass handle 14"),
            ]
        );
    }

    #[test]
    fn iptables_notrack_rules_are_found_with_their_delete_command() {
        for rule in [
            "PREROUTING -p tcp -m tcp --dport 21 -j NOTRACK",
            "OUTPUT -p tcp -m tcp --sport 21 -j CT --notrack",
            "PREROUTING -i eth0 -j CT --notrack",
        ] {
            let text = format!("-A {rule}");
            let remedy = format!("iptables-legacy -t raw -D {rule}");
            let firewall = iptables(&format!("{text}\n"));
            assert_eq!(untracked(&firewall), [(text.as_str(), remedy.as_str())]);
        }
    }

    #[test]
    fn rules_for_other_packets_are_ignored() {
        for rules in [
            "-A PREROUTING -p udp -m udp --dport 53 -j NOTRACK\n",
            "-A PREROUTING -p tcp -m tcp --dport 80 -j CT --notrack\n",
            "-A PREROUTING -i lo -j CT --notrack\n",
            "-A PREROUTING -j CT --zone 0\n",
            // SYNPROXY.
            "-A PREROUTING -p tcp -m tcp --dport 21 --tcp-flags FIN,SYN,RST,ACK SYN -j CT --notrack\n",
            // Packets that ftp-alg injects.
            "-A OUTPUT -m mark --mark 0x70000000 -j CT --notrack\n",
            // FTP packets do not reach the second rule.
            "-A PREROUTING -p tcp -m multiport --ports 21 -j ACCEPT\n\
             -A PREROUTING -j CT --notrack\n",
            ":X - [0:0]\n-A PREROUTING -p tcp -m multiport ! --ports 21 -j X\n-A X -j CT --notrack\n",
        ] {
            assert_eq!(untracked(&iptables(rules)), [], "{rules}");
        }
    }

    #[test]
    fn rules_that_set_a_zone_are_found() {
        for (rule, zone) in [
            ("-j CT --zone 1", Some(1)),
            ("-i eth0 -j CT --zone-orig 7", Some(7)),
            ("-j CT --zone mark", None),
        ] {
            let firewall = iptables(&format!("-A PREROUTING {rule}\n"));
            let found = conflicts_with_control(&firewall.ruleset, &firewall.gateway);
            assert_eq!(
                found.iter().map(|found| found.kind).collect::<Vec<_>>(),
                [ConflictKind::Zone(zone)]
            );
            assert_eq!(firewall.zones(), zone.as_slice());
        }
        let rule = r#"{"mangle": {"key": {"ct": {"key": "zone"}}, "value": 7}}"#;
        let firewall = Firewall::from_nft_chain("ip filter prerouting -300 accept", &[rule]);
        let found = conflicts_with_control(&firewall.ruleset, &firewall.gateway);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].kind, ConflictKind::Zone(Some(7)));
    }

    #[test]
    fn many_jumps_to_the_same_chains_terminate() {
        let rules: String = (0..60)
            .map(|n| format!("-A c{n} -j c{m}\n-A c{n} -j c{m}\n", m = n + 1))
            .collect::<String>()
            + "-A c60 -j c1\n-A c60 -j NOTRACK\n";
        let chains: String = (0..=60).map(|n| format!(":c{n} - [0:0]\n")).collect();
        let firewall = iptables(&format!("{chains}-A PREROUTING -j c0\n{rules}"));
        assert_eq!(untracked(&firewall).len(), 1);
    }
}
