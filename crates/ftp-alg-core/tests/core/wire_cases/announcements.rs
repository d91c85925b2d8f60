//! The forms of announcements: which are rewritten, which open a pinhole, and which are forwarded as text.

use ftp_alg_core::{
    policy::{ForeignAddress, Policy},
    session::Side::{Client, Server},
};

use super::{
    assert_untouched, everywhere, everywhere_v4,
    support::{
        ftp::{active, at, crossed_out, eprt, host_port, passive, text},
        scenario::{Nat, Scenario},
        sim::Sim,
    },
    with,
};

#[test]
fn only_the_host_port_of_a_227_is_rewritten() {
    everywhere_v4(|scenario| {
        let nat = scenario.nat;
        let t = nat.translation(false);
        let (own, seen) = (at(t.server, 50069), at(t.server_external, 50069));
        for form in [
            "227 Entering Passive Mode (#)\r\n",
            "227 Entering Passive Mode(#)\r\n",
            "227 Entering Passive Mode( #).\r\n",
            "227 Entering passive mode. #\r\n",
            "227 =#\r\n",
            "227 Data transfer will passively listen to #\r\n",
            "227 #\r\n",
        ] {
            let mut sim = Sim::logged_in(scenario.clone());
            let said = form.replace('#', &host_port(own));
            let heard = sim.exchange("PASV\r\n", &said).1;
            assert_eq!(heard, form.replace('#', &host_port(seen)));
            assert_eq!(sim.kernel.connect(t.client.ip(), seen), Some(own), "{}", sim.summary());
            if !nat.hides_server() {
                assert_untouched(&sim);
            }
        }
    });
}

#[test]
fn a_227_with_blanks_in_its_host_port_is_rewritten() {
    let mut sim = Sim::logged_in(with(Nat::PortForward));
    let heard = sim.exchange("PASV\r\n", "227 Ok( 203, 0, 113, 9, 143,225).\r\n").1;
    assert_eq!(heard, "227 Ok( 198,51,100,2,143,225).\r\n");
}

#[test]
fn a_227_without_a_host_port_is_forwarded_unchanged() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        assert_eq!(sim.exchange("QUIT\r\n", "227 Logout.\r\n").1, "227 Logout.\r\n");
        assert_eq!(sim.exchange("PASV\r\n", "227 Logout.\r\n").1, "227 Logout.\r\n");
        assert_untouched(&sim);
        assert_eq!(sim.kernel.opened, []);
    });
}

#[test]
fn a_passive_reply_is_parsed_by_its_form_alone() {
    everywhere_v4(|scenario| {
        let t = scenario.nat.translation(false);
        let mut sim = Sim::logged_in(scenario.clone());
        let heard = sim.exchange("EPSV\r\n", &passive(at(t.server, 5000))).1;
        assert_eq!(heard, passive(at(t.server_external, 5000)));
        let heard = sim.exchange("PASV\r\n", "229 Ok (|||5001|)\r\n").1;
        assert_eq!(heard, "229 Ok (|||5001|)\r\n");
        let seen = at(t.server_external, 5001);
        assert_eq!(sim.kernel.connect(t.client.ip(), seen), Some(at(t.server, 5001)));
    });
}

#[test]
fn a_229_with_any_delimiter_opens_a_pinhole() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        for (line, port) in [
            ("229 Entering Extended Passive Mode (|||50069|)\r\n", 50069),
            ("229 Entering Extended Passive Mode (!!!9447!).\r\n", 9447),
            ("229 Entering Extended Passive Mode (|||50069|).\r\n", 50069),
            ("229 Entering Extended Passive Mode |||50069|\r\n", 50069),
            ("229 Ok (~~~50069~)\r\n", 50069),
        ] {
            let mut sim = Sim::logged_in(scenario.clone());
            assert_eq!(sim.exchange("EPSV\r\n", line).1, line);
            let seen = at(t.server_external, port);
            assert_eq!(sim.kernel.connect(t.client.ip(), seen), Some(at(t.server, port)));
            assert_untouched(&sim);
        }
        for line in ["229 Ok (|||50069)\r\n", "229 Ok (|||65558|)\r\n", "229 Ok\r\n", "229\r\n"] {
            let mut sim = Sim::logged_in(scenario.clone());
            assert_eq!(sim.exchange("EPSV\r\n", line).1, line);
            assert_eq!(sim.kernel.opened, []);
            assert_untouched(&sim);
        }
    });
}

