//! What was seen of data connections, and which of them is that of a transfer.
//!
//! Packets come from two sources, so that of an older connection may come later. Servers use a port again at once, so
//! several connections have the same ends. That of a transfer began before the transfer's last reply; if there are more,
//! it is the one that ended next to that reply, or none is certain.
//!
//! A client can forge packets that its server discards, and so could hide how much it moves. What the server's own FIN
//! says decides then.
//!
//! Invariant: memory is bounded by [`MAX_CONNECTIONS`].

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::engine::PinholeEnds;
use ahash::AHashMap;

/// Limit of data connections that are stored; of those that are over, the oldest go first.
pub(super) const MAX_CONNECTIONS: usize = 16384;
/// Of connections that end so close together, the one of a transfer is not certain.
const SAME_TIME: Duration = Duration::from_millis(50);

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

/// The time between the two.
fn distance(one: Instant, other: Instant) -> Duration {
    one.max(other) - one.min(other)
}

/// A FIN.
#[derive(Clone, Copy, Debug)]
struct Fin {
    seq: u32,
    seen: Instant,
    acknowledged: Option<u32>,
}

/// What was seen of one data connection.
#[derive(Clone, Debug)]
pub(super) struct DataConnection {
    pub initiator_port: u16,
    pub began: Instant,
    pub ended: Instant,
    /// The initial sequence numbers of initiator and target.
    first: [Option<u32>; 2],
    /// Their first FINs.
    fins: [Option<Fin>; 2],
    /// What each had acknowledged with its last FIN or RST.
    acknowledged: [Option<u32>; 2],
    /// Who reset it first, with which sequence number, and when.
    reset: Option<(End, u32, Instant)>,
    /// Whether it was reported that it did not come about.
    pub is_reported: bool,
}

/// The data connection of a transfer, as far as is known.
#[derive(Clone, Copy)]
pub(super) struct Found<'c> {
    pub connection: &'c DataConnection,
    /// Whether it can be no other one.
    pub is_certain: bool,
}

/// The data connections that were seen.
#[derive(Default)]
pub(super) struct DataConnections {
    /// Those with the same ends, the oldest first.
    by_ends: AHashMap<DataEnds, Vec<DataConnection>>,
    /// Their ends, in the order in which they began.
    order: VecDeque<(DataEnds, Instant)>,
}

impl DataConnections {
    /// Records a packet that passed at the time `at`.
    pub fn observe(&mut self, at: Instant, packet: &DataPacket) {
        let DataPacket { source, destination, flags, end, acknowledged } = *packet;
        let from_initiator = ((source.ip(), destination), source.port(), End::Initiator);
        let from_target = ((destination.ip(), source), destination.port(), End::Target);
        if flags.syn || packet.refuses_a_syn() {
            let (ends, port, sender) = if flags.ack { from_target } else { from_initiator };
            let first = if flags.ack { acknowledged.wrapping_sub(1) } else { end };
            return self.begin(at, ends, port, first).record(at, sender, packet);
        }
        // A forged SYN or SYN-ACK makes another connection of the same two endpoints. It must not get this one's packets.
        for (ends, port, sender) in [from_initiator, from_target] {
            let same = self.by_ends.get_mut(&ends).map(Vec::as_mut_slice).unwrap_or_default();
            let newest = |may_be: &dyn Fn(&DataConnection) -> bool| {
                same.iter().rposition(|one| one.initiator_port == port && may_be(one))
            };
            // The time of a packet may be less exact than that of the connection's first one.
            let place = newest(&|one| one.began <= at && one.is_open())
                .or_else(|| newest(&|one| one.began <= at))
                .or_else(|| newest(&|_| true));
            if let Some(place) = place {
                same[place].record(at, sender, packet);
            }
        }
    }

    /// The newest connection between these ends.
    pub fn newest(&self, ends: DataEnds) -> Option<&DataConnection> {
        self.by_ends.get(&ends)?.last()
    }

    /// The newest connection between these ends, to change it.
    pub fn newest_mut(&mut self, ends: DataEnds) -> Option<&mut DataConnection> {
        self.by_ends.get_mut(&ends)?.last_mut()
    }

