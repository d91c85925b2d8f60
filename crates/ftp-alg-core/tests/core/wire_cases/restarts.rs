//! What another daemon makes of the records of sessions.

use ftp_alg_core::{
    engine::{Checksums, Engine, QueuedPacket, RestoredCounts, SessionRecords, Token},
    policy::NetworkPolicy,
};

use super::{support::ends::Ends, *};

impl Sim {
    fn records(&mut self) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let sessions = &mut self.engine().sessions;
        sessions.write_all_records(|record| records.push(record.bytes.to_vec())).unwrap();
        records
    }

    /// An engine that knows only these records, and how many sessions it has.
    fn restored(&self, policy: Policy, records: &[Vec<u8>]) -> (Engine, RestoredCounts) {
        let mut engine = Engine::new(policy, Checksums::Verify);
        let (now, records) = (self.clock(), records.iter().map(Vec::as_slice));
        let restored = engine.sessions.restore(records, now, now - self.now()).unwrap();
        (engine, restored)
    }
}

/// The policy of all connections.
fn of_all(inspect: bool, policy: Policy) -> NetworkPolicy {
    NetworkPolicy { clients: Vec::new(), servers: Vec::new(), inspect, policy }
}

#[test]
fn adjusted_sessions_are_restored_under_a_stricter_policy() {
    let uninspected = vec![of_all(false, Policy::default())];
    for (line, count) in [("NOOP\r\n", 0), ("PORT 192,168,150,80,14,178\r\n", 1)] {
        let mut sim = Sim::logged_in(with(Nat::Masquerade));
        sim.tell(Client, line);
        let records = sim.records();
        for policy in [
            Policy { max_sessions: 0, ..Policy::default() },
            Policy { networks: uninspected.clone(), ..Policy::default() },
        ] {
            let expected = RestoredCounts { sessions: count, adjusted: count, transferring: 0 };
            assert_eq!(sim.restored(policy, &records).1, expected);
        }
    }
}

#[test]
fn a_session_that_is_not_queued_any_more_loses_its_pinholes() {
    for adjusts in [false, true] {
        let mut sim = Sim::logged_in(with(if adjusts { Nat::Masquerade } else { Nat::Routed }));
        sim.tell(Client, &sim.active(2200)[0]);
        let written = sim.records();
        for is_queued in [true, false] {
            let mut records = SessionRecords::read(written.iter().map(Vec::as_slice)).unwrap();
            records.mark_unqueued(|server, translation| {
                assert_eq!((server, translation), (sim.translation.server, Some(&sim.translation)));
                is_queued
            });
            let mut next = Engine::new(Policy::default(), Checksums::Verify);
            next.sessions.restore_sessions(records, sim.clock(), sim.clock() - sim.now());
            assert_eq!(next.sessions.list_pinholes().count(), usize::from(is_queued));
            // The connection of an adjusted one would break.
            assert_eq!(next.sessions.count(), usize::from(is_queued || adjusts));
            assert_eq!(next.sessions.adjusted_connections().count(), usize::from(adjusts));
        }
    }
}

#[test]
fn a_restored_pinhole_has_the_lifetime_of_its_network() {
    let policy =
        |seconds| Policy { pinhole_timeout: Duration::from_secs(seconds), ..Policy::default() };
    let with_network = Policy { networks: vec![of_all(true, policy(120))], ..policy(30) };
    let mut sim = Sim::logged_in(Scenario { policy: policy(300), ..with(Nat::Routed) });
    sim.play("> PORT 192,168,150,80,14,178 < 200 ok > RETR x < 150 wait");
    let records = sim.records();
    for (policy, expected) in [(with_network, 120.0), (policy(30), 30.0), (policy(500), 300.0)] {
        let (next, _) = sim.restored(policy, &records);
        let missing = next.sessions.missing_pinholes(sim.clock(), |_| true);
        let lifetimes: Vec<_> =
            missing.map(|opening| opening.lifetime.as_secs_f64().round()).collect();
        assert_eq!(lifetimes, [expected]);
    }
}

