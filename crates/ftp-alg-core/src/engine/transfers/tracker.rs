//! Joins a transfer, as the control connection tells it, with the first and the last packets of its data connection.
//!
//! The packets are copies that the kernel collects for a moment, so a transfer waits for them for a moment, too. Servers
//! report success when they have handed a file to their kernel, while a slow client still reads it: while its data
//! connection goes on, a transfer waits longer. What is never seen leaves its fields empty.

use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    data_connections::{DataConnection, DataConnections, DataEnds, DataPacket, End, ends_of},
    transfer::{Transfer, TransferEnd, TransferResult},
};
use crate::{
    engine::{
        ClientKey, EncryptedConnection, Event, EventKind, MissingConnection, PinholeEnds,
        RangeFinder, Shares,
    },
    ftp::AnnouncementKind,
    session::TransferVerb,
};

/// How long a transfer waits for the packets of its data connection.
pub const PACKETS_WAIT: Duration = Duration::from_millis(500);
/// How long it waits at most for the end of a data connection that goes on.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Longest time between two questions whether a data connection goes on. The first ones come sooner.
const LONGEST_INTERVAL: Duration = Duration::from_secs(8);
/// The reply of a server that has no data connection (RFC 959, section 4.2.2).
const NOT_CONNECTED: u16 = 425;
/// Limit of transfers that wait.
const MAX_WAITING: usize = 16384;
/// Limit of waiting transfers of one client (a /64).
const SHARE: usize = MAX_WAITING / 4;
/// The most bytes of a TLS handshake that are taken for no file.
const MOST_HANDSHAKE: u32 = 16 << 10;

/// Why the session of an encrypted transfer is not certain.
const OTHER_SESSION: &str = "its client has several encrypted sessions with the server";
/// Why the bytes of a transfer are not certain.
const OTHER_CONNECTION: &str = "its data connection may be another one's";
/// Why the bytes of a transfer are not certain if the server does not confirm them.
const UNCONFIRMED: &str = "its server does not confirm how much there was";
/// Why the bytes of a transfer are not certain if nothing was seen of its data connection.
const LOST: &str = "what was seen of its data connection was lost";

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

/// The data connections that were seen, and the transfers that wait for the end of theirs. A transfer comes back with
/// the tag that its host gave it.
pub struct TransferTracker<Tag> {
    connections: DataConnections,
    /// The waiting transfers, by client and serial number.
    waiting: Shares<ClientKey, Waiting<Tag>>,
    last_serial: u64,
    /// Whether the packets of data connections are seen at all.
    pub sees_packets: bool,
    /// Since when they are seen. `None` if no transfer can have begun before.
    pub since: Option<Instant>,
}

impl<Tag> Default for TransferTracker<Tag> {
    fn default() -> Self {
        Self {
            connections: DataConnections::default(),
            waiting: Shares::default(),
            last_serial: 0,
            sees_packets: false,
            since: None,
        }
    }
}

impl<Tag> TransferTracker<Tag> {
    /// Notes a packet of a data connection.
    pub fn observe(&mut self, packet: &DataPacket) {
        self.connections.observe(packet);
    }

    /// Notes that a packet of a data connection between these addresses, which cannot be read, passed at the time `at`.
    pub fn note_unreadable(&mut self, at: Instant, addresses: [IpAddr; 2]) {
        self.connections.note_unreadable(at, addresses);
    }

    /// Notes that packets of data connections were lost until `now`.
    pub fn note_loss(&mut self, now: Instant) {
        self.connections.note_loss(now);
    }

