//! Situations that people ask about, each as they have it: their numbers, their configuration.

use std::{collections::BTreeSet, net::IpAddr};

use crate::common::{dialogues::Segments, *};

const IPTABLES: [(FirewallKind, &str); 2] =
    [(FirewallKind::IptablesNft, "nft"), (FirewallKind::IptablesLegacy, "legacy")];
/// Clients that need nothing but IPv4, each its own way to use it.
const CLIENTS: [ClientProgram; 3] =
    [ClientProgram::Curl, ClientProgram::Lftp, ClientProgram::Tnftp];

fn gateway(topology: Topology, firewall: FirewallKind, configuration: &str) -> Gateway {
    Gateway::on(lab_behind(firewall, topology), configuration)
}

/// Nothing is open any more, and nothing went wrong on the way.
fn assert_all_closed(gateway: &Gateway) {
    gateway.assert_tidy();
    assert_eq!(gateway.lab.gateway.invalid_packets().unwrap(), 0);
}

/// A download, an upload and a listing with each client, one after another: one line for each that
/// did not work.
fn failures(
    host: &Host,
    server: &Server,
    address: IpAddr,
    login: (&str, &str),
    clients: &[ClientProgram],
) -> Vec<String> {
    let mut failures = Vec::new();
    for client in clients {
        for mode in MODES {
            let transfer =
                Transfer { login, ..Transfer::new(*client, host, server, address, mode) };
            let name = format!("{}-{client:?}-{mode}", host.role());
            let body: Vec<u8> = name.bytes().cycle().take(60_000).collect();
            if let Err(error) = transfer.exchange(server, &name, &body) {
                failures.push(format!("{client} on {} {mode}: {error}", host.role()));
            }
        }
    }
    failures
}

fn v4(host: &Host) -> IpAddr {
    host.address(V4)
}

/// vsftpd with `pasv_min_port=9981` and `pasv_max_port=9986` on the gateway itself, and a firewall of
/// which the usual advice says that 9981:9990 must be opened as well; clients outside.
fn vsftpd_on_the_gateway((firewall, variant): (FirewallKind, &str), output: &str) {
    let gateway = gateway(Topology::Routed, firewall, "");
    let lab = &gateway.lab;
    let rules = format!(
        "*filter
:INPUT DROP
:FORWARD DROP
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A INPUT -p tcp --dport 20 -j ACCEPT
-A INPUT -p tcp --dport 21 -j ACCEPT
-A INPUT -m connmark --mark 0x40000000/0x40000000 -j ACCEPT
{output}
COMMIT
"
    );
    let restore = lab.gateway.command(format!("iptables-{variant}-restore"));
    let limit = Duration::from_secs(10);
    lab.gateway.finish(restore, rules.as_bytes(), limit).unwrap().success().unwrap();
    let range = "pasv_min_port=9981\npasv_max_port=9986";
    let server = Server::start_with(ServerKind::Vsftpd, &lab.gateway, range).unwrap();
    let outside = Capture::start(&lab.gateway, "wan", "tcp").unwrap();

    let (address, login) = (v4(&lab.gateway), server.login());
    let failed = failures(&lab.outsider, &server, address, login, &ClientProgram::ALL);
    assert_eq!(failed, [""; 0], "iptables {variant}");

    assert_eq!(connect_in_vain(&lab.outsider, &address.to_string(), 9983), "silent");
    let outside = outside.finish().unwrap();
    assert_eq!(outside.faults().unwrap(), [""; 0]);
    let announced = outside.announcements().unwrap();
    let passive = announced.iter().filter(|line| line.starts_with("227"));
    let passive: Vec<u16> = passive.map(|line| host_port(line).1).collect();
    assert!(passive.len() >= 5, "{announced:?}");
    assert!(passive.iter().all(|port| (9981..=9986).contains(port)), "{passive:?}");
    assert_all_closed(&gateway);
}

#[test]
fn vsftpd_on_the_gateway_needs_no_rule_for_its_passive_ports() {
    for kind in IPTABLES {
        vsftpd_on_the_gateway(kind, ":OUTPUT ACCEPT");
    }
}

#[test]
fn vsftpd_on_a_gateway_that_drops_its_own_output_needs_two_rules_there() {
    let output = ":OUTPUT DROP
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A OUTPUT -m connmark --mark 0x40000000/0x40000000 -j ACCEPT
-A OUTPUT -m mark --mark 0x70000000 -j ACCEPT";
    vsftpd_on_the_gateway(IPTABLES[0], output);
}

