//! What the program hands back, or ignores, besides what `walk.rs` generates: lines that are not the next one, packets with
//! unusual headers, and those that the kernel drops.

use std::net::SocketAddr;

use super::{
    frames::*,
    layout::*,
    scene::{ID, Talk, ip, routed, routed6},
};

fn in_state(dialogue: u32) -> Talk {
    Talk::new(Flow { dialogue, ..routed() })
}

#[test]
fn empty_packets_with_other_flags_are_handed_back() {
    for (side, dialogue) in [(Side::Client, READY), (Side::Server, COMMAND_PENDING)] {
        let mut talk = in_state(dialogue);
        let empty = talk.frame(side, "");
        for flags in [FIN, SYN, SYN | ACK, RST, RST | ACK, URG | ACK] {
            talk.hands_back(&Frame { flags, ..empty.clone() });
        }
        let line = talk.frame(side, "NOOP\r\n");
        for flags in [0, PSH, FIN, SYN, RST] {
            talk.hands_back(&Frame { flags, ..line.clone() });
        }
    }
}

#[test]
fn a_partial_checksum_passes() {
    for (options, flow) in [(0, routed()), (12, routed()), (0, routed6()), (12, routed6())] {
        let talk = Talk::new(flow);
        let mut frame = talk.frame(Side::Client, "NOOP some thing\r\n");
        frame.tcp_options = vec![1; options];
        frame.checksum = Checksum::OfPseudoHeader;
        assert_eq!(talk.scene.run(&frame).mark, talk.before.inspected_mark);
    }
}

#[test]
fn pure_acknowledgements_pass_with_a_mark() {
    let mut talk = in_state(READY);
    let good = talk.frame(Side::Client, "NOOP\r\n");
    for flags in [ACK, ACK | PSH, ACK | ECE] {
        let seq = good.seq.wrapping_add(7);
        let empty = Frame { flags, seq, payload: Vec::new(), padding: 6, ..good.clone() };
        let counts = talk.scene.counts();
        talk.passes(&empty, b"");
        talk.is_ignored(&Frame { mark: 7, ..empty.clone() });
        talk.is_ignored(&Frame { ip_options: vec![1; 4], ..empty });
        assert_eq!((talk.scene.counts(), talk.scene.lines()), (counts, vec![]));
        assert_eq!(talk.scene.flow(ID), talk.before);
    }
    let (source, destination) = (good.destination, good.source);
    talk.passes(&Frame { source, destination, payload: Vec::new(), ..good }, b"");
    talk.says(Side::Client, "NOOP");
}

#[test]
fn packets_of_no_flow_are_ignored() {
    let mut talk = in_state(READY);
    let good = talk.frame(Side::Client, "NOOP\r\n");
    let other_port = SocketAddr::new(good.source.ip(), 40001);
    talk.is_ignored(&Frame { source: other_port, ..good.clone() });
    let other_address = SocketAddr::new(ip("10.0.0.3"), good.source.port());
    talk.is_ignored(&Frame { source: other_address, ..good.clone() });
    talk.is_ignored(&Frame { fragment_offset: 1, ..good });
}

#[test]
fn packets_of_a_flow_that_was_handed_back_are_ignored() {
    let mut talk = in_state(READY);
    let frame = talk.frame(Side::Client, "NOOP\r\n");
    talk.before.handed_over = 0;
    let before = talk.before;
    talk.scene.set_flow(ID, &before);
    talk.is_ignored(&frame);
    talk.is_ignored(&Frame { flags: FIN | ACK, ..frame.clone() });
    talk.scene.remove_flow(ID);
    let outcome = talk.scene.run(&frame);
    assert_eq!((outcome.mark, outcome.bytes), (0, frame.to_bytes()));
    assert_eq!(talk.scene.counts(), [0; 6]);
    talk.hand_over();
    talk.scene.remove_tuple(PacketTuple::new(frame.source, frame.destination));
    talk.is_ignored(&frame);
}
