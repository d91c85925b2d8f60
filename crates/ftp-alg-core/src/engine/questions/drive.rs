//! Carries out the effects of a batch in the only safe order.
//!
//! 1. Kernel requests: routes and translations are looked up, and consumed pinholes if a client is at its limit. Then
//!    all pinholes are opened in one transaction, then queue modes are set. No engine is locked meanwhile. With the
//!    answers, the engine continues with the packets that waited, which may make further requests.
//! 2. Records of sessions are written. A packet whose record is not written has not been forwarded either, and is
//!    retransmitted. Records come after pinholes: the next daemon closes a pinhole that is in no record, but a pinhole
//!    that is only in a record would be missing.
//! 3. The BPF program takes over connections or returns them. Then verdicts are given.
//! 4. Packets are injected, after those that they follow.
//! 5. Pinholes that are waited for are renewed, and those that are no longer needed closed.

use std::{mem::take, time::Instant};

use crate::engine::{
    Effects, Engine, Event, EventKind, Injection, Kernel, KernelError, Lookup, OmittedEvents,
    Opening, QueueModeChange, Side,
};

/// The environment of engines: the daemon, `replay`, the simulated network.
pub trait Host {
    /// The kernel that answers requests.
    type Kernel: Kernel;

    /// The kernel that answers requests.
    fn kernel(&mut self) -> &mut Self::Kernel;

    /// Runs `work` on the engine `shard` with exclusive access.
    fn with_engine<R>(&mut self, shard: usize, work: impl FnOnce(&mut Engine) -> R) -> R;

    /// Whether packets may have passed unread since the batch started.
    fn had_downtime(&mut self) -> bool {
        false
    }

    /// [Concludes](Engine::conclude) a batch, and writes its records in the order in which engines concluded. The batch has
    /// its events now.
    fn conclude(&mut self, effects: &mut Effects) {
        self.with_engine(effects.shard, |engine| engine.conclude(effects));
    }

    /// Gives the verdicts.
    fn give_verdicts(&mut self, effects: &[Effects]);

    /// Counts and reports an error of the kernel that concerns no session that the engine of `shard` knows.
    fn report_error(&mut self, shard: usize, _error: &KernelError) {
        self.with_engine(shard, |engine| engine.count_errors(1));
    }

    /// Takes the events, and the omitted ones. Behind those that were `concluded` are failed injections.
    fn report_events(
        &mut self,
        _events: &mut Vec<Event>,
        _concluded: usize,
        _omitted: OmittedEvents,
    ) {
    }
}

/// Carries out the effects of several engines, and empties them.
pub fn carry_out<H: Host>(host: &mut H, now: Instant, all: &mut [Effects]) {
    let mut next = Some(Step::CheckRequests);
    while let Some(step) = next {
        next = step.run(host, now, all);
    }
}

/// One step of [`carry_out`]; a caller may act between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Checks for kernel requests. If there are none, checks for downtime, and concludes if there was none.
    CheckRequests,
    /// Looks up routes and translations.
    LookUp,
    /// Opens pinholes.
    OpenPinholes,
    /// Sets queue modes.
    SetQueueModes,
    /// Gives the answers to the engines.
    Answer,
    /// Concludes, and writes records.
    Conclude,
    /// Gives verdicts.
    GiveVerdicts,
    /// Injects packets, closes pinholes, reports events.
    Finish,
}

impl Step {
    /// Runs the step. Returns the next one.
    pub fn run<H: Host>(self, host: &mut H, now: Instant, all: &mut [Effects]) -> Option<Self> {
        Some(match self {
            Self::CheckRequests if all.iter().any(Effects::has_kernel_requests) => Self::LookUp,
            Self::CheckRequests => {
                let is_unchecked =
                    |effects: &&mut Effects| effects.is_active && !effects.downtime_recorded;
                if !host.had_downtime() {
                    return Self::Conclude.run(host, now, all);
                }
                for effects in all.iter_mut().filter(is_unchecked) {
                    effects.downtime_recorded = true;
                    host.with_engine(effects.shard, |engine| {
                        engine.undo_changes_after_downtime(effects)
                    });
                }
                match all.iter().any(Effects::has_kernel_requests) {
                    true => Self::LookUp,
                    false => Self::Conclude,
                }
            }
            Self::LookUp => {
                look_for_consumed(host, now, all);
                look_up(host.kernel(), all);
                Self::OpenPinholes
            }
            Self::OpenPinholes => {
                open_pinholes(host.kernel(), all);
                Self::SetQueueModes
            }
            Self::SetQueueModes => {
                set_queue_modes(host.kernel(), all);
                Self::Answer
            }
            Self::Answer => {
                for effects in all.iter_mut().filter(|effects| effects.has_kernel_requests()) {
                    host.with_engine(effects.shard, |engine| engine.handle_answers(now, effects));
                }
                Self::CheckRequests
            }
            Self::Conclude => {
                for effects in all.iter_mut().filter(|effects| effects.is_active) {
                    host.conclude(effects);
                }
                Self::GiveVerdicts
            }
            Self::GiveVerdicts => {
                for Effects { flow_changes, .. } in all.iter() {
                    if let Some(changes) = flow_changes {
                        changes.send_pending(|changes| host.kernel().apply_flow_changes(changes));
                    }
                }
                host.give_verdicts(all);
                Self::Finish
            }
            Self::Finish => {
                for effects in all.iter_mut().filter(|effects| effects.is_active) {
                    finish(host, effects);
                }
                return None;
            }
        })
    }
}

