//! The rows that the control socket sends as JSON: status, sessions, pinholes and events.
//!
//! Invariant: field names do not change, because scripts read them. This module knows nothing of engines and kernels;
//! the daemon implements [`StatusSource`].

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use ftp_alg_core::{
    engine::{Count, CounterDescription, Counters, PinholeEnds, PinholeInfo, RECORD_FORMAT},
    ftp::AnnouncementKind,
};

use super::counted::counted;

/// Counters and health of a running daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The name of the host.
    pub host: String,
    /// The version, with its commit.
    pub version: String,
    /// The format of the daemon's records. A version with another format does not continue adjusted sessions. 0 in
    /// versions that do not say.
    pub record_format: u32,
    /// Whole seconds since the daemon was ready.
    pub uptime_seconds: u64,
    /// The back end, as in `nftables`.
    pub backend: String,
    /// Why the daemon uses it.
    pub backend_reason: String,
    pub sessions: u64,
    pub pinholes: u64,
    /// Bytes that sessions store: unacknowledged data after a rewrite, and held bytes. `policy.memory` is their limit.
    pub memory: u64,
    /// The engines' counters.
    #[serde(flatten)]
    pub counters: Counters,
    /// The daemon's own.
    #[serde(flatten)]
    pub daemon: DaemonCounters,
    /// Packets that waited for a verdict at the last look, at most a second ago. `None` if the daemon's user cannot read
    /// the kernel's statistics.
    pub queue_waiting: Option<u64>,
    /// Transfers that have ended.
    pub transfers: TransferTotals,
    /// Transfers that have not ended.
    pub running: RunningTotals,
    /// What was counted in the last 10 s, minute and hour.
    pub rates: Rates,
    /// External addresses given by name.
    pub names: Vec<NameRow>,
    /// The confinement that this machine lacks, a line each; empty on most machines.
    pub unconfined: Vec<String>,
    /// The fast path.
    pub fast_path: FastPathStatus,
    /// This gateway as one of two. `None` without `[pair]`.
    pub pair: Option<PairStatus>,
    /// What is wrong.
    #[serde(flatten)]
    pub findings: Findings,
}

ftp_alg_core::counters! {
    /// Counters outside of engines since the start.
    DaemonCounters {
        /// pinholes that no connection used before their deadline
        #[counter("ftp_alg_pinholes_expired", "pinholes": "expired", always; "the end that connects came late, or a firewall drops it")]
        pinholes_expired: u64,
        /// packets that the kernel dropped because a queue was full
        #[counter("ftp_alg_queue_overruns", "packets": "dropped, queue full"; "[sizing](limits.md#sizing)")]
        overruns: u64,
        /// packets dropped unread, because they or their queue messages were too long or invalid
        #[counter("ftp_alg_queue_drops", "packets": "dropped, not readable")]
        queue_drops: u64,
        /// verdicts that the kernel refused because it no longer had the packet
        #[counter("ftp_alg_verdicts_refused", "packets": "verdicts refused")]
        verdicts_refused: u64,
        /// log lines that the log's rate limits left out
        #[counter("ftp_alg_log_lines_skipped", "daemon": "log lines skipped")]
        log_lines_skipped: u64,
        /// events that are missing in the file of `log.events`: it could not be written, or too many came at once
        #[counter("ftp_alg_events_unwritten", "daemon": "events not in the file"; "the log says why")]
        events_unwritten: u64,
    }
}

/// Transfers that have ended since the start, by mode; `unknown` where no announcement opened a pinhole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferTotals {
    pub active: ResultCounts,
    pub passive: ResultCounts,
    pub unknown: ResultCounts,
    /// Bytes that servers received, as far as they are known.
    pub bytes_up: u64,
    /// Bytes that clients received, as far as they are known.
    pub bytes_down: u64,
    /// Transfers that were not reported, because too many ended at once.
    pub lost: u64,
    /// Transfers that are missing in the file of `log.transfers`.
    pub unwritten: u64,
    /// The totals of each `[[server]]`.
    pub servers: Vec<ServerTotals>,
    /// The clients with the most bytes in the last hour, at most ten.
    pub top_clients: Vec<ClientBytes>,
}

/// Transfers that the servers have begun and that have not ended. Bytes and rates are `None` if conntrack counts none of
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunningTotals {
    pub transfers: u64,
    pub bytes_up: Option<u64>,
    pub bytes_down: Option<u64>,
    pub bytes_up_per_second: Option<f64>,
    pub bytes_down_per_second: Option<f64>,
}

