//! Lines that servers parse differently from the gateway: line ends, Telnet commands, and replies that contain text of
//! the client's choice.

use std::ops::Range;

use super::{
    encryption::hello,
    support::readings::{Ends, Telnet, command},
    *,
};

/// The host-port of a third host.
const THIRD: &str = "10,99,99,99,21,179";

/// The first command that some server model would execute as an announcement of the third host.
pub fn executed_bounce(bytes: &[u8]) -> Option<(Ends, Telnet, Vec<u8>)> {
    command(bytes, &[b"PORT", b"EPRT"], |argument| argument.starts_with(b"10,99,99,99,"))
}

/// Sends `pieces` one after the other, waiting after each, and returns what the server receives.
pub fn received_in_pieces<'a>(
    mut sim: Sim,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<u8>, Sim) {
    (sim.say_in_pieces(Client, pieces), sim)
}

fn logged_in() -> Sim {
    Sim::logged_in(without_nagle(Nat::Masquerade))
}

fn with_auth_refused() -> Scenario {
    let mut scenario = with(Nat::Masquerade);
    scenario.policy.auth_tls = AuthTls::Refuse;
    scenario
}

const LEADS: [&[u8]; 31] = [
    b"NOOP\r",
    b"NOOP\n",
    b"NOOP\0",
    b"NOOP\r\0",
    b"SIZE a\r",
    b"SIZE a\0",
    b"\xff",
    b"\xff\xff",
    b"\xf4",
    b"\xff\xf4",
    b"\xff\xf4x",
    b"\xff\xfb",
    b"\xff\xfb\x01",
    b"\xff\xfbx",
    b"\xff\xff\xf4",
    b"\xff\xf4\xff\xf2",
    b"\xff\xfd\xff\xf4x",
    b"\0\xff\xf4z",
    b"RETR x\r\xff\xfbz",
    b"NOOP\xff\xfb\n",
    b"NOOP\xff\xfb\r\n",
    b"\r \xff\xf1\x0b",
    b"\xffP",
    b"\xff\xf2P",
    b"\xff\xfbE",
    b"NOOP\r\xff\xfbP",
    b"\xff\xfaab\xff\xf0",
    b"\xff\xfaab\r\n\xff\xf0",
    b"\xff\xfa\r\ncd\xff\xf0\xff\xf4 ",
    b"NOOP\r\xff\xfaab\xff\xf0",
    b"\xff\xfaab\r\ncd\xff\xf0P\xff\xf1",
];

#[test]
fn a_hidden_bounce_is_refused_wherever_segments_end() {
    let mut attacks = 0;
    for lead in LEADS {
        for verb in [
            &b"PORT "[..],
            b"PO\xff\xf1RT ",
            b"PO\xff\xfb\nRT ",
            b"PO\xff\xfaab\xff\xf0RT ",
            b"PORT\xff\xfaab\ncd\xff\xf0 ",
            b"P\0ORT ",
            b"PORT",
            b"P ORT ",
            b"PO\"RT\"",
            b"\"PO\x01RT",
            b"P\xe9O\x7fRT=",
            b"PORT\xff\xff\0\n",
            b"PORT\xff\xfb8\t\n",
            b"PORT\xff\xff\r\n",
        ] {
            let line = [lead, verb, THIRD.as_bytes(), b"\r\n"].concat();
            attacks += usize::from(executed_bounce(&line).is_some());
            for cut in 0..lead.len() + 14 {
                let (first, second) = line.split_at(cut);
                let (got, sim) = received_in_pieces(logged_in(), [first, second]);
                assert_eq!(executed_bounce(&got), None, "{line:?} split at {cut}: {got:?}");
                assert_eq!(
                    got.len(),
                    line.len(),
                    "sequence numbers change: {line:?} split at {cut}"
                );
                assert_eq!((sim.timeouts(), sim.kernel.opened.len()), (0, 0));
            }
            let (got, _) = received_in_pieces(logged_in(), line.chunks(1));
            assert_eq!(executed_bounce(&got), None, "{line:?} byte by byte: {got:?}");
        }
    }
    assert!(attacks > 200, "only {attacks} lines are bounces for some server");
}

