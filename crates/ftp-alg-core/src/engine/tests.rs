//! The engine with a kernel that records requests: one dialogue, packet by packet.

#[path = "fast_path_tests.rs"]
mod fast_path;
#[path = "open_pinholes_tests.rs"]
mod open_pinholes;
#[path = "policy_tests.rs"]
mod policy;
#[path = "records_tests.rs"]
mod records;
#[path = "routes_tests.rs"]
mod routes;
#[path = "super_packet_tests.rs"]
mod super_packets;
#[path = "transfers_tests.rs"]
mod transfers;
#[path = "reorder_tests.rs"]
mod waiting;

use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::{
    packet::{Header, HeaderEdit, Packet, Seq, build_segment, flags},
    policy::NetworkPolicy,
    script::messages,
};

/// A conversation through a gateway: both ends count what they sent and received.
struct Conversation {
    gateway: Standalone<FakeKernel>,
    now: Instant,
    client: SocketAddr,
    server: SocketAddr,
    /// The interfaces of client and server.
    interfaces: [u32; 2],
    next: [u32; 2],
    received: [u32; 2],
}

impl Conversation {
    fn masqueraded() -> Self {
        Self::under(Policy::default())
    }

    fn under(policy: Policy) -> Self {
        Self::through(Engine::new(policy, Checksums::Verify), "192.168.150.80")
    }

    fn through(engine: Engine, client: &str) -> Self {
        Self::at(engine, client, [1; 2])
    }

    /// A conversation whose client and server are on these interfaces.
    fn at(engine: Engine, client: &str, interfaces: [u32; 2]) -> Self {
        let client = SocketAddr::new(client.parse().unwrap(), 1035);
        let [server, client_external] = match client.is_ipv6() {
            true => ["[2001:db8:9::9]:21", "[2001:db8:7::1]:1035"],
            false => ["203.0.113.9:21", "198.51.100.1:1035"],
        }
        .map(|end| end.parse().unwrap());
        let translation = Translation { client_external, ..Translation::identity(client, server) };
        let kernel = FakeKernel { translation: Some(translation), ..FakeKernel::default() };
        let now = Instant::now();
        let (next, received) = ([100, 500], [500, 100]);
        let gateway = Standalone::new(engine, kernel);
        let mut this = Self { gateway, now, client, server, interfaces, next, received };
        let syn_ack = this.syn_ack();
        assert_eq!(this.pass(&syn_ack).0, PacketOutcome::Accept);
        this
    }

    fn logged_in() -> Self {
        Self::masqueraded().log_in()
    }

    fn log_in(self) -> Self {
        self.log_in_after("220 ready")
    }

    fn log_in_after(mut self, greeting: &str) -> Self {
        let script = format!("< {greeting} > USER joe < 331 password > PASS x < 230 in");
        for (side, line) in sides(&script) {
            assert_eq!(self.say(side, &line), (PacketOutcome::Accept, line));
        }
        self
    }

    /// The next packet of `side`, with this payload and these flags besides ACK.
    fn next_packet(&self, side: Side, payload: &[u8], flags: u8) -> Vec<u8> {
        self.packet(side, self.next[index(side)], payload, flags)
    }

    fn packet(&self, side: Side, seq: u32, payload: &[u8], flags: u8) -> Vec<u8> {
        let ends = self.ends_from(side);
        segment(ends, seq, self.received[index(side)], flags::ACK | flags, payload)
    }

    fn ends_from(&self, side: Side) -> [SocketAddr; 2] {
        if side == Side::Client { [self.client, self.server] } else { [self.server, self.client] }
    }

    fn syn_ack(&self) -> Vec<u8> {
        self.packet(Side::Server, self.next[1] - 1, b"", flags::SYN)
    }

    fn pass(&mut self, packet: &[u8]) -> (PacketOutcome, String) {
        let is_client = Packet::parse(packet).unwrap().source() == self.client;
        let [client, server] = self.interfaces;
        let (input, output) = if is_client { (client, server) } else { (server, client) };
        self.pass_between(packet, input, output)
    }

