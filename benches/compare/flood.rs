//! Packets through the queue: many logged-in control connections whose packets this makes itself,
//! both ends of them, so that no TCP stack stands in the way. Commands and replies follow each other
//! in order.
//!
//! It runs on the reader's core and before it: it fills the queue, then sleeps until that is read.
//! So the reader always finds many packets, as one does that cannot keep up, and never loses one. On
//! a core of its own the generator would be slower than a good reader, which then wakes and sleeps
//! for each packet; and waking another core costs more than anything that is measured here.
//!
//! It stands at the other ends of the gateway's cables, and needs to hear nothing: both ends'
//! numbers are its own, masquerading keeps ports that are free, and what arrives is counted by the
//! interfaces.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::unix::fs::FileExt,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::load::Report;

/// Control connections. Twice what is under way, so that a reply is sent only when the command
/// that it answers has arrived.
const CONNECTIONS: u32 = 256;

/// Packets under way: fewer than a queue or a reader's socket takes by default.
const UNDER_WAY: u64 = 128;

/// When so few are left, it is time for more.
const FEW: u64 = 16;

/// The reader's time between two looks at what has arrived.
const PAUSE: Duration = Duration::from_micros(200);

/// One that a gateway has to read: it is not among those that the rules of `ftp-alg` let pass once a
/// dialogue is known.
const COMMAND: &[u8] = b"CWD p b\r\n";

/// The first client port.
const FIRST_PORT: u16 = 20_000;

/// After so long without a packet those under way are taken for lost.
const LOST: Duration = Duration::from_millis(300);

/// A side of the gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Side {
    /// The other end of the cable to it.
    pub interface: String,
    /// The gateway's own link-layer address there.
    pub gateway: [u8; 6],
    /// Who is there as the gateway sees it.
    pub near: Ipv4Addr,
    /// Who is at the other side as one sees it from here.
    pub far: Ipv4Addr,
}

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The client's and the server's.
    pub sides: [Side; 2],
    /// For how long.
    pub time: Duration,
}

/// Does what is ordered.
pub fn run(order: &Order) -> io::Result<Report> {
    let [client, server] = &order.sides;
    let mut flood = Flood {
        cables: [Cable::open(client)?, Cable::open(server)?],
        counters: Counters::open(order)?,
        connections: vec![[1000, 5000]; CONNECTIONS as usize],
        sent: 0,
        arrived: 0,
        lost: 0,
    };
    flood.open()?;
    let arrived = flood.counters.arrived()?;
    let (start, lost) = (Instant::now(), flood.lost);
    while start.elapsed() < order.time {
        flood.round(Direction::Command, COMMAND)?;
        flood.round(Direction::Reply, b"250 fine\r\n")?;
    }
    let elapsed = start.elapsed();
    let arrived = flood.counters.arrived()? - arrived;
    let lost = flood.lost - lost;
    Ok(Report {
        rate: arrived as f64 / elapsed.as_secs_f64(),
        total: flood.sent as f64,
        errors: lost,
        error: (lost > 0).then(|| format!("{lost} packets did not arrive")),
        ..Report::default()
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Command,
    Reply,
}

struct Flood {
    /// To the client's and to the server's side.
    cables: [Cable; 2],
    counters: Counters,
    /// The next sequence number of client and server; each connection has a client port of its own.
    connections: Vec<[u32; 2]>,
    sent: u64,
    /// As far as it is known.
    arrived: u64,
    lost: u64,
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const PUSH_ACK: u8 = 0x18;

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
            self.wait()?;
            self.send(number as usize, direction, flags, payload)?;
        }
        Ok(())
    }

    /// Waits until only [`FEW`] are under way, if [`UNDER_WAY`] are.
    fn wait(&mut self) -> io::Result<()> {
        if self.sent < self.arrived + UNDER_WAY {
            return Ok(());
        }
        let start = Instant::now();
        loop {
            self.arrived = self.counters.arrived()? + self.lost;
            if self.sent <= self.arrived + FEW {
                return Ok(());
            }
            if start.elapsed() > LOST {
                self.lost += self.sent.saturating_sub(self.arrived);
                self.arrived = self.sent;
                return Ok(());
            }
            thread::sleep(PAUSE);
        }
    }

    fn send(
        &mut self,
        number: usize,
        direction: Direction,
        flags: u8,
        payload: &[u8],
    ) -> io::Result<()> {
        let own = usize::from(direction == Direction::Reply);
        let Side { near, far, .. } = self.cables[own].side;
        let client = FIRST_PORT + number as u16;
        let ports = if own == 0 { [client, 21] } else { [21, client] };
        let numbers = &mut self.connections[number];
        let acknowledged = if flags & ACK != 0 { numbers[1 - own] } else { 0 };
        let head = Head { ports, sequence: numbers[own], acknowledged, flags };
        numbers[own] += payload.len() as u32 + u32::from(flags & SYN != 0);
        self.cables[own].send(near, far, &head, payload)?;
        self.sent += 1;
        Ok(())
    }
}

