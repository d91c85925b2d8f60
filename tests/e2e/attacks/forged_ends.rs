//! One end of a connection forges lines of the other end, as it knows the sequence numbers. They arrive on an interface
//! on which the other end is not.

use std::net::SocketAddr;

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
    pub(super) fn log_in(
        &self,
        scene: &Scene,
        listen: &[u16],
        steps: &[Value],
    ) -> (GatedClient, Connection) {
        let log_in = || self.log_in_once(scene, listen, steps);
        if self.fast_path && fast_path(&scene.gateway.daemon)["state"] == "on" {
            until_on_fast_path(&scene.gateway, ("connections", 1), log_in)
        } else {
            log_in()
        }
    }

    fn log_in_once(
        &self,
        scene: &Scene,
        listen: &[u16],
        steps: &[Value],
    ) -> (GatedClient, Connection) {
        let lab = &scene.gateway.lab;
        // The interface at which each end's address and port is its own.
        let capture = Capture::start(&lab.gateway, lab.client_side(), "tcp port 21").unwrap();
        let steps = [&login()[..], &[gate()], steps].concat();
        let host = lab.server_address(self.family);
        let client = scene.client_of(&lab.client, &json!({"host": host, "listen": listen}), &steps);
        let seen = capture.finish().unwrap();
        let number = |text: &String| text.parse::<u32>().unwrap();
        let fields = ["tcp.dstport", "tcp.seq_raw", "tcp.len", "tcp.ack_raw"];
        let rows = seen.fields("tcp.srcport == 21 && tcp.len > 0", &fields).unwrap();
        let row: Vec<u32> = rows.last().unwrap().iter().map(number).collect();
        let connection = Connection {
            client: SocketAddr::new(lab.client.address(self.family), row[0] as u16),
            server: SocketAddr::new(lab.server.address(self.family), 21),
            next: [row[3], row[1].wrapping_add(row[2])],
        };
        (client, connection)
    }

    /// Waits until the gateway has read the forged packet.
    fn wait_for_packet(&self, scene: &Scene) {
        let is_read = || {
            let status = scene.gateway.daemon.status().unwrap();
            let count = |kind: &str| status[kind]["elsewhere"].as_u64().unwrap_or_default();
            count("unread") + count("drops") > 0
        };
        wait_for("the forged packet", is_read);
    }

    fn assert_unopened(&self, scene: &Scene, initiator: &Host, target: std::net::IpAddr) {
        self.wait_for_packet(scene);
        assert_eq!(scene.gateway.daemon.open_pinholes().unwrap(), [""; 0], "{self:?}");
        assert_silent(&[(initiator, &target.to_string(), FORGED_PORT)]);
        assert_eq!(scene.gateway.count("pinholes_opened"), 0, "{self:?}");
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
    let script = forger.write("forge.py", include_bytes!("forge.py")).unwrap();
    let arguments = [script.to_str().unwrap(), &plan.to_string()];
    forger.run("/usr/bin/python3", &arguments).unwrap();
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

/// Discards forged packets at `host`.
fn discard_forged(host: &Host) {
    host.nft(
        "table inet forged { chain input { type filter hook input priority -300; \
         ip ttl < 50 drop; ip6 hoplimit < 50 drop; }; }",
    )
    .unwrap();
}

/// The client forges `229` and reaches a port of the server that nobody opened.
#[test]
fn a_client_reaches_no_other_port_of_a_server() {
    for case in CASES {
        let scene = case.scene(Topology::PublishedServer);
        let lab = &scene.gateway.lab;
        discard_forged(&lab.client);
        let steps = [say("EPSV"), gate(), reply(), dial()];
        let end = [say("LIST"), reply(), drain(), reply()];
        let (mut client, connection) = case.log_in(&scene, &[], &[&steps[..], &end].concat());
        let Connection { client: own, server, next: [client_next, server_next] } = connection;
        // The server's own reply is late.
        mute(&lab.server, "tcp sport 21 @ih,0,24 0x323239");
        client.open_gate();
        wait_for("EPSV", || scene.server.lines().iter().any(|line| line == "EPSV"));
        let acknowledged = client_next.wrapping_add("EPSV\r\n".len() as u32);
        let line = format!("229 Entering Extended Passive Mode (|||{FORGED_PORT}|)");
        forge(lab, &lab.client, [server, own], [server_next, acknowledged], Some(&line));
        case.assert_unopened(&scene, &lab.client, lab.server_address(case.family));
        unmute(&lab.server);
        let session = client.release().ok_in(format!("{case:?}"));
        assert_eq!(session.got(12), "the body\r\n", "{case:?}");
    }
}

/// The server forges `PORT` or `EPRT` and reaches a port of its client.
#[test]
fn a_server_reaches_no_other_port_of_a_client() {
    for case in CASES {
        let scene = case.scene(Topology::Masquerade);
        let lab = &scene.gateway.lab;
        let address = lab.client.address(case.family);
        let (command, steps) = match case.family {
            V4 => {
                let host = address.to_string().replace('.', ",");
                let [high, low] = FORGED_PORT.to_be_bytes();
                (format!("PORT {host},{high},{low}"), active_transfer(address, 3763))
            }
            V6 => {
                let command = |port: u16| format!("EPRT |2|{address}|{port}|");
                let announced = say(&command(3763));
                let list = [say("LIST"), reply(), accept(3763), reply()];
                (command(FORGED_PORT), [&[announced, reply()][..], &list].concat())
            }
        };
        let (client, connection) = case.log_in(&scene, &[3763], &steps);
        let Connection { client: own, server, next } = connection;
        forge(lab, &lab.server, [own, server], next, Some(&command));
        let target = if scene.gateway.lab.translates(case.family) {
            lab.gateway.address(case.family)
        } else {
            address
        };
        case.assert_unopened(&scene, &lab.server, target);
        let session = client.release().ok_in(format!("{case:?}"));
        assert_eq!(session.got(10), "the body\r\n", "{case:?}");
    }
}
