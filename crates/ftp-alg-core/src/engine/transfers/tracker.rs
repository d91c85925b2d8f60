//! Joins a transfer, as the control connection tells it, with the first and the last packets of its data connection.
//!
//! The packets are copies that the kernel collects for a moment, so a transfer waits for them for a moment, too. Servers
//! report success when they have handed a file to their kernel, while a slow client still reads it: while its data
//! connection goes on, a transfer waits longer. What is never seen leaves its fields empty.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ahash::AHashSet;

use super::{
    data_connections::{
        DataConnection, DataConnections, DataEnds, DataPacket, End, Found, ends_of,
    },
    transfer::{Transfer, TransferEnd, TransferResult},
};
use crate::engine::{Event, EventKind, PinholeEnds};

/// How long a transfer waits for the packets of its data connection.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// How long it waits at most for the end of a data connection that goes on.
const LONGEST_PATIENCE: Duration = Duration::from_secs(600);
/// Longest time between two questions whether a data connection goes on. The first ones come sooner.
const LONGEST_INTERVAL: Duration = Duration::from_secs(8);
/// Replies from this one on refuse a command, if no preliminary reply came before (RFC 959, section 4.2.2).
const REFUSED: u16 = 450;
/// Limit of transfers that wait.
const MAX_WAITING: usize = 8192;

struct Waiting<Tag> {
    ended: Instant,
    waits_for: WaitsFor,
    until: Instant,
    tag: Tag,
    event: Event<Box<Transfer>>,
}

/// What a transfer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitsFor {
    /// The packets that were seen until it ended.
    Packets,
    /// The end of a data connection that goes on. The next transfers of its session are reported meanwhile.
    ConnectionEnd,
    /// The last packets of a data connection that does not go on.
    LastPackets,
}

/// The data connections that were seen, and the transfers that wait for the end of theirs. Each comes back with its tag, by
/// which the host knows more of it.
pub struct TransferTracker<Tag> {
    connections: DataConnections,
    waiting: VecDeque<Waiting<Tag>>,
    /// Whether the packets of data connections are seen at all.
    pub sees_packets: bool,
}

impl<Tag> Default for TransferTracker<Tag> {
    fn default() -> Self {
        Self {
            connections: DataConnections::default(),
            waiting: VecDeque::new(),
            sees_packets: false,
        }
    }
}

impl<Tag> TransferTracker<Tag> {
    /// Records a packet of a data connection that passed at the time `at`.
    pub fn observe(&mut self, at: Instant, packet: &DataPacket) {
        self.connections.observe(at, packet);
    }

    /// A transfer has ended on the control connection. Returns it if none waits and nothing more is to be known of it; or
    /// the one that has waited longest, if too many wait.
    pub fn end(
        &mut self,
        now: Instant,
        tag: Tag,
        mut event: Event<Box<Transfer>>,
    ) -> Option<(Tag, Event)> {
        let ended = event.kind.ended.unwrap_or(now);
        if self.waiting.is_empty() && self.is_decided(&event.kind, ended) {
            self.complete(&mut event.kind, ended);
            return Some((tag, event.map(EventKind::of_transfer)));
        }
        let oldest = match self.waiting.len() {
            ..MAX_WAITING => None,
            _ => self.waiting.pop_front().map(|oldest| self.completed(oldest)),
        };
        let (waits_for, until) = (WaitsFor::Packets, now + PATIENCE);
        self.waiting.push_back(Waiting { ended, waits_for, until, tag, event });
        oldest
    }

    /// A transfer has been pending for a while. Returns it if its data connection did not come about, as far as is known.
    pub fn examine(&self, now: Instant, mut event: Event<Box<Transfer>>) -> Option<Event> {
        let transfer = &mut event.kind;
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
        (transfer.result, transfer.reason) = (TransferResult::Waiting, reason);
        Some(event.map(EventKind::of_transfer))
    }

    /// Why the data connection through `pinhole`, which no transfer uses, did not come about, if its initiator tried: once
    /// for each connection.
    pub fn missing_connection(&mut self, pinhole: &PinholeEnds) -> Option<String> {
        let ends = ends_of(pinhole);
        let known = self.connections.newest_mut(ends).filter(|known| !known.is_answered())?;
        let is_new = !std::mem::replace(&mut known.is_reported, true);
        is_new.then(|| missing_reason(ends, Some(known)))
    }

    /// Whether a transfer of this session waits.
    pub fn waits_in(&self, session: u64) -> bool {
        self.waiting.iter().any(|waiting| waiting.event.session == session)
    }

    /// The transfers that need not wait any more, those of a session in their order. `is_running` says whether the kernel
    /// still has the data connection between an initiator and what this dialled.
    pub fn take_finished(
        &mut self,
        now: Instant,
        mut is_running: impl FnMut(SocketAddr, SocketAddr) -> bool,
    ) -> VecDeque<(Tag, Event)> {
        let (mut taken, mut held_up) = (VecDeque::new(), AHashSet::new());
        // One after the other, because the connection of one is no candidate for the next.
        for mut waiting in std::mem::take(&mut self.waiting) {
            let Waiting { ended, until, event, .. } = &waiting;
            let (session, is_due) = (event.session, *until <= now);
            let is_next = !held_up.contains(&session);
            let is_decided = is_next && self.is_decided(&event.kind, *ended);
            if is_decided || is_next && is_due && !self.waits_on(&mut waiting, now, &mut is_running)
            {
                taken.push_back(self.completed(waiting));
            } else {
                if waiting.waits_for == WaitsFor::Packets {
                    held_up.insert(session);
                }
                self.waiting.push_back(waiting);
            }
        }
        taken
    }