/// The addresses of the explanation of active and passive FTP that everyone quotes, with a server
/// that knows nothing of the address it is published at (no `MasqueradeAddress`).
#[test]
fn proftpd_at_192_168_150_90_published_and_client_at_192_168_150_80_masqueraded() {
    const PASSIVE: &str = "227 Entering Passive Mode";
    for (topology, reply, said, translated) in [
        (Topology::PublishedServer, "227", " (192,168,150,90,", "   (198,51,100,1,"),
        (Topology::Masquerade, "PORT", " 192,168,150,80,", " 198,51,100,1,"),
    ] {
        let start = if reply == "227" { PASSIVE } else { reply };
        for (firewall, variant) in IPTABLES {
            let case = format!("{topology}, iptables {variant}");
            let gateway = gateway(topology, firewall, "");
            let lab = &gateway.lab;
            let server = Server::start(ServerKind::Proftpd, &lab.server).unwrap();
            let sides = captures(lab);
            let address = lab.server_address(V4);
            let failed = failures(&lab.client, &server, address, server.login(), &CLIENTS);
            assert_eq!(failed, [""; 0], "{case}");
            // The first side is the client's.
            let (before, after) = if reply == "227" { (sides.1, sides.0) } else { sides };
            for (side, end) in [(before, said), (after, translated)] {
                let lines = side.finish().unwrap().announcements().unwrap();
                let mut lines = lines.iter().filter(|line| line.starts_with(reply)).peekable();
                assert!(lines.peek().is_some(), "{case}");
                let announced = format!("{start}{end}");
                lines.for_each(|line| assert!(line.starts_with(&announced), "{case}: {line}"));
            }
            assert_all_closed(&gateway);
        }
    }
}

/// A client at `address` of `host` that has announced its port 3762, and waits.
fn announced_3762(host: &Host, address: &str, server: IpAddr) -> GatedClient {
    let port = format!("PORT {},14,178", address.replace('.', ","));
    let retr = [ask(&format!("RETR {address}")), vec![accept(3762), reply()]].concat();
    let steps = [login(), ask(&port), vec![gate()], retr, ask("QUIT")].concat();
    gated_client(host, json!({"host": server, "source": address, "steps": steps}))
}

/// What a server with this plan sends names the file, so that each client knows its own.
fn names_its_files() -> Value {
    json!({"active_source": 20, "body": "the content of {}"})
}

fn announced_ports(lines: &[String]) -> Vec<u16> {
    let lines = lines.iter().filter(|line| line.starts_with("PORT"));
    lines.map(|line| host_port(line).1).collect()
}

/// Lets all go on at once, and compares what each fetched.
fn assert_all_fetch_their_own(clients: Vec<(&str, GatedClient)>) {
    thread::scope(|scope| {
        for (address, client) in clients {
            scope.spawn(move || {
                let session = client.release().ok_in(address);
                assert_eq!(session.got(10), format!("the content of {address}"));
                assert_eq!(session.got(11), "226 Done");
            });
        }
    });
}

#[test]
fn several_clients_behind_one_address_announcing_the_same_port_to_one_server_all_work() {
    let addresses = ["192.168.150.80", "192.168.150.81", "192.168.150.82", "192.168.150.83"];
    for firewall in [FirewallKind::Nftables, FirewallKind::IptablesLegacy] {
        let gateway = gateway(Topology::Masquerade, firewall, "");
        let lab = &gateway.lab;
        let server = scripted_server(&lab.server, &names_its_files());
        let hosts = [&lab.client, &lab.client2, &lab.client, &lab.client2];
        for (host, address) in hosts.iter().zip(addresses).skip(2) {
            host.run("ip", &["address", "add", &format!("{address}/24"), "dev", "eth0"]).unwrap();
        }
        let (inner, outer) = captures(lab);
        let clients: Vec<_> = hosts
            .iter()
            .zip(addresses)
            .map(|(host, address)| (address, announced_3762(host, address, v4(&lab.server))))
            .collect();
        assert_eq!(gateway.daemon.pinholes().unwrap().len(), addresses.len());
        let ports = announced_ports(&server.lines());
        assert_eq!(ports[0], 3762, "the first has what it announced");
        let different: BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(different.len(), addresses.len(), "{ports:?}");
        assert_all_fetch_their_own(clients);
        for side in [inner, outer] {
            assert_eq!(side.finish().unwrap().faults().unwrap(), [""; 0]);
        }
        assert_all_closed(&gateway);
    }
}

