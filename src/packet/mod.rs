//! Checked views of IPv4, IPv6 and TCP packets, and the building of changed ones.
//!
//! [`Packet::parse`] checks every length once; the accessors of a [`Packet`] cannot fail after
//! that. Knows nothing of FTP. Fragments are no concern here: connection tracking puts packets
//! together before our hooks see them (`nf_defrag`), and one that is a fragment all the same is
//! not parsed.

mod build;
mod seq;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{IpNumber, Ipv4Slice, Ipv6Slice, TcpSlice, checksum::Sum16BitWords};

pub use build::{Edit, acknowledgement, with_endpoints};
pub use seq::Seq;

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

/// Why bytes are no TCP packet that can be inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The IP header is cut, contradicts itself, or is of another version.
    #[error("malformed IP header")]
    Ip,
    /// A fragment.
    #[error("IP fragment")]
    Fragment,
    /// Another transport protocol than TCP.
    #[error("not TCP")]
    NotTcp,
    /// The TCP header is cut or contradicts itself.
    #[error("malformed TCP header")]
    Tcp,
}

/// What a kernel leaves to whoever sends a packet on: network cards, or its own last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The payload is that of several segments of one connection, one behind the other; on the wire
    /// each is a packet.
    pub joined: bool,
    /// The TCP checksum is not computed yet; the one on the wire will be right.
    pub unsummed: bool,
}

/// A whole IP packet that carries a whole TCP segment, or several joined as one.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The packet, without link-layer padding after it.
    bytes: &'a [u8],
    /// The TCP header without its options.
    header: &'a [u8; 20],
    /// Where the TCP header starts.
    tcp: usize,
    /// Where the payload starts.
    payload: usize,
    offload: Offload,
}

