//! Finds rules that do not work together with the marks of the fast path.
//!
//! The fast path marks packets of control connections that it inspected, and the first packet of a data connection. Our
//! table reads the marks, and clears them. Before that, rules of prerouting and of policy routing may overwrite the
//! marks, or decide otherwise about a marked packet. Data connections of the fast path have one more bit in the ct
//! mark, and rules of all hooks may tell them apart by it.

use super::{
    Firewall, Gateway, Ruleset,
    connection::{Connection, ConnectionKind, DESTINATION_NAT_PRIORITY, is_before_conntrack},
    model::{
        BaseChain, ChangedMarkBits, Comparison, Field, FieldValue, Hook, IpVersion, LocatedChain,
        SamplePacket, state,
    },
    sample_packets::{PacketClass, first_packet},
    traversal,
};
use serde::{Deserialize, Serialize};

/// The priority of the first of our chains in the forward hook. It clears the packet marks of the fast path.
const CLEARING_PRIORITY: i32 = -152;

/// What rules of others do with the ct mark, if the gateway's rules must do more because of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CtMarkUse {
    /// They do not write the ct mark.
    #[default]
    None,
    /// They write the ct mark, or set packet marks from it.
    Restored,
    /// They set bits of the gateway in packet marks from the ct mark, and `ip rule` compares these bits.
    Compared,
}

/// A rule of policy routing (`ip rule`) that compares the packet mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutingRule {
    /// Whose routes it chooses.
    pub ip: IpVersion,
    /// The priority, by which `ip rule` names the rule.
    pub priority: u32,
    /// The mark under `mask`.
    pub mark: u32,
    /// The bits that are compared.
    pub mask: u32,
    /// Whether the rule applies to all other packets (`not`).
    pub is_inverted: bool,
}

impl RoutingRule {
    /// The comparison of the packet mark.
    pub(crate) fn comparison(&self) -> Comparison {
        Comparison {
            field: Field::PacketMark,
            mask: self.mask,
            ranges: [(self.mark, self.mark)].into(),
            negated: self.is_inverted,
        }
    }
}

impl std::fmt::Display for RoutingRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ip: _, priority, mark, mask, is_inverted } = self;
        let not = if *is_inverted { "not " } else { "" };
        write!(f, "{priority}: {not}fwmark {mark:#x}")?;
        if *mask == u32::MAX { Ok(()) } else { write!(f, "/{mask:#x}") }
    }
}

