//! Connections on the fast path, from the engine's side. `support::fast_path` decides as the BPF program does, and the
//! random dialogues compare both.

use std::net::Ipv4Addr;

use ftp_alg_core::{
    engine::{EventKind, FastPathLine, Handover, LoginStage, PinholeId, Words},
    ftp::{AnnouncementKind, Padding},
};

use super::{support::ends::Ends, *};

const PASV_OPENED: &str = "> PASV < 227 Entering Passive Mode (203,0,113,9,78,53) @opened ";
const PORT_OPENED: &str = "> PORT 192,168,150,80,4,1 @opened ";

fn scenario(nat: Nat) -> Scenario {
    let policy = Policy { preserves_length: true, ..Policy::default() };
    Scenario { policy, hands_over: Some(4854), ..with(nat) }
}

fn on_fast_path(sim: &mut Sim) -> usize {
    sim.engine().sessions.fast_path_sessions().count()
}

impl Ends {
    /// A logged-in connection that is handed over, of which the program has no pinhole.
    fn handed_over() -> Self {
        Self::handed_over_after(scenario(Nat::Masquerade), "< 220 ProFTPD Server ")
    }

    fn handed_over_after(scenario: Scenario, greeting: &str) -> Self {
        let mut sim = Sim::after(scenario, &format!("{greeting}{USER_PASS}"));
        assert_eq!(on_fast_path(&mut sim), 1);
        sim.take_events();
        let (client, server) = (sim.client.next_number(), sim.server.next_number());
        Self { sim, client, server }
    }

    /// Has the engine read the lines of a script, as the program passes them, the first of which has this number besides
    /// those of the login. `@opened` says that the line opened a pinhole, a number the line whose pinhole was found
    /// consumed.
    fn inspected(&mut self, first: u32, script: &str) {
        const LOGIN_LINES: u32 = 5;
        let said = messages(script);
        let now = self.sim.clock();
        for (number, message) in (first..).zip(&said) {
            let (from, own, other) = match message.from_client {
                true => (Client, &mut self.client, &mut self.server),
                false => (Server, &mut self.server, &mut self.client),
            };
            let consumed = message.options.iter().find_map(|option| option.parse::<u32>().ok());
            let line = FastPathLine {
                flow: 1,
                line: number + LOGIN_LINES,
                at: now,
                from,
                client: self.sim.translation.client,
                server: self.sim.translation.server,
                seq: *own,
                ack: *other,
                window: 512,
                opened_pinhole: message.options.contains(&"opened"),
                consumed_pinhole: consumed.map(|line| line + LOGIN_LINES),
                is_fin: false,
                padding: Padding::Zeros,
                bytes: message.text.as_bytes(),
            };
            *own += message.text.len() as u32;
            self.sim.run(|engine, kernel| {
                engine.read_fast_path_lines(std::iter::once(line), kernel);
            });
        }
    }

    fn is_handed_over(&mut self) -> bool {
        on_fast_path(&mut self.sim) == 1
    }

    /// The lines whose pinholes were closed in the program.
    fn closed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.sim.kernel.closed_lines).into_iter().map(|line| line - 5).collect()
    }

    fn mismatches(&mut self) -> u64 {
        self.sim.engine().counters().fast_path_mismatches
    }

    fn pinholes(&mut self) -> Vec<String> {
        let pinholes = self.sim.engine().sessions.list_pinholes();
        pinholes.map(|info| format!("{} {}", info.kind, info.ends)).collect()
    }
}

#[test]
fn an_idle_connection_is_handed_over_with_its_state() {
    let mut sim = Sim::new(scenario(Nat::Masquerade));
    sim.engine().sessions.set_fast_path_interfaces([].into());
    sim.connect_again();
    sim.kernel.handovers.clear();
    sim.play(&format!("< 220 ProFTPD Server {USER_PASS}"));
    sim.engine().sessions.set_fast_path_interfaces([1].into());
    sim.play("> NOOP < 200 ok");
    let handover = Handover {
        flow: 2,
        lines: 0,
        next_seq: [sim.client.next_number(), sim.server.next_number()],
        login: LoginStage::LoggedIn,
        translation: sim.translation,
        interfaces: [1; 2],
        client_ports: [0, u16::MAX],
        announced_addresses: ["198.51.100.1", "203.0.113.9"].map(|ip| ip.parse().unwrap()),
        seq_offsets: None,
        padding: Padding::Zeros,
        pinhole_timeout: Some(Duration::from_secs(30)),
    };
    assert_eq!(sim.kernel.handovers, [handover]);
}

