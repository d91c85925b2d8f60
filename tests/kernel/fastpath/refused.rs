//! What the program hands back: every packet that is not the next bypassable line.

use std::net::SocketAddr;

use super::{
    frames::*,
    layout::*,
    scene::{ID, Talk, ip, masqueraded, routed, routed6},
};

fn in_state(dialogue: u32) -> Talk {
    Talk::new(Flow { dialogue, ..routed() })
}

/// The lines of a table, which line breaks or two blanks separate. `~` is a blank of the line.
fn lines(table: &str) -> impl Iterator<Item = String> {
    let lines = table.split("  ").map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.replace('~', " "))
}

/// Asserts that each line of `table`, with `start` before it, is handed back.
#[track_caller]
fn assert_handed_back(dialogue: u32, side: Side, start: &str, table: &str) {
    let mut talk = in_state(dialogue);
    for line in lines(table) {
        talk.line_hands_back(side, format!("{start}{line}\r\n"));
    }
}

#[test]
fn a_request_line_of_another_protocol_is_handed_back() {
    assert_handed_back(
        READY,
        Side::Client,
        "",
        "RETR / HTTP/1.1  stor * http/2  QUIT a: HTTP/1.0  CWD rtsp://10.0.0.2/ RTSP/1.0  PWD / SIP/2.0
         LIST / ICAP/12.34  TYPE ~/ HTTP/1.1  TYPE / HTTP/1.1~  TYPE /~ HTTP/1.1  RETR a b c/1  RETR a~",
    );
    let mut talk = in_state(READY);
    for line in lines(
        "RETR pub/1  RETR a b/1.  RETR a 1  RETR a b/
         CWD a b/c  DELE HTTP/1.1  MKD ~a/b  RETR a/1 b1",
    ) {
        talk.says(Side::Client, &line);
        talk.says(Side::Server, "250 fine");
    }
}

#[test]
fn other_lines_before_the_login_are_handed_back() {
    for (dialogue, side, table) in [
        (
            LOGIN_DUE,
            Side::Client,
            "QUIT  SYST  FEAT  USER  PASS  USER a b  PASS / HTTP/1.1  ACCT a",
        ),
        (LOGIN_DUE, Side::Server, "220 hello  230 in  331 password  150 wait  200 ok"),
        (LOGIN_PENDING, Side::Client, "USER a  PASS a  NOOP"),
        (
            LOGIN_PENDING,
            Side::Server,
            "220 hello  200 ok  202 superfluous  231 out  232 in  332 account  421 bye  500 what
             530 no  230-in  331-password  150 wait  227 (192,0,2,9,4,1)",
        ),
    ] {
        assert_handed_back(dialogue, side, "", table);
    }
    let mut talk = in_state(LOGIN_PENDING);
    let end = Frame { flags: ACK | FIN, payload: Vec::new(), ..talk.frame(Side::Client, "") };
    talk.hands_back(&end);
}

