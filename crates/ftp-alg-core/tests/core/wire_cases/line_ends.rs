//! How servers and clients end their lines, other than with CR LF alone, and still work.

use super::{dialects::assert_transfers, *};

/// Passive and active transfers work after `login`, where the ends of `which` end their lines with `end`.
fn assert_line_ends_work(scenario: Scenario, login: &str, end: &str, which: &[Side]) {
    let transfers = (5000..5003).map(|port| {
        format!(" > PASV < PASSIVE {port} > EPSV < 229 ok (|||{port}|) > ACTIVE {port} < 200 ok")
    });
    let mut sim = Sim::new(scenario);
    for said in messages(&format!("{login}{}", transfers.collect::<String>())) {
        let (side, mark) = if said.from_client { (Client, '>') } else { (Server, '<') };
        let end = if which.contains(&side) { end } else { "\r\n" };
        sim.play(&format!(r"{mark} {}\c", said.text.replace("\r\n", end)));
    }
    assert_eq!(sim.kernel.opened.len(), 9, "{end:?} {which:?}: {:?}", sim.decisions());
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
        for (opened, end) in (1..5).zip([r"\n", r"\r\n", r"\n", r"\n"]) {
            sim.play(&format!("> PASV < PASSIVE {}{end}", 5000 + opened));
            assert_eq!(sim.kernel.opened.len(), opened, "{end}: {:?}", sim.decisions());
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
            let script = format!(r"{LOGIN}{before} > ACTIVE 5000\n < 200 ok");
            let mut sim = Sim::after(scenario.clone(), &script);
            assert_eq!(sim.kernel.opened.len(), 1, "{:?}", sim.decisions());
            assert_transfers(&mut sim, "after PORT with LF");
        }
        // Behind another line with LF it may be part of a name.
        let mut sim = Sim::after(scenario, LOGIN);
        sim.hear(r"> CWD a\n > ACTIVE 5000\n");
        assert_eq!(sim.kernel.opened.len(), 0);
    });
}

/// The server answers a lone `PASV` with LF, so it has read the line. Not if the answer may be that of another command, or
/// part of another reply. Where the announcement ends so, and behind another pending command or a line that ended so
/// before, it may be in a name.
#[test]
fn an_announcement_with_lf_opens_nothing_behind_what_may_hold_names() {
    for (case, opened) in [
        (r"> PASV\n < PASSIVE 5000", 1),
        (r"> NOOP > PASV\n < PASSIVE 5000 => =", 0),
        (r"> PASV\n < 226 a\r\nPASSIVE 5000 => =", 0),
        (r"> PASV\n < PASSIVE 5000 => =\r\n226 a", 0),
        (r#"> PWD\r\nPASV < 257 "x < 229 ok (|||5000|)\n"#, 0),
        (r"> PWD\r\nPASV < 229 ok (|||5000|)\n < 257 x", 0),
        (r"> PASV < 550 a\n229 ok (|||5000|)\n", 0),
        (r"> PASV < a\n < 229 ok (|||5000|)\n", 0),
        (r"> STAT x\r\nPASV < 211 a\n < 229 ok (|||5000|)\n", 0),
        (r"> PASV\r\nNOOP < 229 ok (|||5000|)\n < 200 ok", 0),
        (r"> NOOP < 200 ok\n229 ok (|||5000|)\n", 0),
    ] {
        let sim = Sim::after(with(Nat::PortForward), &format!("{LOGIN}{case}"));
        assert_eq!(sim.kernel.opened.len(), opened, "{case}: {:?}", sim.decisions());
    }
}

/// A server that ends only these replies with LF alone. Before the reply to `PASV` nothing is pending that might repeat
/// a name.
#[test]
fn a_single_announcement_may_end_with_lf_alone() {
    logged_in_everywhere(|mut sim| {
        for port in 5000..5003 {
            let opened = sim.kernel.opened.len();
            sim.play(&format!(
                r"> PASSIVE < PASSIVE {port}\n > EPSV < 229 ok (|||{}|)\n",
                port + 100
            ));
            assert_eq!(sim.kernel.opened.len(), opened + 2, "{:?}", sim.decisions());
            sim.play("> LIST < 150 here < 226 done");
        }
    });
}
