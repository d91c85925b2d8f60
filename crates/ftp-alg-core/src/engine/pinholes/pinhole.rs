//! A pinhole: its ends, where the kernel has it, until when, and its state. Only this file changes the state.
//!
//! | from | by | to |
//! | --- | --- | --- |
//! | | it was opened for a command; for a reply | announced; answered |
//! | announced | [`answer`](Pinhole::answer): the server accepted the command | answered |
//! | answered | [`start`](Pinhole::start): a preliminary reply, or a success | in transfer: its connection may still have to come |
//! | in transfer | [`fail`](Pinhole::fail): the transfer failed, perhaps before its connection | answered |
//! | answered | `fail`: the server refused the command, but not with 425 | answered and refused, until the next command |
//! | answered, in transfer | [`end`](Pinhole::end): the transfer ended well | ended, for a [while](GRACE): its connection may still have to come |
//! | open | [`note_closed_in_kernel`](Pinhole::note_closed_in_kernel): consumed, expired, or replaced by another with its ends | not open |
//! | of the program | [`move_to_rules`](Pinhole::move_to_rules) | of the rules |
//!
//! When it is closed, it leaves the [table](super::PinholeTable), and its port is reserved until the kernel has done that.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        ClientKey, EventKind, InstalledIn, Opening, PinholeEnds, Translation, UnusedPinhole,
        offload::handover::PinholeId,
    },
    ftp::{AnnouncementKind, Reply},
};

/// How long before its deadline a pinhole is renewed, if its lifetime is long enough. The kernel must do it before it
/// expires.
const MAX_RENEWAL_LEAD: Duration = Duration::from_secs(3);
/// How often the host looks for pinholes to renew, at least, and as a part of their lifetime.
const MAX_RENEWAL_INTERVAL: Duration = Duration::from_secs(1);
const RENEWAL_INTERVAL_PART: u32 = 8;
/// How long a pinhole may be renewed: some servers recall files from tapes.
const RENEWAL_LIMIT: Duration = Duration::from_secs(600);
/// How long a pinhole outlives the final reply of its transfer. That may come before the data connection: a server sends it
/// together with the preliminary reply, and the client connects when it has read both. Or it is the late reply of an
/// earlier transfer. A SYN is retransmitted after 1, 3 and 7 seconds.
const GRACE: Duration = Duration::from_secs(8);
/// How long the closing of a pinhole that is not open waits for an opening.
const LINGER: Duration = Duration::from_secs(1);
/// The reply if no data connection came about.
const NO_DATA_CONNECTION: u16 = 425;

/// A pinhole of a session.
#[derive(Clone, Debug)]
pub struct Pinhole {
    pub ends: PinholeEnds,
    /// The kind of announcement that opened it.
    pub kind: AnnouncementKind,
    /// When it was opened, or when an earlier pinhole of the session was that has the same ends and that no transfer
    /// used. `None` if an earlier daemon opened it.
    pub opened: Option<Instant>,
    /// When it expires.
    pub deadline: Instant,
    /// Time after which it is not renewed any more.
    last_renewal: Instant,
    /// The client it counts for.
    pub(crate) client: ClientKey,
    /// Distinguishes it from others with the same ends.
    pub(crate) serial: u64,
    /// Who has the pinhole in the kernel.
    pub(crate) installed_in: InstalledIn,
    state: State,
    /// Whether the kernel is known to have closed it. A preliminary reply does not show that, because the server may
    /// be about to connect.
    is_closed_in_kernel: bool,
    /// Whether its transfer has ever started, so that it may be consumed.
    has_started: bool,
    /// Whether the BPF program found it consumed, and has it no more.
    is_consumed: bool,
    /// Whether its connection is on the fast path, so that the grant counts for the client.
    is_granted: bool,
    /// When to report it if no transfer uses it, once.
    pub examination: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The server has not answered the command that announced it.
    Announced,
    /// It waits for a transfer. `is_refused`: the server refused the last command that was to use it.
    Answered { is_refused: bool },
    /// A transfer uses it.
    InTransfer,
    /// Its transfer has ended.
    Ended { until: Instant },
}

