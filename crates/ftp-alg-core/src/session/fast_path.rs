//! What is known of a direction because something of it took the fast path: lines that are harmless by their form
//! ([`harmless`](super::harmless)) pass at once, and are read afterwards, from copies.
//!
//! The packet selection tells such lines apart. Any other ends the fast path before it is queued, and all copies of what
//! passed before it are read before it is. So nothing is ever unread when something is decided; and whatever pieces of
//! harmless lines a server puts together, as segments may overlap, none is an announcement. What is left to see to is
//! what the client says *between* such lines:
//! - what is queued goes on with the bytes of what passed at its numbers, read or ahead of what was read, so that each
//!   number has one byte, whichever segments reach the server;
//! - where two that passed differ at a number, nothing more of the client goes on until the server has acknowledged
//!   all of them;
//! - what comes before a line that passed keeps its length, so that this line's numbers stay right.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::few::allocated;
use crate::packet::{ReorderQueue, Seq, Waiting};

/// How many lines are kept that passed before what precedes them.
const MAX_AHEAD: usize = 64;
/// How many bytes of them.
const MAX_AHEAD_BYTES: usize = 1 << 16;

/// What is known of one direction.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FastPath {
    /// What passed before what precedes it. No two differ at a number.
    ahead: ReorderQueue<Vec<u8>, MAX_AHEAD, MAX_AHEAD_BYTES>,
    /// Where a FIN has passed.
    fin: Option<Seq>,
    barrier: Option<Barrier>,
    /// Whether the client has once not waited for an answer.
    pub hurries: bool,
    /// Whether much of what the client said waits for its acknowledgement.
    pub is_much: bool,
    /// Whether what comes next is not known to begin a line, as what precedes it was not seen.
    is_unproven: bool,
    /// Where a segment begins that ended the fast path, and so a line.
    begins: Option<Seq>,
}

/// Until when nothing of the client goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Barrier {
    /// Until the server has acknowledged this.
    To(Seq),
    /// Until the server has answered what it has; copies were lost.
    Unknown,
}

impl FastPath {
    /// Whether nothing is known.
    pub fn is_nothing(&self) -> bool {
        !(self.has_passed() || self.hurries || self.is_much || self.is_unproven)
            && self.barrier.is_none()
            && self.begins.is_none()
    }

    /// Nothing of the client goes on until the server has acknowledged `end`, too.
    pub fn bar(&mut self, end: Seq) {
        self.barrier = Some(match self.barrier {
            Some(Barrier::To(other)) => Barrier::To(other.max(end)),
            Some(Barrier::Unknown) => Barrier::Unknown,
            None => Barrier::To(end),
        });
    }

    /// Copies were lost.
    pub fn lose_copies(&mut self) {
        self.barrier = Some(Barrier::Unknown);
    }

    /// Until when nothing of the client goes on.
    pub fn barrier(&self) -> Option<Barrier> {
        self.barrier
    }

    /// The client goes on.
    pub fn unbar(&mut self) {
        self.barrier = None;
    }

    /// Whether what comes next is not known to begin a line.
    pub fn is_unproven(&self) -> bool {
        self.is_unproven
    }

    /// What preceded `next` was not seen.
    pub fn skipped_to(&mut self, next: Seq) {
        self.is_unproven = self.begins != Some(next);
    }

    /// A line begins at `seq`, where `next` is next.
    pub fn begins_line(&mut self, seq: Seq, next: Seq) {
        self.begins = seq.is_after(next).then_some(seq);
        self.is_unproven &= seq != next;
    }

    /// A line was read to its end.
    pub fn end_line(&mut self) {
        self.is_unproven = false;
    }

    /// Whether something passed before what precedes it.
    pub fn has_passed(&self) -> bool {
        !self.ahead.is_empty() || self.fin.is_some()
    }

    /// A FIN passed at `seq`.
    pub fn finishes_at(&mut self, seq: Seq) {
        self.fin = Some(seq);
    }

    /// Where a FIN has passed.
    pub fn fin(&self) -> Option<Seq> {
        self.fin
    }

    /// `payload` at `seq` has passed, and what precedes it was not seen. Whether there was room for it.
    pub fn add(&mut self, seq: Seq, payload: &[u8]) -> bool {
        // What was there before stays.
        let item = self.with_ahead(seq, payload).into_owned();
        let end = seq + item.len() as u32;
        let is_known = |other: &Waiting<_>| !seq.is_before(other.seq) && !end.is_after(other.end);
        self.ahead.iter().any(is_known) || self.ahead.insert(Waiting { flow: (), seq, end, item })
    }

    /// Takes out what passed at `next`.
    pub fn take_due(&mut self, next: Seq) -> Option<(Seq, Vec<u8>)> {
        self.ahead.take_due(next).map(|due| (due.seq, due.item))
    }

    /// Where the first that passed behind `next` starts, or `end` if that is before it.
    pub fn next_start(&self, next: Seq, end: Seq) -> Seq {
        let starts = self.ahead.iter().map(|ahead| ahead.seq);
        starts.filter(|start| start.is_after(next)).fold(end, Seq::min)
    }

    /// Whether something passed at `end` or behind it.
    pub fn overtakes(&self, end: Seq) -> bool {
        self.ahead.iter().any(|ahead| !ahead.seq.is_before(end))
    }

    /// `bytes` at `seq`, with what passed at their numbers in place of them.
    pub fn with_ahead<'a>(&self, seq: Seq, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let mut all = Cow::Borrowed(bytes);
        for Waiting { seq: start, item, .. } in self.ahead.iter() {
            let offset = start.distance_from(seq);
            let (at, skipped) = (offset.max(0) as usize, (-offset).max(0) as usize);
            let passed = item.get(skipped..).unwrap_or_default();
            let passed = &passed[..passed.len().min(all.len().saturating_sub(at))];
            if !passed.is_empty() && all[at..at + passed.len()] != *passed {
                all.to_mut()[at..at + passed.len()].copy_from_slice(passed);
            }
        }
        all
    }

    /// How much memory it takes besides its own size.
    pub fn heap(&self) -> usize {
        let lines: usize = self.ahead.iter().map(|ahead| allocated(ahead.item.capacity())).sum();
        allocated(self.ahead.capacity() * size_of::<Waiting<Vec<u8>>>()) + lines
    }
}
