//! An off-path attacker spoofs five hundred packets a second, while conntrack has fifty thousand entries. The daemon
//! must not dump the whole table for them, and an honest client must get its replies without delay.

use super::scene::{ANNOUNCED, PORT, Scene};
use crate::common::*;

const ENTRIES: usize = 50_000;
const RATE: u32 = 500;

/// The number of commands that are timed before an attack, and during it.
const TIMED: usize = 45;

/// The packets that the attacker sends; `spoof.py` describes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ports,
    Published,
    Midstream,
    Lookalike,
    /// SYN-ACKs on the tuple of another client's connection.
    SynAck,
    /// SYN-ACKs on the tuple of the honest client's own connection, whose commands wait for their verdicts anyway.
    OwnSynAck,
}

/// Adds unrelated connections to the conntrack table of `host`.
fn fill(host: &Host, entries: usize) {
    use std::fmt::Write as _;
    let mut lines = String::new();
    for number in 0..entries {
        let (port, high, low) = (1024 + (number >> 16), number >> 8 & 255, number & 255);
        let _ = writeln!(
            lines,
            "-I -p tcp -s 10.9.{high}.{low} -d 10.8.0.1 --sport {port} --dport 80 \
             --state ESTABLISHED -t 600"
        );
    }
    let file = host.write("connections", lines.as_bytes()).unwrap();
    host.run("conntrack", &["-R", &file.to_string_lossy()]).unwrap();
    let count =
        host.run("conntrack", &["-C"]).unwrap().stdout_text().trim().parse::<usize>().unwrap();
    assert!(count >= entries, "{count} connections are tracked");
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The median reply times of an honest client's commands, before and during an attack.
fn median_reply_times(scene: &Scene, kind: Kind) -> (f64, f64) {
    let lab = &scene.gateway.lab;
    let timed = (0..TIMED).flat_map(|number| {
        let line = ["NOOP", "SITE x", "TYPE I"][number % 3];
        [say(line), reply(), json!({"sleep": 0.01})]
    });
    let timed: Vec<_> = timed.collect();
    let gate = vec![gate()];
    let steps = [login(), timed.clone(), gate, timed].concat();
    let client = hold(lab, steps);
    let neighbour =
        (kind == Kind::SynAck).then(|| scene.client_of(&lab.client2, &json!({}), &login()));
    let text = |host: &Host| host.address(V4).to_string();
    let (client_address, server, outside) =
        (text(&lab.client), text(&lab.server), text(&lab.gateway));
    let of = if kind == Kind::SynAck { &lab.client2 } else { &lab.client };
    let query = format!(
        "conntrack -L -p tcp -s {} --orig-port-dst 21 2>/dev/null | \
         sed -n 's/.*ESTABLISHED.* src=[0-9.]* dst=[0-9.]* sport=21 dport=\\([0-9]*\\) .*/\\1/p'",
        of.address(V4),
    );
    let ports = lab.gateway.shell(&query).unwrap().stdout_text();
    let port: u16 = ports.lines().last().unwrap_or_else(|| panic!("{ports}")).parse().unwrap();
    let (name, from, to) = match kind {
        Kind::Ports => ("ports", "", outside),
        Kind::Published => ("published", "", outside),
        Kind::Midstream => ("midstream", "", outside),
        Kind::Lookalike => ("lookalike", client_address.as_str(), server),
        Kind::SynAck | Kind::OwnSynAck => ("syn-ack", server.as_str(), outside),
    };
    let plan =
        json!({"kind": name, "rate": RATE, "seconds": 2, "from": from, "to": to, "port": port});
    let script = lab.outsider.write("spoof.py", include_bytes!("spoof.py")).unwrap();
    let mut command = lab.outsider.command("/usr/bin/python3");
    command.arg(script).arg(plan.to_string());
    let queued = scene.gateway.count("packets");
    let mut attack = lab.outsider.start(command, "spoof").unwrap();
    wait_for("the attack", || attack.log().contains("began"));
    let session = client.release();
    wait_for("the attack's end", || attack.exit_status().is_some());
    let queued = scene.gateway.count("packets") - queued;
    let log = attack.log();
    let sent: u64 = log.lines().last().unwrap().parse().unwrap();
    match kind {
        // A SYN-ACK without a SYN needs no verdict. Only packets with data are queued.
        Kind::SynAck | Kind::OwnSynAck => assert!(queued < sent, "{queued} packets were queued"),
        _ => assert!(queued > sent / 2, "{kind:?}: only {queued} of {sent} packets were queued"),
    }
    assert_eq!(session.error, None, "{kind:?}");
    if let Some(neighbour) = neighbour {
        assert_eq!(neighbour.release().error, None);
    }
    let of = |first: usize| {
        let steps = &session.steps[first..first + 3 * TIMED];
        let answers = steps.iter().skip(1).step_by(3).map(|(_, ms)| *ms);
        median(&mut answers.collect::<Vec<_>>())
    };
    let before = of(login().len());
    (before, of(login().len() + 3 * TIMED + 1))
}

/// Prepares the gateway for an attack.
fn prepare(scene: &Scene, kind: Kind) {
    let lab = &scene.gateway.lab;
    let outer = lab.server_side();
    match kind {
        Kind::Published => {
            let inside = lab.client2.address(V4);
            let rules = format!(
                "table ip published {{ chain pre {{ type nat hook prerouting priority -100; \
                 iifname {outer} tcp dport 21 dnat to {inside}:2121; }}; }}"
            );
            lab.gateway.nft(&rules).unwrap();
        }
        Kind::Lookalike => {
            let server = lab.server.address(V4);
            let gateway = lab.gateway.address(V6);
            lab.gateway.shell(&format!("ip -6 route add ::{server}/128 dev {outer}")).unwrap();
            lab.outsider.shell(&format!("ip -6 route add ::/96 via {gateway}")).unwrap();
        }
        _ => {}
    }
}

/// Other load on the machine may delay replies, so only one of several attempts must be in time.
fn assert_answered_in_time(scene: &Scene, kind: Kind) {
    prepare(scene, kind);
    let mut tries = Vec::new();
    for _ in 0..4 {
        let (before, during) = median_reply_times(scene, kind);
        println!("{kind:?}: {before:.3} ms before, {during:.3} ms during");
        if during <= 2.0 * before {
            return;
        }
        tries.push((before, during));
    }
    panic!("{kind:?}: reply times before and during the attack, in ms: {tries:?}");
}

#[test]
fn spoofed_packets_do_not_delay_other_clients() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    fill(&scene.gateway.lab.gateway, ENTRIES);
    for kind in [Kind::Ports, Kind::Midstream, Kind::Lookalike, Kind::SynAck, Kind::Published] {
        assert_answered_in_time(&scene, kind);
    }
}

