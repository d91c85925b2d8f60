//! What the traffic of the last minutes says: pinholes that nobody used, encrypted sessions, missing routes, limits,
//! and servers whose announcements all open nothing.
//!
//! Invariant: memory is bounded, whatever peers do.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    ops::RangeInclusive,
    slice,
    time::{Instant, SystemTime},
};

use ftp_alg_core::engine::{
    Counters, Event, EventKind, MissingConnection, Refusal, Stray, UnusedPinhole,
};

use super::{
    WITHIN,
    names::{MIN_CLIENTS, ProblemName},
    recent::{Halves, Peers, RecentCount},
    servers::RecentServers,
};
use crate::{
    config::may_have_services,
    daemon::{
        counted::{counted, was_or_were},
        events::in_utc_seconds,
        snapshot::{Finding, Status},
    },
};

/// Unused pinholes count if there are more than one for so many used ones. A few data connections always fail.
const UNUSED_SHARE: u64 = 20;
/// A single session may meet a change of routes, or a spoofed packet.
const MIN_ROUTELESS: u64 = 2;
/// A few data connections fail because their clients cancel them.
const MIN_MISSING: u64 = 3;
/// Limit of servers whose ports clients have tried in vain.
const MAX_TRIED: usize = 32;
/// The most ports of a proposed range: a client may try any.
const MAX_PROPOSED: u16 = 1000;
/// How many expired pinholes are stored until the next look at conntrack.
const MAX_EXPIRED: usize = 1024;

/// A failure of sessions: how often, of which clients, and with which server.
#[derive(Debug, Default)]
struct Failure {
    /// How often since the start.
    total: u64,
    /// The last one.
    last: String,
    count: RecentCount,
    peers: Halves<Peers>,
}

/// The recent occurrences of a failure.
#[derive(Clone, Copy, Debug)]
struct Recent<'f> {
    count: u64,
    /// How many distinct clients, up to [`MIN_CLIENTS`].
    clients: usize,
    /// The server, if the failure has only this one, and other servers work.
    server: Option<IpAddr>,
    last: &'f str,
    /// When the last one was seen.
    last_at: Option<SystemTime>,
}

impl Failure {
    /// Forgets the recent ones.
    fn forget(&mut self) {
        self.count.forget(self.total);
        self.peers = Halves::default();
    }

    fn note(&mut self, now: Instant, event: &Event, last: String) {
        self.total += 1;
        self.last = last;
        self.peers.note(now, event.client, event.server);
    }

    /// The recent occurrences. The `servers` are all that clients use.
    fn recent(&mut self, now: Instant, servers: &mut RecentServers) -> Recent<'_> {
        let server = self.peers.only_server(now);
        let count = self.count.note(now, self.total);
        Recent {
            count,
            last_at: self.count.last_at,
            clients: self.peers.count_clients(now),
            server: server.filter(|server| servers.others_work(now, *server)),
            last: &self.last,
        }
    }
}

impl Recent<'_> {
    /// How many clients count. A failure of only one server is no problem of the gateway.
    fn counted_clients(self) -> usize {
        if self.server.is_some() { 0 } else { self.clients }
    }

    /// The finding of this name.
    fn finding(self, name: ProblemName, text: String) -> Finding {
        name.of_clients(self.counted_clients(), text)
    }
}

/// The time and the clients of the failures, and the server if it is known.
impl fmt::Display for Recent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(WITHIN)?;
        match self.clients {
            0 => {}
            1 => f.write_str(" of one client")?,
            MIN_CLIENTS.. => write!(f, " of {MIN_CLIENTS} or more clients")?,
            few => write!(f, " of {few} clients")?,
        }
        match self.server {
            Some(server) => write!(f, " with the server {server}"),
            None => Ok(()),
        }
    }
}

/// The ports of a server that clients have tried in vain.
#[derive(Debug)]
struct Tried {
    /// The lowest and the highest.
    ports: RangeInclusive<u16>,
    /// Whether the server has passive ports, which are others.
    has_others: bool,
    is_published: bool,
}

/// What clients have tried at `server`.
fn tried_text((server, Tried { ports, .. }): (&IpAddr, &Tried)) -> String {
    match ports.start() == ports.end() {
        true => format!("port {} of {server}", ports.start()),
        false => format!("ports {} to {} of {server}", ports.start(), ports.end()),
    }
}

/// The ports that clients have tried, rounded to what servers usually have: many have 50000-50100.
fn rounded(ports: &RangeInclusive<u16>) -> RangeInclusive<u16> {
    let first = ports.start() / 100 * 100;
    let last = ports.end().div_ceil(100).saturating_mul(100).max(first.saturating_add(100));
    first.max(1024)..=last
}

