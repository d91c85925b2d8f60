//! Decides for one session: about its announcements, how its dialogue changes its pinholes, and what it asks of the kernel.
//!
//! An announcement is decided by policy, by the dialogue, by the connection's translation, and by whether the kernel opens
//! the pinhole. The session calls a [`Decider`] in the middle of a line, so that has everything of the connection but the
//! session.

mod transfers;

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use crate::{
    engine::{
        Batch, ClosedRange, Counters, DecidedAnnouncement, EventKind, Kernel, KernelError,
        OpenRange, PinholeEnds, Place, QueueMode, RESEND_INTERVAL, RangeInfo, Refusal,
        RefusedLogin, SessionEnd, Sessions, TransferEnd, Translation,
        activity::EXAMINED_AFTER,
        batch::SessionRef,
        offload::handover::PinholeId,
        pinholes::{
            Opened, PinholeTable,
            pinhole::Pinhole,
            ports::{NotOpened, Wanted},
        },
        ranges::{RangeNotOpened, Ranges},
        table::entry::{Entry, Epoch, Head},
        timers::Timers,
    },
    ftp::{Announcement, AnnouncementKind, MalformedAnnouncement, Padding},
    policy::{ExternalAddress, ForeignAddress, Policy},
    session::{
        AnnouncedLine, Decide, Decision, Dialogue, DialogueEvent, Effect, Interfaces, Phase,
        RefusalReason, RefusedLine, Session, SessionLimit, Side,
    },
};

/// Limit of pinholes of one session; pipelined announcements need several.
const MAX_PER_SESSION: usize = 8;

/// Of a reply that nobody has asked for.
const NOT_REQUESTED: Decision = Decision {
    effect: Effect::Pass,
    reason: Cow::Borrowed("the reply answers no PASV or EPSV"),
    objection: None,
};

/// The pinhole that may be opened, and the address to announce.
struct Permitted {
    ends: PinholeEnds,
    announced_address: IpAddr,
    /// The server's foreign address, if it was replaced.
    replaced_foreign: Option<IpAddr>,
}

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

impl Decide for Decider<'_> {
    fn announcement(&mut self, line: &AnnouncedLine) -> Effect {
        match self.open_announced(line) {
            Ok((opened, ends)) => self.record_decision(line, opened, Some(ends)),
            Err(not_opened) => self.record_not_opened(line, not_opened),
        }
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
                permitted_pinhole(kind, endpoint, &translation, self.policy).is_ok()
            }
            _ => kind.may_name(argument, translation.client.ip()),
        }
    }

    fn may_renumber(&mut self) -> bool {
        self.set_queue_mode(QueueMode::All, ConnectionOf::Session).is_ok()
    }

    fn found(&mut self, event: DialogueEvent, dialogue: &Dialogue) {
        self.handle_dialogue_event(event, dialogue);
    }
}

