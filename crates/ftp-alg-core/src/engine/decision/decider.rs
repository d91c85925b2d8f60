//! Decides for one session: how its dialogue changes its pinholes, and what it asks of the kernel. The session calls it in
//! the middle of a line, so it has everything of the connection but the session.

use std::time::Instant;

use crate::{
    engine::{
        Batch, Counters, EventKind, Kernel, KernelError, PinholeEnds, QueueMode, RESEND_INTERVAL,
        SessionEnd, Sessions, Translation,
        activity::TransferEnd,
        batch::SessionRef,
        pinholes::{PinholeTable, pinhole::Pinhole},
        table::entry::{Epoch, Head},
        timers::Timers,
    },
    policy::Policy,
    session::{
        AnnouncedLine, Decide, Dialogue, DialogueEvent, Effect, RefusedLine, Session, SessionLimit,
    },
};

/// A connection without its session, and what its decisions need and change.
pub struct Decider<'a> {
    pub now: Instant,
    pub index: u32,
    pub policy: &'a Policy,
    pub head: &'a mut Head,
    pub pinholes: &'a mut PinholeTable,
    pub timers: &'a mut Timers,
    pub counters: &'a mut Counters,
    pub batch: &'a mut Batch,
    pub kernel: &'a mut dyn Kernel,
    epoch: &'a mut Epoch,
}

/// Which translation tells the kernel the connection whose queue mode is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionOf {
    /// The known one of the session. If none is known, it is looked up.
    Session,
    /// That of the connection which is on these endpoints now, perhaps another one: it is looked up.
    Endpoints,
}

impl Sessions {
    /// The session, and who decides for it, if it still exists.
    #[inline]
    pub(crate) fn decider<'a>(
        &'a mut self,
        now: Instant,
        SessionRef { index, id }: SessionRef,
        kernel: &'a mut dyn Kernel,
    ) -> Option<(Decider<'a>, &'a mut Session)> {
        let Self { policy, table, pinholes, timers, counters, batch, epoch, .. } = self;
        let entry = table.get_session(index, id)?;
        let (head, session) = (&mut entry.head, &mut entry.session);
        let policy = policy.for_network(head.network());
        let decider =
            Decider { now, index, policy, head, pinholes, timers, counters, batch, kernel, epoch };
        Some((decider, session))
    }

    /// As [`decider`](Self::decider), for the session in this table slot.
    pub(crate) fn decider_at<'a>(
        &'a mut self,
        now: Instant,
        index: u32,
        kernel: &'a mut dyn Kernel,
    ) -> Option<(Decider<'a>, &'a mut Session)> {
        let id = self.table.get(index)?.head.id;
        self.decider(now, SessionRef { index, id }, kernel)
    }
}

impl Decide for Decider<'_> {
    fn announcement(&mut self, line: &AnnouncedLine) -> Effect {
        self.decide_announcement(line)
    }

    fn may_renumber(&mut self) -> bool {
        self.set_queue_mode(QueueMode::All, ConnectionOf::Session).is_ok()
    }

    fn found(&mut self, event: DialogueEvent, dialogue: &Dialogue) {
        self.handle_dialogue_event(event, dialogue);
    }
}

