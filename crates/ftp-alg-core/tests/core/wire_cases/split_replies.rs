//! A client can use its receive window to make its server stop anywhere in a reply. The next segment then looks like
//! another reply, but is the remainder of the same one.

use ftp_alg_core::packet::flags::ACK;

use super::{
    ambiguous_lines::SPLIT_LISTING,
    support::ends::{Ends, WIDE},
    *,
};

const REPLY: &str = "229 x (|||3306|)\r\n";
const EPSV: &str = "> EPSV < 229 x (|||3306|)";

/// A session in which the client has requested a listing, on a connection with or without window scaling.
fn listing(window_scale: Option<u8>) -> Ends {
    let mut scenario = with(Nat::PortForward);
    scenario.server.window_scale = window_scale;
    let mut ends = Ends::new(scenario);
    ends.play("> STAT x");
    ends
}

/// A session after a listing that looks complete.
fn after_a_listing(window_scale: Option<u8>) -> Ends {
    let mut ends = listing(window_scale);
    ends.play(&format!("< {}", SPLIT_LISTING[0]));
    ends
}

/// Sends an acknowledgement without data, `ahead` of the client's sequence number. Returns the sequence number with
/// which the server gets it, if it does.
fn acknowledge(ends: &mut Ends, ahead: u32) -> Option<u32> {
    ends.client += ahead;
    let passed = ends.pass(Client, "", ACK, if ahead == 0 { WIDE } else { 0 });
    ends.client -= ahead;
    Some(passed?.seq)
}

fn assert_no_case_opens_a_pinhole(begin: impl Fn() -> Ends, table: &str) {
    for case in cases(table) {
        assert_eq!(begin().play(case), 0, "{case}");
    }
}

/// The client's window makes the server stop in the middle of the listing.
#[test]
fn a_listing_stalled_by_the_client_window_opens_no_pinhole() {
    let mut ends = listing(None);
    let [first, second] = SPLIT_LISTING;
    assert_eq!(ends.play(&format!("< {first} @more > EPSV < {second} < 229 (|||50069|)")), 0);
    // The server has no more data to send.
    assert_eq!(ends.play("> EPSV < 229 (|||50070|)"), 1);
}

#[test]
fn a_possible_remainder_of_an_earlier_reply_opens_no_pinhole() {
    let enough = REPLY.len() + 1;
    let complete = format!("> EPSV @{enough} < 229 x (|||3306|)");
    assert_eq!(after_a_listing(None).play(&complete), 1, "a complete reply must open a pinhole");
    assert_no_case_opens_a_pinhole(
        || after_a_listing(None),
        r"
        the window has no room for more than the reply             > EPSV @18 < 229 x (|||3306|)
        the window is smaller in the last segment of the command   > EPSV\c > \r\n @1 < 229 x (|||3306|)
        the window is smaller in the first segment of the command  > EPSV\c @1 > \r\n < 229 x (|||3306|)
        the window is smaller in the retransmission that the server receives > EPSV @lost > EPSV @1 < 229 x (|||3306|)
        the window is smaller in the segment that the server does not receive > EPSV @lost @1 > EPSV < 229 x (|||3306|)
        the server ignores the window because the acknowledgement is old  > EPSV @old < 229 x (|||3306|)
        the server never received the command                      > EPSV @lost < 229 x (|||3306|)
        the reply has no PSH, so the server has more data          > EPSV < 229 x (|||3306|) @more
        the segment contains more than the reply                   > EPSV < 229 x (|||3306|)\r\n213 End
        a line before it filled the window  > TYPE I\r\nEPSV @40 < 200                                   \r\n < 229 x (|||3306|)
        the window is larger in a segment that the server has already  > EPSV @8 < 200 ab > EPSV @-6 < 229 x (|||3306|)
        an acknowledgement has closed the window again             > EPSV > \c @18 < 229 x (|||3306|)
        the same, and another has opened it, which the server may not have received > EPSV > \c @0 > \c < 229 x (|||3306|)
        the reply is in two segments                               > EPSV < 229 x\c <  (|||3306|)
        ",
    );
}

/// The client closes the window by acknowledgements while its server still writes the reply before.
#[test]
fn a_window_that_a_pipeline_offered_and_that_was_closed_again_does_not_count() {
    for (before, listing) in [
        ("STAT x", r"212-x\r\n212 End"),
        ("CWD x", r"250-x\r\n250 End"),
        ("MLST x", r"250-x\r\n250 End"),
        ("PWD", "257 \"/"),
    ] {
        for window in [30_000, REPLY.len()] {
            let closed = listing.replace(r"\r\n", "\r\n").len() + 2;
            assert_no_case_opens_a_pinhole(
                || Ends::new(with(Nat::PortForward)),
                &format!(
                    r"> {before}\r\nEPSV > \c @{closed} < {listing} > \c @{window} < 229 x (|||3306|)"
                ),
            );
        }
    }
}

