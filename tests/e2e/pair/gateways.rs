//! Two gateways between the same networks, with a link between them, and what happens to one of them.
//!
//! ```text
//!                                   +-- .11 [ gateway  ] .11 --+
//!   client, published (client2) ----+         sync0            +---- server, outsider
//!   192.168.150.80, .81             +-- .12 [ gateway2 ] .12 --+     198.51.100.10, .66
//!                 192.168.150.1  <- virtual addresses ->  198.51.100.1
//! ```

use std::{net::Ipv4Addr, os::unix::fs::PermissionsExt as _};

use ftp_alg_lab::{DualAddress, SecondRouter, UnpackedProgram};

use super::configuration;
use crate::common::*;

/// Both gateways, in the order of their numbers. They end before their lab.
pub struct Pair {
    nodes: [Node; 2],
    pub lab: Lab,
}

/// One of the gateways, with its programs.
pub struct Node {
    number: u8,
    pub host: Host,
    backend: String,
    /// What runs `ftp-alg`.
    program: PathBuf,
    pub daemon: Daemon,
    keepalived: Option<BackgroundProcess>,
    conntrackd: BackgroundProcess,
    store: BackgroundProcess,
}

/// The gateways' own addresses.
fn own_addresses(number: u8) -> SecondRouter {
    let last = 10 + number;
    let v6 = |network| format!("{network}::{last:x}").parse().unwrap();
    SecondRouter {
        inside: DualAddress { v4: Ipv4Addr::new(192, 168, 150, last), v6: v6("fd00:150") },
        outside: DualAddress { v4: Ipv4Addr::new(198, 51, 100, last), v6: v6("2001:db8:100") },
    }
}

impl Pair {
    /// Gateways of which the first is active and the second waits, with all that it needs.
    pub fn new(backend: &str) -> Self {
        let mut pair = Self::without_orders(backend);
        pair.node(0).start_keepalived();
        pair.wait_for_role(0, "active");
        pair.node(1).start_keepalived();
        pair.wait_until_replicated();
        pair
    }

    /// Gateways without keepalived.
    pub fn without_orders(backend: &str) -> Self {
        let mut lab = Lab::build(LabSpec {
            firewall: FirewallKind::None,
            nat66: false,
            ..LabSpec::new(Topology::Masquerade)
        })
        .unwrap();
        let second = lab.add_second_gateway(own_addresses(2)).unwrap();
        let first = lab.gateway.clone();
        // What the lab has on it moves between both.
        let SecondRouter { inside, outside } = own_addresses(1);
        let mut lines =
            format!("ip link add sync0 type veth peer name sync0 netns {}", second.namespace());
        for (name, DualAddress { v4, v6 }) in [("lan", inside), ("wan", outside)] {
            lines += &format!(
                "\nip address flush dev {name} scope global
                 ip address add {v4}/24 dev {name}
                 ip address add {v6}/64 dev {name} nodad"
            );
        }
        first.shell(&lines).unwrap();
        configuration::write_files(&first);
        let nodes = [(1, first), (2, second)].map(|(number, host)| {
            let link = format!(
                "ip address add 10.99.0.{number}/24 dev sync0
                 ip link set sync0 up
                 echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose"
            );
            host.shell(&link).unwrap();
            host.nft(&configuration::firewall(backend)).unwrap();
            host.write(&format!("{number}.notify.log"), b"").unwrap();
            Node::start(number, host, backend)
        });
        let pair = Self { nodes, lab };
        // keepalived sends from the link-local addresses.
        for node in &pair.nodes {
            let tentative =
                || node.host.run("ip", &["-6", "address", "show", "tentative"]).unwrap();
            wait_for("link-local addresses", || tentative().stdout.is_empty());
        }
        pair
    }

    /// The gateway at this place.
    pub fn node(&mut self, at: usize) -> &mut Node {
        &mut self.nodes[at]
    }

    pub fn nodes(&self) -> &[Node; 2] {
        &self.nodes
    }

    /// Waits until the gateway at this place has this role.
    #[track_caller]
    pub fn wait_for_role(&self, at: usize, role: &str) {
        wait_for(role, || self.nodes[at].pair()["role"] == role);
    }

    /// The place of the active gateway, of which there is one.
    pub fn active(&self) -> usize {
        let mut active = 0;
        wait_for("one active gateway", || {
            let roles = self.nodes.each_ref().map(|node| node.pair()["role"] == "active");
            active = usize::from(roles[1]);
            roles[0] != roles[1]
        });
        active
    }

