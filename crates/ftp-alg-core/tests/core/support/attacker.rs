//! A client that makes its own segments: they overlap, die behind the gateway, and come at any moment while others wait for
//! their verdicts. It wants its server to execute a `PORT` that was not inspected.

use std::time::Duration;

use ftp_alg_core::{
    packet::flags,
    session::Side::{self, Client, Server},
};

use super::{
    Rng,
    link::Link,
    scenario::{NATS, Scenario, hands_over, uses_expectations},
    script::words,
    segment::Segment,
    sim::{Sim, queues::Queueing},
    victim::{ALL, Victim},
};

/// A third host's endpoint, which no PORT may name.
const BOUNCE: &str = "PORT 10,99,99,99,21,179\r\n";
/// The window of a segment that does not reach the server: its hop limit is too low, or its timestamp too old.
const STALE: u16 = 1;
const WINDOW: u16 = 30_000;

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// A byte that the server has.
    Probe,
    /// What precedes the long line.
    Prefix,
    /// A line that announces nothing,
    Short,
    /// one at the same numbers, which ends with the announcement,
    Long,
    /// and does not reach the server.
    Stale,
    /// The announcement alone.
    Bounce,
    Piece,
    /// Another line, or a part of one. What it has of an announcement may begin where a line ended.
    Other,
}

const ACTS: &[Act] = &[
    Act::Probe,
    Act::Probe,
    Act::Prefix,
    Act::Short,
    Act::Long,
    Act::Stale,
    Act::Bounce,
    Act::Piece,
    Act::Other,
    Act::Other,
];
/// Lines of which some server might execute a part.
const OTHERS: &[u8] = b"NOOP\r\n|NOOP xxxxxx\r\n|LIST 10,99,99,99,21,179\r\n|REST 10,99,99,99,21,179\r\n|TYPE PORT\r\n|CWD PORT\r\n|\
    CWD 10,99,99,99,21,179\r\n|RETR xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxPORT\r\n|SITE xxPORT 10,99,99,99,21,179\r\n|\
    SITE xxxxxxxPORT 10,99,99,99,21,179\r\n|SITE x POR\xff\xf1T 10,99,99,99,21,179\r\n|SITE x PO\0RT 10,99,99,99,21,179\r\n|\
    xxxx\r\nPOR|SITE xxxx\r\n|SITE xxPOR|T 10,99,99,99,21,179\r\n|xxxxxxxxxxxxxxx|PO|\r\n";
/// What an attack is made of, besides chance.
const PLANS: &[&[Act]] = &[
    &[],
    &[Act::Probe, Act::Long, Act::Short],
    &[Act::Stale, Act::Probe, Act::Prefix, Act::Short],
    &[Act::Short, Act::Prefix],
];

/// Client and server at the two sides of the gateway.
struct Attack {
    sim: Sim,
    rng: Rng,
    victim: Victim,
    /// The next number of client and server when it began.
    client: u32,
    server: u32,
    /// What the client acknowledges.
    heard: u32,
    /// Replies that the server has not sent.
    owed: usize,
    is_slow: bool,
    /// Where its segments ended.
    ends: Vec<i32>,
}

/// What the server was made to connect to. The daemon crashes this often.
pub fn attack(seed: u64, crashes: f64) -> Vec<String> {
    let mut rng = Rng::new(seed ^ 0xa77a);
    let mut sim = Sim::logged_in(scenario(&mut rng, seed, crashes));
    if sim.hands_over() {
        // It is handed over idle, and as soon as its translation is known.
        sim.exchange("EPSV\r\n", "229 ok (|||20001|)\r\n");
        for _ in 0..rng.below(3) {
            sim.exchange("NOOP\r\n", "200 ok\r\n");
        }
    }
    sim.captures();
    let (client, server) = (sim.client.next_number(), sim.server.next_number());
    let victim = Victim::new(*rng.pick(&ALL), client);
    let is_slow = rng.chance(0.3);
    let ends = vec![0];
    let heard = server;
    let mut attack = Attack { sim, victim, client, server, heard, owed: 0, is_slow, ends, rng };
    attack.run();
    attack.victim.announcements()
}

fn scenario(rng: &mut Rng, seed: u64, crashes: f64) -> Scenario {
    let pace = *rng.pick(&[30, 300, 3_000]);
    Scenario {
        nat: *rng.pick(&NATS),
        v6: rng.chance(0.5),
        link: Link { delay: 50, reorder: *rng.pick(&[0.0, 0.0, 0.3]), ..Link::default() },
        crashes,
        is_patient: true,
        queueing: Queueing { batch: *rng.pick(&[1, 2, 8]), wake: pace, stage: pace, away: 100_000 },
        hands_over: hands_over(seed),
        uses_expectations: uses_expectations(seed),
        seed,
        ..Scenario::default()
    }
}

