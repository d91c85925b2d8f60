//! What was seen of data connections, and which of them is that of a transfer.
//!
//! A data connection belongs to a transfer if it is the only one between the announced ends from announcement to
//! reply, and no packet contradicts that. Otherwise the transfer is reported without one
//! (docs/decisions.md#right-or-null).
//!
//! A client can forge packets that its server discards. So only the server's packets count: the FIN behind what the
//! server sends, and its acknowledgement of what it receives.
//!
//! Invariants: [`MAX_CONNECTIONS`] bounds the memory, [`SHARE`] the connections of a client with one server, and
//! [`MAX_SAME`] the work for a packet.

use std::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ahash::AHashMap;

use super::transfer::Transfer;
use crate::engine::{
    ClientKey, EncryptedConnection, PinholeEnds, RangeFinder, activity::EXAMINED_AFTER,
};

/// Limit of data connections that are stored.
pub(super) const MAX_CONNECTIONS: usize = 16384;
/// Limit of connections between one initiator's network (a /64) and one target's, so that a client's floods cost others nothing.
pub(super) const SHARE: usize = MAX_CONNECTIONS / 4;
/// Limit of connections with the same ends.
const MAX_SAME: usize = 64;
/// How long after the end of a data connection an encrypted transfer is reported: a transfer of a session that is read may
/// take the connection until then.
const LATEST_REPLY: Duration = Duration::from_secs(2);

/// A packet of a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataPacket {
    /// The earliest and the latest time at which it passed. The two differ only for packets of output hooks, and of
    /// kernels before 5.18.
    pub passed: [Instant; 2],
    /// Its sender, as the filter chains see it.
    pub source: SocketAddr,
    /// Its receiver, as the filter chains see it.
    pub destination: SocketAddr,
    /// Whether SYN, ACK, FIN and RST are set.
    pub flags: DataFlags,
    /// The sequence number behind its data, which is that of its FIN; of a SYN its own.
    pub end: u32,
    /// The acknowledgement number, if ACK is set.
    pub acknowledged: u32,
    /// The index of the interface at which it arrived; 0 if this machine sent it.
    pub interface: u32,
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
pub(super) enum End {
    Initiator,
    Target,
}

impl End {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Target,
            Self::Target => Self::Initiator,
        }
    }
}

/// The initiator and the target of a data connection, as the filter chains see them.
pub(super) type DataEnds = (IpAddr, SocketAddr);

/// The ends by which the packets of the data connection are found.
pub(super) fn ends_of(pinhole: &PinholeEnds) -> DataEnds {
    (pinhole.initiator, pinhole.target)
}

/// The networks of an initiator and a target.
type Networks = (ClientKey, ClientKey);

fn networks_of((initiator, target): DataEnds) -> Networks {
    (initiator.into(), target.ip().into())
}

/// Whether one sequence number is before the other.
fn is_before(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}

/// The FINs of one end.
#[derive(Clone, Copy, Debug)]
struct Fin {
    /// The sequence number of the last FIN.
    seq: u32,
    /// Whether all FINs have the same sequence number.
    is_only: bool,
    /// What the first FIN acknowledged.
    acknowledged: Option<u32>,
}

/// What was seen of one data connection.
#[derive(Clone, Debug)]
pub(super) struct DataConnection {
    pub initiator_port: u16,
    /// The earliest and the latest time of its first packet.
    pub began: [Instant; 2],
    /// The same of the packet that ended it last: the first FIN of an end, or the first RST.
    pub ended: [Instant; 2],
    /// The initial sequence numbers of initiator and target.
    first: [Option<u32>; 2],
    /// The FINs of initiator and target.
    fins: [Option<Fin>; 2],
    /// What each end acknowledged with its last FIN or RST.
    acknowledged: [Option<u32>; 2],
    /// The interface at which packets of each end arrive.
    interfaces: [Option<u32>; 2],
    /// Who reset it first.
    reset: Option<End>,
    /// Whether it was part of a report: that it did not come about, or of a transfer that it may belong to.
    pub is_reported: bool,
    /// Whether the packets do not agree: one may be forged or lost.
    pub is_contradicted: bool,
    /// Whether the kernel forgot it before its end was seen.
    pub is_forgotten: bool,
    /// The encrypted session that it belongs to, unless a readable transfer uses it.
    pub encrypted: Option<Box<EncryptedConnection>>,
}

