//! The package, installed by apt next to this machine, used, upgraded and purged.

use crate::{deb, root, run, said};

#[test]
fn the_package_is_installed_used_upgraded_and_purged_without_a_trace() {
    let directory = tempfile::tempdir().unwrap();
    let script = root().join("tests/packaging/chroot.sh");
    let all = ["--mount", "--net", "--pid", "--fork", "--kill-child"].map(Into::into);
    let arguments = [script.into_os_string(), deb().into(), directory.path().into()];
    let done = run("unshare", &[&all[..], &arguments[..]].concat());
    assert!(done.status.success(), "{}", said(&done));
}
