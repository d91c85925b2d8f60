//! How the dialogue reacts to sequences of lines.

use super::*;
use crate::script::{Message, messages};
use crate::session::state::Inspection;

fn said(dialogue: &mut Dialogue, line: &str) -> CommandEffect {
    let text = Text::new(line.as_bytes());
    dialogue.read_command(Command::parse(&text).as_ref())
}

fn answered(dialogue: &mut Dialogue, line: &str) -> ReplyEffect {
    dialogue.read_reply_line(&Text::new(line.as_bytes()))
}

/// Whether inspection ends with this line of the server.
fn ends_inspection(dialogue: &Dialogue, line: &str) -> bool {
    let mut dialogue = dialogue.clone();
    answered(&mut dialogue, line);
    dialogue.state.inspection == Inspection::OtherProtocol
}

/// Reads the lines of a script, and records what they are. Returns the effect of the last reply.
fn read(dialogue: &mut Dialogue, script: &str) -> ReplyEffect {
    let mut effect = ReplyEffect::Nothing;
    for Message { from_client, text, .. } in messages(script) {
        if !from_client {
            effect = answered(dialogue, &text);
            continue;
        }
        match said(dialogue, &text) {
            CommandEffect::Auth => dialogue.record_auth(),
            CommandEffect::Announcement => dialogue.record_announcement(true),
            _ => {}
        }
    }
    effect
}

/// A dialogue that has read a script.
fn after(script: &str) -> Dialogue {
    let mut dialogue = Dialogue::default();
    read(&mut dialogue, script);
    dialogue
}

fn logged_in() -> Dialogue {
    let mut dialogue = after("< 220 ready > USER x < 331 password > PASS x");
    assert_eq!(answered(&mut dialogue, "230 in"), ReplyEffect::Event(DialogueEvent::LoggedIn));
    dialogue
}

/// Reads a line of the server that ended as it should.
fn answered_plainly(dialogue: &mut Dialogue, line: &str) {
    dialogue.record_server_line_end(LineEnd::Plain, &Text::new(b"200 x"));
    answered(dialogue, line);
}

#[test]
fn another_protocol_is_recognised_behind_text() {
    for other in [
        "SSH-2.0-x",
        "HTTP/1.1 200 OK",
        "RTSP/1.0 200 OK",
        "ICAP/1.0 200 OK",
        "+OK POP3",
        "* OK IMAP",
        "RFB 003.008",
        "@RSYNCD: 31.0",
        "\u{16}\u{3}\u{1}",
        "J\0\0\0",
        "-ERR no",
    ] {
        for early in ["", "USER x"] {
            let mut dialogue = Dialogue::default();
            assert!(ends_inspection(&dialogue, other), "{other}");
            assert_eq!(answered(&mut dialogue, "ld.so: warning"), ReplyEffect::Nothing);
            said(&mut dialogue, early);
            assert!(ends_inspection(&dialogue, other), "{other}");
        }
    }
}

#[test]
fn after_text_only_the_reply_to_a_login_shows_ftp() {
    for script in [
        "> USER x < 200 ok",
        "> USER x < 202 ok",
        "> USER x < 250 ok",
        "> USER x < 530 no",
        "> CLNT x < 230 in",
        "> OPTS x < 331 x",
        "> FEAT < 211 end",
        "> AUTH TLS < 200 ok",
        "> USER x < 227 (10,0,0,2,4,1)",
    ] {
        let dialogue = after(&format!("< hello {script}"));
        assert_eq!(dialogue.phase(), Phase::CommandAfterText, "{script}");
        assert!(dialogue.blocked_because(true).is_some());
    }
    for script in [
        "> USER / HTTP/1.1",
        "> PASS x",
        "> WHAT",
        "> Host: x",
        "> PORT 1,2,3,4,5,6",
        "> USER x > Host: x",
    ] {
        assert_eq!(after(&format!("< hello {script}")).phase(), Phase::NotFtp, "{script}");
    }
}

#[test]
fn a_225_or_226_is_a_login_only_before_another() {
    for login in ["225 in", "226 in"] {
        let mut dialogue = after(&format!("< 220 x > USER x < 331 x > PASS x < {login}"));
        assert!(dialogue.is_logged_in(), "{login}");
        // The end of an earlier transfer.
        read(&mut dialogue, &format!("> USER y < {login}"));
        assert!(!dialogue.is_logged_in(), "{login}");
    }
}

#[test]
fn a_login_needs_a_completion_reply() {
    let mut dialogue = after("< 220 ready");
    assert_eq!(answered(&mut dialogue, "230 in"), ReplyEffect::Nothing);
    read(&mut dialogue, "> USER x < 331 password");
    assert!(!dialogue.is_logged_in());
    assert!(logged_in().is_logged_in());
}

