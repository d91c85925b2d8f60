//! ufw itself. Its files are in the lab's directory, its rules in a host of the lab.

use std::os::unix::fs::PermissionsExt;

use super::{native::*, site::*};
use crate::common::*;

/// Installs ufw's files below `home`, as its package does, and a command `ufw` that uses them.
const INSTALL: &str = r#"
root=$1 home=$2
mkdir -p "$home/etc/default" "$home/lib" "$home/usr/share" "$home/bin"
cp -r "$root/etc/ufw" "$home/etc/"
# Newer packages have it in /usr/lib.
for lib in lib usr/lib; do
    if [ -d "$root/$lib/ufw" ]; then cp -r "$root/$lib/ufw" "$home/lib/"; fi
done
cp -r "$root/usr/share/ufw" "$home/usr/share/"
cp "$root/etc/default/ufw" "$home/etc/default/"
cp "$root"/usr/share/ufw/iptables/*.rules "$root/usr/share/ufw/ufw.conf" "$home/etc/ufw/"
cat > "$home/bin/ufw" <<END
#!/bin/sh
PYTHONPATH=$root/usr/lib/python3/dist-packages exec /usr/bin/python3 $root/usr/sbin/ufw \
    --rootdir=$home --datadir=$home "\$@"
END
chmod 755 "$home/bin/ufw"
"#;

/// Installs ufw on `host`, denies everything by default, runs `commands` and enables ufw. Returns its directory.
fn enabled(host: &Host, commands: &str) -> String {
    let program = unpacked("usr/sbin/ufw");
    let root = program.ancestors().nth(3).unwrap().to_str().unwrap();
    let home = host.directory().join("ufw");
    // ufw refuses to run if others may write to its directory.
    fs::create_dir_all(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).unwrap();
    let home = home.to_str().unwrap().to_owned();
    let bin = format!("{home}/bin");
    run_script(host, INSTALL, &[root, &home], &bin);
    let deny = "ufw default deny incoming; ufw default deny routed\n";
    run_script(host, &format!("set -e\n{deny}{commands}\nufw --force enable"), &[], &bin);
    home
}

fn recipe(home: &str) -> Recipe {
    let values = [
        ("lan=lan0", "lan=lan"),
        ("wan=wan0", "wan=wan"),
        ("10.0.0.5", "192.168.150.90"),
        ("fd00::5", "fd00:150::5a"),
        ("rules=/etc/ufw", &*format!("rules={home}/etc/ufw")),
    ];
    Recipe::read("ufw.sh", &values)
}

/// ufw at `place`, its recipe, and a function that applies it.
fn installed(place: Place) -> (Site, Recipe, impl Fn(&Host, &str)) {
    let site = Site::new(place);
    let host = matches!(place, Place::Server | Place::Client);
    // On a host, ufw denies outgoing connections too.
    let commands = if host { "ufw default deny outgoing" } else { "" };
    let home = enabled(site.guard(), commands);
    let argument = if host { "host" } else { "gateway" };
    let recipe = recipe(&home);
    let apply = move |host: &Host, text: &str| {
        run_script(host, text, &[argument], &format!("{home}/bin"));
    };
    (site, recipe, apply)
}

#[test]
fn the_ufw_rule_admits_data_connections() {
    for &place in telling(&[Place::Server], &PLACES) {
        let (site, recipe, apply) = installed(place);
        assert_rule_suffices(&site, &recipe, &FAMILIES, &MODES, apply);
    }
}

#[test]
fn the_ufw_recipe_is_idempotent() {
    let (site, recipe, apply) = installed(Place::Masquerade);
    let rules = site.guard().directory().join("ufw/etc/ufw");
    let written = || ["before.rules", "before6.rules"].map(|f| fs::read(rules.join(f)).unwrap());
    apply(site.guard(), &recipe.text);
    let once = written();
    apply(site.guard(), &recipe.text);
    assert_eq!(written(), once);
}

#[test]
fn ufw_may_be_reloaded_and_reenabled_while_the_daemon_runs() {
    let (site, recipe, apply) = installed(Place::Masquerade);
    apply(site.guard(), &recipe.text);
    let daemon = site.daemon(NFTABLES);
    let bin = site.guard().directory().join("ufw/bin");
    for command in ["ufw reload", "ufw disable; ufw --force enable"] {
        run_script(site.guard(), command, &[], bin.to_str().unwrap());
        site.carries(&daemon, &[V4]);
    }
    assert!(!daemon.log().contains("loaded again"), "{}", daemon.log());
}
