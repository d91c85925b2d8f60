//! The fast path with real ends: what recurs is inspected at the interfaces and not queued, and nothing else is
//! different.

use crate::common::{passive_transfer as passive, *};

fn count(daemon: &Daemon, name: &str) -> u64 {
    fast_path(daemon)[name].as_u64().unwrap()
}

fn server(lab: &Lab) -> ScriptedServer {
    scripted_server(&lab.server, &json!({"body": "here it is\r\n"}))
}

/// A server that takes zeros, so that the program opens for PORT.
fn vsftpd(lab: &Lab) -> ScriptedServer {
    let plan = json!({"body": "here it is\r\n", "greeting": "220 (vsFTPd 3.0.3)"});
    scripted_server(&lab.server, &plan)
}

/// Asserts that the session received so many files.
fn assert_received(session: &Session, files: usize) {
    let received = session.steps.iter().filter(|(got, _)| got.contains("here it is"));
    assert_eq!(received.count(), files, "{session:?}");
}

/// Plays `transfers` in a session. All must work, and the daemon must learn of each.
#[track_caller]
fn transfer(gateway: &Gateway, transfers: &[Vec<Value>]) {
    transfer_over(V4, gateway, transfers);
}

#[track_caller]
fn transfer_over(family: Family, gateway: &Gateway, transfers: &[Vec<Value>]) -> Session {
    let Gateway { lab, daemon } = gateway;
    let mut plan = plan(lab, (login(), transfers));
    plan["host"] = json!(lab.server_address(family));
    let session = scripted_client(&lab.client, &plan).ok_in(fast_path(daemon));
    assert_received(&session, transfers.len());
    wait_for("all to be read", || gateway.count("pinholes_opened") == transfers.len() as u64);
    for wrong in ["fast_path_mismatches", "errors"] {
        assert_eq!(gateway.count(wrong), 0, "{wrong}: {}", daemon.log());
    }
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
    session
}

/// Asserts that most of so many transfers used the fast path: all but a first few, and those behind a retransmission, as a
/// busy machine makes it. That hands the connection back, and the next lines are queued.
fn assert_most_admitted(daemon: &Daemon, transfers: u64) {
    let (admitted, handed_back) = (count(daemon, "admitted"), count(daemon, "handed_back"));
    let others = transfers.checked_sub(admitted).unwrap();
    assert!(others <= 2 + 3 * handed_back && others <= transfers / 2, "{}", fast_path(daemon));
    // All packets with data of a transfer are about ten.
    let queued = daemon.counter("packets").unwrap();
    assert!(queued < 20 + 12 * others, "{queued} packets were queued: {}", fast_path(daemon));
}

/// A transfer in active mode, to a port below 2560 that is written with few digits.
fn active(port: u16) -> Vec<Value> {
    active_by(&format!("PORT 192,168,150,80,{},{}", port / 256, port % 256), port)
}

fn active_by(announcement: &str, port: u16) -> Vec<Value> {
    vec![say(announcement), reply(), say("LIST"), accept(port), reply(), reply()]
}

/// Each round of transfers has one announcement that an end gets as is said.
#[test]
fn most_transfers_use_the_fast_path() {
    type Round = fn(u16) -> Vec<Vec<Value>>;
    type Start = fn(u16) -> String;
    let with_port: Round = |port| vec![passive("PASV"), active(port), passive("EPSV")];
    // It changes its length: the first one is queued, and adjusts the connection.
    let with_eprt: Round = |port| {
        let extended = active_by(&format!("EPRT |1|192.168.150.80|{port}|"), port);
        vec![extended, passive("PASV"), passive("EPSV")]
    };
    let over_ipv6: Round = |port| {
        let extended = active_by(&format!("EPRT |2|fd00:150::50|{port}|"), port);
        vec![passive("EPSV"), extended]
    };
    let published: Round = |_| vec![passive("PASV"), passive("EPSV")];
    let rows: [(_, _, _, Start); 4] = [
        (Topology::Masquerade, V4, with_port, |_| "PORT 198,51,100,1,".to_owned()),
        (Topology::Masquerade, V4, with_eprt, |port| format!("EPRT |1|198.51.100.1|{port}|")),
        (Topology::Masquerade, V6, over_ipv6, |port| format!("EPRT |2|2001:db8:100::1|{port}|")),
        (Topology::PublishedServer, V4, published, |_| {
            "227 Entering Passive Mode   (198,51,100,1,".to_owned()
        }),
    ];
    for (topology, family, round, start) in rows {
        let Some(gateway) = fast_path_gateway(topology) else { return };
        let server = server(&gateway.lab);
        let transfers: Vec<_> = (1025..1037).flat_map(round).collect();
        let session = transfer_over(family, &gateway, &transfers);
        let expected: Vec<_> = (1025..1037).map(start).collect();
        let got = session.steps.into_iter().map(|(got, _)| got).chain(server.lines());
        let announced: Vec<_> = got.filter(|line| line.starts_with(&expected[0][..4])).collect();
        assert_eq!(announced.len(), expected.len(), "{announced:?}");
        for (line, start) in announced.iter().zip(&expected) {
            assert!(line.starts_with(start), "{line} {start}");
        }
        assert_most_admitted(&gateway.daemon, transfers.len() as u64);
        gateway.assert_tidy();
    }
}

