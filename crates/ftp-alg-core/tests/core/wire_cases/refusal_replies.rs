//! The client learns at once, and in the order of its commands, why the gateway refused a command or a reply.

use super::*;

const BOUNCE: &str = "PORT 10,99,99,99,21,179\r\n";

/// The scenarios in which a passive reply is refused if nothing can be opened.
fn where_nat_hides_the_server(test: impl Fn(Scenario)) {
    everywhere(|scenario| {
        if scenario.nat.hides_server() {
            test(scenario);
        }
    });
}

#[test]
fn a_refused_passive_reply_becomes_a_425_of_equal_length() {
    where_nat_hides_the_server(|mut scenario| {
        (scenario.client.nagle, scenario.server.nagle) = (false, false);
        let [low, _] = Sim::new(scenario.clone()).passive(22);
        for cut in 0..low.len() {
            let mut sim = Sim::logged_in(scenario.clone());
            let command = sim.passive_command();
            sim.tell(Client, command);
            let heard = sim.tell_cut(Server, &low, cut);
            assert_eq!(heard.trim_end(), "425 Gateway: below min-data-port.", "split at {cut}");
            assert_eq!((heard.len(), sim.timeouts()), (low.len(), 0));
            assert_eq!(sim.kernel.opened, []);
            if cut == 0 {
                assert_eq!(sim.kernel.queue_mode, None, "sequence numbers change");
            }
            // The dialogue continues, and the next reply gets its own verdict.
            let [said, seen] = sim.passive(2200);
            assert_eq!(sim.exchange(command, &said), (command.to_owned(), seen));
            assert_eq!(sim.kernel.opened.len(), 1);
            sim.play("> NOOP < 200 ok");
        }
    });
}

/// If nothing can be opened for a reply, its client may be allowed to go there without us. A client of a server that
/// NAT hides could not use the address.
#[test]
fn a_passive_reply_that_opens_nothing_passes_unless_nat_hides_the_server() {
    let denied = || Policy { deny_ports: [3306..=3306].into(), ..Policy::default() };
    let limited = || Policy { max_pinholes_per_client: 1, ..Policy::default() };
    let known = |sim: &mut Sim| {
        let [said, seen] = sim.passive(2100);
        assert_eq!(sim.exchange(sim.passive_command(), &said).1, seen);
    };
    // What the event says, the policy, the announced port, and what stands in the way.
    type Case<'a> = (&'a str, Policy, u16, &'a dyn Fn(&mut Sim));
    let cases: [Case<'_>; 7] = [
        ("is below min-data-port 1024", Policy::default(), 900, &|_| ()),
        ("is in deny-ports", denied(), 3306, &|_| ()),
        ("the client has 1 pinholes already", limited(), 2200, &known),
        ("no external port is free", Policy::default(), 2200, &|sim| {
            sim.kernel.taken.extend(1024..=u16::MAX);
        }),
        ("open: ", Policy::default(), 2200, &|sim| {
            known(sim);
            sim.kernel.failing = true;
        }),
        ("conntrack does not know the connection", Policy::default(), 2200, &|sim| {
            sim.kernel.forgot = true;
        }),
        ("translation: ", Policy::default(), 2200, &|sim| sim.kernel.failing = true),
    ];
    everywhere(|scenario| {
        for (reason, policy, port, break_it) in cases.clone() {
            let mut sim = Sim::logged_in(Scenario { policy, ..scenario.clone() });
            break_it(&mut sim);
            let (command, [said, _]) = (sim.passive_command(), sim.passive(port));
            let refused = sim.engine().counters().pinholes_refused;
            let heard = sim.exchange(command, &said).1;
            let is_translation_known =
                !reason.starts_with("conntrack") && reason != "translation: ";
            let hides = scenario.nat.hides_server() && is_translation_known;
            let case = format!("{reason}: {:?} {}", scenario.nat, scenario.v6);
            assert_eq!(heard.starts_with("425 Gateway: "), hides, "{case}: {heard}");
            assert!(hides || heard == said, "{case}: {heard}");
            let decision = sim.decisions().pop().unwrap();
            let action = if hides { "refuse" } else { "ignore" };
            assert!(decision.starts_with(action) && decision.contains(reason), "{decision}");
            let refused = sim.engine().counters().pinholes_refused - refused;
            assert_eq!(refused, u64::from(hides), "{case}");
        }
    });
}

/// A policy that refuses foreign addresses of servers, too.
fn strict() -> Policy {
    Policy { foreign_address: ForeignAddress::Refuse, ..Policy::default() }
}

#[test]
fn the_425_states_the_reason_of_the_refusal() {
    let policy = Policy { deny_ports: [3306..=3306].into(), ..strict() };
    for case in cases(
        "
        PASV: 227 ok (198,18,0,9,21,179) for you, my dear client => Gateway: not the server's address.
        PASV: 227 Entering Passive Mode (203,0,113,9,12,234) => Gateway: port is in deny-ports.
        EPSV: 229 Entering Extended Passive Mode (|||1023|) => Gateway: below min-data-port.
        PASV: 227 =198,18,0,9,21,179 => Refused by the gateway: the server announced the address of another host.
        ",
    ) {
        let (dialogue, reason) = case.split_once(" => ").unwrap();
        let (command, line) = dialogue.split_once(": ").unwrap();
        let mut sim = Sim::logged_in(Scenario { policy: policy.clone(), ..with(Nat::PortForward) });
        let heard = sim.exchange(&format!("{command}\r\n"), &format!("{line}\r\n")).1;
        assert_eq!(heard.trim_end(), format!("425 {reason}"));
        // One that has no room for a reason becomes longer.
        assert_eq!(heard.len() != line.len() + 2, reason.starts_with("Refused"));
        sim.play("> NOOP < 200 ok");
        assert_eq!((sim.timeouts(), sim.kernel.opened.len()), (0, 0));
    }
}

