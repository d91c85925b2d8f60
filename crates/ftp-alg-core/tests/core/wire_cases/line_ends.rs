//! How servers and clients end their lines, other than with CR LF alone, and still work.

use ftp_alg_core::session::Side::{Client, Server};

use super::{
    dialects::{GREETING, LOGIN, PASS, USER, assert_transfers, play},
    support::{
        ftp::{at, passive, text},
        scenario::{NATS, Nat, Scenario},
        sim::Sim,
    },
};

/// The ends of lines are known by what was answered.
#[test]
fn lf_alone_ends_lines_where_an_end_has_shown_it() {
    for which in [&[Server][..], &[Client], &[Client, Server]] {
        let end = |side| if which.contains(&side) { "\n" } else { "\r\n" };
        for nat in NATS {
            let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
            let server = nat.translation(false).server;
            for (side, line) in LOGIN {
                let line = line.replace("\r\n", end(side));
                assert_eq!(text(sim.say(side, line.as_bytes())), line, "{which:?}");
            }
            for round in 0..3 {
                let passive = passive(at(server, 5000 + round)).replace("\r\n", end(Server));
                for (command, reply) in [
                    ("PASV", passive),
                    ("EPSV", format!("229 ok (|||{}|){}", 5010 + round, end(Server))),
                    ("PORT 192,168,150,80,19,136", format!("200 ok{}", end(Server))),
                ] {
                    let opened = sim.kernel.opened.len();
                    sim.exchange(&format!("{command}{}", end(Client)), &reply);
                    let decisions = sim.decisions();
                    assert_eq!(sim.kernel.opened.len(), opened + 1, "{which:?}: {decisions:?}");
                }
            }
        }
    }
}

/// Programs that write in text mode on Windows end lines with CR CR LF. Others send the NUL of a C string.
#[test]
fn more_crs_or_a_nul_at_the_end_of_a_line_change_nothing() {
    for end in ["\r\r\n", "\r\r\r\n", "\r\n\0"] {
        for which in [&[Server][..], &[Client], &[Client, Server]] {
            // Where the NUL belongs to the next line, some servers see another command.
            if end.contains('\0') && which.contains(&Client) {
                continue;
            }
            for (nat, in_230) in
                NATS.into_iter().flat_map(|nat| ["", "230-welcome"].map(|first| (nat, first)))
            {
                let name = format!("{end:?}, {which:?}, {in_230:?}");
                let line = |side, line: &str| {
                    let end = if which.contains(&side) { end } else { "\r\n" };
                    line.replace("\r\n", end)
                };
                let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
                let welcome = if in_230.is_empty() { "" } else { "230-welcome\r\n" };
                for (side, said) in LOGIN {
                    let said = if side == Server && said.starts_with("230") {
                        format!("{welcome}{said}")
                    } else {
                        said.to_owned()
                    };
                    play(&mut sim, &name, &[(side, &line(side, &said))]);
                }
                let server = nat.translation(false).server;
                for round in 0..2 {
                    for (command, reply) in [
                        ("PASV\r\n", passive(at(server, 5000 + round))),
                        ("EPSV\r\n", format!("229 ok (|||{}|)\r\n", 5010 + round)),
                        ("PORT 192,168,150,80,19,136\r\n", "200 ok\r\n".to_owned()),
                    ] {
                        let opened = sim.kernel.opened.len();
                        sim.exchange(&line(Client, command), &line(Server, &reply));
                        let decisions = sim.decisions();
                        assert_eq!(sim.kernel.opened.len(), opened + 1, "{name}: {decisions:?}");
                    }
                }
            }
        }
    }
}

/// The greeting of such a server ends with CR LF, all else with LF, as its replies to the login show.
#[test]
fn the_replies_to_a_login_show_how_a_server_ends_its_lines() {
    for nat in NATS {
        let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
        play(&mut sim, "LF", &[GREETING, USER, (Server, "331 password\n"), PASS]);
        play(&mut sim, "LF", &[(Server, "230 in\n")]);
        let server = nat.translation(false).server;
        for (round, end) in (0..4).zip(["\n", "\r\n", "\n", "\n"]) {
            sim.exchange("PASV\r\n", &passive(at(server, 5000 + round)).replace("\r\n", end));
            let opened = sim.kernel.opened.len();
            assert_eq!(opened, 1 + usize::from(round), "{end:?}: {:?}", sim.decisions());
            play(&mut sim, "LF", &[(Client, "LIST\r\n"), (Server, "150 here\n226 done\n")]);
        }
        assert_transfers(&mut sim, nat, "LF");
    }
}

/// A client that otherwise ends its lines with CR LF. What it could open anyway harms nobody, whatever the server
/// reads.
#[test]
fn a_lone_port_with_lf_opens_its_pinhole() {
    for nat in NATS {
        for after in [&[][..], &[(Client, "NOOP\r\n"), (Server, "200 ok\r\n")]] {
            let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
            play(&mut sim, "login", &LOGIN);
            play(&mut sim, "before", after);
            let client = nat.translation(false).client_external;
            let [high, low] = 5000_u16.to_be_bytes();
            let host = client.ip().to_string().replace('.', ",");
            let heard = text(sim.say(Client, b"PORT 192,168,150,80,19,136\n"));
            assert_eq!(heard, format!("PORT {host},{high},{low}\n"));
            assert_eq!(sim.kernel.opened.len(), 1, "{:?}", sim.decisions());
            sim.say(Server, b"200 ok\r\n");
            assert_transfers(&mut sim, nat, "after PORT with LF");
        }
        // Behind another line with LF it may be part of a name.
        let mut sim = Sim::new(Scenario { nat, ..Scenario::default() });
        play(&mut sim, "login", &LOGIN);
        sim.say(Client, b"CWD a\n");
        sim.say(Client, b"PORT 192,168,150,80,19,136\n");
        assert_eq!(sim.kernel.opened.len(), 0);
    }
}

/// The server answers it, so it has read the line. Not if the answer may be that of another command, or part of another
/// reply.
#[test]
fn a_lone_pasv_with_lf_opens_what_the_server_announces() {
    const REPLY: &[u8] = b"227 Entering Passive Mode (203,0,113,9,19,136).\r\n";
    for (before, reply, opens) in [
        (&[][..], REPLY, true),
        (&[(Client, "NOOP\r\n")], REPLY, false),
        (&[], &[b"226 a\r\n", REPLY].concat(), false),
        (&[], &[REPLY, b"226 a\r\n"].concat(), false),
    ] {
        let mut sim = Sim::new(Scenario { nat: Nat::Masquerade, ..Scenario::default() });
        play(&mut sim, "login", &LOGIN);
        play(&mut sim, "before", before);
        sim.say(Client, b"PASV\n");
        sim.say(Server, reply);
        let opened = sim.kernel.opened.len();
        assert_eq!(opened, usize::from(opens), "{:?} {:?}", reply.escape_ascii(), sim.decisions());
    }
}
