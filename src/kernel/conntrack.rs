//! Conntrack entries: the translation of a connection, its ct mark, and be-liberal.
//!
//! Identifies a connection by its addresses. Those of one zone may equal those of another; then the connection is
//! unknown.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
};

use ftp_alg_core::engine::{KernelError, QueueMode, Translation};

use super::{
    NetfilterError,
    netlink::{
        Attributes, Socket, Writer, be32, be64,
        ctnetlink::{
            self, CTA_MARK, CTA_MARK_MASK, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ZONE,
            IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_NEW, Tuple, change_in_zones, put_zone,
        },
        family_header, family_of, nft, or_absent,
    },
    parameters::RuleParameters,
};

// From linux/netfilter/nfnetlink_conntrack.h; libc lacks them.
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

/// Both directions of a connection in conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ConntrackEntry {
    original: Tuple,
    reply: Tuple,
    mark: u32,
}

impl ConntrackEntry {
    fn translation(&self, our_bits: u32) -> Translation {
        Translation {
            client: self.original.source,
            client_external: self.reply.destination,
            server: self.reply.source,
            server_external: self.original.destination,
            ct_mark: self.mark & !our_bits,
        }
    }

    /// Whether packets of this connection show these addresses at our hooks.
    fn matches_packet(&self, client: SocketAddr, server: SocketAddr) -> bool {
        (self.original.source, self.reply.source) == (client, server)
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
        match self.find_by_pairs(client, server, [(client, server_external)]) {
            Ok(None) | Err(_) => Ok(self.translation(client, server)?.is_some()),
            Ok(Some(_)) => Ok(true),
        }
    }

    fn find(&mut self, client: SocketAddr, server: SocketAddr) -> io::Result<Option<Translation>> {
        if client.is_ipv4() != server.is_ipv4() {
            return Ok(None);
        }
        let pair = [(client, server), (server, client)];
        if let Some(found) = self.find_by_pairs(client, server, pair)? {
            return Ok(Some(found));
        }
        let dialled = self.dialled(client, server)?;
        self.find_by_pairs(client, server, dialled.map(|dialled| (client, dialled)))
    }

    /// The first connection with one of these tuples whose packets show `client` and `server`.
    fn find_by_pairs(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
        pairs: impl IntoIterator<Item = (SocketAddr, SocketAddr)>,
    ) -> io::Result<Option<Translation>> {
        for (source, destination) in pairs {
            // Its reply tuple may equal another connection's visible pair, so this is checked.
            let mut found = self.query(Tuple { source, destination }, parse)?;
            found.retain(|entry| entry.matches_packet(client, server));
            match &*found {
                [] => {}
                [entry] => return Ok(Some(entry.translation(self.parameters.mask()))),
                _ => return Ok(None),
            }
        }
        Ok(None)
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
            QueueMode::All | QueueMode::Watch => all,
            QueueMode::WithAcknowledgements => mask,
            QueueMode::Selected => 0,
            QueueMode::None => none,
        };
        let original = Tuple { source: control.client, destination: control.server_external };
        let fill = |message: &mut Writer<'_>, zone: u16| {
            original.put(message, CTA_TUPLE_ORIG);
            put_zone(message, CTA_ZONE, zone);
            message.put(CTA_MARK, &mark.to_be_bytes()).put(CTA_MARK_MASK, &mask.to_be_bytes());
            if mode == QueueMode::All {
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
        Ok(self.query(Tuple { source, destination }, counters)?.pop())
    }

    /// Whether a TCP connection with this original tuple is not over.
    pub fn is_running(&mut self, source: SocketAddr, destination: SocketAddr) -> io::Result<bool> {
        let found = self.query(Tuple { source, destination }, |entry| Some(!is_over(entry)))?;
        Ok(found.contains(&true))
    }

