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

/// A reply is known by its form, whichever of the two commands it answers.
#[test]
fn only_the_host_port_of_a_227_is_rewritten() {
    everywhere_v4(|scenario| {
        let t = scenario.translation();
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
            // The last line is the announcement.
            "227-Passive Mode (203,0,113,9,4,22)\r\n 227 no (203,0,113,9,4,23)\r\n227 (#)\r\n",
        ] {
            for command in ["PASV\r\n", "EPSV\r\n"] {
                let mut sim = Sim::logged_in(scenario.clone());
                let [said, heard] = [own, seen].map(|end| form.replace('#', &host_port(end)));
                assert_eq!(sim.exchange(command, &said).1, heard);
                assert_eq!(sim.kernel.connect(t.client.ip(), seen), Some(own), "{form}");
                assert_eq!(sim.kernel.opened.len(), 1, "{form}");
                if !scenario.nat.hides_server() {
                    assert_untouched(&sim);
                }
            }
        }
    });
}

#[test]
fn a_227_with_blanks_or_behind_bytes_that_its_reader_skips_is_rewritten() {
    let line = |skipped: &[u8], address: &str| {
        [b"227 ", skipped, b"Ok ( ", address.as_bytes(), b"143,225).\r\n"].concat()
    };
    for address in ["203,0,113,9,", "203, 0, 113, 9, "] {
        for skipped in [&b""[..], b"\xff\xf1", b"\xff\xff", b"\xff\xfb\x01"] {
            let mut sim = Sim::after(with(Nat::PortForward), &format!("{LOGIN}> PASV"));
            let heard = sim.say(Server, &line(skipped, address));
            assert_eq!(heard, line(skipped, "198,51,100,2,"), "{}", heard.escape_ascii());
        }
    }
}

#[test]
fn lines_that_announce_nothing_pass_unchanged() {
    let (name, text) = ("x".repeat(300_000), "227 ".repeat(4000));
    everywhere(|scenario| {
        for script in cases(&format!(
            r"
            a 227 without a host-port       > QUIT < 227 Logout. > PASV < 227 Logout.
            LPRT and LPSV  > LPRT 4,4,10,0,0,2,2,4,1 < 200 ok > LPSV < 228 Entering (4,4,10,0,0,1,2,4,1)
            no last delimiter               > EPSV < 229 Ok (|||50069)
            too high a port                 > EPSV < 229 Ok (|||65558|)
            a 229 without a port            > EPSV < 229 Ok
            a bare 229                      > EPSV < 229
            an unknown family               > EPRT |3|x|5282| < 522 Network protocol not supported
            the default data port           > LIST < 150 here < 226 done
            a long name                     > STOR {name}
            a long text                     < 250 {text}\r\n
            ",
        )) {
            assert_passes(&scenario, script);
        }
    });
    everywhere_v4(|scenario| {
        for case in cases(
            r"
            a foreign address      > PASV < 227 Entering Passive Mode (10,99,99,99,156,64)
            its own to itself      > PASV < 227 Entering Passive Mode (127,0,0,1,156,64)
            no port                > PASV < 227 Entering Passive Mode (0,0,0,0,0,0)
            no octet               > PASV < 227 Entering Passive Mode (203,0,113,9,256,22)
            a file's name          > RETR PORT 192,168,150,80,14,178 < 550 No > STOR EPRT |2|::1|1025| < 550 No
            behind a CR            > MKD a\rPORT 192,168,150,80,14,178 < 550 No
            another verb           > SITE PORT 192,168,150,80,14,178 < 550 No > XPORT 192,168,150,80,14,178 < 500 No
            a password             > PASS PORT 192,168,150,80,14,178 < 503 No
            a status               > STAT < 211-Status\r\n227 Mode (203,0,113,9,4,22)\r\n211 End
            a status, low port     > STAT < 211-Status\r\n227 Mode (203,0,113,9,0,22)\r\n211 End
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
            the same, low port     > NOOP < 227 Mode (203,0,113,9,0,22)
            without a login        > REIN < 220 x > USER joe < 331 password > PASV < 227 Mode (203,0,113,9,9,22)
            ",
        ) {
            assert_passes(&scenario, case);
        }
    });
    // Clients connect to the address that they dialled.
    let v6 = Scenario { v6: true, ..Scenario::default() };
    let over_v6 = "a 227 over IPv6 > PASV < 227 Entering Passive Mode (203,0,113,9,156,64)";
    assert_passes(&v6, over_v6);
}