#[test]
fn a_connection_is_handed_over_before_the_greeting() {
    let scenario = Scenario { policy: Policy::default(), ..scenario(Nat::Masquerade) };
    let sim = Sim::new(scenario.clone());
    let [handover] = sim.kernel.handovers[..] else { panic!("{:?}", sim.kernel.handovers) };
    assert_eq!(handover.next_seq, [sim.client.next_number(), sim.server.next_number()]);
    assert_eq!((handover.lines, handover.login), (0, LoginStage::NotGreeted));

    let mut ends = Ends::handed_over_after(scenario, "< 220 (vsFTPd 3.0.3) ");
    ends.inspected(1, PORT_OPENED);
    let counters = ends.sim.engine().counters();
    assert_eq!((counters.fast_path_lines, counters.fast_path_mismatches), (6, 0));
    assert_eq!(counters.pinholes_opened, 1);
    assert!(ends.is_handed_over() && ends.sim.kernel.handovers.len() == 1);
    // The BPF program wrote zeros, even if the server is not known to accept them: a retransmission must be equal.
    let said = "PORT 192,168,150,80,4,1\r\n";
    ends.client -= said.len() as u32;
    let again = ends.packet(Client, 0, 0, said.as_bytes());
    let (_, passed) = ends.sim.decided(ends.sim.clock(), &again, PacketMeta::FORWARDED);
    assert_eq!(text(Segment::checked(&passed).2.payload), "PORT 198,51,100,1,4,001\r\n");
}

#[test]
fn a_connection_stays_inline_unless_both_ends_are_at_usable_interfaces() {
    for interfaces in [[1, 2], [2, 1], [2, 3]] {
        let is_inline = interfaces.contains(&1);
        let mut sim = Sim::new(Scenario { interfaces, ..scenario(Nat::Routed) });
        sim.engine().sessions.set_fast_path_interfaces([2, 3].into());
        sim.connect_again();
        sim.play(LOGIN);
        sim.play(&"> NOOP < 200 ok ".repeat(5));
        assert_eq!(on_fast_path(&mut sim), usize::from(!is_inline), "{interfaces:?}");
        // It is handed over as soon as it may be.
        sim.engine().sessions.set_fast_path_interfaces([1, 2, 3].into());
        sim.play("> NOOP < 200 ok");
        assert_eq!(on_fast_path(&mut sim), 1, "{interfaces:?}");
    }
}

#[test]
fn an_unknown_translation_is_looked_up_three_times_for_a_handover() {
    let mut sim = Sim::new(scenario(Nat::Routed));
    sim.kernel.forgot = true;
    sim.connect_again();
    sim.play(LOGIN);
    sim.play(&"> NOOP < 200 ok ".repeat(8));
    sim.kernel.forgot = false;
    sim.play("> NOOP < 200 ok");
    assert_eq!(on_fast_path(&mut sim), 0);
}

#[test]
fn fast_path_lines_count_like_queued_lines() {
    let mut ends = Ends::handed_over();
    let lines = ends.sim.engine().counters().fast_path_lines;
    ends.inspected(1, PASV_OPENED);
    // From the client's address as the server sees it.
    let passive = "PASV 192.168.150.80 -> 203.0.113.9:20021 (from 198.51.100.1)";
    assert_eq!(ends.pinholes(), [passive]);
    ends.inspected(3, &format!("{PORT_OPENED}< 200 PORT command successful"));
    let active = "PORT 203.0.113.9 -> 198.51.100.1:1025 (to 192.168.150.80:1025)";
    assert_eq!(ends.pinholes(), [active]);
    let counters = ends.sim.engine().counters();
    assert_eq!((counters.fast_path_lines - lines, counters.fast_path_mismatches), (4, 0));
    assert_eq!((counters.pinholes_opened, counters.rewrites), (2, 1));
    assert!(ends.is_handed_over());
    ends.sim.expire();
    assert_eq!(ends.closed(), [2]);
}

#[test]
fn a_pinhole_expires_before_a_later_line_replaces_it() {
    let mut ends = Ends::handed_over();
    ends.inspected(1, PASV_OPENED);
    // No deadline is checked meanwhile.
    let end = ends.sim.now() + Duration::from_secs(30);
    while ends.sim.step_before(end) {}
    ends.inspected(3, "> PASV");
    let names: Vec<_> = ends.sim.take_events().iter().map(|event| event.kind.name()).collect();
    assert!(names.contains(&"pinhole-expired") && ends.pinholes().is_empty(), "{names:?}");
}

