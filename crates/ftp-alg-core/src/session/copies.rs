//! Calm: a dialogue that is known, in which lines that are harmless by their form
//! ([`harmless`](super::harmless)) pass at once, and are read afterwards, from copies.
//!
//! The packet selection tells such lines apart. Any other ends the calm before it is queued, and all copies of what
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

use super::{
    ASKED_AFTER, Inspection, MAX_MISSED, MAX_UNSEEN, Session, Side, Unseen, apart::Pushed,
    few::allocated, is_near,
};
use crate::packet::{Packet, Seq, flags};

/// How many lines that passed before what precedes them are kept of a direction.
const MAX_AHEAD: usize = 64;

/// What is known of a connection because something of it passed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Copies {
    /// What passed before what precedes it, of client and server, in the order of its coming. No two differ at a
    /// number.
    ahead: [Vec<(Seq, Vec<u8>)>; 2],
    /// Where a FIN has passed, before what precedes it.
    ends: [Option<Seq>; 2],
    barrier: Option<Barrier>,
    /// Whether the client has once not waited for an answer.
    hurries: bool,
    /// Whether much of what it said waits for its acknowledgement.
    much: bool,
    /// Whether what comes next, of client and server, is not known to begin a line, as what precedes it was not seen.
    unproven: [bool; 2],
    /// Where a segment of client and server begins that ended a calm, and so a line.
    begins: [Option<Seq>; 2],
}

/// Until when nothing of the client goes on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Barrier {
    /// Until the server has acknowledged this.
    To(Seq),
    /// Until the server has answered what it has; copies were lost.
    Unknown,
}

impl Copies {
    /// Nothing of the client goes on until the server has acknowledged `end`, too.
    fn bar(&mut self, end: Seq) {
        self.barrier = Some(match self.barrier {
            Some(Barrier::To(other)) => Barrier::To(other.max(end)),
            Some(Barrier::Unknown) => Barrier::Unknown,
            None => Barrier::To(end),
        });
    }

    /// Whether what comes next of `side` is not known to begin a line.
    pub fn is_unproven(&self, side: Side) -> bool {
        self.unproven[side as usize]
    }

    /// What preceded `next` of `side` was not seen.
    pub fn skipped_to(&mut self, side: Side, next: Seq) {
        self.unproven[side as usize] = self.begins[side as usize] != Some(next);
    }

    /// A line of `side`, of which `next` is next, begins at `seq`.
    pub fn begins_line(&mut self, side: Side, seq: Seq, next: Seq) {
        self.begins[side as usize] = Some(seq);
        self.unproven[side as usize] &= seq != next;
    }

    /// A line of `side` was read to its end.
    pub fn end_line(&mut self, side: Side) {
        self.unproven[side as usize] = false;
    }

    /// Whether so much of the client waits for its acknowledgement that these are seen until it has come.
    pub fn is_much(&self) -> bool {
        self.much
    }

    /// How much memory it takes besides its own size.
    pub fn heap(&self) -> usize {
        let list = |ahead: &Vec<(Seq, Vec<u8>)>| {
            let lines: usize = ahead.iter().map(|(_, line)| allocated(line.capacity())).sum();
            allocated(ahead.capacity() * size_of::<(Seq, Vec<u8>)>()) + lines
        };
        self.ahead.iter().map(list).sum()
    }

    /// All of the client is acknowledged.
    pub(super) fn is_less(&mut self) {
        self.much = false;
    }
}

impl Session {
    /// Whether harmless lines may pass at once from here on. The server has acknowledged all that the client
    /// said: what comes later at an earlier number changes nothing any more.
    pub fn is_calm(&self) -> bool {
        let is_idle = |side| self.peek(side).is_idle() && !self.peek(side).map.shifts();
        self.unread().is_none()
            && self.unseen == Unseen::Nothing
            && !(self.cut.is_cut() || self.wants_every_packet())
            && self.client.unacknowledged() == self.client.next
            && is_idle(Side::Client)
            && is_idle(Side::Server)
            && !self.is_barred()
            && !self.is_in_marked_line()
            && !self.copies().is_some_and(|copies| copies.hurries)
            && self.dialogue.is_calm()
    }

    /// Whether nothing of the client goes on for now.
    pub(super) fn is_barred(&self) -> bool {
        self.copies().is_some_and(|copies| copies.barrier.is_some())
    }

    /// Whether what the server has is not known, as copies were lost.
    pub(super) fn has_lost_copies(&self) -> bool {
        self.copies().is_some_and(|copies| matches!(copies.barrier, Some(Barrier::Unknown)))
    }

    /// Whether `packet` of `from` waits until the server has said what it has.
    pub fn is_asking(&self, from: Side, packet: &Packet<'_>) -> bool {
        from == Side::Client
            && self.has_lost_copies()
            && !packet.payload().is_empty()
            && is_near(packet.seq(), self.client.next)
    }

