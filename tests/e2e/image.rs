//! The container image, made as `make image` makes it, and run by crun on a gateway: as packaging/container/compose.yaml and
//! the image say, but for the host's directories. The gateway's namespace is the host's network.

use std::process::Command;

use crate::common::*;

/// What an engine mounts in each container.
const MOUNTS: [(&str, &str, &[&str]); 5] = [
    ("proc", "/proc", &[]),
    ("tmpfs", "/dev", &["nosuid", "mode=755"]),
    ("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666"]),
    ("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
    ("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
];

/// What Docker and podman make read-only, or hide.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const MASKED: [&str; 5] =
    ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"];

fn container_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/container").join(name)
}

/// The service of compose.yaml.
struct Compose(String);

impl Compose {
    fn read() -> Self {
        Self(fs::read_to_string(container_file("compose.yaml")).unwrap())
    }

    /// Removes what docs/howto/ftp-alg-in-a-container.md says that a container without a fast path does not need.
    fn remove_fast_path(&mut self) {
        let is_of_it =
            |line: &&str| ["- BPF", "- PERFMON", "/sys/fs/bpf"].iter().any(|of| line.contains(of));
        assert_eq!(self.0.lines().filter(is_of_it).count(), 3);
        let others = self.0.lines().filter(|line| !is_of_it(line));
        self.0 = others.map(|line| format!("{line}\n")).collect();
    }

    /// The scalar of a key.
    fn value(&self, key: &str) -> &str {
        let start = format!("    {key}: ");
        self.0.lines().find_map(|line| line.strip_prefix(&start)).unwrap()
    }

    /// The entries of the list or the map of a key, without comments.
    fn entries(&self, key: &str) -> Vec<&str> {
        let lines = self.0.lines().skip_while(|line| *line != format!("    {key}:")).skip(1);
        let entries = lines.map_while(|line| line.strip_prefix("      "));
        let entries = entries.filter(|entry| !entry.starts_with('#'));
        entries.map(|entry| entry.trim_start_matches("- ")).collect()
    }
}

/// The image, unpacked as an engine does it.
struct Image {
    directory: PathBuf,
    config: Value,
}