    /// Whether a transfer that has waited long enough waits on, because its data connection goes on or has just ended.
    fn waits_on(
        &self,
        waiting: &mut Waiting<Tag>,
        now: Instant,
        is_running: impl FnOnce(SocketAddr, SocketAddr) -> bool,
    ) -> bool {
        let Waiting { ended, waits_for, until, event, .. } = waiting;
        let waited = now - *ended;
        let Some((initiator, dialled)) = self.unended_connection(&event.kind, *ended) else {
            return false;
        };
        if *waits_for == WaitsFor::LastPackets || waited >= LONGEST_PATIENCE {
            return false;
        }
        (*waits_for, *until) = match is_running(initiator, dialled) {
            true => (WaitsFor::ConnectionEnd, now + waited.clamp(PATIENCE, LONGEST_INTERVAL)),
            false => (WaitsFor::LastPackets, now + PATIENCE),
        };
        true
    }

    /// The data connection of a pending transfer that has begun and goes on `now`, as far as was seen: its initiator, and
    /// what this dialled.
    pub fn running_connection(
        &self,
        now: Instant,
        pending: &Transfer,
    ) -> Option<(SocketAddr, SocketAddr)> {
        self.unended_connection(pending, now)
    }

    /// The data connection of a transfer that has begun, if the sender of the file has not ended it as far as was seen: its
    /// initiator, and what this dialled.
    fn unended_connection(
        &self,
        transfer: &Transfer,
        ended: Instant,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let has_begun = transfer.has_started || is_success(transfer.end);
        let (_, pinhole) = transfer.announcement.filter(|_| has_begun && self.sees_packets)?;
        let may_be = |one: &DataConnection| may_be(one, transfer);
        let newest = self.connections.candidates(ends_of(&pinhole), ended, may_be).next()?;
        let may_go_on = newest.may_go_on_from(sender_of(transfer), server_of(transfer));
        may_go_on
            .then(|| (SocketAddr::new(pinhole.initiator, newest.initiator_port), pinhole.arrival))
    }

    /// All transfers, at the end.
    pub fn take_all(&mut self) -> VecDeque<(Tag, Event)> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().map(|waiting| self.completed(waiting)).collect()
    }

    /// Whether nothing more is to be known of the data connection.
    fn is_decided(&self, transfer: &Transfer, ended: Instant) -> bool {
        let Some((_, pinhole)) = transfer.announcement.filter(|_| self.sees_packets) else {
            return true;
        };
        let refused = matches!(transfer.end, TransferEnd::Replied(reply) if reply.code >= REFUSED);
        let (ends, server) = (ends_of(&pinhole), server_of(transfer));
        let newest = self.connections.candidates(ends, ended, |one| may_be(one, transfer)).next();
        let is_over =
            newest.map(|one| one.is_over() && !(is_success(transfer.end) && one.may_go_on(server)));
        is_over.unwrap_or(refused && !transfer.has_started)
    }

    fn completed(&mut self, Waiting { ended, tag, mut event, .. }: Waiting<Tag>) -> (Tag, Event) {
        self.complete(&mut event.kind, ended);
        (tag, event.map(EventKind::of_transfer))
    }

    fn complete(&mut self, transfer: &mut Transfer, ended: Instant) {
        let ends = transfer.announcement.map(|(_, pinhole)| ends_of(&pinhole));
        let found =
            ends.and_then(|ends| self.connections.find(ends, ended, |one| may_be(one, transfer)));
        let connection = found.map(|found| found.connection);
        let certain = found.filter(|found| found.is_certain).map(|found| found.connection);
        let (sender, server) = (sender_of(transfer), server_of(transfer));
        let is_complete = is_success(transfer.end);
        let bytes = certain.and_then(|one| one.bytes_of(sender, server, is_complete));
        let (sees_packets, has_bytes) = (self.sees_packets, bytes.is_some_and(|bytes| bytes > 0));
        (transfer.result, transfer.reason) =
            classify(transfer, ends, found, sees_packets, has_bytes);
        transfer.bytes = bytes;
        transfer.initiator_port = certain.map(|one| one.initiator_port);
        if let Some(one) = connection.filter(|one| one.is_answered() && one.ended > one.began) {
            transfer.duration = one.ended - one.began;
        }
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
fn missing_reason((initiator, target): DataEnds, connection: Option<&DataConnection>) -> String {
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
    ends: Option<DataEnds>,
    found: Option<Found<'_>>,
    sees_packets: bool,
    has_bytes: bool,
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
        () if code == 425 && !has_bytes => TransferResult::NoDataConnection,
        () if code >= REFUSED && !transfer.has_started && !has_bytes => TransferResult::Refused,
        () if was_reset => TransferResult::Reset,
        () if transfer.has_started || has_bytes || code == 0 => TransferResult::Aborted,
        () => TransferResult::Refused,
    };
    (result, None)
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "patience_tests.rs"]
mod patience_tests;
