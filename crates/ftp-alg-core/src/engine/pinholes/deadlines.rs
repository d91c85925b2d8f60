//! Deadlines of pinholes: the earliest one of each session. So there are at most as many as sessions, however often
//! these open and close pinholes.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Instant,
};

use ahash::RandomState;

/// Deadlines of owners, which are identified by number.
#[derive(Default)]
pub struct Deadlines {
    /// All deadlines that have not passed.
    queue: BinaryHeap<Reverse<(Instant, u32)>>,
    /// The earliest deadline of each owner.
    earliest: HashMap<u32, Instant, RandomState>,
}

impl Deadlines {
    /// Adds a deadline, unless the owner has an earlier one.
    pub fn add(&mut self, at: Instant, owner: u32) {
        if self.earliest.get(&owner).is_none_or(|first| at < *first) {
            self.earliest.insert(owner, at);
            self.queue.push(Reverse((at, owner)));
        }
    }

    /// Removes a deadline that is due at `now`. Returns its owner.
    pub fn take_due(&mut self, now: Instant) -> Option<u32> {
        let Reverse((at, owner)) = *self.queue.peek().filter(|Reverse((at, _))| *at <= now)?;
        self.queue.pop();
        if self.earliest.get(&owner) == Some(&at) {
            self.earliest.remove(&owner);
        }
        Some(owner)
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
    fn each_owner_has_one_deadline_however_many_are_added() {
        let (start, mut deadlines) = (Instant::now(), Deadlines::default());
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
        let (start, mut deadlines) = (Instant::now(), Deadlines::default());
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
