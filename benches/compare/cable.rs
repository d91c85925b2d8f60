//! Cables to the gateway whose other ends this program is: it makes the packets itself, so that no TCP stack stands in
//! the way, and interfaces count what arrives.

use std::{fs::File, io, net::Ipv4Addr, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
pub const PUSH_ACK: u8 = 0x18;

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

/// What differs from one TCP header to the next.
pub struct TcpHeader {
    /// Source and destination.
    pub ports: [u16; 2],
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledged: u32,
    /// [`SYN`] and its like.
    pub flags: u8,
}

/// A cable to the gateway.
pub struct Cable {
    socket: Socket,
    /// Where it leads.
    pub side: Side,
}

impl Cable {
    /// Opens it.
    pub fn open(side: &Side) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        let index = rustix::net::netdevice::name_to_index(&socket, &side.interface)?;
        socket.bind(&link_address(index as i32)?)?;
        Ok(Self { socket, side: side.clone() })
    }

    /// Sends a TCP segment with the headers below it and right checksums.
    pub fn send_tcp(
        &self,
        source: Ipv4Addr,
        to: Ipv4Addr,
        head: &TcpHeader,
        payload: &[u8],
    ) -> io::Result<()> {
        // Windows of a gigabyte: nothing is ever acknowledged for the sake of the window.
        let options: &[u8] =
            if head.flags & SYN != 0 { &[2, 4, 5, 0xb4, 1, 3, 3, 14] } else { &[] };
        let mut segment = Vec::with_capacity(28 + payload.len());
        segment.extend(head.ports.iter().flat_map(|port| port.to_be_bytes()));
        segment.extend(head.sequence.to_be_bytes());
        segment.extend(head.acknowledged.to_be_bytes());
        segment.extend([((20 + options.len()) * 4) as u8, head.flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(options);
        segment.extend(payload);
        self.send((source, to), (libc::IPPROTO_TCP as u8, 16), segment)
    }

    /// Sends a UDP datagram, likewise.
    pub fn send_udp(
        &self,
        source: Ipv4Addr,
        to: Ipv4Addr,
        ports: [u16; 2],
        payload: &[u8],
    ) -> io::Result<()> {
        let mut datagram: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
        datagram.extend((8 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        self.send((source, to), (libc::IPPROTO_UDP as u8, 6), datagram)
    }

    /// Sends `body`, of a `protocol` that has its checksum at `place`, in an Ethernet frame.
    fn send(
        &self,
        (source, to): (Ipv4Addr, Ipv4Addr),
        (protocol, place): (u8, usize),
        mut body: Vec<u8>,
    ) -> io::Result<()> {
        let addresses = [source.octets(), to.octets()].concat();
        // The pseudo header: protocol and length, then both addresses.
        let pseudo = u32::from(protocol) + body.len() as u32 + sum(&addresses);
        let checksum = fold_checksum(pseudo + sum(&body));
        body[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
        let mut frame = Vec::with_capacity(34 + body.len());
        frame.extend(self.side.gateway);
        frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
        frame.extend([0x45, 0]);
        frame.extend((20 + body.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend(addresses);
        let header = fold_checksum(sum(&frame[14..]));
        frame[24..26].copy_from_slice(&header.to_be_bytes());
        frame.extend(body);
        self.socket.send(&frame).map(drop)
    }
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Client,
    Server,
}

/// A TCP connection, both ends of which are here.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The client's and the server's.
    ports: [u16; 2],
    /// Their next sequence numbers.
    next: [u32; 2],
}

impl Flow {
    /// One that has not begun.
    pub fn new(ports: [u16; 2]) -> Self {
        Self { ports, next: [1000, 5000] }
    }

    /// Sends what comes next of `from`, by the cables to the client's and to the server's side.
    pub fn send(
        &mut self,
        cables: &[Cable; 2],
        from: End,
        flags: u8,
        payload: &[u8],
    ) -> io::Result<()> {
        let own = usize::from(from == End::Server);
        let Side { near, far, .. } = cables[own].side;
        let ports = [self.ports[own], self.ports[1 - own]];
        let acknowledged = if flags & ACK != 0 { self.next[1 - own] } else { 0 };
        let head = TcpHeader { ports, sequence: self.next[own], acknowledged, flags };
        let length = payload.len() as u32 + u32::from(flags & SYN != 0);
        self.next[own] = self.next[own].wrapping_add(length);
        cables[own].send_tcp(near, far, &head, payload)
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

fn sum(bytes: &[u8]) -> u32 {
    let pair = |pair: &[u8]| [pair[0], pair.get(1).copied().unwrap_or(0)];
    bytes.chunks(2).map(|two| u32::from(u16::from_be_bytes(pair(two)))).sum()
}

/// The checksum (RFC 1071) of words that add up to `sum`.
fn fold_checksum(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What both cables brought from the gateway.
pub struct Counters {
    file: File,
    interfaces: [String; 2],
    start: u64,
}

impl Counters {
    /// Those of the cables to `sides`.
    pub fn open(sides: &[Side; 2]) -> io::Result<Self> {
        let interfaces = sides.each_ref().map(|side| format!("{}:", side.interface));
        Ok(Self { file: File::open("/proc/self/net/dev")?, interfaces, start: 0 })
    }

    /// Counts from here on.
    pub fn restart(&mut self) -> io::Result<()> {
        self.start = self.total()?;
        Ok(())
    }

    /// How many arrived.
    pub fn arrived(&self) -> io::Result<u64> {
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
