//! Measures the time to open and close a pinhole, while its packet waits: `cargo bench --bench pinholes`, as root.
//!
//! Two network namespaces take turns, one with 10 open pinholes and one with 50,000. The pinhole of a transfer is
//! consumed by a connection, and closed in the transaction that opens the next one, on the next port. A revoked pinhole
//! is closed unused, and the next one is for another client and server.

#![allow(unsafe_code, clippy::unwrap_used)]

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use ftp_alg::kernel::{
    LinuxKernel, RuleParameters,
    table::{Commits, Table},
};
use ftp_alg_core::{
    engine::{Closing, Kernel as _, Opening, PinholeEnds, Translation},
    ftp::AnnouncementKind,
};
use ftp_alg_lab::{Host, Lab, Topology};

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 168, 150, 80)), 1025);
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 21);
const LIVE: [usize; 2] = [10, 50_000];
const ROUNDS: usize = 40;
const REPETITIONS: usize = 100;
const RATIO_GOAL: f64 = 2.0;
const LIFETIME: Duration = Duration::from_secs(30);
const LONG_LIFETIME: Duration = Duration::from_secs(3600);

const MEASUREMENTS: [&str; 3] = [
    "transfer: the last closed, the next opened",
    "open, another client, one translation",
    "close, unused",
];

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return; // `cargo test --benches` only compiles this
    }
    let outside = File::open("/proc/self/ns/net").unwrap();
    let lab = Lab::new(Topology::Routed).unwrap_or_else(|error| panic!("{error}"));
    let hosts = [&lab.gateway, &lab.server];
    let mut namespaces: Vec<_> =
        hosts.into_iter().zip(LIVE).map(|(host, live)| BenchNamespace::new(host, live)).collect();
    for round in 0..=ROUNDS {
        for bench in &mut namespaces {
            bench.measure();
            if round == 0 {
                bench.times.iter_mut().for_each(Vec::clear); // the first round warms the caches
            }
        }
    }
    println!("{} of each, interleaved; microseconds", ROUNDS * REPETITIONS);
    println!("{:62} {:>8} {:>8} {:>8} {:>8}", "", "p50", "p90", "p99", "max");
    for (index, name) in MEASUREMENTS.into_iter().enumerate() {
        let p99 = |bench: &mut BenchNamespace| {
            print(&format!("{name}, {} live", bench.live), &mut bench.times[index])
        };
        let [few, many] = [p99(&mut namespaces[0]), p99(&mut namespaces[1])];
        println!("  p99 with {} / with {}: {:.2}, goal {RATIO_GOAL}", LIVE[1], LIVE[0], many / few);
    }
    let grown = &mut namespaces[1];
    print(&format!("open, while they grow to {}", grown.live), &mut grown.growth);
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

/// A network namespace with the table and open pinholes.
struct BenchNamespace {
    live: usize,
    kernel: LinuxKernel,
    _table: Table,
    count: u32,
    last: Option<PinholeEnds>,
    times: [Vec<Duration>; MEASUREMENTS.len()],
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
        let _table = Table::install(&parameters, &commits).unwrap();
        let kernel = LinuxKernel::new(&parameters, &commits).unwrap();
        let (times, growth) = (Default::default(), Vec::with_capacity(live));
        let mut bench =
            Self { live, kernel, _table, count: 0, last: None, times, growth, namespace };
        for number in 0..live as u32 {
            let start = Instant::now();
            bench.change(&[], &[masqueraded(0x0a00_0000 + number, 50_000)], LONG_LIFETIME);
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
            let arrival = SocketAddr::new(host, 20_000 + (self.count % 40_000) as u16);
            let pinhole = PinholeEnds { initiator: host, arrival, target: arrival, source: host };
            let last = self.last.replace(pinhole);
            self.timed(0, last.as_slice(), &[pinhole]);
            // Nobody listens. The first packet consumes the pinhole.
            assert!(TcpStream::connect(arrival).is_err());
            let pinhole = masqueraded(0xac10_0000 + self.count, 40_000);
            self.timed(1, &[], &[pinhole]);
            self.timed(2, &[pinhole], &[]);
        }
    }

    fn timed(&mut self, index: usize, closed: &[PinholeEnds], opened: &[PinholeEnds]) {
        let start = Instant::now();
        self.change(closed, opened, LIFETIME);
        self.times[index].push(start.elapsed());
    }

    fn change(&mut self, closed: &[PinholeEnds], opened: &[PinholeEnds], lifetime: Duration) {
        let control = Translation::identity(CLIENT, SERVER);
        let closings: Vec<_> = closed.iter().copied().map(Closing::Rules).collect();
        let [opened] = opened else { return self.kernel.close(&closings).unwrap() };
        let opening = Opening { ends: *opened, control, kind: AnnouncementKind::Port, lifetime };
        self.kernel.open(&opening, &closings).unwrap();
    }
}

/// A pinhole to a masqueraded client, so that there is a translation.
fn masqueraded(initiator: u32, port: u16) -> PinholeEnds {
    let initiator = Ipv4Addr::from(initiator).into();
    let arrival = SocketAddr::from(([198, 51, 100, 1], port));
    let target = SocketAddr::from(([192, 168, 150, 80], port));
    PinholeEnds { initiator, arrival, target, source: initiator }
}

/// Moves this thread to a namespace.
fn enter(namespace: &File) {
    // SAFETY: it only changes the namespace of this thread.
    let done = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(done, 0, "setns: {}", io::Error::last_os_error());
}