    /// Waits until the waiting gateway has everything that the active one has: records, and connections of the kernel.
    #[track_caller]
    pub fn wait_until_replicated(&self) {
        let at = self.active();
        let [active, standby] = [&self.nodes[at], &self.nodes[1 - at]];
        wait_for("a replica", || {
            let pair = active.pair();
            pair["replica"] == true && pair["shards_behind"] == 0
        });
        let written = active.replication("master_repl_offset");
        wait_for("all records", || standby.replication("slave_repl_offset") >= written);
        let internal = active.cached_connections("-i");
        wait_for("all connections", || {
            let external = standby.cached_connections("-e");
            internal.iter().all(|connection| external.contains(connection))
        });
    }

    /// The loss of power of a gateway: first its links, then everything that runs.
    pub fn crash(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let role = node.host.role();
        let cut = format!("ip -n {} link set {role}", self.lab.switches());
        node.host.shell(&format!("{cut}-lan down\n{cut}-wan down")).unwrap();
        node.set_link("down");
        node.keepalived.take().unwrap().kill();
        node.daemon.kill();
        node.conntrackd.kill();
        node.store.kill();
    }
}

impl Node {
    fn start(number: u8, host: Host, backend: &str) -> Self {
        let home = host.directory().join(number.to_string());
        fs::create_dir_all(&home).unwrap();
        let socket = home.join("redis.sock");
        let file = |name| configuration::in_home(&host, number, name, &home);
        let mut command = program("redis-server").command(&host);
        command.arg(file("redis-ftp-alg.conf"));
        let store = host.start(command, "store").unwrap();
        wait_for("the store", || socket.exists());
        let mut command = program("conntrackd").command(&host);
        command.arg("-C").arg(file("conntrackd/conntrackd.conf"));
        let conntrackd = host.start(command, "conntrackd").unwrap();
        wait_for("conntrackd", || home.join("conntrackd.ctl").exists());
        let mut program = executable();
        if number == 2 {
            // Its machine was started 58 days earlier.
            let late = format!("unshare --time --monotonic 5000000 {} \"$@\"", program.display());
            program = write_program(&host, "late-ftp-alg", &late);
        }
        let text = configuration::daemon(number, &socket, backend);
        let daemon = Daemon::start(&program, &host, &text).unwrap();
        let backend = backend.to_owned();
        Self { number, host, backend, program, daemon, keepalived: None, conntrackd, store }
    }

    fn home(&self) -> PathBuf {
        self.host.directory().join(self.number.to_string())
    }

    /// Starts keepalived. It calls the script of the package, which finds `ftp-alg` and `conntrackd` with the options of this
    /// gateway.
    pub fn start_keepalived(&mut self) {
        let home = self.home();
        let log = self.notify_log();
        let (shown, log) = (home.display(), log.display());
        let [alg, socket] = [executable(), self.daemon.socket()];
        let (alg, socket) = (alg.display(), socket.display());
        let write =
            |name, line: &str| write_program(&self.host, &format!("{}/{name}", self.number), line);
        write("ftp-alg", &format!("{alg} \"$@\" --socket {socket} >>{log} 2>&1"));
        let conntrackd = program("conntrackd").words();
        let conntrackd = format!("{conntrackd} -C {shown}/conntrackd.conf \"$@\" >>{log} 2>&1");
        write("conntrackd", &conntrackd);
        let notify = home.join("notify");
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/pair/notify"), &notify)
            .unwrap();
        fs::set_permissions(&notify, fs::Permissions::from_mode(0o755)).unwrap();
        let name = "keepalived/keepalived.conf";
        let file = configuration::in_home(&self.host, self.number, name, &home);
        let mut command = program("keepalived").command(&self.host);
        command.args(["--dont-fork", "--log-console", "--vrrp", "--use-file"]).arg(file);
        for (option, name) in [("--pid", "keepalived.pid"), ("--vrrp_pid", "vrrp.pid")] {
            command.arg(option).arg(home.join(name));
        }
        command.env("PATH", format!("{shown}:/usr/sbin:/usr/bin:/sbin:/bin"));
        let before = self.deactivations();
        self.keepalived = Some(self.host.start(command, "keepalived").unwrap());
        wait_for("the order of a waiting keepalived", || self.deactivations() > before);
    }

    /// How often keepalived has ordered that this gateway waits. It does not wait for its script.
    fn deactivations(&self) -> usize {
        self.notified().matches("standby").count()
    }

    /// Stops keepalived, which gives the addresses to the other gateway.
    pub fn stop_keepalived(&mut self) {
        let before = self.deactivations();
        let mut keepalived = self.keepalived.take().unwrap();
        assert!(keepalived.terminate(Duration::from_secs(20)).unwrap().success());
        wait_for("the last order of keepalived", || self.deactivations() > before);
    }

