//! Dialogues of real servers and clients that differ from the RFCs: every line passes unchanged, and the transfers that
//! follow work. Each was reported in public.

use ftp_alg_core::session::Side::{self, Client, Server};

use super::{
    everywhere_v4,
    support::{
        ftp::{at, passive, text},
        scenario::{NATS, Nat, Scenario},
        sim::Sim,
    },
};

pub const GREETING: (Side, &str) = (Server, "220 ready\r\n");
pub const USER: (Side, &str) = (Client, "USER joe\r\n");
pub const ASKS: (Side, &str) = (Server, "331 password\r\n");
pub const PASS: (Side, &str) = (Client, "PASS x\r\n");
pub const ACCEPTS: (Side, &str) = (Server, "230 in\r\n");
pub const LOGIN: [(Side, &str); 5] = [GREETING, USER, ASKS, PASS, ACCEPTS];

/// Plays `lines`, which must arrive unchanged.
pub fn play(sim: &mut Sim, name: &str, lines: &[(Side, &str)]) {
    for (side, line) in lines {
        assert_eq!(text(sim.say(*side, line.as_bytes())), *line, "{name}");
    }
}

/// Passive and active transfers work, again and again.
pub fn assert_transfers(sim: &mut Sim, nat: Nat, name: &str) {
    let server = nat.translation(false).server;
    for round in 0..3 {
        let mut opened = sim.kernel.opened.len();
        for (command, reply) in [
            ("PASV\r\n", passive(at(server, 5000 + round))),
            ("EPSV\r\n", format!("229 ok (|||{}|)\r\n", 5010 + round)),
            (&format!("PORT 192,168,150,80,19,{}\r\n", 136 + round), "200 ok\r\n".to_owned()),
        ] {
            sim.exchange(command, &reply);
            opened += 1;
            assert_eq!(
                sim.kernel.opened.len(),
                opened,
                "{name}, {command:?}: {:?}",
                sim.decisions()
            );
            let transfer =
                [(Client, "LIST\r\n"), (Server, "150 here\r\n"), (Server, "226 done\r\n")];
            play(sim, name, &transfer);
        }
    }
}

