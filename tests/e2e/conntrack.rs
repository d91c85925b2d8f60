//! Pinholes as expectations: a firewall that accepts `established,related` needs no other line.

use ftp_alg::kernel::probe::ConntrackAbilities;

use crate::common::*;

const PORT: &str = "PORT 192,168,150,80,14,178";

#[test]
fn an_announcement_is_one_narrow_expectation_for_one_connection() {
    let (gateway, server) = served(Topology::Masquerade, CONNTRACK, json!({}));
    let lab = &gateway.lab;
    let client = hold_listening(lab, 3762, (login(), ask(PORT), gate()));
    let (address, port) = host_port(server.lines().last().unwrap());
    let expected = gateway.daemon.open_pinholes().unwrap();
    assert_eq!(expected.len(), 1, "{expected:?}");
    // Its helper's timeout: the packet does not wait for another one.
    let timeout = if ConntrackAbilities::read().cthelper { 30 } else { 300 };
    let seconds: u32 = expected[0].split_whitespace().next().unwrap().parse().unwrap();
    assert!((1..=timeout).contains(&seconds), "{expected:?}");
    let listed = gateway.daemon.pinholes().unwrap();
    assert!(listed[0]["remaining_seconds"].as_u64().unwrap() <= 30, "{listed:?}");
    let ends = "proto=6 src=198.51.100.10 dst=198.51.100.1 sport=0 ";
    for part in [ends, &format!("dport={port} "), "mask-src=255.255.255.255 "] {
        assert!(expected[0].contains(part), "{part} in {expected:?}");
    }
    assert_eq!(connect(&lab.server, &address, port), "open", "the server");
    // 0x40000000: what firewalls accept data connections by, and nothing of what it inherits.
    let connections = lab.gateway.connections().unwrap();
    let data = connections.lines().find(|line| line.contains(&format!("dport={port} ")));
    assert!(data.is_some_and(|line| line.contains("mark=1073741824 ")), "{connections}");
    client.release().ok();
    gateway.assert_tidy();
}

#[test]
fn auto_takes_expectations_where_the_firewall_accepts_related_alone() {
    let has_helpers = ConntrackAbilities::read().cthelper;
    for (admission, configuration) in
        [(Admission::Related, ""), (Admission::Mark, ""), (Admission::Mark, CONNTRACK)]
    {
        let spec = LabSpec { admission, ..LabSpec::new(Topology::PublishedServer) };
        let gateway = Gateway::on(Lab::build(spec).unwrap(), configuration);
        let (lab, daemon) = (&gateway.lab, &gateway.daemon);
        let (expected, why) = match (admission, has_helpers) {
            _ if !configuration.is_empty() => ("conntrack", ""),
            (Admission::Mark, _) => {
                ("nftables", "no rule drops data connections that have the mark")
            }
            (Admission::Related, true) => {
                ("conntrack", "a rule may drop data connections that are not related")
            }
            (Admission::Related, false) => ("nftables", "this kernel has no nfnetlink_cthelper"),
        };
        let case = format!("{admission:?}, {configuration:?}: {expected}");
        let status = daemon.status().unwrap();
        assert_eq!(status["backend"], expected, "{case}");
        assert!(why.is_empty() || status["backend_reason"].as_str().unwrap().starts_with(why));
        let passes = has_helpers || admission == Admission::Mark;
        let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
        server.put("body", b"bytes").unwrap();
        for mode in MODES.into_iter().filter(|_| passes) {
            let downloaded = curl(lab, &server, mode).download("body").unwrap();
            assert_eq!(downloaded, b"bytes", "{case} {mode}");
        }
        let doctor = doctor(daemon);
        let said = doctor.stdout_text();
        assert!(said.contains(&format!("{expected}: {why}")) || why.is_empty(), "{case}: {said}");
        assert_eq!(doctor.status.success(), passes, "{case}: {said}");
        // This kernel takes expectations for another helper.
        let advice = "or set backend = \"conntrack\" in [pinhole] (announcements are queued: ";
        assert_eq!(said.contains(advice), !passes, "{case}: {said}");
    }
}

/// The kernel would translate it as the control connection: to the host that announced.
#[test]
fn a_third_host_that_is_allowed_is_the_one_that_is_reached() {
    let configuration = format!("policy.foreign-address = \"allow\"\n{CONNTRACK}");
    let (gateway, _server) = served(Topology::Routed, &configuration, json!({}));
    let lab = &gateway.lab;
    let third = lab.client2.address(V4).to_string();
    let announcement = format!("PORT {},14,178", third.replace('.', ","));
    let client = hold(lab, (login(), ask(&announcement), gate()));
    assert_eq!(gateway.daemon.open_pinholes().unwrap().len(), 1);
    assert_eq!(connect(&lab.server, &third, 3762), "refused", "by the third host: nobody listens");
    assert_eq!(client.release().error, None);
}

/// Their server sends from port 20, and conntrack remembers each data connection for a while.
#[test]
fn clients_of_one_address_may_use_the_same_active_port_again() {
    const ROUNDS: usize = 3;
    let server = json!({"active_source": 20});
    let (gateway, _server) = served(Topology::Masquerade, CONNTRACK, server);
    let lab = &gateway.lab;
    let client = |host: &Host| {
        let round = [vec![gate()], active_transfer(host.address(V4), 3762)];
        gated_client(host, plan(lab, (login(), &round, &round, &round)))
    };
    let mut clients = [client(&lab.client), client(&lab.client2)];
    let mut transfers = 0;
    for _ in 0..ROUNDS {
        for client in &mut clients {
            client.open_gate();
            transfers += 1;
            wait_for("the transfer", || gateway.count("pinholes_used") == transfers);
        }
    }
    for client in clients {
        assert_eq!(client.release().error, None, "{}", gateway.daemon.log());
    }
    gateway.assert_tidy();
}
