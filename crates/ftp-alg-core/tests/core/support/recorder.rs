//! A kernel that records what it is asked for, and holds pinholes as the real one does.

use std::{
    cell::Cell,
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use ftp_alg_core::engine::{
    Closing, FlowChange, Handover, InstalledIn, Kernel, KernelError, OpenRange, Opening,
    PinholeEnds, QueueMode, RangeInfo, RouteLookup, Translation,
};

use super::fast_path::program::Program;

/// How many calls of its kernel and its host a daemon still makes, if it is killed then. Those behind have no effect.
#[derive(Clone, Default)]
pub struct Life(Rc<Cell<Option<u32>>>);

impl Life {
    /// It is killed after so many calls.
    pub fn ends_after(&self, calls: u32) {
        self.0.set(Some(calls));
    }

    /// Counts a call. Whether it has an effect.
    pub fn call(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.map(|left| left.saturating_sub(1)));
        left != Some(0)
    }

    /// It begins another one.
    pub fn begin(&self) {
        self.0.set(None);
    }
}

/// That of nf_conntrack_sane.
const HELPER_TIMEOUT: Duration = Duration::from_secs(300);

/// The kernel of the simulated gateway.
#[derive(Default)]
pub struct Recorder {
    /// That of the connection whose ends talk.
    pub translation: Option<Translation>,
    /// Those of other connections.
    pub others: Vec<Translation>,
    /// The interfaces of client and server.
    pub interfaces: [u32; 2],
    /// The connections that were handed over to the program, and the flows that were taken back.
    pub handovers: Vec<Handover>,
    pub withdrawn: Vec<u64>,
    /// The lines whose pinholes were closed there: those of a session, and those of none.
    pub closed_lines: Vec<u32>,
    pub lost_lines: Vec<u32>,
    /// Whether the program goes on with connections that it is to stop.
    pub never_stops: bool,
    /// The only routes that there are; `None`: each address has a route to each interface.
    pub routes: Option<Vec<(IpAddr, u32)>>,
    /// How often it was asked for a route, and for consumed pinholes.
    pub route_lookups: usize,
    pub consumed_lookups: usize,
    /// How many pinholes were renewed.
    pub renewals: usize,
    /// Open now, with their deadlines in simulated time.
    pub open: Vec<(PinholeEnds, Duration)>,
    /// All that were ever opened.
    pub opened: Vec<PinholeEnds>,
    /// What was asked for them.
    pub openings: Vec<Opening>,
    /// All that were asked to be closed.
    pub closed: Vec<PinholeEnds>,
    /// Whether pinholes are expectations.
    pub uses_expectations: bool,
    /// The open ranges.
    pub ranges: Vec<RangeInfo>,
    /// Whether it refuses to open any.
    pub refuses_ranges: bool,
    /// How many transactions opened something.
    pub transactions: usize,
    /// Data connections that were admitted: source, destination and first sequence number.
    connections: HashSet<(SocketAddr, SocketAddr, u32)>,
    /// The first sequence number of the last new data connection.
    last_seq: u32,
    /// External ports that others use.
    pub taken: HashSet<u16>,
    pub queue_mode: Option<QueueMode>,
    /// How often a translation was asked for.
    pub asked: usize,
    /// Number of queue mode changes.
    pub mode_changes: usize,
    /// Whether conntrack knows no connection.
    pub forgot: bool,
    /// Packets to be sent.
    pub injected: Vec<Vec<u8>>,
    /// What calls fail with, while set.
    pub failing: bool,
    /// The simulated time.
    pub now: Duration,
    /// The program of the fast path.
    pub program: Program,
    /// Whether calls still have an effect.
    life: Life,
}

impl Recorder {
    pub fn new(translation: Translation, life: Life) -> Self {
        Self { translation: Some(translation), life, ..Self::default() }
    }

    /// The SYN of a new data connection: where it is sent, if it is admitted. Consumes the pinhole.
    pub fn connect(&mut self, initiator: IpAddr, arrival: SocketAddr) -> Option<SocketAddr> {
        self.last_seq += 1;
        self.receive_syn(SocketAddr::new(initiator, 20), arrival, self.last_seq)
    }

