//! Conntrack forgets a connection that lives, as after `conntrack -F`. A client can cause that: conntrack takes a RST for
//! the connection's end that follows an acknowledgement with the same sequence number, wherever in the window that is.
//! The server ignores both. The next packet of either end begins a new entry, without the queue mode.

use super::{
    forged_ends::{Case, Connection, forge, mute, unmute},
    scene::Scene,
};
use crate::common::*;

/// What conntrack lists of connections that match.
fn entries(scene: &Scene, options: &str) -> String {
    let command = format!("conntrack -L -p tcp {options} 2>/dev/null");
    scene.gateway.lab.gateway.shell(&command).unwrap().stdout_text()
}

#[test]
fn a_connection_whose_entry_the_server_begins_again_is_inspected() {
    for fast_path in [false, true] {
        let case = Case { fast_path, family: V4 };
        let scene = case.scene(Topology::Routed);
        let lab = &scene.gateway.lab;
        // As for a server in a LAN that may connect to any host.
        lab.gateway.nft("insert rule inet gateway forward tcp sport 21 accept").unwrap();
        let steps =
            [&[say("NOOP"), reply(), gate()][..], &[say("PORT 192,168,150,81,0,22"), reply()]];
        let (mut client, _) = case.log_in(&scene, &steps.concat());
        mute(&lab.server, "tcp sport 21 @ih,0,24 0x323030");
        client.open_gate();
        wait_for("NOOP", || scene.server.lines().iter().any(|line| line == "NOOP"));
        mute(&lab.client, "tcp dport 21");
        lab.gateway.run("conntrack", &["-F"]).unwrap();
        unmute(&lab.server);
        wait_for("the server's retransmission", || {
            !entries(&scene, "--orig-port-src 21").is_empty()
        });
        unmute(&lab.client);
        let session = client.release().ok_in(format!("{case:?}"));
        assert!(session.got(10).starts_with('5'), "{case:?}: {session:?}");
        assert_eq!(scene.announcements(), [""; 0], "{case:?}");
    }
}

/// So is each packet whose SACK blocks are wrong, or whose connection has other numbers for conntrack. A filter that
/// accepts control connections by their port alone lets them pass.
#[test]
fn a_connection_whose_packets_are_invalid_for_conntrack_is_inspected() {
    for fast_path in [false, true] {
        let case = Case { fast_path, family: V4 };
        let scene = case.scene(Topology::Routed);
        let lab = &scene.gateway.lab;
        lab.gateway.nft("insert rule inet gateway forward tcp sport 21 accept").unwrap();
        let steps = [say("PORT 192,168,150,81,0,22"), reply(), say("EPSV"), reply()];
        let (client, _) = case.log_in(&scene, &steps);
        lab.gateway.shell("sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0").unwrap();
        lab.gateway.run("conntrack", &["-F"]).unwrap();
        let session = client.release().ok_in(format!("{case:?}"));
        assert!(session.got(7).starts_with('5'), "{case:?}: {session:?}");
        assert!(session.got(9).starts_with("229"), "{case:?}: {session:?}");
        assert_eq!(scene.announcements(), [""; 0], "{case:?}");
        assert!(lab.gateway.invalid_packets().unwrap() > 0);
    }
}

/// A server discards a RST that conntrack and the gateway obey, as one without the signature of TCP MD5. Both forget the
/// connection after a while, and the client goes on.
#[test]
fn a_connection_is_inspected_whose_server_discards_a_reset() {
    let attack = |fast_path| {
        let case = Case { fast_path, family: V4 };
        let scene = case.scene(Topology::Routed);
        let lab = &scene.gateway.lab;
        let steps = [say("PORT 192,168,150,81,0,22"), reply(), say("PWD"), reply()];
        let (client, connection) = case.log_in(&scene, &steps);
        let chain = "chain input { type filter hook input priority 0; tcp flags rst drop; }";
        lab.server.nft(&format!("table inet deaf {{ {chain}; }}")).unwrap();
        // The gateway forgets the session before: after ten seconds.
        lab.gateway.shell("sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close=16").unwrap();
        let Connection { client: own, server, next } = connection;
        forge(lab, &lab.client, [own, server], next, None);
        wait_for("the end of the entry", || entries(&scene, "--orig-port-dst 21").is_empty());
        let session = client.release().ok_in(format!("{case:?}"));
        assert!(!session.got(7).starts_with('2'), "{case:?}: {session:?}");
        assert_eq!(scene.announcements(), [""; 0], "{case:?}");
        let lines = scene.server.lines();
        assert!(lines.iter().any(|line| line == "PWD"), "{case:?}: {lines:?}");
    };
    thread::scope(|scope| {
        for fast_path in [false, true] {
            scope.spawn(move || attack(fast_path));
        }
    });
}

#[test]
fn an_acknowledgement_that_begins_an_entry_again_sets_its_queue_mode() {
    // From such a reply on acknowledgements are queued.
    let (command, answer) = ("SYST", "215-x\r\n215 y");
    let plan = json!({"extra": {command: answer}});
    let scene = Scene::with(Topology::Routed, "[queue]\nfast-path = \"off\"\n", &plan);
    let lab = &scene.gateway.lab;
    let case = Case { fast_path: false, family: V4 };
    let steps = [say(command), reply(), gate()];
    let (mut client, connection) = case.log_in(&scene, &steps);
    let is_marked = || entries(&scene, "").contains("mark=805306368"); // 0x30000000
    assert!(!is_marked());
    client.open_gate();
    wait_for("the queue mode", is_marked);
    mute(&lab.client, "tcp dport 21");
    lab.gateway.run("conntrack", &["-F"]).unwrap();
    let Connection { client: own, server, next } = connection;
    let numbers = [
        next[0].wrapping_add(command.len() as u32 + 2),
        next[1].wrapping_add(answer.len() as u32 + 2),
    ];
    wait_for("the queue mode of the new entry", || {
        forge(lab, &lab.client, [own, server], numbers, Some(""));
        is_marked()
    });
    unmute(&lab.client);
    assert_eq!(client.release().error, None);
}
