//! Which segments may wait: for their predecessors, and for the answer to a probe.

use super::*;

impl Conversation {
    /// Passes `packet` with `may_wait`.
    fn pass_early(&mut self, packet: &[u8]) -> PacketOutcome {
        let how = PacketMeta { may_wait: true, ..PacketMeta::FORWARDED };
        self.gateway.queued(self.now, packet, how)
    }

    /// A segment of `side`, `past` its next sequence number.
    fn ahead(&self, side: Side, past: u32) -> Vec<u8> {
        self.packet(side, self.next[index(side)] + past, b"NOOP\r\n", 0)
    }
}

#[test]
fn a_segment_outside_the_window_does_not_wait() {
    let mut talk = Conversation::logged_in();
    let received = talk.received[0];
    talk.say(Side::Client, "SYST\r\n"); // acknowledges all
    for wrong in [received - 1, received + 1, received + (1 << 30)] {
        talk.received[0] = wrong;
        let segment = talk.ahead(Side::Client, 6);
        assert_ne!(talk.pass_early(&segment), PacketOutcome::Wait, "acknowledges {wrong}");
        // It counted as a segment past a gap.
        talk.received[0] = received;
        talk.play("> SYST");
    }
    let mut talk = Conversation::logged_in();
    let segment = talk.ahead(Side::Client, 1 << 21);
    assert_eq!(talk.pass_early(&segment), PacketOutcome::Drop);
}

#[test]
fn a_dropped_packet_changes_no_session() {
    let mut talk = Conversation::logged_in();
    talk.gateway.engine.sessions.track_changes(talk.now);
    talk.next[0] += 10;
    assert_eq!(talk.say(Side::Client, "NOOP\r\n").0, PacketOutcome::Drop);
    assert_eq!(std::mem::take(&mut talk.gateway.journal), [[0; 0]; 0]);
    talk.next[0] -= 16;
    assert_eq!(talk.say(Side::Client, "NOOP\r\n").0, PacketOutcome::Accept);
    assert_eq!(std::mem::take(&mut talk.gateway.journal).len(), 1);
}

/// A client sends lines without a reply, faster than its server acknowledges them.
#[test]
fn data_beyond_the_limit_of_unacknowledged_bytes_waits_for_acknowledgements() {
    let mut talk = Conversation::logged_in();
    let line = [&[b'x'; 998][..], b"\r\n"].concat();
    let mut outcomes = Vec::new();
    for number in 0..170 {
        let packet = talk.packet(Side::Client, talk.next[0] + 1000 * number, &line, 0);
        outcomes.push(talk.pass_early(&packet));
    }
    let passed = outcomes.iter().filter(|outcome| **outcome == PacketOutcome::Accept).count();
    assert_eq!(passed, 131);
    assert!(outcomes[131..].iter().all(|outcome| *outcome == PacketOutcome::Wait));
    let counts = |talk: &Conversation| {
        let counters = talk.gateway.engine.counters();
        (counters.limits, counters.drops)
    };
    let before = counts(&talk);
    // Each acknowledgement makes room for as many bytes as it acknowledges.
    for (acknowledged, has_passed) in [(1500, 1), (2000, 1), (7900, 5), (131_000, 32)] {
        talk.received[1] = talk.next[0] + acknowledged;
        let packet = talk.next_packet(Side::Server, b"", 0);
        talk.pass(&packet);
        let verdicts = talk.gateway.verdicts();
        assert!(verdicts.iter().all(|released| released.verdict == Verdict::Accept));
        assert_eq!(verdicts.len(), has_passed + 1, "after {acknowledged}");
    }
    assert_eq!(counts(&talk), before);
}

/// An off-path attacker needs one packet for each, and the gateway has changed or held back what it says.
#[test]
fn a_flood_of_picked_up_connections_leaves_room_for_others() {
    for payload in ["x", "PORT 10,99,99,99,9,9\r\n", "PORT 1"] {
        let mut gateway = gateway_with_limit(4);
        for number in 0..8 {
            gateway.packet(Instant::now(), &flood_packet(number, Side::Client, (0, 0), 0, payload));
        }
        assert_eq!(gateway.engine.sessions.count(), 4, "{payload:?}");
        start_connection(&mut gateway, 100, true);
        assert!(clients(&gateway).contains(&100), "{payload:?}");
    }
}
