//! What is known of one control connection, in as little room as can be.
//!
//! There may be a million of them, and a packet's is in no cache then: what packets need lies in four
//! cache lines with the session, and what few connections have elsewhere.

use std::{
    net::SocketAddr,
    num::NonZeroU16,
    time::{Duration, Instant},
};

use super::{Attention, Event, Translation, What, handover::Judging, pinholes::Held};
use crate::{
    packet::Endpoint,
    session::{Session, Side},
};

/// A control connection.
#[derive(Debug)]
#[repr(align(64))]
pub struct Entry {
    /// All else.
    pub control: Control,
    /// The session.
    pub session: Session,
}

impl Entry {
    /// Something of each of its cache lines.
    pub fn touched(&self) -> u64 {
        let Control { id, ends, told, .. } = &self.control;
        id ^ u64::from(*told) ^ u64::from(ends.server_port[0]) ^ u64::from(self.session.touched())
    }
}

/// What is known of a control connection besides its session.
#[derive(Debug)]
pub struct Control {
    /// Its number, from 1.
    pub id: u64,
    /// Client and server, as packets show them.
    pub ends: Ends,
    /// One more than which of the policy's networks it is in.
    network: Option<NonZeroU16>,
    /// What the kernel was last told, and in which millisecond.
    attention: Option<Attention>,
    told: u32,
    /// When it was first seen.
    pub since: Moment,
    /// When a packet of it was last seen.
    pub last: Moment,
    /// Whether it is noted as changed since it was last written.
    pub changed: bool,
    /// Whether it holds more memory than is ordinary.
    pub weighs: bool,
    /// Whether it counts for its client.
    pub counts: bool,
    /// How much the kernel is being asked that its packets wait for. A mark may be asked for beside a pinhole.
    asked: u8,
    rare: Option<Box<Rare>>,
}

/// What a connection has on which nothing was announced yet.
#[derive(Debug, Default)]
struct Rare {
    translation: Option<Translation>,
    pinholes: Vec<Held>,
    rival: Option<Rival>,
    /// Whether the client said something in a SYN (RFC 7413), which is not read.
    spoke_in_syn: bool,
    /// Whether its packets are watched for a while.
    is_watched: bool,
    /// How often in a row the kernel did not know it when it was to be told.
    misses: u8,
    /// What of it was judged in the kernel.
    judging: Judging,
}

/// Another connection that began on the same endpoints, unless it was forged.
#[derive(Debug)]
struct Rival {
    session: Box<Session>,
    /// When its SYN-ACK came last.
    since: Moment,
}

impl Control {
    /// A connection that is first seen `now`.
    pub fn new(id: u64, client: SocketAddr, server: SocketAddr, now: Moment) -> Self {
        Self {
            id,
            ends: Ends::new(client.into(), server.into()),
            network: None,
            attention: None,
            told: 0,
            since: now,
            last: now,
            changed: false,
            weighs: false,
            counts: false,
            asked: 0,
            rare: None,
        }
    }

    /// The client, as packets show it.
    pub fn client(&self) -> SocketAddr {
        self.ends.client().socket()
    }

    /// The server, as packets show it.
    pub fn server(&self) -> SocketAddr {
        self.ends.server().socket()
    }

    /// Which of the policy's networks it is in.
    pub fn network(&self) -> Option<u16> {
        self.network.map(|after| after.get() - 1)
    }

    /// It is in this one.
    pub fn set_network(&mut self, network: Option<u16>) {
        // There are fewer than are counted here.
        self.network = network.and_then(|network| NonZeroU16::new(network.saturating_add(1)));
    }

    /// Something that happened on it.
    pub fn event(&self, what: What) -> Event {
        Event { session: self.id, client: self.client(), server: self.server(), what }
    }

    /// The kernel is asked something.
    pub fn ask(&mut self) {
        self.asked = self.asked.saturating_add(1);
    }

    /// It has answered.
    pub fn answer(&mut self) {
        self.asked = self.asked.saturating_sub(1);
    }

    /// Whether its packets wait for what the kernel is asked.
    pub fn is_busy(&self) -> bool {
        self.asked > 0
    }

    /// Which end `source` is.
    pub fn side(&self, source: Endpoint) -> Side {
        if source == self.ends.client() { Side::Client } else { Side::Server }
    }

