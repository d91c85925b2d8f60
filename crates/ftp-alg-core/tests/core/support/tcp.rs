//! One TCP end: buffers, numbers, acknowledgements, retransmission, reassembly.
//!
//! Offsets count from 0 at the first byte after the SYN; a FIN takes the offset after the last
//! byte. Times are in microseconds. The scoreboard of selective acknowledgements is never cleared,
//! so that one that claims what has not arrived shows as a connection that stands still.

mod receiving;
mod sending;

use std::collections::BTreeMap;

use ftp_alg_core::packet::flags;

use super::{
    Rng,
    segment::{CWR, ECE, Segment},
    sim::earlier,
};

/// How one end behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    pub isn: u32,
    pub mss: usize,
    pub nagle: bool,
    pub timestamps: bool,
    pub sack: bool,
    pub window: u16,
    /// The window scale in its SYN. Only whether there is one matters: windows are small enough without.
    pub window_scale: Option<u8>,
    /// Whether segments that are retransmitted have other boundaries.
    pub reslices: bool,
    /// Whether it takes part in explicit congestion notification.
    pub ecn: bool,
    /// Whether its packets carry IP options, or over IPv6 an extension header.
    pub ip_options: bool,
    pub probe: Probe,
}

/// How an end asks whether a closed window is open again; and whether its peer is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// By a number that is acknowledged already, without payload (Linux).
    Empty,
    /// By the next byte, past the window (BSD); whether the peer is alive as Linux does.
    Next,
    /// By a byte of garbage with a number that is acknowledged already (RFC 1122, 4.2.3.6).
    Garbage,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            isn: 1000,
            mss: 1448,
            nagle: true,
            timestamps: true,
            sack: true,
            window: 30000,
            window_scale: None,
            reslices: false,
            ecn: false,
            ip_options: false,
            probe: Probe::Empty,
        }
    }
}

const FIRST_RTO: u64 = 300_000;
const LAST_RTO: u64 = 3_000_000;
const DELAYED_ACK: u64 = 40_000;
/// Linux answers segments without payload outside the window at most this often
/// (`net.ipv4.tcp_invalid_ratelimit`).
const INVALID_RATE: u64 = 500_000;

/// One end of the connection.
#[derive(Debug, Default)]
pub struct End {
    pub settings: Settings,
    rng: Rng,
    /// All that was ever written, and where each write ended.
    out: Vec<u8>,
    pushes: Vec<usize>,
    fin: bool,
    una: usize,
    next: usize,
    /// The highest offset ever sent.
    max: usize,
    /// Up to where lost segments are retransmitted as acknowledgements come in.
    recover: usize,
    sacked: Vec<(usize, usize)>,
    urgent: usize,
    peer_window: usize,
    /// The number of the segment that the peer's window is known from, as an offset.
    peer_window_from: i64,
    duplicate_acks: u32,
    rto: u64,
    rto_at: Option<u64>,
    /// When the peer's closed window is probed, while nothing is under way.
    probe_at: Option<u64>,
    /// Whether the next new segment says that congestion was heard of.
    owes_cwr: bool,
    /// The peer's first number, and what arrived.
    irs: u32,
    seen: Vec<Option<u8>>,
    later: BTreeMap<usize, usize>,
    rcv_next: usize,
    last_acked: usize,
    fin_at: Option<usize>,
    read: usize,
    ack_at: Option<u64>,
    /// Until when its own window is closed.
    closed_until: Option<u64>,
    last_invalid: Option<u64>,
    ts_recent: u32,
    /// Whether acknowledgements tell of congestion.
    owes_ece: bool,
    /// Urgent pointers that arrived, as offsets.
    pub urgent_seen: Vec<usize>,
    /// How often the retransmission timer fired.
    pub timeouts: u32,
    /// Bytes that arrived again, already acknowledged, as other bytes.
    pub stale_conflicts: u32,
    /// How often the peer heard of congestion and said so.
    pub congestion_heard: u32,
    /// How many segments without payload it sent.
    bare: u32,
    pub is_reset: bool,
}

impl End {
    pub fn new(settings: Settings, peer_isn: u32, seed: u64) -> Self {
        let (rng, irs) = (Rng::new(seed), peer_isn);
        Self { settings, rng, irs, peer_window: 1000, rto: FIRST_RTO, ..Self::default() }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        assert!(!self.fin, "written after close");
        self.out.extend_from_slice(bytes);
        self.pushes.push(self.out.len());
    }

    /// Writes `bytes`, the last of which is urgent.
    pub fn write_urgent(&mut self, bytes: &[u8]) {
        self.write(bytes);
        self.urgent = self.out.len();
    }

    pub fn close(&mut self) {
        self.fin = true;
    }

    /// All that has arrived in order and was not read yet.
    pub fn read(&mut self) -> Vec<u8> {
        let end = self.received();
        let new = self.seen[self.read..end].iter().map(|b| b.unwrap()).collect();
        self.read = end;
        new
    }

    /// How many bytes have arrived in order.
    pub fn received(&self) -> usize {
        self.rcv_next - usize::from(self.peer_has_closed())
    }

    pub fn peer_has_closed(&self) -> bool {
        self.fin_at.is_some_and(|at| self.rcv_next > at)
    }

    pub fn sent(&self) -> &[u8] {
        &self.out
    }

