//! Tests of journals that cannot be written, vanish, grow or are damaged.

use etherparse::{PacketBuilder, PacketBuilderStep, TcpHeader};
use ftp_alg_core::{
    engine::{Checksums, FakeKernel, PacketMeta, QueuedPacket, Standalone, Token, Translation},
    policy::Policy,
};

use super::*;

fn engine() -> Engine {
    Engine::new(Policy::default(), Checksums::Verify)
}

type Gateway = Standalone<FakeKernel>;
type Segment = PacketBuilderStep<TcpHeader>;

impl Journal {
    /// Appends the records of `gateway`, and writes a checkpoint if one is due.
    fn append_of(&mut self, gateway: &mut Gateway) -> Result<(), String> {
        let records = std::mem::take(&mut gateway.journal);
        self.append(records.iter().map(Vec::as_slice))?;
        if self.needs_checkpoint() { self.maintain(&mut gateway.engine) } else { Ok(()) }
    }
}

/// Restores an engine from the state directory. Returns it with its journal.
fn restore(state: &StateDir) -> (Engine, Journal) {
    let [restored, _] = restore_shards(state);
    restored
}

/// The engine with the restored sessions and the one of queue 7, with their journals.
fn restore_shards(state: &StateDir) -> [(Engine, Journal); 2] {
    let worker = engine();
    let mut engines = [worker.new_restored_shard(), worker.new_shard()];
    let journals = state.open_journals(&[21], &[7], &mut engines, true).unwrap();
    let mut shards = engines.into_iter().zip(journals);
    std::array::from_fn(|_| shards.next().unwrap())
}

/// A gateway whose sessions are written to the journal of restored sessions.
fn set_up() -> (tempfile::TempDir, StateDir, Gateway, Journal) {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::new(directory.path()).unwrap();
    let (engine, journal) = restore(&state);
    (directory, state, Gateway::new(engine, FakeKernel::default()), journal)
}

/// A packet without data of another connection's server.
fn of_server(client_port: u16, seq: u32, flags: fn(Segment) -> Segment) -> Vec<u8> {
    let ip = PacketBuilder::ipv4([203, 0, 113, 9], [192, 168, 150, 80], 64);
    let mut packet = Vec::new();
    flags(ip.tcp(21, client_port, seq, 1000)).write(&mut packet, &[]).unwrap();
    packet
}

fn syn_ack(client_port: u16) -> Vec<u8> {
    of_server(client_port, 7000, |segment| segment.syn().ack(5001))
}

/// Begins another connection.
fn begin(gateway: &mut Gateway, client_port: u16) {
    gateway.packet(Instant::now(), &syn_ack(client_port));
    assert!(gateway.engine.sessions.list().any(|s| s.translation.client.port() == client_port));
}

/// How many sessions a daemon would restore if it were started now.
fn restored_sessions(state: &StateDir) -> usize {
    restore(state).0.sessions.count()
}

#[test]
fn the_back_end_is_restored_in_the_same_boot_and_namespace() {
    let (_directory, state, ..) = set_up();
    assert_eq!(state.backend(), None);
    for backend in [Backend::Conntrack, Backend::Nftables] {
        state.set_backend(backend).unwrap();
        assert_eq!(state.backend(), Some(backend));
    }
    let elsewhere = StateDir { origin: state.origin.replace("boot ", "boot x"), ..state };
    assert_eq!(elsewhere.backend(), None);
}

#[test]
fn the_port_that_clients_dialled_selects_a_connection_too() {
    let [client, server] = ["192.0.2.1:1035", "192.168.150.80:2121"].map(|at| at.parse().unwrap());
    let dialled = |port| Translation {
        server_external: (std::net::Ipv4Addr::new(198, 51, 100, 1), port).into(),
        ..Translation::identity(client, server)
    };
    for (ports, translation, expected) in [
        (&[2121][..], Some(dialled(21)), true),
        (&[21], Some(dialled(21)), true),
        (&[21], Some(dialled(2121)), false),
        (&[990], Some(dialled(21)), false),
        (&[990], None, true), // any port may have been dialled
    ] {
        assert_eq!(is_queued(ports, server, translation.as_ref()), expected, "{ports:?}");
    }
}

#[test]
fn sessions_are_restored_and_new_ones_get_higher_numbers() {
    let (_directory, state, mut gateway, mut journal) = set_up();
    begin(&mut gateway, 1035);
    assert_eq!(restored_sessions(&state), 0, "not written yet");
    journal.checkpoint(&mut gateway.engine).unwrap();
    begin(&mut gateway, 1036);
    journal.append_of(&mut gateway).unwrap();
    let (next, _) = restore(&state);
    assert_eq!(next.sessions.count(), 2);
    let mut next = Gateway::new(next, FakeKernel::default());
    begin(&mut next, 1037);
    assert_eq!(next.engine.sessions.list().map(|s| s.id).max(), Some(3));
}

