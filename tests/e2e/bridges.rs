//! A gateway whose interface is a bridge, with br_netfilter: the kernel runs the prerouting rules at the bridge's port,
//! before the fast path's program sees the packet.

use crate::common::*;

const PORT: u16 = 3762;
const SETTING: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Makes `lan` of the gateway a bridge, with the old one as its port.
fn make_bridge(lab: &Lab) {
    let lines = "set -e
        address=$(ip -4 -o address show dev lan | awk '{print $4; exit}')
        ip link set lan name port
        ip link add lan type bridge
        ip address flush dev port
        ip link set port master lan
        ip link set port up
        ip link set lan up
        ip address add $address dev lan";
    lab.gateway.shell(lines).unwrap();
}

/// Sets whether the rules run at the ports of all bridges. Returns whether the kernel has br_netfilter.
fn set_early_rules(lab: &Lab, is_on: bool) -> bool {
    let lines = format!("[ -e {SETTING} ] && echo {} > {SETTING}", u8::from(is_on));
    lab.gateway.shell(&lines).is_ok()
}

/// Starts a session that logs in, and then has a gate before each of `rounds` rounds of transfers of each mode.
fn start_session(lab: &Lab, rounds: usize) -> (ScriptedServer, GatedClient) {
    let server = scripted_server(&lab.server, &json!({"body": "here it is\r\n"}));
    let address = lab.client.address(V4);
    let round = [
        vec![gate()],
        passive_transfer("PASV"),
        active_transfer(address, PORT),
        passive_transfer("EPSV"),
        active_transfer(address, PORT + 1),
    ]
    .concat();
    (server, hold(lab, (login(), vec![round; rounds].concat())))
}

fn on(topology: Topology) -> Option<Gateway> {
    let gateway = gateway_with(topology, NFTABLES);
    let has_setting = set_early_rules(&gateway.lab, true);
    let state = fast_path(&gateway.daemon)["state"].clone();
    if state != "on" || !has_setting {
        println!("not tried: fast path {state}, br_netfilter {has_setting}");
        return None;
    }
    Some(gateway)
}

/// Waits until the daemon knows that the bridge stays inline.
fn wait_for_inline(daemon: &Daemon) {
    wait_for("the interfaces", || {
        let now = fast_path(daemon);
        // For a moment a new port may still have the program.
        let attached = now["interfaces"].as_array().unwrap();
        now["filtered_early"] == json!(["lan"])
            && !["lan", "port"].iter().any(|name| attached.contains(&json!(name)))
    });
}

/// Has sessions until their lines are on the fast path: the daemon looks for new interfaces each second.
fn wait_for_lines(Gateway { lab, daemon }: &Gateway) {
    wait_for("lines on the fast path", || {
        let (_server, client) = start_session(lab, 2);
        client.release().ok();
        fast_path(daemon)["lines"].as_u64().unwrap() > 8
    });
}

/// A session is open meanwhile, and its connection is on the fast path.
#[test]
fn sessions_follow_changes_of_bridges() {
    for (is_bridge, topology) in [(true, Topology::Masquerade), (false, Topology::PublishedServer)]
    {
        let Some(gateway) = on(topology) else { return };
        let (lab, daemon) = (&gateway.lab, &gateway.daemon);
        if !is_bridge {
            set_early_rules(lab, false);
            make_bridge(lab);
        }
        wait_for_lines(&gateway);
        let (_server, mut client) = until_on_fast_path(&gateway, ("connections", 1), || {
            let (server, mut client) = start_session(lab, 3);
            client.reach_next_gate();
            (server, client)
        });
        if is_bridge {
            make_bridge(lab);
        } else {
            set_early_rules(lab, true);
        }
        wait_for_inline(daemon);
        let before = fast_path(daemon)["lines"].clone();
        client.reach_next_gate();
        assert_eq!(fast_path(daemon)["lines"], before, "{topology}, bridge {is_bridge}");
        client.release().ok_in(format!("{topology}, bridge {is_bridge}"));
        let (_server, client) = start_session(lab, 2);
        client.release().ok_in("a later session");
        assert_eq!(fast_path(daemon)["lines"], before, "{topology}, bridge {is_bridge}");
        let status = daemon.ask(&["status"]).unwrap().stdout_text();
        assert!(status.contains("not at lan: bridge-nf-call-iptables"), "{status}");
        gateway.assert_tidy();
    }
}

