//! How the dialogue reacts to sequences of lines.

use super::*;

fn said(dialogue: &mut Dialogue, line: &str) -> CommandEffect {
    let text = Text::new(line.as_bytes());
    dialogue.client_line(Command::parse(&text).as_ref())
}

fn answered(dialogue: &mut Dialogue, line: &str) -> ReplyEffect {
    dialogue.server_line(&Text::new(line.as_bytes()))
}

fn logged_in() -> Dialogue {
    let mut dialogue = Dialogue::default();
    answered(&mut dialogue, "220 ready");
    said(&mut dialogue, "USER x");
    answered(&mut dialogue, "331 password");
    said(&mut dialogue, "PASS x");
    assert_eq!(answered(&mut dialogue, "230 in"), ReplyEffect::Notable(DialogueEvent::LoggedIn));
    dialogue
}

#[test]
fn the_server_greets_first_and_the_client_answers_with_ftp() {
    let mut early = Dialogue::default();
    said(&mut early, "USER x");
    assert_eq!(early.phase(), Phase::ClientFirst);
    assert_eq!(answered(&mut early.clone(), "HTTP/1.1 200 OK"), ReplyEffect::NotFtp);
    assert_eq!(answered(&mut early.clone(), "331 x"), ReplyEffect::NotFtp);
    assert_eq!(answered(&mut early, "220 ready"), ReplyEffect::Nothing);
    assert_eq!(early.phase(), Phase::NotFtp);
    assert_eq!(answered(&mut Dialogue::default(), "SSH-2.0-x"), ReplyEffect::NotFtp);
    let mut dialogue = Dialogue::default();
    for line in ["120 soon", "220-hello", "any text", "220 ready"] {
        assert_eq!(answered(&mut dialogue, line), ReplyEffect::Nothing);
    }
    assert_eq!(dialogue.phase(), Phase::Greeted);
    for line in ["POST / HTTP/1.1", "USER / HTTP/1.1", "PASS / HTTP/1.1", "Host: x", ""] {
        let mut other = dialogue.clone();
        said(&mut other, line);
        assert_eq!(other.phase(), Phase::NotFtp, "{line}");
    }
    assert_eq!(said(&mut dialogue, "USER x"), CommandEffect::Nothing);
    assert_eq!(said(&mut dialogue, "WHAT"), CommandEffect::Nothing);
    assert_eq!(said(&mut dialogue, "PASS a: b HTTP/1.1"), CommandEffect::Nothing);
    assert_eq!(dialogue.phase(), Phase::Verified);
    said(&mut dialogue, "Host: x");
    assert_eq!(dialogue.phase(), Phase::NotFtp);
}

#[test]
fn a_login_needs_its_reply() {
    let mut dialogue = Dialogue::default();
    answered(&mut dialogue, "220 ready");
    assert_eq!(answered(&mut dialogue, "230 in"), ReplyEffect::Nothing);
    said(&mut dialogue, "USER x");
    answered(&mut dialogue, "331 password");
    assert!(!dialogue.is_logged_in());
    assert!(logged_in().is_logged_in());
}

#[test]
fn a_login_ends_when_another_begins() {
    for line in ["USER y", "REIN"] {
        let mut dialogue = logged_in();
        said(&mut dialogue, line);
        assert!(!dialogue.is_logged_in(), "before it is answered");
        answered(&mut dialogue, "530 no");
        assert!(!dialogue.is_logged_in(), "whatever is answered");
    }
    // A 230 that is still on its way belongs to the earlier login.
    for line in ["USER y", "REIN"] {
        let mut dialogue = logged_in();
        for line in ["USER x", "PASS x", line] {
            said(&mut dialogue, line);
        }
        answered(&mut dialogue, "331 password");
        assert_eq!(answered(&mut dialogue, "230 in"), ReplyEffect::Nothing);
        assert!(!dialogue.is_logged_in());
    }
    let mut dialogue = logged_in();
    said(&mut dialogue, "USER y");
    assert_eq!(answered(&mut dialogue, "230 in"), ReplyEffect::Notable(DialogueEvent::LoggedIn));
    said(&mut dialogue, "USER y");
    said(&mut dialogue, "PASS y");
    answered(&mut dialogue, "331 password");
    assert_eq!(answered(&mut dialogue, "332 account"), ReplyEffect::Nothing);
    said(&mut dialogue, "ACCT y");
    assert_eq!(answered(&mut dialogue, "230 in"), ReplyEffect::Notable(DialogueEvent::LoggedIn));
}

