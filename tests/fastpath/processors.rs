//! Packets of one flow on two processors at the same time.

use std::{sync::Barrier, thread};

use crate::{
    data::syn,
    frames::Frame,
    layout::{ADMITTED, HANDED_BACK, JUDGED, NOTHING, OPENED, Side},
    scene::{ID, Scene, Talk, routed},
};

const ROUNDS: usize = 3000;

/// Runs both at once. Which of them passed with a mark?
fn at_once(scene: &Scene, frames: [&Frame; 2]) -> [bool; 2] {
    let start = Barrier::new(2);
    let run = |frame: &Frame| {
        let bytes = frame.to_bytes();
        start.wait();
        scene.run_bytes(&bytes, 0).mark != 0
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| run(frames[1]));
        [run(frames[0]), other.join().unwrap()]
    })
}

#[test]
fn of_two_announcements_at_once_at_most_one_opens_a_pinhole() {
    let mut talk = Talk::new(routed());
    for round in 0..ROUNDS {
        let port = 1 + round % 255;
        let first = talk.frame(Side::Client, format!("PORT 10,0,0,2,4,{port}\r\n"));
        // A retransmission, another line in its place, and a spoofed one out of step.
        let mut second = first.clone();
        match round % 3 {
            0 => second.payload[14] = b'5',
            1 => second.seq ^= 1,
            _ => {}
        }
        let before = talk.scene.counts();
        let passed = at_once(&talk.scene, [&first, &second]);
        let after = talk.scene.counts();
        let counted = |which: usize| after[which] - before[which];
        let flow = talk.scene.flow(ID);
        let steps = talk.scene.steps();
        let holes = talk.scene.holes();
        let what = format!("{round}: {passed:?} {steps:?} {holes:?} {flow:?}");

        assert!(counted(OPENED) <= 1, "{what}");
        assert_eq!(steps.len() as u64, counted(OPENED), "{what}");
        assert_eq!(counted(JUDGED), passed.map(u64::from).iter().sum::<u64>(), "{what}");
        assert!(round % 3 == 2 || counted(JUDGED) <= 1, "{what}");
        assert_eq!(counted(HANDED_BACK), u64::from(!flow.judged), "{what}");
        assert!(!flow.judged || counted(OPENED) == 1 && passed[0], "{what}");
        for (key, hole) in &holes {
            assert_eq!(Some(*key), flow.hole, "{what}");
            assert_eq!((hole.flow, hole.step), (ID, flow.steps), "{what}");
            assert_ne!(hole.until, 0, "{what}");
        }
        assert!(counted(OPENED) == 0 || holes.len() == 1, "{what}");
        if let [step] = &steps[..] {
            assert_eq!((step.opened, step.step), (true, flow.steps), "{what}");
        }
        talk.before = flow;
        talk.before.awaits = NOTHING;
        talk.hand_over();
    }
}

#[test]
fn of_two_syns_at_once_one_is_admitted() {
    let mut talk = Talk::new(routed());
    for round in 0..ROUNDS {
        talk.says(Side::Client, "PORT 10,0,0,2,4,1");
        talk.says(Side::Server, "200 ok");
        let frame = syn(talk.before.hole.unwrap());
        let passed = at_once(&talk.scene, [&frame, &frame]);
        assert!(passed[0] != passed[1], "{passed:?}");
        assert_eq!(talk.scene.counts()[ADMITTED], round as u64 + 1);
    }
}

#[test]
fn of_two_lines_at_once_each_is_judged_once() {
    let mut talk = Talk::new(routed());
    let mut both = 0;
    for _ in 0..ROUNDS {
        let command = talk.frame(Side::Client, "NOOP\r\n");
        let mut reply = talk.frame(Side::Server, "200 ok\r\n");
        reply.ack = reply.ack.wrapping_add(6);
        let passed = at_once(&talk.scene, [&command, &reply]);
        let flow = talk.scene.flow(ID);
        let mut steps = talk.scene.steps();
        // Records are in the order in which they were reserved; steps tell the order.
        steps.sort_by_key(|step| step.step);
        let sides: Vec<u32> = steps.iter().map(|step| step.side).collect();
        match passed {
            [true, true] => assert_eq!(sides, [0, 1]),
            [true, false] => assert_eq!(sides, [0]),
            [false, _] => assert_eq!((sides.as_slice(), passed[1]), (&[][..], false)),
        }
        assert_eq!(flow.judged, passed[1], "{passed:?}");
        both += usize::from(flow.judged);
        talk.before = flow;
        talk.before.awaits = NOTHING;
        talk.hand_over();
    }
    println!("{both} of {ROUNDS} in step");
}
