//! The commands that wait for their replies, oldest first, as runs of one kind.

use serde::{Deserialize, Serialize};

use super::{
    Reason,
    few::{self, Few},
};

/// What a command still waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Awaited {
    User,
    Login,
    Passive,
    /// The answer to a `PORT` or `EPRT` that opened a pinhole.
    Announcement,
    EpsvAll,
    Reinitialize,
    Auth,
    Transfer,
    /// The answer to a command that was crossed out.
    Refused(Reason),
    Other,
    /// Of these only the number is known.
    Forgotten,
}

/// How often in a row the kind of the unanswered commands may change. Of more, what the oldest were is
/// forgotten, but not how many: each reply is still that to its command, and replies to those
/// mean nothing.
pub const MAX_AWAITED: usize = 32;

/// So many commands of one kind.
type Run = (Awaited, u32);

/// The unanswered commands. Mostly there is one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Unanswered {
    oldest: Option<Run>,
    /// Empty if there is no oldest.
    later: Few<Run>,
}

impl Unanswered {
    /// How many runs there are.
    pub fn len(&self) -> usize {
        usize::from(self.oldest.is_some()) + self.later.len()
    }

    /// How many commands there are.
    pub fn count(&self) -> u32 {
        let runs = self.oldest.iter().chain(self.later.iter());
        runs.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Whether a command of this kind is among them.
    pub fn has(&self, which: Awaited) -> bool {
        self.kinds().any(|kind| kind == which)
    }

    /// What the oldest command waits for.
    pub fn oldest(&self) -> Option<Awaited> {
        self.oldest.map(|(awaited, _)| awaited)
    }

    /// One more command. Whether that was too many, and of the oldest only the number is known now.
    pub fn push(&mut self, awaited: Awaited) -> bool {
        let Some(oldest) = &mut self.oldest else {
            self.oldest = Some((awaited, 1));
            return false;
        };
        let (last, count) = self.later.last_mut().unwrap_or(oldest);
        if *last == awaited {
            *count = count.saturating_add(1);
            return false;
        }
        let is_full = self.len() >= MAX_AWAITED;
        if is_full {
            let first = self.oldest.take().map_or(0, |(_, count)| count);
            self.next_is_oldest();
            if let Some((kind, count)) = &mut self.oldest {
                (*kind, *count) = (Awaited::Forgotten, count.saturating_add(first));
            }
        }
        few::push(&mut self.later, (awaited, 1));
        is_full
    }

    /// Takes out the oldest command.
    pub fn pop(&mut self) -> Option<Awaited> {
        let (awaited, count) = self.oldest.as_mut()?;
        let awaited = *awaited;
        *count -= 1;
        if *count == 0 {
            self.next_is_oldest();
        }
        Some(awaited)
    }

    /// Drops what stands before the first `which`: its replies will not come any more. Whether those that
    /// are forgotten will come is not known.
    pub fn skip_to(&mut self, which: Awaited) -> bool {
        self.skip_to_any(&[which])
    }

    /// The same for the first of any of `which`.
    pub fn skip_to_any(&mut self, which: &[Awaited]) -> bool {
        let mut kinds = self.kinds().enumerate();
        let found = kinds.find(|(_, kind)| which.contains(kind) || *kind == Awaited::Forgotten);
        let Some((at, _)) = found.filter(|(_, kind)| which.contains(kind)) else { return false };
        drop(kinds);
        if at > 0 {
            few::drop_front(&mut self.later, at - 1);
            self.next_is_oldest();
        }
        true
    }

    fn kinds(&self) -> impl Iterator<Item = Awaited> {
        self.oldest.iter().chain(self.later.iter()).map(|(kind, _)| *kind)
    }

    fn next_is_oldest(&mut self) {
        self.oldest = self.later.first().copied();
        if self.oldest.is_some() {
            few::drop_front(&mut self.later, 1);
        }
    }
}
