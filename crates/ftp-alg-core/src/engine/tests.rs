//! The engine with a kernel that records requests: one dialogue, packet by packet.

#[path = "fast_path_tests.rs"]
mod fast_path;
#[path = "open_pinholes_tests.rs"]
mod open_pinholes;
#[path = "policy_tests.rs"]
mod policy;
#[path = "records_tests.rs"]
mod records;
#[path = "refused_data_tests.rs"]
mod refused_data;
#[path = "routes_tests.rs"]
mod routes;
#[path = "super_packet_tests.rs"]
mod super_packets;
#[path = "waiting_tests.rs"]
mod waiting;

use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;

use super::*;
use crate::packet::{Packet, PacketEdit, Seq, flags};

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
        Self::through(Engine::new(Policy::default(), Checksums::Verify), "192.168.150.80")
    }

    fn through(engine: Engine, client: &str) -> Self {
        Self::at(engine, client, [1; 2])
    }

    /// A conversation whose client and server are on these interfaces.
    fn at(engine: Engine, client: &str, interfaces: [u32; 2]) -> Self {
        let client = SocketAddr::new(client.parse().unwrap(), 1035);
        let server = "203.0.113.9:21".parse().unwrap();
        let translation = Translation {
            client_external: "198.51.100.1:1035".parse().unwrap(),
            ..Translation::identity(client, server)
        };
        let kernel = FakeKernel { translation: Some(translation), ..FakeKernel::default() };
        let now = Instant::now();
        let (next, received) = ([100, 500], [500, 100]);
        let gateway = Standalone::new(engine, kernel);
        let mut this = Self { gateway, now, client, server, interfaces, next, received };
        let syn_ack = this.build(Side::Server, 499, b"", true);
        assert_eq!(this.pass(&syn_ack).0, PacketOutcome::Accept);
        this
    }

    fn logged_in() -> Self {
        Self::masqueraded().log_in()
    }

    fn log_in(self) -> Self {
        self.log_in_after("220 ready\r\n")
    }

    fn log_in_after(mut self, greeting: &str) -> Self {
        for (side, line) in [
            (Side::Server, greeting),
            (Side::Client, "USER joe\r\n"),
            (Side::Server, "331 password\r\n"),
            (Side::Client, "PASS x\r\n"),
            (Side::Server, "230 in\r\n"),
        ] {
            assert_eq!(self.say(side, line), (PacketOutcome::Accept, line.to_owned()));
        }
        self
    }

    fn build(&self, side: Side, seq: u32, payload: &[u8], syn: bool) -> Vec<u8> {
        let (from, to, me) = match side {
            Side::Client => (self.client, self.server, 0),
            Side::Server => (self.server, self.client, 1),
        };
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else { panic!() };
        let builder = PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
            .tcp(from.port(), to.port(), seq, 512)
            .ack(self.received[me]);
        let builder = if syn { builder.syn() } else { builder };
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).unwrap();
        bytes
    }

    fn pass(&mut self, packet: &[u8]) -> (PacketOutcome, String) {
        let is_client = Packet::parse(packet).unwrap().source() == self.client;
        let [client, server] = self.interfaces;
        let (input, output) = if is_client { (client, server) } else { (server, client) };
        self.pass_between(packet, input, output)
    }

    /// Passes a packet from one interface to another.
    fn pass_between(&mut self, packet: &[u8], input: u32, output: u32) -> (PacketOutcome, String) {
        let meta = PacketMeta { input, output, ..PacketMeta::default() };
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
        self.gateway.run(self.now, |engine, effects| {
            engine.sessions.set_policy(policy);
            engine.sessions.close_forbidden_pinholes(effects);
        });
    }

    fn say(&mut self, side: Side, text: &str) -> (PacketOutcome, String) {
        let me = usize::from(side == Side::Server);
        let packet = self.build(side, self.next[me], text.as_bytes(), false);
        self.next[me] += text.len() as u32;
        self.pass(&packet)
    }
}

