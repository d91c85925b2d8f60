//! The answers to the control socket's requests.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{
    Engine, Kernel, PinholeInfo, PortsText, SessionDetails, SessionInfo, Translation,
};

use super::{
    config_file::ConfigTexts,
    events::{RecentEvents, StoredEvent},
    rates,
    running_bytes::CountedBytes,
    shard::{Shard, lock},
    shared_state::SharedState,
    snapshot::{
        DataConnection, PinholeRow, SessionDetail, SessionRow, SessionSummary, Status,
        TransferProgress,
    },
    status_source::StatusSource,
};
use crate::kernel::LinuxKernel;

/// Time limit for the lookups of translations in one answer. It is enough for about ten thousand.
const LOOK_UP_LIMIT: Duration = Duration::from_millis(500);
/// Limit of events in the answer about one session.
const MAX_EVENTS: usize = 20;

impl SharedState {
    /// Passes all fast-path lines to the engines.
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
            open.iter().map(|open| (open.key(), open.remaining)).collect();
        let now = Instant::now();
        let row = |info: PinholeInfo| {
            let by_kernel = *remaining.get(&info.ends.key())?;
            let until_deadline =
                info.deadline.map(|deadline| deadline.saturating_duration_since(now));
            let remaining_seconds =
                until_deadline.map_or(by_kernel, |left| left.min(by_kernel)).as_secs();
            Some(PinholeRow { info, remaining_seconds })
        };
        let mut rows = Vec::new();
        self.with_each(|Engine { sessions, .. }| {
            let listed = sessions.list_pinholes().chain(sessions.list_ended_pinholes(now));
            rows.extend(listed.filter_map(row));
        });
        let mut listed = HashSet::new();
        rows.retain(|row: &PinholeRow| listed.insert(row.info.ends.key()));
        rows
    }

    fn summary(
        &self,
        session: SessionInfo,
        moved: &[CountedBytes],
        now: Instant,
    ) -> SessionSummary {
        let age = now.saturating_duration_since(session.since);
        let known = Some(moved).filter(|moved| !moved.is_empty());
        let bytes = known.and_then(|moved| moved.iter().map(|one| one.bytes).sum::<Option<u64>>());
        let rate = known.and_then(|moved| moved.iter().map(|one| one.bytes_per_second).sum());
        let read = session.transfer.map(|transfer| {
            let seconds = age.saturating_sub(transfer.requested).as_secs();
            (transfer.verb.name(), transfer.path.into(), Some(seconds), transfer.has_started)
        });
        // All that an encrypted session has at a time.
        let running = read.or_else(|| known.map(|_| ("encrypted", String::new(), None, true)));
        let transfer = running.map(|(verb, path, seconds, started)| TransferProgress {
            verb: verb.to_owned(),
            path,
            seconds,
            started,
            bytes,
            bytes_per_second: rate,
        });
        let reported = || self.transfers.session_bytes().of(session.id);
        let reported = self.transfers.is_on.then(reported);
        SessionSummary {
            id: session.id,
            client: session.translation.client,
            server: session.translation.server,
            client_external: session.translation.client_external,
            server_external: session.translation.server_external,
            user: session.user.as_deref().map(String::from),
            state: session.state.to_owned(),
            age_seconds: age.as_secs(),
            adjusted: session.adjusted,
            fast_path: session.is_on_fast_path,
            transfer,
            transfers: session.ended_transfers,
            bytes: reported.map(|reported| reported + bytes.unwrap_or(0)),
            passive_ports: session.open_ports.map(|ports| PortsText(&ports).to_string()),
        }
    }
}

impl StatusSource for SharedState {
    fn config_texts(&self) -> ConfigTexts {
        self.config_file.texts_in_use()
    }

    fn events(&self, after: u64) -> RecentEvents {
        self.events.after(after)
    }

    fn newest_events(&self, after: u64) -> RecentEvents {
        self.events.newest_after(after)
    }

