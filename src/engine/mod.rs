//! Packet in, verdict and wishes out; the table of sessions.
//!
//! Sans-I/O: the engine is handed packets and the time, and asks the kernel through [`Kernel`].
//! It never touches a socket or a clock, so the daemon, `replay`, the benchmarks and the tests all
//! run the same code.

mod bench;
mod event;
mod kernel;
mod pinholes;
mod table;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bench::Bench;
pub use event::{Action, Decision, Event, What};
pub use kernel::{Attention, Kernel, KernelError, Opening, Pinhole, Translation};
use pinholes::PinholeTable;
use table::{Control, Entry, Key, Table};

use crate::{
    ftp::Kind,
    packet::{self, Edit, Packet, Seq, flags},
    policy::Policy,
    session::{Acknowledgement, Forward, Outcome, Phase, Rest, Session, Side},
};

/// What becomes of a queued packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it is.
    Accept,
    /// It goes on with the content that the engine wrote to its output buffer.
    Replace,
    /// It ends here.
    Drop,
}

/// Whether TCP checksums are checked. A segment whose checksum is wrong is discarded by its
/// receiver, so what it says must not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// They are; a segment with a wrong one passes unread.
    Verify,
    /// They are taken for right: captures show them before the network card computes them.
    Trust,
}

/// What the engine has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets taken.
    pub packets: u64,
    /// Packets that could not be read and passed.
    pub malformed: u64,
    /// Announcements rewritten.
    pub rewrites: u64,
    /// Pinholes opened.
    pub pinholes_opened: u64,
    /// Announcements refused.
    pub pinholes_refused: u64,
    /// Other commands refused.
    pub commands_refused: u64,
    /// Connections of which packets were missed.
    pub lost: u64,
    /// Packets of connections not followed because there were too many.
    pub uninspected: u64,
    /// Requests that the kernel refused.
    pub errors: u64,
}

/// One row of the table of sessions, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its number.
    pub id: u64,
    /// Both ends, and how they see each other; without translation as long as none was needed.
    pub translation: Translation,
    /// One word for where it stands.
    pub state: &'static str,
    /// Since when it is followed.
    pub since: Instant,
    /// Whether its sequence numbers are adjusted.
    pub adjusted: bool,
    /// How many pinholes it holds.
    pub pinholes: usize,
}

/// One open pinhole, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinholeInfo {
    /// The session that holds it.
    pub session: u64,
    /// The pinhole.
    pub pinhole: Pinhole,
    /// What announced it.
    pub kind: Kind,
}

/// Sessions that are over are kept this long for segments that are sent again: those whose numbers
/// differ, which nothing else can put right, and the others, lest they look like new ones.
const LINGER: Duration = Duration::from_secs(60);
const LINGER_UNADJUSTED: Duration = Duration::from_secs(10);
/// Connections on which nothing was said are kept this long.
const SILENCE: Duration = Duration::from_secs(120);
/// Others are kept as long as the kernel keeps established connections (nf_conntrack_tcp_timeout_established).
const IDLE: Duration = Duration::from_secs(432_000);
/// How many SYN-ACKs with other numbers, which may be forged, are remembered of a connection.
const MAX_SUCCESSORS: usize = 4;
/// What the kernel was told is told again after this long, as conntrack may have been flushed.
const REMINDER: Duration = Duration::from_secs(1);
/// How many places of the table one call of [`Engine::expire`] looks at.
const SWEEP: u32 = 1024;

/// The engine.
pub struct Engine {
    policy: Policy,
    checksums: Checksums,
    table: Table,
    pinholes: PinholeTable,
    counters: Counters,
    events: Vec<Event>,
    /// Common to engines beside each other.
    last_id: Arc<AtomicU64>,
    sweep: u32,
    payload: Vec<u8>,
    injected: Vec<u8>,
}

impl Engine {
    /// An engine that has seen nothing.
    pub fn new(policy: Policy, checksums: Checksums) -> Self {
        Self {
            policy,
            checksums,
            table: Table::default(),
            pinholes: PinholeTable::default(),
            counters: Counters::default(),
            events: Vec::new(),
            last_id: Arc::default(),
            sweep: 0,
            payload: Vec::new(),
            injected: Vec::new(),
        }
    }

    /// An engine that has seen nothing, for other connections through the same kernel: sessions are
    /// numbered in one row, an external port is given out once, and a client's limit holds over both.
    pub fn beside(&self) -> Self {
        Self {
            pinholes: self.pinholes.beside(),
            last_id: Arc::clone(&self.last_id),
            ..Self::new(self.policy.clone(), self.checksums)
        }
    }