#[test]
fn a_port_behind_masquerade_is_rewritten_and_opened() {
    let mut talk = Conversation::logged_in();
    let (verdict, line) = talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    assert_eq!((verdict, &*line), (PacketOutcome::Replace, "PORT 198,51,100,1,14,178\r\n"));
    assert_eq!(
        talk.gateway.kernel.open,
        [Pinhole {
            initiator: "203.0.113.9".parse().unwrap(),
            arrival: "198.51.100.1:3762".parse().unwrap(),
            target: "192.168.150.80:3762".parse().unwrap(),
            source: "203.0.113.9".parse().unwrap(),
        }]
    );
    assert_eq!(talk.gateway.kernel.mode, Some(QueueMode::All));
    assert_eq!(talk.gateway.engine.counters().rewrites, 1);
}

#[test]
fn a_refused_announcement_closes_its_pinhole() {
    let mut talk = Conversation::logged_in();
    talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    talk.say(Side::Server, "500 no\r\n");
    assert!(
        talk.gateway.kernel.open.is_empty()
            && talk.gateway.engine.sessions.list_pinholes().next().is_none()
    );
}

#[test]
fn an_unused_pinhole_expires_at_its_deadline() {
    let mut talk = Conversation::logged_in();
    talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    let deadline = talk.now + Duration::from_secs(30);
    // Before, it would be renewed.
    for at in [deadline - Duration::from_secs(3), deadline] {
        talk.gateway.expire(talk.now);
        assert_eq!(talk.gateway.engine.sessions.next_deadline(), Some(at));
        assert!(!talk.gateway.kernel.open.is_empty());
        talk.now = at;
    }
    talk.gateway.expire(deadline);
    assert_eq!(talk.gateway.engine.sessions.next_deadline(), None);
    assert!(talk.gateway.kernel.open.is_empty());
}

