//! When sessions must be looked at: their pinholes, watches and pending transfers.
//!
//! There is one deadline for each table slot, the earliest. When it is due, the session is looked at as a whole, and its
//! next deadline added. So there are at most as many deadlines as sessions, whatever peers do.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Instant,
};

use ahash::RandomState;

/// The earliest deadline of each table slot. The session there may be another one by then.
#[derive(Default)]
pub struct Timers {
    /// All deadlines that have not passed.
    queue: BinaryHeap<Reverse<(Instant, u32)>>,
    /// By slot.
    earliest: HashMap<u32, Instant, RandomState>,
}

impl Timers {
    /// Adds a deadline, unless the slot has an earlier one.
    pub fn add(&mut self, at: Instant, slot: u32) {
        if self.earliest.get(&slot).is_none_or(|first| at < *first) {
            self.earliest.insert(slot, at);
            self.queue.push(Reverse((at, slot)));
        }
    }

    /// Removes a deadline that is due at `now`. Returns its slot.
    pub fn take_due(&mut self, now: Instant) -> Option<u32> {
        let Reverse((at, slot)) = *self.queue.peek().filter(|Reverse((at, _))| *at <= now)?;
        self.queue.pop();
        if self.earliest.get(&slot) == Some(&at) {
            self.earliest.remove(&slot);
        }
        Some(slot)
    }

    /// The next deadline.
    pub fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_slot_has_one_deadline_however_many_are_added() {
        let (start, mut deadlines) = (Instant::now(), Timers::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        for second in 0..10_000 {
            deadlines.add(after(30 + second), (second % 4) as u32);
        }
        assert_eq!((deadlines.queue.len(), deadlines.earliest.len()), (4, 4));
        assert_eq!(deadlines.next(), Some(after(30)));
        assert_eq!(deadlines.take_due(after(29)), None);
        let due = [31, 31, 40, 40].map(|second| deadlines.take_due(after(second)));
        assert_eq!(due, [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!((deadlines.next(), deadlines.earliest.len()), (None, 0));
    }

    #[test]
    fn a_later_deadline_remains_after_an_earlier_one() {
        let (start, mut deadlines) = (Instant::now(), Timers::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        deadlines.add(after(30), 7);
        deadlines.add(after(10), 7); // lifetimes were shortened
        assert_eq!(deadlines.take_due(after(10)), Some(7));
        deadlines.add(after(40), 7);
        assert_eq!(deadlines.take_due(after(35)), Some(7));
        assert_eq!(deadlines.take_due(after(40)), Some(7));
        assert_eq!(deadlines.take_due(after(100)), None);
    }
}
