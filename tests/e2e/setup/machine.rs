//! A host of the lab with its own writable file systems, for installing packages and changing files.

use std::process::Command;

use super::site::*;
use crate::common::*;

/// Mounts writable layers over the system's directories, together with the packages that `packaging/provision`
/// unpacked, and takes out what the system has of `ftp-alg` and of firewalls. The changes are visible only in this mount
/// namespace.
const ENTER: &str = r#"
home=$1 cache=$2
for at in etc usr var/lib; do
    layer=$home/$at
    mkdir -p "$layer/upper" "$layer/work"
    lower=/$at
    [ -d "$cache/$at" ] && lower=$lower:$cache/$at
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$layer/upper,workdir=$layer/work" "/$at"
done
rm -rf /var/lib/ftp-alg /etc/ftp-alg.toml /etc/nftables.* /etc/sysconfig/nftables.conf /etc/iptables \
    /etc/sysconfig/ip*tables /etc/firewalld/direct.xml /etc/systemd/system/docker.service* \
    /etc/sysctl.d/ftp-alg-setup.conf /etc/sysupgrade.conf /usr/share/nftables.d
touch "$home/entered"
exec sleep 1000
"#;

/// The directory of the unpacked packages.
pub fn cache() -> String {
    let program = unpacked("usr/sbin/ufw");
    program.ancestors().nth(3).unwrap().to_str().unwrap().to_owned()
}

pub struct Machine {
    host: Host,
    namespace: BackgroundProcess,
}

impl Machine {
    pub fn on(host: &Host) -> Self {
        let home = host.directory().join(format!("{}-root", host.role()));
        fs::create_dir_all(&home).unwrap();
        let mut command = host.command("unshare");
        command.args(["--mount", "--", "sh", "-ec", ENTER, "sh"]).arg(&home).arg(cache());
        let mut namespace = host.start(command, "machine").unwrap();
        wait_for("the mounts", || {
            assert!(namespace.exit_status().is_none(), "{}", namespace.log());
            home.join("entered").exists()
        });
        Self { host: host.clone(), namespace }
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = self.host.command("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.namespace.id())).arg("--").arg(program);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    pub fn try_shell(&self, lines: &str) -> ProgramOutput {
        let mut command = self.command("sh");
        command.args(["-ec", lines]);
        self.host.finish(command, b"", Duration::from_secs(60)).unwrap()
    }

    pub fn shell(&self, lines: &str) -> String {
        self.try_shell(lines).success().unwrap().stdout_text()
    }

    pub fn write(&self, path: &str, text: &str) {
        let mut command = self.command("sh");
        command.args(["-ec", "mkdir -p \"$(dirname \"$1\")\"; cat > \"$1\"", "sh", path]);
        let limit = Duration::from_secs(10);
        self.host.finish(command, text.as_bytes(), limit).unwrap().success().unwrap();
    }

    /// Starts a program in the background.
    pub fn start(&self, program: &str, arguments: &[&str]) -> BackgroundProcess {
        let mut command = self.command(program);
        command.args(arguments);
        self.host.start(command, program).unwrap()
    }

    pub fn read(&self, path: &str) -> String {
        self.shell(&format!("cat {path}"))
    }

    /// All files in the directories that setup may change, with their modes, owners and checksums.
    pub fn files(&self) -> String {
        self.shell(
            "cd /etc; find nftables* git iptables ufw firewalld systemd/system/docker* sysctl.d sysupgrade.conf \
             /usr/share/nftables.d -type l -printf '%p %l\n' -o \
             -type f -printf '%p %m %U %G ' -exec md5sum {} \\; 2>/dev/null | sort",
        )
    }

    /// The problems that `ftp-alg doctor` finds while `daemon` runs.
    pub fn problems(&self, daemon: &Daemon) -> Vec<Value> {
        let configuration = daemon.socket().with_file_name("ftp-alg.toml");
        self.problems_of(daemon, &["doctor", "--config", configuration.to_str().unwrap()])
    }

    /// The problems that a command finds while `daemon` runs.
    pub fn problems_of(&self, daemon: &Daemon, words: &[&str]) -> Vec<Value> {
        let mut command = self.command(executable().to_str().unwrap());
        command.args(words).args(["--json", "--socket"]).arg(daemon.socket());
        let done = self.host.finish(command, b"", Duration::from_secs(60)).unwrap();
        let report: Value = serde_json::from_str(&done.stdout_text())
            .unwrap_or_else(|error| panic!("{error}: {}", done.stderr_text()));
        report["problems"].as_array().unwrap().clone()
    }

    /// Runs `ftp-alg setup` while `daemon` runs.
    pub fn setup(&self, daemon: &Daemon, arguments: &[&str]) -> Outcome {
        let mut command = self.command(executable().to_str().unwrap());
        command.arg("setup").args(arguments).arg("--socket").arg(daemon.socket());
        command.arg("--config").arg(daemon.socket().with_file_name("ftp-alg.toml"));
        let done = self.host.finish(command, b"", Duration::from_secs(60)).unwrap();
        Outcome {
            code: done.status.code().unwrap(),
            text: done.stdout_text(),
            errors: done.stderr_text(),
        }
    }
}

/// The exit code and the output of a setup run.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub text: String,
    pub errors: String,
}

impl Outcome {
    /// Asserts that it succeeded and printed `what`.
    pub fn says(&self, what: &str) {
        assert!(self.code == 0 && self.text.contains(what), "{what}: {self:?}");
    }

    /// Asserts that it failed and reported `why`.
    pub fn fails(&self, why: &str) {
        assert!(self.code == 1 && self.errors.contains(why), "{why}: {self:?}");
    }
}

/// The checks for every firewall whose rules are loaded and saved in files. Without setup, the `stopped` mode is
/// dropped. With it, all transfers work, also after the firewall's own `reload`. After `--undo`, the initial state is
/// back. Returns the commands that loaded the change.
pub fn assert_apply_reload_and_undo(
    site: &Site,
    machine: &Machine,
    name: &str,
    reload: &str,
    families: &[Family],
    stopped: &[Mode],
) -> Vec<String> {
    let daemon = site.daemon(NFTABLES);
    // Each check waits for a timeout, so one stands for all.
    let stops = || site.stops(&daemon, families[0], stopped[0]);
    stops();
    let before = machine.files();

    let shown = machine.setup(&daemon, &[]);
    shown.says(&format!("{name} (recognised by "));
    shown.says("ftp-alg-setup");
    let json = machine.setup(&daemon, &["--json"]);
    let report: Value = serde_json::from_str(&json.text).unwrap();
    assert_eq!(report["result"], "shown", "{report}");
    assert_eq!(report["firewalls"][0]["name"], name, "{report}");
    machine.setup(&daemon, &["--check"]).fails("a change is pending, and nothing was changed");
    assert_eq!(machine.files(), before, "setup changed a file without --apply");

    machine.setup(&daemon, &["--apply"]).says("applied");
    site.carries(&daemon, &families[..1]);
    machine.shell(reload);
    site.carries(&daemon, families);
    let applied = machine.files();
    for arguments in [&["--apply"][..], &[], &["--check"]] {
        machine.setup(&daemon, arguments).says("nothing to do\n");
    }
    assert_eq!(machine.files(), applied);

    machine.setup(&daemon, &["--undo"]).says("undone");
    assert_eq!(machine.files(), before);
    stops();
    machine.setup(&daemon, &["--undo"]).says("nothing to do");
    let loads = report["firewalls"][0]["loads"].as_array().unwrap().iter();
    loads.map(|line| line.as_str().unwrap().to_owned()).collect()
}