    /// Passes a packet from one interface to another.
    fn pass_between(&mut self, packet: &[u8], input: u32, output: u32) -> (PacketOutcome, String) {
        let meta = PacketMeta { input, output, ..PacketMeta::FORWARDED };
        let outcome = self.gateway.queued(self.now, packet, meta);
        let seen =
            if outcome == PacketOutcome::Replace { self.gateway.replacement() } else { packet };
        let seen = Packet::parse(seen).unwrap();
        let payload = seen.payload().to_vec();
        if outcome != PacketOutcome::Drop && !payload.is_empty() {
            let receiver = usize::from(seen.source() == self.client);
            self.received[receiver] = seen.seq().0 + payload.len() as u32;
        }
        (outcome, String::from_utf8(payload).unwrap())
    }

    /// Sets the policy, as at a reload.
    fn set_policy(&mut self, policy: Policy) {
        self.gateway.run(self.now, |engine, _| {
            engine.sessions.set_policy(policy);
            engine.sessions.close_forbidden_pinholes();
        });
    }

    /// Both ends say the messages of a script.
    fn play(&mut self, script: &str) {
        for (side, text) in sides(script) {
            self.say(side, &text);
        }
    }

    /// Both ends have begun another connection on the same endpoints.
    fn renumber(&mut self) {
        (self.next, self.received) = ([9_000_100, 9_000_500], [9_000_500, 9_000_100]);
    }

    /// The handshake of that connection passes.
    fn shake_hands(&mut self) {
        self.renumber();
        let syn_ack = self.syn_ack();
        self.pass(&syn_ack);
        let acknowledgement = self.next_packet(Side::Client, b"", 0);
        self.pass(&acknowledgement);
    }

    /// Both ends close.
    fn end(&mut self) {
        for side in [Side::Client, Side::Server] {
            let end = self.next_packet(side, b"", flags::FIN);
            self.pass(&end);
        }
    }

    /// The last record of all sessions.
    fn record(&mut self) -> Vec<u8> {
        self.records().pop().unwrap_or_default()
    }

    fn records(&mut self) -> Vec<Vec<u8>> {
        let (sessions, mut records) = (&mut self.gateway.engine.sessions, Vec::new());
        sessions.track_changes(self.now);
        sessions.write_all_records(|record| records.push(record.to_vec())).unwrap();
        records
    }

    /// An engine that knows only these records.
    fn restored<'r>(&self, policy: Policy, records: impl Iterator<Item = &'r [u8]>) -> Engine {
        let mut engine = Engine::new(policy, Checksums::Verify);
        engine.sessions.restore(records, self.now, self.now).unwrap();
        engine
    }

    /// An RST of `side` from `port` to `peer_port`.
    fn rst(&self, side: Side, [port, peer_port]: [u16; 2], seq: u32) -> Vec<u8> {
        let [mut source, mut destination] = self.ends_from(side);
        source.set_port(port);
        destination.set_port(peer_port);
        segment([source, destination], seq, 0, flags::RST, b"")
    }

    /// As [`next_packet`](Self::next_packet), and the one after it follows it.
    fn take_next(&mut self, side: Side, text: &str) -> Vec<u8> {
        let packet = self.next_packet(side, text.as_bytes(), 0);
        self.next[index(side)] += text.len() as u32;
        packet
    }

    fn say(&mut self, side: Side, text: &str) -> (PacketOutcome, String) {
        let packet = self.take_next(side, text);
        self.pass(&packet)
    }
}

fn index(side: Side) -> usize {
    usize::from(side == Side::Server)
}

/// A segment from one end to the other.
fn segment(ends: [SocketAddr; 2], seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [source, destination] = ends;
    let header = Header { source, destination, seq: Seq(seq), ack: Seq(ack), window: 512, flags };
    let mut bytes = Vec::new();
    build_segment(&header, payload, &mut bytes);
    bytes
}

