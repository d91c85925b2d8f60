//! What the control socket asks of the daemon.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{Kernel, PinholeInfo, SessionInfo, Translation};

use super::{
    shard::{Shard, lock},
    shared::Shared,
    snapshot::{PinholeRow, SessionRow, Source, Status},
};

/// How long translations are looked up for one answer: some ten thousand.
const LOOK_UP: Duration = Duration::from_millis(500);

impl Shared {
    /// Has the engines read what the fast path has judged by now.
    fn catch_up(&self) {
        if let Ok(judged) = &self.judged {
            judged.read(self, &mut lock(&self.kernel));
        }
    }

    /// What the engines hold and the kernel says is open: it closes by itself what is used.
    fn open_pinholes(&self) -> Vec<PinholeRow> {
        let mut kernel = lock(&self.kernel);
        let open = match kernel.list_open().and_then(|open| Ok((open, kernel.list_judged()?))) {
            Ok((open, judged)) => [open, judged].concat(),
            Err(error) => {
                self.fail(&error);
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

impl Source for Shared {
    fn status(&self) -> Status {
        self.catch_up();
        let mut status = self.counted(Instant::now());
        let sessions = |shard: &Shard| lock(&shard.engine).sessions.list().count() as u64;
        status.sessions = self.shards.iter().map(sessions).sum();
        status.pinholes = self.open_pinholes().len() as u64;
        status
    }

    /// An engine looks up a translation when something is announced. Who asks gets all others as well.
    fn sessions(&self) -> Vec<SessionRow> {
        self.catch_up();
        let now = Instant::now();
        let mut kernel = lock(&self.kernel);
        let list = |shard: &Shard| lock(&shard.engine).sessions.list().collect::<Vec<_>>();
        let mut sessions: Vec<_> = self.shards.iter().flat_map(list).collect();
        // No engine is locked meanwhile.
        for session in sessions.iter_mut().filter(|session| !session.is_looked_up) {
            if now.elapsed() > LOOK_UP {
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
        self.catch_up();
        self.open_pinholes()
    }
}
