//! Clients and servers of many connections, as packets.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{Checksums, Engine, Event, FakeKernel, PacketOutcome, Standalone},
    packet::flags,
    policy::Policy,
};

use super::support::segment::Segment;

/// What is said on a connection by who wants a gateway to remember much.
#[derive(Clone, Copy, Debug)]
pub enum Hostile {
    /// As many commands that are refused as a packet holds.
    Refused,
    /// Commands that are not, and are not acknowledged.
    Unacknowledged,
    /// A refused command as long as a packet.
    LongLine,
    /// A refused command as long as a packet, of which the start came alone.
    HeldLine,
    /// Commands of two kinds in turn, and the start of a line.
    Pending,
}

/// A packet's payload is at most this long.
pub const LARGEST: usize = 65_000;

/// One like any other. Many short ones take longer to read.
pub const LONG_NAME: &str = concat!(
    "SIZE pub/software/distributions/some-software-that-has-a-rather-long-name/and-a-version/",
    "some-software-that-has-a-rather-long-name-1.2.3.tar.gz\r\n",
);

/// As much of `line`, again and again, as a packet holds.
pub fn repeated(line: &str) -> Vec<u8> {
    line.as_bytes().iter().copied().cycle().take(LARGEST).collect()
}

impl Hostile {
    pub const ALL: [Self; 5] =
        [Self::Refused, Self::Unacknowledged, Self::LongLine, Self::HeldLine, Self::Pending];

    /// Its segments, in order.
    pub fn segments(self) -> Vec<Vec<u8>> {
        match self {
            Self::Refused => vec![repeated("PORT 1\r\n")],
            Self::Unacknowledged => vec![repeated(LONG_NAME), repeated(LONG_NAME)],
            Self::LongLine => vec![[b"PORT ", &[b'1'; LARGEST][..], b"\r\n"].concat()],
            Self::HeldLine => vec![b"PORT ".to_vec(), vec![b'1'; LARGEST]],
            Self::Pending => vec!["NOOP\r\nPASV\r\n".repeat(100).into_bytes(), vec![b'x'; 2000]],
        }
    }
}

/// What was sent by the gateway itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    pub to: SocketAddr,
    pub seq: u32,
}

/// The server's address, of the family of `client`.
pub fn server(client: SocketAddr) -> SocketAddr {
    let address = if client.is_ipv4() { "203.0.113.9" } else { "2001:db8:9::9" };
    SocketAddr::new(address.parse().unwrap(), 21)
}

/// The client of connection `number`, of which each address has a thousand.
pub fn numbered(number: usize) -> SocketAddr {
    let [_, a, b, c] = (number as u32 / 1000).to_be_bytes();
    SocketAddr::from(([10, a, b, c], 2000 + (number % 1000) as u16))
}

/// What both ends say first: numbers before that.
const FIRST: [u32; 2] = [5001, 7001];

/// A gateway, and what comes to it.
pub struct Wire {
    pub gateway: Standalone<FakeKernel>,
    pub now: Instant,
    epoch: Instant,
    pub events: Vec<Event>,
    /// What client and server of a connection say next.
    pub next: HashMap<SocketAddr, [u32; 2]>,
}

impl Wire {
    pub fn new(policy: Policy) -> Self {
        Self::with(Engine::new(policy, Checksums::Trust))
    }

    pub fn with(mut engine: Engine) -> Self {
        let now = Instant::now();
        engine.sessions.track_changes(now);
        Self {
            gateway: Standalone::new(engine, FakeKernel::default()),
            now,
            epoch: now,
            events: Vec::new(),
            next: HashMap::new(),
        }
    }

    /// `engine` reads what this one has written.
    pub fn restore_in(&mut self, engine: &mut Engine) {
        let mut records = Vec::new();
        let sessions = &mut self.gateway.engine.sessions;
        sessions.write_all_records(|record| records.push(record.bytes.to_vec())).unwrap();
        let records = records.iter().map(Vec::as_slice);
        engine.sessions.restore(records, self.now, self.epoch).unwrap();
    }

    /// Another engine goes on with what this one wrote.
    pub fn restart(&mut self, policy: Policy) {
        let mut next = Engine::new(policy, Checksums::Trust);
        self.restore_in(&mut next);
        self.gateway.engine = next;
        self.gateway.engine.sessions.track_changes(self.epoch);
        let Standalone { engine, kernel, .. } = &mut self.gateway;
        kernel.open.retain(|p| engine.sessions.holds_pinhole(p.initiator, p.arrival));
    }

    /// Clients see servers by this address.
    pub fn publish(&mut self, address: &str) {
        self.gateway.kernel.published = Some(address.parse().unwrap());
    }

    pub fn advance(&mut self, time: Duration) {
        self.now += time;
        for _ in 0..64 {
            self.gateway.expire(self.now); // a part of the table each time
        }
        self.events.extend(self.gateway.take_events().0);
    }

    /// The SYN-ACK to `client`.
    pub fn syn_ack(&mut self, client: SocketAddr) {
        self.begin(client, FIRST);
    }

