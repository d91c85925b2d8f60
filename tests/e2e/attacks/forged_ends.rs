//! One end of a connection forges lines of the other end, as it knows the sequence numbers. They arrive on an interface
//! on which the other end is not.

use std::net::{IpAddr, SocketAddr};

use super::scene::{Scene, assert_silent};
use crate::common::*;

/// The port that a forged line announces.
const FORGED_PORT: u16 = 3306;
/// The TTL of forged packets. The end that would get one discards it, so that the dialogue can go on.
const TTL: u8 = 40;

/// How the gateway reads control connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub fast_path: bool,
    pub family: Family,
}

const CASES: [Case; 2] =
    [Case { fast_path: false, family: V6 }, Case { fast_path: true, family: V4 }];

/// A control connection after the login.
pub(super) struct Connection {
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// The next sequence numbers of client and server.
    pub next: [u32; 2],
}

impl Connection {
    /// The connection of which `capture` has the last reply. It is between these addresses there.
    pub(super) fn seen(capture: Capture, client: IpAddr, server: IpAddr) -> Self {
        let fields = ["tcp.dstport", "tcp.seq_raw", "tcp.len", "tcp.ack_raw"];
        let rows = capture.finish().unwrap();
        let rows = rows.fields("tcp.srcport == 21 && tcp.len > 0", &fields).unwrap();
        let number = |text: &String| text.parse::<u32>().unwrap();
        let row: Vec<u32> = rows.last().unwrap().iter().map(number).collect();
        Self {
            client: SocketAddr::new(client, row[0] as u16),
            server: SocketAddr::new(server, 21),
            next: [row[3], row[1].wrapping_add(row[2])],
        }
    }
}

impl Case {
    pub(super) fn scene(&self, topology: Topology) -> Scene {
        let state = if self.fast_path { "auto" } else { "off" };
        let configuration = format!("[queue]\nfast-path = \"{state}\"\n");
        let scene = Scene::with(topology, &configuration, &json!({}));
        // Otherwise the kernel drops packets from elsewhere.
        let set =
            "for name in all lan wan; do echo 0 > /proc/sys/net/ipv4/conf/$name/rp_filter; done";
        let lab = &scene.gateway.lab;
        lab.gateway.shell(set).unwrap();
        // The gateway redirects the sender of a packet that leaves where it came from. A host that believes it sends its
        // own packets to nowhere.
        let ignore = "for f in /proc/sys/net/ipv6/conf/*/accept_redirects; do echo 0 > $f; done";
        for host in [&lab.client, &lab.server] {
            host.shell(ignore).unwrap();
        }
        scene
    }

    /// Runs `steps` after the login, up to each gate. Returns the client and its connection.
    pub(super) fn log_in(&self, scene: &Scene, steps: &[Value]) -> (GatedClient, Connection) {
        let log_in = || self.log_in_once(scene, steps);
        if self.fast_path && fast_path(&scene.gateway.daemon)["state"] == "on" {
            until_on_fast_path(&scene.gateway, ("connections", 1), log_in)
        } else {
            log_in()
        }
    }

    fn log_in_once(&self, scene: &Scene, steps: &[Value]) -> (GatedClient, Connection) {
        let lab = &scene.gateway.lab;
        // The interface at which each end's address and port is its own.
        let capture = Capture::start(&lab.gateway, lab.client_side(), "tcp port 21").unwrap();
        let steps = [&login()[..], &[gate()], steps].concat();
        let host = lab.server_address(self.family);
        let client = scene.client_of(&lab.client, &json!({"host": host}), &steps);
        let [client_end, server] = [&lab.client, &lab.server].map(|host| host.address(self.family));
        (client, Connection::seen(capture, client_end, server))
    }
}

/// Sends a line of one end to the other from `forger`: an acknowledgement if it is empty, a RST if there is none.
pub(super) fn forge(
    lab: &Lab,
    forger: &Host,
    ends: [SocketAddr; 2],
    numbers: [u32; 2],
    line: Option<&str>,
) {
    let is_at_client =
        [&lab.client, &lab.client2].iter().any(|host| host.namespace() == forger.namespace());
    let towards = if is_at_client { lab.client_side() } else { lab.server_side() };
    let shown = lab.gateway.shell(&format!("ip -br link show {towards}")).unwrap().stdout_text();
    let router = shown.split_whitespace().find(|word| word.matches(':').count() == 5).unwrap();
    let [from, to] = ends.map(|end| json!([end.ip(), end.port()]));
    let [seq, ack] = numbers;
    let plan = json!({"router": router, "from": from, "to": to, "seq": seq, "ack": ack, "ttl": TTL,
                      "line": line});
    python(forger, "forge.py", include_bytes!("forge.py"), &[&plan.to_string()]);
}

/// Stops what matches `rule` at `host`, until its table `mute` is deleted.
pub(super) fn mute(host: &Host, rule: &str) {
    let chain = "chain output { type filter hook output priority 0; ";
    host.nft(&format!("table inet mute {{ {chain} {rule} drop; }}; }}")).unwrap();
}

/// Ends what [`mute`] began.
pub(super) fn unmute(host: &Host) {
    host.nft("delete table inet mute").unwrap();
}

/// The client forges `229` and reaches a port of the server that nobody opened.
#[test]
fn a_client_reaches_no_other_port_of_a_server() {
    for case in CASES {
        let scene = case.scene(Topology::PublishedServer);
        let lab = &scene.gateway.lab;
        let discard = "chain input { type filter hook input priority -300; \
                       ip ttl < 50 drop; ip6 hoplimit < 50 drop; }";
        lab.client.nft(&format!("table inet forged {{ {discard}; }}")).unwrap();
        let steps = [say("EPSV"), gate(), reply(), dial()];
        let end = [say("LIST"), reply(), drain(), reply()];
        let (mut client, connection) = case.log_in(&scene, &[&steps[..], &end].concat());
        let Connection { client: own, server, next: [client_next, server_next] } = connection;
        // The server's own reply is late.
        mute(&lab.server, "tcp sport 21 @ih,0,24 0x323239");
        client.open_gate();
        wait_for("EPSV", || scene.server.lines().iter().any(|line| line == "EPSV"));
        let acknowledged = client_next.wrapping_add("EPSV\r\n".len() as u32);
        let line = format!("229 Entering Extended Passive Mode (|||{FORGED_PORT}|)");
        forge(lab, &lab.client, [server, own], [server_next, acknowledged], Some(&line));
        wait_for("the forged packet", || {
            let status = scene.gateway.daemon.status().unwrap();
            let count = |kind: &str| status[kind]["elsewhere"].as_u64().unwrap_or_default();
            count("unread") + count("drops") > 0
        });
        assert_eq!(scene.gateway.daemon.open_pinholes().unwrap(), [""; 0], "{case:?}");
        let target = lab.server_address(case.family).to_string();
        assert_silent(&[(&lab.client, &target, FORGED_PORT)]);
        assert_eq!(scene.gateway.count("pinholes_opened"), 0, "{case:?}");
        unmute(&lab.server);
        let session = client.release().ok_in(format!("{case:?}"));
        assert_eq!(session.got(12), "the body\r\n", "{case:?}");
    }
}