/// A 230 that is still on its way belongs to the earlier login.
#[test]
fn a_login_ends_when_another_begins() {
    for line in ["USER y", "REIN"] {
        let mut dialogue = logged_in();
        let script = format!("> USER x > PASS x > {line} < 331 password < 230 in");
        assert_eq!(read(&mut dialogue, &script), ReplyEffect::Nothing);
        assert!(!dialogue.is_logged_in());
    }
}

#[test]
fn nothing_is_opened_while_the_dialogue_is_ambiguous() {
    let mut dialogue = logged_in();
    dialogue.record_server_line_end(LineEnd::Ambiguous, &Text::new(b"200 x"));
    said(&mut dialogue, "NOOP");
    assert!(dialogue.blocked_because(false).is_some());
    answered_plainly(&mut dialogue, "200 ok");
    assert!(dialogue.blocked_because(false).is_some(), "the server may have more to say");
    dialogue.record_pause(false);
    assert_eq!(dialogue.blocked_because(false), None);
    said(&mut dialogue, "STAT"); // names no file
    assert_eq!(dialogue.blocked_because(false), None);
    said(&mut dialogue, "STAT x");
    for line in ["211 x", "213-x", "213 End", "229 (|||3306|)"] {
        assert!(dialogue.blocked_because(false).is_some(), "{line}");
        answered_plainly(&mut dialogue, line);
    }
    dialogue.record_pause(false);
    assert_eq!(dialogue.blocked_because(false), None);
    // Not a reply; perhaps part of a listing.
    answered_plainly(&mut dialogue, "-rw-r--r-- x");
    dialogue.record_pause(false);
    assert!(dialogue.blocked_because(false).is_some());
}

#[test]
fn a_name_with_line_ends_stays_ambiguous() {
    let mut dialogue = logged_in();
    dialogue.record_client_line_end(LineEnd::Ambiguous);
    said(&mut dialogue, "CWD x");
    let settles = |dialogue: &mut Dialogue, line| {
        answered_plainly(dialogue, line);
        dialogue.record_pause(false);
        assert!(dialogue.blocked_because(false).is_none(), "{line}");
    };
    settles(&mut dialogue, "250 ok");
    said(&mut dialogue, "PASV");
    assert_eq!(dialogue.blocked_because(false), None);
    settles(&mut dialogue, "227 x");
    // Any other command may be answered with the name.
    read(&mut dialogue, "> CDUP > PASV");
    answered_plainly(&mut dialogue, "250 in x");
    dialogue.record_pause(false);
    assert!(dialogue.blocked_because(false).is_some());
    settles(&mut dialogue, "227 x");
}

/// Some servers answer a keep-alive while a transfer waits for its data connection, or runs.
#[test]
fn a_success_of_another_command_ends_no_transfer() {
    let ended = ReplyEffect::Event(DialogueEvent::TransferEnded(Reply { code: 226 }));
    let mut dialogue = logged_in();
    for begin in ["> RETR x", "< 150 here"] {
        read(&mut dialogue, begin);
        for script in ["> NOOP < 200 ok", "> STAT < 211 busy", "> PWD < 257 x"] {
            assert_eq!(read(&mut dialogue, script), ReplyEffect::Nothing, "{script}");
            assert!(dialogue.has_pending_transfer(), "{script}");
        }
    }
    assert_eq!(read(&mut dialogue, "> NOOP < 226 done"), ended);
    assert_eq!(answered(&mut dialogue, "200 ok"), ReplyEffect::Nothing);
    assert!(!dialogue.has_pending_commands());
    // Nothing else is pending.
    let ended = ReplyEffect::Event(DialogueEvent::TransferEnded(Reply { code: 200 }));
    assert_eq!(read(&mut dialogue, "> STOR x < 200 stored"), ended);
}

#[test]
fn replies_to_forgotten_commands_are_ignored_and_later_ones_match() {
    let mut dialogue = logged_in();
    for _ in 0..50 {
        read(&mut dialogue, "> PASV > AUTH TLS");
    }
    let forgotten = 100 - (MAX_RUNS as u32 - 1);
    for number in 0..forgotten {
        let line = if number % 2 == 0 { "227 x" } else { "234 x" };
        let meaning = answered(&mut dialogue, line);
        assert!(matches!(
            meaning,
            ReplyEffect::Nothing | ReplyEffect::Passive { was_requested: false }
        ));
    }
    assert_eq!(forgotten % 2, 1, "the next is an AUTH");
    for (reply, effect) in [
        ("534 no", ReplyEffect::Nothing),
        ("227 x", ReplyEffect::Passive { was_requested: true }),
        ("234 go", ReplyEffect::Nothing), // it came in a pipeline
    ] {
        assert_eq!(answered(&mut dialogue, reply), effect);
    }
    assert!(!dialogue.is_logged_in());
}
