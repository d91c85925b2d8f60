//! The sample packets for which the firewall is evaluated.
//!
//! There are three kinds: packets of data connections that `ftp-alg` admits ([`super::data_connection`]), packets that
//! `ftp-alg` injects, and packets of connections without its marks, such as control connections.

use super::{
    Gateway,
    mark_writes::{ChangedMarkBits, MarkTarget, MarkWrite, WrittenMark},
    networks::Links,
    packet_fields::{Field, FieldValue, Hook, IpVersion, Side, state},
};

/// The ephemeral ports of Linux and of other systems have this range in common.
pub(crate) const EPHEMERAL: FieldValue = FieldValue::Within(49_152, 60_999);
pub(crate) const SYN: u32 = 0x02;
pub(crate) const ACK: u32 = 0x10;
/// The TCP flags that rules compare: FIN, SYN, RST, PSH, ACK, URG.
const COMPARED: u32 = 0x3f;

/// A packet for which rules are evaluated. Only the properties that are known in advance are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SamplePacket<'a> {
    pub(crate) hook: Hook,
    pub(crate) ip: IpVersion,
    /// Whether the destination is an address of this machine; `None` if that is not known.
    pub(crate) is_local: Option<bool>,
    /// The input interface, if known; empty if the packet has none.
    pub(crate) input: Option<&'a str>,
    /// The output interface, if known; empty if the packet has none.
    pub(crate) output: Option<&'a str>,
    pub(crate) state: u32,
    pub(crate) direction: FieldValue,
    pub(crate) ct_mark: FieldValue,
    pub(crate) mark: FieldValue,
    pub(crate) source_port: FieldValue,
    pub(crate) destination_port: FieldValue,
    pub(crate) tcp_flags: FieldValue,
    pub(crate) ftp_helper: FieldValue,
    /// The first and the last priority of the chains at the hook that see the packet like this.
    pub(crate) priorities: (i32, i32),
    /// The networks at this machine's interfaces, if known.
    pub(crate) links: Option<&'a Links>,
}

/// The priority of destination NAT at prerouting (NF_IP_PRI_NAT_DST).
const DESTINATION_NAT_PRIORITY: i32 = -100;

impl<'a> SamplePacket<'a> {
    /// Whether a chain at `hook` with `priority` sees the packet like this.
    pub(crate) fn is_seen_at(&self, hook: Hook, priority: i32) -> bool {
        let (first, last) = self.priorities;
        self.hook == hook && (first..=last).contains(&priority)
    }

    /// The input or the output interface, if known.
    pub(crate) fn interface(&self, side: Side) -> Option<&'a str> {
        match side {
            Side::Source => self.input,
            Side::Destination => self.output,
        }
    }

    /// Applies what a rule writes into a mark.
    pub(crate) fn write_mark(&mut self, write: MarkWrite) {
        let Self { ct_mark, mark, .. } = self;
        let (target, other) = match write.target {
            MarkTarget::CtMark => (ct_mark, mark),
            MarkTarget::PacketMark => (mark, ct_mark),
        };
        let (bits, known) = match (write.value, *other) {
            (WrittenMark::Constant(bits), _) => (bits, u32::MAX),
            (WrittenMark::OtherMark, FieldValue::Bits { bits, known }) => (bits, known),
            (WrittenMark::OtherMark | WrittenMark::Unknown, _) => (0, 0),
        };
        // A packet without a connection has no ct mark.
        if let FieldValue::Bits { bits: old, known: old_known } = *target {
            *target = FieldValue::Bits {
                bits: old & !write.bits | bits & write.bits,
                known: old_known & !write.bits | known & write.bits,
            };
        }
    }

    pub(crate) fn value(&self, field: Field) -> FieldValue {
        match field {
            Field::Family => FieldValue::exactly(if self.ip == IpVersion::V4 { 4 } else { 6 }),
            Field::Protocol => FieldValue::exactly(6),
            Field::State => FieldValue::exactly(self.state),
            Field::Direction => self.direction,
            Field::CtMark => self.ct_mark,
            Field::PacketMark => self.mark,
            Field::SourcePort => self.source_port,
            Field::DestinationPort => self.destination_port,
            Field::TcpFlags => self.tcp_flags,
            Field::FtpHelper => self.ftp_helper,
            Field::DestinationType => match self.is_local {
                Some(is_local) => FieldValue::exactly(if is_local { 1 } else { 2 }),
                None => FieldValue::Within(1, 2),
            },
            Field::PacketType => FieldValue::exactly(0),
        }
    }
}

