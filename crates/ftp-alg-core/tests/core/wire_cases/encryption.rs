//! Where encryption begins, and replies that only look as if the server had accepted `AUTH`.

use super::{ambiguous_lines::executed_bounce, dialects::record, *};

const BOUNCE: &[u8] = b"PORT 10,99,99,99,8,152\r\n";

/// ProFTPD shows an uploaded file in its reply to `CWD` (`DisplayChdir`), and makes line ends of `%{time:%n}`. Some
/// servers send one in a 213 or a 230.
#[test]
fn a_file_that_the_server_shows_begins_no_encryption() {
    let first: [&[u8]; 3] = [b"\x17\x03\x03\0\x02\r\n", b"\x17\x03\x03\x40\x00\r\n", b"\x16\r\n"];
    let later: [&[u8]; 4] =
        [b"\x80\r\n", b"\xc3\xa9\r\n", b"\x16\x03\x03\0\x02\r\n", b"250 done\r\n500 no\r\n"];
    for (case, first, later) in cases(
        r"
        CWD                    > CWD d\r\nAUTH TLS < 250-hello\r\n250 x\r\n234 go
        CWD, 200               > CWD d\r\nAUTH TLS < 250-hello\r\n250 x\r\n200 go
        STAT                   > STAT d\r\nAUTH TLS < 213-a\r\n213 x\r\n234 go
        stopped in the file    > CWD d < 250-hello\r\n250 x > AUTH TLS < 234 go
        stopped in it, LF      > CWD d < 250-hello\r\n250 x > AUTH TLS\n < 200 go
        150 of a long command  > XCRC f\r\nCWD d\r\nLIST < 150 wait < 250 0 > AUTH TLS < 250-hello\r\n250 x
        REIN                   > REIN < 230-hello\r\n230 x\r\n331 x > AUTH TLS < 234 go
        ",
    )
    .flat_map(|case| first.map(|first| (case, first)))
    .flat_map(|(case, first)| later.map(|later| (case, first, later)))
    {
        let mut sim = Sim::logged_in(without_nagle(Nat::Masquerade));
        sim.play(case);
        let mut got = sim.say(Client, first);
        got.extend(sim.say(Server, later));
        got.extend(sim.say(Client, BOUNCE));
        sim.say(Server, b"250 done\r\n500 no\r\n500 what?\r\n");
        got.extend(sim.say(Client, BOUNCE));
        assert_eq!(executed_bounce(&got), None, "{case}: {first:?}, {later:?}");
    }
}

/// The client has been logged in without the gateway's knowledge, by replies that seemed to answer other commands. Then
/// the server shows a file.
#[test]
fn a_login_that_was_not_seen_is_no_time_before_the_login() {
    let login = r"USER joe\r\nPASS x\r\nCWD d";
    let shown = r"250-hello\r\n250 x";
    let answers = r"500 what?\r\n331 x\r\n230 in";
    let many = format!(r"USER joe\r\nPASS x\r\n{}", r"PASV\r\nNOOP\r\n".repeat(20));
    let refused = r"502 no\r\n200 ok\r\n".repeat(20);
    for case in cases(&format!(
        r"
        two greetings  > {login} < 220 a < 220 b < 331 password < 230 in > AUTH TLS < {shown}
        text           < hello > SYST > {login} < 220 a < {answers} > AUTH TLS < {shown}
        HTTP           < hello > GET / HTTP/1.1 > {login} < 220 a < {answers} > AUTH TLS < {shown}
        at once        < hello > NOOP < 220 a > AUTH TLS\r\n{login} < 200 NOOP < 500 no\r\n331 x\r\n230 in\r\n{shown}
        HOST  > HOST x < 220 a < 220 b > AUTH TLS\r\n{login} < 220 host < 500 no\r\n331 x\r\n230 in\r\n{shown}
        forgotten  < 220 ready > {many} < 331 x\r\n202 in < {refused} > CWD d < {shown} > AUTH TLS < 234 go
        "
    )) {
        let mut sim = Sim::after(without_nagle(Nat::Masquerade), case);
        let mut got = sim.say(Client, b"\x16\r\n");
        sim.say(Server, b"\xc3\xa9\r\n");
        got.extend(sim.say(Client, BOUNCE));
        got.extend(sim.say(Client, BOUNCE));
        assert_eq!(executed_bounce(&got), None, "{case}");
    }
    // After text in place of a greeting.
    for line in ["< SSH-2.0-x", "< a/1"] {
        let begin =
            r"< \u{feff}220 x > USER joe\r\nPASS x\r\nCWD d\r\nNOOP < 331 password < 230 in";
        let mut sim = Sim::after(without_nagle(Nat::Masquerade), begin);
        sim.play(&format!("< {shown} {line}"));
        assert_eq!(executed_bounce(&sim.say(Client, BOUNCE)), None, "{line}");
    }
}

