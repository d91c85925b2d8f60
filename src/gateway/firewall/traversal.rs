//! What becomes of a packet in the chains of a hook.
//!
//! Two questions are answered at once: what happens if no condition holds of which nothing is
//! known (what the rule set does *by default*), and which rules could have it otherwise. An accept
//! ends only its base chain; a drop is final; so every base chain has to pass a packet.

use std::collections::HashMap;

use super::{
    ConflictingRule,
    model::{
        BaseChain, Certainty, Chain, Condition, Rule, RuleVerdict, SamplePacket, Table, all_hold,
    },
};

/// The kernel refuses jumps deeper than 16 (NFT_JUMP_STACK_SIZE); xtables has no such limit.
const MAX_DEPTH: usize = 64;
/// How many rules are named that could have it otherwise.
const MAX_NAMED: usize = 4;

/// What decided: a rule, or a base chain's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerdictSource {
    /// The chain that it is in.
    pub chain: String,
    /// The rule's text; none for the policy.
    pub rule: Option<String>,
}

impl std::fmt::Display for VerdictSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.rule {
            Some(rule) => write!(f, "`{rule}` in {}", self.chain),
            None => write!(f, "the policy of {}", self.chain),
        }
    }
}

/// What a base chain does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PacketVerdict {
    /// Whether it passes by default.
    pub(super) passes: bool,
    pub(super) decided_by: VerdictSource,
    /// Rules that do the opposite to some packets, by conditions that are not known.
    pub(super) exceptions: Vec<VerdictSource>,
}

impl PacketVerdict {
    /// The fate of a connection with both packets: the first one's, unless only the next does not
    /// pass.
    pub(super) fn and(mut self, next: Self) -> Self {
        match (self.passes, next.passes) {
            (true, false) => return next,
            (false, true) => return self,
            _ => {}
        }
        for reason in next.exceptions {
            if !self.exceptions.contains(&reason) {
                self.exceptions.push(reason);
            }
        }
        self
    }
}

/// The base chains of a table, with their names.
pub(super) fn base_chains(table: &Table) -> impl Iterator<Item = (&str, BaseChain)> {
    table.chains.iter().filter_map(|(name, chain)| Some((name.as_str(), chain.base?)))
}

/// What base chain `name` of `table` does with `packet`.
pub(super) fn evaluate(
    table: &Table,
    name: &str,
    base: BaseChain,
    packet: &SamplePacket<'_>,
) -> PacketVerdict {
    let mut flow = Traversal::new(table, packet).chain(name, 0);
    let (accepts, policy) =
        (!base.policy_drops, VerdictSource { chain: name.to_owned(), rule: None });
    if flow.may_return {
        flow.add_possible(&PossibleVerdicts::ending(accepts, policy.clone()));
    }
    let (passes, by) = flow.default.unwrap_or((accepts, policy));
    let except = if passes { flow.drops } else { flow.accepts };
    PacketVerdict { passes, decided_by: by, exceptions: except }
}

/// What is to be said of the rules that `packet` may come to by base chain `name`.
pub(super) fn conflicts<'a>(
    table: &'a Table,
    name: &'a str,
    packet: &SamplePacket<'_>,
) -> Vec<&'a ConflictingRule> {
    let mut walk = Traversal::new(table, packet);
    walk.chain(name, 0);
    walk.conflicts
}

/// A rule that changes the packet mark.
pub(super) struct MarkingRule<'a> {
    pub(super) chain: &'a str,
    pub(super) rule: &'a Rule,
    /// Whether it does so if no condition holds of which nothing is known.
    pub(super) by_default: bool,
}

/// The rules that `packet` may come to by base chain `name` and that change its mark, each once.
pub(super) fn marking_rules<'a>(
    table: &'a Table,
    name: &'a str,
    packet: &SamplePacket<'_>,
) -> Vec<MarkingRule<'a>> {
    let mut walk = Traversal::new(table, packet);
    walk.chain(name, 0);
    walk.marking_rules
}

/// What may come of a packet in a chain.
#[derive(Clone, Debug, Default)]
struct PossibleVerdicts {
    accepts: Vec<VerdictSource>,
    drops: Vec<VerdictSource>,
    /// Whether it may come out at the end.
    may_return: bool,
    /// What comes of it if nothing holds that is not known: whether it passes; `None` means that
    /// it comes out at the end.
    default: Option<(bool, VerdictSource)>,
}