    /// Notes that a transfer has ended on the control connection. Returns the transfer if nothing more can be learnt
    /// of it and no other transfer of its session waits. If too many wait, returns the one that has waited longest.
    pub fn end(
        &mut self,
        now: Instant,
        tag: Tag,
        event: Event<Box<Transfer>>,
    ) -> Option<(Tag, Event)> {
        let client = ClientKey::from(event.client.ip());
        let ended = event.kind.ended.unwrap_or(now);
        if !self.waits_in(&event) && self.is_decided(&event.kind, ended) {
            return self.finish(tag, event, ended);
        }
        let displaced = if self.waiting.count_of(client) >= SHARE {
            Some(client)
        } else if self.waiting.len() >= MAX_WAITING {
            self.waiting.counts().max_by_key(|(_, count)| *count).map(|(client, _)| client)
        } else {
            None
        };
        let oldest = displaced.and_then(|of| Some((of, self.waiting.of(of).next()?.0)));
        let displaced = oldest.and_then(|(client, serial)| self.take(client, serial));
        self.last_serial += 1;
        let (waits_for, until) = (WaitsFor::Packets, now + PACKETS_WAIT);
        let waiting = Waiting { ended, waits_for, until, tag, event };
        self.waiting.insert(client, self.last_serial, waiting);
        displaced
    }

    /// Whether a transfer of the session of this event waits.
    pub fn waits_in<Kind>(&self, event: &Event<Kind>) -> bool {
        let mut of_client = self.waiting.of(event.client.ip().into());
        of_client.any(|(_, waiting)| waiting.event.session == event.session)
    }

    /// Takes a transfer, with what is known of it.
    fn take(&mut self, client: ClientKey, serial: u64) -> Option<(Tag, Event)> {
        let Waiting { ended, tag, event, .. } = self.waiting.remove(client, serial)?;
        self.finish(tag, event, ended)
    }

    /// The event of a transfer that need not wait any more. A transfer without a command has no event if nobody tried
    /// to connect through its pinhole, if its data connection moved nothing, or if another transfer may have used
    /// that connection.
    fn finish(
        &mut self,
        tag: Tag,
        mut event: Event<Box<Transfer>>,
        ended: Instant,
    ) -> Option<(Tag, Event)> {
        let transfer = &mut event.kind;
        if let (TransferVerb::Unread(_), Some((_, pinhole))) =
            (transfer.verb, transfer.announcement)
        {
            let (newest, _) = self.find(transfer, ended);
            let Some(connection) = newest.filter(|one| one.is_answered()) else {
                let reason = self.missing_connection(&pinhole)?;
                let missing = MissingConnection::new(pinhole, reason);
                return Some((tag, event.map(|_| EventKind::NoDataConnection(missing))));
            };
            let is_upload = connection.is_upload(server_of(transfer));
            if connection.is_reported || connection.is_over() && is_upload.is_none() {
                return None;
            }
            transfer.verb = TransferVerb::Unread(is_upload);
        }
        self.complete(transfer, ended);
        Some((tag, event.map(EventKind::of_transfer)))
    }

    /// The newest data connection that may be that of a transfer with its end at `ended`, and whether there is no other one.
    fn find(&self, transfer: &Transfer, ended: Instant) -> (Option<&DataConnection>, bool) {
        let ends = ends_for(transfer).filter(|_| self.sees_packets);
        ends.map_or((None, true), |ends| self.connections.find(ends, transfer, ended))
    }

