//! `rules/ftp-alg.iptables` and `.ip6tables`: queueing that the operator loads, for a kernel that
//! has neither the queue statement of nftables nor nft_compat. Such a kernel is played by an `nft`
//! that leaves the queue statements out.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use ftp_alg::lab::{Daemon, Host};

use crate::{
    common::executable,
    native::{iptables, run_iptables},
    site::{FAMILIES, FEW, Place, Site},
};

/// Starts `ftp-alg run` with an `nft` that knows no queue statement.
fn daemon_that_queues_nothing(host: &Host) -> Daemon {
    let bin = host.directory().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let script = |name: &str, text: String| {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let nft = "PATH=/usr/sbin:/sbin:/usr/bin:/bin; sed '/^[[:space:]]*queue /d' | nft \"$@\"";
    script("nft", nft.to_owned());
    let (bin, program) = (bin.display(), executable());
    let run = format!("PATH={bin}:$PATH exec {} \"$@\"", program.display());
    Daemon::start(&script("ftp-alg", run), host, "").unwrap()
}

/// Loads what `ftp-alg rules iptables` and `ip6tables` print.
fn load_queueing(host: &Host, variant: &str) {
    let program = executable();
    let lines = ["iptables", "ip6tables"].map(|flavour| {
        let restore = format!("{flavour}-{variant}-restore --noflush");
        format!("{} rules {flavour} --config /dev/null | {restore}", program.display())
    });
    host.shell(&lines.join("\n")).unwrap();
}

#[test]
fn queueing_by_iptables_serves_every_place() {
    for variant in ["nft", "legacy"] {
        for place in [Place::Masquerade, Place::Published, Place::Server, Place::Client] {
            let site = Site::new(place);
            run_iptables(site.guard(), &iptables(place, variant).text);
            let daemon = daemon_that_queues_nothing(site.guard());
            let ruleset = site.guard().ruleset().unwrap();
            assert!(ruleset.contains("table inet ftp_alg {") && !ruleset.contains("queue"));
            load_queueing(site.guard(), variant);
            site.carries(&daemon, &FAMILIES);
            site.shows_a_stranger(&daemon, FEW);
            assert_eq!(site.guard().invalid_packets().unwrap(), 0, "{variant} {place:?}");
            // Half an announcement is held back and acknowledged here too.
            let times = [(); 3].map(|()| site.answer_to_a_cut_announcement());
            assert!(times.into_iter().any(|time| time < Duration::from_millis(100)), "{times:?}");
        }
    }
}
