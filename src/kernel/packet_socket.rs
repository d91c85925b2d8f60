//! Copies of the packets that pass an interface, from their IP headers on (packet(7)).
//!
//! A filter in the kernel selects the packets of control connections, and the first and the last packets of other TCP
//! connections. No packet waits for us; what is not read in time is dropped, and counted.

use std::{
    io,
    os::fd::{AsRawFd as _, IntoRawFd as _},
    time::Duration,
};

use pnet::datalink::{self, Channel, ChannelType, Config, DataLinkReceiver, NetworkInterface};
use rustix::ioctl::{Getter, ioctl};
use socket2::{Domain, SockFilter, Socket, Type};

use super::clocks::since_1970;

/// How long [`PacketSocket::receive`] waits.
const PATIENCE: Duration = Duration::from_millis(100);
/// The longest packet: a super-packet.
const MAX_PACKET: usize = 1 << 18;
const SOCKET_BUFFER: usize = 8 << 20;

/// Why an interface cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum PacketSocketError {
    #[error("there is no interface {name}; there are {known}")]
    Unknown { name: String, known: String },
    #[error("cannot watch {name}: no right to read its packets (CAP_NET_RAW); run this as root")]
    NoRight { name: String },
    #[error("{name} has disappeared, so no more packets come; start this again when it is back")]
    Gone { name: String },
    #[error("cannot watch {name}: {source}; see packet(7)")]
    System { name: String, source: io::Error },
}

/// Reads the packets of one interface.
pub struct PacketSocket {
    interface: NetworkInterface,
    receiver: Box<dyn DataLinkReceiver>,
    /// The socket that `receiver` reads.
    socket: Socket,
    dropped: u64,
}

impl PacketSocket {
    /// Reads the packets of the interface `name`: those with one of these `ports`, and SYN, FIN and RST of others.
    pub fn open(name: &str, ports: &[u16], promiscuous: bool) -> Result<Self, PacketSocketError> {
        let all = datalink::interfaces();
        let Some(interface) = all.iter().find(|interface| interface.name == name) else {
            let known: Vec<&str> = all.iter().map(|interface| interface.name.as_str()).collect();
            let known = known.join(", ");
            return Err(PacketSocketError::Unknown { name: name.to_owned(), known });
        };
        Self::open_interface(interface.clone(), ports, promiscuous).map_err(|source| {
            let name = name.to_owned();
            match source.kind() {
                io::ErrorKind::PermissionDenied => PacketSocketError::NoRight { name },
                _ => PacketSocketError::System { name, source },
            }
        })
    }

    fn open_interface(
        interface: NetworkInterface,
        ports: &[u16],
        promiscuous: bool,
    ) -> io::Result<Self> {
        // Without a protocol, it gets no packet before it is bound.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        socket.attach_filter(&filter(ports, interface.is_loopback()))?;
        // A smaller one costs packets, which are counted.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        let config = Config {
            channel_type: ChannelType::Layer3(libc::ETH_P_ALL as u16), // 3
            read_buffer_size: MAX_PACKET,
            read_timeout: Some(PATIENCE),
            promiscuous,
            socket_fd: Some(socket.try_clone()?.into_raw_fd()),
            ..Config::default()
        };
        match datalink::channel(&interface, config)? {
            Channel::Ethernet(_, receiver) => Ok(Self { interface, receiver, socket, dropped: 0 }),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The next packet, and when it passed, since 1970. `None` if there is none for a moment.
    pub fn receive(&mut self) -> Result<Option<(&[u8], Duration)>, PacketSocketError> {
        match self.receiver.next() {
            Ok(packet) => return Ok(Some((packet, time_of_last(&self.socket)))),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            // The socket has an error: most likely the interface is down.
            Err(_) => drop(self.socket.take_error()),
        }
        let is_same = |other: &NetworkInterface| {
            (other.index, &other.name) == (self.interface.index, &self.interface.name)
        };
        match datalink::interfaces().iter().any(is_same) {
            true => Ok(None),
            false => Err(PacketSocketError::Gone { name: self.interface.name.clone() }),
        }
    }

    /// How many packets were dropped since the start because they were not read in time.
    pub fn dropped(&mut self) -> u64 {
        self.dropped += u64::from(take_statistics(&self.socket).dropped);
        self.dropped
    }
}

/// When the last packet that was read passed. The kernel has no time of the first packet.
#[allow(unsafe_code)]
fn time_of_last(socket: &Socket) -> Duration {
    // From linux/sockios.h.
    const SIOCGSTAMPNS: rustix::ioctl::Opcode = 0x8907;
    // SAFETY: with this opcode the kernel writes a `struct timespec`.
    let time = unsafe { ioctl(socket, Getter::<SIOCGSTAMPNS, libc::timespec>::new()) };
    let known = time.ok().and_then(|time| {
        let (seconds, nanos) = (time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?);
        Some(Duration::new(seconds, nanos))
    });
    known.unwrap_or_else(since_1970)
}

/// `struct tpacket_stats` of linux/if_packet.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PacketStatistics {
    packets: u32,
    dropped: u32,
}

