//! How many pinholes each client has, and the limits of that.

use ahash::AHashMap;

use crate::engine::ClientKey;

/// Fraction of all pinholes that one client may have open, and fraction of the ports that it may hold.
const OPEN_FRACTION: usize = 4;
const HELD_FRACTION: usize = 8;

/// Why no pinhole can be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The client's limit of open pinholes is reached.
    Limit(usize),
    /// The limit of all pinholes is reached, or the client's fraction of it.
    Full(&'static str),
    /// No external port is free.
    NoPort,
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
    ) -> Result<(), OpenError> {
        let Some(ClientCount { open, held }) = self.0.get(&client) else {
            return Ok(());
        };
        let limit = max_open(limit, capacity);
        if *open >= limit {
            return Err(OpenError::Limit(limit));
        }
        if *held >= (capacity / HELD_FRACTION).max(limit) {
            return Err(OpenError::Full("the client has its share"));
        }
        Ok(())
    }

    /// Counts an open pinhole of `client`, or one that the BPF program may open for it.
    pub(crate) fn add(&mut self, client: ClientKey) {
        let count = self.0.entry(client).or_default();
        (count.open, count.held) = (count.open + 1, count.held + 1);
    }

    pub(crate) fn remove_grant(&mut self, client: ClientKey) {
        self.remove_open(client);
        self.remove_held(client);
    }

    pub(crate) fn add_open(&mut self, client: ClientKey) {
        self.0.entry(client).or_default().open += 1;
    }

    pub(crate) fn remove_open(&mut self, client: ClientKey) {
        self.change(client, |count| count.open = count.open.saturating_sub(1));
    }

    pub(crate) fn add_held(&mut self, client: ClientKey) {
        self.0.entry(client).or_default().held += 1;
    }

    pub(crate) fn remove_held(&mut self, client: ClientKey) {
        self.change(client, |count| count.held = count.held.saturating_sub(1));
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
