//! Faults: unwritable, edited or invalid files, failing reloads, interruptions, and rules that differ from the files.

use super::{machine::*, native::*, site::*};
use crate::common::*;

const SECOND: &str = "\nadd table ip second\ndelete table ip second\ntable ip second {\n chain forward {\n\
        type filter hook forward priority 5; policy drop; ct state established accept\n\
        tcp dport 21 accept\n }\n}\n";
const CONF: &str = "/etc/nftables.conf";

/// A gateway with nftables, whose file is the recipe without a newline at its end.
fn gateway() -> (Site, Machine, Daemon) {
    let (site, machine) = machine(Place::Masquerade, nftables(Place::Masquerade).trim_end());
    let daemon = site.daemon(NFTABLES);
    (site, machine, daemon)
}

fn loaded_rules(machine: &Machine) -> String {
    machine.shell("nft list table inet gateway")
}

#[test]
fn a_read_only_file_system_fails_without_changes() {
    let (_site, machine, daemon) = gateway();
    let (files, rules) = (machine.files(), loaded_rules(&machine));
    machine.shell("mount -o remount,ro /etc");
    machine.setup(&daemon, &["--apply"]).fails("Read-only file system");
    assert_eq!((machine.files(), loaded_rules(&machine)), (files.clone(), rules));
    machine.setup(&daemon, &["--undo"]).says("nothing to do");
    machine.shell("mount -o remount,rw /etc");
    machine.setup(&daemon, &["--apply"]).says("applied");
    machine.shell("mount -o remount,ro /etc");
    machine.setup(&daemon, &["--undo"]).fails("Read-only file system");
    machine.shell("mount -o remount,rw /etc");
    machine.setup(&daemon, &["--undo"]).says("undone");
    assert_eq!(machine.files(), files);
}

#[test]
fn symbolic_link_mode_owner_and_missing_newline_are_preserved() {
    let (_site, machine, daemon) = gateway();
    machine.shell(
        "mkdir /etc/git; mv /etc/nftables.conf /etc/git/x; ln -s git/x /etc/nftables.conf
        chmod 640 /etc/git/x; chown 33:44 /etc/git/x",
    );
    let before = machine.files();
    machine.setup(&daemon, &["--apply"]).says("applied");
    let stat = "readlink /etc/nftables.conf; stat -c '%a %u %g' /etc/git/x";
    assert_eq!(machine.shell(stat), "git/x\n640 33 44\n");
    assert!(machine.read("/etc/git/x").contains("ftp-alg-setup"));
    machine.setup(&daemon, &["--undo"]).says("undone");
    assert_eq!(machine.files(), before);
}

#[test]
fn an_invalid_file_is_left_alone() {
    let (_site, machine, daemon) = gateway();
    let right = machine.read(CONF);
    for wrong in [right.replace('\n', "\r\n"), right.clone() + "\nnonsense\n"] {
        machine.write(CONF, &wrong);
        let (files, rules) = (machine.files(), loaded_rules(&machine));
        machine.setup(&daemon, &["--apply"]).fails("the files have an error");
        assert_eq!((machine.files(), loaded_rules(&machine)), (files, rules));
    }
    machine.shell("printf '\\377' > /etc/nftables.conf");
    machine.setup(&daemon, &["--apply"]).fails("it is not UTF-8");
}

#[test]
fn rules_in_no_file_are_reported_with_a_command() {
    let (_site, machine, daemon) = gateway();
    let line = "nft add rule inet gateway forward index 0 ct mark and 0x40000000 != 0 accept";
    for (lines, why) in [
        ("echo 'flush ruleset' > /etc/nftables.conf", "the chain was loaded by hand"),
        ("rm /etc/nftables.conf", "/etc/nftables.conf does not exist"),
    ] {
        machine.shell(lines);
        let files = machine.files();
        let outcome = machine.setup(&daemon, &[]);
        outcome.says(line);
        outcome.says(why);
        machine.setup(&daemon, &["--apply"]).fails("rules to add by hand: 1");
        assert_eq!(machine.files(), files);
    }
}

/// Replaces nft by a script that runs `instead` when it is asked to add a rule.
fn replace_nft(machine: &Machine, instead: &str) {
    machine.shell("[ -e /usr/sbin/nft.real ] || mv /usr/sbin/nft /usr/sbin/nft.real");
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in add) {instead} ;; esac\nexec /usr/sbin/nft.real \"$@\"\n"
    );
    machine.write("/usr/sbin/nft", &script);
    machine.shell("chmod 755 /usr/sbin/nft");
}