#[test]
fn a_consumed_pinhole_is_not_closed_in_the_bpf_program() {
    for (consumed, closed) in [("", &[2][..]), ("@2", &[]), ("@1", &[2])] {
        let mut ends = Ends::handed_over();
        ends.inspected(1, &format!("{PASV_OPENED}> RETR one < 150 here < 226 done {consumed}"));
        assert!(ends.pinholes().is_empty());
        // Not earlier, because its data connection may still come.
        ends.sim.advance(Duration::from_secs(7));
        assert_eq!(ends.closed(), [0; 0]);
        ends.sim.advance(Duration::from_secs(1));
        assert_eq!(ends.closed(), closed, "{consumed:?}");
    }
}

#[test]
fn a_queued_packet_takes_the_connection_back_and_is_forwarded() {
    let mut ends = Ends::handed_over();
    ends.inspected(1, PORT_OPENED);
    ends.sim.kernel.handovers.clear();
    assert_eq!(ends.queue(Server, 0, 0, b"500 no\r\n"), PacketOutcome::Accept);
    assert_eq!(ends.sim.kernel.withdrawn, [1]);
    let [again] = ends.sim.kernel.handovers[..] else { panic!("{:?}", ends.sim.kernel.handovers) };
    assert_eq!((again.flow, again.lines), (1, 6));
    assert_eq!(again.next_seq, [ends.client, ends.server + 8]);
    // Refused, so its pinhole is closed.
    assert_eq!(ends.closed(), [1]);
    assert_eq!(ends.pinholes(), [""; 0]);
}

#[test]
fn an_encrypted_connection_is_not_handed_over() {
    let mut sim = Sim::after(scenario(Nat::Routed), "< 220 ProFTPD Server > AUTH TLS < 234 go");
    for (side, kind, message) in
        [(Client, 22, 1), (Server, 22, 2), (Client, 23, 7), (Server, 23, 7)]
    {
        sim.say(side, &[kind, 3, 3, 0, 1, message]);
        assert_eq!(on_fast_path(&mut sim), 0, "{side:?} {kind}");
    }
}

/// A rule of another program has removed the mark of a line that the fast path adjusted, so the line is queued.
#[test]
fn a_line_that_the_fast_path_has_adjusted_is_not_adjusted_again() {
    let mut sim =
        Sim::logged_in(Scenario { policy: Policy::default(), ..scenario(Nat::Masquerade) });
    sim.hear("> PORT 192,168,150,80,14,178 < 200 ok > RETR first < 150 here < 226 done > NOOP");
    let counts = sim.kernel.program.counts;
    assert!(on_fast_path(&mut sim) == 1 && counts.adjusted > 0, "{counts:?}");
    // The address became two digits shorter.
    let line = sim.client.next_number() - 6;
    let noop = Segment { seq: line, ..sim.next_segment(Client, b"NOOP\r\n") };
    let adjusted = Segment { seq: line.wrapping_sub(2), ..noop.clone() };
    let (client, server) = sim.endpoints(Client);
    let mut queue = |segment: &Segment| {
        let packet = segment.packet(client, server);
        sim.decided(sim.clock(), &packet, PacketMeta::FORWARDED)
    };
    assert_eq!(queue(&adjusted).0, PacketOutcome::Drop);
    // The client sends it again, and the program no longer adjusts it.
    let (outcome, passed) = queue(&noop);
    assert_eq!((outcome, Segment::checked(&passed).2.seq), (PacketOutcome::Replace, adjusted.seq));
    assert_eq!(on_fast_path(&mut sim), 0);
    sim.play("< 200 fine");
}

#[test]
fn a_connection_without_fast_path_lines_is_handed_over_three_times() {
    let mut sim = Sim::logged_in(scenario(Nat::Routed));
    sim.kernel.handovers.clear();
    // There is no room for lines.
    sim.kernel.program.ring_capacity = 0;
    sim.play(&"> NOOP < 200 fine ".repeat(5));
    assert_eq!((sim.kernel.handovers.len(), on_fast_path(&mut sim)), (3, 0));
    // The end of a daemon may have ended them.
    sim.crash();
    sim.play("> NOOP < 200 fine");
    assert_eq!(on_fast_path(&mut sim), 1);
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
        let mut ends = Ends::handed_over();
        ends.inspected(1, line);
        assert_eq!((ends.is_handed_over(), ends.mismatches()), (false, 1), "{line}");
        // What the program opened for it is closed.
        let lost = usize::from(line.contains("@opened"));
        assert_eq!(ends.sim.kernel.lost_lines, vec![6; lost], "{line}");
    }
}

