//! Handles the kernel's answers to an engine's requests.

use std::{mem::take, time::Instant};

use crate::{
    engine::{
        Effects, Engine, Event, EventKind, KernelError, Lookup, QueueMode, QueueModeChange,
        QueuedPacket, Translation, Verdict,
        decision::connection::{Connection, Outcome},
        pinholes::proposal::Attempt,
        questions::effects::{
            KernelRequest, Purpose, RETAINED_CAPACITY, SessionRef, WaitingPacket,
        },
    },
    session::{AnnouncedLine, Answer, DecisionRequest, DropReason},
};

impl Engine {
    /// Takes the kernel's answers to all requests in `effects`, and continues with the packets that waited for them.
    /// These may make further requests.
    pub fn handle_answers(&mut self, now: Instant, effects: &mut Effects) {
        let mut route_lookups = take(&mut effects.route_lookups);
        let (mut lookups, mut openings) = (take(&mut effects.lookups), take(&mut effects.openings));
        let (mut mode_changes, mut packets) =
            (take(&mut effects.mode_changes), take(&mut effects.waiting_bytes));
        for kernel_request in &mut route_lookups {
            self.handle_route_lookup(now, kernel_request, &packets, effects);
        }
        for kernel_request in &mut lookups {
            self.handle_lookup(now, kernel_request, &packets, effects);
        }
        for kernel_request in &mut openings {
            self.handle_opening(now, kernel_request, &packets, effects);
        }
        for kernel_request in &mut mode_changes {
            self.handle_mode_change(now, kernel_request, &packets, effects);
        }
        packets.clear();
        packets.shrink_to(RETAINED_CAPACITY);
        reuse_allocation(&mut effects.route_lookups, route_lookups);
        reuse_allocation(&mut effects.lookups, lookups);
        reuse_allocation(&mut effects.openings, openings);
        reuse_allocation(&mut effects.mode_changes, mode_changes);
        reuse_allocation(&mut effects.waiting_bytes, packets);
        self.release_ordered(now, effects);
    }

