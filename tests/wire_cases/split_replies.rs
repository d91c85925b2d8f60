//! By its window a client has its server stop wherever it wants: what follows looks like the next reply, and is the rest of
//! the one before.

use ftp_alg_core::{
    packet::flags::{ACK, PSH},
    session::Side::{Client, Server},
};

use crate::{
    ambiguous_lines::halves_of_listing,
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

/// Both ends as an attacker has them: what they say is given.
struct Ends {
    sim: Sim,
    client: u32,
    server: u32,
}

impl Ends {
    /// Asked for a listing.
    fn new() -> Self {
        let sim = Sim::logged_in(with(Nat::PortForward));
        let (client, server) = (sim.client.next_number(), sim.server.next_number());
        let mut ends = Self { sim, client, server };
        ends.command("STAT x\r\n", WIDE);
        ends
    }

    /// After a listing that is over, as far as can be seen.
    fn after_a_listing() -> Self {
        let mut ends = Self::new();
        ends.reply(&halves_of_listing().0, ACK | PSH);
        ends
    }

    fn command(&mut self, text: &str, window: u16) {
        self.client_says(text, self.server, window);
        self.client += text.len() as u32;
    }

    /// What is not counted as received.
    fn client_says(&mut self, text: &str, ack: u32, window: u16) {
        let (seq, payload) = (self.client, text.into());
        let segment = Segment { seq, ack, flags: ACK, window, payload, ..Segment::default() };
        self.sim.forge(Client, &segment);
    }

    /// How many were opened ever.
    fn reply(&mut self, text: &str, flags: u8) -> usize {
        let (seq, ack, payload) = (self.server, self.client, text.into());
        let segment = Segment { seq, ack, flags, window: WIDE, payload, ..Segment::default() };
        self.sim.forge(Server, &segment);
        self.server += text.len() as u32;
        self.sim.kernel.opened.len()
    }
}

/// By its window a client has a server stop wherever it wants.
#[test]
fn a_listing_stalled_by_the_client_window_opens_no_pinhole() {
    let mut ends = Ends::new();
    let (first, second) = halves_of_listing();
    ends.reply(&first, ACK);
    ends.command("EPSV\r\n", WIDE);
    assert_eq!(ends.reply(&second, ACK | PSH), 0);
    ends.reply("229 (|||50069|)\r\n", ACK | PSH);
    // The server has no more to say.
    ends.command("EPSV\r\n", WIDE);
    assert_eq!(ends.reply("229 (|||50070|)\r\n", ACK | PSH), 1);
}

#[test]
fn a_possible_remainder_of_an_earlier_reply_opens_no_pinhole() {
    let length = REPLY.len() as u16;
    let mut ends = Ends::after_a_listing();
    ends.command("EPSV\r\n", length + 1);
    assert_eq!(ends.reply(REPLY, ACK | PSH), 1, "as it should be");
    type Attack = fn(&mut Ends) -> usize;
    let attacks: [(&str, Attack); 10] = [
        ("no room for more", |ends| {
            ends.command("EPSV\r\n", REPLY.len() as u16);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("less room in the end of the command", |ends| {
            ends.command("EPSV", WIDE);
            ends.command("\r\n", 1);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("less room in its beginning", |ends| {
            ends.command("EPSV", 1);
            ends.command("\r\n", WIDE);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("less room in the command as the server gets it, sent again", |ends| {
            ends.client_says("EPSV\r\n", ends.server, WIDE);
            ends.command("EPSV\r\n", 1);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("more room in it as the server does not get it, sent again", |ends| {
            ends.client_says("EPSV\r\n", ends.server, 1);
            ends.command("EPSV\r\n", WIDE);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("a window that the server ignores, with an old acknowledgement", |ends| {
            ends.client_says("EPSV\r\n", ends.server - 1, WIDE);
            ends.client += 6;
            ends.reply(REPLY, ACK | PSH)
        }),
        ("a command that the server never got", |ends| {
            ends.client_says("EPSV\r\n", ends.server, WIDE);
            ends.reply(REPLY, ACK | PSH)
        }),
        ("the server would have more to say", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.reply(REPLY, ACK)
        }),
        ("it says more", |ends| {
            ends.command("EPSV\r\n", WIDE);
            ends.reply(&format!("{REPLY}213 End\r\n"), ACK | PSH)
        }),
        ("it has said the start before", |ends| {
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