    /// The connection between these ends of a transfer that ended at the time `ended`, of those that `may_be` it.
    pub fn find(
        &self,
        ends: DataEnds,
        ended: Instant,
        may_be: impl Fn(&DataConnection) -> bool,
    ) -> Option<Found<'_>> {
        let mut candidates: Vec<_> = self.candidates(ends, ended, may_be).collect();
        if candidates.len() > 1 && candidates.iter().any(|one| one.is_over()) {
            candidates.retain(|one| one.is_over());
            candidates.sort_by_key(|one| distance(one.ended, ended));
        }
        let connection = *candidates.first()?;
        let is_near = |other: &&DataConnection| distance(other.ended, connection.ended) < SAME_TIME;
        // A SYN-ACK while another connection of the same ports runs may be forged.
        let runs = |other: &DataConnection| {
            other.initiator_port == connection.initiator_port
                && other.is_answered()
                && other.began < connection.began
                && !(other.is_over() && other.ended <= connection.began)
        };
        let is_doubtful =
            candidates.get(1).is_some_and(is_near) || self.by_ends.get(&ends)?.iter().any(runs);
        Some(Found { connection, is_certain: !is_doubtful })
    }

    /// The connections that began before a transfer ended and `may_be` its, the newest first.
    pub fn candidates(
        &self,
        ends: DataEnds,
        ended: Instant,
        may_be: impl Fn(&DataConnection) -> bool,
    ) -> impl Iterator<Item = &DataConnection> {
        let same = self.by_ends.get(&ends).map(Vec::as_slice).unwrap_or_default();
        same.iter().rev().filter(move |one| one.began <= ended && may_be(one))
    }

    /// Removes the connection that began at the time `began`.
    pub fn remove(&mut self, ends: DataEnds, began: Instant) {
        if let Some(same) = self.by_ends.get_mut(&ends) {
            same.retain(|one| one.began != began);
            if same.is_empty() {
                self.by_ends.remove(&ends);
            }
        }
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.by_ends.values().map(Vec::len).sum()
    }

    /// The connection between these ends whose initiator begins with the sequence number `first`.
    fn begin(&mut self, at: Instant, ends: DataEnds, port: u16, first: u32) -> &mut DataConnection {
        let same = self.by_ends.get(&ends).map(Vec::as_slice).unwrap_or_default();
        let begins_so = |one: &DataConnection| {
            (one.initiator_port, one.first[End::Initiator as usize]) == (port, Some(first))
        };
        let known = same.iter().rposition(begins_so);
        if known.is_none() {
            self.make_room();
            self.order.push_back((ends, at));
        }
        let same = self.by_ends.entry(ends).or_insert_with(|| Vec::with_capacity(1));
        let place = known.unwrap_or_else(|| {
            same.push(DataConnection::new(at, port, first));
            same.len() - 1
        });
        &mut same[place]
    }

    /// Makes room for a quarter of all connections, if there is none for one more.
    fn make_room(&mut self) {
        if self.order.len() < MAX_CONNECTIONS {
            return;
        }
        let order = std::mem::take(&mut self.order);
        self.order = order
            .into_iter()
            .filter(|(ends, began)| self.find_known(*ends, *began).is_some())
            .collect();
        self.drop_oldest(DataConnection::is_over);
        self.drop_oldest(|_| true);
    }

    fn find_known(&self, ends: DataEnds, began: Instant) -> Option<&DataConnection> {
        self.by_ends.get(&ends)?.iter().find(|one| one.began == began)
    }

    /// Drops the oldest of those that `may_go`, until three quarters of the limit are left.
    fn drop_oldest(&mut self, may_go: impl Fn(&DataConnection) -> bool) {
        let mut excess = self.order.len().saturating_sub(MAX_CONNECTIONS / 4 * 3);
        for (ends, began) in std::mem::take(&mut self.order) {
            if excess > 0 && self.find_known(ends, began).is_none_or(&may_go) {
                self.remove(ends, began);
                excess -= 1;
            } else {
                self.order.push_back((ends, began));
            }
        }
    }
}

impl DataConnection {
    fn new(at: Instant, initiator_port: u16, first: u32) -> Self {
        Self {
            initiator_port,
            began: at,
            ended: at,
            first: [Some(first), None],
            fins: [None; 2],
            acknowledged: [None, None],
            reset: None,
            is_reported: false,
        }
    }

