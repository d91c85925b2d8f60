//! Which transfers, logins and sessions are reported, and how they ended.

use ftp_alg_core::{
    engine::{Event, EventKind, Transfer, TransferEnd},
    ftp::{AnnouncementKind, NameInText},
};

use super::*;

const PORT: &str = "> PORT 192,168,150,80,14,178 < 200 ok";
const PASSIVE: &str = "> PASV < 227 x (198,51,100,90,14,178)";

fn logged_in() -> Sim {
    Sim::logged_in(with(Nat::Routed))
}

impl Sim {
    /// The transfers that were reported since the last call, with their users.
    fn transfers_of_users(&mut self) -> Vec<(Option<String>, Transfer)> {
        let transfer = |event: Event| match event.kind {
            EventKind::Transfer(transfer) => {
                Some((event.user.as_deref().map(str::to_owned), *transfer))
            }
            _ => None,
        };
        self.take_events().into_iter().filter_map(transfer).collect()
    }

    /// The same in short, as the control connection says them.
    fn transfers(&mut self) -> String {
        let transfers = self.transfers_of_users();
        transfers.iter().map(|(_, transfer)| in_short(transfer)).collect::<Vec<_>>().join(", ")
    }

    /// The log's lines about events whose names begin so, without their sessions.
    fn lines(&mut self, name: &str) -> Vec<String> {
        let events = self.take_events();
        let is_meant = |event: &&Event| event.kind.name().starts_with(name);
        let text = |event: &Event| event.to_string().split_once("21: ").unwrap().1.to_owned();
        events.iter().filter(is_meant).map(text).collect()
    }
}

/// Verb, path (`?` if that is uncertain) and last reply code.
fn in_short(transfer: &Transfer) -> String {
    let path = transfer.path.as_deref().unwrap_or("?");
    let end = match transfer.end {
        TransferEnd::Unseen => "unseen".to_owned(),
        _ => transfer.code().unwrap_or(0).to_string(),
    };
    let says_why = transfer.uncertain.is_some();
    assert!(end == "unseen" || says_why == (path == "?"), "{transfer:?}");
    format!("{} {} {end}", transfer.verb.name(), NameInText::Path(path))
}

/// Each row has a dialogue, and the transfers that are reported of it.
#[track_caller]
fn assert_transfers(before: &str, table: &str) {
    for row in cases(table) {
        let (script, expected) = row.split_once(" =>").unwrap();
        let mut sim = logged_in();
        let script = script.replace("DONE", "< 150 x < 226 y").replace("PASSIVE", PASSIVE);
        sim.hear(&format!("{before} {script}"));
        assert_eq!(sim.transfers(), expected.trim_start(), "{script}");
    }
}

