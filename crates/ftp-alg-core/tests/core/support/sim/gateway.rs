//! The gateway of the simulated network: its kernel decides about what arrives, queues it, and does what verdicts say; its
//! daemon's worker goes from stage to stage.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{self, Event, PacketMeta, Translation},
    packet::{Seq, flags},
    session::Side,
};

use super::{
    super::{
        crash::Fate,
        link::{Flight, Origin, Place},
        segment::{Fault, Segment},
        selection::{Mark, Way},
    },
    Sim,
    daemon::{Decision, Given, Packet},
    queues::{Due, Stage},
};

impl Sim {
    pub(super) fn at_gateway(&mut self, flight: Flight) {
        let Flight { from, origin, bytes, .. } = flight;
        if let Some(passed) = self.inspect_in_kernel(from, &bytes) {
            return self.forward(from, origin, passed);
        }
        match self.select_for_queue(from, &bytes) {
            None => {}
            Some(Way::Passes) => self.forward(from, origin, bytes),
            Some(Way::Queued(mark)) => {
                if self.traces {
                    self.trace(&format!("queued {mark:?}"), from, &bytes);
                }
                let may_wait = self.is_patient;
                let packet =
                    self.packet_of(Packet { number: 0, from, origin, bytes, mark, may_wait });
                if !self.queues.settings.is_at_once() {
                    self.dropped += u64::from(!self.queues.push(self.now, packet));
                    return;
                }
                if let Some(bytes) = self.decide_at_once(packet) {
                    self.forward(from, origin, bytes);
                }
            }
        }
    }

    /// The packet by a number of its own.
    fn packet_of(&mut self, packet: Packet) -> Packet {
        self.packets += 1;
        Packet { number: self.packets, ..packet }
    }

    fn forward(&mut self, from: Side, origin: Origin, bytes: Vec<u8>) {
        self.air.send(Flight { from, to: Place::End, origin, bytes }, self.now);
    }

    /// What the rules make of a packet, `None` if it is dropped before it comes to them.
    fn select_for_queue(&mut self, from: Side, bytes: &[u8]) -> Option<Way> {
        let read = Segment::read(bytes);
        if matches!(read, Err(Fault::Ip)) {
            return None;
        }
        let segment = read.as_ref().ok().map(|(_, _, segment)| segment);
        let way = self.selection.way(self.now, self.kernel.queue_mode, from, segment);
        if way == Way::Passes {
            self.trace("passes", from, bytes);
        }
        Some(way)
    }

    /// What goes on of a packet that arrives, and has its verdict at once.
    pub(super) fn select(&mut self, from: Side, bytes: Vec<u8>) -> Option<Vec<u8>> {
        if let Some(passed) = self.inspect_in_kernel(from, &bytes) {
            return Some(passed);
        }
        match self.select_for_queue(from, &bytes)? {
            Way::Passes => Some(bytes),
            Way::Queued(mark) => {
                let origin = Origin::Genuine;
                let packet = Packet { number: 0, from, origin, bytes, mark, may_wait: false };
                let packet = self.packet_of(packet);
                self.decide_at_once(packet)
            }
        }
    }

    /// Has the first worker decide about one packet, and gives what goes on. A crash drops it.
    fn decide_at_once(&mut self, packet: Packet) -> Option<Vec<u8>> {
        let (now, number) = (self.instant(), packet.number);
        self.daemon.take_batch(now, vec![packet], &mut self.kernel);
        let mut own = None;
        for (number_of, from, origin, bytes) in self.finish_at_once(true) {
            if number_of == number {
                own = Some(bytes);
            } else {
                self.forward(from, origin, bytes);
            }
        }
        own
    }

