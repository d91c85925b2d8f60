//! Sessions as records.

use super::*;

#[test]
fn adjusted_sessions_are_restored_under_a_stricter_policy() {
    let mut talk = Conversation::logged_in();
    for (adjusted, command) in [(false, "> NOOP"), (true, "> PORT 192,168,150,80,14,178")] {
        talk.play(command);
        let record = talk.record();
        let uninspected = NetworkPolicy { inspect: false, ..of_all(Policy::default()) };
        let networks = Policy { networks: vec![uninspected], ..Policy::default() };
        for policy in [Policy { max_sessions: 0, ..Policy::default() }, networks] {
            let mut next = Engine::new(policy, Checksums::Verify);
            let restored =
                next.sessions.restore([&record[..]].into_iter(), talk.now, talk.now).unwrap();
            let count = usize::from(adjusted);
            assert_eq!(
                restored,
                RestoredCounts { sessions: count, adjusted: count, transferring: 0 }
            );
        }
    }
}

#[test]
fn a_session_that_is_not_queued_any_more_loses_its_pinholes() {
    for adjusts in [false, true] {
        let mut talk = Conversation::logged_in();
        talk.gateway.kernel.translation.take_if(|_| !adjusts);
        talk.play("> PORT 192,168,150,80,14,178");
        let record = talk.record();
        for is_queued in [true, false] {
            let mut records = SessionRecords::read([&record[..]].into_iter()).unwrap();
            records.set_queued(|server, translation| {
                assert_eq!((server, translation.is_some()), (talk.server, true));
                is_queued
            });
            let mut next = Engine::new(Policy::default(), Checksums::Verify);
            next.sessions.restore_sessions(records, talk.now, talk.now);
            assert_eq!(next.sessions.list_pinholes().count(), usize::from(is_queued));
            // The connection of an adjusted one would break.
            assert_eq!(next.sessions.count(), usize::from(is_queued || adjusts));
            assert_eq!(next.sessions.adjusted_connections().count(), usize::from(adjusts));
        }
    }
}

#[test]
fn a_restored_pinhole_has_the_lifetime_of_its_network() {
    let policy =
        |seconds| Policy { pinhole_timeout: Duration::from_secs(seconds), ..Policy::default() };
    let with_network = Policy { networks: vec![of_all(policy(120))], ..policy(30) };
    let mut talk = Conversation::logged_in();
    talk.gateway.engine.sessions.set_policy(policy(300));
    talk.play("> PORT 192,168,150,80,14,178 < 200 ok > RETR x < 150 wait");
    let record = talk.record();
    for (policy, expected) in [(with_network, 120), (policy(30), 30), (policy(500), 300)] {
        let next = talk.restored(policy, [&record[..]].into_iter());
        let missing = next.sessions.missing_pinholes(talk.now, |_| true);
        let lifetimes: Vec<_> = missing.map(|opening| opening.lifetime.as_secs()).collect();
        assert_eq!(lifetimes, [expected]);
    }
}

/// The record of a session with everything that a record can hold: an open pinhole, an unacknowledged rewrite, a line
/// whose start is held back.
const RECORDED: &str = "\
    000100c0a896508b0800cb007109150100c0a896508b0800c63364018b0800cb0071091500cb007109150000\
    000100cb00710900c6336401b21d00c0a89650b21d00cb0071090001b0ea0100000000000001036a6f650000\
    00000000000164950176000000027b157b00133139382c35312c3130302c312c31342c313738920103900100\
    0080041c0000010345505200000100000000000000000000000000f403950495040000000080040e0000001f\
    504f5254203139322c3136382c3135302c38302c31342c3137380d0a45505276060002000000010301000000\
    00000100010001000a00";

#[test]
fn a_record_of_this_format_round_trips() {
    let mut talk = Conversation::logged_in();
    talk.play("> PORT 192,168,150,80,14,178");
    talk.say(Side::Client, "EPR");
    let written = talk.records();
    let hex = |record: &[u8]| record.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let changed = "the form of a record changed: raise RECORD_FORMAT, then put the new one here";
    assert_eq!(written.iter().map(|r| hex(r)).collect::<Vec<_>>(), [RECORDED], "{changed}");

    let mut next = Engine::new(Policy::default(), Checksums::Verify);
    let records = written.iter().map(Vec::as_slice);
    let restored = next.sessions.restore(records, talk.now, talk.now).unwrap();
    assert_eq!(restored, RestoredCounts { sessions: 1, adjusted: 1, transferring: 0 });
    talk.gateway.engine = next;
    assert_eq!(talk.records(), written);
    let forwarded = talk.say(Side::Client, "T |1|192.168.150.80|3763|\r\n");
    let expected = "EPRT |1|198.51.100.1|3763|\r\n".to_owned();
    assert_eq!(forwarded, (PacketOutcome::Replace, expected));
}

