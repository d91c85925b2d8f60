//! Control connections in conntrack zones, as tenants and the bridges of virtual machines have them.

use crate::common::*;

const PORT: u16 = 3762;
const IN_ZONE: &str = "ct zone set 7";

/// A rule for each packet, before conntrack sees it.
fn zone_rules(rule: &str) -> String {
    format!(
        "table inet zones {{
            chain pre {{ type filter hook prerouting priority raw; {rule}; }}
        }}"
    )
}

/// A gateway that had the rule when the daemon started.
fn gateway_with_zone(topology: Topology, rule: &str, backend: &str) -> Gateway {
    let lab = lab_for(topology, backend);
    lab.gateway.nft(&zone_rules(rule)).unwrap();
    let gateway = Gateway::on(lab, &back_end(backend));
    wait_for_zone(&gateway, rule);
    gateway
}

/// Waits until the zone of the rule is inspected: if rules are read late, the table is loaded again.
fn wait_for_zone(gateway: &Gateway, rule: &str) {
    let (_, zone) = rule.rsplit_once(' ').unwrap();
    let zones = format!("{{ 0, {zone} }}");
    let table = || gateway.lab.gateway.shell("nft list table inet ftp_alg").unwrap().stdout_text();
    wait_for("the zone", || table().contains(&zones));
}

/// Asserts that an active transfer and a passive one work, twice in a session.
fn assert_transfers(gateway: &Gateway, case: &str) {
    let lab = &gateway.lab;
    let client = lab.client.address(V4);
    let transfers = [active_transfer(client, PORT), passive_transfer("PASV")].concat();
    let _server = scripted_server(&lab.server, &json!({}));
    hold(lab, (login(), &transfers, gate(), &transfers)).release().ok_in(case);
    assert_eq!(gateway.count("pinholes_opened"), 4, "{case}");
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0, "{case}");
    gateway.assert_tidy();
}

/// The first row adjusts sequence numbers, as the server's greeting is not known.
#[test]
fn transfers_in_a_zone_work() {
    // Connections of the LAN are in a zone, and their replies in none. The kernel finds no expectation in another zone than
    // that of the packet.
    let one_direction = "iifname \"lan\" ct original zone set 7";
    for (topology, rule, backend) in [
        (Topology::Masquerade, IN_ZONE, "nftables"),
        (Topology::PublishedServer, IN_ZONE, "conntrack"),
        (Topology::Masquerade, one_direction, "nftables"),
    ] {
        let gateway = gateway_with_zone(topology, rule, backend);
        assert_transfers(&gateway, &format!("{topology} {rule} {backend}"));
    }
}

/// A zone that is named after the start is not inspected, and that is said.
#[test]
fn a_zone_that_is_newer_than_the_daemon_is_a_problem() {
    let mut gateway = gateway(Topology::Masquerade);
    gateway.lab.gateway.nft(&zone_rules(IN_ZONE)).unwrap();
    let problems = |daemon: &Daemon| daemon.status().unwrap()["problems"].to_string();
    wait_for("the problem", || problems(&gateway.daemon).contains("\"zone\""));
    gateway.daemon.stop().unwrap();
    gateway.start_again("");
    wait_for_zone(&gateway, IN_ZONE);
    assert!(!problems(&gateway.daemon).contains("\"zone\""));
}

/// Connections of two zones may have equal addresses. Nobody knows then which one is translated how.
#[test]
fn nothing_is_opened_for_addresses_that_are_in_two_zones() {
    let rule = "ip saddr 10.9.9.9 ct zone set 9";
    let gateway = gateway_with_zone(Topology::Masquerade, rule, "nftables");
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    let [client, host] = [lab.client.address(V4), lab.server_address(V4)];
    let ports = "echo 40000 40001 > /proc/sys/net/ipv4/ip_local_port_range";
    lab.client.shell(ports).unwrap();
    for port in [40000, 40001] {
        let insert = format!(
            "conntrack -I -w 9 -p tcp -s {client} -d {host} --sport {port} --dport 21 \
             --state ESTABLISHED -t 600"
        );
        lab.gateway.shell(&insert).unwrap();
    }
    talk(lab, (login(), ask("PORT 192,168,150,80,14,178"))).ok();
    assert_eq!(gateway.count("pinholes_opened"), 0);
    gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
}
