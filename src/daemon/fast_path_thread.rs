//! The thread of the fast path: has the engines read what the program judged, and the program know what has changed.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use ftp_alg_core::{engine::Hole, policy::Policy};

use super::{
    ServiceError, fast_path_lines::FastPathReader, host, shard::lock, shared_state::SharedState,
};
use crate::gateway::{
    Backend, ClaimedPorts, GatewayError, LinuxKernel, RuleParameters, flows::Failures,
    used_pinholes,
};

/// How often is read what was judged, while something is, and while nothing is; sooner where the ring fills.
const MIN_PAUSE: Duration = Duration::from_millis(4);
const MAX_PAUSE: Duration = Duration::from_millis(64);
/// How often is looked for interfaces that are new, and for ports that are claimed.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);

impl FastPathReader {
    /// Reads all that was judged, and gives its room back once that is written. Whether there was something.
    pub(super) fn read_steps(&self, shared: &SharedState, kernel: &mut LinuxKernel) -> bool {
        let position = self.fetch_steps();
        let mut was_something = false;
        host::carry_out_effects(shared, kernel, |_, all| {
            for (shard, effects) in all.iter_mut().enumerate() {
                let mut engine = lock(&shared.shards[shard].engine);
                was_something |= !lock(&self.unread_steps[shard]).is_empty();
                // Also what another thread had it read, and has not written yet.
                engine.read_judged(std::iter::empty(), effects);
                self.feed_engine(shard, &mut engine, effects);
            }
        });
        self.flows.program().ring().release(position);
        was_something
    }

    /// Has the engines and the program know the same connections, at the start. Where program or table is a new one, rules have
    /// the pinholes of the one before.
    pub(super) fn start(
        &self,
        is_new_table: bool,
        parameters: &RuleParameters,
        shared: &SharedState,
        kernel: &mut LinuxKernel,
    ) -> Result<(), ServiceError> {
        if is_new_table {
            self.flows.restore_translations()?;
        }
        self.resynchronise(true, shared, kernel)?;
        if is_new_table || !self.flows.program().was_taken_over() {
            reopen_program_pinholes(parameters, shared, kernel)?;
        }
        Ok(())
    }

    /// Has the program judge nothing, at the start, because of `why`, and removes it.
    pub(super) fn turn_off(
        &self,
        why: String,
        parameters: &RuleParameters,
        shared: &SharedState,
        kernel: &mut LinuxKernel,
    ) -> Result<(), ServiceError> {
        let _ = self.off_reason.set(why);
        self.resynchronise(false, shared, kernel)?;
        reopen_program_pinholes(parameters, shared, kernel)?;
        Ok(self.flows.program().remove()?)
    }

    /// Takes all connections back, and has the engines hand over others, or none.
    fn resynchronise(
        &self,
        hands_over: bool,
        shared: &SharedState,
        kernel: &mut LinuxKernel,
    ) -> io::Result<()> {
        self.read_steps(shared, kernel);
        // Each comes again by itself.
        for shard in &shared.shards {
            let mut engine = lock(&shard.engine);
            engine.sessions.set_hands_over(false);
            engine.sessions.set_hands_over(hands_over);
        }
        self.read_steps(shared, kernel);
        let program = self.flows.program();
        program.take_back_all()?;
        // What was judged until then: sessions hold those pinholes.
        self.read_steps(shared, kernel);
        // What was given up before a crash may not have been closed.
        let mut held: HashSet<Hole> = HashSet::new();
        for shard in &shared.shards {
            held.extend(lock(&shard.engine).sessions.holes());
        }
        let holds = |initiator: IpAddr, arrival: SocketAddr| {
            let first = shared.shards.first();
            first.is_some_and(|shard| lock(&shard.engine).sessions.holds(initiator, arrival))
        };
        program.retain_pinholes(|initiator, arrival, flow, line| match flow {
            0 => holds(initiator.into(), arrival.into()),
            _ => held.contains(&Hole { flow, line }),
        })?;
        for shard in &shared.shards {
            // One that the program has open as well is that session's own.
            let of_rules: Vec<_> = lock(&shard.engine).sessions.of_rules().collect();
            of_rules.iter().for_each(|pinhole| _ = self.flows.reserve_pinhole(pinhole));
        }
        Ok(())
    }

