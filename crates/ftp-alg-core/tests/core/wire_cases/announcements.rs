//! The forms of announcements: which are rewritten, which open a pinhole, and which are forwarded as text.

use super::{
    support::ftp::{eprt, host_port},
    *,
};

/// Plays a dialogue that opens nothing, and of which nothing is changed.
fn assert_passes(scenario: &Scenario, script: &str) {
    let mut sim = Sim::logged_in(scenario.clone());
    sim.play(script);
    assert_eq!(sim.kernel.opened, [], "{script}");
    assert_untouched(&sim);
}

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
            "227 Server v2.1, mode 4 (#)\r\n",
            "227 #\r\n",
        ] {
            let mut sim = Sim::logged_in(scenario.clone());
            let heard = sim.exchange("PASV\r\n", &form.replace('#', &host_port(own))).1;
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
fn a_227_is_rewritten_where_it_stands_behind_bytes_that_its_reader_skips() {
    let line = |skipped: &[u8], address: &[u8]| {
        [b"227 ", skipped, b"Ok (", address, b",143,225).\r\n"].concat()
    };
    for skipped in [&b""[..], b"\xff\xf1", b"\xff\xff", b"\xff\xfb\x01"] {
        let mut sim = Sim::logged_in(with(Nat::PortForward));
        sim.tell(Client, "PASV\r\n");
        let heard = sim.say(Server, &line(skipped, b"203,0,113,9"));
        assert_eq!(heard, line(skipped, b"198,51,100,2"), "{}", heard.escape_ascii());
    }
}

#[test]
fn replies_that_announce_nothing_pass_unchanged() {
    everywhere(|scenario| {
        for script in [
            "a 227 without a host-port > QUIT < 227 Logout. > PASV < 227 Logout.",
            "LPRT and LPSV > LPRT 4,4,10,0,0,2,2,4,1 < 200 ok > LPSV < 228 Entering (4,4,10,0,0,1,2,4,1)",
            "a 229 without its last delimiter > EPSV < 229 Ok (|||50069)",
            "a 229 with too high a port > EPSV < 229 Ok (|||65558|)",
            "a 229 without a port > EPSV < 229 Ok",
            "a bare 229 > EPSV < 229",
            "an unknown family > EPRT |3|x|5282| < 522 Network protocol not supported",
            "the default data port > LIST < 150 here < 226 done",
        ] {
            assert_passes(&scenario, script);
        }
    });
    everywhere_v4(|scenario| {
        for numbers in ["127,0,0,1,156,64", "10,99,99,99,156,64", "0,0,0,0,0,0"] {
            let foreign = format!(
                "a 227 with a foreign address > PASV < 227 Entering Passive Mode ({numbers})"
            );
            assert_passes(&scenario, &foreign);
        }
    });
    // Clients connect to the address that they dialled.
    let v6 = Scenario { v6: true, ..Scenario::default() };
    let over_v6 = "a 227 over IPv6 > PASV < 227 Entering Passive Mode (203,0,113,9,156,64)";
    assert_passes(&v6, over_v6);
}

#[test]
fn an_announcement_inside_other_text_opens_nothing() {
    everywhere_v4(|scenario| {
        for case in cases(
            r"
            a file's name          > RETR PORT 192,168,150,80,14,178 < 550 No > STOR EPRT |2|::1|1025| < 550 No
            behind a CR            > MKD a\rPORT 192,168,150,80,14,178 < 550 No
            another verb           > SITE PORT 192,168,150,80,14,178 < 550 No > XPORT 192,168,150,80,14,178 < 500 No
            a password             > PASS PORT 192,168,150,80,14,178 < 503 No
            a status               > STAT < 211-Status\r\n227 Mode (203,0,113,9,4,22)\r\n211 End
            the same line          > STAT < 211-Status 227 Mode (203,0,113,9,4,22)\r\n211 End
            the same to a PASV     > PASV < 211-Status\r\n227 Mode (203,0,113,9,4,22)\r\n211 End
            help                   > HELP < 214-Help\r\n 227 x\r\n229 Extended (|||5069|)\r\n214 End
            a missing file         > RETR x < 550 227 Mode (203,0,113,9,4,22): no such file
            the same in lines      > RETR x < 550-no\r\n227 Mode (203,0,113,9,4,22)\r\n550 End
            a directory            > MKD z < 257 \u{22}227 Mode (203,0,113,9,4,22)\u{22} is there
            a refused PASV         > PASV < 500-Not this:\r\n227 Mode (203,0,113,9,4,22)\r\n500 End
            the same behind words  > PASV < 500 What is 227 Mode (203,0,113,9,4,22)?
            a refused EPSV         > EPSV < 500-Nor:\r\n229 Extended (|||5069|)\r\n500 End
            to another command     > FEAT < 229 Extended (|||5069|) > NOOP < 227 Mode (203,0,113,9,4,22)
            ",
        ) {
            assert_passes(&scenario, case);
        }
    });
}

#[test]
fn a_passive_reply_is_parsed_by_its_form_alone() {
    everywhere_v4(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        let t = sim.translation;
        let [said, seen] = sim.passive(5000);
        assert_eq!(sim.exchange("EPSV\r\n", &said).1, seen);
        sim.play("> PASV < 229 Ok (|||5001|)");
        let seen = at(t.server_external, 5001);
        assert_eq!(sim.kernel.connect(t.client.ip(), seen), Some(at(t.server, 5001)));
    });
}

