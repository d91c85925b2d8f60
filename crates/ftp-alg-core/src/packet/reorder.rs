//! The reorder queue: segments that arrived before their predecessors, in the order of their sequence numbers.
//!
//! Knows nothing of what its segments are, nor of time: whoever has a queue says whose turn it is.

use super::Seq;

/// A segment that waits.
#[derive(Clone, Debug)]
pub struct Waiting<T, F = ()> {
    /// Its flow.
    pub flow: F,
    /// Its sequence number.
    pub seq: Seq,
    /// The sequence number behind it.
    pub end: Seq,
    /// The segment itself.
    pub item: T,
}

/// How things stand for a segment that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Its predecessors have not come.
    Waits,
    /// It is the next.
    Due,
    /// Something else came at its sequence number.
    Over,
}

impl Turn {
    /// Of a segment at `seq` where `next` comes next.
    pub fn at(seq: Seq, next: Seq) -> Self {
        if seq == next {
            Self::Due
        } else if seq.is_after(next) {
            Self::Waits
        } else {
            Self::Over
        }
    }
}

/// Segments that do not wait any longer.
#[derive(Debug)]
pub struct Taken<T, F = ()> {
    /// Those that are due, with those that follow them without a gap, in order.
    pub due: Vec<Waiting<T, F>>,
    /// Those that have waited for too long.
    pub late: Vec<Waiting<T, F>>,
    /// Those that overlap with what came.
    pub over: Vec<Waiting<T, F>>,
}

/// At most `COUNT` segments of `BYTES` bytes together, those of a flow in the order of their sequence numbers.
#[derive(Clone, Debug)]
pub struct ReorderQueue<T, const COUNT: usize, const BYTES: usize, F = ()> {
    segments: Vec<Waiting<T, F>>,
}

impl<T: AsRef<[u8]>, const COUNT: usize, const BYTES: usize, F: PartialEq>
    ReorderQueue<T, COUNT, BYTES, F>
{
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// What waits.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Waiting<T, F>> {
        self.segments.iter()
    }

    /// Whether a segment of `flow` waits that starts at `seq`.
    pub fn starts_at(&self, flow: &F, seq: Seq) -> bool {
        self.iter().any(|other| other.flow == *flow && other.seq == seq)
    }

    /// Adds a segment behind those of its flow that do not start after it. Whether there was room.
    pub fn insert(&mut self, segment: Waiting<T, F>) -> bool {
        let bytes: usize = self.iter().map(|other| other.item.as_ref().len()).sum();
        if self.segments.len() >= COUNT || bytes + segment.item.as_ref().len() > BYTES {
            return false;
        }
        let is_later =
            |other: &Waiting<T, F>| other.flow == segment.flow && other.seq.is_after(segment.seq);
        let at = self.segments.iter().position(is_later).unwrap_or(self.segments.len());
        self.segments.insert(at, segment);
        true
    }

    /// Takes out the first segment.
    pub fn take_first(&mut self) -> Option<Waiting<T, F>> {
        (!self.is_empty()).then(|| self.segments.remove(0))
    }

    /// Takes out a segment that starts at `next` or before it: the one that reaches furthest.
    pub fn take_due(&mut self, next: Seq) -> Option<Waiting<T, F>> {
        let due = self.iter().enumerate().filter(|(_, segment)| !segment.seq.is_after(next));
        let (at, _) = due.max_by_key(|(_, segment)| segment.end.distance_from(next))?;
        Some(self.segments.remove(at))
    }

    /// Takes out all that need not wait, by the `turn` of those that follow none that is due, and that are not to wait
    /// any longer.
    pub fn take(
        &mut self,
        mut turn: impl FnMut(&T) -> Turn,
        is_late: impl Fn(&T) -> bool,
    ) -> Taken<T, F> {
        let mut taken =
            Taken { due: Vec::<Waiting<T, F>>::new(), late: Vec::new(), over: Vec::new() };
        for segment in std::mem::take(&mut self.segments) {
            let turn = match taken.due.last() {
                Some(last) if last.flow == segment.flow => Turn::at(segment.seq, last.end),
                _ => turn(&segment.item),
            };
            match turn {
                Turn::Due => taken.due.push(segment),
                Turn::Waits if is_late(&segment.item) => taken.late.push(segment),
                Turn::Waits => self.segments.push(segment),
                Turn::Over => taken.over.push(segment),
            }
        }
        taken
    }
}

impl<T, const COUNT: usize, const BYTES: usize, F> Default for ReorderQueue<T, COUNT, BYTES, F> {
    fn default() -> Self {
        Self { segments: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Queue = ReorderQueue<Vec<u8>, 8, 45, u8>;

    /// Five bytes of `flow` at `seq`.
    fn insert(queue: &mut Queue, flow: u8, seq: u32) -> bool {
        let (seq, end) = (Seq(seq), Seq(seq) + 5);
        queue.insert(Waiting { flow, seq, end, item: vec![flow; 5] })
    }

    fn numbers(segments: &[Waiting<Vec<u8>, u8>]) -> Vec<u32> {
        segments.iter().map(|segment| segment.seq.0).collect()
    }

    #[test]
    fn segments_without_a_gap_are_due_together_in_order() {
        let mut queue = Queue::default();
        // Numbers go round; 30 is past a gap.
        for seq in [5, 0, u32::MAX - 4, 30] {
            assert!(insert(&mut queue, 1, seq) && insert(&mut queue, 2, seq));
        }
        let mut take = |next: u32| {
            let mut is_first = true;
            let turn = |item: &Vec<u8>| match item[0] {
                1 if std::mem::take(&mut is_first) => Turn::at(Seq(u32::MAX - 4), Seq(next)),
                1 => Turn::at(Seq(30), Seq(next)),
                _ => Turn::Waits,
            };
            queue.take(turn, |_| false)
        };
        assert!(take(u32::MAX - 9).due.is_empty());
        let Taken { due, over, .. } = take(u32::MAX - 4);
        assert_eq!((numbers(&due), numbers(&over)), (vec![u32::MAX - 4, 0, 5], vec![]));
        // What came has another boundary than what waits.
        assert_eq!(numbers(&take(31).over), [30]);
        assert_eq!(numbers(&queue.take(|_| Turn::Due, |_| false).due), [u32::MAX - 4, 0, 5]);
        assert_eq!(numbers(&queue.take(|_| Turn::Waits, |_| true).late), [30]);
    }

    #[test]
    fn a_queue_is_full_by_count_or_by_bytes() {
        let mut queue = Queue::default();
        assert!((0..8).all(|seq| insert(&mut queue, 1, 10 * seq)));
        assert!(!insert(&mut queue, 1, 100) && queue.starts_at(&1, Seq(70)));
        assert_eq!(queue.take_due(Seq(12)).unwrap().seq, Seq(10));
        let (seq, end) = (Seq(100), Seq(111));
        assert!(!queue.insert(Waiting { flow: 1, seq, end, item: vec![0; 11] }));
        assert_eq!(queue.iter().len(), 7);
    }

    #[test]
    fn of_those_due_the_one_that_reaches_furthest_is_first() {
        let mut queue = ReorderQueue::<Vec<u8>, 8, 99>::default();
        for (seq, length) in [(5, 3), (7, 9), (8, 2), (20, 30)] {
            let (seq, end) = (Seq(seq), Seq(seq) + length);
            assert!(queue.insert(Waiting { flow: (), seq, end, item: vec![0; 1] }));
        }
        assert_eq!(queue.take_due(Seq(8)).unwrap().seq, Seq(7));
        assert!(queue.take_due(Seq(4)).is_none());
    }
}
