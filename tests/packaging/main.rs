//! What the packages bring, as the tools of those who install them see it: dpkg, lintian, systemd, man, shells.
//!
//! The package is made once, of the program that is tested: `make deb` itself, without the release build.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers as well")]

mod ansible;
mod chroot;
mod contents;
mod image;
mod kubernetes;
mod openwrt;
mod pages;
mod pair;
mod reproducible;
mod sample;
mod shells;
mod unit;
mod version;

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rustix::fs::FlockOperation;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_ftp-alg");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn packaging(name: &str) -> PathBuf {
    root().join("packaging").join(name)
}

/// Runs a tool, which `packaging/provision` installs, in the root of the source.
fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Output {
    let run = Command::new(program).args(arguments).current_dir(root()).output();
    run.unwrap_or_else(|error| panic!("{program}: {error}: install it, as `make provision` does"))
}

/// The virtual environment that `packaging/provision nightly` makes, which has to have this program.
fn wheels(program: &str) -> PathBuf {
    let cache = env::var_os("FTP_ALG_LAB_CACHE").unwrap_or("/var/cache/ftp-alg-lab".into());
    let environment = PathBuf::from(cache).join("python");
    let path = environment.join("bin").join(program);
    assert!(path.exists(), "{}: run packaging/provision nightly", path.display());
    environment
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Standard output of a tool that must succeed.
fn output<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// `make` with this program in place of the release build.
fn make(arguments: &[&str]) -> String {
    let binary = format!("BINARY={PROGRAM}");
    output("make", &[&["--no-print-directory", &binary], arguments].concat())
}

/// The package of Debian. The first test of a run makes it; each test is a process of its own.
fn deb() -> PathBuf {
    let _alone = alone();
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let made = place.join("deb-of-run");
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
    let written = fs::read_to_string(&made).unwrap_or_default();
    if let Some((of, path)) = written.split_once(' ')
        && of == run
    {
        return path.into();
    }
    let said = make(&["deb", &format!("OUTPUT={}", place.display())]);
    let path = said.lines().last().unwrap();
    fs::write(made, format!("{run} {path}")).unwrap();
    path.into()
}

/// Waits until no other test makes a package: all of them use `target/package`.
fn alone() -> File {
    let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("package.lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    lock
}
