//! Which segments may wait: for their predecessors, and for the answer to a probe.

use super::{super::packets::waiting::MAX_PARKED, *};

impl Conversation {
    /// Passes `packet` with `may_wait`.
    fn pass_early(&mut self, packet: &[u8]) -> PacketOutcome {
        let how = PacketMeta { may_wait: true, ..PacketMeta::default() };
        self.gateway.queued(self.now, packet, how)
    }

    /// Has the engine take these packets, whose ids count from `first`. Nothing is carried out yet.
    fn take(&mut self, first: u32, packets: &[&[u8]]) -> Effects {
        let packets = packets.iter().zip(first..).map(|(bytes, id)| {
            let token = Token { id, ..Token::default() };
            QueuedPacket { token, bytes, meta: PacketMeta::default() }
        });
        let mut effects = Effects::default();
        self.gateway.engine.take(self.now, packets, &mut effects);
        effects
    }

    /// Carries out what comes of that.
    fn carry_out(&mut self, mut effects: Effects) {
        carry_out(&mut self.gateway, self.now, std::slice::from_mut(&mut effects));
    }

    /// A segment of `side`, `past` its next sequence number.
    fn ahead(&self, side: Side, past: u32) -> Vec<u8> {
        let me = usize::from(side == Side::Server);
        self.build(side, self.next[me] + past, b"NOOP\r\n", false)
    }
}

#[test]
fn an_out_of_order_segment_is_forwarded_after_its_predecessor() {
    for side in [Side::Client, Side::Server] {
        let mut talk = Conversation::logged_in();
        let packets = talk.gateway.engine.counters().packets;
        let segment = talk.ahead(side, 6);
        assert_eq!(talk.pass_early(&segment), PacketOutcome::Wait);
        assert!(talk.gateway.verdicts().is_empty());
        assert_eq!(talk.say(side, "SYST\r\n").0, PacketOutcome::Accept);
        let verdicts = talk.gateway.verdicts().iter().map(|released| &released.verdict);
        assert!(verdicts.eq([&Verdict::Accept; 2]));
        assert_eq!(talk.gateway.engine.counters().packets, packets + 2);
    }
}

