//! A flood of connections: sessions and memory stay within their limits.

use super::forged_ends::mute;
use crate::common::*;

#[test]
fn a_flood_of_control_connections_leaves_room_for_one_more() {
    let sizes = [("10000", 8_192_u64), ("100000", 65_536)];
    let (connections, most) = &telling(&sizes[..1], &sizes[1..])[0];
    let configuration = format!("policy.max-sessions = {most}\n");
    let (gateway, _server) = served(Topology::Routed, &configuration, json!({}));
    let (lab, daemon) = (&gateway.lab, &gateway.daemon);
    let assert_transfer = || talk(lab, (login(), port_transfer())).ok();
    assert_transfer();
    let before = daemon.resident_kib().unwrap();
    // Neither the client nor the address that it spoofs answers, not even with a reset.
    mute(&lab.client2, "tcp flags rst");
    lab.client2.shell("ip address add 192.168.150.82/24 dev eth0").unwrap();
    let server = lab.server.address(V4).to_string();
    let sources = [lab.client2.address(V4).to_string(), "192.168.150.82".to_owned()];
    let arguments = [&server, "21", *connections, "8000", &sources[0], &sources[1]];
    let flood = lab.client2.script(Script::Flood, &arguments, Duration::from_secs(60)).unwrap();
    println!("flood: {} s", flood.success().unwrap().stdout_text().trim());
    let reached = |status: &Value| status["limits"]["sessions"].as_u64().unwrap_or(0) > 0;
    wait_for("max-sessions to be reached", || reached(&daemon.status().unwrap()));
    assert_transfer();
    let status = daemon.status().unwrap();
    let grown = daemon.resident_kib().unwrap().saturating_sub(before);
    assert!(grown < 96 << 10, "memory has grown by {grown} KiB");
    assert!(status["sessions"].as_u64().unwrap() <= *most, "{status}");
}