    /// Whether the client said something in a SYN (RFC 7413), which is not read.
    pub fn spoke_in_syn(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.spoke_in_syn)
    }

    /// The client did, or did not.
    pub fn set_spoke_in_syn(&mut self, spoke: bool) {
        if self.rare.is_some() || spoke {
            self.rare().spoke_in_syn = spoke;
        }
    }

    /// How its ends see each other, if that was looked up.
    pub fn translation(&self) -> Option<&Translation> {
        self.rare.as_ref()?.translation.as_ref()
    }

    /// What was found, or that nothing is known any more.
    pub fn set_translation(&mut self, translation: Option<Translation>) {
        if self.rare.is_some() || translation.is_some() {
            self.rare().translation = translation;
        }
    }

    /// What of it was judged in the kernel.
    pub fn judging(&self) -> Judging {
        self.rare.as_ref().map_or_else(Judging::default, |rare| rare.judging)
    }

    /// The same, to change.
    pub fn judging_mut(&mut self) -> &mut Judging {
        &mut self.rare().judging
    }

    /// Pinholes that it holds, oldest first.
    pub fn pinholes(&self) -> &[Held] {
        self.rare.as_ref().map_or(&[], |rare| &rare.pinholes)
    }

    /// The same, to change.
    pub fn pinholes_mut(&mut self) -> Option<&mut Vec<Held>> {
        Some(&mut self.rare.as_mut()?.pinholes)
    }

    /// One more pinhole.
    pub fn hold(&mut self, held: Held) {
        let pinholes = &mut self.rare().pinholes;
        pinholes.reserve_exact(1); // hardly ever are there more, and each is large
        pinholes.push(held);
    }

    /// The pinhole at `index`, which it holds no more.
    pub fn let_go(&mut self, index: usize) -> Option<Held> {
        let pinholes = self.pinholes_mut()?;
        (index < pinholes.len()).then(|| pinholes.remove(index))
    }

    /// The same, which it holds no more.
    pub fn take_pinholes(&mut self) -> Vec<Held> {
        self.rare.as_mut().map_or_else(Vec::new, |rare| std::mem::take(&mut rare.pinholes))
    }

    /// Another that began on the same endpoints, unless it was forged.
    pub fn rival(&self) -> Option<&Session> {
        self.rare.as_ref()?.rival.as_ref().map(|rival| &*rival.session)
    }

    /// Another began `now` on the same endpoints, or someone forged it.
    pub fn set_rival(&mut self, session: Session, now: Moment) {
        self.rare().rival = Some(Rival { session: Box::new(session), since: now });
    }

    /// The other one's SYN-ACK came again.
    pub fn refresh_rival(&mut self, now: Moment) {
        if let Some(rival) = self.rare.as_mut().and_then(|rare| rare.rival.as_mut()) {
            rival.since = now;
        }
    }

    /// Gives up the other one if its SYN-ACK is as old as this. Returns whether there is still one.
    pub fn drop_old_rival(&mut self, now: Moment, age: Duration) -> bool {
        let Some(rare) = &mut self.rare else { return false };
        rare.rival.take_if(|rival| now.since(rival.since) >= age);
        rare.rival.is_some()
    }

    /// Takes the other one out if it `is` none that was forged.
    pub fn take_rival_if(&mut self, is: impl FnOnce(&Session) -> bool) -> Option<Session> {
        let rival = &mut self.rare.as_mut()?.rival;
        rival.take_if(|rival| is(&rival.session)).map(|rival| *rival.session)
    }

    /// Whether the kernel is to be told `wanted`, as it was told otherwise, or long ago.
    pub fn is_to_be_told(&self, wanted: Attention, now: Moment, again: Duration) -> bool {
        self.attention != Some(wanted) || self.told_since(now) >= again
    }

    /// How long ago the kernel was last told something.
    pub fn told_since(&self, now: Moment) -> Duration {
        Duration::from_millis(now.millis().wrapping_sub(self.told).into())
    }

    /// What the kernel was last told.
    pub fn attention(&self) -> Option<Attention> {
        self.attention
    }

    /// The kernel was told.
    pub fn told(&mut self, attention: Attention, now: Moment) {
        (self.attention, self.told) = (Some(attention), now.millis());
        if let Some(rare) = &mut self.rare {
            rare.misses = 0;
        }
    }

    /// Its packets are watched for a while, or not any more. Returns whether they were.
    pub fn watch(&mut self, is_watched: bool) -> bool {
        match (&mut self.rare, is_watched) {
            (None, false) => false,
            (rare, _) => {
                std::mem::replace(&mut rare.get_or_insert_default().is_watched, is_watched)
            }
        }
    }

    /// Whether the kernel did not know the connection so often that it need not be asked `again` yet.
    pub fn is_unknown(&self, now: Moment, again: Duration) -> bool {
        let misses = self.rare.as_ref().map_or(0, |rare| rare.misses);
        misses >= MISSES && self.told_since(now) < again
    }

    /// The kernel did not know the connection when it was to be told `wanted`. It may know it after the next
    /// packet; a connection that it goes on not knowing is asked about again only as a reminder.
    pub fn missed(&mut self, wanted: Attention, now: Moment) {
        let rare = self.rare();
        rare.misses = rare.misses.saturating_add(1);
        if rare.misses >= MISSES {
            (self.attention, self.told) = (Some(wanted), now.millis());
        }
    }

    /// What it was told is not known any more.
    pub fn forget_attention(&mut self) {
        self.attention = None;
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

/// So often in a row the kernel is asked at once about a connection that it does not know.
const MISSES: u8 = 4;

/// Both endpoints of a connection. Bytes, as numbers of their length would be aligned to it.
#[derive(Debug)]
pub struct Ends {
    client: [[u8; 8]; 2],
    server: [[u8; 8]; 2],
    client_port: [u8; 2],
    server_port: [u8; 2],
    is_v4: bool,
}

impl Ends {
    fn new(client: Endpoint, server: Endpoint) -> Self {
        let packed = |end: Endpoint| [end.high.to_ne_bytes(), end.low.to_ne_bytes()];
        Self {
            client: packed(client),
            server: packed(server),
            client_port: client.port().to_ne_bytes(),
            server_port: server.port().to_ne_bytes(),
            is_v4: client.is_v4(),
        }
    }

    /// The client's.
    pub fn client(&self) -> Endpoint {
        self.end(self.client, self.client_port)
    }

    /// The server's.
    pub fn server(&self) -> Endpoint {
        self.end(self.server, self.server_port)
    }

    fn end(&self, address: [[u8; 8]; 2], port: [u8; 2]) -> Endpoint {
        let [high, low] = address.map(u64::from_ne_bytes);
        Endpoint::new(high, low, u16::from_ne_bytes(port), self.is_v4)
    }
}

/// A time, in nanoseconds from the [`Epoch`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

impl Moment {
    /// How long ago `earlier` was, at least nothing.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0).max(0).cast_unsigned())
    }

    fn millis(self) -> u32 {
        (self.0 / 1_000_000) as u32 // on a circle of 49 days
    }
}

