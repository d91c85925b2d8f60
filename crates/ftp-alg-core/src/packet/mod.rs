//! Checked views of IPv4, IPv6 and TCP packets, and functions that build changed ones.
//!
//! [`Packet::parse`] checks every length once, so the accessors of a [`Packet`] cannot fail. This module knows nothing
//! of FTP. Fragments do not matter: connection tracking reassembles packets before our hooks see them (`nf_defrag`),
//! and a remaining fragment is not parsed.

mod build;
mod reorder_queue;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::{Add, Sub},
};

use etherparse::{IpNumber, Ipv4Slice, Ipv6Slice, TcpSlice};
use serde::{Deserialize, Serialize};

pub use build::{Header, HeaderEdit, build_acknowledgement, build_segment, build_with_endpoints};
pub use reorder_queue::{Readiness, ReorderItem, ReorderQueue, ReorderResult};

/// TCP control bits.
pub mod flags {
    #![allow(missing_docs)]
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const URG: u8 = 0x20;
    pub const CWR: u8 = 0x80;
}

/// Why bytes cannot be inspected as a TCP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedPacket {
    /// The IP header is truncated, inconsistent, or of another version.
    #[error("malformed IP header")]
    Ip,
    /// A fragment.
    #[error("IP fragment")]
    Fragment,
    /// Another transport protocol than TCP.
    #[error("not TCP")]
    NotTcp,
    /// The TCP header is truncated or inconsistent.
    #[error("malformed TCP header")]
    Tcp,
}

/// Work that the kernel leaves to the network card, or to its own last step (GSO, checksum offload).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Whether the packet is a super-packet: the segments of one connection that the kernel has merged. Each is a
    /// packet on the wire.
    pub is_super_packet: bool,
    /// Whether the TCP checksum is not computed yet; the one on the wire will be correct.
    pub lacks_checksum: bool,
}

/// An IP packet with one TCP segment, or a super-packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The packet without link-layer padding.
    bytes: &'a [u8],
    /// The TCP header without its options.
    header: &'a [u8; 20],
    /// Offset of the TCP header.
    tcp_offset: usize,
    payload_offset: usize,
    /// Work that the kernel leaves to the network card; after parsing none.
    pub offload: Offload,
}

