//! Verdicts on their way to the kernel: several in one send, and a run of accepts with the same packet mark in one
//! message.
//!
//! `NFQNL_MSG_VERDICT_BATCH` applies to every waiting packet up to a number, so it must not be sent while one of those
//! is undecided. [`PendingVerdicts`] knows the undecided packets. The kernel counts packets upwards and delivers them
//! in that order (`__nfqnl_enqueue_packet`, under the queue's lock), so undecided packets are a sequence of rising
//! numbers. A run is continued only by the first of them. All others, and all packets that are read later, have numbers
//! above the end of the run. A packet with an unknown number, or out of order, would break this, so runs end for good
//! then.

use std::collections::VecDeque;

use super::{
    super::{
        NetfilterError,
        netlink::{Socket, family_header, kind_of, put_message},
    },
    MAXIMUM_REPLACEMENT, QueueVerdict,
};

/// Number of bytes at which verdicts are sent.
pub(super) const FLUSH_AT: usize = 256 << 10;

/// Verdicts that were not sent yet, and packets without a verdict.
#[derive(Debug)]
pub(super) struct PendingVerdicts {
    number: u16,
    /// Packets that were read and not decided, in the order of their numbers.
    undecided: VecDeque<u32>,
    /// Whether `undecided` may be incomplete.
    may_lack_packets: bool,
    /// Number of the last packet read.
    last_id: Option<u32>,
    /// Accepted packets with the same packet mark that are not in `out` yet.
    run: Vec<u32>,
    run_mark: Option<u32>,
    /// Messages to send.
    out: Vec<u8>,
}

impl PendingVerdicts {
    pub(super) fn new(number: u16) -> Self {
        Self {
            number,
            undecided: VecDeque::new(),
            may_lack_packets: false,
            last_id: None,
            run: Vec::new(),
            run_mark: None,
            out: Vec::with_capacity(4096),
        }
    }

    /// Records a packet that was read.
    pub(super) fn record_read(&mut self, id: u32) {
        // As nfq_id_after() compares: numbers wrap.
        self.may_lack_packets |=
            self.last_id.is_some_and(|last| id.wrapping_sub(last).cast_signed() <= 0);
        self.last_id = Some(id);
        self.undecided.push_back(id);
    }

    /// Records that a packet's number could not be read. It never gets a verdict.
    pub(super) fn record_unreadable(&mut self) {
        self.may_lack_packets = true;
    }

    pub(super) fn decide(&mut self, id: u32, decision: QueueVerdict<'_>, mark: Option<u32>) {
        let is_first = self.undecided.front() == Some(&id);
        if is_first {
            self.undecided.pop_front();
            if decision == QueueVerdict::Accept {
                if mark != self.run_mark {
                    self.close_run();
                    self.run_mark = mark;
                }
                self.run.push(id);
                return;
            }
        } else if let Some(at) = self.undecided.iter().position(|undecided| *undecided == id) {
            self.undecided.remove(at);
        }
        self.close_run();
        let (verdict, payload) = match decision {
            QueueVerdict::Accept => (libc::NF_ACCEPT, None),
            QueueVerdict::Replace(payload) => (libc::NF_ACCEPT, Some(payload)),
            QueueVerdict::Drop => (libc::NF_DROP, None),
        };
        self.put(libc::NFQNL_MSG_VERDICT, verdict, id, payload, mark);
    }

    fn close_run(&mut self) {
        let mut run = std::mem::take(&mut self.run);
        match run.as_slice() {
            [_, .., last] if !self.may_lack_packets => {
                let mark = self.run_mark;
                self.put(libc::NFQNL_MSG_VERDICT_BATCH, libc::NF_ACCEPT, *last, None, mark);
            }
            each => each.iter().for_each(|id| {
                self.put(libc::NFQNL_MSG_VERDICT, libc::NF_ACCEPT, *id, None, self.run_mark);
            }),
        }
        run.clear();
        self.run = run;
    }

    fn put(
        &mut self,
        kind: libc::c_int,
        verdict: libc::c_int,
        id: u32,
        payload: Option<&[u8]>,
        mark: Option<u32>,
    ) {
        let mut header = [0; 8];
        if let Some((first, rest)) = header.split_first_chunk_mut() {
            *first = (verdict as u32).to_be_bytes();
            rest.copy_from_slice(&id.to_be_bytes());
        }
        let kind = kind_of(libc::NFNL_SUBSYS_QUEUE, kind);
        let queue = family_header(libc::AF_UNSPEC, self.number);
        put_message(&mut self.out, kind, 0, 0, &queue, |message| {
            message.put(libc::NFQA_VERDICT_HDR as u16, &header);
            if let Some(payload) = payload {
                message.put(libc::NFQA_PAYLOAD as u16, payload);
            }
            if let Some(mark) = mark {
                message.put(libc::NFQA_MARK as u16, &mark.to_be_bytes());
            }
        });
    }
}

/// Takes verdicts while the packets of the batch are still borrowed.
#[derive(Debug)]
pub struct Verdicts<'a> {
    pub(super) socket: &'a Socket,
    pub(super) pending: &'a mut PendingVerdicts,
}

impl Verdicts<'_> {
    /// Decides on a packet of this or an earlier batch, and sets its packet mark to `mark` if given. Takes effect with
    /// [`Verdicts::flush`].
    pub fn verdict(
        &mut self,
        id: u32,
        decision: QueueVerdict<'_>,
        mark: Option<u32>,
    ) -> Result<(), NetfilterError> {
        match decision {
            QueueVerdict::Replace(payload) if payload.len() > MAXIMUM_REPLACEMENT => {
                self.pending.decide(id, QueueVerdict::Drop, None);
                let length = payload.len();
                return Err(NetfilterError::Parameters(format!(
                    "a packet of {length} bytes is above what a verdict can carry, \
                     {MAXIMUM_REPLACEMENT}; it was dropped"
                )));
            }
            decision => self.pending.decide(id, decision, mark),
        }
        Ok(())
    }

    /// Whether verdicts should be flushed before more are given.
    pub fn is_full(&self) -> bool {
        self.pending.out.len() >= FLUSH_AT
    }

    /// Sends the verdicts given so far.
    pub fn flush(&mut self) -> Result<(), NetfilterError> {
        self.pending.close_run();
        let out = &mut self.pending.out;
        if out.is_empty() {
            return Ok(());
        }
        let sent = self.socket.send(out);
        out.clear();
        out.shrink_to(FLUSH_AT);
        // The packets still wait in the kernel.
        self.pending.may_lack_packets |= sent.is_err();
        let number = self.pending.number;
        sent.map_err(|e| NetfilterError::system(format!("verdicts of queue {number}"), e))
    }
}

#[cfg(test)]
#[path = "verdicts_tests.rs"]
mod tests;