/// The data connections that were seen.
#[derive(Default)]
pub(super) struct DataConnections {
    /// The connections with the same ends, the oldest first.
    by_ends: AHashMap<DataEnds, Vec<DataConnection>>,
    /// Number of connections between two networks.
    counts: AHashMap<Networks, usize>,
    /// Number of all connections.
    count: usize,
    /// When the last dropped connection between two networks began, or when a packet between them could not be read.
    /// A transfer that was announced before may have lost its connection.
    dropped: AHashMap<Networks, Instant>,
    /// When packets of any connection may have been lost.
    lost_at: Option<Instant>,
    /// The finder of the sessions of encrypted connections.
    pub finder: RangeFinder,
    /// Encrypted connections that were dropped before they were reported.
    gone: Vec<DataConnection>,
}

impl DataConnections {
    /// Notes a packet.
    pub fn observe(&mut self, packet: &DataPacket) {
        let DataPacket { passed, source, destination, flags, end, acknowledged, .. } = *packet;
        let from_initiator = ((source.ip(), destination), source.port(), End::Initiator);
        let from_target = ((destination.ip(), source), destination.port(), End::Target);
        if flags.syn || packet.refuses_a_syn() {
            let (ends, port, sender) = if flags.ack { from_target } else { from_initiator };
            let first = if flags.ack { acknowledged.wrapping_sub(1) } else { end };
            return self.begin(passed, ends, port, first).note(sender, packet);
        }
        for (ends, port, sender) in [from_initiator, from_target] {
            let same = self.by_ends.get_mut(&ends).into_iter().flatten();
            // A client can forge a SYN, and a packet may come behind the beginning of the next connection.
            let is_its = |one: &&mut DataConnection| {
                one.initiator_port == port && one.is_answered() && one.began[0] <= passed[1]
            };
            if let Some(connection) = same.rev().find(is_its) {
                connection.note(sender, packet);
            }
        }
    }

    /// Finds or adds the connection between these ends whose initiator has the initial sequence number `first`.
    fn begin(
        &mut self,
        passed: [Instant; 2],
        ends: DataEnds,
        port: u16,
        first: u32,
    ) -> &mut DataConnection {
        let known = self.same(ends).iter().rposition(|one| one.id() == (port, Some(first)));
        if known.is_none() {
            self.make_room(ends);
            self.count += 1;
            *self.counts.entry(networks_of(ends)).or_default() += 1;
        }
        let same = self.by_ends.entry(ends).or_insert_with(|| Vec::with_capacity(1));
        let place = known.unwrap_or_else(|| {
            let mut new = DataConnection::new(passed, port, first);
            // The server may have taken data of the client's SYN (TCP Fast Open, RFC 7413).
            let is_pending = |one: &DataConnection| !one.is_answered() && !one.is_over();
            new.is_contradicted =
                same.iter().any(|one| one.initiator_port == port && is_pending(one));
            new.encrypted = self.finder.find(ends.0, ends.1).map(Box::new);
            same.push(new);
            same.len() - 1
        });
        &mut same[place]
    }

    /// The newest connection that may be that of a `transfer` with its end at `ended`, and whether there is no other one.
    pub fn find(
        &self,
        ends: DataEnds,
        transfer: &Transfer,
        ended: Instant,
    ) -> (Option<&DataConnection>, bool) {
        let mut all = self.same(ends).iter().rev().filter(|one| one.may_be_of(transfer, ended));
        (all.next(), all.next().is_none())
    }

    /// The newest connection between these ends, to change it.
    pub fn newest_mut(&mut self, ends: DataEnds) -> Option<&mut DataConnection> {
        self.by_ends.get_mut(&ends)?.last_mut()
    }

    /// Whether packets, or a connection between these networks, may have been lost since the announcement of a transfer.
    pub fn may_lack(&self, ends: DataEnds, announced: Option<Instant>) -> bool {
        let dropped = self.dropped.get(&networks_of(ends)).copied();
        let lost_at = dropped.max(self.lost_at);
        lost_at.is_some_and(|lost_at| announced.is_none_or(|announced| announced <= lost_at))
    }

