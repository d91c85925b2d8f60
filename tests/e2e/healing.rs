//! Networks that are left alone, and servers on another port than 21.

use crate::common::*;

#[test]
fn a_network_that_is_left_alone_is_not_queued() {
    let configuration = "
        [[network]]
        clients = [\"192.168.150.81\", \"fd00:150::51\"]
        servers = [\"198.51.100.10\", \"2001:db8:100::/64\"]
        inspect = false
    ";
    let (gateway, server) = served(Topology::Masquerade, configuration, json!({}));
    let lab = &gateway.lab;
    let announce = |host: &Host, family, line: &str| {
        let before = gateway.count("packets");
        let steps = [login(), ask(line), ask("NOOP")].concat();
        let plan = json!({"host": lab.server_address(family), "steps": steps});
        scripted_client(host, &plan).ok_in(line);
        let heard = server.lines().into_iter().rev().nth(1).unwrap();
        (heard, gateway.count("packets") - before)
    };
    let [v4, v6] = ["PORT 192,168,150,81,14,178", "EPRT |2|fd00:150::51|3762|"];
    assert_eq!(announce(&lab.client2, V4, v4).0, v4);
    let (heard, queued) = announce(&lab.client2, V6, v6);
    assert_eq!(heard, v6);
    assert!(queued <= 2, "{queued} packets of a connection that is left alone were queued");
    assert_eq!(gateway.count("pinholes_opened"), 0);
    let (heard, queued) = announce(&lab.client, V6, "EPRT |2|fd00:150::50|3762|");
    assert_eq!(heard, "EPRT |2|2001:db8:100::1|3762|");
    assert!(queued > 2, "{queued}");
}

#[test]
fn servers_on_another_port_are_served_in_both_modes_and_directions() {
    const PORT: u16 = 2121;
    for topology in [Topology::Masquerade, Topology::PublishedServer] {
        let gateway = gateway_with(topology, "control-ports = [21, 2121]\n");
        let lab = &gateway.lab;
        lab.gateway.nft("insert rule inet gateway forward tcp dport 2121 accept").unwrap();
        if topology == Topology::PublishedServer {
            let rules = "add rule inet gateway destination ip daddr 198.51.100.1 tcp dport 2121 \
                         dnat ip to 192.168.150.90";
            lab.gateway.nft(rules).unwrap();
        }
        for port in [21, PORT] {
            let _server = scripted_server(&lab.server, &json!({"port": port}));
            let active = active_transfer(lab.client.address(V4), 3762);
            let mut plan = plan(lab, (login(), passive_transfer("PASV"), active));
            plan["port"] = json!(port);
            let session = scripted_client(&lab.client, &plan).ok_in(format!("{topology} {port}"));
            assert_eq!([10, 16].map(|step| session.got(step)), ["the body\r\n"; 2]);
        }
        gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        assert_eq!(gateway.count("pinholes_opened"), 4, "{topology}");
    }
}
