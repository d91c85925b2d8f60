//! The data connections of encrypted sessions.

use std::sync::Arc;

use super::{
    tests::{Row, Test},
    *,
};
use crate::engine::{FakeKernel, OpenRange, Translation, ranges::Ranges};

const CLIENT: &str = "10.0.0.7:40001";
const SERVER: &str = "203.0.113.9:50001";
/// Longer than it takes until it is certain that no other transfer used a data connection.
const LATER: Duration = Duration::from_millis(2100);

/// The start of a data connection; then the client has sent 500 bytes, and the server 1000.
const SYN: Row<'_> = (CLIENT, SERVER, "S", 99, 0);
const SYN_ACK: Row<'_> = (SERVER, CLIENT, "SA", 999, 100);
const RST: Row<'_> = (CLIENT, SERVER, "R", 600, 0);

fn range() -> OpenRange {
    let (client, server) = ("10.0.0.7:1035".parse().unwrap(), "203.0.113.9:21".parse().unwrap());
    OpenRange { control: Translation::identity(client, server), ports: Arc::new([50000..=50009]) }
}

/// Session 17 is encrypted.
fn encrypted() -> (Test, Ranges, FakeKernel) {
    let (mut test, mut ranges, mut kernel) =
        (Test::new(), Ranges::default(), FakeKernel::default());
    ranges.open(test.now, 0, 17, range(), &mut kernel).unwrap();
    test.tracker.set_finder(ranges.finder());
    (test, ranges, kernel)
}

/// What is reported of these packets, in short.
fn reported(packets: &[Row<'_>]) -> Vec<String> {
    let (mut test, _ranges, _kernel) = encrypted();
    test.observe(packets);
    assert!(take(&mut test, Duration::ZERO).is_empty(), "a transfer may still use it");
    take(&mut test, LATER)
}

fn take(test: &mut Test, later: Duration) -> Vec<String> {
    test.now += later;
    let in_short = |event: Event| {
        let Some(transfer) = event.kind.ended_transfer() else { panic!("{event:?}") };
        let TransferVerb::Unread(is_upload) = transfer.verb else { panic!("{transfer:?}") };
        let port = transfer.initiator_port.unwrap();
        let (session, result) = (event.session, transfer.result.name());
        format!("#{session} {port} {is_upload:?} {:?} {result}", transfer.bytes)
    };
    test.tracker.take_encrypted(Some(test.now)).into_iter().map(in_short).collect()
}

#[test]
fn they_are_transfers_without_a_name() {
    let by_server = (SERVER, CLIENT, "FA", 301_000, 600);
    let by_client = (CLIENT, SERVER, "FA", 300_100, 1500);
    let its_answer = (SERVER, CLIENT, "FA", 1500, 300_101);
    let cases: [(&[Row<'_>], &str); 5] = [
        (&[SYN_ACK, by_server, RST], "#17 40001 Some(false) Some(300000) complete"),
        (&[SYN, SYN_ACK, by_client, its_answer], "#17 40001 Some(true) Some(300000) complete"),
        // The server confirms nothing.
        (&[SYN_ACK, by_client, RST], "#17 40001 None None complete"),
        (&[SYN_ACK, (SERVER, CLIENT, "FA", 5000, 600), RST], "#17 40001 None None complete"),
        (&[SYN_ACK, RST], "#17 40001 None None reset"),
    ];
    for (packets, expected) in cases {
        assert_eq!(reported(packets), [expected]);
    }
}

#[test]
fn others_are_none() {
    let other = (SERVER.replace("50001", "50010"), CLIENT.replace('7', "8"));
    let at_other_port: [Row<'_>; 2] =
        [(&other.0, CLIENT, "SA", 999, 100), (CLIENT, &other.0, "R", 600, 0)];
    let of_other_client: [Row<'_>; 2] =
        [(SERVER, &other.1, "SA", 999, 100), (&other.1, SERVER, "R", 600, 0)];
    for packets in [&at_other_port[..], &of_other_client, &[SYN, RST], &[SYN_ACK]] {
        assert_eq!(reported(packets), [""; 0], "{packets:?}");
    }
}

#[test]
fn what_a_readable_transfer_uses_is_its() {
    let (mut test, _ranges, _kernel) = encrypted();
    let target = SERVER.parse().unwrap();
    let initiator = IpAddr::from([10, 0, 0, 7]);
    let pinhole = PinholeEnds { initiator, arrival: target, target, source: initiator };
    let mut transfer = super::tests::transfer(TransferVerb::Retr, 226);
    transfer.announcement = Some((AnnouncementKind::Pasv, pinhole));
    test.observe(&[SYN_ACK, (SERVER, CLIENT, "FA", 1500, 600), (CLIENT, SERVER, "FA", 100, 1501)]);
    assert_eq!(test.end(transfer).unwrap().bytes, Some(500));
    assert_eq!(take(&mut test, LATER), [""; 0]);
}

/// Copies of packets arrive late, and a data connection may be the last that a session does.
#[test]
fn a_session_that_has_just_ended_is_known_for_a_moment() {
    for (later, expected) in [(Duration::from_secs(1), 1), (Duration::from_secs(3), 0)] {
        let (mut test, mut ranges, mut kernel) = encrypted();
        ranges.close(0);
        ranges.send_closings(&mut kernel);
        assert!(take(&mut test, Duration::ZERO).is_empty());
        assert!(take(&mut test, later).is_empty());
        test.observe(&[SYN_ACK, RST]);
        assert_eq!(take(&mut test, LATER).len(), expected, "{later:?}");
    }
}

#[test]
fn of_several_sessions_with_the_server_none_is_certain() {
    let (mut test, mut ranges, mut kernel) = encrypted();
    ranges.open(test.now, 1, 18, range(), &mut kernel).unwrap();
    test.observe(&[SYN_ACK, RST]);
    test.now += LATER;
    let taken = test.tracker.take_encrypted(Some(test.now));
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].kind.ended_transfer().unwrap().uncertain, Some(OTHER_SESSION));
}

/// A server may have one passive port for all of them.
#[test]
fn none_is_lost_behind_others_at_the_same_port() {
    const COUNT: u16 = 300;
    let (mut test, _ranges, _kernel) = encrypted();
    let mut pass = |number: u16, bytes: u32| {
        let client = format!("10.0.0.7:{}", 20_000 + number);
        test.observe_at(test.now, (SERVER, &client, "SA", 999, 100));
        test.observe_at(test.now, (SERVER, &client, "FA", 1000 + bytes, 600));
        test.observe_at(test.now, (&client, SERVER, "FA", 600, 1001 + bytes));
    };
    pass(0, 300_000);
    (1..COUNT).for_each(|number| pass(number, 0));
    let mut reported = take(&mut test, Duration::ZERO);
    reported.extend(take(&mut test, LATER));
    assert_eq!(reported.len(), usize::from(COUNT));
    assert_eq!(reported[0], "#17 20000 Some(false) Some(300000) complete");
}

/// `conntrack -F` during a transfer, which then hangs.
#[test]
fn one_that_the_kernel_forgets_is_reported_once() {
    let (mut test, _ranges, _kernel) = encrypted();
    test.observe(&[SYN_ACK]);
    for (seconds, knows, expected) in [
        (11, true, &[][..]),
        (1, false, &["#17 40001 None None no-data-connection"]),
        (10, false, &[]),
    ] {
        test.now += Duration::from_secs(seconds);
        test.tracker.drop_forgotten(test.now, |_, _| knows);
        assert_eq!(take(&mut test, Duration::ZERO), expected);
    }
}
