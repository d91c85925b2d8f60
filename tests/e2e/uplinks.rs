//! A gateway with two links to the server: packets of each direction take another one, or routes change.

use std::collections::BTreeSet;

use crate::{common::*, health::warnings};

const PORT: u16 = 3762;

/// A routed gateway, and a server that is connected to it by `wan`, and by `wan2`.
fn two_links(fast_path: &str) -> (Gateway, ScriptedServer) {
    let configuration = format!("queue.fast-path = \"{fast_path}\"\n");
    let (gateway, server) = served(Topology::Routed, &configuration, json!({}));
    let lab = &gateway.lab;
    let connect = format!(
        "ip link add wan2 type veth peer name eth1 netns {}
         ip address add 198.51.101.1/24 dev wan2
         ip link set wan2 up
         for name in all lan wan wan2; do echo 0 > /proc/sys/net/ipv4/conf/$name/rp_filter; done",
        lab.server.namespace()
    );
    lab.gateway.shell(&connect).unwrap();
    let connect = "ip address add 198.51.101.10/24 dev eth1
        ip link set eth1 up
        for name in all eth0 eth1; do echo 0 > /proc/sys/net/ipv4/conf/$name/rp_filter; done";
    lab.server.shell(connect).unwrap();
    (gateway, server)
}

/// The server sends to the client by the other link.
fn reply_by_other_link(lab: &Lab) {
    let [client, own] = [&lab.client, &lab.server].map(|host| host.address(V4));
    let route = format!("ip route add {client}/32 via 198.51.101.1 dev eth1 src {own}");
    lab.server.shell(&route).unwrap();
}

/// The steps of an active transfer and a passive one.
fn transfers(lab: &Lab) -> Vec<Value> {
    [active_transfer(lab.client.address(V4), PORT), passive_transfer("PASV")].concat()
}

/// Rules as in the usual instructions for two uplinks: whole marks, restored from the ct mark and saved there. All
/// connections of the LAN use the second uplink.
const WHOLE_MARKS: [&str; 3] = [
    "printf '%s\n' '*mangle' '-A PREROUTING -j CONNMARK --restore-mark' \
     '-A PREROUTING -m mark ! --mark 0 -j ACCEPT' '-A PREROUTING -i lan -j MARK --set-mark 2' \
     '-A PREROUTING -i wan -j MARK --set-mark 1' '-A PREROUTING -i wan2 -j MARK --set-mark 2' \
     '-A PREROUTING -j CONNMARK --save-mark' COMMIT | iptables-nft-restore --noflush",
    "nft 'table ip marks { chain pre { type filter hook prerouting priority mangle; \
     ct mark 0 iifname { \"lan\", \"wan2\" } ct mark set 2; ct mark 0 iifname \"wan\" ct mark set 1; \
     meta mark set ct mark; }; }'",
    // They also save whole marks when packets leave.
    "printf '%s\n' '*mangle' '-A PREROUTING -j CONNMARK --restore-mark' \
     '-A PREROUTING -m mark ! --mark 0 -j ACCEPT' '-A PREROUTING -i lan -j MARK --set-mark 2' \
     '-A PREROUTING -i wan -j MARK --set-mark 1' '-A PREROUTING -i wan2 -j MARK --set-mark 2' \
     '-A FORWARD -j CONNMARK --save-mark' '-A POSTROUTING -j CONNMARK --save-mark' COMMIT \
     | iptables-nft-restore --noflush",
];

/// What our table has if rules that set ct marks demand it, with the nftables back end.
const INHERIT: &str = "chain inherit_prerouting";
/// What it has if `ip rule` compares whole marks that are restored from the ct mark.
const CLEAR_RESTORED: &str = "chain clear_restored_prerouting";

/// A gateway that masquerades at two uplinks and routes by the whole mark. The `rules` demand `chain` of our table.
fn gateway_that_routes_by_marks(rules: &str, backend: &str, chain: &str) -> Gateway {
    let server_by_second = "ip route add SERVER/32 via 198.51.101.10 dev wan2 onlink table 102
         ip route add SERVER/32 dev wan
         ip rule add fwmark 2 lookup 102 priority 100";
    let commands = format!("{server_by_second}\n{rules}");
    gateway_with_uplinks(Topology::Masquerade, &commands, backend, chain)
}

