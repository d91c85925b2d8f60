//! Two sessions of one client that announce the same endpoint and wait at the same time: a server that listens at one
//! passive port for all, a client that always announces the same port. Each has a pinhole of its own.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use crate::common::*;

/// Not one that a host takes for a connection of its own.
const PORT: u16 = 25_000;

/// What the later session does while both wait.
#[derive(Clone, Copy, Debug)]
enum Later {
    Waits,
    IsReset,
    AnnouncesAnotherPort,
    IsRefused,
}

/// The announcements of one mode.
struct Announcements {
    /// The one that both sessions make.
    same: String,
    /// One that the server refuses.
    refused: Option<String>,
    other: String,
}

impl Announcements {
    fn passive() -> Self {
        Self { same: "EPSV".to_owned(), refused: None, other: "EPSV 1".to_owned() }
    }

    fn active(client: &Host) -> Self {
        let address = client.address(V4).to_string();
        let port_command =
            |port: u16| format!("PORT {},{},{}", address.replace('.', ","), port / 256, port % 256);
        Self {
            same: port_command(PORT),
            refused: Some(format!("EPRT |1|{address}|{PORT}|")),
            other: port_command(PORT + 1),
        }
    }
}

/// The arrivals of all pinholes.
fn arrivals(gateway: &Gateway) -> BTreeSet<SocketAddr> {
    let rows = gateway.daemon.pinholes().unwrap();
    rows.iter().map(|row| row["arrival"].as_str().unwrap().parse().unwrap()).collect()
}

/// A session that waits at a gate after each of `lines`, and at the end.
fn session(gateway: &Gateway, lines: &[&str], is_reset: bool) -> GatedClient {
    let mut steps = login();
    for line in lines {
        steps.extend([say(line), reply(), gate()]);
    }
    if is_reset {
        steps.push(json!({"abort": true}));
    }
    hold(&gateway.lab, steps)
}

/// Plays both sessions, and connects to each of their ports.
fn play(gateway: &Gateway, announcements: &Announcements, initiator: &Host, later: Later) {
    let Announcements { same, refused, other } = announcements;
    let refused = refused.as_ref().unwrap_or(same);
    let first = session(gateway, &[same], false);
    let of_first = arrivals(gateway);
    let mut second = match later {
        Later::Waits => session(gateway, &[same], false),
        Later::IsReset => session(gateway, &[same], true),
        Later::AnnouncesAnotherPort => session(gateway, &[same, other], false),
        Later::IsRefused => session(gateway, &[refused], false),
    };
    let both = arrivals(gateway);
    match later {
        Later::Waits | Later::IsRefused => {}
        Later::IsReset => {
            second.open_gate();
            wait_for("the reset", || arrivals(gateway).len() == 1);
        }
        Later::AnnouncesAnotherPort => {
            second.open_gate();
            wait_for("the other port in place of the same one", || {
                let now = arrivals(gateway);
                now != both && now.len() == 2
            });
        }
    }
    let now = arrivals(gateway);
    assert!(now.is_superset(&of_first), "{later:?}: {of_first:?}, then {now:?}");
    let expected = if matches!(later, Later::IsReset | Later::IsRefused) { 1 } else { 2 };
    assert_eq!(now.len(), expected, "{later:?}: {now:?}");
    for arrival in now {
        let outcome = connect(initiator, &arrival.ip().to_string(), arrival.port());
        assert_eq!(outcome, "open", "{later:?}: {arrival}");
    }
    for session in [first, second] {
        assert_eq!(session.release().error, None, "{later:?}");
    }
    wait_for("the end of all pinholes", || arrivals(gateway).is_empty());
}

fn listeners(host: &Host) -> [TcpListener; 2] {
    let listen =
        || [PORT, PORT + 1].map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    host.inside(listen).unwrap()
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
        let extra = json!({
            "EPSV": format!("229 here (|||{PORT}|)"),
            "EPSV 1": format!("229 here (|||{}|)", PORT + 1),
            "EPRT": "500 no",
        });
        let _server = scripted_server(&lab.server, &json!({"extra": extra}));
        println!("{topology}, {backend}, fast path {fast_path}: passive");
        let of_server = listeners(&lab.server);
        for later in [Later::Waits, Later::IsReset, Later::AnnouncesAnotherPort] {
            play(&gateway, &Announcements::passive(), &lab.client, later);
        }
        drop(of_server);
        println!("{topology}, {backend}, fast path {fast_path}: active");
        let _of_client = listeners(&lab.client);
        for later in [Later::Waits, Later::IsReset, Later::AnnouncesAnotherPort, Later::IsRefused] {
            play(&gateway, &Announcements::active(&lab.client), &lab.server, later);
        }
    }
}
