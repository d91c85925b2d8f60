//! FTP bounce (RFC 2577): announcements of another host, a low port, or an invalid port.

use super::scene::{ANNOUNCED, PASSIVE_PORT, PORT, Scene, assert_silent, with_each_back_end};
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
pub fn assert_refused(scene: &Scene, lines: &[String]) {
    assert_refused_over(scene, V4, lines);
}

fn assert_refused_over(scene: &Scene, family: Family, lines: &[String]) {
    let lab = &scene.gateway.lab;
    let attempts = Capture::start(&lab.server, "eth0", "tcp").unwrap();
    for (line, answer) in lines.iter().zip(replies_to(scene, family, lines)) {
        // If a line may be several commands for the server, the gateway cannot tell which reply answers which.
        let is_plain = line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        let names_gateway = !is_plain || answer.contains("the gateway");
        assert!(answer.starts_with("50") && names_gateway, "{line}: {answer}");
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

/// Commands that are no announcement, or announce a port that the policy forbids.
const INVALID: &str = "
    PORT 192,168,150,80,0,22
    PORT 192,168,150,80,3,255
    PORT 192,168,150,80,0,0
    EPRT |1|192.168.150.80|22|
    EPRT |1|192.168.150.80|1023|
    PORT 192,168,150,80,256,22
    PORT 192,168,150,80,14,434
    PORT 300,168,150,80,14,178
    PORT 448,424,406,336,14,178
    PORT 192,168,150,80,4294967310,178
    PORT 192,168,150,80,-1,178
    EPRT |1|192.168.150.80|65558|
    EPRT |1|192.168.150.80|69298|
    EPRT |1|192.168.150.80|4294971058|
    EPRT |1|448.424.406.336|3762|
    PORT 192,168,150,80,14,178,9
    PORT 192,168,150,80,14,178 x
    PORT 192,168,150,80,14,178x
    PORT 192,168,150,80,14,178;
    PORT 192,168,150,80,14,178,
    PORT 192,168,150,80,14
    PORT ,192,168,150,80,14,178
    EPRT |1|192.168.150.80|3762|x
    EPRT |1|192.168.150.80|3762
    EPRT |1|192.168.150.80|3762||
";

/// Ports below the lowest one, numbers that are the client's own address or port 22 modulo 256 or 65536, and text before
/// or behind an endpoint.
#[test]
fn low_ports_numbers_out_of_range_and_more_text_are_refused() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lines = INVALID.lines().map(str::trim).filter(|line| !line.is_empty());
    let behind_cr = format!("{PORT}\rPORT 198,51,100,66,14,180");
    let lines: Vec<_> = lines.map(str::to_owned).chain([behind_cr]).collect();
    assert_refused(&scene, &lines);
}

/// Lets a published server send each of `replies` to a `PASV` or `EPSV`. The client must receive a 425, or the reply
/// itself if it contains no valid host-port. No pinhole may open.
fn assert_replies_open_nothing(replies: &[&str]) {
    let commands = replies.iter().enumerate().map(|(at, reply)| {
        let verb = if reply.starts_with("227") { "PASV" } else { "EPSV" };
        (format!("{verb} {at}"), json!(reply))
    });
    let extra: serde_json::Map<String, Value> = commands.collect();
    let scene = Scene::new(Topology::PublishedServer, &json!({"extra": extra}));
    let lines = extra.keys();
    let steps: Vec<_> = lines.clone().flat_map(|line| [say(line), reply()]).collect();
    let client = scene.logged_in(&steps);
    scene.assert_nothing_opened(&[22, PASSIVE_PORT]);
    let session = client.release();
    for (at, line) in lines.enumerate() {
        let (heard, said) = (session.got(6 + at * 2), extra[line].as_str().unwrap());
        assert!(heard == said || heard.starts_with("425 Gateway: "), "reply to {line}: {heard}");
        let is_invalid =
            ["256", "405", "65558", "115605"].iter().any(|number| said.contains(number));
        let is_foreign = said.starts_with("227") && !said.contains("192,168,150,90");
        assert_eq!(heard == said, is_invalid || is_foreign, "reply to {line}: {heard}");
    }
}

#[test]
fn a_server_cannot_announce_a_low_or_invalid_port() {
    assert_replies_open_nothing(&[
        "227 Entering Passive Mode (192,168,150,90,0,22)",
        "227 Entering Passive Mode (192,168,150,90,256,22)",
        "227 Entering Passive Mode (192,168,150,90,195,405)",
        "229 Entering Extended Passive Mode (|||22|)",
        "229 Entering Extended Passive Mode (|||65558|)",
        "229 Entering Extended Passive Mode (|||115605|)",
    ]);
}

#[test]
fn a_server_cannot_announce_a_third_host() {
    // Behind NAT: another host next to the server, the outsider, and the gateway's inner address.
    assert_replies_open_nothing(&[
        "227 Entering Passive Mode (192,168,150,91,195,149)",
        "227 Entering Passive Mode (198,51,100,66,195,149)",
        "227 Entering Passive Mode (192,168,150,1,195,149)",
        "227 Entering Passive Mode (127,0,0,1,195,149)",
    ]);
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
