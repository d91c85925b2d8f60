//! Follows the packets of a data connection through the chains of others, from hook to hook.
//!
//! What a rule can see of the first packet depends on its place. Before conntrack (priority -200) the packet has no
//! connection. Until our table admits it, the connection has no ct mark of ours.
//!
//! Rules of others may overwrite the marks on the way, for all packets that follow.

use super::{
    ChainVerdict, Firewall, HidingRule, PacketClass,
    model::{FieldValue, Hook, IpVersion, LocatedChain, SamplePacket, state},
    networks::Links,
    sample_packets::{ACK, SYN, first_packet},
    traversal,
};

/// A data connection. Its packets change on their way, so [`DataConnection::at`] says what is known of them at a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataConnection<'a> {
    pub(crate) ip: IpVersion,
    pub(crate) class: PacketClass,
    /// The ct mark bits of admitted data connections: none for one that nobody admits.
    pub(crate) admitted: u32,
    /// The interface towards the initiator: `None` if unknown, empty if this machine is the initiator.
    pub(crate) from: Option<&'a str>,
    /// The interface towards the target: `None` if unknown, empty if this machine is the target.
    pub(crate) to: Option<&'a str>,
    pub(crate) source_port: FieldValue,
    /// The networks at this machine's interfaces, if known.
    pub(crate) links: Option<&'a Links>,
}

/// The priority of conntrack (NF_IP_PRI_CONNTRACK). No packet has a connection before.
const CONNTRACK_PRIORITY: i32 = -200;

impl PacketClass {
    /// The priority behind which our table has admitted the first packet of such a data connection at `hook`;
    /// `None` if that is at a later hook.
    ///
    /// The kernel runs all destination NAT chains at -100, whatever their own priority is.
    fn admission_priority(self, hook: Hook) -> Option<i32> {
        match (self, hook) {
            (Self::MarkedData, Hook::Prerouting | Hook::Output) => Some(-100),
            (Self::RelatedData, Hook::Prerouting) => None,
            (Self::RelatedData, Hook::Forward | Hook::Input) => Some(-152),
            (Self::RelatedData, Hook::Output) => Some(-90),
            _ => Some(i32::MIN),
        }
    }

    /// Whether a rule in a chain at `hook` with `priority` can recognise the first packet of such a connection by the
    /// condition of the accept rule.
    pub(crate) fn is_recognised_at(self, hook: Hook, priority: i32) -> bool {
        let has_connection = !is_before_conntrack(hook, priority);
        match self {
            Self::Injected => true,
            // It is `related` from the start.
            Self::RelatedData => has_connection,
            Self::MarkedData => self.is_admitted_at(hook, priority),
        }
    }

    pub(crate) fn is_admitted_at(self, hook: Hook, priority: i32) -> bool {
        self.admission_priority(hook).is_some_and(|admission| priority > admission)
    }
}

pub(crate) fn is_before_conntrack(hook: Hook, priority: i32) -> bool {
    matches!(hook, Hook::Prerouting | Hook::Output) && priority < CONNTRACK_PRIORITY
}

impl<'a> DataConnection<'a> {
    /// Whether a rule before has hidden what the accept rule recognises.
    fn is_hidden(&self, seen: &SamplePacket<'_>, is_admitted: bool) -> bool {
        let has_mark = |mark| match mark {
            FieldValue::Bits { bits, known } => bits & known & self.admitted == self.admitted,
            _ => true,
        };
        let needs_mark = is_admitted && self.class == PacketClass::MarkedData;
        seen.state == state::UNTRACKED || needs_mark && !has_mark(seen.ct_mark)
    }

