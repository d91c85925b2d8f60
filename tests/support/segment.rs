//! Segments as bytes: built and judged by etherparse alone, so that the engine's packet code is
//! not verified with itself.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use ftp_alg::packet::flags;

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
    pub payload: Vec<u8>,
}

impl Segment {
    pub fn has(&self, which: u8) -> bool {
        self.flags & which == which
    }

    /// The packet that carries it.
    pub fn packet(&self, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let builder = match (source.ip(), destination.ip()) {
            (IpAddr::V4(s), IpAddr::V4(d)) => PacketBuilder::ipv4(s.octets(), d.octets(), 64),
            (IpAddr::V6(s), IpAddr::V6(d)) => PacketBuilder::ipv6(s.octets(), d.octets(), 64),
            _ => panic!("two families"),
        };
        let mut tcp = builder.tcp(source.port(), destination.port(), self.seq, self.window);
        if self.has(flags::SYN) {
            tcp = tcp.syn();
        }
        if self.has(flags::FIN) {
            tcp = tcp.fin();
        }
        if self.has(flags::RST) {
            tcp = tcp.rst();
        }
        if self.has(flags::PSH) {
            tcp = tcp.psh();
        }
        if self.has(flags::ACK) {
            tcp = tcp.ack(self.ack);
        }
        if self.has(flags::URG) {
            tcp = tcp.urg(self.urgent);
        }
        let mut options = Vec::new();
        if let Some((value, echo)) = self.timestamps {
            options.push(TcpOptionElement::Timestamp(value, echo));
        }
        if let Some((first, rest)) = self.sack.split_first() {
            let mut blocks = [None; 3];
            for (slot, block) in blocks.iter_mut().zip(rest) {
                *slot = Some(*block);
            }
            options.push(TcpOptionElement::SelectiveAcknowledgement(*first, blocks));
        }
        let mut bytes = Vec::new();
        tcp.options(&options).unwrap().write(&mut bytes, &self.payload).unwrap();
        bytes
    }

    /// Reads a packet, all lengths and checksums of which must be right.
    pub fn judged(bytes: &[u8]) -> (SocketAddr, SocketAddr, Self) {
        let sliced = SlicedPacket::from_ip(bytes).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("no TCP") };
        let (source, destination, checksum): (IpAddr, IpAddr, _) = match sliced.net.as_ref() {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header();
                let computed = header.to_header().calc_header_checksum();
                assert_eq!(computed, header.header_checksum(), "IPv4 header checksum");
                assert_eq!(usize::from(header.total_len()), bytes.len(), "IPv4 total length");
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                    tcp.calc_checksum_ipv4(header.source(), header.destination()),
                )
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header = ip.header();
                let length = usize::from(header.payload_length()) + 40;
                assert_eq!(length, bytes.len(), "IPv6 payload length");
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                    tcp.calc_checksum_ipv6(header.source(), header.destination()),
                )
            }
            other => panic!("no IP: {other:?}"),
        };
        assert_eq!(checksum.unwrap(), tcp.checksum(), "TCP checksum");
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let mut segment = Self {
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            flags: flag(tcp.fin(), flags::FIN)
                | flag(tcp.syn(), flags::SYN)
                | flag(tcp.rst(), flags::RST)
                | flag(tcp.psh(), flags::PSH)
                | flag(tcp.ack(), flags::ACK)
                | flag(tcp.urg(), flags::URG),
            window: tcp.window_size(),
            urgent: tcp.urgent_pointer(),
            payload: tcp.payload().to_vec(),
            ..Self::default()
        };
        for option in tcp.options_iterator() {
            match option.unwrap() {
                TcpOptionElement::Timestamp(value, echo) => {
                    segment.timestamps = Some((value, echo))
                }
                TcpOptionElement::SelectiveAcknowledgement(first, rest) => {
                    segment.sack =
                        std::iter::once(first).chain(rest.into_iter().flatten()).collect();
                }
                _ => {}
            }
        }
        let source = SocketAddr::new(source, tcp.source_port());
        let destination = SocketAddr::new(destination, tcp.destination_port());
        (source, destination, segment)
    }
}