impl<'a> Packet<'a> {
    /// Checks and slices `bytes`, which start at the IP header.
    // Inlined, as its result would go through memory in parts and be read back whole: a stall a packet.
    #[inline(always)]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let tcp = match bytes.first().map(|b| b >> 4) {
            Some(4) => {
                tcp_bytes(Ipv4Slice::from_slice(bytes).map_err(|_| Malformed::Ip)?.payload())
            }
            Some(6) => {
                tcp_bytes(Ipv6Slice::from_slice(bytes).map_err(|_| Malformed::Ip)?.payload())
            }
            _ => Err(Malformed::Ip),
        }?;
        let length = TcpSlice::from_slice(tcp).map_err(|_| Malformed::Tcp)?.header_slice().len();
        let header = tcp.first_chunk().ok_or(Malformed::Tcp)?;
        let start = tcp.as_ptr().addr() - bytes.as_ptr().addr();
        let (bytes, payload) = (&bytes[..start + tcp.len()], start + length);
        Ok(Self { bytes, header, tcp: start, payload, offload: Offload::default() })
    }

    /// This packet, of which `offload` is left to do.
    pub fn left_to(self, offload: Offload) -> Self {
        Self { offload, ..self }
    }

    /// What is left to do of it.
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// The whole packet.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Address and port that it comes from.
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(self.address(Side::Source), self.word::<0>())
    }

    /// Address and port that it goes to.
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.address(Side::Destination), self.word::<2>())
    }

    /// As [`source`](Self::source), quick to compare.
    pub fn source_endpoint(&self) -> Endpoint {
        Endpoint { address: self.packed_address(Side::Source), port: self.word::<0>() }
    }

    /// As [`destination`](Self::destination), quick to compare.
    pub fn destination_endpoint(&self) -> Endpoint {
        Endpoint { address: self.packed_address(Side::Destination), port: self.word::<2>() }
    }

    /// The sequence number of its first payload byte (of the SYN, if it carries one).
    pub fn seq(&self) -> Seq {
        Seq(self.long::<4>())
    }

    /// The next byte that its sender expects; meaningless without [`flags::ACK`].
    pub fn ack(&self) -> Seq {
        Seq(self.long::<8>())
    }

    /// The control bits, see [`flags`].
    pub fn flags(&self) -> u8 {
        self.header[13]
    }

    /// Whether all of the bits `which` are set.
    pub fn has(&self, which: u8) -> bool {
        self.flags() & which == which
    }

    /// The advertised window, as it stands (unscaled).
    pub fn window(&self) -> u16 {
        self.word::<14>()
    }

    /// The urgent pointer, if the packet says that it is meant.
    pub fn urgent(&self) -> Option<u16> {
        self.has(flags::URG).then(|| self.word::<18>())
    }

    /// What it carries.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.payload..]
    }

    /// The timestamps option: the sender's clock, and the echo of the receiver's (RFC 7323).
    pub fn timestamps(&self) -> Option<(u32, u32)> {
        let at = self.option(OPTION_TIMESTAMPS, 10)?.start;
        let long = |i: usize| u32::from_be_bytes(self.bytes[i..i + 4].try_into().unwrap_or([0; 4]));
        Some((long(at), long(at + 4)))
    }

    /// Whether the TCP checksum is right. A receiver discards the packet if not.
    pub fn checksum_is_valid(&self) -> bool {
        let segment = &self.bytes[self.tcp..];
        let sum = Sum16BitWords::new()
            .add_slice(segment)
            .add_2bytes([0, IpNumber::TCP.0])
            .add_4bytes((segment.len() as u32).to_be_bytes()); // an IP packet's
        let addresses = if self.is_v4() { 12..20 } else { 8..40 };
        // What is summed includes the checksum, so the whole is zero.
        sum.add_slice(&self.bytes[addresses]).ones_complement() == 0
    }

    /// Where in the packet the content of the SACK option stands: eight bytes a block.
    fn sack(&self) -> Option<std::ops::Range<usize>> {
        self.option(OPTION_SACK, 10)
    }

    /// The content of option `kind`, of at least `length` bytes with its two-byte head.
    fn option(&self, kind: u8, length: usize) -> Option<std::ops::Range<usize>> {
        let mut at = self.tcp + 20;
        while at < self.payload {
            match self.bytes[at] {
                OPTION_END => return None,
                OPTION_NOP => at += 1,
                found => {
                    let len = usize::from(*self.bytes[..self.payload].get(at + 1)?);
                    if len < 2 || at + len > self.payload {
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

    fn is_v4(&self) -> bool {
        self.bytes[0] >> 4 == 4
    }

    fn address(&self, side: Side) -> IpAddr {
        let packed = self.packed_address(side);
        if self.is_v4() {
            Ipv4Addr::from_bits(packed as u32).into()
        } else {
            Ipv6Addr::from_bits(packed).into()
        }
    }

    fn packed_address(&self, side: Side) -> u128 {
        // An IPv4 header has 20 bytes at least, an IPv6 header 40.
        let source = side == Side::Source;
        if self.is_v4() {
            let at = if source { 12 } else { 16 };
            self.bytes[at..].first_chunk().map_or(0, |b| u128::from(u32::from_be_bytes(*b)))
        } else {
            let at = if source { 8 } else { 24 };
            self.bytes[at..].first_chunk().map_or(0, |b| u128::from_be_bytes(*b))
        }
    }

    fn word<const AT: usize>(&self) -> u16 {
        u16::from_be_bytes([self.header[AT], self.header[AT + 1]])
    }

    fn long<const AT: usize>(&self) -> u32 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| self.header[AT + i]);
        u32::from_be_bytes([a, b, c, d])
    }
}

/// Address and port in one number each. IPv4 addresses are the numbers below 2^32: no connection
/// has an IPv6 address among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub address: u128,
    /// The port.
    pub port: u16,
}

impl From<SocketAddr> for Endpoint {
    fn from(endpoint: SocketAddr) -> Self {
        let address = match endpoint.ip() {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        Self { address, port: endpoint.port() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_SACK: u8 = 5;
const OPTION_TIMESTAMPS: u8 = 8;

fn tcp_bytes<'a>(payload: &etherparse::IpPayloadSlice<'a>) -> Result<&'a [u8], Malformed> {
    match payload {
        p if p.fragmented => Err(Malformed::Fragment),
        p if p.ip_number != IpNumber::TCP => Err(Malformed::NotTcp),
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
    fn fields_are_read_and_padding_is_not_payload() {
        let mut bytes = v4(b"PASV\r\n");
        bytes.extend([0; 6]);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.source(), "10.0.0.2:4000".parse().unwrap());
        assert_eq!(packet.destination(), "10.0.0.1:21".parse().unwrap());
        assert_eq!((packet.seq(), packet.ack(), packet.window()), (Seq(7), Seq(9), 1024));
        assert_eq!(packet.payload(), b"PASV\r\n");
        assert!(packet.has(flags::ACK | flags::PSH) && !packet.has(flags::SYN));
        assert!(packet.checksum_is_valid());
        assert_eq!(packet.timestamps(), None);
        let last = bytes.len() - 7;
        bytes[last] ^= 1;
        assert!(!Packet::parse(&bytes).unwrap().checksum_is_valid());
    }

    #[test]
    fn fragments_and_other_protocols_are_not_parsed() {
        let mut fragment = v4(b"x");
        fragment[6] = 0x20; // more fragments
        assert_eq!(Packet::parse(&fragment).unwrap_err(), Malformed::Fragment);
        let mut udp = v4(b"x");
        udp[9] = 17;
        assert_eq!(Packet::parse(&udp).unwrap_err(), Malformed::NotTcp);
        let mut offset = v4(b"");
        offset[32] = 0xf0; // a data offset past the end
        assert_eq!(Packet::parse(&offset).unwrap_err(), Malformed::Tcp);
        assert_eq!(Packet::parse(&[]).unwrap_err(), Malformed::Ip);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_view_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
                                      version in 4u8..7) {
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | *first & 0xf;
            }
            if let Ok(packet) = Packet::parse(&bytes) {
                let _ = (packet.source(), packet.destination(), packet.timestamps());
                let _ = (packet.sack(), packet.payload(), packet.urgent(), packet.checksum_is_valid());
            }
        }

        #[test]
        fn a_damaged_packet_does_not_make_a_view_panic(at in 0usize..60, value: u8) {
            let mut bytes = v4(b"PORT 10,0,0,2,4,1\r\n");
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(packet) = Packet::parse(&bytes) {
                let _ = (packet.timestamps(), packet.sack(), packet.payload());
            }
        }
    }
}
