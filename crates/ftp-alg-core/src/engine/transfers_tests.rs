//! Which transfers are reported, and how they ended.

use super::*;
use crate::engine::{
    OmittedEvents,
    events::{Events, MAX_EVENTS},
};
use crate::script::cases;

const PORT: &str = "> PORT 192,168,150,80,14,178 < 200 ok";

impl Conversation {
    /// The transfers that were reported since the last call, with their users.
    fn transfers_of_users(&mut self) -> Vec<(Option<String>, Transfer)> {
        let (events, _) = self.gateway.take_events();
        let transfer = |event: Event| match event.kind {
            EventKind::Transfer(transfer) => {
                Some((event.user.as_deref().map(str::to_owned), *transfer))
            }
            _ => None,
        };
        events.into_iter().filter_map(transfer).collect()
    }

    fn transfers(&mut self) -> Vec<Transfer> {
        self.transfers_of_users().into_iter().map(|(_, transfer)| transfer).collect()
    }
}

/// Verb, path (`?` if that is uncertain) and last reply code, as the control connection says them.
fn in_short(transfer: &Transfer) -> String {
    let path = transfer.path.as_deref().unwrap_or("?");
    let end = match transfer.end {
        TransferEnd::Unseen => "unseen".to_owned(),
        _ => transfer.code().unwrap_or(0).to_string(),
    };
    let says_why = transfer.uncertain.is_some();
    assert!(end == "unseen" || says_why == (path == "?"), "{transfer:?}");
    format!("{} {} {end}", transfer.verb.name(), crate::ftp::NameInText::Path(path))
}

fn shorts(talk: &mut Conversation) -> String {
    talk.transfers().iter().map(in_short).collect::<Vec<_>>().join(", ")
}

/// Each row has a dialogue, and the transfers that are reported of it.
#[track_caller]
fn assert_transfers(before: &str, table: &str) {
    for row in cases(table) {
        let (script, expected) = row.split_once(" =>").unwrap();
        let mut talk = Conversation::logged_in();
        let script = script.replace("DONE", "< 150 x < 226 y").replace("PASSIVE", PASSIVE);
        talk.play(&format!("{before} {script}"));
        assert_eq!(shorts(&mut talk), expected.trim_start(), "{script}");
    }
}

const PASSIVE: &str = "> PASV < 227 x (198,51,100,90,14,178)";

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
        let mut talk = Conversation::logged_in();
        let first = talk.now;
        talk.play(before);
        talk.now += Duration::from_secs(1);
        talk.play(AGAIN);
        let expected = if is_same { first } else { talk.now };
        assert_eq!(talk.transfers().last().unwrap().announced, Some(expected), "{before}");
    }
}

#[test]
fn pipelined_transfers_have_their_own_names_or_none() {
    let commands = |verb: &str, count: usize| -> String {
        (0..count).map(|number| format!("{verb} f{number} > ")).collect()
    };
    let mut talk = Conversation::logged_in();
    talk.play(&format!("{PORT} > {}NOOP", commands("RETR", 6)));
    talk.play(&"< 550 no ".repeat(5));
    let named = "RETR f0 550, RETR f1 550, RETR f2 550, RETR f3 550";
    assert_eq!(shorts(&mut talk), format!("{named}, RETR ? 550"));
    // Nobody knows the name of the sixth one, and that of the next one is known again once it is answered.
    talk.play("> STOR g < 550 no < 200 ok < 150 x < 226 y > STOR h < 150 x < 226 y");
    assert_eq!(shorts(&mut talk), "RETR ? 550, STOR ? 226, STOR h 226");
    // Of those that are counted only, there is no event.
    let mut talk = Conversation::logged_in();
    talk.play(&format!("{PORT} > {}NOOP", commands("RETR", 70)));
    talk.play(&"< 550 no ".repeat(70));
    assert_eq!(shorts(&mut talk), format!("{named}{}", ", RETR ? 550".repeat(60)));
    talk.play("< 200 ok > STOR h < 150 x < 226 y");
    assert_eq!(shorts(&mut talk), "STOR h 226");
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
        let mut talk = Conversation::masqueraded();
        talk.play(&format!("< 220 ready {script} {PORT} > RETR a < 150 x < 226 y"));
        let users: Vec<_> = talk.transfers_of_users().into_iter().map(|(user, _)| user).collect();
        assert_eq!(users, [user.map(str::to_owned)], "{script}");
    }
}

