//! The version: one everywhere, and with the commit in what is released.

use std::fs;

use crate::{PROGRAM, output, packaging, root};

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[test]
fn every_version_is_the_same() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let mut releases = changelog.lines().filter(|line| line.starts_with("## ["));
    let latest = releases.find(|line| *line != "## [Unreleased]").unwrap();
    assert!(latest.starts_with(&format!("## [{VERSION}]")), "{latest}");
    let changelog = fs::read_to_string(packaging("deb/changelog")).unwrap();
    let debian = VERSION.replace('-', "~");
    assert!(changelog.starts_with(&format!("ftp-alg ({debian}-1) ")), "{changelog}");
    let recipe = fs::read_to_string(packaging("openwrt/feed/ftp-alg/Makefile")).unwrap();
    assert!(recipe.contains(&format!("\nSOURCE_VERSION:={VERSION}\n")), "{recipe}");
    let said = output(PROGRAM, &["version"]);
    assert!(said.starts_with(&format!("ftp-alg {VERSION}")), "{said}");
    assert_eq!(said, output(PROGRAM, &["--version"]));
}

#[test]
fn an_archive_of_the_source_names_its_commit() {
    // A source that is no repository has been such an archive.
    if root().join(".git").exists() {
        let commit = output("git", &["log", "-1", "--format=%H %cs"]);
        let archived = output("sh", &["-c", "git archive HEAD packaging/commit | tar -xO"]);
        assert_eq!(archived, commit);
    }
}
