//! What the packets of data connections add to transfers.

use super::{
    super::data_connections::{DataFlags, MAX_CONNECTIONS},
    *,
};
use crate::{
    ftp::{AnnouncementKind, Reply},
    session::TransferVerb,
};

pub(super) const SERVER: &str = "203.0.113.9:20";
pub(super) const CLIENT: &str = "10.0.0.7:50069";

fn event(transfer: Transfer) -> Event<Box<Transfer>> {
    let (client, server) = ("10.0.0.7:1035".parse().unwrap(), "203.0.113.9:21".parse().unwrap());
    Event { session: 17, client, server, user: Some("bob".into()), kind: Box::new(transfer) }
}

fn transfer_of(event: Event) -> Transfer {
    match event.kind {
        EventKind::Transfer(transfer)
        | EventKind::TransferUnseen(transfer)
        | EventKind::TransferWaiting(transfer) => *transfer,
        other => panic!("{other:?}"),
    }
}

/// A transfer in active mode, with this reply.
pub(super) fn transfer(verb: TransferVerb, code: u16) -> Transfer {
    let (initiator, target) = ("203.0.113.9".parse().unwrap(), CLIENT.parse().unwrap());
    let pinhole = PinholeEnds { initiator, arrival: target, target, source: initiator };
    Transfer {
        verb,
        path: Some("/pub/q3.csv".into()),
        announcement: Some((AnnouncementKind::Port, pinhole)),
        announced: None,
        duration: Duration::from_secs(3),
        has_started: code == 226,
        is_followed: false,
        end: TransferEnd::Replied(Reply { code }),
        ended: None,
        result: TransferResult::Waiting,
        bytes: None,
        initiator_port: None,
        reason: None,
        uncertain: None,
    }
}

/// One that succeeds, to this endpoint of a client.
fn upload_to(target: &str) -> Transfer {
    let mut stored = transfer(TransferVerb::Stor, 226);
    let (_, pinhole) = stored.announcement.as_mut().unwrap();
    (pinhole.arrival, pinhole.target) = (target.parse().unwrap(), target.parse().unwrap());
    stored
}

/// A packet from one to the other: its flags, the sequence number behind its data, and the acknowledgement number.
pub(super) fn packet(
    source: &str,
    destination: &str,
    flags: &str,
    end: u32,
    acknowledged: u32,
) -> DataPacket {
    let has = |flag| flags.contains(flag);
    DataPacket {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        flags: DataFlags { syn: has('S'), ack: has('A'), fin: has('F'), rst: has('R') },
        end,
        acknowledged,
        interface: 1 + u32::from(source == CLIENT),
    }
}

pub(super) struct Test {
    pub tracker: TransferTracker<()>,
    pub now: Instant,
}

impl Test {
    pub fn new() -> Self {
        let tracker = TransferTracker { sees_packets: true, ..TransferTracker::default() };
        Self { tracker, now: Instant::now() }
    }

    pub fn observe(&mut self, packets: &[(&str, &str, &str, u32, u32)]) {
        for &(source, destination, flags, end, acknowledged) in packets {
            self.now += Duration::from_millis(100);
            self.tracker.observe(
                self.now,
                self.now,
                &packet(source, destination, flags, end, acknowledged),
            );
        }
    }

    /// All of a data connection to this endpoint of a client, in one moment: it moves 5 bytes.
    fn observe_whole(&mut self, target: &str) {
        for packet in [
            packet(target, SERVER, "SA", 1000, 11),
            packet(target, SERVER, "FA", 1006, 11),
            packet(SERVER, target, "FA", 11, 1007),
        ] {
            self.tracker.observe(self.now, self.now, &packet);
        }
    }

    pub fn end(&mut self, transfer: Transfer) -> Option<Transfer> {
        self.tracker.end(self.now, (), event(transfer)).map(|((), event)| transfer_of(event))
    }

    fn end_after_waiting(&mut self, transfer: Transfer) -> Transfer {
        assert!(self.end(transfer).is_none(), "it waits");
        self.finished_in_time()
    }

    fn end_sooner_or_later(&mut self, transfer: Transfer) -> Transfer {
        self.end(transfer).unwrap_or_else(|| self.finished_in_time())
    }

    /// Those that need not wait any more; the kernel does not have their data connections.
    pub fn finished(&mut self) -> Vec<Transfer> {
        let finished = self.tracker.take_finished(self.now, |_, _| false);
        finished.into_iter().map(|((), event)| transfer_of(event)).collect()
    }

    pub fn finished_in_time(&mut self) -> Transfer {
        self.now += PACKETS_WAIT;
        let mut finished = self.finished();
        self.now += PACKETS_WAIT;
        finished.pop().unwrap_or_else(|| self.only_finished())
    }

    pub fn only_finished(&mut self) -> Transfer {
        let mut finished = self.finished();
        assert_eq!(finished.len(), 1);
        finished.remove(0)
    }
}

#[test]
fn bytes_are_those_of_the_sender() {
    for (verb, expected) in [(TransferVerb::Stor, 5), (TransferVerb::Retr, 70_000)] {
        let syn = (SERVER, CLIENT, "S", u32::MAX - 5, 0);
        let others = [
            (CLIENT, SERVER, "SA", 1000, u32::MAX - 4),
            (CLIENT, SERVER, "SA", 1000, u32::MAX - 4),
            (CLIENT, SERVER, "FA", 1006, 0),
            (SERVER, CLIENT, "FA", 69_995, 1007),
            (SERVER, CLIENT, "FA", 69_995, 1007),
        ];
        for syns in [&[][..], &[syn], &[syn, syn]] {
            let mut test = Test::new();
            test.observe(&[syns, &others].concat());
            let finished = test.end(transfer(verb, 226)).unwrap();
            assert_eq!(
                (finished.result, finished.bytes),
                (TransferResult::Complete, Some(expected))
            );
            let packets = 3 + syns.len() as u64;
            assert_eq!(finished.duration, Duration::from_millis(100 * packets));
        }
    }
}

