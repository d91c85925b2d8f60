//! The gateway of the simulated network: its kernel judges what arrives, queues it, and does what verdicts say; its
//! daemon's workers go from stage to stage.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{Answer, Attention, Event, Translation},
    packet::{Seq, flags},
    session::Side,
};

use super::{
    super::{
        crash::Fate,
        link::{Flight, Origin, Place},
        segment::{Fault, Segment},
        selection::{Mark, Selection, Way},
    },
    Sim,
    daemon::{Daemon, Decision, Given, Packet},
    queues::{Due, Stage},
};

impl Sim {
    pub(super) fn at_gateway(&mut self, flight: Flight) {
        let Flight { from, origin, bytes, .. } = flight;
        match self.judge(from, &bytes) {
            None => {}
            Some(Way::Passes | Way::Copied) => self.forward(from, origin, bytes),
            Some(Way::Queued(mark)) => {
                if self.traces {
                    self.trace(&format!("queued {mark:?}"), from, &bytes);
                }
                let packet = Packet { from, origin, bytes, mark, may_wait: self.is_patient };
                if !self.queues.settings.is_at_once() {
                    self.dropped += u64::from(!self.queues.push(self.now, packet));
                    return;
                }
                if let Some(bytes) = self.decide_at_once(packet) {
                    self.forward(from, origin, bytes);
                }
            }
        }
        if self.queues.settings.is_at_once() {
            self.look_at_early_at_once();
        }
    }

    fn forward(&mut self, from: Side, origin: Origin, bytes: Vec<u8>) {
        self.air.send(Flight { from, to: Place::End, origin, bytes }, self.now);
    }

    /// What the rules make of a packet, `None` if it is dropped before it comes to them. What is copied was.
    fn judge(&mut self, from: Side, bytes: &[u8]) -> Option<Way> {
        let read = Segment::read(bytes);
        if matches!(read, Err(Fault::Ip)) {
            return None;
        }
        let segment = read.as_ref().ok().map(|(_, _, segment)| segment);
        let mark = &mut self.kernel.attention;
        let way = self.selection.way(self.now, mark, from, bytes.len(), segment);
        if way == Way::Passes {
            self.trace("passes", from, bytes);
        }
        if way == Way::Copied {
            self.trace("copied", from, bytes);
            self.selection.copy(bytes);
            if !self.queues.settings.is_at_once() {
                self.queues.read_copies_soon(self.now);
            } else if self.selection.is_read_now() {
                self.read_copies();
                let fate = self.crashes.fate();
                self.write_or_crash(fate);
            }
        }
        Some(way)
    }

    /// What goes on of a packet that arrives, and has its verdict at once.
    pub(super) fn select(&mut self, from: Side, bytes: Vec<u8>) -> Option<Vec<u8>> {
        match self.judge(from, &bytes)? {
            Way::Passes | Way::Copied => Some(bytes),
            Way::Queued(mark) => {
                let origin = Origin::Genuine;
                self.decide_at_once(Packet { from, origin, bytes, mark, may_wait: false })
            }
        }
    }

    /// The same of a packet that is queued whatever the rules make of it.
    pub(super) fn hand(&mut self, from: Side, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let mark = match self.kernel.attention {
            Some(Attention::Every | Attention::Watched) => Mark::Every,
            _ => Mark::From(from),
        };
        let origin = Origin::Genuine;
        self.decide_at_once(Packet { from, origin, bytes, mark, may_wait: false })
    }

    /// Has the first worker decide about one packet, and gives what goes on. A crash drops it.
    fn decide_at_once(&mut self, packet: Packet) -> Option<Vec<u8>> {
        let now = self.instant();
        self.daemon.take_batch(self.queues.home, now, vec![packet]);
        self.rounds_at_once().pop().map(|(_, _, bytes)| bytes)
    }

    /// What the first worker has to decide about, and what goes on of that.
    fn rounds_at_once(&mut self) -> Vec<(Side, Origin, Vec<u8>)> {
        let mut passed = Vec::new();
        let worker = self.queues.home;
        while self.daemon.has_work(worker) {
            self.read_copies();
            for shard in self.daemon.shards_of(worker) {
                self.daemon.decide(worker, shard, &mut self.kernel);
            }
            let fate = self.crashes.fate();
            if self.write_or_crash(fate) {
                self.dropped += 1;
                break;
            }
            for given in self.daemon.verdicts(worker) {
                passed.extend(self.give(given));
            }
            self.settle_worker(worker);
        }
        passed
    }

