//! A gateway with two links to the server: packets of each direction take another one, or routes change.

use std::time::Duration;

use ftp_alg_lab::{Family, Topology};
use serde_json::{Value, json};

use crate::common::{
    GatedClient, Gateway, ScriptedServer, active_transfer, gated_client, gateway_with, login,
    passive_transfer, reply, say, scripted_server,
};

/// The states of the fast path to test with.
const FAST_PATH: [&str; 2] = ["auto", "off"];
const PORT: u16 = 3762;

/// A routed gateway, and a server that is connected to it by `wan`, and by `wan2`.
struct TwoLinks {
    server: ScriptedServer,
    gateway: Gateway,
}

impl TwoLinks {
    fn new(fast_path: &str) -> Self {
        let configuration = format!("[queue]\nfast-path = \"{fast_path}\"\n");
        let gateway = gateway_with(Topology::Routed, &configuration);
        let lab = &gateway.lab;
        let connect = format!(
            "ip link add wan2 type veth peer name eth1 netns {}\n\
             ip address add 198.51.101.1/24 dev wan2\n\
             ip link set wan2 up\n\
             for name in all lan wan wan2; do echo 0 > /proc/sys/net/ipv4/conf/$name/rp_filter; done",
            lab.server.namespace()
        );
        lab.gateway.shell(&connect).unwrap().success().unwrap();
        let connect = "ip address add 198.51.101.10/24 dev eth1\n\
                       ip link set eth1 up\n\
                       for name in all eth0 eth1; do echo 0 > /proc/sys/net/ipv4/conf/$name/rp_filter; done";
        lab.server.shell(connect).unwrap().success().unwrap();
        let server = scripted_server(&lab.server, &json!({}));
        Self { server, gateway }
    }

    /// The server sends to the client by the other link.
    fn reply_by_other_link(&self) {
        let lab = &self.gateway.lab;
        let [client, own] = [&lab.client, &lab.server].map(|host| host.address(Family::V4));
        let route = format!("ip route add {client}/32 via 198.51.101.1 dev eth1 src {own}");
        self.gateway.lab.server.shell(&route).unwrap().success().unwrap();
    }

    /// Changes the gateway's routes to the server's network.
    fn change_routes(&self, change: &str) {
        let server = self.gateway.lab.server.address(Family::V4).to_string();
        let network = server.rsplit_once('.').unwrap().0;
        let lines = change.replace("NETWORK", &format!("{network}.0/24"));
        self.gateway.lab.gateway.shell(&lines).unwrap().success().unwrap();
    }

    /// A client that logs in, runs `steps`, and stays connected.
    fn client(&self, steps: &[Value]) -> GatedClient {
        let lab = &self.gateway.lab;
        let steps = [&login()[..], steps, &[json!({"gate": ""})]].concat();
        let host = lab.server_address(Family::V4);
        gated_client(&lab.client, json!({"host": host, "listen": [PORT], "steps": steps}))
    }

    /// The steps of an active transfer and a passive one.
    fn transfers(&self) -> Vec<Value> {
        let client = self.gateway.lab.client.address(Family::V4);
        [active_transfer(client, PORT), passive_transfer("PASV")].concat()
    }

    fn assert_opened(&self, count: u64) {
        let daemon = &self.gateway.daemon;
        assert_eq!(daemon.counter("pinholes_opened").unwrap(), count, "{}", daemon.log());
        assert_eq!(daemon.counter("errors").unwrap(), 0, "{}", daemon.log());
    }
}

#[test]
fn replies_may_come_by_another_link_to_which_a_route_leads() {
    for fast_path in FAST_PATH {
        let links = TwoLinks::new(fast_path);
        links.change_routes("ip route add NETWORK dev wan2 metric 500");
        links.reply_by_other_link();
        let session = links.client(&links.transfers()).release();
        assert_eq!(session.error, None, "{fast_path}");
        links.assert_opened(2);
    }
}

/// As behind a link of one direction. The dialogue passes, and nothing is opened.
#[test]
fn replies_from_where_no_route_leads_pass_and_open_nothing() {
    let links = TwoLinks::new("auto");
    links.reply_by_other_link();
    let client = links.client(&[say("NOOP"), reply(), say("PASV"), reply(), say("NOOP"), reply()]);
    let session = client.release();
    assert_eq!(session.error, None);
    assert!(session.got(8).starts_with("227 "), "{session:?}");
    links.assert_opened(0);
    let daemon = &links.gateway.daemon;
    assert_eq!(daemon.log().matches("opens nothing: the packets").count(), 1, "{}", daemon.log());
    // One session may meet it by chance, and several do not.
    let problems = || {
        let status = daemon.ask(&["status", "--json"]).unwrap().stdout_text();
        let status: Value = serde_json::from_str(&status).unwrap();
        let problems = status["problems"].as_array().unwrap().clone();
        problems.iter().map(|one| one["name"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(problems(), [""; 0]);
    assert_eq!(links.client(&[say("NOOP"), reply()]).release().error, None);
    assert_eq!(problems(), ["\"no-route\""]);
}

#[test]
fn a_session_survives_a_change_of_routes() {
    for fast_path in FAST_PATH {
        let links = TwoLinks::new(fast_path);
        let steps = [links.transfers(), vec![json!({"gate": ""})], links.transfers()].concat();
        let mut client = links.client(&steps);
        links.change_routes("ip route replace NETWORK dev wan2");
        links.reply_by_other_link();
        client.open_gate();
        let session = client.release();
        assert_eq!(session.error, None, "{fast_path}");
        links.assert_opened(4);
        links.gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        drop(links.server);
    }
}
