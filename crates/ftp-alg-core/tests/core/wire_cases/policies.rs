//! The effect of policies on the wire: known servers, networks, denied ports and external names.

use ftp_alg_core::policy::{ExternalAddresses, NetworkPolicy};

use super::*;

/// A scenario with a known server, for which `replace_foreign_address` is set or not.
fn with_known_server(
    mut scenario: Scenario,
    external: Option<ExternalAddress>,
    replace_foreign_address: bool,
) -> Scenario {
    let address = scenario.nat.translation(scenario.v6).server.ip();
    let server = KnownServer::new(address);
    let with_known_server = [KnownServer { external, replace_foreign_address, ..server }];
    scenario.policy.servers = [&scenario.policy.servers[..], &with_known_server].concat().into();
    scenario
}

fn endpoint(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const FOREIGN: [&str; 5] = [
    "127.0.0.1:5000",
    "10.99.99.99:5000",
    "172.17.0.2:5000",
    "100.64.0.9:5000",
    "203.0.113.200:5000",
];

/// The target is never the announced address. An external address that is configured is announced.
#[test]
fn replace_foreign_address_substitutes_the_servers_own_address() {
    let fixed = ExternalAddress::Fixed("198.18.0.2".parse().unwrap());
    everywhere_v4(|mut scenario| {
        let t = scenario.translation();
        for (foreign, external, replaces) in [
            (ForeignAddress::Refuse, None, true),
            (ForeignAddress::Allow, None, true),
            (ForeignAddress::Pass, Some(fixed), true),
            (ForeignAddress::Refuse, None, false),
        ] {
            scenario.policy.foreign_address = foreign;
            for line in FOREIGN.map(|announced| passive(endpoint(announced))) {
                let known = with_known_server(scenario.clone(), external, replaces);
                let mut sim = Sim::logged_in(known);
                let heard = sim.exchange("PASV\r\n", &line).1;
                if replaces {
                    let seen = at(t.server_external, 5000);
                    let announced =
                        if external.is_some() { endpoint("198.18.0.2:5000") } else { seen };
                    assert_eq!(heard, passive(announced), "{line}");
                    let [pinhole] = sim.kernel.opened[..] else { panic!("{}", sim.summary()) };
                    assert_eq!(pinhole.target, at(t.server, 5000));
                    assert_eq!((pinhole.initiator, pinhole.arrival), (t.client.ip(), seen));
                } else {
                    assert!(heard.starts_with("425 Gateway: not the server's address."), "{heard}");
                    // Sequence numbers do not change.
                    assert_eq!((heard.len(), sim.kernel.queue_mode), (line.len(), None));
                    assert_eq!(sim.kernel.opened, []);
                }
                let decision = sim.decisions().pop().unwrap();
                assert_eq!(decision.starts_with("refuse PASV "), !replaces, "{decision}");
            }
        }
    });
}

#[test]
fn replace_foreign_address_affects_only_foreign_addresses_of_servers() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(with_known_server(scenario.clone(), None, true));
        let [said, seen] = sim.passive(5000);
        assert_eq!(sim.exchange("PASV\r\n", &said).1, seen);
        let line = third(scenario.v6);
        assert_eq!(sim.tell(Client, &line), crossed_out(&line));
        let is_replaced = |decision: &String| decision.contains("foreign address");
        assert!(!sim.decisions().iter().any(is_replaced), "{}", sim.summary());
    });
}

