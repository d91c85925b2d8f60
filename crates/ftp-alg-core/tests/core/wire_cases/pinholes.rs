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
        sim.server.read();
        sim.play("< 200 ok > PASSIVE < PASSIVE 3300");
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
            let forwarded = if require_login { "=> =" } else { "" };
            sim.play(&format!("> ACTIVE 2200 {forwarded} < 530 log in"));
            sim.play(&format!("> PASSIVE < PASSIVE 3300 {forwarded}"));
            assert_eq!(sim.kernel.opened.len(), if require_login { 0 } else { 2 });
        }
    });
}

#[test]
fn replies_open_and_close_the_pinholes_of_their_commands() {
    let pipeline = r"> NOOP\r\nACTIVE 2200\r\nACTIVE 2201\r\nNOOP";
    assert_open(&format!(
        r"
        the later one replaces the first  > ACTIVE 2200 < 200 ok > PASSIVE < PASSIVE 3300 :: 3300
        refused                           > ACTIVE 2200 < 500 no ::
        no data connection                > ACTIVE 2200 < 425 no ::
        refused in lines                  > ACTIVE 2200 < 530-no\r\n text\r\n530 no ::
        a pipeline                        {pipeline} :: 2200 2201
        the reply to its NOOP             {pipeline} < 500 no :: 2200 2201
        to the first announcement         {pipeline} < 500 no < 500 no :: 2201
        to the second, and to its NOOP    {pipeline} < 500 no < 500 no < 200 ok\r\n500 no :: 2201
        before its command                < PASSIVE 3300 => = > NOOP < PASSIVE 3300 => = ::
        a second time                     > PASSIVE < PASSIVE 3300 < PASSIVE 3301 => = :: 3300
        begun before its command          < 229 x\c > PASSIVE <  (|||3300|) ::
        "
    ));
}

/// It is looked at when it has been open for ten seconds (does its data connection wait?), and when it would be renewed.
#[test]
fn each_unused_pinhole_expires_at_its_own_deadline() {
    logged_in_everywhere(|mut sim| {
        let first = sim.now();
        sim.play("> ACTIVE 2200 < 200 ok");
        sim.advance(Duration::from_secs(10));
        sim.play("> ACTIVE 2201");
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
            for announces in ["> ACTIVE 2200 < 200 ok", "> PASSIVE < PASSIVE 3300"] {
                let mut sim = Sim::logged_in(scenario.clone());
                sim.play(&format!("{announces} > RETR x {early}"));
                assert!(connects(&mut sim), "{early}");
                sim.play("< 150 here it comes < 226 done");
                assert!(!connects(&mut sim), "{early}");
                // The next announcement ends it, if it was not used.
                sim.play("> ACTIVE 2201 < 200 ok");
                assert_eq!(sim.kernel.pinholes().len(), 1, "{early}");
            }
        }
    });
}

/// Whether the first pinhole lets its data connection pass.
fn connects(sim: &mut Sim) -> bool {
    let PinholeEnds { initiator, arrival, target, .. } = sim.kernel.opened[0];
    let connected = sim.kernel.connect(initiator, arrival);
    assert!(connected.is_none_or(|to| to == target));
    connected.is_some()
}

