//! The reorder queue: segments that arrived before their predecessors, in the order of their sequence numbers.
//!
//! It knows nothing of the content of segments, nor of time: the caller decides when an item leaves the queue.

use super::Seq;

/// A segment in the queue.
#[derive(Clone, Debug)]
pub struct ReorderItem<T, F = ()> {
    /// The flow it belongs to.
    pub flow: F,
    /// Sequence number of its first byte.
    pub seq: Seq,
    /// Sequence number after its last byte.
    pub end: Seq,
    /// The caller's data.
    pub item: T,
}

/// Whether a queued segment can leave the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// An earlier segment is still missing, or there is no room for this one.
    NotYet,
    /// It is the next expected segment.
    Due,
    /// Other data with its sequence number has arrived.
    Overlaps,
}

impl Readiness {
    /// The state of a segment at `seq` if `next` is the next expected sequence number.
    pub fn from_seqs(seq: Seq, next: Seq) -> Self {
        if seq == next {
            Self::Due
        } else if seq.is_after(next) {
            Self::NotYet
        } else {
            Self::Overlaps
        }
    }
}

/// The segments that left the queue.
#[derive(Debug)]
pub struct ReorderResult<T, F = ()> {
    /// Segments that are next in order, each followed by those that continue it without a gap.
    pub due: Vec<ReorderItem<T, F>>,
    /// Segments that have waited too long.
    pub late: Vec<ReorderItem<T, F>>,
    /// Segments that overlap data that has arrived.
    pub over: Vec<ReorderItem<T, F>>,
}

/// A queue of at most `COUNT` segments and `BYTES` bytes. The segments of a flow are in the order of their sequence
/// numbers.
#[derive(Clone, Debug)]
pub struct ReorderQueue<T, const COUNT: usize, const BYTES: usize, F = ()> {
    segments: Vec<ReorderItem<T, F>>,
}

impl<T: AsRef<[u8]>, const COUNT: usize, const BYTES: usize, F: PartialEq>
    ReorderQueue<T, COUNT, BYTES, F>
{
    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The queued segments.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &ReorderItem<T, F>> {
        self.segments.iter()
    }

    /// Whether a queued segment of `flow` starts at `seq`.
    pub fn starts_at(&self, flow: &F, seq: Seq) -> bool {
        self.iter().any(|other| other.flow == *flow && other.seq == seq)
    }

    /// Inserts a segment after those of its flow that start at or before it. Returns whether there was room.
    pub fn insert(&mut self, segment: ReorderItem<T, F>) -> bool {
        let bytes: usize = self.iter().map(|other| other.item.as_ref().len()).sum();
        if self.segments.len() >= COUNT || bytes + segment.item.as_ref().len() > BYTES {
            return false;
        }
        let is_later = |other: &ReorderItem<T, F>| {
            other.flow == segment.flow && other.seq.is_after(segment.seq)
        };
        let at = self.segments.iter().position(is_later).unwrap_or(self.segments.len());
        self.segments.insert(at, segment);
        true
    }

    /// Removes the first segment.
    pub fn take_first(&mut self) -> Option<ReorderItem<T, F>> {
        (!self.is_empty()).then(|| self.segments.remove(0))
    }

    /// Removes the segments that need not wait: ready or overlapping ones according to `readiness`, and ones that have
    /// waited too long. `readiness` gets the end of the ready segment before, if that is of the same flow.
    pub fn take(
        &mut self,
        mut readiness: impl FnMut(&ReorderItem<T, F>, Option<Seq>) -> Readiness,
        is_late: impl Fn(&T) -> bool,
    ) -> ReorderResult<T, F> {
        let mut taken = ReorderResult {
            due: Vec::<ReorderItem<T, F>>::new(),
            late: Vec::new(),
            over: Vec::new(),
        };
        for segment in std::mem::take(&mut self.segments) {
            let before = taken.due.last().filter(|last| last.flow == segment.flow);
            match readiness(&segment, before.map(|before| before.end)) {
                Readiness::Due => taken.due.push(segment),
                Readiness::NotYet if is_late(&segment.item) => taken.late.push(segment),
                Readiness::NotYet => self.segments.push(segment),
                Readiness::Overlaps => taken.over.push(segment),
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

    /// Inserts five bytes of `flow` at `seq`.
    fn insert(queue: &mut Queue, flow: u8, seq: u32) -> bool {
        let (seq, end) = (Seq(seq), Seq(seq) + 5);
        queue.insert(ReorderItem { flow, seq, end, item: vec![flow; 5] })
    }

    fn numbers(segments: &[ReorderItem<Vec<u8>, u8>]) -> Vec<u32> {
        segments.iter().map(|segment| segment.seq.0).collect()
    }

    #[test]
    fn segments_without_a_gap_are_taken_together_in_order() {
        let mut queue = Queue::default();
        // Sequence numbers wrap; 30 is past a gap.
        for seq in [5, 0, u32::MAX - 4, 30] {
            assert!(insert(&mut queue, 1, seq) && insert(&mut queue, 2, seq));
        }
        let mut take = |next: u32| {
            let readiness = |segment: &ReorderItem<Vec<u8>, u8>, before: Option<Seq>| {
                if segment.flow != 1 {
                    return Readiness::NotYet;
                }
                Readiness::from_seqs(segment.seq, before.unwrap_or(Seq(next)))
            };
            queue.take(readiness, |_| false)
        };
        assert!(take(u32::MAX - 9).due.is_empty());
        let ReorderResult { due, over, .. } = take(u32::MAX - 4);
        assert_eq!((numbers(&due), numbers(&over)), (vec![u32::MAX - 4, 0, 5], vec![]));
        // The data that arrived has other segment boundaries than the queued one.
        assert_eq!(numbers(&take(31).over), [30]);
        let first = Seq(u32::MAX - 4);
        let readiness = |segment: &ReorderItem<Vec<u8>, u8>, before: Option<Seq>| {
            Readiness::from_seqs(segment.seq, before.unwrap_or(first))
        };
        assert_eq!(numbers(&queue.take(readiness, |_| false).due), [u32::MAX - 4, 0, 5]);
        assert_eq!(numbers(&queue.take(|_, _| Readiness::NotYet, |_| true).late), [30]);
    }

    #[test]
    fn a_queue_is_limited_by_count_and_by_bytes() {
        let mut queue = Queue::default();
        assert!((0..8).all(|seq| insert(&mut queue, 1, 10 * seq)));
        assert!(!insert(&mut queue, 1, 100) && queue.starts_at(&1, Seq(70)));
        assert_eq!(queue.take_first().unwrap().seq, Seq(0));
        let (seq, end) = (Seq(100), Seq(111));
        assert!(!queue.insert(ReorderItem { flow: 1, seq, end, item: vec![0; 11] }));
        assert_eq!(queue.iter().len(), 7);
    }
}