#[test]
fn nothing_opens_while_the_ends_may_not_agree() {
    let mut dialogue = logged_in();
    dialogue.server_line_ended(LineEnd::Odd);
    said(&mut dialogue, "NOOP");
    assert!(dialogue.blocked_because(false).is_some());
    dialogue.server_line_ended(LineEnd::Plain);
    answered(&mut dialogue, "200 ok");
    assert!(dialogue.blocked_because(false).is_some(), "the server may have more to say");
    dialogue.settled();
    assert_eq!(dialogue.blocked_because(false), None);
    said(&mut dialogue, "STAT"); // names no file
    assert_eq!(dialogue.blocked_because(false), None);
    said(&mut dialogue, "STAT x");
    for line in ["211 x", "213-x", "213 End", "229 (|||3306|)"] {
        assert!(dialogue.blocked_because(false).is_some(), "{line}");
        dialogue.server_line_ended(LineEnd::Plain);
        answered(&mut dialogue, line);
    }
    dialogue.settled();
    assert_eq!(dialogue.blocked_because(false), None);
    // Not a reply; perhaps part of a listing.
    dialogue.server_line_ended(LineEnd::Plain);
    answered(&mut dialogue, "-rw-r--r-- x");
    dialogue.settled();
    assert!(dialogue.blocked_because(false).is_some());
}

#[test]
fn feat_alone_may_precede_the_greeting() {
    let mut dialogue = Dialogue::default();
    said(&mut dialogue, "FEAT");
    assert!(dialogue.blocked_because(true).is_some() && dialogue.blocked_because(false).is_some());
    let mut other = dialogue.clone();
    assert_eq!(answered(&mut other, "200 OK"), ReplyEffect::NotFtp);
    for line in ["USER x", "FEAT", "Host: x"] {
        let mut other = dialogue.clone();
        said(&mut other, line);
        answered(&mut other, "220 ready");
        assert_eq!(other.phase(), Phase::NotFtp, "{line}");
    }
    for line in ["120 soon", "220-hello", "220 ready"] {
        assert_eq!(answered(&mut dialogue, line), ReplyEffect::Nothing);
    }
    assert_eq!((dialogue.phase(), dialogue.has_pending_commands()), (Phase::Verified, true));
    for line in ["FEAT x", "FEATURE", "FEAT / HTTP/1.1"] {
        let mut other = Dialogue::default();
        said(&mut other, line);
        assert_eq!(other.phase(), Phase::ClientFirst, "{line}");
    }
}

#[test]
fn a_name_with_line_ends_is_remembered() {
    let mut dialogue = logged_in();
    dialogue.client_line_ended(LineEnd::Odd);
    said(&mut dialogue, "CWD x");
    let settles = |dialogue: &mut Dialogue, line| {
        dialogue.server_line_ended(LineEnd::Plain);
        answered(dialogue, line);
        dialogue.settled();
        assert!(dialogue.blocked_because(false).is_none(), "{line}");
    };
    settles(&mut dialogue, "250 ok");
    said(&mut dialogue, "PASV");
    assert_eq!(dialogue.blocked_because(false), None);
    settles(&mut dialogue, "227 x");
    // Any other command may be answered with the name.
    said(&mut dialogue, "CDUP");
    said(&mut dialogue, "PASV");
    dialogue.server_line_ended(LineEnd::Plain);
    answered(&mut dialogue, "250 in x");
    dialogue.settled();
    assert!(dialogue.blocked_because(false).is_some());
    settles(&mut dialogue, "227 x");
}

