//! Which verdict a packet meets in which chains.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
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
    Table::new(origin, family, "t".into(), all)
}

fn verdict(table: &Table) -> ChainVerdict {
    let chain = table.base_chains().next().unwrap();
    let packet = first_packet(Hook::Forward, IpVersion::V4);
    follow(chain, &packet, None).verdict(chain)
}

#[test]
fn policy_decides_at_the_end_of_a_base_chain() {
    for drops in [false, true] {
        let verdict = verdict(&table(vec![("base", Vec::new())], drops));
        assert_eq!((verdict.passes, verdict.decided_by.rule), (!drops, None));
    }
}

#[test]
fn undecidable_condition_makes_an_exception() {
    let rules = vec![
        rule(vec![Condition::never()], RuleVerdict::Drop, "never"),
        rule(vec![Condition::Unknown], RuleVerdict::Drop, "some"),
        rule(vec![], RuleVerdict::Accept, "all"),
        rule(vec![Condition::Unknown], RuleVerdict::Drop, "behind"),
    ];
    let verdict = verdict(&table(vec![("base", rules)], true));
    assert!(verdict.passes);
    assert_eq!(verdict.decided_by.rule.as_deref(), Some("all"));
    assert_eq!(verdict.exceptions.len(), 1);
    assert_eq!(verdict.exceptions[0].rule.as_deref(), Some("some"));
}

#[test]
fn jump_returns_and_goto_does_not() {
    let chains = |action| {
        vec![
            ("base", vec![rule(vec![], action, "way"), rule(vec![], RuleVerdict::Drop, "drop")]),
            ("other", vec![rule(vec![], RuleVerdict::Return, "back")]),
        ]
    };
    assert!(!verdict(&table(chains(RuleVerdict::Jump("other".into())), false)).passes);
    assert!(verdict(&table(chains(RuleVerdict::Goto("other".into())), false)).passes);
}

#[test]
fn jump_that_may_return_continues_with_an_exception() {
    let chains = vec![
        (
            "base",
            vec![
                rule(vec![], RuleVerdict::Jump("maybe".into()), "way"),
                rule(vec![], RuleVerdict::Drop, "drop"),
            ],
        ),
        ("maybe", vec![rule(vec![Condition::Unknown], RuleVerdict::Accept, "some")]),
    ];
    let verdict = verdict(&table(chains, false));
    assert!(!verdict.passes);
    assert_eq!(
        verdict.exceptions[0],
        VerdictSource { chain: "maybe".into(), rule: Some("some".into()) }
    );
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
fn loops_and_unlimited_depth_terminate() {
    let looped = vec![
        ("base", vec![rule(vec![], RuleVerdict::Jump("a".into()), "x")]),
        ("a", vec![rule(vec![], RuleVerdict::Jump("a".into()), "x")]),
    ];
    assert!(verdict(&table(looped, false)).passes);
    let names: Vec<String> = (0..100_000).map(|n| format!("c{n}")).collect();
    let mut chains = vec![("base", vec![rule(vec![], RuleVerdict::Jump("c0".into()), "x")])];
    for (n, name) in names.iter().enumerate() {
        chains.push((name, vec![rule(vec![], RuleVerdict::Jump(format!("c{}", n + 1)), "x")]));
    }
    assert!(verdict(&table(chains, false)).passes);
}

#[test]
fn queue_passes_with_its_reader_as_exception() {
    let verdict =
        verdict(&table(vec![("base", vec![rule(vec![], RuleVerdict::Queue, "queue")])], true));
    assert!(verdict.passes && verdict.exceptions == [verdict.decided_by.clone()], "{verdict:?}");
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
