//! A packet's way through its session: whether it counts, what it acknowledges, what is read of it, how it goes on.

use std::borrow::Cow;

use super::{
    DropReason, Forward, Inspection, Note, Outcome, Session, Side,
    apart::{Pushed, note_offer},
    direction::Direction,
    forwarding::Way,
    reading::Reading,
    urgent::Mark,
};
use crate::packet::{Packet, Seq, flags};

impl Session {
    /// Takes a packet of `from`. A changed payload is written over `out`.
    #[inline]
    pub fn packet(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        pass: &mut Inspection,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if packet.has(flags::SYN) {
            return Forward::Unchanged.into();
        }
        if packet.has(flags::URG) {
            return self.urgent_packet(from, packet, pass, out);
        }
        self.take(from, packet, pass, out)
    }

    /// As [`packet`](Self::packet), of one with the URG bit.
    #[cold]
    fn urgent_packet(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        pass: &mut Inspection,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let end = packet.seq() + u32::from(packet.urgent().unwrap_or(0));
        let mut stays = !self.standing.reads(self.direction(from));
        let before = self.client.mark().cloned();
        if !stays && from == Side::Client {
            stays = before.as_ref().is_some_and(|mark| mark.end() == end);
            if !stays && let Some(mark) = self.mark_of(end, packet) {
                self.client.set_mark(Some(mark));
                stays = true;
            }
        }
        let mut outcome = self.take(from, packet, pass, out);
        if pass.request.is_some() {
            return outcome; // its mark is noted for when it is taken up again
        }
        let is_noted = stays && from == Side::Client && self.client.mark().is_some();
        if is_noted && !(self.client.space.next + 1).is_after(end) {
            // The segment was not forwarded, so its mark was not either.
            self.client.set_mark(before);
            stays = false;
        }
        if !stays {
            outcome.forward = outcome.forward.without_urgent(packet);
        }
        outcome
    }

    /// The urgent pointer of the client's `packet`, which names `end`, if it is that of a Telnet Synch.
    fn mark_of(&self, end: Seq, packet: &Packet<'_>) -> Option<Mark> {
        let (seq, next) = (packet.seq(), self.client.space.next);
        if seq.is_after(next) || self.client.is_in_marked_line() {
            return None;
        }
        let payload = self.as_read(seq, packet.payload());
        Mark::of_synch(end, next, payload.get((next - seq) as usize..)?, self.client.line())
    }

    /// As [`packet`](Self::packet), of one without the SYN bit, whose urgent pointer stays as it is.
    #[inline(always)]
    fn take(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        pass: &mut Inspection,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if !self.standing.is_confirmed() && !self.confirm(from, packet) {
            return Forward::Unchanged.into();
        }
        if self.is_over() && !self.direction(from).space.is_near(packet.seq()) {
            return Forward::Unchanged.into(); // of another connection, whose start was not seen
        }
        // What its receiver ignores, as an off-path attacker made it who cannot see the numbers, counts for
        // nothing here either.
        if packet.has(flags::RST) {
            self.is_reset |= self.direction(from).space.obeys_reset(packet.seq());
            return self.way(from).renumbered(packet).into();
        }
        if pass.answer.is_none() {
            self.observe(from, packet, pass);
        }
        out.clear();
        let payload = packet.payload();
        let fin = packet.has(flags::FIN);
        if payload.is_empty() && !fin {
            return self.way(from).renumbered(packet).into();
        }

        let seq = packet.seq();
        // It is not known what the server has at its numbers.
        let is_barred = from == Side::Client && self.is_barred() && !payload.is_empty();
        if is_barred || seq.is_after(self.direction(from).space.next) {
            return self.past_gap(from, packet).into();
        }
        let is_read = from == Side::Client && self.standing.reads(&self.client);
        let mut payload = if is_read { self.as_read(seq, payload) } else { payload.into() };
        let direction = self.direction_mut(from);
        let new = (direction.space.next - seq) as usize;
        let mut again = true;
        if new <= payload.len() && (new < payload.len() || (fin && !direction.space.finished)) {
            if direction.space.finished {
                return Forward::Drop(DropReason::AfterFin).into();
            }
            direction.space.end_gap();
            let pushed = match from {
                Side::Server if self.dialogue.is_doubted() => {
                    Pushed::of_reply(packet, &self.client, &self.server)
                }
                _ => Pushed::of(packet),
            };
            self.reading(from, pushed, pass).segment(seq, &payload, fin);
            self.see_acknowledgements();
            if pass.request.is_some() {
                return Forward::Asks.into();
            }
            let read = (self.direction(from).space.next - seq) as usize;
            again = read == new;
            if read == 0 {
                return Forward::Drop(DropReason::LimitReached).into();
            }
            if read < payload.len() {
                payload = payload[..read].to_vec().into(); // the rest comes again
            }
        }
        if matches!(payload, Cow::Borrowed(_)) && !self.is_adjusted() {
            return Forward::Unchanged.into();
        }
        self.way(from).deliver(packet, payload, again, out)
    }

