//! Packet in, verdict and wishes out; the table of sessions.
//!
//! Sans-I/O: the engine is handed packets and the time, and asks the kernel through [`Kernel`].
//! It never touches a socket or a clock, so the daemon, `replay`, the benchmarks and the tests all
//! run the same code.

mod admission;
mod ahead;
mod bench;
mod control;
mod copies;
mod early;
mod event;
mod index;
mod kernel;
mod listing;
mod memory;
mod parting;
mod pinholes;
mod saved;
mod shares;
mod table;
mod telling;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Which end sent a packet.
pub use crate::session::Side;
/// What the kernel is told of the dialogue.
pub use crate::session::harmless;
pub use admission::Limits;
use bench::Bench;
use control::{Control, Entry, Epoch};
pub use copies::Handled;
use copies::Interrupted;
pub use early::{Early, Kept, Taken, Turn, Waiting};
use event::Events;
pub use event::{Action, Decision, Event, What};
pub use kernel::{Answer, Attention, Kernel, KernelError, Opening, Pinhole, Translation};
pub use listing::{PinholeInfo, SessionInfo};
use memory::Memory;
use parting::part;
use pinholes::PinholeTable;
use saved::Changes;
pub use saved::{BadRecord, RECORD_FORMAT, Restored};
use shares::Shares;
use table::{Key, Table};
use telling::{Injection, attend_afresh, send_rest, tell_kernel};
use watch::Watched;

use crate::{
    packet::{Edit, Offload, Packet, Seq, flags},
    policy::Policy,
    session::{Forward, Phase, Rest, Session},
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
    /// It overtook what precedes it, or its receiver is asked first what it has, and it may wait for that: it is to be handed
    /// in again when it is its [turn](Engine::turn). Only one that [may wait](Queued::may_wait).
    Early,
}

/// How a packet comes here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Queued {
    /// What is left to do of it.
    pub offload: Offload,
    /// Whether the packet selection says that it ended a calm. Not of one that waited: another may have begun since.
    pub ended_calm: bool,
    /// Whether it says that the packet begins where one did that ended a calm before: the kernel may have dropped that.
    pub ended_calm_before: bool,
    /// Whether it may wait for what it overtook.
    pub may_wait: bool,
    /// Which end sent it, where the packet selection says so: connection tracking knows, ports do not always show it.
    pub from: Option<Side>,
    /// Whether the packet selection queued it because it queues every packet of its connection.
    pub every: bool,
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
    /// Packets that passed, and were read from copies.
    pub copies: u64,
    /// Packets that could not be read and passed.
    pub malformed: u64,
    /// Announcements rewritten.
    pub rewrites: u64,
    /// Pinholes opened.
    pub pinholes_opened: u64,
    /// Pinholes whose transfer began, as the server said.
    pub pinholes_used: u64,
    /// Announcements refused.
    pub pinholes_refused: u64,
    /// Other commands refused.
    pub commands_refused: u64,
    /// Connections of which packets were missed.
    pub lost: u64,
    /// Connections that became unreadable, as they are encrypted.
    pub encrypted: u64,
    /// Packets of connections not followed because there were too many.
    pub uninspected: u64,
    /// Requests that the kernel refused.
    pub errors: u64,
    /// What was not done as there was too much of it.
    pub limits: Limits,
}

/// What the kernel was told is told again after this long, as conntrack may have been flushed.
const REMINDER: Duration = Duration::from_secs(1);

/// The engine.
pub struct Engine {
    policy: Policy,
    checksums: Checksums,
    table: Table,
    epoch: Epoch,
    pinholes: PinholeTable,
    memory: Memory,
    shares: Shares,
    counters: Counters,
    events: Events,
    /// Common to engines beside each other.
    last_id: Arc<AtomicU64>,
    sweep: u32,
    /// Where changes are noted, what did.
    changes: Option<Changes>,
    payload: Vec<u8>,
    /// What is to be sent.
    injections: Vec<Injection>,
    /// For records.
    record: Vec<u8>,
    /// Whether the packet selection takes answers.
    answers: bool,
    handled: Handled,
    has_just_changed: bool,
    interrupted: Interrupted,
    watched: Watched,
}

impl Engine {
    /// An engine that has seen nothing.
    pub fn new(policy: Policy, checksums: Checksums) -> Self {
        Self {
            policy,
            checksums,
            table: Table::default(),
            epoch: Epoch::default(),
            pinholes: PinholeTable::default(),
            memory: Memory::default(),
            shares: Shares::default(),
            counters: Counters::default(),
            events: Events::default(),
            last_id: Arc::default(),
            sweep: 0,
            changes: None,
            payload: Vec::new(),
            injections: Vec::new(),
            record: Vec::new(),
            answers: false,
            handled: Handled::NONE,
            has_just_changed: false,
            interrupted: Interrupted::default(),
            watched: Watched::default(),
        }
    }

