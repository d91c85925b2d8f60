//! The gateway of the simulated network: its kernel decides about what arrives, queues it, and does what verdicts say; its
//! daemon's worker goes from stage to stage.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{self, PacketMeta, Translation},
    packet::{Seq, flags},
    session::Side,
};

use super::{
    super::{
        link::{Flight, Origin, Place},
        segment::{Fault, Segment},
        selection::Way,
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
            Some(Way::Queued(sender)) => {
                self.trace("queued", from, &bytes);
                let may_wait = self.is_patient;
                let meta = self.meta(from, sender, may_wait);
                let packet = self.packet_of(from, origin, bytes, meta);
                self.dropped += u64::from(!self.queues.push(self.now, packet));
                self.work_off();
            }
        }
    }

    /// The metadata of a packet of `from`, whose mark names `sender`.
    fn meta(&self, from: Side, sender: Option<Side>, may_wait: bool) -> PacketMeta {
        let [client, server] = self.kernel.interfaces;
        let (input, output) = match from {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        let queues_all = sender.is_none();
        PacketMeta { input, output, may_wait, from: sender, queues_all, ..PacketMeta::FORWARDED }
    }

    /// A packet with a number of its own.
    fn packet_of(
        &mut self,
        from: Side,
        origin: Origin,
        bytes: Vec<u8>,
        meta: PacketMeta,
    ) -> Packet {
        self.packets += 1;
        Packet { number: self.packets, from, origin, bytes, meta }
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

    /// What goes on of a packet that arrives, and has its verdict at once. A crash drops it.
    pub(super) fn select(&mut self, from: Side, bytes: Vec<u8>) -> Option<Vec<u8>> {
        if let Some(passed) = self.inspect_in_kernel(from, &bytes) {
            return Some(passed);
        }
        let Way::Queued(sender) = self.select_for_queue(from, &bytes)? else { return Some(bytes) };
        let meta = self.meta(from, sender, false);
        let packet = self.packet_of(from, Origin::Genuine, bytes, meta);
        let (now, number) = (self.instant(), packet.number);
        self.daemon.take(now, vec![packet], &mut self.kernel);
        let given = self.at_risk(|sim| {
            sim.daemon.finish(&mut sim.kernel);
            let (own, others): (Vec<_>, _) = sim
                .daemon
                .take_given()
                .into_iter()
                .partition(|given| given.packet.number == number);
            sim.give_later(others);
            own
        });
        if self.queues.is_away {
            self.start_daemon();
        }
        self.work_off();
        given.into_iter().find_map(|own| self.give(own)).map(|(_, _, bytes)| bytes)
    }

    /// Does `work`, during which the daemon may be killed.
    pub(super) fn at_risk<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let is_killed = self.crashes.strike(&self.life);
        let result = work(self);
        if is_killed {
            self.end_daemon();
        }
        result
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
        let now = self.instant();
        self.daemon.restart(now);
        self.daemon.begin(now, &mut self.kernel);
        self.take_daemon_events();
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
        let first = self.packets + 1;
        let batch = packets
            .iter()
            .map(|bytes| self.packet_of(Side::Client, Origin::Genuine, bytes.to_vec(), how)) // any side
            .collect();
        self.daemon.take(now, batch, &mut self.kernel);
        self.daemon.finish(&mut self.kernel);
        self.take_daemon_events();
        let mut outcomes = vec![(engine::PacketOutcome::Wait, Vec::new()); packets.len()];
        self.others.clear();
        for given in self.daemon.take_given() {
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
        self.finish();
        self.work_off();
    }

    /// Has the daemon carry out what it has decided. Gives when all has come of it.
    fn finish(&mut self) -> u64 {
        self.daemon.finish(&mut self.kernel);
        let given = self.daemon.take_given();
        self.give_later(given)
    }

    /// What the daemon has given and sent goes on from now on. Gives when all has.
    pub(super) fn give_later(&mut self, given: Vec<Given>) -> u64 {
        self.take_daemon_events();
        let injected = std::mem::take(&mut self.kernel.injected);
        self.queues.give(self.now, given, injected)
    }

    /// Does what is due in the daemon now.
    fn work_off(&mut self) {
        while self.queues.next_time().is_some_and(|at| at <= self.now) {
            self.work();
        }
    }

    /// Does what is due next in the daemon.
    pub(super) fn work(&mut self) {
        self.kernel.now = self.now();
        let Some(due) = self.queues.pop() else { return };
        match due {
            Due::Worker => self.at_risk(Self::work_on),
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
                self.daemon.take(at, packets, &mut self.kernel);
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

    pub(super) fn take_daemon_events(&mut self) {
        self.events.extend(self.daemon.take_events());
        let open = self.kernel.pinholes();
        let limit = 8 * (1 + self.kernel.others.len()); // of each session
        assert!(open.len() <= limit, "{} pinholes, and {limit} may be", open.len());
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
}

fn outcome(Given { decision, packet }: Given) -> (engine::PacketOutcome, Vec<u8>) {
    match decision {
        Decision::Accept => (engine::PacketOutcome::Accept, packet.bytes),
        Decision::Replace(new) => (engine::PacketOutcome::Replace, new),
        Decision::Drop => (engine::PacketOutcome::Drop, Vec::new()),
    }
}
