//! How servers and clients end their lines, other than with CR LF alone, and still work.

use super::{dialects::assert_transfers, *};

/// Passive and active transfers work after `login`, where the ends of `which` end their lines with `end`.
fn assert_line_ends_work(scenario: Scenario, login: &str, end: &str, which: &[Side]) {
    let ended =
        |side, line: &str| line.replace("\r\n", if which.contains(&side) { end } else { "\r\n" });
    let mut sim = Sim::new(scenario);
    for said in messages(login) {
        let side = if said.from_client { Client } else { Server };
        let line = ended(side, &said.text);
        assert_eq!(sim.tell(side, &line), line, "{end:?} {which:?}");
    }
    for round in 0..3 {
        for (command, reply) in [
            ("PASV\r\n", passive(at(sim.translation.server, 5000 + round))),
            ("EPSV\r\n", format!("229 ok (|||{}|)\r\n", 5010 + round)),
            ("PORT 192,168,150,80,19,136\r\n", "200 ok\r\n".to_owned()),
        ] {
            let opened = sim.kernel.opened.len();
            sim.exchange(&ended(Client, command), &ended(Server, &reply));
            let decisions = sim.decisions();
            assert_eq!(sim.kernel.opened.len(), opened + 1, "{end:?} {which:?}: {decisions:?}");
        }
    }
}

/// The ends of lines are known by what was answered.
#[test]
fn lf_alone_ends_lines_where_an_end_has_shown_it() {
    everywhere_v4(|scenario| {
        for which in [&[Server][..], &[Client], &[Client, Server]] {
            assert_line_ends_work(scenario.clone(), LOGIN, "\n", which);
        }
    });
}

/// Programs that write in text mode on Windows end lines with CR CR LF. Others send the NUL of a C string.
#[test]
fn more_crs_or_a_nul_at_the_end_of_a_line_change_nothing() {
    let in_lines = r"< 220 ready > USER joe < 331 password > PASS x < 230-welcome\r\n230 in";
    everywhere_v4(|scenario| {
        for login in [LOGIN, in_lines] {
            for end in ["\r\r\n", "\r\r\r\n"] {
                for which in [&[Server][..], &[Client], &[Client, Server]] {
                    assert_line_ends_work(scenario.clone(), login, end, which);
                }
            }
            // Where the NUL of a client belongs to the next line, some servers see another command.
            assert_line_ends_work(scenario.clone(), login, "\r\n\0", &[Server]);
        }
    });
}

/// The greeting of such a server ends with CR LF, all else with LF, as its replies to the login show.
#[test]
fn the_replies_to_a_login_show_how_a_server_ends_its_lines() {
    everywhere_v4(|scenario| {
        let login = r"< 220 ready > USER joe < 331 password\n > PASS x < 230 in\n";
        let mut sim = Sim::after(scenario, login);
        for (round, end) in (0..4).zip(["\n", "\r\n", "\n", "\n"]) {
            let reply = passive(at(sim.translation.server, 5000 + round));
            sim.exchange("PASV\r\n", &reply.replace("\r\n", end));
            let opened = sim.kernel.opened.len();
            assert_eq!(opened, 1 + usize::from(round), "{end:?}: {:?}", sim.decisions());
            sim.play(r"> LIST < 150 here\n226 done\n");
        }
        assert_transfers(&mut sim, "LF");
    });
}

/// A client that otherwise ends its lines with CR LF. What it could open anyway harms nobody, whatever the server
/// reads.
#[test]
fn a_lone_port_with_lf_opens_its_pinhole() {
    everywhere_v4(|scenario| {
        for before in ["", "> NOOP < 200 ok"] {
            let mut sim = Sim::after(scenario.clone(), LOGIN);
            sim.play(before);
            let host = sim.translation.client_external.ip().to_string().replace('.', ",");
            let heard = sim.tell(Client, "PORT 192,168,150,80,19,136\n");
            assert_eq!(heard, format!("PORT {host},19,136\n"));
            assert_eq!(sim.kernel.opened.len(), 1, "{:?}", sim.decisions());
            sim.play("< 200 ok");
            assert_transfers(&mut sim, "after PORT with LF");
        }
        // Behind another line with LF it may be part of a name.
        let mut sim = Sim::after(scenario, LOGIN);
        sim.tell(Client, "CWD a\n");
        sim.tell(Client, "PORT 192,168,150,80,19,136\n");
        assert_eq!(sim.kernel.opened.len(), 0);
    });
}

/// The server answers it, so it has read the line. Not if the answer may be that of another command, or part of another
/// reply.
#[test]
fn a_lone_pasv_with_lf_opens_what_the_server_announces() {
    const REPLY: &str = "227 Entering Passive Mode (203,0,113,9,19,136).\r\n";
    for (before, reply, opens) in [
        ("", REPLY, 1),
        ("> NOOP", REPLY, 0),
        ("", &format!("226 a\r\n{REPLY}"), 0),
        ("", &format!("{REPLY}226 a\r\n"), 0),
    ] {
        let mut sim = Sim::after(with(Nat::Masquerade), LOGIN);
        sim.play(before);
        sim.exchange("PASV\n", reply);
        assert_eq!(sim.kernel.opened.len(), opens, "{before:?} {reply:?} {:?}", sim.decisions());
    }
}

/// A server that ends only these replies with LF alone. Before the reply to `PASV` nothing is pending that might repeat
/// a name.
#[test]
fn a_single_announcement_may_end_with_lf_alone() {
    logged_in_everywhere(|mut sim| {
        for port in 5000..5003 {
            let opened = sim.kernel.opened.len();
            let [said, _] = sim.passive(port);
            sim.exchange(sim.passive_command(), &said.replace("\r\n", "\n"));
            assert_eq!(sim.kernel.opened.len(), opened + 1, "{:?}", sim.decisions());
            sim.exchange("EPSV\r\n", &format!("229 ok (|||{}|)\n", port + 100));
            assert_eq!(sim.kernel.opened.len(), opened + 2, "{:?}", sim.decisions());
            sim.play("> LIST < 150 here < 226 done");
        }
    });
}

/// Behind another pending command, or a line that ended so before, it may be in a name.
#[test]
fn an_announcement_that_ends_with_lf_opens_nothing_behind_what_may_hold_names() {
    for case in [
        r#"> PWD\r\nPASV < 257 "x < 229 ok (|||5000|)\n"#,
        r"> PWD\r\nPASV < 229 ok (|||5000|)\n < 257 x",
        r"> PASV < 550 a\n229 ok (|||5000|)\n",
        r"> PASV < a\n < 229 ok (|||5000|)\n",
        r"> STAT x\r\nPASV < 211 a\n < 229 ok (|||5000|)\n",
        r"> PASV\r\nNOOP < 229 ok (|||5000|)\n < 200 ok",
        r"> NOOP < 200 ok\n229 ok (|||5000|)\n",
    ] {
        let mut sim = Sim::logged_in(with(Nat::Masquerade));
        sim.play(case);
        assert_eq!(sim.kernel.opened, [], "{case}");
    }
}
