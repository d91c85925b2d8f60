//! Finds rules that interfere with `ftp-alg`.
//!
//! Some of them hide control connections, so they count only if packets of control connections may reach them:
//! - A `notrack` rule takes connections out of connection tracking. Then the gateway cannot see their translation, and
//!   rules cannot accept their packets by state. One for SYNs alone belongs to SYNPROXY, and does no harm.
//! - A rule puts connections into a conntrack zone. Our rules inspect only zones that rules named at the start.
//! - A `flow add` rule hands connections to a flowtable, which bypasses all chains.

use std::collections::BTreeSet;

use super::{
    Firewall,
    connection::Connection,
    model::{Field, Hook, IpVersion, LocatedRule, MarkWrite},
};

/// The most conntrack zones that are inspected. Each costs a look-up of a new connection.
const MAX_ZONES: usize = 16;

/// A rule outside our table that interferes with `ftp-alg`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictingRule {
    /// How the rule interferes.
    pub kind: ConflictKind,
    /// The chain of the rule, as in `inet filter forward`.
    pub chain: String,
    /// The text of the rule.
    pub rule: String,
    /// The command that removes the rule.
    pub remedy: Option<String>,
}

/// How a rule interferes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictKind {
    /// The rule assigns the kernel's FTP helper to control connections.
    Helper,
    /// The rule hands connections to a flowtable, which bypasses all chains.
    Offload,
    /// The rule sends packets to the queueing chains of `ftp-alg rules iptables`.
    Queueing,
    /// The rule takes packets of control connections out of connection tracking.
    Untracked,
    /// The rule puts control connections into a conntrack zone; `None`: it does not name one, but uses a map or a mark.
    Zone(Option<u16>),
    /// The rule changes our bits of the ct mark.
    CtMark,
}

impl ConflictKind {
    /// Whether the rule hides connections from us.
    fn hides_connections(self) -> bool {
        matches!(self, Self::Offload | Self::Untracked | Self::Zone(_))
    }
}

impl LocatedRule<'_> {
    fn conflict(&self, kind: ConflictKind) -> ConflictingRule {
        let remedy = self.delete_command();
        ConflictingRule { kind, chain: self.chain_name(), rule: self.rule.text.clone(), remedy }
    }
}

impl Firewall {
    /// The rules that interfere with `ftp-alg`: first those that assign the kernel's FTP helper, queue packets, or
    /// change our bits of the ct mark.
    pub fn conflicting_rules(&self) -> Vec<ConflictingRule> {
        let ours = self.gateway.mask();
        let mut found = Vec::new();
        for one in self.ruleset.rules() {
            let others = one.rule.conflicts.iter().filter(|kind| !kind.hides_connections());
            let is_ours =
                |write: &&MarkWrite| write.target == Field::CtMark && write.bits & ours != 0;
            let of_ct_mark = one.rule.mark_writes.iter().filter(is_ours);
            let kinds = others.copied().chain(of_ct_mark.map(|_| ConflictKind::CtMark));
            found.extend(kinds.map(|kind| one.conflict(kind)));
        }
        found.extend(self.hiding_rules());
        found
    }

    /// The rules that may hide a control connection, each once.
    fn hiding_rules(&self) -> Vec<ConflictingRule> {
        let mut found = Vec::new();
        let hides = |one: LocatedRule<'_>| one.rule.conflicts.iter().any(|c| c.hides_connections());
        if !self.ruleset.rules().any(hides) {
            return found;
        }
        let cases = Hook::FILTERS.into_iter().flat_map(|hook| IpVersion::BOTH.map(|ip| (hook, ip)));
        let ports = &self.gateway.control_ports;
        let connections = cases.flat_map(|(hook, ip)| {
            ports.iter().map(move |port| Connection::control(hook, ip, *port))
        });
        let ways = connections.map(|one| one.follow(&self.ruleset, &self.gateway));
        for (one, is_new) in ways.flat_map(|way| way.reached) {
            for kind in one.rule.conflicts.iter().filter(|kind| kind.hides_connections()) {
                // One that takes SYNs alone out of connection tracking belongs to SYNPROXY.
                let is_for_syns = is_new && *kind == ConflictKind::Untracked;
                let conflict = one.conflict(*kind);
                if !is_for_syns && !found.contains(&conflict) {
                    found.push(conflict);
                }
            }
        }
        found
    }

