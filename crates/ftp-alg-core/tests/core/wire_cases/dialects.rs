//! Dialogues of real servers and clients that differ from the RFCs: every line passes unchanged, and the transfers that
//! follow work. Each was reported in public.

use super::*;

/// Passive and active transfers work, again and again.
#[track_caller]
pub fn assert_transfers(sim: &mut Sim, name: &str) {
    for port in 5000..5003 {
        for announces in [
            format!("> PASV < PASSIVE {port}"),
            format!("> EPSV < 229 ok (|||{}|)", port + 10),
            format!("> ACTIVE {port} < 200 ok"),
        ] {
            let opened = sim.kernel.opened.len();
            sim.play(&announces);
            let decisions = sim.decisions();
            assert_eq!(sim.kernel.opened.len(), opened + 1, "{name}, {announces}: {decisions:?}");
            sim.play("> LIST < 150 here < 226 done");
        }
    }
}

/// Plays each dialogue of a table between two others, behind each kind of NAT. Each `PASSIVE` of the server must open a
/// pinhole, and transfers must work after it.
#[track_caller]
pub fn assert_served(before: &str, table: &str, after: &str) {
    everywhere_v4(|scenario| {
        for case in cases(table) {
            let mut sim = Sim::after(scenario.clone(), before);
            sim.play(case);
            let announced = case.matches("< PASSIVE ").count() - case.matches(" => =").count();
            assert_eq!(sim.kernel.opened.len(), announced, "{case}: {:?}", sim.decisions());
            sim.play(after);
            assert_transfers(&mut sim, case);
        }
    });
}

#[test]
fn a_login_is_any_success_of_a_login_command() {
    assert_served(
        "< 220 ready > USER joe",
        r"
        PASS: 200      < 331 password > PASS x < 200 OK
        PASS: 225      < 331 password > PASS x < 225 OK
        PASS: 226      < 331 password > PASS x < 226 OK
        PASS: 230User  < 331 password > PASS x < 230User logged in
        PASS: 230:     < 331 password > PASS x < 230: ok
        PASS: 202      < 331 password > PASS x < 202 superfluous
        PASS: 220      < 331 password > PASS x < 220 Password ok
        PASS: 250      < 331 password > PASS x < 250 logged in
        USER: 200      < 200 hi
        USER: 230      < 230 hi
        USER: 232      < 232 hi
        both 220       < 220 hi > PASS x < 220 in
        then 503       < 230 in > PASS x < 503 USER first
        ACCT: 230      < 331 password > PASS x < 332 account > ACCT x < 230 in
        ACCT: 202      < 331 password > PASS x < 230 in > ACCT x < 202 not needed
        ",
        "",
    );
    assert_served("", "greeting 200 < 200 FTP ready", USER_PASS);
}

#[test]
fn a_refused_login_command_leaves_the_login_as_it_was() {
    assert_served(
        LOGIN,
        r"
        vsftpd          > USER other < 530 Can't change to another user.
        ProFTPD         > USER other < 501 Reauthentication not supported
        PASS 530        > USER other < 331 password > PASS x < 530 Can't change.
        PASS 503        > USER other < 331 password > PASS x < 503 already
        PASS again      > PASS x < 503 already
        PASS 230        > USER other < 331 password > PASS x < 230 Already logged in.
        another user    > USER other < 331 password > PASS x < 230 in
        REIN            > REIN < 502 no
        REIN and login  > REIN < 220 ready > USER joe < 331 password > PASS x < 230 in
        ",
        "",
    );
    let wrong = "wrong, then right > USER joe < 331 password > PASS x < 530 no";
    assert_served(GREETING, wrong, USER_PASS);
}

