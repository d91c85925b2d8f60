//! Transfers: what the engines tell of them and what the kernel copies of their data connections becomes one event for
//! each, never sampled, a log line, and the totals of `status`. Transfers that hang and the ends of sessions are reported
//! here, too. A thread of its own does it, and no packet waits for it.

mod accounting;
mod file;
mod report;
mod session_bytes;
mod totals;
pub(super) mod xferlog;

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

pub use file::{REMEDY as FILE_REMEDY, TransferFile};
use ftp_alg_core::engine::{
    EndedSession, Event, EventKind, FinishedTransfer, PinholeEnds, TRANSFER_PATIENCE, Transfer,
    TransferSession, TransferTracker,
};
use session_bytes::SessionBytes;
use totals::Totals;

use super::{data_packets::DataPackets, shard::lock, snapshot::TransferTotals};
use crate::kernel::conntrack::CountedPackets;

/// How often the thread looks for packets of data connections, and for transfers that have ended.
const INTERVAL: Duration = Duration::from_millis(50);
/// Two threads may record what happened to one session. So it is handled a little later, in the order of its time.
const SORT_TIME: Duration = Duration::from_millis(25);
/// How often conntrack is asked whether it still has the data connections of long transfers.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Limit of transfers that the thread has not taken yet, and of long ones that it looks after.
const MAX_INBOX: usize = 8192;

/// What the thread reports.
#[derive(Clone, Debug)]
pub enum Report {
    /// A transfer that has ended, or waits for its data connection.
    Transfer(Box<FinishedTransfer>),
    SessionEnd(Box<SessionReport>),
    NoDataConnection(Box<MissingConnection>),
}

/// A data connection that did not come about, and for which there is no transfer, because its client connects before it
/// sends the command; or one that the kernel has forgotten.
#[derive(Clone, Debug)]
pub struct MissingConnection {
    pub session: TransferSession,
    pub user: Option<Arc<str>>,
    pub at: SystemTime,
    /// Who does not answer whom.
    pub reason: String,
}

/// A session that has ended, with what is known of its data connections.
#[derive(Clone, Debug)]
pub struct SessionReport {
    pub session: TransferSession,
    pub ended: EndedSession,
    /// When its end was seen.
    pub at: SystemTime,
    /// The bytes of its transfers, if they are known of each.
    pub bytes: Option<u64>,
}

/// Events on their way to the thread that reports them.
pub(super) struct TransferReports {
    /// Whether there is a thread that reports them.
    is_on: bool,
    inbox: Mutex<Vec<(Instant, Received)>>,
    /// Transfers for which the inbox had no room.
    lost: AtomicU64,
    totals: Mutex<Totals>,
    /// Whether the file is to be opened again.
    reopens: AtomicBool,
}

/// An event of a session that the thread reports.
enum Received {
    Ended(Box<FinishedTransfer>),
    Waiting(Box<FinishedTransfer>),
    SessionEnd(Box<SessionReport>),
    PinholeWaiting(Box<MissingTransfer>),
}

/// A pinhole that no transfer uses.
struct MissingTransfer {
    at: SystemTime,
    session: TransferSession,
    user: Option<Arc<str>>,
    pinhole: PinholeEnds,
}

/// What conntrack has of a data connection, by its initiator and the destination that this dialled.
pub(super) trait DataConntrack {
    /// What it has counted in the initiator's direction, and in the other.
    fn counted(&self, initiator: SocketAddr, dialled: SocketAddr) -> Option<[CountedPackets; 2]>;

    /// Whether the connection is not over.
    fn is_running(&self, initiator: SocketAddr, dialled: SocketAddr) -> bool;
}

/// What the thread knows.
struct Known<'a> {
    tracker: TransferTracker,
    conntrack: &'a dyn DataConntrack,
    session_bytes: SessionBytes,
    /// Sessions that have ended, until their last transfers are reported.
    ended_sessions: VecDeque<(Instant, Box<SessionReport>)>,
    /// Pinholes without a transfer, until the packets of their data connections are known.
    waiting_pinholes: VecDeque<(Instant, Box<MissingTransfer>)>,
    /// Long transfers whose data connections go on, one of a session, by its ID.
    running: HashMap<u64, Box<FinishedTransfer>>,
    /// When conntrack is asked about them next.
    next_look: Instant,
    /// Not handled yet.
    received: Vec<(Instant, Received)>,
    /// Not published yet.
    reports: Vec<Report>,
}

impl Received {
    /// What the thread gets of an event, if it reports such events.
    fn of(Event { session, client, server, user, kind }: &Event) -> Option<Self> {
        let (at, session) =
            (SystemTime::now(), TransferSession { id: *session, client: *client, server: *server });
        let of = |transfer: &Arc<Transfer>| {
            Box::new(FinishedTransfer::new(at, session, Arc::clone(transfer)))
        };
        Some(match kind {
            EventKind::Transfer(transfer) => Self::Ended(of(transfer)),
            EventKind::TransferWaiting(transfer) => Self::Waiting(of(transfer)),
            EventKind::PinholeWaiting(pinhole) => {
                let (user, pinhole) = (user.clone(), *pinhole);
                Self::PinholeWaiting(Box::new(MissingTransfer { at, session, user, pinhole }))
            }
            EventKind::SessionEnded(ended) => {
                let ended = EndedSession::clone(ended);
                Self::SessionEnd(Box::new(SessionReport { session, ended, at, bytes: None }))
            }
            _ => return None,
        })
    }
}

