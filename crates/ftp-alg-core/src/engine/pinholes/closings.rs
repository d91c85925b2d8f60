//! Pinholes that the kernel is to close, until it has.
//!
//! | from | by | to |
//! | --- | --- | --- |
//! | | [`push`](Closings::push) | waiting |
//! | waiting | its [condition](Condition) does not hold any more | gone |
//! | waiting | the kernel closed it, alone or with an opening | gone; its port is free |
//! | waiting | the kernel failed | failed; gone at once if it is [`Always`](Condition::Always) |
//! | failed | [`requeue`](Closings::requeue), once a second | waiting |
//! | failed | the [last retry](MAX_RETRIES) failed | gone; its port is free, and the pinhole open until it expires |

use ahash::AHashMap;

use super::ports::{PortTable, Ports};
use crate::engine::{Closing, InstalledIn, Kernel, KernelError, Opening, PinholeEnds};

/// How often a failed closing is tried again.
const MAX_RETRIES: u32 = 10;

/// The closings of one shard.
#[derive(Default)]
pub(super) struct Closings {
    waiting: Vec<Waiting>,
    failed: Vec<Waiting>,
    /// Whether the shard is that of the restored sessions. Another shard may be about to use their source translations.
    pub(super) is_restored: bool,
}

/// A closing that the kernel has not carried out.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    closing: Closing,
    condition: Condition,
    /// How often the kernel failed to close it.
    failures: u32,
}

/// When a closing is still due.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition {
    Always,
    /// While its port is reserved for this serial number, and no session holds it.
    PortOf(u64),
    /// While the rules have no pinhole with its ends.
    NotInRules,
}

impl Waiting {
    fn is_due(&self, ports: &PortTable) -> bool {
        match (self.condition, self.closing.ends()) {
            (Condition::PortOf(serial), Some(ends)) => {
                ports.get(&ends).is_some_and(|port| port.serial == serial && !port.is_held)
            }
            (Condition::NotInRules, Some(ends)) => {
                ports.get(&ends).is_none_or(|port| port.installed_in != InstalledIn::Rules)
            }
            _ => true,
        }
    }

    /// Frees its port.
    fn free(&self, ports: &mut PortTable) {
        if let (Condition::PortOf(serial), Some(ends)) = (self.condition, self.closing.ends()) {
            ports.remove(&ends, serial);
        }
    }
}

impl Closings {
    pub(super) fn push(&mut self, closing: Closing, condition: Condition) {
        self.waiting.push(Waiting { closing, condition, failures: 0 });
    }

    /// Requeues failed closings.
    pub(super) fn requeue(&mut self) {
        self.waiting.append(&mut self.failed);
    }

    /// Number of waiting ones.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether the kernel may carry out the closings after `opening`.
    pub(super) fn may_follow(&self, opening: &Opening, kernel: &dyn Kernel) -> bool {
        let key = opening.ends.key();
        let has_its_ends =
            |one: &Waiting| one.closing.ends().is_some_and(|closed| closed.key() == key);
        self.waiting.is_empty()
            || (kernel.uses_expectations() && !self.waiting.iter().any(has_its_ends))
    }

    /// Carries out the due closings by this `request` to the kernel, and frees the ports of the closed pinholes.
    pub(super) fn carry_out(
        &mut self,
        ports: &Ports,
        request: impl FnOnce(&[Closing]) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let due = self.take_due(&ports.lock());
        let updated = request(&due);
        let has_failed = matches!(updated, Err(KernelError::NotClosed(_)));
        let mut ports = ports.lock();
        for one in self.waiting.drain(..) {
            if !has_failed || one.failures >= MAX_RETRIES {
                one.free(&mut ports);
            } else if !matches!(one.condition, Condition::Always) {
                self.failed.push(Waiting { failures: one.failures + 1, ..one });
            }
        }
        updated
    }

    /// Forgets the waiting closings that are not due, and returns the others for the kernel. Source translations that
    /// another open pinhole shares are left out.
    pub(super) fn take_due(&mut self, ports: &PortTable) -> Vec<Closing> {
        self.waiting.retain(|one| one.is_due(ports));
        // Number of closings with this initiator and target so far.
        let mut closed = AHashMap::<_, u32>::new();
        let of_kernel = |one: &Waiting| {
            let Closing::Rules(ends) = one.closing else { return one.closing };
            let is_own = ports.get(&ends).is_some_and(|port| port.ends.target == ends.target);
            let closed = closed.entry((ends.initiator, ends.target)).or_default();
            let is_shared =
                self.is_restored || ports.sharing_source(&ends) > *closed + u32::from(is_own);
            *closed += u32::from(matches!(one.condition, Condition::PortOf(_)));
            let source = if is_shared { ends.initiator } else { ends.source };
            Closing::Rules(PinholeEnds { source, ..ends })
        };
        self.waiting.iter().map(of_kernel).collect()
    }
}
