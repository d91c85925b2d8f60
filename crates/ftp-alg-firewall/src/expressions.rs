//! Reads the expressions in nft's JSON and the comparisons with them (libnftables-json(5)).

use std::{borrow::Cow, sync::Arc};

use ipnetwork::IpNetwork;
use serde_json::Value as Json;

use super::{
    model::{Condition, Field, MarkWrite, Ranges, Side},
    networks::spanning,
    packet_fields,
    sample_packets::WrittenMark,
};

/// What an expression reads of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    /// A field under a mask.
    Field(Field, u32),
    /// The name or the index of an interface.
    Interface(Side),
    Address(Side),
    /// The MAC address of one of the packet's ends.
    Mac,
    Concatenation(Vec<Operand>),
    Unknown,
}

impl Operand {
    pub(crate) fn read(expression: &Json) -> Self {
        match expression.get("concat").and_then(Json::as_array) {
            Some(parts) => Self::Concatenation(parts.iter().map(Self::read).collect()),
            None => Self::read_single(expression).unwrap_or(Self::Unknown),
        }
    }

    fn read_single(expression: &Json) -> Option<Self> {
        let (kind, content) = expression.as_object()?.iter().next()?;
        if kind == "&" {
            let [inner, mask] = content.as_array()?.as_slice() else { return None };
            let (field, whole) = field(inner)?;
            return Some(Self::Field(field, whole & single_value(field, mask)?));
        }
        let part = |name: &str| content.get(name).and_then(Json::as_str);
        let name = ["key", "field", "result"].into_iter().find_map(part)?;
        let field = match (kind.as_str(), part("protocol"), name) {
            ("meta", _, "iif" | "iifname") => return Some(Self::Interface(Side::Source)),
            ("meta", _, "oif" | "oifname") => return Some(Self::Interface(Side::Destination)),
            ("payload", Some("ip" | "ip6"), "saddr") => return Some(Self::Address(Side::Source)),
            ("payload", Some("ip" | "ip6"), "daddr") => {
                return Some(Self::Address(Side::Destination));
            }
            ("payload", Some("ether"), "saddr" | "daddr") => return Some(Self::Mac),
            ("ct", _, "state") => Field::State,
            ("ct", _, "mark") => Field::CtMark,
            ("ct", _, "direction") => Field::Direction,
            ("ct", _, "helper") => Field::FtpHelper,
            ("meta", _, "mark") => Field::PacketMark,
            ("meta", _, "pkttype") => Field::PacketType,
            ("meta", _, "l4proto") => Field::Protocol,
            ("meta", _, "nfproto" | "protocol") => Field::Family,
            ("payload", Some("ip"), "protocol") | ("payload", Some("ip6"), "nexthdr") => {
                Field::Protocol
            }
            ("payload", Some("tcp" | "th"), "dport") => Field::DestinationPort,
            ("payload", Some("tcp" | "th"), "sport") => Field::SourcePort,
            ("payload", Some("tcp"), "flags") => Field::TcpFlags,
            ("fib", _, "type") if has_only_flag(content, "daddr") => Field::DestinationType,
            _ => return None,
        };
        Some(Self::Field(field, u32::MAX))
    }

    pub(crate) fn reads_interface(&self) -> bool {
        match self {
            Self::Concatenation(parts) => parts.iter().any(Self::reads_interface),
            _ => matches!(self, Self::Interface(_)),
        }
    }

    fn reads_hosts(&self) -> bool {
        match self {
            Self::Concatenation(parts) => parts.iter().any(Self::reads_hosts),
            _ => matches!(self, Self::Address(_) | Self::Mac),
        }
    }

    /// A condition about a value that is not known here.
    pub(crate) fn undecidable(&self) -> Condition {
        if self.reads_hosts() { Condition::Hosts } else { Condition::Unknown }
    }

    /// The condition that the operand equals `value`. For a plain field, `value` may be a set.
    pub(crate) fn equals(&self, value: &Json) -> Option<Condition> {
        let value = without_options(value);
        Some(match self {
            Self::Field(field, mask) => Condition::field_in(*field, *mask, ranges(*field, value)?),
            Self::Interface(side) => Condition::interface(*side, value.as_str()?, '*'),
            Self::Address(side) => Condition::address(*side, networks(value)?),
            Self::Concatenation(parts) => {
                let values = value.get("concat")?.as_array()?;
                let one = |(part, value): (&Self, _)| {
                    part.equals(value).unwrap_or_else(|| part.undecidable())
                };
                Condition::All(parts.iter().zip(values).map(one).collect())
            }
            Self::Mac | Self::Unknown => return None,
        })
    }
}

fn has_only_flag(content: &Json, flag: &str) -> bool {
    content.get("flags").is_some_and(|flags| match flags.as_array() {
        Some(flags) => flags.iter().all(|one| one == flag),
        None => flags == flag,
    })
}

/// The field that an expression reads, with its mask.
pub(crate) fn field(expression: &Json) -> Option<(Field, u32)> {
    match Operand::read(expression) {
        Operand::Field(field, mask) => Some((field, mask)),
        _ => None,
    }
}

/// The value of an element that may have options, such as a timeout.
pub(crate) fn without_options(element: &Json) -> &Json {
    element.pointer("/elem/val").unwrap_or(element)
}

/// The networks that an address is compared with: one, or a set.
pub(crate) fn networks(right: &Json) -> Option<Arc<[IpNetwork]>> {
    match right.as_array().or_else(|| right.get("set")?.as_array()) {
        Some(elements) => elements.iter().map(network).collect(),
        None => Some([network(right)?].into()),
    }
}