#[test]
fn a_transfer_waits_for_its_last_packets() {
    let mut test = Test::new();
    test.observe(&[(CLIENT, SERVER, "SA", 1000, 11)]);
    assert!(test.end(transfer(TransferVerb::Stor, 226)).is_none());
    assert_eq!(test.finished().len(), 0);
    test.observe(&[(CLIENT, SERVER, "FA", 1006, 12), (SERVER, CLIENT, "FA", 11, 1007)]);
    let finished = test.only_finished();
    assert_eq!(finished.bytes, Some(5));
    // Its packets never come.
    let finished = test.end_after_waiting(transfer(TransferVerb::Stor, 226));
    assert_eq!((finished.result, finished.bytes), (TransferResult::Complete, None));
    assert_eq!(finished.duration, Duration::from_secs(3));
}

#[test]
fn a_missing_data_connection_has_a_reason() {
    for (packets, reason) in [
        (&[][..], "no connection of 203.0.113.9 to 10.0.0.7:50069 seen"),
        (
            &[(SERVER, CLIENT, "S", 10, 0)][..],
            "SYN of 203.0.113.9 seen, no answer from 10.0.0.7:50069",
        ),
        (
            &[(CLIENT, SERVER, "RA", 0, 11)][..],
            "10.0.0.7:50069 refused the connection of 203.0.113.9",
        ),
        (
            &[(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "RA", 0, 11)][..],
            "10.0.0.7:50069 refused the connection of 203.0.113.9",
        ),
    ] {
        let mut test = Test::new();
        test.observe(packets);
        let refused = reason.contains("refused");
        let finished = match test.end(transfer(TransferVerb::Stor, 425)) {
            Some(finished) => finished,
            None => {
                assert!(!refused);
                test.now += PACKETS_WAIT;
                test.only_finished()
            }
        };
        assert_eq!(finished.result, TransferResult::NoDataConnection, "{reason}");
        assert_eq!(finished.reason.as_deref(), Some(reason));
    }
}

#[test]
fn results_follow_the_reply_and_the_packets() {
    let open = [(CLIENT, SERVER, "SA", 1000, 11)];
    let reset = [open[0], (CLIENT, SERVER, "R", 1100, 0)];
    let servers_own = [open[0], (SERVER, CLIENT, "R", 1100, 0)];
    for (packets, code, has_started, result) in [
        (&[][..], 550, false, TransferResult::Refused),
        (&open[..], 426, true, TransferResult::Aborted),
        (&open[..], 451, true, TransferResult::Aborted),
        (&reset[..], 426, true, TransferResult::Reset),
        (&[][..], 426, true, TransferResult::NoDataConnection),
        (&reset[..], 226, true, TransferResult::Reset),
        (&servers_own[..], 226, true, TransferResult::Complete),
        (&servers_own[..], 426, true, TransferResult::Reset),
    ] {
        let mut test = Test::new();
        test.observe(packets);
        let transfer = Transfer { has_started, ..transfer(TransferVerb::Retr, code) };
        let finished = test.end_sooner_or_later(transfer);
        assert_eq!(finished.result, result, "{code}, {} packets", packets.len());
    }
}

#[test]
fn transfers_without_a_pinhole_or_without_copies_do_not_wait() {
    let mut test = Test::new();
    let without = Transfer { announcement: None, ..transfer(TransferVerb::Retr, 226) };
    assert!(test.end(without).is_some());
    test.tracker.sees_packets = false;
    let finished = test.end(transfer(TransferVerb::Retr, 425)).unwrap();
    assert_eq!((finished.result, finished.reason), (TransferResult::NoDataConnection, None));
}

#[test]
fn few_connections_and_transfers_are_stored() {
    let mut test = Test::new();
    for number in 0..2 * MAX_CONNECTIONS as u32 {
        let target = format!("10.{}.{}.7:50069", number >> 8 & 0xff, number & 0xff);
        let port = 1024 + (number >> 16);
        test.tracker.observe(
            test.now,
            test.now,
            &packet(&format!("203.0.113.9:{port}"), &target, "S", 1, 0),
        );
    }
    assert!(test.tracker.connections.count() <= MAX_CONNECTIONS);
    let mut test = Test::new();
    let ended = (0..2 * MAX_WAITING as u64).filter_map(|session| {
        let client = format!("10.{}.{}.7:1035", session >> 8, session & 0xff);
        let event = event(transfer(TransferVerb::Retr, 226));
        let event = Event { session, client: client.parse().unwrap(), ..event };
        test.tracker.end(test.now, (), event)
    });
    assert_eq!(ended.count(), MAX_WAITING);
    assert_eq!(test.tracker.take_all().len(), MAX_WAITING);
}

/// A transfer of another client, through another pinhole, whose data connection moves 5 bytes.
fn of_another_client(test: &mut Test) -> Vec<Option<u64>> {
    const OTHER: &str = "198.51.100.7:50070";
    test.observe(&[(SERVER, OTHER, "S", 10, 0), (OTHER, SERVER, "SA", 1000, 11)]);
    let stored = upload_to(OTHER);
    let client = "198.51.100.7:1035".parse().unwrap();
    let ended = Event { session: 99_999, client, ..event(stored) };
    assert!(test.tracker.end(test.now, (), ended).is_none());
    test.observe(&[(OTHER, SERVER, "FA", 1006, 11), (SERVER, OTHER, "FA", 11, 1007)]);
    let finished = test.tracker.take_finished(test.now, |_, _| true);
    let of_other = finished.into_iter().filter(|(_, event)| event.session == 99_999);
    of_other.map(|(_, event)| transfer_of(event).bytes).collect()
}

#[test]
fn forged_syn_acks_of_one_client_cost_another_nothing() {
    for ports in [1, 40_000] {
        let mut test = Test::new();
        for number in 0..40_000_u32 {
            let port = format!("203.0.113.9:{}", 20 + number % ports);
            test.tracker.observe(
                test.now,
                test.now,
                &packet(CLIENT, &port, "SA", number, number * 7),
            );
        }
        assert!(test.tracker.connections.count() <= super::super::data_connections::SHARE);
        assert_eq!(of_another_client(&mut test), [Some(5)], "{ports}");
        // Its own transfer has none, and says so.
        test.observe(&[(CLIENT, SERVER, "FA", 1006, 11), (SERVER, CLIENT, "FA", 11, 1007)]);
        let own = test.end_sooner_or_later(transfer(TransferVerb::Stor, 226));
        assert_eq!((own.bytes, own.result), (None, TransferResult::Complete), "{ports}");
        assert!(ports > 1 || own.uncertain == Some(OTHER_CONNECTION));
    }
}