impl Attack {
    fn run(&mut self) {
        // A line at the numbers of another, whose rest is the announcement.
        let prefix = *self.rng.pick(&["", "NOOP\r\n", "SITE "]);
        let (at, cut) = (prefix.len(), 8 + self.rng.below(12));
        let short = format!("NOOP {}\r\n", "x".repeat(cut - 7));
        let verb = if prefix == "SITE " { "xxxxx" } else { "SITE " };
        let long = format!("{verb}{}{BOUNCE}", "x".repeat(cut - 5));
        let whole = format!("{prefix}{long}");
        let mut plan = self.rng.pick(PLANS).to_vec();
        for _ in 0..self.rng.below(8) {
            let place = self.rng.below(plan.len() + 1);
            plan.insert(place, *self.rng.pick(ACTS));
        }
        for act in plan {
            let stale = if act == Act::Stale || self.rng.chance(0.15) { STALE } else { WINDOW };
            let at = at as i32;
            match act {
                Act::Probe => self.send(-1, b"x", WINDOW),
                Act::Prefix => self.send(0, prefix.as_bytes(), stale),
                Act::Short => self.send(at, short.as_bytes(), stale),
                Act::Long | Act::Stale => self.send(at, long.as_bytes(), stale),
                Act::Bounce => self.send(at + cut as i32, BOUNCE.as_bytes(), stale),
                Act::Piece => {
                    let to = 1 + self.rng.below(whole.len());
                    let from = self.rng.below(to);
                    self.send(from as i32, &whole.as_bytes()[from..to], stale);
                }
                Act::Other => {
                    let line = *self.rng.pick(&words(OTHERS));
                    let inner = line.windows(3).position(|three| three == b"POR");
                    let inner = inner.filter(|_| self.rng.chance(0.5)).unwrap_or(0) as i32;
                    let near = if self.rng.chance(0.7) { 0 } else { self.rng.below(34) as i32 - 8 };
                    let offset = *self.rng.pick(&self.ends) + near - inner;
                    let cut = if self.rng.chance(0.1) {
                        1 + self.rng.below(line.len())
                    } else {
                        line.len()
                    };
                    self.send(offset, &line[..cut], stale);
                }
            }
            let most = *self.rng.pick(&[1, 30, 100, 1_000, 10_000, 200_000]);
            let pause = self.rng.below(most) as u64;
            self.run_for(pause);
        }
        // As its system would, which knows of one of them.
        for _ in 0..3 {
            self.reply();
            self.send(0, whole.as_bytes(), WINDOW);
            self.run_for(300_000);
        }
    }

    fn send(&mut self, offset: i32, payload: &[u8], window: u16) {
        if payload.is_empty() {
            return;
        }
        let segment = Segment {
            seq: self.client.wrapping_add_signed(offset),
            ack: self.heard,
            flags: flags::ACK | flags::PSH,
            window,
            payload: payload.to_vec(),
            ..Segment::default()
        };
        self.ends.push(offset + payload.len() as i32);
        self.sim.throw(Client, &segment);
    }

    fn run_for(&mut self, micros: u64) {
        let until = self.sim.now() + Duration::from_micros(micros);
        while self.sim.step_before(until) {
            for (from, segment) in self.sim.take_captured() {
                self.arrives(from, &segment);
            }
        }
    }

    fn arrives(&mut self, from: Side, segment: &Segment) {
        if from == Server {
            let end = segment.end();
            if end.wrapping_sub(self.heard).cast_signed() > 0 {
                self.heard = end;
            }
        } else if segment.window != STALE {
            self.victim.arrive(segment.seq, &segment.payload);
            self.owed += self.victim.executed();
            if !self.is_slow || self.rng.chance(0.3) {
                self.reply();
            }
            self.answer(b"");
        }
    }

    /// The server answers what it has executed.
    fn reply(&mut self) {
        for _ in 0..std::mem::take(&mut self.owed) {
            self.answer(b"200 ok\r\n");
        }
    }

    fn answer(&mut self, payload: &[u8]) {
        let segment = Segment {
            seq: self.server,
            ack: self.victim.ack(),
            flags: flags::ACK,
            window: WINDOW,
            payload: payload.to_vec(),
            ..Segment::default()
        };
        self.server = segment.end();
        self.sim.throw(Server, &segment);
    }
}
