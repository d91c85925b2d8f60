//! ctnetlink messages: tuples and requests.
//!
//! Identifies a connection by its zone and its addresses.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{Attributes, Message, MessageHead, Socket, Writer, be16, or_absent};

// From linux/netfilter/nfnetlink_conntrack.h; libc lacks them.
pub const IPCTNL_MSG_CT_NEW: u8 = 0;
pub const IPCTNL_MSG_CT_GET: u8 = 1;
pub const IPCTNL_MSG_EXP_GET: u8 = 1;
pub const CTA_TUPLE_ORIG: u16 = 1;
pub const CTA_TUPLE_REPLY: u16 = 2;
pub const CTA_HELP: u16 = 5;
pub const CTA_HELP_NAME: u16 = 1;
pub const CTA_MARK: u16 = 8;
pub const CTA_ZONE: u16 = 18;
pub const CTA_MARK_MASK: u16 = 21;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const TCP: u8 = libc::IPPROTO_TCP as u8;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl Tuple {
    /// Appends the tuple as an attribute.
    pub fn put(&self, message: &mut Writer<'_>, kind: u16) {
        message.nest(kind, |inner| {
            inner.nest(CTA_TUPLE_IP, |ip| {
                put_address(ip, self.source.ip(), CTA_IP_V4_SRC, CTA_IP_V6_SRC);
                put_address(ip, self.destination.ip(), CTA_IP_V4_DST, CTA_IP_V6_DST);
            });
            inner.nest(CTA_TUPLE_PROTO, |proto| {
                proto
                    .put(CTA_PROTO_NUM, &[TCP])
                    .put(CTA_PROTO_SRC_PORT, &self.source.port().to_be_bytes())
                    .put(CTA_PROTO_DST_PORT, &self.destination.port().to_be_bytes());
            });
        });
    }

    /// The first attribute of type `kind`, if it is a TCP tuple.
    pub fn read(attributes: &Attributes<'_>, kind: u16) -> Option<Self> {
        let tuple = attributes.nested(kind)?;
        let ip = tuple.nested(CTA_TUPLE_IP)?;
        let address = |v4: u16, v6: u16| -> Option<IpAddr> {
            if let Some(octets) = ip.first(v4) {
                return Some(Ipv4Addr::from(*octets.first_chunk::<4>()?).into());
            }
            Some(Ipv6Addr::from(*ip.first(v6)?.first_chunk::<16>()?).into())
        };
        let proto = tuple.nested(CTA_TUPLE_PROTO)?;
        if proto.first(CTA_PROTO_NUM)?.first() != Some(&TCP) {
            return None;
        }
        let port = |kind| proto.first(kind).and_then(be16);
        Some(Self {
            source: (address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?).into(),
            destination: (address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?).into(),
        })
    }
}

/// Appends a conntrack zone. The kernel takes none for zone 0, and refuses one if it was built without zones.
pub fn put_zone(message: &mut Writer<'_>, kind: u16, zone: u16) {
    if zone != 0 {
        message.put(kind, &zone.to_be_bytes());
    }
}

fn put_address(message: &mut Writer<'_>, address: IpAddr, v4: u16, v6: u16) {
    match address {
        IpAddr::V4(address) => message.put(v4, &address.octets()),
        IpAddr::V6(address) => message.put(v6, &address.octets()),
    };
}

/// A socket for requests to one subsystem.
#[derive(Debug)]
pub struct Requests {
    socket: Socket,
    subsystem: u8,
    request: Vec<u8>,
}

impl Requests {
    /// Opens a netlink socket for requests to `subsystem` (`NFNL_SUBSYS_*`).
    pub fn open(subsystem: i32) -> io::Result<Self> {
        Ok(Self { socket: Socket::open()?, subsystem: subsystem as u8, request: Vec::new() })
    }

    /// Sends a change that the kernel acknowledges.
    pub fn change(
        &mut self,
        command: u8,
        flags: i32,
        family: i32,
        fill: impl FnOnce(&mut Writer<'_>),
    ) -> io::Result<()> {
        self.ask(command, libc::NLM_F_ACK | flags, family, fill, |_| {})
    }

    /// Changes what exists, in each of the conntrack zones. `None` if it exists in none of them.
    pub fn change_in_zones(
        &mut self,
        zones: &[u16],
        command: u8,
        family: i32,
        fill: impl Fn(&mut Writer<'_>, u16),
    ) -> io::Result<Option<()>> {
        let mut changed = None;
        for &zone in zones {
            let done = self.change(command, 0, family, |message| fill(message, zone));
            changed = or_absent(done)?.or(changed);
        }
        Ok(changed)
    }

    /// Passes all objects that match the request of `fill` to `each`.
    pub fn dump(
        &mut self,
        command: u8,
        fill: impl FnOnce(&mut Writer<'_>),
        mut each: impl FnMut(&Attributes<'_>),
    ) -> io::Result<()> {
        let each = |message: &Message<'_>| each(&message.attributes());
        self.ask(command, libc::NLM_F_DUMP, libc::AF_UNSPEC, fill, each)
    }

    /// Sends one request and passes each message of the answer to `each`.
    pub fn ask(
        &mut self,
        command: u8,
        flags: i32,
        family: i32,
        fill: impl FnOnce(&mut Writer<'_>),
        each: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        let start = MessageHead {
            subsystem: self.subsystem,
            command,
            flags: flags as u16,
            sequence: 0,
            family: family as u8,
            resource: 0,
        };
        self.socket.request(&mut self.request, start, fill, each)
    }
}

/// The address family of an endpoint.
pub fn family_of(endpoint: SocketAddr) -> i32 {
    if endpoint.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}
