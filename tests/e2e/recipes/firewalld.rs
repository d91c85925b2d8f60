//! firewalld itself, on its own D-Bus. Its configuration is in the lab's directory, its rules in a host of the lab.

use super::{native::*, site::*};
use crate::common::*;

/// Starts firewalld without its directory in `/run`.
const START: &str = r#"import runpy, sys
import firewall.config
firewall.config.FIREWALLD_TEMPDIR = "HOME/temporary"
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"#;

/// Installs firewalld's files below `home`, and the commands `python` (with firewalld's modules) and `firewall-cmd`.
const INSTALL: &str = r#"
root=$1 home=$2 backend=$3
mkdir -p "$home/bin"
cp -r "$root/etc/firewalld" "$home/etc"
sed -i "s/^FirewallBackend=.*/FirewallBackend=$backend/" "$home/etc/firewalld.conf"
libraries=$(echo "$root"/usr/lib/*-linux-gnu)
cat > "$home/bin/python" <<END
#!/bin/sh
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=$home/bus
export PYTHONPATH=$root/usr/lib/python3/dist-packages
export LD_LIBRARY_PATH=$libraries GI_TYPELIB_PATH=$libraries/girepository-1.0
exec /usr/bin/python3 "\$@"
END
cat > "$home/bin/firewall-cmd" <<END
#!/bin/sh
exec $home/bin/python $root/usr/bin/firewall-cmd "\$@"
END
chmod 755 "$home"/bin/*
"#;

/// A running firewalld. Dropping it ends firewalld and its bus.
struct Firewalld {
    home: PathBuf,
    _daemon: BackgroundProcess,
    _bus: BackgroundProcess,
}

impl Firewalld {
    fn start(host: &Host, backend: &str) -> Self {
        let program = unpacked("usr/sbin/firewalld");
        let root = program.ancestors().nth(3).unwrap().to_str().unwrap();
        let home = host.directory().join("firewalld");
        fs::create_dir_all(&home).unwrap();
        let at = home.to_str().unwrap();
        run_script(host, INSTALL, &[root, at, backend], "/usr/sbin");
        let configuration = home.join("bus.conf");
        fs::write(&configuration, BUS.replace("HOME", at)).unwrap();
        let start = home.join("start.py");
        fs::write(&start, START.replace("HOME", at)).unwrap();

        let mut command = host.command("dbus-daemon");
        command.arg("--nofork").arg(format!("--config-file={}", configuration.display()));
        let bus = host.start(command, "bus").unwrap();
        wait_for("the bus", || home.join("bus").exists());
        let mut command = host.command(home.join("bin/python"));
        command.arg(start).arg(&program).args(["--nofork", "--nopid", "--log-target", "console"]);
        command.arg("--system-config").arg(home.join("etc"));
        command.args(["--default-config", &format!("{root}/usr/lib/firewalld")]);
        let mut daemon = host.start(command, "firewalld").unwrap();
        wait_for("firewalld", || {
            assert!(daemon.exit_status().is_none(), "{}", daemon.log());
            let mut command = host.command(home.join("bin/firewall-cmd"));
            command.arg("--state");
            let limit = Duration::from_secs(10);
            host.finish(command, b"", limit).unwrap().status.success()
        });
        Self { home, _daemon: daemon, _bus: bus }
    }

    /// Runs shell `lines` with firewalld's commands in the path.
    fn run(&self, host: &Host, lines: &str, arguments: &[&str]) {
        run_script(host, lines, arguments, self.home.join("bin").to_str().unwrap());
    }
}

/// The commands of the how-to page: zones of a gateway, and which connections they may open.
fn gateway(policy: &str) -> String {
    let page = include_str!("../../../docs/howto/firewalld.md");
    let mut blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let commands = blocks.find(|block| block.contains("--new-policy=out")).unwrap();
    let names =
        [("lan0", "lan"), ("wan0", "wan"), ("10.0.0.5", "192.168.150.90"), (LENIENT, policy)];
    names.iter().fold(format!("set -e\n{commands}"), |text, (documented, here)| {
        assert!(text.contains(documented), "{documented} is not on the page");
        text.replace(documented, here)
    })
}

/// A policy that accepts all connections from the LAN, which is the usual choice.
const LENIENT: &str = "--set-target=ACCEPT";

/// A policy that accepts only control connections.
const STRICT: &str = "--add-port=21/tcp";

/// firewalld with `backend` at `place`. On a host, the default zone has its interface.
fn installed(place: Place, backend: &str, policy: &str) -> (Site, Firewalld) {
    let site = Site::new(place);
    let firewalld = Firewalld::start(site.guard(), backend);
    let lines = match place {
        Place::Masquerade | Place::Published => gateway(policy),
        Place::Server | Place::Client => "firewall-cmd --add-interface=eth0".to_owned(),
    };
    firewalld.run(site.guard(), &lines, &[]);
    (site, firewalld)
}

fn recipe() -> Recipe {
    Recipe::read("firewalld.sh", &[])
}

/// Over iptables, a direct rule accepts the data connections. firewalld itself accepts connections that it forwards to
/// another port or host.
#[test]
fn a_direct_rule_admits_data_connections_through_firewalld_over_iptables() {
    let all = [
        (Place::Published, Mode::Active),
        (Place::Masquerade, Mode::Passive),
        (Place::Server, Mode::Passive),
        (Place::Client, Mode::Active),
    ];
    for &(place, stopped) in telling(&all[..1], &all) {
        let (site, firewalld) = installed(place, "iptables", STRICT);
        let argument = match place {
            Place::Masquerade | Place::Published => "gateway",
            Place::Server | Place::Client => "host",
        };
        let apply = |host: &Host, text: &str| firewalld.run(host, text, &[argument]);
        assert_rule_suffices(&site, &recipe(), &FAMILIES, &[stopped], apply);
    }
}

/// Over nftables, firewalld accepts connections with destination NAT, and a gateway accepts connections from its LAN.
/// Over IPv4 that includes all FTP data connections.
#[test]
fn firewalld_over_nftables_needs_no_rule_with_nat() {
    let all = [Place::Masquerade, Place::Published];
    for &place in telling(&all[..1], &all) {
        let (site, _firewalld) = installed(place, "nftables", LENIENT);
        site.works(NFTABLES, &[V4]);
    }
}

/// firewalld drops connections without NAT, and a direct rule does not change that: iptables and nftables must both
/// accept the packet.
#[test]
fn firewalld_over_nftables_drops_despite_a_direct_rule_without_nat() {
    let (site, firewalld) = installed(Place::Server, "nftables", "");
    firewalld.run(site.guard(), &recipe().text, &["host"]);
    let daemon = site.daemon(NFTABLES);
    for family in FAMILIES {
        site.stops(&daemon, family, Mode::Passive);
    }
}

#[test]
fn firewalld_over_nftables_needs_no_rule_with_the_conntrack_back_end() {
    for &place in telling(&[Place::Server], &PLACES) {
        let (site, firewalld) = installed(place, "nftables", STRICT);
        firewalld.run(site.guard(), "firewall-cmd --add-port=21/tcp", &[]);
        site.works(CONNTRACK, &FAMILIES);
    }
}

/// A reload flushes firewalld's own nftables table, or all chains of iptables. Our table is in neither.
#[test]
fn a_firewalld_reload_leaves_our_table_alone() {
    // Over iptables a reload takes half a minute.
    for &backend in telling(&["nftables"], &["nftables", "iptables"]) {
        let (site, firewalld) = installed(Place::Masquerade, backend, LENIENT);
        let program = executable_without_owner(&site.lab);
        let daemon = Daemon::start(&program, site.guard(), NFTABLES).unwrap();
        for how in ["--reload", "--complete-reload"] {
            firewalld.run(site.guard(), &format!("firewall-cmd {how}"), &[]);
            thread::sleep(Duration::from_millis(500));
            let log = daemon.log();
            assert!(!log.contains("by another program"), "{backend} {how}: {log}");
        }
        if backend == "nftables" {
            site.carries(&daemon, &[V4]);
        }
    }
}
