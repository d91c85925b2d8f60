//! The container image, and what runs it: `make image`, and packaging/container. `tests/e2e/image.rs` runs it.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use crate::{make, output, packaging, root};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn compose() -> String {
    fs::read_to_string(packaging("container/compose.yaml")).unwrap()
}

#[test]
fn compose_takes_the_image_of_this_version_and_asks_for_its_health() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap();
    // Of a layer that is no archive.
    let layer = packaging("oci-layout");
    let layer = layer.to_str().unwrap();
    let line = format!(
        "mkdir -p {place}/blobs/sha256; SOURCE_DATE_EPOCH=0 {layer} {layer} {layer} {place} {VERSION} amd64 commit"
    );
    output("sh", &["-ec", &line]);
    let json = |path: &str| -> Value {
        serde_json::from_slice(&fs::read(directory.path().join(path)).unwrap()).unwrap()
    };
    let manifest = json("manifest.json");
    let image = manifest[0]["RepoTags"][0].as_str().unwrap();
    assert!(compose().contains(&format!("    image: {image}\n")));
    let health = &json(manifest[0]["Config"].as_str().unwrap())["config"]["Healthcheck"];
    let seconds = |key: &str| health[key].as_u64().unwrap() / 1_000_000_000;
    let lines = [
        format!("test: {}", health["Test"].to_string().replace(',', ", ")),
        format!("interval: {}s", seconds("Interval")),
        format!("timeout: {}s", seconds("Timeout")),
        format!("start_period: {}s", seconds("StartPeriod")),
        format!("retries: {}", health["Retries"]),
    ];
    let lines = lines.map(|line| format!("      {line}\n")).concat();
    assert!(compose().contains(&format!("    healthcheck:\n{lines}")), "{lines}");
}

/// What the daemon leaves itself it must have, and an attacker in the container gains no namespace, module or keyring.
#[test]
fn the_seccomp_profile_has_the_calls_of_the_daemon_and_no_privileged_ones() {
    let profile = fs::read(packaging("container/seccomp.json")).unwrap();
    let profile: Value = serde_json::from_slice(&profile).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = profile["syscalls"].as_array().unwrap();
    let of = |rule: &Value| serde_json::from_value::<Vec<String>>(rule["names"].clone()).unwrap();
    let allowed: BTreeSet<_> = rules.iter().flat_map(of).collect();
    let source = fs::read_to_string(root().join("src/daemon/confine/syscalls.rs")).unwrap();
    let calls = source.split("libc::SYS_").skip(1);
    let is_name = |one: char| one.is_ascii_alphanumeric() || one == '_';
    let calls = calls.map(|rest| rest.split(|one| !is_name(one)).next().unwrap());
    let missing: Vec<_> = calls.filter(|&name| !allowed.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for call in ["perf_event_open", "mount", "setns", "unshare", "ptrace", "init_module", "keyctl"]
    {
        assert!(!allowed.contains(call), "{call}");
    }
}

#[test]
#[ignore = "nightly: the image needs Debian's packages from a mirror"]
fn two_images_are_equal_and_small() {
    let images = [(); 2].map(|()| {
        let directory = tempfile::tempdir().unwrap();
        let place = format!("OUTPUT={}", directory.path().display());
        let said = make(&["image", &place]);
        fs::read(said.lines().last().unwrap()).unwrap()
    });
    assert!(images[0] == images[1], "they differ");
    // docs/packaging.md says 10 MB of the release build.
    let size = images[0].len();
    assert!(cfg!(debug_assertions) || (9_500_000..10_500_000).contains(&size), "{size}");
}
