//! The texts that the endpoint gives: the metrics, and the JSON of the page.
//!
//! Invariant: a text is given again for [`TEXT_LIFETIME`], or for [`LIFETIME_FACTOR`] times what it took to make if
//! that is longer. So requests, however many there are, do not take the engines' locks often.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    decision_times::DecisionTimes,
    families::{self, Reading},
};
use crate::{
    daemon::{shard::lock, status_source::StatusSource},
    kernel::clocks::since_1970,
};

/// How long a text is given again.
const TEXT_LIFETIME: Duration = Duration::from_millis(100);
/// The lifetime of a text in terms of the time that it took to make.
const LIFETIME_FACTOR: u32 = 10;
/// Limit of sessions in an answer. The page knows it.
const MAX_SESSIONS: usize = 1000;

/// The source of the answers.
pub(in crate::daemon) struct Answers {
    source: Arc<dyn StatusSource>,
    decisions: Arc<DecisionTimes>,
    /// The start in seconds since 1970.
    started: u64,
    metrics: Renewed<Option<String>>,
    status: Renewed<String>,
    sessions: Renewed<String>,
}

impl Answers {
    /// Answers with what `source` and `decisions` have. The daemon starts now.
    pub(in crate::daemon) fn new(
        source: Arc<dyn StatusSource>,
        decisions: Arc<DecisionTimes>,
    ) -> Self {
        Self {
            source,
            decisions,
            started: since_1970().as_secs(),
            metrics: Renewed::default(),
            status: Renewed::default(),
            sessions: Renewed::default(),
        }
    }

    /// The metrics for Prometheus.
    pub(super) fn metrics(&self) -> Option<String> {
        self.metrics.get(|| {
            let (status, decisions) = (self.source.status(), self.decisions.read());
            families::text(&Reading { status, started: self.started, decisions }).ok()
        })
    }

    /// The status as the control socket gives it.
    pub(super) fn status(&self) -> String {
        self.status.get(|| json_line(&self.source.status()))
    }

    /// The newest sessions as the control socket gives them.
    pub(super) fn sessions(&self) -> String {
        self.sessions.get(|| {
            let mut rows = self.source.sessions();
            rows.sort_unstable_by_key(|row| std::cmp::Reverse(row.summary.id));
            rows.truncate(MAX_SESSIONS);
            json_line(&rows)
        })
    }

    /// The newest events behind the one with the ID `after`; 0 for all of them. No engine is asked.
    pub(super) fn events(&self, after: u64) -> String {
        json_line(&self.source.newest_events(after))
    }
}

/// A value that is made again when its time is over, with the end of its time.
#[derive(Default)]
struct Renewed<T>(Mutex<Option<(T, Instant)>>);

impl<T: Clone> Renewed<T> {
    fn get(&self, make: impl FnOnce() -> T) -> T {
        let mut known = lock(&self.0);
        let begin = Instant::now();
        if let Some((value, until)) = &*known
            && begin < *until
        {
            return value.clone();
        }
        let value = make();
        let end = Instant::now();
        let lifetime = (end - begin).saturating_mul(LIFETIME_FACTOR).max(TEXT_LIFETIME);
        *known = Some((value.clone(), end + lifetime));
        value
    }
}

fn json_line(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}
