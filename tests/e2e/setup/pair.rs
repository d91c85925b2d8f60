//! `setup --pair`: two machines with nothing but its files and the packages' are a pair, and the second takes over from the
//! first.

use ftp_alg_lab::with_programs;

use crate::common::*;

const OPTIONS: [&str; 9] = [
    "--pair",
    "--link=sync0",
    "--gw-1=10.99.0.1",
    "--gw-2=10.99.0.2",
    "--inside=lan0=10.0.0.1/24,lan0=fd00:150::1/64",
    "--outside",
    "wan0=198.51.100.1/24",
    "--output",
    "pair",
];

/// A machine, with the process in whose mounts `/etc` has the files of `setup`, and `/run` is empty.
struct Machine<'a> {
    host: &'a Host,
    process: BackgroundProcess,
}

impl<'a> Machine<'a> {
    /// Starts all but keepalived.
    fn start(host: &'a Host, number: u8) -> Self {
        let files = host.directory().join(format!("pair/gw-{number}"));
        let notify = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/pair/notify");
        let (own, files, notify) = (number + 1, files.display(), notify.display());
        let program = executable();
        let script = format!(
            "install -D -m 755 {notify} {files}/usr/lib/ftp-alg/notify
            install -D {} {files}/usr/sbin/ftp-alg
            for link in sync0 lan0 wan0; do ip link set $link up; done
            ip address add 10.99.0.{number}/24 dev sync0
            ip address add 10.0.0.{own}/24 dev lan0
            ip address add 198.51.100.{own}/24 dev wan0
            for tree in etc usr; do
                mount -t overlay -o lowerdir={files}/$tree:/$tree overlay /$tree
            done
            mount -t tmpfs run /run; mkdir -p /run/lock /run/redis-ftp-alg
            sysctl -qp /etc/sysctl.d/ftp-alg-pair.conf
            nft -cf /etc/nftables.conf; nft -f /etc/nftables.conf
            ftp-alg check
            keepalived --config-test
            conntrackd -C /etc/conntrackd/conntrackd.conf &
            ftp-alg run --state-dir /run/state &
            exec redis-server /etc/redis-ftp-alg.conf",
            program.display(),
        );
        let mut command = host.command("unshare");
        command.args(["--mount", "sh", "-ec", &script]);
        with_programs(&mut command);
        let process = host.start(command, &format!("gw-{number}")).unwrap();
        let machine = Self { host, process };
        wait_for("a daemon that answers", || machine.pair().is_object());
        machine
    }

    /// A command that runs on it, and sees its files.
    fn command(&self, line: &str) -> std::process::Command {
        let mut command = self.host.command("nsenter");
        command.args(["--target", &self.process.id().to_string(), "--mount", "sh", "-c"]);
        command.arg(format!("exec {line}"));
        with_programs(&mut command);
        command
    }

    fn json(&self, command: &str) -> Value {
        let command = self.command(&format!("ftp-alg {command} --json"));
        let output = self.host.finish(command, b"", Duration::from_secs(60)).unwrap();
        serde_json::from_str(&output.stdout_text()).unwrap_or_default()
    }

    fn pair(&self) -> Value {
        self.json("status")["pair"].clone()
    }

    /// What `doctor` says of the pair.
    fn pair_checks(&self) -> Vec<Value> {
        let checks = self.json("doctor")["checks"].as_array().unwrap().clone();
        let of_pair = checks.into_iter().filter(|check| check["section"] == "two gateways");
        of_pair.map(|check| check["name"].clone()).collect()
    }

    fn keepalived(&self) -> BackgroundProcess {
        let command = self.command("keepalived --dont-fork --log-console");
        self.host.start(command, "keepalived").unwrap()
    }

    fn wait_for_role(&self, role: &str) {
        wait_for(role, || self.pair()["role"] == role);
    }
}

#[test]
fn two_machines_with_the_files_of_setup_are_a_pair() {
    let lab = Lab::new(Topology::Routed).unwrap();
    let arguments = [&["setup"], &OPTIONS[..]].concat();
    lab.gateway.try_run(executable(), &arguments).unwrap().success().unwrap();
    for link in ["sync0", "lan0", "wan0"] {
        let other = lab.client2.namespace();
        let make = format!("ip link add {link} type veth peer name {link} netns {other}");
        lab.gateway.shell(&make).unwrap();
    }
    let one = Machine::start(&lab.gateway, 1);
    let other = Machine::start(&lab.client2, 2);
    let mut keepalived = one.keepalived();
    one.wait_for_role("active");
    let _other_keepalived = other.keepalived();
    wait_for("the other gateway", || {
        let [one, other] = [one.pair(), other.pair()];
        let seen = (&one["same_configuration"], &other["same_configuration"]);
        one["replica"] == true && seen == (&json!(true), &json!(true))
    });
    assert_eq!(other.pair()["role"], "standby");
    for machine in [&one, &other] {
        assert_eq!(machine.pair_checks(), ["pair"]);
    }
    let change = "nft add rule inet gateway source_nat masquerade
        sysctl -qw net.ipv4.conf.all.arp_ignore=0";
    one.host.shell(change).unwrap();
    assert_eq!(one.pair_checks(), ["masquerade", "arp_ignore"]);

    keepalived.terminate(Duration::from_secs(20)).unwrap();
    other.wait_for_role("active");
    one.wait_for_role("standby");
    other.host.shell("ip address show dev wan0 | grep -F 198.51.100.1/24").unwrap();
}
