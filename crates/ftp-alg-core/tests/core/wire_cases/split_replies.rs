//! A client can use its receive window to make its server stop anywhere in a reply. The next segment then looks like
//! another reply, but is the remainder of the same one.

use ftp_alg_core::{
    packet::flags::{ACK, PSH},
    session::Side::{Client, Server},
};

use super::{
    ambiguous_lines::split_listing,
    everywhere,
    support::{
        ftp::{at, passive, text},
        scenario::Nat,
        segment::Segment,
        sim::Sim,
    },
    with,
};

const REPLY: &str = "229 x (|||3306|)\r\n";
const WIDE: u16 = 30_000;

/// Both ends under the attacker's control: the test chooses every segment.
struct Ends {
    sim: Sim,
    client: u32,
    server: u32,
}

impl Ends {
    fn of(sim: Sim) -> Self {
        let (client, server) = (sim.client.next_number(), sim.server.next_number());
        Self { sim, client, server }
    }

    /// A session in which the client has requested a listing.
    fn new() -> Self {
        Self::with_scale(None)
    }

    /// As [`new`](Self::new), on a connection with or without window scaling.
    fn with_scale(window_scale: Option<u8>) -> Self {
        let mut scenario = with(Nat::PortForward);
        scenario.server.window_scale = window_scale;
        let mut ends = Self::of(Sim::logged_in(scenario));
        ends.command("STAT x\r\n", WIDE);
        ends
    }

    /// A session after a listing that looks complete.
    fn after_a_listing() -> Self {
        Self::new().listed()
    }

    fn listed(self) -> Self {
        let mut ends = self;
        ends.reply(&split_listing().0, ACK | PSH);
        ends
    }

    /// Sends a command, and returns the window field with which the server gets it.
    fn command(&mut self, text: &str, window: u16) -> u16 {
        let window = self.client_sends(text, self.server, window);
        self.client += text.len() as u32;
        window
    }

    /// Sends `text` without advancing the client's sequence number, as if it were lost before the server.
    fn client_sends(&mut self, text: &str, ack: u32, window: u16) -> u16 {
        let (seq, payload) = (self.client, text.into());
        let segment = Segment { seq, ack, flags: ACK, window, payload, ..Segment::default() };
        self.sim.forge(Client, &segment).unwrap().window
    }

    /// Sends an acknowledgement without data, `ahead` of the client's sequence number. Returns the sequence number with
    /// which the server gets it, if it does.
    fn acknowledge(&mut self, ahead: u32, window: u16) -> Option<u32> {
        let (seq, ack) = (self.client + ahead, self.server);
        let segment = Segment { seq, ack, flags: ACK, window, ..Segment::default() };
        Some(self.sim.forge(Client, &segment)?.seq)
    }

    /// Sends a reply and returns the number of pinholes opened so far.
    fn reply(&mut self, text: &str, flags: u8) -> usize {
        let (seq, ack, payload) = (self.server, self.client, text.into());
        let segment = Segment { seq, ack, flags, window: WIDE, payload, ..Segment::default() };
        self.sim.forge(Server, &segment);
        self.server += text.len() as u32;
        self.sim.kernel.opened.len()
    }
}

/// The client's window makes the server stop in the middle of the listing.
#[test]
fn a_listing_stalled_by_the_client_window_opens_no_pinhole() {
    let mut ends = Ends::new();
    let (first, second) = split_listing();
    ends.reply(&first, ACK);
    ends.command("EPSV\r\n", WIDE);
    assert_eq!(ends.reply(&second, ACK | PSH), 0);
    ends.reply("229 (|||50069|)\r\n", ACK | PSH);
    // The server has no more data to send.
    ends.command("EPSV\r\n", WIDE);
    assert_eq!(ends.reply("229 (|||50070|)\r\n", ACK | PSH), 1);
}

