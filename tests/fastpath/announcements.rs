//! Announcements: the pinhole that each opens, and what is written in the place of its address.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};

use ftp_alg_core::ftp::{Announcement, Text, Zeros};

use crate::{
    data::syn,
    layout::{Flow, Hole, HoleKey, NOTHING, OPENED, PASV, REWRITTEN, Side},
    rng::Rng,
    scene::{CLIENT, ID, SECOND, SERVER, Talk, masqueraded, now, published, routed},
};

/// The pinhole that a flow opens where the data connection comes to the client, or to the server.
fn key(flow: &Flow, announcing: Side, port: u16) -> HoleKey {
    match announcing {
        Side::Client => {
            HoleKey { initiator: flow.active_initiator, arrival: flow.client_arrival, port }
        }
        Side::Server => {
            HoleKey { initiator: flow.passive_initiator, arrival: flow.server_arrival, port }
        }
    }
}

/// Each line that may announce, what is to be said before, and the port.
const LINES: [(Side, &str, &str, u16); 6] = [
    (Side::Client, "", "PORT 10,0,0,2,4,1", 1025),
    (Side::Client, "", "port 10,0,0,2,0,1", 1),
    (Side::Client, "", "EPRT |1|10.0.0.2|65535|", 65535),
    (Side::Server, "PASV", "227 Entering Passive Mode (192,0,2,9,255,255).", 65535),
    (Side::Server, "PASV", "227 (192,0,2,9,200,0)", 51200),
    (Side::Server, "EPSV", "229 Entering Extended Passive Mode (|||51201|)", 51201),
];

#[test]
fn every_form_opens_exactly_its_pinhole() {
    let mut last = None;
    let mut talk = Talk::new(Flow { lifetime: 7 * SECOND, steps: 5, ..routed() });
    for (side, command, line, port) in LINES {
        if !command.is_empty() {
            talk.says(Side::Client, command);
        }
        let opened = talk.scene.counts()[OPENED];
        let frame = talk.frame(side, format!("{line}\r\n"));
        let before = now();
        let step = talk.judged(&frame, &frame.payload.clone());
        let after = now();
        assert!(step.opened, "{line}");
        let key = key(&talk.before, side, port);
        assert_eq!(talk.before.hole, Some(key), "{line}");
        let hole = talk.scene.hole(key).unwrap();
        assert!((before + 7 * SECOND..=after + 7 * SECOND).contains(&hole.until), "{line}");
        assert_eq!(hole.until, step.at + 7 * SECOND);
        let mark = if side == Side::Client { 0x5_0000 } else { 0x9_0000 };
        let steps = talk.before.steps;
        assert_eq!(hole, Hole { flow: ID, until: hole.until, step: steps, mark }, "{line}");
        // The one before it is gone.
        assert_eq!(talk.scene.holes().into_keys().collect::<Vec<_>>(), [key], "{line}");
        assert_ne!(last.replace(key), Some(key));
        assert_eq!(talk.scene.counts()[OPENED], opened + 1);
        if side == Side::Client {
            talk.says(Side::Server, "200 ok");
        }
    }
    assert!(talk.scene.steps().is_empty());
}

#[test]
fn the_same_port_may_be_announced_again() {
    let mut talk = Talk::new(routed());
    for _ in 0..3 {
        talk.says(Side::Client, "PORT 10,0,0,2,4,1");
        let key = key(&talk.before, Side::Client, 1025);
        assert_eq!(talk.scene.hole(key).unwrap().step, talk.before.steps);
        talk.says(Side::Server, "200 ok");
    }
}

