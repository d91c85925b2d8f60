//! Transfers: what the engines tell of them and what the kernel copies of their data connections becomes one log line
//! for each, never sampled, and the totals of `status`. A thread of its own does it, and no packet waits for it.

mod file;
mod totals;
mod tracker;

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

pub use file::TransferFile;
use ftp_alg_core::engine::{Event, EventKind, Transfer, TransferEnd};
use totals::Totals;
pub use tracker::{FinishedTransfer, TransferResult};
use tracker::{TransferSession, TransferTracker};

use super::{
    shard::lock,
    snapshot::{EventRow, TransferTotals},
};
use crate::kernel::data_log::DataLog;

/// How often the thread looks for packets of data connections, and for transfers that have ended.
const INTERVAL: Duration = Duration::from_millis(100);
/// Limit of transfers that the thread has not taken yet.
const MAX_INBOX: usize = 8192;

/// Transfers on their way to the thread that reports them.
pub(super) struct TransferReports {
    /// Whether there is a thread that reports them.
    is_on: bool,
    inbox: Mutex<Vec<(Instant, Box<FinishedTransfer>)>>,
    /// Transfers for which the inbox had no room.
    lost: AtomicU64,
    totals: Mutex<Totals>,
    /// Whether the file is to be opened again.
    reopens: AtomicBool,
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

    /// Takes over the transfers among `events`.
    pub(super) fn record(&self, now: Instant, events: &[Event]) {
        if !self.is_on {
            return;
        }
        let mut inbox = None;
        for Event { session, client, server, kind } in events {
            let EventKind::Transfer(transfer) = kind else { continue };
            let inbox = inbox.get_or_insert_with(|| lock(&self.inbox));
            if inbox.len() >= MAX_INBOX {
                self.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let session = TransferSession { id: *session, client: *client, server: *server };
            let transfer = Transfer::clone(transfer);
            let finished = FinishedTransfer::new(SystemTime::now(), session, transfer);
            inbox.push((now, Box::new(finished)));
        }
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

    /// Reports transfers, and passes each to `publish`, until `stop` is set. Without a `data_log`, nothing is known of
    /// their data connections.
    pub(super) fn run(
        &self,
        mut data_log: Option<DataLog>,
        mut publish: impl FnMut(Box<FinishedTransfer>),
        stop: &AtomicBool,
    ) {
        let mut tracker = TransferTracker::new(data_log.is_some());
        while !stop.load(Ordering::Acquire) {
            thread::sleep(INTERVAL);
            let now = Instant::now();
            let read =
                data_log.as_mut().map(|log| log.read(|packet| tracker.observe(now, &packet)));
            if let Some(Err(error)) = read {
                tracing::warn!(
                    event = "data-log-ended",
                    "{error}: transfers are reported without their bytes"
                );
                (data_log, tracker.sees_packets) = (None, false);
            }
            self.take_ended(&mut tracker, &mut publish);
            for finished in tracker.take_finished(Instant::now()) {
                self.report(finished, &mut publish);
            }
        }
        self.take_ended(&mut tracker, &mut publish);
        for finished in tracker.take_all() {
            self.report(finished, &mut publish);
        }
    }

    /// Has the file opened again before the next transfer is written.
    pub(super) fn reopen_file(&self) {
        self.reopens.store(true, Ordering::Release);
    }

    /// Appends `row` to `file`.
    pub(super) fn append(&self, file: &mut TransferFile, row: &EventRow) {
        if self.reopens.swap(false, Ordering::AcqRel) {
            file.reopen();
        }
        file.append(&serde_json::to_string(row).unwrap_or_default());
        lock(&self.totals).set_unwritten(file.unwritten);
    }

    fn take_ended(
        &self,
        tracker: &mut TransferTracker,
        publish: &mut impl FnMut(Box<FinishedTransfer>),
    ) {
        let ended = std::mem::take(&mut *lock(&self.inbox));
        for (seen, finished) in ended {
            if let Some(finished) = tracker.end(seen, finished) {
                self.report(finished, publish);
            }
        }
    }

    fn report(
        &self,
        finished: Box<FinishedTransfer>,
        publish: &mut impl FnMut(Box<FinishedTransfer>),
    ) {
        lock(&self.totals).count(Instant::now(), &finished);
        let FinishedTransfer { session, transfer, result, bytes, duration, .. } = &*finished;
        let code = finished.code();
        tracing::info!(
            event = "transfer",
            session = session.id,
            client = %session.client,
            server = %session.server,
            user = transfer.user.as_deref(),
            verb = transfer.verb.name(),
            path = &*transfer.path,
            result = <&str>::from(result),
            code,
            bytes,
            seconds = duration.as_secs_f64(),
            "{finished}"
        );
        publish(finished);
    }
}

impl FinishedTransfer {
    /// A transfer of which nothing but the dialogue is known.
    fn new(at: SystemTime, session: TransferSession, transfer: Transfer) -> Self {
        Self {
            session,
            at,
            result: TransferResult::Complete,
            bytes: None,
            duration: transfer.duration,
            reason: None,
            transfer,
        }
    }

    /// The code of the server's last reply.
    pub fn code(&self) -> Option<u16> {
        match self.transfer.end {
            TransferEnd::Replied(reply) => Some(reply.code),
            TransferEnd::SessionEnded | TransferEnd::SessionReset => None,
        }
    }
}

/// The log line: `transfer #17 bob@10.0.0.7 STOR /pub/q3.csv 5 B in 0.2 s: 226`.
impl fmt::Display for FinishedTransfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, transfer, result, bytes, duration, reason, .. } = self;
        write!(f, "transfer #{} ", session.id)?;
        if let Some(user) = &transfer.user {
            write!(f, "{user}@")?;
        }
        write!(f, "{} {}", session.client.ip(), transfer.verb.name())?;
        if !transfer.path.is_empty() {
            write!(f, " {}", transfer.path)?;
        }
        if let Some(bytes) = bytes {
            write!(f, " {bytes} B")?;
        }
        write!(f, " in {:.1} s: ", duration.as_secs_f64())?;
        match self.code() {
            Some(code) => write!(f, "{code}")?,
            None => f.write_str("the control connection ended")?,
        }
        if *result != TransferResult::Complete {
            write!(f, ", {}", <&str>::from(result).replace('-', " "))?;
        }
        match reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