#[test]
fn transfers_of_one_client_that_stay_open_cost_another_nothing() {
    for of_session in [1, 8000] {
        let mut test = Test::new();
        test.observe(&[(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "SA", 1000, 11)]);
        let mut reported = 0;
        for number in 0..8000 {
            let held =
                Event { session: number / of_session, ..event(transfer(TransferVerb::Stor, 226)) };
            reported += usize::from(test.tracker.end(test.now, (), held).is_some());
        }
        assert!(test.tracker.waiting.len() <= SHARE, "{}", test.tracker.waiting.len());
        assert_eq!(reported + test.tracker.waiting.len(), 8000, "each is reported");
        test.now += PACKETS_WAIT;
        test.tracker.take_finished(test.now, |_, _| true);
        assert_eq!(of_another_client(&mut test), [Some(5)]);
    }
}

/// As many as a busy client has in the time in which the kernel collects copies.
#[test]
fn transfers_of_a_fast_client_have_their_bytes() {
    let (mut test, number_of) = (Test::new(), 3000);
    let client = |number: u32| format!("10.0.0.7:{}", 20_000 + number);
    let mut transfers = Vec::new();
    for number in 0..number_of {
        let client = client(number);
        test.observe_whole(&client);
        let stored = upload_to(&client);
        transfers.push(stored);
    }
    for stored in transfers {
        assert_eq!(test.end(stored).unwrap().bytes, Some(5));
    }
    // The same before the packets come.
    let mut test = Test::new();
    for number in 0..number_of {
        let stored = upload_to(&client(number));
        let event = Event { session: u64::from(number % 20), ..event(stored) };
        assert!(test.tracker.end(test.now, (), event).is_none());
    }
}

/// What one moment had no room for makes only the transfers of the next ones uncertain.
#[test]
fn bytes_are_known_again_after_a_loss() {
    let mut test = Test::new();
    test.tracker.record_loss(test.now);
    let mut bytes = Vec::new();
    for number in 0..5000_u32 {
        test.now += Duration::from_millis(4);
        let client = format!("10.0.0.7:{}", 20_000 + number);
        test.observe_whole(&client);
        let stored = upload_to(&client);
        let ended = test.end(stored).unwrap();
        assert_eq!(ended.bytes.is_none(), ended.uncertain.is_some());
        bytes.push(ended.bytes);
        assert_eq!(test.tracker.connections.count(), 0);
    }
    assert_eq!((bytes.first(), bytes.last()), (Some(&None), Some(&Some(5))));
}

#[test]
fn what_was_lost_is_not_called_missing() {
    let mut test = Test::new();
    for number in 0..2 * super::super::data_connections::SHARE as u32 {
        let target = format!("10.0.0.7:{}", 1024 + number);
        test.tracker.observe(test.now, test.now, &packet(&target, SERVER, "SA", number, 11));
    }
    for (code, result) in [(226, TransferResult::Complete), (426, TransferResult::Aborted)] {
        let ended = Transfer { has_started: true, ..transfer(TransferVerb::Stor, code) };
        let lost = test.end_sooner_or_later(ended);
        assert_eq!((lost.bytes, lost.result, lost.uncertain), (None, result, Some(LOST)));
        assert_eq!(lost.reason, None);
    }
}

/// Of a transfer that a restart of the daemon interrupted, the data connection began unseen.
#[test]
fn what_began_before_a_restart_is_not_called_missing() {
    for (code, result) in [(226, TransferResult::Complete), (426, TransferResult::Aborted)] {
        let ended = Transfer { has_started: true, ..transfer(TransferVerb::Stor, code) };
        let mut test = Test::new();
        let requested = test.now.checked_sub(ended.duration).unwrap();
        test.tracker.since = Some(requested + Duration::from_millis(1));
        let unseen = test.end_sooner_or_later(ended.clone());
        assert_eq!((unseen.bytes, unseen.result, unseen.uncertain), (None, result, Some(LOST)));
        assert_eq!(unseen.reason, None);
        let mut test = Test::new();
        test.tracker.since = Some(requested);
        assert_eq!(test.end_sooner_or_later(ended).uncertain, None);
    }
}

/// Connections that were seen leave nothing behind.
#[test]
fn networks_without_connections_take_no_memory() {
    let mut test = Test::new();
    for number in 0..5000_u32 {
        let client = format!("10.{}.{}.7:50069", number >> 8 & 0xff, number & 0xff);
        test.observe(&[(SERVER, &client, "S", 10, 0), (&client, SERVER, "SA", 1000, 11)]);
        test.observe(&[(&client, SERVER, "FA", 1006, 11), (SERVER, &client, "FA", 11, 1007)]);
        let stored = upload_to(&client);
        assert_eq!(test.end(stored).unwrap().bytes, Some(5));
    }
    assert_eq!((test.tracker.connections.count(), test.tracker.connections.networks()), (0, 0));
    // Nor do many through one port.
    for _ in 0..5000 {
        test.observe(&[(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "SA", 1000, 11)]);
        test.observe(&[(CLIENT, SERVER, "FA", 1006, 11), (SERVER, CLIENT, "FA", 11, 1007)]);
        assert_eq!(test.end(transfer(TransferVerb::Stor, 226)).unwrap().bytes, Some(5));
    }
    assert_eq!((test.tracker.connections.count(), test.tracker.connections.networks()), (0, 0));
}

