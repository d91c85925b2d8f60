//! Spoofed packets can make the engine queue every packet of a connection. These queue modes end, and the kernel is
//! asked to set the mode `Selected` again.

use super::*;

/// Longer than a queue mode lasts after the packet that caused it.
const LONG: Duration = Duration::from_secs(10);

fn spoofed_syn_ack(number: u32) -> Segment {
    Segment {
        seq: 0x9000_0000 + 1000 * number,
        ack: 0x5000_0000,
        flags: flags::SYN | flags::ACK,
        window: 1000,
        ..Segment::default()
    }
}

/// A line of `side` that starts `past` bytes after its next sequence number.
fn segment_after_gap(sim: &Sim, side: Side, past: u32) -> Segment {
    let mut segment = sim.next_segment(side, b"STAT\r\n");
    segment.seq = segment.seq.wrapping_add(past);
    segment.flags |= flags::PSH;
    segment
}

fn has_all_queued(sim: &Sim) -> bool {
    matches!(sim.kernel.queue_mode, Some(QueueMode::EveryPacket | QueueMode::Watch))
}

#[test]
fn a_spoofed_syn_ack_does_not_stop_an_unknown_connection() {
    logged_in_everywhere(|mut sim| {
        sim.forget();
        sim.forge(Server, &spoofed_syn_ack(1));
        sim.play("> NOOP < 200 ok");
        sim.close_both();
        sim.settle();
        assert_eq!(sim.timeouts(), 0, "{}", sim.summary());
    });
}

/// The network may deliver a copy of it late, when the connection has other numbers.
#[test]
fn a_late_copy_of_the_syn_ack_begins_nothing() {
    everywhere(|scenario| {
        let mut sim = Sim::new(scenario);
        let syn_ack = sim.next_segment(Server, b"");
        let syn_ack =
            Segment { seq: syn_ack.seq.wrapping_sub(1), flags: flags::SYN | flags::ACK, ..syn_ack };
        sim.play(LOGIN);
        sim.exchange("NOOP\r\n", &format!("200-a\r\n{}200 ok\r\n", " a long line\r\n".repeat(500)));
        sim.forge(Server, &syn_ack);
        assert_ne!(sim.kernel.queue_mode, Some(QueueMode::Watch));
    });
}

fn assert_transfer_works(sim: &mut Sim) {
    sim.play("> NOOP < 200 ok");
    sim.assert_inspected();
    sim.play("< 200 ok");
    assert_eq!(sim.timeouts(), 0);
}

#[test]
fn queue_mode_watch_ends_whatever_follows_a_spoofed_syn_ack() {
    everywhere(|scenario| {
        for case in ["silence", "lines", "tuple reuse", "restart", "restart later"] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.forge(Server, &spoofed_syn_ack(1));
            assert_eq!(sim.kernel.queue_mode, Some(QueueMode::Watch));
            match case {
                "lines" => sim.play("> NOOP < 200 ok"),
                "tuple reuse" => {
                    sim.advance(Duration::from_secs(4));
                    sim.connect_again();
                    sim.play(LOGIN);
                }
                "silence" => {
                    sim.advance(LONG);
                    assert_eq!(sim.kernel.queue_mode, Some(QueueMode::Selected));
                }
                _ => {
                    sim.crash();
                    sim.advance(if case == "restart" { Duration::ZERO } else { LONG });
                    sim.play("> NOOP < 200 ok");
                }
            }
            sim.advance(LONG);
            sim.play("> NOOP < 200 ok");
            assert!(!has_all_queued(&sim), "{case}: {:?}", sim.kernel.queue_mode);
            if !case.starts_with("restart") {
                assert_transfer_works(&mut sim);
            }
        }
    });
}

#[test]
fn a_flood_of_spoofed_syn_acks_causes_few_kernel_requests() {
    logged_in_everywhere(|mut sim| {
        let (asked, mode_changes) = (sim.kernel.asked, sim.kernel.mode_changes);
        for number in 0..1500 {
            sim.forge(Server, &spoofed_syn_ack(number));
            if number % 50 == 0 {
                sim.play("> NOOP < 200 ok");
            }
            sim.advance(Duration::from_millis(2));
        }
        // In three seconds.
        let requests = [sim.kernel.asked - asked, sim.kernel.mode_changes - mode_changes];
        assert!(requests.iter().all(|count| *count <= 10), "{requests:?}");
        sim.advance(LONG);
        assert_transfer_works(&mut sim);
    });
}

