//! Limits of pinholes: of one client, of one IPv6 network, of all; and closings that meet other pinholes.

use super::*;
use crate::{
    engine::FakeKernel,
    ftp::{AnnouncementKind, Padding},
};

/// Tables of shards that share their ports, and the kernel.
struct Shards {
    tables: Vec<PinholeTable>,
    kernel: FakeKernel,
    now: Instant,
    policy: Policy,
    room: Option<usize>,
}

/// The control connection of a client, and the pinhole for this port of the client.
fn announced(client: &str, port: u16) -> (Translation, PinholeEnds) {
    let client: IpAddr = client.parse().unwrap();
    let server: IpAddr =
        if client.is_ipv4() { "203.0.113.9" } else { "2001:db8:9::9" }.parse().unwrap();
    let arrival = SocketAddr::new(client, port);
    let control = Translation::identity((client, 4000).into(), (server, 21).into());
    (control, PinholeEnds { initiator: server, arrival, target: arrival, source: server })
}

impl Shards {
    fn new(count: usize, capacity: usize) -> Self {
        let mut first = PinholeTable::default();
        first.set_capacity(capacity);
        let mut tables: Vec<_> = (1..count).map(|_| first.new_shard(false)).collect();
        tables.insert(0, first);
        let (kernel, now) = (FakeKernel::default(), Instant::now());
        Self { tables, kernel, now, policy: Policy::default(), room: None }
    }

    fn first(&mut self) -> &mut PinholeTable {
        &mut self.tables[0]
    }

    /// A session of a shard opens a pinhole. Returns its serial number and external port.
    fn open_for(
        &mut self,
        shard: usize,
        owner: u32,
        (control, ends): (Translation, PinholeEnds),
    ) -> Result<(u64, u16), NotOpened> {
        let (kind, lifetime) = (AnnouncementKind::Port, self.policy.pinhole_timeout);
        let opening = Opening { ends, control, kind, lifetime };
        let fits = |port| self.room.is_none_or(|room| kind.fits_port(port, room, Padding::None));
        let (table, kernel) = (&mut self.tables[shard], &mut self.kernel);
        let (opened, _) = table.open(self.now, owner, opening, fits, &self.policy, kernel)?;
        Ok((opened.serial, opened.ends.arrival.port()))
    }

    fn open(&mut self, client: &str, port: u16) -> Result<(u64, u16), NotOpened> {
        self.open_for(0, 1, announced(client, port))
    }

    fn refusal(&mut self, client: &str, port: u16) -> String {
        format!("{:?}", self.open(client, port).unwrap_err())
    }

    /// Closes all pinholes of a session, and has the kernel do that.
    fn close(&mut self, shard: usize, owner: u32) {
        self.tables[shard].close_all_of(owner);
        self.tables[shard].send_closings(&mut self.kernel);
        assert!(self.tables[shard].errors.is_empty());
    }

    fn is_empty(&self) -> bool {
        self.tables[0].ports.lock().is_empty()
    }
}

/// Holds a pinhole of the BPF program with the ends of one of 192.0.2.1, for the session 7.
fn hold_program(table: &mut PinholeTable, port: u16) -> u64 {
    let (control, ends) = announced("192.0.2.1", port);
    let (client, deadline) = (control.client.ip().into(), Instant::now() + Duration::from_secs(30));
    let installed_in = InstalledIn::Program(PinholeId { flow: u64::from(port), line: 1 });
    let mut held = Pinhole::new(ends, AnnouncementKind::Port, deadline, client, installed_in);
    held.set_granted(true);
    table.hold_of_program(7, held).serial
}