impl Decider<'_> {
    /// The translation, looked up if it is not known.
    pub fn translation(&mut self) -> Result<Translation, KernelError> {
        if let Some(known) = self.head.extra().translation {
            return Ok(known);
        }
        let found = self.look_up_translation()?;
        self.head.set_translation(Some(found));
        Ok(found)
    }

    fn look_up_translation(&mut self) -> Result<Translation, KernelError> {
        let found = self.kernel.lookup_translation(self.head.client(), self.head.server())?;
        found.ok_or(KernelError::Unknown)
    }

    /// Has the kernel queue later packets of the connection like this. An error says that it does not. `Unknown` is no
    /// error of the kernel: conntrack knows the connection once this packet has passed, perhaps with another translation.
    /// Until then it has no mark.
    pub fn set_queue_mode(
        &mut self,
        mode: QueueMode,
        connection: ConnectionOf,
    ) -> Result<(), KernelError> {
        let timestamp = self.epoch.timestamp(self.now);
        let known = match connection {
            ConnectionOf::Session => self.head.extra().translation,
            ConnectionOf::Endpoints => None,
        };
        let found = known.map_or_else(|| self.look_up_translation(), Ok);
        let set = found.and_then(|found| {
            self.kernel.set_queue_mode(&found, mode)?;
            Ok(found)
        });
        match set {
            Ok(found) => {
                self.head.record_mode(mode, timestamp);
                if connection == ConnectionOf::Session {
                    self.head.set_translation(Some(found));
                }
                Ok(())
            }
            Err(KernelError::Unknown) => {
                if mode == QueueMode::Selected {
                    self.head.record_mode(mode, timestamp);
                } else {
                    if known.is_some() {
                        self.head.set_translation(None);
                    }
                    self.head.record_unknown(mode, timestamp);
                }
                Err(KernelError::Unknown)
            }
            Err(error) => {
                self.record_kernel_error(&error);
                if mode == QueueMode::Selected {
                    self.watch();
                }
                Err(error)
            }
        }
    }

    /// Has every packet queued for a while.
    pub fn watch(&mut self) {
        let until = self.head.watch(self.now);
        self.timers.add(until, self.index);
    }

    /// Handles an event that the session found in the dialogue.
    fn handle_dialogue_event(&mut self, event: DialogueEvent, dialogue: &Dialogue) {
        match event {
            DialogueEvent::AnnouncementAccepted => {
                if let Some(accepted) = self.pinholes.answer(self.index) {
                    self.close_answered_before(accepted, None);
                }
            }
            DialogueEvent::AnnouncementRefused => {
                let refused = self.pinholes.close_first(self.index, |one| !one.is_answered());
                if let Some(refused) = refused {
                    self.push_event(EventKind::PinholeClosed(
                        refused.ends,
                        "the server refused the announcement",
                    ));
                }
            }
            DialogueEvent::Requested(activity) => self.record_request(activity, dialogue),
            DialogueEvent::DirectoryAnswered(is_success, named) => {
                self.head.activity_mut().record_directory(is_success, named);
            }
            DialogueEvent::TransferStarted(named) => {
                self.head.activity_mut().record_start(named);
                self.counters.pinholes_used += self.pinholes.start(self.index);
            }
            DialogueEvent::TransferEnded(reply) => {
                self.record_transfer_end(TransferEnd::Replied(reply));
                if !reply.is_success() {
                    return self.pinholes.fail(self.now, self.index, reply);
                }
                self.counters.pinholes_used += self.pinholes.end(self.now, self.index);
                self.counters.pinholes_used += self.pinholes.start(self.index);
                self.add_timer();
            }
            DialogueEvent::LoggedIn => {
                if self.head.activity_mut().begin_session() {
                    self.push_event(EventKind::SessionStarted);
                }
                self.head.activity_mut().record_login();
                self.push_event(EventKind::LoggedIn);
            }
            DialogueEvent::LoginRefused(reply) => {
                self.counters.logins_refused += 1;
                let mut refused = self.head.event(EventKind::LoginRefused(reply.code));
                refused.user = self.head.activity_mut().take_refused_user();
                self.batch.events.push(refused);
            }
            DialogueEvent::NotFtp => {
                self.close_all_pinholes("the connection is not FTP");
                self.push_event(EventKind::NotFtp("not FTP: no longer inspected"));
            }
            DialogueEvent::NotFtpClient => {
                self.close_all_pinholes("the connection is not FTP");
                self.push_event(EventKind::NotFtp(
                    "the client does not speak FTP: no pinhole is opened any more, refusals continue",
                ));
            }
            DialogueEvent::Encrypted => {
                self.counters.encrypted += 1;
                self.push_event(EventKind::Encrypted);
            }
            DialogueEvent::PlaintextResumed => {
                self.push_event(EventKind::StateChanged("readable again"))
            }
            DialogueEvent::LineRefused(line) => self.record_refused_command(line),
            DialogueEvent::LimitReached(limit) => self.record_limit(limit),
            DialogueEvent::PacketsMissed => {
                self.end_transfers_unseen();
                self.counters.unread_sessions += 1;
                self.push_event(EventKind::Missed(
                    "packets were missed: no pinhole is opened until the dialogue is in step again",
                ));
            }
            DialogueEvent::InStep => self.push_event(EventKind::Missed(
                "the dialogue is in step again: pinholes are opened",
            )),
        }
    }

    fn record_refused_command(&mut self, line: RefusedLine) {
        match line {
            RefusedLine::Ambiguous => self.counters.pinholes_refused += 1,
            _ => self.counters.commands_refused += 1,
        }
        self.counters.refusals.count(line.reason());
        self.counters.limits.line += u64::from(line == RefusedLine::Overlong);
        self.push_event(EventKind::CommandRefused(match line {
            RefusedLine::Auth => "AUTH: policy.auth-tls is \"refuse\"",
            RefusedLine::Ambiguous => {
                "PORT, EPRT or AUTH: the line is ambiguous, because of Telnet commands, a bare CR or LF, or a NUL"
            }
            RefusedLine::Overlong => "PORT or EPRT: the line is longer than 512 bytes",
            RefusedLine::Urgent => "a line with urgent data: it is another command without its urgent byte",
        }));
    }

    fn record_limit(&mut self, limit: SessionLimit) {
        let limits = &mut self.counters.limits;
        let (counter, text) = match limit {
            SessionLimit::HeldReply => {
                (&mut limits.line, "no pinhole for a 227 or 229: the line is longer than 512 bytes")
            }
            SessionLimit::Rewrites => (
                &mut limits.rewrites,
                "64 rewrites are unacknowledged: further data must be retransmitted",
            ),
            SessionLimit::UnacknowledgedData => (
                &mut limits.unacknowledged_data,
                "128 KiB are unacknowledged: further data must be retransmitted",
            ),
            SessionLimit::PendingCommands => (
                &mut limits.commands,
                "too many pending commands: replies to the oldest open no pinhole",
            ),
        };
        *counter += 1;
        self.push_event(EventKind::LimitReached(text.into()));
    }

    /// Handles the end of the connection, which may have been handled before.
    pub fn handle_end(&mut self, is_reset: bool) {
        self.report_end(if is_reset { SessionEnd::Reset } else { SessionEnd::Closed });
        self.close_all_pinholes("the control connection ended");
    }

    /// Closes all pinholes of the connection.
    pub fn close_all_pinholes(&mut self, reason: &'static str) {
        self.end_transfers_unseen();
        while let Some(closed) = self.pinholes.close_first(self.index, |_| true) {
            self.report_closed(&closed, reason);
        }
        self.pinholes.close_ended_of(self.index);
    }

    /// Reports that an unused pinhole was closed.
    fn report_closed(&mut self, closed: &Pinhole, reason: &'static str) {
        if !closed.is_used() {
            self.push_event(EventKind::PinholeClosed(closed.ends, reason));
        }
    }

    /// Adds the next time at which a pinhole must be looked at.
    pub(super) fn add_timer(&mut self) {
        let due = self.pinholes.next_due(self.index, self.now, self.policy.pinhole_timeout);
        due.into_iter().for_each(|at| self.timers.add(at, self.index));
    }

    pub(crate) fn push_event(&mut self, kind: EventKind) {
        self.batch.events.push(self.head.event(kind));
    }

    pub fn record_kernel_error(&mut self, error: &KernelError) {
        self.counters.errors += 1;
        self.push_event(EventKind::KernelRefused(error.to_string()));
    }

    /// Closes the answered pinholes before the one with this serial number.
    pub(super) fn close_answered_before(&mut self, serial: u64, reason: Option<&'static str>) {
        let is_before = |one: &Pinhole| one.serial < serial && one.is_answered();
        while let Some(closed) = self.pinholes.close_first(self.index, is_before) {
            if let Some(reason) = reason {
                self.report_closed(&closed, reason);
            }
        }
    }

    /// Closes the pinholes that one with these ends of the BPF program replaces: those that the program has, because it
    /// holds one for each connection at a time, and one of the rules with the same ends.
    pub(super) fn close_replaced(&mut self, by: &PinholeEnds) {
        let is_replaced =
            |one: &Pinhole| one.in_program().is_some() || one.ends.ends() == by.ends();
        while let Some(closed) = self.pinholes.close_first(self.index, is_replaced) {
            self.report_closed(&closed, "a later pinhole replaced it");
        }
    }
}