/// A gateway with two uplinks to the server, or to the clients of a published server, and with `commands`, in which
/// `SERVER` is the server's address. The host outside takes each of the gateway's addresses by its own link only. The
/// commands demand `chain` of our table.
fn gateway_with_uplinks(topology: Topology, commands: &str, backend: &str, chain: &str) -> Gateway {
    let lab = lab_for(topology, backend);
    let (server, client) = (lab.server.address(V4), lab.client.address(V4));
    let (outside, address) = match topology {
        Topology::PublishedServer => (&lab.client, client),
        _ => (&lab.server, server),
    };
    let connect = format!(
        "set -e
         ip link add wan2 type veth peer name eth1 netns {}
         ip address add 198.51.101.1/24 dev wan2
         ip link set wan2 up
         nft 'table ip uplink {{ chain post {{ type nat hook postrouting priority 100; \
              oifname \"wan2\" masquerade; }}; }}'
         for name in all lan wan wan2; do echo 0 > /proc/sys/net/ipv4/conf/$name/rp_filter; done
         {}",
        outside.namespace(),
        commands.replace("SERVER", &server.to_string())
    );
    // The link comes up when both of its ends have addresses.
    let other_end = format!(
        "set -e
         for name in all eth0; do echo 0 > /proc/sys/net/ipv4/conf/$name/rp_filter; done
         ip address add 198.51.101.10/24 dev eth1
         ip link set eth1 up
         echo 0 > /proc/sys/net/ipv4/conf/eth1/rp_filter
         ip route replace 198.51.101.0/24 dev eth1 src {address}
         nft 'table inet links {{ chain in {{ type filter hook prerouting priority 0; \
              iifname \"eth0\" ip saddr 198.51.101.1 drop; \
              iifname \"eth1\" ip saddr 198.51.100.1 drop; }}; }}'"
    );
    lab.gateway.shell(&connect).unwrap();
    outside.shell(&other_end).unwrap();
    let gateway = Gateway::on(lab, &back_end(backend));
    wait_for_chain(&gateway, chain);
    gateway
}

/// Waits until our table has `chain`: if rules are read late, it is loaded again.
fn wait_for_chain(gateway: &Gateway, chain: &str) {
    let table = || gateway.lab.gateway.shell("nft list table inet ftp_alg").unwrap().stdout_text();
    wait_for(chain, || table().contains(chain));
}

/// Active and passive transfers, twice. EPRT changes its length, so the connection is adjusted.
fn assert_transfers_by_second_uplink(gateway: &Gateway, case: &str) {
    let lab = &gateway.lab;
    let client = lab.client.address(V4);
    let mut extended = active_transfer(client, PORT + 1);
    extended[0] = say(&format!("EPRT |1|{client}|{}|", PORT + 1));
    let round = [transfers(lab), extended].concat();
    let _server = scripted_server(&lab.server, &json!({}));
    hold(lab, (login(), &round, gate(), &round)).release().ok_in(case);
    gateway.assert_tidy();
}

/// The second uplink has a default route only. So a packet with its mark that goes to the LAN leaves by it again. SYNs
/// are counted behind all other rules.
const SECOND_BY_DEFAULT: &str = "ip route add default via 198.51.101.10 dev wan2 table 102
     ip rule add fwmark 2/0xff lookup 102 priority 100
     nft 'table inet ways { counter right { }; counter wrong { }; chain post { \
         type filter hook postrouting priority 250; meta l4proto != tcp return; tcp flags & (fin | syn | rst | ack) != syn return; \
         iifname \"lan\" oifname \"wan2\" counter name right; iifname \"lan\" oifname \"wan\" counter name wrong; \
         iifname \"wan2\" oifname \"lan\" counter name right; iifname \"wan2\" oifname \"wan2\" counter name wrong; }; }'";

