//! One control connection: stream assembly, dialogue, sequence adjustment.
//!
//! [`Session::packet`] takes each packet of the connection and says how it is to be forwarded.
//! What may be announced is not decided here but by the [`Inspection`] that is handed in. Knows nothing
//! of other sessions, of the kernel, or of time.
//!
//! A [`Session`] has two [directions](direction), a [`Dialogue`] and a [`Standing`], and only wires them: a packet's
//! acknowledgement goes to the other direction, its payload through [`segments`] and [`reading`] to the dialogue, and what
//! goes on is made by [`forwarding`]. `docs/session.md` has a picture.
//!
//! Invariants, whatever the peers send:
//! - bytes are read in the order of their numbers, each once;
//! - a segment past a gap is not forwarded, so nothing reaches a peer that was not read;
//! - a number is delivered with the same byte however often its segment is sent again.

mod adjust;
mod apart;
mod dialogue;
mod direction;
mod drops;
mod fast_path;
mod few;
mod forwarding;
pub mod harmless;
mod inspection;
mod limits;
mod lines;
mod reading;
mod reason;
mod segments;
mod side;
mod standing;
mod tls;
mod unacknowledged;
mod unanswered;
mod urgent;

use std::borrow::Cow;

pub use adjust::SequenceMap;
use apart::{Pushed, note_offer};
pub use dialogue::{Dialogue, Phase};
use direction::Direction;
pub use drops::DropReason;
use fast_path::Barrier;
use forwarding::Way;
pub use forwarding::{Acknowledgement, Forward, Outcome, Rest};
pub use inspection::{Announced, Answers, Inspection, Limit, Note, Refused, Request, Ruling};
use reading::Reading;
pub use reason::Reason;
use serde::{Deserialize, Serialize};
pub use side::Side;
use standing::{Seen, Standing};
use unacknowledged::Unacknowledged;
use urgent::Mark;

use crate::packet::{Packet, Seq, flags};

/// One control connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    client: Direction,
    server: Direction,
    /// The client's.
    unacknowledged: Unacknowledged,
    dialogue: Dialogue,
    standing: Standing,
    /// Whether one of its ends has reset it.
    is_reset: bool,
}

impl Session {
    /// A connection whose SYN-ACK is `syn_ack`: it tells both initial numbers.
    pub fn opened(syn_ack: &Packet<'_>) -> Self {
        Self::answered(syn_ack, Dialogue::default())
    }

    /// Such a connection, of which something was said before that was not read.
    pub fn opened_unread(syn_ack: &Packet<'_>) -> Self {
        Self::answered(syn_ack, Dialogue::early())
    }

    fn answered(syn_ack: &Packet<'_>, dialogue: Dialogue) -> Self {
        let mut session = Self::between(syn_ack.ack(), syn_ack.seq() + 1, dialogue);
        session.server.observe(syn_ack);
        session
    }

    /// A connection whose start was not seen, from `packet` of `side` on.
    pub fn joined(side: Side, packet: &Packet<'_>) -> Self {
        match side {
            Side::Client => Self::between(packet.seq(), packet.ack(), Dialogue::joined()),
            Side::Server => Self::between(packet.ack(), packet.seq(), Dialogue::joined()),
        }
    }

    fn between(client: Seq, server: Seq, dialogue: Dialogue) -> Self {
        Self {
            client: Direction::new(client),
            server: Direction::new(server),
            unacknowledged: Unacknowledged::new(client),
            dialogue,
            standing: Standing::Followed(Seen::All),
            is_reset: false,
        }
    }

    /// The gateway ends it: both ends are reset, and nothing of either goes on any more. What is known of it is given back,
    /// so its packets could not be put right. They are dropped as long as it is remembered, and each is answered by a reset
    /// with the number that its sender expects (RFC 9293 section 3.10.7.1).
    pub fn end(&mut self) {
        self.client.forget();
        self.server.forget();
        self.unacknowledged = Unacknowledged::new(self.client.next);
        self.dialogue = Dialogue::joined();
        self.standing = Standing::Ended;
    }

    /// Whether the gateway has ended it.
    pub fn has_ended(&self) -> bool {
        self.standing.is_ended()
    }

    /// Numbers of resets for `to`, before it is ended. What `to` expects is the first or the second, or lies between
    /// them: then it answers the second by one that tells.
    pub fn resets(&self, to: Side) -> [Seq; 2] {
        let direction = self.direction(to.peer());
        [direction.acked, direction.map.deliver(direction.next)]
    }

