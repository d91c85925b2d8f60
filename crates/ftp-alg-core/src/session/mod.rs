//! One control connection: stream assembly, dialogue, sequence adjustment.
//!
//! [`Session::packet`] takes each packet of the connection and says how it is to be forwarded.
//! What may be announced is not decided here but by the [`Inspection`] that is handed in. Knows nothing
//! of other sessions, of the kernel, or of time.
//!
//! A [`Session`] has two [directions](direction), a [`Dialogue`] and a [`Standing`]; here is what is asked of it.
//! [`passage`] wires them: a packet's acknowledgement goes to the other direction, its payload through [`segments`] and
//! [`reading`] to the dialogue, and what goes on is made by [`forwarding`]. `docs/session.md` has a picture.
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
mod few;
mod forwarding;
mod inspection;
mod limits;
mod lines;
mod passage;
mod reading;
mod reason;
mod segments;
mod sequence_space;
mod side;
mod standing;
mod tls;
mod unacknowledged;
mod unanswered;
mod urgent;

pub use adjust::SequenceMap;
pub use dialogue::{Dialogue, Phase};
use direction::Direction;
pub use drops::DropReason;
pub use forwarding::{Acknowledgement, Forward, Outcome, Rest};
pub use inspection::{
    Announced, Answered, Inspection, Known, Limit, Note, Question, Refused, Request, Ruling,
};
use inspection::{Read, Refusal, Then};
pub use reason::Reason;
use serde::{Deserialize, Serialize};
pub use side::Side;
use standing::{Seen, Standing};
use unacknowledged::Unacknowledged;

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
        session.server.space.observe(syn_ack);
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

    /// Whether both ends have said what they had to say, all of it was read, nothing of it is kept, and what comes next is
    /// a command, or the greeting.
    pub fn is_at_rest(&self) -> bool {
        let is_still = |direction: &Direction| {
            let is_ordinary = direction.is_idle() && direction.has_nothing_rare();
            is_ordinary && !direction.space.has_gap() && direction.space.map.is_shift()
        };
        self.standing == Standing::Followed(Seen::All)
            && !self.is_reset
            && self.dialogue.is_at_rest()
            && is_still(&self.client)
            && is_still(&self.server)
            && self.unacknowledged.len() == 0
    }

    /// The gateway ends it: both ends are reset, and nothing of either goes on any more. What is known of it is given back,
    /// so its packets could not be put right. They are dropped as long as it is remembered, and each is answered by a reset
    /// with the number that its sender expects (RFC 9293 section 3.10.7.1).
    pub fn end(&mut self) {
        self.client.forget();
        self.server.forget();
        self.unacknowledged = Unacknowledged::new(self.client.space.next);
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
        [direction.space.acked, direction.space.map.deliver(direction.space.next)]
    }

    /// Whether `packet` of `from` is one of this connection, not of one that began on its endpoints unseen.
    pub fn concerns(&self, from: Side, packet: &Packet<'_>) -> bool {
        !packet.has(flags::SYN) && self.direction(from).space.is_near(packet.seq())
    }

    /// Whether `syn_ack` is the one that this session began with, sent again.
    pub fn began_with(&self, syn_ack: &Packet<'_>) -> bool {
        (self.client.space.first, self.server.space.first) == (syn_ack.ack(), syn_ack.seq() + 1)
    }

    /// Whether `packet` is the client's acknowledgement of the SYN-ACK that this session began with, or
    /// the first that it says with it.
    pub fn is_confirmed_by(&self, packet: &Packet<'_>) -> bool {
        let first = (self.client.space.first, self.server.space.first);
        packet.has(flags::ACK) && (packet.seq(), packet.ack()) == first
    }

    /// Whether every packet of the connection must be seen: numbers differ, or bytes are held.
    #[inline]
    pub fn wants_every_packet(&self) -> bool {
        // Acknowledgements show what is missing, and how much of the unacknowledged data was received.
        let is_asked = self.client.space.is_asked() || self.server.space.is_asked();
        is_asked || self.client.is_much() || self.changes_packets()
    }

    /// Whether numbers differ from here on, or bytes are held: packets that are not seen would break the connection.
    #[inline]
    pub fn changes_packets(&self) -> bool {
        self.client.changes_packets() || self.server.changes_packets()
    }

    /// The answer of a receiver that was asked what it has is not waited for any longer. The next segment past a gap asks
    /// again.
    pub fn stop_asking(&mut self) {
        self.client.space.stop_asking();
        self.server.space.stop_asking();
    }

    /// Whether numbers or bytes of either direction are not delivered as they are sent.
    pub fn is_adjusted(&self) -> bool {
        self.client.space.is_adjusted() || self.server.space.is_adjusted()
    }

    /// Whether no packet of the connection need be seen any more.
    #[inline]
    pub fn wants_no_packet(&self) -> bool {
        self.standing.is_off() && !self.wants_every_packet()
    }

    /// Whether the connection is over: reset, or finished by both ends.
    pub fn is_over(&self) -> bool {
        self.is_cut() || (self.client.space.finished && self.server.space.finished)
    }

    /// Whether one of its ends, or the gateway, has reset it.
    fn is_cut(&self) -> bool {
        self.is_reset || self.standing.is_ended()
    }

    /// Whether it was saved, or packets passed by, and nothing has shown yet that it goes on where it was.
    pub fn is_unconfirmed(&self) -> bool {
        !self.standing.is_confirmed() || self.is_barred()
    }

    /// By how much the numbers of `side` are shifted, and from which sent one on, if nothing is known of earlier ones. For a
    /// session that [is at rest](Self::is_at_rest).
    pub fn shift(&self, side: Side) -> (u32, Seq) {
        let space = &self.direction(side).space;
        (space.map.deliver(space.next) - space.next, space.unacknowledged())
    }

    /// Whether one end has said its last.
    pub fn is_half_closed(&self) -> bool {
        self.client.space.finished || self.server.space.finished
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
        let numbers =
            self.client.space.next.0 ^ self.server.space.next.0 ^ self.client.space.first.0;
        numbers ^ u32::from(self.dialogue.is_logged_in()) ^ self.unacknowledged.len() as u32
    }

    /// How much memory is taken by what is not acknowledged or not complete, besides the session's own size.
    #[inline]
    pub fn heap(&self) -> usize {
        self.client.heap() + self.server.heap() + self.unacknowledged.heap()
    }

    /// The mapping of the direction that `side` sends.
    pub fn map(&self, side: Side) -> &SequenceMap {
        &self.direction(side).space.map
    }

    /// As long may a segment be that `side` is to have sent.
    pub fn longest_segment(&self, side: Side) -> usize {
        self.direction(side).space.longest_segment()
    }

    /// The first number of `side` that was not seen yet.
    pub fn next_of(&self, side: Side) -> Seq {
        self.direction(side).space.next
    }

    /// Whether what precedes `packet` of `from` may just have been overtaken by it, so that it may wait for that.
    /// Not if one before was past that gap, and did not wait. What it acknowledges must be what the other end has sent and is
    /// not known to be acknowledged: else an off-path attacker who hits the window anywhere would have bytes read when their
    /// turn comes.
    pub fn is_early(&self, from: Side, packet: &Packet<'_>) -> bool {
        let (sender, receiver) = (self.direction(from), self.direction(from.peer()));
        if !packet.seq().is_after(sender.space.next) {
            return false;
        }
        let says = !packet.payload().is_empty() || packet.has(flags::FIN);
        says && packet.flags() & (flags::SYN | flags::RST | flags::ACK) == flags::ACK
            && sender.space.is_near(packet.seq())
            && receiver.space.may_be_acknowledged(packet.ack())
            && !sender.space.has_gap()
            && self.standing.is_confirmed()
            && !(self.is_cut() || sender.space.finished || self.is_barred())
    }

    /// Whether nothing of the client goes on for now.
    fn is_barred(&self) -> bool {
        self.client.is_barred()
    }

    /// How far both directions were read.
    #[inline]
    pub fn seen(&self) -> (Seq, Seq) {
        (self.client.space.next, self.server.space.next)
    }

    /// Whether `packet` of `from` waits until the server has said what it has.
    pub fn is_asking(&self, from: Side, packet: &Packet<'_>) -> bool {
        from == Side::Client
            && self.is_barred()
            && !packet.payload().is_empty()
            && self.client.space.is_near(packet.seq())
    }

    /// Anything may have passed unread. A client could go on with other bytes at the numbers of those that its server has, so
    /// the server is asked first what it has.
    pub fn lapse(&mut self) {
        self.standing.set_seen(Seen::Unknown);
        if self.standing.is_followed() {
            self.client.bar();
            self.client.space.ask_at_next_gap();
        }
    }

    fn direction(&self, side: Side) -> &Direction {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }
}
