//! What the packets of data connections add to transfers.

use super::{super::data_connections::DataFlags, *};
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

/// A data connection from which its target's end gets so many bytes.
fn whole_connection<'r>(client: &'r str, server: &'r str, bytes: u32) -> [Row<'r>; 3] {
    [
        (client, server, "SA", 1000, 11),
        (client, server, "FA", 1001 + bytes, 11),
        (server, client, "FA", 11, 1002 + bytes),
    ]
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

/// The packets that a text means, such as `< S 10/0 > SA 1000/11`: those of the initiator (`<`) and the target (`>`), with the
/// sequence number behind their data and the acknowledgement number.
fn rows(text: &str) -> Vec<Row<'_>> {
    let words: Vec<_> = text.split_whitespace().collect();
    let row = |word: &[&'_ str; 3]| {
        let [side, flags, numbers] = *word;
        let (end, acknowledged) = numbers.split_once('/').unwrap();
        let [from, to] = if side == "<" { [SERVER, CLIENT] } else { [CLIENT, SERVER] };
        let flags = ["S", "SA", "F", "FA", "R", "RA"].into_iter().find(|known| *known == flags);
        (from, to, flags.unwrap(), end.parse().unwrap(), acknowledged.parse().unwrap())
    };
    words.as_chunks().0.iter().map(row).collect()
}

/// A transfer, as `STOR 150 226` or `passive RETR 226` or `STOR unseen` says: what the server replied.
fn transfer_with(text: &str) -> Transfer {
    let words: Vec<_> = text.split(' ').collect();
    let verb = if words.contains(&"RETR") { TransferVerb::Retr } else { TransferVerb::Stor };
    let code = words.last().unwrap().parse();
    let mut transfer = transfer(verb, code.clone().unwrap_or(0));
    transfer.has_started |= words.contains(&"150");
    if words[0] == "passive" {
        let announcement = transfer.announcement.as_mut();
        announcement.unwrap().0 = AnnouncementKind::Pasv;
    }
    if code.is_err() {
        transfer.end = TransferEnd::Unseen;
    }
    transfer
}

