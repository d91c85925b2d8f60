//! Urgent data: whichever byte a server removes from the stream, it never reads a command that the gateway did not
//! inspect.

use ftp_alg_core::ftp::Verb;

use super::*;

/// An announcement of a third host.
const BOUNCE: &str = "PORT 10,0,0,9,0,22\r\n";

/// All readings of the bytes that the server received from offset `start` on. A server may read all bytes in the
/// stream, or omit the byte before or after an urgent pointer that arrived. With several urgent pointers, every
/// combination is possible.
fn readings(sim: &Sim, received: &[u8], start: usize) -> Vec<Vec<u8>> {
    let mut all = vec![vec![true; received.len()]];
    for pointer in &sim.server.urgent_seen {
        let mut more = Vec::new();
        for at in [pointer.checked_sub(1), Some(*pointer)] {
            let at = at.and_then(|at| at.checked_sub(start)).filter(|at| *at < received.len());
            let Some(at) = at else { continue };
            more.extend(all.iter().map(|retained| {
                let mut retained = retained.clone();
                retained[at] = false;
                retained
            }));
        }
        all.extend(more);
    }
    let reading = |retained: Vec<bool>| {
        let retained = received.iter().zip(retained).filter(|(_, retained)| *retained);
        retained.map(|(byte, _)| *byte).collect()
    };
    all.into_iter().map(reading).collect()
}

/// Whether a server that skips Telnet commands and all other non-letters would execute a `PORT` for a third host.
fn executes_bounce(reading: &[u8]) -> bool {
    reading.split(|byte| *byte == b'\n').any(|line| {
        let line = String::from_utf8_lossy(line);
        let port = line.find("PORT 10,0,0,9");
        port.is_some_and(|at| !line[..at].contains(|c: char| c.is_ascii_alphabetic()))
    })
}

/// Whether a server that skips Telnet commands would execute any `PORT` that names something.
fn executes_port(reading: &[u8]) -> bool {
    reading.split(|byte| *byte == b'\n').any(|line| {
        let text = Text::new(line);
        Command::parse(&text)
            .is_some_and(|command| command.verb == Verb::Port && !command.argument.is_empty())
    })
}

/// Otherwise a server would remove it, the line end, or the start of the next line, from the stream.
#[test]
fn an_urgent_byte_inside_a_verb_or_a_line_end_stays_in_the_stream() {
    let rest = "RT 10,0,0,9,0,22\r\n";
    everywhere(|mut scenario| {
        scenario.client.nagle = false;
        for (start, rest) in [
            (&b"POx"[..], rest),
            (b"x", BOUNCE),
            (b"PORTx", rest),
            (b"PORT 10,0,0,9,0,22\rx", rest),
            (b"NOOP\r\nPOx", rest),
            (b"\xff\xf4\xff\xf2ABOR\r\n", ""),
        ] {
            let mut sim = Sim::logged_in(scenario.clone());
            let heard = sim.say_urgent(Client, start).len() + sim.tell(Client, rest).len();
            assert_eq!(heard, start.len() + rest.len());
            assert!(sim.server.urgent_seen.is_empty(), "{}", start.escape_ascii());
            assert_eq!((sim.timeouts(), sim.kernel.opened.len()), (0, 0));
        }
    });
}

#[test]
fn an_urgent_pointer_without_data_or_beyond_its_segment_is_cleared() {
    for (payload, urgent) in
        [(&b""[..], [0, 1, 3, 4, u16::MAX]), (b"\xff\xf4", [0, 3, 9, 10, u16::MAX])]
            .into_iter()
            .flat_map(|(payload, pointers)| pointers.map(|urgent| (payload, urgent)))
    {
        let mut sim = Sim::logged_in(without_nagle(Nat::Masquerade));
        let expected = sim.next_segment(Client, payload);
        let said = Segment { flags: flags::ACK | flags::URG, urgent, ..expected.clone() };
        assert_eq!(sim.forge(Client, &said), Some(expected), "pointer {urgent}");
    }
}

#[test]
fn a_retransmission_cannot_mark_another_urgent_byte() {
    let mut sim = Sim::logged_in(without_nagle(Nat::Masquerade));
    let first = Segment {
        flags: flags::ACK | flags::URG,
        urgent: 4,
        ..sim.next_segment(Client, b"\xff\xf4\xff\xf2ABOR\r\n")
    };
    assert_eq!(sim.forge(Client, &first), Some(first.clone()));
    assert_eq!(sim.forge(Client, &first), Some(first.clone()), "a retransmission");
    for urgent in [1, 2, 3, 5, 8, 10, 11, 60] {
        let other = Segment { urgent, ..first.clone() };
        let expected = Segment { urgent: 0, flags: flags::ACK, ..first.clone() };
        assert_eq!(sim.forge(Client, &other), Some(expected), "pointer {urgent}");
    }
    // The same urgent pointer is allowed in a segment of its own, because TCP may segment the data differently.
    let part = Segment {
        seq: first.seq.wrapping_add(2),
        urgent: 2,
        payload: first.payload[2..].to_vec(),
        ..first
    };
    assert_eq!(sim.forge(Client, &part), Some(part.clone()));
}

