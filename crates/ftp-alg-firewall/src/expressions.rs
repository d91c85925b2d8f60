//! Reads the expressions in nft's JSON and the comparisons with them (libnftables-json(5)).

use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde_json::Value as Json;

use super::{
    mark_writes::{MarkTarget, MarkWrite, WrittenMark},
    model::{AddressSide, Condition, Field, InterfaceDirection, InterfacePattern, Ranges, state},
    networks::spanning,
};

/// Which interface an expression reads, by name or by index.
fn interface_direction(expression: &Json) -> Option<InterfaceDirection> {
    match expression.get("meta")?.get("key")?.as_str()? {
        "iif" | "iifname" => Some(InterfaceDirection::Input),
        "oif" | "oifname" => Some(InterfaceDirection::Output),
        _ => None,
    }
}

/// Whether an expression reads an interface, alone or in a concatenation.
pub(crate) fn reads_interface(expression: &Json) -> bool {
    match expression.get("concat").and_then(Json::as_array) {
        Some(parts) => parts.iter().any(reads_interface),
        None => interface_direction(expression).is_some(),
    }
}

/// The condition that `expression` equals `value`. For a plain field, `value` may be a set.
pub(crate) fn equals(expression: &Json, value: &Json) -> Option<Condition> {
    if let Some(element) = value.get("elem") {
        return equals(expression, element.get("val")?);
    }
    if let Some(side) = address_side(expression) {
        return Some(Condition::Address { side, networks: networks(value)?, negated: false });
    }
    if let Some(parts) = expression.get("concat").and_then(Json::as_array) {
        let values = value.get("concat")?.as_array()?;
        let one = |(part, value)| equals(part, value).unwrap_or_else(|| undecidable(part));
        return Some(Condition::All(parts.iter().zip(values).map(one).collect()));
    }
    if let Some(side) = interface_direction(expression) {
        return Some(Condition::interface(side, InterfacePattern::new(value.as_str()?, '*')));
    }
    let (field, mask) = field(expression)?;
    Some(Condition::field_in(field, mask, ranges(field, value)?))
}

/// The field that an expression reads, with its mask.
pub(crate) fn field(expression: &Json) -> Option<(Field, u32)> {
    let (kind, content) = expression.as_object()?.iter().next()?;
    if kind == "&" {
        let [inner, mask] = content.as_array()?.as_slice() else { return None };
        let (field, whole) = field(inner)?;
        return Some((field, whole & single_value(field, mask)?));
    }
    let part = |name: &str| content.get(name).and_then(Json::as_str);
    if kind == "fib" {
        let of_destination = content.get("flags").is_some_and(|flags| match flags.as_array() {
            Some(flags) => flags.iter().all(|flag| flag == "daddr"),
            None => flags == "daddr",
        });
        let usable = of_destination && part("result") == Some("type");
        return usable.then_some((Field::DestinationType, u32::MAX));
    }
    let field = match (kind.as_str(), part("protocol"), part("key").or(part("field"))?) {
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
        _ => return None,
    };
    Some((field, u32::MAX))
}

/// A condition about the value of an expression that is not known here.
pub(crate) fn undecidable(expression: &Json) -> Condition {
    if reads_hosts(expression) { Condition::Hosts } else { Condition::Unknown }
}

/// Whether an expression reads an address of the packet's ends, alone or in a concatenation.
fn reads_hosts(expression: &Json) -> bool {
    let part = |name: &str| expression.get("payload")?.get(name)?.as_str();
    match expression.get("concat").and_then(Json::as_array) {
        Some(parts) => parts.iter().any(reads_hosts),
        None => {
            let is_mac = part("protocol") == Some("ether") && part("field") != Some("type");
            is_mac || address_side(expression).is_some()
        }
    }
}

/// Which address an expression reads.
pub(crate) fn address_side(expression: &Json) -> Option<AddressSide> {
    let payload = expression.get("payload")?;
    let part = |name: &str| payload.get(name).and_then(Json::as_str);
    match (part("protocol")?, part("field")?) {
        ("ip" | "ip6", "saddr") => Some(AddressSide::Source),
        ("ip" | "ip6", "daddr") => Some(AddressSide::Destination),
        _ => None,
    }
}

/// The networks that an address is compared with: one, or a set.
pub(crate) fn networks(right: &Json) -> Option<Arc<[IpNetwork]>> {
    match right.as_array().or_else(|| right.get("set")?.as_array()) {
        Some(elements) => elements.iter().map(network).collect(),
        None => Some([network(right)?].into()),
    }
}