#[test]
fn each_transfer_is_reported_once_with_its_reply() {
    assert_transfers(
        PORT,
        r"
        > RETR a < 150 here < 226 done => RETR a 226
        > STOR a b.txt < 150 here < 451 disk full => STOR 'a b.txt' 451
        > LIST < 150 here < 226 done > NLST *.c < 550 none => LIST  226, NLST *.c 550
        > RETR a < 425 cannot connect > RETR a DONE => RETR a 425, RETR a 226
        > RETR a < 150 here > NOOP < 200 ok =>
        > RETR a > NOOP < 200 ok > STAT < 211 busy > PWD < 257 x =>
        > RETR a < 150 x > NOOP < 200 ok > STAT < 211 busy > PWD < 257 x > NOOP < 226 done < 200 ok => RETR a 226
        > STOR a < 200 stored => STOR a unseen
        > RETR a > RETR b DONE DONE => RETR a 226, RETR b 226
        > RETR a\u{1b}[2J DONE => RETR a\u{1b}[2J 226
        "
        .replace('\'', "\"")
        .as_str(),
    );
}

#[test]
fn pipelined_transfers_have_their_own_names_or_none() {
    let commands = |verb: &str, count: usize| -> String {
        (0..count).map(|number| format!("{verb} f{number} > ")).collect()
    };
    let mut sim = logged_in();
    sim.hear(&format!("{PORT} > {}NOOP", commands("RETR", 6)));
    sim.hear(&"< 550 no ".repeat(5));
    let named = "RETR f0 550, RETR f1 550, RETR f2 550, RETR f3 550";
    assert_eq!(sim.transfers(), format!("{named}, RETR ? 550"));
    // Nobody knows the name of the sixth one, and that of the next one is known again once it is answered.
    sim.hear("> STOR g < 550 no < 200 ok < 150 x < 226 y > STOR h < 150 x < 226 y");
    assert_eq!(sim.transfers(), "RETR ? 550, STOR ? 226, STOR h 226");
    // Of those that are counted only, there is no event.
    let mut sim = logged_in();
    sim.hear(&format!("{PORT} > {}NOOP", commands("RETR", 70)));
    sim.hear(&"< 550 no ".repeat(70));
    assert_eq!(sim.transfers(), format!("{named}{}", ", RETR ? 550".repeat(60)));
    sim.hear("< 200 ok > STOR h < 150 x < 226 y");
    assert_eq!(sim.transfers(), "STOR h 226");
}

/// Some servers answer a line that is no command, or other commands meanwhile, and refuse them. Others send two files over
/// one connection, or a reply too many: then nothing says when replies are one behind no more, but a login.
#[test]
fn the_reply_to_another_line_ends_no_transfer() {
    let table = r"
        >  > RETR a < 500 what DONE PASSIVE > RETR b DONE => RETR a unseen, RETR b 226
        >  > RETR a DONE PASSIVE > RETR b DONE => RETR ? 226, RETR b 226
        > LONG > RETR a < 500 what < 500 what DONE PASSIVE > RETR b DONE => RETR a unseen, RETR b 226
        > \0\r > RETR a < 500 what DONE PASSIVE > RETR b DONE => RETR a unseen, RETR b 226
        >  > RETR a > RETR b < 500 what DONE DONE => RETR a unseen, RETR ? 226
        > CWD /a < 250 x >  > CWD /b < 500 what < 250 y PASSIVE > RETR c DONE > CWD /a < 250 x > RETR d DONE => RETR c 226, RETR /a/d 226
        > PASV >  PASSIVE > RETR a < 500 what < 227 x (198,51,100,90,14,178) DONE PASSIVE > RETR b DONE => RETR a unseen, RETR b 226
        ";
    assert_transfers(PASSIVE, &table.replace("LONG", &format!("X{}", "y".repeat(1100))));
    assert_transfers(
        PORT,
        r"
        > RETR a < 150 x > CWD b < 550 no < 226 y => RETR a unseen
        > RETR a < 150 x > CWD b < 250 ok > ABOR < 426 y < 226 z => RETR a unseen
        > RETR a < 150 x > USER ann < 331 p < 226 y => RETR a unseen
        > RETR a < 150 x > ABOR < 426 y < 226 z => RETR a 426
        > RETR a < 150 x > ABOR < 425 y < 226 z => RETR a 425
        > RETR a < 150 x > CWD b < 226 y < 550 no => RETR a 226
        > RETR a > CWD b < 550 no < 250 ok => RETR a 550
        > RETR a < 150 x < 550 no => RETR a 550
        > PORT 192,168,150,80,14,178 > RETR a < 550 no < 200 ok => RETR a unseen
        > PORT 192,168,150,80,14,178 > RETR a < 150 x < 200 ok < 226 y => RETR a unseen
        > RETR a > RETR b > RETR c < 125 x < 550 no < 125 x < 226 y < 226 z => RETR a unseen, RETR ? 226, RETR ? 226
        > RETR a < 150 x PASSIVE > RETR b < 226 y < 150 x < 426 no => RETR a unseen, RETR b unseen
        > RETR a < 150 x > PASS x < 230 in > RETR b < 226 y < 150 x < 426 no => RETR a unseen, RETR b unseen
        > RETR a > RETR b < 125 x < 125 x < 226 y => RETR ? 226
        > RETR a > RETR b > RETR c < 150 x < 426 y < 226 again DONE DONE > RETR d DONE > USER joe < 331 p > PASS x < 230 in > RETR e DONE => RETR a 426, RETR ? 226, RETR ? 226, RETR ? 226, RETR e 226
        ",
    );
}

#[test]
fn a_directory_that_is_renamed_is_not_known() {
    for (from, path) in
        [("/a/b", "c"), ("/A", "c"), ("../b", "c"), ("x", "/a/b/c"), ("/a/bc", "/a/b/c")]
    {
        let renamed = format!("> CWD /a/b < 250 x > RNFR {from} < 350 x > RNTO /z < 250 y {PORT}");
        assert_transfers(&renamed, &format!("> RETR c DONE => RETR {path} 226"));
    }
}

#[test]
fn a_user_is_named_whose_login_is_certain() {
    for (script, user) in [
        // vsftpd says so to any password, and the session stays that of the earlier user.
        (
            "> USER joe < 331 p > PASS x < 230 in > USER ann < 530 no > PASS x < 230 Already logged in.",
            Some("joe"),
        ),
        ("> USER ann > PASS x < 331 p < 230 in", Some("ann")),
        ("> USER joe < 331 p > PASS x > USER ann < 230 in", None),
        ("> USER joe > USER ann < 331 p < 331 p > PASS x < 230 in", None),
        ("> USER joe < 331 p > PASS x > USER ann < 230 in < 331 p > PASS y < 230 in", None),
        ("> USER joe < 331 p > USER ann < 331 p > PASS x < 230 in", Some("ann")),
        ("> USER joe < 230 in >  > USER ann < 500 what < 331 p > PASS x < 230 in", None),
    ] {
        let mut sim = Sim::new(with(Nat::Routed));
        sim.hear(&format!("< 220 ready {script} {PORT} > RETR a < 150 x < 226 y"));
        let users: Vec<_> = sim.transfers_of_users().into_iter().map(|(user, _)| user).collect();
        assert_eq!(users, [user.map(str::to_owned)], "{script}");
    }
}

#[test]
fn paths_are_absolute_if_the_directory_is_known() {
    // What is above may be elsewhere, behind a symbolic link. Pure-FTPd does not double quotes.
    for row in cases(
        r#"
        > PWD < 257 "/home/joe" is it => /home/joe/f
        > CWD /pub < 250 ok => /pub/f
        > PWD < 257 "/" > CWD pub < 250 ok > CWD in < 550 no => /pub/f
        > CWD /pub/in < 250 ok > CDUP < 200 ok => f
        > CWD /pub/in < 250 ok > CWD ../x < 250 ok => f
        > CWD /pub/in < 250 ok > CDUP < 200 ok > PWD < 257 "/pub" => /pub/f
        > CWD pub < 250 ok => f
        > CWD /pub < 250 ok > CWD a > CWD b < 250 ok < 250 ok => f
        > CWD a > CWD /pub < 250 ok < 550 no => f
        > CWD /pub < 250 ok > CWD a > CWD /x < 550 no < 550 no => f
        > CWD a > CWD /pub < 250 ok < 250 ok > PWD < 257 "/pub" => /pub/f
        > NOOP > CWD /x < 200 ok < 550 no > PWD < 257 "/y" => /y/f
        > CWD /pub < 250 ok > CWD ~ < 250 ok => f
        > CWD /pub < 250 ok > CWD ~joe/x < 550 no => /pub/f
        > CWD /pub < 250 ok > PWD < 257 "/pub/a"b" is it => f
        > CWD /pub < 250 ok > USER x < 331 p > PASS y < 230 in => f
        "#,
    ) {
        let (script, path) = row.split_once(" => ").unwrap();
        assert_transfers(script, &format!("{PORT} > RETR f DONE => RETR {path} 226"));
    }
}

/// RFC 1123, section 4.1.2.9; also if it has a proposal for the name.
#[test]
fn the_server_names_the_file_of_a_stou() {
    assert_transfers(
        &format!("> CWD /pub < 250 ok {PORT}"),
        "
        > STOU < 150 FILE: stou.8XnLbw < 226 y => STOU /pub/stou.8XnLbw 226
        > STOU q3 < 150 FILE: q3.1 < 226 y => STOU /pub/q3.1 226
        > STOU q3 < 150 FILE: /in/q3.1 < 226 y => STOU /in/q3.1 226
        > STOU < 150 Ok to send data. < 226 y => STOU /pub 226
        > STOR q3 < 150 FILE: other < 226 y => STOR /pub/q3 226
        > STOR /etc/../x < 550 no => STOR /etc/../x 550
        ",
    );
}

/// A connection through the first pinhole may be that of the transfer, if the server still listens there.
#[test]
fn what_is_announced_again_was_announced_before() {
    const AGAIN: &str = "> PORT 192,168,150,80,14,178 < 200 ok > RETR a < 150 x < 226 y";
    for (before, is_same) in [
        (PORT, true),
        ("> PORT 192,168,150,80,14,178 < 200 ok > RETR b < 550 none", true),
        ("> PORT 192,168,150,80,14,179 < 200 ok", false),
        (AGAIN, false),
    ] {
        let mut sim = logged_in();
        sim.hear(before);
        sim.wait(10);
        let again = sim.clock();
        sim.hear(AGAIN);
        let announced = sim.transfers_of_users().pop().unwrap().1.announced.unwrap();
        assert_eq!(announced < again, is_same, "{before}");
    }
}

/// Also over a restart.
#[test]
fn a_transfer_has_its_user_pinhole_and_time() {
    for restarts in [false, true] {
        let mut sim = logged_in();
        sim.hear(&format!("> CWD /pub < 250 ok {PORT} > RETR a < 150 here"));
        if restarts {
            sim.crash();
        }
        sim.wait(1500);
        sim.hear("< 226 done");
        let transfers = sim.transfers_of_users();
        let [(user, transfer)] = &transfers[..] else { panic!("{transfers:?}") };
        assert_eq!((user.as_deref(), &*in_short(transfer)), (Some("joe"), "RETR /pub/a 226"));
        assert_eq!((transfer.has_started, transfer.duration.as_secs()), (true, 1500));
        let (kind, pinhole) = transfer.announcement.unwrap();
        assert_eq!(kind, AnnouncementKind::Port);
        assert_eq!(pinhole.target, "192.168.150.80:3762".parse().unwrap());
    }
}

#[test]
fn a_refused_login_has_its_user_and_code() {
    for row in cases(
        "
        > USER joe < 331 p > PASS x < 530 no => joe: 530
        > USER joe < 530 no => joe: 530
        > USER joe < 331 p > USER ann < 332 a > ACCT x < 532 no => ann: 532
        > PASS x < 503 first => 503
        > NOOP < 530 no =>
        > USER joe < 331 p > PASS x < 230 in > USER ann < 331 p > PASS y < 530 no => ann: 530
        ",
    ) {
        let (script, expected) = row.split_once(" =>").unwrap();
        let mut sim = Sim::after(with(Nat::Routed), &format!("< 220 ready {script}"));
        let said = sim.lines("login-refused").concat();
        assert_eq!(said.trim_start_matches("login refused:"), expected, "{script}");
        let count = sim.engine().counters().logins_refused;
        assert_eq!(count, u64::from(!expected.is_empty()), "{script}");
    }
}

#[test]
fn the_details_of_a_session_are_what_is_known_now() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let details = |sim: &mut Sim| sim.engine().sessions.details(1).unwrap();
    let before = details(&mut sim);
    let is_encrypted = before.is_encrypted;
    assert_eq!((before.directory, is_encrypted, before.offsets), (None, Some(false), [0; 2]));
    assert_eq!((before.info.user.as_deref(), before.info.transfer), (Some("joe"), None));
    sim.hear(&format!("> CWD /pub < 250 ok {PORT} > RETR a"));
    let requested = details(&mut sim);
    assert_eq!(requested.directory.as_deref(), Some("/pub"));
    assert_eq!(requested.offsets, [-2, 0], "198,51,100,1 instead of 192,168,150,80");
    let transfer = requested.info.transfer.unwrap();
    assert_eq!((&*transfer.path, transfer.has_started), ("/pub/a", false));
    assert_eq!(requested.info.data_connection, None);
    sim.play("< 150 here");
    let begun = details(&mut sim).info;
    let (kind, pinhole) = begun.data_connection.unwrap();
    assert_eq!((kind, pinhole.target.port()), (AnnouncementKind::Port, 3762));
    let running = |sim: &mut Sim| sim.engine().sessions.list_running().count();
    assert_eq!((running(&mut sim), begun.ended_transfers), (1, 0));
    sim.play("< 226 done");
    let ended = details(&mut sim).info;
    assert_eq!((ended.transfer, ended.data_connection, ended.ended_transfers), (None, None, 1));
    assert_eq!((running(&mut sim), sim.engine().counters().sessions_started), (0, 1));
    assert_eq!((sim.engine().sessions.count_open(), sim.engine().sessions.details(2)), (1, None));
    sim.close_both();
    sim.settle();
    assert_eq!((sim.engine().sessions.details(1), sim.engine().sessions.count_open()), (None, 0));
}

/// A client that pipelines thousands of them.
#[test]
fn few_pending_transfers_are_stored() {
    let mut sim = logged_in();
    sim.hear(&"> RETR x ".repeat(100));
    sim.hear("< 550 no");
    assert_eq!(sim.transfers_of_users().len(), 1);
    let memory = sim.engine().sessions.memory();
    assert!(memory < 16 * 1024, "{memory}");
}

/// Once, also if the daemon restarts meanwhile.
#[test]
fn a_session_is_reported_from_its_login_to_its_end() {
    for restarts in [false, true] {
        let mut sim = logged_in();
        assert_eq!(sim.lines("session-"), ["session started"]);
        sim.wait(100);
        if restarts {
            sim.crash();
        }
        sim.hear("> USER bob < 331 p > PASS y < 230 in > LIST < 150 x < 226 y > NOOP < 200 ok");
        assert_eq!(sim.lines("session-"), [""; 0]);
        sim.hear(&format!("{PORT} > RETR a < 150 here"));
        sim.close_both();
        sim.settle();
        let [ended] = &sim.lines("session-")[..] else { panic!() };
        assert!(ended.starts_with("session ended after 10"), "{ended}");
        assert!(ended.ends_with(" s: closed, user bob, 2 transfers"), "{ended}");
        sim.wait(3600);
        assert_eq!(sim.lines("session-"), [""; 0]);
    }
}

#[test]
fn a_session_without_a_login_is_not_reported() {
    let script = "< 220 ready > RETR a < 530 log in > USER joe < 331 go on > RETR a < 503 no";
    let mut sim = Sim::after(with(Nat::Routed), script);
    assert_eq!(sim.transfers(), "");
    sim.hear("> PASS x < 530 no");
    sim.close_both();
    sim.wait(3600);
    assert_eq!(sim.lines("session-"), [""; 0]);
}

/// And ends its transfer, whether that has begun or not. `budget` has the end at a limit.
#[test]
fn each_end_of_a_session_has_its_word() {
    let ends: [(_, _, fn(&mut Sim)); 4] = [
        ("closed", TransferEnd::SessionEnded, Sim::close_both),
        ("expired", TransferEnd::Unseen, |sim| sim.advance(Duration::from_secs(432_001))),
        ("reset", TransferEnd::SessionReset, |sim| sim.reset(Client)),
        ("replaced", TransferEnd::Unseen, Sim::forget),
    ];
    for (word, expected, end_session) in ends {
        for begun in ["", "< 150 here"] {
            let mut sim = logged_in();
            sim.hear(&format!("{PORT} > RETR a {begun}"));
            end_session(&mut sim);
            sim.wait(1);
            let events = sim.take_events();
            let ended = events.iter().filter_map(|event| event.kind.ended_transfer());
            assert!(ended.map(|transfer| transfer.end).eq([expected]), "{word}");
            let text = format!(" s: {word}, user joe, 1 transfer");
            assert!(events.iter().any(|event| event.to_string().ends_with(&text)), "{events:?}");
        }
    }
}

/// The reply was not read, and the client acknowledges it.
#[test]
fn a_transfer_that_ended_unseen_is_reported() {
    let mut sim = logged_in();
    sim.hear(&format!("{PORT} > RETR a < 150 here"));
    let next = sim.next_segment(Client, b"NOOP\r\n");
    sim.forge(Client, &Segment { ack: next.ack + 12, ..next });
    assert_eq!(sim.transfers(), "RETR a unseen");
}

#[test]
fn a_pending_transfer_is_examined_once() {
    let mut sim = logged_in();
    sim.hear(&format!("{PORT} > RETR a < 150 x < 226 y {PORT} > STOR b"));
    let mut waiting = |script: &str, seconds| {
        sim.hear(script);
        sim.wait(seconds);
        let events = sim.take_events();
        let is_meant = |event: &&Event| matches!(event.kind, EventKind::TransferWaiting(_));
        events.iter().filter(is_meant).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(waiting("", 9), [""; 0]);
    let [one] = &waiting("", 1)[..] else { panic!() };
    assert!(one.ends_with("STOR b has waited 10.1 s for its data connection"), "{one}");
    assert_eq!(waiting("", 100), [""; 0]);
    assert_eq!(waiting("< 425 no data connection > STOR c < 425 no", 100), [""; 0]);
}

/// pyftpdlib connects before it answers a `PORT`, and some verbs are no transfers for us. The host knows what became of
/// the data connection.
#[test]
fn a_pinhole_without_a_transfer_is_reported() {
    let other = "> PORT 192,168,150,80,14,179 < 200 ok";
    let xretr = "> XRETR a < 150 x < 226 y";
    for (script, seconds, expected) in [
        ("> PORT 192,168,150,80,14,178", 11, &["no-data-connection"][..]),
        ("> PORT 192,168,150,80,14,178 < 425 no", 0, &["pinhole-closed"]),
        (&format!("{PORT} {xretr} {other}"), 0, &["pinhole-closed"]),
        (&format!("{PORT} {xretr}"), 31, &["no-data-connection", "pinhole-expired"]),
        (&format!("{PORT} > RETR a < 150 x < 226 y {other} > RETR a < 150 x"), 11, &[]),
        // Also one that the server has not answered when the session ends, however that ends.
        ("> PORT 192,168,150,80,14,178", 100, &["no-data-connection", "pinhole-expired"]),
        ("> PORT 192,168,150,80,14,178 FIN", 0, &["pinhole-closed"]),
    ] {
        let mut sim = logged_in();
        sim.hear(script.trim_end_matches(" FIN"));
        if script.ends_with("FIN") {
            sim.close_both();
            sim.settle();
        }
        sim.wait(seconds);
        let events = sim.take_events();
        let names = events.iter().map(|event| event.kind.name());
        let is_meant = |name: &&str| name.starts_with("pinhole-") || *name == "no-data-connection";
        assert_eq!(names.filter(is_meant).collect::<Vec<_>>(), expected, "{script}");
    }
}
