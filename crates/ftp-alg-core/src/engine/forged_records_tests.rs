//! Records that no gateway writes. Who can write to a store may write them.

use super::*;
use crate::{
    engine::{Checksums, Engine},
    ftp::AnnouncementKind::{self, Pasv, Port},
    packet::{Header, Packet, Seq, build_segment, flags},
};

type Change = fn(&mut SessionRecord<'_>);

fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A translated client's session with a published server.
fn record() -> SessionRecord<'static> {
    let (client, server) = (end("192.168.150.80:1035"), end("10.0.0.5:21"));
    let (seq, ack, flags) = (Seq(7000), Seq(5001), flags::SYN | flags::ACK);
    let header = Header { source: server, destination: client, seq, ack, window: 9000, flags };
    let mut packet = Vec::new();
    build_segment(&header, b"", &mut packet);
    let translation = Translation {
        client_external: end("198.51.100.1:40035"),
        server_external: end("203.0.113.9:2121"),
        ..Translation::identity(client, server)
    };
    SessionRecord {
        id: 1,
        client,
        server,
        translation: Some(translation),
        first_seen: 0,
        last_seen: 0,
        pinholes: vec![pinhole(1, Pasv), pinhole(2, Port)],
        fast_path: FastPathProgress::NONE,
        has_range: false,
        session: Cow::Owned(Session::from_syn_ack(&Packet::parse(&packet).unwrap())),
        incarnation: None,
        activity: Cow::default(),
        is_unqueued: false,
    }
}

fn pinhole(serial: u64, kind: AnnouncementKind) -> PinholeRecord {
    let [initiator, arrival, target, source] = match kind.is_active() {
        true => ["10.0.0.5:0", "198.51.100.1:5000", "192.168.150.80:5000", "203.0.113.9:0"],
        false => ["192.168.150.80:0", "203.0.113.9:5000", "10.0.0.5:5000", "198.51.100.1:0"],
    }
    .map(end);
    let ends = PinholeEnds { initiator: initiator.ip(), arrival, target, source: source.ip() };
    let (deadline, in_program) = (u64::MAX, None);
    PinholeRecord { ends, kind, serial, deadline, answered: true, in_use: false, in_program }
}

/// What is read of these records, as from a store.
fn read(records: impl IntoIterator<Item = SessionRecord<'static>>) -> (SessionRecords, usize) {
    let encoded: Vec<_> = records
        .into_iter()
        .map(|record| {
            let mut buffer = Vec::new();
            encode(&Record::Session(Box::new(record)), &mut buffer).unwrap();
            buffer
        })
        .collect();
    SessionRecords::read_each(encoded.iter().map(Vec::as_slice))
}

/// The lifetimes of the pinholes that are opened again for these records.
fn reopened(records: Vec<SessionRecord<'static>>, policy: &Policy) -> Vec<Duration> {
    let (mut records, damaged) = read(records);
    assert_eq!(damaged, 0);
    records.leave_machine(policy);
    let mut engine = Engine::new(policy.clone(), Checksums::Verify);
    let now = Instant::now();
    engine.sessions.restore_sessions(records, now, now);
    engine.sessions.close_forbidden_pinholes();
    engine.sessions.missing_pinholes(now, |_| true).map(|opening| opening.lifetime).collect()
}

fn without_login() -> Policy {
    Policy { require_login: false, ..Policy::default() }
}

