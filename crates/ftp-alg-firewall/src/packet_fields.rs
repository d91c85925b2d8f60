//! The properties of a packet that rules compare, and how a comparison holds for one that is only partly known.

use std::sync::Arc;

use strum::{Display, EnumString, IntoStaticStr};

/// The bits of `ct state`, as nftables numbers them.
pub(crate) mod state {
    pub(crate) const INVALID: u32 = 1;
    pub(crate) const ESTABLISHED: u32 = 2;
    pub(crate) const RELATED: u32 = 4;
    pub(crate) const NEW: u32 = 8;
    pub(crate) const UNTRACKED: u32 = 64;
}

/// Whether a condition holds for a packet that is only partly known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Certainty {
    No,
    Maybe,
    Yes,
}

impl Certainty {
    pub(crate) fn negated_if(self, negated: bool) -> Self {
        match self {
            Self::No if negated => Self::Yes,
            Self::Yes if negated => Self::No,
            other => other,
        }
    }
}

/// A packet or connection property that a rule may compare. Every value is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    /// 4 or 6.
    Family,
    /// The transport protocol's number.
    Protocol,
    /// One bit of [`state`].
    State,
    /// 0 original, 1 reply.
    Direction,
    CtMark,
    /// The mark of the packet (`meta mark`).
    PacketMark,
    SourcePort,
    DestinationPort,
    /// The TCP flags; FIN is bit 0.
    TcpFlags,
    /// 1 if the connection was announced on a connection with the helper `ftp`.
    FtpHelper,
    /// The type of the destination address: 1 local, 2 unicast.
    DestinationType,
    /// The packet type: 0 for this host, as opposed to broadcast and multicast.
    PacketType,
}

impl Field {
    /// The value with this name in lower case, or with this number. For some fields, an unknown name is certainly no
    /// value of our packets. It becomes a value that no sample packet has.
    pub(crate) fn value(self, name: &str) -> Option<u32> {
        const OTHER: u32 = 255;
        Some(match (self, name) {
            (Self::State, "invalid") => state::INVALID,
            (Self::State, "established") => state::ESTABLISHED,
            (Self::State, "related") => state::RELATED,
            (Self::State, "new") => state::NEW,
            (Self::State, "untracked") => state::UNTRACKED,
            (Self::Direction, "original") => 0,
            (Self::Direction, "reply") => 1,
            (Self::Family, "ipv4" | "ip") => 4,
            (Self::Family, "ipv6" | "ip6") => 6,
            (Self::Protocol, "tcp") => 6,
            (Self::Protocol, _) => number(name).unwrap_or(OTHER),
            (Self::DestinationType, "local") => 1,
            (Self::DestinationType, "unicast") => 2,
            (Self::PacketType, "host" | "unicast") => 0,
            (Self::FtpHelper, "ftp") => 1,
            (Self::Family | Self::DestinationType | Self::PacketType | Self::FtpHelper, _) => OTHER,
            (Self::TcpFlags, "none") => 0,
            (Self::TcpFlags, "fin") => 0x01,
            (Self::TcpFlags, "syn") => 0x02,
            (Self::TcpFlags, "rst") => 0x04,
            (Self::TcpFlags, "psh") => 0x08,
            (Self::TcpFlags, "ack") => 0x10,
            (Self::TcpFlags, "urg") => 0x20,
            (Self::TcpFlags, "all") => 0x3f,
            (Self::TcpFlags, "ecn") => 0x40,
            (Self::TcpFlags, "cwr") => 0x80,
            _ => number(name)?,
        })
    }
}

/// A number in decimal or hexadecimal digits.
pub(crate) fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// What is known about a field of a sample packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FieldValue {
    /// The value of the bits in `known`; all other bits are unknown.
    Bits { bits: u32, known: u32 },
    /// An unknown value in this inclusive range.
    Within(u32, u32),
    /// The packet has no such field. No comparison succeeds then, not even a negated one (NFT_BREAK).
    Absent,
}

impl FieldValue {
    pub(crate) const ANY_PORT: Self = Self::Within(0, 65_535);
    /// The port of a data connection. `min-data-port` may be lower, but rules with low ports are meant for services.
    pub(crate) const DATA_PORT: Self = Self::Within(1024, 65_535);

    /// A mark of which nothing is set, except perhaps the bits `unknown`.
    pub(crate) fn unset_except(unknown: u32) -> Self {
        Self::Bits { bits: 0, known: !unknown }
    }

