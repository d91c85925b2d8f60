//! An end acknowledges bytes that the gateway has not seen. When does the dialogue get in step again?

use ftp_alg_core::packet::flags::ACK;

use super::{
    support::ends::{Ends, WIDE},
    *,
};

/// A command and a passive reply that a listing may contain.
const EPSV: &str = "> EPSV < 229 x (|||3306|)";
const NOOP: &str = "> NOOP < 200 ok";
const SILENCE: Duration = Duration::from_secs(6);

fn in_step() -> Ends {
    Ends::new(with(Nat::PortForward))
}

impl Ends {
    /// An end sends `count` bytes that the gateway does not see, and the other one acknowledges them.
    fn misses(&mut self, from: Side, count: u32) {
        // By a retransmission, because pure acknowledgements are not queued.
        match from {
            Client => (self.client, self.server) = (self.client + count, self.server - 1),
            Server => (self.client, self.server) = (self.client - 1, self.server + count),
        }
        self.pass(from.peer(), "\n", ACK, WIDE);
        match from {
            Client => self.server += 1,
            Server => self.client += 1,
        }
    }

    fn state(&mut self) -> &'static str {
        self.sim.engine().sessions.list().next().map_or("none", |session| session.state)
    }
}

#[test]
fn a_missed_reply_to_a_plain_command_blocks_until_the_next_one() {
    let mut ends = in_step();
    ends.play("> NOOP 1");
    ends.server += 20;
    ends.play("> EPSV");
    assert_eq!(ends.state(), "lost");
    assert_eq!(ends.play("< 229 x (|||3306|)"), 0);
    assert_eq!(ends.state(), "logged-in");
    assert_eq!(ends.play(EPSV), 1);
    let said: Vec<_> = ends.sim.events.iter().map(ToString::to_string).collect();
    let count = |what: &str| said.iter().filter(|event| event.contains(what)).count();
    assert_eq!(
        [count("packets were missed: no pinhole"), count("in step again: pinholes")],
        [1, 1]
    );
}

#[test]
fn the_exchange_must_be_whole_and_alone() {
    for case in cases(
        r"
        a reply of another command                > NOOP < 226 done
        several lines                             > NOOP < 200-ok\r\n200 ok
        no command                                < 200 ok
        two commands                              > NOOP > NOOP < 200 ok
        a command that the server did not get     > NOOP @lost < 200 ok
        a reply of which more follows             > NOOP < 200 ok @more
        a reply without its start                 > NOOP < xxx 200 ok @-4
        an argument that the server may repeat    > TYPE 229 x (|||3306|) < 200 ok
        a command that may show names             > CWD x < 200 ok
        ",
    ) {
        let mut ends = in_step();
        ends.misses(Server, 20);
        ends.play(case);
        assert_eq!(ends.state(), "lost", "{case}");
    }
}

/// The client has named files so that lines of a listing look like replies, and has the listing's start missed.
#[test]
fn a_listing_without_its_start_never_opens_a_pinhole() {
    for is_early in [false, true] {
        let mut ends = in_step();
        if is_early {
            ends.misses(Server, 20);
        }
        ends.play("> STAT x");
        if !is_early {
            ends.misses(Server, 20);
        }
        for _ in 0..3 {
            ends.play(NOOP);
            assert_eq!(ends.play(EPSV), 0, "{is_early}");
        }
        assert_eq!(ends.state(), "lost");
    }
}

#[test]
fn after_silence_the_first_exchange_counts() {
    for from in [Client, Server] {
        let mut ends = in_step();
        ends.play("> STAT x");
        ends.misses(from, 20);
        ends.play(NOOP);
        assert_eq!(ends.play(EPSV), 0, "{from:?}");
        ends.sim.advance(SILENCE);
        ends.play(NOOP);
        assert_eq!(ends.state(), "logged-in", "{from:?}");
        assert_eq!(ends.play(EPSV), 1, "{from:?}");
    }
}

/// The client's window may have stopped the server inside a listing.
#[test]
fn after_silence_a_line_before_the_command_counts_as_more_of_a_listing() {
    for attack in ["< 200 x", "> STAT x < 200 x", r"> NOOP < 200 x\r\n200 y"] {
        let mut ends = in_step();
        ends.play("> STAT x");
        ends.misses(Server, 20);
        ends.sim.advance(SILENCE);
        ends.play(attack);
        ends.play(NOOP);
        assert_eq!(ends.play(EPSV), 0, "{attack}");
    }
}

/// A client acknowledges what its server has not sent yet. The server ignores its packets then.
#[test]
fn a_false_acknowledgement_does_not_hide_the_start_of_a_later_reply() {
    let mut ends = in_step();
    ends.misses(Server, 20);
    // In fact the server has sent nothing.
    let ahead = ends.server;
    ends.play("> NOOP @lost");
    ends.server -= 20;
    ends.play(NOOP);
    assert_eq!((ends.state(), ends.server < ahead), ("lost", true));
    ends.play("> NOOP < 200 so long");
    assert_eq!(ends.state(), "lost");
    assert_eq!(ends.play(EPSV), 0);
}

#[test]
fn a_session_that_got_in_step_can_be_lost_again() {
    let mut ends = in_step();
    for _ in 0..2 {
        ends.misses(Server, 20);
        assert_eq!((ends.play(NOOP), ends.state()), (0, "logged-in"));
    }
    ends.play("> EPSV");
    ends.misses(Client, 9);
    assert_eq!((ends.play("< 229 x (|||3306|)"), ends.state()), (0, "lost"));
}

#[test]
fn a_client_that_wants_only_epsv_still_does() {
    let mut ends = in_step();
    ends.play("> EPSV ALL < 200 ok");
    ends.misses(Server, 20);
    ends.play(NOOP);
    assert_eq!(ends.play(EPSV), 1);
    assert_eq!(ends.play("> PASV < 227 x (203,0,113,9,19,137)"), 1);
}
