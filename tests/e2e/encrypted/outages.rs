//! What is open when the daemon, its rules or conntrack's entries go in the middle of a session, and are there again.

use super::*;

/// A session in the middle of a download, that then makes another one.
struct Running {
    scene: Scene,
    client: GatedClient,
    sum: String,
}

impl Running {
    fn new(topology: Topology) -> Self {
        Self::within(Scene::new(topology, ServerKind::Vsftpd, ClientTls::Explicit))
    }

    fn within(scene: Scene) -> Self {
        let body = large_file();
        scene.server.put("large", &body).unwrap();
        let sum = checksum(&scene.lab().gateway, &body);
        let rest = (end_download(), reply());
        let begin = begin_download("PASV", "large");
        let client = scene.client(V4, (&begin, gate(), &rest, gate(), &begin, &rest));
        scene.assert_open("before");
        Self { scene, client, sum }
    }

    /// Asserts that the ports are open to the client alone, that the running download ends well, and that another one does.
    #[track_caller]
    fn assert_goes_on(self, case: &str) {
        let Self { scene, client, sum } = self;
        wait_for("the ports", || !scene.gateway.daemon.open_pinholes().unwrap().is_empty());
        scene.assert_open(case);
        let session = client.release().ok_in(case);
        let got = session.steps.iter().filter(|(got, _)| *got == sum).count();
        assert_eq!(got, 2, "{case}: {:?}", session.steps);
        scene.wait_until_closed(case);
        scene.gateway.assert_tidy();
    }
}

#[test]
fn the_ports_stay_open_over_a_crash_and_over_a_restart() {
    for (topology, crashes) in [(Topology::Masquerade, true), (Topology::PublishedServer, false)] {
        let mut running = Running::new(topology);
        let gateway = &mut running.scene.gateway;
        let configuration = configuration(&gateway.lab, "nftables");
        if crashes {
            gateway.daemon.kill();
        } else {
            assert!(gateway.daemon.stop().unwrap().success());
        }
        gateway.start_again(&configuration);
        running.assert_goes_on(&format!("{topology} {crashes}"));
    }
}

#[test]
fn the_ports_are_closed_by_a_restart_that_knows_no_session() {
    let mut running = Running::new(Topology::Masquerade);
    let gateway = &mut running.scene.gateway;
    gateway.daemon.kill();
    let state = gateway.daemon.socket().with_file_name("state");
    for file in fs::read_dir(state).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "sessions") {
            fs::remove_file(path).unwrap();
        }
    }
    let configuration = configuration(&gateway.lab, "nftables");
    gateway.start_again(&configuration);
    running.scene.assert_closed("without a journal");
    running.client.reach_next_gate();
    running.scene.assert_closed("behind more packets");
}

/// Conntrack keeps the entry of such a control connection for two minutes.
#[test]
fn a_session_that_ended_while_nobody_ran_opens_nothing_again() {
    let mut running = Running::new(Topology::Masquerade);
    let gateway = &mut running.scene.gateway;
    gateway.daemon.kill();
    // Packets pass unread as soon as there is no heartbeat.
    wait_for("the end of the heartbeat", || {
        let listed = gateway.lab.gateway.shell("nft list set inet ftp_alg heartbeat").unwrap();
        !listed.stdout_text().contains("expires")
    });
    drop(running.client);
    wait_for("the end", || {
        let listed = gateway.lab.gateway.shell("conntrack -L -p tcp --orig-port-dst 21").unwrap();
        !listed.stdout_text().contains("ESTABLISHED")
    });
    let configuration = configuration(&gateway.lab, "nftables");
    gateway.start_again(&configuration);
    running.scene.assert_closed("behind the end");
}

#[test]
fn a_crash_without_a_restart_leaves_the_ports_open_to_the_client_alone() {
    let mut running = Running::new(Topology::PublishedServer);
    running.scene.gateway.daemon.kill();
    running.scene.assert_open("nobody runs");
    let list = "nft list map inet ftp_alg encrypted4";
    let listed = running.scene.lab().gateway.shell(list).unwrap().stdout_text();
    assert!(listed.contains("expires"), "{listed}");
}

