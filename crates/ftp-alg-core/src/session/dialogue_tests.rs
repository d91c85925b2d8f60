//! How the dialogue reacts to sequences of lines.

use super::*;
use crate::script::{Message, messages};

fn said(dialogue: &mut Dialogue, line: &str) -> CommandMeaning {
    let text = Text::new(line.as_bytes());
    dialogue.read_command(Command::parse(&text).as_ref())
}

fn answered(dialogue: &mut Dialogue, line: &str) -> ReplyMeaning {
    dialogue.read_reply_line(&Text::new(line.as_bytes()))
}

/// Reads the lines of a script, and notes what they are. Returns the meaning of the last reply.
fn read(dialogue: &mut Dialogue, script: &str) -> ReplyMeaning {
    let mut meaning = ReplyMeaning::Nothing;
    for Message { from_client, text, .. } in messages(script) {
        if !from_client {
            meaning = answered(dialogue, &text);
            continue;
        }
        match said(dialogue, &text) {
            CommandMeaning::Auth => dialogue.note_auth(),
            CommandMeaning::Announcement => dialogue.note_announcement(true),
            _ => {}
        }
    }
    meaning
}

/// A dialogue that has read a script.
fn after(script: &str) -> Dialogue {
    let mut dialogue = Dialogue::default();
    read(&mut dialogue, script);
    dialogue
}

fn logged_in() -> Dialogue {
    let mut dialogue = after("< 220 ready > USER x < 331 password > PASS x");
    assert_eq!(answered(&mut dialogue, "230 in"), ReplyMeaning::Event(DialogueEvent::LoggedIn));
    dialogue
}

/// Reads a line of the server that ended as it should.
fn answered_plainly(dialogue: &mut Dialogue, line: &str) {
    dialogue.note_server_line_end(LineEnd::Plain, &Text::new(b"200 x"));
    answered(dialogue, line);
}

#[test]
fn after_text_only_the_reply_to_a_login_shows_ftp() {
    let replies = "> USER x < 200 ok | > USER x < 202 ok | > USER x < 250 ok | > USER x < 530 no | > CLNT x < 230 in | \
                   > OPTS x < 331 x | > FEAT < 211 end | > AUTH TLS < 200 ok | > USER x < 227 (10,0,0,2,4,1)";
    for script in replies.split(" | ") {
        let dialogue = after(&format!("< hello {script}"));
        assert_eq!(dialogue.phase(), Phase::CommandAfterText, "{script}");
        assert!(dialogue.blocked_because(true).is_some());
    }
    let commands = "> USER / HTTP/1.1 | > PASS x | > WHAT | > Host: x | > PORT 1,2,3,4,5,6 | > USER x > Host: x";
    for script in commands.split(" | ") {
        assert_eq!(after(&format!("< hello {script}")).phase(), Phase::NotFtp, "{script}");
    }
}

#[test]
fn a_name_with_line_ends_stays_ambiguous() {
    let mut dialogue = logged_in();
    dialogue.note_client_line_end(LineEnd::Ambiguous);
    said(&mut dialogue, "CWD x");
    let settles = |dialogue: &mut Dialogue, line| {
        answered_plainly(dialogue, line);
        dialogue.note_pause(false);
        assert!(dialogue.blocked_because(false).is_none(), "{line}");
    };
    settles(&mut dialogue, "250 ok");
    said(&mut dialogue, "PASV");
    assert_eq!(dialogue.blocked_because(false), None);
    settles(&mut dialogue, "227 x");
    // Any other command may be answered with the name.
    read(&mut dialogue, "> CDUP > PASV");
    answered_plainly(&mut dialogue, "250 in x");
    dialogue.note_pause(false);
    assert!(dialogue.blocked_because(false).is_some());
    settles(&mut dialogue, "227 x");
}
