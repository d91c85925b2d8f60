//! Finds `[[network]]` tables that never apply, because an earlier one has all of their connections, and those that
//! contradict earlier ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ftp_alg_core::policy::NetworkPolicy;
use ipnetwork::IpNetwork;

/// The indices of each such table and of the first earlier one that has all of its connections: `(earlier, later)`.
pub(super) fn shadowed(networks: &[NetworkPolicy]) -> Vec<(usize, usize)> {
    let with_earlier = |(later, network): (usize, &NetworkPolicy)| {
        let earlier = networks[..later].iter().position(|earlier| covers(earlier, network))?;
        Some((earlier, later))
    };
    networks.iter().enumerate().filter_map(with_earlier).collect()
}

/// The indices of two tables, `(earlier, later)`, that give clients of the same server different passive ports.
pub(super) fn other_ports(networks: &[NetworkPolicy]) -> Vec<(usize, usize)> {
    let differs = |(later, network): (usize, &NetworkPolicy)| {
        let ports = &network.policy.passive_ports;
        let is_other = |earlier: &NetworkPolicy| {
            let others = &earlier.policy.passive_ports;
            !others.is_empty()
                && others != ports
                && overlap(&earlier.servers, &network.servers)
                // Of a server that both have, no client is left for the later one.
                && !earlier.clients.is_empty()
                && of_one_family(&earlier.clients, &network.clients)
        };
        let earlier = networks[..later].iter().position(is_other).filter(|_| !ports.is_empty())?;
        Some((earlier, later))
    };
    networks.iter().enumerate().filter_map(differs).collect()
}

/// Whether two sides have an address in common.
fn overlap(one: &[IpNetwork], other: &[IpNetwork]) -> bool {
    let starts_in = |side: &[IpNetwork], of: &[IpNetwork]| {
        of.iter().any(|network| holds(side, network.network()))
    };
    one.is_empty() || other.is_empty() || starts_in(one, other) || starts_in(other, one)
}

/// Whether two sides have addresses of one family.
fn of_one_family(one: &[IpNetwork], other: &[IpNetwork]) -> bool {
    [false, true].into_iter().any(|v6| has_family(one, v6) && has_family(other, v6))
}

fn has_family(side: &[IpNetwork], v6: bool) -> bool {
    side.is_empty() || side.iter().any(|network| network.is_ipv6() == v6)
}

/// Whether `earlier` has all connections of `later`, which has at least one. Both ends of a connection are of one
/// family.
fn covers(earlier: &NetworkPolicy, later: &NetworkPolicy) -> bool {
    let has = |v6: &bool| has_family(&later.clients, *v6) && has_family(&later.servers, *v6);
    let is_covered = |v6: bool| {
        contains(&earlier.clients, &later.clients, v6)
            && contains(&earlier.servers, &later.servers, v6)
    };
    let mut families = [false, true].into_iter().filter(has).peekable();
    families.peek().is_some() && families.all(is_covered)
}

/// Whether each network of `inner`, as far as it is of this family, is within one of `outer`.
fn contains(outer: &[IpNetwork], inner: &[IpNetwork], v6: bool) -> bool {
    let first = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let is_within = |network: &IpNetwork| {
        let holds =
            |one: &IpNetwork| one.prefix() <= network.prefix() && one.contains(network.network());
        network.is_ipv6() != v6 || outer.is_empty() || outer.iter().any(holds)
    };
    match inner {
        [] => IpNetwork::new(first, 0).is_ok_and(|any| is_within(&any)),
        inner => inner.iter().all(is_within),
    }
}

/// Whether `address` is in one of `side`. An empty `side` is any network.
fn holds(side: &[IpNetwork], address: IpAddr) -> bool {
    side.is_empty() || side.iter().any(|network| network.contains(address))
}
