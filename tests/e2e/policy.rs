//! What opens a pinhole and what does not, whom it admits, and when it closes.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::common::{
    captures, connect, connect_in_vain, fast_path, gated_client, gateway, gateway_with, has_tcx,
    host_port, login, names::reload, reply, say, scripted_client, scripted_server, wait_for,
};
use ftp_alg_lab::{Family, Topology, scaled_timeout};
use serde_json::{Value, json};

const PORT: &str = "PORT 192,168,150,80,14,178";

/// A client that announced 3762, and waits; then ends properly or not.
fn announced(after: &[Value]) -> Vec<Value> {
    let mut steps = login();
    steps.extend([say(PORT), reply(), json!({"gate": ""})]);
    steps.extend_from_slice(after);
    steps
}

#[test]
fn refused_announcements_never_reach_the_server() {
    let refused = [
        // Another host (FTP bounce, RFC 2577), a low port, nonsense.
        "PORT 198,51,100,66,4,1",
        "PORT 192,168,150,80,0,22",
        "PORT 192,168,150,80,256,22",
        "PORT 192,168,150",
        "EPRT |1|198.51.100.66|3762|",
        "EPRT |1|192.168.150.80|22|",
        "EPRT |2|fd00:150::80|3762|",
    ];
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let server = scripted_server(&lab.server, &json!({}));
    let (_, outer) = captures(lab);
    let mut steps = login();
    for line in refused {
        steps.extend([say(line), reply(), say("NOOP"), reply()]);
    }
    let host = lab.server_address(Family::V4).to_string();
    let session = scripted_client(&lab.client, &json!({"host": host, "steps": steps}));
    assert_eq!(session.error, None);
    for (number, line) in refused.iter().enumerate() {
        let answer = session.got(6 + number * 4);
        assert!(answer.starts_with('5'), "{line}: {answer}");
        assert_eq!(session.got(8 + number * 4), "200 Noop", "behind {line}");
    }
    for line in server.lines() {
        let verb = line.trim().to_uppercase();
        assert!(
            !verb.starts_with("PORT") && !verb.starts_with("EPRT"),
            "reached the server: {line}"
        );
    }
    let outer = outer.finish().unwrap();
    assert_eq!(outer.announcements().unwrap(), [""; 0]);
    assert_eq!(outer.faults().unwrap(), [""; 0]);
    assert_eq!(gateway.daemon.counter("pinholes_opened").unwrap(), 0);
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
}

#[test]
fn what_is_refused_thousands_of_times_is_counted_and_logged_at_a_bounded_rate() {
    let gateway = gateway(Topology::Masquerade);
    let (lab, daemon) = (&gateway.lab, &gateway.daemon);
    let _server = scripted_server(&lab.server, &json!({}));
    let (batches, lines) = (20, 100);
    let mut steps = login();
    for _ in 0..batches {
        steps.push(json!({"send": "PORT 198,51,100,66,4,1\r\n".repeat(lines)}));
        steps.extend(vec![reply(); lines]);
    }
    steps.extend([say("NOOP"), reply()]);
    let host = lab.server_address(Family::V4).to_string();
    let started = Instant::now();
    let session = scripted_client(&lab.client, &json!({"host": host, "steps": steps}));
    assert_eq!(session.error, None);
    assert_eq!(session.steps.last().unwrap().0, "200 Noop");
    let refused = (batches * lines) as u64;
    assert_eq!(daemon.counter("pinholes_refused").unwrap(), refused);

    // A summary follows within two seconds of the last line.
    let said = || -> (u64, u64) {
        let log = daemon.log();
        let logged = log.lines().filter(|line| line.contains("refuse PORT")).count() as u64;
        let more = |line: &str| -> Option<u64> {
            line.split_once(" more lines were not logged: refusals")?
                .0
                .rsplit(' ')
                .next()?
                .parse()
                .ok()
        };
        (logged, log.lines().filter_map(more).sum())
    };
    wait_for("the summary", || {
        let (logged, skipped) = said();
        logged + skipped == refused
    });
    let (logged, skipped) = said();
    let most = 20 + started.elapsed().as_secs() + 1;
    assert!((20..=most).contains(&logged), "{logged} of at most {most}");
    assert_eq!(daemon.counter("log_lines_skipped").unwrap(), skipped);
}

