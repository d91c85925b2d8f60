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
fn what_does_not_answer_quit_is_handed_back() {
    let mut talk = Talk::new(Flow { dialogue: QUIT_PENDING, ..routed() });
    for line in [
        "221-Goodbye.",
        "150 wait",
        "220 hello",
        "227 (192,0,2,9,4,1)",
        "229 (|||1025|)",
        "230 in",
        "257 \"/\"",
        "331 password",
        "421 timeout",
    ] {
        talk.line_hands_back(Side::Server, format!("{line}\r\n"));
    }
    for line in ["NOOP\r\n", "QUIT\r\n"] {
        talk.line_hands_back(Side::Client, line);
    }
    for side in [Side::Client, Side::Server] {
        let frame = fin(&talk, side);
        talk.hands_back(&frame);
    }
}

#[test]
fn fins_pass_in_either_order_and_may_be_retransmitted() {
    for first in [Side::Client, Side::Server] {
        let mut talk = Talk::new(routed());
        talk.says(Side::Client, "NOOP");
        talk.says(Side::Server, "200 ok");
        let sent = [first, first.other()].map(|side| send_fin(&mut talk, side));
        let inspected = talk.scene.counts()[INSPECTED];
        for frame in &sent {
            talk.passes(frame, b"");
            talk.passes(&Frame { flags: ACK | PSH | FIN, ..frame.clone() }, b"");
        }
        assert_eq!((talk.scene.flow(ID), talk.scene.lines()), (talk.before, vec![]));
        assert_eq!(talk.scene.counts()[INSPECTED], inspected + 4);
        // No line may follow a FIN.
        talk.line_hands_back(Side::Server, "421 timeout\r\n");
        talk.line_hands_back(Side::Client, "NOOP\r\n");
        let retransmission = fin(&talk, first);
        talk.hands_back(&retransmission);
    }
}

#[test]
fn the_other_side_may_continue_after_a_fin() {
    let mut talk = Talk::new(routed());
    send_fin(&mut talk, Side::Server);
    talk.says(Side::Client, "NOOP");
    let frame = fin(&talk, Side::Client);
    talk.hands_back(&frame);
}

#[test]
fn fins_may_cross() {
    for first in [Side::Client, Side::Server] {
        let mut talk = Talk::new(routed());
        let crossing = fin(&talk, first.other());
        send_fin(&mut talk, first);
        talk.hands_back(&Frame { ack: crossing.ack.wrapping_sub(1), ..crossing.clone() });
        let line = Frame { flags: ACK | PSH, payload: b"NOOP\r\n".to_vec(), ..crossing.clone() };
        talk.hands_back(&line);
        assert_eq!(talk.inspected(&crossing, b"").is_fin, 1);
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

#[test]
fn a_fin_while_a_command_is_pending_is_handed_back() {
    let mut talk = Talk::new(routed());
    talk.says(Side::Client, "NOOP");
    assert_eq!(talk.before.dialogue, COMMAND_PENDING);
    for side in [Side::Client, Side::Server] {
        let frame = fin(&talk, side);
        talk.hands_back(&frame);
    }
}