fn network(value: &Json) -> Option<IpNetwork> {
    if let Some(element) = value.get("elem") {
        return network(element.get("val")?);
    }
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
        | "comp" | "arp" => Some(Condition::Any(Vec::new())),
        _ => None,
    }
}

/// The bits of field `into` that do not change when `value` is assigned to it.
pub(crate) fn unchanged_bits(value: &Json, into: Field) -> u32 {
    // `ct mark and 0xff` is also a field with a mask.
    if let Some((_, mask)) = field(value).filter(|(from, _)| *from == into) {
        return mask;
    }
    let Some((op, operands)) = value.as_object().and_then(|one| one.iter().next()) else {
        return 0;
    };
    let Some(operands) = operands.as_array() else { return 0 };
    let numbers = operands.iter().map(number);
    let constants: Vec<u32> = numbers.flatten().collect();
    let others: Vec<&Json> = operands.iter().filter(|one| number(one).is_none()).collect();
    let [inner] = others.as_slice() else { return 0 };
    constants.iter().fold(unchanged_bits(inner, into), |unchanged, constant| match op.as_str() {
        "&" => unchanged & constant,
        "|" | "^" => unchanged & !constant,
        _ => 0,
    })
}

/// What the assignment of `value` writes into `into`, if that is a mark.
pub(crate) fn mark_write(into: Field, value: &Json) -> Option<MarkWrite> {
    let (target, other) = match into {
        Field::CtMark => (MarkTarget::CtMark, Field::PacketMark),
        Field::PacketMark => (MarkTarget::PacketMark, Field::CtMark),
        _ => return None,
    };
    let bits = !unchanged_bits(value, into);
    let value = match [0, u32::MAX].map(|before| assigned(value, into, before)) {
        // A bit that is the opposite of what it was is not constant.
        [Some(zero), Some(ones)] if (zero ^ ones) & bits == 0 => WrittenMark::Constant(zero),
        _ if field(value) == Some((other, u32::MAX)) => WrittenMark::OtherMark,
        _ => WrittenMark::Unknown,
    };
    Some(MarkWrite { target, bits, value })
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
    match value {
        Json::Number(number) => number.as_u64()?.try_into().ok(),
        Json::String(text) => match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
        _ => None,
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
    if let Some(element) = value.get("elem") {
        return range(field, element.get("val")?);
    }
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

/// One value of a field, by name or number. For some fields, an unknown name is certainly no value of our packets. It
/// becomes a value that no sample packet has.
pub(crate) fn single_value(field: Field, value: &Json) -> Option<u32> {
    if let Some(list) = value.as_array().or_else(|| value.get("|").and_then(Json::as_array)) {
        return list.iter().try_fold(0, |bits, one| Some(bits | single_value(field, one)?));
    }
    const OTHER: u32 = 255;
    let name = value.as_str().unwrap_or_default();
    Some(match (field, name) {
        (Field::State, "invalid") => state::INVALID,
        (Field::State, "established") => state::ESTABLISHED,
        (Field::State, "related") => state::RELATED,
        (Field::State, "new") => state::NEW,
        (Field::State, "untracked") => state::UNTRACKED,
        (Field::Direction, "original") => 0,
        (Field::Direction, "reply") => 1,
        (Field::Family, "ipv4" | "ip") => 4,
        (Field::Family, "ipv6" | "ip6") => 6,
        (Field::Family, _) => OTHER,
        (Field::Protocol, "tcp") => 6,
        (Field::Protocol, _) => number(value).unwrap_or(OTHER),
        (Field::DestinationType, "local") => 1,
        (Field::DestinationType, "unicast") => 2,
        (Field::PacketType, "host" | "unicast") => 0,
        (Field::DestinationType | Field::PacketType, _) => OTHER,
        (Field::FtpHelper, "ftp") => 1,
        (Field::FtpHelper, _) => OTHER,
        (Field::TcpFlags, "fin") => 0x01,
        (Field::TcpFlags, "syn") => 0x02,
        (Field::TcpFlags, "rst") => 0x04,
        (Field::TcpFlags, "psh") => 0x08,
        (Field::TcpFlags, "ack") => 0x10,
        (Field::TcpFlags, "urg") => 0x20,
        (Field::TcpFlags, "ecn") => 0x40,
        (Field::TcpFlags, "cwr") => 0x80,
        _ => number(value)?,
    })
}
