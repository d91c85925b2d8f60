//! Dialogues as text: `> USER joe < 331 password` is a message of the client and one of the server.
//!
//! What stands before the first message is the name of the case. Each message is written at once. It ends with CR LF if
//! it has no line end of its own; `\c` at its end is for none. `\r`, `\n`, `\0` and `\u{..}` are what they are in Rust.

use ftp_alg_core::{
    packet::flags,
    session::Side::{self, Client, Server},
};

use super::{
    ftp::{active, at, passive, text},
    scenario::Scenario,
    segment::Segment,
    sim::Sim,
};

pub const GREETING: &str = "< 220 ready ";
/// A login after the greeting.
pub const USER_PASS: &str = "> USER joe < 331 password > PASS x < 230 in ";
/// All of it.
pub const LOGIN: &str = "< 220 ready > USER joe < 331 password > PASS x < 230 in ";

/// The scripts of a table, one a line.
pub fn cases(table: &str) -> impl Iterator<Item = &str> {
    table.lines().map(str::trim).filter(|line| !line.is_empty())
}

/// The messages of a script.
pub fn messages(script: &str) -> Vec<(Side, String)> {
    messages_with_options(script).into_iter().map(|(side, message, _)| (side, message)).collect()
}

/// The messages of a script, each with its words that begin with `@`.
pub fn messages_with_options(script: &str) -> Vec<(Side, String, Vec<&str>)> {
    let mut messages: Vec<(Side, Vec<&str>, Vec<&str>)> = Vec::new();
    for word in script.split(' ') {
        match (word, messages.last_mut()) {
            (">", _) => messages.push((Client, Vec::new(), Vec::new())),
            ("<", _) => messages.push((Server, Vec::new(), Vec::new())),
            (word, Some((_, words, options))) => match word.strip_prefix('@') {
                Some(option) => options.push(option),
                None => words.push(word),
            },
            (_, None) => {}
        }
    }
    let message = |words: Vec<&str>| message(words.join(" ").trim_end_matches(' '));
    messages.into_iter().map(|(side, words, options)| (side, message(words), options)).collect()
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

impl Sim {
    /// Plays a script. Each message must arrive unchanged.
    #[track_caller]
    pub fn play(&mut self, script: &str) {
        for (side, message) in messages(script) {
            assert_eq!(self.tell(side, &message), message, "{script}");
        }
    }

    /// A connection on which this script was played.
    #[track_caller]
    pub fn after(scenario: Scenario, script: &str) -> Self {
        let mut sim = Self::new(scenario);
        sim.play(script);
        sim
    }

    /// The client's announcement of this port, as the client says it and as the server hears it.
    pub fn active(&self, port: u16) -> [String; 2] {
        [self.translation.client, self.translation.client_external].map(|end| active(at(end, port)))
    }

    /// The server's announcement of this port, as the server says it and as the client hears it.
    pub fn passive(&self, port: u16) -> [String; 2] {
        [self.translation.server, self.translation.server_external]
            .map(|end| passive(at(end, port)))
    }

    /// `PASV`, or over IPv6 `EPSV`.
    pub fn passive_command(&self) -> &'static str {
        if self.translation.server.is_ipv4() { "PASV\r\n" } else { "EPSV\r\n" }
    }

    /// Asserts that the session is inspected: an announcement of the client opens a pinhole.
    #[track_caller]
    pub fn assert_inspected(&mut self) {
        let (opened, [said, seen]) = (self.kernel.opened.len(), self.active(2200));
        assert_eq!(self.tell(Client, &said), seen, "{}", self.summary());
        assert_eq!(self.kernel.opened.len(), opened + 1);
    }

    /// The next segment of `side`, which acknowledges all.
    pub fn next_segment(&self, side: Side, payload: &[u8]) -> Segment {
        let (own, peer) = match side {
            Client => (&self.client, &self.server),
            Server => (&self.server, &self.client),
        };
        Segment {
            seq: own.next_number(),
            ack: peer.next_number(),
            flags: flags::ACK,
            window: 1000,
            payload: payload.into(),
            ..Segment::default()
        }
    }

    /// Has `side` say this, waits until all is still, and gives what the peer received.
    pub fn tell(&mut self, side: Side, said: &str) -> String {
        text(self.say(side, said.as_bytes()))
    }
}
