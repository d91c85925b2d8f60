//! Lines that servers parse differently from the gateway: line ends, Telnet commands, and replies that contain text of
//! the client's choice.

use super::{
    encryption::begin_tls,
    support::readings::{Ends, Telnet, command},
    *,
};

/// The host-port of a third host.
const THIRD: &str = "10,99,99,99,21,179";

/// The first command that some server model would execute as an announcement of the third host.
pub fn executed_bounce(bytes: &[u8]) -> Option<(Ends, Telnet, Vec<u8>)> {
    command(bytes, &[b"PORT", b"EPRT"], |argument| argument.starts_with(b"10,99,99,99,"))
}

/// Has the client say `pieces`, each when all is still. Returns what the server receives, in which no server model finds
/// an announcement of the third host.
#[track_caller]
pub fn say_without_bounce<'a>(
    sim: &mut Sim,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let pieces: Vec<_> = pieces.into_iter().collect();
    let got = sim.say_in_pieces(Client, pieces.iter().copied());
    let shown = || pieces.iter().map(|piece| piece.escape_ascii().to_string());
    assert_eq!(executed_bounce(&got), None, "{:?}", shown().collect::<Vec<_>>());
    got
}

fn logged_in() -> Sim {
    Sim::logged_in(without_nagle(Nat::Masquerade))
}

fn with_auth_refused() -> Scenario {
    let mut scenario = with(Nat::Masquerade);
    scenario.policy.auth_tls = AuthTls::Refuse;
    scenario
}

#[test]
fn a_hidden_bounce_is_refused_wherever_segments_end() {
    let leads = words(
        b"NOOP\r|NOOP\n|NOOP\0|NOOP\r\0|SIZE a\r|SIZE a\0|\xff|\xff\xff|\xf4|\xff\xf4|\xff\xf4x|\xff\xfb|\
        \xff\xfb\x01|\xff\xfbx|\xff\xff\xf4|\xff\xf4\xff\xf2|\xff\xfd\xff\xf4x|\0\xff\xf4z|RETR x\r\xff\xfbz|\
        NOOP\xff\xfb\n|NOOP\xff\xfb\r\n|\r \xff\xf1\x0b|\xffP|\xff\xf2P|\xff\xfbE|NOOP\r\xff\xfbP|\
        \xff\xfaab\xff\xf0|\xff\xfaab\r\n\xff\xf0|\xff\xfa\r\ncd\xff\xf0\xff\xf4 |NOOP\r\xff\xfaab\xff\xf0|\
        \xff\xfaab\r\ncd\xff\xf0P\xff\xf1",
    );
    let verbs = words(
        b"PORT |PO\xff\xf1RT |PO\xff\xfb\nRT |PO\xff\xfaab\xff\xf0RT |PORT\xff\xfaab\ncd\xff\xf0 |P\0ORT |PORT|P ORT |\
        PO\"RT\"|\"PO\x01RT|P\xe9O\x7fRT=|PORT\xff\xff\0\n|PORT\xff\xfb8\t\n|PORT\xff\xff\r\n",
    );
    let mut attacks = 0;
    for (lead, verb) in leads.iter().flat_map(|lead| verbs.iter().map(move |verb| (*lead, *verb))) {
        let line = [lead, verb, THIRD.as_bytes(), b"\r\n"].concat();
        attacks += usize::from(executed_bounce(&line).is_some());
        for cut in 0..lead.len() + 14 {
            let (first, second) = line.split_at(cut);
            let mut sim = logged_in();
            let got = say_without_bounce(&mut sim, [first, second]);
            assert_eq!(got.len(), line.len(), "sequence numbers change: {line:?} split at {cut}");
            assert_eq!((sim.timeouts(), sim.kernel.opened.len()), (0, 0));
        }
        say_without_bounce(&mut logged_in(), line.chunks(1));
    }
    assert!(attacks > 200, "only {attacks} lines are bounces for some server");
}

