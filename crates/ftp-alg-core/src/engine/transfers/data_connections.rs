//! What was seen of data connections, and which of them is that of a transfer.
//!
//! Servers use a port again at once, so several connections have the same ends. That of a transfer began between its
//! announcement and its last reply; if there are more, none is certain.
//!
//! A client can forge packets that its server discards, and so could hide how much it moves. So the server's word counts: the
//! FIN of what it sends, and what it acknowledges of what it gets. What a client says of itself counts nowhere, and a packet
//! that arrives elsewhere than those of its sender makes its connection doubtful.
//!
//! Invariants: memory is bounded by [`MAX_CONNECTIONS`], no client has more than [`SHARE`] with one server, and the work for a
//! packet by [`MAX_SAME`].

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::engine::{
    ClientKey, EncryptedConnection, PinholeEnds, RangeFinder, Shares, activity::EXAMINED_AFTER,
};
use ahash::AHashMap;

/// Limit of data connections that are stored; of those that are over, the oldest go first.
pub(super) const MAX_CONNECTIONS: usize = 16384;
/// Limit of connections between one initiator's network (a /64) and one target's, so that a client's floods cost others nothing.
pub(super) const SHARE: usize = MAX_CONNECTIONS / 4;
/// Limit of connections with the same ends. If there were more, it is not certain which one is that of a transfer.
const MAX_SAME: usize = 64;
/// How long after the end of its data connection the reply of a transfer comes, as a rule.
const LATEST_REPLY: Duration = Duration::from_secs(2);

/// A packet of a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataPacket {
    /// The earliest and the latest time at which it passed. They are the same, but for packets of output hooks, and of kernels
    /// before 5.18.
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

/// The time between the two.
fn distance(one: Instant, other: Instant) -> Duration {
    one.max(other) - one.min(other)
}

/// Whether one sequence number is before the other.
fn is_before(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}

/// The FINs of one end.
#[derive(Clone, Copy, Debug)]
struct Fin {
    /// The sequence number of the last one.
    seq: u32,
    /// When the first one passed, and what it acknowledged.
    seen: Instant,
    acknowledged: Option<u32>,
    /// Whether another one of the same end has another sequence number.
    is_contradicted: bool,
}

/// What was seen of one data connection.
#[derive(Clone, Debug)]
pub(super) struct DataConnection {
    /// Counts all connections.
    pub serial: u64,
    pub initiator_port: u16,
    /// The earliest and the latest time of its first packet.
    pub began: Instant,
    began_by: Instant,
    /// The same of its last packet that was an end.
    pub ended: Instant,
    ended_by: Instant,
    /// The initial sequence numbers of initiator and target.
    first: [Option<u32>; 2],
    /// Their FINs.
    fins: [Option<Fin>; 2],
    /// What each had acknowledged with its last FIN or RST.
    acknowledged: [Option<u32>; 2],
    /// Where packets of each arrive.
    interfaces: [Option<u32>; 2],
    /// Who reset it first, and when.
    reset: Option<(End, Instant)>,
    /// Whether it was reported: that it did not come about, or a transfer that may be its.
    pub is_reported: bool,
    /// Whether it may be another one, or what was seen of it contradicts itself.
    pub is_doubtful: bool,
    /// Whether the kernel has it no more, and no end of it was seen.
    pub is_forgotten: bool,
    /// Whose it is if no transfer is read that uses it.
    pub encrypted: Option<Box<EncryptedConnection>>,
}

/// The data connection of a transfer, as far as is known.
#[derive(Clone, Copy)]
pub(super) struct Found<'c> {
    pub connection: &'c DataConnection,
    /// Whether it can be no other one that was seen.
    pub is_distinct: bool,
    /// Whether it can be no other one at all.
    pub is_certain: bool,
}

