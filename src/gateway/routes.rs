//! Whether a route to an address leads to an interface, by rtnetlink, which needs no rights.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ftp_alg_core::engine::{KernelError, RouteLookup};
use ipnetwork::IpNetwork;

use super::netlink::{Attributes, DONE, ERROR, Message, Socket, request_message};

// From linux/rtnetlink.h; libc lacks some of them.
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_MARK: u16 = 16;
const RTA_VIA: u16 = 18;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
/// The answer is the entry of the routing table, not a cached route.
const RTM_F_FIB_MATCH: u32 = 0x2000;
/// Size of `struct rtmsg`, and of `struct fib_rule_hdr`, which both begin with the family, and have the table at 4.
const RTMSG_SIZE: usize = 12;
/// Size of `struct rtnexthop`.
const RTNEXTHOP_SIZE: usize = 8;
/// Addresses that only default routes cover (RFC 5737, RFC 3849).
const FAR: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Looks routes up, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Routes {
    socket: Socket,
}

/// An entry of the routing tables.
#[derive(Debug, PartialEq, Eq)]
struct Route {
    /// The prefix; `None` for a default route.
    destination: Option<IpAddr>,
    prefix_length: u8,
    /// Indices of the interfaces that it leads to: several if it has several next hops.
    interfaces: Vec<u32>,
    /// Whether it leads to a router, not to the address itself.
    has_gateway: bool,
    /// Whether the address is this machine's own.
    is_local: bool,
}

impl Routes {
    /// Opens the socket.
    pub fn new() -> io::Result<Self> {
        let socket = Socket::open_route()?;
        // A dump has only the routes that the request describes.
        socket.set_option(libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1)?;
        Ok(Self { socket })
    }

    /// Whether a route to the address leads to the interface (feasible reverse path, RFC 3704 section 2.3):
    ///
    /// - the best one, or one to the interface of its VRF;
    /// - another one with the same prefix in any routing table, for example a default route with a higher metric, or that
    ///   of another uplink;
    /// - a default route, if the best one leads to a router on an interface that has a default route as well.
    pub fn has_route(&mut self, lookup: RouteLookup) -> Result<bool, KernelError> {
        let what = || format!("route to {}", lookup.address);
        self.find(lookup).map_err(|source| KernelError::System { what: what(), source })
    }

