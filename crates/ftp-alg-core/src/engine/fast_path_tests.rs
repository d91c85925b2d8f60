//! Connections on the fast path, from the engine's side.

use std::net::Ipv4Addr;

use super::*;
use crate::{engine::offload::MAX_UNGREETED, script::Message};

const PASV: &str = "> PASV < 227 Entering Passive Mode (203,0,113,9,78,52)";
/// The same on the fast path, which opens the pinhole.
const PASV_OPENED: &str = "> PASV < 227 Entering Passive Mode (203,0,113,9,78,53) @opened";
const PORT_OPENED: &str = "> PORT 192,168,150,80,4,1 @opened";

fn preserving_length() -> Policy {
    Policy { preserves_length: true, ..Policy::default() }
}

impl Conversation {
    /// A conversation that is handed over.
    fn handed_over() -> Self {
        Self::handed_over_from("192.168.150.80")
    }

    fn handed_over_from(client: &str) -> Self {
        let engine = Engine::new(preserving_length(), Checksums::Verify);
        let mut talk = Self::through(engine, client).log_in_after("220 ProFTPD Server");
        talk.gateway.engine.sessions.set_uses_fast_path(true);
        talk.play(PASV);
        assert!(!talk.is_handed_over(), "the rules have a pinhole that waits for its transfer");
        talk.play("> RETR first < 150 here < 226 done");
        assert_eq!(talk.gateway.engine.sessions.fast_path_sessions().collect::<Vec<_>>(), [1]);
        talk
    }

    /// Passes the lines of a script from the fast path to the engine, from line `first` on. `@opened` says that the line
    /// opened a pinhole, a number the line whose pinhole was found consumed. An empty message is a FIN.
    fn fast_path(&mut self, first: u32, script: &str) {
        for (number, message) in (first..).zip(messages(script)) {
            self.read_fast_path(number, &[message]);
        }
    }

