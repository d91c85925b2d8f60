//! What the program ignores, because its sender is elsewhere or its receiver never gets it.

use super::{
    frames::*,
    layout::{Flow, Side},
    scene::*,
};

/// Either end, or another host, may have forged it. Or it passes to an interface above this one.
#[test]
fn a_packet_from_where_its_sender_is_not_is_ignored() {
    for (interfaces, side) in
        [([OTHER_INTERFACE, LOOPBACK], Side::Client), ([LOOPBACK, OTHER_INTERFACE], Side::Server)]
    {
        let mut talk = Talk::new(Flow { interface: interfaces, ..routed() });
        if side == Side::Server {
            talk.says(Side::Client, "EPSV");
        }
        let line = if side == Side::Client { "PASV\r\n" } else { "229 (|||3306|)\r\n" };
        let forged = talk.frame(side, line);
        for flags in [ACK | PSH, ACK | FIN, ACK, RST, SYN, SYN | ACK] {
            talk.is_ignored(&Frame { flags, ..forged.clone() });
            talk.is_ignored(&Frame { flags, payload: Vec::new(), ..forged.clone() });
        }
        assert!(talk.scene.pinholes().is_empty());
    }
}

/// The other end never gets such a packet.
#[test]
fn a_line_that_the_kernel_drops_is_ignored() {
    let mut talk = Talk::new(routed());
    let good = talk.frame(Side::Client, "EPSV\r\n");
    for dropped in [
        Frame { ttl: 1, ..good.clone() },
        Frame { ttl: 0, ..good.clone() },
        Frame { wrong_ip_checksum: 0x100, ..good.clone() },
        Frame { destination_mac: [2, 0, 0, 0, 0, 2], ..good.clone() },
        Frame { destination_mac: [0xff; 6], ..good.clone() },
    ] {
        talk.is_ignored(&dropped);
    }
    talk.inspected(&good, b"EPSV\r\n");
}
