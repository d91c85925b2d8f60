//! A client, a server, and between them the gateway: the engine, NAT, and two links. Time is
//! virtual, in microseconds, and all chance comes from one seed.
//!
//! As on a real gateway, packets carry the real addresses of both ends where the engine sees them.
//! Every packet that the engine makes is inspected by etherparse, and what it injects must carry the
//! addresses that its addressee knows. A packet with a wrong checksum must pass unread; its receiver
//! discards it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{Engine, Event, EventKind, QueueMode, Refusal, Translation},
    packet::flags,
    policy::Policy,
    session::Side,
};

use super::{
    Rng,
    crash::Crashes,
    link::{Air, Flight, Origin, Place},
    off_path::OffPathAttacker,
    recorder::{Life, Recorder},
    scenario::Scenario,
    segment::Segment,
    selection::Selection,
    tcp::{End, Settings},
};

pub mod daemon;
mod fast_path_lines;
mod gateway;
pub mod queues;

use daemon::Daemon;
use queues::{Queues, Stage};

/// The network.
pub struct Sim {
    /// The gateway: this, what `kernel` holds, and what is queued.
    pub daemon: Daemon,
    /// When the daemon is killed.
    life: Life,
    queues: Queues,
    pub kernel: Recorder,
    crashes: Crashes,
    selection: Selection,
    pub translation: Translation,
    pub client: End,
    pub server: End,
    /// Verdicts so far.
    pub accepted: u64,
    pub replaced: u64,
    pub dropped: u64,
    pub events: Vec<Event>,
    base: Instant,
    now: u64,
    swept: u64,
    /// When the daemon last looked at its clock, and how often at that time.
    instants: (u64, u64),
    is_patient: bool,
    /// How many packets were queued.
    packets: u32,
    /// Verdicts that [`decided`](Self::decided) gave on others.
    pub others: Vec<daemon::Given>,
    air: Air,
    outsider: OffPathAttacker,
    steps: u64,
    /// Whether every packet is shown (`FTP_ALG_TRACE`).
    traces: bool,
    /// What would arrive at the ends, if that is collected instead.
    captured: Option<Vec<(Side, Segment)>>,
    /// Whether the daemon ever crashed.
    has_crashed: bool,
    /// When an acknowledgement last moved, and where both stood.
    progress: (u64, (usize, usize)),
}

/// A connection whose ends do not talk now.
pub struct Connection {
    translation: Translation,
    client: End,
    server: End,
    queue_mode: Option<QueueMode>,
}

/// Within this time something more must be acknowledged, while something is to be: many more attempts
/// than a network takes that loses or damages half of all packets, and a gateway that crashes.
const PATIENCE: u64 = 600_000_000;
/// No dialogue takes more events.
const STEPS: u64 = 1_000_000;

impl Sim {
    /// A connection whose handshake is over.
    pub fn new(scenario: Scenario) -> Self {
        let translation = scenario.translation();
        let Scenario { policy, client, server, link, .. } = scenario;
        let Scenario { queues_acks, strays, crashes, is_patient, hands_over, seed, .. } = scenario;
        let queues = Queues::new(scenario.queueing, Rng::new(seed ^ 6));
        let base = Instant::now();
        let life = Life::default();
        let mut kernel = Recorder::new(translation, life.clone());
        kernel.program.ring_capacity = hands_over.unwrap_or(0);
        kernel.uses_expectations = scenario.uses_expectations;
        kernel.interfaces = scenario.interfaces;
        let mut sim = Self {
            daemon: Daemon::new(policy, base, life.clone(), hands_over.is_some(), scenario.is_pair),
            life,
            queues,
            kernel,
            crashes: Crashes { chance: crashes, rng: Rng::new(seed ^ 4) },
            selection: Selection::new(queues_acks),
            translation,
            client: End::new(client.clone(), server.isn, seed ^ 1),
            server: End::new(server, client.isn, seed ^ 2),
            accepted: 0,
            replaced: 0,
            dropped: 0,
            events: Vec::new(),
            base,
            now: 0,
            swept: 0,
            instants: (0, 0),
            is_patient,
            packets: 0,
            others: Vec::new(),
            air: Air::new(link, Rng::new(seed)),
            outsider: OffPathAttacker::new(strays, Rng::new(seed ^ 3)),
            steps: 0,
            traces: std::env::var_os("FTP_ALG_TRACE").is_some(),
            captured: None,
            has_crashed: false,
            progress: (0, (0, 0)),
        };
        sim.shake_hands();
        sim
    }