#[test]
fn spoofed_syn_acks_do_not_delay_their_own_client() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    assert_answered_in_time(&scene, Kind::OwnSynAck);
}

/// At its stop the daemon checks in conntrack whether each session with a sequence adjustment still exists.
#[test]
fn the_daemon_stops_quickly_if_conntrack_lost_its_sessions() {
    const SESSIONS: usize = 200;
    let configuration = "policy.max-pinholes-per-client = 1000\n";
    let mut scene = Scene::with(Topology::Masquerade, configuration, &json!({}));
    let lab = &scene.gateway.lab;
    let host = lab.server_address(V4).to_string();
    let one = [&login()[..], &[say(PORT), reply()]].concat();
    let next = [&[json!({"redial": true})][..], &one].concat();
    let steps = [&one[..], &vec![next; SESSIONS - 1].concat()].concat();
    let client =
        scene.client_of(&lab.client, &json!({"host": host, "listen": [ANNOUNCED]}), &steps);
    let sessions = scene.gateway.daemon.sessions().unwrap();
    let adjusted = sessions.iter().filter(|session| session["adjusted"] == json!(true)).count();
    assert!(adjusted >= SESSIONS - 1, "{adjusted} adjusted sessions");
    lab.gateway.run("conntrack", &["-F"]).unwrap();
    fill(&lab.gateway, ENTRIES);
    let start = std::time::Instant::now();
    scene.gateway.daemon.stop().unwrap();
    let took = start.elapsed();
    println!("the daemon stopped within {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    drop(client);
}
