//! The links on both sides of the gateway, and what happens to packets there: they are lost,
//! doubled, reordered, damaged, cut in two by a middlebox, and put together again.

use std::{collections::BTreeMap, net::SocketAddr};

use ftp_alg_core::session::Side;

use super::{Rng, segment::Segment};

/// What the links do; chances are of each packet on each link. Times are in microseconds.
#[derive(Clone, Debug)]
pub struct Link {
    pub delay: u64,
    pub loss: f64,
    pub duplicate: f64,
    pub reorder: f64,
    /// One bit is turned, anywhere in the packet.
    pub damage: f64,
    /// A middlebox makes two segments of one.
    pub split: f64,
    /// A segment waits for the one that follows it, and both arrive as one.
    pub merge: f64,
    /// A router marks congestion, where the sender takes part in that.
    pub congestion: f64,
}

impl Default for Link {
    /// A link that does nothing but take its time.
    fn default() -> Self {
        Self {
            delay: 5_000,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            damage: 0.0,
            split: 0.0,
            merge: 0.0,
            congestion: 0.0,
        }
    }
}

/// Where a packet is to arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Gateway,
    End,
}

/// Where a packet comes from, and how far it can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An end of the connection sent it, or the gateway.
    Genuine,
    /// It was, before a bit was turned.
    Damaged,
    /// an off-path attacker forged it, or it is a duplicate from long ago.
    Stray,
}

/// A packet under way.
#[derive(Clone, Debug)]
pub struct Flight {
    /// The end it comes from, or pretends to.
    pub from: Side,
    pub to: Place,
    pub origin: Origin,
    pub bytes: Vec<u8>,
}

/// All packets under way, by the time of their arrival.
pub struct Air {
    link: Link,
    rng: Rng,
    flights: BTreeMap<(u64, u64), Flight>,
    number: u64,
}

impl Air {
    pub fn new(link: Link, rng: Rng) -> Self {
        Self { link, rng, flights: BTreeMap::new(), number: 0 }
    }

    /// When the next packet arrives.
    pub fn next_time(&self) -> Option<u64> {
        self.flights.first_key_value().map(|((at, _), _)| *at)
    }

    /// All that is under way is from long ago now.
    pub fn outlive(&mut self) {
        for flight in self.flights.values_mut() {
            flight.origin = Origin::Stray;
        }
    }

    /// Sends off `flight` at `start`.
    pub fn send(&mut self, flight: Flight, start: u64) {
        if flight.origin == Origin::Genuine && self.rng.chance(self.link.split) {
            let (source, destination, segment) = Segment::checked(&flight.bytes);
            if segment.payload.len() > 1 {
                let at = 1 + self.rng.below(segment.payload.len() - 1);
                for part in segment.split(at) {
                    let bytes = part.packet(source, destination);
                    self.send_whole(Flight { bytes, ..flight.clone() }, start);
                }
                return;
            }
        }
        self.send_whole(flight, start);
    }

    fn send_whole(&mut self, mut flight: Flight, start: u64) {
        if self.rng.chance(self.link.loss) {
            return;
        }
        if self.rng.chance(self.link.congestion) {
            mark_congestion(&mut flight);
        }
        let copies = 1 + u32::from(self.rng.chance(self.link.duplicate));
        for _ in 0..copies {
            let mut at = start + self.link.delay;
            if self.rng.chance(self.link.reorder) {
                at += self.rng.below(4 * self.link.delay as usize + 1) as u64;
            }
            let mut flight = flight.clone();
            // Once only: what is turned twice may have a right checksum.
            if flight.origin != Origin::Damaged && self.rng.chance(self.link.damage) {
                let bit = self.rng.below(flight.bytes.len() * 8);
                flight.bytes[bit / 8] ^= 1 << (bit % 8);
                flight.origin = Origin::Damaged;
            }
            self.number += 1;
            self.flights.insert((at, self.number), flight);
        }
    }

    /// Takes the next packet out of the air.
    pub fn land(&mut self) -> Option<Flight> {
        let ((at, _), mut flight) = self.flights.pop_first()?;
        if flight.origin == Origin::Genuine
            && self.rng.chance(self.link.merge)
            && let Some(both) = self.join_next(&flight, at)
        {
            flight.bytes = both;
        }
        Some(flight)
    }

    /// The packet of `first`, which arrives at `now`, and one that follows it in one, which must
    /// be under way already.
    fn join_next(&mut self, first: &Flight, now: u64) -> Option<Vec<u8>> {
        let (source, destination, segment) = Segment::checked(&first.bytes);
        let sent = now + self.link.delay;
        let (key, both) = self.flights.iter().find_map(|(key, next)| {
            let fits = next.origin == Origin::Genuine
                && (next.from, next.to) == (first.from, first.to)
                && key.0 <= sent;
            let (_, _, next) = fits.then(|| Segment::checked(&next.bytes))?;
            Some((*key, segment.merged(&next)?))
        })?;
        self.flights.remove(&key);
        Some(both.packet(source, destination))
    }
}

fn mark_congestion(flight: &mut Flight) {
    let (source, destination, mut segment): (SocketAddr, SocketAddr, _) =
        match Segment::read(&flight.bytes) {
            Ok(read) => read,
            Err(_) => return,
        };
    if segment.ecn != 0 {
        segment.ecn = 3;
        flight.bytes = segment.packet(source, destination);
    }
}
