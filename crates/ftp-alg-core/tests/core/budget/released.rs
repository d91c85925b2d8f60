//! What sessions take of what all have together is released when they are gone, however they went.

use std::{net::SocketAddr, time::Duration};

use ftp_alg_core::policy::Policy;

use super::{
    network::{Hostile, LONG_NAME, Wire, numbered, repeated},
    support::Rng,
};

const MOST: usize = 64;
const SHARE: usize = 8;
const HOSTS: usize = 8;

fn policy() -> Policy {
    Policy {
        max_sessions: MOST,
        max_sessions_per_client: SHARE,
        memory: 1 << 20,
        ..Policy::default()
    }
}

fn client(host: usize, number: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 3, host as u8], 2000 + number as u16))
}

/// Something happens to a connection, or to all.
fn step(wire: &mut Wire, rng: &mut Rng) {
    let client = client(rng.below(HOSTS), rng.below(30));
    if !wire.next.contains_key(&client) || rng.below(8) == 0 {
        let first = [rng.below(1 << 30) as u32 + 1, rng.below(1 << 30) as u32 + 1];
        wire.begin_at(client, first);
        wire.answer(client, "220 ready\r\n");
        if rng.below(4) > 0 {
            wire.say(client, b"USER joe\r\n");
            wire.answer(client, "230 in\r\n");
        }
        return;
    }
    match rng.below(14) {
        0..5 => {
            wire.say(client, b"PASV\r\n");
            wire.answer(client, "227 Entering Passive Mode (203,0,113,9,9,9)\r\n");
        }
        5 => {
            let SocketAddr::V4(address) = client else { unreachable!("IPv4") };
            let host = address.ip().to_string().replace('.', ",");
            wire.say(client, format!("PORT {host},{},7\r\n", 4 + rng.below(200)).as_bytes());
            wire.answer(client, ["200 ok\r\n", "500 no\r\n"][rng.below(2)]);
        }
        6 => drop(wire.say(client, &repeated(LONG_NAME)[..500 + rng.below(60_000)])),
        7 => {
            let kinds = [Hostile::Refused, Hostile::LongLine, Hostile::HeldLine, Hostile::Pending];
            for segment in kinds[rng.below(kinds.len())].segments() {
                wire.say(client, &segment);
            }
        }
        8 => drop(wire.answer(client, "200 ok\r\n")),
        9 => wire.close(client),
        10 => wire.reset(client),
        11 => wire.advance(Duration::from_secs(rng.below(40) as u64)),
        12 if rng.below(10) == 0 => wire.restart(policy()),
        12 if rng.below(10) == 0 => {
            let memory = [1 << 20, 1 << 17][rng.below(2)];
            wire.gateway.engine.sessions.set_policy(Policy { memory, ..policy() });
        }
        12 => drop(wire.say(client, b"AUTH TLS\r\nGET / HTTP/1.1\r\n")),
        _ => drop(wire.say(client, b"RETR x\r\n")),
    }
}

#[test]
fn whatever_happened_nothing_is_held_when_all_are_gone() {
    for seed in 0..20 {
        let (mut wire, mut rng) = (Wire::new(policy()), Rng::new(seed));
        if seed % 2 == 0 {
            wire.publish("198.51.100.222");
        }
        for _ in 0..3000 {
            step(&mut wire, &mut rng);
            assert!(wire.count() <= MOST);
        }
        assert!(wire.gateway.kernel.opened > 20, "{}", wire.gateway.kernel.opened);
        wire.advance(Duration::from_secs(432_000));
        wire.advance(Duration::from_secs(432_000)); // those that were ended meanwhile
        assert_eq!(wire.count(), 0, "seed {seed}");
        assert_eq!(wire.memory(), 0, "seed {seed}");
        assert_eq!(wire.gateway.engine.sessions.list_pinholes().count(), 0, "seed {seed}");
        assert_eq!(wire.gateway.kernel.open.len(), 0, "seed {seed}: pinholes in the kernel");
        // Each client has all of its share again.
        wire.gateway.engine.sessions.set_policy(policy());
        let before = wire.gateway.engine.counters().limits;
        for number in 0..SHARE {
            for host in 0..HOSTS {
                wire.log_in(client(host, 100 + number));
            }
        }
        assert_eq!(wire.clients().len(), MOST, "seed {seed}");
        let after = wire.gateway.engine.counters().limits;
        assert_eq!(before.client_sessions, after.client_sessions, "seed {seed}");
    }
}

/// One call of `expire` has no room for the events of all.
#[test]
fn no_end_is_left_out_if_many_sessions_expire_at_once() {
    const COUNT: usize = 3072;
    let mut wire = Wire::new(Policy::default());
    for number in 0..COUNT {
        wire.log_in(numbered(number));
        for (said, answer) in [("PASV", "227 x (203,0,113,9,9,9)\r\n"), ("RETR a", "150 here\r\n")]
        {
            wire.say(numbered(number), format!("{said}\r\n").as_bytes());
            wire.answer(numbered(number), answer);
        }
    }
    wire.now += Duration::from_secs(6 * 86_400);
    let (mut names, mut omitted) = (Vec::new(), 0);
    for _ in 0..4 {
        wire.gateway.expire(wire.now);
        let (events, more) = wire.gateway.take_events();
        names.extend(events.iter().map(|event| event.kind.name()));
        omitted += more;
    }
    let count = |name| names.iter().filter(|one| **one == name).count();
    assert_eq!((count("transfer"), count("session-ended"), omitted), (COUNT, COUNT, 0));
}
