//! The kernel's SANE helper (nf_conntrack_sane.c). The conntrack back end needs it for expectations on kernels without
//! nfnetlink_cthelper. The helper opens a port when it sees an 8-byte request and its answer, so two cooperating ends
//! could open any port without a login. Therefore the gateway must never emit a packet that has the form of this
//! request.

use super::scene::Scene;
use crate::common::*;

/// SANE_NET_START and a handle.
const REQUEST: &str = "\0\0\0\u{7}abcd";
/// The status for success, and port 22.
const ANSWER: &str = "\0\0\0\0\0\0\0\u{16}";

/// The client runs `steps`, from which the server reads `line`. The server answers like a scanner. No port may open.
fn assert_no_request(topology: Topology, family: Family, line: &str, steps: &[Value]) {
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
    assert_eq!(connect_in_vain(opened.0, &opened.1, 22), "silent", "{topology} {family:?}");
    drop(client);
}

/// A retransmission is forwarded with the bytes that were inspected first. So a packet without a request could become a
/// request when it is forwarded.
#[test]
fn retransmitted_bytes_never_form_a_sane_request() {
    for (topology, family) in [
        (Topology::Routed, V4),
        (Topology::Routed, V6),
        (Topology::Masquerade, V4),
        (Topology::PublishedServer, V4),
    ] {
        let line = format!("USER {REQUEST}");
        let overlapping = json!({"taken": line, "segments": [[0, line], [5, "XXXXXXXX"]]});
        assert_no_request(topology, family, &line, &[overlapping, json!({"send": "\r\n"})]);
    }
}

/// As two ends that agree on it would do.
#[test]
fn a_client_sends_no_sane_request() {
    let pause = json!({"sleep": 0.3});
    let steps = [json!({"send": REQUEST}), pause, json!({"send": "\r\n"})];
    assert_no_request(Topology::Routed, V4, REQUEST, &steps);
}

/// Without our rules, the helper would act on connections to which it is still attached.
#[test]
fn stopping_the_daemon_removes_the_helper_from_connections() {
    let plan = json!({"extra": {REQUEST: ANSWER}});
    let (mut gateway, _server) = served(Topology::Routed, CONNTRACK, plan);
    let pause = json!({"sleep": 0.3});
    let request = [json!({"send": REQUEST}), pause.clone(), json!({"send": "\r\n"}), pause];
    let announced = ask("PORT 192,168,150,80,14,178");
    let client = hold(&gateway.lab, (login(), announced, gate(), request));
    let host = gateway.lab.gateway.clone();
    assert!(host.connections().unwrap().contains("helper=sane"));
    assert!(host.ruleset().unwrap().contains("ct helper"));
    assert_eq!(gateway.daemon.open_pinholes().unwrap().len(), 1);
    // A daemon whose connections are in use leaves its table to its successor, so wait until they are idle.
    thread::sleep(Duration::from_millis(3500));
    assert!(gateway.daemon.stop().unwrap().success());
    assert!(!host.connections().unwrap().contains("helper=sane"));
    assert!(!host.ruleset().unwrap().contains("ftp_alg"));
    client.release().ok();
    assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0]);
}
