//! What the operator's rules decide: the back end, the source ports of data connections, and whether there is room for
//! the fast path's packet marks. The last two are decided again when the rules change.

use std::{
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use ftp_alg_firewall::{Firewall, accepted_data, data_path_verdicts};
use jiff::Timestamp;

use super::{DaemonEvent, shard::lock, shared_state::SharedState};
use crate::kernel::{
    NetfilterError, RuleParameters,
    automatic::automatic_backend,
    known_rules::KnownRules,
    operator_firewall::RulesetReader,
    parameters::{Backend, Learned},
    probe::read_routing,
    table::Commits,
};

/// How long the start waits for the rules. FTP works before large sets of rules are read.
const READING_LIMIT: Duration = Duration::from_secs(1);
/// The limit if there are sessions, whose packets wait meanwhile.
const RESTART_LIMIT: Duration = Duration::from_millis(800);
/// The limit if the rules select the back end, and no earlier run selected one.
const BACKEND_LIMIT: Duration = Duration::from_secs(10);
/// Interval between two looks at what others change.
const INTERVAL: Duration = Duration::from_secs(1);

/// The operator's rules at the start, read in the background.
pub(super) struct OperatorRules {
    /// The rules, or who gets them if they were not read in time.
    read: Result<Firewall, Receiver<Firewall>>,
}

impl OperatorRules {
    /// Waits for the rules. `select_backend` says whether only they can select the back end.
    pub(super) fn wait_for(
        reading: Receiver<Firewall>,
        has_sessions: bool,
        select_backend: bool,
    ) -> Self {
        let limit = match (has_sessions, select_backend) {
            (true, _) => RESTART_LIMIT,
            (false, true) => BACKEND_LIMIT,
            (false, false) => READING_LIMIT,
        };
        Self { read: reading.recv_timeout(limit).map_err(|_| reading) }
    }

    /// What the operator's rules demand of ours, and the sets of ports to which they translate source ports. If the
    /// rules come late, returns what was learned in the run `before`.
    pub(super) fn learned(
        &self,
        before: impl FnOnce() -> Learned,
    ) -> (Learned, Arc<[RangeInclusive<u16>]>) {
        match &self.read {
            Ok(firewall) => (learn(firewall), firewall.source_ports().into()),
            Err(_) => {
                let learned = before();
                let port_set = learned.source_ports.map(|(first, last)| first..=last);
                (learned, port_set.into_iter().collect())
            }
        }
    }

    /// The back end that `auto` selects, and why. `before` is the back end of the run before. Restored sessions
    /// (`has_sessions`) go on with it.
    pub(super) fn automatic_backend(
        &self,
        before: Option<Backend>,
        has_sessions: bool,
        parameters: &RuleParameters,
    ) -> (Backend, &'static str) {
        automatic_backend(before, has_sessions, || {
            let routing = read_routing(&parameters.gateway.control_ports);
            let firewall = self.read.as_ref().ok()?;
            accepted_data(firewall, &data_path_verdicts(firewall, routing))
        })
    }

    /// Why the fast path cannot run with these rules, if it cannot.
    pub(super) fn fast_path_obstacle(&self) -> Option<String> {
        mark_conflict(self.read.as_ref().ok()?)
    }

    /// Makes the reader of later changes, and passes these rules to the packet path.
    pub(super) fn reader(
        &self,
        known_rules: &KnownRules,
        commits: &Commits,
        parameters: &RuleParameters,
    ) -> Result<RulesetReader, NetfilterError> {
        let mut reader = RulesetReader::new(known_rules, commits, parameters.gateway.clone())?;
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

/// What the rules demand of ours.
fn learn(firewall: &Firewall) -> Learned {
    let source_ports = match &firewall.source_ports()[..] {
        [range] => Some(range.clone().into_inner()),
        _ => None,
    };
    let (ct_mark_use, overwrites_data_mark) =
        (firewall.ct_mark_use(), firewall.overwrites_data_mark());
    Learned { source_ports, ct_mark_use, overwrites_data_mark, ..Learned::default() }
        .with_zones(firewall.zones())
}

/// Why the fast path cannot run with these rules, if it cannot: they leave no room for its packet marks, or they tell
/// the ct mark of its data connections from that of others.
fn mark_conflict(firewall: &Firewall) -> Option<String> {
    let reasons = firewall.mark_conflicts();
    Some(format!("{}; then a restart turns it on again", reasons.first()?))
}

/// The operator's rules while the daemon runs.
pub(super) struct FollowedRules {
    pub(super) reader: RulesetReader,
    /// Whether the configuration has the ports of data connections.
    pub(super) is_configured: bool,
    pub(super) parameters: RuleParameters,
    pub(super) shared: Arc<SharedState>,
    pub(super) events: Sender<DaemonEvent>,
}

impl FollowedRules {
    /// Reads the rules when they change, until `end` is set, and takes the other looks that may take long: at the
    /// configuration file and at conntrack. `rules` are those at the start.
    pub(super) fn follow(self, rules: OperatorRules, end: &AtomicBool) {
        let Self { mut reader, is_configured, parameters, shared, events } = self;
        // Rules that come late have the same effects as at the start.
        let is_late = rules.read.is_err();
        let mut first = rules.into_firewall().inspect(|rules| {
            reader.apply(rules);
            if is_late {
                // The main thread then loads the table again.
                parameters.learned.set(learn(rules));
            }
        });
        while !end.load(Ordering::Acquire) {
            if let Some(rules) = first.take().or_else(|| reader.read_if_changed()) {
                if !is_configured && shared.set_port_sets(rules.source_ports()) {
                    log_port_sets(&lock(&shared.port_sets), &parameters);
                    let _ = events.send(DaemonEvent::PolicyChanged);
                }
                if let (Ok(fast_path), Some(why)) = (&shared.fast_path, mark_conflict(&rules)) {
                    let now = Timestamp::now().strftime("%H:%M UTC");
                    fast_path.leave(format!("since {now}: {why}"));
                }
                if rules.overwrites_data_mark() {
                    // The main thread then loads the table again.
                    let learned = Learned::clone(&parameters.learned.now());
                    parameters.learned.set(Learned { overwrites_data_mark: true, ..learned });
                }
                shared.health.audit_rules(&rules, &parameters);
            }
            shared.config_file.examine();
            shared.report_unused_pinholes(Instant::now(), &parameters);
            thread::park_timeout(INTERVAL);
        }
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