#[test]
fn an_announced_port_that_is_taken_gets_a_free_one_of_the_range_and_keeps_it() {
    let range = "[nat]\nport-range = \"3762-3771\"\n";
    let gateway = gateway(Topology::Masquerade, FirewallKind::Nftables, range);
    let lab = &gateway.lab;
    let server = scripted_server(&lab.server, &names_its_files());
    let mut seen = BTreeSet::new();
    for _ in 0..8 {
        let before = announced_ports(&server.lines()).len();
        let clients = vec![
            ("192.168.150.80", announced_3762(&lab.client, "192.168.150.80", v4(&lab.server))),
            ("192.168.150.81", announced_3762(&lab.client2, "192.168.150.81", v4(&lab.server))),
        ];
        let ports = announced_ports(&server.lines()).split_off(before);
        let [first, second] = ports[..] else { panic!("{ports:?}") };
        assert_eq!(first, 3762);
        assert!((3763..=3771).contains(&second), "{second}");
        seen.insert(second);
        assert_all_fetch_their_own(clients);
    }
    // Conntrack still has the connections of the others.
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_all_closed(&gateway);
}

#[test]
fn several_masqueraded_hosts_transfer_at_once() {
    for (firewall, variant) in IPTABLES {
        let gateway = gateway(Topology::Masquerade, firewall, "");
        let lab = &gateway.lab;
        let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
        let failed = thread::scope(|scope| {
            let both = [&lab.client, &lab.client2].map(|host| {
                let server = &server;
                let address = lab.server_address(V4);
                scope.spawn(move || {
                    failures(host, server, address, server.login(), &ClientProgram::ALL)
                })
            });
            both.map(|one| one.join().unwrap()).concat()
        });
        assert_eq!(failed, [""; 0], "iptables {variant}");
        assert_all_closed(&gateway);
    }
}

#[test]
fn anonymous_and_named_logins() {
    let gateway = gateway(Topology::PublishedServer, FirewallKind::IptablesNft, "");
    let lab = &gateway.lab;
    let address = lab.server_address(V4);
    let anonymous = "<Anonymous ~guest>\nUser guest\nUserAlias anonymous guest\n\
                     UserAlias ftp guest\nRequireValidShell off\n</Anonymous>";
    let guests = [("anonymous", "lab@example.net"), ("ftp", "lab@")];
    for (kind, more, logins) in [
        (ServerKind::Proftpd, anonymous, [guests[0], guests[1], ("lab", "lab")]),
        (ServerKind::Vsftpd, "", [guests[0], guests[1], guests[0]]),
        (ServerKind::Pyftpdlib, "", [guests[0], guests[0], ("lab", "lab")]),
    ] {
        let server = Server::start_with(kind, &lab.server, more).unwrap();
        for login in logins {
            let anonymous_may_read_only = kind == ServerKind::Pyftpdlib && login == guests[0];
            let failed = if anonymous_may_read_only {
                downloads(&lab.client, &server, address, login)
            } else {
                failures(&lab.client, &server, address, login, &CLIENTS)
            };
            assert_eq!(failed, [""; 0], "{kind} as {}", login.0);
        }
    }
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    let before = gateway.count("pinholes_opened");
    let nobody = ("nobody-here", "secret");
    let failed = failures(&lab.client, &server, address, nobody, &[ClientProgram::Curl]);
    assert_eq!(failed.len(), 2, "there is no such user");
    assert_eq!(gateway.count("pinholes_opened"), before, "no login, no pinhole");
    assert_all_closed(&gateway);
}

/// A download with each client: one line for each that did not work.
fn downloads(host: &Host, server: &Server, address: IpAddr, login: (&str, &str)) -> Vec<String> {
    let body = vec![b'd'; 60_000];
    server.put("down", &body).unwrap();
    let mut failures = Vec::new();
    for (client, mode) in CLIENTS.into_iter().flat_map(|client| MODES.map(|mode| (client, mode))) {
        let transfer = Transfer { login, ..Transfer::new(client, host, server, address, mode) };
        if !transfer.download("down").is_ok_and(|come| come == body) {
            failures.push(format!("{client} {mode}"));
        }
    }
    failures
}

