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
}
