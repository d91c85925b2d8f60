//! Evaluates whether the firewall accepts the packets that a back end needs, at each hook.

use super::{ChainVerdict, Firewall, Hook, HookVerdict, IpVersion, PacketClass, Routing};

/// The verdicts on data connections and injected packets at one hook with one IP version.
#[derive(Clone, Debug)]
pub struct DataPathVerdict {
    /// The hook.
    pub hook: Hook,
    /// The version of IP.
    pub ip: IpVersion,
    /// Whether data connections use this hook on this machine.
    ///
    /// A router uses forward. Input and output are used if the machine is no router, or if an FTP server listens.
    /// Prerouting and postrouting are used by both.
    pub is_used: bool,
    /// Whether this machine has addresses of this IP version.
    has_addresses: bool,
    /// The verdict on data connections with our ct mark.
    pub mark: HookVerdict,
    /// The verdict on data connections that conntrack expects.
    pub related: HookVerdict,
    /// The verdict on data connections that nobody admits.
    pub unmarked: HookVerdict,
    /// The verdict on packets that `ftp-alg` injects; at output and postrouting only.
    pub injected: Option<HookVerdict>,
}

impl DataPathVerdict {
    /// Whether packets of this class use this hook. `ftp-alg` injects packets on every machine with a session.
    pub fn is_used_by(&self, class: PacketClass) -> bool {
        if class == PacketClass::Injected { self.has_addresses } else { self.is_used }
    }

    /// Whether data connections with our mark certainly pass. At prerouting and postrouting it is enough that no rule
    /// drops them and passes expected ones, because many gateways drop spoofed addresses there.
    fn accepts_mark(&self) -> bool {
        let Self { mark, related, .. } = self;
        mark.chains.iter().zip(&related.chains).all(|(mark, related)| {
            let spares = |rule| !self.hook.is_filter() && related.exceptions.contains(rule);
            mark.passes && mark.exceptions.iter().all(spares)
        })
    }

    /// Whether `chain` drops data connections, except some that a rule accepts because they were admitted. Such a rule
    /// names the addresses of those that may use FTP, so their data connections are not a problem.
    pub fn is_restricted_by(&self, chain: &ChainVerdict) -> bool {
        accepts_some_admitted(chain, &self.unmarked)
    }

    /// The verdict on packets of this class; `None` if the class does not occur at this hook.
    pub fn verdict_for(&self, class: PacketClass) -> Option<&HookVerdict> {
        match class {
            PacketClass::MarkedData => Some(&self.mark),
            PacketClass::RelatedData => Some(&self.related),
            PacketClass::Injected => self.injected.as_ref(),
        }
    }
}

/// Whether a rule of a dropping chain accepts data connections with some addresses, and only admitted ones. `unmarked`
/// is the verdict on others.
pub(crate) fn accepts_some_admitted(chain: &ChainVerdict, unmarked: &HookVerdict) -> bool {
    let is_for_admitted = |rule| !unmarked.has_exception(chain, rule);
    !chain.passes && chain.accepted_by_address.iter().any(is_for_admitted)
}

/// Which data connections a firewall accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptedData {
    /// Certainly all connections with our mark, at all hooks that they use.
    Marked,
    /// Some of those that are `related`, as far as can be seen.
    Related,
    /// None of them.
    Nothing,
}

/// Which data connections `firewall` accepts; `None` if not all of its rules could be read.
pub fn accepted_data(firewall: &Firewall, paths: &[DataPathVerdict]) -> Option<AcceptedData> {
    if !firewall.read_errors.is_empty() {
        return None;
    }
    let used = || paths.iter().filter(|path| path.is_used);
    if used().all(DataPathVerdict::accepts_mark) {
        return Some(AcceptedData::Marked);
    }
    let is_open = |path: &DataPathVerdict| {
        let mut others = used().filter(|other| other.ip == path.ip && !other.hook.is_filter());
        path.hook.is_filter() && path.related.may_pass() && others.all(|one| one.related.may_pass())
    };
    Some(match used().any(is_open) {
        true => AcceptedData::Related,
        false => AcceptedData::Nothing,
    })
}