    /// From now on `policy` holds. What is open stays open, and what is followed is followed.
    pub fn set_policy(&mut self, policy: Policy) {
        if !policy.tells_networks_as(&self.policy) {
            for Entry { control, .. } in self.table.iter_mut() {
                control.network = policy.network_of(control.client.ip(), control.server.ip());
            }
        }
        self.policy = policy;
    }

    /// Takes one packet, from its IP header on, and decides about it. For [`Verdict::Replace`] the
    /// packet that goes on instead is in `out`. When this returns, what the packet announces can
    /// be connected to; give the verdict, then call [`settle`](Self::settle).
    pub fn packet(
        &mut self,
        now: Instant,
        bytes: &[u8],
        kernel: &mut impl Kernel,
        out: &mut Vec<u8>,
    ) -> Verdict {
        self.counters.packets += 1;
        let Ok(packet) = Packet::parse(bytes) else {
            self.counters.malformed += 1;
            return Verdict::Accept;
        };
        if self.checksums == Checksums::Verify && !packet.checksum_is_valid() {
            self.counters.malformed += 1;
            return Verdict::Accept;
        }
        let Some(index) = self.entry_of(now, &packet, kernel) else { return Verdict::Accept };
        if let Some(verdict) = self.follow_successor(now, index, &packet) {
            return verdict;
        }
        let Some(Entry { session, control, .. }) = self.table.get_mut(index) else {
            return Verdict::Accept;
        };
        control.last = now;
        let from = control.side(packet.source_endpoint());
        let mut bench = Bench {
            now,
            index,
            policy: self.policy.within(control.network),
            kernel,
            control,
            pinholes: &mut self.pinholes,
            counters: &mut self.counters,
            events: &mut self.events,
        };
        let outcome = session.packet(from, &packet, &mut bench, &mut self.payload);
        let told = tell_kernel(&mut bench, session, &outcome, &mut self.injected);
        if session.is_over() {
            bench.close_all("the control connection ended");
        } else if session.wants_no_packet() {
            bench.close_all("the connection is not inspected any more");
        }
        if let Err(error) = &told {
            bench.failed(error);
        }
        let verdict = match outcome.forward {
            Forward::Unchanged => Verdict::Accept,
            Forward::Not => Verdict::Drop,
            // Numbers may be changed only once the kernel knows; the sender will send it again.
            Forward::Changed { .. } if told.is_err() => Verdict::Drop,
            Forward::Changed { seq, ack, payload, flags, urgent } => {
                let sent = session.map(from.peer());
                let sack = |[left, right]: [Seq; 2]| {
                    let (left, right) = (sent.acknowledge_left(left), sent.acknowledge(right));
                    left.is_before(right).then_some([left, right])
                };
                let mut whole = &self.payload[..];
                if let Some(Rest { start, flags }) = outcome.rest {
                    let (first, rest) = whole.split_at(start);
                    whole = first;
                    let seq = seq + start as u32; // within a packet
                    let edit = Edit { seq, ack, payload: Some(rest), flags, urgent: 0 };
                    packet.rebuild(&edit, sack, out);
                    if let Err(error) = send_rest(&mut bench, from, out, &mut self.injected) {
                        bench.failed(&error);
                    }
                }
                let payload = payload.then_some(whole);
                packet.rebuild(&Edit { seq, ack, payload, flags, urgent }, sack, out);
                Verdict::Replace
            }
        };
        if session.wants_no_packet() {
            self.table.remove(index);
        }
        verdict
    }

    /// Does what may wait until verdicts are given: closes in the kernel what was closed.
    pub fn settle(&mut self, kernel: &mut impl Kernel) {
        if self.pinholes.is_settled() {
            return;
        }
        if self.pinholes.settle(kernel).is_err() {
            self.counters.errors += 1;
        }
    }

    /// Closes all pinholes, used or not; sessions stay.
    pub fn close_all(&mut self, kernel: &mut impl Kernel) {
        for entry in self.table.iter_mut() {
            for held in std::mem::take(&mut entry.control.pinholes) {
                self.pinholes.close(held);
            }
        }
        self.settle(kernel);
    }

