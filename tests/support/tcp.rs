//! One TCP end: buffers, numbers, acknowledgements, retransmission, reassembly.
//!
//! Offsets count from 0 at the first byte after the SYN; a FIN takes the offset after the last
//! byte. Times are in microseconds. The scoreboard of selective acknowledgements is never cleared,
//! so that one that claims what has not arrived shows as a connection that stands still.

use std::collections::BTreeMap;

use ftp_alg::packet::flags;

use super::{Rng, segment::Segment};

/// How one end behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    pub isn: u32,
    pub mss: usize,
    pub nagle: bool,
    pub timestamps: bool,
    pub sack: bool,
    pub window: u16,
    /// Whether segments that are sent again have other boundaries.
    pub reslices: bool,
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
            reslices: false,
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
#[derive(Debug)]
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
    /// Up to where lost segments are sent again as acknowledgements come in.
    recover: usize,
    sacked: Vec<(usize, usize)>,
    urgent: usize,
    peer_window: usize,
    duplicate_acks: u32,
    rto: u64,
    rto_at: Option<u64>,
    /// The peer's first number, and what arrived.
    irs: u32,
    seen: Vec<Option<u8>>,
    later: BTreeMap<usize, usize>,
    rcv_next: usize,
    last_acked: usize,
    fin_at: Option<usize>,
    read: usize,
    ack_at: Option<u64>,
    last_invalid: Option<u64>,
    ts_recent: u32,
    /// Urgent pointers that arrived, as offsets.
    pub urgent_seen: Vec<usize>,
    /// How often the retransmission timer fired.
    pub timeouts: u32,
    /// Bytes that arrived again, already acknowledged, as other bytes.
    pub stale_conflicts: u32,
    pub is_reset: bool,
}

