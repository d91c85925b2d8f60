//! The sample packets for which the firewall is evaluated, and what rules write into their marks.
//!
//! There are three kinds ([`super::connection`]): packets of data connections that `ftp-alg` admits, packets that it
//! injects, and packets of connections without its marks, such as control connections.

use super::{
    networks::Links,
    packet_fields::{Field, FieldValue, Hook, IpVersion, Side, state},
};

/// The ephemeral ports of Linux and of other systems have this range in common.
pub(crate) const EPHEMERAL: FieldValue = FieldValue::Within(49_152, 60_999);
pub(crate) const SYN: u32 = 0x02;
pub(crate) const ACK: u32 = 0x10;
/// The TCP flags that rules compare: FIN, SYN, RST, PSH, ACK, URG.
pub(crate) const COMPARED: u32 = 0x3f;

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
    /// The networks at this machine's interfaces, if known.
    pub(crate) links: Option<&'a Links>,
}

impl<'a> SamplePacket<'a> {
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
        let (target, other) =
            if write.target == Field::CtMark { (ct_mark, mark) } else { (mark, ct_mark) };
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

/// A write into a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MarkWrite {
    /// The ct mark or the packet mark.
    pub(crate) target: Field,
    /// The bits that may change.
    pub(crate) bits: u32,
    /// The bits of the packet mark that come from the ct mark.
    pub(crate) restored: u32,
    pub(crate) value: WrittenMark,
}

/// What a rule writes into a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WrittenMark {
    Constant(u32),
    /// The same bits of the other mark.
    OtherMark,
    Unknown,
}

/// The bits of the marks that rules of others may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChangedMarkBits {
    pub(crate) ct_mark: u32,
    pub(crate) mark: u32,
    /// The bits of the packet mark that are set from the ct mark.
    pub(crate) restored: u32,
}

impl ChangedMarkBits {
    /// Adds what `write` changes.
    pub(crate) fn add(&mut self, write: &MarkWrite) {
        let changed =
            if write.target == Field::CtMark { &mut self.ct_mark } else { &mut self.mark };
        *changed |= write.bits;
        self.restored |= write.restored;
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
        links: None,
    }
}