#[test]
fn the_next_run_finishes_or_undoes_an_interrupted_apply() {
    let (_site, machine, daemon) = gateway();
    let (files, rules) = (machine.files(), loaded_rules(&machine));
    for next in ["--undo", "--apply"] {
        replace_nft(&machine, "kill -9 $PPID; exit 1");
        let lines = format!(
            "{} setup --apply --config {} || true",
            executable().display(),
            daemon.socket().with_file_name("ftp-alg.toml").display()
        );
        machine.shell(&lines);
        replace_nft(&machine, ":");
        machine.shell("touch /etc/.nftables.conf.ftp-alg");
        assert_ne!(machine.files(), files, "the run was not interrupted");
        machine.setup(&daemon, &[]).says("an earlier --apply was interrupted");
        machine.setup(&daemon, &[next]);
        assert_eq!(machine.read(CONF).contains("ftp-alg-setup"), next == "--apply");
        assert_eq!(loaded_rules(&machine).contains("ftp-alg-setup"), next == "--apply");
        machine.setup(&daemon, &["--undo"]);
        assert_eq!((machine.files(), loaded_rules(&machine)), (files.clone(), rules.clone()));
        machine.shell("[ ! -e /etc/.nftables.conf.ftp-alg ]");
    }
}

#[test]
fn a_failed_load_restores_the_files() {
    let (_site, machine, daemon) = gateway();
    let rules = loaded_rules(&machine);
    // The first script fails once. The second one succeeds without adding the rule.
    for (instead, why) in [
        ("[ -e /etc/failed ] || { touch /etc/failed; echo no >&2; exit 1; }", "no"),
        ("exit 0", "even after the change"),
    ] {
        replace_nft(&machine, instead);
        let text = machine.read(CONF);
        let outcome = machine.setup(&daemon, &["--apply"]);
        outcome.fails(why);
        outcome.fails("all changes were undone");
        assert_eq!((machine.read(CONF), loaded_rules(&machine)), (text, rules.clone()));
    }
}

#[test]
fn concurrent_setup_runs_are_refused() {
    let (_site, machine, daemon) = gateway();
    machine.setup(&daemon, &["--apply"]).says("applied");
    let other = machine.start("flock", &["/var/lib/ftp-alg/setup/lock", "sleep", "60"]);
    wait_for("the lock", || {
        !machine.try_shell("flock -n /var/lib/ftp-alg/setup/lock true").status.success()
    });
    for arguments in ["--apply", "--undo"] {
        machine.setup(&daemon, &[arguments]).fails("another ftp-alg setup is running");
    }
    machine.setup(&daemon, &[]).says("nothing to do");
    drop(other);
}

/// The rule that doctor recommends works until the next reload.
#[test]
fn apply_saves_a_rule_that_is_only_loaded() {
    let (_site, machine, daemon) = gateway();
    machine.shell("nft insert rule inet gateway forward ct mark and 0x40000000 != 0 accept");
    machine.setup(&daemon, &[]).says("accepts admitted data connections");
    machine.setup(&daemon, &["--apply"]).says("applied");
    assert!(machine.read(CONF).contains("ftp-alg-setup"));
    machine.setup(&daemon, &["--undo"]).says("undone");
    assert!(!loaded_rules(&machine).contains("ftp-alg-setup"));
}

/// Anyone who can write the journal could make root write any file.
#[test]
fn a_journal_writable_by_others_is_refused() {
    let (_site, machine, daemon) = gateway();
    machine.setup(&daemon, &["--apply"]).says("applied");
    let files = machine.files();
    for wrong in ["chown 33 /var/lib/ftp-alg", "chmod 777 /var/lib/ftp-alg/setup"] {
        machine.shell(wrong);
        for arguments in ["--undo", "--apply"] {
            machine.setup(&daemon, &[arguments]).fails("is writable by users other than root");
        }
        assert_eq!(machine.files(), files);
        machine.shell("chown 0 /var/lib/ftp-alg; chmod 700 /var/lib/ftp-alg/setup");
    }
    machine.setup(&daemon, &["--undo"]).says("undone");
}

#[test]
fn an_earlier_apply_survives_a_later_failure_and_each_chain_gets_the_rule() {
    let (site, machine, daemon) = gateway();
    let before = machine.read(CONF);
    machine.setup(&daemon, &["--apply"]).says("applied");
    let applied = machine.read(CONF);
    machine.write(CONF, &(applied.clone() + SECOND));
    machine.shell("nft -f /etc/nftables.conf");
    let rules = loaded_rules(&machine);
    replace_nft(&machine, "echo no >&2; exit 1");
    machine.setup(&daemon, &["--apply"]).fails("all changes were undone");
    assert_eq!((machine.read(CONF), loaded_rules(&machine)), (applied + SECOND, rules));
    replace_nft(&machine, ":");
    machine.setup(&daemon, &["--apply"]).says("ip second forward drops");
    assert_eq!(machine.read(CONF).matches("ftp-alg-setup").count(), 2);
    site.carries(&daemon, &[V4]);
    machine.setup(&daemon, &["--undo"]).says("undone");
    assert_eq!(machine.read(CONF), before + SECOND);
    assert!(!machine.shell("nft list ruleset").contains("ftp-alg-setup"));
}
