//! Copies of the first and the last packets of data connections: SYN-ACK, FIN, RST, and a SYN that is retransmitted, has
//! data, or goes to this machine. The rules log their headers to a group of nfnetlink_log. No packet waits for the daemon,
//! so copies that are not read in time are lost.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
pub use ftp_alg_core::engine::{DataFlags, DataPacket};
use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};

use super::{
    NetfilterError, clocks,
    netlink::{Messages, Socket, Writer, family_header, kind_of, put_message},
};

const PACKET: u16 = kind_of(libc::NFNL_SUBSYS_ULOG, 0);
const CONFIG: u16 = kind_of(libc::NFNL_SUBSYS_ULOG, 1);
// From linux/netfilter/nfnetlink_log.h; libc lacks them.
const NFULA_PACKET_HDR: u16 = 1;
const NFULA_TIMESTAMP: u16 = 3;
const NFULA_IFINDEX_INDEV: u16 = 4;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_CFG_NLBUFSIZ: u16 = 3;
const NFULA_CFG_TIMEOUT: u16 = 4;
const NFULA_CFG_QTHRESH: u16 = 5;
const NFULNL_CFG_CMD_BIND: u8 = 1;
const NFULNL_CFG_CMD_UNBIND: u8 = 2;
const NFULNL_COPY_PACKET: u8 = 2;

/// How long the kernel collects packets before it sends them, in hundredths of a second.
const FLUSH_TIMEOUT: u32 = 5;
/// The longest time after which a collected packet can be read.
const LONGEST_DELAY: Duration = Duration::from_millis(100);
/// The size of a message of collected packets, of some 200 bytes each.
const MESSAGE_BYTES: u32 = 32 << 10;
/// No limit of packets in a message but its size.
const PACKETS_A_MESSAGE: u32 = 1 << 10;
/// Limit of messages that one call reads: more than the socket's buffer holds.
const MESSAGES_A_CALL: usize = 1024;
/// Limit of the copied bytes: IPv6 and TCP headers with options.
const COPIED_BYTES: u32 = 128;
const SOCKET_BUFFER: i32 = 4 << 20;

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copied {
    /// A packet of a data connection.
    Packet(DataPacket),
    /// The addresses of a packet that cannot be read.
    Unreadable([IpAddr; 2]),
    /// The SYN of an encrypted session's client, which we did not admit: the client, and the endpoint that it dialled.
    Tried(SocketAddr, SocketAddr),
}

/// Reads what the rules log to one group.
#[derive(Debug)]
pub struct DataLog {
    group: u16,
    socket: Socket,
    buffer: Vec<u8>,
    /// Until when everything was read.
    read_until: Instant,
}

