//! Another connection on the endpoints of a session, and connections of which every packet is queued for a while.
//!
//! Only acknowledgements show two things, and they are queued for no other reason: whether a SYN-ACK on the endpoints
//! of an open connection was genuine, and whether bytes before a gap are missing. An off-path attacker can simulate
//! either with one packet. So watching ends by itself, and the queue mode returns to what the session needs.

use std::time::{Duration, Instant};

use crate::{
    engine::{
        Engine, Kernel, QueueMode, RESEND_INTERVAL, SessionEnd, Sessions,
        decision::ConnectionOf,
        table::entry::{Head, NewIncarnation},
    },
    packet::Packet,
    session::Session,
};

/// How long a connection is watched. A server that gets no answer to its SYN-ACK retransmits it after one second and
/// after three (RFC 6298), which restarts the time.
const WATCH_TIME: Duration = Duration::from_secs(5);

impl Head {
    /// Queues every packet for a while. Returns until when.
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
        kernel: &mut dyn Kernel,
    ) -> Option<u32> {
        let timestamp = self.sessions.epoch.timestamp(now);
        let (mut decider, session) = self.sessions.decider_at(now, index, kernel)?;
        let head = &mut *decider.head;
        match &mut head.extra_mut().incarnation {
            Some(known) if known.session.is_syn_ack_retransmission(syn_ack) => {
                known.last_syn_ack = timestamp;
            }
            _ => head.set_incarnation(Session::from_syn_ack(syn_ack), timestamp),
        }
        let mode =
            if session.changes_packets() { QueueMode::EveryPacket } else { QueueMode::Watch };
        if queues_all {
            // The mode was set for this connection, not for an earlier one.
            head.note_mode(mode, timestamp);
        } else if !head.is_unknown_to_conntrack(timestamp, RESEND_INTERVAL) {
            // A new connection may be translated differently. If the kernel refuses, the next SYN-ACK tries again.
            let _ = decider.set_queue_mode(mode, ConnectionOf::Endpoints);
        }
        decider.watch();
        Some(index)
    }

    /// Selects which of two connections on the same endpoints `packet` belongs to.
    #[cold]
    pub(crate) fn resolve_tuple_reuse(
        &mut self,
        now: Instant,
        index: u32,
        packet: &Packet<'_>,
        kernel: &mut dyn Kernel,
    ) -> Option<u32> {
        let entry = self.sessions.table.get_mut(index)?;
        let (client, server) = (entry.head.client(), entry.head.server());
        let is_genuine = |other: &mut NewIncarnation| {
            packet.source() == client && other.session.is_first_acknowledgement(packet)
        };
        let extra = entry.head.existing_extra_mut();
        let Some(other) = extra.and_then(|extra| extra.incarnation.take_if(is_genuine)) else {
            return Some(index);
        };
        self.sessions.forget(index, SessionEnd::Replaced);
        self.sessions.insert(now, client, server, *other.session, kernel)
    }
}

impl Sessions {
    /// Ends the watch of the session at `index` if its time is over. A later SYN-ACK or segment past a gap prolongs it.
    pub(crate) fn end_watch(&mut self, index: u32, now: Instant, kernel: &mut dyn Kernel) {
        let timestamp = self.epoch.timestamp(now);
        let Some((mut decider, session)) = self.decider_at(now, index, kernel) else { return };
        let head = &mut *decider.head;
        if head.extra().watched_until.is_none_or(|until| until > now) {
            return;
        }
        let extra = head.extra_mut();
        extra.watched_until = None;
        extra.incarnation.take_if(|other| {
            timestamp.duration_since(other.last_syn_ack) >= WATCH_TIME // it was spoofed
        });
        if extra.incarnation.is_some() {
            head.watch(now);
            return;
        }
        session.stop_probing();
        let mode = match head.queue_mode() {
            // The BPF program may already adjust it.
            _ if head.extra().fast_path.is_handed_over => return,
            _ if session.needs_all_queued() || session.needs_none_queued() => return,
            Some(QueueMode::Watch | QueueMode::EveryPacket) if session.needs_acknowledgements() => {
                QueueMode::WithAcknowledgements
            }
            Some(QueueMode::Watch | QueueMode::EveryPacket) => QueueMode::Selected,
            _ => return,
        };
        // If the kernel refuses, the connection is watched again.
        let _ = decider.set_queue_mode(mode, ConnectionOf::Endpoints);
    }
}