#[test]
fn a_229_with_any_delimiter_opens_a_pinhole() {
    everywhere(|scenario| {
        for (command, line, port) in [
            ("EPSV", "229 Entering Extended Passive Mode (|||50069|)", 50069),
            ("EPSV", "229 Entering Extended Passive Mode (!!!9447!).", 9447),
            ("EPSV", "229 Entering Extended Passive Mode (|||50069|).", 50069),
            ("EPSV", "229 Entering Extended Passive Mode |||50069|", 50069),
            ("EPSV", "229 Ok (~~~50069~)", 50069),
            ("PASV", "229 ((((50069()", 50069),
        ] {
            let mut sim = Sim::logged_in(scenario.clone());
            let t = sim.translation;
            sim.play(&format!("> {command} < {line}"));
            let seen = at(t.server_external, port);
            assert_eq!(sim.kernel.connect(t.client.ip(), seen), Some(at(t.server, port)));
            assert_untouched(&sim);
        }
    });
}

/// Over IPv6 a 227 of the unspecified address names another port, too.
#[test]
fn a_229_rewritten_for_a_taken_port_retains_its_delimiters() {
    everywhere(|mut scenario| {
        scenario.policy.port_range = 61234..=61234;
        for (script, is_for_v4) in [
            ("> EPSV < 229 Ok (!!!9447!). => 229 Ok (!!!61234!).", true),
            ("> PASV < 227 ok (0,0,0,0,36,231) => 227 ok (0,0,0,0,239,50)", false),
        ] {
            if scenario.v6 || is_for_v4 {
                let mut sim = Sim::logged_in(scenario.clone());
                let t = sim.translation;
                sim.kernel.taken.insert(9447);
                sim.play(script);
                let seen = at(t.server_external, 61234);
                assert_eq!(sim.kernel.connect(t.client.ip(), seen), Some(at(t.server, 9447)));
            }
        }
    });
}

#[test]
fn usual_and_unusual_announcements_are_rewritten() {
    everywhere(|scenario| {
        for (announces, odd) in [active, eprt].into_iter().flat_map(|announces| {
            let forms: [fn(String) -> String; 6] = [
                |line| line,
                |line| format!(" {line}"),
                |line| line.replacen(' ', "  ", 1),
                |line| line.to_lowercase(),
                |line| line.replace("\r\n", "  \r\n"),
                |line| line.replace('|', "!"),
            ];
            forms.map(|odd| (announces, odd))
        }) {
            let mut sim = Sim::logged_in(scenario.clone());
            let t = sim.translation;
            let (own, seen) = (at(t.client, 2313), at(t.client_external, 2313));
            assert_eq!(sim.tell(Client, &odd(announces(own))), odd(announces(seen)));
            let connected = sim.kernel.connect(t.server.ip(), seen);
            assert_eq!(connected, Some(own), "{}", sim.summary());
            if !scenario.nat.hides_client() {
                assert_untouched(&sim);
            }
        }
    });
}

/// A server could connect to that address, or to itself.
#[test]
fn an_address_of_another_family_or_a_foreign_one_is_refused() {
    // Only the unspecified address of its own family means the client.
    let over_v4 = "EPRT |2|fd00:150::80|5282| & EPRT |2|::|5000| & PORT 0,0,0,1,19,136 & PORT 127,0,0,1,19,136";
    let over_v6 = "EPRT |2|fe80::1%eth0|5282| & EPRT |1|192.168.150.80|5282| & EPRT |1|0.0.0.0|5000| & \
                   PORT 0,0,0,0,19,136 & EPRT |2|::ffff:0.0.0.0|5000| & EPRT |2|::1|5000|";
    for (v6, lines) in [(false, over_v4), (true, over_v6)] {
        for line in lines.split(" & ") {
            let mut sim = Sim::logged_in(Scenario { v6, ..Scenario::default() });
            sim.play(&format!("> {line} => X"));
            assert_eq!(sim.kernel.opened, []);
        }
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
fn after_epsv_all_only_epsv_opens_a_pinhole() {
    everywhere(|scenario| {
        for epsv in ["EPSV", "EPSV 1", "EPSV 2", "epsv"] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.play("> EPSV ALL < 504 no > ACTIVE 2200 < 500 no > EPSV ALL < 200 ok");
            sim.play("> ACTIVE 4000 => X");
            sim.hear("< 500 what?");
            if !scenario.v6 {
                sim.hear("> PASV < PASSIVE 4001");
            }
            assert_eq!(sim.kernel.opened.len(), 1);
            sim.hear(&format!("> {epsv} < 229 Ok (|||4002|)"));
            assert_eq!(sim.kernel.opened.len(), 2, "{epsv}: {}", sim.summary());
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
