//! Reads the operator's rules again whenever they change while the daemon runs, those of policy routing included.

use std::time::{Duration, Instant};

use ftp_alg_firewall::{Firewall, Gateway, IpVersion, RoutingRule};

use super::read_rules;
use crate::kernel::{
    NetfilterError, known_rules::KnownRules, legacy_iptables::uses_legacy, netlink::Socket,
    rtnetlink, table::Commits,
};

/// Minimum time between two readings, however often the rules change.
const MIN_INTERVAL: Duration = Duration::from_secs(2);
/// Time between two readings if iptables-legacy is in use. The kernel does not announce changes of its rules.
const LEGACY_INTERVAL: Duration = Duration::from_secs(60);

/// Reads the operator's rules when they have changed, and updates what the packet path knows of them.
#[derive(Debug)]
pub struct RulesetReader {
    gateway: Gateway,
    known: KnownRules,
    commits: Commits,
    socket: Socket,
    /// The number of transactions of others at the last reading, and the time of that reading.
    last_read: Option<(Option<u32>, Instant)>,
    /// The rules of policy routing at the last reading.
    routing_rules: Vec<RoutingRule>,
    logged_notes: Vec<String>,
}

impl RulesetReader {
    /// A reader that updates `ports`. It ignores our own transactions, which `commits` counts.
    pub fn new(
        known: &KnownRules,
        commits: &Commits,
        gateway: Gateway,
    ) -> Result<Self, NetfilterError> {
        let socket = Socket::open().map_err(|e| NetfilterError::system("netlink socket", e))?;
        let (known, commits) = (known.clone(), commits.clone());
        let (routing_rules, logged_notes) = (Vec::new(), Vec::new());
        Ok(Self { gateway, known, commits, socket, last_read: None, routing_rules, logged_notes })
    }

    /// Reads the rules if they may have changed, and returns them. A reading can take seconds.
    pub fn read_if_changed(&mut self) -> Option<Firewall> {
        let others = self.commits.count_by_others(&mut self.socket).ok().flatten();
        let now = Instant::now();
        if let Some((before, at)) = self.last_read {
            let age = now.saturating_duration_since(at);
            let is_same = others.is_none() || others == before;
            let legacy = || IpVersion::BOTH.into_iter().any(|ip| uses_legacy(ip).unwrap_or(false));
            if age < MIN_INTERVAL
                || is_same
                    && (age < LEGACY_INTERVAL || !legacy())
                    && rtnetlink::mark_rules().is_ok_and(|rules| rules == self.routing_rules)
            {
                return None;
            }
        }
        let firewall = read_rules(self.gateway.clone(), false);
        self.apply(&firewall);
        self.last_read = Some((others, now));
        Some(firewall)
    }

    /// Updates the claimed ports from rules that were read a moment ago.
    pub fn apply(&mut self, firewall: &Firewall) {
        // They may have changed meanwhile.
        self.last_read = Some((None, Instant::now()));
        self.routing_rules.clone_from(&firewall.routing_rules);
        let note = |what| {
            format!("cannot read all rules, so a data connection may take a published port: {what}")
        };
        let notes: Vec<String> = firewall.read_errors.iter().map(note).collect();
        if notes != self.logged_notes {
            notes.iter().for_each(|note| tracing::info!("{note}"));
            self.logged_notes = notes;
        }
        self.known.set(firewall);
    }
}
