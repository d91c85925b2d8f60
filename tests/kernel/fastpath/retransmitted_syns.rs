//! Retransmitted SYNs of data connections. They are admitted again as long as they have no answer, because a filter may
//! have dropped them. They must not consume the pinhole of another connection between the same ends.

use std::net::SocketAddr;

use super::{
    data::{is_admitted_with, pinhole, syn},
    frames::*,
    layout::*,
    scene::*,
};

/// Announces the endpoint of `key` again, after a transfer that failed. Returns the mark of an admitted SYN.
fn announces(talk: &mut Talk, is_active: bool, text: &str) -> (PinholeKey, u32) {
    let lines: &[_] = match is_active {
        true => &[(Side::Client, text), (Side::Server, "200 ok")],
        false => {
            let command = if text.starts_with("229") { "EPSV" } else { "PASV" };
            &[(Side::Client, command), (Side::Server, text)]
        }
    };
    for (side, line) in lines {
        let frame = talk.frame(*side, format!("{line}\r\n"));
        talk.scene.run(&frame);
        talk.before = talk.scene.flow(ID);
        talk.scene.lines();
    }
    let Flow { active_mark, passive_mark, .. } = talk.before;
    (talk.before.pinhole, if is_active { active_mark } else { passive_mark })
}

fn fails(talk: &mut Talk) {
    talk.says(Side::Client, "RETR one");
    talk.says(Side::Server, "425 no connection");
}