#[test]
fn announcements_are_refused_until_the_external_name_is_resolved() {
    everywhere_v4(|mut scenario| {
        let t = scenario.translation();
        let (hides_client, hides_server) =
            (scenario.nat.hides_client(), scenario.nat.hides_server());
        scenario.policy.external =
            ExternalAddresses { v4: ExternalAddress::Unresolved, v6: ExternalAddress::Unresolved };
        let mut sim = Sim::logged_in(scenario.clone());
        let ([line, _], [line227, _]) = (sim.active(2200), sim.passive(3300));
        sim.play(if hides_client { "> ACTIVE 2200 => X" } else { "> ACTIVE 2200" });
        sim.hear("< 500 what?");
        let opened = sim.kernel.opened.len();
        let heard = sim.exchange("PASV\r\n", &line227).1;
        let refusal = "425 Gateway: name not resolved yet.";
        assert_eq!(heard.trim_end(), if hides_server { refusal } else { line227.trim_end() });
        assert_eq!(sim.kernel.opened.len() - opened, usize::from(!hides_server));

        let fixed: IpAddr = "198.18.0.1".parse().unwrap();
        scenario.policy.external = fixed.into();
        sim.engine().sessions.set_policy(scenario.policy.clone());
        let hidden = active(SocketAddr::new(fixed, 2200));
        let heard = sim.exchange(&line, "200 ok\r\n").0;
        assert_eq!(heard, if hides_client { hidden } else { line });
        let hidden = passive(SocketAddr::new(fixed, 3300));
        let heard = sim.exchange("PASV\r\n", &line227).1;
        assert_eq!(heard, if hides_server { hidden } else { line227.clone() });

        // That of a known server is announced even if NAT does not hide it. The data connection arrives at the address that
        // NAT translates, not at the announced one.
        let external = ExternalAddress::Fixed("198.18.0.2".parse().unwrap());
        let policy = with_known_server(scenario, Some(external), false).policy;
        sim.engine().sessions.set_policy(policy);
        let heard = sim.exchange("PASV\r\n", &line227).1;
        assert_eq!(heard, passive(endpoint("198.18.0.2:3300")));
        let connected = sim.kernel.connect(t.client.ip(), at(t.server_external, 3300));
        assert_eq!(connected, Some(at(t.server, 3300)));
    });
}

/// A network policy for clients or servers of the simulated network.
fn network(clients: &[&str], servers: &[&str], inspect: bool, policy: Policy) -> NetworkPolicy {
    let of = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    NetworkPolicy { clients: of(clients), servers: of(servers), inspect, policy }
}

#[test]
fn a_network_policy_applies_only_to_its_own_connections() {
    everywhere(|mut scenario| {
        let inside = ["192.168.150.0/24", "fd00:150::/64"];
        let open = Policy { min_data_port: 20, require_login: false, ..Policy::default() };
        scenario.policy.networks = vec![
            network(&inside, &["203.0.113.10/32", "2001:db8:a::/48"], true, Policy::default()),
            network(&inside, &[], true, open),
        ];
        let mut sim = Sim::after(scenario.clone(), GREETING);
        let [line, seen] = sim.active(22);
        assert_eq!(sim.tell(Client, &line), seen);
        assert_eq!(sim.kernel.opened.len(), 1);

        scenario.policy.networks.remove(1);
        let mut sim = Sim::after(scenario, GREETING);
        sim.tell(Client, &line);
        assert_eq!(sim.kernel.opened, []);
    });
}

#[test]
fn a_denied_port_is_refused_and_never_chosen() {
    everywhere(|mut scenario| {
        scenario.policy.deny_ports = [3306..=3306, 61000..=61002].into();
        scenario.policy.port_range = 61000..=61003;
        let hides_server = scenario.nat.hides_server();
        let mut sim = Sim::logged_in(scenario);
        sim.play("> ACTIVE 3306 => X");
        sim.hear("< 500 what?");
        let [said, _] = sim.passive(3306);
        let heard = sim.exchange(sim.passive_command(), &said).1;
        let refusal = "425 Gateway: port is in deny-ports.";
        assert_eq!(heard.trim_end(), if hides_server { refusal } else { said.trim_end() });
        assert_eq!(sim.kernel.opened, []);
        sim.kernel.taken.insert(3307);
        // It is the only port that is not denied.
        let ([line, _], [_, seen]) = (sim.active(3307), sim.active(61003));
        assert_eq!(sim.tell(Client, &line), seen);
    });
}

