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

/// The reader of the queue may drop.
#[test]
fn a_queue_accepts_with_an_exception() {
    let rules = ":FORWARD DROP\n-A FORWARD -j NFQUEUE";
    let firewall = Firewall::from_iptables_tables(&[("filter", rules)]);
    let verdict = firewall.forward(PacketClass::MarkedData).chains.swap_remove(0);
    assert_eq!((verdict.passes, verdict.exceptions.len()), (true, 1));
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
