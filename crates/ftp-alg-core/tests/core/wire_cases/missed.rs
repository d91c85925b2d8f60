//! An end acknowledges bytes that the gateway has not seen. When does the dialogue get in step again?

use std::time::Duration;

use ftp_alg_core::{
    packet::flags::{ACK, PSH},
    session::Side::{self, Client, Server},
};

use super::{
    support::{scenario::Nat, segment::Segment, sim::Sim},
    with,
};

const REPLY: &str = "229 x (|||3306|)\r\n";
const SILENCE: Duration = Duration::from_secs(6);

/// Both ends under the test's control: it chooses every segment.
struct Ends {
    sim: Sim,
    client: u32,
    server: u32,
}

impl Ends {
    fn new() -> Self {
        let sim = Sim::logged_in(with(Nat::PortForward));
        let (client, server) = (sim.client.next_number(), sim.server.next_number());
        Self { sim, client, server }
    }

    fn send(&mut self, from: Side, text: &str, flags: u8) {
        let (seq, ack) = match from {
            Client => (self.client, self.server),
            Server => (self.server, self.client),
        };
        let (window, payload) = (30_000, text.into());
        let segment = Segment { seq, ack, flags, window, payload, ..Segment::default() };
        self.sim.forge(from, &segment);
        match from {
            Client => self.client += text.len() as u32,
            Server => self.server += text.len() as u32,
        }
    }

    fn command(&mut self, text: &str) {
        self.send(Client, text, ACK | PSH);
    }

    /// Sends a reply and returns the number of pinholes opened so far.
    fn reply(&mut self, text: &str) -> usize {
        self.send(Server, text, ACK | PSH);
        self.sim.kernel.opened.len()
    }

    /// A command and its reply.
    fn exchange(&mut self, command: &str, reply: &str) -> usize {
        self.command(command);
        self.reply(reply)
    }

    /// An end sends `count` bytes that the gateway does not see, and the other one acknowledges them.
    fn misses(&mut self, from: Side, count: u32) {
        match from {
            Client => self.client += count,
            Server => self.server += count,
        }
        // A retransmission, because pure acknowledgements are not queued.
        match from {
            Client => self.server -= 1,
            Server => self.client -= 1,
        }
        self.send(from.peer(), "\n", ACK);
    }

    fn state(&mut self) -> &'static str {
        self.sim.engine().sessions.list().next().map_or("none", |session| session.state)
    }
}

#[test]
fn a_missed_reply_to_a_plain_command_blocks_until_the_next_one() {
    let mut ends = Ends::new();
    ends.command("NOOP 1\r\n");
    ends.server += 20;
    ends.command("EPSV\r\n");
    assert_eq!(ends.state(), "lost");
    assert_eq!(ends.reply(REPLY), 0);
    assert_eq!(ends.state(), "logged-in");
    assert_eq!(ends.exchange("EPSV\r\n", REPLY), 1);
    let said: Vec<_> = ends.sim.events.iter().map(ToString::to_string).collect();
    let count = |what: &str| said.iter().filter(|event| event.contains(what)).count();
    assert_eq!(
        [count("packets were missed: no pinhole"), count("in step again: pinholes")],
        [1, 1]
    );
}

#[test]
fn the_exchange_must_be_whole_and_alone() {
    type Exchange = fn(&mut Ends) -> usize;
    let exchanges: [(&str, Exchange); 9] = [
        ("a reply of another command", |ends| ends.exchange("NOOP\r\n", "226 done\r\n")),
        ("several lines", |ends| ends.exchange("NOOP\r\n", "200-ok\r\n200 ok\r\n")),
        ("no command", |ends| ends.reply("200 ok\r\n")),
        ("two commands", |ends| {
            ends.command("NOOP\r\n");
            ends.command("NOOP\r\n");
            ends.reply("200 ok\r\n")
        }),
        ("a command that the server did not get", |ends| {
            ends.command("NOOP\r\n");
            ends.client -= 6;
            ends.reply("200 ok\r\n");
            ends.client += 6;
            0
        }),
        ("a reply of which more follows", |ends| {
            ends.command("NOOP\r\n");
            ends.send(Server, "200 ok\r\n", ACK);
            0
        }),
        ("a reply without its start", |ends| {
            ends.command("NOOP\r\n");
            ends.server -= 4;
            ends.reply("xxx 200 ok\r\n")
        }),
        ("an argument that the server may repeat", |ends| {
            ends.exchange("TYPE 229 x (|||3306|)\r\n", "200 ok\r\n")
        }),
        ("a command that may show names", |ends| ends.exchange("CWD x\r\n", "200 ok\r\n")),
    ];
    for (what, exchange) in exchanges {
        let mut ends = Ends::new();
        ends.misses(Server, 20);
        exchange(&mut ends);
        assert_eq!(ends.state(), "lost", "{what}");
    }
}

