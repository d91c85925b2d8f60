//! FTP bounce (RFC 2577): announcements of another host, a low port, or an invalid port.

use super::scene::{ANNOUNCED, PASSIVE_PORT, Scene, assert_silent, with_each_back_end};
use crate::common::*;

/// A tshark filter for connection attempts.
pub const ATTEMPTS: &str = "tcp.flags.syn == 1 && tcp.flags.ack == 0";

fn comma(host: &Host) -> String {
    host.address(V4).to_string().replace('.', ",")
}

/// Says each of `lines`, asks the server to connect, and checks that the session continues. Returns the reply to each
/// line.
fn replies_to(scene: &Scene, family: Family, lines: &[String]) -> Vec<String> {
    let mut steps = Vec::new();
    for line in lines {
        steps.extend([say(line), reply(), say("LIST"), reply(), say("NOOP"), reply()]);
    }
    let lab = &scene.gateway.lab;
    let plan = json!({"host": lab.server_address(family), "listen": [ANNOUNCED, 22]});
    let client = scene.client_of(&lab.client, &plan, &[&login()[..], &steps].concat());
    scene.assert_closed(&[ANNOUNCED, 22]);
    let session = client.release().ok();
    let answers = (0..lines.len()).map(|at| {
        assert!(session.got(8 + at * 6).starts_with("425 "), "LIST after {}", lines[at]);
        assert_eq!(session.got(10 + at * 6), "200 Noop", "after {}", lines[at]);
        session.got(6 + at * 6).to_owned()
    });
    answers.collect()
}

/// Asserts that the gateway refuses `lines`, and that the server connects to no host.
fn assert_refused(scene: &Scene, lines: &[String]) {
    assert_refused_over(scene, V4, lines);
}

fn assert_refused_over(scene: &Scene, family: Family, lines: &[String]) {
    let lab = &scene.gateway.lab;
    let attempts = Capture::start(&lab.server, "eth0", "tcp").unwrap();
    for (line, answer) in lines.iter().zip(replies_to(scene, family, lines)) {
        assert!(answer.starts_with("50") && answer.contains("the gateway"), "{line}: {answer}");
    }
    assert_eq!(scene.announcements(), [""; 0]);
    // Except the attempts that this test itself makes to check that nothing is open.
    let [v4, v6] = [V4, V6].map(|family| lab.server.address(family));
    let from_server = format!("(ip.src == {v4} || ipv6.src == {v6})");
    let others = format!("{ATTEMPTS} && {from_server} && !(tcp.dstport in {{{ANNOUNCED}, 22}})");
    let seen = attempts.finish().unwrap();
    assert_eq!(seen.count(&others).unwrap(), 0);
    assert_eq!(seen.faults().unwrap(), [""; 0]);
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
    assert_eq!(scene.gateway.count("pinholes_refused"), lines.len() as u64);
    assert_eq!(scene.gateway.count("pinholes_opened"), 0);
    scene.assert_transfer();
}

#[test]
fn a_client_cannot_bounce_to_a_third_host() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lab = &scene.gateway.lab;
    // The server sees the client with the gateway's outer address, so that is not a third host.
    let hosts = [&lab.outsider, &lab.client2, &lab.server];
    let of_host = |host: &Host| {
        [format!("PORT {},14,180", comma(host)), format!("EPRT |1|{}|3764|", host.address(V4))]
    };
    let mut lines = hosts.map(of_host).concat();
    lines.extend(["PORT 127,0,0,1,14,180", "PORT 0,0,0,1,14,180"].map(str::to_owned));
    assert_refused(&scene, &lines);
}

/// The gateway sees a dual-stack client with one of its addresses. An address of the other family may belong to any
/// host.
#[test]
fn an_announced_address_of_another_family_is_refused() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lab = &scene.gateway.lab;
    let [third, client] = [&lab.outsider, &lab.client].map(|host| host.address(V6));
    let lines = [
        format!("EPRT |2|{third}|3764|"),
        format!("EPRT |2|{client}|3764|"),
        "EPRT |2|::ffff:198.51.100.66|3764|".to_owned(),
        "EPRT |2|fe80::1%eth0|3764|".to_owned(),
    ];
    assert_refused(&scene, &lines);
}

