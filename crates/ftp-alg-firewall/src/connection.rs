//! Follows the packets of a connection through the chains of others, from hook to hook.
//!
//! What a rule can see of the first packet of a data connection depends on its place. Before conntrack (priority -200)
//! the packet has no connection. Until our table admits it, the connection has no ct mark of ours. Rules of others may
//! overwrite the marks on the way, for all packets that follow. Our table then sets its bit again, at one place of each
//! hook.
//!
//! A control connection may have passed such rules before, so its marks are not known at any chain.

use super::{
    ChainVerdict, Gateway, HidingRule, PacketClass, Ruleset,
    model::{
        BaseChain, ChangedMarkBits, FieldValue, Hook, IpVersion, LocatedChain, LocatedRule,
        SamplePacket, state,
    },
    networks::Links,
    sample_packets::{ACK, COMPARED, EPHEMERAL, SYN, first_packet},
    traversal,
};

/// A connection. Its packets change on their way, so [`Connection::seen_at`] says what is known of them at a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection<'a> {
    pub(crate) ip: IpVersion,
    pub(crate) kind: ConnectionKind,
    /// The filter hooks of the initiator's packets and of the target's.
    pub(crate) hooks: [Hook; 2],
    /// The interface towards the initiator: `None` if unknown, empty if this machine is the initiator.
    pub(crate) from: Option<&'a str>,
    /// The interface towards the target: `None` if unknown, empty if this machine is the target.
    pub(crate) to: Option<&'a str>,
    /// The networks at this machine's interfaces, if known.
    pub(crate) links: Option<&'a Links>,
}

/// What is known about a connection besides its ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ConnectionKind {
    /// A control connection, or another one that `ftp-alg` does not admit.
    Control {
        /// The destination port that the initiator uses.
        port: u16,
        /// The destination port after destination NAT.
        real_port: u16,
    },
    Data {
        class: PacketClass,
        /// The ct mark bits of admitted data connections: none for one that nobody admits.
        admitted: u32,
        source_port: FieldValue,
    },
    /// A single packet that `ftp-alg` injects.
    Injected,
}

/// The priority of conntrack (NF_IP_PRI_CONNTRACK). No packet has a connection before.
const CONNTRACK_PRIORITY: i32 = -200;
/// The priority of destination NAT at prerouting (NF_IP_PRI_NAT_DST). The kernel runs all destination NAT chains at
/// this priority, whatever their own priority is.
pub(crate) const DESTINATION_NAT_PRIORITY: i32 = -100;

/// The priority at which our table sets the bits again that others took from an admitted connection.
const fn marking_priority(hook: Hook) -> i32 {
    match hook {
        Hook::Prerouting | Hook::Output => DESTINATION_NAT_PRIORITY + 1,
        Hook::Forward | Hook::Input => -1,
        Hook::Postrouting => 99,
    }
}

impl PacketClass {
    /// The priority behind which our table has admitted the first packet of such a data connection at `hook`; `None` if
    /// it is admitted at a later hook.
    fn admission_priority(self, hook: Hook) -> Option<i32> {
        match (self, hook) {
            (Self::MarkedData, Hook::Prerouting | Hook::Output) => Some(DESTINATION_NAT_PRIORITY),
            (Self::RelatedData, Hook::Prerouting) => None,
            (Self::RelatedData, Hook::Forward | Hook::Input) => Some(-152),
            (Self::RelatedData, Hook::Output) => Some(-90),
            _ => Some(i32::MIN),
        }
    }