    /// An engine that has seen nothing, for other connections through the same kernel: sessions are
    /// numbered in one row, an external port is given out once, and limits hold over both.
    pub fn beside(&self) -> Self {
        Self {
            table: self.table.beside(),
            pinholes: self.pinholes.beside(),
            memory: self.memory.beside(),
            last_id: Arc::clone(&self.last_id),
            ..Self::new(self.policy.clone(), self.checksums)
        }
    }

    /// From now on `policy` holds. What is open stays open, and what is followed is followed.
    pub fn set_policy(&mut self, policy: Policy) {
        if !policy.tells_networks_as(&self.policy) {
            for Entry { control, .. } in self.table.iter_mut() {
                let (client, server) = (control.client().ip(), control.server().ip());
                control.set_network(policy.network_of(client, server));
            }
        }
        self.policy = policy;
        self.share_again();
    }

    /// Takes one packet of a selection that tells nothing, as [`queued`](Self::queued).
    pub fn packet(
        &mut self,
        now: Instant,
        bytes: &[u8],
        kernel: &mut impl Kernel,
        out: &mut Vec<u8>,
    ) -> Verdict {
        self.queued(now, bytes, Queued::default(), kernel, out)
    }

    /// Takes one packet, from its IP header on, and decides about it. For [`Verdict::Replace`] the
    /// packet that goes on instead is in `out`. When this returns, what the packet announces can
    /// be connected to; give the verdict with the [`answer`](Self::answer), then call [`settle`](Self::settle).
    ///
    /// What replaces a packet has its checksum, and is never shorter than it if segments are joined in it (see
    /// [`part`]).
    pub fn queued(
        &mut self,
        now: Instant,
        bytes: &[u8],
        how: Queued,
        kernel: &mut impl Kernel,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let Queued { offload, ended_calm, ended_calm_before, may_wait, every, .. } = how;
        self.handled = Handled::NONE;
        self.has_just_changed = false;
        self.counters.packets += 1;
        let Ok(packet) = Packet::parse(bytes).map(|packet| packet.left_to(offload)) else {
            self.counters.malformed += 1;
            return Verdict::Accept;
        };
        let is_summed = self.checksums == Checksums::Verify && !offload.unsummed;
        if is_summed && !packet.checksum_is_valid() {
            self.counters.malformed += 1;
            return Verdict::Accept;
        }
        let (source, destination) = packet.endpoints();
        let key = Key::between(source, destination);
        let Some(index) = self.entry_of(now, &packet, &key, how, kernel) else {
            return Verdict::Accept;
        };
        let moment = self.epoch.moment(now);
        let Some(Entry { session, control }) = self.table.get_mut(index) else {
            return Verdict::Accept;
        };
        control.last = moment;
        let from = control.side(source);
        let has_unseen = session.has_unseen_lines();
        // No calm has begun since: that of before a restart ended while nobody was there.
        let ended_calm = ended_calm || ended_calm_before && has_unseen;
        if control.attention() == Some(Attention::Calm) {
            if ended_calm {
                control.told(Attention::Payload, moment);
            } else if from == Side::Client && !packet.payload().is_empty() {
                return self.interrupt(now, index, kernel);
            }
        } else if self.interrupted.has(now, index) && from == Side::Client {
            return Verdict::Drop;
        }
        if session.has_ended() && !packet.has(flags::SYN) {
            return self.answer_ended(index, from, &packet, kernel);
        }
        let is_unsaid = session.dialogue().phase() == Phase::Silent && control.rival().is_none();
        if is_unsaid && !packet.has(flags::SYN) && !session.concerns(from, &packet) {
            // Of a connection that is not known: the SYN-ACK was a stranger's.
            return Verdict::Accept;
        }
        self.handled = Handled { index, id: control.id };
        if may_wait && session.is_early(from, &packet) {
            self.counters.packets -= 1; // it will be counted
            return Verdict::Early;
        }
        let mut bench = Bench {
            now,
            moment,
            index,
            policy: self.policy.within(control.network()),
            kernel,
            control,
            pinholes: &mut self.pinholes,
            counters: &mut self.counters,
            events: &mut self.events,
            answers: self.answers,
        };
        let read = [Side::Client, Side::Server].map(|side| session.next_of(side));
        let is_end = ended_calm && has_unseen;
        let changed_packets =
            session.changes_packets() || bench.control.attention() == Some(Attention::Every);
        let outcome = session.packet_after(is_end, from, &packet, &mut bench, &mut self.payload);
        self.has_just_changed = !changed_packets && session.changes_packets();
        let asks = may_wait && session.is_asking(from, &packet);
        let is_new = read != [Side::Client, Side::Server].map(|side| session.next_of(side));
        let told = tell_kernel(&mut bench, session, &outcome, every, &mut self.injections);
        let attention = bench.control.attention();
        if matches!(attention, Some(Attention::Watched | Attention::Every))
            && !session.changes_packets()
        {
            self.watched.add(now, index, bench.control);
        }
        if session.is_over() {
            bench.close_all("the control connection ended");
        } else if session.wants_no_packet() {
            bench.close_all("the connection is not inspected any more");
        }
        if let Err(error) = &told {
            bench.failed(error);
        }
        let sent = session.map(from.peer());
        let acknowledged = |[left, right]: [Seq; 2]| {
            let (left, right) = (sent.acknowledge_left(left), sent.acknowledge(right));
            left.is_before(right).then_some([left, right])
        };
        let verdict = match outcome.forward {
            Forward::Unchanged => Verdict::Accept,
            Forward::Not => Verdict::Drop,
            // Numbers may be changed only once the kernel knows; the sender will send it again.
            Forward::Changed { .. } if told.is_err() => Verdict::Drop,
            Forward::Changed { seq, ack, flags, .. } if asks => {
                let edit = Edit { seq, ack, payload: Some(&[]), flags, urgent: 0 };
                packet.rebuild(&edit, acknowledged, out);
                send_rest(&mut bench, from, out, &mut self.injections);
                bench.counters.packets -= 1; // it will be counted
                Verdict::Early
            }
            // The kernel drops one that is not longer than its first segment was, and does not say how long that is.
            Forward::Changed { seq, ack, payload: true, flags, urgent }
                if offload.joined && self.payload.len() < packet.payload().len() =>
            {
                let edit = Edit { seq, ack, payload: Some(&self.payload), flags, urgent };
                let limit = session.longest_segment(from);
                for segment in part(&packet, &edit, limit, acknowledged) {
                    send_rest(&mut bench, from, &segment, &mut self.injections);
                }
                Verdict::Drop
            }
            Forward::Changed { seq, ack, payload, flags, urgent } => {
                let mut whole = &self.payload[..];
                if let Some(Rest { start, flags }) = outcome.rest {
                    let (first, rest) = whole.split_at(start);
                    whole = first;
                    let seq = seq + start as u32; // within a packet
                    let edit = Edit { seq, ack, payload: Some(rest), flags, urgent: 0 };
                    packet.rebuild(&edit, acknowledged, out);
                    send_rest(&mut bench, from, out, &mut self.injections);
                }
                let payload = payload.then_some(whole);
                packet.rebuild(&Edit { seq, ack, payload, flags, urgent }, acknowledged, out);
                Verdict::Replace
            }
        };
        let ends = flags::FIN | flags::RST | flags::SYN;
        let says = is_new || packet.flags() & ends != 0;
        if session.wants_no_packet() {
            self.remove(index);
        } else if says && outcome.forward != Forward::Not || has_unseen {
            // Of others nothing is lost that the next packet does not tell again.
            self.note_change(index);
        }
        self.weigh(now, index, kernel);
        self.enlist(now, index, kernel);
        verdict
    }

