//! Messages of rtnetlink about routes, rules and nexthop objects.
//!
//! Knows nothing of sockets. No received length is trusted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ftp_alg_firewall::IpVersion;
use ipnetwork::IpNetwork;
use libc::{
    RTA_DST, RTA_GATEWAY, RTA_MARK, RTA_MULTIPATH, RTA_OIF, RTA_SRC, RTA_TABLE, RTN_LOCAL,
    RTN_UNICAST,
};

use crate::kernel::netlink::{Attributes, address_of, family_of, octets_of, put_attribute};

// From linux/rtnetlink.h, linux/fib_rules.h and linux/nexthop.h; libc lacks them, or has them for glibc only.
pub const RTM_GETNEXTHOP: u16 = 106;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
/// A flag: the answer is the entry of the routing table, not the route of a packet.
const RTM_F_FIB_MATCH: u32 = 0x2000;
/// A flag: the answer names the routing table. IPv6 refuses the flag, and always names the table.
const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
/// `FRA_TABLE` has the number of [`RTA_TABLE`].
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FWMASK: u16 = 16;
const FRA_IP_PROTO: u16 = 22;
/// A flag in `struct fib_rule_hdr`, which ends with the flags.
const FIB_RULE_INVERT: u32 = 2;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
/// Size of `struct rtmsg`, and of `struct fib_rule_hdr`, which both begin with the family, and have the table at 4.
const RTMSG_SIZE: usize = 12;
/// Size of `struct rtnexthop`.
const RTNEXTHOP_SIZE: usize = 8;
/// Size of `struct nhmsg`.
const NHMSG_SIZE: usize = 8;
/// Size of `struct nexthop_grp`, which begins with the identifier.
const NEXTHOP_GRP_SIZE: usize = 8;

/// An entry of the routing tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The prefix; `None` for a default route.
    pub destination: Option<IpAddr>,
    pub prefix_length: u8,
    /// Whether the prefix and the table are those of the route that was asked for.
    pub is_exact: bool,
    pub table: u32,
    /// Indices of the interfaces that it leads to: several if it has several next hops.
    pub interfaces: Vec<u32>,
    /// Identifier of its nexthop object (`ip nexthop`), if it has one. Then the interfaces may be missing.
    pub nexthop: Option<u32>,
    /// Whether it leads to a router, not to the address itself.
    pub has_gateway: bool,
    /// Whether the address is this machine's own.
    pub is_local: bool,
}

impl Route {
    /// Whether both prefixes are certain and have the same length.
    pub fn has_prefix_of(&self, other: &Self) -> bool {
        self.is_exact && other.is_exact && self.prefix_length == other.prefix_length
    }

    pub fn is_default(&self) -> bool {
        self.prefix_length == 0
    }

    /// Whether the prefix is one of `address`.
    pub fn covers(&self, address: IpAddr) -> bool {
        let network = self.destination.unwrap_or(match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        });
        IpNetwork::new(network, self.prefix_length).is_ok_and(|network| network.contains(address))
    }
}

/// A rule that chooses a routing table (`ip rule`), with the conditions that a look-up can meet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoutingRule {
    pub table: u32,
    pub mark: Option<u32>,
    pub source: Option<IpAddr>,
}

/// A nexthop object. One that drops packets has neither an interface nor members.
#[derive(Debug, PartialEq, Eq)]
pub struct Nexthop {
    pub interface: Option<u32>,
    pub has_gateway: bool,
    /// Identifiers of the members of a group, which are no groups.
    pub members: Vec<u32>,
}

/// What a look-up asks for: the best route to an address.
#[derive(Clone, Copy, Debug)]
pub struct RouteRequest {
    pub address: IpAddr,
    pub mark: u32,
    /// Asks for the best route that leads to this interface.
    pub interface: Option<u32>,
    pub source: Option<IpAddr>,
    /// Asks for the entry of the routing table, not for the route of a packet.
    pub entry: bool,
}

impl RouteRequest {
    pub fn body(&self) -> Vec<u8> {
        let Self { address, mark, interface, source, entry } = *self;
        let octets = octets_of(address);
        let length = (octets.len() * 8) as u8;
        let source_length = if source.is_some() { length } else { 0 };
        let mut body = vec![family_of(address) as u8, length, source_length, 0, 0, 0, 0, 0];
        let flags = match entry {
            true if address.is_ipv4() => RTM_F_FIB_MATCH | RTM_F_LOOKUP_TABLE,
            true => RTM_F_FIB_MATCH,
            false => 0,
        };
        body.extend(flags.to_ne_bytes());
        put_attribute(&mut body, RTA_DST, &octets);
        put_attribute(&mut body, RTA_MARK, &mark.to_ne_bytes());
        if let Some(source) = source {
            put_attribute(&mut body, RTA_SRC, &octets_of(source));
        }
        if let Some(interface) = interface {
            put_attribute(&mut body, RTA_OIF, &interface.to_ne_bytes());
        }
        body
    }
}

/// The request for all routes of a table that lead to an interface.
pub fn table_request(of_family: IpAddr, table: u32, interface: u32) -> Vec<u8> {
    let mut body = rules_request(of_family);
    put_attribute(&mut body, RTA_TABLE, &table.to_ne_bytes());
    put_attribute(&mut body, RTA_OIF, &interface.to_ne_bytes());
    body
}

