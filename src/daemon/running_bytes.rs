//! The bytes of transfers that have not ended, by conntrack's counts of their data connections (`nf_conntrack_acct`).
//!
//! Conntrack is asked only when somebody asks for sessions, and for all data connections at once: at most four times a
//! second, and a tenth of the time.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{PinholeEnds, RangeFinder, SessionInfo, Translation};

use super::{shard::lock, snapshot::RunningTotals};
use crate::kernel::{
    RuleParameters,
    conntrack::{RunningCount, RunningCounts, count_running},
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
    /// Until when the look serves those who ask.
    until: Instant,
    counts: RunningCounts,
}

/// What is known of a data connection of a transfer that has not ended, if conntrack counts it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CountedBytes {
    is_upload: bool,
    pub(super) bytes: Option<u64>,
    pub(super) bytes_per_second: Option<f64>,
}

impl RunningBytes {
    /// Counts connections that rules with these parameters admitted.
    pub(super) fn new(parameters: &RuleParameters) -> Self {
        Self { parameters: parameters.clone(), looks: Mutex::default() }
    }

    /// The looks. Looks at conntrack first, if the last look is too old and the bytes of one of these sessions may be
    /// known.
    pub(super) fn looks_at(&self, sessions: &[SessionInfo]) -> MutexGuard<'_, Looks> {
        let mut looks = lock(&self.looks);
        let at = Instant::now();
        let is_needed = sessions
            .iter()
            .any(|session| session.data_connection.is_some() || session.open_ports.is_some());
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

    /// The counted bytes of the data connections of a session's transfers. The `finder` finds those of encrypted
    /// sessions.
    pub(super) fn moved(&self, session: &SessionInfo, finder: &RangeFinder) -> Vec<CountedBytes> {
        let Some(last) = self.0.back() else { return Vec::new() };
        if let (Some(transfer), Some((kind, ends))) = (&session.transfer, session.data_connection) {
            let (began, ends) = (session.since + transfer.requested, ends.key());
            let [one] = last.with(&ends) else { return Vec::new() };
            let sender = usize::from(transfer.verb.is_sent_by_target(kind));
            let is_upload = transfer.verb.is_upload();
            let moved = Some(self.moved_by(&ends, one, is_upload, sender, Some(began)));
            return moved.filter(|_| last.at >= began).into_iter().collect();
        }
        let Translation { client, server, server_external, .. } = session.translation;
        let [first, end] =
            [0, u16::MAX].map(|port| (client.ip(), SocketAddr::new(server_external.ip(), port)));
        let is_its = |(ends, _): &(&(IpAddr, SocketAddr), _)| {
            let found = finder.find(ends.0, SocketAddr::new(server.ip(), ends.1.port()));
            found.is_some_and(|found| found.of.session == session.id)
        };
        let open = session.open_ports.iter().flat_map(|_| last.counts.range(first..=end));
        let all =
            open.filter(is_its).flat_map(|(ends, same)| same.iter().map(move |one| (ends, one)));
        let moved = all.map(|(ends, one)| {
            // The other direction has handshakes alone.
            let is_upload = one.1.is_some_and(|[up, down]| up.bytes > down.bytes);
            self.moved_by(ends, one, is_upload, usize::from(!is_upload), None)
        });
        moved.collect()
    }

    /// The bytes that `sender` sent on a connection. `began` is the connection's beginning, if known.
    fn moved_by(
        &self,
        ends: &(IpAddr, SocketAddr),
        one: &RunningCount,
        is_upload: bool,
        sender: usize,
        began: Option<Instant>,
    ) -> CountedBytes {
        let payload =
            |(_, counted): &RunningCount| Some((*counted)?[sender].payload(ends.0, OPTIONS));
        let bytes = payload(one);
        let rate = || {
            let (first, last, bytes) = (self.0.front()?, self.0.back()?, bytes?);
            let is_first = first.at + RATE_AGES[0] > last.at;
            let is_usable = !is_first && began.is_none_or(|began| first.at >= began);
            let before = first.with(ends).iter().find(|(port, _)| *port == one.0).and_then(payload);
            let (since, before) = match (before.filter(|before| *before <= bytes), began) {
                (Some(before), _) if is_usable => (first.at, before),
                (_, Some(began)) => (began, 0),
                // It began behind the first look.
                (None, None) if is_usable => (first.at, 0),
                _ => return None,
            };
            let seconds = last.at.saturating_duration_since(since).as_secs_f64().max(0.001);
            Some(((bytes - before) as f64 / seconds).round())
        };
        CountedBytes { is_upload, bytes, bytes_per_second: rate() }
    }