/// In all shards: addresses of one IPv6 network share a limit, and a client may hold a quarter of a small capacity.
#[test]
fn open_pinholes_of_a_client_and_of_all_are_limited() {
    type ClientOf = fn(u16) -> String;
    let cases: [(_, _, ClientOf, _, _); 3] = [
        (
            60_000,
            1024,
            |host| format!("2001:db8:1:2:{host:x}::1"),
            "Limit(1024)",
            "2001:db8:1:3::1",
        ),
        (128, 32, |_| "192.0.2.1".to_owned(), "Limit(32)", "192.0.2.2"),
        (8, 7, |host| format!("192.0.2.{host}"), "Full", "192.0.2.100"),
    ];
    for (capacity, count, client, expected, other) in cases {
        let mut shards = Shards::new(2, capacity);
        for number in 1..=count {
            let (shard, owner) = (usize::from(number % 2), number.into());
            shards.open_for(shard, owner, announced(&client(number), 4000 + number)).unwrap();
        }
        shards.open(other, 4000).unwrap();
        let next = client(count + 1);
        assert!(shards.refusal(&next, 6000).starts_with(expected), "{next}");
        shards.close(0, 2);
        shards.open(&next, 6000).unwrap();
    }
}

/// A connection on the fast path counts, with its pinhole or without.
#[test]
fn a_pinhole_of_the_fast_path_counts_once() {
    let mut shards = Shards::new(1, 60_000);
    let policy = Policy { max_pinholes_per_client: 4, ..Policy::default() };
    let client: IpAddr = "192.0.2.1".parse().unwrap();
    let table = shards.first();
    let open_count = |table: &mut PinholeTable| {
        let check = |limit| table.ports.lock().check(client.into(), limit, 60_000).is_err();
        (1..9).take_while(|limit| check(*limit)).count()
    };
    let half_of_one = Policy { max_pinholes_per_client: 1, ..Policy::default() };
    assert!(!table.grant_fast_path(&half_of_one, client));
    assert!((0..2).all(|_| table.grant_fast_path(&policy, client)));
    assert!(!table.grant_fast_path(&policy, client), "half of the limit is left to others");
    hold_program(table, 5000);
    assert_eq!(open_count(table), 2);
    // Back in the queue, a pinhole that is open counts itself.
    table.revoke_fast_path_grant(7, client);
    assert_eq!(open_count(table), 2);
    table.note_consumed(7, PinholeId { flow: 5000, line: 1 });
    assert_eq!(open_count(table), 1, "the other grant");
    table.revoke_fast_path_grant(8, client);
    assert_eq!(open_count(table), 0);
}

#[test]
fn pinholes_in_use_count_for_the_clients_fraction() {
    let mut shards = Shards::new(1, 16_384);
    for port in 2000..4048 {
        let owner = u32::from(port);
        shards.open_for(0, owner, announced("192.0.2.1", port)).unwrap();
        let table = shards.first();
        table.answer(owner);
        table.start(owner);
        let later = Instant::now() + Duration::from_secs(60);
        table.end_lifetimes(owner, later, &FakeKernel::default());
    }
    assert!(shards.refusal("192.0.2.1", 5000).contains("share"));
    shards.open("192.0.2.2", 5000).unwrap();
    let now = shards.now;
    shards.close(0, 2000);
    shards.first().end(now, 2001);
    shards.open("192.0.2.1", 5000).unwrap();
    shards.open("192.0.2.1", 5001).unwrap();
    assert!(shards.refusal("192.0.2.1", 5002).contains("share"));
}

/// Two clients behind one address that use the same port, in turn.
#[test]
fn an_end_keeps_to_the_external_port_that_it_had_last() {
    for room in [None, Some(6)] {
        let mut shards = Shards { room, ..Shards::new(2, 1024) };
        let open = |shards: &mut Shards, shard: usize, host: u32| {
            let (control, mut ends) = announced(&format!("192.0.2.{host}"), 50_000);
            ends.arrival = "198.51.100.1:50000".parse().unwrap();
            shards.open_for(shard, host, (control, ends)).unwrap().1
        };
        assert_eq!(open(&mut shards, 0, 1), 50_000);
        let last = open(&mut shards, 0, 2);
        assert_ne!(last, 50_000);
        shards.close(0, 2);
        for shard in [0, 1, 0] {
            assert_eq!(open(&mut shards, shard, 2), last, "{room:?}");
            shards.close(shard, 2);
        }
        // Also when the announced port is free.
        shards.close(0, 1);
        for shard in [0, 0, 1] {
            assert_eq!(open(&mut shards, shard, 2), last, "{room:?}");
            shards.close(shard, 2);
        }
        assert!(shards.is_empty());
    }
}

