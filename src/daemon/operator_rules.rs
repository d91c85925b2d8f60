//! What the operator's rules decide when the daemon starts: the back end, the ports of data connections, and whether the
//! fast path's packet marks survive.

use std::{
    ops::RangeInclusive,
    sync::mpsc::Receiver,
    time::Duration,
};

use super::shared_state::SharedState;
use crate::{
    config::Config,
    gateway::{
        self, Backend, ClaimedPorts, Commits, GatewayError, PassingData, Routing, RuleParameters,
        firewall::{Firewall, MarkChange, RulesetReader, data_path_verdicts},
    },
};

/// How long the start waits for them. FTP works before large sets of rules are read.
const READING_LIMIT: Duration = Duration::from_secs(1);

/// The operator's rules at the start.
pub(super) struct OperatorRules {
    /// `None` if they were not read in time.
    firewall: Option<Firewall>,
    /// The different sets of source ports; `None` if the configuration names one.
    source_ports: Option<Vec<RangeInclusive<u16>>>,
}

impl OperatorRules {
    /// Waits for rules that are read in the background.
    pub(super) fn wait_for(reading: &Receiver<Firewall>, config: &Config) -> Self {
        let firewall = reading.recv_timeout(READING_LIMIT).ok();
        let found = || firewall.as_ref().map(Firewall::source_ports).unwrap_or_default();
        let source_ports = (!config.restricts_ports()).then(found);
        match source_ports.as_deref() {
            None | Some([]) => {}
            Some([range]) => tracing::info!(
                "data connections use the ports {}-{}, to which the firewall translates source ports",
                range.start(),
                range.end()
            ),
            Some(_) => tracing::info!(
                "the firewall translates source ports to several ranges: name the one for data connections as \
                 nat.port-range"
            ),
        }
        Self { firewall, source_ports }
    }

    /// The set of ports for data connections, if there is exactly one.
    pub(super) fn port_set(&self) -> Option<RangeInclusive<u16>> {
        match self.source_ports.as_deref() {
            Some([range]) => Some(range.clone()),
            _ => None,
        }
    }

    /// The back end that `auto` selects, and why. `before` is the one of restored sessions.
    pub(super) fn automatic_backend(
        &self,
        before: Option<Backend>,
        parameters: &RuleParameters,
    ) -> (Backend, &'static str) {
        gateway::automatic_backend(before, || {
            let routing = Routing::read(parameters.control_ports());
            let firewall = self.firewall.as_ref()?;
            PassingData::new(firewall, &data_path_verdicts(firewall, routing, parameters))
        })
    }

    /// The rule that overwrites the packet marks of every connection, if there is one. The fast path needs those marks.
    pub(super) fn mark_change(&self, parameters: &RuleParameters) -> Option<MarkChange> {
        let changes = self.firewall.as_ref()?.packet_mark_changes(parameters);
        changes.into_iter().find(|change| change.is_unconditional)
    }

    /// Sets the claimed ports, and returns the reader of later changes.
    pub(super) fn into_reader(
        self,
        claimed: &ClaimedPorts,
        commits: &Commits,
        parameters: &RuleParameters,
        shared: &SharedState,
    ) -> Result<RulesetReader, GatewayError> {
        let mut reader = RulesetReader::new(claimed, commits, self.source_ports)?;
        if let Some(firewall) = &self.firewall {
            reader.apply(firewall);
            shared.health.audit_rules(firewall, parameters);
        }
        Ok(reader)
    }
}
