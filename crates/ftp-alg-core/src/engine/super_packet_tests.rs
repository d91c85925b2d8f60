//! Super-packets, and packets without a checksum.

use super::*;

const JOINED: Offload = Offload { is_super_packet: true, lacks_checksum: true };
const UNSUMMED: Offload = Offload { is_super_packet: false, lacks_checksum: true };

impl Conversation {
    /// Sends `text` of `side` in a packet with this offload state. Returns its replacement.
    fn say_left_to(
        &mut self,
        offload: Offload,
        side: Side,
        text: &str,
    ) -> (PacketOutcome, Vec<u8>) {
        let me = usize::from(side == Side::Server);
        let mut packet = self.build(side, self.next[me], text.as_bytes(), false);
        self.next[me] += text.len() as u32;
        if offload.lacks_checksum {
            packet[36..38].fill(0x5a);
        }
        let how = PacketMeta { offload, ..PacketMeta::default() };
        let fate = self.gateway.queued(self.now, &packet, how);
        let out = if fate == PacketOutcome::Replace { self.gateway.replacement() } else { &[] };
        (fate, out.to_vec())
    }
}

fn payload(packet: &[u8]) -> String {
    let packet = Packet::parse(packet).unwrap();
    assert!(packet.checksum_is_valid());
    String::from_utf8(packet.payload().to_vec()).unwrap()
}

#[test]
fn a_packet_without_a_checksum_is_read_only_where_it_gets_one() {
    let port = "PORT 192,168,150,80,14,178\r\n";
    for (offload, pinholes) in [(Offload::default(), 0), (UNSUMMED, 1)] {
        let mut talk = Conversation::logged_in();
        let seq = talk.next[0];
        let mut packet = talk.build(Side::Client, seq, port.as_bytes(), false);
        packet[36] ^= 1;
        let how = PacketMeta { offload, ..PacketMeta::default() };
        let fate = talk.gateway.queued(talk.now, &packet, how);
        assert_eq!(talk.gateway.kernel.open.len(), pinholes);
        assert_eq!(fate == PacketOutcome::Replace, pinholes == 1);
    }
    let mut talk = Conversation::logged_in();
    let (fate, out) = talk.say_left_to(UNSUMMED, Side::Client, port);
    assert_eq!(fate, PacketOutcome::Replace);
    assert_eq!(payload(&out), "PORT 198,51,100,1,14,178\r\n".to_owned());
    // Only renumbered: the old checksum is meaningless.
    let (fate, out) = talk.say_left_to(UNSUMMED, Side::Client, "NOOP\r\n");
    assert_eq!((fate, payload(&out)), (PacketOutcome::Replace, "NOOP\r\n".to_owned()));
}

#[test]
fn a_joined_packet_that_grows_stays_one_and_one_that_shrinks_goes_on_in_parts() {
    let others = "NOOP\r\n".repeat(500);
    // Shorter than the external address.
    let engine = Engine::new(Policy::default(), Checksums::Verify);
    let mut talk = Conversation::through(engine, "10.0.0.1").log_in();
    let (fate, out) =
        talk.say_left_to(JOINED, Side::Client, &format!("{others}PORT 10,0,0,1,14,178\r\n"));
    assert_eq!(fate, PacketOutcome::Replace);
    assert_eq!(payload(&out), format!("{others}PORT 198,51,100,1,14,178\r\n"));
    assert!(talk.gateway.kernel.injected.is_empty());

    let (fate, _) = talk.say_left_to(JOINED, Side::Client, &format!("{others}PORT 10,0"));
    assert_eq!(fate, PacketOutcome::Drop);
    let segments: Vec<_> =
        talk.gateway.kernel.injected.iter().map(|packet| payload(packet)).collect();
    assert_eq!(segments.concat(), others);
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
fn parts_begin_and_end_as_the_whole_does() {
    let talk = Conversation::logged_in();
    let packet = talk.build(Side::Client, 7, &[b'x'; 1200], false);
    let packet = Packet::parse(&packet).unwrap();
    let control = flags::ACK | flags::PSH | flags::FIN | flags::URG | flags::CWR;
    let changed = [b'y'; 1100];
    let edit =
        Edit { seq: Seq(100), ack: Seq(9), payload: Some(&changed), flags: control, urgent: 3 };
    let parts = resegment::resegment(&packet, &edit, 536, Some);
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
    let nothing = Edit { payload: Some(&[]), ..edit };
    assert_eq!(resegment::resegment(&packet, &nothing, 536, Some).len(), 1);
}
