//! Calm connections: what is harmless is not queued, whatever passes so opens nothing, and a client that does not
//! wait for answers is served as before.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

use common::{gateway_with, login, reply, say, scripted_client, scripted_server, wait_for};
use ftp_alg_core::engine::harmless::is_harmless_command;
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
    let gateway = gateway_with(topology, "");
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({"passive_port": PASSIVE_PORT}));
    let host = lab.dialled(Family::V4);
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
    assert_eq!(gateway.daemon.counter("lost").unwrap(), 0);
    all - 2 * alone
}

#[test]
fn a_passive_transfer_is_one_hop() {
    for topology in [Topology::Masquerade, Topology::Routed] {
        let transfers = vec![transfer(&[], 0); 20];
        let packets = queued(topology, &transfers);
        assert!((20..=24).contains(&packets), "{packets} packets of {} transfers", transfers.len());
    }
}

/// The rules tell what the tables say: a harmless command and its reply are two copies, another ends the calm.
#[test]
fn what_passes_is_what_is_harmless() {
    let gateway = gateway_with(Topology::Masquerade, "");
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    let host = lab.dialled(Family::V4);
    let copies = |steps: &[Value]| {
        let before = gateway.daemon.counter("copies").unwrap();
        let steps = [&login(), steps].concat();
        let session = scripted_client(&lab.client, &json!({"host": host, "steps": steps}));
        assert_eq!(session.error, None);
        wait_for("the session to end", || gateway.daemon.counter("sessions").unwrap() == 0);
        gateway.daemon.counter("copies").unwrap() - before
    };
    let alone = copies(&[]);
    assert_eq!(alone, 6, "USER, PASS, their replies and two FINs");
    let long = |length: usize| format!("SIZE {}", "x".repeat(length - 7));
    let lines = [
        "NOOP", "noop", "NoOp", "TYPE I", "SIZE a,b", "MDTM a.b", "MDTM ", "REST 1", "NOOPS",
        "NOO", "PWD", "cwd /a", "MKD a", "RMD a", "RNTO a", "CWDS a", "CW",
    ];
    let others = [
        "NOOP a b",
        "NOOP  a",
        "NOOP a ",
        " NOOP",
        "SITE a",
        "CWD a b",
        "CWD  a",
        "NOOP \u{e9}",
        "NOOP\ta",
    ];
    let longs = [long(7), long(8), long(47), long(48), long(49), long(80)];
    for line in lines.iter().chain(&others).map(ToString::to_string).chain(longs) {
        let sent = format!("{line}\r\n");
        let expected = if is_harmless_command(sent.as_bytes()) { 2 } else { 0 };
        assert_eq!(copies(&[say(&line), reply()]) - alone, expected, "{line:?}");
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

/// Of lines that are harmless by themselves the server must not get one that begins in the middle of another.
#[test]
fn harmless_lines_that_overlap_make_no_command() {
    let long = "NOOP aaaaaaPORT 198,51,100,66,14,180\r\n";
    let short = "NOOP xxxx\r\n";
    assert!(long[short.len()..].starts_with("PORT "));
    let gateway = gateway_with(Topology::Masquerade, "");
    let lab = &gateway.lab;
    let server = scripted_server(&lab.server, &json!({}));
    let sent = json!({"taken": long, "segments": [[0, short], [0, long]]});
    let steps = [login(), vec![sent, json!({"reply": true, "count": 2})]].concat();
    let plan = json!({"host": lab.dialled(Family::V4), "steps": steps});
    scripted_client(&lab.client, &plan);
    let lines = server.lines();
    assert!(!lines.iter().any(|line| line.starts_with("PORT ")), "{lines:?}");
}
