//! Copies of lines that passed, on their way to the engines: before each batch of packets, as those were
//! queued later, before the control socket answers, and often enough that their buffer does not fill.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use super::{
    worker::{Home, Shard, lock},
    workers::Shared,
};
use crate::gateway::{Copies, LinuxKernel, READ_EVERY};

/// Where copies come from, and how they find their shard.
#[derive(Debug)]
pub(super) struct CopyReader {
    pub(super) copies: Mutex<Copies>,
    /// By how many shards endpoints are spread; otherwise the kernel has chosen the connection's queue.
    pub(super) by_endpoints: Option<usize>,
}

impl Shared {
    /// Has the engines read all copies that have come. Who finds none knows that they were read: the lock is held
    /// until they are.
    pub(super) fn read_copies(&self, now: Instant, kernel: &mut LinuxKernel) {
        let Some(CopyReader { copies, by_endpoints }) = &self.copies else { return };
        let mut copies = lock(copies);
        loop {
            let more = copies.receive().unwrap_or_else(|error| {
                self.fail(&error);
                false
            });
            for packet in copies.packets() {
                let shards = match by_endpoints {
                    Some(count) => {
                        let home = Home::Endpoints(*count).of(packet);
                        self.shards.get(home..=home).unwrap_or_default()
                    }
                    None => &self.shards,
                };
                shards.iter().any(|shard| lock(shard).engine.passed(now, packet, kernel));
            }
            if !more {
                break;
            }
        }
        if copies.were_lost() {
            for shard in &self.shards {
                lock(shard).engine.lose_copies();
            }
            self.fail(
                &"copies of control packets were lost, as ftp-alg was kept from reading them: where that \
                  matters, clients have to wait for their servers to say what they have",
            );
        }
    }

    /// Has the engines read all copies that have come; writes and does what follows from them.
    pub(super) fn catch_up(&self, now: Instant, kernel: &mut LinuxKernel) {
        self.read_copies(now, kernel);
        for shard in &self.shards {
            let mut shard = lock(shard);
            let Shard { engine, journal } = &mut *shard;
            // Where that fails, the worker of the shard says so.
            let _ = journal.write(engine);
            self.settle(now, shard, kernel);
        }
    }

    /// Reads copies until `end` is set, and those of before that.
    pub(super) fn follow_copies(&self, kernel: &mut LinuxKernel, end: &AtomicBool) {
        let mut is_last = false;
        while !is_last {
            thread::park_timeout(READ_EVERY);
            is_last = end.load(Ordering::Acquire);
            self.catch_up(Instant::now(), kernel);
        }
    }
}