/// A command was refused after the client had connected, and the next one takes long.
#[test]
fn what_was_over_before_the_command_is_an_earlier_ones() {
    let mut test = Test::new();
    test.observe(&[(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "SA", 1000, 11)]);
    let refused = Transfer { has_started: false, ..transfer(TransferVerb::Stor, 550) };
    assert_eq!(test.end_sooner_or_later(refused).result, TransferResult::Refused);
    test.observe(&[(CLIENT, SERVER, "FA", 1001, 11), (SERVER, CLIENT, "FA", 11, 1002)]);
    test.now += Duration::from_secs(5);
    test.observe(&[(SERVER, CLIENT, "S", 90, 0), (CLIENT, SERVER, "SA", 7000, 91)]);
    assert!(test.end(transfer(TransferVerb::Stor, 226)).is_none());
    test.now += Duration::from_secs(70);
    test.observe(&[(CLIENT, SERVER, "FA", 7008, 91), (SERVER, CLIENT, "FA", 91, 7009)]);
    assert_eq!(test.only_finished().bytes, Some(7));
}

/// The second one gets the bytes, because the first one was refused before it moved any.
#[test]
fn a_refused_command_leaves_its_connection_to_the_next_one() {
    let mut test = Test::new();
    test.observe(&[(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "SA", 1000, 11)]);
    let refused = Transfer { has_started: false, ..transfer(TransferVerb::Stor, 550) };
    let refused = test.end_sooner_or_later(refused);
    assert_eq!((refused.result, refused.bytes), (TransferResult::Refused, None));
    test.observe(&[(CLIENT, SERVER, "FA", 1006, 11), (SERVER, CLIENT, "FA", 11, 1007)]);
    let stored = test.end(transfer(TransferVerb::Stor, 226)).unwrap();
    assert_eq!((stored.result, stored.bytes), (TransferResult::Complete, Some(5)));
}

/// Two commands in a segment: the connection is open while the first is refused, and over when that is reported.
#[test]
fn a_refused_command_has_no_bytes_of_the_next_one() {
    for code in [550, 451, 426, 425] {
        let mut test = Test::new();
        test.observe(&[(CLIENT, SERVER, "SA", 1000, 11)]);
        let refused = Transfer { has_started: false, ..transfer(TransferVerb::Stor, code) };
        assert!(test.end(refused).is_none());
        test.observe(&[(CLIENT, SERVER, "FA", 1006, 11), (SERVER, CLIENT, "FA", 11, 1007)]);
        assert!(test.end(transfer(TransferVerb::Stor, 226)).is_none());
        let finished = test.finished();
        let bytes: Vec<_> = finished.iter().map(|one| one.bytes).collect();
        assert_eq!(bytes, [None, Some(5)], "{code}");
    }
}

/// Its server sends two files one behind the other.
#[test]
fn a_connection_of_two_pipelined_commands_has_bytes_of_neither() {
    let same = transfer(TransferVerb::Stor, 226).announcement;
    for (requested, announcement, bytes) in
        [(3000, same, None), (3000, None, None), (50, same, Some(9000)), (50, None, Some(9000))]
    {
        let mut test = Test::new();
        test.observe(&[(CLIENT, SERVER, "SA", 1000, 11)]);
        assert!(test.end(transfer(TransferVerb::Stor, 226)).is_none());
        test.observe(&[(CLIENT, SERVER, "FA", 10_001, 11), (SERVER, CLIENT, "FA", 11, 10_002)]);
        test.now += Duration::from_millis(100);
        let duration = Duration::from_millis(requested);
        let next = Transfer { duration, announcement, ..transfer(TransferVerb::Stor, 226) };
        assert!(test.end(next).is_none());
        let mut finished = test.finished();
        for _ in 0..2 {
            test.now += PACKETS_WAIT;
            finished.extend(test.finished());
        }
        let known: Vec<_> = finished.iter().map(|one| one.bytes).collect();
        assert_eq!(known, [bytes, None], "{requested}");
    }
}

/// The reply about the second file comes late.
#[test]
fn a_connection_that_goes_on_for_a_pipelined_command_has_bytes_of_neither() {
    for (is_followed, bytes) in [(false, Some(9000)), (true, None)] {
        let mut test = Test::new();
        test.observe(&[(CLIENT, SERVER, "SA", 1000, 11)]);
        let ended = Some(test.now);
        test.observe(&[(CLIENT, SERVER, "FA", 10_001, 11), (SERVER, CLIENT, "FA", 11, 10_002)]);
        let first = Transfer { ended, is_followed, ..transfer(TransferVerb::Stor, 226) };
        assert_eq!(test.end(first).unwrap().bytes, bytes);
        assert_eq!(test.end_sooner_or_later(transfer(TransferVerb::Stor, 226)).bytes, None);
    }
}

#[test]
fn a_connection_that_served_two_commands_has_bytes_of_neither() {
    let mut test = Test::new();
    test.observe(&[(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "SA", 1000, 11)]);
    assert!(test.end(transfer(TransferVerb::Stor, 226)).is_none());
    test.now += PACKETS_WAIT;
    test.tracker.take_finished(test.now, |_, _| true);
    assert!(test.end(transfer(TransferVerb::Stor, 226)).is_none());
    test.observe(&[(CLIENT, SERVER, "FA", 9001, 11), (SERVER, CLIENT, "FA", 11, 9002)]);
    let finished = test.finished();
    let known: Vec<_> = finished.iter().map(|one| (one.bytes, one.uncertain)).collect();
    assert_eq!(known, [(None, Some(OTHER_CONNECTION)); 2]);
}

/// A passive port is announced again, and nothing is seen of the second connection.
#[test]
fn a_connection_belongs_to_one_transfer() {
    let mut test = Test::new();
    test.observe(&[(CLIENT, SERVER, "SA", 1000, 11)]);
    let started = Transfer { has_started: true, ..transfer(TransferVerb::Stor, 426) };
    let aborted = test.end_after_waiting(started);
    assert_eq!(aborted.result, TransferResult::Aborted);
    let hung = test.end_after_waiting(transfer(TransferVerb::Stor, 425));
    assert_eq!(hung.result, TransferResult::NoDataConnection);
    assert!(test.tracker.connections.count() == 0);
}

