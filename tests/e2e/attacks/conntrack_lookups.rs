//! Conntrack has fifty thousand entries. The daemon must not dump the whole table for each session.

use super::scene::PORT;
use crate::common::*;

const ENTRIES: usize = 50_000;

/// Adds unrelated connections to the conntrack table of `host`.
fn add_connections(host: &Host, entries: usize) {
    let lines = format!(
        "seq {entries} | awk '{{ printf \"-I -p tcp -s 10.9.%d.%d -d 10.8.0.1 --sport 1024 --dport 80 \
         --state ESTABLISHED -t 600\\n\", $1 / 256, $1 % 256 }}' > connections
         conntrack -R connections; rm connections; conntrack -C"
    );
    let counted = host.shell(&format!("cd {}\n{lines}", host.directory().display())).unwrap();
    let count: usize = counted.stdout_text().trim().parse().unwrap();
    assert!(count >= entries, "{count} connections are tracked");
}

/// At its stop the daemon checks in conntrack whether each session with a sequence adjustment still exists.
#[test]
fn the_daemon_stops_quickly_if_conntrack_lost_its_sessions() {
    const SESSIONS: usize = 200;
    let configuration = "policy.max-pinholes-per-client = 1000\n";
    let (mut gateway, _server) = served(Topology::Masquerade, configuration, json!({}));
    let lab = &gateway.lab;
    let one = [login(), ask(PORT)].concat();
    let next = [vec![json!({"redial": true})], one.clone()].concat();
    let client = hold(lab, (&one, vec![next; SESSIONS - 1], gate()));
    let sessions = gateway.daemon.sessions().unwrap();
    let adjusted = sessions.iter().filter(|session| session["adjusted"] == json!(true)).count();
    assert!(adjusted >= SESSIONS - 1, "{adjusted} adjusted sessions");
    lab.gateway.run("conntrack", &["-F"]).unwrap();
    add_connections(&lab.gateway, ENTRIES);
    let start = std::time::Instant::now();
    gateway.daemon.stop().unwrap();
    let took = start.elapsed();
    assert!(took < scaled_timeout(Duration::from_secs(3)), "{took:?}");
    drop(client);
}
