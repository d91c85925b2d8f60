//! Which verdict a packet meets in which chains.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    Firewall, PacketClass,
    model::{BaseChain, Field, Hook, IpVersion, Origin, TableFamily},
    sample_packets::first_packet,
};

fn rule(conditions: Vec<Condition>, action: RuleVerdict, text: &str) -> Rule {
    Rule { conditions, action, text: text.into(), ..Rule::default() }
}

fn table(chains: Vec<(&str, Vec<Rule>)>, drops: bool) -> Table {
    let mut all = BTreeMap::new();
    for (name, rules) in chains {
        let base = (name == "base").then_some(BaseChain {
            hook: Hook::Forward,
            priority: 0,
            is_nat: false,
            policy_drops: drops,
        });
        all.insert(name.to_owned(), Chain { base, rules });
    }
    let (origin, family) = (Origin::Nftables, TableFamily::Inet);
    Table { origin, family, name: "t".into(), has_owner: false, chains: all }
}

fn verdict(table: &Table) -> ChainVerdict {
    let chain = table.base_chains().next().unwrap();
    let packet = first_packet(Hook::Forward, IpVersion::V4);
    follow(chain, &packet, None).verdict(chain, false)
}

#[test]
fn rules_decide_in_their_order() {
    const SOME: &str = "-m limit --limit 3/s";
    let (drop, some) = ("FORWARD -j DROP", "X SOME -j ACCEPT");
    let queue = "FORWARD -j NFQUEUE";
    let several =
        "FORWARD -p udp -j DROP / FORWARD SOME -j DROP / FORWARD -j ACCEPT / FORWARD SOME -j DROP";
    for (policy, rules, passes, decided_by, exceptions) in [
        ("ACCEPT", "", true, None, &[][..]),
        ("DROP", "", false, None, &[]),
        // Conditions that cannot be decided make exceptions, unless a rule before them decides.
        ("DROP", several, true, Some("FORWARD -j ACCEPT"), &["FORWARD SOME -j DROP"]),
        // A jump returns, and a goto does not.
        ("ACCEPT", "FORWARD -j X / FORWARD -j DROP / X -j RETURN", false, Some(drop), &[]),
        ("ACCEPT", "FORWARD -g X / FORWARD -j DROP / X -j RETURN", true, None, &[]),
        ("ACCEPT", "FORWARD -j X / FORWARD -j DROP / X SOME -j ACCEPT", false, Some(drop), &[some]),
        // The reader of the queue may drop.
        ("DROP", queue, true, Some(queue), &[queue]),
        // Loops, which the kernel refuses.
        ("ACCEPT", "FORWARD -j X / X -j X", true, None, &[]),
    ] {
        let saved = |rule: &str| format!("-A {}", rule.replace("SOME", SOME));
        let rules_of = rules.split(" / ").filter(|rule| !rule.is_empty());
        let lines: Vec<String> = rules_of.map(saved).collect();
        let filter = format!(":FORWARD {policy}\n:X -\n{}", lines.join("\n"));
        let firewall = Firewall::from_iptables_tables(&[("filter", &filter)]);
        let verdict = firewall.forward(PacketClass::MarkedData).chains.swap_remove(0);
        assert_eq!((verdict.passes, verdict.decided_by.rule), (passes, decided_by.map(saved)));
        let found = verdict.exceptions.into_iter().filter_map(|one| one.rule);
        let exceptions: Vec<String> = exceptions.iter().copied().map(saved).collect();
        assert_eq!(found.collect::<Vec<_>>(), exceptions, "{rules}");
    }
}

#[test]
fn verdict_map_uses_the_matching_key() {
    let yes = Condition::field_in(Field::Protocol, u32::MAX, [(6, 6)]);
    let elements = |key: Condition| {
        RuleVerdict::Map(vec![(Condition::never(), RuleVerdict::Drop), (key, RuleVerdict::Accept)])
    };
    let one = |key| verdict(&table(vec![("base", vec![rule(vec![], elements(key), "map")])], true));
    assert!(one(yes).passes);
    let maybe = one(Condition::Unknown);
    assert!(!maybe.passes);
    assert_eq!(maybe.exceptions.len(), 1);
}

