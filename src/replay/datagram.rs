//! Reads the endpoints of any IP packet in a capture, and changes them.
//!
//! A packet may be complete, cut by the snap length, or a fragment. The engine's `packet` module accepts only complete
//! TCP segments. Here every packet must be readable as far as possible, so that the written capture has all packets.
//!
//! Checksums of complete packets are computed again, because a capture may have packets before the network card set
//! the checksum. Checksums of incomplete packets are updated (RFC 1624) if they were captured.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Ipv6ExtensionSlice, Ipv6Header, LaxIpSlice, checksum::Sum16BitWords};

/// The transport protocols that have ports, or a checksum that includes the addresses.
pub const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// The endpoints and the layout of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramLayout {
    /// The source endpoint; port 0 if the port was not captured.
    pub source: SocketAddr,
    /// The destination endpoint; port 0 if the port was not captured.
    pub destination: SocketAddr,
    /// The transport protocol.
    pub protocol: u8,
    /// The offset of the transport header.
    pub transport: usize,
    /// The length of the packet on the wire.
    pub length: usize,
    /// Whether the packet is a fragment without the transport header.
    pub is_later_fragment: bool,
    /// Whether the packet is a fragment.
    pub is_fragment: bool,
}

impl DatagramLayout {
    /// Parses the headers of `bytes`; `None` if they are incomplete or inconsistent.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (ip, _) = LaxIpSlice::from_slice(bytes).ok()?;
        let (length, is_later_fragment) = match &ip {
            LaxIpSlice::Ipv4(v4) => {
                let length = match v4.header().total_len() {
                    0 => bytes.len().min(0xffff), // the network card would have set it (segmentation offload)
                    length => length.into(),
                };
                (length, v4.header().fragments_offset().value() > 0)
            }
            LaxIpSlice::Ipv6(v6) => {
                let is_later = |extension| match extension {
                    Ipv6ExtensionSlice::Fragment(it) => it.fragment_offset().value() > 0,
                    _ => false,
                };
                let length = usize::from(v6.header().payload_length()) + Ipv6Header::LEN;
                (length, v6.extensions().clone().into_iter().any(is_later))
            }
        };
        let payload = ip.payload();
        let layout = Self {
            source: SocketAddr::new(ip.source_addr(), 0),
            destination: SocketAddr::new(ip.destination_addr(), 0),
            protocol: payload.ip_number.0,
            transport: payload.payload.as_ptr().addr() - bytes.as_ptr().addr(),
            length,
            is_later_fragment,
            is_fragment: payload.fragmented,
        };
        (layout.transport <= length).then(|| layout.with_ports(bytes))
    }

    /// Whether `bytes`, from which the layout was parsed, are the complete packet.
    pub fn is_whole(&self, bytes: &[u8]) -> bool {
        bytes.len() >= self.length && !self.is_fragment
    }

    fn with_ports(mut self, bytes: &[u8]) -> Self {
        if matches!(self.protocol, TCP | UDP) && !self.is_later_fragment {
            let at = self.transport;
            if let (Some(source), Some(destination)) = (word(bytes, at), word(bytes, at + 2)) {
                self.source.set_port(source);
                self.destination.set_port(destination);
            }
        }
        self
    }

    /// The offset of the transport checksum, if this packet has one.
    fn checksum_at(&self) -> Option<usize> {
        let offset = match self.protocol {
            _ if self.is_later_fragment => return None,
            TCP => 16,
            UDP => 6,
            ICMPV6 => 2,
            _ => return None,
        };
        Some(self.transport + offset)
    }
}

/// Sets the length of an IPv4 packet whose length the network card would have set.
pub fn fill_in_length(bytes: &mut [u8]) {
    if bytes.len() <= 0xffff && bytes.first().is_some_and(|b| b >> 4 == 4) && bytes.len() >= 20 {
        let length = bytes.len() as u16; // checked above
        if bytes[2..4] == [0, 0] {
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
        }
    }
}