/// Bytes that some server treats as a line end or a Telnet command, and some neutral bytes.
const NEUTRAL_OR_AMBIGUOUS: [&[u8]; 12] = [
    b"\r",
    b"\n",
    b"\0",
    b"\r\n",
    b"\xff",
    b"\xf4",
    b"\xff\xfb",
    b"\xff\xf4",
    b"\xff\xfd\x06",
    b"x",
    b" ",
    b"NOOP ",
];

/// Concatenates a random number of `parts`, within `count`, in random order.
fn random_mixture(rng: &mut Rng, parts: &[&[u8]], count: Range<usize>) -> Vec<u8> {
    (0..count.start + rng.below(count.len())).flat_map(|_| rng.pick(parts).to_vec()).collect()
}

#[allow(clippy::unwrap_used, reason = "a test may panic, its helpers as well")]
fn rounds() -> usize {
    std::env::var("FTP_ALG_ROUNDS").ok().map_or(1500, |n| n.parse().unwrap())
}

/// Sends lines that servers parse in several ways: as one segment, as two segments, and byte by byte.
#[test]
fn splitting_a_line_never_opens_more_pinholes() {
    let own = Nat::Masquerade.translation(false).client;
    let announcement = active(at(own, 2200));
    let own: [&[u8]; 6] =
        [b"NOOP\r\n", b"\xff\xfa", b"\xff\xf0", b"PO", b"GET / HTTP/1.1\r\n", b"PORT "];
    let parts = [&NEUTRAL_OR_AMBIGUOUS[..], &own].concat();
    let mut rng = Rng::new(17);
    let rounds = rounds();
    let mut opened = 0;
    for round in 0..rounds {
        let mut line = random_mixture(&mut rng, &parts, 1..6);
        line.extend_from_slice(announcement.as_bytes());
        if rng.chance(0.3) {
            line.extend_from_slice(announcement.as_bytes());
        }
        let count =
            |pieces: Vec<&[u8]>| received_in_pieces(logged_in(), pieces).1.kernel.opened.len();
        let whole = count(vec![&line]);
        opened += whole;
        let (first, second) = line.split_at(rng.below(line.len()));
        for pieces in [vec![first, second], line.chunks(1).collect()] {
            let cut = count(pieces);
            assert!(cut <= whole, "round {round}, {line:?} split at {}: {cut}", first.len());
        }
    }
    assert!(opened > rounds / 10, "only {opened} of {rounds} opened a pinhole");
}

/// Combines the fragments that can hide a verb at random and splits the result anywhere.
#[test]
fn random_line_ends_and_telnet_commands_never_hide_a_bounce() {
    let own: [&[u8]; 9] =
        [b"PORT ", b"PORT", b"EPRT ", b"PO", b"RT ", b"P", b"E", b"ORT ", b"10,99,99,99,9,9"];
    let parts = [
        &own[..],
        &NEUTRAL_OR_AMBIGUOUS,
        &[b"\xff\xfa", b"\xff\xfaab", b"\xff\xf0", b"\"", b"\x02"],
    ]
    .concat();
    let mut rng = Rng::new(13);
    let mut attacks = 0;
    let rounds = rounds();
    for round in 0..rounds {
        let mut line = random_mixture(&mut rng, &parts, 2..10);
        line.extend_from_slice(b" 10,99,99,99,9,9\r\n");
        attacks += usize::from(executed_bounce(&line).is_some());
        let cut = rng.below(line.len());
        let (first, second) = line.split_at(cut);
        let (got, _) = received_in_pieces(logged_in(), [first, second]);
        assert_eq!(executed_bounce(&got), None, "round {round}, {line:?} split at {cut}: {got:?}");
    }
    assert!(attacks > rounds / 20, "only {attacks} of {rounds} lines are bounces for some server");
}