#[test]
fn pinhole_admits_the_server_once_and_nobody_else() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let server = scripted_server(&lab.server, &json!({}));
    let host = lab.server_address(Family::V4).to_string();
    let plan = json!({"host": host, "listen": [3762], "steps": announced(&[])});
    let client = gated_client(&lab.client, plan);
    assert_eq!(gateway.daemon.pinholes().unwrap().len(), 1);
    let lines = server.lines();
    let (address, port) = host_port(lines.last().unwrap());

    assert_eq!(connect_in_vain(&lab.outsider, &address, port), "silent", "an off-path attacker");
    assert_eq!(
        connect_in_vain(&lab.server, &address, port.wrapping_add(1)),
        "silent",
        "another port"
    );
    assert_eq!(connect(&lab.server, &address, port), "open", "the server");
    assert_eq!(connect_in_vain(&lab.server, &address, port), "silent", "the server again");
    assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    assert_eq!(client.release().error, None);
}

#[test]
fn passive_pinhole_admits_only_the_client_that_asked() {
    let gateway = gateway(Topology::PublishedServer);
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({"passive_port": 50069}));
    let (outer, _) = captures(lab);
    let mut steps = login();
    steps.extend([say("PASV"), reply(), json!({"gate": ""})]);
    steps.extend([json!({"dial": true, "later": true}), say("LIST"), reply()]);
    steps.extend([json!({"drain": true}), reply()]);
    let host = lab.server_address(Family::V4).to_string();
    let client = gated_client(&lab.client, json!({"host": host, "steps": steps}));
    let announcements = outer.finish().unwrap().announcements().unwrap();
    let (address, port) = host_port(&announcements[0]);
    assert_eq!(connect_in_vain(&lab.client2, &address, port), "silent", "another client");
    assert_eq!(connect_in_vain(&lab.outsider, &address, port), "silent", "an off-path attacker");
    assert_eq!(
        connect_in_vain(&lab.outsider, "192.168.150.90", 50069),
        "silent",
        "past the translation"
    );
    let session = client.release();
    assert_eq!(session.error, None);
    assert_eq!(session.got(11), "the body\r\n");
}

#[test]
fn pinhole_closes_with_its_control_connection() {
    for (what, end) in [
        ("QUIT", vec![say("QUIT"), reply()]),
        ("a close without QUIT", vec![]),
        ("a reset", vec![json!({"abort": true})]),
    ] {
        let gateway = gateway(Topology::Masquerade);
        let lab = &gateway.lab;
        let _server = scripted_server(&lab.server, &json!({}));
        let host = lab.server_address(Family::V4).to_string();
        let plan = json!({"host": host, "listen": [3762], "steps": announced(&end)});
        let client = gated_client(&lab.client, plan);
        assert!(!gateway.daemon.open_pinholes().unwrap().is_empty(), "{what}");
        assert_eq!(client.release().error, None, "{what}");
        gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0], "{what}");
    }
}

#[test]
fn pinhole_closes_when_the_server_refuses_the_announcement() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let server = scripted_server(&lab.server, &json!({"extra": {"PORT": "500 I do not like it"}}));
    let host = lab.server_address(Family::V4).to_string();
    let plan = json!({"host": host, "listen": [3762], "steps": announced(&[])});
    let client = gated_client(&lab.client, plan);
    gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    let (address, port) = host_port(server.lines().last().unwrap());
    assert_eq!(connect_in_vain(&lab.server, &address, port), "silent");
    drop(client);
}

