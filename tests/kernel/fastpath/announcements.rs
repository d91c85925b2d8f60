//! Announcements: the pinhole that each opens, and the rewrite of its address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use ftp_alg_core::ftp::{Announcement, Padding, Text};

use super::{data::syn, layout::*, rng::Rng, scene::*};

/// The pinhole that a flow opens for an announcement of this side.
fn key(flow: &Flow, announcing: Side, port: u16) -> PinholeKey {
    match announcing {
        Side::Client => {
            PinholeKey { initiator: flow.active_initiator, arrival: flow.active_arrival, port }
        }
        Side::Server => {
            PinholeKey { initiator: flow.passive_initiator, arrival: flow.passive_arrival, port }
        }
    }
}

/// A pinhole at the line 1.
const ANY: Pinhole =
    Pinhole { flow: ID, deadline: 0, line: 1, mark: 2, interface: LOOPBACK, elsewhere_port: 0 };

/// Announcements: the side, the command before the line, the line, and the announced port.
type AnnouncementOf = (Side, &'static str, &'static str, u16);

const ANNOUNCEMENTS: [AnnouncementOf; 6] = [
    (Side::Client, "", "PORT 10,0,0,2,4,1", 1025),
    (Side::Client, "", "port 10,0,0,2,0,1", 1),
    (Side::Client, "", "EPRT |1|10.0.0.2|65535|", 65535),
    (Side::Server, "PASV", "227 Entering Passive Mode (192,0,2,9,255,255).", 65535),
    (Side::Server, "PASV", "227 (192,0,2,9,200,0)", 51200),
    (Side::Server, "EPSV", "229 Entering Extended Passive Mode (|||51201|)", 51201),
];
const ANNOUNCEMENTS6: [AnnouncementOf; 4] = [
    (Side::Client, "", "EPRT |2|2001:db8:1::2|1|", 1),
    (Side::Client, "", "eprt |2|2001:db8:1::2|65535|", 65535),
    (Side::Server, "EPSV", "229 Entering Extended Passive Mode (|||51200|)", 51200),
    (Side::Server, "epsv", "229 (|||51201|)", 51201),
];

#[test]
fn each_announcement_opens_exactly_its_pinhole() {
    opens_exactly_its_pinhole(routed(), &ANNOUNCEMENTS);
    opens_exactly_its_pinhole(routed6(), &ANNOUNCEMENTS6);
}

fn opens_exactly_its_pinhole(flow: Flow, announcements: &[AnnouncementOf]) {
    let mut last = None;
    let mut talk = Talk::new(Flow { pinhole_timeout: 7 * SECOND, line_count: 5, ..flow });
    for &(side, command, line, port) in announcements {
        if !command.is_empty() {
            talk.says(Side::Client, command);
        }
        let opened = talk.scene.counts()[OPENED];
        let frame = talk.frame(side, format!("{line}\r\n"));
        let before = now();
        let record = talk.inspected(&frame, &frame.payload.clone());
        let after = now();
        assert_eq!(record.opened_pinhole, 1, "{line}");
        let key = key(&talk.before, side, port);
        assert_eq!(talk.before.pinhole, key, "{line}");
        let pinhole = talk.scene.pinhole(key).unwrap();
        assert!((before + 7 * SECOND..=after + 7 * SECOND).contains(&pinhole.deadline), "{line}");
        assert_eq!(pinhole.deadline, record.at_ns + 7 * SECOND);
        let mark = if side == Side::Client { 0x5_0000 } else { 0x9_0000 };
        let line_count = talk.before.line_count;
        assert_eq!(
            pinhole,
            Pinhole {
                flow: ID,
                deadline: pinhole.deadline,
                line: line_count,
                mark,
                interface: talk.before.interface[side.other().index()],
                elsewhere_port: 0,
            },
            "{line}"
        );
        // The pinhole before it was closed.
        assert_eq!(talk.scene.pinholes().into_keys().collect::<Vec<_>>(), [key], "{line}");
        assert_ne!(last.replace(key), Some(key));
        assert_eq!(talk.scene.counts()[OPENED], opened + 1);
        if side == Side::Client {
            talk.says(Side::Server, "200 ok");
        }
    }
    assert!(talk.scene.lines().is_empty());
    assert_eq!(talk.scene.run(&syn(last.unwrap())).mark, 0x9_0000);
    assert!(talk.scene.pinholes().is_empty());
}

