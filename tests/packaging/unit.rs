//! The unit, as systemd's own tools see it. `tests/installed` starts, hangs and reloads it; chroot.sh makes its user.

use std::fs;

use crate::{packaging, run, said};

/// What `systemd-analyze security` gives at most: 0 is a service that can do nothing, 10 one that
/// can do everything.
const MOST_EXPOSED: f64 = 2.0;

#[test]
fn the_unit_exposes_little() {
    let arguments = ["security", "--offline=true", "--no-pager"];
    let said = said(&run(
        "systemd-analyze",
        &[&arguments[..], &[packaging("ftp-alg.service").to_str().unwrap()]].concat(),
    ));
    let level = said
        .lines()
        .find_map(|line| line.split_once("exposure level for ftp-alg.service: "))
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<f64>().ok());
    assert!(level.is_some_and(|level| level <= MOST_EXPOSED), "{said}");
}

#[test]
fn the_unit_is_understood() {
    let unit = fs::read_to_string(packaging("ftp-alg.service")).unwrap();
    // Where the package puts it, if this were an installed machine.
    let installed = "/usr/sbin/ftp-alg";
    assert!(unit.contains(installed));
    let directory = tempfile::tempdir().unwrap();
    let store = include_str!("../../src/cli/setup/pair/redis.service");
    for (name, unit) in [
        ("ftp-alg.service", unit.replace(installed, env!("CARGO_BIN_EXE_ftp-alg"))),
        ("redis-ftp-alg.service", store.replace("redis-server", "/bin/true")),
    ] {
        let file = directory.path().join(name);
        fs::write(&file, unit).unwrap();
        let verified = run("systemd-analyze", &["verify", "--man=no", file.to_str().unwrap()]);
        assert!(verified.status.success() && said(&verified).is_empty(), "{}", said(&verified));
    }
}

/// Any user may make one, where the BPF file system is not root's alone.
#[test]
fn the_unit_gives_away_no_target_of_a_symbolic_link() {
    let unit = fs::read_to_string(packaging("ftp-alg.service")).unwrap();
    let steps = unit.lines().filter_map(|line| line.strip_prefix("ExecStartPre=-+"));
    // The user need not exist here. Without the sticky bit, `fs.protected_symlinks` does not apply.
    let steps: Vec<_> = steps.map(|step| step.replace("ftp-alg:ftp-alg", "1:1")).collect();
    assert_eq!(steps.len(), 2, "{steps:?}");
    let run_with = |prepare: &str| {
        let mount = "mount -t tmpfs -o mode=0777 none /sys/fs/bpf && cd /sys/fs/bpf";
        let found = "stat -c %u:%a target ftp-alg";
        let script = format!("{mount} && mkdir target && {prepare}; {}; {found}", steps.join("; "));
        said(&run("unshare", &["--mount", "sh", "-c", &script]))
    };
    assert_eq!(run_with("ln -s target ftp-alg").lines().next(), Some("0:755"));
    assert_eq!(run_with("true"), "0:755\n1:700\n");
    assert_eq!(run_with("mkdir -m 700 ftp-alg"), "0:755\n1:700\n");
}