/// RFC 959 section 4.2: the last line has the code of the first line, which the client has received already.
#[test]
fn a_refused_multi_line_227_retains_its_reply_code() {
    where_nat_hides_the_server(|scenario| {
        let mut sim = Sim::logged_in(Scenario { v6: false, ..scenario });
        let [last, _] = sim.passive(22);
        let heard = sim.exchange("PASV\r\n", &format!("227-Hello\r\n there\r\n{last}")).1;
        let lines: Vec<_> = heard.lines().map(str::trim_end).collect();
        assert_eq!(lines, ["227-Hello", " there", "227 Gateway: below min-data-port."]);
        sim.play("> NOOP < 200 ok");
    });
}

#[test]
fn the_reply_to_a_refused_command_states_the_gateways_reason() {
    // The command, the server's reply, and what the client gets.
    for case in cases(
        r"
        > PORT 10,99,99,99,21,179 < 500 Unknown command. < 504 Refused by the gateway: the address is not the client's.
        > PORT 10,99,99,99,21,179 < 530 Please login with USER and PASS. < 504 Gateway: not your own address.
        > PORT 10,99,99,99,21,179 < 500-What?\r\n 500 x\r\n500 End < 500-What?\r\n 500 x\r\n500 Refused by the gateway: the address is not the client's.
        > PORT 10,99,99,99,21,179 < 502 < 504 Refused by the gateway: the address is not the client's.
        > PORT 1,2,3 < 500 What? < 501 Refused by the gateway: the address or the port is not valid.
        > EPRT |1|192.168.150.80|22| < 500 What? < 504 Refused by the gateway: the port is below its min-data-port.
        > AUTH TLS < 530 Please login with USER and PASS. < 534 Gateway policy refuses AUTH.
        ",
    ) {
        let said: Vec<_> = messages(case).into_iter().map(|message| message.text).collect();
        let [command, reply, expected] = &said[..] else { panic!("{case}") };
        for cut in 0..reply.len() {
            let policy = Policy { auth_tls: AuthTls::Refuse, ..Policy::default() };
            let mut sim = Sim::logged_in(Scenario { policy, ..without_nagle(Nat::Masquerade) });
            assert_eq!(sim.tell(Client, command), crossed_out(command));
            let heard = sim.tell_cut(Server, reply, cut);
            assert_eq!(heard.trim_end(), expected.trim_end(), "{reply:?} split at {cut}");
            if cut == 0 && heard.len() == reply.len() {
                assert_eq!(sim.kernel.queue_mode, None, "sequence numbers change");
            }
            sim.play("> NOOP < 200 ok");
            sim.assert_inspected();
            sim.play("< 200 ok");
            assert_eq!((sim.timeouts(), sim.kernel.opened.len()), (0, 1));
        }
    }
}

#[test]
fn replies_that_reject_no_command_are_forwarded_unchanged() {
    for reply in [
        "200 fine\r\n",
        "421 Too many. Bye\r\n",
        "350 go on\r\n",
        "550 no such file\r\n",
        "211-Status\r\n500 x\r\n211 End\r\n",
        "500x\r\n500 \r\n",
    ] {
        let mut sim = Sim::logged_in(without_nagle(Nat::Masquerade));
        let heard = sim.exchange(BOUNCE, reply).1;
        let is_refused = reply.starts_with("500");
        assert_eq!(heard.contains("Refused by"), is_refused, "{heard}");
        assert!(is_refused || heard == reply, "{heard}");
    }
}

#[test]
fn thousands_of_refused_commands_each_get_a_reply() {
    let mut sim = Sim::logged_in(without_nagle(Nat::Masquerade));
    let count = 3000;
    for _ in 0..count {
        sim.write(Client, BOUNCE.as_bytes());
    }
    sim.settle();
    assert_eq!(text(sim.server.read()), crossed_out(BOUNCE).repeat(count));
    // The server sends all replies in as few segments as possible. Longer replies would exceed the client's window, so
    // most replies stay unchanged.
    let heard = sim.tell(Server, &"500 what?\r\n".repeat(count));
    assert_eq!(heard.lines().count(), count);
    let known = heard.matches("504 Refused by the gateway: ").count();
    let others = heard.lines().filter(|line| *line == "500 what?").count();
    assert_eq!(known + others, count, "{known} with the gateway's reason, {others} unchanged");
    assert!(known > 8, "{known}");
    sim.play("> NOOP < 200 ok");
}

#[test]
fn the_reply_is_unchanged_if_the_kernel_refuses_sequence_adjustment() {
    let mut sim = Sim::logged_in(without_nagle(Nat::Masquerade));
    sim.tell(Client, BOUNCE);
    sim.kernel.failing = true;
    sim.play("< 500 what?");
    sim.kernel.failing = false;
    let heard = sim.exchange(BOUNCE, "500 what?\r\n").1;
    assert!(heard.starts_with("504 Refused by"), "{heard}");
}

#[test]
fn the_reply_is_unchanged_after_missed_bytes() {
    let mut sim = Sim::new(without_nagle(Nat::Masquerade));
    sim.forget();
    sim.play("< 230 in");
    sim.tell(Client, BOUNCE);
    sim.play("< 500 what? > PASV < 227 Entering Passive Mode (203,0,113,9,0,22)");
}