/// In the rules, and in the fast path's program.
#[test]
fn a_reload_closes_what_it_forbids() {
    for fast_path in ["auto", "off"] {
        let configuration =
            format!("queue.fast-path = \"{fast_path}\"\npinhole.backend = \"nftables\"\n");
        let gateway = gateway_with(Topology::Masquerade, &configuration);
        let lab = &gateway.lab;
        let _server = scripted_server(&lab.server, &json!({}));
        let host = lab.server_address(Family::V4).to_string();
        let plan =
            json!({"host": host, "listen": [3762], "steps": announced(&[say(PORT), reply()])});
        let client = gated_client(&lab.client, plan);
        assert_eq!(gateway.daemon.open_pinholes().unwrap().len(), 1, "fast path {fast_path}");
        reload(&gateway.daemon, &format!("{configuration}policy.deny-ports = [3762]\n"));
        let in_use = "the new configuration is in use";
        wait_for(in_use, || gateway.daemon.log().contains(in_use));
        assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0], "fast path {fast_path}");
        assert!(gateway.daemon.pinholes().unwrap().is_empty(), "fast path {fast_path}");
        // The same session announces it again.
        let session = client.release();
        assert_eq!(session.error, None, "fast path {fast_path}");
        let answer = session.got(login().len() + 4);
        assert!(answer.contains("Refused by the gateway"), "fast path {fast_path}: {answer}");
        assert_eq!(gateway.daemon.counter("pinholes_opened").unwrap(), 1, "fast path {fast_path}");
    }
}

/// The program would admit it again without a reload.
#[test]
fn a_reload_also_forbids_what_a_rule_has_dropped() {
    let configuration = "pinhole.backend = \"nftables\"\n";
    let gateway = gateway_with(Topology::Masquerade, configuration);
    let (lab, daemon) = (&gateway.lab, &gateway.daemon);
    let state = fast_path(daemon);
    if !has_tcx(&state) {
        println!("not tried: {}", state["why"]);
        return;
    }
    assert_eq!(state["state"], "on", "{state}");
    // A server that takes zeros, so that the program opens for PORT.
    let _server = scripted_server(&lab.server, &json!({"greeting": "220 (vsFTPd 3.0.3)"}));
    let host = lab.server_address(Family::V4).to_string();
    let plan = json!({"host": host, "listen": [3762], "steps": announced(&[])});
    let client = gated_client(&lab.client, plan);
    lab.gateway
        .nft(
            "table ip block { chain forward { type filter hook forward priority -1
                tcp dport 3762 drop
            }; }",
        )
        .unwrap();
    thread::scope(|scope| {
        let external = SocketAddr::from(([198, 51, 100, 1], 3762));
        let limit = scaled_timeout(Duration::from_secs(4));
        let connect = move || TcpStream::connect_timeout(&external, limit);
        let connection = scope.spawn(move || lab.server.inside(connect).unwrap());
        wait_for("the first SYN", || fast_path(daemon)["admitted"] == 1);
        reload(daemon, &format!("{configuration}policy.deny-ports = [3762]\n"));
        let in_use = "the new configuration is in use";
        wait_for(in_use, || daemon.log().contains(in_use));
        lab.gateway.nft("delete table ip block").unwrap();
        let error = connection.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    });
    assert_eq!(client.release().error, None);
}

#[test]
fn unused_pinhole_closes_in_time() {
    let gateway = gateway_with(Topology::Masquerade, "[pinhole]\ntimeout = \"1s\"\n");
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    let host = lab.server_address(Family::V4).to_string();
    let plan = json!({"host": host, "listen": [3762], "steps": announced(&[])});
    let client = gated_client(&lab.client, plan);
    assert_eq!(gateway.daemon.pinholes().unwrap().len(), 1);
    gateway.daemon.wait_for_no_pinholes(Duration::from_secs(3)).unwrap();
    assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    assert_eq!(client.release().error, None);
}

#[test]
fn text_that_looks_like_an_announcement_opens_nothing() {
    let status = "211-Status\r\n227 Entering Passive Mode (192,168,150,90,195,149)\r\n211 End";
    let extra =
        json!({"STAT": status, "FEAT": "227 Entering Passive Mode (192,168,150,90,195,149)"});
    let gateway = gateway(Topology::PublishedServer);
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({"extra": extra}));
    let mut steps = login();
    steps.extend([say("STAT"), reply(), say("FEAT"), reply(), say("NOOP"), reply()]);
    let host = lab.server_address(Family::V4).to_string();
    let session = scripted_client(&lab.client, &json!({"host": host, "steps": steps}));
    assert_eq!(session.error, None);
    assert_eq!(session.got(6), status.replace("\r\n", "\n"), "untouched");
    assert_eq!(session.got(10), "200 Noop");
    assert_eq!(gateway.daemon.counter("pinholes_opened").unwrap(), 0);
}

