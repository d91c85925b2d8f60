//! Super-packets, and packets without a checksum.

use super::*;

const SUPER_PACKET: Offload = Offload { is_super_packet: true, lacks_checksum: true };
const NO_CHECKSUM: Offload = Offload { is_super_packet: false, lacks_checksum: true };

impl Conversation {
    /// Sends `text` of `side` in a packet with this offload state. Returns its replacement.
    fn say_with_offload(
        &mut self,
        offload: Offload,
        side: Side,
        text: &str,
    ) -> (PacketOutcome, Vec<u8>) {
        let mut packet = self.take_next(side, text);
        if offload.lacks_checksum {
            packet[36..38].fill(0x5a);
        }
        let how = PacketMeta { offload, ..PacketMeta::FORWARDED };
        let outcome = self.gateway.queued(self.now, &packet, how);
        let out = if outcome == PacketOutcome::Replace { self.gateway.replacement() } else { &[] };
        (outcome, out.to_vec())
    }
}

fn payload(packet: &[u8]) -> String {
    let packet = Packet::parse(packet).unwrap();
    assert!(packet.checksum_is_valid());
    String::from_utf8(packet.payload().to_vec()).unwrap()
}

#[test]
fn a_missing_checksum_is_accepted_only_with_checksum_offload() {
    for (offload, pinholes) in [(Offload::default(), 0), (NO_CHECKSUM, 1)] {
        let mut talk = Conversation::logged_in();
        let mut packet = talk.next_packet(Side::Client, PORT.as_bytes(), 0);
        packet[36] ^= 1;
        let how = PacketMeta { offload, ..PacketMeta::FORWARDED };
        let outcome = talk.gateway.queued(talk.now, &packet, how);
        assert_eq!(talk.gateway.kernel.open.len(), pinholes);
        assert_eq!(outcome == PacketOutcome::Replace, pinholes == 1);
    }
    let mut talk = Conversation::logged_in();
    let (outcome, out) = talk.say_with_offload(NO_CHECKSUM, Side::Client, PORT);
    assert_eq!(outcome, PacketOutcome::Replace);
    assert_eq!(payload(&out), REWRITTEN.to_owned());
    // Only renumbered: the old checksum is meaningless.
    let (outcome, out) = talk.say_with_offload(NO_CHECKSUM, Side::Client, "NOOP\r\n");
    assert_eq!((outcome, payload(&out)), (PacketOutcome::Replace, "NOOP\r\n".to_owned()));
}

#[test]
fn a_growing_super_packet_stays_whole_and_a_shrinking_one_is_resegmented() {
    let padding = "NOOP\r\n".repeat(500);
    // Shorter than the external address.
    let engine = Engine::new(Policy::default(), Checksums::Verify);
    let mut talk = Conversation::through(engine, "10.0.0.1").log_in();
    let (outcome, out) = talk.say_with_offload(
        SUPER_PACKET,
        Side::Client,
        &format!("{padding}PORT 10,0,0,1,14,178\r\n"),
    );
    assert_eq!(outcome, PacketOutcome::Replace);
    assert_eq!(payload(&out), format!("{padding}PORT 198,51,100,1,14,178\r\n"));
    assert!(talk.gateway.kernel.injected.is_empty());

    let (outcome, _) =
        talk.say_with_offload(SUPER_PACKET, Side::Client, &format!("{padding}PORT 10,0"));
    assert_eq!(outcome, PacketOutcome::Drop);
    let segments: Vec<_> =
        talk.gateway.kernel.injected.iter().map(|packet| payload(packet)).collect();
    assert_eq!(segments.concat(), padding);
    // Super-packets do not change the known MSS.
    assert!(segments.iter().all(|segment| segment.len() <= 536) && segments.len() == 6);
    let mut next = None;
    for packet in &talk.gateway.kernel.injected {
        let packet = Packet::parse(packet).unwrap();
        assert!(next.is_none_or(|next| next == packet.seq()));
        next = Some(packet.seq() + packet.payload().len() as u32);
        assert_eq!(packet.source(), "198.51.100.1:1035".parse().unwrap());
    }
}

#[test]
fn segments_carry_the_flags_of_the_super_packet() {
    let talk = Conversation::logged_in();
    let packet = talk.packet(Side::Client, 7, &[b'x'; 1200], 0);
    let packet = Packet::parse(&packet).unwrap();
    let control = flags::ACK | flags::PSH | flags::FIN | flags::URG | flags::CWR;
    let changed = [b'y'; 1100];
    let header = HeaderEdit { seq: Seq(100), ack: Seq(9), flags: control, window: 9, urgent: 3 };
    let parts = packets::resegment(&packet, &header, &changed, 536, Some);
    let seen: Vec<_> = parts
        .iter()
        .map(|part| {
            let part = Packet::parse(part).unwrap();
            assert!(part.checksum_is_valid());
            (part.seq().0, part.payload().len(), part.flags(), part.urgent())
        })
        .collect();
    let (first, last) = (flags::URG | flags::CWR, flags::PSH | flags::FIN);
    assert_eq!(
        seen,
        [
            (100, 536, flags::ACK | first, Some(3)),
            (636, 536, flags::ACK, None),
            (1172, 28, flags::ACK | last, None),
        ]
    );
    assert_eq!(packets::resegment(&packet, &header, &[], 536, Some).len(), 1);
}
