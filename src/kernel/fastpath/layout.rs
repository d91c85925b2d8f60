//! Keys and values of the program's maps, byte by byte as `program/layout.h` declares them.
//!
//! Numbers are in the machine's byte order, addresses and ports in network byte order. This module does not know the
//! calls that read and write the maps.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use ftp_alg_core::engine::SequenceOffset;

/// Length of the longest line that the program inspects, with its CR LF.
pub const LONGEST_LINE: usize = 128;

// Sizes of the structures in bytes.
pub(super) const PACKET_TUPLE: usize = 12;
pub(super) const TUPLE_VALUE: usize = 16;
pub(super) const PINHOLE_KEY: usize = 12;
pub(super) const PINHOLE: usize = 32;
pub(super) const FLOW: usize = 408;
pub(super) const LINE_RECORD: usize = 56 + LONGEST_LINE;

/// The bytes of the field `handed_over` in a flow.
pub(super) const FLOW_HANDED_OVER: std::ops::Range<usize> = 4..8;

/// Source and destination of the packets that one side sends, as they arrive at the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PacketTuple {
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
}

/// What the program waits for on a control connection. A pending command waits for its reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum DialogueState {
    /// The next command, after the login.
    #[default]
    Ready = 0,
    /// The reply to a bypassable command.
    CommandPending = 1,
    /// The reply to PASV.
    PasvPending = 2,
    /// The reply to EPSV.
    EpsvPending = 3,
    /// The reply to PORT or EPRT.
    PortPending = 4,
    /// `USER` or `PASS`.
    LoginDue = 5,
    /// The server's greeting.
    GreetingDue = 7,
}

/// A control connection, as it is handed over to the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The key in `flows`.
    pub id: u64,
    /// Tuples of the packets that the client sends, and of those that the server sends.
    pub tuples: [PacketTuple; 2],
    /// Next sequence number of the client, and of the server.
    pub next_seq: [u32; 2],
    /// Number of the last line before. The program numbers its lines from the next one on.
    pub line_count: u32,
    pub dialogue: DialogueState,
    /// The client's own endpoint, without NAT.
    pub client: SocketAddrV4,
    /// The server's own endpoint, without NAT.
    pub server: SocketAddrV4,
    /// Address that a rewrite puts in the place of the client's own.
    pub announced_client: Ipv4Addr,
    /// Address that a rewrite puts in the place of the server's own.
    pub announced_server: Ipv4Addr,
    /// Destination address of a data connection's SYN in active mode.
    pub active_arrival: Ipv4Addr,
    /// Destination address of a data connection's SYN in passive mode.
    pub passive_arrival: Ipv4Addr,
    /// Source address of a data connection's SYN in active mode.
    pub active_initiator: Ipv4Addr,
    /// Source address of a data connection's SYN in passive mode.
    pub passive_initiator: Ipv4Addr,
    /// Packet mark of an admitted SYN in active mode.
    pub active_mark: u32,
    /// Packet mark of an admitted SYN in passive mode.
    pub passive_mark: u32,
    /// Packet mark of an inspected packet.
    pub inspected_mark: u32,
    /// Most digits in each number of a `PORT`'s port, if leading zeros keep its length; 0 if they may not.
    pub port_digits: u32,
    /// Sequence offsets of the client and of the server, if the connection is adjusted.
    pub seq_offsets: Option<[SequenceOffset; 2]>,
    /// Time from the opening of a pinhole to its deadline.
    pub pinhole_lifetime: Duration,
    /// The first and the last port that the client may announce.
    pub client_ports: [u16; 2],
    /// Indices of the interfaces on which packets of client and server arrive.
    pub interfaces: [u32; 2],
}

impl PacketTuple {
    pub(super) fn to_bytes(self) -> [u8; PACKET_TUPLE] {
        let Self { source, destination } = self;
        let bytes = StructWriter::default().address(*source.ip()).address(*destination.ip());
        bytes.be16(source.port()).be16(destination.port()).array()
    }
}

