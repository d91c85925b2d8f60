//! Finds the session that a packet belongs to, or starts one, and decides whether the packet arrives on the interface on
//! which its sender is.
//!
//! A session knows the interfaces of its ends. The kernel is asked about another interface. New data from an interface to
//! which no route to its sender leads is dropped twice. The third time, a server's data passes unread; a client's data is
//! read, because the policy may refuse it, and counts as missed. A queued packet takes its connection back from the fast
//! path.
//!
//! The expression `fib` of nftables knows the best route only, so it would not find a second path. rp_filter has the
//! same limit, and IPv6 has none.

use std::{
    collections::HashSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ahash::RandomState;

use crate::{
    engine::{
        Engine, Entry, EventKind, Kernel, PacketMeta, QueuedPacket, RouteLookup, Sessions, Stray,
        Verdict,
        batch::SessionRef,
        offload::handover::FastPathProgress,
        packets::{ACCEPT, Handling, PacketContext, trace_unread},
        table::{Key, PREFETCHED, entry::Timestamp},
    },
    packet::{Packet, flags},
    session::{DropReason, Phase, RouteQuestion, Session, Side},
};

/// Time without a packet after which the server is not inside a reply, because servers write a reply at once.
const SILENCE: Duration = Duration::from_secs(5);
/// How long the answers no and yes are used. Routes may be about to change.
const LIFETIMES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// Limit of answers of one kind; at the limit all are forgotten.
const MAX_ANSWERS: usize = 2048;

const OPENS_NOTHING: EventKind = EventKind::Elsewhere(Stray {
    has_no_route: true,
    text: "opens nothing: the packets of an end arrive where no route to it leads",
});
/// The report of unread packets.
const SOME_UNREAD: EventKind = EventKind::Elsewhere(Stray {
    has_no_route: false,
    text: "some packets are not read: they have an end's address, but arrive where no route to it leads",
});

/// Fewer sessions are cached anyway.
const FEW_SESSIONS: usize = 4096;

/// Why a session is not to inspect a packet now.
enum Obstacle {
    /// The gateway has reset the connection.
    Reset,
    /// The packet belongs to another connection on the same endpoints.
    OtherConnection,
    /// Packets before it are missing.
    OutOfOrder { all_were_queued: bool },
}

impl Sessions {
    /// Prepares for the next packets, without decisions. With more sessions than a cache holds, each packet would wait
    /// for memory; here all of them wait once.
    pub fn prefetch<'p>(&self, packets: impl Iterator<Item = &'p [u8]>) {
        if self.table.len() < FEW_SESSIONS {
            return;
        }
        let mut keys = [Key::default(); PREFETCHED];
        let mut packets = packets.filter_map(|bytes| Packet::parse(bytes).ok()).peekable();
        while packets.peek().is_some() {
            let mut count = 0;
            for (key, packet) in keys.iter_mut().zip(&mut packets) {
                let (source, destination) = packet.endpoints();
                *key = Key::between(source, destination);
                count += 1;
            }
            self.table.prefetch(&keys[..count]);
        }
    }
}

impl Engine {
    /// Finds the session of a packet, or starts one, and sets its `context`. Returns the end that sent the packet; an
    /// error with the decision if its session is not to inspect the packet now.
    #[inline]
    pub(crate) fn find_session(
        &mut self,
        now: Instant,
        queued: &QueuedPacket<'_>,
        packet: &Packet<'_>,
        context: &mut PacketContext,
        kernel: &mut dyn Kernel,
    ) -> Result<Side, Handling> {
        let (source, destination) = packet.endpoints();
        let timestamp = self.sessions.epoch.timestamp(now);
        let found = self.sessions.table.find(&Key::between(source, destination));
        if let Some(index) = found
            && let Some(entry) = self.sessions.table.get_mut(index)
        {
            let (from, meta) = (entry.head.side_of(source), &queued.meta);
            let is_usual = !packet.has(flags::SYN)
                && entry.head.is_settled()
                && entry.session.interfaces.are_settled(from, meta.input, meta.output);
            if is_usual {
                let session = SessionRef { index, id: entry.head.id };
                return match obstacle(entry, timestamp, from, queued, packet) {
                    None => {
                        context.session = session;
                        Ok(from)
                    }
                    Some(obstacle) => {
                        Err(self.handle_obstacle(obstacle, queued, packet, session, from, context))
                    }
                };
            }
        }
        self.find_unusual_session(now, queued, packet, found, context, kernel)
    }