/// A Telnet Synch is no part of TLS: the urgent byte must not hide a bounce from a server that does not read it.
#[test]
fn no_urgent_byte_remains_in_what_may_be_tls() {
    let mut sim = Sim::logged_in(without_nagle(Nat::Masquerade));
    sim.play("> AUTH TLS < 200 ok");
    sim.say(Client, b"\x16\r\n");
    let segment = Segment {
        flags: flags::ACK | flags::PSH | flags::URG,
        urgent: 2,
        ..sim.next_segment(Client, b"\n XPORT 10,99,99,99,9,9\r\n")
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
        got.extend(sim.say(Client, BOUNCE));
        assert_eq!(executed_bounce(&got), None, "{empty:?}");

        let mut sim = Sim::after(Scenario::default(), GREETING);
        sim.say(Client, empty);
        sim.play(r"> OPTS UTF8 ON\r\nPASS x < 530 log in\r\n200 ok");
        sim.say(Client, b"PORT 192,168,150,80,19,136\r\n");
        assert_eq!(sim.kernel.opened, [], "{empty:?}: {:?}", sim.decisions());
    }
}

/// However a client begins, `AUTH` that is accepted leads to TLS, and nothing in it is read.
#[test]
fn tls_passes_after_every_beginning() {
    let certain = r"
        plain                  < 220 ready > AUTH TLS < 234 go
        200                    < 220 ready > AUTH TLS < 200 go
        200 in lines           < 220 ready > AUTH TLS < 200-a\r\n200 go
        an empty line behind   < 220 ready > AUTH TLS < 200 go\r\n\r\n
        a greeting of lines    < 220-a\r\n220 b > AUTH TLS < 234 go
        LF                     < 220 x\n > AUTH TLS\n < 234 go\n
        refused first          < 220 ready > AUTH TLS < 504 no > AUTH SSL < 234 go
        early                  > AUTH TLS < 220 ready < 234 go
        early FEAT             > FEAT < 220 ready < 211-F\r\n211 End > AUTH TLS < 234 go
        text first             < hello < 220 ready > AUTH TLS < 234 go
        a byte order mark      < \u{feff}220 x > AUTH TLS < 234 go
        ";
    // What the server has accepted is not certain, so the client's bytes are scanned.
    let uncertain = r"
        an empty line           < 220 ready > \r\n > AUTH TLS < 234 go
        a pipeline              < 220 ready > HOST x\r\nAUTH TLS < 220 x\r\n234 go
        after a login           < 220 ready > USER joe < 331 password > PASS x < 230 in > AUTH TLS < 234 go
        after a login in lines  < 220 ready > USER joe < 331 x > PASS x < 230-a\r\n230 in > AUTH TLS < 234 go
        ";
    let both = cases(certain).map(|case| (case, 1)).chain(cases(uncertain).map(|case| (case, 0)));
    for (case, encrypted) in both {
        let mut sim = Sim::after(Scenario::default(), case);
        let hello = record(22, b"\x01\n\nPO");
        assert_eq!(sim.say(Client, &hello), hello, "{case}");
        for body in [&b"\x02x\n2"[..], b"\n22", b"\n227 x (1,2,3,4,5,6)\r\n", b"\nPOR", b"\nE"] {
            for side in [Server, Client] {
                let sent = record(23, body);
                assert_eq!(sim.say(side, &sent), sent, "{case}: {side:?} {body:?}");
            }
        }
        assert_eq!(sim.engine().counters().encrypted, encrypted, "{case}");
        assert_eq!(sim.timeouts(), 0, "{case}");
    }
}