#[test]
fn queueing_every_packet_ends_although_a_gap_never_closes() {
    everywhere(|scenario| {
        for side in [Client, Server] {
            let mut sim = Sim::logged_in(scenario.clone());
            for _ in 0..3 {
                sim.forge(side, &segment_after_gap(&sim, side, 3000));
            }
            assert_eq!(sim.kernel.queue_mode, Some(QueueMode::EveryPacket));
            assert!(sim.engine().sessions.list().all(|session| !session.adjusted));
            sim.advance(LONG);
            assert_eq!(sim.kernel.queue_mode, Some(QueueMode::Selected));
            assert_transfer_works(&mut sim);
        }
    });
}

#[test]
fn the_queue_mode_is_set_again_after_a_conntrack_flush() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    sim.tell(Client, &sim.active(2200)[0]);
    assert_eq!(sim.kernel.queue_mode, Some(QueueMode::EveryPacket));
    sim.kernel.forgot = true;
    sim.advance(Duration::from_secs(1));
    sim.play("> NOOP");
    sim.kernel.forgot = false;
    let before = sim.kernel.mode_changes;
    sim.play("< 200 ok");
    assert_eq!((sim.kernel.mode_changes, sim.engine().counters().errors), (before + 1, 0));
}

#[test]
fn the_queue_mode_of_a_forgotten_session_is_reset() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    sim.forge(Server, &spoofed_syn_ack(1));
    let t = sim.translation;
    sim.forget();
    let noop = sim.next_segment(Client, b"NOOP\r\n").packet(t.client, t.server);
    let how = PacketMeta { queues_all: true, ..PacketMeta::FORWARDED };
    for _ in 0..2 {
        assert_eq!(sim.decided(Instant::now(), &noop, how).0, PacketOutcome::Accept);
    }
    assert_eq!(sim.kernel.queue_mode, Some(QueueMode::Selected));
}

/// The engine does not look up an unknown connection in conntrack with every packet.
#[test]
fn failed_conntrack_lookups_are_remembered() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    sim.kernel.forgot = true;
    let lookups = sim.kernel.asked;
    for number in 0..500 {
        sim.forge(Client, &segment_after_gap(&sim, Client, 3000 + 10 * number));
        sim.forge(Server, &spoofed_syn_ack(number));
        sim.advance(Duration::from_millis(2));
    }
    let lookups = sim.kernel.asked - lookups;
    assert!(lookups <= 20, "{lookups} lookups in a second");
}

/// If neither port is a control port, only the packet selection says which end is the client. The engine does not ask
/// conntrack.
#[test]
fn the_client_side_is_never_looked_up_in_conntrack() {
    for [client, server] in
        [["192.0.2.7:21", "203.0.113.9:21"], ["192.0.2.7:4000", "203.0.113.9:2121"]]
    {
        let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
        let mut sim = Sim::new(Scenario::default());
        let (lookups, sessions) = (sim.kernel.asked, sim.daemon.engine().sessions.count());
        let base = sim.next_segment(Client, b"NOOP\r\n");
        for from in [None, Some(Server), Some(Client)] {
            let packet = match from {
                Some(Server) => base.packet(server, client),
                _ => base.packet(client, server),
            };
            let how = PacketMeta { from, ..PacketMeta::FORWARDED };
            assert_eq!(sim.decided(Instant::now(), &packet, how).0, PacketOutcome::Accept);
            let new_sessions = sim.engine().sessions.count() - sessions;
            assert_eq!(new_sessions, usize::from(from.is_some()), "{client} {server} {from:?}");
            if let Some((_, side)) = sim.engine().sessions.session_between(client, server) {
                assert_eq!(side, Client);
            }
            sim.engine().sessions.forget_between(client, server);
        }
        assert_eq!(sim.kernel.asked, lookups);
    }
}