/// Nor by the second of two greetings, or a line of the greeting, for an early client.
#[test]
fn without_a_login_nothing_is_opened_whatever_is_answered() {
    let greeted = r"
        refused                        > USER joe < 331 password > PASS x < 530 no
        refused again                  > USER joe < 331 password > PASS x < 530 no > USER joe < 530 no
        REIN                           > USER joe < 230 in > REIN < 220 ready > USER joe < 530 no
        a success before the password  > USER joe < 220 ready < 331 password
        a success of another command   > NOOP < 200 x
        in a pipeline                  > USER joe > NOOP < 200 x < 530 no
        a reply to nothing             < 230 in
        a stray 225                    > USER joe < 230 in > USER y < 225 in
        a stray 226                    > USER joe < 230 in > USER y < 226 in
        that of an earlier login       > USER x > PASS x > USER y < 331 password < 230 in
        the same with REIN             > USER x > PASS x > REIN < 331 password < 230 in
        another user                   > USER joe < 230 in > USER y < 331 x
        another user, pending          > USER joe < 230 in > user y
        REIN, pending                  > USER joe < 230 in > REIN
        ";
    let early = r"
        two greetings                  > USER joe < 220 a < 220 b
        a line of a greeting           > USER joe < 220-a\r\n200 go > NOOP < 220 b
        ";
    let greeted = cases(greeted).map(|case| format!("{GREETING}{case}"));
    for case in greeted.chain(cases(early).map(str::to_owned)) {
        let mut sim = Sim::after(Scenario::default(), &case);
        sim.hear("> PASV < PASSIVE 5000 > ACTIVE 5000 < 200 ok");
        assert_eq!(sim.kernel.opened.len(), 0, "{case}");
    }
}

/// Some servers send a second line without a code, which curl and FileZilla ignore, end only some replies with LF alone, or
/// draw their progress. Empty lines of a client keep a connection alive.
#[test]
fn replies_are_matched_as_servers_send_them() {
    let many = r" SITE CHMOD UMASK\r\n".repeat(300);
    let plain = "> NOOP < 200 fine > PWD < 200 fine > TYPE A < 200 fine";
    assert_served(
        LOGIN,
        &format!(
            r#"
        an empty line behind one reply           > SIZE x < 550 not found\r\n\r\n
        an empty line in its own segment         > SIZE x < 550 not found < \r\n
        glftpd  > STOR x < 553-\r\n553- Directory excluded (precheck).\r\n150 Opening for x. < 226 done
        another code at the end                  > CWD x < 250-hello\r\n200 ok
        another code at the end of a status      > STAT < 211-a\r\n211-b\r\n212 end
        a code in the text                       > MLST 550 < 250- List\r\n550\r\n250 End of List
        no text                                  > NOOP < 200-blabla\r\n200-\r\n200
        ABOR: one reply in place of two          > LIST < 150 here > ABOR < 226 aborted
        ABOR: three replies  > LIST < 150 here > ABOR < 426 aborted\r\n226 done\r\n225 ABOR
        ABOR: none                               > ABOR
        NOOP: none                               > NOOP > NOOP
        unknown words  > ? < 500 what? > LIST-la < 500 what? > cd.. < 500 what? > größe < 500 what? > DIRECTORY < 500 what?
        AUTH refused         > AUTH TLS < 502 no > AUTH TLS < 431 no > AUTH TLS < 534-no\r\n534 no
        a line without a code                    > CWD /x < 250 ok\r\n"/x" is current
        several of them                          > TYPE I < 200 Type I\r\n(binary)\r\n \r\nx
        one before                               > NOOP < debug\r\n200 ok
        odd quotes                               > PWD < 257 "/a is current
        TYPE with LF                             > TYPE I < 200 ok\n
        PWD with LF                              > PWD < 257 "/"\n
        FEAT with LF                             > FEAT < 211-F\n EPSV\n211 End\n
        progress                                 > NOOP < 226 10%\r20%\r100%\r\n
        empty lines                              > \r\n > \r\n > \r\n
        that are answered                        > \r\n < 500 what? > \r\n < 500 what? > \r\n < 500 what?
        with LF                                  > \n > \n > \n
        with LF, answered                        > \n < 500 what? > \n < 500 what? > \n < 500 what?
        a listing by HELP                        > HELP SITE < 214-x\r\n CHMOD\r\n214 Direct comments {plain}
        a long one by STAT                       > STAT -l < 211-x\r\n{many}211 End {plain}
        one by MLST                              > MLST x < 250-x\r\n type=file; x\r\n250 End {plain}
        a command with LF                        > NOOP\n < 200 ok {plain}
        "#
        ),
        "",
    );
    assert_served(
        "",
        r"
        an empty line before the greeting  < \r\n220 ready
        an empty line behind the greeting  < 220 ready\r\n\r\n
        ",
        USER_PASS,
    );
}

