//! Downtime: packets may have passed unread, because the daemon did not renew its heartbeat in time.

use std::time::Instant;

use crate::{
    engine::{
        Engine, EventKind, Kernel, QueueMode, SessionEnd, Verdict, batch::SessionRef,
        decision::ConnectionOf,
    },
    packet::Packet,
    session::DropReason,
};

impl Engine {
    /// Handles downtime during a batch. If the batch changed packets of a connection that was not fully queued before,
    /// the change is undone, because other packets may have passed before the kernel set the queue mode. The session is
    /// forgotten, and the connection continues as one picked up mid-stream.
    #[cold]
    pub(crate) fn undo_changes_after_downtime(&mut self, now: Instant, kernel: &mut dyn Kernel) {
        let mut verdicts = std::mem::take(&mut self.sessions.batch.verdicts);
        let mut undone = Vec::new();
        for released in &mut verdicts {
            let session = released.session();
            if !released.all_were_queued && self.undo_changes_of(now, session, kernel) {
                undone.push(session.id);
            }
            // Later changes of a session follow from its first one.
            if undone.contains(&session.id) && !matches!(released.verdict, Verdict::Drop(_)) {
                self.sessions.counters.drops.count(DropReason::Stale);
                tracing::trace!("packet dropped: {}, session {}", DropReason::Stale, session.id);
                released.verdict = Verdict::Drop(DropReason::Stale);
            }
        }
        self.sessions.batch.verdicts = verdicts;
    }

    /// Forgets a session, if it changes packets. Returns whether it does.
    fn undo_changes_of(
        &mut self,
        now: Instant,
        session: SessionRef,
        kernel: &mut dyn Kernel,
    ) -> bool {
        let Some((mut decider, state)) = self.sessions.decider(now, session, kernel) else {
            return false;
        };
        if !state.changes_packets() {
            return false;
        }
        decider.batch.injections.retain(|injection| injection.session != session.id);
        decider.counters.unread_sessions += 1;
        decider.push_event(EventKind::Change(
            "downtime: packets may have passed unread, so no pinhole is opened any more".into(),
        ));
        // If the kernel refuses, the session's next packet is late, too.
        let _ = decider.set_queue_mode(QueueMode::Selected, ConnectionOf::Endpoints);
        self.sessions.forget(session.index, SessionEnd::Forgotten);
        true
    }

    /// Notes that packets of any connection may have passed unread, except connections of which all packets are
    /// queued.
    pub fn note_downtime(&mut self) {
        for index in 0..self.sessions.table.slot_count() {
            self.note_downtime_at(index);
        }
    }

    /// Notes that packets of one session may have passed unread, unless all its packets are queued.
    pub(crate) fn note_session_downtime(&mut self, session: SessionRef) {
        if self.sessions.table.get_session(session.index, session.id).is_some() {
            self.note_downtime_at(session.index);
        }
    }

    fn note_downtime_at(&mut self, index: u32) {
        if let Some(entry) = self.sessions.table.get_mut(index)
            && !entry.session.needs_all_queued()
        {
            entry.head.forget_queue_mode();
            entry.session.note_downtime();
            self.sessions.mark_changed(index);
            self.sessions.take_back(index);
        }
    }

    /// Whether a late packet may still be handled, although others of its connection may have passed while it was
    /// queued. Only if the decision does not depend on those, or if the packet waits for a probe's answer anyway.
    /// Nothing is opened for an unknown connection, nor for one that reused a session's endpoints.
    pub(crate) fn may_handle_late(&mut self, packet: &Packet<'_>) -> bool {
        let Some(entry) = self.sessions.table.find_packet(packet) else {
            return true;
        };
        let from = entry.head.side_of(packet.endpoints().0);
        entry.session.needs_all_queued()
            || entry.session.awaits_probe_answer(from, packet)
            || !entry.session.is_in_window(from, packet)
            || packet.payload().is_empty() && packet.urgent().is_none()
    }
}