#[test]
fn a_journal_that_cannot_be_written_is_removed() {
    let (_directory, state, mut gateway, mut journal) = set_up();
    begin(&mut gateway, 1035);
    journal.append_of(&mut gateway).unwrap();
    journal.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
    begin(&mut gateway, 1036);
    assert!(journal.append_of(&mut gateway).is_err());
    assert!(!journal.path().exists());
    begin(&mut gateway, 1037);
    journal.append_of(&mut gateway).unwrap();
    for sessions in [3, 3] {
        journal.maintain(&mut gateway.engine).unwrap();
        assert_eq!(restored_sessions(&state), sessions);
        // One that somebody removes is written again, too.
        fs::remove_file(journal.path()).unwrap();
    }
}

/// A batch is decided, and its records are not written yet.
#[test]
fn a_checkpoint_that_fails_loses_no_change_of_a_batch() {
    let (directory, state, mut gateway, mut journal) = set_up();
    begin(&mut gateway, 1035);
    journal.append_of(&mut gateway).unwrap();
    let packet = syn_ack(1036);
    let packet =
        QueuedPacket { token: Token::default(), meta: PacketMeta::FORWARDED, bytes: &packet };
    let now = Instant::now();
    gateway.engine.take(now, std::iter::once(packet), &mut gateway.kernel);
    let in_the_way = directory.path().join("restored.new");
    fs::create_dir(&in_the_way).unwrap();
    journal.checkpoint_at = 0;
    assert!(journal.maintain(&mut gateway.engine).is_err());
    fs::remove_dir(in_the_way).unwrap();
    gateway.run(now, |_, _| ());
    journal.append_of(&mut gateway).unwrap();
    assert_eq!(restored_sessions(&state), 2);
}

/// docs/limits.md says: twice its contents, and 4 MiB.
#[test]
fn no_connection_makes_a_journal_longer_than_its_limit() {
    let (directory, state, mut gateway, mut journal) = set_up();
    begin(&mut gateway, 1035);
    let (client, server) = ([192, 168, 150, 80], [203, 0, 113, 9]);
    let from_client =
        |seq| PacketBuilder::ipv4(client, server, 64).tcp(1035, 21, seq, 1000).ack(7012);
    let from_server =
        |seq, ack| PacketBuilder::ipv4(server, client, 64).tcp(21, 1035, seq, 1000).ack(ack);
    let mut longest = 0;
    let mut say = |segment: Segment, text: &[u8]| {
        let mut packet = Vec::new();
        segment.write(&mut packet, text).unwrap();
        gateway.packet(Instant::now(), &packet);
        gateway.take_events();
        journal.append_of(&mut gateway).unwrap();
        let length = |entry: io::Result<fs::DirEntry>| entry.unwrap().metadata().unwrap().len();
        longest = longest.max(fs::read_dir(directory.path()).unwrap().map(length).sum());
    };
    say(from_server(7001, 5001), b"220 ready\r\n");
    let line = [&b"RETR "[..], &[b'x'; 200], b"\r\n"].concat();
    let mut seq = 5001;
    for _ in 0..20_000 {
        say(from_client(seq), &line);
        seq += line.len() as u32;
        if seq % 7 == 0 {
            say(from_server(7012, seq), b"");
        }
    }
    assert!(longest <= SLACK + 64 * 1024, "{longest}");
    assert!(longest > SLACK / 2, "it was written to: {longest}");
    assert_eq!(fs::metadata(journal.path()).unwrap().len(), journal.length);
    assert_eq!(restored_sessions(&state), 1);
}

#[test]
fn a_journal_without_room_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let written = replace_file(&directory.path().join(RESTORED), |file| {
        file.write_all(b"a part")?;
        Err(io::ErrorKind::StorageFull.into())
    });
    assert_eq!(written.unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// As [`set_up`], with a hundred sessions.
fn set_up_with_hundred_sessions() -> (tempfile::TempDir, StateDir, Gateway, Journal) {
    let (directory, state, mut gateway, mut journal) = set_up();
    (1000..1100).for_each(|port| begin(&mut gateway, port));
    journal.append_of(&mut gateway).unwrap();
    (directory, state, gateway, journal)
}

/// Restarts with other queues and other numbers of workers.
#[test]
fn a_daemon_with_more_or_fewer_workers_restores_all_sessions() {
    let (directory, state, ..) = set_up_with_hundred_sessions();
    for queues in [&[7, 8][..], &[7, 8, 9, 10], &[9], &[20, 21, 22], &[7]] {
        let first = engine();
        let mut engines = vec![first.new_restored_shard()];
        engines.extend(queues.iter().map(|_| first.new_shard()));
        let mut journals = state.open_journals(&[21], queues, &mut engines, true).unwrap();
        let (restored, workers) = engines.split_first_mut().unwrap();
        assert_eq!(restored.sessions.count(), 100, "{queues:?}");
        // Each worker adopts some, and writes it.
        let mut port = 1000;
        for (worker, journal) in workers.iter_mut().zip(&mut journals[1..]) {
            for _ in 0..10 {
                assert!(worker.sessions.adopt(&mut restored.sessions, &syn_ack(port)));
                port += 1;
            }
            worker.sessions.write_records(|batch| journal.write(batch, Need::Written)).unwrap();
        }
        let journal = &mut journals[0];
        restored.sessions.write_records(|batch| journal.write(batch, Need::Written)).unwrap();
        // No journal of an earlier queue is there.
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1 + queues.len());
    }
}

