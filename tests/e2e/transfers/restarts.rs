//! Reports of transfers and their events over restarts and kills of the daemon.

use rustix::process::Signal;

use super::{start_download, wait_for_line};
use crate::common::*;

/// Starts a follower of the gateway's events.
fn follow(gateway: &Gateway, name: &str, options: &[&str]) -> BackgroundProcess {
    let mut command = gateway.lab.gateway.command(executable());
    command.args(["events", "--follow", "--socket"]).arg(gateway.daemon.socket()).args(options);
    gateway.lab.gateway.start(command, name).unwrap()
}

/// The next daemon knows the user, and sees the data connection.
#[test]
fn the_user_survives_a_killed_daemon() {
    for mode in [Mode::Active, Mode::Passive] {
        let mut gateway = gateway(Topology::Masquerade);
        let lab = &gateway.lab;
        let server = Server::start(ServerKind::Proftpd, &lab.server).unwrap();
        server.put("half.csv", b"12345").unwrap();
        let address = lab.server_address(V4);
        let held = HeldTransfer::start(&lab.client, &server, address, mode, "half.csv").unwrap();
        gateway.daemon.kill();
        gateway.start_again("");
        assert_eq!(held.release().unwrap(), 5);
        let (user, _) = server.login();
        let who = format!("{user}@192.168.150.80 RETR");
        wait_for_line(&gateway, &[&who, "pub/half.csv 5 B in "]);
    }
}

/// A follower gets each event while it happens, also over a restart, and one that began late gets what is stored.
#[test]
fn events_are_followed() {
    let mut gateway = gateway(Topology::Masquerade);
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    let follower = follow(&gateway, "events", &[]);
    let address = gateway.lab.server_address(V4);
    let client = &gateway.lab.client.clone();
    let transfer = Transfer::new(ClientProgram::Curl, client, &server, address, Mode::Passive);
    for name in ["before", "after"] {
        transfer.upload(name, b"12345").unwrap();
        wait_for(name, || follower.log().contains(&format!("/{name} 5 B in ")));
        if name == "before" {
            wait_for("the last event", || follower.log().contains("session ended"));
            gateway.daemon.kill();
            gateway.start_again("");
        }
    }
    let log = follower.log();
    assert!(log.contains("open PASV") && log.contains("logged in: "), "{log}");
    assert!(!log.contains("missed"), "{log}");
}