/// The record of a session with everything that a record can hold: an open pinhole, an unacknowledged rewrite, a line
/// whose start is held back.
const RECORDED: &str = "\
    000100c0a896508b0800cb007109150100c0a896508b0800c6336401e3b80200cb0071091500cb007109150000\
    ac020100cb00710900c6336401b21d00c0a89650b21d00cb0071090001dcec01000000000000e9079a08fb07b5\
    01010002800815800800133139382c35312c3130302c312c31342c31373897080395080000b0ea011c00000103\
    45505200000100000000000000000000000000f1a20492a30492a304f101010000b0ea010e0000001f504f5254\
    203139322c3136382c3135302c38302c31342c3137380d0a455052fb071f060002000000010301000000000001\
    00010001000a0001036a6f650000000000000001";

#[test]
fn a_record_of_this_format_round_trips() {
    let mut ends = Ends::new(with(Nat::Masquerade));
    for line in ["PORT 192,168,150,80,14,178\r\n", "EPR"] {
        ends.queue(Client, 0, 0, line.as_bytes());
        ends.client += line.len() as u32;
    }
    let written = ends.sim.records();
    let hex = |record: &Vec<u8>| record.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let changed = "the form of a record changed: raise RECORD_FORMAT, then put the new one here";
    assert_eq!(written.iter().map(hex).collect::<Vec<_>>(), [RECORDED], "{changed}");
    let (_, restored) = ends.sim.restored(Policy::default(), &written);
    assert_eq!(restored, RestoredCounts { sessions: 1, adjusted: 1, transferring: 0 });
    ends.sim.crash();
    assert_eq!(ends.sim.records(), written);
    let packet = ends.packet(Client, 0, 0, b"T |1|192.168.150.80|3763|\r\n");
    let (_, passed) = ends.sim.decided(ends.sim.clock(), &packet, PacketMeta::FORWARDED);
    assert_eq!(Segment::checked(&passed).2.payload, b"EPRT |1|198.51.100.1|3763|\r\n");
}

/// Another gateway gets neither user nor password nor path, also while the server has not acknowledged them.
#[test]
fn a_portable_record_has_no_user_no_password_and_no_path() {
    let secrets = ["joe", "swordfish", "/reports/q3.pdf"];
    let mut ends = Ends::new(with(Nat::Masquerade));
    ends.sim.tell(Client, "USER joe\r\n");
    for line in ["PASS swordfish\r\n", "CWD /reports/q3.pdf\r\n"] {
        ends.queue(Client, 0, 0, line.as_bytes());
        ends.client += line.len() as u32;
    }
    let mut portable = Vec::new();
    let sessions = &mut ends.sim.engine().sessions;
    sessions.write_all_records(|record| portable.push(record.portable.to_vec())).unwrap();
    let [record] = &portable[..] else { panic!("{portable:?}") };
    for secret in secrets {
        assert!(memchr::memmem::find(record, secret.as_bytes()).is_none(), "{secret}");
    }
}

/// Packets of another length, or with a line end, do not take the place of a masked argument.
#[test]
fn a_restored_session_passes_the_masked_argument_that_is_retransmitted_first() {
    let mut ends = Ends::new(with(Nat::Masquerade));
    let line = "PASS swordfish\r\n";
    ends.queue(Client, 0, 0, line.as_bytes());
    ends.sim.crash();
    for (sent, passed) in [
        ("PASS x\r\nPORT 1\r\n", "PASS x??PORT 1\r\n"),
        ("PASS abcdefghi\r\n", "PASS x??PORT 1\r\n"),
    ] {
        let packet = ends.packet(Client, 0, 0, sent.as_bytes());
        let (_, forwarded) = ends.sim.decided(ends.sim.clock(), &packet, PacketMeta::FORWARDED);
        let forwarded = Segment::checked(&forwarded).2.payload;
        assert_eq!(String::from_utf8_lossy(&forwarded), passed);
    }
}

/// A NUL that the client sends later is no masked byte, and makes none of those before it known.
#[test]
fn a_masked_argument_is_passed_also_behind_a_line_with_nul() {
    let mut ends = Ends::new(with(Nat::Masquerade));
    let lines = ["PASS swordfish\r\n", "X \0\0\r\n"];
    ends.queue(Client, 0, 0, lines[0].as_bytes());
    for _restart in 0..2 {
        ends.sim.crash();
        let at = lines[0].len() as u32;
        ends.queue(Client, at, 0, lines[1].as_bytes());
    }
    for (sent, passed) in [
        (lines.concat(), lines.concat()),
        (lines.concat().replace('\0', "a"), lines.concat()),
        (lines.concat().replace("sword", "spoon"), lines.concat()),
    ] {
        let packet = ends.packet(Client, 0, 0, sent.as_bytes());
        let (_, forwarded) = ends.sim.decided(ends.sim.clock(), &packet, PacketMeta::FORWARDED);
        assert_eq!(String::from_utf8_lossy(&Segment::checked(&forwarded).2.payload), passed);
    }
}

