//! TCP is a byte stream: announcements may be split, retransmitted, combined with other lines, or followed by a FIN.

use super::*;

/// For each end: an announcement between two other lines, and the text that the peer receives.
fn announcements_of_both(scenario: &Scenario) -> [(Side, String, String); 2] {
    let sim = Sim::new(scenario.clone());
    let [command, heard_command] = sim.active(2200).map(|line| format!("TYPE I\r\n{line}LIST\r\n"));
    let [reply, heard_reply] = sim.passive(3300).map(|line| format!("200 ok\r\n{line}150 x\r\n"));
    [(Client, command, heard_command), (Server, reply, heard_reply)]
}

/// A logged-in connection on which `side` may say its [announcement](announcements_of_both).
fn ready(scenario: &Scenario, side: Side) -> Sim {
    let mut sim = Sim::logged_in(scenario.clone());
    if side == Server {
        sim.play(r"> TYPE I\r\nEPSV");
    }
    sim
}

/// Sends `pieces` one after the other without waiting. Returns what the peer receives.
fn receive_in_pieces<'a>(
    scenario: &Scenario,
    side: Side,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (String, Sim) {
    let mut sim = ready(scenario, side);
    pieces.into_iter().for_each(|piece| sim.write(side, piece));
    sim.settle();
    (text(sim.end(side.peer()).read()), sim)
}

#[test]
fn an_announcement_in_any_segments_arrives_without_a_retransmission() {
    everywhere(|mut scenario| {
        for nagle in [false, true] {
            (scenario.client.nagle, scenario.server.nagle) = (nagle, nagle);
            for (side, said, expected) in announcements_of_both(&scenario) {
                let said = said.as_bytes();
                let halves = (1..said.len()).map(|cut| vec![&said[..cut], &said[cut..]]);
                for pieces in halves.chain([said.chunks(1).collect()]) {
                    let case = format!("in {} from {}", pieces.len(), pieces[0].len());
                    let (heard, sim) = receive_in_pieces(&scenario, side, pieces);
                    assert_eq!(heard, expected, "{case}");
                    assert_eq!(sim.timeouts(), 0, "{case}: {}", sim.summary());
                    assert_eq!(sim.kernel.opened.len(), 1);
                }
                // With pauses.
                let mut sim = ready(&scenario, side);
                assert_eq!(text(sim.say_in_pieces(side, said.chunks(1))), expected);
                assert_eq!(sim.timeouts(), 0, "{}", sim.summary());
                sim.assert_ends(Client);
            }
        }
    });
}

#[test]
fn a_long_line_after_held_bytes_arrives_complete() {
    let long = "x".repeat(1300);
    everywhere(|scenario| {
        for (side, start, rest) in [
            (Client, "P", format!("ASS {long}\r\nTYPE I\r\n")),
            (Client, "P", format!("ASS {long}")),
            (Server, "22", format!("0 {long}\r\n150 x\r\n")),
            (Server, "22", format!("9 {long}")),
        ] {
            let pieces = [start, &rest, "end\r\n"];
            let (heard, sim) = receive_in_pieces(&scenario, side, pieces.map(str::as_bytes));
            assert_eq!(heard, pieces.concat());
            assert_eq!(sim.kernel.opened, []);
        }
    });
}

#[test]
fn a_retransmission_gets_the_same_rewrite_and_no_second_pinhole() {
    for loss_after in 0..12 {
        everywhere(|mut scenario| {
            scenario.client.reslices = loss_after % 2 == 1;
            scenario.server.reslices = scenario.client.reslices;
            scenario.link.loss = 0.3;
            scenario.seed = loss_after;
            for (side, said, expected) in announcements_of_both(&scenario) {
                let (heard, sim) = receive_in_pieces(&scenario, side, said.as_bytes().chunks(9));
                assert_eq!(heard, expected);
                assert_eq!(sim.kernel.opened.len(), 1);
            }
        });
    }
}

#[test]
fn telnet_commands_with_urgent_data_are_forwarded_unchanged() {
    everywhere(|mut scenario| {
        scenario.client.nagle = false;
        for pieces in [
            &[&b"\xff\xf4\xff\xf2"[..], b"ABOR\r\n"][..],
            &[b"\xff\xf4\xff", b"\xf2ABOR\r\n"],
            &[b"\xff\xf4", b"\xff\xf2", b"ABOR\r\n"],
        ] {
            let mut sim = Sim::logged_in(scenario.clone());
            let before = sim.client.sent().len();
            let (urgent, rest) = pieces.split_first().unwrap();
            let heard = sim.say_urgent(Client, urgent);
            assert_eq!(heard, *urgent, "the urgent bytes must not be held");
            for piece in rest {
                sim.write(Client, piece);
            }
            sim.settle();
            assert_eq!([urgent, &sim.server.read()[..]].concat(), pieces.concat());
            assert_eq!(sim.server.urgent_seen, [before + urgent.len()]);
            assert_untouched(&sim);
        }
        for line in [&b"\xff\xfd\x06NOOP\r\n"[..], b"CWD a\xff\xffb\r\n", b"\xff\xf1PWD\r\n"] {
            let mut sim = Sim::logged_in(scenario.clone());
            assert_eq!(sim.say(Client, line), line);
            assert_untouched(&sim);
        }
    });
}

