//! How a dialogue begins: greetings, text before them, and clients that do not wait for them.

use ftp_alg_core::session::Side::{Client, Server};

use super::{
    ambiguous_lines::{executed_bounce, received_in_pieces},
    dialects::{ACCEPTS, ASKS, GREETING, LOGIN, PASS, USER, assert_served, assert_transfers, play},
    support::{
        ftp::{active, at, passive},
        scenario::{NATS, Nat, Scenario},
        sim::Sim,
    },
    with, without_nagle,
};

#[test]
fn a_first_command_may_be_unknown() {
    let host = (Client, "OPEN ftp.example.net\r\n");
    let remote = (Server, "220 remote ready\r\n");
    let login = [USER, ASKS, PASS, ACCEPTS];
    assert_served(&[
        ("OPEN", &[&[GREETING, host, remote], &login]),
        ("OPEN after a login", &[&LOGIN, &[host, remote], &login]),
        ("SITE", &[&[GREETING, (Client, "SITE ftp.example.net\r\n"), remote], &login]),
        (
            "HOST",
            &[&[GREETING, (Client, "HOST ftp.example.net\r\n"), (Server, "220 ok\r\n")], &login],
        ),
        ("unknown", &[&[GREETING, (Client, "XYZZ\r\n"), (Server, "500 what?\r\n")], &login]),
        (
            "unknown twice",
            &[
                &[GREETING, (Client, "XYZZ 1\r\n"), (Server, "502 what?\r\n")],
                &[(Client, "YYZZ\r\n"), (Server, "500 what?\r\n")],
                &login,
            ],
        ),
    ]);
}

#[test]
fn an_unknown_command_that_is_understood_is_not_ftp() {
    for lines in [
        &[GREETING, (Client, "EHLO x\r\n"), (Server, "250 hello\r\n")][..],
        &[GREETING, (Client, "GET /\r\n"), (Server, "200 OK\r\n")],
    ] {
        let mut sim = Sim::new(Scenario::default());
        play(&mut sim, "before", lines);
        play(&mut sim, "after", &[USER, ASKS, PASS, ACCEPTS]);
        sim.exchange("PORT 192,168,150,80,19,136\r\n", "200 ok\r\n");
        assert_eq!(sim.kernel.opened.len(), 0, "{lines:?}");
    }
}

#[test]
fn greetings_differ() {
    let remote = (Server, "220 remote ready\r\n");
    let login = [USER, ASKS, PASS, ACCEPTS];
    assert_served(&[
        ("no blank", &[&[(Server, "220VxWorks ready\r\n")], &login]),
        ("a blank first", &[&[(Server, " 220 ready\r\n")], &login]),
        ("a colon", &[&[(Server, "220: ready\r\n")], &login]),
        ("a warning first", &[&[(Server, "ld.so: no such file\r\n220 ready\r\n")], &login]),
        ("a banner first", &[&[(Server, "** Hello **\r\n"), GREETING], &login]),
        ("a box first", &[&[(Server, "+------+\r\n"), GREETING], &login]),
        ("a date first", &[&[(Server, "2026/11/27 07:49:19 warning: x\r\n"), GREETING], &login]),
        ("another date first", &[&[(Server, "27/11/2026 welcome\r\n"), GREETING], &login]),
        ("220- ended by 230", &[&[(Server, "220-hello\r\n230 ready\r\n")], &login]),
        ("a colour first", &[&[(Server, "\u{1b}[0m\r\n"), GREETING], &login]),
        ("a banner in UTF-8", &[&[(Server, "Grüße, 世界 🦀\r\n"), GREETING], &login]),
        ("a byte order mark", &[&[(Server, "\u{feff}220 ready\r\n")], &login]),
        ("a byte order mark and lines", &[&[(Server, "\u{feff}220-a\r\n220 b\r\n")], &login]),
        ("a colour within", &[&[(Server, "\u{1b}[0m220 ready\r\n")], &login]),
        ("a control byte", &[&[(Server, "\u{12}220 ready\r\n")], &login]),
        ("four digits", &[&[(Server, "0220 ready\r\n")], &login]),
        ("a hard blank", &[&[(Server, "220\u{a0}ready\r\n")], &login]),
        ("LF CR", &[&[(Server, "220 ready\n\r")], &login]),
        ("LF and many CR", &[&[(Server, &format!("220 ready\n{}", "\r".repeat(1400)))], &login]),
        ("LF CR and a code", &[&[(Server, "220 ready\n\r220 go on\r\n")], &login]),
        ("LF CR LF", &[&[(Server, "220 ready\n\r\n")], &login]),
        ("LF and CR", &[&[(Server, "220 ready\n"), (Server, "\r")], &login]),
        ("a second greeting", &[&[GREETING, remote], &login]),
        ("a second greeting after USER", &[&[GREETING, USER, remote, ASKS, PASS, ACCEPTS]]),
        (
            "USER in the greeting",
            &[
                &[(Server, "220-hello\r\n"), USER],
                &[(Server, "220-more\r\n220 ready\r\n"), ASKS, PASS, ACCEPTS],
            ],
        ),
    ]);
}

