//! Encrypted sessions, other protocols, and segments that an attacker crafts or spoofs.

use std::time::Duration;

use ftp_alg_core::{
    engine::QueueMode,
    ftp::{Command, Text},
    packet::flags,
    session::Side::{Client, Server},
};

use super::{
    assert_untouched, everywhere, everywhere_v4,
    support::{
        Rng,
        fast_path::model::{is_bypassable, random_request},
        ftp::{ServerModel, active, at, passive, text},
        scenario::{Nat, Scenario},
        segment::Segment,
        sim::Sim,
    },
    with,
};

#[test]
fn after_a_234_inspection_resumes_only_with_plain_text() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::new(scenario.clone());
        sim.say(Server, b"220 ready\r\n");
        assert_eq!(sim.exchange("AUTH TLS\r\n", "234 go\r\n").1, "234 go\r\n");
        for (side, record) in [
            (Client, &b"\x16\x03\x01\x00\x12PORT 10,0,0,2,4,1\n"[..]),
            (Server, b"\x17\x03\x03\x00\x0fAAAAABBBBBCCCCC"),
            (Client, b"\x17\x03\x03\x00\x04PORT"),
        ] {
            assert_eq!(sim.say(side, record), record);
        }
        assert_untouched(&sim);
        // `CCC`, its 200 reply and the TLS close are TLS records. After them both ends use plain text.
        sim.say(Client, b"\x15\x03\x03\x00\x02\x01\x00");
        sim.say(Server, b"\x15\x03\x03\x00\x02\x01\x00");
        let heard = text(sim.say(Client, active(at(t.client, 2200)).as_bytes()));
        assert_eq!(heard, active(at(t.client_external, 2200)));
        sim.say(Server, b"500 no\r\n");
        assert_eq!((sim.kernel.opened.len(), sim.kernel.pinholes().len()), (1, 0));
    });
}

#[test]
fn an_announcement_after_ccc_is_rewritten_wherever_segments_end() {
    let close = b"\x15\x03\x03\x00\x02\x01\x00";
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let line = active(at(t.client, 2200));
        for cut in 1..line.len() {
            for both in [true, false] {
                let mut sim = Sim::new(scenario.clone());
                sim.say(Server, b"220 ready\r\n");
                sim.exchange("AUTH TLS\r\n", "234 go\r\n");
                for side in [Client, Server] {
                    sim.say(side, b"\x17\x03\x03\x00\x01x");
                    sim.say(side, close);
                }
                if both {
                    sim.exchange("NOOP\r\n", "200 ok\r\n");
                }
                let (first, second) = line.as_bytes().split_at(cut);
                let mut heard = sim.say(Client, first);
                heard.extend(sim.say(Client, second));
                assert_eq!(text(heard), active(at(t.client_external, 2200)), "split at {cut}");
                assert_eq!(sim.kernel.opened.len(), 1, "split at {cut}");
                assert_eq!(sim.timeouts(), 0, "split at {cut}");
            }
        }
    });
}

#[test]
fn the_first_command_after_ccc_may_be_pasv() {
    everywhere_v4(|scenario| {
        let t = scenario.nat.translation(false);
        let mut sim = Sim::new(scenario);
        sim.say(Server, b"220 ready\r\n");
        sim.exchange("AUTH TLS\r\n", "234 go\r\n");
        for side in [Client, Server] {
            sim.say(side, b"\x17\x03\x03\x00\x01x");
            sim.say(side, b"\x15\x03\x03\x00\x02\x01\x00");
        }
        sim.exchange("PASV\r\n", &passive(at(t.server, 5000)));
        assert_eq!(sim.kernel.opened.len(), 1);
    });
}

#[test]
fn announcements_are_still_rewritten_after_a_refused_auth() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        for reply in ["502 no\r\n", "431 no\r\n", "534-no\r\n534 no\r\n"] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.exchange("AUTH TLS\r\n", reply);
            let heard = text(sim.say(Client, active(at(t.client, 2200)).as_bytes()));
            assert_eq!(heard, active(at(t.client_external, 2200)));
        }
    });
}

