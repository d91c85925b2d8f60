//! One packet: which session it belongs to, what that makes of it, and what becomes of it.

use std::{net::SocketAddr, sync::atomic::Ordering, time::Instant};

use super::{
    Arrival, Attention, Checksums, Effects, Engine, Entry, Key, Lookup, Mark, Queued, Unread,
    Verdict, What,
    announcement::{Attempt, Judged},
    connection::Connection,
    control::{Control, Grant},
    effects::{Ask, Purpose, Released, SessionRef},
    parting::part,
    telling::{acknowledge, send_rest, wanted},
};
use crate::{
    packet::{Edit, Packet, Seq, flags},
    session::{
        Announced, Answers, DropReason, Forward, Outcome, Phase, Request, Rest, Session, Side,
    },
};

/// What is to be done about a packet now.
pub(super) enum Decision {
    /// It has its verdict.
    Verdict(Verdict),
    /// It overtook what precedes it, or its receiver is asked first what it has, and it may wait for that.
    Wait,
    /// It waits for what is asked of the kernel.
    Park(Stage),
}

/// What a packet waits for that is in the engine.
pub(super) enum Stage {
    /// For those of its session that came before it.
    Behind,
    /// For how its connection is translated.
    Lookup(Box<Announced>),
    /// For the pinhole of what it announces.
    Opening(Box<Announced>, Box<Attempt>),
    /// For the kernel to queue every packet, so that numbers may change.
    Lengthen(Answers),
}

/// A packet on its way, with what its verdict will need.
#[derive(Clone, Copy)]
pub(super) struct Deciding {
    pub(super) session: SessionRef,
    was_held: bool,
    needs_every: bool,
}

impl Deciding {
    /// Of a packet of which nothing is known.
    pub(super) const UNKNOWN: Self =
        Self { session: SessionRef::NONE, was_held: false, needs_every: false };
}

impl Engine {
    /// Decides about a packet that is new, or has waited.
    pub(super) fn arrive(&mut self, now: Instant, packet: Arrival<'_>, effects: &mut Effects) {
        self.go_on(now, packet, None, effects);
    }

    /// Decides about a packet: the one that its session waits for, if there are `answers` to what that asked.
    pub(super) fn go_on(
        &mut self,
        now: Instant,
        packet: Arrival<'_>,
        answers: Option<Answers>,
        effects: &mut Effects,
    ) {
        let mut deciding = Deciding::UNKNOWN;
        match self.decision(now, &packet, answers, &mut deciding, effects) {
            Decision::Verdict(verdict) => self.release(packet, verdict, deciding, effects),
            Decision::Wait => self.reorder(now, packet, effects),
            Decision::Park(stage) => self.park(packet, deciding.session, stage, effects),
        }
    }

    /// A packet has its verdict.
    #[inline]
    pub(super) fn release(
        &mut self,
        packet: Arrival<'_>,
        verdict: Verdict,
        deciding: Deciding,
        effects: &mut Effects,
    ) {
        let Deciding { session, was_held, needs_every } = deciding;
        if let Verdict::Drop(reason) = verdict {
            self.note_drop(packet.bytes, reason);
        }
        let is_late = packet.how.is_late;
        if is_late {
            self.lapse_session(session);
        }
        // What passed meanwhile may be anything.
        let session = if is_late { SessionRef::NONE } else { session };
        let answer = super::Answer::Nothing;
        let token = packet.token;
        effects.verdicts.push(Released { token, verdict, answer, session, was_held, needs_every });
    }

    #[cold]
    fn note_drop(&mut self, bytes: &[u8], reason: DropReason) {
        self.counters.drops.count(reason);
        let Ok(packet) = Packet::parse(bytes) else { return };
        let seq = packet.seq().0;
        if let Some(Entry { session, control }) = self.table.of_packet(&packet) {
            let from = control.side(packet.endpoints().0);
            let (id, expected) = (control.id, session.next_of(from).0);
            tracing::trace!(
                "packet dropped: {reason}, session {id}, sequence number {seq} of the {from:?}, expected {expected}"
            );
        } else {
            tracing::trace!("packet dropped: {reason}, no session, sequence number {seq}");
        }
    }

    /// A packet passes unread, `why`.
    #[cold]
    fn pass_unread(&mut self, bytes: &[u8], why: fn(&mut Unread) -> &mut u64, what: &str) {
        *why(&mut self.counters.unread) += 1;
        trace_unread(bytes, what);
    }