/// Ways to mark connections. Packets of the LAN alone get a packet mark.
const MARKS_OF_THE_LAN: [&str; 4] = [
    // The ct mark says by which uplink the connection came.
    "nft 'table ip marks { chain pre { type filter hook prerouting priority mangle; \
     iifname \"wan2\" ct state new ct mark set ct mark and 0xffffff00 or 0x2; \
     iifname \"lan\" meta mark set ct mark and 0xff; iifname \"lan\" meta mark 0 meta mark set 0x2; \
     iifname \"lan\" ct state new ct mark set ct mark and 0xffffff00 or 0x2; }; }'",
    "printf '%s\n' '*mangle' '-A PREROUTING -i wan2 -m conntrack --ctstate NEW -j CONNMARK --set-xmark 2/0xff' \
     '-A PREROUTING -i lan -m conntrack --ctstate NEW -j CONNMARK --set-xmark 2/0xff' \
     '-A PREROUTING -i lan -j CONNMARK --restore-mark --mask 0xff' COMMIT | iptables-nft-restore --noflush",
    // The ct mark is a class of traffic, and has nothing to do with routes.
    "nft 'table ip marks { chain pre { type filter hook prerouting priority mangle; \
     iifname \"lan\" meta mark set meta mark and 0xffffff00 or 0x2; \
     tcp dport 21 ct mark set ct mark and 0xffffff00 or 0x5; }; }'",
    // A class that other connections get by default.
    "nft 'table ip marks { chain pre { type filter hook prerouting priority mangle; \
     iifname \"lan\" meta mark set meta mark and 0xffffff00 or 0x2; \
     ct mark 0 tcp dport 21 ct mark set 0x5; ct mark 0 ct mark set 0x1; }; }'",
];

/// How many SYNs left by each kind of way.
fn syns(gateway: &Gateway, kind: &str) -> u64 {
    let list = format!("nft list counter inet ways {kind}");
    let text = gateway.lab.gateway.shell(&list).unwrap().stdout_text();
    let count = text.split_once("packets ").unwrap().1.split_whitespace().next().unwrap();
    count.parse().unwrap()
}

/// The ct marks of all connections, without the bits of `ftp-alg`.
fn operator_marks(gateway: &Gateway) -> BTreeSet<u32> {
    let text = gateway.lab.gateway.shell("conntrack -L -p tcp").unwrap().stdout_text();
    let marks = text.split_whitespace().filter_map(|word| word.strip_prefix("mark="));
    marks.map(|mark| mark.parse::<u32>().unwrap() & 0x8fff_ffff).collect()
}

/// As with the kernel's helper: a data connection gets the ct mark of its control connection, and the packet mark that
/// the rules give it.
#[test]
fn no_syn_of_a_data_connection_takes_another_uplink() {
    for (at, marks) in MARKS_OF_THE_LAN.into_iter().enumerate() {
        // What differs by the topology or the back end does not by the marks.
        let all = [
            (Topology::Masquerade, "nftables"),
            (Topology::Masquerade, "conntrack"),
            (Topology::PublishedServer, "nftables"),
        ];
        for &(topology, backend) in telling(if at == 0 { &all } else { &all[..1] }, &all) {
            let case = format!("{topology} {backend} {marks}");
            let publish = match topology {
                // The server's replies leave by the second uplink, whatever their mark is.
                Topology::PublishedServer => {
                    "nft 'table ip publish { chain pre { type nat hook prerouting priority -100; \
                     ip daddr 198.51.101.1 tcp dport 21 dnat to SERVER; }; }'"
                }
                _ => "ip route add SERVER/32 dev wan",
            };
            let commands = format!("{SECOND_BY_DEFAULT}\n{publish}\n{marks}");
            let chain = if backend == "nftables" { INHERIT } else { "" };
            let gateway = gateway_with_uplinks(topology, &commands, backend, chain);
            let lab = &gateway.lab;
            let _server = scripted_server(&lab.server, &json!({}));
            let mut plan = plan(lab, (login(), transfers(lab), gate()));
            if topology == Topology::PublishedServer {
                plan["host"] = json!("198.51.101.1");
            }
            let client = gated_client(&lab.client, plan);
            let marks = operator_marks(&gateway);
            assert_eq!(client.release().error, None, "{case}: {}", gateway.daemon.log());
            assert_eq!(syns(&gateway, "wrong"), 0, "{case}");
            assert!(syns(&gateway, "right") >= 3, "{case}: {}", syns(&gateway, "right"));
            let expected = if at < 2 { 2 } else { 5 };
            assert_eq!(marks, [expected].into(), "{case}");
            gateway.assert_tidy();
        }
    }
}

