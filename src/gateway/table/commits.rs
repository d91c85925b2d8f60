//! Whether anyone but us has changed nf_tables since we last looked.
//!
//! The kernel counts the transactions of a network namespace (its generation), ours among them; each
//! pinhole is one. We count ours, so that the difference is the number of others', from some start.
//! Knows nothing of what a transaction changes.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use super::compiled;
use crate::gateway::{
    GatewayError,
    netlink::{
        Socket,
        nft::{self, Batch, BatchOutcome},
    },
};

/// The transactions of one network namespace that this process has made. All that makes any
/// there shares one of these.
#[derive(Clone, Debug, Default)]
pub struct Commits {
    counts: Arc<CommitCounts>,
    /// The socket by which all of them are made, if one is to own our table.
    writer: Option<Arc<Mutex<Socket>>>,
}

/// All of them wrap around, as the generation does.
#[derive(Debug, Default)]
struct CommitCounts {
    started: AtomicU32,
    changed: AtomicU32,
    ended: AtomicU32,
}

impl Commits {
    /// With one socket for all of them, so that it can own our table; the kernel takes one transaction at a time
    /// anyway. Where the kernel has no tables with an owner, each thread has its own, as in [`Commits::default`].
    pub fn through_one_socket() -> Result<Self, GatewayError> {
        let failed = |error| GatewayError::system("netlink socket", error);
        let mut socket = Socket::open().map_err(failed)?;
        compiled::prepare(&socket);
        let has_owners = compiled::can_own(&mut socket).map_err(failed)?;
        let writer = has_owners.then(|| Arc::new(Mutex::new(socket)));
        Ok(Self { writer, ..Self::default() })
    }

    /// Whether there is a socket that can own our table.
    pub(super) fn can_own(&self) -> bool {
        self.writer.is_some()
    }

    /// Sends a batch that is not counted, and is acknowledged; by `socket` if there is none for all.
    pub(super) fn send_acknowledged(
        &self,
        batch: &mut Batch,
        socket: &mut Socket,
    ) -> io::Result<BatchOutcome> {
        self.with_writer(socket, |socket| batch.send(socket))
    }

    fn with_writer<T>(&self, other: &mut Socket, send: impl FnOnce(&mut Socket) -> T) -> T {
        match &self.writer {
            // A panic leaves nothing half sent.
            Some(writer) => send(&mut writer.lock().unwrap_or_else(PoisonError::into_inner)),
            None => send(other),
        }
    }

    /// Sends, by `socket` if there is none for all, a batch of elements that, if it is not refused, changes something; or is asked to
    /// [tell](Batch::tell_changes) whether it does.
    pub(in crate::gateway) fn send(
        &self,
        batch: &mut Batch,
        socket: &mut Socket,
    ) -> io::Result<BatchOutcome> {
        self.counts.started.fetch_add(1, SeqCst);
        // Where it is not known what became of it, it never ends, and no difference is known any more.
        let outcome = self.with_writer(socket, |socket| batch.send_unacknowledged(socket))?;
        self.counts.changed.fetch_add(u32::from(outcome.changed()), SeqCst);
        self.counts.ended.fetch_add(1, SeqCst);
        Ok(outcome)
    }

    /// How many transactions were others', from a start that is always the same; `None` while one of
    /// ours is under way, as it is not known whether the kernel has counted it.
    pub(in crate::gateway) fn count_by_others(
        &self,
        socket: &mut Socket,
    ) -> io::Result<Option<u32>> {
        let CommitCounts { started, changed, ended } = &*self.counts;
        // In this order: what has ended has started.
        let over = ended.load(SeqCst);
        let begun = started.load(SeqCst);
        let generation = nft::generation(socket)?;
        let ours = changed.load(SeqCst);
        let is_certain = over == begun && started.load(SeqCst) == begun;
        Ok(is_certain.then(|| generation.wrapping_sub(ours)))
    }
}