#[test]
fn a_transfer_has_its_user_pinhole_and_time() {
    let mut talk = Conversation::logged_in();
    talk.play(&format!("{PORT} > RETR a < 150 here"));
    talk.now += Duration::from_millis(1500);
    talk.play("< 226 done");
    let [(user, transfer)] = &talk.transfers_of_users()[..] else { panic!() };
    assert_eq!(user.as_deref(), Some("joe"));
    assert_eq!((transfer.has_started, transfer.duration), (true, Duration::from_millis(1500)));
    let (kind, pinhole) = transfer.announcement.unwrap();
    assert_eq!(kind, crate::ftp::AnnouncementKind::Port);
    assert_eq!(pinhole.target, "192.168.150.80:3762".parse().unwrap());
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
        let mut talk = Conversation::masqueraded();
        talk.play(&format!("< 220 ready {script}"));
        let (events, _) = talk.gateway.take_events();
        let refused = events.iter().filter(|event| event.kind.name() == "login-refused");
        let lines: Vec<_> = refused.map(ToString::to_string).collect();
        let said = lines.iter().map(|line| line.split_once(": login refused:").unwrap().1);
        assert_eq!(said.collect::<String>(), expected, "{script}");
        let count = talk.gateway.engine.counters().logins_refused;
        assert_eq!(count, u64::from(!expected.is_empty()), "{script}");
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

#[test]
fn activity_survives_a_restart() {
    let mut talk = Conversation::logged_in();
    talk.play(&format!("> CWD /pub < 250 ok {PORT} > RETR a < 150 here"));
    let record = talk.record();
    let (now, before) = (talk.now, talk.transfers());
    talk.gateway.engine = talk.restored(Policy::default(), [&record[..]].into_iter());
    talk.now = now + Duration::from_secs(2);
    talk.play("< 226 done");
    let [(user, transfer)] = &talk.transfers_of_users()[..] else { panic!("{before:?}") };
    assert_eq!(in_short(transfer), "RETR /pub/a 226");
    assert_eq!(user.as_deref(), Some("joe"));
    assert_eq!(transfer.duration, Duration::from_secs(2));
}

#[test]
fn the_details_of_a_session_are_what_is_known_now() {
    let mut talk = Conversation::logged_in();
    let details = |talk: &Conversation| talk.gateway.engine.sessions.details(1).unwrap();
    let before = details(&talk);
    assert_eq!(
        (before.directory, before.is_encrypted, before.offsets),
        (None, Some(false), [0; 2])
    );
    assert_eq!((before.info.user.as_deref(), before.info.transfer), (Some("joe"), None));
    talk.play(&format!("> CWD /pub < 250 ok {PORT} > RETR a"));
    let requested = details(&talk);
    assert_eq!(requested.directory.as_deref(), Some("/pub"));
    assert_eq!(requested.offsets, [-2, 0], "198,51,100,1 instead of 192,168,150,80");
    let transfer = requested.info.transfer.unwrap();
    assert_eq!((&*transfer.path, transfer.has_started), ("/pub/a", false));
    assert_eq!(requested.info.data_connection, None);
    talk.play("< 150 here");
    let (kind, pinhole) = details(&talk).info.data_connection.unwrap();
    assert_eq!(kind, crate::ftp::AnnouncementKind::Port);
    assert_eq!(pinhole.target, "192.168.150.80:3762".parse().unwrap());
    let running = |talk: &Conversation| talk.gateway.engine.sessions.list_running().count();
    assert_eq!((running(&talk), details(&talk).info.ended_transfers), (1, 0));
    talk.play("< 226 done");
    let ended = details(&talk).info;
    assert_eq!((ended.transfer, ended.data_connection, ended.ended_transfers), (None, None, 1));
    assert_eq!(running(&talk), 0);
    assert_eq!(talk.gateway.engine.counters().sessions_started, 1);
    assert_eq!(talk.gateway.engine.sessions.count_open(), 1);
    assert_eq!(talk.gateway.engine.sessions.details(2), None);
    talk.end();
    assert_eq!(talk.gateway.engine.sessions.details(1), None);
    assert_eq!(talk.gateway.engine.sessions.count_open(), 0);
}

/// A client that pipelines thousands of them.
#[test]
fn few_pending_transfers_are_stored() {
    let mut talk = Conversation::logged_in();
    for number in 0..100 {
        talk.say(Side::Client, &format!("RETR {number}\r\n"));
    }
    talk.play("< 550 no");
    assert_eq!(talk.transfers().len(), 1);
    let memory = talk.gateway.engine.sessions.memory();
    assert!(memory < 16 * 1024, "{memory}");
}

impl Conversation {
    /// Lets so many seconds pass without packets.
    fn let_pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.gateway.expire(self.now);
    }

    /// The ends and starts of sessions that were reported since the last call, as the log shows them.
    fn session_events(&mut self) -> Vec<String> {
        let (events, _) = self.gateway.take_events();
        let is_meant = |event: &&Event| event.kind.name().starts_with("session-");
        let text =
            |event: &Event| event.to_string().split(": ").skip(1).collect::<Vec<_>>().join(": ");
        events.iter().filter(is_meant).map(text).collect()
    }
}

