//! The passive ports of an encrypted session's server: from when on, for whom, and until when they are open.

use std::{sync::Arc, time::Instant};

use ftp_alg_core::engine::{Event, EventKind, RangeInfo};

use super::{
    dialects::record,
    encryption::{begin_tls, hello},
    *,
};

fn with_ports(scenario: Scenario) -> Scenario {
    let passive_ports = Arc::new([50000..=50100, 60000..=60000]);
    Scenario { policy: Policy { passive_ports, ..scenario.policy.clone() }, ..scenario }
}

fn encrypted(scenario: Scenario) -> Sim {
    let mut sim = Sim::after(with_ports(scenario), AUTH);
    begin_tls(&mut sim);
    sim
}

/// Why ranges were closed.
fn closings(sim: &Sim) -> Vec<&'static str> {
    let closed = sim.events.iter().filter_map(|event| match &event.kind {
        EventKind::RangeClosed(closed) => Some(closed.why),
        _ => None,
    });
    closed.collect()
}

/// Also with implicit TLS, on any control port. Such a session is followed as long as one that has greeted.
#[test]
fn they_are_open_from_the_handshake_to_the_fin_of_the_server() {
    everywhere(|scenario| {
        let t = scenario.translation();
        for (first, begin) in
            [Client, Server].into_iter().flat_map(|first| [(first, AUTH), (first, "")])
        {
            let mut sim = Sim::after(with_ports(scenario.clone()), begin);
            begin_tls(&mut sim);
            let [range] = &sim.kernel.ranges[..] else { panic!("{}", sim.summary()) };
            let expected = RangeInfo {
                initiator: t.client.ip(),
                arrival: t.server_external.ip(),
                target: t.server.ip(),
                source: t.client_external.ip(),
                ports: Arc::new([50000..=50100, 60000..=60000]),
            };
            assert_eq!(*range, expected);
            sim.say(Client, &record(23, b"PASV"));
            // A transfer of half an hour.
            sim.advance(Duration::from_secs(1800));
            assert_eq!(sim.kernel.ranges.len(), 1);
            // Small devices close behind their last command. A server that has closed answers nothing more.
            sim.close(first);
            sim.settle();
            assert_eq!(sim.kernel.ranges.len(), usize::from(first == Client));
            sim.close(first.peer());
            sim.settle();
            assert!(sim.kernel.ranges.is_empty());
            assert_eq!(closings(&sim), ["the control connection ended"]);
        }
    });
}

/// Nor are they open by bytes that are no handshake.
#[test]
fn they_stay_closed_without_a_handshake_of_both_ends() {
    let [client, server] = [Client, Server].map(|side| hello(side, 90));
    let alert = record(21, b"\x02\x28");
    let says = [[&client, &alert], [&alert, &server]];
    for case in cases(
        r"
        never used      < 220 ready > AUTH TLS < 234 go
        refused         < 220 ready > AUTH TLS < 534 no
        plain           < 220 ready
        logged in       < 220 ready > USER joe < 331 password > PASS x < 230 in
        ",
    ) {
        for said in says {
            let mut sim = Sim::after(with_ports(Scenario::default()), case);
            sim.say(Client, said[0]);
            sim.say(Server, said[1]);
            assert!(sim.kernel.ranges.is_empty(), "{case}: {said:?}");
        }
    }
    // A server without the setting.
    let mut sim = Sim::after(Scenario::default(), AUTH);
    begin_tls(&mut sim);
    assert!(sim.kernel.ranges.iter().all(|range| range.ports.is_empty()));
}

/// The next packet of the session opens it, before its answer has passed.
#[test]
fn what_conntrack_has_forgotten_is_closed_until_it_knows_it_again() {
    let mut sim = encrypted(Scenario::default());
    for times in 1..3 {
        sim.kernel.forgot = true;
        sim.advance(Duration::from_secs(1));
        assert!(sim.kernel.ranges.is_empty());
        assert_eq!(closings(&sim), vec!["conntrack has forgotten the control connection"; times]);
        sim.kernel.forgot = false;
        sim.say(Client, &record(23, b"EPSV"));
        assert_eq!(sim.kernel.ranges.len(), 1);
    }
    sim.close_both();
    sim.settle();
    assert!(sim.kernel.ranges.is_empty());
}