#[test]
fn a_retransmitted_announcement_opens_nothing_anew() {
    let cases = [
        (routed(), Side::Client, "", "PORT 10,0,0,2,4,1", "PORT 10,0,0,2,4,1"),
        (routed(), Side::Client, "", "EPRT |1|10.0.0.2|1025|", "EPRT |1|10.0.0.2|1025|"),
        (masqueraded(), Side::Client, "", "PORT 192,168,150,80,4,1", "PORT 198,51,100,1,4,001"),
        (published(), Side::Server, "PASV", "227 (192,168,150,90,4,1)", "227   (198,51,100,1,4,1)"),
        (published(), Side::Server, "EPSV", "229 (|||1025|)", "229 (|||1025|)"),
    ];
    for (flow, side, command, line, heard) in cases {
        let mut talk = Talk::new(flow);
        if !command.is_empty() {
            talk.says(Side::Client, command);
        }
        let frame = talk.frame(side, format!("{line}\r\n"));
        let heard = format!("{heard}\r\n").into_bytes();
        talk.judged(&frame, &heard);
        let key = talk.before.hole.unwrap();
        let hole = talk.scene.hole(key).unwrap();
        talk.passes(&frame, &heard);
        assert_eq!(talk.scene.hole(key), Some(hole));
        // Nor when its SYN has come.
        assert_eq!(talk.scene.run(&syn(key)).mark, hole.mark);
        // The next line of the other side makes no difference.
        talk.says(side.other(), if side == Side::Client { "200 ok" } else { "NOOP" });
        talk.passes(&frame, &heard);
        assert_eq!(talk.scene.holes().len(), 0);
        assert_eq!(talk.scene.steps(), []);
        assert_eq!(talk.scene.flow(ID), talk.before);
        assert_eq!(talk.scene.counts()[OPENED], 1);
        let rewritten = if heard == frame.payload { 0 } else { 3 };
        assert_eq!(talk.scene.counts()[REWRITTEN], rewritten);
    }
}

#[test]
fn a_227_that_names_another_address_is_filled_up_with_blanks() {
    let mut talk = Talk::new(published());
    for (line, heard) in [
        ("227 Mode (192,168,150,90,4,1).", "227 Mode   (198,51,100,1,4,1)."),
        ("227 (192,168,150,90,4,1)", "227   (198,51,100,1,4,1)"),
        ("227 !(192,168,150,90,255,0) ok)", "227 !  (198,51,100,1,255,0) ok)"),
    ] {
        talk.says(Side::Client, "PASV");
        let frame = talk.frame(Side::Server, format!("{line}\r\n"));
        let step = talk.judged(&frame, format!("{heard}\r\n").as_bytes());
        assert_eq!((step.opened, talk.before.awaits), (true, NOTHING));
    }
    // At the very end of the longest line.
    let start = format!("227 {}", "x".repeat(102));
    talk.says(Side::Client, "PASV");
    let frame = talk.frame(Side::Server, format!("{start}(192,168,150,90,4,1)\r\n"));
    assert_eq!(frame.payload.len(), 128);
    talk.judged(&frame, format!("{start}  (198,51,100,1,4,1)\r\n").as_bytes());
    // As long as it is.
    talk.before.server_named = Ipv4Addr::new(203, 113, 113, 77);
    talk.hand_over();
    talk.says(Side::Client, "PASV");
    let frame = talk.frame(Side::Server, "227 (192,168,150,90,4,1)\r\n");
    talk.judged(&frame, b"227 (203,113,113,77,4,1)\r\n");
}

#[test]
fn a_227_that_would_become_longer_is_handed_back() {
    let flow = published();
    let server_named = Ipv4Addr::new(203, 113, 113, 177);
    let mut talk = Talk::new(Flow { server_named, awaits: PASV, ..flow });
    talk.line_hands_back(Side::Server, "227 (192,168,150,90,4,1)\r\n");
    talk.line_hands_back(Side::Server, "227        (192,168,150,90,4,1)\r\n");
}

#[test]
fn a_port_that_names_another_address_is_filled_up_with_zeros() {
    // Digits, client, named, and what is said and heard behind PORT; nothing if it is handed back.
    let cases = [
        (3, "192.168.150.8", "198.51.100.1", "14,178", "014,178"),
        (3, "192.168.150.80", "198.51.100.1", "4,1", "4,001"),
        (3, "192.168.1.80", "10.0.0.1", "4,1", "004,001"),
        (3, "192.168.150.80", "203.113.113.77", "4,1", "4,1"),
        (1, "192.168.150.80", "203.113.113.77", "200,255", "200,255"),
        (2, "192.168.150.80", "198.51.100.1", "4,1", "04,01"),
        (2, "192.168.150.8", "198.51.100.1", "4,178", "04,178"),
        (200, "192.168.1.80", "10.0.0.1", "4,1", "04,0001"),
        (4, "192.168.150.80", "198.51.100.1", "200,10", "200,0010"),
        (4, "192.168.150.80", "198.51.100.1", "200,100", "0200,0100"),
        (3, "192.168.150.80", "198.51.100.1", "14,178", ""),
        (3, "192.168.150.80", "198.51.100.1", "140,178", ""),
        (3, "192.168.10.80", "10.0.0.1", "4,1", ""),
        (200, "192.168.10.80", "10.0.0.1", "4,1", "004,0001"),
        (4, "192.168.150.180", "198.51.100.1", "200,100", ""),
        (1, "192.168.150.80", "198.51.100.1", "4,1", ""),
        (0, "192.168.150.80", "203.113.113.77", "4,1", "4,1"),
        (0, "192.168.150.80", "198.51.100.1", "4,1", ""),
        (3, "10.0.0.2", "198.51.100.1", "4,1", ""),
        (3, "10.0.0.2", "10.0.0.30", "4,1", ""),
    ];
    for (digits, client, named, port, heard) in cases {
        let client: Ipv4Addr = client.parse().unwrap();
        let flow = address_of(client, named.parse().unwrap(), digits);
        let mut talk = Talk::new(flow);
        let line = format!("PORT {},{port}\r\n", client.to_string().replace('.', ","));
        let frame = talk.frame(Side::Client, &line);
        if heard.is_empty() {
            talk.hands_back(&frame);
        } else {
            let heard = format!("PORT {},{heard}\r\n", named.replace('.', ","));
            talk.judged(&frame, heard.as_bytes());
        }
    }
}