/// What is reported of a transfer that has been pending for ten seconds, after these packets.
fn examined(test: &Test, has_started: bool) -> Option<Option<String>> {
    let mut pending = Transfer { has_started, ..transfer(TransferVerb::Stor, 0) };
    (pending.end, pending.duration) = (TransferEnd::Pending, Duration::from_secs(10));
    let waiting = transfer_of(test.tracker.examine(test.now, event(pending))?);
    assert_eq!((waiting.result, waiting.code()), (TransferResult::Waiting, None));
    Some(waiting.reason)
}

#[test]
fn a_transfer_without_a_data_connection_waits() {
    let answered = [(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "SA", 1000, 11)];
    let ended = [(SERVER, CLIENT, "FA", 11, 1001), (CLIENT, SERVER, "FA", 1001, 12)];
    let mut test = Test::new();
    let absent = "no connection of 203.0.113.9 to 10.0.0.7:50069 seen";
    assert_eq!(examined(&test, true), Some(Some(absent.to_owned())));
    test.observe(&answered[..1]);
    let hanging = "SYN of 203.0.113.9 seen, no answer from 10.0.0.7:50069";
    assert_eq!(examined(&test, false), Some(Some(hanging.to_owned())));
    test.observe(&answered[1..]);
    assert_eq!(examined(&test, true), None);
    test.observe(&ended);
    assert_eq!(examined(&test, true), None, "it may be that of this transfer");
    test.now += Duration::from_secs(20);
    assert_eq!(examined(&test, true), Some(Some(absent.to_owned())), "that of an earlier one");
    // Nothing is known of data connections.
    test.tracker.sees_packets = false;
    assert_eq!([true, false].map(|started| examined(&test, started)), [None, Some(None)]);
}

#[test]
fn a_transfer_whose_end_was_not_seen_is_not_called_failed() {
    let unseen = || Transfer { end: TransferEnd::Unseen, ..transfer(TransferVerb::Stor, 0) };
    let mut test = Test::new();
    assert_eq!(test.end_after_waiting(unseen()).result, TransferResult::Unseen);
    test.observe(&[(SERVER, CLIENT, "S", 10, 0)]);
    assert_eq!(test.end_after_waiting(unseen()).result, TransferResult::NoDataConnection);
}

#[test]
fn a_reset_leaves_bytes_only_behind_all_of_them() {
    let begin = [(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "SA", 1000, 11)];
    let (fin, all) = ((CLIENT, SERVER, "FA", 6001, 11), (SERVER, CLIENT, "FA", 11, 6002));
    for (packets, code, expected) in [
        // The server resets.
        (vec![(SERVER, CLIENT, "RA", 11, 1401)], 426, (TransferResult::Reset, None)),
        // It ends, and resets what comes then.
        (
            vec![(SERVER, CLIENT, "FA", 11, 1401), (SERVER, CLIENT, "R", 12, 0)],
            426,
            (TransferResult::Reset, None),
        ),
        // It reports success: it may have accepted another connection.
        (vec![(SERVER, CLIENT, "RA", 11, 1401)], 226, (TransferResult::Complete, None)),
        (vec![fin, (SERVER, CLIENT, "RA", 11, 6002)], 226, (TransferResult::Complete, None)),
        // Only its client says how much there was.
        (vec![(CLIENT, SERVER, "RA", 1301, 11)], 426, (TransferResult::Reset, None)),
        (vec![fin, (SERVER, CLIENT, "RA", 11, 1401)], 426, (TransferResult::Reset, None)),
        (vec![(SERVER, CLIENT, "R", 11, 0)], 426, (TransferResult::Reset, None)),
        // A reset behind everything changes nothing.
        (
            vec![fin, all, (CLIENT, SERVER, "R", 6002, 0)],
            226,
            (TransferResult::Complete, Some(5000)),
        ),
    ] {
        let mut test = Test::new();
        test.observe(&begin);
        test.observe(&packets);
        let finished = test.end_sooner_or_later(transfer(TransferVerb::Stor, code));
        assert_eq!((finished.result, finished.bytes), expected, "{packets:?}");
    }
}

/// The fast path's program does not know whether a FIN is in its receiver's window.
#[test]
fn forged_fins_hide_no_upload() {
    let begin = [(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "SA", 1000, 11)];
    let (sent, received) = ((CLIENT, SERVER, "FA", 6001, 11), (SERVER, CLIENT, "FA", 11, 6002));
    for end in [1006, 6000, 6002, 900_000] {
        let forged = (CLIENT, SERVER, "FA", end, 11);
        let without_ack = (CLIENT, SERVER, "F", end, 0);
        for packets in [
            [forged, sent, received],
            [without_ack, sent, received],
            [sent, forged, received],
            [sent, received, forged],
            // The copy of the true one comes late.
            [forged, received, sent],
        ] {
            let mut test = Test::new();
            test.observe(&begin);
            test.observe(&packets);
            let finished = test.end(transfer(TransferVerb::Stor, 226)).unwrap();
            let outcome = (finished.result, finished.bytes);
            assert_eq!(outcome, (TransferResult::Complete, Some(5000)), "{packets:?}");
        }
    }
    // A failed one: whether the server acknowledges a FIN, or a byte, is not certain.
    for first in [(CLIENT, SERVER, "FA", 1006, 11), sent] {
        let mut test = Test::new();
        test.observe(&begin);
        test.observe(&[first, sent, received]);
        let failed = Transfer { has_started: true, ..transfer(TransferVerb::Stor, 451) };
        assert_eq!(test.end(failed).unwrap().bytes, None);
    }
    // The server is on this machine: its packets seem to come earlier.
    let mut test = Test::new();
    test.observe(&[begin[1], received, sent]);
    assert_eq!(test.end(transfer(TransferVerb::Stor, 226)).unwrap().bytes, Some(5000));
    // The server ends before its client does, and confirms nothing.
    let mut test = Test::new();
    test.observe(&begin);
    test.observe(&[(SERVER, CLIENT, "FA", 11, 1001), (CLIENT, SERVER, "FA", 6001, 12)]);
    let finished = test.end(transfer(TransferVerb::Stor, 226)).unwrap();
    assert_eq!((finished.bytes, finished.uncertain), (None, Some(UNCONFIRMED)));
}