    /// A connection of `client` with these first numbers begins, and its handshake is completed.
    pub fn begin_at(&mut self, client: SocketAddr, first: [u32; 2]) {
        self.begin(client, first);
        self.say_at(client, first[0], first[1], b"");
    }

    fn begin(&mut self, client: SocketAddr, first: [u32; 2]) {
        self.next.insert(client, first);
        let [ours, theirs] = first;
        self.hand(&packet((server(client), client), [theirs - 1, ours], flags::SYN, b""));
    }

    /// The connection of `client` begins, and its server greets.
    pub fn connect(&mut self, client: SocketAddr) {
        self.syn_ack(client);
        self.answer(client, "220 ready\r\n");
    }

    /// The same, and a login is accepted.
    pub fn log_in(&mut self, client: SocketAddr) {
        self.connect(client);
        self.say(client, b"USER joe\r\n");
        self.answer(client, "230 in\r\n");
    }

    /// `client` says `payload`, which it retransmits from where it was cut.
    pub fn say(&mut self, client: SocketAddr, payload: &[u8]) -> PacketOutcome {
        let [seq, ack] = self.next[&client];
        let verdict = self.say_at(client, seq, ack, payload);
        let passed = match verdict {
            PacketOutcome::Accept => payload.len(),
            _ => payload.len().min(self.passed()),
        };
        self.next.insert(client, [seq + passed as u32, ack]);
        verdict
    }

    /// How many bytes went on of what was replaced.
    pub fn passed(&self) -> usize {
        let replacement = Segment::read(self.gateway.replacement());
        replacement.map_or(0, |(_, _, segment)| segment.payload.len())
    }

    /// `client` says `payload` at a number.
    pub fn say_at(
        &mut self,
        client: SocketAddr,
        seq: u32,
        ack: u32,
        payload: &[u8],
    ) -> PacketOutcome {
        self.hand(&packet((client, server(client)), [seq, ack], 0, payload))
    }

    /// The server says `text` to `client`, and acknowledges all that this said.
    pub fn answer(&mut self, client: SocketAddr, text: &str) -> PacketOutcome {
        let [ack, seq] = self.next[&client];
        self.next.insert(client, [ack, seq + text.len() as u32]);
        self.hand(&packet((server(client), client), [seq, ack], 0, text.as_bytes()))
    }

    /// Both ends of `client`'s connection close it.
    pub fn close(&mut self, client: SocketAddr) {
        let [ours, theirs] = self.next[&client];
        self.hand(&packet((client, server(client)), [ours, theirs], flags::FIN, b""));
        self.hand(&packet((server(client), client), [theirs, ours + 1], flags::FIN, b""));
    }

    /// `client` resets its connection.
    pub fn reset(&mut self, client: SocketAddr) {
        let [ours, theirs] = self.next[&client];
        self.hand(&packet((client, server(client)), [ours, theirs], flags::RST, b""));
    }

    fn hand(&mut self, packet: &[u8]) -> PacketOutcome {
        let fate = self.gateway.packet(self.now, packet);
        self.events.extend(self.gateway.take_events().0);
        fate
    }

    /// The number of sessions.
    pub fn count(&self) -> usize {
        self.gateway.engine.sessions.count()
    }

    /// What all sessions hold, in bytes.
    pub fn memory(&self) -> usize {
        self.gateway.engine.sessions.memory()
    }

    /// The clients of sessions that are open.
    pub fn clients(&self) -> Vec<SocketAddr> {
        let mut clients: Vec<_> =
            self.gateway.engine.sessions.list().map(|s| s.translation.client).collect();
        clients.sort_unstable();
        clients
    }

    pub fn has(&self, client: SocketAddr) -> bool {
        self.clients().contains(&client)
    }

    /// The resets that were sent since this was last called.
    pub fn resets(&mut self) -> Vec<Reset> {
        let reset = |bytes: &Vec<u8>| {
            let (_, to, segment) = Segment::checked(bytes);
            let is_reset = segment.has(flags::RST);
            assert!(!is_reset || segment.payload.is_empty());
            is_reset.then_some(Reset { to, seq: segment.seq })
        };
        std::mem::take(&mut self.gateway.kernel.injected).iter().filter_map(reset).collect()
    }

    /// The last line of the log about a connection that was given up.
    pub fn said(&self) -> String {
        let mut lines = self.events.iter().rev().map(ToString::to_string);
        let is_it = |line: &String| {
            line.contains("session reset") || line.contains("max-sessions is reached")
        };
        lines.find(is_it).unwrap_or_default()
    }
}

/// A segment with these flags besides ACK as a packet.
pub fn packet(
    (source, destination): (SocketAddr, SocketAddr),
    [seq, ack]: [u32; 2],
    bits: u8,
    payload: &[u8],
) -> Vec<u8> {
    let (flags, payload) = (flags::ACK | bits, payload.into());
    let segment = Segment { seq, ack, flags, window: 1000, payload, ..Segment::default() };
    segment.packet(source, destination)
}
