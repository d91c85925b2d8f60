//! ufw, alone and together with Docker.

use super::{machine::*, site::*};
use crate::common::*;

/// The steps of ufw's package installation.
const INSTALL: &str = "
for lib in lib usr/lib; do
    [ ! -d \"$CACHE/$lib/ufw\" ] || cp -r \"$CACHE/$lib/ufw\" /usr/lib/
done
cp /usr/share/ufw/iptables/*.rules /usr/share/ufw/ufw.conf /etc/ufw/
";

/// An enabled ufw that denies everything.
pub fn enabled(place: Place) -> (Site, Machine) {
    let site = Site::new(place);
    let machine = Machine::on(site.guard());
    // On a host, ufw denies outgoing connections too.
    let outgoing = if place.is_gateway() { "" } else { "ufw default deny outgoing" };
    machine.shell(&format!(
        "CACHE={}\n{INSTALL}
        ufw default deny incoming; ufw default deny routed; {outgoing}
        ufw --force enable",
        cache()
    ));
    (site, machine)
}

pub fn recipe() -> Recipe {
    Recipe::read("ufw.sh", &SHELL_VALUES)
}

/// Runs `text`, the recipe or a change of it.
pub fn apply(machine: &Machine, place: Place, text: &str) {
    machine.write("/etc/rules.sh", text);
    machine.shell(&format!("sh /etc/rules.sh {}", place.argument()));
}

/// An enabled ufw that denies everything except control connections.
fn machine(place: Place) -> (Site, Machine) {
    let (site, machine) = enabled(place);
    let ours = if place.is_gateway() { "0x40000000" } else { "0x" };
    apply(&machine, place, &recipe().with_rules_disabled(ours));
    (site, machine)
}

#[test]
fn setup_edits_the_before_rules_of_ufw() {
    let all = [Place::Masquerade, Place::Published, Place::Server];
    for &place in telling(&all[1..2], &all) {
        let (site, machine) = machine(place);
        assert_apply_reload_and_undo(&site, &machine, "ufw", "ufw reload", &FAMILIES, &MODES);
    }
}

#[test]
fn setup_adds_the_rule_to_both_ufw_and_docker() {
    let (site, machine) = machine(Place::Masquerade);
    machine.write("/etc/systemd/system/docker.service", "[Service]\nExecStart=/bin/true\n");
    machine.shell(
        "iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN
        iptables -I FORWARD -j DOCKER-USER
        sed -i '/^# quickly process/a -A ufw-before-forward -s 192.0.2.9 -j DROP' \
            /etc/ufw/before.rules
        ufw reload",
    );
    let daemon = site.daemon(NFTABLES);
    let before = machine.files();
    for arguments in [&[][..], &["--apply"]] {
        let outcome = machine.setup(&daemon, arguments);
        outcome.says("ufw (recognised by ");
        outcome.says("Docker (recognised by ");
    }
    assert!(machine.shell("iptables -S DOCKER-USER").contains("ftp-alg-setup"));
    machine.shell("ufw reload");
    // Behind an operator's drop in before.rules, as a set of blocked addresses.
    for chain in ["ufw-before-forward", "DOCKER-USER"] {
        let rules = machine.shell(&format!("iptables -S {chain}"));
        let place = rules.lines().skip(1).position(|line| line.contains("ftp-alg-setup"));
        let drop = rules.lines().skip(1).position(|line| line.contains("192.0.2.9"));
        let expected = if drop.is_some() { 2 } else { 0 };
        assert_eq!(place, Some(expected), "{rules}");
    }
    site.carries(&daemon, &FAMILIES);
    machine.setup(&daemon, &["--apply"]).says("nothing to do");
    machine.setup(&daemon, &["--undo"]).says("undone");
    assert_eq!(machine.files(), before);
    assert!(!machine.shell("iptables-save").contains("ftp-alg-setup"));
}
