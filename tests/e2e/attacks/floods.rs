//! Floods of connections and announcements: sessions, pinholes and memory stay within their limits, and are released
//! afterwards.

use super::scene::{Scene, with_each_back_end};
use crate::common::*;

/// Prevents a host from sending resets for connections that it does not know.
const MUTE: &str = "table inet mute {
    chain output {
        type filter hook output priority 0;
        tcp flags rst drop
    }
}
";

#[test]
fn a_flood_of_control_connections_leaves_room_for_one_more() {
    let sizes = [("10000", 8_192_u64), ("100000", 65_536)];
    let (connections, most) = &telling(&sizes[..1], &sizes[1..])[0];
    let configuration = format!("policy.max-sessions = {most}\n");
    let scene = Scene::with(Topology::Routed, &configuration, &json!({}));
    let lab = &scene.gateway.lab;
    let daemon = &scene.gateway.daemon;
    scene.assert_transfer();
    let before = daemon.resident_kib().unwrap();
    // Neither the client nor the address that it spoofs answers.
    lab.client2.nft(MUTE).unwrap();
    lab.client2.shell("ip address add 192.168.150.82/24 dev eth0").unwrap();
    let server = lab.server.address(V4).to_string();
    let sources = [lab.client2.address(V4).to_string(), "192.168.150.82".to_owned()];
    let arguments = [&server, "21", *connections, "8000", &sources[0], &sources[1]];
    let flood = lab.client2.script(Script::Flood, &arguments, Duration::from_secs(60)).unwrap();
    println!("flood: {} s", flood.success().unwrap().stdout_text().trim());
    let reached = |status: &Value| status["limits"]["sessions"].as_u64().unwrap_or(0) > 0;
    wait_for("max-sessions to be reached", || reached(&daemon.status().unwrap()));
    scene.assert_transfer();
    let status = daemon.status().unwrap();
    println!("{status}");
    let grown = daemon.resident_kib().unwrap().saturating_sub(before);
    println!("memory has grown by {grown} KiB");
    assert!(grown < 96 << 10, "memory has grown by {grown} KiB");
    assert!(status["sessions"].as_u64().unwrap() <= *most, "{status}");
}

/// Announces thousands of ports at once, spread over `connections` sessions, and reads all replies.
fn flood_of_announcements(back_end: &str, connections: usize) {
    let configuration = format!("policy.max-pinholes-per-client = 64\n{back_end}");
    let scene = Scene::with(Topology::Masquerade, &configuration, &json!({}));
    let lab = &scene.gateway.lab;
    let count = telling(&[2_000], &[10_000])[0] / connections;
    let flood = |at: usize| {
        let first = 20_000 + at * count;
        let send = json!({"send": "PORT 192,168,150,81,{}\r\n", "ports": [first, first + count]});
        let steps = [&login()[..], &[send, json!({"reply": true, "count": count})]].concat();
        scene.client_of(&lab.client2, &json!({"timeout": 240}), &steps)
    };
    let (clients, most) = thread::scope(|scope| {
        let floods: Vec<_> = (0..connections).map(|at| scope.spawn(move || flood(at))).collect();
        let mut most = 0;
        while !floods.iter().all(|flood| flood.is_finished()) {
            // Pinholes that are replaced while they are listed would count twice.
            let daemon = &scene.gateway.daemon;
            signal(daemon, "STOP");
            let open = daemon.open_pinholes();
            signal(daemon, "CONT");
            most = most.max(open.unwrap().len());
            scene.assert_transfer();
            thread::sleep(Duration::from_millis(500));
        }
        let clients: Vec<GatedClient> =
            floods.into_iter().map(|flood| flood.join().unwrap()).collect();
        (clients, most)
    });
    let status = scene.gateway.daemon.status().unwrap();
    println!("at most {most} pinholes open; {status}");
    // Eight pinholes per session, and one or two of the other client.
    assert!(most <= 8 * connections + 2, "{most} pinholes were open at once");
    assert!(most <= 64 + 2, "{most} pinholes were open at once");
    for client in clients {
        assert_eq!(client.release().error, None);
    }
    scene.gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    scene.assert_transfer();
    assert_eq!(scene.gateway.count("errors"), 0);
}

#[test]
fn a_flood_of_announcements_on_one_connection() {
    with_each_back_end(|back_end| flood_of_announcements(back_end, 1));
}

#[test]
fn a_flood_of_announcements_on_twenty_connections() {
    with_each_back_end(|back_end| flood_of_announcements(back_end, 20));
}

/// A server that neither accepts nor refuses leaves each announcement pending.
#[test]
fn all_sessions_of_a_client_share_its_pinhole_limit() {
    let extra = json!({"PORT": "350 And now?"});
    let configuration = "policy.max-pinholes-per-client = 20\n";
    let scene = Scene::with(Topology::Masquerade, configuration, &json!({"extra": extra}));
    let lab = &scene.gateway.lab;
    let clients: Vec<_> = (0..5)
        .map(|at| {
            let ports = [20_000 + at * 10, 20_000 + at * 10 + 10];
            let send = json!({"send": "PORT 192,168,150,81,{}\r\n", "ports": ports});
            let steps = [&login()[..], &[send, json!({"reply": true, "count": 10})]].concat();
            scene.client_of(&lab.client2, &json!({}), &steps)
        })
        .collect();
    assert_eq!(scene.gateway.daemon.open_pinholes().unwrap().len(), 20);
    assert_eq!(scene.gateway.count("pinholes_refused"), 30);
    for client in clients {
        assert_eq!(client.release().error, None);
    }
    scene.gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
}