    /// The gateway sees the SYN-ACK, which must pass as it is, and its acknowledgement if it wants to.
    fn shake_hands(&mut self) {
        let (client, server) = (self.client.settings.isn, self.server.settings.isn);
        let syn_ack = Segment {
            seq: server,
            ack: client.wrapping_add(1),
            flags: flags::SYN | flags::ACK,
            window: 1000,
            window_scale: self.server.settings.window_scale,
            ..Segment::default()
        };
        let passed = loop {
            // A crash takes it, and the server sends it again.
            if let Some(passed) = self.forge(Side::Server, &syn_ack) {
                break passed;
            }
        };
        assert_eq!(passed, syn_ack);
        let ack = Segment {
            seq: syn_ack.ack,
            ack: syn_ack.seq.wrapping_add(1),
            flags: flags::ACK,
            window_scale: None,
            ..syn_ack
        };
        let ack = self.packet(Side::Client, &ack);
        while self.select(Side::Client, ack.clone()).is_none() {}
    }

    /// The same two endpoints begin another connection, with numbers past those of the last, as
    /// RFC 6528 has it. What is still under way of that arrives in this one.
    pub fn connect_again(&mut self) {
        while self.is_working() {
            assert!(self.step());
        }
        self.air.outlive();
        let later = |end: &End, seed| {
            let isn = end.next_number().wrapping_add(1 << 22);
            (Settings { isn, ..end.settings.clone() }, seed)
        };
        let (client, server) =
            (later(&self.client, self.now ^ 1), later(&self.server, self.now ^ 2));
        self.client = End::new(client.0.clone(), server.0.isn, client.1);
        self.server = End::new(server.0, client.0.isn, server.1);
        self.progress = (self.now, (0, 0));
        self.kernel.queue_mode = None;
        self.selection.begin();
        self.shake_hands();
    }

    /// A connection of `client` begins, whose address is translated as that of the others. Returns the one that has
    /// talked until now.
    pub fn begin(&mut self, client: SocketAddr) -> Connection {
        let Translation { client_external, .. } = self.translation;
        let client_external = match self.translation.client == client_external {
            true => client,
            false => SocketAddr::new(client_external.ip(), client.port()),
        };
        let [isn, peer] = [self.client.settings.isn, self.server.settings.isn];
        let mut other = Connection {
            translation: Translation { client, client_external, ..self.translation },
            client: End::new(self.client.settings.clone(), peer, self.now ^ 1),
            server: End::new(self.server.settings.clone(), isn, self.now ^ 2),
            queue_mode: None,
        };
        self.switch(&mut other);
        self.shake_hands();
        other
    }

    /// Another connection of the same client begins.
    pub fn begin_next(&mut self) -> Connection {
        let mut client = self.translation.client;
        client.set_port(client.port() + 1);
        self.begin(client)
    }

    /// From now on, the ends of the other connection talk.
    pub fn switch(&mut self, other: &mut Connection) {
        self.settle();
        std::mem::swap(&mut self.translation, &mut other.translation);
        std::mem::swap(&mut self.client, &mut other.client);
        std::mem::swap(&mut self.server, &mut other.server);
        std::mem::swap(&mut self.kernel.queue_mode, &mut other.queue_mode);
        self.kernel.others.retain(|one| *one != self.translation);
        self.kernel.others.push(other.translation);
        self.kernel.translation = Some(self.translation);
        self.selection.begin();
        self.progress = (self.now, (0, 0));
    }

    /// The daemon reloads its configuration.
    pub fn reload(&mut self, policy: Policy) {
        self.daemon.policy = policy.clone();
        let sessions = &mut self.engine().sessions;
        sessions.set_policy(policy);
        sessions.close_forbidden_pinholes();
        self.expire();
    }

    /// The engine does something that is no packet's.
    pub fn run(&mut self, work: impl FnOnce(&mut Engine, &mut Recorder)) {
        let now = self.clock();
        self.daemon.run(now, &mut self.kernel, work);
        self.take_daemon_events();
    }

    /// What has happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// When the engine wants to be called again.
    pub fn next_deadline(&mut self) -> Option<Duration> {
        let base = self.base;
        self.engine().sessions.next_deadline().map(|at| at - base)
    }

    /// Whether connections are handed over to the program.
    pub fn hands_over(&self) -> bool {
        self.kernel.program.ring_capacity > 0
    }

    /// The daemon's clock.
    pub fn clock(&self) -> Instant {
        self.base + self.now()
    }

    pub fn now(&self) -> Duration {
        Duration::from_micros(self.now)
    }

