//! Retransmitted SYNs of data connections. They are admitted again as long as they have no answer, because a filter may
//! have dropped them. They must not consume the pinhole of another connection between the same ends.

use super::{
    data::{KEY, is_admitted, pinhole, syn},
    frames::*,
    layout::*,
    scene::*,
};

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
    assert_eq!(scene.counts()[ADMITTED], 1);
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

fn numbered(line: u32) -> Pinhole {
    Pinhole { line, ..pinhole(u64::MAX) }
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
    let tuple = PacketTuple::new(syn(KEY).source, syn(KEY).destination);
    assert_eq!((known.flow, known.line, known.tuple), (ID, 3, tuple));
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
