//! The structures of the program's maps, as the test writes and reads them: by offsets of its own.

use std::net::{Ipv4Addr, SocketAddrV4};

pub const LINE: usize = 128;
pub const FLOW: usize = 400;
pub const STEP: usize = 184;

pub const NOTHING: u32 = 0;
pub const OTHER: u32 = 1;
pub const PASV: u32 = 2;
pub const EPSV: u32 = 3;
pub const ANNOUNCED: u32 = 4;
pub const LOGIN: u32 = 5;
pub const LOGIN_REPLY: u32 = 6;
pub const GREETING: u32 = 7;

/// Counters, by their place.
pub const JUDGED: usize = 0;
pub const HANDED_BACK: usize = 1;
pub const OPENED: usize = 2;
pub const ADMITTED: usize = 3;
pub const NO_ROOM: usize = 4;
pub const REWRITTEN: usize = 5;

/// The side that sends.
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

pub fn way_key(source: SocketAddrV4, destination: SocketAddrV4) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&source.ip().octets());
    key[4..8].copy_from_slice(&destination.ip().octets());
    key[8..10].copy_from_slice(&source.port().to_be_bytes());
    key[10..].copy_from_slice(&destination.port().to_be_bytes());
    key
}

pub fn way(flow: u64, side: Side) -> [u8; 16] {
    let mut way = [0; 16];
    way[..8].copy_from_slice(&flow.to_ne_bytes());
    way[8..12].copy_from_slice(&(side as u32).to_ne_bytes());
    way
}

/// Key of a pinhole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HoleKey {
    pub initiator: Ipv4Addr,
    pub arrival: Ipv4Addr,
    pub port: u16,
}

impl HoleKey {
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
pub struct Hole {
    pub flow: u64,
    pub until: u64,
    pub step: u32,
    pub mark: u32,
}

impl Hole {
    pub fn to_bytes(self) -> [u8; 24] {
        let mut hole = [0; 24];
        hole[..8].copy_from_slice(&self.flow.to_ne_bytes());
        hole[8..16].copy_from_slice(&self.until.to_ne_bytes());
        hole[16..20].copy_from_slice(&self.step.to_ne_bytes());
        hole[20..].copy_from_slice(&self.mark.to_ne_bytes());
        hole
    }

    pub fn read(hole: &[u8; 24]) -> Self {
        let [long, until] = [0, 8].map(|at| u64_at(hole, at));
        let [step, mark] = [16, 20].map(|at| u32_at(hole, at));
        Self { flow: long, until, step, mark }
    }
}

/// What the daemon hands over, and what the program changes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub judged: bool,
    pub next: [u32; 2],
    pub steps: u32,
    pub awaits: u32,
    pub client: SocketAddrV4,
    pub server: SocketAddrV4,
    pub client_named: Ipv4Addr,
    pub server_named: Ipv4Addr,
    pub client_arrival: Ipv4Addr,
    pub server_arrival: Ipv4Addr,
    pub active_initiator: Ipv4Addr,
    pub passive_initiator: Ipv4Addr,
    pub active_mark: u32,
    pub passive_mark: u32,
    pub judged_mark: u32,
    pub digits: u32,
    /// By how much the sequence numbers of each side are shifted, and from which one on, if they are adjusted.
    pub shifts: Option<[(u32, u32); 2]>,
    pub hole: Option<HoleKey>,
    /// The step that opened it.
    pub hole_step: u32,
    pub lifetime: u64,
    /// Sequence number and bytes of the last judged line of each side; no bytes for a FIN.
    pub last: [(u32, Option<Vec<u8>>); 2],
}

impl Flow {
    pub fn has_ended(&self, side: Side) -> bool {
        self.last[side.index()].1.is_none()
    }