/// A name, and the parts of a dialogue.
pub type Dialect<'a> = (&'a str, &'a [&'a [(Side, &'a str)]]);

/// Plays each dialogue behind each kind of NAT. Transfers must work after it.
pub fn assert_served(dialogues: &[Dialect<'_>]) {
    for nat in NATS {
        for (name, parts) in dialogues {
            let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
            parts.iter().for_each(|lines| play(&mut sim, name, lines));
            assert_transfers(&mut sim, nat, name);
        }
    }
}

#[test]
fn a_login_is_any_success_of_a_login_command() {
    let accepted = |reply| [GREETING, USER, ASKS, PASS, (Server, reply)];
    assert_served(&[
        ("PASS: 200", &[&accepted("200 OK\r\n")]),
        ("PASS: 225", &[&accepted("225 OK\r\n")]),
        ("PASS: 226", &[&accepted("226 OK\r\n")]),
        ("PASS: 230User", &[&accepted("230User logged in\r\n")]),
        ("PASS: 230:", &[&accepted("230: ok\r\n")]),
        ("PASS: 202", &[&accepted("202 superfluous\r\n")]),
        ("PASS: 220", &[&accepted("220 Password ok\r\n")]),
        ("PASS: 250", &[&accepted("250 logged in\r\n")]),
        ("USER: 200", &[&[GREETING, USER, (Server, "200 hi\r\n")]]),
        ("USER: 230", &[&[GREETING, USER, (Server, "230 hi\r\n")]]),
        ("USER: 232", &[&[GREETING, USER, (Server, "232 hi\r\n")]]),
        ("both 220", &[&[GREETING, USER, (Server, "220 hi\r\n"), PASS, (Server, "220 in\r\n")]]),
        ("then 503", &[&[GREETING, USER, ACCEPTS, PASS, (Server, "503 USER first\r\n")]]),
        ("greeting 200", &[&[(Server, "200 FTP ready\r\n"), USER, ASKS, PASS, ACCEPTS]]),
        (
            "ACCT: 230",
            &[
                &[GREETING, USER, ASKS, PASS, (Server, "332 account\r\n")],
                &[(Client, "ACCT x\r\n"), ACCEPTS],
            ],
        ),
        ("ACCT: 202", &[&LOGIN, &[(Client, "ACCT x\r\n"), (Server, "202 not needed\r\n")]]),
    ]);
}

#[test]
fn a_refused_login_command_leaves_the_login_as_it_was() {
    let again: (Side, &str) = (Client, "USER other\r\n");
    assert_served(&[
        ("vsftpd", &[&LOGIN, &[again, (Server, "530 Can't change to another user.\r\n")]]),
        ("ProFTPD", &[&LOGIN, &[again, (Server, "501 Reauthentication not supported\r\n")]]),
        ("PASS 530", &[&LOGIN, &[again, ASKS, PASS, (Server, "530 Can't change.\r\n")]]),
        ("PASS 503", &[&LOGIN, &[again, ASKS, PASS, (Server, "503 already\r\n")]]),
        ("PASS again", &[&LOGIN, &[PASS, (Server, "503 already\r\n")]]),
        ("PASS 230", &[&LOGIN, &[again, ASKS, PASS, (Server, "230 Already logged in.\r\n")]]),
        ("REIN", &[&LOGIN, &[(Client, "REIN\r\n"), (Server, "502 no\r\n")]]),
        ("REIN and login", &[&LOGIN, &[(Client, "REIN\r\n"), GREETING, USER, ASKS, PASS, ACCEPTS]]),
        (
            "wrong, then right",
            &[&[GREETING, USER, ASKS, PASS, (Server, "530 no\r\n")], &[USER, ASKS, PASS, ACCEPTS]],
        ),
    ]);
}

#[test]
fn without_a_login_nothing_is_opened_whatever_is_answered() {
    let refused = (Server, "530 no\r\n");
    for (name, lines) in [
        ("refused", &[GREETING, USER, ASKS, PASS, refused][..]),
        ("refused again", &[GREETING, USER, ASKS, PASS, refused, USER, refused]),
        ("REIN", &[GREETING, USER, ACCEPTS, (Client, "REIN\r\n"), GREETING, USER, refused]),
        ("a success before the password", &[GREETING, USER, (Server, "220 ready\r\n"), ASKS]),
        ("a success of another command", &[GREETING, (Client, "NOOP\r\n"), (Server, "200 x\r\n")]),
        ("in a pipeline", &[GREETING, USER, (Client, "NOOP\r\n"), (Server, "200 x\r\n"), refused]),
    ] {
        let mut sim = Sim::new(Scenario::default());
        play(&mut sim, name, lines);
        let server = Nat::Masquerade.translation(false).server;
        sim.exchange("PASV\r\n", &passive(at(server, 5000)));
        sim.exchange("PORT 192,168,150,80,19,136\r\n", "200 ok\r\n");
        assert_eq!(sim.kernel.opened.len(), 0, "{name}");
    }
}

#[test]
fn replies_are_matched_as_servers_send_them() {
    let not_found = "550 not found\r\n";
    let listing = (Client, "LIST\r\n");
    assert_served(&[
        (
            "an empty line behind one reply",
            &[&LOGIN, &[(Client, "SIZE x\r\n"), (Server, &format!("{not_found}\r\n"))]],
        ),
        (
            "an empty line in its own segment",
            &[&LOGIN, &[(Client, "SIZE x\r\n"), (Server, not_found), (Server, "\r\n")]],
        ),
        ("an empty line before the greeting", &[&[(Server, "\r\n220 ready\r\n")], &LOGIN[1..]]),
        ("an empty line behind the greeting", &[&[(Server, "220 ready\r\n\r\n")], &LOGIN[1..]]),
        (
            "glftpd",
            &[
                &LOGIN,
                &[
                    (Client, "STOR x\r\n"),
                    (
                        Server,
                        "553-\r\n553- Directory excluded (precheck).\r\n150 Opening for x.\r\n",
                    ),
                    (Server, "226 done\r\n"),
                ],
            ],
        ),
        (
            "another code at the end",
            &[&LOGIN, &[(Client, "CWD x\r\n"), (Server, "250-hello\r\n200 ok\r\n")]],
        ),
        (
            "another code at the end of a status",
            &[&LOGIN, &[(Client, "STAT\r\n"), (Server, "211-a\r\n211-b\r\n212 end\r\n")]],
        ),
        (
            "a code in the text",
            &[
                &LOGIN,
                &[(Client, "MLST 550\r\n"), (Server, "250- List\r\n550\r\n250 End of List\r\n")],
            ],
        ),
        ("no text", &[&LOGIN, &[(Client, "NOOP\r\n"), (Server, "200-blabla\r\n200-\r\n200\r\n")]]),
        (
            "ABOR: one reply in place of two",
            &[
                &LOGIN,
                &[
                    listing,
                    (Server, "150 here\r\n"),
                    (Client, "ABOR\r\n"),
                    (Server, "226 aborted\r\n"),
                ],
            ],
        ),
        (
            "ABOR: three replies",
            &[
                &LOGIN,
                &[
                    listing,
                    (Server, "150 here\r\n"),
                    (Client, "ABOR\r\n"),
                    (Server, "426 aborted\r\n226 done\r\n225 ABOR\r\n"),
                ],
            ],
        ),
        ("ABOR: none", &[&LOGIN, &[(Client, "ABOR\r\n")]]),
        ("NOOP: none", &[&LOGIN, &[(Client, "NOOP\r\n"), (Client, "NOOP\r\n")]]),
    ]);
}

/// wu-ftpd and others show a text of the operator's line by line. What looks like a reply there is none.
#[test]
fn text_of_a_reply_in_segments_of_its_own_is_no_reply() {
    for nat in NATS {
        let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
        play(&mut sim, "login", &LOGIN[..4]);
        for line in ["230-", "227 x (10,0,0,1,4,3)", "530 Login incorrect", "200 ok", "230-"] {
            play(&mut sim, line, &[(Server, &format!("{line}\r\n"))]);
        }
        play(&mut sim, "login", &[ACCEPTS]);
        assert_transfers(&mut sim, nat, "text");
    }
}

/// Some clients send `PASV` when they have the first line of the reply to their login.
#[test]
fn a_passive_transfer_may_begin_while_the_reply_to_the_login_still_comes() {
    for nat in NATS {
        let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
        play(&mut sim, "login", &LOGIN[..4]);
        let begin = [(Server, "230-welcome\r\n"), (Client, "PASV\r\n"), (Server, "230 in\r\n")];
        play(&mut sim, "230", &begin);
        let server = nat.translation(false).server;
        sim.say(Server, passive(at(server, 5000)).as_bytes());
        assert_eq!(sim.kernel.opened.len(), 1, "{:?}", sim.decisions());
        play(&mut sim, "transfer", &[(Client, "LIST\r\n"), (Server, "150 here\r\n226 done\r\n")]);
        assert_transfers(&mut sim, nat, "230");
    }
}

/// lftp with `ftp:sync-mode off` sends all at once in its second session. The server reads the login line by line, and
/// waits for the data connection.
#[test]
fn a_transfer_may_be_sent_with_the_login() {
    for nat in NATS {
        for welcome in ["230 in\r\n", "230-welcome\r\n230 in\r\n"] {
            for (passive_command, by_epsv) in [("PASV", false), ("EPSV", true)] {
                let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
                play(&mut sim, "greeting", &[GREETING]);
                let all =
                    format!("USER joe\r\nPASS x\r\nTYPE I\r\n{passive_command}\r\nRETR f\r\n");
                play(&mut sim, welcome, &[(Client, &all), ASKS]);
                for line in welcome.split_inclusive("\r\n").chain(["200 ok\r\n"]) {
                    play(&mut sim, welcome, &[(Server, line)]);
                }
                let server = at(nat.translation(false).server, 5000);
                let reply = if by_epsv { "229 ok (|||5000|)\r\n" } else { &passive(server) };
                sim.say(Server, reply.as_bytes());
                assert_eq!(sim.kernel.opened.len(), 1, "{welcome}: {:?}", sim.decisions());
                play(&mut sim, welcome, &[(Server, "150 here\r\n"), (Server, "226 done\r\n")]);
                assert_transfers(&mut sim, nat, welcome);
            }
        }
    }
}

/// Some servers send a second line without a code. curl and FileZilla ignore it.
#[test]
fn a_line_without_a_code_behind_a_reply_changes_nothing() {
    assert_served(&[
        ("CWD", &[&LOGIN, &[(Client, "CWD /x\r\n"), (Server, "250 ok\r\n\"/x\" is current\r\n")]]),
        (
            "TYPE",
            &[&LOGIN, &[(Client, "TYPE I\r\n"), (Server, "200 Type I\r\n(binary)\r\n \r\nx\r\n")]],
        ),
        ("before", &[&LOGIN, &[(Client, "NOOP\r\n"), (Server, "debug\r\n200 ok\r\n")]]),
        ("odd quotes", &[&LOGIN, &[(Client, "PWD\r\n"), (Server, "257 \"/a is current\r\n")]]),
    ]);
}

/// A server that ends only some replies with LF alone, or draws its progress.
#[test]
fn transfers_work_after_a_reply_with_other_line_ends() {
    let after = |command, reply| [(Client, command), (Server, reply)];
    assert_served(&[
        ("TYPE", &[&LOGIN, &after("TYPE I\r\n", "200 ok\n")]),
        ("PWD", &[&LOGIN, &after("PWD\r\n", "257 \"/\"\n")]),
        ("FEAT", &[&LOGIN, &after("FEAT\r\n", "211-F\n EPSV\n211 End\n")]),
        ("progress", &[&LOGIN, &after("NOOP\r\n", "226 10%\r20%\r100%\r\n")]),
    ]);
}

/// In a segment of its own such a line may be the middle of another reply. The client's announcements are its own.
#[test]
fn a_stray_line_keeps_passive_mode_closed_until_the_next_reply() {
    for nat in NATS {
        for (odd, reason) in [
            ("debug: listening\r\n", "belonged to no reply"),
            ("200 a\rb\r\n", "did not end with CR LF"),
        ] {
            let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
            play(&mut sim, odd, &LOGIN);
            play(&mut sim, odd, &[(Client, "PASV\r\n"), (Server, odd)]);
            sim.say(Client, b"PORT 192,168,150,80,19,136\r\n");
            assert_eq!(sim.kernel.opened.len(), 1, "{odd:?}: {:?}", sim.decisions());
            sim.say(Server, passive(at(nat.translation(false).server, 5000)).as_bytes());
            assert_eq!(sim.kernel.opened.len(), 1, "{odd:?}");
            let decision = sim.decisions().pop().unwrap();
            assert!(decision.contains(reason), "{decision}");
            play(&mut sim, odd, &[(Server, "200 ok\r\n"), (Client, "NOOP\r\n")]);
            play(&mut sim, odd, &[(Server, "200 ok\r\n")]);
            assert_transfers(&mut sim, nat, odd);
        }
    }
}

/// Empty lines of a client keep a connection alive. Some servers answer them.
#[test]
fn empty_lines_of_a_client_change_nothing() {
    for nat in NATS {
        for line in ["\r\n", "\n"] {
            for reply in ["", "500 what?\r\n"] {
                let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
                play(&mut sim, line, &LOGIN);
                for _ in 0..3 {
                    play(&mut sim, line, &[(Client, line), (Server, reply)]);
                }
                assert_transfers(&mut sim, nat, line);
            }
        }
    }
}

/// The last letter of the Russian alphabet is 255 in Windows-1251, which is IAC in Telnet.
#[test]
fn names_may_contain_the_bytes_of_telnet_commands() {
    let names: [&[u8]; 6] =
        [b"a\xff", b"\xff\xff", b"a\xffb", b"a\xff\xfd", b"\xff\xfe", b"a\xff\xfab"];
    for (nat, name) in NATS.into_iter().cycle().zip(names) {
        let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
        play(&mut sim, "login", &LOGIN);
        let whose = name.escape_ascii().to_string();
        let command = [b"CWD ", name, b"\r\n"].concat();
        assert_eq!(sim.say(Client, &command), command);
        play(&mut sim, &whose, &[(Server, "250 ok\r\n")]);
        assert_transfers(&mut sim, nat, &whose);
        play(&mut sim, &whose, &[(Client, "PWD\r\n")]);
        let reply = [b"257 \"/", name, b"\" is current\r\n"].concat();
        assert_eq!(sim.say(Server, &reply), reply);
        assert_transfers(&mut sim, nat, &whose);
    }
}

/// The server sends a reply that nobody waits for before the one to `PASV` or `PORT`.
#[test]
fn stray_replies_answer_no_announcement() {
    for stray in ["226 done\r\n", "200 ok\r\n", "250 ok\r\n", "225 ABOR\r\n", "426 aborted\r\n"] {
        for nat in NATS {
            let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
            play(&mut sim, stray, &LOGIN);
            let server = nat.translation(false).server;
            for port in [5000, 5001] {
                let opened = sim.kernel.opened.len();
                play(&mut sim, stray, &[(Client, "PASV\r\n"), (Server, stray)]);
                sim.say(Server, passive(at(server, port)).as_bytes());
                assert_eq!(sim.kernel.opened.len(), opened + 1, "{stray:?}: {:?}", sim.decisions());
                sim.say(Client, b"PORT 192,168,150,80,19,136\r\n");
                play(&mut sim, stray, &[(Server, stray), (Server, "200 ok\r\n")]);
                assert_eq!(sim.kernel.pinholes().len(), 1, "{stray:?}: {:?}", sim.decisions());
                play(&mut sim, stray, &[(Client, "LIST\r\n"), (Server, "150 here\r\n")]);
                play(&mut sim, stray, &[(Server, "226 done\r\n")]);
            }
            assert_transfers(&mut sim, nat, stray);
        }
    }
}

/// A TLS record of this type.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 3, 3, 0, body.len() as u8], body].concat()
}

/// Servers accept `AUTH` with other codes than 234 (VxWorks: 200). Then every byte passes unchanged and at once.
#[test]
fn tls_after_any_success_of_auth_passes_unchanged_and_at_once() {
    let tails: [&[u8]; 10] = [
        b"x",
        b"\n",
        b"\nP",
        b"\r\nEPR",
        b"\0PO",
        b"\xff\xf4P",
        b"\nPORT 10,0,0,1,4,1\r\n",
        b"\r\n227",
        b"\r\n2",
        b"\r\n229 (|||5|)\r\n",
    ];
    for code in ["200", "232", "234", "334"] {
        for (nat, hello) in NATS.into_iter().zip(tails.into_iter().cycle().skip(2)) {
            let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
            let accepts = format!("{code} begin\r\n");
            play(&mut sim, code, &[GREETING, (Client, "AUTH TLS\r\n"), (Server, &accepts)]);
            // In two segments.
            let hello = record(22, &[&[1], hello].concat());
            for part in [&hello[..hello.len() - 1], &hello[hello.len() - 1..]] {
                assert_eq!(sim.say(Client, part), part, "{code}");
            }
            let hello = record(22, b"\x02227 \n");
            assert_eq!(sim.say(Server, &hello), hello, "{code}");
            for tail in tails {
                for side in [Client, Server] {
                    let record = record(23, tail);
                    assert_eq!(sim.say(side, &record), record, "{code}");
                }
            }
            assert_eq!(sim.kernel.opened.len(), 0);
        }
    }
}

/// RFC 2228: with GSSAPI all that follows is lines of base64, the replies have the codes 631 to 633.
#[test]
fn gssapi_after_a_334_passes_unchanged_and_at_once() {
    let token = "YIIPORT/227+EPRT".repeat(400);
    for nat in NATS {
        for (verb, code) in [("MIC", 631), ("ENC", 632), ("CONF", 633)] {
            let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
            let adat = format!("ADAT {token}\r\n");
            let accepts = format!("235 ADAT={token}\r\n");
            let begin = [
                GREETING,
                (Client, "AUTH GSSAPI\r\n"),
                (Server, "334 continue\r\n"),
                (Client, &adat),
                (Server, &accepts),
            ];
            play(&mut sim, "ADAT", &begin);
            for body in [&token[..3], "UE9SVA==", "PORT", "EPRT", &token] {
                let command = format!("{verb} {body}\r\n");
                let reply = format!("{code} {body}\r\n");
                // In segments that end within the verb, the body and the line's end; an `E` alone may become `EPRT`.
                for cut in [2, 3, 5, command.len() - 1] {
                    let (first, second) = command.split_at(cut);
                    let lines = [(Client, first), (Client, second), (Server, &reply)];
                    play(&mut sim, verb, &lines);
                }
                let (first, second) = reply.split_at(2);
                play(&mut sim, verb, &[(Client, &command), (Server, first), (Server, second)]);
                let several = format!("{code}-{body}\r\n{code} {body}\r\n");
                play(&mut sim, verb, &[(Client, &command), (Server, &several)]);
            }
            assert_eq!(sim.kernel.opened.len(), 0, "{verb}: {:?}", sim.decisions());
            assert_eq!((sim.replaced, sim.dropped), (0, 0), "{}", sim.summary());
        }
    }
}

/// An SSLv2 hello has two bytes of length, the first with its top bit set, and then its type. TLS records may follow.
/// What reads as the client's own announcement in such bytes opens nothing.
#[test]
fn bytes_after_auth_that_are_no_tls_pass_and_open_nothing() {
    let tails: [&[u8]; 12] = [
        b"x",
        b"\n",
        b"\nP",
        b"\r\nEPR",
        b"\nPORT 10,0,0,1,4,1\r\n",
        b"\nAUTH TLS\r\n",
        b"\0PO",
        b"\xff\xf4P",
        b"\nPORT 192,168,150,80,19,136\r\n",
        b"\r\n227",
        b"\r\n2",
        b"\r\n229 (|||5|)\r\n",
    ];
    type Wrap = fn(&[u8]) -> Vec<u8>;
    let ssl2: Wrap = |body| [&[0x80, body.len() as u8], body].concat();
    let tls: Wrap = |body| record(23, body);
    let binary: Wrap = |body| [b"\xc3\x00\x9f\x01\xfe", body].concat();
    for code in ["200", "232", "234", "250", "300", "334"] {
        for nat in NATS {
            for (hello, following) in
                [(ssl2, ssl2), (ssl2, tls), (ssl2, binary), (tls, binary), (binary, binary)]
            {
                let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
                let accepts = format!("{code} begin\r\n");
                play(&mut sim, code, &[GREETING, (Client, "AUTH TLS\r\n"), (Server, &accepts)]);
                let hello = hello(b"\x01\x03\x01\0\x03\n2\r\n\xff\xf4P");
                for part in [&hello[..1], &hello[1..hello.len() - 1], &hello[hello.len() - 1..]] {
                    assert_eq!(sim.say(Client, part), part, "{code}");
                }
                for tail in tails {
                    for side in [Server, Client] {
                        let bytes = following(&[b"\x04", tail].concat());
                        assert_eq!(sim.say(side, &bytes), bytes, "{code}");
                    }
                }
                assert_eq!(sim.kernel.opened.len(), 0, "{code}");
                assert_eq!((sim.replaced, sim.dropped), (0, 0), "{code}: {}", sim.summary());
                assert_eq!(sim.engine().counters().encrypted, 1, "{code}");
            }
        }
    }
}

/// After an SSLv2 hello the client's TLS records must not wait for more bytes, nor be changed: the server has sent TLS.
#[test]
fn tls_after_an_sslv2_hello_passes_unchanged_and_at_once() {
    for code in ["200", "234"] {
        for tail in [&b"\nP"[..], b"\nE", b"\r\nEPR", b"\nPORT 10,0,0,1,4,1\r\n"] {
            let mut sim = Sim::new(Scenario::default());
            let accepts = format!("{code} begin\r\n");
            play(&mut sim, code, &[GREETING, (Client, "AUTH TLS\r\n"), (Server, &accepts)]);
            let hello = b"\x80\x0c\x01\x03\x01\0\x03\0\0\0\x20abc";
            assert_eq!(sim.say(Client, hello), hello);
            let hello = record(22, b"\x02abc");
            assert_eq!(sim.say(Server, &hello), hello, "{code}");
            let bytes = record(23, tail);
            let heard = sim.say(Client, &bytes);
            assert_eq!(heard, bytes, "{code}: {}", heard.escape_ascii());
        }
    }
}

/// A server that answers 200 to everything has no TLS: what looks like it must not hide a command.
#[test]
fn an_announcement_in_what_looks_like_tls_does_not_reach_a_server_without_it() {
    let bounce = "PORT 10,99,99,99,9,9\r\n";
    for cut in [0, 1, 6, 8, 12] {
        let mut sim = Sim::logged_in(Scenario::default());
        play(&mut sim, "AUTH", &[(Client, "AUTH TLS\r\n"), (Server, "200 ok\r\n")]);
        let hello = [&record(22, b"\x01\r\n")[..], bounce.as_bytes()].concat();
        let (start, end) = hello.split_at(cut);
        let mut heard = sim.say(Client, start);
        heard.extend(sim.say(Client, end));
        assert!(heard.starts_with(b"\x16\x03") && heard.len() == hello.len());
        assert!(!heard.windows(5).any(|five| five == b"PORT "), "{cut}: {}", heard.escape_ascii());
        assert!(heard.ends_with(b"\r\n"), "the line ends as it did");
        play(&mut sim, "answer", &[(Server, "500 what?\r\n")]);
        // It is inspected as before.
        let (heard, _) = sim.exchange(bounce, "500 what?\r\n");
        assert!(!heard.contains("PORT "), "{heard}");
        assert_eq!(sim.kernel.opened.len(), 0);
    }
}

/// `ftp> quote cd..`, or a person with telnet.
#[test]
fn transfers_work_after_any_word_that_the_server_refuses() {
    everywhere_v4(|scenario| {
        let t = scenario.nat.translation(false);
        let mut sim = Sim::logged_in(scenario);
        for (count, line) in (1..).zip(["?", "LIST-la", "cd..", "größe", "DIRECTORY"]) {
            sim.exchange(&format!("{line}\r\n"), "500 what?\r\n");
            sim.exchange("PASV\r\n", &passive(at(t.server, 5000 + count)));
            assert_eq!(sim.kernel.opened.len(), usize::from(count), "{line}");
            sim.exchange("RETR x\r\n", "226 done\r\n");
        }
    });
}
