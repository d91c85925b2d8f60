//! Situations that people ask about, each as they have it: their numbers, their configuration.

use crate::common::{dialogues::Segments, *};

/// Nothing is open any more, and nothing went wrong on the way.
fn assert_all_closed(gateway: &Gateway) {
    gateway.assert_tidy();
    assert_eq!(gateway.lab.gateway.invalid_packets().unwrap(), 0);
}

/// Servers that learned long ago what they are called outside.
#[test]
fn a_server_that_announces_its_external_address_by_itself_is_not_translated_twice() {
    let gateway = gateway(Topology::PublishedServer);
    let lab = &gateway.lab;
    let address = lab.server_address(V4).to_string().replace('.', ",");
    let said = format!("227 Entering Passive Mode ({address},195,149)");
    let plan = json!({"passive_port": 50069, "pasv_reply": said});
    let _server = scripted_server(&lab.server, &plan);
    let session = talk(lab, (login(), passive_transfer("PASV"))).ok();
    assert_eq!((session.got(6), session.got(10)), (&*said, "the body\r\n"));
    assert_eq!(gateway.count("pinholes_opened"), 1);
    assert_all_closed(&gateway);
}

/// Plays every dialogue while other translations are on the gateway next to its own rules; both ends compare the
/// peer of each data connection with that of its control connection.
#[test]
fn data_connections_come_from_the_address_of_the_control_connection() {
    const BEFORE: &str = "type nat hook postrouting priority srcnat - 10; oifname";
    const TO_SERVER: &str = "to 192.168.150.90";
    for (case, topology, destination, source) in [
        // Everything else that comes from a client has 198.51.100.1.
        (
            "another one for control",
            Topology::Masquerade,
            "",
            "wan tcp dport 21 snat to 198.51.100.2",
        ),
        // What the server opens by itself has 198.51.100.1.
        (
            "published at a second one",
            Topology::PublishedServer,
            "tcp dport 21 dnat",
            "wan masquerade",
        ),
        // The server sees its clients at the gateway's inner address.
        (
            "both ends are translated",
            Topology::PublishedServer,
            "tcp dport 21 dnat",
            "lan masquerade",
        ),
    ] {
        let gateway = gateway(topology);
        let lab = &gateway.lab;
        lab.gateway.shell("ip address add 198.51.100.2/24 dev wan").unwrap();
        let (dialled, publish) = match destination {
            "" => ("198.51.100.10", String::new()),
            _ => ("198.51.100.2", format!("ip daddr 198.51.100.2 {destination} {TO_SERVER}")),
        };
        lab.gateway
            .nft(&format!(
                "table ip more {{
                    chain destination {{
                        type nat hook prerouting priority dstnat - 10;
                        {publish}
                    }}
                    chain source {{ {BEFORE} {source}; }}
                }}"
            ))
            .unwrap();
        let dialogues = dialogues::over_ipv4(dialled.parse().unwrap());
        let failed = dialogues::failures(&lab.server, &lab.client, &dialogues, Segments::Turns);
        assert_eq!(failed, [""; 0], "{case}");
        assert_all_closed(&gateway);
    }
}

/// With `ftp:sync-mode off` it says `FEAT` before the greeting, and the rest in pipelines.
#[test]
fn lftp_that_waits_for_no_reply_transfers() {
    let gateway = gateway(Topology::PublishedServer);
    let lab = &gateway.lab;
    for kind in ServerKind::ALL {
        let server = Server::start(kind, &lab.server).unwrap();
        server.put("a b.txt", b"the body").unwrap();
        let (user, password) = server.login();
        for passive in ["on", "off"] {
            if kind == ServerKind::Pyftpdlib && passive == "off" {
                // It answers RETR before PORT if both come at once, and lftp drops the file.
                continue;
            }
            let script = format!(
                "set ftp:sync-mode off; set ftp:passive-mode {passive}; set ftp:ssl-allow off; \
                 set net:timeout {}; set net:max-retries 1; set cmd:fail-exit on; \
                 open -u {user},{password} {}; cd pub; cls; cat 'a b.txt'; bye",
                scaled_timeout(Duration::from_secs(8)).as_secs(),
                lab.server_address(V4)
            );
            let text = lab.client.run("lftp", &["-c", &script]).unwrap().stdout_text();
            assert!(text.contains("a b.txt") && text.contains("the body"), "{kind}: {text}");
        }
    }
    assert!(gateway.count("pinholes_opened") >= 14);
    assert_all_closed(&gateway);
}