    /// Does what may wait until verdicts are given, and changes are written: sends what is to be sent,
    /// closes in the kernel what was closed.
    pub fn settle(&mut self, kernel: &mut impl Kernel) {
        for Injection { session, client, server, packet } in self.injections.drain(..) {
            if let Err(error) = kernel.inject(&packet) {
                self.counters.errors += 1;
                let what = What::Failed(error.to_string());
                self.events.push(Event { session, client, server, what });
            }
        }
        if !self.pinholes.is_settled() && self.pinholes.settle(kernel).is_err() {
            self.counters.errors += 1;
        }
    }

    /// Closes all pinholes, used or not; sessions stay.
    pub fn close_all(&mut self, kernel: &mut impl Kernel) {
        for entry in self.table.iter_mut() {
            for held in entry.control.take_pinholes() {
                self.pinholes.close(held);
            }
        }
        self.pinholes.settle_spent();
        self.settle(kernel);
    }

    /// Drops what is over by `now`. To be called again at the time that it gives, or a second
    /// later.
    pub fn expire(&mut self, now: Instant, kernel: &mut impl Kernel) -> Option<Instant> {
        while let Some((owner, serial)) = self.pinholes.next_expired(now) {
            let Some(Entry { control, .. }) = self.table.get_mut(owner) else { continue };
            let at = control.pinholes().iter().position(|p| p.is(serial) && !p.in_use);
            if let Some(held) = at.and_then(|at| control.let_go(at)) {
                self.events.push(control.event(What::Expired(held.pinhole, held.kind)));
                self.pinholes.close(held);
            }
        }
        self.end_watches(now, kernel);
        self.sweep(now);
        self.keep_budget(now, kernel);
        self.pinholes.settle_spent();
        self.settle(kernel);
        self.pinholes.next_deadline()
    }

