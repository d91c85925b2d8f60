//! ctnetlink messages: tuples and requests.
//!
//! Identifies a connection by its zone and its addresses.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use super::{
    Attributes, Message, Socket, Writer, address_of, be16, family_header, kind_of, octets_of,
    or_absent,
};

// From linux/netfilter/nfnetlink_conntrack.h; libc lacks them. First the types of messages.
pub const IPCTNL_MSG_CT_NEW: u16 = kind_of(libc::NFNL_SUBSYS_CTNETLINK, 0);
pub const IPCTNL_MSG_CT_GET: u16 = kind_of(libc::NFNL_SUBSYS_CTNETLINK, 1);
pub const IPCTNL_MSG_EXP_GET: u16 = kind_of(libc::NFNL_SUBSYS_CTNETLINK_EXP, 1);
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
        let address = |v4, v6| ip.first(v4).or_else(|| ip.first(v6)).and_then(address_of);
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
    message.put(if address.is_ipv4() { v4 } else { v6 }, &octets_of(address));
}

/// Sends a change that the kernel acknowledges.
pub fn change(
    socket: &mut Socket,
    kind: u16,
    flags: i32,
    family: i32,
    fill: impl FnOnce(&mut Writer<'_>),
) -> io::Result<()> {
    let header = family_header(family, 0);
    socket.request(kind, libc::NLM_F_ACK | flags, &header, fill, |_| {}).map(drop)
}

/// Changes what exists, in each of the conntrack zones. `None` if it exists in none of them.
pub fn change_in_zones(
    socket: &mut Socket,
    zones: &[u16],
    kind: u16,
    family: i32,
    fill: impl Fn(&mut Writer<'_>, u16),
) -> io::Result<Option<()>> {
    let mut changed = None;
    for &zone in zones {
        let done = change(socket, kind, 0, family, |message| fill(message, zone));
        changed = or_absent(done)?.or(changed);
    }
    Ok(changed)
}

/// Passes all objects that match the request of `fill` to `each`.
pub fn dump(
    socket: &mut Socket,
    kind: u16,
    fill: impl FnOnce(&mut Writer<'_>),
    mut each: impl FnMut(&Attributes<'_>),
) -> io::Result<()> {
    let header = family_header(libc::AF_UNSPEC, 0);
    let each = |message: &Message<'_>| each(&message.attributes());
    socket.request(kind, libc::NLM_F_DUMP, &header, fill, each).map(drop)
}
