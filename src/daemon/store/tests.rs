//! A store that behaves in every bad way.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use etherparse::{PacketBuilder, PacketBuilderStep, TcpHeader};
use ftp_alg_core::{
    engine::{Batch, Checksums, Engine, FakeKernel, Host, PacketMeta, QueuedPacket, Token},
    policy::Policy,
};
use redis::Value;

use super::{
    super::records::{Need, Records as _},
    *,
};
use crate::{config::Confirm, daemon::shard::lock};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most that a packet may wait.
const MOST: Duration = Duration::from_millis(25);

/// How a store answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Well,
    /// Not until this changes.
    Late,
    /// Byte after byte.
    Dripping,
    /// The same to each command.
    Saying(&'static str),
    /// It ends the connection in the middle of a reply.
    Closing,
    /// It does not even read.
    Deaf,
}

struct FakeStore {
    directory: tempfile::TempDir,
    how: Arc<Mutex<How>>,
    /// The commands that it has read, without values.
    commands: Arc<Mutex<Vec<String>>>,
}

impl FakeStore {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let (how, commands) = (Arc::new(Mutex::new(How::Well)), Arc::<Mutex<Vec<_>>>::default());
        let shared = (Arc::clone(&how), Arc::clone(&commands));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (how, commands) = shared.clone();
                std::thread::spawn(move || answer(&stream.unwrap(), &how, &commands));
            }
        });
        Self { directory, how, commands }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn behave(&self, how: How) {
        *lock(&self.how) = how;
    }

    fn count(&self, verb: &str) -> usize {
        lock(&self.commands).iter().filter(|command| command.starts_with(verb)).count()
    }
}

impl Drop for FakeStore {
    fn drop(&mut self) {
        self.behave(How::Closing);
    }
}

/// Answers the commands of one connection.
fn answer(stream: &UnixStream, how: &Mutex<How>, commands: &Mutex<Vec<String>>) {
    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let (mut stream, mut bytes) = (stream, Vec::new());
    let mut replies = 0;
    loop {
        let now = *lock(how);
        let mut buffer = [0; 4096];
        match now {
            How::Deaf => std::thread::sleep(Duration::from_millis(1)),
            How::Closing => return drop(stream.write_all(b":")),
            _ => match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => bytes.extend_from_slice(&buffer[..length]),
                Err(_) => {}
            },
        }
        while let Some((command, length)) = parse(&bytes) {
            bytes.drain(..length);
            lock(commands).push(command);
            replies += 1;
        }
        let sent = match *lock(how) {
            How::Well => stream.write_all(":1\r\n".repeat(replies).as_bytes()),
            How::Saying(text) => stream.write_all(text.repeat(replies).as_bytes()),
            How::Dripping => ":1\r\n".repeat(replies).bytes().try_for_each(|byte| {
                std::thread::sleep(Duration::from_micros(300));
                stream.write_all(&[byte])
            }),
            _ => continue,
        };
        replies = 0;
        if sent.is_err() {
            return;
        }
    }
}

/// The first command, without values, and its length.
fn parse(bytes: &[u8]) -> Option<(String, usize)> {
    let number = |at: usize| {
        let length = bytes.get(at..)?.iter().position(|byte| *byte == b'\n')?;
        let text = std::str::from_utf8(&bytes[at + 1..at + length]).ok()?;
        Some((text.trim_end().parse::<usize>().ok()?, at + length + 1))
    };
    let (count, mut at) = number(0)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let (length, start) = number(at)?;
        at = start + length + 2;
        bytes.get(..at)?;
        words.push(String::from_utf8_lossy(&bytes[start..start + length]));
    }
    words.retain(|word| word.len() < 40);
    Some((words.join(" "), at))
}

/// A gateway whose shard writes to a store.
struct Gateway {
    store: FakeStore,
    engine: Engine,
    kernel: FakeKernel,
    writer: StoreWriter,
    link: Arc<StoreLink>,
    sessions: u16,
    /// How long each batch took.
    waits: Vec<Duration>,
}

/// Writes batches.
struct Writing<'a>(&'a mut StoreWriter, &'a mut Vec<Duration>);

impl Host for Writing<'_> {
    fn record(&mut self, batch: &Batch) {
        let begun = Instant::now();
        let _ = self.0.write(batch, Need::Confirmed);
        self.1.push(begun.elapsed());
    }

    fn give(&mut self, _: &Batch) {}
}

impl Gateway {
    fn new(confirm: Confirm) -> Self {
        let policy = Policy { require_login: false, ..Policy::default() };
        let mut engine = Engine::new(policy, Checksums::Trust);
        engine.sessions.track_changes(Instant::now());
        let link = Arc::<StoreLink>::default();
        let mut writer = StoreWriter::new(Arc::clone(&link), 1, confirm);
        writer.begin(7);
        let (store, kernel) = (FakeStore::new(), FakeKernel::default());
        let mut new = Self { store, engine, kernel, writer, link, sessions: 0, waits: Vec::new() };
        new.connect();
        new
    }