#[test]
fn a_client_may_send_empty_lines_or_not_wait_for_the_greeting() {
    let login = [USER, ASKS, PASS, ACCEPTS];
    assert_served(&[
        ("an empty line first", &[&[GREETING, (Client, "\r\n")], &login]),
        (
            "an empty line that is refused",
            &[&[GREETING, (Client, "\r\n"), (Server, "500 what?\r\n")], &login],
        ),
        ("an early empty line", &[&[(Client, "\r\n"), GREETING], &login]),
        ("an early LF", &[&[(Client, "\n"), GREETING], &login]),
        ("early USER", &[&[USER, GREETING, ASKS, PASS, ACCEPTS]]),
        ("early empty line and USER", &[&[(Client, "\r\n"), USER, GREETING, ASKS, PASS, ACCEPTS]]),
        ("early USER and PASS", &[&[USER, PASS, GREETING, ASKS, ACCEPTS]]),
        ("early USER, text", &[&[USER, (Server, "hello\r\n"), GREETING, ASKS, PASS, ACCEPTS]]),
        (
            "early USER, lines",
            &[&[USER, (Server, "220-hello\r\n \r\n220 ready\r\n"), ASKS, PASS, ACCEPTS]],
        ),
        (
            "early USER, byte order mark",
            &[&[USER, (Server, "\u{feff}220 ready\r\n"), ASKS, PASS, ACCEPTS]],
        ),
        ("early HOST", &[&[(Client, "HOST x\r\n"), GREETING, (Server, "220 ok\r\n")], &login]),
    ]);
}

/// A script may send all of its commands at once. Nothing is opened for an announcement before the greeting.
#[test]
fn a_passive_transfer_may_be_sent_before_the_greeting() {
    for nat in NATS {
        for greeting in ["220 ready\r\n", "220 ready\n", "\u{feff}220 ready\r\n"] {
            let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
            let all = "USER joe\r\nPASS x\r\nPASV\r\nRETR f\r\n";
            play(&mut sim, greeting, &[(Client, all), (Server, greeting), ASKS, ACCEPTS]);
            let server = at(nat.translation(false).server, 5000);
            sim.say(Server, passive(server).as_bytes());
            let opened = if greeting.starts_with('2') { 1 } else { 0 };
            assert_eq!(sim.kernel.opened.len(), opened, "{greeting}: {:?}", sim.decisions());
            play(&mut sim, greeting, &[(Server, "150 here\r\n"), (Server, "226 done\r\n")]);
            assert_transfers(&mut sim, nat, greeting);
        }
    }
}

#[test]
fn bounces_are_refused_in_a_first_line_with_a_nul() {
    let third = active("10.99.99.99:2200".parse().unwrap());
    for greeting in ["", "hello\r\n", "220 ready\r\n"] {
        for first in [format!("\0{third}"), third.replace(' ', " \0"), third.replace("\r", "\0\r")]
        {
            for cut in 0..first.len() {
                let mut sim = Sim::new(with(Nat::Masquerade));
                sim.say(Server, greeting.as_bytes());
                let (start, rest) = first.split_at(cut);
                let (got, sim) = received_in_pieces(sim, [start.as_bytes(), rest.as_bytes()]);
                assert_eq!(executed_bounce(&got), None, "{greeting:?}: {got:?}, split at {cut}");
                assert_eq!(sim.kernel.opened, []);
            }
        }
    }
}

/// A server may send text before its greeting, whatever its client has sent by then.
#[test]
fn bounces_are_refused_whichever_end_begins() {
    let third = active("10.99.99.99:2200".parse().unwrap());
    let texts = ["", "hello\r\n", "\r\n", " 220 ready\r\n", "\u{feff}220 ready\r\n", "** x **\r\n"];
    for text in texts {
        for first in ["GET / HTTP/1.1\r\n", "\0\r\n", "NOOP\r\n", "SYST\r\n", "PASS x\r\n"] {
            for client_begins in [false, true] {
                let lines = [(Client, first), (Server, text)];
                let mut sim = Sim::new(with(Nat::Masquerade));
                for (side, line) in if client_begins { lines } else { [lines[1], lines[0]] } {
                    sim.say(side, line.as_bytes());
                }
                let is_greeting = !client_begins && text.contains("220");
                let rest =
                    if is_greeting { "503 log in\r\n" } else { "220 ready\r\n500 what?\r\n" };
                play(&mut sim, text, &[(Server, rest), USER, ASKS, PASS, ACCEPTS]);
                let got = sim.say(Client, third.as_bytes());
                assert_eq!(executed_bounce(&got), None, "{text:?} {first:?} {client_begins}");
                assert_eq!(sim.kernel.opened, []);
            }
        }
    }
}

/// A server whose text is no greeting may speak another protocol, whose client waits for an echo of each byte.
#[test]
fn a_text_protocol_waits_for_no_line() {
    let mut sim = Sim::new(without_nagle(Nat::Masquerade));
    play(
        &mut sim,
        "text",
        &[(Server, "Welcome\r\n"), (Client, "look\r\n"), (Server, "Nothing.\r\n")],
    );
    for byte in ["e", "p", "P", "o"] {
        play(&mut sim, byte, &[(Client, byte), (Server, byte)]);
    }
}

/// The login of an early client must not be accepted by the second of two greetings, nor by a line of the greeting.
#[test]
fn a_greeting_is_no_login() {
    let begin = (Client, "USER joe\r\n");
    for lines in [
        &[begin, (Server, "220 a\r\n"), (Server, "220 b\r\n")][..],
        &[begin, (Server, "220-a\r\n200 go\r\n"), (Client, "NOOP\r\n"), (Server, "220 b\r\n")],
    ] {
        let mut sim = Sim::new(Scenario::default());
        play(&mut sim, "early", lines);
        sim.say(Client, b"PORT 192,168,150,80,19,136\r\n");
        assert_eq!(sim.kernel.opened, [], "{lines:?}");
    }
    let mut sim = Sim::new(Scenario::default());
    play(&mut sim, "early", &[begin, (Server, "220 a\r\n"), ASKS, PASS, ACCEPTS]);
    sim.say(Client, b"PORT 192,168,150,80,19,136\r\n");
    assert_eq!(sim.kernel.opened.len(), 1);
}
