//! Finds the chains of the loaded firewall that drop packets which ftp-alg needs, and the rule that each chain lacks.

use ftp_alg_firewall::{
    ChainVerdict, DataPathVerdict, Gateway, IpVersion, ModeVerdict, Origin, PacketClass,
};

use super::file_edits::{AcceptRule, MARKER};

/// A chain that needs a rule for packets of a class, now or when its file is loaded again.
#[derive(Clone, Debug)]
pub(super) struct NeededRule {
    pub(super) ip: IpVersion,
    pub(super) class: PacketClass,
    /// What the chain does with the packets now, and where the rule belongs. If the chain accepts them, its accepting
    /// rule may be in no file.
    pub(super) chain: ChainVerdict,
    gateway: Gateway,
}

/// The rules for all chains that drop data connections of the class `data`, or packets that ftp-alg sends, and for
/// those that accept them by a rule of ours. Hooks that this machine does not use are ignored.
pub(super) fn needed_rules(
    verdicts: &[DataPathVerdict],
    modes: &[ModeVerdict],
    data: PacketClass,
    gateway: &Gateway,
) -> Vec<NeededRule> {
    let mut needs: Vec<NeededRule> = Vec::new();
    let mut add = |ip, class, chain: &ChainVerdict| {
        let chain = chain.placed_for(class, modes, ip);
        NeededRule { ip, class, chain, gateway: gateway.clone() }.add_to(&mut needs);
    };
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
            let chains = hook_verdict.chains.iter().filter(is_needed);
            chains.for_each(|chain| add(verdict.ip, class, chain));
        }
    }
    for mode in modes {
        mode.dropping_chains.iter().for_each(|chain| add(mode.ip, data, chain));
    }
    needs
}

impl NeededRule {
    /// Adds the rule to `needs`, unless a rule of the operator accepts the packets, or `needs` has the rule already. A
    /// chain whose loaded rule accepts only some of the packets needs another rule.
    fn add_to(self, needs: &mut Vec<Self>) {
        let recognised_by = self.recognising_words();
        let is_by_setup = |rule: &String| recognised_by.iter().all(|words| rule.contains(words));
        if self.chain.passes
            && (self.class == PacketClass::RelatedData
                || !self.chain.decided_by.rule.as_ref().is_some_and(is_by_setup))
        {
            return;
        }
        match needs.iter_mut().find(|known| known.is_same_rule(&self)) {
            Some(known) if known.chain.passes && !self.chain.passes => *known = self,
            Some(known) if known.chain.passes == self.chain.passes => {
                known.chain.place.merge(&self.chain.place);
            }
            Some(_) => {}
            None => needs.push(self),
        }
    }

    /// The words by which a line with this effect is recognised.
    fn recognising_words(&self) -> [String; 2] {
        let Self { class, gateway, .. } = self;
        let nft = self.chain.location.origin == Origin::Nftables;
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

    /// The rule in the language of the firewall.
    pub(super) fn rule(&self) -> AcceptRule {
        let ChainVerdict { location, place, passes, .. } = &self.chain;
        let condition = place.condition(location.origin, self.class, &self.gateway);
        // If the packets are dropped, an equivalent line of the operator does not help: it comes too late, or the
        // packets do not reach its chain.
        let [words, value] = self.recognising_words();
        AcceptRule {
            // nft lists `and` as `&`.
            condition: condition.replace(" and ", " & "),
            recognised_by: [if *passes { words } else { MARKER.to_owned() }, value],
        }
    }

    /// What the chain does with the packets now.
    pub(super) fn description(&self) -> String {
        let ChainVerdict { location, passes, decided_by, .. } = &self.chain;
        let packets = self.class.description();
        match passes {
            true => format!("{location} accepts {packets}"),
            false => format!("{location} drops {packets}: {decided_by}"),
        }
    }

    /// The command that doctor prints; empty if no rule can recognise the packets in this chain.
    pub(super) fn command(&self) -> String {
        self.chain.accept_command(self.class, &self.gateway).unwrap_or_default()
    }

    /// What to do if no rule can recognise the packets in this chain.
    pub(super) fn advice(&self) -> Option<String> {
        self.chain.accept_command(self.class, &self.gateway).err().filter(|_| !self.chain.passes)
    }

    /// Whether a loaded rule that accepts the packets was added by setup.
    pub(super) fn has_setup_rule(&self) -> bool {
        self.chain.decided_by.rule.as_ref().is_some_and(|rule| rule.contains(MARKER))
    }

    fn is_same_rule(&self, other: &Self) -> bool {
        (&self.chain.location, self.class) == (&other.chain.location, other.class)
    }

    /// Whether the chain accepts the packets, if `needs` are the rules that are missing.
    pub(super) fn is_met(&self, needs: &[Self]) -> bool {
        needs.iter().all(|need| need.chain.passes || !need.is_same_rule(self))
    }
}