impl TransferReports {
    /// Reports, or none, with totals of each of the `servers`.
    pub(super) fn new(is_on: bool, servers: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut totals = Totals::new(Instant::now());
        totals.set_servers(servers);
        Self {
            is_on,
            inbox: Mutex::default(),
            lost: AtomicU64::new(0),
            totals: Mutex::new(totals),
            reopens: AtomicBool::new(false),
        }
    }

    /// Whether transfers are reported.
    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Whether an event is reported here, or not at all.
    pub(super) fn reports(&self, kind: &EventKind) -> bool {
        match kind {
            EventKind::Transfer(_)
            | EventKind::TransferWaiting(_)
            | EventKind::PinholeWaiting(_) => true,
            EventKind::SessionEnded(_) => self.is_on,
            _ => false,
        }
    }

    /// Takes over the events that are reported here. Returns how many transfers that have ended are not reported, with the
    /// `omitted` ones.
    pub(super) fn record(&self, now: Instant, events: &[Event], omitted: u64) -> u64 {
        if !self.is_on {
            return 0;
        }
        let (mut inbox, mut lost) = (None, omitted);
        let reported = events.iter().filter(|event| self.reports(&event.kind));
        for received in reported.filter_map(Received::of) {
            let inbox = inbox.get_or_insert_with(|| lock(&self.inbox));
            if inbox.len() >= MAX_INBOX {
                lost += u64::from(matches!(received, Received::Ended(_)));
                continue;
            }
            let at = match &received {
                Received::Ended(transfer) => transfer.transfer.ended.unwrap_or(now),
                _ => now,
            };
            inbox.push((at, received));
        }
        drop(inbox);
        self.count_lost(lost);
        lost
    }

