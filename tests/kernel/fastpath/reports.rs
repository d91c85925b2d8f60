//! The reports of a data connection: its SYN-ACK and its FINs.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{
    data::{KEY, pinhole, syn},
    frames::*,
    layout::*,
    scene::*,
};

/// The target, whose address and that of the initiator NAT translates.
const TARGET: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 150, 80), 1025);
const TRANSLATED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 150, 1), 20);
/// The mark of reported packets.
const REPORTED: u32 = 0x3000_0000;
const INITIATOR: SocketAddrV4 = SocketAddrV4::new(KEY.initiator, 20);

/// A scene with one admitted SYN, in which no port is one of servers.
fn admitted() -> Scene {
    let mut scene = Scene::new();
    scene.set_control_ports(0);
    scene.data_reports.set(0, REPORTED, 0).unwrap();
    scene.set_pinhole(KEY, to_target());
    scene.run(&Frame { seq: 100, ..syn(KEY) });
    assert_eq!(scene.counts()[ADMITTED], 1);
    scene
}

fn to_target() -> Pinhole {
    Pinhole { target: *TARGET.ip(), target_interface: LOOPBACK, ..pinhole(u64::MAX) }
}

fn answer() -> Frame {
    Frame { seq: 7000, ack: 101, ..Frame::new(TARGET, TRANSLATED, SYN | ACK) }
}

/// The FIN of the target, or of the initiator.
fn fin(from_target: bool) -> Frame {
    match from_target {
        true => Frame { seq: 7001, ack: 102, ..Frame::new(TARGET, TRANSLATED, FIN | ACK) },
        false => Frame { seq: 101, ack: 7001, flags: FIN | ACK, ..syn(KEY) },
    }
}

/// Whether the program marks the packet as reported. It must not change the packet otherwise.
#[track_caller]
fn is_reported(scene: &Scene, frame: &Frame) -> bool {
    let outcome = scene.run(frame);
    assert_eq!(outcome.bytes, frame.to_bytes());
    assert!([frame.mark, REPORTED].contains(&outcome.mark), "{outcome:?}");
    outcome.mark == REPORTED
}

/// What is reported: whether the target sent it, its flags, and both numbers.
fn reported(scene: &mut Scene) -> Vec<(bool, u16, u32, u32)> {
    let records = scene.data_records();
    let read = |record: &DataRecord| {
        assert_eq!((record.initiator(), record.target()), (INITIATOR, TARGET));
        assert!((1..=now()).contains(&record.at_ns));
        (record.from_target == 1, record.flags.into(), record.end, record.acknowledged)
    };
    records.iter().map(read).collect()
}

#[test]
fn the_answer_and_both_ends_of_an_admitted_connection_are_reported() {
    let mut scene = admitted();
    assert!(is_reported(&scene, &answer()));
    assert!(is_reported(&scene, &Frame { payload: vec![7; 900], ..fin(true) }));
    let ends = Frame { flags: FIN | ACK | PSH, tcp_options: vec![1; 12], ..fin(false) };
    assert!(is_reported(&scene, &ends));
    let expected = [
        (true, SYN | ACK, 7000, 101),
        (true, FIN | ACK, 7901, 102),
        (false, FIN | ACK | PSH, 101, 7001),
    ];
    assert_eq!(reported(&mut scene), expected);
    // Another connection of the same ends.
    scene.set_pinhole(KEY, to_target());
    scene.run(&Frame { seq: 500, ..syn(KEY) });
    assert!(is_reported(&scene, &Frame { seq: 9000, ack: 501, ..answer() }));
    assert_eq!(reported(&mut scene), [(true, SYN | ACK, 9000, 501)]);
}

#[test]
fn each_is_reported_once_and_logged_by_the_rules_then() {
    let mut scene = admitted();
    for (frame, expected) in [
        (answer(), true),
        (answer(), false),
        (fin(false), true),
        (fin(false), false),
        (fin(true), true),
        (Frame { seq: 9, ..fin(true) }, false),
    ] {
        assert_eq!(is_reported(&scene, &frame), expected, "{frame:?}");
    }
    assert_eq!(reported(&mut scene).len(), 3);
}

