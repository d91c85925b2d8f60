//! Queue mode changes and injected packets of a control connection.

use crate::{
    engine::{
        Engine, Injection, Lookup, QueueMode, RESEND_INTERVAL,
        decision::connection::Connection,
        questions::effects::{KernelRequest, SessionRef},
    },
    packet::{self, Packet},
    session::{Acknowledgement, Side},
};

/// The queue mode that the kernel must set, unless it has set the same one recently. `queues_all` says that the rules
/// queued the packet because they queue every packet of its connection. If this session did not request that mode, an
/// earlier daemon or a session that was removed did.
#[inline]
pub(crate) fn wanted_queue_mode(
    connection: &Connection<'_>,
    queues_all: bool,
) -> Option<QueueMode> {
    let (entry, timestamp) = (&*connection.entry, connection.timestamp);
    let session = &entry.session;
    let is_settled = entry.incarnation().is_none();
    // Conntrack must not check sequence numbers past a gap either: it has seen numbers that were not forwarded.
    let wanted = if session.needs_all_queued() {
        QueueMode::All
    } else if session.needs_none_queued() {
        QueueMode::None
    } else if is_settled && session.needs_acknowledgements() {
        QueueMode::WithAcknowledgements
    } else {
        let is_outdated = match entry.queue_mode() {
            Some(QueueMode::All | QueueMode::Watch | QueueMode::WithAcknowledgements) => is_settled,
            // The mode may have been set after this packet was queued.
            Some(QueueMode::Selected) => {
                queues_all && is_settled && entry.mode_set_since(timestamp) >= RESEND_INTERVAL
            }
            // A session that has just replaced another on its endpoints must be written first, because after a crash
            // the packet is decided again.
            None => queues_all && is_settled && entry.first_seen < timestamp,
            Some(QueueMode::None) => false,
        };
        is_outdated.then_some(QueueMode::Selected)?
    };
    entry.needs_mode_change(wanted, timestamp, RESEND_INTERVAL).then_some(wanted)
}

/// Injects an acknowledgement.
pub(crate) fn acknowledge(connection: &mut Connection<'_>, acknowledgement: Acknowledgement) {
    let Acknowledgement { recipient, seq, ack, window, timestamps } = acknowledgement;
    let Lookup { client, server } = connection.endpoints();
    let (source, destination) = match recipient {
        Side::Client => (server, client),
        Side::Server => (client, server),
    };
    let mut packet = Vec::new();
    packet::build_acknowledgement(source, destination, seq, ack, window, timestamps, &mut packet);
    inject(connection, recipient, packet);
}

/// Injects `segment`, the trailing part of what `from` sent, as a packet to the other end.
pub(crate) fn send_trailing_segment(connection: &mut Connection<'_>, from: Side, segment: Vec<u8>) {
    inject(connection, from.peer(), segment);
}

/// Injects a packet that has the endpoints of packets at our hooks.
fn inject(connection: &mut Connection<'_>, recipient: Side, packet: Vec<u8>) {
    let (session, Lookup { client, server }) = (connection.session_ref(), connection.endpoints());
    if connection.entry.translation().is_none() && !connection.entry.is_busy() {
        connection.effects.lookups.push(KernelRequest::new(session, connection.endpoints(), None));
    }
    let injection = Injection { session, recipient, client, server, ct_mark: 0, packet };
    connection.effects.injections.push(injection);
}

impl Engine {
    /// Gives injected packets the addresses that their recipients know, because NAT does not translate them any more,
    /// and the ct mark, by which they are routed. If conntrack does not know the connection, nothing is injected.
    pub(crate) fn finish_injections(&mut self, injections: &mut Vec<Injection>) {
        injections.retain_mut(|injection| {
            let SessionRef { index, id } = injection.session;
            let entry = self.sessions.table.get_session(index, id);
            let Some(translation) = entry.and_then(|entry| entry.translation()) else {
                return false;
            };
            injection.ct_mark = translation.ct_mark;
            let (source, destination) = translation.seen_by(injection.recipient);
            let Ok(parsed) = Packet::parse(&injection.packet) else { return false };
            if parsed.source() == source && parsed.destination() == destination {
                return true;
            }
            let mut packet = Vec::new();
            packet::build_with_endpoints(&parsed, source, destination, &mut packet);
            injection.packet = packet;
            true
        });
    }
}