impl Firewall {
    /// Why the fast path stays off: a line for each rule that may overwrite or compare its marks.
    pub fn mark_conflicts(&self) -> Vec<String> {
        let Self { gateway, ruleset: rules, routing_rules, .. } = self;
        let (data, bits) = (gateway.data_mark, gateway.mask() | gateway.slot_mask);
        let remedy =
            format!("the fast path's packet marks: give that rule a mask without {bits:#x}");
        let (overwrites, compares) = (format!("overwrites {remedy}"), format!("compares {remedy}"));
        let compares_ct_mark = format!(
            "tells the ct mark {data:#x} from {:#x}: match the bit, as in `ct mark & {data:#x} != 0` or \
             `--mark {data:#x}/{data:#x}`",
            data | gateway.queue_all_mark
        );
        // Each rule with the first thing that it does.
        let mut found: Vec<(String, &str)> = Vec::new();
        let mut add = |chain: &str, rule: &str, does| {
            let rule = format!("`{rule}` in {chain}");
            if found.iter().all(|(known, _)| *known != rule) {
                found.push((rule, does));
            }
        };
        let changes = rules.changed_mark_bits;
        // What rules may have set when a packet reaches the others.
        let mut changed = 0;
        for (packet, mark) in fast_path_packets(gateway, changes, changes.mark) {
            let marked = SamplePacket { mark, ..packet };
            for one in chains_with_marks(rules, packet.ip) {
                for reached in traversal::follow(one, &packet, None).reached {
                    changed |= reached.rule.changed_mark_bits();
                }
                // By then our table has read the mark of a data connection's first packet. A chain of the same priority
                // comes first if it was added later.
                if packet.state == state::NEW && one.base.priority > DESTINATION_NAT_PRIORITY {
                    continue;
                }
                for reached in traversal::follow(one, &marked, None).reached {
                    if reached.rule.changed_mark_bits() & bits != 0 {
                        add(&reached.chain_name(), &reached.rule.text, &overwrites);
                    }
                }
            }
        }
        for (packet, mark) in fast_path_packets(gateway, changes, changed) {
            for one in chains_with_marks(rules, packet.ip) {
                let marked = SamplePacket { mark, ..packet };
                for one in traversal::follow(one, &packet, Some(marked)).dependent_rules {
                    add(&one.chain_name(), &one.rule.text, &compares);
                }
            }
            for rule in routing_rules.iter().filter(|rule| rule.ip == packet.ip) {
                let comparison = rule.comparison();
                if comparison.holds(packet.mark) != comparison.holds(mark) {
                    let list = if rule.ip == IpVersion::V4 { "ip rule" } else { "ip -6 rule" };
                    add(list, &rule.to_string(), &compares);
                }
            }
        }
        let known = gateway.mask() | !changes.ct_mark;
        let chains = |ip| {
            let all = rules.base_chains(ip).filter(|one| !one.base.is_nat);
            all.map(move |one| (data_connection(ip), one))
        };
        for (data, one) in IpVersion::BOTH.into_iter().flat_map(chains) {
            let BaseChain { hook, priority, .. } = one.base;
            for packet in data.packets(gateway, changes) {
                let has_ct_mark = match packet.state {
                    state::NEW => PacketClass::MarkedData.is_admitted_at(hook, priority),
                    _ => !is_before_conntrack(hook, priority),
                };
                if has_ct_mark {
                    let ct_mark = FieldValue::Bits { bits: gateway.data_mark, known };
                    let packet = SamplePacket { ct_mark, ..data.seen_at(hook, priority, packet) };
                    // Our table finds the translation of its source by the second bit.
                    let bits = gateway.data_mark | gateway.queue_all_mark;
                    let ct_mark = FieldValue::Bits { bits, known };
                    let other = SamplePacket { ct_mark, ..packet };
                    for one in traversal::follow(one, &packet, Some(other)).dependent_rules {
                        add(&one.chain_name(), &one.rule.text, &compares_ct_mark);
                    }
                }
            }
        }
        found.into_iter().map(|(rule, does)| format!("{rule} {does}")).collect()
    }
}

/// A data connection that the fast path admits.
fn data_connection(ip: IpVersion) -> Connection<'static> {
    let (class, source_port) = (PacketClass::MarkedData, FieldValue::ANY_PORT);
    let kind = ConnectionKind::Data { class, admitted: 0, source_port };
    Connection::new(kind, Hook::Forward, ip)
}

/// Packets that the fast path marks, at prerouting, each with its packet mark there. They are as they would be without
/// the fast path: the first packet of a data connection, and later packets of control connections. Rules of others
/// change the bits `changed` of their packet marks.
fn fast_path_packets(
    gateway: &Gateway,
    changes: ChangedMarkBits,
    changed: u32,
) -> Vec<(SamplePacket<'static>, FieldValue)> {
    let unmarked = FieldValue::unset_except(changed);
    let mask = gateway.mask();
    let first = |ip| SamplePacket {
        output: Some(""),
        ct_mark: FieldValue::unset_except(changes.ct_mark),
        mark: unmarked,
        destination_port: FieldValue::DATA_PORT,
        ..first_packet(Hook::Prerouting, ip)
    };
    let admitted = FieldValue::Bits {
        bits: gateway.data_mark | gateway.queue_none_mark,
        // The number of a translation may be in the other bits.
        known: mask | !(changed | gateway.slot_mask),
    };
    let inspected = FieldValue::Bits { bits: gateway.control_bits(), known: mask | !changed };
    let later = |ip| {
        let of_port = move |&port| {
            let control = Connection::control(Hook::Forward, ip, port);
            let [_, later, reply] = control.packets(gateway, changes);
            [later, reply].map(|packet| control.seen_at(Hook::Prerouting, 0, packet))
        };
        gateway.control_ports.iter().flat_map(of_port)
    };
    let later = IpVersion::BOTH.into_iter().flat_map(later);
    let later = later.map(|one| (SamplePacket { mark: unmarked, ..one }, inspected));
    IpVersion::BOTH.map(|ip| (first(ip), admitted)).into_iter().chain(later).collect()
}