    fn decision(
        &mut self,
        now: Instant,
        arrival: &Arrival<'_>,
        answers: Option<Answers>,
        deciding: &mut Deciding,
        effects: &mut Effects,
    ) -> Decision {
        let Arrival { bytes, how, .. } = *arrival;
        let Queued { offload, ended_calm, ended_calm_before, may_wait, every, .. } = how;
        const ACCEPT: Decision = Decision::Verdict(Verdict::Accept);
        let Ok(packet) = Packet::parse(bytes).map(|packet| packet.left_to(offload)) else {
            self.counters.malformed += 1;
            self.pass_unread(bytes, |unread| &mut unread.malformed, "it cannot be read");
            return ACCEPT;
        };
        let is_summed = self.checksums == Checksums::Verify && !offload.unsummed;
        if is_summed && !packet.checksum_is_valid() {
            self.counters.malformed += 1;
            self.pass_unread(bytes, |unread| &mut unread.checksum, "its checksum is wrong");
            return ACCEPT;
        }
        if how.is_late && !self.decides_late(&packet) {
            return Decision::Verdict(Verdict::Drop(DropReason::Stale));
        }
        let (source, destination) = packet.endpoints();
        let found = self.table.find(&Key::between(source, destination));
        if answers.is_none()
            && let Some(index) = found
            && self.interrupted.contains(&index)
            && self.is_of_client(index, source)
        {
            return Decision::Verdict(Verdict::Drop(DropReason::FastPathRace));
        }
        if answers.is_none()
            && let Some(session) = found.and_then(|index| self.busy_session(index))
        {
            deciding.session = session;
            return Decision::Park(Stage::Behind);
        }
        let Some(index) = self.entry_of(now, &packet, found, how, effects) else {
            trace_unread(bytes, "no session follows it");
            return ACCEPT;
        };
        let moment = self.epoch.moment(now);
        let Some(Entry { session, control }) = self.table.get_mut(index) else {
            return ACCEPT;
        };
        control.last = moment;
        let from = control.side(source);
        let has_unseen = session.has_unseen_lines();
        // No calm has begun since: that of before a restart ended while nobody was there.
        let ended_calm = ended_calm || ended_calm_before && has_unseen;
        let says = from == Side::Client && !packet.payload().is_empty();
        if says && control.grant == Grant::Revoked {
            return Decision::Verdict(Verdict::Drop(DropReason::FastPathRace));
        }
        if control.attention() == Some(Attention::Calm) {
            // One that is not given yet has ended nothing.
            if ended_calm && control.grant == Grant::None {
                control.told(Attention::Payload, moment);
            } else if says {
                return Decision::Verdict(self.interrupt(now, index, effects));
            }
        }
        if session.has_ended() && !packet.has(flags::SYN) {
            return Decision::Verdict(self.answer_ended(index, from, &packet, effects));
        }
        let is_unsaid = session.dialogue().phase() == Phase::Silent && control.rival().is_none();
        if is_unsaid && !packet.has(flags::SYN) && !session.concerns(from, &packet) {
            // Of a connection that is not known: the SYN-ACK was a stranger's.
            let what = "it is of another connection than the one that is followed";
            self.pass_unread(bytes, |unread| &mut unread.other_connection, what);
            return ACCEPT;
        }
        deciding.session = SessionRef { index, id: control.id };
        deciding.was_held = session.wants_every_packet();
        if may_wait && session.is_early(from, &packet) {
            return Decision::Wait;
        }
        let mut connection = Connection {
            now,
            moment,
            index,
            policy: self.policy.within(control.network()),
            control,
            pinholes: &mut self.pinholes,
            counters: &mut self.counters,
            effects,
            answers: self.answers,
        };
        let inspection = &mut self.inspection;
        inspection.refuses_auth = connection.policy.refuses_auth();
        inspection.answers = answers.unwrap_or_default();
        let read = [Side::Client, Side::Server].map(|side| session.next_of(side));
        let outcome = loop {
            let is_end = ended_calm && has_unseen;
            let outcome =
                session.packet_after(is_end, from, &packet, inspection, &mut self.payload);
            for note in inspection.notes.drain(..) {
                connection.note(note);
            }
            let stage = match inspection.request.take() {
                None => break outcome,
                Some(Request::Announcement(announced)) => match connection.judge(&announced) {
                    Judged::Ruled(ruling) => {
                        inspection.answers.ruling = Some((announced, ruling));
                        continue;
                    }
                    Judged::Lookup => {
                        let lookup = Ask::new(deciding.session, connection.ends());
                        connection.effects.lookups.push(lookup);
                        Stage::Lookup(announced)
                    }
                    Judged::Opening(attempt) => Stage::Opening(announced, attempt),
                },
                Some(Request::Lengthen) => {
                    connection.mark(Attention::Every);
                    Stage::Lengthen(std::mem::take(&mut inspection.answers))
                }
            };
            connection.control.busy = true;
            return Decision::Park(stage);
        };
        let asks = may_wait && session.is_asking(from, &packet);
        let is_new = read != [Side::Client, Side::Server].map(|side| session.next_of(side));
        let wanted = wanted(&connection, session, &outcome, every);
        if let Some(wanted) = wanted {
            connection.mark(wanted);
        }
        deciding.needs_every = wanted == Some(Attention::Every);
        if let Some(acknowledgement) = outcome.acknowledge {
            acknowledge(&mut connection, acknowledgement);
        }
        let attention = connection.control.attention();
        let is_watched = matches!(attention, Some(Attention::Watched | Attention::Every))
            || deciding.needs_every;
        if is_watched && !session.changes_packets() {
            self.watched.add(now, index, connection.control);
        }
        if session.is_over() {
            connection.close_all("the control connection ended");
        } else if session.wants_no_packet() {
            connection.close_all("the connection is not inspected any more");
        }
        let decision =
            forward(&mut connection, session, from, &packet, &outcome, &self.payload, asks);
        let ends = flags::FIN | flags::RST | flags::SYN;
        let says = is_new || packet.flags() & ends != 0;
        let is_dropped = matches!(outcome.forward, Forward::Drop(_));
        if session.wants_no_packet() {
            self.remove(index);
        } else if says && !is_dropped || has_unseen {
            // Of others nothing is lost that the next packet does not tell again.
            self.note_change(index);
        }
        self.weigh(index, effects);
        self.enlist(now, index, effects);
        decision
    }