impl PossibleVerdicts {
    fn returning() -> Self {
        Self { may_return: true, ..Self::default() }
    }

    fn ending(passes: bool, reason: VerdictSource) -> Self {
        let mut flow = Self { default: Some((passes, reason.clone())), ..Self::default() };
        if passes { &mut flow.accepts } else { &mut flow.drops }.push(reason);
        flow
    }

    /// Takes over what may come of the packet in `other`.
    fn add_possible(&mut self, other: &Self) {
        for (mine, theirs) in [(&mut self.accepts, &other.accepts), (&mut self.drops, &other.drops)]
        {
            for reason in theirs {
                if mine.len() < MAX_NAMED && !mine.contains(reason) {
                    mine.push(reason.clone());
                }
            }
        }
    }
}

struct Traversal<'a, 'p> {
    table: &'a Table,
    packet: &'p SamplePacket<'p>,
    /// `None` while it is being walked: a loop, which no kernel has, leads nowhere.
    finished: HashMap<&'a str, Option<PossibleVerdicts>>,
    /// Of the rules that were met.
    conflicts: Vec<&'a ConflictingRule>,
    marking_rules: Vec<MarkingRule<'a>>,
    /// Whether the packet is here if no condition holds of which nothing is known.
    by_default: bool,
}

impl<'a, 'p> Traversal<'a, 'p> {
    fn new(table: &'a Table, packet: &'p SamplePacket<'p>) -> Self {
        let (concerns, markings) = (Vec::new(), Vec::new());
        Self {
            table,
            packet,
            finished: HashMap::new(),
            conflicts: concerns,
            marking_rules: markings,
            by_default: true,
        }
    }

    fn chain(&mut self, name: &'a str, depth: usize) -> PossibleVerdicts {
        match self.finished.get(name) {
            Some(Some(flow)) => return flow.clone(),
            Some(None) => return PossibleVerdicts::returning(),
            None => {}
        }
        let Some(chain) = self.table.chains.get(name).filter(|_| depth < MAX_DEPTH) else {
            return PossibleVerdicts::returning();
        };
        self.finished.insert(name, None);
        let flow = self.rules(name, chain, depth);
        self.finished.insert(name, Some(flow.clone()));
        flow
    }

    fn rules(&mut self, name: &'a str, chain: &'a Chain, depth: usize) -> PossibleVerdicts {
        let by_default = self.by_default;
        let flow = self.each_rule(name, chain, depth);
        self.by_default = by_default;
        flow
    }

    fn each_rule(&mut self, name: &'a str, chain: &'a Chain, depth: usize) -> PossibleVerdicts {
        let by_default = self.by_default;
        let mut flow = PossibleVerdicts::default();
        for rule in &chain.rules {
            let applies = rule.applies(self.packet);
            if applies == Certainty::No {
                continue;
            }
            self.conflicts.extend(rule.conflict.as_deref());
            self.by_default = by_default && applies == Certainty::Yes && flow.default.is_none();
            if rule.changed_mark_bits != 0 {
                self.marking_rules.push(MarkingRule {
                    chain: name,
                    rule,
                    by_default: self.by_default,
                });
            }
            let Some((step, ends)) = self.action(name, rule, &rule.action, depth) else { continue };
            flow.add_possible(&step);
            // A jump that returns goes on; a return or a goto that does so leaves.
            flow.may_return |= ends && step.may_return;
            if applies == Certainty::Yes {
                let comes_back = !ends && step.may_return;
                flow.default = flow.default.or(step.default);
                if !comes_back {
                    return flow;
                }
            }
        }
        flow.may_return = true;
        flow
    }