impl DataLog {
    /// Binds the group, whose only reader this is.
    pub fn open(group: u16) -> Result<Self, NetfilterError> {
        let failed = |error| NetfilterError::system(format!("nfnetlink_log group {group}"), error);
        let mut socket = Socket::open().map_err(failed)?;
        let mut configure = |fill: &dyn Fn(&mut Writer<'_>)| {
            let header = family_header(libc::AF_UNSPEC, group);
            socket.request(CONFIG, libc::NLM_F_ACK, &header, fill, |_| {}).map(drop)
        };
        configure(&|message| _ = message.put(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND]))
            .map_err(failed)?;
        let [a, b, c, d] = COPIED_BYTES.to_be_bytes();
        configure(&|message| {
            message
                .put(NFULA_CFG_MODE, &[a, b, c, d, NFULNL_COPY_PACKET, 0])
                .put(NFULA_CFG_NLBUFSIZ, &MESSAGE_BYTES.to_be_bytes())
                .put(NFULA_CFG_TIMEOUT, &FLUSH_TIMEOUT.to_be_bytes())
                .put(NFULA_CFG_QTHRESH, &PACKETS_A_MESSAGE.to_be_bytes());
        })
        .map_err(failed)?;
        socket.set_buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, SOCKET_BUFFER);
        Ok(Self { group, socket, buffer: vec![0; 1 << 16], read_until: Instant::now() })
    }

    /// Ends the copies. Then what the kernel has collected can be read at once (instance_destroy() of nfnetlink_log).
    pub fn unbind(&mut self) -> Result<(), NetfilterError> {
        let (sequence, mut request) = (self.socket.next_sequence(), Vec::new());
        let header = family_header(libc::AF_UNSPEC, self.group);
        put_message(&mut request, CONFIG, 0, sequence, &header, |message| {
            message.put(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_UNBIND]);
        });
        // An acknowledgement would be read in place of what the kernel has collected.
        let failed =
            |error| NetfilterError::system(format!("nfnetlink_log group {}", self.group), error);
        self.socket.send(&request).map_err(failed)
    }

    /// Passes each packet that has arrived to `each`, with the latest time at which it passed. Returns whether packets were lost,
    /// because they did not fit into the socket's buffer.
    pub fn read(&mut self, mut each: impl FnMut(Instant, Copied)) -> Result<bool, NetfilterError> {
        let mut has_lost = false;
        let (now, clock) = clocks::at_once(SystemTime::now);
        let earliest = self.read_until.checked_sub(LONGEST_DELAY).unwrap_or(self.read_until);
        let passed = |stamp: Option<&[u8]>| {
            let Some(time) = stamp.and_then(time_of) else { return [earliest, Instant::now()] };
            let at = match clock.duration_since(time) {
                Ok(age) => now.checked_sub(age),
                // It passes while others are read.
                Err(later) => now.checked_add(later.duration()),
            };
            [at.unwrap_or(now); 2]
        };
        for _ in 0..MESSAGES_A_CALL {
            let length = match recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => {
                    self.read_until = now;
                    return Ok(has_lost);
                }
                Err(Errno::INTR) => continue,
                Err(Errno::NOBUFS) => {
                    has_lost = true;
                    continue;
                }
                Err(error) => {
                    let what = format!("nfnetlink_log socket {}", self.socket.as_fd().as_raw_fd());
                    return Err(NetfilterError::system(what, io::Error::from(error)));
                }
            };
            for message in Messages::new(self.buffer.get(..length).unwrap_or_default()) {
                if message.kind == PACKET {
                    let attributes = message.attributes();
                    let passed = passed(attributes.first(NFULA_TIMESTAMP));
                    let index = attributes.first(NFULA_IFINDEX_INDEV);
                    let index = index.and_then(|index| index.try_into().ok());
                    let interface = index.map_or(0, u32::from_be_bytes);
                    // `struct nfulnl_msg_packet_hdr`: the protocol, and the hook. The rules copy no packet of a data connection
                    // before its destination is translated.
                    let header = attributes.first(NFULA_PACKET_HDR);
                    let arrives = header.and_then(|header| header.get(2))
                        == Some(&(libc::NF_INET_PRE_ROUTING as u8));
                    let payload = attributes.first(NFULA_PAYLOAD);
                    match payload.and_then(|bytes| parse(bytes, passed, interface)) {
                        Some(Copied::Packet(DataPacket { source, destination, .. })) if arrives => {
                            each(passed[1], Copied::Tried(source, destination));
                        }
                        Some(copied) => each(passed[1], copied),
                        None => {}
                    }
                }
            }
        }
        Ok(has_lost)
    }
}

/// The time in `struct nfulnl_msg_packet_timestamp`: seconds and microseconds in network byte order.
fn time_of(stamp: &[u8]) -> Option<SystemTime> {
    let (seconds, micros) = stamp.split_first_chunk::<8>()?;
    let [seconds, micros] = [*seconds, *micros.first_chunk()?].map(u64::from_be_bytes);
    let since_epoch = Duration::from_secs(seconds).checked_add(Duration::from_micros(micros))?;
    UNIX_EPOCH.checked_add(since_epoch)
}

/// Parses the first bytes of a packet. Returns only its addresses if the TCP header is not among these bytes (long IPv6
/// options), or the IP header lacks the length (BIG TCP: more than 64 KiB).
fn parse(bytes: &[u8], passed: [Instant; 2], interface: u32) -> Option<Copied> {
    let packet = LaxSlicedPacket::from_ip(bytes).ok()?;
    let (source, destination, length) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            let length = usize::from(header.total_len()).checked_sub(header.slice().len());
            (IpAddr::from(header.source_addr()), IpAddr::from(header.destination_addr()), length)
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            let extensions = ip.extensions().slice().len();
            let length = usize::from(header.payload_length()).checked_sub(extensions);
            (header.source_addr().into(), header.destination_addr().into(), length)
        }
        _ => return None,
    };
    let read = || {
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
        let data = length?.checked_sub(tcp.header_slice().len())?;
        Some(Copied::Packet(DataPacket {
            passed,
            source: SocketAddr::new(source, tcp.source_port()),
            destination: SocketAddr::new(destination, tcp.destination_port()),
            flags: DataFlags { syn: tcp.syn(), ack: tcp.ack(), fin: tcp.fin(), rst: tcp.rst() },
            end: tcp.sequence_number().wrapping_add(if tcp.syn() { 0 } else { data as u32 }),
            acknowledged: tcp.acknowledgment_number(),
            interface,
        }))
    };
    Some(read().unwrap_or(Copied::Unreadable([source, destination])))
}

