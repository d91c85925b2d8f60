//! What the packet selection is told of a control connection, and what is sent on its behalf.

use super::{
    Answer, Attention, Effects, Engine, Entry, Injection, Lookup, Mark, REMINDER, Released,
    connection::Connection,
    control::{Control, Grant, Moment},
    effects::{Ask, Purpose, SessionRef},
};
use crate::{
    packet::{self, Packet},
    session::{Acknowledgement, Forward, Outcome, Session, Side},
};

/// Asks for a mark on the connection at `index`, of whose translation nothing is known here.
pub(super) fn mark_afresh(
    effects: &mut Effects,
    index: u32,
    control: &mut Control,
    attention: Attention,
    purpose: Purpose,
) {
    control.ask();
    let connection = Lookup { client: control.client(), server: control.server() };
    let mark = Mark { connection, translation: None, attention, purpose };
    effects.marks.push(Ask::new(SessionRef { index, id: control.id }, mark, None));
}

/// What the selection is to be told with the verdict on a packet. The fast path begins with one verdict alone: a second one
/// could begin it again when it has ended. It does not begin while a packet may be queued that ended the one before.
fn answer(session: &Session, control: &mut Control, now: Option<Moment>) -> Answer {
    let is_watched = matches!(control.attention(), Some(Attention::Every | Attention::Watched));
    if session.wants_every_packet() || session.wants_no_packet() || is_watched {
        return Answer::Nothing; // that it was told by a request
    }
    let is_calm = control.attention() == Some(Attention::Calm);
    let has_raced = now.is_none_or(|now| control.has_raced(now, REMINDER));
    // What waits for an answer of the kernel was queued before, and may change numbers.
    if session.is_calm() && control.rival().is_none() && !(has_raced || control.is_busy()) {
        if is_calm || control.grant != Grant::None {
            return Answer::Nothing;
        }
        control.answered(Attention::Calm);
        control.grant = Grant::Pending;
        return Answer::Calm;
    }
    // Of one that was queued before the calm began.
    control.answered(Attention::Payload);
    if is_calm { Answer::Payload } else { Answer::Nothing }
}

/// Whether the calm is over and no verdict says so, as the packet is dropped.
fn is_calm_over(connection: &Connection<'_>, session: &Session, outcome: &Outcome) -> bool {
    matches!(outcome.forward, Forward::Drop(_))
        && connection.control.attention() == Some(Attention::Calm)
        && !session.is_calm()
}

/// What the kernel is to be told by a mark, if it was told otherwise, or long ago. `every` says that the packet was queued
/// because every one of its connection is, as someone told the kernel once: an earlier daemon, or a session that is
/// forgotten.
#[inline]
pub(super) fn wanted(
    connection: &Connection<'_>,
    session: &Session,
    outcome: &Outcome,
    every: bool,
) -> Option<Attention> {
    let (control, moment) = (&*connection.control, connection.moment);
    // Past a gap, too, conntrack must not judge: it has seen numbers that go no further.
    let wanted = if session.wants_every_packet() {
        Attention::Every
    } else if session.wants_no_packet() {
        Attention::None
    } else {
        let is_settled = control.rival().is_none();
        let is_over = match control.attention() {
            Some(Attention::Every | Attention::Watched) => is_settled,
            // Perhaps it was told meanwhile, and this packet was queued before.
            Some(Attention::Payload | Attention::Calm) => {
                every && is_settled && control.told_since(moment) >= REMINDER
            }
            // Of one that took the place of another just now that must be written first: after a crash it is decided again.
            None => every && is_settled && control.since < moment,
            Some(Attention::None) => false,
        };
        let ends = is_over || connection.answers && is_calm_over(connection, session, outcome);
        ends.then_some(Attention::Payload)?
    };
    control.is_to_be_told(wanted, moment, REMINDER).then_some(wanted)
}

/// Has an acknowledgement sent.
pub(super) fn acknowledge(connection: &mut Connection<'_>, acknowledgement: Acknowledgement) {
    let Acknowledgement { to, seq, ack, window, timestamps } = acknowledgement;
    let Lookup { client, server } = connection.ends();
    let (source, destination) = match to {
        Side::Client => (server, client),
        Side::Server => (client, server),
    };
    let mut packet = Vec::new();
    packet::acknowledgement(source, destination, seq, ack, window, timestamps, &mut packet);
    inject(connection, to, packet);
}

/// Has `segment`, the rest of what `from` sent, go to the other end as a packet of its own.
pub(super) fn send_rest(connection: &mut Connection<'_>, from: Side, segment: Vec<u8>) {
    inject(connection, from.peer(), segment);
}

/// Has a packet sent that shows the ends as packets at our hooks do.
fn inject(connection: &mut Connection<'_>, to: Side, packet: Vec<u8>) {
    let (session, Lookup { client, server }) = (connection.session(), connection.ends());
    if connection.control.translation().is_none() && !connection.control.is_busy() {
        connection.effects.lookups.push(Ask::new(session, connection.ends(), None));
    }
    connection.effects.injections.push(Injection { session, to, client, server, packet });
}

impl Engine {
    /// Gives packets that are to be sent the addresses that their addressees know, as nothing translates them any more.
    /// Where conntrack does not know the connection nothing is sent.
    pub(super) fn address(&mut self, injections: &mut Vec<Injection>) {
        injections.retain_mut(|injection| {
            let SessionRef { index, id } = injection.session;
            let entry = self.sessions.table.get_of(index, id);
            let Some(translation) = entry.and_then(|entry| entry.control.translation()) else {
                return false;
            };
            let (source, destination) = translation.seen_by(injection.to);
            let Ok(shown) = Packet::parse(&injection.packet) else { return false };
            if shown.source() == source && shown.destination() == destination {
                return true;
            }
            let mut packet = Vec::new();
            packet::with_endpoints(&shown, source, destination, &mut packet);
            injection.packet = packet;
            true
        });
    }

    /// Verdicts were given: fast paths have begun that they begin, and end at once where that is not so any more.
    pub fn given(&mut self, effects: &mut Effects) {
        let begins = |released: &&Released| released.answer == Answer::Calm;
        let sessions: Vec<_> =
            effects.verdicts.iter().filter(begins).map(Released::session).collect();
        for SessionRef { index, id } in sessions {
            let Some(Entry { control, .. }) = self.sessions.table.get_of(index, id) else {
                continue;
            };
            if std::mem::replace(&mut control.grant, Grant::None) == Grant::Revoked {
                mark_afresh(effects, index, control, Attention::Payload, Purpose::FastPathRace);
            }
        }
        effects.verdicts.clear();
        effects.replacements.clear();
    }

    /// What goes to the packet selection with the verdict on a packet of `session`.
    pub(super) fn answer(&mut self, session: SessionRef) -> Answer {
        let SessionRef { index, id } = session;
        let Some(Entry { session, control }) = self.sessions.table.get_of(index, id) else {
            return Answer::Nothing;
        };
        let answer = answer(session, control, self.sessions.epoch.last());
        if answer == Answer::Calm {
            // After a restart it is not adjusted, either, where its end is lost.
            self.sessions.note_change(index);
        }
        answer
    }
}