/// Transfers with a server of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerTotals {
    /// Its own address.
    pub server: IpAddr,
    #[serde(flatten)]
    pub results: ResultCounts,
    pub bytes_up: u64,
    pub bytes_down: u64,
}

impl ServerTotals {
    pub fn new(server: IpAddr) -> Self {
        Self { server, results: ResultCounts::default(), bytes_up: 0, bytes_down: 0 }
    }
}

/// The bytes that a client sent and received in transfers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientBytes {
    /// An IPv4 address, or the /64 of an IPv6 address.
    pub client: String,
    pub bytes: u64,
}

/// Transfers by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultCounts {
    pub complete: u64,
    pub aborted: u64,
    pub refused: u64,
    pub no_data_connection: u64,
    pub reset: u64,
    #[serde(default)]
    pub unseen: u64,
}

impl ResultCounts {
    /// The counts with the names that results have in events.
    pub fn by_result(self) -> [(&'static str, u64); 6] {
        let Self { complete, aborted, refused, no_data_connection, reset, unseen } = self;
        [
            ("complete", complete),
            ("aborted", aborted),
            ("refused", refused),
            ("no-data-connection", no_data_connection),
            ("reset", reset),
            ("unseen", unseen),
        ]
    }
}

/// What was counted in each window until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    #[serde(rename = "10s")]
    pub ten_seconds: WindowCounts,
    #[serde(rename = "1m")]
    pub minute: WindowCounts,
    #[serde(rename = "1h")]
    pub hour: WindowCounts,
}

/// What was counted in a window. The counts of transfers are `None` if transfers are not reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WindowCounts {
    /// How much of the window is covered: less than all if the daemon is younger.
    pub seconds: f64,
    /// Sessions that began.
    pub sessions: u64,
    /// Transfers that ended.
    pub transfers: Option<u64>,
    /// Transfers that ended and are not complete.
    pub failed_transfers: Option<u64>,
    pub bytes_up: Option<u64>,
    pub bytes_down: Option<u64>,
    /// Announcements, other commands and logins refused.
    pub refusals: u64,
    /// Packets dropped, by the engines or unread.
    pub drops: u64,
    /// Queued packets and fast-path lines.
    pub decisions: u64,
}

/// Whether the fast path runs, and its counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FastPathStatus {
    pub state: FastPathState,
    /// Why it is off; empty if it is on.
    pub why: String,
    /// The interfaces that the program is attached to: none while there is no connection on the fast path.
    pub interfaces: Vec<String>,
    /// The bridges, and the interfaces upon them, for whose packets the rules run before the program.
    pub filtered_early: Vec<String>,
    /// The interfaces behind whose program something may change packet marks, and what that is.
    pub mark_writers: Vec<String>,
    /// Control connections that are on the fast path now.
    pub connections: u64,
    #[serde(flatten)]
    pub counters: FastPathCounters,
}

ftp_alg_core::counters! {
    /// What the fast path did since the daemon's start.
    FastPathCounters {
        /// lines that the fast path inspected, so that they were not queued
        #[counter("ftp_alg_fast_path_lines", "fast path": "lines inspected")]
        lines: u64,
        /// times that a control connection went back from the fast path to the queue
        #[counter("ftp_alg_fast_path_handed_back", "fast path": "connections taken back")]
        handed_back: u64,
        /// pinholes that the program opened
        #[counter("", "fast path": "pinholes opened")]
        opened: u64,
        /// data connections that it admitted
        #[counter("", "fast path": "pinholes consumed")]
        admitted: u64,
        /// lines that were queued because the fast path's ring buffer was full
        #[counter("ftp_alg_fast_path_no_room", "fast path": "ring buffer full")]
        no_room: u64,
    }
}

/// Whether the fast path runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FastPathState {
    On,
    #[default]
    Off,
}

impl FastPathStatus {
    /// Why it is off in a pair of gateways.
    pub const OFF_IN_PAIR: &str = "this is one of a pair, and the other gateway would not know the lines that the program passes";
    /// Why the fast path is off if the configuration turns it off.
    pub const OFF_BY_CONFIGURATION: &str = "the configuration says so";
    /// Why the fast path is off in the first moments.
    pub const OFF_AT_FIRST: &str = "its program is being loaded";

    /// The text for the program's interfaces in `status` and `doctor`.
    pub fn attached_to(&self) -> String {
        match self.interfaces.as_slice() {
            [] => "no connection needs it now".to_owned(),
            names => names.join(", "),
        }
    }

