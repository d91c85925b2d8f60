//! A shard: an engine with its journal, for a part of the connections. [`shard_map`](super::shard_map) finds the shard
//! of a connection.
//!
//! Invariants:
//! - A thread locks one engine at a time, and asks the kernel nothing meanwhile, because a worker may wait for the
//!   lock.
//! - A thread locks the engine before the journal, so that two threads cannot wait for each other.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ftp_alg_core::engine::{Effects, Engine};

use super::state_dir::Journal;

/// An engine, and the journal with its sessions.
pub(super) struct Shard {
    pub(super) engine: Mutex<Engine>,
    pub(super) journal: Mutex<Journal>,
}

impl Shard {
    /// Concludes a batch, and writes its records. Locks the journal before it releases the engine, so the records are
    /// in the order of the batches.
    pub(super) fn conclude(&self, effects: &mut Effects) -> io::Result<()> {
        let mut engine = lock(&self.engine);
        engine.conclude(effects);
        let mut journal = lock(&self.journal);
        drop(engine);
        journal.write(effects.records())?;
        if !journal.needs_checkpoint() {
            return Ok(());
        }
        drop(journal);
        let mut engine = lock(&self.engine);
        lock(&self.journal).maintain(&mut engine)
    }

    /// Records that packets of any of its connections may have passed unread. Does not use `carry_out`: there are no
    /// lookups and no verdicts, and the record must be written before the heartbeat is renewed.
    pub(super) fn record_downtime(&self) -> io::Result<()> {
        let mut effects = Effects::default();
        let mut engine = lock(&self.engine);
        engine.record_downtime();
        engine.sessions.take_records(&mut effects);
        let mut journal = lock(&self.journal);
        drop(engine);
        journal.write(effects.records())
    }

    /// The text for a journal that cannot be written.
    pub(super) fn describe_write_failure(&self, error: &io::Error) -> String {
        lock(&self.journal).describe_write_failure(error)
    }
}

/// Locks a mutex, even if a thread panicked while it held the lock. A worker that panics ends the daemon, and until
/// then its engine may be read. No other data can be left half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
