//! The program of the fast path, run by the kernel (`BPF_PROG_TEST_RUN`) packet by packet: what it judges, and what it
//! hands back.
//!
//! Needs root. Packets are built and read with etherparse.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends at the first surprise")]

#[path = "fastpath/announcements.rs"]
mod announcements;
#[path = "fastpath/data.rs"]
mod data;
#[path = "fastpath/ends.rs"]
mod ends;
#[path = "fastpath/frames.rs"]
mod frames;
#[path = "support/judge/layout.rs"]
mod layout;
#[path = "fastpath/lengths.rs"]
mod lengths;
#[path = "support/judge/model.rs"]
mod model;
#[path = "fastpath/processors.rs"]
mod processors;
#[path = "fastpath/refused.rs"]
mod refused;
#[path = "support/rng.rs"]
mod rng;
#[path = "fastpath/scene.rs"]
mod scene;
#[path = "fastpath/walk.rs"]
mod walk;

use frames::{ACK, Frame, WINDOW};
use layout::{
    ANNOUNCED, EPSV, Flow, GREETING, HANDED_BACK, JUDGED, LOGIN, LOGIN_REPLY, NO_ROOM, NOTHING,
    OTHER, PASV, Side,
};
use scene::{CLIENT, ID, SERVER, Talk, now, routed};

const PLAIN: [&str; 21] = [
    "NOOP", "PWD", "CWD", "CDUP", "TYPE", "SIZE", "MDTM", "REST", "RETR", "STOR", "APPE", "LIST",
    "NLST", "MLSD", "DELE", "MKD", "RMD", "RNFR", "RNTO", "SYST", "QUIT",
];

#[test]
fn every_plain_command_and_its_reply_pass() {
    let mut talk = Talk::new(routed());
    for verb in PLAIN {
        let lower = verb.to_lowercase();
        let mixed = format!("{}{}", &verb[..1], &lower[1..]);
        for line in [verb, &lower, &mixed].map(|verb| format!("{verb} some thing")) {
            talk.says(Side::Client, &line);
            assert_eq!(talk.before.awaits, OTHER, "{line}");
            talk.says(Side::Server, "250 Done.");
            assert_eq!(talk.before.awaits, NOTHING, "{line}");
        }
        if verb.len() == 4 {
            talk.says(Side::Client, verb);
            talk.says(Side::Server, "200 ");
        }
    }
}

#[test]
fn replies_to_plain_commands_end_them_and_preliminary_ones_do_not() {
    let mut talk = Talk::new(routed());
    for code in ["200", "211", "213", "221", "225", "226", "240", "250", "256", "299"] {
        talk.says(Side::Client, "NOOP");
        talk.says(Side::Server, &format!("{code} ok"));
        assert_eq!(talk.before.awaits, NOTHING, "{code}");
    }
    for code in ["300", "330", "340", "350", "425", "426", "450", "500", "550", "599"] {
        talk.says(Side::Client, "NOOP");
        talk.says(Side::Server, &format!("{code} (1,2,3,4,5,6) is no address"));
        assert_eq!(talk.before.awaits, NOTHING, "{code}");
    }
    talk.says(Side::Client, "RETR a");
    for code in ["150", "125", "110", "100", "199"] {
        talk.says(Side::Server, &format!("{code} wait"));
        assert_eq!(talk.before.awaits, OTHER, "{code}");
    }
    talk.says(Side::Server, "226 Done");
    assert_eq!(talk.before.awaits, NOTHING);
}

#[test]
fn commands_that_announce_await_their_own_reply() {
    let mut talk = Talk::new(routed());
    for (command, awaits, reply) in [
        ("PASV", PASV, "227 Entering Passive Mode (192,0,2,9,4,1)."),
        ("pasv", PASV, "227 (192,0,2,9,4,2)"),
        ("EPSV", EPSV, "229 Entering Extended Passive Mode (|||1027|)"),
        ("PORT 10,0,0,2,4,4", ANNOUNCED, "200 PORT command successful."),
        ("EPRT |1|10.0.0.2|1029|", ANNOUNCED, "250 ok"),
    ] {
        talk.says(Side::Client, command);
        assert_eq!(talk.before.awaits, awaits, "{command}");
        talk.says(Side::Server, reply);
        assert_eq!(talk.before.awaits, NOTHING, "{command}");
    }
    assert_eq!(talk.scene.holes().len(), 1);
}