    /// The texts for the interfaces whose connections stay inline.
    pub fn inline_at(&self) -> Vec<String> {
        let early = (!self.filtered_early.is_empty())
            .then(|| format!("{}: bridge-nf-call-iptables", self.filtered_early.join(", ")));
        let writers = self.mark_writers.iter().map(|one| format!("{one} may change packet marks"));
        let all = early.into_iter().chain(writers);
        all.map(|one| format!("not at {one}; connections there are queued")).collect()
    }

    /// The status of a fast path that is off because of `why`.
    pub fn off(why: impl Into<String>) -> Self {
        Self { why: why.into(), ..Self::default() }
    }
}

/// Something that is wrong: a problem or a warning, by the list that it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A name for scripts, which stays the same in later versions.
    pub name: String,
    /// What is wrong, and what it costs.
    pub text: String,
    /// What to do.
    pub remedy: String,
    /// When it was first seen, without a break since. Only the daemon knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// When it was last seen: at the last look, or the last event of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

impl Problem {
    pub fn new(name: &str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (name, text, remedy) = (name.to_owned(), text.into(), remedy.into());
        Self { name, text, remedy, since: None, last: None }
    }
}

/// How severe something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Severity {
    /// It does not stop FTP through this gateway, or it concerns a few peers.
    Warning,
    /// The gateway cannot do its work until this is solved.
    Problem,
}

/// Something that is wrong now.
pub type Finding = (Severity, Problem);

/// What is wrong, by severity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Findings {
    /// What keeps the gateway from its work, and must be repaired. Empty means healthy. docs/health.md has all names.
    pub problems: Vec<Problem>,
    /// What does not stop FTP through this gateway, or concerns a few peers.
    pub warnings: Vec<Problem>,
}

impl Findings {
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty() && self.warnings.is_empty()
    }

    /// All, problems first.
    pub fn iter(&self) -> impl Iterator<Item = (Severity, &Problem)> {
        let problems = self.problems.iter().map(|one| (Severity::Problem, one));
        problems.chain(self.warnings.iter().map(|one| (Severity::Warning, one)))
    }

    /// How many there are, in words, as in `1 problem, 2 warnings`.
    pub fn counts(&self) -> String {
        let count = |all: &[Problem], what: &str| counted(all.len() as u64, what);
        let problems = count(&self.problems, "problem");
        let warnings = count(&self.warnings, "warning");
        match (self.problems.is_empty(), self.warnings.is_empty()) {
            (true, _) => warnings,
            (_, true) => problems,
            _ => format!("{problems}, {warnings}"),
        }
    }
}

impl FromIterator<Finding> for Findings {
    fn from_iter<T: IntoIterator<Item = Finding>>(all: T) -> Self {
        let mut findings = Self::default();
        findings.extend(all);
        findings
    }
}

impl Extend<Finding> for Findings {
    fn extend<T: IntoIterator<Item = Finding>>(&mut self, all: T) {
        for (severity, problem) in all {
            match severity {
                Severity::Problem => self.problems.push(problem),
                Severity::Warning => self.warnings.push(problem),
            }
        }
    }
}

/// One family of an external address given by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRow {
    pub name: String,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// The address that is announced. `None` if the name has none.
    pub address: Option<IpAddr>,
    /// Whole seconds since a name server last gave an address.
    pub age_seconds: Option<u64>,
    /// Why there is no newer address.
    pub error: Option<String>,
}

impl Status {
    /// All counters, with their values.
    pub fn counts(&self) -> impl Iterator<Item = (&'static CounterDescription, Count)> {
        let all = [Counters::ALL, DaemonCounters::ALL, FastPathCounters::ALL];
        let counts =
            [self.counters.counts(), self.daemon.counts(), self.fast_path.counters.counts()];
        all.into_iter().flatten().zip(counts.into_iter().flatten())
    }

    /// A daemon of this version with all counters at zero.
    pub fn new(backend: &str, uptime: Duration) -> Self {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            host: host.trim_end().to_owned(),
            version: env!("FTP_ALG_VERSION").to_owned(),
            record_format: RECORD_FORMAT,
            uptime_seconds: uptime.as_secs(),
            backend: backend.to_owned(),
            ..Self::default()
        }
    }
}

