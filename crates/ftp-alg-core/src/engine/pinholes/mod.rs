//! The pinholes of one shard: which session has them, and what the kernel is to close.
//!
//! | file | is |
//! | --- | --- |
//! | `pinhole` | one pinhole, its states and transitions |
//! | `closings` | what the kernel is to close, until it has |
//! | `ports` | the external ports of all shards, the pinholes of each client, and the ports to try for a pinhole |
//!
//! An end whose port had to be replaced by another external port is *displaced*, and gets the same external port
//! again. While conntrack remembers the first data connection, a second one through another external port would have
//! the same reply tuple, and the kernel would drop it. A port at which another session waits is used only if no other
//! port is free.

mod closings;
pub(crate) mod pinhole;
pub(crate) mod ports;

use std::{
    collections::{BTreeMap, VecDeque},
    mem::take,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ahash::{AHashSet, RandomState};

use crate::{
    engine::{
        ClientKey, Closing, InstalledIn, Kernel, KernelError, Opening, PinholeEnds, Translation,
        activity::EXAMINED_AFTER,
        offload::handover::PinholeId,
        pinholes::{
            closings::{Closings, Condition},
            pinhole::{Pinhole, PinholeRecord},
            ports::{ANY_SHARD, NotOpened, Port, PortChoice, Ports, max_open},
        },
    },
    ftp::Reply,
    policy::Policy,
};

/// Limit of pinholes that outlive their transfers, and that stay when another is opened.
const MAX_ENDED: usize = 64;
const MAX_ENDED_AFTER_OPENING: usize = 32;
/// Time between two looks for consumed pinholes, times the number of pinholes, so that looks take a small part of the
/// time.
const LOOK_INTERVAL: Duration = Duration::from_micros(1);

/// The table slot of a session, and the serial number of its pinhole: later ones have higher numbers.
type Key = (u32, u64);

/// The pinholes of one shard.
pub struct PinholeTable {
    all: BTreeMap<Key, Pinhole>,
    /// Pinholes whose transfers have ended, oldest first. Some may be closed by now.
    ended: VecDeque<Key>,
    ports: Ports,
    shard: u16,
    /// Limit of open pinholes of all shards.
    capacity: usize,
    closings: Closings,
    /// When the kernel was last asked which pinholes are consumed.
    last_look: Option<Instant>,
    /// Errors of the kernel that refuse no announcement.
    errors: Vec<KernelError>,
    random: RandomState,
}

impl Default for PinholeTable {
    fn default() -> Self {
        Self::sharing(Ports::default(), usize::from(u16::MAX), RandomState::new())
    }
}

impl PinholeTable {
    fn sharing(ports: Ports, capacity: usize, random: RandomState) -> Self {
        let shard = ports.lock().add_shard();
        Self {
            all: BTreeMap::new(),
            ended: VecDeque::new(),
            shard,
            ports,
            capacity,
            closings: Closings::default(),
            last_look: None,
            errors: Vec::new(),
            random,
        }
    }

    /// An empty table for another shard, or for the one of the restored sessions.
    pub fn new_shard(&self, is_restored: bool) -> Self {
        let mut new = Self::sharing(self.ports.clone(), self.capacity, self.random.clone());
        new.closings.is_restored = is_restored;
        new
    }

    /// Whether no other pinhole has the port of this one.
    pub fn has_port(&self, pinhole: &Pinhole) -> bool {
        self.ports.lock().is_own(&pinhole.ends, pinhole.serial)
    }

    /// Gives new pinholes, of all shards, serial numbers behind `last`.
    pub fn number_behind(&mut self, last: u64) {
        let mut ports = self.ports.lock();
        ports.serial = ports.serial.max(last);
    }

    /// Sets the limit of open pinholes.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
    }

    /// The pinholes of the session `owner` whose transfers have not ended, oldest first.
    pub fn of(&self, owner: u32) -> impl DoubleEndedIterator<Item = &Pinhole> {
        self.all_of(owner).filter(|pinhole| !pinhole.has_ended())
    }

    fn all_of(&self, owner: u32) -> impl DoubleEndedIterator<Item = &Pinhole> {
        self.all.range((owner, 0)..=(owner, u64::MAX)).map(|(_, pinhole)| pinhole)
    }

    /// All pinholes, with the table slots of their sessions.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Pinhole)> {
        self.all.iter().map(|((owner, _), pinhole)| (*owner, pinhole))
    }

    /// The last answered announcement of the session `owner`, which is that of its data connection.
    pub fn last_announcement(&self, owner: u32) -> Option<&Pinhole> {
        self.of(owner).rev().find(|pinhole| pinhole.is_answered())
    }

    /// When the session `owner`, which opens a pinhole with these ends `now`, first announced the ends. A connection
    /// through an earlier pinhole that no transfer used may be that of the next transfer.
    pub fn first_opened(&self, now: Instant, owner: u32, ends: &PinholeEnds) -> Option<Instant> {
        let same = self.of(owner).filter(|pinhole| pinhole.ends.key() == ends.key());
        same.map(|pinhole| pinhole.opened).fold(Some(now), Option::min)
    }

    /// When a pinhole of the session `owner` must be looked at after `now`, if pinholes have this lifetime.
    pub fn next_due(&self, owner: u32, now: Instant, lifetime: Duration) -> Option<Instant> {
        self.all_of(owner).filter_map(|pinhole| pinhole.next_due(now, lifetime)).min()
    }

    /// Whether a pinhole of the session `owner` is to be renewed `now` for this lifetime, or has expired.
    pub fn has_due(&self, owner: u32, now: Instant, lifetime: Duration) -> bool {
        self.of(owner).any(|pinhole| pinhole.is_due(now, lifetime))
    }

    /// Whether a session of any shard holds a pinhole of the rules with these endpoints.
    pub fn is_held(&self, initiator: IpAddr, arrival: SocketAddr) -> bool {
        self.ports.lock().is_held(initiator, arrival)
    }

    /// Changes a pinhole, and updates its client's count.
    fn change<R>(&mut self, key: Key, change: impl FnOnce(&mut Pinhole) -> R) -> Option<R> {
        let pinhole = self.all.get_mut(&key)?;
        let counted = pinhole.counts();
        let changed = change(pinhole);
        if pinhole.counts() != counted {
            self.ports.lock().clients.set_open(pinhole.client, !counted);
        }
        Some(changed)
    }

    /// Changes the pinholes of the session `owner` for which `is_meant` holds.
    fn change_each(
        &mut self,
        owner: u32,
        is_meant: impl Fn(&Pinhole) -> bool,
        change: impl Fn(&mut Pinhole),
    ) {
        let meant =
            self.of(owner).filter(|pinhole| is_meant(pinhole)).map(|pinhole| pinhole.serial);
        for serial in meant.collect::<Vec<_>>() {
            self.change((owner, serial), &change);
        }
    }

    /// Opens a pinhole for the session `owner`, at the first external port that is free: the announced one, or one
    /// that `fits` ([`PortChoice::ports`]). Waiting closings are part of the same transaction, unless they may
    /// follow. Also returns a reason if another session waits at the preferred port.
    pub fn open(
        &mut self,
        now: Instant,
        owner: u32,
        mut opening: Opening,
        fits: impl Fn(u16) -> bool,
        policy: &Policy,
        kernel: &mut dyn Kernel,
    ) -> Result<(&Pinhole, Option<&'static str>), NotOpened> {
        let Opening { mut ends, control, kind, lifetime } = opening;
        let client: ClientKey = control.client.ip().into();
        let announced = ends.arrival.port();
        let choice = PortChoice::new(&opening, fits, policy);
        let limit = policy.max_pinholes_per_client;
        if !self.ended.is_empty() {
            self.close_ended_for(now, owner, client, limit, choice.is_limited());
        }
        let checked = self.ports.lock().check(client, limit, self.capacity);
        if let Err(full) = checked {
            self.make_room(now, client, limit, full, kernel)?;
        }
        let is_displaced = self.ports.lock().is_displaced(&ends);
        let random = self.random.clone();
        let mut ports = choice.ports(policy, is_displaced, &random);
        let mut waited_for = None;
        loop {
            let free = ports.by_ref().find(|port| {
                ends.arrival.set_port(*port);
                let another_waits = self.another_waits_at(owner, &ends);
                if another_waits == Some(true) {
                    waited_for = waited_for.or(Some(*port));
                }
                another_waits == Some(false)
            });
            let other_session = waited_for.map(|_| match free {
                Some(_) => "another session waits at that port",
                None => "another session waits at that port, and no other is free",
            });
            let port = free.or(waited_for.take()).ok_or(NotOpened::NoPort)?;
            ends.arrival.set_port(port);
            opening.ends = ends;
            match self.open_at_port(owner, &opening, kernel) {
                Ok(serial) => {
                    if port == announced {
                        self.ports.lock().set_displaced(&ends, false);
                    } else if choice.prefers_own() && !is_displaced && other_session.is_none() {
                        self.ports.lock().set_displaced(&ends, true);
                    }
                    let mut opened =
                        Pinhole::new(ends, kind, now + lifetime, client, InstalledIn::Rules);
                    opened.serial = serial;
                    opened.opened = self.first_opened(now, owner, &ends);
                    // Some clients connect before their next command, some servers before they answer.
                    opened.examination = Some(now + EXAMINED_AFTER);
                    return Ok((self.insert(owner, opened), other_session));
                }
                Err(KernelError::Taken) => {}
                Err(KernelError::Full { what }) => return Err(NotOpened::Full(what)),
                Err(error) => return Err(NotOpened::Kernel(error)),
            }
        }
    }

    /// Whether another session waits at the port with these ends. `None` if this shard cannot use the port.
    fn another_waits_at(&self, owner: u32, ends: &PinholeEnds) -> Option<bool> {
        let ports = self.ports.lock();
        let port = ports.usable(ends, self.shard).ok()?;
        let held = port.filter(|port| port.is_held && port.owner != owner);
        let other = held.and_then(|port| self.all.get(&(port.owner, port.serial)));
        Some(other.is_some_and(Pinhole::is_waited_for))
    }

    /// Tries to make room for a pinhole of `client`, which was refused for the reason `full`: if the client is at its
    /// `limit`, asks the kernel which pinholes are consumed, and checks again.
    fn make_room(
        &mut self,
        now: Instant,
        client: ClientKey,
        limit: usize,
        full: NotOpened,
        kernel: &mut dyn Kernel,
    ) -> Result<(), NotOpened> {
        let ports = self.ports.lock().len() as u32; // at most one a port
        let interval = LOOK_INTERVAL.saturating_mul(ports + 1);
        let may_look = self.last_look.is_none_or(|last| now >= last + interval);
        if !matches!(full, NotOpened::Limit(_)) || !may_look {
            return Err(full);
        }
        self.last_look = Some(now);
        let started = self.all.iter().filter(|(_, pinhole)| pinhole.may_be_consumed());
        let (keys, ends): (Vec<_>, Vec<_>) =
            started.map(|(key, pinhole)| (*key, pinhole.ends)).unzip();
        if !ends.is_empty() {
            let gone = kernel.find_consumed(&ends).unwrap_or_else(|error| {
                self.errors.push(error);
                Vec::new()
            });
            let gone: AHashSet<_> = gone.into_iter().collect();
            for (key, _) in keys.into_iter().zip(ends).filter(|(_, ends)| gone.contains(ends)) {
                self.change(key, Pinhole::note_closed_in_kernel);
            }
        }
        self.ports.lock().check(client, limit, self.capacity)
    }

    /// Opens a pinhole of the session `owner` at the port in `opening`. Returns its serial number.
    fn open_at_port(
        &mut self,
        owner: u32,
        opening: &Opening,
        kernel: &mut dyn Kernel,
    ) -> Result<u64, KernelError> {
        let ends = opening.ends;
        let mut ports = self.ports.lock();
        if ports.usable(&ends, self.shard).is_err() {
            return Err(KernelError::Taken); // since a moment ago, by another shard
        }
        let serial = ports.next_serial();
        let before = ports.reserve(ends, self.shard, owner, serial, InstalledIn::Rules);
        drop(ports);
        if let Some(Port { ends, installed_in, .. }) = before {
            // The same ends were announced before, or are not closed yet: the kernel closes them in this transaction.
            self.closings.push(Closing::new(ends, installed_in), Condition::Always);
        }
        let opened = self.open_in_kernel(opening, kernel);
        if opened.is_ok() {
            self.note_replaced(before);
        } else {
            self.ports.lock().cancel(&ends, serial, before);
            if !matches!(opened, Err(KernelError::NotClosed(_))) {
                // The transaction failed, but the earlier pinhole is closed.
                self.note_replaced(before);
            }
            // The closing of the earlier pinhole may have been left to this opening.
            if let Some(before) = before.filter(|before| !before.is_held) {
                let closing = Closing::new(before.ends, before.installed_in);
                self.closings.push(closing, Condition::PortOf(before.serial));
            }
        }
        opened.map(|()| serial)
    }

    /// Notes that the pinhole which had the port `before` is closed, because another pinhole has its ends.
    fn note_replaced(&mut self, before: Option<Port>) {
        if let Some(Port { owner, serial, .. }) = before {
            self.change((owner, serial), Pinhole::note_closed_in_kernel);
        }
    }

    fn insert(&mut self, owner: u32, pinhole: Pinhole) -> &Pinhole {
        self.ports.lock().clients.add(pinhole.client, pinhole.counts());
        self.all.entry((owner, pinhole.serial)).or_insert(pinhole)
    }

    /// Holds a pinhole that the BPF program opened for the session `owner`. The caller has closed the session's
    /// earlier pinholes with these ends. A pinhole of the rules that may be open keeps its port, because that pinhole
    /// may be newer. Returns the pinhole with its serial number.
    pub fn hold_of_program(&mut self, owner: u32, mut held: Pinhole) -> &Pinhole {
        let Pinhole { ends, installed_in, .. } = held;
        self.close_ended_if(|key, pinhole| key.0 == owner || pinhole.ends.key() == ends.key());
        let serial = self.ports.lock().next_serial();
        self.reserve_in_program(owner, serial, ends, installed_in);
        held.serial = serial;
        self.insert(owner, held)
    }

    /// Reserves the port of a pinhole that the BPF program has, unless one of the rules that may be open has it.
    fn reserve_in_program(
        &mut self,
        owner: u32,
        serial: u64,
        ends: PinholeEnds,
        installed_in: InstalledIn,
    ) {
        let mut ports = self.ports.lock();
        let is_newer = |port: &Port| {
            port.installed_in == InstalledIn::Rules
                && port.is_held
                && self.all.get(&(port.owner, port.serial)).is_none_or(Pinhole::is_open)
        };
        if ports.get(&ends).is_some_and(is_newer) {
            return;
        }
        let before = ports.reserve(ends, self.shard, owner, serial, installed_in);
        drop(ports);
        self.note_replaced(before);
        if let Some(Port { ends, .. }) =
            before.filter(|before| before.installed_in == InstalledIn::Rules)
        {
            self.closings.push(Closing::Rules(ends), Condition::NotInRules);
        }
    }

    /// Restores a pinhole of the session `owner` and this client from a record. A later pinhole with the same ends
    /// keeps the port.
    pub fn restore(
        &mut self,
        owner: u32,
        client: IpAddr,
        record: &PinholeRecord,
        deadline: Instant,
    ) {
        let mut restored = Pinhole::restored(record, deadline, client.into());
        let Pinhole { ends, serial, installed_in, .. } = restored;
        if installed_in != InstalledIn::Rules {
            self.reserve_in_program(owner, serial, ends, installed_in);
            self.insert(owner, restored);
            return;
        }
        let mut ports = self.ports.lock();
        let is_latest = ports.get(&ends).is_none_or(|port| port.serial < serial);
        let shard = if restored.is_in_transfer() { ANY_SHARD } else { self.shard };
        let reserve = || ports.reserve(ends, shard, owner, serial, InstalledIn::Rules);
        let before = is_latest.then(reserve).flatten();
        drop(ports);
        if !is_latest {
            restored.note_closed_in_kernel();
        }
        self.note_replaced(before);
        self.insert(owner, restored);
    }

    /// Takes the pinholes of the session `from` of another shard for the session `owner` of this one.
    pub fn adopt(&mut self, owner: u32, other: &mut Self, from: u32) {
        let serials: Vec<_> = other.all_of(from).map(|pinhole| pinhole.serial).collect();
        for serial in serials {
            let Some(pinhole) = other.all.remove(&(from, serial)) else { continue };
            self.ports.lock().set_owner(&pinhole.ends, serial, self.shard, owner);
            if pinhole.has_ended() {
                self.ended.push_back((owner, serial));
            }
            self.all.insert((owner, serial), pinhole);
        }
    }

    /// Notes that the server accepted the oldest pending announcement of the session `owner`. Returns the serial
    /// number of its pinhole.
    pub fn answer(&mut self, owner: u32) -> Option<u64> {
        let serial = self.of(owner).find(|pinhole| !pinhole.is_answered())?.serial;
        self.change((owner, serial), Pinhole::answer);
        Some(serial)
    }

    /// Notes that a transfer uses the answered pinholes of the session `owner`. Returns how many were not used
    /// before.
    pub fn start(&mut self, owner: u32) -> u64 {
        let is_new = |pinhole: &&Pinhole| pinhole.is_answered() && !pinhole.is_in_transfer();
        let count = self.of(owner).filter(is_new).count();
        self.change_each(owner, Pinhole::is_answered, Pinhole::start);
        count as u64
    }

    /// Notes that the transfer of the session `owner` ended well. The pinholes that the transfer used stay open for a
    /// while. Returns how many of them were not known to be used.
    pub fn end(&mut self, now: Instant, owner: u32) -> u64 {
        // A success without a preliminary reply may be meant for another command.
        let is_over = |pinhole: &&Pinhole| {
            pinhole.is_answered() && (pinhole.is_in_transfer() || !pinhole.may_be_open(now))
        };
        let over: Vec<_> = self
            .of(owner)
            .filter(is_over)
            .map(|pinhole| (pinhole.serial, pinhole.is_in_transfer()))
            .collect();
        let unused = over.iter().filter(|(_, was_used)| !was_used).count();
        for (serial, was_used) in over {
            let key = (owner, serial);
            let is_installed = self.all.get(&key).is_some_and(Pinhole::is_installed);
            if !(was_used && is_installed) {
                self.close(key);
                continue;
            }
            self.change(key, |pinhole| pinhole.end(now));
            self.ended.push_back(key);
            if self.ended.len() > MAX_ENDED
                && let Some(oldest) = self.ended.pop_front()
            {
                self.close_if_ended(oldest);
            }
        }
        unused as u64
    }

    /// Notes that a transfer of the session `owner` failed with `reply`. The data connection may still have to come,
    /// so the pinhole stays open until its deadline.
    pub fn fail(&mut self, now: Instant, owner: u32, reply: Reply) {
        while self
            .close_first(owner, |pinhole| pinhole.is_in_transfer() && pinhole.deadline <= now)
            .is_some()
        {}
        self.change_each(owner, |_| true, |pinhole| pinhole.fail(reply));
    }

    /// Notes that a new command of the session `owner` is to use its pinholes.
    pub fn retry(&mut self, owner: u32) {
        self.change_each(owner, Pinhole::is_refused, Pinhole::answer);
    }

    /// Notes that the used pinholes of the session `owner` whose deadlines have passed are not open any more. Closes
    /// expectations, because the kernel does not end their lifetime itself. The ports stay reserved.
    pub fn end_lifetimes(&mut self, owner: u32, now: Instant, kernel: &dyn Kernel) {
        let is_over = |one: &&Pinhole| one.is_in_transfer() && one.is_open() && one.deadline <= now;
        let over = self.of(owner).filter(is_over);
        let over: Vec<_> =
            over.map(|one| (one.serial, Closing::new(one.ends, one.installed_in))).collect();
        for (serial, closing) in over {
            if kernel.uses_expectations() {
                self.closings.push(closing, Condition::Always);
            }
            self.change((owner, serial), Pinhole::note_closed_in_kernel);
        }
    }

    /// Notes that the BPF program found the pinhole `id` of the session `owner` consumed.
    pub fn note_consumed(&mut self, owner: u32, id: PinholeId) {
        let is_meant = |pinhole: &Pinhole| pinhole.in_program() == Some(id);
        self.change_each(owner, is_meant, Pinhole::note_consumed);
    }

    /// Renews in the kernel the pinholes of the session `owner` that would expire soon, because a transfer waits for
    /// them. Returns whether there were any.
    pub fn renew(
        &mut self,
        now: Instant,
        owner: u32,
        control: &Translation,
        lifetime: Duration,
        kernel: &mut dyn Kernel,
    ) -> bool {
        let due = self.of(owner).filter(|pinhole| pinhole.is_renewable(now, lifetime));
        let due: Vec<_> = due.map(|pinhole| pinhole.serial).collect();
        for serial in &due {
            let key = (owner, *serial);
            let Some(pinhole) = self.all.get_mut(&key) else { continue };
            pinhole.deadline = now + lifetime;
            let is_meant = |one: &&Pinhole| one.may_be_open(now) && self.has_port(one);
            let Some(pinhole) = self.all.get(&key).filter(is_meant) else { continue };
            match kernel.renew(&pinhole.opening(control, lifetime), pinhole.installed_in) {
                Ok(true) => {}
                Ok(false) => drop(self.change(key, Pinhole::note_closed_in_kernel)),
                Err(error) => self.errors.push(error),
            }
        }
        !due.is_empty()
    }

    /// Takes the examinations of the session `owner` that are due. Returns the ends of the last pinhole that no transfer uses.
    pub fn take_examinations(&mut self, owner: u32, now: Instant) -> Option<PinholeEnds> {
        let mut last = None;
        for (_, pinhole) in self.all.range_mut((owner, 0)..=(owner, u64::MAX)) {
            let is_due = pinhole.examination.take_if(|at| *at <= now).is_some();
            if is_due && !pinhole.is_in_transfer() && !pinhole.has_ended() {
                last = Some(pinhole.ends);
            }
        }
        last
    }

    /// Closes the oldest pinhole of the session `owner` for which `is_meant` holds. The port is free when the kernel
    /// has closed the pinhole.
    pub fn close_first(
        &mut self,
        owner: u32,
        is_meant: impl Fn(&Pinhole) -> bool,
    ) -> Option<Pinhole> {
        let serial = self.of(owner).find(|pinhole| is_meant(pinhole))?.serial;
        self.close((owner, serial))
    }

    /// Closes all pinholes of the session `owner`.
    pub fn close_all_of(&mut self, owner: u32) {
        let serials: Vec<_> = self.all_of(owner).map(|pinhole| pinhole.serial).collect();
        for serial in serials {
            self.close((owner, serial));
        }
    }

    fn close(&mut self, key: Key) -> Option<Pinhole> {
        let pinhole = self.all.remove(&key)?;
        let Pinhole { ends, client, serial, installed_in, .. } = pinhole;
        let mut ports = self.ports.lock();
        ports.clients.remove(client, pinhole.counts());
        let had_port = ports.release(&ends, serial);
        drop(ports);
        let closing = Closing::new(ends, installed_in);
        match (pinhole.is_installed(), had_port) {
            (true, true) => self.closings.push(closing, Condition::PortOf(serial)),
            (true, false) if installed_in != InstalledIn::Rules => {
                self.closings.push(closing, Condition::Always);
            }
            // Another pinhole of the rules has its ends.
            (true, false) => {}
            (false, _) => self.ports.lock().remove(&ends, serial),
        }
        Some(pinhole)
    }

    fn close_if_ended(&mut self, key: Key) {
        if self.all.get(&key).is_some_and(Pinhole::has_ended) {
            self.close(key);
        }
    }

    /// Closes the pinholes of ended transfers for which `is_due` holds.
    pub fn close_ended_if(&mut self, is_due: impl Fn(&Key, &Pinhole) -> bool) {
        let all = &self.all;
        let is_due = |key: &Key| all.get(key).is_none_or(|ended| is_due(key, ended));
        let (due, left): (VecDeque<_>, _) = take(&mut self.ended).into_iter().partition(is_due);
        self.ended = left;
        due.into_iter().for_each(|key| self.close_if_ended(key));
    }

    /// Closes the pinholes of ended transfers whose time is over `now`.
    pub fn close_ended_before(&mut self, now: Instant) {
        self.close_ended_if(|_, pinhole| pinhole.ended_until().is_none_or(|until| until <= now));
    }

    /// Closes all pinholes of ended transfers.
    pub fn close_all_ended(&mut self) {
        self.close_ended_if(|_, _| true);
    }

    /// Closes pinholes of ended transfers, because the session `owner` of this client opens another pinhole: those
    /// that are due, those of the session, the oldest if there are many, and all if the client may be short of
    /// pinholes or `is_limited` to some ports.
    fn close_ended_for(
        &mut self,
        now: Instant,
        owner: u32,
        client: ClientKey,
        limit: usize,
        is_limited: bool,
    ) {
        self.close_ended_if(|key, pinhole| {
            key.0 == owner || pinhole.ended_until().is_none_or(|until| until <= now)
        });
        let surplus = self.ended.len().saturating_sub(MAX_ENDED_AFTER_OPENING);
        let oldest: Vec<_> = self.ended.drain(..surplus).collect();
        oldest.into_iter().for_each(|key| self.close_if_ended(key));
        let is_of_client =
            |key: &&Key| self.all.get(key).is_some_and(|ended| ended.client == client);
        let of_client = self.ended.iter().filter(is_of_client).count();
        let is_scarce = of_client > 0
            && self
                .ports
                .lock()
                .check(client, limit.saturating_sub(of_client), self.capacity)
                .is_err();
        if is_limited || is_scarce {
            self.close_all_ended();
        }
    }

    /// Queues the closing of a pinhole of the BPF program that no session has.
    pub fn close_lost(&mut self, id: PinholeId) {
        self.closings.push(Closing::Lost(id), Condition::Always);
    }

    /// Carries out the waiting closings.
    pub fn send_closings(&mut self, kernel: &mut dyn Kernel) {
        if self.closings.len() == 0 {
            return;
        }
        let closed = self.closings.carry_out(&self.ports, |due| match due {
            [] => Ok(()),
            _ => kernel.close(due).map_err(KernelError::not_closed),
        });
        self.errors.extend(closed.err());
    }

    /// Takes the errors of the kernel that refused no announcement.
    pub fn take_errors(&mut self) -> Vec<KernelError> {
        take(&mut self.errors)
    }

    /// Requeues failed closings.
    pub fn requeue_closings(&mut self) {
        self.closings.requeue();
    }

    /// Opens a pinhole in the kernel: at once if the waiting closings may follow, otherwise behind them.
    fn open_in_kernel(
        &mut self,
        opening: &Opening,
        kernel: &mut dyn Kernel,
    ) -> Result<(), KernelError> {
        if self.closings.may_follow(opening, kernel) {
            let opened = kernel.open(opening, &[]);
            // Closings that come first may make room.
            let may_make_room =
                matches!(opened, Err(KernelError::Taken | KernelError::Full { .. }));
            if !may_make_room || self.closings.len() == 0 {
                return opened;
            }
        }
        self.closings.carry_out(&self.ports, |due| kernel.open(opening, due))
    }

    /// Whether the BPF program may open another pinhole for `client`; if so, it is counted. Half of the client's limit
    /// is reserved for its connections that are inspected inline.
    pub fn grant_fast_path(&mut self, policy: &Policy, client: IpAddr) -> bool {
        let (client, mut ports) = (client.into(), self.ports.lock());
        let limit = max_open(policy.max_pinholes_per_client, self.capacity) / 2;
        let is_granted = limit > 0 && ports.check(client, limit, self.capacity).is_ok();
        if is_granted {
            ports.clients.add(client, true);
        }
        is_granted
    }

    /// Counts a grant that was made before a restart.
    pub fn recount_fast_path_grant(&mut self, client: IpAddr) {
        self.ports.lock().clients.add(client.into(), true);
    }

    /// Takes back the grant of one pinhole for `client` and the session `owner`. Open pinholes of the session count
    /// themselves from now on.
    pub fn revoke_fast_path_grant(&mut self, owner: u32, client: IpAddr) {
        self.ports.lock().clients.remove(client.into(), true);
        self.change_each(owner, |_| true, |pinhole| pinhole.set_granted(false));
    }

    /// Moves the pinholes of the session `owner` for which `is_meant` holds from the BPF program to the rules.
    /// Returns those that the program may have open. The caller opens these in the rules.
    pub fn move_to_rules(
        &mut self,
        owner: u32,
        is_meant: impl Fn(&Pinhole) -> bool,
    ) -> Vec<(PinholeId, Pinhole)> {
        let is_moved = |pinhole: &&Pinhole| pinhole.in_program().is_some() && is_meant(pinhole);
        let moved: Vec<_> = self.of(owner).filter(is_moved).cloned().collect();
        let mut open = Vec::new();
        for pinhole in moved {
            let Some(id) = pinhole.in_program() else { continue };
            self.change((owner, pinhole.serial), Pinhole::move_to_rules);
            let has_port = self.ports.lock().move_to_rules(&pinhole.ends, pinhole.serial);
            if has_port && pinhole.is_installed() {
                open.push((id, pinhole));
            } else {
                self.closings.push(Closing::Program(pinhole.ends, id), Condition::Always);
            }
        }
        open
    }
}

#[cfg(test)]
mod tests;