#[test]
fn a_published_server_and_masqueraded_clients_on_one_gateway_at_once() {
    for (firewall, variant) in IPTABLES {
        let gateway = gateway(Topology::Masquerade, firewall, "");
        let lab = &gateway.lab;
        let published = Server::start(ServerKind::Proftpd, &lab.client2).unwrap();
        let far = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
        let publish = format!(
            "iptables-{variant} -t nat -A PREROUTING -d {} -p tcp --dport 21 -j DNAT \
             --to-destination {}",
            v4(&lab.gateway),
            v4(&lab.client2)
        );
        lab.gateway.shell(&publish).unwrap();
        let failed = thread::scope(|scope| {
            let outwards = scope.spawn(|| {
                failures(&lab.client, &far, v4(&lab.server), far.login(), &ClientProgram::ALL)
            });
            let inwards = scope.spawn(|| {
                let address = v4(&lab.gateway);
                failures(&lab.outsider, &published, address, published.login(), &ClientProgram::ALL)
            });
            [outwards.join().unwrap(), inwards.join().unwrap()].concat()
        });
        assert_eq!(failed, [""; 0], "iptables {variant}");
        assert_all_closed(&gateway);
    }
}

/// Servers that learned long ago what they are called outside.
#[test]
fn a_server_that_announces_its_external_address_by_itself_is_not_translated_twice() {
    let gateway = gateway(Topology::PublishedServer, FirewallKind::IptablesLegacy, "");
    let lab = &gateway.lab;
    let address = lab.server_address(V4);
    for (kind, more) in [
        (ServerKind::Vsftpd, format!("listen_ipv6=NO\nlisten=YES\npasv_address={address}")),
        (ServerKind::PureFtpd, format!("--forcepassiveip {address}")),
        (ServerKind::Proftpd, format!("MasqueradeAddress {address}")),
    ] {
        let server = Server::start_with(kind, &lab.server, &more).unwrap();
        let (outer, inner) = captures(lab);
        let before = gateway.count("pinholes_opened");
        let failed = failures(&lab.client, &server, address, server.login(), &CLIENTS);
        assert_eq!(failed, [""; 0], "{kind}");
        let (outer, inner) = (outer.finish().unwrap(), inner.finish().unwrap());
        let passive = |lines: Vec<String>| -> Vec<String> {
            lines.into_iter().filter(|line| line.starts_with("227")).collect()
        };
        let announced = inner.announcements().unwrap();
        let opened = gateway.count("pinholes_opened") - before;
        assert_eq!(opened, announced.len() as u64, "{kind}: one for each announcement");
        let announced = passive(announced);
        assert!(announced.len() >= 6, "{kind}: {announced:?}");
        assert!(announced.iter().all(|line| host_port(line).0 == address.to_string()), "{kind}");
        assert_eq!(passive(outer.announcements().unwrap()), announced, "{kind}: as it was said");
        for side in [outer, inner] {
            assert_eq!(side.faults().unwrap(), [""; 0], "{kind}");
        }
    }
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
        (
            "the next one of a pool for each connection",
            Topology::Masquerade,
            "",
            "wan snat to numgen inc mod 2 map { 0 : 198.51.100.1, 1 : 198.51.100.2 }",
        ),
        // What the server opens by itself has 198.51.100.1.
        (
            "published at a second one",
            Topology::PublishedServer,
            "tcp dport 21 dnat",
            "wan masquerade",
        ),
        (
            "a host has one for itself",
            Topology::PublishedServer,
            "dnat",
            "wan ip saddr 192.168.150.90 snat to 198.51.100.2",
        ),
        // The server sees its clients at the gateway's inner address.
        (
            "both ends are translated",
            Topology::PublishedServer,
            "tcp dport 21 dnat",
            "lan masquerade",
        ),
    ] {
        let gateway = gateway(topology, FirewallKind::Nftables, "");
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
    let gateway = gateway(Topology::PublishedServer, FirewallKind::Nftables, "");
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
        let lab = lab_with_rules(
            Topology::Masquerade,
            "table inet gateway {
                    chain forward {
                        type filter hook forward priority filter; policy drop;
                        ct state established,related accept
                        ct mark and 0x40000000 != 0 accept
                        iifname \"lan\" tcp dport 21 accept
                    }
                }
                table ip source {
                    chain source {
                        type nat hook postrouting priority srcnat;
                        oifname \"wan\" meta l4proto tcp masquerade to :40960-41023
                    }
                }
                table ip provider {
                    chain forwards {
                        type filter hook prerouting priority -400;
                        iifname \"wan\" tcp dport != 40960-41023 drop
                    }
                }",
        );
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
        let round = [passive_transfer("PASV"), active_transfer(v4(&lab.client), 3762)];
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
        let (client, server) = (v4(&lab.gateway), v4(&lab.server));
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
