//! Verdicts that one worker leaves for another, as the kernel takes a verdict only from the queue's own reader: those on
//! packets that waited in an engine, where each packet comes by the queue of the processor that it is on.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use ftp_alg_core::engine::{Released, Token, Verdict};

use super::shard::lock;
use crate::gateway::{Decision, GatewayError, RuleParameters, Verdicts, Waker};

/// Gives the verdict on the packet of `token`; if it is replaced, `replacement` goes on. It takes effect when `verdicts` are flushed.
pub(super) fn give_verdict(
    verdicts: &mut Verdicts<'_>,
    parameters: &RuleParameters,
    token: Token,
    verdict: &Verdict,
    replacement: &[u8],
) -> Result<(), GatewayError> {
    let decision = match verdict {
        Verdict::Accept => Decision::Accept,
        Verdict::Drop(_) => Decision::Drop,
        Verdict::Replace(_) => Decision::Replace(replacement),
    };
    verdicts.verdict_with(token.id, decision, parameters.mark_behind(token.mark))
}

/// A verdict.
#[derive(Debug)]
pub(super) struct ForwardedVerdict {
    token: Token,
    verdict: Verdict,
    replacement: Vec<u8>,
}

impl ForwardedVerdict {
    /// A verdict whose packet, if it is replaced, is among `replacements`.
    pub(super) fn from_released(released: &Released, replacements: &[u8]) -> Self {
        let Released { token, verdict, .. } = released;
        Self {
            token: *token,
            verdict: verdict.clone(),
            replacement: verdict.replacement(replacements).to_vec(),
        }
    }
}

/// Where a worker finds them.
#[derive(Debug, Default)]
pub(super) struct ForwardedVerdicts {
    content: Mutex<Content>,
    has_verdicts: AtomicBool,
}

#[derive(Debug, Default)]
struct Content {
    verdicts: Vec<ForwardedVerdict>,
    /// What wakes the worker.
    waker: Option<Waker>,
}

impl ForwardedVerdicts {
    /// From now on `waker` wakes its worker.
    pub(super) fn set_waker(&self, waker: Waker) {
        lock(&self.content).waker = Some(waker);
    }

    /// Leaves a verdict, and wakes the worker.
    pub(super) fn push(&self, mail: ForwardedVerdict) {
        let mut content = lock(&self.content);
        content.verdicts.push(mail);
        self.has_verdicts.store(true, Ordering::Release);
        if let Some(waker) = &content.waker {
            waker.wake();
        }
    }

    /// Gives the verdicts that were left.
    pub(super) fn give_all(
        &self,
        mut verdicts: Verdicts<'_>,
        parameters: &RuleParameters,
    ) -> Result<(), GatewayError> {
        if !self.has_verdicts.swap(false, Ordering::Acquire) {
            return Ok(());
        }
        let mail = std::mem::take(&mut lock(&self.content).verdicts);
        for ForwardedVerdict { token, verdict, replacement } in mail {
            give_verdict(&mut verdicts, parameters, token, &verdict, &replacement)?;
        }
        verdicts.flush()
    }
}
