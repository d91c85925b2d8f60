//! Pinholes as expectations: a firewall that accepts `established,related` needs no other line.

use std::time::Duration;

use crate::common::{
    Gateway, active_transfer, connect, connect_in_vain, executable, gated_client, gateway_with,
    host_port, login, reply, say, scripted_server, wait_for,
};
use ftp_alg::kernel::ConntrackAbilities;
use ftp_alg_lab::{
    Admission, ClientProgram, Daemon, Family, Host, Lab, LabSpec, Mode, Server, ServerKind,
    Topology, Transfer,
};
use serde_json::json;

const CONNTRACK: &str = "[pinhole]\nbackend = \"conntrack\"\n";
const PORT: &str = "PORT 192,168,150,80,14,178";

/// A gateway whose firewall accepts what is related, and not our mark.
fn gateway(topology: Topology) -> Gateway {
    gateway_with(topology, CONNTRACK)
}

#[test]
fn an_announcement_is_one_narrow_expectation_for_one_connection() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let server = scripted_server(&lab.server, &json!({}));
    let host = lab.server_address(Family::V4).to_string();
    let mut steps = login();
    steps.extend([say(PORT), reply(), json!({"gate": ""})]);
    let plan = json!({"host": host, "listen": [3762], "steps": steps});
    let client = gated_client(&lab.client, plan);
    let lines = server.lines();
    let (address, port) = host_port(lines.last().unwrap());
    let expected = gateway.daemon.open_pinholes().unwrap();
    assert_eq!(expected.len(), 1, "{expected:?}");
    let seconds: u32 = expected[0].split_whitespace().next().unwrap().parse().unwrap();
    assert!((25..=30).contains(&seconds), "{expected:?}");
    for part in [
        "proto=6 src=198.51.100.10 dst=198.51.100.1 sport=0 ",
        &format!("dport={port} "),
        "mask-src=255.255.255.255 ",
    ] {
        assert!(expected[0].contains(part), "{part} in {expected:?}");
    }
    assert_eq!(gateway.daemon.pinholes().unwrap().len(), 1);

    assert_eq!(connect_in_vain(&lab.outsider, &address, port), "silent", "an off-path attacker");
    assert_eq!(
        connect_in_vain(&lab.server, &address, port.wrapping_add(1)),
        "silent",
        "another port"
    );
    assert_eq!(connect(&lab.server, &address, port), "open", "the server");
    // 0x40000000: what firewalls accept data connections by, and nothing of what it inherits.
    let connections = lab.gateway.connections().unwrap();
    let data = connections.lines().find(|line| line.contains(&format!("dport={port} ")));
    assert!(data.is_some_and(|line| line.contains("mark=1073741824 ")), "{connections}");
    assert_eq!(connect_in_vain(&lab.server, &address, port), "silent", "the server again");
    assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    assert_eq!(client.release().error, None);
}