    /// Whether a rule in a chain at `hook` with `priority` can recognise the first packet of such a connection by the
    /// condition of the accept rule.
    pub(crate) fn is_recognised_at(self, hook: Hook, priority: i32) -> bool {
        match self {
            Self::Injected => true,
            // It is `related` from the start.
            Self::RelatedData => !is_before_conntrack(hook, priority),
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

impl<'a> Connection<'a> {
    /// A connection between unknown interfaces.
    pub(crate) fn new(kind: ConnectionKind, hook: Hook, ip: IpVersion) -> Self {
        let hooks = [hook, hook.of_replies()];
        Self { ip, kind, hooks, from: None, to: None, links: None }
    }

    /// A control connection between unknown interfaces.
    pub(crate) fn control(hook: Hook, ip: IpVersion, port: u16) -> Self {
        Self::new(ConnectionKind::Control { port, real_port: port }, hook, ip)
    }

    /// A connection between two interfaces. The name of one is empty if this machine is the end there.
    pub(crate) fn between(
        (from, to): (&'a str, &'a str),
        links: &'a Links,
        kind: ConnectionKind,
        ip: IpVersion,
    ) -> Self {
        let hook = match (from, to) {
            ("", _) => Hook::Output,
            (_, "") => Hook::Input,
            _ => Hook::Forward,
        };
        let (from, to, links) = (Some(from), Some(to), Some(links));
        Self { from, to, links, ..Self::new(kind, hook, ip) }
    }

    /// Packets that represent the connection, as they arrive: the first packet, and a later packet in each direction.
    pub(crate) fn packets(
        &self,
        gateway: &Gateway,
        changes: ChangedMarkBits,
    ) -> [SamplePacket<'a>; 3] {
        // A control connection may have any of our bits except the one of data connections. A connection that it
        // announced inherits its ct mark (init_conntrack()).
        let of_control =
            FieldValue::unset_except(gateway.control_bits() | changes.ct_mark & !gateway.data_mark);
        let arriving = SamplePacket {
            // A new connection has no mark bits except those that rules of others set on it, or on its control
            // connection, from which it inherits them.
            ct_mark: FieldValue::unset_except(changes.ct_mark),
            links: self.links,
            ..first_packet(self.hooks[0], self.ip)
        };
        let (first, later_port) = match self.kind {
            ConnectionKind::Control { real_port, .. } => {
                let first = SamplePacket {
                    // Rules of others may restore packet marks, but never the one of the packets that we inject.
                    mark: FieldValue::unset_except(changes.mark & !gateway.mask()),
                    source_port: EPHEMERAL,
                    destination_port: FieldValue::exactly(real_port.into()),
                    ..arriving
                };
                (first, first.destination_port)
            }
            ConnectionKind::Data { class, source_port, .. } => {
                let first = SamplePacket {
                    mark: FieldValue::unset_except(changes.mark),
                    // Until the destination is translated, it may be an address of this machine.
                    is_local: None,
                    source_port,
                    destination_port: FieldValue::DATA_PORT,
                    ..arriving
                };
                let related = SamplePacket {
                    state: state::RELATED,
                    ct_mark: of_control,
                    ftp_helper: FieldValue::exactly(1),
                    ..first
                };
                let is_related = class == PacketClass::RelatedData;
                (if is_related { related } else { first }, FieldValue::ANY_PORT)
            }
            ConnectionKind::Injected => {
                let first = SamplePacket {
                    state: state::UNTRACKED,
                    direction: FieldValue::Absent,
                    mark: FieldValue::exactly(gateway.mask()),
                    tcp_flags: FieldValue::Bits { bits: ACK, known: COMPARED },
                    ..first_packet(self.hooks[0], self.ip)
                };
                (first, FieldValue::ANY_PORT)
            }
        };
        let later = SamplePacket {
            state: state::ESTABLISHED,
            ct_mark: of_control,
            tcp_flags: FieldValue::Bits { bits: ACK, known: ACK | SYN },
            destination_port: later_port,
            ..first
        };
        let reply = SamplePacket {
            is_local: later.is_local.map(|_| self.hooks[1] == Hook::Input),
            direction: FieldValue::exactly(1),
            source_port: later.destination_port,
            destination_port: later.source_port,
            ..later
        };
        [first, later, reply]
    }

    /// `packet` as a chain at `hook` with `priority` sees it.
    pub(crate) fn seen_at(
        &self,
        hook: Hook,
        priority: i32,
        packet: SamplePacket<'a>,
    ) -> SamplePacket<'a> {
        let is_reply = packet.direction == FieldValue::exactly(1);
        let (input, output) = if is_reply { (self.to, self.from) } else { (self.from, self.to) };
        let seen = SamplePacket {
            hook,
            input: if hook == Hook::Output { Some("") } else { input },
            output: if matches!(hook, Hook::Prerouting | Hook::Input) { Some("") } else { output },
            is_local: match hook {
                Hook::Prerouting => packet.is_local,
                _ => Some(hook == Hook::Input),
            },
            ..packet
        };
        let is_untracked = packet.state == state::UNTRACKED;
        match self.kind {
            // Replies have the real port until they leave.
            ConnectionKind::Control { port, .. }
                if hook == Hook::Prerouting
                    && priority <= DESTINATION_NAT_PRIORITY
                    && !is_reply =>
            {
                SamplePacket { destination_port: FieldValue::exactly(port.into()), ..seen }
            }
            ConnectionKind::Data { .. } if is_untracked || is_before_conntrack(hook, priority) => {
                SamplePacket {
                    state: if is_untracked { state::UNTRACKED } else { state::INVALID },
                    ct_mark: FieldValue::Absent,
                    direction: FieldValue::Absent,
                    ftp_helper: FieldValue::Absent,
                    ..seen
                }
            }
            _ => seen,
        }
    }

    /// Whether a rule before has hidden what the accept rule for data connections recognises.
    fn is_hidden(&self, seen: &SamplePacket<'_>, is_admitted: bool) -> bool {
        let ConnectionKind::Data { class, admitted, .. } = self.kind else { return false };
        let has_mark = match seen.ct_mark {
            FieldValue::Bits { bits, known } => bits & known & admitted == admitted,
            _ => true,
        };
        let needs_mark = is_admitted && class == PacketClass::MarkedData;
        seen.state == state::UNTRACKED || needs_mark && !has_mark
    }

    /// Follows the packets through the chains of `rules`.
    pub(crate) fn follow(&self, rules: &'a Ruleset, gateway: &'a Gateway) -> Way<'a> {
        let (connection, verdicts, reached) = (*self, Vec::new(), Vec::new());
        let mut way = Way { rules, gateway, connection, verdicts, reached, changed_by: None };
        let [first, later, reply] = self.packets(gateway, rules.changed_mark_bits);
        if let ConnectionKind::Injected = self.kind {
            way.pass(first, &self.hooks[..1]);
            return way;
        }
        let [there, back] = self.hooks.map(Hook::on_the_way);
        let mut left = way.pass(first, there);
        for (packet, hooks) in [(later, there), (reply, back)] {
            left = match self.kind {
                ConnectionKind::Data { .. } => {
                    way.pass(SamplePacket { ct_mark: left.ct_mark, ..packet }, hooks)
                }
                _ => way.pass(packet, hooks),
            };
        }
        way
    }
}

/// The way of a connection's packets.
pub(crate) struct Way<'a> {
    rules: &'a Ruleset,
    gateway: &'a Gateway,
    connection: Connection<'a>,
    /// The verdicts of all chains that the packets pass, in their order.
    pub(crate) verdicts: Vec<ChainVerdict>,
    /// The rules that may apply to a packet and do more than give a verdict, and whether it is the first packet.
    pub(crate) reached: Vec<(LocatedRule<'a>, bool)>,
    /// The last rule that changed the ct mark, or took a packet out of connection tracking.
    changed_by: Option<HidingRule>,
}

impl<'a> Way<'a> {
    /// The base chains at `hook` that the packets reach, in their order.
    ///
    /// Our table or an expectation translates data connections, so the chains of type `nat` do not see them.
    fn chains_at(&self, hook: Hook) -> Vec<LocatedChain<'a>> {
        let is_data = matches!(self.connection.kind, ConnectionKind::Data { .. });
        let chains = self.rules.base_chains(self.connection.ip);
        let is_seen = |base: &BaseChain| base.hook == hook && !(is_data && base.is_nat);
        let mut chains: Vec<_> = chains.filter(|chain| is_seen(&chain.base)).collect();
        chains.sort_by_key(|chain| chain.base.priority);
        chains
    }

