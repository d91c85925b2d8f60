//! How a dialogue begins: greetings, text before them, and clients that do not wait for them.

use super::{ambiguous_lines::say_without_bounce, dialects::assert_served, *};

#[test]
fn a_first_command_may_be_unknown() {
    assert_served(
        GREETING,
        r"
        OPEN           > OPEN ftp.example.net < 220 remote ready
        SITE           > SITE ftp.example.net < 220 remote ready
        HOST           > HOST ftp.example.net < 220 ok
        unknown        > XYZZ < 500 what?
        unknown twice  > XYZZ 1 < 502 what? > YYZZ < 500 what?
        understood     > XYZZ 1 < 200 ok
        long           > CLIENTINFO curl/8 < 500 what?
        hyphens        > GET-FEATURES x < 500 what? > X-CLIENT 1 < 500 what?
        a mark         > ? < 500 what?
        behind USER    > USER joe < 331 password > CLIENT_INFO 1 < 500 what?
        ",
        USER_PASS,
    );
    assert_served(GREETING, &format!("long > {} < 500 what?", "Z".repeat(2000)), USER_PASS);
    let later = "OPEN after a login > OPEN ftp.example.net < 220 remote ready";
    assert_served(LOGIN, later, USER_PASS);
}

#[test]
fn greetings_differ() {
    assert_served("", &format!(r"LF and many CR < 220 ready\n{}", "\r".repeat(1400)), USER_PASS);
    assert_served(
        "",
        r"
        no blank                     < 220VxWorks ready
        a blank first                <  220 ready
        a colon                      < 220: ready
        a warning first              < ld.so: no such file\r\n220 ready
        a banner first               < ** Hello ** < 220 ready
        a box first                  < +------+ < 220 ready
        a date first                 < 2026/11/27 07:49:19 warning: x < 220 ready
        another date first           < 27/11/2026 welcome < 220 ready
        220- ended by 230            < 220-hello\r\n230 ready
        a colour first               < \u{1b}[0m < 220 ready
        a banner in UTF-8            < Grüße, 世界 🦀 < 220 ready
        a byte order mark            < \u{feff}220 ready
        a byte order mark and lines  < \u{feff}220-a\r\n220 b
        a colour within              < \u{1b}[0m220 ready
        a control byte               < \u{12}220 ready
        four digits                  < 0220 ready
        a hard blank                 < 220\u{a0}ready
        LF CR                        < 220 ready\n\r
        LF CR and a code             < 220 ready\n\r220 go on
        LF CR LF                     < 220 ready\n\r\n
        LF and CR                    < 220 ready\n < \r
        a second greeting            < 220 ready < 220 remote ready
        an empty line first            < 220 ready > \r\n
        an empty line that is refused  < 220 ready > \r\n < 500 what?
        an early empty line            > \r\n < 220 ready
        an early LF                    > \n < 220 ready
        early HOST                     > HOST x < 220 ready < 220 ok
        ",
        USER_PASS,
    );
    let login = "< 331 password > PASS x < 230 in";
    assert_served(
        "",
        &format!(
            r"
            a second greeting after USER   < 220 ready > USER joe < 220 remote ready {login}
            USER in the greeting           < 220-hello > USER joe < 220-more\r\n220 ready {login}
            early USER                     > USER joe < 220 ready {login}
            early empty line and USER      > \r\n > USER joe < 220 ready {login}
            early USER and PASS            > USER joe > PASS x < 220 ready < 331 password < 230 in
            early USER, text               > USER joe < hello < 220 ready {login}
            early USER, lines              > USER joe < 220-hello\r\n \r\n220 ready {login}
            early USER, byte order mark    > USER joe < \u{{feff}}220 ready {login}
            after the first                < 220 a > USER joe < 220 b < 220 c {login}
            after the second               < 220 a < 220 b > USER joe < 220 c {login}
            two at once                    < 220 a > USER joe < 220 b\r\n220 c {login}
            all at once                    < 220 a > USER joe < 220 b\r\n220 c\r\n331 password > PASS x < 230 in
            PASS between                   < 220 a > USER joe < 220 b > PASS x < 220 c < 331 password < 230 in
            PASS behind USER               < 220 a > USER joe\r\nPASS x < 220 b < 220 c < 331 password < 230 in
            two greetings                  < 220 a > USER joe\r\nPASS x < 220 b < 331 password < 230 in
            no password                    < 220 a > USER joe < 220 b < 220 c < 230 in
            HOST first                     < 220 a > HOST x < 220 b < 220 c < 220 ok > USER joe {login}
            a greeting of 230 is a login   < 230 Welcome
            a 230 in lines                 < 230-a\r\n230 Welcome
            a 230, then a command          < 230 Welcome > PWD < 257 x
            a 230, then USER               < 230 Welcome > USER joe {login}
            a 230, then USER, 230          < 230 Welcome > USER joe < 230 already
            a 230, then USER, 530          < 230 Welcome > USER joe < 530 already
            a 230, then 220                < 230 Welcome < 220 ready
            a 230 after 120                < 120 wait < 230 Welcome
            "
        ),
        "",
    );
}

#[test]
fn bounces_are_refused_in_a_first_line_with_a_nul() {
    let third = third(false);
    for greeting in ["", "hello\r\n", "220 ready\r\n"] {
        for first in [format!("\0{third}"), third.replace(' ', " \0"), third.replace("\r", "\0\r")]
        {
            for cut in 0..first.len() {
                let mut sim = Sim::new(with(Nat::Masquerade));
                sim.say(Server, greeting.as_bytes());
                let (start, rest) = first.as_bytes().split_at(cut);
                say_without_bounce(&mut sim, [start, rest]);
                assert_eq!(sim.kernel.opened, []);
            }
        }
    }
}

/// A server may send text before its greeting, whatever its client has sent by then.
#[test]
fn bounces_are_refused_whichever_end_begins() {
    let third = third(false);
    let texts = ["", "< hello", r"< \r\n", "<  220 ready", r"< \u{feff}220 ready", "< ** x **"];
    for text in texts {
        for first in ["> GET / HTTP/1.1", r"> \0\r\n", "> NOOP", "> SYST", "> PASS x"] {
            for client_begins in [false, true] {
                let (one, two) = if client_begins { (first, text) } else { (text, first) };
                let mut sim = Sim::new(with(Nat::Masquerade));
                for said in messages(one).into_iter().chain(messages(two)) {
                    sim.tell(if said.from_client { Client } else { Server }, &said.text);
                }
                let is_greeting = !client_begins && text.contains("220");
                let rest = if is_greeting { "< 503 log in" } else { r"< 220 ready\r\n500 what?" };
                sim.play(rest);
                sim.play(USER_PASS);
                say_without_bounce(&mut sim, [third.as_bytes()]);
                assert_eq!(sim.kernel.opened, [], "{text:?} {first:?} {client_begins}");
            }
        }
    }
}

/// A server whose text is no greeting may speak another protocol, whose client waits for an echo of each byte.
#[test]
fn a_text_protocol_waits_for_no_line() {
    let mut sim = Sim::after(without_nagle(Nat::Masquerade), "< Welcome > look < Nothing.");
    for byte in ["e", "p", "P", "o"] {
        assert_eq!((&*sim.tell(Client, byte), &*sim.tell(Server, byte)), (byte, byte));
    }
}

const PROXY_V1: &str = r"PROXY TCP4 203.0.113.7 198.51.100.9 40000 21\r\n";
const PROXY_V2: &str =
    r"\r\n\r\n\0\r\nQUIT\n!\u{11}\0\u{c}\u{a}\0\0\u{d}d\u{b}d\u{9}\u{9}@\0\u{15}\c";

/// A load balancer sends it before the client's first byte, and the server does not greet before. A server that does not
/// know it refuses it.
#[test]
fn a_session_goes_on_behind_a_proxy_header() {
    for header in [PROXY_V1, PROXY_V2, "PROXY UNKNOWN"] {
        let table = format!(
            r"
            before the greeting  > {header} < 220 ready
            behind it            < 220 ready > {header}
            a long greeting      > {header} < 120 wait < 220-a < 220 b
            "
        );
        assert_served("", &table, USER_PASS);
    }
    let header = PROXY_V1.replace(r"\r\n", "");
    assert_served("", &format!("refused > {header} < 220 ready < 500 what?"), USER_PASS);
    let first_command = format!(r"> {header}\r\nUSER joe < 220 ready");
    assert_served("", &first_command, "< 331 password > PASS x < 230 in");
    // Its addresses may be line ends.
    let mut sim = Sim::after(with(Nat::Masquerade), GREETING);
    let bytes = b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c\x0a\x0d\x0a\x01\xc63d\x09\x0d\x0a\0\x15";
    assert_eq!(sim.say(Client, bytes), bytes);
    sim.play(&format!("{USER_PASS}> ACTIVE 2200"));
}

/// Nothing opens, or passes, that would not without it.
#[test]
fn a_proxy_header_gives_its_sender_nothing() {
    for header in [PROXY_V1, PROXY_V2] {
        let named = "> PORT 203,0,113,7,19,136 => X";
        let sim = Sim::after(with(Nat::Masquerade), &format!("> {header} {LOGIN}{named}"));
        assert_eq!(sim.kernel.opened, []);
        // What follows it is no FTP.
        for rest in ["> GET / HTTP/1.1", r"> \0\0x\r\n", "> NOOP"] {
            let mut sim = Sim::after(with(Nat::Masquerade), &format!("> {header} {rest} {LOGIN}"));
            sim.hear("> ACTIVE 5000");
            assert_eq!(sim.kernel.opened, [], "{header} {rest}");
        }
    }
    let third = third(false);
    let long = format!("\r\n\r\n\0\r\nQUIT\n!\u{11}\0\u{40}\r\n{third}");
    let telnet = format!("\r\n\r\n\0\r\nQUIT\n!\u{11}\0\u{1b}\n{third}");
    for first in [long, telnet, format!("PROXY TCP4 \r{third}"), format!("PROXY TCP4\n{third}")] {
        say_without_bounce(&mut Sim::new(with(Nat::Masquerade)), [first.as_bytes()]);
    }
    // A server that does not know it: the client's first line goes on behind its last one.
    let v2 = |behind: &[u8]| {
        [&b"\r\n\r\n\0\r\nQUIT\n!\x11\0"[..], &[behind.len() as u8], behind].concat()
    };
    for (behind, line) in [
        (&b"\xcb\0q\x07\xc63d\x09\x9c@\0\x15\rPO"[..], "RT 10,99,99,99,9,9\r\n"),
        (b"\xcb\0q\x07\xc63d\x09\x9c@\0\x15\0P", "ORT 10,99,99,99,9,9\r\n"),
        (b"\xcb\0q\x07\xc63d\x09\x9c@\0\x15\n\xff", "xPORT 10,99,99,99,9,9\r\n"),
        (b"\r\nPO", "RT 10,99,99,99,9,9\r\n"),
    ] {
        for cut in 0..line.len() {
            let mut sim = Sim::after(with(Nat::Masquerade), "< 220 ready");
            let (start, rest) = line.as_bytes().split_at(cut);
            say_without_bounce(&mut sim, [&v2(behind), start, rest]);
        }
    }
    // A server that answers the header late: its next reply is that to STAT, not to PASV.
    let late = format!("> {PROXY_V1} {LOGIN} > STAT f < 500 what? > PASV");
    let mut sim = Sim::after(with(Nat::Masquerade), &late);
    sim.play(r"< 211-f\r\n211 end\r\n229 ok (|||5000|)");
    assert_eq!(sim.kernel.opened, []);
    // A header is the first thing that a client sends.
    let mut sim = Sim::after(with(Nat::Masquerade), &format!("> {PROXY_V1} > {PROXY_V2} {LOGIN}"));
    sim.hear("> ACTIVE 5000");
    assert_eq!(sim.kernel.opened, []);
}
