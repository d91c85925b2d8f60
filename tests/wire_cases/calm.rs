//! Calm connections: harmless lines pass before they are read. What attackers make of that, and misfortune.

use std::time::{Duration, Instant};

use ftp_alg_core::{
    engine::{Answer, Attention, Fate, Queued, harmless::is_harmless_command},
    packet::{Offload, flags},
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
    let verb = "(LIST|REST|TYPE|PASV|EPSV|NOOP|RETR|STOR|APPE|NLST|MLSD|SIZE|MDTM|list|rest|\
                CWD|PWD|MKD|cwd)";
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
            let expected = ["SITE X", "XLIST 1,2,3,4,5,6"];
            assert!(attack.victim.lines().len() < 2 || attack.victim.lines() == expected);
        }
    }
}

/// An attacker who tries everything: lines that pass and lines that are queued, anywhere near what comes next, which
/// die behind the gateway or do not, against servers of all kinds.
fn random_attack(seed: u64) {
    let lines: &[&[u8]] = &[
        b"NOOP\r\n",
        b"NOOP xxxxxx\r\n",
        b"LIST 10,99,99,99,21,179\r\n",
        b"REST 10,99,99,99,21,179\r\n",
        b"TYPE PORT\r\n",
        b"CWD PORT\r\n",
        b"CWD 10,99,99,99,21,179\r\n",
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
    let (mut late, mut ends) = (Vec::new(), vec![0]);
    for _ in 0..4 + rng.below(30) {
        let received = attack.victim.ack().wrapping_sub(attack.client) as i32;
        let base = *rng.pick(&[next, received, received, next.min(received)]);
        let offset = base + if rng.chance(0.4) { 0 } else { rng.below(34) as i32 - 8 };
        let line = *rng.pick(lines);
        // So that what another line ends before is an announcement.
        let inner = line.windows(4).position(|four| four == b"PORT").filter(|_| rng.chance(0.5));
        let offset = inner.map_or(offset, |inner| *rng.pick(&ends) - inner as i32);
        let cut = if rng.chance(0.1) { 1 + rng.below(line.len()) } else { line.len() };
        let passed = attack.send(offset, &line[..cut]);
        if passed.is_some() {
            next = next.max(offset + cut as i32);
            ends.push(offset + cut as i32);
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
        let made = attack.victim.announcements();
        assert!(made.is_empty(), "seed {seed}: {made:?} in {:?}", attack.victim.lines());
    }
}

#[test]
fn no_attack_makes_a_server_execute_an_announcement_that_was_not_judged() {
    for seed in 0..rounds() {
        random_attack(seed);
    }
}

fn rounds() -> u64 {
    std::env::var("FTP_ALG_DIALOGUES").ok().and_then(|number| number.parse().ok()).unwrap_or(5_000)
}

fn attention(sim: &Sim) -> Option<Attention> {
    sim.kernel.attention
}

#[test]
fn a_client_goes_on_after_copies_were_lost() {
    let mut sim = Sim::logged_in(calm(Nat::Masquerade));
    assert_eq!(attention(&sim), Some(Attention::Calm));
    sim.write(Client, b"NOOP\r\n");
    sim.advance(Duration::from_millis(200));
    sim.selection.lose();
    sim.engine().lose_copies();
    assert_eq!(sim.exchange("SITE x\r\n", "200 ok\r\n250 ok\r\n").0, "NOOP\r\nSITE x\r\n");
    assert_eq!(sim.exchange("SITE y\r\n", "250 ok\r\n").1, "250 ok\r\n");
}

#[test]
fn what_is_lost_of_a_calm_connection_before_a_restart_is_asked_for_as_well() {
    let mut sim = Sim::logged_in(Scenario { crashes: 1e-9, ..calm(Nat::Masquerade) });
    sim.crash();
    sim.write(Client, b"NOOP\r\n");
    sim.advance(Duration::from_millis(20));
    sim.selection.lose();
    sim.engine().lose_copies();
    let next = sim.client.next_number();
    let said = Segment {
        seq: next.wrapping_sub(6),
        ack: sim.server.next_number(),
        flags: flags::ACK,
        window: 1000,
        payload: format!("SITE x{BOUNCE}").into_bytes(),
        ..Segment::default()
    };
    let forwarded = sim.forge(Client, &said);
    assert!(forwarded.is_none_or(|s| s.payload.is_empty()), "what the server has is not known");
}

#[test]
fn a_passive_transfer_is_one_packet_of_the_queue() {
    let mut sim = Sim::logged_in(calm(Nat::Routed));
    sim.advance(Duration::from_millis(100));
    let before = sim.engine().counters().packets;
    for _ in 0..10 {
        let answer = "227 Entering Passive Mode (203,0,113,9,9,9)\r\n";
        sim.exchange("PASV\r\n", answer);
        sim.advance(Duration::from_millis(100));
        sim.exchange("LIST\r\n", "150 here\r\n");
        sim.say(Server, b"226 done\r\n");
    }
    assert_eq!(sim.engine().counters().packets - before, 10);
    assert_eq!(sim.kernel.opened.len(), 10);
}

#[test]
fn of_a_whole_session_what_opens_and_what_announces_are_queued() {
    let mut sim = Sim::logged_in(calm(Nat::Masquerade));
    sim.exchange("PWD\r\n", "257 \"/\" is the current directory\r\n");
    sim.exchange("CWD pub\r\n", "250 there\r\n");
    sim.exchange("PASV\r\n", "227 Entering Passive Mode (203,0,113,9,9,9)\r\n");
    sim.exchange("RETR x\r\n", "150 here\r\n");
    sim.say(Server, b"226 done\r\n");
    sim.exchange("QUIT\r\n", "221 bye\r\n");
    for side in [Server, Client] {
        sim.close(side);
        sim.settle();
    }
    assert_eq!(sim.engine().counters().packets, 3, "SYN-ACK, 220, 227");
    sim.assert_nothing_left();
}

#[test]
fn what_is_no_ftp_is_left_alone_although_a_calm_began() {
    let mut sim = Sim::new(calm(Nat::Masquerade));
    sim.say(Server, b"220 ready\r\n");
    assert_eq!(attention(&sim), Some(Attention::Calm));
    sim.say(Client, b"GET / HTTP/1.1\r\n");
    sim.settle();
    // Never calm again; what is refused must be seen.
    assert_eq!(attention(&sim), Some(Attention::Payload));
    assert_eq!(sim.exchange("NOOP\r\n", "200 ok\r\n").0, "NOOP\r\n");
    assert_eq!(attention(&sim), Some(Attention::Payload));
}

#[test]
fn an_end_of_the_connection_closes_what_is_open_and_is_read_in_its_turn() {
    for side in [Client, Server] {
        let mut sim = Sim::logged_in(calm(Nat::Masquerade));
        sim.exchange("PASV\r\n", "227 =203,0,113,9,9,9\r\n");
        sim.reset(side);
        sim.settle();
        assert_eq!(sim.kernel.pinholes(), []);
        let mut sim = Sim::logged_in(calm(Nat::Masquerade));
        sim.exchange("PASV\r\n", "227 =203,0,113,9,9,9\r\n");
        sim.close(side);
        sim.settle();
        sim.close(side.peer());
        sim.settle();
        sim.assert_nothing_left();
    }
}

#[test]
fn a_window_probe_is_queued_only_if_it_says_something() {
    let mut sim = Sim::logged_in(calm(Nat::Masquerade));
    sim.keep_alive(Client);
    sim.settle();
    assert_eq!(attention(&sim), Some(Attention::Calm));
    let mut attack = Attack::new(Prefers::Lowest);
    let queued = attack.sim.engine().counters().packets;
    attack.says(-1, b"X");
    assert_eq!(attack.sim.engine().counters().packets, queued + 1);
    assert_eq!(attention(&attack.sim), Some(Attention::Calm), "its verdict begins another");
}

#[test]
fn a_pipeline_with_a_gap_arrives_and_opens_nothing_that_was_overtaken() {
    let mut attack = Attack::new(Prefers::Lowest);
    let port = "PORT 192,168,150,80,200,200\r\n";
    let behind = port.len() as i32;
    // The first is lost before the gateway.
    assert!(attack.says(behind, b"TYPE I\r\n"));
    assert!(attack.says(behind + 8, b"LIST\r\n"));
    assert!(attack.says(0, port.as_bytes()));
    let crossed = port.replace(|c: char| !c.is_whitespace(), "X");
    assert_eq!(attack.victim.lines(), [crossed.trim(), "TYPE I", "LIST"]);
    // Sent again with what follows, all is as it was.
    assert!(attack.says(0, format!("{port}TYPE I\r\nLIST\r\n").as_bytes()));
    attack.answers();
    assert_eq!(attack.sim.kernel.opened, []);
}

#[test]
fn a_forged_syn_ack_in_the_calm_has_every_packet_queued() {
    let mut attack = Attack::new(Prefers::Lowest);
    let forged = Segment { flags: flags::SYN | flags::ACK, ..attack.segment(Server, 7, b"") };
    attack.sim.forge(Server, &forged);
    assert_eq!(attention(&attack.sim), Some(Attention::Watched));
    let before = attack.sim.engine().counters().packets;
    attack.says(0, b"NOOP\r\n");
    attack.says(6, BOUNCE.as_bytes());
    attack.answers();
    assert!(attack.sim.engine().counters().packets >= before + 3);
    assert_eq!(attack.victim.announcements(), [""; 0]);
}

/// What a server echoes of a client's text, cut by a small MSS so that a segment begins as a reply.
#[test]
fn text_that_is_reflected_opens_nothing() {
    let mut attack = Attack::new(Prefers::Lowest);
    attack.says(0, b"NOOP x\r\n");
    for part in ["550 no such file: ", "227 =203,0,113,9,9,9\r\n"] {
        let reply = attack.segment(Server, attack.server, part.as_bytes());
        assert!(attack.sim.forge(Server, &reply).is_some());
        attack.server += part.len() as u32;
    }
    assert_eq!(attack.sim.kernel.opened, []);
    // The rest of a line alone passes as a reply would: it is read as what it is.
    let mut attack = Attack::new(Prefers::Lowest);
    attack.says(0, b"PASV\r\n");
    for part in ["550 no ", "226 x\r\n"] {
        let reply = attack.segment(Server, attack.server, part.as_bytes());
        attack.sim.forge(Server, &reply);
        attack.server += part.len() as u32;
    }
    attack.replies("227 =203,0,113,9,9,9\r\n");
    assert_eq!(attack.sim.kernel.opened, [], "it answers nothing");
}

/// A line that was read is lost behind the gateway, and then the copy of its retransmission is.
#[test]
fn a_server_that_lacks_what_was_read_is_asked_by_a_number_that_it_answers() {
    let mut attack = Attack::new(Prefers::Lowest);
    assert!(attack.send(0, b"NOOP\r\n").is_some());
    attack.sim.read_copies();
    attack.sim.engine().lose_copies();
    let both = b"NOOP\r\nSITE x\r\n";
    assert_eq!(attack.send(0, both), None);
    let asks = attack.send(0, both).unwrap();
    assert!(asks.payload.is_empty());
    let past = asks.seq.wrapping_sub(attack.victim.ack()).cast_signed();
    assert!(past < 0, "{past} past what the server has, it is not answered");
    attack.answers();
    assert!(attack.says(0, both));
    assert_eq!(attack.victim.lines(), ["NOOP", "SITE X"]);
}

/// The daemon between the engine and the queue, with packets that were queued before a verdict was given.
impl Attack {
    fn packet(&self, offset: i32, payload: &[u8]) -> Vec<u8> {
        let (client, server) = (self.sim.translation.client, self.sim.translation.server);
        let seq = self.client.wrapping_add_signed(offset);
        self.segment(Client, seq, payload).packet(client, server)
    }

    /// The engine's verdict and answer.
    fn decided(&mut self, packet: &[u8], how: Queued) -> (Fate, Answer) {
        let (fate, answer, _) = self.sim.decided(Instant::now(), packet, how);
        (fate, answer)
    }

    fn copied(&mut self, packet: &[u8]) {
        assert!(self.sim.passed(packet));
    }
}

/// What ended a calm.
const ENDED: Queued = Queued {
    ended_calm_before: false,
    ended_calm: true,
    may_wait: false,
    offload: Offload { joined: false, unsummed: false },
    from: None,
    every: false,
    is_late: false,
};

/// A probe ends a calm, and the next begins with its verdict. What was queued in between is decided when lines may
/// pass at its numbers.
#[test]
fn what_was_queued_before_a_calm_began_comes_again() {
    let mut attack = Attack::new(Prefers::Lowest);
    attack.sim.read_copies();
    let (probe, long) = (attack.packet(-1, b"x"), attack.packet(0, b"SITE xxxxxxxxxx\r\n"));
    assert_eq!(attack.decided(&probe, ENDED), (Fate::Accept, Answer::Calm));
    assert_eq!(attack.decided(&long, Queued::default()).0, Fate::Drop);
    attack.copied(&attack.packet(0, b"NOOP xxxx\r\n"));
    // Sent again it ends that calm, and has the bytes of what passed.
    assert_eq!(attack.decided(&long, ENDED), (Fate::Replace, Answer::Nothing));
}

/// One that waits for what it overtook has ended a calm; another begins meanwhile.
#[test]
fn what_waited_comes_again_where_a_calm_began_meanwhile() {
    let mut attack = Attack::new(Prefers::Lowest);
    attack.sim.read_copies();
    let (early, probe) = (attack.packet(6, b"SITE xxxxxxxxxx\r\n"), attack.packet(-1, b"x"));
    let how = Queued { may_wait: true, ..ENDED };
    assert_eq!(attack.decided(&early, how).0, Fate::Wait);
    assert_eq!(attack.decided(&probe, Queued::default()), (Fate::Accept, Answer::Calm));
    attack.copied(&attack.packet(0, b"NOOP\r\n"));
    attack.sim.expire();
    assert_eq!(attack.sim.dropped, 1, "its turn has come");
}

/// Whatever passed, an engine has nothing to ask of it.
#[test]
fn a_copy_asks_nothing() {
    let mut attack = Attack::new(Prefers::Lowest);
    attack.sim.read_copies();
    let odd = b"NOOP\rPORT 10,99,99,99,9,9\r\n";
    attack.copied(&attack.packet(0, odd));
    let next = attack.packet(odd.len() as i32, b"SITE x\r\n");
    let (_, _, heard) = attack.sim.decided(Instant::now(), &next, ENDED);
    assert!(heard.ends_with(b"SITE x\r\n"), "{heard:?}");
}

/// Both ends together: commands that nobody answers, acknowledged by packets that carry nothing.
#[test]
fn what_is_kept_of_a_calm_client_has_a_limit() {
    let mut attack = Attack::new(Prefers::Lowest);
    let line = format!("NOOP {}\r\n", "x".repeat(41));
    for number in 0..10_000 {
        let offset = number * line.len() as i32;
        attack.send(offset, line.as_bytes());
        let mut ack = attack.segment(Server, attack.server, b"");
        ack.ack = attack.client.wrapping_add_signed(offset + line.len() as i32);
        attack.sim.forge(Server, &ack);
        if number % 100 == 0 {
            attack.sim.read_copies();
        }
    }
    assert!(attack.sim.kernel.told > 0, "acknowledgements were queued as long as much was kept");
    let (client, server) = (attack.sim.translation.client, attack.sim.translation.server);
    let (session, _) = attack.sim.engine().sessions.between(client, server).unwrap();
    assert!(format!("{session:?}").len() < 1 << 19);
}

/// Where conntrack does not judge numbers (`nf_conntrack_tcp_be_liberal`).
#[test]
fn what_no_receiver_expects_acknowledges_nothing() {
    let mut attack = Attack::new(Prefers::Lowest);
    let far = attack.server.wrapping_add(900_000);
    let mut forged = attack.segment(Server, far, b"200 x\r\n");
    forged.ack = attack.client.wrapping_add(900_000);
    assert!(attack.sim.forge(Server, &forged).is_some());
    attack.sim.read_copies();
    assert_eq!(attack.sim.engine().counters().lost, 0);
}
