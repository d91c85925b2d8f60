//! Which back end `auto` means here: the one that asks least of the operator's firewall.

use super::firewall::{Firewall, Hook, Ip, Judgement, Sign};
use super::{Features, RuleParameters};
use crate::config::Backend;

/// What the firewall does at one hook with one version of IP.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// The hook.
    pub hook: Hook,
    /// The version of IP.
    pub ip: Ip,
    /// Whether data connections of this machine's task go that way: on a router those that it
    /// forwards, else those that start and end here.
    pub matters: bool,
    /// Data connections with our ct mark.
    pub mark: Judgement,
    /// Data connections that conntrack expects.
    pub related: Judgement,
    /// What we send ourselves; at output only.
    pub injected: Option<Judgement>,
}

impl Outlook {
    /// What becomes of packets with this sign.
    pub fn of(&self, sign: Sign) -> Option<&Judgement> {
        match sign {
            Sign::Mark => Some(&self.mark),
            Sign::Related => Some(&self.related),
            Sign::Injected => self.injected.as_ref(),
        }
    }
}

/// What the firewall does at all hooks.
pub fn outlooks(
    firewall: &Firewall,
    features: &Features,
    parameters: &RuleParameters,
) -> Vec<Outlook> {
    let routes = features.forwards_v4 || features.forwards_v6;
    let ways = Hook::ALL.into_iter().flat_map(|hook| Ip::BOTH.map(|ip| (hook, ip)));
    ways.map(|(hook, ip)| {
        let judge = |sign| firewall.judge(hook, ip, sign, parameters);
        let matters = match (hook, ip) {
            (Hook::Forward, Ip::V4) => features.forwards_v4,
            (Hook::Forward, Ip::V6) => features.forwards_v6,
            (_, Ip::V4) => !routes,
            (_, Ip::V6) => !routes && features.has_v6,
        };
        Outlook {
            hook,
            ip,
            matters,
            mark: judge(Sign::Mark),
            related: judge(Sign::Related),
            injected: (hook == Hook::Output).then(|| judge(Sign::Injected)),
        }
    })
    .collect()
}

/// The back end that `auto` means, and why.
///
/// That which needs no change of the firewall; of both, `nftables`, which gives control connections
/// no helper and leaves `related` to others.
pub fn choose(features: &Features, outlooks: &[Outlook]) -> (Backend, &'static str) {
    let pass = |judgement: fn(&Outlook) -> &Judgement| {
        outlooks.iter().filter(|outlook| outlook.matters).all(|one| judgement(one).passes())
    };
    let open = outlooks
        .iter()
        .filter(|outlook| outlook.matters)
        .all(|outlook| outlook.mark.chains.iter().all(|chain| chain.by.rule.is_none()));
    if pass(|outlook| &outlook.mark) {
        let why = match open {
            true => "the firewall drops nothing by default",
            false => "the firewall lets connections with our ct mark pass",
        };
        (Backend::Nftables, why)
    } else if !pass(|outlook| &outlook.related) {
        (Backend::Nftables, "the firewall accepts neither our ct mark nor related connections yet")
    } else if features.can_expect() {
        (Backend::Conntrack, "the firewall accepts related connections, but not our ct mark")
    } else {
        (
            Backend::Nftables,
            "the firewall accepts related connections only, but this kernel takes no expectations",
        )
    }
}
