//! A server's stream has the same meaning with any boundaries of segments, whatever commands are pending.
//!
//! The input is two bytes of circumstances, four lengths of segments, and the stream.

#![no_main]

mod talk;

use ftp_alg_core::{
    ftp::{Announcement, AnnouncementKind, ReplyTracker, Text},
    session::Side,
};
use libfuzzer_sys::fuzz_target;
use talk::{Reading, Talk, endpoint, is_short, segments};

/// Commands that the client may have sent before.
const COMMANDS: [&[u8]; 8] = [
    b"USER joe\r\n",
    b"PASV\r\n",
    b"EPSV\r\n",
    b"PORT 10,0,0,2,4,1\r\n",
    b"LIST\r\n",
    b"AUTH TLS\r\n",
    b"EPSV ALL\r\n",
    b"REIN\r\n",
];

fuzz_target!(|data: &[u8]| {
    let Some((&[how, commands, ref cuts @ ..], stream)) = data.split_first_chunk::<6>() else {
        return;
    };
    let mut tracker = ReplyTracker::default();
    for line in stream.split_inclusive(|b| *b == b'\n') {
        reply(&mut tracker, line);
    }
    let mut cut = read(how, commands, segments(stream, cuts));
    if is_short(stream) {
        let mut whole = read(how, commands, std::iter::once(stream));
        if cut.is_ambiguous {
            // A 227 or 229 opens only as a segment of its own.
            (cut.opened, whole.opened) = (Vec::new(), Vec::new());
        }
        assert_eq!(cut, whole);
    }
});

/// Checks that a reply comes only from a line that starts with its code, and an announcement from within that line.
fn reply(tracker: &mut ReplyTracker, line: &[u8]) {
    let text = Text::new(line);
    let is_open = *tracker != ReplyTracker::default();
    if let Some(reply) = tracker.read_line(&text) {
        assert!(text.bytes().starts_with(format!("{:03}", reply.code).as_bytes()));
        assert!(!text.is_indented());
        assert_eq!(*tracker, ReplyTracker::default());
    } else if is_open {
        assert_ne!(*tracker, ReplyTracker::default(), "only a reply's last line ends it");
    }
    for read in [Announcement::parse_227(&text), Announcement::parse_229(&text)] {
        let Ok(announcement) = read else { continue };
        let said = &text.bytes()[announcement.endpoint.clone()];
        assert!(
            announcement.endpoint.start >= 3 && said.iter().all(|b| b"0123456789, ".contains(b))
        );
        assert_eq!(announcement.kind == AnnouncementKind::Epsv, !said.contains(&b','));
    }
}

/// Reads the stream with a session.
fn read<'a>(how: u8, commands: u8, segments: impl Iterator<Item = &'a [u8]>) -> Reading {
    let endpoint = (how & 16 == 0).then(|| endpoint(how)); // otherwise all announcements are refused
    let mut talk = Talk::new(7, endpoint, how & 8 != 0, how & 32 != 0);
    if how & 4 == 0 {
        talk.say(Side::Server, b"220 ready\r\n");
        for (bit, command) in COMMANDS.iter().enumerate() {
            if commands & 1 << bit != 0 {
                talk.say(Side::Client, command);
            }
        }
    }
    for segment in segments {
        talk.say(Side::Server, segment);
    }
    talk.reading_of(Side::Server)
}
