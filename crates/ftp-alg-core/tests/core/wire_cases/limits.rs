//! Each limit: no pinhole opens, the dialogue continues, and the event is counted and logged.

use ftp_alg_core::engine::{EventKind, Limits};

use super::{
    support::{ends::Ends, sim::daemon::Decision},
    *,
};

fn limited(policy: Policy) -> Sim {
    Sim::logged_in(Scenario { policy, ..with(Nat::Masquerade) })
}

/// Lets a model server answer `commands`, which the client sends at once. Returns the lines that the server received.
fn serve(sim: &mut Sim, commands: &str) -> Vec<String> {
    sim.serve([commands.as_bytes()])
}

/// The texts of all events that report a limit, without refused announcements.
fn limit_events(sim: &Sim) -> Vec<String> {
    let limits = sim.events.iter().filter(|event| matches!(event.kind, EventKind::Limit(_)));
    let reason = |text: String| text.split_once(": ").map_or(text.clone(), |(_, what)| what.into());
    limits.map(|event| reason(event.to_string())).collect()
}

/// Announcements of different ports.
fn ports(count: u8) -> String {
    (1..=count).map(|low| format!("PORT 192,168,150,80,9,{low}\r\n")).collect()
}

/// These limits were reached, and so many pinholes were opened.
#[track_caller]
fn assert_limits(sim: &mut Sim, limits: Limits, opened: usize) {
    assert_eq!((sim.daemon.engine().counters().limits, sim.kernel.opened.len()), (limits, opened));
}

/// The dialogue still works: another announcement opens a pinhole and gets its reply.
fn assert_dialogue_works(sim: &mut Sim) {
    let opened = sim.kernel.opened.len();
    assert_eq!(serve(sim, "PORT 192,168,150,80,19,9\r\n"), ["PORT 198,51,100,1,19,9\r\n"]);
    assert!(text(sim.client.read()).ends_with("200 PORT ok\r\n"), "{}", sim.summary());
    assert_eq!(sim.kernel.opened.len(), opened + 1);
}

#[test]
fn pinholes_per_client_are_limited() {
    let mut sim = limited(Policy { max_pinholes_per_client: 2, ..Policy::default() });
    serve(&mut sim, &ports(5));
    assert_limits(&mut sim, Limits { client_pinholes: 3, ..Limits::default() }, 2);
    let last = sim.decisions().pop().unwrap_or_default();
    assert!(last.ends_with("the client has 2 pinholes already"), "{last}");
    sim.advance(std::time::Duration::from_secs(31));
    assert_dialogue_works(&mut sim);
}

#[test]
fn pinholes_per_session_are_limited() {
    let mut sim = limited(Policy::default());
    let heard = serve(&mut sim, &ports(20));
    let passed = heard.iter().filter(|line| line.starts_with("PORT")).count();
    assert_eq!((passed, heard.len()), (8, 20));
    assert_limits(&mut sim, Limits { session_pinholes: 12, ..Limits::default() }, 8);
    assert_dialogue_works(&mut sim);
}

#[test]
fn attempts_to_find_a_free_port_are_limited() {
    let mut sim = limited(Policy::default());
    sim.kernel.taken.extend(1..=u16::MAX);
    serve(&mut sim, "PORT 192,168,150,80,9,9\r\n");
    assert_limits(&mut sim, Limits { ports: 1, ..Limits::default() }, 0);
    sim.kernel.taken.clear();
    sim.client.read();
    assert_dialogue_works(&mut sim);
}

#[test]
fn the_length_of_a_possible_announcement_is_limited() {
    let mut sim = limited(Policy::default());
    let long = format!("PORT {}192,168,150,80,9,9\r\n", " ".repeat(600));
    let (start, rest) = long.split_at(600);
    let crossed = sim.say(Client, start.as_bytes());
    assert!(crossed.len() == 600 && crossed.iter().all(|b| *b == b'X'), "{}", text(crossed));
    serve(&mut sim, rest);
    let limits = Limits { line: 1, ..Limits::default() };
    assert_limits(&mut sim, limits, 0);
    assert_eq!(sim.engine().counters().commands_refused, 1);
    assert_dialogue_works(&mut sim);

    let mut sim = limited(Policy::default());
    sim.say(Client, b"PASV\r\n");
    for piece in [&[b"227 ", &[b'x'; 600][..]].concat()[..], b" (203,0,113,9,9,9)\r\n"] {
        assert_eq!(sim.say(Server, piece), piece);
    }
    assert_limits(&mut sim, limits, 0);
    assert_eq!(limit_events(&sim).len(), 1);
    assert_dialogue_works(&mut sim);
}