    /// Counts transfers that are not reported.
    pub(super) fn count_lost(&self, transfers: u64) {
        self.lost.fetch_add(transfers, Ordering::Relaxed);
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

    /// Reports transfers and the ends of sessions, and passes them to `publish`, until `stop` is set. `tracker` has what is
    /// known of data connections, and is returned. Without `data_packets`, nothing more will be.
    pub(super) fn run(
        &self,
        mut tracker: TransferTracker,
        mut data_packets: Option<DataPackets>,
        conntrack: &dyn DataConntrack,
        mut publish: impl FnMut(Vec<Report>),
        stop: &AtomicBool,
    ) -> TransferTracker {
        tracker.sees_packets = data_packets.is_some();
        let mut known = Known {
            tracker,
            conntrack,
            session_bytes: SessionBytes::default(),
            ended_sessions: VecDeque::new(),
            waiting_pinholes: VecDeque::new(),
            running: HashMap::new(),
            next_look: Instant::now(),
            received: Vec::new(),
            reports: Vec::new(),
        };
        // For the state of the file.
        publish(Vec::new());
        loop {
            let is_last = stop.load(Ordering::Acquire);
            // What passed until now is read before anything is decided, also if other threads run meanwhile.
            let now = (!is_last).then(Instant::now);
            let observe = |at, packet| known.tracker.observe(at, &packet);
            let read = data_packets.as_mut().map(|packets| {
                if is_last {
                    packets.end()?;
                }
                packets.read(observe)
            });
            if let Some(Err(error)) = read {
                tracing::warn!(
                    event = "data-log-ended",
                    "{error}: transfers are reported without their bytes"
                );
                (data_packets, known.tracker.sees_packets) = (None, false);
            }
            self.handle_received(&mut known, now);
            let finished = match now {
                None => known.tracker.take_all(),
                Some(now) => known.tracker.take_finished(now, |initiator, dialled| {
                    conntrack.is_running(initiator, dialled)
                }),
            };
            finished.into_iter().for_each(|finished| self.report(finished, &mut known));
            self.report_missing_connections(&mut known, now);
            if let Some(now) = now.filter(|now| *now >= known.next_look) {
                known.next_look = now + LOOK_INTERVAL;
                self.report_forgotten_connections(&mut known, now);
            }
            known.report_ended_sessions(now);
            if !known.reports.is_empty() || self.reopens.load(Ordering::Acquire) {
                publish(std::mem::take(&mut known.reports));
            }
            if is_last {
                return known.tracker;
            }
            thread::sleep(INTERVAL);
        }
    }

    /// Has the file opened again.
    pub(super) fn reopen_file(&self) {
        self.reopens.store(true, Ordering::Release);
    }

    /// Appends the `lines` of transfers that have ended to `file`, if there is one. Returns why it cannot be written.
    pub(super) fn append<'f>(
        &self,
        file: Option<&'f mut TransferFile>,
        lines: &str,
    ) -> Option<&'f str> {
        let reopens = self.reopens.swap(false, Ordering::AcqRel);
        let file = file?;
        if reopens {
            file.reopen();
        }
        file.append(lines);
        lock(&self.totals).set_unwritten(file.unwritten);
        file.failure()
    }

    /// Handles what happened until `now`, less [`SORT_TIME`], in its order. `None` stands for the end of the daemon.
    fn handle_received(&self, known: &mut Known<'_>, now: Option<Instant>) {
        known.received.append(&mut lock(&self.inbox));
        known.received.sort_by_key(|(seen, _)| *seen);
        let is_due = |seen: Instant| now.is_none_or(|now| seen + SORT_TIME <= now);
        let due = known.received.partition_point(|(seen, _)| is_due(*seen));
        for (seen, received) in known.received.drain(..due).collect::<Vec<_>>() {
            match received {
                Received::Ended(transfer) => {
                    known.running.remove(&transfer.session.id);
                    if let Some(finished) = known.tracker.end(seen, transfer) {
                        self.report(finished, known);
                    }
                }
                Received::Waiting(transfer) => {
                    if known.running.len() < MAX_INBOX
                        && known.tracker.running_connection(seen, &transfer).is_some()
                    {
                        known.running.insert(transfer.session.id, transfer.clone());
                    }
                    let waiting = known.tracker.examine(seen, transfer);
                    known.reports.extend(waiting.into_iter().map(Report::Transfer));
                }
                Received::SessionEnd(report) => {
                    known.running.remove(&report.session.id);
                    known.ended_sessions.push_back((seen + TRANSFER_PATIENCE, report));
                }
                Received::PinholeWaiting(waiting) => {
                    known.waiting_pinholes.push_back((seen + TRANSFER_PATIENCE, waiting));
                }
            }
        }
    }

    fn report(&self, mut finished: Box<FinishedTransfer>, known: &mut Known<'_>) {
        accounting::complete_bytes(&mut finished, |initiator, dialled| {
            known.conntrack.counted(initiator, dialled)
        });
        lock(&self.totals).count(Instant::now(), &finished);
        known.session_bytes.add(&finished);
        known.reports.push(Report::Transfer(finished));
    }

    /// Reports the data connections that did not come about through the pinholes that wait until `now`. `None` stands for
    /// the end of the daemon.
    fn report_missing_connections(&self, known: &mut Known<'_>, now: Option<Instant>) {
        let is_due = |until: Instant| now.is_none_or(|now| until <= now);
        while known.waiting_pinholes.front().is_some_and(|(until, _)| is_due(*until))
            && let Some((_, waiting)) = known.waiting_pinholes.pop_front()
        {
            let MissingTransfer { at, session, user, pinhole } = *waiting;
            if let Some(reason) = known.tracker.missing_connection(&pinhole) {
                let is_active = pinhole.initiator != session.client.ip();
                lock(&self.totals).count_missing(session, is_active);
                let missing = Box::new(MissingConnection { session, user, at, reason });
                known.reports.push(Report::NoDataConnection(missing));
            }
        }
    }
}

impl TransferReports {
    /// Reports the data connections of long transfers that conntrack has forgotten (`conntrack -F`): their packets are
    /// taken for new ones, so they hang.
    fn report_forgotten_connections(&self, known: &mut Known<'_>, now: Instant) {
        let Known { tracker, conntrack, running, reports, .. } = known;
        running.retain(|_, transfer| {
            let Some((initiator, dialled)) = tracker.running_connection(now, transfer) else {
                return false;
            };
            if conntrack.is_running(initiator, dialled) {
                return true;
            }
            let (session, user) = (transfer.session, transfer.transfer.user.clone());
            lock(&self.totals).count_missing(session, initiator.ip() != session.client.ip());
            let reason =
                format!("the kernel has forgotten the connection of {initiator} to {dialled}");
            let at = SystemTime::now();
            let missing = MissingConnection { session, user, at, reason };
            reports.push(Report::NoDataConnection(Box::new(missing)));
            false
        });
    }
}

impl Known<'_> {
    /// Reports the ends of sessions whose transfers are reported by `now`. `None` stands for the end of the daemon.
    fn report_ended_sessions(&mut self, now: Option<Instant>) {
        if self.ended_sessions.is_empty() {
            return;
        }
        let waiting = self.tracker.waiting_sessions();
        for (until, mut report) in std::mem::take(&mut self.ended_sessions) {
            let SessionReport { session, ended, .. } = &*report;
            // Another thread may not have recorded the last transfers yet.
            let is_due = self.session_bytes.has_all(session.id, ended.transfers)
                || now.is_none_or(|now| until <= now);
            if !is_due || waiting.contains(&session.id) {
                self.ended_sessions.push_back((until, report));
                continue;
            }
            report.bytes = self.session_bytes.take(session.id, ended.transfers);
            self.reports.push(Report::SessionEnd(report));
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
