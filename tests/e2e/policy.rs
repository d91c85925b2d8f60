//! When a pinhole closes, and what is logged of refusals. Whom it admits is in `attacks`.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
};

use crate::common::*;

const PORT: &str = "PORT 192,168,150,80,14,178";

/// In the rules, and in the fast path's program.
#[test]
fn a_reload_closes_what_it_forbids() {
    for fast_path in ["auto", "off"] {
        let configuration = format!(
            "queue.fast-path = \"{fast_path}\"\n{NFTABLES}[policy]\nauth-tls = \"refuse\"\n"
        );
        let (gateway, _server) = served(Topology::Masquerade, &configuration, json!({}));
        let warnings = || gateway.daemon.log().matches("configuration: policy.auth-tls: ").count();
        wait_for("a warning of the configuration", || warnings() == 1);
        let lab = &gateway.lab;
        let client = hold(lab, (login(), ask(PORT), gate(), ask(PORT)));
        assert_eq!(gateway.daemon.open_pinholes().unwrap().len(), 1, "fast path {fast_path}");
        reload(&gateway.daemon, &format!("{configuration}deny-ports = [3762]\n"));
        wait_for("the warning again", || warnings() == 2);
        gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        // The same session announces it again.
        let session = client.release().ok_in(format!("fast path {fast_path}"));
        let answer = session.got(login().len() + 4);
        assert!(answer.contains("Refused by the gateway"), "fast path {fast_path}: {answer}");
        assert_eq!(gateway.count("pinholes_opened"), 1, "fast path {fast_path}");
    }
}

/// The program would admit it again without a reload.
#[test]
fn a_reload_also_forbids_what_a_rule_has_dropped() {
    let Some(gateway) = fast_path_gateway(Topology::Masquerade) else { return };
    let (lab, daemon) = (&gateway.lab, &gateway.daemon);
    // A server that takes zeros, so that the program opens for PORT.
    let _server = scripted_server(&lab.server, &json!({"greeting": "220 (vsFTPd 3.0.3)"}));
    let client = hold(lab, (login(), ask(PORT), gate()));
    let block = "type filter hook forward priority -1; tcp dport 3762 drop;";
    lab.gateway.nft(&format!("table ip block {{ chain forward {{ {block} }}; }}")).unwrap();
    thread::scope(|scope| {
        let external = SocketAddr::from(([198, 51, 100, 1], 3762));
        let limit = scaled_timeout(Duration::from_secs(4));
        let connect = move || TcpStream::connect_timeout(&external, limit);
        let connection = scope.spawn(move || lab.server.inside(connect).unwrap());
        wait_for("the first SYN", || fast_path(daemon)["admitted"] == 1);
        reload(daemon, &format!("policy.deny-ports = [3762]\n{FAST_PATH}"));
        wait_for("the reload", || daemon.log().contains("the new configuration is in use"));
        lab.gateway.nft("delete table ip block").unwrap();
        let error = connection.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    });
    assert_eq!(client.release().error, None);
}

/// As with the kernel's helper.
#[test]
fn a_refused_syn_consumes_its_pinhole() {
    for (topology, backend, fast_path) in [
        (Topology::Masquerade, "nftables", "auto"),
        (Topology::Masquerade, "conntrack", "off"),
        (Topology::Routed, "nftables", "off"),
    ] {
        let what = format!("{topology:?} {backend} {fast_path}");
        let configuration =
            format!("pinhole.backend = \"{backend}\"\nqueue.fast-path = \"{fast_path}\"\n");
        let (gateway, server) = served(topology, &configuration, json!({}));
        let lab = &gateway.lab;
        let mut client =
            hold(lab, (login(), ask("NOOP"), [(ask(PORT), gate()), (ask(PORT), gate())]));
        let (address, port) = host_port(server.lines().last().unwrap());
        assert_eq!(connect(&lab.server, &address, port), "refused", "{what}");
        let listen = || std::net::TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, 3762));
        let _listener = lab.client.inside(listen).unwrap().unwrap();
        assert_eq!(connect_in_vain(&lab.server, &address, port), "silent", "{what}");
        client.open_gate();
        wait_for("the second pinhole", || gateway.count("pinholes_opened") == 2);
        let (address, port) = host_port(server.lines().last().unwrap());
        assert_eq!(connect(&lab.server, &address, port), "open", "{what}");
        assert_eq!(client.release().error, None, "{what}");
    }
}
