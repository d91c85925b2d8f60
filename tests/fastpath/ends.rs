//! The FIN of each side, after the last line.

use crate::{
    frames::{ACK, Checksum, FIN, Frame, PSH},
    layout::{JUDGED, NOTHING, OTHER, Side},
    scene::{ID, Talk, routed},
};

/// The FIN of `side`, in step.
fn fin(talk: &Talk, side: Side) -> Frame {
    Frame { flags: ACK | FIN, ..talk.frame(side, "") }
}

#[track_caller]
fn ends(talk: &mut Talk, side: Side) -> Frame {
    let frame = fin(talk, side);
    assert!(talk.judged(&frame, b"").ends);
    assert_eq!(talk.before.awaits, NOTHING);
    frame
}

#[test]
fn both_sides_may_end_in_either_order_and_send_their_fin_again() {
    for first in [Side::Client, Side::Server] {
        let mut talk = Talk::new(routed());
        talk.says(Side::Client, "QUIT");
        talk.says(Side::Server, "221 bye");
        let sent = [first, first.other()].map(|side| ends(&mut talk, side));
        let judged = talk.scene.counts()[JUDGED];
        for frame in &sent {
            talk.passes(frame, b"");
            talk.passes(&Frame { flags: ACK | PSH | FIN, ..frame.clone() }, b"");
        }
        assert_eq!((talk.scene.flow(ID), talk.scene.steps()), (talk.before.clone(), vec![]));
        assert_eq!(talk.scene.counts()[JUDGED], judged + 4);
        // Nothing comes behind it.
        talk.line_hands_back(Side::Server, "421 timeout\r\n");
        talk.line_hands_back(Side::Client, "NOOP\r\n");
        let again = fin(&talk, first);
        talk.hands_back(&again);
    }
}

#[test]
fn the_other_side_may_go_on() {
    let mut talk = Talk::new(routed());
    ends(&mut talk, Side::Server);
    talk.says(Side::Client, "QUIT");
    let frame = fin(&talk, Side::Client);
    talk.hands_back(&frame);
}

#[test]
fn fins_may_cross() {
    for first in [Side::Client, Side::Server] {
        let mut talk = Talk::new(routed());
        let crossing = fin(&talk, first.other());
        ends(&mut talk, first);
        talk.hands_back(&Frame { ack: crossing.ack.wrapping_sub(1), ..crossing.clone() });
        let line = Frame { flags: ACK | PSH, payload: b"NOOP\r\n".to_vec(), ..crossing.clone() };
        talk.hands_back(&line);
        assert!(talk.judged(&crossing, b"").ends);
    }
}

#[test]
fn a_fin_out_of_step_is_handed_back() {
    for side in [Side::Client, Side::Server] {
        let mut talk = Talk::new(routed());
        let good = fin(&talk, side);
        for by in [1, u32::MAX, 1 << 31] {
            talk.hands_back(&Frame { seq: good.seq.wrapping_add(by), ..good.clone() });
            talk.hands_back(&Frame { ack: good.ack.wrapping_add(by), ..good.clone() });
        }
        // The state that it starts from knows no line; 0 is no sequence number of one.
        talk.hands_back(&Frame { seq: 0, ..good.clone() });
        talk.hands_back(&Frame { mark: 1, ..good.clone() });
        talk.hands_back(&Frame { ip_options: vec![1; 4], ..good.clone() });
        talk.hands_back(&Frame { checksum: Checksum::WrongBy(1), ..good.clone() });
        talk.hands_back(&Frame { payload: b"NOOP\r\n".to_vec(), ..good.clone() });
        talk.judged(&good, b"");
    }
}

#[test]
fn a_fin_before_the_reply_is_handed_back() {
    let mut talk = Talk::new(routed());
    talk.says(Side::Client, "QUIT");
    assert_eq!(talk.before.awaits, OTHER);
    for side in [Side::Client, Side::Server] {
        let frame = fin(&talk, side);
        talk.hands_back(&frame);
    }
}
