//! Packets that passed unread, as the daemon was away for longer than they wait.

use super::{
    Attention, Effects, Engine, Verdict, What,
    control::Entry,
    effects::{Purpose, SessionRef},
    telling::mark_afresh,
};
use crate::{packet::Packet, session::DropReason};

impl Engine {
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
            self.sessions.take_back(index);
        }
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
            || packet.payload().is_empty() && packet.urgent().is_none()
    }
}