fn network(value: &Json) -> Option<IpNetwork> {
    let value = without_options(value);
    if let Some([first, last]) = value.get("range").and_then(Json::as_array).map(Vec::as_slice) {
        return spanning(first.as_str()?.parse().ok()?, last.as_str()?.parse().ok()?);
    }
    if let Some(prefix) = value.get("prefix") {
        let address = prefix.get("addr")?.as_str()?.parse().ok()?;
        return IpNetwork::new(address, u8::try_from(number(prefix.get("len")?)?).ok()?).ok();
    }
    value.as_str()?.parse().ok()
}

/// The condition that `expression` implies: nft reads a header field only from packets with this header.
pub(crate) fn implied_condition(expression: &Json) -> Option<Condition> {
    let (kind, content) = expression.as_object()?.iter().next()?;
    if let Some(parts) = content.as_array() {
        return parts.iter().find_map(implied_condition);
    }
    let protocol = content.get("protocol").filter(|_| kind == "payload")?.as_str()?;
    match protocol {
        "ip" => Some(Condition::field_in(Field::Family, u32::MAX, [(4, 4)])),
        "ip6" => Some(Condition::field_in(Field::Family, u32::MAX, [(6, 6)])),
        "udp" | "icmp" | "icmpv6" | "igmp" | "sctp" | "dccp" | "udplite" | "esp" | "ah"
        | "comp" | "arp" => Some(Condition::never()),
        _ => None,
    }
}

/// What the assignment of `value` writes into `target`, if that is a mark.
pub(crate) fn mark_write(target: Field, value: &Json) -> Option<MarkWrite> {
    let other = match target {
        Field::CtMark => Field::PacketMark,
        Field::PacketMark => Field::CtMark,
        _ => return None,
    };
    let (bits, written) = match [0, u32::MAX].map(|before| assigned(value, target, before)) {
        [Some(zero), Some(ones)] => {
            let changed = zero | !ones;
            // A bit that is the opposite of what it was is not constant.
            let is_constant = (zero ^ ones) & changed == 0;
            (changed, if is_constant { WrittenMark::Constant(zero) } else { WrittenMark::Unknown })
        }
        _ if field(value) == Some((other, u32::MAX)) => (u32::MAX, WrittenMark::OtherMark),
        _ => (u32::MAX, WrittenMark::Unknown),
    };
    let restored = if other == Field::CtMark && reads_ct_mark(value) { bits } else { 0 };
    Some(MarkWrite { target, bits, restored, value: written })
}

/// Whether an expression, or a part of it, is the ct mark.
fn reads_ct_mark(expression: &Json) -> bool {
    match expression {
        Json::Array(parts) => parts.iter().any(reads_ct_mark),
        Json::Object(parts) => {
            field(expression).is_some_and(|(field, _)| field == Field::CtMark)
                || parts.values().any(reads_ct_mark)
        }
        _ => false,
    }
}

/// The result of `value` if field `into` is `before`; `None` if it depends on anything else.
fn assigned(value: &Json, into: Field, before: u32) -> Option<u32> {
    if let Some(constant) = number(value) {
        return Some(constant);
    }
    if let Some((_, mask)) = field(value).filter(|(from, _)| *from == into) {
        return Some(before & mask);
    }
    let (op, operands) = value.as_object()?.iter().next()?;
    let operands = operands.as_array()?.iter().map(|one| assigned(one, into, before));
    let operation = match op.as_str() {
        "&" => |a, b| a & b,
        "|" => |a, b| a | b,
        "^" => |a, b| a ^ b,
        _ => return None,
    };
    operands.reduce(|a, b| Some(operation(a?, b?)))?
}

pub(crate) fn number(value: &Json) -> Option<u32> {
    packet_fields::number(&text(value))
}

/// The text of a name or a number; empty for anything else.
fn text(value: &Json) -> Cow<'_, str> {
    match value {
        Json::String(name) => name.into(),
        Json::Number(number) => number.to_string().into(),
        _ => "".into(),
    }
}

/// Whether the right side of a comparison is a set, so that nft looks up the whole value and not single bits.
pub(crate) fn is_set(right: &Json) -> bool {
    right.get("set").is_some() || right.as_str().is_some_and(|name| name.starts_with('@'))
}

/// The values on the right side of a comparison with `field`.
pub(crate) fn ranges(field: Field, right: &Json) -> Option<Ranges> {
    let elements = match right {
        // For a bit field, a list of names is one value.
        Json::Array(_) if !matches!(field, Field::State | Field::TcpFlags) => right.as_array(),
        _ => right.get("set").and_then(Json::as_array),
    };
    match elements {
        Some(elements) => elements.iter().map(|one| range(field, one)).collect(),
        None => Some([range(field, right)?].into()),
    }
}

pub(crate) fn range(field: Field, value: &Json) -> Option<(u32, u32)> {
    let value = without_options(value);
    if let Some(ends) = value.get("range").and_then(Json::as_array) {
        let [from, to] = ends.as_slice() else { return None };
        return Some((single_value(field, from)?, single_value(field, to)?));
    }
    if let Some(prefix) = value.get("prefix") {
        let (first, length) = (number(prefix.get("addr")?)?, number(prefix.get("len")?)?);
        let rest = u32::MAX.checked_shr(length).unwrap_or(0);
        return Some((first & !rest, first | rest));
    }
    let one = single_value(field, value)?;
    Some((one, one))
}

/// One value of a field, by name or number, or the bits of a list of values.
fn single_value(field: Field, value: &Json) -> Option<u32> {
    match value.as_array().or_else(|| value.get("|").and_then(Json::as_array)) {
        Some(list) => list.iter().try_fold(0, |bits, one| Some(bits | single_value(field, one)?)),
        None => field.value(&text(value)),
    }
}
