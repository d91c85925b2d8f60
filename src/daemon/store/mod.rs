//! The store of this machine, a Redis or Valkey, where the other gateway of a pair finds the records of sessions.
//!
//! - [`connection`] sends commands, each with a deadline.
//! - [`writer`] writes the records of a shard before verdicts are given.

mod connection;
mod writer;

use std::{
    collections::HashMap,
    io,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::Thread,
    time::{Duration, Instant},
};

use redis::cmd;

pub(super) use self::{connection::StoreConnection, writer::StoreWriter};

/// The names of the keys.
pub(super) mod keys {
    use ftp_alg_core::engine::RECORD_FORMAT;

    /// The epoch of the gateway that was activated last.
    pub(in crate::daemon) fn current() -> String {
        format!("ftp-alg:{RECORD_FORMAT}:current")
    }

    /// What the active gateway of this epoch says of itself: a hash.
    pub(in crate::daemon) fn pair(epoch: u64) -> String {
        format!("ftp-alg:{RECORD_FORMAT}:{epoch}:pair")
    }

    /// The records of a shard: a hash from session numbers to frames.
    pub(in crate::daemon) fn sessions(epoch: u64, shard: usize) -> String {
        format!("ftp-alg:{RECORD_FORMAT}:{epoch}:s:{shard}")
    }

    /// What the standby says of itself: a hash, in the active gateway's store.
    pub(in crate::daemon) fn standby() -> String {
        format!("ftp-alg:{RECORD_FORMAT}:standby")
    }
}

/// The field of the active gateway's hash that says that it has left its sessions to the other one.
pub(super) const LEFT: &str = "left";

/// What a gateway says of itself in a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Gateway {
    /// Of the process, to tell two gateways with the same epoch apart.
    pub(super) id: u64,
    pub(super) version: String,
    /// A checksum of the configuration, as far as both must have the same.
    pub(super) config: u64,
    /// Milliseconds since the zero of its monotonic clock, from which its records count.
    pub(super) up: u64,
    /// The time of day in milliseconds since 1970.
    pub(super) clock: u64,
    pub(super) shards: usize,
    /// Whether it has left its sessions to the other gateway.
    pub(super) has_left: bool,
}

impl Gateway {
    /// Reads the hash with this key, if it is there.
    pub(super) fn read(
        store: &mut StoreConnection,
        key: &str,
        deadline: Instant,
    ) -> io::Result<Option<Self>> {
        let fields: HashMap<String, String> = store.query(cmd("HGETALL").arg(key), deadline)?;
        let number = |name: &str| fields.get(name).and_then(|text| text.parse().ok());
        let gateway = || {
            Some(Self {
                id: number("id")?,
                version: fields
                    .get("version")?
                    .chars()
                    .filter(char::is_ascii_graphic)
                    .take(64)
                    .collect(),
                config: number("config")?,
                up: number("up")?,
                clock: number("clock")?,
                shards: number("shards")?.try_into().ok()?,
                has_left: fields.contains_key(LEFT),
            })
        };
        Ok(gateway())
    }

    /// Writes it to the hash with this key, which expires after `lifetime`.
    pub(super) fn write(
        &self,
        store: &mut StoreConnection,
        key: &str,
        lifetime: Duration,
        deadline: Instant,
    ) -> io::Result<()> {
        let numbers = [
            ("id", self.id),
            ("config", self.config),
            ("up", self.up),
            ("clock", self.clock),
            ("shards", self.shards as u64),
        ];
        let mut command = cmd("HSET");
        command.arg(key).arg("version").arg(&self.version).arg(&numbers);
        store.run(&command, deadline)?;
        store.run(cmd("EXPIRE").arg(key).arg(lifetime.as_secs()), deadline)
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// What the thread that looks at the stores shares with the writers.
#[derive(Default)]
pub(super) struct StoreLink {
    /// Whether the own store has a replica that keeps up.
    pub(super) has_replica: AtomicBool,
    /// How many batches were not confirmed in time.
    pub(super) unconfirmed: AtomicU64,
    /// The thread.
    pub(super) thread: OnceLock<Thread>,
}

impl StoreLink {
    /// Makes the thread look at once.
    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Notes whether the other gateway's store has confirmed a batch. If not, no batch waits until the thread finds that the
    /// replica keeps up.
    fn note_wait(&self, is_confirmed: bool) {
        if !is_confirmed {
            self.unconfirmed.fetch_add(1, Ordering::Relaxed);
            self.has_replica.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
