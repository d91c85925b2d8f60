//! Packets that wait behind one of their session that waits for the kernel, in the order in which they came.

use std::time::Instant;

use super::{
    Arrival, DropReason, Effects, Engine, Entry, Queued, SessionRef, Token, Verdict,
    decide::Deciding,
};
use crate::session::Answered;

/// So many packets wait behind those that ask. With `fanout = "cpu"` other workers read on while one asks.
pub(super) const MOST_PARKED: usize = 1024;
/// So many bytes.
const MOST_BYTES: usize = 4 << 20;

/// A packet that waits.
pub(super) struct Parked {
    session: SessionRef,
    bytes: Vec<u8>,
    token: Token,
    how: Queued,
}

impl Engine {
    /// Keeps a packet behind those of its session, if there is room.
    #[cold]
    pub(super) fn park(
        &mut self,
        packet: &Arrival<'_>,
        session: SessionRef,
        effects: &mut Effects,
    ) {
        let Arrival { token, bytes, how } = *packet;
        if !self.may_park(bytes) {
            let verdict = Verdict::Drop(DropReason::Overflow);
            return self.release(packet, verdict, Deciding::UNKNOWN, effects);
        }
        self.parked.push(Parked { session, bytes: bytes.to_vec(), token, how });
    }

    fn may_park(&self, bytes: &[u8]) -> bool {
        let waiting: usize = self.parked.iter().map(|parked| parked.bytes.len()).sum();
        self.parked.len() < MOST_PARKED && waiting + bytes.len() <= MOST_BYTES
    }

    /// Goes on with the packet of `session` that waited, as what it asked is known, and with those behind it, until one
    /// asks again.
    pub(super) fn resume(
        &mut self,
        now: Instant,
        session: SessionRef,
        waited: Option<(Arrival<'_>, Option<Answered>)>,
        effects: &mut Effects,
    ) {
        if let Some(Entry { control, .. }) = self.sessions.table.get_of(session.index, session.id) {
            control.answer();
        }
        match waited {
            Some((packet, Some(answer))) => self.go_on(now, &packet, session, answer, effects),
            Some((packet, None)) => self.arrive(now, &packet, effects),
            None => {}
        }
        while !self.parked.is_empty()
            && !self.is_busy(session)
            && let Some(at) = self.parked.iter().position(|parked| parked.session == session)
        {
            let Parked { bytes, token, how, .. } = self.parked.remove(at);
            self.arrive(now, &Arrival { token, bytes: &bytes, how }, effects);
        }
    }

    fn is_busy(&mut self, session: SessionRef) -> bool {
        let entry = self.sessions.table.get_of(session.index, session.id);
        entry.is_some_and(|entry| entry.control.is_busy())
    }
}