/// How a firewall can recognise a packet of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketClass {
    /// A data connection that our table admitted: state `new`, with our bit in the ct mark.
    MarkedData,
    /// A data connection that conntrack expected: state `related`, and our table has set the bit, too.
    RelatedData,
    /// A packet from our raw socket: state `untracked`, with our packet mark.
    Injected,
}

impl PacketClass {
    /// A short description for messages.
    pub fn description(self) -> &'static str {
        match self {
            Self::Injected => "acknowledgements of ftp-alg",
            Self::MarkedData => "admitted data connections",
            Self::RelatedData => "expected data connections",
        }
    }
}

/// The first packet of a connection without any other known property.
pub(crate) fn first_packet(hook: Hook, ip: IpVersion) -> SamplePacket<'static> {
    SamplePacket {
        hook,
        ip,
        is_local: Some(hook == Hook::Input),
        input: None,
        output: None,
        state: state::NEW,
        direction: FieldValue::exactly(0),
        ct_mark: FieldValue::Absent,
        mark: FieldValue::Absent,
        source_port: FieldValue::ANY_PORT,
        destination_port: FieldValue::ANY_PORT,
        tcp_flags: FieldValue::Bits { bits: SYN, known: COMPARED },
        ftp_helper: FieldValue::Absent,
        priorities: (i32::MIN, i32::MAX),
        links: None,
    }
}

/// A packet that `ftp-alg` injects.
pub(crate) fn injected_packet(
    hook: Hook,
    ip: IpVersion,
    gateway: &Gateway,
) -> SamplePacket<'static> {
    SamplePacket {
        state: state::UNTRACKED,
        direction: FieldValue::Absent,
        mark: FieldValue::exactly(gateway.mask()),
        tcp_flags: FieldValue::Bits { bits: ACK, known: COMPARED },
        ..first_packet(hook, ip)
    }
}

/// Packets that the fast path marks, at prerouting, each with its packet mark there. They are as they would be without
/// the fast path: the first packet of a data connection, and later packets of control connections. Rules of others
/// change the bits `changed` of their packet marks.
pub(crate) fn fast_path_packets(
    gateway: &Gateway,
    changes: ChangedMarkBits,
    changed: u32,
) -> Vec<(SamplePacket<'static>, FieldValue)> {
    let unmarked = FieldValue::unset_except(changed);
    let mask = gateway.mask();
    let first = SamplePacket {
        output: Some(""),
        ct_mark: FieldValue::unset_except(changes.ct_mark),
        mark: unmarked,
        destination_port: FieldValue::DATA_PORT,
        ..first_packet(Hook::Prerouting, IpVersion::V4)
    };
    let admitted = FieldValue::Bits {
        bits: gateway.data_mark | gateway.queue_none_mark,
        // The number of a translation may be in the other bits.
        known: mask | !(changed | gateway.slot_mask),
    };
    let inspected = FieldValue::Bits { bits: gateway.control_bits(), known: mask | !changed };
    let control = gateway.control_ports.iter().flat_map(|&port| {
        SampleConnection::unknown(Hook::Forward, IpVersion::V4, port).packets(gateway, changes)
    });
    let later = control
        .filter(|one| one.hook == Hook::Prerouting && one.state == state::ESTABLISHED)
        .map(|one| (SamplePacket { mark: unmarked, ..one }, inspected));
    [(first, admitted)].into_iter().chain(later).collect()
}