/// The line is longer than the gateway stores of an unfinished line.
#[test]
fn a_bounce_far_into_its_line_is_refused() {
    for lead in [&b"\r"[..], b"\0", b"\r\xff\xf4z", b"\n"] {
        let verb = [lead, b"PORT ", THIRD.as_bytes()].concat();
        let line = [b"RETR ", "x".repeat(3000).as_bytes(), &verb, b"\r\n"].concat();
        for cut in line.len() - verb.len() - 3..line.len() {
            for second_cut in [1, 2, 5] {
                let (first, rest) = line.split_at(cut);
                let (second, third) = rest.split_at(second_cut.min(rest.len()));
                let (got, _) = received_in_pieces(logged_in(), [first, second, third]);
                assert_eq!(executed_bounce(&got), None, "{lead:?} split at {cut}, {second_cut}");
            }
        }
    }
}

#[test]
fn no_pinhole_opens_while_an_ambiguous_line_is_pending() {
    everywhere_v4(|scenario| {
        for odd in
            [&b"NOOP\n"[..], b"NOOP x\ry\r\n", b"NOOP\0\r\n", b"NOOP\r\0\r\n", b"NOOP \xff\r\n"]
        {
            let mut sim = Sim::logged_in(scenario.clone());
            let [line, seen] = sim.active(2200);
            let pipelined = [odd, line.as_bytes()].concat();
            assert_eq!(sim.say(Client, &pipelined), pipelined, "{odd:?}");
            assert_eq!(sim.kernel.opened, []);
            let decision = sim.decisions().pop().unwrap();
            let reason = "client and server may disagree where lines end";
            assert!(decision.ends_with(reason), "{decision}");
            sim.play(r"< 200 ok\r\n200 ok");
            assert_eq!(sim.tell(Client, &line), seen, "{odd:?}");
        }
    });
}

#[test]
fn a_reply_not_delimited_by_crlf_opens_no_pinhole() {
    everywhere_v4(|scenario| {
        let [line, seen] = Sim::new(scenario.clone()).passive(5000);
        for odd in [
            line.replace("\r\n", "\r\0\r\n"),
            line.replace("\r\n", "\0\r\n"),
            line.replace("Entering", "Ent\rering"),
            format!("550 a\n{line}"),
            format!("550 a\r{line}"),
            format!("no reply\r\n{line}"),
        ] {
            let mut sim = Sim::logged_in(scenario.clone());
            assert_eq!(sim.exchange("PASV\r\n", &odd).1, odd);
            assert_eq!(sim.kernel.opened, [], "{odd:?}");
            sim.play("< 200 so much for that");
            assert_eq!(sim.exchange("PASV\r\n", &line).1, seen);
        }
    });
}

/// pyftpdlib parses the line as one command and echoes its argument in the reply.
#[test]
fn an_argument_echoed_by_the_server_opens_no_pinhole() {
    let forged = "229 x (|||3306|)";
    for lead in ["SIZE a\n", "SIZE a\nNOOP\n", "SIZE a\r", "SIZE a\0"] {
        let mut sim = Sim::logged_in(with(Nat::PortForward));
        sim.tell(Client, &format!("{lead}{forged}\r\nEPSV\r\n"));
        sim.tell(Server, &format!("550 {}{forged} is not there.\r\n", &lead[5..]));
        sim.tell(Server, "229 Entering (|||50069|)\r\n");
        assert_eq!(sim.kernel.opened, [], "{lead:?}");
    }
}

/// A listing that contains a file name which looks like the end of the listing and an announcement. It is split before
/// the announcement.
pub fn split_listing() -> (String, String) {
    let first = "213-Status follows:\r\n-rw-r--r-- x\r\n213 End\r\n";
    (first.into(), "229 x (|||3306|)\r\n213 End of status\r\n".into())
}

