//! How many pinholes each client has, and the limits of that.

use ahash::AHashMap;

use crate::engine::{ClientKey, KernelError};

/// Fraction of all pinholes that one client may have open, and fraction of the ports that it may hold.
const OPEN_FRACTION: usize = 4;
const HELD_FRACTION: usize = 8;

/// Why no pinhole can be opened.
#[derive(Debug)]
pub enum NotOpened {
    /// The client's limit of open pinholes is reached.
    Limit(usize),
    /// The limit of all pinholes is reached, or the client's fraction of it.
    Full(&'static str),
    /// No external port is free.
    NoPort,
    /// The kernel refused.
    Kernel(KernelError),
}

/// The pinholes of all clients.
#[derive(Default)]
pub(crate) struct ClientCounts(AHashMap<ClientKey, ClientCount>);

#[derive(Default)]
struct ClientCount {
    /// Those that count for the client's limit: open ones, and one for each connection on the fast path.
    open: usize,
    /// Includes those whose port a transfer uses.
    held: usize,
}

/// Limit of open pinholes of a client with this `limit`, if there may be `capacity` in all.
pub(crate) fn max_open(limit: usize, capacity: usize) -> usize {
    limit.min((capacity / OPEN_FRACTION).max(1))
}

impl ClientCounts {
    /// Whether `client` may hold another pinhole, if there may be `capacity` in all and `limit` open ones of the
    /// client.
    pub(crate) fn check(
        &self,
        client: ClientKey,
        limit: usize,
        capacity: usize,
    ) -> Result<(), NotOpened> {
        let Some(ClientCount { open, held }) = self.0.get(&client) else {
            return Ok(());
        };
        let limit = max_open(limit, capacity);
        if *open >= limit {
            return Err(NotOpened::Limit(limit));
        }
        if *held >= (capacity / HELD_FRACTION).max(limit) {
            return Err(NotOpened::Full("the client has its share"));
        }
        Ok(())
    }

    /// Counts a pinhole that `client` holds, or a grant for one that the BPF program may open for it.
    pub(crate) fn add(&mut self, client: ClientKey, is_open: bool) {
        let count = self.0.entry(client).or_default();
        (count.open, count.held) = (count.open + usize::from(is_open), count.held + 1);
    }

    /// Counts one less.
    pub(crate) fn remove(&mut self, client: ClientKey, is_open: bool) {
        self.change(client, |count| {
            count.open = count.open.saturating_sub(is_open.into());
            count.held = count.held.saturating_sub(1);
        });
    }

    /// A pinhole that `client` holds counts for its limit now, or no more.
    pub(crate) fn set_open(&mut self, client: ClientKey, is_open: bool) {
        self.change(client, |count| {
            count.open = if is_open { count.open + 1 } else { count.open.saturating_sub(1) };
        });
    }

    fn change(&mut self, client: ClientKey, change: impl FnOnce(&mut ClientCount)) {
        if let Some(count) = self.0.get_mut(&client) {
            change(count);
            if (count.open, count.held) == (0, 0) {
                self.0.remove(&client);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