/// This gateway as one of two, and what its store says of the other one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairStatus {
    /// `active` or `standby`.
    pub role: String,
    /// The epoch of the gateway that was activated last, as far as this one knows. Its own, if it is active.
    pub epoch: u64,
    /// Whole seconds since the role changed.
    pub since_seconds: u64,
    /// `ok`, or why the own store cannot be used.
    pub store: String,
    /// Whether the other gateway's store confirms what this one writes.
    pub replica: bool,
    /// Shards whose records are not all in the own store.
    pub shards_behind: u64,
    /// Batches of packets that the other gateway's store did not confirm in time, since the start.
    pub unconfirmed: u64,
    /// Seconds since the two stores last heard of each other. `None` if they are not connected.
    pub lag: Option<f64>,
    /// The other gateway's store.
    pub peer: SocketAddr,
    /// Why it cannot be asked, if it cannot.
    pub peer_failure: Option<String>,
    /// The version of the other gateway's daemon, if that one is running.
    pub peer_version: Option<String>,
    /// How many seconds the other gateway's time of day is ahead.
    pub clocks_apart: Option<f64>,
    /// Whether both have the same configuration, as far as they must.
    pub same_configuration: Option<bool>,
}

#[cfg(test)]
impl PairStatus {
    /// The active gateway of a pair that works.
    pub fn healthy() -> Self {
        Self {
            role: "active".to_owned(),
            epoch: 7,
            since_seconds: 60,
            store: "ok".to_owned(),
            replica: true,
            shards_behind: 0,
            unconfirmed: 0,
            lag: Some(0.0),
            peer: SocketAddr::from(([10, 99, 0, 2], 6379)),
            peer_failure: None,
            peer_version: Some("1.0".to_owned()),
            clocks_apart: None,
            same_configuration: Some(true),
        }
    }
}

/// One control connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionSummary {
    /// The number at the start of this session's log lines.
    pub id: u64,
    /// The client's own endpoint.
    pub client: SocketAddr,
    /// The server's own endpoint.
    pub server: SocketAddr,
    /// The client as the server sees it.
    pub client_external: SocketAddr,
    /// The server as the client sees it.
    pub server_external: SocketAddr,
    /// The user, if a login was seen.
    #[serde(default)]
    pub user: Option<String>,
    /// The state of the dialogue, in a word.
    pub state: String,
    /// Whole seconds since its first packet.
    pub age_seconds: u64,
    /// Whether its sequence numbers are adjusted after a rewrite.
    pub adjusted: bool,
    /// Whether it is on the fast path.
    #[serde(default)]
    pub fast_path: bool,
    /// The transfer that has no last reply yet.
    #[serde(default)]
    pub transfer: Option<TransferProgress>,
    /// Its transfers that have ended.
    #[serde(default)]
    pub transfers: u32,
    /// Bytes of the transfers that this daemon has reported, and of the running one, as far as they are known. `None`
    /// if transfers are not reported.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// The server's passive ports, if they are open to the client because it is encrypted.
    #[serde(default)]
    pub passive_ports: Option<String>,
}

/// A transfer that has not ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferProgress {
    pub verb: String,
    /// The file or directory: absolute if the client's directory is known.
    pub path: String,
    /// Whole seconds since the command, if there was one that could be read.
    pub seconds: Option<u64>,
    /// Whether the server has said that it begins.
    pub started: bool,
    /// Bytes that were sent until now, as far as conntrack counts.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// The mean since an earlier look, or since the command.
    #[serde(default)]
    pub bytes_per_second: Option<f64>,
}

/// One control connection in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionRow {
    #[serde(flatten)]
    pub summary: SessionSummary,
    /// Its pinholes that are open now.
    pub pinholes: u64,
}

/// All that is known of one control connection. `Event` is a [`StoredEvent`](super::events::StoredEvent), or what a reader parses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionDetail<Event> {
    #[serde(flatten)]
    pub summary: SessionSummary,
    /// The client's directory, if it is known.
    pub directory: Option<String>,
    /// Whether it is encrypted. `None` if nobody knows.
    pub encrypted: Option<bool>,
    /// By how much the server gets other sequence numbers than the client sent.
    pub offset_to_server: i32,
    /// By how much the client gets other sequence numbers than the server sent.
    pub offset_to_client: i32,
    /// The data connection of a transfer that has begun.
    pub data_connection: Option<DataConnection>,
    /// Its pinholes that are open now.
    pub pinholes: Vec<PinholeRow>,
    /// Its last events, in the order in which they were stored.
    pub events: Vec<Event>,
}

/// The data connection of a transfer, as its pinhole describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataConnection {
    pub kind: AnnouncementKind,
    #[serde(flatten)]
    pub ends: PinholeEnds,
    /// Whether the pinhole is still open, so the connection has not arrived.
    pub pending: bool,
}

/// One open pinhole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinholeRow {
    #[serde(flatten)]
    pub info: PinholeInfo,
    /// Whole seconds until it expires.
    pub remaining_seconds: u64,
}