impl End {
    pub fn new(settings: Settings, peer_isn: u32, seed: u64) -> Self {
        Self {
            settings,
            rng: Rng::new(seed),
            out: Vec::new(),
            pushes: Vec::new(),
            fin: false,
            una: 0,
            next: 0,
            max: 0,
            recover: 0,
            sacked: Vec::new(),
            urgent: 0,
            peer_window: 1000,
            duplicate_acks: 0,
            rto: FIRST_RTO,
            rto_at: None,
            irs: peer_isn,
            seen: Vec::new(),
            later: BTreeMap::new(),
            rcv_next: 0,
            last_acked: 0,
            fin_at: None,
            read: 0,
            ack_at: None,
            last_invalid: None,
            ts_recent: 0,
            urgent_seen: Vec::new(),
            timeouts: 0,
            stale_conflicts: 0,
            is_reset: false,
        }
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

    pub fn expects(&self) -> usize {
        self.rcv_next
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

    pub fn next_timer(&self) -> Option<u64> {
        if self.is_reset {
            return None;
        }
        [self.rto_at, self.ack_at].into_iter().flatten().min()
    }

    /// Lets timers fire that are due, and sends what may be sent.
    pub fn poll(&mut self, now: u64) -> Vec<Segment> {
        let mut segments = Vec::new();
        if self.is_reset {
            return segments;
        }
        if self.rto_at.is_some_and(|at| at <= now) {
            self.timeouts += 1;
            self.rto = (self.rto * 2).min(LAST_RTO);
            self.recover = self.max;
            self.rto_at = None;
            self.send_again(now, &mut segments);
        }
        self.send_new(now, &mut segments);
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

    fn send_new(&mut self, now: u64, segments: &mut Vec<Segment>) {
        while self.next < self.end_of_stream() {
            let room = (self.una + self.peer_window).saturating_sub(self.next);
            let mut end = self.out.len().min(self.next + self.settings.mss.min(room));
            if !self.settings.nagle
                && let Some(push) = self.pushes.iter().find(|p| **p > self.next)
            {
                end = end.min(*push);
            }
            let small = end - self.next.min(end) < self.settings.mss && !self.fin;
            if self.settings.nagle && small && self.next > self.una {
                break;
            }
            if end <= self.next && !(self.next == self.out.len() && self.fin) {
                break;
            }
            let segment = self.segment(self.next, end, now);
            self.next = end + usize::from(segment.has(flags::FIN));
            self.max = self.max.max(self.next);
            segments.push(segment);
            self.rto_at = self.rto_at.or(Some(now + self.rto));
        }
    }

    fn send_again(&mut self, now: u64, segments: &mut Vec<Segment>) {
        let mut from = self.una;
        while let Some((_, end)) = self.sacked.iter().find(|(l, r)| (*l..*r).contains(&from)) {
            from = *end;
        }
        if from >= self.max {
            return;
        }
        let mut end = self.out.len().min(from + self.settings.mss);
        if !self.settings.reslices {
            let push = self.pushes.iter().find(|p| **p > from);
            end = end.min(*push.unwrap_or(&end));
        } else if end > from {
            end = from + 1 + self.rng.below(end - from);
        }
        let segment = self.segment(from, end, now);
        self.max = self.max.max(end + usize::from(segment.has(flags::FIN)));
        self.next = self.next.max(end + usize::from(segment.has(flags::FIN)));
        segments.push(segment);
        self.rto_at = Some(now + self.rto);
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
            window: self.settings.window,
            timestamps: self.settings.timestamps.then_some((clock(now), self.ts_recent)),
            payload,
            ..Segment::default()
        };
        if !segment.payload.is_empty() {
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

    pub fn arrive(&mut self, segment: &Segment, now: u64) -> Vec<Segment> {
        let mut answers = Vec::new();
        if self.is_reset {
            return answers;
        }
        let offset = self.offset_in(segment.seq);
        if segment.has(flags::RST) {
            self.is_reset = offset == self.rcv_next as i64;
            return answers;
        }
        let length = segment.payload.len() as i64 + i64::from(segment.has(flags::FIN));
        if let Some((value, echo)) = segment.timestamps {
            assert!(echo <= clock(now), "an echo of a time to come");
            if value.wrapping_sub(self.ts_recent).cast_signed() < 0 {
                self.answer_invalid(length, now, &mut answers); // RFC 7323: an old duplicate
                return answers;
            }
            if offset <= self.last_acked as i64 {
                self.ts_recent = value;
            }
        }
        if offset + length < self.last_acked as i64
            || length == 0 && offset < self.last_acked as i64
        {
            self.answer_invalid(length, now, &mut answers);
            return answers;
        }
        self.acknowledged_by(segment, now, &mut answers);
        if segment.has(flags::URG) {
            let pointer = (offset + i64::from(segment.urgent)) as usize;
            if !self.urgent_seen.contains(&pointer) {
                self.urgent_seen.push(pointer);
            }
        }
        if length > 0 {
            self.take(segment, offset, now);
        }
        answers.extend(self.poll(now));
        answers
    }

    fn answer_invalid(&mut self, length: i64, now: u64, answers: &mut Vec<Segment>) {
        if length > 0 || self.last_invalid.is_none_or(|at| now - at >= INVALID_RATE) {
            self.last_invalid = Some(now);
            let at = self.next;
            answers.push(self.segment(at, at, now));
        }
    }

    fn acknowledged_by(&mut self, segment: &Segment, now: u64, answers: &mut Vec<Segment>) {
        let ack = self.offset_out(segment.ack);
        assert!(ack <= self.max as i64, "{ack} acknowledged, {} sent", self.max);
        for (left, right) in &segment.sack {
            let (left, right) = (self.offset_out(*left), self.offset_out(*right));
            assert!(
                left < right && right <= self.max as i64,
                "SACK {left}..{right} of {}",
                self.max
            );
            if left >= self.una as i64 {
                self.sacked.push((left as usize, right as usize));
            }
        }
        let new_window = usize::from(segment.window);
        if ack > self.una as i64 {
            self.una = ack as usize;
            self.next = self.next.max(self.una);
            self.duplicate_acks = 0;
            self.rto = FIRST_RTO;
            self.rto_at = (self.una < self.max).then_some(now + self.rto);
            if self.una < self.recover {
                self.send_again(now, answers);
            }
        } else if ack == self.una as i64
            && segment.payload.is_empty()
            && self.una < self.max
            && new_window == self.peer_window
        {
            self.duplicate_acks += 1;
            if self.duplicate_acks == 3 {
                self.recover = self.max;
                self.send_again(now, answers);
            }
        }
        self.peer_window = new_window;
    }

    /// Takes in payload and FIN.
    fn take(&mut self, segment: &Segment, offset: i64, now: u64) {
        for (i, byte) in segment.payload.iter().enumerate() {
            let Ok(at) = usize::try_from(offset + i as i64) else { continue };
            if self.seen.len() <= at {
                self.seen.resize(at + 1, None);
            }
            match self.seen[at].replace(*byte) {
                Some(old) if old != *byte && at < self.rcv_next => {
                    self.seen[at] = Some(old);
                    self.stale_conflicts += 1;
                }
                Some(old) => assert_eq!(old, *byte, "byte {at} arrived as two"),
                None => {}
            }
        }
        if segment.has(flags::FIN) {
            let at = usize::try_from(offset + segment.payload.len() as i64).unwrap();
            assert!(
                self.fin_at.is_none_or(|old| old == at),
                "two FINs, {:?} and {at}",
                self.fin_at
            );
            self.fin_at = Some(at);
        }
        let in_order = offset <= self.rcv_next as i64 && self.later.is_empty();
        let before = self.rcv_next;
        while self.seen.get(self.rcv_next).is_some_and(Option::is_some) {
            self.rcv_next += 1;
        }
        if self.fin_at == Some(self.rcv_next) {
            self.rcv_next += 1;
        }
        if let Some(at) = self.fin_at {
            assert!(self.seen.len() <= at, "bytes after the FIN");
        }
        self.rebuild_later();
        let advanced = self.rcv_next - before;
        let unacknowledged = self.rcv_next - self.last_acked;
        let fin = segment.has(flags::FIN);
        let at_once = !in_order || advanced == 0 || fin || unacknowledged >= 2 * 536;
        let due = if at_once { now } else { now + DELAYED_ACK };
        self.ack_at = Some(self.ack_at.map_or(due, |at| at.min(due)));
    }

    fn rebuild_later(&mut self) {
        self.later.clear();
        let mut at = self.rcv_next;
        while at < self.seen.len() {
            if self.seen[at].is_none() {
                at += 1;
                continue;
            }
            let start = at;
            while self.seen.get(at).is_some_and(Option::is_some) {
                at += 1;
            }
            self.later.insert(start, at);
        }
    }
}

fn clock(now: u64) -> u32 {
    (now / 1000) as u32 + 1
}
