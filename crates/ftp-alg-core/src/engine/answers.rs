//! What the kernel answered, and how that goes on.

use std::{mem::take, time::Instant};

use super::{
    Arrival, Attention, Effects, Engine, Entry, Event, KernelError, Lookup, Mark, Opening,
    Translation, Verdict, What,
    announcement::Judged,
    connection::Connection,
    effects::{Ask, KEPT, Purpose, SessionRef, Waiting},
    pinholes::Attempt,
};
use crate::session::{Announced, DropReason, Known, Question};

impl Engine {
    /// Takes the kernel's answers to all that `effects` asked, and goes on with the packets that waited for them. They
    /// may ask again.
    pub fn answered(&mut self, now: Instant, effects: &mut Effects) {
        let (mut lookups, mut openings) = (take(&mut effects.lookups), take(&mut effects.openings));
        let (mut marks, mut packets) = (take(&mut effects.marks), take(&mut effects.waiting));
        for ask in &mut lookups {
            self.looked_up(now, ask, &packets, effects);
        }
        for ask in &mut openings {
            self.opened(now, ask, &packets, effects);
        }
        for ask in &mut marks {
            self.marked(now, ask, &packets, effects);
        }
        packets.clear();
        packets.shrink_to(KEPT);
        reuse(&mut effects.lookups, lookups);
        reuse(&mut effects.openings, openings);
        reuse(&mut effects.marks, marks);
        reuse(&mut effects.waiting, packets);
        self.release_ordered(now, effects);
    }

