//! A pinhole before it is open: its external port, and the ports to try.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use ahash::RandomState;

use crate::{
    engine::{
        ClientKey, FastPathPinholeClosing, Opening, Pinhole, Translation,
        pinholes::{
            client_counts::OpenError,
            held_pinhole::HeldPinhole,
            registry::{PinholeClosing, RegistryState},
            registry_entry::{EndpointUse, RegistryEntry, ReplacedEntry},
        },
    },
    ftp::{AnnouncementKind, Padding},
    policy::Policy,
};

/// A pinhole that is being opened, with its external port reserved.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The request to the kernel.
    pub opening: Opening,
    pub(super) kind: AnnouncementKind,
    pub(super) client: ClientKey,
    pub(super) serial: u64,
    /// The candidate ports, and how many were tried.
    pub(super) candidates: PortCandidates,
    /// The entry with the same endpoints that this one replaces.
    pub(super) replaced: Option<ReplacedEntry>,
    /// What another session has to do with the external port, if it has.
    pub other_session: Option<&'static str>,
}

impl Proposal {
    /// For `wanted`, which has the announced port.
    pub fn new(
        wanted: Pinhole,
        control: &Translation,
        format: PortFormat,
        policy: &Policy,
    ) -> Self {
        let Translation { client, client_external, .. } = *control;
        let is_active = format.kind.is_active();
        let set = match is_active && client != client_external {
            true => policy.port_set(client_external.port()),
            false => None,
        };
        let announced = wanted.arrival.port();
        Self {
            opening: Opening {
                pinhole: wanted,
                control: *control,
                from_client: !is_active,
                lifetime: policy.pinhole_timeout,
            },
            kind: format.kind,
            client: client.ip().into(),
            serial: 0,
            candidates: PortCandidates { announced, set, format, is_displaced: false, tried: 0 },
            replaced: None,
            other_session: None,
        }
    }

    /// The pinhole, which was opened `now`.
    pub fn opened(&self, now: Instant) -> HeldPinhole {
        let Opening { pinhole, lifetime, .. } = self.opening;
        HeldPinhole::new(pinhole, self.kind, now + lifetime, (self.client, self.serial), None)
    }

    pub(super) fn withdraw(&self, state: &mut RegistryState, closed: &mut Vec<PinholeClosing>) {
        let Self { opening: Opening { pinhole, .. }, client, serial, ref replaced, .. } = *self;
        closed.extend(state.withdraw(pinhole, serial, client, replaced.as_ref()));
    }
}

/// How a port is written into an announcement.
#[derive(Clone, Copy, Debug)]
pub struct PortFormat {
    pub kind: AnnouncementKind,
    /// Number of bytes to fill, if the line is to keep its length.
    pub room: Option<usize>,
    pub padding: Padding,
}

/// The sequence of external ports to try.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortCandidates {
    pub(super) announced: u16,
    /// The first and the last port, if only some are allowed.
    pub(super) set: Option<(u16, u16)>,
    pub(super) format: PortFormat,
    /// Whether the last one could not have the announced port, because it was taken.
    pub(super) is_displaced: bool,
    pub(super) tried: usize,
}

/// Number of random ports to try if the announced one is taken.
const PORT_TRIES: usize = 32;
/// Number of ports of the right length to try before those.
const FITTING_TRIES: usize = 4;
/// Number of random draws to find ports of the right length. Of the ports below 10000, which have one digit less, one
/// in fifty takes four characters in a `PORT`.
const FITTING_DRAWS: usize = 256;

impl PortCandidates {
    /// Whether the announcement with this external port keeps its length, if it is to.
    fn fits(&self, port: u16) -> bool {
        let PortFormat { kind, room, padding } = self.format;
        room.is_none_or(|room| kind.fits_port(port, room, padding))
    }

    /// The announced port, if it may be an external port.
    fn own(&self) -> Option<u16> {
        let is_allowed = |(first, last)| (first..=last).contains(&self.announced);
        self.set.is_none_or(is_allowed).then_some(self.announced)
    }

    /// Whether the announced port is the best one.
    fn prefers_own(&self) -> bool {
        !self.is_displaced && self.own().is_some_and(|port| self.fits(port))
    }
}

/// The external ports to try, best first: the same for all announcements of a target to the same initiator.
fn candidate_ports<'a>(
    policy: &'a Policy,
    ends: &'a (IpAddr, SocketAddr),
    candidates: PortCandidates,
    random: &'a RandomState,
) -> impl Iterator<Item = u16> + 'a {
    let (own, is_first) = (candidates.own(), candidates.prefers_own());
    let set = candidates.set;
    let draw = move |number: usize| policy.external_port(set, random.hash_one((ends, number)));
    let fitting = (0..FITTING_DRAWS).map_while(draw);
    let fitting = fitting.filter(move |port| candidates.fits(*port)).take(FITTING_TRIES);
    let any = (FITTING_DRAWS..FITTING_DRAWS + PORT_TRIES).map_while(draw);
    let [first, then] = [is_first, !is_first].map(|is_here| own.filter(|_| is_here));
    first.into_iter().chain(fitting).chain(then).chain(any)
}

/// Reserves the next external port for `proposal`, whose session holds `own`. No other pinhole uses it. If there is none,
/// it is one at which a pinhole of another session with the same ends waits for its data connection.
pub(super) fn reserve(
    state: &mut RegistryState,
    proposal: &mut Proposal,
    policy: &Policy,
    own: &[HeldPinhole],
    random: &RandomState,
    (closed, fast_path_closings): (&mut Vec<PinholeClosing>, &mut Vec<FastPathPinholeClosing>),
) -> Result<(), OpenError> {
    let Opening { ref mut pinhole, .. } = proposal.opening;
    let ends = (pinhole.initiator, pinhole.target);
    let mut waited_for = None;
    let mut free = None;
    for port in
        candidate_ports(policy, &ends, proposal.candidates, random).skip(proposal.candidates.tried)
    {
        proposal.candidates.tried += 1;
        pinhole.arrival.set_port(port);
        match state.use_of(pinhole) {
            EndpointUse::OtherTarget => {}
            EndpointUse::WaitedFor(serial) if own.iter().all(|held| held.serial != serial) => {
                waited_for = waited_for.or(Some(port));
            }
            _ => {
                free = Some(port);
                break;
            }
        }
    }
    let port = free.or(waited_for).ok_or(OpenError::NoPort)?;
    proposal.other_session = waited_for.map(|_| match free {
        Some(_) => "another session waits at that port",
        None => "another session waits at that port, and no other is free",
    });
    pinhole.arrival.set_port(port);
    if port == proposal.candidates.announced {
        state.set_displaced(pinhole, false);
    } else if proposal.candidates.prefers_own() && waited_for.is_none() {
        state.set_displaced(pinhole, true);
    }
    let (serial, replaced) = state.insert(*pinhole, proposal.client);
    proposal.serial = serial;
    proposal.replaced = replaced.as_ref().map(ReplacedEntry::new);
    if let Some(RegistryEntry { pinhole, fast_path, .. }) = replaced {
        // Announced again, or not closed yet.
        closed.push(PinholeClosing::new(pinhole, serial));
        fast_path_closings.extend(fast_path.map(|id| FastPathPinholeClosing { pinhole, id }));
    }
    Ok(())
}
