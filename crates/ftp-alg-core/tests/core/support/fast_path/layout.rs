//! The structures of the program's maps. The tests write and read them by their own offsets, independently of the
//! product.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::net::{Ipv4Addr, SocketAddrV4};

pub const LONGEST_LINE: usize = 128;
pub const FLOW: usize = 408;
pub const PINHOLE: usize = 32;
pub const ADMITTED_SYN: usize = 40;
pub const SYN_KEY: usize = 8;
pub const LINE_RECORD: usize = 184;

pub const READY: u32 = 0;
pub const COMMAND_PENDING: u32 = 1;
pub const PASV_PENDING: u32 = 2;
pub const EPSV_PENDING: u32 = 3;
pub const PORT_PENDING: u32 = 4;
pub const LOGIN_DUE: u32 = 5;
pub const LOGIN_PENDING: u32 = 6;
pub const GREETING_DUE: u32 = 7;
pub const QUIT_PENDING: u32 = 8;
pub const FIN_DUE: u32 = 9;

/// Indices of the map `counters`.
pub const INSPECTED: usize = 0;
pub const HANDED_BACK: usize = 1;
pub const OPENED: usize = 2;
pub const ADMITTED: usize = 3;
pub const RING_FULL: usize = 4;
pub const REWRITTEN: usize = 5;

/// The side that sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    pub fn index(self) -> usize {
        self as usize
    }

    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

pub fn tuple_key(source: SocketAddrV4, destination: SocketAddrV4) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&source.ip().octets());
    key[4..8].copy_from_slice(&destination.ip().octets());
    key[8..10].copy_from_slice(&source.port().to_be_bytes());
    key[10..].copy_from_slice(&destination.port().to_be_bytes());
    key
}

pub fn syn_key(port: u16, seq: u32) -> [u8; SYN_KEY] {
    let mut key = [0; SYN_KEY];
    key[..2].copy_from_slice(&port.to_be_bytes());
    key[4..].copy_from_slice(&seq.to_ne_bytes());
    key
}

pub fn tuple_value(flow: u64, side: Side) -> [u8; 16] {
    let mut tuple_value = [0; 16];
    tuple_value[..8].copy_from_slice(&flow.to_ne_bytes());
    tuple_value[8..12].copy_from_slice(&(side as u32).to_ne_bytes());
    tuple_value
}

/// Key of a pinhole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PinholeKey {
    pub initiator: Ipv4Addr,
    pub arrival: Ipv4Addr,
    pub port: u16,
}

impl PinholeKey {
    pub fn to_bytes(self) -> [u8; 12] {
        let mut key = [0; 12];
        key[..4].copy_from_slice(&self.initiator.octets());
        key[4..8].copy_from_slice(&self.arrival.octets());
        key[8..10].copy_from_slice(&self.port.to_be_bytes());
        key
    }

    pub fn read(key: &[u8; 12]) -> Self {
        assert_eq!(key[10..], [0, 0], "{key:?}");
        let address = |at: usize| Ipv4Addr::from(*key[at..].first_chunk::<4>().unwrap());
        let port = u16::from_be_bytes([key[8], key[9]]);
        Self { initiator: address(0), arrival: address(4), port }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinhole {
    pub flow: u64,
    pub deadline: u64,
    pub line: u32,
    pub mark: u32,
    pub interface: u32,
    /// Source port of the SYN that arrived on another interface, if there was one.
    pub elsewhere_port: u16,
}

impl Pinhole {
    pub fn to_bytes(self) -> [u8; PINHOLE] {
        let mut pinhole = [0; PINHOLE];
        pinhole[..8].copy_from_slice(&self.flow.to_ne_bytes());
        pinhole[8..16].copy_from_slice(&self.deadline.to_ne_bytes());
        pinhole[16..20].copy_from_slice(&self.line.to_ne_bytes());
        pinhole[20..24].copy_from_slice(&self.mark.to_ne_bytes());
        pinhole[24..28].copy_from_slice(&self.interface.to_ne_bytes());
        pinhole[28..30].copy_from_slice(&self.elsewhere_port.to_be_bytes());
        pinhole
    }

    pub fn read(pinhole: &[u8; PINHOLE]) -> Self {
        let [long, deadline] = [0, 8].map(|at| u64_at(pinhole, at));
        let [line, mark, interface] = [16, 20, 24].map(|at| u32_at(pinhole, at));
        let elsewhere_port = u16::from_be_bytes([pinhole[28], pinhole[29]]);
        Self { flow: long, deadline, line, mark, interface, elsewhere_port }
    }
}

/// A SYN that a pinhole admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmittedSyn {
    /// Flow and line of the pinhole.
    pub flow: u64,
    pub line: u32,
    /// The tuple of the SYN, as a key.
    pub tuple: [u8; 12],
    /// The SYN is known until then, in nanoseconds.
    pub until: u64,
    pub mark: u32,
    pub is_answered: bool,
}

impl AdmittedSyn {
    pub fn expiring_at(self, until: u64) -> Self {
        Self { until, ..self }
    }

