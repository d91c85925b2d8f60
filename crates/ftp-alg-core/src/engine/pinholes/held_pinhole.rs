//! A pinhole that a session holds: its deadline and renewals, and its form in a record.
//!
//! Which part of the kernel has it, the [registry](super::registry) knows: that can change without its session.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{
    engine::{ClientKey, Opening, Pinhole, Translation, offload::handover::FastPathPinhole},
    ftp::AnnouncementKind,
};

/// How long before its deadline a pinhole is renewed, if its lifetime is long enough. The kernel must do it before it
/// expires.
const MAX_RENEWAL_LEAD: Duration = Duration::from_secs(3);
/// How often the host looks for pinholes to renew, at least, and as a part of their lifetime.
const MAX_RENEWAL_INTERVAL: Duration = Duration::from_secs(1);
const RENEWAL_INTERVAL_PART: u32 = 8;
/// How long a pinhole may be renewed: some servers recall files from tapes.
const RENEWAL_LIMIT: Duration = Duration::from_secs(600);

/// A pinhole that a session holds.
#[derive(Clone, Debug)]
pub struct HeldPinhole {
    /// The pinhole.
    pub pinhole: Pinhole,
    /// The kind of announcement that opened it.
    pub kind: AnnouncementKind,
    /// When it expires.
    pub deadline: Instant,
    /// After this it is not renewed any more.
    last_renewal: Instant,
    /// Whether the server has answered the announcement; a server's own announcement counts as answered.
    pub answered: bool,
    /// Whether a transfer uses it: the server has sent a preliminary reply or a success, but its data connection may
    /// still have to come.
    pub in_use: bool,
    /// Whether the server refused the last command that was to use it.
    pub is_refused: bool,
    /// The client it counts for.
    pub(crate) client: ClientKey,
    /// Distinguishes it from others with the same endpoints.
    pub(crate) serial: u64,
    /// Identity in the BPF program, if that opened it. The rules may have it since, as the registry knows.
    pub(crate) fast_path: Option<FastPathPinhole>,
    /// Whether the BPF program no longer has it.
    pub is_consumed: bool,
    /// When to report it if no transfer uses it, once.
    pub examination: Option<Instant>,
}

/// A [`HeldPinhole`] in a record.
#[derive(Serialize, Deserialize)]
pub struct PinholeRecord {
    pub(crate) pinhole: Pinhole,
    pub(crate) kind: AnnouncementKind,
    pub(crate) serial: u64,
    /// Milliseconds since the records' epoch.
    pub deadline: u64,
    pub(crate) answered: bool,
    pub(crate) in_use: bool,
    /// Identity in the BPF program, if that has it and not the rules.
    pub(crate) fast_path: Option<FastPathPinhole>,
}

/// How long before its deadline a pinhole with this lifetime is renewed.
fn renewal_lead(lifetime: Duration) -> Duration {
    MAX_RENEWAL_LEAD.min(lifetime / 2)
}

/// How often to look for pinholes with this lifetime that are to be renewed.
pub(crate) fn renewal_interval(lifetime: Duration) -> Duration {
    MAX_RENEWAL_INTERVAL.min(lifetime / RENEWAL_INTERVAL_PART)
}

impl HeldPinhole {
    pub(crate) fn new(
        pinhole: Pinhole,
        kind: AnnouncementKind,
        deadline: Instant,
        (client, serial): (ClientKey, u64),
        fast_path: Option<FastPathPinhole>,
    ) -> Self {
        let (answered, in_use, is_consumed) = (!kind.is_active(), false, false);
        let last_renewal = deadline + RENEWAL_LIMIT;
        Self {
            pinhole,
            kind,
            deadline,
            last_renewal,
            answered,
            in_use,
            is_refused: false,
            client,
            serial,
            fast_path,
            is_consumed,
            examination: None,
        }
    }

    /// The request to open it or to renew it, on behalf of this control connection.
    pub fn opening(&self, control: &Translation, lifetime: Duration) -> Opening {
        let (pinhole, from_client) = (self.pinhole, !self.kind.is_active());
        Opening { pinhole, control: *control, from_client, lifetime }
    }

    /// Whether it is to be renewed `now` for this lifetime, if it is waited for.
    pub fn is_renewable(&self, now: Instant, lifetime: Duration) -> bool {
        self.deadline > now
            && now + renewal_lead(lifetime) >= self.deadline
            && now < self.last_renewal
    }

    /// When it must be looked at after `now`: shortly before its deadline, because it may be renewed for this lifetime,
    /// at its deadline, and to report it.
    pub(crate) fn next_due(&self, now: Instant, lifetime: Duration) -> Option<Instant> {
        let renewal = self.deadline.checked_sub(renewal_lead(lifetime));
        let due = [renewal, Some(self.deadline), self.examination];
        due.into_iter().flatten().filter(|at| *at > now).min()
    }
}
