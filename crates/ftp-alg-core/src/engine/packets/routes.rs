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
    engine::{Engine, EventKind, Kernel, PacketMeta, RouteLookup, Sessions},
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

impl Engine {
    /// Whether a packet of the session at `index` comes from where its sender is. It is asked while the interfaces are
    /// not [settled](crate::session::Interfaces::are_settled).
    #[inline(never)] // most packets do not need it
    pub(crate) fn comes_from_sender(
        &mut self,
        now: Instant,
        index: u32,
        from: Side,
        meta: &PacketMeta,
        kernel: &mut dyn Kernel,
    ) -> bool {
        let Some(entry) = self.sessions.table.get_mut(index) else { return true };
        if let Some(question) = entry.session.interfaces.take_input(from, meta.input) {
            // The interface of earlier packets may be right as well.
            let earlier = entry.session.interfaces.question_of(from);
            let earlier = earlier.filter(|_| entry.session.interfaces.contradicts(question));
            if let Some(earlier) = earlier {
                self.sessions.has_route(now, index, earlier, meta.mark, kernel);
            }
            if !self.sessions.has_route(now, index, question, meta.mark, kernel) {
                return false;
            }
        }
        let Some(entry) = self.sessions.table.get_mut(index) else { return true };
        if let Some(question) = entry.session.interfaces.take_output(from.peer(), meta.output)
            && !self.sessions.has_route(now, index, question, meta.mark, kernel)
        {
            // The interface stays doubtful, so nothing is opened.
            self.report_elsewhere(index, OPENS_NOTHING);
        }
        true
    }

    /// Reports packets from elsewhere, once for each session.
    #[cold]
    pub(crate) fn report_elsewhere(&mut self, index: u32, what: EventKind) {
        if let Some(entry) = self.sessions.table.get_mut(index)
            && entry.session.interfaces.report_once()
        {
            self.sessions.batch.events.push(entry.head.event(what));
        }
    }

    /// Whether to forward a payload of `from` that came from elsewhere.
    #[cold]
    pub(crate) fn accepts_from_elsewhere(
        &mut self,
        index: u32,
        from: Side,
        packet: &Packet<'_>,
    ) -> bool {
        let Some(entry) = self.sessions.table.get_mut(index) else {
            return false;
        };
        let phase = entry.session.dialogue.phase();
        let is_accepted = entry.session.accepts_from_elsewhere(from, packet);
        if phase != entry.session.dialogue.phase() {
            self.sessions.batch.events.push(entry.head.event(OPENS_NOTHING));
        }
        is_accepted
    }
}

impl Sessions {
    /// The answer to a question of the session at `index`, which then knows it. If the policy lets its packets count
    /// [anywhere](crate::policy::Policy::any_interface), the answer is yes.
    pub(crate) fn has_route(
        &mut self,
        now: Instant,
        index: u32,
        question: RouteQuestion,
        mark: u32,
        kernel: &mut dyn Kernel,
    ) -> bool {
        let Some(entry) = self.table.get_mut(index) else { return false };
        if self.policy.for_network(entry.head.network()).any_interface {
            entry.session.confirm_interface(question);
            return true;
        }
        let address = match question.end {
            Side::Client => entry.head.client().ip(),
            Side::Server => entry.head.server().ip(),
        };
        let RouteQuestion { interface, used, .. } = question;
        let lookup = RouteLookup { address, interface, used, mark };
        let has_route = self.routes.get(&lookup).unwrap_or_else(|| {
            let answer = kernel.has_route(lookup).unwrap_or_else(|error| {
                self.counters.errors += 1;
                let refused = EventKind::KernelRefused(error.to_string());
                self.batch.events.push(entry.head.event(refused));
                false
            });
            self.routes.insert(now, lookup, answer);
            answer
        });
        if has_route {
            entry.session.confirm_interface(question);
        }
        has_route
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
