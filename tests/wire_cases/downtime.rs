//! The daemon away for a moment: what goes on after its start, and where packets may have passed unread meanwhile. And what
//! an end that controls its acknowledgements makes of it.

use std::time::Instant;

use ftp_alg_core::{
    engine::{PacketMeta, PacketOutcome, QueueMode},
    packet::{Packet, flags},
    session::Side::{self, Client, Server},
};

use crate::{
    support::{
        scenario::Nat,
        segment::Segment,
        sim::{Sim, daemon::Decision},
    },
    with,
};

const PASSIVE: &[u8] = b"227 Entering Passive Mode (203,0,113,9,19,137)\r\n";
const EXTENDED: &[u8] = b"229 Entering Extended Passive Mode (|||5001|)\r\n";
const PORT: &[u8] = b"PORT 192,168,150,80,14,178\r\n";

/// A connection whose daemon has just been started again.
struct Restarted {
    sim: Sim,
    client: u32,
    server: u32,
}

impl Restarted {
    fn new() -> Self {
        Self::of(Nat::Routed)
    }

    fn of(nat: Nat) -> Self {
        let mut sim = Sim::logged_in(with(nat));
        let (client, server) = (sim.client.next_number(), sim.server.next_number());
        sim.crash();
        Self { sim, client, server }
    }

    /// Takes a packet of `from`, `seq` bytes behind what was seen, which acknowledges `ack` unseen ones.
    fn take(&mut self, from: Side, seq: u32, ack: u32, payload: &[u8]) -> PacketOutcome {
        self.queued(from, seq, ack, payload, PacketMeta::default())
    }

    /// The same, queued in this way.
    fn queued(
        &mut self,
        from: Side,
        seq: u32,
        ack: u32,
        payload: &[u8],
        how: PacketMeta,
    ) -> PacketOutcome {
        let packet = self.packet(from, seq, ack, payload);
        self.sim.decided(Instant::now(), &packet, how).0
    }

    /// Such a packet.
    fn packet(&self, from: Side, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
        let (client, server) = (self.sim.translation.client, self.sim.translation.server);
        let (own, other, source, destination) = match from {
            Client => (self.client, self.server, client, server),
            Server => (self.server, self.client, server, client),
        };
        let segment = Segment {
            seq: own.wrapping_add(seq),
            ack: other.wrapping_add(ack),
            flags: flags::ACK,
            window: 30_000,
            payload: payload.to_vec(),
            ..Segment::default()
        };
        segment.packet(source, destination)
    }

    fn opened(&mut self) -> u64 {
        for event in std::mem::take(&mut self.sim.events) {
            println!("{event}");
        }
        self.sim.engine().counters().pinholes_opened
    }
}

#[test]
fn inspection_continues_after_a_restart() {
    for (command, reply) in [(b"PASV\r\n", PASSIVE), (b"EPSV\r\n", EXTENDED)] {
        let mut gateway = Restarted::new();
        assert_eq!(gateway.take(Client, 0, 0, command), PacketOutcome::Accept);
        assert_eq!(gateway.take(Server, 0, 6, reply), PacketOutcome::Accept);
        assert_eq!(gateway.take(Client, 6, reply.len() as u32, PORT), PacketOutcome::Accept);
        assert_eq!(gateway.opened(), 2);
    }
}

/// A line that died behind the gateway is sent again as another.
#[test]
fn after_a_restart_a_retransmission_retains_its_original_bytes() {
    let mut gateway = Restarted::new();
    let line = b"NOOP xxxxxxxxxxxxxxxxxx\r\n";
    assert_eq!(gateway.take(Client, 0, 0, line), PacketOutcome::Accept);
    gateway.sim.crash();
    let other = gateway.packet(Client, 0, 0, b"PORT 10,99,99,99,14,178\r\nX");
    let (_, passed) = gateway.sim.decided(Instant::now(), &other, PacketMeta::default());
    assert!(passed.ends_with(&[line, &b"X"[..]].concat()), "{}", passed.escape_ascii());
}

