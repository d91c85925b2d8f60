//! Whether a route to an address leads to an interface, by rtnetlink, which needs no rights.

use std::{io, net::IpAddr};

use ftp_alg_core::engine::{KernelError, RouteLookup};

use super::netlink::{Attributes, ERROR, Socket, request_message};

// From linux/rtnetlink.h; libc lacks some of them.
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
const RTA_MARK: u16 = 16;
const RTN_UNICAST: u8 = 1;
/// The answer is the entry of the routing table, not a cached route.
const RTM_F_FIB_MATCH: u32 = 0x2000;
/// Size of `struct rtmsg`.
const RTMSG_SIZE: usize = 12;
/// Size of `struct rtnexthop`.
const RTNEXTHOP_SIZE: usize = 8;

/// Looks routes up, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Routes {
    socket: Socket,
}

/// An entry of the routing tables.
#[derive(Debug, PartialEq, Eq)]
struct Route {
    prefix_length: u8,
    /// Indices of the interfaces that it leads to: several if it has several next hops.
    interfaces: Vec<u32>,
}

impl Routes {
    /// Opens the socket.
    pub fn new() -> io::Result<Self> {
        Ok(Self { socket: Socket::open_route()? })
    }

    /// Whether a route to the address leads to the interface: the best one, or another one with the same prefix, for
    /// example a default route with a higher metric (feasible reverse path, RFC 3704 section 2.3).
    pub fn has_route(&mut self, lookup: RouteLookup) -> Result<bool, KernelError> {
        let RouteLookup { address, interface, mark } = lookup;
        let error = |source| KernelError::System { what: format!("route to {address}"), source };
        let best = self.get(address, mark, None).map_err(error)?;
        if best.as_ref().is_some_and(|best| best.interfaces.contains(&interface)) {
            return Ok(true);
        }
        let Some(there) = self.get(address, mark, Some(interface)).map_err(error)? else {
            return Ok(false);
        };
        // The interface of a VRF stands for all of its ports, and has its own routing table.
        let is_vrf = !there.interfaces.contains(&interface);
        Ok(is_vrf || best.is_some_and(|best| best.prefix_length == there.prefix_length))
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

fn request_body(address: IpAddr, mark: u32, interface: Option<u32>) -> Vec<u8> {
    let (family, octets) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut body = vec![family as u8, (octets.len() * 8) as u8, 0, 0, 0, 0, 0, 0];
    body.extend(RTM_F_FIB_MATCH.to_ne_bytes());
    let mut put = |kind: u16, content: &[u8]| {
        body.extend((4 + content.len() as u16).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(content); // a multiple of four bytes
    };
    put(RTA_DST, &octets);
    put(RTA_MARK, &mark.to_ne_bytes());
    if let Some(interface) = interface {
        put(RTA_OIF, &interface.to_ne_bytes());
    }
    body
}

/// The route of a message; `None` if it is not one to another host.
fn parse_route(body: &[u8]) -> Option<Route> {
    let (head, attributes) = body.split_at_checked(RTMSG_SIZE)?;
    let (prefix_length, kind) = (*head.get(1)?, *head.get(7)?);
    if kind != RTN_UNICAST {
        return None;
    }
    let attributes = Attributes::new(attributes);
    let mut interfaces = Vec::new();
    interfaces.extend(attributes.first(RTA_OIF).and_then(index_at));
    let mut hops = attributes.first(RTA_MULTIPATH).unwrap_or_default();
    while let Some(length) = hops.first_chunk().map(|b| usize::from(u16::from_ne_bytes(*b))) {
        interfaces.extend(hops.get(4..).and_then(index_at));
        // A shorter length would not end.
        hops = hops.get(length.max(RTNEXTHOP_SIZE).next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Route { prefix_length, interfaces })
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
        let route = Route { prefix_length: 24, interfaces: vec![3, 4] };
        assert_eq!(parse_route(&body), Some(route));
        body[7] = 2; // RTN_LOCAL
        assert_eq!(parse_route(&body), None);
    }

    #[test]
    fn an_address_of_this_machine_is_on_no_interface() {
        let mut routes = Routes::new().unwrap();
        for address in ["127.0.0.1", "::1"] {
            let lookup = RouteLookup { address: address.parse().unwrap(), interface: 1, mark: 0 };
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
