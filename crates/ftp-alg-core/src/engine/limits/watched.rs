//! Connections of which every packet is queued for a while.
//!
//! Only acknowledgements show two things, and they are queued for no other reason: whether a SYN-ACK on the endpoints
//! of an open connection was genuine, and whether bytes before a gap are missing. An off-path attacker can simulate
//! either with one packet. So watching ends by itself, and the queue mode returns to what the session needs.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    engine::{
        Effects, Engine, Entry, QueueMode, RESEND_INTERVAL, SessionEnd, questions::effects::Purpose,
    },
    packet::Packet,
    session::Session,
};

/// How long a connection is watched. A server that gets no answer to its SYN-ACK retransmits it after one second and
/// after three (RFC 6298), which restarts the time.
const WATCH_TIME: Duration = Duration::from_secs(5);

/// The watched connections in the order of their deadlines, each once.
#[derive(Default)]
pub(crate) struct WatchedConnections {
    deadlines: VecDeque<(Instant, u32, u64)>,
}

impl WatchedConnections {
    /// Watches the connection at `index` from `now` on, unless it is watched already.
    pub(crate) fn add(&mut self, now: Instant, index: u32, entry: &mut Entry) {
        if !entry.set_watched(true) {
            self.deadlines.push_back((now + WATCH_TIME, index, entry.id));
        }
    }

    fn next_due(&mut self, now: Instant) -> Option<(u32, u64)> {
        let is_due = self.deadlines.front().is_some_and(|(at, ..)| *at <= now);
        is_due.then(|| self.deadlines.pop_front()).flatten().map(|(_, index, id)| (index, id))
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
        self.sessions.watched.add(now, index, entry);
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

    /// Ends expired watches. A later SYN-ACK or segment past a gap prolongs them.
    pub(crate) fn expire_watches(&mut self, now: Instant, effects: &mut Effects) {
        let timestamp = self.sessions.epoch.timestamp(now);
        while let Some((index, id)) = self.sessions.watched.next_due(now) {
            let Some(entry) = self.sessions.table.get_session(index, id) else {
                continue;
            };
            entry.set_watched(false);
            if entry.drop_old_incarnation(timestamp, WATCH_TIME) {
                self.sessions.watched.add(now, index, entry);
                continue;
            }
            entry.session.stop_probing();
            let mode = match entry.queue_mode() {
                // The BPF program may already adjust it.
                _ if entry.extra().fast_path.is_handed_over => continue,
                _ if entry.session.needs_all_queued() || entry.session.needs_none_queued() => {
                    continue;
                }
                Some(QueueMode::Watch | QueueMode::All)
                    if entry.session.needs_acknowledgements() =>
                {
                    QueueMode::WithAcknowledgements
                }
                Some(QueueMode::Watch | QueueMode::All) => QueueMode::Selected,
                _ => continue,
            };
            effects.renew_queue_mode(index, entry, mode, Purpose::Session);
        }
    }
}