/// Flows, each with whether the mode is active, and the line that announces.
fn flows_and_announcements() -> [(Flow, bool, &'static str); 7] {
    [
        (routed(), true, "PORT 10,0,0,2,4,1"),
        (routed(), true, "EPRT |1|10.0.0.2|1025|"),
        (routed(), false, "227 (192,0,2,9,4,1)"),
        (masqueraded(), true, "PORT 192,168,150,80,9,9"),
        (published(), false, "227 (192,168,150,90,9,9)"),
        (routed6(), true, "EPRT |2|2001:db8:1::2|1025|"),
        (published6(), false, "229 (|||1025|)"),
    ]
}

fn tuple_of(syn: &Frame) -> PacketTuple {
    PacketTuple::new(syn.source, syn.destination)
}

fn answer(syn: &Frame, ack: u32) -> Frame {
    Frame { ack, ..Frame::new(syn.destination, syn.source, SYN | ACK) }
}

/// A rule that limits new connections drops it, for instance. Its retransmission must not be lost as well.
#[test]
fn a_syn_without_an_answer_is_admitted_again() {
    for (flow, is_active, text) in flows_and_announcements() {
        let mut talk = Talk::new(flow);
        let (key, mark) = announces(&mut talk, is_active, text);
        let syn = Frame { seq: 7000, ..syn(key) };
        let is_admitted = |scene: &Scene, frame: &Frame| is_admitted_with(scene, frame, mark);
        assert!(is_admitted(&talk.scene, &syn), "{text}");
        let mut another = Frame { seq: 7001, ..syn.clone() };
        assert!(!is_admitted(&talk.scene, &another), "{text}");
        another.seq = 7000;
        another.source.set_port(20_000);
        assert!(!is_admitted(&talk.scene, &another), "{text}");
        let wrong = Frame { checksum: Checksum::WrongBy(1), ..syn.clone() };
        assert!(!is_admitted(&talk.scene, &wrong), "{text}");
        talk.scene.remove_flow(ID);
        // If the rules have a pinhole for it, they decide.
        talk.scene.set_rules_pinhole(key, u64::MAX);
        assert!(!is_admitted(&talk.scene, &syn), "{text}: a pinhole of the rules");
        talk.scene.set_rules_pinhole(key, now() - 1);
        talk.scene.run(&answer(&syn, 7000));
        for _ in 0..2 {
            assert!(is_admitted(&talk.scene, &syn), "{text}");
        }
        assert_eq!(talk.scene.counts()[ADMITTED], 1, "{text}");

        let mut answer = answer(&syn, 7001);
        if text.contains(",9,9") {
            // NAT has translated the SYN.
            answer.source.set_ip(ip("192.168.1.1"));
            answer.destination = SocketAddr::new(ip("192.168.1.2"), 9999);
        }
        talk.scene.run(&answer);
        assert!(!is_admitted(&talk.scene, &syn), "{text}: answered");
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

#[test]
fn a_retransmitted_syn_consumes_no_later_pinhole() {
    for (flow, is_active, text) in flows_and_announcements() {
        let mut talk = Talk::new(flow);
        let (key, mark) = announces(&mut talk, is_active, text);
        let old = Frame { seq: 7000, ..syn(key) };
        assert!(is_admitted_with(&talk.scene, &old, mark), "{text}");
        fails(&mut talk);

        assert_eq!(announces(&mut talk, is_active, text), (key, mark));
        let open = talk.scene.pinhole(key);
        for _ in 0..3 {
            assert!(!is_admitted_with(&talk.scene, &old, mark), "{text}");
        }
        assert_eq!(talk.scene.pinhole(key), open, "{text}");
        let new = Frame { seq: 7001, ..old.clone() };
        assert!(is_admitted_with(&talk.scene, &new, mark), "{text}");
        assert_eq!(talk.scene.counts()[ADMITTED], 2, "{text}");
        fails(&mut talk);

        // The retransmission of the second one, which also waits for an answer.
        announces(&mut talk, is_active, text);
        assert!(!is_admitted_with(&talk.scene, &new, mark), "{text}");
        // Another port of the initiator is another connection, whatever its sequence number.
        let mut other = new;
        other.source.set_port(20_000);
        assert!(is_admitted_with(&talk.scene, &other, mark), "{text}");
        assert_eq!(talk.scene.pinhole(key), None, "{text}");
    }
}

const KEY: PinholeKey = super::data::KEY;

fn numbered(line: u32) -> Pinhole {
    Pinhole { line, ..pinhole(u64::MAX) }
}

fn is_admitted(scene: &Scene, frame: &Frame) -> bool {
    is_admitted_with(scene, frame, pinhole(0).mark)
}

#[test]
fn it_consumes_no_pinhole_of_another_session_either() {
    let mut scene = Scene::new();
    scene.set_pinhole(KEY, numbered(3));
    assert!(is_admitted(&scene, &syn(KEY)));
    let other = Pinhole { flow: ID + 1, ..numbered(3) };
    scene.set_pinhole(KEY, other);
    assert!(!is_admitted(&scene, &syn(KEY)));
    assert_eq!(scene.pinhole(KEY), Some(other));
}

/// It may have been lost on its way to the gateway, or have come too early.
#[test]
fn a_syn_that_no_pinhole_admitted_is_admitted_later() {
    let mut scene = Scene::new();
    assert!(!is_admitted(&scene, &syn(KEY)));
    scene.set_pinhole(KEY, Pinhole { deadline: now() - 1, ..numbered(3) });
    assert!(!is_admitted(&scene, &syn(KEY)));
    scene.set_pinhole(KEY, numbered(4));
    assert!(is_admitted(&scene, &syn(KEY)));
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
fn a_syn_that_the_rules_admitted_consumes_no_pinhole_of_the_program() {
    let mut scene = Scene::new();
    for reserved in [None, Some(Pinhole { flow: 0, ..pinhole(0) })] {
        reserved.into_iter().for_each(|reserved| scene.set_pinhole(KEY, reserved));
        scene.set_rules_pinhole(KEY, now() + 30 * SECOND);
        let mut old = syn(KEY);
        old.source.set_port(if reserved.is_some() { 2000 } else { 1000 });
        let before = now();
        assert!(!is_admitted(&scene, &old));
        let known = scene.admitted_syn(&old).unwrap();
        assert!((before..=now()).contains(&(known.until - 120 * SECOND)), "{known:?}");
        assert_eq!((known.flow, known.line, known.tuple), (0, 0, tuple_of(&old)));

        scene.set_pinhole(KEY, numbered(3));
        for _ in 0..3 {
            assert!(!is_admitted(&scene, &old));
        }
        assert_eq!(scene.pinhole(KEY), Some(numbered(3)));
        assert!(is_admitted(&scene, &Frame { seq: old.seq + 1, ..old }));
    }
    assert_eq!(scene.counts()[ADMITTED], 2);
}

#[test]
fn a_pinhole_of_the_rules_admits_one_syn() {
    let mut scene = Scene::new();
    let [mut first, mut second] = [syn(KEY), syn(KEY)];
    first.source.set_port(1000);
    second.source.set_port(2000);
    second.seq += 1;
    scene.set_rules_pinhole(KEY, u64::MAX);
    for frame in [&first, &second] {
        assert!(!is_admitted(&scene, frame));
    }
    assert!(scene.admitted_syn(&first).is_some());
    assert_eq!(scene.admitted_syn(&second), None);

    // Its retransmission leaves the next one to another SYN.
    scene.set_rules_pinhole(KEY, u64::MAX);
    for frame in [&first, &second] {
        assert!(!is_admitted(&scene, frame));
    }
    assert!(scene.admitted_syn(&second).is_some());
}

#[test]
fn a_syn_that_the_rules_do_not_admit_is_admitted_later() {
    let mut scene = Scene::new();
    let other = PinholeKey { port: KEY.port + 1, ..KEY };
    scene.set_rules_pinhole(other, u64::MAX);
    assert!(!is_admitted(&scene, &syn(KEY)), "another pinhole");
    scene.set_rules_pinhole(KEY, now() - 1);
    assert!(!is_admitted(&scene, &syn(KEY)), "after its deadline");
    scene.set_rules_pinhole(KEY, u64::MAX);
    let wrong = Frame { checksum: Checksum::WrongBy(1), ..syn(KEY) };
    assert!(!is_admitted(&scene, &wrong), "the kernel drops it");
    assert_eq!(scene.admitted_syn(&syn(KEY)), None);
    scene.set_pinhole(KEY, numbered(3));
    assert!(is_admitted(&scene, &syn(KEY)));
}

/// The kernel may have dropped it, so its own pinhole admits it again.
#[test]
fn a_syn_from_elsewhere_is_retransmitted_to_its_own_pinhole_alone() {
    let mut scene = Scene::new();
    let elsewhere = |line| Pinhole { interface: OTHER_INTERFACE, ..numbered(line) };
    scene.set_pinhole(KEY, elsewhere(3));
    assert!(is_admitted(&scene, &syn(KEY)));
    assert!(is_admitted(&scene, &syn(KEY)));
    scene.set_pinhole(KEY, elsewhere(4));
    assert!(!is_admitted(&scene, &syn(KEY)));
    assert_eq!(scene.pinhole(KEY), Some(elsewhere(4)));
    let mut other = syn(KEY);
    other.source.set_port(20_000);
    assert!(is_admitted(&scene, &other));
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
