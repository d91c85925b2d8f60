//! Build script: puts the commit into the program's version (`1.0.0 (abc123def, 2026-12-01)`).
//!
//! The commit comes from git, or from `packaging/commit`, which `git archive` fills in. Debug builds have none, because
//! each commit would rebuild everything.

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

/// Hash and date from git, if this directory itself is a repository.
fn of_git() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    // Git appends a line for each commit and checkout.
    println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    git(&["log", "-1", "--format=%H %cs"])
}
