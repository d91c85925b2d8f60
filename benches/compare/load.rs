//! The load: logged-in control connections, one a client, that transfer a small file again and
//! again. Says what it measured as one JSON object.

use std::{
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
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

/// The file's length.
const SMALL: usize = 64;

/// Before counting begins: the server has its listeners, and caches are warm.
const WARM_UP: Duration = Duration::from_millis(300);

/// A worker with so many errors gives up.
const ERRORS: u64 = 5;

/// How a data connection comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verb {
    /// 227.
    Pasv,
    /// The client's host-port.
    Port,
    /// 229.
    Epsv,
    /// The client's endpoint, extended.
    Eprt,
}

impl Verb {
    /// As FTP has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pasv => "PASV",
            Self::Port => "PORT",
            Self::Epsv => "EPSV",
            Self::Eprt => "EPRT",
        }
    }

    /// Whether the client announces an endpoint, and the server dials it.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Port | Self::Eprt)
    }
}

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Where the server is, or the proxy.
    pub target: SocketAddr,
    /// What each worker says, in turn.
    pub verbs: Vec<Verb>,
    /// Whether each transfer has a control connection of its own.
    pub is_whole_session: bool,
    /// How many at a time.
    pub clients: usize,
    /// For how long.
    pub time: Duration,
}

/// What came of a measurement, here or of another kind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BenchReport {
    /// What was done each second: cycles, packets, bits.
    pub rate: f64,
    /// What was done in all, before counting began too.
    pub total: f64,
    /// Of a cycle, in microseconds: half, nine tenths and 99 of 100 take no longer.
    pub percentiles: [f64; 3],
    /// Processor time that the gateway's program took for each, in seconds.
    pub cost: Option<f64>,
    /// What failed.
    pub errors: u64,
    /// What the first of them said.
    pub error: Option<String>,
    /// What else must be known.
    pub note: Option<String>,
}

/// Does what is ordered.
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
        for verb in order.verbs.iter().cycle() {
            let before = Instant::now();
            if before >= end || self.errors >= ERRORS {
                break;
            }
            let done = match &mut session {
                _ if order.is_whole_session => Session::new(order.target)
                    .and_then(|mut session| session.transfer_and_quit(*verb)),
                Some(session) => session.transfer(*verb),
                None => Err(io::ErrorKind::NotConnected.into()),
            };
            let after = Instant::now();
            self.done += u64::from(done.is_ok());
            match done {
                // As many begin before counting does as end after it.
                Ok(()) if after >= start && after <= end => self.latencies.push(after - before),
                Ok(()) => {}
                Err(error) => {
                    self.record_error(&format!("{verb:?}"), &error);
                    session = self.session(order);
                }
            }
        }
        self
    }

    /// A session for all transfers, unless each has its own.
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
    local: Ipv4Addr,
    peer: Ipv4Addr,
}

impl Session {
    fn new(target: SocketAddr) -> io::Result<Self> {
        let control = ControlClient::login(target)?;
        let (local, peer) = (control.local()?, control.peer()?);
        Ok(Self { control, local, peer })
    }

    /// One transfer, and the end.
    fn transfer_and_quit(&mut self, verb: Verb) -> io::Result<()> {
        self.transfer(verb)?;
        self.control.command("QUIT\r\n", b'2').map(drop)
    }

    /// One transfer.
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
        Ok(SocketAddrV4::new(self.peer, port).into())
    }

    fn announce(&mut self, verb: Verb) -> io::Result<PooledListener> {
        let listener = PooledListener::take()?;
        let endpoint = SocketAddrV4::new(self.local, listener.port);
        let line = if verb == Verb::Port {
            format!("PORT {}\r\n", format_host_port(endpoint))
        } else {
            format!("EPRT |1|{}|{}|\r\n", endpoint.ip(), endpoint.port())
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
