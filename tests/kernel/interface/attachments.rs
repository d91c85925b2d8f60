//! The interfaces that the fast path's program is attached to.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType};
use ftp_alg::kernel::offload::list_interfaces;
use ftp_alg_fastpath::{FastPath, remove_leftovers};

use super::{
    lab::{Lab, inside},
    program::*,
};

/// The interfaces of the gateway that the kernel has the program attached to.
pub fn attached_interfaces(lab: &Lab) -> BTreeSet<String> {
    inside(&lab.gateway, || {
        let interfaces = nix::net::if_::if_nameindex().unwrap();
        let name_set = interfaces.iter().map(|one| one.name().to_str().unwrap().to_owned());
        name_set.filter(|name| is_attached(name)).collect()
    })
}

fn is_attached(interface: &str) -> bool {
    let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress).unwrap();
    programs.iter().any(|program| program.name() == b"inspect")
}

pub fn name_set(name_set: &[&str]) -> BTreeSet<String> {
    name_set.iter().map(|name| (*name).to_owned()).collect()
}

/// Updates the attachments now. Returns the interfaces that the program is attached to then.
pub fn update_attachments(path: &FastPath) -> BTreeSet<String> {
    update_attachments_at(path, Instant::now())
}

fn update_attachments_at(path: &FastPath, now: Instant) -> BTreeSet<String> {
    path.find_usable_interfaces().unwrap();
    path.update_attachments(now).unwrap();
    path.interfaces().into_iter().collect()
}

#[test]
fn the_program_is_attached_while_it_is_in_use() {
    with_pins(|lab, pins| {
        let path = pins.load();
        let start = Instant::now();
        let update_after =
            |seconds| update_attachments_at(&path, start + Duration::from_secs(seconds));
        let (both, none) = (name_set(&["lan", "wan"]), name_set(&[]));
        assert_eq!(update_after(0), both, "at the start, to find out whether it can be attached");
        assert_eq!(update_after(9), both);
        assert_eq!((update_after(10), attached_interfaces(lab)), (none.clone(), none.clone()));
        lab.gateway_sh("ip link add later type veth peer name later2");
        assert_eq!(update_after(11), none);
        lab.gateway_sh("ip link delete later");

        path.hand_over(1, tuples(), &flow()).unwrap();
        assert_eq!(attached_interfaces(lab), both, "at once");
        exchange(&path, 0);
        assert_eq!(read(&path).len(), 2);
        assert_eq!((update_after(100), update_after(200)), (both.clone(), both.clone()));

        // A connection that was taken back may still have an open pinhole.
        receive(&path, &frame(CLIENT, SERVER, 1006, 2006, b"PASV\r\n"));
        receive(&path, &frame(SERVER, CLIENT, 2006, 1012, b"227 x (192,0,2,9,15,161)\r\n"));
        assert_eq!(path.list_open_pinholes().unwrap().len(), 1);
        path.take_back(1, tuples()).unwrap();
        assert_eq!((update_after(300), update_after(400)), (both.clone(), both.clone()));
        path.retain_pinholes(|_, _| false).unwrap();
        assert_eq!((update_after(500), update_after(509)), (both.clone(), both));
        assert_eq!((update_after(510), attached_interfaces(lab)), (none.clone(), none));
        path.remove().unwrap();
    });
}

#[test]
fn new_interfaces_are_attached_and_removal_detaches_all() {
    with_pins(|lab, pins| {
        let path = pins.load();
        let attach = || update_attachments(&path);
        lab.gateway_sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0 2>/dev/null || true");
        assert_eq!(attach(), name_set(&["lan", "wan"]));
        assert_eq!(attach(), attached_interfaces(lab), "the second call changes nothing");
        lab.gateway_sh(
            "ip link add later type veth peer name later2; ip link add bridge type bridge; \
             ip link add port type veth peer name other; ip link set port master bridge",
        );
        // Without Ethernet headers; not every kernel has tun.
        let added = lab.gateway_sh("ip tuntap add tunnel mode tun 2>&1 || true");
        let has_tun = added.is_empty();
        let all = ["lan", "wan", "later", "later2", "bridge", "other", "tunnel"];
        let now = name_set(&all[..6 + usize::from(has_tun)]);
        assert_eq!(attach(), now);
        lab.gateway_sh("ip link delete tunnel 2>/dev/null || true");
        lab.gateway_sh("ip link delete later; ip link set other master bridge");
        let lost = path.find_usable_interfaces().unwrap().lost;
        let leaving = inside(&lab.gateway, || indices(["other", "port"])[0]);
        let count = 3 + usize::from(has_tun);
        assert!(lost.len() == count && lost.contains(&leaving), "and those that were deleted");
        assert!(attached_interfaces(lab).contains("other"), "until its pinholes have moved");
        let now = name_set(&["lan", "wan", "bridge"]);
        assert_eq!((attach(), attached_interfaces(lab)), (now.clone(), now));
        path.remove().unwrap();
        assert_eq!(attached_interfaces(lab), name_set(&[]));
        assert!(pins.is_empty());
    });
}

