//! Builds packets: a changed copy of a parsed packet, or a new acknowledgement.

use std::net::{IpAddr, SocketAddr};

use pnet_packet::{ipv4::MutableIpv4Packet, ipv6::MutableIpv6Packet, tcp::MutableTcpPacket};

use super::{OPTION_NOP, OPTION_SACK, Packet, Seq, is_v4, segment_sum, sum};

/// What the TCP header of a changed copy of a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderEdit {
    /// The new sequence number.
    pub seq: Seq,
    /// The new acknowledgement number.
    pub ack: Seq,
    /// The new control bits.
    pub flags: u8,
    /// The new window.
    pub window: u16,
    /// The new urgent pointer.
    pub urgent: u16,
}

impl Packet<'_> {
    /// The edit that leaves the header as it is.
    pub fn unchanged(&self) -> HeaderEdit {
        let (seq, ack, flags, window) = (self.seq(), self.ack(), self.flags(), self.window());
        HeaderEdit { seq, ack, flags, window, urgent: self.urgent().unwrap_or(0) }
    }

    /// Appends a copy with the header of `edit` and this payload, or its own, to `all`, with correct lengths and checksums.
    /// `sack` maps the edges of each SACK block; a block that it maps to `None` is omitted.
    ///
    /// A payload longer than an IP packet can carry is cut; callers stay far below that.
    pub fn append_rebuilt(
        &self,
        edit: &HeaderEdit,
        new_payload: Option<&[u8]>,
        mut sack: impl FnMut([Seq; 2]) -> Option<[Seq; 2]>,
        all: &mut Vec<u8>,
    ) {
        let payload = new_payload.unwrap_or(self.payload());
        let payload = &payload[..payload.len().min(usize::from(u16::MAX) - self.payload_offset)];
        let start = all.len();
        all.extend_from_slice(&self.bytes[..self.payload_offset]);
        all.extend_from_slice(payload);
        let out = &mut all[start..];
        let sack_range = self.sack();
        if let Some(range) = &sack_range {
            map_sack(&mut out[range.start - 2..range.end], &mut sack);
        }
        let header = &self.bytes[self.tcp_offset..self.payload_offset];
        if let Some(mut tcp) = MutableTcpPacket::new(&mut out[self.tcp_offset..]) {
            tcp.set_sequence(edit.seq.0);
            tcp.set_acknowledgement(edit.ack.0);
            tcp.set_flags(edit.flags);
            tcp.set_window(edit.window);
            tcp.set_urgent_ptr(edit.urgent);
        }
        if new_payload.is_none() && !self.offload.lacks_checksum {
            // RFC 1624: only the changed words are summed.
            let mut sum = IncrementalChecksum::new(self.header_u16(16));
            sum.update(self.header_u32(4), edit.seq.0);
            sum.update(self.header_u32(8), edit.ack.0);
            sum.update(self.flags().into(), edit.flags.into());
            sum.update(self.window().into(), edit.window.into());
            sum.update(self.header_u16(18).into(), edit.urgent.into());
            if sack_range.is_some() {
                let long = |word: &[u8; 4]| u32::from_be_bytes(*word);
                let (old, new) = (header.as_chunks().0, out[self.tcp_offset..].as_chunks().0);
                let options = old.iter().zip(new).skip(5);
                options.for_each(|(old, new)| sum.update(long(old), long(new)));
            }
            let updated = sum.checksum();
            out[self.tcp_offset + 16..self.tcp_offset + 18].copy_from_slice(&updated.to_be_bytes());
        } else {
            set_lengths_and_checksums(out, self.tcp_offset);
        }
    }
}

/// What the headers of a built segment say.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// The sender.
    pub source: SocketAddr,
    /// The receiver, of the same family.
    pub destination: SocketAddr,
    /// Sequence number.
    pub seq: Seq,
    /// Acknowledgement number.
    pub ack: Seq,
    /// The window field.
    pub window: u16,
    /// The flags, as in [`flags`](crate::packet::flags).
    pub flags: u8,
}

