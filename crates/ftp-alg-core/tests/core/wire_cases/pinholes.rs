//! When a pinhole opens and closes, and that none is left over.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ftp_alg_core::{
    engine::{Pinhole, QueueMode},
    policy::{ExternalAddress, KnownServer, Policy},
    session::Side::{Client, Server},
};

use super::{
    assert_untouched, everywhere, everywhere_v4,
    support::{
        ftp::{ServerModel, active, at, crossed_out, passive, text},
        scenario::{Nat, Scenario},
        sim::Sim,
    },
    with,
};

fn passive_command(scenario: &Scenario) -> &'static str {
    if scenario.v6 { "EPSV\r\n" } else { "PASV\r\n" }
}

#[test]
fn a_pinhole_is_open_before_its_announcement_is_forwarded() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::logged_in(scenario.clone());
        let before = sim.server.received();
        sim.write(Client, active(at(t.client, 2200)).as_bytes());
        while sim.server.received() == before && sim.step() {}
        assert_eq!(
            sim.kernel.pinholes(),
            [Pinhole {
                initiator: t.server.ip(),
                arrival: at(t.client_external, 2200),
                target: at(t.client, 2200),
                source: t.server_external.ip(),
            }]
        );
        sim.settle();
        sim.say(Server, b"200 ok\r\n");
        sim.exchange(passive_command(&scenario), &passive(at(t.server, 3300)));
        assert_eq!(
            sim.kernel.pinholes(),
            [Pinhole {
                initiator: t.client.ip(),
                arrival: at(t.server_external, 3300),
                target: at(t.server, 3300),
                source: t.client_external.ip(),
            }],
            "the later pinhole must replace the first"
        );
    });
}

#[test]
fn pinholes_need_a_login_unless_the_policy_waives_it() {
    everywhere(|mut scenario| {
        let t = scenario.nat.translation(scenario.v6);
        for require_login in [true, false] {
            scenario.policy.require_login = require_login;
            let mut sim = Sim::new(scenario.clone());
            sim.say(Server, b"220 ready\r\n");
            sim.say(Client, b"USER joe\r\n");
            sim.say(Server, b"331 password\r\n");
            sim.exchange(&active(at(t.client, 2200)), "530 log in\r\n");
            sim.exchange(passive_command(&scenario), &passive(at(t.server, 3300)));
            assert_eq!(sim.kernel.opened.len(), if require_login { 0 } else { 2 });
        }
    });
}

#[test]
fn a_refused_login_opens_no_pinhole() {
    let mut sim = Sim::new(with(Nat::Routed));
    sim.say(Server, b"220 ready\r\n");
    sim.exchange("USER joe\r\n", "331 password\r\n");
    sim.exchange("PASS x\r\n", "530 no\r\n");
    sim.exchange("NOOP\r\n", "230 text of the server's choice\r\n");
    sim.exchange("PORT 192,168,150,80,9,9\r\n", "200 ok\r\n");
    assert_eq!(sim.kernel.opened, []);
    assert_untouched(&sim);
}

#[test]
fn a_pinhole_is_revoked_if_the_server_refuses_its_announcement() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        for reply in ["500 no\r\n", "425 no\r\n", "530-no\r\n text\r\n530 no\r\n"] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.exchange(&active(at(t.client, 2200)), reply);
            assert_eq!(sim.kernel.opened.len(), 1);
            assert_eq!(sim.kernel.pinholes(), []);
            sim.close(Client);
            sim.close(Server);
            sim.settle();
            sim.assert_nothing_left();
        }
    });
}

#[test]
fn replies_are_matched_to_pipelined_announcements_in_order() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::logged_in(scenario.clone());
        let line = |port| active(at(t.client, port));
        sim.say(Client, format!("NOOP\r\n{}{}NOOP\r\n", line(2200), line(2201)).as_bytes());
        let open = |sim: &mut Sim| -> Vec<u16> {
            sim.kernel.pinholes().iter().map(|p| p.target.port()).collect()
        };
        assert_eq!(open(&mut sim), [2200, 2201]);
        sim.say(Server, b"500 no\r\n");
        assert_eq!(open(&mut sim), [2200, 2201], "the reply was to the NOOP");
        sim.say(Server, b"500 no\r\n");
        assert_eq!(open(&mut sim), [2201]);
        sim.say(Server, b"200 ok\r\n500 no\r\n");
        assert_eq!(open(&mut sim), [2201]);
    });
}