    /// As the link does.
    fn connect(&mut self) {
        let store = StoreConnection::open_own(&self.store.path(), PATIENCE).unwrap();
        self.writer.connect(store.into_socket()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while self.writer.send_slice(&mut self.engine).unwrap() {
            assert!(Instant::now() < deadline);
        }
        self.link.has_replica.store(true, Ordering::Relaxed);
    }

    fn handle(&mut self, packet: &[u8]) {
        let now = Instant::now();
        let queued =
            QueuedPacket { token: Token::default(), bytes: packet, meta: PacketMeta::FORWARDED };
        self.engine.take(now, std::iter::once(queued), &mut self.kernel);
        let mut host = Writing(&mut self.writer, &mut self.waits);
        self.engine.finish(now, &mut self.kernel, &mut host);
    }

    /// Begins a session, whose batch shows no decision.
    fn begin(&mut self) {
        self.sessions += 1;
        let packet = of_server(self.sessions, 7000, b"", |segment| segment.syn().ack(5001));
        self.handle(&packet);
        assert_eq!(self.engine.sessions.count(), usize::from(self.sessions));
    }

    /// Announces in the last session.
    fn announce(&mut self) {
        let port = self.sessions;
        let greeting = b"220 ready\r\n";
        self.handle(&of_server(port, 7001, greeting, |segment| segment.ack(5001)));
        let ip = PacketBuilder::ipv4([192, 168, 150, 80], [203, 0, 113, 9], 64);
        let segment = ip.tcp(port, 21, 5001, 9000).ack(7001 + greeting.len() as u32).psh();
        let mut packet = Vec::new();
        segment.write(&mut packet, b"PORT 192,168,150,80,14,178\r\n").unwrap();
        self.handle(&packet);
        assert_eq!(self.engine.sessions.list_pinholes().count(), 1);
    }

    /// Begins sessions until `is_done`. Returns how many.
    fn begin_until(&mut self, is_done: impl Fn(&Self) -> bool) -> usize {
        let deadline = Instant::now() + PATIENCE;
        for count in 0.. {
            if is_done(self) {
                return count;
            }
            assert!(Instant::now() < deadline);
            self.begin();
            // Not faster than the store's thread, which may not run at once.
            std::thread::sleep(Duration::from_micros(200));
        }
        unreachable!("it is never done")
    }

    /// The least time that one of the last batches took, because the test may be interrupted in some.
    fn least_wait(&self, last: usize) -> Duration {
        self.waits[self.waits.len() - last..].iter().copied().min().unwrap()
    }
}

type Segment = PacketBuilderStep<TcpHeader>;

fn of_server(port: u16, seq: u32, payload: &[u8], flags: fn(Segment) -> Segment) -> Vec<u8> {
    let ip = PacketBuilder::ipv4([203, 0, 113, 9], [192, 168, 150, 80], 64);
    let mut packet = Vec::new();
    flags(ip.tcp(21, port, seq, 9000)).write(&mut packet, payload).unwrap();
    packet
}

#[test]
fn batches_are_confirmed_as_the_configuration_says() {
    for (confirm, waits) in [(Confirm::None, 0), (Confirm::Announcements, 1), (Confirm::All, 3)] {
        let mut gateway = Gateway::new(confirm);
        gateway.begin();
        gateway.announce();
        gateway.store.behave(How::Well);
        let deadline = Instant::now() + PATIENCE;
        while gateway.store.count("HSET") < 3 {
            assert!(Instant::now() < deadline, "{:?}", lock(&gateway.store.commands));
        }
        assert_eq!(gateway.store.count("WAIT 1 10"), waits, "{confirm:?}");
    }
}

#[test]
fn a_store_with_other_replies_is_left_and_gets_all_records_again() {
    const LONG: &str =
        "garbage without an end, garbage without an end, garbage without an end, garbage without ";
    let replies = [
        "-OOM command not allowed when used memory > 'maxmemory'.\r\n",
        "-READONLY You can't write against a read only replica.\r\n",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "$-1\r\n",
        ":1\r\n:1\r\n",
        "\r\n",
        LONG,
    ];
    for how in replies.map(How::Saying).into_iter().chain([How::Closing]) {
        let mut gateway = Gateway::new(Confirm::All);
        gateway.begin();
        gateway.store.behave(how);
        gateway.begin_until(|gateway| gateway.writer.lacks_connection());
        // Nothing is written then.
        gateway.begin();
        assert!(gateway.writer.is_behind());
        gateway.store.behave(How::Well);
        lock(&gateway.store.commands).clear();
        gateway.connect();
        assert!(!gateway.writer.is_behind());
        {
            let commands = lock(&gateway.store.commands);
            assert_eq!(commands[0], format!("DEL {}", keys::sessions(7, 1)), "{how:?}");
            let sent = |id: u16| {
                let sent = commands.iter().filter(|command| command.starts_with("HSET "));
                sent.flat_map(|command| command.split(' ').skip(2)).any(|it| it == id.to_string())
            };
            assert!((1..=gateway.sessions).all(sent), "{how:?}: {commands:?}");
        }
        gateway.begin_until(|gateway| gateway.store.count("WAIT") > 0);
    }
}

#[test]
fn behind_a_late_reply_no_batch_waits() {
    let mut gateway = Gateway::new(Confirm::All);
    gateway.store.behave(How::Late);
    gateway.begin();
    for _ in 0..20 {
        // As the link's thread finds.
        gateway.link.has_replica.store(true, Ordering::Relaxed);
        gateway.begin();
    }
    assert_eq!(gateway.link.unconfirmed.load(Ordering::Relaxed), 1);
    assert!(gateway.waits.iter().any(|wait| *wait >= Duration::from_millis(20)));
    assert!(gateway.least_wait(20) < Duration::from_millis(5), "{:?}", gateway.waits);
    assert!(!gateway.writer.lacks_connection());
    gateway.store.behave(How::Well);
    let waits = gateway.store.count("WAIT");
    gateway.begin_until(|gateway| gateway.store.count("WAIT") > waits);
}

/// Without confirmation, only the socket's buffer shows it.
#[test]
fn a_store_that_does_not_read_is_left_when_its_buffer_is_full() {
    for confirm in [Confirm::None, Confirm::All] {
        let mut waits = Vec::new();
        for _ in 0..3 {
            let mut gateway = Gateway::new(confirm);
            gateway.store.behave(How::Deaf);
            gateway.begin_until(|gateway| gateway.writer.lacks_connection());
            waits.push(gateway.waits.iter().copied().max().unwrap());
            gateway.store.behave(How::Well);
            gateway.connect();
            assert!(!gateway.writer.is_behind());
        }
        assert!(waits.iter().min().unwrap() < &MOST, "{confirm:?}: {waits:?}");
    }
}

#[test]
fn a_store_whose_replies_drip_is_used() {
    let mut gateway = Gateway::new(Confirm::All);
    gateway.store.behave(How::Dripping);
    (0..50).for_each(|_| gateway.begin());
    assert!(!gateway.writer.is_behind());
    let deadline = Instant::now() + PATIENCE;
    while gateway.store.count("HSET") < 50 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_store_that_was_started_again_is_found_without_packets() {
    let mut gateway = Gateway::new(Confirm::All);
    gateway.begin();
    gateway.store.behave(How::Closing);
    let deadline = Instant::now() + PATIENCE;
    while !gateway.writer.lacks_connection() {
        assert!(Instant::now() < deadline);
        gateway.writer.maintain(&mut gateway.engine).unwrap();
    }
}

#[test]
fn no_reply_to_a_query_takes_longer_than_its_deadline_or_panics() {
    const LIMIT: Duration = Duration::from_millis(100);
    // What comes first, and what is repeated then.
    let replies: [(&str, &str); 22] = [
        ("*1000000000000\r\n", ""),
        ("$1000000000000\r\n", ""),
        ("$9223372036854775807\r\n", "x"),
        ("$99999999999999999999\r\n", ""),
        ("*99999999\r\n", ":1\r\n"),
        ("*99999999\r\n", "_\r\n"),
        ("*99999999\r\n", "$0\r\n\r\n"),
        ("", "*1\r\n"),
        ("", "x"),
        ("+", "x"),
        (":", "1"),
        ("", "-ERR x"),
        ("%4611686018427387904\r\n", ":1\r\n"),
        ("%-1\r\n", ""),
        ("|-1\r\n", ""),
        ("|0\r\n", ""),
        ("~-9223372036854775808\r\n", ""),
        (">1\r\n:1\r\n", ""),
        ("=-1\r\n", ""),
        ("!-1\r\n", ""),
        ("#x\r\n", ""),
        ("", "\0\u{7f}\r\n"),
    ];
    for (first, repeated) in replies {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let chunk = repeated.repeat(1000);
            let mut sent = stream.write_all(first.as_bytes());
            while sent.is_ok() && !chunk.is_empty() {
                sent = stream.write_all(chunk.as_bytes());
            }
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let mut store = StoreConnection::open_own(&path, PATIENCE).unwrap();
        let begun = Instant::now();
        let reply = store.query::<Value>(&cmd("PING"), begun + LIMIT);
        let took = begun.elapsed();
        assert!(took < PATIENCE, "{first:?} {repeated:?}: {took:?}, {reply:?}");
        drop(store);
        thread.join().unwrap();
    }
}
