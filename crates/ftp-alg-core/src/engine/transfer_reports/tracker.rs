//! Joins a transfer, as the control connection tells it, with the first and the last packets of its data connection.
//!
//! The packets are copies that the kernel collects for a moment, so a transfer waits for them for a moment, too. What is
//! never seen leaves its fields empty.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use super::finished_transfer::{FinishedTransfer, TransferResult, TransferSession};
use crate::engine::{Pinhole, Transfer, TransferEnd};

/// How long a transfer waits for the packets of its data connection.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// Limit of data connections whose packets are stored; the oldest go first.
const MAX_CONNECTIONS: usize = 16384;
/// Limit of transfers that wait.
const MAX_WAITING: usize = 8192;

/// A packet of a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataPacket {
    /// Its sender, as the filter chains see it.
    pub source: SocketAddr,
    /// Its receiver, as the filter chains see it.
    pub destination: SocketAddr,
    /// Whether SYN, ACK, FIN and RST are set.
    pub flags: DataFlags,
    /// The sequence number behind its data: that of its FIN.
    pub end: u32,
}

/// TCP flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataFlags {
    /// SYN.
    pub syn: bool,
    /// ACK.
    pub ack: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
}

/// An end of a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Initiator,
    Target,
}

/// What was seen of one data connection.
#[derive(Clone, Debug)]
struct DataConnection {
    initiator_port: u16,
    began: Instant,
    ended: Instant,
    /// The initial sequence numbers of initiator and target.
    first: [Option<u32>; 2],
    /// The sequence numbers of their FINs.
    last: [Option<u32>; 2],
    reset_by: Option<End>,
}

/// The initiator and the target of a data connection, as the filter chains see them.
type Ends = (IpAddr, SocketAddr);

struct WaitingTransfer {
    until: Instant,
    finished: FinishedTransfer,
}

/// The data connections that were seen, and the transfers that wait for the end of theirs.
#[derive(Default)]
pub struct TransferTracker {
    connections: HashMap<Ends, DataConnection>,
    /// Their ends, in the order in which they began.
    order: VecDeque<(Ends, Instant)>,
    waiting: VecDeque<WaitingTransfer>,
    /// Whether the packets of data connections are seen at all.
    pub sees_packets: bool,
}

impl TransferTracker {
    /// A tracker that sees the packets of data connections, or not.
    pub fn new(sees_packets: bool) -> Self {
        Self { sees_packets, ..Self::default() }
    }

    /// Records a packet of a data connection.
    pub fn observe(&mut self, now: Instant, packet: &DataPacket) {
        let DataPacket { source, destination, flags, end } = *packet;
        if flags.syn && !flags.ack {
            return self.begin(now, (source.ip(), destination), source.port(), end);
        }
        let from_initiator = ((source.ip(), destination), source.port(), End::Initiator);
        let from_target = ((destination.ip(), source), destination.port(), End::Target);
        for (ends, port, sender) in [from_initiator, from_target] {
            if let Some(connection) = self.connections.get_mut(&ends)
                && connection.initiator_port == port
            {
                return connection.record(now, sender, flags, end);
            }
        }
    }

    fn begin(&mut self, now: Instant, ends: Ends, initiator_port: u16, first: u32) {
        let known = self.connections.get(&ends);
        let is_known = |known: &DataConnection| {
            known.initiator_port == initiator_port && known.first[0] == Some(first)
        };
        if known.is_some_and(is_known) {
            return; // a retransmission
        }
        let connection = DataConnection {
            initiator_port,
            began: now,
            ended: now,
            first: [Some(first), None],
            last: [None, None],
            reset_by: None,
        };
        self.connections.insert(ends, connection);
        self.order.push_back((ends, now));
        while self.order.len() > MAX_CONNECTIONS
            && let Some((ends, began)) = self.order.pop_front()
        {
            // Unless a later one has its ends.
            if self.connections.get(&ends).is_some_and(|connection| connection.began == began) {
                self.connections.remove(&ends);
            }
        }
    }

    /// A transfer has ended on the control connection. Returns it if nothing more is to be known of it, or if too many
    /// wait.
    pub fn end(
        &mut self,
        (now, at): (Instant, SystemTime),
        session: TransferSession,
        transfer: Transfer,
    ) -> Option<FinishedTransfer> {
        let finished = FinishedTransfer {
            session,
            at,
            result: TransferResult::Complete,
            bytes: None,
            duration: transfer.duration,
            reason: None,
            transfer,
        };
        if self.is_decided(&finished) || self.waiting.len() >= MAX_WAITING {
            return Some(self.complete(finished));
        }
        self.waiting.push_back(WaitingTransfer { until: now + PATIENCE, finished });
        None
    }

    /// A transfer has been pending for a while. Returns it if its data connection did not come about, as far as is known.
    pub fn examine(
        &self,
        (now, at): (Instant, SystemTime),
        session: TransferSession,
        transfer: Transfer,
    ) -> Option<FinishedTransfer> {
        let announced = transfer.announcement.filter(|_| self.sees_packets);
        let reason = match announced.map(|(_, pinhole)| ends_of(&pinhole)) {
            // Only the server's silence says something about its data connection.
            None if transfer.has_started => return None,
            None => None,
            Some(ends) => {
                let requested = now.checked_sub(transfer.duration);
                let is_earlier = |connection: &&DataConnection| {
                    connection.is_over() && Some(connection.ended) <= requested
                };
                let known =
                    self.connections.get(&ends).filter(|connection| !is_earlier(connection));
                if known.is_some_and(DataConnection::is_answered) {
                    return None;
                }
                Some(missing_reason(ends, known))
            }
        };
        let duration = transfer.duration;
        let (result, bytes) = (TransferResult::Waiting, None);
        Some(FinishedTransfer { session, transfer, at, result, bytes, duration, reason })
    }

