//! The effect of policies on the wire: known servers, networks, denied ports and external names.

use std::net::SocketAddr;

use ftp_alg_core::{
    engine::QueueMode,
    policy::{
        AuthTls, ExternalAddress, ExternalAddresses, ForeignAddress, KnownServer, NetworkPolicy,
        Policy,
    },
    session::Side::{Client, Server},
};

use super::{
    everywhere, everywhere_v4,
    support::{
        ftp::{active, at, crossed_out, passive, text},
        scenario::{Nat, Scenario},
        sim::Sim,
    },
    with,
};

/// A scenario with a known server, for which `replace_foreign_address` is set or not.
fn with_known_server(
    mut scenario: Scenario,
    external: Option<ExternalAddress>,
    replace_foreign_address: bool,
) -> Scenario {
    let address = scenario.nat.translation(scenario.v6).server.ip();
    let with_known_server = [KnownServer { address, external, replace_foreign_address }];
    scenario.policy.servers = [&scenario.policy.servers[..], &with_known_server].concat().into();
    scenario
}

fn endpoint(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const FOREIGN: [&str; 6] = [
    "0.0.0.0:5000",
    "127.0.0.1:5000",
    "10.99.99.99:5000",
    "172.17.0.2:5000",
    "100.64.0.9:5000",
    "203.0.113.200:5000",
];

#[test]
fn replace_foreign_address_substitutes_the_servers_own_address() {
    everywhere_v4(|scenario| {
        for foreign in [ForeignAddress::Refuse, ForeignAddress::Allow] {
            for announced in FOREIGN {
                let mut scenario = with_known_server(scenario.clone(), None, true);
                scenario.policy.foreign = foreign;
                let t = scenario.nat.translation(false);
                let mut sim = Sim::logged_in(scenario);
                let heard = sim.exchange("PASV\r\n", &passive(endpoint(announced))).1;
                let seen = at(t.server_external, 5000);
                assert_eq!(heard, passive(seen), "{announced}");
                let [pinhole] = sim.kernel.opened[..] else { panic!("{}", sim.summary()) };
                assert_eq!(
                    pinhole.target,
                    at(t.server, 5000),
                    "the target must never be the announced address"
                );
                assert_eq!((pinhole.initiator, pinhole.arrival), (t.client.ip(), seen));
                let decision = sim.decisions().pop().unwrap();
                let ip = endpoint(announced).ip();
                let why = format!("foreign address {ip} replaced: the server is {}", t.server.ip());
                assert!(decision.ends_with(&why), "{decision}");
            }
        }
    });
}

#[test]
fn a_foreign_address_is_refused_without_replace_foreign_address() {
    everywhere_v4(|mut scenario| {
        scenario.policy.foreign = ForeignAddress::Refuse;
        for announced in FOREIGN {
            let mut sim = Sim::logged_in(with_known_server(scenario.clone(), None, false));
            let line = passive(endpoint(announced));
            let heard = sim.exchange("PASV\r\n", &line).1;
            assert!(heard.starts_with("425 Gateway: not the server's address."), "{heard}");
            assert_eq!(
                (heard.len(), sim.kernel.queue_mode),
                (line.len(), None),
                "sequence numbers change"
            );
            assert_eq!(sim.kernel.opened, []);
            let decision = sim.decisions().pop().unwrap();
            assert!(decision.starts_with("refuse PASV "), "{decision}");
            assert!(
                decision.ends_with(
                    "and no [[server]] with that address has replace-foreign-address = true"
                ),
                "{decision}"
            );
        }
    });
}

#[test]
fn replace_foreign_address_uses_the_configured_external_address() {
    everywhere_v4(|scenario| {
        let external = ExternalAddress::Fixed("198.18.0.2".parse().unwrap());
        for announced in FOREIGN {
            let mut sim = Sim::logged_in(with_known_server(scenario.clone(), Some(external), true));
            let heard = sim.exchange("PASV\r\n", &passive(endpoint(announced))).1;
            assert_eq!(heard, passive(endpoint("198.18.0.2:5000")), "{announced}");
        }
    });
}

#[test]
fn replace_foreign_address_affects_only_foreign_addresses_of_servers() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::logged_in(with_known_server(scenario.clone(), None, true));
        let heard = sim.exchange("PASV\r\n", &passive(at(t.server, 5000))).1;
        assert_eq!(heard, passive(at(t.server_external, 5000)));
        let line = active(if scenario.v6 {
            endpoint("[2001:db8:66::66]:5000")
        } else {
            endpoint("198.18.6.6:5000")
        });
        assert_eq!(text(sim.say(Client, line.as_bytes())), crossed_out(&line));
        let replaced =
            sim.decisions().iter().filter(|decision| decision.contains("foreign address")).count();
        assert_eq!(replaced, 0, "{}", sim.summary());
    });
}

