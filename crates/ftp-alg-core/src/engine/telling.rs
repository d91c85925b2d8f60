//! What the kernel and the packet selection are told of a control connection, and what is sent on its behalf.

use std::net::SocketAddr;

use super::{Answer, Attention, Kernel, KernelError, REMINDER, bench::Bench, control::Control};
use crate::{
    packet::{self, Packet},
    session::{Acknowledgement, Forward, Outcome, Session, Side},
};

/// Tells the kernel what a connection's later packets need, of whose translation nothing is known here.
pub(super) fn attend_afresh(
    kernel: &mut impl Kernel,
    client: SocketAddr,
    server: SocketAddr,
    attention: Attention,
) -> Result<(), KernelError> {
    let translation = kernel.translation(client, server)?.ok_or(KernelError::Unknown)?;
    kernel.attend(&translation, attention)
}

/// What the selection is to be told with the verdict on a packet.
pub(super) fn answer(session: &Session, control: &mut Control) -> Answer {
    let is_watched = matches!(control.attention(), Some(Attention::Every | Attention::Watched));
    if session.wants_every_packet() || session.wants_no_packet() || is_watched {
        return Answer::Nothing; // that it was told by a request
    }
    if session.is_calm() && control.rival().is_none() {
        control.answered(Attention::Calm);
        return Answer::Calm;
    }
    // Of one that was queued before the calm began.
    let is_calm = control.attention() == Some(Attention::Calm);
    control.answered(Attention::Payload);
    if is_calm { Answer::Payload } else { Answer::Nothing }
}

/// Whether the calm is over and no verdict says so, as the packet is dropped.
fn is_calm_over<K: Kernel>(bench: &Bench<'_, K>, session: &Session, outcome: &Outcome) -> bool {
    outcome.forward == Forward::Not
        && bench.control.attention() == Some(Attention::Calm)
        && !session.is_calm()
}

/// What the kernel is to be told with a request of its own. `every` says that the packet was queued because every one
/// of its connection is, as someone told the kernel once: an earlier daemon, or a session that is forgotten.
fn wanted<K: Kernel>(
    bench: &Bench<'_, K>,
    session: &Session,
    outcome: &Outcome,
    every: bool,
) -> Option<Attention> {
    let control = &bench.control;
    if session.wants_every_packet() {
        // Past a gap, too, conntrack must not judge: it has seen numbers that go no further.
        return Some(Attention::Every);
    }
    if session.wants_no_packet() {
        return Some(Attention::None);
    }
    let is_settled = control.rival().is_none();
    let is_over = match control.attention() {
        Some(Attention::Every | Attention::Watched) => is_settled,
        // Perhaps it was told meanwhile, and this packet was queued before.
        Some(Attention::Payload | Attention::Calm) => {
            every && is_settled && control.told_since(bench.moment) >= REMINDER
        }
        // Of one that took the place of another just now that must be written first: after a crash it is decided again.
        None => every && is_settled && control.since < bench.moment,
        Some(Attention::None) => false,
    };
    (is_over || bench.answers && is_calm_over(bench, session, outcome))
        .then_some(Attention::Payload)
}

/// Tells the kernel what the connection's later packets need, and sends what is to be sent.
pub(super) fn tell_kernel<K: Kernel>(
    bench: &mut Bench<'_, K>,
    session: &Session,
    outcome: &Outcome,
    every: bool,
    injections: &mut Vec<Injection>,
) -> Result<(), KernelError> {
    if let Some(wanted) = wanted(bench, session, outcome, every)
        && bench.control.is_to_be_told(wanted, bench.moment, REMINDER)
    {
        match bench.translation().and_then(|t| bench.kernel.attend(&t, wanted)) {
            Ok(()) => bench.control.told(wanted, bench.moment),
            // It will be known, perhaps with another translation, once this packet has passed.
            Err(KernelError::Unknown) => {
                bench.control.set_translation(None);
                bench.control.missed(wanted, bench.moment);
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(acknowledgement) = outcome.acknowledge {
        let Acknowledgement { to, seq, ack, window, timestamps } = acknowledgement;
        let translation = match bench.translation() {
            // What is held is sent again, and acknowledged then.
            Err(KernelError::Unknown) => return Ok(()),
            known => known?,
        };
        let (source, destination) = translation.seen_by(to);
        let mut packet = Vec::new();
        packet::acknowledgement(source, destination, seq, ack, window, timestamps, &mut packet);
        injections.push(Injection::of(bench.control, packet));
    }
    Ok(())
}

/// Has `segment`, the rest of what `from` sent, go to the other end: as a packet of its own, which
/// nothing translates any more.
pub(super) fn send_rest<K: Kernel>(
    bench: &mut Bench<'_, K>,
    from: Side,
    segment: &[u8],
    injections: &mut Vec<Injection>,
) {
    let (translation, segment) = match (bench.translation(), Packet::parse(segment)) {
        (Ok(translation), Ok(segment)) => (translation, segment),
        (Err(error), _) => return bench.failed(&error),
        (Ok(_), Err(_)) => return,
    };
    let (source, destination) = translation.seen_by(from.peer());
    let mut packet = Vec::new();
    packet::with_endpoints(&segment, source, destination, &mut packet);
    injections.push(Injection::of(bench.control, packet));
}

/// A packet that is to be sent on behalf of a connection.
pub(super) struct Injection {
    pub(super) session: u64,
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    pub(super) packet: Vec<u8>,
}

impl Injection {
    pub(super) fn of(control: &Control, packet: Vec<u8>) -> Self {
        let (client, server) = (control.client(), control.server());
        Self { session: control.id, client, server, packet }
    }
}
