//! What is known of one control connection, in as little room as can be.
//!
//! There may be a million of them, and a packet's is in no cache then: what packets need lies in four
//! cache lines with the session, and what few connections have elsewhere.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Attention, Event, Translation, What, pinholes::Held};
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
        id ^ u64::from(*told) ^ u64::from(ends.server_port) ^ u64::from(self.session.touched())
    }
}

/// What is known of a control connection besides its session.
#[derive(Debug)]
pub struct Control {
    /// Its number, from 1.
    pub id: u64,
    /// Client and server, as packets show them.
    pub ends: Ends,
    is_v4: bool,
    /// Which of the policy's networks it is in.
    pub network: Option<u16>,
    /// What the kernel was last told, and in which millisecond.
    attention: Option<Attention>,
    told: u32,
    /// When it was first seen.
    pub since: Moment,
    /// When a packet of it was last seen.
    pub last: Moment,
    /// Whether the client said something in a SYN (RFC 7413), which is not read.
    pub spoke_in_syn: bool,
    /// Whether it is noted as changed since it was last written.
    pub changed: bool,
    rare: Option<Box<Rare>>,
}

/// What a connection has on which nothing was announced yet.
#[derive(Debug, Default)]
struct Rare {
    translation: Option<Translation>,
    pinholes: Vec<Held>,
    rival: Option<Box<Session>>,
    /// Whether the kernel does not change its numbers.
    keeps_numbers: bool,
}

impl Control {
    /// A connection that is first seen `now`.
    pub fn new(id: u64, client: SocketAddr, server: SocketAddr, now: Moment) -> Self {
        Self {
            id,
            ends: Ends::new(client.into(), server.into()),
            is_v4: client.is_ipv4(),
            network: None,
            attention: None,
            told: 0,
            since: now,
            last: now,
            spoke_in_syn: false,
            changed: false,
            rare: None,
        }
    }

    /// The client, as packets show it.
    pub fn client(&self) -> SocketAddr {
        self.address(self.ends.client())
    }

    /// The server, as packets show it.
    pub fn server(&self) -> SocketAddr {
        self.address(self.ends.server())
    }

    fn address(&self, end: Endpoint) -> SocketAddr {
        end.socket(self.is_v4)
    }

    /// Something that happened on it.
    pub fn event(&self, what: What) -> Event {
        Event { session: self.id, client: self.client(), server: self.server(), what }
    }

    /// Which end `source` is.
    pub fn side(&self, source: Endpoint) -> Side {
        if source == self.ends.client() { Side::Client } else { Side::Server }
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
        self.rare.as_ref()?.rival.as_deref()
    }

    /// Another began on the same endpoints, or someone forged it.
    pub fn set_rival(&mut self, rival: Option<Session>) {
        if self.rare.is_some() || rival.is_some() {
            self.rare().rival = rival.map(Box::new);
        }
    }

    /// Takes the other one out if it `is` none that was forged.
    pub fn take_rival_if(&mut self, is: impl FnOnce(&Session) -> bool) -> Option<Session> {
        let rival = &mut self.rare.as_mut()?.rival;
        rival.take_if(|rival| is(rival)).map(|rival| *rival)
    }

    /// Whether the kernel is to be told `wanted`, as it was told otherwise, or long ago.
    pub fn is_to_be_told(&self, wanted: Attention, now: Moment, again: Duration) -> bool {
        let age = now.millis().wrapping_sub(self.told);
        self.attention != Some(wanted) || Duration::from_millis(age.into()) >= again
    }

    /// What the kernel was last told.
    pub fn attention(&self) -> Option<Attention> {
        self.attention
    }

    /// Whether the kernel cannot change its numbers.
    pub fn keeps_numbers(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.keeps_numbers)
    }

    /// Whether the kernel cannot, as it said when it was asked.
    pub fn set_keeps_numbers(&mut self, keeps: bool) {
        self.rare().keeps_numbers = keeps;
    }

    /// The kernel was told.
    pub fn told(&mut self, attention: Attention, now: Moment) {
        (self.attention, self.told) = (Some(attention), now.millis());
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

/// Both endpoints of a connection. Bytes, as numbers of their length would be aligned to it.
#[derive(Debug)]
pub struct Ends {
    client: [[u8; 8]; 2],
    server: [[u8; 8]; 2],
    client_port: u16,
    server_port: u16,
}

impl Ends {
    fn new(client: Endpoint, server: Endpoint) -> Self {
        let packed = |end: Endpoint| [end.high.to_ne_bytes(), end.low.to_ne_bytes()];
        Self {
            client: packed(client),
            server: packed(server),
            client_port: client.port,
            server_port: server.port,
        }
    }

    /// The client's.
    pub fn client(&self) -> Endpoint {
        unpacked(self.client, self.client_port)
    }

    /// The server's.
    pub fn server(&self) -> Endpoint {
        unpacked(self.server, self.server_port)
    }
}

fn unpacked([high, low]: [[u8; 8]; 2], port: u16) -> Endpoint {
    Endpoint { high: u64::from_ne_bytes(high), low: u64::from_ne_bytes(low), port }
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
