//! Packets, built and parsed with etherparse.

use std::net::SocketAddrV4;

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, NetHeaders,
    PacketHeaders, TcpHeader, TransportHeader,
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

/// A segment to build, with its unusual properties.
#[derive(Clone, Debug)]
pub struct Frame {
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    pub seq: u32,
    pub ack: u32,
    pub flags: u16,
    pub payload: Vec<u8>,
    /// Packet mark before the program runs.
    pub mark: u32,
    pub ip_options: Vec<u8>,
    pub tcp_options: Vec<u8>,
    pub more_fragments: bool,
    pub fragment_offset: u16,
    /// Number of padding bytes after the IP packet.
    pub padding: usize,
    pub checksum: Checksum,
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
    pub fn new(source: SocketAddrV4, destination: SocketAddrV4, flags: u16) -> Self {
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
        let [from, to] = [self.source, self.destination].map(|one| one.ip().octets());
        let mut ip = Ipv4Header::new(length, self.ttl, IpNumber::TCP, from, to).unwrap();
        ip.options = Ipv4Options::try_from(&self.ip_options[..]).unwrap();
        ip.total_len += u16::try_from(self.ip_options.len()).unwrap();
        ip.more_fragments = self.more_fragments;
        ip.fragment_offset = IpFragOffset::try_new(self.fragment_offset).unwrap();
        ip.header_checksum = ip.calc_header_checksum() ^ self.wrong_ip_checksum;
        tcp.checksum = tcp.calc_checksum_ipv4(&ip, &self.payload).unwrap();
        match self.checksum {
            Checksum::Right => {}
            Checksum::WrongBy(difference) => tcp.checksum ^= difference,
            Checksum::OfPseudoHeader => {
                let words = [from, to].concat();
                let words = words.as_chunks::<2>().0.iter().map(|word| u16::from_be_bytes(*word));
                let sum: u32 = words.map(u32::from).sum::<u32>() + 6 + u32::from(length);
                tcp.checksum = ((sum & 0xffff) + (sum >> 16)) as u16; // the sum carries at most once
            }
        }
        let ethernet = Ethernet2Header {
            source: [2, 0, 0, 0, 0, 1],
            destination: self.destination_mac,
            ether_type: EtherType::IPV4,
        };
        let mut bytes = Vec::new();
        ethernet.write(&mut bytes).unwrap();
        ip.write_raw(&mut bytes).unwrap();
        tcp.write(&mut bytes).unwrap();
        bytes.extend_from_slice(&self.payload);
        bytes.resize(bytes.len() + self.padding, 0xee);
        bytes
    }
}

/// Corrects the checksum of an IP header without options.
pub fn with_right_ip_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let words = frame[14..34].as_chunks::<2>().0.iter();
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum + (sum >> 16)) as u16).to_be_bytes());
    frame
}

/// The payload of a packet. Checks its checksums.
pub fn payload(bytes: &[u8]) -> Vec<u8> {
    let headers = PacketHeaders::from_ethernet_slice(bytes).unwrap();
    let Some(NetHeaders::Ipv4(ip, _)) = headers.net else { panic!("no IPv4: {bytes:?}") };
    let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!("no TCP: {bytes:?}") };
    let payload = headers.payload.slice();
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, payload).unwrap(), "{bytes:?}");
    payload.to_vec()
}
