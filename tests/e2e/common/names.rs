//! A name server on the gateway, and a program under test that asks it.

use super::*;

pub const NAME: &str = "ftp.lab.test";

/// A name server on the gateway, and a way to start a daemon there that asks it.
pub struct NameServer {
    process: BackgroundProcess,
    names: PathBuf,
    pub executable: PathBuf,
}

impl NameServer {
    /// Starts it, and lets `program` ask it.
    pub fn start(host: &Host, program: &Path, names: &Value) -> Self {
        let file = host.write("names.json", names.to_string().as_bytes()).unwrap();
        let script = host.write("dns.py", include_bytes!("dns.py")).unwrap();
        let mut command = host.command("/usr/bin/python3");
        command.arg(script).arg(&file);
        let process = host.start(command, "dns").unwrap();
        wait_for("the name server", || process.log().contains("ready"));
        let executable = with_resolver(host, program);
        Self { process, names: file, executable }
    }

    /// From now on it says this.
    pub fn set(&self, names: &Value) {
        let part = self.names.with_extension("part");
        fs::write(&part, names.to_string()).unwrap();
        fs::rename(&part, &self.names).unwrap();
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    pub fn questions(&self) -> usize {
        self.log().lines().filter(|line| line.starts_with(NAME)).count()
    }
}

/// `program`, with a resolver configuration of its own.
fn with_resolver(host: &Host, program: &Path) -> PathBuf {
    let conf = host.write("resolv.conf", b"nameserver 127.0.0.1\nsearch other.test\n").unwrap();
    let hosts = host.write("hosts", b"127.0.0.1 localhost\n203.0.113.9 hosts.lab.test\n").unwrap();
    let lines = format!(
        "exec unshare --mount sh -ec 'mount --bind {} /etc/resolv.conf\n\
         mount --bind {} /etc/hosts\nexec {} \"$@\"' sh \"$@\"",
        conf.display(),
        hosts.display(),
        program.display()
    );
    shell_program(host, "ftp-alg-here", &lines)
}

/// A program that is these lines of shell.
pub fn shell_program(host: &Host, name: &str, lines: &str) -> PathBuf {
    let program = host.write(name, format!("#!/bin/sh\n{lines}\n").as_bytes()).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// What `status --json` says of the name.
pub fn row(daemon: &Daemon, family: &str) -> Value {
    let status = daemon.status().unwrap();
    let mut rows = status["names"].as_array().unwrap().iter();
    rows.find(|row| row["family"] == family).cloned().unwrap_or(Value::Null)
}

pub fn wait_for_address(daemon: &Daemon, address: &str) {
    wait_for(address, || row(daemon, "ipv4")["address"] == address);
}

/// Writes `configuration` as an editor does, into a file that takes the place of the old one, and
/// has the daemon read it.
pub fn reload(daemon: &Daemon, configuration: &str) {
    let file = daemon.socket().with_file_name("ftp-alg.toml");
    let part = file.with_extension("part");
    fs::write(&part, configuration).unwrap();
    fs::rename(&part, &file).unwrap();
    signal(daemon, "HUP");
}
