//! The daemon's work on the fast path. Its own thread passes the program's lines to the engines, and updates the
//! program's interfaces and ports. Other threads turn the fast path on and off, and take connections back.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ftp_alg_core::{engine::PinholeId, policy::Policy};
use ftp_alg_fastpath::UsableInterfaces;

use super::{
    ServiceError, fast_path_lines::FastPathReader, shard::lock, shared_state::SharedState,
};
use crate::kernel::{LinuxKernel, NetfilterError, RuleParameters, offload::pinhole_id};

/// Interval between two readings of the ring buffer, while there are lines and while there are none. It has room for 4854
/// lines.
const MIN_PAUSE: Duration = Duration::from_millis(4);
const MAX_PAUSE: Duration = Duration::from_millis(64);
/// Interval between two updates of the program's interfaces and barred ports.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);

/// The fast path, with the shards and the calling thread's access to the kernel.
pub(super) struct FastPathControl<'a> {
    reader: &'a FastPathReader,
    shared: &'a SharedState,
    kernel: &'a mut LinuxKernel,
}

impl SharedState {
    /// The fast path, if this daemon has one.
    pub(super) fn fast_path_control<'a>(
        &'a self,
        kernel: &'a mut LinuxKernel,
    ) -> Option<FastPathControl<'a>> {
        let reader = self.fast_path.as_ref().ok()?;
        Some(FastPathControl { reader, shared: self, kernel })
    }
}

impl FastPathControl<'_> {
    /// Passes all lines to the engines, and releases their room in the ring buffer when they are in the journals.
    /// Returns whether there were any lines.
    pub(super) fn read_lines(&mut self) -> bool {
        let (reader, shared) = (self.reader, self.shared);
        let (pass, position) = reader.begin_pass();
        let has_read = reader.has_unread();
        // Includes the records of lines that a worker had its engine read in a batch which is not finished: it waits for
        // the shard.
        shared.finish_each(self.kernel, |engine, kernel| reader.feed_engine(engine, kernel));
        if reader.has_unread() {
            shared.finish_shard(shared.restored(), self.kernel, |engine, kernel| {
                reader.end_pass(pass, engine, kernel);
            });
        }
        reader.offload.program().ring().release(position);
        has_read
    }

    /// Brings engines and program to the same connections, at the start. If the program is new, or the table lacks
    /// translations of it, opens the old program's pinholes in the table.
    pub(super) fn start(&mut self, parameters: &RuleParameters) -> Result<(), ServiceError> {
        let offload = &self.reader.offload;
        let lacks_translations = offload.lacks_translations()?;
        if lacks_translations {
            offload.end_readmissions();
            offload.restore_translations()?;
        }
        // What is not loaded yet takes no connections, see [`FastPathControl::run`].
        self.resynchronise(self.is_loaded())?;
        if !offload.program().was_taken_over() {
            return Ok(reopen_program_pinholes(parameters, self.shared, self.kernel)?);
        }
        if lacks_translations {
            move_pinholes_to_rules(None, self.shared, self.kernel);
        }
        Ok(())
    }

    /// Turns the fast path off, because of `why`: takes all connections back and removes the program.
    pub(super) fn turn_off(&mut self, why: String) -> Result<(), ServiceError> {
        self.resynchronise(false)?;
        move_pinholes_to_rules(None, self.shared, self.kernel);
        self.reader.offload.program().remove()?;
        let _ = self.reader.off_reason.set(why);
        Ok(())
    }

    /// Takes all connections back, and closes pinholes of the program that no session holds. From then on the engines
    /// hand connections over, or none, as `hands_over` says.
    fn resynchronise(&mut self, hands_over: bool) -> io::Result<()> {
        let (offload, shared) = (&self.reader.offload, self.shared);
        self.read_lines();
        // The engines hand each connection over again when it is eligible.
        shared.with_each(|engine| {
            engine.sessions.set_uses_fast_path(false);
            engine.sessions.set_uses_fast_path(hands_over);
        });
        self.read_lines();
        let program = offload.program();
        program.take_back_all()?;
        // The lines that the program inspected until then: their pinholes belong to sessions.
        self.read_lines();
        // A daemon that crashed may have left pinholes open that it had already dropped.
        let mut held: HashSet<PinholeId> = HashSet::new();
        shared.with_each(|engine| held.extend(engine.sessions.fast_path_pinholes()));
        program.retain_pinholes(|key, pinhole| match pinhole.flow {
            0 => shared.holds_pinhole(key.initiator, key.arrival()),
            _ => held.contains(&pinhole_id(pinhole)),
        })?;
        shared.with_each(|engine| {
            let sessions = &engine.sessions;
            // The program may already have the same pinhole open. It is then the same session's.
            sessions.rule_pinholes().for_each(|pinhole| _ = offload.reserve_pinhole(&pinhole));
            let open = sessions.missing_pinholes(Instant::now(), |_| true);
            open.for_each(|opening| offload.note_rules_pinhole(&opening));
        });
        Ok(())
    }

    /// Restores the translations in a table that was loaded again, and takes all connections back.
    pub(super) fn handle_new_table(&mut self) {
        self.shared.report(self.reader.offload.restore_translations());
        self.take_back(None);
    }

    /// Takes all connections back, or those with an end at one of these `interfaces`, and passes all lines to the
    /// engines.
    pub(super) fn take_back(&mut self, interfaces: Option<&[u32]>) {
        self.shared.with_each(|engine| engine.sessions.take_back_at(interfaces));
        self.read_lines();
        // The lines that the program inspected before it got the change.
        self.read_lines();
    }

    /// Passes the lines that the program inspected before a new policy was set to the engines.
    pub(super) fn apply_policy(&mut self) {
        self.read_lines();
        // The lines that the program inspected before it returned its connections.
        self.read_lines();
        self.reader.offload.end_readmissions();
    }

    /// Ends the inspection by the program: takes all connections back and reads their lines. The program's pinholes
    /// stay open.
    pub(super) fn stop(&mut self) {
        self.reader.has_stopped.store(true, Ordering::Release);
        self.shared.with_each(|engine| engine.sessions.set_uses_fast_path(false));
        self.take_back(None);
    }

    /// Waits until the program is loaded. Then lets the engines hand connections over.
    fn wait_until_loaded(&mut self) {
        if let Err(why) = self.reader.offload.program().finish_loading() {
            return self.reader.leave(why.to_string());
        }
        self.update_program();
        self.shared.with_each(|engine| {
            // [`Self::stop`] sets this before it locks the shard. If this thread does not see it, `stop` locks later.
            if !self.reader.has_stopped.load(Ordering::Acquire) {
                engine.sessions.set_uses_fast_path(true);
            }
        });
        self.reader.is_starting.store(false, Ordering::Release);
    }

    /// Whether the program is loaded.
    pub(super) fn is_loaded(&self) -> bool {
        self.reader.offload.program().is_loaded()
    }

    /// Reads lines until `end` is set, or the fast path is to be turned off. The thread that sets either unparks
    /// this thread.
    pub(super) fn run(&mut self, end: &AtomicBool) -> Result<(), ServiceError> {
        if !self.is_loaded() {
            self.wait_until_loaded();
        }
        let (mut pause, mut next_update) = (MIN_PAUSE, Instant::now());
        while !end.load(Ordering::Acquire) {
            if let Some(why) = self.reader.leave_reason.get() {
                log_off(why);
                return self.turn_off(why.clone());
            }
            let has_read = self.read_lines();
            pause = if has_read { MIN_PAUSE } else { (pause * 2).min(MAX_PAUSE) };
            let now = Instant::now();
            if now >= next_update {
                self.update_program();
                next_update = now + UPDATE_INTERVAL;
            } else if self.reader.link_changes.take() {
                self.update_interfaces();
            }
            thread::park_timeout(pause);
        }
        Ok(())
    }

    /// Attaches the program where it can be while it has connections, and bars the ports at which no pinhole may be opened.
    pub(super) fn update_program(&mut self) {
        self.update_interfaces();
        if let Some((count, last)) = self.reader.offload.take_failures() {
            self.shared.report_errors(
                count,
                &format_args!("fast path: {last} ({count} errors since the last report)"),
            );
        }
        self.bar_ports(None);
    }

    fn update_interfaces(&mut self) {
        let program = self.reader.offload.program();
        let updated = program.find_usable_interfaces().and_then(|usable| {
            // The program is detached when its pinholes have moved.
            self.set_usable_interfaces(usable);
            program.update_attachments(Instant::now())
        });
        self.shared.report(updated);
    }

    /// Lets the engines hand over only connections of these interfaces. Takes back the connections of lost interfaces,
    /// and moves their pinholes to the rules, because the program may not see their SYNs in time.
    fn set_usable_interfaces(&mut self, UsableInterfaces { indices, lost }: UsableInterfaces) {
        let indices: Arc<[u32]> = indices.into();
        self.shared
            .with_each(|engine| engine.sessions.set_fast_path_interfaces(Arc::clone(&indices)));
        if !lost.is_empty() {
            self.take_back(Some(&lost));
            move_pinholes_to_rules(Some(&lost), self.shared, self.kernel);
        }
    }

    /// Bars the program from the ports that the policy forbids, or the `next` policy.
    pub(super) fn bar_ports(&self, next: Option<&Policy>) {
        let policy = lock(self.shared.restored()).engine.sessions.policy().clone();
        self.reader.offload.bar_ports(&self.reader.known_rules, |port| {
            [&policy].into_iter().chain(next).any(|policy| {
                let mut networks = policy.networks.iter().map(|network| &network.policy);
                policy.forbids_port(port) || networks.any(|policy| policy.forbids_port(port))
            })
        });
    }
}

