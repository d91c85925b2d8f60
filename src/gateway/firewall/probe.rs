//! The packets that a firewall is asked about: those of a data connection that was admitted, those
//! that `ftp-alg` sends itself, and those of a connection that is nothing to it, as a control
//! connection.

use super::model::{Changes, Hook, Ip, Packet, Value, state};
use crate::gateway::{Backend, RuleParameters};

/// The ports that initiators choose on Linux and on other systems.
const EPHEMERAL: Value = Value::Within(49_152, 60_999);
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;
/// Of the flags that rules compare: FIN, SYN, RST, PSH, ACK, URG.
const COMPARED: u32 = 0x3f;

/// By what a firewall can tell a packet of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A data connection that our table admitted: new, with our bit in its ct mark.
    Mark,
    /// A data connection that conntrack expected: related, and our table gave it that bit as well.
    Related,
    /// A packet from our raw socket: untracked, with our packet mark.
    Injected,
}

impl Sign {
    /// Of the data connections of a back end.
    pub fn of(backend: Backend) -> Self {
        match backend {
            Backend::Conntrack => Self::Related,
            Backend::Nftables => Self::Mark,
        }
    }

    /// What such packets are, for people.
    pub fn packets(self) -> &'static str {
        match self {
            Self::Injected => "acknowledgements of ftp-alg",
            Self::Mark => "admitted data connections",
            Self::Related => "expected data connections",
        }
    }
}

/// A question to a firewall.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub(super) sign: Sign,
    /// The ct mark bit of an admitted data connection.
    pub(super) data: u32,
    /// All our bits; the packet mark of what we send.
    pub(super) mask: u32,
    /// The lowest port that a data connection goes to.
    pub(super) min_port: u16,
    pub(super) changes: Changes,
}

impl Probe {
    pub(super) fn new(sign: Sign, parameters: &RuleParameters, changes: Changes) -> Self {
        let (data, mask) = (parameters.data(), parameters.mask());
        // `min-data-port` may be lower, but rules about low ports are about services.
        Self { sign, data, mask, min_port: 1024, changes }
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self::new(Sign::Mark, &RuleParameters::default(), Changes::default())
    }
}

/// The packets that stand for the whole: the first of a connection, and a later one either way.
pub(super) fn packets(probe: &Probe, hook: Hook, ip: Ip) -> Vec<Packet<'static>> {
    let Probe { sign, data, mask, min_port, changes } = *probe;
    let any_port = Value::Within(0, u32::from(u16::MAX));
    let first = Packet {
        hook,
        ip,
        is_local: hook == Hook::Input,
        input: None,
        output: None,
        state: state::NEW,
        direction: Value::exactly(0),
        // A new connection has no mark but ours and what others' rules put there.
        ct_mark: Value::Bits { bits: data, known: !changes.ct_mark | data },
        mark: Value::Bits { bits: 0, known: !changes.mark },
        source_port: any_port,
        destination_port: Value::Within(min_port.into(), u16::MAX.into()),
        tcp_flags: Value::Bits { bits: SYN, known: COMPARED },
        ftp_helper: Value::Absent,
    };
    let first = match sign {
        Sign::Mark => first,
        // It inherits the mark of its control connection (init_conntrack()), our bits included.
        Sign::Related => Packet {
            state: state::RELATED,
            ct_mark: Value::Bits { bits: data, known: !changes.ct_mark & !mask | data },
            ftp_helper: Value::exactly(1),
            ..first
        },
        Sign::Injected => {
            return vec![Packet {
                state: state::UNTRACKED,
                direction: Value::Absent,
                ct_mark: Value::Absent,
                mark: Value::exactly(mask),
                destination_port: any_port,
                tcp_flags: Value::Bits { bits: ACK, known: COMPARED },
                ..first
            }];
        }
    };
    let later = |direction| Packet {
        state: state::ESTABLISHED,
        direction: Value::exactly(direction),
        destination_port: any_port,
        // Another of our bits says that its handshake is over.
        ct_mark: Value::Bits { bits: data, known: !changes.ct_mark & !mask | data },
        tcp_flags: Value::Bits { bits: ACK, known: ACK | SYN },
        ..first
    };
    vec![first, later(0), later(1)]
}

/// A TCP connection between two interfaces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection<'a> {
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

impl<'a> Connection<'a> {
    /// The packets that stand for the whole: the first, and a later one either way.
    pub(super) fn packets(&self, parameters: &RuleParameters, changes: Changes) -> Vec<Packet<'a>> {
        let Self { hook, ip, port, from, to } = *self;
        let (data, mask) = (parameters.data(), parameters.mask());
        let first = Packet {
            hook,
            ip,
            is_local: hook == Hook::Input,
            input: from,
            output: to,
            state: state::NEW,
            direction: Value::exactly(0),
            ct_mark: Value::Bits { bits: 0, known: !changes.ct_mark },
            // Others may restore a mark to packets, but never one of what we send.
            mark: Value::Bits { bits: 0, known: !changes.mark | mask },
            source_port: EPHEMERAL,
            destination_port: Value::exactly(port.into()),
            tcp_flags: Value::Bits { bits: SYN, known: COMPARED },
            ftp_helper: Value::Absent,
        };
        let later = Packet {
            state: state::ESTABLISHED,
            // It may have all our bits but that of data connections.
            ct_mark: Value::Bits { bits: 0, known: !changes.ct_mark & !mask | data },
            tcp_flags: Value::Bits { bits: ACK, known: ACK | SYN },
            ..first
        };
        let reply = Packet {
            hook: match hook {
                Hook::Input => Hook::Output,
                Hook::Output => Hook::Input,
                other => other,
            },
            is_local: hook == Hook::Output,
            input: to,
            output: from,
            direction: Value::exactly(1),
            source_port: later.destination_port,
            destination_port: later.source_port,
            ..later
        };
        let early = |packet: Packet<'a>| {
            let arrives = packet.hook != Hook::Output;
            arrives.then_some(Packet { hook: Hook::Prerouting, output: Some(""), ..packet })
        };
        let each = [first, later, reply].into_iter();
        each.flat_map(|packet| early(packet).into_iter().chain([packet])).collect()
    }
}
