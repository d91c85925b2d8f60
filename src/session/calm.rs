//! Calm: a dialogue that is known and has nothing pending, of which lines that are harmless by their form
//! (`session::harmless`) pass unread.
//!
//! The packet selection tells such lines apart. Any other ends the calm before it is queued, and comes
//! here marked as one that did; whatever was said before it was harmless, and is passed over. Once all
//! that it began is answered, the connection is calm again.
//!
//! What was passed over may still be sent again, or may never have been sent: a number that comes too early
//! can be a stranger's, or hide what follows it. So it is remembered until its receiver has
//! acknowledged it, and what comes there must be harmless, or is read where it stands.

use serde::{Deserialize, Serialize};

use super::{Judge, Note, Phase, Renumberings, Session, Side, forwarding::Outcome, harmless};
use crate::{
    ftp::{Command, Text, Verb},
    packet::{Packet, Seq, flags},
    session::Forward,
};

/// What the selection says of a packet that it queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Woken {
    /// Its connection was not calm.
    #[default]
    Not,
    /// It ended the calm.
    Plainly,
    /// It did, and is an announcement that was asked for, or a command that does not wait for the answer
    /// to the one before.
    Marked,
}

/// From where to where.
type Range = (Seq, Seq);

/// What is done with a connection of which not all is seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Unseen(Option<Box<What>>);

/// What a connection has of which something passed unseen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct What {
    /// Of client and server: from where to where lines passed that are not known to be acknowledged.
    ranges: [Option<Range>; 2],
    /// How far the client had heard the server when it spoke last: there the answer begins.
    heard: Seq,
    /// Whether it had waited for the answers to what it said before.
    in_step: bool,
    /// Of client and server: whether lines may have passed although no mark says so, as this was not told
    /// yet what the selection was told.
    #[serde(skip)]
    expected: [bool; 2],
    /// What the kernel adds to numbers.
    renumbered: Option<Renumberings>,
}

impl Unseen {
    fn what(&mut self) -> &mut What {
        self.0.get_or_insert_default()
    }

    /// What the kernel adds to numbers.
    pub fn renumbered(&self) -> Option<&Renumberings> {
        self.0.as_ref()?.renumbered.as_ref()
    }

    /// It adds this from now on.
    pub fn set_renumbered(&mut self, renumbered: Option<Renumberings>) {
        if self.0.is_some() || renumbered.is_some() {
            self.what().renumbered = renumbered;
        }
    }
}

impl Session {
    /// Whether harmless lines may pass unread from now on.
    pub fn is_calm(&self) -> bool {
        let is_idle = |side| self.peek(side).is_idle() && self.is_right_unseen(side);
        // The selection finds the answer to a command by the number that the client had heard, and sees both
        // before the kernel changes them.
        let is_paired = !self.server.map.shifts();
        self.unread.is_none()
            && is_paired
            && !(self.unconfirmed || self.reset || self.wants_every_packet())
            && is_idle(Side::Client)
            && is_idle(Side::Server)
            && self.dialogue.is_calm(self.unseen.0.as_ref().is_some_and(|what| what.in_step))
    }

    /// The selection is told that it is calm.
    pub fn expect_unseen(&mut self) {
        self.unseen.what().expected = [true; 2];
    }

    /// What passed unread in the calm cannot be told from what passed as nobody listened.
    pub fn expect_nothing_unseen(&mut self) {
        if let Some(what) = &mut self.unseen.0 {
            what.expected = [false; 2];
        }
    }

