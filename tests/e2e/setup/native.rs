//! nftables with `/etc/nftables.conf` and its includes, and iptables-persistent.

use super::{machine::*, site::*};
use crate::{common::*, recipes::native};

const PLACES: [Place; 3] = [Place::Masquerade, Place::Published, Place::Server];
const NFT: &str = "nft -f /etc/nftables.conf";

/// A recipe without its rules for ftp-alg.
fn without_rules(recipe: &Recipe) -> String {
    let ours = |line: &&str| line.contains("0x40000000") || line.contains("0x70000000");
    recipe.text.lines().filter(|line| !ours(line)).map(|line| format!("{line}\n")).collect()
}

pub fn nftables(place: Place) -> String {
    without_rules(&native::nftables(place))
}

/// A machine at `place` that loads `text` from `/etc/nftables.conf`.
pub fn machine(place: Place, text: &str) -> (Site, Machine) {
    let site = Site::new(place);
    let machine = Machine::on(site.guard());
    machine.write("/etc/nftables.conf", text);
    machine.shell(NFT);
    (site, machine)
}

#[test]
fn setup_edits_an_nftables_file_that_replaces_its_table() {
    for &place in telling(&[Place::Masquerade], &PLACES) {
        let (site, machine) = machine(place, &nftables(place));
        assert_apply_reload_and_undo(&site, &machine, "nftables", NFT, &FAMILIES, &MODES);
    }
}

#[test]
fn setup_edits_an_included_nftables_file() {
    let text = nftables(Place::Masquerade);
    let (site, machine) = machine(Place::Masquerade, "flush ruleset\n");
    machine.write(
        "/etc/nftables.d/10-gateway.nft",
        &text.replace("add table inet gateway\ndelete table inet gateway\n", ""),
    );
    machine.write("/etc/nftables.conf", "flush ruleset\ninclude \"/etc/nftables.d/*.nft\"\n");
    machine.shell(NFT);
    assert_apply_reload_and_undo(&site, &machine, "nftables", NFT, &FAMILIES, &MODES);
}

/// The number of packets in the first line of `listing` that names `what` (`counter packets 3`, or `[3:180] -A`).
fn counted(listing: &str, what: &str) -> u64 {
    let Some(line) = listing.lines().find(|line| line.contains(what)) else { return 0 };
    let number = line.split(['[', ':']).nth(1).filter(|_| line.starts_with('['));
    let number = number.or(line.split("packets ").nth(1)).unwrap();
    number.split(' ').next().unwrap().parse().unwrap()
}

/// Asserts that with the rules of setup `block` still stops uploads. `list` shows how many packets of `what` it drops.
fn assert_uploads_stop(
    (site, machine): &(Site, Machine),
    [block, unblock]: [String; 2],
    list: &str,
    what: &str,
) {
    let daemon = site.daemon(NFTABLES);
    machine.setup(&daemon, &["--apply"]).says("applied");
    machine.setup(&daemon, &["--check"]).says("nothing to do");
    let run = |lines: &str| drop(machine.shell(lines));
    let dropped = || counted(&machine.shell(list), what);
    site.stops_uploads(|| run(&block), || run(&unblock), dropped);
    machine.setup(&daemon, &["--undo"]).says("undone");
}

/// Also if the accept rule has to stand above them, because an earlier rule drops new connections or hides the mark.
#[test]
fn nftables_rules_before_the_established_rule_stop_uploads() {
    let forward = "chain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n";
    let set = "\tset blocked { type ipv4_addr; }\n\t";
    let (drops, hides) = ("iifname $wan ct state new drop", "ct mark set 5");
    for first in ["", drops, hides] {
        let rules = format!("\t\t{first}\n\t\tip saddr @blocked counter drop\n");
        let text = nftables(Place::Masquerade);
        let text = text.replacen(forward, &format!("{set}{forward}{rules}"), 1);
        let scene = machine(Place::Masquerade, &text);
        let client = scene.0.lab.client.address(V4);
        let element = |verb| format!("nft {verb} element inet gateway blocked '{{ {client} }}'");
        let list = "nft list chain inet gateway forward";
        assert_uploads_stop(&scene, ["add", "delete"].map(element), list, "@blocked");
        assert_eq!(scene.1.read("/etc/nftables.conf"), text);
    }
}

/// As fail2ban drops.
#[test]
fn iptables_rules_before_the_established_rule_stop_uploads() {
    let (drops, hides) = ("-i wan -m conntrack --ctstate NEW -j DROP", "-j CONNMARK --set-mark 5");
    let all = [("nft", ""), ("nft", drops), ("nft", hides), ("legacy", ""), ("legacy", drops)];
    for &(variant, first) in telling(&[("nft", drops)], &all) {
        let scene = iptables_machine(Place::Masquerade, variant);
        let insert = format!("iptables-{variant} -I FORWARD");
        let first = if first.is_empty() { String::new() } else { format!("{insert} {first}") };
        scene.1.shell(&format!(
            "iptables-{variant} -N blocked; {insert} -j blocked; {first}
            iptables-{variant}-save > /etc/iptables/rules.v4"
        ));
        let client = scene.0.lab.client.address(V4);
        let rule = |verb| format!("iptables-{variant} {verb} blocked -s {client} -j DROP");
        let save = format!("iptables-{variant}-save");
        assert_uploads_stop(&scene, ["-A", "-D"].map(rule), &format!("{save} -c"), "-A blocked");
        assert!(!scene.1.shell(&save).contains("ftp-alg-setup"));
    }
}

