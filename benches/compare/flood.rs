//! Packets through the queue: many logged-in control connections whose packets this makes itself,
//! both ends of them, so that no TCP stack stands in the way. Commands and replies follow each other
//! in order, and so many are under way at a time that the gateway always has work, but loses none.
//!
//! It needs to hear nothing: both ends' numbers are its own, masquerading keeps ports that are
//! free, and what arrives is counted by the interfaces.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::unix::fs::FileExt,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::load::Report;

/// Control connections. Twice what is under way, so that a reply is sent only when the command
/// that it answers has arrived.
const CONNECTIONS: u32 = 256;

/// Packets under way: fewer than a queue or a reader's socket takes by default.
const UNDER_WAY: u64 = 128;

/// Sent before looking how many have arrived.
const BURST: u64 = 16;

/// The first client port.
const FIRST_PORT: u16 = 20_000;

/// After so long without a packet those under way are taken for lost.
const LOST: Duration = Duration::from_millis(300);

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The client's address.
    pub client: Ipv4Addr,
    /// What the server sees in its place.
    pub outside: Ipv4Addr,
    /// The server.
    pub server: SocketAddr,
    /// For how long.
    pub time: Duration,
    /// `/proc/PID/net/dev` of processes in the client's and in the server's namespace.
    pub counters: [String; 2],
}

/// A raw socket in this process's namespace, for packets with their headers.
pub fn raw_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_header_included_v4(true)?;
    Ok(socket)
}