/// Value of the map `tuples` for a packet of the server, or of the client.
pub(super) fn tuple_value(flow: u64, is_server: bool) -> [u8; TUPLE_VALUE] {
    StructWriter::default().u64(flow).u32(is_server.into()).u32(0).array()
}

/// The flow of a value of `tuples` or `pinholes`, or of a key of `flows`.
pub(super) fn read_flow_id(value: &[u8]) -> u64 {
    StructReader { rest: value }.u64()
}

/// The number of the line that opened a pinhole.
pub(super) fn read_pinhole_line(pinhole: &[u8; PINHOLE]) -> u32 {
    StructReader { rest: pinhole.get(16..).unwrap_or_default() }.u32()
}

/// The deadline of a pinhole, in nanoseconds of the kernel's monotonic clock.
pub(super) fn read_pinhole_deadline(pinhole: &[u8; PINHOLE]) -> u64 {
    StructReader { rest: pinhole.get(8..).unwrap_or_default() }.u64()
}

/// Sets the deadline of a pinhole.
pub(super) fn set_pinhole_deadline(pinhole: &mut [u8; PINHOLE], deadline: u64) {
    for (byte, new) in pinhole.iter_mut().skip(8).zip(deadline.to_ne_bytes()) {
        *byte = new;
    }
}

/// The key in `pinholes` of a connection from `initiator` to `arrival`.
pub(super) fn pinhole_key(initiator: Ipv4Addr, arrival: SocketAddrV4) -> [u8; PINHOLE_KEY] {
    let bytes = StructWriter::default().address(initiator).address(*arrival.ip());
    bytes.be16(arrival.port()).be16(0).array()
}

/// Initiator and arrival of a key of `pinholes`.
pub(super) fn read_pinhole_key(key: &[u8]) -> Option<(Ipv4Addr, SocketAddrV4)> {
    let (initiator, rest) = key.split_first_chunk::<4>()?;
    let (arrival, rest) = rest.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes(*rest.first_chunk()?);
    Some(((*initiator).into(), SocketAddrV4::new((*arrival).into(), port)))
}

impl Flow {
    pub(super) fn to_bytes(&self) -> [u8; FLOW] {
        let handed_over = 1;
        let lifetime_ns = u64::try_from(self.pinhole_lifetime.as_nanos()).unwrap_or(u64::MAX);
        let [client_seq, server_seq] = self.next_seq;
        let [client_interface, server_interface] = self.interfaces;
        let [first_port, last_port] = self.client_ports;
        let [client_offset, server_offset] =
            self.seq_offsets.unwrap_or([SequenceOffset { offset: 0, first_seq: 0 }; 2]);
        StructWriter::default()
            .u32(0)
            .u32(handed_over)
            .u32(client_seq)
            .u32(server_seq)
            .u32(self.line_count)
            .u32(self.dialogue as u32)
            .address(*self.client.ip())
            .address(*self.server.ip())
            .be16(self.client.port())
            .be16(self.server.port())
            .address(self.announced_client)
            .address(self.announced_server)
            .address(self.active_arrival)
            .address(self.passive_arrival)
            .address(self.active_initiator)
            .address(self.passive_initiator)
            .u32(self.active_mark)
            .u32(self.passive_mark)
            .u32(self.inspected_mark)
            .u32(self.port_digits)
            .u32(self.seq_offsets.is_some().into())
            .u32(client_offset.offset)
            .u32(server_offset.offset)
            .u32(client_offset.first_seq)
            .u32(server_offset.first_seq)
            .u32(0)
            .u16(first_port)
            .u16(last_port)
            .u64(lifetime_ns)
            .u64(0)
            .u64(0)
            .u32(client_interface)
            .u32(server_interface)
            .array()
    }
}

