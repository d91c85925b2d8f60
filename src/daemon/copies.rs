//! Copies of lines that passed, on their way to the engines: before each batch of packets, as those were
//! queued later, before the control socket answers, and often enough that their buffer does not fill.

use std::{fmt::Display, sync::Mutex, time::Instant};

use ftp_alg_core::engine::Effects;

use super::shard::{Home, Shard, lock};
use crate::gateway::Copies;

/// Where copies come from, and how they find their shard.
#[derive(Debug)]
pub(super) struct CopyReader {
    copies: Mutex<Copies>,
    /// By how many shards endpoints are spread; otherwise the kernel has chosen the connection's queue.
    by_endpoints: Option<usize>,
}

impl CopyReader {
    pub(super) fn new(copies: Copies, by_endpoints: Option<usize>) -> Self {
        Self { copies: Mutex::new(copies), by_endpoints }
    }

    /// Has the engines read all copies that have come. Who finds none knows that they were read: the lock is held
    /// until they are.
    pub(super) fn read(
        &self,
        now: Instant,
        shards: &[Shard],
        effects: &mut [Effects],
        fail: impl Fn(&dyn Display),
    ) {
        let mut copies = lock(&self.copies);
        loop {
            let more = copies.receive().unwrap_or_else(|error| {
                fail(&error);
                false
            });
            for packet in copies.packets() {
                let homes = match self.by_endpoints {
                    Some(count) => {
                        let home = Home::Endpoints(count).of(packet);
                        home..home + 1
                    }
                    None => 0..shards.len(),
                };
                for (shard, effects) in
                    shards.iter().zip(effects.iter_mut()).take(homes.end).skip(homes.start)
                {
                    if lock(&shard.engine).passed(now, packet, effects) {
                        break;
                    }
                }
            }
            if !more {
                break;
            }
        }
        if copies.were_lost() {
            for shard in shards {
                lock(&shard.engine).lose_copies();
            }
            fail(
                &"copies of control packets were lost, as ftp-alg was kept from reading them: where that \
                  matters, clients have to wait for their servers to say what they have",
            );
        }
    }
}
