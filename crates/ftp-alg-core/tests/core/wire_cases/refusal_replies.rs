//! The client learns at once, and in the order of its commands, why the gateway refused a command or a reply.

use ftp_alg_core::{
    policy::{AuthTls, ForeignAddress, KnownServer, Policy},
    session::Side::{Client, Server},
};

use super::{
    assert_untouched, everywhere, everywhere_v4,
    support::{
        ftp::{active, at, crossed_out, passive, text},
        scenario::{Nat, Scenario},
        sim::Sim,
        tcp::Settings,
    },
    with,
};

const BOUNCE: &str = "PORT 10,99,99,99,21,179\r\n";

/// A scenario in which each write is a segment of its own.
fn without_nagle(nat: Nat) -> Scenario {
    let settings = Settings { nagle: false, ..Settings::default() };
    Scenario { client: settings.clone(), server: Settings { isn: 70_000, ..settings }, ..with(nat) }
}

/// Sends `reply` from the server as two segments, split at `cut`. Returns what the client receives.
fn received_reply(sim: &mut Sim, reply: &str, cut: usize) -> String {
    let (first, rest) = reply.as_bytes().split_at(cut);
    for piece in [first, rest] {
        sim.write(Server, piece);
        sim.settle();
    }
    text(sim.client.read())
}

fn verb(scenario: &Scenario) -> &'static str {
    if scenario.v6 { "EPSV\r\n" } else { "PASV\r\n" }
}

#[test]
fn a_refused_passive_reply_becomes_a_425_of_equal_length() {
    everywhere(|mut scenario| {
        (scenario.client.nagle, scenario.server.nagle) = (false, false);
        let t = scenario.nat.translation(scenario.v6);
        let low = passive(at(t.server, 22));
        for cut in 0..low.len() {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.say(Client, verb(&scenario).as_bytes());
            let heard = received_reply(&mut sim, &low, cut);
            assert_eq!(heard.trim_end(), "425 Gateway: below min-data-port.", "split at {cut}");
            assert_eq!((heard.len(), sim.timeouts()), (low.len(), 0));
            assert_eq!(sim.kernel.opened, []);
            if cut == 0 {
                assert_eq!(sim.kernel.queue_mode, None, "sequence numbers change");
            }
            // The dialogue continues, and the next reply gets its own verdict.
            let (asked, heard) = sim.exchange(verb(&scenario), &passive(at(t.server, 2200)));
            assert_eq!((&*asked, heard), (verb(&scenario), passive(at(t.server_external, 2200))));
            assert_eq!(sim.kernel.opened.len(), 1);
            assert_eq!(sim.exchange("NOOP\r\n", "200 ok\r\n").1, "200 ok\r\n");
        }
    });
}

/// A policy that refuses foreign addresses of servers, too.
fn strict() -> Policy {
    Policy { foreign: ForeignAddress::Refuse, ..Policy::default() }
}

#[test]
fn a_short_refused_227_becomes_a_longer_425() {
    let mut sim = Sim::logged_in(Scenario { policy: strict(), ..with(Nat::PortForward) });
    let heard = sim.exchange("PASV\r\n", "227 =198,18,0,9,21,179\r\n").1;
    let expected =
        "425 Refused by the gateway: the server announced the address of another host.\r\n";
    assert_eq!(heard, expected);
    assert_eq!(sim.exchange("NOOP\r\n", "200 ok\r\n"), ("NOOP\r\n".into(), "200 ok\r\n".into()));
    assert_eq!((sim.timeouts(), sim.kernel.opened.len()), (0, 0));
}

#[test]
fn the_425_states_the_reason_of_the_refusal() {
    for (line, policy, reason) in [
        (
            "227 ok (198,18,0,9,21,179) for you, my dear client\r\n",
            strict(),
            "not the server's address.",
        ),
        (
            "227 Entering Passive Mode (203,0,113,9,12,234)\r\n",
            Policy { deny_ports: [3306..=3306].into(), ..Policy::default() },
            "port is in deny-ports.",
        ),
        (
            "229 Entering Extended Passive Mode (|||1023|)\r\n",
            Policy::default(),
            "below min-data-port.",
        ),
    ] {
        let mut sim = Sim::logged_in(Scenario { policy, ..with(Nat::Masquerade) });
        let verb = if line.starts_with("229") { "EPSV\r\n" } else { "PASV\r\n" };
        let heard = sim.exchange(verb, line).1;
        assert_eq!(heard.trim_end(), format!("425 Gateway: {reason}"));
        assert_eq!(heard.len(), line.len());
    }
}

