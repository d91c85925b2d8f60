//! Full load for a while: memory stays as it is, nothing fails, and nothing is left behind.
//!
//! `FTP_ALG_SOAK` says for how many seconds (10); `make test-nightly` takes half an hour.

use crate::common::*;

/// How much the daemon may grow after the first fifth of the time, in KiB. Sessions that are over linger for a minute,
/// so that a short run sees them add up, and the ring of events fills.
const GROWTH: u64 = 4096 + 4096;

#[test]
fn memory_is_flat_and_nothing_is_left_under_full_load() {
    let seconds = std::env::var("FTP_ALG_SOAK").map_or(10, |text| text.parse().unwrap());
    let gateway = gateway(Topology::Masquerade);
    let server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
    let spec =
        LoadSpec { transfers: 20, seconds, data_seconds: 30, patience: 30, ..LoadSpec::default() };
    let mut load = Load::start(&gateway.lab, &server, spec);
    let mut sizes = Vec::new();
    while !load.has_ended() {
        sizes.push(gateway.daemon.resident_kib().unwrap());
        thread::sleep(Duration::from_millis(seconds * 2));
    }
    let report = load.end();
    let settled = &sizes[sizes.len() / 5..];
    let (first, most) = (settled[0], *settled.iter().max().unwrap());
    println!("{seconds} s: {report}; resident {first} KiB after a fifth, at most {most} KiB later");
    assert_eq!(report.bad(), [0; 3], "{report}");
    assert!(report.count("transfers") > 0, "{report}");
    assert!(most <= first + GROWTH, "it grows: {sizes:?}");
    gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    wait_for("the last session's end", || gateway.daemon.status().unwrap()["sessions"] == 0);
    let status = gateway.daemon.status().unwrap();
    for none in ["errors", "unread_sessions", "malformed", "uninspected", "overruns"] {
        assert_eq!(status[none], 0, "{none}: {status}");
    }
    assert_eq!(gateway.lab.gateway.invalid_packets().unwrap(), 0);
}
