//! What the operator's firewall does to what a back end needs, at each hook.

use super::{Firewall, Hook, HookVerdict, Ip, PacketClass};
use crate::gateway::{Routing, RuleParameters};

/// What the firewall does at one hook with one version of IP.
#[derive(Clone, Debug)]
pub struct DataPathVerdict {
    pub hook: Hook,
    pub ip: Ip,
    /// Whether data connections of this machine's task go that way: on a router those that it
    /// forwards, and those that start and end here if it is none, or an FTP server listens.
    pub is_used: bool,
    /// Whether this machine has addresses of that version.
    has_addresses: bool,
    /// Data connections with our ct mark.
    pub mark: HookVerdict,
    /// Data connections that conntrack expects.
    pub related: HookVerdict,
    /// What we send ourselves; at output only.
    pub injected: Option<HookVerdict>,
}

impl DataPathVerdict {
    /// Whether packets with this sign go that way. What we send goes wherever a session is.
    pub fn is_used_by(&self, sign: PacketClass) -> bool {
        if sign == PacketClass::Injected { self.has_addresses } else { self.is_used }
    }

    /// What becomes of packets with this sign.
    pub fn verdict_for(&self, sign: PacketClass) -> Option<&HookVerdict> {
        match sign {
            PacketClass::MarkedData => Some(&self.mark),
            PacketClass::RelatedData => Some(&self.related),
            PacketClass::Injected => self.injected.as_ref(),
        }
    }
}

/// What the firewall does at all hooks.
pub fn data_path_verdicts(
    firewall: &Firewall,
    routing: Routing,
    parameters: &RuleParameters,
) -> Vec<DataPathVerdict> {
    let routes = routing.v4 || routing.v6;
    let ways = Hook::ALL.into_iter().flat_map(|hook| Ip::BOTH.map(|ip| (hook, ip)));
    ways.map(|(hook, ip)| {
        let judge = |sign| firewall.verdict(hook, ip, sign, parameters);
        let matters = match (hook, ip) {
            (Hook::Forward, Ip::V4) => routing.v4,
            (Hook::Forward, Ip::V6) => routing.v6,
            (_, Ip::V4) => !routes || routing.serves,
            (_, Ip::V6) => (!routes || routing.serves) && routing.has_v6,
        };
        DataPathVerdict {
            hook,
            ip,
            is_used: matters,
            has_addresses: ip == Ip::V4 || routing.has_v6,
            mark: judge(PacketClass::MarkedData),
            related: judge(PacketClass::RelatedData),
            injected: (hook == Hook::Output).then(|| judge(PacketClass::Injected)),
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::firewall::Origin;

    const GATEWAY: Routing = Routing { v4: true, v6: false, has_v6: true, serves: false };
    const HOST: Routing = Routing { v4: false, v6: false, has_v6: false, serves: false };
    const RELATED: &str = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    const MARK: &str = "-A FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT";

    /// Whether data connections with our mark, and those that are expected, pass wherever they go with these rules of
    /// iptables-legacy, all with policy drop.
    fn pass(rules: &str, routing: Routing) -> [bool; 2] {
        let text = format!(
            "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n{rules}\nCOMMIT\n"
        );
        let mut firewall = Firewall::default();
        firewall.add_iptables_save(Origin::IptablesLegacy, Ip::V4, &text);
        let outlooks = data_path_verdicts(&firewall, routing, &RuleParameters::default());
        let ways = || outlooks.iter().filter(|outlook| outlook.is_used);
        [ways().all(|way| way.mark.passes()), ways().all(|way| way.related.passes())]
    }

    #[test]
    fn a_gateway_is_judged_by_what_it_forwards() {
        assert_eq!(pass("", GATEWAY), [false, false]);
        assert_eq!(pass(RELATED, GATEWAY), [false, true]);
        // What is expected bears the mark, too.
        assert_eq!(pass(MARK, GATEWAY), [true, true]);
    }

    #[test]
    fn a_host_is_judged_by_what_starts_and_ends_there() {
        assert_eq!(pass(RELATED, HOST), [false, false]);
        let both = ["INPUT", "OUTPUT"].map(|chain| RELATED.replace("FORWARD", chain));
        assert_eq!(pass(&both[0], HOST), [false, false]);
        assert_eq!(pass(&both.join("\n"), HOST), [false, true]);
        assert_eq!(pass(&both.join("\n"), GATEWAY), [false, false]);
        let serving = Routing { serves: true, ..GATEWAY };
        assert_eq!(pass(RELATED, serving), [false, false]);
        assert_eq!(pass(&format!("{RELATED}\n{}", both.join("\n")), serving), [false, true]);
    }
}
