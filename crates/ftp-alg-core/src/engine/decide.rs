//! One packet: which session it belongs to, what that makes of it, and what becomes of it.

use std::{net::SocketAddr, time::Instant};

use super::{
    Arrival, Attention, Checksums, Effects, Engine, Entry, Key, Queued, Unread, Verdict,
    announcement::Judged,
    connection::Connection,
    effects::{Released, SessionRef, Waiting},
    memory::is_to_be_weighed,
    parting::part,
    shares::is_to_be_counted,
    telling::{acknowledge, send_rest, wanted},
};
use crate::{
    packet::{Edit, Packet, Seq, flags},
    session::{
        Answered, DropReason, Forward, Known, Outcome, Phase, Question, Rest, Session, Side,
    },
};

/// What is to be done about a packet now.
pub(super) enum Decision {
    /// It has its verdict.
    Verdict(Verdict),
    /// It overtook what precedes it, or its receiver is asked first what it has, and it may wait for that.
    Wait,
    /// It waits behind those of its session that came before it.
    Behind,
    /// It waits for what is asked of the kernel.
    Asked,
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
    #[inline]
    pub(super) fn arrive(&mut self, now: Instant, packet: &Arrival<'_>, effects: &mut Effects) {
        let mut deciding = Deciding::UNKNOWN;
        let decision = self.decision(now, packet, &mut deciding, effects);
        self.follow(now, packet, decision, deciding, effects);
    }

    /// Goes on with a packet whose session has waited for `answer`. If that was given up meanwhile, it is decided anew.
    pub(super) fn go_on(
        &mut self,
        now: Instant,
        packet: &Arrival<'_>,
        session: SessionRef,
        answer: Answered,
        effects: &mut Effects,
    ) {
        let mut deciding = Deciding { session, ..Deciding::UNKNOWN };
        let read = Packet::parse(packet.bytes).map(|read| read.left_to(packet.how.offload));
        let entry = self.sessions.table.get_of(session.index, session.id);
        let (Ok(read), Some(Entry { control, .. })) = (read, entry) else {
            return self.arrive(now, packet, effects);
        };
        let from = control.side(read.endpoints().0);
        let decision =
            self.inspect(now, (packet, &read, from), Some(answer), &mut deciding, effects);
        self.follow(now, packet, decision, deciding, effects);
    }

    /// Does as was decided.
    #[inline]
    fn follow(
        &mut self,
        now: Instant,
        packet: &Arrival<'_>,
        decision: Decision,
        deciding: Deciding,
        effects: &mut Effects,
    ) {
        match decision {
            Decision::Verdict(verdict) => self.release(packet, verdict, deciding, effects),
            Decision::Wait => self.reorder(now, packet, effects),
            Decision::Behind => self.park(packet, deciding.session, effects),
            Decision::Asked => {}
        }
    }

    /// A packet has its verdict.
    #[inline]
    pub(super) fn release(
        &mut self,
        packet: &Arrival<'_>,
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
        let (token, SessionRef { index, id }) = (packet.token, session);
        let released = Released { token, verdict, index, id, was_held, needs_every };
        effects.verdicts.push(released);
    }