    /// The table was loaded anew, and has none of the translations.
    pub(super) fn handle_new_table(&self, shared: &SharedState, kernel: &mut LinuxKernel) {
        if let Err(error) = self.flows.restore_translations() {
            shared.report_error(&error);
        }
        self.take_back_all(shared, kernel);
    }

    /// Takes all connections back, and has all read that was judged.
    pub(super) fn take_back_all(&self, shared: &SharedState, kernel: &mut LinuxKernel) {
        for shard in &shared.shards {
            lock(&shard.engine).sessions.take_all_back();
        }
        self.read_steps(shared, kernel);
        // What was judged until the program knew.
        self.read_steps(shared, kernel);
    }

    /// Has the program judge nothing any more, and what it has judged is read. Its pinholes stay open.
    pub(super) fn stop(&self, shared: &SharedState, kernel: &mut LinuxKernel) {
        for shard in &shared.shards {
            lock(&shard.engine).sessions.set_hands_over(false);
        }
        self.take_back_all(shared, kernel);
    }

    /// Removes the program, when nothing is in use.
    pub(super) fn remove(&self, shared: &SharedState) {
        if let Err(error) = self.flows.program().remove() {
            shared.report_error(&error);
        }
    }

    /// Works until `end` is set.
    pub(super) fn run(
        &self,
        end: &AtomicBool,
        shared: &SharedState,
        kernel: &mut LinuxKernel,
        claimed: &ClaimedPorts,
    ) {
        let (mut pause, mut next_look) = (MIN_PAUSE, Instant::now());
        while !end.load(Ordering::Acquire) {
            let was_something = self.read_steps(shared, kernel);
            pause = if was_something { MIN_PAUSE } else { (pause * 2).min(MAX_PAUSE) };
            let now = Instant::now();
            if now >= next_look {
                self.update_program(shared, claimed);
                next_look = now + UPDATE_INTERVAL;
            }
            if let Err(error) = self.ring_waiter.wait(pause) {
                shared.report_error(&error);
                thread::sleep(pause);
            }
        }
    }

    /// Has the program attached to new interfaces while it is used, and bars the ports at which nothing may be opened.
    pub(super) fn update_program(&self, shared: &SharedState, claimed: &ClaimedPorts) {
        let program = self.flows.program();
        if let Err(error) = program.update_attachments(Instant::now()) {
            shared.report_error(&error);
        }
        if let Some(Failures { count, last }) = self.flows.take_failures() {
            shared.report_errors(
                count,
                &format_args!("fast path: {last} ({count} errors since the last look)"),
            );
        }
        let policy =
            shared.shards.first().map(|shard| lock(&shard.engine).sessions.policy().clone());
        let bars = |policy: &Policy, port| port < policy.min_data_port || policy.denies(port);
        self.flows.bar_ports(claimed, |port| {
            policy.as_ref().is_none_or(|policy| {
                bars(policy, port)
                    || policy.networks.iter().any(|network| bars(&network.policy, port))
            })
        });
    }
}

/// Has rules have the pinholes that a program had which is gone, or whose translations are, but for those that were used.
pub(super) fn reopen_program_pinholes(
    parameters: &RuleParameters,
    shared: &SharedState,
    kernel: &mut LinuxKernel,
) -> Result<(), GatewayError> {
    let mut left = Vec::new();
    host::carry_out_effects(shared, kernel, |_, all| {
        for (shard, effects) in shared.shards.iter().zip(all) {
            let mut engine = lock(&shard.engine);
            left.append(&mut engine.sessions.leave_program());
            engine.read_judged(std::iter::empty(), effects);
        }
    });
    if left.is_empty() || parameters.backend() != Backend::Nftables {
        return Ok(());
    }
    let used = used_pinholes(parameters)?;
    shared.reopen_pinholes(kernel, |pinhole| {
        left.contains(pinhole) && !used.contains(&(pinhole.initiator, pinhole.arrival))
    });
    Ok(())
}