    /// Returns a transfer that has been pending for a while if its data connection did not come about, as far as is
    /// known.
    pub fn examine(&self, now: Instant, mut event: Event<Box<Transfer>>) -> Option<Event> {
        let transfer = &mut event.kind;
        let reason = match ends_for(transfer).filter(|_| self.sees_packets) {
            // Only the server's silence says something about its data connection.
            None if transfer.has_started => return None,
            None => None,
            Some(ends) => {
                let (newest, _) = self.find(transfer, now);
                let is_lost = newest.is_none() && self.may_lack(ends, transfer);
                if is_lost || newest.is_some_and(DataConnection::is_answered) {
                    return None;
                }
                Some(missing_reason(ends, newest))
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

    /// Takes the transfers that need not wait any more, those of a session in their order. `is_running` says whether
    /// the kernel still has the data connection between an initiator and the endpoint that the initiator dialled.
    pub fn take_finished(
        &mut self,
        now: Instant,
        mut is_running: impl FnMut(SocketAddr, SocketAddr) -> bool,
    ) -> VecDeque<(Tag, Event)> {
        let all: Vec<_> = self.waiting.keys().collect();
        let (mut taken, mut blocked) = (VecDeque::new(), BTreeSet::new());
        for (client, serial) in all {
            let Some(waiting) = self.waiting.get(client, serial) else { continue };
            let session = waiting.event.session;
            if blocked.contains(&session) {
                continue;
            }
            let Some((waits_for, until)) = self.next_wait(waiting, now, &mut is_running) else {
                taken.extend(self.take(client, serial));
                continue;
            };
            if waits_for == WaitsFor::Packets {
                blocked.insert(session);
            }
            if let Some(waiting) = self.waiting.get_mut(client, serial) {
                (waiting.waits_for, waiting.until) = (waits_for, until);
            }
        }
        taken
    }

    /// What a transfer waits for, and until when. `None` if all is known, or if the transfer has waited long enough
    /// and its data connection neither goes on nor has just ended.
    fn next_wait(
        &self,
        waiting: &Waiting<Tag>,
        now: Instant,
        is_running: impl FnOnce(SocketAddr, SocketAddr) -> bool,
    ) -> Option<(WaitsFor, Instant)> {
        let Waiting { ended, waits_for, until, event, .. } = waiting;
        if self.is_decided(&event.kind, *ended) {
            return None;
        }
        if now < *until {
            return Some((*waits_for, *until));
        }
        let waited = now - *ended;
        let (initiator, dialled) = self.running_connection(*ended, &event.kind)?;
        if *waits_for == WaitsFor::LastPackets || waited >= LONGEST_WAIT {
            return None;
        }
        Some(match is_running(initiator, dialled) {
            true => (WaitsFor::ConnectionEnd, now + waited.clamp(PACKETS_WAIT, LONGEST_INTERVAL)),
            false => (WaitsFor::LastPackets, now + PACKETS_WAIT),
        })
    }

    /// The data connection of a transfer that has begun, if the sender of the file has not ended the connection as
    /// far as was seen: its initiator, and the endpoint that the initiator dialled. The transfer ended at `ended`, or
    /// was pending then.
    pub fn running_connection(
        &self,
        ended: Instant,
        transfer: &Transfer,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let (_, pinhole) = transfer.announcement.filter(|_| transfer.has_begun())?;
        let (Some(only), true) = self.find(transfer, ended) else { return None };
        let may_go_on = only.may_go_on_from(sender_of(transfer), server_of(transfer));
        may_go_on
            .then(|| (SocketAddr::new(pinhole.initiator, only.initiator_port), pinhole.arrival))
    }

    /// Sets what finds the data connections of encrypted sessions.
    pub fn set_finder(&mut self, finder: RangeFinder) {
        self.connections.finder = finder;
    }

    /// Ends the encrypted connections that the kernel has forgotten. `knows` says whether the kernel has the
    /// connection between an initiator and the endpoint that the initiator dialled.
    pub fn drop_forgotten(&mut self, now: Instant, knows: impl Fn(SocketAddr, SocketAddr) -> bool) {
        self.connections.drop_forgotten(now, knows);
    }

    /// Takes the transfers of encrypted sessions that were over a while before `now`, or all, and those that there
    /// was no room for.
    pub fn take_encrypted(&mut self, now: Option<Instant>) -> Vec<Event> {
        now.into_iter().for_each(|now| self.connections.finder.forget(now));
        let taken = self.connections.take_encrypted(now);
        taken.into_iter().filter_map(encrypted_transfer).collect()
    }

    /// All transfers, at the end.
    pub fn take_all(&mut self) -> VecDeque<(Tag, Event)> {
        let all: Vec<_> = self.waiting.keys().collect();
        all.into_iter().filter_map(|(client, serial)| self.take(client, serial)).collect()
    }

    /// Whether nothing more can be learnt of the transfer's data connection.
    fn is_decided(&self, transfer: &Transfer, ended: Instant) -> bool {
        if !self.sees_packets || transfer.announcement.is_none() || transfer.is_refused() {
            return true;
        }
        match self.find(transfer, ended) {
            (Some(only), true) => only.is_closed(),
            (Some(_), false) => true,
            (None, _) => false,
        }
    }

    /// Whether a data connection of a transfer may have passed unseen, or was lost.
    fn may_lack(&self, ends: DataEnds, transfer: &Transfer) -> bool {
        let announced = transfer.announced;
        self.since.is_some_and(|since| announced.is_none_or(|announced| announced < since))
            || self.connections.may_lack(ends, announced)
    }

    /// Completes a transfer with its data connection: the only one on its ends between announcement and reply, if no
    /// packet contradicts that.
    fn complete(&mut self, transfer: &mut Transfer, ended: Instant) {
        transfer.bytes = None;
        let Some(ends) = ends_for(transfer).filter(|_| self.sees_packets) else {
            (transfer.result, transfer.reason) = classify(transfer, None, [None; 2]);
            return;
        };
        let (newest, is_only) = self.find(transfer, ended);
        let may_lack = self.may_lack(ends, transfer);
        // Without a preliminary reply, the connection is that of the next command.
        let may_be_its = newest.is_some_and(|one| transfer.has_begun() || !one.is_answered());
        let is_certain = is_only && may_be_its && !may_lack && !transfer.may_share();
        let own = newest.filter(|one| is_certain && !one.is_contradicted && !one.is_reported);
        let seen = (newest.is_some() || !may_lack).then_some(ends);
        (transfer.result, transfer.reason) = classify(transfer, seen, [newest, own]);
        transfer.bytes = own.and_then(|one| transfer_bytes(one, transfer));
        let unknown = match (newest, own) {
            (None, _) if may_lack => Some(LOST),
            (Some(newest), None) if may_be_its && newest.is_answered() => Some(OTHER_CONNECTION),
            (_, Some(own)) if own.is_answered() && own.is_over() => Some(UNCONFIRMED),
            _ => None,
        };
        if transfer.bytes.is_none() {
            transfer.uncertain = transfer.uncertain.or(unknown);
        }
        if !may_be_its || transfer.result == TransferResult::Refused {
            return;
        }
        transfer.initiator_port = own.map(|one| one.initiator_port);
        let is_its = own.is_some();
        let times = own.filter(|one| one.is_answered()).map(|one| [one.began[0], one.ended[0]]);
        self.connections.claim(ends, transfer, ended, is_its);
        if let Some([began, end]) = times.filter(|[began, end]| began < end) {
            (transfer.duration, transfer.ended) = (end - began, Some(end));
        }
    }
}

/// The transfer of an encrypted session, of which only the data connection is known. The direction that has more
/// bytes than the other, by more than a TLS handshake, is that of the file.
fn encrypted_transfer(mut connection: DataConnection) -> Option<Event> {
    let EncryptedConnection { of, may_be_anothers } = *connection.encrypted.take()?;
    let moved @ [up, down] = connection.bytes_by_target();
    let [got, sent] = moved.map(Option::unwrap_or_default);
    let is_upload = (got.abs_diff(sent) > MOST_HANDSHAKE).then_some(got > sent);
    let bytes = is_upload.and_then(|is_upload| if is_upload { up } else { down });
    let is_over = connection.is_over();
    // Clients close when they have all of a file, and reset what comes behind it.
    let result = match () {
        () if is_over && connection.has_fin() => TransferResult::Complete,
        () if is_over => TransferResult::Reset,
        // If it is contradicted, its end may have been lost.
        () if connection.is_forgotten && !connection.is_contradicted => {
            TransferResult::NoDataConnection
        }
        () => TransferResult::Unseen,
    };
    let forgotten = (result == TransferResult::NoDataConnection)
        .then(|| forgotten_reason(&of.kind, connection.initiator_port));
    let verb = TransferVerb::Unread(is_upload.filter(|_| is_over));
    let transfer = Transfer {
        duration: connection.ended[0] - connection.began[0],
        end: TransferEnd::Encrypted,
        ended: is_over.then_some(connection.ended[0]),
        result,
        bytes: bytes.filter(|_| is_over && !connection.is_contradicted).map(u64::from),
        initiator_port: Some(connection.initiator_port),
        reason: forgotten,
        uncertain: may_be_anothers.then_some(OTHER_SESSION),
        ..Transfer::new(verb, Some((AnnouncementKind::Pasv, of.kind)))
    };
    Some(of.map(|_| EventKind::of_transfer(Box::new(transfer))))
}

/// Why the data connection between these ends, from this port, hangs.
pub fn forgotten_reason(ends: &PinholeEnds, port: u16) -> String {
    let (initiator, dialled) = (SocketAddr::new(ends.initiator, port), ends.arrival);
    format!("the kernel has forgotten the connection of {initiator} to {dialled}")
}

/// The ends by which the packets of a transfer's data connection are found.
fn ends_for(transfer: &Transfer) -> Option<DataEnds> {
    transfer.announcement.map(|(_, pinhole)| ends_of(&pinhole))
}

/// The bytes of a transfer by its data connection.
fn transfer_bytes(connection: &DataConnection, transfer: &Transfer) -> Option<u64> {
    // Nobody says of a transfer without a command that it failed.
    let is_stored = transfer.end.is_success() || matches!(transfer.verb, TransferVerb::Unread(_));
    let bytes = connection.bytes_of(sender_of(transfer), server_of(transfer), is_stored);
    // A server that could not connect may mean another connection.
    bytes.filter(|_| transfer.code() != Some(NOT_CONNECTED))
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

/// How a transfer ended, and why there was no data connection, if `seen` has its ends: packets between them were not
/// lost. `newest` is the newest connection that may be the transfer's, `own` the one that certainly is.
fn classify(
    transfer: &Transfer,
    seen: Option<DataEnds>,
    [newest, own]: [Option<&DataConnection>; 2],
) -> (TransferResult, Option<String>) {
    let server = server_of(transfer);
    let was_reset = own.is_some_and(|one| one.was_reset(server));
    let has_bytes = own.is_some_and(|one| one.has_moved(sender_of(transfer)));
    // A server that resets, and reports success, knows better.
    let was_cut = own
        .is_some_and(|one| one.is_cut_by_client(server) && transfer_bytes(one, transfer).is_none());
    let is_answered = newest.is_some_and(DataConnection::is_answered);
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
            if transfer.uncertain.is_some() || newest.is_none_or(DataConnection::is_answered) =>
        {
            return (TransferResult::Unseen, None);
        }
        TransferEnd::Unseen | TransferEnd::Pending | TransferEnd::Encrypted => 0,
    };
    let is_missing = code == NOT_CONNECTED || seen.is_some() && matches!(code, 0 | 421 | 426);
    if is_missing && !is_answered {
        let reason = seen.map(|ends| missing_reason(ends, newest));
        return (TransferResult::NoDataConnection, reason);
    }
    let result = match () {
        () if code == NOT_CONNECTED && !has_bytes => TransferResult::NoDataConnection,
        () if transfer.is_refused() => TransferResult::Refused,
        () if was_reset => TransferResult::Reset,
        () if transfer.has_started || code == 0 => TransferResult::Aborted,
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

#[cfg(test)]
#[path = "random_tests.rs"]
mod random_tests;

#[cfg(test)]
#[path = "encrypted_tests.rs"]
mod encrypted_tests;
