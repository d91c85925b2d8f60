//! nftables, iptables-nft and iptables-legacy, on a gateway with masquerade, on a gateway with a published server, and
//! on a host.

use super::site::*;
use crate::common::*;

pub const PLACES: [Place; 4] = [Place::Masquerade, Place::Published, Place::Server, Place::Client];

pub fn nftables(place: Place) -> Recipe {
    if place.is_gateway() {
        let values = [
            ("\"lan0\"", "\"lan\""),
            ("\"wan0\"", "\"wan\""),
            ("10.0.0.5", "192.168.150.90"),
            ("fd00::5", "fd00:150::5a"),
        ];
        Recipe::read("nftables-gateway.nft", &values)
    } else {
        Recipe::read("nftables-host.nft", &[])
    }
}

pub fn iptables(place: Place, variant: &str) -> Recipe {
    let variant = ("variant= ", &*format!("variant=-{variant} "));
    if place.is_gateway() {
        Recipe::read("iptables-gateway.sh", &[&SHELL_VALUES[..], &[variant]].concat())
    } else {
        Recipe::read("iptables-host.sh", &[variant])
    }
}

fn load_nftables(host: &Host, text: &str) {
    host.nft(text).unwrap();
}

pub fn run_iptables(host: &Host, text: &str) {
    run_script(host, text, &[], "/usr/sbin");
}

#[test]
fn the_nftables_rule_admits_data_connections() {
    for &place in telling(&[Place::Masquerade, Place::Server], &PLACES) {
        assert_rule_suffices(&Site::new(place), &nftables(place), &FAMILIES, &MODES, load_nftables);
    }
}

#[test]
fn an_outsider_finds_no_open_port() {
    for &place in telling(&[Place::Published], &PLACES) {
        let site = Site::new(place);
        load_nftables(site.guard(), &nftables(place).text);
        // The pinhole is to be open until all ports were tried.
        let daemon = site.daemon(&format!("{NFTABLES}timeout = \"300s\"\n"));
        site.assert_outsider_finds_only_published_ports(&daemon, "1-65535");
    }
}

#[test]
fn the_iptables_rules_admit_data_connections() {
    let all = ["nft", "legacy"].map(|variant| PLACES.map(|place| (variant, place))).concat();
    for &(variant, place) in telling(&[("nft", Place::Published), ("legacy", Place::Client)], &all)
    {
        let recipe = iptables(place, variant);
        assert_rule_suffices(&Site::new(place), &recipe, &FAMILIES, &MODES, run_iptables);
    }
}

/// Nagle's algorithm delays the second half of an announcement until the first is acknowledged. Only `ftp-alg`
/// acknowledges it at once.
#[test]
fn a_host_with_output_drop_admits_acknowledgements_by_their_rule() {
    let recipes = [
        (nftables(Place::Server), load_nftables as fn(&Host, &str)),
        (iptables(Place::Server, "nft"), run_iptables),
        (iptables(Place::Server, "legacy"), run_iptables),
    ];
    for (recipe, apply) in telling(&recipes[..1], &recipes) {
        let site = Site::new(Place::Server);
        apply(site.guard(), &recipe.with_rules_disabled("0x70000000"));
        let _daemon = site.daemon(NFTABLES);
        // Linux retransmits after 200 ms at the earliest, of which 50 ms are the pause between the segments.
        let without = site.reply_time_of_split_announcement();
        assert!(without > Duration::from_millis(130), "{without:?}");
        apply(site.guard(), &recipe.text);
        // A retransmission timeout would occur every time; a delay on a busy machine does not.
        let times = [(); 3].map(|()| site.reply_time_of_split_announcement());
        assert!(times.into_iter().any(|time| time < Duration::from_millis(100)), "{times:?}");
    }
}
