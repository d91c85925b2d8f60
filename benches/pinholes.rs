//! Measures the time to open and close a pinhole, while its packet waits: `cargo bench --bench pinholes`, as root.
//!
//! Two network namespaces take turns, one with 10 open pinholes and one with 50,000. The pinhole of a transfer is
//! consumed by a connection, and closed in the transaction that opens the next one, on the next port. A revoked pinhole
//! is closed unused, and the next one is for another client and server. The baseline is a single set element, which
//! every pinhole needs, as a message that is ready to be sent.

#![allow(unsafe_code, clippy::unwrap_used)]

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use ftp_alg::kernel::{Commits, LinuxKernel, RuleParameters, Table, TableCondition};
use ftp_alg_core::engine::{Kernel as _, Opening, Pinhole, Translation};
use ftp_alg_lab::{Host, Lab, Topology};
use socket2::Socket;

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 168, 150, 80)), 1025);
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 21);
const LIVE: [usize; 2] = [10, 50_000];
const ROUNDS: usize = 40;
const REPETITIONS: usize = 100;
/// Pinholes in one transaction.
const GROUP_SIZES: [usize; 5] = [1, 2, 8, 32, 128];
const RATIO_GOAL: f64 = 2.0;
const LIFETIME: Duration = Duration::from_secs(30);
const LONG_LIFETIME: Duration = Duration::from_secs(3600);

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return; // `cargo test --benches` only compiles this
    }
    let outside = File::open("/proc/self/ns/net").unwrap();
    let lab = match Lab::new(Topology::Routed) {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    let hosts = [&lab.gateway, &lab.server];
    let mut namespaces: Vec<_> =
        hosts.into_iter().zip(LIVE).map(|(host, live)| BenchNamespace::new(host, live)).collect();
    for round in 0..=ROUNDS {
        for bench in &mut namespaces {
            bench.measure();
            if round == 0 {
                bench.discard_times(); // the first round warms the caches
            }
        }
    }
    println!(
        "{} of each (of checks {}), interleaved; microseconds",
        ROUNDS * REPETITIONS,
        ROUNDS * REPETITIONS / 10
    );
    println!("{:62} {:>8} {:>8} {:>8} {:>8}", "", "p50", "p90", "p99", "max");
    let mut ratios = Vec::new();
    for (index, name) in MEASUREMENTS.into_iter().enumerate() {
        let mut worst = Vec::new();
        for bench in &mut namespaces {
            let times = &mut bench.times[index];
            worst.push(print(&format!("{name}, {} live", bench.live), times));
        }
        ratios.push((name, worst[1] / worst[0]));
    }
    let grown = &mut namespaces[1];
    print(&format!("open, while they grow to {}", grown.live), &mut grown.growth);
    for (name, ratio) in ratios.into_iter().take(OUR_MEASUREMENTS) {
        println!("{name}: p99 with {} / with {} {ratio:.2}, goal {RATIO_GOAL}", LIVE[1], LIVE[0]);
    }
    for bench in &mut namespaces {
        let sum = |index: usize| bench.times[index].iter().sum::<Duration>().as_secs_f64();
        let rate = (ROUNDS * REPETITIONS) as f64 / sum(0);
        println!("transfers a second, {} live: {rate:.0}", bench.live);
        for (together, times) in GROUP_SIZES.into_iter().zip(&mut bench.grouped) {
            times.sort_unstable();
            let rate = together as f64 / times[times.len() / 2].as_secs_f64();
            let live = bench.live;
            println!("{together} a transaction, {live} live: {rate:.0} opened and closed a second");
        }
    }
    drop(namespaces);
    enter(&outside); // the lab ends what runs in its namespaces
}

/// Prints the percentiles of `times`. Returns the 99th, in microseconds.
fn print(name: &str, times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(at);
    println!("{name:62} {p50:8.2} {p90:8.2} {p99:8.2} {max:8.1}");
    p99
}

/// The names of the measurements. The first [`OUR_MEASUREMENTS`] are those of `ftp-alg`.
const MEASUREMENTS: [&str; 7] = [
    "transfer: the last closed, the next opened",
    "open, another client, one translation",
    "close, unused",
    "baseline: one element, sent",
    "baseline: its answer, read",
    "check of the table, unchanged by others",
    "check of the table, changed by others",
];
const OUR_MEASUREMENTS: usize = 3;

