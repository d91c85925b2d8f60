//! What most sessions have nothing of, in as little room as can be: there are many sessions, and a packet
//! finds its own in as few cache lines as possible.

use std::ops::Deref;

use serde::{Deserialize, Serialize, Serializer};

/// A list that is mostly empty, and then takes no more than a pointer.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Vec<T>")]
// A boxed slice or a vector has the length, and the capacity, beside the pointer.
#[allow(clippy::box_collection)]
pub struct Few<T>(Option<Box<Vec<T>>>);

/// How much the allocator takes for `size` bytes: glibc's, which adds eight and rounds up to sixteen.
pub fn allocated(size: usize) -> usize {
    if size == 0 { 0 } else { (size + 8).next_multiple_of(16).max(32) }
}

impl<T> Few<T> {
    /// How much memory it takes besides its own size and what is behind pointers in it.
    #[inline]
    pub fn heap(&self) -> usize {
        self.0.as_ref().map_or(0, |list| {
            allocated(size_of::<Vec<T>>()) + allocated(list.capacity() * size_of::<T>())
        })
    }

    /// All that is in it. Its memory is given back.
    pub fn take(&mut self) -> Vec<T> {
        self.0.take().map_or_else(Vec::new, |list| *list)
    }

    /// One more. There is room for one alone at first, as mostly no other follows.
    pub fn push(&mut self, one: T) {
        self.0.get_or_insert_with(|| Box::new(Vec::with_capacity(1))).push(one);
    }

    /// The last.
    pub fn last_mut(&mut self) -> Option<&mut T> {
        self.0.as_mut()?.last_mut()
    }

    /// Takes out the first `n`. Of an empty list the memory is given back.
    pub fn drop_front(&mut self, n: usize) {
        if let Some(list) = &mut self.0 {
            list.drain(..n);
            if list.is_empty() {
                self.0 = None;
            } else if list.capacity() > 4 * list.len() {
                list.shrink_to(2 * list.len());
            }
        }
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl<T: Serialize> Serialize for Few<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(mut list: Vec<T>) -> Self {
        list.shrink_to_fit();
        Self((!list.is_empty()).then(|| Box::new(list)))
    }
}

/// How many bytes take no memory of their own: a `PORT` is 28 with its line end.
const SHORT: usize = 30;

/// Bytes, mostly as few as a command has.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Vec<u8>")]
#[allow(clippy::box_collection)]
pub enum Bytes {
    Short { len: u8, bytes: [u8; SHORT] },
    Long(Box<Vec<u8>>),
}

impl Bytes {
    /// Adds `more` at the end.
    pub fn extend(&mut self, more: &[u8]) {
        match self {
            Self::Short { len, bytes } => {
                let at = usize::from(*len);
                if let Some(room) = bytes.get_mut(at..at + more.len()) {
                    room.copy_from_slice(more);
                    *len += more.len() as u8; // at most `SHORT`
                } else {
                    *self = Self::Long(Box::new([&bytes[..at], more].concat()));
                }
            }
            Self::Long(long) => {
                // By an eighth, not twice as much: there may be many that are long.
                if long.capacity() - long.len() < more.len() {
                    long.reserve_exact(more.len().max(long.len() / 8));
                }
                long.extend_from_slice(more);
            }
        }
    }

    /// How much memory it takes besides its own size.
    #[inline]
    pub fn heap(&self) -> usize {
        match self {
            Self::Short { .. } => 0,
            Self::Long(long) => allocated(size_of::<Vec<u8>>()) + allocated(long.capacity()),
        }
    }

    /// Takes out the first `n`.
    pub fn drop_front(&mut self, n: usize) {
        match self {
            Self::Long(long) if long.len() - n > SHORT => {
                long.drain(..n);
                if long.capacity() > 4 * long.len() {
                    long.shrink_to(2 * long.len());
                }
            }
            _ => *self = Self::from(&self[n..]),
        }
    }

    /// Takes out all of them. Their memory is given back.
    pub fn clear(&mut self) {
        if let Self::Short { len, .. } = self {
            *len = 0;
        } else {
            *self = Self::default();
        }
    }
}

impl Default for Bytes {
    fn default() -> Self {
        Self::Short { len: 0, bytes: [0; SHORT] }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(long) => long,
        }
    }
}

impl From<&[u8]> for Bytes {
    fn from(from: &[u8]) -> Self {
        let mut bytes = Self::default();
        bytes.extend(from);
        bytes
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(from: Vec<u8>) -> Self {
        Self::from(&from[..])
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
            let mut bytes = Bytes::from(&all[..first]);
            bytes.extend(&all[first..]);
            assert_eq!(*bytes, all);
            bytes.drop_front(first);
            assert_eq!(*bytes, all[first..]);
            assert_eq!(matches!(bytes, Bytes::Short { .. }), all.len() - first <= SHORT);
            bytes.clear();
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn what_is_empty_takes_no_memory_of_its_own() {
        let mut list = Few::from(vec![1, 2, 3]);
        list.push(4);
        list.drop_front(3);
        assert_eq!(*list, [4]);
        list.drop_front(1);
        assert!(list.0.is_none() && list.is_empty());
        assert_eq!((size_of::<Few<u8>>(), size_of::<Bytes>()), (8, 32));
    }
}
