//! What networks and hosts do to a connection: closed windows, keep-alives, resegmentation, congestion marks and tuple
//! reuse. And what off-path attackers send into it.

use std::time::Duration;

use ftp_alg_core::{
    packet::flags,
    session::Side::{Client, Server},
};

use super::{
    everywhere, everywhere_v4,
    support::{
        ftp::{active, at, text},
        link::Link,
        scenario::{Nat, Scenario},
        segment::{CWR, ECE, Segment},
        sim::Sim,
        tcp::{Probe, Settings},
    },
    with,
};

const PROBES: [Probe; 3] = [Probe::Empty, Probe::Next, Probe::Garbage];

fn probing(mut scenario: Scenario, probe: Probe) -> Scenario {
    (scenario.client.probe, scenario.server.probe) = (probe, probe);
    scenario
}

/// The client's next segment, with `payload`.
fn next_client_segment(sim: &Sim, payload: &[u8]) -> Segment {
    Segment {
        seq: sim.client.next_number(),
        ack: sim.server.next_number(),
        flags: flags::ACK,
        window: 1000,
        payload: payload.to_vec(),
        ..Segment::default()
    }
}

/// Asserts that the session is still inspected: an announcement of the client opens a pinhole.
fn assert_inspected(sim: &mut Sim) {
    let t = sim.translation;
    let before = sim.kernel.opened.len();
    let heard = text(sim.say(Client, active(at(t.client, 2200)).as_bytes()));
    assert_eq!(heard, active(at(t.client_external, 2200)), "{}", sim.summary());
    assert_eq!(sim.kernel.opened.len(), before + 1);
}

#[test]
fn a_keep_alive_is_answered_despite_held_or_unacknowledged_data() {
    everywhere(|scenario| {
        for probe in PROBES {
            for said in ["", "P", "PORT 1", "NOO", "NOOP\r\n"] {
                for queues_acks in [false, true] {
                    let scenario = Scenario { queues_acks, ..scenario.clone() };
                    let mut sim = Sim::logged_in(probing(scenario, probe));
                    sim.say(Client, said.as_bytes());
                    let before = sim.server.sent_bare();
                    sim.keep_alive(Client);
                    sim.settle();
                    assert_eq!(sim.server.sent_bare(), before + 1, "{probe:?} after {said:?}");
                    sim.say(Client, b"\r\n");
                    assert_inspected(&mut sim);
                }
            }
        }
    });
}

#[test]
fn a_closed_window_only_delays_an_announcement() {
    everywhere(|scenario| {
        for probe in PROBES {
            for cut in [1, 7, 20] {
                let t = scenario.nat.translation(scenario.v6);
                let mut sim = Sim::logged_in(probing(scenario.clone(), probe));
                let line = active(at(t.client, 2200));
                let (first, second) = line.as_bytes().split_at(cut);
                sim.write(Client, first);
                sim.close_window(Server, Duration::from_secs(4));
                sim.settle();
                sim.write(Client, second);
                sim.settle();
                assert!(sim.now() >= Duration::from_secs(4));
                let heard = text(sim.server.read());
                assert_eq!(heard, active(at(t.client_external, 2200)), "{}", sim.summary());
                assert_eq!(sim.kernel.opened.len(), 1);
            }
        }
    });
}

#[test]
fn a_window_reopens_although_its_update_is_lost() {
    for probe in PROBES {
        for seed in 0..100 {
            let mut scenario = probing(with(Nat::Masquerade), probe);
            scenario.link.loss = 0.3;
            scenario.seed = seed;
            let mut sim = Sim::logged_in(scenario);
            sim.write(Client, b"PORT 192,168");
            sim.close_window(Server, Duration::from_millis(700));
            sim.settle();
            sim.write(Client, b",150,80,9,9\r\n");
            sim.settle();
            assert_eq!(sim.server.read(), b"PORT 198,51,100,1,9,9\r\n", "seed {seed}");
        }
    }
}

#[test]
fn both_ends_can_close_simultaneously() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        for held in ["", "PO", "PORT 1"] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.say(Client, active(at(t.client, 2200)).as_bytes());
            sim.write(Client, held.as_bytes());
            sim.close_both();
            sim.settle();
            assert!(sim.client.peer_has_closed() && sim.server.peer_has_closed());
            assert_eq!(text(sim.server.read()), held);
            assert_eq!(sim.kernel.pinholes(), []);
            sim.assert_nothing_left();
        }
    });
}

