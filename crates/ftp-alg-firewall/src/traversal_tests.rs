//! Which verdict a packet meets in which chains.

use proptest::prelude::*;

use super::*;
use crate::{
    model::{BaseChain, Field, Hook, IpVersion, Origin, TableFamily},
    sample_packets::first_packet,
};

/// A naive evaluation for comparison: rules run in order, and `unknown` decides about undecidable conditions.
fn naive(table: &Table, name: &str, unknown: &dyn Fn(&Rule) -> bool) -> Option<bool> {
    for rule in &table.chains[name].rules {
        let holds = rule.conditions.iter().all(|condition| match condition {
            Condition::Unknown => unknown(rule),
            Condition::Any(none) => !none.is_empty(),
            _ => true,
        });
        match &rule.action {
            _ if !holds => {}
            RuleVerdict::Accept => return Some(true),
            RuleVerdict::Drop => return Some(false),
            RuleVerdict::Return => return None,
            RuleVerdict::Goto(target) => return naive(table, target, unknown),
            RuleVerdict::Jump(target) => match naive(table, target, unknown) {
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
    let rule = |(conditions, action, n)| Rule {
        conditions,
        action,
        text: "x".repeat(n),
        ..Rule::default()
    };
    prop::collection::vec(one.prop_map(rule), 0..5)
}

proptest! {
    #[test]
    fn verdict_without_exceptions_holds_for_all_conditions(
        base in rules(0), one in rules(1), two in rules(2), three in rules(3), drops: bool,
    ) {
        let mut chains = [base, one, two, three].map(|rules| Chain { base: None, rules });
        let (hook, priority) = (Hook::Forward, 0);
        chains[0].base = Some(BaseChain { hook, priority, is_nat: false, policy_drops: drops });
        let table = Table {
            origin: Origin::Nftables,
            family: TableFamily::Inet,
            name: "t".to_owned(),
            has_owner: false,
            chains: CHAINS.map(str::to_owned).into_iter().zip(chains).collect(),
        };
        let chain = table.base_chains().next().unwrap();
        let verdict = follow(chain, &first_packet(hook, IpVersion::V4), None).verdict(chain, false);
        let passes = |unknown: &dyn Fn(&Rule) -> bool| {
            naive(&table, "base", unknown).unwrap_or(!drops)
        };
        prop_assert_eq!(passes(&|_| false), verdict.passes);
        for odd in [0, 1] {
            if passes(&|rule| rule.text.len() % 2 == odd) != verdict.passes {
                prop_assert!(!verdict.exceptions.is_empty(), "{verdict:?}");
            }
        }
    }
}
