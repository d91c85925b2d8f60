//! The bytes of transfers that have not ended, by conntrack's counts of their data connections (`nf_conntrack_acct`).
//!
//! Conntrack is asked only when somebody asks for sessions, and for all data connections at once: at most four times a
//! second, and a tenth of the time.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{PinholeEnds, SessionInfo};

use super::{shard::lock, snapshot::RunningTotals};
use crate::kernel::{
    RuleParameters,
    conntrack::{RunningCounts, count_running},
};

/// How long a look serves those who ask.
const LOOK_LIFETIME: Duration = Duration::from_millis(250);
/// The lifetime of a look in terms of the time that it took.
const LIFETIME_FACTOR: u32 = 10;
/// The TCP options of most packets: a timestamp.
const OPTIONS: u64 = 12;
/// How far apart two looks are at least, and at most, for a rate between them.
const RATE_AGES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// The looks at conntrack.
pub(super) struct RunningBytes {
    parameters: RuleParameters,
    looks: Mutex<Looks>,
}

/// The last looks, the newest at the end. The first is the one from which rates count.
#[derive(Debug, Default)]
pub(super) struct Looks(VecDeque<Look>);

#[derive(Debug)]
struct Look {
    at: Instant,
    /// How long it serves those who ask.
    until: Instant,
    counts: RunningCounts,
}

/// What is known of a transfer that has not ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moved {
    pub(super) bytes: u64,
    pub(super) bytes_per_second: f64,
}

impl RunningBytes {
    /// For connections that rules with these parameters admitted.
    pub(super) fn new(parameters: &RuleParameters) -> Self {
        Self { parameters: parameters.clone(), looks: Mutex::default() }
    }

    /// The looks, after a new one if the bytes of one of these sessions may be known, and the last one is too old.
    pub(super) fn looks_at(&self, sessions: &[SessionInfo]) -> MutexGuard<'_, Looks> {
        let mut looks = lock(&self.looks);
        let at = Instant::now();
        let is_needed = sessions.iter().any(|session| session.data_connection.is_some());
        if is_needed && looks.0.back().is_none_or(|last| last.until <= at) {
            let counts = count_running(&self.parameters).unwrap_or_default();
            let lifetime = (at.elapsed() * LIFETIME_FACTOR).max(LOOK_LIFETIME);
            looks.add(Look { at, until: at + lifetime, counts });
        }
        looks
    }
}

impl Looks {
    fn add(&mut self, look: Look) {
        let at = look.at;
        self.0.push_back(look);
        let [least, most] = RATE_AGES;
        let age = |look: &Look| at.saturating_duration_since(look.at);
        while self.0.get(1).is_some_and(|next| age(next) >= least)
            || self.0.front().is_some_and(|first| age(first) > most)
        {
            self.0.pop_front();
        }
    }

    /// What is known of the transfer of a session. Nothing if its data connection is not known, or not counted.
    pub(super) fn moved(&self, session: &SessionInfo) -> Option<Moved> {
        let transfer = session.transfer.as_ref()?;
        let (kind, ends) = session.data_connection?;
        let of_sender = usize::from(transfer.verb.is_sent_by_target(kind));
        let began = session.since + transfer.requested;
        let last = self.0.back().filter(|last| last.at >= began)?;
        let (port, bytes) = last.payload(&ends, of_sender)?;
        let first =
            self.0.front().filter(|first| first.at >= began && first.at + RATE_AGES[0] <= last.at);
        let first = first.and_then(|first| Some((first.at, first.payload(&ends, of_sender)?)));
        let (since, before) = match first {
            Some((at, (its_port, before))) if its_port == port && before <= bytes => (at, before),
            _ => (began, 0),
        };
        let seconds = last.at.saturating_duration_since(since).as_secs_f64().max(0.001);
        Some(Moved { bytes, bytes_per_second: ((bytes - before) as f64 / seconds).round() })
    }

    /// The totals of the transfers of these sessions.
    pub(super) fn totals(&self, running: &[SessionInfo]) -> RunningTotals {
        let (mut totals, mut counted, mut sums) = (RunningTotals::default(), 0, [(0, 0.0); 2]);
        for session in running {
            let started = session.transfer.as_ref().filter(|transfer| transfer.has_started);
            let Some(transfer) = started else { continue };
            totals.transfers += 1;
            if let Some(Moved { bytes, bytes_per_second }) = self.moved(session) {
                counted += 1;
                let (sum, rate) = &mut sums[usize::from(transfer.verb.is_upload())];
                (*sum, *rate) = (*sum + bytes, *rate + bytes_per_second);
            }
        }
        if counted > 0 || totals.transfers == 0 {
            let [(down, down_rate), (up, up_rate)] = sums;
            (totals.bytes_up, totals.bytes_down) = (Some(up), Some(down));
            totals.bytes_up_per_second = Some(up_rate);
            totals.bytes_down_per_second = Some(down_rate);
        }
        totals
    }
}

