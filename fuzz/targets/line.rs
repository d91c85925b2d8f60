//! A client's stream says the same however it is cut into segments.
//!
//! The input is one byte of circumstances, four lengths of segments, and the stream.

#![no_main]

mod talk;

use std::net::SocketAddr;

use ftp_alg::{
    ftp::{Command, Text},
    session::Side,
};
use libfuzzer_sys::fuzz_target;
use talk::{Reading, Talk, is_short, segments};

fuzz_target!(|data: &[u8]| {
    let Some((&[how, ref cuts @ ..], stream)) = data.split_first_chunk::<5>() else { return };
    for line in stream.split_inclusive(|b| *b == b'\n') {
        positions(line);
    }
    let cut = read(how, segments(stream, cuts));
    if is_short(stream) {
        let whole = read(how, std::iter::once(stream));
        // How much of a line in which something may hide is crossed out depends on what had been forwarded of it.
        let may_hide = |pair: &[u8]| {
            matches!(pair, [0 | 0xf0.., _] | [_, 0 | 0xf0..])
                || pair[0] == b'\r' && pair[1] != b'\n'
        };
        let hides = |reading: &Reading| format!("{:?}", reading.said).contains("Hidden");
        if !stream.windows(2).any(may_hide) && !hides(&cut) && !hides(&whole) {
            assert_eq!(cut, whole);
        }
    }
});

/// Every part of what is read can be traced to its place in the line.
fn positions(line: &[u8]) {
    let text = Text::new(line);
    let Some(command) = Command::parse(&text) else { return };
    let end = command.argument_start + command.argument.len();
    assert_eq!(&text.bytes()[command.argument_start..end], command.argument);
    let whole = text.origin(0..text.bytes().len());
    assert!(whole.end <= line.len());
    if !line.contains(&0xff) && !line.contains(&0) {
        assert_eq!(&line[whole], text.bytes());
    }
}

/// What the session makes of the stream, and what of it the server receives.
fn read<'a>(how: u8, segments: impl Iterator<Item = &'a [u8]>) -> Reading {
    // Longer than most that is announced, shorter, or unchanged; the stream may wrap.
    let endpoint: SocketAddr = match how & 3 {
        0 => ([198, 51, 100, 101], 54321).into(),
        1 => ([1, 1, 1, 1], 257).into(),
        2 => ([10, 0, 0, 2], 1025).into(),
        _ => ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 5282).into(),
    };
    let first = if how & 4 == 0 { 7 } else { u32::MAX - 20 };
    let mut talk = Talk::new(first, endpoint, how & 8 != 0);
    if how & 16 == 0 {
        talk.say(Side::Server, b"220 ready\r\n");
    }
    for segment in segments {
        talk.say(Side::Client, segment);
    }
    talk.reading_of(Side::Client)
}
