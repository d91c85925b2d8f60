//! Sequence adjustment: rewrites that change the length of a line, and the numbers of every packet afterwards.

use std::net::{IpAddr, SocketAddr};

use ftp_alg_core::ftp::{Announcement, Padding};

use super::{frames::*, layout::*, rng::Rng, scene::*};

/// The flow as an adjusted connection, with sequence offsets of 0.
fn adjusted(flow: Flow) -> Flow {
    Flow { adjusted: 1, offset_since: flow.next_seq, ..flow }
}

fn acknowledgement(talk: &Talk, side: Side) -> Frame {
    let mut frame = talk.frame(side, "");
    frame.flags = ACK;
    frame
}

const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

#[test]
fn packets_that_cannot_be_adjusted_are_handed_back() {
    let mut talk = Talk::new(adjusted(masqueraded()));
    let sack = vec![1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let reversed = [&TIMESTAMPS[2..], &[1, 1]].concat();
    for options in [sack, reversed, [&TIMESTAMPS[..], &[0; 4]].concat()] {
        for frame in [acknowledgement(&talk, Side::Client), talk.frame(Side::Client, "NOOP\r\n")] {
            talk.hands_back(&Frame { tcp_options: options.clone(), ..frame });
        }
    }
    let frame = acknowledgement(&talk, Side::Server);
    talk.hands_back(&Frame { ip_options: vec![1; 4], ..frame.clone() });
    talk.hands_back(&Frame { more_fragments: true, ..frame.clone() });
    talk.hands_back(&Frame { mark: 1, ..frame.clone() });
    talk.hands_back(&Frame { flags: ACK | CWR, ..frame.clone() });
    talk.hands_back(&Frame { flags: ACK | RST, ..frame.clone() });
    talk.passes(&Frame { flags: ACK | PSH, ..frame.clone() }, b"");
    talk.passes(&Frame { padding: 6, ..frame }, b"");
}

#[test]
fn an_eprt_is_rewritten_as_the_engine_does() {
    let mut rng = Rng::new(17);
    let mut talk = Talk::new(adjusted(masqueraded()));
    for _ in 0..1000 {
        let mut octet = || *rng.pick(&[0, 0, 1, 9, 10, 42, 99, 100, 178, 255_u8]);
        let port = u16::from_be_bytes([octet(), octet()]).max(1);
        let (flow, start) = if octet() < 42 {
            let named = IpAddr::from([0, 1, 2, 3].map(|_| octet()));
            (masqueraded_as(named), "|1|192.168.150.80|")
        } else {
            // Of any length, but not of the other family, as ::ffff:0:0/96 would be.
            let mut octets = std::array::from_fn::<_, 16, _>(|_| octet());
            octets[0] = 0xfd;
            (masqueraded6_as(octets.into()), "|2|fd00:1234::80|")
        };
        let named = flow.active_arrival;
        talk.before = Flow { line_count: talk.before.line_count, ..adjusted(flow) };
        talk.hand_over();
        let argument = format!("{start}{port}|");
        let frame = talk.frame(Side::Client, format!("EPRT {argument}\r\n"));
        let read = Announcement::parse_eprt(argument.as_bytes(), 0).unwrap();
        let text = read.replacement_text(SocketAddr::new(named, port), Padding::Blanks).unwrap();
        talk.inspected(&frame, &[b"EPRT ", &start.as_bytes()[..3], &text, b"|\r\n"].concat());
    }
}