/// A network namespace with the table and open pinholes.
struct BenchNamespace {
    live: usize,
    kernel: LinuxKernel,
    bare: RawElement,
    table: Table,
    count: u32,
    last: Option<Pinhole>,
    times: [Vec<Duration>; MEASUREMENTS.len()],
    /// The times of transactions that close and open several pinholes, by [`GROUP_SIZES`].
    grouped: [Vec<Duration>; GROUP_SIZES.len()],
    /// The times to open the pinholes that stay open.
    growth: Vec<Duration>,
    namespace: File,
}

impl BenchNamespace {
    fn new(host: &Host, live: usize) -> Self {
        let namespace = File::open(format!("/run/netns/{}", host.namespace())).unwrap();
        enter(&namespace);
        let parameters = RuleParameters::default();
        let commits = Commits::through_one_socket().unwrap();
        let table = Table::install_for(&parameters, &commits).unwrap();
        let kernel = LinuxKernel::new(&parameters).unwrap().with_commits(&commits);
        let bare = RawElement::new();
        let mut bench = Self {
            live,
            kernel,
            bare,
            table,
            count: 0,
            last: None,
            times: Default::default(),
            grouped: Default::default(),
            growth: Vec::with_capacity(live),
            namespace,
        };
        for number in 0..live {
            // The client is masqueraded, so that there is a translation.
            let initiator = Ipv4Addr::from(0x0a00_0000 + number as u32);
            let arrival = SocketAddr::from(([198, 51, 100, 1], 50_000));
            let target = SocketAddr::from(([192, 168, 150, 80], 50_000));
            let pinhole =
                Pinhole { initiator: initiator.into(), arrival, target, source: initiator.into() };
            let start = Instant::now();
            bench.open(&[], &pinhole, LONG_LIFETIME);
            bench.growth.push(start.elapsed());
        }
        bench
    }

    fn measure(&mut self) {
        enter(&self.namespace);
        for _ in 0..REPETITIONS {
            self.count += 1;
            // The conntrack entry of a refused connection has expired before its port is used again.
            let host: IpAddr = Ipv4Addr::LOCALHOST.into();
            let port = 20_000 + (self.count % 40_000) as u16;
            let arrival = SocketAddr::new(host, port);
            let pinhole = Pinhole { initiator: host, arrival, target: arrival, source: host };
            let last = self.last.replace(pinhole);
            self.timed(0, |bench| bench.open(last.as_slice(), &pinhole, LIFETIME));
            connect_refused(arrival);

            let initiator = IpAddr::from(Ipv4Addr::from(0xac10_0000 + self.count));
            let arrival = SocketAddr::from(([198, 51, 100, 1], 40_000));
            let target = SocketAddr::from(([192, 168, 150, 80], 40_000));
            let pinhole = Pinhole { initiator, arrival, target, source: initiator };
            self.timed(1, |bench| bench.open(&[], &pinhole, LIFETIME));
            self.timed(2, |bench| bench.change(&[pinhole], &[], LIFETIME));

            self.bare.prepare(self.count);
            self.timed(3, |bench| bench.bare.send());
            self.timed(4, |bench| bench.bare.answer());
            self.bare.undo();
        }
        self.measure_together();
        self.table.condition().unwrap(); // after the baseline's changes, so that the next check finds none
        for _ in 0..REPETITIONS / 10 {
            self.timed(5, |bench| {
                assert_eq!(bench.table.condition().unwrap(), TableCondition::Intact)
            });
            self.timed(6, |bench| {
                assert_eq!(bench.table.check_condition().unwrap(), TableCondition::Intact)
            });
        }
    }

    fn measure_together(&mut self) {
        for (index, together) in GROUP_SIZES.into_iter().enumerate() {
            let mut last = Vec::new();
            for round in 0..REPETITIONS.div_ceil(together).max(8) as u32 {
                let pinhole = |port: usize| {
                    let initiator = Ipv4Addr::from(0xac20_0000 + round).into();
                    let arrival = SocketAddr::from(([198, 51, 100, 1], 40_000 + port as u16));
                    let target = SocketAddr::from(([192, 168, 150, 80], 40_000));
                    Pinhole { initiator, arrival, target, source: initiator }
                };
                let pinholes: Vec<_> = (0..together).map(pinhole).collect();
                let start = Instant::now();
                self.change(&last, &pinholes, LIFETIME);
                self.grouped[index].push(start.elapsed());
                last = pinholes;
            }
            self.change(&last, &[], LIFETIME);
        }
    }