#[test]
fn a_record_with_foreign_ends_is_damaged() {
    let changes: [Change; 20] = [
        |record| record.pinholes[0].ends.initiator = end("192.168.150.81:0").ip(),
        |record| record.pinholes[0].ends.source = end("198.51.100.2:0").ip(),
        |record| record.pinholes[0].ends.arrival = end("203.0.113.10:5000"),
        |record| record.pinholes[0].ends.target = end("10.0.0.6:5000"),
        |record| record.pinholes[0].ends.arrival = record.pinholes[0].ends.target,
        |record| record.pinholes[0].ends.target = end("[fd00::5]:5000"),
        |record| record.pinholes[0].kind = Port,
        |record| record.pinholes[1].kind = Pasv,
        |record| record.pinholes[1].ends.initiator = end("10.0.0.6:0").ip(),
        |record| record.pinholes[1].ends.target = end("192.168.150.81:5000"),
        |record| record.pinholes[1].serial = 1,
        |record| record.pinholes[1].serial = u64::MAX,
        |record| record.pinholes.extend((3..10).map(|serial| pinhole(serial, Pasv))),
        |record| record.id = u64::MAX,
        |record| record.client = end("192.168.150.81:1035"),
        |record| record.server = end("10.0.0.5:22"),
        |record| record.translation = Some(Translation::identity(record.server, record.client)),
        |record| {
            let control = record.translation.as_mut().unwrap();
            control.server_external = end("[fd00::5]:21");
        },
        |record| {
            record.pinholes.clear();
            record.translation = None;
            record.client = end("[fd00::1]:1035");
        },
        |record| {
            let mut other = record.session.clone().into_owned();
            other.forge();
            record.incarnation = Some(Cow::Owned(other));
        },
    ];
    assert_eq!(read([record()]).1, 0);
    for (number, change) in changes.into_iter().enumerate() {
        let mut forged = record();
        change(&mut forged);
        let (read, damaged) = read([forged, SessionRecord { id: 2, ..record() }]);
        assert_eq!((read.len(), damaged), (1, 1), "change {number}");
    }
}

#[test]
fn a_forged_record_opens_nothing_that_the_policy_forbids() {
    let policy = without_login();
    assert_eq!(reopened(vec![record()], &policy), [policy.pinhole_timeout; 2]);
    let nothing: [(Change, usize); 8] = [
        (|record| record.pinholes[0].ends.arrival.set_port(22), 1),
        (|record| record.pinholes[0].ends.arrival.set_port(policy_port()), 2),
        (|record| record.pinholes[0].ends.target.set_port(22), 1),
        (|record| record.translation = None, 0),
        (|record| record.pinholes[0].deadline = 0, 1),
        (|record| record.first_seen = u64::MAX, 2),
        (|record| record.has_range = true, 2),
        (
            |record| {
                let third = end("10.99.99.99:5000");
                (record.pinholes[0].ends.target, record.pinholes[0].ends.arrival) = (third, third);
            },
            1,
        ),
    ];
    for (number, (change, open)) in nothing.into_iter().enumerate() {
        let mut forged = record();
        change(&mut forged);
        assert_eq!(reopened(vec![forged], &policy).len(), open, "change {number}");
    }
    assert_eq!(reopened(vec![record()], &Policy::default()), []);
}

fn policy_port() -> u16 {
    *Policy::default().port_range.start()
}

#[test]
fn pinholes_of_forged_records_stay_within_the_limit_of_a_client() {
    let policy = Policy { max_pinholes_per_client: 5, ..without_login() };
    let of_session = |id: u16| {
        let mut one = record();
        let client = SocketAddr::new(one.client.ip(), 2000 + id);
        (one.id, one.client) = (id.into(), client);
        one.translation = one.translation.map(|control| Translation { client, ..control });
        one.pinholes = vec![pinhole(id.into(), Pasv)];
        let port = 6000 + id;
        one.pinholes[0].ends.target.set_port(port);
        one.pinholes[0].ends.arrival.set_port(port);
        one
    };
    assert_eq!(reopened((1..100).map(of_session).collect(), &policy).len(), 5);
}

#[test]
fn numbers_count_on_behind_the_highest_of_a_record() {
    let mut forged = record();
    forged.id = MAX_NUMBER - 1;
    forged.pinholes[0].serial = MAX_NUMBER - 1;
    let second = SessionRecord { id: 3, ..record() };
    let (records, damaged) = read([forged, second]);
    assert_eq!((records.len(), damaged), (2, 0));
    let mut engine = Engine::new(without_login(), Checksums::Verify);
    let now = Instant::now();
    // Both are between the same endpoints.
    assert_eq!(engine.sessions.restore_sessions(records, now, now).sessions, 1);
    assert_eq!(engine.sessions.last_id.load(Ordering::Relaxed), MAX_NUMBER - 1);
}
