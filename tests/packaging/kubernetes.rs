//! The manifests for Kubernetes, as kubernetes-validate sees them, and what their page says of them.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{PROGRAM, output, packaging, root, run, said, wheels};

fn manifest(name: &str) -> String {
    let path = packaging("kubernetes").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn page() -> String {
    fs::read_to_string(root().join("docs/howto/kubernetes.md")).unwrap()
}

/// The values of `key: VALUE` in `text`.
fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        line.trim().trim_start_matches("- ").strip_prefix(key)?.strip_prefix(": ")
    })
}

#[test]
fn the_page_has_the_rights_and_the_mounts_of_the_manifest() {
    let manifest = manifest("daemonset.yaml");
    let added = values(&manifest, "add").next().unwrap().trim_matches(['[', ']']);
    assert_eq!(values(&manifest, "drop").next(), Some("[ALL]"));
    let mounts = values(&manifest, "mountPath");
    let has: BTreeSet<_> = added.split(", ").chain(mounts).collect();
    let page = page();
    let (_, below) = page.split_once("\n## What the pod may do\n").unwrap();
    let section = below.split("\n## ").next().unwrap();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let named = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    assert_eq!(named.collect::<BTreeSet<_>>(), has);
    // They are from the node, but the configuration.
    let paths: Vec<_> = values(&manifest, "path").collect();
    assert_eq!(paths, ["/run/ftp-alg", "/sys/fs/bpf"]);
    assert!(!manifest.contains("privileged: true"));
}

/// kustomize itself is not to be had here.
#[test]
fn the_kustomization_names_what_there_is() {
    let kustomization = manifest("kustomization.yaml");
    for file in ["daemonset.yaml", "ftp-alg.toml"] {
        assert!(kustomization.contains(&format!("- {file}\n")), "{file}");
        manifest(file);
    }
    let daemon_set = manifest("daemonset.yaml");
    let image = values(&daemon_set, "image").next().unwrap();
    assert!(values(&kustomization, "name").any(|name| name == image), "{image}");
    let (_, config_map) = daemon_set.split_once("configMap:\n").unwrap();
    let config_map = values(config_map, "name").next().unwrap();
    let (_, generated) = kustomization.split_once("configMapGenerator:\n").unwrap();
    assert_eq!(values(generated, "name").next(), Some(config_map));
    let configuration = packaging("kubernetes").join("ftp-alg.toml");
    let said = output(PROGRAM, &["check", "--config", configuration.to_str().unwrap()]);
    assert!(!said.contains("WARNING"), "{said}");
}

#[test]
#[ignore = "nightly: `packaging/provision nightly` installs kubernetes-validate, 144 MB"]
fn kubernetes_validate_accepts_the_manifest_and_the_service_of_the_page() {
    let program = wheels("kubernetes-validate").join("bin/kubernetes-validate");
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let page = page();
    let (_, service) = page.split_once("```yaml\n").unwrap();
    let service_file = place.join("kubernetes-service.yaml");
    fs::write(&service_file, service.split("```").next().unwrap()).unwrap();
    let daemon_set = packaging("kubernetes").join("daemonset.yaml");
    let validate = |file: &Path| {
        let arguments = ["--strict".as_ref(), file.as_os_str()];
        run(program.to_str().unwrap(), &arguments)
    };
    for file in [&daemon_set, &service_file] {
        let done = validate(file);
        assert!(done.status.success(), "{}: {}", file.display(), said(&done));
    }
    // It reads the file, and finds what is wrong.
    for (right, wrong) in
        [("hostNetwork: true", "hostNetwork: maybe"), ("volumeMounts:", "volumeMount:")]
    {
        let file = place.join("kubernetes-wrong.yaml");
        let text = manifest("daemonset.yaml");
        assert!(text.contains(right));
        fs::write(&file, text.replace(right, wrong)).unwrap();
        assert!(!validate(&file).status.success(), "{wrong}");
    }
}
