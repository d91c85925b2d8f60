//! Encrypted sessions, other protocols, and segments that an attacker crafts or spoofs.

use super::{
    encryption::begin_tls,
    support::fast_path::model::{is_bypassable, random_request},
    *,
};

const OWN: &str = "PORT 192,168,150,80,9,9\r\n";
const SEEN: &str = "PORT 198,51,100,1,9,9\r\n";

fn masqueraded() -> Sim {
    Sim::logged_in(with(Nat::Masquerade))
}

/// Ends the TLS of both ends, after a record.
fn close_tls(sim: &mut Sim) {
    begin_tls(sim);
    for side in [Client, Server] {
        sim.say(side, b"\x17\x03\x03\x00\x01x");
        sim.say(side, b"\x15\x03\x03\x00\x02\x01\x00");
    }
}

#[test]
fn an_announcement_after_ccc_is_rewritten_wherever_segments_end() {
    everywhere(|scenario| {
        for cut in 1..Sim::new(scenario.clone()).active(2200)[0].len() {
            for before in ["", "> NOOP < 200 ok"] {
                let mut sim = Sim::after(scenario.clone(), AUTH);
                close_tls(&mut sim);
                sim.play(before);
                let [line, seen] = sim.active(2200);
                assert_eq!(sim.tell_cut(Client, &line, cut), seen, "split at {cut}");
                assert_eq!((sim.kernel.opened.len(), sim.timeouts()), (1, 0), "split at {cut}");
            }
        }
    });
}

#[test]
fn held_bytes_are_forwarded_once_whether_encryption_begins_or_not() {
    for (rest, then) in [
        (&b"\x16\x03\x01\0\x01a"[..], &b"\x17\x03\x01\0\x01b"[..]),
        (b"RT 192,168,150,80,9,9\r\n", b"NOOP\r\n"),
        (b"P", b"NOOP\r\n"),
        (b"X\r\n", b"NOOP\r\n"),
    ] {
        let mut sim = masqueraded();
        sim.say(Client, b"AUTH TLS\r\nPO");
        sim.say(Server, b"234 go\r\n");
        assert_eq!(sim.say_in_pieces(Client, [rest, then]), [b"PO", rest, then].concat());
        assert_eq!(sim.kernel.opened, []);
    }
}

/// As a browser sends it, which a page makes connect to a server that answers everything as it likes.
#[test]
fn the_first_bytes_of_another_protocol_count_for_good() {
    let verbs =
        ["USER", "PASS", "NOOP", "RETR", "QUIT", "STAT", "HELP", "user", "CLIENTINFO", "POST"];
    let mut firsts: Vec<_> = verbs.map(|verb| format!("{verb} / HTTP/1.1\r\n").into_bytes()).into();
    let others = words(
        b"\x16\x03\x01\0\x05xPORT \n|\x16\x03\x01\0\n|\x16\x03\x01\n|\0\x03\0\x10!x\n|GET /\r\n|POST /\nUSER x\r\n|\
        \0USER x\r\n|\0\x01\0\x08\x21\x12\xa4\x42abcdefghijkl\n|GET /PORT 10,0,0,2,4,1\r\n|\
        X-CLIENT http://10.0.0.2:21/\r\n|NICK x\r\nUSER x\r\n|{}\r\n|--boundary\r\n",
    );
    firsts.extend(others.into_iter().map(<[u8]>::to_vec));
    everywhere(|scenario| {
        let third = third(scenario.v6);
        for (first, cut) in
            firsts.iter().flat_map(|first| (1..first.len().min(8)).map(move |cut| (first, cut)))
        {
            let mut sim = Sim::after(scenario.clone(), GREETING);
            let (start, rest) = first.split_at(cut);
            assert_eq!(sim.say_in_pieces(Client, [start, rest]), *first);
            let answer = ["", "< 500 what?", "< 200 ok"][cut % 3];
            sim.play(&format!("{answer} > USER x < 230 in > PASS x < 230 in"));
            let line = &sim.active(2200)[0];
            assert_eq!(sim.exchange(line, "200 ok\r\n").0, *line, "split at {cut}");
            assert_eq!(sim.tell(Client, &third), crossed_out(&third), "split at {cut}");
            assert_eq!(sim.kernel.opened, []);
        }
    });
}