    /// `packet` as a chain at `hook` with `priority` sees it.
    fn seen_at(
        &self,
        hook: Hook,
        priority: i32,
        packet: SamplePacket<'a>,
        is_reply: bool,
    ) -> SamplePacket<'a> {
        let (input, output) = if is_reply { (self.to, self.from) } else { (self.from, self.to) };
        let is_local = match hook {
            // Until the destination is translated, it may be an address of this machine.
            Hook::Prerouting => None,
            _ => Some(hook == Hook::Input),
        };
        let seen = SamplePacket {
            hook,
            input: if hook == Hook::Output { Some("") } else { input },
            output: if matches!(hook, Hook::Prerouting | Hook::Input) { Some("") } else { output },
            is_local,
            ..packet
        };
        let is_untracked = packet.state == state::UNTRACKED;
        if !is_untracked && !is_before_conntrack(hook, priority) {
            return seen;
        }
        SamplePacket {
            state: if is_untracked { state::UNTRACKED } else { state::INVALID },
            ct_mark: FieldValue::Absent,
            direction: FieldValue::Absent,
            ftp_helper: FieldValue::Absent,
            ..seen
        }
    }
}

/// A later packet of the connection that `before` belongs to, with the packet mark `mark`.
fn later_packet<'a>(
    before: &SamplePacket<'a>,
    mark: FieldValue,
    is_reply: bool,
) -> SamplePacket<'a> {
    let (source_port, destination_port) = match is_reply {
        true => (FieldValue::ANY_PORT, before.source_port),
        false => (before.source_port, FieldValue::ANY_PORT),
    };
    SamplePacket {
        state: state::ESTABLISHED,
        direction: FieldValue::exactly(is_reply.into()),
        mark,
        source_port,
        destination_port,
        tcp_flags: FieldValue::Bits { bits: ACK, known: ACK | SYN },
        ..*before
    }
}

impl Firewall {
    /// The verdicts of all chains that packets of `connection` pass, in their order. The packets of the initiator pass
    /// the hook `there`, and those of the target the hook `back`.
    pub(crate) fn follow(
        &self,
        connection: &DataConnection<'_>,
        there: Hook,
        back: Hook,
    ) -> Vec<ChainVerdict> {
        let (there, back) = (there.on_the_way(), back.on_the_way());
        let mut way = Way { firewall: self, connection, verdicts: Vec::new(), changed_by: None };
        let first = way.first_packet();
        let passed = way.pass(first, there, Packet::First);
        let later = later_packet(&passed, first.mark, false);
        let passed = way.pass(later, there, Packet::Later);
        way.pass(later_packet(&passed, first.mark, true), back, Packet::Reply);
        way.verdicts
    }

    /// The base chains at `hook` that packets of data connections reach, in their order.
    ///
    /// Our table or an expectation translates data connections, so the chains of type `nat` do not see them.
    fn chains_at(&self, hook: Hook, ip: IpVersion) -> Vec<LocatedChain<'_>> {
        let chains = self.ruleset.base_chains(ip);
        let mut chains: Vec<_> =
            chains.filter(|chain| chain.base.hook == hook && !chain.base.is_nat).collect();
        chains.sort_by_key(|chain| chain.base.priority);
        chains
    }
}

/// The way of a connection's packets.
struct Way<'a> {
    firewall: &'a Firewall,
    connection: &'a DataConnection<'a>,
    verdicts: Vec<ChainVerdict>,
    /// The last rule that changed the ct mark, or took a packet out of connection tracking.
    changed_by: Option<HidingRule>,
}

/// A packet of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packet {
    First,
    Later,
    Reply,
}