/// A server with one passive port, or a client that always announces the same.
#[test]
fn a_port_at_which_another_session_waits_is_left_to_it() {
    let mut shards = Shards::new(1, 64);
    let open = |shards: &mut Shards, owner: u32| {
        shards.open_for(0, owner, announced("192.0.2.1", 4000)).unwrap().1
    };
    assert_eq!(open(&mut shards, 1), 4000);
    assert_ne!(open(&mut shards, 2), 4000);
    // The session itself announces it again.
    assert_eq!(open(&mut shards, 1), 4000);
    assert_eq!(shards.kernel.open.len(), 2);
    // The transfer has started, so the port may be announced for the next one.
    shards.first().answer(1);
    shards.first().answer(1);
    shards.first().start(1);
    assert_eq!(open(&mut shards, 2), 4000, "as before, not that of the second session");
    // Who has lost it closes nothing.
    shards.close(0, 1);
    assert!(shards.kernel.open.iter().any(|open| open.arrival.port() == 4000));
    shards.close(0, 2);
    assert!(shards.is_empty() && shards.kernel.open.is_empty());
}

#[test]
fn a_port_at_which_another_session_waits_is_used_if_there_is_no_other() {
    let mut shards = Shards::new(2, 64);
    shards.policy = Policy { port_range: 4000..=4000, ..Policy::default() };
    for owner in [1, 2] {
        let opened = shards.open_for(0, owner, announced("192.0.2.1", 4000));
        assert_eq!(opened.unwrap().1, 4000);
    }
    // But not if it is in another shard.
    let opened = shards.open_for(1, 1, announced("192.0.2.1", 4000));
    assert!(matches!(opened, Err(NotOpened::NoPort)));
}

/// Several external ports of one target: one element translates the source of all. The last closing takes it along.
#[test]
fn a_source_translation_stays_while_another_pinhole_uses_it() {
    for owners in [[1, 2, 3], [1, 1, 1]] {
        let mut shards = Shards::new(1, 1024);
        for (owner, port) in owners.into_iter().zip(6000..) {
            let (control, mut ends) = announced("192.0.2.1", 5000);
            ends.arrival = SocketAddr::new("198.51.100.1".parse().unwrap(), port);
            ends.source = "10.0.0.1".parse().unwrap();
            shards.open_for(0, owner, (control, ends)).unwrap();
        }
        let mut shared = Vec::new();
        for owner in 1..=3 {
            let table = shards.first();
            table.close_all_of(owner);
            let due = table.closings.take_due(&table.ports.lock());
            let due = due.iter().filter_map(Closing::ends);
            shared.extend(due.map(|ends| ends.source == ends.initiator));
            shards.close(0, owner);
        }
        assert_eq!(shared, [true, true, false], "{owners:?}");
        assert!(shards.is_empty());
    }
}

/// A client announces a port again before the kernel has closed the first pinhole there.
#[test]
fn a_port_that_is_being_closed_is_opened_again_in_one_transaction() {
    for shard in [0, 1] {
        let mut shards = Shards::new(2, 8);
        shards.open("192.0.2.1", 4000).unwrap();
        shards.first().close_all_of(1);
        // Another shard's opening could come before that closing.
        let port = shards.open_for(shard, 2, announced("192.0.2.1", 4000)).unwrap().1;
        assert_eq!((port == 4000, shards.kernel.open.len()), (shard == 0, 1 + shard));
        assert_eq!(shards.first().closings.len(), shard);
        shards.close(shard, 2);
        shards.close(0, 1);
        assert!(shards.is_empty() && shards.kernel.open.is_empty());
    }
}

/// The kernel refuses a pinhole with this error. Returns how many closings it was asked for.
fn open_refused(shards: &mut Shards, error: fn() -> KernelError) -> usize {
    let before = shards.kernel.asked_closings;
    shards.kernel.refuses = Some(error);
    assert!(shards.open_for(0, 2, announced("192.0.2.1", 4000)).is_err());
    shards.kernel.refuses = None;
    shards.kernel.asked_closings - before
}

