//! Which connections become sessions: the limit of sessions, eviction, and idle timeouts.

use std::{
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use crate::{
    engine::{Entry, Event, EventKind, Kernel, KernelError, QueueMode, SessionEnd, Sessions},
    session::{Phase, Session},
};

/// Closed sessions stay this long for retransmissions: adjusted ones because only they can adjust the retransmission,
/// the others so that it is not taken for a new connection.
const LINGER_ADJUSTED: Duration = Duration::from_secs(60);
const LINGER_UNADJUSTED: Duration = Duration::from_secs(10);
/// Timeout of a connection without a greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(120);
/// Timeout without an accepted login: longer than servers wait for one.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(900);
/// Timeout after one end has sent a FIN: as in the kernel (nf_conntrack_tcp_timeout_fin_wait).
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(120);
/// Timeout of a session that was restored, or whose packets may have passed unread, and that had no packet since. It
/// may be closed already.
const UNCONFIRMED_TIMEOUT: Duration = Duration::from_secs(3600);
/// Timeout of other sessions: as for established connections in the kernel (nf_conntrack_tcp_timeout_established).
const IDLE_TIMEOUT: Duration = Duration::from_secs(432_000);
/// Minimum number of table slots that one call of `Engine::expire` examines; in a larger table a sixteenth of them.
const MIN_SWEEP: u32 = 1024;

impl Sessions {
    /// Whether another session may be inserted.
    pub(crate) fn has_room(&self) -> bool {
        self.table.total_len() < self.policy.max_sessions
    }

    /// Whether another session may be inserted, after an eviction if necessary. At the limit, the oldest session
    /// without a verified dialogue is evicted, or one of a client that has more than its share. In the last quarter of
    /// the limit, no engine gets more than its share, so a flood of one engine leaves room for the others.
    fn make_room(&mut self, now: Instant, kernel: &mut dyn Kernel) -> bool {
        let limit = self.policy.max_sessions;
        let (all, share) = (self.table.total_len(), limit / self.table.table_count().max(1));
        if all < limit && (all < limit - limit / 4 || self.table.len() <= share) {
            return true;
        }
        let Some(index) = self.table.take_oldest(may_be_evicted) else {
            return self.evict_from_any_client(now, kernel) || all < limit;
        };
        if let Some(entry) = self.forget(index, SessionEnd::Forgotten)
            && !entry.session.is_over()
        {
            self.counters.limits.sessions += 1;
            let age = self.epoch.timestamp(now).duration_since(entry.head.first_seen).as_secs();
            let text =
                format!("evicted after {age} s for a newer connection: max-sessions is reached");
            self.batch.events.push(entry.head.event(EventKind::LimitReached(text.into())));
        }
        true
    }

    /// Starts a session between these endpoints, if policy inspects the connection and there is room.
    pub(crate) fn insert(
        &mut self,
        now: Instant,
        (client, server): (SocketAddr, SocketAddr),
        session: Session,
        kernel: &mut dyn Kernel,
    ) -> Option<u32> {
        let network = self.policy.network_of(client.ip(), server.ip());
        if !self.policy.inspects(network) {
            self.counters.unread.not_followed += 1;
            self.bypass_connection(client, server, kernel);
            return None;
        }
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let timestamp = self.epoch.timestamp(now);
        let mut entry = Entry::new(id, client, server, session, timestamp);
        entry.head.set_network(network);
        // A session picked up mid-stream evicts no other.
        let is_picked_up = entry.session.dialogue.phase == Phase::PickedUp;
        if !(if is_picked_up { self.has_room() } else { self.make_room(now, kernel) }) {
            self.counters.uninspected += 1;
            self.counters.unread.not_followed += 1;
            self.batch.events.push(
                entry.head.event(EventKind::LimitReached(
                    "not inspected: max-sessions is reached".into(),
                )),
            );
            return None;
        }
        let index = self.table.insert(entry);
        self.counters.sessions_started += 1;
        self.mark_changed(index);
        Some(index)
    }

    /// Has the kernel queue no packet of the connection any more.
    fn bypass_connection(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
        kernel: &mut dyn Kernel,
    ) {
        let found = kernel.lookup_translation(client, server);
        let found = found.and_then(|found| found.ok_or(KernelError::Unknown));
        let kind = match found.and_then(|found| kernel.set_queue_mode(&found, QueueMode::None)) {
            Ok(()) => EventKind::StateChanged("not inspected: its [[network]] has inspect = false"),
            // The queue mode is set with its next packet.
            Err(KernelError::Unknown) => return,
            Err(error) => {
                self.counters.errors += 1;
                EventKind::KernelRefused(error.to_string())
            }
        };
        let session = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        self.batch.events.push(Event { session, client, server, user: None, kind });
    }

    /// Removes sessions whose timeout has passed, in a part of the table at a time.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let slots = self.table.slot_count();
        let is_nearly_full = self.is_nearly_full();
        let now = self.epoch.timestamp(now);
        for _ in 0..MIN_SWEEP.max(slots / 16).min(slots) {
            if !self.batch.events.has_room() {
                return; // the next call goes on
            }
            self.swept = (self.swept + 1) % slots;
            let Some(entry) = self.table.get_mut(self.swept) else { continue };
            let needs_login = self.policy.for_network(entry.head.network()).require_login;
            // If the table is nearly full, a client without a login cannot stay by sending a line now and then.
            let is_timed_from_start = is_nearly_full
                && needs_login
                && matches!(entry.session.dialogue.phase, Phase::Greeted | Phase::Verified)
                && !(has_login(&entry.session)
                    || entry.session.is_adjusted()
                    || entry.session.is_over());
            let since =
                if is_timed_from_start { entry.head.first_seen } else { entry.head.last_seen };
            if now.duration_since(since) >= idle_timeout(&entry.session, needs_login) {
                self.forget(self.swept, SessionEnd::Expired);
            }
        }
    }
}

