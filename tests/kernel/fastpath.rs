//! The fast path's BPF program, run by the kernel (`BPF_PROG_TEST_RUN`) packet by packet: which lines it lets pass,
//! and at which packets it hands the flow back.
//!
//! These tests need root. Packets are built and parsed with etherparse.

mod announcements;
mod data;
pub mod frames;
mod ignored;
mod processors;
mod refused;
mod retransmitted_syns;
pub mod scene;
mod walk;

use crate::{admitted_syns, layout, model, rng};
use frames::WINDOW;
use layout::*;
use scene::*;

#[test]
fn a_record_has_the_line_byte_for_byte() {
    let mut talk = Talk::new(Flow { line_count: 41, ..routed() });
    let frame = talk.frame(Side::Client, "noop\r\n");
    let before = now();
    talk.scene.run(&frame);
    let after = now();
    let records = talk.scene.records();
    let [record] = records.as_slice() else { panic!("{records:?}") };
    let at = u64::from_ne_bytes(*record[8..].first_chunk().unwrap());
    assert!((before..=after).contains(&at), "{at}");
    let mut expected = [0; LineRecord::SIZE];
    let mut put = |at: usize, bytes: &[u8]| expected[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &ID.to_ne_bytes());
    put(8, &at.to_ne_bytes());
    put(16, &42_u32.to_ne_bytes());
    put(20, &0_u32.to_ne_bytes());
    put(24, &1000_u32.to_ne_bytes());
    put(28, &0xffff_ffe0_u32.to_ne_bytes());
    put(42, &[0xff, 0xff, 10, 0, 0, 2]);
    put(58, &[0xff, 0xff, 192, 0, 2, 9]);
    put(64, &CLIENT.port().to_be_bytes());
    put(66, &SERVER.port().to_be_bytes());
    put(68, &6_u16.to_ne_bytes());
    put(70, &WINDOW.to_be_bytes());
    put(72, &[0, 0, 3, 0]); // opened_pinhole, is_fin, port_digits
    put(80, b"noop\r\n");
    assert_eq!(*record, expected);
}

#[test]
fn a_full_ring_hands_the_flow_back() {
    let mut talk = Talk::new(routed());
    let mut inspected = 0;
    let (frame, flow) = loop {
        let side = if inspected % 2 == 0 { Side::Client } else { Side::Server };
        let frame = talk.frame(side, if inspected % 2 == 0 { "NOOP\r\n" } else { "200 ok\r\n" });
        let flow = talk.scene.flow(ID);
        let outcome = talk.scene.run(&frame);
        if outcome.mark != talk.before.inspected_mark {
            assert_eq!((outcome.mark, outcome.bytes), (0, frame.to_bytes()));
            break (frame, flow);
        }
        inspected += 1;
        talk.before = talk.scene.flow(ID);
    };
    // A record takes 216 bytes with its header of 8, and the ring has 1 MiB.
    assert!((4800..=4854).contains(&inspected), "{inspected}");
    assert_eq!(talk.scene.flow(ID), Flow { handed_over: 0, ..flow });
    let counts = talk.scene.counts();
    assert_eq!([INSPECTED, RING_FULL, HANDED_BACK].map(|which| counts[which]), [inspected, 1, 1]);
    assert_eq!(talk.scene.records().len() as u64, inspected);
    talk.hand_over();
    talk.inspected(&frame, &frame.payload.clone());
}