    /// What an action does, and whether the chain ends with it even if the packet comes back.
    /// `None` if it does nothing.
    fn action(
        &mut self,
        chain: &str,
        rule: &Rule,
        action: &'a RuleVerdict,
        depth: usize,
    ) -> Option<(PossibleVerdicts, bool)> {
        let reason = || VerdictSource { chain: chain.to_owned(), rule: Some(rule.text.clone()) };
        Some(match action {
            RuleVerdict::Continue => return None,
            RuleVerdict::Accept => (PossibleVerdicts::ending(true, reason()), true),
            RuleVerdict::Drop => (PossibleVerdicts::ending(false, reason()), true),
            RuleVerdict::Return => (PossibleVerdicts::returning(), true),
            RuleVerdict::Jump(target) => (self.chain(target, depth + 1), false),
            RuleVerdict::Goto(target) => (self.chain(target, depth + 1), true),
            RuleVerdict::Queue => {
                let mut flow = PossibleVerdicts::ending(true, reason());
                flow.drops.push(reason());
                (flow, true)
            }
            RuleVerdict::Unknown => {
                let mut flow = PossibleVerdicts::returning();
                flow.accepts.push(reason());
                flow.drops.push(reason());
                (flow, false)
            }
            RuleVerdict::Map(elements) => return self.map(chain, rule, elements, depth),
        })
    }

