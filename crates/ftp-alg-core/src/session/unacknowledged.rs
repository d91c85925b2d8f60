//! The client's unacknowledged data. A retransmission is replaced by the bytes that were read first, so that no other
//! command can take their place.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, Serializer};

use super::{
    compact::{self, SmallBytes, serialize_bytes},
    limits::MAX_LINE,
};
use crate::packet::Seq;

/// Limit in bytes. Beyond it nothing is forwarded until some data is acknowledged.
const MAX_UNACKNOWLEDGED: usize = 1 << 17;

/// Beyond this many bytes, pure acknowledgements must be queued, too. Up to it there is room for any packet.
const MUCH_UNACKNOWLEDGED: usize = 1 << 14;

/// Data that was read and is not known to be acknowledged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UnacknowledgedData {
    #[serde(serialize_with = "serialize_short")]
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
    pub fn is_large(&self) -> bool {
        self.bytes.len() > MUCH_UNACKNOWLEDGED
    }

    /// Heap memory in bytes.
    #[inline]
    pub fn heap_size(&self) -> usize {
        compact::bytes_heap_size(&self.bytes)
    }

    /// Drops the data before `acknowledged`. Returns whether nothing is left.
    pub fn forget_before(&mut self, acknowledged: Seq) -> bool {
        if self.bytes.is_empty() {
            return true;
        }
        let acknowledged_len = acknowledged.distance_from(self.first_seq).max(0) as usize;
        if acknowledged_len >= self.bytes.len() {
            self.bytes = SmallBytes::default();
        } else if acknowledged_len > 0 {
            compact::drop_front_bytes(&mut self.bytes, acknowledged_len);
            self.first_seq = self.first_seq + acknowledged_len as u32;
        }
        self.bytes.is_empty()
    }

    /// Returns `bytes` at `seq`, with the part that was read before replaced by what was read then. An attacker sends
    /// other bytes, and some keep-alives send one byte of garbage (RFC 1122 section 4.2.3.6).
    pub fn with_read_bytes<'a>(&self, seq: Seq, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let skipped = |from: Seq, to: Seq| to.distance_from(from).max(0) as usize;
        let stored = self.bytes.get(skipped(self.first_seq, seq)..).unwrap_or_default();
        if stored.is_empty() {
            return Cow::Borrowed(bytes); // all bytes are new
        }
        let start = skipped(seq, self.first_seq).min(bytes.len());
        let end = bytes.len().min(start + stored.len());
        let stored = &stored[..end - start];
        if bytes[start..end] == *stored {
            return Cow::Borrowed(bytes);
        }
        Cow::Owned([&bytes[..start], stored, &bytes[end..]].concat())
    }
}

/// Records contain at most one line of the data. More would be written with every packet. So the retransmission of a
/// longer one is not compared after a restart.
fn serialize_short<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serialize_bytes(if bytes.len() <= MAX_LINE { bytes } else { &[] }, serializer)
}
