//! A gateway, the connections through it, and what may happen to them.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{
        Checksums, Closing, Engine, Opening, PacketOutcome, PinholeEnds, Standalone, Translation,
    },
    packet::{Packet, flags},
    policy::{AuthTls, ExternalAddresses, ForeignAddress, KnownServer, NetworkPolicy, Policy},
    session::Side,
};

use super::{
    flow::Flow,
    recorder::{Life, Recorder},
    segment::Segment,
};

/// No session has more, whatever policy says.
const PINHOLES_PER_SESSION: usize = 8;
/// After this nothing is remembered of any connection.
const LONG: Duration = Duration::from_secs(10 * 86_400);
/// Number of retransmissions without progress after which bytes count as lost.
const PATIENCE: u32 = 3;
const TIMES: [u64; 8] = [0, 1, 5, 10, 30, 61, 121, 500_000];

/// Client, client's external, server, server's external. Two connections are of one client, and
/// two of one server.
const ENDS: [[&str; 4]; 4] = [
    ["192.168.150.80:1035", "198.51.100.1:40035", "203.0.113.9:21", "203.0.113.9:21"],
    ["192.168.150.80:1036", "198.51.100.1:1036", "203.0.113.10:21", "203.0.113.10:21"],
    ["192.0.2.7:3000", "192.0.2.7:3000", "10.0.0.5:21", "198.51.100.2:2121"],
    ["[fd00:150::80]:1035", "[2001:db8::1]:40035", "[2001:db8:9::9]:21", "[2001:db8::2]:2121"],
];

/// A control connection.
struct Connection {
    translation: Translation,
    client: Flow,
    server: Flow,
    timestamps: bool,
    /// Whether the engine has known it, or something was said that it did not want to know.
    was_seen: bool,
    /// Whether all its packets are as TCP makes them.
    is_honest: bool,
    /// Whether the server may have accepted a login.
    logged_in: bool,
}

/// Everything.
pub struct World {
    gateway: Standalone<Recorder>,
    policy: Policy,
    connections: Vec<Connection>,
    base: Instant,
    /// Whether the kernel has failed.
    has_failed: bool,
    /// Whether a transfer may have failed, whose pinhole then counts again.
    may_be_over: bool,
    shown: String,
}

impl Default for World {
    fn default() -> Self {
        let ends = ENDS.map(|ends| ends.map(|end| end.parse().expect("an endpoint")));
        let translation =
            |[client, client_external, server, server_external]: [SocketAddr; 4]| Translation {
                client_external,
                server_external,
                ..Translation::identity(client, server)
            };
        let translations = ends.map(translation);
        let mut kernel = Recorder::new(translations[0], Life::default());
        kernel.others.extend(&translations[1..]);
        let connections = translations.map(|one| Connection::new(one, b'0')).into();
        Self {
            gateway: Standalone::new(Engine::new(Policy::default(), Checksums::Verify), kernel),
            policy: Policy::default(),
            connections,
            base: Instant::now(),
            has_failed: false,
            may_be_over: false,
            shown: String::new(),
        }
    }
}

