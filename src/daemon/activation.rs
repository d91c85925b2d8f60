//! Activates and deactivates this gateway.

use std::{
    io,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{RestoredCounts, SessionRecords},
    policy::Policy,
};
use redis::cmd;

use super::{
    counted::counted,
    pair::{Pair, Role, STORE_LIMIT},
    records::Frame,
    shard::{Shard, lock},
    shared_state::SharedState,
    state_dir::is_queued,
    store::{Gateway, LEFT, StoreConnection, keys},
};
use crate::config::Backend;

/// The error of a daemon that is no part of a pair.
const NO_PAIR: &str = "this gateway is not one of a pair: its configuration has no [pair]";
/// How many records are read at a time: their reply must not be too long.
const COUNT: u32 = 64;
/// A longer record is not read: no session has one.
const MAX_RECORD: usize = 64 << 10;
/// The length of a record of a session that holds nothing, as far as the memory of all counts.
const USUAL_RECORD: usize = 1 << 10;
/// The most shards: the workers and the restored sessions.
const MAX_SHARDS: usize = 65;
/// How long a gateway waits until the other one has left its sessions.
const DEPARTURE_LIMIT: Duration = Duration::from_secs(1);
const DEPARTURE_PAUSE: Duration = Duration::from_millis(5);
/// A gateway is alive if its clock was seen to go on within this time. keepalived needs longer to find a failure.
const ALIVE: Duration = Duration::from_millis(300);
/// No machine was started longer ago.
const LONGEST_UP: Duration = Duration::from_secs(100 * 365 * 86_400);
/// How long the workers may take to finish their batches.
const PARK_LIMIT: Duration = Duration::from_secs(2);
/// How long a gateway that leaves its sessions waits for its own store to have the records.
const CATCH_UP_LIMIT: Duration = Duration::from_millis(300);
/// How long the last records may take to the other gateway, in milliseconds. If that one was active, too, it looks at this
/// one's store within half a second.
const LAST_RECORDS_LIMIT: u32 = 1500;

/// What the store has of the other gateway.
struct Found {
    /// The other gateway's epoch.
    epoch: u64,
    /// The zero of its clock, by ours.
    zero: Instant,
    records: SessionRecords,
    /// How many records cannot be read.
    damaged: usize,
}