    /// Notes that packets were lost until the time `at`.
    pub fn note_loss(&mut self, at: Instant) {
        self.lost_at = self.lost_at.max(Some(at));
    }

    /// Notes that a packet between these addresses, of which nothing else is known, passed at the time `at`.
    pub fn note_unreadable(&mut self, at: Instant, [one, other]: [IpAddr; 2]) {
        for (initiator, target) in [(one, other), (other, one)] {
            self.note_loss_between(at, (initiator.into(), target.into()));
        }
    }

    /// Notes that a connection between these networks may have been lost at the time `at`.
    fn note_loss_between(&mut self, at: Instant, networks: Networks) {
        if self.dropped.len() >= MAX_CONNECTIONS {
            // What was lost between two networks counts for all then.
            let last = self.dropped.drain().map(|(_, at)| at).max();
            self.lost_at = self.lost_at.max(last);
        }
        let dropped = self.dropped.entry(networks).or_insert(at);
        *dropped = at.max(*dropped);
    }

    /// Marks the connections that may belong to a transfer with its end at `ended` as reported, so that no other
    /// transfer has them. Removes the connection if it certainly `is_its` and the transfer succeeded.
    pub fn claim(&mut self, ends: DataEnds, transfer: &Transfer, ended: Instant, is_its: bool) {
        if is_its && transfer.end.is_success() {
            self.remove(ends, |one| one.may_be_of(transfer, ended));
        }
        let same = self.by_ends.get_mut(&ends).into_iter().flatten();
        for one in same.filter(|one| one.may_be_of(transfer, ended)) {
            one.is_reported = true;
            if is_its {
                one.encrypted = None;
            }
        }
    }

    /// Removes the encrypted connections that have run for a while, and that the kernel does not know any more.
    pub fn drop_forgotten(&mut self, now: Instant, knows: impl Fn(SocketAddr, SocketAddr) -> bool) {
        let forgotten = self.remove_encrypted(|one, PinholeEnds { initiator, arrival, .. }| {
            let runs = !one.is_over() && one.began[0] + EXAMINED_AFTER <= now;
            runs && !knows(SocketAddr::new(*initiator, one.initiator_port), *arrival)
        });
        let forgotten = forgotten.into_iter();
        self.gone.extend(forgotten.map(|one| DataConnection { is_forgotten: true, ..one }));
    }

    /// Removes and returns the encrypted connections that were over a while before `now`, or all that are over, and
    /// those that there was no room for. Connections that readable transfers used are not among them.
    pub fn take_encrypted(&mut self, now: Option<Instant>) -> Vec<DataConnection> {
        let mut over = self.remove_encrypted(|one, _| {
            one.is_over() && now.is_none_or(|now| one.ended[1] + LATEST_REPLY <= now)
        });
        over.sort_by_key(|one| one.ended);
        let mut taken = std::mem::take(&mut self.gone);
        taken.append(&mut over);
        for one in &mut taken {
            one.is_contradicted |= self.lost_at.is_some_and(|lost_at| one.began[0] <= lost_at);
        }
        taken
    }

    /// Removes the answered encrypted connections for which `is_meant` holds.
    fn remove_encrypted(
        &mut self,
        is_meant: impl Fn(&DataConnection, &PinholeEnds) -> bool,
    ) -> Vec<DataConnection> {
        let is_meant = |one: &DataConnection| {
            let encrypted = one.encrypted.as_ref().filter(|_| one.is_answered());
            encrypted.is_some_and(|encrypted| is_meant(one, &encrypted.of.kind))
        };
        let all = self.by_ends.iter().filter(|(_, same)| same.iter().any(is_meant));
        let all: Vec<_> = all.map(|(ends, _)| *ends).collect();
        all.into_iter().flat_map(|ends| self.remove(ends, is_meant)).collect()
    }

    /// Removes the connections with these ends for which `is_meant` holds.
    fn remove(
        &mut self,
        ends: DataEnds,
        is_meant: impl Fn(&DataConnection) -> bool,
    ) -> Vec<DataConnection> {
        let Some(same) = self.by_ends.get_mut(&ends) else { return Vec::new() };
        let removed: Vec<_> = same.extract_if(.., |one| is_meant(one)).collect();
        if same.is_empty() {
            self.by_ends.remove(&ends);
        }
        self.count -= removed.len();
        if let Some(count) = self.counts.get_mut(&networks_of(ends)) {
            *count -= removed.len();
            if *count == 0 {
                self.counts.remove(&networks_of(ends));
            }
        }
        removed
    }

