//! Packets, built and parsed with etherparse.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header,
    NetHeaders, PacketHeaders, TcpHeader, TransportHeader,
};

pub const FIN: u16 = 0x01;
pub const SYN: u16 = 0x02;
pub const RST: u16 = 0x04;
pub const PSH: u16 = 0x08;
pub const ACK: u16 = 0x10;
pub const URG: u16 = 0x20;
pub const ECE: u16 = 0x40;
pub const CWR: u16 = 0x80;
pub const NS: u16 = 0x100;

/// A segment over IPv4 or IPv6 to build, with its unusual properties.
#[derive(Clone, Debug)]
pub struct Frame {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u16,
    pub payload: Vec<u8>,
    /// Packet mark before the program runs.
    pub mark: u32,
    /// IPv4 has these, fragments and a checksum.
    pub ip_options: Vec<u8>,
    pub tcp_options: Vec<u8>,
    pub more_fragments: bool,
    pub fragment_offset: u16,
    /// Number of padding bytes after the IP packet.
    pub padding: usize,
    pub checksum: Checksum,
    /// Over IPv6 the hop limit.
    pub ttl: u8,
    /// What the IP header's checksum is wrong by.
    pub wrong_ip_checksum: u16,
    /// The destination's MAC address. That of `lo`, on which packets arrive, is all zeros.
    pub destination_mac: [u8; 6],
}

/// The TCP checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    Right,
    WrongBy(u16),
    /// Only the sum of the pseudo-header, because a device completes the checksum (CHECKSUM_PARTIAL).
    OfPseudoHeader,
}

pub const WINDOW: u16 = 0x1234;

impl Frame {
    pub fn new(source: SocketAddr, destination: SocketAddr, flags: u16) -> Self {
        Self {
            source,
            destination,
            seq: 1,
            ack: 0,
            flags,
            payload: Vec::new(),
            mark: 0,
            ip_options: Vec::new(),
            tcp_options: Vec::new(),
            more_fragments: false,
            fragment_offset: 0,
            padding: 0,
            checksum: Checksum::Right,
            ttl: 64,
            wrong_ip_checksum: 0,
            destination_mac: [0; 6],
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let has = |flag| self.flags & flag != 0;
        let mut tcp = TcpHeader::new(self.source.port(), self.destination.port(), self.seq, WINDOW);
        tcp.acknowledgment_number = self.ack;
        [tcp.fin, tcp.syn, tcp.rst, tcp.psh, tcp.ack] = [FIN, SYN, RST, PSH, ACK].map(has);
        [tcp.urg, tcp.ece, tcp.cwr, tcp.ns] = [URG, ECE, CWR, NS].map(has);
        tcp.set_options_raw(&self.tcp_options).unwrap();
        let length = u16::try_from(tcp.header_len() + self.payload.len()).unwrap();
        let mut ip_bytes = Vec::new();
        let (ether_type, ends) = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let ends = [from.octets(), to.octets()];
                let mut ip =
                    Ipv4Header::new(length, self.ttl, IpNumber::TCP, ends[0], ends[1]).unwrap();
                ip.options = Ipv4Options::try_from(&self.ip_options[..]).unwrap();
                ip.total_len += u16::try_from(self.ip_options.len()).unwrap();
                ip.more_fragments = self.more_fragments;
                ip.fragment_offset = IpFragOffset::try_new(self.fragment_offset).unwrap();
                ip.header_checksum = ip.calc_header_checksum() ^ self.wrong_ip_checksum;
                ip.write_raw(&mut ip_bytes).unwrap();
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, &self.payload).unwrap();
                (EtherType::IPV4, ends.concat())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let ip = Ipv6Header {
                    payload_length: length,
                    next_header: IpNumber::TCP,
                    hop_limit: self.ttl,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                };
                ip.write(&mut ip_bytes).unwrap();
                tcp.checksum = tcp.calc_checksum_ipv6(&ip, &self.payload).unwrap();
                (EtherType::IPV6, [ip.source, ip.destination].concat())
            }
            _ => panic!("two families: {self:?}"),
        };
        match self.checksum {
            Checksum::Right => {}
            Checksum::WrongBy(difference) => tcp.checksum ^= difference,
            Checksum::OfPseudoHeader => {
                let pseudo_header = [&ends[..], &[0, 6], &length.to_be_bytes()].concat();
                tcp.checksum = sum_of_words(&pseudo_header);
            }
        }
        let ethernet = Ethernet2Header {
            source: [2, 0, 0, 0, 0, 1],
            destination: self.destination_mac,
            ether_type,
        };
        let mut bytes = Vec::new();
        ethernet.write(&mut bytes).unwrap();
        bytes.extend_from_slice(&ip_bytes);
        tcp.write(&mut bytes).unwrap();
        bytes.extend_from_slice(&self.payload);
        bytes.resize(bytes.len() + self.padding, 0xee);
        bytes
    }
}

/// The ones' complement sum of 16-bit words.
fn sum_of_words(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks::<2>().0.iter();
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

/// Corrects the checksum of an IPv4 header without options.
pub fn with_right_ip_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let sum = sum_of_words(&frame[14..34]);
    frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
    frame
}

/// The payload of a packet. Checks its checksums.
pub fn payload(bytes: &[u8]) -> Vec<u8> {
    let headers = PacketHeaders::from_ethernet_slice(bytes).unwrap();
    let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!("no TCP: {bytes:?}") };
    let payload = headers.payload.slice();
    let checksum = match headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            tcp.calc_checksum_ipv4(&ip, payload)
        }
        Some(NetHeaders::Ipv6(ip, _)) => tcp.calc_checksum_ipv6(&ip, payload),
        other => panic!("no IP: {other:?}"),
    };
    assert_eq!(tcp.checksum, checksum.unwrap(), "{bytes:?}");
    payload.to_vec()
}