#[test]
fn the_425_states_that_the_pinhole_limit_is_reached() {
    let policy = Policy { max_pinholes_per_client: 1, ..Policy::default() };
    let mut sim = Sim::logged_in(Scenario { policy, ..with(Nat::Masquerade) });
    let reply = |port| passive(at(sim.translation.server, port));
    let [first, second] = [2200, 2201].map(reply);
    assert_eq!(sim.exchange("PASV\r\n", &first).1, first);
    let heard = sim.exchange("PASV\r\n", &second).1;
    assert_eq!(heard.trim_end(), "425 Gateway: too many data ports.");
}

/// RFC 959 section 4.2: the last line has the code of the first line, which the client has received already.
#[test]
fn a_refused_multi_line_227_retains_its_reply_code() {
    everywhere_v4(|scenario| {
        let t = scenario.nat.translation(false);
        let last = passive(at(t.server, 22));
        let mut sim = Sim::logged_in(scenario);
        let heard = sim.exchange("PASV\r\n", &format!("227-Hello\r\n there\r\n{last}")).1;
        let lines: Vec<_> = heard.lines().map(str::trim_end).collect();
        assert_eq!(lines, ["227-Hello", " there", "227 Gateway: below min-data-port."]);
        assert_eq!(sim.exchange("NOOP\r\n", "200 ok\r\n").1, "200 ok\r\n");
    });
}

#[test]
fn a_227_that_is_not_refused_is_forwarded_unchanged() {
    let low = "227 Entering Passive Mode (203,0,113,9,0,22)\r\n";
    // The reply answers no announcing command, or contains no host-port.
    for (command, reply) in [
        ("NOOP\r\n", low),
        ("PASV\r\n", "227 Logout.\r\n"),
        ("PASV\r\n", "227 Entering Passive Mode (203,0,113,9,256,22)\r\n"),
        // A server outside behind its own NAT announces its private address. Clients ignore such an address, so the
        // reply is not refused.
        ("PASV\r\n", "227 Entering Passive Mode (192,168,1,5,200,22)\r\n"),
        ("STAT\r\n", "211-Status\r\n227 Entering Passive Mode (203,0,113,9,0,22)\r\n211 End\r\n"),
    ] {
        let mut sim = Sim::logged_in(with(Nat::Masquerade));
        assert_eq!(sim.exchange(command, reply).1, reply);
        assert_untouched(&sim);
    }
    // Without a login, or if the start of the connection was not seen.
    for is_picked_up in [false, true] {
        let mut sim = Sim::new(with(Nat::Masquerade));
        if is_picked_up {
            sim.forget();
        }
        sim.say(Server, b"220 ready\r\n");
        sim.exchange("USER joe\r\n", "331 password\r\n");
        let reply =
            if is_picked_up { low } else { "227 Entering Passive Mode (203,0,113,9,9,22)\r\n" };
        assert_eq!(sim.exchange("PASV\r\n", reply).1, reply);
    }
}

#[test]
fn a_known_servers_private_address_is_refused_with_425() {
    let mut scenario = Scenario { policy: strict(), ..with(Nat::Masquerade) };
    let address = scenario.nat.translation(false).server.ip();
    scenario.policy.servers =
        [KnownServer { address, external: None, replace_foreign_address: false }].into();
    let mut sim = Sim::logged_in(scenario);
    let heard = sim.exchange("PASV\r\n", "227 Entering Passive Mode (192,168,1,5,200,22)\r\n").1;
    assert_eq!(heard.trim_end(), "425 Gateway: not the server's address.");
}

#[test]
fn a_227_too_long_to_hold_is_forwarded_unchanged() {
    let mut sim = Sim::logged_in(without_nagle(Nat::PortForward));
    sim.say(Client, b"PASV\r\n");
    let long = format!("227 {} (10,99,99,99,21,179)\r\n", "x".repeat(600));
    assert_eq!(received_reply(&mut sim, &long, 580), long);
}