#[test]
fn auto_takes_expectations_where_the_firewall_accepts_related_alone() {
    let has_helpers = ConntrackAbilities::read().cthelper;
    for admission in [Admission::Related, Admission::Mark] {
        let spec = LabSpec { admission, ..LabSpec::new(Topology::PublishedServer) };
        let lab = Lab::build(spec).unwrap();
        let daemon = Daemon::start(&executable(), &lab.gateway, "").unwrap();
        let (expected, why) = match (admission, has_helpers) {
            (Admission::Mark, true) => {
                ("nftables", "no rule drops data connections that have the mark")
            }
            (Admission::Related, true) => {
                ("conntrack", "a rule may drop data connections that are not related")
            }
            (_, false) => ("nftables", "this kernel has no nfnetlink_cthelper"),
        };
        println!("{admission:?}: auto takes {expected}");
        let status = daemon.status().unwrap();
        assert_eq!(status["backend"], expected);
        assert!(status["backend_reason"].as_str().unwrap().starts_with(why), "{status}");
        let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
        server.put("body", b"bytes").unwrap();
        let address = lab.server_address(Family::V4);
        for mode in [Mode::Active, Mode::Passive] {
            let transfer = Transfer::new(ClientProgram::Curl, &lab.client, &server, address, mode);
            if has_helpers || admission == Admission::Mark {
                assert_eq!(transfer.download("body").unwrap(), b"bytes", "{expected} {mode}");
            }
        }
        let doctor = daemon.ask(&["doctor"]).unwrap();
        assert!(
            doctor.stdout_text().contains(&format!("{expected}: {why}")),
            "{}",
            doctor.stdout_text()
        );
        let passes = has_helpers || admission == Admission::Mark;
        assert_eq!(doctor.status.success(), passes, "{}", doctor.stdout_text());
        // This kernel takes expectations for another helper.
        let advice = "or set backend = \"conntrack\" in [pinhole]";
        assert_eq!(doctor.stdout_text().contains(advice), !passes, "{}", doctor.stdout_text());
    }
}

#[test]
fn an_expectation_ends_with_its_control_connection_and_in_time() {
    for (configuration, end, limit) in [
        ("", vec![say("QUIT"), reply()], 1),
        ("", vec![json!({"abort": true})], 1),
        ("timeout = \"1s\"\n", vec![json!({"gate": ""})], 3),
    ] {
        let gateway = gateway_with(Topology::Routed, &format!("{CONNTRACK}{configuration}"));
        let lab = &gateway.lab;
        let _server = scripted_server(&lab.server, &json!({}));
        let host = lab.server_address(Family::V4).to_string();
        let mut steps = login();
        steps.extend([say(PORT), reply(), json!({"gate": ""})]);
        steps.extend(end.clone());
        let plan = json!({"host": host, "listen": [3762], "steps": steps});
        let client = gated_client(&lab.client, plan);
        let open = gateway.daemon.open_pinholes().unwrap();
        let client = match configuration {
            "" => {
                assert_eq!(open.len(), 1, "{open:?}");
                assert_eq!(client.release().error, None);
                None
            }
            _ => Some(client),
        };
        gateway.daemon.wait_for_no_pinholes(Duration::from_secs(limit)).unwrap();
        assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0]);
        drop(client);
    }
}

#[test]
fn a_firewall_that_accepts_the_mark_will_do_and_the_doctor_knows() {
    let spec = LabSpec { admission: Admission::Mark, ..LabSpec::new(Topology::PublishedServer) };
    let lab = Lab::build(spec).unwrap();
    let daemon = Daemon::start(&executable(), &lab.gateway, CONNTRACK).unwrap();
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    server.put("body", b"bytes").unwrap();
    let address = lab.server_address(Family::V4);
    for mode in [Mode::Active, Mode::Passive] {
        let transfer = Transfer::new(ClientProgram::Curl, &lab.client, &server, address, mode);
        assert_eq!(transfer.download("body").unwrap(), b"bytes", "{mode}");
    }
    let doctor = daemon.ask(&["doctor"]).unwrap();
    assert_eq!(doctor.status.code(), Some(0), "{}", doctor.stdout_text());
}

/// The kernel's FTP helper would: it reads on where the dialogue is not FTP.
#[test]
fn the_helper_that_expectations_need_opens_nothing() {
    let gateway = gateway(Topology::Routed);
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({"extra": {"POST": "230 fine"}}));
    let host = lab.server_address(Family::V4).to_string();
    let mut steps = vec![reply(), say("POST / HTTP/1.1"), reply()];
    steps.extend([say(PORT), reply(), json!({"gate": ""})]);
    let client = gated_client(&lab.client, json!({"host": host, "listen": [3762], "steps": steps}));
    assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    assert_eq!(connect_in_vain(&lab.server, "192.168.150.80", 3762), "silent");
    drop(client);
}