#[test]
fn the_same_port_may_be_announced_repeatedly() {
    let mut talk = Talk::new(routed());
    for _ in 0..3 {
        talk.says(Side::Client, "PORT 10,0,0,2,4,1");
        let key = key(&talk.before, Side::Client, 1025);
        assert_eq!(talk.scene.pinhole(key).unwrap().line, talk.before.line_count);
        talk.says(Side::Server, "200 ok");
    }
}

#[test]
fn a_retransmitted_announcement_opens_no_second_pinhole() {
    let cases = [
        (routed(), Side::Client, "", "PORT 10,0,0,2,4,1", "PORT 10,0,0,2,4,1"),
        (routed(), Side::Client, "", "EPRT |1|10.0.0.2|1025|", "EPRT |1|10.0.0.2|1025|"),
        (masqueraded(), Side::Client, "", "PORT 192,168,150,80,4,1", "PORT 198,51,100,1,4,001"),
        (published(), Side::Server, "PASV", "227 (192,168,150,90,4,1)", "227   (198,51,100,1,4,1)"),
        (published(), Side::Server, "EPSV", "229 (|||1025|)", "229 (|||1025|)"),
        (
            masqueraded6(),
            Side::Client,
            "",
            "EPRT |2|fd00:1234::80|1025|",
            "EPRT |2|2001:db8:7::1|1025|",
        ),
        (published6(), Side::Server, "EPSV", "229 (|||1025|)", "229 (|||1025|)"),
    ];
    for (flow, side, command, line, delivered) in cases {
        let mut talk = Talk::new(flow);
        if !command.is_empty() {
            talk.says(Side::Client, command);
        }
        let frame = talk.frame(side, format!("{line}\r\n"));
        let delivered = format!("{delivered}\r\n").into_bytes();
        talk.inspected(&frame, &delivered);
        let key = talk.before.pinhole;
        let pinhole = talk.scene.pinhole(key).unwrap();
        talk.passes(&frame, &delivered);
        assert_eq!(talk.scene.pinhole(key), Some(pinhole));
        // Nor does a retransmission open it after its SYN consumed it.
        assert_eq!(talk.scene.run(&syn(key)).mark, pinhole.mark);
        // Nor does it after the next line of the other side.
        talk.says(side.other(), if side == Side::Client { "200 ok" } else { "NOOP" });
        talk.passes(&frame, &delivered);
        assert_eq!(talk.scene.pinholes().len(), 0);
        assert_eq!(talk.scene.lines(), []);
        assert_eq!(talk.scene.flow(ID), talk.before);
        assert_eq!(talk.scene.counts()[OPENED], 1);
        let rewritten = if delivered == frame.payload { 0 } else { 3 };
        assert_eq!(talk.scene.counts()[REWRITTEN], rewritten);
    }
}

#[test]
fn a_rewritten_227_keeps_its_length_by_blanks() {
    let mut talk = Talk::new(published());
    for (line, delivered) in [
        ("227 Mode (192,168,150,90,4,1).", "227 Mode   (198,51,100,1,4,1)."),
        ("227 (192,168,150,90,4,1)", "227   (198,51,100,1,4,1)"),
        ("227 !(192,168,150,90,255,0) ok)", "227 !  (198,51,100,1,255,0) ok)"),
    ] {
        talk.says(Side::Client, "PASV");
        let frame = talk.frame(Side::Server, format!("{line}\r\n"));
        let record = talk.inspected(&frame, format!("{delivered}\r\n").as_bytes());
        assert_eq!((record.opened_pinhole, talk.before.dialogue), (1, READY));
    }
    // At the end of a line of 128 bytes.
    let start = format!("227 {}", "x".repeat(102));
    talk.says(Side::Client, "PASV");
    let frame = talk.frame(Side::Server, format!("{start}(192,168,150,90,4,1)\r\n"));
    assert_eq!(frame.payload.len(), 128);
    talk.inspected(&frame, format!("{start}  (198,51,100,1,4,1)\r\n").as_bytes());
    // With an address of the same length.
    let flow = published_as(ip("203.113.113.77"));
    let mut talk = Talk::new(flow);
    talk.says(Side::Client, "PASV");
    let frame = talk.frame(Side::Server, "227 (192,168,150,90,4,1)\r\n");
    talk.inspected(&frame, b"227 (203,113,113,77,4,1)\r\n");
}