#[test]
fn commands_that_are_not_bypassable_are_handed_back() {
    for (start, table) in [
        (
            "",
            "USER a  PASS a  ACCT a  REIN  ABOR a  ABOR~  AUTH TLS  PBSZ 0  PROT P  CCC  SITE x  FEAT  OPTS UTF8 ON
             HELP  QUIT now  QUIT~  STAT  STOU  ALLO 1  MODE Z  STRU F  SMNT x  LPRT 1  LPSV  SPSV  CPSV
             HOST a  LANG  CLNT a  XPWD  XCWD a  MFMT a

             NOOPS  NOOP\ta  NOO  NOP a  NOOP-a  PWDX  PWD-  CWDa b  CW a b  LISTa  nlst,  ~NOOP  \\NOOP
             .OOP aa  NO\x0fP aa  RETRX a  CD.P  \x10WD aaa

             PASV~  PASV a  PASVa  EPSV 1  EPSV ALL  EPSV~  PORT  PORT~  PORT~~  PORT\t10,0,0,2,4,1
             PORT10,0,0,2,4,1  EPRT  EPRT~",
        ),
        (
            "PORT ",
            "10,0,0,2,4  10,0,0,2,4,  10,0,0,2,4,1,  10,0,0,2,4,1,1  ~10,0,0,2,4,1  10,0,0,2,4,1~
             10,0,0,2,4, 1  10, 0,0,2,4,1  10,0,0,2,,1  ,10,0,0,2,4,1  10.0.0.2.4.1
             10,0,0,2,256,1  10,0,0,2,4,256  10,0,0,2,1000,1  266,0,0,2,4,1  10,0,0,2,4294967300,1
             10,0,0,2,04,1  10,0,0,2,4,01  10,0,0,2,4,001  10,0,0,2,00,1  010,0,0,2,4,1  10,0,00,2,4,1
             10,0,0,2,4,1a  10,0,0,2,a,1  +10,0,0,2,4,1  10,0,0,2,-4,1  10,0,0,2,4,0x1  (10,0,0,2,4,1)
             10,0,0,3,4,1  192,0,2,9,4,1  2,0,0,10,4,1  10,0,0,2,0,0",
        ),
        (
            "EPRT ",
            "|1|10.0.0.2|1025  |1|10.0.0.2|1025||  |1|10.0.0.2|1025|~  ~|1|10.0.0.2|1025|
             |2|10.0.0.2|1025|  |2|::1|1025|  |01|10.0.0.2|1025|  |1|10.0.0.3|1025|  |1|10.0.0|1025|
             |1|10.0.0.2.|1025|  |1|10.0.0.256|1025|  |1|10.0.0.02|1025|  |1|10,0,0,2|1025|
             |1|10.0.0.2|01025|  |1|10.0.0.2|65536|  |1|10.0.0.2|99999|  |1|10.0.0.2|100000|
             |1|10.0.0.2|4294968321|  |1|10.0.0.2|0|  |1|10.0.0.2||  |1||1025|  |||1025|
             !1!10.0.0.2!1025!  |1|10.0.0.2|1025!",
        ),
    ] {
        assert_handed_back(READY, Side::Client, start, table);
    }
}

#[test]
fn other_announcements_over_ipv6_are_handed_back() {
    let mut talk = Talk::new(routed6());
    for argument in lines(
        "|2|2001:DB8:1::2|1025|  |2|2001:0db8:1::2|1025|  |2|2001:db8:1:0::2|1025|  |2|2001:db8:1::02|1025|
         |2|2001:db8:1::0.0.0.2|1025|  |2|2001:db8:1::3|1025|  |2|2001:db8:1::|1025|  |2|2001:db8:1::22|1025|
         |2|[2001:db8:1::2]|1025|  |2|2001:db8:1::2%lan|1025|  |2|::ffff:10.0.0.2|1025|  |2|10.0.0.2|1025|
         |1|2001:db8:1::2|1025|  |1|10.0.0.2|1025|  |3|2001:db8:1::2|1025|  |2|2001:db8:9::9|1025|
         |2|2001:db8:1::2|01025|  |2|2001:db8:1::2|65536|  |2|2001:db8:1::2|0|  |2|2001:db8:1::2|1025  |2||1025|",
    ) {
        talk.line_hands_back(Side::Client, format!("EPRT {argument}\r\n"));
    }
    for numbers in lines("10,0,0,2,4,1  0,0,0,2,4,1  32,1,13,184,4,1  2001:db8:1::2,4,1") {
        talk.line_hands_back(Side::Client, format!("PORT {numbers}\r\n"));
    }
    talk.says(Side::Client, "PASV");
    for numbers in lines("192,0,2,9,4,1  0,0,0,9,4,1  32,1,13,184,4,1  2001:db8:9::9,4,1") {
        talk.line_hands_back(Side::Server, format!("227 ({numbers})\r\n"));
    }
}

#[test]
fn other_replies_are_handed_back() {
    let of_passive =
        "200 ok  150 x  226 x  425 x  500 x  530 x  228 (192,0,2,9,4,1)  350 (192,0,2,9,4,1)
                      227-Entering (192,0,2,9,4,1)  229-Entering (|||1025|)";
    for (dialogue, table) in [
        (
            COMMAND_PENDING,
            "120 wait  421 bye  227 (192,0,2,9,4,1)  228 x  229 (|||1025|)  230 in  231 out  234 TLS  239 x
             331 password  332 x  339 x  600 x  000 x  099 x  950 x
             20 ok  2000 ok  200ok  200-ok  200\tok  ~200 ok  2a0 ok  20a ok  a00 ok  /00 ok  2:0 ok  20/ ok
             ok then  150-wait  2000  200",
        ),
        (
            PORT_PENDING,
            "150 wait  125 x  300 x  350 x  421 x  425 x  450 x  500 x  501 x  530 x  227 x
             227 (192,0,2,9,4,1)  228 x  229 (|||1025|)  230 in  200-ok",
        ),
        (PASV_PENDING, of_passive),
        (PASV_PENDING, "229 (|||1025|)"),
        (EPSV_PENDING, of_passive),
        (EPSV_PENDING, "227 (192,0,2,9,4,1)"),
    ] {
        assert_handed_back(dialogue, Side::Server, "", table);
    }
}