    /// Passes over what was said in the calm before `packet`.
    pub(super) fn wake(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        woken: Woken,
        judge: &mut impl Judge,
    ) {
        let expected = match &mut self.unseen.0 {
            Some(what) => std::mem::take(&mut what.expected[from as usize]),
            None => false,
        };
        let was_calm = woken != Woken::Not;
        if !(was_calm || expected) || self.dialogue.phase() != Phase::Verified {
            return;
        }
        // Its number alone says nothing, and it says nothing else.
        if packet.has(flags::RST) {
            return;
        }
        if was_calm {
            self.unconfirmed = false;
        }
        let (seq, ack) = (packet.seq(), packet.ack());
        if packet.has(flags::ACK) {
            let stream = self.peek(from.peer());
            if ack.is_after(stream.map.deliver(stream.next)) {
                self.pass_over(from.peer(), stream.map.acknowledge(ack), judge);
            }
        }
        if seq.is_after(self.peek(from).next) {
            self.pass_over(from, seq, judge);
        }
        if !was_calm {
            return;
        }
        match from {
            Side::Client => {
                let in_step = woken == Woken::Plainly;
                self.unseen.what().in_step = in_step;
                if in_step {
                    // It has answers to all that it said, so the server has all of that.
                    let stream = &mut self.client;
                    stream.acked = stream.acked.max(stream.map.deliver(seq));
                    stream.forget_acknowledged();
                    self.forget_kept();
                    self.pass_over_answers(judge);
                }
            }
            Side::Server => {
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
        if !stream.is_idle() || !is_between_lines {
            self.lose(judge);
            return;
        }
        let from = stream.next;
        stream.pass_over_to(to);
        let range = &mut self.unseen.what().ranges[side as usize];
        *range = Some((range.map_or(from, |(start, _)| start), to));
    }

    /// What becomes of a segment of `from`, with all its bytes before what comes next, that has some of those
    /// that passed unseen: `None` if it is to be read, or sent again what was.
    pub(super) fn sent_unseen(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        judge: &mut impl Judge,
        out: &mut Vec<u8>,
    ) -> Option<Outcome> {
        let range = &mut self.unseen.0.as_mut()?.ranges[from as usize];
        let (start, end) = (*range)?;
        let (seq, payload) = (packet.seq(), packet.payload());
        let stream = match from {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        let acknowledged = stream.unacknowledged();
        if !end.is_after(acknowledged) {
            *range = None;
            return None;
        }
        let first = start.max(acknowledged);
        if !seq.is_before(end)
            || !(seq + payload.len() as u32).is_after(first)
            || payload.is_empty()
        {
            return None;
        }
        let is_harmless = match from {
            Side::Client => harmless::is_harmless_command(payload),
            Side::Server => harmless::is_harmless_reply(payload),
        };
        if is_harmless {
            return Some(self.renumbered(from, packet).into());
        }
        if !stream.map.changes_after(seq) && stream.is_idle() {
            // It was never sent before: what came too early is read again when it comes.
            stream.pass_over_to(seq);
            *range = start.is_before(seq).then_some((start, seq));
            return None;
        }
        self.lose(judge);
        let forward = self.renumbered(from, packet);
        if from == Side::Server {
            return Some(forward.into());
        }
        out.clear();
        if !cross_out(payload, judge, out) {
            return Some(Forward::Not.into());
        }
        let (seq, ack) = match forward {
            Forward::Changed { seq, ack, .. } => (seq, ack),
            _ => (packet.seq(), packet.ack()),
        };
        let (flags, urgent) = (packet.flags(), packet.urgent().unwrap_or(0));
        Some(Forward::Changed { seq, ack, payload: true, flags, urgent }.into())
    }
}

/// Writes `payload` to `out` with every line crossed out that may be an announcement, or `AUTH` where that is
/// refused. `false` if one may only begin there.
fn cross_out(payload: &[u8], judge: &impl Judge, out: &mut Vec<u8>) -> bool {
    for line in payload.split_inclusive(|byte| *byte == b'\n') {
        let text = Text::new(line);
        let refuses_auth = judge.refuses_auth();
        if !line.ends_with(b"\n") && Command::may_announce(&text, refuses_auth) {
            return false;
        }
        let verb = Command::parse(&text).map(|command| command.verb);
        let start = out.len();
        out.extend_from_slice(line);
        if matches!(verb, Some(Verb::Port | Verb::Eprt)) || refuses_auth && verb == Some(Verb::Auth)
        {
            let range = text.origin(0..text.bytes().len());
            out[start + range.start..start + range.end].fill(b'X');
        }
    }
    true
}
