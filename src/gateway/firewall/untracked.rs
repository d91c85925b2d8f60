//! Rules that take control connections out of connection tracking. Without that there is no
//! translation to follow, and no state to accept packets by.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Concern, Rules,
    model::{Action, Chain, Hook, Ip, Packet, Rule, Table, Tri, all},
    probe::Connection,
};
use crate::gateway::RuleParameters;

/// How deep jumps are followed.
const MAX_DEPTH: usize = 64;

/// The rules that may do so to some control connection, each once.
pub(super) fn concerns<'a>(rules: &'a Rules, parameters: &RuleParameters) -> Vec<&'a Concern> {
    let mut found = Vec::new();
    for table in &rules.tables {
        let rules_of = |chain: &'a Chain| chain.rules.iter();
        if table.chains.values().flat_map(rules_of).all(|rule| rule.notrack.is_none()) {
            continue;
        }
        let entered: BTreeSet<&str> =
            table.chains.values().flat_map(rules_of).flat_map(targets).collect();
        for hook in Hook::ALL {
            for ip in Ip::BOTH.into_iter().filter(|ip| table.family.sees(*ip)) {
                for &port in parameters.control_ports() {
                    let connection = Connection { hook, ip, port, from: None, to: None };
                    for packet in connection.packets(parameters, rules.changes) {
                        let done = BTreeMap::new();
                        let mut walk = Walk { table, packet, done, found: &mut found };
                        // A chain that no rule leads to sees packets by itself, or never.
                        for name in table.chains.keys() {
                            if !entered.contains(name.as_str()) {
                                walk.chain(name, 0);
                            }
                        }
                    }
                }
            }
        }
    }
    found
}

/// The chains that a rule leads to.
fn targets(rule: &Rule) -> Vec<&str> {
    let target = |action| match action {
        &Action::Jump(ref target) | &Action::Goto(ref target) => Some(target.as_str()),
        _ => None,
    };
    match &rule.action {
        Action::Map(elements) => elements.iter().filter_map(|(_, action)| target(action)).collect(),
        action => target(action).into_iter().collect(),
    }
}

/// One packet's way.
struct Walk<'a, 'f> {
    table: &'a Table,
    packet: Packet<'static>,
    /// Whether it comes back from a chain; it does from one that is being walked, which is a loop.
    done: BTreeMap<&'a str, bool>,
    found: &'f mut Vec<&'a Concern>,
}

impl<'a> Walk<'a, '_> {
    /// Follows the packet through a chain. Whether it may come out at the end.
    fn chain(&mut self, name: &'a str, depth: usize) -> bool {
        if let Some(comes_back) = self.done.get(name) {
            return *comes_back;
        }
        self.done.insert(name, true);
        let comes_back = self.rules(name, depth);
        self.done.insert(name, comes_back);
        comes_back
    }

    fn rules(&mut self, name: &str, depth: usize) -> bool {
        let Some(chain) = self.table.chains.get(name).filter(|_| depth < MAX_DEPTH) else {
            return true;
        };
        let mut comes_back = false;
        for rule in &chain.rules {
            let applies = rule.applies(&self.packet);
            if applies == Tri::No {
                continue;
            }
            if let Some(concern) = rule.notrack.as_deref()
                && !self.found.contains(&concern)
            {
                self.found.push(concern);
            }
            let (goes_on, returns) = self.action(&rule.action, depth);
            comes_back |= returns;
            if applies == Tri::Yes && !goes_on {
                return comes_back;
            }
        }
        true
    }

    /// Whether the packet may go on to the next rule, and whether it may leave the chain alive.
    fn action(&mut self, action: &'a Action, depth: usize) -> (bool, bool) {
        match action {
            Action::Accept | Action::Drop => (false, false),
            Action::Return => (false, true),
            Action::Jump(target) => (self.chain(target, depth + 1), false),
            Action::Goto(target) => (false, self.chain(target, depth + 1)),
            Action::Map(elements) => {
                let mut ways = (true, false);
                for (key, action) in elements {
                    match all(std::slice::from_ref(key), &self.packet) {
                        Tri::No => {}
                        Tri::Maybe => ways.1 |= self.action(action, depth).1,
                        // Keys exclude each other.
                        Tri::Yes => return self.action(action, depth),
                    }
                }
                ways
            }
            Action::Queue | Action::Continue | Action::Unknown => (true, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConcernKind, Firewall, Origin};
    use super::*;

    fn untracked(firewall: &Firewall) -> Vec<(&str, &str)> {
        let parameters = RuleParameters::default();
        let concerns = concerns(&firewall.rules, &parameters).into_iter();
        concerns
            .inspect(|concern| assert_eq!(concern.kind, ConcernKind::Untracked))
            .map(|concern| (concern.rule.as_str(), concern.remedy.as_deref().unwrap()))
            .collect()
    }

    fn iptables(rules: &str) -> Firewall {
        let mut firewall = Firewall::default();
        let text = format!("*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n");
        firewall.add_saved(Origin::IptablesLegacy, Ip::V4, &text);
        firewall
    }

    #[test]
    fn only_rules_that_control_packets_may_come_to_are_named() {
        let (json, listing) =
            (include_str!("samples/zones.json"), include_str!("samples/zones.txt"));
        let firewall = Firewall::of_nft(json, listing).unwrap();
        assert_eq!(
            untracked(&firewall),
            [
                ("tcp dport 20-25 notrack", "nft delete rule inet zones prerouting handle 10"),
                ("notrack", "nft delete rule inet zones bypass handle 14"),
            ]
        );
    }

    #[test]
    fn both_targets_of_iptables_are_named_with_the_command_that_ends_them() {
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
    fn rules_for_other_packets_are_left_alone() {
        for rules in [
            "-A PREROUTING -p udp -m udp --dport 53 -j NOTRACK\n",
            "-A PREROUTING -p tcp -m tcp --dport 80 -j CT --notrack\n",
            "-A PREROUTING -i lo -j CT --notrack\n",
            "-A PREROUTING -j CT --zone 1\n",
            // What ftp-alg itself sends.
            "-A OUTPUT -m mark --mark 0x70000000 -j CT --notrack\n",
            // FTP has left before.
            "-A PREROUTING -p tcp -m multiport --ports 21 -j ACCEPT\n\
             -A PREROUTING -j CT --notrack\n",
            ":X - [0:0]\n-A PREROUTING -p tcp -m multiport ! --ports 21 -j X\n-A X -j CT --notrack\n",
        ] {
            assert_eq!(untracked(&iptables(rules)), [], "{rules}");
        }
    }

    #[test]
    fn chains_that_call_each_other_end() {
        let rules: String = (0..60)
            .map(|n| format!("-A c{n} -j c{m}\n-A c{n} -j c{m}\n", m = n + 1))
            .collect::<String>()
            + "-A c60 -j c1\n-A c60 -j NOTRACK\n";
        let chains: String = (0..=60).map(|n| format!(":c{n} - [0:0]\n")).collect();
        let firewall = iptables(&format!("{chains}-A PREROUTING -j c0\n{rules}"));
        assert_eq!(untracked(&firewall).len(), 1);
    }
}