/// A flow whose client has an address that another is named for.
fn address_of(client: Ipv4Addr, named: Ipv4Addr, digits: u32) -> Flow {
    let client = SocketAddrV4::new(client, CLIENT.port());
    Flow { client, client_named: named, client_arrival: named, digits, ..routed() }
}

#[test]
fn a_rewritten_port_is_what_the_engine_writes() {
    let mut rng = Rng::new(16);
    let mut talk = Talk::new(routed());
    let (mut judged, mut handed_back) = (0, 0);
    for may_move in [false, true].into_iter().cycle().take(4000) {
        let mut octet = || *rng.pick(&[0, 1, 9, 10, 42, 99, 100, 178, 255_u8]);
        let [client, named] = [0, 1].map(|_| Ipv4Addr::from([0, 1, 2, 3].map(|_| octet())));
        let port = u16::from_be_bytes([octet(), octet()]).max(1);
        if client == named {
            continue;
        }
        let steps = talk.before.steps;
        let zeros = *rng.pick(&[Zeros::Three, Zeros::Four]);
        let digits = u32::try_from(zeros.digits()).unwrap();
        let shifts = may_move.then(|| routed().next.map(|next| (0, next)));
        talk.before = Flow { steps, shifts, ..address_of(client, named, digits) };
        talk.hand_over();
        let argument = format!("{},{},{}", client, port >> 8, port & 255).replace('.', ",");
        let frame = talk.frame(Side::Client, format!("PORT {argument}\r\n"));
        let read = Announcement::port(argument.as_bytes(), 0).unwrap();
        let text = read.rewritten(SocketAddr::new(named.into(), port), zeros).unwrap();
        if may_move || text.len() == argument.len() {
            talk.judged(&frame, &[b"PORT ", &text[..], b"\r\n"].concat());
            judged += 1;
        } else {
            talk.hands_back(&frame);
            handed_back += 1;
        }
    }
    assert!(judged > 2400 && handed_back > 400, "{judged} judged, {handed_back} handed back");
}

#[test]
fn what_is_read_in_a_227_or_a_229_is_what_the_engine_reads() {
    let mut talk = Talk::new(routed());
    for (command, line) in [
        ("PASV", "227 Entering, mode ,,, (192,0,2,9,4,1),5,6 7,8,9,10,11,12"),
        ("PASV", "227 )) (192,0,2,9,4,1))"),
        ("EPSV", "229 ||| !!! (|||1025|) |||7|"),
    ] {
        talk.says(Side::Client, command);
        talk.says(Side::Server, line);
        let text = Text::new(line.as_bytes());
        let read = match command {
            "PASV" => Announcement::passive(&text).unwrap(),
            _ => Announcement::extended_passive(&text).unwrap(),
        };
        assert_eq!(read.port, 1025);
        assert!(read.address.is_none_or(|address| address == *SERVER.ip()));
        assert_eq!(talk.before.hole.unwrap().port, 1025);
    }
}

#[test]
fn an_eprt_that_would_change_its_length_is_handed_back() {
    let mut talk = Talk::new(masqueraded());
    talk.line_hands_back(Side::Client, "EPRT |1|192.168.150.80|1025|\r\n");
    let named = "203.113.113.77".parse().unwrap();
    let mut talk = Talk::new(Flow { client_named: named, ..masqueraded() });
    let frame = talk.frame(Side::Client, "EPRT |1|192.168.150.80|1025|\r\n");
    talk.judged(&frame, b"EPRT |1|203.113.113.77|1025|\r\n");
}