    /// The conntrack zones, besides 0, into which the rules put control connections.
    pub fn zones(&self) -> Vec<u16> {
        let zones = self.hiding_rules().into_iter().filter_map(|conflict| match conflict.kind {
            ConflictKind::Zone(zone) => zone,
            _ => None,
        });
        zones.collect::<BTreeSet<u16>>().into_iter().take(MAX_ZONES).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn untracked(firewall: &Firewall) -> Vec<(String, String)> {
        let conflicts = firewall.hiding_rules().into_iter();
        conflicts
            .inspect(|conflict| assert_eq!(conflict.kind, ConflictKind::Untracked))
            .map(|conflict| (conflict.rule, conflict.remedy.unwrap()))
            .collect()
    }

    fn iptables(rules: &str) -> Firewall {
        let text = format!("*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n");
        Firewall::from_iptables(&text)
    }

    #[test]
    fn iptables_notrack_rules_are_found_with_their_delete_command() {
        for rule in [
            "PREROUTING -p tcp -m tcp --dport 21 -j NOTRACK",
            "OUTPUT -p tcp -m tcp --sport 21 -j CT --notrack",
            "PREROUTING -i eth0 -j CT --notrack",
        ] {
            let text = format!("-A {rule}");
            let remedy = format!("iptables-legacy -t raw -D {rule}");
            let firewall = iptables(&format!("{text}\n"));
            assert_eq!(untracked(&firewall), [(text, remedy)]);
        }
    }

    #[test]
    fn rules_for_other_packets_are_ignored() {
        for rules in [
            "-A PREROUTING -p udp -m udp --dport 53 -j NOTRACK\n",
            "-A PREROUTING -p tcp -m tcp --dport 80 -j CT --notrack\n",
            "-A PREROUTING -i lo -j CT --notrack\n",
            "-A PREROUTING -j CT --zone 0\n",
            // SYNPROXY.
            "-A PREROUTING -p tcp -m tcp --dport 21 --tcp-flags FIN,SYN,RST,ACK SYN -j CT --notrack\n",
            // Packets that ftp-alg injects.
            "-A OUTPUT -m mark --mark 0x70000000 -j CT --notrack\n",
            // FTP packets do not reach the second rule.
            "-A PREROUTING -p tcp -m multiport --ports 21 -j ACCEPT\n\
             -A PREROUTING -j CT --notrack\n",
            ":X - [0:0]\n-A PREROUTING -p tcp -m multiport ! --ports 21 -j X\n-A X -j CT --notrack\n",
        ] {
            assert_eq!(untracked(&iptables(rules)), [], "{rules}");
        }
    }

    #[test]
    fn rules_that_set_a_zone_are_found() {
        for (rule, zone) in [
            ("-j CT --zone 1", Some(1)),
            ("-i eth0 -j CT --zone-orig 7", Some(7)),
            ("-j CT --zone mark", None),
        ] {
            let firewall = iptables(&format!("-A PREROUTING {rule}\n"));
            let found = firewall.hiding_rules();
            assert_eq!(
                found.iter().map(|found| found.kind).collect::<Vec<_>>(),
                [ConflictKind::Zone(zone)]
            );
            assert_eq!(firewall.zones(), zone.as_slice());
        }
        let rule = r#"{"mangle": {"key": {"ct": {"key": "zone"}}, "value": 7}}"#;
        let firewall = Firewall::from_nft_chain("ip filter prerouting -300 accept", &[rule]);
        let found = firewall.hiding_rules();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].kind, ConflictKind::Zone(Some(7)));
    }

    #[test]
    fn many_jumps_to_the_same_chains_terminate() {
        let rules: String = (0..60)
            .map(|n| format!("-A c{n} -j c{m}\n-A c{n} -j c{m}\n", m = n + 1))
            .collect::<String>()
            + "-A c60 -j c1\n-A c60 -j NOTRACK\n";
        let chains: String = (0..=60).map(|n| format!(":c{n} - [0:0]\n")).collect();
        let firewall = iptables(&format!("{chains}-A PREROUTING -j c0\n{rules}"));
        assert_eq!(untracked(&firewall).len(), 1);
    }
}