#[test]
fn a_passive_reply_without_its_command_opens_no_pinhole() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let reply = passive(at(t.server, 3300));
        // A reply before its command, a second time, and to another command.
        let mut sim = Sim::logged_in(scenario.clone());
        assert_eq!(text(sim.say(Server, reply.as_bytes())), reply);
        sim.exchange("NOOP\r\n", &reply);
        assert_eq!(sim.kernel.opened, []);
        assert_untouched(&sim);
        sim.exchange(passive_command(&scenario), &reply);
        assert_eq!(sim.kernel.opened.len(), 1);
        let another = passive(at(t.server, 3301));
        assert_eq!(text(sim.say(Server, another.as_bytes())), another);
        assert_eq!(sim.kernel.opened.len(), 1);
        let mut cut = Sim::logged_in(scenario.clone());
        let (first, second) = reply.split_at(6);
        cut.say(Server, first.as_bytes());
        cut.say(Client, passive_command(&scenario).as_bytes());
        cut.say(Server, second.as_bytes());
        assert_eq!(cut.kernel.opened, []);
    });
}

#[test]
fn an_unused_pinhole_expires() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::logged_in(scenario);
        sim.say(Client, active(at(t.client, 2200)).as_bytes());
        sim.advance(Duration::from_secs(29));
        assert_eq!(
            (sim.kernel.pinholes().len(), sim.daemon.engine().sessions.list_pinholes().count()),
            (1, 1)
        );
        sim.advance(Duration::from_secs(2));
        assert_eq!(
            (sim.kernel.pinholes().len(), sim.daemon.engine().sessions.list_pinholes().count()),
            (0, 0)
        );
    });
}

/// A reply that is meant for another command, or comes before the 150 (CPython's ftplib has a remark about such
/// servers).
#[test]
fn a_success_before_the_data_connection_leaves_the_pinhole_open() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        for early in ["200 ok\r\n", "226 done\r\n", "250 ok\r\n", "213 5\r\n"] {
            for is_active in [true, false] {
                let mut sim = Sim::logged_in(scenario.clone());
                let initiator = if is_active { t.server.ip() } else { t.client.ip() };
                if is_active {
                    sim.exchange(&active(at(t.client, 2200)), "200 ok\r\n");
                } else {
                    sim.exchange(passive_command(&scenario), &passive(at(t.server, 3300)));
                }
                sim.say(Client, b"RETR x\r\n");
                sim.say(Server, early.as_bytes());
                let arrival = sim.kernel.opened[0].arrival;
                assert!(sim.kernel.connect(initiator, arrival).is_some(), "{early}");
                sim.say(Server, b"150 here it comes\r\n");
                sim.say(Server, b"226 done\r\n");
                assert_eq!(sim.kernel.connect(initiator, arrival), None, "{early}");
                // The next announcement ends it, if it was not used.
                sim.say(Client, active(at(t.client, 2201)).as_bytes());
                sim.say(Server, b"200 ok\r\n");
                assert_eq!(sim.kernel.pinholes().len(), 1, "{early}");
            }
        }
    });
}

/// z/OS connects a minute after `PORT`, and a file may be on a tape. The transfer command has no reply meanwhile, or
/// only a preliminary one.
#[test]
fn a_pinhole_lives_as_long_as_its_transfer_command_is_pending_but_not_for_ever() {
    for reply in ["", "150 recalling it\r\n", "125 wait\r\n"] {
        lives_while_its_transfer_is_pending(reply);
    }
}

fn lives_while_its_transfer_is_pending(reply: &str) {
    let pass = |sim: &mut Sim, seconds| {
        (0..seconds).for_each(|_| sim.advance(Duration::from_secs(1)));
    };
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let after_retr = |is_used: bool| {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.exchange(&active(at(t.client, 2200)), "200 ok\r\n");
            sim.say(Client, b"RETR x\r\n");
            if !reply.is_empty() {
                sim.say(Server, reply.as_bytes());
            }
            let arrival = sim.kernel.opened[0].arrival;
            if is_used {
                assert!(sim.kernel.connect(t.server.ip(), arrival).is_some());
            }
            (sim, arrival)
        };
        let (mut sim, arrival) = after_retr(false);
        pass(&mut sim, 590);
        let connected = sim.kernel.connect(t.server.ip(), arrival);
        assert_eq!(connected, Some(at(t.client, 2200)), "{reply}");
        pass(&mut sim, 31);
        assert_eq!(
            sim.kernel.connect(t.server.ip(), arrival),
            None,
            "it is renewed, not opened again"
        );

        let (mut sim, _) = after_retr(false);
        pass(&mut sim, 45);
        assert_eq!(sim.kernel.pinholes().len(), 1);
        sim.say(Server, b"425 no\r\n");
        pass(&mut sim, 61);
        assert_eq!(sim.kernel.pinholes(), [], "nobody waits any more");

        let (mut sim, _) = after_retr(false);
        pass(&mut sim, 700);
        assert_eq!(sim.kernel.pinholes(), [], "after ten minutes");

        let (mut sim, arrival) = after_retr(true);
        pass(&mut sim, 45);
        assert_eq!(sim.kernel.connect(t.server.ip(), arrival), None, "it was consumed");
    });
}

