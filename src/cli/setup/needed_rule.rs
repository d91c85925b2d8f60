//! Finds the chains of the loaded firewall that drop packets which ftp-alg needs, and the rule that each chain lacks.

use ftp_alg_firewall::{
    ChainLocation, ChainVerdict, DataPathVerdict, Gateway, Hook, IpVersion, ModeVerdict, Origin,
    PacketClass, RulePlace,
};

use super::file_edits::{AcceptRule, MARKER};

/// A rule that a chain needs, now or when its file is loaded again.
#[derive(Clone, Debug)]
pub(super) struct NeededRule {
    pub(super) hook: Hook,
    pub(super) ip: IpVersion,
    pub(super) class: PacketClass,
    pub(super) location: ChainLocation,
    /// Where the rule belongs.
    pub(super) place: RulePlace,
    /// Whether a loaded rule accepts the packets already. That rule may be in no file.
    pub(super) passes: bool,
    /// Whether that loaded rule was added by setup.
    pub(super) has_setup_rule: bool,
    /// What the chain does with the packets now.
    pub(super) description: String,
    /// The command that doctor prints; empty if no rule can recognise the packets in this chain.
    pub(super) command: String,
    /// What to do if no rule can recognise the packets in this chain.
    pub(super) advice: Option<String>,
    /// The rule in the language of the firewall.
    pub(super) rule: AcceptRule,
}

/// The rules for all chains that drop data connections of the class `data`, or packets that ftp-alg sends, and for
/// those that accept them by a rule of ours. Hooks that this machine does not use are ignored.
pub(super) fn needed_rules(
    verdicts: &[DataPathVerdict],
    modes: &[ModeVerdict],
    data: PacketClass,
    gateway: &Gateway,
) -> Vec<NeededRule> {
    let mut wanted: Vec<Wanted<'_>> = Vec::new();
    for verdict in verdicts {
        for class in [data, PacketClass::Injected] {
            let Some(hook_verdict) = verdict.verdict_for(class) else { continue };
            let is_needed = |chain: &&ChainVerdict| {
                verdict.is_used_by(class)
                    && !verdict.is_restricted_by(chain)
                    && (chain.passes
                        || class == PacketClass::Injected
                        || verdict.is_problem(chain, modes))
            };
            for chain in hook_verdict.chains.iter().filter(is_needed) {
                let chain = chain.placed_for(class, modes, verdict.ip);
                add(&mut wanted, (verdict, chain, class), gateway);
            }
        }
    }
    for (mode, chain) in modes.iter().flat_map(|m| m.dropping_chains.iter().map(move |c| (m, c))) {
        let hook = (chain.location.hook, mode.ip);
        if let Some(verdict) = verdicts.iter().find(|one| (one.hook, one.ip) == hook) {
            add(&mut wanted, (verdict, chain.placed_for(data, modes, mode.ip), data), gateway);
        }
    }
    let needs = wanted
        .iter()
        .map(|(verdict, chain, class)| NeededRule::new(verdict, chain, *class, gateway));
    needs.collect()
}

/// A chain that needs a rule for packets of a class.
type Wanted<'a> = (&'a DataPathVerdict, ChainVerdict, PacketClass);

/// Adds `new`, unless a rule of the operator accepts the packets, or the chain needs the same rule already. Instead of
/// a loaded rule that accepts only some of the packets, the chain needs another one.
fn add<'a>(wanted: &mut Vec<Wanted<'a>>, new: Wanted<'a>, gateway: &Gateway) {
    let (_, chain, class) = &new;
    let recognised_by = recognising_words(chain.location.origin, *class, gateway);
    let is_by_setup = |rule: &String| recognised_by.iter().all(|words| rule.contains(words));
    if chain.passes
        && (*class == PacketClass::RelatedData
            || !chain.decided_by.rule.as_ref().is_some_and(is_by_setup))
    {
        return;
    }
    let is_same =
        |known: &&mut Wanted<'_>| (&known.1.location, known.2) == (&chain.location, *class);
    match wanted.iter_mut().find(is_same) {
        Some(known) if known.1.passes && !chain.passes => *known = new,
        Some((_, known, _)) if known.passes == chain.passes => known.place.merge(&chain.place),
        Some(_) => {}
        None => wanted.push(new),
    }
}

/// The words by which a line with this effect is recognised.
fn recognising_words(origin: Origin, class: PacketClass, gateway: &Gateway) -> [String; 2] {
    let nft = origin == Origin::Nftables;
    // Only some programs print leading zeros, so the value has none.
    let (words, value) = match class {
        PacketClass::RelatedData => ("related", "established".to_owned()),
        PacketClass::MarkedData => {
            (if nft { "ct mark" } else { "connmark" }, format!("{:x}", gateway.data_mark))
        }
        PacketClass::Injected => {
            (if nft { "meta mark" } else { "-m mark" }, format!("{:x}", gateway.mask()))
        }
    };
    [words.to_owned(), value]
}

impl NeededRule {
    fn new(
        verdict: &DataPathVerdict,
        chain: &ChainVerdict,
        class: PacketClass,
        gateway: &Gateway,
    ) -> Self {
        let location = chain.location.clone();
        let command = chain.accept_command(class, gateway).unwrap_or_default();
        // nft lists `and` as `&`.
        let condition =
            chain.place.condition(location.origin, class, gateway).replace(" and ", " & ");
        let packets = class.description();
        let description = match chain.passes {
            true => format!("{location} accepts {packets}"),
            false => format!("{location} drops {packets}: {}", chain.decided_by),
        };
        let (hook, ip, passes) = (verdict.hook, verdict.ip, chain.passes);
        let has_setup_rule =
            chain.decided_by.rule.as_ref().is_some_and(|rule| rule.contains(MARKER));
        // If the packets are dropped, an equivalent line of the operator does not help: it comes too late, or the
        // packets do not reach its chain.
        let [words, value] = recognising_words(location.origin, class, gateway);
        let recognised_by = [if passes { words } else { MARKER.to_owned() }, value];
        let advice = chain.advice_without_rule(class, gateway).filter(|_| !passes);
        Self {
            hook,
            ip,
            class,
            location,
            place: chain.place.clone(),
            passes,
            has_setup_rule,
            description,
            command,
            advice,
            rule: AcceptRule { condition, recognised_by },
        }
    }

    fn is_same_rule(&self, other: &Self) -> bool {
        self.location == other.location && self.class == other.class
    }

    /// Whether the chain accepts the packets, if `needs` is what the loaded rules lack.
    pub(super) fn is_met(&self, needs: &[Self]) -> bool {
        needs.iter().all(|need| need.passes || !need.is_same_rule(self))
    }
}
