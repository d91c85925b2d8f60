//! What the kernel has answered about routes, for a short time.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use ahash::RandomState;

use crate::engine::RouteLookup;

/// How long the answers no and yes are used. Routes may be about to change.
const LIFETIMES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// Limit of answers of one kind; at the limit all are forgotten.
const MAX_ANSWERS: usize = 2048;

/// The kernel's latest answers, so that a flood of forged packets does not ask for each.
#[derive(Debug, Default)]
pub struct RouteAnswers {
    /// With the answers no and yes.
    questions: [Questions; 2],
}

#[derive(Debug, Default)]
struct Questions {
    all: HashSet<RouteLookup, RandomState>,
    since: Option<Instant>,
}

impl RouteAnswers {
    /// Forgets answers if the first of them is old.
    #[inline]
    pub fn forget_old(&mut self, now: Instant) {
        for (Questions { all, since }, lifetime) in self.questions.iter_mut().zip(LIFETIMES) {
            if since.is_some_and(|since| now.saturating_duration_since(since) >= lifetime) {
                all.clear();
                *since = None;
            }
        }
    }

    pub fn get(&self, question: &RouteLookup) -> Option<bool> {
        let [no, yes] = &self.questions;
        let is_among = |questions: &Questions| questions.all.contains(question);
        is_among(yes).then_some(true).or_else(|| is_among(no).then_some(false))
    }

    pub fn insert(&mut self, now: Instant, question: RouteLookup, answer: bool) {
        let Questions { all, since } = &mut self.questions[usize::from(answer)];
        if all.len() >= MAX_ANSWERS {
            all.clear();
        }
        if all.is_empty() {
            *since = Some(now);
        }
        all.insert(question);
    }
}