    /// Drops what is over by `now`. To be called again at the time that it gives, or a second
    /// later.
    pub fn expire(&mut self, now: Instant, kernel: &mut impl Kernel) -> Option<Instant> {
        while let Some((owner, serial)) = self.pinholes.next_expired(now) {
            let Some(Entry { control, .. }) = self.table.get_mut(owner) else { continue };
            let at = control.pinholes.iter().position(|p| p.is(serial) && !p.in_use);
            if let Some(at) = at {
                let held = control.pinholes.remove(at);
                let Control { id, client, server, .. } = *control;
                let what = What::Closed(held.pinhole, "nobody connected in time");
                self.pinholes.close(held);
                self.events.push(Event { session: id, client, server, what });
            }
        }
        for _ in 0..SWEEP.min(self.table.places()) {
            self.sweep = (self.sweep + 1) % self.table.places();
            let Some(entry) = self.table.get_mut(self.sweep) else { continue };
            let Entry { session, successors, control } = entry;
            let limit = match session.dialogue().phase() {
                _ if session.is_over() && session.is_adjusted() => LINGER,
                _ if session.is_over() => LINGER_UNADJUSTED,
                Phase::Silent => SILENCE,
                // Nothing is known of such a one that its next packet does not tell again.
                Phase::Joined if !session.is_adjusted() => SILENCE,
                _ => IDLE,
            };
            if now.saturating_duration_since(control.last) < limit {
                continue;
            }
            let greeted = |s: &Session| s.dialogue().phase() != Phase::Silent;
            match successors.iter().position(greeted) {
                Some(successor) if limit < IDLE => self.succeed(now, self.sweep, successor),
                _ => self.forget(self.sweep),
            }
        }
        self.settle(kernel);
        self.pinholes.next_deadline()
    }

    /// What was decided since this was last called.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// What was done since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How many control connections are followed, with those that are over and linger.
    pub fn session_count(&self) -> usize {
        self.table.len()
    }

    /// The control connections that are open.
    pub fn sessions(&self) -> impl Iterator<Item = SessionInfo> {
        let open = self.table.iter().filter(|entry| !entry.session.is_over());
        open.map(|Entry { session, control, .. }| SessionInfo {
            id: control.id,
            translation: control
                .translation
                .unwrap_or(Translation::identity(control.client, control.server)),
            state: session.state(),
            since: control.since,
            adjusted: session.wants_every_packet(),
            pinholes: control.pinholes.iter().filter(|p| !p.in_use).count(),
        })
    }

    /// The pinholes that nobody has used yet, as far as the dialogue tells.
    pub fn pinholes(&self) -> impl Iterator<Item = PinholeInfo> {
        self.table.iter().flat_map(|Entry { control, .. }| {
            control.pinholes.iter().filter(|p| !p.in_use).map(|held| PinholeInfo {
                session: control.id,
                pinhole: held.pinhole,
                kind: held.kind,
            })
        })
    }

    /// Drops the session between two endpoints, for tools that know that it is over.
    pub fn forget_between(&mut self, a: SocketAddr, b: SocketAddr, kernel: &mut impl Kernel) {
        if let Some(index) = self.table.find(&Key::between(a, b)) {
            self.forget(index);
            self.settle(kernel);
        }
    }

    /// The session between two endpoints, for tools that look at both sides of it.
    pub fn session(&mut self, a: SocketAddr, b: SocketAddr) -> Option<(&Session, Side)> {
        let index = self.table.find(&Key::between(a, b))?;
        let entry = self.table.get_mut(index)?;
        Some((&entry.session, entry.control.side(a)))
    }

    /// The entry that `packet` belongs to, made where it starts one.
    fn entry_of(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        kernel: &mut impl Kernel,
    ) -> Option<u32> {
        let key = Key::between(packet.source_endpoint(), packet.destination_endpoint());
        let found = self.table.find(&key);
        if found.is_some() && !packet.has(flags::SYN) {
            return found;
        }
        let (source, destination) = (packet.source(), packet.destination());
        if packet.has(flags::SYN | flags::ACK) {
            if let Some(index) = found {
                let Entry { session, successors, .. } = self.table.get_mut(index)?;
                if session.is_unanswered() {
                    // What the client said in its SYN was not read.
                    *session = Session::opened_unread(packet);
                } else if !session.began_with(packet)
                    && !successors.iter().any(|s| s.began_with(packet))
                {
                    if successors.len() == MAX_SUCCESSORS {
                        successors.remove(0);
                    }
                    successors.push(Session::opened(packet));
                }
                return Some(index);
            }
            let session = Session::opened(packet);
            return self.insert(now, destination, source, session, kernel);
        }
        if found.is_some() || packet.payload().is_empty() {
            return found;
        }
        // The start was not seen. Which end is the client shows by its port, if at all.
        let is_control =
            |endpoint: SocketAddr| self.policy.control_ports.contains(&endpoint.port());
        let side = match (is_control(destination), is_control(source)) {
            (true, false) => Side::Client,
            (false, true) => Side::Server,
            _ => {
                let translation = kernel.translation(source, destination).ok()??;
                if translation.client == source { Side::Client } else { Side::Server }
            }
        };
        let session = Session::joined(side, packet);
        match side {
            Side::Client => self.insert(now, source, destination, session, kernel),
            Side::Server => self.insert(now, destination, source, session, kernel),
        }
    }

