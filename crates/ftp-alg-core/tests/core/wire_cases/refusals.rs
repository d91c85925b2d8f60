//! Refused commands never reach the server, and replies stay in order.

use super::*;

/// Sends `pieces` one after the other from a logged-in client to a model server. Returns what the client gets and the
/// lines that the server receives.
fn served<'a>(
    scenario: Scenario,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (String, Vec<String>, Sim) {
    let mut sim = Sim::logged_in(scenario);
    let lines = sim.serve(pieces);
    (text(sim.client.read()), lines, sim)
}

/// As [`served`], at once. Returns the reply codes that the client gets.
fn replies(scenario: Scenario, commands: &str) -> (Vec<String>, Vec<String>, Sim) {
    let (heard, lines, sim) = served(scenario, [commands.as_bytes()]);
    (heard.lines().map(|l| l[..3].to_owned()).collect(), lines, sim)
}

#[test]
fn an_invalid_announcement_gets_an_error_and_opens_no_pinhole() {
    everywhere_v4(|scenario| {
        let lines = "PORT 10,0,0,2,256,22 | PORT 300,1,1,1,4,1 | PORT 1,2,3 | PORT 192,168,150,80,0,22 | \
                       PORT 192,168,150,80,0,0 | PORT 192,168,150,80,14,434 | PORT 448,424,406,336,14,178 | \
                       PORT 192,168,150,80,4294967310,178 | PORT 192,168,150,80,-1,178 | PORT 192,168,150,80,4,1,7 | \
                       PORT 192,168,150,80,14,178 x | PORT 192,168,150,80,14,178x | PORT 192,168,150,80,14,178; | \
                       PORT 192,168,150,80,14,178, | PORT ,192,168,150,80,14,178 | EPRT |1|192.168.150.80|65558| | \
                       EPRT |1|192.168.150.80|4294971058| | EPRT |1|448.424.406.336|3762| | EPRT |1|192.168.150.80|22| | \
                       EPRT |1|192.168.150.80|1023| | EPRT |1|192.168.150.80| | EPRT |1|192.168.150.80|3762 | \
                       EPRT |1|192.168.150.80|3762|x | EPRT |1|192.168.150.80|3762||";
        let lines = lines.split(" | ").map(|line| format!("{line}\r\n"));
        for line in lines.chain(["port 192,168,150,80,3,255\n".to_owned()]) {
            let line = &*line;
            let (codes, heard, sim) = replies(scenario.clone(), line);
            assert!(matches!(&*codes[0], "501" | "504"), "{line}: {codes:?}");
            assert_eq!((codes.len(), heard), (1, vec![crossed_out(line)]));
            assert_eq!(sim.kernel.opened, []);
        }
    });
}

#[test]
fn an_announcement_of_a_third_host_is_refused_unless_allowed() {
    everywhere(|mut scenario| {
        let third = if scenario.v6 { "[2001:db8:5::5]:5555" } else { "10.99.99.99:5555" };
        let third = third.parse().unwrap();
        let line = active(third);
        let server = scenario.translation().server.ip();
        for (foreign, code) in [
            (ForeignAddress::Refuse, "504"),
            (ForeignAddress::Pass, "504"),
            (ForeignAddress::Allow, "200"),
        ] {
            scenario.policy.foreign_address = foreign;
            let (codes, heard, mut sim) = replies(scenario.clone(), &line);
            let is_allowed = code == "200";
            let seen = if is_allowed { line.clone() } else { crossed_out(&line) };
            assert_eq!((codes, heard), (vec![code.to_owned()], vec![seen]));
            assert_eq!(sim.kernel.opened.len(), usize::from(is_allowed));
            assert_eq!(sim.kernel.connect(server, third), is_allowed.then_some(third));
        }
    });
}

#[test]
fn replies_stay_in_order_in_a_pipeline_with_refusals() {
    everywhere(|scenario| {
        let t = scenario.nat.translation(scenario.v6);
        let bad = active(at(t.client, 22));
        let good = active(at(t.client, 2200));
        let commands = format!("TYPE I\r\n{bad}{good}LIST\r\nNOOP\r\n{bad}{bad}NOOP\r\n");
        let (codes, heard, _) = replies(scenario, &commands);
        assert_eq!(codes, ["200", "504", "200", "150", "226", "200", "504", "504", "200"]);
        let seen = active(at(t.client_external, 2200));
        assert_eq!(heard[1..4], [crossed_out(&bad), seen, "LIST\r\n".to_owned()]);
    });
}

#[test]
fn an_announcement_too_long_to_hold_is_refused() {
    let endpoint = "10,99,99,99,21,179";
    for (name, start) in [
        ("blanks before", format!("{}PORT ", " ".repeat(600))),
        ("many blanks before", format!("{}PORT ", " ".repeat(1500))),
        ("NULs before", format!("{}PORT ", "\0".repeat(600))),
        ("a verb and blanks", format!("PORT{}", " ".repeat(600))),
        ("a verb and many blanks", format!("PORT{}", " ".repeat(1500))),
    ] {
        for piece in [1, 100, 511, 512, 513, 700, 3000] {
            let line = format!("{start}{endpoint}\r\n");
            let pieces = line.as_bytes().chunks(piece);
            let (_, lines, sim) = served(without_nagle(Nat::Masquerade), pieces);
            let [heard] = &lines[..] else { panic!("{name}, by {piece}: {}", sim.summary()) };
            let heard = heard.trim_matches(['\0', ' ', '\r', '\n']);
            assert!(!heard.starts_with("PORT"), "{name}, by {piece} bytes: {heard}");
            assert_eq!(sim.kernel.opened, []);
        }
    }
}

