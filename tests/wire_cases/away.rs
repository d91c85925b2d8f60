//! The daemon away for a moment, while harmless lines of calm connections pass and no copy of them is read: what goes on
//! after its start, and what an end that controls its acknowledgements makes of it.

use std::time::Instant;

use ftp_alg_core::{
    engine::{Attention, Fate, Queued},
    packet::{Packet, flags},
    session::Side::{self, Client, Server},
};

use crate::{
    support::{
        crash,
        scenario::{Nat, Scenario},
        segment::Segment,
        selection::{Mark, Way},
        sim::{Sim, daemon::Decision},
    },
    with,
};

/// The segment that ends the calm,
const ENDS: Queued = Queued {
    ended_calm: true,
    ended_calm_before: false,
    may_wait: false,
    offload: NONE,
    from: None,
    every: false,
    is_late: false,
};
/// and the same, sent again.
const ENDED: Queued = Queued { ended_calm: false, ended_calm_before: true, ..ENDS };
const OTHER: Queued = Queued { ended_calm: false, ..ENDS };
const NONE: ftp_alg_core::packet::Offload =
    ftp_alg_core::packet::Offload { joined: false, unsummed: false };

const PASSIVE: &[u8] = b"227 Entering Passive Mode (203,0,113,9,19,137)\r\n";
const EXTENDED: &[u8] = b"229 Entering Extended Passive Mode (|||5001|)\r\n";
const PORT: &[u8] = b"PORT 192,168,150,80,14,178\r\n";

/// A calm connection whose daemon has just been started again.
struct Restarted {
    sim: Sim,
    client: u32,
    server: u32,
}

impl Restarted {
    fn new() -> Self {
        Self::of(Scenario { selection: true, crashes: 1e-9, ..with(Nat::Routed) })
    }

    fn of(scenario: Scenario) -> Self {
        Self::after(Sim::logged_in(scenario))
    }

    fn after(mut sim: Sim) -> Self {
        let (client, server) = (sim.client.next_number(), sim.server.next_number());
        sim.read_copies();
        sim.crash();
        Self { sim, client, server }
    }

    /// Takes a packet of `from`, `seq` bytes behind what was seen, which acknowledges `ack` unseen ones.
    fn take(&mut self, from: Side, seq: u32, ack: u32, payload: &[u8], how: Queued) -> Fate {
        let packet = self.packet(from, seq, ack, payload);
        self.sim.decided(Instant::now(), &packet, how).0
    }

    /// Such a packet.
    fn packet(&self, from: Side, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
        let segment = self.segment(from, seq, ack, payload);
        let (client, server) = (self.sim.translation.client, self.sim.translation.server);
        match from {
            Client => segment.packet(client, server),
            Server => segment.packet(server, client),
        }
    }

    fn segment(&self, from: Side, seq: u32, ack: u32, payload: &[u8]) -> Segment {
        let (own, other) = match from {
            Client => (self.client, self.server),
            Server => (self.server, self.client),
        };
        Segment {
            seq: own.wrapping_add(seq),
            ack: other.wrapping_add(ack),
            flags: flags::ACK,
            window: 30_000,
            payload: payload.to_vec(),
            ..Segment::default()
        }
    }

    /// Such a packet, and what the rules say as they queue it.
    fn queued(&mut self, from: Side, seq: u32, ack: u32, payload: &[u8]) -> (Vec<u8>, Queued) {
        let (segment, packet) =
            (self.segment(from, seq, ack, payload), self.packet(from, seq, ack, payload));
        let attention = &mut self.sim.kernel.attention;
        let way = self.sim.selection.way(0, attention, from, packet.len(), Some(&segment));
        let Way::Queued(mark) = way else { panic!("{way:?}") };
        let how = Queued {
            ended_calm: mark == Mark::EndedCalm,
            ended_calm_before: mark == Mark::EndedCalmBefore,
            every: mark == Mark::Every,
            ..OTHER
        };
        (packet, how)
    }

    /// Takes packets that were queued one after the other.
    fn take_all<const N: usize>(&mut self, packets: [(Vec<u8>, Queued); N]) {
        for (packet, how) in packets {
            self.sim.decided(Instant::now(), &packet, how);
        }
    }

    fn opened(&mut self) -> u64 {
        for event in std::mem::take(&mut self.sim.events) {
            println!("{event}");
        }
        self.sim.engine().counters().pinholes_opened
    }
}