#[test]
fn a_257_that_ends_within_its_name_is_doubted() {
    for (line, is_whole) in
        [(r#"257 "/a""b" made"#, true), (r#"257 "/a"#, false), (r#"257 "/a"""#, false)]
    {
        let mut dialogue = logged_in();
        said(&mut dialogue, "PWD");
        said(&mut dialogue, "PASV");
        dialogue.server_line_ended(LineEnd::Plain);
        answered(&mut dialogue, line);
        assert_eq!(dialogue.blocked_because(false).is_none(), is_whole, "{line}");
    }
}

#[test]
fn a_227_counts_only_as_an_answer() {
    let mut dialogue = logged_in();
    assert_eq!(answered(&mut dialogue, "227 x"), ReplyEffect::Passive { asked: false });
    said(&mut dialogue, "ABOR"); // answered once although we expect as many replies as commands
    said(&mut dialogue, "EPSV");
    assert_eq!(answered(&mut dialogue, "227 x"), ReplyEffect::Passive { asked: true });
    assert!(!dialogue.awaits_passive());
}

#[test]
fn a_refused_announcement_is_noticed_in_a_pipeline() {
    let mut dialogue = logged_in();
    said(&mut dialogue, "TYPE I");
    assert_eq!(said(&mut dialogue, "PORT 1,2,3,4,5,6"), CommandEffect::Announces);
    dialogue.announced(true);
    said(&mut dialogue, "LIST");
    assert_eq!(answered(&mut dialogue, "200 ok"), ReplyEffect::Nothing);
    assert_eq!(
        answered(&mut dialogue, "500 no"),
        ReplyEffect::Notable(DialogueEvent::AnnouncementRefused)
    );
    assert_eq!(
        answered(&mut dialogue, "150 here"),
        ReplyEffect::Notable(DialogueEvent::TransferStarted)
    );
    assert_eq!(
        answered(&mut dialogue, "226 done"),
        ReplyEffect::Notable(DialogueEvent::TransferEnded { completed: true })
    );
}

#[test]
fn epsv_all_counts_once_accepted() {
    let mut dialogue = logged_in();
    said(&mut dialogue, "EPSV ALL");
    assert!(!dialogue.is_epsv_only());
    answered(&mut dialogue, "200 ok");
    assert!(dialogue.is_epsv_only());
}

#[test]
fn encryption_needs_a_234_to_an_auth() {
    let mut dialogue = logged_in();
    assert_eq!(answered(&mut dialogue, "234 x"), ReplyEffect::Nothing);
    assert_eq!(said(&mut dialogue, "AUTH TLS"), CommandEffect::Auth);
    dialogue.auth();
    let mut refused = dialogue.clone();
    assert_eq!(answered(&mut refused, "534 no"), ReplyEffect::Nothing);
    assert!(refused.is_logged_in());
    assert_eq!(answered(&mut dialogue, "234 go"), ReplyEffect::Encrypted);
    assert!(!dialogue.is_logged_in());
    for session in [false, true] {
        let mut plain = dialogue.clone();
        plain.resume(session);
        assert_eq!(plain.is_logged_in(), session);
    }
    assert_eq!(said(&mut refused, "AUTH GSSAPI"), CommandEffect::Auth);
    refused.auth();
    assert_eq!(answered(&mut refused, "334 go on"), ReplyEffect::Nothing);
    assert!(!refused.is_logged_in());
}

#[test]
fn unanswered_commands_are_bounded() {
    let mut dialogue = logged_in();
    for _ in 0..100 {
        said(&mut dialogue, "NOOP");
        said(&mut dialogue, "PASV");
    }
    assert_eq!(dialogue.awaited.len(), MAX_RUNS);
    assert!(dialogue.has_forgotten() && !dialogue.has_forgotten());
}

#[test]
fn commands_of_one_kind_are_not_many() {
    let mut dialogue = logged_in();
    for _ in 0..1000 {
        said(&mut dialogue, "SIZE x");
    }
    assert_eq!(said(&mut dialogue, "PORT 1,2,3,4,5,6"), CommandEffect::Announces);
    dialogue.announced(true);
    assert!(!dialogue.has_forgotten());
    for _ in 0..1000 {
        assert_eq!(answered(&mut dialogue, "550 no"), ReplyEffect::Nothing);
    }
    assert_eq!(
        answered(&mut dialogue, "500 no"),
        ReplyEffect::Notable(DialogueEvent::AnnouncementRefused)
    );
}

#[test]
fn a_reply_to_a_forgotten_command_means_nothing_and_later_ones_are_told_apart() {
    let mut dialogue = logged_in();
    for _ in 0..50 {
        said(&mut dialogue, "PASV");
        said(&mut dialogue, "AUTH TLS");
        dialogue.auth();
    }
    let forgotten = 100 - (MAX_RUNS as u32 - 1);
    for number in 0..forgotten {
        let line = if number % 2 == 0 { "227 x" } else { "234 x" };
        let meaning = answered(&mut dialogue, line);
        assert!(matches!(meaning, ReplyEffect::Nothing | ReplyEffect::Passive { asked: false }));
    }
    assert_eq!(forgotten % 2, 1, "the next is an AUTH");
    assert_eq!(answered(&mut dialogue, "534 no"), ReplyEffect::Nothing);
    assert_eq!(answered(&mut dialogue, "227 x"), ReplyEffect::Passive { asked: true });
    assert_eq!(answered(&mut dialogue, "234 go"), ReplyEffect::Encrypted);
}
