//! Conntrack entries: the translation of a connection, its ct mark, and be-liberal; and the messages of ctnetlink, by
//! which helpers and expectations are changed, too.
//!
//! Identifies a connection by its addresses. If two zones have a connection with the same addresses, the connection is
//! unknown.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
};

use ftp_alg_core::engine::{KernelError, QueueMode, Translation};

use super::{
    NetfilterError,
    netlink::{
        Attributes, Message, Socket, Writer, address_of, be16, be32, be64, family_header,
        family_of, kind_of, nft, octets_of, or_absent,
    },
    parameters::RuleParameters,
};

// From linux/netfilter/nfnetlink_conntrack.h; libc lacks them. First the types of messages.
pub(super) const IPCTNL_MSG_CT_NEW: u16 = kind_of(libc::NFNL_SUBSYS_CTNETLINK, 0);
pub(super) const IPCTNL_MSG_CT_GET: u16 = kind_of(libc::NFNL_SUBSYS_CTNETLINK, 1);
pub(super) const IPCTNL_MSG_EXP_GET: u16 = kind_of(libc::NFNL_SUBSYS_CTNETLINK_EXP, 1);
pub(super) const CTA_TUPLE_ORIG: u16 = 1;
pub(super) const CTA_TUPLE_REPLY: u16 = 2;
pub(super) const CTA_HELP: u16 = 5;
pub(super) const CTA_HELP_NAME: u16 = 1;
pub(super) const CTA_ZONE: u16 = 18;
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;
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
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_COUNTERS_PACKETS: u16 = 1;
const CTA_COUNTERS_BYTES: u16 = 2;
const CTA_PROTOINFO: u16 = 4;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;
const IP_CT_TCP_FLAG_BE_LIBERAL: u8 = 0x08;
/// States of a connection that both ends have closed, or one has reset: LAST_ACK, TIME_WAIT and CLOSE. From
/// linux/netfilter/nf_conntrack_tcp.h.
const OVER: [u8; 3] = [6, 7, 8];

/// Queries to conntrack. One for each thread.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    parameters: RuleParameters,
}

/// What was counted of one direction of a connection: whole IP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedPackets {
    pub bytes: u64,
    pub packets: u64,
}

/// A connection's initiator port, and the packets in the initiator's direction and in the other; `None` if conntrack
/// counts nothing (nf_conntrack_acct).
pub type RunningCount = (u16, Option<[CountedPackets; 2]>);

/// Connections by initiator and arrival: see [`count_running`].
pub type RunningCounts = BTreeMap<(IpAddr, SocketAddr), Vec<RunningCount>>;

impl CountedPackets {
    /// The bytes without the headers of packets to or from `end`: IP, and TCP with so many bytes of options.
    pub fn payload(self, end: IpAddr, options: u64) -> u64 {
        let headers = options + if end.is_ipv6() { 40 + 20 } else { 20 + 20 };
        self.bytes.saturating_sub(self.packets.saturating_mul(headers))
    }
}

impl Conntrack {
    /// Opens a netlink socket.
    pub fn new(parameters: &RuleParameters) -> Result<Self, NetfilterError> {
        let socket = Socket::open().map_err(|e| NetfilterError::system("netlink socket", e))?;
        Ok(Self { socket, parameters: parameters.clone() })
    }

