//! The client's unacknowledged data, so that a retransmission says what was read, and no other command takes its place.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, Serializer};

use super::{
    few::{self, Bytes, save_bytes},
    limits::MAX_LINE,
};
use crate::packet::Seq;

/// How much is kept at most. More is not forwarded before some of it is acknowledged.
const MAX_KEPT: usize = 1 << 16;

/// With more of it, pure acknowledgements must be seen, too.
const MAX_UNSEEN: usize = 1 << 14;

/// Data that was read and is not known to be acknowledged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unacknowledged {
    #[serde(serialize_with = "save_short")]
    bytes: Bytes,
    /// The sequence number of the first.
    from: Seq,
}

impl Unacknowledged {
    /// None yet, of a direction whose first sequence number is `first`.
    pub fn new(first: Seq) -> Self {
        Self { bytes: Bytes::default(), from: first }
    }

    /// Keeps `bytes` at `seq`.
    pub fn keep(&mut self, seq: Seq, bytes: &[u8]) {
        if self.bytes.is_empty() || self.from + self.bytes.len() as u32 != seq {
            self.bytes = Bytes::default();
            self.from = seq;
        }
        few::extend_bytes(&mut self.bytes, bytes);
    }

    /// Whether there is room for `more` bytes.
    pub fn has_room(&self, more: usize) -> bool {
        self.bytes.is_empty() || self.bytes.len() + more <= MAX_KEPT
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are so many that the packet selection must not pass pure acknowledgements.
    pub fn is_much(&self) -> bool {
        self.bytes.len() > MAX_UNSEEN
    }

    /// How much memory they take besides their own size.
    #[inline]
    pub fn heap(&self) -> usize {
        few::heap_of_bytes(&self.bytes)
    }

    /// Forgets what precedes `acknowledged`. Whether nothing is left.
    pub fn forget_before(&mut self, acknowledged: Seq) -> bool {
        if self.bytes.is_empty() {
            return true;
        }
        let gone = acknowledged.distance_from(self.from).max(0) as usize;
        if gone >= self.bytes.len() {
            self.bytes = Bytes::default();
        } else if gone > 0 {
            few::drop_first_bytes(&mut self.bytes, gone);
            self.from = self.from + gone as u32;
        }
        self.bytes.is_empty()
    }

    /// `bytes` at `seq`, of which those that were read before are as they were then: an attack sends others, and some
    /// keep-alives send one of garbage (RFC 1122 section 4.2.3.6).
    pub fn as_read<'a>(&self, seq: Seq, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let skipped = |from: Seq, to: Seq| to.distance_from(from).max(0) as usize;
        let kept = self.bytes.get(skipped(self.from, seq)..).unwrap_or_default();
        if kept.is_empty() {
            return Cow::Borrowed(bytes); // all of them are new
        }
        let start = skipped(seq, self.from).min(bytes.len());
        let end = bytes.len().min(start + kept.len());
        let kept = &kept[..end - start];
        if bytes[start..end] == *kept {
            return Cow::Borrowed(bytes);
        }
        Cow::Owned([&bytes[..start], kept, &bytes[end..]].concat())
    }
}

/// As much is saved as a line has. More would be written with every packet, so its retransmission is not compared
/// after a restart.
fn save_short<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    save_bytes(if bytes.len() <= MAX_LINE { bytes } else { &[] }, serializer)
}
