//! Finds rules that may overwrite the packet mark of the fast path before our table reads it. The fast path sets this
//! mark on the first packet of a data connection, and our table admits the connection by it.

use super::{
    Ruleset,
    model::{BaseChain, Hook, IpVersion, Origin, Table},
    sample_packets::fast_path_first_packet,
    traversal::{self, base_chains},
    xtables,
};
use crate::gateway::RuleParameters;

/// The priority at which our table reads the mark. The kernel runs all destination NAT chains at this priority,
/// whatever their own priority is.
const MARK_READ_PRIORITY: i32 = -100;

/// A rule that changes packet marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkChange {
    /// The chain of the rule, as in `inet filter prerouting`.
    pub chain: String,
    pub rule: String,
    /// Whether the rule applies to every such packet, so that it has no condition on addresses or interfaces.
    pub is_unconditional: bool,
}

impl std::fmt::Display for MarkChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` in {}", self.rule, self.chain)
    }
}

/// The rules that may overwrite the mark, each once.
pub(super) fn packet_mark_changes(rules: &Ruleset, parameters: &RuleParameters) -> Vec<MarkChange> {
    let packet = fast_path_first_packet(parameters, rules.changed_mark_bits);
    let bits = parameters.mask() | parameters.slot_mask();
    let mut found: Vec<MarkChange> = Vec::new();
    for table in rules.tables.iter().filter(|table| table.family.sees(IpVersion::V4)) {
        let before =
            |base: BaseChain| base.hook == Hook::Prerouting && base.priority < MARK_READ_PRIORITY;
        for (name, _) in base_chains(table).filter(|(_, base)| before(*base)) {
            for marking_rule in traversal::marking_rules(table, name, &packet) {
                if marking_rule.rule.changed_mark_bits & bits == 0 {
                    continue;
                }
                let (chain, rule) =
                    (chain_name(table, marking_rule.chain), marking_rule.rule.text.clone());
                match found.iter_mut().find(|one| (&one.chain, &one.rule) == (&chain, &rule)) {
                    Some(known) => known.is_unconditional |= marking_rule.by_default,
                    None => found.push(MarkChange {
                        chain,
                        rule,
                        is_unconditional: marking_rule.by_default,
                    }),
                }
            }
        }
    }
    found
}

fn chain_name(table: &Table, chain: &str) -> String {
    match table.origin {
        Origin::Nftables => format!("{} {} {chain}", table.family, table.name),
        origin => format!("{} {} {chain}", xtables::program(origin, IpVersion::V4), table.name),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Firewall;
    use super::*;

    /// Each rule that is found, and whether it is unconditional.
    fn found(firewall: &Firewall) -> Vec<(String, bool)> {
        let changes = firewall.packet_mark_changes(&RuleParameters::default());
        changes.into_iter().map(|change| (change.to_string(), change.is_unconditional)).collect()
    }

    fn iptables(rules: &str) -> Vec<(String, bool)> {
        let mut firewall = Firewall::default();
        let text = format!(
            "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:own - [0:0]\n{rules}COMMIT\n"
        );
        firewall.add_iptables_save(Origin::IptablesLegacy, IpVersion::V4, &text);
        found(&firewall)
    }

    #[test]
    fn rules_that_may_overwrite_the_mark_are_found() {
        for (rule, to_all) in [
            ("-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff", true),
            (
                "-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
                true,
            ),
            (
                "-A PREROUTING -p tcp -m conntrack --ctstate NEW -j MARK --set-xmark 0x1/0xffffffff",
                true,
            ),
            ("-A PREROUTING -i wan0 -j MARK --set-xmark 0x1/0xffffffff", false),
            ("-A PREROUTING -s 10.0.0.0/8 -j MARK --set-xmark 0x0/0x40000000", false),
            // The bits with the number of a translation.
            ("-A PREROUTING -j MARK --set-xmark 0x80000000/0x80000000", true),
        ] {
            let named = (format!("`{rule}` in iptables-legacy mangle PREROUTING"), to_all);
            assert_eq!(iptables(&format!("{rule}\n")), [named], "{rule}");
        }
    }

    #[test]
    fn other_packets_bits_and_hooks_do_not_matter() {
        for rules in [
            "-A PREROUTING -j MARK --set-xmark 0x1/0xff\n",
            "-A PREROUTING -p udp -j MARK --set-xmark 0x1/0xffffffff\n",
            "-A PREROUTING -i lo -j MARK --set-xmark 0x1/0xffffffff\n",
            "-A PREROUTING -p tcp -m tcp --dport 22 -j MARK --set-xmark 0x1/0xffffffff\n",
            "-A PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j CONNMARK --restore-mark \
             --nfmask 0xffffffff --ctmask 0xffffffff\n",
            // The marked packet does not reach the second rule.
            "-A PREROUTING -m mark ! --mark 0x0 -j ACCEPT\n-A PREROUTING -j MARK --set-mark 1\n",
            "-A PREROUTING -m mark --mark 0x0 -j MARK --set-xmark 0x1/0xffffffff\n",
            "-A FORWARD -j MARK --set-xmark 0x1/0xffffffff\n",
            "-A own -j MARK --set-xmark 0x1/0xffffffff\n",
        ] {
            assert_eq!(iptables(rules), [], "{rules}");
        }
    }

    #[test]
    fn conditions_of_jumps_to_a_rule_count() {
        let mark = "-A own -j MARK --set-xmark 0x1/0xffffffff\n";
        let all = |rules: &str| iptables(&format!("{rules}\n{mark}")).iter().all(|one| one.1);
        assert!(all("-A PREROUTING -j own"));
        assert!(!all("-A PREROUTING -i wan0 -j own"));
        assert!(all("-A PREROUTING -i wan0 -j RETURN\n-A PREROUTING -j own"));
    }

    #[test]
    fn nftables_chains_count_by_priority() {
        let table = |kind: &str, hook: &str, priority: i32, value: &str| {
            let json = format!(
                r#"{{"nftables": [{{"table": {{"family": "inet", "name": "own"}}}},
                {{"chain": {{"family": "inet", "table": "own", "name": "c", "type": "{kind}",
                  "hook": "{hook}", "prio": {priority}, "policy": "accept"}}}},
                {{"rule": {{"family": "inet", "table": "own", "chain": "c", "handle": 3, "expr": [
                  {{"mangle": {{"key": {{"meta": {{"key": "mark"}}}}, "value": {value}}}}}]}}}}]}}"#
            );
            found(&Firewall::from_nft(&json, "").unwrap())
        };
        let named = [("`rule with handle 3` in inet own c".to_owned(), true)];
        assert_eq!(table("filter", "prerouting", -150, "1"), named);
        assert_eq!(table("filter", "prerouting", -300, "1"), named);
        assert_eq!(table("filter", "prerouting", 0, "1"), []);
        assert_eq!(table("filter", "forward", -150, "1"), []);
        let or = r#"{"|": [{"&": [{"meta": {"key": "mark"}}, 4294967040]}, 1]}"#;
        assert_eq!(table("filter", "prerouting", -150, or), []);
    }
}