#[test]
fn forged_fins_hide_no_download() {
    let (server, client) = (CLIENT, SERVER); // in passive mode the server is the target
    let (sent, forged) = ((server, client, "FA", 6001, 11), (client, server, "FA", 11, 700));
    for packets in [[forged, sent], [sent, forged]] {
        let mut test = Test::new();
        test.observe(&[(client, server, "S", 10, 0), (server, client, "SA", 1000, 11)]);
        test.observe(&packets);
        let (_, pinhole) = transfer(TransferVerb::Retr, 226).announcement.unwrap();
        let announcement = Some((AnnouncementKind::Pasv, pinhole));
        let passive = Transfer { announcement, ..transfer(TransferVerb::Retr, 226) };
        let finished = test.end_sooner_or_later(passive);
        assert_eq!(finished.bytes, Some(5000), "{packets:?}");
    }
}

/// A download in passive mode, whose server is the target.
fn download(code: u16) -> Transfer {
    let download = transfer(TransferVerb::Retr, code);
    let announcement = download.announcement.map(|(_, ends)| (AnnouncementKind::Pasv, ends));
    Transfer { announcement, has_started: true, ..download }
}

/// It acknowledges less than it has, in an early FIN or in a reset.
#[test]
fn a_client_that_denies_what_it_has_hides_no_download() {
    let (client, server) = (SERVER, CLIENT);
    let fin = (server, client, "FA", 6001, 11);
    let early = (client, server, "FA", 11, 1001);
    let reset = |acknowledged| (client, server, "RA", 11, acknowledged);
    let servers_reset = |end| (server, client, "RA", end, 11);
    let complete = |bytes| (TransferResult::Complete, bytes);
    for (packets, code, expected) in [
        (vec![reset(1001)], 426, (TransferResult::Reset, None)),
        (vec![fin, reset(1001)], 226, (TransferResult::Reset, None)),
        (vec![fin, reset(6001)], 226, complete(Some(5000))),
        (vec![early, servers_reset(6001)], 226, complete(None)),
        (vec![servers_reset(6001)], 226, complete(None)),
        // Nobody knows which FIN the client has accepted.
        (vec![fin, (server, client, "FA", 1007, 11), early], 226, complete(None)),
    ] {
        let mut test = Test::new();
        test.observe(&[(server, client, "SA", 1000, 11)]);
        test.observe(&packets);
        let finished = test.end_sooner_or_later(download(code));
        assert_eq!((finished.result, finished.bytes), expected, "{packets:?}");
        assert_eq!(finished.uncertain.is_some(), finished.bytes.is_none());
    }
}

/// A client sends a FIN of its server, which does not know of it.
#[test]
fn a_packet_from_elsewhere_is_not_believed() {
    let mut test = Test::new();
    test.observe(&[(CLIENT, SERVER, "SA", 1000, 11)]);
    let forged = packet(CLIENT, SERVER, "FA", 1007, 11);
    let forged = DataPacket { interface: forged.interface + 1, ..forged };
    test.tracker.observe(test.now, test.now, &forged);
    test.observe(&[(SERVER, CLIENT, "FA", 11, 1008)]);
    let finished = test.end(download(226)).unwrap();
    assert_eq!((finished.bytes, finished.uncertain), (None, Some(OTHER_CONNECTION)));
}

/// Nor does the kernel know it of each reset.
#[test]
fn forged_resets_and_answers_hide_nothing() {
    let begin = [(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "SA", 1000, 11)];
    let ended = [(CLIENT, SERVER, "FA", 6001, 11), (SERVER, CLIENT, "FA", 8011, 6002)];
    for reset in [("RA", 900_000, 11), ("R", 1, 0), ("RA", 1200, 9)] {
        for verb in [TransferVerb::Stor, TransferVerb::Retr] {
            let mut test = Test::new();
            test.observe(&begin);
            test.observe(&[(CLIENT, SERVER, reset.0, reset.1, reset.2)]);
            test.observe(&ended);
            let finished = test.end(transfer(verb, 226)).unwrap();
            let bytes = if verb.is_upload() { 5000 } else { 8000 };
            let outcome = (finished.result, finished.bytes);
            assert_eq!(outcome, (TransferResult::Complete, Some(bytes)), "{reset:?}");
        }
    }
    // The client seems to have got less than the server had sent.
    let mut test = Test::new();
    test.observe(&begin);
    test.observe(&[ended[1], (CLIENT, SERVER, "RA", 900_000, 12), ended[0]]);
    let finished = test.end(transfer(TransferVerb::Retr, 226)).unwrap();
    assert_eq!((finished.result, finished.bytes), (TransferResult::Complete, Some(8000)));
    // A forged FIN, and a reset behind the end.
    let mut test = Test::new();
    test.observe(&begin);
    test.observe(&[(CLIENT, SERVER, "FA", 900_000, 11)]);
    test.observe(&ended);
    test.observe(&[(CLIENT, SERVER, "R", 6002, 0)]);
    let finished = test.end(transfer(TransferVerb::Stor, 226)).unwrap();
    assert_eq!((finished.result, finished.bytes), (TransferResult::Complete, Some(5000)));
    // Neither do answers of the end that asked, nor SYNs of either.
    for forged in [
        (SERVER, CLIENT, "SA", 900_000, 1001),
        (SERVER, CLIENT, "SA", 10, 1001),
        (SERVER, CLIENT, "SA", 11, 900_000),
        (SERVER, CLIENT, "S", 900_000, 0),
        (CLIENT, SERVER, "S", 900_000, 0),
    ] {
        for (verb, bytes) in [(TransferVerb::Stor, 5000), (TransferVerb::Retr, 8000)] {
            for packets in [[begin[0], forged, begin[1]], [begin[0], begin[1], forged]] {
                let mut test = Test::new();
                test.observe(&packets);
                test.observe(&ended);
                let finished = test.end(transfer(verb, 226)).unwrap();
                let outcome = (finished.result, finished.bytes);
                assert_eq!(outcome, (TransferResult::Complete, Some(bytes)), "{packets:?}");
            }
        }
    }
    // Which one the server has taken is not certain.
    let mut test = Test::new();
    test.observe(&begin);
    test.observe(&[(CLIENT, SERVER, "SA", 900_000, 12)]);
    test.observe(&ended);
    let finished = test.end(transfer(TransferVerb::Stor, 226)).unwrap();
    assert_eq!((finished.result, finished.bytes), (TransferResult::Complete, None));
}

