//! The endpoint for Prometheus and for browsers: `GET /metrics`, and a page at `/`, over HTTP, by `[metrics] listen`.
//!
//! `families` has the metrics, `decision_times` the histogram that workers record to. `answers` makes texts of them,
//! `routes` chooses one for a request, `password` has who may ask, `endpoint` has the connections. The page itself is
//! in `page`; it reads JSON from the paths next to it.
//!
//! Invariants:
//! - No packet waits for the endpoint. It reads what `ftp-alg status` reads, with the same locks, and at most ten times
//!   a second, however often it is asked. For events it locks their ring alone.
//! - Its memory is bounded: few connections, a short head, no body is read, and answers are bounded.
//! - The page has no text of the daemon as markup, and loads nothing from elsewhere (`routes` has the policy).
//! - Names of metrics and labels do not change, because dashboards and alerts match them.

mod answers;
mod decision_times;
mod endpoint;
mod families;
mod password;
mod routes;

pub(super) use answers::Answers;
pub(super) use decision_times::DecisionTimes;
pub(super) use endpoint::{MetricsEndpoint, bind};
pub use password::{Password, PasswordError};
pub(super) use routes::Site;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
