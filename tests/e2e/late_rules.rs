//! Rules of the operator that take longer to read than the start waits for them.

use ftp_alg::kernel::probe::ConntrackAbilities;

use crate::common::*;

/// The program with an `nft` that waits by the shell command `wait` before it lists a table.
fn executable_with_slow_nft(lab: &Lab, wait: &str) -> PathBuf {
    // The broker starts only programs of the system's directories.
    let lines = format!("case \"$*\" in *--json*) {wait};; esac\nexec /usr/bin/yes \"$@\"");
    let slow = shell_program(&lab.gateway, "slow-nft", &lines);
    let lines = format!(
        "exec unshare --mount sh -c 'mount --bind /usr/sbin/nft /usr/bin/yes && \
         mount --bind {} /usr/sbin/nft && exec {} \"$@\"' sh \"$@\"",
        slow.display(),
        executable().display()
    );
    shell_program(&lab.gateway, "ftp-alg-with-slow-nft", &lines)
}

/// Starts a daemon that cannot read the rules before the file `gate` is there.
fn start(lab: &Lab, gate: &Path) -> Daemon {
    let _ = fs::remove_file(gate); // of an earlier start
    let wait =
        format!("for i in $(seq 600); do [ -e {} ] && break; sleep 0.1; done", gate.display());
    // With `auto` the start waits longer for the rules, which select the back end.
    Daemon::start(&executable_with_slow_nft(lab, &wait), &lab.gateway, FAST_PATH).unwrap()
}

/// They restore whole packet marks, which `ip rule` compares, translate to a set of source ports, and name a zone.
#[test]
fn the_table_has_what_late_rules_demand_and_keeps_it_at_a_restart() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let rules = "set -e
        ip rule add fwmark 1 lookup 100 priority 100
        nft 'table ip source { chain source { type nat hook postrouting priority 90; \
             oifname \"wan\" ip protocol tcp masquerade to :40960-41023; }; }'
        nft 'table inet zones { chain pre { type filter hook prerouting priority raw; \
             iifname \"other\" ct zone set 7; }; }'
        nft 'table ip marks { chain pre { type filter hook prerouting priority mangle; \
             iifname \"lan\" ct mark 0 ct mark set 1; meta mark set ct mark; }; }'";
    lab.gateway.shell(rules).unwrap();
    let gate = lab.gateway.directory().join("gate");
    let mut daemon = start(&lab, &gate);
    let demanded = ["chain clear_restored_prerouting", ":40960-41023", "{ 0, 7 }"];
    let has_demanded = || {
        let table = lab.gateway.shell("nft list table inet ftp_alg").unwrap().stdout_text();
        demanded.map(|text| table.contains(text))
    };
    assert_eq!(has_demanded(), [false; 3], "read in time");
    fs::write(&gate, b"").unwrap();
    wait_for("the rules", || has_demanded() == [true; 3]);
    wait_for("the ports", || daemon.log().contains("data connections use the ports 40960-41023"));
    wait_for("the audit", || !daemon.status().unwrap()["problems"].is_null());
    let problems = daemon.status().unwrap()["problems"].to_string();
    assert!(!problems.contains("restored-marks"), "{problems}");
    daemon.stop().unwrap();
    let daemon = start(&lab, &gate);
    assert_eq!(has_demanded(), [true; 3], "{}", daemon.log());
    fs::write(&gate, b"").unwrap();
}

#[test]
fn the_start_waits_for_rules_that_select_the_back_end() {
    if !ConntrackAbilities::read().cthelper {
        println!(
            "not tried: this kernel has no nfnetlink_cthelper, so no rules select the back end"
        );
        return;
    }
    let lab = Lab::new(Topology::Routed).unwrap();
    let program = executable_with_slow_nft(&lab, "sleep 2");
    let daemon = Daemon::start(&program, &lab.gateway, "").unwrap();
    let status = daemon.status().unwrap();
    assert_eq!(status["backend"], "nftables", "{status}");
    let why = "no rule drops data connections that have the mark";
    assert_eq!(status["backend_reason"], why, "{status}");
}