    fn map(
        &mut self,
        chain: &str,
        rule: &Rule,
        elements: &'a [(Condition, RuleVerdict)],
        depth: usize,
    ) -> Option<(PossibleVerdicts, bool)> {
        let mut flow = PossibleVerdicts::default();
        for (condition, action) in elements {
            let applies = all_hold(std::slice::from_ref(condition), self.packet);
            let step = match applies {
                Certainty::No => continue,
                Certainty::Maybe => {
                    let by_default = std::mem::take(&mut self.by_default);
                    let step = self.action(chain, rule, action, depth);
                    self.by_default = by_default;
                    step
                }
                Certainty::Yes => self.action(chain, rule, action, depth),
            };
            if applies == Certainty::Yes {
                // Keys exclude each other: the others were no.
                return step;
            }
            if let Some((step, _)) = step {
                flow.add_possible(&step);
            }
        }
        flow.may_return = true;
        Some((flow, false))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::gateway::firewall::{
        ChangedMarkBits, PacketClass, RuleParameters,
        model::{Field, Hook, Ip, Origin, TableFamily},
        sample_packets::packets_of_class,
    };

    fn rule(conditions: Vec<Condition>, action: RuleVerdict, text: &str) -> Rule {
        Rule {
            conditions,
            action,
            destination_nat: None,
            conflict: None,
            changed_mark_bits: 0,
            text: text.into(),
        }
    }

    fn table(chains: Vec<(&str, Vec<Rule>)>, drops: bool) -> Table {
        let mut all = BTreeMap::new();
        for (name, rules) in chains {
            let base = (name == "base").then_some(BaseChain {
                hook: Hook::Forward,
                priority: 0,
                policy_drops: drops,
            });
            all.insert(name.to_owned(), Chain { base, rules });
        }
        let (origin, family) = (Origin::Nftables, TableFamily::Inet);
        Table { origin, family, name: "t".into(), has_owner: false, chains: all }
    }

    fn fate(table: &Table) -> PacketVerdict {
        let (name, base) = base_chains(table).next().unwrap();
        let parameters = RuleParameters::default();
        let (data, changes) = (parameters.data(), ChangedMarkBits::default());
        let packet = packets_of_class(
            Hook::Forward,
            Ip::V4,
            PacketClass::MarkedData,
            data,
            &parameters,
            changes,
        )[0];
        evaluate(table, name, base, &packet)
    }

    fn no() -> Condition {
        Condition::Any(Vec::new())
    }

    #[test]
    fn the_policy_decides_at_the_end() {
        for drops in [false, true] {
            let fate = fate(&table(vec![("base", Vec::new())], drops));
            assert_eq!((fate.passes, fate.decided_by.rule), (!drops, None));
        }
    }

    #[test]
    fn what_is_not_known_is_an_exception_and_no_decision() {
        let rules = vec![
            rule(vec![no()], RuleVerdict::Drop, "never"),
            rule(vec![Condition::Unknown], RuleVerdict::Drop, "some"),
            rule(vec![], RuleVerdict::Accept, "all"),
            rule(vec![Condition::Unknown], RuleVerdict::Drop, "behind"),
        ];
        let fate = fate(&table(vec![("base", rules)], true));
        assert!(fate.passes);
        assert_eq!(fate.decided_by.rule.as_deref(), Some("all"));
        assert_eq!(fate.exceptions.len(), 1);
        assert_eq!(fate.exceptions[0].rule.as_deref(), Some("some"));
    }

    #[test]
    fn a_jump_comes_back_and_a_goto_does_not() {
        let chains = |action| {
            vec![
                (
                    "base",
                    vec![rule(vec![], action, "way"), rule(vec![], RuleVerdict::Drop, "drop")],
                ),
                ("other", vec![rule(vec![], RuleVerdict::Return, "back")]),
            ]
        };
        assert!(!fate(&table(chains(RuleVerdict::Jump("other".into())), false)).passes);
        assert!(fate(&table(chains(RuleVerdict::Goto("other".into())), false)).passes);
    }

    #[test]
    fn a_jump_that_may_return_goes_on_and_remembers() {
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
        let fate = fate(&table(chains, false));
        assert!(!fate.passes);
        assert_eq!(
            fate.exceptions[0],
            VerdictSource { chain: "maybe".into(), rule: Some("some".into()) }
        );
    }

    #[test]
    fn a_map_goes_by_the_key_that_holds() {
        let yes = Condition::field_in(Field::Protocol, u32::MAX, [(6, 6)]);
        let elements = |key: Condition| {
            RuleVerdict::Map(vec![(no(), RuleVerdict::Drop), (key, RuleVerdict::Accept)])
        };
        let one =
            |key| fate(&table(vec![("base", vec![rule(vec![], elements(key), "map")])], true));
        assert!(one(yes).passes);
        let maybe = one(Condition::Unknown);
        assert!(!maybe.passes);
        assert_eq!(maybe.exceptions.len(), 1);
    }

    #[test]
    fn loops_and_endless_depth_end() {
        let looped = vec![
            ("base", vec![rule(vec![], RuleVerdict::Jump("a".into()), "x")]),
            ("a", vec![rule(vec![], RuleVerdict::Jump("a".into()), "x")]),
        ];
        assert!(fate(&table(looped, false)).passes);
        let names: Vec<String> = (0..100_000).map(|n| format!("c{n}")).collect();
        let mut chains = vec![("base", vec![rule(vec![], RuleVerdict::Jump("c0".into()), "x")])];
        for (n, name) in names.iter().enumerate() {
            chains.push((name, vec![rule(vec![], RuleVerdict::Jump(format!("c{}", n + 1)), "x")]));
        }
        assert!(fate(&table(chains, false)).passes);
    }

    #[test]
    fn a_queue_passes_unless_its_reader_drops() {
        let fate =
            fate(&table(vec![("base", vec![rule(vec![], RuleVerdict::Queue, "queue")])], true));
        assert!(fate.passes && fate.exceptions == [fate.decided_by.clone()], "{fate:?}");
    }

    /// The naive way: every condition has been decided, in the order in which rules come.
    fn walked(table: &Table, name: &str, unknown: bool, depth: usize) -> Option<bool> {
        // A chain only jumps to later ones, so this ends.
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
                RuleVerdict::Goto(target) => return walked(table, target, unknown, depth + 1),
                RuleVerdict::Jump(target) => match walked(table, target, unknown, depth + 1) {
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
        let mut actions = vec![
            RuleVerdict::Accept,
            RuleVerdict::Drop,
            RuleVerdict::Return,
            RuleVerdict::Continue,
        ];
        actions.extend(later.iter().cloned().map(RuleVerdict::Jump));
        actions.extend(later.into_iter().map(RuleVerdict::Goto));
        let yes = Condition::field_in(Field::Protocol, u32::MAX, [(6, 6)]);
        let conditions = vec![yes, no(), Condition::Unknown, Condition::Unknown];
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
        fn what_is_certain_is_certain_whatever_holds(
            base in rules(0), one in rules(1), two in rules(2), three in rules(3), drops: bool,
        ) {
            let all = [base, one, two, three];
            let mut table = table(CHAINS.into_iter().zip(all).collect(), drops);
            let fate = fate(&table);
            for unknown in [false, true] {
                let passes = walked(&table, "base", unknown, 0).unwrap_or(!drops);
                if passes != fate.passes {
                    prop_assert!(!fate.exceptions.is_empty(), "{fate:?}");
                }
            }
            // By default: where nothing holds that is not known.
            for rule in table.chains.values_mut().flat_map(|chain| &mut chain.rules) {
                rule.conditions.iter_mut().for_each(|one| {
                    if *one == Condition::Unknown {
                        *one = no();
                    }
                });
            }
            let passes = walked(&table, "base", false, 0).unwrap_or(!drops);
            prop_assert_eq!(passes, fate.passes);
        }
    }
}
