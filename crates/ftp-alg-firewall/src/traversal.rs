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
    ChainVerdict, ConflictKind,
    model::{
        Certainty, Chain, Condition, FieldValue, LocatedChain, LocatedRule, Rule, RuleVerdict,
        SamplePacket, Table, all_hold, state,
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

impl ChainVerdict {
    /// Adds the verdict on the next packet of the connection: the first verdict counts, unless only `next` is a drop.
    pub(crate) fn add(&mut self, mut next: Self) {
        let hidden_by = self.hidden_by.take().or_else(|| next.hidden_by.take());
        match (self.passes, next.passes) {
            (true, false) => *self = next,
            (false, true) => {}
            (passes, _) => {
                if !passes {
                    self.place.merge(&next.place);
                }
                if next.accepted_by_address.is_empty() {
                    self.accepted_by_address.clear();
                }
                for reason in next.exceptions {
                    if !self.exceptions.contains(&reason) {
                        self.exceptions.push(reason);
                    }
                }
            }
        }
        self.hidden_by = hidden_by;
    }
}

/// Follows `packet` through a base chain. `other` is the packet with other marks, to find the rules that depend on them.
pub(crate) fn follow<'a, 'p>(
    chain: LocatedChain<'a>,
    packet: &SamplePacket<'p>,
    other: Option<SamplePacket<'p>>,
) -> Traversal<'a, 'p> {
    let mut traversal = Traversal {
        table: chain.table,
        packet: *packet,
        finished: HashMap::new(),
        reached: Vec::new(),
        other,
        dependent_rules: Vec::new(),
        changed_by: None,
        path: Vec::new(),
        changed_at: Vec::new(),
        returned_at: Vec::new(),
        by_default: true,
        verdicts: PossibleVerdicts::default(),
    };
    traversal.verdicts = traversal.chain(chain.name, 0);
    traversal
}

/// All verdicts that a chain may give on a packet.
#[derive(Clone, Debug, Default)]
struct PossibleVerdicts {
    accepts: Vec<VerdictSource>,
    drops: Vec<VerdictSource>,
    /// The rules of `accepts` for which only the hosts are not known.
    accepts_by_address: Vec<VerdictSource>,
    /// Whether the packet may return to the calling chain.
    may_return: bool,
    /// The default verdict: whether the packet passes, and what decides it. `None` means that the packet returns to
    /// the calling chain.
    default: Option<(bool, VerdictSource)>,
    /// The rules that lead to the default verdict: each with its chain, from the base chain on.
    default_path: Vec<(String, usize)>,
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

/// What the result of a chain depends on: its name, the marks and the state of the packets that enter it, and whether
/// they enter it by default.
type Entry<'a> = (&'a str, [Option<[FieldValue; 2]>; 2], u32, bool);

/// The result of a chain, with the packets as they leave.
type ChainResult<'p> = (PossibleVerdicts, SamplePacket<'p>, Option<SamplePacket<'p>>);

/// A packet on its way through the chains of a table, and what it may meet there.
pub(crate) struct Traversal<'a, 'p> {
    table: &'a Table,
    /// The packet with the marks that it has here.
    pub(crate) packet: SamplePacket<'p>,
    /// Results by chain. `None` marks a chain whose evaluation is in progress: a loop, which the kernel never accepts,
    /// then ends here.
    finished: HashMap<Entry<'a>, Option<ChainResult<'p>>>,
    /// The rules that may apply to the packet, and do more than give a verdict.
    pub(crate) reached: Vec<LocatedRule<'a>>,
    other: Option<SamplePacket<'p>>,
    /// The rules that may act otherwise on `other`.
    pub(crate) dependent_rules: Vec<LocatedRule<'a>>,
    /// The last rule that changed the ct mark, or took the packet out of connection tracking.
    pub(crate) changed_by: Option<LocatedRule<'a>>,
    /// The rules that lead to the present one, each with its chain, from the base chain on.
    path: Vec<(&'a str, usize)>,
    /// The rules that lead to the first one that changed the ct mark, or took the packet out of connection tracking.
    changed_at: Vec<(String, usize)>,
    /// The rules with conditions by which the packet returned from chains, each with its chain.
    returned_at: Vec<(String, usize)>,
    /// Whether the packet reaches this point by default.
    by_default: bool,
    /// The verdicts of the base chain, at the end of the way.
    verdicts: PossibleVerdicts,
}

impl<'a, 'p> Traversal<'a, 'p> {
    /// The verdict of the base chain. `is_hidden` tells whether its rules hide the packet from an accept rule behind
    /// them.
    pub(crate) fn verdict(self, chain: LocatedChain<'_>, is_hidden: bool) -> ChainVerdict {
        let mut verdicts = self.verdicts;
        let accepts = !chain.base.policy_drops;
        let policy = VerdictSource { chain: chain.name.to_owned(), rule: None };
        if verdicts.may_return {
            verdicts.add_possible(&PossibleVerdicts::ending(accepts, policy.clone()));
        }
        let (passes, decided_by) = verdicts.default.unwrap_or((accepts, policy));
        let hiding = if is_hidden { self.changed_at } else { Vec::new() };
        let obstacles = match passes {
            true => hiding,
            false => [verdicts.default_path, hiding, self.returned_at].concat(),
        };
        let mut place = chain.place_of_accept_rule(&obstacles, &self.packet);
        if passes && decided_by.rule.is_some() {
            place.chain.clone_from(&decided_by.chain);
        }
        ChainVerdict {
            location: chain.location(),
            place,
            passes,
            decided_by,
            exceptions: if passes { verdicts.drops } else { verdicts.accepts },
            accepted_by_address: verdicts.accepts_by_address,
            hidden_by: None,
        }
    }

    fn chain(&mut self, name: &'a str, depth: usize) -> PossibleVerdicts {
        let marks = [Some(self.packet), self.other].map(|one| Some([one?.ct_mark, one?.mark]));
        let entry = (name, marks, self.packet.state, self.by_default);
        match self.finished.get(&entry) {
            Some(Some((verdicts, packet, other))) => {
                (self.packet, self.other) = (*packet, *other);
                return verdicts.clone();
            }
            Some(None) => return PossibleVerdicts::returning(),
            None => {}
        }
        let Some(chain) = self.table.chains.get(name).filter(|_| depth < MAX_DEPTH) else {
            return PossibleVerdicts::returning();
        };
        self.finished.insert(entry, None);
        let by_default = self.by_default;
        let verdicts = self.rules(name, chain, depth);
        self.by_default = by_default;
        self.finished.insert(entry, Some((verdicts.clone(), self.packet, self.other)));
        verdicts
    }

    fn rules(&mut self, name: &'a str, chain: &'a Chain, depth: usize) -> PossibleVerdicts {
        let by_default = self.by_default;
        let mut verdicts = PossibleVerdicts::default();
        for (index, rule) in chain.rules.iter().enumerate() {
            let located = LocatedRule { table: self.table, chain: name, rule };
            if self.other.is_some_and(|other| rule.tells_apart(&self.packet, &other)) {
                self.dependent_rules.push(located);
            }
            let applies = rule.applies(&self.packet);
            if applies == Certainty::No {
                continue;
            }
            if !rule.conflicts.is_empty() || !rule.mark_writes.is_empty() {
                self.reached.push(located);
            }
            self.by_default = by_default && applies == Certainty::Yes && verdicts.default.is_none();
            self.path.push((name, index));
            if self.by_default {
                self.change_packet(located);
                if matches!(rule.action, RuleVerdict::Return) && !rule.conditions.is_empty() {
                    self.returned_at.push((name.to_owned(), index));
                }
            }
            let by_address = rule.applies_to_some_hosts(&self.packet);
            let action = self.action(name, rule, &rule.action, depth);
            self.path.pop();
            let Some((mut step, ends)) = action else { continue };
            if !by_address {
                step.accepts_by_address.clear();
            }
            verdicts.add_possible(&step);
            // After a jump the chain continues when the target returns. After `return` or `goto` it does not.
            verdicts.may_return |= ends && step.may_return;
            if applies == Certainty::Yes {
                let returns = !ends && step.may_return;
                if verdicts.default.is_none() && step.default.is_some() {
                    verdicts.default = step.default;
                    verdicts.default_path = vec![(name.to_owned(), index)];
                    verdicts.default_path.append(&mut step.default_path);
                }
                if !returns {
                    return verdicts;
                }
            }
        }
        verdicts.may_return = true;
        verdicts
    }

    /// Applies what the rule does to the packet besides its verdict.
    fn change_packet(&mut self, located: LocatedRule<'a>) {
        let rule = located.rule;
        let SamplePacket { ct_mark, state: before, .. } = self.packet;
        for packet in [Some(&mut self.packet), self.other.as_mut()].into_iter().flatten() {
            rule.mark_writes.iter().for_each(|write| packet.write_mark(*write));
            // Conntrack has not seen the packet yet.
            if before == state::INVALID && rule.conflicts.contains(&ConflictKind::Untracked) {
                packet.state = state::UNTRACKED;
            }
        }
        let changed = (ct_mark, before) != (self.packet.ct_mark, self.packet.state);
        if changed && self.changed_by.replace(located).is_none() {
            let path = self.path.iter().map(|(chain, index)| ((*chain).to_owned(), *index));
            self.changed_at = path.collect();
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
            if applies == Certainty::No {
                continue;
            }
            let by_default = self.by_default;
            self.by_default &= applies == Certainty::Yes;
            let step = self.action(chain, rule, action, depth);
            self.by_default = by_default;
            if applies == Certainty::Yes {
                // The keys of a map exclude each other, so no other element can match.
                return step;
            }
            if let Some((mut step, _)) = step {
                if !condition.holds_for_some_hosts(&self.packet) {
                    step.accepts_by_address.clear();
                }
                verdicts.add_possible(&step);
            }
        }
        verdicts.may_return = true;
        Some((verdicts, false))
    }
}

#[cfg(test)]
#[path = "traversal_tests.rs"]
mod tests;