impl<'a> Packet<'a> {
    /// Parses `bytes`, which start at the IP header.
    // Inlined: otherwise the result is written to memory in parts and read back whole, which stalls the CPU for each
    // packet.
    #[inline(always)]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MalformedPacket> {
        let tcp = match bytes.first().map(|b| b >> 4) {
            Some(4) => {
                tcp_bytes(Ipv4Slice::from_slice(bytes).map_err(|_| MalformedPacket::Ip)?.payload())
            }
            Some(6) => {
                tcp_bytes(Ipv6Slice::from_slice(bytes).map_err(|_| MalformedPacket::Ip)?.payload())
            }
            _ => Err(MalformedPacket::Ip),
        }?;
        let length =
            TcpSlice::from_slice(tcp).map_err(|_| MalformedPacket::Tcp)?.header_slice().len();
        let header = tcp.first_chunk().ok_or(MalformedPacket::Tcp)?;
        let start = tcp.as_ptr().addr() - bytes.as_ptr().addr();
        let (bytes, payload_offset) = (&bytes[..start + tcp.len()], start + length);
        Ok(Self { bytes, header, tcp_offset: start, payload_offset, offload: Offload::default() })
    }

    /// Returns this packet with the given offload state.
    pub fn with_offload(self, offload: Offload) -> Self {
        Self { offload, ..self }
    }

    /// The whole packet.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Source address and port.
    pub fn source(&self) -> SocketAddr {
        self.endpoints().0.socket()
    }

    /// Destination address and port.
    pub fn destination(&self) -> SocketAddr {
        self.endpoints().1.socket()
    }

    /// Source and destination, in a form that compares fast.
    #[inline(always)]
    pub fn endpoints(&self) -> (Endpoint, Endpoint) {
        let long = |at: usize| self.bytes[at..].first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
        let (from, to) = (self.header_u16(0), self.header_u16(2));
        // An IPv4 header has at least 20 bytes, an IPv6 header 40.
        if is_v4(self.bytes) {
            let both = long(12);
            let end = |low, port| Endpoint { high: 0, low, port: u32::from(port) };
            (end(both >> 32, from), end(both & 0xffff_ffff, to))
        } else {
            let port = |port| IPV6 | u32::from(port);
            let end = |at, of| Endpoint { high: long(at), low: long(at + 8), port: port(of) };
            (end(8, from), end(24, to))
        }
    }

    /// The sequence number of the first payload byte (of the SYN, if set).
    pub fn seq(&self) -> Seq {
        Seq(self.header_u32(4))
    }

    /// The acknowledgement number; meaningless without [`flags::ACK`].
    pub fn ack(&self) -> Seq {
        Seq(self.header_u32(8))
    }

    /// The control bits, see [`flags`].
    pub fn flags(&self) -> u8 {
        self.header[13]
    }

    /// Whether all of the bits `which` are set.
    pub fn has(&self, which: u8) -> bool {
        self.flags() & which == which
    }

    /// The advertised window, unscaled.
    pub fn window(&self) -> u16 {
        self.header_u16(14)
    }

    /// Whether the packet, a SYN, has the window scale option (RFC 7323). A SYN-ACK has it if both ends scale their
    /// windows.
    pub fn scales_window(&self) -> bool {
        self.option(OPTION_WINDOW_SCALE, 3).is_some()
    }

    /// The urgent pointer, if URG is set.
    pub fn urgent(&self) -> Option<u16> {
        self.has(flags::URG).then(|| self.header_u16(18))
    }

    /// The payload.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.payload_offset..]
    }

    /// The timestamps option: the sender's clock, and the echo of the receiver's (RFC 7323).
    #[inline]
    pub fn timestamps(&self) -> Option<(u32, u32)> {
        let at = self.option(OPTION_TIMESTAMPS, 10)?.start;
        let long = |i: usize| u32::from_be_bytes(self.bytes[i..i + 4].try_into().unwrap_or([0; 4]));
        Some((long(at), long(at + 4)))
    }

    /// Whether the TCP checksum is correct. Otherwise the receiver discards the packet.
    pub fn checksum_is_valid(&self) -> bool {
        // The sum includes the checksum, so it is zero: a multiple of 2^16 - 1 in ones' complement.
        segment_sum(self.bytes, self.tcp_offset).is_multiple_of(0xffff)
    }

    /// Position of the SACK option's content in the packet: eight bytes a block.
    fn sack(&self) -> Option<std::ops::Range<usize>> {
        self.option(OPTION_SACK, 10)
    }

    /// Position of the content of option `kind`, which has at least `length` bytes including its two-byte head.
    fn option(&self, kind: u8, length: usize) -> Option<std::ops::Range<usize>> {
        let mut at = self.tcp_offset + 20;
        while at < self.payload_offset {
            match self.bytes[at] {
                OPTION_END => return None,
                OPTION_NOP => at += 1,
                found => {
                    let len = usize::from(*self.bytes[..self.payload_offset].get(at + 1)?);
                    if len < 2 || at + len > self.payload_offset {
                        return None;
                    }
                    if found == kind && len >= length {
                        return Some(at + 2..at + len);
                    }
                    at += len;
                }
            }
        }
        None
    }

    /// A field of the TCP header.
    #[inline(always)]
    fn header_u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.header[at], self.header[at + 1]])
    }

    /// A long field of the TCP header.
    #[inline(always)]
    fn header_u32(&self, at: usize) -> u32 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| self.header[at + i]);
        u32::from_be_bytes([a, b, c, d])
    }
}

