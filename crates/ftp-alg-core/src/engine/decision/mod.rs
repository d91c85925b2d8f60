//! Decides for one session: about its announcements, how its dialogue changes its pinholes, and what it asks of the kernel.
//!
//! | file | is |
//! | --- | --- |
//! | `permission` | what policy and the translation say about an announced endpoint |
//! | `announcements` | announcements: permitted by policy and dialogue, opened, and reported |
//! | `queue_mode` | which later packets the kernel queues |
//! | `transfers` | the transfers |
//!
//! The session calls a [`Decider`] in the middle of a line, so the `Decider` borrows everything except the session.

mod announcements;
mod permission;
mod queue_mode;
mod transfers;

use std::{net::SocketAddr, time::Instant};

pub(crate) use announcements::MAX_PER_SESSION;
use permission::permit;
pub(crate) use permission::{external, may_belong};
pub use queue_mode::{ConnectionOf, wanted_queue_mode};

use crate::{
    engine::{
        Batch, ClosedRange, Counters, EventKind, Kernel, KernelError, OpenRange, PinholeEnds,
        QueueMode, RangeInfo, Refusal, RefusedLogin, SessionEnd, Sessions, TransferEnd,
        Translation,
        batch::SessionRef,
        pinholes::{PinholeTable, pinhole::Pinhole},
        ranges::{RangeNotOpened, Ranges},
        table::entry::{Entry, Epoch, Head},
        timers::Timers,
    },
    ftp::{Announcement, AnnouncementKind, MalformedAnnouncement},
    policy::Policy,
    session::{
        Action, AnnouncedLine, Dialogue, DialogueEvent, DialogueHandler, Interfaces, RefusedLine,
        Session, SessionLimit, Side,
    },
};

/// A connection without its session, and what its decisions need and change.
pub struct Decider<'a> {
    pub now: Instant,
    pub index: u32,
    pub policy: &'a Policy,
    pub head: &'a mut Head,
    interfaces: Interfaces,
    pub pinholes: &'a mut PinholeTable,
    pub ranges: &'a mut Ranges,
    pub timers: &'a mut Timers,
    pub counters: &'a mut Counters,
    pub batch: &'a mut Batch,
    pub kernel: &'a mut dyn Kernel,
    epoch: &'a mut Epoch,
}

impl Sessions {
    /// The session, if it still exists, and its [`Decider`].
    #[inline]
    pub(crate) fn decider<'a>(
        &'a mut self,
        now: Instant,
        SessionRef { index, id }: SessionRef,
        kernel: &'a mut dyn Kernel,
    ) -> Option<(Decider<'a>, &'a mut Session)> {
        let Self { policy, table, pinholes, ranges, timers, counters, batch, epoch, .. } = self;
        let Entry { head, session } = table.get_session(index, id)?;
        let policy = policy.for_network(head.network());
        let decider = Decider {
            now,
            index,
            policy,
            head,
            interfaces: session.interfaces,
            pinholes,
            ranges,
            timers,
            counters,
            batch,
            kernel,
            epoch,
        };
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

impl DialogueHandler for Decider<'_> {
    fn on_announcement(&mut self, line: &AnnouncedLine) -> Action {
        self.decide(line)
    }

    fn may_begin(
        &self,
        kind: AnnouncementKind,
        parsed: &Result<Announcement, MalformedAnnouncement>,
        argument: &[u8],
    ) -> bool {
        let translation = self.head.translation_or_identity();
        match parsed {
            Ok(Announcement { address: Some(address), port, .. }) => {
                let endpoint = SocketAddr::new(*address, *port);
                permit(kind, endpoint, &translation, self.policy).is_ok()
            }
            _ => kind.may_name(argument, translation.client.ip()),
        }
    }

    fn may_renumber(&mut self) -> bool {
        self.set_queue_mode(QueueMode::EveryPacket, ConnectionOf::Session).is_ok()
    }

    fn on_event(&mut self, event: DialogueEvent, dialogue: &Dialogue) {
        self.handle_dialogue_event(event, dialogue);
    }
}