const FULL: fn() -> KernelError = || KernelError::Full { what: "x" };

/// The kernel refuses a pinhole, perhaps the second at the same port. If it has not closed the first one, that is still to
/// be closed.
#[test]
fn the_port_of_a_refused_pinhole_is_free_or_still_to_be_closed() {
    let not_closed: fn() -> KernelError = || KernelError::NotClosed(Box::new(FULL()));
    let mut shards = Shards::new(1, 8);
    for error in [FULL, || KernelError::Taken, not_closed] {
        open_refused(&mut shards, error);
        assert!(shards.is_empty());
    }
    for error in [FULL, not_closed] {
        shards.open("192.0.2.1", 4000).unwrap();
        shards.first().close_all_of(1);
        assert_eq!(open_refused(&mut shards, error), 1);
        assert!(!shards.is_empty());
        shards.close(0, 1);
        assert!(shards.is_empty() && shards.kernel.open.is_empty());
    }
}

/// Also if the BPF program opens one with its ends meanwhile, but not if the rules do: they close the old one with that.
#[test]
fn a_failed_closing_is_tried_again_but_not_for_ever() {
    for (in_program, in_rules) in [(false, false), (true, false), (false, true)] {
        let mut shards = Shards::new(1, 8);
        shards.open("192.0.2.1", 4000).unwrap();
        let mut failing = FakeKernel { refuses: Some(FULL), ..FakeKernel::default() };
        let table = shards.first();
        table.close_all_of(1);
        if in_program {
            hold_program(table, 4000);
        }
        while !((table.closings.len() == 0) || in_rules && failing.asked_closings == 2) {
            table.send_closings(&mut failing);
            assert_eq!(table.take_errors().len(), 1);
            table.requeue_closings();
        }
        assert_eq!(failing.asked_closings, if in_rules { 2 } else { 11 });
        if in_rules {
            shards.open_for(0, 2, announced("192.0.2.1", 4000)).unwrap();
            assert!(shards.first().closings.len() == 0);
            assert_eq!(shards.kernel.open.len(), 1);
        }
        shards.close(0, 2);
        shards.close(0, 7);
        assert!(shards.is_empty());
    }
}

/// The earlier one is another session's.
#[test]
fn a_pinhole_of_the_program_replaces_one_that_the_rules_need_no_more() {
    for (earlier, later) in ["open", "consumed", "closed"]
        .into_iter()
        .flat_map(|earlier| ["open", "closed", "in rules"].map(|later| (earlier, later)))
    {
        let mut shards = Shards::new(1, 8);
        shards.open("192.0.2.1", 4000).unwrap();
        let now = shards.now;
        let table = shards.first();
        let (_, ends) = announced("192.0.2.1", 4000);
        match earlier {
            "consumed" => {
                table.answer(1);
                table.start(1);
                table.end(now, 1);
            }
            "closed" => table.close_all_of(1),
            _ => {}
        }
        hold_program(table, 4000);
        let is_replaced = earlier != "open";
        assert_eq!(table.is_held(ends.initiator, ends.arrival), !is_replaced);
        match later {
            "closed" => table.close_all_of(7),
            "in rules" => {
                let moved = table.move_to_rules(7, |_| true).len();
                assert_eq!(moved, usize::from(is_replaced), "{earlier}");
            }
            _ => {}
        }
        let due = table.closings.take_due(&table.ports.lock());
        // The rules have only one with these ends; if it is the later one, it stays.
        let is_due = is_replaced && later != "in rules";
        let of_rules = due.iter().filter(|one| matches!(one, Closing::Rules(_)));
        assert_eq!(of_rules.count(), usize::from(is_due), "{earlier} {later}");
    }
}

fn restored_record(serial: u64, ends: PinholeEnds) -> PinholeRecord {
    let kind = AnnouncementKind::Port;
    PinholeRecord {
        ends,
        kind,
        serial,
        deadline: 0,
        answered: false,
        in_use: false,
        in_program: None,
    }
}

