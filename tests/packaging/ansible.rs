//! The Ansible role: linted, and run against a copy of this machine.

use std::{env, fs, process::Command};

use crate::{deb, output, packaging, root, said, wheels};

#[test]
#[ignore = "nightly: Ansible and its linter are 90 MB to download"]
fn the_role_passes_ansible_lint_for_production() {
    let directory = tempfile::tempdir().unwrap();
    let (from, home) = (packaging("ansible"), directory.path());
    output("cp", &["-r".as_ref(), from.as_os_str(), home.as_os_str()]);
    let programs = wheels("ansible-lint").join("bin");
    let path = format!("{}:{}", programs.display(), env::var("PATH").unwrap());
    let lint = Command::new(programs.join("ansible-lint"))
        .args(["--offline", "--strict", "--profile", "production"])
        .current_dir(home.join("ansible"))
        .envs([("PATH", path.as_ref()), ("HOME", home.as_os_str())])
        .output()
        .unwrap();
    assert!(lint.status.success(), "{}", said(&lint));
    assert!(said(&lint).contains("processed of 6 encountered"), "{}", said(&lint));
}

#[test]
#[ignore = "nightly: as above"]
fn the_second_run_of_the_role_changes_nothing() {
    let environment = wheels("ansible-playbook");
    let directory = tempfile::tempdir().unwrap();
    let script = root().join("tests/packaging/ansible.sh");
    let all = ["--mount", "--net", "--pid", "--fork", "--kill-child"].map(Into::into);
    let place = directory.path().into();
    let arguments = [script.into(), deb().into_os_string(), place, environment.into()];
    output("unshare", &[&all[..], &arguments[..]].concat());
}

#[test]
fn the_page_shows_the_playbook_and_every_variable() {
    let page = fs::read_to_string(root().join("docs/howto/ansible.md")).unwrap();
    let read = |file: &str| fs::read_to_string(packaging("ansible").join(file)).unwrap();
    let playbook = read("gateways.yml");
    assert!(page.contains(playbook.trim_start_matches("---\n")), "not in the page: {playbook}");
    let defaults = read("roles/ftp_alg/defaults/main.yml");
    let variables = defaults.lines().filter(|line| line.starts_with("ftp_alg_"));
    for line in variables {
        let (name, default) = line.split_once(": ").unwrap();
        let default = if default == "\"\"" { "empty" } else { default };
        assert!(page.contains(&format!("| `{name}` | {default} |")), "{line}");
    }
}
