//! Connections that are ended as all hold more than the budget.

use std::time::Duration;

use ftp_alg_core::{
    engine::{PacketOutcome, TransferEnd},
    policy::Policy,
};

use super::network::{Hostile, LONG_NAME, Reset, Wire, numbered, repeated, server};

const MEMORY: usize = 1 << 20;

fn policy() -> Policy {
    Policy { memory: MEMORY, ..Policy::default() }
}

/// Connections from `first` on hold as much as each may, until the budget is consumed and one is ended.
fn fill(wire: &mut Wire, first: usize) -> usize {
    for number in first.. {
        wire.connect(numbered(number));
        for segment in Hostile::Unacknowledged.segments() {
            wire.say(numbered(number), &segment);
        }
        assert!(wire.memory() <= MEMORY);
        if wire.gateway.engine.counters().limits.memory > 0 {
            return number;
        }
    }
    unreachable!("there are always more")
}

/// Also if conntrack has just been flushed.
#[test]
fn the_one_that_held_much_for_longest_is_ended_and_both_its_ends_are_reset() {
    for was_flushed in [false, true] {
        end_first(was_flushed);
    }
}

fn end_first(was_flushed: bool) {
    let (mut wire, client) = (Wire::new(policy()), numbered(0));
    wire.log_in(client);
    wire.say(client, b"PASV\r\n");
    wire.answer(client, "227 Entering Passive Mode (203,0,113,9,9,9)\r\n");
    let [acknowledged, _] = wire.next[&client];
    wire.say(client, b"RETR x\r\n");
    for segment in Hostile::Unacknowledged.segments() {
        wire.say(client, &segment);
    }
    wire.gateway.kernel.was_flushed = was_flushed;
    let last = fill(&mut wire, 1);
    let ended = wire.events.iter().find_map(|event| event.kind.ended_transfer());
    assert_eq!(ended.unwrap().end, TransferEnd::SessionReset);
    let ended = wire.events.iter().find(|event| event.kind.name() == "session-ended").unwrap();
    assert!(ended.to_string().ends_with(" s: reset, user joe, 1 transfer"), "{ended}");
    assert_eq!(wire.gateway.engine.counters().limits.memory, 1);
    assert!(!wire.has(client) && (1..=last).all(|number| wire.has(numbered(number))));
    let said = wire.said();
    assert!(
        said.contains("session reset at both ends") && said.contains("policy.memory"),
        "{said}"
    );
    let [next, heard] = wire.next[&client];
    let expected = [
        Reset { to: client, seq: heard },
        Reset { to: server(client), seq: acknowledged },
        Reset { to: server(client), seq: next },
    ];
    assert_eq!(wire.resets(), expected, "what was acknowledged, and all that was sent");

    // Whatever comes of it is dropped, and its sender is informed by the number that it expects.
    assert_eq!(wire.say_at(client, next, 7005, b"PORT 10,99,99,99,9,9\r\n"), PacketOutcome::Drop);
    assert_eq!(wire.resets(), [Reset { to: client, seq: 7005 }]);
    assert_eq!(wire.say_at(client, 5001, 7005, b"PORT 10,99,99,99,9,9\r\n"), PacketOutcome::Drop);
    wire.resets();
    assert_eq!(wire.answer(client, "200 ok\r\n"), PacketOutcome::Drop);
    assert_eq!(wire.resets(), [Reset { to: server(client), seq: next }]);
}

#[test]
fn one_that_was_ended_stays_so_after_a_restart_until_it_is_still() {
    let (mut wire, client) = (Wire::new(policy()), numbered(0));
    fill(&mut wire, 0);
    let [next, heard] = wire.next[&client];
    wire.restart(policy());
    assert!(wire.memory() <= MEMORY);
    assert_eq!(wire.say_at(client, next, heard, b"NOOP\r\n"), PacketOutcome::Drop);
    wire.advance(Duration::from_secs(59));
    assert_eq!(wire.say_at(client, next, heard, b"NOOP\r\n"), PacketOutcome::Drop);
    let before = wire.count();
    wire.advance(Duration::from_secs(61));
    assert_eq!(wire.count(), before - 1);
}

