//! Which segments may wait for what they overtook.

use super::*;

impl Conversation {
    /// Hands in `packet` with patience.
    fn hand_early(&mut self, packet: &[u8]) -> Verdict {
        let how = Queued { may_wait: true, ..Queued::default() };
        self.engine.queued(self.now, packet, how, &mut self.kernel, &mut Vec::new())
    }

    /// A segment of `side`, `past` its next number.
    fn ahead(&self, side: Side, past: u32) -> Vec<u8> {
        let me = usize::from(side == Side::Server);
        self.build(side, self.next[me] + past, b"NOOP\r\n", false)
    }
}

#[test]
fn a_segment_that_overtook_another_goes_on_after_it() {
    for side in [Side::Client, Side::Server] {
        let mut talk = Conversation::logged_in();
        let packets = talk.engine.counters().packets;
        let early = talk.ahead(side, 6);
        assert_eq!(talk.hand_early(&early), Verdict::Early);
        assert_eq!(talk.engine.counters().packets, packets);
        assert_eq!(talk.engine.turn(&early), Turn::Waits);
        assert_eq!(talk.say(side, "SYST\r\n").0, Verdict::Accept);
        assert_eq!(talk.engine.turn(&early), Turn::Due);
        assert_eq!(talk.hand_early(&early), Verdict::Accept);
        assert_eq!(talk.engine.turn(&early), Turn::Over);
        assert_eq!(talk.engine.counters().packets, packets + 2);
    }
}

#[test]
fn without_patience_it_is_dropped_and_so_are_those_after_it() {
    let mut talk = Conversation::logged_in();
    let (first, second) = (talk.ahead(Side::Client, 6), talk.ahead(Side::Client, 12));
    assert_eq!(talk.hand(&first).0, Verdict::Drop);
    // The receiver is asked what it has, as nothing may be missing.
    assert_eq!(talk.hand_early(&second), Verdict::Replace);
}

#[test]
fn what_a_stranger_may_have_sent_does_not_wait() {
    let mut talk = Conversation::logged_in();
    let received = talk.received[0];
    talk.say(Side::Client, "SYST\r\n"); // acknowledges all
    for wrong in [received - 1, received + 1, received + (1 << 30)] {
        talk.received[0] = wrong;
        let early = talk.ahead(Side::Client, 6);
        assert_ne!(talk.hand_early(&early), Verdict::Early, "acknowledges {wrong}");
        // It counted as one past a gap.
        talk.received[0] = received;
        talk.say(Side::Client, "SYST\r\n");
    }
    let mut talk = Conversation::logged_in();
    let early = talk.ahead(Side::Client, 1 << 21);
    assert_eq!(talk.hand_early(&early), Verdict::Drop);
}