/// What to do, and below it the lines that would admit what clients have `tried`, one table for each server. A client may try
/// what it wants to have opened: no ports of other services are proposed, and none besides those that the server has.
fn tried_remedy(tried: &BTreeMap<IpAddr, Tried>) -> String {
    let may_be_proposed = |(_, Tried { ports, has_others, .. }): &(&IpAddr, &Tried)| {
        let all = rounded(ports);
        let is_narrow = all.end().saturating_sub(*all.start()) <= MAX_PROPOSED;
        !has_others
            && is_narrow
            && *ports.start() >= 1024
            && !may_have_services(slice::from_ref(&all))
    };
    let (proposed, others): (Vec<_>, Vec<_>) = tried.iter().partition(may_be_proposed);
    let mut sentences = Vec::new();
    if !others.is_empty() {
        let servers = others.iter().map(|(server, _)| server.to_string()).collect::<Vec<_>>();
        sentences.push(format!(
            "look up the range of passive ports in the settings of {}, and write it as its passive-ports in the \
             configuration (\"any\" for a server of others); then reload",
            servers.join(" and of ")
        ));
    }
    if !proposed.is_empty() {
        let what = "add these lines to the configuration, with the server's own range if that is another one; then reload";
        sentences.push(what.to_owned());
    }
    let table = |(server, Tried { ports, is_published, .. }): (&IpAddr, &Tried)| {
        let of = if *is_published { "[[server]]\naddress" } else { "[[network]]\nservers" };
        let (first, last) = rounded(ports).into_inner();
        format!("\n{of} = \"{server}\"\npassive-ports = \"{first}-{last}\"")
    };
    sentences.join("; ") + &proposed.into_iter().map(table).collect::<String>()
}

/// The traffic of the last minutes.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) expired: Vec<Event<UnusedPinhole>>,
    overruns: RecentCount,
    uninspected: RecentCount,
    used: RecentCount,
    /// Pinholes that expired without a connection.
    unused: Failure,
    encrypted: Failure,
    /// Data connections of encrypted sessions that the firewall dropped.
    tried: Failure,
    /// The ports that clients have tried, by server.
    tried_ports: BTreeMap<IpAddr, Tried>,
    /// Sessions that open nothing, because packets of an end arrive where no route to it leads.
    routeless: Failure,
    /// Data connections that got no answer.
    missing: Failure,
    servers: RecentServers,
}

impl Traffic {
    /// Notes an event of an engine, as far as it matters here.
    pub(super) fn note(&mut self, now: Instant, event: &Event) {
        let Event { session, client, server, .. } = *event;
        match &event.kind {
            EventKind::PinholeExpired(kind) if self.expired.len() < MAX_EXPIRED => {
                let (user, kind) = (event.user.clone(), *kind);
                self.expired.push(Event { session, client, server, user, kind });
            }
            EventKind::Elsewhere(Stray { has_no_route: true, .. }) => {
                self.routeless.note(now, event, format!("{client} -> {server}"));
            }
            EventKind::Encrypted => self.encrypted.note(now, event, String::new()),
            EventKind::Announcement(decided)
            | EventKind::Refusal(Refusal::Announcement(decided)) => {
                self.servers.note(now, server, decided);
            }
            _ => {}
        }
    }

    /// Forgets what a configuration may have caused.
    pub(super) fn forget_configured(&mut self) {
        for failure in [&mut self.encrypted, &mut self.tried, &mut self.routeless] {
            failure.forget();
        }
        self.tried_ports.clear();
        self.servers.forget_refused();
        self.uninspected.forget(self.uninspected.total);
    }

    /// How many pinholes expired without a connection.
    pub(super) fn unused_pinholes(&self) -> u64 {
        self.unused.total
    }

    /// Notes pinholes that expired without a connection.
    pub(super) fn note_unused(&mut self, now: Instant, unused: &[Event]) {
        unused.iter().for_each(|one| self.unused.note(now, one, one.to_string()));
    }

    /// Notes that a data connection of `session` did not come about for this reason.
    pub(super) fn note_no_data_connection(&mut self, now: Instant, event: &Event, reason: &str) {
        self.missing.note(now, event, format!("session #{}: {reason}", event.session));
    }

    /// Notes that the firewall dropped a data connection of an encrypted session.
    pub(super) fn note_tried(&mut self, now: Instant, event: &Event, tried: &MissingConnection) {
        self.tried.note(now, event, String::new());
        let (server, port) = (tried.ends.target.ip(), tried.ends.target.port());
        if self.tried_ports.len() < MAX_TRIED || self.tried_ports.contains_key(&server) {
            let is_published = tried.ends.arrival.ip() != server;
            let new = Tried { ports: port..=port, has_others: false, is_published };
            let known = self.tried_ports.entry(server).or_insert(new);
            known.ports = port.min(*known.ports.start())..=port.max(*known.ports.end());
            known.has_others |= tried.misses_range;
        }
    }