/// Packets of the client's side have no Ethernet header, as with PPPoE, WireGuard and tun.
#[test]
fn interfaces_without_ethernet_headers_have_the_program() {
    if !has_tcx() {
        return;
    }
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let (inside, client) = (lab.spec().plan.inside, &lab.client);
    let own = [V4, V6].map(|family| client.address(family));
    for (host, name) in [(&lab.gateway, "lan"), (client, "eth0")] {
        host.shell(&format!(
            "ip link set {name} down\nip link set {name} name old\nip address flush dev old"
        ))
        .unwrap();
    }
    // Where tun is a module, its device makes it load only if there is a file for it.
    lab.gateway.shell("modprobe tun || true").unwrap();
    let ends = [lab.gateway.namespace(), "lan", client.namespace(), "eth0"];
    let cable = lab.gateway.script_command(Script::Tun, &ends).unwrap();
    let cable = lab.gateway.start(cable, "tun").unwrap();
    wait_for("the cable", || cable.log().contains("ready"));
    let up = |name, [v4, v6]: [std::net::IpAddr; 2]| {
        format!(
            "ip address add {v4}/24 dev {name}\nip address add {v6}/64 dev {name} nodad\nip link set {name} up\n"
        )
    };
    lab.gateway.shell(&up("lan", [inside.v4.into(), inside.v6.into()])).unwrap();
    let routes = "ip route add default dev eth0\nip -6 route add default dev eth0";
    client.shell(&(up("eth0", own) + routes)).unwrap();
    let gateway = Gateway::on(lab, FAST_PATH);
    let daemon = &gateway.daemon;
    let _server = vsftpd(&gateway.lab);
    let extended = |port| active_by(&format!("EPRT |1|{}|{port}|", own[0]), port);
    let round = |port| [passive("PASV"), active(port), passive("EPSV"), extended(port + 100)];
    transfer(&gateway, &(1025..1041).flat_map(round).collect::<Vec<_>>());
    assert_most_admitted(daemon, 64);
    gateway.assert_tidy();
}

#[test]
fn idle_sessions_leave_pinholes_for_other_sessions_of_a_client() {
    let configuration = format!("policy.max-pinholes-per-client = 4\n{FAST_PATH}");
    let gateway = gateway_with(Topology::Masquerade, &configuration);
    let _server = server(&gateway.lab);
    let steps = [login(), vec![gate()], passive("PASV"), passive("PASV")];
    let clients: Vec<_> = (0..8).map(|_| hold(&gateway.lab, &steps)).collect();
    for client in clients.into_iter().rev() {
        assert_received(&client.release().ok(), 2);
    }
    assert_eq!(gateway.count("pinholes_opened"), 16);
    assert_eq!(gateway.count("pinholes_refused"), 0);
}

/// As a rule does that limits new connections. TCP sends the SYN again, which passes without us, too.
#[test]
fn a_syn_that_a_rule_drops_is_admitted_when_tcp_retransmits_it() {
    let active_in_turn: Vec<_> = (0..4).map(|turn| active(2049 + turn)).collect();
    let passive_in_turn = vec![passive("PASV"); 4];
    for (topology, transfers, hook) in [
        (Topology::Routed, &passive_in_turn, "prerouting priority raw"),
        (Topology::Masquerade, &active_in_turn, "forward priority -1"),
    ] {
        let Some(gateway) = fast_path_gateway(topology) else { return };
        let (lab, daemon) = (&gateway.lab, &gateway.daemon);
        let ends = "ip saddr . tcp sport . ip daddr . tcp dport";
        lab.gateway
            .nft(&format!(
                "table ip once {{
                    set seen {{ typeof {ends}; flags dynamic; size 1024; }}
                    chain first {{
                        type filter hook {hook};
                        tcp flags & (syn | ack) != syn accept
                        tcp dport != 21 {ends} != @seen add @seen {{ {ends} }} drop
                    }}
                }}"
            ))
            .unwrap();
        let _server = vsftpd(lab);
        transfer(&gateway, transfers);
        assert!(count(daemon, "admitted") > 0, "{topology} {hook}: {}", fast_path(daemon));
        let seen = lab.gateway.run("nft", &["list", "set", "ip", "once", "seen"]).unwrap();
        let dots_of_five = 5 * 3; // the type, and four elements
        assert_eq!(seen.stdout_text().matches(" . ").count(), dots_of_five, "{seen:?}");
    }
}

#[test]
fn the_fast_path_works_without_a_daemon_and_the_next_reads_it() {
    wait_for("transfers without a daemon", transfers_work_without_a_daemon);
}

