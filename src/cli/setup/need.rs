//! What the firewall that is loaded stops, and the line that each of its chains lacks.

use super::text::{MARKER, Rule};
use crate::gateway::{
    Backend, RuleParameters,
    firewall::{ChainJudgement, Firewall, Hook, Ip, Origin, Outlook, Place, Sign, condition},
};

/// A chain that needs a line, at once or when its file is loaded.
#[derive(Clone, Debug)]
pub(super) struct Need {
    pub(super) hook: Hook,
    pub(super) ip: Ip,
    pub(super) sign: Sign,
    pub(super) place: Place,
    /// Whether packets pass already, by a line that may be in no file.
    pub(super) passes: bool,
    /// Whether that line is one of setup's.
    pub(super) has_ours: bool,
    /// What happens to them.
    pub(super) says: String,
    /// The command that doctor names.
    pub(super) command: String,
    /// The line, in the language of the firewall.
    pub(super) rule: Rule,
}

/// The chains that stop what `backend` needs, where that matters, and those that pass it by a line of ours.
pub(super) fn needs(
    outlooks: &[Outlook],
    backend: Backend,
    parameters: &RuleParameters,
) -> Vec<Need> {
    let mut needs: Vec<Need> = Vec::new();
    for outlook in outlooks {
        for sign in [Sign::of(backend), Sign::Injected] {
            let Some(judgement) = outlook.of(sign) else { continue };
            for chain in judgement.chains.iter().filter(|_| outlook.matters_to(sign)) {
                let known = needs.iter().any(|n| n.place == chain.place && n.sign == sign);
                if !known && let Some(need) = need(outlook, chain, sign, parameters) {
                    needs.push(need);
                }
            }
        }
    }
    needs
}

fn need(
    outlook: &Outlook,
    chain: &ChainJudgement,
    sign: Sign,
    parameters: &RuleParameters,
) -> Option<Need> {
    let known_by = known_by(chain.place.origin, sign, parameters);
    let by_our_line = |rule: &String| known_by.iter().all(|words| rule.contains(words));
    if chain.passes && (sign == Sign::Related || !chain.by.rule.as_ref().is_some_and(by_our_line)) {
        return None;
    }
    let place = chain.place.clone();
    let command = place.command(sign, parameters);
    // As nft lists it.
    let condition = condition(place.origin, sign, parameters).replace(" and ", " & ");
    let what = sign.packets();
    let says = match chain.passes {
        true => format!("{place} passes {what}"),
        false => format!("{place} drops {what}, by {}", chain.by),
    };
    let (hook, ip, passes) = (outlook.hook, outlook.ip, chain.passes);
    let has_ours = chain.by.rule.as_ref().is_some_and(|rule| rule.contains(MARKER));
    // Another's line does not help where packets are dropped: it comes too late, or is in no chain that they pass.
    let [words, value] = known_by;
    let known_by = [if passes { words } else { MARKER.to_owned() }, value];
    Some(Need {
        hook,
        ip,
        sign,
        place,
        passes,
        has_ours,
        says,
        command,
        rule: Rule { condition, known_by },
    })
}

/// The words of a line with this effect.
fn known_by(origin: Origin, sign: Sign, parameters: &RuleParameters) -> [String; 2] {
    let nft = origin == Origin::Nftables;
    // Some programs print leading zeros, and some do not.
    let (words, value) = match sign {
        Sign::Related => ("related", "established".to_owned()),
        Sign::Mark => {
            (if nft { "ct mark" } else { "connmark" }, format!("{:x}", parameters.data()))
        }
        Sign::Injected => {
            (if nft { "meta mark" } else { "-m mark" }, format!("{:x}", parameters.mask()))
        }
    };
    [words.to_owned(), value]
}

impl Need {
    /// Whether `firewall` lets these packets pass now.
    pub(super) fn is_met(&self, firewall: &Firewall, parameters: &RuleParameters) -> bool {
        let judgement = firewall.judge(self.hook, self.ip, self.sign, parameters);
        judgement.chains.iter().all(|chain| chain.passes || chain.place != self.place)
    }

    /// As `ipv4`, in the words of iptables and firewalld.
    pub(super) fn ipv(&self) -> &'static str {
        if self.ip == Ip::V4 { "ipv4" } else { "ipv6" }
    }
}
