//! How many sessions each client has, where there are nearly as many as may be.

use std::{net::SocketAddr, time::Duration};

use ftp_alg_core::{engine::PacketOutcome, packet::flags, policy::Policy};

use super::network::{Wire, packet, server};

const MOST: usize = 64;
const SHARE: usize = 8;

fn policy() -> Policy {
    Policy { max_sessions: MOST, max_sessions_per_client: SHARE, ..Policy::default() }
}

fn wire() -> Wire {
    Wire::new(policy())
}

/// Connection `number` of the host with this address.
fn of(address: &str, number: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 2000 + number)
}

fn count(wire: &Wire, address: &str) -> usize {
    let address: std::net::IpAddr = address.parse().unwrap();
    wire.clients().iter().filter(|client| client.ip() == address).count()
}

fn verified(wire: &mut Wire, client: SocketAddr) {
    wire.connect(client);
    wire.say(client, b"NOOP\r\n");
    wire.answer(client, "530 Please login with USER and PASS.\r\n");
}

const HOSTILE: &str = "10.0.0.66";

#[test]
fn a_client_may_have_more_than_its_share_as_long_as_there_is_room() {
    let mut wire = wire();
    for number in 0..40 {
        verified(&mut wire, of(HOSTILE, number));
    }
    assert_eq!((count(&wire, HOSTILE), wire.said()), (40, String::new()));
}

#[test]
fn who_said_noop_on_all_connections_leaves_room_for_others() {
    let mut wire = wire();
    for number in 0..500 {
        verified(&mut wire, of(HOSTILE, number));
        wire.now += Duration::from_millis(10);
    }
    // The last quarter is for those below their share.
    assert_eq!(count(&wire, HOSTILE), MOST - MOST / 4);
    assert!(!wire.has(of(HOSTILE, 0)) && wire.has(of(HOSTILE, 499)), "its own oldest go");
    let said = wire.said();
    assert!(said.contains("its client has more than its share of max-sessions"), "{said}");
    for host in 1..=30 {
        let client = of(&format!("10.0.1.{host}"), 0);
        wire.log_in(client);
        assert!(wire.has(client));
    }
    for host in 1..=30 {
        assert!(wire.has(of(&format!("10.0.1.{host}"), 0)), "{host}");
    }
    assert!(wire.count() <= MOST);
    let counters = wire.gateway.engine.counters();
    assert_eq!(counters.uninspected, 0);
    assert_eq!(counters.limits.client_sessions, 500 + 30 - MOST as u64);
}

#[test]
fn who_takes_no_notice_of_a_reset_is_not_heard_any_more() {
    let mut wire = wire();
    let gone = of(HOSTILE, 0);
    for number in 0..50 {
        verified(&mut wire, of(HOSTILE, number));
    }
    assert!(!wire.has(gone));
    let resets = wire.resets();
    assert!(resets.iter().any(|reset| reset.to == server(gone)), "{resets:?}");
    assert_eq!(wire.say(gone, b"USER joe\r\n"), PacketOutcome::Drop);
    assert_eq!(wire.say(gone, b"PORT 10,99,99,99,9,9\r\n"), PacketOutcome::Drop, "no third host's");
    assert_eq!(wire.gateway.kernel.opened, 0);
}

#[test]
fn who_has_logged_in_and_is_still_counts_as_well_and_is_reset() {
    for is_adjusted in [false, true] {
        let mut wire = wire();
        wire.publish("198.51.100.222");
        for number in 0..100 {
            let client = of(HOSTILE, number);
            wire.log_in(client);
            if is_adjusted {
                wire.say(client, b"PASV\r\n");
                let reply = wire.answer(client, "227 Entering Passive Mode (203,0,113,9,9,9)\r\n");
                assert_eq!(reply, PacketOutcome::Replace);
            }
            wire.now += Duration::from_millis(10);
        }
        assert_eq!(count(&wire, HOSTILE), MOST - MOST / 4);
        let said = wire.said();
        assert!(said.contains("session reset at both ends: its client has more"), "{said}");
        let resets = wire.resets();
        for end in [of(HOSTILE, 0), server(of(HOSTILE, 0))] {
            assert!(resets.iter().any(|reset| reset.to == end), "{resets:?}");
        }
    }
}

#[test]
fn connections_that_are_over_protect_no_others_of_their_client() {
    let mut wire = wire();
    wire.publish("198.51.100.222");
    for number in 0..MOST as u16 {
        let client = of(HOSTILE, number);
        wire.log_in(client);
        if number < 20 {
            // Adjusted, so that it is remembered for a while.
            wire.say(client, b"PASV\r\n");
            wire.answer(client, "227 Entering Passive Mode (203,0,113,9,9,9)\r\n");
            wire.close(client);
        }
    }
    for host in 1..=15 {
        let client = of(&format!("10.0.1.{host}"), 0);
        wire.log_in(client);
        assert!(wire.has(client), "{host}: {}", wire.count());
    }
    assert_eq!(wire.gateway.engine.counters().uninspected, 0);
}

#[test]
fn a_transfer_is_under_way_longer_than_a_client_is_still() {
    let mut wire = wire();
    let busy = of(HOSTILE, 0);
    wire.log_in(busy);
    wire.say(busy, b"RETR large\r\n");
    wire.answer(busy, "150 here it comes\r\n");
    wire.now += Duration::from_secs(100);
    for number in 1..100 {
        wire.log_in(of(HOSTILE, number));
    }
    assert!(wire.has(busy), "{}", wire.said());
}