#[test]
fn unlimited_depth_terminates() {
    let names: Vec<String> = (0..100_000).map(|n| format!("c{n}")).collect();
    let mut chains = vec![("base", vec![rule(vec![], RuleVerdict::Jump("c0".into()), "x")])];
    for (n, name) in names.iter().enumerate() {
        chains.push((name, vec![rule(vec![], RuleVerdict::Jump(format!("c{}", n + 1)), "x")]));
    }
    assert!(verdict(&table(chains, false)).passes);
}

/// A naive evaluation for comparison: every undecidable condition has a fixed value, and rules run in order.
fn naive(table: &Table, name: &str, unknown: bool, depth: usize) -> Option<bool> {
    // A chain only jumps to later chains, so the recursion ends.
    assert!(depth < 10);
    for rule in &table.chains[name].rules {
        let holds = rule.conditions.iter().all(|condition| match condition {
            Condition::Unknown => unknown != (rule.text.len() % 2 == 0),
            Condition::Any(none) => !none.is_empty(),
            _ => true,
        });
        match &rule.action {
            _ if !holds => {}
            RuleVerdict::Accept => return Some(true),
            RuleVerdict::Drop => return Some(false),
            RuleVerdict::Return => return None,
            RuleVerdict::Goto(target) => return naive(table, target, unknown, depth + 1),
            RuleVerdict::Jump(target) => match naive(table, target, unknown, depth + 1) {
                None => {}
                decided => return decided,
            },
            _ => {}
        }
    }
    None
}

const CHAINS: [&str; 4] = ["base", "one", "two", "three"];

fn rules(chain: usize) -> impl Strategy<Value = Vec<Rule>> {
    let later: Vec<String> = CHAINS[chain + 1..].iter().map(|name| (*name).into()).collect();
    let mut actions =
        vec![RuleVerdict::Accept, RuleVerdict::Drop, RuleVerdict::Return, RuleVerdict::Continue];
    actions.extend(later.iter().cloned().map(RuleVerdict::Jump));
    actions.extend(later.into_iter().map(RuleVerdict::Goto));
    let yes = Condition::field_in(Field::Protocol, u32::MAX, [(6, 6)]);
    let conditions = vec![yes, Condition::never(), Condition::Unknown, Condition::Unknown];
    let one = (
        prop::collection::vec(prop::sample::select(conditions), 0..3),
        prop::sample::select(actions),
        0usize..4,
    );
    let one = one.prop_map(|(conditions, action, n)| rule(conditions, action, &"x".repeat(n)));
    prop::collection::vec(one, 0..5)
}

proptest! {
    #[test]
    fn verdict_without_exceptions_holds_for_all_conditions(
        base in rules(0), one in rules(1), two in rules(2), three in rules(3), drops: bool,
    ) {
        let all = [base, one, two, three];
        let mut table = table(CHAINS.into_iter().zip(all).collect(), drops);
        let verdict = verdict(&table);
        for unknown in [false, true] {
            let passes = naive(&table, "base", unknown, 0).unwrap_or(!drops);
            if passes != verdict.passes {
                prop_assert!(!verdict.exceptions.is_empty(), "{verdict:?}");
            }
        }
        // The default verdict: every undecidable condition is false.
        for rule in table.chains.values_mut().flat_map(|chain| &mut chain.rules) {
            rule.conditions.iter_mut().for_each(|one| {
                if *one == Condition::Unknown {
                    *one = Condition::never();
                }
            });
        }
        let passes = naive(&table, "base", false, 0).unwrap_or(!drops);
        prop_assert_eq!(passes, verdict.passes);
    }
}
