//! Sequence adjustment: rewrites that change the length of a line, and the numbers of every packet afterwards.

use std::net::{Ipv4Addr, SocketAddr};

use ftp_alg_core::ftp::{Announcement, Padding};

use super::{
    frames::*,
    layout::*,
    rng::Rng,
    scene::{Talk, masqueraded, published},
};

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
    // The client is 192.168.150.80, and 198.51.100.1 is announced.
    let cases = [
        ("EPRT |1|192.168.150.80|1025|", "EPRT |1|198.51.100.1|1025|", u32::MAX - 1),
        ("eprt |1|192.168.150.80|65535|", "eprt |1|198.51.100.1|65535|", u32::MAX - 1),
        ("PORT 192,168,150,80,140,178", "PORT 198,51,100,1,140,178", u32::MAX - 1),
    ];
    for (sent, delivered, growth) in cases {
        let mut talk = Talk::new(adjusted(masqueraded()));
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
    let flow =
        Flow { announced_server: Ipv4Addr::new(203, 113, 113, 177), ..adjusted(published()) };
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
        let mut octet = || *rng.pick(&[0, 1, 9, 10, 42, 99, 100, 178, 255_u8]);
        let named = Ipv4Addr::from([0, 1, 2, 3].map(|_| octet()));
        let port = u16::from_be_bytes([octet(), octet()]).max(1);
        let client = talk.before.client;
        talk.before = Flow { line_count: talk.before.line_count, ..adjusted(masqueraded()) };
        (talk.before.announced_client, talk.before.active_arrival) = (named, named);
        talk.hand_over();
        let argument = format!("|1|{}|{port}|", client);
        let frame = talk.frame(Side::Client, format!("EPRT {argument}\r\n"));
        let read = Announcement::parse_eprt(argument.as_bytes(), 0).unwrap();
        let text =
            read.replacement_text(SocketAddr::new(named.into(), port), Padding::Blanks).unwrap();
        talk.inspected(&frame, &[b"EPRT |1|", &text[..], b"|\r\n"].concat());
    }
}
