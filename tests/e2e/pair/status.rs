//! What a pair says of itself, and what it says of its clients to the stores.

use super::gateways::Pair;
use crate::common::*;

#[test]
fn status_has_the_role_of_both_and_why_the_fast_path_is_off() {
    let mut pair = Pair::new("nftables");
    let at = pair.active();
    let status = pair.node(at).daemon.status().unwrap();
    let other = || pair.nodes().each_ref().map(|node| node.pair())[1 - at].clone();
    wait_for("what the standby knows", || {
        other()["same_configuration"] == true && other()["lag"].is_number()
    });
    for (of, role, replica) in [(at, "active", true), (1 - at, "standby", false)] {
        let shown = pair.node(of).pair();
        assert_eq!(shown["role"], role, "{shown}");
        assert_eq!(shown["epoch"], 1, "{shown}");
        assert_eq!(shown["store"], "ok", "{shown}");
        assert_eq!(shown["replica"], replica, "{shown}");
        assert!(shown["lag"].as_f64().unwrap() <= 2.0, "{shown}");
        assert_eq!(shown["peer_version"], status["version"], "{shown}");
        assert_eq!(shown["same_configuration"], true, "{shown}");
    }
    assert_eq!(status["fast_path"]["state"], "off");
    let why = status["fast_path"]["why"].as_str().unwrap();
    assert!(why.contains("one of a pair"), "{why}");
    // Another configuration is said.
    let node = pair.node(1 - at);
    node.daemon.kill();
    node.start_daemon_with("policy.deny-ports = [4000]\n");
    wait_for("another configuration", || pair.node(at).pair()["same_configuration"] == false);
}

/// Each line comes as a whole, so that no part of it must be stored.
#[test]
fn no_user_password_and_path_is_sent_to_the_store() {
    let mut pair = Pair::new("nftables");
    let at = pair.active();
    let _server = scripted_server(&pair.lab.server, &json!({"extra": {"CWD": "250 There"}}));
    let host = pair.node(at).host.clone();
    let command = pair.node(at).redis_cli(&["MONITOR"]);
    let monitor = host.start(command, "monitor").unwrap();
    wait_for("the monitor", || monitor.log().contains("HSET"));
    let client = pair.lab.client.address(V4);
    let clients: Vec<_> = (3762..3766)
        .map(|port| {
            let mut transfer = active_transfer(client, port);
            transfer[2] = say("RETR secret-file");
            let login = login_as(("secret-user", "secret-password"));
            hold(&pair.lab, (login, ask("CWD /secret-directory"), transfer, gate()))
        })
        .collect();
    let sessions = pair.node(at).daemon.sessions().unwrap();
    assert_eq!(sessions[0]["user"], "secret-user", "the daemon itself knows it");
    pair.wait_until_replicated();
    let log = monitor.log();
    assert!(log.matches(":s:").count() > clients.len(), "{log}");
    assert!(!log.to_lowercase().contains("secret"), "{log}");
    for client in clients {
        client.release().ok();
    }
}
