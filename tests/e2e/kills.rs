//! The daemon killed at any moment, or restarted, while eight sessions transfer: none is lost. Each row is a test.
//!
//! `FTP_ALG_ROUNDS` says how often it ends (a few times); `FTP_ALG_PAUSE_MS` how long the pauses are at most.

use Topology::{Masquerade, PublishedServer};

use crate::common::*;

/// How the daemon ends.
#[derive(Clone, Copy)]
enum End {
    Killed,
    Restarted,
}
use End::{Killed, Restarted};

/// The modes of the sessions, what ProFTPD is configured with, and what the next daemon says of them.
type Kind = [&'static str; 3];

const MIXED: Kind = ["passive,active,passive+ext,active+ext", "", "restored 8 sessions ("];
/// In the middle of logins, too.
const SHORT: Kind = [MIXED[0], "", ""];
/// A server that says its name takes zeros, so that few numbers change.
const PADDED: Kind = ["active", "", MIXED[2]];
const ADJUSTED: Kind = [
    "active",
    "ServerIdent on \"at your service\"",
    "restored 8 sessions (8 with sequence adjustment)",
];

macro_rules! no_transfer_is_lost {
    ($($name:ident: $sessions:ident($($how:expr),*);)*) => {
        $(#[test] fn $name() { $sessions($($how),*); })*
    };
}

// With how many transfers a session ends; 0 is none but the last.
no_transfer_is_lost! {
    nftables_masquerade: sessions(Killed, Masquerade, "nftables", 0, MIXED);
    nftables_published_server: sessions(Killed, PublishedServer, "nftables", 0, MIXED);
    expectations_masquerade: sessions(Killed, Masquerade, "conntrack", 0, MIXED);
    expectations_published_server: sessions(Killed, PublishedServer, "conntrack", 0, MIXED);
    padded: sessions(Killed, Masquerade, "nftables", 0, PADDED);
    adjusted: sessions(Killed, Masquerade, "nftables", 0, ADJUSTED);
    short_nftables_masquerade: sessions(Killed, Masquerade, "nftables", 2, SHORT);
    short_expectations_published_server: sessions(Killed, PublishedServer, "conntrack", 2, SHORT);
    restarts_masquerade: sessions(Restarted, Masquerade, "nftables", 0, MIXED);
    restarts_published_server: sessions(Restarted, PublishedServer, "nftables", 0, MIXED);
    fast_path: fast_sessions(|_| executable(), |_| FAST_PATH.to_owned());
    fast_path_and_expectations: fast_sessions(|_| executable(), |_| FAST_PATH_EXPECTING.to_owned());
    fast_path_and_other_queues: fast_sessions(|_| executable(), with_other_queues);
    fast_path_whose_pins_end: fast_sessions(with_own_pins, |_| FAST_PATH.to_owned());
}

fn sessions(
    end: End,
    topology: Topology,
    backend: &str,
    transfers: u64,
    [modes, server, says]: Kind,
) {
    let configuration = back_end(backend);
    let mut gateway = gateway_with(topology, &configuration);
    let server = Server::start_with(ServerKind::Proftpd, &gateway.lab.server, server).unwrap();
    let spec = LoadSpec { modes, transfers, ..LoadSpec::default() };
    let mut load = Load::start(&gateway.lab, &server, spec);
    let mut check = |gateway: &Gateway, round| {
        load.wait_for_transfers();
        let log = gateway.daemon.log();
        assert!(log.contains(says), "round {round}: {log}");
    };
    let rounds = match end {
        Killed => gateway.kill_at_any_moment(&executable(), 4, |_| configuration.clone(), check),
        Restarted => {
            let rounds = rounds(3);
            for round in 0..rounds {
                thread::sleep(scaled_timeout(moment(round, 400)));
                assert!(gateway.daemon.stop().unwrap().success(), "{}", gateway.daemon.log());
                if round % 2 == 1 {
                    thread::sleep(moment(round, 600));
                }
                gateway.start_again(&configuration);
                check(&gateway, round);
            }
            rounds
        }
    };
    let report = load.end();
    println!("{rounds} rounds: {report}");
    assert_eq!(report.bad(), [0; 3], "{report} {}", gateway.daemon.log());
    assert!(transfers > 0 || report.count("sessions") == 8, "{report}");
    assert!(report.count("transfers") > rounds, "{report}");
    gateway.assert_tidy();
}

/// Then the table is another one: what is open in the old one is open in the new one as well. Other workers get packets that
/// the old table has queued for fewer, or for more. Every other five daemons have no fast path.
fn with_other_queues(round: u64) -> String {
    let (number, workers) = (2100 + round / 3 % 2 * 200, 1 + round % 3 * 2);
    let fast_path = if (round / 5).is_multiple_of(2) { "auto" } else { "off" };
    let queue = format!("number = {number}\nworkers = {workers}\nfast-path = \"{fast_path}\"");
    FAST_PATH.replace("fast-path = \"auto\"", &queue)
}

/// As with `ip netns exec`, whose mounts end with the program: so do its pins.
fn with_own_pins(gateway: &Gateway) -> PathBuf {
    let mount = "mount -t bpf bpf /sys/fs/bpf && exec \"$@\"";
    let line = format!(
        "[ \"$1\" = run ] || exec {0} \"$@\"\nexec unshare --mount sh -c '{mount}' sh {0} \"$@\"",
        executable().display()
    );
    shell_program(&gateway.lab.gateway, "ftp-alg-alone", &line)
}

/// Thousands of transfers a second, of `program` with the `configuration` of each round.
fn fast_sessions(program: fn(&Gateway) -> PathBuf, configuration: fn(u64) -> String) {
    let Some(mut gateway) = fast_path_gateway(Masquerade) else { return };
    let program = program(&gateway);
    // A program that it left would be the next one's as well, whatever becomes of that one's pins.
    gateway.daemon.stop().unwrap();
    gateway.daemon = Daemon::start(&program, &gateway.lab.gateway, &configuration(0)).unwrap();
    let load = FastLoad::start(&gateway.lab, 8);
    // Later daemons may not get so far: a session has three tries on the fast path of each.
    wait_for("the fast path", || gateway.count("fast_path_lines") > 100);
    let rounds = gateway.kill_at_any_moment(&program, 16, configuration, |gateway, round| {
        load.wait_for_transfers();
        let log = gateway.daemon.log();
        assert!(log.contains("restored 8 sessions"), "round {round}: {log}");
        assert_eq!(gateway.count("fast_path_mismatches"), 0, "round {round}");
    });
    let (transfers, failures) = load.end();
    println!("{rounds} rounds, {transfers} transfers");
    // Every fourth round waits for a transfer of each of the eight sessions.
    assert!(transfers > rounds, "{transfers}");
    assert!(failures.is_empty(), "{failures:#?} {}", gateway.daemon.log());
    gateway.assert_tidy();
}