/// Fragments that can hide a verb, in front of an announcement of the client or of a third host. However that is split, no
/// server executes the latter, and no more is opened than by the whole.
#[test]
fn random_lines_hide_no_bounce_and_open_no_more_in_segments() {
    let own = active(at(Nat::Masquerade.translation(false).client, 2200));
    let both = words(b"\r|\n|\0|\r\n|\xff|\xf4|\xff\xfb|\xff\xf4|\xff\xfd\x06|x| |NOOP |\xff\xfa|\xff\xf0|PO|PORT ");
    let of_own = words(b"NOOP\r\n|GET / HTTP/1.1\r\n");
    let of_bounce = words(b"PORT|EPRT |RT |P|E|ORT |10,99,99,99,9,9|\xff\xfaab|\"|\x02");
    let rounds = std::env::var("FTP_ALG_ROUNDS").ok().map_or(3000, |n| n.parse().unwrap());
    let mut rng = Rng::new(17);
    let (mut attacks, mut opened) = (0, 0);
    for round in 0..rounds {
        let is_own = round % 2 == 0;
        let (parts, most) = if is_own { (&of_own, 5) } else { (&of_bounce, 9) };
        let (parts, count) = ([&both[..], parts].concat(), 1 + rng.below(most));
        let mut line: Vec<u8> = (0..count).flat_map(|_| rng.pick(&parts).to_vec()).collect();
        let end = if is_own { &own } else { " 10,99,99,99,9,9\r\n" };
        let times = 1 + usize::from(is_own && rng.chance(0.3));
        line.extend(end.repeat(times).as_bytes());
        attacks += usize::from(executed_bounce(&line).is_some());
        let (first, second) = line.split_at(rng.below(line.len()));
        let receive = |pieces: Vec<&[u8]>| {
            let mut sim = logged_in();
            say_without_bounce(&mut sim, pieces);
            sim.kernel.opened.len()
        };
        let whole = receive(vec![&line]);
        opened += whole;
        for pieces in [vec![first, second], line.chunks(1).collect()] {
            assert!(receive(pieces) <= whole, "{line:?} split at {}", first.len());
        }
    }
    assert!(attacks > rounds / 40, "only {attacks} of {rounds} lines are bounces for some server");
    assert!(opened > rounds / 20, "only {opened} of {rounds} opened a pinhole");
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
pub const SPLIT_LISTING: [&str; 2] =
    [r"213-Status follows:\r\n-rw-r--r-- x\r\n213 End", r"229 x (|||3306|)\r\n213 End of status"];

/// Anyone who may upload chooses names of files, and texts that servers show. One expands sequences in them to line ends.
#[test]
fn a_listing_or_a_file_in_a_reply_opens_no_pinhole() {
    let listings = ["STAT x", "stat x*", "MLST x", "SITE INDEX x", "HELP x"];
    let listings = listings.map(|command| (command, SPLIT_LISTING[0], "213"));
    let files = [
        ("CWD x", r"250-x\r\n250 End", "250"),
        ("PASS x", r"230-x\r\n230 End", "230"),
        ("NLST", r"226-x\r\n226 End", "226"),
        ("CDUP", r"200-x\r\n200 End", "200"),
        ("QUIT", "221 x", ""),
    ];
    for (command, start, code) in listings.into_iter().chain(files) {
        for then in ["", r"\r\nRETR x"] {
            let mut sim = Sim::logged_in(with(Nat::PortForward));
            let shown = format!(r"{start}\r\n229 x (|||3306|)\r\n{code} ok");
            sim.play(&format!(r"> {command}\r\nEPSV{then} < {shown} < 229 (|||50069|)"));
            assert_eq!(sim.kernel.opened, [], "{command}");
            // An announcement requested after the reply is complete opens a pinhole.
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
fn refused_commands_before_the_greeting_are_crossed_out_however_split() {
    // Of PORT and EPRT, some servers read the argument in the next line.
    let refused = words(
        b"PORT 10,99,99,99,21,179\r\n|EPRT 10,99,99,99,21,179\n|PORT \n10,99,99,99,21,179\r\n|EPRT\n10,99,99,99,21,179\r\n|\
        AUTH TLS\r\n|AUTH\nTLS\r\n|AUTHTLS\r\n|AU\"TH TLS\r\n",
    );
    for (first, refused) in [&b""[..], b"FEAT\r\n", b"USER x\r\n"]
        .iter()
        .flat_map(|first| refused.iter().map(|refused| (*first, *refused)))
    {
        let said = [first, refused].concat();
        for (one, two) in
            (first.len()..said.len()).flat_map(|one| (one..said.len()).map(move |two| (one, two)))
        {
            let mut scenario = with_auth_refused();
            scenario.client.nagle = false;
            let pieces = [&said[..one], &said[one..two], &said[two..]];
            let got = say_without_bounce(&mut Sim::new(scenario), pieces);
            let auth = command(&got, &[b"AUTH"], |argument| argument.starts_with(b"TLS"));
            assert_eq!(auth, None, "{said:?}, split at {one} and {two}");
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
            let mut sim = Sim::logged_in(with_auth_refused());
            let got = sim.say_in_pieces(Client, line.as_bytes().chunks(pieces));
            let verb = |bytes: &[u8]| -> Vec<u8> {
                bytes.iter().filter(|byte| byte.is_ascii_alphabetic()).take(4).copied().collect()
            };
            assert_ne!(verb(&got), verb(line.as_bytes()), "{line:?}: {got:?}");
            assert_eq!(got.len(), line.len(), "sequence numbers change");
            sim.play("< 500 what? > NOOP < 200 ok");
            assert_eq!(sim.kernel.opened, []);
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
fn plain_text_after_a_234_does_not_count_as_login() {
    let (own, seen) = ("PORT 192,168,150,80,8,152\r\n", "PORT 198,51,100,1,8,152\r\n");
    let (data, cut) = (b"\x17\x03\x03\x00\x01x", b"\x17\x03\x03\x00\x09x");
    for records in [&[][..], &[(Client, data)], &[(Server, data)], &[(Client, data), (Server, cut)]]
    {
        for login in [GREETING, LOGIN] {
            let mut sim = Sim::after(with(Nat::Masquerade), login);
            sim.play("> AUTH TLS < 234 go");
            begin_tls(&mut sim);
            for (side, record) in records {
                sim.say(*side, *record);
            }
            assert_eq!(sim.tell(Client, own), own, "{records:?}");
            assert_eq!(sim.kernel.opened, [], "{records:?}");
        }
    }
    // A login in plain text after the 234 counts.
    let mut sim = Sim::after(with(Nat::Masquerade), LOGIN);
    sim.play("> AUTH TLS < 234 go > USER x < 331 x > PASS x < 230 in");
    assert_eq!(sim.tell(Client, own), seen);
}

#[test]
fn a_refusal_is_counted_once() {
    for line in [
        &b"PO\xff\xf1RT 10,99,99,99,9,9\r\n"[..],
        b"\0PORT 10,99,99,99,9,9\r\n",
        b"NOOP\rPORT 10,99,99,99,9,9\r\n",
    ] {
        for greeted in [false, true] {
            let mut sim = match greeted {
                true => Sim::after(with(Nat::Masquerade), GREETING),
                false => logged_in(),
            };
            say_without_bounce(&mut sim, [line]);
            let counters = sim.engine().counters();
            assert_eq!((counters.pinholes_refused, counters.commands_refused), (1, 0), "{line:?}");
        }
    }
}

#[test]
fn a_picked_up_session_refuses_what_the_policy_does_after_an_ftp_reply() {
    everywhere(|mut scenario| {
        scenario.policy.auth_tls = AuthTls::Refuse;
        let third = third(scenario.v6);
        for line in ["AUTH TLS\r\n", &third, "PORT 10,0,x\r\n", "EPRT |2|fe80::1%1|5282|\r\n"] {
            let mut sim = Sim::logged_in(scenario.clone());
            sim.forget();
            sim.play("< 200 ok");
            for cut in 0..line.len() {
                assert_eq!(sim.tell_cut(Client, line, cut), crossed_out(line), "split at {cut}");
                sim.play("< 500 what?");
            }
            // The client's own announcement is forwarded, but opens no pinhole.
            let [own, _] = sim.active(2200);
            assert_eq!(sim.tell(Client, &own), own);
            assert_eq!(sim.kernel.opened.len(), 0);
        }
    });
}
