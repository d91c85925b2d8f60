//! Evaluates the chains of a table for one sample packet.
//!
//! The traversal answers two questions at once:
//! - What happens *by default*, if every condition is false that cannot be decided here?
//! - Which rules could decide otherwise?
//!
//! An accept verdict ends only its own base chain, and a drop verdict is final. So a packet passes a hook only if
//! every base chain accepts it.
//!
//! Rules that apply by default change the marks of the packet, so that later rules see what these rules wrote.

use std::collections::HashMap;

use super::{
    ConflictKind, ConflictingRule,
    model::{
        BaseChain, Certainty, Chain, Condition, FieldValue, Rule, RuleVerdict, SamplePacket, Table,
        all_hold, state,
    },
};

/// Limit for nested jumps. The kernel refuses more than 16 for nftables (NFT_JUMP_STACK_SIZE), but xtables has no
/// such limit.
const MAX_DEPTH: usize = 64;
/// How many exceptions are named.
const MAX_NAMED: usize = 4;

/// The source of a verdict: a rule, or the policy of a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerdictSource {
    /// The chain with the rule or the policy.
    pub chain: String,
    /// The text of the rule; `None` for the policy.
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

/// The verdict of a base chain on one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PacketVerdict {
    /// Whether the packet passes by default.
    pub(super) passes: bool,
    pub(super) decided_by: VerdictSource,
    /// Rules that decide otherwise for some packets, by conditions that cannot be decided here.
    pub(super) exceptions: Vec<VerdictSource>,
    /// Rules that accept some of the packets, and for which only their addresses are not known.
    pub(super) accepted_by_address: Vec<VerdictSource>,
    /// The last rule that changed the ct mark, or took the packet out of connection tracking.
    pub(super) changed_by: Option<VerdictSource>,
}

impl PacketVerdict {
    /// The verdict on a connection with both packets: the first verdict, unless only the next packet is dropped.
    pub(super) fn and(mut self, next: Self) -> Self {
        match (self.passes, next.passes) {
            (true, false) => return next,
            (false, true) => return self,
            _ => {}
        }
        if next.accepted_by_address.is_empty() {
            self.accepted_by_address.clear();
        }
        for reason in next.exceptions {
            if !self.exceptions.contains(&reason) {
                self.exceptions.push(reason);
            }
        }
        self
    }
}

/// The base chains of a table with their names.
pub(super) fn base_chains(table: &Table) -> impl Iterator<Item = (&str, BaseChain)> {
    table.chains.iter().filter_map(|(name, chain)| Some((name.as_str(), chain.base?)))
}

/// The verdict of base chain `name` of `table` on `packet`, which gets the marks that it has behind the chain.
pub(super) fn evaluate(
    table: &Table,
    name: &str,
    base: BaseChain,
    packet: &mut SamplePacket<'_>,
) -> PacketVerdict {
    let mut traversal = Traversal::new(table, packet);
    let mut verdicts = traversal.chain(name, 0);
    *packet = traversal.packet;
    let (accepts, policy) =
        (!base.policy_drops, VerdictSource { chain: name.to_owned(), rule: None });
    if verdicts.may_return {
        verdicts.add_possible(&PossibleVerdicts::ending(accepts, policy.clone()));
    }
    let (passes, decided_by) = verdicts.default.unwrap_or((accepts, policy));
    let exceptions = if passes { verdicts.drops } else { verdicts.accepts };
    PacketVerdict {
        passes,
        decided_by,
        exceptions,
        accepted_by_address: verdicts.accepts_by_address,
        changed_by: traversal.changed_by,
    }
}

/// The conflicts of all rules that `packet` may reach from base chain `name`.
pub(super) fn conflicts<'a>(
    table: &'a Table,
    name: &'a str,
    packet: &SamplePacket<'_>,
) -> Vec<&'a ConflictingRule> {
    let mut traversal = Traversal::new(table, packet);
    traversal.chain(name, 0);
    traversal.conflicts
}

/// A rule that changes the packet mark.
pub(super) struct MarkingRule<'a> {
    pub(super) chain: &'a str,
    pub(super) rule: &'a Rule,
    /// Whether the rule applies if every condition is false that cannot be decided here.
    pub(super) by_default: bool,
}

/// The rules that change the packet mark and that `packet` may reach from base chain `name`, each once.
pub(super) fn marking_rules<'a>(
    table: &'a Table,
    name: &'a str,
    packet: &SamplePacket<'_>,
) -> Vec<MarkingRule<'a>> {
    let mut traversal = Traversal::new(table, packet);
    traversal.chain(name, 0);
    traversal.marking_rules
}

/// A rule that compares the packet mark, with its chain.
pub(super) type MarkedRule<'a> = (&'a str, &'a Rule);

