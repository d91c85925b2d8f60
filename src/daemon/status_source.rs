//! The source of what the control socket and the endpoint for metrics answer.

use super::{
    config_file::ConfigTexts,
    events::{RecentEvents, StoredEvent},
    snapshot::{PinholeRow, SessionDetail, SessionRow, Status},
};

/// The source of the rows. Called from the threads of the control socket and of the metrics.
pub trait StatusSource: Send + Sync {
    /// The events behind the one with the ID `after`; 0 for the first ones.
    fn events(&self, after: u64) -> RecentEvents;
    /// The newest events behind the one with the ID `after`; 0 for all of them.
    fn newest_events(&self, after: u64) -> RecentEvents;
    fn status(&self) -> Status;
    /// The texts that have the configuration in use.
    fn config_texts(&self) -> ConfigTexts;
    fn sessions(&self) -> Vec<SessionRow>;
    /// The open session with the number `id`.
    fn session(&self, id: u64) -> Option<SessionDetail<StoredEvent>>;
    fn pinholes(&self) -> Vec<PinholeRow>;
    /// Activates or deactivates this gateway, one of a pair. Returns what was done, in one line.
    fn change_role(&self, active: bool) -> Result<String, String>;
}

#[cfg(test)]
pub mod fixed {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

    /// A source of one status and of empty lists, for tests.
    pub struct FixedSource {
        status: Status,
        /// How often it was asked for the status or the sessions.
        pub asked: AtomicU64,
    }

    impl FixedSource {
        pub fn new(status: Status) -> Self {
            Self { status, asked: AtomicU64::new(0) }
        }
    }

    impl StatusSource for FixedSource {
        fn events(&self, _after: u64) -> RecentEvents {
            RecentEvents { events: Vec::new(), lost: Some(0) }
        }

        fn newest_events(&self, after: u64) -> RecentEvents {
            self.events(after)
        }

        fn status(&self) -> Status {
            self.asked.fetch_add(1, Relaxed);
            self.status.clone()
        }

        fn config_texts(&self) -> ConfigTexts {
            let (started, loaded) = ("queue.number = 7".to_owned(), String::new());
            ConfigTexts { file: "/etc/ftp-alg.toml".into(), started, loaded }
        }

        fn sessions(&self) -> Vec<SessionRow> {
            self.asked.fetch_add(1, Relaxed);
            Vec::new()
        }

        fn session(&self, _id: u64) -> Option<SessionDetail<StoredEvent>> {
            None
        }

        fn pinholes(&self) -> Vec<PinholeRow> {
            Vec::new()
        }

        fn change_role(&self, active: bool) -> Result<String, String> {
            Ok(if active { "active" } else { "standby" }.to_owned())
        }
    }
}
