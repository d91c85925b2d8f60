//! The thread that looks at the stores of both gateways, and connects the writers. Workers never connect.

use std::{
    io,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use redis::cmd;

use super::{
    health::ProblemName,
    pair::{Pair, Role},
    shard::{Shard, lock},
    shared_state::SharedState,
    store::{Gateway, StoreConnection, keys, millis},
};
use crate::kernel::clocks::since_1970;

/// How often it looks at the own store.
const PERIOD: Duration = Duration::from_millis(100);
/// How often it looks at the other gateway's store.
const PEER_PERIOD: Duration = Duration::from_millis(500);
/// How long it waits for a store.
const LIMIT: Duration = Duration::from_millis(500);
/// How long it waits for a connection to the other gateway's store, during which it does nothing else.
const PEER_LIMIT: Duration = Duration::from_millis(200);
/// The lifetime of all keys, refreshed while this gateway is active.
pub(super) const LIFETIME: Duration = Duration::from_secs(3600);
const REFRESH: Duration = Duration::from_secs(60);
/// How long the standby's description lives.
const STANDBY_LIFETIME: Duration = Duration::from_secs(5);
/// A replica that has not confirmed anything for longer is none.
const MAX_LAG: u64 = 1;
/// A gateway that says nothing for longer is not active. Behind a yield its store needs time to get the other's records.
const SILENCE: Duration = Duration::from_secs(3);
/// How long it waits for the store to take a slice of records.
const SLICE_PAUSE: Duration = Duration::from_micros(200);

/// Works until `end` is set. The thread that sets it also unparks this one.
pub(super) fn run(shared: &SharedState, pair: &Pair, end: &AtomicBool) {
    let _ = pair.link.thread.set(thread::current());
    let mut link = Link { own: None, peer: None, next_peer: Instant::now(), next_refresh: None };
    while !end.load(Ordering::Acquire) {
        link.look(shared, pair);
        thread::park_timeout(PERIOD);
    }
}

/// The connections to both stores.
struct Link {
    own: Option<StoreConnection>,
    peer: Option<StoreConnection>,
    next_peer: Instant,
    /// When the lifetime of the keys is refreshed.
    next_refresh: Option<Instant>,
}

impl Link {
    fn look(&mut self, shared: &SharedState, pair: &Pair) {
        let role = pair.role();
        let looked = self.look_at_own(shared, pair, role);
        let newer = looked.as_ref().ok().copied().flatten();
        if looked.is_err() {
            self.own = None;
            pair.link.has_replica.store(false, Ordering::Relaxed);
            pair.seen().lag = None;
        }
        let now = Instant::now();
        let mut newer_at_peer = None;
        if now >= self.next_peer {
            self.next_peer = now + PEER_PERIOD;
            let looked = self.look_at_peer(pair, role);
            newer_at_peer = looked.as_ref().ok().copied().flatten();
            if looked.is_err() {
                self.peer = None;
            }
            pair.seen().peer_failure = looked.err().map(|error| error.to_string());
        }
        if let Some(epoch) = newer.or(newer_at_peer) {
            let why = format!("the other gateway was activated after this one, with epoch {epoch}");
            shared.report(shared.deactivate(&why));
            return;
        }
        let connected = looked.and_then(|_| match role {
            Role::Standby => {
                if pair.is_ordered() && pair.is_alone() {
                    shared.report(shared.activate());
                }
                Ok(())
            }
            Role::Active { .. } => connect_writers(shared, pair),
        });
        pair.seen().store_failure = connected.err().map(|error| error.to_string());
        set_problem(shared, pair, role);
    }

    /// Looks at the own store. Returns the epoch of a gateway that was activated later.
    fn look_at_own(
        &mut self,
        shared: &SharedState,
        pair: &Pair,
        role: Role,
    ) -> io::Result<Option<u64>> {
        let deadline = Instant::now() + LIMIT;
        let store = match &mut self.own {
            Some(store) => store,
            None => self.own.insert(StoreConnection::open_own(&pair.settings.store, LIMIT)?),
        };
        let replication = Replication::read(store, deadline)?;
        let current: Option<u64> = store.query(cmd("GET").arg(keys::current()), deadline)?;
        let current = current.unwrap_or(0);
        pair.seen().current = current;
        match role {
            Role::Active { epoch } if current > epoch => return Ok(Some(current)),
            Role::Active { epoch } => {
                // It was started again, as a replica.
                if !replication.is_primary
                    && let Ok(_changing) = pair.changing.try_lock()
                    && pair.role() == role
                {
                    store.run(cmd("REPLICAOF").arg("NO").arg("ONE"), deadline)?;
                }
                if !replication.is_primary || current < epoch {
                    // It has been another's replica, or was emptied.
                    disconnect_writers(shared);
                }
                if current < epoch {
                    store.run(cmd("SET").arg(keys::current()).arg(epoch), deadline)?;
                    self.next_refresh = None;
                }
                pair.own_now().write(store, &keys::pair(epoch), LIFETIME, deadline)?;
                let now = Instant::now();
                if self.next_refresh.is_none_or(|at| now >= at) {
                    let sessions = (0..pair.own.shards).map(|shard| keys::sessions(epoch, shard));
                    for key in sessions.chain([keys::current()]) {
                        store.run(cmd("EXPIRE").arg(key).arg(LIFETIME.as_secs()), deadline)?;
                    }
                    self.next_refresh = Some(now + REFRESH);
                }
                pair.link.has_replica.store(replication.has_replica, Ordering::Relaxed);
                let standby = Gateway::read(store, &keys::standby(), deadline)?;
                pair.note_peer(standby, replication.replica_lag);
            }
            Role::Standby => {
                // Not while this gateway is being activated.
                if replication.is_primary
                    && let Ok(_changing) = pair.changing.try_lock()
                    && pair.role() == Role::Standby
                {
                    pair.demote_store(store, deadline)?;
                }
                let active = Gateway::read(store, &keys::pair(current), deadline)?;
                pair.link.has_replica.store(false, Ordering::Relaxed);
                pair.note_peer(active, replication.primary_lag);
            }
        }
        Ok(None)
    }

    /// Looks at the other gateway's store. Returns the epoch of the other gateway if it was activated later.
    fn look_at_peer(&mut self, pair: &Pair, role: Role) -> io::Result<Option<u64>> {
        let deadline = Instant::now() + LIMIT;
        let store = match &mut self.peer {
            Some(store) => store,
            None => self.peer.insert(StoreConnection::open_peer(pair.settings.peer, PEER_LIMIT)?),
        };
        let Role::Active { epoch } = role else {
            // A replica takes no writes, and no gateway is active then.
            if pair.own_now().write(store, &keys::standby(), STANDBY_LIFETIME, deadline).is_err() {
                self.peer = None; // its reply may still come
            }
            return Ok(None);
        };
        let current: Option<u64> = store.query(cmd("GET").arg(keys::current()), deadline)?;
        let current = current.unwrap_or(0);
        if current == epoch {
            // Both were activated at once, unless it has what was replicated.
            let active = Gateway::read(store, &keys::pair(epoch), deadline)?;
            let is_other = active.is_some_and(|active| active.id > pair.own.id);
            return Ok(is_other.then_some(current));
        }
        Ok(Some(current).filter(|current| *current > epoch))
    }
}

/// Connects the writers that have no connection, and sends all records of their shards.
fn connect_writers(shared: &SharedState, pair: &Pair) -> io::Result<()> {
    for shard in &shared.shards {
        let lacks = lock(shard).store.as_ref().is_some_and(|store| store.lacks_connection());
        if lacks && let Err(error) = connect_writer(shard, pair) {
            if let Some(store) = &mut lock(shard).store {
                store.disconnect();
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Connects the writer of a shard, and sends all records. The store must take a slice in time, not all of them.
fn connect_writer(shard: &Mutex<Shard>, pair: &Pair) -> io::Result<()> {
    let mut store = StoreConnection::open_own(&pair.settings.store, LIMIT)?;
    // One that does not answer would get none of the records.
    store.run(&cmd("PING"), Instant::now() + LIMIT)?;
    if let Some(writer) = &mut lock(shard).store {
        writer.connect(store.into_socket())?;
    }
    let (mut deadline, mut unsent) = (Instant::now() + LIMIT, None);
    loop {
        let mut guard = lock(shard);
        let Shard { engine, store: Some(store), .. } = &mut *guard else { return Ok(()) };
        if !store.send_slice(engine)? {
            return Ok(());
        }
        let before = std::mem::replace(&mut unsent, store.unsent_from());
        drop(guard);
        let now = Instant::now();
        if before != unsent {
            deadline = now + LIMIT;
        } else if now > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(SLICE_PAUSE);
    }
}

/// Drops the connections of all writers, so that all records are written once more.
fn disconnect_writers(shared: &SharedState) {
    for shard in &shared.shards {
        if let Some(store) = &mut lock(shard).store {
            store.disconnect();
        }
    }
}

/// Reports a store that lacks records.
fn set_problem(shared: &SharedState, pair: &Pair, role: Role) {
    let seen = pair.seen().clone();
    let problem = match (&seen.store_failure, role) {
        (None, _) => None,
        (Some(failure), Role::Standby) => {
            Some(format!("the store of this machine cannot be used: {failure}"))
        }
        (Some(failure), Role::Active { .. }) => Some(format!(
            "the store of this machine cannot be used: {failure}; {} of {} shards are not in it",
            shared.shards_behind(),
            shared.shards.len()
        )),
    };
    shared.health.set(ProblemName::Store, problem);
}

impl Pair {
    /// Whether the other gateway has left its sessions, or is silent.
    fn is_alone(&self) -> bool {
        let seen = self.seen();
        seen.peer.as_ref().is_some_and(|peer| peer.has_left)
            || seen.peer_at.is_none_or(|at| at.elapsed() > SILENCE)
    }

    /// Notes what is known of the other gateway.
    fn note_peer(&self, peer: Option<Gateway>, lag: Option<Duration>) {
        let now = Instant::now();
        let mut seen = self.seen();
        let up = |peer: &Option<Gateway>| peer.as_ref().map(|peer| peer.up);
        if up(&seen.peer) != up(&peer) {
            seen.peer_at = Some(now);
            seen.clocks_apart = peer
                .as_ref()
                .map(|peer| (peer.clock as f64 - millis(since_1970()) as f64) / 1000.0);
        }
        seen.peer = peer;
        seen.lag = lag;
    }
}

/// What a store says of its replication.
struct Replication {
    is_primary: bool,
    /// Whether a replica keeps up.
    has_replica: bool,
    /// How long ago the best replica said what it has.
    replica_lag: Option<Duration>,
    /// How long ago the primary was heard.
    primary_lag: Option<Duration>,
}

impl Replication {
    fn read(store: &mut StoreConnection, deadline: Instant) -> io::Result<Self> {
        let text: String = store.query(cmd("INFO").arg("replication"), deadline)?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        // slave0:ip=10.99.0.2,port=6379,state=online,offset=98,lag=0
        let replicas = text.lines().filter(|line| line.starts_with("slave"));
        let online = replicas.filter(|line| line.contains("state=online"));
        let lags = online
            .filter_map(|line| line.split(',').find_map(|part| part.trim().strip_prefix("lag=")));
        let lag = lags.filter_map(|lag| lag.parse::<u64>().ok()).min();
        let heard = field("master_last_io_seconds_ago").and_then(|text| text.parse().ok());
        Self {
            is_primary: field("role") == Some("master"),
            has_replica: lag.is_some_and(|lag| lag <= MAX_LAG),
            replica_lag: lag.map(Duration::from_secs),
            primary_lag: heard.map(Duration::from_secs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What redis 7.0 and valkey 8 say.
    #[test]
    fn the_replication_of_real_stores_is_read() {
        let primary = "# Replication\r\nrole:master\r\nconnected_slaves:2\r\n\
            slave0:ip=10.99.0.2,port=6379,state=online,offset=98,lag=1\r\n\
            slave1:ip=10.99.0.3,port=6379,state=wait_bgsave,offset=0,lag=0\r\n\
            master_failover_state:no-failover\r\nmaster_replid:5f7e\r\nmaster_repl_offset:98\r\n";
        let valkey = primary.replace("offset=98,lag=1", "offset=98,lag=9,type=replica");
        let alone = "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n";
        let replica = "# Replication\r\nrole:slave\r\nmaster_host:10.99.0.1\r\nmaster_port:6379\r\n\
            master_link_status:up\r\nmaster_last_io_seconds_ago:3\r\nslave_read_repl_offset:98\r\n\
            slave_repl_offset:98\r\nslave_priority:100\r\nslave_read_only:1\r\n";
        let cut_off = replica.replace("ago:3", "ago:-1");
        let seconds = |number| Some(Duration::from_secs(number));
        for (text, expected) in [
            (primary, (true, true, seconds(1), None)),
            (&valkey, (true, false, seconds(9), None)),
            (alone, (true, false, None, None)),
            (replica, (false, false, None, seconds(3))),
            (&cut_off, (false, false, None, None)),
            ("\u{0}slave0:state=online,lag=99999999999999999999", (false, false, None, None)),
            ("", (false, false, None, None)),
        ] {
            let Replication { is_primary, has_replica, replica_lag, primary_lag } =
                Replication::parse(text);
            assert_eq!((is_primary, has_replica, replica_lag, primary_lag), expected, "{text}");
        }
    }
}