/// Address and port as register-sized numbers. With a single 128-bit number, parts that were just written would be read
/// back whole, which stalls the CPU for each packet.
///
/// The family is part of the value: an IPv4 address differs from the IPv6 addresses `::a.b.c.d` and `::ffff:a.b.c.d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Upper half of the address; zero for IPv4.
    pub high: u64,
    /// Lower half of the address; for IPv4 the address.
    pub low: u64,
    /// The port, combined with [`IPV6`].
    port: u32,
}

/// Set in the port field of an IPv6 endpoint, so that one comparison covers port and family.
const IPV6: u32 = 1 << 16;

impl Endpoint {
    /// The endpoint with these address halves.
    #[inline]
    pub fn new(high: u64, low: u64, port: u16, is_v4: bool) -> Self {
        Self { high, low, port: u32::from(port) | if is_v4 { 0 } else { IPV6 } }
    }

    /// The port.
    #[inline]
    pub fn port(self) -> u16 {
        self.port as u16 // without the family
    }

    /// Whether this is an IPv4 endpoint.
    #[inline]
    pub fn is_v4(self) -> bool {
        self.port & IPV6 == 0
    }

    /// Port and family in one number that is unique for each pair.
    #[inline]
    pub fn port_and_family(self) -> u32 {
        self.port
    }

    /// The endpoint as a socket address.
    pub fn socket(self) -> SocketAddr {
        let ip = if self.is_v4() {
            IpAddr::from(Ipv4Addr::from_bits(self.low as u32)) // 32 bits for IPv4
        } else {
            Ipv6Addr::from_bits((u128::from(self.high) << 64) | u128::from(self.low)).into()
        };
        SocketAddr::new(ip, self.port())
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(endpoint: SocketAddr) -> Self {
        let (high, low) = match endpoint.ip() {
            IpAddr::V4(v4) => (0, u64::from(v4.to_bits())),
            IpAddr::V6(v6) => ((v6.to_bits() >> 64) as u64, v6.to_bits() as u64), // the two halves
        };
        Self::new(high, low, endpoint.port(), endpoint.is_ipv4())
    }
}

/// A TCP sequence number, modulo 2^32 (RFC 9293 section 3.4). Comparisons hold for numbers less than 2^31 apart. Peers
/// choose these numbers, so no operation can panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seq(pub u32);

impl Seq {
    /// Whether `self` is before `other`.
    pub fn is_before(self, other: Self) -> bool {
        self.distance_from(other) < 0
    }

    /// Whether `self` is after `other`.
    pub fn is_after(self, other: Self) -> bool {
        self.distance_from(other) > 0
    }

    /// Distance from `other` to `self`; negative if `self` is before it.
    pub fn distance_from(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0).cast_signed()
    }

    /// The later of the two.
    pub fn max(self, other: Self) -> Self {
        if other.is_after(self) { other } else { self }
    }

    /// The earlier of the two.
    pub fn min(self, other: Self) -> Self {
        if other.is_before(self) { other } else { self }
    }
}

impl Add<u32> for Seq {
    type Output = Self;