#[test]
fn held_bytes_are_forwarded_when_encryption_begins() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    sim.say(Client, b"AUTH TLS\r\nPO");
    sim.say(Server, b"234 go\r\n");
    assert_eq!(sim.say(Client, b"\x16\x03\x01\x00\x01a"), b"PO\x16\x03\x01\x00\x01a");
    assert_eq!(sim.say(Client, b"\x17\x03\x01\x00\x01b"), b"\x17\x03\x01\x00\x01b");
}

#[test]
fn held_bytes_are_forwarded_once_if_no_encryption_follows() {
    for rest in ["RT 192,168,150,80,9,9\r\n", "P", "X\r\n"] {
        let mut sim = Sim::logged_in(with(Nat::Masquerade));
        sim.say(Client, b"AUTH TLS\r\nPO");
        sim.say(Server, b"234 go\r\n");
        let mut heard = sim.say(Client, rest.as_bytes());
        heard.extend(sim.say(Client, b"NOOP\r\n"));
        assert_eq!(text(heard), format!("PO{rest}NOOP\r\n"));
        assert_eq!(sim.kernel.opened, []);
    }
}

#[test]
fn missed_packets_end_the_inspection_of_an_encrypted_session() {
    let mut sim = Sim::new(Scenario { queues_acks: true, ..with(Nat::Routed) });
    sim.say(Server, b"220 ready\r\n");
    sim.exchange("AUTH TLS\r\n", "234 go\r\n");
    let unseen = Segment {
        seq: 1001 + sim.client.sent().len() as u32,
        ack: 70_001 + sim.server.sent().len() as u32 + 100,
        flags: flags::ACK,
        window: 1000,
        ..Segment::default()
    };
    assert_eq!(sim.forge(Client, &unseen), Some(unseen));
    assert_eq!(sim.kernel.queue_mode, Some(QueueMode::None));
    sim.assert_nothing_left();
}

#[test]
fn connections_of_other_protocols_are_never_rewritten() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        for first in [
            &b"POST / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01\x00\x05PORT \n",
            b"\x00\x01\x00\x08\x21\x12\xa4\x42abcdefghijkl\n",
            b"GET /PORT 10,0,0,2,4,1\r\n",
            b"POST /\nUSER x\r\n",
            b"\0USER x\r\n",
        ] {
            for cut in 1..first.len().min(8) {
                let mut sim = Sim::new(scenario.clone());
                sim.say(Server, b"220 ready\r\n");
                let (start, rest) = first.split_at(cut);
                sim.write(Client, start);
                sim.settle();
                sim.write(Client, rest);
                sim.settle();
                assert_eq!(sim.server.read(), first, "split at {cut}");
                for line in ["USER x\r\n", "PASS x\r\n"] {
                    sim.exchange(line, "230 in\r\n");
                }
                let line = active(at(t.client, 2200));
                assert_eq!(sim.exchange(&line, "200 ok\r\n").0, line);
                assert_eq!(sim.kernel.opened, []);
            }
            // If the server is not FTP either, packets are no longer queued.
            for greeting in
                [&b"HTTP/1.1 200 OK\r\n"[..], b"SSH-2.0-x\r\n", b"\x16\x03\x01\x00\x05abcd\n"]
            {
                let mut sim = Sim::new(scenario.clone());
                sim.say(Client, first);
                sim.say(Server, greeting);
                assert_eq!(sim.kernel.queue_mode, Some(QueueMode::None));
                assert_eq!((sim.replaced, sim.engine().sessions.count()), (0, 0));
            }
        }
    });
}