/// The data connections that were seen.
#[derive(Default)]
pub(super) struct DataConnections {
    /// Those with the same ends, the oldest first.
    by_ends: AHashMap<DataEnds, Vec<DataConnection>>,
    /// The ends of each, by serial number.
    shares: Shares<Networks, DataEnds>,
    /// When one between these networks was dropped, or a packet was not read. Another one may look like it for the transfers
    /// of that time.
    dropped: AHashMap<Networks, Instant>,
    /// The serial number of the last one.
    last: u64,
    /// When any of them may have been lost.
    lost_at: Option<Instant>,
    /// The sessions of encrypted ones.
    pub finder: RangeFinder,
    /// Encrypted ones that went before they were reported.
    gone: Vec<DataConnection>,
    /// Those that are over, and may be encrypted: when to look whether a transfer has used them meanwhile, by their ends and
    /// serial numbers.
    over: VecDeque<(Instant, DataEnds, u64)>,
}

impl DataConnections {
    /// Records a packet, and passes the ends of each connection whose packet it may be to `each`.
    pub fn observe(&mut self, packet: &DataPacket, mut each: impl FnMut(DataEnds)) {
        let DataPacket { passed: [at, _], source, destination, flags, end, acknowledged, .. } =
            *packet;
        let from_initiator = ((source.ip(), destination), source.port(), End::Initiator);
        let from_target = ((destination.ip(), source), destination.port(), End::Target);
        if flags.syn || packet.refuses_a_syn() {
            let (ends, port, sender) = if flags.ack { from_target } else { from_initiator };
            let first = if flags.ack { acknowledged.wrapping_sub(1) } else { end };
            let has_sent_more = flags.syn && flags.ack && self.has_sent_before(ends, port, first);
            let connection = self.begin(packet.passed, ends, port, first);
            connection.record(sender, packet);
            connection.is_doubtful |= has_sent_more;
            let over = connection.take_over(ends);
            self.over.extend(over);
            return each(ends);
        }
        // A forged SYN or SYN-ACK makes another connection of the same two endpoints. It must not get this one's packets.
        for (ends, port, sender) in [from_initiator, from_target] {
            let Some(same) = self.by_ends.get_mut(&ends) else { continue };
            let newest = |may_be: &dyn Fn(&DataConnection) -> bool| {
                same.iter().rposition(|one| one.initiator_port == port && may_be(one))
            };
            // The time of a packet may be less exact than that of the connection's first one.
            let place = newest(&|one| one.began <= at && one.is_open())
                .or_else(|| newest(&|one| one.began <= at))
                .or_else(|| newest(&|_| true));
            if let Some(place) = place {
                same[place].record(sender, packet);
                self.over.extend(same[place].take_over(ends));
                each(ends);
            }
        }
    }

    /// Removes the encrypted connections that have run for a while, and that the kernel does not know any more.
    pub fn drop_forgotten(&mut self, now: Instant, knows: impl Fn(SocketAddr, SocketAddr) -> bool) {
        let is_gone = |one: &DataConnection| {
            one.encrypted.as_ref().is_some_and(|encrypted| {
                let PinholeEnds { initiator, arrival, .. } = encrypted.of.kind;
                let runs = one.is_answered() && !one.is_over() && one.began + EXAMINED_AFTER <= now;
                runs && !knows(SocketAddr::new(initiator, one.initiator_port), arrival)
            })
        };
        let all = self.by_ends.iter().flat_map(|(ends, same)| same.iter().map(|one| (*ends, one)));
        let gone: Vec<_> =
            all.filter(|(_, one)| is_gone(one)).map(|(ends, one)| (ends, one.clone())).collect();
        for (ends, one) in gone {
            self.remove(ends, one.serial);
            self.gone.push(DataConnection { is_forgotten: true, ..one });
        }
    }

