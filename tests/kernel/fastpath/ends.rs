//! The FIN of each side, after the last line.

use super::{
    frames::*,
    layout::*,
    scene::{ID, Talk, routed},
};

/// The FIN of `side`, with the next sequence number.
fn fin(talk: &Talk, side: Side) -> Frame {
    Frame { flags: ACK | FIN, ..talk.frame(side, "") }
}

#[track_caller]
fn send_fin(talk: &mut Talk, side: Side) -> Frame {
    let frame = fin(talk, side);
    let dialogue = talk.scene.flow(ID).dialogue;
    assert_eq!(talk.inspected(&frame, b"").is_fin, 1);
    assert_eq!(talk.before.dialogue, dialogue);
    frame
}

#[test]
fn only_fins_follow_quit_and_its_reply() {
    for (reply, first) in [
        ("221 Goodbye.", Side::Client),
        ("200 bye", Side::Server),
        ("426 (broken)", Side::Server),
        ("500 no", Side::Client),
    ] {
        let mut talk = Talk::new(routed());
        talk.says(Side::Client, "quit");
        assert_eq!(talk.before.dialogue, QUIT_PENDING);
        talk.says(Side::Server, reply);
        assert_eq!(talk.before.dialogue, FIN_DUE);
        for side in [first, first.other()] {
            for line in ["NOOP\r\n", "QUIT\r\n", "PASV\r\n", "PORT 192,168,150,80,4,1\r\n"] {
                talk.line_hands_back(Side::Client, line);
            }
            for line in ["221 again\r\n", "227 (192,0,2,9,4,1)\r\n", "150 wait\r\n"] {
                talk.line_hands_back(Side::Server, line);
            }
            send_fin(&mut talk, side);
            assert_eq!(talk.before.dialogue, FIN_DUE);
        }
    }
}

#[test]
fn a_fin_with_wrong_numbers_is_handed_back() {
    for side in [Side::Client, Side::Server] {
        let mut talk = Talk::new(routed());
        let good = fin(&talk, side);
        for by in [1, u32::MAX, 1 << 31] {
            talk.hands_back(&Frame { seq: good.seq.wrapping_add(by), ..good.clone() });
            talk.hands_back(&Frame { ack: good.ack.wrapping_add(by), ..good.clone() });
        }
        // Before the first line `last_line` is empty. A FIN with sequence number 0 is not taken for its retransmission.
        talk.hands_back(&Frame { seq: 0, ..good.clone() });
        talk.hands_back(&Frame { mark: 1, ..good.clone() });
        talk.hands_back(&Frame { ip_options: vec![1; 4], ..good.clone() });
        talk.hands_back(&Frame { checksum: Checksum::WrongBy(1), ..good.clone() });
        talk.hands_back(&Frame { payload: b"NOOP\r\n".to_vec(), ..good.clone() });
        talk.inspected(&good, b"");
    }
}