/// The copies of resets come later than the reports of FINs.
#[test]
fn a_packet_that_comes_late_is_that_of_its_own_connection() {
    let mut test = Test::new();
    test.observe(&[(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "SA", 1000, 11)]);
    let reset_at = test.now + Duration::from_millis(10);
    test.observe(&[(SERVER, CLIENT, "S", 90, 0), (CLIENT, SERVER, "SA", 7000, 91)]);
    test.tracker.observe(reset_at, reset_at, &packet(SERVER, CLIENT, "RA", 11, 1401));
    let aborted =
        Transfer { has_started: true, ended: Some(reset_at), ..transfer(TransferVerb::Stor, 426) };
    let aborted = test.end(aborted).unwrap();
    assert_eq!((aborted.result, aborted.bytes), (TransferResult::Reset, None));
    test.observe(&[(CLIENT, SERVER, "FA", 7008, 91), (SERVER, CLIENT, "FA", 91, 7009)]);
    let next = test.end(transfer(TransferVerb::Stor, 226)).unwrap();
    assert_eq!((next.result, next.bytes), (TransferResult::Complete, Some(7)));
}

#[test]
fn a_refused_transfer_is_refused_although_its_data_connection_is_reset() {
    for code in [450, 550] {
        let mut test = Test::new();
        let answered = [(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "SA", 1000, 11)];
        test.observe(&answered);
        test.observe(&[(SERVER, CLIENT, "RA", 11, 1001)]);
        let refused = Transfer { has_started: false, ..transfer(TransferVerb::Stor, code) };
        assert_eq!(test.end(refused).unwrap().result, TransferResult::Refused);
    }
}

#[test]
fn a_missing_connection_without_a_transfer_is_reported_once() {
    let Some((_, pinhole)) = transfer(TransferVerb::Stor, 226).announcement else { panic!() };
    let syn = (SERVER, CLIENT, "S", 10, 0);
    let mut test = Test::new();
    assert_eq!(test.tracker.missing_connection(&pinhole), None, "the client may have cancelled");
    test.observe(&[syn]);
    let hanging = "SYN of 203.0.113.9 seen, no answer from 10.0.0.7:50069";
    assert_eq!(test.tracker.missing_connection(&pinhole).as_deref(), Some(hanging));
    test.observe(&[syn]);
    assert_eq!(test.tracker.missing_connection(&pinhole), None);
    let mut test = Test::new();
    test.observe(&[(CLIENT, SERVER, "RA", 0, 11)]);
    let refused = "10.0.0.7:50069 refused the connection of 203.0.113.9";
    assert_eq!(test.tracker.missing_connection(&pinhole).as_deref(), Some(refused));
    let mut test = Test::new();
    test.observe(&[syn, (CLIENT, SERVER, "SA", 1000, 11)]);
    assert_eq!(test.tracker.missing_connection(&pinhole), None);
}

/// Sender, receiver, flags, end and acknowledgement number.
type PacketRow = (&'static str, &'static str, &'static str, u32, u32);

/// What is reported of transfers that ended at these times, in milliseconds, if all packets are read before.
fn bytes_of_transfers(packets: &[(u64, PacketRow)], ends: &[u64]) -> Vec<Option<u64>> {
    let mut test = Test::new();
    let start = test.now;
    let at = |millis| start + Duration::from_millis(millis);
    for (millis, (source, destination, flags, end, acknowledged)) in packets {
        let packet = packet(source, destination, flags, *end, *acknowledged);
        test.tracker.observe(at(*millis), at(*millis), &packet);
    }
    let transfer = |ended| Transfer { ended: Some(at(ended)), ..transfer(TransferVerb::Stor, 226) };
    let finished = ends.iter().filter_map(|ended| test.end(transfer(*ended)));
    let mut bytes: Vec<_> = finished.map(|finished| finished.bytes).collect();
    test.now += PACKETS_WAIT;
    bytes.extend(test.finished().iter().map(|finished| finished.bytes));
    bytes
}

/// A server's ports are used again at once, and packets are read ten times a second.
#[test]
fn transfers_over_the_same_port_have_their_own_bytes() {
    let connection = |began, port: &'static str, bytes: u32| {
        [
            (began, (CLIENT, port, "SA", 1000, 11)),
            (began + 1, (CLIENT, port, "FA", 1001 + bytes, 11)),
            (began + 1, (port, CLIENT, "FA", 11, 1002 + bytes)),
        ]
    };
    let other = "203.0.113.9:5001";
    let one_after_another = [connection(10, SERVER, 5), connection(20, other, 7)].concat();
    assert_eq!(bytes_of_transfers(&one_after_another, &[12, 22]), [Some(5), Some(7)]);
    let third = [&one_after_another[..], &connection(30, "203.0.113.9:5002", 9)].concat();
    assert_eq!(bytes_of_transfers(&third, &[12, 22, 32]), [Some(5), Some(7), Some(9)]);
    // The connection of the first one was not seen, or that of the second one.
    assert_eq!(bytes_of_transfers(&connection(20, other, 7), &[12, 22]), [None, Some(7)]);
    assert_eq!(bytes_of_transfers(&connection(10, other, 7), &[12, 22]), [Some(7), None]);
    // An earlier connection had no transfer. If it is not long ago, it may be that of a server that replies late.
    let with_stray = |began| [connection(10, SERVER, 0), connection(began, other, 7)].concat();
    assert_eq!(bytes_of_transfers(&with_stray(1220), &[1222]), [Some(7)]);
    assert_eq!(bytes_of_transfers(&with_stray(220), &[222]), [None]);
    // It may be either one.
    let near = [connection(10, SERVER, 5), connection(15, other, 7)].concat();
    assert_eq!(bytes_of_transfers(&near, &[17]), [None]);
    assert_eq!(bytes_of_transfers(&near, &[17, 18]), [None, None]);
    // Two sessions of a client, and one server replies late.
    let crossed = [connection(0, SERVER, 5), connection(195, other, 7)].concat();
    assert_eq!(bytes_of_transfers(&crossed, &[200, 210]), [None, None]);
}