/// Writes a segment without payload to `out`. `timestamps` are the two values of the option, for a connection that uses
/// it.
pub fn build_acknowledgement(header: &Header, timestamps: Option<(u32, u32)>, out: &mut Vec<u8>) {
    let length = if timestamps.is_some() { 32 } else { 20 };
    let ip = write_headers(header, length, out);
    if let Some((value, echo)) = timestamps {
        out[ip + 20..ip + 24].copy_from_slice(&[OPTION_NOP, OPTION_NOP, 8, 10]);
        out[ip + 24..ip + 28].copy_from_slice(&value.to_be_bytes());
        out[ip + 28..ip + 32].copy_from_slice(&echo.to_be_bytes());
    }
    set_lengths_and_checksums(out, ip);
}

/// Writes a segment with `payload` to `out`.
pub fn build_segment(header: &Header, payload: &[u8], out: &mut Vec<u8>) {
    let tcp = write_headers(header, 20, out);
    out.extend_from_slice(payload);
    set_lengths_and_checksums(out, tcp);
}

/// Writes IP and TCP headers to `out`, the latter of this `length`, without lengths and checksums; TCP options are zero.
/// Returns the offset of the TCP header.
fn write_headers(header: &Header, length: usize, out: &mut Vec<u8>) -> usize {
    let Header { source, destination, seq, ack, window, flags } = *header;
    let ip = if source.is_ipv4() { 20 } else { 40 };
    out.clear();
    out.resize(ip + length, 0);
    if source.is_ipv4() {
        if let Some(mut packet) = MutableIpv4Packet::new(out) {
            packet.set_version(4);
            packet.set_header_length(5);
            packet.set_flags(2); // don't fragment
            packet.set_ttl(64);
            packet.set_next_level_protocol(pnet_packet::ip::IpNextHeaderProtocols::Tcp);
        }
    } else if let Some(mut packet) = MutableIpv6Packet::new(out) {
        packet.set_version(6);
        packet.set_hop_limit(64);
        packet.set_next_header(pnet_packet::ip::IpNextHeaderProtocols::Tcp);
    }
    set_endpoints(out, ip, source, destination);
    if let Some(mut tcp) = MutableTcpPacket::new(&mut out[ip..]) {
        tcp.set_sequence(seq.0);
        tcp.set_acknowledgement(ack.0);
        tcp.set_data_offset((length / 4) as u8);
        tcp.set_flags(flags);
        tcp.set_window(window);
    }
    ip
}

/// Writes a copy of `packet` with other endpoints to `out`, as NAT does.
pub fn build_with_endpoints(
    packet: &Packet<'_>,
    source: SocketAddr,
    destination: SocketAddr,
    out: &mut Vec<u8>,
) {
    out.clear();
    out.extend_from_slice(packet.bytes);
    set_endpoints(out, packet.tcp_offset, source, destination);
    set_lengths_and_checksums(out, packet.tcp_offset);
}

/// Sets the endpoints of a packet whose TCP header is at `tcp`.
fn set_endpoints(packet: &mut [u8], tcp: usize, source: SocketAddr, destination: SocketAddr) {
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            if let Some(mut ip) = MutableIpv4Packet::new(packet) {
                ip.set_source(source);
                ip.set_destination(destination);
            }
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            if let Some(mut ip) = MutableIpv6Packet::new(packet) {
                ip.set_source(source);
                ip.set_destination(destination);
            }
        }
        _ => return, // mixed families: no connection has them
    }
    if let Some(mut tcp) = MutableTcpPacket::new(&mut packet[tcp..]) {
        tcp.set_source(source.port());
        tcp.set_destination(destination.port());
    }
}

/// Maps the blocks of a SACK option; unused room is filled with NOP.
fn map_sack(option: &mut [u8], map: &mut impl FnMut([Seq; 2]) -> Option<[Seq; 2]>) {
    let mut written = 2;
    let mut at = 2;
    while let Some(&[a, b, c, d, e, f, g, h]) = option.get(at..at + 8) {
        let edges = [[a, b, c, d], [e, f, g, h]].map(|edge| Seq(u32::from_be_bytes(edge)));
        if let Some([left, right]) = map(edges) {
            option[written..written + 4].copy_from_slice(&left.0.to_be_bytes());
            option[written + 4..written + 8].copy_from_slice(&right.0.to_be_bytes());
            written += 8;
        }
        at += 8;
    }
    if written == 2 {
        option.fill(OPTION_NOP);
    } else {
        option[0] = OPTION_SACK;
        option[1] = written as u8; // at most 34
        option[written..].fill(OPTION_NOP);
    }
}