#[test]
fn a_listing_on_the_control_connection_opens_no_pinhole() {
    for command in ["STAT x", "stat x*", "MLST x", "SITE INDEX x", "HELP x"] {
        // The reply contains file names, which anyone who may upload chooses.
        let mut sim = Sim::logged_in(with(Nat::PortForward));
        let (first, second) = split_listing();
        sim.play(&format!(r"> {command}\r\nEPSV < {first}{second} < 229 (|||50069|)"));
        assert_eq!(sim.kernel.opened, [], "{command}");
        // An announcement requested after the listing is complete opens a pinhole.
        sim.play("> EPSV < 229 (|||50070|)");
        assert_eq!(sim.kernel.opened.len(), 1, "{command}");
    }
}

/// Servers show files that uploaders wrote, and one server expands sequences in them to line ends.
#[test]
fn a_file_shown_in_a_reply_opens_no_pinhole() {
    for (command, code, start) in [
        ("CWD x", "250", "250-x\r\n250 End\r\n"),
        ("PASS x", "230", "230-x\r\n230 End\r\n"),
        ("NLST", "226", "226-x\r\n226 End\r\n"),
        ("CDUP", "200", "200-x\r\n200 End\r\n"),
        ("QUIT", "", "221 x\r\n"),
    ] {
        for then in ["", r"\r\nRETR x"] {
            let mut sim = Sim::logged_in(with(Nat::PortForward));
            sim.play(&format!(r"> {command}\r\nEPSV{then}"));
            sim.tell(Server, &format!("{start}229 x (|||3306|)\r\n{code} ok\r\n"));
            sim.tell(Server, "229 (|||50069|)\r\n");
            assert_eq!(sim.kernel.opened, [], "{command}");
            sim.play("> EPSV < 229 (|||50070|)");
            assert_eq!(sim.kernel.opened.len(), 1, "{command}");
        }
    }
}

#[test]
fn pipelined_pasv_after_commands_without_listings_opens_a_pinhole() {
    for before in ["TYPE I", "CWD x", "PWD", "NOOP", "MODE S", "SIZE x", "MDTM x", "STAT", "REST 0"]
    {
        let mut sim = Sim::logged_in(with(Nat::PortForward));
        sim.play(&format!(r"> {before}\r\nPASV\r\nRETR x"));
        let [said, seen] = sim.passive(5000).map(|reply| format!("250 ok\r\n{reply}150 x\r\n"));
        assert_eq!(sim.tell(Server, &said), seen, "{before}");
    }
}

