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
    /// A session in which the client has requested a listing.
    fn new() -> Self {
        let sim = Sim::logged_in(with(Nat::PortForward));
        let (client, server) = (sim.client.next_number(), sim.server.next_number());
        let mut ends = Self { sim, client, server };
        ends.command("STAT x\r\n", WIDE);
        ends
    }

    /// A session after a listing that looks complete.
    fn after_a_listing() -> Self {
        let mut ends = Self::new();
        ends.reply(&split_listing().0, ACK | PSH);
        ends
    }

    fn command(&mut self, text: &str, window: u16) {
        self.client_sends(text, self.server, window);
        self.client += text.len() as u32;
    }

    /// Sends `text` without advancing the client's sequence number, as if it were lost before the server.
    fn client_sends(&mut self, text: &str, ack: u32, window: u16) {
        let (seq, payload) = (self.client, text.into());
        let segment = Segment { seq, ack, flags: ACK, window, payload, ..Segment::default() };
        self.sim.forge(Client, &segment);
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
    let attacks: [(&str, Attack); 10] = [
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
