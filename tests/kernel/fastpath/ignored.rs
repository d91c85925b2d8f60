//! What the program ignores: its sender is elsewhere, its receiver never gets it, or it cannot be read.

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

#[test]
fn packets_of_no_flow_are_ignored() {
    let mut talk = Talk::new(routed());
    let good = talk.frame(Side::Client, "NOOP\r\n");
    let other_port = SocketAddr::new(good.source.ip(), 40001);
    talk.is_ignored(&Frame { source: other_port, ..good.clone() });
    let other_address = SocketAddr::new(ip("10.0.0.3"), good.source.port());
    talk.is_ignored(&Frame { source: other_address, ..good.clone() });
    talk.is_ignored(&Frame { fragment_offset: 1, ..good });
}

/// With these extension headers before the TCP header: their numbers, and 8 bytes each.
fn extended(bytes: &[u8], headers: &[u8]) -> Vec<u8> {
    let mut extended = bytes.to_vec();
    for next in headers.iter().rev() {
        extended[14 + 5] += 8;
        let before = std::mem::replace(&mut extended[14 + 6], *next);
        extended.splice(14 + 40..14 + 40, [before, 0, 0, 0, 0, 0, 0, 0]);
    }
    extended
}

/// They are for the queue: hop-by-hop, routing, fragment, authentication and destination.
#[test]
fn a_packet_with_extension_headers_returns_its_flow_and_is_not_admitted() {
    let mut talk = Talk::new(routed6());
    let line = talk.frame(Side::Client, "EPSV\r\n");
    let key = PinholeKey::new(SERVER6, SocketAddr::new(CLIENT6, 1025));
    talk.scene.set_pinhole(key, pinhole(u64::MAX));
    let (line_bytes, syn_bytes) = (line.to_bytes(), syn(key).to_bytes());
    for headers in [&[0][..], &[43], &[44], &[51], &[60], &[0, 60, 44, 60]] {
        talk.hands_back_bytes(&extended(&line_bytes, headers), 0);
        talk.ignores_bytes(&extended(&syn_bytes, headers), 0);
    }
    for bytes in [&line_bytes, &syn_bytes] {
        let mut jumbo = bytes.clone();
        jumbo[14 + 4..14 + 6].fill(0);
        let mut later_fragment = extended(bytes, &[44]);
        later_fragment[14 + 40 + 3] = 8;
        for ignored in [jumbo, later_fragment, extended(bytes, &[60; 9]), extended(bytes, &[50])] {
            talk.ignores_bytes(&ignored, 0);
        }
    }
    assert!(talk.scene.pinhole(key).is_some());
    talk.inspected(&line);
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
    talk.inspected(&line);
}
