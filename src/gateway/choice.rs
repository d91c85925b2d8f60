//! Which back end `auto` means here: the one that asks least of the operator's firewall.

use std::{sync::mpsc, thread, time::Duration};

use super::{
    Backend, Expecting, Routing, RuleParameters,
    firewall::{Firewall, Hook, Ip, Judgement, Sign},
};

/// How long `auto` may keep a daemon from its start: some rule sets take longer to read, and hosts
/// are without FTP meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the firewall does at one hook with one version of IP.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// The hook.
    pub hook: Hook,
    /// The version of IP.
    pub ip: Ip,
    /// Whether data connections of this machine's task go that way: on a router those that it
    /// forwards, and those that start and end here if it is none, or an FTP server listens.
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
    routing: Routing,
    parameters: &RuleParameters,
) -> Vec<Outlook> {
    let routes = routing.v4 || routing.v6;
    let ways = Hook::ALL.into_iter().flat_map(|hook| Ip::BOTH.map(|ip| (hook, ip)));
    ways.map(|(hook, ip)| {
        let judge = |sign| firewall.judge(hook, ip, sign, parameters);
        let matters = match (hook, ip) {
            (Hook::Forward, Ip::V4) => routing.v4,
            (Hook::Forward, Ip::V6) => routing.v6,
            (_, Ip::V4) => !routes || routing.serves,
            (_, Ip::V6) => (!routes || routing.serves) && routing.has_v6,
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
/// That which needs no change of the firewall; of both, `nftables`, which leaves `related` to others.
/// Where there is no firewall yet, `conntrack`, whose data connections are `related` and have the
/// mark, too. `can_expect` says whether the kernel takes expectations ([`Expecting::possible`]), and
/// is asked only if it matters; `is_complete` whether all of the firewall could be read.
pub fn choose(
    can_expect: impl Fn() -> bool,
    is_complete: bool,
    outlooks: &[Outlook],
) -> (Backend, &'static str) {
    let pass = |judgement: fn(&Outlook) -> &Judgement| {
        outlooks.iter().filter(|outlook| outlook.matters).all(|one| judgement(one).passes())
    };
    let admits_the_mark = pass(|outlook| &outlook.mark);
    let by_policy = |outlook: &Outlook| outlook.mark.chains.iter().all(|c| c.by.rule.is_none());
    let is_open = admits_the_mark && outlooks.iter().filter(|one| one.matters).all(by_policy);
    if is_open && can_expect() {
        let why = match is_complete {
            true => "the firewall drops nothing yet, and one that is loaded later may do",
            false => "not all of the firewall could be read, which may accept either sign",
        };
        (Backend::Conntrack, why)
    } else if is_open && !is_complete {
        (Backend::Nftables, "not all of the firewall could be read")
    } else if is_open {
        (Backend::Nftables, "the firewall drops nothing by default")
    } else if admits_the_mark {
        (Backend::Nftables, "the firewall lets connections with our ct mark pass")
    } else if !pass(|outlook| &outlook.related) {
        (Backend::Nftables, "the firewall accepts neither our ct mark nor related connections yet")
    } else if can_expect() {
        (Backend::Conntrack, "the firewall accepts related connections, but not our ct mark")
    } else {
        (
            Backend::Nftables,
            "the firewall accepts related connections only, but this kernel takes no expectations",
        )
    }
}

/// What `auto` means in this network namespace, and why, asking no more than it takes.
pub fn automatic(parameters: &RuleParameters) -> (Backend, &'static str) {
    let parameters = parameters.clone();
    let look = move || {
        let firewall = Firewall::read_without_texts();
        let outlooks = outlooks(&firewall, Routing::read(parameters.control_ports()), &parameters);
        choose(|| Expecting::read().possible(), firewall.unread().is_empty(), &outlooks)
    };
    within(PATIENCE, look).unwrap_or_else(|| {
        let late =
            "the firewall could not be read in 5 seconds; [pinhole] backend says it without that";
        let backend =
            if Expecting::read().possible() { Backend::Conntrack } else { Backend::Nftables };
        (backend, late)
    })
}

/// What `look` finds, unless it takes longer; its thread then ends some time later.
fn within<T: Send + 'static>(
    limit: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, found) = mpsc::channel();
    let work = move || {
        let _ = sender.send(look());
    };
    thread::Builder::new().name("firewall".into()).spawn(work).ok()?;
    found.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::firewall::Origin;

    const GATEWAY: Routing = Routing { v4: true, v6: false, has_v6: true, serves: false };
    const HOST: Routing = Routing { v4: false, v6: false, has_v6: false, serves: false };

    /// What `auto` means behind these rules of iptables-legacy, all with policy drop.
    fn choice(rules: &str, routing: Routing, can_expect: bool) -> Backend {
        let text = format!(
            "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n{rules}\nCOMMIT\n"
        );
        let mut firewall = Firewall::default();
        firewall.add_saved(Origin::IptablesLegacy, Ip::V4, &text);
        let outlooks = outlooks(&firewall, routing, &RuleParameters::default());
        choose(|| can_expect, true, &outlooks).0
    }

    const RELATED: &str = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    const MARK: &str = "-A FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT";

    #[test]
    fn the_firewall_that_only_accepts_related_gets_expectations() {
        assert_eq!(choice(RELATED, GATEWAY, true), Backend::Conntrack);
    }

    #[test]
    fn without_expectations_or_need_it_is_nftables() {
        assert_eq!(choice(RELATED, GATEWAY, false), Backend::Nftables);
        assert_eq!(choice("", GATEWAY, true), Backend::Nftables);
        assert_eq!(choice(MARK, GATEWAY, true), Backend::Nftables);
        assert_eq!(choice(&format!("{RELATED}\n{MARK}"), GATEWAY, true), Backend::Nftables);
    }

    #[test]
    fn where_there_is_no_firewall_yet_data_connections_have_both_signs() {
        let outlooks = outlooks(&Firewall::default(), GATEWAY, &RuleParameters::default());
        assert_eq!(choose(|| true, true, &outlooks).0, Backend::Conntrack);
        assert_eq!(choose(|| false, true, &outlooks).0, Backend::Nftables);
    }

    #[test]
    fn a_host_is_judged_by_what_starts_and_ends_there() {
        assert_eq!(choice(RELATED, HOST, true), Backend::Nftables);
        let both = ["INPUT", "OUTPUT"].map(|chain| RELATED.replace("FORWARD", chain));
        assert_eq!(choice(&both[0], HOST, true), Backend::Nftables);
        assert_eq!(choice(&both.join("\n"), HOST, true), Backend::Conntrack);
        assert_eq!(choice(&both.join("\n"), GATEWAY, true), Backend::Nftables);
        let all = format!("{RELATED}\n{}", both.join("\n"));
        let serving = Routing { serves: true, ..GATEWAY };
        assert_eq!(choice(RELATED, GATEWAY, true), Backend::Conntrack);
        assert_eq!(choice(RELATED, serving, true), Backend::Nftables);
        assert_eq!(choice(&all, serving, true), Backend::Conntrack);
    }

    #[test]
    fn what_was_not_read_is_not_said_to_drop_nothing() {
        let why = |is_complete| choose(|| false, is_complete, &[]).1;
        assert_eq!(why(true), "the firewall drops nothing by default");
        assert_eq!(why(false), "not all of the firewall could be read");
    }

    #[test]
    fn a_look_that_takes_long_is_not_waited_for() {
        assert_eq!(within(Duration::from_secs(60), || 1), Some(1));
        let (_kept, never) = mpsc::channel::<u8>();
        assert_eq!(within(Duration::from_millis(10), move || never.recv()), None);
    }
}
