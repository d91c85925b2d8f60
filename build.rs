//! Build script: puts the commit into the program's version (`0.1.0 (abc123def, 2026-11-21)`), and compiles the fast
//! path's BPF program.
//!
//! The commit comes from git, or from `packaging/commit`, which `git archive` fills in. Debug builds have none, because
//! each commit would rebuild everything.

use std::{
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{self, Command},
};

const WRITTEN: &str = "packaging/commit";
/// The BPF program's directory; `inspect.bpf.c` includes the other files.
const FAST_PATH: &str = "src/kernel/fastpath/program";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={FAST_PATH}");
    if let Err(error) = compile_fast_path() {
        println!("cargo::error={error}");
        process::exit(1);
    }
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

/// Compiles the BPF program to `inspect.o` in the build directory.
fn compile_fast_path() -> Result<(), String> {
    let to = env::var_os("OUT_DIR").map(PathBuf::from).ok_or("OUT_DIR is not set")?;
    let mut clang = Command::new("clang");
    clang.args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror"]);
    // The object does not depend on the build directory.
    clang.arg("-fdebug-compilation-dir=.").current_dir(FAST_PATH);
    if let Some(headers) = headers_of_architecture() {
        clang.arg("-I").arg(headers);
    }
    clang.args(["-c", "inspect.bpf.c", "-o"]).arg(to.join("inspect.o"));
    let install = "on Debian or Ubuntu: apt-get install clang libbpf-dev linux-libc-dev";
    let output = clang.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("clang is missing, which compiles {FAST_PATH}; {install}"),
        _ => format!("clang cannot be started: {error}"),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let is_header = errors.contains("file not found");
    // Each line for cargo is one of ours.
    for line in errors.lines() {
        println!("cargo::warning={line}");
    }
    Err(match is_header {
        true => format!("clang finds no header that {FAST_PATH} needs; {install}"),
        false => format!("clang does not compile {FAST_PATH}"),
    })
}

/// Debian installs `asm/types.h` in a directory for each architecture, which clang does not search when it compiles for
/// another target. Any of them works, because the types are equal.
fn headers_of_architecture() -> Option<PathBuf> {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let entries = fs::read_dir(Path::new("/usr/include")).ok()?;
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut found: Vec<PathBuf> = paths.filter(|path| path.join("asm/types.h").exists()).collect();
    found.sort_by_key(|path| (!path.ends_with(format!("{architecture}-linux-gnu")), path.clone()));
    found.into_iter().next()
}
