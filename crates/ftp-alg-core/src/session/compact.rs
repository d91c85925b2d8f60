//! Containers for data that most sessions do not have.
//!
//! Empty, they need as little memory as possible, because there are many sessions, and a packet should find its own in
//! few cache lines.

use serde::Serializer;
use thin_vec::ThinVec;
use tinyvec::TinyVec;

/// A vector that needs only a pointer while it is empty.
pub type CompactVec<T> = ThinVec<T>;

/// Number of bytes that need no allocation: a `PORT` with its line end has 28.
const INLINE_LEN: usize = 28;

/// A byte string that is usually as short as a command.
pub type SmallBytes = TinyVec<[u8; INLINE_LEN]>;

/// Memory in bytes that glibc's allocator uses for `size` bytes: it adds eight and rounds up to a multiple of sixteen.
pub fn allocation_size(size: usize) -> usize {
    if size == 0 { 0 } else { (size + 8).next_multiple_of(16).max(32) }
}

/// Heap memory in bytes of a vector, without the allocations of its elements.
#[inline]
pub fn heap_size<T>(list: &CompactVec<T>) -> usize {
    const HEADER: usize = 16; // length and capacity
    if list.has_capacity() { allocation_size(HEADER + list.capacity() * size_of::<T>()) } else { 0 }
}

/// Appends an element. The first allocation has room for one only, because usually no other follows.
pub fn push<T>(list: &mut CompactVec<T>, element: T) {
    if !list.has_capacity() {
        list.reserve_exact(1);
    }
    list.push(element);
}

/// Removes the first `n` elements. Frees the memory of an empty vector.
pub fn drop_front<T>(list: &mut CompactVec<T>, n: usize) {
    list.drain(..n);
    if list.is_empty() {
        *list = CompactVec::new();
    } else if list.capacity() > 4 * list.len() {
        list.shrink_to_fit();
    }
}

/// Appends `more`.
pub fn extend_bytes(bytes: &mut SmallBytes, more: &[u8]) {
    // Grows by an eighth, not to twice the size, because many of them may be long.
    if let SmallBytes::Heap(long) = bytes
        && long.capacity() - long.len() < more.len()
    {
        long.reserve_exact(more.len().max(long.len() / 8));
    }
    bytes.extend_from_slice(more);
}

/// Heap memory in bytes of a byte string.
#[inline]
pub fn bytes_heap_size(bytes: &SmallBytes) -> usize {
    if let SmallBytes::Heap(long) = bytes { allocation_size(long.capacity()) } else { 0 }
}

/// Removes the first `n` bytes.
pub fn drop_front_bytes(bytes: &mut SmallBytes, n: usize) {
    match bytes {
        SmallBytes::Heap(long) if long.len() - n > INLINE_LEN => {
            long.drain(..n);
            if long.capacity() > 4 * long.len() {
                long.shrink_to(2 * long.len());
            }
        }
        _ => *bytes = SmallBytes::from(&bytes[n..]),
    }
}

/// Serialises bytes as one unit, not one by one, because a session may have many and is written with each packet.
pub fn serialize_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_byte_strings_behave_alike() {
        let all: Vec<u8> = (0..100).collect();
        for first in 0..all.len() {
            let mut bytes = SmallBytes::from(&all[..first]);
            extend_bytes(&mut bytes, &all[first..]);
            assert_eq!(*bytes, all);
            drop_front_bytes(&mut bytes, first);
            assert_eq!(*bytes, all[first..]);
            assert_eq!(bytes.is_inline(), all.len() - first <= INLINE_LEN);
            assert_eq!(bytes_heap_size(&bytes) == 0, bytes.is_inline());
        }
    }
}
