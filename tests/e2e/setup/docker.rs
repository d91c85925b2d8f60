//! Docker's chains, and a drop-in for its service as systemd would read it.

use super::{machine::*, site::*};
use crate::{
    common::*,
    recipes::docker::{self, DOCKER_20, DOCKER_28},
};

const RULES: [&str; 2] = [DOCKER_20, DOCKER_28];

/// Simulates a boot: Docker's chains, then the commands that its service starts afterwards.
const BOOT: &str = "
iptables-restore /etc/docker.rules
cat /etc/systemd/system/docker.service.d/*.conf 2>/dev/null | sed -n 's/^ExecStartPost=-//p' | sh -e
";

/// A machine with Docker's service, whose chains are `rules`.
fn machine(site: &Site, rules: &str) -> Machine {
    let machine = Machine::on(site.guard());
    machine.write("/etc/systemd/system/docker.service", "[Service]\nExecStart=/bin/true\n");
    machine.write("/etc/docker.rules", rules);
    machine.shell(BOOT);
    machine
}

#[test]
fn setup_adds_the_docker_rule_by_a_systemd_drop_in() {
    for &rules in telling(&RULES[1..], &RULES) {
        let site = docker::site();
        // Docker filters only IPv4 here.
        site.guard().shell("sysctl -w net.ipv6.conf.all.forwarding=0").unwrap();
        let machine = machine(&site, rules);
        assert_apply_reload_and_undo(&site, &machine, "Docker", BOOT, &[V4], &[Mode::Passive]);
    }
}

#[test]
fn systemd_accepts_the_drop_in_and_adds_its_rule_once() {
    let site = Site::new(Place::Masquerade);
    const RETURN: &str = "-A DOCKER-USER -j RETURN\n";
    const BAD: &str = "-A DOCKER-USER -s 192.0.2.9 -j DROP\n";
    let rules = RULES[0].replace(RETURN, &format!("{BAD}{RETURN}"));
    let machine = machine(&site, &rules);
    let daemon = site.daemon(NFTABLES);
    machine.setup(&daemon, &["--apply"]).says("applied");
    let place = |machine: &Machine| {
        let chain = machine.shell("iptables -S DOCKER-USER");
        let rules: Vec<_> = chain.lines().skip(1).collect();
        rules.iter().position(|rule| rule.contains("ftp-alg-setup")).unwrap()
    };
    assert_eq!(place(&machine), 1);
    // Docker leaves the chain unchanged when it restarts.
    machine.shell(BOOT.trim_start().split_once('\n').unwrap().1);
    assert_eq!(machine.shell("iptables-save").matches("ftp-alg-setup").count(), 1);
    // Behind the operator's drops, also at a boot.
    const OLD: &str = "-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
    for (rules, expected) in [
        (rules, 1),
        (RULES[1].to_owned(), 0),
        (RULES[1].replace("COMMIT\n*nat", &format!("{BAD}COMMIT\n*nat")), 1),
        (RULES[0].replace(RETURN, &format!("{BAD}{OLD}-A DOCKER-USER -j DROP\n{RETURN}")), 2),
    ] {
        machine.write("/etc/docker.rules", &rules);
        machine.shell(BOOT);
        assert_eq!(place(&machine), expected, "{rules}");
    }
    let verified =
        machine.try_shell("systemd-analyze verify /etc/systemd/system/docker.service 2>&1");
    assert!(!verified.stdout_text().contains("ftp-alg"), "{}", verified.stdout_text());
    assert!(verified.status.success(), "{}", verified.stdout_text());
}
