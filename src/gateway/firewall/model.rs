//! The common form of rules, whoever's they are, and what one says of a packet that is only
//! partly known: yes, no, or maybe.
//!
//! Knows nothing of the languages that rules are written in. What a parser does not understand
//! becomes [`Condition::Unknown`], which is maybe for every packet.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use strum::{Display, EnumString, IntoStaticStr};

use super::ConflictingRule;
pub use crate::gateway::legacy::Ip;

/// Bits of a connection's state, as nftables numbers them.
pub(super) mod state {
    pub(in super::super) const INVALID: u32 = 1;
    pub(in super::super) const ESTABLISHED: u32 = 2;
    pub(in super::super) const RELATED: u32 = 4;
    pub(in super::super) const NEW: u32 = 8;
    pub(in super::super) const UNTRACKED: u32 = 64;
}

/// The answer of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Certainty {
    No,
    Maybe,
    Yes,
}

impl Certainty {
    fn negated_if(self, negated: bool) -> Self {
        match self {
            Self::No if negated => Self::Yes,
            Self::Yes if negated => Self::No,
            other => other,
        }
    }
}

/// What a rule may compare, of which something is known about our packets. Each is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Field {
    /// 4 or 6.
    Family,
    /// The transport protocol's number.
    Protocol,
    /// One bit of [`state`].
    State,
    /// 0 original, 1 reply.
    Direction,
    CtMark,
    /// The packet's.
    PacketMark,
    SourcePort,
    DestinationPort,
    /// FIN is 1.
    TcpFlags,
    /// Whether the connection was announced on one with the helper `ftp`.
    FtpHelper,
    /// Whose the destination is: 1 this machine's, 2 another's.
    DestinationType,
    /// 0 for this machine alone, not broadcast.
    PacketType,
}

/// What is known about a field of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FieldValue {
    /// Only the bits in `known` are.
    Bits { bits: u32, known: u32 },
    /// It is in this range.
    Within(u32, u32),
    /// It has none, so that no comparison succeeds, not even a negated one (NFT_BREAK).
    Absent,
}

impl FieldValue {
    pub(super) fn exactly(bits: u32) -> Self {
        Self::Bits { bits, known: u32::MAX }
    }
}

/// Ascending or not, each with its end.
pub(super) type Ranges = Arc<[(u32, u32)]>;

/// A comparison: whether the field's bits under `mask` are in one of `ranges`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) field: Field,
    pub(super) mask: u32,
    pub(super) ranges: Ranges,
    pub(super) negated: bool,
}

impl Comparison {
    pub(super) fn holds(&self, value: FieldValue) -> Certainty {
        let (low, high, fixed) = match value {
            FieldValue::Absent => return Certainty::No,
            FieldValue::Bits { bits, known } => {
                let low = bits & known & self.mask;
                (low, low | (self.mask & !known), known & self.mask)
            }
            FieldValue::Within(low, high) if self.mask == u32::MAX => (low, high, 0),
            FieldValue::Within(..) => return Certainty::Maybe,
        };
        let mut answer = Certainty::No;
        for &(from, to) in self.ranges.iter() {
            let one = match () {
                () if from <= low && high <= to => Certainty::Yes,
                () if to < low || high < from => Certainty::No,
                // A single value that contradicts a bit that is known.
                () if from == to && (from ^ low) & fixed != 0 => Certainty::No,
                () => Certainty::Maybe,
            };
            answer = answer.max(one);
        }
        answer.negated_if(self.negated)
    }
}

/// Which of a packet's two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InterfaceDirection {
    Input,
    Output,
}

/// The name of an interface, or the start of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InterfacePattern {
    name: String,
    is_prefix: bool,
}

impl InterfacePattern {
    /// `wildcard` ends the start of a name: `*` in nftables, `+` in iptables.
    pub(super) fn new(text: &str, wildcard: char) -> Self {
        match text.strip_suffix(wildcard) {
            Some(start) => Self { name: start.to_owned(), is_prefix: true },
            None => Self { name: text.to_owned(), is_prefix: false },
        }
    }

    pub(super) fn matches(&self, interface: &str) -> bool {
        match self.is_prefix {
            true => interface.starts_with(&self.name),
            false => interface == self.name,
        }
    }

    /// An unknown interface is any but `lo`: both ends of a connection are not on one host.
    fn holds(&self, interface: Option<&str>) -> Certainty {
        match interface {
            Some(interface) if self.matches(interface) => Certainty::Yes,
            Some(_) => Certainty::No,
            None if self.name == "lo" && !self.is_prefix => Certainty::No,
            None => Certainty::Maybe,
        }
    }
}

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Compare(Comparison),
    /// The packet has such an interface.
    Interface {
        side: InterfaceDirection,
        pattern: InterfacePattern,
        negated: bool,
    },
    /// One of these holds.
    Any(Vec<Condition>),
    /// All of these hold.
    All(Vec<Condition>),
    /// Something that depends on what is not known here: addresses, rates, time.
    Unknown,
}