    /// Whether `packet` of `from` is one of this connection, not of one that began on its endpoints unseen.
    pub fn concerns(&self, from: Side, packet: &Packet<'_>) -> bool {
        !packet.has(flags::SYN) && self.direction(from).is_near(packet.seq())
    }

    /// Whether `syn_ack` is the one that this session began with, sent again.
    pub fn began_with(&self, syn_ack: &Packet<'_>) -> bool {
        (self.client.first, self.server.first) == (syn_ack.ack(), syn_ack.seq() + 1)
    }

    /// Whether `packet` is the client's acknowledgement of the SYN-ACK that this session began with, or
    /// the first that it says with it.
    pub fn is_confirmed_by(&self, packet: &Packet<'_>) -> bool {
        let first = (self.client.first, self.server.first);
        packet.has(flags::ACK) && (packet.seq(), packet.ack()) == first
    }

    /// Whether every packet of the connection must be seen: numbers differ, or bytes are held.
    #[inline]
    pub fn wants_every_packet(&self) -> bool {
        // Acknowledgements show what is missing, and how much of the unacknowledged data was received.
        let is_asked = self.client.is_asked() || self.server.is_asked();
        let is_much = self.client.fast_path().is_some_and(|fast_path| fast_path.is_much);
        is_asked || is_much || self.changes_packets()
    }

    /// Whether numbers differ from here on, or bytes are held: packets that are not seen would break the connection.
    #[inline]
    pub fn changes_packets(&self) -> bool {
        self.client.changes_packets() || self.server.changes_packets()
    }

    /// The answer of a receiver that was asked what it has is not waited for any longer. The next segment past a gap asks
    /// again.
    pub fn stop_asking(&mut self) {
        self.client.stop_asking();
        self.server.stop_asking();
    }

    /// Whether numbers or bytes of either direction are not delivered as they are sent.
    pub fn is_adjusted(&self) -> bool {
        self.client.is_adjusted() || self.server.is_adjusted()
    }

    /// Whether no packet of the connection need be seen any more.
    #[inline]
    pub fn wants_no_packet(&self) -> bool {
        self.standing.is_off() && !self.wants_every_packet()
    }

    /// Whether the connection is over: reset, or finished by both ends.
    pub fn is_over(&self) -> bool {
        self.is_cut() || (self.client.finished && self.server.finished)
    }

    /// Whether one of its ends, or the gateway, has reset it.
    fn is_cut(&self) -> bool {
        self.is_reset || self.standing.is_ended()
    }

    /// Whether it was saved, or copies were lost, and nothing has shown yet that it goes on where it was.
    pub fn is_unconfirmed(&self) -> bool {
        !self.standing.is_confirmed() || self.has_lost_copies()
    }

    /// Whether one end has said its last.
    pub fn is_half_closed(&self) -> bool {
        self.client.finished || self.server.finished
    }

    /// Whether it is encrypted, so that a login is not seen.
    pub fn is_encrypted(&self) -> bool {
        self.standing.is_encrypted()
    }

    /// What has been said.
    pub fn dialogue(&self) -> &Dialogue {
        &self.dialogue
    }