impl Pair {
    /// Makes the own store the primary, and reads the other gateway's records. After an error, `found` has those before it.
    fn take_over(&self, policy: &Policy, found: &mut Found) -> io::Result<StoreConnection> {
        let deadline = Instant::now() + STORE_LIMIT;
        let mut store = StoreConnection::open_own(&self.settings.store, STORE_LIMIT)?;
        self.wait_for_departure(&mut store)?;
        store.run(cmd("REPLICAOF").arg("NO").arg("ONE"), deadline)?;
        let epoch: Option<u64> = store.query(cmd("GET").arg(keys::current()), deadline)?;
        found.epoch = epoch.unwrap_or(0);
        let other = Gateway::read(&mut store, &keys::pair(found.epoch), deadline)?;
        let Some(other) = other else { return Ok(store) };
        found.zero = self.zero_of(&other);
        let max_sessions = policy.max_sessions;
        let mut room = policy.memory.saturating_add(max_sessions.saturating_mul(USUAL_RECORD));
        for shard in 0..other.shards.min(MAX_SHARDS) {
            let key = keys::sessions(found.epoch, shard);
            let mut cursor = "0".to_owned();
            while found.records.len() < max_sessions {
                let mut command = cmd("HSCAN");
                command.arg(&key).arg(&cursor).arg("COUNT").arg(COUNT);
                let (next, pairs): (String, Vec<Vec<u8>>) = store.query(&command, deadline)?;
                found.add(pairs.iter().skip(1).step_by(2), max_sessions, &mut room);
                cursor = next;
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(store)
    }

    /// Waits until the other gateway has left its sessions, if it is alive: keepalived orders both roles at once.
    fn wait_for_departure(&self, store: &mut StoreConnection) -> io::Result<()> {
        let deadline = Instant::now() + DEPARTURE_LIMIT;
        let current = self.seen().current;
        while Instant::now() < deadline {
            let other = Gateway::read(store, &keys::pair(current), deadline + STORE_LIMIT)?;
            let seen_at = self.seen().peer_at.filter(|at| at.elapsed() < ALIVE);
            if seen_at.is_none() || other.is_none_or(|other| other.has_left) {
                break;
            }
            thread::sleep(DEPARTURE_PAUSE);
        }
        Ok(())
    }

    /// The zero of the other gateway's clock, from which its records count. Its time of day may be wrong, so it is known
    /// from when the link saw what its clock showed.
    fn zero_of(&self, other: &Gateway) -> Instant {
        let now = Instant::now();
        let seen = self.seen().clone();
        let is_same = seen.peer.is_some_and(|peer| peer.up == other.up && peer.id == other.id);
        let at = seen.peer_at.filter(|_| is_same).unwrap_or(now);
        let up = Duration::from_millis(other.up);
        at.checked_sub(up).filter(|_| up < LONGEST_UP).unwrap_or(now)
    }

    /// Waits until the other gateway's store has the last records, and makes the own store its replica. If both were active,
    /// the other one must find out first, and yield.
    fn hand_over(&self, epoch: u64) -> io::Result<()> {
        let deadline = Instant::now() + STORE_LIMIT;
        let mut store = StoreConnection::open_own(&self.settings.store, STORE_LIMIT)?;
        if !self.is_ordered() {
            store.run(cmd("HSET").arg(keys::pair(epoch)).arg(LEFT).arg(1), deadline)?;
            if self.seen().peer_failure.is_none() {
                store.run(cmd("WAIT").arg(1).arg(LAST_RECORDS_LIMIT), deadline)?;
            }
        }
        self.demote_store(&mut store, deadline)
    }
}

impl Found {
    /// Adds the records in these frames, until there are `max_sessions`, or none of `room` bytes is left. A worker's record
    /// is newer than that of the restored session that it has adopted, so the restored ones come first.
    fn add<'f>(
        &mut self,
        frames: impl Iterator<Item = &'f Vec<u8>>,
        max_sessions: usize,
        room: &mut usize,
    ) {
        let mut whole = Vec::new();
        for frame in frames.take(max_sessions.saturating_sub(self.records.len())) {
            match Frame::read(frame) {
                Frame::Whole(record, []) if record.len() <= MAX_RECORD.min(*room) => {
                    *room -= record.len();
                    whole.push(record);
                }
                _ => self.damaged += 1,
            }
        }
        let (records, damaged) = SessionRecords::read_each(whole.into_iter());
        self.damaged += damaged;
        self.records.add(records);
    }
}

impl SharedState {
    /// Activates or deactivates this gateway, as keepalived orders.
    pub(super) fn order_role(&self, is_active: bool) -> Result<String, String> {
        let pair = self.pair.as_ref().ok_or(NO_PAIR)?;
        pair.note_order(is_active);
        if is_active {
            return self.activate();
        }
        self.report(pair.save(Role::Standby));
        self.deactivate("as ordered")
    }

    /// Continues the sessions of the other gateway, if keepalived has ordered that. Returns what was taken over, in one line.
    pub(super) fn activate(&self) -> Result<String, String> {
        let pair = self.pair.as_ref().ok_or(NO_PAIR)?;
        let _changing = lock(&pair.changing);
        if !pair.is_ordered() {
            return Ok("not active: it was ordered to wait meanwhile".to_owned());
        }
        if let Role::Active { epoch } = pair.role() {
            return Ok(format!("already active, epoch {epoch}"));
        }
        let begun = Instant::now();
        let policy = lock(self.restored()).engine.sessions.policy().clone();
        let mut found = Found {
            epoch: pair.seen().current,
            zero: begun,
            records: SessionRecords::default(),
            damaged: 0,
        };
        let mut store = pair.take_over(&policy, &mut found);
        let epoch = found.epoch.saturating_add(1);
        let damaged = found.damaged;
        let RestoredCounts { sessions, adjusted, .. } = self.continue_sessions(pair, found);
        let pinholes = self.open_pinholes(pair);
        for shard in &self.shards {
            if let Some(writer) = &mut lock(shard).store {
                writer.begin(epoch);
            }
        }
        if let Ok(store) = &mut store {
            let mut claim = cmd("SET");
            claim.arg(keys::current()).arg(epoch);
            self.report(store.run(&claim, begun + STORE_LIMIT));
        }
        self.report(pair.save(Role::Active { epoch }));
        pair.set_role(Role::Active { epoch });
        let millis = begun.elapsed().as_millis();
        let lost = match (store, damaged) {
            (Err(error), _) => format!("; the store cannot be read: {error}"),
            (Ok(_), 0) => String::new(),
            (Ok(_), damaged) => format!("; {} cannot be read", counted(damaged as u64, "record")),
        };
        let text = format!(
            "active, epoch {epoch}: took over {} ({adjusted} with sequence adjustment) and {} in {millis} ms{lost}",
            counted(sessions as u64, "session"),
            counted(pinholes as u64, "pinhole")
        );
        log_event!(ACTIVATED, epoch, sessions, adjusted, pinholes, "{text}");
        Ok(text)
    }