impl Condition {
    /// That the field's bits under `mask` are in one of `ranges`.
    pub(super) fn field_in(field: Field, mask: u32, ranges: impl Into<Ranges>) -> Self {
        Self::Compare(Comparison { field, mask, ranges: ranges.into(), negated: false })
    }

    /// That the field has one of these bits.
    pub(super) fn has_any_bit(field: Field, bits: u32) -> Self {
        Self::field_in(field, bits, [(0, 0)]).negated_if(true)
    }

    /// That the packet has an interface like `pattern`.
    pub(super) fn interface(side: InterfaceDirection, pattern: InterfacePattern) -> Self {
        Self::Interface { side, pattern, negated: false }
    }

    pub(super) fn negated_if(self, negate: bool) -> Self {
        match self {
            Self::Compare(test) => {
                Self::Compare(Comparison { negated: test.negated != negate, ..test })
            }
            Self::Interface { side, pattern, negated } => {
                Self::Interface { side, pattern, negated: negated != negate }
            }
            Self::Any(conditions) if negate => {
                Self::All(conditions.into_iter().map(|one| one.negated_if(true)).collect())
            }
            Self::All(conditions) if negate => {
                Self::Any(conditions.into_iter().map(|one| one.negated_if(true)).collect())
            }
            other => other,
        }
    }

    fn holds(&self, packet: &SamplePacket<'_>) -> Certainty {
        match self {
            Self::Compare(test) => test.holds(packet.value(test.field)),
            Self::Interface { side, pattern, negated } => {
                let interface = match side {
                    InterfaceDirection::Input => packet.input,
                    InterfaceDirection::Output => packet.output,
                };
                pattern.holds(interface).negated_if(*negated)
            }
            Self::All(conditions) => all_hold(conditions, packet),
            Self::Any(conditions) => {
                conditions.iter().map(|one| one.holds(packet)).max().unwrap_or(Certainty::No)
            }
            Self::Unknown => Certainty::Maybe,
        }
    }
}

/// Where a rule sends a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RuleVerdict {
    Accept,
    /// Reject as well.
    Drop,
    /// A program decides.
    Queue,
    Return,
    Jump(String),
    Goto(String),
    /// On to the next rule.
    Continue,
    /// The first whose condition holds.
    Map(Vec<(Condition, RuleVerdict)>),
    /// Nobody knows.
    Unknown,
}

/// A rule: all conditions, then the action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: RuleVerdict,
    /// Where it sends connections to that were meant for here.
    pub(super) destination_nat: Option<DestinationNat>,
    /// What to say of it if control packets may come to it.
    pub(super) conflict: Option<Box<ConflictingRule>>,
    /// Bits of the packet mark that it may change.
    pub(super) changed_mark_bits: u32,
    /// As its owner wrote it.
    pub(super) text: String,
}

/// A destination translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DestinationNat {
    /// The one host that it leads to, if it is one and known.
    pub(super) address: Option<IpAddr>,
    /// The ports there, if they are named.
    pub(super) ports: Option<(u16, u16)>,
}

impl Rule {
    pub(super) fn applies(&self, packet: &SamplePacket<'_>) -> Certainty {
        all_hold(&self.conditions, packet)
    }
}

/// Whether all conditions hold.
pub(super) fn all_hold(conditions: &[Condition], packet: &SamplePacket<'_>) -> Certainty {
    conditions.iter().map(|condition| condition.holds(packet)).min().unwrap_or(Certainty::Yes)
}

/// Where in a packet's way a chain is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumString, IntoStaticStr,
)]
#[strum(serialize_all = "lowercase", ascii_case_insensitive)]
pub enum Hook {
    /// What arrives, before it is routed.
    Prerouting,
    /// What is routed through.
    Forward,
    /// What ends here.
    Input,
    /// What starts here.
    Output,
}

impl Hook {
    /// Those where filters usually are.
    pub const ALL: [Self; 3] = [Self::Forward, Self::Input, Self::Output];
}

/// Whose a table is, and so who can change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// `nft`.
    Nftables,
    /// `iptables-nft`.
    IptablesNft,
    /// `iptables-legacy`.
    IptablesLegacy,
}

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum TableFamily {
    Ip,
    Ip6,
    Inet,
}

