//! Clients that open many sessions and make each hold as much data as possible: memory, state files and session slots
//! stay within their limits, and other clients are served.

use super::scene::Scene;
use crate::common::*;

const PORT: u16 = 2121;

/// Rules that drop all acknowledgements of data sent to [`PORT`].
const SILENT: &str = "table inet silent {
    chain output {
        type filter hook output priority 0;
        tcp sport 2121 tcp flags & (fin | syn | rst | psh | ack) == ack drop
    }
}
";

/// Runs `crowd.py` on `host`.
fn crowd(host: &Host, name: &str, plan: &Value) -> BackgroundProcess {
    let script = host.write("crowd.py", include_bytes!("../common/crowd.py")).unwrap();
    let mut command = host.command("python3");
    command.arg(script).arg(plan.to_string());
    host.start(command, name).unwrap()
}

/// A gateway with a scripted server on port 21, and a server on [`PORT`] that never closes its connections.
fn scene(configuration: &str, answers: bool) -> (Scene, BackgroundProcess) {
    let configuration = format!("control-ports = [21, {PORT}]\n{configuration}");
    let scene = Scene::with(Topology::Routed, &configuration, &json!({}));
    let lab = &scene.gateway.lab;
    let rule = format!("insert rule inet gateway forward tcp dport {PORT} accept");
    lab.gateway.nft(&rule).unwrap();
    let server = crowd(&lab.server, "idle-server", &json!({"serve": PORT, "answers": answers}));
    lab.server.wait_for_port(PORT, Duration::from_secs(60)).unwrap();
    (scene, server)
}

/// The size of all files in the daemon's state directory, in bytes.
fn state_bytes(lab: &Lab) -> u64 {
    let path: PathBuf = lab.gateway.directory().join(format!("{}-ftp-alg", lab.gateway.role()));
    let entries = fs::read_dir(path.join("state")).unwrap();
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

/// Opens `count` connections, each with as much data in flight as one window holds.
fn open_loaded_sessions(lab: &Lab, count: usize) -> BackgroundProcess {
    lab.server.nft(SILENT).unwrap();
    // The initial congestion window allows as much data as the receiver accepts.
    let route = "ip route change $(ip route show default | head -n 1) initcwnd 60";
    lab.client2.shell(route).unwrap();
    let long = format!("SIZE {}\r\n", "x".repeat(120));
    let plan = json!({
        "host": lab.server.address(V4),
        "port": PORT,
        "connections": count,
        "say": ["PORT 10,99,99,99,9,9\r\n", "PORT 1\r\n", long],
        "times": 11_000,
    });
    crowd(&lab.client2, "crowd", &plan)
}

fn is_ready(crowd: &BackgroundProcess) -> bool {
    crowd.log().contains("ready")
}

#[test]
fn a_thousand_unacknowledged_sessions_stay_within_memory_and_journal_limits() {
    let (scene, _server) = scene("", false);
    let lab = &scene.gateway.lab;
    let daemon = &scene.gateway.daemon;
    scene.assert_transfer();
    let before = daemon.resident_kib().unwrap();
    let crowd = open_loaded_sessions(lab, 1000);
    let (mut resident, mut written) = (0, 0);
    wait_for("a thousand connections", || {
        resident = resident.max(daemon.resident_kib().unwrap());
        written = written.max(state_bytes(lab));
        is_ready(&crowd)
    });
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(200));
        resident = resident.max(daemon.resident_kib().unwrap());
        written = written.max(state_bytes(lab));
    }
    let status = daemon.status().unwrap();
    let grown = resident.saturating_sub(before);
    println!("memory has grown by {grown} KiB, {} KiB of state; {status}", written >> 10);
    assert!(status["sessions"].as_u64().unwrap() >= 990, "{status}");
    // The memory budget, 2 KiB per session, and the memory for a batch of packets.
    assert!(grown <= (64 << 10) + 2000 + (24 << 10), "memory has grown by {grown} KiB");
    // Twice the largest journal, 4 MiB, and the new file during a checkpoint.
    assert!(written <= 3 * (12 << 10) * 1000 + (4 << 20), "{written} bytes of state");
    scene.assert_transfer();
}

#[test]
fn sessions_beyond_the_memory_budget_are_reset() {
    let (scene, _server) = scene("policy.memory = \"2MiB\"\n", false);
    let lab = &scene.gateway.lab;
    let daemon = &scene.gateway.daemon;
    let crowd = open_loaded_sessions(lab, 300);
    wait_for("all connections", || is_ready(&crowd));
    scene.assert_transfer();
    wait_for("the first session to be reset", || {
        daemon.status().unwrap()["limits"]["memory"].as_u64().unwrap_or(0) > 0
    });
    for _ in 0..5 {
        let held = daemon.status().unwrap()["memory"].as_u64().unwrap();
        assert!(held <= 2 << 20, "{held}");
        scene.assert_transfer();
    }
    let log = daemon.log();
    assert!(log.contains("session reset at both ends"), "{log}");
    let reset = lab.client2.shell("ss -tan state established '( dport = 2121 )' | wc -l").unwrap();
    let open: usize = reset.stdout_text().trim().parse().unwrap();
    println!("{open} of 300 sessions are open; {}", daemon.status().unwrap());
    assert!(open < 300, "{open} sessions are open");
}

#[test]
fn active_sessions_of_one_client_leave_room_for_others() {
    let (scene, _server) = scene("policy.max-sessions = 200\n", true);
    let lab = &scene.gateway.lab;
    let plan = json!({
        "host": lab.server.address(V4),
        "port": PORT,
        "connections": 400,
        "say": ["NOOP\r\n"],
        "times": 1,
        "replies": true,
    });
    let crowd = crowd(&lab.client2, "crowd", &plan);
    wait_for("all connections", || is_ready(&crowd));
    for _ in 0..5 {
        scene.assert_transfer();
    }
    let status = scene.gateway.daemon.status().unwrap();
    assert_eq!(status["uninspected"], 0, "{status}");
    assert!(status["limits"]["client_sessions"].as_u64().unwrap() >= 200, "{status}");
    assert_eq!(scene.gateway.count("pinholes_opened"), 5);
}
