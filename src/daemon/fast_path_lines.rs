//! Fast-path lines on their way from the ring buffer to the engines.
//!
//! Invariants:
//! - A thread that decides about packets first fetches the lines of all shards, and then has the engine of its shard
//!   read them. So an engine has read every earlier line when it decides about a packet.
//! - The room in the ring buffer is released when all its lines are in the journals, so a crash loses none.

use std::{
    error::Error,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use ftp_alg_core::{
    engine::{Effects, Engine, FastPathLine, Side},
    ftp::Padding,
};
use ftp_alg_fastpath::{
    FastPathCounts, RingWaiter,
    layout::{LineRecord, side},
};

use super::{
    fast_path_pins::LoadedProgram,
    shard::lock,
    shard_map::ShardMap,
    snapshot::{FastPathState, FastPathStatus},
};
use crate::kernel::{
    RuleParameters,
    claimed_ports::ClaimedPorts,
    clocks::instant_of,
    offload::{LinkChanges, Offload, Translations},
    table::Commits,
};

/// The reader of the fast path's lines, with the program that inspects them.
pub(super) struct FastPathReader {
    /// The connections on the fast path, as the kernel's program knows them.
    pub(super) offload: Arc<Offload>,
    /// The program's counters at the start, of an earlier daemon's run.
    counts_before: FastPathCounts,
    shard_map: ShardMap,
    fetched_lines: Mutex<Vec<LineRecord>>,
    /// For each shard, the lines that its engine has not read yet.
    pub(super) unread_lines: Vec<Mutex<Vec<LineRecord>>>,
    /// The ports of this machine at which the program opens no pinhole.
    pub(super) claimed: ClaimedPorts,
    /// Why the fast path was turned off, if it was.
    pub(super) off_reason: OnceLock<String>,
    /// Why the thread that reads the lines is to turn the fast path off.
    pub(super) leave_reason: OnceLock<String>,
    /// Whether the engines hand no connection over yet, because the program is being loaded.
    pub(super) is_starting: AtomicBool,
    /// Whether the engines hand no connection over any more, because the daemon ends.
    pub(super) has_stopped: AtomicBool,
    /// Where the fast path's thread waits for the ring buffer.
    pub(super) ring_waiter: RingWaiter,
    /// Ends that wait as well.
    pub(super) link_changes: LinkChanges,
    /// Holds the pin directory open while something may be pinned there.
    _loaded: LoadedProgram,
}

impl FastPathReader {
    /// Uses the program in `loaded`.
    pub(super) fn new(
        mut loaded: LoadedProgram,
        parameters: &RuleParameters,
        commits: &Commits,
        claimed: &ClaimedPorts,
        shards: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let translations = Translations::new(parameters, commits)?;
        let program = loaded.take_program().ok_or("the program is in use")?;
        let waiter = RingWaiter::new(program.ring())?;
        let link_changes = LinkChanges::subscribe()?;
        waiter.watch(link_changes.as_fd())?;
        let counts_before = program.counters()?;
        let is_starting = !program.is_loaded();
        let offload = Arc::new(Offload::new(program, translations, parameters));
        Ok(Self {
            offload,
            counts_before,
            shard_map: ShardMap(shards),
            fetched_lines: Mutex::default(),
            unread_lines: (0..shards).map(|_| Mutex::default()).collect(),
            claimed: claimed.clone(),
            off_reason: OnceLock::new(),
            leave_reason: OnceLock::new(),
            is_starting: AtomicBool::new(is_starting),
            has_stopped: AtomicBool::new(false),
            ring_waiter: waiter,
            link_changes,
            _loaded: loaded,
        })
    }

    /// Has the thread that reads the lines turn the fast path off, because of `why`. If it does not run, the fast path
    /// is off.
    pub(super) fn leave(&self, why: String) {
        let _ = self.leave_reason.set(why);
    }

    /// Fetches the lines that are in the ring buffer now. Returns the position behind the last one.
    pub(super) fn fetch_lines(&self) -> u64 {
        let ring = self.offload.program().ring();
        let mut fetched = lock(&self.fetched_lines);
        if ring.has_unread() {
            self.offload.read_lines(&mut fetched);
            // The program may reserve room for a later line first. The records are large, so their positions are
            // sorted.
            let mut order: Vec<_> = (0..).zip(&*fetched).map(sort_key).collect();
            order.sort_unstable();
            for line in order.into_iter().filter_map(|(.., at)| fetched.get(at)) {
                let shard =
                    self.shard_map.shard_of_connection(line.client().into(), line.server().into());
                if let Some(unread) = self.unread_lines.get(shard) {
                    lock(unread).push(*line);
                }
            }
            fetched.clear();
        }
        ring.position()
    }

    /// Has the engine of `shard` read the lines that were fetched.
    pub(super) fn feed_engine(&self, shard: usize, engine: &mut Engine, effects: &mut Effects) {
        let Some(unread) = self.unread_lines.get(shard) else { return };
        let mut lines = std::mem::take(&mut *lock(unread));
        if !lines.is_empty() {
            engine.read_fast_path_lines(lines.iter().map(engine_line), effects);
            lines.clear();
            // The next lines reuse the memory.
            let mut unread = lock(unread);
            if unread.capacity() == 0 {
                *unread = lines;
            }
        }
    }

    /// The fast path's part of `status`.
    pub(super) fn status(&self, connections: usize) -> FastPathStatus {
        let (program, before) = (self.offload.program(), self.counts_before);
        let state = match self.off_reason.get() {
            Some(why) => FastPathStatus::off(why),
            None if self.is_starting.load(Ordering::Acquire) => {
                FastPathStatus::off(FastPathStatus::OFF_AT_FIRST)
            }
            None => FastPathStatus {
                state: FastPathState::On,
                why: String::new(),
                interfaces: program.interfaces(),
                filtered_early: program.filtered_early(),
                mark_writers: program.mark_writers(),
                connections: connections as u64,
                ..FastPathStatus::default()
            },
        };
        // The maps can be read as long as they are open, also if the program is removed.
        let counts = program.counters().unwrap_or(before);
        FastPathStatus {
            lines: counts.inspected.saturating_sub(before.inspected),
            handed_back: counts.handed_back.saturating_sub(before.handed_back),
            opened: counts.opened.saturating_sub(before.opened),
            admitted: counts.admitted.saturating_sub(before.admitted),
            no_room: counts.ring_full.saturating_sub(before.ring_full),
            ..state
        }
    }
}

/// The sort key of a line: lines of one flow keep their order.
fn sort_key((at, line): (usize, &LineRecord)) -> (u64, u32, usize) {
    (line.flow, line.number, at)
}

fn engine_line(line: &LineRecord) -> FastPathLine<'_> {
    FastPathLine {
        flow: line.flow,
        line: line.number,
        at: instant_of(line.at_ns),
        from: if line.side == side::CLIENT { Side::Client } else { Side::Server },
        client: line.client(),
        server: line.server(),
        seq: line.seq,
        ack: line.ack,
        window: line.window,
        opened_pinhole: line.opened_pinhole != 0,
        consumed_pinhole: (line.consumed_pinhole != 0).then_some(line.consumed_pinhole),
        is_fin: line.is_fin != 0,
        padding: Padding::from_digits(line.port_digits.into()),
        bytes: line.line(),
    }
}
