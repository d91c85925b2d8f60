//! A FIN that is not the next one. What follows one is walked at random.

use super::{
    frames::*,
    layout::*,
    scene::{Talk, routed},
};

/// The FIN of `side`, with the next sequence number.
fn fin(talk: &Talk, side: Side) -> Frame {
    Frame { flags: ACK | FIN, ..talk.frame(side, "") }
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
