//! Super-packets, and packets without a checksum.

use ftp_alg_core::packet::Offload;

use super::{support::ends::Ends, *};

const SUPER_PACKET: Offload = Offload { is_super_packet: true, lacks_checksum: true };
const NO_CHECKSUM: Offload = Offload { is_super_packet: false, lacks_checksum: true };

impl Ends {
    /// The client sends `text` in a packet with this offload state and no checksum. Returns its replacement.
    fn say_with(&mut self, offload: Offload, text: &str) -> (PacketOutcome, String) {
        let mut packet = self.packet(Client, 0, 0, text.as_bytes());
        packet[36..38].fill(0x5a);
        let how = PacketMeta { offload, ..PacketMeta::FORWARDED };
        let (outcome, passed) = self.sim.decided(self.sim.clock(), &packet, how);
        let is_read = outcome == PacketOutcome::Replace;
        self.client += if is_read { text.len() as u32 } else { 0 };
        (outcome, if is_read { text_of(&passed) } else { String::new() })
    }
}

fn text_of(packet: &[u8]) -> String {
    text(Segment::checked(packet).2.payload)
}

#[test]
fn a_missing_checksum_is_accepted_only_with_checksum_offload() {
    let (line, seen) = ("PORT 192,168,150,80,14,178\r\n", "PORT 198,51,100,1,14,178\r\n");
    for (offload, pinholes) in [(Offload::default(), 0), (NO_CHECKSUM, 1)] {
        let mut ends = Ends::new(with(Nat::Masquerade));
        let (outcome, passed) = ends.say_with(offload, line);
        assert_eq!(ends.sim.kernel.pinholes().len(), pinholes);
        if pinholes == 1 {
            assert_eq!((outcome, &*passed), (PacketOutcome::Replace, seen));
            // Only renumbered: the old checksum is meaningless.
            let renumbered = (PacketOutcome::Replace, "NOOP\r\n".to_owned());
            assert_eq!(ends.say_with(offload, "NOOP\r\n"), renumbered);
        }
    }
}

#[test]
fn a_growing_super_packet_stays_whole_and_a_shrinking_one_is_resegmented() {
    let padding = "NOOP\r\n".repeat(500);
    let mut sim = Sim::new(with(Nat::Masquerade));
    // Shorter than the external address.
    sim.begin("10.0.0.1:1035".parse().unwrap());
    sim.play(LOGIN);
    let (client, server) = (sim.client.next_number(), sim.server.next_number());
    let mut ends = Ends { sim, client, server };
    let (_, passed) = ends.say_with(SUPER_PACKET, &format!("{padding}PORT 10,0,0,1,14,178\r\n"));
    assert_eq!(passed, format!("{padding}PORT 198,51,100,1,14,178\r\n"));
    assert!(ends.sim.kernel.injected.is_empty());

    let (outcome, _) = ends.say_with(SUPER_PACKET, &format!("{padding}PORT 10,0"));
    assert_eq!(outcome, PacketOutcome::Drop);
    let segments: Vec<_> =
        ends.sim.kernel.injected.iter().map(|one| Segment::checked(one)).collect();
    let said: Vec<_> = segments.iter().map(|(_, _, segment)| &segment.payload[..]).collect();
    assert_eq!(said.concat(), padding.as_bytes());
    // Super-packets do not change the known MSS.
    assert!(said.iter().all(|said| said.len() <= 536) && said.len() == 6);
    assert!(segments.windows(2).all(|two| two[0].2.end() == two[1].2.seq));
    let external = ends.sim.translation.client_external;
    assert!(segments.iter().all(|(source, _, _)| *source == external));
}
