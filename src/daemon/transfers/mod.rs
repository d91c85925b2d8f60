//! Reports transfers: one event for each, never sampled, a log line, and the totals of `status`, from the engines'
//! events and the kernel's copies of data connections' packets. Also reports transfers that hang and the ends of
//! sessions. A thread of its own does that, and no packet waits for it.

mod accounting;
mod session_bytes;
mod totals;
pub(super) mod xferlog;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use ahash::AHashMap;
use ftp_alg_core::engine::{
    ClientKey, EndedSession, Event, EventKind, MissingConnection, PinholeEnds, RangeFinder,
    Transfer, TransferTracker, Tries, forgotten_reason,
};
use session_bytes::SessionBytes;
use totals::Totals;

use super::{shard::lock, snapshot::TransferTotals};
use crate::kernel::{
    conntrack::CountedPackets,
    data_log::{Copied, DataLog},
};

/// How often the thread looks for packets of data connections, and for transfers that have ended.
const INTERVAL: Duration = Duration::from_millis(50);
/// How often conntrack is asked whether it still has the data connections of long transfers.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Limit of events that the thread has not taken yet, and of long transfers that it follows.
const MAX_INBOX: usize = 8192;
/// Limit of events of one client (a /64).
const SHARE: usize = MAX_INBOX / 4;

/// An event, and when it was seen.
pub(super) type TimedEvent = (SystemTime, Event);

/// Events on their way to the thread that completes and reports them.
pub(super) struct Reporter {
    /// Whether there is a thread that reports them.
    pub(super) is_on: bool,
    /// When the daemon began to see data connections.
    since: Instant,
    inbox: Mutex<Inbox>,
    /// Transfers for which there was no room.
    lost: AtomicU64,
    /// Events of any kind for which there was no room.
    left_out: AtomicU64,
    totals: Mutex<Totals>,
    session_bytes: Mutex<SessionBytes>,
    /// Whether the files are to be opened again.
    reopens: AtomicBool,
}

/// Events that the thread has not taken yet.
#[derive(Default)]
struct Inbox {
    events: Vec<Received>,
    of_clients: AHashMap<ClientKey, usize>,
}

/// An event that the thread completes.
struct Received {
    /// The time of the event, by both clocks.
    seen: Instant,
    at: SystemTime,
    event: Event,
}

/// A data connection of a session, and the port of its initiator.
pub(super) type RunningConnection = (Event<PinholeEnds>, u16);

/// What conntrack knows of a data connection, by its initiator and the destination that the initiator dialled; and what
/// the engines know.
pub(super) trait DataConntrack {
    /// The packets counted in the initiator's direction, and in the other.
    fn counted(&self, initiator: SocketAddr, dialled: SocketAddr) -> Option<[CountedPackets; 2]>;

    /// Whether the connection is not over.
    fn is_running(&self, initiator: SocketAddr, dialled: SocketAddr) -> bool;

    /// Whether conntrack knows the connection, even if it is over or has no answer.
    fn knows(&self, initiator: SocketAddr, dialled: SocketAddr) -> bool;

    /// The data connections of transfers that have begun and have not ended.
    fn running(&self) -> Vec<RunningConnection>;

    /// The sessions that have not ended.
    fn open_sessions(&self) -> HashSet<u64>;
}

/// The state of the thread.
struct ThreadState<'a> {
    tracker: TransferTracker<SystemTime>,
    conntrack: &'a dyn DataConntrack,
    tries: Tries,
    /// Sessions that have ended, until their last transfers are reported.
    ended_sessions: VecDeque<(SystemTime, Event<EndedSession>)>,
    /// The data connections of long transfers that go on, one of a session, by its ID.
    running: HashMap<u64, RunningConnection>,
    passed: accounting::PassedBytes,
    /// When conntrack is asked about these connections next.
    next_look: Instant,
    /// Whether copies were lost since the last look.
    has_loss: bool,
    /// Reports that were not published yet.
    reports: Vec<TimedEvent>,
}

