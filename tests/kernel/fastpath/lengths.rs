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
fn a_longer_announcement_adjusts_all_later_packets() {
    let longest = "fd00:1111:2222:3333:4444:5555:6666:7777";
    let to_longest = format!("EPRT |2|{longest}|65535|");
    let [longer, shorter] = [longest, "fd00::1"].map(|text| masqueraded6_as(ip(text)));
    let cases = [
        (masqueraded(), "EPRT |1|192.168.150.80|1025|", "EPRT |1|198.51.100.1|1025|", -2),
        (masqueraded(), "eprt |1|192.168.150.80|65535|", "eprt |1|198.51.100.1|65535|", -2),
        (masqueraded(), "PORT 192,168,150,80,140,178", "PORT 198,51,100,1,140,178", -2),
        (longer, "EPRT |2|fd00:1234::80|65535|", &to_longest, 26),
        (shorter, "eprt |2|fd00:1234::80|1025|", "eprt |2|fd00::1|1025|", -6),
    ];
    for (flow, sent, delivered, growth) in cases {
        let growth = i32::cast_unsigned(growth);
        let mut talk = Talk::new(adjusted(flow));
        let before = acknowledgement(&talk, Side::Client);
        talk.passes(&before, b"");
        let frame = talk.frame(Side::Client, format!("{sent}\r\n"));
        talk.inspected(&frame, format!("{delivered}\r\n").as_bytes());
        assert_eq!(talk.before.dialogue, PORT_PENDING);
        let next = talk.before.next_seq[0];
        assert_eq!((talk.before.seq_offset[0], talk.before.offset_since[0]), (growth, next));
        // The server acknowledges the rewritten line.
        let delivered = next.wrapping_add(growth);
        let acknowledges = acknowledgement(&talk, Side::Server);
        assert_eq!(acknowledges.ack, delivered);
        talk.passes(&acknowledges, b"");
        talk.says(Side::Server, "200 ok");
        talk.passes(&acknowledgement(&talk, Side::Client), b"");
        talk.says(Side::Client, "RETR a");
        // Packets from before the line have another sequence offset, which only the engine knows.
        talk.hands_back(&before);
        talk.hands_back(&frame);
        talk.hands_back(&Frame { ack: delivered.wrapping_sub(1), ..acknowledges.clone() });
    }
}

#[test]
fn a_longer_227_moves_the_tail_of_its_line() {
    let flow = adjusted(published_as(ip("203.113.113.177")));
    for (sent, delivered) in [
        ("227 =(192,168,150,90,4,1)", "227 =(203,113,113,177,4,1)"),
        ("227 (192,168,150,90,4,1).", "227 (203,113,113,177,4,1)."),
        ("227 (192,168,150,90,4,1) 3456789 1234", "227 (203,113,113,177,4,1) 3456789 1234"),
    ] {
        let mut talk = Talk::new(Flow { dialogue: PASV_PENDING, ..flow });
        let frame = talk.frame(Side::Server, format!("{sent}\r\n"));
        talk.inspected(&frame, format!("{delivered}\r\n").as_bytes());
        assert_eq!(talk.before.dialogue, READY);
        let Flow { seq_offset, offset_since, next_seq, .. } = talk.before;
        assert_eq!((seq_offset[1], offset_since[1]), (1, next_seq[1]));
        talk.says(Side::Client, "RETR a");
    }
    // A tail that is too long, or a line of 129 bytes.
    let mut talk = Talk::new(Flow { dialogue: PASV_PENDING, ..flow });
    talk.line_hands_back(Side::Server, "227 (192,168,150,90,4,1) 3456789 12345\r\n");
    let text = "t".repeat(128 - "227 (192,168,150,90,4,1)\r\n".len());
    talk.line_hands_back(Side::Server, format!("227 {text}(192,168,150,90,4,1)\r\n"));
    let sent = format!("227 {}(192,168,150,90,4,1)\r\n", &text[1..]);
    let delivered = sent.replace("192,168,150,90", "203,113,113,177");
    let frame = talk.frame(Side::Server, sent);
    talk.inspected(&frame, delivered.as_bytes());
}

#[test]
fn numbers_are_adjusted_when_they_wrap_around() {
    let flow = Flow { seq_offset: [70_000, u32::MAX - 6], ..adjusted(masqueraded()) };
    let mut talk = Talk::new(flow);
    for options in [&[][..], &TIMESTAMPS] {
        for side in [Side::Client, Side::Server] {
            let acknowledgement = acknowledgement(&talk, side);
            talk.passes(&Frame { tcp_options: options.to_vec(), ..acknowledgement.clone() }, b"");
            // A keep-alive. The first one may have had another sequence offset.
            let keep_alive = Frame { seq: acknowledgement.seq.wrapping_sub(1), ..acknowledgement };
            if talk.before.line_count == 0 {
                talk.hands_back(&keep_alive);
            } else {
                talk.passes(&keep_alive, b"");
            }
        }
        let mut frame = talk.frame(Side::Client, "NOOP\r\n");
        frame.tcp_options = options.to_vec();
        talk.inspected(&frame, b"NOOP\r\n");
        talk.passes(&frame, b"NOOP\r\n");
        talk.says(Side::Server, "200 ok, as long as it needs to wrap around");
    }
    for side in [Side::Client, Side::Server] {
        let mut frame = talk.frame(side, "");
        frame.flags = ACK | FIN;
        talk.inspected(&frame, b"");
        talk.passes(&acknowledgement(&talk, side.other()), b"");
    }
}

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
