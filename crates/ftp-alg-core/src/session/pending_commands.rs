//! Pending commands, oldest first, as runs of one kind.

use serde::{Deserialize, Serialize};

use super::{
    RefusalReason,
    compact::{self, CompactVec},
};
use crate::ftp::Reply;

/// The reply that a pending command expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PendingKind {
    User,
    Login,
    Passive,
    /// The reply to a `PORT` or `EPRT` that opened a pinhole.
    Announcement,
    EpsvAll,
    Reinitialize,
    Auth,
    Transfer,
    /// An unknown command before any known one. If the server does not refuse it before the next command, it is of
    /// another protocol.
    FirstUnknown,
    /// The end of the server's greeting.
    Greeting,
    /// The reply to a crossed out command.
    CrossedOut(RefusalReason),
    /// A reply that may show files.
    Listing,
    Other,
    /// The kind is no longer known, only the number of commands.
    Forgotten,
}

/// Whether `reply` may answer a command of this kind. Servers send 225, 226 and 426 when a transfer has ended, however
/// often, and some send a success before the reply to `PASV`.
pub fn may_answer(reply: Reply, kind: PendingKind, before_transfers: bool) -> bool {
    match kind {
        PendingKind::User | PendingKind::Login if before_transfers => true,
        PendingKind::Transfer
        | PendingKind::Listing
        | PendingKind::Other
        | PendingKind::Forgotten => true,
        _ if matches!(reply.code, 225 | 226 | 426) => false,
        PendingKind::Passive => reply.is_failure(),
        _ => true,
    }
}

/// Limit of runs of one kind. Beyond it the kinds of the oldest commands are forgotten, but not their number. Replies
/// still match their commands, and replies to forgotten commands have no effect.
pub const MAX_RUNS: usize = 32;

/// A number of consecutive commands of one kind.
type Run = (PendingKind, u32);

/// The pending commands. Usually there is one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PendingCommands {
    oldest: Option<Run>,
    /// Empty if `oldest` is `None`.
    later: CompactVec<Run>,
}

impl PendingCommands {
    /// Number of runs.
    pub fn len(&self) -> usize {
        usize::from(self.oldest.is_some()) + self.later.len()
    }

    /// Whether no command is pending.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.oldest.is_none()
    }

    /// Number of commands.
    pub fn count(&self) -> u32 {
        let runs = self.oldest.iter().chain(self.later.iter());
        runs.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Whether a command of this kind is pending.
    pub fn contains(&self, which: PendingKind) -> bool {
        self.kinds().any(|kind| kind == which)
    }

    /// Whether no command of another kind is pending.
    pub fn are_all_of(&self, which: &[PendingKind]) -> bool {
        self.kinds().all(|kind| which.contains(&kind))
    }

    /// Whether the oldest command is the only one of this kind.
    pub fn begins_with_only(&self, which: PendingKind) -> bool {
        self.oldest == Some((which, 1)) && !self.has_behind_another(which)
    }

    /// Whether a command of this kind waits behind one of another.
    #[inline]
    pub fn has_behind_another(&self, which: PendingKind) -> bool {
        // Runs of one kind are one.
        self.later.iter().any(|(kind, _)| *kind == which)
    }

    /// The kind of the oldest command.
    pub fn oldest(&self) -> Option<PendingKind> {
        self.oldest.map(|(kind, _)| kind)
    }

    /// Adds a command. Returns whether the limit was exceeded, so that the oldest kinds were forgotten.
    pub fn push(&mut self, kind: PendingKind) -> bool {
        let Some(oldest) = &mut self.oldest else {
            self.oldest = Some((kind, 1));
            return false;
        };
        let (last, count) = self.later.last_mut().unwrap_or(oldest);
        if *last == kind {
            *count = count.saturating_add(1);
            return false;
        }
        let is_full = self.len() >= MAX_RUNS;
        if is_full {
            let first = self.oldest.take().map_or(0, |(_, count)| count);
            self.promote_next();
            if let Some((kind, count)) = &mut self.oldest {
                (*kind, *count) = (PendingKind::Forgotten, count.saturating_add(first));
            }
        }
        compact::push(&mut self.later, (kind, 1));
        is_full
    }

    /// Removes the oldest command.
    pub fn pop(&mut self) -> Option<PendingKind> {
        let (kind, count) = self.oldest.as_mut()?;
        let kind = *kind;
        *count -= 1;
        if *count == 0 {
            self.promote_next();
        }
        Some(kind)
    }

    /// Removes the first command for which `is_answered` holds, and those before it, because their replies will not
    /// come any more. Leaves all if there is none.
    pub fn pop_first(&mut self, is_answered: impl Fn(PendingKind) -> bool) -> Option<PendingKind> {
        let at = self.kinds().position(is_answered)?;
        self.drop_runs(at);
        self.pop()
    }

    /// Removes a command of another kind than a transfer's from behind the oldest, a transfer's, which goes on. Returns
    /// `false` if there is none.
    pub fn pop_during_transfer(&mut self) -> bool {
        let is_other = |kind| matches!(kind, PendingKind::Listing | PendingKind::Other);
        let later = self.later.iter().position(|(kind, _)| is_other(*kind));
        let Some(at) = later.filter(|_| self.oldest() == Some(PendingKind::Transfer)) else {
            return false;
        };
        self.later[at].1 -= 1;
        if self.later[at].1 == 0 {
            self.later.remove(at);
        }
        true
    }

    /// Removes the commands before the first `which`, because their replies will not come any more. Returns `false` if
    /// there is none, or if forgotten commands precede it.
    pub fn drop_before(&mut self, which: PendingKind) -> bool {
        self.drop_before_any(&[which])
    }

    /// As [`drop_before`](Self::drop_before), for the first of several kinds.
    pub fn drop_before_any(&mut self, which: &[PendingKind]) -> bool {
        let mut kinds = self.kinds().enumerate();
        let found = kinds.find(|(_, kind)| which.contains(kind) || *kind == PendingKind::Forgotten);
        let Some((at, _)) = found.filter(|(_, kind)| which.contains(kind)) else { return false };
        drop(kinds);
        self.drop_runs(at);
        true
    }

    /// Removes the oldest `count` runs.
    fn drop_runs(&mut self, count: usize) {
        if count > 0 {
            compact::drop_front(&mut self.later, count - 1);
            self.promote_next();
        }
    }

    fn kinds(&self) -> impl Iterator<Item = PendingKind> {
        self.oldest.iter().chain(self.later.iter()).map(|(kind, _)| *kind)
    }

    fn promote_next(&mut self) {
        self.oldest = self.later.first().copied();
        if self.oldest.is_some() {
            compact::drop_front(&mut self.later, 1);
        }
    }
}
