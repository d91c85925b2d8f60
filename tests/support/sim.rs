//! A client, a server, and between them the gateway: the engine, NAT, and links that lose,
//! duplicate and reorder. Time is virtual, in microseconds, and all chance comes from one seed.
//!
//! As on a real gateway, packets carry the real addresses of both ends where the engine sees them.
//! Every packet that the engine makes is judged by etherparse, and what it injects must carry the
//! addresses that its addressee knows.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ftp_alg::{
    engine::{Attention, Checksums, Engine, Event, Translation, Verdict, What},
    packet::{Seq, flags},
    policy::Policy,
    session::Side,
};

use super::{
    Rng,
    recorder::Recorder,
    segment::Segment,
    tcp::{End, Settings},
};

/// What the gateway translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    Routed,
    /// The client is hidden.
    Masquerade,
    /// The server is published.
    PortForward,
    Both,
}

pub const NATS: [Nat; 4] = [Nat::Routed, Nat::Masquerade, Nat::PortForward, Nat::Both];

impl Nat {
    pub fn hides_client(self) -> bool {
        matches!(self, Self::Masquerade | Self::Both)
    }

    pub fn hides_server(self) -> bool {
        matches!(self, Self::PortForward | Self::Both)
    }

    pub fn translation(self, v6: bool) -> Translation {
        let [client, outside, server, published] = if v6 {
            [
                "[fd00:150::80]:1035",
                "[2001:db8::1]:40035",
                "[2001:db8:9::9]:21",
                "[2001:db8::2]:2121",
            ]
        } else {
            ["192.168.150.80:1035", "198.51.100.1:40035", "203.0.113.9:21", "198.51.100.2:2121"]
        }
        .map(|text| text.parse().unwrap());
        Translation {
            client,
            client_external: if self.hides_client() { outside } else { client },
            server,
            server_external: if self.hides_server() { published } else { server },
        }
    }
}

/// What the links on both sides of the gateway do.
#[derive(Clone, Debug)]
pub struct Link {
    pub delay: u64,
    pub loss: f64,
    pub duplicate: f64,
    pub reorder: f64,
    /// At most this long the gateway takes for a verdict.
    pub verdict: u64,
}

/// How a simulation is set up.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub nat: Nat,
    pub v6: bool,
    pub policy: Policy,
    pub client: Settings,
    pub server: Settings,
    pub link: Link,
    /// Whether pure acknowledgements are queued although the engine does not want every packet.
    pub queues_acks: bool,
    pub seed: u64,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            nat: Nat::Masquerade,
            v6: false,
            policy: Policy::default(),
            client: Settings::default(),
            server: Settings { isn: 70_000, ..Settings::default() },
            link: Link { delay: 5_000, loss: 0.0, duplicate: 0.0, reorder: 0.0, verdict: 0 },
            queues_acks: false,
            seed: 1,
        }
    }
}

/// Where a packet is to arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Gateway,
    End,
}

struct Flight {
    at: u64,
    number: u64,
    /// Which end it comes from.
    from: Side,
    to: Place,
    segment: Segment,
}

/// The network.
pub struct Sim {
    pub engine: Engine,
    pub kernel: Recorder,
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
    released: u64,
    link: Link,
    queues_acks: bool,
    rng: Rng,
    flights: BinaryHeap<Reverse<(u64, u64)>>,
    contents: std::collections::HashMap<u64, Flight>,
    number: u64,
    steps: u64,
    /// Whether every packet is shown (`FTP_ALG_TRACE`).
    traces: bool,
    /// When an acknowledgement last moved, and where both stood.
    progress: (u64, (usize, usize)),
}

/// Within this time something more must be acknowledged, while something is to be.
const PATIENCE: u64 = 120_000_000;
/// No dialogue takes more events.
const STEPS: u64 = 1_000_000;

