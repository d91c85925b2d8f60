//! Dialogues as text: `> USER joe < 331 password` is a message of the client and one of the server.
//!
//! What stands before the first message is the name of the case. Each message is written at once. It ends with CR LF if
//! it has no line end of its own; `\c` at its end is for none. `\r`, `\n`, `\0` and `\u{..}` are what they are in Rust.
//! Words that begin with `@` are options, which say how it is sent; users say which there are.

pub const GREETING: &str = "< 220 ready ";
/// A login after the greeting.
pub const USER_PASS: &str = "> USER joe < 331 password > PASS x < 230 in ";
/// A greeting, and a request for TLS that the server accepts.
pub const AUTH: &str = "< 220 ready > AUTH TLS < 234 go";
/// A greeting and a login.
pub const LOGIN: &str = "< 220 ready > USER joe < 331 password > PASS x < 230 in ";

/// The scripts of a table, one a line.
pub fn cases(table: &str) -> impl Iterator<Item = &str> {
    table.lines().map(str::trim).filter(|line| !line.is_empty())
}

/// The words of a list, between bars.
pub fn words(list: &[u8]) -> Vec<&[u8]> {
    list.split(|byte| *byte == b'|').collect()
}

/// A message of a script.
#[derive(Clone, Debug)]
pub struct Message<'s> {
    pub from_client: bool,
    pub text: String,
    /// Words that begin with `@`.
    pub options: Vec<&'s str>,
}

/// The messages of a script.
pub fn messages(script: &str) -> Vec<Message<'_>> {
    let mut messages: Vec<(bool, Vec<&str>, Vec<&str>)> = Vec::new();
    for word in script.split(' ') {
        match (word, messages.last_mut()) {
            (">" | "<", _) => messages.push((word == ">", Vec::new(), Vec::new())),
            (word, Some((_, words, options))) => match word.strip_prefix('@') {
                Some(option) => options.push(option),
                None => words.push(word),
            },
            (_, None) => {}
        }
    }
    let message = |(from_client, words, options): (_, Vec<&str>, _)| Message {
        from_client,
        text: message(words.join(" ").trim_end_matches(' ')),
        options,
    };
    messages.into_iter().map(message).collect()
}

fn message(written: &str) -> String {
    let mut message = String::new();
    let mut rest = written;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        message += plain;
        let (byte, length) = match escaped.as_bytes() {
            [b'r', ..] => ('\r', 1),
            [b'n', ..] => ('\n', 1),
            [b'0', ..] => ('\0', 1),
            [b'c', ..] => return message,
            _ => {
                let end = escaped.find('}').unwrap();
                let code = u32::from_str_radix(&escaped["u{".len()..end], 16).unwrap();
                (char::from_u32(code).unwrap(), end + 1)
            }
        };
        message.push(byte);
        rest = &escaped[length..];
    }
    message += rest;
    if message.ends_with(['\r', '\n']) { message } else { message + "\r\n" }
}