    /// The translation of the TCP connection whose packets show `client` and `server` at our hooks.
    ///
    /// Packets show the original source and the reply source. The kernel looks up whole tuples. Without destination NAT
    /// the pair is the original tuple, without source NAT it is the reply tuple. With both it is neither; then our
    /// rules have stored the address that the client dialled.
    ///
    /// The cost does not depend on the number of connections. A packet of an unknown connection costs a lookup each
    /// time.
    pub fn translation(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<Option<Translation>, KernelError> {
        self.find(client, server).map_err(|source| KernelError::System {
            what: format!("look up the connection between {client} and {server}"),
            source,
        })
    }

    /// Whether conntrack knows this connection, of which perhaps no packet has been queued for long. Its translation
    /// may be unknown.
    pub fn has_connection(&mut self, connection: &Translation) -> Result<bool, KernelError> {
        let Translation { client, server, server_external, .. } = *connection;
        match self.with_tuple(client, server, (client, server_external)) {
            Ok(found) if found.len() == 1 => Ok(true),
            _ => Ok(self.translation(client, server)?.is_some()),
        }
    }

    fn find(&mut self, client: SocketAddr, server: SocketAddr) -> io::Result<Option<Translation>> {
        if client.is_ipv4() != server.is_ipv4() {
            return Ok(None);
        }
        let mut found = self.with_tuple(client, server, (client, server))?;
        if found.is_empty() {
            found = self.with_tuple(client, server, (server, client))?;
        }
        if found.len() != 1
            && let Some(dialled) = self.dialled(client, server)?
        {
            found = self.with_tuple(client, server, (client, dialled))?;
        }
        Ok(found.pop().filter(|_| found.is_empty()))
    }

    /// The connections with this tuple whose packets show `client` and `server`.
    fn with_tuple(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
        tuple: (SocketAddr, SocketAddr),
    ) -> io::Result<Vec<Translation>> {
        let our_bits = self.parameters.mask();
        self.query(tuple, |entry| {
            // Its reply tuple may equal another connection's visible pair.
            parse(entry, our_bits).filter(|found| (found.client, found.server) == (client, server))
        })
    }

    /// Sets our bits of a control connection's ct mark, and be-liberal.
    pub fn set_mark_and_liberal(
        &mut self,
        control: &Translation,
        mode: QueueMode,
    ) -> Result<(), KernelError> {
        let (all, none) =
            (self.parameters.gateway.queue_all_mark, self.parameters.gateway.queue_none_mark);
        let mask = all | none;
        let mark = match mode {
            QueueMode::EveryPacket | QueueMode::Watch => all,
            QueueMode::WithAcknowledgements => mask,
            QueueMode::Selected => 0,
            QueueMode::None => none,
        };
        let original = Tuple { source: control.client, destination: control.server_external };
        let fill = |message: &mut Writer<'_>, zone: u16| {
            original.put(message, CTA_TUPLE_ORIG);
            put_zone(message, CTA_ZONE, zone);
            message.put(CTA_MARK, &mark.to_be_bytes()).put(CTA_MARK_MASK, &mask.to_be_bytes());
            if mode == QueueMode::EveryPacket {
                // struct nf_ct_tcp_flags: flags, mask.
                let liberal = [IP_CT_TCP_FLAG_BE_LIBERAL; 2];
                message.nest(CTA_PROTOINFO, |info| {
                    info.nest(CTA_PROTOINFO_TCP, |tcp| {
                        tcp.put(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &liberal)
                            .put(CTA_PROTOINFO_TCP_FLAGS_REPLY, &liberal);
                    });
                });
            }
        };
        let (zones, family) =
            (&self.parameters.learned.now().zones, family_of(original.source.ip()));
        let known = change_in_zones(&mut self.socket, zones, IPCTNL_MSG_CT_NEW, family, fill);
        known
            .map_err(|source| {
                let Tuple { source: client, destination: server } = original;
                let what = format!("mark the connection {client} -> {server}");
                KernelError::System { what, source }
            })?
            .ok_or(KernelError::Unknown)
    }