    fn status(&self) -> Status {
        self.read_fast_path();
        let now = Instant::now();
        let mut status = self.status_without_sessions(now);
        let counts = rates::counts(&status, self.transfers.is_on);
        status.rates = lock(&self.history).rates(now, counts);
        self.with_each(|engine| status.sessions += engine.sessions.count_open() as u64);
        let pinholes = self.pinhole_rows();
        status.pinholes = pinholes.len() as u64;
        let mut running = Vec::new();
        self.with_each(|engine| running.extend(engine.sessions.list_running()));
        forget_pending(&mut running, &pinholes);
        status.running =
            self.running_bytes.looks_at(&running).totals(&running, &self.range_finder());
        status
    }

    /// All sessions. An engine looks up a translation only for an announcement, so this looks up the missing ones.
    /// Pinholes are counted as [`StatusSource::pinholes`] lists them.
    fn sessions(&self) -> Vec<SessionRow> {
        let now = Instant::now();
        let pinholes = self.pinholes();
        let mut open = HashMap::new();
        for pinhole in &pinholes {
            *open.entry(pinhole.info.session).or_default() += 1;
        }
        let mut kernel = lock(&self.kernel);
        let mut sessions = Vec::new();
        self.with_each(|engine| sessions.extend(engine.sessions.list()));
        // A worker may adopt one between the looks at two shards.
        let mut listed = HashSet::new();
        sessions.retain(|session: &SessionInfo| listed.insert(session.id));
        // Without the lock of an engine, because lookups take time.
        for session in &mut sessions {
            if now.elapsed() > LOOK_UP_LIMIT {
                break;
            }
            look_up(session, &mut kernel);
        }
        drop(kernel);
        forget_pending(&mut sessions, &pinholes);
        let (looks, finder) = (self.running_bytes.looks_at(&sessions), self.range_finder());
        let row = |session: SessionInfo| {
            let pinholes = open.get(&session.id).copied().unwrap_or_default();
            let moved = looks.moved(&session, &finder);
            SessionRow { pinholes, summary: self.summary(session, &moved, now) }
        };
        sessions.into_iter().map(row).collect()
    }

    fn session(&self, id: u64) -> Option<SessionDetail<StoredEvent>> {
        let mut pinholes = self.pinholes();
        pinholes.retain(|pinhole| pinhole.info.session == id);
        let find = |shard: &Mutex<Shard>| lock(shard).engine.sessions.details(id);
        let SessionDetails { mut info, directory, is_encrypted, offsets } =
            self.shards.iter().find_map(find)?;
        look_up(&mut info, &mut lock(&self.kernel));
        let [offset_to_server, offset_to_client] = offsets;
        let data_connection = info.data_connection.map(|(kind, ends)| {
            let pending = pinholes.iter().any(|row| row.info.ends.key() == ends.key());
            DataConnection { kind, ends, pending }
        });
        forget_pending(std::slice::from_mut(&mut info), &pinholes);
        let looks = self.running_bytes.looks_at(std::slice::from_ref(&info));
        let moved = looks.moved(&info, &self.range_finder());
        Some(SessionDetail {
            summary: self.summary(info, &moved, Instant::now()),
            directory: directory.map(String::from),
            encrypted: is_encrypted,
            offset_to_server,
            offset_to_client,
            data_connection,
            pinholes,
            events: self.events.last_of(id, MAX_EVENTS),
        })
    }

    fn pinholes(&self) -> Vec<PinholeRow> {
        self.read_fast_path();
        self.pinhole_rows()
    }

    fn change_role(&self, active: bool) -> Result<String, String> {
        self.order_role(active)
    }
}

/// Looks up the translation of `session`, unless its engine has done that.
fn look_up(session: &mut SessionInfo, kernel: &mut LinuxKernel) {
    let Translation { client, server, .. } = session.translation;
    if !session.is_looked_up
        && let Ok(Some(translation)) = kernel.lookup_translation(client, server)
    {
        session.translation = translation;
    }
}

/// Forgets the data connections that have not arrived: others may have had the same ends.
fn forget_pending(sessions: &mut [SessionInfo], pinholes: &[PinholeRow]) {
    let open: HashSet<_> = pinholes.iter().map(|row| row.info.ends.key()).collect();
    for session in sessions {
        session.data_connection.take_if(|(_, ends)| open.contains(&ends.key()));
    }
}