    /// What was decided since this was last called; of much the beginning, and of how much more only
    /// the number is known.
    pub fn take_events(&mut self) -> (Vec<Event>, u64) {
        self.events.take()
    }

    /// What was done since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How many control connections are followed, with those that are over and linger.
    pub fn session_count(&self) -> usize {
        self.table.len()
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
        Some((&entry.session, entry.control.side(a.into())))
    }

    /// The entry that `packet` belongs to, made where it starts one.
    fn entry_of(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        key: &Key,
        how: Queued,
        kernel: &mut impl Kernel,
    ) -> Option<u32> {
        let found = self.table.find(key);
        if let Some(index) = found
            && !packet.has(flags::SYN)
        {
            let is_contested = self.table.get_mut(index)?.control.rival().is_some();
            return if is_contested { self.decide(now, index, packet, kernel) } else { found };
        }
        let (source, destination) = (packet.source(), packet.destination());
        if packet.has(flags::SYN | flags::ACK) {
            let Some(index) = found else {
                let session = Session::opened(packet);
                return self.insert(now, destination, source, session, kernel);
            };
            let Entry { session, control } = self.table.get_mut(index)?;
            if session.began_with(packet) {
                return found;
            }
            // All that is known of such a one is that something was said before, in the SYN.
            let is_unknown = session.dialogue().phase() == Phase::Joined && !session.is_adjusted();
            if !(control.spoke_in_syn && is_unknown) {
                return self.contest(now, index, packet, how.every, kernel);
            }
            self.forget(index);
            let session = Session::opened_unread(packet);
            return self.insert(now, destination, source, session, kernel);
        }
        if packet.payload().is_empty() {
            return found;
        }
        if let Some(index) = found {
            self.table.get_mut(index)?.control.spoke_in_syn = true;
            return found;
        }
        // The start was not seen. Where nobody says which end is the client its port shows it, if at all; nobody is asked,
        // as whoever forges such packets would have it asked for each.
        let side = how.from.or_else(|| self.side_by_port(source, destination))?;
        let session = Session::joined(side, packet);
        let index = match side {
            Side::Client => self.insert(now, source, destination, session, kernel),
            Side::Server => self.insert(now, destination, source, session, kernel),
        }?;
        self.table.get_mut(index)?.control.spoke_in_syn = packet.has(flags::SYN);
        Some(index)
    }

    fn side_by_port(&self, source: SocketAddr, destination: SocketAddr) -> Option<Side> {
        let is_control =
            |endpoint: SocketAddr| self.policy.control_ports.contains(&endpoint.port());
        match (is_control(destination), is_control(source)) {
            (true, false) => Some(Side::Client),
            (false, true) => Some(Side::Server),
            _ => None,
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
        if !self.policy.inspects(network) {
            self.leave_alone(client, server, kernel);
            return None;
        }
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let moment = self.epoch.moment(now);
        let mut control = Control::new(id, client, server, moment);
        control.set_network(network);
        // For one of which as little is known no other is given up.
        let is_joined = session.dialogue().phase() == Phase::Joined;
        if !(if is_joined { self.has_room() } else { self.make_room(now, kernel) }) {
            self.counters.uninspected += 1;
            self.events
                .push(control.event(What::Limit("not followed: there are max-sessions".into())));
            return None;
        }
        let index = self.table.insert(Entry { session, control });
        self.note_change(index);
        Some(index)
    }

    /// Has no packet of the connection queued any more.
    fn leave_alone(&mut self, client: SocketAddr, server: SocketAddr, kernel: &mut impl Kernel) {
        let what = match attend_afresh(kernel, client, server, Attention::None) {
            Ok(()) => What::Turned("left alone: its [[network]] is not inspected"),
            // It is told with its next packet.
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
    fn forget(&mut self, index: u32) -> Option<Entry> {
        let mut entry = self.remove(index)?;
        for held in entry.control.take_pinholes() {
            self.pinholes.close(held);
        }
        Some(entry)
    }

    fn remove(&mut self, index: u32) -> Option<Entry> {
        let entry = self.table.remove(index)?;
        if entry.control.weighs {
            self.forget_memory(index);
        }
        if entry.control.counts {
            self.uncount(entry.control.client(), index);
        }
        self.note_gone(entry.control.id);
        Some(entry)
    }
}