/// The server ignores the windows of packets before the number of such an acknowledgement (`tcp_may_update_window`).
#[test]
fn an_acknowledgement_from_the_future_does_not_arrive() {
    let mut ends = after_a_listing(None);
    assert_eq!(acknowledge(&mut ends, 0), Some(ends.client), "that of the listing arrives");
    for ahead in [1, 6, 60_000] {
        // The server discards a probe, and answers it.
        let arrived = acknowledge(&mut ends, ahead);
        assert!(arrived.is_none_or(|seq| seq < ends.client), "{ahead}");
    }
    assert_eq!(ends.play(EPSV), 1);
}

/// Bytes of the client passed unread, as during downtime. It has their acknowledgement, and sends only keep-alives while
/// a transfer runs.
#[test]
fn a_keep_alive_behind_missed_bytes_is_answered() {
    let mut ends = after_a_listing(None);
    let (known, missed) = (ends.client, 10);
    assert_eq!(acknowledge(&mut ends, missed - 1), None);
    let probe = acknowledge(&mut ends, missed - 1).unwrap();
    assert!(probe < known, "{probe} {known}");
    ends.client += missed;
    ends.pass(Server, "", ACK, WIDE);
    ends.client -= 1;
    assert_eq!(acknowledge(&mut ends, 0), Some(ends.client));
}

/// As println of many small servers (ESP8266) sends each line.
#[test]
fn a_reply_whose_line_end_is_a_segment_of_its_own_opens_a_pinhole() {
    for reply in [r"< 229 x (|||3306|)\c < \r\n", r"< 229 x (|||3306|)\r\c < \n"] {
        let mut ends = after_a_listing(None);
        for opened in 1..3 {
            assert_eq!(ends.play(&format!("> EPSV {reply}")), opened, "{reply}");
        }
    }
    assert_no_case_opens_a_pinhole(
        || after_a_listing(None),
        r#"
        the server has more to send behind the text      > EPSV < 229 x (|||3306|)\c @more < \r\n
        the server has more to send behind the line end  > EPSV < 229 x (|||3306|)\c < \r\n @more
        the window ends with the text                    > EPSV @16 < 229 x (|||3306|)\c < \r\n
        the window ends with the line                    > EPSV @18 < 229 x (|||3306|)\c < \r\n
        the text is in two segments                      > EPSV < 229 x\c <  (|||3306|)\c < \r\n
        the text begins behind another line              > EPSV < 213 End\r\n229 x (|||3306|)\c < \r\n
        more than the line end follows                   > EPSV < 229 x (|||3306|)\c < \r\n213 End
        the rest of a name follows                       > EPSV < 229 x (|||3306|)\c < " is the current directory
        "#,
    );
}

/// A field of 31 is a window of 63 KB with a scale of 11, and one of 31 bytes with a scale of 0. Only the ends know.
#[test]
fn a_small_window_field_is_raised_if_windows_are_scaled() {
    let window = |ends: &mut Ends, command: &str, field| {
        let passed = ends.pass(Client, command, ACK, field).unwrap();
        ends.client += command.len() as u32;
        passed.window
    };
    for scale in [0, 7, 14] {
        let mut ends = after_a_listing(Some(scale));
        for (opened, field) in (1..).zip([1, 4, 31, 255]) {
            assert_eq!(window(&mut ends, "EPSV\r\n", field), 256, "field {field}");
            assert_eq!(ends.play("< 229 x (|||3306|)"), opened, "field {field}");
        }
        // An end without room has none, and a larger window is left alone.
        for field in [0, 256, 502, WIDE] {
            assert_eq!(window(&mut ends, "NOOP\r\n", field), field);
            ends.play("< 200 ok");
        }
    }
    assert_eq!(window(&mut after_a_listing(None), "EPSV\r\n", 31), 31, "the field is the window");
}

/// What waits in the server's TCP comes first, and as much of it as the raised window lets pass.
#[test]
fn what_waited_behind_a_raised_window_opens_no_pinhole() {
    let raised = 256 - "200 \r\n".len();
    assert_no_case_opens_a_pinhole(
        || after_a_listing(Some(7)),
        &format!(
            r"
            more than a line fits  > EPSV @18 < 229 x (|||3306|)\r\n213 End of status
            a line fills the window, then acknowledgements let one more line pass  > TYPE I\r\nEPSV @31 < 200 {:raised$}\r\n < 229 x (|||3306|)
            the client has no room  > EPSV @0 < 229 x (|||3306|)
            a part of the command has no room  > EPSV\c @0 > \r\n @31 < 229 x (|||3306|)
            ",
            ""
        ),
    );
}