/// The base chains that get packets of `ip` with the fast path's marks. Chains of type `nat` get none: packets of control
/// connections do not reach them, and our table translates data connections before them.
fn chains_with_marks(rules: &Ruleset, ip: IpVersion) -> impl Iterator<Item = LocatedChain<'_>> {
    let has_marks = |base: BaseChain| match base.hook {
        _ if base.is_nat => false,
        Hook::Prerouting => true,
        Hook::Forward => base.priority < CLEARING_PRIORITY,
        Hook::Input | Hook::Output | Hook::Postrouting => false,
    };
    rules.base_chains(ip).filter(move |one| has_marks(one.base))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        CtMarkUse, Origin,
        rules_for_tests::{ACCEPT, is},
    };

    fn routing_rule(mark: u32, mask: u32, is_inverted: bool) -> RoutingRule {
        RoutingRule { ip: IpVersion::V4, priority: 100, mark, mask, is_inverted }
    }

    /// A firewall with these rules of the table mangle at prerouting, and with these routing rules.
    fn with_routing(prerouting: &str, rules: &[RoutingRule]) -> Firewall {
        let mangle = format!(":PREROUTING ACCEPT\n{prerouting}");
        let firewall = Firewall::from_iptables_tables(&[("mangle", &mangle)]);
        Firewall { routing_rules: rules.to_vec(), ..firewall }
    }

    /// Each rule that is found, and what it does.
    fn found(firewall: &Firewall) -> Vec<String> {
        let does = |reason: String| reason.split_once(" the ").unwrap().0.to_owned();
        firewall.mark_conflicts().into_iter().map(does).collect()
    }

    /// `SET` writes all bits of the packet mark, and `BYTE` bits of others.
    #[test]
    fn rules_that_overwrite_or_compare_the_marks_are_found() {
        for (rule, does) in [
            ("PREROUTING -p tcp -m conntrack --ctstate NEW -j SET", "overwrites"),
            ("PREROUTING -s 10.0.0.0/8 -j MARK --set-xmark 0x0/0x40000000", "overwrites"),
            // Lines of control connections.
            (
                "PREROUTING -m conntrack --ctstate ESTABLISHED -j CONNMARK --restore-mark",
                "overwrites",
            ),
            ("PREROUTING -p tcp -m tcp --sport 21 -j SET", "overwrites"),
            // The bits with the number of a translation.
            ("PREROUTING -j MARK --set-xmark 0x80000000/0x80000000", "overwrites"),
            // Other bits, other packets, and another hook, where the marks are cleared.
            ("PREROUTING -j BYTE", ""),
            ("PREROUTING -p udp -j SET", ""),
            ("PREROUTING -i lo -j SET", ""),
            ("PREROUTING -p tcp -m tcp --dport 22 -j SET", ""),
            ("PREROUTING -m mark --mark 0x0/0xff -j BYTE", ""),
            ("PREROUTING -p udp -m mark --mark 0x0 -j BYTE", ""),
            ("FORWARD -m mark --mark 0x0 -j BYTE", ""),
            ("FORWARD -j SET", ""),
            ("PREROUTING -i lan0 -m mark --mark 0x0 -j BYTE", "compares"),
            ("PREROUTING -m mark --mark 0x0/0x10000000 -j ACCEPT", "compares"),
            ("PREROUTING -p tcp -m tcp --sport 21 -m mark --mark 0x0 -j ACCEPT", "compares"),
            // Nothing sets it, or another rule may have set it.
            ("PREROUTING -m mark --mark 0x1 -j ACCEPT", ""),
            ("PREROUTING -m mark ! --mark 0x1 -j ACCEPT", ""),
            ("PREROUTING -m mark --mark 0x1 -j ACCEPT\n-A PREROUTING -j BYTE", "compares"),
            ("PREROUTING -m mark ! --mark 0x0 -j ACCEPT\n-A PREROUTING -j BYTE", "compares"),
        ] {
            let rule = rule.replace("SET", "MARK --set-xmark 0x1/0xffffffff");
            let rule = rule.replace("BYTE", "MARK --set-xmark 0x1/0xff");
            let tables =
                format!("*mangle\n:PREROUTING ACCEPT\n:FORWARD ACCEPT\n-A {rule}\nCOMMIT\n");
            let text = rule.lines().next().unwrap();
            for (ip, program) in [(IpVersion::V4, "iptables"), (IpVersion::V6, "ip6tables")] {
                let mut firewall = Firewall::new(Gateway::default());
                firewall.add_iptables_save(Origin::IptablesLegacy, ip, &tables);
                let named = format!("`-A {text}` in {program}-legacy mangle PREROUTING {does}");
                let expected = if does.is_empty() { vec![] } else { vec![named] };
                assert_eq!(found(&firewall), expected, "{rule}");
            }
        }
    }

    #[test]
    fn routing_rules_that_compare_the_marks_are_found() {
        let marks_one = "-A PREROUTING -i lan0 -j MARK --set-xmark 0x1/0xff";
        for (prerouting, mark, mask, is_inverted, is_found) in [
            ("", 0, u32::MAX, false, true),
            ("", 0, 0x4000_0000, false, true),
            ("", 0, 0xff, false, false),
            // WireGuard's, if nothing sets a mark in prerouting.
            ("", 0xca6c, u32::MAX, true, false),
            ("", 1, u32::MAX, false, false),
            (marks_one, 1, u32::MAX, false, true),
            (marks_one, 1, u32::MAX, true, true),
            (marks_one, 1, 0xff, false, false),
        ] {
            let rule = routing_rule(mark, mask, is_inverted);
            let named = format!("`{rule}` in ip rule compares");
            let expected = if is_found { vec![named] } else { vec![] };
            assert_eq!(found(&with_routing(prerouting, &[rule])), expected, "{rule} {prerouting}");
        }
        let of_ipv6 = RoutingRule { ip: IpVersion::V6, ..routing_rule(0, u32::MAX, false) };
        let advice = "the fast path's packet marks: give that rule a mask without 0xfffe0000";
        assert_eq!(
            with_routing("", &[of_ipv6]).mark_conflicts(),
            [format!("`100: fwmark 0x0` in ip -6 rule compares {advice}")]
        );
    }

    #[test]
    fn rules_that_tell_data_connections_apart_are_found() {
        let filter = |rules: &str| {
            let established = "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT";
            let chains = format!(":INPUT DROP\n:FORWARD DROP\n{established}\n{rules}");
            found(&Firewall::from_iptables_tables(&[("filter", &chains)]))
        };
        for (options, is_found) in [
            ("-m connmark --mark 0x40000000", true),
            ("-s 10.0.0.7/32 -m connmark --mark 0x40000000", true),
            ("-m connmark ! --mark 0x60000000", true),
            ("-m connmark --mark 0x40000000/0x70000000", true),
            ("-m connmark --mark 0x40000000/0x40000000", false),
            ("-m connmark --mark 0x40000000/0x50000000", false),
            ("-p udp -m connmark --mark 0x40000000", false),
        ] {
            for chain in ["FORWARD", "INPUT"] {
                let rule = format!("-A {chain} {options} -j ACCEPT");
                let named = format!("`{rule}` in iptables-legacy filter {chain} tells");
                let expected = if is_found { vec![named] } else { vec![] };
                assert_eq!(filter(&rule), expected, "{rule}");
            }
        }
        // What a rule writes, both have.
        let marked = "-A FORWARD -j CONNMARK --set-xmark 0x5/0xff\n\
                      -A FORWARD -m connmark --mark 0x5/0xff -j ACCEPT";
        assert_eq!(filter(marked), [""; 0]);
        assert_eq!(filter(&marked.replace("0x5/0xff -j A", "0x40000005 -j A")).len(), 1);
    }

    #[test]
    fn use_of_the_ct_mark_is_found() {
        let restore = |packet: &str, ct: &str| {
            format!("-A PREROUTING -j CONNMARK --restore-mark --nfmask {packet} --ctmask {ct}")
        };
        let (all, one) = ("0xffffffff", [routing_rule(1, u32::MAX, false)]);
        let (byte, other) = ([routing_rule(1, 0xff, false)], [routing_rule(1 << 8, 0xff00, false)]);
        let (none, restored, compared) =
            (CtMarkUse::None, CtMarkUse::Restored, CtMarkUse::Compared);
        for (rules, routing, ct_mark_use, routes) in [
            ("-A PREROUTING -j MARK --set-xmark 0x1/0xff", &one, none, false),
            ("-A PREROUTING -j CONNMARK --set-xmark 0x40000000/0x40000000", &one, none, false),
            ("-A PREROUTING -j CONNMARK --set-xmark 0x1/0xff", &one, restored, false),
            (&restore("0xff", "0xff"), &one, restored, true),
            (&restore("0xff", "0xff"), &other, restored, false),
            (&restore(all, all), &byte, restored, true),
            (&restore(all, all), &one, compared, true),
            (&restore("0xff", all), &one, compared, true),
        ] {
            let firewall = with_routing(rules, routing);
            let found = (firewall.ct_mark_use(), firewall.routes_by_restored_marks());
            assert_eq!(found, (ct_mark_use, routes), "{rules}");
        }
    }

    #[test]
    fn nftables_chains_count_by_priority() {
        let mark = r#"{"meta": {"key": "mark"}}"#;
        let writes = |value: &str| format!(r#"{{"mangle": {{"key": {mark}, "value": {value}}}}}"#);
        let is_new = is("in", r#"{"ct": {"key": "state"}}"#, r#""new""#);
        let compares = format!("{}, {ACCEPT}", is("==", mark, "0"));
        let (overwrites, of_new) = (writes("1"), format!("{is_new}, {}", writes("1")));
        let spares = writes(&format!(r#"{{"|": [{{"&": [{mark}, 4294967040]}}, 1]}}"#));
        for (chain, rule, is_found) in [
            ("filter prerouting -300", &compares, true),
            ("filter prerouting 50", &compares, true),
            ("filter forward -300", &compares, true),
            ("nat prerouting -100", &compares, false),
            ("filter forward -150", &compares, false),
            ("filter output -300", &compares, false),
            ("filter prerouting -300", &overwrites, true),
            // Lines of control connections.
            ("filter prerouting 0", &overwrites, true),
            ("filter prerouting -150", &spares, false),
            // It may have been added after our table, or our table has read the mark.
            ("filter prerouting -100", &of_new, true),
            ("filter prerouting -99", &of_new, false),
        ] {
            let found = found(&Firewall::from_nft_chain(&format!("inet {chain} accept"), &[rule]));
            assert_eq!(found.len(), usize::from(is_found), "{chain} {rule}");
        }
    }
}