    pub fn to_bytes(&self) -> [u8; FLOW] {
        let mut flow = [0; FLOW];
        let mut put = |at: usize, bytes: &[u8]| flow[at..at + bytes.len()].copy_from_slice(bytes);
        put(4, &u32::from(self.judged).to_ne_bytes());
        put(8, &self.next[0].to_ne_bytes());
        put(12, &self.next[1].to_ne_bytes());
        put(16, &self.steps.to_ne_bytes());
        put(20, &self.awaits.to_ne_bytes());
        put(24, &self.client.ip().octets());
        put(28, &self.server.ip().octets());
        put(32, &self.client.port().to_be_bytes());
        put(34, &self.server.port().to_be_bytes());
        put(36, &self.client_named.octets());
        put(40, &self.server_named.octets());
        put(44, &self.client_arrival.octets());
        put(48, &self.server_arrival.octets());
        put(52, &self.active_initiator.octets());
        put(56, &self.passive_initiator.octets());
        put(60, &self.active_mark.to_ne_bytes());
        put(64, &self.passive_mark.to_ne_bytes());
        put(68, &self.judged_mark.to_ne_bytes());
        put(72, &self.digits.to_ne_bytes());
        if let Some(shifts) = self.shifts {
            put(76, &1_u32.to_ne_bytes());
            for (at, (by, since)) in [80, 84].into_iter().zip(shifts) {
                put(at, &by.to_ne_bytes());
                put(at + 8, &since.to_ne_bytes());
            }
        }
        put(96, &self.hole_step.to_ne_bytes());
        put(104, &self.lifetime.to_ne_bytes());
        if let Some(hole) = self.hole {
            put(112, &hole.to_bytes());
        }
        for (at, (seq, line)) in [128, 264].into_iter().zip(&self.last) {
            put(at, &seq.to_ne_bytes());
            let length = line.as_ref().map_or(LINE + 1, Vec::len);
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
            let ends = length == LINE + 1;
            let (text, rest) = flow[at + 8..at + 8 + LINE].split_at(if ends { 0 } else { length });
            assert!(rest.iter().all(|byte| *byte == 0), "behind the line: {rest:?}");
            (number(at), (!ends).then(|| text.to_vec()))
        };
        assert_eq!(number(124), 0, "nobody opens a pinhole now");
        Self {
            judged: number(4) != 0,
            next: [number(8), number(12)],
            steps: number(16),
            awaits: number(20),
            client: SocketAddrV4::new(address(24), port(32)),
            server: SocketAddrV4::new(address(28), port(34)),
            client_named: address(36),
            server_named: address(40),
            client_arrival: address(44),
            server_arrival: address(48),
            active_initiator: address(52),
            passive_initiator: address(56),
            active_mark: number(60),
            passive_mark: number(64),
            judged_mark: number(68),
            digits: number(72),
            shifts: (number(76) != 0).then(|| [80, 84].map(|at| (number(at), number(at + 8)))),
            hole_step: number(96),
            hole: (number(96) != 0).then(|| HoleKey::read(flow[112..].first_chunk().unwrap())),
            lifetime: u64_at(flow, 104),
            last: [line(128), line(264)],
        }
    }
}

/// A record of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub flow: u64,
    pub at: u64,
    pub step: u32,
    pub side: u32,
    pub seq: u32,
    pub ack: u32,
    pub opened: bool,
    pub ends: bool,
    pub digits: u8,
    pub consumed: u32,
    pub line: Vec<u8>,
}

impl Step {
    pub fn read(record: &[u8; STEP]) -> Self {
        let length = usize::from(u16::from_ne_bytes([record[44], record[45]]));
        let line = record[56..].split_at(length).0.to_vec();
        assert!(record[56 + length..].iter().all(|byte| *byte == 0), "{record:?}");
        Self {
            flow: u64_at(record, 0),
            at: u64_at(record, 8),
            step: u32_at(record, 16),
            side: u32_at(record, 20),
            seq: u32_at(record, 24),
            ack: u32_at(record, 28),
            opened: record[48] == 1,
            ends: record[49] == 1,
            digits: record[50],
            consumed: u32_at(record, 52),
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