    /// The port of the initiator of the only connection with these ends.
    pub(super) fn port_of(&self, ends: &PinholeEnds) -> Option<u16> {
        match self.0.back()?.with(&ends.key()) {
            [(port, _)] => Some(*port),
            _ => None,
        }
    }

    /// The totals of the transfers of these sessions.
    pub(super) fn totals(&self, running: &[SessionInfo], finder: &RangeFinder) -> RunningTotals {
        let (mut totals, mut counted, mut sums) = (RunningTotals::default(), 0, [(0, 0.0); 2]);
        for session in running {
            let started = session.transfer.as_ref().is_some_and(|transfer| transfer.has_started);
            let connections = self.moved(session, finder);
            totals.transfers += connections.len().max(started.into()) as u64;
            for CountedBytes { is_upload, bytes, bytes_per_second } in connections {
                counted += u64::from(bytes.is_some());
                let (sum, rate) = &mut sums[usize::from(is_upload)];
                *sum += bytes.unwrap_or_default();
                *rate += bytes_per_second.unwrap_or_default();
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
    /// The connections with these ends.
    fn with(&self, ends: &(IpAddr, SocketAddr)) -> &[RunningCount] {
        self.counts.get(ends).map_or(&[], Vec::as_slice)
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

    fn counted(payload: u64) -> CountedPackets {
        CountedPackets { bytes: payload + 52, packets: 1 }
    }

    fn look(at: Instant, port: u16, both: [u64; 2]) -> Look {
        let ends = ("10.0.0.7".parse().unwrap(), ARRIVAL.parse().unwrap());
        Look { at, until: at, counts: [(ends, vec![(port, Some(both.map(counted)))])].into() }
    }

    /// The bytes of a session's only connection, and their rate.
    fn moved(looks: &Looks, session: &SessionInfo) -> Option<(u64, f64)> {
        let one = looks.moved(session, &RangeFinder::default()).pop()?;
        Some((one.bytes?, one.bytes_per_second?))
    }

    #[test]
    fn a_rate_is_that_since_the_last_look_or_since_the_command() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let [down, up] =
            [TransferVerb::Retr, TransferVerb::Stor].map(|verb| session(start, 2, verb));
        let mut looks = Looks::default();
        assert_eq!(moved(&looks, &down), None);
        // Of an earlier transfer over the same ends.
        looks.add(look(at(1000), 40_001, [9, 9]));
        assert_eq!(moved(&looks, &down), None);
        looks.add(look(at(3000), 40_002, [7, 1000]));
        assert_eq!(moved(&looks, &down), Some((1000, 1000.0)));
        assert_eq!(moved(&looks, &up), Some((7, 7.0)));
        looks.add(look(at(3500), 40_002, [7, 3000]));
        assert_eq!(moved(&looks, &down), Some((3000, 2000.0)), "too near for a rate");
        looks.add(look(at(5000), 40_002, [7, 6000]));
        assert_eq!((moved(&looks, &down), looks.0.len()), (Some((6000, 2000.0)), 2), "since 3.5 s");
        looks.add(look(at(6000), 40_003, [7, 400]));
        assert_eq!(moved(&looks, &down), Some((400, 100.0)), "another connection");
        looks.add(look(at(90_000), 40_003, [7, 8800]));
        assert_eq!((moved(&looks, &down), looks.0.len()), (Some((8800, 100.0)), 1), "long ago");
    }
}
