//! A shard: an engine with its journal, for the connections of one worker. One more shard has the sessions of an
//! earlier daemon, until a worker gets their packets and adopts them. Only the kernel knows which worker that is.
//!
//! Invariants:
//! - A thread holds a shard until all decisions of a batch are carried out. So no decision depends on a state that is not
//!   written.
//! - A thread locks one worker's shard at a time, and behind it at most that of the restored sessions, so that two threads
//!   cannot wait for each other.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ftp_alg_core::engine::Engine;

use super::{
    records::{Need, Records as _},
    state_dir::Journal,
};

/// An engine, and the journal with its sessions.
pub(super) struct Shard {
    pub(super) engine: Engine,
    pub(super) journal: Journal,
}

impl Shard {
    /// Writes the records of changed sessions, outside a batch.
    pub(super) fn write_records(&mut self) -> Result<(), String> {
        let Self { engine, journal } = self;
        engine.sessions.write_records(|batch| journal.write(batch, Need::Written))
    }
}

/// Locks a mutex, even if a thread panicked while it held the lock. Only the engine of a worker can be left half changed,
/// and a worker that panics ends the daemon.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