#[test]
fn a_session_is_reported_from_its_login_to_its_end() {
    let mut talk = Conversation::logged_in();
    talk.now += Duration::from_millis(1500);
    talk.play("> USER bob < 331 p > PASS y < 230 in > LIST < 150 x < 226 y > NOOP < 200 ok");
    assert_eq!(talk.session_events(), ["session started"]);
    talk.play(&format!("{PORT} > RETR a < 150 here"));
    talk.end();
    let ended = "session ended after 1.5 s: closed, user bob, 2 transfers";
    assert_eq!(talk.session_events(), [ended]);
    talk.end();
    talk.let_pass(3600);
    assert_eq!(talk.session_events(), [""; 0], "it is reported once");
}

#[test]
fn a_session_without_a_login_is_not_reported() {
    let mut talk = Conversation::masqueraded();
    let script = "< 220 ready > RETR a < 530 log in > USER joe < 331 go on > RETR a < 503 no";
    talk.play(script);
    assert_eq!(shorts(&mut talk), "");
    talk.play("> PASS x < 530 no");
    talk.end();
    talk.let_pass(3600);
    assert_eq!(talk.session_events(), [""; 0]);
}

/// And ends its transfer, whether that has begun or not.
#[test]
fn each_end_of_a_session_has_its_word() {
    type EndSession = fn(&mut Conversation);
    let ends: [(&str, TransferEnd, EndSession); 5] = [
        ("closed", TransferEnd::SessionEnded, Conversation::end),
        ("expired", TransferEnd::Unseen, |talk| talk.let_pass(5 * 86_400 + 1)),
        ("reset", TransferEnd::SessionReset, |talk| {
            let rst = talk.rst(Side::Client, [talk.client.port(), 21], talk.next[0]);
            talk.pass(&rst);
        }),
        ("replaced", TransferEnd::Unseen, |talk| {
            let (client, server) = (talk.client, talk.server);
            talk.gateway.run(talk.now, |engine, _| engine.sessions.forget_between(client, server));
        }),
        // At a limit.
        ("reset", TransferEnd::SessionReset, |talk| {
            let now = talk.now;
            talk.gateway.run(now, |engine, kernel| {
                engine.sessions.reset_session(now, 0, "a limit".to_owned(), kernel);
            });
        }),
    ];
    for (word, expected, end_session) in ends {
        for begun in ["", "< 150 here"] {
            let mut talk = Conversation::logged_in();
            talk.play(&format!("{PORT} > RETR a {begun}"));
            end_session(&mut talk);
            let (events, _) = talk.gateway.take_events();
            let ended = events.iter().filter_map(|event| event.kind.ended_transfer());
            assert_eq!(
                ended.map(|transfer| transfer.end).collect::<Vec<_>>(),
                [expected],
                "{word}"
            );
            let text = format!(" s: {word}, user joe, 1 transfer");
            assert!(events.iter().any(|event| event.to_string().ends_with(&text)), "{events:?}");
        }
    }
}

#[test]
fn the_start_of_a_session_is_reported_once_over_a_restart() {
    let mut talk = Conversation::logged_in();
    let record = talk.record();
    assert_eq!(talk.session_events().len(), 1);
    talk.gateway.engine = talk.restored(Policy::default(), [&record[..]].into_iter());
    talk.play("> USER bob < 331 p > PASS y < 230 in");
    assert_eq!(talk.session_events(), [""; 0]);
    talk.end();
    assert_eq!(talk.session_events().len(), 1);
}

#[test]
fn a_transfer_that_ended_unseen_is_reported() {
    let mut talk = Conversation::logged_in();
    talk.play(&format!("{PORT} > RETR a < 150 here"));
    // The reply was not read, and the client acknowledges it.
    let missed = 12;
    talk.next[1] += missed;
    talk.received[0] += missed;
    talk.play("> NOOP");
    assert_eq!(shorts(&mut talk), "RETR a unseen");
}