#[test]
fn no_pinhole_opens_if_packets_may_have_passed_unread() {
    for (unseen, lapses) in [(0, false), (0, true), (31, false), (31, true)] {
        let mut gateway = Restarted::new();
        if lapses {
            gateway.sim.engine().record_downtime();
        }
        gateway.take(Server, unseen, 6, PASSIVE);
        gateway.take(Client, 6, unseen, b"");
        gateway.take(Server, unseen, 6, PASSIVE);
        assert_eq!(gateway.opened(), 0, "{unseen} {lapses}");
    }
}

/// Else a client could say one thing to the server while nobody reads, and another at the same numbers to us.
#[test]
fn after_downtime_a_command_waits_for_the_servers_acknowledgement() {
    for unread in [0, PORT.len() as u32] {
        let mut gateway = Restarted::new();
        gateway.sim.engine().record_downtime();
        assert_eq!(gateway.take(Client, 0, 0, PORT), PacketOutcome::Replace, "the server is asked");
        assert_eq!(gateway.take(Client, 0, 0, PORT), PacketOutcome::Replace);
        assert_eq!(gateway.opened(), 0, "{unread}");
        gateway.take(Server, 0, unread, b"");
        assert_eq!(gateway.take(Client, 0, 0, PORT), PacketOutcome::Accept);
        assert_eq!(gateway.opened(), u64::from(unread == 0), "{unread} bytes passed unread");
    }
}

#[test]
fn after_downtime_a_command_can_wait_in_the_queue() {
    let patient = PacketMeta { may_wait: true, ..PacketMeta::default() };
    for (unread, becomes) in [(0, Decision::Accept), (PORT.len() as u32, Decision::Drop)] {
        let mut gateway = Restarted::new();
        gateway.sim.engine().record_downtime();
        assert_eq!(gateway.queued(Client, 0, 0, PORT, patient), PacketOutcome::Wait);
        let asked = gateway.sim.kernel.injected.pop().unwrap();
        let asked = Packet::parse(&asked).unwrap();
        assert_eq!((asked.seq().0, asked.payload().len()), (gateway.client.wrapping_sub(1), 0));
        assert_eq!(gateway.sim.kernel.attention, Some(QueueMode::All));
        assert!(gateway.sim.others.is_empty());
        gateway.take(Server, 0, unread, b"");
        let others = &gateway.sim.others;
        assert!(others.iter().map(|given| &given.decision).eq([&becomes]), "{others:?}");
        assert_eq!(gateway.opened(), u64::from(unread == 0));
    }
}

/// A daemon that was stopped while it decided finds that what it changed may have passed by unchanged.
#[test]
fn rolling_back_a_late_rewrite_leaves_the_connection_usable() {
    let mut gateway = Restarted::of(Nat::Masquerade);
    let line = b"EPRT |1|192.168.150.80|3762|\r\n";
    gateway.sim.daemon.lapses = true;
    assert_eq!(gateway.take(Client, 0, 0, line), PacketOutcome::Drop);
    gateway.sim.daemon.lapses = false;
    let kernel = &mut gateway.sim.kernel;
    assert!(kernel.pinholes().is_empty());
    assert_eq!(kernel.attention, Some(QueueMode::Selected));
    // It has passed as it was.
    let next = line.len() as u32;
    assert_eq!(gateway.take(Server, 0, next, b"200 ok\r\n"), PacketOutcome::Accept);
    assert_eq!(gateway.take(Client, next, 8, b"NOOP\r\n"), PacketOutcome::Accept);
    assert_eq!(gateway.take(Client, next + 6, 8, line), PacketOutcome::Accept);
    assert_eq!(gateway.sim.engine().counters().pinholes_opened, 1, "nothing more is opened");
}

#[test]
fn a_retransmitted_line_start_that_passed_unread_is_not_held() {
    for (side, line) in [(Server, &b"221 bye\r\n"[..]), (Client, b"PASV\r\n")] {
        let mut gateway = Restarted::new();
        gateway.take(side, 0, 0, &line[..1]);
        // The other end has all of it: no more is acknowledged than that.
        let all = line.len() as u32;
        assert_eq!(gateway.take(side.peer(), 0, all, b""), PacketOutcome::Accept, "{line:?}");
        assert_eq!(gateway.take(side, all, 0, b""), PacketOutcome::Accept, "{line:?}");
        let lost = gateway.sim.engine().counters().unread_sessions;
        assert_eq!((lost, gateway.sim.engine().sessions.count()), (1, 1), "{line:?}");
    }
}

