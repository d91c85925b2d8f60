//! One end of a connection forges lines of the other end, as it knows the sequence numbers. They arrive on an interface
//! on which the other end is not.

use std::net::SocketAddr;

use crate::common::*;

/// The port that a forged line announces.
const FORGED_PORT: u16 = 3306;
/// The TTL of forged packets. The end that would get one discards it, so that the dialogue can go on.
const TTL: u8 = 40;

/// A control connection after the login.
pub(super) struct Connection {
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// The next sequence numbers of client and server.
    pub next: [u32; 2],
}

/// Runs `attack` on a gateway with the fast path, and on one without it, at the same time.
pub(super) fn with_and_without_fast_path(
    topology: Topology,
    attack: impl Fn(&Gateway, &ScriptedServer) + Sync,
) {
    thread::scope(|scope| {
        for state in ["auto", "off"] {
            let attack = &attack;
            scope.spawn(move || {
                let configuration = format!("queue.fast-path = \"{state}\"\n");
                let (gateway, server) = served(topology, &configuration, json!({}));
                println!("with the fast path {state}:");
                attack(&gateway, &server);
            });
        }
    });
}

/// Logs in, and runs `steps` up to each gate, of which one is behind the login. Returns the client and its connection.
pub(super) fn log_in(gateway: &Gateway, steps: &[Value]) -> (GatedClient, Connection) {
    let lab = &gateway.lab;
    let log_in = || {
        // The interface at which each end's address and port is its own.
        let capture = Capture::start(&lab.gateway, lab.client_side(), "tcp port 21").unwrap();
        let client = hold(lab, (login(), gate(), steps, gate()));
        let fields = ["tcp.dstport", "tcp.seq_raw", "tcp.len", "tcp.ack_raw"];
        let rows = capture.finish().unwrap();
        let rows = rows.fields("tcp.srcport == 21 && tcp.len > 0", &fields).unwrap();
        let number = |text: &String| text.parse::<u32>().unwrap();
        let last: Vec<u32> = rows.last().unwrap().iter().map(number).collect();
        let connection = Connection {
            client: SocketAddr::new(lab.client.address(V4), last[0] as u16),
            server: SocketAddr::new(lab.server.address(V4), 21),
            next: [last[3], last[1].wrapping_add(last[2])],
        };
        (client, connection)
    };
    if fast_path(&gateway.daemon)["state"] == "on" {
        until_on_fast_path(gateway, ("connections", 1), log_in)
    } else {
        log_in()
    }
}

/// The client sends a line of one end to the other: an acknowledgement if it is empty, a RST if there is none.
pub(super) fn forge(lab: &Lab, ends: [SocketAddr; 2], numbers: [u32; 2], line: Option<&str>) {
    let show = format!("ip -br link show {}", lab.client_side());
    let shown = lab.gateway.shell(&show).unwrap().stdout_text();
    let router = shown.split_whitespace().find(|word| word.matches(':').count() == 5).unwrap();
    let [from, to] = ends.map(|end| json!([end.ip(), end.port()]));
    let [seq, ack] = numbers;
    let plan = json!({"router": router, "from": from, "to": to, "seq": seq, "ack": ack, "ttl": TTL,
                      "line": line});
    python(&lab.client, "forge.py", include_bytes!("forge.py"), &[&plan.to_string()]);
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
    with_and_without_fast_path(Topology::PublishedServer, |gateway, scripted| {
        let (lab, daemon) = (&gateway.lab, &gateway.daemon);
        // Otherwise the kernel drops packets from elsewhere.
        let set =
            "for name in all lan wan; do echo 0 > /proc/sys/net/ipv4/conf/$name/rp_filter; done";
        lab.gateway.shell(set).unwrap();
        let discard = "chain input { type filter hook input priority -300; ip ttl < 50 drop; }";
        lab.client.nft(&format!("table inet forged {{ {discard}; }}")).unwrap();
        let steps = [say("EPSV"), gate(), reply(), dial()];
        let end = [say("LIST"), reply(), drain(), reply()];
        let (mut client, connection) = log_in(gateway, &[&steps[..], &end].concat());
        let Connection { client: own, server, next: [client_next, server_next] } = connection;
        // The server's own reply is late.
        mute(&lab.server, "tcp sport 21 @ih,0,24 0x323239");
        client.open_gate();
        wait_for("EPSV", || scripted.lines().iter().any(|line| line == "EPSV"));
        let acknowledged = client_next.wrapping_add("EPSV\r\n".len() as u32);
        let line = format!("229 Entering Extended Passive Mode (|||{FORGED_PORT}|)");
        forge(lab, [server, own], [server_next, acknowledged], Some(&line));
        wait_for("the forged packet", || {
            let status = daemon.status().unwrap();
            let count = |kind: &str| status[kind]["elsewhere"].as_u64().unwrap_or_default();
            count("unread") + count("drops") > 0
        });
        assert_eq!(daemon.open_pinholes().unwrap(), [""; 0]);
        let target = lab.server_address(V4).to_string();
        assert_eq!(connect_in_vain(&lab.client, &target, FORGED_PORT), "silent");
        assert_eq!(gateway.count("pinholes_opened"), 0);
        unmute(&lab.server);
        assert_eq!(client.release().ok().got(12), "the body\r\n");
    });
}
