//! The sending side of an end: new segments, segments retransmitted, probes.

use super::super::segment::{ECE, Segment};
use super::{End, FIRST_RTO, LAST_RTO, Probe};

impl End {
    /// Asks whether the peer is alive, if nothing is under way.
    pub fn keep_alive(&mut self, now: u64) -> Option<Segment> {
        let idle = self.una == self.max && !self.is_reset;
        idle.then(|| self.acknowledged_number(now))
    }

    /// A segment whose number is acknowledged already, so that it must be answered.
    fn acknowledged_number(&mut self, now: u64) -> Segment {
        let mut segment = self.segment(self.una, self.una, now);
        segment.flags &= !ftp_alg_core::packet::flags::FIN;
        segment.seq = segment.seq.wrapping_sub(1);
        if self.settings.probe == Probe::Garbage {
            segment.payload = vec![self.rng.next() as u8];
        }
        segment
    }

    pub(super) fn retransmit_when_due(&mut self, now: u64, segments: &mut Vec<Segment>) {
        if self.rto_at.is_some_and(|at| at <= now) {
            self.timeouts += 1;
            self.rto = (self.rto * 2).min(LAST_RTO);
            self.recover = self.max;
            self.rto_at = None;
            self.send_again(now, segments);
        }
    }

    pub(super) fn send_new(&mut self, now: u64, segments: &mut Vec<Segment>) {
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
            self.count_sent(&segment);
            segments.push(segment);
            self.rto_at = self.rto_at.or(Some(now + self.rto));
        }
    }

    fn count_sent(&mut self, segment: &Segment) {
        let end = self.offset_out(segment.end()) as usize;
        self.next = self.next.max(end);
        self.max = self.max.max(end);
    }

    /// Where something waits for a closed window, it is asked about that from time to time.
    pub(super) fn probe_when_due(&mut self, now: u64, segments: &mut Vec<Segment>) {
        let waits = self.next < self.end_of_stream() && self.una == self.max;
        if !waits {
            self.probe_at = None;
        } else if self.probe_at.is_none_or(|at| at <= now) {
            if self.probe_at.is_some() {
                self.rto = (self.rto * 2).min(LAST_RTO);
                let probe = if self.settings.probe == Probe::Next {
                    let probe = self.segment(self.next, self.next + 1, now);
                    self.count_sent(&probe);
                    self.rto_at = Some(now + self.rto);
                    probe
                } else {
                    self.acknowledged_number(now)
                };
                segments.push(probe);
            }
            self.probe_at = Some(now + self.rto);
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
        self.count_sent(&segment);
        segments.push(segment);
        self.rto_at = Some(now + self.rto);
    }

    pub(super) fn acknowledged_by(
        &mut self,
        segment: &Segment,
        offset: i64,
        now: u64,
        answers: &mut Vec<Segment>,
    ) {
        let ack = self.offset_out(segment.ack);
        for (left, right) in &segment.sack {
            let (left, right) = (self.offset_out(*left), self.offset_out(*right));
            if left >= self.una as i64 && right <= self.max as i64 {
                self.sacked.push((left as usize, right as usize));
            }
        }
        if segment.has(ECE) && self.settings.ecn && ack > self.una as i64 {
            self.owes_cwr = true;
            self.congestion_heard += 1;
        }
        let new_window = usize::from(segment.window);
        let advances = ack > self.una as i64;
        if advances {
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
        // As Linux does (tcp_may_update_window): an old segment tells nothing of the window.
        let (window, from) = (self.peer_window, self.peer_window_from);
        let tells = new_window > window || new_window == 0;
        if advances || offset > from || offset == from && ack == self.una as i64 && tells {
            (self.peer_window, self.peer_window_from) = (new_window, offset);
        }
    }
}
