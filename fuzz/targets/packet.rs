//! Packets: arbitrary bytes are parsed or rejected, and packets built from them are valid for etherparse.
//!
//! The input has 16 bytes of changes (the last one is the length of the new payload), the new payload and the packet.

#![no_main]

use std::net::SocketAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ftp_alg_core::packet::{
    Header, HeaderEdit, Packet, Seq, build_acknowledgement, build_with_endpoints, flags,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((change, data)) = data.split_first_chunk::<16>() else { return };
    let &[flags, how, u0, u1, s0, s1, s2, s3, a0, a1, a2, a3, shift, port0, port1, length] = change;
    let (payload, bytes) = data.split_at(usize::from(length).min(data.len()));
    let Ok(packet) = Packet::parse(bytes) else { return };
    agrees(&packet, bytes);

    let (seq, ack) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([a0, a1, a2, a3]));
    let payload = (how & 1 != 0).then_some(payload);
    let edit = HeaderEdit {
        seq: Seq(seq),
        ack: Seq(ack),
        flags,
        window: u16::from_be_bytes([a0, s0]),
        urgent: u16::from_be_bytes([u0, u1]),
    };
    let shifted = |edges: [Seq; 2]| {
        let drops = how & 2 != 0 && edges[0].0 & 1 != 0;
        (!drops).then(|| edges.map(|edge| edge + u32::from(shift)))
    };
    let mut out = Vec::new();
    packet.append_rebuilt(&edit, payload, shifted, &mut out);
    rebuilt(&packet, &edit, payload, &out);

    out.clear();
    packet.append_rebuilt(&packet.unchanged(), None, Some, &mut out);
    rebuilt(&packet, &packet.unchanged(), None, &out);

    let source = SocketAddr::new(packet.destination().ip(), u16::from_be_bytes([port0, port1]));
    let destination = packet.source();
    build_with_endpoints(&packet, source, destination, &mut out);
    let copy = valid(&out);
    assert_eq!((copy.source(), copy.destination()), (source, destination));
    assert_eq!((copy.seq(), copy.payload()), (packet.seq(), packet.payload()));

    let timestamps = packet.timestamps();
    let (seq, ack) = (Seq(seq), Seq(ack));
    let header = Header { source, destination, seq, ack, window: 7, flags: flags::ACK };
    build_acknowledgement(&header, timestamps, &mut out);
    let made = valid(&out);
    assert_eq!((made.source(), made.destination()), (source, destination));
    assert_eq!((made.seq(), made.ack(), made.window()), (seq, ack, 7));
    assert_eq!((made.timestamps(), made.payload()), (timestamps, &b""[..]));
});

/// Checks that etherparse reads the same fields.
fn agrees(packet: &Packet<'_>, bytes: &[u8]) {
    let sliced = SlicedPacket::from_ip(bytes).expect("etherparse reads it as well");
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("no TCP") };
    let (source, destination) = match sliced.net.as_ref() {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into())
        }
        other => panic!("no IP: {other:?}"),
    };
    assert_eq!(packet.source(), SocketAddr::new(source, tcp.source_port()));
    assert_eq!(packet.destination(), SocketAddr::new(destination, tcp.destination_port()));
    let (seq, ack) = (tcp.sequence_number(), tcp.acknowledgment_number());
    assert_eq!((packet.seq(), packet.ack()), (Seq(seq), Seq(ack)));
    assert_eq!(packet.window(), tcp.window_size());
    assert_eq!(packet.urgent(), tcp.urg().then_some(tcp.urgent_pointer()));
    assert_eq!(packet.payload(), tcp.payload());
    assert_eq!(packet.checksum_is_valid(), tcp_sum(packet.bytes()) == 0xffff);
}

/// Checks that `out` is `packet` with the header of `edit` and this payload, or its own, and its checksum as valid as
/// before.
fn rebuilt(packet: &Packet<'_>, edit: &HeaderEdit, payload: Option<&[u8]>, out: &[u8]) {
    let made = match payload {
        Some(payload) => {
            let made = valid(out);
            assert_eq!(made.payload(), payload);
            made
        }
        None => {
            let made = Packet::parse(out).expect("a changed packet can be parsed");
            assert_eq!(made.checksum_is_valid(), packet.checksum_is_valid());
            assert_eq!(made.payload(), packet.payload());
            made
        }
    };
    assert_eq!((made.seq(), made.ack(), made.flags()), (edit.seq, edit.ack, edit.flags));
    assert_eq!((made.source(), made.destination()), (packet.source(), packet.destination()));
    assert_eq!((made.window(), made.timestamps()), (edit.window, packet.timestamps()));
}

/// Checks both checksums and all lengths.
fn valid(bytes: &[u8]) -> Packet<'_> {
    if bytes[0] >> 4 == 4 {
        let header = &bytes[..usize::from(bytes[0] & 0xf) * 4];
        assert_eq!(sum(0, header), 0xffff, "IPv4 header checksum");
    }
    assert_eq!(tcp_sum(bytes), 0xffff, "TCP checksum");
    let packet = Packet::parse(bytes).expect("a built packet can be parsed");
    assert_eq!(packet.bytes().len(), bytes.len(), "the IP header's length");
    packet
}

/// The sum over a segment and its pseudo-header, by etherparse's slices alone.
fn tcp_sum(bytes: &[u8]) -> u16 {
    let sliced = SlicedPacket::from_ip(bytes).expect("a packet");
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("no TCP") };
    let addresses = if bytes[0] >> 4 == 4 { &bytes[12..20] } else { &bytes[8..40] };
    let length = (tcp.slice().len() as u32).to_be_bytes(); // of one packet
    let pseudo = sum(sum(6, addresses), &length);
    sum(pseudo, tcp.slice())
}

/// The ones' complement sum of 16-bit words (RFC 1071).
fn sum(start: u16, bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    let mut sum = u64::from(start) + bytes.chunks(2).map(word).sum::<u64>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16 // folded
}
