//! What the control socket asks of the daemon.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{Kernel, PinholeInfo, SessionInfo, Translation};

use super::{
    shard::{Shard, lock},
    shared_state::SharedState,
    snapshot::{PinholeRow, SessionRow, Status, StatusSource},
};

/// How long translations are looked up for one answer: some ten thousand.
const LOOK_UP_LIMIT: Duration = Duration::from_millis(500);

impl SharedState {
    /// Has the engines read what the fast path has judged by now.
    fn read_fast_path(&self) {
        if let Ok(judged) = &self.fast_path {
            judged.read_steps(self, &mut lock(&self.kernel));
        }
    }

    /// What the engines hold and the kernel says is open: it closes by itself what is used.
    fn pinhole_rows(&self) -> Vec<PinholeRow> {
        let mut kernel = lock(&self.kernel);
        let open = match kernel.list_open().and_then(|open| Ok((open, kernel.list_judged()?))) {
            Ok((open, judged)) => [open, judged].concat(),
            Err(error) => {
                self.report_error(&error);
                return Vec::new();
            }
        };
        drop(kernel);
        // By its key, as each row is looked up with an engine locked, which keeps its worker waiting.
        let remaining: HashMap<_, _> =
            open.iter().map(|open| ((open.initiator, open.arrival), open.remaining)).collect();
        let row = |info: PinholeInfo| {
            let pinhole = info.pinhole;
            let remaining = remaining.get(&(pinhole.initiator, pinhole.arrival))?;
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
        let rows = |shard: &Shard| {
            lock(&shard.engine).sessions.list_pinholes().filter_map(row).collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(rows).collect()
    }
}

impl StatusSource for SharedState {
    fn status(&self) -> Status {
        self.read_fast_path();
        let mut status = self.status_without_sessions(Instant::now());
        let sessions = |shard: &Shard| lock(&shard.engine).sessions.list().count() as u64;
        status.sessions = self.shards.iter().map(sessions).sum();
        status.pinholes = self.pinhole_rows().len() as u64;
        status
    }

    /// An engine looks up a translation when something is announced. Who asks gets all others as well.
    fn sessions(&self) -> Vec<SessionRow> {
        self.read_fast_path();
        let now = Instant::now();
        let mut kernel = lock(&self.kernel);
        let list = |shard: &Shard| lock(&shard.engine).sessions.list().collect::<Vec<_>>();
        let mut sessions: Vec<_> = self.shards.iter().flat_map(list).collect();
        // No engine is locked meanwhile.
        for session in sessions.iter_mut().filter(|session| !session.is_looked_up) {
            if now.elapsed() > LOOK_UP_LIMIT {
                break;
            }
            let Translation { client, server, .. } = session.translation;
            if let Ok(Some(translation)) = kernel.translation(client, server) {
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
            pinholes: session.pinholes as u64,
        };
        sessions.into_iter().map(row).collect()
    }

    fn pinholes(&self) -> Vec<PinholeRow> {
        self.read_fast_path();
        self.pinhole_rows()
    }
}