    /// The encrypted connections that were over a while before `now`, or all, without what transfers have used, and those that
    /// there was no room for. Removes them.
    pub fn take_encrypted(&mut self, now: Option<Instant>) -> Vec<DataConnection> {
        let mut taken = std::mem::take(&mut self.gone);
        let is_due = |(until, ..): &(Instant, DataEnds, u64)| now.is_none_or(|now| *until <= now);
        while self.over.front().is_some_and(is_due)
            && let Some((_, ends, serial)) = self.over.pop_front()
        {
            taken.extend(self.find(ends, serial).cloned());
            self.remove(ends, serial);
        }
        taken
    }

    /// The newest connection between these ends.
    pub fn newest(&self, ends: DataEnds) -> Option<&DataConnection> {
        self.same(ends).last()
    }

    /// The newest connection between these ends, to change it.
    pub fn newest_mut(&mut self, ends: DataEnds) -> Option<&mut DataConnection> {
        self.by_ends.get_mut(&ends)?.last_mut()
    }

    /// The connection between these ends of a transfer that lasted from `requested` to `ended`, of those that `may_be` it.
    pub fn find_for(
        &self,
        ends: DataEnds,
        requested: Option<Instant>,
        ended: Instant,
        may_be: impl Fn(&DataConnection) -> bool,
    ) -> Option<Found<'_>> {
        let candidates = || self.candidates(ends, ended, &may_be);
        let is_only = candidates().filter(|one| one.is_answered()).count() <= 1;
        let over = candidates().filter(|one| one.is_over());
        let nearest = over.min_by_key(|one| distance(one.ended, ended));
        let connection = nearest.or_else(|| candidates().next())?;
        // A SYN-ACK while another connection of the same ports runs may be forged.
        let runs = |other: &DataConnection| {
            other.initiator_port == connection.initiator_port
                && other.is_answered()
                && other.began < connection.began
                && !(other.is_over() && other.ended <= connection.began)
        };
        // A server may use a port for several sessions at a time, and reply late.
        let is_doubtful = connection.is_doubtful || !is_only || self.same(ends).iter().any(runs);
        let is_certain = !is_doubtful && !self.may_lack(ends, requested);
        Some(Found { connection, is_distinct: !is_doubtful, is_certain })
    }

    /// Whether packets, or a connection between these networks, were lost since the time `requested`.
    pub fn may_lack(&self, ends: DataEnds, requested: Option<Instant>) -> bool {
        let dropped = self.dropped.get(&networks_of(ends)).copied();
        // Some clients connect before they request the transfer.
        let since = requested.and_then(|requested| requested.checked_sub(EXAMINED_AFTER));
        dropped.max(self.lost_at).is_some_and(|lost_at| since.is_none_or(|since| lost_at >= since))
    }

    /// The connections that began before a transfer ended and `may_be` its, the newest first.
    pub fn candidates(
        &self,
        ends: DataEnds,
        ended: Instant,
        may_be: impl Fn(&DataConnection) -> bool,
    ) -> impl Iterator<Item = &DataConnection> {
        self.same(ends).iter().rev().filter(move |one| one.began <= ended && may_be(one))
    }

    /// Removes the connection with this serial number.
    pub fn remove(&mut self, ends: DataEnds, serial: u64) {
        let Some(same) = self.by_ends.get_mut(&ends) else { return };
        let Some(at) = same.iter().position(|one| one.serial == serial) else { return };
        same.remove(at);
        if same.is_empty() {
            self.by_ends.remove(&ends);
        }
        self.shares.remove(networks_of(ends), serial);
    }

    /// Removes a connection for lack of room at the time `at`.
    fn lose(&mut self, at: Instant, ends: DataEnds, serial: u64) {
        // The reply of a transfer comes soon after the end of its connection.
        let is_past = |one: &DataConnection| one.is_over() && one.ended + LATEST_REPLY < at;
        if let Some(one) = self.find(ends, serial).cloned() {
            if !is_past(&one) {
                self.record_loss_between(at, networks_of(ends));
            }
            // At most one for each packet that was read since the last were taken.
            if one.encrypted.is_some() && one.is_answered() {
                self.gone.push(one);
            }
        }
        self.remove(ends, serial);
    }

    /// Records that a connection between these networks may look like another one at the time `at`.
    fn record_loss_between(&mut self, at: Instant, networks: Networks) {
        if self.dropped.len() >= MAX_CONNECTIONS {
            // What was lost between two networks counts for all then.
            self.dropped.clear();
            self.lost_at = self.lost_at.max(Some(at));
        }
        let dropped = self.dropped.entry(networks).or_insert(at);
        *dropped = at.max(*dropped);
    }

    /// Records that a packet between these addresses, of which nothing else is known, passed at the time `at`.
    pub fn record_unreadable(&mut self, at: Instant, [one, other]: [IpAddr; 2]) {
        for (initiator, target) in [(one, other), (other, one)] {
            self.record_loss_between(at, (initiator.into(), target.into()));
        }
    }

    /// Records that nobody knows which of the connections with these ends that began until the time `ended` is whose. That
    /// with this serial number may be that of a transfer that is reported.
    pub fn doubt(&mut self, ends: DataEnds, ended: Instant, serial: u64) {
        for one in self.by_ends.get_mut(&ends).into_iter().flatten() {
            one.is_doubtful |= one.began <= ended;
            one.is_reported |= one.serial == serial && one.encrypted.is_none();
        }
    }

    /// Records that packets were lost until `now`.
    pub fn record_loss(&mut self, now: Instant) {
        self.lost_at = Some(now);
        let all = self.by_ends.values_mut().flatten();
        all.for_each(|one| one.is_doubtful = true);
    }

    fn same(&self, ends: DataEnds) -> &[DataConnection] {
        self.by_ends.get(&ends).map_or(&[], Vec::as_slice)
    }

    /// Whether `first` seems to acknowledge data of a SYN (TCP Fast Open, RFC 7413): another one, without an answer, was right
    /// before it.
    fn has_sent_before(&self, ends: DataEnds, port: u16, first: u32) -> bool {
        let sent = |asked: u32| (1..=u32::from(u16::MAX)).contains(&first.wrapping_sub(asked));
        let mut asked = self.same(ends).iter().filter(|one| !one.is_answered());
        asked.any(|one| {
            one.initiator_port == port && one.first[End::Initiator as usize].is_some_and(sent)
        })
    }

    fn find(&self, ends: DataEnds, serial: u64) -> Option<&DataConnection> {
        self.same(ends).iter().find(|one| one.serial == serial)
    }

    #[cfg(test)]
    pub fn networks(&self) -> usize {
        self.dropped.len() + usize::from(!self.shares.is_empty())
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.by_ends.values().map(Vec::len).sum()
    }

    /// The connection between these ends whose initiator begins with the sequence number `first`.
    fn begin(
        &mut self,
        passed: [Instant; 2],
        ends: DataEnds,
        port: u16,
        first: u32,
    ) -> &mut DataConnection {
        let begins_so = |one: &DataConnection| {
            (one.initiator_port, one.first[End::Initiator as usize]) == (port, Some(first))
        };
        let known = self.same(ends).iter().rposition(begins_so);
        if known.is_none() {
            self.make_room(passed[0], ends);
            self.last += 1;
            self.shares.insert(networks_of(ends), self.last, ends);
        }
        let same = self.by_ends.entry(ends).or_insert_with(|| Vec::with_capacity(1));
        let place = known.unwrap_or_else(|| {
            let encrypted = self.finder.find(ends.0, ends.1).map(Box::new);
            let new = DataConnection::new(self.last, passed, port, first);
            same.push(DataConnection { encrypted, ..new });
            same.len() - 1
        });
        &mut same[place]
    }

    /// Makes room for a connection between these ends: those of the same ends and networks go first, if they have their share, and
    /// those of the networks with the most if there is none at all.
    fn make_room(&mut self, at: Instant, ends: DataEnds) {
        let same = self.same(ends);
        if same.len() >= MAX_SAME
            && let Some(oldest) = same.iter().find(|one| one.is_over()).or(same.first())
        {
            self.lose(at, ends, oldest.serial);
        }
        let networks = networks_of(ends);
        if self.shares.count_of(networks) >= SHARE {
            self.drop_oldest(at, networks, SHARE / 4 * 3, true);
        }
        if self.shares.len() >= MAX_CONNECTIONS {
            let mut most: Vec<_> = self.shares.counts().collect();
            most.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
            for may_go_on in [false, true] {
                for (networks, count) in &most {
                    if self.shares.len() > MAX_CONNECTIONS / 4 * 3 {
                        self.drop_oldest(at, *networks, count / 2, may_go_on);
                    }
                }
            }
        }
    }

    /// Drops the oldest connections of these networks until so many are left: those that are over, and then the others if they
    /// may go.
    fn drop_oldest(&mut self, at: Instant, networks: Networks, left: usize, may_go_on: bool) {
        let oldest: Vec<_> =
            self.shares.of(networks).map(|(serial, ends)| (*ends, serial)).collect();
        for may_go_on in [false, may_go_on] {
            for (ends, serial) in &oldest {
                let known = self.find(*ends, *serial);
                let goes = known.is_some_and(|one| may_go_on || one.is_over());
                if goes && self.shares.count_of(networks) > left {
                    self.lose(at, *ends, *serial);
                }
            }
        }
    }
}

