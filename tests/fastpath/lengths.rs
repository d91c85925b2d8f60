//! Adjusted connections: lines that change their length, and the sequence numbers of every packet then.

use std::net::{Ipv4Addr, SocketAddr};

use ftp_alg_core::ftp::{Announcement, Zeros};

use crate::{
    frames::{ACK, CWR, FIN, Frame, PSH, RST},
    layout::{ANNOUNCED, Flow, NOTHING, PASV, Side},
    rng::Rng,
    scene::{Talk, masqueraded, published},
};

/// Nothing was shifted up to here.
fn adjusted(flow: Flow) -> Flow {
    let shifts = flow.next.map(|next| (0, next));
    Flow { shifts: Some(shifts), ..flow }
}

fn acknowledgement(talk: &Talk, side: Side) -> Frame {
    let mut frame = talk.frame(side, "");
    frame.flags = ACK;
    frame
}

const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

#[test]
fn an_announcement_that_grows_shifts_what_follows() {
    // The client is 192.168.150.80, and 198.51.100.1 is named.
    let cases = [
        ("EPRT |1|192.168.150.80|1025|", "EPRT |1|198.51.100.1|1025|", u32::MAX - 1),
        ("eprt |1|192.168.150.80|65535|", "eprt |1|198.51.100.1|65535|", u32::MAX - 1),
        ("PORT 192,168,150,80,140,178", "PORT 198,51,100,1,140,178", u32::MAX - 1),
    ];
    for (said, heard, growth) in cases {
        let mut talk = Talk::new(adjusted(masqueraded()));
        let before = acknowledgement(&talk, Side::Client);
        talk.passes(&before, b"");
        let frame = talk.frame(Side::Client, format!("{said}\r\n"));
        talk.judged(&frame, format!("{heard}\r\n").as_bytes());
        assert_eq!(talk.before.awaits, ANNOUNCED);
        let next = talk.before.next[0];
        assert_eq!(talk.before.shifts.unwrap()[0], (growth, next));
        // The server acknowledges what it was told.
        let delivered = next.wrapping_add(growth);
        let acknowledges = acknowledgement(&talk, Side::Server);
        assert_eq!(acknowledges.ack, delivered);
        talk.passes(&acknowledges, b"");
        talk.says(Side::Server, "200 ok");
        talk.passes(&acknowledgement(&talk, Side::Client), b"");
        talk.says(Side::Client, "RETR a");
        // What was sent before the line is not shifted by as much: the engine knows by how much.
        talk.hands_back(&before);
        talk.hands_back(&frame);
        talk.hands_back(&Frame { ack: delivered.wrapping_sub(1), ..acknowledges.clone() });
    }
}

#[test]
fn a_227_that_grows_takes_its_rest_along() {
    let flow = Flow { server_named: Ipv4Addr::new(203, 113, 113, 177), ..adjusted(published()) };
    for (said, heard) in [
        ("227 =(192,168,150,90,4,1)", "227 =(203,113,113,177,4,1)"),
        ("227 (192,168,150,90,4,1).", "227 (203,113,113,177,4,1)."),
        ("227 (192,168,150,90,4,1) 3456789 1234", "227 (203,113,113,177,4,1) 3456789 1234"),
    ] {
        let mut talk = Talk::new(Flow { awaits: PASV, ..flow.clone() });
        let frame = talk.frame(Side::Server, format!("{said}\r\n"));
        talk.judged(&frame, format!("{heard}\r\n").as_bytes());
        assert_eq!(talk.before.awaits, NOTHING);
        assert_eq!(talk.before.shifts.unwrap()[1], (1, talk.before.next[1]));
        talk.says(Side::Client, "RETR a");
    }
    // Too long a rest, or a line of 129 bytes.
    let mut talk = Talk::new(Flow { awaits: PASV, ..flow });
    talk.line_hands_back(Side::Server, "227 (192,168,150,90,4,1) 3456789 12345\r\n");
    let text = "t".repeat(128 - "227 (192,168,150,90,4,1)\r\n".len());
    talk.line_hands_back(Side::Server, format!("227 {text}(192,168,150,90,4,1)\r\n"));
    let said = format!("227 {}(192,168,150,90,4,1)\r\n", &text[1..]);
    let heard = said.replace("192,168,150,90", "203,113,113,177");
    let frame = talk.frame(Side::Server, said);
    talk.judged(&frame, heard.as_bytes());
}

#[test]
fn every_number_is_shifted_across_their_wrap() {
    let shifts = Some([(70_000, 1000), (u32::MAX - 6, 0xffff_ffe0)]);
    let mut talk = Talk::new(Flow { shifts, ..masqueraded() });
    for options in [&[][..], &TIMESTAMPS] {
        for side in [Side::Client, Side::Server] {
            let acknowledgement = acknowledgement(&talk, side);
            talk.passes(&Frame { tcp_options: options.to_vec(), ..acknowledgement.clone() }, b"");
            // A keep-alive, at first of what may have been shifted otherwise.
            let keep_alive = Frame { seq: acknowledgement.seq.wrapping_sub(1), ..acknowledgement };
            if talk.before.steps == 0 {
                talk.hands_back(&keep_alive);
            } else {
                talk.passes(&keep_alive, b"");
            }
        }
        let mut frame = talk.frame(Side::Client, "NOOP\r\n");
        frame.tcp_options = options.to_vec();
        talk.judged(&frame, b"NOOP\r\n");
        talk.passes(&frame, b"NOOP\r\n");
        talk.says(Side::Server, "200 ok, as long as it needs to wrap around");
    }
    for side in [Side::Client, Side::Server] {
        let mut frame = talk.frame(side, "");
        frame.flags = ACK | FIN;
        talk.judged(&frame, b"");
        talk.passes(&acknowledgement(&talk, side.other()), b"");
    }
}

#[test]
fn what_the_program_does_not_adjust_is_handed_back() {
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
fn what_is_written_is_what_the_engine_writes() {
    let mut rng = Rng::new(17);
    let mut talk = Talk::new(adjusted(masqueraded()));
    for _ in 0..1000 {
        let mut octet = || *rng.pick(&[0, 1, 9, 10, 42, 99, 100, 178, 255_u8]);
        let named = Ipv4Addr::from([0, 1, 2, 3].map(|_| octet()));
        let port = u16::from_be_bytes([octet(), octet()]).max(1);
        let client = talk.before.client;
        talk.before = Flow { steps: talk.before.steps, ..adjusted(masqueraded()) };
        (talk.before.client_named, talk.before.client_arrival) = (named, named);
        talk.hand_over();
        let argument = format!("|1|{}|{port}|", client.ip());
        let frame = talk.frame(Side::Client, format!("EPRT {argument}\r\n"));
        let read = Announcement::eprt(argument.as_bytes(), 0).unwrap();
        let text = read.rewritten(SocketAddr::new(named.into(), port), Zeros::Three).unwrap();
        talk.judged(&frame, &[b"EPRT |1|", &text[..], b"|\r\n"].concat());
    }
}