    fn insert(
        &mut self,
        now: Instant,
        client: SocketAddr,
        server: SocketAddr,
        session: Session,
        kernel: &mut impl Kernel,
    ) -> Option<u32> {
        let network = self.policy.network_of(client.ip(), server.ip());
        if network.is_some_and(|at| !self.policy.networks[usize::from(at)].inspect) {
            self.leave_alone(client, server, kernel);
            return None;
        }
        if self.table.len() >= self.policy.max_sessions {
            self.counters.uninspected += 1;
            return None;
        }
        let control = Control {
            id: self.last_id.fetch_add(1, Ordering::Relaxed) + 1,
            client,
            server,
            network,
            translation: None,
            attention: None,
            pinholes: Vec::new(),
            since: now,
            last: now,
        };
        Some(self.table.insert(Entry { session, successors: Vec::new(), control }))
    }

    /// A packet by the numbers of a connection that may have taken the place of the one at
    /// `index`: the client's makes sure that it has, and what the server says before is read.
    fn follow_successor(
        &mut self,
        now: Instant,
        index: u32,
        packet: &Packet<'_>,
    ) -> Option<Verdict> {
        let Entry { session, successors, control } = self.table.get_mut(index)?;
        if successors.is_empty() || packet.has(flags::SYN) {
            return None;
        }
        let from = control.side(packet.source_endpoint());
        let successor = successors.iter().position(|s| s.expects(from, packet))?;
        if session.expects(from, packet) {
            return None;
        }
        if from == Side::Client {
            self.succeed(now, index, successor);
            return None;
        }
        control.last = now;
        let passes = successors[successor].overhear(packet, &mut self.payload);
        Some(if passes { Verdict::Accept } else { Verdict::Drop })
    }

    /// The connection at `index` is another one now.
    fn succeed(&mut self, now: Instant, index: u32, successor: usize) {
        let Some(Entry { session, successors, control }) = self.table.get_mut(index) else {
            return;
        };
        *session = successors.swap_remove(successor);
        successors.clear();
        for held in std::mem::take(&mut control.pinholes) {
            self.pinholes.close(held);
        }
        control.id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        (control.translation, control.attention) = (None, None);
        (control.since, control.last) = (now, now);
    }

    /// Has no packet of the connection queued any more.
    fn leave_alone(&mut self, client: SocketAddr, server: SocketAddr, kernel: &mut impl Kernel) {
        let told = match kernel.translation(client, server) {
            Ok(Some(translation)) => kernel.attend(&translation, Attention::None),
            // It is told with its next packet.
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let what = match told {
            Ok(()) => What::Turned("left alone: its [[network]] is not inspected"),
            Err(KernelError::Unknown) => return,
            Err(error) => {
                self.counters.errors += 1;
                What::Failed(error.to_string())
            }
        };
        let session = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        self.events.push(Event { session, client, server, what });
    }

    /// Drops the entry at `index`, and what it holds.
    fn forget(&mut self, index: u32) {
        if let Some(Entry { control, .. }) = self.table.remove(index) {
            for held in control.pinholes {
                self.pinholes.close(held);
            }
        }
    }
}

/// Tells the kernel what the connection's later packets need, and sends what is to be sent.
fn tell_kernel<K: Kernel>(
    bench: &mut Bench<'_, K>,
    session: &Session,
    outcome: &Outcome,
    buffer: &mut Vec<u8>,
) -> Result<(), KernelError> {
    let attention = if session.wants_every_packet() {
        Some(Attention::Every)
    } else if session.wants_no_packet() {
        Some(Attention::None)
    } else {
        None
    };
    if let Some(wanted) = attention
        && bench.control.attention.is_none_or(|(told, at)| {
            told != wanted || bench.now.saturating_duration_since(at) >= REMINDER
        })
    {
        match bench.translation().and_then(|t| bench.kernel.attend(&t, wanted)) {
            Ok(()) => bench.control.attention = Some((wanted, bench.now)),
            // It will be known, perhaps with another translation, once this packet has passed.
            Err(KernelError::Unknown) => bench.control.translation = None,
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
        packet::acknowledgement(source, destination, seq, ack, window, timestamps, buffer);
        bench.kernel.inject(buffer)?;
    }
    Ok(())
}

/// Sends `segment`, the rest of what `from` sent, to the other end: as a packet of its own, which
/// nothing translates any more.
fn send_rest<K: Kernel>(
    bench: &mut Bench<'_, K>,
    from: Side,
    segment: &[u8],
    buffer: &mut Vec<u8>,
) -> Result<(), KernelError> {
    let (source, destination) = bench.translation()?.seen_by(from.peer());
    let Ok(segment) = Packet::parse(segment) else { return Ok(()) };
    packet::with_endpoints(&segment, source, destination, buffer);
    bench.kernel.inject(buffer)
}