/// What it says about itself is all that there is later to find the cause.
#[test]
fn a_mismatch_is_reported_once_with_its_difference() {
    let mut ends = Ends::handed_over();
    ends.inspected(1, "> NOOP");
    ends.inspected(3, "< 200 x > PORT 192,168,150,80,4,1");
    let events = ends.sim.take_events();
    let refused = events.iter().filter_map(|event| match &event.kind {
        EventKind::Kernel(Words(why)) => Some(&**why),
        _ => None,
    });
    let [why] = refused.collect::<Vec<_>>()[..] else { panic!("{events:?}") };
    assert!(why.contains("(line 8 came after line 6)"), "{why}");
    assert_eq!(ends.mismatches(), 2);
}

/// The daemon may not have run for a while, and may have been killed then, before the program returned the connection.
#[test]
fn lines_are_read_although_downtime_was_recorded_before() {
    let script = format!(
        "{PASV_OPENED}> RETR a < 150 x < 226 y {PORT_OPENED}< 200 x > RETR b < 150 x < 226 y"
    );
    for (before, (start, _)) in script.match_indices(['<', '>']).enumerate() {
        for is_killed in [false, true] {
            let mut ends = Ends::handed_over();
            let (first, rest) = script.split_at(start);
            ends.inspected(1, first);
            ends.sim.engine().note_downtime();
            assert_eq!(on_fast_path(&mut ends.sim), 0, "{before}");
            if is_killed {
                ends.sim.kill_alone();
            }
            ends.inspected(1 + before as u32, rest);
            assert_eq!((ends.mismatches(), ends.sim.kernel.lost_lines.len()), (0, 0), "{before}");
            // Others may have passed unread behind them: the gateway probes the server.
            let outcome = ends.queue(Client, 0, 0, b"NOOP\r\n");
            assert_ne!(outcome, PacketOutcome::Accept, "{before}");
        }
    }
}

#[test]
fn a_policy_change_or_removal_takes_the_connection_back() {
    let ends: [fn(&mut Sim); 2] = [Sim::forget, |sim| sim.reload(Policy::default())];
    for end in ends {
        let mut sim = Sim::logged_in(scenario(Nat::Routed));
        assert_eq!(sim.kernel.program.flow_ids(), [1]);
        end(&mut sim);
        sim.expire();
        assert!(sim.kernel.program.flow_ids().is_empty());
    }
}

/// The connection's ends are at interface 1.
#[test]
fn pinholes_move_to_the_rules_with_their_interface() {
    for (interfaces, moves) in [(None, true), (Some(&[7, 1][..]), true), (Some(&[7]), false)] {
        for consumed in ["", "@1"] {
            let mut ends = Ends::handed_over();
            // The server connects when it has said 150.
            let script = format!("{PORT_OPENED}< 200 ok > RETR one < 150 here {consumed}");
            ends.inspected(1, &script);
            let (case, now) = (format!("{interfaces:?}, {consumed:?}"), ends.sim.clock());
            let sessions = &mut ends.sim.engine().sessions;
            sessions.take_back_at(interfaces);
            let moved = sessions.move_pinholes_to_rules(now, interfaces);
            let moved: Vec<_> = moved.iter().map(|(id, opening)| (*id, opening.kind)).collect();
            let own = (PinholeId { flow: 1, line: 6 }, AnnouncementKind::Port);
            assert_eq!(moved == [own], moves && consumed.is_empty(), "{case}: {moved:?}");
            assert_eq!(sessions.fast_path_pinholes().count(), usize::from(!moves), "{case}");
            assert!(sessions.move_pinholes_to_rules(now, interfaces).is_empty(), "{case}: once");
            assert_eq!(ends.is_handed_over(), !moves, "{case}");
        }
    }
}

#[test]
fn a_restored_pinhole_is_where_the_kernel_has_it() {
    for is_in_rules in [false, true] {
        let mut ends = Ends::handed_over();
        ends.inspected(1, PASV_OPENED);
        let (client, arrival) =
            (ends.sim.translation.client.ip(), "203.0.113.9:20021".parse().unwrap());
        ends.sim.kill_alone();
        let sessions = &mut ends.sim.engine().sessions;
        sessions.note_rule_pinholes(|from, to| is_in_rules && (from, to) == (client, arrival));
        assert_eq!(sessions.rule_pinholes().count(), usize::from(is_in_rules));
        assert_eq!(sessions.fast_path_pinholes().count(), usize::from(!is_in_rules));
    }
}