    pub(super) fn copies(&self) -> Option<&Copies> {
        self.seldom.as_ref().map(|seldom| &seldom.copies)
    }

    pub(super) fn copies_mut(&mut self) -> &mut Copies {
        &mut self.seldom_mut().copies
    }

    /// What passed of `side` before what precedes it.
    #[inline]
    pub(super) fn ahead(&self, side: Side) -> &[(Seq, Vec<u8>)] {
        self.copies().map_or(&[], |copies| &copies.ahead[side as usize])
    }

    /// Copies were lost: of a connection that may have been calm is not known what its server has.
    pub fn lose_copies(&mut self) {
        self.copies_mut().barrier = Some(Barrier::Unknown);
    }

    /// Reads a packet of `from` that has passed as it is.
    pub fn passed(&mut self, from: Side, packet: &Packet<'_>, pass: &mut Inspection) {
        if self.unseen != Unseen::Nothing && !self.confirm(from, packet)
            || !is_near(packet.seq(), self.peek(from).next)
        {
            return;
        }
        if self.peek(from).map.shifts() {
            // It passed just before it was known that numbers differ.
            return self.lose_copies();
        }
        if self.peek(from).expects(packet.seq(), MAX_MISSED) {
            self.stream(from).observe(packet);
            if packet.has(flags::ACK) {
                self.acknowledged(from, packet.ack(), pass);
            }
        }
        let (seq, payload) = (packet.seq(), packet.payload());
        self.offers(from, packet);
        if from == Side::Client {
            if self.dialogue.awaits_replies() && !seq.is_before(self.client.next) {
                self.copies_mut().hurries = true;
            }
            if !matches!(self.as_read(seq, payload), Cow::Borrowed(_)) {
                self.copies_mut().bar(seq + payload.len() as u32);
            }
        }
        if packet.has(flags::FIN) && !self.peek(from).finished {
            self.copies_mut().ends[from as usize] = Some(seq + payload.len() as u32);
        }
        if seq.is_after(self.peek(from).next) {
            return self.is_ahead(from, seq, payload);
        }
        self.pushed = Pushed::of(packet);
        self.read_passed(from, seq, payload, pass);
        self.read_ahead(from, pass);
        self.see_acknowledgements();
    }

    /// Where much of the client, or many rewrites, wait for acknowledgement, packets that say nothing must be seen, too.
    pub(super) fn see_acknowledgements(&mut self) {
        if self.kept.len() > MAX_UNSEEN || self.client.map.is_half_full() {
            self.copies_mut().much = true;
        }
    }

    /// Reads what is new of `payload` at `seq`, which was queued and has what passed ahead in it, as far as limits allow;
    /// a FIN follows it if `fin`. What passed is read as whole as it passed.
    pub(super) fn read_queued(
        &mut self,
        from: Side,
        seq: Seq,
        payload: &[u8],
        fin: bool,
        pass: &mut Inspection,
    ) {
        let (next, end) = (self.peek(from).next, seq + payload.len() as u32);
        if self.seldom.is_some() {
            self.read_between(from, seq, payload, fin, pass);
        } else if next.is_before(end) {
            self.read_new(from, next, &payload[(next - seq) as usize..], fin, pass);
        }
        if fin && self.peek(from).next == end {
            self.finish(from, end);
        }
    }

    /// As [`read_queued`](Self::read_queued), where something passed ahead.
    #[cold]
    fn read_between(
        &mut self,
        from: Side,
        seq: Seq,
        payload: &[u8],
        fin: bool,
        pass: &mut Inspection,
    ) {
        let end = seq + payload.len() as u32;
        self.read_ahead(from, pass);
        while self.peek(from).next.is_before(end) {
            let next = self.peek(from).next;
            let starts = self.ahead(from).iter().map(|(start, _)| *start);
            let stop = starts.fold(end, Seq::min);
            let new = &payload[(next - seq) as usize..(stop - seq) as usize];
            self.read_new(from, next, new, fin && stop == end, pass);
            if self.peek(from).next.is_before(stop) {
                return; // the rest waits
            }
            self.read_ahead(from, pass);
        }
    }

    /// Reads what is new of `payload` at `seq`, which has passed.
    fn read_passed(&mut self, from: Side, seq: Seq, payload: &[u8], pass: &mut Inspection) {
        let new = (self.peek(from).next - seq) as usize;
        let Some(payload) = payload.get(new..).filter(|new| !new.is_empty()) else { return };
        self.reads_passed = true;
        self.read_new(from, seq + new as u32, payload, false, pass);
        self.reads_passed = false;
        self.stream(from).gaps = 0;
    }

