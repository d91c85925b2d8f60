//! What networks and hosts do to a connection: closed windows, keep-alives, resegmentation, congestion marks and tuple
//! reuse. And what off-path attackers send into it.

use super::{
    support::{
        segment::{CWR, ECE},
        tcp::Probe,
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

/// Has the client announce a port in two segments, and the server close its window for this time in between. The update
/// that opens it again may be lost.
fn announce_through_a_closed_window(scenario: Scenario, cut: usize, closed: Duration) -> Sim {
    let mut sim = Sim::logged_in(scenario);
    let [line, seen] = sim.active(2200);
    let (first, second) = line.as_bytes().split_at(cut);
    sim.write(Client, first);
    sim.close_window(Server, closed);
    sim.settle();
    sim.write(Client, second);
    sim.settle();
    assert_eq!(text(sim.server.read()), seen, "{}", sim.summary());
    assert_eq!(sim.kernel.opened.len(), 1);
    sim
}

#[test]
fn a_closed_window_only_delays_an_announcement() {
    for probe in PROBES {
        everywhere(|scenario| {
            for cut in [1, 7, 20] {
                let (scenario, closed) = (probing(scenario.clone(), probe), Duration::from_secs(4));
                assert!(announce_through_a_closed_window(scenario, cut, closed).now() >= closed);
            }
        });
        for seed in 0..100 {
            let mut scenario = Scenario { seed, ..probing(with(Nat::Masquerade), probe) };
            scenario.link.loss = 0.3;
            announce_through_a_closed_window(scenario, 12, Duration::from_millis(700));
        }
    }
}

#[test]
fn the_tuple_of_a_connection_can_be_reused_at_once() {
    everywhere(|mut scenario| {
        for before in ["it is closed", "it is open", "the daemon restarts"] {
            scenario.link.reorder = if before == "it is closed" { 0.3 } else { 0.0 };
            let mut sim = Sim::logged_in(scenario.clone());
            sim.assert_inspected();
            match before {
                "it is closed" => sim.close_both(),
                "it is open" => {}
                _ => sim.crash(),
            }
            sim.settle();
            sim.connect_again();
            sim.play(LOGIN);
            assert_eq!(sim.engine().sessions.list_pinholes().count(), 0, "{before}");
            sim.assert_inspected();
            assert_eq!(sim.kernel.pinholes().len(), 1, "those of the old connection are closed");
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

/// The random dialogues have more: whatever replaces a packet has its marks.
#[test]
fn ip_options_and_ecn_marks_survive_a_rewrite() {
    logged_in_everywhere(|mut sim| {
        let mut marked = sim.next_segment(Client, sim.active(2200)[0].as_bytes());
        marked.flags |= CWR | ECE | flags::PSH;
        (marked.ecn, marked.ip_options) = (1, true);
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
