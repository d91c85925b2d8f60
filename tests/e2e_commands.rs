//! What the commands show of a daemon that runs, and what they change of it.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

use common::{Gateway, gated_client, gateway, login, reply, say, scripted_server};
use ftp_alg::lab::{Family, Topology};
use serde_json::json;

fn assert_narrow(text: &str) {
    let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "more than 80 columns:\n{}", wide.join("\n"));
}

fn output(gateway: &Gateway, command: &str) -> String {
    gateway.daemon.ask(&[command]).unwrap().success().unwrap().text()
}

#[test]
fn external_endpoints_are_shown_before_anything_is_announced() {
    for (topology, end) in [
        (Topology::Masquerade, "client"),
        (Topology::PublishedServer, "server"),
        (Topology::Routed, ""),
    ] {
        let gateway = gateway(topology);
        let _server = scripted_server(&gateway.lab.server, &json!({}));
        let host = gateway.lab.dialled(Family::V4).to_string();
        let steps = [login(), vec![json!({"gate": ""}), say("NOOP"), reply()]].concat();
        let client = gated_client(&gateway.lab.client, json!({"host": host, "steps": steps}));
        let sessions = gateway.daemon.sessions().unwrap();
        let [session] = sessions.as_slice() else { panic!("{topology}: {sessions:?}") };
        for side in ["client", "server"] {
            let (own, external) = (&session[side], &session[&*format!("{side}_external")]);
            assert_eq!(own != external, side == end, "{topology} {side}: {session}");
        }
        let text = output(&gateway, "sessions");
        assert_eq!(text.contains("\nas "), !end.is_empty(), "{text}");
        assert_narrow(&text);
        assert_eq!(client.release().error, None);
    }
}

#[test]
fn what_is_shown_has_80_columns() {
    let gateway = gateway(Topology::Masquerade);
    let _server = scripted_server(&gateway.lab.server, &json!({}));
    let host = gateway.lab.dialled(Family::V4).to_string();
    let port = [say("PORT 192,168,150,80,14,178"), reply(), json!({"gate": ""})];
    let steps = [login(), port.to_vec()].concat();
    let plan = json!({"host": host, "listen": [3762], "steps": steps});
    let client = gated_client(&gateway.lab.client, plan);
    for command in ["sessions", "pinholes", "status"] {
        assert_narrow(&output(&gateway, command));
    }
    let pinholes = output(&gateway, "pinholes");
    assert!(pinholes.contains("to 192.168.150.80:3762"), "{pinholes}");
    assert_eq!(client.release().error, None);
}