impl Sim {
    /// A connection whose handshake is over.
    pub fn new(scenario: Scenario) -> Self {
        let Scenario { nat, v6, policy, client, server, link, queues_acks, seed } = scenario;
        let translation = nat.translation(v6);
        let (client_isn, server_isn) = (client.isn, server.isn);
        let mut sim = Self {
            engine: Engine::new(policy, Checksums::Verify),
            kernel: Recorder::new(translation),
            translation,
            client: End::new(client, server_isn, seed ^ 1),
            server: End::new(server, client_isn, seed ^ 2),
            accepted: 0,
            replaced: 0,
            dropped: 0,
            events: Vec::new(),
            base: Instant::now(),
            now: 0,
            swept: 0,
            released: 0,
            link,
            queues_acks,
            rng: Rng::new(seed),
            flights: BinaryHeap::new(),
            contents: std::collections::HashMap::new(),
            number: 0,
            steps: 0,
            traces: std::env::var_os("FTP_ALG_TRACE").is_some(),
            progress: (0, (0, 0)),
        };
        let syn_ack = Segment {
            seq: server_isn,
            ack: client_isn.wrapping_add(1),
            flags: flags::SYN | flags::ACK,
            window: 1000,
            ..Segment::default()
        };
        let verdict = sim.hand(Side::Server, &syn_ack);
        assert_eq!(verdict, Some(syn_ack));
        sim
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

    pub fn reset(&mut self, side: Side) {
        let now = self.now;
        let segment = self.end(side).reset(now);
        self.send(side, segment);
    }

    /// Writes, waits until all is still, and gives what the peer received.
    pub fn say(&mut self, side: Side, bytes: &[u8]) -> Vec<u8> {
        self.write(side, bytes);
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
        if self.flights.peek().is_some_and(|Reverse((at, _))| *at <= self.now) {
            let Reverse((_, number)) = self.flights.pop().unwrap();
            let flight = self.contents.remove(&number).unwrap();
            match flight.to {
                Place::Gateway => self.at_gateway(flight.from, flight.segment),
                Place::End => self.at_end(flight.from.peer(), &flight.segment),
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
        let announcements = self.events.iter().filter_map(|e| match &e.what {
            What::Announcement(decision) => Some(decision.to_string()),
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

    /// A packet that no end's TCP made: an attacker's. Gives what the engine lets through.
    pub fn forge(&mut self, from: Side, segment: &Segment) -> Option<Segment> {
        self.hand(from, segment)
    }

    /// Nothing must be left once the connection is over and forgotten.
    pub fn assert_nothing_left(&mut self) {
        self.advance(Duration::from_secs(200));
        assert_eq!(self.kernel.pinholes(), [], "pinholes left: {}", self.summary());
        assert_eq!(self.engine.pinholes().count(), 0, "pinholes left: {}", self.summary());
        assert_eq!(self.engine.session_count(), 0, "sessions left: {}", self.summary());
    }

    fn next_time(&self) -> Option<u64> {
        let flight = self.flights.peek().map(|Reverse((at, _))| *at);
        [flight, self.client.next_timer(), self.server.next_timer()].into_iter().flatten().min()
    }

    fn sweep(&mut self) {
        self.swept = self.now;
        self.kernel.now = self.now();
        self.engine.expire(self.base + self.now(), &mut self.kernel);
        self.events.extend(self.engine.take_events().0);
    }

    fn poll(&mut self, side: Side) {
        let now = self.now;
        for segment in self.end(side).poll(now) {
            self.send(side, segment);
        }
    }

    fn send(&mut self, from: Side, segment: Segment) {
        self.fly(from, Place::Gateway, segment, self.now);
    }

    fn fly(&mut self, from: Side, to: Place, segment: Segment, start: u64) {
        if self.rng.chance(self.link.loss) {
            return;
        }
        let copies = 1 + u32::from(self.rng.chance(self.link.duplicate));
        for _ in 0..copies {
            let mut at = start + self.link.delay;
            if self.rng.chance(self.link.reorder) {
                at += self.rng.below(4 * self.link.delay as usize + 1) as u64;
            }
            self.number += 1;
            let number = self.number;
            self.flights.push(Reverse((at, number)));
            self.contents.insert(number, Flight { at, number, from, to, segment: segment.clone() });
        }
    }

    fn at_end(&mut self, side: Side, segment: &Segment) {
        self.check_claims(side, segment);
        let now = self.now;
        for answer in self.end(side).arrive(segment, now) {
            self.send(side, answer);
        }
    }

    fn at_gateway(&mut self, from: Side, segment: Segment) {
        let passed =
            if self.is_queued(&segment) { self.hand(from, &segment) } else { Some(segment) };
        let verdict =
            if self.link.verdict > 0 { self.rng.below(self.link.verdict as usize) } else { 0 };
        // One queue gives its verdicts in order.
        self.released = self.released.max(self.now + verdict as u64);
        if let Some(passed) = passed {
            self.fly(from, Place::End, passed, self.released);
        }
    }

    /// As the rules select: pure acknowledgements only where every packet is wanted.
    fn is_queued(&self, segment: &Segment) -> bool {
        match self.kernel.attention {
            Some(Attention::None) => false,
            Some(Attention::Every) => true,
            None => {
                let ends = segment.flags & (flags::FIN | flags::RST | flags::SYN) != 0;
                self.queues_acks || ends || !segment.payload.is_empty()
            }
        }
    }

    /// Hands a packet to the engine, and gives what goes on.
    fn hand(&mut self, from: Side, segment: &Segment) -> Option<Segment> {
        let Translation { client, server, .. } = self.translation;
        let (source, destination) = match from {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        let bytes = segment.packet(source, destination);
        self.kernel.now = self.now();
        let mut out = vec![0xa5; 5]; // junk that must go
        let now = self.base + self.now();
        let verdict = self.engine.packet(now, &bytes, &mut self.kernel, &mut out);
        self.engine.settle(&mut self.kernel);
        self.events.extend(self.engine.take_events().0);
        for injected in std::mem::take(&mut self.kernel.injected) {
            self.deliver_injected(&injected);
        }
        self.check_pinholes();
        self.trace("queued", from, segment);
        match verdict {
            Verdict::Accept => {
                self.trace("accepted", from, segment);
                self.accepted += 1;
                Some(segment.clone())
            }
            Verdict::Replace => {
                self.replaced += 1;
                let side = from;
                let (from, to, changed) = Segment::judged(&out);
                assert_eq!((from, to), (source, destination));
                self.trace("replaced", side, &changed);
                Some(changed)
            }
            Verdict::Drop => {
                self.trace("dropped", from, segment);
                self.dropped += 1;
                None
            }
        }
    }

    fn trace(&self, what: &str, from: Side, s: &Segment) {
        if self.traces {
            eprintln!(
                "{:>9}us {what:<10} {from:?} seq {} ack {} flags {:#04x} sack {:?} {:?}",
                self.now,
                s.seq,
                s.ack,
                s.flags,
                s.sack,
                String::from_utf8_lossy(&s.payload)
            );
        }
    }

    fn deliver_injected(&mut self, packet: &[u8]) {
        let (source, destination, segment) = Segment::judged(packet);
        let Translation { client, client_external, server, server_external } = self.translation;
        let to = if destination == client { Side::Client } else { Side::Server };
        let expected: (SocketAddr, SocketAddr) = match to {
            Side::Client => (server_external, client),
            Side::Server => (client_external, server),
        };
        assert_eq!((source, destination), expected, "what the addressee knows");
        assert!(segment.payload.is_empty() && segment.flags == flags::ACK);
        self.trace("injected", to.peer(), &segment);
        self.fly(to.peer(), Place::End, segment, self.now);
    }

    /// What a SACK block claims to `side`, which sent it, the other end has.
    fn check_claims(&mut self, side: Side, segment: &Segment) {
        let Translation { client, server, .. } = self.translation;
        let Some((session, _)) = self.engine.session(client, server) else { return };
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
    fn check_pinholes(&mut self) {
        let open = self.kernel.pinholes();
        let mut held: Vec<_> = self.engine.pinholes().map(|p| p.pinhole).collect();
        held.retain(|p| open.contains(p));
        held.dedup();
        let limit = 8; // of one session
        assert!(open.len() <= limit, "{} pinholes for one session", open.len());
    }
}
