//! How long a transfer waits for the end of its data connection, and what is stored meanwhile.

use super::{
    super::data_connections::MAX_CONNECTIONS,
    tests::{BEGIN, CLIENT, SERVER, Test, transfer},
    *,
};
use crate::session::TransferVerb;

/// How many are reported, if data connections without an end go on.
fn reported(test: &mut Test) -> usize {
    test.tracker.take_finished(test.now, |_, _| true).len()
}

/// Pure-FTPd and pyftpdlib report success when they have handed a file to their kernel, which sends it for minutes.
#[test]
fn bytes_that_are_still_sent_are_waited_for() {
    let end = [(SERVER, CLIENT, "FA", 5_000_011, 1001), (CLIENT, SERVER, "FA", 1001, 5_000_012)];
    let reset = [(CLIENT, SERVER, "RA", 1001, 3_000_011)];
    for (end, result, bytes) in [
        (&end[..], TransferResult::Complete, Some(5_000_000)),
        // Only its client says how much it had.
        (&reset, TransferResult::Reset, None),
    ] {
        let mut test = Test::after(&BEGIN);
        assert!(test.end(transfer(TransferVerb::Retr, 226)).is_none());
        for _ in 0..50 {
            test.now += PACKETS_WAIT;
            assert_eq!(reported(&mut test), 0);
        }
        // Another one of the session does not wait for it.
        test.now += PACKETS_WAIT;
        let without = Transfer { announcement: None, ..transfer(TransferVerb::Retr, 226) };
        assert!(test.end(without).is_none());
        assert_eq!(reported(&mut test), 1);
        assert_eq!(test.tracker.waiting.len(), 1);
        test.observe(end);
        // A client's reset may be forged: the kernel knows.
        test.now += LONGEST_INTERVAL;
        let finished = test.finished_in_time();
        assert_eq!((finished.result, finished.bytes), (result, bytes));
        assert!(finished.duration > PACKETS_WAIT * 50);
    }
}

#[test]
fn a_refused_transfer_does_not_wait_for_the_end_of_its_connection() {
    let mut test = Test::after(&BEGIN);
    let refused = Transfer { has_started: false, ..transfer(TransferVerb::Retr, 550) };
    assert!(test.end(refused).is_some());
}

#[test]
fn an_end_that_never_comes_is_not_waited_for_without_limit() {
    let mut test = Test::after(&BEGIN);
    assert!(test.end(transfer(TransferVerb::Retr, 226)).is_none());
    let (began, mut asked) = (test.now, 0);
    while test.now < began + LONGEST_WAIT {
        let is_running = |initiator: SocketAddr, dialled: SocketAddr| {
            assert_eq!([initiator, dialled].map(|end| end.to_string()), [SERVER, CLIENT]);
            asked += 1;
            true
        };
        assert_eq!(test.tracker.take_finished(test.now, is_running).len(), 0);
        test.now += PACKETS_WAIT / 10;
    }
    assert!(asked < 100, "the kernel was asked {asked} times");
    test.now += LONGEST_INTERVAL;
    assert_eq!(test.only_finished().bytes, None);
    // The kernel has it no more, and its last packets come a moment later.
    test.observe(&BEGIN);
    assert!(test.end(transfer(TransferVerb::Retr, 226)).is_none());
    test.now += PACKETS_WAIT;
    assert_eq!(test.finished().len(), 0);
    test.observe(&[(SERVER, CLIENT, "FA", 16, 1001), (CLIENT, SERVER, "FA", 1001, 17)]);
    assert_eq!(test.only_finished().bytes, Some(5));
}

#[test]
fn a_long_transfer_keeps_its_bytes_while_others_pass() {
    let mut test = Test::after(&BEGIN);
    let announced = test.now.checked_sub(PACKETS_WAIT);
    for number in 1..=3 * MAX_CONNECTIONS as u32 {
        test.now += Duration::from_millis(1);
        let target = format!("10.{}.{}.7:50069", number >> 8 & 0xff, number & 0xff);
        for (flags, end) in [("S", 1), ("R", 2)] {
            test.observe_at(test.now, ("203.0.113.9:21", &target, flags, end, 0));
        }
    }
    assert!(test.tracker.connections.count() <= MAX_CONNECTIONS);
    test.observe(&[(SERVER, CLIENT, "FA", 16, 1001), (CLIENT, SERVER, "FA", 1001, 17)]);
    let long = Transfer { announced, ..transfer(TransferVerb::Retr, 226) };
    assert_eq!(test.end(long).unwrap().bytes, Some(5));
}