/// Sets lengths and checksums of a packet whose TCP header is at `tcp`.
fn set_lengths_and_checksums(packet: &mut [u8], tcp: usize) {
    let length = packet.len() as u16; // callers keep within 65535
    if is_v4(packet) {
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[10..12].fill(0);
        // Behind the header there may be an authentication header.
        let header = usize::from(packet[0] & 0xf) * 4;
        let checksum = complement(sum(&packet[..header]));
        packet[10..12].copy_from_slice(&checksum.to_ne_bytes());
    } else {
        packet[4..6].copy_from_slice(&length.saturating_sub(40).to_be_bytes());
    }
    packet[tcp + 16..tcp + 18].fill(0);
    let checksum = complement(segment_sum(packet, tcp));
    packet[tcp + 16..tcp + 18].copy_from_slice(&checksum.to_ne_bytes());
}

/// The checksum of words with this sum.
fn complement(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A checksum that follows changes of the summed words (RFC 1624 equation 3). A 32-bit value counts as two words.
struct IncrementalChecksum(u64);

impl IncrementalChecksum {
    fn new(checksum: u16) -> Self {
        Self(u64::from(!checksum))
    }

    fn update(&mut self, old: u32, new: u32) {
        self.0 += u64::from(!old) + u64::from(new);
    }

    fn checksum(self) -> u16 {
        complement(self.0)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};

    use super::*;
    use crate::packet::flags;

    /// Checks the checksum with etherparse alone.
    fn assert_valid(bytes: &[u8]) {
        let sliced = SlicedPacket::from_ip(bytes).unwrap();
        let (Some(TransportSlice::Tcp(tcp)), Some(NetSlice::Ipv4(ip))) =
            (&sliced.transport, &sliced.net)
        else {
            panic!("no TCP")
        };
        let (source, destination) = (ip.header().source(), ip.header().destination());
        assert_eq!(tcp.calc_checksum_ipv4(source, destination).unwrap(), tcp.checksum());
    }

    fn packet(sack: [(u32, u32); 2]) -> Vec<u8> {
        let options = [
            TcpOptionElement::Timestamp(1, 2),
            TcpOptionElement::Noop,
            TcpOptionElement::SelectiveAcknowledgement(sack[0], [Some(sack[1]), None, None]),
        ];
        let mut out = Vec::new();
        let ip = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9);
        let tcp = ip.tcp(5, 21, 100, 10).ack(7).options(&options).unwrap();
        tcp.write(&mut out, b"").unwrap();
        out
    }

    fn edit(seq: u32, ack: u32) -> HeaderEdit {
        HeaderEdit { seq: Seq(seq), ack: Seq(ack), flags: flags::ACK, window: 77, urgent: 0 }
    }

    #[test]
    fn sack_blocks_are_mapped_or_removed() {
        let bytes = packet([(50, 60), (70, 80)]);
        let mut out = Vec::new();
        let map = |[l, r]: [Seq; 2]| (l != Seq(50)).then_some([l + 5, r + 5]);
        Packet::parse(&bytes).unwrap().append_rebuilt(&edit(1, 1), None, map, &mut out);
        assert_valid(&out);
        let sliced = SlicedPacket::from_ip(&out).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("no TCP") };
        let options: Vec<_> = tcp.options_iterator().map(Result::unwrap).collect();
        let expected = TcpOptionElement::SelectiveAcknowledgement((75, 85), [None; 3]);
        assert!(options.contains(&expected), "{options:?}");
        let mut out = Vec::new();
        Packet::parse(&bytes).unwrap().append_rebuilt(&edit(1, 1), None, |_| None, &mut out);
        assert_valid(&out);
        assert_eq!(Packet::parse(&out).unwrap().sack(), None);
    }
}