#[test]
fn each_unused_pinhole_expires_at_its_own_deadline() {
    let mut talk = Conversation::logged_in();
    let lifetime = Duration::from_secs(30);
    let first = talk.now + lifetime;
    talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    talk.say(Side::Server, "200 ok\r\n");
    talk.now += Duration::from_secs(10);
    let second = talk.now + lifetime;
    talk.say(Side::Client, "PORT 192,168,150,80,14,179\r\n");
    talk.gateway.expire(talk.now);
    assert_eq!(talk.gateway.kernel.open.len(), 2);
    let lead = Duration::from_secs(3);
    for (at, open, next) in [
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

/// A conversation after a complete transfer.
fn after_transfer() -> Conversation {
    let mut talk = Conversation::logged_in();
    for (side, line) in [
        (Side::Client, "PORT 192,168,150,80,14,178\r\n"),
        (Side::Server, "200 ok\r\n"),
        (Side::Client, "LIST\r\n"),
        (Side::Server, "150 now\r\n"),
        (Side::Server, "226 done\r\n"),
    ] {
        talk.say(side, line);
    }
    assert_eq!(talk.gateway.kernel.open.len(), 1, "closed too early");
    talk
}

#[test]
fn a_consumed_pinhole_is_closed_with_the_next_opening() {
    for port in [178, 179] {
        let mut talk = after_transfer();
        let line = format!("PORT 192,168,150,80,14,{port}\r\n");
        assert_eq!(talk.say(Side::Client, &line).1, format!("PORT 198,51,100,1,14,{port}\r\n"));
        assert_eq!(talk.gateway.kernel.open.len(), 1);
        assert_eq!(talk.gateway.kernel.open[0].arrival.port(), 14 << 8 | port);
        let is_held = |port| {
            let arrival = SocketAddr::new("198.51.100.1".parse().unwrap(), 14 << 8 | port);
            talk.gateway.engine.sessions.pinholes.is_held(talk.server.ip(), arrival)
        };
        assert!(is_held(port) && !is_held(178 + 179 - port));
    }
}

#[test]
fn the_pinhole_of_an_ended_transfer_is_closed_later_or_with_its_session() {
    let mut talk = after_transfer();
    talk.gateway.expire(talk.now + Duration::from_secs(8));
    assert!(talk.gateway.kernel.open.is_empty());
    let mut talk = after_transfer();
    let end = with_fin(talk.build(Side::Client, talk.next[0], b"", false));
    talk.pass(&end);
    let end = with_fin(talk.build(Side::Server, talk.next[1], b"", false));
    talk.pass(&end);
    assert!(talk.gateway.kernel.open.is_empty());
}

#[test]
fn a_consumed_pinholes_port_stays_reserved_in_other_shards_until_closed() {
    let mut talk = after_transfer();
    let announced_from = |client: u8, gateway: &Conversation| {
        let shard = gateway.gateway.engine.new_shard();
        let mut other = Conversation::through(shard, &format!("192.168.150.{client}")).log_in();
        other.say(Side::Client, &format!("PORT 192,168,150,{client},14,178\r\n")).1
    };
    assert_ne!(announced_from(81, &talk), "PORT 198,51,100,1,14,178\r\n");
    talk.gateway.expire(talk.now + Duration::from_secs(8));
    assert_eq!(announced_from(82, &talk), "PORT 198,51,100,1,14,178\r\n");
}

#[test]
fn an_incomplete_announcement_is_held_and_acknowledged() {
    let mut talk = Conversation::logged_in();
    assert_eq!(talk.say(Side::Client, "PO"), (PacketOutcome::Replace, String::new()));
    let acknowledgement = Packet::parse(&talk.gateway.kernel.injected[0]).unwrap();
    assert_eq!(acknowledgement.source(), talk.server);
    assert_eq!(acknowledgement.destination(), talk.client);
    assert_eq!(acknowledgement.ack(), Seq(talk.next[0]));
    assert_eq!(acknowledgement.seq(), Seq(talk.next[1]));
    let (_, line) = talk.say(Side::Client, "RT 192,168,150,80,14,178\r\n");
    assert_eq!(line, "PORT 198,51,100,1,14,178\r\n");
}

#[test]
fn other_protocols_open_no_pinholes() {
    let mut talk = Conversation::masqueraded();
    talk.say(Side::Server, "220 ready\r\n");
    assert_eq!(talk.say(Side::Client, "POST / HTTP/1.1\r\n").0, PacketOutcome::Accept);
    assert_eq!(talk.gateway.kernel.mode, None);
    assert_eq!(talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n").0, PacketOutcome::Accept);
    assert_eq!(talk.say(Side::Client, "PORT 10,99,99,99,14,178\r\n").0, PacketOutcome::Replace);
    assert!(talk.gateway.kernel.open.is_empty());

    let mut talk = Conversation::masqueraded();
    assert_eq!(talk.say(Side::Client, "POST / HTTP/1.1\r\n").0, PacketOutcome::Accept);
    assert_eq!(talk.say(Side::Server, "HTTP/1.1 200 OK\r\n").0, PacketOutcome::Accept);
    assert_eq!(talk.gateway.kernel.mode, Some(QueueMode::None));
    assert_eq!(talk.say(Side::Client, "PORT 10,99,99,99,14,178\r\n").0, PacketOutcome::Accept);
}

#[test]
fn shards_share_external_ports_and_session_numbers() {
    let mut first = Conversation::logged_in();
    let mut second =
        Conversation::through(first.gateway.engine.new_shard(), "192.168.150.81").log_in();
    assert_eq!(second.gateway.engine.sessions.list().next().unwrap().id, 2);
    first.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    first.gateway.kernel.open.clear(); // its connection consumed it
    second.say(Side::Client, "PORT 192,168,150,81,14,178\r\n");
    let [pinhole] = second.gateway.kernel.open[..] else {
        panic!("{:?}", second.gateway.kernel.open)
    };
    assert_eq!(pinhole.target, "192.168.150.81:3762".parse().unwrap());
    assert_ne!(pinhole.arrival.port(), 3762, "closing one would close the other");
    first.say(Side::Server, "500 no\r\n");
    let mut third =
        Conversation::through(first.gateway.engine.new_shard(), "192.168.150.82").log_in();
    third.say(Side::Client, "PORT 192,168,150,82,14,178\r\n");
    assert_eq!(
        third.gateway.kernel.open.last().unwrap().arrival.port(),
        3762,
        "its port is free again"
    );
}

#[test]
fn a_clients_pinhole_limit_holds_over_all_shards() {
    let policy = Policy { max_pinholes_per_client: 1, ..Policy::default() };
    let engine = Engine::new(policy, Checksums::Verify);
    let mut second = Conversation::through(engine.new_shard(), "192.168.150.80").log_in();
    let mut first = Conversation::through(engine, "192.168.150.80").log_in();
    first.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    second.say(Side::Client, "PORT 192,168,150,80,14,179\r\n");
    assert_eq!((first.gateway.kernel.open.len(), second.gateway.kernel.open.len()), (1, 0));
    assert_eq!(second.gateway.engine.counters().pinholes_refused, 1);
}

#[test]
fn the_queue_mode_is_set_again_after_a_conntrack_flush() {
    let mut talk = Conversation::logged_in();
    talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    assert_eq!(talk.gateway.kernel.mode.take(), Some(QueueMode::All));
    (talk.gateway.kernel.was_flushed, talk.now) = (true, talk.now + RESEND_INTERVAL);
    let (verdict, line) = talk.say(Side::Client, "NOOP\r\n");
    assert_eq!((verdict, &*line), (PacketOutcome::Replace, "NOOP\r\n"), "the packet is forwarded");
    talk.gateway.kernel.was_flushed = false;
    talk.say(Side::Server, "200 ok\r\n");
    assert_eq!(talk.gateway.kernel.mode, Some(QueueMode::All));
    assert_eq!(talk.gateway.engine.counters().errors, 0);
}

#[test]
fn an_announcement_is_refused_while_the_translation_is_unknown() {
    let mut talk = Conversation::logged_in();
    talk.gateway.kernel.was_flushed = true;
    let (_, line) = talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    assert!(line.starts_with("XXXX "), "{line}");
    assert!(talk.gateway.kernel.open.is_empty());
    talk.gateway.kernel.was_flushed = false;
    talk.say(Side::Server, "500 what?\r\n");
    let (_, line) = talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    assert_eq!(line, "PORT 198,51,100,1,14,178\r\n");
    // A client's data connection may pass without us.
    let mut talk = Conversation::logged_in();
    talk.gateway.kernel.was_flushed = true;
    talk.say(Side::Client, "EPSV\r\n");
    let reply = "229 Entering Extended Passive Mode (|||2021|)\r\n";
    assert_eq!(talk.say(Side::Server, reply).1, reply);
    assert!(talk.gateway.kernel.open.is_empty());
}

#[test]
fn held_bytes_survive_while_conntrack_forgets_the_connection() {
    let mut talk = Conversation::logged_in();
    talk.gateway.kernel.was_flushed = true;
    assert_eq!(talk.say(Side::Client, "PO"), (PacketOutcome::Replace, String::new()));
    assert!(talk.gateway.kernel.injected.is_empty());
    talk.gateway.kernel.was_flushed = false;
    talk.next[0] -= 2;
    assert_eq!(
        talk.say(Side::Client, "PO"),
        (PacketOutcome::Replace, String::new()),
        "retransmission"
    );
    assert_eq!(talk.gateway.kernel.injected.len(), 1);
    assert_eq!(talk.gateway.kernel.mode, Some(QueueMode::All));
    let (_, line) = talk.say(Side::Client, "RT 192,168,150,80,14,178\r\n");
    assert_eq!(line, "PORT 198,51,100,1,14,178\r\n");
}

/// A packet between a client and the server of all tests; sequence numbers count from 100 and 500.
fn flood_packet(number: u16, side: Side, said: (u32, u32), payload: &str) -> Vec<u8> {
    let client = [10, 9, number.to_be_bytes()[0], number.to_be_bytes()[1]];
    let server = [203, 0, 113, 9];
    let (seq, ack) = (100 + said.0, 500_u32.wrapping_add(said.1));
    let builder = match side {
        Side::Client => PacketBuilder::ipv4(client, server, 64).tcp(1035, 21, seq, 512).ack(ack),
        Side::Server => PacketBuilder::ipv4(server, client, 64).tcp(21, 1035, ack, 512).ack(seq),
    };
    let builder = if payload == "SYN" { builder.syn() } else { builder };
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload.strip_prefix("SYN").unwrap_or(payload).as_bytes()).unwrap();
    bytes
}

/// Passes the start of a connection to the engine: its SYN-ACK and, with `dialogue`, a greeting and a command.
fn start_connection(gateway: &mut Standalone<FakeKernel>, number: u16, dialogue: bool) {
    let now = Instant::now();
    let mut packets = vec![flood_packet(number, Side::Server, (0, u32::MAX), "SYN")];
    if dialogue {
        packets.push(flood_packet(number, Side::Server, (0, 0), "220 ready\r\n"));
        packets.push(flood_packet(number, Side::Client, (0, 11), "USER joe\r\n"));
    }
    for packet in packets {
        assert_eq!(gateway.packet(now, &packet), PacketOutcome::Accept);
    }
}

fn clients(gateway: &Standalone<FakeKernel>) -> Vec<u16> {
    let mut clients: Vec<u16> = gateway
        .engine
        .sessions
        .list()
        .map(|session| match session.translation.client.ip() {
            IpAddr::V4(ip) => u16::from_be_bytes([ip.octets()[2], ip.octets()[3]]),
            IpAddr::V6(_) => panic!("no IPv6 here"),
        })
        .collect();
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
    assert!(
        gateway.engine.sessions.table.by_age.len() <= 2 * 10,
        "{}",
        gateway.engine.sessions.table.by_age.len()
    );
    let counters = gateway.engine.counters();
    assert_eq!(counters.packets, 9900 + 10 * 3);
    assert_eq!(counters.limits.sessions + counters.uninspected, 9900);
    assert_eq!(counters.uninspected, 999, "after the tenth no session can be evicted");
    let (events, more) = gateway.take_events();
    assert_eq!(events.len() as u64 + more, 9900);
    assert!(events.len() <= 1024);
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
fn a_half_closed_session_times_out() {
    let mut gateway = gateway_with_limit(8);
    start_connection(&mut gateway, 1, true);
    start_connection(&mut gateway, 2, true);
    let mut now = Instant::now();
    let mut fin = flood_packet(1, Side::Server, (10, 11), "421 too late\r\n");
    fin = with_fin(fin);
    assert_eq!(gateway.packet(now, &fin), PacketOutcome::Accept);
    now += Duration::from_secs(600);
    gateway.expire(now);
    assert_eq!(clients(&gateway), [2]);
}

/// The packet with a FIN and its checksum.
fn with_fin(packet: Vec<u8>) -> Vec<u8> {
    let sliced = etherparse::SlicedPacket::from_ip(&packet).unwrap();
    let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Tcp(tcp))) =
        (sliced.net, sliced.transport)
    else {
        panic!("no TCP over IPv4")
    };
    let mut header = tcp.to_header();
    header.fin = true;
    header.checksum = header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()).unwrap();
    let mut bytes = Vec::new();
    ip.header().to_header().write(&mut bytes).unwrap();
    header.write(&mut bytes).unwrap();
    bytes.extend_from_slice(tcp.payload());
    bytes
}