impl World {
    pub fn operate(&mut self, operation: u8, who: u8, rest: &[u8]) {
        let slot = usize::from(who & 3);
        let side = if who & 4 == 0 { Side::Client } else { Side::Server };
        let byte = |at: usize| rest.get(at).copied().unwrap_or(b'0');
        match operation {
            // A connection begins, or one is heard of that has begun long ago.
            b'n' => self.begin(slot, byte(0)),
            b'u' => {
                let Translation { client, server, .. } = self.restart(slot, byte(0));
                if self.gateway.engine.sessions.session_between(client, server).is_some() {
                    self.give_up(slot);
                }
            }
            // Someone says a line, or something else; what gets lost is not seen here.
            b'l' => self.say(slot, side, &[rest, b"\r\n"].concat(), true),
            b'b' => self.say(slot, side, &[rest, b"\n"].concat(), true),
            b'w' => self.say(slot, side, rest, true),
            b'm' => self.say(slot, side, &[rest, b"\r\n"].concat(), false),
            b'f' => {
                let flow = self.connections[slot].flow(side);
                let (from, to) = (flow.end(), flow.sent.len());
                self.send(slot, side, from, to);
            }
            // Something is retransmitted, however it is cut.
            b'r' => {
                let said = self.connections[slot].flow(side).sent.len();
                let from = said - usize::from(byte(0) & 0x7f).min(said);
                let to = (from + usize::from(byte(1) & 0x7f)).min(said);
                self.send(slot, side, from, to);
            }
            b'a' => {
                let connection = &mut self.connections[slot];
                connection.flow(side.peer()).acknowledge();
                let said = connection.flow(side).sent.len();
                self.send(slot, side, said, said);
            }
            b'x' => {
                let seq = self.connections[slot].flow(side).next();
                self.hand(slot, side, &Segment { seq, flags: flags::RST, ..Segment::default() });
            }
            b'j' => self.junk(slot, side, rest),
            b'p' => self.packet(rest),
            // A data connection comes.
            b'd' => {
                let open = self.gateway.kernel.pinholes();
                if let Some(pinhole) = open.get(slot) {
                    let arrived = self.gateway.kernel.connect(pinhole.initiator, pinhole.arrival);
                    assert_eq!(arrived, Some(pinhole.target));
                }
            }
            b'o' => {
                let port = u16::from_be_bytes([byte(0), byte(1)]);
                self.gateway.kernel.taken.insert(port);
            }
            b't' => self.pass(Duration::from_secs(TIMES[usize::from(who & 7)])),
            b'y' => {
                self.policy = policy(who);
                self.gateway.engine.sessions.set_policy(policy(who));
            }
            b'z' => self.start_again(),
            b'k' => self.close_all(),
            b'e' => {
                self.gateway.kernel.failing ^= true;
                self.has_failed = true;
            }
            b'h' => self.gateway.kernel.forgot ^= true,
            _ => {}
        }
        self.check();
    }

    /// Nothing is left.
    pub fn end(&mut self) {
        self.gateway.kernel.failing = false;
        self.gateway.kernel.forgot = false;
        (0..ENDS.len()).for_each(|slot| self.complete(slot));
        self.close_all();
        assert_eq!(
            self.gateway.engine.sessions.list_pinholes().count(),
            0,
            "pinholes are left after closing all"
        );
        if !self.has_failed {
            assert_eq!(self.gateway.kernel.pinholes(), [], "the kernel's pinholes are left");
        }
        self.pass(LONG);
        assert_eq!(self.gateway.engine.sessions.count(), 0, "sessions are left");
        self.expire();
        assert_eq!(self.gateway.engine.sessions.next_deadline(), None, "deadlines are left");
    }

    /// The daemon ends, and another one goes on with what it wrote.
    fn start_again(&mut self) {
        self.gateway.engine.sessions.track_changes(self.base);
        let mut records = Vec::new();
        self.gateway
            .engine
            .sessions
            .write_all_records(|record| records.push(record.bytes.to_vec()))
            .expect("records");
        let mut next = Engine::new(self.policy.clone(), Checksums::Verify);
        let (records, now) = (records.iter().map(Vec::as_slice), self.now());
        next.sessions.restore(records, now, self.base).expect("records of our own");
        for pinhole in self.gateway.kernel.pinholes() {
            if !next.sessions.holds_pinhole(pinhole.initiator, pinhole.arrival) {
                let closed = self.gateway.kernel.remove(&Closing::Rules(pinhole));
                self.has_failed |= closed.is_err();
            }
        }
        self.gateway.engine = next;
    }

    /// Both ends send again what is not acknowledged, until nothing is missing.
    fn complete(&mut self, slot: usize) {
        let mut patience = PATIENCE;
        while patience > 0 {
            patience -= 1;
            for side in [Side::Client, Side::Server] {
                let flow = self.connections[slot].flow(side);
                let (from, to) = (flow.settled, flow.sent.len());
                if from == to {
                    continue;
                }
                self.send(slot, side, from, to);
                self.operate(b'a', slot as u8 | if side == Side::Client { 4 } else { 0 }, b"");
                if self.connections[slot].flow(side).settled > from {
                    patience = PATIENCE;
                }
            }
        }
        let Connection { ref client, ref server, is_honest, .. } = self.connections[slot];
        if is_honest {
            assert!(client.is_delivered(), "the server misses lines");
            assert!(server.is_delivered(), "the client misses lines");
        }
    }

    fn now(&self) -> Instant {
        self.base + self.gateway.kernel.now
    }

    fn close_all(&mut self) {
        let now = self.now();
        self.gateway.run(now, |engine, _| engine.sessions.close_all_pinholes());
    }

    fn expire(&mut self) {
        let now = self.now();
        self.gateway.expire(now);
    }

