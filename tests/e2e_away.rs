//! The daemon away for a moment: killed, restarted or stopped (SIGSTOP) while transfers are being announced.
//!
//! `FTP_ALG_ROUNDS` says how often each of these is done (a few); `FTP_ALG_PAUSE_MS` how long the pauses between
//! them are at most.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

use std::{
    env, fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use common::{Gateway, executable, gateway_with, reply, scripted_client, wait_for};
use ftp_alg::lab::{Background, Daemon, Family, Script, Server, ServerKind, Topology, patient};
use serde_json::{Value, json};

/// How long the daemon may be away before the queue is passed by, with what its renewal and a loaded machine add.
const DEADLINE: Duration = Duration::from_secs(5);
/// Seconds that a client waits: TCP waits twice as long each time that it sends again.
const PATIENCE: u64 = 150;
/// Workers of the load.
const SESSIONS: u64 = 8;

fn rounds(default: u64) -> u64 {
    env::var("FTP_ALG_ROUNDS").map_or(default, |text| text.parse().unwrap())
}

/// A moment that is another each round, below `limit`.
fn moment(round: u64, limit: u64) -> Duration {
    let limit = env::var("FTP_ALG_PAUSE_MS").map_or(limit, |text| text.parse().unwrap());
    Duration::from_millis((round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % limit)
}

/// FTP sessions at the same time, each to the end of the test.
struct Load {
    process: Background,
    until: PathBuf,
}

impl Load {
    /// `name` tells it from others at the same gateway. A data connection may take `data_seconds`.
    fn start(gateway: &Gateway, server: &Server, name: &str, data_seconds: u64) -> Self {
        let (user, password) = server.login();
        let host = gateway.lab.dialled(Family::V4).to_string();
        let until = gateway.lab.directory().join(format!("{name}-is-over"));
        let modes = "passive,active,passive+ext,active+ext";
        let (stop, sessions) = (until.display().to_string(), SESSIONS.to_string());
        let data = data_seconds.to_string();
        let arguments = [&host, user, password, modes, &sessions, "0", "7200", &stop, &data];
        let command = gateway.lab.client.script_command(Script::Load, &arguments).unwrap();
        let process = gateway.lab.client.start(command, name).unwrap();
        wait_for("the load", || process.log().contains("ready"));
        Self { process, until }
    }

    fn end(mut self) -> Value {
        fs::write(&self.until, b"").unwrap();
        let begun = Instant::now();
        while self.process.ended().is_none() {
            assert!(begun.elapsed() < 2 * Duration::from_secs(PATIENCE), "the load does not end");
            thread::sleep(Duration::from_millis(50));
        }
        serde_json::from_str(self.process.log().lines().last().unwrap()).unwrap()
    }
}

fn count(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap()
}

/// Nothing is left open, and nothing failed in the daemon.
fn is_tidy(gateway: &Gateway) {
    gateway.daemon.wait_closed(Duration::from_secs(2)).unwrap();
    assert_eq!(gateway.daemon.openings().unwrap(), [""; 0]);
    assert_eq!(gateway.daemon.counter("errors").unwrap(), 0, "{}", gateway.daemon.log());
}

fn signal(daemon: &Daemon, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &daemon.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

/// Stops the daemon for `time`.
fn pause(daemon: &Daemon, time: Duration) {
    signal(daemon, "STOP");
    thread::sleep(time);
    signal(daemon, "CONT");
}

fn configuration(backend: &str) -> String {
    format!("[pinhole]\nbackend = \"{backend}\"\n")
}

/// No transfer is lost to daemons that end and start again at any moment, at once or a little later.
fn survives(backend: &str, end: fn(&mut Daemon)) {
    let configuration = configuration(backend);
    for topology in [Topology::Masquerade, Topology::PublishedServer] {
        let mut gateway = gateway_with(topology, &configuration);
        let server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
        let load = Load::start(&gateway, &server, "load", PATIENCE);
        let rounds = rounds(3);
        for round in 0..rounds {
            thread::sleep(patient(moment(round, 400)));
            end(&mut gateway.daemon);
            if round % 2 == 1 {
                thread::sleep(moment(round, 600));
            }
            let (exe, host) = (executable(), gateway.lab.gateway.clone());
            gateway.daemon = Daemon::start(&exe, &host, &configuration).unwrap();
        }
        thread::sleep(patient(Duration::from_millis(500)));
        let report = load.end();
        println!("{backend}, {topology}: {rounds} rounds: {report}");
        let bad = ["damaged", "lost", "failed"].map(|key| count(&report, key));
        assert_eq!(bad, [0; 3], "{report}");
        assert_eq!(count(&report, "sessions"), SESSIONS);
        assert!(count(&report, "transfers") > rounds, "{report}");
        is_tidy(&gateway);
    }
}

#[test]
fn no_transfer_is_lost_to_kills_with_pinholes_in_nftables() {
    survives("nftables", Daemon::kill);
}

#[test]
fn no_transfer_is_lost_to_kills_with_expectations() {
    survives("conntrack", Daemon::kill);
}

#[test]
fn no_transfer_is_lost_to_restarts() {
    survives("nftables", |daemon| assert!(daemon.stop().unwrap().success(), "{}", daemon.log()));
}

#[test]
fn nothing_is_lost_to_a_stop_shorter_than_the_deadline() {
    for backend in ["nftables", "conntrack"] {
        let gateway = gateway_with(Topology::Masquerade, &configuration(backend));
        let server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
        let load = Load::start(&gateway, &server, "load", PATIENCE);
        let rounds = rounds(1);
        for round in 0..rounds {
            thread::sleep(patient(moment(round, 700)));
            pause(&gateway.daemon, Duration::from_millis(500) + moment(round + 7, 2500));
        }
        thread::sleep(patient(Duration::from_millis(500)));
        let report = load.end();
        println!("{backend}: {rounds} rounds: {report}");
        let bad = ["damaged", "lost", "failed"].map(|key| count(&report, key));
        assert_eq!(bad, [0; 3], "{report}");
        assert_eq!(count(&report, "sessions"), SESSIONS);
        is_tidy(&gateway);
    }
}

#[test]
fn a_daemon_stopped_beyond_the_deadline_stops_no_ftp() {
    for backend in ["nftables", "conntrack"] {
        let gateway = gateway_with(Topology::Masquerade, &configuration(backend));
        let server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
        // A server that cannot connect to its client says so soon.
        let soon = ["-qw", "net.ipv4.tcp_syn_retries=1"];
        gateway.lab.server.run("sysctl", &soon).unwrap().success().unwrap();
        let load = Load::start(&gateway, &server, "load", 3);
        let rounds = rounds(1);
        let greeted =
            json!({"host": gateway.lab.dialled(Family::V4).to_string(), "steps": [reply()]});
        for round in 0..rounds {
            thread::sleep(patient(moment(round, 700)));
            signal(&gateway.daemon, "STOP");
            let stopped = Instant::now();
            thread::sleep(DEADLINE + Duration::from_millis(500));
            let client = scripted_client(&gateway.lab.client, &greeted);
            assert_eq!(client.error, None, "{backend}: not greeted");
            assert!(stopped.elapsed() < 2 * DEADLINE, "{:?}", stopped.elapsed());
            thread::sleep(moment(round + 3, 700));
            signal(&gateway.daemon, "CONT");
        }
        thread::sleep(patient(Duration::from_millis(1500)));
        // What begins afterwards works.
        let after = Load::start(&gateway, &server, "later-load", PATIENCE);
        thread::sleep(patient(Duration::from_millis(500)));
        let log = gateway.daemon.log();
        assert!(log.contains("did not run for"), "{log}");
        let (report, after) = (load.end(), after.end());
        println!("{backend}: {rounds} rounds: {report}, then {after}");
        // What was announced meanwhile may be lost, but no control connection.
        assert_eq!(["damaged", "lost"].map(|key| count(&report, key)), [0; 2], "{report}");
        let bad = ["damaged", "lost", "failed"].map(|key| count(&after, key));
        assert_eq!(bad, [0; 3], "{after}");
    }
}