/// The client has named files so that lines of a listing look like replies, and has the listing's start missed.
#[test]
fn a_listing_without_its_start_never_opens_a_pinhole() {
    for is_early in [false, true] {
        let mut ends = Ends::new();
        if is_early {
            ends.misses(Server, 20);
            ends.command("STAT x\r\n");
        } else {
            ends.command("STAT x\r\n");
            ends.misses(Server, 20);
        }
        for _ in 0..3 {
            ends.exchange("NOOP\r\n", "200 ok\r\n");
            assert_eq!(ends.exchange("EPSV\r\n", REPLY), 0, "{is_early}");
        }
        assert_eq!(ends.state(), "lost");
    }
}

#[test]
fn after_silence_the_first_exchange_counts() {
    for from in [Client, Server] {
        let mut ends = Ends::new();
        ends.command("STAT x\r\n");
        ends.misses(from, 20);
        ends.exchange("NOOP\r\n", "200 ok\r\n");
        assert_eq!(ends.exchange("EPSV\r\n", REPLY), 0, "{from:?}");
        ends.sim.advance(SILENCE);
        ends.exchange("NOOP\r\n", "200 ok\r\n");
        assert_eq!(ends.state(), "logged-in", "{from:?}");
        assert_eq!(ends.exchange("EPSV\r\n", REPLY), 1, "{from:?}");
    }
}

/// The client's window may have stopped the server inside a listing.
#[test]
fn after_silence_a_line_before_the_command_counts_as_more_of_a_listing() {
    let attacks: [fn(&mut Ends) -> usize; 3] = [
        |ends| ends.reply("200 x\r\n"),
        |ends| ends.exchange("STAT x\r\n", "200 x\r\n"),
        |ends| ends.exchange("NOOP\r\n", "200 x\r\n200 y\r\n"),
    ];
    for attack in attacks {
        let mut ends = Ends::new();
        ends.command("STAT x\r\n");
        ends.misses(Server, 20);
        ends.sim.advance(SILENCE);
        attack(&mut ends);
        ends.exchange("NOOP\r\n", "200 ok\r\n");
        assert_eq!(ends.exchange("EPSV\r\n", REPLY), 0);
    }
}

/// A client acknowledges what its server has not sent yet. The server ignores its packets then.
#[test]
fn a_false_acknowledgement_does_not_hide_the_start_of_a_later_reply() {
    let mut ends = Ends::new();
    ends.misses(Server, 20);
    // In fact the server has sent nothing.
    let (real, ahead) = (ends.server - 20, ends.server);
    ends.command("NOOP\r\n");
    ends.client -= 6;
    ends.server = real;
    ends.command("NOOP\r\n");
    ends.reply("200 ok\r\n");
    assert_eq!((ends.state(), ends.server < ahead), ("lost", true));
    ends.exchange("NOOP\r\n", "200 so long\r\n");
    assert_eq!(ends.state(), "lost");
    assert_eq!(ends.exchange("EPSV\r\n", REPLY), 0);
}

#[test]
fn a_session_that_got_in_step_can_be_lost_again() {
    let mut ends = Ends::new();
    for _ in 0..2 {
        ends.misses(Server, 20);
        assert_eq!(ends.exchange("NOOP\r\n", "200 ok\r\n"), 0);
        assert_eq!(ends.state(), "logged-in");
    }
    ends.command("EPSV\r\n");
    ends.misses(Client, 9);
    assert_eq!(ends.reply(REPLY), 0);
    assert_eq!(ends.state(), "lost");
}

#[test]
fn a_client_that_wants_only_epsv_still_does() {
    let mut ends = Ends::new();
    ends.exchange("EPSV ALL\r\n", "200 ok\r\n");
    ends.misses(Server, 20);
    ends.exchange("NOOP\r\n", "200 ok\r\n");
    assert_eq!(ends.exchange("EPSV\r\n", REPLY), 1);
    assert_eq!(ends.exchange("PASV\r\n", "227 x (203,0,113,9,19,137)\r\n"), 1);
}