/// Whether a session may be evicted for a newer one: its dialogue is not verified, or its next packet would restore the
/// same state.
pub(crate) fn may_be_evicted(entry: &Entry) -> bool {
    let phase = entry.session.dialogue.phase;
    let is_unneeded = !phase.has_greeted() || entry.session.is_over();
    phase == Phase::PickedUp || is_unneeded && !entry.session.is_adjusted()
}

/// Timeout of a session without packets.
fn idle_timeout(session: &Session, needs_login: bool) -> Duration {
    match session.dialogue.phase {
        _ if session.is_over() && (session.is_adjusted() || session.was_reset()) => LINGER_ADJUSTED,
        _ if session.is_over() => LINGER_UNADJUSTED,
        Phase::NotGreeted
        | Phase::ClientFirst
        | Phase::CommandFirst
        | Phase::TextFirst
        | Phase::CommandAfterText
        | Phase::PickedUp => GREETING_TIMEOUT, // its next packet restores the same state
        _ if session.is_half_closed() => HALF_CLOSED_TIMEOUT,
        Phase::Greeted => LOGIN_TIMEOUT,
        Phase::Verified | Phase::NotFtp | Phase::PickedUpFtp
            if needs_login && !has_login(session) && !session.is_adjusted() =>
        {
            LOGIN_TIMEOUT
        }
        _ if session.is_unconfirmed() && !session.is_adjusted() => UNCONFIRMED_TIMEOUT,
        Phase::PickedUpFtp
        | Phase::Verified
        | Phase::PacketsMissed
        | Phase::OutOfStep
        | Phase::NotFtp => IDLE_TIMEOUT,
    }
}

/// Whether a login was accepted, as far as is known.
pub(crate) fn has_login(session: &Session) -> bool {
    session.dialogue.is_logged_in() || session.is_encrypted()
}