/// A lab whose gateway has no rules but a default drop, and this one that masquerades.
pub fn lab_that_masquerades(rule: &str) -> Lab {
    let rules = format!(
        "table inet gateway {{
            chain forward {{
                type filter hook forward priority filter; policy drop;
                ct state established,related accept
                ct mark and 0x40000000 != 0 accept
                iifname \"lan\" tcp dport 21 accept
            }}
        }}
        table ip source {{
            chain source {{
                type nat hook postrouting priority srcnat;
                oifname \"wan\" {rule}
            }}
        }}"
    );
    lab_with_rules(Topology::Masquerade, &rules)
}

/// A provider that shares an address among customers (MAP-E, CGNAT) forwards only these.
#[test]
fn a_gateway_with_a_set_of_ports_uses_no_other() {
    const SET: &str = "nat.port-range = \"40960-41023\"\n";
    // Where the configuration names none, the set of the rule counts.
    for (set, fast_path, backend) in [
        (SET, "auto", "nftables"),
        ("", "auto", "nftables"),
        ("", "off", "nftables"),
        ("", "off", "conntrack"),
    ] {
        let lab = lab_that_masquerades("meta l4proto tcp masquerade to :40960-41023");
        let provider = "table ip provider { chain forwards { type filter hook prerouting priority -400; \
                        iifname \"wan\" tcp dport != 40960-41023 drop; }; }";
        lab.gateway.nft(provider).unwrap();
        let configuration =
            format!("{set}queue.fast-path = \"{fast_path}\"\npinhole.backend = \"{backend}\"\n");
        let gateway = Gateway::on(lab, &configuration);
        let lab = &gateway.lab;
        let has_logged = |part: &str| gateway.daemon.log().contains(part);
        let uses_set = || has_logged("data connections use the ports 40960-41023");
        if set.is_empty() {
            // The table of the conntrack back end translates nothing.
            let table = || lab.gateway.shell("nft list table inet ftp_alg").unwrap().stdout_text();
            let has_set = || backend == "conntrack" || table().contains(":40960-41023");
            wait_for("the set", || uses_set() && has_set());
        }
        let _server = scripted_server(&lab.server, &json!({}));
        let round = [passive_transfer("PASV"), active_transfer(lab.client.address(V4), 3762)];
        talk(lab, (login(), &round, &round, &round))
            .ok_in(format!("{set:?}, {fast_path}, {backend}"));
        assert_eq!(uses_set(), set.is_empty());
        lab.gateway.shell("nft flush chain ip source source").unwrap();
        if set.is_empty() {
            wait_for("the note", || has_logged("another range than at the start"));
        }
    }
}

/// As with Docker, whose rules translate connections of the host itself as well. Clients check who sends data.
#[test]
fn data_for_a_client_on_the_gateway_comes_from_the_address_that_it_dialled() {
    const DIALLED: &str = "203.0.113.5";
    const PORT: u16 = 3762;
    for backend in ["nftables", "conntrack"] {
        let lab = lab_for(Topology::OnClient, backend);
        let (client, server) = (lab.gateway.address(V4), lab.server.address(V4));
        let lines = format!(
            "ip route add {DIALLED}/32 dev wan
             nft 'table ip own {{ chain out {{ type nat hook output priority -100; \
                  ip daddr {DIALLED} tcp dport 21 dnat to {server}; }}; }}'"
        );
        lab.gateway.shell(&lines).unwrap();
        let configuration = format!("pinhole.backend = \"{backend}\"\n");
        let gateway = Gateway::on(lab, &configuration);
        let _server = scripted_server(&gateway.lab.server, &json!({}));
        let mut upload = active_transfer(client, PORT);
        (upload[2], upload[4]) = (say("STOR x"), json!({"accept": PORT, "write": "x"}));
        let steps = [login(), upload.clone(), passive_transfer("PASV"), upload].concat();
        let plan = json!({"host": DIALLED, "listen": [PORT], "steps": steps});
        let session = scripted_client(&gateway.lab.gateway, &plan).ok_in(backend);
        let peers = [login().len() + 4, steps.len() - 2].map(|step| session.got(step));
        assert_eq!(peers, [DIALLED; 2], "{backend}");
        assert_all_closed(&gateway);
    }
}
