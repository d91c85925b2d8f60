//! Lists of open sessions and pinholes, for `ftp-alg sessions` and `ftp-alg pinholes`.

use std::time::Instant;

use crate::{
    engine::{Pinhole, Sessions, Translation},
    ftp::AnnouncementKind,
};

/// A row of `ftp-alg sessions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Session number.
    pub id: u64,
    /// Endpoints and translation. Until the translation is looked up, the external endpoints equal the real ones.
    pub translation: Translation,
    /// Whether the translation was looked up.
    pub is_looked_up: bool,
    /// The state as one word.
    pub state: &'static str,
    /// Time of the first packet.
    pub since: Instant,
    /// Whether its sequence numbers are adjusted.
    pub adjusted: bool,
}

/// A row of `ftp-alg pinholes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinholeInfo {
    /// The number of its session.
    pub session: u64,
    /// The pinhole.
    pub pinhole: Pinhole,
    /// The kind of announcement that opened it.
    pub kind: AnnouncementKind,
}

impl Sessions {
    /// The open control connections.
    pub fn list(&self) -> impl Iterator<Item = SessionInfo> {
        let open = self.table.iter().filter(|entry| !entry.session.is_over());
        open.filter_map(|entry| {
            let untranslated = Translation::identity(entry.client(), entry.server());
            Some(SessionInfo {
                id: entry.id,
                translation: entry.extra().translation.unwrap_or(untranslated),
                is_looked_up: entry.extra().translation.is_some(),
                state: entry.session.state(),
                since: self.epoch.instant(entry.first_seen)?,
                adjusted: entry.session.needs_all_queued(),
            })
        })
    }

    /// The pinholes that are open, as far as is known. The kernel closes a consumed one by itself.
    pub fn list_pinholes(&self) -> impl Iterator<Item = PinholeInfo> {
        self.table.iter().flat_map(|entry| {
            entry.extra().pinholes.iter().filter(|p| self.pinholes.is_open(p)).map(|held| {
                PinholeInfo { session: entry.id, pinhole: held.pinhole, kind: held.kind }
            })
        })
    }

    /// The pinholes whose transfers have ended, and that may be open: for these, only the kernel knows.
    pub fn list_ended_pinholes(&self, now: Instant) -> impl Iterator<Item = PinholeInfo> {
        self.pinholes.ended(now).filter_map(|(owner, held)| {
            let session = self.table.get(owner)?.id;
            Some(PinholeInfo { session, pinhole: held.pinhole, kind: held.kind })
        })
    }
}
