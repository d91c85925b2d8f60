//! To whom the passive ports are open, until when, and how often at a time.

use std::{
    io,
    net::{IpAddr, TcpListener, TcpStream},
    thread,
};

use super::*;

/// Has `host` count whatever SYNs arrive, by their port.
fn watch_arrivals(host: &Host) {
    host.nft(
        "table inet seen {
            set ports { type inet_service; flags dynamic; size 65535; }
            chain seen {
                type filter hook prerouting priority -300;
                tcp flags & (syn | ack) == syn add @ports { tcp dport }
            }
        }",
    )
    .unwrap();
}

/// The ports at which SYNs have arrived since the last call.
fn arrivals(host: &Host) -> Vec<u16> {
    let listed = host.run("nft", &["-nj", "list", "set", "inet", "seen", "ports"]).unwrap();
    host.nft("flush set inet seen ports").unwrap();
    let listed: Value = serde_json::from_str(&listed.stdout_text()).unwrap();
    let elements = listed["nftables"][1]["set"]["elem"].as_array();
    let number = |port: &Value| u16::try_from(port.as_u64().unwrap()).unwrap();
    let ports: BTreeSet<u16> = elements.into_iter().flatten().map(number).collect();
    ports.into_iter().collect()
}

/// From whatever it sends, the server gets nothing but what the operator and the session allow.
#[test]
fn a_session_opens_the_ports_of_its_server_to_its_client_alone() {
    for (topology, kind, tls) in [
        (Topology::Masquerade, ServerKind::Vsftpd, ClientTls::Implicit),
        (Topology::PublishedServer, ServerKind::Proftpd, ClientTls::Explicit),
    ] {
        let case = format!("{topology} {tls}");
        let scene = Scene::new(topology, kind, tls);
        let lab = scene.lab();
        let dialled = lab.server_address(V4);
        watch_arrivals(&lab.server);
        let own = lab.client.address(V4).to_string();
        let other = format!("{}77", &own[..=own.rfind('.').unwrap()]);
        let add = format!("ip address add {other}/24 dev {}", lab.interface(&lab.client));
        lab.client.shell(&add).unwrap();
        scene.assert_closed(&case);
        let client = scene.client(V4, gate());
        arrivals(&lab.server);

        let mut others = vec![(&lab.client2, "-"), (&lab.client, other.as_str())];
        // Behind masquerade it is where the server is.
        others.extend((topology == Topology::PublishedServer).then_some((&lab.outsider, "-")));
        for (host, source) in others {
            assert_eq!(scene.answers(host, source), [0; 0], "{case}: {} {source}", host.role());
        }
        assert_eq!(arrivals(&lab.server), [0; 0], "{case}");
        scene.assert_open(&case);
        arrivals(&lab.server);
        let (whole, part) = (["1-65535"], ["1-2048,49900-50100"]);
        lab.client.scan(dialled, telling(&part, &whole)[0]).unwrap();
        let mut all: Vec<u16> = PORTS.chain([21, IMPLICIT]).collect();
        all.sort_unstable();
        assert_eq!(arrivals(&lab.server), all, "{case}");

        drop(client);
        scene.gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        scene.assert_closed(&case);
        assert_eq!(arrivals(&lab.server), [0; 0], "{case}: afterwards");
        scene.gateway.assert_tidy();
    }
}

#[test]
fn two_sessions_of_a_client_share_the_ports_until_the_last_one_ends() {
    let scene = Scene::new(Topology::PublishedServer, ServerKind::Proftpd, ClientTls::Explicit);
    scene.server.put("file", b"the body").unwrap();
    let download = (begin_download("EPSV", "file"), end_download(), reply());
    let first = scene.client(V4, gate());
    let mut second = scene.client(V4, (gate(), &download, gate(), &download));
    drop(first);
    wait_for("one session", || scene.gateway.daemon.sessions().unwrap().len() == 1);
    scene.assert_open("behind the first");
    second.reach_next_gate();
    scene.assert_open("behind a transfer");
    second.release().ok();
    scene.wait_until_closed("behind both");
    scene.gateway.assert_tidy();
}

/// Of all the bytes none is missing. vsftpd goes on without its control connection.
#[test]
fn a_data_connection_goes_on_behind_the_end_of_its_control_connection() {
    let scene = Scene::new(Topology::Masquerade, ServerKind::Vsftpd, ClientTls::Explicit);
    let body = large_file();
    scene.server.put("large", &body).unwrap();
    let sum = checksum(&scene.lab().gateway, &body);
    for end in ["close", "abort"] {
        let begin = begin_download("PASV", "large");
        let steps = (begin, gate(), json!({end: true}), gate(), end_download());
        let mut client = scene.client(V4, steps);
        client.reach_next_gate();
        if end == "abort" {
            scene.wait_until_closed(end);
        }
        let session = client.release().ok_in(end);
        assert_eq!(session.steps.last().unwrap().0, sum, "{end}");
        // Now vsftpd has closed, too.
        scene.wait_until_closed(end);
    }
    scene.gateway.assert_tidy();
}