/// The policy of all connections.
fn of_all(policy: Policy) -> NetworkPolicy {
    NetworkPolicy { clients: Vec::new(), servers: Vec::new(), inspect: true, policy }
}

/// The messages of a script.
fn sides(script: &str) -> impl Iterator<Item = (Side, String)> {
    let side = |from_client| if from_client { Side::Client } else { Side::Server };
    messages(script).into_iter().map(move |said| (side(said.from_client), said.text))
}

const PORT: &str = "PORT 192,168,150,80,14,178\r\n";
const REWRITTEN: &str = "PORT 198,51,100,1,14,178\r\n";

#[test]
fn each_unused_pinhole_expires_at_its_own_deadline() {
    let mut talk = Conversation::logged_in();
    let lifetime = Duration::from_secs(30);
    let first = talk.now + lifetime;
    talk.play("> PORT 192,168,150,80,14,178 < 200 ok");
    talk.now += Duration::from_secs(10);
    let second = talk.now + lifetime;
    talk.play("> PORT 192,168,150,80,14,179");
    talk.gateway.expire(talk.now);
    assert_eq!(talk.gateway.kernel.open.len(), 2);
    // Before its deadline, it would be renewed.
    let lead = Duration::from_secs(3);
    for (at, open, next) in [
        // It is examined: does its data connection wait?
        (second - Duration::from_secs(20), 2, Some(first - lead)),
        (first - lead, 2, Some(first)),
        (first, 1, Some(second - lead)),
        (second - lead, 1, Some(second)),
        (second, 0, None),
    ] {
        assert_eq!(talk.gateway.engine.sessions.next_deadline(), Some(at));
        talk.gateway.expire(at);
        assert_eq!(talk.gateway.kernel.open.len(), open);
        assert_eq!(talk.gateway.engine.sessions.next_deadline(), next);
    }
}

#[test]
fn a_consumed_pinholes_port_stays_reserved_in_other_shards_until_closed() {
    let mut talk = Conversation::logged_in();
    talk.play("> PORT 192,168,150,80,14,178 < 200 ok > LIST < 150 now < 226 done");
    assert_eq!(talk.gateway.kernel.open.len(), 1, "closed too early");
    let announced_from = |client: u8, gateway: &Conversation| {
        let shard = gateway.gateway.engine.new_shard();
        let mut other = Conversation::through(shard, &format!("192.168.150.{client}")).log_in();
        let id = other.gateway.engine.sessions.list().next().unwrap().id;
        assert_eq!(id, u64::from(client) - 79, "shards share the session numbers");
        other.say(Side::Client, &format!("PORT 192,168,150,{client},14,178\r\n")).1
    };
    assert_ne!(announced_from(81, &talk), REWRITTEN);
    talk.gateway.expire(talk.now + Duration::from_secs(8));
    assert_eq!(announced_from(82, &talk), REWRITTEN);
}

#[test]
fn the_queue_mode_is_set_again_after_a_conntrack_flush() {
    let mut talk = Conversation::logged_in();
    talk.play("> PORT 192,168,150,80,14,178");
    assert_eq!(talk.gateway.kernel.mode.take(), Some(QueueMode::All));
    (talk.gateway.kernel.was_flushed, talk.now) = (true, talk.now + RESEND_INTERVAL);
    let forwarded = (PacketOutcome::Replace, "NOOP\r\n".to_owned());
    assert_eq!(talk.say(Side::Client, "NOOP\r\n"), forwarded);
    talk.gateway.kernel.was_flushed = false;
    talk.play("< 200 ok");
    assert_eq!(talk.gateway.kernel.mode, Some(QueueMode::All));
    assert_eq!(talk.gateway.engine.counters().errors, 0);
}