#[test]
fn a_reply_to_a_pasv_that_nobody_saw_opens() {
    for (unseen, how) in [(0, ENDS), (0, ENDED), (31, ENDS), (31, ENDED)] {
        for reply in [PASSIVE, EXTENDED] {
            let mut gateway = Restarted::new();
            assert_eq!(gateway.take(Server, unseen, 6, reply, how), Fate::Accept);
            assert_eq!(gateway.opened(), 1, "{unseen} bytes before it");
            assert_eq!(gateway.sim.engine().counters().lost, 0);
        }
    }
}

/// The lines of a login, of which the last are not read.
const LOGIN: [(Side, &[u8]); 5] = [
    (Server, b"220 ready\r\n"),
    (Client, b"USER joe\r\n"),
    (Server, b"331 password\r\n"),
    (Client, b"PASS x\r\n"),
    (Server, b"230 in\r\n"),
];

impl Restarted {
    /// With the first `seen` lines of a login read, and how many bytes of client and server are not.
    fn amid_login(seen: usize) -> (Self, [u32; 2]) {
        let scenario = Scenario { selection: true, crashes: 1e-9, ..with(Nat::Routed) };
        let mut sim = Sim::new(scenario);
        let (read, unread) = LOGIN.split_at(seen);
        for (side, line) in read {
            assert_eq!(sim.say(*side, line), *line);
        }
        let bytes = [Client, Server].map(|of| {
            unread.iter().filter(|(side, _)| *side == of).map(|(_, line)| line.len() as u32).sum()
        });
        (Self::after(sim), bytes)
    }
}

#[test]
fn a_login_that_nobody_saw_counts() {
    for seen in 1..LOGIN.len() {
        let (mut gateway, [client, server]) = Restarted::amid_login(seen);
        assert_eq!(gateway.take(Server, server, client + 6, PASSIVE, ENDS), Fate::Accept);
        assert_eq!(gateway.opened(), 1, "227 after {seen} lines");

        let (mut gateway, [client, server]) = Restarted::amid_login(seen);
        gateway.take(Client, client, server, PORT, ENDS);
        gateway.take(Server, server, client, b"", OTHER);
        assert_eq!(gateway.take(Client, client, server, PORT, ENDED), Fate::Accept);
        assert_eq!(gateway.opened(), 1, "PORT after {seen} lines");
    }
}

#[test]
fn a_login_of_which_only_the_last_reply_was_seen_counts() {
    for seen in 1..LOGIN.len() {
        let (mut gateway, [client, server]) = Restarted::amid_login(seen);
        let reply = LOGIN[4].1;
        let copies = [
            gateway.packet(Server, server - reply.len() as u32, client, reply),
            gateway.packet(Client, client, server, b"PASV\r\n"),
        ];
        for copy in copies {
            gateway.sim.passed(&copy);
        }
        gateway.take(Server, server, client + 6, PASSIVE, ENDS);
        assert_eq!(gateway.opened(), 1, "after {seen} lines");
    }
}

#[test]
fn it_opens_nothing_where_more_than_harmless_lines_may_have_passed() {
    for unseen in [0, 31] {
        let mut gateway = Restarted::new();
        gateway.sim.engine().lapse();
        gateway.take(Server, unseen, 6, PASSIVE, ENDS);
        gateway.take(Client, 6, unseen, b"", OTHER);
        gateway.take(Server, unseen, 6, PASSIVE, ENDED);
        assert_eq!(gateway.opened(), 0, "{unseen}");
    }
}

/// Else a client could say one thing to the server while nobody reads, and another at the same numbers to us.
#[test]
fn after_a_lapse_a_command_waits_until_the_server_has_said_what_it_has() {
    for unread in [0, PORT.len() as u32] {
        let mut gateway = Restarted::new();
        gateway.sim.engine().lapse();
        assert_eq!(gateway.take(Client, 0, 0, PORT, OTHER), Fate::Replace, "the server is asked");
        assert_eq!(gateway.take(Client, 0, 0, PORT, OTHER), Fate::Replace);
        assert_eq!(gateway.opened(), 0, "{unread}");
        gateway.take(Server, 0, unread, b"", OTHER);
        assert_eq!(gateway.take(Client, 0, 0, PORT, OTHER), Fate::Accept);
        assert_eq!(gateway.opened(), u64::from(unread == 0), "{unread} bytes passed unread");
    }
}