/// Whether the client or the server shows it. In TLS of both ends FTP may follow.
#[test]
fn connections_of_other_protocols_leave_the_queue() {
    let tls = b"\x16\x03\x01\x00\x05abcd\n";
    let others = words(
        b"SSH-2.0-x|HTTP/1.1 200 OK|RTSP/1.0 200 OK|ICAP/1.0 200 OK|+OK POP3|* OK IMAP|RFB 003.008|@RSYNCD: 31.0|J\0\0\0|-ERR no",
    );
    let hello = r"> \u{16}\u{3}\u{1}\0\u{5}xPORT \n";
    let clients = ["> POST / HTTP/1.1", hello, r"> \0USER x", r"> POST /\nUSER x"];
    let servers = ["", "< ld.so: warning", "< ld.so: warning > USER x"];
    everywhere(|scenario| {
        for before in clients.into_iter().chain(servers) {
            let is_tls_possible = clients.contains(&before) && before != hello;
            for other in others.iter().copied().chain(is_tls_possible.then_some(&tls[..])) {
                let mut sim = Sim::after(scenario.clone(), before);
                sim.say(Server, &[other, b"\r\n"].concat());
                assert_eq!(sim.kernel.queue_mode, Some(QueueMode::None), "{before}: {other:?}");
                assert_eq!((sim.replaced, sim.engine().sessions.count()), (0, 0));
            }
        }
    });
}

#[test]
fn without_a_greeting_before_ftp_commands_nothing_is_opened() {
    let greetings = ["", "\u{feff}220 hi\r\n"];
    let starts =
        ["POST / HTTP/1.1\r\n", "GET /\r\n", "USER / HTTP/1.1\r\n", "\0", "\r\n\0", "PASS x\r\n"];
    let dialogues = starts.iter().flat_map(|start| greetings.map(|text| (text, *start)));
    for (text, start) in dialogues {
        let mut sim = Sim::new(with(Nat::Masquerade));
        sim.tell(Server, text);
        sim.tell(Client, &format!("{start}USER x\r\n"));
        sim.play(r"< 220 ready\r\n331 x > PASS x < 230 in");
        assert_eq!(sim.exchange(OWN, "200 ok\r\n").0, OWN);
        assert_eq!(sim.kernel.opened, [], "{text:?} {start:?}");
    }
    let no_greeting = "a server that sends none > USER x < 331 x > PASS x < 230 in";
    let mut sim = Sim::after(with(Nat::Masquerade), no_greeting);
    assert_eq!(sim.exchange(OWN, "200 ok\r\n").0, OWN);
    assert_eq!(sim.kernel.opened, []);
}

#[test]
fn held_bytes_are_forwarded_if_the_server_is_not_ftp() {
    let mut sim = Sim::new(with(Nat::Masquerade));
    assert_eq!(sim.say(Client, b"PORT 1"), b"");
    sim.play("< SSH-2.0-x");
    assert_eq!(sim.say(Client, b"O\r\n"), b"PORT 1O\r\n");
    sim.play("> more");
}

#[test]
fn a_held_line_is_completed_despite_too_many_refusals() {
    let mut sim = masqueraded();
    let mut server = ServerModel::new("203.0.113.9".parse().unwrap(), 5000);
    let refused = "PORT 10,99,99,99,9,9\r\n".repeat(70);
    sim.write(Client, format!("{}PO", &refused[..1400]).as_bytes());
    sim.converse(&mut server);
    sim.write(Client, b"RT 192,168,150,80,9,9\r\n");
    sim.converse(&mut server);
    assert_eq!(server.lines.len(), 64, "{}", sim.summary());
}

