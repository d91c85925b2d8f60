//! Where encryption begins, and replies that only look as if the server had accepted `AUTH`.

use super::{ambiguous_lines::executed_bounce, dialects::record, *};

const BOUNCE: &[u8] = b"PORT 10,99,99,99,8,152\r\n";

/// ProFTPD shows an uploaded file in its reply to `CWD` (`DisplayChdir`), and makes line ends of `%{time:%n}`. Some
/// servers send one in a 213 or a 230.
#[test]
fn a_file_that_the_server_shows_begins_no_encryption() {
    // The hellos of real handshakes, and a record that seems to contain what follows.
    let [client, server] =
        [Client, Server].map(|side| [&hello(side, 2)[..], b"\x17\x03\x03\x40\x00\r\n"].concat());
    let first: [&[u8]; 4] =
        [&client, &[&old_hello(9), &client[13..]].concat(), b"\x17\x03\x03\0\x02\r\n", b"\x16\r\n"];
    let later: [&[u8]; 3] = [&server, b"\xc3\xa9\r\n", b"250 done\r\n500 no\r\n"];
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

/// A ClientHello, or a ServerHello, of `length` bytes in one record of TLS.
pub fn hello(side: Side, length: usize) -> Vec<u8> {
    let kind = if side == Client { 1 } else { 2 };
    let body = [&[kind, 0, 0, length as u8, 3, 3][..], &vec![b'\n'; length]].concat();
    [&[22, 3, 3][..], &(body.len() as u16).to_be_bytes(), &body].concat()
}

/// Both ends begin TLS. Nothing is open by a word of one end.
#[track_caller]
pub fn begin_tls(sim: &mut Sim) {
    for side in [Client, Server] {
        assert!(sim.kernel.ranges.is_empty(), "one end alone");
        let hello = hello(side, 90);
        assert_eq!(sim.say(side, &hello), hello);
    }
}

/// A ClientHello in the form of SSLv2 (RFC 5246, appendix E.2) with so many bytes.
fn old_hello(length: u16) -> Vec<u8> {
    let body = [&[1, 3, 1][..], &vec![b'\n'; usize::from(length) - 3]].concat();
    [&(0x8000 | length).to_be_bytes()[..], &body].concat()
}

/// Once both ends have begun TLS nothing is read, whatever looks like text in it.
#[track_caller]
fn assert_encrypted(sim: &mut Sim, case: &str) {
    for body in words(
        b"\x02x\n2|\n227 x (1,2,3,4,5,6)\r\n|\r\nPORT 1,2,3,4,5,6\r\n|\nE|\r\nEPR|\0PO|\xff\xf4P|x|\n|\nAUTH TLS\r\n|\
        \nPORT 192,168,150,80,19,136\r\n|\r\n229 (|||5|)\r\n",
    ) {
        for side in [Server, Client] {
            let sent = record(23, body);
            assert_eq!(sim.say(side, &sent), sent, "{case}: {side:?} {body:?}");
        }
    }
    assert_eq!(sim.engine().counters().encrypted, 1, "{case}");
    assert_eq!((sim.timeouts(), sim.kernel.opened.len()), (0, 0), "{case}");
}

/// The two hellos show it, whatever the dialogue was before, and whatever the server accepts `AUTH` with.
#[test]
fn tls_of_both_ends_begins_encryption_after_every_beginning() {
    let proxy = "> PROXY TCP4 203.0.113.7 198.51.100.1 40000 21";
    for case in cases(&format!(
        r"
        plain                  < 220 ready > AUTH TLS < 234 go
        200                    < 220 ready > AUTH TLS < 200 go
        200 in lines           < 220 ready > AUTH TLS < 200-a\r\n200 go
        250                    < 220 ready > AUTH TLS < 250 go
        300                    < 220 ready > AUTH TLS < 300 go
        334                    < 220 ready > AUTH TLS < 334 go
        an empty line behind   < 220 ready > AUTH TLS < 200 go\r\n\r\n
        a greeting of lines    < 220-a\r\n220 b > AUTH TLS < 234 go
        a greeting of 230      < 230 welcome > AUTH TLS < 234 go
        LF                     < 220 x\n > AUTH TLS\n < 234 go\n
        refused first          < 220 ready > AUTH TLS < 504 no > AUTH SSL < 234 go
        early                  > AUTH TLS < 220 ready < 234 go
        early FEAT             > FEAT < 220 ready < 211-F\r\n211 End > AUTH TLS < 234 go
        text first             < hello < 220 ready > AUTH TLS < 234 go
        a byte order mark      < \u{{feff}}220 x > AUTH TLS < 234 go
        an empty line          < 220 ready > \r\n > AUTH TLS < 234 go
        a pipeline             < 220 ready > HOST x\r\nAUTH TLS < 220 x\r\n234 go
        FEAT with it           < 220 ready > FEAT\r\nAUTH TLS < 211-F\r\n AUTH TLS\r\n211 End\r\n234 go
        OPTS with it           < 220 ready > OPTS UTF8 ON\r\nAUTH TLS < 200 on < 234 go
        a PROXY header         {proxy} < 220 ready > AUTH TLS < 234 go
        a PROXY header, TLS    {proxy}
        after a login          < 220 ready > USER joe < 331 password > PASS x < 230 in > AUTH TLS < 234 go
        after REIN             {LOGIN}> REIN < 220 again > AUTH TLS < 234 go
        an unknown word        < 220 ready > X-CLIENT 1 < 500 what? > AUTH TLS < 234 go
        implicit
        ",
    )) {
        let with_lines = b"\x80\x0e\x01\x03\x01\0\x03\n2\r\n\r\nEPR".to_vec();
        for first in [hello(Client, 90), old_hello(90), old_hello(300), with_lines] {
            let mut sim = Sim::after(Scenario::default(), case);
            let cut = if first.len() < 20 { first.len() - 1 } else { 4 };
            for part in [&first[..1], &first[1..cut], &first[cut..]] {
                assert_eq!(sim.say(Client, part), part, "{case}");
            }
            let answer = hello(Server, 90);
            assert_eq!(sim.say(Server, &answer), answer, "{case}");
            assert_encrypted(&mut sim, case);
        }
    }
}

/// Servers send a warning first (Java and ProFTPD: `unrecognized_name`), or ask for a hello that has come already. Some
/// clients send theirs with `AUTH`.
#[test]
fn tls_may_begin_with_other_records_of_the_server() {
    let first =
        [record(21, b"\x01\x70"), record(22, b"\0\0\0\0"), record(21, b"\x01\x70")].concat();
    for cut in 0..first.len() + 7 {
        let mut sim = Sim::after(Scenario::default(), AUTH);
        sim.say(Client, &hello(Client, 90));
        let answer = [&first[..], &hello(Server, 90)].concat();
        let (one, two) = answer.split_at(cut);
        assert_eq!([sim.say(Server, one), sim.say(Server, two)].concat(), answer);
        assert_encrypted(&mut sim, &format!("cut at {cut}"));
    }
    let mut sim = Sim::after(Scenario::default(), "< 220 ready");
    let both = [b"AUTH TLS\r\n", &hello(Client, 90)[..]].concat();
    assert_eq!(sim.say(Client, &both), both);
    sim.play("< 234 go");
    sim.say(Server, &hello(Server, 90));
    assert_encrypted(&mut sim, "with AUTH");
}

/// RFC 4217, section 12.2.
#[test]
fn tls_may_begin_again_after_ccc() {
    let mut sim = Sim::after(Scenario::default(), AUTH);
    for times in 1..3 {
        for side in [Client, Server, Client, Server] {
            sim.say(side, &hello(side, 90));
            sim.say(side, &record(23, b"x"));
        }
        assert_eq!(sim.engine().counters().encrypted, times);
        // The first command may be PASV.
        sim.play(["", "> NOOP < 200 ok"][times as usize % 2]);
        sim.exchange("PASV\r\n", &sim.passive(5000)[0]);
        assert_eq!(sim.kernel.opened.len(), times as usize);
        sim.play("> LIST < 226 done > AUTH TLS < 234 go");
    }
}

/// A handshake that fails leaves plain text behind, and so does one that the client does not begin.
#[test]
fn plain_text_is_read_where_no_tls_has_begun() {
    for alert in [&b""[..], &record(21, b"\x02\x28")] {
        let mut sim = Sim::after(Scenario::default(), AUTH);
        if !alert.is_empty() {
            sim.say(Client, &hello(Client, 90));
            assert_eq!(sim.say(Server, alert), alert);
        }
        sim.play("> USER joe < 331 password > PASS x < 230 in");
        sim.assert_inspected();
        assert_eq!(sim.engine().counters().encrypted, 0);
    }
}
