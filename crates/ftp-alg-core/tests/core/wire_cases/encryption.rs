//! Where encryption begins, and replies that only look as if the server had accepted `AUTH`.

use ftp_alg_core::{
    packet::flags,
    session::Side::{self, Client, Server},
};

use super::{
    ambiguous_lines::executed_bounce,
    dialects::{ACCEPTS, ASKS, GREETING, PASS, USER, play},
    support::{
        ftp::active,
        scenario::{Nat, Scenario},
        segment::Segment,
        sim::Sim,
    },
    without_nagle,
};

type Lines<'a> = &'a [(Side, &'a str)];

/// TLS records: a type, and a body with bytes that end lines and look like commands and replies.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 3, 3, 0, body.len() as u8], body].concat()
}

fn bounce() -> Vec<u8> {
    active("10.99.99.99:2200".parse().unwrap()).into_bytes()
}

/// ProFTPD shows an uploaded file in its reply to `CWD` (`DisplayChdir`), and makes line ends of `%{time:%n}`. Some
/// servers send one in a 213 or a 230.
#[test]
fn a_file_that_the_server_shows_begins_no_encryption() {
    let shown: [Lines<'_>; 7] = [
        &[(Client, "CWD d\r\nAUTH TLS\r\n"), (Server, "250-hello\r\n250 x\r\n234 go\r\n")],
        &[(Client, "CWD d\r\nAUTH TLS\r\n"), (Server, "250-hello\r\n250 x\r\n200 go\r\n")],
        &[(Client, "STAT d\r\nAUTH TLS\r\n"), (Server, "213-a\r\n213 x\r\n234 go\r\n")],
        // The client has stopped the server within the file.
        &[
            (Client, "CWD d\r\n"),
            (Server, "250-hello\r\n250 x\r\n"),
            (Client, "AUTH TLS\r\n"),
            (Server, "234 go\r\n"),
        ],
        &[
            (Client, "CWD d\r\n"),
            (Server, "250-hello\r\n250 x\r\n"),
            (Client, "AUTH TLS\n"),
            (Server, "200 go\r\n"),
        ],
        // Some servers announce a long command by 150.
        &[
            (Client, "XCRC f\r\nCWD d\r\nLIST\r\n"),
            (Server, "150 wait\r\n"),
            (Server, "250 0\r\n"),
            (Client, "AUTH TLS\r\n"),
            (Server, "250-hello\r\n250 x\r\n"),
        ],
        &[
            (Client, "REIN\r\n"),
            (Server, "230-hello\r\n230 x\r\n331 x\r\n"),
            (Client, "AUTH TLS\r\n"),
            (Server, "234 go\r\n"),
        ],
    ];
    for lines in shown {
        for first in
            [record(23, b"\r\n"), b"\x17\x03\x03\x40\x00\r\n".to_vec(), b"\x16\r\n".to_vec()]
        {
            for later in [
                &b"\x80\r\n"[..],
                b"\xc3\xa9\r\n",
                b"\x16\x03\x03\0\x02\r\n",
                b"250 done\r\n500 no\r\n",
            ] {
                let mut sim = Sim::logged_in(without_nagle(Nat::Masquerade));
                play(&mut sim, "shown", lines);
                let mut got = sim.say(Client, &first);
                got.extend(sim.say(Server, later));
                got.extend(sim.say(Client, &bounce()));
                sim.say(Server, b"250 done\r\n500 no\r\n500 what?\r\n");
                got.extend(sim.say(Client, &bounce()));
                assert_eq!(executed_bounce(&got), None, "{lines:?}: {first:?}, {later:?}");
            }
        }
    }
}

/// The client has been logged in without the gateway's knowledge, by replies that seemed to answer other commands. Then
/// the server shows a file.
#[test]
fn a_login_that_was_not_seen_is_no_time_before_the_login() {
    let login = "USER joe\r\nPASS x\r\nCWD d\r\n";
    let burst = format!("AUTH TLS\r\n{login}");
    let auth = (Client, "AUTH TLS\r\n");
    let shown = (Server, "250-hello\r\n250 x\r\n");
    let rest = (Server, "500 no\r\n331 x\r\n230 in\r\n250-hello\r\n250 x\r\n");
    let answers = (Server, "500 what?\r\n331 x\r\n230 in\r\n");
    let many = format!("USER joe\r\nPASS x\r\n{}", "PASV\r\nNOOP\r\n".repeat(20));
    let refused = "502 no\r\n200 ok\r\n".repeat(20);
    let text = (Server, "hello\r\n");
    let [one, two] = [(Server, "220 a\r\n"), (Server, "220 b\r\n")];
    let dialogues: &[(&str, Lines<'_>)] = &[
        ("two greetings", &[(Client, login), one, two, ASKS, ACCEPTS, auth, shown]),
        ("text", &[text, (Client, "SYST\r\n"), (Client, login), one, answers, auth, shown]),
        (
            "HTTP",
            &[text, (Client, "GET / HTTP/1.1\r\n"), (Client, login), one, answers, auth, shown],
        ),
        (
            "at once",
            &[text, (Client, "NOOP\r\n"), one, (Client, &burst), (Server, "200 NOOP\r\n"), rest],
        ),
        (
            "HOST",
            &[(Client, "HOST x\r\n"), one, two, (Client, &burst), (Server, "220 host\r\n"), rest],
        ),
        (
            "forgotten",
            &[
                GREETING,
                (Client, &many),
                (Server, "331 x\r\n202 in\r\n"),
                (Server, &refused),
                (Client, "CWD d\r\n"),
                shown,
                auth,
                (Server, "234 go\r\n"),
            ],
        ),
    ];
    for (name, lines) in dialogues {
        let mut sim = Sim::new(without_nagle(Nat::Masquerade));
        play(&mut sim, name, lines);
        let mut got = sim.say(Client, b"\x16\r\n");
        sim.say(Server, b"\xc3\xa9\r\n");
        got.extend(sim.say(Client, &bounce()));
        got.extend(sim.say(Client, &bounce()));
        assert_eq!(executed_bounce(&got), None, "{name}");
    }
    // After text in place of a greeting.
    for line in ["SSH-2.0-x\r\n", "a/1\r\n"] {
        let mut sim = Sim::new(without_nagle(Nat::Masquerade));
        let all = (Client, "USER joe\r\nPASS x\r\nCWD d\r\nNOOP\r\n");
        play(
            &mut sim,
            line,
            &[(Server, "\u{feff}220 x\r\n"), all, ASKS, ACCEPTS, shown, (Server, line)],
        );
        assert_eq!(executed_bounce(&sim.say(Client, &bounce())), None, "{line}");
    }
}

/// A Telnet Synch is no part of TLS: the urgent byte must not hide a bounce from a server that does not read it.
#[test]
fn no_urgent_byte_remains_in_what_may_be_tls() {
    let mut sim = Sim::logged_in(without_nagle(Nat::Masquerade));
    play(&mut sim, "AUTH", &[(Client, "AUTH TLS\r\n"), (Server, "200 ok\r\n")]);
    sim.say(Client, b"\x16\r\n");
    let segment = Segment {
        seq: sim.client.next_number(),
        ack: sim.server.next_number(),
        flags: flags::ACK | flags::PSH | flags::URG,
        urgent: 2,
        window: 3000,
        payload: b"\n XPORT 10,99,99,99,9,9\r\n"[..].into(),
        ..Segment::default()
    };
    let passed = sim.forge(Client, &segment).unwrap();
    assert_eq!(passed.flags & flags::URG, 0);
}

/// Some servers answer what is an empty line for others. Then their replies answer earlier commands than it seems.
#[test]
fn a_reply_to_an_empty_line_accepts_neither_auth_nor_a_login() {
    for empty in [&b"\r\n"[..], b" \r\n", b"\xff\xf1\r\n", b"\xff\xf1 \r\n"] {
        let mut sim = Sim::logged_in(Scenario::default());
        sim.say(Client, &[empty, b"NOOP\r\nAUTH TLS\r\n"].concat());
        sim.say(Server, b"500 what?\r\n200 NOOP ok\r\n");
        let mut got = sim.say(Client, &record(22, &[b'\n'; 90]));
        got.extend(sim.say(Server, b"\x80\r\n"));
        got.extend(sim.say(Client, &bounce()));
        assert_eq!(executed_bounce(&got), None, "{empty:?}");

        let mut sim = Sim::new(Scenario::default());
        play(&mut sim, "greeting", &[GREETING]);
        sim.say(Client, empty);
        play(&mut sim, "no login", &[(Client, "OPTS UTF8 ON\r\nPASS x\r\n")]);
        play(&mut sim, "no login", &[(Server, "530 log in\r\n200 ok\r\n")]);
        sim.say(Client, b"PORT 192,168,150,80,19,136\r\n");
        assert_eq!(sim.kernel.opened, [], "{empty:?}: {:?}", sim.decisions());
    }
}

/// However a client begins, `AUTH` that is accepted leads to TLS, and nothing in it is read.
#[test]
fn tls_passes_after_every_beginning() {
    let auth = (Client, "AUTH TLS\r\n");
    let beginnings: &[(&str, Lines<'_>, bool)] = &[
        ("plain", &[GREETING, auth, (Server, "234 go\r\n")], true),
        ("200", &[GREETING, auth, (Server, "200 go\r\n")], true),
        ("200 in lines", &[GREETING, auth, (Server, "200-a\r\n200 go\r\n")], true),
        ("an empty line behind", &[GREETING, auth, (Server, "200 go\r\n\r\n")], true),
        (
            "a greeting of lines",
            &[(Server, "220-a\r\n220 b\r\n"), auth, (Server, "234 go\r\n")],
            true,
        ),
        ("LF", &[(Server, "220 x\n"), (Client, "AUTH TLS\n"), (Server, "234 go\n")], true),
        (
            "refused first",
            &[
                GREETING,
                auth,
                (Server, "504 no\r\n"),
                (Client, "AUTH SSL\r\n"),
                (Server, "234 go\r\n"),
            ],
            true,
        ),
        ("early", &[auth, GREETING, (Server, "234 go\r\n")], true),
        (
            "early FEAT",
            &[
                (Client, "FEAT\r\n"),
                GREETING,
                (Server, "211-F\r\n211 End\r\n"),
                auth,
                (Server, "234 go\r\n"),
            ],
            true,
        ),
        ("text first", &[(Server, "hello\r\n"), GREETING, auth, (Server, "234 go\r\n")], true),
        ("a byte order mark", &[(Server, "\u{feff}220 x\r\n"), auth, (Server, "234 go\r\n")], true),
        // What the server has accepted is not certain, so the client's bytes are scanned.
        ("an empty line", &[GREETING, (Client, "\r\n"), auth, (Server, "234 go\r\n")], false),
        (
            "a pipeline",
            &[GREETING, (Client, "HOST x\r\nAUTH TLS\r\n"), (Server, "220 x\r\n234 go\r\n")],
            false,
        ),
        (
            "after a login",
            &[GREETING, USER, ASKS, PASS, ACCEPTS, auth, (Server, "234 go\r\n")],
            false,
        ),
        (
            "after a login in lines",
            &[
                GREETING,
                USER,
                ASKS,
                PASS,
                (Server, "230-a\r\n230 in\r\n"),
                auth,
                (Server, "234 go\r\n"),
            ],
            false,
        ),
    ];
    for (name, lines, is_certain) in beginnings {
        let mut sim = Sim::new(Scenario::default());
        play(&mut sim, name, lines);
        let hello = record(22, b"\x01\n\nPO");
        assert_eq!(sim.say(Client, &hello), hello, "{name}");
        for body in [&b"\x02x\n2"[..], b"\n22", b"\n227 x (1,2,3,4,5,6)\r\n", b"\nPOR", b"\nE"] {
            for side in [Server, Client] {
                let sent = record(23, body);
                assert_eq!(sim.say(side, &sent), sent, "{name}: {side:?} {body:?}");
            }
        }
        assert_eq!(sim.engine().counters().encrypted, u64::from(*is_certain), "{name}");
        assert_eq!(sim.timeouts(), 0, "{name}");
    }
}
