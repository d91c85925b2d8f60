//! Joins a transfer, as the control connection tells it, with the first and the last packets of its data connection.
//!
//! The packets are copies that the kernel collects for a moment, so a transfer waits for them for a moment, too. What is
//! never seen leaves its fields empty.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ahash::AHashMap;

use super::finished_transfer::{FinishedTransfer, TransferResult};
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
    /// The acknowledgement number, if ACK is set.
    pub acknowledged: u32,
}

impl DataPacket {
    /// Whether it is the RST of an end that listens at no such port (RFC 9293, section 3.10.7.1).
    fn refuses_a_syn(&self) -> bool {
        self.flags.rst && self.flags.ack && self.end == 0
    }
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

impl End {
    fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Target,
            Self::Target => Self::Initiator,
        }
    }
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
    /// What each had acknowledged with its last FIN or RST.
    acknowledged: [Option<u32>; 2],
    /// Who reset it, and the sequence number of that RST.
    reset: Option<(End, u32)>,
    /// Whether it was reported that it did not come about.
    is_reported: bool,
}

/// The initiator and the target of a data connection, as the filter chains see them.
type Ends = (IpAddr, SocketAddr);

struct WaitingTransfer {
    until: Instant,
    finished: Box<FinishedTransfer>,
}

/// The data connections that were seen, and the transfers that wait for the end of theirs.
#[derive(Default)]
pub struct TransferTracker {
    connections: AHashMap<Ends, DataConnection>,
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
        let DataPacket { source, destination, flags, end, acknowledged } = *packet;
        let from_initiator = ((source.ip(), destination), source.port(), End::Initiator);
        let from_target = ((destination.ip(), source), destination.port(), End::Target);
        if flags.syn || packet.refuses_a_syn() {
            let (ends, port, sender) = if flags.ack { from_target } else { from_initiator };
            let first = if flags.ack { acknowledged.wrapping_sub(1) } else { end };
            return self.begin(now, (ends, port), first).record(now, sender, packet);
        }
        for (ends, port, sender) in [from_initiator, from_target] {
            if let Some(connection) = self.connections.get_mut(&ends)
                && connection.initiator_port == port
            {
                return connection.record(now, sender, packet);
            }
        }
    }

    /// The connection between these ends whose initiator begins with the sequence number `first`.
    fn begin(
        &mut self,
        now: Instant,
        (ends, port): (Ends, u16),
        first: u32,
    ) -> &mut DataConnection {
        let new = DataConnection {
            initiator_port: port,
            began: now,
            ended: now,
            first: [Some(first), None],
            last: [None, None],
            acknowledged: [None, None],
            reset: None,
            is_reported: false,
        };
        if !self.connections.get(&ends).is_some_and(|known| known.begins_like(&new)) {
            self.make_room();
            self.order.push_back((ends, now));
            self.connections.insert(ends, new.clone());
        }
        self.connections.entry(ends).or_insert(new)
    }

    fn make_room(&mut self) {
        while self.order.len() >= MAX_CONNECTIONS
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
        now: Instant,
        mut finished: Box<FinishedTransfer>,
    ) -> Option<Box<FinishedTransfer>> {
        if self.is_decided(&finished) || self.waiting.len() >= MAX_WAITING {
            self.complete(&mut finished);
            return Some(finished);
        }
        self.waiting.push_back(WaitingTransfer { until: now + PATIENCE, finished });
        None
    }

    /// A transfer has been pending for a while. Returns it if its data connection did not come about, as far as is known.
    pub fn examine(
        &self,
        now: Instant,
        mut waiting: Box<FinishedTransfer>,
    ) -> Option<Box<FinishedTransfer>> {
        let transfer = &waiting.transfer;
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
        (waiting.result, waiting.reason) = (TransferResult::Waiting, reason);
        Some(waiting)
    }

    /// Why the data connection through `pinhole`, which no transfer uses, did not come about, if its initiator tried: once
    /// for each connection.
    pub fn missing_connection(&mut self, pinhole: &Pinhole) -> Option<String> {
        let ends = ends_of(pinhole);
        let known = self.connections.get_mut(&ends).filter(|known| !known.is_answered())?;
        let is_new = !std::mem::replace(&mut known.is_reported, true);
        is_new.then(|| missing_reason(ends, Some(known)))
    }

    /// Whether no transfer waits for the packets of its data connection.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The transfers that need not wait any more.
    pub fn take_finished(&mut self, now: Instant) -> VecDeque<Box<FinishedTransfer>> {
        let waiting = std::mem::take(&mut self.waiting);
        let (finished, waiting) = waiting.into_iter().partition(|waiting: &WaitingTransfer| {
            waiting.until <= now || self.is_decided(&waiting.finished)
        });
        self.waiting = waiting;
        self.complete_all(finished)
    }

    /// All transfers, at the end.
    pub fn take_all(&mut self) -> VecDeque<Box<FinishedTransfer>> {
        let waiting = std::mem::take(&mut self.waiting);
        self.complete_all(waiting)
    }

    fn complete_all(
        &mut self,
        waiting: VecDeque<WaitingTransfer>,
    ) -> VecDeque<Box<FinishedTransfer>> {
        let mut finished: VecDeque<_> =
            waiting.into_iter().map(|waiting| waiting.finished).collect();
        finished.iter_mut().for_each(|finished| self.complete(finished));
        finished
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

    fn complete(&mut self, finished: &mut FinishedTransfer) {
        let transfer = &finished.transfer;
        let ends = transfer.announcement.map(|(_, pinhole)| ends_of(&pinhole));
        let connection = ends.and_then(|ends| self.connections.get(&ends));
        // One that has neither ended nor an answer may still be that of the next transfer.
        let is_its =
            |connection: &&DataConnection| connection.is_answered() || !is_success(transfer.end);
        let connection = connection.filter(is_its);
        if let Some(connection) = connection {
            finished.bytes = connection.bytes_of(sender_of(transfer));
            finished.connection =
                transfer.announcement.map(|(_, Pinhole { initiator, arrival, .. })| {
                    (SocketAddr::new(initiator, connection.initiator_port), arrival)
                });
            if connection.is_answered() && connection.ended > connection.began {
                finished.duration = connection.ended - connection.began;
            }
        }
        let sees_packets = self.sees_packets;
        (finished.result, finished.reason) = classify(transfer, ends, connection, sees_packets);
        if let Some(ends) = ends.filter(|_| connection.is_some()) {
            self.connections.remove(&ends);
        }
    }
}