impl TableFamily {
    pub(super) fn sees(self, ip: Ip) -> bool {
        matches!((self, ip), (Self::Inet, _) | (Self::Ip, Ip::V4) | (Self::Ip6, Ip::V6))
    }
}

/// What makes a chain see packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BaseChain {
    pub(super) hook: Hook,
    pub(super) priority: i32,
    /// Whether what comes to its end is dropped.
    pub(super) policy_drops: bool,
}

/// Rules in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Of a base chain at a hook that matters here.
    pub(super) base: Option<BaseChain>,
    pub(super) rules: Vec<Rule>,
}

/// A table of chains, which only know each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) origin: Origin,
    pub(super) family: TableFamily,
    pub(super) name: String,
    /// Whether nft refuses changes by others (flag `owner`).
    pub(super) has_owner: bool,
    pub(super) chains: BTreeMap<String, Chain>,
}

/// The bits of the marks that some rule may change, other than ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ChangedMarkBits {
    pub(super) ct_mark: u32,
    pub(super) mark: u32,
}

/// What is known of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SamplePacket<'a> {
    pub(super) hook: Hook,
    pub(super) ip: Ip,
    /// Whether it ends here.
    pub(super) is_local: bool,
    /// The interface it comes by, if known. Empty if it has none.
    pub(super) input: Option<&'a str>,
    /// The interface it leaves by, likewise.
    pub(super) output: Option<&'a str>,
    pub(super) state: u32,
    pub(super) direction: FieldValue,
    pub(super) ct_mark: FieldValue,
    pub(super) mark: FieldValue,
    pub(super) source_port: FieldValue,
    pub(super) destination_port: FieldValue,
    pub(super) tcp_flags: FieldValue,
    pub(super) ftp_helper: FieldValue,
}

impl SamplePacket<'_> {
    fn value(&self, field: Field) -> FieldValue {
        match field {
            Field::Family => FieldValue::exactly(if self.ip == Ip::V4 { 4 } else { 6 }),
            Field::Protocol => FieldValue::exactly(6),
            Field::State => FieldValue::exactly(self.state),
            Field::Direction => self.direction,
            Field::CtMark => self.ct_mark,
            Field::PacketMark => self.mark,
            Field::SourcePort => self.source_port,
            Field::DestinationPort => self.destination_port,
            Field::TcpFlags => self.tcp_flags,
            Field::FtpHelper => self.ftp_helper,
            Field::DestinationType => FieldValue::exactly(if self.is_local { 1 } else { 2 }),
            Field::PacketType => FieldValue::exactly(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(mask: u32, range: (u32, u32), value: FieldValue) -> Certainty {
        let Condition::Compare(test) = Condition::field_in(Field::CtMark, mask, [range]) else {
            panic!("no test")
        };
        let negated = Comparison { negated: true, ..test.clone() };
        let answer = test.holds(value);
        match value {
            FieldValue::Absent => assert_eq!(negated.holds(value), Certainty::No),
            _ => assert_eq!(negated.holds(value), answer.negated_if(true)),
        }
        answer
    }

    #[test]
    fn known_bits_decide_and_others_may() {
        let exactly = FieldValue::exactly(0x4000_0005);
        assert_eq!(holds(0x4000_0000, (0x4000_0000, 0x4000_0000), exactly), Certainty::Yes);
        assert_eq!(holds(u32::MAX, (0x4000_0000, 0x4000_0000), exactly), Certainty::No);
        assert_eq!(holds(u32::MAX, (5, u32::MAX), exactly), Certainty::Yes);
        let partly = FieldValue::Bits { bits: 0x4000_0000, known: 0x4000_0000 };
        assert_eq!(holds(0x4000_0000, (0x4000_0000, 0x4000_0000), partly), Certainty::Yes);
        assert_eq!(holds(u32::MAX, (0x4000_0000, 0x4000_0000), partly), Certainty::Maybe);
        assert_eq!(holds(u32::MAX, (5, 5), partly), Certainty::No);
        assert_eq!(holds(0xff, (5, 5), partly), Certainty::Maybe);
        assert_eq!(holds(u32::MAX, (5, 5), FieldValue::Absent), Certainty::No);
    }

    #[test]
    fn a_range_is_inside_outside_or_across() {
        let port = FieldValue::Within(1024, 65535);
        assert_eq!(holds(u32::MAX, (1024, 65535), port), Certainty::Yes);
        assert_eq!(holds(u32::MAX, (21, 21), port), Certainty::No);
        assert_eq!(holds(u32::MAX, (8080, 8080), port), Certainty::Maybe);
        assert_eq!(holds(0xff, (0, 0xff), port), Certainty::Maybe);
    }
}
