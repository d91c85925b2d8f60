//! The operator's iptables rules and `ftp-alg` do not disturb each other, in either order of loading.

use super::{native::*, site::*};
use crate::common::*;

const ALL: [(&str, Place); 6] = [
    ("nft", Place::Masquerade),
    ("nft", Place::Published),
    ("legacy", Place::Masquerade),
    ("legacy", Place::Published),
    ("nft", Place::Server),
    ("legacy", Place::Server),
];

/// The output of `iptables-save` and `ip6tables-save`, without packet counts and dates.
fn saved_rules(host: &Host, variant: &str) -> String {
    let mut text = String::new();
    for program in [format!("iptables-{variant}-save"), format!("ip6tables-{variant}-save")] {
        let saved = host.run(&program, &[]).unwrap().stdout_text();
        for line in saved.lines().filter(|line| !line.starts_with('#')) {
            // `:INPUT DROP [12:3456]`
            text += line.split_once(" [").map_or(line, |(chain, _)| chain);
            text += "\n";
        }
    }
    text
}

/// The nftables ruleset without our table, and our table.
fn tables(host: &Host) -> (String, Option<String>) {
    let (mut others, mut own) = (String::new(), None);
    for table in host.ruleset().unwrap().split_inclusive("\n}\n") {
        if table.starts_with("table inet ftp_alg {") {
            own = Some(table.to_owned());
        } else {
            others += table;
        }
    }
    (others, own)
}

#[test]
fn start_and_stop_leave_the_operators_rules_unchanged() {
    for &(variant, place) in telling(&[("nft", Place::Masquerade), ("legacy", Place::Server)], &ALL)
    {
        let site = Site::new(place);
        run_iptables(site.guard(), &iptables(place, variant).text);
        let rules = || (saved_rules(site.guard(), variant), tables(site.guard()).0);
        let before = rules();
        assert!(before.0.contains("0x40000000"), "{before:?}");
        let mut daemon = site.daemon(NFTABLES);
        assert!(tables(site.guard()).1.is_some());
        assert_eq!(rules(), before, "{variant} {place:?}");
        site.carries(&daemon, &[V4]);
        assert_eq!(rules(), before, "{variant} {place:?}");
        daemon.stop().unwrap();
        assert_eq!(rules(), before, "{variant} {place:?}");
        assert_eq!(tables(site.guard()).1, None);
    }
}

#[test]
fn the_operators_rules_may_be_flushed_and_reloaded() {
    for &(variant, place) in telling(&[("nft", Place::Published)], &ALL[..4]) {
        let site = Site::new(place);
        let daemon = site.daemon(NFTABLES);
        // Without the translations, which outlive their connections.
        let own = || Some(tables(site.guard()).1?.split_once("\tchain ")?.1.to_owned());
        let loaded = own().unwrap();
        let recipe = iptables(place, variant);
        run_iptables(site.guard(), &recipe.text);
        site.carries(&daemon, &[V4]);
        let rules = saved_rules(site.guard(), variant);

        // A flush leaves only the chain policies, which drop all packets.
        let flush = format!("iptables-{variant} -F; ip6tables-{variant} -F");
        site.guard().shell(&flush).unwrap();
        assert_ne!(saved_rules(site.guard(), variant), rules);
        let found = site.lab.client.scan(site.lab.server_address(V4), "21").unwrap();
        assert_eq!(found, [0; 0]);
        run_iptables(site.guard(), &recipe.text);
        assert_eq!(saved_rules(site.guard(), variant), rules, "{variant} {place:?}");
        site.carries(&daemon, &[V4]);

        // Saves, removes and restores all rules, as a boot script does.
        let saved = "saved.rules";
        let lines = format!(
            "iptables-{variant}-save > {saved}
            for table in filter nat; do
                iptables-{variant} -t $table -F
                iptables-{variant} -t $table -X
            done
            iptables-{variant} -P FORWARD ACCEPT
            iptables-{variant}-restore {saved}"
        );
        site.guard().shell(&lines).unwrap();
        assert_eq!(saved_rules(site.guard(), variant), rules, "{variant} {place:?}");
        site.carries(&daemon, &[V4]);
        // The daemon checks its table once a second.
        let started = std::time::Instant::now();
        wait_for("two checks of the table", || started.elapsed().as_secs() >= 2);
        assert_eq!(own().unwrap(), loaded, "{variant} {place:?}");
        assert!(!daemon.log().contains("loaded again"), "{}", daemon.log());
    }
}
