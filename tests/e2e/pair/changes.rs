//! Gateways change their roles because somebody orders it, or restart.

use super::{
    clients::{STAGES, Servers, Stage, Way, assert_all_done},
    gateways::Pair,
};
use crate::common::*;

#[test]
fn sessions_survive_an_orderly_change_the_change_back_and_restarts() {
    let mut pair = Pair::new("nftables");
    let servers = Servers::start(&pair);
    let kinds = [(Way::Out, "PORT"), (Way::In, "PASV"), (Way::Six, "EPSV")];
    let all = kinds.iter().flat_map(|(way, one)| STAGES.map(|stage| (*way, *one, stage)));
    let mut clients = servers.clients(&pair, all);
    let from = pair.active();
    let epoch = pair.node(from).pair()["epoch"].as_u64().unwrap();
    pair.wait_until_replicated();
    pair.node(from).stop_keepalived();
    pair.wait_for_role(1 - from, "active");
    pair.wait_for_role(from, "standby");
    side_by_side(8, &mut clients, |client| client.finish_first());
    assert_eq!(pair.node(1 - from).pair()["epoch"], epoch + 1);
    pair.node(from).start_keepalived();
    pair.wait_until_replicated();
    pair.node(1 - from).stop_keepalived();
    pair.wait_for_role(from, "active");
    pair.wait_for_role(1 - from, "standby");
    for at in [0, 1] {
        let node = pair.node(at);
        assert_eq!(node.daemon.counter("errors").unwrap(), 0);
        node.daemon.kill();
        node.start_daemon("");
        let (role, count) = if at == from { ("active", clients.len()) } else { ("standby", 0) };
        assert_eq!(
            (&node.pair()["role"], &node.pair()["epoch"]),
            (&json!(role), &json!(epoch + 2))
        );
        assert_eq!(node.daemon.sessions().unwrap().len(), count);
    }
    assert_all_done(clients);
}

#[test]
fn orders_may_be_repeated_and_need_a_pair() {
    let mut pair = Pair::without_orders("nftables");
    let node = pair.node(0);
    for (order, says) in [
        ("deactivate", "already standby"),
        ("activate", "active, epoch 1: took over 0 sessions"),
        ("activate", "already active, epoch 1"),
        ("activate", "already active, epoch 1"),
        ("deactivate", "standby, after epoch 1: left 0 sessions"),
        ("deactivate", "already standby"),
        ("deactivate", "already standby"),
    ] {
        let said = node.order(order);
        assert!(said.starts_with(says), "{order}: {said}");
    }
    node.kill_store();
    let said = node.order("activate");
    assert!(said.contains("; the store cannot be read: "), "{said}");
    wait_for("the problem", || node.has_problem());
    assert!(node.order("deactivate").starts_with("standby, after epoch "));
    // A gateway that is not one of a pair.
    node.daemon.kill();
    let alone = Daemon::start(&executable(), &node.host, "").unwrap();
    for order in ["activate", "deactivate"] {
        assert_fails(&alone.ask(&[order]).unwrap(), 1, "this gateway is not one of a pair");
    }
    assert_eq!(alone.status().unwrap()["pair"], json!(null));
}

/// The elder gateway loses its link to the other one, and learns of it later.
#[test]
fn of_two_active_gateways_the_one_that_was_activated_later_stays_until_it_is_ordered_to_wait() {
    let mut pair = Pair::new("nftables");
    let servers = Servers::start(&pair);
    let kinds = [(Way::Out, "PORT", Stage::Idle), (Way::In, "PASV", Stage::Announced)];
    let mut clients = servers.clients(&pair, kinds);
    for is_cut in [true, false] {
        pair.wait_until_replicated();
        let elder = pair.active();
        let epoch = pair.node(elder).pair()["epoch"].as_u64().unwrap() + 1;
        if is_cut {
            pair.node(elder).set_link("down");
        }
        let said = pair.node(1 - elder).order("activate");
        assert!(said.contains(&format!("epoch {epoch}: took over 2 sessions")), "{said}");
        if is_cut {
            // Only the elder gateway knows it.
            drop(servers.client(&pair, Way::Out, "PASV", Stage::Idle));
            assert_eq!(pair.node(elder).pair()["role"], "active");
            pair.node(elder).set_link("up");
        }
        wait_at_most(20, "the elder one's end", || pair.node(elder).pair()["role"] == "standby");
        let why = format!("activated after this one, with epoch {epoch}");
        wait_for(&why, || pair.node(elder).daemon.log().contains(&why));
        assert_eq!(pair.node(1 - elder).pair()["role"], "active");
        pair.wait_until_replicated();
        // The records of the later one are in both stores.
        assert_eq!([0, 1].map(|at| pair.node(at).stored_sessions(epoch)), [2, 2]);
        assert_eq!([0, 1].map(|at| pair.node(at).pair()["epoch"].clone()), [epoch, epoch]);
        if is_cut {
            pair.node(elder).stop_keepalived();
            wait_for("the order to the active gateway", || {
                pair.node(1 - elder).notified().contains(&format!("already active, epoch {epoch}"))
            });
            side_by_side(2, &mut clients, |client| client.finish_first());
            pair.node(elder).start_keepalived();
        } else {
            // keepalived has left the addresses to the elder one, and orders nothing there.
            pair.node(1 - elder).order("deactivate");
            pair.wait_for_role(elder, "active");
            assert_eq!(pair.node(elder).pair()["epoch"], epoch + 1);
            assert_eq!(pair.node(elder).daemon.sessions().unwrap().len(), 2);
        }
    }
    assert_all_done(clients);
}

/// What comes early waits in the kernel's queue.
#[test]
fn a_standby_reads_no_packets_until_it_is_activated() {
    let mut pair = Pair::new("nftables");
    let standby = 1 - pair.active();
    let number = 11 + standby;
    let (client, outside) = (pair.lab.client.clone(), pair.lab.outsider.clone());
    let _server = scripted_server(&outside, &json!({}));
    let [inner, outer] = [client.address(V6), outside.address(V6)];
    // Both ends send by the waiting gateway.
    client.shell(&format!("ip route add {outer}/128 via fd00:150::{number:x}")).unwrap();
    outside.shell(&format!("ip route add {inner}/128 via 2001:db8:100::{number:x}")).unwrap();
    let node = pair.node(standby);
    node.daemon.kill();
    node.start_daemon("");
    let command = {
        let steps = [login(), ask("NOOP")].concat();
        let plan = json!({"host": outer, "timeout": 60, "steps": steps});
        client.script_command(Script::Client, &[&plan.to_string()]).unwrap()
    };
    let mut session = client.start(command, "early-client").unwrap();
    wait_for("a packet in the queue", || node.waiting_packets() > 0);
    // Several passes of the workers.
    let beats = || node.daemon.status().unwrap()["uptime_seconds"].as_u64().unwrap();
    let begun = beats();
    wait_for("the next second", || beats() > begun);
    assert!(node.waiting_packets() > 0);
    assert_eq!(node.daemon.counter("packets").unwrap(), 0);
    assert_eq!(node.daemon.sessions().unwrap().len(), 0);
    node.order("activate");
    wait_for("the end of the early client", || session.exit_status().is_some());
    let log = session.log();
    assert!(log.contains("200 Noop") && log.contains("\"error\": null"), "{log}");
    assert_eq!(node.waiting_packets(), 0);
}
