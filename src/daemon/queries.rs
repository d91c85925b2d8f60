//! The answers to the control socket's requests.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{Kernel, PinholeInfo, SessionInfo, Translation};

use super::{
    rates::Counts,
    shard::{Shard, lock},
    shared_state::SharedState,
    snapshot::{PinholeRow, RecentEvents, SessionRow, Status, StatusSource},
};

/// Time limit for the lookups of translations in one answer. It is enough for about ten thousand.
const LOOK_UP_LIMIT: Duration = Duration::from_millis(500);

impl SharedState {
    /// Has the engines read all fast-path lines.
    fn read_fast_path(&self) {
        if let Some(mut fast_path) = self.fast_path_control(&mut lock(&self.kernel)) {
            fast_path.read_lines();
        }
    }

    /// The pinholes that an engine holds and that are open in the kernel. The kernel closes a consumed pinhole by
    /// itself.
    fn pinhole_rows(&self) -> Vec<PinholeRow> {
        let mut kernel = lock(&self.kernel);
        let of_rules = kernel.list_open();
        let listed =
            of_rules.and_then(|open| Ok([open, kernel.list_fast_path_pinholes()?].concat()));
        let Some(open) = self.report(listed) else { return Vec::new() };
        drop(kernel);
        // A map, because each lookup locks an engine that a worker may need.
        let remaining: HashMap<_, _> =
            open.iter().map(|open| (open.ends(), open.remaining)).collect();
        let row = |info: PinholeInfo| {
            let pinhole = info.pinhole;
            let remaining = remaining.get(&pinhole.ends())?;
            Some(PinholeRow {
                session: info.session,
                initiator: pinhole.initiator,
                arrival: pinhole.arrival,
                target: pinhole.target,
                source: pinhole.source,
                kind: info.kind,
                remaining_seconds: remaining.as_secs(),
            })
        };
        let now = Instant::now();
        let rows = |shard: &Shard| {
            let sessions = &lock(&shard.engine).sessions;
            let listed = sessions.list_pinholes().chain(sessions.list_ended_pinholes(now));
            listed.filter_map(row).collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(rows).collect()
    }
}

impl StatusSource for SharedState {
    fn events(&self, after: u64) -> RecentEvents {
        self.events.after(after)
    }

    fn status(&self) -> Status {
        self.read_fast_path();
        let now = Instant::now();
        let mut status = self.status_without_sessions(now);
        let counts = Counts::of(&status);
        status.rates = lock(&self.history).rates(now, counts, self.transfers.is_on());
        let sessions = |shard: &Shard| lock(&shard.engine).sessions.list().count() as u64;
        status.sessions = self.shards.iter().map(sessions).sum();
        status.pinholes = self.pinhole_rows().len() as u64;
        status
    }

    /// All sessions. An engine looks up a translation only for an announcement, so this looks up the missing ones.
    /// Pinholes are counted as [`StatusSource::pinholes`] lists them.
    fn sessions(&self) -> Vec<SessionRow> {
        let now = Instant::now();
        let mut open = HashMap::new();
        for pinhole in self.pinholes() {
            *open.entry(pinhole.session).or_default() += 1;
        }
        let mut kernel = lock(&self.kernel);
        let list = |shard: &Shard| lock(&shard.engine).sessions.list().collect::<Vec<_>>();
        let mut sessions: Vec<_> = self.shards.iter().flat_map(list).collect();
        // Without the lock of an engine, because lookups take time.
        for session in sessions.iter_mut().filter(|session| !session.is_looked_up) {
            if now.elapsed() > LOOK_UP_LIMIT {
                break;
            }
            let Translation { client, server, .. } = session.translation;
            if let Ok(Some(translation)) = kernel.lookup_translation(client, server) {
                session.translation = translation;
            }
        }
        let row = |session: SessionInfo| SessionRow {
            id: session.id,
            client: session.translation.client,
            server: session.translation.server,
            client_external: session.translation.client_external,
            server_external: session.translation.server_external,
            state: session.state.to_owned(),
            age_seconds: now.saturating_duration_since(session.since).as_secs(),
            adjusted: session.adjusted,
            pinholes: open.get(&session.id).copied().unwrap_or_default(),
        };
        sessions.into_iter().map(row).collect()
    }

    fn pinholes(&self) -> Vec<PinholeRow> {
        self.read_fast_path();
        self.pinhole_rows()
    }
}
