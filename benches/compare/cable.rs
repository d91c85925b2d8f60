//! Cables to the gateway: this program sends and receives at their other ends. It builds the packets itself, so no TCP
//! stack limits the rate, and it counts arrivals with the counters of the interfaces.

use std::{fs::File, io, net::Ipv4Addr, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
pub const PUSH_ACK: u8 = 0x18;

/// One side of the gateway: the client's or the server's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Side {
    /// The interface at the other end of the gateway's cable.
    pub interface: String,
    /// The gateway's link-layer address on this side.
    pub gateway: [u8; 6],
    /// The address of the host on this side.
    pub near: Ipv4Addr,
    /// The address of the host on the other side, as it is seen from this side.
    pub far: Ipv4Addr,
}

/// The fields of a TCP header that vary.
pub struct TcpHeader {
    /// The source port and the destination port.
    pub ports: [u16; 2],
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledged: u32,
    /// The flags, such as [`SYN`].
    pub flags: u8,
}

/// A cable to the gateway.
pub struct Cable {
    socket: Socket,
    /// The side of the gateway that it leads to.
    pub side: Side,
}

impl Cable {
    /// Opens the cable to a side.
    pub fn open(side: &Side) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        let index = rustix::net::netdevice::name_to_index(&socket, &side.interface)?;
        socket.bind(&link_address(index as i32)?)?;
        Ok(Self { socket, side: side.clone() })
    }

    /// Sends a TCP segment, with its lower headers and correct checksums.
    pub fn send_tcp(
        &self,
        source: Ipv4Addr,
        to: Ipv4Addr,
        head: &TcpHeader,
        payload: &[u8],
    ) -> io::Result<()> {
        // Windows of a gigabyte, so that no acknowledgement is needed to open a window.
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

    /// Sends a UDP datagram, with its lower headers and correct checksums.
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

    /// Sends `body` in an Ethernet frame. Its `protocol` has the checksum at `offset`.
    fn send(
        &self,
        (source, to): (Ipv4Addr, Ipv4Addr),
        (protocol, offset): (u8, usize),
        mut body: Vec<u8>,
    ) -> io::Result<()> {
        let addresses = [source.octets(), to.octets()].concat();
        // The pseudo header: protocol and length, then both addresses.
        let pseudo = u32::from(protocol) + body.len() as u32 + sum(&addresses);
        let checksum = fold_checksum(pseudo + sum(&body));
        body[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
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

/// A TCP connection, with both ends in this program.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The ports of client and server.
    ports: [u16; 2],
    /// The next sequence numbers of client and server.
    next: [u32; 2],
}

impl Flow {
    /// A connection without packets yet.
    pub fn new(ports: [u16; 2]) -> Self {
        Self { ports, next: [1000, 5000] }
    }

    /// Sends the next segment of the end `from`. `cables` lead to the client's and to the server's side.
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

/// The address of an interface for a packet socket.
#[allow(unsafe_code)]
fn link_address(index: i32) -> io::Result<SockAddr> {
    // SAFETY: `storage` is zeroed, and has room and alignment for any address. The closure writes a whole
    // `sockaddr_ll`, and sets its length.
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

/// The checksum (RFC 1071) of words whose sum is `sum`.
fn fold_checksum(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Counts the packets that arrived from the gateway on both cables.
pub struct Counters {
    file: File,
    interfaces: [String; 2],
    start: u64,
}

impl Counters {
    /// Opens the counters of the cables to `sides`.
    pub fn open(sides: &[Side; 2]) -> io::Result<Self> {
        let interfaces = sides.each_ref().map(|side| format!("{}:", side.interface));
        Ok(Self { file: File::open("/proc/self/net/dev")?, interfaces, start: 0 })
    }

    /// Restarts counting at zero.
    pub fn restart(&mut self) -> io::Result<()> {
        self.start = self.total()?;
        Ok(())
    }

    /// How many packets arrived since the restart.
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