    /// How much the peer has acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.una
    }

    /// The number of the next byte that it sends for the first time.
    pub fn next_number(&self) -> u32 {
        self.number(self.max)
    }

    /// How many segments without payload it has sent: acknowledgements.
    pub fn sent_bare(&self) -> u32 {
        self.bare
    }

    /// Whether all that was written is acknowledged.
    pub fn is_quiet(&self) -> bool {
        self.una == self.end_of_stream() && self.ack_at.is_none() || self.is_reset
    }

    fn end_of_stream(&self) -> usize {
        self.out.len() + usize::from(self.fin)
    }

    /// Whether the byte of its own `number` is not acknowledged yet.
    pub fn awaits(&self, number: u32) -> bool {
        self.offset_out(number) >= self.una as i64
    }

    /// Whether all of the peer's bytes from `left` to `right` have arrived.
    pub fn has(&self, left: u32, right: u32) -> bool {
        let (left, right) = (self.offset_in(left).max(0), self.offset_in(right));
        (left..right).all(|at| {
            let at = at as usize;
            self.fin_at == Some(at) || self.seen.get(at).is_some_and(Option::is_some)
        })
    }

    /// `segment` acknowledges and echoes nothing that was not sent.
    pub fn assert_possible(&self, segment: &Segment, now: u64) {
        let max = self.max as i64;
        if segment.has(flags::ACK) && !segment.has(flags::RST) {
            let ack = self.offset_out(segment.ack);
            assert!(ack <= max, "{ack} acknowledged, {max} sent");
        }
        for (left, right) in &segment.sack {
            let (left, right) = (self.offset_out(*left), self.offset_out(*right));
            assert!(left < right && right <= max, "SACK {left}..{right} of {max}");
        }
        if let Some((_, echo)) = segment.timestamps {
            assert!(echo <= clock(now), "an echo of a time to come");
        }
    }

    pub fn next_timer(&self) -> Option<u64> {
        if self.is_reset {
            return None;
        }
        let sends = earlier(self.rto_at, self.ack_at);
        earlier(sends, earlier(self.probe_at, self.closed_until))
    }

    /// Lets timers fire that are due, and sends what may be sent.
    pub fn poll(&mut self, now: u64) -> Vec<Segment> {
        let mut segments = Vec::new();
        if self.is_reset {
            return segments;
        }
        if self.closed_until.is_some_and(|at| at <= now) {
            self.closed_until = None;
            self.ack_at = Some(now);
        }
        self.retransmit_when_due(now, &mut segments);
        self.send_new(now, &mut segments);
        self.probe_when_due(now, &mut segments);
        if self.ack_at.is_some_and(|at| at <= now) {
            let at = self.next;
            segments.push(self.segment(at, at, now));
        }
        segments
    }

    pub fn reset(&mut self, now: u64) -> Segment {
        let mut segment = self.segment(self.next, self.next, now);
        segment.flags |= flags::RST;
        self.is_reset = true;
        segment
    }

    /// Closes the window, and says so.
    pub fn close_window(&mut self, until: u64, now: u64) -> Segment {
        self.closed_until = Some(until);
        self.segment(self.next, self.next, now)
    }

    /// The segment of the bytes from `start` to `end`, with all that every segment carries.
    fn segment(&mut self, start: usize, end: usize, now: u64) -> Segment {
        self.ack_at = None;
        self.last_acked = self.rcv_next;
        let end = end.max(start).min(self.out.len().max(start));
        let payload = if start < end { self.out[start..end].to_vec() } else { Vec::new() };
        let mut segment = Segment {
            seq: self.number(start),
            ack: self.irs.wrapping_add(1).wrapping_add(self.rcv_next as u32),
            flags: flags::ACK,
            window: if self.closed_until.is_some() { 0 } else { self.settings.window },
            timestamps: self.settings.timestamps.then_some((clock(now), self.ts_recent)),
            payload,
            ip_options: self.settings.ip_options,
            ..Segment::default()
        };
        if segment.payload.is_empty() {
            self.bare += 1;
        } else {
            segment.flags |= flags::PSH;
        }
        if self.fin && end == self.out.len() && start <= end {
            segment.flags |= flags::FIN;
        }
        if self.urgent > start && self.urgent > self.una && !segment.payload.is_empty() {
            segment.flags |= flags::URG;
            segment.urgent = (self.urgent - start).min(0xffff) as u16;
        }
        if self.settings.sack {
            let irs = self.irs.wrapping_add(1);
            let number = |offset: usize| irs.wrapping_add(offset as u32);
            segment.sack =
                self.later.iter().take(3).map(|(l, r)| (number(*l), number(*r))).collect();
        }
        if self.settings.ecn {
            // RFC 3168, 6.1.5: what is retransmitted, and what carries nothing, is not marked.
            if start == self.max && !segment.payload.is_empty() {
                segment.ecn = 2;
                segment.flags |= if std::mem::take(&mut self.owes_cwr) { CWR } else { 0 };
            }
            segment.flags |= if self.owes_ece { ECE } else { 0 };
        }
        segment
    }

    fn number(&self, offset: usize) -> u32 {
        self.settings.isn.wrapping_add(1).wrapping_add(offset as u32)
    }

    /// The offset of `number` in the peer's stream, which may be before its first byte.
    fn offset_in(&self, number: u32) -> i64 {
        let expected = self.irs.wrapping_add(1).wrapping_add(self.rcv_next as u32);
        self.rcv_next as i64 + i64::from(number.wrapping_sub(expected).cast_signed())
    }

    fn offset_out(&self, number: u32) -> i64 {
        self.una as i64 + i64::from(number.wrapping_sub(self.number(self.una)).cast_signed())
    }
}

fn clock(now: u64) -> u32 {
    (now / 1000) as u32 + 1
}
