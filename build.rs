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
    let version = match commit.as_deref().and_then(|text| text.trim().split_once(' ')) {
        Some((hash, date)) => format!("{version} ({hash:.9}, {date})"),
        None => version.to_owned(),
    };
    println!("cargo::rustc-env=FTP_ALG_VERSION={version}");
}

/// Hash and date that `git archive` wrote.
fn written() -> Option<String> {
    fs::read_to_string(WRITTEN).ok().filter(|text| !text.contains('$'))
}

/// Those that git says, if the directory is a repository and not only within one.
fn of_git() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    // It has a line for each commit and checkout.
    println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    git(&["log", "-1", "--format=%H %cs"])
}
