//! The client's unacknowledged data. A retransmission is replaced by the bytes that were read first, so that no other
//! command can take their place.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, Serializer};

use super::{
    compact::{self, SmallBytes, save_bytes},
    limits::MAX_LINE,
};
use crate::packet::Seq;

/// Limit in bytes. Beyond it nothing is forwarded until some data is acknowledged.
const MAX_UNACKNOWLEDGED: usize = 1 << 16;

/// Beyond this many bytes, pure acknowledgements must be queued, too.
const MUCH_UNACKNOWLEDGED: usize = 1 << 14;

/// Data that was read and is not known to be acknowledged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UnacknowledgedData {
    #[serde(serialize_with = "save_short")]
    bytes: SmallBytes,
    /// Sequence number of the first byte.
    first_seq: Seq,
}

impl UnacknowledgedData {
    /// No data, for a direction whose first sequence number is `first`.
    pub fn new(first: Seq) -> Self {
        Self { bytes: SmallBytes::default(), first_seq: first }
    }

    /// Stores `bytes` at `seq`.
    pub fn push(&mut self, seq: Seq, bytes: &[u8]) {
        if self.bytes.is_empty() || self.first_seq + self.bytes.len() as u32 != seq {
            self.bytes = SmallBytes::default();
            self.first_seq = seq;
        }
        compact::extend_bytes(&mut self.bytes, bytes);
    }

    /// Whether the limit allows `more` bytes.
    pub fn has_room(&self, more: usize) -> bool {
        self.bytes.is_empty() || self.bytes.len() + more <= MAX_UNACKNOWLEDGED
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is so much data that pure acknowledgements must be queued.
    pub fn is_much(&self) -> bool {
        self.bytes.len() > MUCH_UNACKNOWLEDGED
    }

    /// Heap memory in bytes.
    #[inline]
    pub fn heap(&self) -> usize {
        compact::heap_of_bytes(&self.bytes)
    }

    /// Drops the data before `acknowledged`. Returns whether nothing is left.
    pub fn forget_before(&mut self, acknowledged: Seq) -> bool {
        if self.bytes.is_empty() {
            return true;
        }
        let gone = acknowledged.distance_from(self.first_seq).max(0) as usize;
        if gone >= self.bytes.len() {
            self.bytes = SmallBytes::default();
        } else if gone > 0 {
            compact::drop_first_bytes(&mut self.bytes, gone);
            self.first_seq = self.first_seq + gone as u32;
        }
        self.bytes.is_empty()
    }

    /// Returns `bytes` at `seq`, with the part that was read before replaced by what was read then. An attacker sends
    /// other bytes, and some keep-alives send one byte of garbage (RFC 1122 section 4.2.3.6).
    pub fn as_read<'a>(&self, seq: Seq, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let skipped = |from: Seq, to: Seq| to.distance_from(from).max(0) as usize;
        let kept = self.bytes.get(skipped(self.first_seq, seq)..).unwrap_or_default();
        if kept.is_empty() {
            return Cow::Borrowed(bytes); // all of them are new
        }
        let start = skipped(seq, self.first_seq).min(bytes.len());
        let end = bytes.len().min(start + kept.len());
        let kept = &kept[..end - start];
        if bytes[start..end] == *kept {
            return Cow::Borrowed(bytes);
        }
        Cow::Owned([&bytes[..start], kept, &bytes[end..]].concat())
    }
}

/// Records contain at most one line of the data. More would be written with every packet. So the retransmission of a
/// longer one is not compared after a restart.
fn save_short<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    save_bytes(if bytes.len() <= MAX_LINE { bytes } else { &[] }, serializer)
}