/// Loading the file would remove another program's table, or add the file's rules a second time.
#[test]
fn setup_adds_a_rule_and_does_not_load_the_file() {
    let plain = nftables(Place::Masquerade)
        .replace("add table inet gateway\ndelete table inet gateway\n", "");
    for (first, other) in [("flush ruleset\n", "add table ip other"), ("", "")] {
        let text = format!("{first}{plain}");
        let (site, machine) = machine(Place::Masquerade, &text);
        machine.shell(&format!("nft '{other}'"));
        // Simulates a boot.
        let boot = format!("nft delete table inet gateway; {NFT}; nft '{other}'");
        let loads =
            assert_apply_reload_and_undo(&site, &machine, "nftables", &boot, &FAMILIES, &MODES);
        assert!(loads[0].starts_with("nft add rule inet gateway forward index 0 "), "{loads:?}");
        assert_eq!(other.is_empty(), !machine.shell("nft list tables").contains("ip other"));
    }
}

pub fn iptables_machine(place: Place, variant: &str) -> (Site, Machine) {
    let text = without_rules(&native::iptables(place, variant));
    let site = Site::new(place);
    let machine = Machine::on(site.guard());
    machine.write("/etc/rules.sh", &text);
    machine.shell(&format!(
        "sh /etc/rules.sh; rm /etc/rules.sh; mkdir -p /etc/iptables
        iptables-{variant}-save > /etc/iptables/rules.v4
        ip6tables-{variant}-save > /etc/iptables/rules.v6
        chmod 640 /etc/iptables/rules.v4"
    ));
    (site, machine)
}

#[test]
fn setup_edits_the_saved_rules_of_iptables() {
    let all = ["nft", "legacy"].map(|variant| PLACES.map(|place| (variant, place))).concat();
    for &(variant, place) in telling(&[("nft", Place::Published), ("legacy", Place::Server)], &all)
    {
        let (site, machine) = iptables_machine(place, variant);
        let reload = format!(
            "iptables-{variant}-restore /etc/iptables/rules.v4
            ip6tables-{variant}-restore /etc/iptables/rules.v6"
        );
        assert_apply_reload_and_undo(&site, &machine, "iptables", &reload, &FAMILIES, &MODES);
    }
}

/// A chain like fail2ban's: restoring the file would remove it.
#[test]
fn setup_preserves_an_iptables_chain_that_is_in_no_file() {
    let (site, machine) = iptables_machine(Place::Masquerade, "nft");
    machine.shell("iptables-nft -N f2b-sshd");
    let restart = "iptables-nft-restore /etc/iptables/rules.v4
        ip6tables-nft-restore /etc/iptables/rules.v6; iptables-nft -N f2b-sshd";
    let loads =
        assert_apply_reload_and_undo(&site, &machine, "iptables", restart, &FAMILIES, &MODES);
    for (load, program) in loads.iter().zip(["iptables-nft", "ip6tables-nft"]) {
        assert!(load.starts_with(&format!("{program} -I FORWARD 2 ")), "{loads:?}");
    }
    assert_eq!(loads.len(), 2, "{loads:?}");
    assert!(machine.shell("iptables-nft -S").contains("-N f2b-sshd"));
}

#[test]
fn the_conntrack_back_end_gets_a_rule_for_related() {
    let text = nftables(Place::Masquerade).replace("established,related", "established");
    let (site, machine) = machine(Place::Masquerade, &text);
    let daemon = site.daemon(CONNTRACK);
    let before = machine.files();
    machine.setup(&daemon, &["--apply"]).says("ct state established,related accept comment");
    machine.setup(&daemon, &["--apply"]).says("nothing to do");
    site.carries(&daemon, &FAMILIES);
    machine.setup(&daemon, &["--undo"]).says("undone");
    assert_eq!(machine.files(), before);
}

#[test]
fn setup_recognises_its_rule_with_a_configured_mark() {
    let configuration = "[pinhole]\nbackend = \"nftables\"\nmark = 0x100\nmark-mask = 0x700\n";
    let nft = machine(Place::Masquerade, &nftables(Place::Masquerade));
    for (site, machine) in [nft, iptables_machine(Place::Masquerade, "nft")] {
        let daemon = site.daemon(configuration);
        machine.setup(&daemon, &["--apply"]).says("0x00000100");
        machine.setup(&daemon, &["--apply"]).says("nothing to do");
        site.carries(&daemon, &FAMILIES);
    }
}

/// With `ct helper ftp_alg` in it the file does not load at the next boot, so nothing is filtered.
#[test]
fn a_saved_copy_of_the_table_is_a_problem_until_it_is_deleted() {
    let (site, machine) = machine(Place::Masquerade, "flush ruleset\n");
    let daemon = site.daemon(CONNTRACK);
    let of_files = || -> Vec<Value> {
        let problems = machine.problems(&daemon).into_iter();
        problems.filter(|problem| problem["name"] == "saved-table").collect()
    };
    assert_eq!(of_files(), [Value::Null; 0]);
    machine.shell("mkdir -p /etc/nftables.d; nft -s list ruleset > /etc/nftables.d/saved.nft");
    machine.write("/etc/nftables.conf", "flush ruleset\ninclude \"/etc/nftables.d/*.nft\"\n");
    let found = of_files();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0]["text"].to_string().contains("/etc/nftables.d/saved.nft: has a copy"));
    assert!(machine.problems_of(&daemon, &["status"]).contains(&found[0]));
    // What an included file is does not matter.
    machine.shell(
        "{ nft list table inet ftp_alg; echo 'include \"/etc/nftables.d/*\"'; } > /etc/nftables.conf
        rm /etc/nftables.d/saved.nft; mkfifo /etc/nftables.d/fifo",
    );
    assert!(of_files()[0]["text"].to_string().contains("/etc/nftables.conf: has a copy"));
    machine.write("/etc/nftables.conf", "delete table inet ftp_alg\n");
    assert_eq!(of_files(), [Value::Null; 0]);
}
