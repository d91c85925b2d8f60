//! What the program ignores: its sender is elsewhere, its receiver never gets it, or it has extension headers.

use std::net::{IpAddr, SocketAddr};

use super::{
    data::{pinhole, syn},
    frames::*,
    layout::{Flow, PinholeKey, Side},
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
    let mut talk = Talk::new(routed6());
    let good = talk.frame(Side::Client, "EPSV\r\n");
    for dropped in [
        Frame { ttl: 1, ..good.clone() },
        Frame { ttl: 0, ..good.clone() },
        Frame { destination_mac: [0x33, 0x33, 0, 0, 0, 1], ..good.clone() },
    ] {
        talk.is_ignored(&dropped);
    }
    talk.inspected(&Frame { ttl: 2, ..good }, b"EPSV\r\n");
}

/// They are for the queue, and so are fragments and jumbo payloads.
#[test]
fn packets_with_extension_headers_are_ignored() {
    let mut talk = Talk::new(routed6());
    let line = talk.frame(Side::Client, "EPSV\r\n");
    let key = PinholeKey::new(SERVER6, SocketAddr::new(CLIENT6, 1025));
    talk.scene.set_pinhole(key, pinhole(u64::MAX));
    for frame in [&line, &syn(key)] {
        let bytes = frame.to_bytes();
        for hop_by_hop_fragment_or_destination in [0, 44, 60] {
            let mut extended = bytes.clone();
            extended[14 + 5] += 8;
            extended[14 + 6] = hop_by_hop_fragment_or_destination;
            extended.splice(14 + 40..14 + 40, [6, 0, 0, 0, 0, 0, 0, 0]);
            talk.ignores_bytes(&extended, 0);
        }
        let mut jumbo = bytes;
        jumbo[14 + 4..14 + 6].fill(0);
        talk.ignores_bytes(&jumbo, 0);
    }
    assert!(talk.scene.pinhole(key).is_some());
    talk.inspected(&line, b"EPSV\r\n");
}

/// The kernel drops it.
#[test]
fn an_ipv6_packet_with_mapped_addresses_belongs_to_no_ipv4_flow() {
    let mapped = |end: SocketAddr| {
        let IpAddr::V4(address) = end.ip() else { panic!("{end}") };
        SocketAddr::new(address.to_ipv6_mapped().into(), end.port())
    };
    let mut talk = Talk::new(routed());
    let line = talk.frame(Side::Client, "PASV\r\n");
    let key = PinholeKey::new(SERVER.ip(), SocketAddr::new(CLIENT.ip(), 1025));
    talk.scene.set_pinhole(key, pinhole(u64::MAX));
    let others = [RST, ACK | FIN, ACK].map(|flags| Frame { flags, ..line.clone() });
    for frame in others.into_iter().chain([syn(key), line.clone()]) {
        let (source, destination) = (mapped(frame.source), mapped(frame.destination));
        talk.is_ignored(&Frame { source, destination, ..frame });
    }
    assert!(talk.scene.pinhole(key).is_some());
    talk.inspected(&line, b"PASV\r\n");
}