impl DataConnection {
    /// Whether `other` has the same initiator port and initial sequence number, so that its packet is one of this.
    fn begins_like(&self, other: &Self) -> bool {
        (self.initiator_port, self.first[0]) == (other.initiator_port, other.first[0])
    }

    fn record(&mut self, now: Instant, sender: End, packet: &DataPacket) {
        let (place, DataPacket { flags, end, acknowledged, .. }) = (sender as usize, *packet);
        if flags.syn && self.first[place].is_none() {
            self.first[place] = Some(end);
        }
        if flags.fin && self.last[place].is_none() {
            (self.last[place], self.ended) = (Some(end), now);
        }
        if flags.ack && (flags.fin || flags.rst) {
            self.acknowledged[place] = Some(acknowledged);
        }
        if flags.rst && self.reset.is_none() {
            (self.reset, self.ended) = (Some((sender, end)), now);
        }
    }

    fn is_over(&self) -> bool {
        self.reset.is_some() || self.last.iter().all(Option::is_some)
    }

    fn is_answered(&self) -> bool {
        self.first[End::Target as usize].is_some()
    }

    /// The bytes between the SYN of `sender`, which counts one, and its FIN, or the place where a reset cut them off.
    fn bytes_of(&self, sender: End) -> Option<u64> {
        let (first, last) = (self.first[sender as usize]?, self.last[sender as usize]);
        let end = if self.is_cut(sender) { self.reset_place(sender) } else { last };
        Some(end?.wrapping_sub(first).wrapping_sub(1).into())
    }

    /// Whether a reset came before all that `sender` sent was there.
    fn is_cut(&self, sender: End) -> bool {
        let is_before = |place: u32, last: u32| place.wrapping_sub(last).cast_signed() < 0;
        match (self.last[sender as usize], self.reset_place(sender)) {
            (Some(last), place) => place.is_some_and(|place| is_before(place, last)),
            (None, _) => self.reset.is_some(),
        }
    }

    /// The sequence number behind what was there of `sender` at a reset: what the other end had acknowledged, or the
    /// place of the sender's own RST.
    fn reset_place(&self, sender: End) -> Option<u32> {
        let (reset_by, place) = self.reset?;
        let own = Some(place).filter(|_| reset_by == sender);
        self.acknowledged[sender.other() as usize].or(own)
    }
}

/// The ends by which the packets of the data connection are found.
fn ends_of(pinhole: &Pinhole) -> Ends {
    (pinhole.initiator, pinhole.target)
}

/// The end that sends the file.
fn sender_of(transfer: &Transfer) -> End {
    if transfer.target_sends() { End::Target } else { End::Initiator }
}

fn is_success(end: TransferEnd) -> bool {
    matches!(end, TransferEnd::Replied(reply) if reply.is_success())
}

/// Why there was no data connection.
fn missing_reason((initiator, target): Ends, connection: Option<&DataConnection>) -> String {
    match connection {
        Some(DataConnection { reset: Some(_), .. }) => {
            format!("{target} refused the connection of {initiator}")
        }
        Some(_) => format!("SYN of {initiator} seen, no answer from {target}"),
        None => format!("no connection of {initiator} to {target} seen"),
    }
}

/// How the transfer ended, and why there was no data connection.
fn classify(
    transfer: &Transfer,
    ends: Option<Ends>,
    connection: Option<&DataConnection>,
    sees_packets: bool,
) -> (TransferResult, Option<String>) {
    let was_reset = connection.is_some_and(|connection| connection.reset.is_some());
    let was_cut = connection.is_some_and(|connection| connection.is_cut(sender_of(transfer)));
    let is_answered = connection.is_some_and(DataConnection::is_answered);
    let code = match transfer.end {
        TransferEnd::Replied(reply) if reply.is_success() && was_cut => {
            return (TransferResult::Reset, None);
        }
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
        () if code >= 500 && !transfer.has_started => TransferResult::Refused,
        () if was_reset => TransferResult::Reset,
        () if transfer.has_started || code == 0 => TransferResult::Aborted,
        () => TransferResult::Refused,
    };
    (result, None)
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