/// wu-ftpd and others show a text of the operator's line by line. What looks like a reply there is none.
#[test]
fn text_of_a_reply_in_segments_of_its_own_is_no_reply() {
    let text = "text < 230- < 227 x (10,0,0,1,4,3) < 530 Login incorrect < 200 ok < 230- < 230 in";
    assert_served("< 220 ready > USER joe < 331 password > PASS x", text, "");
}

/// Impatient clients send `PASV` when they have the first line of the reply to their login, or with the login, and
/// behind it what else the transfer needs.
#[test]
fn a_passive_transfer_may_begin_while_the_reply_to_the_login_still_comes() {
    for (behind, answers) in [
        ("", ""),
        ("> LIST", "< 150 here < 226 done"),
        ("> NOOP", "< 200 ok"),
        ("> SIZE f > REST 5 > RETR f", "< 213 9 < 350 ok < 150 here < 226 done"),
    ] {
        let begin = format!("> PASV {behind}");
        let end = format!("< 230 in < PASSIVE 5000 {answers}");
        let table = format!(
            r"
            behind the first line    < 230-welcome {begin} {end}
            behind the second        < 230-welcome < 230-more {begin} < 230-and {end}
            with the login           {begin} < 230-welcome < 230-more {end}
            with the login, at once  {begin} < 230-welcome\r\n230-more\r\n230 in < PASSIVE 5000 {answers}
            "
        );
        assert_served("< 220 ready > USER joe < 331 password > PASS x", &table, "");
    }
}

/// lftp with `ftp:sync-mode off` sends all at once in its second session. The server reads the login line by line, and
/// waits for the data connection. Before the greeting nothing is opened for a script that sends all of its commands,
/// unless that is a plain one.
#[test]
fn a_transfer_may_be_sent_with_the_login() {
    let early = r"> USER joe\r\nPASS x\r\nPASV\r\nRETR f";
    let login = r"< 220 ready > USER joe\r\nPASS x\r\nTYPE I\r\nPASV\r\nRETR f < 331 password";
    assert_served(
        "",
        &format!(
            r"
            with the login      {login} < 230 in < 200 ok < PASSIVE 5000
            several lines       {login} < 230-welcome < 230 in < 200 ok < PASSIVE 5000
            before the greeting {early} < 220 ready < 331 password < 230 in < PASSIVE 5000
            the same with LF    {early} < 220 ready\n < 331 password < 230 in < PASSIVE 5000
            a byte order mark   {early} < \u{{feff}}220 ready < 331 password < 230 in < PASSIVE 5000 => =
            "
        ),
        "< 150 here < 226 done",
    );
    for welcome in ["< 230 in", "< 230-welcome < 230 in"] {
        let login = login.replace("PASV", "EPSV");
        let script = format!("{login} {welcome} < 200 ok < 229 ok (|||5000|)");
        assert_eq!(Sim::after(Scenario::default(), &script).kernel.opened.len(), 1, "{welcome}");
    }
}

/// In a segment of its own such a line may be the middle of another reply. The client's announcements are its own.
#[test]
fn a_stray_line_keeps_passive_mode_closed_until_the_next_reply() {
    everywhere_v4(|scenario| {
        for (odd, reason) in [
            ("> PASV < debug: listening", "belonged to no reply"),
            (r"> PASV < 200 a\rb", "did not end with CR LF"),
        ] {
            let mut sim = Sim::after(scenario.clone(), LOGIN);
            sim.play(&format!("{odd} > ACTIVE 5000 < PASSIVE 5000 => ="));
            assert_eq!(sim.kernel.opened.len(), 1, "{odd:?}: {:?}", sim.decisions());
            let decision = sim.decisions().pop().unwrap();
            assert!(decision.contains(reason), "{decision}");
            sim.play("< 200 ok > NOOP < 200 ok");
            assert_transfers(&mut sim, odd);
        }
    });
}