#[cfg(test)]
mod tests {
    use etherparse::{
        IpHeaders, IpNumber, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader, PacketBuilder,
    };

    use super::*;

    fn read(bytes: &[u8]) -> DataPacket {
        match parse(bytes, [Instant::now(); 2], 1) {
            Some(Copied::Packet(packet)) => packet,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_cut_packet_has_the_end_of_its_data() {
        for is_v6 in [false, true] {
            let builder = match is_v6 {
                false => PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
                true => PacketBuilder::ipv6([1; 16], [2; 16], 64),
            };
            let mut bytes = Vec::new();
            let payload = [7; 900];
            builder
                .tcp(20, 4000, u32::MAX - 99, 512)
                .fin()
                .ack(1)
                .write(&mut bytes, &payload)
                .unwrap();
            bytes.truncate(COPIED_BYTES as usize);
            let packet = read(&bytes);
            assert_eq!((packet.source.port(), packet.destination.port()), (20, 4000));
            assert_eq!(packet.end, 800, "behind the wrap");
            let fin = DataFlags { ack: true, fin: true, ..DataFlags::default() };
            assert_eq!(packet.flags, fin);
        }
    }

    /// A client may send data with its SYN-ACK, which its server discards.
    #[test]
    fn data_of_a_syn_does_not_count() {
        let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let mut bytes = Vec::new();
        builder.tcp(20, 4000, 7, 512).syn().ack(1).write(&mut bytes, &[7; 200]).unwrap();
        assert_eq!(read(&bytes).end, 7);
    }

    /// Neither with IPv6 options that a client has put before its TCP header, nor of more than 64 KiB.
    #[test]
    fn what_cannot_be_read_has_its_addresses() {
        let mut hidden = Vec::new();
        let options = Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[0; 126]).unwrap();
        let extensions =
            Ipv6Extensions { destination_options: Some(options), ..Default::default() };
        let ip = Ipv6Header { source: [1; 16], destination: [2; 16], ..Default::default() };
        let builder = PacketBuilder::ip(IpHeaders::Ipv6(ip, extensions));
        builder.tcp(4000, 20, 7, 512).syn().ack(1).write(&mut hidden, &[]).unwrap();
        hidden.truncate(COPIED_BYTES as usize);
        let mut long = Vec::new();
        let builder = PacketBuilder::ipv4([1; 4], [2; 4], 64);
        builder.tcp(4000, 20, 7, 512).fin().ack(1).write(&mut long, &[7; 60]).unwrap();
        long[2..4].fill(0);
        let addresses =
            [[IpAddr::from([1; 16]), IpAddr::from([2; 16])], [[1; 4].into(), [2; 4].into()]];
        for (bytes, addresses) in [hidden, long].iter().zip(addresses) {
            assert_eq!(parse(bytes, [Instant::now(); 2], 1), Some(Copied::Unreadable(addresses)));
        }
    }

    #[test]
    fn times_are_read() {
        let stamp = [1_u64, 500_000].map(u64::to_be_bytes);
        let expected = UNIX_EPOCH + Duration::from_millis(1500);
        assert_eq!(time_of(stamp.as_flattened()), Some(expected));
        assert_eq!(time_of(&[0xff; 16]), None);
        assert_eq!(time_of(&[0; 15]), None);
    }

    #[test]
    fn garbage_is_no_packet() {
        let mut bytes = vec![0x45, 0, 0, 4];
        for length in 0..60 {
            bytes.resize(length, 0xff);
            assert_eq!(parse(&bytes, [Instant::now(); 2], 1), None, "{length}");
        }
    }
}
