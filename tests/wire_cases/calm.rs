//! Calm connections: harmless lines pass before they are read. What attackers make of that, and misfortune.

use ftp_alg::{
    engine::{
        Attention,
        harmless::is_harmless_command,
    },
    packet::flags,
    session::Side::{self, Client, Server},
};
use proptest::prelude::*;

use crate::{
    support::{
        Rng,
        scenario::{Nat, Scenario},
        segment::Segment,
        sim::Sim,
        victim::{ALL, Prefers, Victim},
    },
    with,
};

/// A third host's endpoint, which no PORT may name.
const BOUNCE: &str = "PORT 10,99,99,99,21,179\r\n";

fn calm(nat: Nat) -> Scenario {
    Scenario { selection: true, ..with(nat) }
}

/// A client that makes its own segments, and what its server executes of those that reach it.
struct Attack {
    sim: Sim,
    victim: Victim,
    /// The numbers at which both stood when it became calm.
    client: u32,
    server: u32,
}

impl Attack {
    fn new(prefers: Prefers) -> Self {
        Self::on(Sim::logged_in(calm(Nat::Masquerade)), prefers)
    }

    fn on(sim: Sim, prefers: Prefers) -> Self {
        assert_eq!(sim.kernel.attention, Some(Attention::Calm));
        let client = sim.client.next_number();
        let server = sim.server.next_number();
        Self { victim: Victim::new(prefers, client), sim, client, server }
    }

    fn segment(&self, from: Side, seq: u32, payload: &[u8]) -> Segment {
        Segment {
            seq,
            ack: if from == Client { self.server } else { self.victim.ack() },
            flags: flags::ACK | flags::PSH,
            window: 30_000,
            payload: payload.to_vec(),
            ..Segment::default()
        }
    }

    /// The client sends `payload` at `offset`; the gateway gets it, and lets it pass or not, as returned.
    fn send(&mut self, offset: i32, payload: &[u8]) -> Option<Segment> {
        let seq = self.client.wrapping_add_signed(offset);
        self.sim.forge(Client, &self.segment(Client, seq, payload))
    }

    /// What passed reaches the server.
    fn reach(&mut self, passed: Option<Segment>) -> bool {
        let Some(Segment { seq, payload, .. }) = passed else { return false };
        self.victim.arrive(seq, &payload);
        true
    }

    fn says(&mut self, offset: i32, payload: &[u8]) -> bool {
        let passed = self.send(offset, payload);
        self.reach(passed)
    }

    /// The server answers what it has executed, and acknowledges what it has.
    fn answers(&mut self) {
        let text = "200 ok\r\n".repeat(self.victim.executed());
        self.replies(&text);
    }

    fn replies(&mut self, text: &str) {
        for line in text.split_inclusive('\n') {
            let reply = self.segment(Server, self.server, line.as_bytes());
            if let Some(passed) = self.sim.forge(Server, &reply) {
                self.server = self.server.wrapping_add(passed.payload.len() as u32);
            }
        }
        let ack = self.segment(Server, self.server, b"");
        self.sim.forge(Server, &ack);
    }
}

