//! Conntrack forgets a connection that lives, as after `conntrack -F`. A client can cause that: conntrack takes a RST for
//! the connection's end that follows an acknowledgement with the same sequence number, wherever in the window that is.
//! The server ignores both. The next packet of either end begins a new entry, without the queue mode.

use super::{
    forged_ends::{Connection, forge, log_in, mute, unmute, with_and_without_fast_path},
    scene::announcements,
};
use crate::common::*;

/// A third host's, which the gateway must refuse.
const BOUNCE: &str = "PORT 192,168,150,81,0,22";
/// As for a server in a LAN that may connect to any host.
const ACCEPT_FROM_SERVER: &str = "insert rule inet gateway forward tcp sport 21 accept";

/// What conntrack lists of connections that match.
fn entries(lab: &Lab, options: &str) -> String {
    let command = format!("conntrack -L -p tcp {options} 2>/dev/null");
    lab.gateway.shell(&command).unwrap().stdout_text()
}

fn forget_all(lab: &Lab) {
    lab.gateway.run("conntrack", &["-F"]).unwrap();
}

#[test]
fn a_connection_whose_entry_the_server_begins_again_is_inspected() {
    with_and_without_fast_path(Topology::Routed, |gateway, server| {
        let lab = &gateway.lab;
        lab.gateway.nft(ACCEPT_FROM_SERVER).unwrap();
        let steps = [ask("NOOP"), vec![gate()], ask(BOUNCE)].concat();
        let (mut client, _) = log_in(gateway, &steps);
        mute(&lab.server, "tcp sport 21 @ih,0,24 0x323030");
        client.open_gate();
        wait_for("NOOP", || server.lines().iter().any(|line| line == "NOOP"));
        mute(&lab.client, "tcp dport 21");
        forget_all(lab);
        unmute(&lab.server);
        wait_for("a retransmission", || !entries(lab, "--orig-port-src 21").is_empty());
        unmute(&lab.client);
        let session = client.release().ok();
        assert!(session.got(10).starts_with('5'), "{session:?}");
        assert_eq!(announcements(server), [""; 0]);
    });
}

/// So is each packet whose SACK blocks are wrong, or whose connection has other numbers for conntrack. A filter that
/// accepts control connections by their port alone lets them pass.
#[test]
fn a_connection_whose_packets_are_invalid_for_conntrack_is_inspected() {
    with_and_without_fast_path(Topology::Routed, |gateway, server| {
        let lab = &gateway.lab;
        lab.gateway.nft(ACCEPT_FROM_SERVER).unwrap();
        let (client, _) = log_in(gateway, &[ask(BOUNCE), ask("EPSV")].concat());
        lab.gateway.shell("sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0").unwrap();
        forget_all(lab);
        let session = client.release().ok();
        assert!(session.got(7).starts_with('5'), "{session:?}");
        assert!(session.got(9).starts_with("229"), "{session:?}");
        assert_eq!(announcements(server), [""; 0]);
        assert!(lab.gateway.invalid_packets().unwrap() > 0);
    });
}

/// A server discards a RST that conntrack and the gateway obey, as one without the signature of TCP MD5. Both forget the
/// connection after a while, and the client goes on.
#[test]
fn a_connection_is_inspected_whose_server_discards_a_reset() {
    with_and_without_fast_path(Topology::Routed, |gateway, scripted| {
        let lab = &gateway.lab;
        let (client, connection) = log_in(gateway, &[ask(BOUNCE), ask("PWD")].concat());
        let chain = "chain input { type filter hook input priority 0; tcp flags rst drop; }";
        lab.server.nft(&format!("table inet deaf {{ {chain}; }}")).unwrap();
        // The gateway forgets the session before: after ten seconds.
        lab.gateway.shell("sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close=16").unwrap();
        let Connection { client: own, server, next } = connection;
        forge(lab, [own, server], next, None);
        wait_for("the end of the entry", || entries(lab, "--orig-port-dst 21").is_empty());
        let session = client.release().ok();
        assert!(!session.got(7).starts_with('2'), "{session:?}");
        assert_eq!(announcements(scripted), [""; 0]);
        let lines = scripted.lines();
        assert!(lines.iter().any(|line| line == "PWD"), "{lines:?}");
    });
}

#[test]
fn an_acknowledgement_that_begins_an_entry_again_sets_its_queue_mode() {
    // From such a reply on acknowledgements are queued.
    let (command, answer) = ("SYST", "215-x\r\n215 y");
    let plan = json!({"extra": {command: answer}});
    let (gateway, _server) = served(Topology::Routed, "queue.fast-path = \"off\"\n", plan);
    let lab = &gateway.lab;
    let (mut client, connection) = log_in(&gateway, &[ask(command), vec![gate()]].concat());
    let is_marked = || entries(lab, "").contains("mark=805306368"); // 0x30000000
    assert!(!is_marked());
    client.open_gate();
    wait_for("the queue mode", is_marked);
    mute(&lab.client, "tcp dport 21");
    forget_all(lab);
    let Connection { client: own, server, next } = connection;
    let numbers = [
        next[0].wrapping_add(command.len() as u32 + 2),
        next[1].wrapping_add(answer.len() as u32 + 2),
    ];
    wait_for("the queue mode of the new entry", || {
        forge(lab, [own, server], numbers, Some(""));
        is_marked()
    });
    unmute(&lab.client);
    assert_eq!(client.release().error, None);
}