    fn handle_lookup(
        &mut self,
        now: Instant,
        kernel_request: &mut KernelRequest<Lookup, Option<Translation>>,
        packets: &[u8],
        effects: &mut Effects,
    ) {
        let session = kernel_request.session;
        let found = kernel_request
            .answer
            .take()
            .unwrap_or(Ok(None))
            .and_then(|found| found.ok_or(KernelError::Unknown));
        if let Some(entry) = self.sessions.table.get_session(session.index, session.id) {
            match &found {
                Ok(translation) => entry.set_translation(Some(*translation)),
                Err(_) => entry.extra_mut().fast_path.count_idle_handover(),
            }
            if std::mem::take(&mut entry.extra_mut().fast_path.wants_translation) && found.is_ok() {
                self.offer_to_fast_path(session.index, effects);
            }
        }
        if kernel_request.waiting.is_none() {
            // Without it, nothing is injected, and the connection is not handed over.
            if let Err(error @ (KernelError::System { .. } | KernelError::Full { .. })) = &found {
                let Lookup { client, server } = kernel_request.request;
                let kind = EventKind::KernelRefused(error.to_string());
                let user = self.sessions.user_of(session);
                self.sessions.counters.errors += 1;
                effects.events.push(Event { session: session.id, client, server, user, kind });
            }
            return;
        }
        let decide = |connection: &mut Connection<'_>, announced: &_| match &found {
            Ok(_) => connection.decide_announcement(announced),
            Err(error) => Outcome::Decided(connection.decide_untranslated(announced, error)),
        };
        let waiting = &mut kernel_request.waiting;
        self.resume_announcement(now, session, waiting, packets, effects, decide);
    }

    fn handle_opening(
        &mut self,
        now: Instant,
        kernel_request: &mut KernelRequest<Attempt, ()>,
        packets: &[u8],
        effects: &mut Effects,
    ) {
        let KernelRequest { session, request: ref attempt, .. } = *kernel_request;
        let answer = kernel_request.answer.take().unwrap_or(Err(KernelError::Unknown));
        if self.sessions.table.get_session(session.index, session.id).is_none() {
            // The session was removed meanwhile.
            let (pinholes, closings) =
                (&mut self.sessions.pinholes, &mut effects.pinholes_to_close);
            match answer {
                Ok(()) => pinholes.release_unwanted(&attempt.proposal, closings),
                Err(_) => pinholes.withdraw(&attempt.proposal, closings),
            }
        }
        let decide = |connection: &mut Connection<'_>, announced: &_| {
            connection.decide_after_opening(announced, attempt, answer)
        };
        let waiting = &mut kernel_request.waiting;
        self.resume_announcement(now, session, waiting, packets, effects, decide);
    }

    /// Continues with a packet whose announcement waited; `decide` makes the decision.
    fn resume_announcement(
        &mut self,
        now: Instant,
        session: SessionRef,
        waiting: &mut Option<WaitingPacket>,
        packets: &[u8],
        effects: &mut Effects,
        decide: impl FnOnce(&mut Connection<'_>, &AnnouncedLine) -> Outcome,
    ) {
        let Some(WaitingPacket { token, meta, bytes, line }) = waiting.take() else { return };
        let packet = QueuedPacket { token, meta, bytes: &packets[bytes] };
        let mut answered = None; // if its session was removed meanwhile
        if let Some(mut connection) = self.sessions.connection(now, session, effects)
            && let Some(line) = line
            && let DecisionRequest::Announcement(announced) = &line.request
        {
            let outcome = decide(&mut connection, announced);
            let is_decided = matches!(outcome, Outcome::Decided(_));
            answered = connection.answer_or_ask(&packet, line, outcome);
            if !is_decided {
                return connection.entry.end_request(); // the one that is answered
            }
        }
        self.resume(now, session, Some((packet, answered)), effects);
    }

    fn handle_mode_change(
        &mut self,
        now: Instant,
        kernel_request: &mut KernelRequest<QueueModeChange, Translation>,
        packets: &[u8],
        effects: &mut Effects,
    ) {
        let session = kernel_request.session;
        let QueueModeChange { connection: Lookup { client, server }, translation, mode, purpose } =
            kernel_request.request;
        let timestamp = self.sessions.epoch.timestamp(now);
        let answer = kernel_request.answer.take().unwrap_or(Err(KernelError::Unknown));
        let event = |kind| Event { session: session.id, client, server, user: None, kind };
        if purpose == Purpose::NotInspected {
            match answer {
                Ok(_) => effects.events.push(event(EventKind::StateChanged(
                    "not inspected: its [[network]] has inspect = false",
                ))),
                // The queue mode is set with its next packet.
                Err(KernelError::Unknown) => {}
                Err(error) => {
                    self.sessions.counters.errors += 1;
                    effects.events.push(event(EventKind::KernelRefused(error.to_string())));
                }
            }
            return;
        }
        let is_refused = matches!(&answer, Err(error) if !matches!(error, KernelError::Unknown));
        if let Some(entry) = self.sessions.table.get_session(session.index, session.id) {
            match &answer {
                Ok(found) => {
                    entry.record_mode(mode, timestamp);
                    if purpose != Purpose::TupleReuse && entry.extra().translation.is_none() {
                        entry.set_translation(Some(*found));
                    }
                }
                // A connection that conntrack does not know has no mark, either.
                Err(KernelError::Unknown) if mode == QueueMode::Selected => {
                    entry.record_mode(mode, timestamp);
                }
                // Conntrack will know the connection, perhaps with another translation, once this packet has passed.
                Err(KernelError::Unknown) => {
                    if translation.is_some() {
                        entry.set_translation(None);
                    }
                    entry.record_unknown(mode, timestamp);
                }
                Err(_) if mode == QueueMode::Selected => {
                    let until = entry.watch(now);
                    self.sessions.timers.add(until, session.index);
                }
                Err(_) => {}
            }
        }
        if let (true, Err(error)) = (is_refused, &answer) {
            self.sessions.counters.errors += 1;
            effects.events.push(event(EventKind::KernelRefused(error.to_string())));
        }
        if is_refused {
            // Sequence numbers may change only after the kernel has set the queue mode. The sender retransmits the
            // dropped packets.
            self.drop_changed_packets(session, effects);
        }
        let waited = kernel_request.waiting.take().map(|waiting| {
            let WaitingPacket { token, meta, bytes, line } = waiting;
            let packet = QueuedPacket { token, meta, bytes: &packets[bytes] };
            (packet, line.map(|line| (line, Answer::AdjustSequence(answer.is_ok()))))
        });
        self.resume(now, session, waited, effects);
    }

    /// Drops the changed packets of `session`, and its injections.
    fn drop_changed_packets(&mut self, session: SessionRef, effects: &mut Effects) {
        let reason = DropReason::KernelRefused;
        for released in &mut effects.verdicts {
            if released.session() == session
                && released.needs_all_queued
                && !matches!(released.verdict, Verdict::Accept | Verdict::Drop(_))
            {
                released.verdict = Verdict::Drop(reason);
                self.sessions.counters.drops.count(reason);
                tracing::trace!("packet dropped: {reason}, session {}", session.id);
            }
        }
        effects.injections.retain(|injection| injection.session != session);
    }
}

/// Gives `target` an empty allocation to reuse, unless it has one.
fn reuse_allocation<T>(target: &mut Vec<T>, mut unused: Vec<T>) {
    unused.clear();
    if target.capacity() == 0 {
        *target = unused;
    }
}