/// Which shard will adopt its session is unknown, and the session may be silent for hours.
#[test]
fn each_shard_may_use_the_port_of_a_restored_transfer() {
    for in_use in [true, false] {
        let mut shards = Shards::new(2, 64);
        let deadline = shards.now + Duration::from_secs(30);
        let (control, ends) = announced("192.0.2.1", 4000);
        let record = PinholeRecord { in_use, answered: true, ..restored_record(1, ends) };
        let mut restored = shards.tables[0].new_shard(true);
        restored.number_behind(1);
        restored.restore(7, control.client.ip(), &record, deadline);
        shards.kernel.open.push(ends);
        let (_, port) = shards.open_for(1, 2, announced("192.0.2.1", 4000)).unwrap();
        assert_eq!(port == 4000, in_use, "{port}");
        let has_port = restored.of(7).next().is_some_and(|pinhole| restored.has_port(pinhole));
        assert_eq!(has_port, !in_use);
        // The end of the restored session closes nothing of the other.
        restored.close_all_of(7);
        restored.send_closings(&mut shards.kernel);
        assert_eq!(shards.kernel.open.len(), 1);
        shards.close(1, 2);
        assert!(shards.is_empty());
    }
}

/// The later pinhole was recorded before the other; one of them is the BPF program's.
#[test]
fn restored_pinholes_keep_their_serial_numbers() {
    for serials in [[3, 5], [5, 3]] {
        let mut shards = Shards::new(1, 64);
        let deadline = shards.now + Duration::from_secs(30);
        let table = shards.first();
        table.number_behind(5);
        for (serial, in_program) in
            serials.into_iter().zip([Some(PinholeId { flow: 1, line: 1 }), None])
        {
            let (control, ends) = announced("192.0.2.1", 4000 + serial as u16);
            let record = PinholeRecord { in_program, ..restored_record(serial, ends) };
            table.restore(7, control.client.ip(), &record, deadline);
        }
        let order: Vec<_> = table.of(7).map(|pinhole| pinhole.serial).collect();
        assert_eq!(order, [3, 5], "in the order of their announcements");
        let (next, _) = shards.open("192.0.2.1", 5000).unwrap();
        assert_eq!(next, 6);
    }
}

#[test]
fn closing_an_expectation_delays_no_packet() {
    let mut shards = Shards::new(1, 60_000);
    shards.kernel.uses_expectations = true;
    shards.open("192.0.2.1", 4000).unwrap();
    shards.first().close_all_of(1);
    shards.open("192.0.2.1", 4001).unwrap();
    assert_eq!((shards.kernel.open.len(), shards.kernel.asked_closings), (2, 0));
    shards.tables[0].send_closings(&mut shards.kernel);
    let open: Vec<_> = shards.kernel.open.iter().map(|open| open.arrival.port()).collect();
    assert_eq!(open, [4001]);
    // But one with the same ends, or for which there is no room, would be in the way.
    shards.first().close_all_of(1);
    shards.open("192.0.2.1", 4001).unwrap();
    assert_eq!((shards.kernel.open.len(), shards.kernel.asked_closings), (1, 2));
    shards.kernel.limit = Some(1);
    shards.first().close_all_of(1);
    shards.open("192.0.2.1", 4002).unwrap();
    assert_eq!((shards.kernel.open.len(), shards.kernel.asked_closings), (1, 3));
}

#[test]
fn an_expectation_in_use_is_closed_when_its_lifetime_ends() {
    for uses_expectations in [false, true] {
        let mut shards = Shards::new(1, 60_000);
        shards.kernel.uses_expectations = uses_expectations;
        shards.open("192.0.2.1", 4000).unwrap();
        shards.first().answer(1);
        shards.first().start(1);
        for (seconds, is_open) in [(29, true), (2, !uses_expectations), (2, !uses_expectations)] {
            shards.now += Duration::from_secs(seconds);
            shards.tables[0].end_lifetimes(1, shards.now, &shards.kernel);
            shards.tables[0].send_closings(&mut shards.kernel);
            assert_eq!(shards.kernel.open.len(), usize::from(is_open));
        }
        assert_eq!(shards.kernel.asked_closings, usize::from(uses_expectations));
        shards.close(0, 1);
        assert!(shards.is_empty());
    }
}
