//! Segments as bytes: built and checked by etherparse alone, so that the engine's packet code is
//! not verified with itself.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpEcn, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header, NetSlice, SlicedPacket, TcpHeader,
    TcpOptionElement, TransportSlice, checksum::Sum16BitWords,
};
use ftp_alg_core::packet::flags;

/// Congestion was experienced, and the window is reduced for it (RFC 3168).
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// Router alert, in IPv4 (RFC 2113) and as a hop-by-hop option of IPv6 (RFC 2711), padded.
const IPV4_OPTIONS: [u8; 4] = [0x94, 4, 0, 0];
const IPV6_OPTIONS: [u8; 6] = [5, 2, 0, 0, 1, 0];

/// What a TCP segment says, without its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub timestamps: Option<(u32, u32)>,
    pub sack: Vec<(u32, u32)>,
    /// The window scale of a SYN.
    pub window_scale: Option<u8>,
    pub payload: Vec<u8>,
    /// The two bits of the IP header that tell congestion.
    pub ecn: u8,
    /// Whether its packet has IP options, or over IPv6 an extension header.
    pub ip_options: bool,
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The IP header: anyone who forwards it drops it.
    Ip,
    /// What it carries: its receiver discards it.
    Content,
}

impl Segment {
    pub fn has(&self, which: u8) -> bool {
        self.flags & which == which
    }

    /// The number that follows it.
    pub fn end(&self) -> u32 {
        let controls = u32::from(self.has(flags::SYN)) + u32::from(self.has(flags::FIN));
        self.seq.wrapping_add(self.payload.len() as u32).wrapping_add(controls)
    }

