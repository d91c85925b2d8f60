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

    #[test]
    fn a_rule_that_may_drop_the_mark_counts() {
        const MARK: &str = "-A FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT\n";
        const SOME: &str = "-A FORWARD -i wan -j DROP\n";
        const ALL: &str = "-A FORWARD -j DROP\n";
        const QUEUE: &str = "-A FORWARD -j NFQUEUE\n";
        let related = "-A FORWARD -i wan -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
        for (v4, v6, expected) in [
            (String::new(), "", AcceptedData::Marked),
            (MARK.to_owned() + SOME, "", AcceptedData::Marked),
            (SOME.to_owned() + MARK, "", AcceptedData::Related),
            (related.to_owned() + ALL, ALL, AcceptedData::Related),
            (MARK.to_owned() + ALL, ALL, AcceptedData::Related),
            (ALL.to_owned(), ALL, AcceptedData::Nothing),
            // A program decides.
            (QUEUE.to_owned(), "", AcceptedData::Related),
            (QUEUE.to_owned(), ALL, AcceptedData::Related),
        ] {
            let mut firewall = Firewall::new(Gateway::default());
            for (ip, rules) in [(IpVersion::V4, &*v4), (IpVersion::V6, v6)] {
                let text = format!("*filter\n:FORWARD ACCEPT\n{rules}COMMIT\n");
                firewall.add_iptables_save(Origin::IptablesLegacy, ip, &text);
            }
            let paths = data_path_verdicts(&firewall, Routing { v6: true, ..GATEWAY });
            assert_eq!(accepted_data(&firewall, &paths), Some(expected), "{v4} {v6}");
        }
    }

    #[test]
    fn a_gateway_needs_forward_and_a_host_input_and_output() {
        let host = Routing { v4: false, has_v6: false, ..GATEWAY };
        let serving = Routing { has_local_server: true, has_v6: false, ..GATEWAY };
        for (routing, v4, v6) in [
            (GATEWAY, "forward prerouting postrouting", ""),
            (host, "input output prerouting postrouting", ""),
            (serving, "forward input output prerouting postrouting", ""),
            (
                Routing { has_v6: true, ..host },
                "input output prerouting postrouting",
                "input output prerouting postrouting",
            ),
        ] {
            let paths = data_path_verdicts(&Firewall::new(Gateway::default()), routing);
            let used = IpVersion::BOTH.map(|ip| {
                let used = paths.iter().filter(|path| path.ip == ip && path.is_used);
                used.map(|path| path.hook.to_string()).collect::<Vec<_>>().join(" ")
            });
            assert_eq!(used, [v4, v6], "{routing:?}");
        }
    }
}
