//! What the firewall that is loaded stops, and the line that each of its chains lacks.

use super::file_edits::{AcceptRule, MARKER};
use crate::gateway::{
    Backend, RuleParameters,
    firewall::{
        ChainLocation, ChainVerdict, DataPathVerdict, Firewall, Hook, Ip, Origin, PacketClass,
        condition,
    },
};

/// A chain that needs a line, at once or when its file is loaded.
#[derive(Clone, Debug)]
pub(super) struct NeededRule {
    pub(super) hook: Hook,
    pub(super) ip: Ip,
    pub(super) sign: PacketClass,
    pub(super) place: ChainLocation,
    /// Whether packets pass already, by a line that may be in no file.
    pub(super) passes: bool,
    /// Whether that line is one of setup's.
    pub(super) has_setup_rule: bool,
    /// What happens to them.
    pub(super) description: String,
    /// The command that doctor names.
    pub(super) command: String,
    /// The line, in the language of the firewall.
    pub(super) rule: AcceptRule,
}

/// The chains that stop what `backend` needs, where that matters, and those that pass it by a line of ours.
pub(super) fn needed_rules(
    outlooks: &[DataPathVerdict],
    backend: Backend,
    parameters: &RuleParameters,
) -> Vec<NeededRule> {
    let mut needs: Vec<NeededRule> = Vec::new();
    for outlook in outlooks {
        for sign in [PacketClass::for_data_connections(backend), PacketClass::Injected] {
            let Some(judgement) = outlook.verdict_for(sign) else { continue };
            for chain in judgement.chains.iter().filter(|_| outlook.is_used_by(sign)) {
                let known = needs.iter().any(|n| n.place == chain.location && n.sign == sign);
                if !known && let Some(need) = needed_rule(outlook, chain, sign, parameters) {
                    needs.push(need);
                }
            }
        }
    }
    needs
}

fn needed_rule(
    outlook: &DataPathVerdict,
    chain: &ChainVerdict,
    sign: PacketClass,
    parameters: &RuleParameters,
) -> Option<NeededRule> {
    let known_by = recognising_words(chain.location.origin, sign, parameters);
    let by_our_line = |rule: &String| known_by.iter().all(|words| rule.contains(words));
    if chain.passes
        && (sign == PacketClass::RelatedData
            || !chain.decided_by.rule.as_ref().is_some_and(by_our_line))
    {
        return None;
    }
    let place = chain.location.clone();
    let command = place.accept_command(sign, parameters);
    // As nft lists it.
    let condition = condition(place.origin, sign, parameters).replace(" and ", " & ");
    let what = sign.description();
    let says = match chain.passes {
        true => format!("{place} passes {what}"),
        false => format!("{place} drops {what}, by {}", chain.decided_by),
    };
    let (hook, ip, passes) = (outlook.hook, outlook.ip, chain.passes);
    let has_ours = chain.decided_by.rule.as_ref().is_some_and(|rule| rule.contains(MARKER));
    // Another's line does not help where packets are dropped: it comes too late, or is in no chain that they pass.
    let [words, value] = known_by;
    let known_by = [if passes { words } else { MARKER.to_owned() }, value];
    Some(NeededRule {
        hook,
        ip,
        sign,
        place,
        passes,
        has_setup_rule: has_ours,
        description: says,
        command,
        rule: AcceptRule { condition, recognised_by: known_by },
    })
}

/// The words of a line with this effect.
fn recognising_words(
    origin: Origin,
    sign: PacketClass,
    parameters: &RuleParameters,
) -> [String; 2] {
    let nft = origin == Origin::Nftables;
    // Some programs print leading zeros, and some do not.
    let (words, value) = match sign {
        PacketClass::RelatedData => ("related", "established".to_owned()),
        PacketClass::MarkedData => {
            (if nft { "ct mark" } else { "connmark" }, format!("{:x}", parameters.data()))
        }
        PacketClass::Injected => {
            (if nft { "meta mark" } else { "-m mark" }, format!("{:x}", parameters.mask()))
        }
    };
    [words.to_owned(), value]
}

impl NeededRule {
    /// Whether `firewall` lets these packets pass now.
    pub(super) fn is_met(&self, firewall: &Firewall, parameters: &RuleParameters) -> bool {
        let judgement = firewall.verdict(self.hook, self.ip, self.sign, parameters);
        judgement.chains.iter().all(|chain| chain.passes || chain.location != self.place)
    }

    /// As `ipv4`, in the words of iptables and firewalld.
    pub(super) fn ip_name(&self) -> &'static str {
        if self.ip == Ip::V4 { "ipv4" } else { "ipv6" }
    }
}
