//! That a program of the same commit has the same bytes wherever it is built.

use std::{fs, path::Path, process::Command};

use crate::{output, root, said};

/// The optimisation does not matter, and takes most of the time.
pub const QUICK: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
];

/// The program that `packaging/build` makes of a clone in `directory`, with a cargo home next to it.
fn built(directory: &Path) -> Vec<u8> {
    let (source, home) = (directory.join("source"), directory.join("home"));
    let [from, to] = [root(), &source].map(|path| path.to_str().unwrap());
    output("git", &["clone", "--quiet", "--no-hardlinks", from, to]);
    fs::create_dir(&home).unwrap();
    let registry = output("sh", &["-c", "echo -n ${CARGO_HOME:-$HOME/.cargo}/registry"]);
    std::os::unix::fs::symlink(registry, home.join("registry")).unwrap();
    let mut build = Command::new(source.join("packaging/build"));
    build.current_dir(&source).env("CARGO_HOME", &home).env_remove("CARGO_TARGET_DIR").envs(QUICK);
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", said(&built));
    fs::read(source.join("target/release/ftp-alg")).unwrap()
}

#[test]
#[ignore = "nightly: builds the program twice"]
fn the_program_does_not_depend_on_where_it_is_built() {
    let [one, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let deeper = other.path().join("deeper");
    fs::create_dir(&deeper).unwrap();
    let (first, second) = (built(one.path()), built(&deeper));
    for place in [one.path(), deeper.as_path()] {
        let place = place.to_str().unwrap().as_bytes();
        assert!(!first.windows(place.len()).any(|part| part == place), "the program names it");
    }
    assert!(first == second, "{} and {} bytes", first.len(), second.len());
}