/// ProFTPD executes a command behind a CR. Other servers treat the CR as part of the verb, so no pinhole opens.
#[test]
fn an_announcement_after_telnet_commands_is_decided_wherever_segments_end() {
    let own = "PORT 192,168,150,80,9,9\r\n";
    for (lead, said, seen, opened) in [
        (&b"\xff\xf4\xff\xf2\xff\xfd\x06"[..], own, "PORT 198,51,100,1,9,9\r\n", 1),
        (b"\xff\xf1\r", own, own, 0),
        (b"\xff\xf1\r", "PORT 10,99,99,99,9,9\r\n", "XXXX XXXXXXXXXXXXXXX\r\n", 0),
    ] {
        let [line, expected] = [said, seen].map(|line| [lead, line.as_bytes()].concat());
        for (cut, is_urgent) in (0..line.len()).flat_map(|cut| [(cut, false), (cut, opened == 1)]) {
            let mut sim = Sim::logged_in(with(Nat::Masquerade));
            let (first, second) = line.split_at(cut);
            let start =
                if is_urgent { sim.say_urgent(Client, first) } else { sim.say(Client, first) };
            assert_eq!([start, sim.say(Client, second)].concat(), expected, "split at {cut}");
            assert_eq!((sim.timeouts(), sim.kernel.opened.len()), (0, opened), "split at {cut}");
        }
    }
}

#[test]
fn a_fin_may_carry_the_last_bytes() {
    everywhere(|scenario| {
        for (side, said, expected) in announcements_of_both(&scenario) {
            for cut in 0..said.len() {
                let mut sim = Sim::logged_in(scenario.clone());
                sim.say(Client, b"TYPE I\r\nEPSV\r\n");
                sim.server.read();
                let (first, second) = said.as_bytes().split_at(cut);
                let mut heard = sim.say(side, first);
                sim.end(side).write(second);
                sim.close(side);
                sim.settle();
                heard.extend(sim.end(side.peer()).read());
                assert_eq!(text(heard), expected);
                assert!(sim.end(side.peer()).peer_has_closed());
                assert_eq!(sim.timeouts(), 0);
                sim.assert_ends(side);
            }
        }
    });
}

/// Of the client, or of both ends at the same time.
#[test]
fn held_bytes_are_forwarded_before_the_fin() {
    everywhere(|scenario| {
        for end in ["", "P", "POR", "PORT 192,168", "EPRT |"] {
            for (at_once, both) in [(false, false), (true, false), (true, true)] {
                let mut sim = Sim::logged_in(scenario.clone());
                sim.play("> ACTIVE 2200 < 200 ok");
                sim.write(Client, b"NOOP\r\n");
                sim.write(Client, end.as_bytes());
                if !at_once {
                    sim.settle();
                }
                if both {
                    sim.close_both()
                } else {
                    sim.close(Client)
                }
                sim.settle();
                assert_eq!(text(sim.server.read()), format!("NOOP\r\n{end}"));
                assert!(sim.server.peer_has_closed());
                assert_eq!(sim.client.peer_has_closed(), both);
                if !both {
                    sim.close(Server);
                    sim.settle();
                }
                assert_eq!(sim.kernel.pinholes(), []);
                sim.assert_nothing_left();
            }
        }
    });
}

#[test]
fn a_reset_is_forwarded_and_closes_all_pinholes() {
    everywhere(|scenario| {
        for side in [Client, Server] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.tell(Client, &sim.active(2200)[0]);
            assert_eq!(sim.kernel.pinholes().len(), 1);
            sim.reset(side);
            sim.settle();
            assert!(sim.end(side.peer()).is_reset);
            assert_eq!(sim.kernel.pinholes(), []);
            sim.assert_nothing_left();
        }
    });
}

#[test]
fn a_rewrite_beyond_the_mss_is_sent_as_two_segments() {
    for nagle in [false, true] {
        let mut scenario = with(Nat::PortForward);
        scenario.server.mss = 600;
        scenario.server.nagle = nagle;
        let mut sim = Sim::logged_in(scenario);
        sim.say(Client, b"NOOP\r\nNOOP\r\nPASV\r\n");
        let before = format!("211-{}\r\n211 x\r\n220 ", "x".repeat(500));
        let reply = "\r\n227 (203,0,113,9,9,9)\r\n";
        let filling = "y".repeat(600 - before.len() - reply.len());
        let said = format!("{before}{filling}{reply}");
        assert_eq!(said.len(), 600);
        let heard = sim.tell(Server, &said);
        assert_eq!(heard, said.replace("203,0,113,9", "198,51,100,2"));
        assert_eq!(sim.timeouts(), 0, "the second segment must be sent at once");
    }
}

#[test]
fn retransmitted_held_bytes_solicit_an_acknowledgement_from_the_receiver() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let first = sim.next_segment(Client, b"PORT 192,1");
    let mut second = sim.next_segment(Client, b"68,150,80,9,9\r\n");
    second.seq += 10;
    let held = sim.forge(Client, &first).unwrap();
    assert_eq!((held.seq, held.payload.len()), (first.seq, 0));
    // The gateway's acknowledgement was lost, or was discarded because of an old timestamp.
    let repeated = sim.forge(Client, &first).unwrap();
    assert_eq!((repeated.seq, repeated.payload.len()), (first.seq - 1, 0));
    let whole = sim.forge(Client, &second).unwrap();
    assert_eq!(text(whole.payload), "PORT 198,51,100,1,9,9\r\n");
    // The complete line was lost as well.
    let repeated = sim.forge(Client, &first).unwrap();
    assert_eq!((repeated.seq, repeated.payload.len()), (first.seq - 1, 0));
}