    /// The packet that carries it.
    pub fn packet(&self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let mut tcp = self.header(source.port(), destination.port());
        let length = tcp.header_len() + self.payload.len();
        let mut bytes = Vec::new();
        match (source.ip(), destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                let mut ip = Ipv4Header::new(0, 64, IpNumber::TCP, source, destination).unwrap();
                ip.ecn = IpEcn::try_new(self.ecn).unwrap();
                if self.ip_options {
                    ip.options = Ipv4Options::from(IPV4_OPTIONS);
                }
                ip.set_payload_len(length).unwrap();
                ip.header_checksum = ip.calc_header_checksum();
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, &self.payload).unwrap();
                bytes.extend(ip.to_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let extension = if self.ip_options { 2 + IPV6_OPTIONS.len() } else { 0 };
                let mut ip = Ipv6Header {
                    traffic_class: self.ecn,
                    next_header: if self.ip_options {
                        IpNumber::IPV6_HEADER_HOP_BY_HOP
                    } else {
                        IpNumber::TCP
                    },
                    hop_limit: 64,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                ip.set_payload_length(extension + length).unwrap();
                tcp.checksum = tcp.calc_checksum_ipv6(&ip, &self.payload).unwrap();
                bytes.extend(ip.to_bytes());
                if self.ip_options {
                    bytes.extend([IpNumber::TCP.0, 0]);
                    bytes.extend(IPV6_OPTIONS);
                }
            }
            _ => panic!("two families"),
        }
        bytes.extend(tcp.to_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// Its header, without a checksum.
    fn header(&self, source: u16, destination: u16) -> TcpHeader {
        let mut tcp = TcpHeader::new(source, destination, self.seq, self.window);
        for (set, flag) in [
            (&mut tcp.fin, flags::FIN),
            (&mut tcp.syn, flags::SYN),
            (&mut tcp.rst, flags::RST),
            (&mut tcp.psh, flags::PSH),
            (&mut tcp.ack, flags::ACK),
            (&mut tcp.urg, flags::URG),
            (&mut tcp.ece, ECE),
            (&mut tcp.cwr, CWR),
        ] {
            *set = self.has(flag);
        }
        tcp.acknowledgment_number = if tcp.ack { self.ack } else { 0 };
        tcp.urgent_pointer = if tcp.urg { self.urgent } else { 0 };
        let mut options = Vec::new();
        if let Some((value, echo)) = self.timestamps {
            options.push(TcpOptionElement::Timestamp(value, echo));
        }
        options.extend(self.window_scale.map(TcpOptionElement::WindowScale));
        if let Some((first, rest)) = self.sack.split_first() {
            let mut blocks = [None; 3];
            for (slot, block) in blocks.iter_mut().zip(rest) {
                *slot = Some(*block);
            }
            options.push(TcpOptionElement::SelectiveAcknowledgement(*first, blocks));
        }
        tcp.set_options(&options).unwrap();
        tcp
    }

    /// Reads a packet, all lengths and checksums of which must be right.
    pub fn checked(bytes: &[u8]) -> (SocketAddr, SocketAddr, Self) {
        Self::read(bytes).unwrap_or_else(|fault| panic!("{fault:?} in {bytes:02x?}"))
    }

    /// Reads a packet as its receiver does: one with a wrong length or checksum is none.
    pub fn read(bytes: &[u8]) -> Result<(SocketAddr, SocketAddr, Self), Fault> {
        let (source, destination, segment, is_valid) = Self::parse(bytes)?;
        is_valid.then_some((source, destination, segment)).ok_or(Fault::Content)
    }

    /// Reads a packet, and whether TCP checksum and options are right.
    pub fn parse(bytes: &[u8]) -> Result<(SocketAddr, SocketAddr, Self, bool), Fault> {
        let sliced = SlicedPacket::from_ip(bytes).map_err(|_| Fault::Ip)?;
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
            return Err(Fault::Content);
        };
        let ip_options;
        let ecn;
        let (source, destination, checksum): (IpAddr, IpAddr, _) = match sliced.net.as_ref() {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header();
                // Of the bytes, as the reserved bit is no field of etherparse's.
                let sum = Sum16BitWords::new().add_slice(header.slice()).ones_complement();
                if sum != 0 || usize::from(header.total_len()) != bytes.len() {
                    return Err(Fault::Ip);
                }
                ip_options = header.options() == IPV4_OPTIONS;
                ecn = header.ecn().value();
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                    tcp.calc_checksum_ipv4(header.source(), header.destination()),
                )
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header = ip.header();
                if usize::from(header.payload_length()) + 40 != bytes.len() {
                    return Err(Fault::Ip);
                }
                ip_options = bytes.get(42..48) == Some(&IPV6_OPTIONS) && bytes[6] == 0;
                ecn = header.traffic_class() & 3;
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                    tcp.calc_checksum_ipv6(header.source(), header.destination()),
                )
            }
            _ => return Err(Fault::Ip),
        };
        let mut is_valid = checksum == Ok(tcp.checksum());
        let mut segment = Self {
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            flags: tcp.slice()[13],
            window: tcp.window_size(),
            urgent: tcp.urgent_pointer(),
            payload: tcp.payload().to_vec(),
            ecn,
            ip_options,
            ..Self::default()
        };
        for option in tcp.options_iterator() {
            match option {
                Err(_) => is_valid = false,
                Ok(TcpOptionElement::Timestamp(value, echo)) => {
                    segment.timestamps = Some((value, echo))
                }
                Ok(TcpOptionElement::SelectiveAcknowledgement(first, rest)) => {
                    segment.sack =
                        std::iter::once(first).chain(rest.into_iter().flatten()).collect();
                }
                Ok(TcpOptionElement::WindowScale(scale)) => segment.window_scale = Some(scale),
                Ok(_) => {}
            }
        }
        let source = SocketAddr::new(source, tcp.source_port());
        let destination = SocketAddr::new(destination, tcp.destination_port());
        Ok((source, destination, segment, is_valid))
    }

    /// What a middlebox makes of it that cuts it before the byte `at`.
    pub fn split(mut self, at: usize) -> [Self; 2] {
        let mut rest = Self {
            seq: self.seq.wrapping_add(at as u32),
            flags: self.flags & !CWR,
            payload: self.payload.split_off(at),
            ..self.clone()
        };
        self.flags &= !(flags::FIN | flags::PSH);
        match rest.urgent.checked_sub(at as u16) {
            Some(urgent) if urgent > 0 => rest.urgent = urgent,
            _ => {
                rest.flags &= !flags::URG;
                rest.urgent = 0;
            }
        }
        [self, rest]
    }

    /// Both as one, if `next` goes on where this one ends and says the same for the rest.
    pub fn merged(&self, next: &Self) -> Option<Self> {
        let same = |s: &Self| (s.ack, s.window, s.timestamps, s.sack.clone(), s.ecn, s.ip_options);
        let plain = flags::ACK | flags::PSH;
        let joins = self.flags & !plain == 0
            && next.flags & !(plain | flags::FIN) == 0
            && !self.payload.is_empty()
            && self.end() == next.seq
            && same(self) == same(next);
        joins.then(|| Self {
            flags: next.flags,
            payload: [&self.payload[..], &next.payload].concat(),
            ..self.clone()
        })
    }
}