    /// Updates the counts of the last minutes. Returns what is wrong now. `drops_unmarked` says whether the firewall drops
    /// each data connection that ftp-alg has not marked.
    pub(super) fn update(
        &mut self,
        now: Instant,
        status: &Status,
        drops_unmarked: bool,
    ) -> impl Iterator<Item = Finding> {
        let Counters { uninspected, pinholes_used, .. } = status.counters;
        let overruns = self.overruns.note(now, status.daemon.overruns);
        let uninspected = self.uninspected.note(now, uninspected);
        let used = self.used.note(now, pinholes_used);
        let servers = &mut self.servers;
        let unused = self.unused.recent(now, servers);
        let missing = self.missing.recent(now, servers);
        let routeless = self.routeless.recent(now, servers);
        let encrypted = self.encrypted.recent(now, servers);
        let tried = self.tried.recent(now, servers);
        if tried.count == 0 {
            self.tried_ports.clear();
        }
        let ports = &self.tried_ports;
        let (overruns_at, uninspected_at) = (self.overruns.last_at, self.uninspected.last_at);
        let probes = [
            (overruns_at, (overruns > 0).then(|| {
                let packets = counted(overruns, "packet");
                ProblemName::Overruns.finding(format!(
                    "a queue was full: the kernel dropped {packets} {WITHIN}, which the senders retransmit"
                ))
            })),
            (uninspected_at, (uninspected > 0).then(|| {
                let packets = counted(uninspected, "packet");
                ProblemName::MaxSessions.finding(format!(
                    "max-sessions is reached: {packets} {WITHIN} belonged to connections that are not inspected, and \
                     for which no pinhole is opened"
                ))
            })),
            (unused.last_at, (unused.count * UNUSED_SHARE > used).then(|| {
                let (what, last) = (counted(unused.count, "announced data connection"), unused.last);
                let text = format!("{what} {unused} did not arrive here in time; the last: {last}");
                unused.finding(ProblemName::UnusedPinholes, text)
            })),
            (missing.last_at, (missing.count >= MIN_MISSING && missing.count * UNUSED_SHARE > used).then(|| {
                let Recent { count, last, .. } = missing;
                ProblemName::NoDataConnection.finding(format!(
                    "{count} data connections {missing} did not come about; the last: {last}"
                ))
            })),
            (routeless.last_at, (routeless.count >= MIN_ROUTELESS).then(|| {
                let Recent { count, last, .. } = routeless;
                let text = format!(
                    "{count} sessions {routeless} open nothing, because the packets of an end arrive on an interface to \
                     which no route to that end leads; the last: {last}"
                );
                routeless.finding(ProblemName::NoRoute, text)
            })),
            (tried.last_at, (tried.count > 0).then(|| {
                let what = counted(tried.count, "data connection");
                let text = format!(
                    "the firewall dropped {what} of encrypted sessions {tried}: {}",
                    ports.iter().map(tried_text).collect::<Vec<_>>().join("; ")
                );
                let name = ProblemName::Encrypted;
                (name.severity(tried.counted_clients()), name.problem_with(text, tried_remedy(ports)))
            })),
            (encrypted.last_at, (encrypted.count > 0 && drops_unmarked && tried.count == 0).then(|| {
                let sessions = counted(encrypted.count, "session");
                let were = was_or_were(encrypted.count);
                let text = format!(
                    "{sessions} {encrypted} {were} encrypted: the server has no passive-ports, and the firewall drops the \
                     data connections"
                );
                encrypted.finding(ProblemName::Encrypted, text)
            })),
        ];
        let refused = self.servers.finding(now).unzip();
        probes.into_iter().chain([refused]).filter_map(|(at, found)| {
            let (severity, mut problem) = found?;
            problem.last = at.map(in_utc_seconds);
            Some((severity, problem))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    /// What the remedy proposes for a server of which clients have `tried` these ports.
    fn proposed(tried: RangeInclusive<u16>, has_others: bool, is_published: bool) -> String {
        let tried = Tried { ports: tried, has_others, is_published };
        tried_remedy(&BTreeMap::from([(IpAddr::from([10, 0, 0, 5]), tried)]))
    }

    #[test]
    fn the_ports_that_clients_tried_can_be_pasted() {
        for (ports, is_published, proposed_ports) in [
            (50003..=50057, true, "50000-50100"),
            (50100..=50100, true, "50100-50200"),
            (50003..=50100, true, "50000-50100"),
            (65535..=65535, false, "65500-65535"),
            (1024..=1024, false, "1024-1100"),
        ] {
            let remedy = proposed(ports.clone(), false, is_published);
            let (sentence, lines) = remedy.split_once('\n').unwrap();
            assert!(sentence.ends_with("; then reload"), "{remedy}");
            let table = if is_published { "[[server]]\naddress" } else { "[[network]]\nservers" };
            assert_eq!(
                lines,
                format!("{table} = \"10.0.0.5\"\npassive-ports = \"{proposed_ports}\"")
            );
            Config::parse(lines, Path::new("f")).unwrap();
        }
    }

    #[test]
    fn no_ports_of_other_services_are_proposed() {
        for (tried, has_others) in [
            (20..=80, false),
            (20..=1030, false),
            (3306..=3306, false),
            (8400..=8500, false),
            (1024..=65535, false),
            (50000..=50100, true),
        ] {
            let remedy = proposed(tried, has_others, true);
            let start =
                "look up the range of passive ports in the settings of 10.0.0.5, and write it";
            assert!(remedy.starts_with(start) && !remedy.contains('\n'), "{remedy}");
        }
    }
}
