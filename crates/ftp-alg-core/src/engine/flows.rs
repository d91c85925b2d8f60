//! Connections that a program in the kernel judges for a while, where their packets are.
//!
//! A connection that is at rest is handed over: the program gets what it needs to go on by itself, as long as both ends take
//! turns in lines that recur. Each line that it judges is read here as if it had been queued, before anything else is decided,
//! so events, counters, pinholes and records are the same. A packet that is queued all the same takes the connection back.

use std::net::{IpAddr, SocketAddr};

use super::{
    Attention, Effects, Engine, Entry, Lookup, Pinhole, Sessions, What,
    announcement::external,
    connection::Connection,
    effects::{Ask, SessionRef},
    handover::{FlowChange, Handover, Hole, JudgedLine, Login, Shift, TakenBack},
    memory::is_to_be_weighed,
    shares::is_to_be_counted,
    table::Key,
};
use crate::{
    ftp::{Kind, Zeros},
    packet::{self, Packet, Seq, flags},
    session::{Forward, Known, Phase, Question, Ruling, Side},
};

/// At most so many are handed over of which the server has not greeted: each SYN-ACK makes one.
pub(super) const MOST_SILENT: u32 = 256;

impl Engine {
    /// Reads lines that were judged, those of one connection in their order; [carry out](super::carry_out) what comes of it.
    pub fn read_judged<'l>(
        &mut self,
        lines: impl Iterator<Item = JudgedLine<'l>>,
        effects: &mut Effects,
    ) {
        effects.touch(self.sessions.pinholes.places());
        let mut bytes = Vec::new();
        for line in lines {
            let ends: [SocketAddr; 2] = [line.client.into(), line.server.into()];
            let Some(index) = self.sessions.table.find(&Key::between(ends[0], ends[1])) else {
                continue;
            };
            let Some(Entry { control, .. }) = self.sessions.table.get_mut(index) else { continue };
            // Of one that is gone, or read before a crash.
            if control.id != line.flow || line.line <= control.judging().lines {
                continue;
            }
            let is_missing = line.line != control.judging().lines + 1;
            let judging = control.judging_mut();
            (judging.lines, judging.fruitless) = (line.line, 0);
            self.sessions.silent -= judging.end_silence();
            let [source, destination] = match line.from {
                Side::Client => ends,
                Side::Server => [ends[1], ends[0]],
            };
            let (seq, ack) = (Seq(line.seq), Seq(line.ack));
            let last = if line.ends { flags::FIN } else { flags::PSH };
            let header = (line.window, flags::ACK | last);
            packet::segment((source, destination), (seq, ack), header, line.bytes, &mut bytes);
            let Ok(packet) = Packet::parse(&bytes) else { continue };
            // Lines of others may be read later that are older than this one.
            self.sessions.expire_pinholes_of(index, line.at, effects);
            self.read_line(index, &line, &packet, effects);
            if is_missing {
                self.give_up_judged(index, effects);
            }
        }
    }

    fn read_line(
        &mut self,
        index: u32,
        line: &JudgedLine<'_>,
        packet: &Packet<'_>,
        effects: &mut Effects,
    ) {
        self.counters.judged += 1;
        let moment = self.sessions.epoch.moment(line.at);
        let Some(Entry { session, control }) = self.sessions.table.get_mut(index) else { return };
        control.last = moment;
        if let Some(opener) = line.consumed {
            let consumed = Some(Hole { flow: line.flow, line: opener });
            let held = control.pinholes_mut().into_iter().flatten();
            held.filter(|held| held.hole() == consumed).for_each(|held| held.is_consumed = true);
        }
        let mut connection = Connection {
            now: line.at,
            moment,
            index,
            policy: self.sessions.policy.within(control.network()),
            control,
            pinholes: &mut self.sessions.pinholes,
            counters: &mut self.counters,
            effects,
        };
        let inspection = &mut self.inspection;
        inspection.refuses_auth = connection.policy.refuses_auth();
        inspection.answer = None;
        let mut hole = line.opened.then_some(Hole { flow: line.flow, line: line.line });
        let mut is_alike = true;
        let is_adjusted = session.is_adjusted();
        let outcome = loop {
            let outcome = session.packet(line.from, packet, inspection, &mut self.payload);
            for note in inspection.notes.drain(..) {
                connection.note(note);
            }
            let Some(request) = inspection.request.take() else { break outcome };
            let known = match &request.question {
                Question::Announcement(announced) => {
                    is_alike &= hole.is_some();
                    let ruling = connection.judge_judged(announced, &mut hole);
                    Known::Ruling(match ruling {
                        Ruling::Open { endpoint, .. } => {
                            Ruling::Open { endpoint, zeros: line.zeros }
                        }
                        other => other,
                    })
                }
                Question::Lengthen => Known::Lengthen(false),
            };
            inspection.answer = Some((request, known));
        };
        is_alike &= match outcome.forward {
            Forward::Unchanged => true,
            // Also what only follows a rewrite that is not acknowledged yet.
            Forward::Changed { seq, ack, payload, .. } => {
                let keeps_numbers = (seq, ack) == (packet.seq(), packet.ack())
                    && (!payload || self.payload.len() == line.bytes.len());
                (is_adjusted || keeps_numbers)
                    && (line.opened || !payload || self.payload == line.bytes)
            }
            Forward::Drop(_) | Forward::Asks => false,
        };
        let is_over = session.is_over();
        if is_over {
            connection.close_all("the control connection ended");
        }
        let is_counted = is_to_be_weighed(session, control) || is_to_be_counted(session, control);
        self.sessions.note_change(index);
        if is_over {
            self.sessions.take_back(index);
        }
        if !is_alike || hole.is_some() {
            self.give_up_judged(index, effects);
        }
        if is_counted {
            self.sessions.weigh(&mut self.counters, index, effects);
            self.sessions.enlist(&mut self.counters, line.at, index, effects);
        }
    }

    /// A line passed that would have been decided otherwise here, or one is missing.
    #[cold]
    fn give_up_judged(&mut self, index: u32, effects: &mut Effects) {
        self.counters.judged_otherwise += 1;
        self.sessions.take_back(index);
        if let Some(Entry { session, control }) = self.sessions.table.get_mut(index) {
            session.lapse();
            effects.events.push(control.event(What::Failed(
                "the fast path judged a line otherwise than the engine; please report this".into(),
            )));
        }
    }

    /// Hands the connection at `index` over, if it is at rest and nothing speaks against it. Its translation is asked for first.
    #[inline]
    pub(super) fn offer(&mut self, index: u32, effects: &mut Effects) {
        if self.sessions.hands_over {
            self.sessions.hand_over(index, effects);
        }
    }
}