#[test]
fn a_reload_without_the_key_closes_the_ports_and_ends_no_transfer() {
    for restarts in [false, true] {
        let case = format!("restarts: {restarts}");
        let Running { mut scene, mut client, sum } = Running::new(Topology::PublishedServer);
        let without = scene.lab().configuration("nftables");
        if restarts {
            scene.gateway.daemon.kill();
            scene.gateway.start_again(&without);
        } else {
            // The port for TLS is another setting, which takes a restart.
            let without = format!("implicit-tls-ports = [{IMPLICIT}]\n{without}");
            reload(&scene.gateway.daemon, &without);
        }
        scene.wait_until_closed(&case);
        client.reach_next_gate();
        let session = client.release();
        assert!(session.steps.iter().any(|(got, _)| *got == sum), "{case}: {session:?}");
        assert!(session.error.is_some(), "{case}: another download passed");
        scene.wait_until_closed(&case);
        scene.gateway.assert_tidy();
    }
}

/// As `systemctl reload nftables` does it; the table goes with the operator's if nobody owns it.
#[test]
fn the_ports_stay_open_over_a_reload_of_the_firewall() {
    for (topology, has_owner) in [(Topology::Masquerade, true), (Topology::PublishedServer, false)]
    {
        let mut scene = Scene::new(topology, ServerKind::Vsftpd, ClientTls::Explicit);
        if !has_owner {
            scene.gateway.daemon.stop().unwrap();
            let program = executable_without_owner(scene.lab());
            let configuration = configuration(scene.lab(), "nftables");
            scene.gateway.daemon =
                Daemon::start(&program, &scene.lab().gateway, &configuration).unwrap();
        }
        let running = Running::within(scene);
        let lab = running.scene.lab();
        let listed = lab.gateway.ruleset().unwrap();
        // The operator's tables, without ours.
        let operators = listed.split("table inet ftp_alg").next().unwrap();
        lab.gateway.nft(&format!("flush ruleset\n{operators}")).unwrap();
        running.assert_goes_on(&format!("{topology} {has_owner}"));
    }
}

/// A packet of a connection that conntrack has forgotten begins a new entry, and no rule admits it. That client tries nothing,
/// and no setting would help.
#[test]
fn a_transfer_that_conntrack_forgets_is_no_attempt_at_another_port() {
    let scene = Scene::new(Topology::Routed, ServerKind::Vsftpd, ClientTls::Explicit);
    scene.server.put("large", &large_file()).unwrap();
    let begin = begin_download("PASV", "large");
    let mut client = scene.client(V4, (&begin, gate(), say("NOOP"), gate(), end_download()));
    scene.assert_open("before");
    let lab = scene.lab();
    lab.gateway.run("conntrack", &["-F"]).unwrap().success().unwrap();
    client.reach_next_gate();
    wait_for("the ports", || scene.answers(&lab.client, "-").len() == PORTS.count());
    let [first, last] = [PORTS.start(), PORTS.end()];
    let count = format!(
        "table inet count {{ chain c {{ type filter hook prerouting priority 0; \
         tcp dport {first}-{last} tcp flags & syn == 0 counter; }}; }}"
    );
    lab.gateway.nft(&count).unwrap();
    client.open_gate();
    let listed = || lab.gateway.run("nft", &["list", "table", "inet", "count"]).unwrap();
    wait_for("its packets", || !listed().stdout_text().contains("packets 0 "));
    let server = lab.server_address(V4);
    let knock = format!("timeout 1 bash -c '</dev/tcp/{server}/61000' || true");
    lab.client.shell(&knock).unwrap();
    let reasons = || {
        let events = scene.gateway.events("no-data-connection");
        events.iter().map(|event| event["reason"].to_string()).collect::<Vec<_>>().join("\n")
    };
    wait_for("a later attempt", || reasons().contains("port 61000 is not among"));
    assert!(!reasons().contains("as many of encrypted sessions"), "{}", reasons());
}
