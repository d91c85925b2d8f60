//! Whether anyone but us has changed nf_tables since we last looked.
//!
//! The kernel counts the transactions of a network namespace (its generation), ours among them; each
//! pinhole is one. We count ours, so that the difference is the number of others', from some start.
//! Knows nothing of what a transaction changes.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use super::{
    netlink::Socket,
    nft::{self, Batch, Outcome},
};

/// The transactions of one network namespace that this process has made. All that makes any
/// there shares one of these.
#[derive(Clone, Debug, Default)]
pub struct Commits {
    counts: Arc<Counts>,
}

/// All of them wrap around, as the generation does.
#[derive(Debug, Default)]
struct Counts {
    started: AtomicU32,
    changed: AtomicU32,
    ended: AtomicU32,
}

impl Commits {
    /// Sends a batch of elements that, if it is not refused, changes something; or is asked to
    /// [tell](Batch::tell_changes) whether it does.
    pub(super) fn send(&self, batch: &mut Batch, socket: &mut Socket) -> io::Result<Outcome> {
        self.counts.started.fetch_add(1, SeqCst);
        // Where it is not known what became of it, it never ends, and no difference is known any more.
        let outcome = batch.send_unacknowledged(socket)?;
        self.counts.changed.fetch_add(u32::from(outcome.changed()), SeqCst);
        self.counts.ended.fetch_add(1, SeqCst);
        Ok(outcome)
    }

    /// How many transactions were others', from a start that is always the same; `None` while one of
    /// ours is under way, as it is not known whether the kernel has counted it.
    pub(super) fn of_others(&self, socket: &mut Socket) -> io::Result<Option<u32>> {
        let Counts { started, changed, ended } = &*self.counts;
        // In this order: what has ended has started.
        let over = ended.load(SeqCst);
        let begun = started.load(SeqCst);
        let generation = nft::generation(socket)?;
        let ours = changed.load(SeqCst);
        let is_certain = over == begun && started.load(SeqCst) == begun;
        Ok(is_certain.then(|| generation.wrapping_sub(ours)))
    }
}