    /// Starts another daemon in place of the one that has ended, with more lines at the beginning of the configuration.
    pub fn start_daemon(&mut self, more: &str) {
        let text = configuration::daemon(self.number, &self.socket(), &self.backend);
        let text = format!("{more}{text}");
        self.daemon = Daemon::start(&self.program, &self.host, &text).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.home().join("redis.sock")
    }

    fn notify_log(&self) -> PathBuf {
        self.host.directory().join(format!("{}.notify.log", self.number))
    }

    /// Sets the link between the gateways `up` or `down`.
    pub fn set_link(&self, state: &str) {
        self.host.run("ip", &["link", "set", "sync0", state]).unwrap();
    }

    /// Ends the store, as a crash of it does.
    pub fn kill_store(&mut self) {
        self.store.kill();
    }

    /// Sends the store a signal, by its name in kill(1).
    pub fn signal_store(&self, name: &str) {
        self.host.run("kill", &[&format!("-{name}"), &self.store.id().to_string()]).unwrap();
    }

    /// How many packets wait in the kernel's queues.
    pub fn waiting_packets(&self) -> u64 {
        let queues = self.host.run("cat", &["/proc/net/netfilter/nfnetlink_queue"]).unwrap();
        let text = queues.stdout_text();
        text.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum()
    }

    /// What the programs said that the notify script has run.
    pub fn notified(&self) -> String {
        fs::read_to_string(self.notify_log()).unwrap()
    }

    /// `pair` of `status`.
    pub fn pair(&self) -> Value {
        self.daemon.status().unwrap()["pair"].clone()
    }

    /// Whether it has the problem `store`.
    pub fn has_problem(&self) -> bool {
        let problems = self.daemon.status().unwrap()["problems"].clone();
        problems.as_array().unwrap().iter().any(|problem| problem["name"] == "store")
    }

    /// `ftp-alg activate` or `deactivate`, which succeeds. Returns what it said.
    pub fn order(&self, what: &str) -> String {
        self.daemon.ask(&[what]).unwrap().success().unwrap().stdout_text()
    }

    /// How many sessions the store has of this epoch.
    pub fn stored_sessions(&self, epoch: u64) -> u64 {
        let keys = self.store(&["KEYS", &format!("ftp-alg:*:{epoch}:s:*")]);
        let length = |key: &str| self.store(&["HLEN", key]).parse::<u64>().unwrap();
        keys.lines().map(length).sum()
    }

    /// A command that asks the store.
    pub fn redis_cli(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = program("redis-cli").command(&self.host);
        command.arg("-s").arg(self.socket()).args(arguments);
        command
    }

    /// What the store answers.
    pub fn store(&self, arguments: &[&str]) -> String {
        let command = self.redis_cli(arguments);
        let done = self.host.finish(command, b"", Duration::from_secs(20)).unwrap();
        done.success().unwrap().stdout_text().trim().to_owned()
    }

    /// A number that the store says of its replication.
    fn replication(&self, field: &str) -> Option<u64> {
        let text = self.store(&["INFO", "replication"]);
        text.lines()
            .find_map(|line| line.trim().strip_prefix(field)?.strip_prefix(':')?.parse().ok())
    }

    /// The established connections in a cache of conntrackd: `-i` has its own, `-e` the other gateway's.
    fn cached_connections(&self, cache: &str) -> Vec<String> {
        let mut command = program("conntrackd").command(&self.host);
        command.arg("-C").arg(self.home().join("conntrackd.conf")).args([cache, "ct"]);
        let done = self.host.finish(command, b"", Duration::from_secs(20)).unwrap();
        let text = done.success().unwrap().stdout_text();
        let established = text.lines().filter(|line| line.contains("ESTABLISHED"));
        let ends = |line: &str| {
            let words = line.split_whitespace().filter(|word| word.contains('='));
            words.take(4).collect::<Vec<_>>().join(" ")
        };
        established.map(ends).collect()
    }
}

/// A script that runs a line.
fn write_program(host: &Host, name: &str, line: &str) -> PathBuf {
    let path = host.write(name, format!("#!/bin/sh\nexec {line}\n").as_bytes()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A program, and the package that has it.
fn program(name: &str) -> UnpackedProgram {
    let package = if name == "redis-cli" { "redis-tools" } else { name };
    UnpackedProgram::find(name, package).unwrap()
}

impl Drop for Pair {
    fn drop(&mut self) {
        if thread::panicking() {
            // Shown by the test harness with the failure.
            for Node { number, daemon, keepalived, .. } in &self.nodes {
                let keepalived = keepalived.as_ref().map(BackgroundProcess::log);
                println!("gateway {number}: {}\n{keepalived:?}", daemon.log_of_all());
            }
        }
    }
}