/// A [`Pinhole`] in a record.
#[derive(Serialize, Deserialize)]
pub struct PinholeRecord {
    pub(crate) ends: PinholeEnds,
    pub(crate) kind: AnnouncementKind,
    pub(crate) serial: u64,
    /// Milliseconds since the records' epoch.
    pub deadline: u64,
    pub(crate) answered: bool,
    pub(crate) in_use: bool,
    /// Identity in the BPF program, if that has it and not the rules.
    pub(crate) in_program: Option<PinholeId>,
}

/// How long before its deadline a pinhole with this lifetime is renewed.
fn renewal_lead(lifetime: Duration) -> Duration {
    MAX_RENEWAL_LEAD.min(lifetime / 2)
}

/// How often to look for pinholes with this lifetime that are to be renewed.
pub(crate) fn renewal_interval(lifetime: Duration) -> Duration {
    MAX_RENEWAL_INTERVAL.min(lifetime / RENEWAL_INTERVAL_PART)
}

impl Pinhole {
    /// The fields of an event which says that no transfer used it. `why` is the reason of its closing, empty if it
    /// expired.
    pub fn unused(&self, why: &'static str, closed: Option<Instant>) -> UnusedPinhole {
        UnusedPinhole { kind: self.kind, ends: self.ends, why, lifetime: [self.opened, closed] }
    }

    /// The event of its closing without a transfer.
    pub fn closed_because(&self, why: &'static str, closed: Option<Instant>) -> EventKind {
        EventKind::PinholeClosed(self.unused(why, closed))
    }

    /// A new pinhole, without a serial number.
    pub(crate) fn new(
        ends: PinholeEnds,
        kind: AnnouncementKind,
        deadline: Instant,
        client: ClientKey,
        installed_in: InstalledIn,
    ) -> Self {
        let state = match kind.is_active() {
            true => State::Announced,
            false => State::Answered { is_refused: false },
        };
        Self {
            ends,
            kind,
            opened: None,
            deadline,
            last_renewal: deadline + RENEWAL_LIMIT,
            client,
            serial: 0,
            installed_in,
            state,
            is_closed_in_kernel: false,
            has_started: false,
            is_consumed: false,
            is_granted: false,
            examination: None,
        }
    }

    /// A pinhole that an earlier daemon recorded.
    pub(super) fn restored(record: &PinholeRecord, deadline: Instant, client: ClientKey) -> Self {
        let state = match (record.in_use, record.answered) {
            (true, _) => State::InTransfer,
            (false, true) => State::Answered { is_refused: false },
            (false, false) => State::Announced,
        };
        let installed_in = record.in_program.map_or(InstalledIn::Rules, InstalledIn::Program);
        let new = Self::new(record.ends, record.kind, deadline, client, installed_in);
        Self { serial: record.serial, state, has_started: record.in_use, ..new }
    }

    /// Its record, with this deadline.
    pub fn record(&self, deadline: u64) -> PinholeRecord {
        let Self { ends, kind, serial, .. } = *self;
        let (answered, in_use, in_program) =
            (self.is_answered(), self.is_in_transfer(), self.in_program());
        PinholeRecord { ends, kind, serial, deadline, answered, in_use, in_program }
    }

    /// Its identity in the BPF program, if that has it and not the rules.
    pub fn in_program(&self) -> Option<PinholeId> {
        match self.installed_in {
            InstalledIn::Program(id) => Some(id),
            InstalledIn::Rules => None,
        }
    }

    /// The request to open it or to renew it, on behalf of this control connection.
    pub fn opening(&self, control: &Translation, lifetime: Duration) -> Opening {
        Opening { ends: self.ends, control: *control, kind: self.kind, lifetime }
    }

    /// Whether the server has answered the announcement; a server's own announcement counts as answered.
    pub fn is_answered(&self) -> bool {
        self.state != State::Announced
    }

    /// Whether a transfer uses it: the server has sent a preliminary reply or a success, but its data connection may
    /// still have to come.
    pub fn is_in_transfer(&self) -> bool {
        self.state == State::InTransfer
    }