impl Look {
    /// The initiator's port of a data connection, and the bytes without headers in its direction (0) or in the other (1).
    fn payload(&self, ends: &PinholeEnds, direction: usize) -> Option<(u16, u64)> {
        let (port, counted) = (*self.counts.get(&ends.ends())?)?;
        Some((port, counted[direction].payload(ends.initiator, OPTIONS)))
    }
}

#[cfg(test)]
mod tests {
    use ftp_alg_core::{
        engine::{PendingTransfer, Translation},
        ftp::AnnouncementKind,
        session::TransferVerb,
    };

    use super::*;
    use crate::kernel::conntrack::CountedPackets;

    const ARRIVAL: &str = "203.0.113.9:40000";

    /// A session that asked for a file so many seconds after its first packet.
    fn session(since: Instant, requested: u64, verb: TransferVerb) -> SessionInfo {
        let (client, server) =
            ("10.0.0.7:1035".parse().unwrap(), "203.0.113.9:21".parse().unwrap());
        let initiator = "10.0.0.7".parse().unwrap();
        let arrival = ARRIVAL.parse().unwrap();
        let ends = PinholeEnds { initiator, arrival, target: arrival, source: initiator };
        let mut transfer = PendingTransfer::new(verb, "a".into(), Duration::from_secs(requested));
        transfer.has_started = true;
        SessionInfo {
            id: 1,
            translation: Translation::identity(client, server),
            is_looked_up: true,
            state: "logged-in",
            since,
            adjusted: false,
            user: None,
            is_on_fast_path: false,
            transfer: Some(transfer),
            data_connection: Some((AnnouncementKind::Pasv, ends)),
            ended_transfers: 0,
            open_ports: None,
        }
    }

    fn look(at: Instant, port: u16, [up, down]: [u64; 2]) -> Look {
        let counted = |bytes| CountedPackets { bytes: bytes + 52, packets: 1 };
        let ends = ("10.0.0.7".parse().unwrap(), ARRIVAL.parse().unwrap());
        let counts = [(ends, Some((port, [counted(up), counted(down)])))].into();
        Look { at, until: at, counts }
    }

    #[test]
    fn a_rate_is_that_since_the_last_look_or_since_the_command() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let [down, up] =
            [TransferVerb::Retr, TransferVerb::Stor].map(|verb| session(start, 2, verb));
        let mut looks = Looks::default();
        assert_eq!(looks.moved(&down), None);
        let moved = |bytes, bytes_per_second| Some(Moved { bytes, bytes_per_second });
        // Of an earlier transfer over the same ends.
        looks.add(look(at(1000), 40_001, [9, 9]));
        assert_eq!(looks.moved(&down), None);
        looks.add(look(at(3000), 40_002, [7, 1000]));
        assert_eq!(looks.moved(&down), moved(1000, 1000.0));
        assert_eq!(looks.moved(&up), moved(7, 7.0));
        looks.add(look(at(3500), 40_002, [7, 3000]));
        assert_eq!(looks.moved(&down), moved(3000, 2000.0), "too near for a rate");
        looks.add(look(at(5000), 40_002, [7, 6000]));
        assert_eq!((looks.moved(&down), looks.0.len()), (moved(6000, 2000.0), 2), "since 3.5 s");
        looks.add(look(at(6000), 40_003, [7, 400]));
        assert_eq!(looks.moved(&down), moved(400, 100.0), "another connection");
        looks.add(look(at(90_000), 40_003, [7, 8800]));
        assert_eq!((looks.moved(&down), looks.0.len()), (moved(8800, 100.0), 1), "long ago");
    }

    #[test]
    fn totals_are_by_direction_and_null_without_counts() {
        let start = Instant::now();
        let running = [TransferVerb::Retr, TransferVerb::Stor].map(|verb| session(start, 0, verb));
        let mut looks = Looks::default();
        assert_eq!(looks.totals(&[]).bytes_up, Some(0));
        let unknown = looks.totals(&running);
        assert_eq!((unknown.transfers, unknown.bytes_up, unknown.bytes_down), (2, None, None));
        looks.add(look(start + Duration::from_secs(2), 40_001, [10, 20]));
        let RunningTotals { transfers, bytes_up, bytes_down, bytes_up_per_second, .. } =
            looks.totals(&running);
        assert_eq!((transfers, bytes_up, bytes_down), (2, Some(10), Some(20)));
        assert_eq!(bytes_up_per_second, Some(5.0));
    }
}