#[test]
fn a_229_rewritten_for_a_taken_port_retains_its_delimiters() {
    everywhere(|mut scenario| {
        scenario.policy = Policy { port_range: 61234..=61234, ..Policy::default() };
        let t = scenario.nat.translation(scenario.v6);
        let mut sim = Sim::logged_in(scenario);
        sim.kernel.taken.insert(9447);
        assert_eq!(sim.exchange("EPSV\r\n", "229 Ok (!!!9447!).\r\n").1, "229 Ok (!!!61234!).\r\n");
        let seen = at(t.server_external, 61234);
        assert_eq!(sim.kernel.connect(t.client.ip(), seen), Some(at(t.server, 9447)));
    });
}

#[test]
fn a_227_with_a_foreign_address_opens_no_pinhole() {
    everywhere_v4(|scenario| {
        for numbers in ["0,0,0,0,156,64", "127,0,0,1,156,64", "10,99,99,99,156,64", "0,0,0,0,0,0"] {
            let mut sim = Sim::logged_in(scenario.clone());
            let line = format!("227 Entering Passive Mode ({numbers})\r\n");
            assert_eq!(sim.exchange("PASV\r\n", &line).1, line);
            assert_eq!(sim.kernel.opened, []);
            assert_untouched(&sim);
        }
    });
}

/// vsftpd answers PASV like this over IPv6. Clients connect to the address that they dialled.
#[test]
fn a_227_over_ipv6_passes_and_opens_nothing() {
    for numbers in ["0,0,0,0", "203,0,113,9"] {
        let mut sim = Sim::logged_in(Scenario { v6: true, ..Scenario::default() });
        let line = format!("227 Entering Passive Mode ({numbers},156,64)\r\n");
        assert_eq!(sim.exchange("PASV\r\n", &line).1, line);
        assert_eq!(sim.kernel.opened, []);
    }
}

/// Behind a load balancer the 227 names another public host, and the firewall may let clients go there.
#[test]
fn a_227_of_another_host_passes_if_that_is_configured() {
    everywhere_v4(|scenario| {
        let line = "227 Entering Passive Mode (203,0,113,10,156,64)\r\n";
        for (foreign, passes) in [(ForeignAddress::Refuse, false), (ForeignAddress::Pass, true)] {
            let policy = Policy { foreign, ..Policy::default() };
            let mut sim = Sim::logged_in(Scenario { policy, ..scenario.clone() });
            assert_eq!(sim.exchange("PASV\r\n", line).1 == line, passes, "{foreign:?}");
            assert_eq!(sim.kernel.opened, []);
        }
    });
}

#[test]
fn text_inside_a_multi_line_reply_is_not_an_announcement() {
    everywhere_v4(|scenario| {
        let t = scenario.nat.translation(false);
        let text = "211-Status\r\n227 Entering Passive Mode (203,0,113,9,4,22)\r\n211 End\r\n";
        for asked in ["STAT\r\n", "PASV\r\n"] {
            let mut sim = Sim::logged_in(scenario.clone());
            assert_eq!(sim.exchange(asked, text).1, text);
            assert_eq!(sim.kernel.opened, []);
            assert_untouched(&sim);
        }
        let mut sim = Sim::logged_in(scenario);
        let first =
            "227-Entering Passive Mode (203,0,113,9,4,22)\r\n 227 no (203,0,113,9,4,23)\r\n";
        let heard = sim.exchange("PASV\r\n", &format!("{first}{}", passive(at(t.server, 5000)))).1;
        assert_eq!(heard, format!("{first}{}", passive(at(t.server_external, 5000))));
        assert_eq!(sim.kernel.opened.len(), 1);
    });
}

#[test]
fn unusual_but_valid_announcements_are_rewritten() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let (own, seen) = (at(t.client, 2313), at(t.client_external, 2313));
        for odd in [
            |line: &str| format!(" {line}"),
            |line: &str| line.replacen(' ', "  ", 1),
            |line: &str| line.to_lowercase(),
            |line: &str| line.replace("\r\n", "  \r\n"),
        ] {
            let mut sim = Sim::logged_in(scenario.clone());
            let heard = text(sim.say(Client, odd(&active(own)).as_bytes()));
            assert_eq!(heard, odd(&active(seen)));
            assert_eq!(sim.kernel.connect(t.server.ip(), seen), Some(own), "{}", sim.summary());
            if !scenario.nat.hides_client() {
                assert_untouched(&sim);
            }
        }
    });
}

#[test]
fn a_long_line_is_forwarded_unchanged() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        let line = format!("STOR {}\r\n", "x".repeat(10_000));
        assert_eq!(text(sim.say(Client, line.as_bytes())), line);
        let reply = format!("250 {}\r\n", "227 ".repeat(4000));
        assert_eq!(text(sim.say(Server, reply.as_bytes())), reply);
        assert_untouched(&sim);
    });
}