impl Decider<'_> {
    /// Opens the pinhole for `announced`, if it is permitted, at the first external port that is free. An error if nothing is
    /// opened.
    fn open_announced(
        &mut self,
        announced: &AnnouncedLine,
    ) -> Result<(Decision, PinholeEnds), Decision> {
        let kind = announced.kind;
        // Without a call of the kernel, because an attacker can send such a reply at will, and it may work without us.
        if matches!(announced.phase, Phase::PickedUp | Phase::PickedUpFtp) && !kind.is_active() {
            return Err(Decision::pass(announced.blocked_because.unwrap_or_default()));
        }
        let endpoint = self
            .announced_endpoint(announced)
            .map_err(|malformed| decide_malformed(kind, malformed))?;
        if !announced.was_requested {
            return Err(NOT_REQUESTED);
        }
        let translation = self
            .translation()
            .map_err(|error| self.decide_untranslated(announced, endpoint, &error))?;
        let permitted = self.permit(announced, endpoint, &translation)?;
        let room = self.room_for_port(announced, permitted.announced_address);
        let (ends, padding) = (permitted.ends, self.allowed_padding(announced));
        let wanted = Wanted { ends, control: &translation, kind, room, padding };
        let opened = self.pinholes.open(self.now, self.index, &wanted, self.policy, self.kernel);
        let opened = opened.map_err(|why| self.refusal(why))?;
        Ok(self.record_opening(announced, &permitted, opened))
    }

    /// Decides about `announced` if the kernel could not look up the connection's translation.
    fn decide_untranslated(
        &mut self,
        announced: &AnnouncedLine,
        endpoint: SocketAddr,
        error: &KernelError,
    ) -> Decision {
        let blocked = announced.blocked_because;
        // Conntrack does not know a connection that was picked up mid-stream before its first packet has left.
        if blocked.is_none() || !matches!(error, KernelError::Unknown) {
            self.record_kernel_error(error);
        }
        match (error, blocked) {
            // It opens nothing, so the client's own address passes.
            (KernelError::Unknown, Some(reason)) => {
                let untranslated = self.head.translation_or_identity();
                permitted_pinhole(announced.kind, endpoint, &untranslated, self.policy)
                    .map_or_else(|not_opened| not_opened, |_| Decision::pass(reason))
            }
            _ => Decision::refuse(RefusalReason::KernelRefused, error.to_string()),
        }
    }

    /// Decides about an announcement that the BPF program inspected, and for which it opened the pinhole `fast_path`.
    /// The session takes that over if it was opened rightly.
    pub fn decide_fast_path_announcement(
        &mut self,
        announced: &AnnouncedLine,
        fast_path: &mut Option<PinholeId>,
    ) -> Effect {
        let taken = self.take_fast_path_pinhole(announced, fast_path);
        // If it is not taken over, the line has passed all the same.
        let passed = |not_opened| Decision { effect: Effect::Pass, ..not_opened };
        let (decision, ends) = match taken {
            Ok((opened, ends)) => (opened, Some(ends)),
            Err(not_opened) => (passed(not_opened), None),
        };
        self.record_decision(announced, decision, ends)
    }

    fn take_fast_path_pinhole(
        &mut self,
        announced: &AnnouncedLine,
        fast_path: &mut Option<PinholeId>,
    ) -> Result<(Decision, PinholeEnds), Decision> {
        let (Some(id), Ok(endpoint)) = (*fast_path, self.announced_endpoint(announced)) else {
            return Err(Decision::pass("the fast path opened no pinhole for it"));
        };
        if !announced.was_requested {
            return Err(NOT_REQUESTED);
        }
        let Some(translation) = self.head.extra().translation else {
            return Err(Decision::pass("the connection's translation is unknown"));
        };
        let permitted = self.permit(announced, endpoint, &translation)?;
        *fast_path = None;
        let ends = permitted.ends;
        let deadline = self.now + self.policy.pinhole_timeout;
        let (client, place) = (self.head.client().ip().into(), Place::Program(id));
        let mut held = Pinhole::new(ends, announced.kind, deadline, client, place);
        held.opened = self.pinholes.first_opened(self.now, self.index, &ends);
        held.set_granted(self.head.extra().fast_path.is_handed_over);
        self.close_replaced(&ends);
        let serial = self.pinholes.hold_of_program(self.index, held);
        let opened = Opened { serial, port: ends.arrival.port(), other_session: None };
        Ok(self.record_opening(announced, &permitted, opened))
    }

    /// Counts the pinhole that was opened for `announced`, and has it looked at. Returns the decision.
    fn record_opening(
        &mut self,
        announced: &AnnouncedLine,
        permitted: &Permitted,
        opened: Opened,
    ) -> (Decision, PinholeEnds) {
        let Opened { serial, port, other_session } = opened;
        self.counters.pinholes_opened += 1;
        // Some clients connect before they request a transfer, and some servers before they answer a `PORT`.
        self.pinholes.examine_at(self.index, serial, self.now + EXAMINED_AFTER);
        if !announced.kind.is_active() {
            self.close_answered_before(serial);
        }
        self.add_timer();
        let endpoint = SocketAddr::new(permitted.announced_address, port);
        let is_rewritten = self.announced_endpoint(announced).is_ok_and(|read| read != endpoint);
        self.counters.rewrites += u64::from(is_rewritten);
        let reason = match (permitted.replaced_foreign, other_session) {
            (Some(foreign), _) => {
                let own = self.head.server().ip();
                format!("foreign address {foreign} replaced: the server is {own}").into()
            }
            (None, Some(reason)) => reason.into(),
            (None, None) if is_rewritten => "the other end sees another endpoint".into(),
            (None, None) => "both ends see the same endpoint".into(),
        };
        let padding = self.allowed_padding(announced);
        let arrival = SocketAddr::new(permitted.ends.arrival.ip(), port);
        let effect = Effect::Open { endpoint, padding };
        let ends = PinholeEnds { arrival, ..permitted.ends };
        (Decision { effect, reason, objection: None }, ends)
    }

    /// The announced endpoint.
    fn announced_endpoint<'a>(
        &self,
        announced: &'a AnnouncedLine,
    ) -> Result<SocketAddr, &'a MalformedAnnouncement> {
        let read = announced.parsed.as_ref()?;
        let address = read.address.unwrap_or(self.head.server().ip());
        Ok(SocketAddr::new(address, read.port))
    }

    /// By what an announcement may keep its length.
    fn allowed_padding(&self, announced: &AnnouncedLine) -> Padding {
        if self.policy.preserves_length { announced.padding } else { Padding::None }
    }

    /// Records that nothing is opened for `announced`. Returns whether it passes or is refused.
    fn record_not_opened(&mut self, announced: &AnnouncedLine, mut decision: Decision) -> Effect {
        let kind = announced.kind;
        if !kind.is_active() && matches!(announced.parsed, Err(MalformedAnnouncement::Form(_))) {
            return self.record_decision(
                announced,
                Decision::pass(DecidedAnnouncement::NAMES_NO_ENDPOINT),
                None,
            );
        }
        if let Some(objection) = decision.objection
            && self.passes_despite(objection, announced)
        {
            decision.effect = Effect::Pass;
        }
        let names_nobody =
            self.announced_endpoint(announced).is_ok_and(|end| end.ip().is_unspecified());
        if kind.is_active() && names_nobody && decision.effect == Effect::Pass {
            // As it is, the server would connect to itself.
            let reason = format!("{}, and it names the server itself", decision.reason);
            decision = Decision::refuse(RefusalReason::ForeignAddress, reason);
        }
        if let Effect::Refuse(reason) = decision.effect {
            self.counters.pinholes_refused += 1;
            self.counters.refusals.count(reason);
        }
        self.record_decision(announced, decision, None)
    }

    /// Whether `announced` passes although this `objection` opens nothing for it. A command does not, because the server
    /// would obey it, unless the policy allows foreign addresses. A server's reply does: its client may be allowed to go
    /// there without us, or connect to the address that it dialled. Not if the policy refuses foreign addresses, nor if
    /// the client could not use the reply: this gateway hides the server, or the operator's rules drop the connection.
    fn passes_despite(&mut self, objection: RefusalReason, announced: &AnnouncedLine) -> bool {
        let is_active = announced.kind.is_active();
        match objection {
            RefusalReason::ForeignAddress | RefusalReason::OtherFamily => {
                match self.policy.foreign_address {
                    ForeignAddress::Refuse => false,
                    ForeignAddress::Pass => !is_active,
                    ForeignAddress::Allow => true,
                }
            }
            _ => !is_active && !self.hides_server() && !self.is_dropped(announced),
        }
    }

    /// Whether the operator's rules certainly drop the client's connection to the announced endpoint without a pinhole.
    /// Where the translation is not known, nor is where that connection goes.
    fn is_dropped(&mut self, announced: &AnnouncedLine) -> bool {
        let endpoint = self.announced_endpoint(announced).ok();
        let endpoint = endpoint.filter(|_| self.head.extra().translation.is_some());
        endpoint.zip(self.interfaces.indices()).is_some_and(|(endpoint, interfaces)| {
            self.kernel.drops_unadmitted(interfaces, endpoint)
        })
    }

    fn is_server_here(&self) -> bool {
        self.interfaces.is_this_machine(Side::Server)
    }

    /// Whether clients know the server by another address than its own, as far as the translation is known.
    fn hides_server(&self) -> bool {
        self.head.extra().translation.is_some_and(|translation| {
            let external = external(AnnouncementKind::Pasv, &translation, self.policy);
            external != Ok(translation.server.ip())
        })
    }

    /// Records a decision, with the pinhole if one was opened. Returns its effect.
    fn record_decision(
        &mut self,
        announced: &AnnouncedLine,
        decision: Decision,
        pinhole: Option<PinholeEnds>,
    ) -> Effect {
        let (kind, unread_text) = (announced.kind, announced.unread_text.clone());
        let (announced, effect) = (self.announced_endpoint(announced).ok(), decision.effect);
        let decided = DecidedAnnouncement { kind, announced, unread_text, decision, pinhole };
        self.push_event(match effect {
            Effect::Refuse(_) => EventKind::Refusal(Refusal::Announcement(decided)),
            Effect::Open { .. } | Effect::Pass => EventKind::Announcement(decided),
        });
        effect
    }

    /// The pinhole for `endpoint`, if it may be opened.
    fn permit(
        &mut self,
        announced: &AnnouncedLine,
        endpoint: SocketAddr,
        translation: &Translation,
    ) -> Result<Permitted, Decision> {
        let AnnouncedLine { kind, blocked_because: reason, .. } = *announced;
        let permitted = permitted_pinhole(kind, endpoint, translation, self.policy)?;
        if let Some(reason) = reason {
            return Err(Decision::pass(reason));
        }
        if self.policy.require_login && !announced.is_logged_in {
            return Err(Decision::pass("the server has not accepted a login"));
        }
        if announced.is_epsv_only && kind != AnnouncementKind::Epsv {
            let reason = "the client has sent EPSV ALL, so only EPSV is allowed";
            return Err(Decision::refuse(RefusalReason::EpsvOnly, reason));
        }
        if self.pinholes.of(self.index).count() >= MAX_PER_SESSION {
            self.counters.limits.session_pinholes += 1;
            let reason = format!("the session has {MAX_PER_SESSION} pinholes already");
            return Err(Decision::refuse(RefusalReason::PinholeLimit, reason));
        }
        Ok(permitted)
    }

    /// Number of bytes that an external port must take so that the line keeps its length; `None` if any port will do.
    fn room_for_port(
        &mut self,
        announced: &AnnouncedLine,
        announced_address: IpAddr,
    ) -> Option<usize> {
        let (kind, endpoint) = (announced.kind, self.announced_endpoint(announced).ok()?);
        // A server's port may be the only one that is forwarded to it.
        if !self.policy.preserves_length || !kind.is_active() || announced_address == endpoint.ip()
        {
            return None;
        }
        let padding = self.allowed_padding(announced);
        let room = announced.parsed.as_ref().ok()?.room_for_port(announced_address, padding)?;
        let fast_path = self.head.extra().fast_path;
        if fast_path.is_worthwhile() && !kind.fits_port(endpoint.port(), room, padding) {
            // On an adjusted connection the BPF program changes lengths, but never ports. Otherwise each announcement
            // would be queued.
            if fast_path.used_fitting_port {
                return None;
            }
            self.head.extra_mut().fast_path.used_fitting_port = true;
        }
        Some(room)
    }

    fn refusal(&mut self, why: NotOpened) -> Decision {
        let limits = &mut self.counters.limits;
        match why {
            NotOpened::Limit(limit) => {
                limits.client_pinholes += 1;
                let reason = format!("the client has {limit} pinholes already");
                Decision::refuse(RefusalReason::PinholeLimit, reason)
            }
            NotOpened::Full(what) => {
                limits.pinholes += 1;
                let reason = format!("there is no room for another pinhole: {what}");
                Decision::refuse(RefusalReason::PinholeLimit, reason)
            }
            NotOpened::NoPort => {
                limits.ports += 1;
                Decision::refuse(RefusalReason::NoFreePort, "no external port is free")
            }
            NotOpened::Kernel(error) => {
                self.record_kernel_error(&error);
                Decision::refuse(RefusalReason::KernelRefused, error.to_string())
            }
        }
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
            DialogueEvent::Requested(activity) => self.record_request(activity, dialogue),
            DialogueEvent::DirectoryAnswered(is_success, named) => {
                let activity = self.head.activity_mut();
                match dialogue.may_lag() {
                    true => activity.forget_directory(),
                    false => activity.record_directory(is_success, named),
                }
            }
            DialogueEvent::TransferStarted(named) => {
                self.head.activity_mut().record_start(named, dialogue.may_lag());
                self.counters.pinholes_used += self.pinholes.start(self.index);
            }
            DialogueEvent::TransferEnded(reply) => {
                self.head.activity_mut().record_last_reply(|has_started| {
                    dialogue.may_answer_another(reply, has_started)
                });
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
                self.head.activity_mut().record_login(dialogue.may_lag());
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
                self.record_encrypted();
                self.open_range();
            }
            DialogueEvent::PlaintextResumed => {
                // Announcements are read from here on.
                self.close_range("the session is in plain text again");
                self.push_event(EventKind::Change("readable again".into()));
            }
            DialogueEvent::LineRefused(line) => self.record_refused_command(line),
            DialogueEvent::LimitReached(limit) => self.record_limit(limit),
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

    fn record_encrypted(&mut self) {
        self.counters.encrypted += 1;
        let control = self.translation().unwrap_or_else(|_| self.head.translation_or_identity());
        if control.passive_ports(self.policy, self.is_server_here()).is_empty() {
            self.push_event(EventKind::Encrypted);
        }
    }

    /// Opens the server's passive ports to the client, if there are any: both have begun TLS.
    fn open_range(&mut self) {
        if self.ranges.of(self.index).is_some() {
            return;
        }
        let control = match self.translation() {
            Ok(control) => control,
            Err(error) => return self.record_kernel_error(&error),
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
            Err(RangeNotOpened::Kernel(error)) => self.record_kernel_error(&error),
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
            return self.record_kernel_error(&error);
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

    fn record_refused_command(&mut self, line: RefusedLine) {
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
        self.push_event(EventKind::Limit(text.into()));
    }

    /// Handles the end of the connection, which may have been handled before.
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
        if !closed.is_used() {
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

    pub fn record_kernel_error(&mut self, error: &KernelError) {
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

    /// Closes the pinholes that one with these ends of the BPF program replaces: those that the program has, because it
    /// holds one for each connection at a time, and one of the rules with the same ends.
    pub(super) fn close_replaced(&mut self, by: &PinholeEnds) {
        let is_replaced = |one: &Pinhole| one.in_program().is_some() || one.ends.key() == by.key();
        while let Some(closed) = self.pinholes.close_first(self.index, is_replaced) {
            self.report_closed(&closed, "a later pinhole replaced it");
        }
    }
}

/// The decision about an announcement that cannot be read.
fn decide_malformed(kind: AnnouncementKind, malformed: &MalformedAnnouncement) -> Decision {
    let reason = malformed.to_string();
    match malformed {
        // It cannot make a server connect to anything.
        MalformedAnnouncement::Family => Decision::pass(reason),
        MalformedAnnouncement::Scope => Decision::refuse(RefusalReason::ForeignAddress, reason),
        _ if kind.is_active() => Decision::refuse(RefusalReason::Malformed, reason),
        _ => Decision::pass(reason),
    }
}

/// The pinhole that an announcement requests, if policy allows it.
fn permitted_pinhole(
    kind: AnnouncementKind,
    announced: SocketAddr,
    translation: &Translation,
    policy: &Policy,
) -> Result<Permitted, Decision> {
    let Translation { client, client_external, server, server_external, .. } = *translation;
    let (own, seen, initiator, source) = if kind.is_active() {
        (client.ip(), client_external.ip(), server.ip(), server_external.ip())
    } else {
        (server.ip(), server_external.ip(), client.ip(), client_external.ip())
    };
    // A client that reads 0.0.0.0 connects to the server, over IPv6 as well: vsftpd announces that there. A server that
    // reads it connects to itself.
    let is_of_family = announced.is_ipv4() == own.is_ipv4();
    let names_nobody = announced.ip().is_unspecified() && (is_of_family || !kind.is_active());
    if !is_of_family && !names_nobody {
        // A dual-stack server could be made to connect to any host of the other family.
        let reason = "its address is of another family than the control connection";
        return Err(Decision::refuse(RefusalReason::OtherFamily, reason));
    }
    let announced_address = external(kind, translation, policy)?;
    let is_own = names_nobody || [own, seen, announced_address].contains(&announced.ip());
    let replaced_foreign = !is_own
        && !kind.is_active()
        && policy.server(own).is_some_and(|s| s.replace_foreign_address);
    let sender = is_own || replaced_foreign;
    if !sender && policy.foreign_address != ForeignAddress::Allow {
        let ip = announced.ip();
        let hint = if kind.is_active() {
            ""
        } else {
            ", and no [[server]] with that address has replace-foreign-address = true"
        };
        let reason = format!("{ip} is not the sender's address {own}{hint}");
        return Err(Decision::refuse(RefusalReason::ForeignAddress, reason));
    }
    if announced.port() < policy.min_data_port {
        let (port, minimum) = (announced.port(), policy.min_data_port);
        let reason = format!("port {port} in {kind} is below min-data-port {minimum}");
        return Err(Decision::refuse(RefusalReason::LowPort, reason));
    }
    if policy.denies(announced.port()) {
        let reason = format!("port {} in {kind} is in deny-ports", announced.port());
        return Err(Decision::refuse(RefusalReason::DeniedPort, reason));
    }
    let (target, arrival, announced_address) =
        if replaced_foreign && is_internal(announced_address) && !is_internal(announced.ip()) {
            // The server's address on the other side of another NAT.
            (own, seen, announced.ip())
        } else if sender {
            (own, seen, announced_address)
        } else {
            // A third host that policy allows: it is reached at the announced address.
            (announced.ip(), announced.ip(), announced.ip())
        };
    let ends = PinholeEnds {
        initiator,
        arrival: SocketAddr::new(arrival, announced.port()),
        target: SocketAddr::new(target, announced.port()),
        source,
    };
    let replaced_foreign = replaced_foreign.then_some(announced.ip());
    Ok(Permitted { ends, announced_address, replaced_foreign })
}

/// The address by which the other end knows the announcing end. A configured address replaces one that NAT hides, and
/// applies to a published server.
pub(crate) fn external(
    kind: AnnouncementKind,
    translation: &Translation,
    policy: &Policy,
) -> Result<IpAddr, Decision> {
    let Translation { client, client_external, server, server_external, .. } = translation;
    let (own, translated) = if kind.is_active() {
        (client.ip(), client_external.ip())
    } else {
        (server.ip(), server_external.ip())
    };
    let external = match kind.is_active() {
        true if own == translated => ExternalAddress::Auto,
        true => policy.external.of_family(own),
        false => policy.external_of(own, own != translated),
    };
    match external {
        ExternalAddress::Auto => Ok(translated),
        ExternalAddress::Fixed(address) => Ok(address),
        ExternalAddress::Unresolved => {
            let reason = "the name of the external address is not resolved yet";
            Err(Decision::refuse(RefusalReason::Unresolved, reason))
        }
    }
}

/// Whether an address is not routable outside its own network.
fn is_internal(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64; // RFC 6598
            let this_network = v4.octets()[0] == 0; // RFC 1122, section 3.2.1.3
            let no_host = v4.octets()[0] >= 224; // multicast, reserved, broadcast
            let special = shared || this_network || no_host;
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || special
        }
        IpAddr::V6(v6) => {
            v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
        }
    }
}

/// The queue mode that the kernel must set, unless it has set the same one recently. `queues_all` says that the rules
/// queued the packet because they queue every packet of its connection. If this session did not request that mode, an
/// earlier daemon or a session that was removed did. If it `needs_none`, it is not inspected any more.
#[inline]
pub fn wanted_queue_mode(
    head: &Head,
    session: &Session,
    queues_all: bool,
    needs_none: bool,
) -> Option<QueueMode> {
    let timestamp = head.last_seen;
    let is_settled = head.incarnation().is_none();
    // Conntrack must not check sequence numbers past a gap either: it has seen numbers that were not forwarded.
    let wanted = if session.needs_all_queued() {
        QueueMode::All
    } else if needs_none {
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
    let is_set =
        head.queue_mode() == Some(wanted) && head.mode_set_since(timestamp) < RESEND_INTERVAL;
    (!is_set).then_some(wanted)
}

#[cfg(test)]
mod tests;