    /// As [`find_session`](Self::find_session), for a packet that may begin a session, wait for one, or come from
    /// elsewhere. Its endpoints are those of the entry `found`.
    #[inline(never)]
    fn find_unusual_session(
        &mut self,
        now: Instant,
        queued: &QueuedPacket<'_>,
        packet: &Packet<'_>,
        found: Option<u32>,
        context: &mut PacketContext,
        kernel: &mut dyn Kernel,
    ) -> Result<Side, Handling> {
        let QueuedPacket { bytes, meta, .. } = queued;
        let timestamp = self.sessions.epoch.timestamp(now);
        let source = packet.endpoints().0;
        let mut known = None;
        if let Some(index) = found
            && let Some(entry) = self.sessions.table.get_mut(index)
        {
            let from = entry.head.side_of(source);
            let is_settled = entry.session.interfaces.are_settled(from, meta.input, meta.output);
            let is_over = entry.session.is_over();
            let session = SessionRef { index, id: entry.head.id };
            let FastPathProgress { is_handed_over, is_stopped, .. } = entry.head.extra().fast_path;
            let is_adjusted = is_handed_over && entry.session.has_adjusted_numbers(from, packet);
            let is_certain = !packet.has(flags::SYN) && entry.head.incarnation().is_none();
            // A SYN changes nothing by itself. When the connection has ended, its ends may be elsewhere.
            let begins = packet.has(flags::SYN) && (!packet.has(flags::ACK) || is_over);
            if !is_settled && !begins && !self.comes_from_sender(now, index, from, meta, kernel) {
                self.report_elsewhere(index, SOME_UNREAD);
                let has_payload = !packet.payload().is_empty();
                if has_payload && !self.accepts_from_elsewhere(index, from, packet) {
                    return Err(Handling::Verdict(Verdict::Drop(DropReason::Elsewhere)));
                }
                if from == Side::Server || !has_payload {
                    if let Some(entry) = self.sessions.table.get_mut(index) {
                        entry.head.last_seen = timestamp;
                    }
                    let reason = "it arrived where no route to its sender leads";
                    self.pass_unread(bytes, |unread| &mut unread.elsewhere, reason);
                    (context.session, context.is_elsewhere) = (session, true);
                    return Ok(from);
                }
            }
            if is_handed_over {
                self.sessions.take_back(index);
                if is_adjusted {
                    return Err(Handling::Verdict(Verdict::Drop(DropReason::Adjusted)));
                }
                // It waited in the reorder queue, or comes by another route. The program may pass a line in its place
                // until it has stopped.
                if !is_stopped && !packet.payload().is_empty() {
                    return Err(Handling::Verdict(Verdict::Drop(DropReason::Overlap)));
                }
            }
            known = is_certain.then_some((index, from));
        }
        let known = known.or_else(|| {
            let before = found.and_then(|index| Some(self.sessions.table.get_mut(index)?.head.id));
            let index = self.find_or_insert(now, packet, found, *meta, kernel)?;
            let entry = &self.sessions.table.get_mut(index)?;
            let (from, is_new) = (entry.head.side_of(source), before != Some(entry.head.id));
            if is_new {
                // It knows no interfaces, so there is no question.
                self.comes_from_sender(now, index, from, meta, kernel);
            }
            Some((index, from))
        });
        let Some(known) = known else {
            trace_unread(bytes, "no session for it");
            return Err(ACCEPT);
        };
        let (index, from) = known;
        let Some(entry) = self.sessions.table.get_mut(index) else {
            return Err(ACCEPT);
        };
        let session = SessionRef { index, id: entry.head.id };
        if let Some(obstacle) = obstacle(entry, timestamp, from, queued, packet) {
            return Err(self.handle_obstacle(obstacle, queued, packet, session, from, context));
        }
        context.session = session;
        Ok(from)
    }

    /// The decision about a packet of `session` and `from` that the session is not to inspect now.
    #[inline(never)]
    fn handle_obstacle(
        &mut self,
        obstacle: Obstacle,
        queued: &QueuedPacket<'_>,
        packet: &Packet<'_>,
        session: SessionRef,
        from: Side,
        context: &mut PacketContext,
    ) -> Handling {
        match obstacle {
            Obstacle::Reset => {
                Handling::Verdict(self.sessions.answer_reset_session(session.index, from, packet))
            }
            Obstacle::OtherConnection => {
                let reason = "it belongs to another connection on the endpoints of a session";
                self.pass_unread(queued.bytes, |unread| &mut unread.other_connection, reason);
                ACCEPT
            }
            Obstacle::OutOfOrder { all_were_queued } => {
                (context.session, context.all_were_queued) = (session, all_were_queued);
                Handling::Reorder
            }
        }
    }