/// A start that ends before the workers' journals are new: they have the same sessions as the one of restored sessions.
#[test]
fn an_interrupted_start_loses_no_session() {
    let (directory, state, _, journal) = set_up_with_hundred_sessions();
    let all = fs::read(journal.path()).unwrap();
    for old in [&all[..], b"damaged"] {
        for queue in [7, 8] {
            fs::write(directory.path().join(format!("queue-{queue}.sessions")), old).unwrap();
        }
        assert_eq!(restored_sessions(&state), 100);
        assert!(!directory.path().join("queue-8.sessions").exists());
    }
}

/// A worker has written a session that it has adopted, and a crash comes before its end is written elsewhere.
#[test]
fn an_adopted_session_is_restored_from_its_workers_journal() {
    let (_directory, state, ..) = set_up_with_hundred_sessions();
    let [(mut restored, _), (worker, mut journal)] = restore_shards(&state);
    let mut gateway = Gateway::new(worker, FakeKernel::default());
    let sessions = &mut gateway.engine.sessions;
    assert!(!sessions.adopt(&mut restored.sessions, &syn_ack(999)));
    assert!(sessions.adopt(&mut restored.sessions, &syn_ack(1000)));
    assert!(!sessions.adopt(&mut restored.sessions, &syn_ack(1000)), "it has it");
    assert_eq!((sessions.count(), restored.sessions.count()), (1, 99));
    gateway.packet(Instant::now(), &of_server(1000, 7001, Segment::rst));
    journal.append_of(&mut gateway).unwrap();
    let (next, _) = restore(&state);
    assert_eq!(next.sessions.count(), 100);
    assert_eq!(next.sessions.list().count(), 99, "one is over");
}

#[test]
fn no_bytes_make_reading_a_journal_panic() {
    use proptest::prelude::*;
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::new(directory.path()).unwrap();
    let path = directory.path().join("restored.sessions");
    proptest!(ProptestConfig::with_cases(200), |(bytes: Vec<u8>, sums: bool)| {
        let mut content = state.origin.clone().into_bytes();
        if sums { append_frame(&bytes, &mut content) } else { content.extend(bytes) }
        fs::write(&path, content).unwrap();
        restore(&state);
    });
}

#[test]
fn a_start_without_room_continues_and_leaves_no_old_journal() {
    let (directory, state, mut gateway, mut journal) = set_up();
    begin(&mut gateway, 1035);
    journal.checkpoint(&mut gateway.engine).unwrap();
    let in_the_way = directory.path().join("restored.new");
    fs::create_dir(&in_the_way).unwrap();
    let (mut next, mut journal) = restore(&state);
    assert_eq!(next.sessions.count(), 1);
    assert!(!journal.is_writable() && !journal.path().exists());
    fs::remove_dir(in_the_way).unwrap();
    journal.maintain(&mut next).unwrap();
    assert_eq!(restored_sessions(&state), 1);
}

#[test]
fn a_journal_with_zeros_or_too_long_is_renamed() {
    for more in [64, 3 << 30] {
        let (directory, state, mut gateway, mut journal) = set_up();
        begin(&mut gateway, 1035);
        journal.checkpoint(&mut gateway.engine).unwrap();
        let file = OpenOptions::new().write(true).open(journal.path()).unwrap();
        file.set_len(file.metadata().unwrap().len() + more).unwrap();
        assert_eq!(restored_sessions(&state), 0);
        assert!(directory.path().join("restored.refused").exists());
    }
}

#[test]
fn ids_of_events_grow_if_the_clock_is_put_back_between_two_daemons() {
    const HOUR: u64 = 3_600_000_000;
    let directory = tempfile::tempdir().unwrap();
    let first_event = || StateDir::new(directory.path()).unwrap().last_session().first_event();
    let first = first_event();
    assert!(first_event() >= first);
    let path = directory.path().join(LAST_SESSION);
    let saved = |bytes: &[u8]| u64::from_le_bytes(bytes[8..].try_into().unwrap());
    // The first daemon ran when the clock was an hour ahead of what it is now.
    let mut bytes = fs::read(&path).unwrap();
    let ahead = saved(&bytes) + HOUR;
    bytes[8..].copy_from_slice(&ahead.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    assert!(first_event() >= first + HOUR);
    assert_eq!(saved(&fs::read(&path).unwrap()), ahead);
    // One of a version without it.
    fs::write(&path, 7_u64.to_le_bytes()).unwrap();
    let last = StateDir::new(directory.path()).unwrap().last_session();
    assert!(last.number() == 7 && (first..first + HOUR).contains(&last.first_event()));
}
