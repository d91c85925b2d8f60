//! Servers that announce what they are not, networks with a policy of their own, and servers on
//! another port than 21.

use crate::common::*;

const PASSIVE: u16 = 50069;

fn replacing(server: &str) -> String {
    format!("[[server]]\naddress = \"{server}\"\nreplace-foreign-address = true\n")
}

#[test]
fn a_server_that_announces_its_inside_is_reached_where_the_client_dialled() {
    for (topology, announced) in
        [(Topology::PublishedServer, "127.0.0.1"), (Topology::Masquerade, "172.17.0.2")]
    {
        let server = ftp_alg_lab::LabSpec::new(topology).plan.server.address(V4);
        let configuration =
            format!("[policy]\nforeign-address = \"allow\"\n{}", replacing(&server.to_string()));
        let gateway = gateway_with(topology, &configuration);
        let lab = &gateway.lab;
        let plan = json!({"address": announced, "passive_port": PASSIVE});
        let _server = scripted_server(&lab.server, &plan);
        let dialled = lab.server_address(V4).to_string();
        let what = format!("{topology} {announced}");
        let session = talk(lab, (login(), passive_transfer("PASV"))).ok_in(&what);
        assert_eq!(host_port(session.got(6)).0, dialled, "{what}");
        assert_eq!(session.got(10), "the body\r\n", "{what}");
        let replaced = format!("foreign address {announced} replaced: the server is {server}");
        wait_for(&replaced, || gateway.daemon.log().contains(&replaced));
    }
}

#[test]
fn networks_have_policies_of_their_own() {
    let configuration = "
        policy.min-data-port = 5000
        [[network]]
        clients = [\"192.168.150.81\", \"fd00:150::51\"]
        servers = [\"198.51.100.10\", \"2001:db8:100::/64\"]
        inspect = false
        [[network]]
        clients = [\"192.168.150.64/27\", \"fd00:150::/64\"]
        min-data-port = 3000
    ";
    let (gateway, server) = served(Topology::Masquerade, configuration, json!({}));
    let lab = &gateway.lab;
    let announce = |host: &Host, family, line: &str| {
        let steps = [login(), vec![say(line), reply(), say("NOOP"), reply()]].concat();
        let dialled = lab.server_address(family).to_string();
        let session = scripted_client(host, &json!({"host": dialled, "steps": steps})).ok_in(line);
        (session.got(6).to_owned(), server.lines().into_iter().rev().nth(1).unwrap())
    };
    let (answer, heard) = announce(&lab.client, V4, "PORT 192,168,150,80,14,178");
    assert!(answer.starts_with("200"), "{answer}");
    assert_eq!(host_port(&heard), ("198.51.100.1".to_owned(), 3762));
    let (_, heard) = announce(&lab.client, V6, "EPRT |2|fd00:150::50|3762|");
    assert_eq!(heard, "EPRT |2|2001:db8:100::1|3762|");
    let (answer, _) = announce(&lab.client, V4, "PORT 192,168,150,80,4,1");
    assert!(answer.starts_with('5'), "below its own minimum: {answer}");

    let followed = gateway.count("pinholes_opened");
    let (_, heard) = announce(&lab.client2, V4, "PORT 192,168,150,81,14,178");
    assert_eq!(heard, "PORT 192,168,150,81,14,178", "left alone");
    assert_eq!(gateway.count("pinholes_opened"), followed);
    let packets = gateway.count("packets");
    announce(&lab.client2, V6, "EPRT |2|fd00:150::51|3762|");
    let queued = gateway.count("packets") - packets;
    assert!(queued <= 2, "{queued} packets of a connection that is left alone were queued");
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
            let what = format!("{topology} {port}");
            let server = scripted_server(&lab.server, &json!({"port": port}));
            let active = active_transfer(lab.client.address(V4), 3762);
            let dialled = lab.server_address(V4).to_string();
            let steps = [login(), passive_transfer("PASV"), active].concat();
            let plan = json!({"host": dialled, "port": port, "steps": steps});
            let session = scripted_client(&lab.client, &plan).ok_in(&what);
            assert_eq!(host_port(session.got(6)).0, dialled, "{what}");
            assert_eq!(session.got(10), "the body\r\n", "{what}");
            assert_eq!(session.got(16), "the body\r\n", "{what}");
            drop(server);
        }
        gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        assert_eq!(gateway.count("pinholes_opened"), 4, "{topology}");
    }
}
