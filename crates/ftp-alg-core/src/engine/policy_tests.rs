//! Policies that change while sessions go on.

use super::*;
use crate::policy::KnownServer;

#[test]
fn a_new_policy_closes_the_pinholes_that_it_forbids() {
    let denies = |deny_ports: [std::ops::RangeInclusive<u16>; 1]| Policy {
        deny_ports: deny_ports.into(),
        ..Policy::default()
    };
    for (policy, stays) in [
        (Policy { min_data_port: 3762, ..Policy::default() }, true),
        (denies([3763..=4000]), true),
        (Policy { min_data_port: 3763, ..Policy::default() }, false),
        (denies([3000..=3762]), false),
    ] {
        let mut talk = Conversation::logged_in();
        talk.play("> PORT 192,168,150,80,14,178");
        talk.set_policy(policy);
        let is_open = !talk.gateway.kernel.open.is_empty();
        let is_listed = talk.gateway.engine.sessions.list_pinholes().next().is_some();
        assert_eq!((is_open, is_listed), (stays, stays));
    }
}

#[test]
fn a_policy_that_requires_a_login_closes_the_pinholes_of_sessions_without_one() {
    let requires_login = |require_login| Policy { require_login, ..Policy::default() };
    for (logs_in, stays) in [(false, false), (true, true)] {
        let mut talk = Conversation::masqueraded();
        talk.set_policy(requires_login(false));
        talk.play("< 220 ready");
        if logs_in {
            talk.play("> USER u < 230 ok");
        }
        talk.play("> PORT 192,168,150,80,14,178");
        assert_eq!(talk.gateway.kernel.open.len(), 1);
        talk.set_policy(requires_login(true));
        assert_eq!(!talk.gateway.kernel.open.is_empty(), stays);
    }
}

/// Where `any` port is allowed. The gateway is in front of all ports of a server that it publishes, or is that server.
#[test]
fn any_port_is_open_at_servers_of_others_alone() {
    let published = "198.51.100.1:21".parse().unwrap();
    let listed = KnownServer::new("203.0.113.9".parse().unwrap());
    let cases = [
        ("of others", 1, None, None),
        ("this machine", 0, None, None),
        ("published", 1, Some(published), None),
        ("listed", 1, None, Some(listed)),
    ];
    for (name, server_interface, published, listed) in cases {
        let policy = Policy {
            passive_ports: [1024..=65535].into(),
            passive_ports_are_any: true,
            servers: listed.into_iter().collect(),
            ..Policy::default()
        };
        let engine = Engine::new(policy.clone(), Checksums::Verify);
        let mut talk = Conversation::at(engine, "192.168.150.80", [1, server_interface]);
        let translation = talk.gateway.kernel.translation.as_mut().unwrap();
        translation.server_external = published.unwrap_or(translation.server);
        talk.play("< 220 ready > AUTH TLS < 234 go");
        for (side, hello) in [(Side::Client, 1), (Side::Server, 2)] {
            let record = [&[22, 3, 3, 0, 10, hello, 0, 0, 6][..], b"random"].concat();
            let packet = talk.next_packet(side, &record, 0);
            talk.pass(&packet);
            talk.next[index(side)] += record.len() as u32;
        }
        let opened = |talk: &Conversation| -> Vec<_> {
            talk.gateway.kernel.ranges.iter().map(|range| range.ports.to_vec()).collect()
        };
        let expected = if name == "of others" { vec![1024..=65535] } else { Vec::new() };
        assert_eq!(opened(&talk), std::slice::from_ref(&expected), "{name}");
        // A reload, and a restart.
        talk.set_policy(policy.clone());
        let record = talk.record();
        let kernel =
            FakeKernel { translation: talk.gateway.kernel.translation, ..Default::default() };
        talk.gateway.kernel = kernel;
        let now = talk.now;
        talk.gateway.run(now, |engine, kernel| {
            *engine = Engine::new(policy, Checksums::Verify);
            engine.sessions.restore(std::iter::once(&*record), now, now).unwrap();
            engine.sessions.reopen_ranges(now, kernel);
        });
        assert_eq!(opened(&talk), [expected], "{name}: restored");
    }
}
