//! What the packet selection is told of a control connection, and what is sent on its behalf.

use super::{
    Attention, Effects, Engine, Injection, Lookup, Mark, REMINDER,
    connection::Connection,
    control::Control,
    effects::{Ask, Purpose, SessionRef},
};
use crate::{
    packet::{self, Packet},
    session::{Acknowledgement, Session, Side},
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

/// What the kernel is to be told by a mark, if it was told otherwise, or long ago. `every` says that the packet was queued
/// because every one of its connection is, as someone told the kernel once: an earlier daemon, or a session that is
/// forgotten.
#[inline]
pub(super) fn wanted(
    connection: &Connection<'_>,
    session: &Session,
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
            Some(Attention::Payload) => {
                every && is_settled && control.told_since(moment) >= REMINDER
            }
            // Of one that took the place of another just now that must be written first: after a crash it is decided again.
            None => every && is_settled && control.since < moment,
            Some(Attention::None) => false,
        };
        is_over.then_some(Attention::Payload)?
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
}