#[test]
fn random_sequence_numbers_never_make_the_engine_panic() {
    let lines = words(
        b"PORT 192,168,150,80,9,9\r\n|PO|RT 1,2\r\n||227 (203,0,113,9,9,9)\r\n|PASV\r\n|200 x\r\n|22|\n|\
        AUTH TLS\r\n234 x\r\n|150 x\r\n|226 x\r\n",
    );
    let mut rng = Rng::new(7);
    for round in 0..300 {
        let mut sim =
            Sim::logged_in(with(if round % 2 == 0 { Nat::Both } else { Nat::Masquerade }));
        for _ in 0..60 {
            let from = if rng.chance(0.5) { Client } else { Server };
            let next = sim.next_segment(from, b"");
            let mut near = |base: u32| match rng.below(8) {
                0 => rng.next() as u32,
                1 => base.wrapping_sub(rng.below(100) as u32),
                2 => base.wrapping_add(1 << 31),
                _ => base.wrapping_add(rng.below(80) as u32),
            };
            let (seq, ack, sack) =
                (near(next.seq), near(next.ack), (near(next.ack), near(next.ack)));
            let mut segment = Segment {
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
                payload: rng.pick(&lines).to_vec(),
                ..Segment::default()
            };
            if rng.chance(0.9) {
                segment.flags &= !flags::RST;
            }
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
    let mut sim = masqueraded();
    let lie = Segment { ack: 70_001 + 5000, flags: flags::ACK, ..Segment::default() };
    let mut packet = lie.packet(sim.translation.client, sim.translation.server);
    let checksum = packet.len() - 4;
    packet[checksum] ^= 1; // the receiver discards the packet
    sim.decided(Instant::now(), &packet, PacketMeta::FORWARDED);
    assert_eq!(sim.exchange(OWN, "").0, SEEN);
}

#[test]
fn an_unacceptable_segment_does_not_end_the_session() {
    everywhere(|scenario| {
        for (side, away, more_acked, flags) in [
            (Client, 1000, 500, flags::ACK | flags::RST),
            (Client, -40, 500, flags::ACK | flags::RST),
            (Server, 66_000, 500, flags::ACK | flags::RST),
            (Server, -40, 500, flags::ACK | flags::RST),
            (Server, 0x7000_0000, 500, flags::RST),
            (Server, -(1 << 19), 5000, flags::ACK),
            (Server, 1 << 19, 5000, flags::ACK),
        ] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.play("> NOOP < 200 ok");
            let next = sim.next_segment(side, b"");
            let (seq, ack) = (next.seq.wrapping_add_signed(away), next.ack + more_acked);
            sim.forge(side, &Segment { seq, ack, flags, ..next });
            sim.assert_inspected();
            assert_eq!(sim.kernel.pinholes().len(), 1, "{side:?} {away}");
        }
    });
}

fn handshake(side: Side, client: u32, server: u32) -> Segment {
    let base = Segment { flags: flags::ACK, window: 1000, ..Segment::default() };
    match side {
        Server => Segment { seq: server - 1, ack: client, flags: flags::SYN | flags::ACK, ..base },
        Client => Segment { seq: client, ack: server, ..base },
    }
}

#[test]
fn a_spoofed_syn_ack_does_not_replace_a_session() {
    logged_in_everywhere(|mut sim| {
        sim.play("> ACTIVE 2200 < 200 ok");
        for seconds in [0, 8, 20] {
            sim.advance(Duration::from_secs(seconds));
            let forged = handshake(Server, 0x5000_0001, 0x9000_0001);
            let passed = sim.forge(Server, &forged);
            assert_eq!(passed, Some(forged), "it passes, because the client discards it");
            // What the attacker sends next does not count as the server's data.
            let greeting = handshake(Client, 0x9000_0001, 0x5000_0001);
            for text in ["220 x\r\n", "SSH-2.0-x\r\n"] {
                sim.forge(Server, &Segment { payload: text.into(), ..greeting.clone() });
            }
        }
        assert_eq!(sim.kernel.pinholes().len(), 1, "the pinhole must stay open");
        sim.play("> NOOP < 200 ok > ACTIVE 2200 < 200 ok > PORT 10,99,99,99,9,9 => X");
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

/// After the end of the old one, what follows a SYN-ACK is forwarded even if its acknowledgement was not seen.
#[test]
fn a_connection_that_reuses_a_tuple_is_inspected() {
    everywhere(|scenario| {
        for case in ["at once", "later", "after a restart", "after the end"] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.play("> ACTIVE 2200 < 200 ok");
            assert_eq!(sim.kernel.pinholes().len(), 1);
            // The client was switched off and on. Its old conntrack entry is gone as well.
            match case {
                "later" => sim.advance(Duration::from_secs(100)),
                "after the end" => sim.close_both(),
                _ => {}
            }
            sim.settle();
            sim.kernel.queue_mode = None;
            let numbers = (0x5000_0001, 0x9000_0001);
            let [first, second] =
                [Server, Client].map(|side| handshake(side, numbers.0, numbers.1));
            assert_eq!(sim.forge(Server, &first), Some(first));
            if case == "after the end" {
                exchange_login(&mut sim, numbers, "TYPE I\r\n");
                continue;
            }
            let mode = sim.kernel.queue_mode;
            let is_queued = matches!(mode, Some(QueueMode::Watch | QueueMode::EveryPacket));
            assert!(is_queued, "what comes next is seen: {mode:?}");
            if case == "after a restart" {
                sim.crash();
            }
            assert_eq!(sim.forge(Client, &second), Some(second));
            assert_eq!(sim.kernel.pinholes(), [], "those of the old connection are closed");
            let (client, server) = exchange_login(&mut sim, numbers, "TYPE I\r\n");
            let [line, seen] = sim.active(2300);
            let said = Segment { payload: line.into(), ..handshake(Client, client, server) };
            let passed = sim.forge(Client, &said).map(|segment| segment.payload);
            assert_eq!(passed, Some(seen.into_bytes()), "{}", sim.summary());
        }
    });
}

/// TCP Fast Open (RFC 7413): what a SYN and a SYN-ACK carry is not forwarded, so the receiver acknowledges none of it, and
/// it is read when it is retransmitted.
#[test]
fn data_in_a_syn_is_read_when_it_is_retransmitted() {
    let without_data = |sim: &mut Sim, side, segment: Segment| {
        let meaningless = flags::FIN | flags::PSH | flags::URG;
        let passed = sim.forge(side, &segment);
        let flags = segment.flags & !meaningless;
        let expected = Segment { flags, urgent: 0, payload: Vec::new(), ..segment };
        assert_eq!(passed, Some(expected), "{}", sim.summary());
    };
    everywhere(|scenario| {
        let third = third(scenario.v6);
        let hidden = format!("USER x\r\nPASS x\r\n{third}");
        for (more_flags, data) in [
            (0, &*hidden),
            (0, "USER x\r\n"),
            (0, "POST / HTTP/1.1\r\n"),
            (flags::PSH | flags::URG, &*hidden),
            (flags::FIN, &*hidden),
            (flags::RST, &*hidden),
        ] {
            for is_live in [false, true] {
                let mut sim = Sim::logged_in(scenario.clone());
                if !is_live {
                    sim.forget();
                }
                sim.kernel.queue_mode = None;
                let count = sim.engine().sessions.count();
                let (client, server) = (5_000_000, 9_000_001);
                let syn = Segment {
                    seq: client - 1,
                    flags: flags::SYN | more_flags,
                    urgent: if more_flags & flags::URG != 0 { 3 } else { 0 },
                    window_scale: Some(7),
                    ip_options: true,
                    payload: data.into(),
                    ..Segment::default()
                };
                without_data(&mut sim, Client, syn);
                assert_eq!(sim.engine().sessions.count(), count, "a SYN begins no session");
                let syn_ack = handshake(Server, client, server);
                without_data(&mut sim, Server, Segment { payload: b"220 x\r\n".into(), ..syn_ack });
                let acknowledgement = handshake(Client, client, server);
                assert_eq!(sim.forge(Client, &acknowledgement), Some(acknowledgement));
                let (client, server) = exchange_login(&mut sim, (client, server), "TYPE I\r\n");
                let [line, seen] = sim.active(2200);
                let lines = [(&*line, &*seen), (&*third, &*crossed_out(&third))];
                lines.into_iter().fold(client, |seq, (said, expected)| {
                    let said = Segment { payload: said.into(), ..handshake(Client, seq, server) };
                    let passed = sim.forge(Client, &said).map(|segment| text(segment.payload));
                    assert_eq!(passed.as_deref(), Some(expected), "{}", sim.summary());
                    seq + said.payload.len() as u32
                });
            }
        }
    });
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

/// IPv6 addresses that have the numeric value of IPv4 ones: IPv4-compatible (`::a.b.c.d`) and IPv4-mapped
/// (`::ffff:a.b.c.d`).
#[test]
fn ipv6_lookalike_packets_do_not_affect_an_ipv4_connection() {
    let alike: [fn(&Ipv4Addr) -> Ipv6Addr; 2] =
        [Ipv4Addr::to_ipv6_compatible, Ipv4Addr::to_ipv6_mapped];
    for nat in NATS {
        let mut sim = Sim::logged_in(with(nat));
        let sessions = sim.engine().sessions.count();
        for alike in alike {
            let [client, server] = [sim.translation.client, sim.translation.server].map(|end| {
                let IpAddr::V4(address) = end.ip() else { panic!("not IPv4") };
                SocketAddr::new(alike(&address).into(), end.port())
            });
            for (seq, ack, flags, said) in [
                (9000, 5000, flags::SYN | flags::ACK, ""),
                (1001, 70_001, flags::ACK | flags::PSH, "QUIT\r\n"),
                (1001, 70_001, flags::ACK | flags::PSH, "227 =1,2,3,4,5,6\r\n"),
                (1001, 70_001, flags::ACK | flags::PSH, "GET / HTTP/1.1\r\n"),
                (1001, 70_001, flags::RST, ""),
                (1001, 70_001, flags::FIN | flags::ACK, ""),
            ] {
                let payload = said.into();
                let segment =
                    Segment { seq, ack, flags, window: 1000, payload, ..Segment::default() };
                for packet in [segment.packet(client, server), segment.packet(server, client)] {
                    let verdict = sim.decided(Instant::now(), &packet, PacketMeta::FORWARDED).0;
                    assert_eq!(verdict, PacketOutcome::Accept);
                }
            }
        }
        assert_eq!(sim.kernel.queue_mode, None, "{nat:?}");
        assert!(sim.engine().sessions.count() > sessions, "those have sessions of their own");
        sim.assert_inspected();
        sim.play("< 200 ok");
        assert_eq!((sim.timeouts(), sim.dropped), (0, 0), "{nat:?}");
        // Nor one that begins later.
        sim.connect_again();
        sim.play(LOGIN);
        sim.assert_inspected();
    }
}