#[test]
fn it_waits_in_the_queue_where_it_may_and_need_not_be_sent_again() {
    let patient = Queued { may_wait: true, ..OTHER };
    for (unread, becomes) in [(0, Decision::Accept), (PORT.len() as u32, Decision::Drop)] {
        let mut gateway = Restarted::new();
        gateway.sim.engine().lapse();
        assert_eq!(gateway.take(Client, 0, 0, PORT, patient), Fate::Wait);
        let asked = gateway.sim.kernel.injected.pop().unwrap();
        let asked = Packet::parse(&asked).unwrap();
        assert_eq!((asked.seq().0, asked.payload().len()), (gateway.client.wrapping_sub(1), 0));
        assert_eq!(gateway.sim.kernel.attention, Some(Attention::Every));
        assert!(gateway.sim.others.is_empty());
        gateway.take(Server, 0, unread, b"", OTHER);
        let others = &gateway.sim.others;
        assert!(others.iter().map(|given| &given.decision).eq([&becomes]), "{others:?}");
        assert_eq!(gateway.opened(), u64::from(unread == 0));
    }
}

/// A daemon that was stopped while it decided finds that what it changed may have passed by unchanged.
#[test]
fn what_is_taken_back_leaves_a_connection_as_its_ends_have_it() {
    let scenario = Scenario { selection: true, crashes: 1e-9, ..with(Nat::Masquerade) };
    let mut gateway = Restarted::of(scenario);
    let line = b"EPRT |1|192.168.150.80|3762|\r\n";
    gateway.sim.daemon.lapses = true;
    assert_eq!(gateway.take(Client, 0, 0, line, OTHER), Fate::Drop);
    gateway.sim.daemon.lapses = false;
    let kernel = &mut gateway.sim.kernel;
    assert!(kernel.pinholes().is_empty());
    assert_eq!(kernel.attention, Some(Attention::Payload));
    // It has passed as it was.
    let next = line.len() as u32;
    assert_eq!(gateway.take(Server, 0, next, b"200 ok\r\n", OTHER), Fate::Accept);
    assert_eq!(gateway.take(Client, next, 8, b"NOOP\r\n", OTHER), Fate::Accept);
    assert_eq!(gateway.take(Client, next + 6, 8, line, OTHER), Fate::Accept);
    assert_eq!(gateway.sim.engine().counters().pinholes_opened, 1, "nothing more is opened");
}

#[test]
fn the_start_of_a_line_that_passed_is_not_held_back_when_it_is_sent_again() {
    for (side, line) in [(Server, &b"221 bye\r\n"[..]), (Client, b"PASV\r\n")] {
        let mut gateway = Restarted::new();
        gateway.take(side, 0, 0, &line[..1], OTHER);
        // The other end has all of it: no more is acknowledged than that.
        let all = line.len() as u32;
        assert_eq!(gateway.take(side.peer(), 0, all, b"", OTHER), Fate::Accept, "{line:?}");
        assert_eq!(gateway.take(side, all, 0, b"", OTHER), Fate::Accept, "{line:?}");
        let lost = gateway.sim.engine().counters().lost;
        assert_eq!((lost, gateway.sim.engine().sessions.count()), (0, 1), "{line:?}");
    }
}

#[test]
fn a_port_behind_lines_that_nobody_saw_opens_once_the_server_has_them() {
    let mut gateway = Restarted::new();
    let first = gateway.take(Client, 8, 20, PORT, ENDS);
    assert!(matches!(first, Fate::Replace | Fate::Drop), "{first:?}");
    assert_eq!(gateway.opened(), 0);
    // The server answers what it has.
    gateway.take(Server, 20, 8, b"", OTHER);
    assert_eq!(gateway.take(Client, 8, 20, PORT, OTHER), Fate::Accept);
    assert_eq!(gateway.opened(), 1);
    assert_eq!(gateway.sim.engine().counters().lost, 0);
}

const TYPE: &[u8] = b"TYPE I\r\n";
const TYPED: &[u8] = b"200 Type set to I\r\n";

/// A daemon asks the server what it has, so the kernel queues every packet, and dies before it writes anything.
#[test]
fn a_port_that_ended_the_calm_opens_where_every_packet_is_queued_since() {
    let mut gateway = Restarted::new();
    let (client, server) = (TYPE.len() as u32, TYPED.len() as u32);
    let segment = gateway.segment(Client, client, server, PORT);
    gateway.sim.crashes.next = Some(crash::Fate::Crashes);
    assert_eq!(gateway.sim.forge(Client, &segment), None);
    assert_eq!(gateway.sim.kernel.attention, Some(Attention::Every));
    let reply = gateway.queued(Server, 0, client, TYPED);
    let port = gateway.queued(Client, client, server, PORT);
    gateway.take_all([reply, port]);
    assert_eq!(gateway.opened(), 1);
}

