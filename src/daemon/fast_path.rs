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

use super::{ServiceError, host, judged::Judged, shard::lock, shared::Shared};
use crate::gateway::{
    Backend, ClaimedPorts, GatewayError, LinuxKernel, RuleParameters, flows::Failures,
    used_pinholes,
};

/// How often is read what was judged, while something is, and while nothing is; sooner where the ring fills.
const PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);
/// How often is looked for interfaces that are new, and for ports that are claimed.
const LOOK: Duration = Duration::from_secs(1);

impl Judged {
    /// Reads all that was judged, and gives its room back once that is written. Whether there was something.
    pub(super) fn read(&self, shared: &Shared, kernel: &mut LinuxKernel) -> bool {
        let position = self.fetch();
        let mut was_something = false;
        host::work(shared, kernel, |_, all| {
            for (shard, effects) in all.iter_mut().enumerate() {
                let mut engine = lock(&shared.shards[shard].engine);
                was_something |= !lock(&self.inboxes[shard]).is_empty();
                // Also what another thread had it read, and has not written yet.
                engine.read_judged(std::iter::empty(), effects);
                self.feed(shard, &mut engine, effects);
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
        shared: &Shared,
        kernel: &mut LinuxKernel,
    ) -> Result<(), ServiceError> {
        if is_new_table {
            self.flows.reset()?;
        }
        self.begin_anew(true, shared, kernel)?;
        if is_new_table || !self.flows.program().was_left() {
            leave_program(parameters, shared, kernel)?;
        }
        Ok(())
    }

    /// Has the program judge nothing, at the start, because of `why`, and removes it.
    pub(super) fn turn_off(
        &self,
        why: String,
        parameters: &RuleParameters,
        shared: &Shared,
        kernel: &mut LinuxKernel,
    ) -> Result<(), ServiceError> {
        let _ = self.off.set(why);
        self.begin_anew(false, shared, kernel)?;
        leave_program(parameters, shared, kernel)?;
        Ok(self.flows.program().remove()?)
    }

    /// Takes all connections back, and has the engines hand over others, or none.
    fn begin_anew(
        &self,
        hands_over: bool,
        shared: &Shared,
        kernel: &mut LinuxKernel,
    ) -> io::Result<()> {
        self.read(shared, kernel);
        // Each comes again by itself.
        for shard in &shared.shards {
            let mut engine = lock(&shard.engine);
            engine.sessions.set_hands_over(false);
            engine.sessions.set_hands_over(hands_over);
        }
        self.read(shared, kernel);
        let program = self.flows.program();
        program.drop_flows()?;
        // What was judged until then: sessions hold those pinholes.
        self.read(shared, kernel);
        // What was given up before a crash may not have been closed.
        let mut held: HashSet<Hole> = HashSet::new();
        for shard in &shared.shards {
            held.extend(lock(&shard.engine).sessions.holes());
        }
        let holds = |initiator: IpAddr, arrival: SocketAddr| {
            let first = shared.shards.first();
            first.is_some_and(|shard| lock(&shard.engine).sessions.holds(initiator, arrival))
        };
        program.keep_holes(|initiator, arrival, flow, line| match flow {
            0 => holds(initiator.into(), arrival.into()),
            _ => held.contains(&Hole { flow, line }),
        })?;
        for shard in &shared.shards {
            // One that the program has open as well is that session's own.
            let of_rules: Vec<_> = lock(&shard.engine).sessions.of_rules().collect();
            of_rules.iter().for_each(|pinhole| _ = self.flows.reserve(pinhole));
        }
        Ok(())
    }

    /// The table was loaded anew, and has none of the translations.
    pub(super) fn table_is_new(&self, shared: &Shared, kernel: &mut LinuxKernel) {
        if let Err(error) = self.flows.reset() {
            shared.fail(&error);
        }
        self.take_back(shared, kernel);
    }

    /// Takes all connections back, and has all read that was judged.
    pub(super) fn take_back(&self, shared: &Shared, kernel: &mut LinuxKernel) {
        for shard in &shared.shards {
            lock(&shard.engine).sessions.take_all_back();
        }
        self.read(shared, kernel);
        // What was judged until the program knew.
        self.read(shared, kernel);
    }

    /// Has the program judge nothing any more, and what it has judged is read. Its pinholes stay open.
    pub(super) fn stop(&self, shared: &Shared, kernel: &mut LinuxKernel) {
        for shard in &shared.shards {
            lock(&shard.engine).sessions.set_hands_over(false);
        }
        self.take_back(shared, kernel);
    }

    /// Removes the program, when nothing is in use.
    pub(super) fn remove(&self, shared: &Shared) {
        if let Err(error) = self.flows.program().remove() {
            shared.fail(&error);
        }
    }

    /// Works until `end` is set.
    pub(super) fn run(
        &self,
        end: &AtomicBool,
        shared: &Shared,
        kernel: &mut LinuxKernel,
        claimed: &ClaimedPorts,
    ) {
        let (mut pause, mut next_look) = (PAUSE, Instant::now());
        while !end.load(Ordering::Acquire) {
            let was_something = self.read(shared, kernel);
            pause = if was_something { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            let now = Instant::now();
            if now >= next_look {
                self.look(shared, claimed);
                next_look = now + LOOK;
            }
            if let Err(error) = self.waiter.wait(pause) {
                shared.fail(&error);
                thread::sleep(pause);
            }
        }
    }

    /// Has the program attached to new interfaces while it is used, and bars the ports at which nothing may be opened.
    pub(super) fn look(&self, shared: &Shared, claimed: &ClaimedPorts) {
        let program = self.flows.program();
        if let Err(error) = program.look(Instant::now()) {
            shared.fail(&error);
        }
        if let Some(Failures { count, last }) = self.flows.take_failures() {
            shared.fail_often(
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
pub(super) fn leave_program(
    parameters: &RuleParameters,
    shared: &Shared,
    kernel: &mut LinuxKernel,
) -> Result<(), GatewayError> {
    let mut left = Vec::new();
    host::work(shared, kernel, |_, all| {
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
    shared.open_again(kernel, |pinhole| {
        left.contains(pinhole) && !used.contains(&(pinhole.initiator, pinhole.arrival))
    });
    Ok(())
}
