//! Fast-path lines on their way from the ring buffer to the engines.
//!
//! Invariants:
//! - A worker that handles packets first fetches the lines of all sessions, and then has its engine read those of its
//!   own. So an engine has read every earlier line when it handles a packet.
//! - The room in the ring buffer is released when all its lines are in the journals, so a crash loses none.

use std::{
    error::Error,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use ftp_alg_core::{
    engine::{Engine, FastPathLine, Side},
    ftp::Padding,
};
use ftp_alg_fastpath::{
    FastPathCounts,
    layout::{LineRecord, side},
};

use super::{
    fast_path_pins::LoadedProgram,
    shard::lock,
    snapshot::{FastPathCounters, FastPathState, FastPathStatus},
};
use crate::kernel::{
    LinuxKernel, RuleParameters,
    clocks::instant_of,
    known_rules::KnownRules,
    offload::{LinkChanges, Offload, Translations},
    table::Commits,
};

/// The reader of the fast path's lines, with the program that inspects them.
pub(super) struct FastPathReader {
    /// The connections on the fast path, as the kernel's program knows them.
    pub(super) offload: Arc<Offload>,
    /// The program's counters at the start, of an earlier daemon's run.
    counts_before: FastPathCounts,
    unread: Mutex<UnreadLines>,
    /// The ports of this machine at which the program opens no pinhole.
    pub(super) known_rules: KnownRules,
    /// Why the fast path was turned off, if it was.
    pub(super) off_reason: OnceLock<String>,
    /// Why the thread that reads the lines is to turn the fast path off.
    pub(super) leave_reason: OnceLock<String>,
    /// Whether the engines hand no connection over yet, because the program is being loaded.
    pub(super) is_starting: AtomicBool,
    /// Whether the engines hand no connection over any more, because the daemon ends.
    pub(super) has_stopped: AtomicBool,
    pub(super) link_changes: LinkChanges,
    /// Holds the pin directory open while something may be pinned there.
    _loaded: LoadedProgram,
}

/// Lines that no engine has read yet. Lines of one flow are in order.
#[derive(Default)]
struct UnreadLines {
    /// The lines, each with the number of the last pass that had begun when the line was fetched.
    lines: Vec<(u64, LineRecord)>,
    pass: u64,
    /// Memory for the lines that are being fetched.
    fetched: Vec<LineRecord>,
}

impl FastPathReader {
    /// Uses the program in `loaded`.
    pub(super) fn new(
        mut loaded: LoadedProgram,
        parameters: &RuleParameters,
        commits: &Commits,
        known_rules: &KnownRules,
    ) -> Result<Self, Box<dyn Error>> {
        let translations = Translations::new(parameters, commits)?;
        let program = loaded.take_program().ok_or("the program is in use")?;
        let counts_before = program.counters()?;
        let is_starting = !program.is_loaded();
        let offload = Arc::new(Offload::new(program, translations, parameters));
        Ok(Self {
            offload,
            counts_before,
            unread: Mutex::default(),
            known_rules: known_rules.clone(),
            off_reason: OnceLock::new(),
            leave_reason: OnceLock::new(),
            is_starting: AtomicBool::new(is_starting),
            has_stopped: AtomicBool::new(false),
            link_changes: LinkChanges::subscribe()?,
            _loaded: loaded,
        })
    }

    /// Asks the thread that reads the lines to turn the fast path off, because of `why`. If that thread does not run,
    /// the fast path is off already.
    pub(super) fn leave(&self, why: String) {
        let _ = self.leave_reason.set(why);
    }

    /// Fetches the lines that are in the ring buffer now. Returns the position behind the last one.
    pub(super) fn fetch_lines(&self) -> u64 {
        let ring = self.offload.program().ring();
        let mut unread = lock(&self.unread);
        if ring.has_unread() {
            let UnreadLines { lines, pass, fetched } = &mut *unread;
            self.offload.read_lines(fetched);
            // The program may reserve room for a later line first.
            fetched.sort_by_cached_key(|line| (line.flow, line.number));
            lines.extend(fetched.drain(..).map(|line| (*pass, line)));
        }
        ring.position()
    }

    /// Passes the fetched lines to the engine of a locked shard, as far as they are of its sessions.
    pub(super) fn feed_engine(&self, engine: &mut Engine, kernel: &mut LinuxKernel) {
        let mut unread = lock(&self.unread);
        if unread.lines.is_empty() {
            return;
        }
        let is_own = |(_, line): &mut (u64, LineRecord)| {
            engine.sessions.has_session(line.client(), line.server(), line.flow)
        };
        let mut own = Vec::with_capacity(unread.lines.len());
        own.extend(unread.lines.extract_if(.., is_own));
        drop(unread);
        if !own.is_empty() {
            engine.read_fast_path_lines(own.iter().map(|(_, line)| engine_line(line)), kernel);
        }
    }

    /// Begins a pass that feeds all shards. Returns the number of the pass, and the position behind the last fetched
    /// line. Several passes may run at a time.
    pub(super) fn begin_pass(&self) -> (u64, u64) {
        let position = self.fetch_lines();
        let mut unread = lock(&self.unread);
        unread.pass += 1;
        (unread.pass, position)
    }

    /// Ends a pass. Unread lines that were fetched before the pass belong to sessions that are gone: `engine` closes
    /// the pinholes that were opened for them.
    pub(super) fn end_pass(&self, pass: u64, engine: &mut Engine, kernel: &mut LinuxKernel) {
        let is_before = |(fetched, _): &mut (u64, LineRecord)| *fetched < pass;
        let lost: Vec<_> = lock(&self.unread).lines.extract_if(.., is_before).collect();
        engine.read_fast_path_lines(lost.iter().map(|(_, line)| engine_line(line)), kernel);
    }

    /// Whether lines wait to be read.
    pub(super) fn has_unread(&self) -> bool {
        !lock(&self.unread).lines.is_empty()
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
        let counters = FastPathCounters {
            lines: counts.inspected.saturating_sub(before.inspected),
            handed_back: counts.handed_back.saturating_sub(before.handed_back),
            opened: counts.opened.saturating_sub(before.opened),
            admitted: counts.admitted.saturating_sub(before.admitted),
            no_room: counts.ring_full.saturating_sub(before.ring_full),
        };
        FastPathStatus { counters, ..state }
    }
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
