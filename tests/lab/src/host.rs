//! A host of the lab: a network namespace with its addresses, in which programs run.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    net::IpAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    BackgroundProcess, DualAddress, Family, LabError, ProgramOutput, Result, Script,
    process::{self, find_program},
    script,
};

/// The time limit for a helper program.
const LIMIT: Duration = Duration::from_secs(60);

/// A network namespace that acts as a host.
#[derive(Clone, Debug)]
pub struct Host {
    pub(super) role: &'static str,
    pub(super) namespace: String,
    pub(super) ends: DualAddress,
    pub(super) directory: PathBuf,
}

impl Host {
    /// The role in the lab, as in `client`.
    pub fn role(&self) -> &'static str {
        self.role
    }

    /// The name of the namespace, for `ip netns exec`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The address; of a gateway the outer one.
    pub fn address(&self, family: Family) -> IpAddr {
        self.ends.address(family)
    }

    /// The directory of the lab, which is removed with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command that runs in this host's namespace.
    ///
    /// It uses `nsenter` and not `ip netns exec`, because `nsenter` executes the program in its own process, so signals
    /// reach the program, and because it does not change mounts.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        let mut command = Command::new(process::system_program("nsenter"));
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg("--");
        match program.to_str().and_then(find_program) {
            Some(found) => command.arg(found),
            None => command.arg(program),
        };
        command.current_dir(&self.directory).env("LC_ALL", "C").env("HOME", &self.directory);
        command
    }

    /// Runs a program to its end, within a minute. A failure of the program is an error.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<ProgramOutput> {
        self.try_run(program, arguments)?.success()
    }

    /// As [`Host::run`]. A failure of the program is no error.
    pub fn try_run(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Result<ProgramOutput> {
        let mut command = self.command(program);
        command.args(arguments);
        self.finish(command, b"", LIMIT)
    }

    /// Runs a prepared command to its end, at most for `limit`. A failure of the command is no error.
    pub fn finish(&self, command: Command, input: &[u8], limit: Duration) -> Result<ProgramOutput> {
        process::run(command, input, limit)
    }

    /// Runs lines of POSIX shell. A failure is an error.
    pub fn shell(&self, lines: &str) -> Result<ProgramOutput> {
        // `su` sets a PATH without the system directories.
        self.run("sh", &["-ec", &format!("PATH=$PATH:/usr/sbin:/sbin\n{lines}")])
    }

    /// Runs a Python script of the lab to its end, at most for `limit`.
    pub fn script(
        &self,
        script: Script,
        arguments: &[&str],
        limit: Duration,
    ) -> Result<ProgramOutput> {
        self.finish(self.script_command(script, arguments)?, b"", limit)
    }

    /// A command that runs a Python script of the lab.
    pub fn script_command(&self, script: Script, arguments: &[&str]) -> Result<Command> {
        let path = script.install(&self.directory)?;
        let mut command = self.command(script::python());
        // Isolated: without the user's packages, and what looks for them.
        if script != Script::Pyftpdlib {
            command.args(["-I", "-S"]);
        }
        command.arg(path).args(arguments);
        Ok(command)
    }

    /// Starts a prepared command in the background. Its output goes to a log file named after `name`.
    pub fn start(&self, command: Command, name: &str) -> Result<BackgroundProcess> {
        BackgroundProcess::start(command, self.directory.join(format!("{}-{name}.log", self.role)))
    }

    /// Loads nftables rules.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let mut command = self.command("nft");
        command.args(["-f", "-"]);
        self.finish(command, rules.as_bytes(), LIMIT)?.success().map(drop)
    }

    /// The ruleset as text for comparison.
    ///
    /// It has no counters, no timers, no heartbeat of the daemon, and no name of a table's owner. `nft` does not always
    /// find this name.
    pub fn ruleset(&self) -> Result<String> {
        let listed = self.run("nft", &["--stateless", "list", "ruleset"])?.stdout_text();
        let is_timer = |line: &&str| line.trim_start().starts_with("elements = { tcp timeout ");
        let lines = listed.lines().filter(|line| !is_timer(line));
        let without_owner = lines.map(|line| line.split(" # progname ").next().unwrap_or(line));
        Ok(without_owner.map(|line| format!("{line}\n")).collect())
    }

    /// Whether something listens on `port`. Callers repeat it, so it starts no program.
    pub fn listens(&self, port: u16) -> Result<bool> {
        self.inside(|| {
            let open = |name| File::open(format!("/proc/thread-self/net/{name}"));
            // In search of what fills a longer read, the kernel examines the connections of all namespaces.
            let short = |file| BufReader::with_capacity(150, file);
            ["tcp", "tcp6"].into_iter().flat_map(open).any(|file| has_listener(short(file), port))
        })
    }

    /// Runs `work` on a thread of its own that has moved to this host's namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = PathBuf::from("/run/netns").join(&self.namespace);
        let work = || {
            let namespace = File::open(&path)?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        match thread::scope(|scope| scope.spawn(work).join()) {
            Ok(done) => done.map_err(LabError::file(path)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Waits until something listens on `port`.
    pub fn wait_for_port(&self, port: u16, limit: Duration) -> Result<()> {
        let what = format!("waiting for port {port} on the {}", self.role);
        process::wait_for(&what, limit, || Ok((!self.listens(port)?).then(String::new)))
    }

    /// The number of packets that conntrack has counted as invalid, on all processors.
    pub fn invalid_packets(&self) -> Result<u64> {
        let counters = self.run("conntrack", &["-S"])?.stdout_text();
        Ok(counters
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("invalid=")?.parse::<u64>().ok())
            .sum())
    }

    /// The entries of conntrack, one a line.
    pub fn connections(&self) -> Result<String> {
        let v4 = self.run("conntrack", &["-L"])?.stdout_text();
        let v6 = self.run("conntrack", &["-L", "-f", "ipv6"])?.stdout_text();
        Ok(v4 + &v6)
    }

    /// The TCP ports of `target` that answer a SYN of this host. `ports` is a range as in `1-65535`.
    pub fn scan(&self, target: IpAddr, ports: &str) -> Result<Vec<u16>> {
        let mut command = self.command("nmap");
        command.args(["-n", "-Pn", "-sS", "--open", "-oG", "-", "-T5", "-p", ports]);
        // Dropped probes get no answer, and nmap would slow down. A minimum rate prevents this.
        command.args(["--max-retries", "1", "--min-rate", "15000"]);
        if target.is_ipv6() {
            command.arg("-6");
        }
        command.arg(target.to_string());
        let report = self.finish(command, b"", Duration::from_secs(90))?.success()?.stdout_text();
        Ok(open_ports(&report))
    }

    /// Writes a file with `contents` to the lab's directory, and returns its path.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, contents).map_err(LabError::file(&path))?;
        Ok(path)
    }
}

