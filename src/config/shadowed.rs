//! Finds `[[network]]` tables that never apply, because earlier ones have all of their connections, and those that contradict
//! earlier ones.
//!
//! Which networks an address is in changes only at the first address of a network, and behind its last one. So a table's
//! connections between such addresses stand for all of them.

use std::{
    collections::BTreeSet,
    iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    slice,
};

use ftp_alg_core::policy::NetworkPolicy;
use ipnetwork::IpNetwork;

/// The first address of each family.
const FIRST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
/// Limit of the connections that are compared. A table with more of them is not refused.
const MAX_CONNECTIONS: usize = 5000;

/// The indices `(earlier, later)` of each table that never applies. `earlier` is the first table that has all of its
/// connections; `None` if only several together have them.
pub(super) fn shadowed(networks: &[NetworkPolicy]) -> Vec<(Option<usize>, usize)> {
    let with_earlier = |(later, network): (usize, &NetworkPolicy)| {
        let before = &networks[..later];
        let one = before.iter().position(|earlier| covers(slice::from_ref(earlier), network));
        (one.is_some() || covers(before, network)).then_some((one, later))
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
                // An earlier table of all clients leaves the later one no client of a server that both have.
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
    let is_of = |side: &[IpNetwork], v6: bool| {
        side.is_empty() || side.iter().any(|network| network.is_ipv6() == v6)
    };
    [false, true].into_iter().any(|v6| is_of(one, v6) && is_of(other, v6))
}

/// Whether the tables `earlier` have all connections of `later`, which has at least one. Both ends of a connection are
/// of one family.
fn covers(earlier: &[NetworkPolicy], later: &NetworkPolicy) -> bool {
    let connections = FIRST.into_iter().flat_map(|first| {
        let clients = edges(&later.clients, earlier.iter().flat_map(|one| &one.clients), first);
        let servers = edges(&later.servers, earlier.iter().flat_map(|one| &one.servers), first);
        let with_servers = move |client| servers.clone().into_iter().map(move |to| (client, to));
        clients.into_iter().flat_map(with_servers)
    });
    let is_held = |(client, server): (IpAddr, IpAddr)| {
        earlier.iter().any(|one| holds(&one.clients, client) && holds(&one.servers, server))
    };
    let mut connections = connections.peekable();
    connections.peek().is_some()
        && connections.by_ref().take(MAX_CONNECTIONS).all(is_held)
        && connections.next().is_none()
}

/// The addresses of a side, in the family of `first`, at which a network of `side` or of `others` begins, or behind
/// which one ends.
fn edges<'a>(
    side: &'a [IpNetwork],
    others: impl Iterator<Item = &'a IpNetwork>,
    first: IpAddr,
) -> BTreeSet<IpAddr> {
    let edges = side.iter().chain(others).flat_map(|network| {
        iter::once(network.network()).chain(address_after(network.broadcast()))
    });
    let is_inside =
        |address: &IpAddr| address.is_ipv4() == first.is_ipv4() && holds(side, *address);
    edges.chain([first]).filter(is_inside).collect()
}

fn address_after(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().checked_add(1)?).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits().checked_add(1)?).into(),
    })
}

/// Whether `address` is in one of `side`. An empty `side` is any network.
fn holds(side: &[IpNetwork], address: IpAddr) -> bool {
    side.is_empty() || side.iter().any(|network| network.contains(address))
}