/// Changes the endpoints of a packet to `source` and `destination`, which must have the same IP version, and updates
/// the checksums.
pub fn readdress(
    bytes: &mut [u8],
    layout: &DatagramLayout,
    source: SocketAddr,
    destination: SocketAddr,
) {
    for (index, end) in [(0, source), (1, destination)] {
        match end.ip() {
            IpAddr::V4(v4) => overwrite(bytes, layout, 12 + 4 * index, &v4.octets()),
            IpAddr::V6(v6) => overwrite(bytes, layout, 8 + 16 * index, &v6.octets()),
        }
        if matches!(layout.protocol, TCP | UDP) && !layout.is_later_fragment {
            overwrite(bytes, layout, layout.transport + 2 * index, &end.port().to_be_bytes());
        }
    }
    if source.is_ipv4()
        && let Some(&first) = bytes.first()
        && let Some(header) = bytes.get_mut(..usize::from(first & 0xf) * 4)
    {
        header[10..12].fill(0);
        let checksum = checksum(Sum16BitWords::new().add_slice(header));
        header[10..12].copy_from_slice(&checksum);
    }
    if layout.is_whole(bytes) {
        set_checksum(bytes, layout);
    }
}

/// Overwrites the bytes at `at` if they were captured, and updates the transport checksum as if it covered them.
pub fn overwrite(bytes: &mut [u8], layout: &DatagramLayout, at: usize, new: &[u8]) {
    let Some(place) = bytes.get_mut(at..at + new.len()) else { return };
    let removed: Vec<u8> = place.iter().map(|byte| !byte).collect();
    place.copy_from_slice(new);
    let Some(at) = layout.checksum_at() else { return };
    let Some(before) = word(bytes, at) else { return };
    if !(layout.protocol == UDP && before == 0) {
        let sum = Sum16BitWords::new().add_2bytes((!before).to_be_bytes());
        let after = transport_checksum(layout, sum.add_slice(&removed).add_slice(new));
        bytes[at..at + 2].copy_from_slice(&after);
    }
}

fn set_checksum(bytes: &mut [u8], layout: &DatagramLayout) {
    let Some(at) = layout.checksum_at() else { return };
    let v4 = layout.source.is_ipv4();
    match word(bytes, at) {
        Some(0) if layout.protocol == UDP && v4 => return, // RFC 768: no checksum
        Some(_) if at + 2 <= layout.length => bytes[at..at + 2].fill(0),
        _ => return,
    }
    let addresses = if v4 { &bytes[12..20] } else { &bytes[8..40] };
    let segment = &bytes[layout.transport..layout.length];
    let pseudo = Sum16BitWords::new()
        .add_slice(addresses)
        .add_4bytes((segment.len() as u32).to_be_bytes()) // at most that of an IP packet
        .add_2bytes([0, layout.protocol]);
    let checksum = transport_checksum(layout, pseudo.add_slice(segment));
    bytes[at..at + 2].copy_from_slice(&checksum);
}

/// The transport checksum as it stands in a packet. Zero would say that a UDP datagram has none (RFC 768).
fn transport_checksum(layout: &DatagramLayout, sum: Sum16BitWords) -> [u8; 2] {
    match checksum(sum) {
        [0, 0] if layout.protocol == UDP => [0xff; 2],
        checksum => checksum,
    }
}

