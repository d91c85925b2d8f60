//! FTP bounce (RFC 2577): announcements that name another host, a low port, or what is no port.

use ftp_alg::lab::{Capture, Family, Host, Topology};
use serde_json::{Value, json};

use crate::{
    common::{gated_client, gateway_with, login, reply, say, scripted_client, scripted_server},
    scene::{ANNOUNCED, BACK_ENDS, PASSIVE_PORT, PORT, Scene, assert_silent},
};

/// Attempts to connect.
pub const SYN: &str = "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn";

fn comma(host: &Host) -> String {
    host.address(Family::V4).to_string().replace('.', ",")
}

/// What each of `lines` is answered when a client says it, then lets the server connect, and the
/// session goes on.
fn said(scene: &Scene, lines: &[String]) -> Vec<String> {
    let mut steps = Vec::new();
    for line in lines {
        steps.extend([say(line), reply(), say("LIST"), reply(), say("NOOP"), reply()]);
    }
    let client = scene.logged_in(&steps);
    scene.assert_closed(&[ANNOUNCED, 22]);
    let session = client.release();
    assert_eq!(session.error, None);
    let answers = (0..lines.len()).map(|at| {
        assert!(session.got(8 + at * 6).starts_with("425 "), "LIST after {}", lines[at]);
        assert_eq!(session.got(10 + at * 6), "200 Noop", "after {}", lines[at]);
        session.got(6 + at * 6).to_owned()
    });
    answers.collect()
}

/// The server refuses what it gets instead of `lines`, and connects to nobody.
pub fn assert_refused(scene: &Scene, lines: &[String]) {
    let lab = &scene.gateway.lab;
    let attempts = Capture::start(&lab.server, "eth0", SYN).unwrap();
    for (line, answer) in lines.iter().zip(said(scene, lines)) {
        assert!(answer.starts_with("500 "), "{line}: {answer}");
    }
    assert_eq!(scene.announcements(), [""; 0]);
    // But for those that this test made, to see whether anything is open.
    let server = lab.server.address(Family::V4);
    let made = format!("tcp.dstport in {{{ANNOUNCED}, 22}}");
    let attempts = attempts.finish().unwrap();
    assert_eq!(attempts.count(&format!("ip.src == {server} && !({made})")).unwrap(), 0);
    assert_eq!(scene.gateway.daemon.counter("pinholes_refused").unwrap(), lines.len() as u64);
    assert_eq!(scene.gateway.daemon.counter("pinholes_opened").unwrap(), 0);
    scene.assert_transfer();
}

#[test]
fn a_client_cannot_send_the_server_to_a_third_host() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lab = &scene.gateway.lab;
    let mut lines = Vec::new();
    for host in [&lab.third, &lab.client2, &lab.gateway, &lab.server] {
        let (commas, dots) = (comma(host), host.address(Family::V4));
        // The gateway's outer address is what the client's own is seen as, so it is no third host.
        if host.role() != "gateway" {
            lines.push(format!("PORT {commas},14,180"));
            lines.push(format!("EPRT |1|{dots}|3764|"));
        }
    }
    lines.extend(["PORT 127,0,0,1,14,180", "PORT 0,0,0,0,14,180"].map(str::to_owned));
    assert_refused(&scene, &lines);
}

#[test]
fn a_client_cannot_send_the_server_to_a_low_port() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lines = [
        "PORT 192,168,150,80,0,22",
        "PORT 192,168,150,80,3,255",
        "PORT 192,168,150,80,0,0",
        "EPRT |1|192.168.150.80|22|",
        "EPRT |1|192.168.150.80|1023|",
    ];
    assert_refused(&scene, &lines.map(str::to_owned));
}

/// Modulo 256 and 65536 these are port 22, or the client's own address.
#[test]
fn numbers_that_are_no_octets_and_no_ports_are_no_announcement() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lines = [
        "PORT 192,168,150,80,256,22",
        "PORT 192,168,150,80,14,434",
        "PORT 300,168,150,80,14,178",
        "PORT 448,424,406,336,14,178",
        "PORT 192,168,150,80,4294967310,178",
        "PORT 192,168,150,80,-1,178",
        "EPRT |1|192.168.150.80|65558|",
        "EPRT |1|192.168.150.80|69298|",
        "EPRT |1|192.168.150.80|4294971058|",
        "EPRT |1|448.424.406.336|3762|",
    ];
    assert_refused(&scene, &lines.map(str::to_owned));
}

