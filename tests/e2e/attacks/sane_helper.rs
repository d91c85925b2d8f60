//! The kernel's SANE helper (nf_conntrack_sane.c). The conntrack back end needs it for expectations on kernels without
//! nfnetlink_cthelper. The helper opens a port when it sees an 8-byte request and its answer, so two cooperating ends
//! could open any port without a login. Therefore the gateway must never emit a packet that has the form of this
//! request.

use crate::common::*;

/// SANE_NET_START and a handle.
const REQUEST: &str = "\0\0\0\u{7}abcd";
/// The status for success, and port 22.
const ANSWER: &str = "\0\0\0\0\0\0\0\u{16}";

/// The server answers like a scanner. No port may open.
#[test]
fn no_line_becomes_a_sane_request() {
    let end = json!({"send": "\r\n"});
    let pause = json!({"sleep": 0.3});
    // A retransmission is forwarded with the bytes that were inspected first. So a packet without a request could
    // become a request when it is forwarded.
    let user = format!("USER {REQUEST}");
    let overlapping = json!({"taken": user, "segments": [[0, user], [5, "XXXXXXXX"]]});
    let retransmitted = [overlapping, end.clone()];
    // As two ends that agree on it would do.
    let plain = [json!({"send": REQUEST}), pause.clone(), end];
    for (topology, family, line, steps) in [
        (Topology::Routed, V6, &*user, &retransmitted[..]),
        (Topology::Masquerade, V4, &user, &retransmitted),
        (Topology::PublishedServer, V4, &user, &retransmitted),
        (Topology::Routed, V4, REQUEST, &plain),
    ] {
        let answers = json!({"extra": {line: ANSWER}});
        let (gateway, _server) = served(topology, CONNTRACK, answers);
        let lab = &gateway.lab;
        let host = lab.server_address(family);
        let mut plan = plan(lab, (login(), steps, &pause, gate()));
        plan["host"] = json!(host);
        let _client = gated_client(&lab.client, plan);
        let case = format!("{topology} {family}");
        assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0], "{case}");
        assert_eq!(connect_in_vain(&lab.client, &host.to_string(), 22), "silent", "{case}");
    }
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