/// The checksum as it stands in a packet.
fn checksum(sum: Sum16BitWords) -> [u8; 2] {
    sum.ones_complement().to_ne_bytes()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn datagram(v6: bool, udp: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let builder = if v6 {
            PacketBuilder::ipv6([1; 16], [2; 16], 9)
        } else {
            PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
        };
        if udp {
            builder.udp(5, 53).write(&mut out, payload).unwrap();
        } else {
            builder.tcp(5, 21, 100, 10).ack(7).write(&mut out, payload).unwrap();
        }
        out
    }

    fn ends(v6: bool) -> [SocketAddr; 2] {
        let ends = if v6 { ["[fd00::1]:7", "[fd00::2]:8"] } else { ["192.0.2.1:7", "192.0.2.2:8"] };
        ends.map(|end| end.parse().unwrap())
    }

    /// Whether the checksums are correct: with what they are of, the sum is zero.
    fn checksum_is_right(bytes: &[u8]) -> bool {
        let layout = DatagramLayout::parse(bytes).unwrap();
        let v4 = layout.source.is_ipv4();
        let segment = &bytes[layout.transport..];
        let pseudo = Sum16BitWords::new()
            .add_slice(if v4 { &bytes[12..20] } else { &bytes[8..40] })
            .add_4bytes((segment.len() as u32).to_be_bytes())
            .add_2bytes([0, layout.protocol]);
        let is_right = |sum: Sum16BitWords| sum.ones_complement() == 0;
        (!v4 || is_right(Sum16BitWords::new().add_slice(&bytes[..20])))
            && is_right(pseudo.add_slice(segment))
    }

    proptest! {
        #[test]
        fn readdressed_packet_has_a_valid_checksum(v6: bool, udp: bool, junk: u8,
            payload in proptest::collection::vec(any::<u8>(), 0..50)) {
            let mut bytes = datagram(v6, udp, &payload);
            let layout = DatagramLayout::parse(&bytes).unwrap();
            bytes[layout.checksum_at().unwrap()] = junk | 1;
            bytes.extend([0xa5; 3]); // padding of the link
            let [source, destination] = ends(v6);
            readdress(&mut bytes, &layout, source, destination);
            let bytes = &bytes[..layout.length];
            prop_assert!(checksum_is_right(bytes));
            let now = DatagramLayout::parse(bytes).unwrap();
            prop_assert_eq!((now.source, now.destination), (source, destination));
        }

        #[test]
        fn cut_packet_has_the_checksum_of_the_complete_packet(v6: bool, udp: bool, cut in 0usize..40) {
            let whole = datagram(v6, udp, &[7; 60]);
            let mut part = whole[..whole.len() - cut].to_vec();
            let layout = DatagramLayout::parse(&part).unwrap();
            let [source, destination] = ends(v6);
            readdress(&mut part, &layout, source, destination);
            part.extend(&whole[part.len()..]);
            prop_assert!(checksum_is_right(&part));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
                                  v6: bool, cut in 0usize..120) {
            if let Some(first) = bytes.first_mut() {
                *first = if v6 { 0x60 } else { 0x45 };
            }
            fill_in_length(&mut bytes);
            if let Some(layout) = DatagramLayout::parse(&bytes) {
                let [source, destination] = ends(v6);
                readdress(&mut bytes, &layout, source, destination);
                bytes.truncate(cut);
                readdress(&mut bytes, &layout, source, destination);
            }
        }
    }

    /// Its checksum would be zero after a change.
    #[test]
    fn a_udp_datagram_keeps_its_checksum() {
        let mut bytes = datagram(false, true, b"x");
        let layout = DatagramLayout::parse(&bytes).unwrap();
        let at = layout.checksum_at().unwrap();
        let port = layout.transport;
        // The sum of checksum and port stays the same, so that this port makes it zero.
        let sum = !word(&bytes, at).unwrap();
        let (wanted, carry) = word(&bytes, port).unwrap().overflowing_sub(sum);
        let wanted = wanted.wrapping_sub(u16::from(carry));
        overwrite(&mut bytes, &layout, port, &wanted.to_be_bytes());
        assert_eq!(word(&bytes, at), Some(0xffff));
    }

    #[test]
    fn later_fragment_has_no_ports() {
        let mut bytes = datagram(false, false, b"x");
        bytes[7] = 9;
        let layout = DatagramLayout::parse(&bytes).unwrap();
        assert!(layout.is_later_fragment && !layout.is_whole(&bytes));
        assert_eq!((layout.source.port(), layout.destination.port()), (0, 0));
    }

    #[test]
    fn offloaded_length_is_filled_in() {
        let mut bytes = datagram(false, false, b"xyz");
        let length = bytes[2..4].to_vec();
        bytes[2..4].fill(0);
        fill_in_length(&mut bytes);
        assert_eq!(bytes[2..4], length);
    }
}