    /// Makes room for a connection between these ends. If the two networks have their share, a quarter of their
    /// connections is dropped. If there is no room at all, a quarter of all connections is dropped, first those of
    /// the networks that have the most. Running connections are dropped last.
    fn make_room(&mut self, ends: DataEnds) {
        if let [oldest, .., _] = self.same(ends)
            && self.same(ends).len() >= MAX_SAME
        {
            self.drop_one(ends, oldest.id());
        }
        let networks = networks_of(ends);
        let count_of = |networks| self.counts.get(&networks).copied().unwrap_or_default();
        let is_full = self.count >= MAX_CONNECTIONS;
        if !is_full && count_of(networks) < SHARE {
            return;
        }
        let mut all = Vec::new();
        for (ends, same) in &self.by_ends {
            let own = networks_of(*ends);
            if is_full || own == networks {
                let size = Reverse(count_of(own).max(1).ilog2());
                all.extend(
                    same.iter().map(|one| (size, one.runs(), one.began[0], *ends, one.id())),
                );
            }
        }
        all.sort_unstable_by_key(|(size, runs, began, ..)| (*size, *runs, *began));
        all.truncate(all.len() / 4);
        all.into_iter().for_each(|(.., ends, id)| self.drop_one(ends, id));
    }

    /// Drops a connection for lack of room.
    fn drop_one(&mut self, ends: DataEnds, id: (u16, Option<u32>)) {
        for one in self.remove(ends, |one| one.id() == id) {
            // A connection without an answer belongs to no transfer that succeeded.
            if one.is_answered() {
                self.note_loss_between(one.began[1], networks_of(ends));
                // The list grows by at most one for each packet until it is taken.
                self.gone.extend(Some(one).filter(|one| one.encrypted.is_some()));
            }
        }
    }

    fn same(&self, ends: DataEnds) -> &[DataConnection] {
        self.by_ends.get(&ends).map_or(&[], Vec::as_slice)
    }

    #[cfg(test)]
    pub fn networks(&self) -> usize {
        self.dropped.len() + self.counts.len()
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        let count = self.by_ends.values().map(Vec::len).sum();
        assert_eq!((self.count, self.counts.values().sum()), (count, count));
        count
    }
}

impl DataConnection {
    fn new(passed: [Instant; 2], initiator_port: u16, first: u32) -> Self {
        Self {
            initiator_port,
            began: passed,
            ended: passed,
            first: [Some(first), None],
            fins: [None; 2],
            acknowledged: [None; 2],
            interfaces: [None; 2],
            reset: None,
            is_reported: false,
            is_contradicted: false,
            is_forgotten: false,
            encrypted: None,
        }
    }

    /// What distinguishes it from others with the same ends: its initiator's port and initial sequence number.
    fn id(&self) -> (u16, Option<u32>) {
        (self.initiator_port, self.first[End::Initiator as usize])
    }

    fn note(&mut self, sender: End, packet: &DataPacket) {
        let DataPacket { passed, flags, end, acknowledged, interface, .. } = *packet;
        let place = sender as usize;
        if flags.syn {
            // It may have been reported that there is no answer.
            self.is_reported &= self.is_answered() || sender == End::Initiator;
            self.is_contradicted |= *self.first[place].get_or_insert(end) != end;
        }
        self.is_contradicted |= *self.interfaces[place].get_or_insert(interface) != interface;
        let acknowledged = flags.ack.then_some(acknowledged);
        if let Some(fin) = self.fins[place].as_mut().filter(|_| flags.fin) {
            fin.is_only &= fin.seq == end;
            fin.seq = end;
        } else if flags.fin {
            (self.fins[place], self.ended) =
                (Some(Fin { seq: end, is_only: true, acknowledged }), passed);
        }
        if flags.fin || flags.rst {
            self.acknowledged[place] = acknowledged.or(self.acknowledged[place]);
        }
        if flags.rst && self.reset.is_none() {
            (self.reset, self.ended) = (Some(sender), passed);
        }
    }