    /// Reads `new`, which is next and starts at `seq`; a FIN follows it if `fin`. Line by line, and only up to the one
    /// for which there is no room, or that asks: that waits, with what follows it.
    fn read_new(
        &mut self,
        from: Side,
        mut seq: Seq,
        mut new: &[u8],
        fin: bool,
        pass: &mut Inspection,
    ) {
        while !new.is_empty() {
            let is_text = self.is_readable(from);
            let end = if is_text { memchr::memchr(b'\n', new) } else { None };
            let (line, rest) = new.split_at(end.map_or(new.len(), |end| end + 1));
            let mut keeps = from == Side::Client && is_text;
            match self.limit(from, line.len()) {
                // It has passed, and is not compared with what is sent again.
                Some(_) if self.reads_passed => {
                    self.copies_mut().bar(seq + line.len() as u32);
                    keeps = false;
                }
                Some(limit) => return pass.limit(limit),
                None => {}
            }
            let read = if is_text {
                self.read_line(from, seq, line, (rest.is_empty(), fin && rest.is_empty()), pass);
                if pass.request.is_some() {
                    return;
                }
                line.len()
            } else {
                self.text_start(from, seq, new, pass).unwrap_or(new.len())
            };
            if keeps {
                self.keep(seq, line);
            }
            (seq, new) = (seq + read as u32, &new[read..]);
            self.stream(from).next = seq;
        }
    }

    /// `payload` at `seq` has passed, and what precedes it was not seen.
    fn is_ahead(&mut self, from: Side, seq: Seq, payload: &[u8]) {
        if payload.is_empty() {
            return;
        }
        // What was there before stays.
        let payload = self.with_ahead(from, seq, payload).into_owned();
        let end = seq + payload.len() as u32;
        let ahead = &mut self.copies_mut().ahead[from as usize];
        let is_known = ahead.iter().any(|(start, bytes)| {
            !seq.is_before(*start) && !end.is_after(*start + bytes.len() as u32)
        });
        if is_known {
        } else if ahead.len() < MAX_AHEAD {
            ahead.push((seq, payload));
        } else if from == Side::Client {
            self.copies_mut().bar(end);
        }
    }

    /// `bytes` of `from` at `seq`, with what passed ahead at their numbers in place of them.
    pub(super) fn with_ahead<'a>(&self, from: Side, seq: Seq, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let mut all = Cow::Borrowed(bytes);
        for (start, passed) in self.ahead(from) {
            let offset = start.distance_from(seq);
            let (at, skipped) = (offset.max(0) as usize, (-offset).max(0) as usize);
            let passed = passed.get(skipped..).unwrap_or_default();
            let passed = &passed[..passed.len().min(all.len().saturating_sub(at))];
            if !passed.is_empty() && all[at..at + passed.len()] != *passed {
                all.to_mut()[at..at + passed.len()].copy_from_slice(passed);
            }
        }
        all
    }

    /// Whether what ends at `end` of `from` cannot be changed any more, as it has passed or something behind it has.
    pub(super) fn is_overtaken(&self, from: Side, end: Seq) -> bool {
        self.reads_passed || self.ahead(from).iter().any(|(start, _)| !start.is_before(end))
    }

    /// What `from` says was read up to a line that had passed before, or to the FIN.
    pub(super) fn read_ahead(&mut self, from: Side, pass: &mut Inspection) {
        loop {
            let next = self.peek(from).next;
            let mut starts = self.ahead(from).iter().map(|(start, _)| *start);
            let Some(at) = starts.position(|start| !start.is_after(next)) else { break };
            let (seq, payload) = self.copies_mut().ahead[from as usize].remove(at);
            self.pushed = Pushed::Not; // that of another packet
            self.read_passed(from, seq, &payload, pass);
        }
        self.finish_passed(from);
    }

    /// All of `from` was read up to its FIN, if that has passed.
    fn finish_passed(&mut self, from: Side) {
        let next = self.peek(from).next;
        if self.copies().is_some_and(|copies| copies.ends[from as usize] == Some(next)) {
            self.finish(from, next);
        }
    }

    fn finish(&mut self, from: Side, end: Seq) {
        let stream = self.stream(from);
        stream.finish(end);
        stream.next = end + 1;
    }

    /// The server has said that it has what comes before `ack`.
    pub(super) fn unbar(&mut self, ack: Seq) {
        let has_it = match self.copies().and_then(|copies| copies.barrier) {
            None => return,
            Some(Barrier::To(end)) => !ack.is_before(self.client.map.deliver(end)),
            Some(Barrier::Unknown) => self.client.gaps >= ASKED_AFTER,
        };
        if has_it {
            self.copies_mut().barrier = None;
        }
    }
}