/// The HTTP request that a browser sends for `fetch("http://10.0.0.2:21/", {method: verb, body: ...})`.
fn http_request(verb: &str, body: &str) -> String {
    format!(
        "{verb} / HTTP/1.1\r\nHost: 10.0.0.2:21\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\
         User-Agent: Mozilla/5.0\r\nAccept: */*\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn an_http_request_with_an_ftp_verb_opens_no_pinhole() {
    let t = Nat::Masquerade.translation(false);
    let third = active("10.99.99.99:2200".parse().unwrap());
    for verb in ["USER", "PASS", "NOOP", "RETR", "QUIT", "STAT", "HELP", "user", "PORT", "AUTH"] {
        let own = active(at(t.client, 2200));
        let body = format!("\r\nUSER x\r\nPASS x\r\n{own}{third}");
        let mut sim = Sim::new(with(Nat::Masquerade));
        sim.play(GREETING);
        let got = sim.tell(Client, &http_request(verb, &body));
        assert!(got.ends_with(&format!("{own}{}", crossed_out(&third))), "{verb}: {got}");
        sim.say(Server, b"331 x\r\n500 x\r\n500 x\r\n500 x\r\n331 x\r\n230 in\r\n500 x\r\n");
        sim.play("> USER x < 230 in > PASS x < 230 in");
        assert_eq!(sim.exchange(&own, "200 ok\r\n").0, own);
        assert_eq!(sim.exchange(&third, "500 no\r\n").0, crossed_out(&third));
        assert_eq!(sim.kernel.opened, [], "{verb}");
    }
}

#[test]
fn a_line_of_another_protocol_closes_open_pinholes() {
    for line in
        ["GET / HTTP/1.1", "USER x HTTP/1.1", "Host: x", "RETR /x HTTP/1.1", "{}", "--boundary"]
    {
        let mut sim = Sim::logged_in(with(Nat::Masquerade));
        let [own, _] = sim.active(2200);
        sim.exchange(&own, "200 ok\r\n");
        assert_eq!(sim.kernel.pinholes().len(), 1);
        sim.exchange(&format!("{line}\r\n"), "500 no\r\n");
        assert_eq!(sim.kernel.pinholes(), [], "{line}");
        assert_eq!(sim.exchange(&own, "200 ok\r\n").0, own);
        assert_eq!(sim.kernel.opened.len(), 1, "{line}");
    }
}

#[test]
fn bounces_are_refused_from_clients_that_precede_the_greeting() {
    let t = Nat::Masquerade.translation(false);
    let (own, third) = (active(at(t.client, 2200)), active("10.99.99.99:2200".parse().unwrap()));
    for first in ["USER x\r\n", "\r\n", "GET / HTTP/1.1\r\n", "\u{16}\u{3}\n"] {
        for cut in 0..third.len() {
            let said = format!("{first}{third}");
            let (start, rest) = said.as_bytes().split_at(first.len() + cut);
            let mut sim = Sim::new(with(Nat::Masquerade));
            sim.write(Client, start);
            let (got, mut sim) = received_in_pieces(sim, [rest]);
            assert_eq!(executed_bounce(&got), None, "{got:?}, split at {cut}");
            sim.say(Server, b"120 soon\r\n220 ready\r\n331 x\r\n500 no\r\n");
            sim.play("> USER x < 230 in > PASS x < 230 in");
            // A client that does not wait for the greeting may speak FTP.
            let is_ftp = first == "USER x\r\n";
            let seen = if is_ftp { active(at(t.client_external, 2200)) } else { own.clone() };
            assert_eq!(sim.exchange(&own, "200 ok\r\n").0, seen);
            assert_eq!(sim.exchange(&third, "500 no\r\n").0, crossed_out(&third));
            assert_eq!(sim.kernel.opened.len(), usize::from(is_ftp));
        }
    }
}

#[test]
fn refused_commands_before_the_greeting_are_crossed_out_however_split() {
    let third = |verb, end| format!("{verb}{THIRD}{end}");
    let refused = [
        third("PORT ", "\r\n"),
        third("EPRT ", "\n"),
        third("PORT \n", "\r\n"), // one line for some servers
        third("EPRT\n", "\r\n"),
        "AUTH TLS\r\n".into(),
        "AUTH\nTLS\r\n".into(),
        "AUTHTLS\r\n".into(),
        "AU\"TH TLS\r\n".into(),
    ];
    for (first, refused) in ["", "FEAT\r\n", "USER x\r\n"]
        .iter()
        .flat_map(|first| refused.iter().map(move |refused| (first, refused)))
    {
        let said = format!("{first}{refused}");
        for (one, two) in
            (first.len()..said.len()).flat_map(|one| (one..said.len()).map(move |two| (one, two)))
        {
            let mut scenario = with_auth_refused();
            scenario.client.nagle = false;
            let pieces = [&said[..one], &said[one..two], &said[two..]];
            let (got, _) = received_in_pieces(Sim::new(scenario), pieces.map(str::as_bytes));
            let is_auth = |argument: &[u8]| argument.starts_with(b"TLS");
            let executed_bounce =
                executed_bounce(&got).or_else(|| command(&got, &[b"AUTH"], is_auth));
            assert_eq!(executed_bounce, None, "{said:?}, split at {one} and {two}");
            assert_eq!(got.len(), said.len(), "sequence numbers change");
        }
    }
}

/// Some servers compare only the start of a line, or remove control bytes or quotes first.
#[test]
fn a_command_that_only_some_servers_understand_is_refused() {
    for line in [
        "PORT10,0,0,5,0,22",
        "EPRT|1|10.0.0.5|22|",
        "LPRT4,4,10,0,0,5,2,0,22",
        "PO\"RT 10,99,99,99,21,179",
        "\"PORT\" 10,99,99,99,21,179",
        "P\u{1}ORT 10,99,99,99,21,179",
        "PO\u{7f}RT\u{1b} 10,99,99,99,21,179",
        "P O R T 10,99,99,99,21,179",
        "AUTHTLS",
        "AU\"TH TLS",
    ] {
        let line = format!("{line}\r\n");
        for pieces in [1, 2, 3, line.len()] {
            let sim = Sim::logged_in(with_auth_refused());
            let (got, mut sim) = received_in_pieces(sim, line.as_bytes().chunks(pieces));
            let letters = |bytes: &[u8]| -> Vec<u8> {
                bytes.iter().filter(|byte| byte.is_ascii_alphabetic()).copied().collect()
            };
            assert!(
                !letters(&got).starts_with(&letters(line.as_bytes())[..4]),
                "{line:?}: {got:?}"
            );
            assert_eq!(got.len(), line.len(), "sequence numbers change");
            sim.play("< 500 what? > NOOP < 200 ok");
            assert_eq!(sim.kernel.opened, []);
        }
    }
}

/// The verb was forwarded, and the gateway must not make another form of the command out of it.
#[test]
fn an_argument_behind_a_bare_lf_is_crossed_out_with_it() {
    for before in ["", "< 220 ready > GET / HTTP/1.1"] {
        for argument in ["10,99,99,99,21,179", "|1|10.99.99.99|5555|"] {
            let verb = if argument.starts_with('|') { "EPRT" } else { "PORT" };
            let mut scenario = without_nagle(Nat::Masquerade);
            scenario.client.nagle = false;
            let sim = Sim::after(scenario, before);
            let rest = format!("\n{argument}\r\n");
            let (got, _) = received_in_pieces(sim, [verb.as_bytes(), rest.as_bytes()]);
            assert!(!got.ends_with(format!("{argument}\r\n").as_bytes()), "{got:?}");
            assert_eq!(executed_bounce(&got), None, "{got:?}");
        }
    }
}

#[test]
fn refusals_apply_after_a_picked_up_sessions_first_reply() {
    let third = format!("PORT {THIRD}\r\n");
    for line in ["AUTH TLS\r\n", &third, "PORT 10,0,x\r\n", "EPRT |2|fe80::1%1|5282|\r\n"] {
        for cut in 0..line.len() {
            let mut sim = Sim::logged_in(with_auth_refused());
            sim.forget();
            sim.play("< 200 ok");
            assert_eq!(sim.tell_cut(Client, line, cut), crossed_out(line), "split at {cut}");
        }
    }
}

#[test]
fn client_first_protocols_are_not_delayed() {
    // Each request ends with a byte that may begin an announcement.
    for http_request in [
        &b"GET / HTTP/1.1\r\n\r\nP"[..],
        b"\x16\x03\x01\0\x05\x01bc\nE",
        b"a\r\n\0P",
        b"P",
        b"\0\xff\xf2EPRT",
    ] {
        let mut sim = Sim::new(with(Nat::Masquerade));
        assert_eq!(sim.say(Client, http_request), http_request);
        assert_eq!(sim.timeouts(), 0);
        let reply = b"HTTP/1.1 200 OK\r\n";
        assert_eq!(sim.say(Server, reply), reply);
        assert_eq!(sim.engine().sessions.count(), 0);
    }
}

#[test]
fn a_false_acknowledgement_of_the_greeting_does_not_disable_refusals() {
    let third = active("10.99.99.99:2200".parse().unwrap());
    for greeted in [false, true] {
        let mut sim = Sim::new(with(Nat::Masquerade));
        if greeted {
            sim.say(Server, b"220 ready\r\n");
        }
        let mut lie = sim.next_segment(Client, b"");
        lie.ack += 500;
        sim.forge(Client, &lie);
        assert_eq!(sim.tell(Client, &third), crossed_out(&third), "{greeted}");
    }
}

#[test]
fn plain_text_after_a_234_does_not_count_as_login() {
    let t = Nat::Masquerade.translation(false);
    let (own, seen) = (active(at(t.client, 2200)), active(at(t.client_external, 2200)));
    let data = b"\x17\x03\x03\x00\x01x";
    let hellos = [Client, Server].map(|side| (side, hello(side, 9)));
    type Said<'a> = &'a [(ftp_alg_core::session::Side, &'a [u8])];
    let records: [Said<'_>; 4] = [
        &[],
        &[(Client, data)],
        &[(Server, data)],
        &[(Client, data), (Server, b"\x17\x03\x03\x00\x09x")], // not whole
    ];
    for before in records {
        for login in [GREETING, LOGIN] {
            let mut sim = Sim::after(with(Nat::Masquerade), login);
            sim.play("> AUTH TLS < 234 go");
            hellos.iter().for_each(|(side, hello)| drop(sim.say(*side, hello)));
            for (side, record) in before {
                sim.say(*side, record);
            }
            assert_eq!(sim.tell(Client, &own), own, "{before:?}");
            assert_eq!(sim.kernel.opened, [], "{before:?}");
        }
    }
    // A login in plain text after the 234 counts.
    let mut sim = Sim::after(with(Nat::Masquerade), LOGIN);
    sim.play("> AUTH TLS < 234 go > USER x < 331 x > PASS x < 230 in");
    assert_eq!(sim.tell(Client, &own), seen);
}

#[test]
fn a_second_user_command_ends_the_login() {
    for (script, opens) in [
        ("> USER y < 331 x", false),
        ("> user y", false),
        ("> REIN", false),
        ("> USER y < 331 x > PASS y < 230 in", true),
    ] {
        let mut sim = Sim::after(with(Nat::Masquerade), LOGIN);
        sim.play(script);
        let [own, seen] = sim.active(2200);
        assert_eq!(sim.tell(Client, &own), if opens { seen } else { own }, "{script}");
        assert_eq!(sim.kernel.opened.len(), usize::from(opens), "{script}");
    }
}

#[test]
fn a_refusal_is_counted_once() {
    for line in [
        &b"PO\xff\xf1RT 10,99,99,99,9,9\r\n"[..],
        b"\0PORT 10,99,99,99,9,9\r\n",
        b"NOOP\rPORT 10,99,99,99,9,9\r\n",
    ] {
        for greeted in [false, true] {
            let sim = match greeted {
                true => Sim::after(with(Nat::Masquerade), GREETING),
                false => logged_in(),
            };
            let (got, mut sim) = received_in_pieces(sim, [line]);
            assert_eq!(executed_bounce(&got), None, "{got:?}");
            let counters = sim.engine().counters();
            assert_eq!((counters.pinholes_refused, counters.commands_refused), (1, 0), "{line:?}");
        }
    }
}

#[test]
fn a_picked_up_session_refuses_bounces_after_an_ftp_reply() {
    everywhere(|scenario| {
        let host = if scenario.v6 { "[fd99::9]:2200" } else { "10.99.99.99:2200" };
        let third = active(host.parse().unwrap());
        let mut sim = Sim::logged_in(scenario.clone());
        sim.forget();
        sim.play("> NOOP < 200 ok");
        for cut in 1..third.len() {
            let heard = sim.tell_cut(Client, &third, cut);
            assert_eq!(heard, crossed_out(&third), "split at {cut}");
            sim.play("< 500 what?");
        }
        // The client's own announcement is forwarded, but opens no pinhole.
        let [own, _] = sim.active(2200);
        assert_eq!(sim.tell(Client, &own), own);
        sim.play("< 200 fine");
        assert_eq!(sim.kernel.opened.len(), 0);
    });
}
