//! Downtime: packets may have passed unread, because the daemon did not renew its heartbeat in time.

use crate::{
    engine::{
        Effects, Engine, EventKind, QueueMode, SessionEnd, Verdict,
        questions::effects::{Purpose, SessionRef},
    },
    packet::Packet,
    session::DropReason,
};

impl Engine {
    /// Handles downtime during a batch. If the batch changed packets of a connection that was not fully queued before,
    /// the change is undone, because other packets may have passed before the kernel set the queue mode. The session is
    /// forgotten, and the connection continues as one picked up mid-stream.
    #[cold]
    pub fn undo_changes_after_downtime(&mut self, effects: &mut Effects) {
        let mut verdicts = std::mem::take(&mut effects.verdicts);
        for released in verdicts.iter_mut().filter(|released| !released.all_were_queued) {
            let SessionRef { index, id } = released.session();
            let Some(entry) = self.sessions.table.get_session(index, id) else {
                continue;
            };
            if !entry.session.changes_packets() {
                continue;
            }
            effects.injections.retain(|injection| injection.session.id != id);
            self.sessions.counters.unread_sessions += 1;
            effects.events.push(entry.event(EventKind::StateChanged(
                "downtime: packets may have passed unread, so no pinhole is opened any more",
            )));
            effects.renew_queue_mode(index, entry, QueueMode::Selected, Purpose::Session);
            if !matches!(released.verdict, Verdict::Drop(_)) {
                self.sessions.counters.drops.count(DropReason::Stale);
                tracing::trace!("packet dropped: {}, session {id}", DropReason::Stale);
                released.verdict = Verdict::Drop(DropReason::Stale);
            }
            self.sessions.forget(index, SessionEnd::Forgotten, effects);
        }
        effects.verdicts = verdicts;
    }

    /// Records that packets of any connection may have passed unread, except connections of which all packets are
    /// queued.
    pub fn record_downtime(&mut self) {
        for index in 0..self.sessions.table.slot_count() {
            self.record_downtime_at(index);
        }
    }

    /// Records that packets of one session may have passed unread, unless all its packets are queued.
    pub(crate) fn record_session_downtime(&mut self, session: SessionRef) {
        if self.sessions.table.get_session(session.index, session.id).is_some() {
            self.record_downtime_at(session.index);
        }
    }

    fn record_downtime_at(&mut self, index: u32) {
        if let Some(entry) = self.sessions.table.get_mut(index)
            && !entry.session.needs_all_queued()
        {
            entry.forget_queue_mode();
            entry.session.record_downtime();
            self.sessions.mark_changed(index);
            self.sessions.take_back(index);
        }
    }

    /// Whether a late packet may still be decided, although others of its connection may have passed while it was
    /// queued. Only if the decision does not depend on those, or if the packet waits for a probe's answer anyway.
    /// Nothing is opened for an unknown connection, nor for one that reused a session's endpoints.
    pub(crate) fn may_decide_late(&mut self, packet: &Packet<'_>) -> bool {
        let Some(entry) = self.sessions.table.find_packet(packet) else {
            return true;
        };
        let from = entry.side_of(packet.endpoints().0);
        entry.session.needs_all_queued()
            || entry.session.awaits_probe_answer(from, packet)
            || !entry.session.is_in_window(from, packet)
            || packet.payload().is_empty() && packet.urgent().is_none()
    }
}
