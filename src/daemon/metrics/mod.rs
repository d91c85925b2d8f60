//! The endpoint for Prometheus: `GET /metrics` over HTTP, by `[metrics] listen`.
//!
//! `families` has the metrics, `decision_times` the histogram that workers record to, `endpoint` answers over HTTP.
//!
//! Invariants:
//! - No packet waits for the endpoint. It reads what `ftp-alg status` reads, with the same locks, and at most ten times
//!   a second, however often it is asked.
//! - Its memory is bounded: few connections, a short head, and no body is read.
//! - Names of metrics and labels do not change, because dashboards and alerts match them.

mod decision_times;
mod endpoint;
mod families;

pub(super) use decision_times::DecisionTimes;
pub(super) use endpoint::{MetricsEndpoint, MetricsListener};

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
