//! Retransmitted SYNs of data connections. They are admitted again as long as they have no answer, because a filter may
//! have dropped them. They must not consume the pinhole of another connection between the same ends.

use super::{
    data::{KEY, is_admitted, pinhole, syn},
    frames::*,
    layout::*,
    scene::*,
};

fn numbered(line: u32) -> Pinhole {
    Pinhole { line, ..pinhole(u64::MAX) }
}

#[test]
fn a_syn_is_admitted_again_for_35_seconds_and_known_for_two_minutes() {
    let mut scene = Scene::new();
    scene.set_pinhole(KEY, numbered(3));
    let before = now();
    assert!(is_admitted(&scene, &syn(KEY)));
    let known = scene.admitted_syn(&syn(KEY)).unwrap();
    assert!((before..=now()).contains(&(known.until - 120 * SECOND)), "{known:?}");
    let tuple = PacketTuple::new(syn(KEY).source, syn(KEY).destination);
    assert_eq!((known.flow, known.line, known.tuple), (ID, 3, tuple));
    // With a pinhole of another line. Some hosts begin every connection with the same sequence number.
    for (seconds_ago, line, expected) in
        [(30, None, true), (40, None, false), (60, Some(4), false), (121, Some(4), true)]
    {
        line.inspect(|line| scene.set_pinhole(KEY, numbered(*line)));
        let until = now() + 120 * SECOND - seconds_ago * SECOND;
        scene.set_admitted_syn(&syn(KEY), AdmittedSyn { until, ..known });
        assert_eq!(is_admitted(&scene, &syn(KEY)), expected, "{seconds_ago}");
    }
    assert_eq!((scene.counts()[ADMITTED], scene.pinhole(KEY)), (2, None));
}

#[test]
fn the_daemon_ends_admitting_again() {
    let mut scene = Scene::new();
    let later = Frame { seq: 9, ..syn(KEY) };
    scene.set_pinhole(KEY, numbered(3));
    assert!(is_admitted(&scene, &syn(KEY)));
    scene.readmission_start.set(0, now(), 0).unwrap();
    assert!(!is_admitted(&scene, &syn(KEY)));
    scene.set_pinhole(KEY, numbered(4));
    assert!(is_admitted(&scene, &later) && is_admitted(&scene, &later));
    scene.bar(KEY.port);
    assert!(!is_admitted(&scene, &later));
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
