//! OpenWrt's fw4, represented by the ruleset that it generates for its default configuration. The program itself needs
//! ubus and a device.

use super::site::*;
use crate::common::*;

/// fw4's table, with `INCLUDE` where it includes `chain-pre/input` and `chain-pre/forward`.
const RULESET: &str = include_str!("fw4.nft");

/// A port forward of port 21 to the server, as `config redirect` generates it, in three chains.
const REDIRECT: [(&str, &str); 3] = [
    ("REDIRECT_ACCEPT", "ct status dnat accept comment \"!fw4: Accept port forwards\""),
    (
        "REDIRECT_JUMP",
        "iifname \"wan\" jump dstnat_wan comment \"!fw4: Handle wan dstnat traffic\"",
    ),
    (
        "REDIRECT_TARGET",
        "meta nfproto ipv4 tcp dport 21 counter dnat 192.168.150.90:21 comment \"!fw4: FTP\"",
    ),
];

fn recipe() -> Recipe {
    Recipe::read("openwrt.nft", &[])
}

/// Loads the whole ruleset, with `include` at the start of its chains.
fn load(host: &Host, redirect: bool, include: &str) {
    let mut text = RULESET.replace("INCLUDE", include);
    for (place, rule) in REDIRECT {
        text = text.replace(place, if redirect { rule } else { "" });
    }
    let file = host.write("fw4.nft", text.as_bytes()).unwrap();
    // `fw4 check` does the first one before a reload.
    host.shell(&format!("nft -c -f {0} && nft -f {0}", file.display())).unwrap();
}

/// fw4 accepts connections from the LAN, so it drops only active data connections.
#[test]
fn the_openwrt_rule_admits_data_connections_to_the_lan() {
    let site = Site::new(Place::Masquerade);
    assert_rule_suffices(&site, &recipe(), &FAMILIES, &[Mode::Active], |host, text| {
        load(host, false, text);
    });
}

/// With a port forward, fw4 accepts all connections with destination NAT. So the rule is needed over IPv6 only.
#[test]
fn the_openwrt_rule_admits_data_connections_to_a_published_server() {
    let site = Site::new(Place::Published);
    load(site.guard(), true, &recipe().without_its_rule());
    let daemon = site.daemon(NFTABLES);
    site.carries(&daemon, &[V4]);
    site.stops(&daemon, V6, Mode::Passive);
    drop(daemon);
    site.works(CONNTRACK, &FAMILIES);
    load(site.guard(), true, &recipe().text);
    site.works(NFTABLES, &FAMILIES);
}