#[test]
fn a_pending_transfer_is_examined_once() {
    let mut talk = Conversation::logged_in();
    let waiting = |talk: &mut Conversation, seconds| {
        talk.let_pass(seconds);
        let (events, _) = talk.gateway.take_events();
        let is_meant = |event: &&Event| matches!(event.kind, EventKind::TransferWaiting(_));
        events.iter().filter(is_meant).map(ToString::to_string).collect::<Vec<_>>()
    };
    talk.play(&format!("{PORT} > RETR a < 150 x < 226 y {PORT} > STOR b"));
    assert_eq!(waiting(&mut talk, 9), [""; 0]);
    let [one] = &waiting(&mut talk, 1)[..] else { panic!() };
    assert!(one.ends_with("STOR b has waited 10.0 s for its data connection"), "{one}");
    assert_eq!(waiting(&mut talk, 100), [""; 0]);
    talk.play("< 425 no data connection > STOR c < 425 no");
    assert_eq!(waiting(&mut talk, 100), [""; 0]);
}

/// One call of `expire` has no room for the events of all.
#[test]
fn no_end_is_left_out_if_many_sessions_expire_at_once() {
    let mut talk = Conversation::logged_in();
    let count = crate::engine::events::MAX_EVENTS / 2;
    for _ in 0..count {
        talk.play(&format!("{PORT} > RETR a < 150 here"));
        talk = talk.connect_again();
    }
    let (_, before) = talk.gateway.take_events();
    talk.now += Duration::from_secs(6 * 86_400);
    let (mut transfers, mut sessions, mut omitted) = (0, 0, 0);
    for _ in 0..4 {
        talk.gateway.expire(talk.now);
        let (events, more) = talk.gateway.take_events();
        omitted += more;
        transfers += events.iter().filter(|event| event.kind.name() == "transfer").count();
        sessions += events.iter().filter(|event| event.kind.name() == "session-ended").count();
    }
    assert_eq!((transfers, sessions, omitted), (count, count + 1, 0), "{before}");
}

#[test]
fn transfers_for_whose_events_there_is_no_room_are_counted() {
    let mut talk = Conversation::logged_in();
    talk.play(&format!("{PORT} > RETR a < 150 x < 226 y"));
    let (known, _) = talk.gateway.take_events();
    let transfer = known.iter().find(|event| event.kind.name() == "transfer").unwrap();
    let mut events = Events::default();
    let of_session = |session| Event { session, ..transfer.clone() };
    (0..MAX_EVENTS as u64 + 3).for_each(|session| events.push(of_session(session)));
    let (stored, omitted) = events.replace(Vec::new());
    assert_eq!((stored.len(), omitted), (MAX_EVENTS, OmittedEvents { all: 3, ended_transfers: 3 }));
    // A session leaves room for others.
    let mut events = Events::default();
    (0..2 * MAX_EVENTS).for_each(|_| events.push(of_session(1)));
    events.push(of_session(2));
    assert_eq!(events.stored().last().map(|event| event.session), Some(2));
}

/// pyftpdlib connects before it answers a `PORT`, and some verbs are no transfers for us. The host knows what became of the data
/// connection.
#[test]
fn a_pinhole_without_a_transfer_is_reported() {
    const OTHER: &str = "> PORT 192,168,150,80,14,179 < 200 ok";
    for (script, seconds, expected) in [
        ("> PORT 192,168,150,80,14,178", 10, &["no-data-connection"][..]),
        ("> PORT 192,168,150,80,14,178 < 425 no", 0, &["pinhole-closed"]),
        (&format!("{PORT} > XRETR a < 150 x < 226 y {OTHER}"), 0, &["pinhole-closed"]),
        (
            &format!("{PORT} > XRETR a < 150 x < 226 y"),
            31,
            &["no-data-connection", "pinhole-expired"],
        ),
        (&format!("{PORT} > RETR a < 150 x < 226 y {OTHER} > RETR a < 150 x"), 10, &[]),
    ] {
        let mut talk = Conversation::logged_in();
        talk.play(script);
        for _ in 0..seconds {
            talk.let_pass(1);
        }
        let (events, _) = talk.gateway.take_events();
        let names = events.iter().map(|event| event.kind.name());
        let is_meant = |name: &&str| name.starts_with("pinhole-") || *name == "no-data-connection";
        assert_eq!(names.filter(is_meant).collect::<Vec<_>>(), expected, "{script}");
    }
    // Also one that the server has not answered when the session ends, however that ends.
    let ends: [fn(&mut Conversation); 2] =
        [Conversation::end, |talk| talk.let_pass(5 * 86_400 + 1)];
    for end_session in ends {
        let mut talk = Conversation::logged_in();
        talk.play("> PORT 192,168,150,80,14,178");
        end_session(&mut talk);
        let (events, _) = talk.gateway.take_events();
        let closed = events.iter().filter(|event| event.kind.name().starts_with("pinhole-"));
        assert_eq!(closed.count(), 1);
    }
}
