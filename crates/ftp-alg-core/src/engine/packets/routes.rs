//! Whether packets arrive on the interfaces on which their senders are.
//!
//! A session knows the interfaces of its ends. The kernel is asked about another one. A server's packet from where no
//! route to it leads passes unread: it opens nothing and does not change its session. A client's is dropped, because
//! the policy may refuse a command of it.
//!
//! The expression `fib` of nftables knows the best route only, so it would not find a second path. rp_filter has the
//! same limit, and IPv6 has none.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use ahash::RandomState;

use crate::{
    engine::{
        Effects, Engine, EventKind, PacketMeta, QueuedPacket, Sessions,
        questions::{
            effects::{KernelRequest, SessionRef, WaitingPacket},
            kernel::RouteLookup,
        },
    },
    packet::Packet,
    session::{RouteQuestion, Side},
};

const OPENS_NOTHING: EventKind = EventKind::RouteMissing(
    "opens nothing: the packets of an end arrive where no route to it leads",
);
/// The report of unread packets.
pub(crate) const SOME_UNREAD: EventKind = EventKind::FromElsewhere(
    "some packets are not read: they have an end's address, but arrive where no route to it leads",
);

/// What the interfaces of a packet say about it.
pub(crate) enum Origin {
    /// It comes from where its sender is.
    Sender,
    /// It comes from elsewhere.
    Elsewhere,
    /// The kernel must be asked.
    Unknown(RouteLookup),
}

impl Engine {
    /// Finds out whether a packet of the session at `index` comes from where its sender is. Not needed while the
    /// interfaces are [settled](crate::session::Interfaces::are_settled).
    #[inline(never)] // most packets do not need it
    pub(crate) fn find_origin(
        &mut self,
        index: u32,
        from: Side,
        meta: &PacketMeta,
        effects: &mut Effects,
    ) -> Origin {
        let Some(entry) = self.sessions.table.get_mut(index) else {
            return Origin::Sender;
        };
        if let Some(question) = entry.session.interfaces.take_input(from, meta.input) {
            // The interface of earlier packets may be right as well.
            let earlier = entry.session.interfaces.question_of(from);
            if let Some(earlier) =
                earlier.filter(|_| entry.session.interfaces.contradicts(question))
                && let Err(lookup) = self.sessions.answer_route(index, earlier, meta.mark)
            {
                return Origin::Unknown(lookup);
            }
            match self.sessions.answer_route(index, question, meta.mark) {
                Ok(true) => {}
                Ok(false) => return Origin::Elsewhere,
                Err(lookup) => return Origin::Unknown(lookup),
            }
        }
        let Some(entry) = self.sessions.table.get_mut(index) else {
            return Origin::Sender;
        };
        if let Some(question) = entry.session.interfaces.take_output(from.peer(), meta.output) {
            match self.sessions.answer_route(index, question, meta.mark) {
                Ok(true) => {}
                // The interface stays doubtful, so nothing is opened.
                Ok(false) => self.report_elsewhere(index, OPENS_NOTHING, effects),
                Err(lookup) => return Origin::Unknown(lookup),
            }
        }
        Origin::Sender
    }

    /// Reports packets from elsewhere, once for each session.
    #[cold]
    pub(crate) fn report_elsewhere(&mut self, index: u32, what: EventKind, effects: &mut Effects) {
        if let Some(entry) = self.sessions.table.get_mut(index)
            && entry.session.interfaces.report_once()
        {
            effects.events.push(entry.event(what));
        }
    }

    /// Whether to forward a payload of `from` that came from elsewhere.
    #[cold]
    pub(crate) fn accepts_from_elsewhere(
        &mut self,
        index: u32,
        from: Side,
        packet: &Packet<'_>,
        effects: &mut Effects,
    ) -> bool {
        let Some(entry) = self.sessions.table.get_mut(index) else {
            return false;
        };
        let phase = entry.session.dialogue.phase;
        let is_accepted = entry.session.accepts_from_elsewhere(from, packet);
        if phase != entry.session.dialogue.phase {
            effects.events.push(entry.event(OPENS_NOTHING));
        }
        is_accepted
    }