impl Sessions {
    /// Whether connections are handed over from now on. If not, none stays so.
    pub fn set_hands_over(&mut self, hands_over: bool) {
        self.hands_over = hands_over;
        if !hands_over {
            self.take_all_back();
        }
    }

    fn hand_over(&mut self, index: u32, effects: &mut Effects) {
        let Some(Entry { session, control }) = self.table.get_mut(index) else { return };
        let judging = control.judging();
        if judging.is_handed_over || !judging.may_be_handed_over() || !session.is_at_rest() {
            return;
        }
        if control.rival().is_some() || control.is_busy() || control.spoke_in_syn() {
            return;
        }
        if control.client().is_ipv6() {
            return;
        }
        // Rules have a pinhole open: it closes as soon as its transfer is over.
        if control.pinholes().iter().any(|held| !held.is_judged()) {
            return;
        }
        let is_silent = session.dialogue().phase() == Phase::Silent;
        if is_silent && self.silent >= MOST_SILENT {
            return;
        }
        let Some(translation) = control.translation().copied() else {
            let (session, client, server) =
                (SessionRef { index, id: control.id }, control.client(), control.server());
            control.judging_mut().awaits_translation = true;
            effects.lookups.push(Ask::new(session, Lookup { client, server }, None));
            return;
        };
        let policy = self.policy.within(control.network());
        let named = |kind| match external(kind, &translation, policy) {
            Ok(IpAddr::V4(address)) => Some(address),
            _ => None,
        };
        let (Some(client), Some(server)) = (named(Kind::Port), named(Kind::Pasv)) else { return };
        // The program would keep the length of a 227 by blanks.
        if !policy.keeps_length
            && server.to_string().len() < translation.server.ip().to_string().len()
        {
            return;
        }
        // Until conntrack is told, an adjusted one stays.
        if session.is_adjusted() && control.attention() != Some(Attention::Every) {
            return;
        }
        if !self.pinholes.grant(policy, translation.client.ip()) {
            return;
        }
        let next = [session.next_of(Side::Client).0, session.next_of(Side::Server).0];
        let judging = control.judging_mut();
        (judging.is_handed_over, judging.is_silent) = (true, is_silent);
        self.silent += u32::from(is_silent);
        judging.note_fruitless();
        self.flow_changes.push(FlowChange::Over(Handover {
            flow: control.id,
            lines: control.judging().lines,
            next,
            login: match session.dialogue().is_logged_in() {
                true => Login::Done,
                false if is_silent => Login::Silent,
                false => Login::Greeted,
            },
            translation,
            named: [client, server],
            shifts: session.is_adjusted().then(|| {
                [Side::Client, Side::Server].map(|side| {
                    let (by, since) = session.shift(side);
                    Shift { by, since: since.0 }
                })
            }),
            zeros: if policy.keeps_length { session.dialogue().zeros() } else { Zeros::None },
            lifetime: policy.pinhole_lifetime,
        }));
        self.note_change(index);
    }

