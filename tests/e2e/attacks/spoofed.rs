//! Packets that an off-path attacker spoofs in the server's name.

use super::{
    forged_ends::Connection,
    scene::{ANNOUNCED, Scene},
};
use crate::common::*;

/// Sends a packet from the outsider with the server's address. `flags` has nping's syntax.
fn spoof(scene: &Scene, port: u16, flags: &str, (seq, ack): (u32, u32), payload: &str) {
    let lab = &scene.gateway.lab;
    let server = lab.server.address(V4).to_string();
    let gateway = lab.gateway.address(V4).to_string();
    let (port, seq, ack) = (port.to_string(), seq.to_string(), ack.to_string());
    let mut arguments = vec!["--send-ip", "-c", "1", "-N", "--tcp", "--win", "500"];
    arguments.extend(["--source-ip", &server, "-g", "21", "-p", &port]);
    arguments.extend(["--flags", flags, "--seq", &seq, "--ack", &ack]);
    let hex: String = payload.bytes().map(|byte| format!("{byte:02x}")).collect();
    if !hex.is_empty() {
        arguments.extend(["--data", &hex]);
    }
    arguments.push(&gateway);
    // On a busy machine nping may end before it sends ("TIMER killed").
    let sends = || {
        let sent = lab.outsider.run("nping", &arguments).unwrap().stdout_text();
        sent.contains("Raw packets sent: 1 ")
    };
    assert!((0..20).any(|_| sends()), "nping sends nothing");
}

/// SYN-ACKs, greetings, resets, replies and acknowledgements of data that was never sent.
#[test]
fn spoofed_packets_change_nothing() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lab = &scene.gateway.lab;
    let outer = Capture::start(&lab.gateway, lab.server_side(), "tcp port 21").unwrap();
    let transfer = active_transfer(lab.client.address(V4), ANNOUNCED);
    // The first announcement needs a sequence adjustment. From then on conntrack accepts segments that are out of
    // window.
    let announced = [say("PORT 192,168,150,80,14,179"), reply(), gate()];
    let client = hold(lab, (login(), &announced, &transfer));
    let [gateway, server] = [&lab.gateway, &lab.server].map(|host| host.address(V4));
    let Connection { client: external, next: [client_next, server_next], .. } =
        Connection::seen(outer, gateway, server);
    let port = external.port();
    let opened = scene.gateway.count("pinholes_opened");
    for offset in [0, 1 << 20, 1 << 30, 1 << 31, 3 << 30] {
        let (seq, ack) = (server_next.wrapping_add(offset), client_next.wrapping_add(offset));
        spoof(&scene, port, "syn,ack", (seq, ack), "");
        let greeting = "220 Welcome\r\n";
        spoof(&scene, port, "ack,psh", (seq.wrapping_add(1), ack), greeting);
    }
    for offset in [1 << 19, 0u32.wrapping_sub(1 << 19), 1 << 21, 1 << 31] {
        let (seq, ack) = (server_next.wrapping_add(offset), client_next);
        for flags in ["rst", "rst,ack", "fin,ack"] {
            spoof(&scene, port, flags, (seq, ack), "");
        }
        for reply in ["421 Go away\r\n", "227 (198,51,100,10,14,180)\r\n"] {
            spoof(&scene, port, "ack,psh", (seq, ack), reply);
        }
        spoof(&scene, port, "ack", (seq, ack.wrapping_add(5000)), "");
    }
    assert_eq!(scene.gateway.count("pinholes_opened"), opened);
    let session = client.release().ok();
    assert_eq!(session.got(12), "the body\r\n");
    assert_eq!(scene.gateway.count("pinholes_opened"), opened + 1);
}
