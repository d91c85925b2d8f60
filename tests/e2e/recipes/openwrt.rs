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

/// The whole ruleset, with `include` at the start of its chains.
fn ruleset(include: &str, redirect: bool) -> String {
    let mut text = RULESET.replace("INCLUDE", include);
    for (place, rule) in REDIRECT {
        text = text.replace(place, if redirect { rule } else { "" });
    }
    text
}

fn recipe() -> Recipe {
    Recipe::read("openwrt.nft", &[])
}

fn load(host: &Host, redirect: bool, include: &str) {
    let text = ruleset(include, redirect);
    // `fw4 check` does this before a reload.
    let mut check = host.command("nft");
    check.args(["-c", "-f", "-"]);
    host.finish(check, text.as_bytes(), Duration::from_secs(10)).unwrap().success().unwrap();
    host.nft(&text).unwrap();
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