    /// One word for people.
    pub fn state(&self) -> &'static str {
        match (self.standing, self.dialogue.phase()) {
            _ if self.is_over() => "closing",
            (Standing::Off(_) | Standing::Ended, _) => "opaque",
            (Standing::Encrypted(_), _) => "encrypted",
            (_, Phase::Silent | Phase::Early | Phase::EarlyFeat) => "new",
            (_, Phase::NotFtp) => "not-ftp",
            (_, Phase::Greeted) => "greeted",
            (_, Phase::Joined | Phase::Answered) => "joined",
            (_, Phase::Lost) => "lost",
            (_, Phase::Verified) if self.dialogue.is_logged_in() => "logged-in",
            (_, Phase::Verified) => "login",
        }
    }

    /// Something of each of its cache lines: whoever reads it has them in the cache afterwards.
    pub fn touched(&self) -> u32 {
        let numbers = self.client.next.0 ^ self.server.next.0 ^ self.client.first.0;
        numbers ^ u32::from(self.dialogue.is_logged_in()) ^ self.unacknowledged.len() as u32
    }

    /// How much memory is taken by what is not acknowledged, not complete, or ahead of what precedes it; besides the
    /// session's own size.
    #[inline]
    pub fn heap(&self) -> usize {
        self.client.heap() + self.server.heap() + self.unacknowledged.heap()
    }

    /// The mapping of the direction that `side` sends.
    pub fn map(&self, side: Side) -> &SequenceMap {
        &self.direction(side).map
    }

    /// As long may a segment be that `side` is to have sent.
    pub fn longest_segment(&self, side: Side) -> usize {
        self.direction(side).longest_segment()
    }

    /// The first number of `side` that was not seen yet.
    pub fn next_of(&self, side: Side) -> Seq {
        self.direction(side).next
    }

    /// Whether what precedes `packet` of `from` may just have been overtaken by it, so that it may wait for that.
    /// Not if one before was past that gap, and did not wait. What it acknowledges must be what the other end has sent and is
    /// not known to be acknowledged: else an off-path attacker who hits the window anywhere would have bytes read when their
    /// turn comes.
    pub fn is_early(&self, from: Side, packet: &Packet<'_>) -> bool {
        let (sender, receiver) = (self.direction(from), self.direction(from.peer()));
        if !packet.seq().is_after(sender.next) {
            return false;
        }
        let says = !packet.payload().is_empty() || packet.has(flags::FIN);
        says && packet.flags() & (flags::SYN | flags::RST | flags::ACK) == flags::ACK
            && sender.is_near(packet.seq())
            && receiver.may_be_acknowledged(packet.ack())
            && !sender.has_gap()
            && self.standing.is_confirmed()
            && !(self.is_cut() || sender.finished || self.is_barred())
    }

    /// Whether harmless lines may pass at once from here on. The server has acknowledged all that the client
    /// said: what comes later at an earlier number changes nothing any more.
    pub fn is_calm(&self) -> bool {
        let is_idle = |direction: &Direction| direction.is_idle() && !direction.map.shifts();
        self.standing == Standing::Followed(Seen::All)
            && !(self.is_reset || self.wants_every_packet())
            && self.client.is_acknowledged()
            && is_idle(&self.client)
            && is_idle(&self.server)
            && !self.is_barred()
            && !self.client.is_in_marked_line()
            && !self.client.fast_path().is_some_and(|fast_path| fast_path.hurries)
            && self.dialogue.is_calm()
    }

    /// Whether nothing of the client goes on for now.
    fn is_barred(&self) -> bool {
        self.client.barrier().is_some()
    }

    /// Whether what the server has is not known, as copies were lost.
    fn has_lost_copies(&self) -> bool {
        self.client.barrier() == Some(Barrier::Unknown)
    }

    /// Copies were lost: of a connection that may have been calm is not known what its server has.
    pub fn lose_copies(&mut self) {
        self.client.fast_path_mut().lose_copies();
    }

    /// Whether `packet` of `from` waits until the server has said what it has.
    pub fn is_asking(&self, from: Side, packet: &Packet<'_>) -> bool {
        from == Side::Client
            && self.has_lost_copies()
            && !packet.payload().is_empty()
            && self.client.is_near(packet.seq())
    }

    /// It was calm when it was saved, and since then nothing has passed that may not pass in a calm.
    pub fn had_calm(&mut self) {
        self.standing.set_seen(Seen::ButLines);
    }

    /// Anything may have passed unread. A client could go on with other bytes at the numbers of those that its server has, so
    /// the server is asked first what it has.
    pub fn lapse(&mut self) {
        self.standing.set_seen(Seen::Unknown);
        if self.standing.is_followed() {
            self.lose_copies();
            self.client.ask_at_next_gap();
        }
    }

    /// Whether harmless lines may have passed unseen, and nothing else.
    #[inline]
    pub fn has_unseen_lines(&self) -> bool {
        self.standing.lacks_lines()
    }

    /// Takes a packet of `from`. A changed payload is written over `out`.
    #[inline]
    pub fn packet(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        pass: &mut Inspection,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.packet_after(false, from, packet, pass, out)
    }

    /// As [`packet`](Self::packet); if `calm`, one that ended a calm in which lines may have passed
    /// [unseen](Self::has_unseen_lines).
    pub fn packet_after(
        &mut self,
        calm: bool,
        from: Side,
        packet: &Packet<'_>,
        pass: &mut Inspection,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if packet.has(flags::SYN) {
            return Forward::Unchanged.into();
        }
        if packet.has(flags::URG) {
            return self.urgent_packet(calm, from, packet, pass, out);
        }
        self.take(calm, from, packet, pass, out)
    }

    /// As [`packet_after`](Self::packet_after), of one with the URG bit.
    #[cold]
    fn urgent_packet(
        &mut self,
        calm: bool,
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
        let mut outcome = self.take(calm, from, packet, pass, out);
        if pass.request.is_some() {
            return outcome; // its mark is noted for when it is taken up again
        }
        let is_noted = stays && from == Side::Client && self.client.mark().is_some();
        if is_noted && !(self.client.next + 1).is_after(end) {
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
        let (seq, next) = (packet.seq(), self.client.next);
        if seq.is_after(next) || self.client.is_in_marked_line() {
            return None;
        }
        let payload = self.as_read(seq, packet.payload());
        Mark::of_synch(end, next, payload.get((next - seq) as usize..)?, self.client.line())
    }

    /// As [`packet_after`](Self::packet_after), of one without the SYN bit, whose urgent pointer stays as it is.
    fn take(
        &mut self,
        calm: bool,
        from: Side,
        packet: &Packet<'_>,
        pass: &mut Inspection,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if !self.standing.is_confirmed() && !self.confirm(from, packet) {
            return Forward::Unchanged.into();
        }
        if self.is_over() && !self.direction(from).is_near(packet.seq()) {
            return Forward::Unchanged.into(); // of another connection, whose start was not seen
        }
        // What its receiver ignores, as an off-path attacker made it who cannot see the numbers, counts for
        // nothing here either.
        if packet.has(flags::RST) {
            self.is_reset |= self.direction(from).obeys_reset(packet.seq());
            return self.way(from).renumbered(packet).into();
        }
        self.observe(from, packet, pass);
        out.clear();
        let payload = packet.payload();
        let fin = packet.has(flags::FIN);
        if payload.is_empty() && !fin {
            return self.way(from).renumbered(packet).into();
        }

        let seq = packet.seq();
        if calm {
            self.reading(from, Pushed::Not, pass).begins_line(seq);
        }
        // It is not known what the server has at its numbers.
        let is_barred = from == Side::Client && self.is_barred() && !payload.is_empty();
        if is_barred || seq.is_after(self.direction(from).next) {
            return self.past_gap(from, packet).into();
        }
        let is_read = from == Side::Client && self.standing.reads(&self.client);
        let mut payload = if is_read { self.as_read(seq, payload) } else { payload.into() };
        let direction = self.direction_mut(from);
        let new = (direction.next - seq) as usize;
        let mut again = true;
        if new <= payload.len() && (new < payload.len() || (fin && !direction.finished)) {
            if direction.finished {
                return Forward::Drop(DropReason::AfterFin).into();
            }
            direction.end_gap();
            let pushed = match from {
                Side::Server if self.dialogue.is_doubted() => {
                    Pushed::of_reply(packet, &self.client, &self.server)
                }
                _ => Pushed::of(packet),
            };
            self.reading(from, pushed, pass).queued(seq, &payload, fin);
            self.see_acknowledgements();
            if pass.request.is_some() {
                return Forward::Asks.into();
            }
            let read = (self.direction(from).next - seq) as usize;
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

    /// Reads a packet of `from` that has passed as it is.
    pub fn passed(&mut self, from: Side, packet: &Packet<'_>, pass: &mut Inspection) {
        if !self.standing.is_confirmed() && !self.confirm(from, packet)
            || !self.direction(from).is_near(packet.seq())
        {
            return;
        }
        if self.direction(from).map.shifts() {
            // It passed just before it was known that numbers differ.
            return self.lose_copies();
        }
        self.observe(from, packet, pass);
        let (seq, payload) = (packet.seq(), packet.payload());
        let end = seq + payload.len() as u32;
        if from == Side::Client {
            if self.dialogue.awaits_replies() && !seq.is_before(self.client.next) {
                self.client.fast_path_mut().hurries = true;
            }
            if !matches!(self.as_read(seq, payload), Cow::Borrowed(_)) {
                self.client.fast_path_mut().bar(end);
            }
        }
        let direction = self.direction_mut(from);
        if packet.has(flags::FIN) && !direction.finished {
            direction.fast_path_mut().finishes_at(end);
        }
        if seq.is_after(direction.next) {
            let has_room = payload.is_empty() || direction.fast_path_mut().add(seq, payload);
            if !has_room && from == Side::Client {
                direction.fast_path_mut().bar(end);
            }
            return;
        }
        self.reading(from, Pushed::of(packet), pass).passed(seq, payload);
        self.see_acknowledgements();
    }

    /// Finds out whether a connection of which not all was seen goes on with `packet` of `from`.
    #[cold]
    fn confirm(&mut self, from: Side, packet: &Packet<'_>) -> bool {
        let (sender, receiver) = match from {
            Side::Client => (&mut self.client, &self.server),
            Side::Server => (&mut self.server, &self.client),
        };
        self.standing.confirm(from, packet, sender, receiver)
    }

    /// Takes note of what the header of a packet of `from` says.
    fn observe(&mut self, from: Side, packet: &Packet<'_>, pass: &mut Inspection) {
        let direction = self.direction_mut(from);
        if direction.expects(packet.seq()) {
            direction.observe(packet);
            if packet.has(flags::ACK) {
                self.acknowledged(from, packet.ack(), pass);
            }
        }
        if from == Side::Client {
            note_offer(packet, &mut self.client, &self.server, &self.dialogue);
        }
    }

    /// `by` acknowledged what the other end sent up to delivered `ack`.
    fn acknowledged(&mut self, by: Side, ack: Seq, pass: &mut Inspection) {
        let side = by.peer();
        let Some(is_received) = self.direction(side).is_received(ack) else { return };
        if by == Side::Server {
            self.client.unbar(ack);
        }
        let direction = self.direction_mut(side);
        if is_received {
            direction.acknowledged(ack);
            if by == Side::Server {
                self.client.forget_acknowledged(&mut self.unacknowledged);
            }
            return;
        }
        // The receiver has bytes that were never queued here, and so what is held back, which was sent again.
        direction.stop_holding();
        let end = direction.map.acknowledge(ack);
        let is_followed = self.standing.is_followed();
        if is_followed && self.standing.lacks_lines_of(side) {
            self.reading(side, Pushed::Not, pass).skip_lines(end);
            self.direction_mut(side).acknowledged(ack);
            return;
        }
        // The queue was full, or the daemon away. Both ends go on; what the missed bytes said is not known.
        let direction = self.direction_mut(side);
        direction.skip_to(end.max(direction.next));
        direction.acknowledged(ack);
        if !is_followed {
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
        if self.unacknowledged.is_much() || self.client.map.is_half_full() {
            self.client.fast_path_mut().is_much = true;
        }
    }

    /// A segment that starts past what was seen, or may not go on yet. Its sender will retransmit the missing bytes first,
    /// if they are missing. If it retransmits this segment, they are perhaps not: the receiver is then asked what it has.
    fn past_gap(&mut self, from: Side, packet: &Packet<'_>) -> Forward {
        let is_barred = from == Side::Client && self.is_barred();
        let direction = self.direction_mut(from);
        if !direction.is_near(packet.seq()) {
            Forward::Drop(DropReason::OutOfWindow)
        } else if direction.count_gap() {
            self.way(from).asks()
        } else if is_barred && !packet.seq().is_after(direction.next) {
            Forward::Drop(DropReason::FastPathUnacknowledged)
        } else {
            Forward::Drop(DropReason::OutOfOrder)
        }
    }

    /// `bytes` of the client at `seq`, of which those that were read before, or passed ahead, are as they were then.
    fn as_read<'a>(&self, seq: Seq, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let read = self.unacknowledged.as_read(seq, bytes);
        match (self.client.fast_path(), read) {
            (None, read) => read,
            (Some(fast_path), Cow::Borrowed(bytes)) => fast_path.with_ahead(seq, bytes),
            (Some(fast_path), Cow::Owned(bytes)) => {
                Cow::Owned(fast_path.with_ahead(seq, &bytes).into_owned())
            }
        }
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
        let has_passed = false;
        Reading {
            from,
            direction,
            other,
            unacknowledged,
            dialogue,
            standing,
            pass,
            pushed,
            has_passed,
        }
    }

    fn way(&self, from: Side) -> Way<'_> {
        Way { from, sender: self.direction(from), receiver: self.direction(from.peer()) }
    }

    fn direction(&self, side: Side) -> &Direction {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    fn direction_mut(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }
}
