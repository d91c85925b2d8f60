//! What goes to the stores, what `status` says of them, and a store that does not do its work.

use super::gateways::Pair;
use crate::common::*;

#[test]
fn status_has_the_role_of_both_and_why_the_fast_path_is_off() {
    let mut pair = Pair::new("nftables");
    let at = pair.active();
    let status = pair.node(at).daemon.status().unwrap();
    for (of, role, replica) in [(at, "active", true), (1 - at, "standby", false)] {
        wait_for(&format!("the status of the {role} gateway"), || {
            let shown = pair.nodes()[of].pair();
            (shown["role"] == role && shown["epoch"] == 1 && shown["store"] == "ok")
                && shown["peer_version"] == status["version"]
                && (shown["replica"] == replica && shown["same_configuration"] == true)
                && shown["lag"].as_f64().is_some_and(|lag| lag <= 2.0)
        });
    }
    assert_eq!(status["fast_path"]["state"], "off");
    let why = status["fast_path"]["why"].as_str().unwrap();
    assert!(why.contains("one of a pair"), "{why}");
    // Another configuration is said.
    let node = pair.node(1 - at);
    node.daemon.kill();
    node.start_daemon("policy.deny-ports = [4000]\n");
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
    pair.node(at).store(&["ECHO", "the end"]);
    wait_for("all commands", || monitor.log().contains("the end"));
    let log = monitor.log();
    assert!(log.matches(":s:").count() > clients.len(), "{log}");
    assert!(!log.to_lowercase().contains("secret"), "{log}");
    for client in clients {
        client.release().ok();
    }
}

/// A store that is stopped answers nothing, and one that is full refuses each record.
#[test]
fn a_store_that_is_stopped_or_full_delays_no_client_for_long_and_gets_all_records() {
    let mut pair = Pair::new("nftables");
    let at = pair.active();
    let epoch = pair.node(at).pair()["epoch"].as_u64().unwrap();
    let _server = scripted_server(&pair.lab.server, &json!({}));
    let address = pair.lab.client.address(V4);
    // Whose store has it, and whether it is full or stopped.
    let faults = [(at, true), (at, false), (1 - at, false)];
    let set = |(of, is_full): (usize, bool), on: bool| {
        let node = &pair.nodes()[of];
        match is_full {
            true => _ = node.store(&["CONFIG", "SET", "maxmemory", if on { "1" } else { "0" }]),
            false => node.signal_store(if on { "STOP" } else { "CONT" }),
        }
    };
    // Behind each gate it transfers.
    let start = |number: u16, gates: u16| {
        let ports = (0..gates).map(|gate| 3762 + 16 * gate + number);
        let steps = ports.map(|port| (gate(), ask("NOOP"), active_transfer(address, port)));
        hold(&pair.lab, (login(), steps.collect::<Vec<_>>(), gate()))
    };
    let mut clients: Vec<_> = (0..4).map(|number| start(number, 3)).collect();
    pair.wait_until_replicated();
    for (case, fault) in faults.into_iter().enumerate() {
        set(fault, true);
        side_by_side(4, &mut clients, GatedClient::reach_next_gate);
        // One that begins meanwhile.
        clients.push(start(4 + case as u16, 2 - case as u16));
        let active = &pair.nodes()[at];
        wait_for("the fault", || match fault.0 == at {
            true => active.has_problem(),
            false => active.pair()["replica"] == false,
        });
        set(fault, false);
        wait_for("no problem", || !active.has_problem());
        pair.wait_until_replicated();
        let stored = pair.nodes().each_ref().map(|node| node.stored_sessions(epoch));
        assert_eq!(stored, [clients.len() as u64; 2], "{fault:?}");
    }
    let mut longest = (String::new(), 0.0);
    for client in clients {
        // A gate gets nothing, and takes as long as the test holds it.
        let steps = client.release().ok().steps.into_iter().filter(|(got, _)| !got.is_empty());
        longest = steps.fold(longest, |most, step| if step.1 > most.1 { step } else { most });
    }
    // Some milliseconds; on a busy machine a client waits for a processor.
    println!("no reply to a client took longer than {} ms: {:?}", longest.1, longest.0);
}