/// The verdicts at all hooks with both IP versions.
pub fn data_path_verdicts(firewall: &Firewall, routing: Routing) -> Vec<DataPathVerdict> {
    let routes = routing.v4 || routing.v6;
    let cases = Hook::ALL.into_iter().flat_map(|hook| IpVersion::BOTH.map(|ip| (hook, ip)));
    cases
        .map(|(hook, ip)| {
            let verdict = |class| firewall.verdict(hook, ip, class);
            let (forwards, has_addresses) = match ip {
                IpVersion::V4 => (routing.v4, true),
                IpVersion::V6 => (routing.v6, routing.has_v6),
            };
            let is_end = (!routes || routing.has_local_server) && has_addresses;
            let is_used = match hook {
                Hook::Forward => forwards,
                Hook::Input | Hook::Output => is_end,
                Hook::Prerouting | Hook::Postrouting => forwards || is_end,
            };
            let sends = matches!(hook, Hook::Output | Hook::Postrouting);
            DataPathVerdict {
                hook,
                ip,
                is_used,
                has_addresses,
                mark: verdict(PacketClass::MarkedData),
                related: verdict(PacketClass::RelatedData),
                unmarked: firewall.data_verdict(hook, ip, PacketClass::MarkedData, 0),
                injected: sends.then(|| verdict(PacketClass::Injected)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gateway, Origin};

    const GATEWAY: Routing = Routing { v4: true, v6: false, has_v6: true, has_local_server: false };
    const HOST: Routing = Routing { v4: false, v6: false, has_v6: false, has_local_server: false };
    const RELATED: &str = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    const MARK: &str = "-A FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT";

    /// Whether data connections with our mark, and expected ones, pass all hooks that they use. All policies are drop,
    /// and `rules` are rules of iptables-legacy.
    fn pass(rules: &str, routing: Routing) -> [bool; 2] {
        let text = format!(
            "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n{rules}\nCOMMIT\n"
        );
        let firewall = Firewall::from_iptables(&text);
        let verdicts = data_path_verdicts(&firewall, routing);
        let cases = || verdicts.iter().filter(|verdict| verdict.is_used);
        [cases().all(|case| case.mark.passes()), cases().all(|case| case.related.passes())]
    }

    #[test]
    fn a_rule_that_may_drop_the_mark_counts() {
        const DROP: &str = "-A FORWARD -i wan -j DROP";
        let accepted = |rules: &[&str], ip6: &str| {
            let ip4 = rules.join("\n");
            let mut firewall = Firewall::new(Gateway::default());
            for (ip, rules) in [(IpVersion::V4, ip4.as_str()), (IpVersion::V6, ip6)] {
                let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n{rules}\nCOMMIT\n");
                firewall.add_iptables_save(Origin::IptablesLegacy, ip, &text);
            }
            let routing = Routing { v6: true, ..GATEWAY };
            let paths = data_path_verdicts(&firewall, routing);
            accepted_data(&firewall, &paths).unwrap()
        };
        const ALL: &str = "-A FORWARD -j DROP";
        let from_wan = RELATED.replace("-m conntrack", "-i wan -m conntrack");
        for (rules, ip6, expected) in [
            (&[][..], "", AcceptedData::Marked),
            (&[MARK, DROP], "", AcceptedData::Marked),
            (&[MARK, ALL], MARK, AcceptedData::Marked),
            (&[DROP], "", AcceptedData::Related),
            (&[RELATED, DROP], "", AcceptedData::Related),
            (&[&from_wan, DROP], "", AcceptedData::Related),
            (&[&from_wan, ALL], ALL, AcceptedData::Related),
            (&[RELATED, ALL], ALL, AcceptedData::Related),
            (&[DROP, MARK], "", AcceptedData::Related),
            (&[MARK, ALL], ALL, AcceptedData::Related),
            (&[ALL], ALL, AcceptedData::Nothing),
        ] {
            assert_eq!(accepted(rules, ip6), expected, "{rules:?} {ip6}");
        }
    }

    #[test]
    fn a_gateway_needs_forward_and_a_host_input_and_output() {
        let serving = Routing { has_local_server: true, ..GATEWAY };
        let [input, output] = ["INPUT", "OUTPUT"].map(|chain| RELATED.replace("FORWARD", chain));
        let both = format!("{input}\n{output}");
        for (routing, rules, expected) in [
            (GATEWAY, "", [false, false]),
            (GATEWAY, RELATED, [false, true]),
            // Expected connections have the mark, too.
            (GATEWAY, MARK, [true, true]),
            (GATEWAY, &both, [false, false]),
            (HOST, RELATED, [false, false]),
            (HOST, &input, [false, false]),
            (HOST, &both, [false, true]),
            (serving, RELATED, [false, false]),
            (serving, &format!("{RELATED}\n{both}"), [false, true]),
        ] {
            assert_eq!(pass(rules, routing), expected, "{routing:?} {rules}");
        }
    }
}
