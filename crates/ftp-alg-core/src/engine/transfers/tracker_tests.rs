//! What the packets of data connections add to transfers.

use super::{
    super::data_connections::{DataFlags, MAX_CONNECTIONS},
    *,
};
use crate::{
    engine::UnusedPinhole,
    ftp::{AnnouncementKind, Reply},
    session::TransferVerb,
};

pub(super) const SERVER: &str = "203.0.113.9:20";
pub(super) const CLIENT: &str = "10.0.0.7:50069";

/// A packet: sender, receiver, flags, the sequence number behind its data, and the acknowledgement number.
pub(super) type Row<'r> = (&'r str, &'r str, &'r str, u32, u32);

const SYN: Row<'_> = (SERVER, CLIENT, "S", 10, 0);
const SYN_ACK: Row<'_> = (CLIENT, SERVER, "SA", 1000, 11);
/// The start of a data connection in active mode.
pub(super) const BEGIN: [Row<'_>; 2] = [SYN, SYN_ACK];
/// Its end, after its client has sent 5 bytes.
const END: [Row<'_>; 2] = [(CLIENT, SERVER, "FA", 1006, 11), (SERVER, CLIENT, "FA", 11, 1007)];

pub(super) fn event(transfer: Transfer) -> Event<Box<Transfer>> {
    let (client, server) = ("10.0.0.7:1035".parse().unwrap(), "203.0.113.9:21".parse().unwrap());
    Event { session: 17, client, server, user: Some("bob".into()), kind: Box::new(transfer) }
}

pub(super) fn transfer_of(event: Event) -> Transfer {
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

/// An upload that succeeds.
fn stored() -> Transfer {
    transfer(TransferVerb::Stor, 226)
}

/// The same to this endpoint of a client.
pub(super) fn stored_to(target: &str) -> Transfer {
    let mut stored = stored();
    let (_, pinhole) = stored.announcement.as_mut().unwrap();
    (pinhole.arrival, pinhole.target) = (target.parse().unwrap(), target.parse().unwrap());
    stored
}

fn packet(at: Instant, (source, destination, flags, end, acknowledged): Row<'_>) -> DataPacket {
    let has = |flag| flags.contains(flag);
    DataPacket {
        passed: [at; 2],
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        flags: DataFlags { syn: has('S'), ack: has('A'), fin: has('F'), rst: has('R') },
        end,
        acknowledged,
        interface: 1 + u32::from(source.starts_with("10.")),
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

    /// One that has seen these packets.
    pub fn after(packets: &[Row<'_>]) -> Self {
        let mut test = Self::new();
        test.observe(packets);
        test
    }

    /// These packets pass, each a moment after the one before.
    pub fn observe(&mut self, packets: &[Row<'_>]) {
        for packet in packets {
            self.now += Duration::from_millis(100);
            self.observe_at(self.now, *packet);
        }
    }

    pub fn observe_at(&mut self, at: Instant, row: Row<'_>) {
        self.tracker.observe(&packet(at, row));
    }

    /// All of a data connection to this endpoint of a client, in one moment: it moves 5 bytes.
    fn observe_whole(&mut self, target: &str) {
        for packet in whole_connection(target, SERVER, 5) {
            self.observe_at(self.now, packet);
        }
    }

    /// A transfer ends. Its announcement and its command came together, if nothing else is said.
    pub fn end(&mut self, mut transfer: Transfer) -> Option<Transfer> {
        let requested = transfer.ended.unwrap_or(self.now).checked_sub(transfer.duration);
        transfer.announced = transfer.announced.or(requested);
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

/// What a transfer becomes after these packets.
fn finished_after(packets: &[Row<'_>], transfer: Transfer) -> Transfer {
    Test::after(packets).end_sooner_or_later(transfer)
}

/// Its result and its bytes.
fn outcome_after(packets: &[Row<'_>], transfer: Transfer) -> (TransferResult, Option<u64>) {
    let finished = finished_after(packets, transfer);
    (finished.result, finished.bytes)
}

/// A data connection from which its target's end gets so many bytes.
fn whole_connection<'r>(client: &'r str, server: &'r str, bytes: u32) -> [Row<'r>; 3] {
    [
        (client, server, "SA", 1000, 11),
        (client, server, "FA", 1001 + bytes, 11),
        (server, client, "FA", 11, 1002 + bytes),
    ]
}

#[test]
fn bytes_are_those_of_the_sender() {
    for (verb, expected) in [(TransferVerb::Stor, 5), (TransferVerb::Retr, 70_000)] {
        let syn = (SERVER, CLIENT, "S", u32::MAX - 5, 0);
        let syn_ack = (CLIENT, SERVER, "SA", 1000, u32::MAX - 4);
        let last = (SERVER, CLIENT, "FA", 69_995, 1007);
        let others = [syn_ack, syn_ack, (CLIENT, SERVER, "FA", 1006, 0), last, last];
        for syns in [&[][..], &[syn], &[syn, syn]] {
            let finished = finished_after(&[syns, &others].concat(), transfer(verb, 226));
            let outcome = (finished.result, finished.bytes);
            assert_eq!(outcome, (TransferResult::Complete, Some(expected)));
            let packets = 3 + syns.len() as u64;
            assert_eq!(finished.duration, Duration::from_millis(100 * packets));
        }
    }
}

#[test]
fn a_transfer_waits_for_its_last_packets() {
    let mut test = Test::after(&[SYN_ACK]);
    assert!(test.end(stored()).is_none());
    assert_eq!(test.finished().len(), 0);
    test.observe(&END);
    assert_eq!(test.only_finished().bytes, Some(5));
    // Its packets never come.
    let finished = test.end_after_waiting(stored());
    assert_eq!((finished.result, finished.bytes), (TransferResult::Complete, None));
    assert_eq!(finished.duration, Duration::from_secs(3));
}

/// Also if there is no transfer, but then only if its initiator tried, and once.
#[test]
fn a_missing_data_connection_has_a_reason() {
    let (_, pinhole) = stored().announcement.unwrap();
    let refusal = (CLIENT, SERVER, "RA", 0, 11);
    let hanging = "SYN of 203.0.113.9 seen, no answer from 10.0.0.7:50069";
    let refused = "10.0.0.7:50069 refused the connection of 203.0.113.9";
    for (packets, reason) in [
        (&[][..], "no connection of 203.0.113.9 to 10.0.0.7:50069 seen"),
        (&[SYN], hanging),
        (&[refusal], refused),
        (&[SYN, refusal], refused),
    ] {
        let mut test = Test::after(packets);
        let missing = test.tracker.missing_connection(&pinhole);
        assert_eq!(missing.as_deref(), (!packets.is_empty()).then_some(reason));
        test.observe(packets);
        assert_eq!(test.tracker.missing_connection(&pinhole), None);
        let finished = test.end_sooner_or_later(transfer(TransferVerb::Stor, 425));
        assert_eq!(finished.result, TransferResult::NoDataConnection, "{reason}");
        assert_eq!(finished.reason.as_deref(), Some(reason));
    }
    assert_eq!(Test::after(&BEGIN).tracker.missing_connection(&pinhole), None);
}

#[test]
fn results_follow_the_reply_and_the_packets() {
    let open = [SYN_ACK];
    let reset = [SYN_ACK, (CLIENT, SERVER, "R", 1100, 0)];
    let servers_own = [SYN_ACK, (SERVER, CLIENT, "R", 1100, 0)];
    let unused = [SYN_ACK, (SERVER, CLIENT, "RA", 11, 1001)];
    let whole = [SYN_ACK, END[0], END[1]];
    for (packets, code, has_started, result) in [
        (&[][..], 550, false, TransferResult::Refused),
        (&unused, 450, false, TransferResult::Refused),
        (&unused, 550, false, TransferResult::Refused),
        (&open, 426, true, TransferResult::Aborted),
        (&open, 451, true, TransferResult::Aborted),
        (&reset, 426, true, TransferResult::Reset),
        (&[], 426, true, TransferResult::NoDataConnection),
        (&reset, 226, true, TransferResult::Reset),
        (&servers_own, 226, true, TransferResult::Complete),
        (&servers_own, 426, true, TransferResult::Reset),
        // A server that cannot go on says so with 425, too.
        (&whole, 425, true, TransferResult::Aborted),
    ] {
        let transfer = Transfer { has_started, ..transfer(TransferVerb::Stor, code) };
        let outcome = outcome_after(packets, transfer);
        assert_eq!(outcome, (result, None), "{code}, {} packets", packets.len());
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
        let source = format!("203.0.113.9:{}", 1024 + (number >> 16));
        test.observe_at(test.now, (&source, &target, "S", 1, 0));
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
    let stored = stored_to(OTHER);
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
            let server = format!("203.0.113.9:{}", 20 + number % ports);
            test.observe_at(test.now, (CLIENT, &server, "SA", number, number * 7));
        }
        assert!(test.tracker.connections.count() <= super::super::data_connections::SHARE);
        assert_eq!(of_another_client(&mut test), [Some(5)], "{ports}");
        // Its own transfer has none, and says so.
        test.observe(&END);
        let own = test.end_sooner_or_later(stored());
        assert_eq!((own.bytes, own.result), (None, TransferResult::Complete), "{ports}");
        assert!(ports > 1 || own.uncertain == Some(OTHER_CONNECTION));
    }
}

#[test]
fn transfers_of_one_client_that_stay_open_cost_another_nothing() {
    for of_session in [1, 8000] {
        let mut test = Test::after(&BEGIN);
        let mut reported = 0;
        for number in 0..8000 {
            let held = Event { session: number / of_session, ..event(stored()) };
            reported += usize::from(test.tracker.end(test.now, (), held).is_some());
        }
        assert!(test.tracker.waiting.len() <= SHARE, "{}", test.tracker.waiting.len());
        assert_eq!(reported + test.tracker.waiting.len(), 8000, "each is reported");
        test.now += PACKETS_WAIT;
        test.tracker.take_finished(test.now, |_, _| true);
        assert_eq!(of_another_client(&mut test), [Some(5)]);
    }
}

#[test]
fn transfers_of_a_fast_client_have_their_bytes() {
    let clients: Vec<_> = (20_000..23_000).map(|port| format!("10.0.0.7:{port}")).collect();
    let mut test = Test::new();
    clients.iter().for_each(|client| test.observe_whole(client));
    for client in &clients {
        assert_eq!(test.end(stored_to(client)).unwrap().bytes, Some(5));
    }
    // The same before the packets come.
    let mut test = Test::new();
    for (number, client) in (0..).zip(&clients) {
        let event = Event { session: number % 20, ..event(stored_to(client)) };
        assert!(test.tracker.end(test.now, (), event).is_none());
    }
}

#[test]
fn bytes_are_known_again_after_a_loss() {
    let mut test = Test::new();
    test.tracker.record_loss(test.now);
    let mut bytes = Vec::new();
    for number in 0..5000_u32 {
        test.now += Duration::from_millis(4);
        let client = format!("10.0.0.7:{}", 20_000 + number);
        test.observe_whole(&client);
        let ended = test.end(stored_to(&client)).unwrap();
        assert_eq!(ended.bytes.is_none(), ended.uncertain.is_some());
        bytes.push(ended.bytes);
    }
    assert_eq!((bytes.first(), bytes.last()), (Some(&None), Some(&Some(5))));
    // What goes on while copies are lost is not certain.
    let mut test = Test::after(&BEGIN);
    test.tracker.record_loss(test.now);
    test.observe(&END);
    assert_eq!(test.end(stored()).unwrap().bytes, None);
}

/// A client can hide its own SYN-ACK so, and forge another one.
#[test]
fn a_packet_that_cannot_be_read_makes_its_clients_bytes_uncertain() {
    for of_other in [false, true] {
        let mut test = Test::after(&BEGIN);
        let client = if of_other { "10.0.0.8" } else { "10.0.0.7" };
        let addresses = [client, "203.0.113.9"].map(|address| address.parse().unwrap());
        test.tracker.record_unreadable(test.now, addresses);
        test.observe(&END);
        assert_eq!(test.end(stored()).unwrap().bytes, of_other.then_some(5));
    }
}

/// What there was no room for, and, of a transfer that a restart of the daemon interrupted, what began unseen.
#[test]
fn what_was_lost_is_not_called_missing() {
    for (code, result) in [(226, TransferResult::Complete), (426, TransferResult::Aborted)] {
        let ended = Transfer { has_started: true, ..transfer(TransferVerb::Stor, code) };
        let mut full = Test::new();
        for number in 0..2 * super::super::data_connections::SHARE as u32 {
            let target = format!("10.0.0.7:{}", 1024 + number);
            full.observe_at(full.now, (&target, SERVER, "SA", number, 11));
        }
        let mut restarted = Test::new();
        let requested = restarted.now.checked_sub(ended.duration).unwrap();
        restarted.tracker.since = Some(requested + Duration::from_millis(1));
        for test in [&mut full, &mut restarted] {
            let lost = test.end_sooner_or_later(ended.clone());
            assert_eq!((lost.bytes, lost.result, lost.uncertain), (None, result, Some(LOST)));
            assert_eq!(lost.reason, None);
        }
        let mut test = Test::new();
        test.tracker.since = Some(requested);
        assert_eq!(test.end_sooner_or_later(ended).uncertain, None);
    }
}

#[test]
fn networks_without_connections_take_no_memory() {
    for clients in [5000, 1] {
        let mut test = Test::new();
        for number in (0..clients).cycle().take(5000) {
            let client = format!("10.{}.{}.7:50069", number >> 8, number & 0xff);
            test.observe(&[(SERVER, &client, "S", 10, 0)]);
            test.observe(&whole_connection(&client, SERVER, 5));
            assert_eq!(test.end(stored_to(&client)).unwrap().bytes, Some(5));
        }
        let connections = &test.tracker.connections;
        assert_eq!((connections.count(), connections.networks()), (0, 0), "{clients}");
    }
}

#[test]
fn what_was_over_before_the_command_is_an_earlier_ones() {
    let mut test = Test::after(&BEGIN);
    let refused = transfer(TransferVerb::Stor, 550);
    assert_eq!(test.end_sooner_or_later(refused).result, TransferResult::Refused);
    test.observe(&[(CLIENT, SERVER, "FA", 1001, 11), (SERVER, CLIENT, "FA", 11, 1002)]);
    test.observe(&[(SERVER, CLIENT, "S", 90, 0), (CLIENT, SERVER, "SA", 7000, 91)]);
    let (duration, announced) = (Duration::from_millis(150), test.now.checked_sub(PACKETS_WAIT));
    assert!(test.end(Transfer { duration, announced, ..stored() }).is_none());
    test.now += Duration::from_secs(70);
    test.observe(&[(CLIENT, SERVER, "FA", 7008, 91), (SERVER, CLIENT, "FA", 91, 7009)]);
    assert_eq!(test.only_finished().bytes, Some(7));
}

#[test]
fn a_refused_command_leaves_its_connection_to_the_next_one() {
    let mut test = Test::after(&BEGIN);
    let refused = test.end_sooner_or_later(transfer(TransferVerb::Stor, 550));
    assert_eq!((refused.result, refused.bytes), (TransferResult::Refused, None));
    test.observe(&END);
    assert_eq!(test.end(stored()).unwrap().bytes, Some(5));
}

#[test]
fn a_refused_command_has_no_bytes_of_the_next_one() {
    for code in [550, 451, 426, 425] {
        let mut test = Test::after(&[SYN_ACK]);
        let mut finished = Vec::from_iter(test.end(transfer(TransferVerb::Stor, code)));
        test.observe(&END);
        finished.extend(test.end(stored()));
        finished.extend(test.finished());
        let bytes: Vec<_> = finished.iter().map(|one| one.bytes).collect();
        assert_eq!(bytes, [None, Some(5)], "{code}");
    }
}

/// Its server sends two files one behind the other. The first reply may come before or behind the end of the connection.
#[test]
fn a_connection_of_two_pipelined_commands_has_bytes_of_neither() {
    for (is_followed, is_early) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut test = Test::after(&[SYN_ACK]);
        let (announced, ended) = (test.now.checked_sub(PACKETS_WAIT), test.now);
        if is_early {
            assert!(test.end(Transfer { announced, is_followed, ..stored() }).is_none());
        }
        test.observe(&END);
        let mut finished = test.finished();
        if !is_early {
            let first = Transfer { announced, is_followed, ended: Some(ended), ..stored() };
            finished.extend(test.end(first));
        }
        let next = Transfer { announced, duration: Duration::from_millis(50), ..stored() };
        let duration = if is_followed { stored().duration } else { next.duration };
        finished.push(test.end_sooner_or_later(Transfer { duration, ..next }));
        let bytes: Vec<_> = finished.iter().map(|one| one.bytes).collect();
        assert_eq!(bytes, [if is_followed { None } else { Some(5) }, None], "{is_early}");
    }
}

/// A passive port is announced again, and nothing is seen of the second connection.
#[test]
fn a_connection_belongs_to_one_transfer() {
    let mut test = Test::after(&[SYN_ACK]);
    let started = Transfer { has_started: true, ..transfer(TransferVerb::Stor, 426) };
    let aborted = test.end_after_waiting(started);
    assert_eq!(aborted.result, TransferResult::Aborted);
    let hung = test.end_after_waiting(transfer(TransferVerb::Stor, 425));
    assert_eq!(hung.result, TransferResult::NoDataConnection);
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
    let answered = BEGIN;
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
    test.observe(&[SYN]);
    assert_eq!(test.end_after_waiting(unseen()).result, TransferResult::NoDataConnection);
}

#[test]
fn a_reset_leaves_bytes_only_behind_all_of_them() {
    let (fin, all) = ((CLIENT, SERVER, "FA", 6001, 11), (SERVER, CLIENT, "FA", 11, 6002));
    let servers_reset = (SERVER, CLIENT, "RA", 11, 1401);
    let (reset, complete) = (TransferResult::Reset, TransferResult::Complete);
    for (packets, code, expected) in [
        (&[servers_reset][..], 426, (reset, None)),
        // The server ends, and resets what comes then.
        (&[(SERVER, CLIENT, "FA", 11, 1401), (SERVER, CLIENT, "R", 12, 0)], 426, (reset, None)),
        // It reports success: it may have accepted another connection.
        (&[servers_reset], 226, (complete, None)),
        (&[fin, (SERVER, CLIENT, "RA", 11, 6002)], 226, (complete, None)),
        // Only its client says how much there was.
        (&[(CLIENT, SERVER, "RA", 1301, 11)], 426, (reset, None)),
        (&[fin, servers_reset], 426, (reset, None)),
        (&[(CLIENT, SERVER, "R", 11, 0)], 426, (reset, None)),
        // A reset behind everything changes nothing.
        (&[fin, all, (CLIENT, SERVER, "R", 6002, 0)], 226, (complete, Some(5000))),
    ] {
        let packets = [&BEGIN, packets].concat();
        let ended = Transfer { has_started: true, ..transfer(TransferVerb::Stor, code) };
        let outcome = outcome_after(&packets, ended);
        assert_eq!(outcome, expected, "{packets:?}");
    }
}

/// Its server discards a FIN that does not follow its data.
#[test]
fn an_upload_ends_with_the_last_fin_of_its_client() {
    let (sent, received) = ((CLIENT, SERVER, "FA", 6001, 11), (SERVER, CLIENT, "FA", 11, 6002));
    let outcome = |packets: &[Row<'_>]| outcome_after(&[&BEGIN, packets].concat(), stored());
    for end in [1006, 6000, 6002, 900_000] {
        let forged = (CLIENT, SERVER, "FA", end, 11);
        let without_ack = (CLIENT, SERVER, "F", end, 0);
        for (packets, bytes) in [
            ([forged, sent, received], Some(5000)),
            ([without_ack, sent, received], Some(5000)),
            // The copy of the true one comes late.
            ([forged, received, sent], Some(5000)),
            // A server that ends before its client does acknowledges no more than it has by then.
            ([sent, forged, received], None),
            ([sent, received, forged], None),
        ] {
            let expected = (TransferResult::Complete, bytes);
            assert_eq!(outcome(&packets), expected, "{packets:?}");
        }
    }
    // A failed one: whether the server acknowledges a FIN, or a byte, is not certain.
    for first in [(CLIENT, SERVER, "FA", 1006, 11), sent] {
        let failed = Transfer { has_started: true, ..transfer(TransferVerb::Stor, 451) };
        let packets = [SYN, SYN_ACK, first, sent, received];
        assert_eq!(finished_after(&packets, failed).bytes, None);
    }
    // The server is on this machine: its packets seem to come earlier.
    assert_eq!(finished_after(&[SYN_ACK, received, sent], stored()).bytes, Some(5000));
    // The server ends before its client does, and confirms nothing. Packets of a client on this machine seem to come earlier.
    for early in [&[][..], &[(CLIENT, SERVER, "FA", 3000, 11)]] {
        for order in [[0, 1], [1, 0]] {
            let last = [(SERVER, CLIENT, "FA", 11, 3001), (CLIENT, SERVER, "FA", 6001, 12)];
            let packets = [&BEGIN, early, &order.map(|at: usize| last[at])].concat();
            let finished = finished_after(&packets, stored());
            assert_eq!((finished.bytes, finished.uncertain), (None, Some(UNCONFIRMED)));
        }
    }
}

/// A download in passive mode, whose server is the target.
fn download(code: u16) -> Transfer {
    let download = transfer(TransferVerb::Retr, code);
    let announcement = download.announcement.map(|(_, ends)| (AnnouncementKind::Pasv, ends));
    Transfer { announcement, has_started: true, ..download }
}

#[test]
fn a_client_that_denies_what_it_has_hides_no_download() {
    let (client, server) = (SERVER, CLIENT);
    let fin = (server, client, "FA", 6001, 11);
    let early = (client, server, "FA", 11, 1001);
    let reset = |acknowledged| (client, server, "RA", 11, acknowledged);
    let servers_reset = (server, client, "RA", 6001, 11);
    let complete = |bytes| (TransferResult::Complete, bytes);
    for (packets, code, expected) in [
        (&[early, fin][..], 226, complete(Some(5000))),
        (&[fin, early], 226, complete(Some(5000))),
        (&[reset(1001)], 426, (TransferResult::Reset, None)),
        (&[fin, reset(1001)], 226, (TransferResult::Reset, None)),
        (&[fin, reset(6001)], 226, complete(Some(5000))),
        (&[early, servers_reset], 226, complete(None)),
        (&[servers_reset], 226, complete(None)),
        // Nobody knows which FIN the client has accepted.
        (&[fin, (server, client, "FA", 1007, 11), early], 226, complete(None)),
    ] {
        let finished = finished_after(&[&[SYN_ACK], packets].concat(), download(code));
        assert_eq!((finished.result, finished.bytes), expected, "{packets:?}");
        assert_eq!(finished.uncertain.is_some(), finished.bytes.is_none());
    }
}

#[test]
fn a_packet_from_elsewhere_is_not_believed() {
    let mut test = Test::after(&[SYN_ACK]);
    let forged = packet(test.now, (CLIENT, SERVER, "FA", 1007, 11));
    test.tracker.observe(&DataPacket { interface: forged.interface + 1, ..forged });
    test.observe(&[(SERVER, CLIENT, "FA", 11, 1008)]);
    let finished = test.end(download(226)).unwrap();
    assert_eq!((finished.bytes, finished.uncertain), (None, Some(OTHER_CONNECTION)));
}

#[test]
fn forged_resets_and_answers_hide_nothing() {
    let [sent, received] = [(CLIENT, SERVER, "FA", 6001, 11), (SERVER, CLIENT, "FA", 8011, 6002)];
    let assert_whole = |packets: &[Row<'_>]| {
        for (verb, bytes) in [(TransferVerb::Stor, 5000), (TransferVerb::Retr, 8000)] {
            let outcome = outcome_after(packets, transfer(verb, 226));
            assert_eq!(outcome, (TransferResult::Complete, Some(bytes)), "{packets:?}");
        }
    };
    for (flags, end, acknowledged) in [("RA", 900_000, 11), ("R", 1, 0), ("RA", 1200, 9)] {
        let reset = (CLIENT, SERVER, flags, end, acknowledged);
        assert_whole(&[SYN, SYN_ACK, reset, sent, received]);
    }
    // The client seems to have got less than the server had sent.
    assert_whole(&[SYN, SYN_ACK, received, (CLIENT, SERVER, "RA", 900_000, 12), sent]);
    // A forged FIN, and a reset behind the end.
    let (fin, reset) = ((CLIENT, SERVER, "FA", 900_000, 11), (CLIENT, SERVER, "R", 6002, 0));
    let outcome = outcome_after(&[SYN, SYN_ACK, fin, sent, received, reset], stored());
    assert_eq!(outcome, (TransferResult::Complete, Some(5000)));
    // Neither do answers of the end that asked, nor SYNs of either.
    for forged in [
        (SERVER, CLIENT, "SA", 900_000, 1001),
        (SERVER, CLIENT, "SA", 10, 1001),
        (SERVER, CLIENT, "SA", 11, 900_000),
        (CLIENT, SERVER, "S", 900_000, 0),
    ] {
        assert_whole(&[SYN, forged, SYN_ACK, sent, received]);
        assert_whole(&[SYN, SYN_ACK, forged, sent, received]);
    }
    // Which one the server has taken is not certain.
    for forged in [(CLIENT, SERVER, "SA", 900_000, 12), (SERVER, CLIENT, "S", 900_000, 0)] {
        let outcome = outcome_after(&[SYN, SYN_ACK, forged, sent, received], stored());
        assert_eq!(outcome, (TransferResult::Complete, None), "{forged:?}");
    }
}

#[test]
fn a_packet_that_comes_late_is_that_of_its_own_connection() {
    let mut test = Test::after(&BEGIN);
    let reset_at = test.now + Duration::from_millis(10);
    test.observe(&[(SERVER, CLIENT, "S", 90, 0), (CLIENT, SERVER, "SA", 7000, 91)]);
    test.observe_at(reset_at, (SERVER, CLIENT, "RA", 11, 1401));
    let aborted =
        Transfer { has_started: true, ended: Some(reset_at), ..transfer(TransferVerb::Stor, 426) };
    let aborted = test.end_sooner_or_later(aborted);
    assert_eq!((aborted.result, aborted.bytes), (TransferResult::Reset, None));
    test.observe(&[(CLIENT, SERVER, "FA", 7008, 91), (SERVER, CLIENT, "FA", 91, 7009)]);
    let next = test.end(Transfer { announced: Some(reset_at), ..stored() }).unwrap();
    assert_eq!((next.result, next.bytes), (TransferResult::Complete, Some(7)));
}

/// What is reported of transfers that ended at these times, in milliseconds, if all packets are read before.
fn bytes_of_transfers(packets: &[(u64, Row<'_>)], ends: &[u64]) -> Vec<Option<u64>> {
    let mut test = Test::new();
    let start = test.now;
    let at = |millis| start + Duration::from_millis(millis);
    packets.iter().for_each(|(millis, packet)| test.observe_at(at(*millis), *packet));
    let transfer = |ended| Transfer { ended: Some(at(ended)), ..stored() };
    let finished = ends.iter().filter_map(|ended| test.end(transfer(*ended)));
    let mut bytes: Vec<_> = finished.map(|finished| finished.bytes).collect();
    test.now += PACKETS_WAIT;
    bytes.extend(test.finished().iter().map(|finished| finished.bytes));
    bytes
}

/// A server's ports are used again at once, and packets are read ten times a second.
#[test]
fn transfers_over_the_same_port_have_their_own_bytes() {
    let connection = |began, server: &'static str, bytes: u32| {
        let [syn_ack, sent, received] = whole_connection(CLIENT, server, bytes);
        [(began, syn_ack), (began + 1, sent), (began + 1, received)]
    };
    let other = "203.0.113.9:5001";
    let one_after_another = [connection(10, SERVER, 5), connection(20, other, 7)].concat();
    assert_eq!(bytes_of_transfers(&one_after_another, &[12, 22]), [Some(5), Some(7)]);
    let third = [&one_after_another[..], &connection(30, "203.0.113.9:5002", 9)].concat();
    assert_eq!(bytes_of_transfers(&third, &[12, 22, 32]), [Some(5), Some(7), Some(9)]);
    // The connection of the first one was not seen, or that of the second one.
    assert_eq!(bytes_of_transfers(&connection(20, other, 7), &[12, 22]), [None, Some(7)]);
    assert_eq!(bytes_of_transfers(&connection(10, other, 7), &[12, 22]), [Some(7), None]);
    // An earlier connection had no transfer. If it was not over before the command, it may be that of a server that replies late.
    let with_stray = |began| [connection(10, SERVER, 0), connection(began, other, 7)].concat();
    assert_eq!(bytes_of_transfers(&with_stray(4220), &[4222]), [Some(7)]);
    assert_eq!(bytes_of_transfers(&with_stray(1220), &[1222]), [None]);
    // It may be either one.
    let near = [connection(10, SERVER, 5), connection(15, other, 7)].concat();
    assert_eq!(bytes_of_transfers(&near, &[17]), [None]);
    assert_eq!(bytes_of_transfers(&near, &[17, 18]), [None, None]);
    // Two sessions of a client, and one server replies late.
    let crossed = [connection(0, SERVER, 5), connection(195, other, 7)].concat();
    assert_eq!(bytes_of_transfers(&crossed, &[200, 210]), [None, None]);
    let late = [connection(0, SERVER, 5), connection(1400, other, 7)].concat();
    assert_eq!(bytes_of_transfers(&late, &[1500, 2900]), [None, None]);
}

#[test]
fn what_began_before_the_announcement_is_another_ones() {
    for (is_exact, expected) in [(true, Some(7)), (false, None)] {
        let mut test = Test::new();
        let start = test.now;
        let at = |millis| start + Duration::from_millis(millis);
        for (began, server, bytes) in [(10, SERVER, 5), (20, "203.0.113.9:5001", 7)] {
            let by = if is_exact { at(began) } else { at(100) };
            for row in whole_connection(CLIENT, server, bytes) {
                let packet = DataPacket { passed: [at(began), by], ..packet(at(began), row) };
                test.tracker.observe(&packet);
            }
        }
        let (announced, ended) = (Some(at(15)), Some(at(22)));
        let stored = Transfer { announced, ended, ..stored() };
        assert_eq!(test.end(stored).unwrap().bytes, expected, "{is_exact}");
    }
}

/// TCP Fast Open (RFC 7413): a server that knows the client takes data of its SYN.
#[test]
fn what_began_with_data_of_its_syn_is_not_certain() {
    for (syn, bytes) in [(10, Some(8000)), (5, None)] {
        let mut test = Test::after(&[(SERVER, CLIENT, "S", syn, 0)]);
        let between = Some(test.now + Duration::from_millis(1));
        test.observe(&[(CLIENT, SERVER, "SA", 1000, 11), (CLIENT, SERVER, "FA", 1001, 11)]);
        test.observe(&[(SERVER, CLIENT, "FA", 8011, 1002)]);
        let announced = between.filter(|_| bytes.is_none());
        let download = Transfer { announced, ..transfer(TransferVerb::Retr, 226) };
        assert_eq!(test.end(download).unwrap().bytes, bytes, "{syn}");
    }
}

#[test]
fn a_connection_is_that_of_one_transfer_alone() {
    let mut test = Test::new();
    let start = test.now;
    for (ended, duration) in [(350, 300), (400, 40)] {
        let [ended, duration] = [ended, duration].map(Duration::from_millis);
        let stored = Transfer { ended: Some(start + ended), duration, ..stored() };
        assert!(test.end(stored).is_none());
    }
    test.observe(&whole_connection(CLIENT, SERVER, 5));
    let finished = test.finished();
    assert_eq!(finished.iter().map(|one| one.bytes).collect::<Vec<_>>(), [Some(5)]);
}

#[test]
fn transfers_of_a_session_are_reported_in_their_order() {
    let mut test = Test::new();
    assert!(test.end(stored()).is_none(), "its packets may come");
    let without = Transfer { announcement: None, ..transfer(TransferVerb::Retr, 226) };
    assert!(test.end(without).is_none());
    test.now += PACKETS_WAIT;
    let finished = test.finished();
    let verbs: Vec<_> = finished.iter().map(|finished| finished.verb).collect();
    assert_eq!(verbs, [TransferVerb::Stor, TransferVerb::Retr]);
}

#[test]
fn what_ends_with_the_reply_to_another_line_has_no_bytes() {
    let unseen = |uncertain| {
        let mut test = Test::new();
        test.observe(&[(CLIENT, SERVER, "SA", 1000, 11)]);
        test.observe(&[(CLIENT, SERVER, "FA", 1001, 11), (SERVER, CLIENT, "FA", 8011, 1002)]);
        let end = TransferEnd::Unseen;
        let download = Transfer { end, uncertain, ..transfer(TransferVerb::Retr, 226) };
        let first = test.end_sooner_or_later(download);
        let next = Transfer { has_started: false, ..transfer(TransferVerb::Retr, 425) };
        [first.bytes, test.end_sooner_or_later(next).bytes]
    };
    assert_eq!(unseen(None), [Some(8000), None]);
    assert_eq!(unseen(Some("the reply to it may be that to another line")), [None, None]);
}

/// Some servers read as `RETR` what others do not.
#[test]
fn what_moves_through_a_pinhole_without_a_transfer_is_reported() {
    let (_, ends) = stored().announcement.unwrap();
    let refused = (CLIENT, SERVER, "RA", 0, 11);
    let empty = whole_connection(CLIENT, SERVER, 0);
    let download =
        [SYN_ACK, (SERVER, CLIENT, "FA", 70_011, 1001), (CLIENT, SERVER, "FA", 1001, 70_012)];
    let forged = [SYN_ACK, (CLIENT, SERVER, "SA", 5000, 11), download[1], download[2]];
    let missing = |what: &str| Some(format!("no data connection: {what}"));
    let moved = |what: &str, why: &str| {
        Some(format!("10.0.0.7 unknown command {what}: its end was not seen{why}"))
    };
    for (packets, expected) in [
        (&whole_connection(CLIENT, SERVER, 5)[..], moved("5 B in 0.2 s", "")),
        (&download, moved("70000 B in 0.2 s", "")),
        (&forged, moved("in 0.4 s", "; uncertain: its data connection may be another one's")),
        (&empty, None),
        (&[], None),
        (&[SYN, refused], missing("10.0.0.7:50069 refused the connection of 203.0.113.9")),
        (&[SYN], missing("SYN of 203.0.113.9 seen, no answer from 10.0.0.7:50069")),
    ] {
        let mut test = Test::new();
        let lifetime = [Some(test.now), None];
        test.observe(packets);
        let unused = UnusedPinhole { kind: AnnouncementKind::Port, ends, why: "", lifetime };
        let mut closed = event(Transfer::without_command(&unused, test.now, None));
        closed.user = None;
        let decided = test.tracker.end(test.now, (), closed);
        test.now += PACKETS_WAIT;
        let finished = test.tracker.take_finished(test.now, |_, _| false);
        let reported: Vec<_> = decided.into_iter().chain(finished).collect();
        let texts = reported.iter().map(|(_, event)| event.text());
        let text = texts.map(|text| match text.split_once("203.0.113.9:21: ") {
            Some((_, text)) => text.to_owned(),
            None => text,
        });
        assert_eq!(text.collect::<Vec<_>>(), Vec::from_iter(expected), "{packets:?}");
    }
}

/// And not twice: what a transfer has is its.
#[test]
fn what_a_transfer_has_is_no_other_ones() {
    let (_, ends) = stored().announcement.unwrap();
    let mut test = Test::after(&whole_connection(CLIENT, SERVER, 5));
    let aborted = Transfer { has_started: true, ..transfer(TransferVerb::Stor, 426) };
    assert_eq!(test.end(aborted).unwrap().result, TransferResult::Aborted);
    let unused = UnusedPinhole { kind: AnnouncementKind::Port, ends, why: "", lifetime: [None; 2] };
    assert!(test.end(Transfer::without_command(&unused, test.now, None)).is_none());
    test.now += PACKETS_WAIT;
    assert_eq!(test.finished().len(), 0);
}
