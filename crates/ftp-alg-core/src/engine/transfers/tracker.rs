//! Joins a transfer, as the control connection tells it, with the first and the last packets of its data connection.
//!
//! The packets are copies that the kernel collects for a moment, so a transfer waits for them for a moment, too. Servers
//! report success when they have handed a file to their kernel, while a slow client still reads it: while its data
//! connection goes on, a transfer waits longer. What is never seen leaves its fields empty.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ahash::AHashMap;

use super::{
    data_connections::{
        DataConnection, DataConnections, DataEnds, DataPacket, End, Found, ends_of,
    },
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
/// Replies from this one on refuse a command, if no preliminary reply came before (RFC 959, section 4.2.2).
const REFUSED: u16 = 450;
/// Limit of transfers that wait.
const MAX_WAITING: usize = 16384;
/// Of those, of one client (a /64).
const SHARE: usize = MAX_WAITING / 4;
/// Of those, of one session.
const MAX_OF_SESSION: usize = 256;

/// The most bytes of a TLS handshake that are taken for no file.
const MOST_HANDSHAKE: u32 = 16 << 10;

/// Why the session of an encrypted transfer is not certain.
const OTHER_SESSION: &str = "its client has several encrypted sessions with the server";
/// Why the bytes of a transfer are not certain.
const OTHER_CONNECTION: &str = "its data connection may be another one's";
/// The same, if its ends do not agree.
const UNCONFIRMED: &str = "its server does not confirm how much there was";
/// The same, if nothing was seen of its data connection.
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

/// The data connections that were seen, and the transfers that wait for the end of theirs. Each comes back with its tag, by
/// which the host knows more of it.
pub struct TransferTracker<Tag> {
    connections: DataConnections,
    /// By session, and by a serial number, which counts all that have waited.
    waiting: BTreeMap<(u64, u64), Waiting<Tag>>,
    /// Their sessions.
    shares: Shares<ClientKey, u64>,
    /// The last session with one that waits for a data connection with these ends.
    on_ends: AHashMap<DataEnds, u64>,
    /// Those of these sessions for which packets have come.
    touched: BTreeSet<u64>,
    /// When to look at a session, at the latest.
    due: BTreeSet<(Instant, u64)>,
    last_serial: u64,
    /// Whether the packets of data connections are seen at all.
    pub sees_packets: bool,
    /// Since when they are seen, if transfers may have begun before, as before a restart.
    pub since: Option<Instant>,
}

impl<Tag> Default for TransferTracker<Tag> {
    fn default() -> Self {
        Self {
            connections: DataConnections::default(),
            waiting: BTreeMap::new(),
            shares: Shares::default(),
            on_ends: AHashMap::new(),
            touched: BTreeSet::new(),
            due: BTreeSet::new(),
            last_serial: 0,
            sees_packets: false,
            since: None,
        }
    }
}

impl<Tag> TransferTracker<Tag> {
    /// Records a packet of a data connection.
    pub fn observe(&mut self, packet: &DataPacket) {
        let Self { connections, on_ends, touched, .. } = self;
        connections.observe(packet, |ends| touched.extend(on_ends.get(&ends)));
    }

    /// Records that a packet of a data connection between these addresses, which cannot be read, passed at the time `at`.
    pub fn record_unreadable(&mut self, at: Instant, addresses: [IpAddr; 2]) {
        self.connections.record_unreadable(at, addresses);
    }

    /// Records that packets of data connections were lost until `now`.
    pub fn record_loss(&mut self, now: Instant) {
        self.connections.record_loss(now);
    }

    /// A transfer has ended on the control connection. Returns it if nothing more is to be known of it and none of its
    /// session waits; or the one that has waited longest, if too many wait.
    pub fn end(
        &mut self,
        now: Instant,
        tag: Tag,
        event: Event<Box<Transfer>>,
    ) -> Option<(Tag, Event)> {
        let (session, ended) = (event.session, event.kind.ended.unwrap_or(now));
        let of_session = self.of_session(session).count();
        if of_session == 0 && self.is_decided(&event.kind, ended) {
            return self.finish(tag, event, ended, false);
        }
        let client = ClientKey::from(event.client.ip());
        let oldest = if of_session >= MAX_OF_SESSION {
            self.of_session(session).next().map(|(serial, _)| (session, serial))
        } else if self.shares.count_of(client) >= SHARE {
            self.oldest_of(client)
        } else if self.shares.len() >= MAX_WAITING {
            let most = self.shares.counts().max_by_key(|(_, count)| *count);
            most.and_then(|(client, _)| self.oldest_of(client))
        } else {
            None
        };
        let displaced = oldest.and_then(|(session, serial)| self.take(session, serial));
        self.last_serial += 1;
        let (serial, waits_for, until) = (self.last_serial, WaitsFor::Packets, now + PACKETS_WAIT);
        if let Some(ends) = ends_for(&event.kind) {
            self.on_ends.insert(ends, session);
        }
        self.shares.insert(client, serial, session);
        // Its packets may have come before.
        self.due.extend([(now, session), (until, session)]);
        let waiting = Waiting { ended, waits_for, until, tag, event };
        self.waiting.insert((session, serial), waiting);
        displaced
    }

    /// Those of a session, in their order, by serial number.
    fn of_session(&self, session: u64) -> impl Iterator<Item = (u64, &Waiting<Tag>)> {
        let all = self.waiting.range((session, 0)..=(session, u64::MAX));
        all.map(|((_, serial), waiting)| (*serial, waiting))
    }

    /// The session and the serial number of the one of `client` that has waited longest.
    fn oldest_of(&self, client: ClientKey) -> Option<(u64, u64)> {
        self.shares.of(client).next().map(|(serial, session)| (*session, serial))
    }

    /// Takes a transfer of a session, with what is known of it.
    fn take(&mut self, session: u64, serial: u64) -> Option<(Tag, Event)> {
        let Waiting { ended, tag, event, .. } = self.waiting.remove(&(session, serial))?;
        self.shares.remove(event.client.ip().into(), serial);
        if let Some(ends) = ends_for(&event.kind)
            && self.on_ends.get(&ends) == Some(&session)
            && !self.of_session(session).any(|(_, other)| ends_for(&other.event.kind) == Some(ends))
        {
            self.on_ends.remove(&ends);
        }
        let is_shared = self.shares_connection(session, serial, &event.kind, ended);
        self.finish(tag, event, ended, is_shared)
    }

    /// The event of a transfer that need not wait any more. There is none of one without a command if its pinhole had no data
    /// connection, if that moved nothing, or if another one may have used it.
    fn finish(
        &mut self,
        tag: Tag,
        mut event: Event<Box<Transfer>>,
        ended: Instant,
        is_shared: bool,
    ) -> Option<(Tag, Event)> {
        let transfer = &mut event.kind;
        if let (TransferVerb::Unread(_), Some((_, pinhole))) =
            (transfer.verb, transfer.announcement)
        {
            let found = self.find_for(transfer, ended).map(|found| found.connection);
            let Some(connection) = found.filter(|one| one.is_answered()) else {
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
        self.complete(transfer, ended, is_shared);
        Some((tag, event.map(EventKind::of_transfer)))
    }

    /// The data connection of a transfer that had its end at `ended`.
    fn find_for(&self, transfer: &Transfer, ended: Instant) -> Option<Found<'_>> {
        let requested = ended.checked_sub(transfer.duration);
        let may_be = |one: &DataConnection| may_be(one, transfer, ended);
        self.connections.find_for(ends_for(transfer)?, requested, ended, may_be)
    }

    /// Whether another transfer of the session, which waits as well, can only have used the data connection of this one.
    fn shares_connection(
        &mut self,
        session: u64,
        serial: u64,
        transfer: &Transfer,
        ended: Instant,
    ) -> bool {
        let Some(ends) = ends_for(transfer).filter(|_| transfer.end.is_success()) else {
            return false;
        };
        let Some(connection) = self.newest_for(transfer, ends, ended).map(|one| one.serial) else {
            return false;
        };
        let uses_it = |(nth, other): (u64, &Waiting<Tag>)| {
            let kind = &other.event.kind;
            // Before it, the other one still waits for this connection; behind it, it has no own one.
            let waits = nth > serial || other.waits_for == WaitsFor::ConnectionEnd;
            // One without an announcement may have used that of this one.
            let has_ends = ends_for(kind).is_none_or(|own| own == ends);
            let own = || self.newest_for(kind, ends, other.ended).map(|one| one.serial);
            has_ends && waits && kind.end.is_success() && own() == Some(connection)
        };
        let is_shared = self.of_session(session).any(uses_it);
        if is_shared {
            self.connections.doubt(ends, ended, connection);
        }
        is_shared
    }

    /// The newest data connection with these ends that may be that of a transfer which ended then.
    fn newest_for(
        &self,
        transfer: &Transfer,
        ends: DataEnds,
        ended: Instant,
    ) -> Option<&DataConnection> {
        self.connections.candidates(ends, ended, |one| may_be(one, transfer, ended)).next()
    }

    /// A transfer has been pending for a while. Returns it if its data connection did not come about, as far as is known.
    pub fn examine(&self, now: Instant, mut event: Event<Box<Transfer>>) -> Option<Event> {
        let transfer = &mut event.kind;
        let reason = match ends_for(transfer).filter(|_| self.sees_packets) {
            // Only the server's silence says something about its data connection.
            None if transfer.has_started => return None,
            None => None,
            Some(ends) => {
                let requested = now.checked_sub(transfer.duration);
                let is_earlier = |one: &DataConnection| is_earlier(one, transfer, now);
                let known = self.connections.newest(ends).filter(|one| !is_earlier(one));
                let is_lost = known.is_none() && self.may_lack(ends, requested);
                if is_lost || known.is_some_and(DataConnection::is_answered) {
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
        self.of_session(session).next().is_some()
    }

    /// The transfers that need not wait any more, those of a session in their order. `is_running` says whether the kernel
    /// still has the data connection between an initiator and what this dialled.
    pub fn take_finished(
        &mut self,
        now: Instant,
        mut is_running: impl FnMut(SocketAddr, SocketAddr) -> bool,
    ) -> VecDeque<(Tag, Event)> {
        let later = self.due.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut self.due, later);
        let mut sessions = std::mem::take(&mut self.touched);
        sessions.extend(due.into_iter().map(|(_, session)| session));
        let mut taken = VecDeque::new();
        for session in sessions {
            self.take_finished_of(session, now, &mut is_running, &mut taken);
        }
        taken
    }

    fn take_finished_of(
        &mut self,
        session: u64,
        now: Instant,
        is_running: &mut impl FnMut(SocketAddr, SocketAddr) -> bool,
        taken: &mut VecDeque<(Tag, Event)>,
    ) {
        // One after the other, because the connection of one is no candidate for the next.
        let mut from = 0;
        while let Some((&(_, serial), waiting)) =
            self.waiting.range((session, from)..=(session, u64::MAX)).next()
        {
            from = serial + 1;
            let Waiting { ended, waits_for, until, event, .. } = waiting;
            let wait = match (self.is_decided(&event.kind, *ended), *until <= now) {
                (true, _) => None,
                (false, true) => self.waits_on(waiting, now, &mut *is_running),
                (false, false) => Some((*waits_for, *until)),
            };
            let Some((waits_for, until)) = wait else {
                taken.extend(self.take(session, serial));
                continue;
            };
            if let Some(waiting) = self.waiting.get_mut(&(session, serial)) {
                (waiting.waits_for, waiting.until) = (waits_for, until);
            }
            self.due.insert((until, session));
            if waits_for == WaitsFor::Packets {
                break;
            }
        }
    }

    /// For what a transfer that has waited long enough waits on, and until when, because its data connection goes on or has
    /// just ended.
    fn waits_on(
        &self,
        waiting: &Waiting<Tag>,
        now: Instant,
        is_running: impl FnOnce(SocketAddr, SocketAddr) -> bool,
    ) -> Option<(WaitsFor, Instant)> {
        let Waiting { ended, waits_for, event, .. } = waiting;
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

    /// The data connection of a transfer that has begun and had its end at `ended`, or is pending then, if the sender of the
    /// file has not ended it as far as was seen: its initiator, and what this dialled.
    pub fn running_connection(
        &self,
        ended: Instant,
        transfer: &Transfer,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let is_seen = transfer.has_begun() && self.sees_packets;
        let (_, pinhole) = transfer.announcement.filter(|_| is_seen)?;
        let newest = self.newest_for(transfer, ends_of(&pinhole), ended)?;
        let may_go_on = newest.may_go_on_from(sender_of(transfer), server_of(transfer));
        may_go_on
            .then(|| (SocketAddr::new(pinhole.initiator, newest.initiator_port), pinhole.arrival))
    }

    /// Has the data connections of encrypted sessions found.
    pub fn set_finder(&mut self, finder: RangeFinder) {
        self.connections.finder = finder;
    }

    /// Has the encrypted connections reported that the kernel has forgotten, by whether it `knows` one between an initiator
    /// and what this dialled.
    pub fn drop_forgotten(&mut self, now: Instant, knows: impl Fn(SocketAddr, SocketAddr) -> bool) {
        self.connections.drop_forgotten(now, knows);
    }

    /// The transfers of encrypted sessions that were over a while before `now`, or all, and those that there was no room for.
    pub fn take_encrypted(&mut self, now: Option<Instant>) -> Vec<Event> {
        now.into_iter().for_each(|now| self.connections.finder.forget(now));
        let taken = self.connections.take_encrypted(now);
        taken.into_iter().filter_map(encrypted_transfer).collect()
    }

    /// All transfers, at the end.
    pub fn take_all(&mut self) -> VecDeque<(Tag, Event)> {
        let all: Vec<_> = self.waiting.keys().copied().collect();
        all.into_iter().filter_map(|(session, serial)| self.take(session, serial)).collect()
    }

    /// Whether nothing more is to be known of the data connection.
    fn is_decided(&self, transfer: &Transfer, ended: Instant) -> bool {
        let Some(ends) = ends_for(transfer).filter(|_| self.sees_packets) else {
            return true;
        };
        let refused = matches!(transfer.end, TransferEnd::Replied(reply) if reply.code >= REFUSED);
        let server = server_of(transfer);
        let is_over = self
            .newest_for(transfer, ends, ended)
            .map(|one| one.is_over() && !(transfer.end.is_success() && one.may_go_on(server)));
        is_over.unwrap_or(refused && !transfer.has_started)
    }

    /// Whether a data connection between these ends may have passed unseen, or was lost, since the time `requested`.
    fn may_lack(&self, ends: DataEnds, requested: Option<Instant>) -> bool {
        self.since.is_some_and(|since| requested.is_none_or(|requested| requested < since))
            || self.connections.may_lack(ends, requested)
    }

    /// Completes a transfer with what is known of its data connection, which another one may have used, too.
    fn complete(&mut self, transfer: &mut Transfer, ended: Instant, is_shared: bool) {
        let ends = ends_for(transfer);
        let requested = ended.checked_sub(transfer.duration);
        let found = self.find_for(transfer, ended);
        let goes_on = |one: &DataConnection| one.is_answered() && !one.was_over_at(ended);
        let goes_on = found.is_some_and(|found| goes_on(found.connection));
        let is_success = transfer.end.is_success();
        // Without a preliminary reply, what goes on after the last one is the next command's.
        let is_its = transfer.has_begun() || !goes_on;
        // Otherwise a command that was pending then may use it as well.
        let is_doubtful = transfer.uncertain.is_some();
        let may_share = transfer.is_followed && is_success && (goes_on || is_doubtful);
        // Another announcement may have been its.
        let lacks_end = is_doubtful && transfer.end == TransferEnd::Unseen;
        let is_shared = is_shared || may_share || lacks_end;
        let certain = found.filter(|found| found.is_certain && !is_shared && is_its);
        let connection = certain.map(|found| found.connection);
        let (sender, server) = (sender_of(transfer), server_of(transfer));
        // Nobody says of one without a command that it failed.
        let is_stored = is_success || matches!(transfer.verb, TransferVerb::Unread(_));
        let bytes = connection.and_then(|one| one.bytes_of(sender, server, is_stored));
        let may_lack = |ends| self.may_lack(ends, requested);
        let is_lost = self.sees_packets && found.is_none() && ends.is_some_and(may_lack);
        let sees_packets = self.sees_packets && !is_lost;
        let has_bytes = connection.is_some_and(|one| one.has_moved(sender));
        (transfer.result, transfer.reason) =
            classify(transfer, ends, found, certain.is_some(), sees_packets, has_bytes);
        transfer.bytes = bytes;
        if is_lost {
            transfer.uncertain.get_or_insert(LOST);
        }
        if bytes.is_none() && connection.is_some_and(|one| one.is_answered() && one.is_over()) {
            transfer.uncertain.get_or_insert(UNCONFIRMED);
        }
        if !is_its {
            return;
        }
        if let (Some(ends), Some(Found { connection, is_distinct, .. }), None) =
            (ends, found, certain)
        {
            transfer.uncertain.get_or_insert(OTHER_CONNECTION);
            let (serial, may_be_anothers) =
                (connection.serial, is_shared || !is_distinct || !connection.is_over());
            return match may_be_anothers {
                true => self.connections.doubt(ends, ended, serial),
                // It would stay, and displace those of the next transfers.
                false => self.connections.remove(ends, serial),
            };
        }
        // The next command may use the connection of one that was refused.
        if transfer.result == TransferResult::Refused && !has_bytes {
            return;
        }
        transfer.initiator_port = connection.map(|one| one.initiator_port);
        if let Some(one) = connection.filter(|one| one.is_answered() && one.ended > one.began) {
            (transfer.duration, transfer.ended) = (one.ended - one.began, Some(one.ended));
        }
        if let Some((ends, serial)) = ends.zip(connection.map(|one| one.serial)) {
            self.connections.remove(ends, serial);
        }
    }
}

/// The transfer of which nothing is known but its data connection. More bytes than in the other direction, with the handshake
/// of TLS, are those of a file.
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
        // Otherwise its end may have been lost.
        () if connection.is_forgotten && !connection.is_doubtful => {
            TransferResult::NoDataConnection
        }
        () => TransferResult::Unseen,
    };
    let forgotten = (result == TransferResult::NoDataConnection)
        .then(|| forgotten_reason(&of.kind, connection.initiator_port));
    let verb = TransferVerb::Unread(is_upload.filter(|_| is_over));
    let transfer = Transfer {
        duration: connection.ended - connection.began,
        end: TransferEnd::Encrypted,
        ended: is_over.then_some(connection.ended),
        result,
        bytes: bytes.filter(|_| is_over && !connection.is_doubtful).map(u64::from),
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

/// Whether the data connection may be that of a transfer that `ended` then. One without an answer may be that of the next
/// transfer.
fn may_be(connection: &DataConnection, transfer: &Transfer, ended: Instant) -> bool {
    !is_earlier(connection, transfer, ended)
        && (connection.is_answered() || !transfer.end.is_success())
}

/// Whether the data connection is an earlier one's than a transfer that `ended` then: it began before the announcement,
/// or was over before the command.
fn is_earlier(connection: &DataConnection, transfer: &Transfer, ended: Instant) -> bool {
    let requested = ended.checked_sub(transfer.duration);
    transfer.announced.is_some_and(|at| connection.began_before(at))
        || requested.is_some_and(|at| connection.was_over_at(at))
}

/// Whether a reset came before all of the file was there. A server that resets, and reports success, knows better.
fn is_cut(connection: &DataConnection, transfer: &Transfer) -> bool {
    let (sender, server) = (sender_of(transfer), server_of(transfer));
    let bytes = connection.bytes_of(sender, server, transfer.end.is_success());
    connection.was_reset(server) && !connection.is_reset_by(server) && bytes.is_none()
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

/// How the transfer ended, and why there was no data connection.
fn classify(
    transfer: &Transfer,
    ends: Option<DataEnds>,
    found: Option<Found<'_>>,
    is_certain: bool,
    sees_packets: bool,
    has_bytes: bool,
) -> (TransferResult, Option<String>) {
    let connection = found.map(|found| found.connection);
    let certain = connection.filter(|_| is_certain);
    let was_reset = certain.is_some_and(|one| one.was_reset(server_of(transfer)));
    let was_cut = certain.is_some_and(|one| is_cut(one, transfer));
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
            if transfer.uncertain.is_some()
                || connection.is_none_or(DataConnection::is_answered) =>
        {
            return (TransferResult::Unseen, None);
        }
        TransferEnd::Unseen | TransferEnd::Pending | TransferEnd::Encrypted => 0,
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

#[cfg(test)]
#[path = "encrypted_tests.rs"]
mod encrypted_tests;
