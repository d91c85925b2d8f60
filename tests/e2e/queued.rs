//! What of a session is queued: what says something, and no acknowledgement. A client that does not wait for answers is
//! served, too.

use crate::common::{gateway_with, login, reply, say, scripted_client, scripted_server, wait_for};
use ftp_alg_lab::{Family, Topology};
use serde_json::{Value, json};

const PASSIVE_PORT: u16 = 50069;

/// A passive transfer; `between` is said after PASV, before its answer is read.
fn transfer(between: &[Value], answers: usize) -> Vec<Value> {
    let mut steps = vec![say("PASV")];
    steps.extend_from_slice(between);
    steps.extend([reply(), json!({"dial": true, "later": true})]);
    steps.extend(vec![reply(); answers]);
    steps.extend([say("LIST"), reply(), json!({"drain": true}), reply()]);
    steps
}

/// Packets that were queued for `transfers`, after the login.
fn queued(topology: Topology, transfers: &[Vec<Value>]) -> u64 {
    let gateway = gateway_with(topology, "queue.fast-path = \"off\"\n");
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({"passive_port": PASSIVE_PORT}));
    let host = lab.server_address(Family::V4);
    let run = |steps: Vec<Value>| {
        let session = scripted_client(&lab.client, &json!({"host": host, "steps": steps}));
        assert_eq!(session.error, None);
    };
    // With its end, which takes a moment.
    let counted = || {
        wait_for("the session to end", || gateway.daemon.counter("sessions").unwrap() == 0);
        gateway.daemon.counter("packets").unwrap()
    };
    run(login());
    let alone = counted();
    run([login(), transfers.concat()].concat());
    let all = counted();
    assert_eq!(gateway.daemon.counter("pinholes_opened").unwrap(), transfers.len() as u64);
    assert_eq!(gateway.daemon.counter("unread_sessions").unwrap(), 0);
    all - 2 * alone
}

/// PASV, 227, LIST, 150, 226.
#[test]
fn a_passive_transfer_is_five_packets() {
    for topology in [Topology::Masquerade, Topology::Routed] {
        let transfers = vec![transfer(&[], 0); 20];
        let packets = queued(topology, &transfers);
        assert!(
            (95..=105).contains(&packets),
            "{packets} packets of {} transfers",
            transfers.len()
        );
    }
}

#[test]
fn a_client_that_does_not_wait_for_answers_is_served() {
    let noop = [say("NOOP")];
    for transfers in [vec![transfer(&noop, 1); 5], vec![transfer(&[], 0), transfer(&noop, 1)]] {
        // On a busy machine an answer may come before what did not wait for it.
        let packets = queued(Topology::Masquerade, &transfers);
        assert!(packets >= transfers.len() as u64, "{packets} packets");
    }
}

/// A connection from a control port is no control connection, and one to a control port is.
#[test]
fn a_client_may_have_the_port_of_a_server() {
    const OTHER: u16 = 8021;
    let gateway = gateway_with(Topology::Routed, "queue.fast-path = \"off\"\n");
    let lab = &gateway.lab;
    let accept = format!("insert rule inet gateway forward tcp dport {OTHER} accept");
    lab.gateway.nft(&accept).unwrap();
    let one_port = "echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start\n\
                    echo 21 21 > /proc/sys/net/ipv4/ip_local_port_range\n";
    lab.client.shell(one_port).unwrap().success().unwrap();
    let (_other, server) = (
        scripted_server(&lab.server, &json!({"port": OTHER})),
        scripted_server(&lab.server, &json!({})),
    );
    let talk = |port: u16, announcement: &str| {
        let steps = [login(), vec![say(announcement), reply()]].concat();
        let host = lab.server_address(Family::V4);
        let plan = json!({"host": host, "port": port, "steps": steps});
        let session = scripted_client(&lab.client, &plan);
        assert_eq!(session.error, None);
    };
    talk(OTHER, "PORT 192,168,150,80,14,178");
    assert_eq!(gateway.daemon.counter("packets").unwrap(), 0);
    talk(21, "PORT 192,168,150,81,14,178");
    assert_eq!(gateway.daemon.counter("pinholes_refused").unwrap(), 1);
    assert!(!server.lines().iter().any(|line| line.starts_with("PORT")), "{:?}", server.lines());
}