#[test]
fn a_possible_remainder_of_an_earlier_reply_opens_no_pinhole() {
    let length = REPLY.len() as u16;
    let mut ends = Ends::after_a_listing();
    ends.command("EPSV\r\n", length + 1);
    assert_eq!(ends.reply(REPLY, ACK | PSH), 1, "a complete reply must open a pinhole");
    type Attack = fn(&mut Ends) -> usize;
    let attacks: [(&str, Attack); 14] = [
        ("the window has no room for more than the reply", |ends| {
            ends.command("EPSV\r\n", REPLY.len() as u16);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the window is smaller in the last segment of the command", |ends| {
            ends.command("EPSV", WIDE);
            ends.command("\r\n", 1);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the window is smaller in the first segment of the command", |ends| {
            ends.command("EPSV", 1);
            ends.command("\r\n", WIDE);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the window is smaller in the retransmission that the server receives", |ends| {
            ends.client_sends("EPSV\r\n", ends.server, WIDE);
            ends.command("EPSV\r\n", 1);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the window is smaller in the segment that the server does not receive", |ends| {
            ends.client_sends("EPSV\r\n", ends.server, 1);
            ends.command("EPSV\r\n", WIDE);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the server ignores the window because the acknowledgement is old", |ends| {
            ends.client_sends("EPSV\r\n", ends.server - 1, WIDE);
            ends.client += 6;
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the server never received the command", |ends| {
            ends.client_sends("EPSV\r\n", ends.server, WIDE);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the reply has no PSH, so the server has more data", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.reply(REPLY, ACK)
        }),
        ("the segment contains more than the reply", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.reply(&format!("{REPLY}213 End\r\n"), ACK | PSH)
        }),
        ("a line before it filled the window", |ends| {
            ends.command("TYPE I\r\nEPSV\r\n", 40);
            ends.reply(&format!("200 {:>34}\r\n", ""), ACK | PSH);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the window is larger in a segment that the server has already", |ends| {
            ends.command("EPSV\r\n", 8);
            ends.reply("200 ab\r\n", ACK | PSH);
            ends.client -= 6;
            ends.command("EPSV\r\n", WIDE);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("an acknowledgement has closed the window again", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.acknowledge(0, REPLY.len() as u16);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the same, and another has opened it, which the server may not have received", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.acknowledge(0, 0);
            ends.acknowledge(0, WIDE);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the reply is in two segments", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.reply(&REPLY[..5], ACK | PSH);
            ends.reply(&REPLY[5..], ACK | PSH)
        }),
    ];
    for (name, attack) in attacks {
        let mut ends = Ends::after_a_listing();
        assert_eq!(attack(&mut ends), 0, "{name}");
    }
}

/// The client closes the window by acknowledgements while its server still writes the reply before.
#[test]
fn a_window_that_a_pipeline_offered_and_that_was_closed_again_does_not_count() {
    for (before, listing) in [
        ("STAT x\r\n", "212-x\r\n212 End\r\n"),
        ("CWD x\r\n", "250-x\r\n250 End\r\n"),
        ("MLST x\r\n", "250-x\r\n250 End\r\n"),
        ("PWD\r\n", "257 \"/\r\n"),
    ] {
        for window in [WIDE, REPLY.len() as u16] {
            let mut ends = Ends::of(Sim::logged_in(with(Nat::PortForward)));
            ends.command(&format!("{before}EPSV\r\n"), WIDE);
            ends.acknowledge(0, listing.len() as u16);
            ends.reply(listing, ACK | PSH);
            ends.acknowledge(0, window);
            assert_eq!(ends.reply(REPLY, ACK | PSH), 0, "{before:?} {window}");
        }
    }
}

/// The server ignores the windows of packets before the number of such an acknowledgement (`tcp_may_update_window`).
#[test]
fn an_acknowledgement_from_the_future_does_not_arrive() {
    let mut ends = Ends::after_a_listing();
    assert_eq!(ends.acknowledge(0, WIDE), Some(ends.client), "that of the listing arrives");
    for ahead in [1, 6, 60_000] {
        // The server discards a probe, and answers it.
        let arrived = ends.acknowledge(ahead, 0);
        assert!(arrived.is_none_or(|seq| seq < ends.client), "{ahead}");
    }
    ends.command("EPSV\r\n", WIDE);
    assert_eq!(ends.reply(REPLY, ACK | PSH), 1);
}

/// Bytes of the client passed unread, as during downtime. It has their acknowledgement, and sends only keep-alives while
/// a transfer runs.
#[test]
fn a_keep_alive_behind_missed_bytes_is_answered() {
    let mut ends = Ends::after_a_listing();
    let (known, missed) = (ends.client, 10);
    assert_eq!(ends.acknowledge(missed - 1, WIDE), None);
    let probe = ends.acknowledge(missed - 1, WIDE).unwrap();
    assert!(probe < known, "{probe} {known}");
    ends.client += missed;
    ends.reply("", ACK);
    ends.client -= 1;
    assert_eq!(ends.acknowledge(0, WIDE), Some(ends.client));
}

