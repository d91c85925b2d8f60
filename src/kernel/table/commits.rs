//! Detects whether others have changed nf_tables since the last look.
//!
//! The kernel counts the transactions of a network namespace (its generation), including ours; each pinhole is one. We
//! count ours, so the difference is the number of others' transactions, plus a constant. Knows nothing of what a
//! transaction changes.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use super::compiled;
use crate::kernel::{
    NetfilterError,
    netlink::{
        Socket,
        nft::{self, Batch, BatchOutcome},
    },
};

/// The transactions of this process in one network namespace. All users share it.
#[derive(Clone, Debug, Default)]
pub struct Commits {
    counts: Arc<CommitCounts>,
    /// The socket for all transactions, if it is to own our table.
    shared_socket: Option<Arc<Mutex<Socket>>>,
}

/// The counts wrap, as the generation does.
#[derive(Debug, Default)]
struct CommitCounts {
    started: AtomicU32,
    changed: AtomicU32,
    ended: AtomicU32,
}

impl Commits {
    /// Uses one socket for all transactions, so that it can own our table; the kernel runs one transaction at a time
    /// anyway. If the kernel does not support table owners, each thread has its own socket, as in [`Commits::default`].
    pub fn through_one_socket() -> Result<Self, NetfilterError> {
        let failed = |error| NetfilterError::system("netlink socket", error);
        let mut socket = Self::open_socket().map_err(failed)?;
        let has_owners = compiled::can_own(&mut socket).map_err(failed)?;
        let writer = has_owners.then(|| Arc::new(Mutex::new(socket)));
        Ok(Self { shared_socket: writer, ..Self::default() })
    }

    /// Opens a socket for transactions.
    pub(in crate::kernel) fn open_socket() -> io::Result<Socket> {
        let socket = Socket::open()?;
        compiled::configure_socket(&socket);
        Ok(socket)
    }

    /// Whether there is a socket that can own our table.
    pub(super) fn can_own(&self) -> bool {
        self.shared_socket.is_some()
    }

    /// Sends a batch that is not counted, with acknowledgement; through `socket` if there is no common one.
    pub(super) fn send_acknowledged(
        &self,
        batch: &mut Batch,
        socket: &mut Socket,
    ) -> io::Result<BatchOutcome> {
        self.with_socket(socket, |socket| batch.send(socket))
    }

    fn with_socket<T>(&self, other: &mut Socket, send: impl FnOnce(&mut Socket) -> T) -> T {
        match &self.shared_socket {
            // A panic leaves no half-sent batch.
            Some(writer) => send(&mut writer.lock().unwrap_or_else(PoisonError::into_inner)),
            None => send(other),
        }
    }

    /// Sends a batch of elements, through `socket` if there is no common one. Unless it is refused, it must change
    /// something, or [report](Batch::report_changes) whether it does.
    pub(in crate::kernel) fn send(
        &self,
        batch: &mut Batch,
        socket: &mut Socket,
    ) -> io::Result<BatchOutcome> {
        self.counts.started.fetch_add(1, SeqCst);
        let outcome = self.with_socket(socket, |socket| batch.send_unacknowledged(socket));
        // If the outcome is unknown, and the kernel did change something, that counts as others' change.
        let changed = outcome.as_ref().is_ok_and(BatchOutcome::changed_something);
        self.counts.changed.fetch_add(u32::from(changed), SeqCst);
        self.counts.ended.fetch_add(1, SeqCst);
        outcome
    }

    /// Number of others' transactions plus a constant; `None` while one of ours is in progress, because the kernel may
    /// or may not have counted it.
    pub(in crate::kernel) fn count_by_others(
        &self,
        socket: &mut Socket,
    ) -> io::Result<Option<u32>> {
        let CommitCounts { started, changed, ended } = &*self.counts;
        // In this order: a transaction that has ended has started.
        let over = ended.load(SeqCst);
        let begun = started.load(SeqCst);
        let generation = nft::generation(socket)?;
        let ours = changed.load(SeqCst);
        let is_certain = over == begun && started.load(SeqCst) == begun;
        Ok(is_certain.then(|| generation.wrapping_sub(ours)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise no change by others would ever be known again.
    #[test]
    fn a_transaction_that_cannot_be_sent_is_over() {
        let (commits, mut batch) = (Commits::default(), Batch::new());
        let mut socket = Socket::open().unwrap();
        socket.set_option(libc::SOL_SOCKET, libc::SO_SNDBUF, 1).unwrap();
        for _ in 0..1000 {
            batch.delete_element(c"pinholes4", &[0; 12]);
        }
        let error = commits.send(&mut batch, &mut socket).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        let CommitCounts { started, changed, ended } = &*commits.counts;
        assert_eq!([started, changed, ended].map(|count| count.load(SeqCst)), [1, 0, 1]);
    }
}
