//! Networks in the rules, and those at this machine's interfaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

/// The smallest network with both addresses; `None` if they have different IP versions.
pub(crate) fn spanning(first: IpAddr, last: IpAddr) -> Option<IpNetwork> {
    let with_prefix = |prefix| IpNetwork::new(first, prefix).ok();
    (0..=128).rev().filter_map(with_prefix).find(|network| network.contains(last))
}

/// Whether all addresses of `inner` are in `outer`.
fn contains(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.ip())
}

/// Whether both have an address in common.
fn overlap(one: &IpNetwork, other: &IpNetwork) -> bool {
    one.contains(other.ip()) || other.contains(one.ip())
}

/// The networks at each interface of this machine, by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// The interfaces that are up and have an address that is not link-local, without `lo`.
    pub interfaces: Vec<String>,
    /// All interfaces, whatever their state.
    pub existing: BTreeSet<String>,
    /// This machine's addresses at each interface, with the lengths of their prefixes.
    networks: BTreeMap<String, Vec<IpNetwork>>,
    /// The interfaces with hosts of other networks: this machine answers for them (proxy ARP).
    pub proxies: BTreeSet<String>,
    /// The interfaces that a default route leads to.
    pub uplinks: BTreeSet<String>,
}

impl Links {
    /// Adds the network at an interface: an address of this machine there, and the length of its prefix.
    pub fn add(&mut self, interface: &str, network: IpNetwork) {
        self.networks.entry(interface.to_owned()).or_default().push(network);
    }

    /// Whether the network at an interface is certainly an inner one: private, and not the way to the internet.
    pub fn is_inner(&self, interface: &str) -> bool {
        let own = self.networks.get(interface).into_iter().flatten();
        let (mut is_private, mut is_public) = (false, false);
        for network in own {
            match network.ip() {
                IpAddr::V4(v4) => {
                    is_private |= v4.is_private();
                    is_public |= !v4.is_private() && !v4.is_link_local();
                }
                // Inner networks may have global prefixes.
                IpAddr::V6(v6) => is_private |= v6.is_unique_local(),
            }
        }
        is_private && !is_public && !self.uplinks.contains(interface)
    }

    /// Whether all hosts of `network` are at another interface than `interface`.
    pub(crate) fn are_elsewhere(&self, network: &IpNetwork, interface: &str) -> bool {
        let at = |name: &str| self.networks.get(name).into_iter().flatten();
        let others = self.networks.iter().filter(|(name, _)| name.as_str() != interface);
        !interface.is_empty()
            && !self.proxies.contains(interface)
            && !at(interface).any(|own| overlap(own, network))
            && others.flat_map(|(_, networks)| networks).any(|other| contains(other, network))
    }
}

#[cfg(test)]
impl Links {
    /// These interfaces, with unknown networks.
    pub(crate) fn between(interfaces: &[&str]) -> Self {
        let interfaces = interfaces.iter().map(|one| (*one).to_owned()).collect();
        Self { interfaces, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_behind_another_interface_are_elsewhere() {
        let mut links = Links::default();
        for (interface, address) in
            [("lan", "192.168.1.1/24"), ("wan", "198.51.100.1/24"), ("dmz", "192.168.0.1/16")]
        {
            links.add(interface, network(address));
        }
        for (text, interface, expected) in [
            ("192.168.1.80", "wan", true),
            ("192.168.0.0/16", "wan", true),
            ("192.168.0.0/15", "wan", false),
            ("192.168.1.80", "lan", false),
            ("192.168.0.0/17", "lan", false),
            // Behind a router, at either.
            ("203.0.113.9", "lan", false),
            ("fd00::9", "lan", false),
            ("192.168.1.80", "", false),
        ] {
            assert_eq!(links.are_elsewhere(&network(text), interface), expected, "{text}");
        }
        links.proxies.insert("wan".to_owned());
        assert!(!links.are_elsewhere(&network("192.168.1.80"), "wan"));
    }

    #[test]
    fn a_private_network_without_a_default_route_is_an_inner_one() {
        let mut links = Links::default();
        for (interface, address) in [
            ("lan", "192.168.1.1/24"),
            ("lan", "169.254.0.1/16"),
            ("lan", "2001:db8:1::1/64"),
            ("lan6", "fd00::1/64"),
            ("both", "10.1.0.1/24"),
            ("both", "203.0.113.1/24"),
            ("global6", "2001:db8:2::1/64"),
            ("router", "10.0.0.2/24"),
        ] {
            links.add(interface, network(address));
        }
        links.uplinks.insert("router".to_owned());
        let inner = links.networks.keys().filter(|name| links.is_inner(name));
        assert_eq!(inner.collect::<Vec<_>>(), ["lan", "lan6"]);
    }

    #[test]
    fn a_range_is_in_the_smallest_network_with_both_ends() {
        for (first, last, prefix) in [
            ("192.168.1.10", "192.168.1.99", Some(25)),
            ("192.168.1.10", "192.168.1.10", Some(32)),
            ("10.0.0.0", "192.168.0.0", Some(0)),
            ("fd00::1", "fd00::ffff", Some(112)),
            ("10.0.0.1", "fd00::1", None),
        ] {
            let found = spanning(first.parse().unwrap(), last.parse().unwrap());
            assert_eq!(found.map(|network| network.prefix()), prefix, "{first} {last}");
        }
    }
}
