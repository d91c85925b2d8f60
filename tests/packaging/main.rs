//! What the packages bring, as the tools of those who install them see it: dpkg, lintian, systemd, man, shells.
//!
//! The package is made once, of the program that is tested: `make deb` itself, without the release build.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers as well")]

mod chroot;
mod contents;
mod pages;
mod sample;
mod shells;
mod unit;
mod version;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

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

/// The package of Debian.
fn deb() -> &'static Path {
    static DEB: OnceLock<PathBuf> = OnceLock::new();
    DEB.get_or_init(|| {
        let place = format!("OUTPUT={}", env!("CARGO_TARGET_TMPDIR"));
        let said = make(&["deb", "DEB_OPTIONS=--fast", &place]);
        said.lines().last().unwrap().into()
    })
}