    /// Whether no transfer waits for the packets of its data connection.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The transfers that need not wait any more.
    pub fn take_finished(&mut self, now: Instant) -> Vec<FinishedTransfer> {
        let mut finished = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.until <= now || self.is_decided(&waiting.finished) {
                finished.push(self.complete(waiting.finished));
            } else {
                self.waiting.push_back(waiting);
            }
        }
        finished
    }

    /// All transfers, at the end.
    pub fn take_all(&mut self) -> Vec<FinishedTransfer> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().map(|waiting| self.complete(waiting.finished)).collect()
    }

    /// Whether nothing more is to be known of the data connection.
    fn is_decided(&self, FinishedTransfer { transfer, .. }: &FinishedTransfer) -> bool {
        let Some((_, pinhole)) = transfer.announcement.filter(|_| self.sees_packets) else {
            return true;
        };
        let refused = matches!(transfer.end, TransferEnd::Replied(reply) if reply.code >= 500);
        let Some(connection) = self.connections.get(&ends_of(&pinhole)) else {
            return refused && !transfer.has_started;
        };
        connection.is_over()
    }

    fn complete(&mut self, mut finished: FinishedTransfer) -> FinishedTransfer {
        let transfer = &finished.transfer;
        let ends = transfer.announcement.map(|(_, pinhole)| ends_of(&pinhole));
        let connection = ends.and_then(|ends| self.connections.get(&ends));
        // One that has neither ended nor an answer may still be that of the next transfer.
        let is_its =
            |connection: &&DataConnection| connection.is_answered() || !is_success(transfer.end);
        let connection = connection.filter(is_its);
        if let Some(connection) = connection {
            let sender = match Some(transfer.verb.is_upload()) == transfer.is_active() {
                true => End::Target,
                false => End::Initiator,
            };
            finished.bytes = connection.bytes_of(sender);
            if connection.is_answered() && connection.ended > connection.began {
                finished.duration = connection.ended - connection.began;
            }
        }
        let sees_packets = self.sees_packets;
        (finished.result, finished.reason) = classify(transfer, ends, connection, sees_packets);
        if let Some(ends) = ends.filter(|_| finished.bytes.is_some()) {
            self.connections.remove(&ends);
        }
        finished
    }
}

impl DataConnection {
    fn record(&mut self, now: Instant, sender: End, flags: DataFlags, end: u32) {
        let place = sender as usize;
        if flags.syn {
            self.first[place] = Some(end);
        }
        if flags.fin && self.last[place].is_none() {
            (self.last[place], self.ended) = (Some(end), now);
        }
        if flags.rst && self.reset_by.is_none() {
            (self.reset_by, self.ended) = (Some(sender), now);
        }
    }

    fn is_over(&self) -> bool {
        self.reset_by.is_some() || self.last.iter().all(Option::is_some)
    }

    fn is_answered(&self) -> bool {
        self.first[End::Target as usize].is_some()
    }

    /// The bytes between the SYN and the FIN of `sender`, which count one each.
    fn bytes_of(&self, sender: End) -> Option<u64> {
        let (first, last) = (self.first[sender as usize]?, self.last[sender as usize]?);
        Some(last.wrapping_sub(first).wrapping_sub(1).into())
    }
}

/// The ends by which the packets of the data connection are found.
fn ends_of(pinhole: &Pinhole) -> Ends {
    (pinhole.initiator, pinhole.target)
}

fn is_success(end: TransferEnd) -> bool {
    matches!(end, TransferEnd::Replied(reply) if reply.is_success())
}

/// Why there was no data connection.
fn missing_reason((initiator, target): Ends, connection: Option<&DataConnection>) -> String {
    match connection {
        Some(DataConnection { reset_by: Some(_), .. }) => {
            format!("{target} refused the connection of {initiator}")
        }
        Some(_) => format!("SYN of {initiator} seen, no answer from {target}"),
        None => format!("no SYN of {initiator} to {target} seen"),
    }
}

/// How the transfer ended, and why there was no data connection.
fn classify(
    transfer: &Transfer,
    ends: Option<Ends>,
    connection: Option<&DataConnection>,
    sees_packets: bool,
) -> (TransferResult, Option<String>) {
    let was_reset = connection.is_some_and(|connection| connection.reset_by.is_some());
    let is_answered = connection.is_some_and(DataConnection::is_answered);
    let code = match transfer.end {
        TransferEnd::Replied(reply) if reply.is_success() => {
            return (TransferResult::Complete, None);
        }
        TransferEnd::Replied(reply) => reply.code,
        TransferEnd::SessionReset => return (TransferResult::Reset, None),
        TransferEnd::SessionEnded => 0,
        // A data connection that is not seen may be one from before a restart.
        TransferEnd::Unseen | TransferEnd::Pending
            if connection.is_none_or(DataConnection::is_answered) =>
        {
            return (TransferResult::Unseen, None);
        }
        TransferEnd::Unseen | TransferEnd::Pending => 0,
    };
    let is_missing = code == 425 || !is_answered && sees_packets && matches!(code, 0 | 421 | 426);
    if is_missing && !is_answered {
        let reason = ends.filter(|_| sees_packets).map(|ends| missing_reason(ends, connection));
        return (TransferResult::NoDataConnection, reason);
    }
    let result = match () {
        () if code == 425 => TransferResult::NoDataConnection,
        () if was_reset => TransferResult::Reset,
        () if transfer.has_started || code == 0 => TransferResult::Aborted,
        () => TransferResult::Refused,
    };
    (result, None)
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
