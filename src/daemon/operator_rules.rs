//! What the operator's rules decide when the daemon starts: the back end, the source ports of data connections, and
//! whether the fast path's packet marks survive.

use std::{
    ops::RangeInclusive,
    sync::{Arc, mpsc::Receiver},
    time::Duration,
};

use crate::gateway::{
    self, Backend, ClaimedPorts, Commits, GatewayError, Routing, RuleParameters,
    firewall::{
        Firewall, MarkChange, RulesetReader, accepted_data, data_path_verdicts, exact_mark_chain,
    },
};

/// How long the start waits for them. FTP works before large sets of rules are read.
const READING_LIMIT: Duration = Duration::from_secs(1);
/// The same if there are sessions, whose packets wait meanwhile.
const RESTART_LIMIT: Duration = Duration::from_millis(800);

/// The operator's rules at the start, read in the background.
pub(super) struct OperatorRules {
    /// If they were not read in time: who gets them later.
    read: Result<Firewall, Receiver<Firewall>>,
}

impl OperatorRules {
    /// Waits for the rules.
    pub(super) fn wait_for(reading: Receiver<Firewall>, has_sessions: bool) -> Self {
        let limit = if has_sessions { RESTART_LIMIT } else { READING_LIMIT };
        Self { read: reading.recv_timeout(limit).map_err(|_| reading) }
    }

    /// The different sets of ports to which the rules translate source ports.
    pub(super) fn port_sets(&self) -> Arc<[RangeInclusive<u16>]> {
        self.read.as_ref().map(Firewall::source_ports).unwrap_or_default().into()
    }

    /// The conntrack zones into which the rules put control connections.
    pub(super) fn zones(&self, parameters: &RuleParameters) -> Vec<u16> {
        self.read.as_ref().map(|firewall| firewall.zones(parameters)).unwrap_or_default()
    }

    /// The back end that `auto` selects, and why. `before` is the one of restored sessions.
    pub(super) fn automatic_backend(
        &self,
        before: Option<Backend>,
        parameters: &RuleParameters,
    ) -> (Backend, &'static str) {
        gateway::automatic_backend(before, || {
            let routing = Routing::read(parameters.control_ports());
            let firewall = self.read.as_ref().ok()?;
            accepted_data(firewall, &data_path_verdicts(firewall, routing, parameters))
        })
    }

    /// The rule that overwrites the packet marks of every connection, if there is one. The fast path needs those marks.
    fn mark_change(&self, parameters: &RuleParameters) -> Option<MarkChange> {
        let changes = self.read.as_ref().ok()?.packet_mark_changes(parameters);
        changes.into_iter().find(|change| change.is_unconditional)
    }

    /// Why data connections of the fast path would not pass: a rule overwrites its packet marks, or the rules accept only
    /// the exact ct mark of other data connections.
    pub(super) fn fast_path_obstacle(&self, parameters: &RuleParameters) -> Option<String> {
        if let Some(rule) = self.mark_change(parameters) {
            return Some(format!(
                "{rule} overwrites the fast path's packet marks: give that rule a mask"
            ));
        }
        let routing = Routing::read(parameters.control_ports());
        let paths = data_path_verdicts(self.read.as_ref().ok()?, routing, parameters);
        let chain = exact_mark_chain(&paths)?;
        let data = parameters.data_mark();
        Some(format!(
            "{} accepts only the exact ct mark {data:#x}: match the bit, as in `ct mark & {data:#x} != 0` or `--mark \
             {data:#x}/{data:#x}`",
            chain.location
        ))
    }

    /// The reader of later changes, with the ports of these rules claimed.
    pub(super) fn reader(
        &self,
        claimed: &ClaimedPorts,
        commits: &Commits,
    ) -> Result<RulesetReader, GatewayError> {
        let mut reader = RulesetReader::new(claimed, commits)?;
        if let Ok(firewall) = &self.read {
            reader.apply(firewall);
        }
        Ok(reader)
    }

    /// The rules, also if they come late.
    pub(super) fn into_firewall(self) -> Option<Firewall> {
        self.read.or_else(|late| late.recv()).ok()
    }
}

/// Logs which ports data connections use because of the operator's rules, or why not.
pub(super) fn log_port_sets(sets: &[RangeInclusive<u16>], parameters: &RuleParameters) {
    let of_table = parameters.source_ports();
    match sets {
        [] if of_table.is_none() => {}
        [range] if Some(range.clone().into_inner()) == of_table => tracing::info!(
            "data connections use the ports {}-{}, to which the firewall translates source ports",
            range.start(),
            range.end()
        ),
        [] | [_] => tracing::info!(
            "rules translate source ports to another range than at the start: restart ftp-alg, so that passive data \
             connections use it"
        ),
        _ => tracing::info!(
            "rules translate source ports to several ranges, so passive data connections keep their own: set nat.port-range \
             if a provider forwards one range only"
        ),
    }
}