    pub fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// Writes in one piece, and sends what may be sent.
    pub fn write(&mut self, side: Side, bytes: &[u8]) {
        self.end(side).write(bytes);
        self.poll(side);
    }

    /// Writes in one piece, the last byte of which is urgent.
    pub fn write_urgent(&mut self, side: Side, bytes: &[u8]) {
        self.end(side).write_urgent(bytes);
        self.poll(side);
    }

    pub fn close(&mut self, side: Side) {
        self.end(side).close();
        self.poll(side);
    }

    /// Both ends close at the same time.
    pub fn close_both(&mut self) {
        self.client.close();
        self.server.close();
        self.poll(Side::Client);
        self.poll(Side::Server);
    }

    /// `side` takes nothing more for as long as this.
    pub fn close_window(&mut self, side: Side, time: Duration) {
        let (now, until) = (self.now, self.now + time.as_micros() as u64);
        let segment = self.end(side).close_window(until, now);
        self.send(side, &segment);
    }

    /// `side` asks whether its peer is alive, if nothing is under way.
    pub fn keep_alive(&mut self, side: Side) {
        let now = self.now;
        if let Some(segment) = self.end(side).keep_alive(now) {
            self.send(side, &segment);
        }
    }

    pub fn reset(&mut self, side: Side) {
        let now = self.now;
        let segment = self.end(side).reset(now);
        self.send(side, &segment);
    }

    /// Writes, waits until all is still, and gives what the peer received.
    pub fn say(&mut self, side: Side, bytes: &[u8]) -> Vec<u8> {
        self.write(side, bytes);
        self.settle();
        self.end(side.peer()).read()
    }

    /// As [`say`](Self::say); the last byte is urgent.
    pub fn say_urgent(&mut self, side: Side, bytes: &[u8]) -> Vec<u8> {
        self.write_urgent(side, bytes);
        self.settle();
        self.end(side.peer()).read()
    }

    /// Goes on until nothing is under way and no retransmission is due.
    pub fn settle(&mut self) {
        while self.step() {}
    }

    /// Lets time pass.
    pub fn advance(&mut self, time: Duration) {
        let until = self.now + time.as_micros() as u64;
        while self.next_time().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = until;
        self.progress.0 = until;
        self.sweep();
    }

    /// Lets so many seconds pass, one after the other.
    pub fn wait(&mut self, seconds: u64) {
        (0..seconds).for_each(|_| self.advance(Duration::from_secs(1)));
    }

    /// Does the next thing before `until`; `false` when there is none, and it is that time.
    pub fn step_before(&mut self, until: Duration) -> bool {
        let until = until.as_micros() as u64;
        if self.next_time().is_some_and(|at| at <= until) {
            return self.step();
        }
        self.now = until;
        false
    }

    /// From now on `from` sends what `throw` says alone, and what arrives is collected.
    pub fn captures(&mut self) {
        self.captured = Some(Vec::new());
    }