#[test]
fn a_closed_connections_tuple_can_be_reused_at_once() {
    everywhere(|mut scenario| {
        scenario.link.reorder = 0.3;
        let mut sim = Sim::logged_in(scenario);
        assert_inspected(&mut sim);
        sim.close_both();
        sim.settle();
        for line in [&b"220 again\r\n"[..], b"331 x\r\n", b"230 in\r\n"] {
            if line.starts_with(b"220") {
                sim.connect_again();
            } else {
                sim.say(
                    Client,
                    if line.starts_with(b"331") { b"USER x\r\n" } else { b"PASS x\r\n" },
                );
            }
            assert_eq!(sim.say(Server, line), line);
        }
        assert_inspected(&mut sim);
    });
}

#[test]
fn the_tuple_of_an_unclosed_connection_can_be_reused() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        assert_inspected(&mut sim);
        sim.connect_again();
        sim.say(Server, b"220 again\r\n");
        sim.exchange("USER x\r\n", "331 x\r\n");
        sim.exchange("PASS x\r\n", "230 x\r\n");
        assert_inspected(&mut sim);
        assert_eq!(sim.kernel.pinholes().len(), 1, "the old connection's pinholes must be closed");
    });
}

#[test]
fn a_reused_tuple_with_a_partial_handshake_is_forwarded_unchanged() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        assert_inspected(&mut sim);
        sim.close(Client);
        sim.settle();
        sim.close(Server);
        sim.settle();
        // The gateway sees the SYN-ACK, but not the acknowledgement that completes the handshake.
        let (client, server) = (0x3456_789a, 0x1234_5678);
        let syn_ack = Segment {
            seq: server,
            ack: client,
            flags: flags::SYN | flags::ACK,
            ..Segment::default()
        };
        let greeting = Segment {
            seq: server + 1,
            ack: client,
            flags: flags::ACK,
            payload: b"220 ready\r\n".to_vec(),
            ..Segment::default()
        };
        let user = Segment {
            seq: client,
            ack: server + 12,
            payload: b"USER x\r\n".to_vec(),
            ..greeting.clone()
        };
        for (side, segment) in [(Server, syn_ack), (Server, greeting), (Client, user)] {
            assert_eq!(sim.forge(side, &segment), Some(segment));
        }
    });
}

#[test]
fn a_spoofed_syn_ack_and_greeting_change_nothing() {
    everywhere(|scenario| {
        for idle_seconds in [0, 20] {
            let mut sim = Sim::logged_in(scenario.clone());
            assert_inspected(&mut sim);
            sim.advance(Duration::from_secs(idle_seconds));
            let syn_ack = Segment {
                seq: 0x1234_5678,
                ack: 0x3456_789a,
                flags: flags::SYN | flags::ACK,
                ..Segment::default()
            };
            assert_eq!(sim.forge(Server, &syn_ack), Some(syn_ack.clone()));
            let greeting = Segment {
                seq: syn_ack.seq + 1,
                flags: flags::ACK,
                payload: b"SSH-2.0-x\r\n".to_vec(),
                ..syn_ack
            };
            sim.forge(Server, &greeting);
            sim.exchange("TYPE I\r\n", "200 ok\r\n");
            assert_inspected(&mut sim);
        }
    });
}

#[test]
fn a_reset_near_the_window_does_not_end_the_session() {
    everywhere(|scenario| {
        for (side, away) in [(Client, 1000), (Client, -40), (Server, 66_000), (Server, -40)] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.exchange("NOOP\r\n", "200 ok\r\n");
            let blind = Segment {
                seq: sim.end(side).next_number().wrapping_add_signed(away),
                ack: sim.end(side.peer()).next_number().wrapping_add(500),
                flags: flags::RST | flags::ACK,
                ..Segment::default()
            };
            sim.forge(side, &blind);
            assert_inspected(&mut sim);
            assert_eq!(sim.kernel.pinholes().len(), 1);
        }
    });
}