#[test]
fn a_reload_reselects_the_network_of_each_session() {
    let mut scenario = with(Nat::Masquerade);
    let strict = Policy { auth_tls: AuthTls::Refuse, ..Policy::default() };
    let mut sim = Sim::logged_in(scenario.clone());
    sim.play("> AUTH TLS < 534 no");
    scenario.policy.networks = vec![network(&["192.168.150.80/32"], &[], true, strict)];
    sim.engine().sessions.set_policy(scenario.policy.clone());
    assert_eq!(sim.exchange("AUTH TLS\r\n", "500 what?\r\n").0, "XXXX XXX\r\n");
    scenario.policy.networks.clear();
    sim.engine().sessions.set_policy(scenario.policy);
    sim.play("> AUTH TLS");
}

#[test]
fn connections_of_an_uninspected_network_leave_the_queue() {
    everywhere(|mut scenario| {
        let servers = ["203.0.113.9/32", "2001:db8:9::9/128"];
        scenario.policy.networks = vec![network(&[], &servers, false, Policy::default())];
        let mut sim = Sim::new(scenario);
        assert_eq!(sim.kernel.queue_mode, Some(QueueMode::None), "set at the first packet");
        assert_eq!(sim.engine().sessions.count(), 0);
        let packets = sim.engine().counters().packets;
        sim.play(GREETING);
        let [line, _] = sim.active(2200);
        assert_eq!(sim.tell(Client, &line), line);
        assert_eq!(sim.engine().counters().packets, packets, "packets are still queued");
        assert_eq!(sim.kernel.opened, []);
    });
}

#[test]
fn an_uninspected_network_is_forwarded_before_conntrack_knows_the_connection() {
    let mut scenario = with(Nat::Masquerade);
    scenario.policy.networks = vec![network(&["192.168.150.80/32"], &[], false, Policy::default())];
    let t = scenario.nat.translation(false);
    let mut sim = Sim::new(scenario);
    (sim.kernel.queue_mode, sim.kernel.translation) = (None, None);
    sim.play("< 220 ready > USER joe");
    assert_eq!((sim.kernel.queue_mode, sim.daemon.engine().sessions.count()), (None, 0));
    sim.kernel.translation = Some(t);
    sim.play("< 331 password");
    assert_eq!(sim.kernel.queue_mode, Some(QueueMode::None));
    assert_eq!(sim.engine().counters().errors, 0);
}

#[test]
fn a_reload_closes_the_pinholes_that_it_forbids() {
    let denies = |ports| Policy { deny_ports: [ports].into(), ..Policy::default() };
    let lowest = |min_data_port| Policy { min_data_port, ..Policy::default() };
    for (policy, stays) in [
        (lowest(3762), true),
        (denies(3763..=4000), true),
        (lowest(3763), false),
        (denies(3000..=3762), false),
    ] {
        for hands_over in [None, Some(4854)] {
            let mut sim = Sim::logged_in(Scenario { hands_over, ..with(Nat::Masquerade) });
            sim.tell(Client, &sim.active(3762)[0]);
            sim.reload(policy.clone());
            let in_kernel = [sim.kernel.open.len(), sim.kernel.program.open_pinholes().len()];
            let listed = sim.engine().sessions.list_pinholes().count();
            let open = usize::from(stays);
            assert_eq!((in_kernel.iter().sum(), listed), (open, open), "{in_kernel:?}");
        }
    }
}

#[test]
fn a_reload_that_requires_a_login_closes_the_pinholes_of_sessions_without_one() {
    for (login, stays) in [("", 0), ("> USER u < 230 ok", 1)] {
        let mut scenario = with(Nat::Masquerade);
        scenario.policy.require_login = false;
        let mut sim = Sim::after(scenario, &format!("{GREETING}{login}"));
        sim.tell(Client, &sim.active(2200)[0]);
        assert_eq!(sim.kernel.pinholes().len(), 1);
        sim.reload(Policy::default());
        assert_eq!(sim.kernel.pinholes().len(), stays);
    }
}
