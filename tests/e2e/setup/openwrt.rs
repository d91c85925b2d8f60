//! OpenWrt's fw4, simulated by a script that includes the files of `chain-pre` where fw4 does.

use super::{machine::*, site::*};
use crate::common::*;

const RULESET: &str = include_str!("../recipes/fw4.nft");

const FW4: &str = r#"#!/bin/sh
print() {
    awk '$0 == "INCLUDE" {
        chain = n++ ? "forward" : "input"
        fflush()
        system("cat /usr/share/nftables.d/chain-pre/" chain "/*.nft 2>/dev/null")
        next
    } !/REDIRECT/' /etc/fw4.nft
}
case $1 in
check) print | nft -c -f - ;;
reload) print | nft -f - ;;
esac
"#;

#[test]
fn setup_adds_files_that_fw4_includes() {
    let site = Site::new(Place::Masquerade);
    let machine = Machine::on(site.guard());
    machine.write("/etc/fw4.nft", RULESET);
    machine.write("/etc/sysupgrade.conf", "# retained over an upgrade");
    machine.write("/usr/sbin/fw4", FW4);
    machine.shell("chmod 755 /usr/sbin/fw4; mkdir -p /usr/share/nftables.d; fw4 reload");
    let name = "OpenWrt (fw4)";
    assert_apply_reload_and_undo(&site, &machine, name, "fw4 reload", &FAMILIES, &[Mode::Active]);
    machine.shell("[ ! -e /usr/share/nftables.d/chain-pre ]");
    // What the operator's files drop stays dropped.
    let own = "/usr/share/nftables.d/chain-pre/forward/own.nft";
    machine.write(own, "ip saddr 192.0.2.9 drop\n");
    machine.shell("fw4 reload");
    let daemon = site.daemon(NFTABLES);
    machine.setup(&daemon, &["--apply"]).says("applied");
    let chain = machine.shell("nft list chain inet fw4 forward");
    assert!(chain.find("192.0.2.9") < chain.find("ftp-alg-setup"), "{chain}");
    machine.setup(&daemon, &["--undo"]).says("undone");
    machine.shell(&format!("[ -e {own} ]"));
}