#[test]
fn a_bridge_whose_ports_run_the_rules_has_no_program() {
    const SETTING: &str = "net.bridge.bridge-nf-call-iptables";
    with_pins(|lab, pins| {
        if !lab.gateway_sh(&format!("sysctl -qw {SETTING}=0 2>&1 || true")).is_empty() {
            println!("not tried: no br_netfilter");
            return;
        }
        // However slow the machine is, the program is needed until it is said not to be.
        let (path, start) = (pins.load(), Instant::now());
        let update = || {
            let lost = path.find_usable_interfaces().unwrap().lost;
            path.update_attachments(start).unwrap();
            (path.interfaces().join(" "), path.filtered_early().join(" "), !lost.is_empty())
        };
        let state =
            |on: &str, early: &str, is_any_lost| (on.to_owned(), early.to_owned(), is_any_lost);
        assert_eq!(update(), state("lan wan", "", false));
        lab.gateway_sh("ip link add bridge up type bridge; ip link set lan master bridge");
        assert_eq!(update(), state("wan bridge", "", true), "a port");
        for (on, off) in [
            (format!("sysctl -qw {SETTING}=1"), format!("sysctl -qw {SETTING}=0")),
            (
                "ip link set bridge type bridge nf_call_iptables 1".to_owned(),
                "ip link set bridge type bridge nf_call_iptables 0".to_owned(),
            ),
        ] {
            lab.gateway_sh(&on);
            assert_eq!(update(), state("wan", "bridge", true), "{on}");
            assert_eq!(update(), state("wan", "bridge", false), "{on}: once");
            assert_eq!(attached_interfaces(lab), name_set(&["wan"]));
            lab.gateway_sh(&off);
            assert_eq!(update(), state("wan bridge", "", false), "{off}");
        }
        // It is found out also while the program is not needed.
        update_attachments_at(&path, start + Duration::from_secs(20));
        lab.gateway_sh(&format!("sysctl -qw {SETTING}=1"));
        assert_eq!(update(), state("", "bridge", true));
        path.remove().unwrap();
    });
}

#[test]
fn removed_pins_and_interfaces_that_leave_stop_no_daemon() {
    with_pins(|lab, pins| {
        let path = pins.load();
        fs::remove_dir_all(&pins.0).unwrap();
        assert_eq!(update_attachments(&path), name_set(&["lan", "wan"]));
        path.hand_over(1, tuples(), &flow()).unwrap();
        lab.gateway_sh(&format!("ip link set lan netns {}", lab.client.namespace()));
        assert_eq!(update_attachments(&path), name_set(&["wan"]));
        assert!(!inside(&lab.client, || is_attached("lan")));
        path.remove().unwrap();
        assert_eq!(attached_interfaces(lab), name_set(&[]));
    });
}

#[test]
fn a_directory_that_another_user_may_change_is_left_alone() {
    with_pins(|_, pins| {
        let version = pins.load().directory().to_owned();
        for directory in [&pins.0, &version] {
            for (owner, mode) in [(65534, 0o700), (0, 0o770), (0, 0o1707)] {
                let set = |owner, mode| {
                    fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
                    chown(directory, Some(owner), None).unwrap();
                };
                set(owner, mode);
                let error = remove_leftovers(&pins.0, list_interfaces).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{owner} {mode:o}");
                let unavailable = FastPath::load(&pins.0, list_interfaces).unwrap_err().to_string();
                assert!(unavailable.contains("permission denied"), "{unavailable}");
                assert!(version.join("inspect").exists(), "{owner} {mode:o}");
                set(0, 0o700);
            }
        }
        pins.load().remove().unwrap();
    });
}