/// The queue mode that the kernel must set, unless it has set the same one recently. `queues_all` says that the rules
/// queued the packet because they queue every packet of its connection. If this session did not request that mode, an
/// earlier daemon or a session that was removed did.
#[inline]
pub fn wanted_queue_mode(head: &Head, session: &Session, queues_all: bool) -> Option<QueueMode> {
    let timestamp = head.last_seen;
    let is_settled = head.incarnation().is_none();
    // Conntrack must not check sequence numbers past a gap either: it has seen numbers that were not forwarded.
    let wanted = if session.needs_all_queued() {
        QueueMode::All
    } else if session.needs_none_queued() {
        QueueMode::None
    } else if is_settled && session.needs_acknowledgements() {
        QueueMode::WithAcknowledgements
    } else {
        let is_outdated = match head.queue_mode() {
            Some(QueueMode::All | QueueMode::Watch | QueueMode::WithAcknowledgements) => is_settled,
            // The mode may have been set after this packet was queued.
            Some(QueueMode::Selected) => {
                queues_all && is_settled && head.mode_set_since(timestamp) >= RESEND_INTERVAL
            }
            // A session that has just replaced another on its endpoints must be written first, because after a crash
            // the packet is decided again.
            None => queues_all && is_settled && head.first_seen < timestamp,
            Some(QueueMode::None) => false,
        };
        is_outdated.then_some(QueueMode::Selected)?
    };
    head.needs_mode_change(wanted, timestamp, RESEND_INTERVAL).then_some(wanted)
}