/// As println of many small servers (ESP8266) sends each line.
#[test]
fn a_reply_whose_line_end_is_a_segment_of_its_own_opens_a_pinhole() {
    let text = REPLY.trim_end();
    for (text, end) in [(text, "\r\n"), (&REPLY[..text.len() + 1], "\n")] {
        let mut ends = Ends::after_a_listing();
        for opened in 1..3 {
            ends.command("EPSV\r\n", WIDE);
            ends.reply(text, ACK | PSH);
            assert_eq!(ends.reply(end, ACK | PSH), opened, "{end:?}");
        }
    }
    type Attack = fn(&mut Ends) -> usize;
    let attacks: [(&str, Attack); 8] = [
        ("the server has more to send behind the text", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.reply(REPLY.trim_end(), ACK);
            ends.reply("\r\n", ACK | PSH)
        }),
        ("the server has more to send behind the line end", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.reply(REPLY.trim_end(), ACK | PSH);
            ends.reply("\r\n", ACK)
        }),
        ("the window ends with the text", |ends| {
            ends.command("EPSV\r\n", REPLY.len() as u16 - 2);
            ends.reply(REPLY.trim_end(), ACK | PSH);
            ends.reply("\r\n", ACK | PSH)
        }),
        ("the window ends with the line", |ends| {
            ends.command("EPSV\r\n", REPLY.len() as u16);
            ends.reply(REPLY.trim_end(), ACK | PSH);
            ends.reply("\r\n", ACK | PSH)
        }),
        ("the text is in two segments", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.reply(&REPLY[..5], ACK | PSH);
            ends.reply(REPLY[5..].trim_end(), ACK | PSH);
            ends.reply("\r\n", ACK | PSH)
        }),
        ("the text begins behind another line", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.reply(&format!("213 End\r\n{}", REPLY.trim_end()), ACK | PSH);
            ends.reply("\r\n", ACK | PSH)
        }),
        ("more than the line end follows", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.reply(REPLY.trim_end(), ACK | PSH);
            ends.reply("\r\n213 End\r\n", ACK | PSH)
        }),
        ("the rest of a name follows", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.reply(REPLY.trim_end(), ACK | PSH);
            ends.reply("\" is the current directory\r\n", ACK | PSH)
        }),
    ];
    for (name, attack) in attacks {
        let mut ends = Ends::after_a_listing();
        assert_eq!(attack(&mut ends), 0, "{name}");
    }
}

/// A field of 31 is a window of 63 KB with a scale of 11, and one of 31 bytes with a scale of 0. Only the ends know.
#[test]
fn a_small_window_field_is_raised_if_windows_are_scaled() {
    for scale in [0, 7, 14] {
        let mut ends = Ends::with_scale(Some(scale)).listed();
        for field in [1, 4, 31, 255] {
            let opened = ends.sim.kernel.opened.len();
            assert_eq!(ends.command("EPSV\r\n", field), 256, "field {field}");
            assert_eq!(ends.reply(REPLY, ACK | PSH), opened + 1, "field {field}");
        }
        // An end without room has none, and a larger window is left alone.
        for field in [0, 256, 502, WIDE] {
            assert_eq!(ends.command("NOOP\r\n", field), field);
            ends.reply("200 ok\r\n", ACK | PSH);
        }
    }
    let mut ends = Ends::after_a_listing();
    assert_eq!(ends.command("EPSV\r\n", 31), 31, "the field is the window");
}