#[test]
fn an_out_of_order_segment_that_may_not_wait_is_dropped() {
    let mut talk = Conversation::logged_in();
    let (first, second) = (talk.ahead(Side::Client, 6), talk.ahead(Side::Client, 12));
    assert_eq!(talk.pass(&first).0, PacketOutcome::Drop);
    assert_eq!(talk.gateway.engine.counters().drops.get(DropReason::OutOfOrder), 1);
    // The receiver is probed, because nothing may be missing.
    assert_eq!(talk.pass_early(&second), PacketOutcome::Replace);
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
fn packets_behind_a_kernel_request_are_parked_up_to_a_limit() {
    let mut talk = Conversation::logged_in();
    let port = talk.build(Side::Client, talk.next[0], b"PORT 10,0,0,2,200,10\r\n", false);
    let later = talk.ahead(Side::Client, 22);
    let mut packets = vec![&port[..]];
    packets.resize(MAX_PARKED + 2, &later);
    let effects = talk.take(0, &packets);
    assert!(effects.has_kernel_requests());
    let dropped = effects.verdicts.iter().map(|released| (released.token.id, &released.verdict));
    let last = (MAX_PARKED as u32 + 1, &Verdict::Drop(DropReason::Overflow));
    assert!(dropped.eq([last]), "{:?}", effects.verdicts);
    assert_eq!(talk.gateway.engine.counters().drops.get(DropReason::Overflow), 1);
}

/// The kernel answers after the policy was set, and after the pinholes that it forbids were closed.
#[test]
fn a_policy_that_changes_while_a_pinhole_opens_counts_for_it() {
    for (min_data_port, is_opened) in [(1024, true), (51210, true), (51211, false)] {
        let mut talk = Conversation::logged_in();
        talk.say(Side::Client, "PORT 192,168,150,80,200,9\r\n"); // its translation is known from now on
        let port = talk.build(Side::Client, talk.next[0], b"PORT 192,168,150,80,200,10\r\n", false);
        let effects = talk.take(1 << 30, &[&port]);
        assert_eq!(effects.openings.len(), 1);
        talk.set_policy(Policy { min_data_port, ..Policy::default() });
        talk.carry_out(effects);
        let is_port = |open: &Pinhole| open.target.port() == 51210;
        assert_eq!(talk.gateway.kernel.open.iter().any(is_port), is_opened);
        let mut listed = talk.gateway.engine.sessions.list_pinholes();
        assert_eq!(listed.any(|listed| is_port(&listed.pinhole)), is_opened);
        let is_refused = talk.gateway.engine.counters().pinholes_refused == 1;
        assert_eq!(is_refused, !is_opened);
    }
}

#[test]
fn a_packet_whose_session_was_removed_starts_another_session() {
    let mut talk = Conversation::logged_in();
    let port = talk.build(Side::Client, talk.next[0], PORT.as_bytes(), false);
    let effects = talk.take(1 << 30, &[&port]);
    assert!(effects.has_kernel_requests());
    let (client, server) = (talk.client, talk.server);
    talk.gateway.engine.sessions.forget_between(client, server, &mut Effects::default());
    talk.carry_out(effects);
    let given = talk.gateway.verdicts().iter().filter(|released| released.token.id == 1 << 30);
    assert!(given.map(|released| &released.verdict).eq([&Verdict::Accept]));
    assert!(talk.gateway.kernel.open.is_empty());
    // It is the first packet of another session.
    let (session, _) =
        talk.gateway.engine.sessions.session_between(talk.client, talk.server).unwrap();
    assert_eq!(session.state(), "picked-up");
}

#[test]
fn parked_packets_stay_in_order_after_an_unrelated_answer() {
    let mut talk = Conversation::logged_in();
    let port = talk.build(Side::Client, talk.next[0], b"PORT 10,0,0,2,200,10\r\n", false);
    let later = talk.build(Side::Client, talk.next[0] + 22, b"NOOP\r\n", false);
    let first = talk.take(1000, &[&port, &later]);
    let (mut other, engine) = (Effects::default(), &mut talk.gateway.engine);
    let key = table::Key::between(talk.client, talk.server);
    let index = engine.sessions.table.find(&key).unwrap();
    let entry = engine.sessions.table.get_mut(index).unwrap();
    let (mode, purpose) = (QueueMode::Selected, questions::effects::Purpose::Session);
    other.renew_queue_mode(index, entry, mode, purpose);
    for (effects, decided) in [(other, &[][..]), (first, &[1000, 1001])] {
        talk.carry_out(effects);
        let given = talk.gateway.verdicts().iter().map(|released| released.token.id);
        assert_eq!(given.filter(|id| *id >= 1000).collect::<Vec<_>>(), decided);
    }
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

/// A client announces a port again, on another connection in another shard, before the kernel has closed the first
/// pinhole there.
#[test]
fn a_late_closing_spares_a_new_pinhole_of_another_shard() {
    let mut first = Conversation::logged_in();
    let shard = first.gateway.engine.new_shard();
    let mut second = Conversation::through(shard, "192.168.150.80").log_in();
    first.play("> PORT 192,168,150,80,14,178");
    let refusal = first.build(Side::Server, first.next[1], b"500 no\r\n", false);
    let (now, mut effects) = (first.now, first.take(0, &[&refusal]));
    let mut step = Step::CheckRequests;
    while step != Step::Finish {
        step = step.run(&mut first.gateway, now, std::slice::from_mut(&mut effects)).unwrap();
    }
    let open = |talk: &mut Conversation| std::mem::take(&mut talk.gateway.kernel.open);
    second.gateway.kernel.open = open(&mut first);
    second.play("> PORT 192,168,150,80,14,178");
    first.gateway.kernel.open = open(&mut second);
    assert_eq!(first.gateway.kernel.open.len(), 1);
    assert_eq!(step.run(&mut first.gateway, now, std::slice::from_mut(&mut effects)), None);
    assert_eq!(first.gateway.kernel.open.len(), 1, "the second's is open");
    second.gateway.kernel.open = open(&mut first);
    second.play("< 500 no");
    assert_eq!(second.gateway.kernel.open, []);
}

/// A client sends lines without a reply, faster than its server acknowledges them.
#[test]
fn data_beyond_the_limit_of_unacknowledged_bytes_waits_for_acknowledgements() {
    let mut talk = Conversation::logged_in();
    let line = [&[b'x'; 998][..], b"\r\n"].concat();
    let mut outcomes = Vec::new();
    for number in 0..170 {
        let packet = talk.build(Side::Client, talk.next[0] + 1000 * number, &line, false);
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
        let packet = talk.build(Side::Server, talk.next[1], b"", false);
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
            gateway.packet(Instant::now(), &flood_packet(number, Side::Client, (0, 0), payload));
        }
        assert_eq!(gateway.engine.sessions.count(), 4, "{payload:?}");
        start_connection(&mut gateway, 100, true);
        assert!(clients(&gateway).contains(&100), "{payload:?}");
    }
}
