//! This gateway as one of two: its role, and what it knows of the other one.
//!
//! keepalived moves addresses and orders the role, conntrackd has the connections of the kernel, and a [store](super::store)
//! on each gateway has the records: the standby's is a replica of the active one's. A daemon asks the other gateway's store
//! only whether that one is active, too.
//!
//! Invariants:
//! - The workers of a standby read no packets. What comes early waits in the kernel's queue. Otherwise a worker would begin
//!   a picked-up session, and the restored one would not be found.
//! - An active gateway writes to keys with its own epoch in their name. If two are active, each has its own keys, and the
//!   one with the lower epoch finds the other's, and yields.
//! - keepalived has the last word. A gateway that has yielded, and is not ordered to wait, is activated again as soon as the
//!   other one has left its sessions, or is silent.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use redis::cmd;

use super::{
    shard::lock,
    snapshot::PairStatus,
    store::{Gateway, StoreConnection, StoreLink, StoreWriter, keys, millis},
};
use crate::{
    config::{Config, PairSettings},
    kernel::{
        RuleParameters,
        clocks::{monotonic_zero, since_1970},
        queue::Waker,
    },
};

/// The file in the state directory with the role, for a restarted daemon.
const ROLE: &str = "role";
/// How often a parked worker records progress.
const PARKED_PASS: Duration = Duration::from_millis(100);
/// How long a restarted daemon, or one that changes its role, waits for the store.
pub(super) const STORE_LIMIT: Duration = Duration::from_secs(2);

/// How long a daemon stays that has left its sessions. Behind it packets that still come here would pass unread.
const STAY: Duration = Duration::from_secs(2);

/// What a gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Standby,
    Active { epoch: u64 },
}

impl Role {
    /// The role that the state directory has.
    fn saved(state_dir: &Path) -> Self {
        let text = fs::read_to_string(state_dir.join(ROLE)).unwrap_or_default();
        let epoch = text.trim_end().strip_prefix("active ").and_then(|epoch| epoch.parse().ok());
        epoch.map_or(Self::Standby, |epoch| Self::Active { epoch })
    }

    fn save(self, state_dir: &Path) -> io::Result<()> {
        let text = match self {
            Self::Standby => "standby\n".to_owned(),
            Self::Active { epoch } => format!("active {epoch}\n"),
        };
        let new = state_dir.join("role.new");
        fs::write(&new, text)?;
        fs::rename(new, state_dir.join(ROLE))
    }
}

/// This gateway, one of a pair.
pub(super) struct Pair {
    pub(super) settings: PairSettings,
    pub(super) parameters: RuleParameters,
    state_dir: PathBuf,
    /// This gateway, but for its times and its configuration.
    pub(super) own: Gateway,
    /// The checksum of its configuration.
    config: AtomicU64,
    state: Mutex<State>,
    /// The role has changed, or a worker is parked.
    changed: Condvar,
    is_standby: AtomicBool,
    /// Held while the role changes.
    pub(super) changing: Mutex<()>,
    /// Wakes the workers.
    wakers: Mutex<Vec<Waker>>,
    pub(super) link: Arc<StoreLink>,
    seen: Mutex<Seen>,
}

struct State {
    role: Role,
    since: Instant,
    /// Whether the last order was to be active.
    is_ordered: bool,
    /// Whether it was active before.
    has_left: bool,
    /// How many workers read no packets.
    parked: usize,
}

impl Pair {
    /// The gateway of `config`, with the role that a restarted daemon has: the earlier one, unless the other gateway was
    /// activated since.
    pub(super) fn new(
        config: &Config,
        settings: &PairSettings,
        parameters: &RuleParameters,
        state_dir: &Path,
        wakers: Vec<Waker>,
    ) -> Self {
        let own = Gateway {
            id: std::hash::BuildHasher::hash_one(
                &std::hash::RandomState::new(),
                std::process::id(),
            ),
            version: env!("FTP_ALG_VERSION").to_owned(),
            shards: usize::from(config.queue.workers()) + 1,
            ..Gateway::default()
        };
        let saved = Role::saved(state_dir);
        let role = restarted_role(settings, saved);
        let (since, is_ordered) = (Instant::now(), matches!(saved, Role::Active { .. }));
        Self {
            settings: settings.clone(),
            parameters: parameters.clone(),
            state_dir: state_dir.to_owned(),
            own,
            config: AtomicU64::new(checksum(config)),
            state: Mutex::new(State { role, since, is_ordered, has_left: false, parked: 0 }),
            changed: Condvar::new(),
            is_standby: AtomicBool::new(role == Role::Standby),
            changing: Mutex::new(()),
            wakers: Mutex::new(wakers),
            link: Arc::default(),
            seen: Mutex::default(),
        }
    }

    /// The writer of a shard's records, which begins if this gateway is active.
    pub(super) fn writer(&self, shard: usize) -> StoreWriter {
        let mut writer = StoreWriter::new(Arc::clone(&self.link), shard, self.settings.confirm);
        if let Role::Active { epoch } = self.role() {
            writer.begin(epoch);
        }
        writer
    }

    pub(super) fn role(&self) -> Role {
        lock(&self.state).role
    }

    /// Whether workers are to read no packets.
    pub(super) fn is_standby(&self) -> bool {
        self.is_standby.load(Ordering::Acquire)
    }