impl Decider<'_> {
    fn is_server_here(&self) -> bool {
        self.interfaces.is_this_machine(Side::Server)
    }

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

    /// Handles an event that the session found in the dialogue.
    fn handle_dialogue_event(&mut self, event: DialogueEvent, dialogue: &Dialogue) {
        match event {
            DialogueEvent::AnnouncementAccepted => {
                if let Some(accepted) = self.pinholes.answer(self.index) {
                    self.close_answered_before(accepted);
                }
            }
            DialogueEvent::AnnouncementRefused => {
                let refused = self.pinholes.close_first(self.index, |one| !one.is_answered());
                if let Some(refused) = refused {
                    self.push_event(
                        refused
                            .closed_because("the server refused the announcement", Some(self.now)),
                    );
                }
            }
            DialogueEvent::Requested(activity) => self.note_request(activity, dialogue),
            DialogueEvent::DirectoryAnswered(is_success, named) => {
                let activity = self.head.activity_mut();
                match dialogue.may_lag() {
                    true => activity.forget_directory(),
                    false => activity.note_directory(is_success, named),
                }
            }
            DialogueEvent::TransferStarted(named) => {
                self.head.activity_mut().note_start(named, dialogue.may_lag());
                self.counters.pinholes_used += self.pinholes.start(self.index);
            }
            DialogueEvent::TransferEnded(reply) => {
                self.head
                    .activity_mut()
                    .note_last_reply(|has_started| dialogue.may_answer_another(reply, has_started));
                self.note_transfer_end(TransferEnd::Replied(reply));
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
                self.head.activity_mut().note_login(dialogue.may_lag());
                self.push_event(EventKind::Login);
            }
            DialogueEvent::LoginRefused(reply) => {
                self.counters.logins_refused += 1;
                let mut refused =
                    self.head.event(EventKind::LoginRefused(RefusedLogin { code: reply.code }));
                refused.user = self.head.activity_mut().take_refused_user();
                self.batch.events.push(refused);
            }
            DialogueEvent::NotFtp => {
                self.close_all_pinholes("the connection is not FTP");
                self.push_event(EventKind::NotFtp("not FTP: no longer inspected".into()));
            }
            DialogueEvent::NotFtpClient => {
                self.close_all_pinholes("the connection is not FTP");
                self.push_event(EventKind::NotFtp(
                    "the client does not speak FTP: no pinhole is opened any more, refusals continue".into(),
                ));
            }
            DialogueEvent::Encrypted => {
                self.report_encrypted();
                self.open_range();
            }
            DialogueEvent::PlaintextResumed => {
                // Announcements are read from here on.
                self.close_range("the session is in plain text again");
                self.push_event(EventKind::Change("readable again".into()));
            }
            DialogueEvent::LineRefused(line) => self.report_refused_line(line),
            DialogueEvent::LimitReached(limit) => self.report_limit(limit),
            DialogueEvent::PacketsMissed => {
                self.end_transfers_unseen();
                self.counters.unread_sessions += 1;
                let comes_of_it = match dialogue.phase().opens_nothing_more() {
                    true => {
                        "packets were missed before the dialogue was known: no pinhole is opened any more"
                    }
                    false => {
                        "packets were missed: no pinhole is opened until the dialogue is in step again"
                    }
                };
                self.push_event(EventKind::Missed(comes_of_it.into()));
            }
            DialogueEvent::InStep => self.push_event(EventKind::Missed(
                "the dialogue is in step again: pinholes are opened".into(),
            )),
        }
    }

    fn report_encrypted(&mut self) {
        self.counters.encrypted += 1;
        let control = self.translation().unwrap_or_else(|_| self.head.translation_or_identity());
        if control.passive_ports(self.policy, self.is_server_here()).is_empty() {
            self.push_event(EventKind::Encrypted);
        }
    }

    /// Opens the server's passive ports, if it has any, to the client, because both ends have begun TLS.
    fn open_range(&mut self) {
        if self.ranges.of(self.index).is_some() {
            return;
        }
        let control = match self.translation() {
            Ok(control) => control,
            Err(error) => return self.report_kernel_error(&error),
        };
        let ports = control.passive_ports(self.policy, self.is_server_here());
        let range = OpenRange { control, ports };
        let opened = range.has_ports().then(|| RangeInfo::from(&range));
        match self.ranges.open(self.now, self.index, self.head.id, range, self.kernel) {
            Ok(()) => {
                if let Some(opened) = opened {
                    self.counters.ranges_opened += 1;
                    self.push_event(EventKind::RangeOpened(opened));
                }
            }
            Err(RangeNotOpened::Kernel(error)) => self.report_kernel_error(&error),
            Err(RangeNotOpened::OtherServer(other)) => {
                let what = format!(
                    "the client has an encrypted session with {other}, which it knows by the same address: the passive \
                     ports stay closed until that ends"
                );
                self.push_event(EventKind::Limit(what.into()));
            }
        }
    }

    /// Looks whether conntrack knows the control connection of the session's range, and reports a change.
    pub(crate) fn look_at_range(&mut self) {
        if let Err(error) = self.ranges.look_at(self.now, self.index, self.kernel) {
            return self.report_kernel_error(&error);
        }
        match self.ranges.take_change(self.index) {
            Some((range, true)) => {
                self.counters.ranges_opened += 1;
                self.push_event(EventKind::RangeOpened(range));
            }
            Some((range, false)) => {
                let why = "conntrack has forgotten the control connection";
                self.push_event(EventKind::RangeClosed(ClosedRange { range, why }));
            }
            None => {}
        }
    }

    /// Closes the range of the session, if there is one.
    pub(crate) fn close_range(&mut self, why: &'static str) {
        if let Some(range) = self.ranges.close(self.index) {
            self.push_event(EventKind::RangeClosed(ClosedRange { range, why }));
        }
    }

    fn report_refused_line(&mut self, line: RefusedLine) {
        match line {
            RefusedLine::Ambiguous => self.counters.pinholes_refused += 1,
            _ => self.counters.commands_refused += 1,
        }
        self.counters.refusals.count(line.reason());
        self.counters.limits.line += u64::from(line == RefusedLine::Overlong);
        let what = match line {
            RefusedLine::Auth => "AUTH: policy.auth-tls is \"refuse\"",
            RefusedLine::Ambiguous => {
                "PORT, EPRT or AUTH: the line is ambiguous, because of Telnet commands, a bare CR or LF, or a NUL"
            }
            RefusedLine::Overlong => "PORT or EPRT: the line is longer than 512 bytes",
            RefusedLine::Urgent => {
                "a line with urgent data: it is another command without its urgent byte"
            }
        };
        self.push_event(EventKind::Refusal(Refusal::Command(what.into())));
    }

    fn report_limit(&mut self, limit: SessionLimit) {
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
        self.push_event(EventKind::Limit(text.into()));
    }

    /// Handles the end of the connection. A second call changes nothing.
    pub fn handle_end(&mut self, is_reset: bool) {
        self.report_end(if is_reset { SessionEnd::Reset } else { SessionEnd::Closed });
        self.close_all_pinholes("the control connection ended");
        self.close_range("the control connection ended");
    }

    /// Closes all pinholes of the connection.
    pub fn close_all_pinholes(&mut self, reason: &'static str) {
        self.end_transfers_unseen();
        while let Some(closed) = self.pinholes.close_first(self.index, |_| true) {
            self.report_closed(&closed, reason);
        }
        self.pinholes.close_ended_if(|(owner, _), _| *owner == self.index);
    }

    /// Reports that an unused pinhole was closed.
    fn report_closed(&mut self, closed: &Pinhole, reason: &'static str) {
        if !closed.is_in_transfer() {
            self.push_event(closed.closed_because(reason, Some(self.now)));
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

    pub fn report_kernel_error(&mut self, error: &KernelError) {
        self.counters.errors += 1;
        self.push_event(EventKind::Kernel(error.to_string().into()));
    }

    /// Closes the answered pinholes before the one with this serial number.
    pub(super) fn close_answered_before(&mut self, serial: u64) {
        let is_before = |one: &Pinhole| one.serial < serial && one.is_answered();
        while let Some(closed) = self.pinholes.close_first(self.index, is_before) {
            self.report_closed(&closed, "a later pinhole replaced it");
        }
    }

    /// Closes the pinholes that a pinhole of the BPF program with these ends replaces: others of the program, which
    /// holds one for each connection at a time, and one of the rules with the same ends.
    pub(super) fn close_replaced(&mut self, by: &PinholeEnds) {
        let is_replaced = |one: &Pinhole| one.in_program().is_some() || one.ends.key() == by.key();
        while let Some(closed) = self.pinholes.close_first(self.index, is_replaced) {
            self.report_closed(&closed, "a later pinhole replaced it");
        }
    }
}