/// The port of a fast client's server is in use again within milliseconds, whatever is known of the transfer before.
#[test]
fn what_began_before_the_announcement_is_another_ones() {
    for (is_exact, expected) in [(true, Some(7)), (false, None)] {
        let mut test = Test::new();
        let start = test.now;
        let at = |millis| start + Duration::from_millis(millis);
        for (began, port, bytes) in [(10, SERVER, 5), (20, "203.0.113.9:5001", 7)] {
            let by = if is_exact { at(began) } else { at(100) };
            for packet in [
                packet(CLIENT, port, "SA", 1000, 11),
                packet(CLIENT, port, "FA", 1001 + bytes, 11),
                packet(port, CLIENT, "FA", 11, 1002 + bytes),
            ] {
                test.tracker.observe(at(began), by, &packet);
            }
        }
        let (announced, ended) = (Some(at(15)), Some(at(22)));
        let stored = Transfer { announced, ended, ..transfer(TransferVerb::Stor, 226) };
        assert_eq!(test.end(stored).unwrap().bytes, expected, "{is_exact}");
    }
}

/// A loss makes one transfer uncertain, and not the next one, whose connection was seen by then.
#[test]
fn doubt_is_of_what_the_transfer_may_have_used() {
    let mut test = Test::new();
    let start = test.now;
    let at = |millis| start + Duration::from_millis(millis);
    let mut observe = |millis, port: &str, packets: &[(&str, u32)]| {
        for (flags, end) in packets {
            let packet = packet(CLIENT, port, flags, *end, 11);
            test.tracker.observe(at(millis), at(millis), &packet);
        }
    };
    observe(10, SERVER, &[("SA", 1000), ("SA", 61_000), ("FA", 1006)]);
    observe(30, "203.0.113.9:5001", &[("SA", 1000), ("FA", 1008)]);
    for (port, millis) in [(SERVER, 11), ("203.0.113.9:5001", 31)] {
        let last = packet(port, CLIENT, "FA", 11, 1009);
        test.tracker.observe(at(millis), at(millis), &last);
    }
    let stored = |announced, ended| Transfer {
        announced: Some(at(announced)),
        ended: Some(at(ended)),
        ..transfer(TransferVerb::Stor, 226)
    };
    assert_eq!(test.end(stored(5, 20)).unwrap().uncertain, Some(OTHER_CONNECTION));
    assert_eq!(test.end(stored(25, 40)).unwrap().bytes, Some(7));
}

#[test]
fn two_answers_with_different_numbers_are_not_certain() {
    let mut test = Test::new();
    test.observe(&[
        (SERVER, CLIENT, "S", 10, 0),
        (CLIENT, SERVER, "SA", 61_000, 11),
        (CLIENT, SERVER, "SA", 1000, 11),
        (CLIENT, SERVER, "FA", 1006, 11),
        (SERVER, CLIENT, "FA", 11, 1007),
    ]);
    let stored = test.end(transfer(TransferVerb::Stor, 226)).unwrap();
    assert_eq!((stored.bytes, stored.uncertain), (None, Some(OTHER_CONNECTION)));
}

#[test]
fn after_a_loss_of_copies_what_goes_on_is_not_certain() {
    let mut test = Test::new();
    test.observe(&[(SERVER, CLIENT, "S", 10, 0), (CLIENT, SERVER, "SA", 1000, 11)]);
    test.tracker.record_loss(test.now);
    test.observe(&[(CLIENT, SERVER, "FA", 1006, 11), (SERVER, CLIENT, "FA", 11, 1007)]);
    assert_eq!(test.end(transfer(TransferVerb::Stor, 226)).unwrap().bytes, None);
}

/// The packets of the second one come later than the end of its transfer.
#[test]
fn a_connection_is_that_of_one_transfer_alone() {
    let mut test = Test::new();
    let first_packets = [
        (CLIENT, SERVER, "SA", 1000, 11),
        (CLIENT, SERVER, "FA", 1006, 11),
        (SERVER, CLIENT, "FA", 11, 1007),
    ];
    let start = test.now;
    let ended = |millis| {
        let ended = Some(start + Duration::from_millis(millis));
        let duration = Duration::from_millis(40);
        Transfer { ended, duration, ..transfer(TransferVerb::Stor, 226) }
    };
    assert!([350, 400].into_iter().all(|millis| test.end(ended(millis)).is_none()));
    test.observe(&first_packets);
    let finished = test.finished();
    assert_eq!(finished.iter().map(|one| one.bytes).collect::<Vec<_>>(), [Some(5)]);
}

#[test]
fn transfers_of_a_session_are_reported_in_their_order() {
    let mut test = Test::new();
    assert!(test.end(transfer(TransferVerb::Stor, 226)).is_none(), "its packets may come");
    let without = Transfer { announcement: None, ..transfer(TransferVerb::Retr, 226) };
    assert!(test.end(without).is_none());
    test.now += PACKETS_WAIT;
    let finished = test.finished();
    let verbs: Vec<_> = finished.iter().map(|finished| finished.verb).collect();
    assert_eq!(verbs, [TransferVerb::Stor, TransferVerb::Retr]);
}

/// A server that cannot go on says so with 425, too.
#[test]
fn what_was_transferred_is_not_called_missing() {
    let packets = [
        (SERVER, CLIENT, "S", 10, 0),
        (CLIENT, SERVER, "SA", 1000, 11),
        (CLIENT, SERVER, "FA", 1006, 11),
        (SERVER, CLIENT, "FA", 11, 1007),
    ];
    let mut test = Test::new();
    test.observe(&packets);
    let finished = test.end(transfer(TransferVerb::Stor, 425)).unwrap();
    assert_eq!((finished.result, finished.bytes), (TransferResult::Aborted, None));
}