#[test]
fn a_client_cannot_bounce_to_a_third_host_over_ipv6() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lab = &scene.gateway.lab;
    let [third, client2] = [&lab.outsider, &lab.client2].map(|host| host.address(V6));
    let lines = [
        format!("EPRT |2|{third}|3764|"),
        format!("EPRT |2|{client2}|3764|"),
        format!("PORT {},14,180", comma(&lab.outsider)),
        "EPRT |1|198.51.100.66|3764|".to_owned(),
        format!("EPRT |2|{}|22|", lab.client.address(V6)),
    ];
    assert_refused_over(&scene, V6, &lines);
}

#[test]
fn a_server_cannot_announce_a_third_host() {
    // Behind NAT: another host next to the server, the outsider, and the gateway's inner address.
    let hosts = ["192,168,150,91", "198,51,100,66", "192,168,150,1", "127,0,0,1"];
    let said = hosts.map(|host| format!("227 Entering Passive Mode ({host},195,149)"));
    let lines = [0, 1, 2, 3].map(|at| format!("PASV {at}"));
    let extra: serde_json::Map<_, _> =
        lines.iter().cloned().zip(said.clone().map(Value::from)).collect();
    let scene = Scene::new(Topology::PublishedServer, &json!({"extra": extra}));
    let client = scene.logged_in(&lines.map(|line| [say(&line), reply()]).concat());
    scene.assert_nothing_opened(&[22, PASSIVE_PORT]);
    let session = client.release();
    for (at, reply) in said.iter().enumerate() {
        assert_eq!(session.got(6 + at * 2), reply);
    }
    // A server outside: its clients must not get through to the host that it announces.
    let plan = json!({"extra": {"PASV": "227 Entering Passive Mode (198,51,100,66,195,149)"}});
    let scene = Scene::new(Topology::Masquerade, &plan);
    let lab = &scene.gateway.lab;
    let client = scene.logged_in(&[say("PASV"), reply()]);
    assert_eq!(scene.gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    assert_silent(&[(&lab.client, "198.51.100.66", PASSIVE_PORT)]);
    assert_eq!(client.release().error, None);
    scene.assert_nothing_opened(&[PASSIVE_PORT]);
}

/// A client that makes one server send to another (FXP): `PASV` to the first, `PORT` with the answer to the second.
#[test]
fn a_client_cannot_have_two_servers_connect_to_each_other() {
    for configuration in ["", "policy.foreign-address = \"allow\"\n"] {
        let gateway = gateway_with(Topology::Masquerade, configuration);
        let lab = &gateway.lab;
        let plan = json!({"passive_port": PASSIVE_PORT});
        let servers = [&lab.server, &lab.outsider].map(|host| scripted_server(host, &plan));
        let mut connected = Vec::new();
        for (here, there) in [(&lab.server, &lab.outsider), (&lab.outsider, &lab.server)] {
            let passive = [&login()[..], &[say("PASV"), reply(), say("STOR x"), reply()]].concat();
            let active = format!("PORT {},195,149", comma(here));
            let active = [&login()[..], &[say(&active), reply(), say("RETR x"), reply()]].concat();
            let at = |host: &Host| json!(host.address(V4));
            let gate = gate();
            let steps = [&passive[..], &[gate]].concat();
            let waiting = gated_client(&lab.client, json!({"host": at(here), "steps": steps}));
            let session =
                scripted_client(&lab.client, &json!({"host": at(there), "steps": active}));
            connected.push(session.got(8).starts_with("150 "));
            drop(waiting);
        }
        let peers =
            || -> Vec<_> { servers.iter().flat_map(|server| server.data_peers()).collect() };
        let allowed = !configuration.is_empty();
        assert_eq!(connected, [allowed; 2]);
        if allowed {
            wait_for("a data connection", || !peers().is_empty());
        } else {
            assert_eq!(peers(), [""; 0]);
        }
    }
}

#[test]
fn a_bounce_is_refused_with_either_back_end() {
    with_each_back_end(|back_end| {
        let scene = Scene::with(Topology::Masquerade, back_end, &json!({}));
        let lines = [format!("PORT {},14,178", comma(&scene.gateway.lab.client2))];
        assert_refused(&scene, &lines);
    });
}