    /// Our table admits the first packet.
    fn admit(&self, packet: &mut SamplePacket<'_>, admitted: u32) {
        let mask = self.gateway.mask();
        let (others, known) = match packet.ct_mark {
            FieldValue::Bits { bits, known } => (bits & !mask, known),
            _ => (0, !self.rules.changed_mark_bits.ct_mark),
        };
        packet.ct_mark = FieldValue::Bits { bits: others | admitted, known: known | mask };
    }

    /// Our table sets the bits again that an admitted connection had.
    fn mark_again(&self, packet: &mut SamplePacket<'_>, is_admitted: bool) {
        if let (ConnectionKind::Data { admitted, .. }, true, FieldValue::Bits { bits, known }) =
            (self.connection.kind, is_admitted, packet.ct_mark)
        {
            packet.ct_mark = FieldValue::Bits { bits: bits | admitted, known: known | admitted };
        }
    }

    /// Evaluates all chains at `hooks` for `packet`. Returns the packet as it leaves.
    fn pass(&mut self, mut packet: SamplePacket<'a>, hooks: &[Hook]) -> SamplePacket<'a> {
        // Only the first packet of a data connection waits for its admission.
        let mut waits = match self.connection.kind {
            ConnectionKind::Data { class, admitted, .. } if packet.state != state::ESTABLISHED => {
                Some((class, admitted))
            }
            _ => None,
        };
        for &hook in hooks {
            let mut marking = Some(marking_priority(hook));
            for chain in self.chains_at(hook) {
                let priority = chain.base.priority;
                if let Some((_, admitted)) =
                    waits.take_if(|(class, _)| class.is_admitted_at(hook, priority))
                {
                    self.admit(&mut packet, admitted);
                }
                // Of chains of the same priority the one that was added last comes first.
                if marking.take_if(|marking| priority >= *marking).is_some() {
                    self.mark_again(&mut packet, waits.is_none());
                }
                let seen = self.connection.seen_at(hook, priority, packet);
                let left = self.evaluate(chain, seen, waits.is_none());
                if let ConnectionKind::Data { .. } = self.connection.kind {
                    packet.mark = left.mark;
                    if left.state == state::UNTRACKED {
                        packet.state = state::UNTRACKED;
                    } else if left.ct_mark != FieldValue::Absent {
                        packet.ct_mark = left.ct_mark;
                    }
                }
            }
            if marking.is_some() {
                self.mark_again(&mut packet, waits.is_none());
            }
        }
        if let Some((_, admitted)) = waits {
            self.admit(&mut packet, admitted);
        }
        packet
    }

    /// Adds the verdict of `chain` on a packet. Returns the packet as it leaves the chain.
    fn evaluate(
        &mut self,
        chain: LocatedChain<'a>,
        seen: SamplePacket<'a>,
        is_admitted: bool,
    ) -> SamplePacket<'a> {
        let is_hidden = self.connection.is_hidden(&seen, is_admitted);
        let hidden_by = self.changed_by.clone().filter(|_| is_hidden);
        let traversal = traversal::follow(chain, &seen, None);
        let is_new = seen.state == state::NEW;
        self.reached.extend(traversal.reached.iter().map(|rule| (*rule, is_new)));
        let left = traversal.packet;
        if let Some(changed_by) = traversal.changed_by {
            self.changed_by = Some(HidingRule {
                chain: changed_by.chain_name(),
                rule: changed_by.rule.text.clone(),
                untracks: left.state == state::UNTRACKED,
            });
        }
        let hides = !is_hidden && self.connection.is_hidden(&left, is_admitted);
        let verdict = ChainVerdict { hidden_by, ..traversal.verdict(chain, hides) };
        match self.verdicts.iter_mut().find(|known| known.location == verdict.location) {
            Some(known) => known.add(verdict),
            None => self.verdicts.push(verdict),
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            AcceptedData, Firewall, Routing, accepted_data, data_path_verdicts,
            rules_for_tests::{ACCEPT, CT_MARK, STATE, accepts_mark, is},
        },
        *,
    };