/// The counts since the last call; zeros if the kernel has none.
#[allow(unsafe_code)]
fn take_statistics(socket: &Socket) -> PacketStatistics {
    const PACKET_STATISTICS: libc::c_int = 6;
    let mut statistics = PacketStatistics::default();
    let mut length = size_of::<PacketStatistics>() as libc::socklen_t;
    // SAFETY: the pointers are valid during the call, and the kernel writes at most `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if result == 0 { statistics } else { PacketStatistics::default() }
}

// Instructions of classic BPF, from linux/bpf_common.h: what they load or compare.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_AT_X: u16 = 0x48;
const LOAD_BYTE_AT_X: u16 = 0x50;
const LOAD_X: u16 = 0x01;
/// The length of an IPv4 header.
const LOAD_HEADER_LENGTH_INTO_X: u16 = 0xb1;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Offsets from the network header.
const NETWORK: u32 = libc::SKF_NET_OFF.cast_unsigned();
const PROTOCOL: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL).cast_unsigned();
const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
const PACKET_OUTGOING: u32 = 4;

const ACCEPT: u32 = u32::MAX;
const REJECT: u32 = 0;
const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
const TCP: u32 = 6;
const FRAGMENT_OFFSET: u32 = 0x1fff;
const FIN_SYN_RST: u32 = 0x07;
const IPV6_HEADER: u32 = 40;
/// Each port takes four instructions, and the kernel takes 4096.
const MAX_PORTS: usize = 1000;

/// The filter: TCP with one of these `ports`, or with FIN, SYN or RST. A loopback interface shows each packet twice, so
/// the filter passes one of the two.
fn filter(ports: &[u16], is_loopback: bool) -> Vec<SockFilter> {
    let step = |code, k| SockFilter::new(code, 0, 0, k);
    let test = |code, k, if_true, if_false| SockFilter::new(code, if_true, if_false, k);
    let mut program = Vec::new();
    if is_loopback {
        program.extend([
            step(LOAD_WORD, PACKET_TYPE),
            test(IF_EQUAL, PACKET_OUTGOING, 0, 1),
            step(RETURN, REJECT),
        ]);
    }
    // The jumps skip so many instructions.
    program.extend([
        step(LOAD_WORD, PROTOCOL),
        test(IF_EQUAL, IPV4, 0, 6),
        step(LOAD_BYTE, NETWORK.wrapping_add(9)),
        test(IF_EQUAL, TCP, 0, 8),
        step(LOAD_HALF, NETWORK.wrapping_add(6)),
        test(IF_ANY_BIT, FRAGMENT_OFFSET, 6, 0),
        step(LOAD_HEADER_LENGTH_INTO_X, NETWORK),
        step(JUMP, 6),
        test(IF_EQUAL, IPV6, 1, 0),
        // Another protocol, such as a VLAN in a VLAN: the player looks at it.
        step(RETURN, ACCEPT),
        step(LOAD_BYTE, NETWORK.wrapping_add(6)),
        test(IF_EQUAL, TCP, 1, 0),
        step(RETURN, REJECT),
        step(LOAD_X, IPV6_HEADER),
        // TCP, whose header is at X.
        step(LOAD_BYTE_AT_X, NETWORK.wrapping_add(13)),
        test(IF_ANY_BIT, FIN_SYN_RST, 0, 1),
        step(RETURN, ACCEPT),
    ]);
    for offset in [0, 2] {
        program.push(step(LOAD_HALF_AT_X, NETWORK.wrapping_add(offset)));
        for port in ports.iter().take(MAX_PORTS) {
            program.extend([test(IF_EQUAL, (*port).into(), 0, 1), step(RETURN, ACCEPT)]);
        }
    }
    let verdict = if ports.len() > MAX_PORTS { ACCEPT } else { REJECT };
    program.push(step(RETURN, verdict));
    program
}