/// A conversation that continues with an engine that knows only these records.
fn restored(records: &[Vec<u8>], mut before: Conversation) -> Conversation {
    let mut engine = Engine::new(Policy::default(), Checksums::Verify);
    engine.sessions.restore(records.iter().map(Vec::as_slice), before.now, before.now).unwrap();
    before.gateway.engine = engine;
    before
}

#[test]
fn a_truncated_journal_never_has_two_sessions_on_the_same_endpoints() {
    let mut talk = Conversation::logged_in();
    talk.gateway.engine.sessions.track_changes(talk.now);
    let mut journal = std::mem::take(&mut talk.gateway.journal);
    talk.say(Side::Client, "NOOP\r\n");
    journal.extend(std::mem::take(&mut talk.gateway.journal));
    // Both ends start a new connection on the same endpoints.
    (talk.next, talk.received) = ([9_000_100, 9_000_500], [9_000_500, 9_000_100]);
    let syn_ack = talk.build(Side::Server, 9_000_499, b"", true);
    talk.pass(&syn_ack);
    let acknowledgement = talk.build(Side::Client, 9_000_100, b"", false);
    talk.pass(&acknowledgement);
    journal.extend(std::mem::take(&mut talk.gateway.journal));
    for length in 0..=journal.len() {
        let mut engine = Engine::new(Policy::default(), Checksums::Verify);
        engine
            .sessions
            .restore(journal[..length].iter().map(Vec::as_slice), talk.now, talk.now)
            .unwrap();
        assert!(engine.sessions.table.iter().count() <= 1, "{length} of {}", journal.len());
    }
}

