//! What the kernel has answered about routes, for a short time.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use ahash::RandomState;

/// A question to the kernel: does a route to this address, for packets with this mark, lead to this interface?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteLookup {
    /// The address.
    pub address: IpAddr,
    /// The interface's index.
    pub interface: u32,
    /// The index of the interface by which the kernel sends packets there, as far as is known; else 0. It tells the
    /// interface of its VRF.
    pub used: u32,
    /// The packet mark, for policy routing.
    pub mark: u32,
}

/// How long an answer of the kernel is used.
const LIFETIME: Duration = Duration::from_secs(1);
/// Limit of answers; at the limit all are forgotten.
const MAX_ANSWERS: usize = 4096;

/// The kernel's latest answers, so that a flood of forged packets does not ask for each.
#[derive(Debug, Default)]
pub struct RouteAnswers {
    answers: HashMap<RouteLookup, bool, RandomState>,
    since: Option<Instant>,
}

impl RouteAnswers {
    /// Forgets the answers if the first of them is old.
    #[inline]
    pub fn forget_old(&mut self, now: Instant) {
        if self.since.is_some_and(|since| now.saturating_duration_since(since) >= LIFETIME) {
            self.answers.clear();
            self.since = None;
        }
    }

    pub fn get(&self, question: &RouteLookup) -> Option<bool> {
        self.answers.get(question).copied()
    }

    pub fn insert(&mut self, now: Instant, question: RouteLookup, answer: bool) {
        if self.answers.len() >= MAX_ANSWERS {
            self.answers.clear();
        }
        if self.answers.is_empty() {
            self.since = Some(now);
        }
        self.answers.insert(question, answer);
    }
}
