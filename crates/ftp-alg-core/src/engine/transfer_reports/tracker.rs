//! Joins a transfer, as the control connection tells it, with the first and the last packets of its data connection.
//!
//! The packets are copies that the kernel collects for a moment, so a transfer waits for them for a moment, too. What is
//! never seen leaves its fields empty.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ahash::AHashSet;

use super::{
    data_connections::{DataConnection, DataConnections, DataPacket, End, Ends, Found, ends_of},
    finished_transfer::{FinishedTransfer, TransferResult},
};
use crate::engine::{Pinhole, Transfer, TransferEnd};

/// How long a transfer waits for the packets of its data connection.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// Limit of transfers that wait.
const MAX_WAITING: usize = 8192;

struct WaitingTransfer {
    ended: Instant,
    until: Instant,
    finished: Box<FinishedTransfer>,
}

/// The data connections that were seen, and the transfers that wait for the end of theirs.
#[derive(Default)]
pub struct TransferTracker {
    connections: DataConnections,
    waiting: VecDeque<WaitingTransfer>,
    /// Whether the packets of data connections are seen at all.
    pub sees_packets: bool,
}

impl TransferTracker {
    /// A tracker that sees the packets of data connections, or not.
    pub fn new(sees_packets: bool) -> Self {
        Self { sees_packets, ..Self::default() }
    }

    /// Records a packet of a data connection that passed at the time `at`.
    pub fn observe(&mut self, at: Instant, packet: &DataPacket) {
        self.connections.observe(at, packet);
    }

    /// A transfer has ended on the control connection. Returns it if none waits and nothing more is to be known of it, or if
    /// too many wait.
    pub fn end(
        &mut self,
        now: Instant,
        mut finished: Box<FinishedTransfer>,
    ) -> Option<Box<FinishedTransfer>> {
        let ended = finished.transfer.ended.unwrap_or(now);
        let may_be_first = self.waiting.is_empty() && self.is_decided(&finished, ended);
        if may_be_first || self.waiting.len() >= MAX_WAITING {
            self.complete(&mut finished, ended);
            return Some(finished);
        }
        self.waiting.push_back(WaitingTransfer { ended, until: now + PATIENCE, finished });
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
                let known = self.connections.newest(ends).filter(|one| !is_earlier(one));
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
        let known = self.connections.newest_mut(ends).filter(|known| !known.is_answered())?;
        let is_new = !std::mem::replace(&mut known.is_reported, true);
        is_new.then(|| missing_reason(ends, Some(known)))
    }

    /// Whether no transfer waits for the packets of its data connection.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The transfers that need not wait any more, those of a session in their order.
    pub fn take_finished(&mut self, now: Instant) -> VecDeque<Box<FinishedTransfer>> {
        let (mut taken, mut held_up) = (VecDeque::new(), AHashSet::new());
        // One after the other, because the connection of one is no candidate for the next.
        for mut waiting in std::mem::take(&mut self.waiting) {
            let WaitingTransfer { ended, until, finished } = &mut waiting;
            let is_next = !held_up.contains(&finished.session.id);
            if is_next && (*until <= now || self.is_decided(finished, *ended)) {
                self.complete(finished, *ended);
                taken.push_back(waiting.finished);
            } else {
                held_up.insert(finished.session.id);
                self.waiting.push_back(waiting);
            }
        }
        taken
    }

    /// All transfers, at the end.
    pub fn take_all(&mut self) -> VecDeque<Box<FinishedTransfer>> {
        let waiting = std::mem::take(&mut self.waiting);
        let complete = |WaitingTransfer { ended, mut finished, .. }| {
            self.complete(&mut finished, ended);
            finished
        };
        waiting.into_iter().map(complete).collect()
    }

    /// Whether nothing more is to be known of the data connection.
    fn is_decided(
        &self,
        FinishedTransfer { transfer, .. }: &FinishedTransfer,
        ended: Instant,
    ) -> bool {
        let Some((_, pinhole)) = transfer.announcement.filter(|_| self.sees_packets) else {
            return true;
        };
        let refused = matches!(transfer.end, TransferEnd::Replied(reply) if reply.code >= 500);
        let (ends, server) = (ends_of(&pinhole), server_of(transfer));
        let newest = self.connections.candidates(ends, ended, |one| may_be(one, transfer)).next();
        let is_over =
            newest.map(|one| one.is_over() && !(is_success(transfer.end) && one.may_go_on(server)));
        is_over.unwrap_or(refused && !transfer.has_started)
    }

    fn complete(&mut self, finished: &mut FinishedTransfer, ended: Instant) {
        let transfer = &finished.transfer;
        let ends = transfer.announcement.map(|(_, pinhole)| ends_of(&pinhole));
        let found =
            ends.and_then(|ends| self.connections.find(ends, ended, |one| may_be(one, transfer)));
        let connection = found.map(|found| found.connection);
        if let Some(Found { connection, is_certain }) = found {
            let (sender, server) = (sender_of(transfer), server_of(transfer));
            let bytes = connection.bytes_of(sender, server, is_success(transfer.end));
            finished.bytes = bytes.filter(|_| is_certain);
            finished.connection = transfer.announcement.filter(|_| is_certain).map(
                |(_, Pinhole { initiator, arrival, .. })| {
                    (SocketAddr::new(initiator, connection.initiator_port), arrival)
                },
            );
            if connection.is_answered() && connection.ended > connection.began {
                finished.duration = connection.ended - connection.began;
            }
        }
        let sees_packets = self.sees_packets;
        (finished.result, finished.reason) = classify(transfer, ends, found, sees_packets);
        if let Some((ends, began)) = ends.zip(connection.map(|connection| connection.began)) {
            self.connections.remove(ends, began);
        }
    }
}

/// Whether the data connection may be that of `transfer`. One without an answer may be that of the next transfer.
fn may_be(connection: &DataConnection, transfer: &Transfer) -> bool {
    connection.is_answered() || !is_success(transfer.end)
}

/// Whether a reset came before all of the file was there. A server that resets what it has sent knows better.
fn is_cut(connection: &DataConnection, transfer: &Transfer) -> bool {
    let (sender, server) = (sender_of(transfer), server_of(transfer));
    let is_servers_own = sender == server && connection.is_reset_by(server);
    connection.is_cut(sender, server, is_success(transfer.end)) && !is_servers_own
}

/// The end that sends the file.
fn sender_of(transfer: &Transfer) -> End {
    if transfer.target_sends() { End::Target } else { End::Initiator }
}

/// The end that is the server.
fn server_of(transfer: &Transfer) -> End {
    let sender = sender_of(transfer);
    if transfer.verb.is_upload() { sender.other() } else { sender }
}

fn is_success(end: TransferEnd) -> bool {
    matches!(end, TransferEnd::Replied(reply) if reply.is_success())
}

/// Why there was no data connection.
fn missing_reason((initiator, target): Ends, connection: Option<&DataConnection>) -> String {
    match connection {
        Some(connection) if connection.is_over() => {
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
    found: Option<Found<'_>>,
    sees_packets: bool,
) -> (TransferResult, Option<String>) {
    let connection = found.map(|found| found.connection);
    let was_reset = connection.is_some_and(|one| one.was_reset(server_of(transfer)));
    let was_cut = found.is_some_and(|found| found.is_certain && is_cut(found.connection, transfer));
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
