//! The client's bytes are kept until the server has acknowledged them, so that what is sent again is what
//! was read, and no other command takes its place.

use std::borrow::Cow;

use serde::Serializer;

use super::{
    Limit, Session, Side,
    few::{self, Bytes, save_bytes},
    stream::MAX_LINE,
};
use crate::packet::Seq;

/// How much of the client's bytes is kept until it is acknowledged, so that what is sent again is
/// what was read and no other command takes its place. More is not forwarded before that.
pub const MAX_KEPT: usize = 1 << 16;

impl Session {
    /// Keeps `bytes` of the client at `seq`, which are read, until the server acknowledges them.
    pub(super) fn keep(&mut self, seq: Seq, bytes: &[u8]) {
        if self.kept.is_empty() || self.kept_from + self.kept.len() as u32 != seq {
            self.kept = Bytes::default();
            self.kept_from = seq;
        }
        few::extend_bytes(&mut self.kept, bytes);
    }

    /// Why `more` bytes of `from` may not be read now.
    pub(super) fn limit(&self, from: Side, more: usize) -> Option<Limit> {
        if self.peek(from).map.is_full() {
            Some(Limit::Rewrites)
        } else {
            let keeps = from == Side::Client && self.is_readable(from);
            let is_much = !self.kept.is_empty() && self.kept.len() + more > MAX_KEPT;
            (keeps && is_much).then_some(Limit::Kept)
        }
    }

    /// How much memory is taken by what is not acknowledged, not complete, or ahead of what precedes it; besides the
    /// session's own size.
    #[inline]
    pub fn heap(&self) -> usize {
        let own = self.client.heap() + self.server.heap() + few::heap_of_bytes(&self.kept);
        self.copies().map_or(own, |copies| own + copies.heap())
    }

    /// Forgets what of the client's bytes the server has acknowledged.
    pub(super) fn forget_kept(&mut self) {
        if !self.kept.is_empty() {
            self.drop_acknowledged();
        }
        if self.kept.is_empty()
            && let Some(seldom) = &mut self.seldom
        {
            seldom.copies.is_less();
        }
    }

    fn drop_acknowledged(&mut self) {
        let gone = self.client.unacknowledged().distance_from(self.kept_from).max(0) as usize;
        if gone >= self.kept.len() {
            self.kept = Bytes::default();
        } else if gone > 0 {
            few::drop_first_bytes(&mut self.kept, gone);
            self.kept_from = self.kept_from + gone as u32;
        }
    }

    /// `bytes` of the client at `seq`, of which those that were read before, or passed ahead, are as they were
    /// then: an attack sends others, and some keep-alives send one of garbage (RFC 1122 section 4.2.3.6).
    pub(super) fn as_read<'a>(&self, seq: Seq, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        match self.as_kept(seq, bytes) {
            kept if self.seldom.is_none() => kept,
            Cow::Borrowed(bytes) => self.with_ahead(Side::Client, seq, bytes),
            Cow::Owned(bytes) => {
                Cow::Owned(self.with_ahead(Side::Client, seq, &bytes).into_owned())
            }
        }
    }

    fn as_kept<'a>(&self, seq: Seq, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let skipped = |from: Seq, to: Seq| to.distance_from(from).max(0) as usize;
        let kept = self.kept.get(skipped(self.kept_from, seq)..).unwrap_or_default();
        if kept.is_empty() {
            return Cow::Borrowed(bytes); // all of them are new
        }
        let start = skipped(seq, self.kept_from).min(bytes.len());
        let end = bytes.len().min(start + kept.len());
        let kept = &kept[..end - start];
        if bytes[start..end] == *kept {
            return Cow::Borrowed(bytes);
        }
        Cow::Owned([&bytes[..start], kept, &bytes[end..]].concat())
    }
}

/// What is kept is saved as long as it is about a line; of more, which would be written with every
/// packet, what is sent again is not compared after a restart.
pub fn save_kept<S: Serializer>(kept: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    save_bytes(if kept.len() <= MAX_LINE { kept } else { &[] }, serializer)
}
