//! Connections of which every packet is queued for a while.
//!
//! Two things are shown by acknowledgements alone, which are queued for no other reason: whether a SYN-ACK on the
//! endpoints of a connection that goes on was the server's, and whether a segment past a gap is missing something. A
//! stranger can have either look so with one packet. So it ends by itself, and the kernel is told what the session wants.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    Attention, Effects, Engine, Entry, REMINDER, control::Control, effects::Purpose,
    telling::mark_afresh,
};
use crate::{packet::Packet, session::Session};

/// So long. A server that gets no answer to its SYN-ACK sends it again after one second and after three (RFC 6298), which
/// begins the time anew.
const WATCH: Duration = Duration::from_secs(5);

/// Those that are watched, in the order in which that ends. Each is here once.
#[derive(Default)]
pub(super) struct Watched {
    ends: VecDeque<(Instant, u32, u64)>,
}

impl Watched {
    /// The connection at `index` is watched from `now` on, if it is not yet.
    pub(super) fn add(&mut self, now: Instant, index: u32, control: &mut Control) {
        if !control.watch(true) {
            self.ends.push_back((now + WATCH, index, control.id));
        }
    }

    fn due(&mut self, now: Instant) -> Option<(u32, u64)> {
        let is_due = self.ends.front().is_some_and(|(at, ..)| *at <= now);
        is_due.then(|| self.ends.pop_front()).flatten().map(|(_, index, id)| (index, id))
    }
}

impl Engine {
    /// `syn_ack` comes on the endpoints of a connection that is known: both ends begin anew, or
    /// someone who cannot see their packets forged it. The client's acknowledgement tells: until that
    /// comes, which must therefore be queued, all stays as it is.
    pub(super) fn contest(
        &mut self,
        now: Instant,
        index: u32,
        syn_ack: &Packet<'_>,
        every: bool,
        effects: &mut Effects,
    ) -> Option<u32> {
        let moment = self.sessions.epoch.moment(now);
        let Entry { session, control } = self.sessions.table.get_mut(index)?;
        if control.rival().is_some_and(|rival| rival.began_with(syn_ack)) {
            control.refresh_rival(moment);
        } else {
            let rival = if control.spoke_in_syn() {
                Session::opened_unread(syn_ack)
            } else {
                Session::opened(syn_ack)
            };
            control.set_rival(rival, moment);
        }
        let wanted = if session.changes_packets() { Attention::Every } else { Attention::Watched };
        if every {
            // It was told, of this connection and not of one before.
            control.told(wanted, moment);
        } else if !control.is_unknown(moment, REMINDER) {
            // Not what is known of the old one: a new connection may be translated otherwise.
            mark_afresh(effects, index, control, wanted, Purpose::TupleReuse);
        }
        self.sessions.watched.add(now, index, control);
        Some(index)
    }

    /// Of two connections on the same endpoints, the one that `packet` belongs to.
    #[cold]
    pub(super) fn decide(
        &mut self,
        now: Instant,
        index: u32,
        packet: &Packet<'_>,
        effects: &mut Effects,
    ) -> Option<u32> {
        let control = &mut self.sessions.table.get_mut(index)?.control;
        let (client, server) = (control.client(), control.server());
        let confirms = |rival: &Session| packet.source() == client && rival.is_confirmed_by(packet);
        let Some(session) = control.take_rival_if(confirms) else { return Some(index) };
        self.sessions.forget(index);
        self.insert(now, (client, server), session, effects)
    }

    /// Ends what has been watched for long enough. A SYN-ACK that came since, or a segment past a gap, has it go on.
    pub(super) fn end_watches(&mut self, now: Instant, effects: &mut Effects) {
        let moment = self.sessions.epoch.moment(now);
        while let Some((index, id)) = self.sessions.watched.due(now) {
            let Some(Entry { session, control }) = self.sessions.table.get_of(index, id) else {
                continue;
            };
            control.watch(false);
            if control.drop_old_rival(moment, WATCH) {
                self.sessions.watched.add(now, index, control);
                continue;
            }
            session.stop_asking();
            let wanted = match control.attention() {
                // The program may adjust it already.
                _ if control.judging().is_handed_over => continue,
                _ if session.wants_every_packet() || session.wants_no_packet() => continue,
                Some(Attention::Watched | Attention::Every) => Attention::Payload,
                _ => continue,
            };
            mark_afresh(effects, index, control, wanted, Purpose::Session);
        }
    }
}