#[test]
fn a_bounce_hidden_by_an_urgent_byte_is_crossed_out() {
    everywhere_v4(|mut scenario| {
        scenario.client.nagle = false;
        for lead in
            words(b"\xff\xf4\xff\xf2|\xff\xf4\xff|\xff\xf4|\xff|\xff\xfd\x06|\xff\xfd| |\xff\xfb")
        {
            for rest in ["XPORT", "PORT", "\u{0}XPORT", "XXPORT", "\u{f2}XPORT"] {
                let rest: Vec<u8> = rest.chars().map(|c| c as u8).collect();
                let rest = [&rest[..], b" 10,0,0,9,0,22\r\n"].concat();
                for cut in 0..rest.len() {
                    let mut sim = Sim::logged_in(scenario.clone());
                    let before = sim.server.received();
                    sim.write_urgent(Client, lead);
                    let received = sim.say_in_pieces(Client, [&rest[..cut], &rest[cut..]]);
                    assert_eq!(received.len(), lead.len() + rest.len());
                    for reading in readings(&sim, &received, before) {
                        // Bytes that an incomplete Telnet option command swallows without urgent data are outside this
                        // test.
                        let is_cut = lead.ends_with(b"\xfd") || lead.ends_with(b"\xfb");
                        let executes = if is_cut { executes_port } else { executes_bounce };
                        assert!(!executes(&reading), "{lead:?} {rest:?} at {cut}: {reading:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn random_urgent_data_never_forms_an_uninspected_command() {
    let parts = words(
        b"\xff|\xf4|\xf2|\xfd|\x06|x| |PO|RT|PORT 10,0,0,9,0,22|\r\n|\n|\xff\xf4\xff|NOOP\r\n",
    );
    let rounds = std::env::var("FTP_ALG_URGENT").map_or(400, |rounds| rounds.parse().unwrap());
    for seed in 0..rounds {
        let mut rng = Rng::new(seed);
        let mut sim = Sim::logged_in(without_nagle(Nat::Routed));
        let before = sim.server.received();
        for _ in 0..2 + rng.below(8) {
            let count = 1 + rng.below(4);
            let piece: Vec<u8> = (0..count).flat_map(|_| *rng.pick(&parts)).copied().collect();
            if rng.chance(0.5) {
                sim.write_urgent(Client, &piece);
            } else {
                sim.write(Client, &piece);
            }
            if rng.chance(0.5) {
                sim.settle();
            }
        }
        let received = sim.say(Client, b"\r\n");
        for reading in readings(&sim, &received, before) {
            let shown = String::from_utf8_lossy(&reading);
            let (full, pointers) = (received.escape_ascii(), &sim.server.urgent_seen);
            assert!(
                !executes_port(&reading),
                "seed {seed}: {shown:?} of {full} {pointers:?} {before}"
            );
        }
    }
}

#[test]
fn a_synch_before_many_telnet_commands_is_inspected() {
    let mut sim = Sim::logged_in(without_nagle(Nat::Masquerade));
    let before = sim.server.received();
    sim.write_urgent(Client, b"\xff\xf4\xff");
    for _ in 0..400 {
        sim.write(Client, b"\xf4\xff");
    }
    let received = sim.say(Client, b"\xf2XPORT 10,0,0,9,0,22\r\n");
    assert!(readings(&sim, &received, before).iter().all(|reading| !executes_bounce(reading)));
}

#[test]
fn repeated_telnet_synchs_are_forwarded_also_after_a_rewrite() {
    everywhere_v4(|mut scenario| {
        scenario.client.nagle = false;
        for before in ["", "> ACTIVE 2200 < 200 ok"] {
            let mut sim = Sim::after(scenario.clone(), &format!("{LOGIN}{before}"));
            let mut expected = Vec::new();
            for _ in 0..5 {
                expected.push(sim.server.received() + 3);
                sim.write_urgent(Client, b"\xff\xf4\xff");
                assert_eq!(sim.say(Client, b"\xf2ABOR\r\n"), b"\xff\xf4\xff\xf2ABOR\r\n");
                assert_eq!(sim.server.urgent_seen, expected);
                assert_eq!(sim.timeouts(), 0);
            }
        }
    });
}

#[test]
fn an_announcement_with_an_urgent_byte_is_rewritten() {
    everywhere_v4(|mut scenario| {
        (scenario.client.nagle, scenario.server.nagle) = (false, false);
        for side in [Client, Server] {
            let mut sim = Sim::logged_in(scenario.clone());
            let [line, seen] = match side {
                Client => sim.active(2345),
                Server => sim.passive(5022),
            };
            if side == Server {
                sim.play("> PASV");
            }
            let (first, rest) = line.as_bytes().split_at(line.len() - 4);
            sim.write_urgent(side, first);
            assert_eq!(text(sim.say(side, rest)), seen);
            assert!(sim.end(side.peer()).urgent_seen.is_empty());
            assert_eq!(sim.kernel.opened.len(), 1);
        }
    });
}