    /// Restores the sessions of the records that were found.
    fn continue_sessions(&self, pair: &Pair, found: Found) -> RestoredCounts {
        let Found { mut records, zero, .. } = found;
        let control_ports = &pair.parameters.gateway.control_ports;
        records.mark_unqueued(|server, translation| is_queued(control_ports, server, translation));
        let mut guard = lock(self.restored());
        let Shard { engine, journal, .. } = &mut *guard;
        records.leave_machine(engine.sessions.policy());
        let counts = engine.sessions.restore_sessions(records, Instant::now(), zero);
        self.report(journal.replace(engine));
        self.restored_remaining.store(engine.sessions.count(), Ordering::Relaxed);
        counts
    }

    /// Opens the pinholes and ranges of the restored sessions. Returns the number of pinholes.
    fn open_pinholes(&self, pair: &Pair) -> usize {
        let mut kernel = lock(&self.kernel);
        self.close_forbidden_pinholes(&mut kernel);
        let opened = match pair.parameters.backend {
            Backend::Nftables => {
                let opened = self.reopen_unused_pinholes(&pair.parameters, &mut kernel, |_| true);
                self.report(opened).unwrap_or_default()
            }
            // Nobody knows which of them a connection has consumed.
            Backend::Conntrack => self.reopen_pinholes(&mut kernel, |_| true),
        };
        self.reopen_ranges(&mut kernel);
        opened
    }

    /// Leaves all sessions to the other gateway. Returns what was left, in one line.
    pub(super) fn deactivate(&self, why: &str) -> Result<String, String> {
        let pair = self.pair.as_ref().ok_or(NO_PAIR)?;
        let _changing = lock(&pair.changing);
        let Role::Active { epoch } = pair.role() else {
            return Ok("already standby".to_owned());
        };
        // One that yields has records that nobody reads.
        let lacking = if pair.is_ordered() { 0 } else { self.wait_for_store() };
        let mut sessions = 0;
        self.with_each(|engine| sessions += engine.sessions.count());
        pair.set_role(Role::Standby);
        if !pair.wait_until_parked(PARK_LIMIT) {
            self.report_error(&"a worker does not stop to read packets");
        }
        let now = Instant::now();
        let mut kernel = lock(&self.kernel);
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.leave_sessions(now, &mut *kernel);
            shard.finish(now, self, &mut kernel, None);
            shard.engine.take_events(Vec::new());
        }
        drop(kernel);
        self.restored_remaining.store(0, Ordering::Relaxed);
        let handed = pair.hand_over(epoch);
        let mut failure = match lacking {
            0 => String::new(),
            lacking => format!("; the store lacks records of {}", counted(lacking as u64, "shard")),
        };
        if let Err(error) = handed {
            failure += &format!("; the store cannot be made a replica yet: {error}");
        }
        let text = format!(
            "standby, after epoch {epoch}: left {} to the other gateway ({why}){failure}",
            counted(sessions as u64, "session")
        );
        log_event!(DEACTIVATED, epoch, sessions, "{text}");
        Ok(text)
    }

    /// Waits until the own store has the records of all shards. Returns how many shards have records that it lacks.
    fn wait_for_store(&self) -> usize {
        let deadline = Instant::now() + CATCH_UP_LIMIT;
        loop {
            match self.shards_behind() {
                1.. if Instant::now() < deadline => thread::sleep(DEPARTURE_PAUSE),
                lacking => break lacking,
            }
        }
    }

    /// How many shards have records that the own store lacks.
    pub(super) fn shards_behind(&self) -> usize {
        let is_behind = |shard: &Shard| shard.store.as_ref().is_some_and(|store| store.is_behind());
        self.shards.iter().filter(|shard| is_behind(&lock(shard))).count()
    }
}
