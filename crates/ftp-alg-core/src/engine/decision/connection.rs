//! One control connection while its packets are decided: how its dialogue changes its pinholes, and the events and
//! requests that it produces.

use std::time::Instant;

use crate::{
    engine::{
        Counters, Effects, EventKind, KernelError, Lookup, Pinhole, QueueMode, QueueModeChange,
        QueuedPacket, RESEND_INTERVAL, SessionEnd, Sessions,
        activity::TransferEnd,
        pinholes::PinholeTable,
        questions::effects::{KernelRequest, Purpose, SessionRef, WaitingPacket},
        table::entry::Entry,
        timers::Timers,
    },
    ftp::Reply,
    policy::Policy,
    session::{
        Answer, AnsweredLine, DecisionRequest, DialogueEvent, Effect, PendingLine, RefusedLine,
        SessionLimit,
    },
};

/// The reply if no data connection came about.
const NO_DATA_CONNECTION: u16 = 425;

/// A decision about a line, or what the kernel must answer before.
pub enum Outcome {
    /// It is decided.
    Decided(Effect),
    /// The kernel must set the queue mode `all`, because sequence numbers are about to differ.
    NeedsQueueMode,
    /// The translation of the connection must be looked up, and which pinholes are consumed if the client has too many.
    NeedsTranslation,
    /// The kernel must open the pinhole of the last of [`Effects::openings`].
    NeedsOpening,
}

/// A connection, with the shared state that decisions need.
pub struct Connection<'a> {
    pub now: Instant,
    pub index: u32,
    pub policy: &'a Policy,
    pub entry: &'a mut Entry,
    pub pinholes: &'a mut PinholeTable,
    pub timers: &'a mut Timers,
    pub counters: &'a mut Counters,
    pub effects: &'a mut Effects,
}

impl Sessions {
    /// The connection of `session`, if it still exists.
    #[inline]
    pub(crate) fn connection<'a>(
        &'a mut self,
        now: Instant,
        SessionRef { index, id }: SessionRef,
        effects: &'a mut Effects,
    ) -> Option<Connection<'a>> {
        let Self { policy, table, pinholes, timers, counters, .. } = self;
        let entry = table.get_session(index, id)?;
        let policy = policy.for_network(entry.network());
        Some(Connection { now, index, policy, entry, pinholes, timers, counters, effects })
    }
}