#[test]
fn a_reloaded_pinhole_lifetime_applies_to_new_pinholes() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let long = Policy { pinhole_lifetime: Duration::from_secs(300), ..Policy::default() };
    sim.engine().sessions.set_policy(long);
    sim.say(Client, b"PORT 192,168,150,80,9,9\r\n");
    sim.engine().sessions.set_policy(Policy::default());
    sim.say(Client, b"PORT 192,168,150,80,9,10\r\n");
    sim.advance(Duration::from_secs(31));
    let left: Vec<_> =
        sim.engine().sessions.list_pinholes().map(|p| p.pinhole.target.port()).collect();
    assert_eq!(left, [9 * 256 + 9]);
}

#[test]
fn closing_the_control_connection_closes_its_pinholes() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::logged_in(scenario.clone());
        sim.exchange(passive_command(&scenario), &passive(at(t.server, 3300)));
        sim.close(Client);
        sim.settle();
        assert_eq!(sim.kernel.pinholes().len(), 1);
        sim.close(Server);
        sim.settle();
        assert_eq!(sim.kernel.pinholes(), []);
        sim.assert_nothing_left();
    });
}

#[test]
fn a_retransmission_after_the_close_leaves_no_session() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(scenario.clone());
        sim.say(Client, b"QUIT\r\n");
        sim.server.write(b"221 bye\r\n");
        sim.close(Server);
        sim.settle();
        sim.close(Client);
        sim.settle();
        let last = super::support::segment::Segment {
            seq: 70_001 + sim.server.sent().len() as u32 - 9,
            ack: 1001 + sim.client.sent().len() as u32,
            flags: ftp_alg_core::packet::flags::ACK | ftp_alg_core::packet::flags::FIN,
            window: 1000,
            payload: b"221 bye\r\n".to_vec(),
            ..Default::default()
        };
        assert_eq!(sim.forge(Server, &last), Some(last));
        sim.assert_nothing_left();
    });
}

/// The client announces the same endpoint again while the initiator still retransmits its first SYN.
#[test]
fn a_retransmitted_syn_consumes_no_later_pinhole() {
    for is_active in [true, false] {
        for (hands_over, is_queued) in [(None, false), (Some(5461), false), (Some(5461), true)] {
            everywhere(|scenario| {
                let passive_command = passive_command(&scenario);
                let mut sim = Sim::logged_in(Scenario { hands_over, ..scenario });
                let t = sim.translation;
                let (initiator, arrival, target) = match is_active {
                    true => (t.server.ip(), at(t.client_external, 2200), at(t.client, 2200)),
                    false => (t.client.ip(), at(t.server_external, 2200), at(t.server, 2200)),
                };
                let announces = |sim: &mut Sim| match is_active {
                    true => sim.exchange(&active(target), "200 ok\r\n"),
                    false => sim.exchange(passive_command, &passive(target)),
                };
                let source = SocketAddr::new(initiator, 20);
                let room = sim.kernel.program.ring_capacity;
                if is_queued {
                    sim.kernel.program.ring_capacity = 0;
                }
                announces(&mut sim);
                sim.kernel.program.ring_capacity = room;
                assert_eq!(sim.kernel.receive_syn(source, arrival, 7), Some(target));
                // While the rules have a pinhole, the connection is not handed over again.
                let ending = if is_queued { "226 done\r\n" } else { "425 no connection\r\n" };
                sim.exchange("RETR x\r\n", ending);
                announces(&mut sim);
                for _ in 0..2 {
                    assert_eq!(sim.kernel.receive_syn(source, arrival, 7), None, "it passes");
                }
                assert_eq!(sim.kernel.receive_syn(source, arrival, 8), Some(target));
                assert_eq!(sim.kernel.receive_syn(source, arrival, 9), None);
            });
        }
    }
}

