//! Spoofed packets can make the engine queue every packet of a connection. These queue modes end, and the kernel is
//! asked to set the mode `Selected` again.

use std::time::Duration;

use ftp_alg_core::{
    engine::{PacketMeta, PacketOutcome, QueueMode},
    packet::flags,
    session::Side::{self, Client, Server},
};

use super::{
    everywhere,
    support::{
        ftp::{active, at, text},
        scenario::{Nat, Scenario},
        segment::Segment,
        sim::Sim,
    },
    with,
};

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
fn segment_after_gap(sim: &mut Sim, side: Side, past: u32) -> Segment {
    Segment {
        seq: sim.end(side).next_number().wrapping_add(past),
        ack: sim.end(side.peer()).next_number(),
        flags: flags::ACK | flags::PSH,
        window: 1000,
        payload: b"STAT\r\n".into(),
        ..Segment::default()
    }
}

fn has_all_queued(sim: &Sim) -> bool {
    matches!(sim.kernel.queue_mode, Some(QueueMode::All | QueueMode::Watch))
}

#[test]
fn a_spoofed_syn_ack_does_not_stop_an_unknown_connection() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        sim.forget();
        sim.forge(Server, &spoofed_syn_ack(1));
        assert_eq!(sim.exchange("NOOP\r\n", "200 ok\r\n").1, "200 ok\r\n");
        sim.close_both();
        sim.settle();
        assert_eq!(sim.timeouts(), 0, "{}", sim.summary());
    });
}

fn assert_transfer_works(sim: &mut Sim) {
    let t = sim.translation;
    let opened = sim.kernel.opened.len();
    sim.exchange("NOOP\r\n", "200 ok\r\n");
    let heard = text(sim.say(Client, active(at(t.client, 2200)).as_bytes()));
    assert!(heard.starts_with(&active(at(t.client_external, 2200))[..8]), "{heard}");
    sim.say(Server, b"200 ok\r\n");
    assert_eq!(sim.kernel.opened.len(), opened + 1);
    assert_eq!(sim.timeouts(), 0);
}

#[test]
fn queue_mode_watch_ends_after_a_spoofed_syn_ack() {
    everywhere(|scenario| {
        for talks in [false, true] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.forge(Server, &spoofed_syn_ack(1));
            assert_eq!(sim.kernel.queue_mode, Some(QueueMode::Watch));
            if talks {
                sim.exchange("NOOP\r\n", "200 ok\r\n");
            }
            sim.advance(LONG);
            sim.exchange("NOOP\r\n", "200 ok\r\n");
            assert!(!has_all_queued(&sim), "{:?}", sim.kernel.queue_mode);
            assert_transfer_works(&mut sim);
        }
    });
}

#[test]
fn queue_mode_watch_ends_on_an_idle_connection() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        sim.forge(Server, &spoofed_syn_ack(1));
        sim.advance(LONG);
        assert_eq!(sim.kernel.queue_mode, Some(QueueMode::Selected));
    });
}

#[test]
fn a_flood_of_spoofed_syn_acks_causes_few_kernel_requests() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        let (asked, mode_changes) = (sim.kernel.asked, sim.kernel.mode_changes);
        for number in 0..1500 {
            sim.forge(Server, &spoofed_syn_ack(number));
            if number % 50 == 0 {
                sim.exchange("NOOP\r\n", "200 ok\r\n");
            }
            sim.advance(Duration::from_millis(2));
        }
        let (asked, mode_changes) =
            (sim.kernel.asked - asked, sim.kernel.mode_changes - mode_changes);
        assert!(
            asked <= 10 && mode_changes <= 10,
            "asked {asked} times, {mode_changes} queue mode changes in 3 s"
        );
        sim.advance(LONG);
        assert_transfer_works(&mut sim);
    });
}

#[test]
fn queue_mode_watch_ends_after_tuple_reuse() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        sim.forge(Server, &spoofed_syn_ack(1));
        sim.advance(Duration::from_secs(4));
        sim.connect_again();
        sim.say(Server, b"220 ready\r\n");
        sim.exchange("USER x\r\n", "331 go on\r\n");
        sim.exchange("PASS x\r\n", "230 in\r\n");
        sim.advance(LONG);
        sim.exchange("NOOP\r\n", "200 ok\r\n");
        assert!(!has_all_queued(&sim), "{:?}", sim.kernel.queue_mode);
        assert_transfer_works(&mut sim);
    });
}

#[test]
fn queue_mode_all_ends_although_a_gap_never_closes() {
    everywhere(|scenario| {
        for side in [Client, Server] {
            let mut sim = Sim::logged_in(scenario.clone());
            for _ in 0..3 {
                let forged = segment_after_gap(&mut sim, side, 3000);
                sim.forge(side, &forged);
            }
            assert_eq!(sim.kernel.queue_mode, Some(QueueMode::All));
            sim.advance(LONG);
            assert_eq!(sim.kernel.queue_mode, Some(QueueMode::Selected));
            assert_transfer_works(&mut sim);
        }
    });
}

#[test]
fn queue_mode_watch_ends_after_a_restart() {
    everywhere(|scenario| {
        for waits in [false, true] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.forge(Server, &spoofed_syn_ack(1));
            sim.crash();
            if waits {
                sim.advance(LONG);
            }
            sim.exchange("NOOP\r\n", "200 ok\r\n");
            sim.advance(LONG);
            sim.exchange("NOOP\r\n", "200 ok\r\n");
            assert!(!has_all_queued(&sim), "{:?}", sim.kernel.queue_mode);
        }
    });
}

#[test]
fn the_queue_mode_of_a_forgotten_session_is_reset() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    sim.forge(Server, &spoofed_syn_ack(1));
    let t = sim.translation;
    sim.forget();
    let noop = next(&mut sim, Client, b"NOOP\r\n").packet(t.client, t.server);
    let how = PacketMeta { queues_all: true, ..PacketMeta::default() };
    for _ in 0..2 {
        let now = std::time::Instant::now();
        let verdict = sim.decided(now, &noop, how).0;
        assert_eq!(verdict, PacketOutcome::Accept);
    }
    assert_eq!(sim.kernel.queue_mode, Some(QueueMode::Selected));
}

fn next(sim: &mut Sim, side: Side, payload: &[u8]) -> Segment {
    Segment { payload: payload.into(), ..segment_after_gap(sim, side, 0) }
}

/// The engine does not look up an unknown connection in conntrack with every packet.
#[test]
fn failed_conntrack_lookups_are_remembered() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    sim.kernel.forgot = true;
    let lookups = sim.kernel.asked;
    for number in 0..500 {
        let forged = segment_after_gap(&mut sim, Client, 3000 + 10 * number);
        sim.forge(Client, &forged);
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
        let now = std::time::Instant::now();
        let base = next(&mut sim, Client, b"NOOP\r\n");
        for from in [None, Some(Server), Some(Client)] {
            let packet = match from {
                Some(Server) => base.packet(server, client),
                _ => base.packet(client, server),
            };
            let how = PacketMeta { from, ..PacketMeta::default() };
            let verdict = sim.decided(now, &packet, how).0;
            assert_eq!(verdict, PacketOutcome::Accept);
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