    /// Finds out whether a connection of which not all was seen goes on with `packet` of `from`.
    #[cold]
    fn confirm(&mut self, from: Side, packet: &Packet<'_>) -> bool {
        let (sender, receiver) = match from {
            Side::Client => (&mut self.client, &self.server),
            Side::Server => (&mut self.server, &self.client),
        };
        self.standing.confirm(packet, sender, receiver)
    }

    /// Takes note of what the header of a packet of `from` says.
    #[inline(always)]
    fn observe(&mut self, from: Side, packet: &Packet<'_>, pass: &mut Inspection) {
        let direction = self.direction_mut(from);
        if direction.space.expects(packet.seq()) {
            direction.space.observe(packet);
            if packet.has(flags::ACK) {
                self.acknowledged(from, packet.ack(), pass);
            }
        }
        if from == Side::Client && self.dialogue.is_doubted() {
            note_offer(packet, &mut self.client, &self.server, &self.dialogue);
        }
    }

    /// `by` acknowledged what the other end sent up to delivered `ack`.
    #[inline]
    fn acknowledged(&mut self, by: Side, ack: Seq, pass: &mut Inspection) {
        let side = by.peer();
        let Some(is_received) = self.direction(side).space.is_received(ack) else { return };
        if by == Side::Server {
            self.client.unbar();
        }
        if !is_received {
            return self.acknowledged_unseen(side, ack, pass);
        }
        self.direction_mut(side).acknowledged(ack);
        if by == Side::Server {
            self.client.forget_acknowledged(&mut self.unacknowledged);
        }
    }

    /// What `side` sent is acknowledged up to delivered `ack`, and not all of it was seen.
    #[cold]
    fn acknowledged_unseen(&mut self, side: Side, ack: Seq, pass: &mut Inspection) {
        let direction = self.direction_mut(side);
        // The receiver has bytes that were never queued here, and so what is held back, which was sent again.
        direction.stop_holding();
        let end = direction.space.map.acknowledge(ack);
        // The queue was full, or the daemon away. Both ends go on; what the missed bytes said is not known.
        direction.skip_to(end.max(direction.space.next));
        direction.acknowledged(ack);
        if !self.standing.is_followed() {
            self.standing.turn_off();
        }
        let phase = self.dialogue.phase();
        self.dialogue.lose();
        if phase != self.dialogue.phase() {
            pass.note(Note::Lost);
        }
    }

    /// Where there is much unacknowledged data, or many rewrites, packets that say nothing must be seen, too.
    fn see_acknowledgements(&mut self) {
        if self.unacknowledged.is_much() || self.client.space.map.is_half_full() {
            self.client.note_much();
        }
    }

    /// A segment that starts past what was seen, or may not go on yet. Its sender will retransmit the missing bytes first,
    /// if they are missing. If it retransmits this segment, they are perhaps not: the receiver is then asked what it has.
    fn past_gap(&mut self, from: Side, packet: &Packet<'_>) -> Forward {
        let is_barred = from == Side::Client && self.is_barred();
        let direction = self.direction_mut(from);
        if !direction.space.is_near(packet.seq()) {
            Forward::Drop(DropReason::OutOfWindow)
        } else if direction.space.count_gap() {
            self.way(from).asks()
        } else if is_barred && !packet.seq().is_after(direction.space.next) {
            Forward::Drop(DropReason::Unacknowledged)
        } else {
            Forward::Drop(DropReason::OutOfOrder)
        }
    }

    /// `bytes` of the client at `seq`, of which those that were read before are as they were then.
    fn as_read<'a>(&self, seq: Seq, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        self.unacknowledged.as_read(seq, bytes)
    }

    fn reading<'a>(
        &'a mut self,
        from: Side,
        pushed: Pushed,
        pass: &'a mut Inspection,
    ) -> Reading<'a> {
        let Self { client, server, unacknowledged, dialogue, standing, .. } = self;
        let (direction, other) = match from {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        Reading { from, direction, other, unacknowledged, dialogue, standing, pass, pushed }
    }

    fn way(&self, from: Side) -> Way<'_> {
        Way { from, sender: self.direction(from), receiver: self.direction(from.peer()) }
    }

    fn direction_mut(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }
}