#[test]
fn a_client_of_another_protocol_that_sends_before_the_greeting_opens_no_pinhole() {
    let starts: [&[u8]; 6] = [
        b"POST / HTTP/1.1\r\n",
        b"GET /\r\n",
        b"USER / HTTP/1.1\r\n",
        b"\0",
        b"\r\n\0",
        b"PASS x\r\n",
    ];
    for start in starts {
        for text in ["", "\u{feff}220 hi\r\n"] {
            let mut sim = Sim::new(with(Nat::Masquerade));
            sim.say(Server, text.as_bytes());
            sim.say(Client, &[start, b"USER x\r\n"].concat());
            sim.say(Server, b"220 ready\r\n331 x\r\n");
            sim.exchange("PASS x\r\n", "230 in\r\n");
            let line = "PORT 192,168,150,80,9,9\r\n";
            assert_eq!(sim.exchange(line, "200 ok\r\n").0, line);
            assert_eq!(sim.kernel.opened, [], "{}", start.escape_ascii());
        }
    }
}

#[test]
fn a_server_that_sends_no_greeting_opens_no_pinhole() {
    let mut sim = Sim::new(with(Nat::Masquerade));
    sim.exchange("USER x\r\n", "331 x\r\n");
    sim.exchange("PASS x\r\n", "230 in\r\n");
    let line = "PORT 192,168,150,80,9,9\r\n";
    assert_eq!(sim.exchange(line, "200 ok\r\n").0, line);
    assert_eq!(sim.kernel.opened, []);
}

#[test]
fn held_bytes_are_forwarded_if_the_server_is_not_ftp() {
    let mut sim = Sim::new(with(Nat::Masquerade));
    assert_eq!(sim.say(Client, b"PORT 1"), b"");
    assert_eq!(sim.say(Server, b"SSH-2.0-x\r\n"), b"SSH-2.0-x\r\n");
    assert_eq!(sim.say(Client, b"O\r\n"), b"PORT 1O\r\n");
    assert_eq!(sim.say(Client, b"more\r\n"), b"more\r\n");
}

#[test]
fn a_transfer_without_an_announcement_is_forwarded_unchanged() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        sim.exchange("LIST\r\n", "150 here\r\n");
        assert_eq!(sim.say(Server, b"226 done\r\n"), b"226 done\r\n");
        assert_untouched(&sim);
    });
}

#[test]
fn a_held_line_is_completed_despite_too_many_refusals() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let mut server = ServerModel::new("203.0.113.9".parse().unwrap(), 5000);
    let refused = "PORT 10,99,99,99,9,9\r\n".repeat(70);
    sim.write(Client, format!("{}PO", &refused[..1400]).as_bytes());
    sim.converse(&mut server);
    sim.write(Client, b"RT 192,168,150,80,9,9\r\n");
    sim.converse(&mut server);
    assert_eq!(server.lines.len(), 64, "{}", sim.summary());
}

#[test]
fn every_one_of_hundreds_of_refused_commands_is_answered() {
    let mut scenario = with(Nat::Masquerade);
    scenario.client.nagle = false;
    let mut sim = Sim::logged_in(scenario);
    let mut server = ServerModel::new("203.0.113.9".parse().unwrap(), 5000);
    for _ in 0..300 {
        sim.write(Client, b"PORT 10,99,99,99,9,9\r\n");
    }
    sim.write(Client, b"PO");
    sim.converse(&mut server);
    sim.write(Client, b"RT 192,168,150,80,9,9\r\n");
    sim.converse(&mut server);
    assert_eq!(server.lines.len(), 301);
    assert_eq!(server.lines[300], "PORT 198,51,100,1,9,9\r\n");
}

#[test]
fn a_retransmission_with_different_bytes_does_not_reach_the_server() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let segment = |sim: &Sim, payload: &[u8]| Segment {
        seq: 1001 + sim.client.sent().len() as u32,
        ack: 70_001 + sim.server.sent().len() as u32,
        flags: flags::ACK,
        window: 1000,
        payload: payload.to_vec(),
        ..Segment::default()
    };
    let noop = segment(&sim, b"NOOP 10,99,99,99,21,179\r\n");
    let bounce = segment(&sim, b"PORT 10,99,99,99,21,179\r\n");
    assert!(sim.forge(Client, &noop).is_some());
    let second = sim.forge(Client, &bounce);
    assert!(
        second.is_none_or(|s| !s.payload.starts_with(b"PORT 10,99")),
        "the server received bytes that the gateway did not inspect"
    );
    assert_eq!(sim.forge(Client, &noop), Some(noop));
}