#[test]
fn all_addresses_of_a_64_are_one_client_and_those_of_another_are_not() {
    let mut wire = wire();
    for number in 0..200 {
        verified(&mut wire, of(&format!("2001:db8:66::{number:x}"), number));
    }
    assert_eq!(wire.clients().len(), MOST - MOST / 4);
    for number in 0..8 {
        verified(&mut wire, of(&format!("2001:db8:77:{number:x}::1"), number));
    }
    // The same digits as an IPv4 address are another client.
    verified(&mut wire, of("32.1.13.184", 1));
    assert_eq!(wire.clients().len(), MOST - MOST / 4 + 9);
}

#[test]
fn who_forges_a_clients_address_takes_none_of_its_share() {
    let mut wire = wire();
    let honest = of("10.0.1.1", 0);
    wire.log_in(honest);
    for number in 1..2000 {
        wire.syn_ack(of("10.0.1.1", number));
        wire.now += Duration::from_millis(10);
    }
    assert!(wire.has(honest));
    assert_eq!(wire.gateway.engine.counters().limits.client_sessions, 0);
    let other = of("10.0.1.2", 0);
    wire.log_in(other);
    assert!(wire.has(honest) && wire.has(other));
}

#[test]
fn one_without_a_login_goes_after_a_quarter_of_an_hour() {
    let mut wire = wire();
    let (waiting, working) = (of(HOSTILE, 0), of(HOSTILE, 1));
    verified(&mut wire, waiting);
    wire.log_in(working);
    wire.advance(Duration::from_secs(890));
    assert!(wire.has(waiting));
    wire.advance(Duration::from_secs(20));
    assert_eq!(wire.clients(), [working]);
    wire.advance(Duration::from_secs(86_400));
    assert_eq!(wire.clients(), [working], "servers end these");
}

#[test]
fn where_there_is_hardly_room_saying_something_now_and_then_is_no_login() {
    let mut wire = wire();
    for host in 0..60 {
        verified(&mut wire, of(&format!("10.0.2.{host}"), 0));
    }
    let working = of("10.0.1.1", 0);
    wire.log_in(working);
    for _ in 0..3 {
        wire.advance(Duration::from_secs(301));
        for client in wire.clients() {
            wire.say(client, b"NOOP\r\n");
            wire.answer(client, "530 no\r\n");
        }
    }
    assert!(wire.count() < MOST - MOST / 4 + 1, "{}", wire.count());
    assert!(wire.has(working));
}

#[test]
fn without_a_login_policy_who_says_something_stays() {
    let policy = Policy { require_login: false, ..Policy::default() };
    let mut wire = Wire::new(policy);
    verified(&mut wire, of(HOSTILE, 0));
    wire.advance(Duration::from_secs(3600));
    assert!(wire.has(of(HOSTILE, 0)));
}

#[test]
fn shares_are_known_again_after_a_restart() {
    let mut wire = wire();
    for number in 0..40 {
        verified(&mut wire, of(HOSTILE, number));
    }
    wire.restart(policy());
    for number in 40..100 {
        verified(&mut wire, of(HOSTILE, number));
    }
    assert_eq!(count(&wire, HOSTILE), MOST - MOST / 4);
}

#[test]
fn the_session_limit_holds_over_all_shards() {
    let mut first = Wire::new(Policy { max_sessions: 8, ..Policy::default() });
    let mut second = Wire::with(first.gateway.engine.new_shard());
    let host = |number: u16| of(&format!("10.1.{}.{}", number >> 8, number & 255), 0);
    (0..100).for_each(|number| first.syn_ack(host(number)));
    assert_eq!(first.count(), 6, "the last quarter is for shards below their share");
    (100..200).for_each(|number| verified(&mut second, host(number)));
    assert_eq!((first.count(), second.clients()), (6, vec![host(100), host(101)]));
    (200..206).for_each(|number| verified(&mut first, host(number)));
    assert_eq!(first.clients(), (200..206).map(host).collect::<Vec<_>>());
}

/// An off-path attacker needs one packet for each, and the gateway has changed or held back what it says.
#[test]
fn a_flood_of_picked_up_connections_leaves_room_for_others() {
    for payload in [&b"x"[..], b"PORT 10,99,99,99,9,9\r\n", b"PORT 1"] {
        let mut wire = Wire::new(Policy { max_sessions: 4, ..Policy::default() });
        for number in 0..8 {
            wire.say_at(of(&format!("10.1.0.{number}"), 0), 100, 500, payload);
        }
        assert_eq!(wire.count(), 4, "{payload:?}");
        verified(&mut wire, of(HOSTILE, 0));
        assert!(wire.has(of(HOSTILE, 0)), "{payload:?}");
    }
}

#[test]
fn sessions_of_an_earlier_daemon_make_room_for_those_that_begin() {
    let [earlier, own, other] = [0, 1, 2].map(|number| of("10.0.1.1", number));
    let begins = packet((server(other), other), [499, 100], flags::SYN, b"");
    let goes_on = packet((server(other), other), [500, 100], 0, b"220 ready\r\n");
    for (max_sessions, packet, left) in [(3, &begins, 1), (2, &begins, 0), (2, &goes_on, 1)] {
        let mut before = wire();
        before.syn_ack(earlier);
        let mut wire = Wire::new(Policy { max_sessions, ..Policy::default() });
        wire.syn_ack(own);
        let mut restored = wire.gateway.engine.new_restored_shard();
        before.restore_in(&mut restored);
        restored.sessions.make_room_for(wire.now, std::iter::once(&packet[..]));
        assert_eq!(restored.sessions.count(), left);
    }
}
