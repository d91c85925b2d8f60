//! Full load for a while: memory stays as it is, nothing fails, and nothing is left behind.
//!
//! `FTP_ALG_SOAK` says for how many seconds (10); `make test-nightly` takes half an hour.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::common::{Gateway, gateway, wait_for};
use ftp_alg_lab::{BackgroundProcess, Family, Script, Server, ServerKind, Topology};
use serde_json::Value;

/// How much the daemon may grow after the first fifth of the time, in KiB. Sessions that are over linger
/// for a minute, so that a short run sees them add up.
const GROWTH: u64 = 4096;

/// Eight sessions at a time of twenty transfers each, in every mode.
fn start_load(gateway: &Gateway, server: &Server, seconds: u64) -> BackgroundProcess {
    let (user, password) = server.login();
    let lab = &gateway.lab;
    let host = lab.server_address(Family::V4).to_string();
    let modes = "active,passive,active+ext,passive+ext";
    let arguments = [&host, user, password, modes, "8", "20", &seconds.to_string(), "/nonexistent"];
    let command = lab.client.script_command(Script::Load, &arguments).unwrap();
    lab.client.start(command, "load").unwrap()
}

#[test]
fn memory_is_flat_and_nothing_is_left_under_full_load() {
    let seconds = std::env::var("FTP_ALG_SOAK").map_or(10, |text| text.parse().unwrap());
    let gateway = gateway(Topology::Masquerade);
    let server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
    let mut load = start_load(&gateway, &server, seconds);
    wait_for("the load", || load.log().contains("ready"));
    let start = Instant::now();
    let mut sizes = Vec::new();
    while load.exit_status().is_none() {
        assert!(start.elapsed() < Duration::from_secs(seconds + 60), "the load does not end");
        sizes.push(gateway.daemon.resident_kib().unwrap());
        thread::sleep(Duration::from_millis(seconds * 2));
    }
    let report: Value = serde_json::from_str(load.log().lines().last().unwrap()).unwrap();
    let settled = &sizes[sizes.len() / 5..];
    let (first, most) = (settled[0], *settled.iter().max().unwrap());
    println!("{seconds} s: {report}; resident {first} KiB after a fifth, at most {most} KiB later");
    let count = |key: &str| report[key].as_u64().unwrap();
    assert_eq!([count("damaged"), count("lost"), count("failed")], [0; 3], "{report}");
    assert!(count("transfers") > seconds * 5, "{report}");
    assert!(most <= first + GROWTH, "it grows: {sizes:?}");
    gateway.daemon.wait_for_no_pinholes(Duration::from_secs(2)).unwrap();
    wait_for("the last session's end", || gateway.daemon.status().unwrap()["sessions"] == 0);
    assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    let status = gateway.daemon.status().unwrap();
    for none in ["errors", "lost", "malformed", "uninspected", "overruns"] {
        assert_eq!(status[none], 0, "{none}: {status}");
    }
    assert_eq!(gateway.lab.gateway.invalid_packets().unwrap(), 0);
}
