//! Two sessions of one client that announce the same endpoint and wait at the same time: a server that listens at one
//! passive port for all, a client that always announces the same port. Each has a pinhole of its own.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use crate::common::*;

/// Not one that a host takes for a connection of its own.
const PORT: u16 = 25_000;

/// The arrivals of all pinholes.
fn arrivals(gateway: &Gateway) -> BTreeSet<SocketAddr> {
    let rows = gateway.daemon.pinholes().unwrap();
    rows.iter().map(|row| row["arrival"].as_str().unwrap().parse().unwrap()).collect()
}

/// Plays two sessions that announce by `line`, and connects to each of their ports.
fn play(gateway: &Gateway, line: &str, [host, initiator]: [&Host; 2]) {
    let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
    let _listener = host.inside(listen).unwrap();
    let session = || hold(&gateway.lab, (login(), ask(line), gate()));
    let first = session();
    let of_first = arrivals(gateway);
    let sessions = [first, session()];
    let both = arrivals(gateway);
    assert!(both.is_superset(&of_first) && both.len() == 2, "{line}: {of_first:?}, then {both:?}");
    for arrival in both {
        let outcome = connect(initiator, &arrival.ip().to_string(), arrival.port());
        assert_eq!(outcome, "open", "{line}: {arrival}");
    }
    for session in sessions {
        assert_eq!(session.release().error, None, "{line}");
    }
    wait_for("the end of all pinholes", || arrivals(gateway).is_empty());
}

#[test]
fn two_sessions_that_wait_at_the_same_port_are_both_served() {
    for (topology, backend, fast_path) in [
        (Topology::Masquerade, "nftables", "off"),
        (Topology::PublishedServer, "nftables", "auto"),
        (Topology::Routed, "conntrack", "off"),
    ] {
        let configuration =
            format!("pinhole.backend = \"{backend}\"\nqueue.fast-path = \"{fast_path}\"\n");
        let gateway = gateway_with(topology, &configuration);
        let lab = &gateway.lab;
        let passive = format!("229 here (|||{PORT}|)");
        let _server = scripted_server(&lab.server, &json!({"extra": {"EPSV": passive}}));
        println!("{topology}, {backend}, fast path {fast_path}");
        play(&gateway, "EPSV", [&lab.server, &lab.client]);
        let own = lab.client.address(V4).to_string().replace('.', ",");
        let active = format!("PORT {own},{},{}", PORT / 256, PORT % 256);
        play(&gateway, &active, [&lab.client, &lab.server]);
    }
}