    fn open(&mut self, closed: &[Pinhole], pinhole: &Pinhole, lifetime: Duration) {
        self.change(closed, std::slice::from_ref(pinhole), lifetime);
    }

    fn change(&mut self, closed: &[Pinhole], opened: &[Pinhole], lifetime: Duration) {
        let control = Translation::identity(CLIENT, SERVER);
        let opening = |pinhole: &Pinhole| Opening {
            pinhole: *pinhole,
            control,
            from_client: false,
            lifetime,
        };
        let openings: Vec<_> = opened.iter().map(opening).collect();
        let mut outcomes = Vec::new();
        self.kernel.update_pinholes(closed, &openings, &mut outcomes).unwrap();
        outcomes.into_iter().for_each(Result::unwrap);
    }

    fn timed(&mut self, index: usize, work: impl FnOnce(&mut Self)) {
        let start = Instant::now();
        work(self);
        self.times[index].push(start.elapsed());
    }

    fn discard_times(&mut self) {
        self.times.iter_mut().chain(&mut self.grouped).for_each(Vec::clear);
    }
}

/// Connects to a port without a listener. The first packet consumes a pinhole.
fn connect_refused(arrival: SocketAddr) {
    assert!(TcpStream::connect(arrival).is_err());
}

/// Moves this thread to a namespace.
fn enter(namespace: &File) {
    // SAFETY: it only changes the namespace of this thread.
    let done = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(done, 0, "setns: {}", io::Error::last_os_error());
}

/// A batch with one set element, ready to be sent.
struct RawElement {
    socket: Socket,
    bytes: Vec<u8>,
    /// The position of the message in `bytes`.
    message: usize,
    /// The position of the first word of the element's key.
    key: usize,
}

impl RawElement {
    fn new() -> Self {
        // SAFETY: it only opens a socket, which nobody else has.
        let socket = unsafe {
            let raw = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER);
            assert!(raw >= 0, "{}", io::Error::last_os_error());
            Socket::from(OwnedFd::from_raw_fd(raw))
        };
        let mut bytes = Vec::new();
        message(&mut bytes, libc::NFNL_MSG_BATCH_BEGIN as u16, 0, 10, &[]);
        let mut element = attribute(1, &attribute(1, &[0; 12]));
        element.extend(attribute(4, &LIFETIME.as_millis().to_be_bytes()[8..]));
        let mut body = attribute(1, b"ftp_alg\0");
        body.extend(attribute(2, b"pinholes4\0"));
        body.extend(attribute(3, &attribute(1, &element)));
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_NEWSETELEM) as u16;
        let start = bytes.len();
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK) as u16;
        message(&mut bytes, kind, flags, 0, &body);
        let key = bytes.len() - 12 - 12;
        message(&mut bytes, libc::NFNL_MSG_BATCH_END as u16, 0, 10, &[]);
        Self { socket, bytes, message: start, key }
    }

    fn prepare(&mut self, number: u32) {
        self.bytes[self.key..self.key + 4].copy_from_slice(&(0xc000_0000 + number).to_be_bytes());
    }

    /// Deletes the element.
    fn undo(&mut self) {
        let kind = |bytes: &mut [u8], command: i32| bytes[0] = command as u8;
        kind(&mut self.bytes[self.message + 4..], libc::NFT_MSG_DELSETELEM);
        self.send();
        self.answer();
        kind(&mut self.bytes[self.message + 4..], libc::NFT_MSG_NEWSETELEM);
    }

    fn send(&self) {
        assert_eq!(self.socket.send(&self.bytes).unwrap(), self.bytes.len());
    }

    fn answer(&self) {
        let mut answer = [0; 4096];
        // SAFETY: pointer and length are those of `answer`.
        let read = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                answer.as_mut_ptr().cast(),
                answer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        assert_eq!(answer[16..20], [0; 4], "the kernel refused the element ({read} bytes)");
    }
}

fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let nested = if matches!(content.first_chunk(), Some([_, 0, 1..=4, 0])) { 0x8000 } else { 0 };
    let mut bytes = (content.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend((kind | nested).to_ne_bytes());
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(out: &mut Vec<u8>, kind: u16, flags: u16, resource: u16, body: &[u8]) {
    out.extend((20 + body.len() as u32).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    out.extend([0; 8]);
    let family = if body.is_empty() { libc::AF_UNSPEC } else { libc::NFPROTO_INET };
    out.extend([family as u8, 0]);
    out.extend(resource.to_be_bytes());
    out.extend(body);
}