/// A packet between a client and the server of all tests; sequence numbers count from 100 and 500.
/// It has these flags besides ACK.
fn flood_packet(number: u16, side: Side, said: (u32, u32), flags: u8, payload: &str) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    let [client, server] =
        [([10, 9, high, low], 1035), ([203, 0, 113, 9], 21)].map(SocketAddr::from);
    let (seq, ack) = (100 + said.0, 500_u32.wrapping_add(said.1));
    let (flags, payload) = (flags::ACK | flags, payload.as_bytes());
    match side {
        Side::Client => segment([client, server], seq, ack, flags, payload),
        Side::Server => segment([server, client], ack, seq, flags, payload),
    }
}

/// Passes the start of a connection to the engine: its SYN-ACK and, with `dialogue`, a greeting and a command.
fn start_connection(gateway: &mut Standalone<FakeKernel>, number: u16, dialogue: bool) {
    let now = Instant::now();
    let mut packets = vec![flood_packet(number, Side::Server, (0, u32::MAX), flags::SYN, "")];
    if dialogue {
        packets.push(flood_packet(number, Side::Server, (0, 0), 0, "220 ready\r\n"));
        packets.push(flood_packet(number, Side::Client, (0, 11), 0, "USER joe\r\n"));
    }
    for packet in packets {
        assert_eq!(gateway.packet(now, &packet), PacketOutcome::Accept);
    }
}

fn clients(gateway: &Standalone<FakeKernel>) -> Vec<u16> {
    let number = |session: SessionInfo| match session.translation.client.ip() {
        IpAddr::V4(ip) => u16::from_be_bytes([ip.octets()[2], ip.octets()[3]]),
        IpAddr::V6(_) => panic!("no IPv6 here"),
    };
    let mut clients: Vec<_> = gateway.engine.sessions.list().map(number).collect();
    clients.sort_unstable();
    clients
}

fn gateway_with_limit(max_sessions: usize) -> Standalone<FakeKernel> {
    let policy = Policy { max_sessions, ..Policy::default() };
    Standalone::new(Engine::new(policy, Checksums::Verify), FakeKernel::default())
}

#[test]
fn a_flood_of_ungreeted_connections_evicts_no_verified_session() {
    let mut gateway = gateway_with_limit(10);
    start_connection(&mut gateway, 1, true);
    for number in 100..10_000 {
        start_connection(&mut gateway, number, false);
        if number % 1000 == 0 {
            start_connection(&mut gateway, number / 1000 + 1, true); // 2 to 10
        }
        assert!(gateway.engine.sessions.count() <= 10);
    }
    let verified: Vec<u16> = (1..=10).collect();
    assert_eq!(clients(&gateway), verified);
    let by_age = gateway.engine.sessions.table.by_age.len();
    assert!(by_age <= 2 * 10, "{by_age}");
    let counters = gateway.engine.counters();
    assert_eq!(counters.packets, 9900 + 10 * 3);
    assert_eq!(counters.limits.sessions + counters.uninspected, 9900);
    assert_eq!(counters.uninspected, 999, "after the tenth no session can be evicted");
    let (events, more) = gateway.take_events();
    assert_eq!(events.len() as u64 + more, 9900);
    assert!(events.len() <= super::events::MAX_EVENTS);
    assert!(events[0].to_string().ends_with("for a newer connection: max-sessions is reached"));
}

#[test]
fn the_session_limit_holds_over_all_shards() {
    let mut first = gateway_with_limit(8);
    let mut second = Standalone::new(first.engine.new_shard(), FakeKernel::default());
    for number in 0..100 {
        start_connection(&mut first, number, false);
    }
    assert_eq!(clients(&first).len(), 6, "the last quarter is for shards below their share");
    for number in 100..200 {
        start_connection(&mut second, number, true);
    }
    assert_eq!((first.engine.sessions.count(), second.engine.sessions.count()), (6, 2));
    assert_eq!(clients(&second), [100, 101]);
    for number in 200..206 {
        start_connection(&mut first, number, true);
    }
    assert_eq!(clients(&first), [200, 201, 202, 203, 204, 205]);
}