#[test]
fn a_login_passes_whatever_the_server_asks_for() {
    for lines in [
        &["USER lab", "331 Please specify the password.", "PASS lab", "230 Login successful."][..],
        &["user anonymous", "230 no password is needed"],
        &["PASS first", "331 again", "USER a", "331 ", "PASS ", "230 "],
    ] {
        let mut talk = Talk::new(Flow { awaits: LOGIN, ..routed() });
        for exchange in lines.chunks(2) {
            assert_eq!(talk.before.awaits, LOGIN, "{lines:?}");
            talk.says(Side::Client, exchange[0]);
            assert_eq!(talk.before.awaits, LOGIN_REPLY, "{lines:?}");
            talk.says(Side::Server, exchange[1]);
        }
        assert_eq!(talk.before.awaits, NOTHING, "{lines:?}");
        talk.says(Side::Client, "PORT 10,0,0,2,4,4");
    }
}

#[test]
fn a_greeting_passes_and_tells_how_a_port_keeps_its_length() {
    let greetings = [
        ("220 ready", 3),
        ("220 (vsFTPd 3.0.3)", 4),
        ("220 ProFTPD Server (lab) [192.0.2.9]", 4),
        ("220 FileZilla Server 1.7.0", 4),
        ("220 pyftpdlib 1.5.7 ready.", 4),
        ("220 pyftpdlib", 3),
        ("220 Proftpd ", 3),
    ];
    for (greeting, digits) in greetings {
        let mut talk = Talk::new(Flow { awaits: GREETING, ..routed() });
        let frame = talk.frame(Side::Server, format!("{greeting}\r\n"));
        talk.passes(&frame, &frame.payload);
        let after = talk.scene.flow(ID);
        assert_eq!((after.awaits, after.digits, after.steps), (LOGIN, digits, 1), "{greeting}");
        // Zeros that nobody wants stay away.
        talk.before = Flow { awaits: GREETING, digits: 0, ..talk.before };
        talk.hand_over();
        talk.scene.run(&frame);
        assert_eq!(talk.scene.flow(ID).digits, 0);
    }
    for refused in ["120 later", "220-ready", "421 busy", "200 ready", "SSH-2.0-a"] {
        let mut talk = Talk::new(Flow { awaits: GREETING, ..routed() });
        talk.line_hands_back(Side::Server, format!("{refused}\r\n"));
        talk.line_hands_back(Side::Client, "USER lab\r\n");
    }
    let mut talk = Talk::new(routed());
    talk.says(Side::Client, "NOOP");
    talk.line_hands_back(Side::Server, "220 ready\r\n");
}

#[test]
fn a_record_tells_the_line_byte_for_byte() {
    let mut talk = Talk::new(Flow { steps: 41, ..routed() });
    let frame = talk.frame(Side::Client, "noop\r\n");
    let before = now();
    talk.scene.run(&frame);
    let after = now();
    let records = talk.scene.records();
    let [record] = records.as_slice() else { panic!("{records:?}") };
    let at = u64::from_ne_bytes(*record[8..].first_chunk().unwrap());
    assert!((before..=after).contains(&at), "{at}");
    let mut expected = [0; layout::STEP];
    let mut put = |at: usize, bytes: &[u8]| expected[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &ID.to_ne_bytes());
    put(8, &at.to_ne_bytes());
    put(16, &42_u32.to_ne_bytes());
    put(20, &0_u32.to_ne_bytes());
    put(24, &1000_u32.to_ne_bytes());
    put(28, &0xffff_ffe0_u32.to_ne_bytes());
    put(32, &CLIENT.ip().octets());
    put(36, &SERVER.ip().octets());
    put(40, &CLIENT.port().to_be_bytes());
    put(42, &SERVER.port().to_be_bytes());
    put(44, &6_u16.to_ne_bytes());
    put(46, &WINDOW.to_be_bytes());
    put(48, &[0, 0, 3, 0]); // opened, ends, digits
    put(56, b"noop\r\n");
    assert_eq!(*record, expected);
}

