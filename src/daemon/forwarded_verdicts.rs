//! Verdicts that one worker forwards to another. The kernel takes a verdict only from the reader of the packet's queue.
//! If processors choose the queue, a packet that waited in an engine may be released by a worker of another queue.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use ftp_alg_core::engine::{Released, Token, Verdict};

use super::shard::lock;
use crate::kernel::{
    NetfilterError, RuleParameters,
    queue::{QueueVerdict, Verdicts, Waker},
};

/// Gives the verdict on the packet of `token`. With [`Verdict::Replace`], `replacement` is forwarded in its place. The
/// verdict takes effect when `verdicts` are flushed. Passes errors to `report`: they concern no other packet.
pub(super) fn give_verdict(
    verdicts: &mut Verdicts<'_>,
    parameters: &RuleParameters,
    token: Token,
    verdict: &Verdict,
    replacement: &[u8],
    report: impl Fn(&NetfilterError),
) {
    let decision = match verdict {
        Verdict::Accept => QueueVerdict::Accept,
        Verdict::Drop(_) => QueueVerdict::Drop,
        Verdict::Replace(_) => QueueVerdict::Replace(replacement),
    };
    let mark = parameters.clear_own_mark_bits(token.mark);
    let given = verdicts.verdict_with_mark(token.id, decision, mark);
    let flushed = if verdicts.is_full() { verdicts.flush() } else { Ok(()) };
    [given, flushed].iter().filter_map(|done| done.as_ref().err()).for_each(report);
}

/// A verdict, with the packet's replacement.
#[derive(Debug)]
pub(super) struct ForwardedVerdict {
    token: Token,
    verdict: Verdict,
    replacement: Vec<u8>,
}

impl ForwardedVerdict {
    /// Copies the verdict, and its replacement from `replacements`.
    pub(super) fn from_released(released: &Released, replacements: &[u8]) -> Self {
        let Released { token, verdict, .. } = released;
        Self {
            token: *token,
            verdict: verdict.clone(),
            replacement: verdict.replacement(replacements).to_vec(),
        }
    }
}

/// The verdicts for the worker of one queue.
#[derive(Debug, Default)]
pub(super) struct ForwardedVerdicts {
    inner: Mutex<Inner>,
    has_verdicts: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    verdicts: Vec<ForwardedVerdict>,
    /// Wakes the worker.
    waker: Option<Waker>,
}

impl ForwardedVerdicts {
    /// Sets the waker of the worker.
    pub(super) fn set_waker(&self, waker: Waker) {
        lock(&self.inner).waker = Some(waker);
    }

    /// Adds a verdict, and wakes the worker.
    pub(super) fn push(&self, verdict: ForwardedVerdict) {
        let mut inner = lock(&self.inner);
        inner.verdicts.push(verdict);
        self.has_verdicts.store(true, Ordering::Release);
        if let Some(waker) = &inner.waker {
            waker.wake();
        }
    }

    /// Gives all forwarded verdicts. Passes errors to `report`.
    pub(super) fn give_all(
        &self,
        mut verdicts: Verdicts<'_>,
        parameters: &RuleParameters,
        report: impl Fn(&NetfilterError),
    ) {
        if !self.has_verdicts.swap(false, Ordering::Acquire) {
            return;
        }
        let forwarded = std::mem::take(&mut lock(&self.inner).verdicts);
        for ForwardedVerdict { token, verdict, replacement } in forwarded {
            give_verdict(&mut verdicts, parameters, token, &verdict, &replacement, &report);
        }
        verdicts.flush().unwrap_or_else(|error| report(&error));
    }
}
