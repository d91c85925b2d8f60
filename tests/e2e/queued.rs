//! What of a session is queued: what says something, and no acknowledgement.

use crate::common::*;

/// Packets that were queued for `transfers`, after the login.
fn queued(topology: Topology, transfers: &[Vec<Value>]) -> u64 {
    let (gateway, _server) = served(topology, "queue.fast-path = \"off\"\n", json!({}));
    let lab = &gateway.lab;
    // With its end, which takes a moment.
    let counted = || {
        wait_for("the session to end", || gateway.count("sessions") == 0);
        gateway.count("packets")
    };
    talk(lab, login()).ok();
    let alone = counted();
    talk(lab, (login(), transfers)).ok();
    let all = counted();
    assert_eq!(gateway.count("pinholes_opened"), transfers.len() as u64);
    assert_eq!(gateway.count("unread_sessions"), 0);
    all - 2 * alone
}

/// PASV, 227, LIST, 150, 226.
#[test]
fn a_passive_transfer_is_five_packets() {
    for topology in [Topology::Masquerade, Topology::Routed] {
        let transfers = vec![passive_transfer("PASV"); 20];
        // Retransmissions, which are many on a busy machine, are queued, too.
        let mut packets = Vec::new();
        while !packets.last().is_some_and(|packets| (95..=105).contains(packets)) {
            assert!(packets.len() < 3, "{packets:?} packets of {} transfers", transfers.len());
            packets.push(queued(topology, &transfers));
        }
    }
}

/// A connection from a control port is no control connection, and one to a control port is.
#[test]
fn a_client_may_have_the_port_of_a_server() {
    const OTHER: u16 = 8021;
    let gateway = gateway_with(Topology::Routed, "queue.fast-path = \"off\"\n");
    let lab = &gateway.lab;
    let accept = format!("insert rule inet gateway forward tcp dport {OTHER} accept");
    lab.gateway.nft(&accept).unwrap();
    let one_port = "echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start\n\
                    echo 21 21 > /proc/sys/net/ipv4/ip_local_port_range\n";
    lab.client.shell(one_port).unwrap();
    let (_other, server) = (
        scripted_server(&lab.server, &json!({"port": OTHER})),
        scripted_server(&lab.server, &json!({})),
    );
    let talk = |port: u16, announcement: &str| {
        let steps = [login(), vec![say(announcement), reply()]].concat();
        let host = lab.server_address(V4);
        let plan = json!({"host": host, "port": port, "steps": steps});
        scripted_client(&lab.client, &plan).ok();
    };
    talk(OTHER, "PORT 192,168,150,80,14,178");
    assert_eq!(gateway.count("packets"), 0);
    talk(21, "PORT 192,168,150,81,14,178");
    assert_eq!(gateway.count("pinholes_refused"), 1);
    assert!(!server.lines().iter().any(|line| line.starts_with("PORT")), "{:?}", server.lines());
}