/// The last letter of the Russian alphabet is 255 in Windows-1251, which is IAC in Telnet.
#[test]
fn names_may_contain_the_bytes_of_telnet_commands() {
    let names: [&[u8]; 6] =
        [b"a\xff", b"\xff\xff", b"a\xffb", b"a\xff\xfd", b"\xff\xfe", b"a\xff\xfab"];
    for (nat, name) in NATS.into_iter().cycle().zip(names) {
        let mut sim = Sim::after(Scenario { nat, ..Scenario::default() }, LOGIN);
        let whose = name.escape_ascii().to_string();
        let command = [b"CWD ", name, b"\r\n"].concat();
        assert_eq!(sim.say(Client, &command), command);
        sim.play("< 250 ok");
        assert_transfers(&mut sim, &whose);
        sim.play("> PWD");
        let reply = [b"257 \"/", name, b"\" is current\r\n"].concat();
        assert_eq!(sim.say(Server, &reply), reply);
        assert_transfers(&mut sim, &whose);
    }
}

/// The server sends a reply that nobody waits for before the one to `PASV` or `PORT`.
#[test]
fn stray_replies_answer_no_announcement() {
    everywhere_v4(|scenario| {
        for stray in ["< 226 done", "< 200 ok", "< 250 ok", "< 225 ABOR", "< 426 aborted"] {
            let mut sim = Sim::after(scenario.clone(), LOGIN);
            for opened in [2, 4] {
                let port = 5000 + opened;
                sim.play(&format!(
                    "> PASV {stray} < PASSIVE {port} > ACTIVE {port} {stray} < 200 ok"
                ));
                let (all, open) = (sim.kernel.opened.len(), sim.kernel.pinholes().len());
                assert_eq!((all, open), (opened, 1), "{stray}: {:?}", sim.decisions());
                sim.play("> LIST < 150 here < 226 done");
            }
            assert_transfers(&mut sim, stray);
        }
    });
}

/// A TLS record of this type.
pub fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 3, 3, 0, body.len() as u8], body].concat()
}

/// RFC 2228: with GSSAPI all that follows is lines of base64, the replies have the codes 631 to 633.
#[test]
fn gssapi_after_a_334_passes_unchanged_and_at_once() {
    let token = "YIIPORT/227+EPRT".repeat(400);
    everywhere_v4(|scenario| {
        for (verb, code) in [("MIC", 631), ("ENC", 632), ("CONF", 633)] {
            let begin = format!("> AUTH GSSAPI < 334 continue > ADAT {token} < 235 ADAT={token}");
            let mut sim = Sim::after(scenario.clone(), &format!("{GREETING}{begin}"));
            for body in [&token[..3], "UE9SVA==", "PORT", "EPRT", &token] {
                let (command, reply) = (format!("{verb} {body}"), format!("{code} {body}"));
                // In segments that end within the verb, the body and the line's end; an `E` alone may become `EPRT`.
                for cut in [2, 3, 5] {
                    let (first, second) = command.split_at(cut);
                    sim.play(&format!(r"> {first}\c > {second} < {reply}"));
                }
                let (first, second) = reply.split_at(2);
                sim.play(&format!(r"> {command}\r\c > \n < {first}\c < {second}"));
                sim.play(&format!(r"> {command} < {code}-{body}\r\n{reply}"));
            }
            assert_eq!(sim.kernel.opened.len(), 0, "{verb}: {:?}", sim.decisions());
            assert_untouched(&sim);
        }
    });
}

/// A server that answers 200 to everything has no TLS: what looks like it must not hide a command.
#[test]
fn an_announcement_in_what_looks_like_tls_does_not_reach_a_server_without_it() {
    let bounce = "PORT 10,99,99,99,9,9\r\n";
    for cut in [0, 1, 6, 8, 12] {
        let mut sim = Sim::logged_in(Scenario::default());
        sim.play("> AUTH TLS < 200 ok");
        let hello = [&record(22, b"\x01\r\n")[..], bounce.as_bytes()].concat();
        let (start, end) = hello.split_at(cut);
        let heard = [sim.say(Client, start), sim.say(Client, end)].concat();
        assert!(heard.starts_with(b"\x16\x03") && heard.len() == hello.len());
        assert!(!heard.windows(5).any(|five| five == b"PORT "), "{cut}: {}", heard.escape_ascii());
        assert!(heard.ends_with(b"\r\n"), "the line ends as it did");
        sim.play("< 500 what?");
        // It is inspected as before.
        let (heard, _) = sim.exchange(bounce, "500 what?\r\n");
        assert!(!heard.contains("PORT "), "{heard}");
        assert_eq!(sim.kernel.opened.len(), 0);
    }
}