#[test]
fn a_227_that_would_grow_is_handed_back() {
    let flow = published_as(ip("203.113.113.177"));
    let mut talk = Talk::new(Flow { dialogue: PASV_PENDING, ..flow });
    talk.line_hands_back(Side::Server, "227 (192,168,150,90,4,1)\r\n");
    talk.line_hands_back(Side::Server, "227        (192,168,150,90,4,1)\r\n");
}

#[test]
fn a_rewritten_port_command_keeps_its_length_by_zeros() {
    // Port digits, client, announced address, and the port as it arrives and as it is forwarded; empty if it is
    // handed back.
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
    for (port_digits, client, announced, port, delivered) in cases {
        let flow = between(ip(client), ip(announced), SERVER.ip(), SERVER.ip());
        let mut talk = Talk::new(Flow { port_digits, ..flow });
        let line = format!("PORT {},{port}\r\n", client.replace('.', ","));
        let frame = talk.frame(Side::Client, &line);
        if delivered.is_empty() {
            talk.hands_back(&frame);
        } else {
            let delivered = format!("PORT {},{delivered}\r\n", announced.replace('.', ","));
            talk.inspected(&frame, delivered.as_bytes());
        }
    }
}

#[test]
fn a_port_command_is_rewritten_as_the_engine_does() {
    let mut rng = Rng::new(16);
    let mut talk = Talk::new(routed());
    let (mut inspected, mut handed_back) = (0, 0);
    for may_move in [false, true].into_iter().cycle().take(1200) {
        let mut octet = || *rng.pick(&[0, 1, 9, 10, 42, 99, 100, 178, 255_u8]);
        let [client, announced] = [0, 1].map(|_| IpAddr::from([0, 1, 2, 3].map(|_| octet())));
        let port = u16::from_be_bytes([octet(), octet()]).max(1);
        if client == announced {
            continue;
        }
        let line_count = talk.before.line_count;
        let padding = *rng.pick(&[Padding::Blanks, Padding::Zeros]);
        let port_digits = u32::try_from(padding.digits()).unwrap();
        talk.before = Flow {
            line_count,
            adjusted: may_move.into(),
            offset_since: routed().next_seq,
            port_digits,
            ..between(client, announced, SERVER.ip(), SERVER.ip())
        };
        talk.hand_over();
        let argument = format!("{},{},{}", client, port >> 8, port & 255).replace('.', ",");
        let frame = talk.frame(Side::Client, format!("PORT {argument}\r\n"));
        let read = Announcement::parse_port(argument.as_bytes(), 0).unwrap();
        let text = read.replacement_text(SocketAddr::new(announced, port), padding).unwrap();
        if may_move || text.len() == argument.len() {
            talk.inspected(&frame, &[b"PORT ", &text[..], b"\r\n"].concat());
            inspected += 1;
        } else {
            talk.hands_back(&frame);
            handed_back += 1;
        }
    }
    assert!(
        inspected > 700 && handed_back > 120,
        "{inspected} inspected, {handed_back} handed back"
    );
}

#[test]
fn a_227_or_229_is_read_as_the_engine_does() {
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
            "PASV" => Announcement::parse_227(&text).unwrap(),
            _ => Announcement::parse_229(&text).unwrap(),
        };
        assert_eq!(read.port, 1025);
        assert!(read.address.is_none_or(|address| address == SERVER.ip()));
        assert_eq!(talk.before.pinhole.port, 1025);
    }
}

