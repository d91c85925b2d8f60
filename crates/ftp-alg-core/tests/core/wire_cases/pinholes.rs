//! When a pinhole opens and closes, and that none is left over.

use ftp_alg_core::engine::PinholeEnds;

use super::*;

#[test]
fn a_pinhole_is_open_before_its_announcement_is_forwarded() {
    logged_in_everywhere(|mut sim| {
        let t = sim.translation;
        let before = sim.server.received();
        sim.write(Client, sim.active(2200)[0].as_bytes());
        while sim.server.received() == before && sim.step() {}
        let (arrival, target) = (at(t.client_external, 2200), at(t.client, 2200));
        let (initiator, source) = (t.server.ip(), t.server_external.ip());
        assert_eq!(sim.kernel.pinholes(), [PinholeEnds { initiator, arrival, target, source }]);
        sim.settle();
        sim.play("< 200 ok");
        sim.exchange(sim.passive_command(), &sim.passive(3300)[0]);
        let (arrival, target) = (at(t.server_external, 3300), at(t.server, 3300));
        let (initiator, source) = (t.client.ip(), t.client_external.ip());
        let later = PinholeEnds { initiator, arrival, target, source };
        assert_eq!(sim.kernel.pinholes(), [later], "the later pinhole must replace the first");
    });
}

#[test]
fn pinholes_need_a_login_unless_the_policy_waives_it() {
    everywhere(|mut scenario| {
        for require_login in [true, false] {
            scenario.policy.require_login = require_login;
            let mut sim = Sim::after(scenario.clone(), "< 220 ready > USER joe < 331 password");
            sim.exchange(&sim.active(2200)[0], "530 log in\r\n");
            sim.exchange(sim.passive_command(), &sim.passive(3300)[0]);
            assert_eq!(sim.kernel.opened.len(), if require_login { 0 } else { 2 });
        }
    });
}

#[test]
fn a_pinhole_is_revoked_if_the_server_refuses_its_announcement() {
    everywhere(|scenario| {
        for reply in ["500 no\r\n", "425 no\r\n", "530-no\r\n text\r\n530 no\r\n"] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.exchange(&sim.active(2200)[0], reply);
            assert_eq!(sim.kernel.opened.len(), 1);
            assert_eq!(sim.kernel.pinholes(), []);
            sim.assert_ends(Client);
        }
    });
}

#[test]
fn replies_are_matched_to_pipelined_announcements_in_order() {
    logged_in_everywhere(|mut sim| {
        let [[first, _], [second, _]] = [2200, 2201].map(|port| sim.active(port));
        sim.tell(Client, &format!("NOOP\r\n{first}{second}NOOP\r\n"));
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
        let mut sim = Sim::logged_in(scenario.clone());
        let [[reply, _], [another, _]] = [3300, 3301].map(|port| sim.passive(port));
        // A reply before its command, a second time, and to another command.
        assert_eq!(sim.tell(Server, &reply), reply);
        sim.exchange("NOOP\r\n", &reply);
        assert_eq!(sim.kernel.opened, []);
        assert_untouched(&sim);
        sim.exchange(sim.passive_command(), &reply);
        assert_eq!(sim.kernel.opened.len(), 1);
        assert_eq!(sim.tell(Server, &another), another);
        assert_eq!(sim.kernel.opened.len(), 1);
        let mut cut = Sim::logged_in(scenario);
        let (first, second) = reply.split_at(6);
        for (side, part) in [(Server, first), (Client, cut.passive_command()), (Server, second)] {
            cut.tell(side, part);
        }
        assert_eq!(cut.kernel.opened, []);
    });
}

/// It is looked at when it has been open for ten seconds (does its data connection wait?), and when it would be renewed.
#[test]
fn each_unused_pinhole_expires_at_its_own_deadline() {
    logged_in_everywhere(|mut sim| {
        let first = sim.now();
        sim.exchange(&sim.active(2200)[0], "200 ok\r\n");
        sim.advance(Duration::from_secs(10));
        sim.tell(Client, &sim.active(2201)[0]);
        let mut seen = Vec::new();
        while let Some(at) = sim.next_deadline() {
            sim.advance(at - sim.now());
            let open = sim.kernel.pinholes().len();
            assert_eq!(sim.engine().sessions.list_pinholes().count(), open);
            seen.push(((at - first).as_secs(), open));
        }
        assert_eq!(seen, [(20, 2), (27, 2), (30, 1), (37, 1), (40, 0)]);
    });
}