/// Returns whether they were in time: the last heartbeat ends after 5 s, and what a retransmission hands back to the
/// queue waits until then.
fn transfers_work_without_a_daemon() -> bool {
    let Some(mut gateway) = fast_path_gateway(Topology::Routed) else { return true };
    let _server = server(&gateway.lab);
    let three = vec![passive("PASV"); 3];
    // The first two transfers have it handed over; three are made while nobody is there.
    let client = hold(&gateway.lab, (login(), &three, gate(), &three));
    wait_for("three transfers", || gateway.count("pinholes_opened") == 3);
    let killed = Instant::now();
    gateway.daemon.kill();
    let session = client.release();
    if killed.elapsed() > Duration::from_secs(4) {
        return false;
    }
    assert_received(&session.ok(), 6);
    gateway.start_again(FAST_PATH);
    // Three opened before are in the journal, and not counted again.
    assert_eq!(gateway.count("pinholes_opened"), 3, "{}", gateway.daemon.log());
    assert_eq!(gateway.count("fast_path_mismatches"), 0);
    assert_eq!(gateway.count("unread_sessions"), 0);
    true
}

/// The table that the first daemon leaves does not say that it has the translations.
#[test]
fn the_fast_path_is_turned_on_while_sessions_live() {
    if !has_tcx() {
        return;
    }
    let off = FAST_PATH.replace("auto", "off");
    let mut gateway = gateway_with(Topology::Masquerade, &off);
    let _server = server(&gateway.lab);
    let more = vec![passive("PASV"); 9];
    let client = hold(&gateway.lab, (login(), passive("PASV"), gate(), &more));
    wait_for("the first transfer", || gateway.count("pinholes_opened") == 1);
    gateway.daemon.stop().unwrap();
    gateway.start_again(FAST_PATH);
    wait_for("the fast path", || fast_path(&gateway.daemon)["state"] == "on");
    assert_received(&client.release().ok_in(fast_path(&gateway.daemon)), 10);
    assert_most_admitted(&gateway.daemon, 9);
}

#[test]
fn only_announcements_are_queued_with_the_back_end_conntrack() {
    if !has_tcx() {
        return;
    }
    let topology = Topology::Masquerade;
    let gateway = gateway_with(topology, FAST_PATH_EXPECTING);
    let daemon = &gateway.daemon;
    let _server = server(&gateway.lab);
    let round = |port| [passive("PASV"), active(port), passive("EPSV")];
    transfer(&gateway, &(1025..1041).flat_map(round).collect::<Vec<_>>());
    // About 180; with destination NAT 100, because what is rewritten is acknowledged in the queue.
    assert!(count(daemon, "lines") > 40, "{}", fast_path(daemon));
    assert!(count(daemon, "handed_back") > 20, "{}", fast_path(daemon));
    assert_eq!((count(daemon, "opened"), count(daemon, "admitted")), (0, 0));
    gateway.assert_tidy();
}

#[test]
fn the_program_closes_its_pinholes_if_the_next_daemon_uses_expectations() {
    let Some(mut gateway) = fast_path_gateway(Topology::Routed) else { return };
    let _server = server(&gateway.lab);
    let announced = (say("PASV"), reply());
    let transfers = (passive("PASV"), passive("PASV"));
    let client = hold(&gateway.lab, (login(), transfers, announced, gate(), ask("NOOP")));
    wait_for("the last announcement", || gateway.count("pinholes_opened") == 3);
    assert_eq!(gateway.daemon.open_pinholes().unwrap().len(), 1);
    gateway.daemon.kill();
    gateway.start_again(FAST_PATH_EXPECTING);
    assert_eq!(fast_path(&gateway.daemon)["state"], "on");
    assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    client.release().ok_in(fast_path(&gateway.daemon));
    assert_eq!(gateway.count("fast_path_mismatches"), 0, "{}", gateway.daemon.log());
}

#[test]
fn rules_have_the_pinholes_of_a_program_whose_translations_are_gone() {
    let Some(mut gateway) = fast_path_gateway(Topology::Masquerade) else { return };
    let _server = vsftpd(&gateway.lab);
    let port = [say("PORT 192,168,150,80,4,9"), reply(), gate()];
    let list = [say("LIST"), accept(1033), reply(), reply()];
    let steps = [login(), passive("PASV"), passive("PASV"), port.to_vec(), list.to_vec()];
    let client = until_on_fast_path(&gateway, ("opened", 2), || hold(&gateway.lab, &steps));
    gateway.daemon.kill();
    gateway.lab.gateway.nft("delete table inet ftp_alg").unwrap();
    gateway.start_again(FAST_PATH);
    assert_eq!(gateway.daemon.open_pinholes().unwrap().len(), 1, "{}", gateway.daemon.log());
    let session = client.release().ok();
    assert_received(&session, 3);
    gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
}