/// What differs from one TCP header to the next.
struct Head {
    ports: [u16; 2],
    sequence: u32,
    acknowledged: u32,
    flags: u8,
}

/// A cable to the gateway.
struct Cable {
    socket: Socket,
    side: Side,
}

impl Cable {
    fn open(side: &Side) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        let index = rustix::net::netdevice::name_to_index(&socket, &side.interface)?;
        socket.bind(&link_address(index as i32)?)?;
        Ok(Self { socket, side: side.clone() })
    }

    /// Sends a TCP segment with the headers below it and right checksums.
    fn send(&self, source: Ipv4Addr, to: Ipv4Addr, head: &Head, payload: &[u8]) -> io::Result<()> {
        // Windows of a gigabyte: nothing is ever acknowledged for the sake of the window.
        let options: &[u8] =
            if head.flags & SYN != 0 { &[2, 4, 5, 0xb4, 1, 3, 3, 14] } else { &[] };
        let length = 20 + options.len() + payload.len();
        let mut frame = Vec::with_capacity(34 + length);
        frame.extend(self.side.gateway);
        frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
        frame.extend([0x45, 0]);
        frame.extend((20 + length as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, libc::IPPROTO_TCP as u8, 0, 0]);
        frame.extend(source.octets());
        frame.extend(to.octets());
        let header = checksum(0, &frame[14..]);
        frame[24..26].copy_from_slice(&header.to_be_bytes());
        frame.extend(head.ports.iter().flat_map(|port| port.to_be_bytes()));
        frame.extend(head.sequence.to_be_bytes());
        frame.extend(head.acknowledged.to_be_bytes());
        frame.extend([((20 + options.len()) * 4) as u8, head.flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(options);
        frame.extend(payload);
        // Begins with the pseudo header: protocol and length, then both addresses.
        let sum = checksum(libc::IPPROTO_TCP as u32 + length as u32, &frame[26..]);
        frame[50..52].copy_from_slice(&sum.to_be_bytes());
        self.socket.send(&frame).map(drop)
    }
}

/// An interface as packet sockets know it.
#[allow(unsafe_code)]
fn link_address(index: i32) -> io::Result<SockAddr> {
    // SAFETY: `storage` is zeroed and has room and alignment for any address; what is written is a
    // whole `sockaddr_ll`, of which the length is told.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as u16;
            (*address).sll_ifindex = index;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })?
    };
    Ok(address)
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

/// What both cables brought from the gateway.
struct Counters {
    file: File,
    interfaces: [String; 2],
    start: u64,
}

impl Counters {
    fn open(order: &Order) -> io::Result<Self> {
        let interfaces = order.sides.each_ref().map(|side| format!("{}:", side.interface));
        Ok(Self { file: File::open("/proc/self/net/dev")?, interfaces, start: 0 })
    }

    fn arrived(&self) -> io::Result<u64> {
        Ok(self.total()?.saturating_sub(self.start))
    }

    fn total(&self) -> io::Result<u64> {
        let mut text = [0; 8192];
        let length = self.file.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..length]);
        let packets = |interface: &String| {
            let line = text.lines().find_map(|line| line.trim_start().strip_prefix(interface))?;
            // Bytes, then packets received.
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let [client, server] = self.interfaces.each_ref().map(packets);
        Ok(client.zip(server).map(|(a, b)| a + b).ok_or(io::ErrorKind::InvalidData)?)
    }
}
