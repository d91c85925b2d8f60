//! What the kernel answered, and how that goes on.

use std::{mem::take, time::Instant};

use super::{
    Arrival, Attention, Effects, Engine, Entry, Event, KernelError, Lookup, Mark, Opening,
    Translation, Verdict, What,
    announcement::Judged,
    connection::Connection,
    decide::{Deciding, Stage},
    effects::{Ask, Purpose, SessionRef},
    parked::{Input, Parked},
};
use crate::session::{Answers, DropReason};

impl Engine {
    /// Takes the kernel's answers to all that `effects` asked, and goes on with the packets that waited for them. They
    /// may ask again.
    pub fn answered(&mut self, now: Instant, effects: &mut Effects) {
        self.interrupted.clear();
        let (lookups, openings, marks) =
            (take(&mut effects.lookups), take(&mut effects.openings), take(&mut effects.marks));
        for Ask { session, answer, .. } in lookups {
            self.looked_up(now, session, answer, effects);
        }
        for Ask { session, question, answer } in openings {
            self.opened(now, session, &question, answer, effects);
        }
        for Ask { session, question, answer } in marks {
            self.marked(now, session, &question, answer, effects);
        }
        self.release_ordered(now, effects);
    }

    fn looked_up(
        &mut self,
        now: Instant,
        session: SessionRef,
        answer: Option<Result<Option<Translation>, KernelError>>,
        effects: &mut Effects,
    ) {
        let found = answer.unwrap_or(Ok(None)).and_then(|found| found.ok_or(KernelError::Unknown));
        if let (Ok(translation), Some(Entry { control, .. })) =
            (&found, self.table.get_of(session.index, session.id))
        {
            control.set_translation(Some(*translation));
        }
        let Some((parked, stage)) = self.unpark_asking(session) else { return };
        let mut answers = Answers::default();
        if let (Stage::Lookup(announced), Err(error)) = (stage, &found) {
            let ruling = self.with_connection(now, session, effects, |connection| {
                connection.judge_untranslated(&announced, error)
            });
            answers.ruling = ruling.map(|ruling| (announced, ruling));
        }
        self.resume(now, Some((parked, Some(answers))), session, effects);
    }

    fn opened(
        &mut self,
        now: Instant,
        session: SessionRef,
        opening: &Opening,
        answer: Option<Result<(), KernelError>>,
        effects: &mut Effects,
    ) {
        let answer = answer.unwrap_or(Err(KernelError::Unknown));
        let Some((mut parked, stage)) = self.unpark_asking(session) else { return };
        let mut answers = Answers::default();
        if let Stage::Opening(announced, attempt) = stage {
            if self.table.get_of(session.index, session.id).is_none() {
                // It was given up meanwhile.
                self.pinholes.withdraw(&attempt.proposal);
                if answer.is_ok() {
                    effects.closings.push(opening.pinhole);
                }
                return self.resume(now, Some((parked, None)), session, effects);
            }
            let judged = self.with_connection(now, session, effects, |connection| {
                connection.judge_opened(&announced, attempt, answer)
            });
            match judged {
                Some(Judged::Ruled(ruling)) => answers.ruling = Some((announced, ruling)),
                Some(Judged::Opening(attempt)) => {
                    parked.asks(Stage::Opening(announced, attempt));
                    self.parked.insert(0, parked);
                    return;
                }
                Some(Judged::Lookup) | None => {}
            }
        }
        self.resume(now, Some((parked, Some(answers))), session, effects);
    }

    fn marked(
        &mut self,
        now: Instant,
        session: SessionRef,
        mark: &Mark,
        answer: Option<Result<Translation, KernelError>>,
        effects: &mut Effects,
    ) {
        let Mark { connection: Lookup { client, server }, translation, attention, purpose } = *mark;
        let moment = self.epoch.moment(now);
        let answer = answer.unwrap_or(Err(KernelError::Unknown));
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
        if let Some(Entry { control, .. }) = self.table.get_of(session.index, session.id) {
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
                    self.watched.add(now, session.index, control);
                }
                Err(_) => {}
            }
        }
        if let (true, Err(error)) = (is_refused, &answer) {
            self.counters.errors += 1;
            effects.events.push(event(What::Failed(error.to_string())));
        }
        if purpose == Purpose::FastPathRace {
            self.drop_parked(session, effects);
        }
        if is_refused {
            // Numbers may be changed only once the kernel knows; their sender will send them again.
            self.drop_changed(session, effects);
        }
        let parked = self.unpark_asking(session).map(|(parked, stage)| {
            let mut answers = match stage {
                Stage::Lengthen(answers) => answers,
                _ => Answers::default(),
            };
            answers.lengthen = Some(answer.is_ok());
            (parked, Some(answers))
        });
        self.resume(now, parked, session, effects);
    }

    /// Drops what the client of `session` said that waits here, as harmless lines may have passed at its numbers. Copies
    /// are read before it is retransmitted.
    fn drop_parked(&mut self, session: SessionRef, effects: &mut Effects) {
        for parked in self.take_parked(session) {
            let Parked { bytes, input, .. } = parked;
            match input {
                Input::Packet { token, how, .. } if self.is_from_client(&bytes, session) => {
                    let packet = Arrival { token, bytes: &bytes, how };
                    let verdict = Verdict::Drop(DropReason::FastPathRace);
                    self.release(packet, verdict, Deciding::UNKNOWN, effects);
                }
                input => self.parked.push(Parked { session, bytes, input }),
            }
        }
    }

    /// Drops what changed of `session`, and sends nothing on its behalf.
    fn drop_changed(&mut self, session: SessionRef, effects: &mut Effects) {
        let reason = DropReason::KernelRefused;
        for released in &mut effects.verdicts {
            if released.session == session
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
        let moment = self.epoch.moment(now);
        let Entry { control, .. } = self.table.get_of(session.index, session.id)?;
        Some(work(&mut Connection {
            now,
            moment,
            index: session.index,
            policy: self.policy.within(control.network()),
            control,
            pinholes: &mut self.pinholes,
            counters: &mut self.counters,
            effects,
            answers: self.answers,
        }))
    }
}