    /// Has the daemon carry out what it has decided, and gives what goes on. It may crash meanwhile.
    fn finish_at_once(&mut self, may_crash: bool) -> Vec<(u64, Side, Origin, Vec<u8>)> {
        let fate = if may_crash { self.crashes.fate() } else { Fate::GoesOn };
        if let Fate::CrashesAfter(calls) = fate {
            self.life.ends_after(calls);
        }
        self.daemon.finish(&mut self.kernel);
        let passed = self.settle_daemon();
        if fate != Fate::GoesOn {
            self.dropped += u64::from(passed.is_empty());
            self.end_daemon();
            self.start_daemon();
        }
        passed
    }

    /// What goes on by the verdicts that were given, and what the daemon has sent.
    pub(super) fn settle_daemon(&mut self) -> Vec<(u64, Side, Origin, Vec<u8>)> {
        let (given, events) = self.daemon.take_given();
        let mut passed = Vec::new();
        for given in given {
            let number = given.packet.number;
            passed.extend(
                self.give(given).map(|(from, origin, bytes)| (number, from, origin, bytes)),
            );
        }
        self.settled(events);
        let injected = std::mem::take(&mut self.kernel.injected);
        injected.into_iter().for_each(|packet| self.deliver_injected(packet));
        passed
    }

    /// The daemon is killed, and started again some time later.
    pub(super) fn kill(&mut self) {
        self.end_daemon();
        if self.queues.settings.is_at_once() {
            self.start_daemon();
        }
    }

    fn end_daemon(&mut self) {
        self.daemon.crash();
        self.kernel.injected.clear();
        self.has_crashed = true;
        self.dropped += self.queues.crash(self.now) as u64;
        self.trace_daemon("crashes");
    }

    fn start_daemon(&mut self) {
        self.queues.start();
        self.kernel.now = self.now();
        let now = self.instant();
        self.daemon.restart(now);
        self.daemon.begin(now, &mut self.kernel);
        let (_, events) = self.daemon.take_given();
        self.settled(events);
        self.trace_daemon("starts");
    }

    /// What becomes of one packet of which the packet selection says this, and what goes on of it.
    /// [`others`](Self::others) has what becomes of packets that waited for it.
    pub fn decided(
        &mut self,
        now: Instant,
        bytes: &[u8],
        how: PacketMeta,
    ) -> (engine::PacketOutcome, Vec<u8>) {
        self.decide(now, &[bytes], how).remove(0)
    }

    /// As [`decided`](Self::decided), of packets in one batch.
    pub fn decide(
        &mut self,
        now: Instant,
        packets: &[&[u8]],
        how: PacketMeta,
    ) -> Vec<(engine::PacketOutcome, Vec<u8>)> {
        let (from, origin, first) = (Side::Client, Origin::Genuine, self.packets + 1); // any side
        let mut batch = Vec::new();
        for bytes in packets {
            let (bytes, mark) = (bytes.to_vec(), Mark::From(from));
            let packet = Packet { number: 0, from, origin, bytes, mark, may_wait: false };
            batch.push((self.packet_of(packet), how));
        }
        self.daemon.take(now, batch, &mut self.kernel);
        self.daemon.finish(&mut self.kernel);
        let (given, events) = self.daemon.take_given();
        self.events.extend(events);
        let mut outcomes = vec![(engine::PacketOutcome::Wait, Vec::new()); packets.len()];
        self.others.clear();
        for given in given {
            match given.packet.number.checked_sub(first) {
                Some(place) => outcomes[place as usize] = outcome(given),
                None => self.others.push(given),
            }
        }
        outcomes
    }

    /// The engine forgets the connection.
    pub fn forget(&mut self) {
        let Translation { client, server, .. } = self.translation;
        self.engine().sessions.forget_between(client, server);
    }

    /// The gateway crashes, having written what it knew.
    pub fn crash(&mut self) {
        self.crash_for(Duration::ZERO);
    }

    /// The same, and it is back so much later.
    pub fn crash_for(&mut self, away: Duration) {
        self.expire();
        self.end_daemon();
        self.now += away.as_micros() as u64;
        self.start_daemon();
    }

