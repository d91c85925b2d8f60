//! The deadlines of sessions: of their pinholes, watches and pending transfers.
//!
//! There is one deadline for each table slot, the earliest. When it is due, the session is looked at as a whole, and its
//! next deadline added. So there are at most as many deadlines as sessions, whatever peers do.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use ahash::RandomState;

/// The earliest deadline of each table slot. The session there may be another one by then.
#[derive(Default)]
pub struct Timers {
    queue: BTreeSet<(Instant, u32)>,
    by_slot: HashMap<u32, Instant, RandomState>,
}

impl Timers {
    /// Adds a deadline, unless the slot has an earlier one. Replaces a later one.
    pub fn add(&mut self, at: Instant, slot: u32) {
        if self.by_slot.get(&slot).is_none_or(|known| at < *known) {
            let later = self.by_slot.insert(slot, at);
            later.map(|later| self.queue.remove(&(later, slot)));
            self.queue.insert((at, slot));
        }
    }

    /// Removes a deadline that is due at `now`. Returns its slot.
    pub fn take_due(&mut self, now: Instant) -> Option<u32> {
        self.queue.first().filter(|(at, _)| *at <= now)?;
        let (_, slot) = self.queue.pop_first()?;
        self.by_slot.remove(&slot);
        Some(slot)
    }

    /// The next deadline.
    pub fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_slot_has_one_deadline_the_earliest_however_many_are_added() {
        let (start, mut timers) = (Instant::now(), Timers::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        for second in (0..10_000).rev().chain(0..100) {
            timers.add(after(30 + second), (second % 4) as u32);
            assert!(timers.queue.len() <= 4 && timers.by_slot.len() <= 4);
        }
        assert_eq!(timers.next(), Some(after(30)));
        assert_eq!(timers.take_due(after(29)), None);
        let due = [31, 31, 40, 40, 50].map(|second| timers.take_due(after(second)));
        assert_eq!(due, [Some(0), Some(1), Some(2), Some(3), None]);
        assert_eq!((timers.next(), timers.by_slot.len()), (None, 0));
    }
}