#[test]
fn a_229_with_any_delimiter_opens_a_pinhole() {
    everywhere(|scenario| {
        for (line, port) in [
            ("229 Entering Extended Passive Mode (|||50069|)", 50069),
            ("229 Entering Extended Passive Mode (!!!9447!).", 9447),
            ("229 Entering Extended Passive Mode (|||50069|).", 50069),
            ("229 Entering Extended Passive Mode |||50069|", 50069),
            ("229 Ok (~~~50069~)", 50069),
            ("229 ((((50069()", 50069),
        ] {
            let mut sim = Sim::logged_in(scenario.clone());
            let t = sim.translation;
            sim.play(&format!("> EPSV < {line}"));
            let seen = at(t.server_external, port);
            assert_eq!(sim.kernel.connect(t.client.ip(), seen), Some(at(t.server, port)));
            assert_untouched(&sim);
        }
    });
}

#[test]
fn a_229_rewritten_for_a_taken_port_retains_its_delimiters() {
    everywhere(|mut scenario| {
        scenario.policy = Policy { port_range: 61234..=61234, ..Policy::default() };
        let mut sim = Sim::logged_in(scenario);
        let t = sim.translation;
        sim.kernel.taken.insert(9447);
        assert_eq!(sim.exchange("EPSV\r\n", "229 Ok (!!!9447!).\r\n").1, "229 Ok (!!!61234!).\r\n");
        let seen = at(t.server_external, 61234);
        assert_eq!(sim.kernel.connect(t.client.ip(), seen), Some(at(t.server, 9447)));
    });
}

#[test]
fn the_last_line_of_a_multi_line_227_is_the_announcement() {
    everywhere_v4(|scenario| {
        let mut sim = Sim::logged_in(scenario);
        let first =
            "227-Entering Passive Mode (203,0,113,9,4,22)\r\n 227 no (203,0,113,9,4,23)\r\n";
        let [said, seen] = sim.passive(5000).map(|last| format!("{first}{last}"));
        assert_eq!(sim.exchange("PASV\r\n", &said).1, seen);
        assert_eq!(sim.kernel.opened.len(), 1);
    });
}

#[test]
fn unusual_but_valid_announcements_are_rewritten() {
    everywhere(|scenario| {
        for odd in [
            |line: &str| format!(" {line}"),
            |line: &str| line.replacen(' ', "  ", 1),
            |line: &str| line.to_lowercase(),
            |line: &str| line.replace("\r\n", "  \r\n"),
        ] {
            let mut sim = Sim::logged_in(scenario.clone());
            let t = sim.translation;
            let [said, seen] = sim.active(2313).map(|line| odd(&line));
            assert_eq!(sim.tell(Client, &said), seen);
            let connected = sim.kernel.connect(t.server.ip(), at(t.client_external, 2313));
            assert_eq!(connected, Some(at(t.client, 2313)), "{}", sim.summary());
            if !scenario.nat.hides_client() {
                assert_untouched(&sim);
            }
        }
    });
}

#[test]
fn a_long_line_is_forwarded_unchanged() {
    let (name, text) = ("x".repeat(10_000), "227 ".repeat(4000));
    everywhere(|scenario| {
        assert_passes(&scenario, &format!("> STOR {name}"));
        assert_passes(&scenario, &format!(r"< 250 {text}\r\n"));
    });
}

/// A server could connect to that address, or to itself.
#[test]
fn an_address_of_another_family_or_a_foreign_one_is_refused() {
    for (v6, line) in [
        (true, "EPRT |2|fe80::1%eth0|5282|\r\n"),
        (true, "EPRT |1|192.168.150.80|5282|\r\n"),
        (false, "EPRT |2|fd00:150::80|5282|\r\n"),
        // Only the unspecified address of its own family means the client.
        (true, "EPRT |1|0.0.0.0|5000|\r\n"),
        (true, "PORT 0,0,0,0,19,136\r\n"),
        (true, "EPRT |2|::ffff:0.0.0.0|5000|\r\n"),
        (true, "EPRT |2|::1|5000|\r\n"),
        (false, "EPRT |2|::|5000|\r\n"),
        (false, "PORT 0,0,0,1,19,136\r\n"),
        (false, "PORT 127,0,0,1,19,136\r\n"),
    ] {
        let mut sim = Sim::logged_in(Scenario { v6, ..Scenario::default() });
        assert_eq!(sim.exchange(line, "500 what?\r\n").0, crossed_out(line));
        assert_eq!(sim.kernel.opened, []);
    }
    let policy = Policy { foreign_address: ForeignAddress::Allow, ..Policy::default() };
    for (v6, line) in
        [(true, "EPRT |1|192.168.150.80|5282|"), (false, "EPRT |2|fd00:150::80|5282|")]
    {
        let allowed = Scenario { v6, policy: policy.clone(), ..Scenario::default() };
        assert_passes(&allowed, &format!("> {line} < 522 Network protocol not supported, use (1)"));
    }
}