#[test]
fn an_overlong_227_line_is_not_held() {
    let mut sim = Sim::logged_in(with(Nat::PortForward));
    sim.say(Client, b"PASV\r\n");
    let line = format!("227 {}", "x".repeat(5_000));
    assert_eq!(text(sim.say(Server, line.as_bytes())), line);
    assert_eq!(sim.say(Server, b" (203,0,113,9,4,22)\r\n"), b" (203,0,113,9,4,22)\r\n");
    assert_eq!(sim.kernel.opened, []);
}

#[test]
fn an_eprt_with_a_foreign_address_opens_no_pinhole() {
    for (v6, line) in [
        (true, "EPRT |2|fe80::1%eth0|5282|\r\n"),
        (true, "EPRT |1|192.168.150.80|5282|\r\n"),
        (false, "EPRT |2|fd00:150::80|5282|\r\n"),
    ] {
        let mut sim = Sim::logged_in(Scenario { v6, ..Scenario::default() });
        let heard = sim.exchange(line, "500 what?\r\n").0;
        assert_eq!(heard, crossed_out(line), "a dual-stack server could connect to that address");
        assert_eq!(sim.kernel.opened, []);

        let policy = Policy { foreign: ForeignAddress::Allow, ..Policy::default() };
        let mut sim = Sim::logged_in(Scenario { v6, policy, ..Scenario::default() });
        let reply = "522 Network protocol not supported, use (1)\r\n";
        assert_eq!(sim.exchange(line, reply), (line.to_owned(), reply.to_owned()));
        assert_eq!(sim.kernel.opened, []);
        assert_untouched(&sim);
    }
}

#[test]
fn an_eprt_of_an_unknown_family_is_forwarded_unchanged() {
    let mut sim = Sim::logged_in(Scenario::default());
    let (line, reply) = ("EPRT |3|x|5282|\r\n", "522 Network protocol not supported\r\n");
    assert_eq!(sim.exchange(line, reply), (line.to_owned(), reply.to_owned()));
    assert_eq!(sim.kernel.opened, []);
    assert_untouched(&sim);
}

#[test]
fn an_eprt_is_rewritten_over_ipv4_and_ipv6() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let (own, seen) = (at(t.client, 5282), at(t.client_external, 5282));
        let mut sim = Sim::logged_in(scenario.clone());
        assert_eq!(text(sim.say(Client, eprt(own).as_bytes())), eprt(seen));
        assert_eq!(sim.kernel.connect(t.server.ip(), seen), Some(own));
        let odd = |e| eprt(e).replace('|', "!");
        assert_eq!(text(sim.say(Client, odd(own).as_bytes())), odd(seen));
    });
}

#[test]
fn after_epsv_all_only_epsv_opens_a_pinhole() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        for epsv in ["EPSV\r\n", "EPSV 1\r\n", "EPSV 2\r\n", "epsv\r\n"] {
            let mut sim = Sim::logged_in(scenario.clone());
            assert_eq!(sim.exchange("EPSV ALL\r\n", "200 ok\r\n").0, "EPSV ALL\r\n");
            let line = active(at(t.client, 4000));
            assert_eq!(sim.exchange(&line, "500 what?\r\n").0, crossed_out(&line));
            if !scenario.v6 {
                sim.exchange("PASV\r\n", &passive(at(t.server, 4001)));
            }
            assert_eq!(sim.kernel.opened, []);
            sim.exchange(epsv, "229 Ok (|||4002|)\r\n");
            assert_eq!(sim.kernel.opened.len(), 1, "{epsv}: {}", sim.summary());
        }
    });
}

#[test]
fn a_refused_epsv_all_has_no_effect() {
    let mut sim = Sim::logged_in(with(Nat::Masquerade));
    sim.exchange("EPSV ALL\r\n", "504 no\r\n");
    let heard = sim.say(Client, b"PORT 192,168,150,80,9,9\r\n");
    assert_eq!(text(heard), "PORT 198,51,100,1,9,9\r\n");
}

#[test]
fn lprt_and_lpsv_are_forwarded_without_a_pinhole() {
    everywhere(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        let (command, reply) = ("LPRT 4,4,10,0,0,2,2,4,1\r\n", "200 ok\r\n");
        assert_eq!(sim.exchange(command, reply), (command.into(), reply.into()));
        let (command, reply) = ("LPSV\r\n", "228 Entering (4,4,10,0,0,1,2,4,1)\r\n");
        assert_eq!(sim.exchange(command, reply), (command.into(), reply.into()));
        assert_eq!(sim.kernel.opened, []);
        assert_untouched(&sim);
    });
}