impl DataConnection {
    fn new(serial: u64, [at, by]: [Instant; 2], initiator_port: u16, first: u32) -> Self {
        Self {
            serial,
            initiator_port,
            began: at,
            began_by: by,
            ended: at,
            ended_by: by,
            first: [Some(first), None],
            fins: [None; 2],
            acknowledged: [None, None],
            interfaces: [None, None],
            reset: None,
            is_reported: false,
            is_doubtful: false,
            is_forgotten: false,
            encrypted: None,
        }
    }

    fn record(&mut self, sender: End, packet: &DataPacket) {
        let DataPacket { passed: [at, by], flags, end, acknowledged, .. } = *packet;
        let place = sender as usize;
        if flags.syn {
            // It may have been reported that there is no answer.
            self.is_reported &= self.is_answered() || sender == End::Initiator;
            self.is_doubtful |= *self.first[place].get_or_insert(end) != end;
        }
        let interface = *self.interfaces[place].get_or_insert(packet.interface);
        self.is_doubtful |= interface != packet.interface;
        if let Some(fin) = self.fins[place].as_mut().filter(|_| flags.fin) {
            fin.is_contradicted |= fin.seq != end;
            fin.seq = end;
        } else if flags.fin {
            let acknowledged = flags.ack.then_some(acknowledged);
            let fin = Fin { seq: end, seen: at, acknowledged, is_contradicted: false };
            (self.fins[place], self.ended, self.ended_by) = (Some(fin), at, by);
        }
        if flags.ack && (flags.fin || flags.rst) {
            self.acknowledged[place] = Some(acknowledged);
        }
        if flags.rst && self.reset.is_none() {
            (self.reset, self.ended, self.ended_by) = (Some((sender, at)), at, by);
        }
    }