#[test]
fn an_eprt_that_would_change_its_length_is_handed_back() {
    let mut talk = Talk::new(masqueraded());
    talk.line_hands_back(Side::Client, "EPRT |1|192.168.150.80|1025|\r\n");
    let mut talk = Talk::new(masqueraded_as(ip("203.113.113.77")));
    let frame = talk.frame(Side::Client, "EPRT |1|192.168.150.80|1025|\r\n");
    talk.inspected(&frame, b"EPRT |1|203.113.113.77|1025|\r\n");
    let mut talk = Talk::new(masqueraded6_as(ip("2001:db8:7::17")));
    talk.line_hands_back(Side::Client, "EPRT |2|fd00:1234::80|1025|\r\n");
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
            talk.before.dialogue = READY;
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
fn a_pinhole_of_another_flow_or_reserved_is_handed_back() {
    let mut talk = Talk::new(routed());
    for (side, command, line, port) in ANNOUNCEMENTS {
        if !command.is_empty() {
            talk.says(Side::Client, command);
        }
        let key = key(&talk.before, side, port);
        // That of another flow, a reserved one, and an expired one of another flow.
        for (flow, deadline) in [(ID + 1, u64::MAX), (0, u64::MAX), (ID + 1, 0)] {
            talk.scene.set_pinhole(key, Pinhole { flow, deadline, ..ANY });
            talk.line_hands_back(side, format!("{line}\r\n"));
        }
        // The flow's own pinhole, though the flow does not name it.
        talk.scene.set_pinhole(key, Pinhole { flow: ID, deadline: u64::MAX, ..ANY });
        talk.says(side, line);
        assert_eq!(talk.scene.pinhole(key).unwrap().line, talk.before.line_count);
        if side == Side::Client {
            talk.says(Side::Server, "200 ok");
        }
    }
}

#[test]
fn a_pinhole_of_another_flow_is_not_closed() {
    let mut talk = Talk::new(routed());
    talk.says(Side::Client, "PORT 10,0,0,2,4,1");
    talk.says(Side::Server, "200 ok");
    let key = talk.before.pinhole;
    let other = Pinhole { flow: ID + 1, deadline: 1, ..ANY };
    talk.scene.set_pinhole(key, other);
    talk.says(Side::Client, "PORT 10,0,0,2,4,2");
    assert_eq!(talk.scene.pinhole(key), Some(other));
    assert_eq!(talk.scene.pinholes().len(), 2);
}

/// As in the rules: a daemon that is gone for longer opens nothing.
#[test]
fn no_pinhole_is_opened_without_a_heartbeat() {
    for (deadline, is_alive) in [(0, false), (now() - 1, false), (now() + 60 * SECOND, true)] {
        for (side, dialogue, line) in [
            (Side::Client, READY, "PORT 10,0,0,2,4,1\r\n"),
            (Side::Server, PASV_PENDING, "227 (192,0,2,9,255,255)\r\n"),
        ] {
            let mut talk = Talk::new(routed());
            talk.scene.heartbeat.set(0, deadline, 0).unwrap();
            talk.before.dialogue = dialogue;
            talk.hand_over();
            if is_alive {
                let frame = talk.frame(side, line);
                talk.inspected(&frame, &frame.payload.clone());
            } else {
                talk.line_hands_back(side, line);
            }
            assert_eq!(talk.scene.pinholes().len(), usize::from(is_alive), "{line}");
        }
    }
}

#[test]
fn no_pinhole_is_opened_where_this_machine_listens() {
    let families = [
        (routed(), IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        (routed6(), Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into()),
    ];
    for (flow, here, bound) in
        families.into_iter().flat_map(|(flow, here, any)| [(flow, here, here), (flow, here, any)])
    {
        let listener = TcpListener::bind((bound, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (high, low) = (port >> 8, port & 255);
        let mut cases = vec![(Side::Server, EPSV_PENDING, format!("229 (|||{port}|)"))];
        if here.is_ipv4() {
            cases.extend([
                (Side::Client, READY, format!("PORT 10,0,0,2,{high},{low}")),
                (Side::Client, READY, format!("EPRT |1|10.0.0.2|{port}|")),
                (Side::Server, PASV_PENDING, format!("227 (192,0,2,9,{high},{low})")),
            ]);
        } else {
            cases.push((Side::Client, READY, format!("EPRT |2|2001:db8:1::2|{port}|")));
        }
        let mut talk = Talk::new(Flow { active_arrival: here, passive_arrival: here, ..flow });
        for (side, dialogue, line) in &cases {
            talk.before.dialogue = *dialogue;
            talk.hand_over();
            talk.line_hands_back(*side, format!("{line}\r\n"));
        }
        drop(listener);
        for (side, dialogue, line) in &cases {
            talk.before.dialogue = *dialogue;
            talk.hand_over();
            talk.says(*side, line);
        }
    }
    // If the announced end is this machine itself, a listener is expected.
    for (here, server, start) in
        [("127.0.0.1", SERVER.ip(), "EPRT |1|127.0.0.1|"), ("::1", SERVER6, "EPRT |2|::1|")]
    {
        let here = ip(here);
        let listener = TcpListener::bind((here, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut talk = Talk::new(between(here, here, server, server));
        talk.says(Side::Client, &format!("{start}{port}|"));
    }
}
