//! Which connections are followed: how many there may be, which one gives way to another, and how
//! long one that is still is kept.

use std::{
    ops::AddAssign,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Attention, Engine, Entry, Kernel, KernelError, What, telling::attend_afresh};
use crate::{
    packet::Packet,
    session::{Phase, Session},
};

/// Sessions that are over are kept this long for segments that are sent again: those whose numbers
/// differ, which nothing else can put right, and the others, lest they look like new ones.
const LINGER: Duration = Duration::from_secs(60);
const LINGER_UNADJUSTED: Duration = Duration::from_secs(10);
/// Connections on which nothing was said are kept this long.
const SILENCE: Duration = Duration::from_secs(120);
/// Those whose client does not answer the greeting are: longer than servers wait for it.
const GREETED: Duration = Duration::from_secs(900);
/// Those that one end has closed are: the kernel forgets them then (nf_conntrack_tcp_timeout_fin_wait).
const HALF_CLOSED: Duration = Duration::from_secs(120);
/// Those of before a restart, or that may have said what was lost, and said nothing since, may be over, and are.
const UNCONFIRMED: Duration = Duration::from_secs(3600);
/// Others are kept as long as the kernel keeps established connections (nf_conntrack_tcp_timeout_established).
const IDLE: Duration = Duration::from_secs(432_000);
/// How many places of the table one call of [`Engine::expire`] looks at, at least; of a larger table
/// the sixteenth part.
const SWEEP: u32 = 1024;

/// How often each limit was reached; field names are those of `ftp-alg status`. Of `max-sessions`
/// [`Counters::uninspected`](super::Counters) tells as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Connections given up for newer ones.
    pub sessions: u64,
    /// Announcements refused for the pinholes of their client.
    pub client_pinholes: u64,
    /// Announcements refused for the pinholes of their session.
    pub session_pinholes: u64,
    /// Announcements refused as no external port was found free.
    pub ports: u64,
    /// Lines that may announce, too long to be held back.
    pub line: u64,
    /// Segments that waited for rewrites to be acknowledged.
    pub rewrites: u64,
    /// Segments that waited for a client's bytes to be acknowledged.
    pub kept: u64,
    /// Unanswered commands whose kind was forgotten.
    pub commands: u64,
}

impl AddAssign for Limits {
    fn add_assign(&mut self, other: Self) {
        self.sessions += other.sessions;
        self.client_pinholes += other.client_pinholes;
        self.session_pinholes += other.session_pinholes;
        self.ports += other.ports;
        self.line += other.line;
        self.rewrites += other.rewrites;
        self.kept += other.kept;
        self.commands += other.commands;
    }
}

impl Engine {
    /// Whether one more connection may be followed beside all others.
    pub(super) fn has_room(&self) -> bool {
        self.table.all() < self.policy.max_sessions
    }

    /// Whether one more connection may be followed. Where there are as many as may be, the oldest of which
    /// nothing is known gives way. Of the last quarter no engine has more than its share, so that
    /// what floods one leaves room for the connections of the others.
    pub(super) fn make_room(&mut self, now: Instant) -> bool {
        let most = self.policy.max_sessions;
        let (all, share) = (self.table.all(), most / self.table.tables().max(1));
        if all < most && (all < most - most / 4 || self.table.len() <= share) {
            return true;
        }
        let Some(index) = self.table.oldest(gives_way) else { return all < most };
        if let Some(Entry { session, control }) = self.forget(index)
            && !session.is_over()
        {
            self.counters.limits.sessions += 1;
            let age = self.epoch.moment(now).since(control.since).as_secs();
            let what = format!(
                "not followed any more, after {age} s, for a newer one: there are max-sessions"
            );
            self.events.push(control.event(What::Limit(what.into())));
        }
        true
    }

    /// `syn_ack` comes on the endpoints of a connection that is known: both ends begin anew, or
    /// someone who cannot see their packets forged it. The client's acknowledgement tells: until that
    /// comes, which must therefore be queued, all stays as it is.
    pub(super) fn contest(
        &mut self,
        index: u32,
        syn_ack: &Packet<'_>,
        kernel: &mut impl Kernel,
    ) -> Option<u32> {
        let Entry { control, .. } = self.table.get_mut(index)?;
        if control.rival().is_some_and(|rival| rival.began_with(syn_ack)) {
            return Some(index);
        }
        control.set_rival(Some(if control.spoke_in_syn {
            Session::opened_unread(syn_ack)
        } else {
            Session::opened(syn_ack)
        }));
        // Not what is known of the old one: a new connection may be translated otherwise.
        let told = attend_afresh(kernel, control.client(), control.server(), Attention::Every);
        if let Err(error @ KernelError::System { .. }) = told {
            self.counters.errors += 1;
            self.events.push(control.event(What::Failed(error.to_string())));
        }
        Some(index)
    }

    /// Of two connections on the same endpoints, the one that `packet` belongs to.
    #[cold]
    pub(super) fn decide(
        &mut self,
        now: Instant,
        index: u32,
        packet: &Packet<'_>,
        kernel: &mut impl Kernel,
    ) -> Option<u32> {
        let control = &mut self.table.get_mut(index)?.control;
        let (client, server) = (control.client(), control.server());
        let confirms = |rival: &Session| packet.source() == client && rival.is_confirmed_by(packet);
        let Some(session) = control.take_rival_if(confirms) else { return Some(index) };
        self.forget(index);
        self.insert(now, client, server, session, kernel)
    }

    /// Drops what has been still for too long, a part of the table at a time.
    pub(super) fn sweep(&mut self, now: Instant) {
        let places = self.table.places();
        let now = self.epoch.moment(now);
        for _ in 0..SWEEP.max(places / 16).min(places) {
            self.sweep = (self.sweep + 1) % places;
            let Some(entry) = self.table.get_mut(self.sweep) else { continue };
            if now.since(entry.control.last) >= lifetime(&entry.session) {
                self.forget(self.sweep);
            }
        }
    }
}

/// Whether a connection is dropped for a newer one: nothing is known of it that its next packet does not
/// tell again, or that was verified.
fn gives_way(Entry { session, .. }: &Entry) -> bool {
    let unknown = matches!(session.dialogue().phase(), Phase::Silent | Phase::Joined);
    !session.is_adjusted() && (unknown || session.is_over())
}

/// How long a connection is kept without a packet.
fn lifetime(session: &Session) -> Duration {
    match session.dialogue().phase() {
        _ if session.is_over() && session.is_adjusted() => LINGER,
        _ if session.is_over() => LINGER_UNADJUSTED,
        Phase::Silent => SILENCE,
        // Nothing is known of such a one that its next packet does not tell again.
        Phase::Joined if !session.is_adjusted() => SILENCE,
        _ if session.is_half_closed() => HALF_CLOSED,
        Phase::Greeted => GREETED,
        _ if session.is_unconfirmed() && !session.is_adjusted() => UNCONFIRMED,
        Phase::Joined | Phase::Verified | Phase::Lost => IDLE,
    }
}
