//! The packets that a firewall is asked about: those of a data connection that was admitted, those
//! that `ftp-alg` sends itself, and those of a connection that is nothing to it, as a control
//! connection.

use super::model::{ChangedMarkBits, FieldValue, Hook, Ip, SamplePacket, state};
use crate::gateway::{Backend, RuleParameters};

/// The ports that initiators choose on Linux and on other systems.
const EPHEMERAL: FieldValue = FieldValue::Within(49_152, 60_999);
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;
/// Of the flags that rules compare: FIN, SYN, RST, PSH, ACK, URG.
const COMPARED: u32 = 0x3f;

/// By what a firewall can tell a packet of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketClass {
    /// A data connection that our table admitted: new, with our bit in its ct mark.
    MarkedData,
    /// A data connection that conntrack expected: related, and our table gave it that bit as well.
    RelatedData,
    /// A packet from our raw socket: untracked, with our packet mark.
    Injected,
}

impl PacketClass {
    /// Of the data connections of a back end.
    pub fn for_data_connections(backend: Backend) -> Self {
        match backend {
            Backend::Conntrack => Self::RelatedData,
            Backend::Nftables => Self::MarkedData,
        }
    }

    /// What such packets are, for people.
    pub fn description(self) -> &'static str {
        match self {
            Self::Injected => "acknowledgements of ftp-alg",
            Self::MarkedData => "admitted data connections",
            Self::RelatedData => "expected data connections",
        }
    }
}

/// The first packet of a connection of which nothing else is known.
fn first_packet(hook: Hook, ip: Ip) -> SamplePacket<'static> {
    let any_port = FieldValue::Within(0, u16::MAX.into());
    SamplePacket {
        hook,
        ip,
        is_local: hook == Hook::Input,
        input: None,
        output: None,
        state: state::NEW,
        direction: FieldValue::exactly(0),
        ct_mark: FieldValue::Absent,
        mark: FieldValue::Absent,
        source_port: any_port,
        destination_port: any_port,
        tcp_flags: FieldValue::Bits { bits: SYN, known: COMPARED },
        ftp_helper: FieldValue::Absent,
    }
}

/// The packets with `sign` that stand for the whole: the first of a connection, and a later one either way. `data` is the
/// ct mark bit of an admitted data connection.
pub(super) fn packets_of_class(
    hook: Hook,
    ip: Ip,
    sign: PacketClass,
    data: u32,
    parameters: &RuleParameters,
    changes: ChangedMarkBits,
) -> Vec<SamplePacket<'static>> {
    let mask = parameters.mask();
    let any = first_packet(hook, ip);
    let first = SamplePacket {
        // A new connection has no mark but ours and what others' rules put there.
        ct_mark: FieldValue::Bits { bits: data, known: !changes.ct_mark | data },
        mark: FieldValue::Bits { bits: 0, known: !changes.mark },
        // `min-data-port` may be lower, but rules about low ports are about services.
        destination_port: FieldValue::Within(1024, u16::MAX.into()),
        ..any
    };
    // It inherits the mark of its control connection (init_conntrack()), our bits included; another of them says that a
    // handshake is over.
    let inherited = FieldValue::Bits { bits: data, known: !changes.ct_mark & !mask | data };
    let first = match sign {
        PacketClass::MarkedData => first,
        PacketClass::RelatedData => SamplePacket {
            state: state::RELATED,
            ct_mark: inherited,
            ftp_helper: FieldValue::exactly(1),
            ..first
        },
        PacketClass::Injected => {
            return vec![SamplePacket {
                state: state::UNTRACKED,
                direction: FieldValue::Absent,
                mark: FieldValue::exactly(mask),
                tcp_flags: FieldValue::Bits { bits: ACK, known: COMPARED },
                ..any
            }];
        }
    };
    let later = |direction| SamplePacket {
        state: state::ESTABLISHED,
        direction: FieldValue::exactly(direction),
        destination_port: any.destination_port,
        ct_mark: inherited,
        tcp_flags: FieldValue::Bits { bits: ACK, known: ACK | SYN },
        ..first
    };
    vec![first, later(0), later(1)]
}

/// The first packet of a data connection that the fast path admits, where it arrives.
pub(super) fn fast_path_first_packet(
    parameters: &RuleParameters,
    changes: ChangedMarkBits,
) -> SamplePacket<'static> {
    let mask = parameters.mask();
    // A slot may be in other bits.
    let known = mask | !(changes.mark | parameters.slots());
    SamplePacket {
        output: Some(""),
        ct_mark: FieldValue::Bits { bits: 0, known: !changes.ct_mark },
        mark: FieldValue::Bits { bits: parameters.data() | parameters.none(), known },
        destination_port: FieldValue::Within(1024, u16::MAX.into()),
        ..first_packet(Hook::Prerouting, Ip::V4)
    }
}

/// A TCP connection between two interfaces.
#[derive(Clone, Copy, Debug)]
pub(super) struct SampleConnection<'a> {
    /// Where its first packet is.
    pub(super) hook: Hook,
    pub(super) ip: Ip,
    /// The port that it goes to.
    pub(super) port: u16,
    /// The initiator's interface: none if unknown, empty if it is this machine.
    pub(super) from: Option<&'a str>,
    /// The target's interface, likewise.
    pub(super) to: Option<&'a str>,
}

impl<'a> SampleConnection<'a> {
    /// The packets that stand for the whole: the first, and a later one either way.
    pub(super) fn packets(
        &self,
        parameters: &RuleParameters,
        changes: ChangedMarkBits,
    ) -> Vec<SamplePacket<'a>> {
        let Self { hook, ip, port, from, to } = *self;
        let (data, mask) = (parameters.data(), parameters.mask());
        let first = SamplePacket {
            input: from,
            output: to,
            ct_mark: FieldValue::Bits { bits: 0, known: !changes.ct_mark },
            // Others may restore a mark to packets, but never one of what we send.
            mark: FieldValue::Bits { bits: 0, known: !changes.mark | mask },
            source_port: EPHEMERAL,
            destination_port: FieldValue::exactly(port.into()),
            ..first_packet(hook, ip)
        };
        let later = SamplePacket {
            state: state::ESTABLISHED,
            // It may have all our bits but that of data connections.
            ct_mark: FieldValue::Bits { bits: 0, known: !changes.ct_mark & !mask | data },
            tcp_flags: FieldValue::Bits { bits: ACK, known: ACK | SYN },
            ..first
        };
        let reply = SamplePacket {
            hook: match hook {
                Hook::Input => Hook::Output,
                Hook::Output => Hook::Input,
                other => other,
            },
            is_local: hook == Hook::Output,
            input: to,
            output: from,
            direction: FieldValue::exactly(1),
            source_port: later.destination_port,
            destination_port: later.source_port,
            ..later
        };
        let early = |packet: SamplePacket<'a>| {
            let arrives = packet.hook != Hook::Output;
            arrives.then_some(SamplePacket { hook: Hook::Prerouting, output: Some(""), ..packet })
        };
        let each = [first, later, reply].into_iter();
        each.flat_map(|packet| early(packet).into_iter().chain([packet])).collect()
    }
}