    fn look_at_early_at_once(&mut self) {
        let (worker, now) = (self.queues.home, self.instant());
        self.daemon.take_batch(worker, now, Vec::new());
        self.dropped += self.daemon.look_at_early(worker) as u64;
        for (from, origin, bytes) in self.rounds_at_once() {
            self.forward(from, origin, bytes);
        }
    }

    /// Writes what the daemon noted, or not, and crashes, or not. Whether it crashed.
    fn write_or_crash(&mut self, fate: Fate) -> bool {
        if fate != Fate::Crashes {
            self.write_all();
        }
        if fate != Fate::GoesOn {
            self.end_daemon(fate == Fate::WritesAndCrashes);
            self.start_daemon();
        }
        fate != Fate::GoesOn
    }

    /// Nobody reads what is written where no crash comes.
    fn write_all(&mut self) {
        if self.crashes.may_come() {
            self.daemon.write_all();
        }
        self.selection.unwritten = false;
    }

    fn end_daemon(&mut self, written: bool) {
        self.crashes.count += 1;
        self.selection.crashed(written);
        self.selection.is_read = false;
        self.daemon.crash();
        self.dropped += self.queues.crash(self.now) as u64;
        self.trace_daemon("crashes");
    }

    fn start_daemon(&mut self) {
        self.queues.start();
        self.selection.is_read = true;
        self.kernel.now = self.now();
        let now = self.instant();
        self.daemon.restart(now, &mut self.kernel);
        self.trace_daemon("starts");
    }

    /// The gateway crashes, having written what it knew.
    pub fn crash(&mut self) {
        self.daemon.write_all();
        self.write_or_crash(Fate::WritesAndCrashes);
    }

    /// The daemon reads what passed.
    pub fn read_copies(&mut self) {
        let now = self.instant();
        let copies = self.selection.read();
        self.daemon.read_copies(now, copies, &mut self.kernel);
        let events = self.daemon.settle_all(&mut self.kernel);
        let is_held = self.queues.settings.is_at_once() && !self.kernel.injected.is_empty();
        assert!(!is_held, "nothing is held");
        self.settled(events);
    }

    /// Does what is due next in the daemon.
    pub(super) fn work(&mut self) {
        self.kernel.now = self.now();
        let Some(due) = self.queues.pop() else { return };
        if matches!(due, Due::Worker(_) | Due::Copies) && self.crashes.strikes() {
            self.end_daemon(false);
            return;
        }
        match due {
            Due::Worker(worker) => self.work_on(worker),
            Due::Verdict(given) => {
                if let Some((from, origin, bytes)) = self.give(given) {
                    self.forward(from, origin, bytes);
                }
            }
            Due::Copies if !self.queues.is_unlocked() => self.queues.read_copies_later(self.now),
            Due::Copies => {
                self.trace_daemon("reads copies");
                self.read_copies();
                self.write_all();
            }
            Due::Start => self.start_daemon(),
        }
    }

