//! Shards: an engine with its journal, and the connections that are its own.
//!
//! Which they are, their two endpoints say ([`home`](super::home)). A thread holds one engine at a time, and asks nothing of
//! the kernel meanwhile. Of a shard's two locks the engine's is taken first.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ftp_alg_core::engine::{Effects, Engine};

use super::state_dir::Journal;

/// An engine, and where it is written what it knows.
pub(super) struct Shard {
    pub(super) engine: Mutex<Engine>,
    pub(super) journal: Mutex<Journal>,
}

impl Shard {
    /// Concludes a batch, and writes its records. The journal is taken before the engine is given back, so that records come
    /// in the order in which batches were concluded.
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

    /// Packets passed by unread for some time, of any of its connections. Not by `carry_out`: nothing is asked or given, and
    /// it must be written before the next sign of life.
    pub(super) fn record_downtime(&self) -> io::Result<()> {
        let mut effects = Effects::default();
        let mut engine = lock(&self.engine);
        engine.lapse();
        engine.take_records(&mut effects);
        let mut journal = lock(&self.journal);
        drop(engine);
        journal.write(effects.records())
    }

    /// What to say where the journal cannot be written.
    pub(super) fn describe_write_failure(&self, error: &io::Error) -> String {
        lock(&self.journal).describe_write_failure(error)
    }
}

/// A worker that panicked ends the daemon; until then its engine can be looked at. All else that a panic leaves is whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