    fn find(&mut self, lookup: RouteLookup) -> io::Result<bool> {
        let RouteLookup { address, interface, used, mark } = lookup;
        let best = self.get(address, mark, None)?;
        match &best {
            Some(best) if best.is_local => return Ok(false),
            Some(best) if best.interfaces.contains(&interface) => return Ok(true),
            _ => {}
        }
        if let Some(there) = self.get(address, mark, Some(interface))? {
            // The interface of a VRF stands for all of its ports, and has its own routing table.
            if !there.interfaces.contains(&interface) {
                return Ok(there.interfaces.contains(&used));
            }
            if let Some(best) = &best
                && (best.has_prefix_of(&there)
                    || there.prefix_length == 0 && self.leads_to_an_uplink(best, address, mark)?)
            {
                return Ok(true);
            }
        }
        for table in self.tables(address)? {
            let is_there = |route: &Route| {
                route.covers(address) && best.as_ref().is_none_or(|best| best.has_prefix_of(route))
            };
            if self.has_route_in(table, address, interface, is_there)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a route leads to a router on an interface that has a default route.
    fn leads_to_an_uplink(
        &mut self,
        route: &Route,
        of_family: IpAddr,
        mark: u32,
    ) -> io::Result<bool> {
        let far = if of_family.is_ipv4() { FAR.0.into() } else { FAR.1.into() };
        for interface in route.interfaces.iter().filter(|_| route.has_gateway) {
            let default = self.get(far, mark, Some(*interface))?;
            if default.is_some_and(|default| default.prefix_length == 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The routing tables that a rule names (`ip rule`), without those that a lookup without a rule's conditions uses.
    fn tables(&mut self, of_family: IpAddr) -> io::Result<Vec<u32>> {
        let mut header = vec![0; RTMSG_SIZE];
        header.splice(..1, [family_of(of_family)]);
        let mut tables = Vec::new();
        self.dump(RTM_GETRULE, &header, |message| {
            tables.extend((message.kind == RTM_NEWRULE).then(|| table_of(message.body)).flatten());
        })?;
        let usual = [libc::RT_TABLE_MAIN, libc::RT_TABLE_LOCAL, libc::RT_TABLE_UNSPEC];
        tables.retain(|table| !usual.contains(&(*table as u8)) || *table > 255);
        tables.sort_unstable();
        tables.dedup();
        Ok(tables)
    }

    /// Whether a table has such a route that leads to an interface.
    fn has_route_in(
        &mut self,
        table: u32,
        of_family: IpAddr,
        interface: u32,
        is_it: impl Fn(&Route) -> bool,
    ) -> io::Result<bool> {
        let mut body = vec![0; RTMSG_SIZE];
        body.splice(..1, [family_of(of_family)]);
        put_attribute(&mut body, RTA_TABLE, &table.to_ne_bytes());
        put_attribute(&mut body, RTA_OIF, &interface.to_ne_bytes());
        let mut has_route = false;
        self.dump(RTM_GETROUTE, &body, |message| {
            let is_route = !has_route && message.kind == RTM_NEWROUTE;
            has_route |= is_route && parse_route(message.body).as_ref().is_some_and(&is_it);
        })?;
        Ok(has_route)
    }

    /// Passes each message of a dump to `each`. A table that does not exist any more has none.
    fn dump(
        &mut self,
        kind: u16,
        body: &[u8],
        mut each: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        let sequence = self.socket.next_sequence();
        let request = request_message(kind, libc::NLM_F_DUMP as u16, sequence, body);
        let mut errno = 0;
        self.socket.ask(&request, |message| match message.kind {
            _ if message.sequence != sequence => {}
            ERROR | DONE => errno = message.errno(),
            _ => each(&message),
        })?;
        match errno {
            0 | libc::ENOENT | libc::ENODEV => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// The route to an address; with `interface` the best one that leads there.
    fn get(
        &mut self,
        address: IpAddr,
        mark: u32,
        interface: Option<u32>,
    ) -> io::Result<Option<Route>> {
        let sequence = self.socket.next_sequence();
        let body = request_body(address, mark, interface);
        let request = request_message(RTM_GETROUTE, 0, sequence, &body);
        let (mut route, mut errno) = (None, 0);
        self.socket.ask(&request, |message| match message.kind {
            _ if message.sequence != sequence => {}
            ERROR => errno = message.errno(),
            RTM_NEWROUTE => route = parse_route(message.body),
            _ => {}
        })?;
        match errno {
            0 => Ok(route),
            // No route, or one that refuses. The interface may have been deleted.
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::ENODEV => {
                Ok(None)
            }
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Route {
    fn has_prefix_of(&self, other: &Self) -> bool {
        self.prefix_length == other.prefix_length
    }

    /// Whether the prefix is one of `address`.
    fn covers(&self, address: IpAddr) -> bool {
        let network = self.destination.unwrap_or(match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        });
        IpNetwork::new(network, self.prefix_length).is_ok_and(|network| network.contains(address))
    }
}

fn request_body(address: IpAddr, mark: u32, interface: Option<u32>) -> Vec<u8> {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut body = vec![family_of(address), (octets.len() * 8) as u8, 0, 0, 0, 0, 0, 0];
    body.extend(RTM_F_FIB_MATCH.to_ne_bytes());
    put_attribute(&mut body, RTA_DST, &octets);
    put_attribute(&mut body, RTA_MARK, &mark.to_ne_bytes());
    if let Some(interface) = interface {
        put_attribute(&mut body, RTA_OIF, &interface.to_ne_bytes());
    }
    body
}

fn family_of(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    family as u8
}

/// Appends an attribute whose length is a multiple of four bytes.
fn put_attribute(body: &mut Vec<u8>, kind: u16, content: &[u8]) {
    body.extend((4 + content.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(content);
}

/// The table of a rule.
fn table_of(body: &[u8]) -> Option<u32> {
    let (head, attributes) = body.split_at_checked(RTMSG_SIZE)?;
    let number = Attributes::new(attributes).first(RTA_TABLE).and_then(index_at);
    number.or_else(|| head.get(4).map(|table| u32::from(*table)))
}

/// The route of a message; `None` if it is one that refuses.
fn parse_route(body: &[u8]) -> Option<Route> {
    let (head, attributes) = body.split_at_checked(RTMSG_SIZE)?;
    let (prefix_length, kind) = (*head.get(1)?, *head.get(7)?);
    if !matches!(kind, RTN_UNICAST | RTN_LOCAL) {
        return None;
    }
    let attributes = Attributes::new(attributes);
    let destination = attributes.first(RTA_DST).and_then(|octets| match octets.len() {
        4 => octets.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        _ => octets.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
    });
    let mut interfaces = Vec::new();
    interfaces.extend(attributes.first(RTA_OIF).and_then(index_at));
    let mut hops = attributes.first(RTA_MULTIPATH).unwrap_or_default();
    while let Some(length) = hops.first_chunk().map(|b| usize::from(u16::from_ne_bytes(*b))) {
        interfaces.extend(hops.get(4..).and_then(index_at));
        // A shorter length would not end.
        hops = hops.get(length.max(RTNEXTHOP_SIZE).next_multiple_of(4)..).unwrap_or_default();
    }
    let is_multipath = attributes.first(RTA_MULTIPATH).is_some();
    let has_router = [RTA_GATEWAY, RTA_VIA].iter().any(|kind| attributes.first(*kind).is_some());
    let has_gateway = is_multipath || has_router;
    Some(Route { destination, prefix_length, interfaces, has_gateway, is_local: kind == RTN_LOCAL })
}

fn index_at(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_next_hop_counts() {
        let mut body = vec![2, 24, 0, 0, 254, 4, 0, RTN_UNICAST, 0, 0, 0, 0];
        body.extend([28, 0, RTA_MULTIPATH as u8, 0]);
        body.extend([8, 0, 0, 0, 3, 0, 0, 0]);
        body.extend([16, 0, 0, 0, 4, 0, 0, 0, 8, 0, 5, 0, 192, 0, 2, 1]);
        let route = parse_route(&body).unwrap();
        assert_eq!((route.prefix_length, route.interfaces), (24, vec![3, 4]));
        assert!(route.has_gateway && !route.is_local);
        body[7] = RTN_LOCAL;
        assert!(parse_route(&body).unwrap().is_local);
        body[7] = 7; // RTN_UNREACHABLE
        assert_eq!(parse_route(&body), None);
    }

    #[test]
    fn an_address_of_this_machine_is_on_no_interface() {
        let mut routes = Routes::new().unwrap();
        for address in ["127.0.0.1", "::1"] {
            let lookup =
                RouteLookup { address: address.parse().unwrap(), interface: 1, used: 0, mark: 0 };
            assert!(!routes.has_route(lookup).unwrap(), "{address}");
        }
    }

    proptest! {
        #[test]
        fn no_message_makes_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            parse_route(&body);
        }
    }
}