    /// A SYN, perhaps a retransmission: where it is sent, if a pinhole admits it.
    pub fn receive_syn(
        &mut self,
        source: SocketAddr,
        arrival: SocketAddr,
        seq: u32,
    ) -> Option<SocketAddr> {
        let in_program = self.program.admit(self.now, source, arrival, seq);
        // NAT chains see only the first packet of a connection in conntrack.
        if self.connections.contains(&(source, arrival, seq)) {
            return None;
        }
        let target = in_program.or_else(|| {
            self.forget_expired();
            let admits = |p: &PinholeEnds| p.initiator == source.ip() && p.arrival == arrival;
            let at = self.open.iter().position(|(pinhole, _)| admits(pinhole))?;
            Some(self.open.remove(at).0.target)
        })?;
        self.connections.insert((source, arrival, seq));
        Some(target)
    }

    /// What is open.
    pub fn pinholes(&mut self) -> Vec<PinholeEnds> {
        self.forget_expired();
        self.open.iter().map(|(pinhole, _)| *pinhole).collect()
    }

    /// Initiator and arrival of what is open, which another kernel has not.
    pub fn take_open(&mut self) -> HashSet<(IpAddr, SocketAddr)> {
        self.forget_expired();
        self.open.drain(..).map(|(pinhole, _)| pinhole.key()).collect()
    }

    fn forget_expired(&mut self) {
        let now = self.now;
        self.open.retain(|(_, deadline)| *deadline > now);
    }

    fn add(&mut self, opening: &Opening) -> Result<(), KernelError> {
        let Opening { ends: pinhole, control, lifetime, .. } = *opening;
        self.check("open")?;
        assert!(self.knows(&control), "the connection that asked");
        let initiator = if opening.is_from_client() { control.client } else { control.server };
        assert_eq!(pinhole.initiator, initiator.ip(), "the initiator");
        self.forget_expired();
        let same = |p: &PinholeEnds| p.key() == pinhole.key();
        if self.taken.contains(&pinhole.arrival.port())
            || self.open.iter().any(|(p, _)| same(p))
            || !self.program.reserve_pinhole(&pinhole)
        {
            return Err(KernelError::Taken);
        }
        let timeout = if self.uses_expectations { HELPER_TIMEOUT } else { Duration::ZERO };
        let deadline = self.now + lifetime.max(timeout);
        self.program.note_rules_pinhole(&pinhole, deadline);
        self.open.push((pinhole, deadline));
        self.opened.push(pinhole);
        self.openings.push(*opening);
        Ok(())
    }

    /// Closes a pinhole.
    pub fn remove(&mut self, closing: &Closing) -> Result<(), KernelError> {
        match closing {
            Closing::Rules(ends) => {
                self.check("close")?;
                self.open.retain(|(open, _)| open.key() != ends.key());
                self.program.release_pinhole(ends);
                self.closed.push(*ends);
            }
            Closing::Program(ends, id) => {
                self.closed_lines.push(id.line);
                self.program.close_pinhole(ends, *id);
            }
            Closing::Lost(id) => {
                self.lost_lines.push(id.line);
                self.program.close_lost_pinhole(*id);
            }
        }
        Ok(())
    }

    fn knows(&self, control: &Translation) -> bool {
        self.translation.iter().chain(&self.others).any(|known| known == control)
    }

    fn check(&self, what: &str) -> Result<(), KernelError> {
        let source = std::io::Error::from_raw_os_error(12);
        let error = || KernelError::System { what: what.to_owned(), source };
        if self.failing { Err(error()) } else { Ok(()) }
    }
}

impl Kernel for Recorder {
    fn lookup_translation(
        &mut self,
        a: SocketAddr,
        b: SocketAddr,
    ) -> Result<Option<Translation>, KernelError> {
        if !self.life.call() {
            return Ok(None);
        }
        self.check("translation")?;
        self.asked += 1;
        let is_it = |t: &&Translation| [[a, b], [b, a]].contains(&[t.client, t.server]);
        let known = self.translation.iter().chain(&self.others).find(is_it);
        Ok(known.filter(|_| !self.forgot).copied())
    }