    /// Finds the entry of `packet` if that is not certain, or inserts one if the packet starts a session.
    fn find_or_insert(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        found: Option<u32>,
        meta: PacketMeta,
        kernel: &mut dyn Kernel,
    ) -> Option<u32> {
        if let Some(index) = found
            && !packet.has(flags::SYN)
        {
            return self.resolve_tuple_reuse(now, index, packet, kernel);
        }
        let (source, destination) = (packet.source(), packet.destination());
        if packet.has(flags::SYN | flags::ACK) {
            let Some(index) = found else {
                let session = Session::from_syn_ack(packet);
                return self.sessions.insert(now, destination, source, session, kernel);
            };
            let entry = self.sessions.table.get_mut(index)?;
            if entry.session.is_syn_ack_retransmission(packet)
                || entry.session.is_continued_by(packet)
            {
                return found;
            }
            return self.handle_tuple_reuse(now, index, packet, meta.queues_all, kernel);
        }
        if packet.has(flags::SYN) || packet.payload().is_empty() {
            self.sessions.counters.unread.no_session += u64::from(found.is_none());
            return found;
        }
        // Picked up mid-stream. If the rules do not tell which end sent the packet, the port does, if at all. Conntrack
        // is not asked, because an attacker could cause a lookup with each spoofed packet.
        let Some(side) = meta.from.or_else(|| self.side_by_port(source, destination)) else {
            self.sessions.counters.unread.no_session += 1;
            return None;
        };
        let session = Session::picked_up(side, packet);
        let (client, server) = match side {
            Side::Client => (source, destination),
            Side::Server => (destination, source),
        };
        self.sessions.insert(now, client, server, session, kernel)
    }

    fn side_by_port(&self, source: SocketAddr, destination: SocketAddr) -> Option<Side> {
        let is_control =
            |endpoint: SocketAddr| self.sessions.policy.control_ports.contains(&endpoint.port());
        match (is_control(destination), is_control(source)) {
            (true, false) => Some(Side::Client),
            (false, true) => Some(Side::Server),
            _ => None,
        }
    }
}

/// Notes the time of a packet of `from` in its session's `entry`. Returns why the session is not to inspect it now.
#[inline(always)]
fn obstacle(
    entry: &mut Entry,
    timestamp: Timestamp,
    from: Side,
    queued: &QueuedPacket<'_>,
    packet: &Packet<'_>,
) -> Option<Obstacle> {
    if timestamp.is_later_by(SILENCE, entry.head.last_seen) {
        entry.session.dialogue.note_silence();
    }
    entry.head.last_seen = timestamp;
    if entry.session.was_reset() && !packet.has(flags::SYN) {
        return Some(Obstacle::Reset);
    }
    let is_ungreeted =
        entry.session.dialogue.phase() == Phase::NotGreeted && entry.head.incarnation().is_none();
    if is_ungreeted && !packet.has(flags::SYN) && !entry.session.is_in_window(from, packet) {
        return Some(Obstacle::OtherConnection); // the session started with a spoofed SYN-ACK
    }
    (queued.meta.may_wait && entry.session.may_reorder(from, packet))
        .then(|| Obstacle::OutOfOrder { all_were_queued: entry.session.needs_all_queued() })
}

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
    /// Answers a question of the session at `index`, and tells the session. If the policy lets packets count
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
        let has_route = self.routes.get(now, &lookup).unwrap_or_else(|| {
            let answer = kernel.has_route(lookup).unwrap_or_else(|error| {
                self.counters.errors += 1;
                let refused = EventKind::Kernel(error.to_string().into());
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
    /// The answer to this question, if it is known. Answers are forgotten if the first of them is old.
    fn get(&mut self, now: Instant, question: &RouteLookup) -> Option<bool> {
        for (Questions { all, since }, lifetime) in self.questions.iter_mut().zip(LIFETIMES) {
            if since.is_some_and(|since| now.saturating_duration_since(since) >= lifetime) {
                all.clear();
                *since = None;
            }
        }
        let [no, yes] = &self.questions;
        let is_among = |questions: &Questions| questions.all.contains(question);
        is_among(yes).then_some(true).or_else(|| is_among(no).then_some(false))
    }

    fn insert(&mut self, now: Instant, question: RouteLookup, answer: bool) {
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
