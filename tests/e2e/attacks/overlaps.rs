//! Overlapping segments through the real kernel: no client can use them to make its server execute a command that was
//! not inspected. wire_cases::crafted_segments of the core has all of them.

use super::scene::Scene;
use crate::common::*;

/// An announcement of a third host, which no client may make.
const BOUNCE: &str = "PORT 198,51,100,66,14,180\r\n";

#[test]
fn an_announcement_in_overlapping_segments_is_not_executed() {
    // A packet waits for its predecessor, is dropped by the server because of an old timestamp, and is then overlapped
    // by a later line.
    let (first, cut) = ("NOOP\r\n", "NOOP xxxx\r\n");
    let long = format!("SITE xxxxxx{BOUNCE}");
    assert!(long[cut.len()..].starts_with("PORT "));
    let [at, behind] = [first.len(), first.len() + cut.len()];
    let waiting = json!([
        [at, long, {"stale": true}],
        [-1, "x"],
        [0, first, {"pause": 0.09}],
        [at, cut],
        [behind, BOUNCE],
    ]);
    // The IPv6 extension headers are longer than most packets.
    let (one, two) = ("SITE ", format!("xxxxxxxxx{BOUNCE}"));
    let long_options = json!([
        [one.len(), "NOOP xx\r\n", {"options": 1320, "pause": 0.2}],
        [0, one, {"pause": 0.05}],
        [0, one, {"pause": 0.05}],
        [0, one, {"pause": 0}],
        [one.len(), two],
    ]);
    // The client's kernel counts `taken` as sent.
    for (family, taken, segments) in
        [(V4, format!("{first}{long}"), waiting), (V6, format!("{one}{two}"), long_options)]
    {
        let scene = Scene::new(Topology::Routed, &json!({}));
        let lab = &scene.gateway.lab;
        let sent = json!({"taken": taken, "segments": segments});
        // Wait until the login is complete and its replies are read.
        let steps = [login(), vec![json!({"sleep": 0.2}), sent, json!({"sleep": 0.5})]].concat();
        let plan = json!({"host": lab.server_address(family), "steps": steps});
        scripted_client(&lab.client, &plan).ok();
        assert_eq!(scene.gateway.count("errors"), 0, "{}", scene.gateway.daemon.log());
        let lines = scene.server.lines();
        assert!(!lines.iter().any(|line| line.starts_with("PORT ")), "{lines:?}");
    }
}