#[test]
fn a_pinhole_admits_exactly_one_connection() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::logged_in(scenario);
        let seen = at(t.client_external, 2200);
        sim.exchange(&active(at(t.client, 2200)), "200 ok\r\n");
        assert_eq!(sim.kernel.connect(t.server.ip(), at(seen, 2201)), None);
        assert_eq!(sim.kernel.connect(t.client.ip(), seen), None);
        assert_eq!(sim.kernel.connect(t.server.ip(), seen), Some(at(t.client, 2200)));
        assert_eq!(sim.kernel.connect(t.server.ip(), seen), None);
        sim.exchange("LIST\r\n", "150 here\r\n");
        sim.say(Server, b"226 done\r\n");
        assert_eq!(sim.engine().sessions.list_pinholes().count(), 0);
    });
}

#[test]
fn a_client_cannot_exceed_max_pinholes_per_client() {
    let policy = Policy { max_pinholes_per_client: 3, ..Policy::default() };
    let mut sim = Sim::logged_in(Scenario { policy, ..with(Nat::Masquerade) });
    let line = |low| format!("PORT 192,168,150,80,9,{low}\r\n");
    for low in 1..=3 {
        assert_eq!(
            text(sim.say(Client, line(low).as_bytes())),
            format!("PORT 198,51,100,1,9,{low}\r\n")
        );
    }
    assert_eq!(text(sim.say(Client, line(4).as_bytes())), crossed_out(&line(4)));
    sim.say(Server, b"200 ok\r\n200 ok\r\n500 no\r\n");
    assert_eq!(
        sim.kernel.pinholes().len(),
        1,
        "two are replaced, one is revoked: {}",
        sim.summary()
    );
    sim.say(Server, b"500 no\r\n");
    assert_eq!(text(sim.say(Client, line(5).as_bytes())), "PORT 198,51,100,1,9,5\r\n");
}

#[test]
fn a_session_cannot_exceed_its_pinhole_limit() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let mut server = ServerModel::new("203.0.113.9".parse().unwrap(), 5000);
    let lines: String = (1..=20).map(|low| format!("PORT 192,168,150,80,9,{low}\r\n")).collect();
    sim.write(Client, lines.as_bytes());
    sim.converse(&mut server);
    let passed = server.lines.iter().filter(|line| line.starts_with("PORT")).count();
    assert_eq!((passed, server.lines.len()), (8, 20));
}

#[test]
fn sessions_beyond_max_sessions_are_forwarded_unchanged() {
    let policy = Policy { max_sessions: 0, ..Policy::default() };
    let mut sim = Sim::logged_in(Scenario { policy, ..with(Nat::Masquerade) });
    let line = b"PORT 192,168,150,80,9,1\r\n";
    assert_eq!(sim.say(Client, line), line);
    assert_untouched(&sim);
}

#[test]
fn a_taken_port_is_replaced_from_the_port_range() {
    everywhere(|mut scenario| {
        scenario.policy.port_range = 61000..=61003;
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::logged_in(scenario);
        sim.kernel.taken.extend([2200, 61000, 61001, 61003]);
        let heard = text(sim.say(Client, active(at(t.client, 2200)).as_bytes()));
        let seen = at(t.client_external, 61002);
        assert_eq!(heard, active(seen));
        assert_eq!(sim.kernel.connect(t.server.ip(), seen), Some(at(t.client, 2200)));
        sim.say(Server, b"200 ok\r\n");
        sim.kernel.taken.insert(61002);
        let line = active(at(t.client, 2200));
        let heard = text(sim.say(Client, line.as_bytes()));
        assert_eq!(heard, crossed_out(&line), "no port is free");
    });
}

/// As behind a provider that forwards a set of ports (MAP-E).
#[test]
fn a_client_whose_port_is_translated_into_a_set_announces_no_port_outside_of_it() {
    everywhere(|mut scenario| {
        scenario.policy.port_sets = [61000..=61003, 40032..=40047].into();
        let t = scenario.nat.translation(scenario.v6);
        for own in [2200, 40033] {
            let mut sim = Sim::logged_in(scenario.clone());
            let heard = text(sim.say(Client, active(at(t.client, own)).as_bytes()));
            let seen: Vec<_> = (40032..=40047)
                .filter(|port| heard == active(at(t.client_external, *port)))
                .collect();
            if t.client == t.client_external {
                assert_eq!(heard, active(at(t.client, own)));
            } else {
                assert_eq!(seen.len(), 1, "{heard}");
                assert!(own == 2200 || seen == [own], "{heard}");
            }
        }
    });
}