/// Logs why the fast path is off.
pub(super) fn log_off(why: &str) {
    log_event!(FAST_PATH_OFF, reason = why, "fast path off: {why}");
}

/// Moves the program's open pinholes to the rules: all, or those of connections with an end at one of these
/// `interfaces`. These connections must not be handed over.
fn move_pinholes_to_rules(
    interfaces: Option<&[u32]>,
    shared: &SharedState,
    kernel: &mut LinuxKernel,
) {
    let mut errors = Vec::new();
    shared.finish_each(kernel, |engine, kernel| {
        let moved = engine.sessions.move_pinholes_to_rules(Instant::now(), interfaces);
        kernel.move_pinholes_to_rules(&moved, &mut errors);
    });
    errors.iter().for_each(|error| shared.report_error(error));
}

/// Opens in the table the unused pinholes of a program that is gone.
pub(super) fn reopen_program_pinholes(
    parameters: &RuleParameters,
    shared: &SharedState,
    kernel: &mut LinuxKernel,
) -> Result<(), NetfilterError> {
    let mut leftover = Vec::new();
    shared.finish_each(kernel, |engine, _| {
        let moved = engine.sessions.move_pinholes_to_rules(Instant::now(), None);
        leftover.extend(moved.into_iter().map(|(_, opening)| opening.ends));
    });
    if leftover.is_empty() {
        return Ok(());
    }
    let is_left = |pinhole: &_| leftover.contains(pinhole);
    shared.reopen_unused_pinholes(parameters, kernel, is_left).map(drop)
}