/// A daemon that ends leaves its events to the next one.
#[test]
fn a_stuck_reader_misses_nothing_over_a_clean_restart() {
    let mut gateway = gateway(Topology::Masquerade);
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    let stuck = follow(&gateway, "stuck", &[]);
    let address = gateway.lab.server_address(V4);
    let client = &gateway.lab.client.clone();
    let transfer = Transfer::new(ClientProgram::Curl, client, &server, address, Mode::Passive);
    let is_read = |name: &str| stuck.log().contains(&format!("/{name} 5 B in "));
    transfer.upload("first", b"12345").unwrap();
    wait_for("first", || is_read("first"));
    stuck.signal(Signal::STOP);
    for name in ["second", "third"] {
        transfer.upload(name, b"12345").unwrap();
        gateway.daemon.stop().unwrap();
        gateway.start_again("");
    }
    let stored = gateway.events("transfer");
    let name_of =
        |event: &Value| event["path"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    assert_eq!(stored.iter().map(name_of).collect::<Vec<_>>(), ["first", "second", "third"]);
    stuck.signal(Signal::CONT);
    transfer.upload("last", b"12345").unwrap();
    wait_for("last", || is_read("last"));
    assert!(is_read("second") && is_read("third"), "{}", stuck.log());
    assert!(!stuck.log().contains("missed"), "{}", stuck.log());
}

/// A reader that does not read while daemons are killed learns exactly how many events it has missed.
#[test]
fn a_stuck_reader_learns_what_killed_daemons_took() {
    let mut gateway = gateway(Topology::Masquerade);
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    let [reading, stuck] = ["reading", "stuck"].map(|name| follow(&gateway, name, &["--json"]));
    // The IDs that it printed, and how many it says it has missed.
    let account = |follower: &BackgroundProcess| {
        let log = follower.log();
        let rows = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ids: Vec<_> = rows.map(|row| row["id"].as_u64().unwrap()).collect();
        let missed = log.lines().filter_map(|line| {
            let (count, text) = line.strip_prefix("ftp-alg: ")?.split_once(" event")?;
            text.ends_with("missed").then(|| count.parse::<u64>().ok())?
        });
        (ids, missed.sum::<u64>())
    };
    let address = gateway.lab.server_address(V4);
    let client = &gateway.lab.client.clone();
    let transfer = Transfer::new(ClientProgram::Curl, client, &server, address, Mode::Passive);
    let upload = |name: &str, followers: &[&BackgroundProcess]| {
        transfer.upload(name, b"12345").unwrap();
        for follower in followers {
            wait_for(name, || follower.log().contains(&format!("/{name} 5 B in ")));
        }
    };
    upload("first", &[&reading, &stuck]);
    stuck.signal(Signal::STOP);
    for name in ["second", "third"] {
        upload(name, &[&reading]);
        gateway.daemon.kill();
        gateway.start_again("");
    }
    stuck.signal(Signal::CONT);
    upload("last", &[&reading, &stuck]);
    for (follower, least) in [(&reading, 0), (&stuck, 1)] {
        let (ids, missed) = account(follower);
        let all = ids.last().unwrap() - ids[0] + 1;
        assert_eq!(ids.len() as u64 + missed, all, "{}", follower.log());
        assert!(missed >= least, "{}", follower.log());
    }
}

/// A daemon that is killed at once leaves transfers unreported, and the next one counts them. It may count one that the log
/// has, but leaves none out.
#[test]
fn what_killed_daemons_have_not_reported_is_counted() {
    const ROUNDS: usize = 8;
    for setup in ["", "queue.fast-path = \"off\"\n"] {
        let mut gateway = gateway_with(Topology::Masquerade, setup);
        let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
        let reported = |log: &str, name: &str| {
            let is_it = |line: &&str| line.contains(" transfer #") && line.contains(name);
            log.lines().filter(is_it).count()
        };
        let counted = |log: &str| {
            let counts = log.lines().filter_map(|line| {
                let (start, _) = line.split_once(" had ended, and ")?;
                start.rsplit(' ').nth(1)?.parse::<usize>().ok()
            });
            counts.sum::<usize>()
        };
        for round in 0..ROUNDS {
            let transfer = curl(&gateway.lab, &server, Mode::Passive);
            let name = format!("round-{round}");
            transfer.upload(&name, b"12345").unwrap();
            gateway.daemon.kill();
            let killed = gateway.daemon.log();
            gateway.start_again(setup);
            wait_for("the transfer, reported or counted", || {
                let log = gateway.daemon.log();
                let known = reported(&killed, &name) + reported(&log, &name) + counted(&log);
                // The one before may be counted again, too.
                assert!(known <= 3, "{killed}{log}");
                known >= 1
            });
        }
        // What was reported long before is not counted.
        let transfer = curl(&gateway.lab, &server, Mode::Passive);
        transfer.upload("reported", b"12345").unwrap();
        let is_it = |event: &Value| event["path"].as_str().unwrap().ends_with("/reported");
        wait_for("the event", || gateway.events("transfer").iter().any(is_it));
        gateway.daemon.kill();
        gateway.start_again(setup);
        assert!(!gateway.daemon.log().contains("not reported yet"), "{}", gateway.daemon.log());
    }
}

/// The last report looks into conntrack, as those of longer transfers do.
#[test]
fn a_daemon_that_ends_reports_what_has_just_ended() {
    for setup in ["", "queue.fast-path = \"off\"\n"] {
        let mut gateway = gateway_with(Topology::Masquerade, setup);
        let end = [reply(), gate(), drain(), reply()];
        let (_server, client) = start_download(&gateway, ServerKind::Vsftpd, 5, &end);
        thread::sleep(Duration::from_millis(500));
        assert_eq!(client.release().error, None);
        assert!(gateway.daemon.stop().unwrap().success(), "{}", gateway.daemon.log());
        let line = wait_for_line(&gateway, &["RETR", "/large 5 B in "]);
        assert!(line.ends_with(": 226"), "{line}");
        gateway.start_again(setup);
        assert_eq!(gateway.events("transfer").len(), 1, "{setup}");
    }
}

/// As during an upgrade.
#[test]
fn a_transfer_that_goes_on_over_a_restart_has_its_bytes() {
    const SIZE: usize = 1_000_000;
    for setup in ["", "queue.fast-path = \"off\"\n"] {
        let mut gateway = gateway_with(Topology::Masquerade, setup);
        let end = [reply(), gate(), drain(), reply()];
        let (_server, client) = start_download(&gateway, ServerKind::Vsftpd, SIZE, &end);
        assert!(gateway.daemon.stop().unwrap().success());
        gateway.start_again(setup);
        assert_eq!(client.release().error, None);
        wait_for("the transfer", || gateway.events("transfer").len() == 1);
        let transfer = &gateway.events("transfer")[0];
        assert_eq!((&transfer["bytes"], &transfer["result"]), (&json!(SIZE), &json!("complete")));
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
