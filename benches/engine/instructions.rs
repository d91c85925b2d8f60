//! A known number of packets and nothing else, for a tool that counts instructions:
//! `make bench-instructions`, which runs this under callgrind with N and with 2N packets. Times vary with
//! the machine and what else it does, this does not.

use std::{hint::black_box, time::Instant};

use ftp_alg_core::engine::{Fate, Standalone};

use super::talk::{ACTIVE, CLIENT, Nowhere, PASSING, PORT, Talk, gateway};

/// Hands an engine `count` packets of a `kind`, in [`counted`].
pub fn run(kind: &str, count: usize) {
    let mut talk = Talk::logged_in(CLIENT);
    let (stage, counts): (_, fn(usize) -> bool) = match kind {
        "passing" => {
            PASSING.iter().cycle().take(count).for_each(|(line, server)| talk.say(line, *server));
            (6, |_| true)
        }
        "renumbering" => {
            talk.say(PORT, false);
            (0..count).for_each(|_| talk.say("", true));
            (7, |_| true)
        }
        "rewriting" => {
            ACTIVE
                .iter()
                .cycle()
                .take(4 * count)
                .for_each(|(line, server)| talk.say(line, *server));
            (6, |at| at % ACTIVE.len() == 0)
        }
        "splitting" => {
            for _ in 0..count {
                talk.say(&PORT[..3], false);
                talk.say(&PORT[3..], false);
                ACTIVE[1..].iter().for_each(|(line, server)| talk.say(line, *server));
            }
            (6, |at| at % 5 < 2)
        }
        _ => panic!("passing, renumbering, rewriting or splitting, not {kind}"),
    };
    let now = Instant::now();
    let mut gateway = gateway();
    for (at, packet) in talk.packets.iter().enumerate() {
        let fate = match at.checked_sub(stage) {
            Some(at) if counts(at) => counted(&mut gateway, now, packet),
            _ => gateway.packet(now, packet),
        };
        assert_ne!(fate, Fate::Drop);
        gateway.take_events();
    }
}

/// What is counted: the tool is told to begin and to end here, by this name.
#[inline(never)]
fn counted(gateway: &mut Standalone<Nowhere>, now: Instant, packet: &[u8]) -> Fate {
    black_box(gateway.packet(now, black_box(packet)))
}