/// A record of the ring: a line that the program inspected, or a FIN.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LineRecord {
    pub flow: u64,
    /// Time of the inspection, in nanoseconds of the kernel's monotonic clock.
    pub at_ns: u64,
    /// Number of the line in its flow.
    pub number: u32,
    pub from_client: bool,
    pub seq: u32,
    pub ack: u32,
    /// The client's own endpoint, without NAT.
    pub client: SocketAddrV4,
    /// The server's own endpoint, without NAT.
    pub server: SocketAddrV4,
    /// Window field of the TCP header.
    pub window: u16,
    /// Whether the line opened a pinhole.
    pub opened_pinhole: bool,
    /// Whether this is a FIN, without a line.
    pub is_fin: bool,
    /// `port_digits` of the flow, before this line.
    pub port_digits: u8,
    /// Number of the line that had opened the flow's pinhole, if that pinhole did not exist any more; else 0.
    pub consumed_pinhole: u32,
    bytes: [u8; LONGEST_LINE],
    length: u8,
}

impl LineRecord {
    /// The line as it arrived, before any rewrite.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length.into()).unwrap_or_default()
    }

    pub(super) fn read(record: &[u8; LINE_RECORD]) -> Self {
        let mut fields = StructReader { rest: record };
        let flow = fields.u64();
        let at_ns = fields.u64();
        let number = fields.u32();
        let from_client = fields.u32() == 0;
        let (seq, ack) = (fields.u32(), fields.u32());
        let (client, server) = (fields.address(), fields.address());
        let client = SocketAddrV4::new(client, fields.be16());
        let server = SocketAddrV4::new(server, fields.be16());
        let length = fields.u16().min(LONGEST_LINE as u16) as u8;
        let window = fields.be16();
        let [opened_pinhole, is_fin, port_digits, _] = fields.take();
        let consumed_pinhole = fields.u32();
        let bytes = fields.take();
        Self {
            flow,
            at_ns,
            number,
            from_client,
            seq,
            ack,
            client,
            server,
            window,
            opened_pinhole: opened_pinhole != 0,
            is_fin: is_fin != 0,
            port_digits,
            consumed_pinhole,
            bytes,
            length,
        }
    }
}

impl std::fmt::Debug for LineRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { flow, number, from_client, seq, ack, opened_pinhole, .. } = self;
        let line = self.bytes().escape_ascii();
        let who = if *from_client { "client" } else { "server" };
        write!(
            f,
            "line {number} of flow {flow} by {who}: {line} seq={seq} ack={ack} opened_pinhole={opened_pinhole}"
        )
    }
}

/// Writes the fields of a structure.
#[derive(Default)]
struct StructWriter(Vec<u8>);

impl StructWriter {
    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u64(self, number: u64) -> Self {
        self.put(&number.to_ne_bytes())
    }

    fn u32(self, number: u32) -> Self {
        self.put(&number.to_ne_bytes())
    }

    fn u16(self, number: u16) -> Self {
        self.put(&number.to_ne_bytes())
    }

    fn be16(self, number: u16) -> Self {
        self.put(&number.to_be_bytes())
    }

    fn address(self, address: Ipv4Addr) -> Self {
        self.put(&address.octets())
    }

    /// The structure. Bytes that were not written are 0.
    fn array<const N: usize>(self) -> [u8; N] {
        debug_assert!(self.0.len() <= N, "{} bytes of {N}", self.0.len());
        let mut array = [0; N];
        array.iter_mut().zip(self.0).for_each(|(to, from)| *to = from);
        array
    }
}

/// Reads the fields of a structure. Fields after its end are 0.
struct StructReader<'a> {
    rest: &'a [u8],
}

