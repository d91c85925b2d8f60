//! The container image, as `make image` makes it.

use std::{env::consts::ARCH, fs};

use crate::{PROGRAM, make, packaging, run, said};

#[test]
fn shellcheck_finds_nothing_in_the_script() {
    let script = packaging("image");
    let found = run("shellcheck", &["--norc".as_ref(), script.as_os_str()]);
    assert!(found.status.success(), "{}", said(&found));
}

#[test]
fn a_program_of_another_architecture_makes_no_image() {
    let other = if ARCH == "aarch64" { "amd64" } else { "arm64" };
    let refused = run(packaging("image").to_str().unwrap(), &[PROGRAM, other, "/nonexistent"]);
    assert!(!refused.status.success());
    let said = said(&refused);
    assert!(said.ends_with(&format!("is no program for {other}\n")), "{said}");
}

#[test]
#[ignore = "nightly: the image needs Debian's packages from a mirror"]
fn two_images_are_equal_and_small() {
    let architecture = format!("ARCH={}", if ARCH == "aarch64" { "arm64" } else { "amd64" });
    let images = [(); 2].map(|()| {
        let directory = tempfile::tempdir().unwrap();
        let place = format!("OUTPUT={}", directory.path().display());
        let said = make(&["image", &architecture, &place]);
        fs::read(said.lines().last().unwrap()).unwrap()
    });
    assert!(images[0] == images[1], "they differ");
    // docs/packaging.md says 10 MB of the release build.
    let size = images[0].len();
    assert!(cfg!(debug_assertions) || (9_500_000..10_500_000).contains(&size), "{size}");
}
