//! What the traffic of the last minutes says: pinholes that nobody used, encrypted sessions, missing routes, limits,
//! and servers whose announcements all open nothing.
//!
//! Invariant: memory is bounded, whatever peers do.

use std::{net::SocketAddr, time::Instant};

use ftp_alg_core::{
    engine::{Counters, Event, EventKind, Pinhole, TransferSession},
    ftp::AnnouncementKind,
};

use super::{
    RECENT_WINDOW,
    names::{Findings, MIN_CLIENTS, ProblemName},
    recent::{RecentClients, RecentCount},
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
pub(in crate::daemon) type Ends = (SocketAddr, SocketAddr);

/// A pinhole that expired in its engine.
#[derive(Clone, Debug)]
pub(super) struct ExpiredPinhole {
    pub(super) pinhole: Pinhole,
    kind: AnnouncementKind,
    session: u64,
    client: SocketAddr,
    server: SocketAddr,
}

/// A pinhole that expired without a connection.
#[derive(Debug)]
pub(in crate::daemon) struct UnusedPinhole {
    pub session: u64,
    pub ends: Ends,
    pub log_line: String,
}

impl ExpiredPinhole {
    pub(super) fn into_unused(self) -> UnusedPinhole {
        let Self { pinhole, kind, session, client, server } = self;
        let log_line = format!(
            "#{session} {client} -> {server}: pinhole expired unused: {pinhole}, opened for {kind}: the end that connects came late \
             or not at all, or its data connection was dropped before this gateway"
        );
        UnusedPinhole { session, ends: (client, server), log_line }
    }
}

/// A failure of sessions: how often, and of which clients.
#[derive(Debug)]
struct Failure {
    count: RecentCount,
    clients: RecentClients,
}

impl Failure {
    fn new(now: Instant) -> Self {
        Self {
            count: RecentCount::new(now, RECENT_WINDOW),
            clients: RecentClients::new(now, RECENT_WINDOW),
        }
    }

    /// How many recent ones there are if there were `total` since the start, and how many distinct clients had them.
    fn recent(&mut self, now: Instant, total: u64) -> (u64, usize) {
        (self.count.record(now, total), self.clients.count(now))
    }
}

/// The traffic of the last minutes.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) expired: Vec<ExpiredPinhole>,
    /// How many pinholes expired without a connection.
    pub(super) unused: u64,
    /// The log line of the last one.
    last_unused: Option<String>,
    /// How many sessions open nothing, because packets of an end arrive where no route to it leads.
    routeless: u64,
    /// The ends of the last one.
    last_routeless: Option<Ends>,
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
            EventKind::PinholeExpired(pinhole, kind) if self.expired.len() < MAX_EXPIRED => {
                let (pinhole, kind) = (*pinhole, *kind);
                self.expired.push(ExpiredPinhole { pinhole, kind, session, client, server });
            }
            EventKind::RouteMissing(_) => {
                self.routeless += 1;
                self.last_routeless = Some((client, server));
                self.no_route.clients.record(now, client);
            }
            EventKind::Encrypted => self.encrypted.clients.record(now, client),
            EventKind::Announcement(decided) => self.servers.record(now, server, decided),
            _ => {}
        }
    }

    /// Records pinholes that expired without a connection.
    pub(super) fn record_unused(&mut self, now: Instant, unused: &[UnusedPinhole]) {
        for UnusedPinhole { ends: (client, _), log_line, .. } in unused {
            self.unused += 1;
            self.unused_pinholes.clients.record(now, *client);
            self.last_unused = Some(log_line.clone());
        }
    }

    /// Records that a data connection of `session` did not come about for this reason.
    pub(super) fn record_no_data_connection(
        &mut self,
        now: Instant,
        session: TransferSession,
        reason: &str,
    ) {
        let TransferSession { id, client, .. } = session;
        self.missing += 1;
        self.no_data_connection.clients.record(now, client);
        self.last_missing = Some(format!("session #{id}: {reason}"));
    }

    /// Adds what is wrong now. `unmarked_may_pass` says whether the firewall may let data connections pass that are not
    /// marked by ftp-alg.
    pub(super) fn add_findings(
        &mut self,
        now: Instant,
        status: &Status,
        unmarked_may_pass: bool,
        findings: &mut Findings,
    ) {
        let Status { overruns, counters, .. } = status;
        let Counters { encrypted, uninspected, pinholes_used, .. } = *counters;
        let overruns = self.overruns.record(now, *overruns);
        let uninspected = self.uninspected.record(now, uninspected);
        let used = self.used.record(now, pinholes_used);
        let (unused, unused_clients) = self.unused_pinholes.recent(now, self.unused);
        let (routeless, routeless_clients) = self.no_route.recent(now, self.routeless);
        let (missing, missing_clients) = self.no_data_connection.recent(now, self.missing);
        let (encrypted, encrypted_clients) = self.encrypted.recent(now, encrypted);
        let within = format!("in the last {} minutes", RECENT_WINDOW.as_secs() / 60);
        if overruns > 0 {
            let text = format!(
                "a queue was full: the kernel dropped {} {within}, which the senders retransmit",
                counted(overruns, "packet")
            );
            let remedy = "raise [queue] workers, or see what else uses the processors";
            findings.add_named(ProblemName::Overruns, 0, text, remedy);
        }
        if uninspected > 0 {
            let text = format!(
                "max-sessions is reached: {} {within} belonged to connections that are not inspected, and for which no pinhole \
                 is opened",
                counted(uninspected, "packet")
            );
            let remedy = "raise [policy] max-sessions; `ftp-alg sessions` shows whose they are";
            findings.add_named(ProblemName::MaxSessions, 0, text, remedy);
        }
        if unused * UNUSED_SHARE > used {
            let last = self.last_unused.as_deref().unwrap_or_default();
            let of_clients = of_clients(unused_clients);
            let text = format!(
                "{} {within}{of_clients} did not arrive here in time; the last: {last}",
                counted(unused, "announced data connection")
            );
            let remedy = "if transfers fail, find what drops them before this gateway: the firewall of the end that \
                          connects, a provider, or a raw or ingress rule here; if clients are only late, raise \
                          [pinhole] timeout";
            findings.add_named(ProblemName::UnusedPinholes, unused_clients, text, remedy);
        }
        if missing >= MIN_MISSING && missing * UNUSED_SHARE > used {
            let last = self.last_missing.as_deref().unwrap_or_default();
            let of_clients = of_clients(missing_clients);
            let text = format!(
                "{missing} data connections {within}{of_clients} did not come about; the last: {last}"
            );
            let remedy = "if transfers fail: the firewall or the NAT of the end that does not answer, or of a router on \
                          the way to it, does not let the announced port in; `ftp-alg doctor` looks at the rules here";
            findings.add_named(ProblemName::NoDataConnection, 0, text, remedy);
        }
        if let Some((client, server)) = self.last_routeless.filter(|_| routeless >= MIN_ROUTELESS) {
            let of_clients = of_clients(routeless_clients);
            let text = format!(
                "{routeless} sessions {within}{of_clients} open nothing, because the packets of an end arrive on an \
                 interface to which no route to that end leads; the last: {client} -> {server}"
            );
            let remedy = "give that end a route by that interface with a higher metric, for example a second default \
                          route: ip route add default via ROUTER dev INTERFACE metric 500";
            findings.add_named(ProblemName::NoRoute, routeless_clients, text, remedy);
        }
        if encrypted > 0 && !unmarked_may_pass {
            let of_clients = of_clients(encrypted_clients);
            let text = format!(
                "{} {within}{of_clients} {} encrypted: ftp-alg cannot read the announcements, and the firewall drops the data \
                 connections",
                counted(encrypted, "session"),
                was_or_were(encrypted)
            );
            let remedy = "open the server's passive ports to its clients, or make clients use plain FTP with \
                          [policy] auth-tls = \"refuse\"";
            findings.add_named(ProblemName::Encrypted, encrypted_clients, text, remedy);
        }
        self.servers.add_findings(now, &within, findings);
    }
}

/// Whose events they are, behind another word; empty if that is not known.
fn of_clients(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => " of one client".to_owned(),
        MIN_CLIENTS.. => format!(" of {MIN_CLIENTS} or more clients"),
        few => format!(" of {few} clients"),
    }
}