#[test]
fn a_segment_far_outside_the_window_is_dropped() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        sim.write(Client, b"PORT 1");
        sim.settle();
        let next = sim.server.next_number();
        for flags in [flags::ACK, flags::ACK | flags::FIN] {
            let far = Segment {
                seq: next.wrapping_add(1 << 24),
                ack: sim.client.next_number(),
                flags,
                payload: b"226 x\r\n".to_vec(),
                ..Segment::default()
            };
            for _ in 0..4 {
                assert_eq!(sim.forge(Server, &far), None);
            }
        }
    });
}

#[test]
fn overlapping_segments_retain_the_bytes_inspected_first() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let first = next_client_segment(&sim, b"NOOP 10,99,99,99,21,179\r\nTYP");
    let mut second = next_client_segment(&sim, b"PORT 10,99,99,99,21,179\r\nTYPE I\r\nPORT 10,9");
    assert_eq!(sim.forge(Client, &first), Some(first));
    let passed = sim.forge(Client, &second).unwrap();
    assert_eq!(text(passed.payload), "NOOP 10,99,99,99,21,179\r\nTYPE I\r\n");
    // The start of the last line is held. Its bytes cannot be replaced either.
    second.payload.truncate(38);
    second.payload.extend(b"ABOR\r\n");
    let passed = sim.forge(Client, &second).unwrap();
    assert!(!text(passed.payload).contains("PORT 10,99"));
}

#[test]
fn ip_options_and_ecn_marks_survive_a_rewrite() {
    everywhere(|mut scenario| {
        let settings = Settings { ip_options: true, ecn: true, ..Settings::default() };
        scenario.client = settings.clone();
        scenario.server = Settings { isn: 70_000, ..settings };
        scenario.link.congestion = 1.0;
        let mut sim = Sim::logged_in(scenario);
        for _ in 0..3 {
            assert_inspected(&mut sim);
            sim.say(Server, b"200 ok\r\n");
        }
        assert!(sim.client.congestion_heard > 0 && sim.server.congestion_heard > 0);
        let mut marked =
            next_client_segment(&sim, active(at(sim.translation.client, 2200)).as_bytes());
        marked.flags |= CWR | ECE | flags::PSH;
        marked.ecn = 1;
        marked.ip_options = true;
        let passed = sim.forge(Client, &marked).unwrap();
        assert_eq!((passed.flags, passed.ecn, passed.ip_options), (marked.flags, 1, true));
    });
}

#[test]
fn an_announcement_resegmented_behind_the_gateway_still_arrives() {
    everywhere_v4(|mut scenario| {
        for (split, merge) in [(1.0, 0.0), (0.0, 1.0), (0.7, 0.7)] {
            scenario.link = Link { split, merge, ..Link::default() };
            let t = scenario.nat.translation(false);
            let mut sim = Sim::logged_in(scenario.clone());
            let line = active(at(t.client, 2200)).repeat(2);
            sim.write(Client, line.as_bytes());
            sim.settle();
            assert_eq!(text(sim.server.read()), active(at(t.client_external, 2200)).repeat(2));
            assert_eq!(sim.timeouts(), 0, "{}", sim.summary());
        }
    });
}

#[test]
fn a_false_acknowledgement_does_not_disable_refusals() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(Scenario { queues_acks: true, ..scenario });
        let lie = next_client_segment(&sim, b"");
        sim.forge(Client, &Segment { ack: lie.ack.wrapping_add(1000), ..lie });
        assert_eq!(sim.engine().counters().unread_sessions, 1);
        let t = sim.translation;
        let third = if t.client.is_ipv4() { "192.0.2.99:2200" } else { "[2001:db8:99::9]:2200" };
        let mut say = |line: &str| -> String {
            line.as_bytes().chunks(1).map(|byte| text(sim.say(Client, byte)).to_owned()).collect()
        };
        let own = active(at(t.client, 2200));
        assert_eq!(say(&own), own);
        let foreign = say(&active(third.parse().unwrap()));
        assert!(foreign.starts_with("XXXX XXXX"), "{foreign}");
        assert_eq!(say("NOOP\r\n"), "NOOP\r\n");
        assert_eq!(sim.kernel.opened.len(), 0);
    });
}