    fn has_route(&mut self, lookup: RouteLookup) -> Result<bool, KernelError> {
        self.route_lookups += 1;
        let route = (lookup.address, lookup.interface);
        Ok(self.routes.as_ref().is_none_or(|routes| routes.contains(&route)))
    }

    fn uses_expectations(&self) -> bool {
        self.uses_expectations
    }

    fn open(&mut self, opening: &Opening, closings: &[Closing]) -> Result<(), KernelError> {
        if !self.life.call() {
            return Ok(());
        }
        self.transactions += 1;
        let closed = closings.iter().try_for_each(|closing| self.remove(closing));
        closed.map_err(KernelError::not_closed)?;
        self.add(opening)
    }

    fn close(&mut self, closings: &[Closing]) -> Result<(), KernelError> {
        if !self.life.call() {
            return Ok(());
        }
        closings.iter().try_for_each(|closing| self.remove(closing))
    }

    fn renew(&mut self, opening: &Opening, installed_in: InstalledIn) -> Result<bool, KernelError> {
        if !self.life.call() {
            return Ok(true);
        }
        self.forget_expired();
        self.check("renew")?;
        self.renewals += 1;
        let Opening { ends, lifetime, .. } = opening;
        let deadline = self.now + *lifetime;
        Ok(match installed_in {
            InstalledIn::Program(id) => self.program.renew_pinhole(ends, id, deadline),
            InstalledIn::Rules => match self.open.iter_mut().find(|(open, _)| open == ends) {
                Some((_, until)) => {
                    *until = deadline;
                    self.program.note_rules_pinhole(ends, deadline);
                    true
                }
                None => false,
            },
        })
    }

    fn find_consumed(&mut self, pinholes: &[PinholeEnds]) -> Result<Vec<PinholeEnds>, KernelError> {
        self.check("list")?;
        self.consumed_lookups += 1;
        let mut open: Vec<_> = self.pinholes().iter().map(PinholeEnds::key).collect();
        open.extend(self.program.open_pinholes().iter().map(|(_, ends)| *ends));
        let closed = pinholes.iter().filter(|pinhole| !open.contains(&pinhole.key()));
        Ok(closed.copied().collect())
    }

    fn open_range(&mut self, range: &OpenRange) -> Result<(), KernelError> {
        if !self.life.call() {
            return Ok(());
        }
        if self.refuses_ranges {
            return Err(KernelError::Full { what: "the table" });
        }
        self.close_range(range)?;
        self.ranges.push(range.into());
        Ok(())
    }

    fn close_range(&mut self, range: &OpenRange) -> Result<(), KernelError> {
        if !self.life.call() {
            return Ok(());
        }
        let closed = RangeInfo::from(range);
        let key = |one: &RangeInfo| (one.initiator, one.arrival);
        self.ranges.retain(|one| key(one) != key(&closed));
        self.check("close a range")
    }

    fn set_queue_mode(
        &mut self,
        control: &Translation,
        queue_mode: QueueMode,
    ) -> Result<(), KernelError> {
        if !self.life.call() {
            return Ok(());
        }
        self.check("attend")?;
        self.mode_changes += 1;
        if self.forgot {
            return Err(KernelError::Unknown);
        }
        assert!(self.knows(control), "the connection that is to be marked");
        if self.translation == Some(*control) {
            self.queue_mode = Some(queue_mode);
        }
        Ok(())
    }

    fn apply_flow_changes(&mut self, changes: &[FlowChange]) {
        if !self.life.call() {
            return;
        }
        for change in changes {
            match change {
                FlowChange::Handover(handover) => {
                    assert_eq!(handover.interfaces, self.interfaces);
                    self.handovers.push(*handover);
                }
                FlowChange::Withdraw(withdrawal) => self.withdrawn.push(withdrawal.flow),
            }
        }
        self.program.apply_changes(changes);
    }

    fn stop_flow(&mut self, flow: u64) -> bool {
        let lives = self.life.call();
        if lives {
            self.program.stop(flow);
        }
        lives && !self.never_stops
    }

    fn inject(&mut self, packet: &[u8], _: IpAddr, _: u32) -> Result<(), KernelError> {
        if !self.life.call() {
            return Ok(());
        }
        self.check("inject")?;
        self.injected.push(packet.to_vec());
        Ok(())
    }
}
