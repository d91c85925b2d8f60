//! What the packet selection lets pass, and is told of: harmless lines of calm connections, of which copies come here.

use std::time::Instant;

use super::{
    Attention, Effects, Engine, Verdict, What,
    connection::Connection,
    control::{Entry, Grant},
    effects::{Purpose, SessionRef},
    table::Key,
    telling::{mark_afresh, wanted},
};
use crate::{
    packet::Packet,
    session::{DropReason, Forward, Side, harmless},
};

impl Engine {
    /// Ends a calm that began after a packet of the client was queued, or while it waited: harmless lines may be passing at
    /// its numbers, and cut what the server gets of it. So it is dropped, and so are those of its batch; copies are
    /// read before the next, and what is sent again finds them read.
    #[cold]
    pub(super) fn interrupt(&mut self, now: Instant, index: u32, effects: &mut Effects) -> Verdict {
        let moment = self.sessions.epoch.moment(now);
        if let Some(Entry { control, .. }) = self.sessions.table.get_mut(index) {
            control.race(moment);
            if control.grant == Grant::None {
                mark_afresh(effects, index, control, Attention::Payload, Purpose::FastPathRace);
            } else {
                control.grant = Grant::Revoked;
            }
            control.told(Attention::Payload, moment);
            self.interrupted.push(index);
        }
        Verdict::Drop(DropReason::FastPathRace)
    }

    /// Packets may have passed unread since the batch began. What it changed so that all packets of a connection must be seen
    /// from there on is taken back: others may have passed before the kernel was told. What was said on it is given up, and it
    /// goes on as one whose start was not seen.
    #[cold]
    pub fn lapsed_meanwhile(&mut self, effects: &mut Effects) {
        let mut verdicts = std::mem::take(&mut effects.verdicts);
        for released in verdicts.iter_mut().filter(|released| !released.was_held) {
            let SessionRef { index, id } = released.session();
            let Some(Entry { session, control }) = self.sessions.table.get_of(index, id) else {
                continue;
            };
            if !session.changes_packets() {
                continue;
            }
            effects.injections.retain(|injection| injection.session.id != id);
            self.counters.lost += 1;
            effects.events.push(control.event(What::Turned(
                "packets passed by while it was decided: nothing is opened any more",
            )));
            mark_afresh(effects, index, control, Attention::Payload, Purpose::Session);
            if !matches!(released.verdict, Verdict::Drop(_)) {
                self.counters.drops.count(DropReason::Stale);
                tracing::trace!("packet dropped: {}, session {id}", DropReason::Stale);
                released.verdict = Verdict::Drop(DropReason::Stale);
            }
            self.sessions.forget(index);
        }
        effects.verdicts = verdicts;
    }

    /// From now on the packet selection takes an [`Answer`](super::Answer) with each verdict, and sends copies of what passes
    /// in the calm to [`passed`](Self::passed), or does not.
    pub fn set_selection(&mut self, answers: bool) {
        self.answers = answers;
    }

    /// Copies were lost, of any of the connections.
    pub fn lose_copies(&mut self) {
        self.counters.errors += 1;
        for Entry { session, control } in self.sessions.table.iter_mut() {
            // What the connections of before a restart are is not known here.
            if matches!(control.attention(), Some(Attention::Calm) | None) {
                session.lose_copies();
            }
        }
    }

    /// Packets of any of the connections may have passed unread for some time, but of those of which all are held.
    pub fn lapse(&mut self) {
        for index in 0..self.sessions.table.places() {
            self.lapse_at(index);
        }
    }

    /// The same of one connection.
    pub(super) fn lapse_session(&mut self, session: SessionRef) {
        if self.sessions.table.get_of(session.index, session.id).is_some() {
            self.lapse_at(session.index);
        }
    }

    fn lapse_at(&mut self, index: u32) {
        if let Some(Entry { session, control }) = self.sessions.table.get_mut(index)
            && !session.wants_every_packet()
        {
            control.forget_attention();
            session.lapse();
            self.sessions.note_change(index);
        }
    }

    /// Whether all packets of the connection that this one belongs to are held, so that none ever passes unread.
    pub fn wants_every(&mut self, bytes: &[u8]) -> bool {
        let Ok(packet) = Packet::parse(bytes) else { return false };
        self.sessions
            .table
            .of_packet(&packet)
            .is_some_and(|entry| entry.session.wants_every_packet())
    }

    /// Whether it is decided about a packet although others of its connection may have passed while it waited: it goes on as it
    /// is whatever they said, or waits until its receiver has said what it has. Nothing is opened for a connection that is not
    /// known, nor for one that took the place of one that is.
    pub(super) fn decides_late(&mut self, packet: &Packet<'_>) -> bool {
        let Some(Entry { session, control }) = self.sessions.table.of_packet(packet) else {
            return true;
        };
        let from = control.side(packet.endpoints().0);
        session.wants_every_packet()
            || session.is_asking(from, packet)
            || !session.concerns(from, packet)
            || is_plain(from, packet)
    }

    /// Reads a copy of a packet that has passed as it is, from its IP header on. To be called before the packets
    /// that were queued after it passed are decided. Whether its connection is one of this engine.
    pub fn passed(&mut self, now: Instant, bytes: &[u8], effects: &mut Effects) -> bool {
        // Conntrack has looked at its checksum, if it was there already.
        let Ok(packet) = Packet::parse(bytes) else { return false };
        let (source, destination) = packet.endpoints();
        let Some(index) = self.sessions.table.find(&Key::between(source, destination)) else {
            return false;
        };
        effects.touch(self.sessions.pinholes.places());
        let moment = self.sessions.epoch.moment(now);
        let Some(Entry { session, control }) = self.sessions.table.get_mut(index) else {
            return false;
        };
        if control.is_busy() {
            let session = SessionRef { index, id: control.id };
            self.park_copy(bytes, session);
            return true;
        }
        self.counters.copies += 1;
        control.last = moment;
        if session.has_ended() {
            return true;
        }
        let from = control.side(source);
        if control.attention().is_none() && session.has_unseen_lines() {
            control.told(Attention::Calm, moment);
        }
        let mut connection = Connection {
            now,
            moment,
            index,
            policy: self.sessions.policy.within(control.network()),
            control,
            pinholes: &mut self.sessions.pinholes,
            counters: &mut self.counters,
            effects,
            answers: self.answers,
        };
        let inspection = &mut self.inspection;
        inspection.refuses_auth = connection.policy.refuses_auth();
        inspection.answer = None;
        session.passed(from, &packet, inspection);
        for note in inspection.notes.drain(..) {
            connection.note(note);
        }
        if session.wants_every_packet() {
            let unchanged = Forward::Unchanged.into();
            if let Some(wanted) = wanted(&connection, session, &unchanged, false) {
                connection.mark(wanted);
            }
            if !session.changes_packets() {
                self.sessions.watched.add(now, index, connection.control);
            }
        }
        if session.is_over() {
            connection.close_all("the control connection ended");
        }
        self.sessions.note_change(index);
        self.sessions.weigh(&mut self.counters, index, effects);
        self.sessions.enlist(&mut self.counters, now, index, effects);
        true
    }
}

/// Whether a packet says nothing, or is a reply of one line that tells neither an endpoint nor a refusal.
fn is_plain(from: Side, packet: &Packet<'_>) -> bool {
    let said = packet.payload();
    let is_reply = from == Side::Server && harmless::is_harmless_reply(said);
    packet.urgent().is_none() && (said.is_empty() || is_reply && !said.starts_with(b"5"))
}