/// The one for scanners acts on an 8-byte request and its answer (nf_conntrack_sane.c): two ends that
/// agree on these would open any port, 22 as here, without a login and to the gateway itself.
#[test]
fn the_helper_for_scanners_sees_no_request_of_theirs() {
    let gateway = gateway(Topology::Routed);
    let lab = &gateway.lab;
    let request = "\0\0\0\u{7}\0\0\0\0";
    let _server =
        scripted_server(&lab.server, &json!({"extra": {request: "\0\0\0\0\0\0\0\u{16}"}}));
    let host = lab.server_address(Family::V4).to_string();
    let pause = json!({"sleep": 0.3});
    let steps = json!([reply(), {"send": request}, pause, {"send": "\r\n"}, pause, {"gate": ""}]);
    let client = gated_client(&lab.client, json!({"host": host, "steps": steps}));
    assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    drop(client);
}

/// The kernel would translate it as the control connection: to the host that announced.
#[test]
fn a_third_host_that_is_allowed_is_the_one_that_is_reached() {
    let configuration = format!("policy.foreign-address = \"allow\"\n{CONNTRACK}");
    let gateway = gateway_with(Topology::Routed, &configuration);
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    let host = lab.server_address(Family::V4).to_string();
    let third = lab.client2.address(Family::V4).to_string();
    let announcement = format!("PORT {},14,178", third.replace('.', ","));
    let mut steps = login();
    steps.extend([say(&announcement), reply(), json!({"gate": ""})]);
    let client = gated_client(&lab.client, json!({"host": host, "listen": [3762], "steps": steps}));
    assert_eq!(gateway.daemon.open_pinholes().unwrap().len(), 1);
    assert_eq!(connect(&lab.server, &third, 3762), "refused", "by the third host: nobody listens");
    assert_eq!(client.release().error, None);
}

#[test]
fn what_was_added_is_removed() {
    // Where nothing is adjusted or was said for three seconds: what is waits for the next start.
    let mut gateway = gateway(Topology::Routed);
    let lab = &gateway.lab;
    let ruleset = lab.gateway.ruleset().unwrap();
    assert!(ruleset.contains("ct helper"), "{ruleset}");
    let _server = scripted_server(&lab.server, &json!({}));
    let host = lab.server_address(Family::V4).to_string();
    let mut steps = login();
    steps.extend([say(PORT), reply(), json!({"gate": ""})]);
    let _client =
        gated_client(&lab.client, json!({"host": host, "listen": [3762], "steps": steps}));
    assert_eq!(gateway.daemon.open_pinholes().unwrap().len(), 1);
    std::thread::sleep(std::time::Duration::from_millis(3500));
    assert!(gateway.daemon.stop().unwrap().success());
    assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    assert!(!lab.gateway.ruleset().unwrap().contains("ftp_alg"));
}

/// Their server sends from port 20, and conntrack remembers each data connection for a while.
#[test]
fn clients_of_one_address_may_use_the_same_active_port_again() {
    const ROUNDS: usize = 3;
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({"active_source": 20}));
    let client = |host: &Host| {
        let transfer = active_transfer(host.address(Family::V4), 3762);
        let round = [vec![json!({"gate": ""})], transfer].concat();
        let steps = [login(), vec![round; ROUNDS].concat()].concat();
        let address = lab.server_address(Family::V4);
        gated_client(host, json!({"host": address, "listen": [3762], "steps": steps}))
    };
    let mut clients = [client(&lab.client), client(&lab.client2)];
    let mut transfers = 0;
    for _ in 0..ROUNDS {
        for client in &mut clients {
            client.open_gate();
            transfers += 1;
            wait_for("the transfer", || {
                gateway.daemon.counter("pinholes_used").unwrap() == transfers
            });
        }
    }
    for client in clients {
        assert_eq!(client.release().error, None, "{}", gateway.daemon.log());
    }
    gateway.assert_tidy();
}