impl<'a> Way<'a> {
    /// The first packet, as it arrives.
    fn first_packet(&self) -> SamplePacket<'a> {
        let (gateway, changes) = (&self.firewall.gateway, self.firewall.ruleset.changed_mark_bits);
        let first = SamplePacket {
            // A new connection has no mark bits except those that rules of others set on it, or on its control
            // connection, from which it inherits them.
            ct_mark: FieldValue::unset_except(changes.ct_mark),
            mark: FieldValue::unset_except(changes.mark),
            source_port: self.connection.source_port,
            links: self.connection.links,
            destination_port: FieldValue::DATA_PORT,
            ..first_packet(Hook::Prerouting, self.connection.ip)
        };
        match self.connection.class {
            PacketClass::RelatedData => SamplePacket {
                state: state::RELATED,
                // An expected connection inherits the ct mark of its control connection (init_conntrack()). That may
                // have any of our bits except the one of data connections.
                ct_mark: FieldValue::unset_except(
                    gateway.control_bits() | changes.ct_mark & !gateway.data_mark,
                ),
                ftp_helper: FieldValue::exactly(1),
                ..first
            },
            _ => first,
        }
    }

    /// Our table admits the first packet.
    fn admit(&self, packet: &mut SamplePacket<'_>) {
        let mask = self.firewall.gateway.mask();
        let (others, known) = match packet.ct_mark {
            FieldValue::Bits { bits, known } => (bits & !mask, known),
            _ => (0, !self.firewall.ruleset.changed_mark_bits.ct_mark),
        };
        let bits = others | self.connection.admitted;
        packet.ct_mark = FieldValue::Bits { bits, known: known | mask };
    }

    /// Evaluates all chains at `hooks` for `packet`. Returns the packet as it leaves.
    fn pass(
        &mut self,
        mut packet: SamplePacket<'a>,
        hooks: &[Hook],
        which: Packet,
    ) -> SamplePacket<'a> {
        let Self { firewall, connection, .. } = *self;
        let mut is_admitted = which != Packet::First;
        for &hook in hooks {
            for chain in firewall.chains_at(hook, connection.ip) {
                let priority = chain.base.priority;
                if !is_admitted && connection.class.is_admitted_at(hook, priority) {
                    self.admit(&mut packet);
                    is_admitted = true;
                }
                let is_reply = which == Packet::Reply;
                let mut seen = connection.seen_at(hook, priority, packet, is_reply);
                let is_hidden = connection.is_hidden(&seen, is_admitted);
                let hidden_by = self.changed_by.clone().filter(|_| is_hidden);
                let (verdict, changed_by) = traversal::evaluate(chain, &mut seen);
                if let Some((name, rule)) = changed_by {
                    self.changed_by = Some(HidingRule {
                        chain: chain.table.chain_name(name),
                        rule: rule.text.clone(),
                        untracks: seen.state == state::UNTRACKED,
                    });
                }
                packet.mark = seen.mark;
                if seen.state == state::UNTRACKED {
                    packet.state = state::UNTRACKED;
                } else if seen.ct_mark != FieldValue::Absent {
                    packet.ct_mark = seen.ct_mark;
                }
                self.add(ChainVerdict { hidden_by, ..verdict });
            }
        }
        if !is_admitted {
            self.admit(&mut packet);
        }
        packet
    }

    /// Combines the verdict with those on earlier packets.
    fn add(&mut self, verdict: ChainVerdict) {
        match self.verdicts.iter_mut().find(|known| known.location == verdict.location) {
            Some(known) => *known = known.clone().and(verdict),
            None => self.verdicts.push(verdict),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            AcceptedData, Routing, accepted_data, data_path_verdicts,
            rules_for_tests::{ACCEPT, CT_MARK, STATE, accepts_mark, is},
        },
        *,
    };

    const GATEWAY: Routing =
        Routing { v4: true, v6: false, has_v6: false, has_local_server: false };
    const MARK: &str = "-m connmark --mark 0x40000000/0x40000000 -j ACCEPT";
    const RELATED: &str = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";

    fn nftables(hook: &str, priority: i32, rules: &[&str]) -> Firewall {
        Firewall::from_nft_chain(&format!("inet filter {hook} {priority} drop"), rules)
    }

    /// Whether admitted data connections pass, and expected ones.
    fn pass(firewall: &Firewall, hook: Hook) -> [bool; 2] {
        [PacketClass::MarkedData, PacketClass::RelatedData]
            .map(|class| firewall.verdict(hook, IpVersion::V4, class).passes())
    }

    fn remedies(firewall: &Firewall, hook: Hook, class: PacketClass) -> Vec<String> {
        let verdict = firewall.verdict(hook, IpVersion::V4, class);
        firewall.remedies(&verdict, class)
    }

    fn accepted(firewall: &Firewall) -> AcceptedData {
        let paths = data_path_verdicts(firewall, GATEWAY);
        accepted_data(firewall, &paths).unwrap()
    }

    #[test]
    fn a_drop_at_prerouting_before_the_admission_stops_marked_data_connections() {
        let rules = format!(
            ":PREROUTING DROP\n-A PREROUTING {RELATED}\n-A PREROUTING {MARK}\n\
             -A PREROUTING -p tcp -m tcp --dport 21 -j ACCEPT"
        );
        let firewall = Firewall::from_iptables_tables(&[("mangle", &rules)]);
        assert_eq!(pass(&firewall, Hook::Prerouting), [false, true]);
        assert_eq!(pass(&firewall, Hook::Forward), [true, true]);
        assert_eq!(accepted(&firewall), AcceptedData::Related);
        // No rule there can accept them by the mark.
        assert_eq!(remedies(&firewall, Hook::Prerouting, PacketClass::MarkedData), [""; 0]);
        let verdict = firewall.verdict(Hook::Prerouting, IpVersion::V4, PacketClass::MarkedData);
        let stop = verdict.dropping_chains().next().unwrap();
        assert!(stop.advice_without_rule(PacketClass::MarkedData, &firewall.gateway).is_some());
        assert_eq!(stop.advice_without_rule(PacketClass::RelatedData, &firewall.gateway), None);
        // New connections to high ports are left to the other chains.
        let open = format!("{rules}\n-A PREROUTING -p tcp -m tcp --dport 1024:65535 -j ACCEPT");
        assert_eq!(
            pass(&Firewall::from_iptables_tables(&[("mangle", &open)]), Hook::Prerouting),
            [true, true]
        );
    }

    #[test]
    fn what_a_rule_at_prerouting_sees_depends_on_its_priority() {
        let state = |names| format!("{}, {ACCEPT}", is("in", STATE, names));
        let (mark, related) = (accepts_mark(), state(r#"["established", "related"]"#));
        for (priority, expected) in
            [(-300, [false, false]), (-140, [false, true]), (0, [true, true])]
        {
            let firewall = nftables("prerouting", priority, &[&related, &mark]);
            assert_eq!(pass(&firewall, Hook::Prerouting), expected, "{priority}");
        }
        // Before conntrack every packet is `invalid`.
        let invalid = state(r#""invalid""#);
        assert_eq!(pass(&nftables("prerouting", -300, &[&invalid]), Hook::Prerouting), [true; 2]);
        // The same before destination NAT of this machine's own connections.
        for (priority, expected) in [(-150, [false, true]), (0, [true, true])] {
            let firewall = nftables("output", priority, &[&related, &mark]);
            assert_eq!(pass(&firewall, Hook::Output), expected, "{priority}");
        }
    }

    #[test]
    fn a_drop_at_postrouting_is_cured_by_the_accept_rule() {
        let rules = format!(
            ":POSTROUTING DROP\n-A POSTROUTING {RELATED}\n\
             -A POSTROUTING -p tcp -m tcp --dport 21 -j ACCEPT"
        );
        let firewall = Firewall::from_iptables_tables(&[("mangle", &rules)]);
        assert_eq!(pass(&firewall, Hook::Postrouting), [false, true]);
        assert_eq!(accepted(&firewall), AcceptedData::Related);
        assert_eq!(
            remedies(&firewall, Hook::Postrouting, PacketClass::MarkedData),
            [format!("iptables-legacy -t mangle -I POSTROUTING {MARK}")]
        );
        let cured = format!("{rules}\n-A POSTROUTING {MARK}");
        let cured = Firewall::from_iptables_tables(&[("mangle", &cured)]);
        assert_eq!(pass(&cured, Hook::Postrouting), [true, true]);
        assert_eq!(accepted(&cured), AcceptedData::Marked);
    }

    #[test]
    fn rules_against_spoofed_addresses_do_not_decide_the_back_end() {
        let spoofed = "-A PREROUTING -i wan -s 10.0.0.0/8 -j DROP\n\
                       -A PREROUTING -m rpfilter --invert -j DROP";
        let firewall =
            Firewall::from_iptables_tables(&[("raw", &format!(":PREROUTING ACCEPT\n{spoofed}"))]);
        assert_eq!(accepted(&firewall), AcceptedData::Marked);
        let new = "-A PREROUTING -i wan -m conntrack --ctstate NEW -j DROP";
        let firewall =
            Firewall::from_iptables_tables(&[("mangle", &format!(":PREROUTING ACCEPT\n{new}"))]);
        assert_eq!(accepted(&firewall), AcceptedData::Related);
    }

    #[test]
    fn nothing_is_accepted_if_forward_or_prerouting_drops_everything() {
        for (table, rules) in [
            ("filter", ":FORWARD DROP"),
            ("mangle", ":PREROUTING DROP"),
            ("raw", ":PREROUTING DROP"),
        ] {
            assert_eq!(
                accepted(&Firewall::from_iptables_tables(&[(table, rules)])),
                AcceptedData::Nothing,
                "{table}"
            );
        }
    }

    #[test]
    fn chains_of_type_nat_do_not_see_data_connections() {
        let firewall =
            Firewall::from_iptables_tables(&[("nat", ":PREROUTING DROP\n:POSTROUTING DROP")]);
        assert_eq!(pass(&firewall, Hook::Prerouting), [true, true]);
        assert_eq!(pass(&firewall, Hook::Postrouting), [true, true]);
    }

    #[test]
    fn injected_packets_pass_postrouting() {
        let firewall = Firewall::from_iptables_tables(&[("mangle", ":POSTROUTING DROP")]);
        assert_eq!(
            remedies(&firewall, Hook::Postrouting, PacketClass::Injected),
            ["iptables-legacy -t mangle -I POSTROUTING -m mark --mark 0x70000000 -j ACCEPT"]
        );
    }

    #[test]
    fn the_rule_that_overwrites_the_ct_mark_is_named() {
        let save = "-A FORWARD -j CONNMARK --save-mark";
        let filter = format!(":FORWARD DROP\n-A FORWARD {MARK}");
        let mangle = format!(":FORWARD ACCEPT\n{save}");
        let firewall = Firewall::from_iptables_tables(&[("mangle", &mangle), ("filter", &filter)]);
        let class = PacketClass::MarkedData;
        let verdict = firewall.verdict(Hook::Forward, IpVersion::V4, class);
        let stop = verdict.dropping_chains().next().unwrap();
        let hiding = stop.hidden_by.as_ref().unwrap();
        assert_eq!(
            (hiding.chain.as_str(), hiding.rule.as_str(), hiding.untracks),
            ("iptables-legacy mangle FORWARD", save, false)
        );
        // Another accept rule does not help.
        assert_eq!(remedies(&firewall, Hook::Forward, class), [""; 0]);
        assert!(stop.advice_without_rule(class, &firewall.gateway).unwrap().contains(save));
    }

    /// Whether marked data connections pass a filter at forward that accepts only them, with `rules` in the table
    /// mangle.
    fn passes_behind(rules: &str) -> bool {
        let chains = ":PREROUTING ACCEPT\n:FORWARD ACCEPT\n:POSTROUTING ACCEPT";
        let filter = format!(
            ":FORWARD DROP\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n-A FORWARD {MARK}"
        );
        let firewall = Firewall::from_iptables_tables(&[
            ("mangle", &format!("{chains}\n{rules}")),
            ("filter", &filter),
        ]);
        pass(&firewall, Hook::Forward)[0]
    }

    #[test]
    fn a_rule_that_overwrites_the_ct_mark_before_the_filter_is_followed() {
        for rules in [
            "-A FORWARD -j CONNMARK --save-mark",
            "-A FORWARD -j CONNMARK --set-xmark 0x7/0xffffffff",
            "-A FORWARD -m conntrack --ctstate NEW -j CONNMARK --set-xmark 0x5/0xffffffff",
            "-A FORWARD -j CONNMARK --set-xmark 0x0/0x40000000",
            ":X - [0:0]\n-A FORWARD -j X\n-A X -j CONNMARK --save-mark",
            "-A FORWARD -j MARK --set-xmark 0x1/0xff\n-A FORWARD -j CONNMARK --save-mark",
        ] {
            assert!(!passes_behind(rules), "{rules}");
        }
        for rules in [
            "-A FORWARD -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff",
            "-A FORWARD -j CONNMARK --set-xmark 0x7/0xff",
            "-A FORWARD -m connmark --mark 0x0 -j CONNMARK --set-xmark 0x7/0xffffffff",
            "-A FORWARD -j CONNMARK --restore-mark\n-A FORWARD -j CONNMARK --save-mark",
            "-A FORWARD -m connmark ! --mark 0x0 -j ACCEPT\n-A FORWARD -j CONNMARK --save-mark",
            // Before the admission, which sets the mark, and after the filter.
            "-A PREROUTING -m conntrack --ctstate NEW -j CONNMARK --save-mark",
            "-A POSTROUTING -j CONNMARK --save-mark",
            // As with several uplinks. Only new connections get the mark of an interface.
            "-A PREROUTING -j CONNMARK --restore-mark\n-A PREROUTING -m mark ! --mark 0 -j ACCEPT\n\
             -A PREROUTING -i wan -j MARK --set-xmark 0x1/0xffffffff\n-A PREROUTING -j CONNMARK --save-mark",
            // Only some connections.
            "-A FORWARD -s 10.0.0.0/8 -j CONNMARK --save-mark",
        ] {
            assert!(passes_behind(rules), "{rules}");
        }
    }

    #[test]
    fn later_packets_have_the_mark_that_the_first_one_left() {
        let filter = format!(":FORWARD DROP\n-A FORWARD {MARK}");
        let passes = |rules: &str| {
            let mangle = format!(":FORWARD ACCEPT\n:POSTROUTING ACCEPT\n{rules}");
            pass(
                &Firewall::from_iptables_tables(&[("mangle", &mangle), ("filter", &filter)]),
                Hook::Forward,
            )[0]
        };
        assert!(passes(""));
        assert!(!passes("-A POSTROUTING -j CONNMARK --save-mark"));
    }

    #[test]
    fn nftables_assignments_to_the_ct_mark_are_followed() {
        let (ct, mark) = (CT_MARK, accepts_mark());
        let set = |value: &str| format!(r#"{{"mangle": {{"key": {ct}, "value": {value}}}}}"#);
        for (value, passes) in [
            ("5".to_owned(), false),
            (r#"{"meta": {"key": "mark"}}"#.to_owned(), false),
            (format!(r#"{{"&": [{ct}, 255]}}"#), false),
            (format!(r#"{{"|": [{{"&": [{ct}, 255]}}, 1073741824]}}"#), true),
            (format!(r#"{{"|": [{{"&": [{ct}, 4294967040]}}, 5]}}"#), true),
            (format!(r#"{{"|": [{ct}, 5]}}"#), true),
            (format!(r#"{{"^": [{ct}, 5]}}"#), true),
            ("1073741829".to_owned(), true),
        ] {
            let firewall = nftables("forward", 0, &[&set(&value), &mark]);
            assert_eq!(pass(&firewall, Hook::Forward)[0], passes, "{value}");
        }
    }
}
