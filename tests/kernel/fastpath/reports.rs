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
const INITIATOR: SocketAddrV4 = SocketAddrV4::new(KEY.initiator, 20);

/// A scene with one admitted SYN, in which no port is one of servers.
fn admitted() -> Scene {
    let mut scene = Scene::new();
    scene.set_control_ports(0);
    scene.data_reports.set(0, 1, 0).unwrap();
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

/// The program changes none of these packets.
#[track_caller]
fn pass(scene: &Scene, frame: &Frame) {
    let outcome = scene.run(frame);
    assert_eq!((outcome.mark, outcome.bytes), (frame.mark, frame.to_bytes()));
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
    pass(&scene, &answer());
    pass(&scene, &Frame { payload: vec![7; 900], ..fin(true) });
    pass(&scene, &Frame { flags: FIN | ACK | PSH, tcp_options: vec![1; 12], ..fin(false) });
    let expected = [
        (true, SYN | ACK, 7000, 101),
        (true, FIN | ACK, 7901, 102),
        (false, FIN | ACK | PSH, 101, 7001),
    ];
    assert_eq!(reported(&mut scene), expected);
    // Another connection of the same ends.
    scene.set_pinhole(KEY, to_target());
    scene.run(&Frame { seq: 500, ..syn(KEY) });
    pass(&scene, &Frame { seq: 9000, ack: 501, ..answer() });
    assert_eq!(reported(&mut scene), [(true, SYN | ACK, 9000, 501)]);
}

#[test]
fn a_retransmitted_answer_is_reported_once_and_a_fin_each_time() {
    let mut scene = admitted();
    for frame in [answer(), answer(), fin(false), fin(false)] {
        pass(&scene, &frame);
    }
    let fin = (false, FIN | ACK, 101, 7001);
    assert_eq!(reported(&mut scene), [(true, SYN | ACK, 7000, 101), fin, fin]);
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
    ] {
        let mut scene = admitted();
        frames.iter().for_each(|frame| pass(&scene, frame));
        assert_eq!(reported(&mut scene), [], "{what}");
        pass(&scene, &answer());
        assert_eq!(reported(&mut scene).len(), 1, "{what}");
    }
    let mut scene = admitted();
    pass(&scene, &answer());
    assert_eq!(reported(&mut scene).len(), 1);
    let other = SocketAddrV4::new(*TARGET.ip(), 1026);
    for frame in [
        Frame { flags: RST | ACK, ..fin(true) },
        Frame { flags: FIN | RST | ACK, ..fin(true) },
        Frame { flags: ACK, ..fin(true) },
        Frame { source: other, ..fin(true) },
        Frame { ttl: 1, ..fin(true) },
        Frame { fragment_offset: 3, ..fin(true) },
    ] {
        scene.run(&frame);
        assert_eq!(reported(&mut scene), [], "{frame:?}");
    }
}

/// The rules log the connections that they admit themselves.
#[test]
fn a_connection_of_the_rules_is_not_reported() {
    let mut scene = Scene::new();
    scene.data_reports.set(0, 1, 0).unwrap();
    scene.set_rules_pinhole(KEY, u64::MAX);
    scene.run(&Frame { seq: 100, ..syn(KEY) });
    assert!(scene.admitted_syn(&Frame { seq: 100, ..syn(KEY) }).is_some());
    pass(&scene, &answer());
    pass(&scene, &fin(true));
    assert_eq!(reported(&mut scene), []);
}

#[test]
fn nothing_is_reported_without_a_reader() {
    let mut scene = admitted();
    pass(&scene, &answer());
    scene.data_reports.set(0, 0, 0).unwrap();
    pass(&scene, &fin(true));
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
    for frame in [answer(), fin(false), fin(true)] {
        pass(&scene, &frame);
    }
    assert_eq!(reported(&mut scene), []);
    scene.set_admitted_syn(&first, AdmittedSyn { interface: OTHER_INTERFACE, ..known });
    for frame in [answer(), fin(false), fin(true)] {
        pass(&scene, &frame);
    }
    let expected = [(true, SYN | ACK, 7000, 101), (true, FIN | ACK, 7001, 102)];
    assert_eq!(reported(&mut scene), expected);
}

#[test]
fn a_full_ring_costs_reports_alone() {
    let mut scene = admitted();
    pass(&scene, &answer());
    let rooms = (1 << 20) / (DataRecord::SIZE + 8);
    for _ in 0..rooms + 10 {
        pass(&scene, &fin(true));
    }
    let count = reported(&mut scene).len();
    assert!((rooms - 1..=rooms).contains(&count), "{count}");
    pass(&scene, &fin(true));
    assert_eq!(reported(&mut scene).len(), 1);
}