/// The rules that may do something else with the packet if it has another packet mark, and that the packet may reach
/// from base chain `name`.
pub(super) fn rules_that_depend_on_mark<'a>(
    table: &'a Table,
    name: &'a str,
    packet: &SamplePacket<'_>,
    mark: FieldValue,
) -> Vec<MarkedRule<'a>> {
    let mut traversal = Traversal { other_mark: Some(mark), ..Traversal::new(table, packet) };
    traversal.chain(name, 0);
    traversal.dependent_rules
}

/// All verdicts that a chain may give on a packet.
#[derive(Clone, Debug, Default)]
struct PossibleVerdicts {
    accepts: Vec<VerdictSource>,
    drops: Vec<VerdictSource>,
    /// Those of `accepts` for which only addresses are not known.
    accepts_by_address: Vec<VerdictSource>,
    /// Whether the packet may return to the calling chain.
    may_return: bool,
    /// The default verdict: whether the packet passes, and what decides it. `None` means that the packet returns to
    /// the calling chain.
    default: Option<(bool, VerdictSource)>,
}

impl PossibleVerdicts {
    fn returning() -> Self {
        Self { may_return: true, ..Self::default() }
    }

    fn ending(passes: bool, reason: VerdictSource) -> Self {
        let mut verdicts = Self { default: Some((passes, reason.clone())), ..Self::default() };
        if passes {
            verdicts.accepts_by_address.push(reason.clone());
        }
        if passes { &mut verdicts.accepts } else { &mut verdicts.drops }.push(reason);
        verdicts
    }

    /// Adds the accepting and dropping rules of `other`.
    fn add_possible(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.accepts, &other.accepts),
            (&mut self.drops, &other.drops),
            (&mut self.accepts_by_address, &other.accepts_by_address),
        ] {
            for reason in theirs {
                if mine.len() < MAX_NAMED && !mine.contains(reason) {
                    mine.push(reason.clone());
                }
            }
        }
    }
}

/// What the result of a chain depends on: its name, the marks and the state of the packet that enters it, and whether
/// the packet enters it by default.
type Entry<'a> = (&'a str, [FieldValue; 2], u32, bool);

struct Traversal<'a, 'p> {
    table: &'a Table,
    packet: SamplePacket<'p>,
    /// Results by chain, with the packet as it leaves. `None` marks a chain whose evaluation is in progress: a loop,
    /// which the kernel never accepts, then ends here.
    finished: HashMap<Entry<'a>, Option<(PossibleVerdicts, SamplePacket<'p>)>>,
    /// Conflicts of the rules that the packet may reach.
    conflicts: Vec<&'a ConflictingRule>,
    marking_rules: Vec<MarkingRule<'a>>,
    /// Another packet mark of the packet, to find the rules that depend on it.
    other_mark: Option<FieldValue>,
    dependent_rules: Vec<MarkedRule<'a>>,
    /// The last rule that changed the ct mark, or took the packet out of connection tracking.
    changed_by: Option<VerdictSource>,
    /// Whether the packet reaches this point by default.
    by_default: bool,
}

impl<'a, 'p> Traversal<'a, 'p> {
    fn new(table: &'a Table, packet: &SamplePacket<'p>) -> Self {
        Self {
            table,
            packet: *packet,
            finished: HashMap::new(),
            conflicts: Vec::new(),
            marking_rules: Vec::new(),
            other_mark: None,
            dependent_rules: Vec::new(),
            changed_by: None,
            by_default: true,
        }
    }

    fn chain(&mut self, name: &'a str, depth: usize) -> PossibleVerdicts {
        let SamplePacket { ct_mark, mark, state, .. } = self.packet;
        let entry = (name, [ct_mark, mark], state, self.by_default);
        match self.finished.get(&entry) {
            Some(Some((verdicts, packet))) => {
                self.packet = *packet;
                return verdicts.clone();
            }
            Some(None) => return PossibleVerdicts::returning(),
            None => {}
        }
        let Some(chain) = self.table.chains.get(name).filter(|_| depth < MAX_DEPTH) else {
            return PossibleVerdicts::returning();
        };
        self.finished.insert(entry, None);
        let verdicts = self.rules(name, chain, depth);
        self.finished.insert(entry, Some((verdicts.clone(), self.packet)));
        verdicts
    }

    fn rules(&mut self, name: &'a str, chain: &'a Chain, depth: usize) -> PossibleVerdicts {
        let by_default = self.by_default;
        let verdicts = self.each_rule(name, chain, depth);
        self.by_default = by_default;
        verdicts
    }