/// What harmless lines an attacker has, and what he wants to have executed.
fn harmless_piece() -> impl Strategy<Value = Vec<u8>> {
    let verb = "(LIST|REST|TYPE|PASV|EPSV|NOOP|RETR|STOR|APPE|NLST|MLSD|SIZE|MDTM|list|rest)";
    let argument = "( (PORT|EPRT|xPORT|ORT|RT|T|1,2,3,4,5,6|PORT1,2,3,4,5,6|a{0,8}PORT))?";
    (verb, argument).prop_map(|(verb, argument)| format!("{verb}{argument}\r\n").into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_pieces_of_harmless_lines_make_an_announcement(
        pieces in proptest::collection::vec((0u32..40, harmless_piece()), 1..9),
    ) {
        for prefers in ALL {
            let mut victim = Victim::new(prefers, 1000);
            for (at, piece) in pieces.iter().rev().chain(&pieces) {
                prop_assert!(is_harmless_command(piece));
                victim.arrive(1000 + at, piece);
            }
            prop_assert_eq!(victim.announcements(), Vec::<String>::new());
        }
    }
}

/// The tests would find it.
#[test]
fn without_a_gateway_pieces_make_an_announcement() {
    for prefers in ALL {
        let mut victim = Victim::new(prefers, 1000);
        let (cut, line) = (b"NOOP x\r\n", format!("SITE xxx{BOUNCE}"));
        if prefers != Prefers::Earlier {
            victim.arrive(1001, &line.as_bytes()[1..]);
            victim.arrive(1000, cut);
        } else {
            victim.arrive(1000, cut);
            victim.arrive(1000, line.as_bytes());
        }
        assert_eq!(victim.announcements().len(), 1, "{prefers:?}: {:?}", victim.lines());
        // A line that is cut, and another that begins with what it lacks.
        let mut victim = Victim::new(prefers, 1000);
        victim.arrive(1008, b"LIST 1,2,3,4,5,6\r\n");
        victim.arrive(1000, b"SITE x\r\nPOR");
        assert_eq!(victim.announcements().is_empty(), prefers == Prefers::Earlier);
    }
}

/// A queued line that holds an announcement where a harmless one ends, in every place and order.
#[test]
fn a_queued_line_cut_by_a_harmless_one_is_executed_as_it_was_read() {
    let queued = format!("SITE xxxxxxxxxxxx{BOUNCE}");
    for prefers in ALL {
        for start in -8..12 {
            for (first, reaches) in [(true, true), (true, false), (false, true)] {
                for noop in ["NOOP\r\n", "NOOP xxxxxxxxxx\r\n", "LIST 1,2,3,4,5,6\r\n"] {
                    let mut attack = Attack::new(prefers);
                    if first {
                        let passed = attack.send(start, noop.as_bytes());
                        assert!(passed.is_some(), "a harmless line passes");
                        if reaches {
                            attack.reach(passed);
                        }
                        attack.says(0, queued.as_bytes());
                    } else {
                        attack.says(0, queued.as_bytes());
                        attack.says(start, noop.as_bytes());
                    }
                    for _ in 0..4 {
                        attack.answers();
                        attack.says(start, noop.as_bytes());
                        attack.says(0, queued.as_bytes());
                    }
                    assert_eq!(attack.victim.announcements(), [""; 0], "{noop} at {start}");
                }
            }
        }
    }
}

#[test]
fn harmless_lines_that_overlap_at_one_number_keep_the_client_waiting() {
    for prefers in ALL {
        let mut attack = Attack::new(prefers);
        attack.says(0, b"NOOP xxxx\r\n");
        attack.says(0, b"NOOP aaaaaaPORT1,2,3,4,5,6\r\n");
        let behind = b"NOOP aaaaaaPORT1,2,3,4,5,6\r\n".len() as i32;
        assert!(!attack.says(behind, BOUNCE.as_bytes()), "it waits");
        attack.answers();
        // Whatever the server took, it has all of it now, and what follows is judged.
        assert!(attack.says(behind, BOUNCE.as_bytes()), "{}", attack.sim.summary());
        assert_eq!(attack.victim.announcements(), [""; 0]);
        assert!(attack.victim.lines().last().unwrap().starts_with("XXXX"));
    }
}

#[test]
fn a_line_that_died_behind_the_gateway_is_what_is_at_its_numbers() {
    for prefers in ALL {
        let mut attack = Attack::new(prefers);
        assert!(attack.send(0, b"NOOP xxxxxxxxxxxxxxxxxxxxxxxxx\r\n").is_some());
        assert!(attack.says(0, BOUNCE.as_bytes()));
        assert!(attack.says(0, b"NOOP xxxxxxxxxxxxxxxxxxxxxxxxx\r\n"));
        attack.answers();
        assert_eq!(attack.victim.lines(), ["NOOP XXXXXXXXXXXXXXXXXXXXXXXXX"]);
    }
}

#[test]
fn a_line_ahead_of_a_gap_holds_for_what_is_queued_over_it() {
    for prefers in ALL {
        for reaches in [true, false] {
            let mut attack = Attack::new(prefers);
            let ahead = attack.send(9, b"LIST 1,2,3,4,5,6\r\n");
            if reaches {
                attack.reach(ahead);
            }
            // It ends in the middle of that line: with its bytes, not those that are sent.
            assert!(attack.says(0, b"SITE x\r\nPORT"));
            attack.answers();
            attack.says(9, b"LIST 1,2,3,4,5,6\r\n");
            attack.answers();
            assert_eq!(attack.victim.announcements(), [""; 0]);
            let expected = ["SITE X", "PLIST 1,2,3,4,5,6"];
            assert!(attack.victim.lines().len() < 2 || attack.victim.lines() == expected);
        }
    }
}

/// An attacker who tries everything: lines that pass and lines that are queued, anywhere near what comes next, which
/// die behind the gateway or do not, against servers of all kinds.
fn random_attack(seed: u64, loses: bool) {
    let lines: &[&[u8]] = &[
        b"NOOP\r\n",
        b"NOOP xxxxxx\r\n",
        b"LIST 10,99,99,99,21,179\r\n",
        b"REST 10,99,99,99,21,179\r\n",
        b"TYPE PORT\r\n",
        b"RETR xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxPORT\r\n",
        b"SITE xxPORT 10,99,99,99,21,179\r\n",
        b"SITE xxxxxxxPORT 10,99,99,99,21,179\r\n",
        b"SITE x POR\xff\xf1T 10,99,99,99,21,179\r\n",
        b"SITE x PO\0RT 10,99,99,99,21,179\r\n",
        b"PORT 10,99,99,99,21,179\r\n",
        b"xxxx\r\nPOR",
        b"SITE xxxx\r\n",
        b"SITE xxPOR",
        b"T 10,99,99,99,21,179\r\n",
        b"xxxxxxxxxxxxxxx",
        b"PO",
        b"\r\n",
    ];
    let mut rng = Rng::new(seed);
    let mut attack = Attack::new(*rng.pick(&ALL));
    let mut next = 0;
    let mut late = Vec::new();
    for _ in 0..4 + rng.below(30) {
        let received = attack.victim.ack().wrapping_sub(attack.client) as i32;
        let base = *rng.pick(&[next, received, received, next.min(received)]);
        let offset = base + if rng.chance(0.4) { 0 } else { rng.below(34) as i32 - 8 };
        let line = *rng.pick(lines);
        let cut = if rng.chance(0.1) { 1 + rng.below(line.len()) } else { line.len() };
        let passed = attack.send(offset, &line[..cut]);
        if passed.is_some() {
            next = next.max(offset + cut as i32);
        }
        match rng.below(6) {
            0 => {} // it dies
            1 => late.extend(passed),
            _ => drop(attack.reach(passed)),
        }
        if rng.chance(0.2) && !late.is_empty() {
            let at = rng.below(late.len());
            let passed = late.swap_remove(at);
            attack.reach(Some(passed));
        }
        if rng.chance(0.5) {
            attack.answers();
        }
        if loses && rng.chance(0.1) {
            attack.sim.selection.lose();
            attack.sim.engine.lose_copies();
        }
        let made = attack.victim.announcements();
        assert!(made.is_empty(), "seed {seed}: {made:?} in {:?}", attack.victim.lines());
    }
}

#[test]
fn no_attack_makes_a_server_execute_an_announcement_that_was_not_judged() {
    for seed in 0..rounds() {
        random_attack(seed, false);
    }
}

#[test]
fn no_attack_after_copies_were_lost_makes_a_server_execute_one() {
    for seed in 0..rounds() {
        random_attack(seed, true);
    }
}

fn rounds() -> u64 {
    std::env::var("FTP_ALG_DIALOGUES").map_or(5_000, |number| number.parse().unwrap())
}
