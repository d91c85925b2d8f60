//! Packets whose session waits for the kernel: with the one that asked all later ones of its session wait here, in the
//! order in which they came.

use std::time::Instant;

use super::{
    Arrival, DropReason, Effects, Engine, Entry, Queued, SessionRef, Token, Verdict,
    decide::{Deciding, Stage},
};
use crate::{
    packet::{Endpoint, Packet},
    session::{Answers, Side},
};

/// So many packets wait behind those that ask. With `fanout = "cpu"` other workers read on while one asks.
pub(super) const MOST_PARKED: usize = 1024;
/// So many bytes.
const MOST_BYTES: usize = 4 << 20;

/// A packet that waits.
pub(super) struct Parked {
    pub(super) session: SessionRef,
    pub(super) bytes: Vec<u8>,
    pub(super) input: Input,
}

/// How it came.
pub(super) enum Input {
    /// Queued.
    Packet { token: Token, how: Queued, stage: Stage },
    /// As a copy of one that has passed.
    Copy,
}

impl Parked {
    /// It waits for another answer.
    pub(super) fn asks(&mut self, next: Stage) {
        if let Input::Packet { stage, .. } = &mut self.input {
            *stage = next;
        }
    }
}

impl Engine {
    /// The session at `index`, if the kernel is being asked something for it.
    #[inline]
    pub(super) fn busy_session(&mut self, index: u32) -> Option<SessionRef> {
        let control = &self.table.get_mut(index)?.control;
        control.busy.then_some(SessionRef { index, id: control.id })
    }

    /// Keeps a packet: one that asks before those that wait for it, any other behind all, if there is room.
    #[cold]
    pub(super) fn park(
        &mut self,
        packet: Arrival<'_>,
        session: SessionRef,
        stage: Stage,
        effects: &mut Effects,
    ) {
        let Arrival { token, bytes, how } = packet;
        if matches!(stage, Stage::Behind) && !self.may_park(bytes) {
            let verdict = Verdict::Drop(DropReason::Overflow);
            return self.release(packet, verdict, Deciding::UNKNOWN, effects);
        }
        let first = match stage {
            Stage::Behind => None,
            _ => self.parked.iter().position(|parked| parked.session == session),
        };
        let input = Input::Packet { token, how, stage };
        let parked = Parked { session, bytes: bytes.to_vec(), input };
        self.parked.insert(first.unwrap_or(self.parked.len()), parked);
    }

    fn may_park(&self, bytes: &[u8]) -> bool {
        let waiting: usize = self.parked.iter().map(|parked| parked.bytes.len()).sum();
        self.parked.len() < MOST_PARKED && waiting + bytes.len() <= MOST_BYTES
    }

    /// Keeps a copy behind the packets of its session. Where there is no room it is lost.
    #[cold]
    pub(super) fn park_copy(&mut self, bytes: &[u8], session: SessionRef) {
        if !self.may_park(bytes) {
            self.counters.errors += 1;
            if let Some(entry) = self.table.get_of(session.index, session.id) {
                entry.session.lose_copies();
            }
            return;
        }
        self.parked.push(Parked { session, bytes: bytes.to_vec(), input: Input::Copy });
    }

    /// Takes out the packet that asked for `session`.
    pub(super) fn unpark_asking(&mut self, session: SessionRef) -> Option<(Parked, Stage)> {
        let asks = |parked: &Parked| {
            let is_behind =
                matches!(parked.input, Input::Copy | Input::Packet { stage: Stage::Behind, .. });
            parked.session == session && !is_behind
        };
        let at = self.parked.iter().position(asks)?;
        let mut parked = self.parked.remove(at);
        let stage = match &mut parked.input {
            Input::Packet { stage, .. } => std::mem::replace(stage, Stage::Behind),
            Input::Copy => Stage::Behind,
        };
        Some((parked, stage))
    }

    /// Takes out all that wait for `session`.
    pub(super) fn take_parked(&mut self, session: SessionRef) -> Vec<Parked> {
        self.parked.extract_if(.., |parked| parked.session == session).collect()
    }

    /// Whether the client of `session` sent a packet that says something.
    pub(super) fn is_from_client(&mut self, bytes: &[u8], session: SessionRef) -> bool {
        let Ok(packet) = Packet::parse(bytes) else { return false };
        !packet.payload().is_empty() && self.is_of_client(session.index, packet.endpoints().0)
    }

    /// Whether `source` is the client of the session at `index`.
    pub(super) fn is_of_client(&mut self, index: u32, source: Endpoint) -> bool {
        self.table.get_mut(index).is_some_and(|entry| entry.control.side(source) == Side::Client)
    }

    /// Goes on with `parked`, for which its session waited, and with those behind it, until one asks again.
    pub(super) fn resume(
        &mut self,
        now: Instant,
        parked: Option<(Parked, Option<Answers>)>,
        session: SessionRef,
        effects: &mut Effects,
    ) {
        if let Some(Entry { control, .. }) = self.table.get_of(session.index, session.id) {
            control.busy = false;
        }
        if let Some((Parked { bytes, input: Input::Packet { token, how, .. }, .. }, answers)) =
            parked
        {
            self.go_on(now, Arrival { token, bytes: &bytes, how }, answers, effects);
        }
        while !self.is_busy(session)
            && let Some(at) = self.parked.iter().position(|parked| parked.session == session)
        {
            let Parked { bytes, input, .. } = self.parked.remove(at);
            match input {
                Input::Packet { token, how, .. } => {
                    self.arrive(now, Arrival { token, bytes: &bytes, how }, effects);
                }
                Input::Copy => drop(self.passed(now, &bytes, effects)),
            }
        }
    }

    fn is_busy(&mut self, session: SessionRef) -> bool {
        let entry = self.table.get_of(session.index, session.id);
        entry.is_some_and(|entry| entry.control.busy)
    }
}