/// Packets of a data connection at `hook` behind its admission, each with the ct mark that it has if the fast path
/// admits it. Our table finds the translation of its source by the second bit.
pub(crate) fn admitted_packets(
    hook: Hook,
    gateway: &Gateway,
    changes: ChangedMarkBits,
) -> [(SamplePacket<'static>, FieldValue); 3] {
    let known = !changes.ct_mark | gateway.mask();
    let data = gateway.data_mark;
    let first = SamplePacket {
        is_local: (hook != Hook::Prerouting).then_some(hook == Hook::Input),
        input: (hook == Hook::Output).then_some(""),
        output: matches!(hook, Hook::Prerouting | Hook::Input).then_some(""),
        ct_mark: FieldValue::Bits { bits: data, known },
        mark: FieldValue::unset_except(changes.mark),
        destination_port: FieldValue::DATA_PORT,
        ..first_packet(hook, IpVersion::V4)
    };
    let later = SamplePacket {
        state: state::ESTABLISHED,
        destination_port: FieldValue::ANY_PORT,
        tcp_flags: FieldValue::Bits { bits: ACK, known: ACK | SYN },
        ..first
    };
    let reply = SamplePacket { direction: FieldValue::exactly(1), ..later };
    let bits = data | gateway.queue_all_mark;
    [first, later, reply].map(|packet| (packet, FieldValue::Bits { bits, known }))
}

/// A TCP connection between two interfaces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SampleConnection<'a> {
    /// The hook of the first packet.
    pub(crate) hook: Hook,
    pub(crate) ip: IpVersion,
    /// The destination port that the initiator uses.
    pub(crate) port: u16,
    /// The destination port after destination NAT.
    pub(crate) real_port: u16,
    /// The interface towards the initiator: `None` if unknown, empty if this machine is the initiator.
    pub(crate) from: Option<&'a str>,
    /// The interface towards the target: `None` if unknown, empty if this machine is the target.
    pub(crate) to: Option<&'a str>,
    /// The networks at this machine's interfaces, if known.
    pub(crate) links: Option<&'a Links>,
}

impl<'a> SampleConnection<'a> {
    /// A connection between unknown interfaces.
    pub(crate) fn unknown(hook: Hook, ip: IpVersion, port: u16) -> Self {
        Self { hook, ip, port, real_port: port, from: None, to: None, links: None }
    }

    /// Packets that represent the connection: the first packet, and a later packet in each direction.
    pub(crate) fn packets(
        &self,
        gateway: &Gateway,
        changes: ChangedMarkBits,
    ) -> Vec<SamplePacket<'a>> {
        let Self { hook, ip, port, real_port, from, to, links } = *self;
        let first = SamplePacket {
            input: from,
            output: to,
            ct_mark: FieldValue::unset_except(changes.ct_mark),
            // Rules of others may restore packet marks, but never the one of the packets that we inject.
            mark: FieldValue::unset_except(changes.mark & !gateway.mask()),
            source_port: EPHEMERAL,
            destination_port: FieldValue::exactly(real_port.into()),
            links,
            ..first_packet(hook, ip)
        };
        let later = SamplePacket {
            state: state::ESTABLISHED,
            // A control connection may have any of our bits except the one of data connections.
            ct_mark: FieldValue::unset_except(
                gateway.control_bits() | changes.ct_mark & !gateway.data_mark,
            ),
            tcp_flags: FieldValue::Bits { bits: ACK, known: ACK | SYN },
            ..first
        };
        let reply = SamplePacket {
            hook: hook.of_replies(),
            is_local: Some(hook == Hook::Output),
            input: to,
            output: from,
            direction: FieldValue::exactly(1),
            source_port: later.destination_port,
            destination_port: later.source_port,
            ..later
        };
        let mut packets = Vec::new();
        for packet in [first, later, reply] {
            let early = SamplePacket { hook: Hook::Prerouting, output: Some(""), ..packet };
            // Replies have the real port until they leave.
            let is_translated = port != real_port && packet.direction == FieldValue::exactly(0);
            match packet.hook {
                Hook::Output => {}
                _ if is_translated => packets.extend([
                    SamplePacket {
                        destination_port: FieldValue::exactly(port.into()),
                        priorities: (i32::MIN, DESTINATION_NAT_PRIORITY),
                        ..early
                    },
                    SamplePacket { priorities: (DESTINATION_NAT_PRIORITY + 1, i32::MAX), ..early },
                ]),
                _ => packets.push(early),
            }
            packets.push(packet);
            if packet.hook != Hook::Input {
                let (hook, is_local) = (Hook::Postrouting, Some(false));
                packets.push(SamplePacket { hook, is_local, ..packet });
            }
        }
        packets
    }
}