    const GATEWAY: Routing =
        Routing { v4: true, v6: false, has_v6: false, has_local_server: false };
    const MARK: &str = "-m connmark --mark 0x40000000/0x40000000 -j ACCEPT";
    const RELATED: &str = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";

    /// Whether admitted data connections pass, and expected ones.
    fn pass(firewall: &Firewall, hook: Hook) -> [bool; 2] {
        [PacketClass::MarkedData, PacketClass::RelatedData]
            .map(|class| firewall.verdict(hook, IpVersion::V4, class).passes())
    }

    /// What to do about the first chain at `hook` that drops packets of `class`.
    fn advice(firewall: &Firewall, hook: Hook, class: PacketClass) -> Result<String, String> {
        let verdict = firewall.verdict(hook, IpVersion::V4, class);
        let stop = verdict.dropping_chains().next().unwrap();
        stop.accept_command(class, &firewall.gateway)
    }

    #[test]
    fn drops_at_prerouting_and_postrouting_count() {
        let login = "-p tcp -m tcp --dport 21 -j ACCEPT";
        let early = format!(
            ":PREROUTING DROP\n-A PREROUTING {RELATED}\n-A PREROUTING {MARK}\n-A PREROUTING {login}"
        );
        let open = format!("{early}\n-A PREROUTING -p tcp -m tcp --dport 1024:65535 -j ACCEPT");
        let late = format!(":POSTROUTING DROP\n-A POSTROUTING {RELATED}\n-A POSTROUTING {login}");
        let cured = format!("{late}\n-A POSTROUTING {MARK}");
        let spoofed = ":PREROUTING ACCEPT\n-A PREROUTING -i wan -s 10.0.0.0/8 -j DROP\n\
                       -A PREROUTING -m rpfilter --invert -j DROP";
        let new = ":PREROUTING ACCEPT\n-A PREROUTING -i wan -m conntrack --ctstate NEW -j DROP";
        for (table, rules, prerouting, postrouting, data) in [
            ("mangle", &*early, [false, true], [true, true], AcceptedData::Related),
            // New connections to high ports are left to the other chains.
            ("mangle", &open, [true, true], [true, true], AcceptedData::Marked),
            ("mangle", &late, [true, true], [false, true], AcceptedData::Related),
            ("mangle", &cured, [true, true], [true, true], AcceptedData::Marked),
            // Rules against spoofed addresses do not decide the back end.
            ("raw", spoofed, [true, true], [true, true], AcceptedData::Marked),
            ("mangle", new, [true, true], [true, true], AcceptedData::Related),
            ("raw", ":PREROUTING DROP", [false, false], [true, true], AcceptedData::Nothing),
            ("filter", ":FORWARD DROP", [true, true], [true, true], AcceptedData::Nothing),
            // Chains of this type do not see data connections.
            ("nat", ":PREROUTING DROP", [true, true], [true, true], AcceptedData::Marked),
            ("nat", ":POSTROUTING DROP", [true, true], [true, true], AcceptedData::Marked),
        ] {
            let firewall = Firewall::from_iptables_tables(&[(table, rules)]);
            assert_eq!(pass(&firewall, Hook::Prerouting), prerouting, "{rules}");
            assert_eq!(pass(&firewall, Hook::Postrouting), postrouting, "{rules}");
            let paths = data_path_verdicts(&firewall, GATEWAY);
            assert_eq!(accepted_data(&firewall, &paths), Some(data), "{rules}");
        }
        // Before the admission no rule can recognise them by the mark.
        let (marked, related) = (PacketClass::MarkedData, PacketClass::RelatedData);
        let firewall = Firewall::from_iptables_tables(&[("mangle", ":PREROUTING DROP")]);
        assert!(advice(&firewall, Hook::Prerouting, marked).is_err());
        assert!(advice(&firewall, Hook::Prerouting, related).is_ok());
        let firewall = Firewall::from_iptables_tables(&[("mangle", &late)]);
        let command = format!("iptables-legacy -t mangle -I POSTROUTING 2 {MARK}");
        assert_eq!(advice(&firewall, Hook::Postrouting, marked), Ok(command));
    }