    fn add(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

impl Sub<u32> for Seq {
    type Output = Self;

    fn sub(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }
}

/// Number of bytes from `other` to `self`, modulo 2^32.
impl Sub for Seq {
    type Output = u32;

    fn sub(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }
}

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_WINDOW_SCALE: u8 = 3;
const OPTION_SACK: u8 = 5;
const OPTION_TIMESTAMPS: u8 = 8;

fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

/// The [sum](sum()) of the TCP segment at `tcp`, with its pseudo header.
#[inline(always)]
fn segment_sum(packet: &[u8], tcp: usize) -> u64 {
    let segment = &packet[tcp..];
    let length = segment.len() as u32; // an IP packet's
    let pseudo = u64::from(u16::from(IpNumber::TCP.0).to_be()) + u64::from(length.to_be());
    pseudo
        + match (is_v4(packet), tcp) {
            (true, 20) => sum(&packet[12..]),
            (false, 40) => sum(&packet[8..]),
            (true, _) => sum(segment) + sum(&packet[12..20]),
            (false, _) => sum(segment) + sum(&packet[8..40]),
        }
}

/// The sum of 16-bit words modulo 2^16 - 1, in this machine's byte order. The result is zero in one byte order if it is
/// in the other (RFC 1071 section 2).
#[inline]
fn sum(mut bytes: &[u8]) -> u64 {
    let mut words = 0u128; // a word is a digit of four, and so is a carry: 2^64 = 1 modulo 2^16 - 1
    while let Some((word, rest)) = bytes.split_first_chunk::<8>() {
        words += u128::from(u64::from_ne_bytes(*word));
        bytes = rest;
    }
    let (low, carries) = (words as u64, (words >> 64) as u64); // the two halves
    let mut sum = (low & 0xffff_ffff) + (low >> 32) + carries; // of 64 KiB at most
    if let Some((word, rest)) = bytes.split_first_chunk::<4>() {
        sum += u64::from(u32::from_ne_bytes(*word));
        bytes = rest;
    }
    let last = match *bytes {
        [] => [0; 4],
        [a] => [a, 0, 0, 0],
        [a, b] => [a, b, 0, 0],
        [a, b, c, ..] => [a, b, c, 0],
    };
    sum + u64::from(u32::from_ne_bytes(last))
}

fn tcp_bytes<'a>(payload: &etherparse::IpPayloadSlice<'a>) -> Result<&'a [u8], MalformedPacket> {
    match payload {
        p if p.fragmented => Err(MalformedPacket::Fragment),
        p if p.ip_number != IpNumber::TCP => Err(MalformedPacket::NotTcp),
        p => Ok(p.payload),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn v4(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
            .tcp(4000, 21, 7, 1024)
            .ack(9)
            .psh()
            .write(&mut out, payload)
            .unwrap();
        out
    }

    #[test]
    fn padding_is_not_payload() {
        let bytes = [v4(b"PASV\r\n"), vec![0; 6]].concat();
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.payload(), b"PASV\r\n");
        assert!(packet.checksum_is_valid());
    }

    #[test]
    fn fragments_and_other_protocols_are_rejected() {
        let mut fragment = v4(b"x");
        fragment[6] = 0x20; // more fragments
        assert_eq!(Packet::parse(&fragment).unwrap_err(), MalformedPacket::Fragment);
        let mut udp = v4(b"x");
        udp[9] = 17;
        assert_eq!(Packet::parse(&udp).unwrap_err(), MalformedPacket::NotTcp);
        let mut offset = v4(b"");
        offset[32] = 0xf0; // a data offset past the end
        assert_eq!(Packet::parse(&offset).unwrap_err(), MalformedPacket::Tcp);
        assert_eq!(Packet::parse(&[]).unwrap_err(), MalformedPacket::Ip);
    }

    #[test]
    fn endpoints_of_two_families_differ_despite_equal_numbers() {
        let texts =
            ["10.0.0.2:21", "[::10.0.0.2]:21", "[::ffff:10.0.0.2]:21", "[::]:21", "0.0.0.0:21"];
        let sockets: Vec<SocketAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        for (at, socket) in sockets.iter().enumerate() {
            let endpoint = Endpoint::from(*socket);
            assert_eq!((endpoint.socket(), endpoint.port()), (*socket, 21));
            assert_eq!(endpoint.is_v4(), socket.is_ipv4());
            let same = sockets.iter().filter(|other| Endpoint::from(**other) == endpoint).count();
            assert_eq!(same, 1, "{}", texts[at]);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_cause_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
                                      version in 4u8..7) {
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | *first & 0xf;
            }
            if let Ok(packet) = Packet::parse(&bytes) {
                let _ = (packet.source(), packet.destination(), packet.timestamps());
                let _ = (packet.sack(), packet.payload(), packet.urgent(), packet.checksum_is_valid());
            }
        }
    }
}
