//! Calm: a dialogue that is known and has nothing pending, of which lines that are harmless by their form
//! ([`harmless`](super::harmless)) pass unread.
//!
//! The packet selection tells such lines apart. Any other ends the calm before it is queued, and comes
//! here marked as one that did; whatever was said before it was harmless, and is passed over. Once all
//! that it began is answered, the connection is calm again.
//!
//! A command passes unread only if it begins where the server has acknowledged all before it, and there only
//! one ever does. So no two that overlap make a third, and what the server acknowledges was whole
//! lines. A client that does not wait for answers is not calm again: what it says is read, as before.

use serde::{Deserialize, Serialize};

use super::{Judge, Note, Phase, Session, Side, is_near};
use crate::packet::{Packet, Seq, flags};

/// What the selection says of a packet that it queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Woken {
    /// Its connection was not calm.
    #[default]
    Not,
    /// It ended the calm; of a client, it begins where the server has acknowledged all before it.
    Plainly,
    /// It ended the calm, and is the answer to a question for an announcement; of a client, it begins elsewhere.
    Marked,
}

/// What is done with a connection of which not all is seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Unseen(Option<Box<What>>);

/// What a connection has of which something passed unseen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct What {
    /// How far the client had heard the server when it spoke last: there the answer begins.
    heard: Seq,
    /// Whether it had waited for the answers to what it said before.
    in_step: bool,
    /// Whether it has once not waited.
    barred: bool,
    /// Whether much of what it said waited for its acknowledgement.
    much: bool,
    /// Whether a reset came by a number that its receiver may obey or not.
    maybe_reset: bool,
    /// Whether lines may have passed unread, as the connection was calm since this was restored.
    #[serde(skip)]
    expected: bool,
}

impl Unseen {
    fn what(&mut self) -> &mut What {
        self.0.get_or_insert_default()
    }

    /// Whether so much of the client waited for its acknowledgement that these are seen from then on.
    pub fn was_much(&self) -> bool {
        self.0.as_ref().is_some_and(|what| what.much)
    }

    /// Whether a reset came that was perhaps not obeyed; asked once.
    pub fn was_maybe_reset(&mut self) -> bool {
        self.0.as_mut().is_some_and(|what| std::mem::take(&mut what.maybe_reset))
    }

    /// So much waits.
    pub fn set_much(&mut self) {
        self.what().much = true;
    }
}

impl Session {
    /// Whether harmless lines may pass unread from a packet of `from` on.
    pub fn is_calm(&self, from: Side) -> bool {
        let is_idle = |side| self.peek(side).is_idle() && !self.peek(side).map.shifts();
        let in_step = match &self.unseen.0 {
            Some(what) if what.barred => return false,
            Some(what) => what.in_step,
            None => false,
        };
        // A reply shows where the next command begins, if it acknowledges all that was said.
        let is_heard = from == Side::Client || self.client.unacknowledged() == self.client.next;
        self.unread.is_none()
            && is_heard
            && !(self.unconfirmed || self.reset || self.wants_every_packet())
            && is_idle(Side::Client)
            && is_idle(Side::Server)
            && self.dialogue.is_calm(from == Side::Client && in_step)
    }

    /// The selection is told that it is calm.
    pub fn expect_unseen(&mut self) {
        self.unseen.what().expected = true;
    }

    /// What passed unread in the calm cannot be told from what passed as nobody listened.
    pub fn expect_nothing_unseen(&mut self) {
        if let Some(what) = &mut self.unseen.0 {
            what.expected = false;
        }
    }

    /// The client does not wait for answers, or sends again what the selection may have let pass.
    pub fn bar_calm(&mut self) {
        self.unseen.what().barred = true;
    }

    /// Whether what is acknowledged and was not read may have been harmless lines.
    pub(super) fn expects_unseen(&self) -> bool {
        let expected = self.unseen.0.as_ref().is_some_and(|what| what.expected);
        expected && self.dialogue.phase() == Phase::Verified
    }

