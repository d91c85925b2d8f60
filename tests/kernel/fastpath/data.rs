//! The SYN of a data connection, which consumes its pinhole.

use std::net::SocketAddr;

use super::{frames::*, layout::*, scene::*};

pub const KEY: PinholeKey = PinholeKey { initiator: SERVER.ip(), arrival: PUBLIC, port: 1025 };
const KEY6: PinholeKey = PinholeKey { initiator: SERVER6, arrival: PUBLIC6, port: 1025 };
const MARK: u32 = 0xab5_0000;

/// The SYN that a pinhole admits.
pub fn syn(key: PinholeKey) -> Frame {
    Frame::new(SocketAddr::new(key.initiator, 20), key.arrival(), SYN)
}

pub fn pinhole(deadline: u64) -> Pinhole {
    Pinhole { flow: ID, deadline, line: 3, mark: MARK, interface: LOOPBACK, ..Pinhole::default() }
}

/// Whether the program marks the packet. It must not change the packet otherwise.
#[track_caller]
pub fn is_admitted(scene: &Scene, frame: &Frame) -> bool {
    let outcome = scene.run(frame);
    let is_admitted = outcome.mark == frame.mark | MARK;
    assert_eq!(outcome.bytes, frame.to_bytes());
    assert!(is_admitted || outcome.mark == frame.mark, "{outcome:?}");
    is_admitted
}

#[test]
fn only_a_plain_syn_with_the_right_tuple_is_admitted() {
    let mut scene = Scene::new();
    scene.set_pinhole(KEY, pinhole(u64::MAX));
    let good = syn(KEY);
    let flags = [SYN | ACK, ACK, RST, FIN, 0, FIN | ACK, RST | ACK, ACK | PSH];
    let mut others = flags.map(|flags| Frame { flags, ..good.clone() }).to_vec();
    // Marks of ours.
    let marks = [1 << 17, 1 << 31, 5 | 1 << 30];
    others.extend(marks.map(|mark| Frame { mark, ..good.clone() }));
    let away = SocketAddr::new(ip("192.0.2.8"), 20);
    others.extend([
        Frame { payload: b"x".to_vec(), flags: ACK | PSH, ..good.clone() },
        Frame { source: away, ..good.clone() },
        Frame { destination: SocketAddr::new(KEY.arrival, 1026), ..good.clone() },
        Frame { destination: SocketAddr::new(KEY.initiator, 1025), ..good.clone() },
        Frame { source: good.destination, destination: good.source, ..good.clone() },
        Frame { fragment_offset: 1, ..good.clone() },
    ]);
    for other in others {
        assert!(!is_admitted(&scene, &other), "{other:?}");
    }
    assert_eq!(scene.counts(), [0; 6]);
    assert_eq!(scene.pinhole(KEY), Some(pinhole(u64::MAX)));
    // With a mark of others, and again.
    let good = Frame { mark: 5, flags: SYN | ECE | CWR, ..good };
    assert!(is_admitted(&scene, &good) && is_admitted(&scene, &good));
    assert_eq!((scene.counts()[ADMITTED], scene.pinhole(KEY)), (1, None));
}

#[test]
fn a_pinhole_that_is_over_or_reserved_admits_nothing() {
    let mut scene = Scene::new();
    let reserved = Pinhole { flow: 0, ..pinhole(u64::MAX) };
    for closed in [pinhole(0), pinhole(now() - 1), reserved] {
        scene.set_pinhole(KEY, closed);
        assert!(!is_admitted(&scene, &syn(KEY)), "{closed:?}");
        assert_eq!(scene.pinhole(KEY), Some(closed));
    }
}

/// TCP Fast Open (RFC 7413).
#[test]
fn a_syn_with_data_is_admitted_if_its_checksum_is_right() {
    let mut scene = Scene::new();
    let lengths = [1, 127, 128, 129, 536, 1407, 1408, 1460, 1535, 1536];
    for (length, key) in lengths.into_iter().flat_map(|length| [(length, KEY), (length, KEY6)]) {
        scene.set_pinhole(key, pinhole(u64::MAX));
        let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let good = Frame { payload, ..syn(key) };
        for off in [1, 0x100] {
            let wrong = Frame { checksum: Checksum::WrongBy(off), ..good.clone() };
            assert!(!is_admitted(&scene, &wrong), "{length}");
        }
        assert!(is_admitted(&scene, &good), "{length}");
        assert_eq!(scene.pinhole(key), None);
        scene.set_pinhole(key, pinhole(u64::MAX));
        assert!(is_admitted(&scene, &Frame { checksum: Checksum::OfPseudoHeader, ..good }));
    }
    // Longer ones do not come in an Ethernet frame of 1500 bytes.
    scene.set_pinhole(KEY, pinhole(u64::MAX));
    assert!(!is_admitted(&scene, &Frame { payload: vec![7; 1537], ..syn(KEY) }));
}

