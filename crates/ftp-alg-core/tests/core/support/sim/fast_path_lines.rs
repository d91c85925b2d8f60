//! What the program of the fast path does on the simulated gateway, and when the daemon reads what it inspected.

use std::net::{IpAddr, SocketAddr};

use ftp_alg_core::{engine::PinholeEnds, session::Side};

use super::{
    super::{Rng, fast_path::model::Passed, segment::Segment},
    Sim,
};

impl Sim {
    /// What goes on at once of a packet that arrives, as the program decides about it.
    pub(super) fn inspect_in_kernel(&mut self, from: Side, bytes: &[u8]) -> Option<Vec<u8>> {
        // As it comes, where what it is sent to is not translated yet.
        let (destination, source) = self.translation.seen_by(from);
        let now = self.now();
        let (_, _, segment, is_valid) = Segment::parse(bytes).ok()?;
        let passed = self.kernel.program.inspect(now, (source, destination), &segment, is_valid);
        let Passed { seq, ack, payload } = passed?;
        if self.kernel.program.has_lines() {
            self.queues.read_later(self.now);
        }
        let passed = if (seq, ack) == (segment.seq, segment.ack) && payload == segment.payload {
            bytes.to_vec()
        } else {
            let (source, destination) = self.endpoints(from);
            let new = Segment { seq, ack, payload, ..segment }.packet(source, destination);
            self.check_replaced(from, bytes, &new);
            new
        };
        self.trace("fast_path", from, &passed);
        Some(passed)
    }

    /// The daemon reads what was inspected, where no packet has it do so.
    pub(super) fn read_fast_path_lines(&mut self) {
        self.queues.reads = false;
        if self.daemon.is_busy() {
            return self.queues.read_later(self.now);
        }
        let now = self.instant();
        self.at_risk(|sim| {
            sim.daemon.read(now, &mut sim.kernel);
            let given = sim.daemon.take_given();
            sim.give_later(given);
        });
        if self.kernel.program.has_lines() {
            self.queues.read_later(self.now);
        }
    }

    /// Whether somebody holds what the kernel has open, and the kernel has open what is held. To be called when the daemon
    /// has nothing to do.
    pub fn assert_pinholes_agree(&mut self, used: &[(IpAddr, SocketAddr)]) {
        let ends = |pinhole: &PinholeEnds| (pinhole.initiator, pinhole.arrival);
        let mut open: Vec<_> = self.kernel.pinholes().iter().map(ends).collect();
        let sessions = &mut self.daemon.engine().sessions;
        let unheld = open.iter().copied().find(|(from, to)| !sessions.holds_pinhole(*from, *to));
        let holes = self.kernel.program.open_pinholes();
        let is_held = |hole| sessions.fast_path_pinholes().any(|held| held == hole);
        let unheld_hole = holes.iter().find(|(hole, _)| !is_held(*hole));
        open.extend(holes.iter().map(|(_, ends)| *ends));
        let held: Vec<_> = sessions.list_pinholes().map(|info| ends(&info.ends)).collect();
        let is_missing = |pinhole: &&_| !open.contains(pinhole) && !used.contains(pinhole);
        let missing = held.iter().find(is_missing).filter(|_| !self.has_crashed);
        let wrong = (unheld, unheld_hole, missing);
        assert_eq!(wrong, (None, None, None), "{open:?} {}", self.summary());
    }

    /// A data connection comes for one of the pinholes that are held, if there is one. Gives which one was consumed.
    pub fn use_pinhole(&mut self, rng: &mut Rng) -> Option<(IpAddr, SocketAddr)> {
        let held: Vec<_> = self.engine().sessions.list_pinholes().collect();
        let pinhole = (!held.is_empty()).then(|| rng.pick(&held).ends)?;
        self.kernel.now = self.now();
        let target = self.kernel.connect(pinhole.initiator, pinhole.arrival)?;
        assert_eq!(target, pinhole.target, "{}", self.summary());
        Some((pinhole.initiator, pinhole.arrival))
    }
}
