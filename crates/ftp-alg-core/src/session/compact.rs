//! What most sessions have nothing of, in as little room as can be: there are many sessions, and a packet
//! finds its own in as few cache lines as possible.

use serde::Serializer;
use thin_vec::ThinVec;
use tinyvec::TinyVec;

/// A list that is mostly empty, and then takes no more than a pointer.
pub type CompactVec<T> = ThinVec<T>;

/// How many bytes take no memory of their own: a `PORT` is 28 with its line end.
const SHORT: usize = 28;

/// Bytes, mostly as few as a command has.
pub type SmallBytes = TinyVec<[u8; SHORT]>;

/// How much the allocator takes for `size` bytes: glibc's, which adds eight and rounds up to sixteen.
pub fn allocated(size: usize) -> usize {
    if size == 0 { 0 } else { (size + 8).next_multiple_of(16).max(32) }
}

/// How much memory a list takes besides its own size and what is behind pointers in it.
#[inline]
pub fn heap<T>(list: &CompactVec<T>) -> usize {
    const HEADER: usize = 16; // length and capacity
    if list.has_capacity() { allocated(HEADER + list.capacity() * size_of::<T>()) } else { 0 }
}

/// One more. There is room for one alone at first, as mostly no other follows.
pub fn push<T>(list: &mut CompactVec<T>, one: T) {
    if !list.has_capacity() {
        list.reserve_exact(1);
    }
    list.push(one);
}

/// Takes out the first `n`. Of an empty list the memory is given back.
pub fn drop_front<T>(list: &mut CompactVec<T>, n: usize) {
    list.drain(..n);
    if list.is_empty() {
        *list = CompactVec::new();
    } else if list.capacity() > 4 * list.len() {
        list.shrink_to_fit();
    }
}

/// Adds `more` at the end.
pub fn extend_bytes(bytes: &mut SmallBytes, more: &[u8]) {
    // By an eighth, not twice as much: there may be many that are long.
    if let SmallBytes::Heap(long) = bytes
        && long.capacity() - long.len() < more.len()
    {
        long.reserve_exact(more.len().max(long.len() / 8));
    }
    bytes.extend_from_slice(more);
}

/// How much memory bytes take besides their own size.
#[inline]
pub fn heap_of_bytes(bytes: &SmallBytes) -> usize {
    if let SmallBytes::Heap(long) = bytes { allocated(long.capacity()) } else { 0 }
}

/// Takes out the first `n` bytes.
pub fn drop_first_bytes(bytes: &mut SmallBytes, n: usize) {
    match bytes {
        SmallBytes::Heap(long) if long.len() - n > SHORT => {
            long.drain(..n);
            if long.capacity() > 4 * long.len() {
                long.shrink_to(2 * long.len());
            }
        }
        _ => *bytes = SmallBytes::from(&bytes[n..]),
    }
}

/// Bytes are saved in one go, not each by itself: a session may have many, and is saved with each
/// packet.
pub fn save_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_same_short_and_long() {
        let all: Vec<u8> = (0..100).collect();
        for first in 0..all.len() {
            let mut bytes = SmallBytes::from(&all[..first]);
            extend_bytes(&mut bytes, &all[first..]);
            assert_eq!(*bytes, all);
            drop_first_bytes(&mut bytes, first);
            assert_eq!(*bytes, all[first..]);
            assert_eq!(bytes.is_inline(), all.len() - first <= SHORT);
            assert_eq!(heap_of_bytes(&bytes) == 0, bytes.is_inline());
        }
    }

    #[test]
    fn what_is_empty_takes_no_memory_of_its_own() {
        let mut list = CompactVec::new();
        assert_eq!(heap(&list), 0);
        push(&mut list, 3);
        assert_eq!((list.capacity(), heap(&list)), (1, 32));
        push(&mut list, 4);
        drop_front(&mut list, 1);
        assert_eq!(*list, [4]);
        drop_front(&mut list, 1);
        assert_eq!(heap(&list), 0);
        assert_eq!((size_of::<CompactVec<u8>>(), size_of::<SmallBytes>()), (8, 32));
    }
}
