//! What the daemon tells about itself: rows that the control socket carries as JSON.
//!
//! Field names are contract: scripts read them. Knows nothing of engines at work; who has the numbers
//! implements [`Source`].

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use ftp_alg_core::{engine::Counters, ftp::Kind};

/// Counters and health of a running daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// Whole seconds since it was ready.
    pub uptime_seconds: u64,
    /// What holds the pinholes, as in `nftables`.
    pub backend: String,
    pub sessions: u64,
    pub pinholes: u64,
    /// Bytes that sessions hold until they are acknowledged, or complete; `policy.memory` is their budget.
    #[serde(default)]
    pub memory: u64,
    /// What the engines have counted.
    #[serde(flatten)]
    pub counters: Counters,
    /// Pinholes through which nobody connected before their deadline.
    #[serde(default)]
    pub pinholes_expired: u64,
    /// Packets that the kernel dropped as a queue was full; their senders send them again.
    #[serde(default)]
    pub overruns: u64,
    /// Packets that were dropped unread, as they were longer than a message, or their message could not be read.
    #[serde(default)]
    pub queue_drops: u64,
    /// Verdicts that the kernel refused, as it no longer had the packet.
    #[serde(default)]
    pub verdicts_refused: u64,
    /// Lines that were not logged, as there were too many.
    #[serde(default)]
    pub log_lines_skipped: u64,
    /// External addresses given by name.
    #[serde(default)]
    pub names: Vec<NameRow>,
    /// What of the daemon's confinement is missing on this machine, a line each; as a rule nothing.
    #[serde(default)]
    pub unconfined: Vec<String>,
    /// The program that judges recurring lines in the kernel.
    #[serde(default)]
    pub fast_path: FastPathStatus,
    /// What keeps FTP from working, or soon may; empty is healthy. docs/health.md has all names.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// Whether the fast path runs, and its counts since it was loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastPathStatus {
    pub state: FastPathState,
    /// Why it is off; empty if it is on.
    pub why: String,
    /// Names of the interfaces that the program is attached to: none while there is no connection to judge.
    pub interfaces: Vec<String>,
    /// Control connections that the program judges now.
    pub connections: u64,
    /// Lines that passed without being queued.
    pub judged: u64,
    /// Control connections that the program handed back to the queue.
    pub handed_back: u64,
    /// Pinholes that the program opened.
    pub opened: u64,
    /// Data connections that the program admitted.
    pub admitted: u64,
    /// Lines that were queued because the ring buffer had no room.
    pub no_room: u64,
}

/// Whether the fast path runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FastPathState {
    On,
    Off,
}

impl FastPathStatus {
    /// Why the fast path is off unless the configuration asks for it.
    pub const OFF_BY_CONFIGURATION: &str = "the configuration says so";

    /// What `status` and `doctor` say of its interfaces.
    pub fn attached_to(&self) -> String {
        match self.interfaces.as_slice() {
            [] => "no interface while nothing is judged".to_owned(),
            names => names.join(", "),
        }
    }

    /// The fast path is off, because of `why`.
    pub fn off(why: impl Into<String>) -> Self {
        Self {
            state: FastPathState::Off,
            why: why.into(),
            interfaces: Vec::new(),
            connections: 0,
            judged: 0,
            handed_back: 0,
            opened: 0,
            admitted: 0,
            no_room: 0,
        }
    }
}

impl Default for FastPathStatus {
    fn default() -> Self {
        Self::off(Self::OFF_BY_CONFIGURATION)
    }
}

/// Something that keeps FTP from working, or soon may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What it is called; stays the same over versions.
    pub name: String,
    pub text: String,
    pub remedy: String,
}

impl Problem {
    pub fn new(name: &str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), text: text.into(), remedy: remedy.into() }
    }
}

/// One family of an external address given by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRow {
    pub name: String,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// The address that is announced; `None` where the name gives none.
    pub address: Option<IpAddr>,
    /// Whole seconds since a name server last gave an address.
    pub age_seconds: Option<u64>,
    /// Why there is no newer one.
    pub error: Option<String>,
}

impl Status {
    /// A daemon of this version with all counters at zero.
    pub fn new(backend: &str, uptime: Duration) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: uptime.as_secs(),
            backend: backend.to_owned(),
            ..Self::default()
        }
    }
}

/// One control connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// The number that log lines of this session start with.
    pub id: u64,
    /// The client's own endpoint.
    pub client: SocketAddr,
    /// The server's own endpoint.
    pub server: SocketAddr,
    /// The client as the server sees it.
    pub client_external: SocketAddr,
    /// The server as the client sees it.
    pub server_external: SocketAddr,
    /// How far the dialogue is, in a word.
    pub state: String,
    /// Whole seconds since its first packet.
    pub age_seconds: u64,
    /// Whether its sequence numbers are adjusted.
    pub adjusted: bool,
    /// Its pinholes that are open now.
    pub pinholes: u64,
}

/// One open pinhole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinholeRow {
    pub session: u64,
    pub initiator: IpAddr,
    /// Where to, as the connection arrives at this machine.
    pub arrival: SocketAddr,
    /// Where it is sent.
    pub target: SocketAddr,
    /// The source address that the target sees.
    pub source: IpAddr,
    pub kind: Kind,
    /// Whole seconds until it closes by itself.
    pub remaining_seconds: u64,
}

/// Who has the numbers. Called from the control socket's thread, at most one call at a time.
pub trait StatusSource: Send + Sync {
    fn status(&self) -> Status;
    fn sessions(&self) -> Vec<SessionRow>;
    fn pinholes(&self) -> Vec<PinholeRow>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_path_has_the_contracts_fields() {
        let json = r#"{"state":"off","why":"the configuration says so","interfaces":[],"connections":0,"judged":0,"handed_back":0,"opened":0,"admitted":0,"no_room":0}"#;
        let default = FastPathStatus::default();
        assert_eq!(serde_json::to_string(&default).unwrap(), json);
        assert_eq!(serde_json::from_str::<FastPathStatus>(json).unwrap(), default);
    }

    #[test]
    fn a_pinhole_row_has_the_contracts_fields() {
        let row = PinholeRow {
            session: 7,
            initiator: IpAddr::from([198, 51, 100, 9]),
            arrival: SocketAddr::from(([198, 51, 100, 1], 3762)),
            target: SocketAddr::from(([192, 168, 150, 80], 3762)),
            source: IpAddr::from([198, 51, 100, 9]),
            kind: Kind::Port,
            remaining_seconds: 29,
        };
        let json = r#"{"session":7,"initiator":"198.51.100.9","arrival":"198.51.100.1:3762","target":"192.168.150.80:3762","source":"198.51.100.9","kind":"PORT","remaining_seconds":29}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), json);
        assert_eq!(serde_json::from_str::<PinholeRow>(json).unwrap(), row);
    }
}