#[test]
fn nothing_opens_before_a_login() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    let host = lab.server_address(Family::V4).to_string();
    let steps = [reply(), say(PORT), reply()];
    scripted_client(&lab.client, &json!({"host": host, "listen": [3762], "steps": steps}));
    assert_eq!(gateway.daemon.counter("pinholes_opened").unwrap(), 0);
}

#[test]
fn a_browser_cannot_be_talked_into_opening_a_pinhole() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({"extra": {"POST": "230 fine"}}));
    let host = lab.server_address(Family::V4).to_string();
    let mut steps = vec![reply(), say("POST / HTTP/1.1"), reply(), say("Host: ftp"), reply()];
    steps.extend([say("USER lab"), reply(), say("PASS lab"), reply(), say(PORT), reply()]);
    scripted_client(&lab.client, &json!({"host": host, "listen": [3762], "steps": steps}));
    assert_eq!(gateway.daemon.counter("pinholes_opened").unwrap(), 0);
}

/// Windows sends a refused SYN again, twice within a second, and some servers announce a port before they listen.
#[test]
fn a_pinhole_whose_target_refuses_opens_again_until_it_is_closed() {
    for (topology, family, backend, fast_path) in [
        (Topology::Masquerade, Family::V4, "nftables", "off"),
        (Topology::Masquerade, Family::V4, "nftables", "auto"),
        (Topology::Masquerade, Family::V4, "conntrack", "off"),
        (Topology::Masquerade, Family::V6, "nftables", "off"),
        (Topology::Routed, Family::V6, "nftables", "off"),
    ] {
        let what = format!("{topology:?} {family:?} {backend} {fast_path}");
        let configuration =
            format!("pinhole.backend = \"{backend}\"\nqueue.fast-path = \"{fast_path}\"\n");
        let gateway = gateway_with(topology, &configuration);
        let lab = &gateway.lab;
        let server = scripted_server(&lab.server, &json!({}));
        let host = lab.server_address(family).to_string();
        let line = match family {
            Family::V4 => PORT.to_owned(),
            Family::V6 => format!("EPRT |2|{}|3762|", lab.client.address(family)),
        };
        let mut steps = login();
        steps.extend([say("NOOP"), reply(), say(&line), reply(), json!({"gate": ""})]);
        let client = gated_client(&lab.client, json!({"host": host, "steps": steps}));
        let announced = server.lines().last().unwrap().clone();
        let (address, port) = match family {
            Family::V4 => host_port(&announced),
            Family::V6 => {
                let fields: Vec<_> = announced.trim().split('|').collect();
                (fields[2].to_owned(), fields[3].parse().unwrap())
            }
        };
        for attempt in 0..3 {
            assert_eq!(connect(&lab.server, &address, port), "refused", "{what}, {attempt}");
            assert_eq!(gateway.daemon.open_pinholes().unwrap().len(), 1, "{what}, {attempt}");
        }
        let listens = |host: &ftp_alg_lab::Host| {
            host.inside(|| std::net::TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, 3762)))
        };
        let listener = listens(&lab.client).unwrap().unwrap();
        assert_eq!(connect(&lab.server, &address, port), "open", "{what}");
        assert_eq!(connect_in_vain(&lab.server, &address, port), "silent", "{what}: a second one");
        drop((listener, client));

        let client =
            gated_client(&lab.client, json!({"host": host, "steps": announced_and_ends(&line)}));
        assert_eq!(connect(&lab.server, &address, port), "refused", "{what}");
        assert_eq!(client.release().error, None);
        wait_for("the end of the session", || gateway.daemon.pinholes().unwrap().is_empty());
        assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0], "{what}");
        assert_eq!(connect_in_vain(&lab.server, &address, port), "silent", "{what}");
    }
}

/// The steps of a client that announces this line, waits, and ends.
fn announced_and_ends(line: &str) -> Vec<Value> {
    let mut steps = login();
    steps.extend([say(line), reply(), json!({"gate": ""}), say("QUIT"), reply()]);
    steps
}