/// A reply that is meant for another command, or comes before the 150 (CPython's ftplib has a remark about such
/// servers).
#[test]
fn a_success_before_the_data_connection_leaves_the_pinhole_open() {
    everywhere(|scenario| {
        for early in ["< 200 ok", "< 226 done", "< 250 ok", "< 213 5"] {
            for is_active in [true, false] {
                let mut sim = Sim::logged_in(scenario.clone());
                let t = sim.translation;
                let initiator = if is_active { t.server.ip() } else { t.client.ip() };
                if is_active {
                    sim.exchange(&sim.active(2200)[0], "200 ok\r\n");
                } else {
                    sim.exchange(sim.passive_command(), &sim.passive(3300)[0]);
                }
                sim.play(&format!("> RETR x {early}"));
                let arrival = sim.kernel.opened[0].arrival;
                assert!(sim.kernel.connect(initiator, arrival).is_some(), "{early}");
                sim.play("< 150 here it comes < 226 done");
                assert_eq!(sim.kernel.connect(initiator, arrival), None, "{early}");
                // The next announcement ends it, if it was not used.
                sim.exchange(&sim.active(2201)[0], "200 ok\r\n");
                assert_eq!(sim.kernel.pinholes().len(), 1, "{early}");
            }
        }
    });
}

/// z/OS connects a minute after `PORT`, and a file may be on a tape. The transfer command has no reply meanwhile, or
/// only a preliminary one.
#[test]
fn a_pinhole_lives_as_long_as_its_transfer_command_is_pending_but_not_for_ever() {
    for reply in ["", "< 150 recalling it", "< 125 wait"] {
        everywhere(|scenario| {
            let after_retr = |is_used: bool| {
                let mut sim = Sim::logged_in(scenario.clone());
                sim.exchange(&sim.active(2200)[0], "200 ok\r\n");
                sim.play(&format!("> RETR x {reply}"));
                let PinholeEnds { initiator, arrival, .. } = sim.kernel.opened[0];
                if is_used {
                    assert!(sim.kernel.connect(initiator, arrival).is_some());
                }
                (sim, initiator, arrival)
            };
            let (mut sim, initiator, arrival) = after_retr(false);
            sim.wait(590);
            let connected = sim.kernel.connect(initiator, arrival);
            assert_eq!(connected, Some(at(sim.translation.client, 2200)), "{reply}");
            sim.wait(31);
            let again = sim.kernel.connect(initiator, arrival);
            assert_eq!(again, None, "it is renewed, not opened again");

            let (mut sim, ..) = after_retr(false);
            sim.wait(45);
            assert_eq!(sim.kernel.pinholes().len(), 1);
            sim.play("< 425 no");
            sim.wait(61);
            assert_eq!(sim.kernel.pinholes(), [], "nobody waits any more");

            let (mut sim, ..) = after_retr(false);
            sim.wait(700);
            assert_eq!(sim.kernel.pinholes(), [], "after ten minutes");

            let (mut sim, initiator, arrival) = after_retr(true);
            sim.wait(45);
            assert_eq!(sim.kernel.connect(initiator, arrival), None, "it was consumed");
        });
    }
}

#[test]
fn a_reloaded_pinhole_timeout_applies_to_new_pinholes() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    let long = Policy { pinhole_timeout: Duration::from_secs(300), ..Policy::default() };
    sim.engine().sessions.set_policy(long);
    sim.say(Client, b"PORT 192,168,150,80,9,9\r\n");
    sim.engine().sessions.set_policy(Policy::default());
    sim.say(Client, b"PORT 192,168,150,80,9,10\r\n");
    sim.advance(Duration::from_secs(31));
    let left: Vec<_> =
        sim.engine().sessions.list_pinholes().map(|p| p.ends.target.port()).collect();
    assert_eq!(left, [9 * 256 + 9]);
}