    #[cold]
    fn note_drop(&mut self, bytes: &[u8], reason: DropReason) {
        self.counters.drops.count(reason);
        if !tracing::enabled!(tracing::Level::TRACE) {
            return;
        }
        let Ok(packet) = Packet::parse(bytes) else { return };
        let seq = packet.seq().0;
        if let Some(Entry { session, control }) = self.sessions.table.of_packet(&packet) {
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

    #[inline]
    fn decision(
        &mut self,
        now: Instant,
        arrival: &Arrival<'_>,
        deciding: &mut Deciding,
        effects: &mut Effects,
    ) -> Decision {
        let Arrival { bytes, how, .. } = arrival; // by reference: copied at once, it would stall
        const ACCEPT: Decision = Decision::Verdict(Verdict::Accept);
        let Ok(packet) = Packet::parse(bytes).map(|packet| packet.left_to(how.offload)) else {
            self.counters.malformed += 1;
            self.pass_unread(bytes, |unread| &mut unread.malformed, "it cannot be read");
            return ACCEPT;
        };
        let is_summed = self.checksums == Checksums::Verify && !how.offload.unsummed;
        if is_summed && !packet.checksum_is_valid() {
            self.counters.malformed += 1;
            self.pass_unread(bytes, |unread| &mut unread.checksum, "its checksum is wrong");
            return ACCEPT;
        }
        if how.is_late && !self.decides_late(&packet) {
            return Decision::Verdict(Verdict::Drop(DropReason::Stale));
        }
        let (source, destination) = packet.endpoints();
        let found = self.sessions.table.find(&Key::between(source, destination));
        let mut known = None;
        if let Some(index) = found
            && let Some(Entry { control, .. }) = self.sessions.table.get_mut(index)
        {
            let from = control.side(source);
            if control.judging().is_handed_over {
                self.sessions.take_back(index);
            }
            let Some(Entry { control, .. }) = self.sessions.table.get_mut(index) else {
                return ACCEPT;
            };
            if control.is_busy() {
                deciding.session = SessionRef { index, id: control.id };
                return Decision::Behind;
            }
            let is_certain = !packet.has(flags::SYN) && control.rival().is_none();
            known = is_certain.then_some((index, from));
        }
        let known = known.or_else(|| {
            let index = self.entry_of(now, &packet, found, *how, effects)?;
            Some((index, self.sessions.table.get_mut(index)?.control.side(source)))
        });
        let Some((index, from)) = known else {
            trace_unread(bytes, "no session follows it");
            return ACCEPT;
        };
        let moment = self.sessions.epoch.moment(now);
        let Some(Entry { session, control }) = self.sessions.table.get_mut(index) else {
            return ACCEPT;
        };
        control.last = moment;
        if session.has_ended() && !packet.has(flags::SYN) {
            return Decision::Verdict(self.sessions.answer_ended(index, from, &packet, effects));
        }
        let is_unsaid = session.dialogue().phase() == Phase::Silent && control.rival().is_none();
        if is_unsaid && !packet.has(flags::SYN) && !session.concerns(from, &packet) {
            // Of a connection that is not known: the SYN-ACK was a stranger's.
            let what = "it is of another connection than the one that is followed";
            self.pass_unread(bytes, |unread| &mut unread.other_connection, what);
            return ACCEPT;
        }
        deciding.session = SessionRef { index, id: control.id };
        if how.may_wait && session.is_early(from, &packet) {
            deciding.was_held = session.wants_every_packet();
            return Decision::Wait;
        }
        self.inspect(now, (arrival, &packet, from), None, deciding, effects)
    }

    /// Has the session of a packet read it, for which it waited for `answer`, if there is one.
    #[inline]
    fn inspect(
        &mut self,
        now: Instant,
        (arrival, packet, from): (&Arrival<'_>, &Packet<'_>, Side),
        answer: Option<Answered>,
        deciding: &mut Deciding,
        effects: &mut Effects,
    ) -> Decision {
        let (how, index) = (&arrival.how, deciding.session.index);
        let Some(Entry { session, control }) = self.sessions.table.get_mut(index) else {
            return Decision::Verdict(Verdict::Accept);
        };
        deciding.was_held = session.wants_every_packet();
        let mut connection = Connection {
            now,
            moment: control.last,
            index,
            policy: self.sessions.policy.within(control.network()),
            control,
            pinholes: &mut self.sessions.pinholes,
            counters: &mut self.counters,
            effects,
        };
        let inspection = &mut self.inspection;
        inspection.refuses_auth = connection.policy.refuses_auth();
        inspection.answer = answer;
        let read = session.seen();
        let mut outcome;
        loop {
            outcome = session.packet(from, packet, inspection, &mut self.payload);
            for note in inspection.notes.drain(..) {
                connection.note(note);
            }
            let Some(request) = inspection.request.take() else { break };
            let mut attempt = None;
            let judged = match &request.question {
                Question::Announcement(announced) => connection.judge(announced, &mut attempt),
                Question::Lengthen => Judged::Asks,
            };
            match judged {
                Judged::Ruled(ruling) => {
                    inspection.answer = Some((request, Known::Ruling(ruling)));
                }
                Judged::Asks => {
                    let Arrival { token, how, bytes } = *arrival;
                    let waiting = Waiting { token, how, bytes: 0..0, request, attempt };
                    connection.ask(bytes, Box::new(waiting));
                    return Decision::Asked;
                }
            }
        }
        let asks = how.may_wait && session.is_asking(from, packet);
        let is_new = read != session.seen();
        let wanted = wanted(&connection, session, how.every);
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
            self.sessions.watched.add(now, index, connection.control);
        }
        let wants_none = session.wants_no_packet();
        if session.is_over() {
            connection.close_all("the control connection ended");
        } else if wants_none {
            connection.close_all("the connection is not inspected any more");
        }
        let decision =
            forward(&mut connection, session, from, packet, &outcome, &self.payload, asks);
        let ends = flags::FIN | flags::RST | flags::SYN;
        let says = is_new || packet.flags() & ends != 0;
        let is_dropped = matches!(outcome.forward, Forward::Drop(_));
        let is_counted = is_to_be_weighed(session, control) || is_to_be_counted(session, control);
        if wants_none {
            self.sessions.remove(index);
        } else if says && !is_dropped {
            // Of others nothing is lost that the next packet does not tell again.
            self.sessions.note_change(index);
        }
        if is_counted {
            self.sessions.weigh(&mut self.counters, index, effects);
            self.sessions.enlist(&mut self.counters, now, index, effects);
        }
        let goes_on = matches!(decision, Decision::Verdict(Verdict::Accept | Verdict::Replace(_)));
        // Where this machine is an end the program sees half of a connection, and nothing of a SYN from here.
        let may_rest = is_new || packet.has(flags::SYN);
        if from == Side::Server && may_rest && goes_on && !how.is_local {
            self.offer(index, effects);
        }
        decision
    }

    /// The entry that `packet` belongs to where that is not certain, made where it starts one.
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
            return self.decide(now, index, packet, effects);
        }
        let (source, destination) = (packet.source(), packet.destination());
        if packet.has(flags::SYN | flags::ACK) {
            let Some(index) = found else {
                let session = Session::opened(packet);
                return self.insert(now, (destination, source), session, effects);
            };
            let Entry { session, control } = self.sessions.table.get_mut(index)?;
            if session.began_with(packet) {
                return found;
            }
            // All that is known of such a one is that something was said before, in the SYN.
            let is_unknown = session.dialogue().phase() == Phase::Joined && !session.is_adjusted();
            if !(control.spoke_in_syn() && is_unknown) {
                return self.contest(now, index, packet, how.every, effects);
            }
            self.sessions.forget(index);
            let session = Session::opened_unread(packet);
            return self.insert(now, (destination, source), session, effects);
        }
        if packet.payload().is_empty() {
            self.counters.unread.no_session += u64::from(found.is_none());
            return found;
        }
        if let Some(index) = found {
            self.sessions.table.get_mut(index)?.control.set_spoke_in_syn(true);
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
            Side::Client => self.insert(now, (source, destination), session, effects),
            Side::Server => self.insert(now, (destination, source), session, effects),
        }?;
        self.sessions.table.get_mut(index)?.control.set_spoke_in_syn(packet.has(flags::SYN));
        Some(index)
    }

    /// Follows a connection between these ends, if that is to be.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        ends: (SocketAddr, SocketAddr),
        session: Session,
        effects: &mut Effects,
    ) -> Option<u32> {
        self.sessions.insert(&mut self.counters, now, ends, session, effects)
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

/// Tells of a packet that passes unread.
#[cold]
fn trace_unread(bytes: &[u8], what: &str) {
    if !tracing::enabled!(tracing::Level::TRACE) {
        return;
    }
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
#[inline(never)] // the outcome is then read in the parts in which it was written
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
            Verdict::Replace(start as u32..out.len() as u32) // of one batch
        }
    })
}
