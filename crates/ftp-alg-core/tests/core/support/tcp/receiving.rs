//! The receiving side of an end: what is acceptable, reassembly, acknowledgements.

use ftp_alg_core::packet::flags;

use super::super::segment::{CWR, Segment};
use super::{DELAYED_ACK, End, INVALID_RATE};

impl End {
    /// Takes what arrives, and gives what is sent for it (RFC 9293, 3.10.7.4).
    pub fn arrive(&mut self, segment: &Segment, now: u64) -> Vec<Segment> {
        let mut answers = Vec::new();
        let length = segment.payload.len() as i64 + i64::from(segment.has(flags::FIN));
        if self.is_reset {
            if segment.has(flags::ACK) && !segment.has(flags::RST) && length > 0 {
                answers.push(self.reset_for(segment));
            }
            return answers;
        }
        let offset = self.offset_in(segment.seq);
        if segment.has(flags::RST) && offset == self.rcv_next as i64 {
            self.is_reset = true;
        } else if !self.is_acceptable(segment, offset, length) {
            self.answer_invalid(length, now, &mut answers);
        } else {
            if let Some((value, _)) = segment.timestamps
                && offset <= self.last_acked as i64
            {
                self.ts_recent = value;
            }
            self.acknowledged_by(segment, offset, now, &mut answers);
            if segment.has(flags::URG) {
                let pointer = (offset + i64::from(segment.urgent)) as usize;
                if !self.urgent_seen.contains(&pointer) {
                    self.urgent_seen.push(pointer);
                }
            }
            if self.settings.ecn {
                self.owes_ece &= !segment.has(CWR);
                self.owes_ece |= segment.ecn == 3;
            }
            if length > 0 {
                self.take(segment, offset, now);
            }
            answers.extend(self.poll(now));
        }
        answers
    }

    /// What an end without a connection answers.
    fn reset_for(&self, segment: &Segment) -> Segment {
        Segment { seq: segment.ack, flags: flags::RST, ..Segment::default() }
    }

    fn is_acceptable(&self, segment: &Segment, offset: i64, length: i64) -> bool {
        let last_acked = self.last_acked as i64;
        let too_old = offset + length < last_acked || length == 0 && offset < last_acked;
        let too_new = offset > self.rcv_next as i64 + i64::from(self.settings.window);
        // RFC 7323: an old duplicate.
        let is_old = |(value, _): (u32, u32)| value.wrapping_sub(self.ts_recent).cast_signed() < 0;
        let unsent = self.offset_out(segment.ack) > self.max as i64;
        let says_other = segment.has(flags::SYN) || segment.has(flags::RST);
        let outside = too_old || too_new || unsent || segment.timestamps.is_some_and(is_old);
        segment.has(flags::ACK) && !(says_other || outside)
    }

    fn answer_invalid(&mut self, length: i64, now: u64, answers: &mut Vec<Segment>) {
        if length > 0 || self.last_invalid.is_none_or(|at| now - at >= INVALID_RATE) {
            self.last_invalid = Some(now);
            let at = self.next;
            answers.push(self.segment(at, at, now));
        }
    }

    /// Takes in payload and FIN.
    fn take(&mut self, segment: &Segment, offset: i64, now: u64) {
        let end = offset + i64::from(segment.end().wrapping_sub(segment.seq));
        if self.closed_until.is_some() && end > self.rcv_next as i64 {
            self.ack_at = Some(now); // there is no room
            return;
        }
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