/// The engines of a new daemon: of a worker whose clock has run for a while, and of an earlier daemon's sessions.
fn next_daemon(talk: &Conversation, policy: Policy, record: &[u8]) -> [Engine; 2] {
    let mut worker = Standalone::new(Engine::new(policy, Checksums::Verify), FakeKernel::default());
    let earlier = talk.now.checked_sub(Duration::from_secs(300)).unwrap();
    let syn_ack = flood_packet(1, Side::Server, (0, u32::MAX), flags::SYN, "");
    worker.packet(earlier, &syn_ack);
    let mut restored = worker.engine.new_restored_shard();
    restored.sessions.restore([record].into_iter(), talk.now, talk.now).unwrap();
    [worker.engine, restored]
}

#[test]
fn an_adopted_session_keeps_its_times_and_its_pinhole() {
    let mut talk = Conversation::logged_in();
    talk.play("> PORT 192,168,150,80,14,178");
    let record = talk.record();
    let [mut worker, mut restored] = next_daemon(&talk, Policy::default(), &record);
    let before: Vec<_> = restored.sessions.list().collect();
    let pinholes: Vec<_> = restored.sessions.list_pinholes().collect();
    let packet = talk.next_packet(Side::Server, b"200 ok\r\n", 0);
    assert!(worker.sessions.adopt(&mut restored.sessions, &packet));
    assert!(!worker.sessions.adopt(&mut restored.sessions, &packet), "it has it already");
    assert_eq!((restored.sessions.count(), restored.sessions.list_pinholes().count()), (0, 0));
    let adopted: Vec<_> = worker.sessions.list().filter(|session| session.adjusted).collect();
    assert_eq!(adopted, before);
    assert_eq!(worker.sessions.list_pinholes().collect::<Vec<_>>(), pinholes);
    talk.gateway.engine = worker;
    assert_eq!(talk.pass(&packet), (PacketOutcome::Replace, "200 ok\r\n".to_owned()));
}

/// Both ends have perhaps begun another connection.
#[test]
fn an_adopted_session_still_waits_for_the_other_connection_on_its_tuple() {
    let mut talk = Conversation::logged_in();
    talk.play("> PORT 192,168,150,80,14,178");
    talk.renumber();
    let syn_ack = talk.syn_ack();
    talk.pass(&syn_ack);
    let record = talk.record();
    let [mut worker, mut restored] = next_daemon(&talk, Policy::default(), &record);
    assert!(worker.sessions.adopt(&mut restored.sessions, &syn_ack));
    talk.gateway.engine = worker;
    let has_both = |talk: &Conversation| {
        talk.gateway.engine.sessions.table.iter().any(|entry| entry.head.incarnation().is_some())
    };
    assert!(has_both(&talk));
    talk.shake_hands();
    assert!(!has_both(&talk));
    talk.say(Side::Server, "220 ready\r\n");
    assert_eq!(talk.gateway.engine.sessions.list_pinholes().count(), 0, "its own has ended");
}

#[test]
fn sessions_of_an_earlier_daemon_make_room_for_those_that_begin() {
    let mut talk = Conversation::masqueraded();
    let record = talk.record();
    let limit = |max_sessions| Policy { max_sessions, ..Policy::default() };
    let begins = flood_packet(2, Side::Server, (0, u32::MAX), flags::SYN, "");
    let goes_on = flood_packet(2, Side::Server, (0, 0), 0, "220 ready\r\n");
    for (max_sessions, packet, is_evicted) in
        [(3, &begins, false), (2, &begins, true), (2, &goes_on, false)]
    {
        let [_, mut restored] = next_daemon(&talk, limit(max_sessions), &record);
        let packets = std::iter::once(&packet[..]);
        restored.sessions.make_room_for(talk.now, packets);
        assert_eq!(restored.sessions.count(), usize::from(!is_evicted));
    }
}