    fn record(&mut self, now: Instant, sender: End, packet: &DataPacket) {
        let (place, DataPacket { flags, end, acknowledged, .. }) = (sender as usize, *packet);
        if flags.syn && self.first[place].is_none() {
            self.first[place] = Some(end);
        }
        if flags.fin && self.fins[place].is_none() {
            let acknowledged = flags.ack.then_some(acknowledged);
            (self.fins[place], self.ended) = (Some(Fin { seq: end, seen: now, acknowledged }), now);
        }
        if flags.ack && (flags.fin || flags.rst) {
            self.acknowledged[place] = Some(acknowledged);
        }
        if flags.rst && self.reset.is_none() {
            (self.reset, self.ended) = (Some((sender, end, now)), now);
        }
    }

    /// Whether its ends may send FINs.
    fn is_open(&self) -> bool {
        self.is_answered() && self.fins.iter().any(Option::is_none)
    }

    pub fn is_over(&self) -> bool {
        self.reset.is_some() || self.fins.iter().all(Option::is_some)
    }

    /// Whether its client seems to have reset it, and may go on all the same.
    pub fn may_go_on(&self, server: End) -> bool {
        let is_reset = self.reset.is_some_and(|(by, ..)| by != server);
        is_reset && self.fins.iter().any(Option::is_none)
    }

    /// Whether `sender` may send more, as far as was seen.
    pub fn may_go_on_from(&self, sender: End, server: End) -> bool {
        self.is_answered()
            && self.fins[sender as usize].is_none()
            && (self.reset.is_none() || self.may_go_on(server))
    }

    /// Who reset it, and with which sequence number, if both ends, or the `server`, did not end it later.
    fn reset_for(&self, server: End) -> Option<(End, u32)> {
        let (by, place, at) = self.reset?;
        let is_later = |fin: &Fin| fin.seen > at;
        let went_on = self.fins[server as usize].is_some_and(|servers| {
            is_later(&servers) || self.fins[server.other() as usize].as_ref().is_some_and(is_later)
        });
        (by == server || !went_on).then_some((by, place))
    }

    pub fn was_reset(&self, server: End) -> bool {
        self.reset_for(server).is_some()
    }

    pub fn is_reset_by(&self, server: End) -> bool {
        self.reset_for(server).is_some_and(|(by, _)| by == server)
    }

    pub fn is_answered(&self) -> bool {
        self.first[End::Target as usize].is_some()
    }

    /// The sequence number of the FIN of `sender`. If the transfer is a success, the server's later FIN acknowledges that
    /// of its client.
    fn last_of(&self, sender: End, server: End, is_success: bool) -> Option<u32> {
        let fin = self.fins[sender as usize]?;
        let servers = self.fins[server as usize].filter(|one| one.seen >= fin.seen);
        match servers.and_then(|one| one.acknowledged).filter(|_| sender != server) {
            Some(acknowledged) => {
                let seq = acknowledged.wrapping_sub(1);
                (is_success || fin.seq == seq).then_some(seq)
            }
            None => Some(fin.seq),
        }
    }

    /// The bytes between the SYN of `sender`, which counts one, and its FIN, or the place where a reset cut them off.
    pub fn bytes_of(&self, sender: End, server: End, is_success: bool) -> Option<u64> {
        let first = self.first[sender as usize]?;
        let end = match self.is_cut(sender, server, is_success) {
            true => self.reset_place(sender, server),
            false => self.last_of(sender, server, is_success),
        };
        Some(end?.wrapping_sub(first).wrapping_sub(1).into())
    }

    /// Whether a reset came before all that `sender` sent was there.
    pub fn is_cut(&self, sender: End, server: End, is_success: bool) -> bool {
        let is_before = |place: u32, last: u32| place.wrapping_sub(last).cast_signed() < 0;
        let last = self.last_of(sender, server, is_success);
        match (last, self.reset_place(sender, server)) {
            (Some(last), place) => place.is_some_and(|place| is_before(place, last)),
            (None, _) => self.was_reset(server),
        }
    }

    /// The sequence number behind what was there of `sender` at a reset: what the other end had acknowledged, or the
    /// place of the sender's own RST.
    fn reset_place(&self, sender: End, server: End) -> Option<u32> {
        let (reset_by, place) = self.reset_for(server)?;
        let own = Some(place).filter(|_| reset_by == sender);
        self.acknowledged[sender.other() as usize].or(own)
    }
}
