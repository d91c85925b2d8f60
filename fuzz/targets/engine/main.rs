//! The engine, through lists of operations: packets of several control connections, good and bad,
//! time, a changing policy, a kernel that fails, and restarts.
//!
//! The input is a script, one operation a line: a letter, who (`0` to `3` the clients, `4` to `7`
//! the servers), and the rest; `World::operate` has the letters. What holds, whatever the script:
//! - a pinhole is as [`World::check_opening`] says, and there are no more of them, nor of sessions, than policy
//!   allows;
//! - what is delivered under a number never changes, and no acknowledgement covers what was not
//!   sent;
//! - what the engine makes is valid to etherparse, between the right ends;
//! - when all is closed nothing is open, and when time has passed nothing is followed.

#![no_main]

#[path = "../../../crates/ftp-alg-core/tests/core/support/fast_path/mod.rs"]
#[allow(dead_code, reason = "each user has a use for a part")]
mod fast_path;
mod flow;
#[path = "../../../crates/ftp-alg-core/tests/core/support/recorder.rs"]
#[allow(dead_code, reason = "each user has a use for a part")]
mod recorder;
#[path = "../../../crates/ftp-alg-core/tests/core/support/segment.rs"]
#[allow(dead_code, reason = "each user has a use for a part")]
mod segment;
mod world;

use libfuzzer_sys::fuzz_target;
use world::World;

fuzz_target!(|script: &[u8]| {
    let mut world = World::default();
    for line in script.split(|b| *b == b'\n') {
        if let [operation, who, rest @ ..] = line {
            world.operate(*operation, *who, rest);
        }
    }
    world.end();
});