#[test]
fn a_reset_session_allows_tuple_reuse() {
    let (mut wire, client) = (Wire::new(policy()), numbered(0));
    fill(&mut wire, 0);
    wire.begin_at(client, [9_000_001, 8_000_001]);
    assert_eq!(wire.answer(client, "220 ready\r\n"), PacketOutcome::Accept);
    assert!(wire.has(client));
}

#[test]
fn a_dialogue_that_is_acknowledged_goes_on_however_many_hold_much() {
    let (mut wire, honest) = (Wire::new(policy()), numbered(5000));
    wire.log_in(honest);
    for round in 0..40 {
        for number in 0..20 {
            let client = numbered(10_000 + 100 * round + number);
            wire.connect(client);
            wire.say(client, &repeated(LONG_NAME));
            // Some twenty commands at once, as some clients send them, are held until they are answered.
            wire.say(
                honest,
                "SIZE some-file-name-that-is-rather-long.tar.gz\r\n".repeat(20).as_bytes(),
            );
            wire.connect(numbered(100_000 + 100 * round + number));
            wire.say(numbered(100_000 + 100 * round + number), &repeated(LONG_NAME));
            for _ in 0..20 {
                assert_ne!(wire.answer(honest, "213 5\r\n"), PacketOutcome::Drop);
            }
        }
    }
    assert!(wire.gateway.engine.counters().limits.memory > 500);
    assert!(wire.has(honest), "{}", wire.said());
}

#[test]
fn shards_share_one_budget_and_leave_room_for_each_other() {
    let mut first = Wire::new(policy());
    let mut second = Wire::with(first.gateway.engine.new_shard());
    let honest = numbered(0);
    second.connect(honest);
    second.say(honest, &repeated(LONG_NAME)[..40_000]);
    for number in 1..60 {
        first.connect(numbered(number));
        for segment in Hostile::Unacknowledged.segments() {
            first.say(numbered(number), &segment);
        }
        assert!(first.memory() <= MEMORY);
    }
    assert!(first.gateway.engine.counters().limits.memory > 0);
    for number in 100..103 {
        second.connect(numbered(number));
        second.say(numbered(number), &repeated(LONG_NAME)[..40_000]);
        assert!(first.memory() <= MEMORY);
    }
    assert_eq!(second.gateway.engine.counters().limits.memory, 0, "there is room for them");
    assert!(second.has(honest));
}

/// Until it is closed, a while after its transfer.
#[test]
fn a_pinholes_port_stays_reserved_in_other_shards() {
    let announce = |wire: &mut Wire, number| {
        wire.publish("198.51.100.222");
        wire.log_in(numbered(number));
        let ids: Vec<_> = wire.gateway.engine.sessions.list().map(|session| session.id).collect();
        assert!(ids.contains(&(number as u64 + 1)), "shards share the session numbers: {ids:?}");
        wire.say(numbered(number), b"PASV\r\n");
        wire.answer(numbered(number), "227 Entering Passive Mode (203,0,113,9,9,9)\r\n");
        wire.gateway.kernel.open.last().unwrap().arrival.port()
    };
    for is_closed in [false, true] {
        let mut first = Wire::new(Policy::default());
        assert_eq!(announce(&mut first, 0), 2313);
        first.say(numbered(0), b"RETR x\r\n");
        first.answer(numbered(0), "150 here\r\n");
        first.answer(numbered(0), "226 done\r\n");
        first.advance(Duration::from_secs(if is_closed { 8 } else { 0 }));
        let mut other = Wire::with(first.gateway.engine.new_shard());
        assert_eq!(announce(&mut other, 1) == 2313, is_closed);
    }
}

#[test]
fn a_smaller_budget_holds_at_once_after_a_reload() {
    let mut wire = Wire::new(Policy::default());
    for number in 0..40 {
        wire.connect(numbered(number));
        wire.say(numbered(number), &repeated(LONG_NAME));
    }
    assert!(wire.memory() > MEMORY);
    wire.gateway.engine.sessions.set_policy(policy());
    wire.advance(Duration::from_secs(1));
    assert!(wire.memory() <= MEMORY);
    assert!(!wire.has(numbered(0)) && wire.has(numbered(39)));
}