/// As while another program has flushed the rules, until they are loaded again, or for half a minute.
#[test]
fn what_the_kernel_refuses_is_opened_later() {
    for is_loaded_again in [false, true] {
        let mut sim = Sim::after(with_ports(Scenario::default()), AUTH);
        sim.kernel.refuses_ranges = true;
        begin_tls(&mut sim);
        // Those that are open, and the events.
        let seen = |sim: &Sim| {
            let is_about_it = |event: &&Event| {
                matches!(event.kind, EventKind::RangeOpened(_) | EventKind::RangeClosed(_))
            };
            (sim.kernel.ranges.len(), sim.events.iter().filter(is_about_it).count())
        };
        assert_eq!(seen(&sim), (0, 0));
        sim.kernel.refuses_ranges = false;
        sim.advance(Duration::from_secs(20));
        assert_eq!(seen(&sim), (0, 0), "too often");
        if is_loaded_again {
            let sessions = &mut sim.daemon.engine().sessions;
            sessions.reopen_ranges(Instant::now(), &mut sim.kernel);
            sim.advance(Duration::from_secs(1));
        } else {
            sim.advance(Duration::from_secs(11));
        }
        assert_eq!(seen(&sim), (1, 1), "{is_loaded_again}");
        sim.close_both();
        sim.settle();
        assert_eq!(seen(&sim), (0, 2), "{is_loaded_again}");
    }
}

/// A session that is forgotten says so, too.
#[test]
fn they_are_closed_with_the_session() {
    let mut sim = encrypted(Scenario::default());
    sim.close(Client);
    sim.advance(Duration::from_secs(200));
    assert_eq!((sim.kernel.ranges.len(), sim.daemon.sessions()), (0, 0));
    assert_eq!(closings(&sim), ["the session was forgotten"]);
}

/// Where `any` port is allowed. The gateway is in front of all ports of a server that it publishes, or is that server.
#[test]
fn any_port_is_open_at_servers_of_others_alone() {
    for (nat, server_interface, is_listed, is_open) in [
        (Nat::Routed, 1, false, true),
        (Nat::Routed, 0, false, false),
        (Nat::PortForward, 1, false, false),
        (Nat::Routed, 1, true, false),
    ] {
        let listed = KnownServer::new("203.0.113.9".parse().unwrap());
        let policy = Policy {
            passive_ports: [1024..=65535].into(),
            passive_ports_are_any: true,
            servers: Vec::from_iter(is_listed.then_some(listed)).into(),
            ..Policy::default()
        };
        let interfaces = [1, server_interface];
        let scenario = Scenario { policy: policy.clone(), interfaces, ..with(nat) };
        let mut sim = Sim::after(scenario, AUTH);
        begin_tls(&mut sim);
        for then in ["at first", "after a reload", "after a restart"] {
            let ports = sim.kernel.ranges.iter().map(|range| range.ports.to_vec());
            let expected = Vec::from_iter(is_open.then_some(1024..=65535));
            assert_eq!(ports.collect::<Vec<_>>(), [expected], "{nat:?} {interfaces:?} {then}");
            sim.reload(policy.clone());
            if then == "after a reload" {
                sim.kernel.ranges.clear();
                sim.crash();
                let now = sim.clock();
                sim.run(|engine, kernel| engine.sessions.reopen_ranges(now, kernel));
            }
        }
    }
}

/// After CCC announcements are read again.
#[test]
fn plain_text_behind_tls_closes_them() {
    let mut sim = encrypted(Scenario::default());
    sim.say(Client, &record(23, b"CCC"));
    sim.say(Server, &record(23, b"200"));
    assert_eq!(sim.kernel.ranges.len(), 1);
    sim.tell(Client, "NOOP\r\n");
    sim.tell(Server, "200 ok\r\n");
    assert!(sim.kernel.ranges.is_empty());
}

/// Of an encrypted session of which packets passed unread, the end is seen if ports are open until then.
#[test]
fn missed_packets_end_the_inspection_of_an_encrypted_session_without_ports() {
    for has_ports in [false, true] {
        let scenario = Scenario { queues_acks: true, ..with(Nat::Routed) };
        let scenario = if has_ports { with_ports(scenario) } else { scenario };
        let mut sim = Sim::after(scenario, AUTH);
        begin_tls(&mut sim);
        let mut unseen = sim.next_segment(Client, b"");
        unseen.ack += 100;
        assert_eq!(sim.forge(Client, &unseen), Some(unseen));
        assert_eq!(sim.kernel.queue_mode != Some(QueueMode::None), has_ports);
        assert_eq!(sim.kernel.ranges.len(), usize::from(has_ports));
        let reset = sim.next_segment(Server, b"");
        sim.forge(Server, &Segment { flags: flags::RST, seq: reset.seq + 100, ..reset });
        assert!(sim.kernel.ranges.is_empty());
        sim.assert_nothing_left();
    }
}
