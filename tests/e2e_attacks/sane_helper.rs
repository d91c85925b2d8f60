//! The kernel's helper for scanners (nf_conntrack_sane.c), which expectations need where the kernel has no
//! nfnetlink_cthelper. It opens a port when it sees an 8-byte request and its answer: two ends that agree on
//! these would open any port, without a login. No packet of ours may have the request's form.

use ftp_alg_lab::{Family, Host, Topology};
use serde_json::{Value, json};

use crate::{
    common::{connect, gated_client, login},
    scene::Scene,
};

const CONNTRACK: &str = "[pinhole]\nbackend = \"conntrack\"\n";
/// SANE_NET_START and a handle.
const REQUEST: &str = "\0\0\0\u{7}abcd";
/// Success, and port 22.
const ANSWER: &str = "\0\0\0\0\0\0\0\u{16}";

/// The client says `steps`, which end in `line` at the server; that answers as a scanner would. Nothing opens.
fn assert_unheard(topology: Topology, family: Family, line: &str, steps: &[Value]) {
    let plan = json!({"extra": {line: ANSWER}});
    let scene = Scene::with(topology, CONNTRACK, &plan);
    let lab = &scene.gateway.lab;
    let pause = json!({"sleep": 0.3});
    let steps = [&login()[..], steps, &[pause]].concat();
    let plan = json!({"host": lab.server_address(family)});
    let client = scene.client_of(&lab.client, &plan, &steps);
    assert_eq!(scene.gateway.daemon.open_pinholes().unwrap(), [""; 0], "{topology} {family:?}");
    let opened: (&Host, String) = match topology {
        Topology::PublishedServer => (&lab.client, lab.server_address(family).to_string()),
        _ => (&lab.client, lab.server.address(family).to_string()),
    };
    assert_eq!(connect(opened.0, &opened.1, 22), "silent", "{topology} {family:?}");
    drop(client);
}

/// What a client retransmits goes on as it was read, so a packet that is bypassable when it comes is a request
/// when it leaves.
#[test]
fn retransmitted_bytes_never_form_a_sane_request() {
    for (topology, family) in [
        (Topology::Routed, Family::V4),
        (Topology::Routed, Family::V6),
        (Topology::Masquerade, Family::V4),
        (Topology::PublishedServer, Family::V4),
    ] {
        let line = format!("USER {REQUEST}");
        let again = json!({"taken": line, "segments": [[0, line], [5, "XXXXXXXX"]]});
        assert_unheard(topology, family, &line, &[again, json!({"send": "\r\n"})]);
    }
}

/// The same where more was read at once, and where it is retransmitted in parts.
#[test]
fn partly_retransmitted_bytes_never_form_a_sane_request() {
    let line = format!("USER {REQUEST}efgh");
    for parts in [json!([5, "XXXXXXXX"]), json!([3, "XX"])] {
        let again = json!({"taken": line, "segments": [[0, line], parts, [5, "YYYYYYYY"]]});
        assert_unheard(Topology::Routed, Family::V4, &line, &[again, json!({"send": "\r\n"})]);
    }
}

/// Without our rules the helper would be free to act on what connections say that still carry it.
#[test]
fn stopping_the_daemon_removes_the_helper_from_connections() {
    let mut scene = Scene::with(Topology::Routed, CONNTRACK, &json!({"extra": {REQUEST: ANSWER}}));
    let pause = json!({"sleep": 0.3});
    let client = {
        let request = [json!({"send": REQUEST}), pause.clone(), json!({"send": "\r\n"}), pause];
        let steps = [&login()[..], &[json!({"gate": ""})], &request].concat();
        let plan = json!({"host": scene.gateway.lab.server_address(Family::V4), "steps": steps});
        gated_client(&scene.gateway.lab.client, plan)
    };
    assert!(scene.gateway.lab.gateway.connections().unwrap().contains("helper=sane"));
    // The table of a daemon whose connections are in use stays for its successor.
    std::thread::sleep(std::time::Duration::from_millis(3500));
    assert!(scene.gateway.daemon.stop().unwrap().success());
    assert!(!scene.gateway.lab.gateway.connections().unwrap().contains("helper=sane"));
    assert_eq!(client.release().error, None);
    assert_eq!(scene.gateway.daemon.open_pinholes().unwrap(), [""; 0]);
}