/// A SYN that nobody answered has an entry in conntrack, which lasts as long as the client repeats the SYN.
#[test]
fn a_syn_without_an_answer_passes_no_more_behind_the_end() {
    // Whether other rules write the mark of the connection.
    for overwrites in [false, true] {
        let scene = Scene::new(Topology::Masquerade, ServerKind::Vsftpd, ClientTls::Explicit);
        let lab = scene.lab();
        if overwrites {
            let chain = "type filter hook prerouting priority mangle; ct mark set 5";
            lab.gateway.nft(&format!("table inet qos {{ chain qos {{ {chain}; }}; }}")).unwrap();
            let table = || lab.gateway.shell("nft list table inet ftp_alg").unwrap().stdout_text();
            wait_for("the chains", || table().contains("chain mark_again_forward"));
        }
        let deaf = "table inet deaf {
            chain deaf { type filter hook input priority 0; tcp dport 50000 drop; }
        }";
        lab.server.nft(deaf).unwrap();
        let script = format!(
            "import socket
one = socket.socket()
one.bind((\"\", 40123)), one.settimeout(0.7)
print(one.connect_ex((\"{}\", 50000)))",
            lab.server_address(V4)
        );
        let knock = || lab.client.run("python3", &["-c", &script]).unwrap().stdout_text();
        hold_connections(&lab.server);
        let client = scene.client(V4, gate());
        assert_eq!(knock(), "11\n", "nobody answers");
        drop(client);
        scene.wait_until_closed("behind the end");
        lab.server.nft("delete table inet deaf").unwrap();
        let entries = lab.gateway.shell("conntrack -L -p tcp --orig-port-dst 50000").unwrap();
        assert!(entries.stdout_text().contains("SYN_SENT"), "{}", entries.stdout_text());
        assert_ne!(knock(), "0\n", "connected, overwritten: {overwrites}");
        scene.gateway.assert_tidy();
    }
}

/// Has the server accept connections at its passive ports, and hold each until the client has closed it.
fn hold_connections(server: &Host) {
    for port in PORTS {
        let bind = || TcpListener::bind(("::", port));
        let listener = server.inside(bind).unwrap().unwrap();
        thread::spawn(move || {
            for mut connection in listener.incoming().flatten() {
                thread::spawn(move || io::copy(&mut connection, &mut io::sink()));
            }
        });
    }
}

/// The data connections that `host` gets if it tries so many.
fn connect(host: &Host, server: IpAddr, tries: usize) -> Vec<TcpStream> {
    let limit = Duration::from_millis(500);
    let open = |port| TcpStream::connect_timeout(&(server, port).into(), limit).ok();
    host.inside(|| PORTS.take(tries).filter_map(open).collect()).unwrap()
}

/// A client is an IPv4 address, or the /64 of an IPv6 address.
#[test]
fn a_client_has_no_more_data_connections_at_a_time_than_the_limit_says() {
    let topology = Topology::PublishedServer;
    let limit = "policy.max-pinholes-per-client = 3\n";
    let scene = Scene::with(topology, ServerKind::Proftpd, ClientTls::Explicit, limit);
    let lab = scene.lab();
    hold_connections(&lab.server);
    for family in FAMILIES {
        let case = format!("{topology} {family}");
        let server = lab.server_address(family);
        let hosts = [&lab.client, &lab.client2];
        let sessions = hosts.map(|host| scene.client_on(host, family, gate()));
        let second = scene.client(family, gate());
        let mut open = connect(&lab.client, server, 4);
        assert_eq!(open.len(), 3, "{case}");
        let of_others = connect(&lab.client2, server, 4);
        assert_eq!(of_others.len(), if family == V4 { 3 } else { 0 }, "{case}");

        drop(open.pop());
        wait_for("another connection", || {
            open.append(&mut connect(&lab.client, server, 1));
            open.len() == 3
        });
        assert_eq!(connect(&lab.client, server, 1).len(), 0, "{case}");
        wait_for("the event", || {
            let missing = scene.gateway.events("no-data-connection");
            let client = lab.client.address(family).to_string();
            missing.iter().any(|event| {
                let reason = event["reason"].as_str().unwrap();
                event["client"].as_str().unwrap().contains(&client)
                    && reason.contains("max-pinholes-per-client")
            })
        });
        drop((sessions, second));
        scene.gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        scene.gateway.assert_tidy();
    }
}
