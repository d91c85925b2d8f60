//! What the traffic of the last minutes says: pinholes that nobody used, encrypted sessions, missing routes, limits,
//! and servers whose announcements all open nothing.
//!
//! Invariant: memory is bounded, whatever peers do.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use ftp_alg_core::engine::{
    Counters, Event, EventKind, PinholeInfo, Refusal, Stray, UnusedPinhole,
};

use super::{
    RECENT_WINDOW,
    names::{Finding, MIN_CLIENTS, ProblemName},
    recent::{RecentClients, RecentCount, RecentServer},
    servers::RecentServers,
};
use crate::daemon::{
    counted::{counted, was_or_were},
    snapshot::Status,
};

/// Unused pinholes count if there are more than one for so many used ones. A few data connections always fail.
const UNUSED_SHARE: u64 = 20;
/// A single session may meet a change of routes, or a spoofed packet.
const MIN_ROUTELESS: u64 = 2;
/// A few data connections fail because their clients cancel them.
const MIN_MISSING: u64 = 3;
/// How many expired pinholes are stored until the next look at conntrack.
const MAX_EXPIRED: usize = 1024;

/// The client and the server of a session.
pub(in crate::daemon) type ControlEnds = (SocketAddr, SocketAddr);

/// A failure of sessions: how often, of which clients, and with which server.
#[derive(Debug)]
struct Failure {
    count: RecentCount,
    clients: RecentClients,
    server: RecentServer,
}

/// Who has a recent failure.
#[derive(Clone, Copy, Debug)]
struct Concerned {
    /// How many distinct clients, up to [`MIN_CLIENTS`].
    clients: usize,
    /// The server, if it is only this one, and others work.
    server: Option<IpAddr>,
}

impl Failure {
    fn new(now: Instant) -> Self {
        Self {
            count: RecentCount::new(now, RECENT_WINDOW),
            clients: RecentClients::new(now, RECENT_WINDOW),
            server: RecentServer::new(now, RECENT_WINDOW),
        }
    }

    fn record(&mut self, now: Instant, (client, server): ControlEnds) {
        self.clients.record(now, client);
        self.server.record(now, server);
    }

    /// How many recent ones there are if there were `total` since the start, and who had them. The `servers` are all
    /// that clients use.
    fn recent(
        &mut self,
        now: Instant,
        total: u64,
        servers: &mut RecentServers,
    ) -> (u64, Concerned) {
        let server = self.server.only(now).filter(|server| servers.others_work(now, *server));
        (self.count.record(now, total), Concerned { clients: self.clients.count(now), server })
    }
}

impl Concerned {
    /// How many clients count for the severity. What only one server has is no problem of the gateway.
    fn counting_clients(self) -> usize {
        if self.server.is_some() { 0 } else { self.clients }
    }
}

/// Whose failures they are, behind another word; empty if that is not known.
impl fmt::Display for Concerned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// The traffic of the last minutes.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) expired: Vec<PinholeInfo>,
    /// How many pinholes expired without a connection.
    pub(super) unused: u64,
    /// The log line of the last one.
    last_unused: Option<String>,
    /// How many sessions open nothing, because packets of an end arrive where no route to it leads.
    routeless: u64,
    /// The ends of the last one.
    last_routeless: Option<ControlEnds>,
    overruns: RecentCount,
    uninspected: RecentCount,
    used: RecentCount,
    unused_pinholes: Failure,
    encrypted: Failure,
    no_route: Failure,
    /// How many data connections got no answer.
    missing: u64,
    /// The last one.
    last_missing: Option<String>,
    no_data_connection: Failure,
    servers: RecentServers,
}

impl Traffic {
    pub(super) fn new(now: Instant) -> Self {
        let count = || RecentCount::new(now, RECENT_WINDOW);
        Self {
            expired: Vec::new(),
            unused: 0,
            last_unused: None,
            routeless: 0,
            last_routeless: None,
            overruns: count(),
            uninspected: count(),
            used: count(),
            unused_pinholes: Failure::new(now),
            encrypted: Failure::new(now),
            no_route: Failure::new(now),
            missing: 0,
            last_missing: None,
            no_data_connection: Failure::new(now),
            servers: RecentServers::new(now, RECENT_WINDOW),
        }
    }