#[test]
fn barred_ports_and_port_0_are_handed_back() {
    let mut talk = Talk::new(routed());
    for port in [1025, 2048, 65535] {
        talk.scene.bar(port);
    }
    let lines = |port: u16| {
        let numbers = format!("{},{}", port >> 8, port & 255);
        [
            (Side::Client, "", format!("PORT 10,0,0,2,{numbers}\r\n")),
            (Side::Client, "", format!("EPRT |1|10.0.0.2|{port}|\r\n")),
            (Side::Server, "PASV", format!("227 (192,0,2,9,{numbers})\r\n")),
            (Side::Server, "EPSV", format!("229 (|||{port}|)\r\n")),
        ]
    };
    for port in [1025, 2048, 65535, 0] {
        for (side, command, line) in lines(port) {
            if !command.is_empty() {
                talk.says(Side::Client, command);
            }
            talk.line_hands_back(side, line);
            talk.before.awaits = NOTHING;
            talk.hand_over();
        }
    }
    for port in [1024, 1026, 2047, 2049, 65534, 1] {
        for (side, command, line) in lines(port) {
            if !command.is_empty() {
                talk.says(Side::Client, command);
            }
            talk.says(side, line.trim_end());
            if side == Side::Client {
                talk.says(Side::Server, "200 ok");
            }
        }
    }
}

#[test]
fn pinholes_of_others_and_reserved_ones_are_handed_back() {
    let mut talk = Talk::new(routed());
    for (side, command, line, port) in LINES {
        if !command.is_empty() {
            talk.says(Side::Client, command);
        }
        let key = key(&talk.before, side, port);
        // Another flow's, one that the daemon reserved, and one whose time is over.
        for (flow, until) in [(ID + 1, u64::MAX), (0, u64::MAX), (ID + 1, 0)] {
            talk.scene.set_hole(key, Hole { flow, until, step: 1, mark: 2 });
            talk.line_hands_back(side, format!("{line}\r\n"));
        }
        // Its own, which the flow does not name: opened by the daemon.
        talk.scene.set_hole(key, Hole { flow: ID, until: u64::MAX, step: 1, mark: 2 });
        talk.says(side, line);
        assert_eq!(talk.scene.hole(key).unwrap().step, talk.before.steps);
        if side == Side::Client {
            talk.says(Side::Server, "200 ok");
        }
    }
}

#[test]
fn a_pinhole_that_now_belongs_to_another_flow_stays() {
    let mut talk = Talk::new(routed());
    talk.says(Side::Client, "PORT 10,0,0,2,4,1");
    talk.says(Side::Server, "200 ok");
    let key = talk.before.hole.unwrap();
    let other = Hole { flow: ID + 1, until: 1, step: 1, mark: 2 };
    talk.scene.set_hole(key, other);
    talk.says(Side::Client, "PORT 10,0,0,2,4,2");
    assert_eq!(talk.scene.hole(key), Some(other));
    assert_eq!(talk.scene.holes().len(), 2);
}

#[test]
fn no_pinhole_is_opened_where_this_machine_listens() {
    let here = Ipv4Addr::LOCALHOST;
    for any in [here, Ipv4Addr::UNSPECIFIED] {
        let listener = TcpListener::bind((any, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (high, low) = (port >> 8, port & 255);
        let cases = [
            (Side::Client, NOTHING, format!("PORT 10,0,0,2,{high},{low}")),
            (Side::Client, NOTHING, format!("EPRT |1|10.0.0.2|{port}|")),
            (Side::Server, PASV, format!("227 (192,0,2,9,{high},{low})")),
        ];
        let mut talk = Talk::new(Flow { client_arrival: here, server_arrival: here, ..routed() });
        for (side, awaits, line) in &cases {
            talk.before.awaits = *awaits;
            talk.hand_over();
            talk.line_hands_back(*side, format!("{line}\r\n"));
        }
        drop(listener);
        for (side, awaits, line) in &cases {
            talk.before.awaits = *awaits;
            talk.hand_over();
            talk.says(*side, line);
        }
    }
    // Who is announced is asked himself whether he listens.
    let listener = TcpListener::bind((here, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = format!("{here}:40000").parse().unwrap();
    let flow = Flow { client, client_named: here, client_arrival: here, ..routed() };
    let mut talk = Talk::new(flow);
    talk.says(Side::Client, &format!("EPRT |1|127.0.0.1|{port}|"));
}
