//! Verdicts that one worker forwards to another. The kernel takes a verdict only from the reader of the packet's queue.
//! If processors choose the queue, a packet that waited in an engine may be released by a worker of another queue.

use std::sync::{
    Mutex,
    mpsc::{self, Receiver, Sender},
};

use ftp_alg_core::engine::{Released, Token, Verdict};

use super::shard::lock;
use crate::kernel::{
    NetfilterError, RuleParameters,
    queue::{Queue, QueueVerdict, Verdicts, Waker},
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
    let given = verdicts.verdict(token.id, decision, mark);
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

/// Sends verdicts to the worker of one queue.
pub(super) struct VerdictSender {
    verdicts: Sender<ForwardedVerdict>,
    waker: Mutex<Waker>,
}

impl VerdictSender {
    /// The sender for the worker of `queue`, and that worker's receiver.
    pub(super) fn channel(
        queue: &Queue,
    ) -> Result<(Self, Receiver<ForwardedVerdict>), NetfilterError> {
        let (verdicts, received) = mpsc::channel();
        Ok((Self { verdicts, waker: Mutex::new(queue.waker()?) }, received))
    }

    /// Sends a verdict, and wakes the worker.
    pub(super) fn send(&self, verdict: ForwardedVerdict) {
        // A worker that has ended gives no more verdicts.
        let _ = self.verdicts.send(verdict);
        self.wake();
    }

    /// Wakes the worker.
    pub(super) fn wake(&self) {
        lock(&self.waker).wake();
    }
}

/// Gives all verdicts that were forwarded. Passes errors to `report`.
pub(super) fn give_forwarded(
    forwarded: &Receiver<ForwardedVerdict>,
    mut verdicts: Verdicts<'_>,
    parameters: &RuleParameters,
    report: impl Fn(&NetfilterError),
) {
    for ForwardedVerdict { token, verdict, replacement } in forwarded.try_iter() {
        give_verdict(&mut verdicts, parameters, token, &verdict, &replacement, &report);
    }
    verdicts.flush().unwrap_or_else(|error| report(&error));
}