    #[test]
    fn what_a_rule_sees_depends_on_its_priority() {
        let state = |names| format!("{}, {ACCEPT}", is("in", STATE, names));
        let (mark, related) = (accepts_mark(), state(r#"["established", "related"]"#));
        let (both, invalid) = ([&*related, &*mark], [&*state(r#""invalid""#)]);
        for (hook, priority, rules, expected) in [
            (Hook::Prerouting, -300, &both[..], [false, false]),
            (Hook::Prerouting, -140, &both, [false, true]),
            (Hook::Prerouting, 0, &both, [true, true]),
            // Before conntrack every packet is `invalid`.
            (Hook::Prerouting, -300, &invalid, [true, true]),
            // Before destination NAT of this machine's own connections.
            (Hook::Output, -150, &both, [false, true]),
            (Hook::Output, 0, &both, [true, true]),
        ] {
            let chain = format!("inet filter {hook} {priority} drop");
            let firewall = Firewall::from_nft_chain(&chain, rules);
            assert_eq!(pass(&firewall, hook), expected, "{chain}");
        }
    }

    /// Our table sets the bit again in front of the filter, but not within.
    #[test]
    fn a_rule_that_overwrites_the_ct_mark_matters_in_the_filter_alone() {
        let established = "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT";
        let accepting = format!("-A FORWARD {MARK}");
        for (rules, in_filter) in [
            ("-j CONNMARK --save-mark", false),
            ("-j CONNMARK --set-xmark 0x7/0xffffffff", false),
            ("-m conntrack --ctstate NEW -j CONNMARK --set-xmark 0x5/0xffffffff", false),
            ("-j X\n:X - [0:0]\n-A X -j CONNMARK --save-mark", false),
            ("-j MARK --set-xmark 0x1/0xff\n-A FORWARD -j CONNMARK --save-mark", false),
            ("-j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff", true),
            ("-j CONNMARK --set-xmark 0x7/0xff", true),
            ("-m connmark --mark 0x0 -j CONNMARK --set-xmark 0x7/0xffffffff", true),
            ("-j CONNMARK --restore-mark\n-A FORWARD -j CONNMARK --save-mark", true),
            // Only some connections.
            ("-s 10.0.0.0/8 -j CONNMARK --save-mark", true),
        ] {
            let rules = format!("-A FORWARD {rules}");
            for (mangle, filter, expected) in [
                (&rules, format!("{established}\n{accepting}"), true),
                (&rules, accepting.clone(), true),
                (&String::new(), format!("{rules}\n{established}\n{accepting}"), in_filter),
                (&String::new(), format!("{rules}\n{accepting}"), in_filter),
            ] {
                let [mangle, filter] = [("ACCEPT", mangle), ("DROP", &filter)]
                    .map(|(policy, rules)| format!(":FORWARD {policy}\n{rules}"));
                let tables = [("mangle", &*mangle), ("filter", &filter)];
                let firewall = Firewall::from_iptables_tables(&tables);
                assert_eq!(pass(&firewall, Hook::Forward)[0], expected, "{tables:?}");
            }
        }
        // It is named for a chain behind it, where no other accept rule helps.
        let filter = ":FORWARD ACCEPT\n-A FORWARD -j CONNMARK --save-mark";
        let security = format!(":FORWARD DROP\n{accepting}");
        let tables = [("filter", filter), ("security", &security)];
        let firewall = Firewall::from_iptables_tables(&tables);
        let advice = advice(&firewall, Hook::Forward, PacketClass::MarkedData).unwrap_err();
        let rule =
            "`-A FORWARD -j CONNMARK --save-mark` in iptables-legacy filter FORWARD overwrites";
        assert!(advice.starts_with(rule), "{advice}");
    }

    #[test]
    fn each_hook_has_a_place_behind_which_the_mark_is_there_again() {
        let set = format!(r#"{{"mangle": {{"key": {CT_MARK}, "value": 5}}}}"#);
        let accepts = accepts_mark();
        for (hook, priority, passes) in [
            ("prerouting", 0, true),
            ("forward", -2, true),
            ("forward", -1, false),
            ("forward", 0, false),
            ("postrouting", 300, true),
        ] {
            let filter = Firewall::from_nft_chain("inet filter forward 0 drop", &[&accepts]);
            let mut firewall =
                Firewall::from_nft_chain(&format!("inet filter {hook} {priority} accept"), &[&set]);
            firewall.ruleset.add(filter.ruleset.tables);
            // At priority 0 the chain that was found first is followed first.
            assert_eq!(pass(&firewall, Hook::Forward)[0], passes, "{hook} {priority}");
        }
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
            let rules = [&*set(&value), &mark];
            let firewall = Firewall::from_nft_chain("inet filter forward 0 drop", &rules);
            assert_eq!(pass(&firewall, Hook::Forward), [passes; 2], "{value}");
        }
    }
}
