//! The load: clients that transfer a small file again and again, each on its own control connection. The result is one
//! JSON object.

use std::{
    io::{self, Read},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    dialogue::{
        ControlClient, REPLY_LIMIT, format_host_port, parse_extended_port, parse_host_port,
    },
    listeners::PooledListener,
};

/// The length of the file.
const SMALL: usize = 64;

/// The time before counting begins, in which the server binds its listeners and caches fill.
const WARM_UP: Duration = Duration::from_millis(300);

/// A worker stops after so many errors.
const ERRORS: u64 = 5;

/// The command that announces a data connection, or asks for an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verb {
    /// The server announces a host-port in a 227.
    Pasv,
    /// The client announces a host-port.
    Port,
    /// The server announces a port in a 229.
    Epsv,
    /// The client announces an endpoint in the extended format.
    Eprt,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pasv, Self::Port, Self::Epsv, Self::Eprt];

    /// The name in FTP.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pasv => "PASV",
            Self::Port => "PORT",
            Self::Epsv => "EPSV",
            Self::Eprt => "EPRT",
        }
    }

    /// Whether the client announces the endpoint, and the server connects to it.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Port | Self::Eprt)
    }
}

/// The parameters of the measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The address of the server, or of the proxy.
    pub target: SocketAddr,
    /// The command that announces.
    pub verb: Verb,
    /// Whether each transfer has a session of its own.
    pub is_whole_session: bool,
    /// The number of clients at once.
    pub clients: usize,
    /// The duration.
    pub time: Duration,
}

/// The result of a measurement of any kind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BenchReport {
    /// Cycles, packets or bits a second.
    pub rate: f64,
    /// All cycles, packets or bits, including those before counting began.
    pub total: f64,
    /// The 50th, 90th and 99th percentile of the duration of a cycle, in microseconds.
    pub percentiles: [f64; 3],
    /// Processor time of the gateway's program for each cycle, packet or bit, in seconds.
    pub cost: Option<f64>,
    /// The number of errors.
    pub errors: u64,
    /// The text of the first error.
    pub error: Option<String>,
    /// A remark for the table.
    pub note: Option<String>,
}

/// Runs the measurement.
pub fn run(order: &Order) -> BenchReport {
    let barrier = Arc::new(Barrier::new(order.clients));
    let workers: Vec<_> = (0..order.clients)
        .map(|_| {
            let (order, barrier) = (order.clone(), Arc::clone(&barrier));
            thread::spawn(move || Worker::default().run(&order, &barrier))
        })
        .collect();
    let mut report = BenchReport::default();
    let mut latencies = Vec::new();
    for worker in workers {
        let Ok(worker) = worker.join() else {
            report.errors += 1;
            continue;
        };
        report.rate += worker.latencies.len() as f64 / order.time.as_secs_f64();
        report.total += worker.done as f64;
        report.errors += worker.errors;
        report.error = report.error.or(worker.error);
        latencies.extend(worker.latencies);
    }
    latencies.sort_unstable();
    report.percentiles = [50, 90, 99].map(|percent| {
        let at = latencies.len() * percent / 100;
        latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    });
    report
}

#[derive(Default)]
struct Worker {
    latencies: Vec<Duration>,
    done: u64,
    errors: u64,
    error: Option<String>,
}

impl Worker {
    fn run(mut self, order: &Order, barrier: &Barrier) -> Self {
        let mut session = self.session(order);
        barrier.wait();
        let start = Instant::now() + WARM_UP;
        let end = start + order.time;
        loop {
            let before = Instant::now();
            if before >= end || self.errors >= ERRORS {
                return self;
            }
            let done = match &mut session {
                _ if order.is_whole_session => Session::new(order.target)
                    .and_then(|mut session| session.transfer_and_quit(order.verb)),
                Some(session) => session.transfer(order.verb),
                None => Err(io::ErrorKind::NotConnected.into()),
            };
            let after = Instant::now();
            self.done += u64::from(done.is_ok());
            match done {
                // About as many cycles begin before the measured time as end after it.
                Ok(()) if after >= start && after <= end => self.latencies.push(after - before),
                Ok(()) => {}
                Err(error) => {
                    self.record_error(order.verb.name(), &error);
                    session = self.session(order);
                }
            }
        }
    }

    /// Opens the session for all transfers, unless each has its own.
    fn session(&mut self, order: &Order) -> Option<Session> {
        if order.is_whole_session {
            return None;
        }
        let opened = Session::new(order.target);
        opened.map_err(|error| self.record_error("login", &error)).ok()
    }

    fn record_error(&mut self, what: &str, error: &io::Error) {
        self.errors += 1;
        self.error.get_or_insert_with(|| format!("{what}: {error}"));
    }
}

struct Session {
    control: ControlClient,
    local: IpAddr,
    peer: IpAddr,
}

impl Session {
    fn new(target: SocketAddr) -> io::Result<Self> {
        let control = ControlClient::login(target)?;
        let [local, peer] = control.addresses()?;
        Ok(Self { control, local, peer })
    }

    /// Transfers once, then ends the session.
    fn transfer_and_quit(&mut self, verb: Verb) -> io::Result<()> {
        self.transfer(verb)?;
        self.control.command("QUIT\r\n", b'2').map(drop)
    }

    /// Transfers the file once.
    fn transfer(&mut self, verb: Verb) -> io::Result<()> {
        let retrieve = format!("RETR {SMALL}\r\n");
        let data = match verb {
            Verb::Pasv | Verb::Epsv => {
                let target = self.ask_passive(verb)?;
                let data = TcpStream::connect_timeout(&target, REPLY_LIMIT)?;
                self.control.send(&retrieve)?;
                data
            }
            Verb::Port | Verb::Eprt => {
                let listener = self.announce(verb)?;
                self.control.send(&retrieve)?;
                listener.accept()?
            }
        };
        read_all(data)?;
        self.control.expect(b'1')?;
        self.control.expect(b'2').map(drop)
    }

    fn ask_passive(&mut self, verb: Verb) -> io::Result<SocketAddr> {
        let unreadable = || io::Error::other("no endpoint in the reply");
        if verb == Verb::Pasv {
            let reply = self.control.command("PASV\r\n", b'2')?;
            return parse_host_port(reply).map(SocketAddr::V4).ok_or_else(unreadable);
        }
        let reply = self.control.command("EPSV\r\n", b'2')?;
        let port = parse_extended_port(reply).ok_or_else(unreadable)?;
        Ok(SocketAddr::new(self.peer, port))
    }

    fn announce(&mut self, verb: Verb) -> io::Result<PooledListener> {
        let listener = PooledListener::take()?;
        let line = match SocketAddr::new(self.local, listener.port) {
            SocketAddr::V4(own) if verb == Verb::Port => {
                format!("PORT {}\r\n", format_host_port(own))
            }
            own => {
                let protocol = if own.is_ipv4() { 1 } else { 2 };
                format!("EPRT |{protocol}|{}|{}|\r\n", own.ip(), own.port())
            }
        };
        self.control.command(&line, b'2')?;
        Ok(listener)
    }
}

fn read_all(mut data: TcpStream) -> io::Result<()> {
    data.set_read_timeout(Some(REPLY_LIMIT))?;
    let mut buffer = [0; SMALL * 2];
    let mut length = 0;
    loop {
        match data.read(&mut buffer)? {
            0 if length == SMALL => return Ok(()),
            0 => return Err(io::Error::other(format!("{length} bytes and not {SMALL}"))),
            count => length += count,
        }
    }
}