    /// The next stage of `worker`.
    fn work_on(&mut self, worker: usize) {
        let now = self.now;
        if self.traces {
            self.trace_daemon(&format!("worker {worker}: {:?}", self.queues.stages[worker]));
        }
        let next = match self.queues.stages[worker] {
            Stage::Idle => return,
            Stage::Receive => {
                let at = self.instant();
                let packets = self.queues.receive(worker);
                self.daemon.take_batch(worker, at, packets);
                match self.daemon.has_work(worker) {
                    true => Stage::ReadCopies,
                    false => Stage::LookAtEarly,
                }
            }
            Stage::ReadCopies if !self.queues.is_unlocked() => Stage::ReadCopies,
            Stage::ReadCopies => {
                let copies = self.selection.read();
                self.daemon.read_copies_for(worker, copies, &mut self.kernel);
                Stage::Decide(0)
            }
            Stage::Decide(place) => match self.daemon.shards_of(worker).get(place) {
                None => Stage::Give,
                Some(shard) if !self.queues.lock(*shard, worker) => Stage::Decide(place),
                Some(shard) => {
                    self.daemon.decide(worker, *shard, &mut self.kernel);
                    Stage::Write(place)
                }
            },
            Stage::Write(place) => {
                let shard = self.daemon.shards_of(worker)[place];
                if self.crashes.may_come() {
                    self.daemon.write(shard);
                }
                self.selection.unwritten = false;
                self.queues.unlock(shard);
                Stage::Decide(place + 1)
            }
            Stage::Give => {
                let verdicts = self.daemon.verdicts(worker);
                let last = self.queues.give(now, verdicts);
                return self.queues.next_stage(last, worker, Stage::Settle);
            }
            Stage::Settle if !self.queues.is_unlocked() => Stage::Settle,
            Stage::Settle => {
                self.settle_worker(worker);
                match self.daemon.has_work(worker) {
                    true => Stage::ReadCopies,
                    false => Stage::LookAtEarly,
                }
            }
            Stage::LookAtEarly if !self.queues.is_unlocked() => Stage::LookAtEarly,
            Stage::LookAtEarly => {
                self.dropped += self.daemon.look_at_early(worker) as u64;
                if self.daemon.has_work(worker) {
                    Stage::ReadCopies
                } else if !self.queues.is_empty(worker) {
                    Stage::Receive
                } else if self.daemon.has_early(worker) {
                    let look = Daemon::LOOK.as_micros() as u64;
                    return self.queues.next_stage(now + look, worker, Stage::Receive);
                } else {
                    self.queues.stages[worker] = Stage::Idle;
                    return;
                }
            }
        };
        self.queues.go_on(now, worker, next);
    }

    fn settle_worker(&mut self, worker: usize) {
        let events = self.daemon.settle(worker, &mut self.kernel);
        self.settled(events);
    }

    /// What the daemon did that may wait for verdicts. The reader of copies does it for all workers.
    fn settled(&mut self, events: Vec<Event>) {
        self.events.extend(events);
        for injected in std::mem::take(&mut self.kernel.injected) {
            self.deliver_injected(injected);
        }
        self.check_pinholes();
    }

    /// The kernel does what a verdict says. Gives what goes on.
    fn give(&mut self, given: Given) -> Option<(Side, Origin, Vec<u8>)> {
        let Given { packet: Packet { from, origin, bytes, .. }, decision, answer } = given;
        if decision != Decision::Drop {
            if self.traces && answer != Answer::Nothing {
                self.trace_daemon(&format!("answers {answer:?}"));
            }
            Selection::answered(answer, &mut self.kernel.attention);
        }
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
    fn check_replaced(&self, from: Side, old: &[u8], new: &[u8]) {
        let (old, (source, destination, new)) = (Segment::judged(old).2, Segment::judged(new));
        assert_eq!((source, destination), self.endpoints(from));
        assert_eq!((new.ecn, new.ip_options), (old.ecn, old.ip_options));
        assert_eq!((new.window, new.timestamps), (old.window, old.timestamps));
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
        let (source, destination, segment) = Segment::judged(&bytes);
        let Translation { client, client_external, server, server_external } = self.translation;
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
        let Some((session, _)) = self.daemon.engine().session(client, server) else { return };
        let map = session.map(side).clone();
        let sender = if side == Side::Client { &self.client } else { &self.server };
        let receiver = if side == Side::Client { &self.server } else { &self.client };
        let awaits = |number| sender.awaits(number);
        for (left, right) in segment.sack.iter().filter(|(left, _)| awaits(*left)) {
            let (from, to) = (map.deliver(Seq(*left)).0, map.deliver(Seq(*right)).0);
            assert!(receiver.has(from, to), "SACK {left}..{right} of {side:?} is untrue");
        }
    }

    /// What the engine holds open, the kernel holds open, unless it was used or has expired.
    pub(super) fn check_pinholes(&mut self) {
        let open = self.kernel.pinholes();
        let limit = 8; // of one session
        assert!(open.len() <= limit, "{} pinholes for one session", open.len());
    }
}
