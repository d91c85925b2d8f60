//! What is in the package, and that `make install` installs the same.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{alone, deb, make, output, root};

/// Every file but the recipes, whose list is the directory's.
const FILES: [&str; 18] = [
    "/etc/ftp-alg.toml",
    "/etc/logrotate.d/ftp-alg",
    "/usr/lib/ftp-alg/notify",
    "/usr/lib/systemd/system/ftp-alg.service",
    "/usr/lib/sysusers.d/ftp-alg.conf",
    "/usr/sbin/ftp-alg",
    "/usr/share/bash-completion/completions/ftp-alg",
    "/usr/share/doc/ftp-alg/changelog.Debian.gz",
    "/usr/share/doc/ftp-alg/changelog.gz",
    "/usr/share/doc/ftp-alg/copyright",
    "/usr/share/fish/vendor_completions.d/ftp-alg.fish",
    "/usr/share/man/man5/ftp-alg.toml.5.gz",
    "/usr/share/man/man7/ftp-alg.7.gz",
    "/usr/share/man/man8/ftp-alg.8.gz",
    "/usr/share/zsh/vendor-completions/_ftp-alg",
    "/usr/share/doc/ftp-alg/examples/ftp-alg.dashboard.json",
    "/usr/share/doc/ftp-alg/examples/ftp-alg.rules.yml",
    "/usr/share/doc/ftp-alg/examples/nftables-gateway.nft",
];

fn field(name: &str) -> String {
    output("dpkg-deb", &["--field".as_ref(), deb().as_os_str(), name.as_ref()]).trim().to_owned()
}

/// Files below `tree`, with their permissions.
fn files(tree: &Path) -> BTreeSet<String> {
    let listed = output("find", &[tree.to_str().unwrap(), "-type", "f", "-printf", "/%P %m\n"]);
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn the_package_has_these_files() {
    let directory = tempfile::tempdir().unwrap();
    output("dpkg-deb", &["-x".as_ref(), deb().as_os_str(), directory.path().as_os_str()]);
    let packed = files(directory.path());
    let recipes = fs::read_dir(root().join("rules/recipes")).unwrap();
    let recipes = recipes.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let recipes = recipes.map(|name| format!("/usr/share/doc/ftp-alg/examples/{name}"));
    // The pages that messages name, and that name each other.
    let pages = output("sh", &["-c", "ls README.md docs/*.md docs/howto/*.md"]);
    let pages = pages.lines().map(|page| format!("/usr/share/doc/ftp-alg/{page}"));
    let wanted = FILES.into_iter().map(str::to_owned).chain(recipes);
    let wanted: BTreeSet<_> = wanted.chain(pages).collect();
    let names: BTreeSet<_> =
        packed.iter().map(|file| file.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(names, wanted);
    for file in &packed {
        let program = file.starts_with("/usr/sbin/") || file.starts_with("/usr/lib/ftp-alg/");
        assert!(file.ends_with(if program { " 755" } else { " 644" }), "{file}");
    }

    // `make install` installs the same, here as for a package and there for /usr/local.
    let installed = tempfile::tempdir().unwrap();
    let destination = format!("DESTDIR={}", installed.path().display());
    make(&["install", &destination, "PREFIX=/usr"]);
    assert_eq!(files(installed.path()), packed);
    make(&["uninstall", &destination, "PREFIX=/usr"]);
    assert_eq!(files(installed.path()), ["/etc/ftp-alg.toml 644".to_owned()].into());
    make(&["install", &destination]);
    let unit = installed.path().join("usr/local/lib/systemd/system/ftp-alg.service");
    let unit = fs::read_to_string(unit).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/sbin/ftp-alg run"), "{unit}");
}

#[test]
fn the_package_for_rpm_has_the_same_files() {
    let _alone = alone();
    let place = format!("OUTPUT={}", env!("CARGO_TARGET_TMPDIR"));
    let said = make(&["rpm", &place]);
    let rpm = said.lines().last().unwrap();
    let listed = output("rpm", &["--query", "--list", "--package", rpm]);
    let listed: BTreeSet<_> = listed.lines().collect();
    for file in FILES {
        let there = file.replace("vendor-completions", "site-functions");
        let there = there.replace("doc/ftp-alg/copyright", "licenses/ftp-alg/copyright");
        assert!(listed.contains(there.as_str()) || file.contains("Debian"), "{file}: {listed:?}");
    }
    let configuration = output("rpm", &["--query", "--configfiles", "--package", rpm]);
    assert_eq!(configuration.trim(), "/etc/ftp-alg.toml\n/etc/logrotate.d/ftp-alg");
}

#[test]
fn the_package_says_what_it_is_and_needs() {
    assert_eq!(field("Package"), "ftp-alg");
    // A release candidate comes before its release.
    let version = env!("CARGO_PKG_VERSION").replace('-', "~");
    assert_eq!(field("Version"), format!("{version}-1"));
    let depends = field("Depends");
    for needed in ["libc6", "libmnl0", "libnftnl11", "nftables", "procps", "systemd"] {
        assert!(depends.contains(needed), "{needed}: {depends}");
    }
    let conffiles = output("dpkg-deb", &["-I".as_ref(), deb().as_os_str(), "conffiles".as_ref()]);
    assert_eq!(conffiles.trim(), "/etc/ftp-alg.toml\n/etc/logrotate.d/ftp-alg");
}

#[test]
fn lintian_and_shellcheck_find_no_error() {
    let deb = deb();
    output("lintian", &["--allow-root", "--fail-on", "error", deb.to_str().unwrap()]);
    output("shellcheck", &["--norc", "packaging/image", "tests/packaging/openwrt.sh"]);
    let openwrt =
        ["ftp-alg.init", "postinst", "prerm"].map(|name| format!("packaging/openwrt/{name}"));
    output(
        "shellcheck",
        &[&["--norc".to_owned(), "--shell=dash".to_owned()], &openwrt[..]].concat(),
    );
}

#[test]
fn the_copyright_names_every_linked_crate() {
    let directory = tempfile::tempdir().unwrap();
    output("dpkg-deb", &["-x".as_ref(), deb().as_os_str(), directory.path().as_os_str()]);
    let copyright = directory.path().join("usr/share/doc/ftp-alg/copyright");
    let copyright = fs::read_to_string(copyright).unwrap();
    let tree = [
        "tree",
        "--package=ftp-alg",
        "--locked",
        "--edges=normal,no-proc-macro",
        "--prefix=none",
        "--format={p}",
    ];
    let tree = output(env!("CARGO"), &tree);
    let crates: BTreeSet<_> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    assert!(crates.len() > 50, "{crates:?}");
    for one in crates.iter().filter(|name| !name.starts_with("ftp-alg")) {
        let name = one.replacen(" v", "-", 1);
        assert!(copyright.contains(&format!("\nFiles: crates/{name}/*\n")), "{name}");
    }
    // Each licence that a part names has its text.
    let named = copyright.split("\n\n").filter(|part| part.starts_with("Files: "));
    let named =
        named.filter_map(|part| part.lines().find_map(|line| line.strip_prefix("License: ")));
    for licence in named.flat_map(|text| text.split(" and ")).flat_map(|text| text.split(" or ")) {
        assert!(copyright.contains(&format!("\n\nLicense: {licence}\n ")), "{licence}");
    }
}