impl Image {
    /// Makes and unpacks it in an empty directory.
    fn make(directory: &Path) -> Self {
        let directory = directory.to_owned();
        let made = Command::new("make")
            .args(["--no-print-directory", "image"])
            .arg(format!("BINARY={}", executable().display()))
            .arg(format!("OUTPUT={}", directory.display()))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stdout).into_owned();
        assert!(made.status.success(), "{said}{}", String::from_utf8_lossy(&made.stderr));
        let file = said.lines().last().unwrap();
        let unpack = |file: &str, below: &Path| {
            fs::create_dir_all(below).unwrap();
            let mut tar = Command::new("tar");
            tar.arg("-xf").arg(directory.join(file)).arg("-C").arg(below);
            assert!(tar.status().unwrap().success(), "{file}");
        };
        unpack(file, &directory);
        let json = |path: &str| -> Value {
            serde_json::from_slice(&fs::read(directory.join(path)).unwrap()).unwrap()
        };
        let blob = |descriptor: &Value| {
            format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))
        };
        let manifest = json(&blob(&json("index.json")["manifests"][0]));
        let [layer] = manifest["layers"].as_array().unwrap().as_slice() else { panic!() };
        unpack(&blob(layer), &directory.join("rootfs"));
        let config = json(&blob(&manifest["config"]))["config"].clone();
        Self { directory, config }
    }

    /// The words of a list of its configuration.
    fn words(&self, key: &str) -> Vec<String> {
        serde_json::from_value(self.config[key].clone()).unwrap()
    }

    /// What the OCI's runtimes read: the image with the service of `compose`, whose directories of the host are in `host`.
    /// Limits of memory are left out.
    fn runtime_spec(&self, compose: &Compose, host: &Path) -> Value {
        assert_eq!(compose.value("network_mode"), "host");
        assert_eq!(compose.entries("cap_drop"), ["ALL"]);
        let added = compose.entries("cap_add");
        let capabilities: Vec<_> = added.iter().map(|name| format!("CAP_{name}")).collect();
        let options = compose.entries("security_opt");
        let profile = options.iter().find_map(|option| option.strip_prefix("seccomp=./")).unwrap();
        let seccomp = fs::read(container_file(profile)).unwrap();
        let variables = compose.entries("environment");
        let variables = variables.iter().map(|entry| entry.replace(": ", "="));
        let environment: Vec<_> = self.words("Env").into_iter().chain(variables).collect();
        let mut mounts: Vec<_> = MOUNTS
            .iter()
            .map(|(kind, place, options)| {
                json!({"type": kind, "source": kind, "destination": place, "options": options})
            })
            .collect();
        for volume in compose.entries("volumes") {
            let [source, place, mode @ ..] = &*volume.split(':').collect::<Vec<_>>() else {
                panic!("{volume}")
            };
            let source = match *source {
                "/sys/fs/bpf/ftp-alg" => (*source).into(),
                other => host.join(other.trim_start_matches(['.', '/'])),
            };
            // As Docker does.
            fs::create_dir_all(&source).unwrap_or_else(|error| panic!("{source:?}: {error}"));
            let options = [&["rbind", "rprivate"], mode].concat();
            mounts.push(
                json!({"type": "bind", "source": source, "destination": place, "options": options}),
            );
        }
        let arguments = [self.words("Entrypoint"), self.words("Cmd")].concat();
        let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({"type": kind}));
        json!({
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": arguments,
                "env": environment,
                "cwd": self.config["WorkingDir"],
                "noNewPrivileges": options.contains(&"no-new-privileges:true"),
                "capabilities": {
                    "bounding": capabilities,
                    "effective": capabilities,
                    "permitted": capabilities,
                },
            },
            "root": {"path": "rootfs", "readonly": compose.value("read_only") == "true"},
            "mounts": mounts,
            "linux": {
                "namespaces": namespaces,
                "seccomp": serde_json::from_slice::<Value>(&seccomp).unwrap(),
                "readonlyPaths": READ_ONLY,
                "maskedPaths": MASKED,
            },
        })
    }
}

/// A container that crun runs on the lab's gateway.
struct Container<'l> {
    lab: &'l Lab,
    bundle: &'l Path,
    process: BackgroundProcess,
}

impl<'l> Container<'l> {
    /// Starts it, and waits until it gives verdicts and has loaded the fast path.
    fn start(lab: &'l Lab, bundle: &'l Path) -> Self {
        // The daemon's output is a pipe, as with an engine.
        let words = ["run", "--bundle", &bundle.to_string_lossy(), NAME];
        let command = crun(lab, bundle, "crun \"$@\" 2>&1 | cat", &words);
        let process = lab.gateway.start(command, "container").unwrap();
        let mut this = Self { lab, bundle, process };
        wait_for("the container", || {
            assert_eq!(this.process.exit_status(), None, "{}", this.process.log());
            let status = this.status();
            // Without a daemon it has only that as a problem.
            status["sessions"].is_u64() && !status.to_string().contains("is being loaded")
        });
        this
    }

    /// Runs `crun COMMAND ftp-alg WORDS`.
    fn crun(&self, command: &str, words: &[&str]) -> ProgramOutput {
        let words = [&[command, NAME], words].concat();
        let crun = crun(self.lab, self.bundle, "exec crun \"$@\"", &words);
        self.lab.gateway.finish(crun, b"", Duration::from_secs(60)).unwrap()
    }

    /// Its status; null before there is one.
    fn status(&self) -> Value {
        let said = self.crun("exec", &["/usr/sbin/ftp-alg", "status", "--json"]).stdout_text();
        serde_json::from_str(&said).unwrap_or_default()
    }

    /// The events of this name in its output, which is JSON and nothing else.
    fn events(&self, name: &str) -> Vec<Value> {
        let log = self.process.log();
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        // The last line may be a part of one.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole.lines().map(parse);
        events.filter(|event: &Value| event["event"] == name).collect()
    }

