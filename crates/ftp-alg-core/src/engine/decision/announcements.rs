//! Decides about announcements: opens a pinhole for each permitted one, and reports the decision.

use std::net::{IpAddr, SocketAddr};

use super::{
    Decider,
    permission::{NoPinhole, external, names_sender, permit},
};
use crate::{
    engine::{
        Decision, EventKind, InstalledIn, KernelError, Opening, Refusal, Translation,
        activity::EXAMINED_AFTER,
        offload::handover::PinholeId,
        pinholes::{pinhole::Pinhole, ports::NotOpened},
    },
    ftp::{AnnouncementKind, MalformedAnnouncement, Padding},
    policy::ForeignAddress,
    session::{Action, AnnouncedLine, Phase, RefusalReason},
};

/// Limit of pinholes of one session; pipelined announcements need several.
pub(crate) const MAX_PER_SESSION: usize = 8;

/// Why a reply that nobody has asked for opens nothing.
const NOT_REQUESTED: &str = "the reply answers no PASV or EPSV";

impl Decider<'_> {
    /// Opens a pinhole for an announcement, at the first external port that is free, or decides why not.
    pub(super) fn decide(&mut self, line: &AnnouncedLine) -> Action {
        let endpoint = self.endpoint(line);
        let opened = self.open(line, endpoint);
        let decision =
            opened.unwrap_or_else(|none| self.unopened_decision(line, endpoint.ok(), none));
        self.report(decision)
    }

    /// Decides about an announcement that the BPF program inspected, and for which it opened the pinhole
    /// `of_program`. The session takes the pinhole over if dialogue and policy permit it. The line has passed in any
    /// case.
    pub fn decide_fast_path_announcement(
        &mut self,
        line: &AnnouncedLine,
        of_program: &mut Option<PinholeId>,
    ) -> Action {
        let endpoint = self.endpoint(line).ok();
        let decision = self
            .take_fast_path_pinhole(line, endpoint, of_program)
            .unwrap_or_else(|none| none.decision(line, endpoint, Action::Pass));
        self.report(decision)
    }

    /// The announced endpoint.
    fn endpoint<'a>(
        &self,
        line: &'a AnnouncedLine,
    ) -> Result<SocketAddr, &'a MalformedAnnouncement> {
        let read = line.parsed.as_ref()?;
        let address = read.address.unwrap_or(self.head.server().ip());
        Ok(SocketAddr::new(address, read.port))
    }

    fn open(
        &mut self,
        line: &AnnouncedLine,
        endpoint: Result<SocketAddr, &MalformedAnnouncement>,
    ) -> Result<Decision, NoPinhole> {
        let is_active = line.kind.is_active();
        if !is_active && matches!(endpoint, Err(MalformedAnnouncement::Form(_))) {
            return Err(NoPinhole::because(Decision::NAMES_NO_ENDPOINT));
        }
        // The kernel is not asked, because an attacker can send such a reply at will. The reply may work without a
        // pinhole.
        if matches!(line.phase, Phase::PickedUp | Phase::PickedUpFtp) && !is_active {
            return Err(NoPinhole::because(line.blocked_because.unwrap_or_default()));
        }
        let endpoint = endpoint.map_err(|malformed| NoPinhole::malformed(line.kind, malformed))?;
        if !line.was_requested {
            return Err(NoPinhole::because(NOT_REQUESTED));
        }
        let control = self
            .translation()
            .map_err(|error| self.untranslated_decision(line, endpoint, &error))?;
        let (opening, address) = self.permit_line(line, endpoint, &control)?;
        let padding = self.allowed_padding(line);
        let room = self.room_for_port(line, endpoint, address);
        let fits = |port| room.is_none_or(|room| line.kind.fits_port(port, room, padding));
        let opened = self
            .pinholes
            .open(self.now, self.index, opening, fits, self.policy, self.kernel)
            .map(|(pinhole, other_session)| (pinhole.clone(), other_session));
        let (pinhole, other_session) = opened.map_err(|why| self.reason_of(why))?;
        Ok(self.opened_decision(line, endpoint, address, &pinhole, other_session))
    }

    fn take_fast_path_pinhole(
        &mut self,
        line: &AnnouncedLine,
        endpoint: Option<SocketAddr>,
        of_program: &mut Option<PinholeId>,
    ) -> Result<Decision, NoPinhole> {
        let (Some(id), Some(endpoint)) = (*of_program, endpoint) else {
            return Err(NoPinhole::because("the fast path opened no pinhole for it"));
        };
        if !line.was_requested {
            return Err(NoPinhole::because(NOT_REQUESTED));
        }
        let Some(control) = self.head.extra().translation else {
            return Err(NoPinhole::because("the connection's translation is unknown"));
        };
        let (Opening { ends, lifetime, .. }, address) =
            self.permit_line(line, endpoint, &control)?;
        *of_program = None;
        let client = self.head.client().ip().into();
        let mut held =
            Pinhole::new(ends, line.kind, self.now + lifetime, client, InstalledIn::Program(id));
        held.opened = self.pinholes.first_opened(self.now, self.index, &ends);
        held.examination = Some(self.now + EXAMINED_AFTER);
        held.set_granted(self.head.extra().fast_path.is_handed_over);
        self.close_replaced(&ends);
        let pinhole = self.pinholes.hold_of_program(self.index, held).clone();
        Ok(self.opened_decision(line, endpoint, address, &pinhole, None))
    }

    /// The pinhole for `endpoint`, and the address to announce, if the dialogue and the policy allow them.
    fn permit_line(
        &mut self,
        line: &AnnouncedLine,
        endpoint: SocketAddr,
        control: &Translation,
    ) -> Result<(Opening, IpAddr), NoPinhole> {
        let permitted = permit(line.kind, endpoint, control, self.policy)?;
        if let Some(reason) = line.blocked_because {
            return Err(NoPinhole::because(reason));
        }
        if self.policy.require_login && !line.is_logged_in {
            return Err(NoPinhole::because("the server has not accepted a login"));
        }
        if line.is_epsv_only && line.kind != AnnouncementKind::Epsv {
            let reason = "the client has sent EPSV ALL, so only EPSV is allowed";
            return Err(NoPinhole::objection(RefusalReason::EpsvOnly, reason));
        }
        if self.pinholes.of(self.index).count() >= MAX_PER_SESSION {
            self.counters.limits.session_pinholes += 1;
            let reason = format!("the session has {MAX_PER_SESSION} pinholes already");
            return Err(NoPinhole::objection(RefusalReason::PinholeLimit, reason));
        }
        Ok(permitted)
    }

    /// Decides about an announcement of a connection whose translation the kernel could not look up.
    fn untranslated_decision(
        &mut self,
        line: &AnnouncedLine,
        endpoint: SocketAddr,
        error: &KernelError,
    ) -> NoPinhole {
        let blocked = line.blocked_because;
        // Conntrack does not know a connection that was picked up mid-stream before its first packet has left.
        if blocked.is_none() || !matches!(error, KernelError::Unknown) {
            self.report_kernel_error(error);
        }
        match (error, blocked) {
            // Nothing is opened, so the line passes if it names the client's own address.
            (KernelError::Unknown, Some(reason)) => {
                let untranslated = self.head.translation_or_identity();
                let permitted = permit(line.kind, endpoint, &untranslated, self.policy);
                permitted.err().unwrap_or_else(|| NoPinhole::because(reason))
            }
            _ => NoPinhole::objection(RefusalReason::KernelRefused, error.to_string()),
        }
    }

    /// Counts the pinhole `opened` for `endpoint`, and closes the pinholes that it replaces. The decision is to
    /// announce the pinhole's port at `address`. `other_session` is the reason if another session waits at the
    /// announced port.
    fn opened_decision(
        &mut self,
        line: &AnnouncedLine,
        endpoint: SocketAddr,
        address: IpAddr,
        opened: &Pinhole,
        other_session: Option<&'static str>,
    ) -> Decision {
        let Pinhole { serial, ends, .. } = *opened;
        self.counters.pinholes_opened += 1;
        if !line.kind.is_active() {
            self.close_answered_before(serial);
        }
        self.add_timer();
        let announced = SocketAddr::new(address, ends.arrival.port());
        let is_rewritten = announced != endpoint;
        self.counters.rewrites += u64::from(is_rewritten);
        let (foreign, own) = (endpoint.ip(), self.head.server().ip());
        let reason = match other_session {
            // The server's own address, the usual one, needs no look at the policy.
            _ if foreign != own
                && ends.target.ip() == own
                && self.is_foreign(line.kind, foreign) =>
            {
                format!("foreign address {foreign} replaced: the server is {own}").into()
            }
            Some(reason) => reason.into(),
            None if is_rewritten => "the other end sees another endpoint".into(),
            None => "both ends see the same endpoint".into(),
        };
        Decision {
            kind: line.kind,
            announced: Some(endpoint),
            unread_text: None,
            action: Action::Open { endpoint: announced, padding: self.allowed_padding(line) },
            reason,
            objection: None,
            pinhole: Some(ends),
        }
    }

    /// Whether a server announced another address than its own.
    fn is_foreign(&self, kind: AnnouncementKind, announced: IpAddr) -> bool {
        let translation = self.head.translation_or_identity();
        let is_own = |external| names_sender(kind, announced, &translation, external);
        !kind.is_active() && !external(kind, &translation, self.policy).is_ok_and(is_own)
    }

    /// Decides whether a line for which nothing is opened passes. A command that names the server itself is refused.
    fn unopened_decision(
        &mut self,
        line: &AnnouncedLine,
        endpoint: Option<SocketAddr>,
        mut none: NoPinhole,
    ) -> Decision {
        let objection = none.objection.filter(|one| !self.passes_despite(*one, line, endpoint));
        let names_nobody = endpoint.is_some_and(|end| end.ip().is_unspecified());
        let action = match objection {
            Some(objection) => Action::Refuse(objection),
            // Unchanged, the line would make the server connect to itself.
            None if line.kind.is_active() && names_nobody => {
                none.reason = format!("{}, and it names the server itself", none.reason).into();
                Action::Refuse(RefusalReason::ForeignAddress)
            }
            None => Action::Pass,
        };
        none.decision(line, endpoint, action)
    }

    /// Whether a line passes although this `objection` opens nothing for it.
    ///
    /// A command is refused, because the server would obey it, unless the policy allows foreign addresses. A server's
    /// reply passes, because its client may reach the endpoint without a pinhole, or may connect to the address that
    /// the client dialled. A reply is refused if the policy refuses foreign addresses, or if the client could not use
    /// it: this gateway hides the server, or the operator's rules drop the connection.
    fn passes_despite(
        &mut self,
        objection: RefusalReason,
        line: &AnnouncedLine,
        endpoint: Option<SocketAddr>,
    ) -> bool {
        let is_active = line.kind.is_active();
        match objection {
            RefusalReason::ForeignAddress | RefusalReason::OtherFamily => {
                match self.policy.foreign_address {
                    ForeignAddress::Refuse => false,
                    ForeignAddress::Pass => !is_active,
                    ForeignAddress::Allow => true,
                }
            }
            _ => !is_active && !self.hides_server() && !self.is_dropped(endpoint),
        }
    }

    /// Whether clients know the server by another address than its own, as far as the translation is known.
    fn hides_server(&self) -> bool {
        self.head.extra().translation.is_some_and(|translation| {
            let external = external(AnnouncementKind::Pasv, &translation, self.policy);
            external.ok() != Some(translation.server.ip())
        })
    }

    /// Whether the operator's rules certainly drop the client's connection to this endpoint without a pinhole. Nobody
    /// knows where the connection goes while the translation is unknown.
    fn is_dropped(&mut self, endpoint: Option<SocketAddr>) -> bool {
        let endpoint = endpoint.filter(|_| self.head.extra().translation.is_some());
        endpoint.zip(self.interfaces.indices()).is_some_and(|(endpoint, interfaces)| {
            self.kernel.drops_unadmitted(interfaces, endpoint)
        })
    }

    /// Reports a decision, and returns its action.
    fn report(&mut self, decision: Decision) -> Action {
        let action = decision.action;
        if let Action::Refuse(reason) = action {
            self.counters.pinholes_refused += 1;
            self.counters.refusals.count(reason);
            self.push_event(EventKind::Refusal(Refusal::Announcement(decision)));
        } else {
            self.push_event(EventKind::Announcement(decision));
        }
        action
    }

    /// The padding by which an announcement may keep its length.
    fn allowed_padding(&self, line: &AnnouncedLine) -> Padding {
        if self.policy.preserves_length { line.padding } else { Padding::None }
    }

    /// Number of bytes that an external port must take so that the line keeps its length; `None` if any port will do.
    fn room_for_port(
        &mut self,
        line: &AnnouncedLine,
        endpoint: SocketAddr,
        address: IpAddr,
    ) -> Option<usize> {
        let kind = line.kind;
        // A server's port may be the only one that is forwarded to it.
        if !self.policy.preserves_length || !kind.is_active() || address == endpoint.ip() {
            return None;
        }
        let padding = self.allowed_padding(line);
        let room = line.parsed.as_ref().ok()?.room_for_port(address, padding)?;
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

    fn reason_of(&mut self, why: NotOpened) -> NoPinhole {
        let limits = &mut self.counters.limits;
        match why {
            NotOpened::Limit(limit) => {
                limits.client_pinholes += 1;
                let reason = format!("the client has {limit} pinholes already");
                NoPinhole::objection(RefusalReason::PinholeLimit, reason)
            }
            NotOpened::Full(what) => {
                limits.pinholes += 1;
                let reason = format!("there is no room for another pinhole: {what}");
                NoPinhole::objection(RefusalReason::PinholeLimit, reason)
            }
            NotOpened::NoPort => {
                limits.ports += 1;
                NoPinhole::objection(RefusalReason::NoFreePort, "no external port is free")
            }
            NotOpened::Kernel(error) => {
                self.report_kernel_error(&error);
                NoPinhole::objection(RefusalReason::KernelRefused, error.to_string())
            }
        }
    }
}
