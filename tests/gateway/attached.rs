//! What the fast path's program is attached to, and when.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType};
use ftp_alg::gateway::fastpath::FastPath;

use super::{
    fastpath::{CLIENT, SERVER, exchange, flow, frame, read, receive, setting, ways},
    lab::{Lab, inside},
};

/// The interfaces of a gateway that the program is attached to.
pub fn attached(lab: &Lab) -> BTreeSet<String> {
    inside(&lab.gateway, || {
        let interfaces = nix::net::if_::if_nameindex().unwrap();
        let names = interfaces.iter().map(|one| one.name().to_str().unwrap().to_owned());
        names.filter(|name| is_attached(name)).collect()
    })
}

fn is_attached(interface: &str) -> bool {
    let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress).unwrap();
    programs.iter().any(|program| program.name() == b"judge")
}

pub fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Has it look now. The interfaces that it is attached to then.
pub fn look(path: &FastPath) -> BTreeSet<String> {
    look_at(path, Instant::now())
}

fn look_at(path: &FastPath, now: Instant) -> BTreeSet<String> {
    path.update_attachments(now).unwrap();
    path.interfaces().into_iter().collect()
}

#[test]
fn the_program_is_attached_while_it_has_a_connection_or_a_pinhole() {
    let Some((lab, pins)) = setting() else { return };
    lab.on_gateway(|| {
        let path = pins.load();
        let start = Instant::now();
        let look_after = |seconds| look_at(&path, start + Duration::from_secs(seconds));
        let (both, none) = (names(&["inside", "outside"]), names(&[]));
        assert_eq!(look_after(0), both, "at the start, to see that it can be");
        assert_eq!(look_after(9), both);
        assert_eq!((look_after(10), attached(&lab)), (none.clone(), none.clone()));
        lab.gateway_sh("ip link add later type veth peer name later2");
        assert_eq!(look_after(11), none);
        lab.gateway_sh("ip link delete later");

        path.hand_over(&flow(1)).unwrap();
        assert_eq!(attached(&lab), both, "at once");
        exchange(&path, 0);
        assert_eq!(read(&path).len(), 2);
        assert_eq!((look_after(100), look_after(200)), (both.clone(), both.clone()));

        // What is taken back may have a pinhole open.
        receive(&path, &frame(CLIENT, SERVER, 1006, 2006, b"PASV\r\n"));
        receive(&path, &frame(SERVER, CLIENT, 2006, 1012, b"227 x (192,0,2,9,15,161)\r\n"));
        assert_eq!(path.list_open_pinholes().unwrap().len(), 1);
        path.take_back(1, ways()).unwrap();
        assert_eq!((look_after(300), look_after(400)), (both.clone(), both.clone()));
        path.retain_pinholes(|_, _, _, _| false).unwrap();
        assert_eq!((look_after(500), look_after(509)), (both.clone(), both));
        assert_eq!((look_after(510), attached(&lab)), (none.clone(), none));
        path.remove().unwrap();
    });
}

#[test]
fn the_program_follows_the_interfaces_and_leaves_nothing() {
    let Some((lab, pins)) = setting() else { return };
    lab.on_gateway(|| {
        let path = pins.load();
        let attach = || look(&path);
        assert_eq!(attach(), names(&["inside", "outside"]));
        assert_eq!(attach(), attached(&lab), "a second time it is as it was");
        lab.gateway_sh(
            "ip link add later type veth peer name later2; ip link add bridge type bridge; \
             ip link add port type veth peer name other; ip link set port master bridge; \
             ip tuntap add tunnel mode tun || true",
        );
        let now = names(&["inside", "outside", "later", "later2", "bridge", "other"]);
        assert_eq!(attach(), now);
        lab.gateway_sh("ip link delete later; ip link set other master bridge");
        let now = names(&["inside", "outside", "bridge"]);
        assert_eq!((attach(), attached(&lab)), (now.clone(), now));
        path.remove().unwrap();
        assert_eq!(attached(&lab), names(&[]));
        assert!(!pins.0.exists());
    });
}

#[test]
fn an_interface_that_moved_away_is_left_alone() {
    let Some((lab, pins)) = setting() else { return };
    lab.on_gateway(|| {
        let path = pins.load();
        look(&path);
        lab.gateway_sh(&format!("ip link set inside netns {}", lab.client));
        assert_eq!(look(&path), names(&["outside"]));
        assert!(!inside(&lab.client, || is_attached("inside")));
        path.remove().unwrap();
    });
}