impl Connection<'_> {
    /// Handles an event that the session found in the dialogue.
    pub fn handle_dialogue_event(&mut self, event: DialogueEvent) {
        match event {
            DialogueEvent::AnnouncementAccepted => {
                let mut pinholes = self.entry.pinholes_mut().iter_mut().enumerate();
                if let Some((at, held)) = pinholes.find(|(_, p)| !p.answered) {
                    held.answered = true;
                    self.close_answered_before(at, None);
                }
            }
            DialogueEvent::AnnouncementRefused => {
                if let Some(held) = self.entry.take_pinhole(|held| !held.answered) {
                    self.push_event(EventKind::PinholeClosed(
                        held.pinhole,
                        "the server refused the announcement",
                    ));
                    self.pinholes.close(held);
                }
            }
            DialogueEvent::Requested(activity) => self.record_request(activity),
            DialogueEvent::DirectoryAnswered(is_success, named) => {
                self.entry.activity_mut().record_directory(is_success, named);
            }
            DialogueEvent::TransferStarted(named) => {
                self.entry.activity_mut().record_start(named);
                self.mark_answered_in_use();
            }
            DialogueEvent::TransferEnded(reply) => {
                self.record_transfer_end(TransferEnd::Replied(reply));
                if !reply.is_success() {
                    return self.handle_failed_transfer(reply);
                }
                // A success without a preliminary reply may be meant for another command.
                let pinholes = &mut *self.pinholes;
                while let Some(held) = self
                    .entry
                    .take_pinhole(|held| held.answered && (held.in_use || !pinholes.is_open(held)))
                {
                    self.counters.pinholes_used += u64::from(!held.in_use);
                    pinholes.close_ended(self.now, self.index, held);
                }
                let ended = pinholes.next_ended_of(self.index);
                ended.into_iter().for_each(|at| self.timers.add(at, self.index));
                self.mark_answered_in_use();
            }
            DialogueEvent::LoggedIn => {
                if self.entry.activity_mut().begin_session() {
                    self.push_event(EventKind::SessionStarted);
                }
                self.entry.activity_mut().record_login();
                self.push_event(EventKind::LoggedIn);
            }
            DialogueEvent::LoginRefused(reply) => {
                self.counters.logins_refused += 1;
                let mut refused = self.entry.event(EventKind::LoginRefused(reply.code));
                refused.user = self.entry.activity_mut().take_refused_user();
                self.effects.events.push(refused);
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

    /// Records that a transfer uses the answered pinholes. The kernel closes them at their deadlines.
    fn mark_answered_in_use(&mut self) {
        let pinholes = self.entry.pinholes_mut().iter_mut();
        for held in pinholes.filter(|held| held.answered) {
            self.counters.pinholes_used += u64::from(!held.in_use);
            self.pinholes.mark_in_use(held);
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
    pub fn handle_end(&mut self) {
        let is_reset = self.entry.session.is_reset();
        self.report_end(if is_reset { SessionEnd::Reset } else { SessionEnd::Closed });
        self.close_all_pinholes("the control connection ended");
    }

    /// Closes all pinholes of the connection.
    pub fn close_all_pinholes(&mut self, reason: &'static str) {
        self.end_transfers_unseen();
        for held in self.entry.take_pinholes() {
            if !held.in_use {
                self.push_event(EventKind::PinholeClosed(held.pinhole, reason));
            }
            self.pinholes.close(held);
        }
        self.pinholes.close_ended_of(self.index);
    }

    /// The reference to this session.
    pub fn session_ref(&self) -> SessionRef {
        SessionRef { index: self.index, id: self.entry.id }
    }

    /// The endpoints as packets show them.
    pub fn endpoints(&self) -> Lookup {
        Lookup { client: self.entry.client(), server: self.entry.server() }
    }

    /// The queue mode that the kernel must set, unless it has set the same one recently. `queues_all` says that the rules
    /// queued the packet because they queue every packet of its connection. If this session did not request that mode, an
    /// earlier daemon or a session that was removed did.
    #[inline]
    pub(crate) fn wanted_queue_mode(&self, queues_all: bool) -> Option<QueueMode> {
        let entry = &*self.entry;
        let (session, timestamp) = (&entry.session, entry.last_seen);
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
                Some(QueueMode::All | QueueMode::Watch | QueueMode::WithAcknowledgements) => {
                    is_settled
                }
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

    /// Requests a queue mode change. The session is busy until it is set, because two threads could set two modes in
    /// the wrong order.
    pub fn request_mode_change(&mut self, mode: QueueMode) {
        self.entry.begin_request();
        let kernel_request = KernelRequest::new(self.session_ref(), self.mode_change(mode), None);
        self.effects.mode_changes.push(kernel_request);
    }

    /// Decides about the `line` of `packet`, or asks the kernel what that needs.
    pub fn decide_or_ask(
        &mut self,
        packet: &QueuedPacket<'_>,
        line: Box<PendingLine>,
    ) -> Option<AnsweredLine> {
        let outcome = match &line.request {
            DecisionRequest::Announcement(announced) => self.decide_announcement(announced),
            DecisionRequest::AdjustSequence => Outcome::NeedsQueueMode,
        };
        self.answer_or_ask(packet, line, outcome)
    }

    /// The answer to the `line` of `packet` if its `outcome` is decided. Otherwise the kernel is asked, and `packet`
    /// waits.
    pub fn answer_or_ask(
        &mut self,
        packet: &QueuedPacket<'_>,
        line: Box<PendingLine>,
        outcome: Outcome,
    ) -> Option<AnsweredLine> {
        if let Outcome::Decided(effect) = outcome {
            return Some((line, Answer::Effect(effect)));
        }
        self.entry.begin_request();
        let session = self.session_ref();
        let bytes = self.effects.store_waiting(packet.bytes);
        let QueuedPacket { token, meta, .. } = *packet;
        let waiting = Some(WaitingPacket { token, meta, bytes, line: Some(line) });
        match outcome {
            Outcome::NeedsQueueMode => {
                let request = self.mode_change(QueueMode::All);
                self.effects.mode_changes.push(KernelRequest::new(session, request, waiting));
            }
            Outcome::NeedsOpening => {
                if let Some(opening) = self.effects.openings.last_mut() {
                    opening.waiting = waiting;
                }
            }
            _ => {
                let request = self.endpoints();
                self.effects.lookups.push(KernelRequest::new(session, request, waiting));
            }
        }
        None
    }

    fn mode_change(&self, mode: QueueMode) -> QueueModeChange {
        let translation = self.entry.extra().translation;
        QueueModeChange {
            connection: self.endpoints(),
            translation,
            mode,
            purpose: Purpose::Session,
        }
    }

    pub fn push_event(&mut self, kind: EventKind) {
        self.effects.events.push(self.entry.event(kind));
    }

    pub fn record_kernel_error(&mut self, error: &KernelError) {
        self.counters.errors += 1;
        self.push_event(EventKind::KernelRefused(error.to_string()));
    }

    /// Closes the answered pinholes before index `end`.
    pub(crate) fn close_answered_before(&mut self, end: usize, reason: Option<&'static str>) {
        let mut skipped = 0;
        for _ in 0..end.min(self.entry.extra().pinholes.len()) {
            if self.entry.extra().pinholes.get(skipped).is_some_and(|held| !held.answered) {
                skipped += 1;
                continue;
            }
            let held = self.entry.extra_mut().pinholes.remove(skipped);
            if let Some(reason) = reason.filter(|_| !held.in_use) {
                self.push_event(EventKind::PinholeClosed(held.pinhole, reason));
            }
            self.pinholes.close(held);
        }
    }

    /// Closes the pinholes that this one of the BPF program replaces: those that the program has, because it holds one
    /// for each connection at a time, and one of the rules with the same endpoints.
    pub(crate) fn close_replaced(&mut self, by: &Pinhole) {
        while let Some(held) = self.entry.take_pinhole(|held| {
            self.pinholes.has_fast_path(held) || held.pinhole.ends() == by.ends()
        }) {
            if !held.in_use {
                let reason = "a later pinhole replaced it";
                self.push_event(EventKind::PinholeClosed(held.pinhole, reason));
            }
            self.pinholes.close(held);
        }
    }

    /// Handles a failed transfer. It may have failed before the data connection, so the pinhole stays open until its
    /// deadline.
    fn handle_failed_transfer(&mut self, reply: Reply) {
        let now = self.now;
        while let Some(held) = self.entry.take_pinhole(|held| held.in_use && held.deadline <= now) {
            self.pinholes.close(held);
        }
        for held in self.entry.pinholes_mut() {
            held.is_refused = held.answered && !held.in_use && reply.code != NO_DATA_CONNECTION;
            held.in_use = false;
        }
    }
}
