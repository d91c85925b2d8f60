//! The daemon away for a moment: stopped (SIGSTOP) or replaced while transfers are being announced.
//!
//! `FTP_ALG_ROUNDS` says how often each of these is done (a few); `FTP_ALG_PAUSE_MS` how long the pauses between
//! them are at most.

use crate::common::*;

/// How long the daemon may be away before the queue is bypassed, with what its renewal and a loaded machine add.
const DEADLINE: Duration = Duration::from_secs(5);

/// Stops the daemon for `time`. Returns for how long it was stopped.
fn pause(daemon: &Daemon, time: Duration) -> Duration {
    let start = Instant::now();
    signal(daemon, "STOP");
    thread::sleep(time);
    signal(daemon, "CONT");
    start.elapsed()
}

#[test]
fn nothing_is_lost_to_a_stop_shorter_than_the_deadline() {
    for backend in ["nftables", "conntrack"] {
        let is_done = (0..3).any(|_| loses_nothing_to_stops(backend));
        assert!(is_done, "{backend}: the machine made each stop too long");
    }
}

/// Gives false if a stop was not as short as it was to be.
fn loses_nothing_to_stops(backend: &str) -> bool {
    let gateway = gateway_with(Topology::Masquerade, &back_end(backend));
    let server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
    let load = Load::start(&gateway.lab, &server, LoadSpec::default());
    let rounds = rounds(1);
    for round in 0..rounds {
        thread::sleep(scaled_timeout(moment(round, 700)));
        let time = Duration::from_millis(500) + moment(round + 7, 3200);
        let took = pause(&gateway.daemon, time);
        if took > Duration::from_secs(4) {
            println!("{backend}: a stop of {time:?} took {took:?}");
            return false;
        }
    }
    thread::sleep(scaled_timeout(Duration::from_millis(500)));
    let report = load.end();
    println!("{backend}: {rounds} rounds: {report}");
    assert_eq!(report.bad(), [0; 3], "{report} {}", gateway.daemon.log());
    assert_eq!(report.count("sessions"), 8);
    gateway.assert_tidy();
    true
}

/// Stops the daemon so many times by `stop`, which is informed the round, under sessions that last and sessions of a few
/// transfers, whose numbers are not adjusted yet. What was announced meanwhile may be lost, but no control connection.
fn lives_through(backend: &str, rounds: u64, mut stop: impl FnMut(&mut Gateway, u64)) {
    let mut gateway = gateway_with(Topology::Masquerade, &back_end(backend));
    let server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
    // A server that cannot connect to its client says so soon, and then goes on to read commands.
    gateway.lab.server.shell("sysctl -qw net.ipv4.tcp_syn_retries=1").unwrap();
    let brief = LoadSpec { data_seconds: 3, ..LoadSpec::default() };
    let load = Load::start(&gateway.lab, &server, brief);
    let short = LoadSpec { name: "short-load", transfers: 2, ..brief };
    let short = Load::start(&gateway.lab, &server, short);
    for round in 0..rounds {
        stop(&mut gateway, round);
    }
    thread::sleep(scaled_timeout(Duration::from_millis(1500)));
    // What begins afterwards works.
    let after =
        Load::start(&gateway.lab, &server, LoadSpec { name: "later-load", ..LoadSpec::default() });
    thread::sleep(scaled_timeout(Duration::from_millis(500)));
    let [load, short, after] = [load, short, after].map(Load::end);
    println!("{backend}: {rounds} rounds: {load}, short sessions: {short}, then {after}");
    for report in [load, short] {
        assert_eq!(report.bad()[..2], [0; 2], "{report}");
    }
    assert_eq!(after.bad(), [0; 3], "{after}");
}