    /// The same, for lines that the engine reads at once.
    fn read_fast_path(&mut self, first: u32, messages: &[Message<'_>]) {
        let (now, lines) = (self.now, self.next_lines(first, messages));
        self.gateway
            .run(now, |engine, effects| engine.read_fast_path_lines(lines.into_iter(), effects));
    }

    /// Lines from `first` on, as the BPF program passes them.
    fn next_lines<'l>(&mut self, first: u32, said: &'l [Message<'_>]) -> Vec<FastPathLine<'l>> {
        let mut lines = Vec::new();
        for (number, Message { from_client, text, options }) in (first..).zip(said) {
            let me = usize::from(!from_client);
            lines.push(FastPathLine {
                flow: 1,
                line: number,
                at: self.now,
                from: if *from_client { Side::Client } else { Side::Server },
                client: self.client,
                server: self.server,
                seq: self.next[me],
                ack: self.received[me],
                window: 512,
                opened_pinhole: options.contains(&"opened"),
                consumed_pinhole: options.iter().find_map(|option| option.parse().ok()),
                is_fin: text.is_empty(),
                padding: crate::ftp::Padding::Zeros,
                bytes: text.as_bytes(),
            });
            self.next[me] += text.len().max(1) as u32; // a FIN counts as one
            self.received[1 - me] = self.next[me];
        }
        lines
    }

    fn is_handed_over(&self) -> bool {
        self.gateway.engine.sessions.fast_path_sessions().count() == 1
    }

    /// The lines whose pinholes of the BPF program were closed: those of a session, and those of none.
    fn closed(&self) -> [Vec<u32>; 2] {
        let mut closed = [Vec::new(), Vec::new()];
        for closing in &self.gateway.kernel.program_closings {
            match closing {
                Closing::Program(_, id) => closed[0].push(id.line),
                Closing::Lost(id) => closed[1].push(id.line),
                Closing::Rules(_) => {}
            }
        }
        closed
    }

    fn closed_lines(&self) -> Vec<u32> {
        let [closed, _] = self.closed();
        closed
    }

    fn pinholes(&self) -> Vec<String> {
        let pinholes = self.gateway.engine.sessions.list_pinholes();
        pinholes.map(|info| format!("{} {}", info.kind, info.ends)).collect()
    }
}

#[test]
fn an_idle_connection_is_handed_over_with_its_state() {
    let talk = Conversation::handed_over();
    let [FlowChange::Handover(handover)] = talk.gateway.kernel.changes[..] else { panic!() };
    assert_eq!(
        handover,
        Handover {
            flow: 1,
            lines: 0,
            next_seq: talk.next,
            login: LoginStage::LoggedIn,
            translation: talk.gateway.kernel.translation.unwrap(),
            interfaces: [1; 2],
            client_ports: [0, u16::MAX],
            announced_addresses: ["198.51.100.1".parse().unwrap(), "203.0.113.9".parse().unwrap()],
            seq_offsets: None,
            padding: crate::ftp::Padding::Zeros,
            pinhole_timeout: Some(Duration::from_secs(30)),
        }
    );
}

#[test]
fn a_connection_stays_inline_unless_both_ends_are_at_usable_interfaces() {
    for interfaces in [[1, 2], [2, 1], [2, 3]] {
        let is_inline = interfaces.contains(&1);
        let engine = Engine::new(Policy::default(), Checksums::Verify);
        let mut talk = Conversation::at(engine, "192.168.150.80", interfaces).log_in();
        let sessions = &mut talk.gateway.engine.sessions;
        sessions.set_fast_path_interfaces([2, 3].into());
        sessions.set_uses_fast_path(true);
        talk.play(&"> NOOP < 200 ok ".repeat(if is_inline { 5 } else { 1 }));
        assert_eq!(talk.is_handed_over(), !is_inline, "{interfaces:?}");
        // It is handed over as soon as it may be.
        talk.gateway.engine.sessions.set_fast_path_interfaces([1, 2, 3].into());
        talk.play("> NOOP < 200 ok");
        assert!(talk.is_handed_over(), "{interfaces:?}");
    }
}

#[test]
fn a_login_triggers_a_handover_if_the_translation_is_known() {
    for is_known in [false, true] {
        let mut talk = Conversation::masqueraded();
        talk.gateway.engine.sessions.set_uses_fast_path(true);
        talk.gateway.kernel.was_flushed = !is_known;
        let mut talk = talk.log_in();
        assert_eq!(talk.is_handed_over(), is_known);
        if !is_known {
            talk.play(&"> NOOP < 200 ok ".repeat(8));
            // It is looked up three times, not more often.
            talk.gateway.kernel.was_flushed = false;
            talk.play("> NOOP < 200 ok");
            assert!(!talk.is_handed_over());
        }
    }
}

#[test]
fn fast_path_lines_count_like_queued_lines() {
    let mut talk = Conversation::handed_over();
    talk.fast_path(1, "> RETR one < 150 here");
    assert!(talk.pinholes().is_empty(), "{:?}", talk.pinholes());
    talk.fast_path(3, &format!("< 226 done {PASV_OPENED}"));
    // From the client's address as the server sees it.
    let passive = "PASV 192.168.150.80 -> 203.0.113.9:20021 (from 198.51.100.1)";
    assert_eq!(talk.pinholes(), [passive]);
    talk.fast_path(6, "> PORT 192,168,150,80,4,1 @opened < 200 PORT command successful");
    let active = "PORT 203.0.113.9 -> 198.51.100.1:1025 (to 192.168.150.80:1025)";
    assert_eq!(talk.pinholes(), [active]);
    let counters = talk.gateway.engine.counters();
    assert_eq!((counters.fast_path_lines, counters.fast_path_mismatches), (7, 0));
    assert_eq!(counters.pinholes_opened, 3);
    assert_eq!((counters.rewrites, counters.pinholes_used), (1, 1));
    assert!(talk.is_handed_over());
    // The rules had only the first one; the BPF program had those that were replaced.
    talk.gateway.expire(talk.now);
    assert_eq!(talk.gateway.kernel.open.len(), 0);
    assert_eq!(talk.closed_lines(), [5]);
}

#[test]
fn a_pinhole_expires_before_a_later_line_replaces_it() {
    let mut talk = Conversation::handed_over();
    let lifetime = talk.gateway.engine.sessions.policy().pinhole_timeout;
    talk.fast_path(1, PASV_OPENED);
    // No deadline was checked since.
    talk.now += lifetime;
    talk.fast_path(3, "> PASV");
    let (events, _) = talk.gateway.take_events();
    let is_expiry = |event: &Event| matches!(event.kind, EventKind::PinholeExpired(..));
    assert!(events.iter().any(is_expiry), "{events:?}");
    assert!(talk.pinholes().is_empty(), "{:?}", talk.pinholes());
}

#[test]
fn a_consumed_pinhole_is_not_closed_in_the_bpf_program() {
    for (consumed, closed) in [("", &[2][..]), ("@2", &[]), ("@1", &[2])] {
        let mut talk = Conversation::handed_over();
        talk.fast_path(1, PASV_OPENED);
        talk.fast_path(3, &format!("> RETR one < 150 here < 226 done {consumed}"));
        assert!(talk.pinholes().is_empty());
        // Not earlier, because its data connection may still come.
        talk.gateway.expire(talk.now + Duration::from_secs(7));
        assert!(talk.closed_lines().is_empty());
        talk.gateway.expire(talk.now + Duration::from_secs(8));
        assert_eq!(talk.closed_lines(), closed, "{consumed:?}");
    }
}

#[test]
fn a_queued_packet_takes_the_connection_back_and_is_forwarded() {
    let mut talk = Conversation::handed_over();
    talk.fast_path(1, PORT_OPENED);
    assert_eq!(talk.say(Side::Server, "500 no\r\n").0, PacketOutcome::Accept);
    let [_, FlowChange::Withdraw(taken), FlowChange::Handover(again)] =
        talk.gateway.kernel.changes[..]
    else {
        panic!("{:?}", talk.gateway.kernel.changes)
    };
    assert_eq!((taken.flow, again.flow, again.lines, again.next_seq), (1, 1, 1, talk.next));
    // Refused, so its pinhole is closed.
    assert_eq!(talk.closed_lines().last(), Some(&1));
    assert!(talk.pinholes().is_empty());
}

#[test]
fn an_encrypted_connection_is_not_handed_over() {
    let mut talk = Conversation::under(preserving_length());
    talk.gateway.engine.sessions.set_uses_fast_path(true);
    talk.play("< 220 ProFTPD Server > AUTH TLS < 234 go");
    for (side, kind, message) in
        [(Side::Client, 22, 1), (Side::Server, 22, 2), (Side::Client, 23, 7), (Side::Server, 23, 7)]
    {
        let record = [kind, 3, 3, 0, 1, message].map(char::from);
        talk.say(side, &String::from_iter(record));
        assert!(!talk.is_handed_over(), "{side:?} {kind}");
    }
}

/// A rule of another program has removed the mark of a line that the fast path adjusted, so the line is queued.
#[test]
fn a_line_that_the_fast_path_has_adjusted_is_not_adjusted_again() {
    let mut talk = Conversation::masqueraded().log_in();
    talk.gateway.engine.sessions.set_uses_fast_path(true);
    talk.play("> PORT 192,168,150,80,14,178 < 200 ok > RETR first < 150 here < 226 done");
    assert!(talk.is_handed_over());
    // The address became two digits shorter.
    let (seq, adjusted_seq, line) = (talk.next[0], talk.next[0].wrapping_sub(2), b"NOOP\r\n");
    talk.fast_path(1, "> NOOP");
    let adjusted = talk.packet(Side::Client, adjusted_seq, line, 0);
    assert_eq!(talk.pass(&adjusted).0, PacketOutcome::Drop);
    assert_eq!(talk.gateway.engine.counters().drops.get(DropReason::Adjusted), 1);
    assert!(!talk.is_handed_over());
    // The client sends it again, and the program no longer adjusts it.
    let again = talk.packet(Side::Client, seq, line, 0);
    assert_eq!(talk.pass(&again), (PacketOutcome::Replace, "NOOP\r\n".to_owned()));
    let delivered = Packet::parse(talk.gateway.replacement()).unwrap().seq();
    assert_eq!(delivered, Seq(adjusted_seq));
    assert_eq!(talk.say(Side::Server, "200 fine\r\n").1, "200 fine\r\n");
}

#[test]
fn a_connection_without_fast_path_lines_is_handed_over_three_times() {
    let mut talk = Conversation::handed_over();
    talk.play(&"> NOOP < 200 fine ".repeat(5));
    let over = |change: &&FlowChange| matches!(change, FlowChange::Handover(_));
    assert_eq!(talk.gateway.kernel.changes.iter().filter(over).count(), 3);
    assert!(!talk.is_handed_over());

    // The end of a daemon may have ended them.
    let record = talk.record();
    talk.gateway.engine = talk.restored(Policy::default(), [&record[..]].into_iter());
    talk.gateway.engine.sessions.set_uses_fast_path(true);
    talk.play("> NOOP < 200 fine");
    assert!(talk.is_handed_over());
}

#[test]
fn a_mismatch_takes_the_connection_back() {
    for line in [
        // Another host's address: the engine would have refused it.
        "> PORT 192,168,150,81,4,1 @opened",
        // No pinhole was opened.
        "> PORT 192,168,150,80,4,1",
        "> NOOP @opened",
        "> AUTH TLS @opened",
    ] {
        let mut talk = Conversation::handed_over();
        talk.fast_path(1, line);
        assert!(!talk.is_handed_over(), "{line}");
        assert_eq!(talk.gateway.engine.counters().fast_path_mismatches, 1, "{line}");
        // What the program opened for it is closed.
        let lost = Vec::from_iter(line.contains("@opened").then_some(1));
        assert_eq!(talk.closed()[1], lost, "{line}");
    }
}

/// The daemon may not have run for a while, and may have been killed then, before the program returned the connection.
#[test]
fn lines_are_read_although_downtime_was_recorded_before() {
    let script = format!(
        "{PASV_OPENED} > RETR a < 150 x < 226 y {PORT_OPENED} < 200 x > RETR b < 150 x < 226 y"
    );
    let lines = messages(&script);
    for before in 1..=lines.len() as u32 {
        for is_killed in [false, true] {
            let mut talk = Conversation::handed_over();
            for (number, line) in (1..).zip(&lines) {
                if number == before {
                    talk.gateway.engine.record_downtime();
                }
                if number == before && is_killed {
                    let record = talk.record();
                    talk.gateway.engine =
                        talk.restored(preserving_length(), [&record[..]].into_iter());
                }
                talk.read_fast_path(number, std::slice::from_ref(line));
            }
            let counters = talk.gateway.engine.counters();
            assert_eq!(counters.fast_path_mismatches, 0, "{before}");
            assert_eq!(talk.closed()[1], [0; 0], "{before}");
            // Others may have passed unread behind them.
            let mut sessions = talk.gateway.engine.sessions.table.iter_mut();
            assert!(sessions.all(|entry| entry.session.is_client_blocked()), "{before}");
        }
    }
}

/// What it says about itself is all that there is later to find the cause.
#[test]
fn a_mismatch_is_reported_once_with_its_difference() {
    let mut talk = Conversation::handed_over();
    talk.fast_path(1, "> NOOP");
    talk.fast_path(3, "< 200 x");
    talk.fast_path(4, "> PORT 192,168,150,80,4,1");
    let (events, _) = talk.gateway.take_events();
    let refused = events.iter().filter_map(|event| match &event.kind {
        EventKind::Kernel(Words(why)) => Some(&**why),
        _ => None,
    });
    let [why] = refused.collect::<Vec<_>>()[..] else { panic!("{events:?}") };
    assert!(why.contains("(line 3 came after line 1)"), "{why}");
    assert_eq!(talk.gateway.engine.counters().fast_path_mismatches, 2);
}

#[test]
fn a_policy_change_or_removal_takes_the_connection_back() {
    for is_removed in [false, true] {
        let mut talk = Conversation::handed_over();
        let (client, server) = (talk.client, talk.server);
        talk.gateway.run(talk.now, |engine, _| match is_removed {
            true => engine.sessions.forget_between(client, server),
            false => engine.sessions.set_policy(Policy::default()),
        });
        assert!(matches!(talk.gateway.kernel.changes[..], [_, FlowChange::Withdraw(_)]));
    }
}

#[test]
fn a_new_policy_closes_the_programs_pinholes_that_it_forbids() {
    for (min_data_port, closed) in [(1025, &[][..]), (1026, &[1])] {
        let mut talk = Conversation::handed_over();
        talk.fast_path(1, PORT_OPENED);
        talk.set_policy(Policy { min_data_port, ..Policy::default() });
        let closings = talk.closed_lines();
        assert_eq!(closings.into_iter().filter(|line| *line == 1).collect::<Vec<_>>(), closed);
        assert_eq!(talk.pinholes().is_empty(), !closed.is_empty(), "{:?}", talk.pinholes());
    }
}

/// The connection's ends are at interface 1.
#[test]
fn pinholes_move_to_the_rules_with_their_interface() {
    for (interfaces, moves) in [(None, true), (Some(&[7, 1][..]), true), (Some(&[7]), false)] {
        for consumed in ["", "@1"] {
            let mut talk = Conversation::handed_over();
            // The server connects when it has said 150.
            talk.fast_path(1, &format!("{PORT_OPENED} < 200 ok > RETR one < 150 here {consumed}"));
            let (case, now) = (format!("{interfaces:?}, {consumed:?}"), talk.now);
            let sessions = &mut talk.gateway.engine.sessions;
            sessions.take_back_at(interfaces);
            let moved = sessions.move_pinholes_to_rules(now, interfaces);
            let moved: Vec<_> = moved.iter().map(|(id, opening)| (*id, opening.kind)).collect();
            let own = (PinholeId { flow: 1, line: 1 }, crate::ftp::AnnouncementKind::Port);
            assert_eq!(moved == [own], moves && consumed.is_empty(), "{case}: {moved:?}");
            assert_eq!(sessions.fast_path_pinholes().count(), usize::from(!moves), "{case}");
            assert!(sessions.move_pinholes_to_rules(now, interfaces).is_empty(), "{case}: once");
            assert_eq!(talk.is_handed_over(), !moves, "{case}");
        }
    }
}

#[test]
fn a_fast_path_connection_gets_another_port_for_its_length_once() {
    for is_on_fast_path in [false, true] {
        let mut talk = Conversation::handed_over_from("192.168.1.8");
        if is_on_fast_path {
            talk.fast_path(1, "> NOOP < 200 ok");
        }
        for (round, port) in (80..84).enumerate() {
            let line = format!("PORT 192,168,1,8,195,{port}\r\n");
            let (_, rewritten) = talk.say(Side::Client, &line);
            let own = format!("PORT 198,51,100,1,195,{port}\r\n");
            let is_long = is_on_fast_path && round > 0;
            assert_eq!(rewritten == own, is_long, "{is_on_fast_path}, {round}: {rewritten}");
            assert_eq!(rewritten.len(), line.len() + usize::from(is_long), "{rewritten}");
            talk.play("< 200 ok > NOOP");
        }
    }
}

/// A connection that its SYN-ACK hands over.
fn ungreeted() -> Conversation {
    let mut engine = Engine::new(Policy::default(), Checksums::Verify);
    engine.sessions.set_uses_fast_path(true);
    Conversation::through(engine, "192.168.150.80")
}

#[test]
fn a_connection_is_handed_over_before_the_greeting() {
    let mut talk = ungreeted();
    let [FlowChange::Handover(handover)] = talk.gateway.kernel.changes[..] else { panic!() };
    assert_eq!((handover.next_seq, handover.lines), (talk.next, 0));
    assert_eq!(handover.login, LoginStage::NotGreeted);
    assert_eq!(talk.gateway.engine.sessions.ungreeted_handovers, 1);
    let login = "< 220 (vsFTPd 3.0.3) > USER joe < 331 password > PASS x < 230 in";
    for (number, line) in (1..).zip(messages(login)) {
        talk.read_fast_path(number, &[line]);
        assert_eq!(talk.gateway.engine.sessions.ungreeted_handovers, 0);
    }
    talk.fast_path(6, PORT_OPENED);
    let counters = talk.gateway.engine.counters();
    assert_eq!((counters.fast_path_lines, counters.fast_path_mismatches), (6, 0));
    assert_eq!(counters.pinholes_opened, 1);
    assert!(talk.is_handed_over());
    // The BPF program wrote zeros, even if the server is not known to accept them: a retransmission must be equal.
    assert_eq!(talk.gateway.kernel.changes.len(), 1);
    let said = "PORT 192,168,150,80,4,1\r\n";
    talk.next[0] -= said.len() as u32;
    assert_eq!(talk.say(Side::Client, said).1, "PORT 198,51,100,1,4,001\r\n");
}

#[test]
fn handovers_before_the_greeting_are_limited() {
    let mut talk = ungreeted();
    let before = talk.client;
    for number in 1..400 {
        talk.client.set_ip(Ipv4Addr::from(0x0a00_0000 + number).into());
        (talk.next, talk.received) = ([100, 500], [500, 100]);
        talk.gateway.kernel.translation.as_mut().unwrap().client = talk.client;
        let syn_ack = talk.syn_ack();
        talk.pass(&syn_ack);
    }
    let sessions = &talk.gateway.engine.sessions;
    assert_eq!(
        (sessions.ungreeted_handovers, sessions.fast_path_sessions().count()),
        (MAX_UNGREETED, MAX_UNGREETED as usize)
    );
    // Those that get a greeting, are evicted or are taken back make room for others.
    talk.client = before;
    talk.fast_path(1, "< 220 ready");
    assert_eq!(talk.gateway.engine.sessions.ungreeted_handovers, MAX_UNGREETED - 1);
    talk.gateway.engine.sessions.take_all_back();
    assert_eq!(talk.gateway.engine.sessions.ungreeted_handovers, 0);
}

#[test]
fn a_restored_pinhole_is_where_the_kernel_has_it() {
    let mut talk = Conversation::handed_over();
    talk.gateway.engine.sessions.track_changes(talk.now);
    talk.fast_path(1, PASV_OPENED);
    assert!(talk.is_handed_over());
    let record = talk.record();
    for is_in_rules in [false, true] {
        let mut next = talk.restored(Policy::default(), [&record[..]].into_iter());
        next.sessions.record_rule_pinholes(|initiator, arrival| {
            is_in_rules
                && (initiator, arrival) == (talk.client.ip(), "203.0.113.9:20021".parse().unwrap())
        });
        assert_eq!(next.sessions.rule_pinholes().count(), usize::from(is_in_rules));
        assert_eq!(next.sessions.fast_path_pinholes().count(), usize::from(!is_in_rules));
    }
}

/// Queued before the handover, or behind a gap. The program may pass another line in its place.
#[test]
fn a_packet_is_accepted_when_the_program_has_stopped() {
    for (never_stops, outcome) in [(false, PacketOutcome::Accept), (true, PacketOutcome::Drop)] {
        let mut talk = Conversation::handed_over();
        talk.gateway.kernel.never_stops = never_stops;
        talk.gateway.kernel.routes = Some(Default::default());
        let line = talk.next_packet(Side::Client, b"SITE xPORT 10,99,99,99,21,179\r\n", 0);
        assert_eq!(talk.pass_between(&line, 9, 1).0, PacketOutcome::Drop, "from elsewhere");
        assert_eq!((talk.gateway.kernel.stops, talk.is_handed_over()), (0, true));
        assert_eq!(talk.pass(&line).0, outcome);
        assert_eq!(talk.gateway.kernel.stops, 1);
        assert!(!talk.is_handed_over());
        assert_eq!(talk.pass(&line).0, PacketOutcome::Accept, "its retransmission");
    }
}

/// A client that waits for no reply. Its line is queued behind the reply with which the connection is handed over.
#[test]
fn a_line_behind_the_handover_in_one_batch_passes() {
    let mut talk = Conversation::handed_over();
    talk.say(Side::Client, "NOOP\r\n");
    let before = talk.gateway.kernel.changes.len();
    let packets = [(Side::Server, "200 ok\r\n"), (Side::Client, "NOOP\r\n")]
        .map(|(side, line)| talk.take_next(side, line));
    let [client, server] = talk.interfaces;
    let of = |bytes, input, output| {
        let meta = PacketMeta { input, output, ..PacketMeta::FORWARDED };
        QueuedPacket { token: Token::default(), bytes, meta }
    };
    let queued = [of(&packets[0], server, client), of(&packets[1], client, server)];
    talk.gateway.take(talk.now, queued.into_iter());
    let verdicts: Vec<_> = talk.gateway.verdicts().iter().map(|one| &one.verdict).collect();
    assert_eq!(verdicts, [&Verdict::Accept; 2]);
    assert_eq!(talk.gateway.kernel.changes.len(), before, "nothing is handed over and back");
}