#[test]
fn a_port_after_unread_lines_is_forwarded_without_a_pinhole() {
    let mut gateway = Restarted::new();
    let first = gateway.take(Client, 8, 20, PORT);
    assert!(matches!(first, PacketOutcome::Replace | PacketOutcome::Drop), "{first:?}");
    // The server answers what it has.
    gateway.take(Server, 20, 8, b"");
    assert_eq!(gateway.take(Client, 8, 20, PORT), PacketOutcome::Accept);
    assert_eq!(gateway.opened(), 0);
    assert_eq!(gateway.sim.engine().counters().unread_sessions, 1);
}

/// The start of a line was dropped while nobody was there, and the other end acknowledged it all the same: so its sender
/// goes on in the middle of it.
#[test]
fn a_line_without_its_dropped_start_opens_no_pinhole() {
    let mut gateway = Restarted::new();
    gateway.take(Client, 12, 8, b"NOOP\r\n");
    gateway.take(Server, 8, 12, PASSIVE);
    assert_eq!(gateway.opened(), 0, "the client acknowledged the start of a longer line");
    let mut gateway = Restarted::new();
    gateway.take(Server, 0, 8, b"");
    gateway.take(Client, 8, 0, PORT);
    assert_eq!(gateway.opened(), 0, "the server acknowledged the start of a longer line");
}

/// A connection on which nothing was said yet.
#[test]
fn after_downtime_a_greeting_is_forwarded() {
    for says in ["220 ready\r\n", "220-a\r\n220 ready\r\n"] {
        let mut sim = Sim::new(with(Nat::Masquerade));
        let (client, server) = (sim.client.next_number(), sim.server.next_number());
        sim.engine().record_downtime();
        let mut gateway = Restarted { sim, client, server };
        for _ in 0..2 {
            let verdict = gateway.take(Server, 0, 0, says.as_bytes());
            assert_eq!(verdict, PacketOutcome::Accept, "{says}");
            gateway.sim.engine().record_downtime();
        }
    }
}

/// The end of one connection and the start of another may have passed unread.
#[test]
fn after_downtime_segments_of_a_new_connection_are_forwarded() {
    let take = |lapses| {
        let mut gateway = Restarted::new();
        assert_eq!(gateway.take(Client, 0, 0, b"NOOP\r\n"), PacketOutcome::Accept);
        if lapses {
            gateway.sim.engine().record_downtime();
        }
        gateway.take(Server, 1 << 30, 1 << 30, b"220 ready\r\n")
    };
    assert_eq!(take(true), PacketOutcome::Accept);
    assert_eq!(take(false), PacketOutcome::Drop);
}

/// One that began while packets passed by, or in the place of one that is known, has waited for nothing.
#[test]
fn late_packets_of_unknown_connections_get_a_verdict() {
    let late = PacketMeta { is_late: true, ..PacketMeta::default() };
    let take = |prepare: fn(&mut Sim), from, number, payload: &[u8]| {
        let mut gateway = Restarted::new();
        prepare(&mut gateway.sim);
        gateway.queued(from, number, number, payload, late)
    };
    let syst = b"SYST\r\n";
    assert_eq!(take(|_| {}, Client, 0, syst), PacketOutcome::Drop);
    assert_eq!(take(|_| {}, Server, 0, PASSIVE), PacketOutcome::Drop);
    assert_eq!(take(|_| {}, Client, 1 << 30, syst), PacketOutcome::Accept);
    assert_eq!(take(|_| {}, Server, 0, b""), PacketOutcome::Accept);
    assert_eq!(
        take(|sim| sim.engine().record_downtime(), Client, 0, syst),
        PacketOutcome::Replace,
        "it is asked"
    );
    assert_eq!(take(Sim::forget, Client, 0, syst), PacketOutcome::Accept);
    assert_eq!(take(Sim::forget, Server, 0, PASSIVE), PacketOutcome::Accept);
}