    /// Has the kernel asked for `packet`, which waits.
    #[cold]
    pub(crate) fn ask_for_route(
        &mut self,
        packet: &QueuedPacket<'_>,
        session: SessionRef,
        lookup: RouteLookup,
        effects: &mut Effects,
    ) {
        let QueuedPacket { token, meta, bytes } = *packet;
        if let Some(entry) = self.sessions.table.get_session(session.index, session.id) {
            entry.begin_request();
        }
        let bytes = effects.store_waiting(bytes);
        let waiting = WaitingPacket { token, meta, bytes, line: None };
        effects.route_lookups.push(KernelRequest::new(session, lookup, Some(waiting)));
    }

    /// Takes the kernel's answer to a route lookup.
    pub(crate) fn handle_route_lookup(
        &mut self,
        now: Instant,
        kernel_request: &mut KernelRequest<RouteLookup, bool>,
        packets: &[u8],
        effects: &mut Effects,
    ) {
        let session = kernel_request.session;
        let answer = kernel_request.answer.take().unwrap_or(Ok(false)).unwrap_or_else(|error| {
            self.sessions.counters.errors += 1;
            if let Some(entry) = self.sessions.table.get_session(session.index, session.id) {
                effects.events.push(entry.event(EventKind::KernelRefused(error.to_string())));
            }
            false
        });
        self.sessions.routes.insert(now, kernel_request.request, answer);
        let Some(waiting) = kernel_request.waiting.take() else {
            let entry = self.sessions.table.get_session(session.index, session.id);
            // Otherwise the answer to that lookup follows.
            if entry.is_some_and(|entry| !entry.extra().fast_path.wants_translation) {
                self.offer_to_fast_path(session.index, effects);
            }
            return;
        };
        let WaitingPacket { token, meta, bytes, .. } = waiting;
        let packet = QueuedPacket { token, meta, bytes: &packets[bytes] };
        self.resume(now, session, Some((packet, None)), effects);
    }
}

impl Sessions {
    /// The answer to a question of the session at `index`, which then knows it; an error with what to ask the kernel. If
    /// the policy lets its packets count [anywhere](crate::policy::Policy::any_interface), the answer is yes.
    pub(crate) fn answer_route(
        &mut self,
        index: u32,
        question: RouteQuestion,
        mark: u32,
    ) -> Result<bool, RouteLookup> {
        let Some(entry) = self.table.get_mut(index) else { return Ok(false) };
        if self.policy.for_network(entry.network()).any_interface {
            entry.session.confirm_interface(question);
            return Ok(true);
        }
        let address = match question.end {
            Side::Client => entry.client().ip(),
            Side::Server => entry.server().ip(),
        };
        let RouteQuestion { interface, used, .. } = question;
        let lookup = RouteLookup { address, interface, used, mark };
        let answer = self.routes.get(&lookup).ok_or(lookup)?;
        if answer {
            entry.session.confirm_interface(question);
        }
        Ok(answer)
    }
}

/// How long the answers no and yes are used. Routes may be about to change.
const LIFETIMES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// Limit of answers of one kind; at the limit all are forgotten.
const MAX_ANSWERS: usize = 2048;

/// The kernel's latest answers, so that a flood of forged packets does not ask for each.
#[derive(Debug, Default)]
pub struct RouteAnswers {
    /// With the answers no and yes.
    questions: [Questions; 2],
}

#[derive(Debug, Default)]
struct Questions {
    all: HashSet<RouteLookup, RandomState>,
    since: Option<Instant>,
}

impl RouteAnswers {
    /// Forgets answers if the first of them is old.
    #[inline]
    pub fn forget_old(&mut self, now: Instant) {
        for (Questions { all, since }, lifetime) in self.questions.iter_mut().zip(LIFETIMES) {
            if since.is_some_and(|since| now.saturating_duration_since(since) >= lifetime) {
                all.clear();
                *since = None;
            }
        }
    }

    pub fn get(&self, question: &RouteLookup) -> Option<bool> {
        let [no, yes] = &self.questions;
        let is_among = |questions: &Questions| questions.all.contains(question);
        is_among(yes).then_some(true).or_else(|| is_among(no).then_some(false))
    }

    pub fn insert(&mut self, now: Instant, question: RouteLookup, answer: bool) {
        let Questions { all, since } = &mut self.questions[usize::from(answer)];
        if all.len() >= MAX_ANSWERS {
            all.clear();
        }
        if all.is_empty() {
            *since = Some(now);
        }
        all.insert(question);
    }
}