    pub fn to_bytes(self) -> [u8; ADMITTED_SYN] {
        let mut syn = [0; ADMITTED_SYN];
        syn[..8].copy_from_slice(&self.flow.to_ne_bytes());
        syn[8..16].copy_from_slice(&self.until.to_ne_bytes());
        syn[16..20].copy_from_slice(&self.line.to_ne_bytes());
        syn[20..24].copy_from_slice(&self.mark.to_ne_bytes());
        syn[24..36].copy_from_slice(&self.tuple);
        syn[36..].copy_from_slice(&u32::from(self.is_answered).to_ne_bytes());
        syn
    }

    pub fn read(syn: &[u8; ADMITTED_SYN]) -> Self {
        let [flow, until] = [0, 8].map(|at| u64_at(syn, at));
        let [line, mark, answered] = [16, 20, 36].map(|at| u32_at(syn, at));
        let tuple = syn[24..36].try_into().unwrap();
        Self { flow, line, tuple, until, mark, is_answered: answered != 0 }
    }
}

/// A control connection, as the daemon hands it over and as the program changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub handed_over: bool,
    pub next_seq: [u32; 2],
    pub line_count: u32,
    pub dialogue: u32,
    pub client: SocketAddrV4,
    pub server: SocketAddrV4,
    pub announced_client: Ipv4Addr,
    pub announced_server: Ipv4Addr,
    pub active_arrival: Ipv4Addr,
    pub passive_arrival: Ipv4Addr,
    pub active_initiator: Ipv4Addr,
    pub passive_initiator: Ipv4Addr,
    pub active_mark: u32,
    pub passive_mark: u32,
    pub inspected_mark: u32,
    pub port_digits: u32,
    /// The sequence offset of each side, and the first sequence number that has it, if the connection is adjusted.
    pub seq_offsets: Option<[(u32, u32); 2]>,
    pub pinhole: Option<PinholeKey>,
    /// Number of the line that opened `pinhole`.
    pub pinhole_line: u32,
    pub pinhole_lifetime: u64,
    /// The first and the last port that the client may announce.
    pub client_ports: [u16; 2],
    /// Indices of the interfaces on which client and server are.
    pub interfaces: [u32; 2],
    /// Sequence number and bytes of the last inspected line of each side; `None` for a FIN.
    pub last_line: [(u32, Option<Vec<u8>>); 2],
}

impl Flow {
    pub fn has_sent_fin(&self, side: Side) -> bool {
        self.last_line[side.index()].1.is_none()
    }

