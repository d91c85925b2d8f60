//! Reports of transfers and their events over restarts and kills of the daemon.

use super::{start_download, wait_for_line};
use crate::common::*;

/// Starts a follower of the gateway's events.
fn follow(gateway: &Gateway, name: &str, options: &[&str]) -> BackgroundProcess {
    let mut command = gateway.lab.gateway.command(executable());
    command.args(["events", "--follow", "--socket"]).arg(gateway.daemon.socket()).args(options);
    gateway.lab.gateway.start(command, name).unwrap()
}

/// A follower gets each event while it happens, also over a restart, and one that began late gets what is stored.
#[test]
fn events_are_followed() {
    let mut gateway = gateway(Topology::Masquerade);
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    let follower = follow(&gateway, "events", &[]);
    for name in ["before", "after"] {
        curl(&gateway.lab, &server, Mode::Passive).upload(name, b"12345").unwrap();
        wait_for(name, || follower.log().contains(&format!("/{name} 5 B in ")));
        if name == "before" {
            wait_for("the last event", || follower.log().contains("session ended"));
            gateway.daemon.kill();
            gateway.start_again("");
        }
    }
    let log = follower.log();
    assert!(log.contains("open PASV") && log.contains("logged in: "), "{log}");
    assert!(!log.contains("missed") && log.contains("the daemon was restarted"), "{log}");
}

/// The last report looks into conntrack, as those of longer transfers do.
#[test]
fn a_daemon_that_ends_reports_what_has_just_ended() {
    let mut gateway = gateway(Topology::Masquerade);
    let end = [reply(), gate(), drain(), reply()];
    let (_server, client) = start_download(&gateway, ServerKind::Vsftpd, 5, &end);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(client.release().error, None);
    assert!(gateway.daemon.stop().unwrap().success(), "{}", gateway.daemon.log());
    let line = wait_for_line(&gateway, &["RETR", "/large 5 B in "]);
    assert!(line.ends_with(": 226"), "{line}");
}

/// As during an upgrade: the daemon that begins has not seen the connection's first packets, but knows the user.
#[test]
fn a_transfer_that_goes_on_over_a_restart_has_no_bytes_but_its_name() {
    for is_killed in [true, false] {
        let mut gateway = gateway(Topology::Masquerade);
        let end = [reply(), gate(), drain(), reply()];
        let (server, client) = start_download(&gateway, ServerKind::Vsftpd, 1_000_000, &end);
        if is_killed {
            gateway.daemon.kill();
        } else {
            assert!(gateway.daemon.stop().unwrap().success());
        }
        gateway.start_again("");
        assert_eq!(client.release().error, None);
        wait_for("the transfer", || gateway.events("transfer").len() == 1);
        let transfer = &gateway.events("transfer")[0];
        assert_eq!((&transfer["bytes"], &transfer["result"]), (&json!(null), &json!("complete")));
        assert_eq!(transfer["user"], server.login().0, "{transfer}");
        assert!(transfer["path"].as_str().unwrap().ends_with("/large"), "{transfer}");
    }
}

/// What a killed daemon leaves behind: the next one says how many sessions had a transfer.
#[test]
fn a_restart_says_how_many_transfers_were_interrupted() {
    // A killed daemon may not have read the last lines of the fast path.
    let setup = "queue.fast-path = \"off\"\n";
    let mut gateway = gateway_with(Topology::Masquerade, setup);
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    let steps =
        json!([login_as(server.login()), ask("PASV"), dial(), ask("STOR /pub/half"), gate(),]);
    let held = hold(&gateway.lab, steps);
    gateway.daemon.kill();
    gateway.start_again(setup);
    let line = "a transfer was under way in 1 session when the last daemon ended";
    assert!(gateway.daemon.log().contains(line), "{}", gateway.daemon.log());
    assert_eq!(held.release().error, None);
    wait_for_line(&gateway, &["STOR /pub/half"]);
    gateway.daemon.kill();
    gateway.start_again(setup);
    assert!(!gateway.daemon.log().contains("was under way"), "{}", gateway.daemon.log());
}
