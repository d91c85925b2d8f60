//! The fast path where interfaces are upon others.

use std::net::SocketAddr;

use ftp_alg_fastpath::layout::{Flow, PacketTuple};
use ftp_alg_lab::wait_for;

use super::{
    attachments::{name_set, update_attachments},
    lab::{Lab, inside},
    program::*,
};
use crate::fastpath::{
    frames::{Frame, SYN},
    scene::{CLIENT6, SERVER6, between},
};

/// How the client reaches the gateway: a name; what makes the gateway's interface, where `lan` is there; what has the
/// program; the interface on which the rules see the client's packets; their VLAN, or 0.
type Way = (&'static str, &'static str, &'static [&'static str], &'static str, u16);

const WAYS: [Way; 7] = [
    (
        "bridge",
        "ip link add bridge address 02:00:00:00:00:01 up type bridge; ip link set lan master bridge",
        &["bridge", "wan"],
        "bridge",
        0,
    ),
    (
        "VLAN",
        "ip link set lan address 02:00:00:00:00:01; ip link add link lan name tagged up type vlan id 7",
        &["lan", "wan", "tagged"],
        "tagged",
        7,
    ),
    (
        "bridge of a VLAN",
        "ip link add link lan name tagged up type vlan id 7; \
         ip link add bridge address 02:00:00:00:00:01 up type bridge; ip link set tagged master bridge",
        &["lan", "bridge", "wan"],
        "bridge",
        7,
    ),
    (
        "VLAN of a bridge",
        "ip link add bridge address 02:00:00:00:00:01 up type bridge; ip link set lan master bridge; \
         ip link add link bridge name tagged up type vlan id 7",
        &["bridge", "wan", "tagged"],
        "tagged",
        7,
    ),
    (
        "macvlan",
        "ip link add link lan name own address 02:00:00:00:00:01 up type macvlan",
        &["lan", "wan", "own"],
        "own",
        0,
    ),
    (
        "bond",
        "ip link add bond address 02:00:00:00:00:01 type bond mode active-backup; \
         ip link set lan down; ip link set lan master bond; ip link set bond up",
        &["bond", "wan"],
        "bond",
        0,
    ),
    // Its first byte is that of an IPv6 header.
    (SIXTY, "ip link set lan address 60:00:00:00:00:01", &["lan", "wan"], "lan", 0),
];

/// The way whose address is another one than [`OWN`].
const SIXTY: &str = "address";

/// What the gateway's interface has for an address.
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A packet that comes up through several interfaces is inspected once, and a SYN admitted once.
#[test]
fn stacked_interfaces_inspect_a_packet_once() {
    need_tcx!();
    for way in WAYS {
        inspect_once(way, CLIENT, SERVER);
        let [client, server] = [(CLIENT6, CLIENT), (SERVER6, SERVER)]
            .map(|(address, of)| SocketAddr::new(address, of.port()));
        inspect_once(way, client, server);
    }
}

fn inspect_once((name, made, attached, upper, vlan): Way, client: SocketAddr, server: SocketAddr) {
    let own = if name == SIXTY { [0x60, 0, 0, 0, 0, 1] } else { OWN };
    let (lab, pins) = (Lab::new(), Pins::new());
    lab.on_gateway(|| {
        // With 1 a bridge has no program.
        lab.gateway_sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0 2>/dev/null || true");
        // Not every kernel has all of them.
        if lab.gateway_sh(&format!("({made}) 2>&1 || echo cannot")).contains("cannot") {
            println!("{name}: not in this kernel");
            return;
        }
        // Nobody is to answer.
        lab.gateway_sh(
            "ip link set wan address 02:00:00:00:00:01; \
             sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
        );
        let path = pins.load();
        assert_eq!(update_attachments(&path), name_set(attached));
        let interface = indices([upper, "wan"]);
        let same = between(client.ip(), client.ip(), server.ip(), server.ip());
        let flow = Flow { interface, next_seq: [1000, 2000], ..same };
        let tuples = [PacketTuple::new(client, server), PacketTuple::new(server, client)];
        path.hand_over(7, tuples, &flow).unwrap();
        let by_client = |mut bytes: Vec<u8>| {
            if vlan != 0 {
                bytes.splice(12..12, [[0x81, 0], vlan.to_be_bytes()].concat());
            }
            inside(&lab.client, || send_frame("eth0", own, &bytes));
        };
        let by_server = |bytes: Vec<u8>| inside(&lab.server, || send_frame("eth0", OWN, &bytes));
        let target = SocketAddr::new(server.ip(), 4001);
        let packets = [
            frame(client, server, 1000, 2000, b"NOOP\r\n"),
            frame(server, client, 2000, 1006, b"200 \r\n"),
            frame(client, server, 1006, 2006, b"EPSV\r\n"),
            frame(server, client, 2006, 1012, b"229 x (|||4001|)\r\n"),
            syn(SocketAddr::new(client.ip(), 40_001), target),
        ];
        for (count, packet) in (1..).zip(packets) {
            if count % 2 == 1 {
                by_client(packet)
            } else {
                by_server(packet)
            }
            let counts = || path.counters().unwrap();
            wait_for("the packet", || counts().inspected + counts().admitted >= count);
            let counts = counts();
            let seen = (counts.inspected + counts.admitted, counts.handed_back);
            assert_eq!(seen, (count, 0), "{name}: {counts:?}");
        }
        assert_eq!((path.counters().unwrap().admitted, read(&path).len()), (1, 4), "{name}");
        path.remove().unwrap();
    });
}

/// An Ethernet frame with a SYN.
pub fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    Frame::new(from, to, SYN).to_bytes()
}
