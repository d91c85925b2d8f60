//! Parked packets: they wait behind an earlier packet of their session that waits for the kernel, in order of arrival.

use std::time::Instant;

use crate::{
    engine::{
        DropReason, Effects, Engine, PacketMeta, QueuedPacket, SessionRef, Token, Verdict,
        packets::PacketContext,
    },
    session::AnsweredLine,
};

/// Limit of parked packets. With `fanout = "cpu"`, other workers continue to read while one waits.
pub(crate) const MAX_PARKED: usize = 1024;
/// Limit of their bytes.
const MAX_BYTES: usize = 4 << 20;

/// A packet that waits.
pub(crate) struct ParkedPacket {
    session: SessionRef,
    bytes: Vec<u8>,
    token: Token,
    meta: PacketMeta,
}

impl Engine {
    /// Parks a packet behind earlier ones of its session, if there is room.
    #[cold]
    pub(crate) fn park(
        &mut self,
        packet: &QueuedPacket<'_>,
        session: SessionRef,
        effects: &mut Effects,
    ) {
        let QueuedPacket { token, bytes, meta } = *packet;
        if !self.has_room_to_park(bytes) {
            let verdict = Verdict::Drop(DropReason::Overflow);
            return self.release(packet, verdict, PacketContext::UNKNOWN, effects);
        }
        self.parked_packets.push(ParkedPacket { session, bytes: bytes.to_vec(), token, meta });
    }

    fn has_room_to_park(&self, bytes: &[u8]) -> bool {
        let waiting: usize = self.parked_packets.iter().map(|parked| parked.bytes.len()).sum();
        self.parked_packets.len() < MAX_PARKED && waiting + bytes.len() <= MAX_BYTES
    }

    /// Continues with the packet of `session` whose request was answered, and with the parked ones behind it, until one
    /// makes another request.
    pub(crate) fn resume(
        &mut self,
        now: Instant,
        session: SessionRef,
        answered: Option<(QueuedPacket<'_>, Option<AnsweredLine>)>,
        effects: &mut Effects,
    ) {
        if let Some(entry) = self.sessions.table.get_session(session.index, session.id) {
            entry.end_request();
        }
        match answered {
            Some((packet, Some(answer))) => {
                self.handle_answered_packet(now, &packet, session, answer, effects)
            }
            Some((packet, None)) => self.handle_packet(now, &packet, effects),
            None => {}
        }
        while !self.parked_packets.is_empty()
            && !self.awaits_kernel(session)
            && let Some(index) =
                self.parked_packets.iter().position(|parked| parked.session == session)
        {
            let ParkedPacket { bytes, token, meta, .. } = self.parked_packets.remove(index);
            self.handle_packet(now, &QueuedPacket { token, bytes: &bytes, meta }, effects);
        }
    }

    fn awaits_kernel(&mut self, session: SessionRef) -> bool {
        let entry = self.sessions.table.get_session(session.index, session.id);
        entry.is_some_and(|entry| entry.is_busy())
    }
}