#[test]
fn unacknowledged_rewrites_are_limited() {
    let mut sim = limited(Policy::default());
    let refused = "PORT 10,99,99,99,9,9\r\n".repeat(300);
    let heard = serve(&mut sim, &refused);
    assert_eq!(heard.len(), 300, "the segments that waited must be retransmitted");
    let limits = sim.engine().counters().limits;
    assert!(limits.rewrites > 0, "{limits:?}");
    assert_eq!(limits, Limits { rewrites: limits.rewrites, ..Limits::default() });
    assert_eq!(limit_events(&sim).len() as u64, limits.rewrites);
    assert_dialogue_works(&mut sim);
}

/// A client sends lines without a reply, faster than its server acknowledges them. Those beyond the limit wait, if they
/// can.
#[test]
fn unacknowledged_data_is_limited() {
    let line = [&[b'x'; 998][..], b"\r\n"].concat();
    for may_wait in [false, true] {
        let mut ends = Ends::new(with(Nat::Masquerade));
        let how = PacketMeta { may_wait, ..PacketMeta::FORWARDED };
        let outcomes = (0..170).map(|number| ends.queue_with(Client, 1000 * number, 0, &line, how));
        let outcomes: Vec<_> = outcomes.collect();
        let (passed, beyond) = outcomes.split_at(131);
        assert!(passed.iter().all(|outcome| *outcome == PacketOutcome::Accept));
        let is_expected = |outcome: &PacketOutcome| match may_wait {
            true => *outcome == PacketOutcome::Wait,
            false => *outcome != PacketOutcome::Accept,
        };
        assert!(beyond.iter().all(is_expected), "{beyond:?}");
        let before = ends.sim.engine().counters();
        // Segments after the first one that does not pass count as following a gap, not as further limits.
        let counted = u64::from(!may_wait);
        let limits = Limits { unacknowledged_data: counted, ..Limits::default() };
        assert_eq!((before.limits, limit_events(&ends.sim).len() as u64), (limits, counted));
        // Each acknowledgement makes room for as many bytes as it acknowledges.
        for (acknowledged, passed) in [(1500, 1), (2000, 1), (7900, 5), (131_000, 32)] {
            ends.queue(Server, 0, acknowledged, b"");
            let decisions = ends.sim.others.iter().map(|given| &given.decision);
            let passed = if may_wait { passed } else { 0 };
            assert!(decisions.eq(vec![&Decision::Accept; passed]), "after {acknowledged}");
        }
        let after = ends.sim.engine().counters();
        assert_eq!((after.limits, after.drops), (before.limits, before.drops));
    }
}

#[test]
fn a_segment_outside_the_window_does_not_wait() {
    let may_wait = PacketMeta { may_wait: true, ..PacketMeta::FORWARDED };
    for (seq, ack, waits) in
        [(6, 0_i32, true), (6, -1, false), (6, 1, false), (6, 1 << 30, false), (1 << 21, 0, false)]
    {
        let mut ends = Ends::new(with(Nat::Masquerade));
        ends.play("> SYST");
        let outcome = ends.queue_with(Client, seq, ack as u32, b"NOOP\r\n", may_wait);
        assert_eq!(outcome == PacketOutcome::Wait, waits, "{seq} {ack}: {outcome:?}");
    }
}

#[test]
fn pending_commands_that_announce_are_limited() {
    let mut sim = limited(Policy::default());
    let heard = serve(&mut sim, &"SIZE x\r\n".repeat(500));
    assert_eq!((heard.len(), sim.engine().counters().limits), (500, Limits::default()));
    sim.client.read();

    // All commands are in one segment, so no reply arrives in between.
    let commands = "NOOP\r\nPASV\r\n".repeat(50);
    assert_eq!(serve(&mut sim, &commands).concat(), commands);
    let limits = sim.engine().counters().limits;
    assert_eq!(limits, Limits { commands: 100 - 32, ..Limits::default() });
    assert_eq!(limit_events(&sim).len(), 100 - 32);
    assert!(sim.kernel.opened.len() <= 16, "pinholes may open only for replies to known commands");
    sim.client.read();
    assert_dialogue_works(&mut sim);
}

#[test]
fn sessions_are_limited() {
    let mut sim = limited(Policy { max_sessions: 0, ..Policy::default() });
    let line = "PORT 192,168,150,80,9,1\r\n";
    assert_eq!(serve(&mut sim, line), [line]);
    assert_untouched(&sim);
    assert_eq!(sim.kernel.opened, []);
    let counters = sim.engine().counters();
    assert_eq!(counters.uninspected, counters.packets);
    let events = limit_events(&sim);
    assert!(events.iter().all(|event| event == "not inspected: max-sessions is reached"));
    assert_eq!(events.len() as u64, counters.packets);
}
