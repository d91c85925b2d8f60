//! What networks and hosts do to a connection: closed windows, keep-alives, resegmentation, congestion marks and tuple
//! reuse. And what off-path attackers send into it.

use super::{
    support::{
        segment::{CWR, ECE},
        tcp::{Probe, Settings},
    },
    *,
};

const PROBES: [Probe; 3] = [Probe::Empty, Probe::Next, Probe::Garbage];

fn probing(mut scenario: Scenario, probe: Probe) -> Scenario {
    (scenario.client.probe, scenario.server.probe) = (probe, probe);
    scenario
}

#[test]
fn a_keep_alive_is_answered_despite_held_or_unacknowledged_data() {
    everywhere(|scenario| {
        for probe in PROBES {
            for said in ["", "P", "PORT 1", "NOO", "NOOP\r\n"] {
                for queues_acks in [false, true] {
                    let scenario = Scenario { queues_acks, ..scenario.clone() };
                    let mut sim = Sim::logged_in(probing(scenario, probe));
                    sim.tell(Client, said);
                    let before = sim.server.sent_bare();
                    sim.keep_alive(Client);
                    sim.settle();
                    assert_eq!(sim.server.sent_bare(), before + 1, "{probe:?} after {said:?}");
                    sim.say(Client, b"\r\n");
                    sim.assert_inspected();
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
                let mut sim = Sim::logged_in(probing(scenario.clone(), probe));
                let [line, seen] = sim.active(2200);
                let (first, second) = line.as_bytes().split_at(cut);
                sim.write(Client, first);
                sim.close_window(Server, Duration::from_secs(4));
                sim.settle();
                sim.write(Client, second);
                sim.settle();
                assert!(sim.now() >= Duration::from_secs(4));
                assert_eq!(text(sim.server.read()), seen, "{}", sim.summary());
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
        for held in ["", "PO", "PORT 1"] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.tell(Client, &sim.active(2200)[0]);
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
fn the_tuple_of_a_closed_or_an_open_connection_can_be_reused_at_once() {
    everywhere(|mut scenario| {
        for closes in [true, false] {
            scenario.link.reorder = if closes { 0.3 } else { 0.0 };
            let mut sim = Sim::logged_in(scenario.clone());
            sim.assert_inspected();
            if closes {
                sim.close_both();
                sim.settle();
            }
            sim.connect_again();
            sim.play(LOGIN);
            sim.assert_inspected();
            assert_eq!(sim.kernel.pinholes().len(), 1, "those of the old connection are closed");
        }
    });
}

#[test]
fn a_reused_tuple_with_a_partial_handshake_is_forwarded_unchanged() {
    logged_in_everywhere(|mut sim| {
        sim.assert_inspected();
        sim.close(Client);
        sim.settle();
        sim.close(Server);
        sim.settle();
        // The gateway sees the SYN-ACK, but not the acknowledgement that completes the handshake.
        let (client, server) = (0x3456_789a, 0x1234_5678);
        for (side, seq, ack, flags, payload) in [
            (Server, server, client, flags::SYN | flags::ACK, ""),
            (Server, server + 1, client, flags::ACK, "220 ready\r\n"),
            (Client, client, server + 12, flags::ACK, "USER x\r\n"),
        ] {
            let payload = payload.into();
            let segment = Segment { seq, ack, flags, payload, ..Segment::default() };
            assert_eq!(sim.forge(side, &segment), Some(segment));
        }
    });
}

#[test]
fn a_segment_far_outside_the_window_is_dropped() {
    logged_in_everywhere(|mut sim| {
        sim.say(Client, b"PORT 1");
        for flags in [flags::ACK, flags::ACK | flags::FIN] {
            let mut far = Segment { flags, ..sim.next_segment(Server, b"226 x\r\n") };
            far.seq += 1 << 24;
            for _ in 0..4 {
                assert_eq!(sim.forge(Server, &far), None);
            }
        }
    });
}

#[test]
fn overlapping_segments_retain_the_bytes_inspected_first() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let first = sim.next_segment(Client, b"NOOP 10,99,99,99,21,179\r\nTYP");
    let mut second = sim.next_segment(Client, b"PORT 10,99,99,99,21,179\r\nTYPE I\r\nPORT 10,9");
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
            sim.assert_inspected();
            sim.say(Server, b"200 ok\r\n");
        }
        assert!(sim.client.congestion_heard > 0 && sim.server.congestion_heard > 0);
        let mut marked = sim.next_segment(Client, sim.active(2200)[0].as_bytes());
        marked.flags |= CWR | ECE | flags::PSH;
        marked.ecn = 1;
        marked.ip_options = true;
        let passed = sim.forge(Client, &marked).unwrap();
        assert_eq!((passed.flags, passed.ecn, passed.ip_options), (marked.flags, 1, true));
    });
}

#[test]
fn a_false_acknowledgement_does_not_disable_refusals() {
    everywhere(|scenario| {
        for begin in ["", GREETING, LOGIN] {
            let mut sim = Sim::after(Scenario { queues_acks: true, ..scenario.clone() }, begin);
            let lie = sim.next_segment(Client, b"");
            sim.forge(Client, &Segment { ack: lie.ack.wrapping_add(1000), ..lie });
            assert_eq!(sim.engine().counters().unread_sessions, 1, "{begin}");
            let [own, _] = sim.active(2200);
            let mut say = |line: &str| text(sim.say_in_pieces(Client, line.as_bytes().chunks(1)));
            assert_eq!(say(&own), own);
            let foreign = say(&third(scenario.v6));
            assert!(foreign.starts_with("XXXX XXXX"), "{foreign}");
            assert_eq!(say("NOOP\r\n"), "NOOP\r\n");
            assert_eq!(sim.kernel.opened.len(), 0);
        }
    });
}
