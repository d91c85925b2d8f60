//! A firewall that is reloaded, and whatever else other programs do to the rules while the daemon runs.
//!
//! `FTP_ALG_RELOADS` says how often the rules are loaded under load (15). `FTP_ALG_TABLE_OWNER=no` has the daemon's table
//! be one that others may remove, as on a kernel before Linux 6.9.

use crate::common::*;

fn reloads() -> u64 {
    std::env::var("FTP_ALG_RELOADS").map_or(15, |text| text.parse().unwrap())
}

/// As `systemctl reload nftables` does it: all rules go, and the operator's come, in one transaction.
fn reload(lab: &Lab, firewall: &str) {
    lab.gateway.nft(&format!("flush ruleset\n{firewall}")).unwrap();
}

/// The chains of the daemon's table; nothing while there is none.
fn our_table(lab: &Lab) -> String {
    let list = ["--stateless", "list", "table", "inet", "ftp_alg"];
    let text = lab.gateway.try_run("nft", &list).unwrap().stdout_text();
    text.find("\tchain").map(|at| text[at..].to_owned()).unwrap_or_default()
}

fn survives_reloads(patience: u64, program: impl FnOnce(&Lab) -> PathBuf) -> (Gateway, LoadReport) {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let firewall = lab.gateway.ruleset().unwrap();
    let daemon = Daemon::start(&program(&lab), &lab.gateway, "").unwrap();
    let mut gateway = Gateway { daemon, lab };
    let running = our_table(&gateway.lab);
    let server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
    let spec = LoadSpec { data_seconds: patience, patience, ..LoadSpec::default() };
    let load = Load::start(&gateway.lab, &server, spec);
    let rounds = reloads();
    for round in 0..rounds {
        reload(&gateway.lab, &firewall);
        assert!(gateway.daemon.exit_status().is_none(), "round {round}: {}", gateway.daemon.log());
        // At another moment of the table's way back each time.
        thread::sleep(Duration::from_millis(round * 37 % 250));
    }
    wait_for("the table", || our_table(&gateway.lab) == running);
    let report = load.end();
    println!("{rounds} reloads: {report}");
    assert!(gateway.daemon.exit_status().is_none(), "{}", gateway.daemon.log());
    (gateway, report)
}

#[test]
fn reloads_under_load_cost_nothing_and_without_an_owner_no_bytes() {
    let (gateway, report) = survives_reloads(30, |_| executable());
    let lost = report.bad();
    assert_eq!(lost[0], 0, "{report}");
    if has_owner(&gateway.lab) {
        assert_eq!(lost, [0; 3], "{report}\n{}", gateway.daemon.log());
        assert!(!gateway.daemon.log().contains("it is loaded again"), "{}", gateway.daemon.log());
    }
    let (gateway, report) = survives_reloads(5, executable_without_owner);
    assert_eq!(report.count("damaged"), 0, "{report}");
    assert!(gateway.daemon.log().contains("it is loaded again"), "{}", gateway.daemon.log());
    assert!(report.count("transfers") > 0, "{report}");
}

/// Sessions, pinholes and translations included: what the daemon repairs is no error.
#[test]
fn reloads_with_open_pinholes_are_no_errors() {
    for backend in ["nftables", "conntrack"] {
        let configuration = back_end(backend);
        let lab = lab_for(Topology::Masquerade, &configuration);
        let firewall = lab.gateway.ruleset().unwrap();
        let _server = scripted_server(&lab.server, &json!({}));
        for program in [executable(), executable_without_owner(&lab)] {
            let mut daemon = Daemon::start(&program, &lab.gateway, &configuration).unwrap();
            let running = our_table(&lab);
            let client = hold(&lab, (login(), port_transfer(), ask("PASV"), gate(), ask("NOOP")));
            for round in 0..5 {
                reload(&lab, &firewall);
                wait_for("the table", || our_table(&lab) == running);
                let status = daemon.status().unwrap();
                let what = format!("{backend}, round {round}: {status}\n{}", daemon.log());
                assert_eq!(status["errors"], 0, "{what}");
            }
            assert_eq!(client.release().error, None);
            daemon.stop().unwrap();
        }
    }
}

#[test]
fn an_owned_table_stays_whatever_others_do() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let firewall = lab.gateway.ruleset().unwrap();
    let mut daemon = Daemon::start(&executable(), &lab.gateway, "").unwrap();
    if !has_owner(&lab) {
        return;
    }
    let running = our_table(&lab);
    reload(&lab, &firewall);
    lab.gateway.nft("flush ruleset").unwrap();
    lab.gateway.nft(&firewall).unwrap();
    for rules in [
        "delete table inet ftp_alg",
        "flush table inet ftp_alg",
        "flush set inet ftp_alg closing",
        "add rule inet ftp_alg select_forward drop",
        "add table inet ftp_alg { flags dormant; }",
    ] {
        let refused = lab.gateway.nft(rules).unwrap_err().to_string();
        assert!(refused.contains("Operation not permitted"), "{rules}: {refused}");
    }
    lab.gateway.shell("nft list ruleset; iptables-nft -A INPUT -p icmp -j ACCEPT").unwrap();
    lab.gateway.shell("iptables-nft-save").unwrap();
    assert_eq!(our_table(&lab), running);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(daemon.counter("errors").unwrap(), 0, "{}", daemon.log());
    // What a crash leaves has an owner again with the next start. It can be removed like any other, and a clean stop leaves
    // nothing.
    daemon.kill();
    assert!(!has_owner(&lab));
    assert_eq!(our_table(&lab), running);
    let mut daemon = Daemon::start(&executable(), &lab.gateway, "").unwrap();
    assert!(has_owner(&lab), "{}", daemon.log());
    daemon.kill();
    lab.gateway.nft("delete table inet ftp_alg").unwrap();
    let mut daemon = Daemon::start(&executable(), &lab.gateway, "").unwrap();
    assert!(has_owner(&lab));
    daemon.stop().unwrap();
    assert!(lab.gateway.nft("list table inet ftp_alg").is_err());
}

/// Whether the daemon's table is one that other programs cannot remove.
fn has_owner(lab: &Lab) -> bool {
    lab.gateway
        .run("nft", &["list", "table", "inet", "ftp_alg"])
        .unwrap()
        .stdout_text()
        .contains("flags owner")
}

#[test]
fn a_daemon_starts_during_firewall_reloads() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let firewall = lab.gateway.ruleset().unwrap();
    let file = lab.directory().join("firewall.nft");
    fs::write(&file, format!("flush ruleset\n{firewall}")).unwrap();
    let over = lab.directory().join("reloads-are-over");
    let lines = format!(
        "while ! test -e {}; do nft -f {}; sleep 0.02; done",
        over.display(),
        file.display()
    );
    let mut command = lab.gateway.command("sh");
    command.args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin; {lines}")]);
    let mut loads = lab.gateway.start(command, "reloads").unwrap();
    for round in 0..reloads().div_ceil(3) {
        let mut daemon = Daemon::start(&executable(), &lab.gateway, "")
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        let status = daemon.stop().unwrap();
        assert!(status.success(), "round {round}: {status}: {}", daemon.log());
    }
    fs::write(&over, b"").unwrap();
    wait_for("the reloads' end", || loads.exit_status().is_some());
}