#[test]
fn closing_the_control_connection_closes_its_pinholes() {
    logged_in_everywhere(|mut sim| {
        sim.exchange(sim.passive_command(), &sim.passive(3300)[0]);
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
    logged_in_everywhere(|mut sim| {
        sim.play("> QUIT");
        let mut last = sim.next_segment(Server, b"221 bye\r\n");
        sim.server.write(b"221 bye\r\n");
        sim.close(Server);
        sim.settle();
        sim.close(Client);
        sim.settle();
        last.ack = 1001 + sim.client.sent().len() as u32;
        last.flags |= flags::FIN;
        assert_eq!(sim.forge(Server, &last), Some(last));
        sim.assert_nothing_left();
    });
}

/// The client announces the same endpoint again while the initiator still retransmits its first SYN.
#[test]
fn a_retransmitted_syn_consumes_no_later_pinhole() {
    for is_active in [true, false] {
        for (hands_over, is_queued) in [(None, false), (Some(4854), false), (Some(4854), true)] {
            everywhere(|scenario| {
                let mut sim = Sim::logged_in(Scenario { hands_over, ..scenario });
                let t = sim.translation;
                let (initiator, arrival, target) = match is_active {
                    true => (t.server.ip(), at(t.client_external, 2200), at(t.client, 2200)),
                    false => (t.client.ip(), at(t.server_external, 2200), at(t.server, 2200)),
                };
                let announces = |sim: &mut Sim| match is_active {
                    true => sim.exchange(&active(target), "200 ok\r\n"),
                    false => sim.exchange(sim.passive_command(), &passive(target)),
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
    logged_in_everywhere(|mut sim| {
        let t = sim.translation;
        let seen = at(t.client_external, 2200);
        sim.exchange(&sim.active(2200)[0], "200 ok\r\n");
        assert_eq!(sim.kernel.connect(t.server.ip(), at(seen, 2201)), None);
        assert_eq!(sim.kernel.connect(t.client.ip(), seen), None);
        assert_eq!(sim.kernel.connect(t.server.ip(), seen), Some(at(t.client, 2200)));
        assert_eq!(sim.kernel.connect(t.server.ip(), seen), None);
        sim.play("> LIST < 150 here < 226 done");
        assert_eq!(sim.engine().sessions.list_pinholes().count(), 0);
    });
}

#[test]
fn a_taken_port_is_replaced_from_the_port_range() {
    everywhere(|mut scenario| {
        scenario.policy.port_range = 61000..=61003;
        let mut sim = Sim::logged_in(scenario);
        let t = sim.translation;
        sim.kernel.taken.extend([2200, 61000, 61001, 61003]);
        let ([line, _], [_, seen]) = (sim.active(2200), sim.active(61002));
        assert_eq!(sim.tell(Client, &line), seen);
        let connected = sim.kernel.connect(t.server.ip(), at(t.client_external, 61002));
        assert_eq!(connected, Some(at(t.client, 2200)));
        sim.play("< 200 ok");
        sim.kernel.taken.insert(61002);
        assert_eq!(sim.tell(Client, &line), crossed_out(&line), "no port is free");
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
            let heard = sim.tell(Client, &sim.active(own)[0]);
            let seen: Vec<_> =
                (40032..=40047).filter(|port| heard == sim.active(*port)[1]).collect();
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
fn an_announcement_is_refused_while_the_kernel_fails_or_does_not_know_the_connection() {
    everywhere(|scenario| {
        for is_unknown in [false, true] {
            let mut sim = Sim::logged_in(scenario.clone());
            let [line, seen] = sim.active(2200);
            (sim.kernel.failing, sim.kernel.forgot) = (!is_unknown, is_unknown);
            assert_eq!(sim.tell(Client, &line), crossed_out(&line));
            sim.play("< 500 no");
            (sim.kernel.failing, sim.kernel.forgot) = (false, false);
            assert_eq!(sim.kernel.opened, []);
            assert_eq!(sim.tell(Client, &line), seen);
            sim.assert_ends(Client);
        }
    });
}

/// A pinhole is closed and another opened in one transaction: the reason is the kernel's.
#[test]
fn a_transaction_that_fails_is_the_reason_of_a_refusal() {
    logged_in_everywhere(|mut sim| {
        let [line, _] = sim.active(2200);
        sim.exchange(&line, "200 ok\r\n");
        sim.kernel.failing = true;
        assert_eq!(sim.tell(Client, &line), crossed_out(&line));
        let last = sim.decisions().pop().unwrap();
        assert!(last.ends_with("close: Cannot allocate memory (os error 12)"), "{last}");
    });
}

#[test]
fn a_pinhole_that_the_kernel_did_not_close_is_closed_later() {
    logged_in_everywhere(|mut sim| {
        let [line, _] = sim.active(2200);
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
    logged_in_everywhere(|mut sim| {
        let [line, _] = sim.active(2200);
        sim.exchange(&line, "200 ok\r\n");
        sim.play("> RETR x");
        sim.kernel.failing = true;
        sim.wait(45);
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
        let server = KnownServer::new(t.server.ip());
        scenario.policy.servers = [KnownServer { external: Some(external), ..server }].into();
        let mut sim = Sim::logged_in(scenario.clone());
        let [own, _] = sim.active(2200);
        let is_hidden = scenario.nat.hides_client();
        let seen = if is_hidden { active(SocketAddr::new(fixed, 2200)) } else { own.clone() };
        assert_eq!(sim.exchange(&own, "200 ok\r\n").0, seen);
        let heard = sim.exchange("PASV\r\n", &sim.passive(3300)[0]).1;
        assert_eq!(heard, passive("198.18.0.2:3300".parse().unwrap()));
        // The data connection arrives at the address that NAT translates, not at the announced one.
        let seen = at(t.server_external, 3300);
        assert_eq!(sim.kernel.connect(t.client.ip(), seen), Some(at(t.server, 3300)));
    });
}

#[test]
fn queue_mode_all_is_set_only_with_a_sequence_adjustment() {
    for (nat, mode) in [(Nat::Masquerade, Some(QueueMode::EveryPacket)), (Nat::Routed, None)] {
        let mut sim = Sim::logged_in(with(nat));
        sim.say(Client, b"PORT 192,168,150,80,9,9\r\n");
        assert_eq!(sim.kernel.queue_mode, mode);
    }
}