impl Reporter {
    /// A reporter, without reports if it is not on, with totals of each of the `servers`.
    pub(super) fn new(is_on: bool, servers: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut totals = Totals::new(Instant::now());
        totals.set_servers(servers);
        Self {
            is_on,
            since: Instant::now(),
            inbox: Mutex::default(),
            lost: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            totals: Mutex::new(totals),
            session_bytes: Mutex::default(),
            reopens: AtomicBool::new(false),
        }
    }

    /// How many bytes each session has transferred.
    pub(super) fn session_bytes(&self) -> MutexGuard<'_, SessionBytes> {
        lock(&self.session_bytes)
    }

    /// Whether an event is reported here, or not at all.
    pub(super) fn reports(&self, kind: &EventKind) -> bool {
        match kind {
            EventKind::Transfer(_)
            | EventKind::TransferUnseen(_)
            | EventKind::TransferWaiting(_)
            | EventKind::NoDataConnection(_) => true,
            EventKind::SessionEnded(_) => self.is_on,
            _ => false,
        }
    }

    /// Takes over the events that are reported here, and those that complete them. Called in the order of the events of
    /// a session.
    pub(super) fn note<'e>(&self, events: impl Iterator<Item = (SystemTime, &'e Event)>) {
        if !self.is_on {
            return;
        }
        let completes = |kind: &EventKind| {
            matches!(
                kind,
                EventKind::PinholeClosed(_)
                    | EventKind::PinholeExpired(_)
                    | EventKind::Encrypted
                    | EventKind::RangeOpened(_)
            )
        };
        let matters = |kind: &EventKind| self.reports(kind) || completes(kind);
        let (mut inbox, mut lost, mut left_out) = (None, 0, 0);
        for (at, event) in events.filter(|(_, event)| matters(&event.kind)) {
            let inbox = inbox.get_or_insert_with(|| lock(&self.inbox));
            let of_client = inbox.of_clients.entry(event.client.ip().into()).or_default();
            *of_client += 1;
            if *of_client > SHARE || inbox.events.len() >= MAX_INBOX {
                lost += u64::from(event.kind.ended_transfer().is_some());
                left_out += u64::from(self.reports(&event.kind));
                continue;
            }
            let ended = match &event.kind {
                EventKind::PinholeClosed(unused) | EventKind::PinholeExpired(unused) => {
                    unused.lifetime[1]
                }
                kind => kind.ended_transfer().and_then(|transfer| transfer.ended),
            };
            let seen = ended.unwrap_or_else(Instant::now);
            inbox.events.push(Received { seen, at, event: event.clone() });
        }
        drop(inbox);
        self.count_lost(lost, left_out);
    }

    /// Counts transfers that are not reported, and `events` of any kind.
    pub(super) fn count_lost(&self, transfers: u64, events: u64) {
        self.lost.fetch_add(transfers, Ordering::Relaxed);
        self.left_out.fetch_add(events, Ordering::Relaxed);
    }

    /// How many events had no room on their way.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// What was transferred since the start.
    pub(super) fn totals(&self) -> TransferTotals {
        let lost = self.lost.load(Ordering::Relaxed);
        TransferTotals { lost, ..lock(&self.totals).read(Instant::now()) }
    }

    /// Counts the transfers of each of these servers from now on.
    pub(super) fn set_servers(&self, servers: impl IntoIterator<Item = IpAddr>) {
        lock(&self.totals).set_servers(servers);
    }

    /// Reports transfers and the ends of sessions, and passes them to `publish`, each [`INTERVAL`] until `stop` is set.
    /// Without `data_log`, nothing is known of data connections. The `finder` finds those of encrypted sessions.
    pub(super) fn run(
        &self,
        mut data_log: Option<DataLog>,
        finder: RangeFinder,
        conntrack: &dyn DataConntrack,
        mut publish: impl FnMut(Vec<TimedEvent>),
        stop: &AtomicBool,
    ) {
        let mut tracker = TransferTracker::default();
        tracker.sees_packets = data_log.is_some();
        tracker.since = Some(self.since);
        tracker.set_finder(finder.clone());
        let mut known = ThreadState {
            tracker,
            conntrack,
            tries: Tries::new(finder),
            ended_sessions: VecDeque::new(),
            running: conntrack.running().into_iter().map(|one| (one.0.session, one)).collect(),
            passed: accounting::PassedBytes::new(Instant::now()),
            next_look: Instant::now(),
            has_loss: false,
            reports: Vec::new(),
        };
        let mut received = Vec::new();
        loop {
            let is_last = stop.load(Ordering::Acquire);
            // Everything that passed until this moment is read before anything is decided.
            let tick = Instant::now();
            let now = (!is_last).then_some(tick);
            let observe = |at, copied| match copied {
                Copied::Packet(packet) => known.tracker.observe(&packet),
                Copied::Unreadable(addresses) => known.tracker.note_unreadable(at, addresses),
                Copied::Tried(client, dialled) => known.tries.note(tick, client, dialled),
            };
            let read = data_log.as_mut().map(|log| {
                if is_last {
                    log.unbind()?;
                }
                log.read(observe)
            });
            if let Some(Ok(true)) = read {
                known.tracker.note_loss(Instant::now());
                known.has_loss = true;
            }
            if let Some(Err(error)) = read {
                log_event!(DATA_LOG_ENDED, "{error}: transfers are reported without their bytes");
                (data_log, known.tracker.sees_packets) = (None, false);
            }
            // Events wait for a round, so that all copies that the kernel made before them are read first.
            let next = std::mem::take(&mut *lock(&self.inbox)).events;
            self.handle_received(tick, std::mem::replace(&mut received, next), &mut known);
            if is_last {
                self.handle_received(tick, std::mem::take(&mut received), &mut known);
            }
            let finished = match now {
                None => known.tracker.take_all(),
                Some(now) => known.tracker.take_finished(now, |initiator, dialled| {
                    conntrack.is_running(initiator, dialled)
                }),
            };
            for (at, finished) in finished {
                self.report(tick, at, finished, &mut known);
            }
            for finished in known.tracker.take_encrypted(now) {
                let ended = finished.kind.ended_transfer().and_then(|transfer| transfer.ended);
                let age = ended.map_or(Duration::ZERO, |ended| tick - ended);
                self.report(tick, SystemTime::now() - age, finished, &mut known);
            }
            let knows = |initiator, dialled| conntrack.knows(initiator, dialled);
            for dropped in known.tries.take_dropped(tick, knows) {
                let dropped = dropped.map(EventKind::NoDataConnection);
                self.report(tick, SystemTime::now(), dropped, &mut known);
            }
            if let Some(now) = now.filter(|now| *now >= known.next_look) {
                known.next_look = now + LOOK_INTERVAL;
                known.passed.look(now);
                if std::mem::take(&mut known.has_loss) {
                    log_event!(DATA_LOG_LOSS, "some transfers have no bytes: copies were lost");
                }
                self.report_forgotten_connections(&mut known, now);
                lock(&self.session_bytes).limit(|| conntrack.open_sessions());
            }
            known.report_ended_sessions(&mut lock(&self.session_bytes));
            publish(std::mem::take(&mut known.reports));
            if is_last {
                return;
            }
            thread::sleep(INTERVAL);
        }
    }

    /// Asks the thread to open the files again.
    pub(super) fn reopen_files(&self) {
        self.reopens.store(true, Ordering::Release);
    }

    /// Whether the files are to be opened again, once.
    pub(super) fn take_reopening(&self) -> bool {
        self.reopens.swap(false, Ordering::AcqRel)
    }

    /// Notes how many lines the file of `log.transfers` lacks.
    pub(super) fn set_unwritten(&self, unwritten: u64) {
        lock(&self.totals).set_unwritten(unwritten);
    }

    /// Handles the received events in their order.
    fn handle_received(&self, now: Instant, received: Vec<Received>, known: &mut ThreadState<'_>) {
        for Received { seen, at, event } in received {
            let Event { session, client, server, user, kind } = event;
            let head = Event { session, client, server, user, kind: () };
            let finished = match kind {
                EventKind::Transfer(transfer) => {
                    known.running.remove(&session);
                    known.tracker.end(seen, at, head.map(|()| transfer))
                }
                EventKind::PinholeClosed(unused) | EventKind::PinholeExpired(unused) => {
                    let transfer = Transfer::without_command(&unused, seen, known.tracker.since);
                    known.tracker.end(seen, at, head.map(|()| Box::new(transfer)))
                }
                EventKind::NoDataConnection(MissingConnection { ends, .. }) => {
                    known.tracker.missing_connection(&ends).map(|reason| {
                        let missing = MissingConnection::new(ends, reason);
                        (at, head.map(|()| EventKind::NoDataConnection(missing)))
                    })
                }
                EventKind::TransferWaiting(transfer) => {
                    if known.running.len() < MAX_INBOX
                        && let Some((initiator, _)) =
                            known.tracker.running_connection(seen, &transfer)
                        && let Some((_, ends)) = transfer.announcement
                    {
                        let running = (head.clone().map(|()| ends), initiator.port());
                        known.running.insert(session, running);
                    }
                    let waiting = known.tracker.examine(seen, head.map(|()| transfer));
                    known.reports.extend(waiting.map(|waiting| (at, waiting)));
                    None
                }
                EventKind::SessionEnded(ended) => {
                    known.running.remove(&session);
                    known.ended_sessions.push_back((at, head.map(|()| ended)));
                    None
                }
                EventKind::Encrypted | EventKind::RangeOpened(_) => {
                    lock(&self.session_bytes).note_unread(session);
                    None
                }
                _ => None,
            };
            if let Some((at, finished)) = finished {
                self.report(now, at, finished, known);
            }
        }
    }

    fn report(
        &self,
        now: Instant,
        at: SystemTime,
        mut finished: Event,
        known: &mut ThreadState<'_>,
    ) {
        if let EventKind::Transfer(transfer) | EventKind::TransferUnseen(transfer) =
            &mut finished.kind
        {
            accounting::complete_bytes(now, transfer, &mut known.passed, |initiator, dialled| {
                known.conntrack.counted(initiator, dialled)
            });
        }
        if let Some(transfer) = finished.kind.ended_transfer() {
            lock(&self.totals).count(now, &finished, transfer);
            lock(&self.session_bytes).add(finished.session, transfer);
        }
        if let EventKind::NoDataConnection(missing) = &finished.kind {
            let is_active = missing.ends.initiator != finished.client.ip();
            lock(&self.totals).count_missing(&finished, is_active);
        }
        known.reports.push((at, finished));
    }

    /// Reports the data connections of long transfers that conntrack has forgotten (`conntrack -F`): their packets are
    /// taken for new ones, so they hang.
    fn report_forgotten_connections(&self, known: &mut ThreadState<'_>, now: Instant) {
        let ThreadState { tracker, conntrack, running, .. } = &mut *known;
        tracker.drop_forgotten(now, |initiator, dialled| conntrack.knows(initiator, dialled));
        let mut forgotten = Vec::new();
        running.retain(|_, (event, port)| {
            let ends = event.kind;
            let initiator = SocketAddr::new(ends.initiator, *port);
            if !conntrack.knows(initiator, ends.arrival) {
                let missing = MissingConnection::new(ends, forgotten_reason(&ends, *port));
                forgotten.push(event.clone().map(|_| EventKind::NoDataConnection(missing)));
                return false;
            }
            conntrack.is_running(initiator, ends.arrival)
        });
        for missing in forgotten {
            self.report(now, SystemTime::now(), missing, known);
        }
    }
}

impl ThreadState<'_> {
    /// Reports the ends of sessions whose transfers are reported.
    fn report_ended_sessions(&mut self, session_bytes: &mut SessionBytes) {
        for (at, mut ended) in std::mem::take(&mut self.ended_sessions) {
            if self.tracker.waits_in(&ended) {
                self.ended_sessions.push_back((at, ended));
                continue;
            }
            ended.kind.bytes = session_bytes.take(ended.session, ended.kind.transfers);
            self.reports.push((at, ended.map(EventKind::SessionEnded)));
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