#[test]
fn what_follows_an_announcement_in_its_line_makes_it_none() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lines = [
        format!("{PORT},9"),
        format!("{PORT} x"),
        format!("{PORT}x"),
        format!("{PORT};"),
        format!("{PORT},"),
        format!("{PORT}\rPORT 198,51,100,66,14,180"),
        "PORT 192,168,150,80,14".to_owned(),
        "PORT ,192,168,150,80,14,178".to_owned(),
        "EPRT |1|192.168.150.80|3762|x".to_owned(),
        "EPRT |1|192.168.150.80|3762".to_owned(),
        "EPRT |1|192.168.150.80|3762||".to_owned(),
    ];
    assert_refused(&scene, &lines);
}

/// What a published server answers, each to a `PASV` or `EPSV`: it goes on as it is, and opens no door.
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
        assert_eq!(session.got(6 + at * 2), extra[line], "to {line}");
    }
}

#[test]
fn a_server_cannot_announce_a_low_port_or_one_that_is_none() {
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
    // Behind NAT: another host beside it, the stranger, and the gateway's inner address.
    assert_replies_open_nothing(&[
        "227 Entering Passive Mode (192,168,150,91,195,149)",
        "227 Entering Passive Mode (198,51,100,66,195,149)",
        "227 Entering Passive Mode (192,168,150,1,195,149)",
        "227 Entering Passive Mode (127,0,0,1,195,149)",
    ]);
    // Outside: its clients do not get to where it sends them.
    let plan = json!({"extra": {"PASV": "227 Entering Passive Mode (198,51,100,66,195,149)"}});
    let scene = Scene::new(Topology::Masquerade, &plan);
    let lab = &scene.gateway.lab;
    let client = scene.logged_in(&[say("PASV"), reply()]);
    assert_eq!(scene.gateway.daemon.openings().unwrap(), [""; 0]);
    assert_silent(&[(&lab.client, "198.51.100.66", PASSIVE_PORT)]);
    assert_eq!(client.release().error, None);
    scene.assert_nothing_opened(&[PASSIVE_PORT]);
}

/// A client that has one server send to another (FXP): `PASV` here, `PORT` with its answer there.
#[test]
fn a_client_cannot_have_two_servers_connect_to_each_other() {
    for configuration in ["", "policy.foreign-address = \"allow\"\n"] {
        let gateway = gateway_with(Topology::Masquerade, configuration);
        let lab = &gateway.lab;
        let plan = json!({"passive_port": PASSIVE_PORT});
        let servers = [&lab.server, &lab.third].map(|host| scripted_server(host, &plan));
        let mut connected = Vec::new();
        for (here, there) in [(&lab.server, &lab.third), (&lab.third, &lab.server)] {
            let passive = [&login()[..], &[say("PASV"), reply(), say("STOR x"), reply()]].concat();
            let active = format!("PORT {},195,149", comma(here));
            let active = [&login()[..], &[say(&active), reply(), say("RETR x"), reply()]].concat();
            let at = |host: &Host| json!(host.address(Family::V4));
            let gate = json!({"gate": ""});
            let steps = [&passive[..], &[gate]].concat();
            let waiting = gated_client(&lab.client, json!({"host": at(here), "steps": steps}));
            let session =
                scripted_client(&lab.client, &json!({"host": at(there), "steps": active}));
            connected.push(session.got(8).starts_with("150 "));
            drop(waiting);
        }
        let peers: Vec<_> = servers.iter().flat_map(|server| server.data_peers()).collect();
        let allowed = !configuration.is_empty();
        assert_eq!((connected, peers.is_empty()), (vec![allowed; 2], !allowed), "{peers:?}");
    }
}

/// The third host is listening, and so is the client: what differs is the address in the command.
#[test]
fn with_either_back_end_a_bounce_is_refused() {
    for back_end in BACK_ENDS {
        let scene = Scene::with(Topology::Masquerade, back_end, &json!({}));
        let lines = [format!("PORT {},14,178", comma(&scene.gateway.lab.client2))];
        assert_refused(&scene, &lines);
    }
}