/// The client is the target in active mode, and may forge what it likes.
#[test]
fn results_and_bytes_follow_the_reply_and_the_packets() {
    const BEGIN: &str = "< S 10/0 > SA 1000/11 ";
    const WHOLE: &str = " > FA 6001/11 < FA 8011/6002";
    const WRAPPED: &str = "< S 4294967290/0 < S 4294967290/0 > SA 1000/4294967291 > SA 1000/4294967291 > FA 1006/0 \
                           < FA 69995/1007 < FA 69995/1007";
    let other = "its data connection may be another one's";
    let unconfirmed = "its server does not confirm how much there was";
    let mut cases = Vec::new();
    for (transfer, packets, expected) in [
        ("STOR 226", "", "complete"),
        ("STOR 550", "", "refused"),
        ("STOR 450", "begin < RA 11/1001", "refused"),
        ("STOR 550", "begin < RA 11/1001", "refused"),
        ("STOR 150 426", "begin", "aborted"),
        ("STOR 150 451", "begin", "aborted"),
        ("STOR 150 426", "", "no-data-connection"),
        ("STOR unseen", "", "unseen"),
        ("STOR unseen", "< S 10/0", "no-data-connection"),
        // A server that cannot go on says so with 425, too.
        ("STOR 150 425", "begin > FA 1006/11 < FA 11/1007", "aborted"),
        // A reset leaves bytes only behind all of them: only its client says how much there was.
        ("STOR 150 426", "begin > R 1100/0", "reset"),
        ("STOR 150 426", "begin > R 11/0", "reset"),
        ("STOR 150 426", "begin > RA 1301/11", "reset"),
        ("STOR 226", "begin > R 1100/0", "reset"),
        ("STOR 150 426", "begin < R 1100/0", "reset"),
        ("STOR 150 426", "begin < RA 11/1401", "reset"),
        ("STOR 150 426", "begin < FA 11/1401 < R 12/0", "reset"),
        ("STOR 150 426", "begin > FA 6001/11 < RA 11/1401", "reset"),
        ("STOR 226", "begin > FA 6001/11 < FA 11/6002 > R 6002/0", "complete 5000"),
        // Its server reports success: it may have accepted another connection.
        ("STOR 226", "begin < R 1100/0", "complete"),
        ("STOR 226", "begin < RA 11/1401", "complete"),
        ("STOR 226", "begin > FA 6001/11 < RA 11/6002", "complete"),
        // An upload ends with the last FIN of its client: its server discards one that does not follow its data.
        ("STOR 226", "begin > FA END/11 > FA 6001/11 < FA 11/6002", "complete 5000"),
        ("STOR 226", "begin > F END/0 > FA 6001/11 < FA 11/6002", "complete 5000"),
        ("STOR 226", "begin > FA END/11 < FA 11/6002 > FA 6001/11", "complete 5000"),
        ("STOR 226", "begin > FA 6001/11 > FA END/11 < FA 11/6002", "complete"),
        ("STOR 226", "begin > FA 6001/11 < FA 11/6002 > FA END/11", "complete"),
        // Whether the server acknowledges a FIN, or a byte, is not certain.
        ("STOR 150 451", "begin > FA 1006/11 > FA 6001/11 < FA 11/6002", "aborted"),
        ("STOR 150 451", "begin > FA 6001/11 > FA 6001/11 < FA 11/6002", "aborted"),
        // Sequence numbers wrap, and packets are retransmitted.
        ("STOR 226", WRAPPED, "complete 5"),
        ("RETR 226", WRAPPED, "complete 70000"),
        // The packets of an end on this machine seem to come earlier.
        ("STOR 226", "> SA 1000/11 < FA 11/6002 > FA 6001/11", "complete 5000"),
        // A server that ends before its client does confirms nothing.
        ("STOR 226", "begin < FA 11/3001 > FA 6001/12", unconfirmed),
        ("STOR 226", "begin > FA 6001/12 < FA 11/3001", unconfirmed),
        ("STOR 226", "begin > FA 3000/11 < FA 11/3001 > FA 6001/12", unconfirmed),
        ("STOR 226", "begin > FA 3000/11 > FA 6001/12 < FA 11/3001", unconfirmed),
        // A client that denies what it has hides no download.
        ("passive RETR 226", "begin < FA 11/1001 > FA 6001/11", "complete 5000"),
        ("passive RETR 226", "begin > FA 6001/11 < FA 11/1001", "complete 5000"),
        ("passive RETR 226", "begin > FA 6001/11 < RA 11/1001", "reset"),
        ("passive RETR 226", "begin > FA 6001/11 < RA 11/6001", "complete 5000"),
        ("passive RETR 150 426", "begin < RA 11/1001", "reset"),
        ("passive RETR 226", "begin < FA 11/1001 > RA 6001/11", "complete"),
        ("passive RETR 226", "begin > RA 6001/11", "complete"),
        ("passive RETR 226", "begin > FA 6001/11 > FA 1007/11 < FA 11/1001", "complete"),
        // A reset that no server takes, also behind the end.
        ("both", "begin > RA 900000/11 WHOLE", "complete"),
        ("both", "begin > R 1/0 WHOLE", "complete"),
        ("both", "begin > RA 1200/9 WHOLE", "complete"),
        ("both", "begin < FA 8011/6002 > RA 900000/12 > FA 6001/11", "complete"),
        ("STOR 226", "begin > FA 900000/11 WHOLE > R 6002/0", "complete 5000"),
        // Answers of the end that asked, and SYNs of the other.
        ("both", "begin < SA 900000/1001 WHOLE", "complete"),
        ("both", "begin < SA 10/1001 WHOLE", "complete"),
        ("both", "begin < SA 11/900000 WHOLE", "complete"),
        ("both", "begin > S 900000/0 WHOLE", "complete"),
        ("both", "< S 10/0 < SA 900000/1001 > SA 1000/11 WHOLE", "complete"),
        ("both", "< S 10/0 < SA 10/1001 > SA 1000/11 WHOLE", "complete"),
        ("both", "< S 10/0 < SA 11/900000 > SA 1000/11 WHOLE", "complete"),
        ("both", "< S 10/0 > S 900000/0 > SA 1000/11 WHOLE", "complete"),
        // Which one the server has taken is not certain.
        ("STOR 226", "begin > SA 900000/12 WHOLE", other),
        ("STOR 226", "begin < S 900000/0 WHOLE", "complete"),
    ] {
        let packets = packets.replace("begin", BEGIN).replace("WHOLE", WHOLE);
        let ends =
            if packets.contains("END") { &["1006", "6000", "6002", "900000"][..] } else { &[""] };
        for end in ends {
            let packets = packets.replace("END", end);
            if transfer == "both" {
                cases.push(("STOR 226", packets.clone(), format!("{expected} 5000")));
                cases.push(("RETR 226", packets, format!("{expected} 8000")));
            } else {
                cases.push((transfer, packets, expected.to_owned()));
            }
        }
    }
    for (transfer, packets, expected) in cases {
        let finished = finished_after(&rows(&packets), transfer_with(transfer));
        let bytes = finished.bytes.map(|bytes| format!(" {bytes}")).unwrap_or_default();
        let reported = format!("{}{bytes}", finished.result.name());
        let is_it = reported == expected || finished.uncertain == Some(&expected);
        let why = finished.uncertain;
        assert!(is_it, "{transfer}, {packets}: {reported} {why:?}, not {expected}");
        let says_why = why.is_some() == bytes.is_empty();
        let is_right =
            if transfer.starts_with("passive") { says_why } else { says_why || why.is_none() };
        assert!(is_right, "{transfer}, {packets}: {reported} {why:?}");
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
fn few_transfers_are_stored() {
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
fn bytes_are_known_again_after_a_loss() {
    let mut test = Test::new();
    test.tracker.note_loss(test.now);
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
    test.tracker.note_loss(test.now);
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
        test.tracker.note_unreadable(test.now, addresses);
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
fn a_packet_from_elsewhere_is_not_believed() {
    let mut test = Test::after(&[SYN_ACK]);
    let forged = packet(test.now, (CLIENT, SERVER, "FA", 1007, 11));
    test.tracker.observe(&DataPacket { interface: forged.interface + 1, ..forged });
    test.observe(&[(SERVER, CLIENT, "FA", 11, 1008)]);
    let finished = test.end(transfer_with("passive RETR 226")).unwrap();
    assert_eq!((finished.bytes, finished.uncertain), (None, Some(OTHER_CONNECTION)));
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
    let fins = [(SERVER, CLIENT, "FA", 70_011, 1001), (CLIENT, SERVER, "FA", 1001, 70_012)];
    let download = [SYN, SYN, SYN_ACK, SYN_ACK, fins[0], fins[1], fins[1]];
    let forged = [SYN_ACK, (CLIENT, SERVER, "SA", 5000, 11), fins[0], fins[1]];
    let missing = |what: &str| Some(format!("no data connection: {what}"));
    let moved = |what: &str, why: &str| {
        Some(format!("10.0.0.7 unknown command {what}: its end was not seen{why}"))
    };
    for (packets, expected) in [
        (&whole_connection(CLIENT, SERVER, 5)[..], moved("5 B in 0.2 s", "")),
        (&download, moved("70000 B in 0.5 s", "")),
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
