//! Restarts and downtime of the daemon: which connections it continues to inspect, what it assumes about packets that
//! may have passed unread, and what an end can achieve with false acknowledgements.

use ftp_alg_core::packet::Packet;

use super::{
    support::{ends::Ends, sim::daemon::Decision},
    *,
};

const PASSIVE: &[u8] = b"227 Entering Passive Mode (203,0,113,9,19,137)\r\n";
const EXTENDED: &[u8] = b"229 Entering Extended Passive Mode (|||5001|)\r\n";
const PORT: &[u8] = b"PORT 192,168,150,80,14,178\r\n";

/// A logged-in connection whose daemon has just restarted.
fn restarted(nat: Nat) -> Ends {
    let mut ends = Ends::new(with(nat));
    ends.sim.crash();
    ends
}

impl Ends {
    fn opened(&mut self) -> u64 {
        self.sim.engine().counters().pinholes_opened
    }
}

/// What was dropped during the downtime may have been acknowledged anyway. So the sender continues in the middle of a line.
#[test]
fn after_a_restart_no_pinhole_opens_if_packets_may_have_passed_unread() {
    const REPLY: u32 = PASSIVE.len() as u32;
    type Packets<'a> = &'a [(Side, u32, u32, &'a [u8])];
    let cases: [(&str, Packets<'_>, u64); 7] = [
        (
            "nothing",
            &[(Client, 0, 0, b"PASV\r\n"), (Server, 0, 6, PASSIVE), (Client, 6, REPLY, PORT)],
            2,
        ),
        ("nothing either", &[(Client, 0, 0, b"EPSV\r\n"), (Server, 0, 6, EXTENDED)], 1),
        (
            "the command",
            &[(Server, 0, 6, PASSIVE), (Client, 6, 0, b""), (Server, 0, 6, PASSIVE)],
            0,
        ),
        (
            "and a reply",
            &[(Server, 31, 6, PASSIVE), (Client, 6, 31, b""), (Server, 31, 6, PASSIVE)],
            0,
        ),
        (
            "a command and its reply",
            &[(Client, 8, 20, PORT), (Server, 20, 8, b""), (Client, 8, 20, PORT)],
            0,
        ),
        ("the start of a command", &[(Client, 12, 8, b"NOOP\r\n"), (Server, 8, 12, PASSIVE)], 0),
        ("the start of a PORT", &[(Server, 0, 8, b""), (Client, 8, 0, PORT)], 0),
    ];
    for (unread, packets, opened) in cases {
        for had_downtime in if opened == 0 { &[false, true][..] } else { &[false] } {
            let mut gateway = restarted(Nat::Routed);
            if *had_downtime {
                gateway.sim.engine().note_downtime();
            }
            let outcomes = packets
                .iter()
                .map(|(from, seq, ack, payload)| gateway.queue(*from, *seq, *ack, payload));
            let outcomes: Vec<_> = outcomes.collect();
            assert_eq!(gateway.opened(), opened, "{unread}");
            let all_pass = outcomes.iter().all(|outcome| *outcome == PacketOutcome::Accept);
            assert!(opened == 0 || all_pass, "{unread}: {outcomes:?}");
        }
    }
}

/// Another connection on the same endpoints has begun while no daemon ran.
#[test]
fn a_tuple_reuse_during_a_restart_spares_both_connections() {
    let mut gateway = Ends::new(with(Nat::Masquerade));
    gateway.queue(Client, 0, 0, PORT);
    gateway.client += PORT.len() as u32;
    gateway.sim.crash();
    const FAR: u32 = 0x4000_0000;
    assert_eq!(gateway.queue(Server, FAR, FAR, b"220 ready\r\n"), PacketOutcome::Accept);
    let shorter = "192,168,150,80".len() - "198,51,100,1".len();
    let acknowledged = (shorter as u32).wrapping_neg();
    assert_eq!(gateway.queue(Server, 0, acknowledged, b"200 ok\r\n"), PacketOutcome::Replace);
}

/// A line is lost behind the gateway, and the client retransmits different bytes at its sequence numbers.
#[test]
fn after_a_restart_a_retransmission_retains_its_original_bytes() {
    let mut gateway = restarted(Nat::Routed);
    let line = b"NOOP xxxxxxxxxxxxxxxxxx\r\n";
    assert_eq!(gateway.queue(Client, 0, 0, line), PacketOutcome::Accept);
    gateway.sim.crash();
    let other = gateway.packet(Client, 0, 0, b"PORT 10,99,99,99,14,178\r\nX");
    let (_, passed) = gateway.sim.decided(Instant::now(), &other, PacketMeta::FORWARDED);
    assert!(passed.ends_with(&[line, &b"X"[..]].concat()), "{}", passed.escape_ascii());
}

/// Otherwise a client could send one command to the server during the downtime, and another with the same sequence
/// numbers to the gateway.
#[test]
fn after_downtime_a_command_waits_for_the_servers_acknowledgement() {
    for unread in [0, PORT.len() as u32] {
        let mut gateway = restarted(Nat::Routed);
        gateway.sim.engine().note_downtime();
        // The gateway probes the server.
        for _ in 0..2 {
            assert_eq!(gateway.queue(Client, 0, 0, PORT), PacketOutcome::Replace);
        }
        assert_eq!(gateway.opened(), 0, "{unread}");
        gateway.queue(Server, 0, unread, b"");
        assert_eq!(gateway.queue(Client, 0, 0, PORT), PacketOutcome::Accept);
        assert_eq!(gateway.opened(), u64::from(unread == 0), "{unread} bytes passed unread");
    }
}

#[test]
fn after_downtime_a_command_can_wait_in_the_queue() {
    let may_wait = PacketMeta { may_wait: true, ..PacketMeta::FORWARDED };
    for (unread, expected) in [(0, Decision::Accept), (PORT.len() as u32, Decision::Drop)] {
        let mut gateway = restarted(Nat::Routed);
        gateway.sim.engine().note_downtime();
        assert_eq!(gateway.queue_with(Client, 0, 0, PORT, may_wait), PacketOutcome::Wait);
        let probe = gateway.sim.kernel.injected.pop().unwrap();
        let probe = Packet::parse(&probe).unwrap();
        assert_eq!((probe.seq().0, probe.payload().len()), (gateway.client.wrapping_sub(1), 0));
        assert_eq!(gateway.sim.kernel.queue_mode, Some(QueueMode::EveryPacket));
        assert!(gateway.sim.others.is_empty());
        gateway.queue(Server, 0, unread, b"");
        let others = &gateway.sim.others;
        assert!(others.iter().map(|given| &given.decision).eq([&expected]), "{others:?}");
        assert_eq!(gateway.opened(), u64::from(unread == 0));
    }
}

/// A daemon that was stopped while it decided on a packet finds that the packet may have passed without the rewrite.
#[test]
fn rolling_back_a_late_rewrite_leaves_the_connection_usable() {
    let mut gateway = restarted(Nat::Masquerade);
    let line = b"EPRT |1|192.168.150.80|3762|\r\n";
    gateway.sim.daemon.set_lapses(true);
    // The client sends its next command at once.
    let packets = [(0, &line[..]), (line.len() as u32, b"NOOP\r\n")]
        .map(|(seq, said)| gateway.packet(Client, seq, 0, said));
    let batch = packets.each_ref().map(Vec::as_slice);
    let outcomes = gateway.sim.decide(Instant::now(), &batch, PacketMeta::FORWARDED);
    assert!(outcomes.iter().all(|(outcome, _)| *outcome == PacketOutcome::Drop));
    gateway.sim.daemon.set_lapses(false);
    let kernel = &mut gateway.sim.kernel;
    assert!(kernel.pinholes().is_empty());
    assert_eq!(kernel.queue_mode, Some(QueueMode::Selected));
    // The line has passed unchanged.
    let next = line.len() as u32;
    assert_eq!(gateway.queue(Server, 0, next, b"200 ok\r\n"), PacketOutcome::Accept);
    assert_eq!(gateway.queue(Client, next, 8, b"NOOP\r\n"), PacketOutcome::Accept);
    assert_eq!(gateway.queue(Client, next + 6, 8, line), PacketOutcome::Accept);
    assert_eq!(gateway.sim.engine().counters().pinholes_opened, 1, "no further pinhole may open");
}

#[test]
fn a_retransmitted_line_start_that_passed_unread_is_not_held() {
    for (side, line) in [(Server, &b"221 bye\r\n"[..]), (Client, b"PASV\r\n")] {
        let mut gateway = restarted(Nat::Routed);
        gateway.queue(side, 0, 0, &line[..1]);
        // The peer acknowledges the complete line and nothing beyond it.
        let all = line.len() as u32;
        assert_eq!(gateway.queue(side.peer(), 0, all, b""), PacketOutcome::Accept, "{line:?}");
        assert_eq!(gateway.queue(side, all, 0, b""), PacketOutcome::Accept, "{line:?}");
        let unread_sessions = gateway.sim.engine().counters().unread_sessions;
        assert_eq!((unread_sessions, gateway.sim.engine().sessions.count()), (1, 1), "{line:?}");
    }
}

/// The connection carried no data before the downtime.
#[test]
fn after_downtime_a_greeting_is_forwarded() {
    for says in ["220 ready\r\n", "220-a\r\n220 ready\r\n"] {
        let mut sim = Sim::new(with(Nat::Masquerade));
        let (client, server) = (sim.client.next_number(), sim.server.next_number());
        sim.engine().note_downtime();
        let mut gateway = Ends { sim, client, server };
        for _ in 0..2 {
            let verdict = gateway.queue(Server, 0, 0, says.as_bytes());
            assert_eq!(verdict, PacketOutcome::Accept, "{says}");
            gateway.sim.engine().note_downtime();
        }
    }
}

/// The end of the old connection and the start of another one may have passed unread.
#[test]
fn after_downtime_segments_of_a_new_connection_are_forwarded() {
    for (is_inspected, had_downtime, expected) in [
        (true, true, PacketOutcome::Accept),
        (true, false, PacketOutcome::Drop),
        (false, false, PacketOutcome::Accept),
    ] {
        let mut gateway = restarted(Nat::Routed);
        if is_inspected {
            assert_eq!(gateway.queue(Client, 0, 0, b"NOOP\r\n"), PacketOutcome::Accept);
        }
        if had_downtime {
            gateway.sim.engine().note_downtime();
        }
        assert_eq!(gateway.queue(Server, 1 << 30, 1 << 30, b"220 ready\r\n"), expected);
        // The old one goes on, too.
        assert_ne!(gateway.queue(Server, 0, 0, b"200 ok\r\n"), PacketOutcome::Drop);
    }
}

/// A late packet gets a normal verdict if its connection is unknown or reuses a known tuple, because no session depends
/// on the packets that passed unread.
#[test]
fn late_packets_of_unknown_connections_get_a_verdict() {
    let late = PacketMeta { is_late: true, ..PacketMeta::FORWARDED };
    let (syst, forget): (_, fn(&mut Sim)) = (&b"SYST\r\n"[..], Sim::forget);
    let downtime: fn(&mut Sim) = |sim| sim.engine().note_downtime();
    for (name, prepare, from, number, payload, expected) in [
        ("a command", None, Client, 0, syst, PacketOutcome::Drop),
        ("a reply", None, Server, 0, PASSIVE, PacketOutcome::Drop),
        ("of a reused tuple", None, Client, 1 << 30, syst, PacketOutcome::Accept),
        ("without payload", None, Server, 0, b"", PacketOutcome::Accept),
        ("the gateway probes the server", Some(downtime), Client, 0, syst, PacketOutcome::Replace),
        ("an unknown command", Some(forget), Client, 0, syst, PacketOutcome::Accept),
        ("an unknown reply", Some(forget), Server, 0, PASSIVE, PacketOutcome::Accept),
    ] {
        let mut gateway = restarted(Nat::Routed);
        prepare.into_iter().for_each(|prepare| prepare(&mut gateway.sim));
        assert_eq!(gateway.queue_with(from, number, number, payload, late), expected, "{name}");
    }
}