    /// Whether the server refused the last command that was to use it.
    pub fn is_refused(&self) -> bool {
        self.state == State::Answered { is_refused: true }
    }

    /// Whether its transfer has ended.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended { .. })
    }

    /// Whether the kernel may have it open `now`, as far as is known.
    pub fn may_be_open(&self, now: Instant) -> bool {
        !self.is_closed_in_kernel && self.ended_until().is_none_or(|until| until > now)
    }

    /// Whether the kernel may have it open, as far as is known, and its transfer has not ended.
    pub(crate) fn is_open(&self) -> bool {
        !self.is_closed_in_kernel && !self.has_ended()
    }

    /// Whether it counts for its client's limit.
    pub(super) fn counts(&self) -> bool {
        self.is_open() && !self.is_granted
    }

    /// Whether its session waits for its data connection, as far as is known.
    pub(super) fn is_waited_for(&self) -> bool {
        self.is_open() && !self.has_started
    }

    /// Whether it may be consumed, so that looking for it may make room for its client.
    pub(super) fn may_be_consumed(&self) -> bool {
        self.has_started && self.counts()
    }

    /// Whether the kernel may still have the pinhole where it was installed.
    pub(super) fn is_installed(&self) -> bool {
        !self.is_consumed
    }

    pub(super) fn answer(&mut self) {
        self.state = State::Answered { is_refused: false };
    }

    pub(super) fn start(&mut self) {
        (self.state, self.has_started) = (State::InTransfer, true);
    }

    /// A transfer failed with `reply`.
    pub(super) fn fail(&mut self, reply: Reply) {
        match self.state {
            State::InTransfer => self.state = State::Answered { is_refused: false },
            State::Answered { .. } => {
                self.state = State::Answered { is_refused: reply.code != NO_DATA_CONNECTION };
            }
            State::Announced | State::Ended { .. } => {}
        }
    }

    /// Its transfer has ended well.
    pub(super) fn end(&mut self, now: Instant) {
        let until =
            if self.is_closed_in_kernel { now + LINGER } else { self.deadline.min(now + GRACE) };
        self.state = State::Ended { until };
    }

    /// When to close it, if its transfer has ended.
    pub(super) fn ended_until(&self) -> Option<Instant> {
        match self.state {
            State::Ended { until } => Some(until),
            _ => None,
        }
    }

    pub(super) fn note_closed_in_kernel(&mut self) {
        self.is_closed_in_kernel = true;
    }

    /// The BPF program found it consumed.
    pub(super) fn note_consumed(&mut self) {
        (self.is_closed_in_kernel, self.is_consumed) = (true, true);
    }

    /// From now on the rules have it, not the BPF program.
    pub(super) fn move_to_rules(&mut self) {
        (self.installed_in, self.is_granted) = (InstalledIn::Rules, false);
    }

    /// Whether its connection is on the fast path.
    pub(crate) fn set_granted(&mut self, is_granted: bool) {
        self.is_granted = is_granted;
    }

    /// Whether it expires so soon that it is to be renewed `now` for this lifetime, or has expired.
    pub(super) fn is_due(&self, now: Instant, lifetime: Duration) -> bool {
        now + renewal_lead(lifetime) >= self.deadline
    }

    /// Whether it is to be renewed `now` for this lifetime, if it is waited for.
    pub(super) fn is_renewable(&self, now: Instant, lifetime: Duration) -> bool {
        self.deadline > now && self.is_due(now, lifetime) && now < self.last_renewal
    }

    /// When it must be looked at after `now`: shortly before its deadline, because it may be renewed for this lifetime,
    /// at its deadline, to report it, and to close it after its transfer.
    pub(crate) fn next_due(&self, now: Instant, lifetime: Duration) -> Option<Instant> {
        let renewal = self.deadline.checked_sub(renewal_lead(lifetime));
        let due = match self.ended_until() {
            Some(until) => [Some(until), None, None],
            None => [renewal, Some(self.deadline), self.examination],
        };
        due.into_iter().flatten().filter(|at| *at > now).min()
    }
}