    /// The entry that `packet` belongs to, made where it starts one.
    fn entry_of(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        found: Option<u32>,
        how: Queued,
        effects: &mut Effects,
    ) -> Option<u32> {
        if let Some(index) = found
            && !packet.has(flags::SYN)
        {
            let is_contested = self.table.get_mut(index)?.control.rival().is_some();
            return if is_contested { self.decide(now, index, packet, effects) } else { found };
        }
        let (source, destination) = (packet.source(), packet.destination());
        if packet.has(flags::SYN | flags::ACK) {
            let Some(index) = found else {
                let session = Session::opened(packet);
                return self.insert(now, destination, source, session, effects);
            };
            let Entry { session, control } = self.table.get_mut(index)?;
            if session.began_with(packet) {
                return found;
            }
            // All that is known of such a one is that something was said before, in the SYN.
            let is_unknown = session.dialogue().phase() == Phase::Joined && !session.is_adjusted();
            if !(control.spoke_in_syn() && is_unknown) {
                return self.contest(now, index, packet, how.every, effects);
            }
            self.forget(index);
            let session = Session::opened_unread(packet);
            return self.insert(now, destination, source, session, effects);
        }
        if packet.payload().is_empty() {
            self.counters.unread.no_session += u64::from(found.is_none());
            return found;
        }
        if let Some(index) = found {
            self.table.get_mut(index)?.control.set_spoke_in_syn(true);
            return found;
        }
        // The start was not seen. Where nobody says which end is the client its port shows it, if at all; nobody is asked,
        // as whoever forges such packets would have it asked for each.
        let Some(side) = how.from.or_else(|| self.side_by_port(source, destination)) else {
            self.counters.unread.no_session += 1;
            return None;
        };
        let session = Session::joined(side, packet);
        let index = match side {
            Side::Client => self.insert(now, source, destination, session, effects),
            Side::Server => self.insert(now, destination, source, session, effects),
        }?;
        self.table.get_mut(index)?.control.set_spoke_in_syn(packet.has(flags::SYN));
        Some(index)
    }

    fn side_by_port(&self, source: SocketAddr, destination: SocketAddr) -> Option<Side> {
        let is_control =
            |endpoint: SocketAddr| self.policy.control_ports.contains(&endpoint.port());
        match (is_control(destination), is_control(source)) {
            (true, false) => Some(Side::Client),
            (false, true) => Some(Side::Server),
            _ => None,
        }
    }