    /// Has the program leave the connection at `index` alone, if it is handed over.
    pub(super) fn take_back(&mut self, index: u32) {
        let Some(Entry { control, .. }) = self.table.get_mut(index) else { return };
        if let Some(taken) = taken_back(control, &mut self.silent) {
            self.leave(taken);
            self.note_change(index);
        }
    }

    /// The same, of one that is not in the table any more.
    pub(super) fn take_back_removed(&mut self, control: &mut super::Control) {
        if let Some(taken) = taken_back(control, &mut self.silent) {
            self.leave(taken);
        }
    }

    fn leave(&mut self, taken: TakenBack) {
        self.pinholes.revoke(taken.translation.client.ip());
        self.flow_changes.push(FlowChange::Back(taken));
    }

    /// Takes all connections back.
    pub fn take_all_back(&mut self) {
        for index in 0..self.table.places() {
            self.take_back(index);
        }
    }

    /// The pinholes that the program has opened and that are held.
    pub fn holes(&self) -> impl Iterator<Item = Hole> {
        let held = self.table.iter().flat_map(|entry| entry.control.pinholes());
        held.filter_map(super::pinholes::Held::hole)
    }

    /// Rules are to have the pinholes that the program has: it closes them. Gives those that nobody has used.
    pub fn leave_program(&mut self) -> Vec<Pinhole> {
        let mut left = Vec::new();
        for Entry { control, .. } in self.table.iter_mut() {
            for held in control.pinholes_mut().into_iter().flatten() {
                if self.pinholes.leave_program(held) && !held.in_use {
                    left.push(held.pinhole);
                }
            }
        }
        left
    }

    /// The pinholes that rules have.
    pub fn of_rules(&self) -> impl Iterator<Item = Pinhole> {
        let held = self.table.iter().flat_map(|entry| entry.control.pinholes());
        held.filter(|held| !held.is_judged()).map(|held| held.pinhole)
    }

    /// The connections that are handed over, by their numbers.
    pub fn handed_over(&self) -> impl Iterator<Item = u64> {
        let handed = self.table.iter().filter(|entry| entry.control.judging().is_handed_over);
        handed.map(|entry| entry.control.id)
    }
}

fn taken_back(control: &mut super::Control, silent: &mut u32) -> Option<TakenBack> {
    if !control.judging().is_handed_over {
        return None;
    }
    let judging = control.judging_mut();
    judging.is_handed_over = false;
    *silent -= judging.end_silence();
    let translation = *control.translation()?;
    Some(TakenBack { flow: control.id, translation })
}