#[test]
fn a_daemon_stopped_for_about_the_deadline_or_beyond_stops_no_ftp() {
    let stop = |gateway: &mut Gateway, round| {
        thread::sleep(scaled_timeout(moment(round, 700)));
        pause(&gateway.daemon, Duration::from_millis(3800) + moment(round + 3, 1500));
        thread::sleep(scaled_timeout(moment(round + 1, 700)));
        // What comes too late each time is not late because the machine is busy.
        let is_in_time = (0..3).any(|_| {
            signal(&gateway.daemon, "STOP");
            let stopped = Instant::now();
            thread::sleep(DEADLINE + Duration::from_millis(500));
            let client = talk(&gateway.lab, reply());
            let took = stopped.elapsed();
            thread::sleep(moment(round + 3, 700));
            signal(&gateway.daemon, "CONT");
            wait_for("word of it", || gateway.daemon.log().contains("did not run for"));
            client.error.is_none() && took < 2 * DEADLINE
        });
        assert!(is_in_time, "not greeted in time");
    };
    for backend in ["nftables", "conntrack"] {
        lives_through(backend, rounds(1), stop);
    }
}

/// Whether the table is left or not, and anyone who reads or does not read the queue.
#[test]
fn ftp_goes_on_unadjusted_after_a_daemon_ended_for_good() {
    let ends: [fn(&mut Daemon); 2] =
        [Daemon::kill, |daemon| assert!(daemon.stop().unwrap().success(), "{}", daemon.log())];
    for (backend, end) in ["nftables", "conntrack"].into_iter().zip(ends) {
        let mut gateway = gateway_with(Topology::Masquerade, &back_end(backend));
        let _server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
        let adjusted = (login(), ask("EPRT |1|192.168.150.80|40000|"), gate());
        let _adjusted = hold(&gateway.lab, adjusted);
        let plain = hold(&gateway.lab, (login(), gate(), ask("NOOP"), ask("EPSV")));
        end(&mut gateway.daemon);
        let table = gateway.lab.gateway.run("nft", &["list", "table", "inet", "ftp_alg"]).unwrap();
        assert!(table.status.success(), "the table stays for what is adjusted");
        thread::sleep(DEADLINE + Duration::from_millis(500));
        let new = || talk(&gateway.lab, (login(), ask("NOOP")));
        for (name, session) in [("plain", plain.release()), ("new", new())] {
            let session = session.ok_in(format!("{backend}: {name}"));
            let limit = scaled_timeout(Duration::from_secs(3)).as_secs_f64() * 1000.0;
            let slow = session.steps.iter().filter(|(got, ms)| got != "gate" && *ms > limit);
            assert!(slow.count() <= 1, "{name}: {session:?}");
        }
    }
}

#[test]
fn a_restart_with_the_other_back_end_breaks_no_connection() {
    lives_through("nftables", rounds(4), |gateway, round| {
        thread::sleep(scaled_timeout(Duration::from_millis(300) + moment(round, 700)));
        gateway.daemon.kill();
        let (exe, host) = (executable(), gateway.lab.gateway.clone());
        let backend = ["conntrack", "nftables"][usize::try_from(round % 2).unwrap()];
        gateway.daemon = Daemon::start(&exe, &host, &back_end(backend)).unwrap();
    });
}

/// The debugger stops the whole daemon after it has decided that numbers change, and before the kernel knows.
#[test]
#[ignore = "nightly: needs gdb"]
fn a_connection_lives_if_the_daemon_is_stopped_in_the_middle_of_a_decision() {
    let gateway = gateway_with(Topology::Masquerade, &back_end("nftables"));
    let _server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
    let script = gateway.lab.directory().join("stop.gdb");
    let lines = "rbreak set_mark_and_liberal$\ncontinue\nshell sleep 8\ndelete\ndetach\n";
    fs::write(&script, lines).unwrap();
    let mut gdb = gateway.lab.gateway.command("gdb");
    gdb.args(["-q", "-batch", "-p", &gateway.daemon.id().to_string(), "-x"]).arg(&script);
    let mut gdb = gateway.lab.gateway.start(gdb, "gdb").unwrap();
    wait_for("gdb", || gdb.log().contains("Breakpoint 1 at"));
    let announced = ask("EPRT |1|192.168.150.80|40000|");
    let steps = (login(), announced, json!({"sleep": 4.0}), vec![ask("NOOP"); 3]);
    let session = talk(&gateway.lab, steps).ok();
    wait_for("the end of gdb", || gdb.exit_status().is_some());
    assert!(gdb.log().contains("hit Breakpoint 1"), "{}", gdb.log());
    let said = |(got, _): &&(String, f64)| got.starts_with("200 NOOP");
    assert_eq!(session.steps.iter().filter(said).count(), 3, "{session:?}");
}