/// z/OS connects a minute after `PORT`, and a file may be on a tape. The transfer command has no reply meanwhile, or
/// only a preliminary one.
#[test]
fn a_pinhole_lives_as_long_as_its_transfer_command_is_pending_but_not_for_ever() {
    for reply in ["", "< 150 recalling it", "< 125 wait"] {
        everywhere(|scenario| {
            let script = format!("{LOGIN}> ACTIVE 2200 < 200 ok > RETR x {reply}");
            let after_retr = || Sim::after(scenario.clone(), &script);
            let mut sim = after_retr();
            sim.wait(590);
            assert!(connects(&mut sim), "{reply}");
            sim.wait(31);
            assert!(!connects(&mut sim), "it is renewed, not opened again");

            let mut sim = after_retr();
            sim.wait(45);
            assert_eq!(sim.kernel.pinholes().len(), 1);
            sim.play("< 425 no");
            sim.wait(61);
            assert_eq!(sim.kernel.pinholes(), [], "nobody waits any more");

            let mut sim = after_retr();
            sim.wait(700);
            assert_eq!(sim.kernel.pinholes(), [], "after ten minutes");

            let mut sim = after_retr();
            assert!(connects(&mut sim));
            sim.wait(45);
            assert!(!connects(&mut sim), "it was consumed");
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

/// Later, if the kernel refuses to close them.
#[test]
fn closing_the_control_connection_closes_its_pinholes() {
    for fails in [false, true] {
        logged_in_everywhere(|mut sim| {
            sim.play("> PASSIVE < PASSIVE 3300");
            sim.close(Client);
            sim.settle();
            assert_eq!(sim.kernel.pinholes().len(), 1);
            sim.kernel.failing = fails;
            sim.close(Server);
            sim.settle();
            assert_eq!(sim.kernel.pinholes().len(), usize::from(fails));
            assert_eq!(sim.engine().sessions.list_pinholes().count(), 0);
            assert_eq!(sim.engine().counters().errors > 0, fails);
            sim.kernel.failing = false;
            sim.advance(Duration::from_secs(1));
            assert_eq!(sim.kernel.pinholes(), []);
            sim.assert_nothing_left();
        });
    }
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
                let (announces, initiator, [arrival, target]) = if is_active {
                    ("> ACTIVE 2200 < 200 ok", t.server.ip(), [t.client_external, t.client])
                } else {
                    ("> PASSIVE < PASSIVE 2200", t.client.ip(), [t.server_external, t.server])
                };
                let (arrival, target) = (at(arrival, 2200), at(target, 2200));
                let room = sim.kernel.program.ring_capacity;
                if is_queued {
                    sim.kernel.program.ring_capacity = 0;
                }
                sim.hear(announces);
                sim.kernel.program.ring_capacity = room;
                let source = SocketAddr::new(initiator, 20);
                assert_eq!(sim.kernel.receive_syn(source, arrival, 7), Some(target));
                // While the rules have a pinhole, the connection is not handed over again.
                let ending = if is_queued { "226 done" } else { "425 no connection" };
                sim.hear(&format!("> RETR x < {ending} {announces}"));
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

/// A pinhole is closed and another opened in one transaction: the reason is the kernel's.
#[test]
fn an_announcement_is_refused_while_the_kernel_fails_or_does_not_know_the_connection() {
    everywhere(|scenario| {
        for (before, is_unknown, reason) in [
            ("", true, "conntrack does not know the connection"),
            ("", false, ": Cannot allocate memory (os error 12)"),
            ("> ACTIVE 2200 < 200 ok", false, "close: Cannot allocate memory (os error 12)"),
        ] {
            let mut sim = Sim::after(scenario.clone(), &format!("{LOGIN}{before}"));
            let (opened, errors) = (sim.kernel.opened.len(), sim.engine().counters().errors);
            (sim.kernel.failing, sim.kernel.forgot) = (!is_unknown, is_unknown);
            sim.play("> ACTIVE 2200 => X");
            sim.hear("< 500 no");
            (sim.kernel.failing, sim.kernel.forgot) = (false, false);
            assert_eq!(sim.kernel.opened.len(), opened);
            assert!(sim.engine().counters().errors > errors, "{reason}");
            let last = sim.decisions().pop().unwrap();
            assert!(last.contains(reason), "{last}");
            sim.play("> ACTIVE 2200");
            sim.assert_ends(Client);
        }
    });
}

#[test]
fn a_renewal_that_the_kernel_refuses_is_counted() {
    logged_in_everywhere(|mut sim| {
        sim.play("> ACTIVE 2200 < 200 ok > RETR x");
        sim.kernel.failing = true;
        sim.wait(45);
        assert!(sim.daemon.engine().counters().errors > 0);
    });
}