#[test]
fn a_kernel_error_refuses_the_announcement() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::logged_in(scenario.clone());
        sim.kernel.failing = true;
        let line = active(at(t.client, 2200));
        assert_eq!(text(sim.say(Client, line.as_bytes())), crossed_out(&line));
        sim.say(Server, b"500 no\r\n");
        sim.kernel.failing = false;
        assert_eq!(sim.kernel.opened, []);
        let rewritten = text(sim.say(Client, line.as_bytes()));
        assert_eq!(rewritten, active(at(t.client_external, 2200)));
        sim.close(Client);
        sim.close(Server);
        sim.settle();
        sim.assert_nothing_left();
    });
}

/// A pinhole is closed and another opened in one transaction: the reason is the kernel's.
#[test]
fn a_transaction_that_fails_is_the_reason_of_a_refusal() {
    everywhere(|scenario| {
        let line = active(at(scenario.nat.translation(scenario.v6).client, 2200));
        let mut sim = Sim::logged_in(scenario);
        sim.exchange(&line, "200 ok\r\n");
        sim.kernel.failing = true;
        assert_eq!(text(sim.say(Client, line.as_bytes())), crossed_out(&line));
        let last = sim.decisions().pop().unwrap();
        assert!(last.ends_with("close: Cannot allocate memory (os error 12)"), "{last}");
    });
}

#[test]
fn a_pinhole_that_the_kernel_did_not_close_is_closed_later() {
    everywhere(|scenario| {
        let line = active(at(scenario.nat.translation(scenario.v6).client, 2200));
        let mut sim = Sim::logged_in(scenario);
        sim.exchange(&line, "200 ok\r\n");
        sim.kernel.failing = true;
        sim.close(Client);
        sim.close(Server);
        sim.settle();
        assert_eq!(sim.kernel.pinholes().len(), 1);
        assert_eq!(sim.daemon.engine().sessions.list_pinholes().count(), 0);
        assert!(sim.daemon.engine().counters().errors > 0);
        sim.kernel.failing = false;
        sim.advance(Duration::from_secs(1));
        assert_eq!(sim.kernel.pinholes(), []);
        sim.assert_nothing_left();
    });
}

#[test]
fn a_renewal_that_the_kernel_refuses_is_counted() {
    everywhere(|scenario| {
        let line = active(at(scenario.nat.translation(scenario.v6).client, 2200));
        let mut sim = Sim::logged_in(scenario);
        sim.exchange(&line, "200 ok\r\n");
        sim.say(Client, b"RETR x\r\n");
        sim.kernel.failing = true;
        (0..45).for_each(|_| sim.advance(Duration::from_secs(1)));
        assert!(sim.daemon.engine().counters().errors > 0);
    });
}

#[test]
fn a_fixed_external_address_is_announced() {
    everywhere_v4(|mut scenario| {
        let fixed: IpAddr = "198.18.0.1".parse().unwrap();
        scenario.policy.external = fixed.into();
        let t = scenario.nat.translation(false);
        let external = ExternalAddress::Fixed("198.18.0.2".parse().unwrap());
        scenario.policy.servers = [KnownServer {
            address: t.server.ip(),
            external: Some(external),
            replace_foreign_address: false,
        }]
        .into();
        let mut sim = Sim::logged_in(scenario.clone());
        let heard = text(sim.say(Client, active(at(t.client, 2200)).as_bytes()));
        let named: SocketAddr = SocketAddr::new(fixed, 2200);
        let hidden = scenario.nat.hides_client();
        assert_eq!(heard, active(if hidden { named } else { at(t.client, 2200) }));
        sim.say(Server, b"200 ok\r\n");
        let heard = sim.exchange("PASV\r\n", &passive(at(t.server, 3300))).1;
        assert_eq!(heard, passive("198.18.0.2:3300".parse().unwrap()));
        // The data connection arrives at the address that NAT translates, not at the announced one.
        let seen = at(t.server_external, 3300);
        assert_eq!(sim.kernel.connect(t.client.ip(), seen), Some(at(t.server, 3300)));
    });
}

#[test]
fn queue_mode_all_is_set_only_with_a_sequence_adjustment() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    sim.say(Client, b"PORT 192,168,150,80,9,9\r\n");
    assert_eq!(sim.kernel.queue_mode, Some(QueueMode::All));
    let mut sim = Sim::logged_in(with(Nat::Routed));
    sim.say(Client, b"PORT 192,168,150,80,9,9\r\n");
    assert_eq!(sim.kernel.queue_mode, None);
}
