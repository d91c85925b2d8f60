//! Overlapping segments, of which the IPv6 extension headers are longer than most packets. wire_cases::crafted_segments
//! of the core has other ones.

use crate::common::*;

#[test]
fn an_announcement_over_a_segment_with_long_options_is_not_executed() {
    let (gateway, server) = served(Topology::Routed, "", json!({}));
    // A third host.
    let (one, two) = ("SITE ", "xxxxxxxxxPORT 198,51,100,66,14,180\r\n");
    // The client's kernel counts `taken` as sent.
    let sent = json!({"taken": format!("{one}{two}"), "segments": [
        [one.len(), "NOOP xx\r\n", {"options": 1320, "pause": 0.2}],
        [0, one, {"pause": 0.05}],
        [0, one, {"pause": 0.05}],
        [0, one, {"pause": 0}],
        [one.len(), two],
    ]});
    // Wait until the login is complete and its replies are read.
    let steps = [login(), vec![json!({"sleep": 0.2}), sent, json!({"sleep": 0.5})]].concat();
    let plan = json!({"host": gateway.lab.server_address(V6), "steps": steps});
    scripted_client(&gateway.lab.client, &plan).ok();
    assert_eq!(gateway.count("errors"), 0, "{}", gateway.daemon.log());
    let lines = server.lines();
    assert!(!lines.iter().any(|line| line.starts_with("PORT ")), "{lines:?}");
}