    fn pass(&mut self, time: Duration) {
        self.gateway.kernel.now += time;
        self.expire();
    }

    /// Another connection takes the place of this one, between the same ends.
    fn restart(&mut self, slot: usize, how: u8) -> Translation {
        let Connection { translation, logged_in, .. } = self.connections[slot];
        self.connections[slot] = Connection { logged_in, ..Connection::new(translation, how) };
        translation
    }

    fn begin(&mut self, slot: usize, how: u8) {
        let Translation { client, server, .. } = self.restart(slot, how);
        let connection = &self.connections[slot];
        let syn_ack = Segment {
            seq: connection.server.first.wrapping_sub(1),
            ack: connection.client.first,
            flags: flags::SYN | flags::ACK,
            ..Segment::default()
        };
        let bytes = syn_ack.packet(server, client);
        let packet = Packet::parse(&bytes).expect("a packet");
        let began = |world: &mut Self| {
            world
                .gateway
                .engine
                .sessions
                .session_between(client, server)
                .map(|(session, _)| session.is_syn_ack_retransmission(&packet))
        };
        let before = began(self);
        self.hand(slot, Side::Server, &syn_ack);
        // The engine may go on with one that it does not take to be over: what it has seen differs.
        if before == Some(true) || began(self) == Some(false) {
            self.give_up(slot);
        }
    }

    /// From now on the engine may have read other bytes than the connection's ends know of, also those of a login.
    fn give_up(&mut self, slot: usize) {
        self.connections[slot].give_up();
        self.connections[slot].logged_in = true;
    }

    fn say(&mut self, slot: usize, side: Side, bytes: &[u8], seen: bool) {
        let flow = self.connections[slot].flow(side);
        let (from, to) = (flow.say(bytes), flow.sent.len());
        if side == Side::Server {
            self.may_be_over |= !matches!(bytes.first(), Some(b'1'..=b'3'));
        }
        if seen {
            self.send(slot, side, from, to);
        }
    }

    /// Sends what `side` has said from `from` up to `to`.
    fn send(&mut self, slot: usize, side: Side, from: usize, to: usize) {
        let connection = &mut self.connections[slot];
        connection.logged_in |= connection.server.says_230()
            || connection.client.says_login() && connection.server.says_success();
        let ack = connection.flow(side.peer()).ack;
        let timestamps = connection.timestamps.then_some((from as u32, 1)); // a clock of a kind
        let segment = connection.flow(side).segment(from.min(to), to);
        self.hand(slot, side, &Segment { ack, timestamps, window: 4096, ..segment });
    }

    /// A segment that no TCP would send: numbers, bits and content are the script's.
    fn junk(&mut self, slot: usize, side: Side, rest: &[u8]) {
        let Some((&[bits, how, seq, ack], payload)) = rest.split_first_chunk::<4>() else { return };
        let scale = [1, 64, 1 << 20, 1 << 30][usize::from(how & 3)];
        let offset = |by: u8| i32::from(by.cast_signed()).wrapping_mul(scale).cast_unsigned();
        let connection = &mut self.connections[slot];
        connection.is_honest = false;
        connection.flow(side).is_contradicted = true;
        let seq = connection.flow(side).next().wrapping_add(offset(seq));
        let ack = connection.flow(side.peer()).ack.wrapping_add(offset(ack));
        let sack = if how & 4 == 0 {
            vec![]
        } else {
            vec![(ack, ack.wrapping_add(9)), (ack.wrapping_add(20), ack)]
        };
        let timestamps = (how & 8 != 0).then_some((seq, ack));
        // A line of the script has no line feed.
        let payload = payload.iter().map(|b| if *b == 0x0b { b'\n' } else { *b }).collect();
        let urgent = u16::from(how);
        self.connections[slot].logged_in = true;
        self.may_be_over = true;
        if bits & flags::SYN != 0 {
            self.give_up(slot); // it may begin another one, either way
        }
        let flags = bits & 0x3f;
        let segment =
            Segment { seq, ack, flags, sack, timestamps, payload, urgent, ..Segment::default() };
        self.hand(slot, side, &segment);
    }

    /// Any bytes.
    fn packet(&mut self, bytes: &[u8]) {
        let now = self.now();
        let known = Packet::parse(bytes).is_ok();
        let outcome = self.pass_packet(now, bytes);
        if !known {
            assert_eq!(outcome, PacketOutcome::Accept);
        }
        // Whose it is, and what it says, is not looked at here.
        self.connections.iter_mut().for_each(Connection::give_up);
        self.connections.iter_mut().for_each(|one| one.logged_in = true);
        self.may_be_over = true;
    }