#[test]
fn after_any_refusal_the_client_gets_an_error_and_continues() {
    let long = format!("PORT {}10,99,99,99,21,179", "  ".repeat(300));
    let t = Nat::Masquerade.translation(false);
    let good = active(at(t.client, 2200));
    for refused in [
        "PORT 10,99,99,99,21,179",       // a third host
        "EPRT |1|10.99.99.99|5555|",     // a third host
        "EPRT |2|2001:db8:5::5|5555|",   // a host of another family
        "PORT 192,168,150,80,0,22",      // a low port
        "PORT 192,168,150,80,12,234",    // a denied port
        "EPRT |1|192.168.150.80|3306|",  // a denied port
        "PORT 192,168,150,80,256,22",    // not an octet
        "EPRT |1|192.168.150.80|65558|", // not a port
        "PORT 192,168,150,80",           // no port numbers
        "AUTH TLS",
        &long,
    ] {
        for end in ["\r\n", "\n"] {
            let line = format!("{refused}{end}");
            let commands = format!("NOOP\r\n{line}TYPE I\r\n{good}");
            // In one segment, in two segments split at or in the line, and byte by byte.
            let whole = commands.len();
            let cuts = (4..8 + refused.len().min(40)).chain([whole]);
            for (cut, piece) in cuts.map(|cut| (cut, whole)).chain([(0, 1)]) {
                let policy = Policy {
                    auth_tls: AuthTls::Refuse,
                    deny_ports: [3306..=3306].into(),
                    ..Policy::default()
                };
                let scenario = Scenario { policy, ..without_nagle(Nat::Masquerade) };
                let (start, rest) = commands.as_bytes().split_at(cut);
                let pieces = start.chunks(piece).chain(rest.chunks(piece));
                let (heard, lines, mut sim) = served(scenario, pieces);
                let codes: Vec<_> = heard.lines().map(|line| &line[..3]).collect();
                let is_refused = matches!(codes[1], "500" | "501" | "504" | "534");
                let others = [codes[0], codes[2], codes[3]];
                assert!(is_refused && codes.len() == 4, "{line:?} at {cut}: {heard}");
                assert_eq!(others, ["200"; 3], "{line:?} at {cut}: {heard}");
                let text = heard.lines().nth(1).unwrap();
                assert!(text.contains(" Refused by the gateway: "), "{line:?} at {cut}: {heard}");
                let crossed = lines[1].trim_end();
                // Of a line that is too long to hold, only the start is crossed out. No verb is left.
                let verb = if refused == long { 512 } else { crossed.len() };
                let is_crossed = crossed[..verb].bytes().all(|b| matches!(b, b'X' | b' '));
                assert!(is_crossed, "{line:?} at {cut}: {crossed}");
                assert_eq!(crossed.len(), refused.len(), "sequence numbers change");
                let seen = active(at(t.client_external, 2200));
                // After a bare LF the next command is inspected, but opens no pinhole.
                let (seen, opened) = if end == "\r\n" { (&seen, 1) } else { (&good, 0) };
                assert_eq!(&lines[3], seen, "{line:?} at {cut}");
                assert_eq!(sim.kernel.opened.len(), opened, "{line:?} at {cut}");
                let counters = sim.engine().counters();
                assert_eq!(counters.pinholes_refused + counters.commands_refused, 1);
                assert_eq!(counters.refusals.by_name().map(|(_, count)| count).sum::<u64>(), 1);
                // The bytes that exceed the segment size are sent with the next segment.
                assert!(refused == long || sim.timeouts() == 0, "{line:?} at {cut}");
            }
        }
    }
}

/// The server's own answer counts.
#[test]
fn an_announcement_without_an_argument_goes_to_the_server() {
    everywhere(|scenario| {
        for line in ["PORT", "EPRT", "port ", "EPRT  "] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.play(&format!("> {line} < 501 Syntax error"));
            sim.play(&format!("> {line}\\r\\n < 530 no"));
            assert_untouched(&sim);
            assert_eq!(sim.kernel.opened, []);
            sim.assert_inspected();
        }
        // Some server reads an argument behind the line end.
        for line in ["PORT\n", "PORT\r\r\n", "PORT\0\r\n", "\u{1}PORT\r\n"] {
            let mut sim = Sim::logged_in(scenario.clone());
            let heard = sim.tell(Client, &format!("{line}10,99,99,99,19,136\r\n"));
            let runs = heard.to_ascii_uppercase().contains("PORT\n");
            assert!(!runs, "{line:?}: {heard:?}");
        }
    });
}
