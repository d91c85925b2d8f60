//! The package for OpenWrt: its files, its scripts, the service, and the recipe for a feed.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{PROGRAM, alone, output, packaging, reproducible::QUICK, root, run, said};

/// The package below `place`, of the program that is tested unless `binary` is empty.
fn ipk(place: &Path, binary: &str, architecture: Option<&str>) -> PathBuf {
    let mut make = Command::new("make");
    make.args(["--no-print-directory", "ipk", &format!("OUTPUT={}", place.display())]);
    make.arg(format!("ARCH={}", if ARCH == "aarch64" { "arm64" } else { "amd64" }));
    make.args([binary].iter().filter(|binary| !binary.is_empty())).current_dir(root()).envs(QUICK);
    make.envs(architecture.map(|name| ("OPENWRT_ARCH", name)));
    let made = make.output().unwrap();
    assert!(made.status.success(), "{}", said(&made));
    said(&made).lines().rfind(|line| line.ends_with(".ipk")).unwrap().into()
}

/// What tar says of an archive in the package.
fn unpacked(package: &Path, archive: &str, how: &str) -> String {
    let package = package.display();
    output(
        "bash",
        &["-o", "pipefail", "-ec", &format!("tar -xzOf {package} ./{archive} | tar {how}")],
    )
}

#[test]
fn the_package_has_these_files_and_is_the_same_each_time() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let binary = format!("BINARY={PROGRAM}");
    let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
    let [one, other] = [one, other].map(|place| ipk(&place, &binary, None));
    assert!(fs::read(&one).unwrap() == fs::read(&other).unwrap(), "they differ");
    let listed = unpacked(&one, "data.tar.gz", "-tvz --numeric-owner");
    let listed = listed.lines().filter(|line| !line.starts_with('d'));
    let words = listed.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let files: Vec<_> = words.map(|words| [words[0], words[1], words[5]].join(" ")).collect();
    let wanted = [
        "-rw-r--r-- 0/0 ./etc/ftp-alg.toml",
        "-rwxr-xr-x 0/0 ./etc/init.d/ftp-alg",
        "-rwxr-xr-x 0/0 ./usr/sbin/ftp-alg",
        "-rw-r--r-- 0/0 ./usr/share/doc/ftp-alg/copyright",
    ];
    assert_eq!(files, wanted);
    assert_eq!(unpacked(&one, "control.tar.gz", "-xzO ./conffiles").trim(), "/etc/ftp-alg.toml");
    let control = unpacked(&one, "control.tar.gz", "-xzO ./control");
    let name = if ARCH == "aarch64" { "aarch64_generic" } else { "x86_64" };
    assert!(control.starts_with(&format!("Architecture: {name}\n")), "{control}");
    // What the feed's recipe names, the libraries are in the program.
    let recipe = fs::read_to_string(packaging("openwrt/feed/ftp-alg/Makefile")).unwrap();
    let depends = control.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap();
    let named = recipe.split_whitespace().filter_map(|word| word.strip_prefix('+'));
    let named: Vec<_> = named.filter(|name| !name.starts_with("lib")).collect();
    assert_eq!(named.join(", "), depends);

    // The smallest program, as its contents do not matter.
    let named = ipk(directory.path(), "BINARY=/bin/true", Some("aarch64_cortex-a53"));
    assert!(named.to_str().unwrap().ends_with("_aarch64_cortex-a53.ipk"), "{named:?}");
}

#[test]
#[ignore = "nightly: builds the static program"]
fn the_static_program_serves_a_root_of_busybox() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let package = ipk(directory.path(), "", None);
    let root_tree = directory.path().join("root");
    fs::create_dir(&root_tree).unwrap();
    let script = root().join("tests/packaging/openwrt.sh");
    let all = ["--mount", "--net", "--pid", "--fork", "--kill-child"].map(Into::into);
    let arguments = [script.into_os_string(), package.into(), root_tree.into()];
    let done = run("unshare", &[&all[..], &arguments[..]].concat());
    assert!(done.status.success(), "{}", said(&done));
}