#[test]
fn the_reply_to_a_refused_command_states_the_gateways_reason() {
    for (command, reply, expected) in [
        (
            BOUNCE,
            "500 Unknown command.\r\n",
            "504 Refused by the gateway: the address is not the client's.",
        ),
        (BOUNCE, "530 Please login with USER and PASS.\r\n", "504 Gateway: not your own address."),
        (
            BOUNCE,
            "500-What?\r\n 500 x\r\n500 End\r\n",
            "500-What?\r\n 500 x\r\n500 Refused by the gateway: the address is not the client's.",
        ),
        (BOUNCE, "502\r\n", "504 Refused by the gateway: the address is not the client's."),
        (
            "PORT 1,2,3\r\n",
            "500 What?\r\n",
            "501 Refused by the gateway: the address or the port is not valid.",
        ),
        (
            "EPRT |1|192.168.150.80|22|\r\n",
            "500 What?\r\n",
            "504 Refused by the gateway: the port is below its min-data-port.",
        ),
        (
            "AUTH TLS\r\n",
            "530 Please login with USER and PASS.\r\n",
            "534 Gateway policy refuses AUTH.",
        ),
    ] {
        for cut in 0..reply.len() {
            let policy = Policy { auth_tls: AuthTls::Refuse, ..Policy::default() };
            let mut sim = Sim::logged_in(Scenario { policy, ..without_nagle(Nat::Masquerade) });
            assert_eq!(text(sim.say(Client, command.as_bytes())), crossed_out(command));
            let heard = received_reply(&mut sim, reply, cut);
            assert_eq!(heard.trim_end(), expected, "{reply:?} split at {cut}");
            assert_eq!(
                sim.exchange("NOOP\r\n", "200 ok\r\n"),
                ("NOOP\r\n".into(), "200 ok\r\n".into())
            );
            let t = sim.translation;
            let (heard, answer) = sim.exchange(&active(at(t.client, 2200)), "200 ok\r\n");
            assert_eq!((heard, &*answer), (active(at(t.client_external, 2200)), "200 ok\r\n"));
            assert_eq!((sim.timeouts(), sim.kernel.opened.len()), (0, 1));
        }
    }
}

#[test]
fn a_reason_of_equal_length_needs_no_sequence_adjustment() {
    everywhere_v4(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        let reply = "530 Please login with USER and PASS.\r\n";
        let heard = sim.exchange(BOUNCE, reply).1;
        assert_eq!(heard, "504 Gateway: not your own address.  \r\n");
        assert_eq!(sim.kernel.queue_mode, None);
    });
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
        sim.say(Client, BOUNCE.as_bytes());
        let is_refused = reply.starts_with("500");
        let heard = text(sim.say(Server, reply.as_bytes()));
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
    sim.write(Server, "500 what?\r\n".repeat(count).as_bytes());
    sim.settle();
    let heard = text(sim.client.read());
    assert_eq!(heard.lines().count(), count);
    let known =
        heard.lines().filter(|line| line.starts_with("504 Refused by the gateway: ")).count();
    let others = heard.lines().filter(|line| *line == "500 what?").count();
    assert_eq!(known + others, count, "{known} with the gateway's reason, {others} unchanged");
    assert!(known > 8, "{known}");
    assert_eq!(sim.exchange("NOOP\r\n", "200 ok\r\n").1, "200 ok\r\n");
}

#[test]
fn the_reply_is_unchanged_if_the_kernel_refuses_sequence_adjustment() {
    let mut sim = Sim::logged_in(without_nagle(Nat::Masquerade));
    sim.say(Client, BOUNCE.as_bytes());
    sim.kernel.failing = true;
    assert_eq!(text(sim.say(Server, b"500 what?\r\n")), "500 what?\r\n");
    sim.kernel.failing = false;
    sim.say(Client, BOUNCE.as_bytes());
    let heard = text(sim.say(Server, b"500 what?\r\n"));
    assert!(heard.starts_with("504 Refused by"), "{heard}");
}

#[test]
fn the_reply_is_unchanged_after_missed_bytes() {
    let mut sim = Sim::new(without_nagle(Nat::Masquerade));
    sim.forget();
    sim.say(Server, b"230 in\r\n");
    sim.say(Client, BOUNCE.as_bytes());
    assert_eq!(text(sim.say(Server, b"500 what?\r\n")), "500 what?\r\n");
}