    /// What arrived, and who sent it.
    pub fn take_captured(&mut self) -> Vec<(Side, Segment)> {
        self.captured.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// `from` sends what its TCP did not make.
    pub fn throw(&mut self, from: Side, segment: &Segment) {
        self.send(from, segment);
    }

    /// Does the next thing; `false` when there is none.
    pub fn step(&mut self) -> bool {
        let Some(at) = self.next_time() else { return false };
        self.now = self.now.max(at);
        self.steps += 1;
        let acknowledged = (self.client.acknowledged(), self.server.acknowledged());
        if self.progress.1 != acknowledged {
            self.progress = (self.now, acknowledged);
        }
        let patient = self.now < self.progress.0 + PATIENCE && self.steps < STEPS;
        assert!(patient, "the connection stands still: {}", self.summary());
        if self.now - self.swept >= 1_000_000 {
            self.sweep();
        }
        if self.late_at().is_some_and(|at| at <= self.now) {
            self.expire();
        } else if self.queues.next_time().is_some_and(|at| at <= self.now) {
            self.work();
        } else if self.air.next_time().is_some_and(|at| at <= self.now) {
            match self.air.land() {
                Some(flight) if flight.to == Place::Gateway => self.at_gateway(flight),
                Some(flight) => self.at_end(&flight),
                None => {}
            }
        } else {
            self.poll(Side::Client);
            self.poll(Side::Server);
        }
        true
    }

    /// How often a retransmission timer fired.
    pub fn timeouts(&self) -> u32 {
        self.client.timeouts + self.server.timeouts
    }

    /// What was decided about announcements: action, and reason.
    pub fn decisions(&self) -> Vec<String> {
        let announcements = self.events.iter().filter_map(|e| match &e.kind {
            EventKind::Announcement(decision)
            | EventKind::Refusal(Refusal::Announcement(decision)) => Some(decision.to_string()),
            _ => None,
        });
        announcements.collect()
    }

    pub fn summary(&self) -> String {
        format!(
            "at {:?}: client {}/{} acknowledged, {} received; server {}/{}, {}; events {:#?}",
            self.now(),
            self.client.acknowledged(),
            self.client.sent().len(),
            self.client.received(),
            self.server.acknowledged(),
            self.server.sent().len(),
            self.server.received(),
            self.events.iter().map(ToString::to_string).collect::<Vec<_>>(),
        )
    }

    /// A packet that no end's TCP made: an attacker's. Gives what goes on of it.
    pub fn forge(&mut self, from: Side, segment: &Segment) -> Option<Segment> {
        let bytes = self.packet(from, segment);
        Some(Segment::checked(&self.select(from, bytes)?).2)
    }

    /// Nothing must be left once the connection is over and forgotten.
    pub fn assert_nothing_left(&mut self) {
        self.advance(Duration::from_secs(200));
        assert_eq!(self.kernel.pinholes(), [], "pinholes left: {}", self.summary());
        assert_eq!(
            self.engine().sessions.list_pinholes().count(),
            0,
            "pinholes left: {}",
            self.summary()
        );
        // A late segment may look like one of a connection whose start was not seen.
        self.advance(Duration::from_secs(900));
        assert_eq!(self.daemon.sessions(), 0, "sessions left: {}", self.summary());
        self.daemon.assert_no_fast_path_mismatch();
        self.kernel.program.assert_empty();
    }

    fn next_time(&self) -> Option<u64> {
        let ends = [self.client.next_timer(), self.server.next_timer()];
        let others = [self.air.next_time(), self.queues.next_time(), self.late_at()];
        ends.into_iter().chain(others).flatten().min()
    }

    /// Whether the daemon is away, or its worker has something to do.
    fn is_working(&self) -> bool {
        self.queues.is_away || self.queues.stage != Stage::Idle
    }

    fn sweep(&mut self) {
        if !self.is_daemon_busy() {
            self.swept = self.now;
            self.expire();
        }
    }

    fn is_daemon_busy(&self) -> bool {
        self.queues.is_away || self.daemon.is_busy()
    }

    /// When something in the reorder queue has waited for long enough.
    fn late_at(&self) -> Option<u64> {
        let at = self.daemon.waits_until().filter(|_| !self.is_daemon_busy())?;
        Some(at.saturating_duration_since(self.base).as_micros() as u64 + 1)
    }

    /// The engine of the connection.
    pub fn engine(&mut self) -> &mut Engine {
        self.daemon.engine()
    }

    fn poll(&mut self, side: Side) {
        let now = self.now;
        for segment in self.end(side).poll(now) {
            self.send(side, &segment);
        }
    }

    fn send(&mut self, from: Side, segment: &Segment) {
        let bytes = self.packet(from, segment);
        if let Some((from, bytes)) = self.outsider.follow(from, &bytes, &self.client, &self.server)
        {
            let flight = Flight { from, to: Place::Gateway, origin: Origin::Stray, bytes };
            self.air.send(flight, self.now);
        }
        let flight = Flight { from, to: Place::Gateway, origin: Origin::Genuine, bytes };
        self.air.send(flight, self.now);
    }

    /// The packet that carries `segment`, as the engine sees it.
    fn packet(&self, from: Side, segment: &Segment) -> Vec<u8> {
        let (source, destination) = self.endpoints(from);
        segment.packet(source, destination)
    }

    /// Source and destination of what `from` sends.
    pub fn endpoints(&self, from: Side) -> (SocketAddr, SocketAddr) {
        let Translation { client, server, .. } = self.translation;
        match from {
            Side::Client => (client, server),
            Side::Server => (server, client),
        }
    }

    fn at_end(&mut self, flight: &Flight) {
        let Ok((_, _, segment)) = Segment::read(&flight.bytes) else {
            assert_eq!(flight.origin, Origin::Damaged);
            return;
        };
        let (side, now) = (flight.from.peer(), self.now);
        if let Some(captured) = &mut self.captured {
            captured.push((flight.from, segment));
            return;
        }
        if flight.origin == Origin::Genuine {
            self.end(side).assert_possible(&segment, now);
            self.check_claims(side, &segment);
        }
        for answer in self.end(side).arrive(&segment, now) {
            self.send(side, &answer);
        }
    }
}

/// The earlier of two times.
pub fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    }
}
