//! The external ports to try for a pinhole, best first.

use std::net::{IpAddr, SocketAddr};

use ahash::RandomState;

use crate::{
    engine::{PinholeEnds, Translation},
    ftp::{AnnouncementKind, Padding},
    policy::Policy,
};

/// Number of random ports to try if the announced one is taken.
const PORT_TRIES: usize = 32;
/// Number of ports of the right length to try before those.
const FITTING_TRIES: usize = 4;
/// Number of random draws to find ports of the right length. Of the ports below 10000, which have one digit less, one
/// in fifty takes four characters in a `PORT`.
const FITTING_DRAWS: usize = 256;

/// How a port is written into an announcement.
#[derive(Clone, Copy, Debug)]
pub struct PortFormat {
    pub kind: AnnouncementKind,
    /// Number of bytes to fill, if the line is to keep its length.
    pub room: Option<usize>,
    pub padding: Padding,
}

impl PortFormat {
    /// Whether the announcement with this external port keeps its length, if it is to.
    fn fits(&self, port: u16) -> bool {
        self.room.is_none_or(|room| self.kind.fits_port(port, room, self.padding))
    }
}

/// The ports to choose from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidates {
    announced: u16,
    /// The first and the last port, if only some are allowed.
    pub(super) set: Option<(u16, u16)>,
    format: PortFormat,
}

impl Candidates {
    /// Those for `wanted`, which has the announced port.
    pub(super) fn new(
        wanted: &PinholeEnds,
        control: &Translation,
        format: PortFormat,
        policy: &Policy,
    ) -> Self {
        let Translation { client, client_external, .. } = *control;
        let is_translated = format.kind.is_active() && client != client_external;
        let set = if is_translated { policy.port_set(client_external.port()) } else { None };
        Self { announced: wanted.arrival.port(), set, format }
    }

    /// Whether this is the announced port.
    pub(super) fn is_announced(&self, port: u16) -> bool {
        port == self.announced
    }

    /// The announced port, if it may be an external port.
    fn own(&self) -> Option<u16> {
        let is_allowed = |(first, last)| (first..=last).contains(&self.announced);
        self.set.is_none_or(is_allowed).then_some(self.announced)
    }

    /// Whether the announced port would be the best one if it were free.
    pub(super) fn prefers_own(&self) -> bool {
        self.own().is_some_and(|port| self.format.fits(port))
    }

    /// The ports, best first: the same for all announcements of a target to the same initiator. It differs from the
    /// announced port if that does not fill the room of its format: an announcement that keeps its length changes no
    /// sequence numbers; or if the last announcement could not have it, as `is_displaced` says.
    pub(super) fn ports<'a>(
        &'a self,
        policy: &'a Policy,
        ends: &'a (IpAddr, SocketAddr),
        is_displaced: bool,
        random: &'a RandomState,
    ) -> impl Iterator<Item = u16> + 'a {
        let (own, is_first) = (self.own(), self.prefers_own() && !is_displaced);
        let draw =
            move |number: usize| policy.external_port(self.set, random.hash_one((ends, number)));
        let fitting = (0..FITTING_DRAWS).map_while(draw);
        let fitting = fitting.filter(move |port| self.format.fits(*port)).take(FITTING_TRIES);
        let any = (FITTING_DRAWS..FITTING_DRAWS + PORT_TRIES).map_while(draw);
        let [first, then] = [is_first, !is_first].map(|is_here| own.filter(|_| is_here));
        first.into_iter().chain(fitting).chain(then).chain(any)
    }
}