/// The index of the client's interface is that of another one on the gateway that continues.
#[test]
fn another_gateway_asks_for_routes_before_it_reads_from_an_interface() {
    let mut ends = Ends::new(with(Nat::Masquerade));
    let packet = ends.packet(Client, 0, 0, b"NOOP\r\n");
    let sim = &mut ends.sim;
    let (written, epoch) = (sim.records(), sim.clock() - sim.now());
    let read = || SessionRecords::read(written.iter().map(Vec::as_slice)).unwrap();
    for leaves in [false, true] {
        let mut records = read();
        if leaves {
            records.leave_machine(&Policy::default());
        }
        let mut next = Engine::new(Policy::default(), Checksums::Verify);
        next.sessions.restore_sessions(records, sim.clock(), epoch);
        let repeated = next.sessions.restore_sessions(read(), sim.clock(), epoch);
        assert_eq!((next.sessions.count(), repeated.sessions), (1, 0));
        let before = sim.kernel.route_lookups;
        let (token, meta) = (Token::default(), PacketMeta::FORWARDED);
        let queued = QueuedPacket { token, bytes: &packet, meta };
        next.take(sim.clock(), std::iter::once(queued), &mut sim.kernel);
        assert_eq!(sim.kernel.route_lookups - before, usize::from(leaves));
    }
}

#[test]
fn a_damaged_record_costs_one_session() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    sim.tell(Client, "NOOP\r\n");
    let record = sim.records().remove(0);
    let damaged = &record[..record.len() / 2];
    let (records, count) = SessionRecords::read_each([damaged, &record, b"\xff"].into_iter());
    assert_eq!(count, 2);
    let mut next = Engine::new(Policy::default(), Checksums::Verify);
    next.sessions.restore_sessions(records, sim.clock(), sim.clock() - sim.now());
    assert_eq!(next.sessions.count(), 1);
}

/// The clock of the worker that adopts it has run for a while.
#[test]
fn an_adopted_session_keeps_its_times_and_its_pinhole() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    sim.tell(Client, &sim.active(2200)[0]);
    sim.advance(Duration::from_secs(9));
    sim.crash();
    let rows = |sim: &mut Sim| {
        let sessions = &sim.engine().sessions;
        let adjusted: Vec<_> = sessions.list().filter(|session| session.adjusted).collect();
        (adjusted, sessions.list_pinholes().collect::<Vec<_>>())
    };
    let before = rows(&mut sim);
    let mut first = sim.begin_next();
    sim.switch(&mut first);
    assert_eq!(rows(&mut sim), before);
    assert_eq!((before.0.len(), before.1.len(), sim.daemon.sessions()), (1, 1, 2));
    sim.play("< 200 ok");
    assert_eq!((rows(&mut sim), sim.daemon.sessions()), (before, 2));
}

#[test]
fn a_truncated_journal_never_has_two_sessions_on_the_same_endpoints() {
    let mut sim = Sim::logged_in(with(Nat::Routed));
    sim.play("> NOOP");
    sim.connect_again();
    sim.play(GREETING);
    let journal = sim.daemon.journal().to_vec();
    for length in 0..=journal.len() {
        let count = sim.restored(Policy::default(), &journal[..length]).0.sessions.count();
        assert!(count <= 1, "{length} of {}", journal.len());
    }
}

#[test]
fn a_dropped_packet_changes_no_session() {
    let mut ends = Ends::new(with(Nat::Routed));
    let mut written = ends.sim.daemon.journal().len();
    for (past, outcome, records) in [(10, PacketOutcome::Drop, 0), (0, PacketOutcome::Accept, 1)] {
        assert_eq!(ends.queue(Client, past, 0, b"NOOP\r\n"), outcome);
        written += records;
        assert_eq!(ends.sim.daemon.journal().len(), written);
    }
}
