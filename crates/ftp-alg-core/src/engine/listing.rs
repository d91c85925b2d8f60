//! What is open now, for people.

use std::time::Instant;

use super::{Entry, Pinhole, Sessions, Translation};
use crate::ftp::Kind;

/// One row of the table of sessions, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its number.
    pub id: u64,
    /// Both ends, and how they see each other; none is translated as long as that was not looked up.
    pub translation: Translation,
    /// Whether it was looked up.
    pub is_looked_up: bool,
    /// One word for where it stands.
    pub state: &'static str,
    /// Since when it is followed.
    pub since: Instant,
    /// Whether its sequence numbers are adjusted.
    pub adjusted: bool,
    /// How many pinholes it holds.
    pub pinholes: usize,
}

/// One open pinhole, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinholeInfo {
    /// The session that holds it.
    pub session: u64,
    /// The pinhole.
    pub pinhole: Pinhole,
    /// What announced it.
    pub kind: Kind,
}

impl Sessions {
    /// The control connections that are open.
    pub fn list(&self) -> impl Iterator<Item = SessionInfo> {
        let open = self.table.iter().filter(|entry| !entry.session.is_over());
        open.filter_map(|Entry { session, control }| {
            let untranslated = Translation::identity(control.client(), control.server());
            Some(SessionInfo {
                id: control.id,
                translation: control.translation().copied().unwrap_or(untranslated),
                is_looked_up: control.translation().is_some(),
                state: session.state(),
                since: self.epoch.instant(control.since)?,
                adjusted: session.wants_every_packet(),
                pinholes: control.pinholes().iter().filter(|p| !p.in_use).count(),
            })
        })
    }

    /// The pinholes that nobody has used yet, as far as the dialogue tells.
    pub fn list_pinholes(&self) -> impl Iterator<Item = PinholeInfo> {
        self.table.iter().flat_map(|Entry { control, .. }| {
            control.pinholes().iter().filter(|p| !p.in_use).map(|held| PinholeInfo {
                session: control.id,
                pinhole: held.pinhole,
                kind: held.kind,
            })
        })
    }
}
