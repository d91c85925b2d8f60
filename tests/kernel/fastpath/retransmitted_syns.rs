//! Retransmitted SYNs of data connections. They are admitted again as long as they have no answer, because a filter may
//! have dropped them. They must not consume the pinhole of another connection between the same ends.

use std::net::SocketAddr;

use super::{
    data::{is_admitted_with, pinhole, syn},
    frames::*,
    layout::*,
    scene::*,
};

fn tuple_of(syn: &Frame) -> PacketTuple {
    PacketTuple::new(syn.source, syn.destination)
}

fn answer(syn: &Frame, ack: u32) -> Frame {
    Frame { ack, ..Frame::new(syn.destination, syn.source, SYN | ACK) }
}

/// A rule that limits new connections drops it, for instance. Its retransmission must not be lost as well.
#[test]
fn a_syn_without_an_answer_is_admitted_again() {
    for is_translated in [false, true] {
        let mut scene = Scene::new();
        scene.set_pinhole(KEY, numbered(3));
        let syn = Frame { seq: 7000, ..syn(KEY) };
        assert!(is_admitted(&scene, &syn));
        let wrong = Frame { checksum: Checksum::WrongBy(1), ..syn.clone() };
        assert!(!is_admitted(&scene, &wrong));
        // If the rules have a pinhole for it, they decide.
        scene.set_rules_pinhole(KEY, u64::MAX);
        assert!(!is_admitted(&scene, &syn), "a pinhole of the rules");
        scene.set_rules_pinhole(KEY, now() - 1);
        scene.run(&answer(&syn, 7000));
        for _ in 0..2 {
            assert!(is_admitted(&scene, &syn));
        }
        assert_eq!(scene.counts()[ADMITTED], 1);

        let mut answer = answer(&syn, 7001);
        if is_translated {
            // NAT has translated the SYN. The answer has its port.
            answer.source.set_ip(ip("192.168.1.1"));
            answer.destination = SocketAddr::new(ip("192.168.1.2"), 9999);
        }
        scene.run(&answer);
        assert!(!is_admitted(&scene, &syn), "answered");
    }
}

#[test]
fn a_syn_is_admitted_again_for_35_seconds_unless_the_daemon_ends_that() {
    let mut scene = Scene::new();
    scene.set_pinhole(KEY, numbered(3));
    assert!(is_admitted(&scene, &syn(KEY)));
    let known = scene.admitted_syn(&syn(KEY)).unwrap();
    for (seconds_ago, expected) in [(30, true), (40, false)] {
        let until = now() + (120 - seconds_ago) * SECOND;
        scene.set_admitted_syn(&syn(KEY), AdmittedSyn { until, ..known });
        assert_eq!(is_admitted(&scene, &syn(KEY)), expected, "{seconds_ago}");
    }
    scene.set_admitted_syn(&syn(KEY), known);
    assert!(is_admitted(&scene, &syn(KEY)));
    scene.readmission_start.set(0, now(), 0).unwrap();
    assert!(!is_admitted(&scene, &syn(KEY)));
    scene.set_pinhole(KEY, numbered(4));
    let later = Frame { seq: 9, ..syn(KEY) };
    for _ in 0..2 {
        assert!(is_admitted(&scene, &later));
    }
    scene.bar(KEY.port);
    assert!(!is_admitted(&scene, &later));
}

const KEY: PinholeKey = super::data::KEY;

fn numbered(line: u32) -> Pinhole {
    Pinhole { line, ..pinhole(u64::MAX) }
}

fn is_admitted(scene: &Scene, frame: &Frame) -> bool {
    is_admitted_with(scene, frame, pinhole(0).mark)
}

/// Some hosts begin every connection with the same sequence number.
#[test]
fn a_syn_is_known_for_two_minutes() {
    let mut scene = Scene::new();
    scene.set_pinhole(KEY, numbered(3));
    let before = now();
    assert!(is_admitted(&scene, &syn(KEY)));
    let known = scene.admitted_syn(&syn(KEY)).unwrap();
    assert!((before..=now()).contains(&(known.until - 120 * SECOND)), "{known:?}");
    assert_eq!((known.flow, known.line, known.tuple), (ID, 3, tuple_of(&syn(KEY))));
    scene.set_pinhole(KEY, numbered(4));
    let until = now() + 60 * SECOND;
    scene.set_admitted_syn(&syn(KEY), AdmittedSyn { until, ..known });
    assert!(!is_admitted(&scene, &syn(KEY)));
    scene.set_admitted_syn(&syn(KEY), AdmittedSyn { until: now() - 1, ..known });
    assert!(is_admitted(&scene, &syn(KEY)));
}

#[test]
fn more_syns_than_the_map_has_room_for_are_admitted() {
    let mut scene = Scene::new();
    let capacity = 16384;
    for number in 0..=capacity + 100 {
        scene.set_pinhole(KEY, numbered(number));
        let mut frame = syn(KEY);
        frame.source.set_port(1000 + u16::try_from(number).unwrap());
        assert!(is_admitted(&scene, &frame), "{number}");
        if number % 1000 == 0 {
            scene.set_pinhole(KEY, numbered(capacity * 2));
            assert!(!is_admitted(&scene, &frame), "{number}: the latest are known");
        }
    }
}