    pub(crate) fn exactly(bits: u32) -> Self {
        Self::Bits { bits, known: u32::MAX }
    }
}

/// Inclusive ranges, in any order.
pub(crate) type Ranges = Arc<[(u32, u32)]>;

/// A comparison: are the bits of the field under `mask` in one of `ranges`?
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Comparison {
    pub(crate) field: Field,
    pub(crate) mask: u32,
    pub(crate) ranges: Ranges,
    pub(crate) negated: bool,
}

impl Comparison {
    pub(crate) fn holds(&self, value: FieldValue) -> Certainty {
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
                // A single value that differs from the packet in a known bit.
                () if from == to && (from ^ low) & fixed != 0 => Certainty::No,
                () => Certainty::Maybe,
            };
            answer = answer.max(one);
        }
        answer.negated_if(self.negated)
    }
}

/// Which of a packet's two interfaces or addresses a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The input interface, or the source address.
    Source,
    /// The output interface, or the destination address.
    Destination,
}

/// The version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Display)]
pub enum IpVersion {
    /// IPv4.
    #[strum(to_string = "IPv4")]
    V4,
    /// IPv6.
    #[strum(to_string = "IPv6")]
    V6,
}

impl IpVersion {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// A netfilter hook.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumString, IntoStaticStr,
)]
#[strum(serialize_all = "lowercase", ascii_case_insensitive)]
pub enum Hook {
    /// Arriving packets before routing.
    Prerouting,
    /// Packets that are forwarded.
    Forward,
    /// Packets to this machine.
    Input,
    /// Packets from this machine.
    Output,
    /// Departing packets after routing.
    Postrouting,
}

impl Hook {
    /// All hooks; first those that usually have filter chains.
    pub const ALL: [Self; 5] =
        [Self::Forward, Self::Input, Self::Output, Self::Prerouting, Self::Postrouting];

    /// The hooks with the filter chains of forwarded connections and of local ones.
    pub const FILTERS: [Self; 3] = [Self::Forward, Self::Input, Self::Output];

    /// The same hook for replies.
    pub(crate) fn of_replies(self) -> Self {
        match self {
            Self::Input => Self::Output,
            Self::Output => Self::Input,
            other => other,
        }
    }

    /// The hooks on the way of packets that pass this hook, in their order.
    pub(crate) fn on_the_way(self) -> &'static [Self] {
        match self {
            Self::Input => &[Self::Prerouting, Self::Input],
            Self::Output => &[Self::Output, Self::Postrouting],
            _ => &[Self::Prerouting, Self::Forward, Self::Postrouting],
        }
    }

    /// Whether the hook has usually filter chains.
    pub fn is_filter(self) -> bool {
        Self::FILTERS.contains(&self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(mask: u32, range: (u32, u32), value: FieldValue) -> Certainty {
        let ranges = [range].into();
        let test = Comparison { field: Field::CtMark, mask, ranges, negated: false };
        let negated = Comparison { negated: true, ..test.clone() };
        let answer = test.holds(value);
        match value {
            FieldValue::Absent => assert_eq!(negated.holds(value), Certainty::No),
            _ => assert_eq!(negated.holds(value), answer.negated_if(true)),
        }
        answer
    }

    #[test]
    fn known_bits_and_ranges_decide_and_what_is_unknown_answers_maybe() {
        use Certainty::{Maybe, No, Yes};
        const BIT: u32 = 0x4000_0000;
        let exactly = FieldValue::exactly(0x4000_0005);
        let partly = FieldValue::Bits { bits: BIT, known: BIT };
        let port = FieldValue::Within(1024, 65535);
        for (value, mask, range, expected) in [
            (exactly, BIT, (BIT, BIT), Yes),
            (exactly, u32::MAX, (BIT, BIT), No),
            (exactly, u32::MAX, (5, u32::MAX), Yes),
            (partly, BIT, (BIT, BIT), Yes),
            (partly, u32::MAX, (BIT, BIT), Maybe),
            (partly, u32::MAX, (5, 5), No),
            (partly, 0xff, (5, 5), Maybe),
            (FieldValue::Absent, u32::MAX, (5, 5), No),
            (port, u32::MAX, (1024, 65535), Yes),
            (port, u32::MAX, (21, 21), No),
            (port, u32::MAX, (8080, 8080), Maybe),
            (port, 0xff, (0, 0xff), Maybe),
        ] {
            assert_eq!(holds(mask, range, value), expected, "{value:?} {mask:#x} {range:?}");
        }
    }
}
