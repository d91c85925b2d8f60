//! Segments that an attacker crafts: they overlap, leave gaps, are lost behind the gateway, or have sequence numbers
//! that neither end expects. However a server reassembles them, it never executes an announcement that the gateway did
//! not inspect.

use ftp_alg_core::engine::DropReason;

use super::{
    support::victim::{ALL, Prefers, Victim},
    *,
};

/// An announcement of a third host, which no client may make.
const BOUNCE: &str = "PORT 10,99,99,99,21,179\r\n";

/// A client that crafts its own segments, and a model of the server that reassembles those that reach it.
struct Attack {
    sim: Sim,
    victim: Victim,
    /// The next sequence number of the client when the attack began. The field `server` is the server's current one.
    client: u32,
    server: u32,
}

impl Attack {
    fn new(prefers: Prefers) -> Self {
        let sim = Sim::logged_in(with(Nat::Masquerade));
        let (client, server) = (sim.client.next_number(), sim.server.next_number());
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

    /// Sends `payload` from the client at `offset`. Returns the segment that the gateway forwards, if any.
    fn send(&mut self, offset: i32, payload: &[u8]) -> Option<Segment> {
        let seq = self.client.wrapping_add_signed(offset);
        self.sim.forge(Client, &self.segment(Client, seq, payload))
    }

    /// The same, which reaches the server if it is forwarded. Returns whether it is.
    fn send_through(&mut self, offset: i32, payload: &[u8]) -> bool {
        let Some(Segment { seq, payload, .. }) = self.send(offset, payload) else { return false };
        self.victim.arrive(seq, &payload);
        true
    }

    /// The same, which may be lost behind the gateway.
    fn send_or_lose(&mut self, is_delivered: bool, offset: i32, payload: &[u8]) {
        if is_delivered {
            self.send_through(offset, payload);
        } else {
            self.send(offset, payload);
        }
    }

    /// The server replies to each executed command and acknowledges what it has received.
    fn server_answers(&mut self) {
        for _ in 0..self.victim.executed() {
            let reply = self.segment(Server, self.server, b"200 ok\r\n");
            if let Some(passed) = self.sim.forge(Server, &reply) {
                self.server = self.server.wrapping_add(passed.payload.len() as u32);
            }
        }
        let ack = self.segment(Server, self.server, b"");
        self.sim.forge(Server, &ack);
    }
}

/// A server drops a segment without ACK (RFC 9293 section 3.10.7.4), so the gateway does not read it either.
#[test]
fn a_segment_without_ack_is_not_read() {
    for fin in [0, flags::FIN] {
        let mut attack = Attack::new(ALL[0]);
        let next = attack.segment(Client, attack.client, b"SITE x\r\n");
        let ignored = Segment { flags: flags::PSH | fin, ack: 0, ..next };
        assert_eq!(attack.sim.forge(Client, &ignored).as_ref(), Some(&ignored));
        let passed = attack.send(0, b"NOOP\r\n");
        assert_eq!(passed.map(|passed| passed.payload), Some(b"NOOP\r\n".to_vec()));
        let refused = attack.send(6, BOUNCE.as_bytes()).expect("it is crossed out");
        assert!(!refused.payload.starts_with(b"PORT"));
    }
}

/// A line contains an announcement at the place where another line ends, at every offset and in both orders. The first
/// one may be lost behind the gateway.
#[test]
fn a_line_overlapped_by_another_is_executed_as_inspected() {
    let long = format!("SITE xxxxxxxxxxxx{BOUNCE}");
    for (prefers, start) in ALL.into_iter().flat_map(|one| (-8..12).map(move |start| (one, start)))
    {
        for short in ["NOOP\r\n", "NOOP xxxxxxxxxx\r\n", "LIST 1,2,3,4,5,6\r\n"] {
            let lines = [(start, short.as_bytes()), (0, long.as_bytes())];
            for (first, second) in [(0, 1), (1, 0)] {
                for is_delivered in [true, false] {
                    let mut attack = Attack::new(prefers);
                    attack.send_or_lose(is_delivered, lines[first].0, lines[first].1);
                    attack.send_through(lines[second].0, lines[second].1);
                    for _ in 0..4 {
                        attack.server_answers();
                        for (at, line) in lines {
                            attack.send_through(at, line);
                        }
                    }
                    assert_eq!(attack.victim.announcements(), [""; 0], "{short:?} at {start}");
                }
            }
        }
    }
}

/// A segment contains the start of a verb. Another segment, sent before and after it, completes the announcement.
#[test]
fn a_line_completed_by_an_overlapping_segment_is_inspected() {
    for prefers in ALL {
        for is_delivered in [true, false] {
            let mut attack = Attack::new(prefers);
            attack.send_or_lose(is_delivered, 8, b"LIST 10,99,99,99,21,179\r\n");
            attack.send_through(0, b"SITE x\r\nPOR");
            for _ in 0..2 {
                attack.send_through(8, b"LIST 10,99,99,99,21,179\r\n");
                attack.server_answers();
            }
            assert_eq!(attack.victim.lines(), ["SITE X", "XXXX XXXXXXXXXXXXXXXXXX"]);
        }
    }
}

#[test]
fn bytes_before_the_window_do_not_hide_an_announcement() {
    for prefers in ALL {
        for probe in ["x", "\n", "\r\n", "SITE x\r\n"] {
            let mut attack = Attack::new(prefers);
            let before = -(probe.len() as i32);
            assert!(attack.send_through(before, probe.as_bytes()));
            assert_eq!(attack.victim.lines(), [""; 0]);
            attack.send_through(before, format!("{probe}{BOUNCE}").as_bytes());
            assert_eq!(attack.victim.lines(), ["XXXX XXXXXXXXXXXXXXXXXX"], "{probe:?}");
        }
    }
}

#[test]
fn a_pipeline_with_a_gap_is_inspected_in_sequence_order() {
    for prefers in ALL {
        let mut attack = Attack::new(prefers);
        let [port, seen] = attack.sim.active(2200);
        let behind = port.len() as i32;
        // The first segment is lost before it reaches the gateway.
        attack.send_through(behind, b"TYPE I\r\n");
        attack.send_through(behind + 8, b"LIST\r\n");
        assert_eq!(attack.victim.ack(), attack.client);
        assert_eq!(attack.sim.engine().counters().drops.get(DropReason::OutOfOrder), 1);
        assert!(attack.send_through(0, port.as_bytes()));
        // A retransmission that includes the following lines.
        assert!(attack.send_through(0, format!("{port}TYPE I\r\nLIST\r\n").as_bytes()));
        attack.server_answers();
        assert_eq!(attack.victim.lines(), [seen.trim(), "TYPE I", "LIST"]);
        assert_eq!(attack.sim.kernel.opened.len(), 1);
    }
}

/// An inspected line is lost behind the gateway, and other lines may have passed unread since.
#[test]
fn a_probe_after_downtime_uses_an_answerable_sequence_number() {
    let mut attack = Attack::new(Prefers::Lowest);
    assert!(attack.send(0, b"NOOP\r\n").is_some());
    attack.sim.engine().note_downtime();
    let both = b"NOOP\r\nSITE x\r\n";
    let probe = attack.send(0, both).unwrap();
    assert!(probe.payload.is_empty());
    let past = probe.seq.wrapping_sub(attack.victim.ack()).cast_signed();
    assert!(past < 0, "{past} bytes after the server's next byte: not answered");
    attack.server_answers();
    assert!(attack.send_through(0, both));
    assert_eq!(attack.victim.lines(), ["NOOP", "SITE X"]);
}

/// A client whose lost bytes are acknowledged never sends them again.
#[test]
fn a_probe_acknowledges_no_bytes_that_were_lost_before_a_pickup() {
    let mut attack = Attack::new(Prefers::Lowest);
    attack.sim.forget();
    // Its first line was lost, and so was the server's.
    assert!(attack.send(6, b"SYST\r\n").is_some());
    let late = attack.segment(Server, attack.server.wrapping_add(6), b"215 U\r\n");
    let passed: Vec<_> = (0..2).filter_map(|_| attack.sim.forge(Server, &late)).collect();
    assert_eq!(passed.last().map(|probe| probe.payload.len()), Some(0), "it is probed: {passed:?}");
    for segment in passed {
        assert_eq!(segment.ack, attack.client, "{segment:?}");
    }
}
