//! What may have passed unseen of a connection that goes on after a restart.
//!
//! Where a calm lasted when the daemon ended, and the kernel has had a sign of life since, nothing but harmless lines can
//! have passed: all else waited. So what was known of the dialogue holds but for what such lines change, which is what is
//! pending. (A second `USER` may give up a login. The server then refuses what comes without one.) What the receiver has
//! acknowledged of the other end shows how far they went.
//!
//! An end can acknowledge what it likes, so its number is no proof that a line begins there. Proof is a copy, which is a
//! whole line, or that the segment there is the one that ended the calm: all before it passed, and no part of a harmless
//! line begins as an announcement ([`harmless`](super::harmless)). Where there is none, nothing is opened for the first line.

use super::{ASKED_AFTER, Inspection, Session, Side, is_near};
use crate::packet::{Packet, Seq, flags};

/// What may have passed since a session was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// Nothing: it goes on where it was.
    Nothing,
    /// Harmless lines of the client.
    ClientLines,
    /// Harmless lines of the server.
    ServerLines,
    /// Harmless lines of both.
    Lines,
    /// Anything, unless it is adjusted.
    Anything,
}

impl Unseen {
    /// Of what was saved.
    pub fn of_saved() -> Self {
        Self::Anything
    }

    /// Whether lines of `side` may have passed, and nothing else.
    pub fn has_lines(self, side: Side) -> bool {
        match side {
            Side::Client => matches!(self, Self::ClientLines | Self::Lines),
            Side::Server => matches!(self, Self::ServerLines | Self::Lines),
        }
    }

    /// The same, where `side` goes on as it was.
    fn but(self, side: Side) -> Self {
        match (self, side) {
            (Self::Lines, Side::Client) => Self::ServerLines,
            (Self::Lines, Side::Server) => Self::ClientLines,
            _ if self.has_lines(side) => Self::Nothing,
            _ => self,
        }
    }
}

impl Session {
    /// It was calm when it was saved, and since then nothing has passed that may not pass in a calm.
    pub fn had_calm(&mut self) {
        self.unseen = Unseen::Lines;
    }

    /// Anything may have passed unread. A client could go on with other bytes at the numbers of those that its server has, so
    /// the server is asked first what it has.
    pub fn lapse(&mut self) {
        self.unseen = Unseen::Anything;
        if self.unread().is_none() {
            self.lose_copies();
            self.client.gaps = ASKED_AFTER - 1;
        }
    }

    /// Whether harmless lines may have passed unseen, and nothing else.
    #[inline]
    pub fn has_unseen_lines(&self) -> bool {
        [Side::Client, Side::Server].iter().any(|side| self.unseen.has_lines(*side))
    }

    /// Finds out whether a connection is where it was when it was saved, and whether `packet` concerns it:
    /// another one may have begun on its endpoints. One that is adjusted waited meanwhile. Of others packets
    /// may have passed unread: where one seems to be missing, the receiver is asked at once whether it has it.
    #[cold]
    pub(super) fn confirm(&mut self, from: Side, packet: &Packet<'_>) -> bool {
        let (sent, heard) = (self.peek(from).next, self.peek(from.peer()).next);
        let (seq, ack) = (packet.seq(), packet.ack());
        if !is_near(seq, sent) || packet.has(flags::ACK) && !is_near(ack, heard) {
            return false;
        }
        if self.has_unseen_lines() {
            // Of a line that is not whole it is not known whether it is new, or has passed and is sent again.
            if seq == sent && packet.payload().ends_with(b"\n") {
                self.unseen = self.unseen.but(from);
            }
        } else if self.is_adjusted() || (seq, ack) == (sent, heard) {
            self.unseen = Unseen::Nothing;
        }
        if self.unseen != Unseen::Nothing && seq.is_after(sent) {
            self.stream(from).gaps = 1;
        }
        true
    }

    /// Lines of `from` up to `end` have passed, and of those of which no copy came nothing is known.
    pub(super) fn skip_lines(&mut self, from: Side, end: Seq, pass: &mut Inspection) {
        while self.peek(from).next.is_before(end) {
            let next = self.peek(from).next;
            let starts = self.ahead(from).iter().map(|(start, _)| *start);
            let stop = starts.filter(|start| start.is_after(next)).fold(end, Seq::min);
            self.stream(from).skip_to(stop);
            self.copies_mut().skipped_to(from, stop);
            self.dialogue.miss(from);
            self.read_ahead(from, pass);
        }
        if from == Side::Client {
            self.forget_kept();
        }
    }

    /// A line of `from` begins at `seq`, as its segment ended the calm. The server's are not waited for: what is sent again of
    /// them opens nothing. Of the client's it must be known that the server has them, lest another takes their place.
    pub(super) fn begins_line(&mut self, from: Side, seq: Seq, pass: &mut Inspection) {
        let next = self.peek(from).next;
        self.copies_mut().begins_line(from, seq, next);
        if from == Side::Server && self.unseen.has_lines(from) && is_near(seq, next) {
            self.skip_lines(from, seq, pass);
        }
    }
}