    /// What `parse` reads of the connections with this tuple, at most one in each zone.
    fn query<T>(
        &mut self,
        tuple: Tuple,
        parse: impl Fn(&Attributes<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut connections = Vec::new();
        for &zone in &self.parameters.learned.now().zones {
            let header = family_header(family_of(tuple.source.ip()), 0);
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

fn parse(attributes: &Attributes<'_>) -> Option<ConntrackEntry> {
    Some(ConntrackEntry {
        original: Tuple::read(attributes, CTA_TUPLE_ORIG)?,
        reply: Tuple::read(attributes, CTA_TUPLE_REPLY)?,
        mark: attributes.first(CTA_MARK).and_then(be32).unwrap_or(0),
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
    list(parameters, |_| true)
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
    list(parameters, |connection| !is_over(connection))
}

fn is_over(connection: &Attributes<'_>) -> bool {
    let info = connection.nested(CTA_PROTOINFO).and_then(|info| info.nested(CTA_PROTOINFO_TCP));
    let state = info.and_then(|info| info.first(CTA_PROTOINFO_TCP_STATE)?.first());
    state.is_some_and(|state| OVER.contains(state))
}

fn list(
    parameters: &RuleParameters,
    counts: impl Fn(&Attributes<'_>) -> bool,
) -> Result<HashSet<(IpAddr, SocketAddr)>, NetfilterError> {
    let failed = |error| NetfilterError::system("list of data connections", error);
    let mut socket = Socket::open().map_err(failed)?;
    let mark = parameters.gateway.data_mark.to_be_bytes();
    let mut found = HashSet::new();
    let marked = |message: &mut Writer<'_>| {
        message.put(CTA_MARK, &mark).put(CTA_MARK_MASK, &mark);
    };
    let dumped = ctnetlink::dump(&mut socket, IPCTNL_MSG_CT_GET, marked, |connection| {
        let tuple = Tuple::read(connection, CTA_TUPLE_ORIG).filter(|_| counts(connection));
        found.extend(tuple.map(|tuple| (tuple.source.ip(), tuple.destination)));
    });
    dumped.map_err(failed)?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::netlink::{Messages, put_message};

    fn connection(addresses: [&str; 4]) -> ConntrackEntry {
        let [a, b, c, d] = addresses.map(|text| text.parse().unwrap());
        ConntrackEntry {
            original: Tuple { source: a, destination: b },
            reply: Tuple { source: c, destination: d },
            mark: 0,
        }
    }

    fn message(connection: &ConntrackEntry) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_message(&mut bytes, IPCTNL_MSG_CT_NEW, 0, 1, &family_header(2, 0), |message| {
            connection.original.put(message, CTA_TUPLE_ORIG);
            connection.reply.put(message, CTA_TUPLE_REPLY);
        });
        bytes
    }

    /// The answer of Linux 6.18 for a connection with source translation.
    const RECORDED: &str = "\
        d40000000001020003000000dce8f7c5020000003400018014000180080001000a00000208000200\
        c00002091c000280050001000600000006000200df6f000006000300001500003400028014000180\
        08000100c000020908000200c000024d1c0002800500010006000000060002000015000006000300\
        df6f0000080003000000019e080008000000000008000c00324fb69008000b000000000208000700\
        00069780300004802c0001800500010003000000050002000a000000050003000a00000006000400\
        230000000600050023000000";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = |at| hex.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
        (0..hex.len()).step_by(2).filter_map(digits).collect()
    }

    #[test]
    fn a_recorded_answer_is_read() {
        let bytes = bytes(RECORDED);
        let found = Messages::new(&bytes).find_map(|m| parse(&m.attributes()));
        let expected =
            connection(["10.0.0.2:57199", "192.0.2.9:21", "192.0.2.9:21", "192.0.2.77:57199"]);
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn connections_are_read() {
        for connection in [
            connection(["10.0.0.1:1025", "192.0.2.1:21", "10.1.0.1:2121", "192.0.2.9:4"]),
            connection(["[2001:db8::1]:1025", "[2001:db8::2]:21", "[::1]:21", "[::2]:4"]),
        ] {
            let bytes = message(&connection);
            assert_eq!(
                Messages::new(&bytes).find_map(|m| parse(&m.attributes())),
                Some(connection)
            );
        }
    }

    #[test]
    fn the_visible_pair_is_the_real_ends() {
        let connection =
            connection(["10.0.0.1:1025", "192.0.2.1:21", "10.1.0.1:2121", "192.0.2.9:4"]);
        let marked = ConntrackEntry { mark: 0x4000_0012, ..connection };
        let Translation { client, client_external, server, server_external, ct_mark } =
            marked.translation(0x7000_0000);
        assert_eq!(ct_mark, 0x12);
        assert!(
            connection.matches_packet(client, server) && !connection.matches_packet(server, client)
        );
        assert!(!connection.matches_packet(client, server_external));
        assert!(!connection.matches_packet(client_external, server));
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
            let mut bytes = bytes(RECORDED);
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            bytes.truncate(cut);
            Messages::new(&bytes).for_each(|message| { parse(&message.attributes()); });
        }
    }
}