/// It may be forged, and dropped by rp_filter; or the initiator has two paths to this machine.
#[test]
fn a_syn_from_elsewhere_does_not_consume_the_pinhole() {
    let mut scene = Scene::new();
    let from = |port| {
        let mut frame = syn(KEY);
        frame.source.set_port(port);
        frame
    };
    let elsewhere = Pinhole { interface: OTHER_INTERFACE, ..pinhole(u64::MAX) };
    scene.set_pinhole(KEY, elsewhere);
    assert!(is_admitted(&scene, &from(5000)));
    assert!(is_admitted(&scene, &from(5000)), "a retransmission");
    assert!(!is_admitted(&scene, &from(5001)), "one connection");
    let taken = Pinhole { elsewhere_port: 5000_u16.to_be().into(), ..elsewhere };
    assert_eq!(scene.pinhole(KEY), Some(taken));
    // The pinhole of another line is not for its retransmission.
    let other = Pinhole { line: 4, ..elsewhere };
    scene.set_pinhole(KEY, other);
    assert!(!is_admitted(&scene, &from(5000)));
    assert_eq!(scene.pinhole(KEY), Some(other));
    assert!(is_admitted(&scene, &from(20_000)));
    scene.set_pinhole(KEY, Pinhole { interface: LOOPBACK, ..taken });
    assert!(is_admitted(&scene, &from(5001)), "where the initiator is");
    assert_eq!(scene.pinhole(KEY), None);
}

#[test]
fn packets_other_than_tcp_on_ethernet_are_ignored() {
    // What the bytes at these offsets make of the SYN.
    type Case<'a> = (PinholeKey, &'a str, &'a [(usize, u8)]);
    let cases: [Case; 15] = [
        (KEY, "another protocol", &[(12, 0x86)]),
        (KEY, "UDP", &[(14 + 9, 17)]),
        (KEY, "version 6", &[(14, 0x65)]),
        (KEY, "short header", &[(14, 0x44)]),
        (KEY, "long header", &[(14, 0x4f)]),
        (KEY, "short header of TCP", &[(14 + 20 + 12, 0x40)]),
        (KEY, "long header of TCP", &[(14 + 20 + 12, 0xf0)]),
        (KEY, "longer than the frame", &[(14 + 3, 41)]),
        (KEY, "shorter than its headers", &[(14 + 3, 39)]),
        (KEY6, "as IPv4", &[(12, 8), (13, 0)]),
        (KEY6, "UDP", &[(14 + 6, 17)]),
        (KEY6, "version 4", &[(14, 0x40)]),
        (KEY6, "short header of TCP", &[(14 + 40 + 12, 0x40)]),
        (KEY6, "longer than the frame", &[(14 + 5, 21)]),
        (KEY6, "shorter than its headers", &[(14 + 5, 19)]),
    ];
    let mut scene = Scene::new();
    [KEY, KEY6].into_iter().for_each(|key| scene.set_pinhole(key, pinhole(u64::MAX)));
    let is_ignored = |what, bytes: Vec<u8>| {
        assert_eq!(scene.run_bytes(&bytes, 0), Outcome { mark: 0, bytes }, "{what}");
    };
    for (key, what, changes) in cases {
        let mut bytes = syn(key).to_bytes();
        changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        is_ignored(what, if key == KEY { with_right_ip_checksum(bytes) } else { bytes });
    }
    for key in [KEY, KEY6] {
        let good = syn(key).to_bytes();
        is_ignored("VLAN", [&good[..12], &[0x81, 0, 0, 5], &good[12..]].concat());
        is_ignored("cut off", good[..good.len() - 1].to_vec());
    }
    assert_eq!(scene.counts(), [0; 6]);
    assert!(is_admitted(&scene, &syn(KEY)) && is_admitted(&scene, &syn(KEY6)));
}