    fn each_rule(&mut self, name: &'a str, chain: &'a Chain, depth: usize) -> PossibleVerdicts {
        let by_default = self.by_default;
        let mut verdicts = PossibleVerdicts::default();
        for rule in &chain.rules {
            if self.other_mark.is_some_and(|mark| rule.depends_on_mark(&self.packet, mark)) {
                self.dependent_rules.push((name, rule));
            }
            let applies = rule.applies(&self.packet);
            if applies == Certainty::No {
                continue;
            }
            self.conflicts.extend(rule.conflict.as_deref());
            self.by_default = by_default && applies == Certainty::Yes && verdicts.default.is_none();
            if rule.changed_mark_bits != 0 {
                self.marking_rules.push(MarkingRule {
                    chain: name,
                    rule,
                    by_default: self.by_default,
                });
            }
            if self.by_default {
                self.change_packet(name, rule);
            }
            let by_address = applies == Certainty::Yes || rule.depends_on_addresses(&self.packet);
            let action = self.action(name, rule, &rule.action, depth);
            let Some((mut step, ends)) = action else { continue };
            if !by_address {
                step.accepts_by_address.clear();
            }
            verdicts.add_possible(&step);
            // After a jump the chain continues when the target returns. After `return` or `goto` it does not.
            verdicts.may_return |= ends && step.may_return;
            if applies == Certainty::Yes {
                let returns = !ends && step.may_return;
                verdicts.default = verdicts.default.or(step.default);
                if !returns {
                    return verdicts;
                }
            }
        }
        verdicts.may_return = true;
        verdicts
    }

    /// Applies what `rule` does to the packet besides its verdict.
    fn change_packet(&mut self, chain: &str, rule: &Rule) {
        let SamplePacket { ct_mark, state: before, .. } = self.packet;
        rule.mark_writes.iter().for_each(|write| self.packet.write_mark(*write));
        let conflict = rule.conflict.as_ref().map(|conflict| conflict.kind);
        // Conntrack has not seen the packet yet.
        if before == state::INVALID && conflict == Some(ConflictKind::Untracked) {
            self.packet.state = state::UNTRACKED;
        }
        if (ct_mark, before) != (self.packet.ct_mark, self.packet.state) {
            let rule = Some(rule.text.clone());
            self.changed_by = Some(VerdictSource { chain: chain.to_owned(), rule });
        }
    }

    /// The possible verdicts of a rule's verdict statement, and whether the chain ends there even if the target
    /// returns. `None` if the rule has no effect on the traversal.
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
                let mut verdicts = PossibleVerdicts::ending(true, reason());
                verdicts.drops.push(reason());
                (verdicts, true)
            }
            RuleVerdict::Unknown => {
                let mut verdicts = PossibleVerdicts::returning();
                verdicts.accepts.push(reason());
                verdicts.drops.push(reason());
                (verdicts, false)
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
        let mut verdicts = PossibleVerdicts::default();
        for (condition, action) in elements {
            let applies = all_hold(std::slice::from_ref(condition), &self.packet);
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
                // The keys of a map exclude each other, so no other element can match.
                return step;
            }
            if let Some((mut step, _)) = step {
                step.accepts_by_address.clear();
                verdicts.add_possible(&step);
            }
        }
        verdicts.may_return = true;
        Some((verdicts, false))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::gateway::firewall::{
        ChangedMarkBits, RuleParameters,
        model::{Field, Hook, IpVersion, Origin, TableFamily},
        sample_packets::SampleConnection,
    };

    fn rule(conditions: Vec<Condition>, action: RuleVerdict, text: &str) -> Rule {
        Rule {
            conditions,
            action,
            destination_nat: None,
            source_ports: None,
            conflict: None,
            changed_mark_bits: 0,
            mark_writes: Vec::new(),
            text: text.into(),
        }
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

    fn verdict(table: &Table) -> PacketVerdict {
        let (name, base) = base_chains(table).next().unwrap();
        let parameters = RuleParameters::default();
        let connection = SampleConnection {
            hook: Hook::Forward,
            ip: IpVersion::V4,
            port: 21,
            real_port: 21,
            from: None,
            to: None,
        };
        let packets = connection.packets(&parameters, ChangedMarkBits::default());
        let packet = packets.iter().find(|packet| packet.hook == base.hook).unwrap();
        evaluate(table, name, base, &mut packet.clone())
    }

    fn no() -> Condition {
        Condition::Any(Vec::new())
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
            rule(vec![no()], RuleVerdict::Drop, "never"),
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
                (
                    "base",
                    vec![rule(vec![], action, "way"), rule(vec![], RuleVerdict::Drop, "drop")],
                ),
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
            RuleVerdict::Map(vec![(no(), RuleVerdict::Drop), (key, RuleVerdict::Accept)])
        };
        let one =
            |key| verdict(&table(vec![("base", vec![rule(vec![], elements(key), "map")])], true));
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
        assert!(
            verdict.passes && verdict.exceptions == [verdict.decided_by.clone()],
            "{verdict:?}"
        );
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
                        *one = no();
                    }
                });
            }
            let passes = naive(&table, "base", false, 0).unwrap_or(!drops);
            prop_assert_eq!(passes, verdict.passes);
        }
    }
}
