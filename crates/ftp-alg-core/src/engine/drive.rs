//! Carries out what comes of a batch, in the one order that is safe.
//!
//! 1. What the engine asks is asked: translations, then one transaction of pinholes, then marks. No engine is in use meanwhile.
//!    With the answers packets go on that waited for them, and may ask more.
//! 2. Records of sessions are written: what was not written has not gone on either, and is retransmitted. They come
//!    after the pinholes: those that no record knows are closed by the next daemon, where a pinhole that only a record
//!    knows would be missing.
//! 3. The program in the kernel leaves connections alone, and gets others. Verdicts are given.
//! 4. Packets are injected, behind those that they follow.
//! 5. Pinholes are closed that nobody waits for.

use std::time::Instant;

use super::{Effects, Engine, Event, Injection, Kernel, KernelError, Lookup, Mark, Opening, What};

/// What engines run in: the daemon, `replay`, the simulated network.
pub trait Host {
    /// The kernel that it asks.
    type Kernel: Kernel;

    /// The kernel.
    fn kernel(&mut self) -> &mut Self::Kernel;

    /// Does `work` on the engine `shard`, which nobody else uses meanwhile.
    fn with<R>(&mut self, shard: usize, work: impl FnOnce(&mut Engine) -> R) -> R;

    /// Whether packets may have passed unread since the batch began.
    fn has_lapsed(&mut self) -> bool {
        false
    }

    /// [Concludes](Engine::conclude) a batch, and writes its records in the order in which engines concluded.
    fn conclude(&mut self, effects: &mut Effects) {
        self.with(effects.shard, |engine| engine.conclude(effects));
    }

    /// Gives the verdicts.
    fn give(&mut self, effects: &[Effects]);

    /// Takes note of what was decided, and of how much more.
    fn events(&mut self, _events: &mut Vec<Event>, _more: u64) {}
}

/// Carries out `all`, of different engines, and leaves nothing in them.
pub fn carry_out<H: Host>(host: &mut H, now: Instant, all: &mut [Effects]) {
    let mut next = Some(Step::Look);
    while let Some(step) = next {
        next = step.take(host, now, all);
    }
}

/// One step of [`carry_out`], which others may act between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Looks whether something is asked. If not, looks whether packets passed unread, and concludes at once if none did.
    Look,
    /// Asks for translations.
    LookUp,
    /// Opens pinholes.
    Open,
    /// Sets marks.
    Mark,
    /// Has the engines go on with the answers.
    Answer,
    /// Concludes, and writes records.
    Conclude,
    /// Gives verdicts.
    Give,
    /// Injects, closes, and tells what was decided.
    Finish,
}

impl Step {
    /// Takes it. Returns the next one.
    pub fn take<H: Host>(self, host: &mut H, now: Instant, all: &mut [Effects]) -> Option<Self> {
        Some(match self {
            Self::Look if all.iter().any(Effects::asks) => Self::LookUp,
            Self::Look => {
                let is_held = |effects: &&mut Effects| effects.is_touched && !effects.has_lapsed;
                if !host.has_lapsed() {
                    return Self::Conclude.take(host, now, all);
                }
                for effects in all.iter_mut().filter(is_held) {
                    effects.has_lapsed = true;
                    host.with(effects.shard, |engine| engine.lapsed_meanwhile(effects));
                }
                match all.iter().any(Effects::asks) {
                    true => Self::LookUp,
                    false => Self::Conclude,
                }
            }
            Self::LookUp => {
                look_up(host.kernel(), all);
                Self::Open
            }
            Self::Open => {
                open(host.kernel(), all);
                Self::Mark
            }
            Self::Mark => {
                mark(host.kernel(), all);
                Self::Answer
            }
            Self::Answer => {
                for effects in all.iter_mut().filter(|effects| effects.asks()) {
                    host.with(effects.shard, |engine| engine.answered(now, effects));
                }
                Self::Look
            }
            Self::Conclude => {
                for effects in all.iter_mut().filter(|effects| effects.is_touched) {
                    host.conclude(effects);
                }
                Self::Give
            }
            Self::Give => {
                for Effects { flow_changes, .. } in all.iter() {
                    if let Some(changes) = flow_changes {
                        changes.tell(|changes| host.kernel().hand_over(changes));
                    }
                }
                host.give(all);
                Self::Finish
            }
            Self::Finish => {
                for effects in all.iter_mut().filter(|effects| effects.is_touched) {
                    finish(host, effects);
                }
                return None;
            }
        })
    }
}

fn look_up(kernel: &mut impl Kernel, all: &mut [Effects]) {
    for ask in all.iter_mut().flat_map(|effects| &mut effects.lookups) {
        ask.answer = Some(kernel.translation(ask.question.client, ask.question.server));
    }
}

/// Opens all pinholes of all engines in one transaction.
fn open(kernel: &mut impl Kernel, all: &mut [Effects]) {
    let Some(asking) = all.iter().find(|effects| !effects.openings.is_empty()) else { return };
    let places = asking.places.clone();
    let openings: Vec<Opening> =
        all.iter().flat_map(|effects| &effects.openings).map(|ask| ask.question).collect();
    for Effects { shut, .. } in all.iter_mut().filter(|effects| !effects.shut.is_empty()) {
        kernel.shut(shut);
        shut.clear();
    }
    let closed = all.iter_mut().flat_map(|effects| effects.closed_first.drain(..));
    let mut outcomes = Vec::with_capacity(openings.len());
    // What fails to close expires by itself.
    let _ = places.tell(closed, |closed| kernel.change(closed, &openings, &mut outcomes));
    let mut outcomes = outcomes.into_iter();
    for ask in all.iter_mut().flat_map(|effects| &mut effects.openings) {
        ask.answer = outcomes.next();
    }
}

fn mark(kernel: &mut impl Kernel, all: &mut [Effects]) {
    for ask in all.iter_mut().flat_map(|effects| &mut effects.marks) {
        let Mark { connection: Lookup { client, server }, translation, attention, .. } =
            ask.question;
        let known = match translation {
            Some(known) => Ok(known),
            None => kernel
                .translation(client, server)
                .and_then(|found| found.ok_or(KernelError::Unknown)),
        };
        ask.answer = Some(known.and_then(|known| kernel.attend(&known, attention).map(|()| known)));
    }
}

/// Injects and closes, and tells what was decided.
fn finish<H: Host>(host: &mut H, effects: &mut Effects) {
    let mut errors = 0;
    for Injection { session, client, server, packet, .. } in &effects.injections {
        if let Err(error) = host.kernel().inject(packet) {
            errors += 1;
            let (session, what) = (session.id, What::Failed(error.to_string()));
            effects.events.push(Event { session, client: *client, server: *server, what });
        }
    }
    if !effects.shut.is_empty() {
        host.kernel().shut(&effects.shut);
    }
    if !effects.closings.is_empty() {
        let closed = effects.places.tell(effects.closings.iter().copied(), |due| match due {
            [] => Ok(()),
            due => host.kernel().change(due, &[], &mut Vec::new()),
        });
        errors += u64::from(closed.is_err());
    }
    if errors > 0 {
        host.with(effects.shard, |engine| engine.count_errors(errors));
    }
    let (events, more) = effects.events.all();
    if !events.is_empty() || more > 0 {
        host.events(events, more);
        events.clear();
    }
    effects.clear();
}
