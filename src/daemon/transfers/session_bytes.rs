//! How many bytes each session has transferred, for the report of its end.
//!
//! Invariant: memory is bounded by the open sessions, and by what ends between two looks at them.

use std::collections::{HashMap, HashSet};

use ftp_alg_core::{
    engine::{Transfer, TransferResult},
    session::TransferVerb,
};

/// From so many sessions on, those that have ended without a report go: they had no login.
const MANY: usize = 65_536;

/// The bytes of sessions that have not ended, by session number.
#[derive(Default)]
pub(in super::super) struct SessionBytes(HashMap<u64, ReportedBytes>);

/// The transfers of a session that were reported by this daemon.
#[derive(Default)]
struct ReportedBytes {
    transfers: u32,
    bytes: u64,
    /// Whether the bytes of a transfer are not known.
    lacks_some: bool,
}

impl SessionBytes {
    /// Notes a transfer of a session.
    pub(super) fn add(&mut self, session: u64, Transfer { verb, result, bytes, .. }: &Transfer) {
        let had_none = matches!(result, TransferResult::Refused | TransferResult::NoDataConnection);
        let known = self.0.entry(session).or_default();
        // The session does not count those without a command.
        let is_counted = !matches!(verb, TransferVerb::Unread(_));
        known.transfers = known.transfers.saturating_add(is_counted.into());
        known.bytes = known.bytes.saturating_add(bytes.unwrap_or(0));
        known.lacks_some |= bytes.is_none() && !had_none;
    }

    /// Notes that a session has transfers that nobody reads, so that its bytes are not known.
    pub(super) fn note_unread(&mut self, session: u64) {
        self.0.entry(session).or_default().lacks_some = true;
    }

    /// Forgets the sessions that are not `open`, if there are many.
    pub(super) fn limit(&mut self, open: impl FnOnce() -> HashSet<u64>) {
        if self.0.len() > MANY {
            let open = open();
            self.0.retain(|session, _| open.contains(session));
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