#[test]
fn long_lines_arrive_although_acknowledgements_are_not_queued() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let line = format!("STOR {}\r\n", "x".repeat(300_000));
    assert_eq!(text(sim.say(Client, line.as_bytes())), line);
    assert_eq!((sim.timeouts(), sim.dropped), (0, 0));
}

#[test]
fn data_in_a_syn_counts_as_the_first_client_bytes() {
    let mut sim = Sim::new(with(Nat::Masquerade));
    // Another connection on the same tuple: its SYN carries the start of an HTTP request.
    sim.reset(Client);
    sim.settle();
    sim.advance(Duration::from_secs(100));
    let base = Segment { window: 1000, ..Segment::default() };
    let syn = Segment {
        seq: 4_999_999,
        flags: flags::SYN,
        payload: b"POST / HTTP/1.1\r\n".into(),
        ..base.clone()
    };
    sim.forge(Client, &syn);
    let (mut client, mut server) = (5_000_017, 9_000_001);
    let syn_ack =
        Segment { seq: 9_000_000, ack: client, flags: flags::SYN | flags::ACK, ..base.clone() };
    sim.forge(Server, &syn_ack);
    for (side, line) in [
        (Server, "220 x\r\n"),
        (Client, "USER x\r\n"),
        (Server, "230 x\r\n"),
        (Client, "PORT 192,168,150,80,9,9\r\n"),
    ] {
        let (seq, ack) = if side == Client { (client, server) } else { (server, client) };
        let said = Segment { seq, ack, flags: flags::ACK, payload: line.into(), ..base.clone() };
        let passed = sim.forge(side, &said);
        assert_eq!(passed, Some(said), "{}", sim.summary());
        *(if side == Client { &mut client } else { &mut server }) += line.len() as u32;
    }
    assert_eq!(sim.kernel.opened, []);
}

#[test]
fn an_acknowledgement_of_unsent_data_opens_no_pinhole() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let ack = Segment {
        seq: 1001 + sim.client.sent().len() as u32,
        ack: 70_001 + 5000,
        flags: flags::ACK,
        window: 1000,
        payload: b"PORT 192,168,150,80,9,9\r\n".to_vec(),
        ..Segment::default()
    };
    sim.forge(Client, &ack);
    assert_eq!(sim.kernel.opened, []);
}

#[test]
fn random_sequence_numbers_never_make_the_engine_panic() {
    let mut rng = super::support::Rng::new(7);
    for round in 0..300 {
        let mut sim =
            Sim::logged_in(with(if round % 2 == 0 { Nat::Both } else { Nat::Masquerade }));
        for _ in 0..60 {
            let from = if rng.chance(0.5) { Client } else { Server };
            let lines = [
                "PORT 192,168,150,80,9,9\r\n",
                "PO",
                "RT 1,2\r\n",
                "",
                "227 (203,0,113,9,9,9)\r\n",
                "PASV\r\n",
                "200 x\r\n",
                "22",
                "\n",
                "AUTH TLS\r\n234 x\r\n",
                "150 x\r\n",
                "226 x\r\n",
            ];
            let (mut mine, mut other) =
                (1001 + sim.client.sent().len() as u32, 70_001 + sim.server.sent().len() as u32);
            if from == Server {
                (mine, other) = (other, mine);
            }
            let mut near = |base: u32| match rng.below(8) {
                0 => rng.next() as u32,
                1 => base.wrapping_sub(rng.below(100) as u32),
                2 => base.wrapping_add(1 << 31),
                _ => base.wrapping_add(rng.below(80) as u32),
            };
            let (seq, ack, sack) = (near(mine), near(other), (near(other), near(other)));
            let segment = Segment {
                seq,
                ack,
                flags: rng.next() as u8 & 0x3f & !flags::SYN
                    | if rng.chance(0.9) { flags::ACK } else { flags::SYN },
                window: rng.next() as u16,
                urgent: rng.next() as u16,
                // The gateway's acknowledgement echoes this value, and the real end must accept the echo as its own
                // timestamp.
                timestamps: rng.chance(0.5).then(|| (0, rng.next() as u32)),
                sack: if rng.chance(0.5) { vec![sack] } else { Vec::new() },
                payload: rng.pick(&lines).as_bytes().to_vec(),
                ..Segment::default()
            };
            let segment = if rng.chance(0.9) {
                Segment { flags: segment.flags & !flags::RST, ..segment }
            } else {
                segment
            };
            sim.forge(from, &segment);
        }
        sim.advance(Duration::from_secs(40));
        assert_eq!(sim.kernel.pinholes(), []);
        assert_eq!(sim.engine().sessions.list_pinholes().count(), 0);
        sim.advance(Duration::from_secs(200)); // sessions that may have reused the tuple expire
        sim.advance(Duration::from_secs(432_000 + 100));
        assert_eq!(sim.engine().sessions.count(), 0);
    }
}