#[test]
fn other_forms_of_227_and_229_are_handed_back() {
    assert_handed_back(
        PASV_PENDING,
        Side::Server,
        "227",
        "~  ~192,0,2,9,4,1  ~=192,0,2,9,4,1  ~(192,0,2,9,4,1  ~192,0,2,9,4,1)  ~[192,0,2,9,4,1]  ~(192.0.2.9.4.1)
         ~(192,0,2,9,4)  ~(192,0,2,9,4,1,1)  ~(192,0,2,9,4,1,)  ~(192,0,2,9,,1)
         ~( 192,0,2,9,4,1)  ~(192,0,2,9,4,1 )  ~(192, 0,2,9,4,1)
         ~(192,0,2,9,256,1)  ~(192,0,2,9,4,256)  ~(192,0,2,9,04,1)  ~(192,0,2,9,4,001)  ~(192,0,2,09,4,1)
         ~(192,0,2,9,0,0)  ~(192,0,2,8,4,1)  ~(10,0,0,2,4,1)  ~(0,0,0,0,4,1)
         ~((192,0,2,9,4,1)  ~(192,0,2,9,4,1) (  ~() (192,0,2,9,4,1)  ~(a) (192,0,2,9,4,1)
         ~1,2,3,4,5,6 (192,0,2,9,4,1)  ~mode 4 (192,0,2,9,4,1)",
    );
    assert_handed_back(
        EPSV_PENDING,
        Side::Server,
        "229",
        "~  ~|||1025|  ~(||1025|)  ~(|||1025)  ~(|||1025|  ~(|||1025||)  ~(||||1025|)  ~(!!!1025!)  ~(|||1025!)
         ~(|||01025|)  ~(|||65536|)  ~(|||100000|)  ~(|||4294968321|)  ~(|||0|)  ~(||||)
         ~(|1|192.0.2.9|1025|)  ~( |||1025|)  ~(|||1025| )  ~((|||1025|)  ~(|||1025|)(
         ~!!!7! (|||1025|)  ~7 (|||1025|)",
    );
}

#[test]
fn unusual_headers_are_handed_back() {
    for (side, dialogue, line) in
        [(Side::Client, READY, "NOOP\r\n"), (Side::Server, COMMAND_PENDING, "200 ok\r\n")]
    {
        let mut talk = in_state(dialogue);
        let good = talk.frame(side, line);
        for flags in [FIN, SYN, RST, URG, ECE, CWR, NS] {
            talk.hands_back(&Frame { flags: ACK | PSH | flags, ..good.clone() });
        }
        for flags in [0, PSH, FIN, SYN, RST] {
            talk.hands_back(&Frame { flags, ..good.clone() });
        }
        for flags in [SYN, SYN | ACK, RST, RST | ACK, URG | ACK] {
            talk.hands_back(&Frame { flags, payload: Vec::new(), ..good.clone() });
        }
        for mark in [1, talk.before.inspected_mark | 1, u32::MAX] {
            talk.hands_back(&Frame { mark, ..good.clone() });
        }
        talk.hands_back(&Frame { ip_options: vec![1; 4], ..good.clone() });
        talk.hands_back(&Frame { ip_options: vec![1; 40], ..good.clone() });
        talk.hands_back(&Frame { more_fragments: true, ..good.clone() });
        // Unusual headers are handed back even on a retransmission.
        talk.inspected(&good, line.as_bytes());
        talk.hands_back(&Frame { flags: ACK | FIN, ..good.clone() });
        talk.hands_back(&Frame { mark: 1, ..good });
    }
}

#[test]
fn only_a_right_or_partial_checksum_passes() {
    let line = "NOOP some thing\r\n";
    for (options, flow) in [(0, routed()), (12, routed()), (0, routed6()), (12, routed6())] {
        for wrong in [1, 0x100, 0x8000] {
            let mut talk = Talk::new(flow);
            let mut frame = talk.frame(Side::Client, line);
            frame.tcp_options = vec![1; options];
            frame.checksum = Checksum::WrongBy(wrong);
            talk.hands_back(&frame);
        }
        let talk = Talk::new(flow);
        let mut frame = talk.frame(Side::Client, line);
        frame.tcp_options = vec![1; options];
        frame.checksum = Checksum::OfPseudoHeader;
        assert_eq!(talk.scene.run(&frame).mark, talk.before.inspected_mark);
    }
}

#[test]
fn pure_acknowledgements_pass_with_a_mark() {
    let mut talk = in_state(READY);
    let good = talk.frame(Side::Client, "NOOP\r\n");
    for flags in [ACK, ACK | PSH, ACK | ECE] {
        let seq = good.seq.wrapping_add(7);
        let empty = Frame { flags, seq, payload: Vec::new(), padding: 6, ..good.clone() };
        let counts = talk.scene.counts();
        talk.passes(&empty, b"");
        talk.is_ignored(&Frame { mark: 7, ..empty.clone() });
        talk.is_ignored(&Frame { ip_options: vec![1; 4], ..empty });
        assert_eq!((talk.scene.counts(), talk.scene.lines()), (counts, vec![]));
        assert_eq!(talk.scene.flow(ID), talk.before);
    }
    let (source, destination) = (good.destination, good.source);
    talk.passes(&Frame { source, destination, payload: Vec::new(), ..good }, b"");
    talk.says(Side::Client, "NOOP");
}

#[test]
fn packets_of_no_flow_are_ignored() {
    let mut talk = in_state(READY);
    let good = talk.frame(Side::Client, "NOOP\r\n");
    let other_port = SocketAddr::new(good.source.ip(), 40001);
    talk.is_ignored(&Frame { source: other_port, ..good.clone() });
    let other_address = SocketAddr::new(ip("10.0.0.3"), good.source.port());
    talk.is_ignored(&Frame { source: other_address, ..good.clone() });
    talk.is_ignored(&Frame { fragment_offset: 1, ..good });
}

#[test]
fn packets_of_a_flow_that_was_handed_back_are_ignored() {
    let mut talk = in_state(READY);
    let frame = talk.frame(Side::Client, "NOOP\r\n");
    talk.before.handed_over = 0;
    let before = talk.before;
    talk.scene.set_flow(ID, &before);
    talk.is_ignored(&frame);
    talk.is_ignored(&Frame { flags: FIN | ACK, ..frame.clone() });
    talk.scene.remove_flow(ID);
    let outcome = talk.scene.run(&frame);
    assert_eq!((outcome.mark, outcome.bytes), (0, frame.to_bytes()));
    assert_eq!(talk.scene.counts(), [0; 6]);
    talk.hand_over();
    talk.scene.remove_tuple(PacketTuple::new(frame.source, frame.destination));
    talk.is_ignored(&frame);
}

#[test]
fn packets_that_cannot_be_adjusted_are_handed_back() {
    let mut talk =
        Talk::new(Flow { adjusted: 1, offset_since: routed().next_seq, ..masqueraded() });
    let timestamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let acknowledgement = |talk: &Talk, side| Frame { flags: ACK, ..talk.frame(side, "") };
    let sack = vec![1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let reversed = [&timestamps[2..], &[1, 1]].concat();
    for options in [sack, reversed, [&timestamps[..], &[0; 4]].concat()] {
        for frame in [acknowledgement(&talk, Side::Client), talk.frame(Side::Client, "NOOP\r\n")] {
            talk.hands_back(&Frame { tcp_options: options.clone(), ..frame });
        }
    }
    let frame = acknowledgement(&talk, Side::Server);
    talk.hands_back(&Frame { ip_options: vec![1; 4], ..frame.clone() });
    talk.hands_back(&Frame { more_fragments: true, ..frame.clone() });
    talk.hands_back(&Frame { mark: 1, ..frame.clone() });
    talk.hands_back(&Frame { flags: ACK | CWR, ..frame.clone() });
    talk.hands_back(&Frame { flags: ACK | RST, ..frame.clone() });
    talk.passes(&Frame { flags: ACK | PSH, ..frame.clone() }, b"");
    talk.passes(&Frame { padding: 6, ..frame }, b"");
}