#[test]
fn other_packets_are_not_reported() {
    for (what, frames) in [
        ("no SYN-ACK", vec![fin(true), fin(false)]),
        ("a SYN-ACK to another SYN", vec![Frame { ack: 99, ..answer() }, fin(true)]),
        (
            "not the target's",
            vec![Frame { source: SocketAddrV4::new(KEY.initiator, 1025), ..answer() }, fin(false)],
        ),
        (
            "its receiver discards the SYN-ACK",
            vec![Frame { checksum: Checksum::WrongBy(1), ..answer() }, fin(true), fin(false)],
        ),
        ("a rule of others has marked it", vec![Frame { mark: 7, ..answer() }, fin(true)]),
    ] {
        let mut scene = admitted();
        assert!(!frames.iter().any(|frame| is_reported(&scene, frame)), "{what}");
        assert_eq!(reported(&mut scene), [], "{what}");
        assert!(is_reported(&scene, &answer()), "{what}");
    }
    let mut scene = admitted();
    assert!(is_reported(&scene, &answer()));
    let other = SocketAddrV4::new(*TARGET.ip(), 1026);
    for frame in [
        Frame { flags: RST | ACK, ..fin(true) },
        Frame { flags: FIN | RST | ACK, ..fin(true) },
        Frame { flags: ACK, ..fin(true) },
        Frame { source: other, ..fin(true) },
        Frame { ttl: 1, ..fin(true) },
        Frame { fragment_offset: 3, ..fin(true) },
    ] {
        assert!(!is_reported(&scene, &frame), "{frame:?}");
    }
    assert!(is_reported(&scene, &fin(true)));
    assert_eq!(reported(&mut scene).len(), 2);
}

/// The rules log the connections that they admit themselves.
#[test]
fn a_connection_of_the_rules_is_not_reported() {
    let mut scene = Scene::new();
    scene.data_reports.set(0, REPORTED, 0).unwrap();
    scene.set_rules_pinhole(KEY, u64::MAX);
    let first = Frame { seq: 100, ..syn(KEY) };
    scene.run(&first);
    assert!(scene.admitted_syn(&first).is_some());
    assert!(!is_reported(&scene, &answer()) && !is_reported(&scene, &fin(true)));
}

#[test]
fn nothing_is_reported_without_a_reader() {
    let mut scene = admitted();
    assert!(is_reported(&scene, &answer()));
    scene.data_reports.set(0, 0, 0).unwrap();
    assert!(!is_reported(&scene, &fin(true)));
    assert_eq!(reported(&mut scene), [(true, SYN | ACK, 7000, 101)]);
}

/// A host elsewhere can neither begin nor end a connection in the reports.
#[test]
fn what_comes_from_elsewhere_is_not_reported() {
    let mut scene = admitted();
    let first = Frame { seq: 100, ..syn(KEY) };
    let known = scene.admitted_syn(&first).unwrap();
    assert_eq!(known.interface, LOOPBACK);
    scene.set_admitted_syn(&first, AdmittedSyn { target_interface: OTHER_INTERFACE, ..known });
    assert!(![answer(), fin(false), fin(true)].iter().any(|frame| is_reported(&scene, frame)));
    scene.set_admitted_syn(&first, AdmittedSyn { interface: OTHER_INTERFACE, ..known });
    let outcomes = [answer(), fin(false), fin(true)].map(|frame| is_reported(&scene, &frame));
    assert_eq!(outcomes, [true, false, true]);
    assert_eq!(reported(&mut scene).len(), 2);
}

#[test]
fn what_has_no_room_in_the_ring_is_not_marked() {
    let mut scene = admitted();
    let first = Frame { seq: 100, ..syn(KEY) };
    let known = scene.admitted_syn(&first).unwrap();
    let rooms = (1 << 20) / (DataRecord::SIZE + 8);
    let mut answers = 0;
    while is_reported(&scene, &answer()) {
        answers += 1;
        assert!(answers <= rooms);
        scene.set_admitted_syn(&first, known); // not reported yet
    }
    assert!(answers >= rooms - 1 && !is_reported(&scene, &fin(true)));
    assert_eq!(reported(&mut scene).len(), answers);
    assert!(is_reported(&scene, &fin(true)));
}
