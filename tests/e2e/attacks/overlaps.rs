//! Overlapping segments through the real kernel: no client can use them to make its server execute a command that was
//! not inspected.

use super::scene::Scene;
use crate::common::*;

/// An announcement of a third host, which no client may make.
const BOUNCE: &str = "PORT 198,51,100,66,14,180\r\n";

/// Sends crafted `segments` and returns the lines that the server executes. The client's kernel counts `taken` as sent.
fn executed_lines(
    family: Family,
    configuration: &str,
    taken: &str,
    segments: &Value,
) -> Vec<String> {
    let scene = Scene::with(Topology::Routed, configuration, &json!({}));
    let lab = &scene.gateway.lab;
    let sent = json!({"taken": taken, "segments": segments});
    // Wait until the login is complete and its replies are read.
    let steps = [login(), vec![json!({"sleep": 0.2}), sent, json!({"sleep": 0.5})]].concat();
    let plan = json!({"host": lab.server_address(family), "steps": steps});
    scripted_client(&lab.client, &plan).ok();
    assert_eq!(scene.gateway.count("errors"), 0, "{}", scene.gateway.daemon.log());
    scene.server.lines()
}

fn assert_not_executed(lines: &[String]) {
    assert!(!lines.iter().any(|line| line.starts_with("PORT ")), "{lines:?}");
}

/// A packet waits for its predecessor, is dropped by the server because of an old timestamp, and is then overlapped by
/// a later line.
#[test]
fn a_waiting_packet_is_not_overlapped_by_a_later_line() {
    let (first, cut) = ("NOOP\r\n", "NOOP xxxx\r\n");
    let long = format!("SITE xxxxxx{BOUNCE}");
    assert!(long[cut.len()..].starts_with("PORT "));
    let [at, behind] = [first.len(), first.len() + cut.len()];
    let segments = json!([
        [at, long, {"stale": true}],
        [-1, "x"],
        [0, first, {"pause": 0.09}],
        [at, cut],
        [behind, BOUNCE],
    ]);
    for configuration in ["", "queue.workers = 2\n", CONNTRACK] {
        let taken = format!("{first}{long}");
        assert_not_executed(&executed_lines(V4, configuration, &taken, &segments));
    }
}

/// The IPv6 extension headers are longer than most packets.
#[test]
fn a_line_after_long_ipv6_options_is_inspected() {
    let (one, two) = ("SITE ", format!("xxxxxxxxx{BOUNCE}"));
    let segments = json!([
        [one.len(), "NOOP xx\r\n", {"options": 1320, "pause": 0.2}],
        [0, one, {"pause": 0.05}],
        [0, one, {"pause": 0.05}],
        [0, one, {"pause": 0}],
        [one.len(), two],
    ]);
    assert_not_executed(&executed_lines(V6, "", &format!("{one}{two}"), &segments));
}
