//! External ports that are in use: the gateway never assigns a port that it translates or listens on to a data
//! connection. Otherwise an initiator that wants the service would reach a client.

use super::scene::{ANNOUNCED, PASSIVE_PORT, PORT, Scene, with_each_back_end};
use crate::common::*;

/// `serve PORT` sends its name to each connection. `get ADDRESS PORT` prints the name that it receives.
const SERVICE: &str = r#"
import socket, sys
if sys.argv[1] == "serve":
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", int(sys.argv[2])))
    listener.listen(8)
    while True:
        connection, _ = listener.accept()
        connection.sendall(b"the service")
        connection.close()
try:
    connection = socket.create_connection((sys.argv[2], int(sys.argv[3])), 8)
    connection.settimeout(8)
    print(connection.recv(100).decode())
except OSError as error:
    print(error)
"#;

fn service(host: &Host, arguments: &[&str]) -> std::process::Command {
    let script = host.write("service.py", SERVICE.as_bytes()).unwrap();
    let mut command = host.command("/usr/bin/python3");
    command.arg(script).args(arguments);
    command
}

fn serve(host: &Host, port: u16) -> BackgroundProcess {
    let command = service(host, &["serve", &port.to_string()]);
    let service = host.start(command, "service").unwrap();
    host.wait_for_port(port, Duration::from_secs(60)).unwrap();
    service
}

fn service_at(from: &Host, address: &str, port: u16) -> String {
    let command = service(from, &["get", address, &port.to_string()]);
    from.finish(command, b"", Duration::from_secs(30)).unwrap().stdout_text().trim().to_owned()
}

/// A lab in which `prepare` ran before the daemon started. Its firewall accepts ports 3762 and 8080.
fn scene(topology: Topology, back_end: &str, prepare: impl Fn(&Lab)) -> Scene {
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
    Scene { server, gateway }
}

/// Waits until a client that announces port 3762 gets another one: the ports of rules are claimed when they are read.
fn wait_for_claim(scene: &Scene) {
    wait_for("another port", || {
        assert_eq!(scene.logged_in(&[say(PORT), reply()]).release().error, None);
        scene.gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        host_port(scene.server.lines().last().unwrap()).1 != ANNOUNCED
    });
}

/// A client behind masquerade announces port 3762, which a service uses. The gateway must announce another port, and
/// the service must stay reachable.
fn assert_port_not_assigned(scene: &Scene) {
    let lab = &scene.gateway.lab;
    let outside = lab.gateway.address(V4).to_string();
    assert_eq!(service_at(&lab.server, &outside, ANNOUNCED), "the service");
    let client = scene.logged_in(&[say(PORT), reply()]);
    let (address, port) = host_port(scene.server.lines().last().unwrap());
    assert_eq!(address, outside);
    assert_ne!(port, ANNOUNCED, "{:?}", scene.gateway.daemon.log());
    assert_eq!(service_at(&lab.server, &outside, ANNOUNCED), "the service");
    assert_eq!(connect(&lab.server, &outside, port), "open");
    assert_eq!(client.release().error, None);
}

/// Publishes port 8080 of the second client at port 3762 of the outer address.
fn publish(lab: &Lab, how: &str) {
    let to = format!("{}:8080", lab.client2.address(V4));
    let outside = lab.gateway.address(V4);
    match how {
        "nft" => lab
            .gateway
            .nft(&format!(
                "table ip published {{ chain pre {{ type nat hook prerouting priority dstnat; \
                 ip daddr {outside} tcp dport 3762 dnat to {to}; }}; }}"
            ))
            .unwrap(),
        "map" => lab
            .gateway
            .nft(&format!(
                "table ip published {{ map services {{ type inet_service : ipv4_addr . inet_service; \
                 elements = {{ 3762 : {} . 8080 }}; }}; \
                 chain pre {{ type nat hook prerouting priority dstnat; \
                 dnat ip to tcp dport map @services; }}; }}",
                lab.client2.address(V4)
            ))
            .unwrap(),
        program => {
            let rule = ["-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "3762"];
            let rule = [&rule[..], &["-j", "DNAT", "--to-destination", &to]].concat();
            lab.gateway.run(program, &rule).unwrap();
        }
    }
}

#[test]
fn a_published_port_is_not_assigned_to_a_client() {
    thread::scope(|scope| {
        for (how, kind) in [
            ("nft", "nftables"),
            ("map", "nftables"),
            ("iptables-nft", "conntrack"),
            ("iptables-legacy", "nftables"),
        ] {
            scope.spawn(move || {
                let back_end = back_end(kind);
                let scene = scene(Topology::Masquerade, &back_end, |lab| publish(lab, how));
                let _service = serve(&scene.gateway.lab.client2, 8080);
                wait_for_claim(&scene);
                assert_port_not_assigned(&scene);
            });
        }
    });
}

#[test]
fn a_port_published_later_is_not_assigned_to_a_client() {
    thread::scope(|scope| {
        for how in ["nft", "iptables-nft"] {
            scope.spawn(move || {
                let scene = scene(Topology::Masquerade, "", |_| {});
                let _service = serve(&scene.gateway.lab.client2, 8080);
                publish(&scene.gateway.lab, how);
                wait_for_claim(&scene);
                assert_port_not_assigned(&scene);
            });
        }
    });
}

/// If destination NAT translates the announced port to the server itself, no other port is needed.
#[test]
fn ports_published_for_the_ftp_server_are_not_replaced() {
    with_each_back_end(|back_end| {
        let scene = scene(Topology::PublishedServer, back_end, |lab| {
            let server = lab.server.address(V4);
            lab.gateway
                .nft(&format!(
                    "table ip published {{ chain pre {{ type nat hook prerouting priority dstnat; \
                     tcp dport 50000-50100 dnat to {server}; }}; }}"
                ))
                .unwrap();
        });
        let lab = &scene.gateway.lab;
        let steps = [&login()[..], &[say("PASV"), reply()]].concat();
        let session = scene.client_of(&lab.client, &json!({}), &steps).release();
        assert_eq!(host_port(session.got(6)).1, PASSIVE_PORT);
    });
}
