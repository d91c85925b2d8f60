//! Connections of which every packet is queued for a while.
//!
//! Only acknowledgements show two things, and they are queued for no other reason: whether a SYN-ACK on the endpoints
//! of an open connection was genuine, and whether bytes before a gap are missing. An off-path attacker can simulate
//! either with one packet. So watching ends by itself, and the queue mode returns to what the session needs.

use std::time::{Duration, Instant};

use crate::{
    engine::{
        Effects, Engine, Entry, QueueMode, RESEND_INTERVAL, SessionEnd, Sessions,
        questions::effects::Purpose,
    },
    packet::Packet,
    session::Session,
};

/// How long a connection is watched. A server that gets no answer to its SYN-ACK retransmits it after one second and
/// after three (RFC 6298), which restarts the time.
const WATCH_TIME: Duration = Duration::from_secs(5);

impl Entry {
    /// Has every packet queued for a while. Returns until when.
    pub(crate) fn watch(&mut self, now: Instant) -> Instant {
        *self.extra_mut().watched_until.get_or_insert(now + WATCH_TIME)
    }
}

impl Engine {
    /// Handles a SYN-ACK on the endpoints of a session: either both ends have started a new connection, or an off-path
    /// attacker has spoofed it. The client's acknowledgement decides, so it must be queued. Until then the session
    /// stays as it is.
    pub(crate) fn handle_tuple_reuse(
        &mut self,
        now: Instant,
        index: u32,
        syn_ack: &Packet<'_>,
        queues_all: bool,
        effects: &mut Effects,
    ) -> Option<u32> {
        let timestamp = self.sessions.epoch.timestamp(now);
        let entry = self.sessions.table.get_mut(index)?;
        if entry
            .incarnation()
            .is_some_and(|incarnation| incarnation.is_syn_ack_retransmission(syn_ack))
        {
            entry.refresh_incarnation(timestamp);
        } else {
            entry.set_incarnation(Session::from_syn_ack(syn_ack), timestamp);
        }
        let mode = if entry.session.changes_packets() { QueueMode::All } else { QueueMode::Watch };
        if queues_all {
            // The mode was set for this connection, not for an earlier one.
            entry.record_mode(mode, timestamp);
        } else if !entry.is_unknown_to_conntrack(timestamp, RESEND_INTERVAL) {
            // Without the old translation: a new connection may be translated differently.
            effects.renew_queue_mode(index, entry, mode, Purpose::TupleReuse);
        }
        let until = entry.watch(now);
        self.sessions.timers.add(until, index);
        Some(index)
    }

    /// Selects which of two connections on the same endpoints `packet` belongs to.
    #[cold]
    pub(crate) fn resolve_tuple_reuse(
        &mut self,
        now: Instant,
        index: u32,
        packet: &Packet<'_>,
        effects: &mut Effects,
    ) -> Option<u32> {
        let entry = self.sessions.table.get_mut(index)?;
        let (client, server) = (entry.client(), entry.server());
        let confirms = |incarnation: &Session| {
            packet.source() == client && incarnation.is_first_acknowledgement(packet)
        };
        let Some(session) = entry.take_incarnation_if(confirms) else { return Some(index) };
        self.sessions.forget(index, SessionEnd::Replaced, effects);
        self.sessions.insert(now, (client, server), session, effects)
    }
}

impl Sessions {
    /// Ends the watch of the session at `index` if its time is over. A later SYN-ACK or segment past a gap prolongs it.
    pub(crate) fn end_watch(&mut self, index: u32, now: Instant, effects: &mut Effects) {
        let timestamp = self.epoch.timestamp(now);
        let Some(entry) = self.table.get_mut(index) else { return };
        if entry.extra().watched_until.is_none_or(|until| until > now) {
            return;
        }
        entry.extra_mut().watched_until = None;
        if entry.drop_old_incarnation(timestamp, WATCH_TIME) {
            entry.watch(now);
            return;
        }
        entry.session.stop_probing();
        let mode = match entry.queue_mode() {
            // The BPF program may already adjust it.
            _ if entry.extra().fast_path.is_handed_over => return,
            _ if entry.session.needs_all_queued() || entry.session.needs_none_queued() => return,
            Some(QueueMode::Watch | QueueMode::All) if entry.session.needs_acknowledgements() => {
                QueueMode::WithAcknowledgements
            }
            Some(QueueMode::Watch | QueueMode::All) => QueueMode::Selected,
            _ => return,
        };
        effects.renew_queue_mode(index, entry, mode, Purpose::Session);
    }
}
