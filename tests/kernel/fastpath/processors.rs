//! Two packets of one flow on two processors at the same time.

use std::{sync::Barrier, thread};

use super::{
    data::syn,
    frames::{ACK, FIN, Frame},
    layout::*,
    scene::*,
};

const ROUNDS: usize = 3000;

/// Runs the program with both packets at once. Returns for each whether it passed with a mark.
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
fn two_simultaneous_announcements_open_at_most_one_pinhole() {
    let mut talk = Talk::new(routed());
    for round in 0..ROUNDS {
        let port = 1 + round % 255;
        let first = talk.frame(Side::Client, format!("PORT 10,0,0,2,4,{port}\r\n"));
        // The second packet is another line with the same numbers, one with a wrong sequence number, or a
        // retransmission.
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
        let lines = talk.scene.lines();
        let pinholes = talk.scene.pinholes();
        let what = format!("{round}: {passed:?} {lines:?} {pinholes:?} {flow:?}");

        assert!(counted(OPENED) <= 1, "{what}");
        assert_eq!(lines.len() as u64, counted(OPENED), "{what}");
        assert_eq!(counted(INSPECTED), passed.map(u64::from).iter().sum::<u64>(), "{what}");
        assert!(round % 3 == 2 || counted(INSPECTED) <= 1, "{what}");
        assert_eq!(counted(HANDED_BACK), u64::from(flow.handed_over == 0), "{what}");
        assert!(flow.handed_over == 0 || counted(OPENED) == 1 && passed[0], "{what}");
        for (key, pinhole) in &pinholes {
            assert_eq!(*key, flow.pinhole, "{what}");
            assert_eq!((pinhole.flow, pinhole.line), (ID, flow.line_count), "{what}");
            assert_ne!(pinhole.deadline, 0, "{what}");
        }
        assert!(counted(OPENED) == 0 || pinholes.len() == 1, "{what}");
        if let [line] = &lines[..] {
            assert_eq!((line.opened_pinhole, line.number), (1, flow.line_count), "{what}");
        }
        talk.before = flow;
        talk.before.dialogue = READY;
        talk.hand_over();
    }
}

#[test]
fn a_pinhole_has_the_number_of_its_line_if_a_fin_comes_at_once() {
    let fresh = routed();
    let mut talk = Talk::new(fresh);
    let mut both = 0;
    for round in 0..ROUNDS {
        let port = format!("PORT 10,0,0,2,4,{}\r\n", 1 + round % 255);
        let announcement = talk.frame(Side::Client, port);
        let fin = Frame { flags: ACK | FIN, ..talk.frame(Side::Server, "") };
        let passed = at_once(&talk.scene, [&announcement, &fin]);
        let lines = talk.scene.lines();
        let pinholes = talk.scene.pinholes();
        let what = format!("{round}: {passed:?} {lines:?} {pinholes:?}");
        let mut opened =
            lines.iter().filter(|line| line.opened_pinhole == 1).map(|line| line.number);
        let number = opened.next();
        assert!(opened.next().is_none() && passed[0] == number.is_some(), "{what}");
        assert!(pinholes.values().all(|one| Some(one.line) == number), "{what}");
        assert_eq!(pinholes.len(), usize::from(passed[0]), "{what}");
        both += usize::from(passed == [true; 2]);
        talk.before = fresh;
        talk.hand_over();
        pinholes.keys().for_each(|key| talk.scene.remove_pinhole(*key));
    }
    println!("{both} of {ROUNDS} one after the other");
}

#[test]
fn of_two_simultaneous_syns_one_is_admitted() {
    let mut talk = Talk::new(routed());
    for round in 0..ROUNDS {
        talk.says(Side::Client, "PORT 10,0,0,2,4,1");
        talk.says(Side::Server, "200 ok");
        let seq = u32::try_from(round).unwrap();
        let one = Frame { seq, ..syn(talk.before.pinhole) };
        let mut other = one.clone();
        other.source.set_port(2000);
        let passed = at_once(&talk.scene, [&one, &other]);
        assert!(passed[0] != passed[1], "{passed:?}");
        assert_eq!(talk.scene.counts()[ADMITTED], round as u64 + 1);
    }
}

#[test]
fn two_simultaneous_lines_have_one_record_each() {
    let mut talk = Talk::new(routed());
    let mut both = 0;
    for _ in 0..ROUNDS {
        let command = talk.frame(Side::Client, "NOOP\r\n");
        let mut reply = talk.frame(Side::Server, "200 ok\r\n");
        reply.ack = reply.ack.wrapping_add(6);
        let passed = at_once(&talk.scene, [&command, &reply]);
        let flow = talk.scene.flow(ID);
        let mut lines = talk.scene.lines();
        // Records are in the order of their reservation; their numbers have the order of the lines.
        lines.sort_by_key(|line| line.number);
        let sides: Vec<u32> = lines.iter().map(|line| line.side).collect();
        match passed {
            [true, true] => assert_eq!(sides, [0, 1]),
            [true, false] => assert_eq!(sides, [0]),
            [false, _] => assert_eq!((sides.as_slice(), passed[1]), (&[][..], false)),
        }
        assert_eq!(flow.handed_over == 1, passed[1], "{passed:?}");
        both += flow.handed_over;
        talk.before = flow;
        talk.before.dialogue = READY;
        talk.hand_over();
    }
    println!("{both} of {ROUNDS} in step");
}