/// Does what is ordered, with `server` as a raw socket in the server's namespace.
pub fn run(order: &Order, server: Socket) -> io::Result<Report> {
    let SocketAddr::V4(at) = order.server else { return Err(io::ErrorKind::Unsupported.into()) };
    let mut flood = Flood {
        sockets: [raw_socket()?, server],
        ends: [[SocketAddrV4::new(order.client, 0), at], [at, SocketAddrV4::new(order.outside, 0)]],
        counters: Counters::open(&order.counters)?,
        connections: vec![[1000, 5000]; CONNECTIONS as usize],
        sent: 0,
        idle: Duration::ZERO,
        lost: 0,
    };
    flood.open()?;
    let arrived = flood.counters.arrived()?;
    let (start, lost) = (Instant::now(), flood.lost);
    flood.idle = Duration::ZERO;
    while start.elapsed() < order.time {
        flood.round(Direction::Command, b"NOOP\r\n")?;
        flood.round(Direction::Reply, b"200 fine\r\n")?;
    }
    let elapsed = start.elapsed();
    let arrived = flood.counters.arrived()? - arrived;
    let lost = flood.lost - lost;
    let waited = flood.idle.as_secs_f64() / elapsed.as_secs_f64();
    let lost_ones = || format!("{lost} packets did not arrive");
    Ok(Report {
        rate: arrived as f64 / elapsed.as_secs_f64(),
        errors: lost,
        error: (lost > 0).then(lost_ones),
        note: Some(format!("generator waits {:.0}% of the time", waited * 100.0)),
        ..Report::default()
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Command,
    Reply,
}

struct Flood {
    /// In the client's and in the server's namespace.
    sockets: [Socket; 2],
    /// Source and destination of a command and of a reply; a connection has a port of its own.
    ends: [[SocketAddrV4; 2]; 2],
    counters: Counters,
    /// The next sequence number of client and server.
    connections: Vec<[u32; 2]>,
    sent: u64,
    idle: Duration,
    lost: u64,
}

const FIN_SYN_ACK: [u8; 4] = [0x01, 0x02, 0x10, 0x18];
const SYN: u8 = FIN_SYN_ACK[1];
const ACK: u8 = FIN_SYN_ACK[2];
const PUSH_ACK: u8 = FIN_SYN_ACK[3];

impl Flood {
    /// Handshakes and logins.
    fn open(&mut self) -> io::Result<()> {
        self.counters.start = self.counters.total()?;
        self.all(Direction::Command, SYN, b"")?;
        self.all(Direction::Reply, SYN | ACK, b"")?;
        self.all(Direction::Command, ACK, b"")?;
        self.round(Direction::Reply, b"220 ready\r\n")?;
        self.round(Direction::Command, b"USER lab\r\n")?;
        self.round(Direction::Reply, b"331 password\r\n")?;
        self.round(Direction::Command, b"PASS lab\r\n")?;
        self.round(Direction::Reply, b"230 logged in\r\n")
    }

    /// A line on every connection.
    fn round(&mut self, direction: Direction, line: &[u8]) -> io::Result<()> {
        self.all(direction, PUSH_ACK, line)
    }

    fn all(&mut self, direction: Direction, flags: u8, payload: &[u8]) -> io::Result<()> {
        for number in 0..CONNECTIONS {
            if self.sent.is_multiple_of(BURST) {
                self.wait()?;
            }
            self.send(number as usize, direction, flags, payload)?;
        }
        Ok(())
    }

    /// Waits until fewer than [`UNDER_WAY`] are.
    fn wait(&mut self) -> io::Result<()> {
        let start = Instant::now();
        let mut spins = 0;
        loop {
            let arrived = self.counters.arrived()? + self.lost;
            if self.sent + BURST <= arrived + UNDER_WAY {
                break;
            }
            spins += 1;
            if start.elapsed() > LOST {
                self.lost += self.sent.saturating_sub(arrived);
                break;
            }
            if spins > 4 {
                thread::yield_now();
            }
        }
        if spins > 0 {
            self.idle += start.elapsed();
        }
        Ok(())
    }

    fn send(
        &mut self,
        number: usize,
        direction: Direction,
        flags: u8,
        payload: &[u8],
    ) -> io::Result<()> {
        let own = usize::from(direction == Direction::Reply);
        let [mut source, mut destination] = self.ends[own];
        let port = FIRST_PORT + number as u16;
        if own == 0 {
            source.set_port(port)
        } else {
            destination.set_port(port)
        }
        let numbers = &mut self.connections[number];
        let acknowledged = if flags & ACK != 0 { numbers[1 - own] } else { 0 };
        let packet = segment(source, destination, numbers[own], acknowledged, flags, payload);
        numbers[own] += payload.len() as u32 + u32::from(flags & SYN != 0);
        self.sockets[own].send_to(&packet, &SockAddr::from(destination))?;
        self.sent += 1;
        Ok(())
    }
}

/// A TCP segment with its IP header and right checksums.
fn segment(
    source: SocketAddrV4,
    destination: SocketAddrV4,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    // Windows of a gigabyte: nothing is ever acknowledged for the sake of the window.
    let options: &[u8] = if flags & SYN != 0 { &[2, 4, 5, 0xb4, 1, 3, 3, 14] } else { &[] };
    let length = 20 + options.len() + payload.len();
    let mut packet = Vec::with_capacity(20 + length);
    packet.extend([0x45, 0]);
    packet.extend((20 + length as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, libc::IPPROTO_TCP as u8, 0, 0]);
    packet.extend(source.ip().octets());
    packet.extend(destination.ip().octets());
    let header = checksum(0, &packet);
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    packet.extend(source.port().to_be_bytes());
    packet.extend(destination.port().to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(acknowledged.to_be_bytes());
    packet.extend([((20 + options.len()) * 4) as u8, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend(options);
    packet.extend(payload);
    // The pseudo header: addresses, protocol and length.
    let pseudo = libc::IPPROTO_TCP as u32 + length as u32;
    let sum = checksum(pseudo, &packet[12..]);
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum = start + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What both ends' interfaces received.
struct Counters {
    files: [File; 2],
    start: u64,
}

impl Counters {
    fn open([client, server]: &[String; 2]) -> io::Result<Self> {
        Ok(Self { files: [File::open(client)?, File::open(server)?], start: 0 })
    }

    fn arrived(&self) -> io::Result<u64> {
        Ok(self.total()?.saturating_sub(self.start))
    }

    fn total(&self) -> io::Result<u64> {
        let mut sum = 0;
        for file in &self.files {
            let mut text = [0; 2048];
            let length = file.read_at(&mut text, 0)?;
            let text = String::from_utf8_lossy(&text[..length]);
            let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
            // Bytes, then packets received.
            let packets = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
            sum += packets.ok_or(io::ErrorKind::InvalidData)?;
        }
        Ok(sum)
    }
}