/// The session's packets pass neither the bridge nor its ports.
#[test]
fn a_new_port_of_another_bridge_moves_no_pinhole() {
    let Some(gateway) = on(Topology::Masquerade) else { return };
    let (lab, daemon) = (&gateway.lab, &gateway.daemon);
    let change = |lines: &str| lab.gateway.shell(lines).unwrap();
    change("ip link add first up type veth peer name second; ip link add other up type bridge");
    let is_attached =
        |name: &str| fast_path(daemon)["interfaces"].as_array().unwrap().contains(&json!(name));
    wait_for("new interfaces", || is_attached("first") && is_attached("second"));
    let _server = scripted_server(&lab.server, &json!({"body": "here it is\r\n"}));
    let mut transfer = passive_transfer("PASV");
    transfer.insert(2, gate());
    let steps = (login(), ask("NOOP"), transfer);
    let client = until_on_fast_path(&gateway, ("opened", 1), || hold(lab, &steps));
    let before = fast_path(daemon)["handed_back"].clone();
    // When the daemon has found the second port, it has acted upon the first one.
    for port in ["first", "second"] {
        change(&format!("ip link set {port} master other"));
        wait_for("the port", || !is_attached(port));
    }
    let now = fast_path(daemon);
    // A late retransmission hands the connection back as well.
    assert!(now["connections"] == 1 || now["handed_back"] != before, "{now}");
    client.release().ok();
    assert_eq!(fast_path(daemon)["admitted"], 1, "{}", fast_path(daemon));
    gateway.assert_tidy();
}

/// The gateway cannot acknowledge what it holds back, because it has no route. Transfers work all the same.
#[test]
fn an_announcement_in_segments_works_at_a_bridge_without_an_address() {
    const SERVER: &str = "192.168.150.90";
    let lab = lab_behind(FirewallKind::None, Topology::Routed);
    let lines = "set -e
        ip link add br0 type bridge
        for port in lan wan; do ip address flush dev $port; ip link set $port master br0; done
        ip link set br0 up";
    lab.gateway.shell(lines).unwrap();
    if !set_early_rules(&lab, true) {
        println!("not tried: this kernel has no br_netfilter");
        return;
    }
    let lines = format!("ip address flush dev eth0; ip address add {SERVER}/24 dev eth0");
    lab.server.shell(&lines).unwrap();
    lab.gateway
        .nft(
            "table inet gateway {
                chain forward {
                    type filter hook forward priority filter; policy drop;
                    ct state established,related accept
                    ct mark and 0x40000000 != 0 accept
                    tcp dport 21 accept
                }
            }",
        )
        .unwrap();
    let gateway = Gateway::on(lab, "");
    let (lab, daemon) = (&gateway.lab, &gateway.daemon);
    let _server = scripted_server(&lab.server, &json!({"body": "here it is\r\n"}));
    let mut transfer = active_transfer(lab.client.address(V4), PORT);
    transfer[0]["cut"] = json!([2, 9]);
    let steps = [login(), passive_transfer("PASV"), transfer.clone(), transfer].concat();
    let plan = json!({"host": SERVER, "listen": [PORT], "steps": steps});
    scripted_client(&lab.client, &plan).ok();
    assert_eq!(daemon.counter("pinholes_used").unwrap(), 3, "{}", daemon.log());
    let log = daemon.log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert!(warnings.len() <= 1, "{warnings:?}");
    daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
}