    /// Whether it may be that of a transfer with its end at `ended`: it began between announcement and reply, and was not over
    /// before the command.
    fn may_be_of(&self, transfer: &Transfer, ended: Instant) -> bool {
        let requested = ended.checked_sub(transfer.duration);
        let was_over = |requested| self.is_closed() && self.ended[1] <= requested;
        self.began[0] <= ended
            && transfer.announced.is_none_or(|announced| announced <= self.began[1])
            && !requested.is_some_and(was_over)
    }

    /// The bytes that the target has received, by the acknowledgement in its last FIN or RST, and those that it has
    /// sent, up to its FIN.
    pub fn bytes_by_target(&self) -> [Option<u32>; 2] {
        let [initiator, target] = self.first;
        // A FIN counts one.
        let fin = self.fins[End::Initiator as usize].map(|fin| fin.seq);
        let has_fin = |acknowledged: u32| fin == Some(acknowledged.wrapping_sub(1));
        let acknowledged = self.acknowledged[End::Target as usize];
        let got = initiator.zip(acknowledged.map(|one| one.wrapping_sub(u32::from(has_fin(one)))));
        let sent = target.zip(self.fins[End::Target as usize].map(|fin| fin.seq));
        [got, sent].map(|known| Some(known?.1.wrapping_sub(known?.0).wrapping_sub(1)))
    }

    /// The bytes of `sender` that the other end has received, if the `server` confirms them: up to the server's own
    /// FIN, or up to the client's FIN that the server's first FIN acknowledges.
    pub fn bytes_of(&self, sender: End, server: End, is_success: bool) -> Option<u64> {
        let (first, fin) = (self.first[sender as usize]?, self.fins[sender as usize]?);
        let is_confirmed = if sender == server {
            let had = self.acknowledged[server.other() as usize];
            let had_all = had.is_some_and(|had| !is_before(had, fin.seq));
            fin.is_only && (had_all || !self.was_reset(server))
        } else {
            // A server may send its FIN before, and a client may send a FIN that the server discards.
            let servers = self.fins[server as usize].and_then(|fin| fin.acknowledged);
            is_success && servers == Some(fin.seq.wrapping_add(1))
        };
        is_confirmed.then(|| fin.seq.wrapping_sub(first).wrapping_sub(1).into())
    }

    /// Whether `sender` has sent anything, as far as the ends say.
    pub fn has_moved(&self, sender: End) -> bool {
        let fin = self.fins[sender as usize].map(|fin| fin.seq);
        let end = fin.or(self.acknowledged[sender.other() as usize]);
        let first = self.first[sender as usize];
        first.zip(end).is_some_and(|(first, end)| is_before(first.wrapping_add(1), end))
    }

    /// Whether its bytes came from the server's client, as far as the server says; `None` if it has moved nothing.
    pub fn is_upload(&self, server: End) -> Option<bool> {
        let [by_server, by_client] = [server, server.other()].map(|end| self.has_moved(end));
        (by_server || by_client).then_some(!by_server)
    }

    /// Whether an end has closed it.
    pub fn has_fin(&self) -> bool {
        self.fins.iter().any(Option::is_some)
    }

    /// Whether its target has answered.
    pub fn is_answered(&self) -> bool {
        self.first[End::Target as usize].is_some()
    }

    /// Whether both ends have closed it, or its target refused it. What a client resets may go on.
    pub fn is_closed(&self) -> bool {
        self.fins.iter().all(Option::is_some) || !self.is_answered() && self.reset.is_some()
    }

    /// Whether it was closed or reset.
    pub fn is_over(&self) -> bool {
        self.reset.is_some() || self.is_closed()
    }

    fn runs(&self) -> bool {
        self.is_answered() && !self.is_over()
    }

    /// Whether `sender` may send more, as far as was seen.
    pub fn may_go_on_from(&self, sender: End, server: End) -> bool {
        self.is_answered() && self.fins[sender as usize].is_none() && self.reset != Some(server)
    }

    /// Whether it was reset before both ends had closed it, or by the server.
    pub fn was_reset(&self, server: End) -> bool {
        self.reset.is_some_and(|by| by == server || !self.is_closed())
    }

    /// Whether its client has reset it.
    pub fn is_cut_by_client(&self, server: End) -> bool {
        self.was_reset(server) && self.reset != Some(server)
    }
}