    /// Records an event of an engine, as far as it matters here.
    pub(super) fn record(&mut self, now: Instant, event: &Event) {
        let Event { session, client, server, .. } = *event;
        match &event.kind {
            EventKind::PinholeExpired(UnusedPinhole { kind, ends, .. })
                if self.expired.len() < MAX_EXPIRED =>
            {
                let (pinhole, kind, user) = (*ends, *kind, event.user.clone());
                self.expired.push(PinholeInfo { session, client, server, user, pinhole, kind });
            }
            EventKind::Elsewhere(Stray { has_no_route: true, .. }) => {
                self.routeless += 1;
                self.last_routeless = Some((client, server));
                self.no_route.record(now, (client, server));
            }
            EventKind::Encrypted => self.encrypted.record(now, (client, server)),
            EventKind::Announcement(decided)
            | EventKind::Refusal(Refusal::Announcement(decided)) => {
                self.servers.record(now, server, decided);
            }
            _ => {}
        }
    }

    /// Records pinholes that expired without a connection.
    pub(super) fn record_unused(&mut self, now: Instant, unused: &[Event]) {
        self.unused += unused.len() as u64;
        for one in unused {
            self.unused_pinholes.record(now, (one.client, one.server));
        }
        self.last_unused = unused.last().map(Event::to_string).or(self.last_unused.take());
    }

    /// Records that a data connection of `session` did not come about for this reason.
    pub(super) fn record_no_data_connection(&mut self, now: Instant, event: &Event, reason: &str) {
        self.missing += 1;
        self.no_data_connection.record(now, (event.client, event.server));
        self.last_missing = Some(format!("session #{}: {reason}", event.session));
    }

    /// What is wrong now. `unmarked_may_pass` says whether the firewall may let data connections pass that are not marked by
    /// ftp-alg.
    pub(super) fn findings(
        &mut self,
        now: Instant,
        status: &Status,
        unmarked_may_pass: bool,
    ) -> impl Iterator<Item = Finding> {
        let Status { daemon, counters, .. } = status;
        let Counters { encrypted, uninspected, pinholes_used, .. } = *counters;
        let overruns = self.overruns.record(now, daemon.overruns);
        let uninspected = self.uninspected.record(now, uninspected);
        let used = self.used.record(now, pinholes_used);
        let servers = &mut self.servers;
        let (unused, unused_by) = self.unused_pinholes.recent(now, self.unused, servers);
        let (routeless, routeless_by) = self.no_route.recent(now, self.routeless, servers);
        let (missing, missing_by) = self.no_data_connection.recent(now, self.missing, servers);
        let (encrypted, encrypted_by) = self.encrypted.recent(now, encrypted, servers);
        let within = format!("in the last {} minutes", RECENT_WINDOW.as_secs() / 60);
        let last = |text: &Option<String>| text.clone().unwrap_or_default();
        let last_routeless = self.last_routeless.filter(|_| routeless >= MIN_ROUTELESS);
        let probes = [
            (overruns > 0).then(|| {
                ProblemName::Overruns.finding(format!(
                    "a queue was full: the kernel dropped {} {within}, which the senders retransmit",
                    counted(overruns, "packet")
                ))
            }),
            (uninspected > 0).then(|| {
                ProblemName::MaxSessions.finding(format!(
                    "max-sessions is reached: {} {within} belonged to connections that are not inspected, and for which \
                     no pinhole is opened",
                    counted(uninspected, "packet")
                ))
            }),
            (unused * UNUSED_SHARE > used).then(|| {
                let (what, last) = (counted(unused, "announced data connection"), last(&self.last_unused));
                ProblemName::UnusedPinholes.of_clients(unused_by.counting_clients(), format!(
                    "{what} {within}{unused_by} did not arrive here in time; the last: {last}"
                ))
            }),
            (missing >= MIN_MISSING && missing * UNUSED_SHARE > used).then(|| {
                let last = last(&self.last_missing);
                ProblemName::NoDataConnection.finding(format!(
                    "{missing} data connections {within}{missing_by} did not come about; the last: {last}"
                ))
            }),
            last_routeless.map(|(client, server)| {
                ProblemName::NoRoute.of_clients(routeless_by.counting_clients(), format!(
                    "{routeless} sessions {within}{routeless_by} open nothing, because the packets of an end arrive on an \
                     interface to which no route to that end leads; the last: {client} -> {server}"
                ))
            }),
            (encrypted > 0 && !unmarked_may_pass).then(|| {
                let (what, were) = (counted(encrypted, "session"), was_or_were(encrypted));
                ProblemName::Encrypted.of_clients(encrypted_by.counting_clients(), format!(
                    "{what} {within}{encrypted_by} {were} encrypted: ftp-alg cannot read the announcements, and the \
                     firewall drops the data connections"
                ))
            }),
            self.servers.finding(now, &within),
        ];
        probes.into_iter().flatten()
    }
}
