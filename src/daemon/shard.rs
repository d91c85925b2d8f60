//! A shard: an engine with the places of its records, for the connections of one worker. One more shard has the sessions of an
//! earlier daemon, until a worker gets their packets and adopts them. Only the kernel knows which worker that is.
//!
//! Invariants:
//! - A thread holds a shard until all decisions of a batch are carried out. So no decision depends on a state that is not
//!   written.
//! - A thread locks one worker's shard at a time, and behind it at most that of the restored sessions, so that two threads
//!   cannot wait for each other.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use ftp_alg_core::engine::{Engine, Kernel};

use super::{
    records::{Need, Records as _},
    state_dir::Journal,
    store::StoreWriter,
};

/// An engine, and where its records are written: the journal first.
pub(super) struct Shard {
    pub(super) engine: Engine,
    pub(super) journal: Journal,
    /// The store, if this gateway is one of a pair.
    pub(super) store: Option<StoreWriter>,
}

impl Shard {
    /// Writes the records of changed sessions, outside a batch.
    pub(super) fn write_records(&mut self) -> Result<(), String> {
        let Self { engine, journal, store } = self;
        engine.sessions.write_records(|batch| {
            let written = journal.write(batch, Need::Written);
            let stored = store.as_mut().map_or(Ok(()), |store| store.write(batch, Need::Written));
            written.and(stored)
        })
    }

    /// Drops all sessions, which the other gateway continues. What their packets are waiting for is over.
    pub(super) fn leave_sessions(&mut self, now: Instant, kernel: &mut dyn Kernel) {
        if let Some(store) = &mut self.store {
            store.end();
        }
        self.engine.sessions.clear();
        self.engine.expire(now, kernel);
    }
}

/// Locks a mutex, even if a thread panicked while it held the lock. Only the engine of a worker can be left half changed,
/// and a worker that panics ends the daemon.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