#[test]
fn an_acknowledgement_with_a_bad_checksum_is_ignored() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let t = sim.translation;
    let lie = Segment { ack: 70_001 + 5000, flags: flags::ACK, ..Segment::default() };
    let mut packet = lie.packet(t.client, t.server);
    let checksum = packet.len() - 4;
    packet[checksum] ^= 1; // the receiver discards the packet
    sim.decided(std::time::Instant::now(), &packet, ftp_alg_core::engine::PacketMeta::default());
    assert_eq!(sim.exchange("PORT 192,168,150,80,9,9\r\n", "").0, "PORT 198,51,100,1,9,9\r\n");
}

#[test]
fn an_unacceptable_reset_does_not_end_the_session() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let blind = Segment { seq: 0x7000_0000, flags: flags::RST, ..Segment::default() };
    sim.forge(Server, &blind);
    assert_eq!(sim.exchange("PORT 192,168,150,80,9,9\r\n", "").0, "PORT 198,51,100,1,9,9\r\n");
    assert_eq!(sim.kernel.pinholes().len(), 1);
}

fn handshake(side: ftp_alg_core::session::Side, client: u32, server: u32) -> Segment {
    let base = Segment { flags: flags::ACK, window: 1000, ..Segment::default() };
    match side {
        Server => Segment { seq: server - 1, ack: client, flags: flags::SYN | flags::ACK, ..base },
        Client => Segment { seq: client, ack: server, ..base },
    }
}

#[test]
fn a_spoofed_syn_ack_does_not_replace_a_session() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::logged_in(scenario);
        let line = active(at(t.client, 2200));
        let seen = active(at(t.client_external, 2200));
        assert_eq!(sim.exchange(&line, "200 ok\r\n").0, seen);
        for _ in 0..3 {
            sim.advance(Duration::from_secs(8));
            let forged = handshake(Server, 0x5000_0001, 0x9000_0001);
            assert_eq!(
                sim.forge(Server, &forged),
                Some(forged),
                "it must be forwarded, because the client discards it"
            );
            // What the attacker sends next does not count as the server's data.
            let said = Segment {
                payload: b"220 x\r\n".into(),
                ..handshake(Client, 0x9000_0001, 0x5000_0001)
            };
            sim.forge(Server, &said);
        }
        assert_eq!(sim.kernel.pinholes().len(), 1, "the pinhole must stay open");
        assert_eq!(sim.exchange("NOOP\r\n", "200 ok\r\n").0, "NOOP\r\n");
        assert_eq!(sim.exchange(&line, "200 ok\r\n").0, seen);
        assert_eq!(sim.timeouts(), 0);
    });
}

/// Exchanges a login in segments with these sequence numbers, then `last` from the client. All of them must be
/// forwarded unchanged. Returns the next sequence numbers.
fn exchange_login(sim: &mut Sim, (mut client, mut server): (u32, u32), last: &str) -> (u32, u32) {
    for (side, line) in
        [(Server, "220 x\r\n"), (Client, "USER x\r\n"), (Server, "230 x\r\n"), (Client, last)]
    {
        let (seq, ack) = if side == Client { (client, server) } else { (server, client) };
        let said = Segment { payload: line.into(), ..handshake(Client, seq, ack) };
        assert_eq!(sim.forge(side, &said), Some(said), "{}", sim.summary());
        *(if side == Client { &mut client } else { &mut server }) += line.len() as u32;
    }
    (client, server)
}

