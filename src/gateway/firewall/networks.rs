//! Networks in the rules, and those at this machine's interfaces.

use std::{collections::BTreeMap, net::IpAddr, str::FromStr};

/// A network, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network {
    address: IpAddr,
    length: u8,
}

impl Network {
    /// `None` if the prefix is longer than the address.
    pub(super) fn new(address: IpAddr, length: u8) -> Option<Self> {
        (length <= bits(address)).then_some(Self { address, length })
    }

    /// Whether all addresses of `other` are in this network.
    fn contains(&self, other: &Self) -> bool {
        self.length <= other.length && self.overlaps(other)
    }

    /// Whether both have an address in common.
    fn overlaps(&self, other: &Self) -> bool {
        let length = self.length.min(other.length);
        bits(self.address) == bits(other.address)
            && prefix(self.address, length) == prefix(other.address, length)
    }
}

impl FromStr for Network {
    type Err = ();

    /// Reads `10.0.0.1`, `10.0.0.0/8`, or `10.0.0.0/255.0.0.0`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| ())?;
        let length = match length {
            None => bits(address),
            Some(length) => match length.parse::<u8>() {
                Ok(length) => length,
                Err(_) => mask_length(length.parse().map_err(|_| ())?).ok_or(())?,
            },
        };
        Self::new(address, length).ok_or(())
    }
}

/// The length of the prefix that a mask names.
pub(super) fn mask_length(mask: IpAddr) -> Option<u8> {
    let value = value(mask);
    let ones = value.leading_ones();
    let length = u8::try_from(ones).ok()?.min(bits(mask));
    (value.checked_shl(ones).unwrap_or(0) == 0).then_some(length)
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address as a number, from the highest bit on.
fn value(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn prefix(address: IpAddr, length: u8) -> u128 {
    value(address).checked_shr(128 - u32::from(length)).unwrap_or(0)
}

/// The networks at each interface of this machine, by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links(BTreeMap<String, Vec<Network>>);

impl Links {
    /// Adds the network at an interface: an address of this machine there, and the length of its prefix.
    pub(super) fn add(&mut self, interface: &str, network: Network) {
        self.0.entry(interface.to_owned()).or_default().push(network);
    }

    /// Whether all hosts of `network` are at another interface than `interface`.
    pub(super) fn are_elsewhere(&self, network: &Network, interface: &str) -> bool {
        let at = |name: &str| self.0.get(name).into_iter().flatten();
        let others = self.0.iter().filter(|(name, _)| name.as_str() != interface);
        !interface.is_empty()
            && !at(interface).any(|own| own.overlaps(network))
            && others.flat_map(|(_, networks)| networks).any(|other| other.contains(network))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_read_and_compared() {
        assert_eq!(network("10.0.0.0/255.255.0.0"), network("10.0.0.0/16"));
        assert_eq!(network("10.0.0.1").length, 32);
        for wrong in ["", "x", "10.0.0.0/33", "10.0.0.0/255.0.255.0", "::/129", "10.0.0.0/-1"] {
            assert_eq!(wrong.parse::<Network>(), Err(()), "{wrong}");
        }
        let net = network("10.1.0.0/16");
        for (other, contains, overlaps) in [
            ("10.1.2.3", true, true),
            ("10.1.0.0/16", true, true),
            ("10.0.0.0/8", false, true),
            ("0.0.0.0/0", false, true),
            ("10.2.0.0/16", false, false),
            ("fd00::/8", false, false),
            ("::/0", false, false),
        ] {
            let other = network(other);
            assert_eq!((net.contains(&other), net.overlaps(&other)), (contains, overlaps));
        }
    }

    #[test]
    fn hosts_behind_another_interface_are_elsewhere() {
        let mut links = Links::default();
        links.add("lan", network("192.168.1.1/24"));
        links.add("wan", network("198.51.100.1/24"));
        for (text, interface, expected) in [
            ("192.168.1.80", "wan", true),
            ("192.168.1.0/24", "wan", true),
            ("192.168.1.80", "lan", false),
            // Behind a router, at either.
            ("203.0.113.9", "lan", false),
            ("192.168.0.0/16", "wan", false),
            ("192.168.1.80", "", false),
        ] {
            assert_eq!(links.are_elsewhere(&network(text), interface), expected, "{text}");
        }
    }
}