/// Whether a line of `/proc/net/tcp` or `tcp6` is a listening socket on `port`: `sl local_address rem_address st ...`.
/// Those come first.
fn has_listener(sockets: impl BufRead, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let local = format!(":{port:04X}");
    let listening = |line: io::Result<String>| {
        let line = line.ok()?;
        let mut words = line.split_whitespace().skip(1);
        let (address, state) = (words.next()?, words.nth(1)?);
        (state == LISTEN).then(|| address.ends_with(&local))
    };
    sockets.lines().skip(1).map_while(listening).any(|is_it| is_it)
}

/// The open ports in the output of `nmap -oG`: `... Ports: 21/open/tcp//ftp///, 22/open/...`.
fn open_ports(report: &str) -> Vec<u16> {
    report
        .lines()
        .filter_map(|line| line.split_once("Ports: "))
        .flat_map(|(_, ports)| ports.split(','))
        .filter(|port| port.contains("/open/"))
        .filter_map(|port| port.trim().split('/').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_read_from_proc() {
        let sockets = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
            0: 00000000:0015 00000000:0000 0A 00000000:00000000 00:00000000\n   \
            1: 0100007F:0FA0 0100007F:0015 01 00000000:00000000 00:00000000\n";
        assert!(has_listener(sockets.as_bytes(), 21));
        assert!(!has_listener(sockets.as_bytes(), 4000), "it is connected");
        assert!(!has_listener(sockets.as_bytes(), 5));
    }

    #[test]
    fn open_ports_are_read_from_nmap() {
        let report = "# Nmap 7.93\nHost: 198.51.100.1 ()\tStatus: Up\n\
            Host: 198.51.100.1 ()\tPorts: 21/open/tcp//ftp///, 4000/open/tcp/////\tIgnored\n";
        assert_eq!(open_ports(report), [21, 4000]);
        assert!(open_ports("Host: 198.51.100.1 ()\tStatus: Up\n").is_empty());
    }
}
