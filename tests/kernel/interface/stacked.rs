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

/// How the client reaches the gateway.
struct Way {
    name: &'static str,
    /// What makes the gateway's interface; `lan` is the one that is there.
    made: &'static str,
    attached: &'static [&'static str],
    /// The interface on which the rules see the client's packets.
    upper: &'static str,
    vlan: Option<u16>,
    /// The address of the interface at which they arrive.
    own: [u8; 6],
}

/// What the gateway's interface has for an address.
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A packet that comes up through several interfaces is inspected once, and a SYN admitted once.
#[test]
fn stacked_interfaces_inspect_a_packet_once() {
    need_tcx!();
    let ways = [
        Way {
            name: "bridge",
            made: "ip link add bridge address 02:00:00:00:00:01 up type bridge; \
                   ip link set lan master bridge",
            attached: &["bridge", "wan"],
            upper: "bridge",
            vlan: None,
            own: OWN,
        },
        Way {
            name: "VLAN",
            made: "ip link set lan address 02:00:00:00:00:01; \
                   ip link add link lan name tagged up type vlan id 7",
            attached: &["lan", "wan", "tagged"],
            upper: "tagged",
            vlan: Some(7),
            own: OWN,
        },
        Way {
            name: "bridge of a VLAN",
            made: "ip link add link lan name tagged up type vlan id 7; \
                   ip link add bridge address 02:00:00:00:00:01 up type bridge; \
                   ip link set tagged master bridge",
            attached: &["lan", "bridge", "wan"],
            upper: "bridge",
            vlan: Some(7),
            own: OWN,
        },
        Way {
            name: "VLAN of a bridge",
            made: "ip link add bridge address 02:00:00:00:00:01 up type bridge; \
                   ip link set lan master bridge; \
                   ip link add link bridge name tagged up type vlan id 7",
            attached: &["bridge", "wan", "tagged"],
            upper: "tagged",
            vlan: Some(7),
            own: OWN,
        },
        Way {
            name: "macvlan",
            made: "ip link add link lan name own address 02:00:00:00:00:01 up type macvlan",
            attached: &["lan", "wan", "own"],
            upper: "own",
            vlan: None,
            own: OWN,
        },
        Way {
            name: "bond",
            made: "ip link add bond address 02:00:00:00:00:01 type bond mode active-backup; \
                   ip link set lan down; ip link set lan master bond; ip link set bond up",
            attached: &["bond", "wan"],
            upper: "bond",
            vlan: None,
            own: OWN,
        },
        // Its first byte is that of an IPv6 header.
        Way {
            name: "address",
            made: "ip link set lan address 60:00:00:00:00:01",
            attached: &["lan", "wan"],
            upper: "lan",
            vlan: None,
            own: [0x60, 0, 0, 0, 0, 1],
        },
    ];
    for way in ways {
        inspect_once(&way, CLIENT, SERVER);
        let [client, server] = [(CLIENT6, CLIENT), (SERVER6, SERVER)]
            .map(|(address, of)| SocketAddr::new(address, of.port()));
        inspect_once(&way, client, server);
    }
}

fn inspect_once(
    Way { name, made, attached, upper, vlan, own }: &Way,
    client: SocketAddr,
    server: SocketAddr,
) {
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
            if let Some(vlan) = vlan {
                bytes.splice(12..12, [[0x81, 0], vlan.to_be_bytes()].concat());
            }
            inside(&lab.client, || send_frame("eth0", *own, &bytes));
        };
        let by_server = |bytes: Vec<u8>| inside(&lab.server, || send_frame("eth0", OWN, &bytes));
        let fast_path = |count: u64| {
            wait_for("the packet", || {
                let counts = path.counters().unwrap();
                counts.inspected + counts.admitted >= count
            });
            let counts = path.counters().unwrap();
            assert_eq!(
                (counts.inspected + counts.admitted, counts.handed_back),
                (count, 0),
                "{name}: {counts:?}"
            );
        };
        by_client(frame(client, server, 1000, 2000, b"NOOP\r\n"));
        fast_path(1);
        by_server(frame(server, client, 2000, 1006, b"200 \r\n"));
        fast_path(2);
        by_client(frame(client, server, 1006, 2006, b"EPSV\r\n"));
        fast_path(3);
        by_server(frame(server, client, 2006, 1012, b"229 x (|||4001|)\r\n"));
        fast_path(4);
        let target = SocketAddr::new(server.ip(), 4001);
        by_client(syn(SocketAddr::new(client.ip(), 40_001), target));
        fast_path(5);
        assert_eq!((path.counters().unwrap().admitted, read(&path).len()), (1, 4), "{name}");
        path.remove().unwrap();
    });
}

/// An Ethernet frame with a SYN.
pub fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    Frame::new(from, to, SYN).to_bytes()
}