/// What waits in the server's TCP comes first, and as much of it as the raised window lets pass.
#[test]
fn what_waited_behind_a_raised_window_opens_no_pinhole() {
    type Attack = fn(&mut Ends) -> usize;
    let attacks: [(&str, Attack); 4] = [
        ("more than a line fits", |ends| {
            ends.command("EPSV\r\n", REPLY.len() as u16);
            ends.reply(&format!("{REPLY}213 End of status\r\n"), ACK | PSH)
        }),
        ("a line fills the window, then acknowledgements let one more line pass", |ends| {
            let window = usize::from(ends.command("TYPE I\r\nEPSV\r\n", 31));
            ends.reply(&format!("200 {:>1$}\r\n", "", window - 6), ACK | PSH);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the client has no room", |ends| {
            ends.command("EPSV\r\n", 0);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("a part of the command has no room", |ends| {
            ends.command("EPSV", 0);
            ends.command("\r\n", 31);
            ends.reply(REPLY, ACK | PSH)
        }),
    ];
    for (name, attack) in attacks {
        let mut ends = Ends::with_scale(Some(7)).listed();
        assert_eq!(attack(&mut ends), 0, "{name}");
    }
}

/// A reply of one line repeats a name with line ends, and the client makes the server stop before the last one.
#[test]
fn the_rest_of_a_reply_with_a_stray_line_opens_no_pinhole() {
    type Attack = fn(&mut Ends, &str) -> usize;
    let attacks: [(&str, Attack); 4] = [
        ("the command came before", |ends, stray| {
            ends.command("CWD x\r\nEPSV\r\n", WIDE);
            ends.reply(stray, ACK | PSH);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the window has no room", |ends, stray| {
            ends.command("CWD x\r\n", WIDE);
            ends.reply(stray, ACK | PSH);
            ends.command("EPSV\r\n", REPLY.len() as u16);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the stray line is a segment of its own", |ends, _| {
            ends.command("CWD x\r\n", WIDE);
            ends.reply("250 Now in x\r\n", ACK | PSH);
            ends.reply("foo\r\n", ACK | PSH);
            ends.command("EPSV\r\n", WIDE);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the server had more to send", |ends, stray| {
            ends.command("CWD x\r\n", WIDE);
            ends.reply(stray, ACK);
            ends.command("EPSV\r\n", WIDE);
            ends.reply(&format!("{REPLY} is the directory\r\n"), ACK | PSH)
        }),
    ];
    let strays = ["250 Now in x\r\nfoo\r\n", "250 Now in x\n", "250 Now in x\rfoo\r\n"];
    for (name, attack) in attacks {
        for stray in strays {
            let mut ends = Ends::new();
            ends.reply("213 none\r\n", ACK | PSH);
            assert_eq!(attack(&mut ends, stray), 0, "{name}: {stray:?}");
        }
    }
}

#[test]
fn transfers_work_after_a_listing_on_the_control_connection() {
    everywhere(|scenario| {
        let v6 = scenario.v6;
        let t = scenario.nat.translation(v6);
        let mut sim = Sim::logged_in(scenario);
        let long = format!("211-x\r\n{}211 End\r\n", " SITE CHMOD UMASK\r\n".repeat(300));
        for (command, reply) in [
            ("HELP SITE\r\n", "214-x\r\n CHMOD\r\n214 Direct comments\r\n"),
            ("STAT -l\r\n", &long),
            ("MLST x\r\n", "250-x\r\n type=file; x\r\n250 End\r\n"),
            ("NOOP\n", "200 ok\r\n"),
        ] {
            sim.exchange(command, reply);
            for other in ["NOOP\r\n", "PWD\r\n", "TYPE A\r\n"] {
                sim.exchange(other, "200 fine\r\n");
            }
            let opened = sim.kernel.opened.len();
            if v6 {
                sim.exchange("EPSV\r\n", "229 ok (|||5000|)\r\n");
            } else {
                sim.exchange("PASV\r\n", &passive(at(t.server, 5000)));
            }
            assert_eq!(sim.kernel.opened.len(), opened + 1, "{command}");
            assert_eq!(text(sim.say(Server, b"226 done\r\n")), "226 done\r\n");
        }
    });
}

/// Scripts send all their commands at once.
#[test]
fn a_listing_that_is_requested_behind_a_pasv_does_not_block_it() {
    let opened_ports = |multi_line: bool, commands: &str, segments: &[&str]| {
        let mut sim = Sim::logged_in(with(Nat::PortForward));
        if multi_line {
            sim.exchange("CWD x\r\n", "250-a\r\n250 b\r\n");
        }
        sim.say(Client, commands.as_bytes());
        for segment in segments {
            sim.exchange("", segment);
        }
        sim.kernel.opened.iter().map(|pinhole| pinhole.target.port()).collect::<Vec<_>>()
    };
    const RIGHT: &str = "229 ok (|||50069|)\r\n";
    const FALSE: &str = "229 x (|||3306|)\r\n";
    for behind in ["LIST\r\nQUIT", "STAT x", "QUIT", "LIST\r\nSITE x\r\nNOOP"] {
        for multi_line in [false, true] {
            let commands = format!("EPSV\r\n{behind}\r\n");
            assert_eq!(opened_ports(multi_line, &commands, &[RIGHT]), [50069], "{behind:?}");
        }
    }
    // The listing's reply comes first, or may.
    let forgotten = format!("EPSV\r\nSTAT x\r\n{}EPSV\r\n", "NOOP\r\nRETR z\r\n".repeat(20));
    let of_forgotten = format!("{RIGHT}211-x\r\n211 End\r\n{}", "500 x\r\n".repeat(20));
    for (commands, reply) in [
        ("EPSV\r\nSTAT x\r\n", "211 x\r\n"),
        ("EPSV\r\nSTAT x\r\n", "211-x\r\n211 x\r\n"),
        ("EPSV\r\nMLST x\r\n", "250-x\r\n250 x\r\n"),
        ("EPSV\r\nMLST x\r\n", "x\r\n"),
        ("NOOP\r\nEPSV\r\nSTAT x\r\n", "211 x\r\n"),
        ("NOOP\r\nEPSV\r\nSTAT x\r\n", "425 no\r\n"),
        ("RETR x\r\nEPSV\r\nSTAT x\r\n", "211 x\r\n"),
        ("EPSV\r\nRETR x\r\nEPSV\r\nSTAT x\r\n", &format!("{RIGHT}211 x\r\n")),
        ("EPSV\r\nSTAT x\r\nEPSV\r\n", "550 no\r\n"),
        (&forgotten, &of_forgotten),
    ] {
        for multi_line in [false, true] {
            for segments in [&[format!("{reply}{FALSE}").as_str()][..], &[reply, FALSE]] {
                let ports = opened_ports(multi_line, commands, segments);
                assert!(!ports.contains(&3306), "{commands:?} {segments:?}");
            }
        }
    }
}