    /// Passes over what was said in the calm before `packet`.
    pub(super) fn wake(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        woken: Woken,
        judge: &mut impl Judge,
    ) {
        if woken == Woken::Not || self.dialogue.phase() != Phase::Verified {
            return;
        }
        let seq = packet.seq();
        let heard = self.peek(from.peer());
        let heard = heard.map.deliver(heard.next);
        if !is_near(seq, self.peek(from).next)
            || packet.has(flags::ACK) && !is_near(packet.ack(), heard)
        {
            return; // a stranger's
        }
        self.unseen.what().expected = true;
        if packet.has(flags::RST) {
            // Whether its receiver obeys it is not known; if not, one of them will say something.
            if seq.is_after(self.peek(from).next) {
                self.unseen.what().maybe_reset = true;
                self.reset = true;
            }
            return;
        }
        self.unconfirmed = false;
        if packet.has(flags::ACK) {
            self.pass_over_acknowledged(from, packet.ack(), judge);
        }
        match (from, woken) {
            (Side::Client, Woken::Marked) => {
                self.bar_calm();
                // One command may wait for its answer that was not read; or this is sent again, and the server
                // is asked at once what it has.
                self.dialogue.waits();
                self.client.gaps = self.client.gaps.max(1);
            }
            (Side::Client, _) => {
                // It begins where the server has acknowledged all before it.
                if seq.is_after(self.client.next) {
                    self.pass_over(Side::Client, seq, judge);
                }
                let stream = &mut self.client;
                stream.acked = stream.acked.max(stream.map.deliver(seq));
                stream.forget_acknowledged();
                self.forget_kept();
                self.pass_over_answers(judge);
                self.unseen.what().in_step = true;
            }
            (Side::Server, _) => {
                if seq.is_after(self.server.next) {
                    if !begins_reply(packet.payload()) {
                        return; // its beginning was lost, and comes again
                    }
                    self.pass_over(Side::Server, seq, judge);
                }
                if self.unseen.0.as_ref().is_none_or(|what| what.heard != seq) {
                    self.pass_over_answers(judge);
                    self.dialogue.transfers();
                }
                if woken == Woken::Marked {
                    self.dialogue.asked();
                }
            }
        }
    }

    /// `by` acknowledges `ack`, of which the last part may be harmless lines that were not read.
    pub(super) fn pass_over_acknowledged(&mut self, by: Side, ack: Seq, judge: &mut impl Judge) {
        let stream = self.stream(by.peer());
        if ack.is_after(stream.map.deliver(stream.next)) {
            let sent = stream.map.acknowledge(ack);
            stream.acked = ack;
            stream.forget_acknowledged();
            self.pass_over(by.peer(), sent, judge);
            self.forget_kept();
        }
    }

    /// The client says something, which may be an announcement.
    pub(super) fn client_heard(&mut self, ack: Seq) {
        if self.dialogue.is_logged_in() {
            self.unseen.what().heard = self.server.map.acknowledge(ack);
        }
    }

    /// All answers that were awaited came and were harmless.
    fn pass_over_answers(&mut self, judge: &mut impl Judge) {
        if self.dialogue.pass_over_answers() {
            judge.note(Note::AnnouncementAccepted);
        }
    }

    /// What `side` said up to `to` was harmless.
    fn pass_over(&mut self, side: Side, to: Seq, judge: &mut impl Judge) {
        let is_between_lines = side == Side::Client || self.dialogue.is_between_replies();
        let stream = self.stream(side);
        if stream.is_idle() && is_between_lines {
            stream.pass_over_to(to);
        } else {
            stream.skip_to(to);
            self.lose(judge);
        }
    }
}

/// Whether a server's line begins so.
fn begins_reply(payload: &[u8]) -> bool {
    payload.is_empty()
        || payload.len() > 3
            && payload[..3].iter().all(u8::is_ascii_digit)
            && matches!(payload[3], b' ' | b'-')
}
