//! Finds `[[network]]` tables that never apply, because an earlier one has all of their connections.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ftp_alg_core::policy::NetworkPolicy;
use ipnetwork::IpNetwork;

/// Any address of a family.
const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// The indices of each such table and of the first earlier one that has all of its connections: `(earlier, later)`.
pub(super) fn shadowed(networks: &[NetworkPolicy]) -> Vec<(usize, usize)> {
    let with_earlier = |(later, network): (usize, &NetworkPolicy)| {
        let earlier = networks.iter().take(later).position(|earlier| covers(earlier, network))?;
        Some((earlier, later))
    };
    networks.iter().enumerate().filter_map(with_earlier).collect()
}

/// Whether `earlier` has all connections of `later`, which has some. Both ends of a connection are of one family.
fn covers(earlier: &NetworkPolicy, later: &NetworkPolicy) -> bool {
    let mut has_connections = false;
    for any in ANY {
        let sides = [&later.clients, &later.servers].map(|side| of_family(side, any));
        let [clients, servers] = &sides;
        if clients.is_empty() || servers.is_empty() {
            continue;
        }
        has_connections = true;
        if !holds(&earlier.clients, clients) || !holds(&earlier.servers, servers) {
            return false;
        }
    }
    has_connections
}

/// The networks of a side that are of the family of `any`, as address and length of the prefix.
fn of_family(side: &[IpNetwork], any: IpAddr) -> Vec<(IpAddr, u8)> {
    if side.is_empty() {
        return vec![(any, 0)];
    }
    let of_family = side.iter().filter(|network| network.is_ipv4() == any.is_ipv4());
    of_family.map(|network| (network.network(), network.prefix())).collect()
}

/// Whether each network of `inner` lies in one of `outer`. An empty `outer` is any network.
fn holds(outer: &[IpNetwork], inner: &[(IpAddr, u8)]) -> bool {
    let lies_in = |(address, prefix): (IpAddr, u8), other: &IpNetwork| {
        other.prefix() <= prefix && other.contains(address)
    };
    outer.is_empty() || inner.iter().all(|one| outer.iter().any(|other| lies_in(*one, other)))
}
