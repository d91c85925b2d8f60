//! Reads a queue, and reads and changes the packets in it with another implementation than ours.

use std::time::{Duration, Instant};

use ftp_alg::kernel::queue::{Queue, QueueVerdict};

/// Reads the queue until `done`, deciding by `decide`.
pub fn serve(
    queue: &mut Queue,
    mut decide: impl FnMut(&[u8]) -> PacketAction,
    mut done: impl FnMut() -> bool,
) {
    let end = Instant::now() + Duration::from_secs(10);
    queue.set_receive_timeout(Duration::from_millis(20)).unwrap();
    while !done() {
        assert!(Instant::now() < end, "no end after 10 s");
        queue.wait().unwrap();
        let (packets, mut verdicts) = queue.batch();
        for packet in packets {
            let action = decide(packet.payload);
            let verdict = match &action {
                PacketAction::Pass => QueueVerdict::Accept,
                PacketAction::Drop => QueueVerdict::Drop,
                PacketAction::Replace(with) => QueueVerdict::Replace(with),
            };
            verdicts.verdict(packet.id, verdict, None).unwrap();
        }
        verdicts.flush().unwrap();
    }
}

pub enum PacketAction {
    Pass,
    Drop,
    Replace(Vec<u8>),
}

/// What a segment carries; whether it is a pure acknowledgement, or ends its direction.
pub struct Segment {
    pub payload: Vec<u8>,
    pub pure: bool,
    pub fin: bool,
}

/// Dissects a packet.
pub fn tcp(packet: &[u8]) -> Segment {
    let sliced = etherparse::SlicedPacket::from_ip(packet).unwrap();
    let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP") };
    let pure = tcp.payload().is_empty() && !(tcp.syn() || tcp.fin() || tcp.rst());
    Segment { payload: tcp.payload().to_vec(), pure, fin: tcp.fin() }
}

/// The packet with another payload of the same length.
pub fn with_payload(packet: &[u8], payload: &[u8]) -> Vec<u8> {
    let headers = etherparse::PacketHeaders::from_ip_slice(packet).unwrap();
    let (
        Some(etherparse::NetHeaders::Ipv4(ip, _)),
        Some(etherparse::TransportHeader::Tcp(mut tcp)),
    ) = (headers.net, headers.transport)
    else {
        panic!("no TCP over IPv4")
    };
    tcp.checksum = tcp.calc_checksum_ipv4(&ip, payload).unwrap();
    let mut bytes = Vec::new();
    ip.write_raw(&mut bytes).unwrap();
    tcp.write(&mut bytes).unwrap();
    bytes.extend_from_slice(payload);
    bytes
}
