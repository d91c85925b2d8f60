//! IPv4 and IPv6 connections whose addresses have the same numeric value are separate connections.

use ftp_alg_core::engine::Translation;

use super::*;

/// The IPv6 addresses that have the numeric value of an IPv4 address: IPv4-compatible (`::a.b.c.d`) and IPv4-mapped
/// (`::ffff:a.b.c.d`).
fn lookalikes(endpoint: SocketAddr) -> Vec<SocketAddr> {
    let IpAddr::V4(address) = endpoint.ip() else { panic!("not IPv4") };
    [address.to_ipv6_compatible(), address.to_ipv6_mapped()]
        .map(|address| SocketAddr::new(address.into(), endpoint.port()))
        .into()
}

/// The packets that an attacker sends over IPv6 on the lookalike addresses of an IPv4 connection, in both directions.
fn lookalike_packets(translation: &Translation) -> Vec<Vec<u8>> {
    let base = Segment { window: 1000, ..Segment::default() };
    let syn_ack = Segment { seq: 9000, ack: 5000, flags: flags::SYN | flags::ACK, ..base.clone() };
    let data = |payload: &[u8]| Segment {
        seq: 1001,
        ack: 70_001,
        flags: flags::ACK | flags::PSH,
        payload: payload.into(),
        ..base.clone()
    };
    let segments = [
        syn_ack,
        data(b"QUIT\r\n"),
        data(b"227 =1,2,3,4,5,6\r\n"),
        data(b"GET / HTTP/1.1\r\n"),
        Segment { flags: flags::RST, ..data(b"") },
        Segment { flags: flags::FIN | flags::ACK, ..data(b"") },
    ];
    let ends = lookalikes(translation.client).into_iter().zip(lookalikes(translation.server));
    let both = |(client, server)| {
        let packets = |s: &Segment| [s.packet(client, server), s.packet(server, client)];
        segments.iter().flat_map(packets).collect::<Vec<_>>()
    };
    ends.flat_map(both).collect()
}

#[test]
fn ipv6_lookalike_packets_do_not_affect_an_ipv4_connection() {
    for nat in NATS {
        let mut sim = Sim::logged_in(with(nat));
        let t = nat.translation(false);
        let sessions = sim.engine().sessions.count();
        for packet in lookalike_packets(&t) {
            let verdict = sim.decided(Instant::now(), &packet, PacketMeta::FORWARDED).0;
            assert_eq!(verdict, PacketOutcome::Accept);
        }
        assert_eq!(sim.kernel.queue_mode, None, "{nat:?}");
        assert!(sim.engine().sessions.count() > sessions, "those have sessions of their own");
        sim.assert_inspected();
        sim.play("< 200 ok");
        assert_eq!((sim.timeouts(), sim.dropped), (0, 0), "{nat:?}");
        // Nor one that begins later.
        sim.connect_again();
        sim.play(LOGIN);
        sim.assert_inspected();
    }
}