    /// Its entry in the list of those that are over, once.
    fn take_over(&mut self, ends: DataEnds) -> Option<(Instant, DataEnds, u64)> {
        let is_over = self.encrypted.is_some() && self.is_answered() && self.is_over();
        let is_new = is_over && !std::mem::replace(&mut self.is_reported, true);
        is_new.then(|| (self.ended_by + LATEST_REPLY, ends, self.serial))
    }

    /// How much the target has got, by the acknowledgement in its last FIN or RST, and has sent up to its FIN.
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

    /// Whether an end has closed it.
    pub fn has_fin(&self) -> bool {
        self.fins.iter().any(Option::is_some)
    }

    /// Whether its ends may send FINs.
    fn is_open(&self) -> bool {
        self.is_answered() && self.fins.iter().any(Option::is_none)
    }

    pub fn is_over(&self) -> bool {
        self.reset.is_some() || self.fins.iter().all(Option::is_some)
    }

    /// Whether it was certainly over at the time `at`.
    pub fn was_over_at(&self, at: Instant) -> bool {
        self.is_over() && self.ended_by <= at
    }

    /// Whether it began before the time `at`.
    pub fn began_before(&self, at: Instant) -> bool {
        self.began_by < at
    }

    /// Whether its client seems to have reset it, and may go on all the same.
    pub fn may_go_on(&self, server: End) -> bool {
        let is_reset = self.reset.is_some_and(|(by, _)| by != server);
        is_reset && self.fins.iter().any(Option::is_none)
    }