    /// The daemon is killed. The next one has read what it wrote, and has not looked at the kernel yet.
    pub fn kill_alone(&mut self) {
        let now = self.instant();
        self.daemon.restart(now);
    }

    /// About once a second, and when something in the reorder queue has waited for long enough.
    pub fn expire(&mut self) {
        let now = self.instant();
        self.daemon.expire(now, &mut self.kernel);
        if self.queues.settings.is_at_once() {
            for (_, from, origin, bytes) in self.finish_at_once(false) {
                self.forward(from, origin, bytes);
            }
        } else {
            self.finish();
        }
    }

    /// Has the daemon carry out what it has decided. Gives when all has come of it.
    fn finish(&mut self) -> u64 {
        self.daemon.finish(&mut self.kernel);
        let (given, events) = self.daemon.take_given();
        self.settled(events);
        let injected = std::mem::take(&mut self.kernel.injected);
        self.queues.give(self.now, given, injected)
    }

    /// Does what is due next in the daemon.
    pub(super) fn work(&mut self) {
        self.kernel.now = self.now();
        let Some(due) = self.queues.pop() else { return };
        match due {
            Due::Worker => {
                let is_killed = self.crashes.strikes();
                if is_killed {
                    self.life.ends_after(self.crashes.calls());
                }
                self.work_on();
                if is_killed {
                    self.kill();
                }
            }
            Due::Verdict(given) => {
                if let Some((from, origin, bytes)) = self.give(given) {
                    self.forward(from, origin, bytes);
                }
            }
            Due::Injected(packets) => {
                packets.into_iter().for_each(|packet| self.deliver_injected(packet));
            }
            Due::Start => self.start_daemon(),
            Due::Read => self.read_fast_path_lines(),
        }
    }

    /// The next stage of the worker.
    fn work_on(&mut self) {
        if self.traces {
            self.trace_daemon(&format!("{:?}", self.queues.stage));
        }
        match self.queues.stage {
            Stage::Idle => {}
            Stage::Receive => {
                let (at, packets) = (self.instant(), self.queues.receive());
                self.daemon.take_batch(at, packets, &mut self.kernel);
                self.queues.go_on(self.now, Stage::Finish);
            }
            Stage::Finish => {
                let last = self.finish();
                if self.queues.is_empty() {
                    self.queues.stage = Stage::Idle;
                } else {
                    self.queues.go_on(last, Stage::Receive);
                }
            }
        }
    }

    /// What the daemon did that may wait for verdicts.
    fn settled(&mut self, events: Vec<Event>) {
        self.events.extend(events);
        self.check_pinholes();
    }

    /// The kernel does what a verdict says. Gives what goes on.
    fn give(&mut self, given: Given) -> Option<(Side, Origin, Vec<u8>)> {
        let Given { packet: Packet { from, origin, bytes, .. }, decision } = given;
        let passed = match decision {
            Decision::Accept => {
                self.trace("accepted", from, &bytes);
                self.accepted += 1;
                bytes
            }
            Decision::Replace(new) => {
                self.trace("replaced", from, &new);
                self.replaced += 1;
                assert!(Segment::read(&bytes).is_ok(), "it passes unread");
                self.check_replaced(from, &bytes, &new);
                new
            }
            Decision::Drop => {
                self.trace("dropped", from, &bytes);
                self.dropped += 1;
                assert!(Segment::read(&bytes).is_ok(), "it passes unread");
                return None;
            }
        };
        Some((from, origin, passed))
    }

    /// A moment of its own, as the clock of a real gateway gives them.
    pub(super) fn instant(&mut self) -> Instant {
        self.instants = if self.instants.0 == self.now {
            (self.now, (self.instants.1 + 1).min(999))
        } else {
            (self.now, 0)
        };
        self.kernel.now = self.now();
        self.base + self.now() + Duration::from_nanos(self.instants.1)
    }