#[test]
fn announcements_are_refused_until_the_external_name_is_resolved() {
    everywhere_v4(|mut scenario| {
        let nat = scenario.nat;
        let t = nat.translation(false);
        scenario.policy.external =
            ExternalAddresses { v4: ExternalAddress::Unresolved, v6: ExternalAddress::Unresolved };
        let mut sim = Sim::logged_in(scenario.clone());
        let line = active(at(t.client, 2200));
        let heard = text(sim.say(Client, line.as_bytes()));
        assert_eq!(heard, if nat.hides_client() { crossed_out(&line) } else { line.clone() });
        sim.say(Server, if nat.hides_client() { b"500 what?\r\n" } else { b"200 ok\r\n" });
        let opened = sim.kernel.opened.len();
        let line227 = passive(at(t.server, 3300));
        let heard = sim.exchange("PASV\r\n", &line227).1;
        let refusal = "425 Gateway: name not resolved yet.";
        let expected = if nat.hides_server() { refusal } else { line227.trim_end() };
        assert_eq!(heard.trim_end(), expected);
        assert_eq!(sim.kernel.opened.len() - opened, usize::from(!nat.hides_server()));

        let fixed: std::net::IpAddr = "198.18.0.1".parse().unwrap();
        scenario.policy.external = fixed.into();
        sim.engine().sessions.set_policy(scenario.policy.clone());
        let heard = text(sim.say(Client, line.as_bytes()));
        let hidden = active(SocketAddr::new(fixed, 2200));
        assert_eq!(heard, if nat.hides_client() { hidden } else { line });
        sim.say(Server, b"200 ok\r\n");
        let heard = sim.exchange("PASV\r\n", &line227).1;
        let hidden = passive(SocketAddr::new(fixed, 3300));
        assert_eq!(heard, if nat.hides_server() { hidden } else { line227 });
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
        let t = scenario.nat.translation(scenario.v6);
        let greeted = |scenario: &Scenario| {
            let mut sim = Sim::new(scenario.clone());
            sim.say(Server, b"220 ready\r\n");
            sim
        };
        let mut sim = greeted(&scenario);
        let line = active(at(t.client, 22));
        assert_eq!(text(sim.say(Client, line.as_bytes())), active(at(t.client_external, 22)));
        assert_eq!(sim.kernel.opened.len(), 1);

        scenario.policy.networks.remove(1);
        let mut sim = greeted(&scenario);
        sim.say(Client, line.as_bytes());
        assert_eq!(sim.kernel.opened, []);
    });
}

#[test]
fn a_denied_port_is_refused_and_never_chosen() {
    everywhere(|mut scenario| {
        scenario.policy.deny_ports = [3306..=3306, 61000..=61002].into();
        scenario.policy.port_range = 61000..=61003;
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::logged_in(scenario.clone());
        let line = active(at(t.client, 3306));
        assert_eq!(text(sim.say(Client, line.as_bytes())), crossed_out(&line));
        sim.say(Server, b"500 what?\r\n");
        let passive_line = passive(at(t.server, 3306));
        let verb = if scenario.v6 { "EPSV\r\n" } else { "PASV\r\n" };
        let heard = sim.exchange(verb, &passive_line).1;
        assert_eq!(heard.trim_end(), "425 Gateway: port is in deny-ports.");
        assert_eq!(sim.kernel.opened, []);
        for decision in sim.decisions() {
            assert!(decision.starts_with("refuse "), "{decision}");
            assert!(decision.ends_with("is in deny-ports"), "{decision}");
        }
        sim.kernel.taken.insert(3307);
        let heard = text(sim.say(Client, active(at(t.client, 3307)).as_bytes()));
        assert_eq!(
            heard,
            active(at(t.client_external, 61003)),
            "it is the only port that is not denied"
        );
    });
}

#[test]
fn a_reload_reselects_the_network_of_each_session() {
    let mut scenario = with(Nat::Masquerade);
    let strict = Policy { auth_tls: AuthTls::Refuse, ..Policy::default() };
    let mut sim = Sim::logged_in(scenario.clone());
    assert_eq!(text(sim.say(Client, b"AUTH TLS\r\n")), "AUTH TLS\r\n");
    sim.say(Server, b"534 no\r\n");
    scenario.policy.networks = vec![network(&["192.168.150.80/32"], &[], true, strict)];
    sim.engine().sessions.set_policy(scenario.policy.clone());
    assert_eq!(text(sim.say(Client, b"AUTH TLS\r\n")), "XXXX XXX\r\n");
    sim.say(Server, b"500 what?\r\n");
    scenario.policy.networks.clear();
    sim.engine().sessions.set_policy(scenario.policy);
    assert_eq!(text(sim.say(Client, b"AUTH TLS\r\n")), "AUTH TLS\r\n");
}

#[test]
fn connections_of_an_uninspected_network_leave_the_queue() {
    everywhere(|mut scenario| {
        let servers = ["203.0.113.9/32", "2001:db8:9::9/128"];
        scenario.policy.networks = vec![network(&[], &servers, false, Policy::default())];
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::new(scenario);
        assert_eq!(sim.kernel.queue_mode, Some(QueueMode::None), "set at the first packet");
        assert_eq!(sim.engine().sessions.count(), 0);
        let packets = sim.engine().counters().packets;
        sim.say(Server, b"220 ready\r\n");
        let line = active(at(t.client, 2200));
        assert_eq!(text(sim.say(Client, line.as_bytes())), line);
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
    sim.say(Server, b"220 ready\r\n");
    sim.say(Client, b"USER joe\r\n");
    assert_eq!((sim.kernel.queue_mode, sim.daemon.engine().sessions.count()), (None, 0));
    sim.kernel.translation = Some(t);
    assert_eq!(text(sim.say(Server, b"331 password\r\n")), "331 password\r\n");
    assert_eq!(sim.kernel.queue_mode, Some(QueueMode::None));
    assert_eq!(sim.engine().counters().errors, 0);
}