#[test]
fn whole_marks_that_are_restored_route_all_packets_of_a_session() {
    for (at, rules) in WHOLE_MARKS.into_iter().enumerate() {
        let all = ["nftables", "conntrack"];
        for backend in telling(&all[at % 2..][..1], &all) {
            let gateway = gateway_that_routes_by_marks(rules, backend, CLEAR_RESTORED);
            assert_transfers_by_second_uplink(&gateway, &format!("{backend} {rules}"));
        }
    }
}

/// Rules that come after the start, and that is said.
#[test]
fn restored_marks_that_are_newer_than_the_daemon_are_a_problem() {
    for (marks, chain) in [(WHOLE_MARKS[1], CLEAR_RESTORED), (MARKS_OF_THE_LAN[0], INHERIT)] {
        let mut gateway = gateway_that_routes_by_marks("true", "nftables", "");
        let problems = |daemon: &Daemon| daemon.status().unwrap()["problems"].to_string();
        gateway.lab.gateway.shell(marks).unwrap();
        wait_for("the problem", || problems(&gateway.daemon).contains("restored-marks"));
        gateway.daemon.stop().unwrap();
        gateway.start_again("");
        wait_for_chain(&gateway, chain);
        wait_for("the audit", || problems(&gateway.daemon) != "null");
        assert!(!problems(&gateway.daemon).contains("restored-marks"));
    }
}

/// As behind a link of one direction. The dialogue passes, and nothing is opened, unless the configuration says so.
#[test]
fn replies_from_where_no_route_leads_pass_and_open_nothing() {
    let (gateway, _server) = two_links("auto");
    let (lab, daemon) = (&gateway.lab, &gateway.daemon);
    reply_by_other_link(lab);
    let session = talk(lab, (login(), ask("NOOP"), ask("PASV"), ask("NOOP"))).ok();
    assert!(session.got(8).starts_with("227 "), "{session:?}");
    assert_eq!(gateway.count("pinholes_opened"), 0, "{}", daemon.log());
    assert_eq!(daemon.log().matches("opens nothing: the packets").count(), 1, "{}", daemon.log());
    // One session may meet it by chance, and several do not. One client is no reason to call the gateway broken.
    assert_eq!(warnings(daemon, "status"), [""; 0]);
    talk(lab, (login(), ask("NOOP"))).ok();
    wait_for("the problem", || warnings(daemon, "status") == ["no-route"]);
    let network = "[[network]]\nservers = \"198.51.100.0/24\"\nany-interface = true\n";
    reload(daemon, network);
    wait_for("the reload", || daemon.log().contains("configuration is in use"));
    talk(lab, (login(), transfers(lab))).ok();
    assert_eq!(gateway.count("pinholes_opened"), 2, "{}", daemon.log());
}

/// Its replies come by another link from then on, to which a route leads.
#[test]
fn a_session_survives_a_change_of_routes() {
    for fast_path in ["auto", "off"] {
        let (gateway, _server) = two_links(fast_path);
        let lab = &gateway.lab;
        let client = hold(lab, (login(), transfers(lab), gate(), transfers(lab)));
        lab.gateway.shell("ip route replace 198.51.100.0/24 dev wan2").unwrap();
        reply_by_other_link(lab);
        client.release().ok_in(fast_path);
        assert_eq!(gateway.count("pinholes_opened"), 4, "{}", gateway.daemon.log());
        gateway.assert_tidy();
    }
}
