//! Which connections are followed: how many there may be, which one gives way to another, and how
//! long one that is still is kept.

use std::{
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{
    Attention, Counters, Effects, Entry, Lookup, Mark, Sessions, What,
    control::Control,
    effects::{Ask, Purpose, SessionRef},
};
use crate::session::{Phase, Session};

/// Sessions that are over are kept this long for segments that are sent again: those whose numbers
/// differ, which nothing else can put right, and the others, lest they look like new ones.
const LINGER: Duration = Duration::from_secs(60);
const LINGER_UNADJUSTED: Duration = Duration::from_secs(10);
/// Connections on which nothing was said are kept this long.
const SILENCE: Duration = Duration::from_secs(120);
/// Those on which no login was accepted are: longer than servers wait for one.
const NO_LOGIN: Duration = Duration::from_secs(900);
/// Those that one end has closed are: the kernel forgets them then (nf_conntrack_tcp_timeout_fin_wait).
const HALF_CLOSED: Duration = Duration::from_secs(120);
/// Those of before a restart, or that may have said what was lost, and said nothing since, may be over, and are.
const UNCONFIRMED: Duration = Duration::from_secs(3600);
/// Others are kept as long as the kernel keeps established connections (nf_conntrack_tcp_timeout_established).
const IDLE: Duration = Duration::from_secs(432_000);
/// How many places of the table one call of [`Engine::expire`](super::Engine::expire) looks at, at least; of a larger table
/// the sixteenth part.
const SWEEP: u32 = 1024;

impl Sessions {
    /// Whether one more connection may be followed beside all others.
    pub(super) fn has_room(&self) -> bool {
        self.table.all() < self.policy.max_sessions
    }

    /// Whether one more connection may be followed. Where there are as many as may be, the oldest of which
    /// nothing is known gives way, or one of a client that has more than its share. Of the last quarter no engine has
    /// more than its share, so that what floods one leaves room for the connections of the others.
    fn make_room(&mut self, counters: &mut Counters, now: Instant, effects: &mut Effects) -> bool {
        let most = self.policy.max_sessions;
        let (all, share) = (self.table.all(), most / self.table.tables().max(1));
        if all < most && (all < most - most / 4 || self.table.len() <= share) {
            return true;
        }
        let Some(index) = self.table.oldest(gives_way) else {
            return self.give_up_of_any(counters, now, effects) || all < most;
        };
        if let Some(Entry { session, control }) = self.forget(index)
            && !session.is_over()
        {
            counters.limits.sessions += 1;
            let age = self.epoch.moment(now).since(control.since).as_secs();
            let what = format!(
                "not followed any more, after {age} s, for a newer one: there are max-sessions"
            );
            effects.events.push(control.event(What::Limit(what.into())));
        }
        true
    }

    /// Follows a connection between these ends, if policy has it inspected and there is room.
    pub(super) fn insert(
        &mut self,
        counters: &mut Counters,
        now: Instant,
        (client, server): (SocketAddr, SocketAddr),
        session: Session,
        effects: &mut Effects,
    ) -> Option<u32> {
        let network = self.policy.network_of(client.ip(), server.ip());
        if !self.policy.inspects(network) {
            counters.unread.not_followed += 1;
            self.leave_alone(client, server, effects);
            return None;
        }
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let moment = self.epoch.moment(now);
        let mut control = Control::new(id, client, server, moment);
        control.set_network(network);
        // For one of which as little is known no other is given up.
        let is_joined = session.dialogue().phase() == Phase::Joined;
        if !(if is_joined { self.has_room() } else { self.make_room(counters, now, effects) }) {
            counters.uninspected += 1;
            counters.unread.not_followed += 1;
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
        effects.marks.push(Ask::new(SessionRef { id, ..SessionRef::NONE }, mark, None));
    }

    /// Drops what has been still for too long, a part of the table at a time.
    pub(super) fn sweep(&mut self, now: Instant) {
        let places = self.table.places();
        let is_nearly_full = self.is_nearly_full();
        let now = self.epoch.moment(now);
        for _ in 0..SWEEP.max(places / 16).min(places) {
            self.swept = (self.swept + 1) % places;
            let Some(Entry { session, control }) = self.table.get_mut(self.swept) else { continue };
            let needs_login = self.policy.within(control.network()).require_login;
            // Where there is hardly room it is not enough to say something now and then.
            let is_timed_from_start = is_nearly_full
                && needs_login
                && matches!(session.dialogue().phase(), Phase::Greeted | Phase::Verified)
                && !(has_login(session) || session.is_adjusted() || session.is_over());
            let since = if is_timed_from_start { control.since } else { control.last };
            if now.since(since) >= lifetime(session, needs_login) {
                self.forget(self.swept);
            }
        }
    }
}

/// Whether a connection is dropped for a newer one: nothing is known of it that its next packet does not
/// tell again, or that was verified.
pub(super) fn gives_way(Entry { session, .. }: &Entry) -> bool {
    let phase = session.dialogue().phase();
    let unknown = !phase.has_greeted() || phase == Phase::Joined;
    !session.is_adjusted() && (unknown || session.is_over())
}

/// How long a connection is kept without a packet.
fn lifetime(session: &Session, needs_login: bool) -> Duration {
    match session.dialogue().phase() {
        _ if session.is_over() && (session.is_adjusted() || session.has_ended()) => LINGER,
        _ if session.is_over() => LINGER_UNADJUSTED,
        Phase::Silent | Phase::Early | Phase::EarlyFeat => SILENCE,
        // Nothing is known of such a one that its next packet does not tell again.
        Phase::Joined if !session.is_adjusted() => SILENCE,
        _ if session.is_half_closed() => HALF_CLOSED,
        Phase::Greeted => NO_LOGIN,
        Phase::Verified | Phase::NotFtp | Phase::Answered
            if needs_login && !has_login(session) && !session.is_adjusted() =>
        {
            NO_LOGIN
        }
        _ if session.is_unconfirmed() && !session.is_adjusted() => UNCONFIRMED,
        Phase::Joined | Phase::Answered | Phase::Verified | Phase::Lost | Phase::NotFtp => IDLE,
    }
}

/// Whether a login was accepted, as far as can be known.
pub(super) fn has_login(session: &Session) -> bool {
    session.dialogue().is_logged_in() || session.is_encrypted()
}
