//! Gives the program its version with the commit: `0.1.0 (abc123def, 2026-11-21)`.
//!
//! The commit is git's, or what `git archive` wrote into `packaging/commit`. Debug builds have none:
//! each commit would compile everything again.

use std::{env, fs, process::Command};

const WRITTEN: &str = "packaging/commit";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={WRITTEN}");
    let version = env!("CARGO_PKG_VERSION");
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = if is_release { written().or_else(of_git) } else { None };
    let version = commit.map_or(version.to_owned(), |commit| format!("{version} ({commit})"));
    println!("cargo::rustc-env=FTP_ALG_VERSION={version}");
}

/// What `git archive` wrote.
fn written() -> Option<String> {
    let text = fs::read_to_string(WRITTEN).ok()?;
    let text = text.trim();
    (!text.contains('$')).then(|| text.to_owned())
}

/// What git says of the directory, if this is its repository and not one around it.
fn of_git() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    // It has a line for each commit and checkout.
    println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    git(&["log", "-1", "--abbrev=9", "--format=%h, %cs"])
}