#[test]
fn an_eprt_is_rewritten_over_ipv4_and_ipv6() {
    logged_in_everywhere(|mut sim| {
        let t = sim.translation;
        let (own, seen) = (at(t.client, 5282), at(t.client_external, 5282));
        assert_eq!(sim.tell(Client, &eprt(own)), eprt(seen));
        assert_eq!(sim.kernel.connect(t.server.ip(), seen), Some(own));
        let odd = |e| eprt(e).replace('|', "!");
        assert_eq!(sim.tell(Client, &odd(own)), odd(seen));
    });
}

#[test]
fn after_epsv_all_only_epsv_opens_a_pinhole() {
    everywhere(|scenario| {
        for epsv in ["EPSV\r\n", "EPSV 1\r\n", "EPSV 2\r\n", "epsv\r\n"] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.play("> EPSV ALL < 504 no");
            sim.assert_inspected();
            sim.play("< 500 no > EPSV ALL < 200 ok");
            let before = sim.kernel.opened.len();
            let [line, _] = sim.active(4000);
            assert_eq!(sim.exchange(&line, "500 what?\r\n").0, crossed_out(&line));
            if !scenario.v6 {
                sim.exchange("PASV\r\n", &sim.passive(4001)[0]);
            }
            assert_eq!(sim.kernel.opened.len(), before);
            sim.exchange(epsv, "229 Ok (|||4002|)\r\n");
            assert_eq!(sim.kernel.opened.len(), before + 1, "{epsv}: {}", sim.summary());
        }
    });
}

/// AWS Transfer, and vsftpd over IPv6, announce 0.0.0.0 for themselves.
#[test]
fn an_unspecified_address_means_its_sender() {
    everywhere(|mut scenario| {
        for foreign in [ForeignAddress::Refuse, ForeignAddress::Pass, ForeignAddress::Allow] {
            scenario.policy.foreign_address = foreign;
            let zero: SocketAddr =
                if scenario.v6 { "[::]:5000" } else { "0.0.0.0:5000" }.parse().unwrap();
            let mut sim = Sim::logged_in(scenario.clone());
            let t = sim.translation;
            let seen = eprt(at(t.client_external, 5000));
            assert_eq!(sim.exchange(&eprt(zero), "200 ok\r\n").0, seen, "{foreign:?}");
            assert_eq!(sim.kernel.opened.last().unwrap().target, at(t.client, 5000));
            let said = passive("0.0.0.0:5000".parse().unwrap());
            // A 227 cannot name an IPv6 address.
            let seen =
                if scenario.v6 { said.clone() } else { passive(at(t.server_external, 5000)) };
            for reply in [said.clone(), format!("227-a\r\n{said}")] {
                let heard = sim.exchange("PASV\r\n", &reply).1;
                assert_eq!(heard, reply.replace(&said, &seen), "{foreign:?}");
                let opened = sim.kernel.opened.last().unwrap();
                let arrival = at(t.server_external, 5000);
                assert_eq!((opened.arrival, opened.target), (arrival, at(t.server, 5000)));
            }
            if !scenario.v6 {
                let line = active(zero);
                assert_eq!(
                    sim.exchange(&line, "200 ok\r\n").0,
                    active(at(t.client_external, 5000))
                );
            }
        }
    });
}

/// A server connects to itself if it reads such a command.
#[test]
fn a_command_with_an_unspecified_address_never_passes_as_it_is() {
    everywhere(|scenario| {
        let zero = if scenario.v6 { "[::]:5000" } else { "0.0.0.0:5000" }.parse().unwrap();
        for before in ["", "< 220 ready", "< 220 ready > USER x", "< 220 ready > GET / HTTP/1.1"] {
            for line in [eprt(zero), format!("NOOP\r{}", eprt(zero))] {
                let mut sim = Sim::after(scenario.clone(), before);
                let heard = sim.tell(Client, &line);
                assert!(heard.contains("XXXX"), "{before}: {heard}");
            }
        }
        for picked_up in [false, true] {
            let mut sim = Sim::logged_in(scenario.clone());
            match picked_up {
                true => sim.forget(),
                false => sim.write(Client, b"NOOP\n"),
            }
            let heard = sim.tell(Client, &eprt(zero));
            assert!(heard.ends_with(&crossed_out(&eprt(zero))), "{heard}");
            assert_eq!(sim.kernel.opened, []);
        }
    });
}

/// Another port of the server is announced if the first one is taken, although the address stays.
#[test]
fn an_unspecified_address_over_ipv6_keeps_its_form() {
    let mut sim =
        Sim::logged_in(Scenario { nat: Nat::PortForward, v6: true, ..Scenario::default() });
    sim.kernel.taken.insert(5000);
    let heard = sim.exchange("PASV\r\n", "227 ok (0,0,0,0,19,136)\r\n").1;
    let port = sim.kernel.opened[0].arrival.port();
    assert!(port != 5000);
    assert_eq!(heard, format!("227 ok (0,0,0,0,{},{})\r\n", port >> 8, port & 255));
}