#[test]
fn a_tuple_reuse_during_a_restart_spares_the_new_connection() {
    let mut talk = Conversation::masqueraded();
    talk.gateway.engine.sessions.track_changes(talk.now);
    let mut talk = talk.log_in();
    talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    let records = std::mem::take(&mut talk.gateway.journal);
    let mut talk = restored(&records, talk);
    let (next, received) = (talk.next, talk.received);
    // Its SYN-ACK passed while no daemon ran.
    (talk.next, talk.received) = ([9_000_100, 9_000_500], [9_000_500, 9_000_100]);
    let greeting = "220 ready\r\n";
    assert_eq!(talk.say(Side::Server, greeting), (PacketOutcome::Accept, greeting.to_owned()));
    (talk.next, talk.received) = (next, received);
    let (verdict, line) = talk.say(Side::Server, "200 ok\r\n");
    assert_eq!(
        (verdict, &*line),
        (PacketOutcome::Replace, "200 ok\r\n"),
        "the old session continues, too"
    );
}

#[test]
fn a_client_that_feigns_missed_packets_is_still_refused() {
    let mut talk = Conversation::logged_in();
    // Acknowledges data that was never sent; the server ignores the segment.
    talk.received[0] += 1000;
    talk.say(Side::Client, "NOOP\r\n");
    (talk.received[0], talk.next[0]) = (talk.received[0] - 1000, talk.next[0] - 6);
    talk.say(Side::Client, "NOOP\r\n");
    assert_eq!(talk.gateway.engine.counters().unread_sessions, 1);
    let (_, line) = talk.say(Side::Client, "PORT 10,99,99,99,14,178\r\n");
    assert_eq!(line, "XXXX XXXXXXXXXXXXXXXXXX\r\n");
    assert_eq!(talk.say(Side::Client, "POR").1, "", "cut into two segments");
    assert_eq!(talk.say(Side::Client, "T 10,99,99,99,14,178\r\n").1, line);
    let own = "PORT 192,168,150,80,14,178\r\n";
    assert_eq!(talk.say(Side::Client, own).1, own, "nothing is opened for it");
    assert!(talk.gateway.kernel.open.is_empty());
}