    /// A packet of a connection comes to the gateway, and what goes on to its receiver.
    fn hand(&mut self, slot: usize, side: Side, segment: &Segment) {
        let Translation { client, server, .. } = self.connections[slot].translation;
        let (source, destination) = match side {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        let state = self
            .gateway
            .engine
            .sessions
            .session_between(client, server)
            .map(|(session, _)| session.state());
        let connection = &mut self.connections[slot];
        // What was forgotten had numbers that nobody knows now, and what passed was not read.
        if connection.was_seen && state.is_none() {
            connection.give_up();
        }
        if segment.has(flags::ACK) {
            connection.flow(side.peer()).acknowledged(segment.ack);
        }
        let packet = segment.packet(source, destination);
        let (now, sessions) = (self.now(), self.gateway.engine.sessions.count());
        let opened = self.gateway.engine.counters().pinholes_opened;
        let outcome = self.pass_packet(now, &packet);
        assert!(self.gateway.engine.sessions.count() <= sessions.max(self.policy.max_sessions));
        if self.gateway.engine.counters().pinholes_opened > opened && !self.may_be_over {
            self.check_limit(client.ip());
        }

        let session = self.gateway.engine.sessions.session_between(client, server);
        let state = session.map(|(session, _)| session.state());
        let connection = &mut self.connections[slot];
        connection.was_seen |= state.is_some() || !segment.payload.is_empty();
        let flow = connection.flow(side);
        // The client's first bytes count, as long as they may open something; the server's need not.
        let is_read =
            state.is_some_and(|state| matches!(state, "new" | "greeted" | "login" | "logged-in"));
        flow.is_unknown |= flow.is_contradicted && !(is_read && side == Side::Client);
        match outcome {
            PacketOutcome::Accept => connection.receive(side, segment),
            PacketOutcome::Replace => {
                let (from, to, changed) = Segment::checked(self.gateway.replacement());
                assert_eq!((from, to), (source, destination));
                connection.receive(side, &changed);
            }
            PacketOutcome::Drop | PacketOutcome::Wait => {}
        }
        self.injected();
    }

    /// What the engine sends by itself, an acknowledgement of what was sent or what grew past a segment, goes
    /// between ends that know each other.
    fn injected(&mut self) {
        for packet in std::mem::take(&mut self.gateway.kernel.injected) {
            let (source, destination, segment) = Segment::checked(&packet);
            assert!(!segment.has(flags::SYN) && !segment.has(flags::RST), "{segment:?}");
            let knows_each_other = |one: &&mut Connection| {
                let Translation { client, client_external, server, server_external, .. } =
                    one.translation;
                let ends = [(server_external, client), (client_external, server)];
                ends.contains(&(source, destination))
            };
            let connection = self.connections.iter_mut().find(knows_each_other);
            let connection = connection.expect("known ends");
            let to_client = destination == connection.translation.client;
            let from = if to_client { Side::Server } else { Side::Client };
            connection.receive(from, &segment);
        }
    }

    fn pass_packet(&mut self, now: Instant, packet: &[u8]) -> PacketOutcome {
        let outcome = self.gateway.packet(now, packet);
        self.check_openings();
        outcome
    }

    fn check_openings(&mut self) {
        for opening in std::mem::take(&mut self.gateway.kernel.openings) {
            self.check_opening(&opening);
        }
    }

    /// A pinhole is for the two ends of its control connection, unless policy allows foreign addresses. Its port is not
    /// below the lowest one. A port that was not announced is in the configured range.
    fn check_opening(&self, opening: &Opening) {
        let Opening { ends: pinhole, control, lifetime, .. } = *opening;
        let PinholeEnds { initiator, arrival, target, source } = pinhole;
        let Translation { client, client_external, server, server_external, .. } = control;
        let network = self.policy.network_of(client.ip(), server.ip());
        let policy = self.policy.for_network(network);
        let ((from, seen_from), (to, seen_to)) = match opening.is_from_client() {
            true => ((client, client_external), (server, server_external)),
            false => ((server, server_external), (client, client_external)),
        };
        assert_eq!((initiator, source), (from.ip(), seen_from.ip()), "who opens {pinhole}");
        if policy.foreign_address == ForeignAddress::Refuse {
            assert_eq!((target.ip(), arrival.ip()), (to.ip(), seen_to.ip()), "whose is {pinhole}");
        }
        assert!(target.port() >= policy.min_data_port, "{pinhole} is too low");
        let chosen = policy.port_range.contains(&arrival.port())
            && !policy.control_ports.contains(&arrival.port());
        assert!(arrival.port() == target.port() || chosen, "{pinhole} arrives out of range");
        assert_eq!(lifetime, policy.pinhole_timeout);
        let connection = self.connections.iter().find(|one| one.translation == control);
        let logged_in = connection.expect("a connection that there is").logged_in;
        assert!(!policy.require_login || logged_in, "{pinhole} before a login");
    }

    fn check_limit(&self, client: IpAddr) {
        let of_client = |session| {
            let mut sessions = self.gateway.engine.sessions.list();
            sessions.any(|s| s.id == session && s.translation.client.ip() == client)
        };
        let count =
            self.gateway.engine.sessions.list_pinholes().filter(|p| of_client(p.session)).count();
        let network = |p: &Policy| p.max_pinholes_per_client;
        let most = self.policy.networks.iter().map(|n| network(&n.policy)).max();
        assert!(count <= most.unwrap_or(0).max(network(&self.policy)), "{count} pinholes");
    }

    fn check(&mut self) {
        self.check_openings();
        let sessions = &self.gateway.engine.sessions;
        for session in sessions.list() {
            let of_session = sessions.list_pinholes().filter(|p| p.session == session.id);
            assert!(of_session.count() <= PINHOLES_PER_SESSION, "{session:?}");
        }
        for event in self.gateway.take_events().0 {
            self.shown.clear();
            write!(self.shown, "{event}").expect("a string takes it");
            assert!(!self.shown.contains('\n'), "an event is one line");
        }
    }
}

impl Connection {
    fn new(translation: Translation, how: u8) -> Self {
        // Numbers may wrap at once, or in the middle of a login.
        let firsts = [1000, u32::MAX, u32::MAX - 40, 1 << 31];
        let first = |by: u8| firsts[usize::from(by & 3)];
        Self {
            translation,
            client: Flow::new(first(how)),
            server: Flow::new(first(how >> 2)),
            timestamps: how & 16 == 0,
            was_seen: false,
            is_honest: true,
            logged_in: false,
        }
    }