    pub(super) fn insert(
        &mut self,
        now: Instant,
        client: SocketAddr,
        server: SocketAddr,
        session: Session,
        effects: &mut Effects,
    ) -> Option<u32> {
        let network = self.policy.network_of(client.ip(), server.ip());
        if !self.policy.inspects(network) {
            self.counters.unread.not_followed += 1;
            self.leave_alone(client, server, effects);
            return None;
        }
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let moment = self.epoch.moment(now);
        let mut control = Control::new(id, client, server, moment);
        control.set_network(network);
        // For one of which as little is known no other is given up.
        let is_joined = session.dialogue().phase() == Phase::Joined;
        if !(if is_joined { self.has_room() } else { self.make_room(now, effects) }) {
            self.counters.uninspected += 1;
            self.counters.unread.not_followed += 1;
            effects
                .events
                .push(control.event(What::Limit("not followed: there are max-sessions".into())));
            return None;
        }
        let index = self.table.insert(Entry { session, control });
        self.note_change(index);
        Some(index)
    }

    /// Has no packet of the connection queued any more.
    fn leave_alone(&mut self, client: SocketAddr, server: SocketAddr, effects: &mut Effects) {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let mark = Mark {
            connection: Lookup { client, server },
            translation: None,
            attention: Attention::None,
            purpose: Purpose::LeaveAlone,
        };
        effects.marks.push(Ask::new(SessionRef { id, ..SessionRef::NONE }, mark));
    }
}

/// Tells of a packet that passes unread.
#[cold]
fn trace_unread(bytes: &[u8], what: &str) {
    match Packet::parse(bytes) {
        Ok(packet) => {
            let (source, destination, seq) =
                (packet.source(), packet.destination(), packet.seq().0);
            tracing::trace!(
                "packet passes unread: {what}, {source} -> {destination}, sequence number {seq}"
            );
        }
        Err(error) => tracing::trace!("packet passes unread: {what}, {error}"),
    }
}

/// What goes on in the place of `packet`.
#[inline]
fn forward(
    connection: &mut Connection<'_>,
    session: &Session,
    from: Side,
    packet: &Packet<'_>,
    outcome: &Outcome,
    changed: &[u8],
    asks: bool,
) -> Decision {
    let sent = session.map(from.peer());
    let acknowledged = |[left, right]: [Seq; 2]| {
        let (left, right) = (sent.acknowledge_left(left), sent.acknowledge(right));
        left.is_before(right).then_some([left, right])
    };
    let rebuilt = |edit: &Edit<'_>| {
        let mut segment = Vec::new();
        packet.rebuild_onto(edit, acknowledged, &mut segment);
        segment
    };
    Decision::Verdict(match outcome.forward {
        Forward::Unchanged => Verdict::Accept,
        Forward::Drop(reason) => Verdict::Drop(reason),
        // Not reached: what asks was parked.
        Forward::Asks => Verdict::Drop(DropReason::KernelRefused),
        Forward::Changed { seq, ack, flags, .. } if asks => {
            let edit = Edit { seq, ack, payload: Some(&[]), flags, urgent: 0 };
            send_rest(connection, from, rebuilt(&edit));
            return Decision::Wait;
        }
        // The kernel drops one that is not longer than its first segment was, and does not say how long that is.
        Forward::Changed { seq, ack, payload: true, flags, urgent }
            if packet.offload().joined && changed.len() < packet.payload().len() =>
        {
            let edit = Edit { seq, ack, payload: Some(changed), flags, urgent };
            let limit = session.longest_segment(from);
            for segment in part(packet, &edit, limit, acknowledged) {
                send_rest(connection, from, segment);
            }
            Verdict::Drop(DropReason::Resegmented)
        }
        Forward::Changed { seq, ack, payload, flags, urgent } => {
            let mut whole = changed;
            if let Some(Rest { start, flags }) = outcome.rest {
                let (first, rest) = whole.split_at(start);
                whole = first;
                let seq = seq + start as u32; // within a packet
                let edit = Edit { seq, ack, payload: Some(rest), flags, urgent: 0 };
                send_rest(connection, from, rebuilt(&edit));
            }
            let payload = payload.then_some(whole);
            let edit = Edit { seq, ack, payload, flags, urgent };
            let out = &mut connection.effects.replacements;
            let start = out.len();
            packet.rebuild_onto(&edit, acknowledged, out);
            Verdict::Replace(start..out.len())
        }
    })
}
