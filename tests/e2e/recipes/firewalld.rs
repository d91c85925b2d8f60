//! firewalld itself, on its own D-Bus.

use super::{native::*, site::*};
use crate::{
    common::*,
    setup::firewalld::{Firewalld, firewalld},
};

/// The commands of the how-to page: zones of a gateway, and which connections they may open.
fn gateway(policy: &str) -> String {
    let page = include_str!("../../../docs/howto/firewalld.md");
    let mut blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let commands = blocks.find(|block| block.contains("--new-policy=out")).unwrap();
    let names =
        [("lan0", "lan"), ("wan0", "wan"), ("10.0.0.5", "192.168.150.90"), (LENIENT, policy)];
    names.iter().fold(format!("set -e\n{commands}"), |text, (documented, here)| {
        assert!(text.contains(documented), "{documented} is not on the page");
        text.replace(documented, here)
    })
}

/// A policy that accepts all connections from the LAN, which is the usual choice.
const LENIENT: &str = "--set-target=ACCEPT";

/// A policy that accepts only control connections.
const STRICT: &str = "--add-port=21/tcp";

/// firewalld with `backend` at `place`. On a host, the default zone has its interface.
fn installed(place: Place, backend: &str, policy: &str) -> (Site, Firewalld) {
    let site = Site::new(place);
    let on_host = "firewall-cmd --add-interface=eth0".to_owned();
    let lines = if place.is_gateway() { gateway(policy) } else { on_host };
    let firewalld = firewalld(&site, backend, &lines);
    (site, firewalld)
}

fn recipe() -> Recipe {
    Recipe::read("firewalld.sh", &[])
}

/// Over iptables, a direct rule accepts the data connections. firewalld itself accepts connections that it forwards to
/// another port or host.
#[test]
fn a_direct_rule_admits_data_connections_through_firewalld_over_iptables() {
    let all = [
        (Place::Published, Mode::Active),
        (Place::Masquerade, Mode::Passive),
        (Place::Server, Mode::Passive),
        (Place::Client, Mode::Active),
    ];
    for &(place, stopped) in telling(&all[..1], &all) {
        let (site, firewalld) = installed(place, "iptables", STRICT);
        let apply = |_: &Host, text: &str| {
            firewalld.machine.shell(&format!("set -- {}\n{text}", place.argument()));
        };
        assert_rule_suffices(&site, &recipe(), &FAMILIES, &[stopped], apply);
    }
}

/// Over nftables, firewalld accepts connections with destination NAT, and a gateway accepts connections from its LAN.
/// Over IPv4 that includes all FTP data connections.
#[test]
fn firewalld_over_nftables_needs_no_rule_with_nat() {
    let all = [Place::Masquerade, Place::Published];
    for &place in telling(&all[..1], &all) {
        let (site, _firewalld) = installed(place, "nftables", LENIENT);
        site.works(NFTABLES, &[V4]);
    }
}

/// firewalld drops connections without NAT, and a direct rule does not change that: iptables and nftables must both
/// accept the packet.
#[test]
fn firewalld_over_nftables_drops_despite_a_direct_rule_without_nat() {
    let (site, firewalld) = installed(Place::Server, "nftables", "");
    firewalld.machine.shell(&format!("set -- host\n{}", recipe().text));
    let daemon = site.daemon(NFTABLES);
    for family in FAMILIES {
        site.stops(&daemon, family, Mode::Passive);
    }
}

#[test]
fn firewalld_over_nftables_needs_no_rule_with_the_conntrack_back_end() {
    for &place in telling(&[Place::Server], &PLACES) {
        let (site, firewalld) = installed(place, "nftables", STRICT);
        firewalld.machine.shell("firewall-cmd --add-port=21/tcp");
        site.works(CONNTRACK, &FAMILIES);
    }
}

/// A reload flushes firewalld's own nftables table, or all chains of iptables. Our table is in neither.
#[test]
fn a_firewalld_reload_leaves_our_table_alone() {
    // Over iptables a reload takes half a minute.
    for &backend in telling(&["nftables"], &["nftables", "iptables"]) {
        let (site, firewalld) = installed(Place::Masquerade, backend, LENIENT);
        let program = executable_without_owner(&site.lab);
        let daemon = Daemon::start(&program, site.guard(), NFTABLES).unwrap();
        for how in ["--reload", "--complete-reload"] {
            firewalld.machine.shell(&format!("firewall-cmd {how}"));
            thread::sleep(Duration::from_millis(500));
            let log = daemon.log();
            assert!(!log.contains("by another program"), "{backend} {how}: {log}");
        }
        if backend == "nftables" {
            site.carries(&daemon, &[V4]);
        }
    }
}