    /// Whether `sender` may send more, as far as was seen.
    pub fn may_go_on_from(&self, sender: End, server: End) -> bool {
        self.is_answered()
            && self.fins[sender as usize].is_none()
            && (self.reset.is_none() || self.may_go_on(server))
    }

    /// Who reset it, if both ends, or the `server`, did not end it later.
    fn reset_for(&self, server: End) -> Option<End> {
        let (by, at) = self.reset?;
        let is_later = |fin: &Fin| fin.seen > at;
        let went_on = self.fins[server as usize].is_some_and(|servers| {
            is_later(&servers) || self.fins[server.other() as usize].as_ref().is_some_and(is_later)
        });
        (by == server || !went_on).then_some(by)
    }

    pub fn was_reset(&self, server: End) -> bool {
        self.reset_for(server).is_some()
    }

    pub fn is_reset_by(&self, server: End) -> bool {
        self.reset_for(server) == Some(server)
    }

    pub fn is_answered(&self) -> bool {
        self.first[End::Target as usize].is_some()
    }

    /// The bytes of `sender` behind its SYN, which counts one, that the other end has got by the word of the `server`.
    pub fn bytes_of(&self, sender: End, server: End, is_success: bool) -> Option<u64> {
        let first = self.first[sender as usize]?;
        let end = match sender == server {
            true => self.sent_by(server)?,
            false => self.received_by(server).filter(|_| is_success)?,
        };
        let bytes = end.wrapping_sub(first).wrapping_sub(1);
        // A server resets what waits for it when it stops to listen: it may have accepted another one.
        let is_unused = bytes == 0 && is_success && self.is_reset_by(server);
        (!is_unused).then_some(bytes.into())
    }

    /// Whether `sender` has sent anything, as far as the ends say.
    pub fn has_moved(&self, sender: End) -> bool {
        let fin = self.fins[sender as usize].map(|fin| fin.seq);
        let end = fin.or(self.acknowledged[sender.other() as usize]);
        let first = self.first[sender as usize];
        first.zip(end).is_some_and(|(first, end)| is_before(first.wrapping_add(1), end))
    }

    /// Whether what it has moved came from the server's client; `None` if it has moved nothing. The server's word counts.
    pub fn is_upload(&self, server: End) -> Option<bool> {
        let [by_server, by_client] = [server, server.other()].map(|end| self.has_moved(end));
        (by_server || by_client).then_some(!by_server)
    }

    /// The sequence number behind what the server has sent, if its client had that all.
    fn sent_by(&self, server: End) -> Option<u32> {
        let fin = self.fins[server as usize].filter(|fin| !fin.is_contradicted)?;
        let had = self.acknowledged[server.other() as usize];
        let had_all = !self.was_reset(server) || had.is_some_and(|had| !is_before(had, fin.seq));
        had_all.then_some(fin.seq)
    }

    /// The sequence number behind what the server has got: its FIN acknowledges that of its client. A server may send its
    /// own before, and a client one that the server discards.
    fn received_by(&self, server: End) -> Option<u32> {
        let [sent, servers] = [self.fins[server.other() as usize]?, self.fins[server as usize]?];
        (servers.acknowledged?.wrapping_sub(1) == sent.seq).then_some(sent.seq)
    }
}
