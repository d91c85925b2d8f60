//! Values that TOML has no type for: durations, port ranges, addresses, networks.
//!
//! Nothing is trimmed, guessed or rounded: text in any other form is `None`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use ipnetwork::IpNetwork;
use toml::Value;

use super::{ExternalSetting, is_host};

/// Digits, and the unit behind them, which may be empty.
pub(super) fn number_and_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// A number in one of these units.
fn in_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = number_and_unit(text);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// `1500ms`, `30s`, `2m`, `1h`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let units = [("ms", 1), ("s", 1000), ("m", 60 * 1000), ("h", 60 * 60 * 1000)];
    in_units(text, &units).map(Duration::from_millis)
}

/// `64MiB`, `512KiB`, `1GiB`, or a number of bytes.
pub(super) fn bytes(value: &Value) -> Option<usize> {
    if let Value::Integer(bytes) = value {
        return usize::try_from(*bytes).ok();
    }
    let units = [("", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
    in_units(value.as_str()?, &units)?.try_into().ok()
}

/// `127.0.0.1:9821`, `[::1]:9821`, or a port of the loopback address as a number or text.
pub(super) fn listen_address(value: &Value) -> Option<SocketAddr> {
    let address = match value {
        Value::Integer(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(*port).ok()?)),
        value => {
            let text = value.as_str()?;
            let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            port(text).map(loopback).or_else(|| text.parse().ok())?
        }
    };
    let can_listen = address.ip().is_unspecified() || is_host(address.ip());
    (can_listen && address.port() != 0).then_some(address)
}

/// `49152-65535`, inclusive; the first is not above the last.
pub(super) fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-')?;
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some(first..=last)
}

/// A port number, or a range of ports as text.
pub(super) fn ports(value: &Value) -> Option<RangeInclusive<u16>> {
    let range = match value {
        Value::Integer(port) => {
            let port = u16::try_from(*port).ok()?;
            port..=port
        }
        _ => port_range(value.as_str()?)?,
    };
    (*range.start() > 0).then_some(range)
}

/// A port, `50000-50100`, or a list of them, in ascending order and without overlaps.
pub(super) fn port_list(value: &Value) -> Option<Vec<RangeInclusive<u16>>> {
    let each = match value {
        Value::Array(items) if !items.is_empty() => &items[..],
        Value::Array(_) => return None,
        one => std::slice::from_ref(one),
    };
    let mut ranges: Vec<_> = each.iter().map(ports).collect::<Option<_>>()?;
    ranges.sort_unstable_by_key(|range| *range.start());
    let is_apart = ranges.windows(2).all(|pair| pair[0].end() < pair[1].start());
    is_apart.then_some(ranges)
}

/// Takes ports out of `ranges`.
pub(super) fn remove_ports(ranges: &mut Vec<RangeInclusive<u16>>, removed: &RangeInclusive<u16>) {
    let (first, last) = (*removed.start(), *removed.end());
    let rest = |range: RangeInclusive<u16>| {
        let (start, end) = range.into_inner();
        let below = first.checked_sub(1).map(|below| start..=end.min(below));
        let above = last.checked_add(1).map(|above| start.max(above)..=end);
        [below, above].into_iter().flatten().filter(|rest| !rest.is_empty())
    };
    *ranges = std::mem::take(ranges).into_iter().flat_map(rest).collect();
}

/// `auto`, an address, or `dns:NAME`.
pub(super) fn external_address(text: &str) -> Option<ExternalSetting> {
    if text == "auto" {
        return Some(ExternalSetting::Auto);
    }
    if let Some(name) = text.strip_prefix("dns:") {
        return is_host_name(name).then(|| ExternalSetting::Dns(name.to_owned()));
    }
    // A client that is given a loopback address takes it as its own.
    host(text).filter(|address| !address.is_loopback()).map(ExternalSetting::Address)
}

/// The address of one host.
pub(super) fn host(text: &str) -> Option<IpAddr> {
    text.parse().ok().filter(|&address| is_host(address))
}

/// A network, or a list of at least one.
pub(super) fn networks(value: &Value) -> Option<Vec<IpNetwork>> {
    match value {
        Value::Array(items) if !items.is_empty() => {
            items.iter().map(|item| network(item.as_str()?)).collect()
        }
        _ => Some(vec![network(value.as_str()?)?]),
    }
}

/// `192.168.150.0/24`, or one address; the bits after the prefix are zero.
fn network(text: &str) -> Option<IpNetwork> {
    text.parse().ok().filter(|network: &IpNetwork| network.ip() == network.network())
}

/// Digits only: `u16::from_str` would take `+21`.
fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// RFC 1123 section 2.1; `_` occurs in practice.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253 && name.split('.').all(label)
}