    /// What was counted of the TCP connection with this original tuple, in its direction and in the other. `None` if
    /// conntrack counts nothing (nf_conntrack_acct), or knows no such connection.
    pub fn counted(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> io::Result<Option<[CountedPackets; 2]>> {
        Ok(self.query((source, destination), counters)?.pop())
    }

    /// Whether a TCP connection with this original tuple is not over.
    pub fn is_running(&mut self, source: SocketAddr, destination: SocketAddr) -> io::Result<bool> {
        let found = self.query((source, destination), |entry| Some(!is_over(entry)))?;
        Ok(found.contains(&true))
    }

    /// Whether a connection is over, by its original tuple.
    pub fn is_over(&mut self, connection: &Translation) -> Result<bool, KernelError> {
        let Translation { client, server_external, .. } = *connection;
        let found = self.query((client, server_external), |entry| Some(is_over(entry)));
        let found = found.map_err(|source| KernelError::System {
            what: format!("look up the connection of {client} to {server_external}"),
            source,
        })?;
        Ok(!found.is_empty() && !found.contains(&false))
    }

    /// Whether there is a TCP connection with this original tuple.
    pub fn knows(&mut self, source: SocketAddr, destination: SocketAddr) -> io::Result<bool> {
        Ok(!self.query((source, destination), |_| Some(()))?.is_empty())
    }

    /// What `parse` reads of the connections with this tuple, at most one in each zone.
    fn query<T>(
        &mut self,
        (source, destination): (SocketAddr, SocketAddr),
        parse: impl Fn(&Attributes<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let tuple = Tuple { source, destination };
        let mut connections = Vec::new();
        for &zone in &self.parameters.learned.now().zones {
            let header = family_header(family_of(source.ip()), 0);
            let fill = |message: &mut Writer<'_>| {
                tuple.put(message, CTA_TUPLE_ORIG);
                put_zone(message, CTA_ZONE, zone);
            };
            or_absent(self.socket.request(IPCTNL_MSG_CT_GET, 0, &header, fill, |message| {
                connections.extend(parse(&message.attributes()));
            }))?;
        }
        Ok(connections)
    }

    /// The address that `client` dialled to reach `server`, if both source and destination are translated.
    ///
    /// Our rules store it in maps whenever a packet with data of such a connection is queued, so the connection table
    /// need not be dumped. The key is what our hooks see of the connection, so a look-up reads one element.
    fn dialled(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
    ) -> io::Result<Option<SocketAddr>> {
        let key = dialled_key(client, server);
        let mut read = |map| nft::map_data(&mut self.socket, map, &key);
        let data = if client.is_ipv6() {
            let (address, port) = (read(c"external_addresses6")?, read(c"external_ports6")?);
            // A concatenation has whole 4-byte words.
            address.zip(port).map(|(address, port)| [&address[..], &port, &[0; 2]].concat())
        } else {
            read(c"external_addresses4")?
        };
        Ok(data.as_deref().and_then(nft::endpoint_of))
    }
}

fn counters(attributes: &Attributes<'_>) -> Option<[CountedPackets; 2]> {
    let read = |direction| {
        let counters = attributes.nested(direction)?;
        let read = |kind| counters.first(kind).and_then(be64);
        let (bytes, packets) = (read(CTA_COUNTERS_BYTES)?, read(CTA_COUNTERS_PACKETS)?);
        Some(CountedPackets { bytes, packets })
    };
    Some([read(CTA_COUNTERS_ORIG)?, read(CTA_COUNTERS_REPLY)?])
}

/// The translation of a connection in conntrack, with its ct mark without `our_bits`.
fn parse(attributes: &Attributes<'_>, our_bits: u32) -> Option<Translation> {
    let original = Tuple::read(attributes, CTA_TUPLE_ORIG)?;
    let reply = Tuple::read(attributes, CTA_TUPLE_REPLY)?;
    let mark = attributes.first(CTA_MARK).and_then(be32).unwrap_or(0);
    Some(Translation {
        client: original.source,
        client_external: reply.destination,
        server: reply.source,
        server_external: original.destination,
        ct_mark: mark & !our_bits,
    })
}

/// The key of a connection whose packets show `client` and `server`. It has the last four bytes of an address.
fn dialled_key(client: SocketAddr, server: SocketAddr) -> [u8; 16] {
    let mut key = [0; 16];
    let (first, second) = key.split_at_mut(8);
    for (part, endpoint) in [(first, client), (second, server)] {
        let address = match endpoint.ip() {
            IpAddr::V4(address) => address.to_bits(),
            IpAddr::V6(address) => address.to_bits() as u32,
        };
        part[..4].copy_from_slice(&address.to_be_bytes());
        part[4..6].copy_from_slice(&endpoint.port().to_be_bytes());
    }
    key
}

/// Initiator and arrival of each admitted connection that conntrack still knows.
pub fn admitted_connections(
    parameters: &RuleParameters,
) -> Result<HashSet<(IpAddr, SocketAddr)>, NetfilterError> {
    let mut found = HashSet::new();
    list(parameters, |Tuple { source, destination }, _| {
        found.insert((source.ip(), destination));
    })?;
    Ok(found)
}

/// Initiator and arrival of each admitted connection that is not over.
///
/// A connection that is over stays in conntrack for minutes. If it counted, a server with few passive ports would lose
/// each pinhole that the table has at its ports. The price: a connection that consumed its pinhole and was over before
/// its lines were read, while the table or the daemon was away, does not count. Then the same initiator may connect
/// once more to the same endpoint until the pinhole expires. One that only one end has closed still counts, because
/// the transfer may go on.
pub fn consumed_pinholes(
    parameters: &RuleParameters,
) -> Result<HashSet<(IpAddr, SocketAddr)>, NetfilterError> {
    Ok(count_running(parameters)?.into_keys().collect())
}

/// What was counted of the admitted connections that are not over.
pub fn count_running(parameters: &RuleParameters) -> Result<RunningCounts, NetfilterError> {
    let mut found = RunningCounts::new();
    list(parameters, |Tuple { source, destination }, connection| {
        if !is_over(connection) {
            let same: &mut Vec<_> = found.entry((source.ip(), destination)).or_default();
            same.push((source.port(), counters(connection)));
        }
    })?;
    Ok(found)
}

fn is_over(connection: &Attributes<'_>) -> bool {
    let info = connection.nested(CTA_PROTOINFO).and_then(|info| info.nested(CTA_PROTOINFO_TCP));
    let state = info.and_then(|info| info.first(CTA_PROTOINFO_TCP_STATE)?.first());
    state.is_some_and(|state| OVER.contains(state))
}

/// Passes each admitted connection to `each`, with its original tuple.
fn list(
    parameters: &RuleParameters,
    mut each: impl FnMut(Tuple, &Attributes<'_>),
) -> Result<(), NetfilterError> {
    let failed = |error| NetfilterError::system("list of data connections", error);
    let mut socket = Socket::open().map_err(failed)?;
    let mark = parameters.gateway.data_mark.to_be_bytes();
    let marked = |message: &mut Writer<'_>| {
        message.put(CTA_MARK, &mark).put(CTA_MARK_MASK, &mark);
    };
    let dumped = dump(&mut socket, IPCTNL_MSG_CT_GET, marked, |connection| {
        if let Some(tuple) = Tuple::read(connection, CTA_TUPLE_ORIG) {
            each(tuple, connection);
        }
    });
    dumped.map_err(failed)
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

impl Tuple {
    /// Appends the tuple as an attribute.
    pub(super) fn put(&self, message: &mut Writer<'_>, kind: u16) {
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
    pub(super) fn read(attributes: &Attributes<'_>, kind: u16) -> Option<Self> {
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
pub(super) fn put_zone(message: &mut Writer<'_>, kind: u16, zone: u16) {
    if zone != 0 {
        message.put(kind, &zone.to_be_bytes());
    }
}

fn put_address(message: &mut Writer<'_>, address: IpAddr, v4: u16, v6: u16) {
    message.put(if address.is_ipv4() { v4 } else { v6 }, &octets_of(address));
}

/// Sends a change. The kernel answers only if it refuses it (netlink_rcv_skb), which saves the answer.
pub(super) fn change(
    socket: &mut Socket,
    kind: u16,
    flags: i32,
    family: i32,
    fill: impl FnOnce(&mut Writer<'_>),
) -> io::Result<()> {
    let header = family_header(family, 0);
    socket.request(kind, flags, &header, fill, |_| {}).map(drop)
}

/// Sends a change to each of the conntrack zones. Returns `None` if the object exists in none of them.
pub(super) fn change_in_zones(
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
pub(super) fn dump(
    socket: &mut Socket,
    kind: u16,
    fill: impl FnOnce(&mut Writer<'_>),
    mut each: impl FnMut(&Attributes<'_>),
) -> io::Result<()> {
    let header = family_header(libc::AF_UNSPEC, 0);
    let each = |message: &Message<'_>| each(&message.attributes());
    socket.request(kind, libc::NLM_F_DUMP, &header, fill, each).map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::netlink::Messages;

    /// The answer of Linux 6.18 for a connection with source translation.
    const RECORDED: &str = "\
        d40000000001020003000000dce8f7c5020000003400018014000180080001000a00000208000200\
        c00002091c000280050001000600000006000200df6f000006000300001500003400028014000180\
        08000100c000020908000200c000024d1c0002800500010006000000060002000015000006000300\
        df6f0000080003000000019e080008000000000008000c00324fb69008000b000000000208000700\
        00069780300004802c0001800500010003000000050002000a000000050003000a00000006000400\
        230000000600050023000000";

    fn recorded() -> Vec<u8> {
        data_encoding::HEXLOWER.decode(RECORDED.as_bytes()).unwrap()
    }

    #[test]
    fn keys_are_those_that_the_rules_write() {
        let written = [10, 0, 0, 9, 4, 1, 0, 0, 192, 0, 2, 1, 8, 73, 0, 0];
        let of = |client: &str, server: &str| {
            dialled_key(client.parse().unwrap(), server.parse().unwrap())
        };
        assert_eq!(of("10.0.0.9:1025", "192.0.2.1:2121"), written);
        assert_eq!(of("[2001:db8::a00:9]:1025", "[2001:db8::c000:201]:2121"), written);
    }

    proptest! {
        #[test]
        fn damaged_connections_do_not_panic(at in 0usize..140, value: u8, cut in 0usize..140) {
            let mut bytes = recorded();
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            bytes.truncate(cut);
            Messages::new(&bytes).for_each(|message| { parse(&message.attributes(), 0); });
        }
    }
}