/// The request for all rules.
pub fn rules_request(of_family: IpAddr) -> Vec<u8> {
    let mut body = vec![0; RTMSG_SIZE];
    body.splice(..1, [family_of(of_family) as u8]);
    body
}

/// The request for a nexthop object.
pub fn nexthop_request(id: u32) -> Vec<u8> {
    let mut body = vec![0; NHMSG_SIZE];
    put_attribute(&mut body, NHA_ID, &id.to_ne_bytes());
    body
}

/// The rule of a message.
pub fn parse_rule(body: &[u8]) -> Option<RoutingRule> {
    let attributes = Attributes::new(body.get(RTMSG_SIZE..)?);
    let mark = attributes.first(FRA_FWMARK).and_then(index_at);
    let source = attributes.first(FRA_SRC).and_then(address_of);
    Some(RoutingRule { table: table_of(body)?, mark, source })
}

/// The rule of a message, if it compares the packet mark of TCP packets.
pub fn parse_mark_rule(body: &[u8]) -> Option<ftp_alg_firewall::RoutingRule> {
    let (head, attributes) = body.split_at_checked(RTMSG_SIZE)?;
    let flags = u32::from_ne_bytes(*head.last_chunk()?);
    let is_ipv4 = i32::from(*head.first()?) == libc::AF_INET;
    let attributes = Attributes::new(attributes);
    let number = |kind| attributes.first(kind).and_then(index_at).unwrap_or(0);
    let protocol = attributes.first(FRA_IP_PROTO).and_then(<[u8]>::first);
    let is_of_tcp = protocol.is_none_or(|protocol| i32::from(*protocol) == libc::IPPROTO_TCP);
    (number(FRA_FWMASK) != 0 && is_of_tcp).then(|| ftp_alg_firewall::RoutingRule {
        ip: if is_ipv4 { IpVersion::V4 } else { IpVersion::V6 },
        priority: number(FRA_PRIORITY),
        mark: number(FRA_FWMARK),
        mask: number(FRA_FWMASK),
        is_inverted: flags & FIB_RULE_INVERT != 0,
    })
}

/// The nexthop object of a message.
pub fn parse_nexthop(body: &[u8]) -> Option<Nexthop> {
    let attributes = Attributes::new(body.get(NHMSG_SIZE..)?);
    let members = attributes.first(NHA_GROUP).unwrap_or_default().chunks_exact(NEXTHOP_GRP_SIZE);
    Some(Nexthop {
        interface: attributes.first(NHA_OIF).and_then(index_at),
        has_gateway: attributes.first(NHA_GATEWAY).is_some(),
        members: members.filter_map(index_at).collect(),
    })
}

/// The route of a message; `None` if it is one that refuses.
pub fn parse_route(body: &[u8]) -> Option<Route> {
    let (head, attributes) = body.split_at_checked(RTMSG_SIZE)?;
    let (prefix_length, kind) = (*head.get(1)?, *head.get(7)?);
    if !matches!(kind, RTN_UNICAST | RTN_LOCAL) {
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
    let router_kinds = [RTA_MULTIPATH, RTA_GATEWAY, RTA_VIA];
    Some(Route {
        destination: attributes.first(RTA_DST).and_then(address_of),
        prefix_length,
        is_exact: true,
        table: table_of(body)?,
        interfaces,
        nexthop: attributes.first(RTA_NH_ID).and_then(index_at),
        has_gateway: router_kinds.iter().any(|kind| attributes.first(*kind).is_some()),
        is_local: kind == RTN_LOCAL,
    })
}

/// The table of a route or a rule.
fn table_of(body: &[u8]) -> Option<u32> {
    let (head, attributes) = body.split_at_checked(RTMSG_SIZE)?;
    let number = Attributes::new(attributes).first(RTA_TABLE).and_then(index_at);
    number.or_else(|| head.get(4).map(|table| u32::from(*table)))
}

fn index_at(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rules_that_compare_the_packet_mark_are_read() {
        let (one, whole, byte) =
            (1_u32.to_ne_bytes(), u32::MAX.to_ne_bytes(), 0xff_u32.to_ne_bytes());
        let text = |flags: u32, attributes: &[(u16, &[u8])]| {
            let mut body = vec![libc::AF_INET as u8, 0, 0, 0, 254, 0, 0, 1];
            body.extend(flags.to_ne_bytes());
            for (kind, content) in attributes {
                put_attribute(&mut body, *kind, content);
            }
            parse_mark_rule(&body).map(|rule| rule.to_string())
        };
        let marked = [(FRA_PRIORITY, &one[..]), (FRA_FWMARK, &one), (FRA_FWMASK, &whole)];
        assert_eq!(text(0, &marked).as_deref(), Some("1: fwmark 0x1"));
        let masked = [(FRA_FWMASK, &byte[..])];
        assert_eq!(text(2, &masked).as_deref(), Some("0: not fwmark 0x0/0xff"));
        let of = |protocol: &'static [u8]| [&marked[..], &[(FRA_IP_PROTO, protocol)]].concat();
        assert!(text(0, &of(&[6])).is_some());
        assert_eq!((text(0, &of(&[17])), text(0, &marked[..1])), (None, None));
    }

    proptest! {
        #[test]
        fn no_message_makes_the_parsers_panic(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            parse_route(&body);
            parse_rule(&body);
            parse_mark_rule(&body);
            parse_nexthop(&body);
        }
    }
}
