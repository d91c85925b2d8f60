//! Finds `[[network]]` tables that never apply, because earlier ones have all of their connections.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ftp_alg_core::policy::NetworkPolicy;
use ipnetwork::IpNetwork;

/// Any address of a family.
const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
/// Limit of the parts of a table that are looked at. A table with more counts as one that applies.
const MAX_PARTS: usize = 2000;

/// A network, as address and length of the prefix.
type Network = (IpAddr, u8);

/// The indices of each such table and of the first earlier one that has all of its connections, if one alone has:
/// `(earlier, later)`.
pub(super) fn shadowed(networks: &[NetworkPolicy]) -> Vec<(Option<usize>, usize)> {
    let with_earlier = |(later, network): (usize, &NetworkPolicy)| {
        let before = &networks[..later];
        let one = before.iter().position(|earlier| covers(std::slice::from_ref(earlier), network));
        (one.is_some() || covers(before, network)).then_some((one, later))
    };
    networks.iter().enumerate().filter_map(with_earlier).collect()
}

/// Whether `earlier` have all connections of `later`, which has some. Both ends of a connection are of one family.
fn covers(earlier: &[NetworkPolicy], later: &NetworkPolicy) -> bool {
    let earlier: Vec<_> = earlier.iter().collect();
    let (mut has_connections, mut parts) = (false, MAX_PARTS);
    for any in ANY {
        let [clients, servers] = [&later.clients, &later.servers].map(|side| of_family(side, any));
        for client in &clients {
            for server in &servers {
                has_connections = true;
                if !cover_part(&earlier, [*client, *server], &mut parts) {
                    return false;
                }
            }
        }
    }
    has_connections
}

/// Whether `earlier` have all connections of these clients and servers. Looks at no more than `parts`.
fn cover_part(
    earlier: &[&NetworkPolicy],
    [clients, servers]: [Network; 2],
    parts: &mut usize,
) -> bool {
    *parts = parts.saturating_sub(1);
    let is_held =
        |one: &&NetworkPolicy| holds(&one.clients, clients) && holds(&one.servers, servers);
    if *parts == 0 || earlier.iter().any(is_held) {
        return *parts > 0;
    }
    let may_hold =
        |one: &&NetworkPolicy| overlaps(&one.clients, clients) && overlaps(&one.servers, servers);
    let earlier: Vec<_> = earlier.iter().copied().filter(may_hold).collect();
    if earlier.iter().any(|one| !holds(&one.clients, clients)) {
        halves(clients).is_some_and(|halves| {
            halves.into_iter().all(|half| cover_part(&earlier, [half, servers], parts))
        })
    } else {
        !earlier.is_empty()
            && halves(servers).is_some_and(|halves| {
                halves.into_iter().all(|half| cover_part(&earlier, [clients, half], parts))
            })
    }
}

/// The two halves of a network of more than one address.
fn halves((address, prefix): Network) -> Option<[Network; 2]> {
    let upper = match address {
        IpAddr::V4(lower) => {
            let bit = 1_u32.checked_shl(31_u32.checked_sub(prefix.into())?)?;
            IpAddr::V4((u32::from(lower) | bit).into())
        }
        IpAddr::V6(lower) => {
            let bit = 1_u128.checked_shl(127_u32.checked_sub(prefix.into())?)?;
            IpAddr::V6((u128::from(lower) | bit).into())
        }
    };
    Some([(address, prefix + 1), (upper, prefix + 1)])
}

/// Whether `network` lies in one of `side`. An empty `side` is any network.
fn holds(side: &[IpNetwork], (address, prefix): Network) -> bool {
    side.is_empty() || side.iter().any(|other| other.prefix() <= prefix && other.contains(address))
}

/// Whether `network` shares an address with one of `side`. An empty `side` is any network.
fn overlaps(side: &[IpNetwork], network: Network) -> bool {
    let (address, prefix) = network;
    let is_inside = |other: &IpNetwork| {
        IpNetwork::new(address, prefix).is_ok_and(|network| network.contains(other.network()))
    };
    holds(side, network) || side.iter().any(is_inside)
}

/// The networks of a side that are of the family of `any`, as address and length of the prefix.
fn of_family(side: &[IpNetwork], any: IpAddr) -> Vec<Network> {
    if side.is_empty() {
        return vec![(any, 0)];
    }
    let of_family = side.iter().filter(|network| network.is_ipv4() == any.is_ipv4());
    of_family.map(|network| (network.network(), network.prefix())).collect()
}
