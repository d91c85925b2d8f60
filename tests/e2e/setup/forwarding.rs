//! `--gateway`: on a machine that forwards nothing yet, setup switches forwarding on, and adds the rules of a gateway.

use super::{machine::*, native::*, site::*};
use crate::common::*;

const FILE: &str = "/etc/sysctl.d/ftp-alg-setup.conf";
const VALUES: &str = "sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding";

/// A machine whose nftables rules are `text`, and which forwards nothing, as after the installation of its system.
fn machine_without_forwarding(text: &str) -> (Site, Machine, Daemon) {
    let (site, machine) = machine(Place::Masquerade, text);
    machine.shell("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
    let daemon = site.daemon(NFTABLES);
    (site, machine, daemon)
}

#[test]
fn setup_switches_forwarding_on_and_back_on_a_gateway() {
    let (site, machine, daemon) = machine_without_forwarding(&nftables(Place::Masquerade));
    let before = machine.files();
    let shown = machine.setup(&daemon, &["--gateway"]);
    shown.says("+net.ipv4.ip_forward = 1");
    shown.says("inet gateway forward drops admitted data connections");
    machine.setup(&daemon, &["--gateway", "--check"]).fails("ftp-alg setup --gateway --apply");
    assert_eq!((machine.files(), &*machine.shell(VALUES)), (before.clone(), "0\n0\n"));

    // With the forwarding of IPv6 the kernel ignores router advertisements, and hosts behind it are reachable.
    machine.setup(&daemon, &["--gateway", "--apply"]).says("IPv6 is not forwarded");
    assert_eq!(machine.shell(VALUES), "1\n0\n");
    site.carries(&daemon, &[V4]);
    let applied = machine.files();
    for arguments in [&["--gateway", "--check"][..], &["--gateway", "--apply"], &["--check"]] {
        machine.setup(&daemon, arguments).says("nothing to do\n");
    }
    assert_eq!(machine.files(), applied);
    // At a boot.
    machine.shell(&format!("sysctl -qw net.ipv4.ip_forward=0; sysctl -qp {FILE}"));
    assert_eq!(machine.shell(VALUES), "1\n0\n");

    // The value of another file was loaded later, or somebody changed it.
    machine.shell("sysctl -qw net.ipv4.ip_forward=0");
    machine.setup(&daemon, &["--gateway", "--check"]).fails("a change is pending");
    machine.setup(&daemon, &["--gateway", "--apply"]).says("ran sysctl -qw net.ipv4.ip_forward=1");
    assert_eq!(machine.shell(VALUES), "1\n0\n");

    machine.setup(&daemon, &["--undo"]).says("undone");
    assert_eq!((machine.files(), &*machine.shell(VALUES)), (before.clone(), "0\n0\n"));
    // The forwarding of IPv6 is the operator's.
    machine.shell("sysctl -qw net.ipv6.conf.all.forwarding=1");
    let applied = machine.setup(&daemon, &["--gateway", "--apply"]);
    assert!(!applied.text.contains("IPv6 is not forwarded"), "{applied:?}");
    machine.setup(&daemon, &["--undo"]).says("undone");
    assert_eq!((machine.files(), &*machine.shell(VALUES)), (before, "0\n1\n"));
}

/// Rules of a host say nothing of what a gateway needs.
#[test]
fn setup_says_that_it_takes_a_machine_without_forwarding_for_a_host() {
    let (_site, machine, daemon) = machine_without_forwarding("flush ruleset\n");
    let host = "this machine forwards no packets, so it is taken for a host";
    machine.setup(&daemon, &["--check"]).says(host);
    let json = machine.setup(&daemon, &["--json"]);
    let report: Value = serde_json::from_str(&json.text).unwrap();
    assert_eq!(report["result"], "nothing to do", "{report}");
    assert!(report["notes"][0].as_str().unwrap().starts_with(host), "{report}");
    machine.shell("sysctl -qw net.ipv4.ip_forward=1");
    assert!(!machine.setup(&daemon, &[]).text.contains(host));
}
