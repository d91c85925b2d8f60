//! Pinholes whose transfers have ended, which their sessions no longer hold.
//!
//! Most were consumed, so they are closed in the kernel together with a later opening. But a final reply may come
//! before its data connection: a server sends it together with the preliminary reply, and the client connects when it
//! has read both. Or it is the late reply of an earlier transfer. So one that may be open stays open for a
//! [while](GRACE). It ends earlier if its session ends or announces another one, if there are too many, or at the
//! client's limit.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::engine::{ClientKey, Pinhole, pinholes::held_pinhole::HeldPinhole};

/// How long a pinhole outlives the final reply of its transfer. A SYN is retransmitted after 1, 3 and 7 seconds.
const GRACE: Duration = Duration::from_secs(8);

/// How long the closing of one waits for an opening, if it is not open.
const LINGER: Duration = Duration::from_secs(1);

/// Limit of pinholes that stay after an opening.
const MAX_AFTER_OPENING: usize = 32;
/// Limit of pinholes.
const MAX: usize = 64;

/// The pinholes of one shard, in the order in which their transfers ended.
#[derive(Default)]
pub(crate) struct EndedPinholes(VecDeque<EndedPinhole>);

struct EndedPinhole {
    held: HeldPinhole,
    /// The session that announced it.
    owner: u32,
    may_be_open: bool,
    /// When it is to be closed.
    until: Instant,
}

impl EndedPinholes {
    /// Adds `held` of the session `owner`, which `may_be_open`. Returns the one that has no room any more.
    pub(crate) fn push(
        &mut self,
        now: Instant,
        held: HeldPinhole,
        owner: u32,
        may_be_open: bool,
    ) -> Option<HeldPinhole> {
        let until = if may_be_open { held.deadline.min(now + GRACE) } else { now + LINGER };
        self.0.push_back(EndedPinhole { held, owner, may_be_open, until });
        (self.0.len() > MAX).then(|| self.0.pop_front()).flatten().map(|ended| ended.held)
    }

    /// Moves those to `to_close` whose time has passed.
    pub(crate) fn close_before(&mut self, now: Instant, to_close: &mut Vec<HeldPinhole>) {
        self.close_if(to_close, |ended| ended.until <= now);
    }

    /// When the next of the session `owner` is to be closed.
    pub(crate) fn next_of(&self, owner: u32) -> Option<Instant> {
        self.0.iter().filter(|ended| ended.owner == owner).map(|ended| ended.until).min()
    }

    /// Moves those to `to_close` whose time has passed, those of the session `owner`, and the oldest if there are many,
    /// because a pinhole of the session is opened. Returns how many of `client` stay.
    pub(crate) fn close_for_opening(
        &mut self,
        now: Instant,
        (owner, client): (u32, ClientKey),
        to_close: &mut Vec<HeldPinhole>,
    ) -> usize {
        let mut of_client = 0;
        self.close_if(to_close, |ended| {
            let is_due = ended.until <= now || ended.owner == owner;
            of_client += usize::from(!is_due && ended.held.client == client);
            is_due
        });
        let surplus = self.0.len().saturating_sub(MAX_AFTER_OPENING);
        for EndedPinhole { held, .. } in self.0.drain(..surplus) {
            of_client -= usize::from(held.client == client);
            to_close.push(held);
        }
        of_client
    }

    /// Moves those of the session `owner` to `to_close`.
    pub(crate) fn close_of(&mut self, owner: u32, to_close: &mut Vec<HeldPinhole>) {
        self.close_if(to_close, |ended| ended.owner == owner);
    }

    /// Moves those to `to_close` that are replaced `by` a pinhole of the session `owner`.
    pub(crate) fn close_replaced(
        &mut self,
        owner: u32,
        by: &Pinhole,
        to_close: &mut Vec<HeldPinhole>,
    ) {
        self.close_if(to_close, |ended| {
            ended.owner == owner || ended.held.pinhole.ends() == by.ends()
        });
    }

    /// Moves all to `to_close`.
    pub(crate) fn close_all(&mut self, to_close: &mut Vec<HeldPinhole>) {
        to_close.extend(self.0.drain(..).map(|ended| ended.held));
    }

    /// Those that may be open, with the sessions that announced them.
    pub(crate) fn open_at(&self, now: Instant) -> impl Iterator<Item = (u32, &HeldPinhole)> {
        let may_be_open = move |ended: &&EndedPinhole| ended.may_be_open && ended.until > now;
        self.0.iter().filter(may_be_open).map(|ended| (ended.owner, &ended.held))
    }

    fn close_if(
        &mut self,
        to_close: &mut Vec<HeldPinhole>,
        mut is_due: impl FnMut(&EndedPinhole) -> bool,
    ) {
        let mut at = 0;
        while let Some(ended) = self.0.get(at) {
            if is_due(ended) {
                to_close.extend(self.0.remove(at).map(|ended| ended.held));
            } else {
                at += 1;
            }
        }
    }
}