    /// Blocks a worker until this gateway is active, or the daemon ends. Calls `pass` meanwhile.
    pub(super) fn park(&self, end: &AtomicBool, mut pass: impl FnMut()) {
        let mut state = lock(&self.state);
        state.parked += 1;
        self.changed.notify_all();
        while state.role == Role::Standby && !end.load(Ordering::Acquire) {
            pass();
            state = self
                .changed
                .wait_timeout(state, PARKED_PASS)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
        state.parked -= 1;
    }

    /// Notes an order, before it is carried out.
    pub(super) fn note_order(&self, is_active: bool) {
        lock(&self.state).is_ordered = is_active;
    }

    /// Whether the last order was to be active.
    pub(super) fn is_ordered(&self) -> bool {
        lock(&self.state).is_ordered
    }

    /// Saves the role that a restarted daemon is to have.
    pub(super) fn save(&self, role: Role) -> io::Result<()> {
        role.save(&self.state_dir)
    }

    /// Changes the role.
    pub(super) fn set_role(&self, role: Role) {
        let mut state = lock(&self.state);
        state.has_left = state.role != Role::Standby;
        (state.role, state.since) = (role, Instant::now());
        self.is_standby.store(role == Role::Standby, Ordering::Release);
        self.changed.notify_all();
        drop(state);
        self.link.wake();
        lock(&self.wakers).iter().for_each(Waker::wake);
    }

    /// Waits, before the daemon ends, until the packets of the sessions that it has left go to the other gateway.
    pub(super) fn wait_for_packets_to_move(&self) {
        let State { role, since, has_left, .. } = *lock(&self.state);
        if role == Role::Standby && has_left {
            thread::sleep(STAY.saturating_sub(since.elapsed()));
        }
    }

    /// Waits until no worker reads packets. Returns whether none does.
    pub(super) fn wait_until_parked(&self, limit: Duration) -> bool {
        let workers = lock(&self.wakers).len();
        let state = lock(&self.state);
        let are_running = |state: &mut State| state.parked < workers;
        let waited = self.changed.wait_timeout_while(state, limit, are_running);
        waited.is_ok_and(|(_, waited)| !waited.timed_out())
    }

    /// What was seen last.
    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// Makes the own store a replica of the other gateway's.
    pub(super) fn demote_store(
        &self,
        store: &mut StoreConnection,
        deadline: Instant,
    ) -> io::Result<()> {
        let peer = self.settings.peer;
        let mut command = cmd("REPLICAOF");
        command.arg(peer.ip().to_string()).arg(peer.port());
        store.run(&command, deadline)
    }

    /// Notes that this gateway continues with `config`.
    pub(super) fn note_config(&self, config: &Config) {
        self.config.store(checksum(config), Ordering::Relaxed);
    }

    /// What this gateway says of itself now.
    pub(super) fn own_now(&self) -> Gateway {
        let (up, clock) = (millis(monotonic_zero().elapsed()), millis(since_1970()));
        let config = self.config.load(Ordering::Relaxed);
        Gateway { up, clock, config, ..self.own.clone() }
    }

    /// The pair's part of `status`.
    pub(super) fn status(&self, shards_behind: usize) -> PairStatus {
        let (role, since) = {
            let state = lock(&self.state);
            (state.role, state.since)
        };
        let seen = self.seen().clone();
        let config = self.config.load(Ordering::Relaxed);
        PairStatus {
            role: if role == Role::Standby { "standby" } else { "active" }.to_owned(),
            epoch: match role {
                Role::Active { epoch } => epoch,
                Role::Standby => seen.current,
            },
            since_seconds: since.elapsed().as_secs(),
            store: seen.store_failure.unwrap_or_else(|| "ok".to_owned()),
            replica: self.link.has_replica.load(Ordering::Relaxed),
            shards_behind: shards_behind as u64,
            unconfirmed: self.link.unconfirmed.load(Ordering::Relaxed),
            lag: seen.lag.map(|lag| lag.as_secs_f64()),
            peer: self.settings.peer,
            peer_failure: seen.peer_failure,
            same_configuration: seen.peer.as_ref().map(|peer| peer.config == config),
            peer_version: seen.peer.map(|peer| peer.version),
            clocks_apart: seen.clocks_apart,
        }
    }
}

/// A checksum of the configuration, as far as both gateways must have the same.
fn checksum(config: &Config) -> u64 {
    let Config { metrics, log, .. } = Config::default();
    let compared = Config { pair: None, metrics, log, ..config.clone() };
    crc32fast::hash(format!("{compared:?}").as_bytes()).into()
}

/// The role of a restarted daemon, whose last one was `saved`.
fn restarted_role(settings: &PairSettings, saved: Role) -> Role {
    let Role::Active { epoch } = saved else { return saved };
    let deadline = Instant::now() + STORE_LIMIT;
    let current = StoreConnection::open_own(&settings.store, STORE_LIMIT).and_then(|mut store| {
        store.query::<Option<u64>>(cmd("GET").arg(keys::current()), deadline)
    });
    match current {
        Ok(Some(current)) if current > epoch => Role::Standby,
        // Without the store nobody can tell. The link deactivates this gateway as soon as it finds another one.
        _ => saved,
    }
}

/// What the link's thread saw last.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Why the own store cannot be used.
    pub(super) store_failure: Option<String>,
    /// Why the other gateway's store cannot be asked.
    pub(super) peer_failure: Option<String>,
    /// The epoch in the own store.
    pub(super) current: u64,
    /// The other gateway.
    pub(super) peer: Option<Gateway>,
    /// When `peer.up` was first seen to have its value.
    pub(super) peer_at: Option<Instant>,
    /// How far the other clock is ahead, in seconds.
    pub(super) clocks_apart: Option<f64>,
    /// How far the standby's store is behind.
    pub(super) lag: Option<Duration>,
}
