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

    /// Whether a rule has all of these words, whatever their case.
    pub fn has_rule_with(&self, words: &[&str]) -> bool {
        let has = |rule: &str, word: &str| {
            rule.split(|one: char| !one.is_alphanumeric()).any(|one| one.eq_ignore_ascii_case(word))
        };
        self.ruleset.rules().any(|one| words.iter().all(|word| has(&one.rule.text, word)))
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

    use ConflictKind::{CtMark, Helper, Offload, Untracked, Zone};

    use crate::rules_for_tests::{ACCEPT, PORT, accepts_mark, is};

    /// The rules that interfere: how, and the command that removes each.
    fn found(firewall: &Firewall) -> Vec<(ConflictKind, String)> {
        let conflicts = firewall.conflicting_rules().into_iter();
        conflicts.map(|one| (one.kind, one.remedy.unwrap())).collect()
    }

    fn iptables(table: &str, rules: &str) -> Firewall {
        let rules = format!(":PREROUTING ACCEPT\n:OUTPUT ACCEPT\n{rules}");
        Firewall::from_iptables_tables(&[(table, &rules)])
    }

    #[test]
    fn rules_of_iptables_are_found_with_their_delete_command() {
        for (table, rule, kind) in [
            ("raw", "PREROUTING -p tcp -m tcp --dport 21 -j NOTRACK", Untracked),
            ("raw", "OUTPUT -p tcp -m tcp --sport 21 -j CT --notrack", Untracked),
            ("raw", "PREROUTING -i eth0 -j CT --notrack", Untracked),
            ("raw", "PREROUTING -j CT --zone 1", Zone(Some(1))),
            ("raw", "PREROUTING -i eth0 -j CT --zone-orig 7", Zone(Some(7))),
            ("raw", "PREROUTING -j CT --zone mark", Zone(None)),
            ("mangle", "PREROUTING -j CONNMARK --save-mark", CtMark),
            ("mangle", "PREROUTING -j CONNMARK --set-xmark 0x5/0xffffffff", CtMark),
        ] {
            let firewall = iptables(table, &format!("-A {rule}"));
            let remedy = format!("iptables-legacy -t {table} -D {rule}");
            assert_eq!(found(&firewall), [(kind, remedy)]);
            assert_eq!(firewall.conflicting_rules()[0].rule, format!("-A {rule}"));
            let zone = if let Zone(zone) = kind { zone } else { None };
            assert_eq!(firewall.zones(), zone.as_slice(), "{rule}");
        }
        let rule = "PREROUTING -p tcp -m tcp --dport 21 -m comment --comment";
        let helper = format!("-A {rule} \"it's $(reboot) `reboot`\" -j CT --helper ftp");
        let quoted = r"'it'\''s $(reboot) `reboot`' -j CT --helper ftp";
        let remedy = format!("iptables-legacy -t raw -D {rule} {quoted}");
        assert_eq!(found(&iptables("raw", &helper)), [(Helper, remedy)]);
    }

    #[test]
    fn rules_are_found_by_their_words() {
        let rules = ":POSTROUTING ACCEPT\n-A POSTROUTING -o wan0 -j MASQUERADE\n\
                     -A POSTROUTING -o masquerade1 -j SNAT --to-source 198.51.100.1";
        let firewall = Firewall::from_iptables_tables(&[("nat", rules)]);
        for (words, is_found) in [
            (&["masquerade"][..], true),
            (&["postrouting", "wan0"], true),
            (&["source", "wan0"], false),
        ] {
            assert_eq!(firewall.has_rule_with(words), is_found, "{words:?}");
        }
    }

    #[test]
    fn rules_for_other_packets_are_ignored() {
        for (table, rules) in [
            ("raw", "-A PREROUTING -p tcp -m tcp --dport 80 -j CT --notrack"),
            ("raw", "-A PREROUTING -j CT --zone 0"),
            // SYNPROXY.
            ("raw", "-A PREROUTING -p tcp -m tcp --dport 21 --syn -j CT --notrack"),
            // FTP packets do not reach the second rule.
            (
                "raw",
                "-A PREROUTING -p tcp -m multiport --ports 21 -j ACCEPT\n-A PREROUTING -j NOTRACK",
            ),
            ("raw", ":X -\n-A PREROUTING -p tcp -m multiport ! --ports 21 -j X\n-A X -j NOTRACK"),
            // Bits of others.
            ("mangle", "-A PREROUTING -j CONNMARK --save-mark --nfmask 0xff00 --ctmask 0xff00"),
            ("mangle", "-A PREROUTING -j CONNMARK --restore-mark"),
            ("mangle", "-A PREROUTING -j CONNMARK --set-xmark 0x5/0x7"),
        ] {
            assert_eq!(found(&iptables(table, rules)), [], "{rules}");
        }
    }

    #[test]
    fn rules_of_nftables_are_found_if_control_connections_may_reach_them() {
        let zone = r#"{"mangle": {"key": {"ct": {"key": "zone"}}, "value": 7}}"#;
        let flow = r#"{"flow": {"op": "add", "flowtable": "@ft"}}"#;
        let tcp = is("==", r#"{"meta": {"key": "l4proto"}}"#, r#""tcp""#);
        let ports = [PORT.replace("dport", "sport"), PORT.to_owned()];
        let ports = ports.map(|port| is("!=", &port, "21")).join(", ");
        let assured = is("in", r#"{"ct": {"key": "status"}}"#, r#""assured""#);
        let recipe = accepts_mark().replace(ACCEPT, &assured);
        for (chain, rule, expected) in [
            ("ip filter prerouting -300 accept", zone.to_owned(), Some(Zone(Some(7)))),
            ("inet filter forward 0 drop", format!("{tcp}, {flow}"), Some(Offload)),
            ("inet filter forward 0 drop", format!("{ports}, {flow}"), None),
            ("inet filter forward 0 drop", format!("{recipe}, {flow}"), None),
        ] {
            let found = found(&Firewall::from_nft_chain(chain, &[&rule]));
            let kinds: Vec<_> = found.iter().map(|(kind, _)| *kind).collect();
            assert_eq!(kinds, expected.as_slice(), "{rule}");
        }
    }
}
