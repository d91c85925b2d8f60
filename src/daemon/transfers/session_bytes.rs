//! How many bytes each session has transferred, for the report of its end.
//!
//! Invariant: memory is bounded, whatever peers do.

use std::collections::BTreeMap;

use ftp_alg_core::{
    engine::{Transfer, TransferResult},
    session::TransferVerb,
};

/// Limit of sessions. The oldest go first, and their bytes are not known.
const MAX_SESSIONS: usize = 65_536;

/// The bytes of sessions that have not ended, by session number.
#[derive(Default)]
pub(in super::super) struct SessionBytes(BTreeMap<u64, ReportedBytes>);

/// The transfers of a session that were reported by this daemon.
#[derive(Default)]
struct ReportedBytes {
    transfers: u32,
    bytes: u64,
    /// Whether the bytes of a transfer are not known.
    lacks_some: bool,
}

impl SessionBytes {
    /// Records a transfer of a session.
    pub(super) fn add(&mut self, session: u64, Transfer { verb, result, bytes, .. }: &Transfer) {
        let had_none = matches!(result, TransferResult::Refused | TransferResult::NoDataConnection);
        let known = self.0.entry(session).or_default();
        // The session does not count those without a command.
        let is_counted = !matches!(verb, TransferVerb::Unread(_));
        known.transfers = known.transfers.saturating_add(is_counted.into());
        known.bytes = known.bytes.saturating_add(bytes.unwrap_or(0));
        known.lacks_some |= bytes.is_none() && !had_none;
        if self.0.len() > MAX_SESSIONS {
            self.0.pop_first();
        }
    }

    /// The bytes of a session that were reported, as far as they are known.
    pub(in super::super) fn of(&self, session: u64) -> u64 {
        self.0.get(&session).map_or(0, |known| known.bytes)
    }

    /// The bytes of a session that has ended with so many transfers; `None` if they are not known of each.
    pub(super) fn take(&mut self, session: u64, transfers: u32) -> Option<u64> {
        let known = self.0.remove(&session).unwrap_or_default();
        (known.transfers == transfers && !known.lacks_some).then_some(known.bytes)
    }
}