/// Looks which pinholes are consumed, for all engines at once.
fn look_for_consumed<H: Host>(host: &mut H, now: Instant, all: &mut [Effects]) {
    let mut asker = None;
    for effects in all.iter_mut() {
        if take(&mut effects.looks_for_consumed) {
            asker = Some(effects);
        }
    }
    let Some(Effects { registry, shard, .. }) = asker else { return };
    let find = |started: &[_]| host.kernel().find_consumed(started);
    if let Err(error) = registry.look_for_consumed(now, find) {
        host.report_error(*shard, &error);
    }
}

fn look_up(kernel: &mut impl Kernel, all: &mut [Effects]) {
    // Packets that arrive together often ask the same.
    let mut answered = None;
    for lookup in all.iter_mut().flat_map(|effects| &mut effects.route_lookups) {
        if let Some((request, has_route)) = answered
            && request == lookup.request
        {
            lookup.answer = Some(Ok(has_route));
            continue;
        }
        let answer = kernel.has_route(lookup.request);
        answered = answer.as_ref().ok().map(|has_route| (lookup.request, *has_route));
        lookup.answer = Some(answer);
    }
    for lookup in all.iter_mut().flat_map(|effects| &mut effects.lookups) {
        lookup.answer =
            Some(kernel.lookup_translation(lookup.request.client, lookup.request.server));
    }
}

/// Opens all pinholes of all engines in one transaction.
fn open_pinholes(kernel: &mut impl Kernel, all: &mut [Effects]) {
    let Some(requester) = all.iter().find(|effects| !effects.openings.is_empty()) else { return };
    let registry = requester.registry.clone();
    let requests = all.iter().flat_map(|effects| &effects.openings);
    let openings: Vec<Opening> = requests.map(|opening| opening.request.proposal.opening).collect();
    for Effects { fast_path_closings: closings, .. } in
        all.iter_mut().filter(|effects| !effects.fast_path_closings.is_empty())
    {
        kernel.close_fast_path_pinholes(closings);
        closings.clear();
    }
    let closed = all.iter_mut().flat_map(|effects| effects.closed_before_opening.drain(..));
    let mut outcomes = Vec::with_capacity(openings.len());
    let updated = registry
        .update_kernel(closed, |closed| kernel.update_pinholes(closed, &openings, &mut outcomes));
    let mut outcomes = outcomes.into_iter();
    for opening in all.iter_mut().flat_map(|effects| &mut effects.openings) {
        let failed = || updated.as_ref().err().map(|error| Err(error.again()));
        opening.answer = outcomes.next().or_else(failed);
    }
}

fn set_queue_modes(kernel: &mut impl Kernel, all: &mut [Effects]) {
    for change in all.iter_mut().flat_map(|effects| &mut effects.mode_changes) {
        let QueueModeChange { connection: Lookup { client, server }, translation, mode, .. } =
            change.request;
        let known = match translation {
            Some(known) => Ok(known),
            None => kernel
                .lookup_translation(client, server)
                .and_then(|found| found.ok_or(KernelError::Unknown)),
        };
        change.answer =
            Some(known.and_then(|known| kernel.set_queue_mode(&known, mode).map(|()| known)));
    }
}

/// Injects packets, closes pinholes, reports events.
fn finish<H: Host>(host: &mut H, effects: &mut Effects) {
    let (mut errors, concluded) = (0, effects.events.stored().len());
    for Injection { session, recipient, client, server, ct_mark, packet } in &effects.injections {
        let source = match recipient {
            Side::Client => server.ip(),
            Side::Server => client.ip(),
        };
        if let Err(error) = host.kernel().inject(packet, source, *ct_mark) {
            errors += 1;
            let (session, kind) = (session.id, EventKind::KernelRefused(error.to_string()));
            effects.events.push(Event {
                session,
                client: *client,
                server: *server,
                user: None,
                kind,
            });
        }
    }
    if !effects.renewals.is_empty() {
        let renew = |due: &[_]| host.kernel().renew_pinholes(due);
        for error in effects.registry.renew_in_kernel(&mut effects.renewals, renew) {
            host.report_error(effects.shard, &error);
        }
    }
    if !effects.fast_path_closings.is_empty() {
        host.kernel().close_fast_path_pinholes(&effects.fast_path_closings);
    }
    if !effects.lost_fast_path_pinholes.is_empty() {
        host.kernel().close_lost_fast_path_pinholes(&effects.lost_fast_path_pinholes);
    }
    if !effects.pinholes_to_close.is_empty() {
        let closed =
            effects.registry.update_kernel(effects.pinholes_to_close.iter().copied(), |due| {
                match due {
                    [] => Ok(()),
                    due => host.kernel().update_pinholes(due, &[], &mut Vec::new()),
                }
            });
        if let Err(error) = closed {
            host.report_error(effects.shard, &error);
        }
    }
    if errors > 0 {
        host.with_engine(effects.shard, |engine| engine.count_errors(errors));
    }
    let (events, omitted) = effects.events.pending_mut();
    if !events.is_empty() {
        host.report_events(events, concluded, omitted);
    }
    effects.clear();
}