/// The first time that an engine was told: an [`Instant`] takes twice the room of the distance from it.
#[derive(Clone, Copy, Default)]
pub struct Epoch {
    first: Option<Instant>,
    /// What was asked last: packets of one batch are of one time.
    last: Option<(Instant, Moment)>,
}

impl Epoch {
    /// The moment `at`.
    #[inline]
    pub fn moment(&mut self, at: Instant) -> Moment {
        if let Some((last, moment)) = self.last
            && last == at
        {
            return moment;
        }
        self.other_moment(at)
    }

    fn other_moment(&mut self, at: Instant) -> Moment {
        let epoch = *self.first.get_or_insert(at);
        let nanos = |distance: Duration| {
            i64::try_from(distance.as_nanos()).unwrap_or(i64::MAX) // in three hundred years
        };
        let moment = Moment(match at.checked_duration_since(epoch) {
            Some(after) => nanos(after),
            None => -nanos(epoch.duration_since(at)),
        });
        self.last = Some((at, moment));
        moment
    }

    /// When `moment` was; there is none without an epoch.
    pub fn instant(&self, Moment(nanos): Moment) -> Option<Instant> {
        let distance = Duration::from_nanos(nanos.unsigned_abs());
        let epoch = self.first?;
        if nanos < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_table_takes_four_cache_lines() {
        assert_eq!(size_of::<Option<Entry>>(), 256);
    }

    #[test]
    fn ends_and_moments_are_what_they_were_made_of() {
        for (client, server) in [
            ("10.0.0.1:4000", "203.0.113.9:21"),
            ("[::1]:4000", "[::1]:21"),
            ("[fe80::1]:1", "[::]:2"),
            ("[::10.0.0.1]:4000", "[::ffff:203.0.113.9]:21"),
        ] {
            let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
            let mut epoch = Epoch::default();
            let now = Instant::now();
            let control = Control::new(1, client, server, epoch.moment(now));
            assert_eq!((control.client(), control.server()), (client, server));
            for distance in [0, 1, 1_500_000_000].map(Duration::from_nanos) {
                let (earlier, later) = (now - distance, now + distance);
                assert_eq!(epoch.instant(control.since), Some(now));
                let (before, after) = (epoch.moment(earlier), epoch.moment(later));
                assert_eq!(epoch.instant(before), Some(earlier));
                assert_eq!(after.since(before), 2 * distance);
                assert_eq!(before.since(after), Duration::ZERO);
            }
        }
    }
}
