//! firewalld itself, on its own D-Bus.

use super::{machine::*, site::*};
use crate::common::*;

/// Configures firewalld with this back end and its own bus, without its directory in `/run`.
const INSTALL: &str = r#"
sed -i "s/^FirewallBackend=.*/FirewallBackend=$backend/" /etc/firewalld/firewalld.conf
sed -i "s|/run/firewalld|$home/temporary|" /usr/lib/python3/dist-packages/firewall/config/__init__.py
mv /usr/bin/firewall-cmd /usr/bin/firewall-cmd.py
cat > /usr/bin/firewall-cmd <<END
#!/bin/sh
DBUS_SYSTEM_BUS_ADDRESS=unix:path=$home/bus exec /usr/bin/firewall-cmd.py "\$@"
END
chmod 755 /usr/bin/firewall-cmd
"#;

/// A gateway that accepts outgoing control connections.
const GATEWAY: &str = "
permanent() { firewall-cmd --permanent \"$@\"; }
permanent --zone=internal --add-interface=lan
permanent --zone=external --add-interface=wan
permanent --new-policy=out
permanent --policy=out --add-ingress-zone=internal
permanent --policy=out --add-egress-zone=external
permanent --policy=out --add-port=21/tcp
firewall-cmd --reload
";

/// A running firewalld. Dropping it ends firewalld and its bus.
pub struct Firewalld {
    pub machine: Machine,
    _daemon: BackgroundProcess,
    _bus: BackgroundProcess,
}

pub fn firewalld(site: &Site, backend: &str, lines: &str) -> Firewalld {
    let host = site.guard();
    let machine = Machine::on(host);
    let home = host.directory().to_str().unwrap();
    machine.shell(&format!("home={home} backend={backend}\n{INSTALL}"));
    let bus_conf = host.write("bus.conf", BUS.replace("HOME", home).as_bytes()).unwrap();
    let option = format!("--config-file={}", bus_conf.display());
    let bus = machine.start("dbus-daemon", &["--nofork", &option]);
    wait_for("the bus", || host.directory().join("bus").exists());
    let address = format!("DBUS_SYSTEM_BUS_ADDRESS=unix:path={home}/bus");
    let arguments =
        [&*address, "/usr/sbin/firewalld", "--nofork", "--nopid", "--log-target", "console"];
    let mut daemon = machine.start("env", &arguments);
    wait_for("firewalld", || {
        assert!(daemon.exit_status().is_none(), "{}", daemon.log());
        machine.try_shell("firewall-cmd --state").status.success()
    });
    machine.shell(lines);
    Firewalld { machine, _daemon: daemon, _bus: bus }
}

/// Over nftables no rule would help, and over iptables only a direct one, so setup names the other back end.
#[test]
fn setup_recommends_the_conntrack_back_end_for_firewalld() {
    for (backend, or) in [("nftables", ""), ("iptables", "or run rules/recipes/firewalld.sh")] {
        let site = Site::new(Place::Masquerade);
        let firewalld = firewalld(&site, backend, GATEWAY);
        let before = firewalld.machine.files();
        {
            let daemon = site.daemon(NFTABLES);
            let outcome = firewalld.machine.setup(&daemon, &[]);
            outcome.says("backend = \"conntrack\"");
            outcome.says(or);
            firewalld.machine.setup(&daemon, &["--apply"]).fails("rules to add by hand");
        }
        let daemon = site.daemon(CONNTRACK);
        firewalld.machine.setup(&daemon, &["--apply"]).says("nothing to do");
        site.carries(&daemon, &FAMILIES);
        assert_eq!(firewalld.machine.files(), before);
    }
}