#[test]
fn a_fast_path_connection_gets_another_port_for_its_length_once() {
    for is_on_fast_path in [false, true] {
        let mut sim = Sim::new(scenario(Nat::Masquerade));
        sim.begin("192.168.1.8:1035".parse().unwrap());
        if !is_on_fast_path {
            sim.kernel.program.ring_capacity = 0;
        }
        sim.play("< 220 ProFTPD > USER joe < 331 password > PASS x < 230 in > NOOP < 200 ok");
        sim.kernel.program.ring_capacity = 0;
        for (round, port) in (80..84).enumerate() {
            let line = format!("PORT 192,168,1,8,195,{port}\r\n");
            let rewritten = sim.exchange(&line, "200 ok\r\n").0;
            let own = format!("PORT 198,51,100,1,195,{port}\r\n");
            let is_long = is_on_fast_path && round > 0;
            assert_eq!(rewritten == own, is_long, "{is_on_fast_path}, {round}: {rewritten}");
            assert_eq!(rewritten.len(), line.len() + usize::from(is_long), "{rewritten}");
            sim.play("> NOOP < 200 ok");
        }
    }
}

/// Those that get a greeting or are taken back make room for others.
#[test]
fn handovers_before_the_greeting_are_limited() {
    const MOST: usize = 256;
    let mut sim = Sim::new(scenario(Nat::Routed));
    let mut hosts = 1..;
    let mut begin = |sim: &mut Sim| {
        let host = Ipv4Addr::from(0x0a00_0000 + hosts.next().unwrap());
        (sim.begin((host, 1035).into()), on_fast_path(sim))
    };
    for number in 2..300 {
        assert_eq!(begin(&mut sim).1, number.min(MOST));
    }
    sim.engine().sessions.take_all_back();
    assert_eq!(begin(&mut sim).1, 1);
    let (mut first, _) = begin(&mut sim);
    (3..=MOST).for_each(|number| assert_eq!(begin(&mut sim).1, number));
    assert_eq!(begin(&mut sim).1, MOST);
    sim.switch(&mut first);
    sim.play("< 220 ready");
    assert_eq!(begin(&mut sim).1, MOST + 1);
}

/// Queued before the handover, or behind a gap. The program may pass another line in its place.
#[test]
fn a_packet_is_accepted_when_the_program_has_stopped() {
    for (never_stops, outcome) in [(false, PacketOutcome::Accept), (true, PacketOutcome::Drop)] {
        let mut ends = Ends::handed_over();
        ends.sim.kernel.never_stops = never_stops;
        ends.sim.kernel.routes = Some(Vec::new());
        let line = b"SITE xPORT 10,99,99,99,21,179\r\n";
        let elsewhere = PacketMeta { input: 9, ..PacketMeta::FORWARDED };
        assert_eq!(ends.queue_with(Client, 0, 0, line, elsewhere), PacketOutcome::Drop);
        assert!(ends.is_handed_over());
        assert_eq!(ends.queue(Client, 0, 0, line), outcome);
        assert!(!ends.is_handed_over());
        let again = ends.queue(Client, 0, 0, line);
        assert_eq!(again, PacketOutcome::Accept, "its retransmission");
    }
}

/// A client that waits for no reply. Its line is queued behind the reply with which the connection is handed over.
#[test]
fn a_line_behind_the_handover_in_one_batch_passes() {
    let mut ends = Ends::handed_over();
    ends.queue(Client, 0, 0, b"NOOP\r\n");
    ends.client += 6;
    let handovers = ends.sim.kernel.handovers.clone();
    let packets =
        [ends.packet(Server, 0, 0, b"200 ok\r\n"), ends.packet(Client, 0, 8, b"NOOP\r\n")];
    let batch = packets.each_ref().map(Vec::as_slice);
    let outcomes = ends.sim.decide(ends.sim.clock(), &batch, PacketMeta::FORWARDED);
    assert!(outcomes.iter().all(|(outcome, _)| *outcome == PacketOutcome::Accept));
    assert_eq!(ends.sim.kernel.handovers, handovers, "nothing is handed over and back");
}