    fn looked_up(
        &mut self,
        now: Instant,
        ask: &mut Ask<Lookup, Option<Translation>>,
        packets: &[u8],
        effects: &mut Effects,
    ) {
        let session = ask.session;
        let found = ask
            .answer
            .take()
            .unwrap_or(Ok(None))
            .and_then(|found| found.ok_or(KernelError::Unknown));
        if let Some(Entry { control, .. }) = self.sessions.table.get_of(session.index, session.id) {
            match &found {
                Ok(translation) => control.set_translation(Some(*translation)),
                Err(_) => control.judging_mut().note_fruitless(),
            }
            if std::mem::take(&mut control.judging_mut().awaits_translation) && found.is_ok() {
                self.offer(session.index, effects);
            }
        }
        let Some(waiting) = ask.waiting.take() else { return };
        let judge = |connection: &mut Connection<'_>, announced: &_, attempt: &mut _| match &found {
            Ok(_) => connection.judge(announced, attempt),
            Err(error) => Judged::Ruled(connection.judge_untranslated(announced, error)),
        };
        self.judge_again(now, session, waiting, packets, effects, judge);
    }

    fn opened(
        &mut self,
        now: Instant,
        ask: &mut Ask<Opening, ()>,
        packets: &[u8],
        effects: &mut Effects,
    ) {
        let session = ask.session;
        let answer = ask.answer.take().unwrap_or(Err(KernelError::Unknown));
        let Some(waiting) = ask.waiting.take() else { return };
        if self.sessions.table.get_of(session.index, session.id).is_none() {
            // It was given up meanwhile.
            let (pinholes, closings) = (&mut self.sessions.pinholes, &mut effects.closings);
            match &waiting.attempt {
                Some(Attempt { proposal, .. }) if answer.is_ok() => {
                    pinholes.abandon(proposal, closings);
                }
                Some(Attempt { proposal, .. }) => pinholes.withdraw(proposal, closings),
                None => {}
            }
        }
        let judge = |connection: &mut Connection<'_>, announced: &_, attempt: &mut _| match attempt
        {
            Some(attempt) => connection.judge_opened(announced, attempt, answer),
            None => connection.judge(announced, attempt),
        };
        self.judge_again(now, session, waiting, packets, effects, judge);
    }

    /// Goes on with a packet whose announcement asked, as `judge` says.
    fn judge_again(
        &mut self,
        now: Instant,
        session: SessionRef,
        mut waiting: Box<Waiting>,
        packets: &[u8],
        effects: &mut Effects,
        judge: impl FnOnce(&mut Connection<'_>, &Announced, &mut Option<Attempt>) -> Judged,
    ) {
        let Waiting { token, how, ref bytes, ref request, ref mut attempt } = *waiting;
        let packet = Arrival { token, how, bytes: &packets[bytes.clone()] };
        let judged = match &request.question {
            Question::Announcement(announced) => {
                self.with_connection(now, session, effects, |c| judge(c, announced, attempt))
            }
            Question::Lengthen => None,
        };
        let answer = match judged {
            Some(Judged::Ruled(ruling)) => Some((waiting.request, Known::Ruling(ruling))),
            Some(Judged::Asks) => {
                let ask = |c: &mut Connection<'_>| {
                    c.control.answer();
                    c.ask(packet.bytes, waiting);
                };
                return self.with_connection(now, session, effects, ask).unwrap_or(());
            }
            None => None, // its session was given up meanwhile
        };
        self.resume(now, session, Some((packet, answer)), effects);
    }

    fn marked(
        &mut self,
        now: Instant,
        ask: &mut Ask<Mark, Translation>,
        packets: &[u8],
        effects: &mut Effects,
    ) {
        let session = ask.session;
        let Mark { connection: Lookup { client, server }, translation, attention, purpose } =
            ask.question;
        let moment = self.sessions.epoch.moment(now);
        let answer = ask.answer.take().unwrap_or(Err(KernelError::Unknown));
        let event = |what| Event { session: session.id, client, server, what };
        if purpose == Purpose::LeaveAlone {
            match answer {
                Ok(_) => effects
                    .events
                    .push(event(What::Turned("left alone: its [[network]] is not inspected"))),
                // It is told with its next packet.
                Err(KernelError::Unknown) => {}
                Err(error) => {
                    self.counters.errors += 1;
                    effects.events.push(event(What::Failed(error.to_string())));
                }
            }
            return;
        }
        let is_refused = matches!(&answer, Err(error) if !matches!(error, KernelError::Unknown));
        if let Some(Entry { control, .. }) = self.sessions.table.get_of(session.index, session.id) {
            match &answer {
                Ok(found) => {
                    control.told(attention, moment);
                    if purpose != Purpose::TupleReuse && control.translation().is_none() {
                        control.set_translation(Some(*found));
                    }
                }
                // What conntrack does not know has no mark, either.
                Err(KernelError::Unknown) if attention == Attention::Payload => {
                    control.told(attention, moment);
                }
                // It will be known, perhaps with another translation, once this packet has passed.
                Err(KernelError::Unknown) => {
                    if translation.is_some() {
                        control.set_translation(None);
                    }
                    control.missed(attention, moment);
                }
                Err(_) if attention == Attention::Payload => {
                    self.sessions.watched.add(now, session.index, control);
                }
                Err(_) => {}
            }
        }
        if let (true, Err(error)) = (is_refused, &answer) {
            self.counters.errors += 1;
            effects.events.push(event(What::Failed(error.to_string())));
        }
        if is_refused {
            // Numbers may be changed only once the kernel knows; their sender will send them again.
            self.drop_changed(session, effects);
        }
        let waited = ask.waiting.take().map(|waiting| {
            let Waiting { token, how, bytes, request, .. } = *waiting;
            let packet = Arrival { token, how, bytes: &packets[bytes] };
            (packet, Some((request, Known::Lengthen(answer.is_ok()))))
        });
        self.resume(now, session, waited, effects);
    }

    /// Drops what changed of `session`, and sends nothing on its behalf.
    fn drop_changed(&mut self, session: SessionRef, effects: &mut Effects) {
        let reason = DropReason::KernelRefused;
        for released in &mut effects.verdicts {
            if released.session() == session
                && released.needs_every
                && !matches!(released.verdict, Verdict::Accept | Verdict::Drop(_))
            {
                released.verdict = Verdict::Drop(reason);
                self.counters.drops.count(reason);
                tracing::trace!("packet dropped: {reason}, session {}", session.id);
            }
        }
        effects.injections.retain(|injection| injection.session != session);
    }

    /// Does `work` on the connection of `session`, if that is still followed.
    fn with_connection<R>(
        &mut self,
        now: Instant,
        session: SessionRef,
        effects: &mut Effects,
        work: impl FnOnce(&mut Connection<'_>) -> R,
    ) -> Option<R> {
        let moment = self.sessions.epoch.moment(now);
        let Entry { control, .. } = self.sessions.table.get_of(session.index, session.id)?;
        Some(work(&mut Connection {
            now,
            moment,
            index: session.index,
            policy: self.sessions.policy.within(control.network()),
            control,
            pinholes: &mut self.sessions.pinholes,
            counters: &mut self.counters,
            effects,
        }))
    }
}

/// Has `room` take memory that nothing is in any more, unless it has some.
fn reuse<T>(room: &mut Vec<T>, mut memory: Vec<T>) {
    memory.clear();
    if room.capacity() == 0 {
        *room = memory;
    }
}
