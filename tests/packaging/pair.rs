//! The script that keepalived calls when a gateway gets or loses the virtual addresses.

use std::os::unix::fs::PermissionsExt as _;

use ftp_alg_lab::wait_for;

use super::*;

/// keepalived does not wait for a call before it makes the next one.
#[test]
fn a_call_that_comes_later_has_the_last_word() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    // The first call takes over the kernel's connections until the file `taken` is there.
    let takes = "[ $1 != -c ] || { : >taking; until [ -e taken ]; do sleep 0.01; done; }";
    for (name, line) in [
        ("conntrackd", takes),
        ("conntrack", ""),
        ("systemctl", ""),
        ("ftp-alg", "echo $1 >>ordered"),
    ] {
        let text = format!("#!/bin/sh\ncd {}\n{line}\n", home.display());
        fs::write(home.join(name), text).unwrap();
        fs::set_permissions(home.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let call = |state| {
        let mut command = Command::new(packaging("pair/notify"));
        command.args(["GROUP", "gateways", state, "100"]);
        command.env("PATH", format!("{}:/usr/bin:/bin", home.display())).spawn().unwrap()
    };
    let mut first = call("MASTER");
    wait_for("the first call", || home.join("taking").exists());
    let mut second = call("BACKUP");
    wait_for("the second call", || second.try_wait().unwrap().is_some() || waits(second.id()));
    fs::write(home.join("taken"), "").unwrap();
    assert!(first.wait().unwrap().success() && second.wait().unwrap().success());
    assert_eq!(fs::read_to_string(home.join("ordered")).unwrap(), "activate\ndeactivate\n");
}

/// Whether the shell with this process id waits for another call.
fn waits(shell: u32) -> bool {
    let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"));
    let name = |child: &str| fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
    children.unwrap_or_default().split_whitespace().any(|child| name(child) == "flock\n")
}