    fn flow(&mut self, side: Side) -> &mut Flow {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    fn give_up(&mut self) {
        self.client.is_unknown = true;
        self.server.is_unknown = true;
        self.is_honest = false;
    }

    /// The peer of `from` is given `segment`.
    fn receive(&mut self, from: Side, segment: &Segment) {
        if self.is_honest && segment.has(flags::ACK) {
            self.flow(from.peer()).settle(segment.ack);
        }
        if self.flow(from.peer()).may_acknowledge(segment.ack) {
            self.flow(from).receive(segment);
        }
    }
}

fn policy(which: u8) -> Policy {
    let default = Policy::default();
    let open = Policy { require_login: false, ..Policy::default() };
    match which & 7 {
        0 => default,
        1 => open,
        2 => Policy { foreign_address: ForeignAddress::Allow, ..open },
        3 => Policy { min_data_port: 2000, auth_tls: AuthTls::Refuse, ..default },
        4 => Policy {
            max_sessions: 2,
            max_pinholes_per_client: 2,
            port_range: 50000..=50003,
            ..open
        },
        5 => {
            let server = |address: &str, heal| KnownServer {
                replace_foreign_address: heal,
                passive_ports: [50000..=50009].into(),
                ..KnownServer::new(address.parse().expect("an address"))
            };
            let external: IpAddr = [198, 51, 100, 77].into();
            Policy {
                external: ExternalAddresses::from(external),
                servers: [server("203.0.113.9", true), server("10.0.0.5", false)].into(),
                ..open
            }
        }
        6 => Policy { pinhole_timeout: Duration::from_secs(5), max_pinholes_per_client: 1, ..open },
        _ => {
            let network = |client: &str, inspect| NetworkPolicy {
                clients: vec![client.parse().expect("a network")],
                servers: vec![],
                inspect,
                policy: Policy {
                    foreign_address: ForeignAddress::Allow,
                    min_data_port: 1,
                    ..open.clone()
                },
            };
            let networks = vec![network("192.168.0.0/16", true), network("192.0.2.0/24", false)];
            Policy { control_ports: vec![21, 2121], networks, ..default }
        }
    }
}