#[test]
fn a_truncated_journal_never_has_two_sessions_on_the_same_endpoints() {
    let mut talk = Conversation::logged_in();
    talk.gateway.engine.sessions.track_changes(talk.now);
    let mut journal = std::mem::take(&mut talk.gateway.journal);
    talk.play("> NOOP");
    journal.extend(std::mem::take(&mut talk.gateway.journal));
    // Both ends start a new connection on the same endpoints.
    talk.shake_hands();
    journal.extend(std::mem::take(&mut talk.gateway.journal));
    for length in 0..=journal.len() {
        let records = journal[..length].iter().map(Vec::as_slice);
        let engine = talk.restored(Policy::default(), records);
        assert!(engine.sessions.table.iter().count() <= 1, "{length} of {}", journal.len());
    }
}

#[test]
fn a_tuple_reuse_during_a_restart_spares_the_new_connection() {
    let mut talk = Conversation::masqueraded();
    talk.gateway.engine.sessions.track_changes(talk.now);
    let mut talk = talk.log_in();
    talk.play("> PORT 192,168,150,80,14,178");
    let records = std::mem::take(&mut talk.gateway.journal);
    talk.gateway.engine = talk.restored(Policy::default(), records.iter().map(Vec::as_slice));
    let (next, received) = (talk.next, talk.received);
    // Its SYN-ACK passed while no daemon ran.
    talk.renumber();
    let greeting = "220 ready\r\n";
    assert_eq!(talk.say(Side::Server, greeting), (PacketOutcome::Accept, greeting.to_owned()));
    (talk.next, talk.received) = (next, received);
    let continued = talk.say(Side::Server, "200 ok\r\n");
    let expected = (PacketOutcome::Replace, "200 ok\r\n".to_owned());
    assert_eq!(continued, expected, "the old session continues, too");
}

/// The conntrack table was flushed just before.
#[test]
fn both_ends_of_a_reset_session_learn_it_although_conntrack_has_forgotten_it() {
    let mut talk = Conversation::logged_in();
    talk.play("> PORT 192,168,150,80,14,178 < 200 ok");
    talk.gateway.kernel.was_flushed = true;
    let now = talk.now;
    talk.gateway.run(now, |engine, kernel| {
        engine.sessions.reset_session(now, 0, "a test".to_owned(), kernel);
    });
    for end in [talk.client, talk.server] {
        let learns = |packet: &Vec<u8>| {
            let packet = Packet::parse(packet).unwrap();
            packet.has(flags::RST) && packet.destination() == end
        };
        assert!(talk.gateway.kernel.injected.iter().any(learns), "{end}");
    }
}

/// The client sends its next command at once.
#[test]
fn all_packets_behind_an_undone_change_are_dropped() {
    let mut talk = Conversation::logged_in();
    let after = talk.next[0] + PORT.len() as u32;
    let packets = [(talk.next[0], PORT), (after, "NOOP\r\n")]
        .map(|(seq, line)| talk.packet(Side::Client, seq, line.as_bytes(), 0));
    let now = talk.now;
    talk.gateway.run(now, |engine, kernel| {
        let queued = packets.iter().zip(1..).map(|(bytes, id)| QueuedPacket {
            token: Token { id, ..Token::default() },
            bytes,
            meta: PacketMeta::FORWARDED,
        });
        engine.take(now, queued, kernel);
        engine.undo_changes_after_downtime(now, kernel);
    });
    let dropped = Verdict::Drop(DropReason::Stale);
    let verdicts: Vec<_> = talk.gateway.verdicts().iter().map(|given| &given.verdict).collect();
    assert_eq!(verdicts, [&dropped, &dropped]);
    assert_eq!(talk.gateway.engine.sessions.count(), 0);
}