    /// Ends it by a signal, and removes it, so that the next one can have its name.
    fn end(mut self, signal: &str) {
        self.crun("kill", &[signal]).success().unwrap();
        wait_for("its end", || self.process.exit_status().is_some());
        self.crun("delete", &["--force"]);
    }
}

/// The name of the container.
const NAME: &str = "ftp-alg";

/// A shell that runs `line` with these words for crun. Its mount namespace has cgroups of version 2 alone, because crun
/// refuses a machine with both versions, even if it makes no cgroup.
fn crun(lab: &Lab, bundle: &Path, line: &str, words: &[&str]) -> Command {
    let mut command = lab.gateway.command("unshare");
    let line = format!("mount -t cgroup2 none /sys/fs/cgroup; {line}");
    command.args(["--mount", "sh", "-ec", &line, "sh", "--cgroup-manager=disabled", "--root"]);
    command.arg(bundle.join("crun")).args(words);
    command
}

/// The image in a container on a gateway that masquerades. Its sessions survive.
fn assert_serves(image: &Image, compose: &Compose, fast_path: &str) {
    let lab = lab_for(Topology::Masquerade, "");
    let before = lab.gateway.ruleset().unwrap();
    let host = lab.directory().join("host");
    let etc = container_file("etc");
    let copy = format!("mkdir {0}; cp -r {1} {0}", host.display(), etc.display());
    lab.gateway.shell(&copy).unwrap();
    let spec = image.runtime_spec(compose, &host);
    fs::write(image.directory.join("config.json"), spec.to_string()).unwrap();
    let start = || Container::start(&lab, &image.directory);

    let container = start();
    let status = container.status();
    assert_eq!(status["unconfined"], json!([]));
    assert_eq!(status["fast_path"]["state"], fast_path, "{}", status["fast_path"]);
    let check = image.config["Healthcheck"]["Test"].as_array().unwrap();
    let healthy = |container: &Container<'_>| {
        let words: Vec<_> = check[1..].iter().map(|word| word.as_str().unwrap()).collect();
        let done = container.crun("exec", &words);
        assert!(done.status.success(), "{}", done.stdout_text());
    };
    healthy(&container);

    // A reload reads the file that an editor has put in place of the old one.
    let file = host.join("etc/ftp-alg.toml");
    let changed = fs::read_to_string(&file).unwrap() + "[pinhole]\ntimeout = \"20s\"\n";
    fs::write(file.with_extension("new"), changed).unwrap();
    fs::rename(file.with_extension("new"), &file).unwrap();
    container.crun("kill", &["HUP"]).success().unwrap();
    wait_for("the reload", || !container.events("reload-changed").is_empty());

    let _server = scripted_server(&lab.server, &json!({}));
    let steps = (login(), port_transfer(), gate(), port_transfer(), gate(), port_transfer());
    let mut client = hold(&lab, steps);
    // The fast path reports it later.
    let rewrites = || container.events("announcement").iter().any(|of| of["action"] == "rewrite");
    wait_for("the announcement", rewrites);
    container.end("TERM");
    let container = start();
    wait_for("the restored session", || container.events("restored").len() == 1);
    client.reach_next_gate();
    healthy(&container);
    container.end("KILL");
    let container = start();
    let session = client.release().ok();
    for step in [9, 16, 23] {
        assert_eq!(session.got(step), "the body\r\n", "{:?}", session.steps);
    }
    healthy(&container);
    assert_eq!(container.status()["errors"], 0);
    wait_for("the session's end", || container.status()["sessions"] == 0);
    container.end("TERM");
    assert_eq!(lab.gateway.ruleset().unwrap(), before);
}

#[test]
#[ignore = "nightly: the image needs Debian's packages from a mirror"]
fn the_image_serves_with_a_fast_path_and_without_and_sessions_survive() {
    let directory = tempfile::tempdir().unwrap();
    let image = Image::make(directory.path());
    let mut compose = Compose::read();
    let fast_path = if has_tcx() { "on" } else { "off" };
    assert_serves(&image, &compose, fast_path);
    compose.remove_fast_path();
    assert_serves(&image, &compose, "off");
}
