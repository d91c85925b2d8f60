//! Follows the operator's rules while the daemon runs: reads them again when they have changed.

use std::time::{Duration, Instant};

use super::{Firewall, Ip};
use crate::gateway::{ClaimedPorts, Commits, GatewayError, legacy::uses_legacy, netlink::Socket};

/// Between two readings of the rules, however often they change.
const MIN_INTERVAL: Duration = Duration::from_secs(2);
/// Rules of iptables-legacy change without a sign.
const LEGACY_INTERVAL: Duration = Duration::from_secs(60);

/// Reads the operator's rules again when they have changed.
#[derive(Debug)]
pub struct RulesetReader {
    ports: ClaimedPorts,
    commits: Commits,
    socket: Socket,
    /// The transactions of others at the last reading, and when that was.
    last_read: Option<(Option<u32>, Instant)>,
    logged_notes: Vec<String>,
}

impl RulesetReader {
    /// A reader for `ports`; the transactions counted in `commits` are no reason to read.
    pub fn new(ports: &ClaimedPorts, commits: &Commits) -> Result<Self, GatewayError> {
        let socket = Socket::open().map_err(|e| GatewayError::system("netlink socket", e))?;
        let (ports, commits) = (ports.clone(), commits.clone());
        Ok(Self { ports, commits, socket, last_read: None, logged_notes: Vec::new() })
    }

    /// Reads the rules if they may be others than before, which may take a while; gives them then.
    pub fn read_if_changed(&mut self) -> Option<Firewall> {
        let others = self.commits.of_others(&mut self.socket).ok().flatten();
        let now = Instant::now();
        if let Some((before, at)) = self.last_read {
            let age = now.saturating_duration_since(at);
            let is_same = others.is_none() || others == before;
            let legacy = || Ip::BOTH.into_iter().any(|ip| uses_legacy(ip).unwrap_or(false));
            if age < MIN_INTERVAL || is_same && (age < LEGACY_INTERVAL || !legacy()) {
                return None;
            }
        }
        self.last_read = Some((others, now));
        let firewall = Firewall::read_without_texts();
        let claims = firewall.translated_ports();
        let mut notes = Vec::new();
        notes.extend(firewall.read_errors().iter().map(|what| {
            format!("published ports are not all known, and a data connection may take one: {what}")
        }));
        notes.extend(claims.unlimited_rules().iter().map(|rule| {
            format!("a data connection may take any port that this rule translates: {rule}")
        }));
        if notes != self.logged_notes {
            notes.iter().for_each(|note| tracing::info!("{note}"));
            self.logged_notes = notes;
        }
        self.ports.set(claims.into_claims());
        Some(firewall)
    }
}