impl StructReader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.rest.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.rest = rest;
        *field
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn be16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    fn address(&mut self) -> Ipv4Addr {
        self.take::<4>().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 0x1234);
    const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), 21);

    #[test]
    fn a_flow_has_the_layout_of_the_program() {
        let address = |last| Ipv4Addr::new(1, 2, 3, last);
        let key = PacketTuple { source: CLIENT, destination: SERVER };
        let flow = Flow {
            id: 7,
            tuples: [key, key],
            next_seq: [0x11, 0x22],
            line_count: 0x33,
            dialogue: DialogueState::PortPending,
            client: CLIENT,
            server: SERVER,
            announced_client: address(1),
            announced_server: address(2),
            active_arrival: address(3),
            passive_arrival: address(4),
            active_initiator: address(5),
            passive_initiator: address(6),
            active_mark: 0x44,
            passive_mark: 0x55,
            inspected_mark: 0x66,
            port_digits: 0x77,
            seq_offsets: Some([
                SequenceOffset { offset: 0x99, first_seq: 0xaa },
                SequenceOffset { offset: 0xbb, first_seq: 0xcc },
            ]),
            pinhole_lifetime: Duration::from_nanos(0x88),
            client_ports: [0x0f, 0xf0],
            interfaces: [0xdd, 0xee],
        };
        let bytes = flow.to_bytes();
        let number = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        for (at, value) in [(4, 1), (8, 0x11), (12, 0x22), (16, 0x33), (20, 4)] {
            assert_eq!(number(at), value, "at {at}");
        }
        for (at, value) in [(60, 0x44), (64, 0x55), (68, 0x66), (72, 0x77), (76, 1)] {
            assert_eq!(number(at), value, "at {at}");
        }
        for (at, value) in [(80, 0x99), (84, 0xbb), (88, 0xaa), (92, 0xcc), (96, 0)] {
            assert_eq!(number(at), value, "at {at}");
        }
        for (at, value) in [(112, 0), (124, 0), (128, 0xdd), (132, 0xee)] {
            assert_eq!(number(at), value, "at {at}");
        }
        assert_eq!(bytes[100..104], [0x0f_u16.to_ne_bytes(), 0xf0_u16.to_ne_bytes()].concat());
        assert_eq!(bytes[24..36], [10, 0, 0, 2, 192, 0, 2, 9, 0x12, 0x34, 0, 21]);
        let addresses = bytes[36..60].as_chunks::<4>().0;
        assert!(addresses.iter().zip(1..).all(|(one, last)| *one == [1, 2, 3, last]));
        assert_eq!(bytes[104..112], 0x88_u64.to_ne_bytes());
        assert!(bytes[136..].iter().all(|byte| *byte == 0));
        assert_eq!(key.to_bytes(), [10, 0, 0, 2, 192, 0, 2, 9, 0x12, 0x34, 0, 21]);
        assert_eq!(pinhole_key(address(9), SERVER), [1, 2, 3, 9, 192, 0, 2, 9, 0, 21, 0, 0]);
    }

    #[test]
    fn a_line_record_has_the_layout_of_the_program() {
        let mut record = [0xee; LINE_RECORD];
        let head = StructWriter::default().u64(7).u64(8).u32(9).u32(1).u32(10).u32(11);
        let head = head.address(*CLIENT.ip()).address(*SERVER.ip()).be16(0x1234).be16(21);
        let head = head.put(&6_u16.to_ne_bytes()).be16(12).put(&[1, 1, 4, 0]).u32(5).0;
        record[..head.len()].copy_from_slice(&head);
        record[56..62].copy_from_slice(b"200 k\n");
        let step = LineRecord::read(&record);
        assert_eq!((step.flow, step.at_ns, step.number, step.from_client), (7, 8, 9, false));
        assert_eq!((step.seq, step.ack, step.window, step.opened_pinhole), (10, 11, 12, true));
        assert_eq!((step.is_fin, step.port_digits, step.consumed_pinhole), (true, 4, 5));
        assert_eq!((step.client, step.server, step.bytes()), (CLIENT, SERVER, &b"200 k\n"[..]));
    }

    #[test]
    fn a_length_beyond_the_longest_line_is_limited() {
        let mut record = [0; LINE_RECORD];
        record[44..46].copy_from_slice(&u16::MAX.to_ne_bytes());
        assert_eq!(LineRecord::read(&record).bytes().len(), LONGEST_LINE);
    }
}