/// A command that passed is sent again, as its reply ended the calm while the daemon was away.
#[test]
fn a_227_that_ended_the_calm_opens_where_every_packet_is_queued_since() {
    let mut gateway = Restarted::new();
    let (client, server) = (TYPE.len() as u32, TYPED.len() as u32);
    let after = (server + PASSIVE.len() as u32, client + 6);
    drop(gateway.queued(Server, server, after.1, PASSIVE));
    let command = gateway.queued(Client, client, server, b"PASV\r\n");
    gateway.take_all([command]);
    assert_eq!(gateway.sim.kernel.attention, Some(Attention::Every), "the server is asked");
    let answer = gateway.queued(Server, after.0, after.1, b"");
    let reply = gateway.queued(Server, server, after.1, PASSIVE);
    gateway.take_all([answer, reply]);
    assert_eq!(gateway.opened(), 1);
}

/// The start of a line was dropped while nobody was there, and the other end acknowledged it all the same: so its sender
/// goes on in the middle of it.
#[test]
fn the_rest_of_a_line_whose_start_was_dropped_announces_nothing() {
    let mut gateway = Restarted::new();
    gateway.take(Client, 12, 8, b"NOOP\r\n", OTHER);
    // Not it has ended the calm, but its start.
    gateway.take(Server, 8, 12, PASSIVE, OTHER);
    assert_eq!(gateway.opened(), 0, "the client acknowledged the start of a longer line");
    let mut gateway = Restarted::new();
    gateway.take(Server, 0, 8, b"", OTHER);
    gateway.take(Client, 8, 0, PORT, OTHER);
    assert_eq!(gateway.opened(), 0, "the server acknowledged the start of a longer line");
}

#[test]
fn a_dialogue_goes_on_behind_lines_that_nobody_saw() {
    let mut gateway = Restarted::new();
    gateway.take(Server, 31, 6, PASSIVE, ENDED);
    let reply = 31 + PASSIVE.len() as u32;
    assert_eq!(gateway.take(Client, 6, reply, b"OPTS x\r\n", OTHER), Fate::Accept);
    assert_eq!(gateway.take(Server, reply, 14, b"200 ok\r\n", OTHER), Fate::Accept);
    assert_eq!(gateway.take(Client, 14, reply + 8, b"EPSV\r\n", ENDS), Fate::Accept);
    assert_eq!(gateway.take(Server, reply + 8, 20, EXTENDED, OTHER), Fate::Accept);
    assert_eq!(gateway.opened(), 2);
    // What nobody asked for still is nothing.
    gateway.take(Server, reply + 8 + EXTENDED.len() as u32, 20, EXTENDED, OTHER);
    assert_eq!(gateway.opened(), 2);
}

/// A connection on which nothing was said yet.
#[test]
fn after_a_lapse_a_server_greets_a_client_that_it_knows() {
    for selection in [false, true] {
        for says in ["220 ready\r\n", "220-a\r\n220 ready\r\n"] {
            let mut sim = Sim::new(Scenario { selection, ..with(Nat::Masquerade) });
            let (client, server) = (sim.client.next_number(), sim.server.next_number());
            sim.engine().lapse();
            let mut gateway = Restarted { sim, client, server };
            for _ in 0..2 {
                let verdict = gateway.take(Server, 0, 0, says.as_bytes(), OTHER);
                assert_eq!(verdict, Fate::Accept, "{says}");
                gateway.sim.engine().lapse();
            }
        }
    }
}

/// One that began while packets passed by, or in the place of one that is known, has waited for nothing.
#[test]
fn late_packets_of_connections_that_are_not_known_are_decided() {
    let late = Queued { is_late: true, ..OTHER };
    let take = |prepare: fn(&mut Sim), from, number, payload: &[u8]| {
        let mut gateway = Restarted::new();
        prepare(&mut gateway.sim);
        gateway.take(from, number, number, payload, late)
    };
    let (syst, greeting) = (b"SYST\r\n", b"220 ready\r\n");
    assert_eq!(take(|_| {}, Client, 0, syst), Fate::Drop);
    assert_eq!(take(|_| {}, Server, 0, PASSIVE), Fate::Drop);
    assert_eq!(take(|_| {}, Client, 1 << 30, syst), Fate::Accept);
    assert_eq!(take(|_| {}, Server, 0, greeting), Fate::Accept);
    assert_eq!(take(|sim| sim.engine().lapse(), Client, 0, syst), Fate::Replace, "it is asked");
    assert_eq!(take(Sim::forget, Client, 0, syst), Fate::Accept);
    assert_eq!(take(Sim::forget, Server, 0, PASSIVE), Fate::Accept);
}
