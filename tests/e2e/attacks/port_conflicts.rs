//! External ports that are in use: the gateway never assigns a port that it translates or listens on to a data
//! connection. Otherwise an initiator that wants the service would reach a client.

use super::scene::{ANNOUNCED, PORT, with_each_back_end};
use crate::common::*;

/// A passive port of the server.
const PASSIVE_PORT: u16 = 50069;

/// Asserts that the service, a server on the second client, answers at [`ANNOUNCED`].
fn assert_service_answers(lab: &Lab) {
    let (host, port) = (lab.gateway.address(V4), ANNOUNCED);
    let plan = json!({"host": host, "port": port, "timeout": 8, "steps": [reply()]});
    assert!(scripted_client(&lab.server, &plan).ok().got(0).starts_with("220"));
}

/// A lab in which `prepare` ran before the daemon started. Its firewall accepts ports 3762 and 8080.
fn scene(topology: Topology, back_end: &str, prepare: impl Fn(&Lab)) -> (Gateway, ScriptedServer) {
    let lab = lab_for(topology, back_end);
    lab.gateway
        .nft(
            "insert rule inet gateway forward tcp dport 8080 accept\n\
             insert rule inet gateway input tcp dport { 3762, 50069 } accept",
        )
        .unwrap();
    prepare(&lab);
    let gateway = Gateway::on(lab, back_end);
    let server = scripted_server(&gateway.lab.server, &json!({"passive_port": PASSIVE_PORT}));
    (gateway, server)
}

/// A client behind masquerade announces port 3762, which a service uses. The gateway must announce another port, and
/// the service must stay reachable.
fn assert_port_not_assigned(gateway: &Gateway, server: &ScriptedServer) {
    let lab = &gateway.lab;
    let announce = || hold_listening(lab, ANNOUNCED, (login(), ask(PORT), gate()));
    let _service = scripted_server(&lab.client2, &json!({"port": 8080}));
    // The ports of rules are claimed when they are read.
    wait_for("another port", || {
        assert_eq!(announce().release().error, None);
        gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        host_port(server.lines().last().unwrap()).1 != ANNOUNCED
    });
    assert_service_answers(lab);
    let client = announce();
    let (address, port) = host_port(server.lines().last().unwrap());
    assert_eq!(address, lab.gateway.address(V4).to_string());
    assert_ne!(port, ANNOUNCED, "{:?}", gateway.daemon.log());
    assert_service_answers(lab);
    assert_eq!(connect(&lab.server, &address, port), "open");
    assert_eq!(client.release().error, None);
}

/// Adds a `rule` for packets that arrive.
fn publish_by(lab: &Lab, rule: &str) {
    let hook = "type nat hook prerouting priority dstnat";
    lab.gateway.nft(&format!("table ip published {{ chain pre {{ {hook}; {rule}; }}; }}")).unwrap();
}

/// Publishes port 8080 of the second client at port 3762 of the outer address.
fn publish(lab: &Lab, how: &str) {
    let to = format!("{}:8080", lab.client2.address(V4));
    if how == "nft" {
        let outside = lab.gateway.address(V4);
        publish_by(lab, &format!("ip daddr {outside} tcp dport 3762 dnat to {to}"));
    } else {
        let rule = "-t nat -A PREROUTING -p tcp --dport 3762 -j DNAT --to-destination";
        lab.gateway.shell(&format!("{how} {rule} {to}")).unwrap();
    }
}

#[test]
fn a_published_port_is_not_assigned_to_a_client() {
    let cases = [
        ("nft", "nftables", false),
        ("iptables-nft", "conntrack", false),
        ("iptables-legacy", "nftables", false),
        // After the start of the daemon.
        ("nft", "nftables", true),
        ("iptables-nft", "nftables", true),
    ];
    thread::scope(|scope| {
        for (how, kind, later) in cases {
            scope.spawn(move || {
                let prepare = |lab: &Lab| {
                    if !later {
                        publish(lab, how)
                    }
                };
                let (gateway, server) = scene(Topology::Masquerade, &back_end(kind), prepare);
                if later {
                    publish(&gateway.lab, how);
                }
                assert_port_not_assigned(&gateway, &server);
            });
        }
    });
}

/// If destination NAT translates the announced port to the server itself, no other port is needed.
#[test]
fn ports_published_for_the_ftp_server_are_not_replaced() {
    with_each_back_end(|back_end| {
        let (gateway, _server) = scene(Topology::PublishedServer, back_end, |lab| {
            let server = lab.server.address(V4);
            publish_by(lab, &format!("tcp dport 50000-50100 dnat to {server}"));
        });
        let session = talk(&gateway.lab, (login(), ask("PASV"))).ok();
        assert_eq!(host_port(session.got(6)).1, PASSIVE_PORT);
    });
}