#[test]
fn a_connection_that_reuses_a_live_tuple_is_inspected() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        for wait in [0, 100] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.exchange(&active(at(t.client, 2200)), "200 ok\r\n");
            assert_eq!(sim.kernel.pinholes().len(), 1);
            // The client was switched off and on. Its old conntrack entry is gone as well.
            sim.advance(Duration::from_secs(wait));
            sim.kernel.queue_mode = None;
            let (client, server) = (0x5000_0001, 0x9000_0001);
            let opening = [handshake(Server, client, server), handshake(Client, client, server)];
            assert_eq!(sim.forge(Server, &opening[0]).as_ref(), Some(&opening[0]));
            let mode = sim.kernel.queue_mode;
            let is_queued = matches!(mode, Some(QueueMode::Watch | QueueMode::All));
            assert!(is_queued, "what comes next is seen: {mode:?}");
            assert_eq!(sim.forge(Client, &opening[1]).as_ref(), Some(&opening[1]));
            assert_eq!(
                sim.kernel.pinholes(),
                [],
                "the pinholes of the old connection must be closed"
            );
            let (client, server) = exchange_login(&mut sim, (client, server), "TYPE I\r\n");
            let line = active(at(t.client, 2300));
            let said = Segment { payload: line.into(), ..handshake(Client, client, server) };
            let passed = sim.forge(Client, &said).map(|segment| text(segment.payload));
            assert_eq!(passed, Some(active(at(t.client_external, 2300))), "{}", sim.summary());
        }
    });
}

#[test]
fn data_in_a_syn_counts_on_a_reused_tuple() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    sim.advance(Duration::from_secs(100));
    let request = b"POST / HTTP/1.1\r\n";
    let syn = Segment {
        seq: 4_999_999,
        flags: flags::SYN,
        payload: request.into(),
        ..Segment::default()
    };
    sim.forge(Client, &syn);
    let (client, server) = (5_000_017, 9_000_001);
    sim.forge(Server, &handshake(Server, client, server));
    sim.forge(Client, &handshake(Client, client, server));
    exchange_login(&mut sim, (client, server), "PORT 192,168,150,80,9,9\r\n");
    assert_eq!(sim.kernel.opened, []);
}

#[test]
fn an_unacceptable_acknowledgement_does_not_end_the_session() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let (client, server) = (sim.client.sent().len() as u32, sim.server.sent().len() as u32);
    for offset in [0u32.wrapping_sub(1 << 19), 1 << 19] {
        let blind = Segment {
            seq: (70_001 + server).wrapping_add(offset),
            ack: 1001 + client + 5000,
            flags: flags::ACK,
            window: 1000,
            ..Segment::default()
        };
        sim.forge(Server, &blind);
    }
    assert_eq!(sim.exchange("PORT 192,168,150,80,9,9\r\n", "").0, "PORT 198,51,100,1,9,9\r\n");
    assert_eq!(sim.kernel.pinholes().len(), 1);
}

/// What the BPF program passes is a command for the engine, too, however the words are separated.
#[test]
fn the_fast_path_passes_no_request_of_another_protocol() {
    let mut rng = Rng::new(7);
    let mut passed = 0;
    for _ in 0..20_000 {
        let line = random_request(|bound| rng.below(bound));
        let text = [line.as_bytes(), b"\r\n"].concat();
        let text = Text::new(&text);
        let is_request = Command::parse(&text).unwrap().is_not_ftp(false);
        passed += u32::from(is_bypassable(&line));
        assert!(!(is_request && is_bypassable(&line)), "{line:?}");
    }
    assert!((1_000..19_000).contains(&passed), "{passed}");
}