    pub fn to_bytes(&self) -> [u8; FLOW] {
        let mut flow = [0; FLOW];
        let mut put = |at: usize, bytes: &[u8]| flow[at..at + bytes.len()].copy_from_slice(bytes);
        put(4, &u32::from(self.handed_over).to_ne_bytes());
        put(8, &self.next_seq[0].to_ne_bytes());
        put(12, &self.next_seq[1].to_ne_bytes());
        put(16, &self.line_count.to_ne_bytes());
        put(20, &self.dialogue.to_ne_bytes());
        put(24, &self.client.ip().octets());
        put(28, &self.server.ip().octets());
        put(32, &self.client.port().to_be_bytes());
        put(34, &self.server.port().to_be_bytes());
        put(36, &self.announced_client.octets());
        put(40, &self.announced_server.octets());
        put(44, &self.active_arrival.octets());
        put(48, &self.passive_arrival.octets());
        put(52, &self.active_initiator.octets());
        put(56, &self.passive_initiator.octets());
        put(60, &self.active_mark.to_ne_bytes());
        put(64, &self.passive_mark.to_ne_bytes());
        put(68, &self.inspected_mark.to_ne_bytes());
        put(72, &self.port_digits.to_ne_bytes());
        if let Some(seq_offsets) = self.seq_offsets {
            put(76, &1_u32.to_ne_bytes());
            for (at, (by, since)) in [80, 84].into_iter().zip(seq_offsets) {
                put(at, &by.to_ne_bytes());
                put(at + 8, &since.to_ne_bytes());
            }
        }
        put(96, &self.pinhole_line.to_ne_bytes());
        put(100, &self.client_ports[0].to_ne_bytes());
        put(102, &self.client_ports[1].to_ne_bytes());
        put(104, &self.pinhole_lifetime.to_ne_bytes());
        if let Some(pinhole) = self.pinhole {
            put(112, &pinhole.to_bytes());
        }
        put(128, &self.interfaces[0].to_ne_bytes());
        put(132, &self.interfaces[1].to_ne_bytes());
        for (at, (seq, line)) in [136, 272].into_iter().zip(&self.last_line) {
            put(at, &seq.to_ne_bytes());
            let length = line.as_ref().map_or(LONGEST_LINE + 1, Vec::len);
            put(at + 4, &u32::try_from(length).unwrap().to_ne_bytes());
            put(at + 8, line.as_deref().unwrap_or_default());
        }
        flow
    }

    pub fn read(flow: &[u8; FLOW]) -> Self {
        let number = |at| u32_at(flow, at);
        let address = |at: usize| Ipv4Addr::from(*flow[at..].first_chunk::<4>().unwrap());
        let port = |at: usize| u16::from_be_bytes([flow[at], flow[at + 1]]);
        let line = |at: usize| {
            let length = number(at + 4) as usize;
            let is_fin = length == LONGEST_LINE + 1;
            let (text, rest) =
                flow[at + 8..at + 8 + LONGEST_LINE].split_at(if is_fin { 0 } else { length });
            assert!(rest.iter().all(|byte| *byte == 0), "after the line: {rest:?}");
            (number(at), (!is_fin).then(|| text.to_vec()))
        };
        assert_eq!(number(124), 0, "no processor opens a pinhole now");
        Self {
            handed_over: number(4) != 0,
            next_seq: [number(8), number(12)],
            line_count: number(16),
            dialogue: number(20),
            client: SocketAddrV4::new(address(24), port(32)),
            server: SocketAddrV4::new(address(28), port(34)),
            announced_client: address(36),
            announced_server: address(40),
            active_arrival: address(44),
            passive_arrival: address(48),
            active_initiator: address(52),
            passive_initiator: address(56),
            active_mark: number(60),
            passive_mark: number(64),
            inspected_mark: number(68),
            port_digits: number(72),
            seq_offsets: (number(76) != 0).then(|| [80, 84].map(|at| (number(at), number(at + 8)))),
            pinhole_line: number(96),
            pinhole: (number(96) != 0)
                .then(|| PinholeKey::read(flow[112..].first_chunk().unwrap())),
            pinhole_lifetime: u64_at(flow, 104),
            client_ports: [100, 102].map(|at| u16::from_ne_bytes([flow[at], flow[at + 1]])),
            interfaces: [number(128), number(132)],
            last_line: [line(136), line(272)],
        }
    }
}

/// A record of the ring: an inspected line, or a FIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineRecord {
    pub flow: u64,
    pub at_ns: u64,
    pub number: u32,
    pub side: u32,
    pub seq: u32,
    pub ack: u32,
    pub opened_pinhole: bool,
    pub is_fin: bool,
    pub port_digits: u8,
    pub consumed_pinhole: u32,
    pub line: Vec<u8>,
}

impl LineRecord {
    pub fn read(record: &[u8; LINE_RECORD]) -> Self {
        let length = usize::from(u16::from_ne_bytes([record[44], record[45]]));
        let line = record[56..].split_at(length).0.to_vec();
        assert!(record[56 + length..].iter().all(|byte| *byte == 0), "{record:?}");
        Self {
            flow: u64_at(record, 0),
            at_ns: u64_at(record, 8),
            number: u32_at(record, 16),
            side: u32_at(record, 20),
            seq: u32_at(record, 24),
            ack: u32_at(record, 28),
            opened_pinhole: record[48] == 1,
            is_fin: record[49] == 1,
            port_digits: record[50],
            consumed_pinhole: u32_at(record, 52),
            line,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
}