/// A reply of one line repeats a name with line ends, and the client makes the server stop before the last one.
#[test]
fn the_rest_of_a_reply_with_a_stray_line_opens_no_pinhole() {
    for stray in [r"250 Now in x\r\nfoo", r"250 Now in x\n", r"250 Now in x\rfoo"] {
        assert_no_case_opens_a_pinhole(
            || {
                let mut ends = listing(None);
                ends.play("< 213 none");
                ends
            },
            &format!(
                r"
                the command came before     > CWD x\r\nEPSV < {stray} < 229 x (|||3306|)
                the window has no room      > CWD x < {stray} > EPSV @18 < 229 x (|||3306|)
                the stray line is a segment of its own  > CWD x < 250 Now in x < foo > EPSV < 229 x (|||3306|)
                the server had more to send > CWD x < {stray} @more > EPSV < 229 x (|||3306|)\r\n is the directory
                "
            ),
        );
    }
    // A server echoes text of the client, and a small MSS makes a segment begin like a reply. The remainder of a line is
    // parsed as the remainder, and the last one answers no pending command.
    assert_no_case_opens_a_pinhole(
        || Ends::new(with(Nat::PortForward)),
        r"
        a file's name      > PASV < 550 no such file: \c < 227 =203,0,113,9,9,9
        behind a reply     > PASV < 550 no \c < 226 x < 227 =203,0,113,9,9,9
        ",
    );
}

/// A server that writes line by line may send each line of a listing when its client waits for a reply.
#[test]
fn the_lines_of_an_open_listing_are_not_replies() {
    assert_no_case_opens_a_pinhole(
        || listing(None),
        r"
        an end with another code  < 211-status of x < 212 end > EPSV < 229 x (|||3306|)
        a login                   < 211-status of x < 220 a > USER u < 331 b > PASS p < 230 c > EPSV < 229 x (|||3306|)
        a plain command           < 211-status of x < 220 a > NOOP < 200 b > EPSV < 229 x (|||3306|)
        ",
    );
    // With its own code, the line is the end.
    assert_eq!(listing(None).play("< 211-status of x < 211 end > EPSV < 229 x (|||5000|)"), 1);
}

/// Scripts send all their commands at once.
#[test]
fn a_listing_that_is_requested_behind_a_pasv_does_not_block_it() {
    const RIGHT: &str = "229 ok (|||50069|)";
    const FALSE: &str = "229 x (|||3306|)";
    let opened_ports = |script: &str| {
        let sim = Sim::after(with(Nat::PortForward), &format!("{LOGIN}{script}"));
        sim.kernel.opened.iter().map(|pinhole| pinhole.target.port()).collect::<Vec<_>>()
    };
    // The listing's reply comes first, or may.
    let (commands, replies) = (r"NOOP\r\nRETR z\r\n".repeat(20), r"500 x\r\n".repeat(19));
    let forgotten = format!(
        r"> EPSV\r\nSTAT x\r\n{commands}EPSV < {RIGHT}\r\n211-x\r\n211 End\r\n{replies}500 x"
    );
    for before in ["", r"> CWD x < 250-a\r\n250 b "] {
        for behind in [r"LIST\r\nQUIT", "STAT x", "QUIT", r"LIST\r\nSITE x\r\nNOOP"] {
            let script = format!(r"{before}> EPSV\r\n{behind} < {RIGHT}");
            assert_eq!(opened_ports(&script), [50069], "{script}");
        }
        for case in [
            r"> EPSV\r\nSTAT x < 211 x",
            r"> EPSV\r\nSTAT x < 211-x\r\n211 x",
            r"> EPSV\r\nMLST x < 250-x\r\n250 x",
            r"> EPSV\r\nMLST x < x",
            r"> NOOP\r\nEPSV\r\nSTAT x < 211 x",
            r"> NOOP\r\nEPSV\r\nSTAT x < 425 no",
            r"> RETR x\r\nEPSV\r\nSTAT x < 211 x",
            &format!(r"> EPSV\r\nRETR x\r\nEPSV\r\nSTAT x < {RIGHT}\r\n211 x"),
            r"> EPSV\r\nSTAT x\r\nEPSV < 550 no",
            &forgotten,
        ] {
            for then in [r"\r\n", " < "] {
                let script = format!("{before}{case}{then}{FALSE}");
                assert!(!opened_ports(&script).contains(&3306), "{script}");
            }
        }
    }
}
