//! A client's stream has the same meaning with any boundaries of segments.
//!
//! The input is one byte of circumstances, four lengths of segments, and the stream.

#![no_main]

#[path = "../../crates/ftp-alg-core/tests/core/support/readings.rs"]
mod readings;
mod talk;

use ftp_alg_core::{
    ftp::{Command, Text, VerbScanner, VerbSearch},
    session::{RefusedLine, Side},
};
use libfuzzer_sys::fuzz_target;
use readings::command;
use talk::{Reading, Said, Talk, endpoint, is_short, segments};

/// The bits of circumstances, apart from those of the endpoint and the first sequence number.
const REFUSES_AUTH: u8 = 8;
const NO_GREETING: u8 = 16;
/// The start of the connection was not seen.
const PICKED_UP: u8 = 32;
/// The greeting arrives after the first segment.
const LATE_GREETING: u8 = 64 | NO_GREETING;

const ALL_VERBS: VerbSearch = VerbSearch { auth: true, subnegotiates: true };

fuzz_target!(|data: &[u8]| {
    let Some((&[how, ref cuts @ ..], stream)) = data.split_first_chunk::<5>() else { return };
    for line in stream.split_inclusive(|b| *b == b'\n') {
        positions(line);
    }
    let opens = |segments: &mut dyn Iterator<Item = &[u8]>| read(how, true, segments);
    let cut = opens(&mut segments(stream, cuts));
    if how & PICKED_UP == 0 || how & NO_GREETING == 0 {
        let refused = read(how, false, &mut segments(stream, cuts));
        let obeyed = command(&refused.received, &[b"PORT", b"EPRT"], is_endpoint);
        assert_eq!(obeyed, None, "some server obeys a refused command: {refused:?}");
        if how & REFUSES_AUTH != 0 {
            let obeyed = command(&refused.received, &[b"AUTH"], is_mechanism);
            assert_eq!(obeyed, None, "some server obeys a refused command: {refused:?}");
        }
    }
    if is_short(stream) && how & LATE_GREETING != LATE_GREETING {
        let whole = opens(&mut std::iter::once(stream));
        // How much of an ambiguous line is blanked depends on how much of it has been forwarded.
        let is_ambiguous = |pair: &[u8]| {
            matches!(pair, [0 | 0xf0.., _] | [_, 0 | 0xf0..])
                || pair[0] == b'\r' && pair[1] != b'\n'
        };
        // Some server sees a verb elsewhere than at the start of the line.
        let hides_verb = |line: &[u8]| {
            let blanks = line.len() - line.trim_ascii_start().len();
            VerbScanner::find_verb_end(line, ALL_VERBS).is_some_and(|end| end != blanks + 4)
        };
        let refuses_ambiguous =
            |reading: &Reading| reading.said.contains(&Said::Refused(RefusedLine::Ambiguous));
        if !stream.windows(2).any(is_ambiguous)
            && !stream.split_inclusive(|b| *b == b'\n').any(hides_verb)
            && !refuses_ambiguous(&cut)
            && !refuses_ambiguous(&whole)
        {
            assert_eq!(cut, whole);
        }
        let mut others = whole.opened.iter();
        for opened in &cut.opened {
            assert!(
                others.any(|other| other == opened),
                "opened only in segments: {cut:?}, not {whole:?}"
            );
        }
    }
});

/// Whether the argument of `PORT` or `EPRT` may be an endpoint.
fn is_endpoint(argument: &[u8]) -> bool {
    argument.first().is_some_and(|byte| byte.is_ascii_digit() || *byte == b'|')
}

/// Whether the argument of `AUTH` may be a mechanism, and is not blanked.
fn is_mechanism(argument: &[u8]) -> bool {
    argument.first().is_some_and(|byte| byte.is_ascii_alphabetic() && *byte != b'X')
}

/// Checks that every part of the text maps to its position in the line.
fn positions(line: &[u8]) {
    let text = Text::new(line);
    let Some(command) = Command::parse(&text) else { return };
    let end = command.argument_start + command.argument.len();
    assert_eq!(&text.bytes()[command.argument_start..end], command.argument);
    let whole = text.line_range(0..text.bytes().len());
    assert!(whole.end <= line.len());
    if !line.contains(&0xff) && !line.contains(&0) {
        assert_eq!(&line[whole], text.bytes());
    }
}

/// Reads the stream with a session that opens a pinhole for every announcement if `opens`, or refuses all.
fn read<'a>(how: u8, opens: bool, segments: &mut dyn Iterator<Item = &'a [u8]>) -> Reading {
    let first = if how & 4 == 0 { 7 } else { u32::MAX - 20 }; // the sequence numbers may wrap
    let mut talk = Talk::new(
        first,
        opens.then_some(endpoint(how)),
        how & REFUSES_AUTH != 0,
        how & PICKED_UP != 0,
    );
    let greeting = match how & LATE_GREETING {
        NO_GREETING => None,
        LATE_GREETING => Some(1),
        _ => Some(0),
    };
    for (number, segment) in segments.enumerate() {
        if greeting == Some(number) {
            talk.say(Side::Server, b"220 ready\r\n");
        }
        talk.say(Side::Client, segment);
    }
    talk.reading_of(Side::Client)
}