#[test]
fn the_longest_line_passes_and_sequence_numbers_wrap_around() {
    let mut talk = Talk::new(routed());
    let name = "a".repeat(128 - "RETR \r\n".len());
    talk.says(Side::Client, &format!("RETR {name}"));
    talk.says(Side::Server, &format!("550 {}", "~".repeat(122)));
    talk.says(Side::Client, "NOOP");
    talk.says(Side::Server, "200 ");
    assert!(talk.before.next[1] < 0x1000, "{:x?}", talk.before.next);
}

#[test]
fn options_of_tcp_padding_and_missing_push_make_no_difference() {
    let mut talk = Talk::new(routed());
    let mut frame = talk.frame(Side::Client, "NOOP\r\n");
    frame.tcp_options = vec![1, 1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7];
    frame.flags = ACK;
    frame.padding = 3;
    talk.judged(&frame, b"NOOP\r\n");
    let mut frame = talk.frame(Side::Server, "200 ok\r\n");
    frame.tcp_options = vec![1; 40];
    talk.judged(&frame, b"200 ok\r\n");
}

#[test]
fn retransmissions_of_the_last_lines_pass_and_change_nothing() {
    let mut talk = Talk::new(routed());
    let mut sent = Vec::new();
    for (side, line) in [(Side::Client, "NOOP\r\n"), (Side::Server, "200 ok\r\n")] {
        let frame = talk.frame(side, line);
        talk.judged(&frame, line.as_bytes());
        sent.push(frame);
        let counts = talk.scene.counts();
        for frame in &sent {
            // What it acknowledges may be more by now.
            let later = Frame { ack: talk.before.next[0], ..frame.clone() };
            talk.passes(frame, &frame.payload);
            talk.passes(&later, &later.payload);
        }
        assert_eq!(talk.scene.flow(ID), talk.before);
        assert_eq!(talk.scene.steps(), []);
        let passed = 2 * sent.len() as u64;
        assert_eq!(talk.scene.counts()[JUDGED], counts[JUDGED] + passed);
    }
    talk.says(Side::Client, "NOOP");
    let older = sent.remove(0);
    talk.hands_back(&older);
}

#[test]
fn without_room_in_the_ring_nothing_is_judged() {
    let mut talk = Talk::new(routed());
    let mut judged = 0;
    let (frame, flow) = loop {
        let side = if judged % 2 == 0 { Side::Client } else { Side::Server };
        let frame = talk.frame(side, if judged % 2 == 0 { "NOOP\r\n" } else { "200 ok\r\n" });
        let flow = talk.scene.flow(ID);
        let outcome = talk.scene.run(&frame);
        if outcome.mark != talk.before.judged_mark {
            assert_eq!((outcome.mark, outcome.bytes), (0, frame.to_bytes()));
            break (frame, flow);
        }
        judged += 1;
        talk.before = talk.scene.flow(ID);
    };
    // With its header of 8, a record takes 192 bytes of 1 MiB.
    assert!((5400..=5461).contains(&judged), "{judged}");
    assert_eq!(talk.scene.flow(ID), Flow { judged: false, ..flow });
    let counts = talk.scene.counts();
    assert_eq!([JUDGED, NO_ROOM, HANDED_BACK].map(|which| counts[which]), [judged, 1, 1]);
    assert_eq!(talk.scene.records().len() as u64, judged);
    talk.hand_over();
    talk.judged(&frame, &frame.payload.clone());
}