    /// A packet that takes the place of another is valid, and says the same of all that is no
    /// concern of ours.
    pub(super) fn check_replaced(&self, from: Side, old: &[u8], new: &[u8]) {
        let (old, (source, destination, new)) = (Segment::checked(old).2, Segment::checked(new));
        assert_eq!((source, destination), self.endpoints(from));
        assert_eq!((new.ecn, new.ip_options), (old.ecn, old.ip_options));
        assert_eq!(new.timestamps, old.timestamps);
        let is_raised = from == Side::Client && (1..256).contains(&old.window) && new.window == 256;
        assert!(is_raised || new.window == old.window, "{} after {}", new.window, old.window);
    }

    pub(super) fn trace(&self, what: &str, from: Side, bytes: &[u8]) {
        if self.traces {
            let shown = Segment::read(bytes).map(|(_, _, s)| {
                let text = String::from_utf8_lossy(&s.payload).into_owned();
                format!(
                    "seq {} ack {} flags {:#04x} sack {:?} {text:?}",
                    s.seq, s.ack, s.flags, s.sack
                )
            });
            eprintln!("{:>9}us {what:<16} {from:?} {shown:?}", self.now);
        }
    }

    fn trace_daemon(&self, what: &str) {
        if self.traces {
            eprintln!("{:>9}us daemon: {what}", self.now);
        }
    }

    pub(super) fn deliver_injected(&mut self, bytes: Vec<u8>) {
        let (source, destination, segment) = Segment::checked(&bytes);
        let Translation { client, client_external, server, server_external, .. } = self.translation;
        let to = if destination == client { Side::Client } else { Side::Server };
        let expected: (SocketAddr, SocketAddr) = match to {
            Side::Client => (server_external, client),
            Side::Server => (client_external, server),
        };
        assert_eq!((source, destination), expected, "what the addressee knows");
        assert!(segment.has(flags::ACK) && !segment.has(flags::SYN) && !segment.has(flags::RST));
        self.trace("injected", to.peer(), &bytes);
        let flight = Flight { from: to.peer(), to: Place::End, origin: Origin::Genuine, bytes };
        self.air.send(flight, self.now);
    }

    /// What a SACK block claims to `side`, which sent it, the other end has.
    pub(super) fn check_claims(&mut self, side: Side, segment: &Segment) {
        let Translation { client, server, .. } = self.translation;
        if self.server.received() == 0 {
            return; // the gateway may still follow the connection before
        }
        let Some((session, _)) = self.daemon.engine().sessions.session_between(client, server)
        else {
            return;
        };
        let map = session.map(side).clone();
        let sender = if side == Side::Client { &self.client } else { &self.server };
        let receiver = if side == Side::Client { &self.server } else { &self.client };
        let awaits = |number| sender.awaits(number);
        for (left, right) in segment.sack.iter().filter(|(left, _)| awaits(*left)) {
            let (from, to) = (map.to_delivered(Seq(*left)).0, map.to_delivered(Seq(*right)).0);
            assert!(receiver.has(from, to), "SACK {left}..{right} of {side:?} is untrue");
        }
    }

    /// What the engine holds open, the kernel holds open, unless it was used or has expired.
    pub(super) fn check_pinholes(&mut self) {
        let open = self.kernel.pinholes();
        let limit = 8 * (1 + self.kernel.others.len()); // of each session
        assert!(open.len() <= limit, "{} pinholes, and {limit} may be", open.len());
    }
}

fn outcome(Given { decision, packet }: Given) -> (engine::PacketOutcome, Vec<u8>) {
    match decision {
        Decision::Accept => (engine::PacketOutcome::Accept, packet.bytes),
        Decision::Replace(new) => (engine::PacketOutcome::Replace, new),
        Decision::Drop => (engine::PacketOutcome::Drop, Vec::new()),
    }
}
